//! `response_format` for vendors that refuse some of it.

use super::edits::Edits;
use super::members::{Member, walk};
use crate::relay::json::{Cursor, Fault, Kind, write_string};

/// What the model is told where nothing else would hold it to the schema.
const STATEMENT: &str = "Answer with one JSON object and nothing else. It must be valid under this JSON schema, whose fields mean what they say:\n";

/// A `response_format` of the type `json_schema`, as far as it matters here.
#[derive(Debug, Default)]
pub(super) struct Format {
    is_schema: bool,
    /// The schema itself.
    schema: Option<Member>,
    /// `$schema` in it.
    dialect: Vec<Member>,
}

impl Format {
    /// Reads the member's value, at its place in the body.
    pub(super) fn read(body: &[u8], member: &Member) -> Result<Self, Fault> {
        let mut format = Self::default();
        if member.kind != Kind::Object {
            return Ok(format);
        }
        walk(&mut Cursor::within(&body[..member.value.end], member.value.start), |key, _, _, cursor| {
            match (&*key.decode(), cursor.kind()?) {
                (b"type", Kind::String) => format.is_schema = &*cursor.string()?.decode() == b"json_schema",
                (b"json_schema", Kind::Object) => format.read_wrapper(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        Ok(format)
    }

    fn read_wrapper(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        walk(cursor, |key, ordinal, before, cursor| {
            if &*key.decode() != b"schema" || cursor.kind()? != Kind::Object {
                return cursor.skip();
            }
            let start = cursor.at();
            walk(cursor, |key, ordinal, before, cursor| {
                if &*key.decode() == b"$schema" {
                    self.dialect.push(Member::take(cursor, ordinal, before)?);
                    return Ok(());
                }
                cursor.skip()
            })?;
            self.schema = Some(Member { ordinal, before, value: start..cursor.at(), kind: Kind::Object });
            Ok(())
        })
    }

    /// Whether an answer after a schema is asked for.
    pub(super) fn is_schema(&self) -> bool {
        self.is_schema
    }

    /// Asks for any JSON object instead, and states the schema in front of the messages, which begin there.
    pub(super) fn state(&self, body: &[u8], member: &Member, messages_at: usize, edits: &mut Edits) {
        edits.replace(member.value.clone(), &br#"{"type":"json_object"}"#[..]);
        let schema = self.schema.as_ref().map_or(&b"{}"[..], |schema| &body[schema.value.clone()]);
        let mut message = br#"{"role":"system","content":"#.to_vec();
        write_string(&mut message, &format!("{STATEMENT}{}", String::from_utf8_lossy(schema)));
        message.extend_from_slice(b"},");
        edits.insert(messages_at + 1, message);
    }

    /// Takes `$schema` out of the schema.
    pub(super) fn without_dialect(&self, body: &[u8], edits: &mut Edits) {
        edits.cut(body, &self.dialect);
    }
}
