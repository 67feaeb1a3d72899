//! What holds of every request: nothing is lost in silence, and what is sent is what Anthropic takes.

use std::collections::HashSet;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{translate_by, with};
use super::*;
use crate::relay::route::{Sampling, SchemaForm, Thinking};

fn rules() -> impl Strategy<Value = ModelRules> {
    let thinking = prop::sample::select(vec![
        Thinking::None,
        Thinking::Budget { min: 1024, max: 32_000 },
        Thinking::Adaptive { xhigh: true },
        Thinking::Level,
    ]);
    let sampling = prop::sample::select(vec![Sampling::Free, Sampling::OneOf, Sampling::None]);
    let schema = prop::sample::select(vec![SchemaForm::Native, SchemaForm::ForcedTool, SchemaForm::None]);
    (thinking, sampling, schema, any::<[bool; 3]>()).prop_map(|(thinking, sampling, schema, [prefill, show, turns])| {
        ModelRules {
            thinking,
            sampling,
            schema,
            prefill,
            show_thinking: show,
            system_turns: turns,
            schema_with_tools: false,
        }
    })
}

/// Fields with values that ask for something, so that they are seen in what is sent, or dropped, or refused.
fn telling() -> Vec<(&'static str, Value)> {
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let schema = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}});
    let known = [
        ("max_tokens", json!(77)),
        ("max_completion_tokens", json!(78)),
        ("n", json!(2)),
        ("stream", json!(true)),
        ("temperature", json!(0.5)),
        ("top_p", json!(0.96)),
        ("top_k", json!(5)),
        ("stop", json!("x")),
        ("tools", tool),
        ("tool_choice", json!("required")),
        ("response_format", schema),
        ("reasoning_effort", json!("high")),
        ("user", json!("u")),
        ("safety_identifier", json!("s")),
        ("service_tier", json!("default")),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!("auto")),
        ("modalities", json!(["text", "audio"])),
    ];
    let placeless = [
        "audio",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "metadata",
        "moderation",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "seed",
        "store",
        "top_logprobs",
        "verbosity",
        "web_search_options",
        "thinking",
        "système",
        "x\"y",
    ];
    known.into_iter().chain(placeless.map(|name| (name, json!({"any": 1})))).collect()
}

/// What is sent without a field; where the field stands for another or needs one, that is there both times.
fn base_of(name: &str) -> Value {
    match name {
        "tool_choice" => with(json!({"tools": [{"type": "function", "function": {"name": "f"}}]})),
        _ => with(json!({})),
    }
}

proptest! {
    #[test]
    fn every_field_is_used_or_named_or_refused(rules in rules()) {
        for (name, value) in telling() {
            let base = base_of(name);
            let mut body = base.clone();
            body[name] = value;
            match translate_by(&body, &rules) {
                Err(refusal) => {
                    let param = refusal.param.unwrap_or_default();
                    prop_assert!(param.starts_with(name), "{} refused for {}", name, param);
                }
                Ok((sent, dropped)) => {
                    let (without, _) = translate_by(&base, &rules).unwrap();
                    prop_assert!(dropped.iter().all(|dropped| dropped == name));
                    prop_assert!(sent != without || dropped == [name], "{} is lost: {}", name, sent);
                }
            }
            // And null is as if it were not there.
            body[name] = Value::Null;
            let (sent, dropped) = translate_by(&body, &rules).unwrap();
            prop_assert_eq!((sent, dropped), translate_by(&base, &rules).unwrap());
        }
    }

    #[test]
    fn many_fields_at_once_are_each_accounted_for(rules in rules(), chosen in prop::collection::vec(any::<bool>(), 40)) {
        let mut body = with(json!({}));
        let names: Vec<_> = telling().into_iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(field, _)| field).collect();
        for (name, value) in &names {
            body[*name] = value.clone();
        }
        match translate_by(&body, &rules) {
            Err(refusal) => prop_assert!(refusal.param.is_some()),
            Ok((_, dropped)) => {
                // Whatever has no place is named, whatever else was asked for.
                for (name, value) in &names {
                    let named = dropped.iter().any(|dropped| dropped == name);
                    prop_assert!(named || *value != json!({"any": 1}), "{} is lost", name);
                }
            }
        }
    }

    #[test]
    fn any_conversation_is_one_that_anthropic_takes(messages in prop::collection::vec(message(), 1..9), rules in rules()) {
        let body = json!({"model": "m", "messages": messages, "reasoning_effort": "low"});
        match translate_by(&body, &rules) {
            Err(refusal) => prop_assert!(refusal.param.is_some_and(|param| param.starts_with("messages"))),
            Ok((sent, _)) => check_conversation(&sent, &rules),
        }
    }

    #[test]
    fn anything_that_is_a_request_is_translated_or_refused(fields in prop::collection::vec((name(), value()), 0..6), rules in rules()) {
        let mut body = with(json!({}));
        for (name, value) in fields {
            body[name] = value;
        }
        let Ok(chat) = ChatRequest::parse(Bytes::from(body.to_string())) else { return Ok(()) };
        match request(&chat, "m", &rules, 100) {
            Ok(outgoing) => prop_assert!(serde_json::from_slice::<Value>(&outgoing.body).is_ok()),
            Err(refusal) => prop_assert!(refusal.cause.status() == 400 && refusal.param.is_some()),
        }
    }
}

/// Messages of all kinds, good and bad.
fn message() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec!["", " \n", "a", "é\"\\", "b "]);
    let part = (text.clone(), any::<bool>()).prop_map(|(text, image)| {
        let image_url = json!({"type": "image_url", "image_url": {"url": "https://a/b"}});
        if image { image_url } else { json!({"type": "text", "text": text}) }
    });
    let id = prop::sample::select(vec!["a", "a:0", "b"]);
    let arguments = prop::sample::select(vec!["", "{}", "{\"a\":[1]}", "[", "1"]);
    let call = (id.clone(), arguments).prop_map(
        |(id, arguments)| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}),
    );
    let thinking =
        prop::sample::select(vec![json!(null), json!([{"type": "thinking", "thinking": "t", "signature": "s"}])]);
    let assistant = (text.clone(), prop::collection::vec(call, 0..3), thinking).prop_map(|(text, calls, thinking)| {
        json!({"role": "assistant", "content": text, "tool_calls": calls, "thinking_blocks": thinking})
    });
    let user = prop::collection::vec(part, 0..3).prop_map(|parts| json!({"role": "user", "content": parts}));
    let others = (prop::sample::select(vec!["user", "system", "developer"]), text.clone());
    prop_oneof![
        3 => assistant,
        3 => (id, text).prop_map(|(id, text)| json!({"role": "tool", "tool_call_id": id, "content": text})),
        2 => user,
        2 => others.prop_map(|(role, text)| json!({"role": role, "content": text})),
    ]
}

/// Anthropic's rules for a conversation (WIRE §2), each of which it answers with 400.
fn check_conversation(sent: &Value, rules: &ModelRules) {
    let messages = sent["messages"].as_array().unwrap();
    assert_eq!(messages[0]["role"], "user", "{sent}");
    let mut ids = HashSet::new();
    let mut calls: Vec<&Value> = Vec::new();
    let mut role_before = &Value::Null;
    for message in messages {
        let role = &message["role"];
        assert!(role != role_before && (role != "system" || rules.system_turns), "{sent}");
        role_before = role;
        let blocks = message["content"].as_array().unwrap();
        assert!(!blocks.is_empty(), "{sent}");
        let results: Vec<&Value> = blocks
            .iter()
            .take_while(|block| block["type"] == "tool_result")
            .map(|block| &block["tool_use_id"])
            .collect();
        assert!(blocks[results.len()..].iter().all(|block| block["type"] != "tool_result"), "{sent}");
        // Each call has one result, in the next message.
        assert_eq!(results.iter().collect::<HashSet<_>>(), calls.iter().collect::<HashSet<_>>(), "{sent}");
        assert_eq!(results.len(), calls.len());
        calls = blocks.iter().filter(|block| block["type"] == "tool_use").map(|block| &block["id"]).collect();
        for block in blocks {
            let text = block["text"].as_str();
            assert!(text.is_none_or(|text| !text.trim().is_empty()), "{sent}");
        }
        for id in &calls {
            let id = id.as_str().unwrap();
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) && ids.insert(id));
        }
    }
    assert!(calls.is_empty(), "a call at the end has no result: {sent}");
    assert_eq!(sent.get("tools").is_some(), !ids.is_empty());
    if sent["thinking"]["type"] == "enabled" || sent["thinking"]["type"] == "adaptive" {
        let last = messages.iter().rfind(|message| message["role"] == "assistant");
        let has_calls =
            |message: &&Value| message["content"].as_array().unwrap().iter().any(|block| block["type"] == "tool_use");
        if let Some(last) = last.filter(has_calls) {
            assert_eq!(last["content"][0]["type"], "thinking", "{sent}");
        }
        assert!(sent["max_tokens"].as_u64() > sent["thinking"]["budget_tokens"].as_u64());
    }
}

fn name() -> impl Strategy<Value = &'static str> {
    let names: Vec<&str> = telling().into_iter().map(|(name, _)| name).chain(["messages", "stream_options"]).collect();
    prop::sample::select(names)
}

/// JSON made of the words that matter here.
fn value() -> impl Strategy<Value = Value> {
    let words = vec![
        "function",
        "auto",
        "none",
        "required",
        "json_schema",
        "text",
        "image_url",
        "file",
        "data:image/png;base64,AAAA",
        "user",
        "assistant",
        "tool",
        "",
        "{}",
        "thinking",
    ];
    let keys = vec![
        "type",
        "function",
        "name",
        "parameters",
        "allowed_tools",
        "mode",
        "tools",
        "json_schema",
        "schema",
        "role",
        "content",
        "text",
        "tool_calls",
        "tool_call_id",
        "id",
        "arguments",
        "image_url",
        "url",
        "file",
        "file_data",
        "thinking_blocks",
        "signature",
        "cache_control",
        "properties",
        "strict",
    ];
    let leaf = prop_oneof![
        4 => prop::sample::select(words).prop_map(|word| json!(word)),
        1 => any::<bool>().prop_map(|value| json!(value)),
        1 => (-2i64..3).prop_map(|value| json!(value)),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        let members = prop::collection::vec((prop::sample::select(keys.clone()), inner.clone()), 0..5);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            members.prop_map(|members| Value::Object(
                members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
        ]
    })
}
