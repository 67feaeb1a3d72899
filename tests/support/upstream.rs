//! A provider that does what a test tells it: it keeps each request byte for byte and answers by a script.
//!
//! HTTP/1.1 over blocking sockets, a thread a connection; the script writes raw bytes if it wants to, waits at gates,
//! cuts the connection or resets it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::client::{Headers, Wire};
use super::{PATIENCE, until};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// The head's bytes, its blank line included.
    pub head: String,
    pub headers: Headers,
    /// The body, without chunk framing.
    pub body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub connection: usize,
}

impl Received {
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap()
    }

    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.find(name)
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the upstream got a body that is not JSON")
    }

    /// Asserts what holds for every request that the relay sends: one exact length, nothing chunked, one host.
    #[track_caller]
    pub fn assert_framing(&self) {
        assert_eq!(self.headers.all("content-length"), [self.body.len().to_string()], "{}", self.head);
        assert_eq!(self.headers.all("transfer-encoding"), [""; 0], "{}", self.head);
        assert_eq!(self.headers.all("expect"), [""; 0], "{}", self.head);
        assert_eq!(self.headers.all("host").len(), 1, "{}", self.head);
    }
}

type Script = dyn Fn(&Received, &mut Answer) + Send + Sync;

struct Shared {
    script: Box<Script>,
    received: Mutex<Vec<Received>>,
    /// The sockets of open connections, to end their threads with.
    open: Mutex<HashMap<usize, TcpStream>>,
    connections: AtomicUsize,
    over: AtomicBool,
    tls: Option<Arc<ServerConfig>>,
}

/// A listening provider; it closes everything when it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Upstream {
    /// Listens, and runs the script for each request, in the thread of its connection.
    pub fn start(script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), script)
    }

    /// As [`Upstream::start`], at an address that is free.
    pub fn start_at(address: SocketAddr, script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> Self {
        Self::listen(address, Box::new(script), None)
    }

    /// As [`Upstream::start`], behind TLS.
    pub fn start_tls(tls: Arc<ServerConfig>, script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> Self {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), Box::new(script), Some(tls))
    }

    /// A provider that answers each chat with "Hello there", streamed or not as it was asked to.
    pub fn polite() -> Self {
        Self::start(|request, answer| answer.politely(request))
    }

    fn listen(address: SocketAddr, script: Box<Script>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script,
            received: Mutex::default(),
            open: Mutex::default(),
            connections: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            tls,
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&accepting);
                thread::spawn(move || converse(&shared, stream));
            }
        });
        Self { address, shared }
    }

    /// What stands in `base_url`.
    pub fn base_url(&self) -> String {
        match self.shared.tls {
            None => format!("http://{}/v1", self.address),
            Some(_) => format!("https://localhost:{}/v1", self.address.port()),
        }
    }

    /// What has come so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.shared.received.lock().unwrap().len()
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come whole.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Received> {
        until("requests at the upstream", || (self.count() >= count).then(|| self.received()))
    }

    /// The one request that has come.
    #[track_caller]
    pub fn only(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "requests at the upstream");
        received[0].clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for stream in self.shared.open.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Reads requests and answers them until one side ends it.
fn converse(shared: &Arc<Shared>, stream: TcpStream) {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    let _ = stream.set_nodelay(true);
    shared.open.lock().unwrap().insert(number, stream.try_clone().unwrap());
    let socket = stream.try_clone().unwrap();
    let wire: Box<dyn Wire> = match &shared.tls {
        None => Box::new(stream),
        Some(config) => Box::new(StreamOwned::new(ServerConnection::new(Arc::clone(config)).unwrap(), stream)),
    };
    let mut answer = Answer { wire, socket, unread: Vec::new(), open: true, is_reset: false };
    while answer.open {
        let Some(request) = answer.read_request(number) else { break };
        shared.received.lock().unwrap().push(request.clone());
        (shared.script)(&request, &mut answer);
    }
    shared.open.lock().unwrap().remove(&number);
    if !answer.is_reset {
        let _ = answer.socket.shutdown(Shutdown::Both);
    }
}

/// The script's side of a connection. Writing to a peer that has gone is no failure.
pub struct Answer {
    wire: Box<dyn Wire>,
    socket: TcpStream,
    unread: Vec<u8>,
    open: bool,
    is_reset: bool,
}

impl Answer {
    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.wire.write_all(bytes.as_ref()).and_then(|()| self.wire.flush());
    }

    /// A whole answer with a length.
    pub fn whole(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        self.head(status, headers, &format!("content-length: {}\r\n", body.len()));
        self.raw(body);
    }

    /// A whole answer of JSON.
    pub fn json(&mut self, status: u16, body: &Value) {
        self.whole(status, &[("content-type", "application/json")], body.to_string().as_bytes());
    }

    /// The head of an event stream; its body is for [`Answer::chunk`] and [`Answer::event`].
    pub fn begin_events(&mut self) {
        self.head(200, &[("content-type", "text/event-stream; charset=utf-8")], "transfer-encoding: chunked\r\n");
    }

    /// A head as it is wanted; `framing` is a header line, or nothing for a body that lasts until the close.
    pub fn head(&mut self, status: u16, headers: &[(&str, &str)], framing: &str) {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.raw(format!("HTTP/1.1 {status} Scripted\r\n{lines}{framing}\r\n"));
    }

    /// One chunk of a chunked body, in one write.
    pub fn chunk(&mut self, bytes: &[u8]) {
        let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
        framed.extend(bytes);
        framed.extend(b"\r\n");
        self.raw(framed);
    }

    /// One event in a chunk of its own.
    pub fn event(&mut self, data: &str) {
        self.chunk(format!("data: {data}\n\n").as_bytes());
    }

    /// The end of a chunked body.
    pub fn end(&mut self) {
        self.raw("0\r\n\r\n");
    }

    /// Closes the connection, whatever was promised.
    pub fn cut(&mut self) {
        self.open = false;
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Ends the connection with a reset.
    pub fn reset(&mut self) {
        self.open = false;
        self.is_reset = true;
        // The option is the socket's, so it holds for every handle on it; the reset goes out with the last one's close.
        let _ = tokio::net::TcpSocket::from_std_stream(self.socket.try_clone().unwrap()).set_zero_linger();
    }

    /// Waits until the relay leaves; false when it has not in time.
    pub fn sees_it_leave(&mut self) -> bool {
        self.open = false;
        let _ = self.socket.set_read_timeout(Some(PATIENCE));
        loop {
            match self.wire.read(&mut [0; 1024]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            }
        }
    }

    /// "Hello there" as OpenAI would say it, with a usage of 9 tokens in and 2 out.
    pub fn politely(&mut self, request: &Received) {
        let asked = request.json();
        let model = asked["model"].clone();
        if asked["stream"] != true {
            let message = json!({"role": "assistant", "content": "Hello there", "refusal": null, "annotations": []});
            return self.json(
                200,
                &json!({
                    "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": model,
                    "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"}],
                    "usage": usage(9, 2),
                }),
            );
        }
        self.begin_events();
        for piece in ["Hello", " there"] {
            self.event(&word(&model, piece));
        }
        self.event(&finish(&model));
        if asked["stream_options"]["include_usage"] == true {
            self.event(&usage_chunk(&model, 9, 2));
        }
        self.event("[DONE]");
        self.end();
    }

    fn read_request(&mut self, connection: usize) -> Option<Received> {
        let length = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let head = String::from_utf8(self.unread.drain(..length).collect()).unwrap();
        let headers = Headers::parse(head.split_once("\r\n")?.1);
        let body = if headers.find("transfer-encoding").is_some() {
            self.read_chunks()?
        } else {
            let length = headers.find("content-length").map_or(0, |length| length.parse().unwrap());
            self.take(length)?
        };
        Some(Received { head, headers, body, connection })
    }

    fn read_chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(at) = self.unread.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                self.more()?;
            };
            let size = self.take(line + 2)?;
            let size = usize::from_str_radix(std::str::from_utf8(&size).ok()?.trim(), 16).ok()?;
            body.extend(self.take(size)?);
            self.take(2)?;
            if size == 0 {
                return Some(body);
            }
        }
    }

    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.unread.len() < count {
            self.more()?;
        }
        Some(self.unread.drain(..count).collect())
    }

    fn more(&mut self) -> Option<()> {
        let mut bytes = vec![0; 64 * 1024];
        let count = self.wire.read(&mut bytes).ok().filter(|&count| count > 0)?;
        self.unread.extend(&bytes[..count]);
        Some(())
    }
}

/// A usage object.
pub fn usage(prompt: u64, completion: u64) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

fn chunk_of(model: &Value, choices: &Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model, "choices": choices})
}

/// A chunk that adds text.
pub fn word(model: &Value, text: &str) -> String {
    let delta = json!({"role": "assistant", "content": text});
    chunk_of(model, &json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}])).to_string()
}

/// The chunk that finishes the answer.
pub fn finish(model: &Value) -> String {
    chunk_of(model, &json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}])).to_string()
}

/// The chunk that carries the usage.
pub fn usage_chunk(model: &Value, prompt: u64, completion: u64) -> String {
    let mut chunk = chunk_of(model, &json!([]));
    chunk["usage"] = usage(prompt, completion);
    chunk.to_string()
}
