//! `response_format`: plain text, any JSON, or JSON of a schema.

use super::fields::Fields;
use super::refuse::Path;
use crate::relay::dialect::anthropic::SCHEMA_TOOL;
use crate::relay::dialect::anthropic::text::push_string;
use crate::relay::json::{Cursor, Fault, Kind, RawStr};
use crate::relay::refusal::Refusal;
use crate::relay::route::{ModelRules, SchemaForm};

/// What a model is told that is to answer in JSON: there is no field for that.
pub(super) const JSON_INSTRUCTION: &str =
    "Answer with one JSON object and nothing else: no words before or after it, and no code fence around it.";

/// The form that an answer is to have.
#[derive(Debug)]
pub(super) enum ResponseFormat<'a> {
    Text,
    /// Any JSON object.
    Json,
    /// JSON of a schema, by the field that there is for it.
    Schema(Schema<'a>),
    /// JSON of a schema, by a tool that takes it.
    SchemaTool(Schema<'a>),
}

/// A JSON schema, with what is said of it.
#[derive(Debug)]
pub(super) struct Schema<'a> {
    schema: &'a [u8],
    description: Option<RawStr<'a>>,
}

impl<'a> ResponseFormat<'a> {
    /// Reads `response_format`.
    pub(super) fn read(fields: &Fields<'a>, rules: &ModelRules) -> Result<Self, Refusal> {
        let Some(json) = fields.response_format else { return Ok(Self::Text) };
        let path = Path::Field("response_format");
        let (mut kind, mut wrapper) = (None, None);
        path.members(&mut Cursor::new(json), |key, cursor| {
            match key {
                b"type" => kind = Some(path.field("type").string(cursor)?),
                b"json_schema" => wrapper = path.field("json_schema").optional_object(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        match kind.ok_or_else(|| path.field("type").missing())?.raw() {
            b"text" => Ok(Self::Text),
            b"json_object" => Ok(Self::Json),
            b"json_schema" => {
                let wrapper_path = path.field("json_schema");
                let schema = Schema::read(&wrapper_path, wrapper.ok_or_else(|| wrapper_path.missing())?)?;
                match rules.schema {
                    SchemaForm::Native => Ok(Self::Schema(schema)),
                    SchemaForm::ForcedTool => Ok(Self::SchemaTool(schema)),
                    SchemaForm::None => Err(path.invalid("This model cannot be held to a JSON schema.")),
                }
            }
            _ => Err(path
                .field("type")
                .invalid("Invalid 'response_format.type': expected one of 'text', 'json_object' and 'json_schema'.")),
        }
    }

    /// The schema that is asked for as a tool.
    pub(super) fn as_tool(&self) -> Option<&Schema<'a>> {
        if let Self::SchemaTool(schema) = self { Some(schema) } else { None }
    }
}

impl<'a> Schema<'a> {
    fn read(path: &Path<'_>, json: &'a [u8]) -> Result<Self, Refusal> {
        let (mut schema, mut description) = (None, None);
        path.members(&mut Cursor::new(json), |key, cursor| {
            match key {
                b"schema" => schema = path.field("schema").optional_object(cursor)?,
                b"description" => description = path.field("description").optional_string(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        let schema = schema.ok_or_else(|| path.field("schema").missing())?;
        Ok(Self { schema, description: description.filter(|description| !description.is_empty()) })
    }

    /// Appends the schema, with its objects closed: Anthropic takes no others, and OpenAI's strict form has no others.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let from = out.len();
        if write_closed(out, &mut Cursor::new(self.schema)).is_err() {
            // Cannot be, for the text was checked with the body; the provider would say what is wrong with it.
            out.truncate(from);
            out.extend_from_slice(self.schema);
        }
    }

    /// Appends the tool that takes it.
    pub(super) fn write_tool(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{{\"name\":\"{SCHEMA_TOOL}\",\"description\":").as_bytes());
        match self.description {
            Some(description) => push_string(out, description),
            None => out.extend_from_slice(b"\"Gives the answer.\""),
        }
        out.extend_from_slice(b",\"input_schema\":");
        out.extend_from_slice(self.schema);
        out.push(b'}');
    }
}

/// Appends a schema; each object in it that does not speak of further properties has none. The text has been checked for its
/// depth, and so the calls do not nest deeper than [`crate::relay::json::DEPTH_MAX`].
fn write_closed(out: &mut Vec<u8>, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
    match cursor.kind()? {
        Kind::Object => {}
        Kind::Array => return write_list(out, cursor),
        _ => {
            out.extend_from_slice(cursor.raw()?);
            return Ok(());
        }
    }
    let (mut is_object, mut is_closed, mut is_first) = (false, false, true);
    out.push(b'{');
    let mut members = cursor.object()?;
    while let Some(key) = cursor.next_member(&mut members)? {
        separate(out, &mut is_first);
        push_string(out, key);
        out.push(b':');
        match key.raw() {
            b"additionalProperties" => {
                is_closed = true;
                write_closed(out, cursor)?;
            }
            b"properties" | b"patternProperties" | b"$defs" | b"definitions" | b"dependentSchemas" => {
                is_object |= key.raw() == b"properties";
                write_map(out, cursor)?;
            }
            b"items" | b"prefixItems" | b"anyOf" | b"oneOf" | b"allOf" | b"not" | b"if" | b"then" | b"else"
            | b"contains" => {
                write_closed(out, cursor)?;
            }
            b"type" => {
                let kind = cursor.raw()?;
                is_object |= kind == b"\"object\"";
                out.extend_from_slice(kind);
            }
            // Data, not schemas: const, enum, default and the like.
            _ => out.extend_from_slice(cursor.raw()?),
        }
    }
    if is_object && !is_closed {
        separate(out, &mut is_first);
        out.extend_from_slice(b"\"additionalProperties\":false");
    }
    out.push(b'}');
    Ok(())
}

fn write_list(out: &mut Vec<u8>, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
    let mut is_first = true;
    out.push(b'[');
    let mut items = cursor.array()?;
    while cursor.next_item(&mut items)? {
        separate(out, &mut is_first);
        write_closed(out, cursor)?;
    }
    out.push(b']');
    Ok(())
}

/// An object whose members are schemas under names of the client's.
fn write_map(out: &mut Vec<u8>, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
    if cursor.kind()? != Kind::Object {
        out.extend_from_slice(cursor.raw()?);
        return Ok(());
    }
    let mut is_first = true;
    out.push(b'{');
    let mut members = cursor.object()?;
    while let Some(key) = cursor.next_member(&mut members)? {
        separate(out, &mut is_first);
        push_string(out, key);
        out.push(b':');
        write_closed(out, cursor)?;
    }
    out.push(b'}');
    Ok(())
}

fn separate(out: &mut Vec<u8>, is_first: &mut bool) {
    if !std::mem::take(is_first) {
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_that_say_nothing_of_further_properties_have_none() {
        let open = r#"{"type":"object","properties":{"type":{"type":"string","default":{"type":"object"}},
            "a":{"type":"array","items":{"type":"object","properties":{}}},"b":{"anyOf":[{"type":"object"},{"type":"null"}]},
            "c":{"type":"object","additionalProperties":true}},"$defs":{"d":{"properties":{"x":true}}},
            "maximum":12345678901234567890123}"#;
        let closed = r#"{"type":"object","properties":{"type":{"type":"string","default":{"type":"object"}},"a":{"type":"array","items":{"type":"object","properties":{},"additionalProperties":false}},"b":{"anyOf":[{"type":"object","additionalProperties":false},{"type":"null"}]},"c":{"type":"object","additionalProperties":true}},"$defs":{"d":{"properties":{"x":true},"additionalProperties":false}},"maximum":12345678901234567890123,"additionalProperties":false}"#;
        let mut out = Vec::new();
        Schema { schema: open.as_bytes(), description: None }.write(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), closed);
    }
}
