//! What holds of every request: nothing of it is lost in silence, and nothing makes the translation panic.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{call, function, scope, translate_with, whole};
use super::*;
use crate::relay::route::{Sampling, Thinking};

/// The fields of OpenAI's requests, each with values that are good.
fn fields() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let tools = function(json!({"type": "object", "properties": {"x": {"type": "string"}}}));
    let all = vec![
        ("audio", json!({"voice": "a", "format": "wav"})),
        ("frequency_penalty", json!(0.5)),
        ("logit_bias", json!({"1": 1})),
        ("logprobs", json!(true)),
        ("max_completion_tokens", json!(10)),
        ("max_tokens", json!(10)),
        ("metadata", json!({"a": "b"})),
        ("modalities", json!(["text"])),
        ("n", json!(2)),
        ("parallel_tool_calls", json!(false)),
        ("prediction", json!({"type": "content", "content": "a"})),
        ("presence_penalty", json!(0.5)),
        ("prompt_cache_key", json!("a")),
        ("reasoning_effort", json!("low")),
        ("response_format", json!({"type": "json_object"})),
        ("safety_identifier", json!("a")),
        ("seed", json!(1)),
        ("service_tier", json!("auto")),
        ("stop", json!("a")),
        ("store", json!(false)),
        ("stream", json!(true)),
        ("temperature", json!(0.5)),
        ("tools", tools),
        ("top_p", json!(0.5)),
        ("user", json!("a")),
        ("verbosity", json!("low")),
        ("web_search_options", json!({})),
        ("x_vendor", json!(null)),
        ("y_vendor", json!(1)),
    ];
    prop::sample::subsequence(all.clone(), 0..=all.len())
}

/// What each field that is consumed becomes.
const CONSUMED: [(&str, &str); 13] = [
    ("frequency_penalty", "/generationConfig/frequencyPenalty"),
    ("logprobs", "/generationConfig/responseLogprobs"),
    ("max_completion_tokens", "/generationConfig/maxOutputTokens"),
    ("max_tokens", "/generationConfig/maxOutputTokens"),
    ("n", "/generationConfig/candidateCount"),
    ("presence_penalty", "/generationConfig/presencePenalty"),
    ("reasoning_effort", "/generationConfig/thinkingConfig"),
    ("response_format", "/generationConfig/responseMimeType"),
    ("seed", "/generationConfig/seed"),
    ("stop", "/generationConfig/stopSequences"),
    ("temperature", "/generationConfig/temperature"),
    ("tools", "/tools"),
    ("top_p", "/generationConfig/topP"),
];

proptest! {
    #[test]
    fn every_field_is_consumed_or_named_or_refused(
        members in fields().prop_shuffle(),
        level: bool,
        sampling in prop::sample::select(vec![Sampling::Free, Sampling::OneOf, Sampling::None]),
        schema_with_tools: bool,
    ) {
        let thinking = if level { Thinking::Level } else { Thinking::None };
        let rules = ModelRules { thinking, sampling, schema_with_tools, ..ModelRules::default() };
        let body = whole(Value::Object(members.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()));
        match translate_with(&body, &rules, &scope()) {
            Err(refusal) => prop_assert_eq!(refusal.param.as_deref(), Some("response_format"), "{}", refusal.message),
            Ok(outgoing) => {
                let sent: Value = serde_json::from_slice(&outgoing.body).unwrap();
                for (key, value) in &members {
                    let dropped = outgoing.dropped.iter().filter(|name| &***name == *key).count();
                    let consumed = CONSUMED.iter().find(|(name, _)| name == key);
                    let consumed = match consumed {
                        Some((_, pointer)) => sent.pointer(pointer).is_some(),
                        // Said by the path, or nothing to be said.
                        None => matches!(*key, "stream" | "modalities") || value.is_null(),
                    };
                    prop_assert_eq!(dropped, usize::from(!consumed), "{}", key);
                }
                prop_assert!(outgoing.dropped.iter().all(|name| members.iter().any(|(key, _)| **name == **key)));
            }
        }
    }

    #[test]
    fn anything_like_a_request_becomes_json_or_is_refused(
        text in r#"(\{"role":"(user|assistant|tool|system)"(,"content":("a\\n"|null|\[\{"type":"text","text":"\\ud83d"\}\]|[0-9]))?(,"tool_calls":\[\{"id":"a","function":\{"name":"f","arguments":"(|\{\}|\{\\"a\\":1\}|x)"\}\}\])?(,"tool_call_id":"a")?\},){1,6}"#,
        extra in r#"(,"(tools|tool_choice|response_format|stop|seed|extra_body|top_p)":(null|"a"|1|\[\]|\{\}|\[\{"type":"function","function":\{"name":"f","parameters":\{"\$ref":"\#"\}\}\}\])){0,3}"#,
    ) {
        let body = format!(r#"{{"model":"m","messages":[{}]{extra}}}"#, text.trim_end_matches(','));
        let Ok(parsed) = ChatRequest::parse(body.clone().into()) else { return Ok(()) };
        match request(&parsed, "m", &ModelRules::default(), 100, &scope()) {
            Ok(outgoing) => {
                let sent = serde_json::from_slice::<Box<serde_json::value::RawValue>>(&outgoing.body);
                prop_assert!(sent.is_ok(), "{}", String::from_utf8_lossy(&outgoing.body));
            }
            Err(refusal) => prop_assert_eq!(refusal.cause.status(), 400),
        }
    }

    #[test]
    fn a_request_changed_anywhere_does_not_panic(at in 0usize..2000, byte: u8) {
        let body = whole(json!({
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
                {"role": "assistant", "content": null, "tool_calls": [call("a", "f", "{\"a\":1}")]},
                {"role": "tool", "tool_call_id": "a", "content": "{}"}],
            "tools": function(json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"anyOf": [{"enum": [1]}, {"type": "null"}]}}})),
            "tool_choice": "auto", "stop": ["a"], "seed": 1}));
        let mut body = body.to_string().into_bytes();
        let at = at % body.len();
        body[at] = byte;
        if let Ok(parsed) = ChatRequest::parse(body.into())
            && let Ok(outgoing) = request(&parsed, "m", &ModelRules::default(), 100, &scope())
        {
            prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&outgoing.body).is_ok());
        }
    }
}
