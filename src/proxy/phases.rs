//! Pingora's phases, in the order in which they run, a few lines each.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result, RetryType};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use super::admission::{self, Received};
use super::body::{self, Tape, UPSTREAM_OVERDUE};
use super::exchange::{Answering, Dispatch, Exchange, Refused, Step};
use super::listeners::HadRequest;
use super::upstream::{self, TRIES_MAX};
use super::{Shared, answer, clock};
use crate::relay::dialect::{self, AnswerTerms, Outcome, Outgoing, ProviderError, error_event};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Dialect, Target};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// How long a connection may wait for its next request.
pub(super) const KEEP_ALIVE_SECONDS: u64 = 75;

/// The relay as Pingora sees it.
pub struct Relay {
    shared: Arc<Shared>,
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

    async fn early_request_filter(&self, session: &mut Session, _: &mut Exchange) -> Result<()> {
        session.set_keepalive(Some(KEEP_ALIVE_SECONDS));
        session.set_pipelining_enabled(true);
        Ok(())
    }

    /// Everything up to admission. The relay writes its refusals itself, here.
    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
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

    /// Once a try: picks the candidate, says the request in its dialect, and finds out where it is.
    async fn upstream_peer(&self, _: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        let clock = exchange.arrival.clock;
        let Some(dispatch) = exchange.dispatch_mut() else { return out_of_order("no request is dispatched") };
        loop {
            dispatch.tries += 1;
            let Some(target) = dispatch.target().cloned() else { return out_of_order("no candidate is left") };
            let failure = match self.say(dispatch, &target).await {
                Ok(peer) => {
                    let times = &target.provider.times;
                    dispatch.tape.due_at(clock.now_us() + clock::micros(times.connect + times.first_byte));
                    return Ok(Box::new(peer));
                }
                Err(refusal) => refusal,
            };
            dispatch.failure = Some(ProviderError::Provider(failure));
            if !advance(dispatch) {
                return Err(Error::explain(ErrorType::ConnectNoRoute, "no provider can be asked").into_up());
            }
        }
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
            self.attempt_failed(dispatch, "unconnected");
            dispatch.failure = upstream::explain(&error, provider_of(dispatch)).map(ProviderError::Provider);
            error.set_retry(advance(dispatch));
        }
        error
    }

    /// A broken exchange before the client has got anything: a kept connection that had gone stale is dialled anew, a fresh
    /// one that broke is another candidate's turn.
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
        let Step::Dispatched(dispatch) = &mut exchange.step else {
            error.set_retry(false);
            return error;
        };
        // Our own word that another is asked; h2's word that a stream may be opened again asks for the same one for ever.
        if matches!((error.etype(), &error.retry), (ErrorType::HTTPStatus(_), RetryType::Decided(true))) {
            return error;
        }
        let mut again = false;
        if let Some(refused) = dispatch.refused.take() {
            // A refusal that was its head alone, or broke off: it says what has come of it.
            let body =
                dialect::read_error(dialect_of(dispatch), refused.status, refused.body(), refused.retry_after_ms);
            match self.refused(dispatch, refused.status, body) {
                Ok(told) => dispatch.failure = Some(told),
                Err(_) => again = true,
            }
        } else if error.esource() == &ErrorSource::Upstream && dispatch.failure.is_none() {
            // The last try is another candidate's, where there is one: over h2, each stream after the first is on a kept one.
            let others = usize::from(dispatch.current + 1 < dispatch.candidates.len());
            let stale = reused && !overdue && dispatch.tries + others < TRIES_MAX;
            self.attempt_failed(
                dispatch,
                if overdue {
                    "overdue"
                } else if stale {
                    "stale"
                } else {
                    "broken"
                },
            );
            again = stale || advance(dispatch);
            if !stale {
                dispatch.failure = upstream::explain(&error, provider_of(dispatch)).map(ProviderError::Provider);
            }
        }
        error.set_retry(again);
        error
    }

    /// The first good status commits; from then on no other upstream is asked.
    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        head: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if head.status.is_informational() {
            return Ok(());
        }
        let now_us = exchange.arrival.clock.now_us();
        let Step::Dispatched(dispatch) = &mut exchange.step else { return Ok(()) };
        let provider = provider_of(dispatch).to_owned();
        let status = head.status.as_u16();
        if head.status.is_success() && !is_encoded(head) {
            self.attempt(&provider, "ok", true);
            dispatch.failure = None;
            return self.commit(head, exchange);
        }
        let retry_after_ms = retry_after_ms(head);
        let error = dialect::read_error(dialect_of(dispatch), status, b"", retry_after_ms);
        if !upstream::body_decides(status) && has_next(dispatch) && upstream::another_may_answer(status, &error) {
            return self.refused(dispatch, status, error).map(drop);
        }
        // It is read first: a quota that is used up says the same as an hour that is busy, but for its words.
        if let Some(target) = dispatch.target() {
            keep_time(target, &dispatch.tape, now_us, exchange.arrival.at_us);
        }
        dispatch.failure = Some(error);
        dispatch.refused = Some(Refused::new(status, retry_after_ms));
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
    ) -> Result<Option<std::time::Duration>> {
        let now_us = exchange.arrival.clock.now_us();
        let arrived_us = exchange.arrival.at_us;
        match &mut exchange.step {
            Step::Answering(answering) => {
                keep_time(&answering.target, &answering.tape, now_us, arrived_us);
                let passed = body.take().map(|piece| answering.pass(piece, now_us)).unwrap_or_default();
                *body = Some(if end { self.finish(answering, passed) } else { passed });
            }
            Step::Dispatched(dispatch) => {
                if let Some(target) = dispatch.target() {
                    keep_time(target, &dispatch.tape, now_us, arrived_us);
                }
                if let (Some(refused), Some(piece)) = (&mut dispatch.refused, body.take()) {
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

    /// A body that trailers end has ended all the same. They are the provider's: no client gets them.
    async fn response_trailer_filter(
        &self,
        _: &mut Session,
        trailers: &mut HeaderMap,
        exchange: &mut Exchange,
    ) -> Result<Option<Bytes>> {
        trailers.clear();
        match &mut exchange.step {
            Step::Answering(answering) if answering.outcome.is_none() => Ok(Some(self.finish(answering, Bytes::new()))),
            _ => Ok(None),
        }
    }

    /// Nothing more will be tried. The client is told in whatever way is left.
    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, exchange: &mut Exchange) -> FailToProxy {
        if let Some(tape) = exchange.tape().cloned() {
            body::restore(session, &tape);
        }
        let began = session.response_written().is_some_and(|head| !head.status.is_informational());
        let Some(told) = told(error, exchange, began) else {
            return FailToProxy { error_code: exchange.status, can_reuse_downstream: false };
        };
        let cause = answer::cause_of(&told);
        tracing::warn!(request_id = %exchange.arrival.request_id, code = cause.code(), reason = %error, "a request failed");
        self.shared.metrics.refused(cause);
        if !began {
            session.set_keepalive(None);
            let _ = answer::tell(session, exchange, &told).await;
        } else if let (Step::Answering(answering), ProviderError::Provider(refusal)) = (&mut exchange.step, &told) {
            // A document that breaks off can only be seen to break off; a stream can say so.
            if answering.is_stream {
                let held_back = answering.answer.end().append;
                answering.outcome = Some(Outcome::Truncated);
                let last = joined(held_back, &error_event(refusal));
                let _ = session.downstream_session.write_response_body(last, true).await;
                let _ = session.downstream_session.finish_body().await;
            }
        }
        FailToProxy { error_code: exchange.status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, exchange: &mut Exchange) {
        if let Some(tape) = exchange.tape().cloned() {
            body::restore(session, &tape);
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
    fn overloaded(&self, exchange: &Exchange) -> Option<Refusal> {
        if self.shared.draining.load(Ordering::Relaxed) {
            return Some(Refusal::new(Cause::ShuttingDown, "The relay is restarting.").retry_after_ms(1000));
        }
        let most = exchange.arrival.snapshot.limits.requests_in_flight_max;
        (self.shared.requests_in_flight.count() > usize::try_from(most).unwrap_or(usize::MAX))
            .then(|| Refusal::new(Cause::Overloaded, "The relay has as much to do as it can.").retry_after_ms(1000))
    }

    /// Puts the request as the target gets it on the tape, and gives where that is.
    async fn say(&self, dispatch: &mut Dispatch, target: &Target) -> Result<HttpPeer, Refusal> {
        let output_tokens_max = dispatch.admitted.model.output_tokens_max;
        let Outgoing { path, body, dropped } =
            dialect::outgoing(&dispatch.request, target, output_tokens_max, &dispatch.signatures)?;
        let peer = upstream::peer(&self.shared, &target.provider, dispatch.tries).await.map_err(|reason| {
            let provider = &target.provider.name;
            tracing::warn!(%provider, %reason, "a provider has no address");
            self.attempt(provider, "unresolved", false);
            Refusal::new(Cause::UpstreamError, format!("The provider {provider} could not be found."))
        })?;
        (dispatch.path, dispatch.dropped, dispatch.refused) = (path, dropped, None);
        dispatch.tape.load(body);
        dispatch.tape.hold(false);
        Ok(peer)
    }

    fn attempt(&self, provider: &str, outcome: &str, healthy: bool) {
        self.shared.metrics.upstream_attempts.with_label_values(&[provider, outcome]).inc();
        self.shared.metrics.upstream_healthy.with_label_values(&[provider]).set(i64::from(healthy));
    }

    fn attempt_failed(&self, dispatch: &Dispatch, outcome: &str) {
        self.attempt(provider_of(dispatch), outcome, false);
    }

    /// Rewrites the head of an answer that passes, and takes up its reader.
    fn commit(&self, head: &mut ResponseHeader, exchange: &mut Exchange) -> Result<()> {
        let terms = AnswerTerms {
            id: format!("chatcmpl-{}", exchange.arrival.request_id.simple()).into(),
            created: exchange.arrival.unix_ms / 1000,
            model: Box::default(),
            show_usage: false,
        };
        let Some(dispatch) = exchange.dispatch_mut() else { return out_of_order("no request is dispatched") };
        let Some(target) = dispatch.target() else { return out_of_order("no candidate is being asked") };
        let request = &dispatch.request;
        let terms = AnswerTerms { model: request.model().into(), show_usage: request.wants_usage(), ..terms };
        let kind = head.headers.get(CONTENT_TYPE).cloned().unwrap_or(JSON);
        let is_stream = kind.as_bytes().starts_with(b"text/event-stream");
        let unchanged = dialect::passes_unchanged(target);
        let mut new = ResponseHeader::build_no_case(200, Some(16))?;
        if let Some(length) = head.headers.get(CONTENT_LENGTH).filter(|_| unchanged && !is_stream) {
            new.insert_header(CONTENT_LENGTH, length)?;
        }
        new.insert_header(CONTENT_TYPE, if unchanged || is_stream { kind } else { JSON })?;
        if is_stream {
            new.insert_header(CACHE_CONTROL, "no-cache")?;
            // nginx in front of the relay would buffer the stream otherwise.
            new.insert_header("x-accel-buffering", "no")?;
        }
        if let Some(dropped) = answer::list_of(&dispatch.dropped) {
            new.insert_header("x-tollgate-dropped", dropped)?;
        }
        let reader = dialect::answer(target, is_stream, terms, request.choices(), dispatch.signatures.clone());
        answer::stamp(&mut new, exchange)?;
        *head = new;
        exchange.status = 200;
        exchange.commit(reader, is_stream);
        Ok(())
    }

    /// What follows the last piece.
    fn finish(&self, answering: &mut Answering, passed: Bytes) -> Bytes {
        let ended = answering.answer.end();
        answering.outcome = Some(ended.outcome);
        let all = joined(passed, &ended.append);
        if ended.outcome != Outcome::Truncated || !answering.is_stream {
            return all;
        }
        let refusal = truncated();
        self.shared.metrics.refused(refusal.cause);
        joined(all, &error_event(&refusal))
    }

    /// A refusal has been read: another upstream is asked, or the client is told.
    fn finish_refusal(&self, exchange: &mut Exchange) -> Result<()> {
        let Some(dispatch) = exchange.dispatch_mut() else { return Ok(()) };
        let Some(refused) = dispatch.refused.take() else { return Ok(()) };
        let error = dialect::read_error(dialect_of(dispatch), refused.status, refused.body(), refused.retry_after_ms);
        let told = self.refused(dispatch, refused.status, error)?;
        let tape = Arc::clone(&dispatch.tape);
        self.shared.metrics.refused(answer::cause_of(&told));
        tape.substitute(answer::substitute(exchange, &told)?);
        Ok(())
    }

    /// Counts a refusal. An error where another upstream is asked next.
    fn refused(&self, dispatch: &mut Dispatch, status: u16, error: ProviderError) -> Result<ProviderError> {
        let healthy = matches!(error, ProviderError::Request { .. });
        self.attempt(provider_of(dispatch), &status.to_string(), healthy);
        if !upstream::another_may_answer(status, &error) || !advance(dispatch) {
            return Ok(error);
        }
        dispatch.failure = Some(error);
        let mut retry = Error::explain(ErrorType::HTTPStatus(status), "another provider is asked").into_up();
        retry.set_retry(true);
        Err(retry)
    }
}

/// Whether another candidate may be asked.
fn has_next(dispatch: &Dispatch) -> bool {
    dispatch.current + 1 < dispatch.candidates.len() && dispatch.tries < TRIES_MAX
}

/// The next candidate's turn, if there is one and it is allowed.
fn advance(dispatch: &mut Dispatch) -> bool {
    let may = has_next(dispatch);
    if may {
        dispatch.current += 1;
    }
    may
}

fn provider_of(dispatch: &Dispatch) -> &str {
    dispatch.target().map(|target| &*target.provider.name).unwrap_or_default()
}

fn dialect_of(dispatch: &Dispatch) -> Dialect {
    dispatch.target().map_or(Dialect::OpenAi, |target| target.provider.dialect)
}

/// When the provider says that it will take requests again.
fn retry_after_ms(head: &ResponseHeader) -> Option<u64> {
    let seconds: u64 = head.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(seconds.saturating_mul(1000))
}

/// Sets when the next piece is overdue.
fn keep_time(target: &Target, tape: &Tape, now_us: u64, arrived_us: u64) {
    let times = &target.provider.times;
    let idle = now_us + clock::micros(times.idle);
    tape.due_at(idle.min(arrived_us + clock::micros(times.total)));
}

/// What the client is told; `None` where it has left.
fn told(error: &Error, exchange: &mut Exchange, began: bool) -> Option<ProviderError> {
    let overdue = error.etype() == &UPSTREAM_OVERDUE;
    if error.esource() == &ErrorSource::Downstream && !overdue {
        return None;
    }
    if began && !overdue {
        return Some(ProviderError::Provider(truncated()));
    }
    let provider = match &mut exchange.step {
        Step::Dispatched(dispatch) => match dispatch.failure.take() {
            Some(failure) => return Some(failure),
            None => provider_of(dispatch),
        },
        Step::Answering(answering) => &answering.target.provider.name,
        _ => "",
    };
    upstream::explain(error, provider).map(ProviderError::Provider)
}

fn truncated() -> Refusal {
    Refusal::new(Cause::UpstreamTruncated, "The provider's answer broke off before its end.")
}

/// The relay asked for no encoding, and cannot read one.
fn is_encoded(head: &ResponseHeader) -> bool {
    head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity")
}

fn joined(first: Bytes, second: &[u8]) -> Bytes {
    if second.is_empty() {
        return first;
    }
    let mut both = BytesMut::with_capacity(first.len() + second.len());
    both.extend_from_slice(&first);
    both.extend_from_slice(second);
    both.freeze()
}

fn out_of_order<T>(what: &'static str) -> Result<T> {
    Error::e_explain(ErrorType::InternalError, what)
}
