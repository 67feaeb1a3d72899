//! An answer's head, kept for a moment so that it leaves with the first of the body: one send where there were two, and one time that
//! the client is woken.
//!
//! It waits for nothing: whoever writes on, asks for the rest to be sent, or goes back to reading, sends it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;

/// A larger head is sent as it is written.
const HEAD_BYTES_MAX: usize = 1460;
/// How an answer's head begins over HTTP/1.1.
const HEAD: &[u8] = b"HTTP/1.1 ";
/// What of a vectored write is joined with a head. What is left is written by the next.
const SLICES_MAX: usize = 8;

/// A head that was written and not sent.
#[derive(Default)]
pub(super) struct Unsent(BytesMut);

impl Unsent {
    /// Takes `written` in, where it is an answer's head and nothing else waits.
    pub(super) fn takes(&mut self, written: &[u8]) -> bool {
        let takes = self.0.is_empty() && written.starts_with(HEAD) && written.len() <= HEAD_BYTES_MAX;
        if takes {
            self.0.extend_from_slice(written);
        }
        takes
    }

    /// Sends what waits, with what follows it; says how much of that was sent.
    pub(super) fn poll_write(
        &mut self,
        to: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
        following: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        while !self.0.is_empty() {
            let following = &following[..following.len().min(SLICES_MAX)];
            let mut all = [IoSlice::new(&[]); SLICES_MAX + 1];
            all[0] = IoSlice::new(&self.0);
            all[1..=following.len()].copy_from_slice(following);
            let sent = ready!(Pin::new(&mut *to).poll_write_vectored(context, &all[..=following.len()]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = sent.min(self.0.len());
            self.0.advance(of_head);
            if self.0.is_empty() {
                // A connection that streams, or idles, is to hold nothing.
                self.0 = BytesMut::new();
            }
            if sent > of_head {
                return Poll::Ready(Ok(sent - of_head));
            }
        }
        match following {
            [] => Poll::Ready(Ok(0)),
            [one] => Pin::new(to).poll_write(context, one),
            many => Pin::new(to).poll_write_vectored(context, many),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes at most so many bytes at a time, and is not ready each second time.
    struct Narrow {
        most: usize,
        is_ready: bool,
        sent: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.is_ready = !self.is_ready;
            if !self.is_ready {
                return Poll::Pending;
            }
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            let part = &all[..all.len().min(self.most)];
            self.sent.push(part.to_vec());
            Poll::Ready(Ok(part.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";

    /// What a connection of that width is sent, piece by piece, of a head and what is written behind it.
    fn sent(most: usize, following: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut to = Narrow { most, is_ready: true, sent: Vec::new() };
        let mut unsent = Unsent::default();
        assert!(unsent.takes(ANSWER));
        let mut context = Context::from_waker(Waker::noop());
        let mut rest: Vec<Vec<u8>> = following.iter().map(|part| part.to_vec()).collect();
        loop {
            let slices: Vec<IoSlice<'_>> = rest.iter().map(|part| IoSlice::new(part)).collect();
            let Poll::Ready(written) = unsent.poll_write(&mut to, &mut context, &slices) else { continue };
            let mut written = written.unwrap();
            for part in &mut rest {
                part.drain(..written.min(part.len())).for_each(|_| written -= 1);
            }
            rest.retain(|part| !part.is_empty());
            if rest.is_empty() {
                return to.sent;
            }
        }
    }

    #[test]
    fn a_head_leaves_with_what_follows_it() {
        assert_eq!(sent(usize::MAX, &[b"body"]), [[ANSWER, b"body"].concat()]);
        assert_eq!(sent(usize::MAX, &[b"4\r\n", b"body", b"\r\n"]), [[ANSWER, b"4\r\nbody\r\n"].concat()]);
        assert_eq!(sent(usize::MAX, &[]), [ANSWER], "or alone, when it is asked for");
    }

    #[test]
    fn nothing_is_lost_or_sent_twice_however_little_fits() {
        let parts: Vec<&[u8]> = vec![b"a", b"bc", b"def", b"g", b"h", b"i", b"j", b"k", b"l", b"mn"];
        let whole = [ANSWER, &parts.concat()].concat();
        for most in 1..whole.len() + 2 {
            assert_eq!(sent(most, &parts).concat(), whole, "{most} at a time");
        }
    }

    #[test]
    fn only_an_answers_head_waits() {
        let mut unsent = Unsent::default();
        assert!(!unsent.takes(b"body") && !unsent.takes(&[ANSWER, &[b'x'; HEAD_BYTES_MAX]].concat()));
        assert!(unsent.takes(ANSWER));
        assert!(!unsent.takes(ANSWER), "one at a time");
    }
}
