//! What a client makes of an answer, with all that every answer promises checked on the way.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Response;

/// An answer as a client has it at the end.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Decoded {
    pub choices: Vec<Choice>,
    pub usage: Option<Value>,
    pub error: Option<Value>,
    /// `[DONE]` came.
    pub done: bool,
}

/// One of its choices.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Choice {
    pub index: u64,
    pub text: String,
    pub reasoning: String,
    pub refusal: String,
    pub calls: Vec<Call>,
    pub finish: Option<String>,
    /// The message with every field that it has, deltas added up as OpenAI's Python client does.
    pub message: Value,
}

/// A call of a tool.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

const FINISHES: [&str; 5] = ["stop", "length", "tool_calls", "content_filter", "function_call"];

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Decoded {
    /// The only choice of an answer.
    #[track_caller]
    pub fn only(&self) -> &Choice {
        assert_eq!(self.choices.len(), 1, "{self:?}");
        &self.choices[0]
    }

    /// Decodes an answer by its content type. Panics where it breaks a promise.
    #[track_caller]
    pub fn answer(response: &Response, asked_usage: bool) -> Self {
        let kind = response.header("content-type").unwrap_or_default();
        if kind.starts_with("text/event-stream") {
            Self::stream(&response.body, asked_usage)
        } else {
            Self::document(&response.body)
        }
    }

    /// Decodes a stream of events, one `data:` line each, as the relay writes them itself.
    #[track_caller]
    pub fn stream(body: &[u8], asked_usage: bool) -> Self {
        let text = std::str::from_utf8(body).expect("a stream that is not UTF-8");
        assert!(text.is_empty() || text.ends_with("\n\n"), "the last event is not closed: {text}");
        let mut decoded = Self::default();
        let mut choices = BTreeMap::new();
        let mut identity = None;
        for event in text.split_terminator("\n\n") {
            // A provider's comments, which keep a connection alive, stand between the events or before one's data.
            let is_said = |line: &&str| !line.starts_with(':');
            let lines: Vec<&str> = event.lines().filter(is_said).collect();
            let [line] = lines[..] else {
                assert!(lines.is_empty(), "several lines: {event:?}");
                continue;
            };
            let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("no event: {event:?}"));
            assert!(!decoded.done && decoded.error.is_none(), "something follows the end: {data}");
            if data == "[DONE]" {
                decoded.done = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
            if chunk.get("error").is_some() {
                decoded.error = Some(error_object(&chunk));
                continue;
            }
            let own = ["id", "created", "model", "object"].map(|name| chunk[name].clone());
            assert!(!text_is_empty(&own[0]) && own[1].is_u64() && own[2].is_string(), "{chunk}");
            assert_eq!(own[3], "chat.completion.chunk");
            assert_eq!(identity.get_or_insert_with(|| own.clone()), &own, "one id, one created, one model");
            decoded.chunk(&chunk, asked_usage, &mut choices);
        }
        decoded.choices = choices.into_values().collect();
        if decoded.done {
            assert!(decoded.choices.iter().all(|choice| choice.finish.is_some()), "[DONE] without a finish: {text}");
        }
        decoded
    }

    fn chunk(&mut self, chunk: &Value, asked_usage: bool, choices: &mut BTreeMap<u64, Choice>) {
        assert!(self.usage.is_none(), "something follows the usage: {chunk}");
        let sent = chunk["choices"].as_array().unwrap_or_else(|| panic!("no choices: {chunk}"));
        match chunk.get("usage") {
            Some(usage) if usage.is_object() => {
                assert!(sent.is_empty() && asked_usage, "{chunk}");
                self.usage = Some(usage.clone());
            }
            Some(usage) => assert!(usage.is_null() && !sent.is_empty() && asked_usage, "{chunk}"),
            None => assert!(!sent.is_empty() && !asked_usage, "usage is null until it comes: {chunk}"),
        }
        for choice in sent {
            take(choices, choice);
        }
    }

    /// Decodes a whole answer.
    #[track_caller]
    pub fn document(body: &[u8]) -> Self {
        let answer: Value = serde_json::from_slice(body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", String::from_utf8_lossy(body)));
        if answer.get("error").is_some() {
            return Self { error: Some(error_object(&answer)), ..Self::default() };
        }
        assert_eq!(answer["object"], "chat.completion", "{answer}");
        assert!(!text_is_empty(&answer["id"]) && answer["created"].is_u64() && answer["model"].is_string(), "{answer}");
        let choices = answer["choices"].as_array().unwrap_or_else(|| panic!("no choices: {answer}"));
        assert!(!choices.is_empty(), "{answer}");
        Self {
            choices: choices.iter().map(whole_choice).collect(),
            usage: answer.get("usage").filter(|usage| usage.is_object()).cloned(),
            error: None,
            done: true,
        }
    }
}

fn text_is_empty(value: &Value) -> bool {
    value.as_str().is_none_or(str::is_empty)
}

/// OpenAI's error object; all of its fields are there.
fn error_object(body: &Value) -> Value {
    let error = &body["error"];
    assert!(!text_is_empty(&error["message"]), "{body}");
    for name in ["type", "param", "code"] {
        assert!(error.get(name).is_some(), "no {name}: {body}");
    }
    error.clone()
}

fn whole_choice(choice: &Value) -> Choice {
    let message = &choice["message"];
    assert!(message["role"] == "assistant" && message.get("content").is_some(), "{choice}");
    let finish = text(&choice["finish_reason"]);
    assert!(FINISHES.contains(&finish.as_str()), "{choice}");
    let call = |call: &Value| {
        assert!(call["type"].is_string() && call["id"].is_string(), "{call}");
        let function = &call["function"];
        Call { id: text(&call["id"]), name: text(&function["name"]), arguments: text(&function["arguments"]) }
    };
    Choice {
        index: choice["index"].as_u64().expect("a choice without an index"),
        text: text(&message["content"]),
        reasoning: text(&message["reasoning_content"]),
        refusal: text(&message["refusal"]),
        calls: message["tool_calls"].as_array().into_iter().flatten().map(call).collect(),
        finish: Some(finish),
        message: message.clone(),
    }
}

/// Adds a streamed choice to what is known of it.
fn take(choices: &mut BTreeMap<u64, Choice>, sent: &Value) {
    let index = sent["index"].as_u64().unwrap_or_else(|| panic!("a choice without an index: {sent}"));
    let is_first = !choices.contains_key(&index);
    let fresh = || Choice { index, message: json!({}), ..Choice::default() };
    let choice = choices.entry(index).or_insert_with(fresh);
    assert!(choice.finish.is_none(), "something follows the finish: {sent}");
    let delta = sent["delta"].as_object().unwrap_or_else(|| panic!("no delta: {sent}"));
    let role = is_first.then(|| json!("assistant"));
    assert_eq!(delta.get("role"), role.as_ref(), "the role once, and first: {sent}");
    let said = |name: &str| delta.get(name).map(text).unwrap_or_default();
    choice.text += &said("content");
    choice.reasoning += &said("reasoning_content");
    choice.refusal += &said("refusal");
    for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
        take_call(&mut choice.calls, call);
    }
    for (name, value) in delta {
        add_up(&mut choice.message[name], value);
    }
    let finish = sent.get("finish_reason").unwrap_or_else(|| panic!("no finish_reason: {sent}"));
    if !finish.is_null() {
        assert!(FINISHES.contains(&text(finish).as_str()), "{sent}");
        choice.finish = Some(text(finish));
    }
}

fn take_call(calls: &mut Vec<Call>, sent: &Value) {
    let at = usize::try_from(sent["index"].as_u64().unwrap_or_else(|| panic!("no index: {sent}"))).unwrap();
    let function = &sent["function"];
    let arguments = text(&function["arguments"]);
    if let Some(known) = calls.get_mut(at) {
        assert!(sent.get("id").is_none() && sent.get("type").is_none(), "told twice: {sent}");
        assert!(function.get("name").is_none() || known.name.is_empty(), "named twice: {sent}");
        known.name += &text(&function["name"]);
        known.arguments += &arguments;
        return;
    }
    assert_eq!(at, calls.len(), "dense indexes: {sent}");
    assert!(sent["type"].is_string() && sent["id"].is_string(), "{sent}");
    calls.push(Call { id: text(&sent["id"]), name: text(&function["name"]), arguments });
}

/// OpenAI's Python helper: strings and lists with indexes grow, what is new is taken over.
fn add_up(known: &mut Value, more: &Value) {
    match (known, more) {
        (known @ Value::Null, more) => *known = more.clone(),
        (Value::String(known), Value::String(more)) => known.push_str(more),
        (Value::Object(known), Value::Object(more)) => {
            for (name, value) in more {
                let known = known.entry(name).or_insert(Value::Null);
                if name == "index" || name == "type" { *known = value.clone() } else { add_up(known, value) }
            }
        }
        (Value::Array(known), Value::Array(more)) => {
            for entry in more {
                let index =
                    entry["index"].as_u64().unwrap_or_else(|| panic!("a list's entry without an index: {entry}"));
                match known.get_mut(usize::try_from(index).unwrap()) {
                    Some(known) => add_up(known, entry),
                    None => known.push(entry.clone()),
                }
            }
        }
        _ => {}
    }
}
