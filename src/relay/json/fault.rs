//! What is wrong with a text that is not JSON.

use std::fmt;

use super::DEPTH_MAX;

/// Where a text stops being JSON, and why. Two words, for it is in the result of every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Bytes from the beginning of the text.
    pub at: usize,
    /// What is wrong there.
    pub what: What,
}

/// What can be wrong with a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The text ended inside a value.
    Ended,
    /// Something else was expected here.
    Unexpected(Expected),
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
}

/// What would have been right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "`words` says what they are")]
pub enum Expected {
    Value,
    Object,
    Array,
    String,
    Literal,
    Digit,
    Key,
    Colon,
    ObjectEnd,
    ArrayEnd,
    Escape,
    Hexadecimal,
    NoControl,
    End,
}

impl Expected {
    fn words(self) -> &'static str {
        match self {
            Self::Value => "a value",
            Self::Object => "an object",
            Self::Array => "an array",
            Self::String => "a string",
            Self::Literal => "true, false or null",
            Self::Digit => "a digit",
            Self::Key => "a key",
            Self::Colon => "a colon",
            Self::ObjectEnd => "a comma or the object's end",
            Self::ArrayEnd => "a comma or the array's end",
            Self::Escape => "an escape that JSON knows",
            Self::Hexadecimal => "four hexadecimal digits behind \\u",
            Self::NoControl => "no control character in a string",
            Self::End => "the end of the text",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Ended => write!(out, "the text ends inside a value, at byte {}", self.at),
            What::Unexpected(expected) => write!(out, "expected {} at byte {}", expected.words(), self.at),
            What::TooDeep => write!(out, "nested deeper than {DEPTH_MAX} levels at byte {}", self.at),
        }
    }
}
