//! Requests as clients send them, and what Gemini gets.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::relay::dialect::gemini::SignatureMemory;
use crate::relay::refusal::Cause;
use crate::relay::route::{Sampling, SchemaForm, Thinking};

const OUTPUT_TOKENS_MAX: u64 = 65_536;

pub(super) fn scope() -> SignatureScope {
    Arc::new(SignatureMemory::default()).scope("acct")
}

pub(super) fn translate_with(
    body: &Value,
    rules: &ModelRules,
    signatures: &SignatureScope,
) -> Result<Outgoing, Refusal> {
    let parsed = ChatRequest::parse(Bytes::from(body.to_string())).unwrap();
    request(&parsed, "gemini-x", rules, OUTPUT_TOKENS_MAX, signatures)
}

/// A request with these members besides a model and, if there are none, a message.
pub(super) fn whole(members: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    for (key, value) in members.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn sent_by(rules: &ModelRules, members: Value) -> (Value, Vec<String>) {
    let outgoing = translate_with(&whole(members), rules, &scope()).unwrap();
    let dropped = outgoing.dropped.iter().map(|name| name.to_string()).collect();
    (serde_json::from_slice(&outgoing.body).unwrap(), dropped)
}

pub(super) fn sent(members: Value) -> Value {
    sent_by(&ModelRules::default(), members).0
}

fn contents(messages: Value) -> Value {
    sent(json!({"messages": messages}))["contents"].take()
}

pub(super) fn refused(members: Value) -> (Cause, String) {
    let refusal = translate_with(&whole(members), &ModelRules::default(), &scope()).unwrap_err();
    assert_eq!(refusal.cause.status(), 400);
    (refusal.cause, refusal.param.unwrap_or_default().into())
}

pub(super) fn function(parameters: Value) -> Value {
    json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters, "strict": true}}])
}

#[test]
fn the_path_names_model_and_method() {
    let path = |model: &str, stream: bool| super::path(model, stream);
    assert_eq!(path("gemini-2.5-pro", false), "/v1beta/models/gemini-2.5-pro:generateContent");
    assert_eq!(path("gemini-2.5-pro", true), "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse");
    assert_eq!(path("tunedModels/a b?", false), "/v1beta/tunedModels/a%20b%3F:generateContent");
}

#[test]
fn turns_alternate_and_begin_with_the_user() {
    let body = sent(json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "And kind."}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "One", "name": "Ann"},
        {"role": "user", "content": [{"type": "text", "text": "Two\u{e9}\n"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": null, "refusal": "No."},
        {"role": "assistant", "content": ""},
        {"role": "system", "content": "Later."},
        {"role": "user", "content": ""},
    ]}));
    let expected = json!([
        {"role": "user", "parts": [{"text": " "}]},
        {"role": "model", "parts": [{"text": "Hello."}]},
        {"role": "user", "parts": [{"text": "One"}, {"text": "Twoé\n"}]},
        {"role": "model", "parts": [{"text": "No."}]},
        {"role": "user", "parts": [{"text": " "}]},
    ]);
    assert_eq!(body["contents"], expected);
    let system = json!({"parts": [{"text": "Be brief."}, {"text": "And kind."}, {"text": "Later."}]});
    assert_eq!(body["systemInstruction"], system);
}

#[test]
fn the_systems_message_alone_is_the_users() {
    let body = sent(json!({"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}]}));
    assert_eq!(body["contents"], json!([{"role": "user", "parts": [{"text": "b"}]}]));
    assert_eq!(body["systemInstruction"], json!({"parts": [{"text": "a"}]}));
    let one = sent(json!({"messages": [{"role": "developer", "content": "a"}]}));
    assert_eq!(one["contents"], json!([{"role": "user", "parts": [{"text": "a"}]}]));
    assert!(one.get("systemInstruction").is_none());
    let none = sent(json!({"messages": [{"role": "system", "content": ""}]}));
    assert_eq!(none["contents"], json!([{"role": "user", "parts": [{"text": " "}]}]));
}

#[test]
fn parts_that_are_not_text_go_by_their_bytes_or_their_address() {
    let contents = contents(json!([{"role": "user", "content": [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/JPG;base64,iVBO/+=", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a/b.PNG?x=1.gif"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/no-name"}},
        {"type": "input_audio", "input_audio": {"data": "UklG", "format": "mp3"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBE", "filename": "a.pdf"}},
    ]}]));
    let expected = json!([
        {"text": "What?"},
        {"inlineData": {"mimeType": "image/jpeg", "data": "iVBO/+="}},
        {"fileData": {"mimeType": "image/png", "fileUri": "https://example.com/a/b.PNG?x=1.gif"}},
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://example.com/no-name"}},
        {"inlineData": {"mimeType": "audio/mp3", "data": "UklG"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}},
    ]);
    assert_eq!(contents[0]["parts"], expected);
}

#[test]
fn escapes_and_digits_stay_as_sent() {
    let body = br#"{"model":"m","temperature":1.50e-1,"messages":[{"role":"user","content":"\u00e9\/"},
        {"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image\/png;base64,A\/\u002f="}}]},
        {"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f",
          "arguments":"{\"x\": 12345678901234567890123, \"y\": \"\\u00e9\"}"}}]},
        {"role":"tool","tool_call_id":"1","content":"{\"z\":1.0}"}]}"#;
    let parsed = ChatRequest::parse(Bytes::from_static(body)).unwrap();
    let outgoing = request(&parsed, "m", &ModelRules::default(), 9, &scope()).unwrap();
    let text = String::from_utf8(outgoing.body.to_vec()).unwrap();
    for expected in [
        r#"{"text":"\u00e9\/"}"#,
        r#""data":"A//=""#,
        r#""args":{"x": 12345678901234567890123, "y": "\u00e9"}"#,
        r#""response":{"z":1.0}"#,
        r#""temperature":1.50e-1"#,
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}

pub(super) fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn results_go_by_name_in_the_order_of_the_calls() {
    let contents = contents(json!([
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "Yes.", "tool_calls": [
            call("call_b", "two", "{\"a\":1}"), call("call_a", "one", ""), call("call_tg_x_0", "three", " {} "), call("call_c", "one", "{}")]},
        {"role": "tool", "tool_call_id": "call_a", "content": "plain \"text\""},
        {"role": "tool", "tool_call_id": "call_b", "content": " {\"temperature\": 21.50} "},
        {"role": "tool", "tool_call_id": "call_tg_x_0", "content": [{"type": "text", "text": "[1,"}, {"type": "text", "text": "2]"}]},
        {"role": "user", "content": "And?"},
    ]));
    let expected = json!([
        {"role": "user", "parts": [{"text": "Go"}]},
        {"role": "model", "parts": [
            {"text": "Yes."},
            {"functionCall": {"id": "call_b", "name": "two", "args": {"a": 1}}, "thoughtSignature": "skip_thought_signature_validator"},
            {"functionCall": {"id": "call_a", "name": "one", "args": {}}},
            {"functionCall": {"name": "three", "args": {}}},
            {"functionCall": {"id": "call_c", "name": "one", "args": {}}},
        ]},
        {"role": "user", "parts": [
            {"functionResponse": {"id": "call_b", "name": "two", "response": {"temperature": 21.50}}},
            {"functionResponse": {"id": "call_a", "name": "one", "response": {"result": "plain \"text\""}}},
            {"functionResponse": {"name": "three", "response": {"result": "[1,2]"}}},
            {"functionResponse": {"id": "call_c", "name": "one", "response": {"error": "There is no result of this call."}}},
        ]},
        {"role": "user", "parts": [{"text": "And?"}]},
    ]);
    assert_eq!(contents, expected);
}

#[test]
fn ids_may_repeat_from_turn_to_turn_and_within_one() {
    let contents = contents(json!([
        {"role": "user", "content": "Go"},
        {"role": "assistant", "tool_calls": [call("f:0", "f", "{}"), call("f:0", "g", "{}")]},
        {"role": "tool", "tool_call_id": "f:0", "content": "1"},
        {"role": "tool", "tool_call_id": "f:0", "content": "2"},
        {"role": "assistant", "tool_calls": [call("f:0", "h", "{}")]},
        {"role": "tool", "tool_call_id": "f:0", "content": "3"},
    ]));
    let response = |turn: usize, part: usize| contents[turn]["parts"][part]["functionResponse"].clone();
    assert_eq!(response(2, 0), json!({"id": "f:0", "name": "f", "response": {"result": "1"}}));
    assert_eq!(response(2, 1), json!({"id": "f:0", "name": "g", "response": {"result": "2"}}));
    assert_eq!(response(4, 0), json!({"id": "f:0", "name": "h", "response": {"result": "3"}}));
}

#[test]
fn signatures_come_back_from_the_client_or_from_memory() {
    let scope = scope();
    scope.remember(b"call_2", b"remembered+/=");
    scope.remember(b"call_1", b"not this one");
    let signed = |mut call: Value, signature: &str| {
        call["extra_content"] = json!({"google": {"thought_signature": signature}});
        call
    };
    let body = whole(json!({"messages": [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
         "extra_content": {"google": {"thought_signature": "words"}},
         "tool_calls": [signed(call("call_1", "f", "{}"), "AB+/=="), call("call_2", "f", "{}"), call("call_3", "f", "{}")]},
        {"role": "assistant", "content": "", "extra_content": {"google": {"thought_signature": "silence"}}},
    ]}));
    let sent = |scope: &SignatureScope| -> Value {
        let outgoing = translate_with(&body, &ModelRules::default(), scope).unwrap();
        serde_json::from_slice::<Value>(&outgoing.body).unwrap()["contents"].take()
    };
    let signatures = |contents: &Value, turn: usize| -> Vec<Value> {
        contents[turn]["parts"].as_array().unwrap().iter().map(|part| part["thoughtSignature"].clone()).collect()
    };
    let contents = sent(&scope);
    let expected = json!([null, "words", "AB+/==", "remembered+/=", null]);
    assert_eq!(Value::Array(signatures(&contents, 1)), expected);
    assert_eq!(contents[3]["parts"], json!([{"text": "", "thoughtSignature": "silence"}]));
    // Another account knows nothing of it.
    let other = Arc::new(SignatureMemory::default()).scope("other");
    assert_eq!(signatures(&sent(&other), 1)[3], Value::Null);
}

#[test]
fn tools_are_declared_and_chosen() {
    let tools = json!([
        {"type": "function", "function": {"name": "a", "description": "", "parameters": {"type": "object", "properties": {}}}},
        {"type": "function", "function": {"name": "b", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x", "y"]}}},
    ]);
    let b = json!({"name": "b", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}});
    let body = sent(json!({"tools": tools}));
    assert_eq!(body["tools"], json!([{"functionDeclarations": [{"name": "a"}, b]}]));
    assert!(body.get("toolConfig").is_none());
    for (choice, config) in [
        (json!("auto"), json!({"mode": "AUTO"})),
        (json!("required"), json!({"mode": "ANY"})),
        (json!("none"), json!({"mode": "NONE"})),
        (json!({"type": "function", "function": {"name": "b"}}), json!({"mode": "ANY", "allowedFunctionNames": ["b"]})),
        (
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "a"}}]}}),
            json!({"mode": "ANY", "allowedFunctionNames": ["a"]}),
        ),
    ] {
        let body = sent(json!({"tools": tools, "tool_choice": choice}));
        assert_eq!(body["toolConfig"]["functionCallingConfig"], config, "{choice}");
    }
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "b"}}]}});
    let body = sent(json!({"tools": tools, "tool_choice": allowed}));
    assert_eq!(body["tools"], json!([{"functionDeclarations": [b]}]));
}

#[test]
fn generation_is_configured() {
    let config = |members: Value| sent(members)["generationConfig"].take();
    assert_eq!(config(json!({})), json!({"maxOutputTokens": OUTPUT_TOKENS_MAX}));
    assert_eq!(config(json!({"max_tokens": 5, "max_completion_tokens": 7})), json!({"maxOutputTokens": 7}));
    assert_eq!(config(json!({"max_tokens": 1_000_000})), json!({"maxOutputTokens": OUTPUT_TOKENS_MAX}));
    let all = config(json!({"temperature": 2, "top_p": 0.5, "top_k": 40, "n": 2, "seed": -7, "presence_penalty": 0.0,
        "frequency_penalty": -0.5, "stop": ["a", "", "b\n"], "logprobs": true, "top_logprobs": 3}));
    let expected = json!({"maxOutputTokens": OUTPUT_TOKENS_MAX, "candidateCount": 2, "temperature": 2, "topP": 0.5,
        "topK": 40, "frequencyPenalty": -0.5, "seed": -7, "stopSequences": ["a", "b\n"], "responseLogprobs": true, "logprobs": 3});
    assert_eq!(all, expected);
    assert_eq!(config(json!({"stop": "x"}))["stopSequences"], json!(["x"]));
    let folded = config(json!({"seed": u64::MAX}))["seed"].as_i64().unwrap();
    assert!((0..=i64::from(i32::MAX)).contains(&folded));
    assert_eq!(config(json!({"seed": u64::MAX}))["seed"], folded);
}

#[test]
fn a_models_rules_decide_on_sampling_and_thinking() {
    let sampling = |sampling| ModelRules { sampling, ..ModelRules::default() };
    let members = json!({"temperature": 1, "top_p": 0.9});
    let (body, dropped) = sent_by(&sampling(Sampling::OneOf), members.clone());
    assert_eq!((&body["generationConfig"]["temperature"], dropped), (&json!(1), vec!["top_p".to_owned()]));
    assert_eq!(sent_by(&sampling(Sampling::None), members).1, ["temperature", "top_p"]);

    let budget = |min| Thinking::Budget { min, max: 32_768 };
    for (thinking, effort, expected) in [
        (budget(0), "none", json!({"thinkingBudget": 0})),
        (budget(128), "none", json!({"thinkingBudget": 128, "includeThoughts": true})),
        (budget(0), "low", json!({"thinkingBudget": 1024, "includeThoughts": true})),
        (budget(0), "medium", json!({"thinkingBudget": 8192, "includeThoughts": true})),
        (budget(0), "high", json!({"thinkingBudget": 24576, "includeThoughts": true})),
        (budget(0), "xhigh", json!({"thinkingBudget": 32768, "includeThoughts": true})),
        (Thinking::Level, "minimal", json!({"thinkingLevel": "minimal", "includeThoughts": true})),
        (Thinking::Level, "xhigh", json!({"thinkingLevel": "high", "includeThoughts": true})),
    ] {
        let rules = ModelRules { thinking, ..ModelRules::default() };
        let (body, dropped) = sent_by(&rules, json!({"reasoning_effort": effort}));
        assert_eq!((&body["generationConfig"]["thinkingConfig"], dropped.len()), (&expected, 0), "{effort}");
    }
    assert_eq!(sent_by(&ModelRules::default(), json!({"reasoning_effort": "low"})).1, ["reasoning_effort"]);
    let google = json!({"extra_body": {"google": {"thinking_config": {"thinking_budget": 5}, "cached_content": "cachedContents/a"}}});
    let (body, dropped) = sent_by(&ModelRules::default(), google);
    assert_eq!(body["generationConfig"]["thinkingConfig"], json!({"thinking_budget": 5}));
    assert_eq!((&body["cachedContent"], dropped.len()), (&json!("cachedContents/a"), 0));
}

#[test]
fn the_answers_form_is_asked_for() {
    let schema = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}, "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
    let config = sent(json!({"response_format": format}))["generationConfig"].take();
    assert_eq!(config["responseMimeType"], "application/json");
    assert_eq!(config["responseJsonSchema"], schema);
    let object = sent(json!({"response_format": {"type": "json_object"}}))["generationConfig"].take();
    assert_eq!(
        (object["responseMimeType"].as_str(), object.get("responseJsonSchema")),
        (Some("application/json"), None)
    );
    assert_eq!(sent(json!({"response_format": {"type": "text"}})), sent(json!({})));

    let tools = function(json!({"type": "object", "properties": {"x": {"type": "string"}}}));
    let both = json!({"response_format": format, "tools": tools});
    assert_eq!(refused(both.clone()), (Cause::InvalidValue, "response_format".into()));
    let rules = ModelRules { schema_with_tools: true, ..ModelRules::default() };
    let (body, _) = sent_by(&rules, both.clone());
    assert!(body["tools"].is_array() && body["generationConfig"]["responseJsonSchema"].is_object());
    let mut none = both;
    none["tool_choice"] = json!("none");
    assert!(sent(none).get("tools").is_none());
    let rules = ModelRules { schema: SchemaForm::None, ..ModelRules::default() };
    assert!(translate_with(&whole(json!({"response_format": format})), &rules, &scope()).is_err());
}

#[test]
fn what_has_no_place_is_named() {
    let (_, dropped) = sent_by(
        &ModelRules::default(),
        json!({"user": "u", "metadata": {}, "logit_bias": {"1": 2}, "store": true, "prediction": {}, "service_tier": "auto",
            "parallel_tool_calls": false, "x_unknown": 1, "safety_identifier": null, "modalities": ["text"], "functions": null}),
    );
    let mut dropped = dropped;
    dropped.sort();
    let expected =
        ["logit_bias", "metadata", "parallel_tool_calls", "prediction", "service_tier", "store", "user", "x_unknown"];
    assert_eq!(dropped, expected);
    assert_eq!(sent_by(&ModelRules::default(), json!({"parallel_tool_calls": true})).1.len(), 0);
}

#[test]
fn each_mistake_names_its_place() {
    let user = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let turn = |message: Value| json!({"messages": [{"role": "user", "content": "a"}, message]});
    for (members, param) in [
        (turn(json!({"role": "bot", "content": "a"})), "messages[1].role"),
        (turn(json!({"role": "function", "name": "f", "content": "a"})), "messages[1].role"),
        (turn(json!({"role": "user"})), "messages[1].content"),
        (turn(json!({"role": "user", "content": 1})), "messages[1].content"),
        (turn(json!({"role": "assistant", "function_call": {"name": "f"}})), "messages[1].function_call"),
        (turn(json!({"role": "assistant", "audio": {"id": "a"}})), "messages[1].audio"),
        (
            turn(json!({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]})),
            "messages[1].content[0].image_url.url",
        ),
        (turn(json!({"role": "assistant", "tool_calls": [{"type": "function"}]})), "messages[1].tool_calls[0].id"),
        (
            turn(json!({"role": "assistant", "tool_calls": [{"id": "a", "type": "custom"}]})),
            "messages[1].tool_calls[0].type",
        ),
        (
            turn(json!({"role": "assistant", "tool_calls": [call("a", "f", "[1]")]})),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            turn(json!({"role": "assistant", "tool_calls": [call("a", "f", "{\"a\":")]})),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (turn(json!({"role": "tool", "tool_call_id": "a", "content": "b"})), "messages[1].tool_call_id"),
        (turn(json!({"role": "tool", "content": "b"})), "messages[1].tool_call_id"),
        (user(json!({"type": "video", "video": {}})), "messages[0].content[0].type"),
        (user(json!({"text": "a"})), "messages[0].content[0].type"),
        (user(json!({"type": "text"})), "messages[0].content[0].text"),
        (user(json!({"type": "image_url"})), "messages[0].content[0].image_url"),
        (user(json!({"type": "image_url", "image_url": {"url": "ftp://a"}})), "messages[0].content[0].image_url.url"),
        (
            user(json!({"type": "image_url", "image_url": {"url": "data:image/png,raw"}})),
            "messages[0].content[0].image_url.url",
        ),
        (
            user(json!({"type": "input_audio", "input_audio": {"data": "A", "format": "x"}})),
            "messages[0].content[0].input_audio.format",
        ),
        (user(json!({"type": "file", "file": {"file_id": "file-1"}})), "messages[0].content[0].file.file_id"),
        (json!({"tools": 1}), "tools"),
        (json!({"tools": [{"type": "custom"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": function(json!([]))}), "tools[0].function.parameters"),
        (json!({"tools": function(json!({"type": "string"}))}), "tools[0].function.parameters"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": function(json!({})), "tool_choice": "any"}), "tool_choice"),
        (
            json!({"tools": function(json!({})), "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice",
        ),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"stop": ["1", "2", "3", "4", "5", "6"]}), "stop"),
        (json!({"stop": 1}), "stop"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (json!({"reasoning_effort": "very"}), "reasoning_effort"),
        (json!({"reasoning_effort": "low", "extra_body": {"google": {"thinking_config": {}}}}), "reasoning_effort"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
            "response_format.json_schema.schema",
        ),
        (json!({"functions": []}), "functions"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls"),
        (json!({"n": 1000}), "n"),
    ] {
        assert_eq!(refused(members.clone()).1, param, "{members}");
    }
    let many: serde_json::Map<_, _> = (0..100).map(|n| (format!("x{n}"), json!(1))).collect();
    assert!(refused(Value::Object(many)).1.starts_with('x'));
}
