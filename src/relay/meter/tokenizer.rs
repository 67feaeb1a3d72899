//! A tokenizer's count of text that passed, for answers whose usage nobody reported. Always an estimate: other makers'
//! vocabularies are not OpenAI's, a chat's template is not known, and long texts are sampled. Costs milliseconds and, once a
//! process, tens of megabytes for a vocabulary: not for the request's path.

use bpe_openai::{Tokenizer, cl100k_base, o200k_base};

use super::{PromptSample, SampledText};

/// Bytes of text in a token, where there is nothing to count by. English and code are near it.
const TOKEN_BYTES_USUAL: u64 = 4;

/// What an image (or another attachment) counts as: OpenAI's price for one of 1024 × 1024 pixels at high detail.
pub const ATTACHMENT_TOKENS: u64 = 765;

/// What a message costs beside its text: its role and the marks around it.
const MESSAGE_TOKENS: u64 = 4;

/// What opens the answer at the end of a prompt.
const ANSWER_OPENING_TOKENS: u64 = 3;

/// A vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// GPT-4o and later; also the nearest to other makers' vocabularies of its size.
    O200k,
    /// GPT-4 and GPT-3.5.
    Cl100k,
}

impl Encoding {
    /// The vocabulary of the model with the provider's name `model`, or the nearest that there is.
    pub fn for_model(model: &str) -> Self {
        let name = model.rsplit('/').next().unwrap_or(model);
        let is_old = name == "gpt-4"
            || ["gpt-4-", "gpt-3.5", "gpt-35", "text-embedding"].iter().any(|prefix| name.starts_with(prefix));
        if is_old { Self::Cl100k } else { Self::O200k }
    }

    /// How many tokens `text` is.
    pub fn count(self, text: &str) -> u64 {
        self.tokenizer().count(text) as u64
    }

    /// How many tokens a sampled text is: the sample's count, scaled to the whole text and rounded up where it was cut.
    pub fn count_sample(self, text: &SampledText) -> u64 {
        let kept = text.sample().len() as u64;
        if kept == 0 {
            // Its beginning was not kept, or there is none.
            return text.total_bytes().div_ceil(TOKEN_BYTES_USUAL);
        }
        let counted = self.count(&unescape(text.sample()));
        let scaled = (u128::from(counted) * u128::from(text.total_bytes())).div_ceil(u128::from(kept));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// How many tokens a prompt is.
    pub fn count_prompt(self, prompt: &PromptSample) -> u64 {
        self.count_sample(&prompt.text)
            .saturating_add(prompt.messages.saturating_mul(MESSAGE_TOKENS))
            .saturating_add(prompt.attachments.saturating_mul(ATTACHMENT_TOKENS))
            .saturating_add(ANSWER_OPENING_TOKENS)
    }

    fn tokenizer(self) -> &'static Tokenizer {
        match self {
            Self::O200k => o200k_base(),
            Self::Cl100k => cl100k_base(),
        }
    }
}

/// The text that the inside of a JSON string stands for. Lenient, because a sample may be cut anywhere: what is cut off at the
/// end is left out, what is no character becomes U+FFFD.
fn unescape(escaped: &[u8]) -> String {
    let mut text = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        text.extend_from_slice(&rest[..at]);
        let (character, after) = match &rest[at + 1..] {
            [] => return to_text(text),
            [b'u', digits @ ..] => match unescape_unicode(digits) {
                Some(found) => found,
                None => return to_text(text),
            },
            [letter, after @ ..] => (unescape_letter(*letter), after),
        };
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = after;
    }
    text.extend_from_slice(rest);
    to_text(text)
}

/// Bytes as text; a character that is cut at the end is left out.
fn to_text(mut bytes: Vec<u8>) -> String {
    if let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn unescape_letter(letter: u8) -> char {
    match letter {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        other if other.is_ascii() => char::from(other),
        _ => char::REPLACEMENT_CHARACTER,
    }
}

/// The character of a `\u` escape, given what follows the `u`, and what is left; `None` where the text is cut.
fn unescape_unicode(digits: &[u8]) -> Option<(char, &[u8])> {
    let (high, after) = hexadecimal(digits)?;
    if !(0xD800..0xDC00).contains(&high) {
        return Some((char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER), after));
    }
    let Some(second) = after.strip_prefix(b"\\u") else {
        // Half a pair: cut where nothing or only the backslash is left, not a character otherwise.
        return (after.len() >= 2).then_some((char::REPLACEMENT_CHARACTER, after));
    };
    let (low, after_pair) = hexadecimal(second)?;
    if !(0xDC00..0xE000).contains(&low) {
        return Some((char::REPLACEMENT_CHARACTER, after));
    }
    let code = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    Some((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), after_pair))
}

fn hexadecimal(digits: &[u8]) -> Option<(u32, &[u8])> {
    let (four, after) = digits.split_at_checked(4)?;
    let code = four.iter().try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)?));
    Some((code.unwrap_or(u32::from(char::REPLACEMENT_CHARACTER)), after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::meter::sample::SAMPLE_BYTES_MAX;

    fn sampled(text: &str) -> SampledText {
        let mut sample = SampledText::new();
        sample.push(text.as_bytes());
        sample
    }

    #[test]
    fn counts_as_openais_tokenizer_does() {
        // "tiktoken is great!" is the example of OpenAI's own guide to counting: 6 tokens in both vocabularies.
        assert_eq!(Encoding::Cl100k.count("tiktoken is great!"), 6);
        assert_eq!(Encoding::O200k.count("tiktoken is great!"), 6);
        assert_eq!(Encoding::O200k.count(""), 0);
    }

    #[test]
    fn models_have_their_vocabulary() {
        for model in ["gpt-4o", "gpt-4.1-mini", "gpt-5", "o3", "deepseek-ai/DeepSeek-V3.2", "Qwen/Qwen3.5-35B-A3B", ""]
        {
            assert_eq!(Encoding::for_model(model), Encoding::O200k, "{model}");
        }
        for model in ["gpt-4", "gpt-4-turbo", "gpt-3.5-turbo", "openai/gpt-4-0613"] {
            assert_eq!(Encoding::for_model(model), Encoding::Cl100k, "{model}");
        }
    }

    #[test]
    fn escapes_are_read_as_json_reads_them() {
        let json = r#""a\"b\\c\/d\b\f\n\r\té\u00e9\u4f60\ud83d\ude00z""#;
        let expected: String = serde_json::from_str(json).unwrap();
        assert_eq!(unescape(&json.as_bytes()[1..json.len() - 1]), expected);
    }

    #[test]
    fn a_cut_sample_loses_only_its_end() {
        for cut in [&br"ok\"[..], br"ok\u00", br"ok\ud83d", br"ok\ud83d\", br"ok\ud83d\ude", b"ok\xf0\x9f", br"ok"] {
            assert_eq!(unescape(cut), "ok", "{}", String::from_utf8_lossy(cut));
        }
        assert_eq!(unescape(br"\ud83dab"), "\u{FFFD}ab");
        assert_eq!(unescape(br"\ud83d\u0061"), "\u{FFFD}a");
        assert_eq!(unescape(br"\udc00\uzzzz"), "\u{FFFD}\u{FFFD}");
        assert_eq!(unescape(b"a\xffb"), "a\u{FFFD}b");
    }

    #[test]
    fn a_long_text_is_scaled_and_rounded_up() {
        let words = "word ".repeat(SAMPLE_BYTES_MAX / 5 * 4);
        let whole = Encoding::O200k.count(&words);
        let estimate = Encoding::O200k.count_sample(&sampled(&words));
        assert!(estimate.abs_diff(whole) <= whole / 500, "{estimate} for {whole}");
        assert_eq!(Encoding::O200k.count_sample(&SampledText::new()), 0);
    }

    #[test]
    fn a_prompt_counts_its_messages_and_attachments() {
        let prompt = PromptSample { text: sampled("tiktoken is great!"), messages: 2, attachments: 1 };
        assert_eq!(Encoding::O200k.count_prompt(&prompt), 6 + 2 * 4 + 765 + 3);
    }
}
