//! A schema as it came, as a tree. Only as large as [`super::SCHEMA_BYTES_MAX`] lets it be.

use crate::relay::json::{Cursor, Fault, Kind, RawStr};

/// A value of a schema.
#[derive(Debug)]
pub(super) enum Node<'a> {
    Object(Vec<(RawStr<'a>, Node<'a>)>),
    Array(Vec<Node<'a>>),
    /// A string with its quotes, a number, or a word.
    Scalar(&'a [u8]),
}

impl<'a> Node<'a> {
    /// Takes a value. The cursor's own bound on nesting is the recursion's.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        match cursor.kind()? {
            Kind::Object => {
                let mut inside = Vec::new();
                let mut members = cursor.object()?;
                while let Some(key) = cursor.next_member(&mut members)? {
                    inside.push((key, Self::read(cursor)?));
                }
                Ok(Self::Object(inside))
            }
            Kind::Array => {
                let mut inside = Vec::new();
                let mut items = cursor.array()?;
                while cursor.next_item(&mut items)? {
                    inside.push(Self::read(cursor)?);
                }
                Ok(Self::Array(inside))
            }
            _ => Ok(Self::Scalar(cursor.raw()?)),
        }
    }

    pub(super) fn member(&self, name: &[u8]) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        members.iter().find(|(key, _)| *key.decode() == *name).map(|(_, value)| value)
    }

    pub(super) fn items(&self) -> &[Self] {
        if let Self::Array(items) = self { items } else { &[] }
    }

    pub(super) fn is_string(&self) -> bool {
        matches!(self, Self::Scalar(text) if text.starts_with(b"\""))
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Scalar(text) if text.first().is_some_and(|&byte| byte == b'-' || byte.is_ascii_digit()))
    }

    /// Whether it is this scalar, letter by letter.
    pub(super) fn is(&self, word: &[u8]) -> bool {
        matches!(self, Self::Scalar(text) if *text == word)
    }

    /// A scalar's text; nothing for others.
    pub(super) fn text(&self) -> &'a [u8] {
        if let Self::Scalar(text) = self { text } else { b"" }
    }

    /// The schema that says nothing but null.
    pub(super) fn is_null_schema(&self) -> bool {
        let says = |name: &[u8], word: &[u8]| self.member(name).is_some_and(|value| value.is(word));
        let only = self.member(b"enum").is_some_and(|values| matches!(values.items(), [value] if value.is(b"null")));
        says(b"type", b"\"null\"") || says(b"const", b"null") || only
    }

    /// The schema that a reference within the document points to.
    pub(super) fn resolve(&self, reference: &[u8]) -> Option<&Self> {
        let pointer = Cursor::new(reference).string().ok()?.decode();
        let pointer = pointer.strip_prefix(b"#")?;
        let mut node = self;
        for step in pointer.split(|&byte| byte == b'/').skip(1) {
            let step = String::from_utf8_lossy(step).replace("~1", "/").replace("~0", "~");
            node = match node {
                Node::Array(items) => items.get(step.parse::<usize>().ok()?)?,
                _ => node.member(step.as_bytes())?,
            };
        }
        Some(node)
    }
}
