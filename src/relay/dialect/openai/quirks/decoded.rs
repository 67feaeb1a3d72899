//! What a client makes of an answer, with all that it is promised checked on the way. For tests.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use crate::relay::sse::{Piece, SseParser};

/// An answer as a client has it at the end.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    pub(super) choices: Vec<DecodedChoice>,
    pub(super) usage: Option<Value>,
    pub(super) error: Option<Value>,
    pub(super) done: bool,
}

#[derive(Debug, Default)]
pub(super) struct DecodedChoice {
    pub(super) index: u64,
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) refusal: String,
    pub(super) calls: Vec<(String, String, String)>,
    pub(super) finish: String,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Decoded {
    /// Decodes a stream. Panics where it breaks a promise.
    pub(super) fn stream(stream: &[u8]) -> Self {
        let mut decoded = Self::default();
        let mut identity = None;
        let mut choices = BTreeMap::new();
        let mut parser = SseParser::default();
        let mut take = |piece: Piece<'_>| {
            let Piece::Event { event, .. } = piece else { return };
            assert!(!decoded.done && decoded.error.is_none(), "something follows the end");
            if &*event.data == b"[DONE]" {
                decoded.done = true;
                return;
            }
            let chunk: Value = serde_json::from_slice(&event.data).unwrap();
            if let Some(error) = chunk.get("error") {
                assert!(["message", "type", "param", "code"].iter().all(|field| error.get(field).is_some()), "{error}");
                decoded.error = Some(error.clone());
                return;
            }
            let own = (chunk["id"].clone(), chunk["created"].clone(), chunk["model"].clone());
            assert_eq!(identity.get_or_insert_with(|| own.clone()), &own);
            assert!(
                own.0.is_string() && own.1.is_i64() && own.2.is_string() && chunk["object"] == "chat.completion.chunk"
            );
            assert!(decoded.usage.is_none(), "something follows the usage");
            let sent = chunk["choices"].as_array().unwrap();
            match chunk.get("usage") {
                Some(usage) if usage.is_object() => {
                    assert!(sent.is_empty());
                    decoded.usage = Some(usage.clone());
                }
                Some(usage) => assert!(usage.is_null() && !sent.is_empty()),
                None => assert!(!sent.is_empty()),
            }
            sent.iter().for_each(|choice| take_choice(&mut choices, choice));
        };
        parser.push(&Bytes::copy_from_slice(stream), &mut take);
        parser.finish(&mut take);
        decoded.choices = choices.into_values().collect();
        decoded
    }

    /// Decodes a whole answer.
    pub(super) fn document(document: &[u8]) -> Self {
        let answer: Value = serde_json::from_slice(document).unwrap();
        let choices = answer["choices"].as_array().into_iter().flatten().map(|choice| {
            let message = &choice["message"];
            assert!(message["role"] == "assistant" && message.get("content").is_some() && choice["index"].is_u64());
            let call = |call: &Value| {
                assert!(call["type"] == "function" && call.get("index").is_none());
                (
                    text(&call["id"]).into(),
                    text(&call["function"]["name"]).into(),
                    text(&call["function"]["arguments"]).into(),
                )
            };
            DecodedChoice {
                index: choice["index"].as_u64().unwrap(),
                text: text(&message["content"]).into(),
                reasoning: text(&message["reasoning_content"]).into(),
                refusal: text(&message["refusal"]).into(),
                calls: message["tool_calls"].as_array().into_iter().flatten().map(call).collect(),
                finish: choice["finish_reason"].as_str().unwrap().into(),
            }
        });
        let (usage, error) = (answer.get("usage").cloned(), answer.get("error").cloned());
        Self { choices: choices.collect(), usage, error, done: true }
    }
}

fn take_choice(choices: &mut BTreeMap<u64, DecodedChoice>, sent: &Value) {
    let index = sent["index"].as_u64().unwrap();
    let is_first = !choices.contains_key(&index);
    let choice = choices.entry(index).or_insert_with(|| DecodedChoice { index, ..DecodedChoice::default() });
    assert!(choice.finish.is_empty(), "something follows the finish");
    let delta = &sent["delta"];
    assert_eq!(delta.get("role").is_some(), is_first, "a role once and first: {delta}");
    choice.text += text(&delta["content"]);
    choice.reasoning += text(&delta["reasoning_content"]);
    choice.refusal += text(&delta["refusal"]);
    for call in delta["tool_calls"].as_array().into_iter().flatten() {
        let at = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
        let arguments = call["function"]["arguments"].as_str().unwrap();
        match choice.calls.get_mut(at) {
            Some(known) => {
                assert!(call.get("id").is_none() && call.get("type").is_none(), "{call}");
                if let Some(name) = call["function"].get("name") {
                    assert!(known.1.is_empty() && !text(name).is_empty());
                    known.1 = text(name).into();
                }
                known.2 += arguments;
            }
            None => {
                assert_eq!(at, choice.calls.len(), "dense indexes");
                assert!(call["type"].is_string() && !text(&call["id"]).is_empty(), "{call}");
                choice.calls.push((text(&call["id"]).into(), text(&call["function"]["name"]).into(), arguments.into()));
            }
        }
    }
    let finish = sent.get("finish_reason").unwrap();
    assert!(
        finish.is_null() || ["stop", "length", "tool_calls", "content_filter", "function_call"].contains(&text(finish))
    );
    choice.finish += text(finish);
}
