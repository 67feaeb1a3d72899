//! The answer that is no stream: gathered, and given as OpenAI's document at its end.

use bytes::Bytes;

use super::SCHEMA_TOOL;
use super::error::map_error_inside;
use super::event::{Block, BlockKind, StopReason, string};
use super::text::{push_inside, push_string, push_stringified};
use super::usage::{Report, write_usage};
use super::writer::write_head;
use crate::relay::dialect::{Answer, AnswerError, AnswerTerms, End, Outcome};
use crate::relay::json::{Cursor, Fault, Kind, RawStr, What};
use crate::relay::meter::{SampledText, Usage};
use crate::relay::refusal::{Cause, Refusal};

/// The most bytes of an answer that are gathered.
pub const WHOLE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A whole answer. Nothing passes before its end; then all of it does. One that is longer than [`WHOLE_BYTES_MAX`], cannot be
/// read or is an error becomes OpenAI's error object; one that broke off becomes nothing, and is for the proxy to tell.
#[derive(Debug)]
pub struct WholeTranslator {
    terms: AnswerTerms,
    gathered: Vec<u8>,
    bytes_max: usize,
    overflowing: bool,
    report: Report,
    sample: SampledText,
    began: bool,
    error: Option<AnswerError>,
    /// How it ended, once it has.
    outcome: Option<Outcome>,
}

/// What a document says.
#[derive(Debug, Default)]
struct Document {
    /// The inside of the text.
    content: Vec<u8>,
    /// The inside of the thinking.
    reasoning: Vec<u8>,
    /// Objects, with commas between them.
    thinking_blocks: Vec<u8>,
    tool_calls: Vec<u8>,
    stop_reason: Option<StopReason>,
    report: Report,
    is_error: bool,
}

impl WholeTranslator {
    /// At the beginning of an answer.
    pub fn new(terms: AnswerTerms) -> Self {
        Self::with_bytes_max(terms, WHOLE_BYTES_MAX)
    }

    fn with_bytes_max(terms: AnswerTerms, bytes_max: usize) -> Self {
        Self {
            terms,
            gathered: Vec::new(),
            bytes_max,
            overflowing: false,
            report: Report::default(),
            sample: SampledText::new(),
            began: false,
            error: None,
            outcome: None,
        }
    }

    fn translate(&mut self) -> (Outcome, Bytes) {
        if self.overflowing {
            return self.fail("The provider's answer is too long.");
        }
        let gathered = std::mem::take(&mut self.gathered);
        let json = String::from_utf8_lossy(&gathered);
        match Document::read(json.as_bytes()) {
            Err(Fault { what: What::Ended, .. }) => (Outcome::Truncated, Bytes::new()),
            Err(_) => self.fail("The provider's answer cannot be read."),
            Ok(document) if document.is_error => {
                let (_, body, error) = map_error_inside(&gathered);
                self.error = Some(error);
                (Outcome::Errored, body)
            }
            Ok(document) => {
                self.report = document.report;
                for text in [&document.reasoning, &document.content, &document.tool_calls] {
                    self.sample.push(text);
                }
                self.began = !self.sample.is_empty() || self.report.usage().is_some();
                (Outcome::Complete, document.write(&self.terms).into())
            }
        }
    }

    fn fail(&mut self, message: &'static str) -> (Outcome, Bytes) {
        self.error = Some(AnswerError { message: message.into(), ..AnswerError::default() });
        (Outcome::Errored, Refusal::new(Cause::UpstreamError, message).to_json().into())
    }
}

impl Answer for WholeTranslator {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        if self.outcome.is_some() || self.overflowing {
            return Bytes::new();
        }
        if self.gathered.len() + chunk.len() > self.bytes_max {
            self.overflowing = true;
            self.gathered = Vec::new();
        } else {
            self.gathered.extend_from_slice(&chunk);
        }
        Bytes::new()
    }

    fn end(&mut self) -> End {
        if let Some(outcome) = self.outcome {
            return End { outcome, append: Bytes::new() };
        }
        let (outcome, append) = self.translate();
        self.outcome = Some(outcome);
        End { outcome, append }
    }

    fn is_whole(&self) -> bool {
        // It is told at its end.
        false
    }

    fn usage(&self) -> Option<Usage> {
        self.report.usage()
    }

    fn sample(&self) -> &SampledText {
        &self.sample
    }

    fn take_sample(&mut self) -> SampledText {
        std::mem::take(&mut self.sample)
    }

    fn began(&self) -> bool {
        self.began
    }

    fn error(&self) -> Option<&AnswerError> {
        self.error.as_ref()
    }
}

impl Document {
    fn read(json: &[u8]) -> Result<Self, Fault> {
        let mut document = Self::default();
        let mut has_content = false;
        let mut cursor = Cursor::new(json);
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"content" if cursor.kind()? == Kind::Array => {
                    has_content = true;
                    let mut items = cursor.array()?;
                    while cursor.next_item(&mut items)? {
                        document.block(&Block::read(&mut cursor)?);
                    }
                }
                b"stop_reason" => document.stop_reason = string(&mut cursor)?.map(StopReason::named),
                b"usage" => document.report.overwrite(&Report::read(&mut cursor)?),
                b"error" if cursor.kind()? != Kind::Null => {
                    document.is_error = true;
                    cursor.skip()?;
                }
                _ => cursor.skip()?,
            }
        }
        cursor.end()?;
        document.is_error |= !has_content;
        Ok(document)
    }

    fn block(&mut self, block: &Block<'_>) {
        match block.kind {
            BlockKind::Text => {
                if let Some(text) = block.text {
                    push_inside(&mut self.content, text);
                }
            }
            BlockKind::Thinking => self.thinking(block),
            BlockKind::RedactedThinking => {
                if let Some(data) = block.data {
                    separate(&mut self.thinking_blocks);
                    self.thinking_blocks.extend_from_slice(b"{\"type\":\"redacted_thinking\",\"data\":");
                    push_string(&mut self.thinking_blocks, data);
                    self.thinking_blocks.push(b'}');
                }
            }
            BlockKind::ToolUse if block.name.is_some_and(|name| name.raw() == SCHEMA_TOOL.as_bytes()) => {
                push_stringified(&mut self.content, block.input.unwrap_or(b"{}"));
            }
            BlockKind::ToolUse => self.call(block),
            BlockKind::Other => {}
        }
    }

    fn thinking(&mut self, block: &Block<'_>) {
        let Some(thinking) = block.thinking else { return };
        push_inside(&mut self.reasoning, thinking);
        let Some(signature) = block.signature.filter(|signature| !signature.is_empty()) else { return };
        separate(&mut self.thinking_blocks);
        self.thinking_blocks.extend_from_slice(b"{\"type\":\"thinking\",\"thinking\":");
        push_string(&mut self.thinking_blocks, thinking);
        self.thinking_blocks.extend_from_slice(b",\"signature\":");
        push_string(&mut self.thinking_blocks, signature);
        self.thinking_blocks.push(b'}');
    }

    fn call(&mut self, block: &Block<'_>) {
        let out = &mut self.tool_calls;
        separate(out);
        let inside = |out: &mut Vec<u8>, text: Option<RawStr<'_>>| {
            if let Some(text) = text {
                push_inside(out, text);
            }
        };
        out.extend_from_slice(b"{\"id\":\"");
        inside(out, block.id);
        out.extend_from_slice(b"\",\"type\":\"function\",\"function\":{\"name\":\"");
        inside(out, block.name);
        out.extend_from_slice(b"\",\"arguments\":\"");
        push_stringified(out, block.input.unwrap_or(b"{}"));
        out.extend_from_slice(b"\"}}");
    }

    /// OpenAI's document.
    fn write(&self, terms: &AnswerTerms) -> Vec<u8> {
        let parts = [&self.content, &self.reasoning, &self.thinking_blocks, &self.tool_calls];
        let mut out = Vec::with_capacity(1024 + parts.iter().map(|part| part.len()).sum::<usize>());
        write_head(&mut out, terms, "chat.completion");
        out.extend_from_slice(b"[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":");
        let has_calls = !self.tool_calls.is_empty();
        if self.content.is_empty() && has_calls {
            out.extend_from_slice(b"null");
        } else {
            out.push(b'"');
            out.extend_from_slice(&self.content);
            out.push(b'"');
        }
        out.extend_from_slice(b",\"refusal\":null");
        for (before, part, after) in [
            (",\"reasoning_content\":\"", &self.reasoning, "\""),
            (",\"thinking_blocks\":[", &self.thinking_blocks, "]"),
            (",\"tool_calls\":[", &self.tool_calls, "]"),
        ] {
            if !part.is_empty() {
                out.extend_from_slice(before.as_bytes());
                out.extend_from_slice(part);
                out.extend_from_slice(after.as_bytes());
            }
        }
        let default = if has_calls { StopReason::ToolUse } else { StopReason::Stop };
        let reason = self.stop_reason.unwrap_or(default).finish_reason(has_calls);
        out.extend_from_slice(b",\"annotations\":[]},\"logprobs\":null,\"finish_reason\":\"");
        out.extend_from_slice(reason.as_bytes());
        out.extend_from_slice(b"\"}],\"usage\":");
        write_usage(&mut out, &self.report.usage().unwrap_or_default());
        out.push(b'}');
        out
    }
}

fn separate(list: &mut Vec<u8>) {
    if !list.is_empty() {
        list.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::client::{Seen, pass, read_whole, terms};
    use super::*;

    fn seen(document: &str) -> Seen {
        let (out, outcome) = pass(&mut WholeTranslator::new(terms(false)), document.as_bytes().chunks(7));
        read_whole(&out, outcome)
    }

    #[test]
    fn a_whole_answer_is_this() {
        let document = r#"
            {"type":"message","content":[
                {"type":"thinking","thinking":"hm\n","signature":"s/=="},{"type":"redacted_thinking","data":"x"},
                {"type":"text","text":"A","citations":null},{"type":"server_tool_use","id":"s","name":"n","input":{"q":1}},
                {"type":"text","text":"b"},
                {"type":"tool_use","id":"c","name":"f","input":{ "n": 12345678901234567890123, "s": "a b" }},
                {"type":"tool_use","id":"d","name":"g","input":{}}],
             "stop_reason":"tool_use","usage":{"input_tokens":1,"cache_read_input_tokens":2,"cache_creation_input_tokens":3,"output_tokens":4}}"#;
        let mut answer = WholeTranslator::new(terms(false));
        let (out, outcome) = pass(&mut answer, [document.as_bytes()]);
        let head = r#"{"id":"chatcmpl-\"1\"","object":"chat.completion","created":1700000000,"model":"claude/é","choices":[{"index":0,"message":{"role":"assistant","content":"Ab","refusal":null,"reasoning_content":"hm\n","thinking_blocks":[{"type":"thinking","thinking":"hm\n","signature":"s/=="},{"type":"redacted_thinking","data":"x"}],"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"n\":12345678901234567890123,\"s\":\"a b\"}"}},{"id":"d","type":"function","function":{"name":"g","arguments":"{}"}}],"annotations":[]},"logprobs":null,"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":6,"completion_tokens":4,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":2,"#;
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(head), "{text}");
        assert_eq!((outcome, answer.began()), (Outcome::Complete, true));
        assert_eq!(answer.usage().unwrap().prompt(), 6);
    }

    #[test]
    fn what_is_said_of_the_text_depends_on_the_calls() {
        let answer = |content: serde_json::Value, reason: &str| {
            let seen = seen(&json!({"content": content, "stop_reason": reason}).to_string());
            (seen.python["content"].clone(), seen.finish.unwrap())
        };
        let call = json!([{"type":"tool_use","id":"c","name":"f","input":{}}]);
        assert_eq!(answer(call, "tool_use"), (json!(null), "tool_calls".into()));
        assert_eq!(answer(json!([]), "end_turn"), (json!(""), "stop".into()));
        assert_eq!(answer(json!([]), "refusal"), (json!(""), "content_filter".into()));
        let schema = json!([{"type":"tool_use","id":"c","name":SCHEMA_TOOL,"input":{"a": 1}}]);
        assert_eq!(answer(schema, "tool_use"), (json!("{\"a\":1}"), "stop".into()));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let error = json!({"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}).to_string();
        for (document, message) in [
            (&*error, "The provider is overloaded."),
            ("<html>", "The provider's answer cannot be read."),
            ("[]", "The provider's answer cannot be read."),
            ("{\"content\":[]} x", "The provider's answer cannot be read."),
        ] {
            assert_eq!(seen(document).error.unwrap()["message"], message);
        }
        for document in ["", " ", "{\"content\":[", "{\"content\":[]"] {
            assert_eq!(seen(document).outcome, Some(Outcome::Truncated));
        }
        let mut long = WholeTranslator::with_bytes_max(terms(false), 10);
        let (out, outcome) = pass(&mut long, [&b"{\"content\""[..], b":[]}"]);
        assert_eq!(read_whole(&out, outcome).error.unwrap()["code"], "upstream_error");
        assert_eq!(long.gathered.capacity(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes: Vec<u8>, json in r#"(\{|\}|\[|\]|,|"content":|"type":|"tool_use"|"input":|"error":|"stop_reason":|"text")*"#) {
            for document in [&bytes[..], json.as_bytes()] {
                let (out, outcome) = pass(&mut WholeTranslator::new(terms(false)), document.chunks(5));
                read_whole(&out, outcome);
            }
        }
    }
}
