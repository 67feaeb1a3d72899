//! The request's body: read whole before an upstream is chosen, and replayed to each upstream that is tried.
//!
//! Pingora replays what was read only up to 64 KiB. So once the body is read, [`Replay`] takes the real session's place:
//! it delegates everything, answers "what was the body" with the bytes of this try, whatever their size, and watches the
//! time while Pingora waits for the client to leave.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;
use tokio::time::{Instant, Sleep, timeout};

use super::clock::{Clock, micros};
use crate::billing::Receipt;
use crate::relay::refusal::{Cause, Refusal};

/// The upstream took longer than its provider's row allows.
pub(super) const UPSTREAM_OVERDUE: ErrorType = ErrorType::Custom("UpstreamOverdue");
/// The request's record could not be kept, so the client does not get the end of its answer.
pub(super) const NOT_BILLED: ErrorType = ErrorType::Custom("NotBilled");

/// What a body may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    pub(super) bytes_max: usize,
    pub(super) idle_max: Duration,
    pub(super) total_max: Duration,
}

/// How much of a refused body is read and thrown away, so that the client gets to read the refusal before the connection
/// ends: a close with unread bytes resets it.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
const LINGER_TIME_MAX: Duration = Duration::from_secs(5);

/// The first buffer for a body whose length is not announced.
const FIRST_BUFFER_BYTES: usize = 16 * 1024;

/// Reads the whole body; answers `Expect: 100-continue` first.
///
/// # Errors
/// 413 past `bytes_max`, by the announced length or by what came; 408 when it comes too slowly; 400 when it breaks off.
pub(super) async fn read_whole(session: &mut Session, limits: &BodyLimits) -> Result<Bytes, Refusal> {
    let announced = session
        .get_header(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits.bytes_max) {
        return Err(too_large(limits));
    }
    if session.get_header(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        session.downstream_session.write_continue_response().await.map_err(|_| broken_off())?;
    }
    let deadline = Instant::now() + limits.total_max;
    let mut whole = Bytes::new();
    let mut buffer = BytesMut::new();
    loop {
        let patience = limits.idle_max.min(deadline.saturating_duration_since(Instant::now()));
        let read = timeout(patience, session.downstream_session.read_request_body());
        let piece = match read.await {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => break,
            Ok(Err(_)) => return Err(broken_off()),
            Err(_) => return Err(too_slow()),
        };
        if whole.len() + buffer.len() + piece.len() > limits.bytes_max {
            return Err(too_large(limits));
        }
        if whole.is_empty() && buffer.is_empty() {
            whole = piece;
            continue;
        }
        if buffer.is_empty() {
            buffer.reserve(announced.unwrap_or(FIRST_BUFFER_BYTES.max(2 * (whole.len() + piece.len()))));
            buffer.extend_from_slice(&std::mem::take(&mut whole));
        }
        buffer.extend_from_slice(&piece);
    }
    Ok(if buffer.is_empty() { whole } else { buffer.freeze() })
}

/// Reads on for a little while and forgets what it reads, so that a refusal reaches a client that is still sending.
pub(super) async fn linger(session: &mut Session) {
    let read = async {
        let mut left = LINGER_BYTES_MAX;
        while let Ok(Some(piece)) = session.downstream_session.read_request_body().await {
            left = match left.checked_sub(piece.len()) {
                Some(left) => left,
                None => break,
            };
        }
    };
    let _ = timeout(LINGER_TIME_MAX, read).await;
}

fn too_large(limits: &BodyLimits) -> Refusal {
    Refusal::new(Cause::RequestTooLarge, format!("The request body is larger than {} bytes.", limits.bytes_max))
}

fn too_slow() -> Refusal {
    Refusal::new(Cause::RequestTimeout, "The request body did not arrive in time.")
}

fn broken_off() -> Refusal {
    Refusal::new(Cause::BadRequest, "The request body broke off or its framing is invalid.")
}

/// What the request's state and the session in Pingora's hands share.
pub(super) struct Tape {
    clock: Clock,
    /// This try's body.
    body: Mutex<Bytes>,
    /// When this try is overdue, in the clock's microseconds.
    deadline_us: AtomicU64,
    /// How long the answer is read on without its client.
    drain_max_us: u64,
    /// Until when it is, once the client has left; 0 before.
    drain_until_us: AtomicU64,
    /// Whether the upstream's answer is held back: a refusal that is being read.
    holding: AtomicBool,
    /// What the client gets in place of the answer that is held back.
    substitute: Mutex<Option<Substitute>>,
    /// What the next bytes to the client wait for: the record of the request that they complete.
    receipt: Mutex<Option<Receipt>>,
    /// Where the real session returns to when the one in its place is dropped.
    real: Mutex<Option<Box<ServerSession>>>,
}

/// An answer in our words.
pub(super) struct Substitute {
    pub(super) header: Box<ResponseHeader>,
    pub(super) body: Bytes,
}

impl Tape {
    /// Puts the body for the next try in.
    pub(super) fn load(&self, body: Bytes) {
        *self.body.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    /// Says when the upstream is overdue.
    pub(super) fn due_at(&self, us: u64) {
        let drain_until = self.drain_until_us.load(Ordering::Relaxed);
        self.deadline_us.store(if drain_until == 0 { us } else { us.min(drain_until) }, Ordering::Relaxed);
    }

    /// Whether the answer is read on though its client has left.
    pub(super) fn is_draining(&self) -> bool {
        self.drain_until_us.load(Ordering::Relaxed) != 0
    }

    /// The client has left: `false` where the upstream is to be left as well.
    fn drain(&self) -> bool {
        if self.drain_max_us != 0 && !self.is_draining() {
            let until = self.clock.now_us().saturating_add(self.drain_max_us);
            self.drain_until_us.store(until, Ordering::Relaxed);
            self.due_at(self.deadline_us.load(Ordering::Relaxed));
        }
        self.drain_max_us != 0
    }

    /// Holds back what the upstream answers, or lets it pass again.
    pub(super) fn hold(&self, holding: bool) {
        self.holding.store(holding, Ordering::Relaxed);
    }

    /// Says what the client gets, at its end, in place of the answer that is held back.
    pub(super) fn substitute(&self, substitute: Substitute) {
        *self.substitute.lock().unwrap_or_else(PoisonError::into_inner) = Some(substitute);
    }

    /// Lets nothing more pass before the request's record is kept.
    pub(super) fn await_receipt(&self, receipt: Receipt) {
        *self.receipt.lock().unwrap_or_else(PoisonError::into_inner) = Some(receipt);
    }

    /// Returns when what is to be written may be written.
    async fn billed(&self) -> Result<()> {
        let receipt = self.receipt.lock().unwrap_or_else(PoisonError::into_inner).take();
        match receipt {
            None => Ok(()),
            Some(receipt) => match receipt.kept().await {
                Ok(()) => Ok(()),
                Err(error) => Error::e_because(NOT_BILLED, "the answer's end is withheld", error),
            },
        }
    }

    /// This try's body.
    pub(super) fn body(&self) -> Bytes {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn deadline(&self) -> Instant {
        Instant::from_std(self.clock.instant(self.deadline_us.load(Ordering::Relaxed)))
    }
}

/// Longer than any exchange may take; kept small enough to be added to an `Instant`.
const NOT_DUE_US: u64 = 10 * 365 * 24 * 3600 * 1_000_000;

/// Puts a [`Replay`] into the place of the session whose body has been read.
///
/// When the client leaves, its answer is read on for `drain_max`.
pub(super) fn replace(session: &mut Session, clock: Clock, drain_max: Duration) -> Arc<Tape> {
    let tape = Arc::new(Tape {
        clock,
        body: Mutex::new(Bytes::new()),
        deadline_us: AtomicU64::new(NOT_DUE_US),
        drain_max_us: micros(drain_max),
        drain_until_us: AtomicU64::new(0),
        holding: AtomicBool::new(false),
        substitute: Mutex::new(None),
        receipt: Mutex::new(None),
        real: Mutex::new(None),
    });
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
    if let Some(real) = tape.real.lock().unwrap_or_else(PoisonError::into_inner).take() {
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
        *self.tape.real.lock().unwrap_or_else(PoisonError::into_inner) = Some(real);
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
        if !self.tape.holding.load(Ordering::Relaxed) {
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
        let substitute = self.tape.substitute.lock().unwrap_or_else(PoisonError::into_inner).take();
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
