//! The inside of JSON strings on its way from one document into another.

use memchr::memchr;

use crate::relay::json::{RawStr, write_string};

/// Appends the inside of a string as it was sent. Only where half a surrogate pair may have been written as an escape is it
/// written anew: JSON's grammar allows that, but most parsers do not.
pub(super) fn push_inside(out: &mut Vec<u8>, text: RawStr<'_>) {
    if has_surrogate_escape(text.raw()) {
        let mut quoted = Vec::with_capacity(text.raw().len() + 2);
        write_string(&mut quoted, &String::from_utf8_lossy(&text.decode()));
        out.extend_from_slice(&quoted[1..quoted.len() - 1]);
    } else {
        out.extend_from_slice(text.raw());
    }
}

/// The same with its quotes.
pub(super) fn push_string(out: &mut Vec<u8>, text: RawStr<'_>) {
    out.push(b'"');
    push_inside(out, text);
    out.push(b'"');
}

/// Appends a number.
pub(super) fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends JSON text to the inside of a string, without the white space between its tokens.
pub(super) fn push_stringified(out: &mut Vec<u8>, json: &[u8]) {
    let mut in_string = false;
    let mut escaped = false;
    for &byte in json {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' if !in_string => continue,
            b'"' => {
                in_string ^= !escaped;
                out.push(b'\\');
            }
            b'\\' => out.push(b'\\'),
            _ => {}
        }
        escaped = byte == b'\\' && !escaped;
        out.push(byte);
    }
}

/// Whether there is nothing to read in a string.
pub(super) fn is_blank(text: RawStr<'_>) -> bool {
    match text.raw().first() {
        None => true,
        // Plain ASCII that prints: nearly every text.
        Some(first) if first.is_ascii_graphic() && *first != b'\\' => false,
        Some(_) => String::from_utf8_lossy(&text.decode()).trim().is_empty(),
    }
}

fn has_surrogate_escape(raw: &[u8]) -> bool {
    let mut rest = raw;
    while let Some(backslash) = memchr(b'\\', rest) {
        if let [b'u', b'd' | b'D', b'8' | b'9' | b'a'..=b'f' | b'A'..=b'F', ..] = &rest[backslash + 1..] {
            return true;
        }
        rest = rest.get(backslash + 2..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::relay::json::Cursor;

    fn raw(json: &[u8]) -> RawStr<'_> {
        Cursor::new(json).string().unwrap()
    }

    #[test]
    fn what_is_sent_stays_as_it_is_but_for_halves_of_pairs() {
        for (sent, pushed) in [
            (r#""a\u00e9\/\n\\ud83d""#, r#""a\u00e9\/\n\\ud83d""#),
            (r#""\ud83d\ude00""#, r#""😀""#),
            (r#""a\uD83Db""#, "\"a\u{FFFD}b\""),
        ] {
            let mut out = Vec::new();
            push_string(&mut out, raw(sent.as_bytes()));
            assert_eq!(String::from_utf8_lossy(&out), pushed);
        }
    }

    #[test]
    fn a_document_becomes_a_string_without_its_white_space() {
        let mut out = Vec::new();
        push_stringified(&mut out, br#" { "a b" : [ 1.50 , "\\\" x\n" ] } "#);
        assert_eq!(String::from_utf8_lossy(&out), r#"{\"a b\":[1.50,\"\\\\\\\" x\\n\"]}"#);
    }

    #[test]
    fn blank_is_what_has_nothing_to_read() {
        for (text, blank) in [(r#""""#, true), (r#"" \n\t\u00a0""#, true), (r#"" \n.""#, false), (r#""é""#, false)] {
            assert_eq!(is_blank(raw(text.as_bytes())), blank, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_number_is_its_digits(number: u64) {
            let mut out = Vec::new();
            push_number(&mut out, number);
            prop_assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }

        #[test]
        fn a_string_of_json_reads_as_the_same_json(text in r#"[a-z"\\ \n{}é]{0,12}"#, number: u32) {
            let json = serde_json::to_string_pretty(&serde_json::json!({"k": [number, text]})).unwrap();
            let mut out = vec![b'"'];
            push_stringified(&mut out, json.as_bytes());
            out.push(b'"');
            let inside: String = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(&inside, &serde_json::from_str::<serde_json::Value>(&json).unwrap().to_string());
        }
    }
}
