//! Why an answer has ended, in Gemini's words and in OpenAI's.

/// Why a candidate has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finish {
    /// It was done, or wants its tools called.
    Stop,
    /// It had as many tokens as it may have.
    Length,
    /// It was kept from saying more.
    Filtered,
    /// The model failed: there is no answer, and another try may give one. In Gemini's word.
    Failed(&'static str),
}

/// The words for a model that has failed.
const FAILURES: [&str; 8] = [
    "MALFORMED_FUNCTION_CALL",
    "MALFORMED_RESPONSE",
    "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS",
    "MISSING_THOUGHT_SIGNATURE",
    "NO_IMAGE",
    "OTHER",
    "ERROR",
];

impl Finish {
    /// Reads a `finishReason`; `None` if it says that there is none yet.
    pub(super) fn read(word: &[u8]) -> Option<Self> {
        match word {
            b"" | b"FINISH_REASON_UNSPECIFIED" => None,
            b"MAX_TOKENS" => Some(Self::Length),
            b"SAFETY"
            | b"RECITATION"
            | b"BLOCKLIST"
            | b"PROHIBITED_CONTENT"
            | b"SPII"
            | b"LANGUAGE"
            | b"MODEL_ARMOR" => Some(Self::Filtered),
            _ if word.starts_with(b"IMAGE_") => Some(Self::Filtered),
            _ => match FAILURES.iter().find(|failure| failure.as_bytes() == word) {
                Some(failure) => Some(Self::Failed(failure)),
                // A word that is newer than this list, or STOP.
                None => Some(Self::Stop),
            },
        }
    }

    /// OpenAI's word; `None` for a failure, which is no finish.
    pub(super) fn reason(&self, has_calls: bool) -> Option<&'static str> {
        match self {
            Self::Stop if has_calls => Some("tool_calls"),
            Self::Stop => Some("stop"),
            Self::Length => Some("length"),
            Self::Filtered => Some("content_filter"),
            Self::Failed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_has_its_reason() {
        for (word, calls, reason) in [
            ("STOP", false, Some("stop")),
            ("STOP", true, Some("tool_calls")),
            ("MAX_TOKENS", true, Some("length")),
            ("SAFETY", false, Some("content_filter")),
            ("IMAGE_SAFETY", false, Some("content_filter")),
            ("A_NEW_WORD", false, Some("stop")),
            ("MALFORMED_FUNCTION_CALL", true, None),
            ("OTHER", false, None),
        ] {
            assert_eq!(Finish::read(word.as_bytes()).unwrap().reason(calls), reason, "{word}");
        }
        assert_eq!(Finish::read(b"FINISH_REASON_UNSPECIFIED"), None);
        assert_eq!(Finish::read(b""), None);
    }
}
