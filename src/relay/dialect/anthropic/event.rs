//! What one event of a stream, and one block of an answer, says.

use super::usage::Report;
use crate::relay::json::{Cursor, Fault, Kind, RawStr};

/// An event's JSON, in what is read of it. Members are taken by their names and judged by the type only then, for the type
/// may stand behind them.
#[derive(Debug, Default)]
pub(super) struct StreamEvent<'a> {
    pub(super) kind: EventKind,
    /// The block that it is about.
    pub(super) index: u64,
    pub(super) delta: Delta<'a>,
    pub(super) block: Block<'a>,
    pub(super) report: Report,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum EventKind {
    MessageStart,
    BlockStart,
    BlockDelta,
    BlockStop,
    MessageDelta,
    MessageStop,
    Error,
    /// `ping`, or one that is not known.
    #[default]
    Other,
}

/// What a delta adds. At most one of the texts is there.
#[derive(Debug, Default)]
pub(super) struct Delta<'a> {
    pub(super) text: Option<RawStr<'a>>,
    pub(super) thinking: Option<RawStr<'a>>,
    pub(super) signature: Option<RawStr<'a>>,
    pub(super) partial_json: Option<RawStr<'a>>,
    pub(super) stop_reason: Option<RawStr<'a>>,
}

/// A block of content, as it begins in a stream or as it stands in a whole answer.
#[derive(Debug, Default)]
pub(super) struct Block<'a> {
    pub(super) kind: BlockKind,
    pub(super) text: Option<RawStr<'a>>,
    pub(super) thinking: Option<RawStr<'a>>,
    pub(super) signature: Option<RawStr<'a>>,
    pub(super) data: Option<RawStr<'a>>,
    pub(super) id: Option<RawStr<'a>>,
    pub(super) name: Option<RawStr<'a>>,
    /// A tool's arguments: an object, as sent.
    pub(super) input: Option<&'a [u8]>,
}

/// Kinds of blocks that a client gets something of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum BlockKind {
    Text,
    Thinking,
    RedactedThinking,
    ToolUse,
    /// Of a server's tool, or one that is not known.
    #[default]
    Other,
}

impl<'a> StreamEvent<'a> {
    /// Reads an event's data; `name` is what its `event` field says, for proxies that leave the type out.
    pub(super) fn read(json: &'a [u8], name: Option<&[u8]>) -> Result<Self, Fault> {
        let mut cursor = Cursor::new(json);
        let mut event = Self { kind: name.map(EventKind::named).unwrap_or_default(), ..Self::default() };
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"type" => {
                    if let Some(kind) = string(&mut cursor)? {
                        event.kind = EventKind::named(kind.raw());
                    }
                }
                b"index" => event.index = number(&mut cursor)?,
                b"delta" => event.delta = Delta::read(&mut cursor)?,
                b"content_block" => event.block = Block::read(&mut cursor)?,
                b"usage" => event.report.overwrite(&Report::read(&mut cursor)?),
                b"message" => event.message(&mut cursor)?,
                _ => cursor.skip()?,
            }
        }
        cursor.end()?;
        Ok(event)
    }

    fn message(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"usage" => self.report.overwrite(&Report::read(cursor)?),
                _ => cursor.skip()?,
            }
        }
        Ok(())
    }
}

impl EventKind {
    fn named(name: &[u8]) -> Self {
        match name {
            b"message_start" => Self::MessageStart,
            b"content_block_start" => Self::BlockStart,
            b"content_block_delta" => Self::BlockDelta,
            b"content_block_stop" => Self::BlockStop,
            b"message_delta" => Self::MessageDelta,
            b"message_stop" => Self::MessageStop,
            b"error" => Self::Error,
            _ => Self::Other,
        }
    }
}

impl<'a> Delta<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut delta = Self::default();
        if cursor.kind()? != Kind::Object {
            cursor.skip()?;
            return Ok(delta);
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"text" => delta.text = string(cursor)?,
                b"thinking" => delta.thinking = string(cursor)?,
                b"signature" => delta.signature = string(cursor)?,
                b"partial_json" => delta.partial_json = string(cursor)?,
                b"stop_reason" => delta.stop_reason = string(cursor)?,
                _ => cursor.skip()?,
            }
        }
        Ok(delta)
    }
}

impl<'a> Block<'a> {
    /// Takes a block, whatever it is.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut block = Self::default();
        if cursor.kind()? != Kind::Object {
            cursor.skip()?;
            return Ok(block);
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"type" => block.kind = string(cursor)?.map(BlockKind::named).unwrap_or_default(),
                b"text" => block.text = string(cursor)?,
                b"thinking" => block.thinking = string(cursor)?,
                b"signature" => block.signature = string(cursor)?,
                b"data" => block.data = string(cursor)?,
                b"id" => block.id = string(cursor)?,
                b"name" => block.name = string(cursor)?,
                b"input" if cursor.kind()? == Kind::Object => block.input = Some(cursor.raw()?),
                _ => cursor.skip()?,
            }
        }
        Ok(block)
    }
}

impl BlockKind {
    fn named(name: RawStr<'_>) -> Self {
        match name.raw() {
            b"text" => Self::Text,
            b"thinking" => Self::Thinking,
            b"redacted_thinking" => Self::RedactedThinking,
            b"tool_use" => Self::ToolUse,
            _ => Self::Other,
        }
    }
}

/// Why an answer ended, in what a client is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    Stop,
    ToolUse,
    Length,
    ContentFilter,
}

impl StopReason {
    pub(super) fn named(name: RawStr<'_>) -> Self {
        match name.raw() {
            b"tool_use" => Self::ToolUse,
            b"max_tokens" | b"model_context_window_exceeded" => Self::Length,
            b"refusal" => Self::ContentFilter,
            // end_turn, stop_sequence, pause_turn, and whatever comes to be.
            _ => Self::Stop,
        }
    }

    /// OpenAI's word. A call that was no call to the client, but the answer in its schema, is no reason for `tool_calls`.
    pub(super) fn finish_reason(self, has_calls: bool) -> &'static str {
        match self {
            Self::ToolUse if has_calls => "tool_calls",
            Self::ToolUse | Self::Stop => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
        }
    }
}

/// Takes a value; its text if it is a string.
pub(super) fn string<'a>(cursor: &mut Cursor<'a>) -> Result<Option<RawStr<'a>>, Fault> {
    if cursor.kind()? == Kind::String { cursor.string().map(Some) } else { cursor.skip().map(|()| None) }
}

fn number(cursor: &mut Cursor<'_>) -> Result<u64, Fault> {
    Ok(str::from_utf8(cursor.raw()?).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}
