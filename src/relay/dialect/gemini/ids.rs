//! The ids of tool calls, where Gemini gives none.

/// What the relay's own ids begin with. Nothing that a provider makes up begins so.
const MINTED: &str = "call_tg_";

/// The most characters of the answer's id that a call's has. The whole is then within the 40 that OpenAI takes, with
/// room for five digits behind them.
const ANSWER_CHARS_MAX: usize = 26;

/// Mints the ids of one answer's calls: from the answer's own id, so that they are unique, and the call's number in it.
#[derive(Debug, Clone)]
pub(super) struct Ids {
    answer: Box<str>,
    minted: u32,
}

impl Ids {
    /// Of the answer with that id.
    pub(super) fn new(answer_id: &str) -> Self {
        let plain: Vec<char> = answer_id.chars().filter(char::is_ascii_alphanumeric).collect();
        // An id's end is what tells it from others.
        let end = &plain[plain.len().saturating_sub(ANSWER_CHARS_MAX)..];
        Self { answer: end.iter().collect(), minted: 0 }
    }

    /// The next id: letters, digits and underscores.
    pub(super) fn mint(&mut self) -> String {
        let id = format!("{MINTED}{}_{}", self.answer, self.minted);
        self.minted += 1;
        id
    }
}

/// Whether the relay has made up the id.
pub(super) fn is_minted(id: &[u8]) -> bool {
    id.starts_with(MINTED.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_by_answer_and_number_and_fit_where_openais_do() {
        let mut ids = Ids::new("chatcmpl-0198c7f2-1b7a-7c3d-8e4f-0123456789ab");
        let first = ids.mint();
        assert_eq!(first, "call_tg_f21b7a7c3d8e4f0123456789ab_0");
        assert_eq!(ids.mint(), "call_tg_f21b7a7c3d8e4f0123456789ab_1");
        assert!(first.len() + 4 <= 40 && is_minted(first.as_bytes()));
        assert_ne!(Ids::new("chatcmpl-0198c7f2-1b7a-7c3d-8e4f-0123456789ac").mint(), first);
        assert!(!is_minted(b"call_abc") && !is_minted(b"dv8szvqe"));
        assert_eq!(Ids::new("é").mint(), "call_tg__0");
    }
}
