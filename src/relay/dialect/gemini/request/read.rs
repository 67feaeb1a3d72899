//! Reading the values of a request, each with the clear refusal of what it cannot be.
//!
//! Values are lent as the text that the client sent: numbers keep their digits and strings their escapes.

use crate::relay::json::{Cursor, Fault, Kind, RawStr};
use crate::relay::refusal::{Cause, Refusal};

/// The refusal of a value that cannot be.
pub(super) fn invalid(param: impl Into<Box<str>>, message: impl Into<String>) -> Refusal {
    Refusal::new(Cause::InvalidValue, message.into()).param(param)
}

/// The refusal of a request that lacks something.
pub(super) fn missing(param: &str) -> Refusal {
    Refusal::new(Cause::MissingField, format!("Missing required parameter: '{param}'.")).param(param)
}

/// The refusal of what is good elsewhere, but not with this model.
pub(super) fn unsupported(param: &str, what: &str) -> Refusal {
    invalid(param, format!("Unsupported value for '{param}': this model does not take {what}."))
}

/// The refusal of text that is not JSON. The request has been read once before, so this is not to be expected.
pub(super) fn not_json(fault: Fault) -> Refusal {
    Refusal::new(Cause::InvalidJson, format!("The body is not valid JSON: {fault}."))
}

/// What kind of value it is.
pub(super) fn kind(value: &[u8]) -> Result<Kind, Refusal> {
    Cursor::new(value).kind().map_err(not_json)
}

/// Whether there is a value and it is not null.
pub(super) fn is_given(value: Option<&[u8]>) -> bool {
    value.is_some_and(|value| value != b"null")
}

/// The same, if it is given.
pub(super) fn given(value: Option<&[u8]>) -> Option<&[u8]> {
    value.filter(|value| *value != b"null")
}

/// Takes a string.
pub(super) fn string<'a>(value: &'a [u8], param: &str) -> Result<RawStr<'a>, Refusal> {
    expect(value, Kind::String, "a string", param)?;
    Cursor::new(value).string().map_err(not_json)
}

/// Takes a number, as its text.
pub(super) fn number<'a>(value: &'a [u8], param: &str) -> Result<&'a [u8], Refusal> {
    expect(value, Kind::Number, "a number", param)?;
    Ok(value)
}

/// Takes a whole number, as its text.
pub(super) fn integer<'a>(value: &'a [u8], param: &str) -> Result<&'a str, Refusal> {
    number(value, param)?;
    match str::from_utf8(value) {
        Ok(text) if text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit()) => Ok(text),
        _ => Err(invalid(param, format!("Invalid type for '{param}': expected an integer."))),
    }
}

/// Takes a boolean.
pub(super) fn boolean(value: &[u8], param: &str) -> Result<bool, Refusal> {
    match kind(value)? {
        Kind::True => Ok(true),
        Kind::False => Ok(false),
        _ => Err(wrong_type(param, "a boolean")),
    }
}

/// Shows each member of an object: its key, escapes resolved, and its value's text.
pub(super) fn members<'a>(
    value: &'a [u8],
    param: &str,
    mut visit: impl FnMut(&[u8], &'a [u8]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    expect(value, Kind::Object, "an object", param)?;
    members_of(&mut Cursor::new(value), param, &mut visit)
}

/// [`members`] of the object that the cursor stands before.
pub(super) fn members_of<'a>(
    cursor: &mut Cursor<'a>,
    param: &str,
    visit: &mut impl FnMut(&[u8], &'a [u8]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    if cursor.kind().map_err(not_json)? != Kind::Object {
        return Err(wrong_type(param, "an object"));
    }
    let mut members = cursor.object().map_err(not_json)?;
    while let Some(key) = cursor.next_member(&mut members).map_err(not_json)? {
        visit(&key.decode(), cursor.raw().map_err(not_json)?)?;
    }
    Ok(())
}

/// Shows each item of an array: the cursor before it, and how many came before. The visitor takes it.
pub(super) fn items<'a>(
    value: &'a [u8],
    param: &str,
    mut visit: impl FnMut(&mut Cursor<'a>, usize) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    expect(value, Kind::Array, "an array", param)?;
    let mut cursor = Cursor::new(value);
    let mut items = cursor.array().map_err(not_json)?;
    let mut index = 0;
    while cursor.next_item(&mut items).map_err(not_json)? {
        visit(&mut cursor, index)?;
        index += 1;
    }
    Ok(())
}

/// The text of a tool's arguments or result, if it is a JSON object.
pub(super) fn object_text(text: &[u8]) -> Option<&[u8]> {
    let text = text.trim_ascii();
    let mut cursor = Cursor::new(text);
    let is_object = cursor.kind() == Ok(Kind::Object) && cursor.skip().is_ok() && cursor.end().is_ok();
    is_object.then_some(text)
}

fn expect(value: &[u8], expected: Kind, name: &str, param: &str) -> Result<(), Refusal> {
    if kind(value)? == expected { Ok(()) } else { Err(wrong_type(param, name)) }
}

/// The refusal of a value of the wrong type.
pub(super) fn wrong_type(param: &str, expected: &str) -> Refusal {
    invalid(param, format!("Invalid type for '{param}': expected {expected}."))
}
