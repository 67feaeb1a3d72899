//! `data:` URIs: what they hold, and whether it is what they say.

use percent_encoding::percent_decode_str;

/// A `data:` URI, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataUri<'a> {
    /// Type and subtype, without parameters; `text/plain` where there is none.
    pub(super) media_type: &'a str,
    pub(super) is_base64: bool,
    pub(super) data: &'a str,
}

impl<'a> DataUri<'a> {
    /// `None` if it is no such URI.
    pub(super) fn parse(uri: &'a str) -> Option<Self> {
        let (scheme, rest) = uri.split_at_checked(5)?;
        if !scheme.eq_ignore_ascii_case("data:") {
            return None;
        }
        let (head, data) = rest.split_once(',')?;
        let mut parameters = head.split(';').map(str::trim);
        let media_type = parameters.next().filter(|kind| !kind.is_empty()).unwrap_or("text/plain");
        let is_base64 = parameters.next_back().is_some_and(|last| last.eq_ignore_ascii_case("base64"));
        Some(Self { media_type, is_base64, data })
    }

    /// Whether its type is of that family, `image` say.
    pub(super) fn is_of(&self, family: &str) -> bool {
        let (kind, _) = self.media_type.split_once('/').unwrap_or((self.media_type, ""));
        kind.eq_ignore_ascii_case(family)
    }

    /// The media type of an image, by its first bytes, whatever the URI says: clients guess it from file names.
    pub(super) fn image_type(&self) -> Option<&'static str> {
        let head = self.data.get(..16)?;
        let bytes = decode_base64(head)?;
        Some(match &bytes[..] {
            [0xFF, 0xD8, 0xFF, ..] => "image/jpeg",
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => "image/png",
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => "image/gif",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
            _ => return None,
        })
    }

    /// The text that it holds; `None` if it is none.
    pub(super) fn text(&self) -> Option<String> {
        if self.is_base64 {
            return String::from_utf8(decode_base64(self.data)?).ok();
        }
        percent_decode_str(self.data).decode_utf8().ok().map(Into::into)
    }
}

/// Decodes base64 of the usual alphabet. White space is passed over, padding may be missing.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0u32, 0);
    for &letter in text.trim_end_matches(['=', '\n', '\r', ' ']).as_bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'\n' | b'\r' | b' ' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    // Six bits left over are a letter alone, which is no byte.
    (count < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_taken_apart() {
        for (uri, media_type, is_base64, data) in [
            ("data:image/png;base64,AAAA", "image/png", true, "AAAA"),
            ("DATA:text/plain;charset=utf-8;BASE64,AA,A", "text/plain", true, "AA,A"),
            ("data:,a%20b", "text/plain", false, "a%20b"),
            ("data:text/html;charset=utf-8,<p>", "text/html", false, "<p>"),
        ] {
            assert_eq!(DataUri::parse(uri), Some(DataUri { media_type, is_base64, data }), "{uri}");
        }
        for uri in ["", "data", "data:", "data:image/png;base64", "https://a/b", "dätä:,"] {
            assert_eq!(DataUri::parse(uri), None, "{uri}");
        }
    }

    #[test]
    fn an_image_is_known_by_its_first_bytes() {
        for (data, expected) in [
            ("iVBORw0KGgoAAAANSUhEUg==", Some("image/png")),
            ("/9j/4AAQSkZJRgABAQAAAQ==", Some("image/jpeg")),
            ("R0lGODlhAQABAIAAAAAAAA==", Some("image/gif")),
            ("UklGRiQAAABXRUJQVlA4IBg=", Some("image/webp")),
            ("UklGRiQAAABXQVZFVlA4IBg=", None),
            ("JVBERi0xLjMKJcTl8uXrpw==", None),
            ("iVBO", None),
            ("ééééééééééééééééé", None),
        ] {
            let uri = format!("data:image/png;base64,{data}");
            assert_eq!(DataUri::parse(&uri).unwrap().image_type(), expected, "{data}");
        }
    }

    #[test]
    fn text_is_decoded() {
        let text = |uri: &str| DataUri::parse(uri).unwrap().text();
        assert_eq!(text("data:text/plain;base64,R3LDvMOf\nZQ=="), Some("Grüße".into()));
        assert_eq!(text("data:text/plain;base64,R3LDvMOfZQ"), Some("Grüße".into()));
        assert_eq!(text("data:,Gr%C3%BC%C3%9Fe"), Some("Grüße".into()));
        for uri in ["data:;base64,/w==", "data:;base64,A", "data:;base64,R-_x", "data:,%FF"] {
            assert_eq!(text(uri), None, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let mut text = String::new();
            for group in bytes.chunks(3) {
                let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
                for place in 0..4 {
                    let letter = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
                    text.push(if place > group.len() { '=' } else { char::from(letter) });
                }
            }
            prop_assert_eq!(decode_base64(&text), Some(bytes));
        }

        #[test]
        fn any_text_is_taken_apart_without_panic(uri: String) {
            if let Some(uri) = DataUri::parse(&format!("data:{uri}")) {
                let _ = (uri.image_type(), uri.text());
            }
        }
    }
}
