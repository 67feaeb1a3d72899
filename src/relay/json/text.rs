//! Strings as they stand in JSON text: finding their end, reading them, writing them.

use std::borrow::Cow;

/// The inside of a JSON string, as it was sent: without its quotes, with its escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawStr<'a> {
    raw: &'a [u8],
    escaped: bool,
}

impl<'a> RawStr<'a> {
    pub(super) fn new(raw: &'a [u8], escaped: bool) -> Self {
        Self { raw, escaped }
    }

    /// The bytes as sent.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// What the string says: its escapes resolved. Half a surrogate pair becomes U+FFFD. Borrowed where there was no escape.
    pub fn decode(&self) -> Cow<'a, [u8]> {
        if self.escaped { Cow::Owned(unescape(self.raw)) } else { Cow::Borrowed(self.raw) }
    }
}

/// How many bytes of a string's inside come before the first quote, backslash or control character.
#[inline]
pub(super) fn plain_bytes(bytes: &[u8]) -> usize {
    let mut at = 0;
    // Most strings are a few bytes: words of eight find their end exactly.
    while let Some(word) = bytes.get(at..at + 8).and_then(|word| <[u8; 8]>::try_from(word).ok()) {
        let specials = specials(u64::from_le_bytes(word));
        if specials != 0 {
            return at + (specials.trailing_zeros() / 8) as usize;
        }
        at += 8;
        if at == 32 {
            // A long one: prose, or the base64 of an image. Blocks that the compiler turns into vector instructions.
            at += bytes[at..].chunks_exact(64).take_while(|block| !block_has_special(block)).count() * 64;
        }
    }
    at + bytes[at..].iter().position(|&byte| is_special(byte)).unwrap_or(bytes.len() - at)
}

fn is_special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

fn block_has_special(block: &[u8]) -> bool {
    block.iter().fold(false, |found, &byte| found | is_special(byte))
}

/// The high bit of each byte that is special. Bytes above the lowest that is marked may be marked wrongly, for a
/// subtraction borrows from them; only the lowest mark is used.
fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    let equals = |byte: u8| {
        let zeroed = word ^ (ONES * u64::from(byte));
        zeroed.wrapping_sub(ONES) & !zeroed
    };
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (equals(b'"') | equals(b'\\') | control) & HIGH
}

fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(backslash) = memchr::memchr(b'\\', rest) {
        text.extend_from_slice(&rest[..backslash]);
        let Some(&kind) = rest.get(backslash + 1) else { return text };
        rest = &rest[backslash + 2..];
        match kind {
            b'b' => text.push(8),
            b'f' => text.push(12),
            b'n' => text.push(b'\n'),
            b'r' => text.push(b'\r'),
            b't' => text.push(b'\t'),
            b'u' => rest = push_unicode(&mut text, rest),
            other => text.push(other),
        }
    }
    text.extend_from_slice(rest);
    text
}

/// Resolves what follows `\u`, and the second half of a pair where there is one; the rest is returned.
fn push_unicode<'a>(text: &mut Vec<u8>, rest: &'a [u8]) -> &'a [u8] {
    let Some(first) = hex(rest) else { return rest };
    let mut rest = &rest[4..];
    let mut code = first;
    if (0xD800..0xDC00).contains(&first)
        && let Some(second) = rest.strip_prefix(b"\\u").and_then(hex)
        && (0xDC00..0xE000).contains(&second)
    {
        code = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
        rest = &rest[6..];
    }
    let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    rest
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.get(..4)?.iter().try_fold(0, |code, &digit| Some(code << 4 | char::from(digit).to_digit(16)?))
}

/// Appends text as a JSON string, with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let plain = plain_bytes(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some(&special) = rest.get(plain) else { break };
        match special {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', special]),
            b'\n' => out.extend_from_slice(b"\\n"),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
        rest = &rest[plain + 1..];
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn half_a_surrogate_pair_is_a_replacement_character() {
        assert_eq!(unescape(br"a\ud83dz"), "a\u{FFFD}z".as_bytes());
        assert_eq!(unescape(br"\ud83d\ude00"), "😀".as_bytes());
        assert_eq!(unescape(br"\ud83d\u0041"), "\u{FFFD}A".as_bytes());
    }

    proptest! {
        #[test]
        fn the_first_special_is_found_wherever_it_stands(bytes in proptest::collection::vec(any::<u8>(), 0..40), pad in 0usize..200) {
            let mut text = vec![b'x'; pad];
            text.extend_from_slice(&bytes);
            let expected = text.iter().position(|&byte| is_special(byte)).unwrap_or(text.len());
            prop_assert_eq!(plain_bytes(&text), expected);
        }

        #[test]
        fn what_is_written_reads_the_same(text: String) {
            let mut json = Vec::new();
            write_string(&mut json, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text.clone());
            prop_assert_eq!(unescape(&json[1..json.len() - 1]), text.as_bytes());
        }

        #[test]
        fn any_bytes_unescape_without_panic(raw: Vec<u8>) {
            unescape(&raw);
        }
    }
}
