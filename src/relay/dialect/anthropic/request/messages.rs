//! OpenAI's messages, read into the conversation.

use super::cache::{CacheMark, CacheMarks, read_mark};
use super::conversation::Conversation;
use super::parts::{Speaker, read_content};
use super::refuse::Path;
use crate::relay::dialect::anthropic::text::push_string;
use crate::relay::json::{Cursor, Kind, RawStr};
use crate::relay::refusal::Refusal;

/// A message, in what is read of it. Anything else in it has no place at Anthropic's: see the dialect's own words.
#[derive(Debug, Default)]
struct Message<'a> {
    role: Option<RawStr<'a>>,
    /// Raw JSON that is not null, as are the others.
    content: Option<&'a [u8]>,
    tool_calls: Option<&'a [u8]>,
    tool_call_id: Option<RawStr<'a>>,
    thinking_blocks: Option<&'a [u8]>,
    refusal: Option<RawStr<'a>>,
    mark: CacheMark<'a>,
    is_error: bool,
    has_function_call: bool,
}

/// Reads the `messages` array.
pub(super) fn read_messages(
    messages: &[u8],
    conversation: &mut Conversation,
    marks: &mut CacheMarks,
) -> Result<(), Refusal> {
    Path::Field("messages").items(&mut Cursor::new(messages), |path, cursor| {
        let message = Message::read(&path, cursor)?;
        conversation.begin_message();
        message.tell(&path, conversation, marks)?;
        if message.mark.is_some() && conversation.mark_last(message.mark) {
            marks.count(message.mark, &path)?;
        }
        Ok(())
    })
}

impl<'a> Message<'a> {
    fn read(path: &Path<'_>, cursor: &mut Cursor<'a>) -> Result<Self, Refusal> {
        let mut message = Self::default();
        path.members(cursor, |key, cursor| {
            match key {
                b"role" => message.role = Some(path.field("role").string(cursor)?),
                b"content" => message.content = not_null(cursor)?,
                b"tool_calls" => message.tool_calls = not_null(cursor)?,
                b"tool_call_id" => message.tool_call_id = path.field("tool_call_id").optional_string(cursor)?,
                b"thinking_blocks" => message.thinking_blocks = not_null(cursor)?,
                b"refusal" => message.refusal = path.field("refusal").optional_string(cursor)?,
                b"cache_control" => message.mark = read_mark(path, cursor)?,
                b"is_error" => message.is_error = path.field("is_error").optional_boolean(cursor)?.unwrap_or(false),
                b"function_call" => message.has_function_call = not_null(cursor)?.is_some(),
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        Ok(message)
    }

    fn tell(&self, path: &Path<'_>, conversation: &mut Conversation, marks: &mut CacheMarks) -> Result<(), Refusal> {
        let role = self.role.ok_or_else(|| path.field("role").missing())?;
        let speaker = match &*role.decode() {
            b"assistant" => return self.tell_assistant(path, conversation, marks),
            b"tool" => return self.tell_result(path, conversation, marks),
            b"user" => Speaker::User,
            b"system" | b"developer" => Speaker::System,
            b"function" => {
                let message = "Messages of role 'function' are not taken; use role 'tool' with 'tool_call_id'.";
                return Err(path.field("role").invalid(message));
            }
            _ => {
                let message = "Invalid role: expected one of 'system', 'developer', 'user', 'assistant' and 'tool'.";
                return Err(path.field("role").invalid(message));
            }
        };
        let path = path.field("content");
        let content = self.content.ok_or_else(|| path.missing())?;
        read_content(&path, content, speaker, |path, part| {
            marks.count(part.mark, path)?;
            match speaker {
                Speaker::System => conversation.system(&part),
                _ => conversation.user(&part),
            }
            Ok(())
        })
    }

    fn tell_assistant(
        &self,
        path: &Path<'_>,
        conversation: &mut Conversation,
        marks: &mut CacheMarks,
    ) -> Result<(), Refusal> {
        if self.has_function_call {
            return Err(path.field("function_call").invalid("'function_call' is not taken; use 'tool_calls'."));
        }
        if let Some(blocks) = self.thinking_blocks {
            tell_thinking(&path.field("thinking_blocks"), blocks, conversation)?;
        }
        let mut is_silent = true;
        if let Some(content) = self.content {
            read_content(&path.field("content"), content, Speaker::Assistant, |path, part| {
                is_silent = false;
                marks.count(part.mark, path)?;
                conversation.assistant(&part);
                Ok(())
            })?;
        }
        if let Some(part) = self.refusal.filter(|_| is_silent).and_then(|text| super::parts::Part::text(text, None)) {
            conversation.assistant(&part);
        }
        match self.tool_calls {
            Some(calls) => tell_calls(&path.field("tool_calls"), calls, conversation),
            None => Ok(()),
        }
    }

    fn tell_result(
        &self,
        path: &Path<'_>,
        conversation: &mut Conversation,
        marks: &mut CacheMarks,
    ) -> Result<(), Refusal> {
        let id = self.tool_call_id.ok_or_else(|| path.field("tool_call_id").missing())?.decode();
        let mut blocks = Vec::new();
        if let Some(content) = self.content {
            read_content(&path.field("content"), content, Speaker::User, |path, part| {
                marks.count(part.mark, path)?;
                blocks.extend_from_slice(if blocks.is_empty() { b",\"content\":[" } else { b"," });
                part.write(&mut blocks, part.mark);
                Ok(())
            })?;
        }
        if !blocks.is_empty() {
            blocks.push(b']');
        }
        conversation.result(path, &String::from_utf8_lossy(&id), &blocks, self.is_error)
    }
}

/// What the model had thought, as it left the relay. Blocks that were not signed, and others than those two kinds, could
/// not have come from Anthropic.
fn tell_thinking(path: &Path<'_>, blocks: &[u8], conversation: &mut Conversation) -> Result<(), Refusal> {
    path.items(&mut Cursor::new(blocks), |path, cursor| {
        let (mut kind, mut thinking, mut signature, mut data) = (None, None, None, None);
        path.members(cursor, |key, cursor| {
            match key {
                b"type" => kind = path.field("type").optional_string(cursor)?,
                b"thinking" => thinking = path.field("thinking").optional_string(cursor)?,
                b"signature" => signature = path.field("signature").optional_string(cursor)?,
                b"data" => data = path.field("data").optional_string(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        let kind = kind.ok_or_else(|| path.field("type").missing())?;
        match (kind.raw(), thinking, signature.filter(|signature| !signature.is_empty()), data) {
            (b"thinking", Some(thinking), Some(signature), _) => conversation.thinking(|out| {
                out.extend_from_slice(b"\"type\":\"thinking\",\"thinking\":");
                push_string(out, thinking);
                out.extend_from_slice(b",\"signature\":");
                push_string(out, signature);
            }),
            (b"redacted_thinking", _, _, Some(data)) => conversation.thinking(|out| {
                out.extend_from_slice(b"\"type\":\"redacted_thinking\",\"data\":");
                push_string(out, data);
            }),
            _ => {}
        }
        Ok(())
    })
}

fn tell_calls(path: &Path<'_>, calls: &[u8], conversation: &mut Conversation) -> Result<(), Refusal> {
    path.items(&mut Cursor::new(calls), |path, cursor| {
        let (mut id, mut is_function, mut function) = (None, true, None);
        path.members(cursor, |key, cursor| {
            match key {
                b"id" => id = Some(path.field("id").string(cursor)?),
                b"type" => is_function = path.field("type").string(cursor)?.raw() == b"function",
                b"function" => function = Some(cursor.raw()?),
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        if !is_function {
            return Err(path.field("type").invalid("This model's provider takes calls of type 'function' only."));
        }
        let id = id.ok_or_else(|| path.field("id").missing())?.decode();
        let function_path = path.field("function");
        let function = function.ok_or_else(|| function_path.missing())?;
        let (mut name, mut arguments) = (None, None);
        function_path.members(&mut Cursor::new(function), |key, cursor| {
            match key {
                b"name" => name = Some(function_path.field("name").string(cursor)?),
                b"arguments" => arguments = not_null(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        let name = name.ok_or_else(|| function_path.field("name").missing())?;
        let input = read_arguments(&function_path.field("arguments"), arguments)?;
        conversation.call(&path, &String::from_utf8_lossy(&id), name, &input)
    })
}

/// A call's arguments: a string that holds an object, whose text is taken over as it is. Nothing is the empty object.
fn read_arguments<'a>(path: &Path<'_>, arguments: Option<&'a [u8]>) -> Result<std::borrow::Cow<'a, [u8]>, Refusal> {
    let Some(arguments) = arguments else { return Ok(b"{}"[..].into()) };
    let mut cursor = Cursor::new(arguments);
    let json = match cursor.kind()? {
        Kind::String => cursor.string()?.decode(),
        // Not OpenAI's, but what is meant is clear.
        Kind::Object => return Ok(arguments.into()),
        kind => return Err(path.wrong_type("a string", kind)),
    };
    if json.trim_ascii().is_empty() {
        return Ok(b"{}"[..].into());
    }
    let mut inner = Cursor::new(&json);
    let is_object = inner.kind() == Ok(Kind::Object) && inner.skip().is_ok() && inner.end().is_ok();
    if !is_object {
        return Err(path.invalid("Invalid arguments: expected a string that holds a JSON object."));
    }
    Ok(json)
}

/// Takes a value; its text if it is not null.
fn not_null<'a>(cursor: &mut Cursor<'a>) -> Result<Option<&'a [u8]>, Refusal> {
    let kind = cursor.kind()?;
    let raw = cursor.raw()?;
    Ok((kind != Kind::Null).then_some(raw))
}
