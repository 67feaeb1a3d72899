//! What a client makes of an answer, for tests: chunks are joined as the SDKs join them, and what holds of every stream is
//! checked on the way.

use serde_json::Value;

use crate::relay::dialect::AnswerTerms;

/// One choice of an answer.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Told {
    pub(super) text: String,
    pub(super) reasoning: String,
    /// Each call's id, name, arguments, and whether it has a signature.
    pub(super) calls: Vec<(Option<String>, String, Value, bool)>,
    pub(super) finish: Option<String>,
}

/// A whole answer.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) choices: Vec<Told>,
    pub(super) usage: Value,
    pub(super) error: Option<Value>,
    pub(super) done: bool,
}

/// The terms that all tests' answers have.
pub(super) fn terms(show_usage: bool) -> AnswerTerms {
    AnswerTerms {
        id: "chatcmpl-0198c7f2-1b7a-7c3d-8e4f-0123456789ab".into(),
        created: 1_782_321_902,
        model: "gemini/\"2.5\"".into(),
        show_usage,
    }
}

/// Cuts a text at places that look random and are the same in every run.
pub(super) fn cut(mut rest: &[u8], bytes_max: usize) -> Vec<&[u8]> {
    let mut state = rest.len() as u64;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        // Knuth's linear congruential generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = 1 + usize::try_from(state >> 33).unwrap() % bytes_max;
        let (chunk, after) = rest.split_at(bytes.min(rest.len()));
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

/// Reads a stream as a client does, and checks what holds of each: one id, one time, one model, the role once, dense
/// indexes, a finish once, usage once and only where it was asked for, `[DONE]` once and last, an error last.
pub(super) fn told_by_stream(stream: &[u8], show_usage: bool) -> Heard {
    let text = std::str::from_utf8(stream).expect("not UTF-8");
    let mut heard = Heard::default();
    let mut raw: Vec<Joined> = Vec::new();
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert!(text.is_empty() || text.ends_with("\n\n"), "the last event is not ended: {text:?}");
    for event in &events {
        let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("no event: {event:?}"));
        assert!(!heard.done && heard.error.is_none(), "something behind the end: {event}");
        if data == "[DONE]" {
            heard.done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
        if let Some(error) = chunk.get("error") {
            assert!(
                error["message"].is_string() && error["type"].is_string() && error.get("param").is_some(),
                "{data}"
            );
            heard.error = Some(error.clone());
            continue;
        }
        let expected = terms(show_usage);
        assert_eq!(chunk["id"], *expected.id);
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["created"], expected.created);
        assert_eq!(chunk["model"], *expected.model);
        assert_eq!(chunk.get("usage").is_some(), show_usage, "{data}");
        let choices = chunk["choices"].as_array().unwrap();
        if choices.is_empty() {
            assert!(heard.usage.is_null() && chunk["usage"].is_object(), "{data}");
            heard.usage = chunk["usage"].clone();
        } else if show_usage {
            assert!(chunk["usage"].is_null() && heard.usage.is_null(), "{data}");
        }
        choices.iter().for_each(|choice| join(&mut raw, choice));
    }
    heard.choices = raw.into_iter().map(Joined::told).collect();
    assert!(!heard.done || heard.choices.iter().all(|told| told.finish.is_some()), "done, but not finished");
    heard
}

/// A choice as its chunks come.
#[derive(Default)]
struct Joined {
    index: u64,
    told: Told,
    arguments: Vec<String>,
}

impl Joined {
    fn told(mut self) -> Told {
        for (call, arguments) in self.told.calls.iter_mut().zip(&self.arguments) {
            call.2 = serde_json::from_str(arguments).unwrap_or_else(|_| Value::String(arguments.clone()));
        }
        self.told
    }
}

fn join(raw: &mut Vec<Joined>, choice: &Value) {
    let index = choice["index"].as_u64().unwrap();
    let delta = choice["delta"].as_object().unwrap();
    assert!(choice.get("finish_reason").is_some(), "no finish_reason: {choice}");
    let known = raw.iter().position(|joined| joined.index == index);
    assert_eq!(known.is_none(), delta.contains_key("role"), "the role is in the first chunk and no other: {choice}");
    let at = known.unwrap_or_else(|| {
        raw.push(Joined { index, ..Joined::default() });
        raw.len() - 1
    });
    let joined = &mut raw[at];
    assert!(joined.told.finish.is_none(), "something behind the finish: {choice}");
    joined.told.text += delta.get("content").and_then(Value::as_str).unwrap_or_default();
    joined.told.reasoning += delta.get("reasoning_content").and_then(Value::as_str).unwrap_or_default();
    for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
        let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
        let calls = &mut joined.told.calls;
        assert!(index <= calls.len(), "indexes are not dense: {choice}");
        if index == calls.len() {
            assert_eq!(call["type"], "function");
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            calls.push((Some(text(&call["id"])), text(&call["function"]["name"]), Value::Null, false));
            joined.arguments.push(String::new());
        } else {
            assert!(call.get("id").is_none() && call.get("type").is_none() && call["function"].get("name").is_none());
        }
        calls[index].3 |= call["extra_content"]["google"]["thought_signature"].is_string();
        joined.arguments[index] += call["function"]["arguments"].as_str().unwrap();
    }
    if let Some(reason) = choice["finish_reason"].as_str() {
        assert!(!reason.is_empty() && delta.is_empty());
        joined.told.finish = Some(reason.to_owned());
    }
}

/// Reads a whole answer.
pub(super) fn told_by_document(document: &[u8]) -> Heard {
    let document: Value = serde_json::from_slice(document).unwrap_or_else(|error| panic!("{error}"));
    let expected = terms(false);
    assert_eq!(document["id"], *expected.id);
    assert_eq!(document["object"], "chat.completion");
    assert_eq!(document["created"], expected.created);
    assert_eq!(document["model"], *expected.model);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = |choice: &Value| {
        let message = &choice["message"];
        assert_eq!(message["role"], "assistant");
        assert!(message.get("refusal").is_some() && choice.get("logprobs").is_some());
        let call = |call: &Value| {
            let arguments = text(&call["function"]["arguments"]);
            let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
            let signed = call["extra_content"]["google"]["thought_signature"].is_string();
            (Some(text(&call["id"])), text(&call["function"]["name"]), arguments, signed)
        };
        Told {
            text: text(&message["content"]),
            reasoning: text(&message["reasoning_content"]),
            calls: message["tool_calls"].as_array().into_iter().flatten().map(call).collect(),
            finish: choice["finish_reason"].as_str().map(str::to_owned),
        }
    };
    Heard {
        choices: document["choices"].as_array().unwrap().iter().map(told).collect(),
        usage: document["usage"].clone(),
        error: None,
        done: true,
    }
}
