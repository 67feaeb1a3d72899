//! The request's body, replayed to each upstream that is tried.
//!
//! Pingora replays what was read only up to 64 KiB. So once the body is read, [`Replay`] takes the real session's place:
//! it delegates everything, answers "what was the body" with the bytes of this try, whatever their size, watches the
//! time while Pingora waits for the client to leave, and lets an answer's end pass only when its record is kept.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;
use tokio::time::{Instant, Sleep};

use super::clock::Clock;
use super::tape::{Substitute, Tape, UPSTREAM_OVERDUE};

/// Puts a [`Replay`] into the place of the session whose body has been read.
///
/// When the client leaves, its answer is read on for `drain_max`.
pub(super) fn replace(session: &mut Session, clock: Clock, drain_max: Duration) -> Arc<Tape> {
    let tape = Arc::new(Tape::new(clock, drain_max));
    let real = std::mem::replace(&mut session.downstream_session, nothing());
    let replay = Replay { real, tape: Arc::clone(&tape), watch: None };
    *session.downstream_session = ServerSession::Custom(Box::new(replay));
    tape
}

/// Puts the real session back, so that its connection can be kept alive. Does nothing where it is back already.
pub(super) fn restore(session: &mut Session, tape: &Tape) {
    if !session.downstream_session.is_custom() {
        return;
    }
    // Dropping the Replay puts the real session on the tape.
    session.downstream_session = nothing();
    if let Some(real) = tape.take_real() {
        session.downstream_session = real;
    }
}

/// The session that stands in for the real one while upstreams are tried.
struct Replay {
    real: Box<ServerSession>,
    tape: Arc<Tape>,
    /// Armed once and moved when it rings early: arming a timer for each piece of an answer would cost more than the rest.
    watch: Option<Pin<Box<Sleep>>>,
}

impl Drop for Replay {
    fn drop(&mut self) {
        let real = std::mem::replace(&mut self.real, nothing());
        self.tape.return_real(real);
    }
}

/// A session that holds a place.
fn nothing() -> Box<ServerSession> {
    Box::new(ServerSession::Custom(Box::new(())))
}

/// Trailers end an answer, and are nobody's business besides.
fn without_trailers(task: HttpTask) -> HttpTask {
    match task {
        HttpTask::Trailer(_) => HttpTask::Done,
        task => task,
    }
}

/// Ends when the upstream is overdue.
async fn overdue(watch: &mut Option<Pin<Box<Sleep>>>, tape: &Tape) {
    let watch = watch.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(tape.deadline())));
    loop {
        let deadline = tape.deadline();
        if deadline < watch.deadline() || watch.is_elapsed() {
            watch.as_mut().reset(deadline);
        }
        watch.as_mut().await;
        if tape.deadline() <= Instant::now() {
            return;
        }
    }
}

/// What the upstream failed for.
fn failure_of(tasks: Vec<HttpTask>) -> Option<Box<Error>> {
    tasks.into_iter().find_map(|task| match task {
        HttpTask::Failed(error) => Some(error),
        _ => None,
    })
}

impl Replay {
    /// Writes what the upstream has answered, or what the client gets in its place.
    async fn write(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        if !self.tape.is_holding() {
            let is_empty =
                matches!(tasks.first(), Some(HttpTask::Header(head, true)) if !head.status.is_informational());
            if is_empty {
                return Error::e_explain(ErrorType::ConnectionClosed, "the upstream answered nothing")
                    .map_err(Error::into_up);
            }
            return self.real.response_duplex_vec(tasks.into_iter().map(without_trailers).collect()).await;
        }
        let end = tasks.iter().any(HttpTask::is_end);
        if let Some(error) = failure_of(tasks) {
            return Err(error);
        }
        if !end {
            return Ok(false);
        }
        let substitute = self.tape.take_substitute();
        let Some(Substitute { header, body }) = substitute else {
            return Error::e_explain(ErrorType::InternalError, "the upstream refused without a body")
                .map_err(Error::into_up);
        };
        let tasks = vec![HttpTask::Header(header, false), HttpTask::Body(Some(body), true)];
        self.real.response_duplex_vec(tasks).await
    }
}

#[async_trait]
impl CustomSession for Replay {
    fn get_retry_buffer(&self) -> Option<Bytes> {
        Some(self.tape.body())
    }

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_body_empty(&mut self) -> bool {
        self.tape.body().is_empty()
    }

    fn enable_retry_buffering(&mut self) {}

    /// Polled for as long as the upstream is at work: ends when the client leaves or the upstream is overdue.
    async fn read_body_or_idle(&mut self, _no_body_expected: bool) -> Result<Option<Bytes>> {
        let Self { real, tape, watch } = self;
        loop {
            let client_leaves = async {
                match tape.is_draining() {
                    false => real.read_body_or_idle(true).await,
                    true => std::future::pending().await,
                }
            };
            tokio::select! {
                left = client_leaves => if !tape.drain() {
                    return left;
                },
                () = overdue(watch, tape) => return Error::e_explain(UPSTREAM_OVERDUE, "the upstream took too long"),
            }
        }
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    fn req_header(&self) -> &RequestHeader {
        self.real.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.real.req_header_mut()
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.real.write_response_header(header).await
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, _end: bool) -> Result<()> {
        self.real.write_response_header_ref(header).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.real.write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.real.write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        if let Some(claim) = self.tape.take_claim() {
            claim.settle().await;
        }
        self.tape.billed().await?;
        let ends = tasks.iter().any(HttpTask::is_end);
        if self.tape.is_draining() {
            return failure_of(tasks).map_or(Ok(ends), Err);
        }
        match self.write(tasks).await {
            // Ours: the client has left.
            Err(error) if error.esource() != &ErrorSource::Upstream && self.tape.drain() => Ok(ends),
            written => written,
        }
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.real.set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.real.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.real.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.real.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.real.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.real.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.real.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.real.response_written()
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.real.shutdown().await;
    }

    async fn finish(&mut self) -> Result<()> {
        self.real.finish_body().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.real.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.real.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.real.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.real.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.real.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.real.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.real.to_h1_raw()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<CustomMessages> {
        None
    }

    fn restore_custom_message_reader(&mut self, _reader: CustomMessages) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}

type CustomMessages = Box<dyn futures_core::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;
