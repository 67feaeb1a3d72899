//! What two processes say to each other: the sockets beside one byte, then a line of JSON at a time.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg, sockopt,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::relay::admit::TakenLimits;

/// More sockets than there are settings for them.
const SOCKETS_MAX: usize = 16;

/// What the old process says. Keys are named by the digits of their digests.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromOld {
    /// The keys whose limits will be handed over.
    Keys(Vec<String>),
    /// Nobody is let in now; this is taken of the keys' limits.
    Stopped(HashMap<String, TakenLimits>),
    /// The doors are the other's.
    Yours,
    /// How many requests still run, of each key that has some.
    Running(HashMap<String, u32>),
}

/// What the new process says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromNew {
    /// It could let clients in.
    Ready,
    /// It has taken over what it was told.
    Take,
    /// It was told to end, and so is the other.
    End,
}

/// A connection to the other process.
#[derive(Debug)]
pub(super) struct Wire(BufReader<UnixStream>);

impl Wire {
    /// A connection with a process of the same user.
    ///
    /// # Errors
    /// It is another's.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        let peer = sockopt::socket_peercred(&stream)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the other process is another user's"));
        }
        Ok(Self(BufReader::new(stream)))
    }

    /// The other process.
    pub(super) fn peer_pid(&self) -> io::Result<u32> {
        let pid = sockopt::socket_peercred(self.0.get_ref())?.pid.as_raw_nonzero();
        u32::try_from(pid.get()).map_err(io::Error::other)
    }

    /// A second hold of the connection, to speak by.
    pub(super) fn speaker(&self) -> io::Result<UnixStream> {
        self.0.get_ref().try_clone()
    }

    /// For how long the other may be silent.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.0.get_ref().set_read_timeout(patience)?;
        self.0.get_ref().set_write_timeout(patience)
    }

    pub(super) fn send_sockets(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !beside.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::Error::other("there are more sockets than can be handed over"));
        }
        sendmsg(self.0.get_ref(), &[IoSlice::new(b"s")], &mut beside, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Before anything else is read.
    pub(super) fn receive_sockets(&self) -> io::Result<Vec<TcpListener>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let read = recvmsg(self.0.get_ref(), &mut [IoSliceMut::new(&mut byte)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
        if read.bytes == 0 {
            return Err(gone());
        }
        let mut sockets = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(found) = message {
                sockets.extend(found.map(TcpListener::from));
            }
        }
        Ok(sockets)
    }

    pub(super) fn send(&self, word: &impl Serialize) -> io::Result<()> {
        say(self.0.get_ref(), word)
    }

    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(gone());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// Says one thing.
pub(super) fn say(mut to: &UnixStream, word: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Whether the other is only silent.
pub(super) fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the other process left")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn sockets_and_words_arrive_as_they_were_sent() {
        let (old, new) = UnixStream::pair().unwrap();
        let (old, mut new) = (Wire::new(old).unwrap(), Wire::new(new).unwrap());
        let sockets = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        old.send_sockets(&sockets.each_ref().map(|socket| socket.as_fd())).unwrap();
        let taken = TakenLimits { requests_us: vec![3, 1], tokens_us: vec![(2, 9)], running: 4 };
        old.send(&FromOld::Stopped(HashMap::from([("ab".to_owned(), taken.clone())]))).unwrap();
        let found = new.receive_sockets().unwrap();
        let addresses =
            |sockets: &[TcpListener]| -> Vec<_> { sockets.iter().map(|socket| socket.local_addr().unwrap()).collect() };
        assert_eq!(addresses(&found), addresses(&sockets));
        let FromOld::Stopped(heard) = new.receive().unwrap() else { panic!("another word") };
        assert_eq!(heard["ab"], taken);
        assert_eq!(new.peer_pid().unwrap(), std::process::id());
        drop(old);
        assert_eq!(new.receive::<FromOld>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
