//! The fields of a chat request that the relay reads, found and checked in one walk over the body.

use std::ops::Range;

use super::shape::Shape;
use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::refusal::{Cause, Refusal};

/// What the relay reads of a request, and where in the body it stands.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// The model's name, and the span of its value.
    pub(super) model: Option<(Box<str>, Range<usize>)>,
    /// The span of the array.
    pub(super) messages: Option<Range<usize>>,
    /// Its value, and where that ends.
    pub(super) stream: Option<(bool, usize)>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) max_tokens: Option<u64>,
    pub(super) max_completion_tokens: Option<u64>,
    pub(super) choices: Option<u64>,
    /// The span of `reasoning_effort`, unless it is null.
    pub(super) effort: Option<Range<usize>>,
    /// `enable_thinking` is false.
    pub(super) is_thoughtless: bool,
    /// `thinking_budget`, where it is a number of tokens.
    pub(super) thinking_budget: Option<u64>,
    pub(super) shape: Shape,
    /// The names of fields that were there, null or not, as bits.
    seen: u8,
}

/// What stands in `stream_options`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StreamOptions {
    /// `null`, in this span.
    Null(Range<usize>),
    /// An object that begins here and does not say `include_usage`.
    Silent { begin: usize, empty: bool },
    /// An object in which `include_usage` has this value, in this span.
    IncludeUsage(bool, Range<usize>),
}

/// The fields whose repetition would make it ambiguous what was asked; the position is their bit.
const READ: [&str; 7] = ["model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"];

impl Fields {
    /// Reads a body that is UTF-8.
    pub(super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut cursor = Cursor::new(body);
        let mut fields = Self::default();
        let kind = cursor.kind().map_err(not_json)?;
        if kind != Kind::Object {
            return Err(Refusal::new(
                Cause::InvalidJson,
                format!("The body must be a JSON object, not {}.", name(kind)),
            ));
        }
        let mut members = cursor.object().map_err(not_json)?;
        while let Some(key) = cursor.next_member(&mut members).map_err(not_json)? {
            fields.member(&key.decode(), &mut cursor)?;
        }
        cursor.end().map_err(not_json)?;
        fields.check()?;
        Ok(fields)
    }

    fn member(&mut self, key: &[u8], cursor: &mut Cursor<'_>) -> Result<(), Refusal> {
        if let Some(bit) = READ.iter().position(|name| name.as_bytes() == key) {
            if self.seen & 1 << bit != 0 {
                return Err(invalid(READ[bit], format!("Duplicate parameter: '{}'.", READ[bit])));
            }
            self.seen |= 1 << bit;
        }
        match key {
            b"model" => self.model = Some(model(cursor)?),
            b"messages" => self.messages = Some(messages(cursor, &mut self.shape)?),
            b"stream" => self.stream = boolean(cursor, "stream")?.map(|stream| (stream, cursor.at())),
            b"stream_options" => self.stream_options = Some(stream_options(cursor)?),
            b"max_tokens" => self.max_tokens = positive(cursor, "max_tokens")?,
            b"max_completion_tokens" => self.max_completion_tokens = positive(cursor, "max_completion_tokens")?,
            b"n" => self.choices = positive(cursor, "n")?,
            b"tools" | b"functions" => self.shape.tools(cursor).map_err(not_json)?,
            b"response_format" => self.shape.format(cursor).map_err(not_json)?,
            b"reasoning_effort" => {
                let is_said = cursor.kind().map_err(not_json)? != Kind::Null;
                self.effort = Some(cursor.span().map_err(not_json)?).filter(|_| is_said);
            }
            b"enable_thinking" => self.is_thoughtless = cursor.raw().map_err(not_json)? == b"false",
            b"thinking_budget" => {
                let budget = cursor.raw().map_err(not_json)?;
                self.thinking_budget = str::from_utf8(budget).ok().and_then(|budget| budget.parse().ok());
            }
            _ => self.shape.other(key, cursor).map_err(not_json)?,
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Refusal> {
        if self.model.is_none() {
            return Err(missing("model"));
        }
        if self.messages.is_none() {
            return Err(missing("messages"));
        }
        let streams = matches!(self.stream, Some((true, _)));
        if !streams && !matches!(self.stream_options, None | Some(StreamOptions::Null(_))) {
            let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            return Err(invalid("stream_options", message.to_owned()));
        }
        Ok(())
    }
}

/// The refusal of a body that is not JSON.
fn not_json(fault: Fault) -> Refusal {
    Refusal::new(Cause::InvalidJson, format!("The body is not valid JSON: {fault}."))
}

fn missing(param: &'static str) -> Refusal {
    Refusal::new(Cause::MissingField, format!("Missing required parameter: '{param}'.")).param(param)
}

fn invalid(param: &str, message: String) -> Refusal {
    Refusal::new(Cause::InvalidValue, message).param(param)
}

fn wrong_type(param: &str, expected: &str, kind: Kind) -> Refusal {
    invalid(param, format!("Invalid type for '{param}': expected {expected}, but got {} instead.", name(kind)))
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Object => "an object",
        Kind::Array => "an array",
        Kind::String => "a string",
        Kind::Number => "a number",
        Kind::True | Kind::False => "a boolean",
        Kind::Null => "null",
    }
}

fn model(cursor: &mut Cursor<'_>) -> Result<(Box<str>, Range<usize>), Refusal> {
    let kind = cursor.kind().map_err(not_json)?;
    if kind != Kind::String {
        return Err(wrong_type("model", "a string", kind));
    }
    let begin = cursor.at();
    let model = cursor.string().map_err(not_json)?;
    if model.is_empty() {
        return Err(invalid("model", "Invalid 'model': an empty string.".to_owned()));
    }
    Ok((String::from_utf8_lossy(&model.decode()).into(), begin..cursor.at()))
}

fn boolean(cursor: &mut Cursor<'_>, param: &str) -> Result<Option<bool>, Refusal> {
    let kind = cursor.kind().map_err(not_json)?;
    let value = match kind {
        Kind::True => Some(true),
        Kind::False => Some(false),
        Kind::Null => None,
        _ => return Err(wrong_type(param, "a boolean", kind)),
    };
    cursor.skip().map_err(not_json)?;
    Ok(value)
}

fn positive(cursor: &mut Cursor<'_>, param: &str) -> Result<Option<u64>, Refusal> {
    let kind = cursor.kind().map_err(not_json)?;
    if !matches!(kind, Kind::Number | Kind::Null) {
        return Err(wrong_type(param, "an integer", kind));
    }
    let text = cursor.raw().map_err(not_json)?;
    if kind == Kind::Null {
        return Ok(None);
    }
    if !text.iter().all(u8::is_ascii_digit) || text == b"0" {
        return Err(invalid(param, format!("Invalid '{param}': expected a positive integer.")));
    }
    // All digits: if it does not fit, it is larger than anything that could be meant.
    Ok(Some(str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)))
}

fn stream_options(cursor: &mut Cursor<'_>) -> Result<StreamOptions, Refusal> {
    let kind = cursor.kind().map_err(not_json)?;
    let begin = cursor.at();
    match kind {
        Kind::Null => return Ok(StreamOptions::Null(cursor.span().map_err(not_json)?)),
        Kind::Object => {}
        _ => return Err(wrong_type("stream_options", "an object", kind)),
    }
    let mut include_usage = None;
    let mut empty = true;
    let mut members = cursor.object().map_err(not_json)?;
    while let Some(key) = cursor.next_member(&mut members).map_err(not_json)? {
        empty = false;
        if &*key.decode() != b"include_usage" {
            cursor.skip().map_err(not_json)?;
            continue;
        }
        const PARAM: &str = "stream_options.include_usage";
        let begin = cursor.at();
        let value = boolean(cursor, PARAM)?.unwrap_or(false);
        if include_usage.replace((value, begin..cursor.at())).is_some() {
            return Err(invalid(PARAM, format!("Duplicate parameter: '{PARAM}'.")));
        }
    }
    Ok(match include_usage {
        Some((value, span)) => StreamOptions::IncludeUsage(value, span),
        None => StreamOptions::Silent { begin, empty },
    })
}

fn messages(cursor: &mut Cursor<'_>, shape: &mut Shape) -> Result<Range<usize>, Refusal> {
    let kind = cursor.kind().map_err(not_json)?;
    if kind != Kind::Array {
        return Err(wrong_type("messages", "an array of objects", kind));
    }
    let begin = cursor.at();
    let mut items = cursor.array().map_err(not_json)?;
    while cursor.next_item(&mut items).map_err(not_json)? {
        message(cursor, shape)?;
    }
    if shape.messages == 0 {
        let message =
            "Invalid 'messages': expected an array with at least one message, but got an empty array instead.";
        return Err(invalid("messages", message.to_owned()));
    }
    Ok(begin..cursor.at())
}

fn message(cursor: &mut Cursor<'_>, shape: &mut Shape) -> Result<(), Refusal> {
    let index = shape.messages;
    let param = |field: &str| format!("messages[{index}]{field}");
    let kind = cursor.kind().map_err(not_json)?;
    if kind != Kind::Object {
        return Err(wrong_type(&param(""), "an object", kind));
    }
    let mut role = false;
    let mut members = cursor.object().map_err(not_json)?;
    while let Some(key) = cursor.next_member(&mut members).map_err(not_json)? {
        match &*key.decode() {
            b"role" => {
                let kind = cursor.kind().map_err(not_json)?;
                if kind != Kind::String {
                    return Err(wrong_type(&param(".role"), "a string", kind));
                }
                cursor.skip().map_err(not_json)?;
                role = true;
            }
            b"content" if cursor.kind().map_err(not_json)? == Kind::Array => shape.parts(cursor).map_err(not_json)?,
            b"cache_control" => shape.mark(cursor).map_err(not_json)?,
            _ => shape.text(cursor).map_err(not_json)?,
        }
    }
    if !role {
        let param = param(".role");
        return Err(Refusal::new(Cause::MissingField, format!("Missing required parameter: '{param}'.")).param(param));
    }
    shape.message();
    Ok(())
}
