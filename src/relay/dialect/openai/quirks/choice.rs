//! One choice of an answer, from whatever a vendor makes of it to OpenAI's.

use super::calls::{Calls, TooMany};
use super::finish::{Finish, finish};
use super::said::{Other, Said};
use super::writer::ObjectWriter;
use crate::relay::dialect::openai::usage::Report;
use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::meter::SampledText;

/// The most bytes of a vendor's own members that wait for the chunk that finishes a choice.
const OTHERS_BYTES_MAX: usize = 16 * 1024;

/// A choice as sent, in a chunk or in a whole answer.
#[derive(Debug, Default)]
pub(super) struct Sent<'a> {
    /// Its number; not all say it.
    pub(super) index: Option<u64>,
    /// What it says.
    pub(super) said: Said<'a>,
    /// `logprobs`, unless null.
    pub(super) logprobs: Option<&'a [u8]>,
    /// Its `finish_reason`, as the inside of a string; none is empty.
    pub(super) finish: &'a [u8],
    /// Usage that stands in it (Moonshot).
    pub(super) usage: Option<Report>,
    /// All else that is not null.
    pub(super) others: Vec<Other<'a>>,
}

impl<'a> Sent<'a> {
    /// Takes a choice, whose words are under `words`: `delta` or `message`.
    pub(super) fn read(cursor: &mut Cursor<'a>, words: &[u8]) -> Result<Self, Fault> {
        let mut sent = Self::default();
        if cursor.kind()? != Kind::Object {
            return cursor.skip().map(|()| sent);
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match (key.raw(), cursor.kind()?) {
                (b"index", _) => {
                    sent.index = str::from_utf8(cursor.raw()?).ok().and_then(|digits| digits.parse().ok());
                }
                (key, _) if key == words => sent.said = Said::read(cursor)?,
                (b"finish_reason", Kind::String) => sent.finish = cursor.string()?.raw(),
                (b"usage", _) => sent.usage = Some(Report::read(cursor)?),
                (b"finish_reason" | b"delta" | b"message", _) | (_, Kind::Null) => cursor.skip()?,
                (b"logprobs", _) => sent.logprobs = Some(cursor.raw()?),
                (key, _) => sent.others.push((key, cursor.raw()?)),
            }
        }
        Ok(sent)
    }
}

/// A choice as it has been passed on so far.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) index: u64,
    /// The role has been told.
    greeted: bool,
    calls: Calls,
    /// Why it has ended, once it has. The client is told at the end of the stream, for some say it more than once and go on.
    finish: Option<&'static str>,
    /// The vendor's own members of the chunk that said so, each with a comma before it.
    finish_others: Vec<u8>,
}

/// What became of a choice of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// It was written.
    Written,
    /// There was nothing to write.
    Nothing,
}

/// Why an answer cannot be passed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The provider gave up, for this reason.
    Failed(Box<str>),
    /// More tool calls than anybody makes.
    TooManyCalls,
}

impl From<TooMany> for Broken {
    fn from(_: TooMany) -> Self {
        Self::TooManyCalls
    }
}

impl Choice {
    /// At its beginning.
    pub(super) fn new(index: u64) -> Self {
        Self { index, ..Self::default() }
    }

    /// Whether it has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Passes a chunk's part of it on. `mint` is what the ids begin with of calls that have none.
    pub(super) fn pass(
        &mut self,
        sent: &Sent<'_>,
        mint: &str,
        out: &mut Vec<u8>,
        sample: &mut SampledText,
    ) -> Result<Result<Passed, Broken>, Fault> {
        let finishes = match finish(sent.finish) {
            Finish::Failed => return Ok(Err(Broken::Failed(String::from_utf8_lossy(sent.finish).into()))),
            Finish::For(reason) => Some(reason),
            Finish::None => None,
        };
        let start = out.len();
        let mut object = ObjectWriter::open(out);
        object.number(b"index", self.index);
        let mut delta = ObjectWriter::open(object.key(b"delta"));
        if let Err(too_many) = self.write_delta(&sent.said, mint, &mut delta, sample)? {
            return Ok(Err(too_many.into()));
        }
        let is_silent = delta.is_empty() && sent.logprobs.is_none();
        delta.close();
        object.raw(b"logprobs", sent.logprobs.unwrap_or(b"null"));
        object.raw(b"finish_reason", b"null");
        match finishes {
            Some(reason) => self.finish(reason, &sent.others),
            None => object.others(&sent.others),
        }
        object.close();
        if is_silent && (finishes.is_some() || sent.others.is_empty()) {
            out.truncate(start);
            return Ok(Ok(Passed::Nothing));
        }
        Ok(Ok(Passed::Written))
    }

    fn write_delta(
        &mut self,
        said: &Said<'_>,
        mint: &str,
        delta: &mut ObjectWriter<'_>,
        sample: &mut SampledText,
    ) -> Result<Result<(), TooMany>, Fault> {
        let greets = !std::mem::replace(&mut self.greeted, true);
        if greets {
            delta.raw(b"role", br#""assistant""#);
        }
        if !said.content.is_empty() {
            delta.string(b"content", &said.content);
        } else if greets {
            // As OpenAI begins: null where the turn begins with a call.
            delta.raw(b"content", if said.tool_calls.is_some() { b"null" } else { br#""""# });
        }
        write_text(said, delta, sample);
        match said.tool_calls {
            Some(array) => self.calls.write_deltas(array, mint, delta, sample),
            None => Ok(Ok(())),
        }
    }

    fn finish(&mut self, reason: &'static str, others: &[Other<'_>]) {
        self.finish.get_or_insert(reason);
        self.finish_others.clear();
        let bytes: usize = others.iter().map(|(key, value)| key.len() + value.len() + 4).sum();
        if bytes <= OTHERS_BYTES_MAX {
            ObjectWriter::resume(&mut self.finish_others).others(others);
        }
    }

    /// Why it ended, as the client is told: an answer that calls tools has not just stopped. Without a word of the
    /// provider's, who has closed the stream all the same, it has.
    fn reason(&self) -> &'static str {
        match self.finish.unwrap_or("stop") {
            "stop" if !self.calls.is_empty() => "tool_calls",
            reason => reason,
        }
    }

    /// Writes the calls' arguments that are still missing; `false` if none are.
    pub(super) fn write_missing(&self, out: &mut Vec<u8>) -> bool {
        if self.reason() != "tool_calls" {
            return false;
        }
        let start = out.len();
        let mut object = ObjectWriter::open(out);
        object.number(b"index", self.index);
        let mut delta = ObjectWriter::open(object.key(b"delta"));
        self.calls.write_missing_arguments(&mut delta);
        let has_any = !delta.is_empty();
        delta.close();
        object.raw(b"logprobs", b"null");
        object.raw(b"finish_reason", b"null");
        object.close();
        if !has_any {
            out.truncate(start);
        }
        has_any
    }

    /// Writes its end.
    pub(super) fn write_finish(&self, out: &mut Vec<u8>) {
        let mut object = ObjectWriter::open(out);
        object.number(b"index", self.index);
        object.raw(b"delta", b"{}");
        object.raw(b"logprobs", b"null");
        object.string(b"finish_reason", self.reason().as_bytes());
        object.written(&self.finish_others);
        object.close();
    }

    /// Writes a whole choice, of an answer that is no stream.
    pub(super) fn write_whole(
        &mut self,
        sent: &Sent<'_>,
        mint: &str,
        out: &mut Vec<u8>,
        sample: &mut SampledText,
    ) -> Result<Result<(), Broken>, Fault> {
        match finish(sent.finish) {
            Finish::Failed => return Ok(Err(Broken::Failed(String::from_utf8_lossy(sent.finish).into()))),
            Finish::For(reason) => self.finish(reason, &[]),
            Finish::None => {}
        }
        let said = &sent.said;
        let mut object = ObjectWriter::open(out);
        object.number(b"index", self.index);
        let mut message = ObjectWriter::open(object.key(b"message"));
        message.raw(b"role", br#""assistant""#);
        if said.content.is_empty() {
            message.raw(
                b"content",
                if said.has_words() || self.finish == Some("content_filter") { b"null" } else { br#""""# },
            );
        } else {
            message.string(b"content", &said.content);
        }
        if said.refusal.is_empty() {
            message.raw(b"refusal", b"null");
        }
        write_text(said, &mut message, sample);
        if let Some(array) = said.tool_calls
            && let Err(too_many) = self.calls.write_whole(array, mint, &mut message, sample)?
        {
            return Ok(Err(too_many.into()));
        }
        message.close();
        object.raw(b"logprobs", sent.logprobs.unwrap_or(b"null"));
        object.string(b"finish_reason", self.reason().as_bytes());
        object.others(&sent.others);
        object.close();
        Ok(Ok(()))
    }
}

/// What deltas and messages have alike, and a sample of all that was said.
fn write_text(said: &Said<'_>, object: &mut ObjectWriter<'_>, sample: &mut SampledText) {
    sample.push(&said.content);
    sample.push(&said.reasoning);
    sample.push(said.refusal);
    if !said.refusal.is_empty() {
        object.string(b"refusal", said.refusal);
    }
    if !said.reasoning.is_empty() {
        object.string(b"reasoning_content", &said.reasoning);
    }
    object.others(&said.others);
}
