//! What Anthropic reports as usage, in disjoint classes, and as OpenAI's clients read it.
//!
//! Here `input_tokens` is what no cache had a part in, and `output_tokens` includes thinking. A stream reports several times
//! and each time anew from the beginning: the last number of each field is true, and a null says nothing.

use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::meter::Usage;

/// A `usage` object, or what several of them said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report {
    input: Option<u64>,
    output: Option<u64>,
    cache_read: Option<u64>,
    cache_written: Option<u64>,
    cache_written_5m: Option<u64>,
    cache_written_1h: Option<u64>,
    thinking: Option<u64>,
}

impl Report {
    /// Takes the value of a `usage` member, whatever it is.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Fault> {
        let mut report = Self::default();
        report.object(cursor)?;
        Ok(report)
    }

    /// The names of the objects inside do not repeat those outside, so that one walk serves all of them.
    fn object(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"input_tokens" => self.input = count(cursor)?,
                b"output_tokens" => self.output = count(cursor)?,
                b"cache_read_input_tokens" => self.cache_read = count(cursor)?,
                b"cache_creation_input_tokens" => self.cache_written = count(cursor)?,
                b"cache_creation" | b"output_tokens_details" => self.details(cursor)?,
                _ => cursor.skip()?,
            }
        }
        Ok(())
    }

    fn details(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"ephemeral_5m_input_tokens" => self.cache_written_5m = count(cursor)?,
                b"ephemeral_1h_input_tokens" => self.cache_written_1h = count(cursor)?,
                b"thinking_tokens" => self.thinking = count(cursor)?,
                _ => cursor.skip()?,
            }
        }
        Ok(())
    }

    /// A later report replaces what was said, field by field.
    pub(super) fn overwrite(&mut self, later: &Self) {
        self.input = later.input.or(self.input);
        self.output = later.output.or(self.output);
        self.cache_read = later.cache_read.or(self.cache_read);
        self.cache_written = later.cache_written.or(self.cache_written);
        self.cache_written_5m = later.cache_written_5m.or(self.cache_written_5m);
        self.cache_written_1h = later.cache_written_1h.or(self.cache_written_1h);
        self.thinking = later.thinking.or(self.thinking);
    }

    /// Whether it says how long the answer is.
    pub(super) fn has_output(&self) -> bool {
        self.output.is_some()
    }

    /// The classes; `None` if no token was reported.
    pub(super) fn usage(&self) -> Option<Usage> {
        let hour = self.cache_written_1h.unwrap_or(0);
        // The sum is repeated at a stream's end, its parts are not: what is not of the hour is of the five minutes.
        let (cache_write_5m, cache_write_1h) = match self.cache_written {
            Some(written) => (written.saturating_sub(hour), hour.min(written)),
            None => (self.cache_written_5m.unwrap_or(0), hour),
        };
        let output = self.output.unwrap_or(0);
        let usage = Usage {
            input: self.input.unwrap_or(0),
            cache_read: self.cache_read.unwrap_or(0),
            cache_write_5m,
            cache_write_1h,
            output,
            reasoning: self.thinking.unwrap_or(0).min(output),
        };
        (usage.total() > 0).then_some(usage)
    }
}

/// A count of tokens; `None` if it is null or no whole number.
fn count(cursor: &mut Cursor<'_>) -> Result<Option<u64>, Fault> {
    let text = cursor.raw()?;
    Ok(str::from_utf8(text).ok().and_then(|text| text.parse().ok()))
}

/// Appends the usage as OpenAI writes it, with `cache_creation_input_tokens` besides.
pub(super) fn write_usage(out: &mut Vec<u8>, usage: &Usage) {
    let written = usage.cache_write_5m.saturating_add(usage.cache_write_1h);
    let json = format!(
        "{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},\
         \"prompt_tokens_details\":{{\"cached_tokens\":{},\"audio_tokens\":0}},\
         \"completion_tokens_details\":{{\"reasoning_tokens\":{},\"audio_tokens\":0,\
         \"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}},\
         \"cache_creation_input_tokens\":{written}}}",
        usage.prompt(),
        usage.output,
        usage.total(),
        usage.cache_read,
        usage.reasoning,
    );
    out.extend_from_slice(json.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(reports: &[&str]) -> Option<Usage> {
        let mut report = Report::default();
        for json in reports {
            report.overwrite(&Report::read(&mut Cursor::new(json.as_bytes())).unwrap());
        }
        report.usage()
    }

    #[test]
    fn later_reports_replace_and_never_add() {
        let begin = r#"{"input_tokens":4,"cache_creation_input_tokens":1167,"cache_read_input_tokens":10,
            "cache_creation":{"ephemeral_5m_input_tokens":167,"ephemeral_1h_input_tokens":1000},"output_tokens":1}"#;
        let end = r#"{"input_tokens":61,"cache_creation_input_tokens":1167,"cache_read_input_tokens":null,"output_tokens":202,
            "output_tokens_details":{"thinking_tokens":170}}"#;
        let expected =
            Usage { input: 61, cache_read: 10, cache_write_5m: 167, cache_write_1h: 1000, output: 202, reasoning: 170 };
        assert_eq!(usage(&[begin, end]), Some(expected));
        assert_eq!((expected.prompt(), expected.total()), (1238, 1440));
    }

    #[test]
    fn a_cache_write_of_unsaid_kind_is_of_five_minutes() {
        assert_eq!(usage(&[r#"{"cache_creation_input_tokens":9}"#]).unwrap().cache_write_5m, 9);
        let parts = r#"{"cache_creation":{"ephemeral_5m_input_tokens":2,"ephemeral_1h_input_tokens":3}}"#;
        let usage = usage(&[parts]).unwrap();
        assert_eq!((usage.cache_write_5m, usage.cache_write_1h), (2, 3));
    }

    #[test]
    fn nothing_reported_is_nothing() {
        for json in ["null", "{}", "[]", r#"{"input_tokens":0,"output_tokens":null}"#, r#"{"input_tokens":-1.5}"#] {
            assert_eq!(usage(&[json]), None, "{json}");
        }
    }
}
