//! Bounded samples of text that passes by, for counting tokens when the provider reports no usage.
//!
//! The text is kept as it stands on the wire, as the inside of JSON strings with its escapes; it is unescaped only if it is
//! ever counted. What is past the bound is counted in bytes and not kept, so that a long answer costs no more memory than
//! a short one. Nothing is parsed strictly here: a sample is an estimate's input, and the request itself has been checked.

use memchr::{memchr, memchr2};

/// The most bytes that one sample keeps. 8 KiB is about 2,000 tokens: most answers whole, and enough of the others.
pub const SAMPLE_BYTES_MAX: usize = 8 * 1024;

/// The beginning of a text, and how long the whole of it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SampledText {
    sample: Vec<u8>,
    total_bytes: u64,
}

impl SampledText {
    /// No text yet; allocates nothing.
    pub const fn new() -> Self {
        Self { sample: Vec::new(), total_bytes: 0 }
    }

    /// Takes the next piece: the inside of a JSON string, or a part of it, without its quotes and with its escapes.
    pub fn push(&mut self, escaped: &[u8]) {
        let free = SAMPLE_BYTES_MAX - self.sample.len();
        self.sample.extend_from_slice(&escaped[..escaped.len().min(free)]);
        self.total_bytes = self.total_bytes.saturating_add(escaped.len() as u64);
    }

    /// The bytes kept, at most [`SAMPLE_BYTES_MAX`], still escaped. May end inside an escape or a character.
    pub fn sample(&self) -> &[u8] {
        &self.sample
    }

    /// The bytes of the whole text, escaped.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Says how long the whole text is, where only its beginning was pushed.
    pub fn is_of(&mut self, total_bytes: u64) {
        self.total_bytes = self.total_bytes.max(total_bytes);
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.total_bytes == 0
    }
}

/// What a prompt's tokens are estimated from: its text, its messages, and what in it is not text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptSample {
    /// The text of all messages.
    pub text: SampledText,
    /// How many messages there are; each costs a few tokens of its own.
    pub messages: u64,
    /// Images, sounds and files, whose bytes are not text.
    pub attachments: u64,
}

/// The beginning of a request's `messages`, and what is known of all of it: what a sample is made of, if it ever has to be. Most
/// providers report what they have read, so no request waits for the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptHead {
    json: Box<[u8]>,
    /// Bytes of text in the whole prompt, as sent.
    pub text_bytes: u64,
    /// How many messages there are.
    pub messages: u64,
    /// Images, sounds and files.
    pub attachments: u64,
}

impl PromptHead {
    /// Keeps the beginning of that raw JSON: a copy, at most [`SAMPLE_BYTES_MAX`].
    pub fn new(json: &[u8], text_bytes: u64, messages: u64, attachments: u64) -> Self {
        let json = json[..json.len().min(SAMPLE_BYTES_MAX)].into();
        Self { json, text_bytes, messages, attachments }
    }

    /// The sample. Where the beginning has no text, because it is an image's, there is nothing but the length.
    pub fn sample(&self) -> PromptSample {
        let mut sample = PromptSample::of_messages(&self.json);
        sample.text.is_of(self.text_bytes);
        PromptSample { messages: self.messages, attachments: self.attachments, ..sample }
    }
}

impl PromptSample {
    /// Samples a request's `messages`, as raw JSON. All string values are text, except `data:` URIs, the bytes of a sound,
    /// and the names of part types. JSON that breaks off is sampled as far as it goes.
    pub fn of_messages(json: &[u8]) -> Self {
        let mut sample = Self::default();
        let mut key: &[u8] = b"";
        let mut rest = json;
        while let Some(quote) = memchr(b'"', rest) {
            let (string, after) = split_string(&rest[quote + 1..]);
            rest = after.trim_ascii_start();
            if rest.first() == Some(&b':') {
                key = string;
            } else {
                sample.push_value(key, string);
            }
        }
        sample
    }

    fn push_value(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"role" => self.messages += 1,
            b"type" => self.attachments += u64::from(matches!(value, b"image_url" | b"input_audio" | b"file")),
            b"data" => {}
            _ if value.starts_with(b"data:") => {}
            _ => self.text.push(value),
        }
    }
}

/// The inside of a JSON string and what follows its closing quote.
fn split_string(json: &[u8]) -> (&[u8], &[u8]) {
    let mut from = 0;
    while let Some(found) = memchr2(b'"', b'\\', json.get(from..).unwrap_or_default()) {
        let at = from + found;
        if json[at] == b'"' {
            return (&json[..at], &json[at + 1..]);
        }
        from = at + 2;
    }
    (json, b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_beginning_and_counts_the_rest() {
        let mut text = SampledText::new();
        assert!(text.is_empty());
        text.push(&[b'a'; SAMPLE_BYTES_MAX - 1]);
        text.push(b"bcd");
        text.push(b"e");
        assert_eq!(text.sample().len(), SAMPLE_BYTES_MAX);
        assert_eq!(text.sample().last(), Some(&b'b'));
        assert_eq!(text.total_bytes(), SAMPLE_BYTES_MAX as u64 + 3);
    }

    #[test]
    fn a_prompts_text_is_its_string_values() {
        let json = br#"[ {"role" : "system", "content":"Be \"brief\"\\"},
            {"role":"user","content":[{"type":"text","text":"What is this?"},
              {"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},
              {"type":"input_audio","input_audio":{"data":"QUJD","format":"wav"}}]},
            {"role":"assistant","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]}]"#;
        let sample = PromptSample::of_messages(json);
        assert_eq!(sample.messages, 3);
        assert_eq!(sample.attachments, 2);
        let text = String::from_utf8_lossy(sample.text.sample()).into_owned();
        assert_eq!(text, r#"Be \"brief\"\\What is this?wavc1f{\"a\":1}"#);
    }

    #[test]
    fn broken_json_is_sampled_as_far_as_it_goes() {
        for json in [&b""[..], b"\"", b"[{\"role\"", b"[{\"content\":\"cut \\", b"[{\"content\":\"cut \\\""] {
            let _ = PromptSample::of_messages(json);
        }
        assert_eq!(PromptSample::of_messages(b"[{\"content\":\"half of").text.sample(), b"half of");
    }
}
