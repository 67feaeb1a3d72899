//! The messages: roles, parts and reasoning that a vendor refuses or asks for.

use std::ops::Range;

use super::edits::Edits;
use super::members::{Member, walk};
use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Quirk, Quirks};

/// What stands in for reasoning that a client has dropped. The empty string would be refused (WIRE §6: Moonshot).
const BLANK: &str = r#"" ""#;

/// What is to be done to the messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct History {
    developer_as_system: bool,
    text_only: bool,
    echoes_reasoning: bool,
    no_reasoning: bool,
}

/// Why a walk has stopped.
enum Stop {
    /// Not JSON, which was checked when the request was read.
    NotJson,
    Refused(Refusal),
}

impl From<Fault> for Stop {
    fn from(_: Fault) -> Self {
        Self::NotJson
    }
}

impl History {
    /// What a provider's quirks ask for. `thinks` is whether the model may think about this request.
    pub(super) fn new(quirks: Quirks, thinks: bool) -> Self {
        Self {
            developer_as_system: quirks.has(Quirk::DeveloperAsSystem),
            text_only: quirks.has(Quirk::TextOnly),
            echoes_reasoning: thinks && quirks.has(Quirk::EchoesReasoning),
            no_reasoning: quirks.has(Quirk::NoReasoningInHistory),
        }
    }

    /// Walks the messages, an array at this place in the body, and gathers what must change.
    ///
    /// # Errors
    /// Parts that the vendor does not understand.
    pub(super) fn edit(self, body: &[u8], span: Range<usize>, edits: &mut Edits) -> Result<(), Refusal> {
        if !(self.developer_as_system || self.text_only || self.echoes_reasoning || self.no_reasoning) {
            return Ok(());
        }
        match self.messages(&mut Cursor::within(&body[..span.end], span.start), body, edits) {
            Ok(()) | Err(Stop::NotJson) => Ok(()),
            Err(Stop::Refused(refusal)) => Err(refusal),
        }
    }

    fn messages(self, cursor: &mut Cursor<'_>, body: &[u8], edits: &mut Edits) -> Result<(), Stop> {
        let mut items = cursor.array()?;
        let mut index = 0;
        while cursor.next_item(&mut items)? {
            self.message(cursor, body, index, edits)?;
            index += 1;
        }
        Ok(())
    }

    fn message(self, cursor: &mut Cursor<'_>, body: &[u8], index: usize, edits: &mut Edits) -> Result<(), Stop> {
        let mut role = None;
        let mut has_calls = false;
        let mut reasoning = None;
        let mut unwanted = Vec::new();
        let mut attached = None;
        walk(cursor, |key, ordinal, before, cursor| {
            match &*key.decode() {
                b"content" if self.text_only && cursor.kind()? == Kind::Array => attached = attachment(cursor)?,
                b"role" => role = Some(cursor.span()?),
                b"tool_calls" => has_calls = cursor.raw()?.len() > 2,
                key @ (b"reasoning_content" | b"reasoning" | b"reasoning_details") => {
                    let member = Member::take(cursor, ordinal, before)?;
                    match (self.no_reasoning, key) {
                        (true, _) => unwanted.push(member),
                        (false, b"reasoning_content") => reasoning = Some(member),
                        (false, _) => {}
                    }
                }
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        if let Some(part) = attached {
            let message = "This model takes text only, not images, sounds or files.";
            let param = format!("messages[{index}].content[{part}]");
            return Err(Stop::Refused(Refusal::new(Cause::InvalidValue, message).param(param)));
        }
        edits.cut(body, &unwanted);
        let Some(role) = role else { return Ok(()) };
        let said = Cursor::new(&body[role.clone()]).string()?.decode();
        if self.developer_as_system && &*said == b"developer" {
            edits.replace(role, &br#""system""#[..]);
        } else if self.echoes_reasoning && has_calls && &*said == b"assistant" {
            match reasoning {
                None => edits.insert(role.end, format!(r#","reasoning_content":{BLANK}"#)),
                Some(member) if matches!(&body[member.value.clone()], b"null" | br#""""#) => {
                    edits.replace(member.value, BLANK);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Which of a content's parts, if any, is not text.
fn attachment(cursor: &mut Cursor<'_>) -> Result<Option<usize>, Fault> {
    let mut found = None;
    let mut index = 0;
    let mut items = cursor.array()?;
    while cursor.next_item(&mut items)? {
        if cursor.kind()? == Kind::Object {
            walk(cursor, |key, _, _, cursor| {
                if &*key.decode() == b"type" && cursor.kind()? == Kind::String {
                    let is_text = matches!(&*cursor.string()?.decode(), b"text" | b"refusal");
                    found = found.or((!is_text).then_some(index));
                    return Ok(());
                }
                cursor.skip()
            })?;
        } else {
            cursor.skip()?;
        }
        index += 1;
    }
    Ok(found)
}
