//! The request's body, read whole before an upstream is chosen.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use pingora_proxy::Session;
use tokio::time::{Instant, timeout};

use crate::relay::refusal::{Cause, Refusal};

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
    let mut deadline = None;
    let mut whole = Bytes::new();
    let mut buffer = BytesMut::new();
    loop {
        let mut read = pin!(session.downstream_session.read_request_body());
        // What has come with the head, as small bodies do, needs no clock.
        let read = match poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await {
            Poll::Ready(read) => read,
            Poll::Pending => {
                let now = Instant::now();
                let deadline = *deadline.get_or_insert(now + limits.total_max);
                let patience = limits.idle_max.min(deadline.saturating_duration_since(now));
                timeout(patience, read).await.map_err(|_| too_slow())?
            }
        };
        let Some(piece) = read.map_err(|_| broken_off())? else { break };
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
