//! One JSON line a request, on stdout, written by a thread of its own so that a slow reader of the log slows no request.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use serde::Serialize;
use uuid::Uuid;

/// Lines that may wait for the writer; past it they are dropped and counted, for a request matters more than its line.
const LINES_WAITING_MAX: usize = 16_384;

/// What the log says of one request.
#[derive(Debug, Serialize)]
pub struct AccessLine<'a> {
    /// When the request arrived, RFC 3339 UTC.
    pub time: String,
    /// The answer's `x-request-id`.
    pub request_id: Uuid,
    /// Absent where authentication failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<&'a str>,
    /// Absent where authentication failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_id: Option<&'a str>,
    /// The public id, where the request named one that is sold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    /// Who answered or was asked last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<&'a str>,
    /// What the client got; 499 where it left before an answer.
    pub status: u16,
    /// `error.code`, where the relay refused or the upstream failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// Prompt tokens that no cache served or kept.
    pub input_tokens: u64,
    /// Prompt tokens that a cache served.
    pub cache_read_tokens: u64,
    /// Prompt tokens that a cache took in.
    pub cache_write_tokens: u64,
    /// All tokens of the answer.
    pub output_tokens: u64,
    /// What the request cost.
    pub cost_nano_usd: i64,
    /// Whether the tokens are the relay's own count.
    pub estimated: bool,
    /// Whether the answer ended before its end.
    pub interrupted: bool,
    /// From arrival to the answer's first byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<i64>,
    /// From arrival to the end.
    pub total_ms: i64,
}

/// The way to the writer. Cloning it is cheap.
#[derive(Clone)]
pub struct AccessLog {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    /// Nothing that comes after it is written.
    End,
}

/// The writer's thread.
pub struct Writer {
    lines: SyncSender<Message>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Ends the log when everything that was handed over so far is written.
    pub fn end(self) {
        if self.lines.send(Message::End).is_ok() {
            let _ = self.thread.join();
        }
    }
}

impl AccessLog {
    /// Starts the writer on stdout.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start() -> io::Result<(Self, Writer)> {
        let (lines, waiting) = sync_channel(LINES_WAITING_MAX);
        let thread = std::thread::Builder::new().name("access log".into()).spawn(move || write_all(&waiting))?;
        Ok((Self { lines: lines.clone(), dropped: Arc::default() }, Writer { lines, thread }))
    }

    /// Hands a line to the writer; never waits.
    pub fn write(&self, line: &AccessLine<'_>) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        if self.lines.try_send(Message::Line(text)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines found no place.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes what comes, and flushes whenever nothing more waits. A stdout that is gone loses lines, not requests.
fn write_all(waiting: &Receiver<Message>) {
    let mut out = BufWriter::new(io::stdout());
    let mut next = waiting.recv().ok();
    while let Some(Message::Line(line)) = next {
        let _ = out.write_all(&line);
        next = match waiting.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => {
                let _ = out.flush();
                waiting.recv().ok()
            }
        };
    }
    let _ = out.flush();
}
