//! The request's fields: each is used, or named as dropped, or refused.

use super::refuse::{Path, invalid};
use crate::relay::dialect::openai::ChatRequest;
use crate::relay::json::{Cursor, Kind, RawStr};
use crate::relay::refusal::Refusal;

/// The most characters of a user's id.
const USER_CHARS_MAX: usize = 256;

/// The fields that are read here. Those that are null are as if they were not there.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    pub(super) tools: Option<&'a [u8]>,
    pub(super) tool_choice: Option<&'a [u8]>,
    pub(super) parallel_tool_calls: Option<bool>,
    pub(super) response_format: Option<&'a [u8]>,
    pub(super) stop: Option<&'a [u8]>,
    pub(super) temperature: Option<&'a str>,
    pub(super) top_p: Option<&'a str>,
    pub(super) top_k: Option<&'a str>,
    pub(super) reasoning_effort: Option<RawStr<'a>>,
    pub(super) service_tier: Option<RawStr<'a>>,
    user: Option<RawStr<'a>>,
    safety_identifier: Option<RawStr<'a>>,
    /// What has no place at the provider.
    pub(super) dropped: Vec<Box<str>>,
}

impl<'a> Fields<'a> {
    /// Reads a request's fields. What [`ChatRequest`] has read it has checked.
    pub(super) fn read(request: &'a ChatRequest) -> Result<Self, Refusal> {
        if request.choices() > 1 {
            return Err(invalid("n", "This model's provider gives one choice: 'n' must be 1."));
        }
        let mut fields = Self::default();
        let mut cursor = Cursor::new(request.body());
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            if cursor.kind()? == Kind::Null {
                cursor.skip()?;
            } else {
                fields.member(&key.decode(), &mut cursor)?;
            }
        }
        Ok(fields)
    }

    fn member(&mut self, key: &[u8], cursor: &mut Cursor<'a>) -> Result<(), Refusal> {
        let field = Path::Field;
        match key {
            b"model"
            | b"messages"
            | b"stream"
            | b"stream_options"
            | b"max_tokens"
            | b"max_completion_tokens"
            | b"n" => {
                cursor.skip()?;
            }
            b"tools" => self.tools = Some(cursor.raw()?),
            b"tool_choice" => self.tool_choice = Some(cursor.raw()?),
            b"parallel_tool_calls" => {
                self.parallel_tool_calls = field("parallel_tool_calls").optional_boolean(cursor)?;
            }
            b"response_format" => self.response_format = Some(cursor.raw()?),
            b"stop" => self.stop = Some(cursor.raw()?),
            b"temperature" => self.temperature = Some(number(&field("temperature"), cursor, 0.0..=2.0)?),
            b"top_p" => self.top_p = Some(number(&field("top_p"), cursor, 0.0..=1.0)?),
            b"top_k" => self.top_k = Some(number(&field("top_k"), cursor, 0.0..=f64::MAX)?),
            b"reasoning_effort" => self.reasoning_effort = Some(field("reasoning_effort").string(cursor)?),
            b"service_tier" => self.service_tier = Some(field("service_tier").string(cursor)?),
            b"user" => self.user = Some(field("user").string(cursor)?),
            b"safety_identifier" => self.safety_identifier = Some(field("safety_identifier").string(cursor)?),
            b"functions" | b"function_call" => {
                let (name, instead) = match key {
                    b"functions" => ("functions", "tools"),
                    _ => ("function_call", "tool_choice"),
                };
                return Err(invalid(name, format!("'{name}' is not taken any more; use '{instead}'.")));
            }
            // What is asked for is what there is.
            b"modalities" if is_text_only(cursor.raw()?) => {}
            b"modalities" => self.drop("modalities"),
            _ => {
                cursor.skip()?;
                self.drop(&String::from_utf8_lossy(key));
            }
        }
        Ok(())
    }

    /// Names a field as dropped.
    pub(super) fn drop(&mut self, name: &str) {
        if !self.dropped.iter().any(|dropped| **dropped == *name) {
            self.dropped.push(name.into());
        }
    }

    /// Who uses it, for the provider's watch over abuse.
    pub(super) fn user_id(&mut self) -> Option<RawStr<'a>> {
        let (name, id) = match (self.safety_identifier, self.user) {
            (Some(id), _) => ("safety_identifier", id),
            (None, Some(id)) => ("user", id),
            (None, None) => return None,
        };
        if id.is_empty() || String::from_utf8_lossy(&id.decode()).chars().count() > USER_CHARS_MAX {
            self.drop(name);
            return None;
        }
        Some(id)
    }

    /// How soon it is to be served.
    pub(super) fn tier(&mut self) -> Option<&'static str> {
        match self.service_tier?.raw() {
            b"auto" => Some("auto"),
            b"default" => Some("standard_only"),
            _ => {
                self.drop("service_tier");
                None
            }
        }
    }
}

/// Takes a number within a range; its digits as they were sent.
fn number<'a>(
    path: &Path<'_>,
    cursor: &mut Cursor<'a>,
    range: std::ops::RangeInclusive<f64>,
) -> Result<&'a str, Refusal> {
    let kind = cursor.kind()?;
    if kind != Kind::Number {
        return Err(path.wrong_type("a number", kind));
    }
    let text = str::from_utf8(cursor.raw()?).unwrap_or_default();
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(text),
        _ => Err(path.invalid(format!("Invalid '{path}': out of range."))),
    }
}

fn is_text_only(modalities: &[u8]) -> bool {
    let compact: Vec<u8> = modalities.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    compact == br#"["text"]"#
}
