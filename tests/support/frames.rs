//! HTTP/2 by hand: frames as they are written, right or wrong, over cleartext with prior knowledge.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::PATIENCE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame that has come.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The status that an answer's HEADERS frame begins with.
    #[track_caller]
    pub fn status(&self) -> u16 {
        // What resizes the table may come first.
        let at = self.payload.iter().position(|byte| byte & 0xe0 != 0x20).unwrap();
        let first = self.payload[at];
        if let (0x88..=0x8e, known) = (first, [200, 204, 206, 304, 400, 404, 500]) {
            return known[usize::from(first - 0x88)];
        }
        assert!(first == 0x48 || matches!(first, 0x08 | 0x18), "no status: {:?}", self.payload);
        let length = self.payload[at + 1];
        let value = &self.payload[at + 2..at + 2 + usize::from(length & 0x7f)];
        let digits = if length & 0x80 == 0 { String::from_utf8(value.to_vec()).unwrap() } else { digits(value) };
        digits.parse().unwrap()
    }

    /// The code of a RST_STREAM or GOAWAY frame.
    pub fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A client that writes frames.
pub struct Frames {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Frames {
    /// Connects and says nothing.
    pub fn silent(to: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Connects, with the preface and empty settings.
    pub fn open(to: SocketAddr) -> Self {
        let mut frames = Self::silent(to);
        frames.raw(PREFACE);
        frames.send(kind::SETTINGS, 0, 0, &[]);
        frames
    }

    /// Writes bytes as they are; false when the peer takes no more.
    pub fn raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.raw(&frame(kind, flags, stream, payload))
    }

    /// Writes the same bytes until the peer takes no more, `most` times at most. What has come is read meanwhile, and forgotten, so
    /// that neither side waits for the other. Says how often they were written.
    pub fn flood(&mut self, most: usize, bytes: impl Fn(usize) -> Vec<u8>) -> usize {
        let mut reader = self.stream.try_clone().unwrap();
        let reading =
            std::thread::spawn(move || while reader.read(&mut [0; 64 * 1024]).is_ok_and(|count| count > 0) {});
        let written = (0..most).take_while(|count| self.raw(&bytes(*count))).count();
        let _ = reading.join();
        written
    }

    /// The next frame; `None` when the connection has ended.
    pub fn next(&mut self) -> Option<Frame> {
        while self.unread.len() < 9 {
            self.more()?;
        }
        let length = usize::from(self.unread[0]) << 16 | usize::from(self.unread[1]) << 8 | usize::from(self.unread[2]);
        while self.unread.len() < 9 + length {
            self.more()?;
        }
        let bytes: Vec<u8> = self.unread.drain(..9 + length).collect();
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap()) & 0x7fff_ffff;
        Some(Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() })
    }

    /// Reads on to a frame of that kind; `None` when the connection ends before.
    pub fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Whether the connection has ended, without waiting for it.
    pub fn has_ended(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let ended = self.more().is_none();
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        ended
    }

    /// Whether anything has come, without waiting for it.
    pub fn answered(&mut self) -> bool {
        let _ = self.has_ended();
        !self.unread.is_empty()
    }

    /// What has come and was not read, as text.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    fn more(&mut self) -> Option<()> {
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => {
                self.unread.extend(&bytes[..count]);
                Some(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let patience = self.stream.read_timeout().unwrap();
                assert!(patience != Some(PATIENCE), "nothing came for {PATIENCE:?}, and the connection is still open");
                Some(())
            }
            Err(_) => None,
        }
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as HPACK, each a literal that nobody keeps.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            length(text.len(), &mut bytes);
            bytes.extend(text.bytes());
        }
    }
    bytes
}

/// Three digits in Huffman's code: five bits for 0 to 2, six for the others.
fn digits(coded: &[u8]) -> String {
    let bits: String = coded.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut at, mut digits) = (0, String::new());
    while digits.len() < 3 {
        let short = u8::from_str_radix(&bits[at..at + 5], 2).unwrap();
        let (digit, length) = match short {
            0..=2 => (short, 5),
            _ => (u8::from_str_radix(&bits[at..at + 6], 2).unwrap() - 0x19 + 3, 6),
        };
        at += length;
        digits.push(char::from(b'0' + digit));
    }
    digits
}

/// HPACK's whole numbers, with a prefix of seven bits.
fn length(mut number: usize, bytes: &mut Vec<u8>) {
    if number < 127 {
        return bytes.push(u8::try_from(number).unwrap());
    }
    bytes.push(127);
    number -= 127;
    while number >= 128 {
        bytes.push(u8::try_from(number % 128).unwrap() | 128);
        number /= 128;
    }
    bytes.push(u8::try_from(number).unwrap());
}

/// The head of a chat, as fields.
pub fn chat_fields<'a>(authorization: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/v1/chat/completions"),
        (":authority", "relay.test"),
        ("authorization", authorization),
        ("content-type", "application/json"),
    ];
    fields.extend(more);
    fields
}
