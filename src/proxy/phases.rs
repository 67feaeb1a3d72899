//! Pingora's phases, in the order in which they run, a few lines each.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, RETRY_AFTER, UPGRADE};
use http::{HeaderMap, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result, RetryType};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use super::admission::{self, Received};
use super::exchange::{Exchange, Refused, Step};
use super::idempotency::Claim;
use super::listeners::HadRequest;
use super::opening::OPENED_BADLY;
use super::passing::{joined, told};
use super::tape::{NOT_BILLED, Tape, UPSTREAM_OVERDUE};
use super::{Shared, answer, clock, replay, settle, upstream};
use crate::relay::dialect::{self, Outcome, ProviderError, error_event};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{self, Target, Verdict};

/// How long a client may take to take a piece of its answer.
const WRITE_MAX: Duration = Duration::from_secs(60);
/// How long what nobody wants of a request's body is read, so that its connection can be kept.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// The relay as Pingora sees it.
pub struct Relay {
    pub(super) shared: Arc<Shared>,
}

impl Relay {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl ProxyHttp for Relay {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        super::listeners::head_arrived();
        Exchange::new(Arc::clone(&self.shared))
    }

    /// None: by default there would be one that compresses, switched off, which costs each request for nothing.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        // Where Pingora means to close (HTTP/1.0, doubtful framing, a shutdown), it is right.
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(exchange.arrival.snapshot.limits.keep_alive_max.as_secs()));
        }
        // Nothing is upgraded to; a request that asks for it is one like any other.
        session.req_header_mut().remove_header(&UPGRADE);
        session.set_pipelining_enabled(true);
        session.set_write_timeout(Some(WRITE_MAX));
        session.set_total_drain_timeout(Some(DRAIN_MAX));
        Ok(())
    }

    /// Everything up to admission. The relay writes its refusals itself, here.
    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        exchange.begin_trace(session.req_header());
        let received = match self.overloaded(exchange) {
            Some(refusal) => Err(refusal),
            None => admission::receive(&self.shared, session, exchange).await,
        };
        match received {
            Ok(Received::Dispatched) => Ok(false),
            Ok(Received::Answered) => Ok(true),
            Err(refusal) => {
                answer::refuse(session, exchange, refusal).await;
                Ok(true)
            }
        }
    }

    /// Once a try: picks the target, says the request in its dialect, and finds out where it is.
    async fn upstream_peer(&self, _: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        let clock = exchange.arrival.clock;
        let Some(dispatch) = exchange.dispatch_mut() else { return out_of_order("no request is dispatched") };
        let peer = self.ask(dispatch).await?;
        if let Some(target) = dispatch.target() {
            let times = &target.provider.times;
            dispatch.tape.due_at(clock.now_us() + clock::micros(times.connect + times.first_byte));
        }
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        head: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let Some(dispatch) = exchange.dispatch_mut() else { return out_of_order("no request is dispatched") };
        let body = dispatch.tape.body();
        let mut said = upstream::request_head(dispatch, &body)?;
        // The connection's, which is known by now: without it, a request over h2 would be none.
        said.set_version(head.version);
        *head = said;
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        error.as_up();
        if let Some(dispatch) = exchange.dispatch_mut() {
            let again = self.try_failed(dispatch, "unconnected", &error, true);
            error.set_retry(again);
        }
        error
    }

    /// A broken exchange before the client has got anything: a kept connection may have gone stale and is dialled anew,
    /// once; else it is another's turn.
    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        _: &mut Session,
        mut error: Box<Error>,
        exchange: &mut Exchange,
        reused: bool,
    ) -> Box<Error> {
        let overdue = error.etype() == &UPSTREAM_OVERDUE;
        if overdue {
            error.as_up();
        }
        let asks_another = matches!((&error.etype, &error.retry), (ErrorType::HTTPStatus(_), RetryType::Decided(true)));
        if asks_another {
            return error;
        }
        error.set_retry(false);
        if error.esource() != &ErrorSource::Upstream || error.etype() == &OPENED_BADLY {
            return error;
        }
        let now_us = exchange.arrival.clock.now_us();
        let dispatch = match &mut exchange.step {
            Step::Dispatched(dispatch) => dispatch,
            Step::Answering(answering) => {
                // Without its client an answer is read on for some time only.
                if !(overdue && answering.tape.is_draining()) {
                    answering.lease.end(Verdict::Failed, now_us);
                }
                return error;
            }
            _ => return error,
        };
        if let Some(refused) = dispatch.refused.take() {
            // What had come of it when it broke off is all that there is.
            return match self.judge_refusal(dispatch, &refused) {
                Ok(told) => {
                    dispatch.failure = Some(told);
                    error
                }
                Err(retry) => retry,
            };
        }
        // A connection that has brought a head was not stale.
        let has_answered = dispatch.opening.is_some() || dispatch.tape.has_head_passed();
        let stale = reused && !overdue && !has_answered && dispatch.redial();
        let again = match (overdue, stale) {
            (false, true) => {
                self.attempt(dispatch, "stale");
                true
            }
            // Without its client an answer is waited for no longer than it would be read.
            (true, _) if dispatch.tape.is_draining() => false,
            (true, _) => {
                let may_repeat = dispatch.admitted.model.retry_timeouts;
                self.try_failed(dispatch, "overdue", &error, may_repeat)
            }
            (false, false) => self.try_failed(dispatch, "broken", &error, true),
        };
        error.set_retry(again);
        error
    }

    /// The first good status commits; from then on no other upstream is asked.
    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if head.status.is_informational() {
            return Ok(());
        }
        if self.shared.stage.is_leaving() {
            session.set_keepalive(None);
        }
        let now_us = exchange.arrival.clock.now_us();
        let Step::Dispatched(dispatch) = &mut exchange.step else { return Ok(()) };
        let status = head.status.as_u16();
        if head.status.is_success() && has_answer(head) {
            if let Some(target) = dispatch.target() {
                keep_time(target, &dispatch.tape, now_us, exchange.arrival.at_us);
            }
            return self.commit(head, exchange);
        }
        let retry_after_ms = retry_after_ms(head, exchange.arrival.clock.unix_ms());
        let mut refused = Refused::new(status, retry_after_ms);
        if !upstream::body_decides(status) {
            let error = dialect::read_error(dispatch.dialect(), status, b"", retry_after_ms);
            self.refused(dispatch, &status.to_string(), status, error)?;
            refused.is_final = true;
        }
        // It is read first: a quota that is used up says the same as an hour that is busy, but for its words.
        if let Some(target) = dispatch.target() {
            keep_time(target, &dispatch.tape, now_us, exchange.arrival.at_us);
        }
        dispatch.refused = Some(refused);
        dispatch.tape.hold(true);
        Ok(())
    }

    /// Each piece passes as it comes. The last one is followed by what the client must know of the end.
    fn response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Exchange,
    ) -> Result<Option<Duration>> {
        let now_us = exchange.arrival.clock.now_us();
        let arrived_us = exchange.arrival.at_us;
        match &mut exchange.step {
            Step::Answering(answering) => {
                keep_time(&answering.target, &answering.tape, now_us, arrived_us);
                let passed = body.take().map(|piece| answering.pass(piece, now_us)).unwrap_or_default();
                if !answering.answer.is_whole() {
                    settle::checkpoint(&exchange.arrival, answering, now_us);
                }
                *body = Some(if end { self.finish(exchange, passed)? } else { passed });
                self.after_piece(exchange, end);
            }
            Step::Dispatched(dispatch) => {
                if let Some(target) = dispatch.target() {
                    keep_time(target, &dispatch.tape, now_us, arrived_us);
                }
                let piece = body.take().unwrap_or_default();
                if dispatch.opening.is_some() {
                    *body = Some(self.open_with(exchange, &piece, end)?);
                    return Ok(None);
                }
                if let Some(refused) = &mut dispatch.refused {
                    refused.read(&piece);
                }
                if end {
                    self.finish_refusal(exchange)?;
                }
            }
            _ => {}
        }
        Ok(None)
    }

    /// Providers' trailers say nothing that a client could want; but they end an answer.
    async fn response_trailer_filter(
        &self,
        _: &mut Session,
        trailers: &mut HeaderMap,
        exchange: &mut Exchange,
    ) -> Result<Option<Bytes>> {
        trailers.clear();
        match &exchange.step {
            Step::Answering(_) => {
                let rest = self.finish(exchange, Bytes::new())?;
                await_record(exchange);
                Ok(Some(rest))
            }
            Step::Dispatched(dispatch) if dispatch.opening.is_some() => {
                self.open_with(exchange, &Bytes::new(), true).map(Some)
            }
            Step::Dispatched(_) => self.finish_refusal(exchange).map(|()| Some(Bytes::new())),
            _ => Ok(None),
        }
    }

    /// Nothing more will be tried. The client is told in whatever way is left.
    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, exchange: &mut Exchange) -> FailToProxy {
        if let Some(tape) = exchange.tape().cloned() {
            replay::restore(session, &tape);
        }
        let began = session.response_written().is_some_and(|head| !head.status.is_informational());
        let Some(told) = told(error, exchange) else {
            return FailToProxy { error_code: exchange.status, can_reuse_downstream: false };
        };
        let cause = answer::cause_of(&told);
        tracing::warn!(request_id = %exchange.arrival.request_id, code = cause.code(), reason = %error, "a request failed");
        exchange.fails(cause);
        let mut claim = exchange.take_claim();
        if !began {
            settle(claim).await;
            session.set_keepalive(None);
            let _ = answer::tell(session, exchange, &told).await;
        } else if let (Step::Dispatched(_), ProviderError::Provider(refusal)) = (&exchange.step, &told) {
            // Its stream has a head and nothing else.
            settle(claim).await;
            exchange.status = StatusCode::OK.as_u16();
            let _ = session.downstream_session.write_response_body(error_event(refusal), true).await;
            let _ = session.downstream_session.finish_body().await;
        } else if let (Step::Answering(answering), ProviderError::Provider(refusal)) = (&mut exchange.step, &told) {
            // A document that breaks off can only be seen to break off; a stream can say so, or was whole but for the end of
            // its transport.
            if answering.is_stream {
                let ended = answering.answer.end();
                answering.outcome = Some(ended.outcome);
                if let Some(claim) = &mut claim {
                    claim.ended(ended.outcome, &ended.append);
                }
                settle(claim).await;
                let last = match ended.outcome {
                    // What is whole here has not reached the client.
                    _ if error.etype() == &NOT_BILLED => error_event(refusal),
                    Outcome::Complete | Outcome::Errored => ended.append,
                    Outcome::Truncated => joined(ended.append, &error_event(refusal)),
                };
                let _ = session.downstream_session.write_response_body(last, true).await;
                let _ = session.downstream_session.finish_body().await;
            }
        }
        FailToProxy { error_code: exchange.status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, exchange: &mut Exchange) {
        if let Some(tape) = exchange.tape().cloned() {
            replay::restore(session, &tape);
        }
    }

    fn persist_connection_context(&self, _: &Session, _: &Exchange) -> Option<Box<dyn Any + Send + Sync>> {
        Some(Box::new(HadRequest))
    }

    /// Failures are logged where they are explained, with the request's id.
    fn suppress_error_log(&self, _: &Session, _: &Exchange, _: &Error) -> bool {
        true
    }
}

impl Relay {
    /// A piece of a stream that may have had nothing to say yet.
    fn open_with(&self, exchange: &mut Exchange, piece: &Bytes, end: bool) -> Result<Bytes> {
        let mut passed = self.open(exchange, piece, end)?;
        if matches!(exchange.step, Step::Answering(_)) {
            if end {
                passed = self.finish(exchange, passed)?;
            }
            self.after_piece(exchange, end);
        }
        Ok(passed)
    }

    /// A piece of an answer has passed.
    fn after_piece(&self, exchange: &mut Exchange, end: bool) {
        let Step::Answering(answering) = &mut exchange.step else { return };
        let is_whole = answering.answer.is_whole();
        if is_whole {
            answering.judge(Outcome::Complete, exchange.arrival.clock.now_us());
        }
        if is_whole || end {
            await_record(exchange);
        }
    }

    fn overloaded(&self, exchange: &Exchange) -> Option<Refusal> {
        if self.shared.recorder.state().failed() {
            return Some(admission::unbilled());
        }
        if self.shared.stage.is_ending() {
            return Some(Refusal::new(Cause::ShuttingDown, "The relay is restarting.").retry_after_ms(1000));
        }
        let most = exchange.arrival.snapshot.limits.requests_in_flight_max;
        let is_crowded = self.shared.requests_in_flight.count() > usize::try_from(most).unwrap_or(usize::MAX);
        (is_crowded || self.shared.memory.is_short())
            .then(|| Refusal::new(Cause::Overloaded, "The relay has as much to do as it can.").retry_after_ms(1000))
    }
}

/// The answer is at its end: nothing more of it passes before its record is kept, and its claim settled.
fn await_record(exchange: &mut Exchange) {
    if let Step::Answering(answering) = &mut exchange.step
        && answering.answer.is_whole()
    {
        answering.end_claim(Outcome::Complete, b"");
        answering.tape.comment_every(Duration::ZERO);
    }
    if let Some(receipt) = settle::settle_answer(exchange)
        && let Some(tape) = exchange.tape()
    {
        tape.await_receipt(receipt);
    }
}

/// Settles a claim before the client is told of the end.
async fn settle(claim: Option<Box<Claim>>) {
    if let Some(claim) = claim {
        claim.settle().await;
    }
}

/// When the provider says that it will take requests again.
fn retry_after_ms(head: &ResponseHeader, now_unix_ms: i64) -> Option<u64> {
    route::retry_after_ms(head.headers.get(RETRY_AFTER)?.to_str().ok()?, now_unix_ms)
}

/// Sets when the next piece is overdue.
fn keep_time(target: &Target, tape: &Tape, now_us: u64, arrived_us: u64) {
    let times = &target.provider.times;
    let idle = now_us + clock::micros(times.idle);
    tape.due_at(idle.min(arrived_us + clock::micros(times.total)));
}

/// Whether a success has something that the relay can read: it asked for no encoding, and nothing is no answer.
fn has_answer(head: &ResponseHeader) -> bool {
    let is_encoded = head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    let is_empty = head.headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0");
    !is_encoded && !is_empty && head.status != StatusCode::NO_CONTENT
}

pub(super) fn out_of_order<T>(what: &'static str) -> Result<T> {
    Error::e_explain(ErrorType::InternalError, what)
}
