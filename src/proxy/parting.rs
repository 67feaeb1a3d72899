//! The last that a client is told on a connection that is not read as requests any more.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use uuid::Uuid;

use crate::relay::refusal::Refusal;

/// How long the client may take to take it, and how much of what it still sends is read meanwhile: a close with unread bytes resets
/// the connection, and what was written may be lost with it.
const TIME_MAX: Duration = Duration::from_secs(2);
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A refusal without a request, over HTTP/1.1, and the connection's end after it.
pub(super) struct Parting {
    unwritten: Bytes,
    step: Step,
    read_left: usize,
    patience: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Write,
    End,
    Read,
    Over,
}

impl Parting {
    pub(super) fn new(refusal: &Refusal) -> Self {
        Self { unwritten: answer(refusal), step: Step::Write, read_left: READ_BYTES_MAX, patience: None }
    }

    /// Nothing is left to be said; only what still comes is read for a moment.
    pub(super) fn silent() -> Self {
        Self { unwritten: Bytes::new(), step: Step::Write, read_left: READ_BYTES_MAX, patience: None }
    }

    /// Ready when nothing is left to be done but to close.
    pub(super) fn poll_part(&mut self, stream: &mut Stream, context: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(TIME_MAX)));
        if patience.as_mut().poll(context).is_ready() {
            self.step = Step::Over;
        }
        while self.step != Step::Over {
            match self.poll_step(stream, context) {
                Poll::Ready(step) => self.step = step,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    fn poll_step(&mut self, stream: &mut Stream, context: &mut Context<'_>) -> Poll<Step> {
        let stream = Pin::new(stream);
        match self.step {
            Step::Write if self.unwritten.has_remaining() => {
                stream.poll_write(context, &self.unwritten).map(|written| match written {
                    Ok(0) | Err(_) => Step::Over,
                    Ok(count) => {
                        self.unwritten.advance(count);
                        Step::Write
                    }
                })
            }
            Step::Write => stream.poll_flush(context).map(|flushed| flushed.map_or(Step::Over, |()| Step::End)),
            Step::End => stream.poll_shutdown(context).map(|ended| ended.map_or(Step::Over, |()| Step::Read)),
            Step::Read => {
                let mut bytes = [0; 8 * 1024];
                let mut buf = ReadBuf::new(&mut bytes);
                stream.poll_read(context, &mut buf).map(|read| {
                    let count = buf.filled().len();
                    self.read_left = self.read_left.saturating_sub(count);
                    if read.is_err() || count == 0 || self.read_left == 0 { Step::Over } else { Step::Read }
                })
            }
            Step::Over => Poll::Ready(Step::Over),
        }
    }
}

/// The answer's bytes.
fn answer(refusal: &Refusal) -> Bytes {
    let body = refusal.to_json();
    let status = http::StatusCode::from_u16(refusal.cause.status()).unwrap_or(http::StatusCode::BAD_REQUEST);
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = Vec::with_capacity(512);
    // A Vec takes everything.
    let _ = write!(
        bytes,
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-request-id: {}\r\n",
        status.as_u16(),
        body.len(),
        Uuid::now_v7(),
    );
    if let Some(after_ms) = refusal.retry_after_ms {
        let _ = write!(bytes, "retry-after: {}\r\nretry-after-ms: {after_ms}\r\n", after_ms.div_ceil(1000));
    }
    bytes.extend_from_slice(b"connection: close\r\n\r\n");
    bytes.extend_from_slice(&body);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::refusal::Cause;

    #[test]
    fn the_answer_is_whole_and_says_when_to_come_back() {
        let refusal = Refusal::new(Cause::Overloaded, "Too many.").retry_after_ms(1500);
        let text = String::from_utf8(answer(&refusal).to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        for line in ["retry-after: 2", "retry-after-ms: 1500", "connection: close"] {
            assert!(head.contains(line), "{head}");
        }
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        assert_eq!(body.as_bytes(), refusal.to_json());
    }
}
