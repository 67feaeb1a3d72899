//! The streamed answer: Anthropic's events in, OpenAI's chunks out, each as soon as it can be.
//!
//! What is held back: the beginning of a tool call, up to [`CALL_BYTES_HELD_MAX`], because proxies that try again in the
//! middle of a call begin the message anew, and a client cannot be made to forget half a call; and what
//! [`ThinkingBlocks`] gathers. Nothing else is kept.

use bytes::Bytes;

use super::SCHEMA_TOOL;
use super::error::map_error_inside;
use super::event::{Block, BlockKind, Delta, EventKind, StopReason, StreamEvent};
use super::reasoning::{Draft, ThinkingBlocks};
use super::text::{push_inside, push_number, push_stringified};
use super::usage::Report;
use super::writer::ChunkWriter;
use crate::relay::dialect::{Answer, AnswerError, AnswerTerms, End, Outcome, error_event};
use crate::relay::json::RawStr;
use crate::relay::meter::{SampledText, Usage};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::sse::{EVENT_BYTES_MAX, Event, Piece, SseParser};

/// How many bytes of a call's arguments are held back before the client is told of the call.
const CALL_BYTES_HELD_MAX: usize = 256;

/// How many blocks may be open at once. Anthropic has one open at a time.
const BLOCKS_OPEN_MAX: usize = 16;

/// A streamed answer on its way through. Behind the message's end or an error nothing more is said.
#[derive(Debug)]
pub struct StreamTranslator {
    parser: SseParser,
    translation: Translation,
}

#[derive(Debug)]
struct Translation {
    chunks: ChunkWriter,
    /// Blocks that have begun and not ended, by the index that they have here. A tool's is another: its place among the calls.
    open: Vec<(u64, OpenBlock)>,
    thinking: ThinkingBlocks,
    /// How many calls the client knows of.
    calls: u64,
    report: Report,
    output_is_reported: bool,
    sample: SampledText,
    error: Option<AnswerError>,
    greeted: bool,
    began: bool,
    stop_reason: Option<StopReason>,
    /// The end was told.
    done: bool,
}

#[derive(Debug)]
enum OpenBlock {
    Thinking(Draft),
    Call(Call),
    /// Prose needs nothing kept; of other blocks nothing is told.
    Plain,
}

/// A tool call that has not ended.
#[derive(Debug)]
struct Call {
    /// The insides of its id and name.
    id: Vec<u8>,
    name: Vec<u8>,
    /// Arguments that the client has not got: the inside of a string.
    held: Vec<u8>,
    /// Arguments that stood in the block's beginning, where only a placeholder should: the inside of a string. They count if
    /// no others come.
    given: Vec<u8>,
    /// What the client got of it.
    told: Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// That there is a call, at this index.
    AsCall(u64),
    /// It is no call: its arguments are the answer, in the schema that was asked for.
    AsContent,
}

impl StreamTranslator {
    /// At the beginning of an answer.
    pub fn new(terms: AnswerTerms) -> Self {
        Self::with_event_bytes_max(&terms, EVENT_BYTES_MAX)
    }

    fn with_event_bytes_max(terms: &AnswerTerms, event_bytes_max: usize) -> Self {
        let translation = Translation {
            chunks: ChunkWriter::new(terms),
            open: Vec::new(),
            thinking: ThinkingBlocks::default(),
            calls: 0,
            report: Report::default(),
            output_is_reported: false,
            sample: SampledText::new(),
            error: None,
            greeted: false,
            began: false,
            stop_reason: None,
            done: false,
        };
        Self { parser: SseParser::new(event_bytes_max), translation }
    }
}

impl Answer for StreamTranslator {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let translation = &mut self.translation;
        translation.chunks.reserve(chunk.len());
        self.parser.push(&chunk, |piece| translation.judge(&piece));
        translation.chunks.take()
    }

    fn end(&mut self) -> End {
        let translation = &mut self.translation;
        self.parser.finish(|piece| translation.judge_rest(&piece));
        let outcome = match (&translation.error, translation.done, translation.stop_reason) {
            (Some(_), ..) => Outcome::Errored,
            (None, true, _) => Outcome::Complete,
            (None, false, Some(_)) => {
                translation.finish();
                Outcome::Complete
            }
            (None, false, None) => Outcome::Truncated,
        };
        End { outcome, append: translation.chunks.take() }
    }

    fn is_whole(&self) -> bool {
        self.translation.done && self.translation.error.is_none()
    }

    fn usage(&self) -> Option<Usage> {
        self.translation.report.usage()
    }

    fn output_is_reported(&self) -> bool {
        self.translation.output_is_reported
    }

    fn sample(&self) -> &SampledText {
        &self.translation.sample
    }

    fn take_sample(&mut self) -> SampledText {
        std::mem::take(&mut self.translation.sample)
    }

    fn began(&self) -> bool {
        self.translation.began
    }

    fn error(&self) -> Option<&AnswerError> {
        self.translation.error.as_ref()
    }
}

impl Translation {
    fn judge(&mut self, piece: &Piece<'_>) {
        match piece {
            _ if self.is_closed() => {}
            Piece::Event { event, .. } => {
                if self.event(event).is_none() {
                    self.fail("The provider sent an event that cannot be read.");
                }
            }
            Piece::Overflow(_) => self.fail("The provider sent an event that is too long."),
            Piece::Silent(_) | Piece::LineFeed(_) => {}
        }
    }

    /// As [`Self::judge`], of what the stream broke off in: what cannot be read was not finished.
    fn judge_rest(&mut self, piece: &Piece<'_>) {
        if let Piece::Event { event, .. } = piece
            && !self.is_closed()
        {
            self.event(event);
        }
    }

    fn is_closed(&self) -> bool {
        self.done || self.error.is_some()
    }

    /// `None` if the event cannot be read.
    fn event(&mut self, event: &Event<'_>) -> Option<()> {
        let data = event.data.trim_ascii();
        // What is no object is a proxy's noise: `[DONE]`, for one.
        if data.first() != Some(&b'{') {
            return Some(());
        }
        let text = String::from_utf8_lossy(data);
        let read = StreamEvent::read(text.as_bytes(), event.name).ok()?;
        self.report.overwrite(&read.report);
        match read.kind {
            EventKind::BlockDelta => self.delta(read.index, &read.delta),
            EventKind::BlockStart => self.block_start(read.index, &read.block),
            EventKind::BlockStop => self.block_stop(read.index),
            EventKind::MessageStart => self.message_start(),
            EventKind::MessageDelta => {
                self.output_is_reported |= read.report.has_output();
                self.stop_reason = read.delta.stop_reason.map(StopReason::named).or(self.stop_reason);
            }
            EventKind::MessageStop => self.finish(),
            EventKind::Error => {
                let (event, _, error) = map_error_inside(data);
                self.chunks.event(&event);
                self.error = Some(error);
            }
            EventKind::Other => {}
        }
        Some(())
    }

    /// The first, or one that a proxy has put in when it tried again: blocks that were open will not be gone on with.
    fn message_start(&mut self) {
        let half_told =
            |block: &OpenBlock| matches!(block, OpenBlock::Call(Call { told: Told::AsCall(_) | Told::AsContent, .. }));
        if self.open.iter().any(|(_, block)| half_told(block)) {
            return self.fail("The provider began its answer anew in the middle of a tool call.");
        }
        self.open.clear();
        self.greet();
    }

    fn greet(&mut self) {
        if !self.greeted {
            self.greeted = true;
            self.chunks.delta(|out| out.extend_from_slice(br#""role":"assistant","content":"","refusal":null"#));
        }
    }

    fn block_start(&mut self, index: u64, block: &Block<'_>) {
        self.block_stop(index);
        if self.open.len() == BLOCKS_OPEN_MAX {
            return self.fail("The provider sent more at once than can be followed.");
        }
        let mut open = match block.kind {
            BlockKind::Thinking => OpenBlock::Thinking(Draft::default()),
            BlockKind::ToolUse => {
                self.began = true;
                OpenBlock::Call(self.call(block))
            }
            BlockKind::RedactedThinking => {
                self.began = true;
                if let Some(data) = block.data {
                    self.thinking.redacted(data);
                }
                OpenBlock::Plain
            }
            BlockKind::Text | BlockKind::Other => OpenBlock::Plain,
        };
        // Blocks begin empty; where one does not, what it has is its first delta.
        match (&mut open, block.kind) {
            (OpenBlock::Thinking(draft), _) => self.think(draft, block.thinking, block.signature),
            (OpenBlock::Plain, BlockKind::Text) => self.content(block.text),
            _ => {}
        }
        self.open.push((index, open));
    }

    fn call(&mut self, block: &Block<'_>) -> Call {
        let inside = |text: Option<RawStr<'_>>| {
            let mut inside = Vec::new();
            if let Some(text) = text {
                push_inside(&mut inside, text);
            }
            inside
        };
        let mut given = Vec::new();
        push_stringified(&mut given, block.input.unwrap_or(b"{}"));
        let name = inside(block.name);
        self.sample.push(&name);
        let told = if name == SCHEMA_TOOL.as_bytes() { Told::AsContent } else { Told::Nothing };
        Call { id: inside(block.id), name, held: Vec::new(), given, told }
    }

    fn delta(&mut self, index: u64, delta: &Delta<'_>) {
        if delta.text.is_some() {
            return self.content(delta.text);
        }
        let Some(at) = self.open.iter().position(|(open, _)| *open == index) else { return };
        // Taken out for the moment, for the rest is needed beside it.
        let mut block = std::mem::replace(&mut self.open[at].1, OpenBlock::Plain);
        match &mut block {
            OpenBlock::Thinking(draft) => self.think(draft, delta.thinking, delta.signature),
            OpenBlock::Call(call) => {
                if let Some(json) = delta.partial_json {
                    self.arguments(call, json);
                }
            }
            OpenBlock::Plain => {}
        }
        self.open[at].1 = block;
    }

    fn content(&mut self, text: Option<RawStr<'_>>) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.say(text);
            self.chunks.text("content", |out| push_inside(out, text));
        }
    }

    fn think(&mut self, draft: &mut Draft, thinking: Option<RawStr<'_>>, signature: Option<RawStr<'_>>) {
        if let Some(text) = thinking.filter(|text| !text.is_empty()) {
            self.say(text);
            self.chunks.text("reasoning_content", |out| push_inside(out, text));
            self.thinking.think(draft, text);
        }
        if let Some(text) = signature {
            self.thinking.sign(draft, text);
        }
    }

    fn arguments(&mut self, call: &mut Call, json: RawStr<'_>) {
        if json.is_empty() {
            return;
        }
        self.say(json);
        push_inside(&mut call.held, json);
        if call.told != Told::Nothing || call.held.len() > CALL_BYTES_HELD_MAX {
            self.tell(call);
        }
    }

    /// What every piece that says something brings about.
    fn say(&mut self, text: RawStr<'_>) {
        self.began = true;
        self.sample.push(text.raw());
        self.greet();
    }

    /// Tells the client of a call, or goes on with it.
    fn tell(&mut self, call: &mut Call) {
        self.greet();
        if call.told == Told::Nothing {
            call.told = Told::AsCall(self.calls);
            let index = self.calls;
            self.calls += 1;
            self.chunks.delta(|out| {
                out.extend_from_slice(b"\"tool_calls\":[{\"index\":");
                push_number(out, index);
                out.extend_from_slice(b",\"id\":\"");
                out.extend_from_slice(&call.id);
                out.extend_from_slice(b"\",\"type\":\"function\",\"function\":{\"name\":\"");
                out.extend_from_slice(&call.name);
                out.extend_from_slice(b"\",\"arguments\":\"\"}}]");
            });
        }
        // What was given at the beginning would now be a second time.
        call.given.clear();
        let held = std::mem::take(&mut call.held);
        match call.told {
            Told::AsCall(index) => self.chunks.arguments(index, |out| out.extend_from_slice(&held)),
            Told::AsContent => self.chunks.text("content", |out| out.extend_from_slice(&held)),
            Told::Nothing => {}
        }
    }

    fn block_stop(&mut self, index: u64) {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == index) {
            let (_, block) = self.open.remove(at);
            self.close(block);
        }
    }

    fn close(&mut self, block: OpenBlock) {
        match block {
            OpenBlock::Thinking(draft) => self.thinking.finish(draft),
            OpenBlock::Call(mut call) => {
                if call.held.is_empty() {
                    // Nothing came, or nothing is left to tell.
                    call.held = std::mem::take(&mut call.given);
                    self.sample.push(&call.held);
                }
                if !call.held.is_empty() {
                    self.tell(&mut call);
                }
            }
            OpenBlock::Plain => {}
        }
    }

    /// The message has ended.
    fn finish(&mut self) {
        self.greet();
        for (_, block) in std::mem::take(&mut self.open) {
            self.close(block);
        }
        if let Some(blocks) = self.thinking.json() {
            self.chunks.delta(|out| {
                out.extend_from_slice(b"\"thinking_blocks\":[");
                out.extend_from_slice(blocks);
                out.push(b']');
            });
        }
        let has_calls = self.calls > 0;
        let default = if has_calls { StopReason::ToolUse } else { StopReason::Stop };
        let reason = self.stop_reason.unwrap_or(default).finish_reason(has_calls);
        self.chunks.finish(reason, self.report.usage());
        self.done = true;
        self.output_is_reported = true;
    }

    fn fail(&mut self, message: &'static str) {
        self.chunks.event(&error_event(&Refusal::new(Cause::UpstreamError, message)));
        self.error = Some(AnswerError { message: message.into(), ..AnswerError::default() });
    }
}

#[cfg(test)]
mod tests;
