//! The answer that is no stream: one JSON document, forwarded as it comes, and looked at.

use bytes::Bytes;

use super::chunk::{TextInside, read_error};
use super::usage::Report;
use crate::relay::dialect::{Answer, AnswerError, End, Outcome};
use crate::relay::json::{Cursor, Follower, Interest, Watch};
use crate::relay::meter::{SampledText, Usage};

/// A whole answer on its way through. What comes is forwarded, the very same bytes and at once; however long it is, only
/// its usage and a sample of its text are kept. Empty lines before the document, which some providers send to keep the
/// connection alive, pass too: JSON allows them.
#[derive(Debug, Default)]
pub struct JsonReader {
    follower: Follower,
    notes: Notes,
}

#[derive(Debug, Default)]
struct Notes {
    sample: SampledText,
    report: Report,
    error: Option<AnswerError>,
    in_choices: bool,
    /// The member of the document that is being captured is `error`, not `usage`.
    error_next: bool,
}

impl Watch for Notes {
    fn member(&mut self, depth: usize, key: &[u8]) -> Interest {
        if depth == 1 {
            self.in_choices = key == b"choices";
            self.error_next = key == b"error";
            return if self.error_next || key == b"usage" { Interest::Capture } else { Interest::Pass };
        }
        match key {
            b"content" | b"reasoning_content" | b"reasoning" | b"refusal" if self.in_choices => Interest::Text,
            _ if self.in_choices => TextInside(&mut self.sample).member(depth, key),
            _ => Interest::Pass,
        }
    }

    fn text(&mut self, piece: &[u8]) {
        self.sample.push(piece);
    }

    fn captured(&mut self, value: &[u8]) {
        let mut cursor = Cursor::new(value);
        if !self.error_next {
            if let Ok(report) = Report::read(&mut cursor) {
                self.report.overwrite(&report);
            }
        } else if value.trim_ascii() != b"null"
            && let Ok(error) = read_error(&mut cursor)
        {
            self.error = Some(error);
        }
    }
}

impl JsonReader {
    /// At the beginning of an answer.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Answer for JsonReader {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        self.follower.push(&chunk, &mut self.notes);
        chunk
    }

    fn end(&mut self) -> End {
        let outcome = match (&self.notes.error, self.follower.is_closed()) {
            (_, false) => Outcome::Truncated,
            (Some(_), true) => Outcome::Errored,
            (None, true) => Outcome::Complete,
        };
        End { outcome, append: Bytes::new() }
    }

    fn is_whole(&self) -> bool {
        self.follower.is_closed() && self.notes.error.is_none()
    }

    fn usage(&self) -> Option<Usage> {
        self.notes.report.usage()
    }

    fn sample(&self) -> &SampledText {
        &self.notes.sample
    }

    fn take_sample(&mut self) -> SampledText {
        std::mem::take(&mut self.notes.sample)
    }

    fn began(&self) -> bool {
        !self.notes.sample.is_empty() || self.notes.report.usage().is_some()
    }

    fn error(&self) -> Option<&AnswerError> {
        self.notes.error.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_document_is_read_however_it_is_cut() {
        let json = r#"

            {"choices":[{"message":{"content":"a\"b","refusal":null,"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]},
            "logprobs":{"content":[{"token":"a","bytes":[97]}]}}],"name":"not text",
            "usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}"#;
        for chunk_bytes in [1, 3, 64, 10_000] {
            let mut reader = JsonReader::new();
            for chunk in json.as_bytes().chunks(chunk_bytes) {
                assert_eq!(reader.end().outcome, Outcome::Truncated);
                assert_eq!(reader.pass(Bytes::copy_from_slice(chunk)), chunk);
            }
            assert_eq!(reader.end(), End { outcome: Outcome::Complete, append: Bytes::new() });
            assert_eq!(reader.sample().sample(), br#"a\"bf{}"#);
            assert_eq!(reader.usage(), Some(Usage { input: 2, cache_read: 1, output: 2, ..Usage::default() }));
        }
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_looks_the_same(
            text in r#"([\[\]{}:,"\\ 1x]|"usage":|"prompt_tokens":1|"error":|"choices":|"content":"a")*"#,
            bytes: Vec<u8>,
            chunk_bytes in 1usize..9,
        ) {
            let document = [text.as_bytes(), &bytes].concat();
            let seen = |chunk_bytes| {
                let mut reader = JsonReader::new();
                for chunk in document.chunks(chunk_bytes) {
                    reader.pass(Bytes::copy_from_slice(chunk));
                }
                (reader.end(), reader.usage(), reader.sample().clone(), reader.error().cloned())
            };
            prop_assert_eq!(seen(chunk_bytes), seen(usize::MAX));
        }
    }

    #[test]
    fn an_error_in_a_good_answers_place_is_seen() {
        let mut reader = JsonReader::new();
        reader.pass(Bytes::from_static(br#"{"error":{"message":"no","code":502}}"#));
        assert_eq!(reader.end().outcome, Outcome::Errored);
        assert_eq!(reader.error().map(|error| (&*error.message, error.code.as_deref())), Some(("no", Some("502"))));
        let mut fine = JsonReader::new();
        fine.pass(Bytes::from_static(br#"{"error":null,"choices":[]}"#));
        assert_eq!(fine.end().outcome, Outcome::Complete);
    }
}
