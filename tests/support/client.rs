//! A client that writes its own bytes and sees every byte of the answer: HTTP/1.1 over a blocking socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A byte stream: TCP, or TLS on top of it.
pub trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A request as it will be written.
#[derive(Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub framing: Framing,
}

/// How a request says where its body ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body, no header about it.
    None,
    /// `Content-Length`.
    Length,
    /// `Transfer-Encoding: chunked` in chunks of so many bytes; over h2, DATA frames without a length.
    Chunked(usize),
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.into(), path: path.into(), headers: Vec::new(), body: Vec::new(), framing: Framing::None }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST of JSON bytes, with their length.
    pub fn post(path: &str, body: impl Into<Vec<u8>>) -> Self {
        let request = Self { body: body.into(), framing: Framing::Length, ..Self::new("POST", path) };
        request.header("content-type", "application/json")
    }

    /// A chat completion.
    pub fn chat(body: &Value) -> Self {
        Self::post("/v1/chat/completions", body.to_string())
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    #[must_use]
    pub fn chunked(mut self, chunk_bytes: usize) -> Self {
        self.framing = Framing::Chunked(chunk_bytes);
        self
    }

    /// The request's head, with a Host of its own unless one is given.
    pub fn head(&self) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str("host: relay.test\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.framing {
            Framing::None => {}
            Framing::Length => head.push_str(&format!("content-length: {}\r\n", self.body.len())),
            Framing::Chunked(_) => head.push_str("transfer-encoding: chunked\r\n"),
        }
        head + "\r\n"
    }

    /// Head and body as they are written over HTTP/1.1.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head().into_bytes();
        match self.framing {
            Framing::Chunked(size) => {
                for chunk in self.body.chunks(size) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
            _ => bytes.extend(&self.body),
        }
        bytes
    }

    /// Sends it on a connection of its own and reads the whole answer.
    #[track_caller]
    pub fn send(&self, to: SocketAddr) -> Response {
        Connection::open(to).ask(self)
    }

    /// As [`Request::send`]; `None` where nobody listens yet.
    pub fn try_send(&self, to: SocketAddr) -> Option<Response> {
        TcpStream::connect(to).is_ok().then(|| self.send(to))
    }

    /// Sends it on a connection of its own and leaves the answer to be read piece by piece.
    pub fn begin(&self, to: SocketAddr) -> Connection {
        let mut connection = Connection::open(to);
        connection.write(&self.bytes());
        connection
    }

    /// As [`Request::begin`]; `None` where nobody listens any more.
    pub fn try_begin(&self, to: SocketAddr) -> Option<Connection> {
        let mut connection = Connection::try_open(to).ok()?;
        connection.write(&self.bytes());
        Some(connection)
    }
}

/// Header lines in their order.
#[derive(Debug, Clone, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of that name.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Every value of that name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    /// Parses header lines, without the first line of a head.
    pub fn parse(lines: &str) -> Self {
        let split = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Self(lines.split("\r\n").filter_map(split).collect())
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As its framing says it ends.
    Clean,
    /// By a closed or reset connection before that.
    Cut,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub end: End,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.find(name)
    }

    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let value = self.header(name).unwrap_or_else(|| panic!("no header {name} in {self:?}"));
        value.parse().unwrap_or_else(|_| panic!("{name} is not a whole number: {value}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    #[track_caller]
    pub fn request_id(&self) -> String {
        self.header("x-request-id").unwrap_or_else(|| panic!("no x-request-id: {self:?}")).to_owned()
    }

    /// What stands after `data:` in each event.
    pub fn events(&self) -> Vec<String> {
        self.text()
            .split("\n\n")
            .filter_map(|event| event.trim().strip_prefix("data:"))
            .map(|d| d.trim().to_owned())
            .collect()
    }

    /// Asserts that this is OpenAI's error object with that status, type and code; gives the message and the param.
    #[track_caller]
    pub fn assert_error(&self, status: u16, kind: &str, code: &str) -> (String, Option<String>) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.end, End::Clean, "an error is answered whole");
        assert_error_object(&self.json(), kind, code)
    }
}

/// Asserts `{"error":{"message","type","param","code"}}` and nothing beside it; gives the message and the param.
#[track_caller]
pub fn assert_error_object(body: &Value, kind: &str, code: &str) -> (String, Option<String>) {
    let object = body["error"].as_object().unwrap_or_else(|| panic!("no error object: {body}"));
    let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["code", "message", "param", "type"], "{body}");
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    assert_eq!((object["type"].as_str(), object["code"].as_str()), (Some(kind), Some(code)), "{body}");
    let message = object["message"].as_str().unwrap_or_default().to_owned();
    assert!(!message.is_empty(), "an error without a message: {body}");
    (message, object["param"].as_str().map(str::to_owned))
}

/// A connection, and where the answer on it stands.
pub struct Connection {
    wire: Box<dyn Wire>,
    unread: Vec<u8>,
    left: Left,
}

/// What is left of an answer's body.
#[derive(Clone, Copy)]
enum Left {
    Nothing,
    Bytes(usize),
    Chunks,
    ToTheClose,
}

impl Connection {
    #[track_caller]
    pub fn open(to: SocketAddr) -> Self {
        Self::try_open(to).unwrap_or_else(|error| panic!("no connection to {to}: {error}"))
    }

    pub fn try_open(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    pub fn over(wire: impl Wire + 'static) -> Self {
        Self { wire: Box::new(wire), unread: Vec::new(), left: Left::Nothing }
    }

    /// Writes bytes as they are. A peer that has closed already is no failure: what it answered is still to be read.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.wire.write_all(bytes).and_then(|()| self.wire.flush());
    }

    #[track_caller]
    pub fn ask(&mut self, request: &Request) -> Response {
        self.write(&request.bytes());
        self.response()
    }

    /// Reads the next answer whole.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        (response.body, response.end) = self.rest();
        response
    }

    /// Reads the next answer's head; its body is for [`Connection::piece`].
    #[track_caller]
    pub fn head(&mut self) -> Response {
        self.try_head()
            .unwrap_or_else(|| panic!("closed without an answer; read: {:?}", String::from_utf8_lossy(&self.unread)))
    }

    /// The next answer's head; `None` when the connection closes before there is one. Interim answers are answers.
    pub fn try_head(&mut self) -> Option<Response> {
        let length = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more() {
                return None;
            }
        };
        let head: Vec<u8> = self.unread.drain(..length).collect();
        let head = String::from_utf8(head).unwrap();
        let (first, lines) = head.split_once("\r\n").unwrap();
        let status =
            first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{first}"));
        let headers = Headers::parse(lines);
        self.left = if (100..200).contains(&status) || status == 204 {
            Left::Nothing
        } else if headers.find("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            Left::Chunks
        } else if let Some(length) = headers.find("content-length") {
            Left::Bytes(length.parse().unwrap())
        } else {
            Left::ToTheClose
        };
        Some(Response { status, headers, body: Vec::new(), end: End::Clean })
    }

    /// The next bytes of the body as soon as there are any; `Err` says how the body ended.
    pub fn piece(&mut self) -> Result<Vec<u8>, End> {
        match self.left {
            Left::Nothing | Left::Bytes(0) => Err(End::Clean),
            Left::Bytes(left) => {
                if self.unread.is_empty() && !self.more() {
                    return Err(End::Cut);
                }
                let piece: Vec<u8> = self.unread.drain(..left.min(self.unread.len())).collect();
                self.left = Left::Bytes(left - piece.len());
                Ok(piece)
            }
            Left::ToTheClose => {
                if self.unread.is_empty() && !self.more() {
                    return Err(End::Clean);
                }
                Ok(std::mem::take(&mut self.unread))
            }
            Left::Chunks => self.chunk(),
        }
    }

    fn chunk(&mut self) -> Result<Vec<u8>, End> {
        let line = loop {
            if let Some(at) = self.unread.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            if !self.more() {
                return Err(End::Cut);
            }
        };
        let size = std::str::from_utf8(&self.unread[..line]).unwrap().split(';').next().unwrap().trim();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("not a chunk's size: {size:?}"));
        let whole = line + 2 + size + 2;
        while self.unread.len() < whole {
            if !self.more() {
                return Err(End::Cut);
            }
        }
        let chunk = self.unread[line + 2..line + 2 + size].to_vec();
        assert_eq!(&self.unread[whole - 2..whole], b"\r\n", "a chunk that does not end where it says");
        self.unread.drain(..whole);
        if size == 0 {
            self.left = Left::Nothing;
            return Err(End::Clean);
        }
        Ok(chunk)
    }

    /// The rest of the body, and how it ended.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        let mut body = Vec::new();
        loop {
            match self.piece() {
                Ok(piece) => body.extend(piece),
                Err(end) => return (body, end),
            }
        }
    }

    /// Reads the body until it holds that text; gives what was read.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        loop {
            match self.piece() {
                Ok(piece) => read.extend(piece),
                Err(end) => panic!("the body ended ({end:?}) before {text:?}: {:?}", String::from_utf8_lossy(&read)),
            }
            if let Some(read) = std::str::from_utf8(&read).ok().filter(|read| read.contains(text)) {
                return read.to_owned();
            }
        }
    }

    /// Whether the peer closes, in time, without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && !self.more() && self.unread.is_empty()
    }

    /// Reads more; false at the end of the stream or at its reset. A peer that is silent for too long fails the test.
    fn more(&mut self) -> bool {
        let mut bytes = vec![0; 64 * 1024];
        match self.wire.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.unread.extend(&bytes[..count]);
                true
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                panic!("nothing came for {PATIENCE:?}; read so far: {:?}", String::from_utf8_lossy(&self.unread))
            }
            Err(_) => false,
        }
    }
}
