//! What an answer says of itself, for those who keep an account of it: its model, and why it ended. Read from what the client
//! gets, which is OpenAI's format whoever answered.
//!
//! Deliberately absent: what it says besides. Nothing of an answer's text is kept, and of its own words only those that are
//! known.

use bytes::Bytes;

use crate::relay::json::{Follower, Interest, Watch};
use crate::relay::sse::{Piece, SseParser};

/// Events that are longer have no finish in them that anybody wrote by itself.
const EVENT_BYTES_MAX: usize = 64 * 1024;
/// How many reasons are kept: one a choice, of the first choices.
const REASONS_MAX: usize = 8;
/// The longest name of a model that is believed.
const MODEL_BYTES_MAX: usize = 128;

/// OpenAI's words for why an answer ended.
const REASONS: [&str; 5] = ["stop", "length", "tool_calls", "content_filter", "function_call"];
/// Any other.
const OTHER_REASON: &str = "other";

/// Reads what a client gets, as it gets it.
#[derive(Debug)]
pub struct Remarks {
    form: Form,
    notes: Notes,
}

/// What it comes as.
#[derive(Debug)]
enum Form {
    Events(SseParser),
    Document(Follower),
}

#[derive(Debug, Default)]
struct Notes {
    model: Option<Box<str>>,
    reasons: Vec<&'static str>,
    in_choices: bool,
    /// What is being captured is the model's name.
    model_next: bool,
}

impl Remarks {
    /// At the beginning of an answer.
    pub fn new(is_stream: bool) -> Self {
        let form = match is_stream {
            true => Form::Events(SseParser::new(EVENT_BYTES_MAX)),
            false => Form::Document(Follower::default()),
        };
        Self { form, notes: Notes::default() }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &Bytes) {
        let notes = &mut self.notes;
        match &mut self.form {
            Form::Document(follower) => follower.push(bytes, notes),
            Form::Events(parser) => parser.push(bytes, |piece| {
                if let Piece::Event { event, .. } = piece {
                    notes.in_choices = false;
                    Follower::default().push(&event.data, notes);
                }
            }),
        }
    }

    /// The model that it names first.
    pub fn model(&self) -> Option<&str> {
        self.notes.model.as_deref()
    }

    /// Why its choices ended, in the order in which they did: OpenAI's words, and `other`.
    pub fn finish_reasons(&self) -> &[&'static str] {
        &self.notes.reasons
    }
}

impl Watch for Notes {
    fn member(&mut self, depth: usize, key: &[u8]) -> Interest {
        if depth == 1 {
            self.in_choices = key == b"choices";
        }
        self.model_next = depth == 1 && key == b"model" && self.model.is_none();
        // A choice is an object in a list in the document.
        let is_reason = self.in_choices && depth == 3 && key == b"finish_reason" && self.reasons.len() < REASONS_MAX;
        if self.model_next || is_reason { Interest::Capture } else { Interest::Pass }
    }

    fn text(&mut self, _: &[u8]) {}

    fn captured(&mut self, value: &[u8]) {
        let inside = value.trim_ascii().strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        let Some(word) = inside.and_then(|inside| str::from_utf8(inside).ok()).filter(|word| !word.is_empty()) else {
            return;
        };
        if !self.model_next {
            self.reasons.push(REASONS.into_iter().find(|known| *known == word).unwrap_or(OTHER_REASON));
        } else if word.len() <= MODEL_BYTES_MAX && word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            self.model = Some(word.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = concat!(
        ": ping\n\n",
        r#"data: {"id":"1","model":"gpt-x-2026","choices":[{"index":0,"delta":{"content":"\"finish_reason\":\"length\""},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"model":"another","choices":[{"delta":{"tool_calls":[{"finish_reason":"stop"}]},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"choices":[{"index":1,"delta":{},"finish_reason":"tool_calls"},{"index":0,"finish_reason":"eos"}]}"#,
        "\n\n",
        r#"data: {"choices":[],"usage":{"finish_reason":"stop"},"more":[{"finish_reason":"stop"}]}"#,
        "\n\ndata: [DONE]\n\n",
    );
    const DOCUMENT: &str = r#"{ "object": "chat.completion", "model" : "gpt-x",
        "choices" : [ { "message": {"content": "{\"model\":\"y\"}", "finish_reason": "stop"}, "finish_reason" : "length" } ] }"#;

    fn read(text: &str, is_stream: bool, piece_bytes: usize) -> (Option<String>, Vec<&'static str>) {
        let mut remarks = Remarks::new(is_stream);
        text.as_bytes().chunks(piece_bytes).for_each(|piece| remarks.push(&Bytes::copy_from_slice(piece)));
        (remarks.model().map(str::to_owned), remarks.finish_reasons().to_vec())
    }

    #[test]
    fn what_is_no_name_of_a_model_is_none() {
        for model in [r#""""#, "null", "7", r#""a b""#, r#""a\u0041""#, &format!("{:?}", "x".repeat(129))] {
            assert_eq!(read(&format!("{{\"model\":{model}}}"), false, 1_000).0, None, "{model}");
        }
    }

    #[test]
    fn as_many_reasons_are_kept_as_may_be() {
        let choices = vec![r#"{"finish_reason":"stop"}"#; 20].join(",");
        assert_eq!(read(&format!("{{\"choices\":[{choices}]}}"), false, 1_000).1, ["stop"; REASONS_MAX]);
    }

    proptest! {
        #[test]
        fn it_is_read_however_it_is_cut(piece_bytes in 1_usize..200) {
            let (model, reasons) = read(STREAM, true, piece_bytes);
            prop_assert_eq!((model.as_deref(), &reasons[..]), (Some("gpt-x-2026"), &["tool_calls", "other"][..]));
            let (model, reasons) = read(DOCUMENT, false, piece_bytes);
            prop_assert_eq!((model.as_deref(), &reasons[..]), (Some("gpt-x"), &["length"][..]));
        }
    }
}
