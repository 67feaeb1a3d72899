//! What is sent, letter by letter.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::relay::route::Thinking;

const MESSAGES: &str = r#""messages":[{"role":"user","content":"Hi"}]"#;

fn rules(thinking: Thinking) -> ModelRules {
    ModelRules { thinking, ..ModelRules::default() }
}

fn sent_by(body: &str, quirks: &[Quirk], rules: ModelRules) -> Result<(String, Vec<Box<str>>), Refusal> {
    let request = ChatRequest::parse(Bytes::copy_from_slice(body.as_bytes())).unwrap();
    let quirks = quirks.iter().copied().collect();
    let Outgoing { path, body, dropped } = outgoing(&request, "up", quirks, &rules, 1000)?;
    assert_eq!(&*path, "/chat/completions");
    serde_json::from_slice::<Value>(&body).unwrap();
    Ok((String::from_utf8(body.to_vec()).unwrap(), dropped))
}

/// The members before `messages` and after it, as they are sent.
fn sent(members: &str, quirks: &[Quirk]) -> (String, String) {
    let body = format!(r#"{{"model":"up",{members},{MESSAGES} }}"#);
    let (sent, dropped) = sent_by(&body, quirks, ModelRules::default()).unwrap();
    (sent.replace(r#"{"model":"up","#, "").replace(&format!("{MESSAGES} }}"), ""), dropped.join(","))
}

/// What is sent of a request whose answers are held to so many tokens.
fn sent_within(limit: u64, body: &str, quirks: &[Quirk], thinking: Thinking) -> String {
    let mut request = ChatRequest::parse(Bytes::copy_from_slice(body.as_bytes())).unwrap();
    request.limit_output(limit);
    let sent = outgoing(&request, "up", quirks.iter().copied().collect(), &rules(thinking), 1000).unwrap();
    let json: Value = serde_json::from_slice(&sent.body).unwrap();
    let tokens = |name: &str| json[name].as_u64().unwrap_or(0);
    let apart = if quirks.contains(&Quirk::EnableThinking) { tokens("thinking_budget") } else { 0 };
    assert!(tokens("max_tokens").max(tokens("max_completion_tokens")) + apart <= limit, "{json}");
    String::from_utf8(sent.body.to_vec()).unwrap().replace(&format!(r#"{{"model":"up",{MESSAGES}"#), "")
}

#[test]
fn a_lowered_limit_is_said_in_the_providers_own_words_and_nothing_else_changes() {
    let old = &[Quirk::MaxTokens][..];
    for (members, quirks, sent) in [
        ("", &[][..], r#","max_completion_tokens":70}"#),
        ("", old, r#","max_tokens":70}"#),
        (r#","max_tokens":100,"x":1.50e1"#, &[], r#","max_tokens":70,"x":1.50e1}"#),
        (r#","max_tokens":70"#, &[], r#","max_tokens":70}"#),
        (r#","max_completion_tokens" : 900"#, &[], r#","max_completion_tokens" : 70}"#),
        (r#","max_completion_tokens" : 900"#, old, r#","max_tokens" : 70}"#),
        (
            r#","max_tokens":900,"max_completion_tokens":100000000000000000000000"#,
            &[],
            r#","max_tokens":70,"max_completion_tokens":70}"#,
        ),
        (r#","max_tokens":900,"max_completion_tokens":60"#, &[], r#","max_tokens":70,"max_completion_tokens":60}"#),
        (r#","max_tokens":60,"max_completion_tokens":900"#, old, r#","max_tokens":70}"#),
        (r#","max_completion_tokens":null"#, &[], r#","max_completion_tokens":70}"#),
        (r#","max_tokens":null"#, &[], r#","max_tokens":null,"max_completion_tokens":70}"#),
        (r#","max_tokens":null,"max_completion_tokens":null"#, old, r#","max_tokens":70}"#),
        (
            r#","max_tokens":100,"temperature":0.7,"tools":[]"#,
            &[Quirk::MaxTokensCapped],
            r#","max_tokens":70,"temperature":0.7,"tools":[]}"#,
        ),
        (
            r#","stream":true"#,
            &[Quirk::LooseAnswers],
            r#","stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":70}"#,
        ),
    ] {
        let body = format!(r#"{{"model":"up",{MESSAGES}{members}}}"#);
        assert_eq!(sent_within(70, &body, quirks, Thinking::None), sent, "{members} {quirks:?}");
    }
}

#[test]
fn thinking_that_is_counted_apart_shares_what_there_is() {
    let budget = Thinking::Budget { min: 0, max: 32_768 };
    let quirks = &[Quirk::MaxTokens, Quirk::EnableThinking][..];
    for (limit, members, sent) in [
        // Three quarters may be thought, and the answer has at least one.
        (800, "", r#","thinking_budget":600,"max_tokens":200}"#),
        (800, r#","max_tokens":50"#, r#","max_tokens":50,"thinking_budget":750}"#),
        (800, r#","max_tokens":500,"thinking_budget":200"#, r#","max_tokens":500,"thinking_budget":200}"#),
        (800, r#","max_tokens":700,"thinking_budget":200"#, r#","max_tokens":600,"thinking_budget":200}"#),
        (
            800,
            r#","max_tokens":700,"enable_thinking":true,"thinking_budget":900"#,
            r#","max_tokens":200,"enable_thinking":true,"thinking_budget":600}"#,
        ),
        (800, r#","max_tokens":900,"enable_thinking":false"#, r#","max_tokens":800,"enable_thinking":false}"#),
        (
            800,
            r#","reasoning_effort":"high","max_tokens":900"#,
            r#","max_tokens":200,"enable_thinking":true,"thinking_budget":600}"#,
        ),
        (800, r#","reasoning_effort":"none","max_tokens":900"#, r#","max_tokens":800,"enable_thinking":false}"#),
        // Too little to think in.
        (100, r#","max_tokens":90,"enable_thinking":true"#, r#","max_tokens":90,"enable_thinking":false}"#),
        (100, "", r#","enable_thinking":false,"max_tokens":100}"#),
    ] {
        let body = format!(r#"{{"model":"up",{MESSAGES}{members}}}"#);
        let got: Value =
            serde_json::from_str(&format!("{{\"a\":1{}", sent_within(limit, &body, quirks, budget))).unwrap();
        assert_eq!(got, serde_json::from_str::<Value>(&format!("{{\"a\":1{sent}")).unwrap(), "{members}");
    }
}

#[test]
fn thinking_that_is_counted_apart_is_held_for() {
    let budget = Thinking::Budget { min: 0, max: 3000 };
    let ceiling = |members: &str, quirks: &[Quirk]| {
        let body = format!(r#"{{"model":"up",{MESSAGES}{members}}}"#);
        let request = ChatRequest::parse(body.into()).unwrap();
        output_ceiling(&request, quirks.iter().copied().collect(), &rules(budget), 10_000)
    };
    let apart = &[Quirk::EnableThinking][..];
    assert_eq!(ceiling("", &[]), 10_000);
    assert_eq!(ceiling(r#","max_tokens":500,"reasoning_effort":"high""#, &[]), 500);
    assert_eq!(ceiling(r#","max_tokens":500,"reasoning_effort":"high""#, apart), 3500);
    assert_eq!(ceiling(r#","max_tokens":500,"thinking_budget":700"#, apart), 1200);
    assert_eq!(ceiling(r#","max_tokens":500,"enable_thinking":false"#, apart), 500);
    assert_eq!(ceiling(r#","max_tokens":500"#, apart), 10_000, "nobody has said for how long");
    assert_eq!(ceiling(r#","max_tokens":500"#, &[Quirk::EnableThinking, Quirk::ThinksInStreamsOnly]), 500);
}

fn refused(members: &str, quirks: &[Quirk], rules: ModelRules) -> Refusal {
    sent_by(&format!(r#"{{"model":"m",{members}}}"#), quirks, rules).unwrap_err()
}

#[test]
fn without_quirks_it_is_the_very_same_body() {
    let body = Bytes::from(format!(r#"{{"model":"up","store":true,{MESSAGES}}}"#));
    let request = ChatRequest::parse(body.clone()).unwrap();
    for quirks in [Quirks::NONE, [Quirk::LooseAnswers, Quirk::DeveloperAsSystem].into_iter().collect()] {
        let sent = outgoing(&request, "up", quirks, &ModelRules::default(), 1000).unwrap();
        assert_eq!(sent.body.as_ptr(), body.as_ptr());
    }
}

#[test]
fn what_has_no_place_is_dropped_and_named() {
    for (members, quirks, left, dropped) in [
        (
            r#""store":true,"x":1,"metadata":null,"prediction":{"a":[1,2]}"#,
            &[Quirk::NoPlatformFields][..],
            r#""x":1,"#,
            "store,prediction",
        ),
        (r#""store":true"#, &[Quirk::NoLogitBias], r#""store":true,"#, ""),
        (
            r#""logit_bias":{},"parallel_tool_calls":false"#,
            &[Quirk::NoParallelToolCalls],
            r#""logit_bias":{},"#,
            "parallel_tool_calls",
        ),
        (r#""top_logprobs":2,"logprobs":true"#, &[Quirk::NoLogprobs], "", "logprobs,top_logprobs"),
    ] {
        assert_eq!(sent(members, quirks), (left.to_owned(), dropped.to_owned()), "{members}");
    }
    let body = format!(r#"{{ "store" : true , "model":"m","stream":true, {MESSAGES}, "user":"u"}}"#);
    let (body, dropped) =
        sent_by(&body, &[Quirk::NoPlatformFields, Quirk::NoUser, Quirk::NoStreamOptions], ModelRules::default())
            .unwrap();
    assert_eq!(body, format!(r#"{{ "model":"up","stream":true, {MESSAGES}}}"#));
    assert_eq!(dropped, ["store", "user"].map(Box::<str>::from));
}

#[test]
fn usage_is_asked_for_unless_it_comes_anyway() {
    let stream = r#""stream":true,"stream_options":{"include_usage":true}"#;
    assert_eq!(sent(stream, &[Quirk::NoStreamOptions]), (r#""stream":true,"#.into(), String::new()));
    assert_eq!(sent(r#""stream":true"#, &[Quirk::NoUser]).0, format!("{stream},"));
}

#[test]
fn the_most_tokens_have_the_vendors_name_and_bound() {
    use Quirk::{MaxTokens, MaxTokensCapped};
    for (members, quirks, left) in [
        (r#""max_completion_tokens" : 9"#, &[MaxTokens][..], r#""max_tokens" : 9,"#),
        (r#""max_completion_tokens":null,"max_tokens":8"#, &[MaxTokens], r#""max_tokens":8,"#),
        (r#""max_tokens":8, "max_completion_tokens":9"#, &[MaxTokens], r#" "max_tokens":9,"#),
        (r#""max_tokens":1001"#, &[MaxTokens, MaxTokensCapped], r#""max_tokens":1000,"#),
        (r#""max_completion_tokens":99999999999999999999999"#, &[MaxTokensCapped], r#""max_completion_tokens":1000,"#),
        (r#""max_completion_tokens":5000"#, &[MaxTokens, MaxTokensCapped], r#""max_tokens":1000,"#),
    ] {
        assert_eq!(sent(members, quirks), (left.to_owned(), String::new()), "{members}");
    }
}

#[test]
fn sampling_keeps_to_what_is_taken() {
    let quirks = &[Quirk::SamplingBelowOne];
    assert_eq!(sent(r#""temperature":0,"top_p":1.0"#, quirks).0, r#""temperature":0.01,"top_p":0.99,"#);
    assert_eq!(sent(r#""temperature":1e1,"top_p":0.5"#, quirks).0, r#""temperature":0.99,"top_p":0.5,"#);
    assert_eq!(sent(r#""seed":7"#, &[Quirk::RandomSeed]).0, r#""random_seed":7,"#);
    let body = format!(r#"{{"model":"up","temperature":0.5,"top_p":0.5,{MESSAGES}}}"#);
    for (sampling, left, dropped) in [
        (Sampling::Free, r#""temperature":0.5,"top_p":0.5,"#, ""),
        (Sampling::OneOf, r#""temperature":0.5,"#, "top_p"),
        (Sampling::None, "", "temperature,top_p"),
    ] {
        let (body, told) = sent_by(&body, &[], ModelRules { sampling, ..ModelRules::default() }).unwrap();
        assert_eq!((body, told.join(",")), (format!(r#"{{"model":"up",{left}{MESSAGES}}}"#), dropped.to_owned()));
    }
}

#[test]
fn roles_and_reasoning_are_as_the_vendor_wants_them() {
    let history = r#"{"model":"up","messages":[
        {"role":"developer","content":"Be \"brief\"."},
        {"content":"developer","role":"user"},
        {"role":"assistant","content":null,"tool_calls":[{"id":"a"}]},
        {"reasoning_content":"","role":"assistant","tool_calls":[{"id":"b"}]},
        {"role":"assistant","reasoning_content":"Hm","tool_calls":[{"id":"c"}]},
        {"role":"assistant","content":"Yes","tool_calls":[]}]}"#;
    let quirks = [Quirk::DeveloperAsSystem, Quirk::EchoesReasoning, Quirk::ThinkingObject];
    let (body, _) = sent_by(history, &quirks, rules(Thinking::Switch)).unwrap();
    let expected = history
        .replace(r#""role":"developer""#, r#""role":"system""#)
        .replace(r#""assistant","content":null"#, r#""assistant","reasoning_content":" ","content":null"#)
        .replace(r#""reasoning_content":"","#, r#""reasoning_content":" ","#);
    assert_eq!(body, expected);

    // Nothing to echo where nothing is thought.
    let off = history.replace(r#"{"model":"up","#, r#"{"model":"up","thinking":{"type":"disabled"},"#);
    assert!(!sent_by(&off, &quirks, rules(Thinking::Switch)).unwrap().0.contains(r#"" ""#));
    assert!(!sent_by(history, &quirks, rules(Thinking::None)).unwrap().0.contains(r#"" ""#));

    let (body, dropped) = sent_by(history, &[Quirk::NoReasoningInHistory], ModelRules::default()).unwrap();
    assert!(!body.contains("reasoning_content") && dropped.is_empty(), "{body}");
}

#[test]
fn what_is_no_text_is_refused_by_its_place() {
    let image = r#""messages":[{"role":"user","content":"x"},{"role":"user","content":[
        {"type":"text","text":"What?"},{"type":"image_url","image_url":{"url":"data:"}}]}]"#;
    let refusal = refused(image, &[Quirk::TextOnly], ModelRules::default());
    assert_eq!((refusal.cause.status(), refusal.param.as_deref()), (400, Some("messages[1].content[1]")));
    assert!(sent_by(&format!(r#"{{"model":"m",{image}}}"#), &[Quirk::NoUser], ModelRules::default()).is_ok());
}

#[test]
fn a_schema_is_stated_where_it_cannot_be_enforced() {
    let schema = r#"{"type":"object","properties":{"a\n":{"const":12345678901234567890123}}}"#;
    let body = format!(
        r#"{{"response_format":{{"type":"json_schema","json_schema":{{"name":"n","strict":true,"schema":{schema}}}}},"model":"m",{MESSAGES}}}"#
    );
    let (sent, dropped) = sent_by(&body, &[Quirk::NoJsonSchema], ModelRules::default()).unwrap();
    let sent: Value = serde_json::from_str(&sent).unwrap();
    assert_eq!(sent["response_format"], json!({"type": "json_object"}));
    let stated = sent["messages"][0]["content"].as_str().unwrap();
    assert_eq!(sent["messages"][0]["role"], "system");
    assert!(stated.contains("JSON") && stated.ends_with(&format!(":\n{schema}")), "{stated}");
    assert_eq!((sent["messages"][1]["content"].as_str(), dropped), (Some("Hi"), vec!["response_format".into()]));

    let plain = body.replace("json_schema\",", "json_object\",");
    assert_eq!(sent_by(&plain, &[Quirk::NoJsonSchema], ModelRules::default()).unwrap().1.len(), 0);
    let none = ModelRules { schema: SchemaForm::None, ..ModelRules::default() };
    assert_eq!(sent_by(&body, &[], none).unwrap_err().param.as_deref(), Some("response_format"));
}

#[test]
fn a_schemas_own_dialect_is_taken_out() {
    let body = |schema: &str| {
        format!(
            r#"{{"model":"up","response_format":{{"type":"json_schema","json_schema":{{"schema":{schema}}}}},{MESSAGES}}}"#
        )
    };
    for (before, after) in [
        (r#"{"$schema":"x","type":"object"}"#, r#"{"type":"object"}"#),
        (r#"{"type":"object","$schema":"x"}"#, r#"{"type":"object"}"#),
        (r#"{"$schema":"x"}"#, "{}"),
        (r#"{"properties":{"$schema":{}}}"#, r#"{"properties":{"$schema":{}}}"#),
    ] {
        let (sent, dropped) = sent_by(&body(before), &[Quirk::NoSchemaDialect], ModelRules::default()).unwrap();
        assert_eq!((sent, dropped.len()), (body(after), 0));
    }
}

#[test]
fn efforts_are_sent_in_the_vendors_words() {
    let body = |members: &str| format!(r#"{{"model":"up",{members},{MESSAGES}}}"#);
    let object = &[Quirk::ThinkingObject, Quirk::NoForcedToolWhileThinking];
    let (sent, dropped) = sent_by(&body(r#""reasoning_effort":"high""#), object, rules(Thinking::Switch)).unwrap();
    assert_eq!(sent, format!(r#"{{"model":"up",{MESSAGES},"thinking":{{"type":"enabled"}}}}"#));
    assert!(dropped.is_empty());

    let forced = r#""tool_choice":"required","reasoning_effort":"high""#;
    let (sent, dropped) = sent_by(&body(forced), object, rules(Thinking::Level)).unwrap();
    assert!(
        sent.contains(r#""tool_choice":"required""#) && sent.ends_with(r#""thinking":{"type":"disabled"}}"#),
        "{sent}"
    );
    assert_eq!(dropped, ["reasoning_effort"].map(Box::<str>::from));

    let flag = &[Quirk::EnableThinking];
    let budget = rules(Thinking::Budget { min: 0, max: 99_999 });
    let (sent, _) = sent_by(&body(r#""reasoning_effort":"low","top_k":3"#), flag, budget).unwrap();
    assert_eq!(sent, format!(r#"{{"model":"up","top_k":3,{MESSAGES},"enable_thinking":true,"thinking_budget":1024}}"#));
    let own = body(r#""enable_thinking":true,"thinking_budget":7"#);
    assert_eq!(sent_by(&own, flag, budget).unwrap().0, own);
    for wrong in [r#""reasoning_effort":"hardest""#, r#""reasoning_effort":3"#] {
        let refusal = sent_by(&body(wrong), flag, budget).unwrap_err();
        assert_eq!(refusal.param.as_deref(), Some("reasoning_effort"));
    }
}

#[test]
fn a_field_that_would_be_changed_is_not_there_twice() {
    let refusal = refused(&format!(r#""seed":1,"seed":2,{MESSAGES}"#), &[Quirk::RandomSeed], ModelRules::default());
    assert_eq!(refusal.message, "Duplicate parameter: 'seed'.");
}

/// Any quirks at all.
fn some_quirks() -> impl Strategy<Value = Quirks> {
    prop::sample::subsequence(Quirk::ALL.to_vec(), 0..=Quirk::ALL.len()).prop_map(|quirks| quirks.into_iter().collect())
}

fn some_rules() -> impl Strategy<Value = ModelRules> {
    let thinking = prop::sample::select(vec![
        Thinking::None,
        Thinking::Switch,
        Thinking::Level,
        Thinking::Budget { min: 9, max: 9000 },
        Thinking::Adaptive { xhigh: true },
    ]);
    let sampling = prop::sample::select(vec![Sampling::Free, Sampling::OneOf, Sampling::None]);
    let schema = prop::sample::select(vec![SchemaForm::Native, SchemaForm::ForcedTool, SchemaForm::None]);
    (thinking, sampling, schema).prop_map(|(thinking, sampling, schema)| ModelRules {
        thinking,
        sampling,
        schema,
        ..ModelRules::default()
    })
}

fn some_members() -> impl Strategy<Value = Vec<(String, String)>> {
    let names: Vec<&str> = CHANGED
        .iter()
        .chain(DROPPED.iter().flat_map(|(_, names)| names.iter()))
        .copied()
        .filter(|name| *name != "stream_options")
        .chain(["x", "tools", "stop", "n"])
        .collect();
    let values =
        vec!["null", "1", "true", "\"high\"", "\"required\"", "{}", r#"{"type":"json_schema","json_schema":{}}"#];
    let member = prop::sample::subsequence(names, 0..12).prop_flat_map(move |names| {
        let values = prop::collection::vec(prop::sample::select(values.clone()), names.len());
        (Just(names), values)
    });
    member.prop_map(|(names, values)| {
        let mut members: Vec<(String, String)> =
            names.into_iter().map(str::to_owned).zip(values.into_iter().map(str::to_owned)).collect();
        members.push(("model".into(), "\"m\"".into()));
        let messages = r#"[{"role":"developer","content":[{"type":"text"}]},{"reasoning":"r","role":"assistant","tool_calls":[{}]}]"#;
        members.push(("messages".into(), messages.into()));
        members.push(("stream".into(), "true".into()));
        members
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever came in is sent, or was put into other words, or is told of, or the request was refused.
    #[test]
    fn nothing_is_lost_in_silence(members in some_members().prop_shuffle(), quirks in some_quirks(), rules in some_rules(), space in "[ \n]?") {
        let written: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\"{space}:{space}{value}{space}")).collect();
        let body = format!("{{{space}{}}}", written.join(&format!(",{space}")));
        let Ok(request) = ChatRequest::parse(Bytes::from(body.clone())) else { return Ok(()) };
        let sent = match outgoing(&request, "up", quirks, &rules, 1000) {
            Ok(sent) => sent,
            Err(refusal) => {
                prop_assert!(refusal.cause.status() == 400 && refusal.param.is_some());
                return Ok(());
            }
        };
        let after: Value = serde_json::from_slice(&sent.body).map_err(|error| TestCaseError::fail(format!("{error}: {:?}", sent.body)))?;
        for (key, value) in &members {
            let has = |name: &str| after.get(name).is_some();
            let consumed = match key.as_str() {
                "max_completion_tokens" => value == "null" || has("max_tokens"),
                "max_tokens" => has("max_tokens"),
                "seed" => has("random_seed"),
                "reasoning_effort" => has("thinking") || has("enable_thinking"),
                _ => false,
            };
            let is_told = sent.dropped.iter().any(|name| **name == **key);
            prop_assert!(has(key) || consumed || is_told || value == "null", "{} of {} is not in {}", key, body, after);
            if key == "x" || key == "tools" || key == "stop" {
                prop_assert_eq!(&after[key], &serde_json::from_str::<Value>(value).unwrap());
            }
        }
    }

    #[test]
    fn any_body_is_spliced_or_refused_without_panic(body: Vec<u8>, quirks in some_quirks(), rules in some_rules()) {
        if let Ok(request) = ChatRequest::parse(body.into()) {
            let _ = outgoing(&request, "up", quirks, &rules, 1);
        }
    }

    /// Messages of any form, as long as each has a role.
    #[test]
    fn any_messages_are_spliced_without_panic(
        messages in prop::collection::vec(r#"\{"role":"(developer|assistant|user)"(,"(content|tool_calls|reasoning_content)":(null|""|"x"|\[\]|\[1\]|\[\{"type":("text"|"file"|1)\}\]))*\}"#, 1..4),
        quirks in some_quirks(),
    ) {
        let body = format!(r#"{{"messages":[{}],"model":"m"}}"#, messages.join(","));
        let request = ChatRequest::parse(body.into()).unwrap();
        if let Ok(sent) = outgoing(&request, "up", quirks, &rules(Thinking::Switch), 1) {
            prop_assert!(serde_json::from_slice::<Value>(&sent.body).is_ok(), "{:?}", sent.body);
        }
    }
}
