//! The committed answer: its head as the client gets it, what follows its last piece, and what the client is told when it
//! breaks.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::answer::{HEADERS_USUAL, JSON};
use super::exchange::{Exchange, Step};
use super::opening::Opening;
use super::phases::{Relay, out_of_order};
use super::tape::{NOT_BILLED, Substitute, UPSTREAM_OVERDUE};
use super::{answer, upstream};
use crate::relay::dialect::{self, Answer, AnswerTerms, Outcome, ProviderError, error_event};
use crate::relay::refusal::{Cause, Refusal};

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const X_TOLLGATE_DROPPED: HeaderName = HeaderName::from_static("x-tollgate-dropped");
const X_TOLLGATE_OUTPUT_TOKENS_MAX: HeaderName = HeaderName::from_static("x-tollgate-output-tokens-max");

/// An answer that may pass.
pub(super) struct Prepared {
    /// Its content type, as the client is told it.
    pub(super) kind: HeaderValue,
    /// Its head, where it is told only when it is whole.
    pub(super) late_head: Option<Box<ResponseHeader>>,
    pub(super) reader: Box<dyn Answer + Sync>,
    pub(super) is_stream: bool,
}

impl Relay {
    /// Rewrites the head of an answer. A document is taken up, a stream has to begin first.
    pub(super) fn commit(&self, head: &mut ResponseHeader, exchange: &mut Exchange) -> Result<()> {
        let prepared = prepare(head, exchange)?;
        if !prepared.is_stream {
            return self.take_up(prepared, exchange);
        }
        let now_us = exchange.arrival.clock.now_us();
        let patience = exchange.arrival.snapshot.limits.stream_silence_max;
        let Some(dispatch) = exchange.dispatch_mut() else { return out_of_order("no request is dispatched") };
        dispatch.tape.open(true);
        dispatch.tape.comment_every(patience);
        dispatch.opening = Some(Opening::new(prepared, now_us, patience));
        Ok(())
    }

    /// From here the answer passes, and no other upstream is asked.
    pub(super) fn take_up(&self, prepared: Prepared, exchange: &mut Exchange) -> Result<()> {
        let Prepared { kind, late_head, reader, is_stream } = prepared;
        let Some(dispatch) = exchange.dispatch_mut() else { return out_of_order("no request is dispatched") };
        self.attempt(dispatch, "ok");
        dispatch.tape.hold(late_head.is_some());
        if let Some(claim) = &mut dispatch.admitted.claim {
            claim.begin(StatusCode::OK, &kind);
        }
        exchange.status = 200;
        exchange.commit(reader, is_stream, late_head);
        Ok(())
    }

    /// What follows the last piece. An error where the answer is to be seen to have broken off.
    pub(super) fn finish(&self, exchange: &mut Exchange, passed: Bytes) -> Result<Bytes> {
        let Step::Answering(answering) = &mut exchange.step else { return Ok(passed) };
        let ended = answering.answer.end();
        answering.outcome = Some(ended.outcome);
        answering.remark(&ended.append);
        answering.judge(ended.outcome, exchange.arrival.clock.now_us());
        answering.end_claim(ended.outcome, &ended.append);
        let all = joined(passed, &ended.append);
        if let Some(head) = answering.late_head.take() {
            return self.finish_gathered(exchange, head, all, ended.outcome);
        }
        match (ended.outcome, answering.is_stream) {
            (Outcome::Complete | Outcome::Errored, _) => Ok(all),
            (Outcome::Truncated, true) => {
                let refusal = truncated();
                exchange.fails(refusal.cause);
                Ok(joined(all, &error_event(&refusal)))
            }
            // A clean end would make half a document look whole.
            (Outcome::Truncated, false) => {
                Err(Error::explain(ErrorType::ConnectionClosed, "the document broke off").into_up())
            }
        }
    }

    /// A document that was gathered: an answer, or an error that came with a good status.
    fn finish_gathered(
        &self,
        exchange: &mut Exchange,
        mut head: Box<ResponseHeader>,
        document: Bytes,
        outcome: Outcome,
    ) -> Result<Bytes> {
        let Some(tape) = exchange.tape().map(Arc::clone) else { return Ok(document) };
        let substitute = if outcome == Outcome::Complete {
            head.insert_header(CONTENT_LENGTH, document.len())?;
            Substitute { header: head, body: document }
        } else {
            let refusal = truncated();
            let cause = if outcome == Outcome::Truncated { refusal.cause } else { Cause::UpstreamError };
            exchange.fails(cause);
            let body = if document.is_empty() { Bytes::from(refusal.to_json()) } else { document };
            answer::substitute(exchange, &ProviderError::Request { cause, body })?
        };
        tape.substitute(substitute);
        Ok(Bytes::new())
    }
}

/// What the client is told; `None` where it has left.
pub(super) fn told(error: &Error, exchange: &mut Exchange) -> Option<ProviderError> {
    let overdue = error.etype() == &UPSTREAM_OVERDUE;
    if error.etype() == &NOT_BILLED {
        let message = "The answer cannot be billed, so its end is withheld.";
        return Some(ProviderError::Provider(Refusal::new(Cause::BillingUnavailable, message).retry_after_ms(1000)));
    }
    if error.esource() == &ErrorSource::Downstream && !overdue {
        return None;
    }
    let now_us = exchange.arrival.clock.now_us();
    let provider = match &mut exchange.step {
        Step::Dispatched(dispatch) => match dispatch.failure.take() {
            Some(failure) => return Some(dispatch.with_soonest(failure, now_us)),
            None => dispatch.provider(),
        },
        Step::Answering(_) if !overdue => return Some(ProviderError::Provider(truncated())),
        Step::Answering(answering) => &answering.target.provider.name,
        _ => "",
    };
    upstream::explain(error, provider).map(ProviderError::Provider)
}

/// Makes of an answer's head what the client gets, and finds the reader of what follows.
fn prepare(head: &mut ResponseHeader, exchange: &mut Exchange) -> Result<Prepared> {
    let terms = AnswerTerms {
        id: format!("chatcmpl-{}", exchange.arrival.request_id.simple()).into(),
        created: exchange.arrival.unix_ms / 1000,
        model: Box::default(),
        show_usage: false,
    };
    let Some(dispatch) = exchange.dispatch_mut() else { return out_of_order("no request is dispatched") };
    let Some(target) = dispatch.target() else { return out_of_order("no target is being asked") };
    let request = &dispatch.request;
    let terms = AnswerTerms { model: request.model().into(), show_usage: request.wants_usage(), ..terms };
    let kind = head.headers.get(CONTENT_TYPE).cloned().unwrap_or(JSON);
    let is_stream = kind.as_bytes().starts_with(b"text/event-stream");
    let unchanged = dialect::passes_unchanged(target);
    let mut new = HeaderMap::with_capacity(HEADERS_USUAL);
    if let Some(length) = head.headers.get(CONTENT_LENGTH).filter(|_| unchanged && !is_stream) {
        new.insert(CONTENT_LENGTH, length.clone());
    }
    let kind = if unchanged || is_stream { kind } else { JSON };
    new.insert(CONTENT_TYPE, kind.clone());
    if is_stream {
        new.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // nginx in front of the relay would buffer the stream otherwise.
        new.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    }
    if let Some(dropped) = answer::list_of(&dispatch.dropped) {
        new.insert(X_TOLLGATE_DROPPED, answer::text(&dropped)?);
    }
    if let Some(tokens) = dispatch.lowered_output() {
        new.insert(X_TOLLGATE_OUTPUT_TOKENS_MAX, HeaderValue::from(tokens));
    }
    let reader = dialect::answer(target, is_stream, terms, request.choices(), dispatch.signatures.clone());
    answer::stamp(&mut new, exchange)?;
    *head = answer::whole_head(StatusCode::OK, new);
    // A document that is translated is told when it is whole: until then it may still turn out to be an error.
    let late_head = (!unchanged && !is_stream).then(|| Box::new(head.clone()));
    Ok(Prepared { kind, late_head, reader, is_stream })
}

pub(super) fn truncated() -> Refusal {
    Refusal::new(Cause::UpstreamTruncated, "The provider's answer broke off before its end.")
}

/// One after the other, without a copy where there is only one.
pub(super) fn joined(first: Bytes, second: &[u8]) -> Bytes {
    if second.is_empty() {
        return first;
    }
    let mut both = BytesMut::with_capacity(first.len() + second.len());
    both.extend_from_slice(&first);
    both.extend_from_slice(second);
    both.freeze()
}
