//! The provider's place: a raw HTTP/1.1 server that costs as little as it can, so that the core it shares with the
//! load belongs to the load.
//!
//! The answer is chosen by the request's `model` (its last path segment, so that a relay may rewrite `bench/small` to
//! `small`): `small` is a JSON answer of about 500 bytes, `stream` 100 chunks without delay, `silent` a stream that
//! opens and then says nothing, `paced` a stream whose chunks are 20 ms apart and carry the time of their writing.
//! `flaky` is `small` that fails every seventh time, and `cut` a stream that breaks off in the middle.
//!
//! Absent on purpose: chunked requests (a relay sends a length), pipelining, TLS, any check of the key.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Failure;

/// Models of a relay in front of this: the answers that each may be given.
pub const MODELS: &[&[&str]] = &[&["small"], &["stream"], &["silent"], &["paced"], &["flaky", "small"], &["cut"]];
/// One of so many `flaky` answers is none.
const FLAKY: u64 = 7;

/// Chunks of one `stream` answer, each its own write: the role, 97 words, the finish, the usage with `[DONE]`.
pub const CHUNKS: u64 = 100;
/// Chunks of one `paced` answer.
pub const PACED_CHUNKS: u32 = 50;
/// What stands before the time of writing in a `paced` chunk: nanoseconds since the epoch, decimal.
pub const STAMP_MARK: &[u8] = b"\"content\":\"@";
/// How every whole stream ends.
pub const STREAM_END: &[u8] = b"data: [DONE]\n\n";

const PACE: Duration = Duration::from_millis(20);
const READ_BYTES: usize = 256 * 1024;
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The model's name stands in the first bytes of every body that the load sends.
const MODEL_WITHIN_BYTES: usize = 64;

const USAGE: &str = r#""usage":{"prompt_tokens":42,"completion_tokens":97,"total_tokens":139,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}}"#;
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 31\r\n\r\n\
    {\"error\":{\"message\":\"not now\"}}";
/// The headers that a provider adds to every answer.
const PROVIDER_HEADERS: &str = "openai-version: 2020-10-01\r\nopenai-processing-ms: 212\r\n\
    x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\nx-request-id: req_5b1f7c0e\r\n";

/// The answers, written once.
struct Answers {
    flaky: AtomicU64,
    small: Vec<u8>,
    stream_head: Vec<u8>,
    chunks: Vec<Vec<u8>>,
}

impl Answers {
    fn new() -> Self {
        let body = format!(
            r#"{{"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion","created":1764000000,"model":"small","choices":[{{"index":0,"message":{{"role":"assistant","content":"A relay passes a message on.","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],{USAGE},"service_tier":"default"}}"#
        );
        let length = body.len();
        let small = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{PROVIDER_HEADERS}\r\n{body}"
        );
        let stream_head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n{PROVIDER_HEADERS}\r\n"
        );
        let mut chunks = vec![framed(&event(r#"{"role":"assistant","content":""}"#, "null"))];
        chunks.extend((0..CHUNKS - 3).map(|word| framed(&event(&format!(r#"{{"content":" word{word}"}}"#), "null"))));
        chunks.push(framed(&event("{}", r#""stop""#)));
        chunks.push(last_chunk());
        Self { flaky: AtomicU64::new(0), small: small.into_bytes(), stream_head: stream_head.into_bytes(), chunks }
    }
}

/// One event of a stream, as OpenAI shapes it: about 250 bytes.
fn event(delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\"chat.completion.chunk\",\
         \"created\":1764000000,\"model\":\"stream\",\"service_tier\":\"default\",\"system_fingerprint\":\
         \"fp_44709d6fcb\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n"
    )
}

/// The usage chunk, `[DONE]` and the end of the body in one write, as servers flush them.
fn last_chunk() -> Vec<u8> {
    let usage = format!(
        "data: {{\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\"chat.completion.chunk\",\
         \"created\":1764000000,\"model\":\"stream\",\"choices\":[],{USAGE}}}\n\n"
    );
    let mut bytes = framed(&usage);
    bytes.extend(framed(&String::from_utf8_lossy(STREAM_END)));
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// One HTTP chunk.
fn framed(event: &str) -> Vec<u8> {
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

/// Serves until its process is ended; the first line on stdout is the port.
pub fn run() -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{}", listener.local_addr()?.port())?;
        stdout.flush()?;
        let answers = Arc::new(Answers::new());
        loop {
            let (stream, _) = listener.accept().await?;
            let answers = Arc::clone(&answers);
            // A connection that breaks is the gateway's or the load's affair: they notice and say so.
            tokio::spawn(async move { serve(stream, &answers).await.ok() });
        }
    })
}

async fn serve(mut stream: TcpStream, answers: &Answers) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(8 * 1024);
    while let Some(model) = read_request(&mut stream, &mut buffer).await? {
        match model.as_slice() {
            b"small" => stream.write_all(&answers.small).await?,
            b"stream" => {
                stream.write_all(&answers.stream_head).await?;
                for chunk in &answers.chunks {
                    stream.write_all(chunk).await?;
                    // Streams take turns, so that their chunks interleave as those of many users would.
                    tokio::task::yield_now().await;
                }
            }
            b"flaky" => {
                let turn = answers.flaky.fetch_add(1, Ordering::Relaxed);
                match (turn % FLAKY, turn / FLAKY % 3) {
                    (0, 0) => stream.write_all(BUSY).await?,
                    // Gone without a word, and gone in the middle of one.
                    (0, 1) => return Ok(()),
                    (0, _) => return Ok(stream.write_all(&answers.small[..20]).await?),
                    _ => stream.write_all(&answers.small).await?,
                }
            }
            b"cut" => {
                stream.write_all(&answers.stream_head).await?;
                for chunk in answers.chunks.iter().take(answers.chunks.len() / 2) {
                    stream.write_all(chunk).await?;
                }
                return Ok(());
            }
            b"paced" => write_paced(&mut stream, answers).await?,
            b"silent" => {
                stream.write_all(&answers.stream_head).await?;
                for chunk in answers.chunks.iter().take(2) {
                    stream.write_all(chunk).await?;
                }
                // The other side leaving is all that can still come, and the only end of this stream.
                return Ok(stream.readable().await?);
            }
            _ => return Err("a request for an unknown model".into()),
        }
    }
    Ok(())
}

async fn write_paced(stream: &mut TcpStream, answers: &Answers) -> Result<(), Failure> {
    stream.write_all(&answers.stream_head).await?;
    let mut ticks = tokio::time::interval(PACE);
    let mut delta = String::new();
    for _ in 0..PACED_CHUNKS {
        ticks.tick().await;
        delta.clear();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        write!(delta, "{{\"content\":\"@{now} \"}}")?;
        stream.write_all(&framed(&event(&delta, "null"))).await?;
    }
    for chunk in answers.chunks.iter().skip(answers.chunks.len() - 2) {
        stream.write_all(chunk).await?;
    }
    Ok(())
}

/// Reads one request whole and returns its model's last path segment; `None` when the other side is done.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Failure> {
    buffer.clear();
    let head_end = loop {
        if let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break end + 4;
        }
        if buffer.len() > HEAD_BYTES_MAX {
            return Err("a request head without end".into());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let length = content_length(&buffer[..head_end]).ok_or("a request without content-length")?;
    while buffer.len() < head_end + length.min(MODEL_WITHIN_BYTES) {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let model = model_of(&buffer[head_end..]).ok_or("a request without a model in its first bytes")?;
    discard(stream, buffer, head_end + length).await?;
    Ok(Some(model))
}

/// Reads up to `total` bytes of this request and keeps none of them.
async fn discard(stream: &mut TcpStream, buffer: &mut Vec<u8>, total: usize) -> Result<(), Failure> {
    let mut missing = total.checked_sub(buffer.len()).ok_or("bytes after the body")?;
    while missing > 0 {
        buffer.clear();
        buffer.reserve(missing.min(READ_BYTES));
        let read = stream.read_buf(buffer).await?;
        if read == 0 {
            return Err("a body cut short".into());
        }
        missing = missing.checked_sub(read).ok_or("bytes after the body")?;
    }
    Ok(())
}

fn content_length(head: &[u8]) -> Option<usize> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        let (name, value) = (line.get(..colon)?, line.get(colon + 1..)?);
        if !name.eq_ignore_ascii_case(b"content-length") {
            return None;
        }
        std::str::from_utf8(value).ok()?.trim().parse().ok()
    })
}

fn model_of(body: &[u8]) -> Option<Vec<u8>> {
    let mark = b"\"model\":\"";
    let from = memchr::memmem::find(body, mark)? + mark.len();
    let name = body.get(from..from + memchr::memchr(b'"', body.get(from..)?)?)?;
    name.rsplit(|byte| *byte == b'/').next().map(<[u8]>::to_vec)
}
