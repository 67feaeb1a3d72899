//! How a request is refused: with the field at fault, in OpenAI's notation.

use std::borrow::Cow;
use std::fmt;

use crate::relay::json::{Cursor, Fault, Kind, RawStr};
use crate::relay::refusal::{Cause, Refusal};

/// Only where JSON stands inside of JSON can a fault still be met: the body itself has been read before.
impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::new(Cause::InvalidJson, format!("The body is not valid JSON: {fault}."))
    }
}

pub(super) fn invalid(param: impl Into<Box<str>>, message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Cause::InvalidValue, message).param(param)
}

pub(super) fn missing(param: impl Into<Box<str>>) -> Refusal {
    let param = param.into();
    Refusal::new(Cause::MissingField, format!("Missing required parameter: '{param}'.")).param(param)
}

pub(super) fn wrong_type(param: impl Into<Box<str>>, expected: &str, kind: Kind) -> Refusal {
    let param = param.into();
    let got = match kind {
        Kind::Object => "an object",
        Kind::Array => "an array",
        Kind::String => "a string",
        Kind::Number => "a number",
        Kind::True | Kind::False => "a boolean",
        Kind::Null => "null",
    };
    invalid(param.clone(), format!("Invalid type for '{param}': expected {expected}, but got {got} instead."))
}

/// A place in the request: what the client would write to get there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Path<'a> {
    Field(&'static str),
    In(&'a Path<'a>, &'static str),
    At(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub(super) fn field(&'a self, name: &'static str) -> Path<'a> {
        Path::In(self, name)
    }

    pub(super) fn item(&'a self, index: usize) -> Path<'a> {
        Path::At(self, index)
    }

    pub(super) fn invalid(&self, message: impl Into<Cow<'static, str>>) -> Refusal {
        invalid(self.to_string(), message)
    }

    pub(super) fn missing(&self) -> Refusal {
        missing(self.to_string())
    }

    pub(super) fn wrong_type(&self, expected: &str, kind: Kind) -> Refusal {
        wrong_type(self.to_string(), expected, kind)
    }

    /// Takes a string.
    pub(super) fn string<'b>(&self, cursor: &mut Cursor<'b>) -> Result<RawStr<'b>, Refusal> {
        match cursor.kind()? {
            Kind::String => Ok(cursor.string()?),
            kind => Err(self.wrong_type("a string", kind)),
        }
    }

    /// Takes a string, or null for none.
    pub(super) fn optional_string<'b>(&self, cursor: &mut Cursor<'b>) -> Result<Option<RawStr<'b>>, Refusal> {
        if cursor.kind()? == Kind::Null {
            cursor.skip()?;
            return Ok(None);
        }
        self.string(cursor).map(Some)
    }

    /// Takes a boolean, or null for none.
    pub(super) fn optional_boolean(&self, cursor: &mut Cursor<'_>) -> Result<Option<bool>, Refusal> {
        let kind = cursor.kind()?;
        let value = match kind {
            Kind::True => Some(true),
            Kind::False => Some(false),
            Kind::Null => None,
            _ => return Err(self.wrong_type("a boolean", kind)),
        };
        cursor.skip()?;
        Ok(value)
    }

    /// Takes an object's text, or null for none.
    pub(super) fn optional_object<'b>(&self, cursor: &mut Cursor<'b>) -> Result<Option<&'b [u8]>, Refusal> {
        match cursor.kind()? {
            Kind::Object => Ok(Some(cursor.raw()?)),
            Kind::Null => cursor.skip().map(|()| None).map_err(Refusal::from),
            kind => Err(self.wrong_type("an object", kind)),
        }
    }

    /// Walks an object's members.
    pub(super) fn members<'b>(
        &self,
        cursor: &mut Cursor<'b>,
        mut member: impl FnMut(&[u8], &mut Cursor<'b>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let kind = cursor.kind()?;
        if kind != Kind::Object {
            return Err(self.wrong_type("an object", kind));
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            member(&key.decode(), cursor)?;
        }
        Ok(())
    }

    /// Walks an array's items.
    pub(super) fn items<'b>(
        &self,
        cursor: &mut Cursor<'b>,
        mut item: impl FnMut(Path<'_>, &mut Cursor<'b>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let kind = cursor.kind()?;
        if kind != Kind::Array {
            return Err(self.wrong_type("an array", kind));
        }
        let mut items = cursor.array()?;
        let mut index = 0;
        while cursor.next_item(&mut items)? {
            item(self.item(index), cursor)?;
            index += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => out.write_str(name),
            Self::In(outer, name) => write!(out, "{outer}.{name}"),
            Self::At(outer, index) => write!(out, "{outer}[{index}]"),
        }
    }
}
