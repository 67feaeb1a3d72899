//! The beginning of a stream, held back until its first event is there: a provider that has begun to answer may still say,
//! before anything else, that it cannot. Nothing has passed to the client then, and another can be asked. Models may think
//! for long before they say anything: when the client would have waited in silence for too long, the head passes by itself.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora::{Error, ErrorType, Result};

use super::clock::micros;
use super::exchange::{Exchange, Step};
use super::passing::{Prepared, truncated};
use super::phases::Relay;
use crate::relay::dialect::{AnswerError, ProviderError};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::sse::{Piece, SseParser};

/// A stream's first event was an error, and nobody else is asked.
pub(super) const OPENED_BADLY: ErrorType = ErrorType::Custom("OpenedBadly");

/// What is held back of a stream at most; more of it than this without an event is believed.
const OPENING_BYTES_MAX: usize = 64 * 1024;
/// The status that an error is taken for which comes in a good answer's place and does not say what it is.
const ERROR_STATUS: u16 = 500;

/// A stream that has no event yet.
pub(super) struct Opening {
    prepared: Prepared,
    parser: SseParser,
    held: BytesMut,
    has_event: bool,
    /// Until when comments are held back. They keep a connection alive, and are worth passing at some time.
    until_us: u64,
}

impl Opening {
    pub(super) fn new(prepared: Prepared, now_us: u64, patience: Duration) -> Self {
        let until_us = now_us.saturating_add(micros(patience));
        Self { prepared, parser: SseParser::new(OPENING_BYTES_MAX), held: BytesMut::new(), has_event: false, until_us }
    }

    /// Takes a piece; `last` if no other follows.
    fn push(&mut self, piece: &Bytes, last: bool) {
        let has_event = &mut self.has_event;
        let mut look = |piece: Piece<'_>| *has_event |= matches!(piece, Piece::Event { .. } | Piece::Overflow(_));
        self.parser.push(piece, &mut look);
        if last {
            self.parser.finish(look);
        }
        self.held.extend_from_slice(piece);
    }

    /// Whether it is known enough to let it pass, or not to.
    fn is_over(&self, now_us: u64) -> bool {
        self.has_event || self.held.len() > OPENING_BYTES_MAX || (!self.held.is_empty() && now_us >= self.until_us)
    }
}

impl Relay {
    /// Takes a piece of a stream that may still be refused, and gives what the client gets of it: all that was held back,
    /// once it is known to be an answer.
    ///
    /// # Errors
    /// It is none: another is asked, or the client told.
    pub(super) fn open(&self, exchange: &mut Exchange, piece: &Bytes, last: bool) -> Result<Bytes> {
        let now_us = exchange.arrival.clock.now_us();
        let Step::Dispatched(dispatch) = &mut exchange.step else { return Ok(Bytes::new()) };
        let Some(opening) = &mut dispatch.opening else { return Ok(Bytes::new()) };
        opening.push(piece, last);
        let is_over = opening.is_over(now_us);
        if !is_over && !last {
            return Ok(Bytes::new());
        }
        let Some(Opening { mut prepared, held, .. }) = dispatch.opening.take() else { return Ok(Bytes::new()) };
        let passed = prepared.reader.pass(held.freeze());
        if !is_over {
            // An error that is no event is seen at the end.
            prepared.reader.end();
        }
        let told = match prepared.reader.error() {
            // The client has the head: it is told of an error as of one in the middle.
            _ if dispatch.tape.has_head_passed() => None,
            // Words that came with it pass, whether or not they came in one piece.
            Some(error) if !prepared.reader.began() => Some(told_of(error)),
            _ => (!is_over).then(|| ProviderError::Provider(truncated())),
        };
        let told = match told {
            Some(told) => told,
            None => {
                dispatch.tape.open(false);
                self.take_up(prepared, exchange)?;
                if let Step::Answering(answering) = &mut exchange.step {
                    answering.note(&passed, now_us);
                }
                return Ok(passed);
            }
        };
        dispatch.failure = Some(self.refused(dispatch, "error_event", ERROR_STATUS, told)?);
        Error::e_explain(OPENED_BADLY, "the stream began with an error").map_err(Error::into_up)
    }
}

/// What the client is told of an error in an answer's place.
fn told_of(error: &AnswerError) -> ProviderError {
    let told = error.told.as_deref().cloned();
    told.unwrap_or_else(|| ProviderError::Provider(Refusal::new(Cause::UpstreamError, "The provider failed.")))
}
