//! The requests that Anthropic really took: each is put into OpenAI's form by hand, translated, and must come out as it was.

use serde_json::{Value, json};

use super::recordings::{cases, json};
use super::request::translate;
use crate::relay::dialect::openai::ChatRequest;
use crate::relay::meter::ImageTokens;

/// A recorded request in OpenAI's form; `None` if it cannot be said there.
fn to_openai(request: &Value) -> Option<Value> {
    let mut messages = Vec::new();
    if let Some(system) = request.get("system") {
        messages.push(json!({"role": "system", "content": system}));
    }
    for message in request["messages"].as_array()? {
        match (message["role"].as_str()?, &message["content"]) {
            (role, Value::String(text)) => messages.push(json!({"role": role, "content": text})),
            ("assistant", blocks) => messages.push(assistant(blocks.as_array()?)?),
            (_, blocks) => messages.extend(user(blocks.as_array()?)?),
        }
    }
    let mut body = json!({"model": "m", "messages": messages});
    if let Some(tools) = request["tools"].as_array() {
        let tools: Option<Vec<Value>> = tools.iter().map(tool).collect();
        body["tools"] = tools?.into();
    }
    body["tool_choice"] = match request["tool_choice"]["type"].as_str() {
        Some("any") => json!("required"),
        Some("tool") => json!({"type": "function", "function": {"name": request["tool_choice"]["name"]}}),
        _ => Value::Null,
    };
    if let Some(schema) = request["output_config"]["format"].get("schema") {
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    }
    for key in ["max_tokens", "stream", "temperature"] {
        body[key] = request[key].clone();
    }
    Some(body)
}

fn tool(tool: &Value) -> Option<Value> {
    let mut function = json!({"name": tool["name"], "parameters": tool.get("input_schema")?});
    for key in ["description", "strict"] {
        function[key] = tool[key].clone();
    }
    Some(json!({"type": "function", "function": function}))
}

fn assistant(blocks: &[Value]) -> Option<Value> {
    let of = |kinds: &[&str]| -> Vec<&Value> {
        blocks.iter().filter(|block| kinds.contains(&block["type"].as_str().unwrap_or_default())).collect()
    };
    let (text, thinking, calls) = (of(&["text"]), of(&["thinking", "redacted_thinking"]), of(&["tool_use"]));
    let calls: Vec<Value> = calls
        .into_iter()
        .map(|call| {
            let function = json!({"name": call["name"], "arguments": call["input"].to_string()});
            json!({"id": call["id"], "type": "function", "function": function})
        })
        .collect();
    (text.len() + thinking.len() + calls.len() == blocks.len())
        .then(|| json!({"role": "assistant", "content": text, "thinking_blocks": thinking, "tool_calls": calls}))
}

/// The results among the blocks as messages of their own, and one with the others.
fn user(blocks: &[Value]) -> Option<Vec<Value>> {
    let (mut messages, mut parts) = (Vec::new(), Vec::new());
    for block in blocks {
        let source = &block["source"];
        let uri = || Some(format!("data:{};base64,{}", source["media_type"].as_str()?, source["data"].as_str()?));
        match (block["type"].as_str()?, source["type"].as_str()) {
            ("text", _) => parts.push(block.clone()),
            ("image", Some("base64")) => parts.push(json!({"type": "image_url", "image_url": {"url": uri()?}})),
            ("document", Some("base64")) => parts.push(json!({"type": "file", "file": {"file_data": uri()?}})),
            ("tool_result", _) => {
                messages
                    .push(json!({"role": "tool", "tool_call_id": block["tool_use_id"], "content": block["content"]}));
            }
            _ => return None,
        }
    }
    if !parts.is_empty() {
        messages.push(json!({"role": "user", "content": parts}));
    }
    Some(messages)
}

/// What says nothing, as this relay does not say it: a string for a list of one text, a default that is written out.
fn plain(request: &Value) -> Value {
    let mut request = request.clone();
    for message in request["messages"].as_array_mut().into_iter().flatten() {
        if let Value::String(text) = &message["content"] {
            message["content"] = json!([{"type": "text", "text": text}]);
        }
    }
    if let Some(choice) = request["tool_choice"].as_object_mut() {
        choice.retain(|key, value| key != "disable_parallel_tool_use" || *value == true);
    }
    if request["tool_choice"] == json!({"type": "auto"}) || request["tools"] == json!([]) {
        request["tool_choice"] = Value::Null;
    }
    if request["tools"] == json!([]) {
        request["tools"] = Value::Null;
    }
    request
}

#[test]
fn recorded_requests_come_out_as_they_were() {
    let mut compared = 0;
    for case in cases() {
        let recorded = json(&case, "request.json");
        let Some(body) = to_openai(&recorded) else { continue };
        let sent = translate(&body).unwrap();
        let recorded = plain(&recorded);
        for key in ["messages", "system", "tools", "tool_choice", "temperature"] {
            assert_eq!(sent[key], recorded[key], "{key} of {}", case.display());
        }
        // The tests' model has a limit of its own.
        assert_eq!(sent["max_tokens"].as_u64(), recorded["max_tokens"].as_u64().map(|most| most.min(64_000)));
        assert_eq!(sent["stream"] == true, recorded["stream"] == true, "{}", case.display());
        assert_eq!(sent["output_config"]["format"], recorded["output_config"]["format"], "{}", case.display());
        compared += 1;
    }
    assert!(cases().is_empty() || compared > 15, "only {compared} could be compared");
}

/// But for random letters, of which one recording's prompt is made: its maker's vocabulary makes more of them than others do.
#[test]
fn recorded_prompts_are_no_longer_than_their_ceilings() {
    for case in cases() {
        let Some(body) = to_openai(&json(&case, "request.json")) else { continue };
        let Some(counted) = json(&case, "expect.json")["usage"]["prompt_tokens"].as_u64() else { continue };
        let Ok(request) = ChatRequest::parse(body.to_string().into()) else { continue };
        let ceiling = request.ceiling().tokens(ImageTokens { full: 4_800, low: 4_800 }, 200_000);
        println!("{ceiling} for {counted}: {}", case.display());
        let is_random = case.ends_with("json_cache_read");
        assert!(
            ceiling >= counted || (is_random && ceiling * 4 >= counted * 3),
            "{}: {ceiling} for {counted}",
            case.display()
        );
    }
}
