//! The load: closed loops of HTTP/1.1 requests over kept-alive connections, each answer read to its end and checked.
//!
//! Absent on purpose: open-loop load and latency under it (CPU time is the figure here), TLS, HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Failure;
use crate::upstream::{STAMP_MARK, STREAM_END};

const READ_BYTES: usize = 64 * 1024;
/// Past this an exchange hangs, and the bench ends with an error.
const EXCHANGE_SECONDS_MAX: u64 = 20;
const ANSWER_CHARS_SHOWN: usize = 1000;

/// Where requests go, and with which key.
#[derive(Clone, Debug)]
pub struct Target {
    /// Always on loopback.
    pub address: SocketAddr,
    /// The bearer token.
    pub key: String,
}

/// One kind of request.
#[derive(Clone, Debug)]
pub struct Work {
    /// Which of the upstream's answers is asked for.
    pub model: &'static str,
    /// About how long the body is.
    pub body_bytes: usize,
    /// Extra members of the body, each followed by a comma.
    pub members: &'static str,
    /// Connections, each with one request in flight.
    pub connections: usize,
}

impl Work {
    fn is_stream(&self) -> bool {
        self.members.contains("\"stream\":true")
    }

    /// The whole request: a conversation of turns of up to 4 KiB, with the escapes that real text has.
    pub fn request(&self, target: &Target) -> Bytes {
        let sentence = "A relay passes a message on \\\"as it is\\\", line by line.\\n";
        let mut body = format!("{{\"model\":\"bench/{}\",{}\"messages\":[", self.model, self.members);
        loop {
            let left = self.body_bytes.saturating_sub(body.len() + 40).min(4096);
            body.push_str("{\"role\":\"user\",\"content\":\"");
            body.extend(std::iter::repeat_n(sentence, 1 + left / sentence.len()));
            body.push_str("\"}");
            if body.len() + 60 > self.body_bytes {
                break;
            }
            body.push(',');
        }
        body.push_str("]}");
        let (Target { address, key }, length) = (target, body.len());
        Bytes::from(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\naccept: application/json\r\nuser-agent: bench/1\r\n\
             content-length: {length}\r\n\r\n{body}"
        ))
    }
}

/// When a closed loop ends: whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Time.
    pub time: Duration,
    /// Requests.
    pub requests: u64,
}

/// Runs `work` against `target` until `limit`; returns how many exchanges were completed.
///
/// # Errors
/// On the first answer that is not a whole, good one.
pub async fn closed_loop(target: &Target, work: &Work, limit: Limit) -> Result<u64, Failure> {
    let request = work.request(target);
    let (address, is_stream) = (target.address, work.is_stream());
    let deadline = Instant::now() + limit.time;
    let begun = Arc::new(AtomicU64::new(0));
    let mut loops = JoinSet::new();
    for _ in 0..work.connections {
        let (request, begun) = (request.clone(), Arc::clone(&begun));
        loops.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut completed: u64 = 0;
            while Instant::now() < deadline && begun.fetch_add(1, Ordering::Relaxed) < limit.requests {
                let mut tail = Tail::default();
                connection.exchange(&request, &mut |bytes| tail.push(bytes)).await?;
                tail.check(is_stream)?;
                completed += 1;
            }
            Ok::<u64, Failure>(completed)
        });
    }
    let mut completed = 0;
    while let Some(outcome) = loops.join_next().await {
        completed += outcome??;
    }
    Ok(completed)
}

/// Asks `count` times, one after the other on one connection; returns how long each took, in ns, sorted.
pub async fn one_by_one(target: &Target, work: &Work, count: usize) -> Result<Vec<u64>, Failure> {
    let request = work.request(target);
    let mut connection = Connection::open(target.address).await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        connection.exchange(&request, &mut |_| {}).await?;
        times.push(u64::try_from(began.elapsed().as_nanos())?);
    }
    times.sort_unstable();
    Ok(times)
}

/// Opens `count` streams, waits for each one's first bytes and returns them open.
pub async fn open_streams(target: &Target, work: &Work, count: usize) -> Result<Vec<TcpStream>, Failure> {
    let request = work.request(target);
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(target.address).await?;
        connection.stream.write_all(&request).await?;
        let mut seen = Vec::new();
        let first = async {
            while memchr::memmem::find(&seen, b"data: ").is_none() {
                if connection.stream.read_buf(&mut seen).await? == 0 {
                    return Err(format!("a silent stream ended: {}", String::from_utf8_lossy(&seen)).into());
                }
            }
            Ok::<(), Failure>(())
        };
        tokio::time::timeout(Duration::from_secs(EXCHANGE_SECONDS_MAX), first).await??;
        streams.push(connection.stream);
    }
    Ok(streams)
}

/// Reads `work.connections` paced streams at once; returns every chunk's way from the upstream's write to here, in ns,
/// sorted.
pub async fn chunk_delays(target: &Target, work: &Work) -> Result<Vec<u64>, Failure> {
    let request = work.request(target);
    let mut readers = JoinSet::new();
    for _ in 0..work.connections {
        let (request, address) = (request.clone(), target.address);
        readers.spawn(async move {
            let mut delays = Vec::new();
            let mut broken = false;
            let mut on_bytes = |bytes: &[u8]| match delays_of(bytes, &mut delays) {
                Some(()) => {}
                None => broken = true,
            };
            Connection::open(address).await?.exchange(&request, &mut on_bytes).await?;
            if broken { Err("a paced chunk without its time".into()) } else { Ok::<Vec<u64>, Failure>(delays) }
        });
        // Apart, so that one stream's chunks do not ride on another's wake-up.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut delays = Vec::new();
    while let Some(outcome) = readers.join_next().await {
        delays.extend(outcome??);
    }
    delays.sort_unstable();
    Ok(delays)
}

/// Adds the age of every stamped chunk in `bytes`; `None` when a stamp cannot be read.
fn delays_of(bytes: &[u8], delays: &mut Vec<u64>) -> Option<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_nanos();
    for at in memchr::memmem::find_iter(bytes, STAMP_MARK) {
        let digits = bytes.get(at + STAMP_MARK.len()..)?;
        let stamp = std::str::from_utf8(digits.get(..memchr::memchr(b' ', digits)?)?).ok()?;
        delays.push(u64::try_from(now.checked_sub(stamp.parse().ok()?)?).ok()?);
    }
    Some(())
}

/// The last bytes of a body, to see that it came whole.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&bytes[bytes.len().saturating_sub(STREAM_END.len())..]);
        if self.bytes.len() > 64 * STREAM_END.len() {
            self.bytes.drain(..self.bytes.len() - STREAM_END.len());
        }
    }

    fn check(&self, is_stream: bool) -> Result<(), Failure> {
        let whole = if is_stream { self.bytes.ends_with(STREAM_END) } else { self.bytes.ends_with(b"}") };
        if whole { Ok(()) } else { Err("an answer that was cut short".into()) }
    }
}

/// One kept-alive connection; opened again where the other side closes it between answers.
struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream, buffer: Vec::with_capacity(READ_BYTES) })
    }

    /// Sends one request and reads its answer to the end; the body's bytes go to `on_bytes` as they come.
    async fn exchange(&mut self, request: &[u8], on_bytes: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        let exchange = self.try_exchange(request, on_bytes);
        let keeps = tokio::time::timeout(Duration::from_secs(EXCHANGE_SECONDS_MAX), exchange).await??;
        if !keeps {
            *self = Self::open(self.address).await?;
        }
        Ok(())
    }

    /// Returns whether the connection may be used again.
    async fn try_exchange(&mut self, request: &[u8], on_bytes: &mut impl FnMut(&[u8])) -> Result<bool, Failure> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let body_at = loop {
            self.read_more().await?;
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let (mut framing, keeps) = read_head(&self.buffer[..body_at]).map_err(|error| self.explained(error))?;
        let mut done = framing.feed(&self.buffer[body_at..], on_bytes)?;
        while !done {
            self.buffer.clear();
            self.read_more().await?;
            done = framing.feed(&self.buffer, on_bytes)?;
        }
        Ok(keeps)
    }

    /// An error about the answer at hand, with its beginning.
    fn explained(&self, error: Failure) -> Failure {
        let answer: String = String::from_utf8_lossy(&self.buffer).chars().take(ANSWER_CHARS_SHOWN).collect();
        format!("{error}:\n{answer}").into()
    }

    async fn read_more(&mut self) -> Result<(), Failure> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err("the connection ended inside an answer".into()),
            _ => Ok(()),
        }
    }
}

/// How a body's end is told.
enum Framing {
    /// So many bytes are left.
    Length(usize),
    /// `Transfer-Encoding: chunked`, and where in it we are.
    Chunked(Chunked),
}

#[derive(Clone, Copy)]
enum Chunked {
    /// In the size's line, read so far.
    Size(usize),
    /// In a chunk: so many bytes are left.
    Data(usize),
    /// After a chunk, before its line's end.
    DataEnd,
    /// In the lines after the last chunk; whether this line is still empty.
    Trailer(bool),
}

impl Framing {
    /// Takes the next bytes, hands the body's among them on, and returns whether the body is at its end.
    fn feed(&mut self, mut bytes: &[u8], on_bytes: &mut impl FnMut(&[u8])) -> Result<bool, Failure> {
        let state = match self {
            Self::Length(left) => {
                *left = left.checked_sub(bytes.len()).ok_or("more bytes than content-length says")?;
                on_bytes(bytes);
                return Ok(*left == 0);
            }
            Self::Chunked(state) => state,
        };
        while let Some((&byte, rest)) = bytes.split_first() {
            match *state {
                Chunked::Data(left) => {
                    let (data, rest) = bytes.split_at(left.min(bytes.len()));
                    on_bytes(data);
                    *state = if data.len() == left { Chunked::DataEnd } else { Chunked::Data(left - data.len()) };
                    bytes = rest;
                    continue;
                }
                Chunked::DataEnd if byte == b'\n' => *state = Chunked::Size(0),
                Chunked::Size(0) if byte == b'\n' => *state = Chunked::Trailer(true),
                Chunked::Size(size) if byte == b'\n' => *state = Chunked::Data(size),
                Chunked::Trailer(true) if byte == b'\n' => return Ok(true),
                Chunked::Trailer(_) if byte == b'\n' => *state = Chunked::Trailer(true),
                Chunked::Trailer(empty) => *state = Chunked::Trailer(empty && byte == b'\r'),
                Chunked::Size(size) if byte != b'\r' => {
                    let digit = char::from(byte).to_digit(16).ok_or("a chunk size that is none")?;
                    *state = Chunked::Size(size * 16 + usize::try_from(digit)?);
                }
                Chunked::Size(_) | Chunked::DataEnd => {}
            }
            bytes = rest;
        }
        Ok(false)
    }
}

/// Reads an answer's head: how its body ends, and whether the connection may be used again.
fn read_head(head: &[u8]) -> Result<(Framing, bool), Failure> {
    let text = std::str::from_utf8(head)?;
    if !text.starts_with("HTTP/1.1 200 ") {
        return Err("an answer that is not a 200".into());
    }
    let (mut framing, mut keeps) = (None, true);
    let lines = text.lines().take_while(|line| !line.is_empty());
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", length) => framing = Some(Framing::Length(length.parse()?)),
            ("transfer-encoding", "chunked") => framing = Some(Framing::Chunked(Chunked::Size(0))),
            ("connection", value) => keeps = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Ok((framing.ok_or("an answer without content-length or chunks")?, keeps))
}
