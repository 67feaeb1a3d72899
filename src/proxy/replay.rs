//! The request's body, replayed to each upstream that is tried.
//!
//! Pingora replays what was read only up to 64 KiB. So once the body is read, [`Replay`] takes the real session's place:
//! it delegates everything, answers "what was the body" with the bytes of this try, whatever their size, watches the
//! time while Pingora waits for the client to leave, and lets an answer's end pass only when its record is kept.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
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
    let written = Written { has_head: false, tail: [b'\n'; 3], at: Instant::now() };
    let replay = Replay { real, tape: Arc::clone(&tape), watch: None, silence: None, head: None, written };
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
    /// The same, for the client's patience with silence.
    silence: Option<Pin<Box<Sleep>>>,
    /// A stream's head, until it is known that the stream is none of an error.
    head: Option<HttpTask>,
    written: Written,
}

/// What a stream's client got last, but for comments of ours.
struct Written {
    has_head: bool,
    /// Its last bytes; of a beginning, line feeds.
    tail: [u8; 3],
    /// When, comments of ours included.
    at: Instant,
}

impl Written {
    /// Takes what is being written.
    fn note(&mut self, tasks: &[HttpTask]) {
        for task in tasks {
            self.has_head |= matches!(task, HttpTask::Header(..));
            if let HttpTask::Body(Some(bytes), _) = task {
                let last = &bytes[bytes.len().saturating_sub(self.tail.len())..];
                self.tail.rotate_left(last.len() % 3);
                let from = self.tail.len() - last.len();
                self.tail[from..].copy_from_slice(last);
            }
        }
        self.at = Instant::now();
    }

    /// Whether a stream stands between two events: behind a blank line, or at its beginning.
    fn is_between_events(&self) -> bool {
        self.has_head && matches!(self.tail, [_, b'\n', b'\n'] | [b'\n' | b'\r', b'\r', b'\n'])
    }
}

/// A comment without the blank line behind which some clients would take it for an event of nothing.
const COMMENT: &[u8] = b": ping\n";

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

/// Ends when that time has come, which may change in the meantime.
async fn reached(watch: &mut Option<Pin<Box<Sleep>>>, due: impl Fn() -> Instant) {
    let watch = watch.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due())));
    loop {
        let deadline = due();
        if deadline < watch.deadline() || watch.is_elapsed() {
            watch.as_mut().reset(deadline);
        }
        watch.as_mut().await;
        if due() <= Instant::now() {
            return;
        }
    }
}

/// Drops heads that are none of an answer: they tell of the upstream's connection, not of the client's.
fn without_interim(mut tasks: Vec<HttpTask>) -> Vec<HttpTask> {
    tasks.retain(|task| !matches!(task, HttpTask::Header(head, _) if head.status.is_informational()));
    tasks
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
        let tasks = without_interim(tasks);
        if tasks.is_empty() {
            return Ok(false);
        }
        if !self.tape.is_holding() {
            if matches!(tasks.first(), Some(HttpTask::Header(_, true))) {
                return Error::e_explain(ErrorType::ConnectionClosed, "the upstream answered nothing")
                    .map_err(Error::into_up);
            }
            if self.tape.is_opening() {
                return self.keep_head(tasks);
            }
            return self.pass(tasks).await;
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

    /// Writes what the upstream has answered; before it the head, where that was held back.
    async fn pass(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut tasks: Vec<HttpTask> = tasks.into_iter().map(without_trailers).collect();
        let has_head = matches!(tasks.first(), Some(HttpTask::Header(..)));
        if let Some(head) = self.head.take()
            && !has_head
        {
            tasks.insert(0, head);
        }
        self.written.note(&tasks);
        self.real.response_duplex_vec(tasks).await
    }

    /// Nothing of a stream's beginning is written yet, but its head, which belongs to this try, will be.
    fn keep_head(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        for task in tasks {
            match task {
                HttpTask::Failed(error) => return Err(error),
                HttpTask::Header(..) => {
                    self.head = Some(task);
                    self.written.at = Instant::now();
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// When the client has to get something, for it may believe a silent stream dead.
    fn silent_until(&self) -> Option<Instant> {
        let silence_max = self.tape.silence_max()?;
        let may_speak = match self.tape.is_opening() {
            true => self.head.is_some(),
            false => self.written.is_between_events(),
        };
        may_speak.then(|| self.written.at + silence_max)
    }

    /// Breaks the silence. A stream that has not begun gets its head, and from then on nobody else can be asked.
    async fn speak(&mut self) -> Result<()> {
        if let Some(HttpTask::Header(head, _)) = self.head.take() {
            // As with comments: it goes into an empty buffer whole, or there is something wrong with who should take it.
            let mut write = pin!(self.real.write_response_header(head));
            let written = poll_fn(|context| Poll::Ready(write.as_mut().poll(context))).await;
            let Poll::Ready(Ok(())) = written else {
                return Error::e_explain(ErrorType::WriteError, "the client does not take the answer's head");
            };
            self.written.has_head = true;
            self.tape.head_has_passed();
        }
        self.comment().await;
        Ok(())
    }

    /// Tells the client that there is nothing to tell. Whoever waits here may be interrupted, so it is tried once and not
    /// waited for: these few bytes go into the connection's buffer whole, and what does not leave that at once leaves with
    /// what is written next.
    async fn comment(&mut self) {
        self.written.at = Instant::now();
        let mut write = pin!(self.real.write_response_body(Bytes::from_static(COMMENT), false));
        poll_fn(|context| {
            let _ = write.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
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
        loop {
            let silent_until = self.silent_until();
            let Self { real, tape, watch, silence, .. } = &mut *self;
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
                () = reached(watch, || tape.deadline()) => {
                    return Error::e_explain(UPSTREAM_OVERDUE, "the upstream took too long");
                }
                () = async {
                    match silent_until {
                        Some(until) => reached(silence, || until).await,
                        None => std::future::pending().await,
                    }
                } => self.speak().await?,
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
