//! The answer that is no stream, of a provider that keeps to the dialect only roughly.

use bytes::Bytes;

use super::choice::{Broken, Choice, Sent};
use super::stream::{mint, write_identity};
use super::writer::ObjectWriter;
use crate::relay::dialect::openai::fault::Trouble;
use crate::relay::dialect::openai::usage::{Report, write_usage};
use crate::relay::dialect::{Answer, AnswerError, AnswerTerms, End, Outcome};
use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::meter::{SampledText, Usage};
use crate::relay::refusal::{Cause, Refusal};

/// The longest answer that is put right; a longer one is given up.
pub const LOOSE_DOCUMENT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Gathers a vendor's document and gives OpenAI's at its end: until then it cannot be known whether it is one. Where it is
/// not, an error object stands in for it. Blank lines before it pass at once: DeepSeek sends them for as long as a request
/// waits there (WIRE §0.5), and they keep the client's connection alive as well.
#[derive(Debug)]
pub struct LooseDocument {
    terms: AnswerTerms,
    gathered: Vec<u8>,
    overflowed: bool,
    report: Report,
    sample: SampledText,
    error: Option<AnswerError>,
    ended: Option<Outcome>,
}

/// A document, read as far as its own members.
struct Parts<'a> {
    choices: &'a [u8],
    report: Report,
    /// The vendor's own members, each with a comma before it.
    others: Vec<u8>,
}

impl LooseDocument {
    /// At the beginning of an answer.
    pub fn new(terms: AnswerTerms) -> Self {
        Self {
            terms,
            gathered: Vec::new(),
            overflowed: false,
            report: Report::default(),
            sample: SampledText::new(),
            error: None,
            ended: None,
        }
    }

    /// OpenAI's document, or what went wrong.
    fn rewrite(&mut self, document: &[u8]) -> Result<Result<Vec<u8>, Trouble>, Fault> {
        let parts = match Parts::read(document)? {
            Ok(parts) => parts,
            Err(trouble) => return Ok(Err(trouble)),
        };
        self.report = parts.report;
        let mut out = Vec::with_capacity(document.len() + 256);
        write_identity(&mut out, &self.terms, "chat.completion");
        out.extend_from_slice(b",\"choices\":[");
        if let Some(broken) = self.choices(parts.choices, &mut out)? {
            return Ok(Err(broken.into()));
        }
        out.push(b']');
        if let Some(usage) = self.report.usage() {
            out.extend_from_slice(b",\"usage\":");
            write_usage(&mut out, &usage);
        }
        out.extend_from_slice(&parts.others);
        out.push(b'}');
        Ok(Ok(out))
    }

    fn choices(&mut self, array: &[u8], out: &mut Vec<u8>) -> Result<Option<Broken>, Fault> {
        let mint = mint(&self.terms);
        let mut position = 0;
        let mut elsewhere = Report::default();
        let mut cursor = Cursor::new(array);
        let mut items = cursor.array()?;
        while cursor.next_item(&mut items)? {
            let sent = Sent::read(&mut cursor, b"message")?;
            if position > 0 {
                out.push(b',');
            }
            if let Some(report) = &sent.usage {
                elsewhere.overwrite(report);
            }
            let mut choice = Choice::new(sent.index.unwrap_or(position));
            if let Err(broken) = choice.write_whole(&sent, &mint, out, &mut self.sample)? {
                return Ok(Some(broken));
            }
            position += 1;
        }
        if self.report.usage().is_none() {
            self.report = elsewhere;
        }
        Ok(None)
    }
}

impl<'a> Parts<'a> {
    fn read(document: &'a [u8]) -> Result<Result<Self, Trouble>, Fault> {
        let mut cursor = Cursor::new(document);
        let (mut choices, mut error) = (None, None);
        let mut report = Report::default();
        let mut others = Vec::new();
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match (key.raw(), cursor.kind()?) {
                (b"choices", Kind::Array) => choices = Some(cursor.raw()?),
                (b"usage", _) => report.overwrite(&Report::read(&mut cursor)?),
                (b"id" | b"object" | b"created" | b"model" | b"x_groq", _) | (_, Kind::Null) => cursor.skip()?,
                (b"error", _) => error = Some(cursor.raw()?),
                (key, _) => ObjectWriter::resume(&mut others).raw(key, cursor.raw()?),
            }
        }
        cursor.end()?;
        match (error, choices) {
            (Some(error), _) => Trouble::read(document, error).map(Err),
            (None, None) => Trouble::read(document, document).map(Err),
            (None, Some(choices)) => Ok(Ok(Self { choices, report, others })),
        }
    }
}

impl Answer for LooseDocument {
    fn pass(&mut self, mut chunk: Bytes) -> Bytes {
        let blank = match self.gathered.is_empty() && !self.overflowed {
            true => chunk.split_to(chunk.len() - chunk.trim_ascii_start().len()),
            false => Bytes::new(),
        };
        if self.gathered.len() + chunk.len() > LOOSE_DOCUMENT_BYTES_MAX {
            self.overflowed = true;
            self.gathered = Vec::new();
        }
        if !self.overflowed {
            self.gathered.extend_from_slice(&chunk);
        }
        blank
    }

    fn end(&mut self) -> End {
        if let Some(outcome) = self.ended {
            return End { outcome, append: Bytes::new() };
        }
        let gathered = std::mem::take(&mut self.gathered);
        let rewritten = match self.overflowed {
            true => Ok(Err(Trouble::upstream("overflow", "The provider's answer is too long."))),
            // What is passed on must be UTF-8, whatever came.
            false => self.rewrite(String::from_utf8_lossy(gathered.trim_ascii()).as_bytes()),
        };
        let (outcome, append) = match rewritten {
            Ok(Ok(document)) => (Outcome::Complete, document),
            Ok(Err(trouble)) => {
                self.error = Some(trouble.error);
                (Outcome::Errored, trouble.body)
            }
            // Not JSON, or not all of it.
            Err(_) => {
                let refusal = Refusal::new(Cause::UpstreamTruncated, "The provider's answer broke off before its end.");
                (Outcome::Truncated, refusal.to_json())
            }
        };
        self.ended = Some(outcome);
        End { outcome, append: append.into() }
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
        !self.sample.is_empty() || self.report.usage().is_some()
    }

    fn error(&self) -> Option<&AnswerError> {
        self.error.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn terms() -> AnswerTerms {
        AnswerTerms { id: "chatcmpl-7".into(), created: 5, model: "shown".into(), show_usage: false }
    }

    fn rewritten(document: &str) -> (Outcome, Value, LooseDocument) {
        let mut answer = LooseDocument::new(terms());
        let mut blank = Vec::new();
        for chunk in document.as_bytes().chunks(7) {
            blank.extend_from_slice(&answer.pass(Bytes::copy_from_slice(chunk)));
        }
        assert_eq!(blank, document.as_bytes()[..document.len() - document.trim_start().len()]);
        let end = answer.end();
        assert_eq!(answer.end(), End { outcome: end.outcome, append: Bytes::new() });
        (end.outcome, serde_json::from_slice(&end.append).unwrap(), answer)
    }

    #[test]
    fn a_vendors_document_becomes_openais() {
        let document = r#"

          {"id":"x","model":"glm","request_id":"r","choices":[{"finish_reason":"stop","message":{
            "content":[{"type":"thinking","thinking":"Hm"},{"type":"text","text":"Hi\n"}],"role":"assistant","x":null,
            "tool_calls":[{"index":0,"id":"","function":{"name":"f","arguments":{"a":1}}},{"id":"b","function":{"name":"g"}}]},
            "usage":{"prompt_tokens":3,"completion_tokens":2,"cached_tokens":1}}],"system_fingerprint":null}"#;
        let (outcome, answer, reader) = rewritten(document);
        assert_eq!(outcome, Outcome::Complete);
        let expected = json!({
            "id": "chatcmpl-7", "object": "chat.completion", "created": 5, "model": "shown", "request_id": "r",
            "choices": [{
                "index": 0, "logprobs": null, "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant", "content": "Hi\n", "refusal": null, "reasoning_content": "Hm",
                    "tool_calls": [
                        {"id": "call_7_0", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
                        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
            }],
            "usage": {
                "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 0},
            },
        });
        assert_eq!(answer, expected);
        assert_eq!(reader.usage(), Some(Usage { input: 2, cache_read: 1, output: 2, ..Usage::default() }));
        assert!(reader.began());
    }

    #[test]
    fn what_is_no_answer_is_told_as_an_error() {
        for (document, outcome, code) in [
            (r#"{"error":{"message":"no sk-1","code":502},"choices":[]}"#, Outcome::Errored, "upstream_error"),
            (r#"{"code":50505,"message":"Model service overloaded.","data":null}"#, Outcome::Errored, "upstream_error"),
            (r#"{"choices":[{"finish_reason":"insufficient_system_resource"}]}"#, Outcome::Errored, "upstream_error"),
            (r#"{"choices":[{"message":{"content":"a"#, Outcome::Truncated, "upstream_truncated"),
            ("", Outcome::Truncated, "upstream_truncated"),
            ("[]", Outcome::Truncated, "upstream_truncated"),
        ] {
            let (seen, answer, reader) = rewritten(document);
            assert_eq!((seen, &answer["error"]["code"]), (outcome, &json!(code)), "{document}");
            assert_eq!(reader.error().is_some(), outcome == Outcome::Errored);
        }
    }

    #[test]
    fn an_answer_too_long_to_hold_is_given_up() {
        let mut answer = LooseDocument::new(terms());
        let chunk = Bytes::from(vec![b'x'; LOOSE_DOCUMENT_BYTES_MAX / 4 + 1]);
        for _ in 0..5 {
            answer.pass(chunk.clone());
            assert!(answer.gathered.capacity() <= 2 * LOOSE_DOCUMENT_BYTES_MAX);
        }
        assert_eq!(answer.end().outcome, Outcome::Errored);
    }

    proptest! {
        #[test]
        fn any_bytes_give_json(bytes: Vec<u8>, text in r#"([\[\]{}:,"\\ 1x]|"usage":|"message":|"error":|"choices":|"tool_calls":|"content":"a"){0,40}"#) {
            for document in [&bytes[..], text.as_bytes(), format!(r#"{{"choices":[{{"message":{text}}}]}}"#).as_bytes()] {
                let mut answer = LooseDocument::new(terms());
                answer.pass(Bytes::copy_from_slice(document));
                prop_assert!(serde_json::from_slice::<Value>(&answer.end().append).is_ok());
            }
        }
    }
}
