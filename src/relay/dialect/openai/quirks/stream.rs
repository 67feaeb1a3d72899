//! The streamed answer of a provider that keeps to the dialect only roughly, put right as it passes.

use bytes::Bytes;

use super::choice::{Broken, Choice, Passed, Sent};
use super::writer::ObjectWriter;
use crate::relay::dialect::openai::fault::Trouble;
use crate::relay::dialect::openai::usage::{Report, write_usage};
use crate::relay::dialect::{Answer, AnswerError, AnswerTerms, End, Outcome};
use crate::relay::json::{Cursor, Fault, Kind, write_string};
use crate::relay::meter::{SampledText, Usage};
use crate::relay::sse::{Event, Piece, SseParser};

/// The longest event that is put right. Whole images and arguments come in one; past this the answer is given up.
pub const LOOSE_EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most choices of one answer; OpenAI's own bound on `n`.
const CHOICES_MAX: usize = 128;

const DONE: &[u8] = b"data: [DONE]\n\n";
/// Without a blank line: with one, some clients would dispatch an event of nothing (WIRE §0.4).
const COMMENT: &[u8] = b": ping\n";

/// Takes a vendor's events and gives OpenAI's: the same id, time and model in each chunk, a role once, dense tool indexes,
/// a finish once and at the end, usage once behind it and only if it was asked for, `[DONE]` once and only if all went well.
///
/// What a chunk says passes at once. Kept are the reasons for which choices have finished, the calls' ids and names, and
/// an event that has not wholly arrived.
#[derive(Debug)]
pub struct LooseStream {
    parser: SseParser,
    lines: Lines,
}

/// All but the parser, which lends what it reads.
#[derive(Debug)]
struct Lines {
    /// What every chunk begins with, up to its own members.
    head: Vec<u8>,
    /// What the ids begin with of calls that have none.
    mint: String,
    show_usage: bool,
    /// How many choices the client asked for.
    asked: u64,
    choices: Vec<Choice>,
    report: Report,
    /// What was reported inside a choice or under `x_groq`.
    report_elsewhere: Report,
    sample: SampledText,
    began: bool,
    error: Option<AnswerError>,
    done: bool,
    out: Vec<u8>,
}

impl LooseStream {
    /// At the beginning of an answer to a client that asked for so many choices.
    pub fn new(terms: AnswerTerms, choices: u64) -> Self {
        Self::with_event_bytes_max(&terms, choices, LOOSE_EVENT_BYTES_MAX)
    }

    fn with_event_bytes_max(terms: &AnswerTerms, choices: u64, event_bytes_max: usize) -> Self {
        let mut head = b"data: ".to_vec();
        write_identity(&mut head, terms, "chat.completion.chunk");
        let lines = Lines {
            head,
            mint: mint(terms),
            show_usage: terms.show_usage,
            asked: choices.clamp(1, CHOICES_MAX as u64),
            choices: Vec::new(),
            report: Report::default(),
            report_elsewhere: Report::default(),
            sample: SampledText::new(),
            began: false,
            error: None,
            done: false,
            out: Vec::new(),
        };
        Self { parser: SseParser::new(event_bytes_max), lines }
    }
}

/// Opens an object with what every chunk, or a whole answer, says of itself.
pub(super) fn write_identity(out: &mut Vec<u8>, terms: &AnswerTerms, object: &str) {
    out.extend_from_slice(b"{\"id\":");
    write_string(out, &terms.id);
    out.extend_from_slice(format!(",\"object\":\"{object}\",\"created\":{},\"model\":", terms.created).as_bytes());
    write_string(out, &terms.model);
}

/// What the ids begin with of calls that have none.
pub(super) fn mint(terms: &AnswerTerms) -> String {
    let own: String =
        terms.id.chars().filter(|character| character.is_ascii_alphanumeric() || *character == '-').collect();
    format!("call_{}_", own.trim_start_matches("chatcmpl-"))
}

impl Answer for LooseStream {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let lines = &mut self.lines;
        lines.out.reserve(chunk.len() + lines.head.len());
        self.parser.push(&chunk, |piece| lines.piece(&piece));
        std::mem::take(&mut lines.out).into()
    }

    fn end(&mut self) -> End {
        let lines = &mut self.lines;
        self.parser.finish(|piece| lines.piece(&piece));
        let outcome = match (&lines.error, lines.done || lines.is_finished()) {
            (Some(_), _) => Outcome::Errored,
            (None, true) => Outcome::Complete,
            (None, false) => Outcome::Truncated,
        };
        if outcome == Outcome::Complete {
            lines.close();
        }
        End { outcome, append: std::mem::take(&mut lines.out).into() }
    }

    fn is_whole(&self) -> bool {
        self.lines.done && self.lines.error.is_none()
    }

    fn usage(&self) -> Option<Usage> {
        self.lines.usage()
    }

    fn sample(&self) -> &SampledText {
        &self.lines.sample
    }

    fn take_sample(&mut self) -> SampledText {
        std::mem::take(&mut self.lines.sample)
    }

    fn began(&self) -> bool {
        self.lines.began
    }

    fn error(&self) -> Option<&AnswerError> {
        self.lines.error.as_ref()
    }
}

impl Lines {
    fn piece(&mut self, piece: &Piece<'_>) {
        if self.done || self.error.is_some() {
            return;
        }
        match piece {
            Piece::Event { event, .. } if event.data.trim_ascii() == b"[DONE]" => self.close(),
            Piece::Event { event, .. } => self.event(event),
            Piece::Silent(place) if place.bytes.starts_with(b":") => self.out.extend_from_slice(COMMENT),
            Piece::Silent(_) | Piece::LineFeed(_) => {}
            Piece::Overflow(_) => {
                self.fail(Trouble::upstream("overflow", "The provider sent an event that is too long."))
            }
        }
    }

    /// An event that is not JSON says nothing.
    fn event(&mut self, event: &Event<'_>) {
        // What is passed on must be UTF-8, whatever came.
        let data = String::from_utf8_lossy(&event.data);
        let mut whole = Cursor::new(data.as_bytes());
        if whole.skip().and_then(|()| whole.end()).is_err() {
            return;
        }
        let start = self.out.len();
        match self.chunk(data.as_bytes(), event.name == Some(b"error")) {
            Ok(None) => {}
            Ok(Some(trouble)) => {
                self.out.truncate(start);
                self.fail(trouble);
            }
            // Not to be: the text was walked before.
            Err(_) => self.out.truncate(start),
        }
    }

    fn chunk(&mut self, json: &[u8], is_named_error: bool) -> Result<Option<Trouble>, Fault> {
        let start = self.out.len();
        let mut cursor = Cursor::new(json);
        if cursor.kind()? != Kind::Object {
            return Ok(None);
        }
        self.out.extend_from_slice(&self.head);
        let (mut choices, mut error, mut has_message) = (None, None, false);
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match (key.raw(), cursor.kind()?) {
                (b"choices", Kind::Array) => choices = Some(cursor.raw()?),
                (b"usage", _) => self.report.overwrite(&Report::read(&mut cursor)?),
                (b"x_groq", Kind::Object) => error = error.or(self.x_groq(&mut cursor)?),
                // `p` is Mistral's padding.
                (b"id" | b"object" | b"created" | b"model" | b"p", _) | (_, Kind::Null) => cursor.skip()?,
                (b"error", _) => error = Some(cursor.raw()?),
                (b"message" | b"msg" | b"detail", _) => {
                    cursor.skip()?;
                    has_message = true;
                }
                (key, _) => ObjectWriter::resume(&mut self.out).raw(key, cursor.raw()?),
            }
        }
        // Some vendors' errors have no wrapping.
        if error.is_none() && choices.is_none() && (has_message || is_named_error) {
            error = Some(json);
        }
        match error {
            // OpenRouter tells in an error, behind the finish, why it has finished. That takes no answer back.
            Some(error) if !self.is_finished() => return Trouble::read(json, error).map(Some),
            Some(_) => {}
            None => {
                if let Some(broken) = self.choices(choices.unwrap_or(b"[]"), start)? {
                    return Ok(Some(broken.into()));
                }
                return Ok(None);
            }
        }
        self.out.truncate(start);
        Ok(None)
    }

    /// Writes a chunk's choices, and takes the chunk back to where it started if they say nothing.
    fn choices(&mut self, array: &[u8], start: usize) -> Result<Option<Broken>, Fault> {
        self.out.extend_from_slice(b",\"choices\":[");
        let (mut position, mut written) = (0, false);
        let mut cursor = Cursor::new(array);
        let mut items = cursor.array()?;
        while cursor.next_item(&mut items)? {
            let sent = Sent::read(&mut cursor, b"delta")?;
            if written {
                self.out.push(b',');
            }
            match self.choice(&sent, position)? {
                Ok(Passed::Written) => written = true,
                Ok(Passed::Nothing) if written => self.out.truncate(self.out.len() - 1),
                Ok(Passed::Nothing) => {}
                Err(broken) => return Ok(Some(broken)),
            }
            position += 1;
        }
        if written {
            self.end_chunk();
        } else {
            self.out.truncate(start);
        }
        Ok(None)
    }

    fn choice(&mut self, sent: &Sent<'_>, position: u64) -> Result<Result<Passed, Broken>, Fault> {
        let index = sent.index.unwrap_or(position);
        if let Some(report) = &sent.usage {
            self.report_elsewhere.overwrite(report);
        }
        let at = match self.choices.iter().position(|choice| choice.index == index) {
            Some(at) => at,
            None if self.choices.len() == CHOICES_MAX => return Ok(Ok(Passed::Nothing)),
            None => {
                self.choices.push(Choice::new(index));
                self.choices.len() - 1
            }
        };
        self.began |= sent.said.has_words() || !sent.finish.is_empty();
        self.choices[at].pass(sent, &self.mint, &mut self.out, &mut self.sample)
    }

    /// Usage under `x_groq`, and an error that may stand there.
    fn x_groq<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<Option<&'a [u8]>, Fault> {
        let mut error = None;
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match (key.raw(), cursor.kind()?) {
                (b"usage", _) => self.report_elsewhere.overwrite(&Report::read(cursor)?),
                (b"error", Kind::String | Kind::Object) => error = Some(cursor.raw()?),
                _ => cursor.skip()?,
            }
        }
        Ok(error)
    }

    fn end_chunk(&mut self) {
        self.out.extend_from_slice(if self.show_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" });
    }

    fn is_finished(&self) -> bool {
        self.choices.len() as u64 >= self.asked && self.choices.iter().all(Choice::is_finished)
    }

    fn usage(&self) -> Option<Usage> {
        self.report.usage().or_else(|| self.report_elsewhere.usage())
    }

    /// Ends the stream well: the finishes, the usage, `[DONE]`.
    fn close(&mut self) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let mut choices = std::mem::take(&mut self.choices);
        choices.sort_by_key(|choice| choice.index);
        for choice in &choices {
            let start = self.begin_chunk();
            if choice.write_missing(&mut self.out) {
                self.end_chunk();
            } else {
                self.out.truncate(start);
            }
            self.begin_chunk();
            choice.write_finish(&mut self.out);
            self.end_chunk();
        }
        self.choices = choices;
        if let (true, Some(usage)) = (self.show_usage, self.usage()) {
            self.begin_chunk();
            self.out.extend_from_slice(b"],\"usage\":");
            write_usage(&mut self.out, &usage);
            self.out.extend_from_slice(b"}\n\n");
        }
        self.out.extend_from_slice(DONE);
    }

    fn begin_chunk(&mut self) -> usize {
        let start = self.out.len();
        self.out.extend_from_slice(&self.head);
        self.out.extend_from_slice(b",\"choices\":[");
        start
    }

    /// Ends the stream badly.
    fn fail(&mut self, trouble: Trouble) {
        self.out.extend_from_slice(b"data: ");
        self.out.extend_from_slice(&trouble.body);
        self.out.extend_from_slice(b"\n\n");
        self.error = Some(trouble.error);
    }
}

impl From<Broken> for Trouble {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Failed(reason) => Self::upstream(&reason, "The provider could not finish its answer."),
            Broken::TooManyCalls => {
                Self::upstream("too many tool calls", "The provider called too many tools at once.")
            }
        }
    }
}

#[cfg(test)]
mod tests;
