//! The streamed answer: forwarded as it comes, and looked at.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::chunk::Progress;
use crate::relay::dialect::{Answer, AnswerError, End, Outcome};
use crate::relay::meter::{SampledText, Usage};
use crate::relay::sse::{EVENT_BYTES_MAX, Event, Piece, Place, SseParser};

const DONE: &[u8] = b"data: [DONE]\n\n";
/// How much room for changed bytes is taken at once. Several chunks share it.
const ROOM_BYTES: usize = 2048;

/// A streamed answer on its way through.
///
/// Where the client asked for usage, what comes is forwarded, the very same bytes and at once. Where it did not, the relay
/// still asked the provider: then the `usage` members are cut out of the chunks and the chunk that has nothing else is
/// dropped, for which an event that has not wholly arrived is held back. One too long to be held is let through as it is.
/// Behind `[DONE]` or an error nothing more is forwarded.
#[derive(Debug)]
pub struct StreamReader {
    parser: SseParser,
    gate: Gate,
    show_usage: bool,
    /// Room for what is not forwarded as it came.
    room: BytesMut,
}

/// What the pieces of the stream have shown, and so which of them pass.
#[derive(Debug, Default)]
struct Gate {
    progress: Progress,
    hide_usage: bool,
    /// How many choices the client asked for.
    choices: u64,
    /// `[DONE]` has passed.
    done: bool,
    /// `[DONE]` or an error has passed.
    closed: bool,
    /// Whether the last piece was forwarded; the line feed that belongs to it shares its fate.
    forwards: bool,
    /// What to cut out of the event at hand, in its data.
    cuts: Vec<Range<usize>>,
}

/// What becomes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Forward,
    Drop,
    /// Forward it without [`Gate::cuts`].
    Cut,
}

impl StreamReader {
    /// At the beginning of an answer to a client that asked for so many choices and, or not, to be shown the usage.
    pub fn new(show_usage: bool, choices: u64) -> Self {
        Self::with_event_bytes_max(show_usage, choices, EVENT_BYTES_MAX)
    }

    fn with_event_bytes_max(show_usage: bool, choices: u64, event_bytes_max: usize) -> Self {
        let gate = Gate { hide_usage: !show_usage, choices, ..Gate::default() };
        Self { parser: SseParser::new(event_bytes_max), gate, show_usage, room: BytesMut::new() }
    }

    fn pass_shown(&mut self, chunk: Bytes) -> Bytes {
        let gate = &mut self.gate;
        let mut forwarded = 0;
        self.parser.push(&chunk, |piece| {
            if gate.judge(&piece) != Fate::Drop {
                forwarded = place(&piece).chunk_end;
            }
        });
        if gate.closed { chunk.slice(..forwarded) } else { chunk }
    }

    fn pass_hidden(&mut self, chunk: &Bytes) -> Bytes {
        let gate = &mut self.gate;
        let mut outlet = Outlet { chunk, run: 0..0, room: &mut self.room };
        self.parser.push(chunk, |piece| match gate.judge(&piece) {
            Fate::Forward => outlet.forward(place(&piece)),
            Fate::Drop => {}
            Fate::Cut => outlet.forward_cut(&piece, &gate.cuts),
        });
        outlet.finish()
    }

    /// What is left at the end of the stream: an event without its blank line, of which nothing or something was forwarded.
    fn rest(&mut self) -> Bytes {
        if self.gate.closed || self.parser.is_between() {
            self.parser.finish(|_| {});
            return Bytes::new();
        }
        let gate = &mut self.gate;
        let none = Bytes::new();
        let mut outlet = Outlet { chunk: &none, run: 0..0, room: &mut self.room };
        // An overflow was forwarded as it came, and nothing of it was held.
        let mut forwarded = true;
        self.parser.finish(|piece| {
            forwarded = !gate.hide_usage;
            match gate.judge_rest(&piece) {
                Fate::Drop => {}
                _ if !gate.hide_usage => {}
                fate => {
                    forwarded = true;
                    let cuts: &[_] = if fate == Fate::Cut { &gate.cuts } else { &[] };
                    outlet.forward_cut(&piece, cuts);
                }
            }
        });
        if forwarded {
            // Ends the line, if it has not ended, and the event. A blank line too many says nothing.
            outlet.write(b"\n\n");
        }
        outlet.finish()
    }
}

impl Answer for StreamReader {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        if self.show_usage { self.pass_shown(chunk) } else { self.pass_hidden(&chunk) }
    }

    fn end(&mut self) -> End {
        let rest = self.rest();
        let gate = &mut self.gate;
        if gate.progress.error.is_some() {
            return End { outcome: Outcome::Errored, append: rest };
        }
        if gate.done {
            return End { outcome: Outcome::Complete, append: rest };
        }
        if !gate.progress.is_finished(gate.choices) {
            return End { outcome: Outcome::Truncated, append: rest };
        }
        gate.done = true;
        gate.closed = true;
        End { outcome: Outcome::Complete, append: [&rest[..], DONE].concat().into() }
    }

    fn usage(&self) -> Option<Usage> {
        let progress = &self.gate.progress;
        progress.report.usage().or_else(|| progress.report_elsewhere.usage())
    }

    fn sample(&self) -> &SampledText {
        &self.gate.progress.sample
    }

    fn began(&self) -> bool {
        self.gate.progress.began
    }

    fn error(&self) -> Option<&AnswerError> {
        self.gate.progress.error.as_ref()
    }
}

impl Gate {
    fn judge(&mut self, piece: &Piece<'_>) -> Fate {
        let fate = match piece {
            Piece::LineFeed(_) if self.forwards => Fate::Forward,
            Piece::LineFeed(_) => Fate::Drop,
            _ if self.closed => Fate::Drop,
            Piece::Event { event, .. } => self.judge_event(event).unwrap_or(Fate::Forward),
            Piece::Silent(_) | Piece::Overflow(_) => Fate::Forward,
        };
        self.forwards = fate != Fate::Drop;
        fate
    }

    /// As [`Self::judge`], of what the stream broke off in: what cannot be read is worth nothing to the client.
    fn judge_rest(&mut self, piece: &Piece<'_>) -> Fate {
        match piece {
            Piece::Event { event, .. } => self.judge_event(event).unwrap_or(Fate::Drop),
            _ => Fate::Drop,
        }
    }

    /// `None` if the event cannot be read.
    fn judge_event(&mut self, event: &Event<'_>) -> Option<Fate> {
        self.cuts.clear();
        if event.data.trim_ascii() == b"[DONE]" {
            self.done = true;
            self.closed = true;
            return Some(Fate::Forward);
        }
        let Ok(chunk) = self.progress.look(&event.data, &mut self.cuts) else {
            self.cuts.clear();
            return None;
        };
        self.closed = chunk.error;
        Some(match self.hide_usage {
            true if chunk.only_usage => Fate::Drop,
            true if !self.cuts.is_empty() => Fate::Cut,
            _ => Fate::Forward,
        })
    }
}

fn place<'a>(piece: &Piece<'a>) -> Place<'a> {
    match piece {
        Piece::Event { place, .. } | Piece::Silent(place) | Piece::Overflow(place) | Piece::LineFeed(place) => *place,
    }
}

/// Puts together what is forwarded of a chunk: a slice of it as long as that can be, a copy if not.
struct Outlet<'a> {
    chunk: &'a Bytes,
    /// The part of the chunk that is to be forwarded next, not yet copied.
    run: Range<usize>,
    room: &'a mut BytesMut,
}

impl Outlet<'_> {
    fn forward(&mut self, place: Place<'_>) {
        match place.chunk_at {
            Some(start) => self.extend(start..place.chunk_end),
            None => self.write(place.bytes),
        }
    }

    /// Forwards an event without some spans of its data.
    fn forward_cut(&mut self, piece: &Piece<'_>, cuts: &[Range<usize>]) {
        let Piece::Event { event, place } = piece else { return };
        let Some(data_at) = event.data_at else { return self.write_anew(event, cuts) };
        let mut from = 0;
        for cut in cuts {
            self.forward_part(place, from..data_at + cut.start);
            from = data_at + cut.end;
        }
        self.forward_part(place, from..place.bytes.len());
    }

    fn forward_part(&mut self, place: &Place<'_>, part: Range<usize>) {
        match place.chunk_at {
            Some(start) => self.extend(start + part.start..start + part.end),
            None => self.write(&place.bytes[part]),
        }
    }

    /// An event whose data stands in several lines: written again, for the cuts may run across lines.
    fn write_anew(&mut self, event: &Event<'_>, cuts: &[Range<usize>]) {
        let mut data = event.data.to_vec();
        for cut in cuts.iter().rev() {
            data.drain(cut.clone());
        }
        if let Some(name) = event.name {
            self.write(&[b"event: ", name, b"\n"].concat());
        }
        for line in data.split(|&byte| byte == b'\n') {
            self.write(&[b"data: ", line, b"\n"].concat());
        }
        self.write(b"\n");
    }

    fn extend(&mut self, part: Range<usize>) {
        if part.start == self.run.end {
            self.run.end = part.end;
        } else {
            self.flush();
            self.run = part;
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.flush();
        self.reserve(bytes.len());
        self.room.extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        let run = std::mem::take(&mut self.run);
        if !run.is_empty() {
            self.reserve(self.chunk.len());
            self.room.extend_from_slice(&self.chunk[run]);
        }
    }

    fn reserve(&mut self, bytes: usize) {
        if self.room.capacity() - self.room.len() < bytes {
            self.room.reserve(bytes.max(ROOM_BYTES));
        }
    }

    fn finish(mut self) -> Bytes {
        if self.room.is_empty() {
            return self.chunk.slice(self.run);
        }
        self.flush();
        self.room.split().freeze()
    }
}
