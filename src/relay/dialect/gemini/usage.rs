//! What Gemini reports as usage, in disjoint classes.
//!
//! The prompt includes what came from a cache, but not what a tool of Google's own brought in; the answer does not include
//! the thoughts. Each chunk of a stream reports all so far, the early ones not every count.

use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::meter::Usage;

/// A `usageMetadata`, or what several of them said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report {
    prompt: Option<u64>,
    tool_prompt: Option<u64>,
    candidates: Option<u64>,
    thoughts: Option<u64>,
    cached: Option<u64>,
}

impl Report {
    /// Takes the value of a `usageMetadata` member, whatever it is.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Fault> {
        let mut report = Self::default();
        if cursor.kind()? != Kind::Object {
            cursor.skip()?;
            return Ok(report);
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"promptTokenCount" => report.prompt = count(cursor)?,
                b"toolUsePromptTokenCount" => report.tool_prompt = count(cursor)?,
                b"candidatesTokenCount" => report.candidates = count(cursor)?,
                b"thoughtsTokenCount" => report.thoughts = count(cursor)?,
                b"cachedContentTokenCount" => report.cached = count(cursor)?,
                _ => cursor.skip()?,
            }
        }
        Ok(report)
    }

    /// A later report: reports are cumulative, so what it says replaces what was said.
    pub(super) fn overwrite(&mut self, later: &Self) {
        self.prompt = later.prompt.or(self.prompt);
        self.tool_prompt = later.tool_prompt.or(self.tool_prompt);
        self.candidates = later.candidates.or(self.candidates);
        self.thoughts = later.thoughts.or(self.thoughts);
        self.cached = later.cached.or(self.cached);
    }

    /// Whether it tells of the answer, not of the prompt and the thoughts alone.
    pub(super) fn has_output(&self) -> bool {
        self.candidates.is_some()
    }

    /// The classes; `None` if no token was reported.
    pub(super) fn usage(&self) -> Option<Usage> {
        let of = |count: Option<u64>| count.unwrap_or(0);
        let prompt = of(self.prompt).saturating_add(of(self.tool_prompt));
        let reasoning = of(self.thoughts);
        let output = of(self.candidates).saturating_add(reasoning);
        if prompt == 0 && output == 0 {
            return None;
        }
        let cache_read = of(self.cached).min(prompt);
        Some(Usage { input: prompt - cache_read, cache_read, output, reasoning, ..Usage::default() })
    }
}

/// A count of tokens; `None` if it is null or no whole number. Google writes some numbers as strings.
fn count(cursor: &mut Cursor<'_>) -> Result<Option<u64>, Fault> {
    let text = cursor.raw()?;
    Ok(str::from_utf8(text).ok().and_then(|text| text.trim_matches('"').parse().ok()))
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
    fn thoughts_are_output_and_tools_prompts_are_input() {
        let json = r#"{"promptTokenCount":100,"cachedContentTokenCount":40,"toolUsePromptTokenCount":7,
            "candidatesTokenCount":5,"thoughtsTokenCount":20,"totalTokenCount":132,"trafficType":"ON_DEMAND"}"#;
        let expected = Usage { input: 67, cache_read: 40, output: 25, reasoning: 20, ..Usage::default() };
        assert_eq!(usage(&[json]), Some(expected));
        assert_eq!(expected.total(), 132);
    }

    #[test]
    fn only_candidates_tell_of_the_answer() {
        let has_output = |json: &str| Report::read(&mut Cursor::new(json.as_bytes())).unwrap().has_output();
        assert!(has_output(r#"{"promptTokenCount":10,"candidatesTokenCount":1}"#));
        assert!(!has_output(r#"{"promptTokenCount":10,"thoughtsTokenCount":20,"totalTokenCount":30}"#));
    }

    #[test]
    fn the_last_word_counts_and_silence_says_nothing() {
        let reports = [
            r#"{"trafficType":"PROVISIONED_THROUGHPUT"}"#,
            r#"{"promptTokenCount":211,"thoughtsTokenCount":20,"totalTokenCount":231}"#,
            r#"{"promptTokenCount":646,"candidatesTokenCount":"19","totalTokenCount":685}"#,
            "null",
        ];
        let expected = Usage { input: 646, output: 39, reasoning: 20, ..Usage::default() };
        assert_eq!(usage(&reports), Some(expected));
        assert_eq!(usage(&reports[..1]), None);
        assert_eq!(usage(&[r#"{"promptTokenCount":-1,"candidatesTokenCount":1.5}"#]), None);
    }
}
