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
            at += clean_blocks(&bytes[at..]);
        }
    }
    at + bytes[at..].iter().position(|&byte| is_special(byte)).unwrap_or(bytes.len() - at)
}

/// How many bytes of a string's inside come before its quote, or before what is to be looked at more closely: a control character, or
/// an escape that is not of two letters. Says whether there are escapes among them.
///
/// Prose in JSON has an escape every few words, and code one every few signs, so words of eight are gone on with behind each.
pub(super) fn simple_bytes(bytes: &[u8]) -> (usize, bool) {
    let (mut at, mut escaped, mut clean) = (0, false, 0);
    while let Some(word) = bytes.get(at..at + 8).and_then(|word| <[u8; 8]>::try_from(word).ok()) {
        let mut marks = all_specials(u64::from_le_bytes(word));
        if marks == 0 {
            at += 8;
            clean += 1;
            if clean == 4 {
                at += clean_blocks(&bytes[at..]);
                clean = 0;
            }
            continue;
        }
        clean = 0;
        let start = at;
        while marks != 0 {
            let place = start + (marks.trailing_zeros() / 8) as usize;
            if !is_two_letter_escape(&bytes[place..]) {
                return (place, escaped);
            }
            escaped = true;
            at = place + 2;
            marks = u64::MAX.checked_shl(8 * (at - start) as u32).map_or(0, |behind| marks & behind);
        }
        at = at.max(start + 8);
    }
    while at < bytes.len() && (!is_special(bytes[at]) || is_two_letter_escape(&bytes[at..])) {
        let is_escape = bytes[at] == b'\\';
        escaped |= is_escape;
        at += 1 + usize::from(is_escape);
    }
    (at, escaped)
}

fn is_two_letter_escape(bytes: &[u8]) -> bool {
    matches!(bytes, [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..])
}

/// The high bit of each byte that is special, and of no other.
fn all_specials(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    // Sums that carry into no other byte: the high bit stays 0 where the rest of the byte is less than what was added leaves room for.
    let equals = |byte: u8| {
        let differs = word ^ (ONES * u64::from(byte));
        ((differs & !HIGH) + !HIGH) | differs
    };
    let printable = ((word & !HIGH) + ONES * 0x60) | word;
    !(equals(b'"') & equals(b'\\') & printable) & HIGH
}

/// How many bytes there are before the first block with something special in it. A long text: prose, or the base64 of an image. Blocks
/// that the compiler turns into vector instructions.
fn clean_blocks(bytes: &[u8]) -> usize {
    bytes.chunks_exact(64).take_while(|block| !block_has_special(block)).count() * 64
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
        fn two_letter_escapes_are_passed_and_nothing_else_is(
            pieces in proptest::collection::vec(
                prop_oneof![
                    4 => "[a-zé]{0,70}", 4 => r#"\\["\\/bfnrt]"#, 1 => r#"\\u00e9"#, 1 => r#"\\[a-z ]?"#, 1 => "\"", 1 => "[\u{0}-\u{1f}]",
                ],
                0..12,
            )
        ) {
            let text = pieces.concat();
            let (mut rest, mut escaped) = (text.as_bytes(), false);
            loop {
                match rest {
                    [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', after @ ..] => (rest, escaped) = (after, true),
                    [b'"' | b'\\' | 0..0x20, ..] | [] => break,
                    [_, after @ ..] => rest = after,
                }
            }
            prop_assert_eq!(simple_bytes(text.as_bytes()), (text.len() - rest.len(), escaped));
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
