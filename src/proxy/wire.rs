//! The bytes of one connection on their way to and from Pingora, and what Pingora does not look at in them.
//!
//! Over HTTP/1.1, a request's head is handed on when it is whole: what is parsed anew with each byte would cost a client nothing and
//! us a second. Its size has a limit. What Pingora answers by itself, to heads that it cannot read, is put into OpenAI's words.
//! Over HTTP/2, frames are counted ([`super::frames`]) and a head that has begun has its time to end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Shared;
use super::connections::Closed;
use super::frames::Frames;
use super::link::{Link, Stage};
use super::parting::Parting;
use super::unsent::Unsent;
use crate::relay::refusal::{Cause, Refusal};

/// What a head may take before its end is seen: 64 KiB of headers, a long path, and what stands between them.
const HEAD_BYTES_MAX: usize = 96 * 1024;
/// What comes of a head's end may be the last bytes of what was read before.
const END_BYTES: usize = 3;

/// A connection's bytes.
pub(super) struct Wire {
    inner: Stream,
    link: Arc<Link>,
    shared: Arc<Shared>,
    /// What was read and not yet handed on.
    held: BytesMut,
    /// Whether what is held may be: it has a head's end, or nothing more will come.
    may_pass: bool,
    /// What has come of the head that is being read.
    head_bytes: usize,
    /// The last bytes that were handed on or held.
    last: [u8; END_BYTES],
    frames: Frames,
    /// Rings when a head has taken too long over HTTP/2.
    overdue: Option<Pin<Box<Sleep>>>,
    /// An answer's head that is to leave with the first of its body.
    unsent: Unsent,
    /// What the client is told before the connection ends.
    parting: Option<Parting>,
}

impl Wire {
    pub(super) fn new(inner: Stream, link: Arc<Link>, shared: Arc<Shared>) -> Self {
        let frames = Frames::new(shared.clock.now_us());
        Self {
            inner,
            link,
            shared,
            held: BytesMut::new(),
            may_pass: false,
            head_bytes: 0,
            last: [0; END_BYTES],
            frames,
            overdue: None,
            unsent: Unsent::default(),
            parting: None,
        }
    }

    /// The client will be told that, and nothing else any more.
    fn part(&mut self, refusal: &Refusal) {
        if self.parting.is_none() {
            self.shared.metrics.refused(refusal.cause);
            self.parting = Some(Parting::new(refusal));
        }
    }

    /// Hands on what is held.
    fn pass_held(&mut self, buf: &mut ReadBuf<'_>) {
        let part = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..part]);
        self.held.advance(part);
        self.may_pass &= !self.held.is_empty();
    }

    /// Reads until a head is whole.
    fn read_head(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(parting) = &mut self.parting {
                ready!(parting.poll_part(&mut self.inner, context));
                return Poll::Ready(Ok(()));
            }
            if self.may_pass {
                self.pass_held(buf);
                return Poll::Ready(Ok(()));
            }
            if self.link.stage() == Stage::Waiting {
                self.head_bytes = 0;
            } else if self.head_bytes > HEAD_BYTES_MAX {
                self.held.clear();
                self.part(&Refusal::new(Cause::BadRequest, "The request has more than 64 KiB of headers."));
                continue;
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.inner).poll_read(context, buf))?;
            let read = &buf.filled()[before..];
            if read.is_empty() {
                if self.held.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                self.may_pass = true;
                continue;
            }
            self.link.head_began();
            let is_whole = ends_a_head(&self.last, read) || (self.head_bytes == 0 && is_no_head(read));
            self.head_bytes += read.len();
            self.last = last_of(&self.last, read);
            if is_whole && self.held.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.held.extend_from_slice(read);
            buf.set_filled(before);
            self.may_pass = is_whole;
        }
    }

    /// Reads what follows a head.
    fn read_on(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Whoever reads again has nothing more to write for now. What cannot be sent yet is sent by who writes on.
        let _ = self.unsent.poll_write(&mut self.inner, context, &[])?;
        if !self.held.is_empty() {
            self.pass_held(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buf))?;
        self.last = last_of(&self.last, &buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }

    /// Reads frames.
    fn read_frames(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buf)?;
        if read.is_ready() {
            let now_us = self.shared.clock.now_us();
            if self.frames.read(&buf.filled()[before..], now_us).is_err() {
                self.shared.connections.closed(Closed::Flood);
                return Poll::Ready(Err(io::Error::other("the client floods the connection")));
            }
            if self.frames.is_established() {
                self.link.frames_began();
            }
            self.keep_time();
        }
        if let Some(overdue) = &mut self.overdue
            && read.is_pending()
        {
            ready!(overdue.as_mut().poll(context));
            self.shared.connections.closed(Closed::TooSlow);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read.map(Ok)
    }

    /// Sets when the head that is coming has to be there.
    fn keep_time(&mut self) {
        let Some(since_us) = self.frames.head_since_us() else {
            self.overdue = None;
            return;
        };
        if self.overdue.is_none() {
            let due = Instant::from_std(self.shared.clock.instant(since_us)) + self.link.head_max();
            self.overdue = Some(Box::pin(tokio::time::sleep_until(due)));
        }
    }

    /// Whether what is being written is Pingora's own answer: nothing of ours is written before a head has arrived.
    fn is_pingoras(&self) -> bool {
        matches!(self.link.stage(), Stage::Waiting | Stage::Head)
    }

    /// Takes Pingora's answer for what it means.
    fn translate(&mut self, written: &[u8]) {
        self.part(&match written.starts_with(b"HTTP/1.1 405") {
            true => Refusal::new(Cause::MethodNotAllowed, "CONNECT is not served here."),
            false => Refusal::new(Cause::BadRequest, "The request's head cannot be read, or not in one way alone."),
        });
    }
}

/// Whether a blank line ends in `read`, which came after `last`. A bare line feed ends a line here: to hand on too early does no
/// harm, and to wait for what will not come would.
fn ends_a_head(last: &[u8; END_BYTES], read: &[u8]) -> bool {
    let mut edge = [0; 2 * END_BYTES];
    edge[..END_BYTES].copy_from_slice(last);
    let first = &read[..read.len().min(END_BYTES)];
    edge[END_BYTES..END_BYTES + first.len()].copy_from_slice(first);
    has_blank_line(&edge) || has_blank_line(read)
}

/// Whether these can be no head's first bytes, such as a TLS handshake's: whoever sent them is to be told at once.
fn is_no_head(read: &[u8]) -> bool {
    read.first().is_some_and(|byte| !byte.is_ascii_graphic() && !matches!(byte, b'\r' | b'\n'))
}

fn has_blank_line(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).any(|at| matches!(&bytes[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

/// The last bytes of two pieces.
fn last_of(last: &[u8; END_BYTES], read: &[u8]) -> [u8; END_BYTES] {
    let mut joined = *last;
    for byte in &read[read.len().saturating_sub(END_BYTES)..] {
        joined.rotate_left(1);
        joined[END_BYTES - 1] = *byte;
    }
    joined
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        match wire.link.stage() {
            Stage::Waiting | Stage::Head => wire.read_head(context, buf),
            Stage::Answering => wire.read_on(context, buf),
            // Heads of HTTP/1.1 are announced before they are read, so this is the other.
            Stage::Opening | Stage::Frames => wire.read_frames(context, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if wire.is_pingoras() {
            wire.translate(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        if wire.link.stage() == Stage::Answering && wire.unsent.takes(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(wire.unsent.poll_write(&mut wire.inner, context, &[io::IoSlice::new(buf)]))?;
        wire.frames.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if wire.is_pingoras() {
            wire.translate(bufs.first().map_or(&[], |buf| buf));
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let written = ready!(wire.unsent.poll_write(&mut wire.inner, context, bufs))?;
        wire.frames.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        ready!(wire.unsent.poll_write(&mut wire.inner, context, &[]))?;
        Pin::new(&mut wire.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        ready!(wire.unsent.poll_write(&mut wire.inner, context, &[]))?;
        if wire.parting.is_none() && wire.link.is_doubted() {
            wire.parting = Some(Parting::silent());
        }
        match &mut wire.parting {
            Some(parting) => parting.poll_part(&mut wire.inner, context).map(Ok),
            None => Pin::new(&mut wire.inner).poll_shutdown(context),
        }
    }
}

#[async_trait]
impl Shutdown for Wire {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

#[async_trait]
impl Peek for Wire {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.inner.try_peek(buf).await
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What is held may have a key in it.
        f.debug_struct("Wire").field("id", &self.inner.id()).finish_non_exhaustive()
    }
}

impl UniqueID for Wire {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Wire {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Wire {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Wire {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Wire {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heads_end_is_seen_wherever_it_is_cut() {
        for head in ["GET / HTTP/1.1\r\nhost: a\r\n\r\nbody", "GET / HTTP/1.1\nhost: a\n\nbody"] {
            let bytes = head.as_bytes();
            let end = head.find("body").unwrap();
            for cut in 1..bytes.len() {
                let (one, other) = bytes.split_at(cut);
                let last = last_of(&[0; END_BYTES], one);
                assert_eq!(ends_a_head(&[0; END_BYTES], one), cut >= end, "{head:?} at {cut}");
                // What ended before the cut may be seen once more; what ends behind it must be.
                assert!(ends_a_head(&last, other) || cut >= end, "{head:?} at {cut}");
            }
            let mut last = [0; END_BYTES];
            let ends: Vec<usize> = (0..bytes.len())
                .filter(|at| {
                    let ends = ends_a_head(&last, &bytes[*at..=*at]);
                    last = last_of(&last, &bytes[*at..=*at]);
                    ends
                })
                .collect();
            assert_eq!(ends.first(), Some(&(end - 1)), "{head:?}, byte by byte");
        }
    }
}
