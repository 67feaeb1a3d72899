//! A client of OpenAI's, for tests: it reads what the translators give it, and holds them to what OpenAI promises.

use serde_json::{Map, Value, json};

use crate::relay::dialect::{Answer, AnswerTerms, Outcome};

/// What a client has understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) text: String,
    pub(super) reasoning: String,
    /// Id, name and arguments.
    pub(super) calls: Vec<(String, String, String)>,
    pub(super) finish: Option<String>,
    pub(super) usage: Option<Value>,
    pub(super) error: Option<Value>,
    /// The message as OpenAI's Python helper adds it up, and as its Node helper does.
    pub(super) python: Value,
    pub(super) node: Value,
    pub(super) outcome: Option<Outcome>,
}

pub(super) fn terms(show_usage: bool) -> AnswerTerms {
    AnswerTerms { id: "chatcmpl-\"1\"".into(), created: 1_700_000_000, model: "claude/é".into(), show_usage }
}

/// Passes an answer through in these chunks, and gives what the client gets.
pub(super) fn pass<'a>(answer: &mut dyn Answer, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Outcome) {
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&answer.pass(bytes::Bytes::copy_from_slice(chunk)));
    }
    let end = answer.end();
    out.extend_from_slice(&end.append);
    assert!(answer.end().append.is_empty(), "the end was told twice");
    (out, end.outcome)
}

/// Reads a stream. Panics where it is not one that OpenAI could have sent.
pub(super) fn read_stream(stream: &[u8], outcome: Outcome, show_usage: bool) -> Seen {
    let text = str::from_utf8(stream).expect("no UTF-8");
    let mut seen = Seen { outcome: Some(outcome), python: json!({}), node: json!({}), ..Seen::default() };
    let mut events = text.split_inclusive("\n\n").map(|event| {
        let data = event.strip_prefix("data: ").and_then(|data| data.strip_suffix("\n\n")).expect("no event");
        assert!(!data.contains('\n'), "several lines: {data}");
        data
    });
    let mut role_seen = false;
    for data in events.by_ref() {
        if data == "[DONE]" {
            assert_eq!((outcome, seen.usage.is_some()), (Outcome::Complete, show_usage));
            assert!(seen.finish.is_some());
            assert_eq!(events.next(), None, "something behind the end");
            return seen;
        }
        let chunk: Value = serde_json::from_str(data).expect(data);
        if let Some(error) = chunk.get("error") {
            for key in ["message", "type", "param", "code"] {
                assert!(error.get(key).is_some(), "{error}");
            }
            seen.error = Some(error.clone());
            assert_eq!(events.next(), None, "something behind an error");
            break;
        }
        seen.chunk(&chunk, show_usage, &mut role_seen);
    }
    assert_ne!(outcome, Outcome::Complete, "no [DONE]");
    assert_eq!(outcome == Outcome::Errored, seen.error.is_some());
    assert_eq!(seen.finish, None, "finished without an end");
    seen
}

impl Seen {
    fn chunk(&mut self, chunk: &Value, show_usage: bool, role_seen: &mut bool) {
        let terms = terms(show_usage);
        assert_eq!((&chunk["id"], &chunk["model"]), (&json!(terms.id), &json!(terms.model)));
        assert_eq!((&chunk["created"], &chunk["object"]), (&json!(terms.created), &json!("chat.completion.chunk")));
        let choices = chunk["choices"].as_array().unwrap();
        if choices.is_empty() {
            assert!(show_usage && self.finish.is_some());
            assert!(self.usage.replace(chunk["usage"].clone()).is_none(), "usage twice");
            return;
        }
        assert_eq!(chunk.get("usage"), show_usage.then_some(&Value::Null));
        assert_eq!((choices.len(), &choices[0]["index"]), (1, &json!(0)));
        assert!(self.finish.is_none(), "something behind the finish: {chunk}");
        self.finish = choices[0].get("finish_reason").expect("no finish_reason").as_str().map(str::to_owned);
        assert_ne!(self.finish.as_deref(), Some(""));
        let delta = choices[0]["delta"].as_object().unwrap();
        assert_eq!(delta.contains_key("role"), !std::mem::replace(role_seen, true), "role once, and first");
        self.text.push_str(delta.get("content").and_then(Value::as_str).unwrap_or_default());
        self.reasoning.push_str(delta.get("reasoning_content").and_then(Value::as_str).unwrap_or_default());
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.call(call);
        }
        add_up(self.python.as_object_mut().unwrap(), delta);
        for (key, value) in delta.iter().filter(|(key, _)| !["content", "tool_calls"].contains(&key.as_str())) {
            self.node[key] = value.clone();
        }
    }

    fn call(&mut self, call: &Value) {
        let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        if index == self.calls.len() {
            assert_eq!(call["type"], "function");
            let function = &call["function"];
            self.calls.push((text(&call["id"]), text(&function["name"]), text(&function["arguments"])));
        } else {
            for key in ["id", "type"] {
                assert!(call.get(key).is_none(), "{call}");
            }
            assert!(call["function"].get("name").is_none(), "{call}");
            self.calls[index].2.push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
}

/// OpenAI's Python helper: strings and lists with indexes grow, what is new is taken over.
fn add_up(message: &mut Map<String, Value>, delta: &Map<String, Value>) {
    for (key, value) in delta {
        let Some(known) = message.get_mut(key).filter(|known| !known.is_null()) else {
            message.insert(key.clone(), value.clone());
            continue;
        };
        match (known, value) {
            (known, value) if key == "index" || key == "type" => *known = value.clone(),
            (Value::String(known), Value::String(value)) => known.push_str(value),
            (Value::Object(known), Value::Object(value)) => add_up(known, value),
            (Value::Array(known), Value::Array(value)) => {
                for entry in value {
                    let index = usize::try_from(entry["index"].as_u64().expect("no index")).unwrap();
                    match known.get_mut(index) {
                        Some(known) => add_up(known.as_object_mut().unwrap(), entry.as_object().unwrap()),
                        None => known.insert(index, entry.clone()),
                    }
                }
            }
            _ => {}
        }
    }
}

/// Reads a whole answer. Panics where it is not one that OpenAI could have sent.
pub(super) fn read_whole(body: &[u8], outcome: Outcome) -> Seen {
    let mut seen = Seen { outcome: Some(outcome), ..Seen::default() };
    if outcome == Outcome::Truncated {
        assert!(body.is_empty());
        return seen;
    }
    let document: Value = serde_json::from_slice(body).expect("no JSON");
    if let Some(error) = document.get("error") {
        assert_eq!(outcome, Outcome::Errored);
        seen.error = Some(error.clone());
        return seen;
    }
    assert_eq!(outcome, Outcome::Complete);
    let terms = terms(false);
    assert_eq!((&document["id"], &document["model"]), (&json!(terms.id), &json!(terms.model)));
    assert_eq!(document["object"], "chat.completion");
    let choice = &document["choices"][0];
    let message = &choice["message"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    assert_eq!((&message["role"], &message["refusal"]), (&json!("assistant"), &Value::Null));
    seen.text = text(&message["content"]);
    seen.reasoning = text(&message["reasoning_content"]);
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        assert_eq!(call["type"], "function");
        let function = &call["function"];
        seen.calls.push((text(&call["id"]), text(&function["name"]), text(&function["arguments"])));
    }
    assert!(message["content"].is_string() || !seen.calls.is_empty());
    seen.finish = Some(text(&choice["finish_reason"])).filter(|reason| !reason.is_empty());
    assert!(seen.finish.is_some());
    seen.usage = Some(document["usage"].clone());
    seen.python = message.clone();
    seen.node = message.clone();
    seen
}
