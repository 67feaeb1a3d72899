//! The streamed answer: Gemini's events in, OpenAI's chunks out, each as soon as it is there.

use bytes::Bytes;

use super::chunks::Chunks;
use super::error::map_answer_error;
use super::progress::{Conclusion, Progress, failed};
use super::response::{self, Few, Response};
use super::signatures::SignatureScope;
use crate::relay::dialect::{Answer, AnswerError, AnswerTerms, End, Outcome, ProviderError, error_event};
use crate::relay::json::{Fault, What};
use crate::relay::meter::{SampledText, Usage};
use crate::relay::refusal::Refusal;
use crate::relay::sse::{Event, Piece, SseParser};

/// The longest event that is read. An image comes as one event of some two million bytes.
pub const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most bytes of an error without an event's form that are gathered.
const LOOSE_BYTES_MAX: usize = 64 * 1024;

/// A streamed answer on its way through.
///
/// Gemini ends its events with CRLF, reports usage on each, may finish an answer more than once, and has no `[DONE]`: an
/// answer's finish, its usage and `[DONE]` are told when the body has ended. An error in the middle comes as an event, or
/// as bare JSON between events; either way the client gets it as one, and nothing behind it.
#[derive(Debug)]
pub struct StreamTranslator {
    parser: SseParser,
    state: State,
}

#[derive(Debug)]
struct State {
    progress: Progress,
    chunks: Chunks,
    /// Bare JSON that is not complete.
    loose: Vec<u8>,
    error: Option<AnswerError>,
    /// How the answer has ended, once it has.
    outcome: Option<Outcome>,
}

impl StreamTranslator {
    /// At the beginning of an answer to a request for so many choices. The signatures of its calls are remembered.
    pub fn new(terms: &AnswerTerms, choices: u64, signatures: SignatureScope) -> Self {
        Self::with_event_bytes_max(terms, choices, signatures, EVENT_BYTES_MAX)
    }

    fn with_event_bytes_max(
        terms: &AnswerTerms,
        choices: u64,
        signatures: SignatureScope,
        event_bytes_max: usize,
    ) -> Self {
        let state = State {
            progress: Progress::new(terms, choices, signatures),
            chunks: Chunks::new(terms),
            loose: Vec::new(),
            error: None,
            outcome: None,
        };
        Self { parser: SseParser::new(event_bytes_max), state }
    }
}

impl Answer for StreamTranslator {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let state = &mut self.state;
        if state.outcome.is_some() {
            return Bytes::new();
        }
        state.chunks.reserve(chunk.len());
        self.parser.push(&chunk, |piece| state.piece(&piece));
        state.chunks.take()
    }

    fn end(&mut self) -> End {
        let state = &mut self.state;
        if state.outcome.is_none() {
            self.parser.finish(|piece| state.rest(&piece));
        }
        let outcome = match state.outcome {
            Some(outcome) => outcome,
            None => state.conclude(),
        };
        state.outcome = Some(outcome);
        End { outcome, append: state.chunks.take() }
    }

    fn usage(&self) -> Option<Usage> {
        self.state.progress.report.usage()
    }

    /// Early reports have the prompt alone: of an answer that breaks off behind them, its own tokens are still to be counted.
    fn output_is_reported(&self) -> bool {
        self.state.outcome == Some(Outcome::Complete) || self.state.progress.report.has_output()
    }

    fn sample(&self) -> &SampledText {
        &self.state.progress.sample
    }

    fn take_sample(&mut self) -> SampledText {
        std::mem::take(&mut self.state.progress.sample)
    }

    fn began(&self) -> bool {
        self.state.progress.began
    }

    fn error(&self) -> Option<&AnswerError> {
        self.state.error.as_ref()
    }
}

impl State {
    fn piece(&mut self, piece: &Piece<'_>) {
        match piece {
            _ if self.outcome.is_some() => {}
            Piece::Event { event, place } => {
                self.beside(event, place.bytes);
                if self.outcome.is_none() && self.data(&event.data).is_err() {
                    self.fail(&failed("The provider's answer has an event that cannot be read."));
                }
            }
            Piece::Silent(place) => self.bare(place.bytes),
            Piece::Overflow(_) => self.fail(&failed("The provider's answer has an event that is too long to be read.")),
            Piece::LineFeed(_) => {}
        }
    }

    /// What the stream broke off in, if it did: it counts only if it is complete.
    fn rest(&mut self, piece: &Piece<'_>) {
        match piece {
            Piece::Event { event, place } => {
                self.beside(event, place.bytes);
                if self.outcome.is_none() {
                    let _ = self.data(&event.data);
                }
            }
            Piece::Silent(place) => self.bare(place.bytes),
            _ => {}
        }
    }

    /// An event's data.
    fn data(&mut self, data: &[u8]) -> Result<(), Fault> {
        if data.trim_ascii() == b"[DONE]" {
            return Ok(());
        }
        // What is passed on as it came must be what JSON is: UTF-8.
        match str::from_utf8(data) {
            Ok(_) => self.tell(&response::read(data)?),
            Err(_) => self.tell(&response::read(String::from_utf8_lossy(data).as_bytes())?),
        }
        Ok(())
    }

    fn tell(&mut self, responses: &Few<Response<'_>>) {
        for response in responses.iter() {
            if self.outcome.is_some() {
                return;
            }
            match response.error {
                Some(error) => self.error(error),
                None => {
                    if let Err(refusal) = self.progress.tell(response, &mut self.chunks) {
                        self.fail(&refusal);
                    }
                }
            }
        }
    }

    /// An error in the answer's place. Behind an answer that is complete it takes nothing back.
    fn error(&mut self, body: &[u8]) {
        if self.progress.is_finished() {
            return;
        }
        let (told, seen) = map_answer_error(body);
        match told {
            ProviderError::Provider(refusal) => self.chunks.event(&error_event(&refusal)),
            ProviderError::Request { body, .. } => self.chunks.event(&[b"data: ", &body[..], b"\n\n"].concat()),
        }
        self.error = Some(seen);
        self.outcome = Some(Outcome::Errored);
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.chunks.event(&error_event(refusal));
        self.error = Some(AnswerError { message: (*refusal.message).into(), ..AnswerError::default() });
        self.outcome = Some(Outcome::Errored);
    }

    /// The lines of an event that are no fields. Nearly always there are none.
    fn beside(&mut self, event: &Event<'_>, block: &[u8]) {
        if let Some(data_at) = event.data_at
            && block.starts_with(b"data:")
            && block[data_at + event.data.len()..].iter().all(|byte| matches!(byte, b'\r' | b'\n'))
        {
            // The event is the whole block; bare JSON before it has come to nothing.
            self.loose.clear();
            return;
        }
        let is_field =
            |line: &&[u8]| [&b"data"[..], b"event", b"id", b"retry", b":"].iter().any(|name| line.starts_with(name));
        let lines = block.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !is_field(line));
        self.bare(&lines.collect::<Vec<_>>().join(&b'\n'));
        self.loose.clear();
    }

    /// Lines that are no event: comments and the like, or bare JSON, which may go on behind a blank line.
    fn bare(&mut self, lines: &[u8]) {
        let text = if self.loose.is_empty() {
            let Some(begin) = bare_json(lines) else { return };
            &lines[begin..]
        } else {
            lines
        };
        if self.loose.len() + text.len() > LOOSE_BYTES_MAX {
            return self.fail(&failed("The provider's answer has something in it that is no event."));
        }
        self.loose.extend_from_slice(text);
        let loose = std::mem::take(&mut self.loose);
        match self.data(loose.trim_ascii()) {
            Ok(()) => {}
            Err(Fault { what: What::Ended, .. }) => self.loose = loose,
            Err(_) => self.fail(&failed("The provider's answer has something in it that is no event.")),
        }
    }

    /// The body has ended.
    fn conclude(&mut self) -> Outcome {
        match self.progress.conclude(false, &mut self.chunks) {
            Conclusion::Complete => {
                self.chunks.end(self.progress.report.usage());
                Outcome::Complete
            }
            Conclusion::Truncated => Outcome::Truncated,
            Conclusion::Failed(refusal) => {
                self.fail(&refusal);
                Outcome::Errored
            }
        }
    }
}

/// Where a line begins that begins JSON.
fn bare_json(lines: &[u8]) -> Option<usize> {
    let begins = |at: usize| at == 0 || matches!(lines[at - 1], b'\r' | b'\n');
    memchr::memchr2_iter(b'{', b'[', lines).find(|&at| begins(at))
}
