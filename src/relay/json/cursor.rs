//! The strict walk over a JSON text that is whole.

use std::ops::Range;

use super::DEPTH_MAX;
use super::fault::{Expected, Fault, What};
use super::text::{RawStr, simple_bytes};

/// Walks JSON text and lends what it finds. After an error the cursor is of no more use.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How many objects and arrays are open around `at`.
    depth: usize,
}

/// What a value is, told from its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// A digit or a minus.
    Number,
    /// `true`
    True,
    /// `false`
    False,
    /// `null`
    Null,
}

/// The walk through one object's members; see [`Cursor::next_member`].
#[derive(Debug)]
pub struct Members {
    begun: bool,
}

/// The walk through one array's items; see [`Cursor::next_item`].
#[derive(Debug)]
pub struct Items {
    begun: bool,
}

impl<'a> Cursor<'a> {
    /// At the beginning of a text. The text should be UTF-8; a cursor does not check that.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// Inside of a text, before a value that begins there: what is found is told by its place in the whole.
    pub fn within(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, depth: 0 }
    }

    /// Bytes from the beginning of the text.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Passes white space, and tells what the next value is.
    pub fn kind(&mut self) -> Result<Kind, Fault> {
        match self.token()? {
            b'{' => Ok(Kind::Object),
            b'[' => Ok(Kind::Array),
            b'"' => Ok(Kind::String),
            b'-' | b'0'..=b'9' => Ok(Kind::Number),
            b't' => Ok(Kind::True),
            b'f' => Ok(Kind::False),
            b'n' => Ok(Kind::Null),
            _ => Err(self.unexpected(Expected::Value)),
        }
    }

    /// Enters an object.
    pub fn object(&mut self) -> Result<Members, Fault> {
        self.open(b'{', Expected::Object)?;
        Ok(Members { begun: false })
    }

    /// The key of the next member, with the cursor before its value, which must then be taken; `None` behind the object.
    pub fn next_member(&mut self, members: &mut Members) -> Result<Option<RawStr<'a>>, Fault> {
        if !self.separator(&mut members.begun, b'}', Expected::ObjectEnd)? {
            return Ok(None);
        }
        if self.token()? != b'"' {
            return Err(self.unexpected(Expected::Key));
        }
        let key = self.string()?;
        if self.token()? != b':' {
            return Err(self.unexpected(Expected::Colon));
        }
        self.at += 1;
        self.white_space();
        Ok(Some(key))
    }

    /// Enters an array.
    pub fn array(&mut self) -> Result<Items, Fault> {
        self.open(b'[', Expected::Array)?;
        Ok(Items { begun: false })
    }

    /// Whether there is a next item; if so the cursor is before it, and it must then be taken. Else behind the array.
    pub fn next_item(&mut self, items: &mut Items) -> Result<bool, Fault> {
        self.separator(&mut items.begun, b']', Expected::ArrayEnd)
    }

    /// Takes a string.
    pub fn string(&mut self) -> Result<RawStr<'a>, Fault> {
        if self.token()? != b'"' {
            return Err(self.unexpected(Expected::String));
        }
        let bytes = self.bytes;
        let start = self.at + 1;
        let mut at = start;
        let mut escaped = false;
        loop {
            let (simple, has_escapes) = simple_bytes(&bytes[at..]);
            at += simple;
            escaped |= has_escapes;
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    at += self.escape(at)?;
                }
                Some(_) => return Err(Fault { at, what: What::Unexpected(Expected::NoControl) }),
                None => return Err(Fault { at, what: What::Ended }),
            }
        }
        self.at = at + 1;
        Ok(RawStr::new(&bytes[start..at], escaped))
    }

    /// Takes a value of any kind, and tells where it stands, from its first byte to behind its last.
    pub fn span(&mut self) -> Result<Range<usize>, Fault> {
        let kind = self.kind()?;
        if matches!(kind, Kind::Object | Kind::Array) {
            return self.skip_nested();
        }
        let start = self.at;
        self.scalar(kind)?;
        Ok(start..self.at)
    }

    /// Takes a value of any kind.
    pub fn skip(&mut self) -> Result<(), Fault> {
        self.span().map(drop)
    }

    /// Takes a value of any kind, and lends its text.
    pub fn raw(&mut self) -> Result<&'a [u8], Fault> {
        let span = self.span()?;
        Ok(&self.bytes[span])
    }

    /// Checks that nothing but white space is left.
    pub fn end(&mut self) -> Result<(), Fault> {
        self.white_space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.unexpected(Expected::End)) }
    }

    fn open(&mut self, bracket: u8, expected: Expected) -> Result<(), Fault> {
        if self.token()? != bracket {
            return Err(self.unexpected(expected));
        }
        if self.depth == DEPTH_MAX {
            return Err(Fault { at: self.at, what: What::TooDeep });
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// Steps to the next member or item; `false` when the closing bracket was taken instead.
    #[inline]
    fn separator(&mut self, begun: &mut bool, close: u8, expected: Expected) -> Result<bool, Fault> {
        let token = self.token()?;
        if token == close {
            self.at += 1;
            self.depth = self.depth.saturating_sub(1);
            return Ok(false);
        }
        if *begun {
            if token != b',' {
                return Err(self.unexpected(expected));
            }
            self.at += 1;
            self.white_space();
        }
        *begun = true;
        Ok(true)
    }

    /// Takes an object or an array with all that is in it. One bit a level remembers which of the two is open there, so
    /// that no input, however deep, costs stack or heap.
    fn skip_nested(&mut self) -> Result<Range<usize>, Fault> {
        let start = self.at;
        let outer = self.depth;
        let mut in_object: u128 = 0;
        loop {
            // Before a value.
            let opened = match self.token()? {
                b'{' => Some(true),
                b'[' => Some(false),
                _ => None,
            };
            if let Some(object) = opened {
                if self.depth == DEPTH_MAX {
                    return Err(Fault { at: self.at, what: What::TooDeep });
                }
                self.at += 1;
                self.depth += 1;
                in_object = in_object << 1 | u128::from(object);
                if self.token()? != if object { b'}' } else { b']' } {
                    self.nested_key(object)?;
                    continue;
                }
            } else {
                let kind = self.kind()?;
                self.scalar(kind)?;
            }
            // Behind a value: as many brackets close as may, then a comma.
            loop {
                if self.depth == outer {
                    return Ok(start..self.at);
                }
                let object = in_object & 1 == 1;
                match (self.token()?, object) {
                    (b'}', true) | (b']', false) => {
                        self.at += 1;
                        self.depth -= 1;
                        in_object >>= 1;
                    }
                    (b',', _) => {
                        self.at += 1;
                        self.nested_key(object)?;
                        break;
                    }
                    (_, true) => return Err(self.unexpected(Expected::ObjectEnd)),
                    (_, false) => return Err(self.unexpected(Expected::ArrayEnd)),
                }
            }
        }
    }

    /// In an object, takes a key and its colon.
    fn nested_key(&mut self, object: bool) -> Result<(), Fault> {
        if object {
            if self.token()? != b'"' {
                return Err(self.unexpected(Expected::Key));
            }
            self.string()?;
            if self.token()? != b':' {
                return Err(self.unexpected(Expected::Colon));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Takes a string, a number or a literal.
    fn scalar(&mut self, kind: Kind) -> Result<(), Fault> {
        match kind {
            Kind::String => self.string().map(drop),
            Kind::Number => self.number(),
            Kind::True => self.literal(b"true"),
            Kind::False => self.literal(b"false"),
            Kind::Null => self.literal(b"null"),
            Kind::Object | Kind::Array => Err(self.unexpected(Expected::Value)),
        }
    }

    fn literal(&mut self, text: &'static [u8]) -> Result<(), Fault> {
        if !self.bytes[self.at..].starts_with(text) {
            return Err(self.unexpected(Expected::Literal));
        }
        self.at += text.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let count = self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(if self.at == self.bytes.len() { self.ended() } else { self.unexpected(Expected::Digit) });
        }
        self.at += count;
        Ok(())
    }

    /// How long the escape is whose backslash stands at `at`.
    fn escape(&self, at: usize) -> Result<usize, Fault> {
        match self.bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
            Some(b'u') => match self.bytes.get(at + 2..at + 6) {
                Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => Ok(6),
                Some(_) => Err(Fault { at, what: What::Unexpected(Expected::Hexadecimal) }),
                None => Err(Fault { at: self.bytes.len(), what: What::Ended }),
            },
            Some(_) => Err(Fault { at, what: What::Unexpected(Expected::Escape) }),
            None => Err(Fault { at: self.bytes.len(), what: What::Ended }),
        }
    }

    #[inline]
    fn white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Passes white space, and shows the byte behind it.
    #[inline]
    fn token(&mut self) -> Result<u8, Fault> {
        self.white_space();
        self.peek().ok_or_else(|| self.ended())
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn ended(&self) -> Fault {
        Fault { at: self.at, what: What::Ended }
    }

    fn unexpected(&self, expected: Expected) -> Fault {
        Fault { at: self.at, what: What::Unexpected(expected) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &[u8]) -> Result<(), Fault> {
        let mut cursor = Cursor::new(text);
        cursor.skip()?;
        cursor.end()
    }

    /// The same walk by members and items instead of by `skip`.
    fn walk(cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        match cursor.kind()? {
            Kind::Object => {
                let mut members = cursor.object()?;
                while cursor.next_member(&mut members)?.is_some() {
                    walk(cursor)?;
                }
            }
            Kind::Array => {
                let mut items = cursor.array()?;
                while cursor.next_item(&mut items)? {
                    walk(cursor)?;
                }
            }
            _ => cursor.skip()?,
        }
        Ok(())
    }

    fn is_json(text: &[u8]) -> bool {
        serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
    }

    #[test]
    fn a_hundred_thousand_arrays_are_too_deep_and_nothing_else() {
        let fault = check("[".repeat(100_000).as_bytes()).unwrap_err();
        assert_eq!(fault, Fault { at: DEPTH_MAX, what: What::TooDeep });
        let deepest = format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert_eq!(check(deepest.as_bytes()), Ok(()));
    }

    #[test]
    fn a_member_is_lent_where_it_stands() {
        let text = br#" { "a" : [1, {"b":2}] , "c":"d\n" } "#;
        let mut cursor = Cursor::new(text);
        let mut members = cursor.object().unwrap();
        assert_eq!(cursor.next_member(&mut members).unwrap().unwrap().raw(), b"a");
        assert_eq!(cursor.raw().unwrap(), br#"[1, {"b":2}]"#);
        assert_eq!(cursor.next_member(&mut members).unwrap().unwrap().raw(), b"c");
        assert_eq!(&*cursor.string().unwrap().decode(), b"d\n");
        assert!(cursor.next_member(&mut members).unwrap().is_none());
        assert_eq!(cursor.end(), Ok(()));
    }

    #[test]
    fn it_takes_what_json_is_and_nothing_more() {
        let texts: [&str; 34] = [
            "",
            " ",
            "null",
            "nul",
            "nullx",
            "true false",
            "0",
            "01",
            "-",
            "-0",
            "1.",
            "1.5e",
            "1e+9",
            ".5",
            "+1",
            "\"",
            "\"\\u12g4\"",
            "\"\\x\"",
            "\"\u{1}\"",
            "[",
            "[]",
            "[,]",
            "[1,]",
            "[1 2]",
            "{",
            "{}",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{1:2}",
            "[}",
            "{\"a\":[]]",
            "[[[]],{\"x\":{}}]",
        ];
        for text in texts {
            assert_eq!(check(text.as_bytes()).is_ok(), is_json(text.as_bytes()), "{text:?}");
            let mut cursor = Cursor::new(text.as_bytes());
            let walked = walk(&mut cursor).and_then(|()| cursor.end());
            assert_eq!(walked, check(text.as_bytes()), "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn it_agrees_with_serde_json(text in r#"[\[\]{}",:\\u0-9eE.+\-truefalsn \t]{0,24}"#) {
            prop_assert_eq!(check(text.as_bytes()).is_ok(), is_json(text.as_bytes()), "{}", text);
            let mut cursor = Cursor::new(text.as_bytes());
            let walked = walk(&mut cursor).and_then(|()| cursor.end());
            prop_assert_eq!(walked.is_ok(), check(text.as_bytes()).is_ok());
        }

        #[test]
        fn any_bytes_are_walked_without_panic(bytes: Vec<u8>) {
            let _ = check(&bytes);
            let _ = walk(&mut Cursor::new(&bytes));
        }
    }
}
