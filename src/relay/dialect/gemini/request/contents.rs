//! Messages become `contents` and `systemInstruction`.
//!
//! Turns alternate: neighbours of one role become one content, the first is the user's, and there is at least one. The
//! results of a turn's tool calls are a content of their own, in the order of the calls and as many as there are.

use super::parts;
use super::read::{given, invalid, items, kind, members, members_of, missing, object_text, string, unsupported};
use super::results::{Call, Results};
use crate::relay::dialect::gemini::signatures::{NO_SIGNATURE, SignatureScope};
use crate::relay::json::{Cursor, Kind, RawStr};
use crate::relay::refusal::Refusal;

/// What stands for a turn in which nothing is said, where Gemini wants one. It refuses empty text.
const NOTHING: &[u8] = b"{\"text\":\" \"}";

/// Writes the contents of a request.
pub(super) struct Contents<'a, 'o> {
    out: &'o mut Vec<u8>,
    signatures: &'o SignatureScope,
    /// The parts of the system's messages, and where in them the last message begins.
    system: Vec<u8>,
    system_last: usize,
    /// The content that is being written.
    turn: Option<Turn>,
    /// It has no part yet.
    turn_is_empty: bool,
    /// The calls of the last turn of the model, and what they gave.
    results: Results<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    User,
    Model,
    /// The user's too, but with nothing in it but what tools gave.
    Results,
}

/// A message's members.
#[derive(Default)]
struct Message<'a> {
    role: &'a [u8],
    content: Option<&'a [u8]>,
    refusal: Option<&'a [u8]>,
    tool_calls: Option<&'a [u8]>,
    tool_call_id: Option<&'a [u8]>,
    extra_content: Option<&'a [u8]>,
    /// What has been out of date for so long that nothing is made of it.
    function_call: Option<&'a [u8]>,
    audio: Option<&'a [u8]>,
}

impl<'a, 'o> Contents<'a, 'o> {
    /// A writer that has written nothing.
    pub(super) fn new(out: &'o mut Vec<u8>, signatures: &'o SignatureScope) -> Self {
        Self {
            out,
            signatures,
            system: Vec::new(),
            system_last: 0,
            turn: None,
            turn_is_empty: false,
            results: Results::default(),
        }
    }

    /// Writes all messages, as the members `contents` and, if there is something to it, `systemInstruction`.
    pub(super) fn write(mut self, messages: &'a [u8]) -> Result<(), Refusal> {
        self.out.extend_from_slice(b"\"contents\":[");
        items(messages, "messages", |cursor, index| self.message(cursor, &format!("messages[{index}]")))?;
        self.flush_results();
        if self.turn.is_none() {
            // A system's message alone is something to answer all the same.
            let last = self.system.split_off(self.system_last);
            self.begin(Turn::User);
            if !last.is_empty() {
                self.out.extend_from_slice(last.strip_prefix(b",").unwrap_or(&last));
                self.turn_is_empty = false;
            }
        }
        self.close_turn();
        self.out.push(b']');
        if !self.system.is_empty() {
            self.out.extend_from_slice(b",\"systemInstruction\":{\"parts\":[");
            self.out.extend_from_slice(self.system.strip_prefix(b",").unwrap_or(&self.system));
            self.out.extend_from_slice(b"]}");
        }
        Ok(())
    }

    fn message(&mut self, cursor: &mut Cursor<'a>, param: &str) -> Result<(), Refusal> {
        let mut message = Message::default();
        members_of(cursor, param, &mut |key, value| {
            let slot = match key {
                b"role" => {
                    message.role = value;
                    return Ok(());
                }
                b"content" => &mut message.content,
                b"refusal" => &mut message.refusal,
                b"tool_calls" => &mut message.tool_calls,
                b"tool_call_id" => &mut message.tool_call_id,
                b"extra_content" => &mut message.extra_content,
                b"function_call" => &mut message.function_call,
                b"audio" => &mut message.audio,
                _ => return Ok(()),
            };
            *slot = given(Some(value));
            Ok(())
        })?;
        let role = string(message.role, &format!("{param}.role"))?.decode();
        match &*role {
            b"system" | b"developer" => self.system(&message, param),
            b"user" => self.user(&message, param),
            b"assistant" => self.assistant(&message, param),
            b"tool" => self.tool(&message, param),
            b"function" => {
                Err(invalid(format!("{param}.role"), "The role 'function' is out of date; use 'tool' instead."))
            }
            other => {
                let other: String = String::from_utf8_lossy(other).chars().take(64).collect();
                let message = format!(
                    "Invalid value: '{other}'. Supported values are: 'system', 'assistant', 'user', 'tool', and 'developer'."
                );
                Err(invalid(format!("{param}.role"), message))
            }
        }
    }

    fn system(&mut self, message: &Message<'a>, param: &str) -> Result<(), Refusal> {
        let begin = self.system.len();
        let system = &mut self.system;
        texts(message.content, param, |text| {
            system.push(b',');
            parts::write_text(system, text);
            Ok(())
        })?;
        if self.system.len() > begin {
            self.system_last = begin;
        }
        Ok(())
    }

    fn user(&mut self, message: &Message<'a>, param: &str) -> Result<(), Refusal> {
        self.flush_results();
        self.begin(Turn::User);
        let Some(content) = message.content else { return Err(missing(&format!("{param}.content"))) };
        if kind(content)? == Kind::String {
            let text = string(content, param)?;
            if !text.is_empty() {
                parts::write_text(self.part(), text);
            }
            return Ok(());
        }
        items(content, &format!("{param}.content"), |cursor, index| {
            let part = parts::Part::read(cursor, &format!("{param}.content[{index}]"))?;
            if !part.is_empty_text() {
                part.write(self.part())?;
            }
            Ok(())
        })
    }

    fn assistant(&mut self, message: &Message<'a>, param: &str) -> Result<(), Refusal> {
        self.flush_results();
        if message.function_call.is_some() {
            let param = format!("{param}.function_call");
            return Err(invalid(param, "'function_call' is out of date; use 'tool_calls' instead."));
        }
        if message.audio.is_some() {
            return Err(unsupported(&format!("{param}.audio"), "an earlier answer's audio"));
        }
        let signature = match message.extra_content {
            Some(extra) => signature(extra, &format!("{param}.extra_content"))?,
            None => None,
        };
        let mut said = false;
        texts(message.content, param, |text| {
            self.begin(Turn::Model);
            parts::write_text(self.part(), text);
            said = true;
            Ok(())
        })?;
        if let Some(refusal) = message.refusal
            && !said
        {
            let refusal = string(refusal, &format!("{param}.refusal"))?;
            self.begin(Turn::Model);
            parts::write_text(self.part(), refusal);
            said = true;
        }
        if let Some(signature) = signature {
            self.begin(Turn::Model);
            if said {
                // The last part is the text's: it is opened again.
                self.out.pop();
            } else {
                self.part().extend_from_slice(b"{\"text\":\"\"");
            }
            write_signature(self.out, signature.raw());
            self.out.push(b'}');
        }
        match message.tool_calls {
            Some(calls) => self.calls(calls, &format!("{param}.tool_calls")),
            None => Ok(()),
        }
    }

    fn calls(&mut self, calls: &'a [u8], param: &str) -> Result<(), Refusal> {
        items(calls, param, |cursor, index| self.call(cursor, &format!("{param}[{index}]"), index == 0))
    }

    /// A call of a tool. The first of a turn must have a signature; if nobody knows one it gets the word that stands for none.
    fn call(&mut self, cursor: &mut Cursor<'a>, param: &str, is_first: bool) -> Result<(), Refusal> {
        let (mut id, mut tool, mut function, mut extra) = (None, None, None, None);
        members_of(cursor, param, &mut |key, value| {
            match key {
                b"id" => id = given(Some(value)),
                b"type" => tool = given(Some(value)),
                b"function" => function = given(Some(value)),
                b"extra_content" => extra = given(Some(value)),
                _ => {}
            }
            Ok(())
        })?;
        if tool.is_some_and(|tool| tool != b"\"function\"") {
            return Err(unsupported(&format!("{param}.type"), "calls of tools that are no functions"));
        }
        let id = string(id.ok_or_else(|| missing(&format!("{param}.id")))?, &format!("{param}.id"))?;
        let function = function.ok_or_else(|| missing(&format!("{param}.function")))?;
        let (mut name, mut arguments) = (None, None);
        members(function, &format!("{param}.function"), |key, value| {
            match key {
                b"name" => name = Some(string(value, &format!("{param}.function.name"))?),
                b"arguments" => arguments = given(Some(value)),
                _ => {}
            }
            Ok(())
        })?;
        let name = name.ok_or_else(|| missing(&format!("{param}.function.name")))?;
        let call = Call::new(id, name);
        self.begin(Turn::Model);
        let out = self.part();
        out.extend_from_slice(b"{\"functionCall\":");
        call.write_open(out);
        out.extend_from_slice(b",\"args\":");
        write_arguments(out, arguments, &format!("{param}.function.arguments"))?;
        out.push(b'}');
        let sent_back = match extra {
            Some(extra) => signature(extra, &format!("{param}.extra_content"))?,
            None => None,
        };
        if let Some(signature) = sent_back {
            write_signature(self.out, signature.raw());
        } else if let Some(signature) = self.signatures.recall(call.id()) {
            write_signature(self.out, &signature);
        } else if is_first {
            self.signatures.miss(call.id());
            write_signature(self.out, NO_SIGNATURE);
        }
        self.out.push(b'}');
        self.results.called(call);
        Ok(())
    }

    fn tool(&mut self, message: &Message<'a>, param: &str) -> Result<(), Refusal> {
        let id_param = format!("{param}.tool_call_id");
        let id = string(message.tool_call_id.ok_or_else(|| missing(&id_param))?, &id_param)?.decode();
        if !self.results.gave(&id, message.content, &format!("{param}.content"))? {
            let message =
                "A message with role 'tool' must follow the message whose 'tool_calls' it answers, once for each.";
            return Err(invalid(id_param, message));
        }
        Ok(())
    }

    /// Writes what the tools gave, once all of it is there.
    fn flush_results(&mut self) {
        let results = std::mem::take(&mut self.results);
        if results.is_empty() {
            return;
        }
        self.begin(Turn::Results);
        for result in results.calls() {
            result.write(self.part());
        }
    }

    /// Goes on with this turn, or begins it.
    fn begin(&mut self, turn: Turn) {
        if self.turn == Some(turn) && turn != Turn::Results {
            return;
        }
        if self.turn.is_none() && turn == Turn::Model {
            self.begin(Turn::User);
        }
        if self.turn.is_some() {
            self.close_turn();
            self.out.push(b',');
        }
        let role: &[u8] = if turn == Turn::Model { b"model" } else { b"user" };
        self.out.extend_from_slice(b"{\"role\":\"");
        self.out.extend_from_slice(role);
        self.out.extend_from_slice(b"\",\"parts\":[");
        self.turn = Some(turn);
        self.turn_is_empty = true;
    }

    /// Where the next part of the turn is to be written.
    fn part(&mut self) -> &mut Vec<u8> {
        if !self.turn_is_empty {
            self.out.push(b',');
        }
        self.turn_is_empty = false;
        self.out
    }

    fn close_turn(&mut self) {
        if self.turn_is_empty {
            self.out.extend_from_slice(NOTHING);
        }
        self.out.extend_from_slice(b"]}");
    }
}

/// Shows each text of a message whose content is nothing but text. Empty ones are not shown: Gemini refuses them.
fn texts<'a>(
    content: Option<&'a [u8]>,
    param: &str,
    mut visit: impl FnMut(RawStr<'a>) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let Some(content) = content else { return Ok(()) };
    let param = format!("{param}.content");
    if kind(content)? == Kind::String {
        let text = string(content, &param)?;
        return if text.is_empty() { Ok(()) } else { visit(text) };
    }
    items(content, &param, |cursor, index| {
        let param = format!("{param}[{index}]");
        match parts::Part::read(cursor, &param)? {
            parts::Part::Text(text) if text.is_empty() => Ok(()),
            parts::Part::Text(text) => visit(text),
            _ => Err(unsupported(&param, "anything but text in a message of this role")),
        }
    })
}

/// The signature in an `extra_content`.
fn signature<'a>(extra: &'a [u8], param: &str) -> Result<Option<RawStr<'a>>, Refusal> {
    let mut found = None;
    members(extra, param, |key, value| {
        if key != b"google" || value == b"null" {
            return Ok(());
        }
        members(value, &format!("{param}.google"), |key, value| {
            if key == b"thought_signature" && value != b"null" {
                found = Some(string(value, &format!("{param}.google.thought_signature"))?);
            }
            Ok(())
        })
    })?;
    Ok(found.filter(|signature| !signature.is_empty()))
}

fn write_signature(out: &mut Vec<u8>, signature: &[u8]) {
    out.extend_from_slice(b",\"thoughtSignature\":\"");
    out.extend_from_slice(signature);
    out.push(b'"');
}

/// A call's arguments, which the client has as the text of an object.
fn write_arguments(out: &mut Vec<u8>, arguments: Option<&[u8]>, param: &str) -> Result<(), Refusal> {
    let text = match arguments {
        Some(arguments) => string(arguments, param)?.decode(),
        None => b"".into(),
    };
    if text.trim_ascii().is_empty() {
        out.extend_from_slice(b"{}");
        return Ok(());
    }
    let Some(object) = object_text(&text) else {
        return Err(invalid(param, format!("Invalid '{param}': expected the text of a JSON object.")));
    };
    out.extend_from_slice(object);
    Ok(())
}
