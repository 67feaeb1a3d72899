//! What providers that speak OpenAI's dialect report as usage, in disjoint classes.
//!
//! Here `prompt_tokens` includes what came from a cache. Three names are in use for that part, some of them at once and
//! one of them 0 (WIRE §6); the largest is true.

use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::meter::Usage;

/// A `usage` object, or what several of them said last. Nulls and absent members say nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report {
    prompt: Option<u64>,
    completion: Option<u64>,
    total: Option<u64>,
    cached: Option<u64>,
    cache_written: Option<u64>,
    reasoning: Option<u64>,
}

impl Report {
    /// Takes the value of a `usage` member, whatever it is.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Fault> {
        let mut report = Self::default();
        if cursor.kind()? != Kind::Object {
            cursor.skip()?;
            return Ok(report);
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"prompt_tokens" => report.prompt = count(cursor)?,
                b"completion_tokens" => report.completion = count(cursor)?,
                b"total_tokens" => report.total = count(cursor)?,
                b"prompt_cache_hit_tokens" | b"cached_tokens" => report.cached = report.cached.max(count(cursor)?),
                b"cache_creation_input_tokens" => report.cache_written = report.cache_written.max(count(cursor)?),
                b"prompt_tokens_details" | b"completion_tokens_details" => report.details(cursor)?,
                _ => cursor.skip()?,
            }
        }
        Ok(report)
    }

    fn details(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"cached_tokens" => self.cached = self.cached.max(count(cursor)?),
                b"cache_creation_input_tokens" | b"cache_write_tokens" => {
                    self.cache_written = self.cache_written.max(count(cursor)?);
                }
                b"reasoning_tokens" => self.reasoning = count(cursor)?,
                _ => cursor.skip()?,
            }
        }
        Ok(())
    }

    /// A later report: reports are cumulative, so what it says replaces what was said.
    pub(super) fn overwrite(&mut self, later: &Self) {
        self.prompt = later.prompt.or(self.prompt);
        self.completion = later.completion.or(self.completion);
        self.total = later.total.or(self.total);
        self.cached = later.cached.or(self.cached);
        self.cache_written = later.cache_written.or(self.cache_written);
        self.reasoning = later.reasoning.or(self.reasoning);
    }

    /// The classes; `None` if no token was reported.
    pub(super) fn usage(&self) -> Option<Usage> {
        let prompt = self.prompt.unwrap_or(0);
        let completion = self.completion.unwrap_or(0);
        let reasoning = self.reasoning.unwrap_or(0);
        if prompt == 0 && completion == 0 {
            return None;
        }
        let cache_read = self.cached.unwrap_or(0).min(prompt);
        // Which kind of cache was written is not said: 5 minutes (CONTRACT §4).
        let cache_write_5m = self.cache_written.unwrap_or(0).min(prompt - cache_read);
        // xAI counts reasoning beside the completion; that the total holds all three tells so.
        let sum = prompt.saturating_add(completion).saturating_add(reasoning);
        let beside = reasoning > 0 && self.total == Some(sum);
        let output = if beside { completion.saturating_add(reasoning) } else { completion };
        Some(Usage {
            input: prompt - cache_read - cache_write_5m,
            cache_read,
            cache_write_5m,
            cache_write_1h: 0,
            output,
            // As reported, though OpenRouter has been seen to report a token more of it than there was output.
            reasoning,
        })
    }
}

/// Writes OpenAI's usage object. Tokens written to a cache, which OpenAI's own has no place for, are an extension.
pub(super) fn write_usage(out: &mut Vec<u8>, usage: &Usage) {
    let (prompt, output, total) = (usage.prompt(), usage.output, usage.total());
    let (cached, reasoning) = (usage.cache_read, usage.reasoning);
    let written = usage.cache_write_5m.saturating_add(usage.cache_write_1h);
    let mut text = format!(
        "{{\"prompt_tokens\":{prompt},\"completion_tokens\":{output},\"total_tokens\":{total},\
         \"prompt_tokens_details\":{{\"cached_tokens\":{cached}}},\
         \"completion_tokens_details\":{{\"reasoning_tokens\":{reasoning}}}"
    );
    if written > 0 {
        text.push_str(&format!(",\"cache_creation_input_tokens\":{written}"));
    }
    text.push('}');
    out.extend_from_slice(text.as_bytes());
}

/// A count of tokens; `None` if it is null or no whole number.
fn count(cursor: &mut Cursor<'_>) -> Result<Option<u64>, Fault> {
    let text = cursor.raw()?;
    Ok(str::from_utf8(text).ok().and_then(|text| text.parse().ok()))
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
    fn cached_tokens_are_taken_out_of_the_input_under_each_of_their_names() {
        for cached in [
            r#""prompt_tokens_details":{"cached_tokens":40,"audio_tokens":0}"#,
            r#""prompt_cache_hit_tokens":40,"prompt_cache_miss_tokens":60"#,
            r#""cached_tokens":0,"prompt_tokens_details":{"cached_tokens":40}"#,
        ] {
            let json = format!(r#"{{"prompt_tokens":100,"completion_tokens":7,"total_tokens":107,{cached}}}"#);
            let expected = Usage { input: 60, cache_read: 40, output: 7, ..Usage::default() };
            assert_eq!(usage(&[&json]), Some(expected), "{cached}");
        }
        let written = r#"{"prompt_tokens":100,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":30,"cache_write_tokens":50}}"#;
        let expected = Usage { input: 20, cache_read: 30, cache_write_5m: 50, output: 1, ..Usage::default() };
        assert_eq!(usage(&[written]), Some(expected));
    }

    #[test]
    fn reasoning_is_inside_the_output_unless_the_total_says_otherwise() {
        let json = |total: u64| {
            format!(
                r#"{{"prompt_tokens":10,"completion_tokens":5,"total_tokens":{total},"completion_tokens_details":{{"reasoning_tokens":3}}}}"#
            )
        };
        assert_eq!(usage(&[&json(15)]).map(|usage| (usage.output, usage.reasoning)), Some((5, 3)));
        assert_eq!(usage(&[&json(18)]).map(|usage| (usage.output, usage.reasoning)), Some((8, 3)));
    }

    #[test]
    fn a_later_report_replaces_and_nulls_say_nothing() {
        let reports = [
            r#"{"prompt_tokens":10,"completion_tokens":1,"total_tokens":11}"#,
            r#"{"prompt_tokens":null,"completion_tokens":2}"#,
            "null",
            "{}",
        ];
        assert_eq!(usage(&reports), Some(Usage { input: 10, output: 2, ..Usage::default() }));
        assert_eq!(usage(&["null"]), None);
        assert_eq!(usage(&[r#"{"prompt_tokens":0,"completion_tokens":0}"#]), None);
        assert_eq!(usage(&[r#"{"prompt_tokens":"x","completion_tokens":-1,"total_tokens":1.5}"#]), None);
    }

    #[test]
    fn more_cached_than_there_was_is_all_of_it() {
        let report = r#"{"prompt_tokens":5,"completion_tokens":1,"cached_tokens":9,"cache_creation_input_tokens":9}"#;
        assert_eq!(usage(&[report]), Some(Usage { cache_read: 5, output: 1, ..Usage::default() }));
    }
}
