//! One JSON line a request, on stdout, written by a thread of its own so that a slow reader of the log slows no request.
//!
//! Lines gather for a moment and are written together: waking a thread for each would cost as much as the line.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use uuid::Uuid;
use uuid::fmt::Hyphenated;

/// Bytes of lines that may wait for the writer; past it lines are dropped and counted, for a request matters more than its line.
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a line may wait for others.
const GATHER: Duration = Duration::from_millis(10);

/// What a line takes, or more.
const LINE_BYTES_USUAL: usize = 512;

/// What the log says of one request.
#[derive(Debug)]
pub struct AccessLine<'a> {
    /// When the request arrived, RFC 3339 UTC.
    pub time: String,
    /// The answer's `x-request-id`.
    pub request_id: Uuid,
    /// Absent where authentication failed.
    pub key_id: Option<&'a str>,
    /// Absent where authentication failed.
    pub account_id: Option<&'a str>,
    /// The public id, where the request named one that is sold.
    pub model: Option<&'a str>,
    /// Who answered or was asked last.
    pub provider: Option<&'a str>,
    /// What the client got; 499 where it left before an answer.
    pub status: u16,
    /// `error.code`, where the relay refused or the upstream failed.
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
    pub first_token_ms: Option<i64>,
    /// From arrival to the end.
    pub total_ms: i64,
}

impl AccessLine<'_> {
    /// Appends the line, with its end. By hand, because every request pays for it: a fifth of what going by way of serde costs.
    fn write_to(&self, out: &mut Vec<u8>) {
        out.reserve(LINE_BYTES_USUAL);
        let mut object = Object { out };
        object.text("{\"time\":", &self.time);
        object.id(",\"request_id\":", &self.request_id);
        object.optional_text(",\"key_id\":", self.key_id);
        object.optional_text(",\"account_id\":", self.account_id);
        object.optional_text(",\"model\":", self.model);
        object.optional_text(",\"provider\":", self.provider);
        object.number(",\"status\":", self.status);
        object.optional_text(",\"code\":", self.code);
        object.number(",\"input_tokens\":", self.input_tokens);
        object.number(",\"cache_read_tokens\":", self.cache_read_tokens);
        object.number(",\"cache_write_tokens\":", self.cache_write_tokens);
        object.number(",\"output_tokens\":", self.output_tokens);
        object.number(",\"cost_nano_usd\":", self.cost_nano_usd);
        object.boolean(",\"estimated\":", self.estimated);
        object.boolean(",\"interrupted\":", self.interrupted);
        if let Some(first_token_ms) = self.first_token_ms {
            object.number(",\"first_token_ms\":", first_token_ms);
        }
        object.number(",\"total_ms\":", self.total_ms);
        out.extend_from_slice(b"}\n");
    }
}

/// A JSON object that is being written. A member's name comes with what stands around it.
struct Object<'a> {
    out: &'a mut Vec<u8>,
}

impl Object<'_> {
    fn text(&mut self, name: &'static str, text: &str) {
        self.out.extend_from_slice(name.as_bytes());
        let is_plain = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && !matches!(byte, b'"' | b'\\');
        if text.bytes().all(is_plain) {
            self.out.push(b'"');
            self.out.extend_from_slice(text.as_bytes());
            self.out.push(b'"');
            return;
        }
        // A Vec takes everything.
        let _ = serde_json::to_writer(&mut *self.out, text);
    }

    fn optional_text(&mut self, name: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    fn id(&mut self, name: &'static str, id: &Uuid) {
        self.text(name, id.hyphenated().encode_lower(&mut [0; Hyphenated::LENGTH]));
    }

    fn number(&mut self, name: &'static str, number: impl itoa::Integer) {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    fn boolean(&mut self, name: &'static str, value: bool) {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }
}

/// The way to the writer. Cloning it is cheap.
#[derive(Clone)]
pub struct AccessLog {
    page: Arc<Page>,
}

/// What is to be written.
#[derive(Default)]
struct Page {
    lines: Mutex<Lines>,
    bell: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    /// The writer is to be woken for the next line.
    is_asleep: bool,
    /// What is here is to be written at once, and nothing that comes after it.
    is_ending: bool,
}

impl Page {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's thread.
pub struct Writer {
    page: Arc<Page>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Ends the log when everything that was handed over so far is written.
    pub fn end(self) {
        self.page.lines().is_ending = true;
        self.page.bell.notify_one();
        let _ = self.thread.join();
    }
}

impl AccessLog {
    /// Starts the writer on stdout.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start() -> io::Result<(Self, Writer)> {
        let page = Arc::<Page>::default();
        let read = Arc::clone(&page);
        // Not locked for good: others say something there as well.
        let write = move || write_all(&read, &mut io::stdout());
        let thread = std::thread::Builder::new().name("access log".into()).spawn(write)?;
        Ok((Self { page: Arc::clone(&page) }, Writer { page, thread }))
    }

    /// Hands a line to the writer; never waits for it.
    pub fn write(&self, line: &AccessLine<'_>) {
        let mut lines = self.page.lines();
        if lines.is_ending || lines.text.len() > WAITING_BYTES_MAX {
            drop(lines);
            self.page.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        line.write_to(&mut lines.text);
        if std::mem::take(&mut lines.is_asleep) {
            drop(lines);
            self.page.bell.notify_one();
        }
    }

    /// How many lines found no place.
    pub fn dropped(&self) -> u64 {
        self.page.dropped.load(Ordering::Relaxed)
    }
}

/// Writes what comes. A stdout that is gone loses lines, not requests.
fn write_all(page: &Page, out: &mut impl Write) {
    let mut written = Vec::new();
    loop {
        let mut lines = page.lines();
        while lines.text.is_empty() && !lines.is_ending {
            lines.is_asleep = true;
            lines = page.bell.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
        lines.is_asleep = false;
        if !lines.is_ending {
            // Nobody wakes it for a line now, only for the end.
            let gathered = page.bell.wait_timeout_while(lines, GATHER, |lines| !lines.is_ending);
            lines = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut lines.text, &mut written);
        let is_ending = lines.is_ending;
        drop(lines);
        let _ = out.write_all(&written).and_then(|()| out.flush());
        written.clear();
        if is_ending {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line() -> AccessLine<'static> {
        AccessLine {
            time: "2026-01-02T03:04:05Z".into(),
            request_id: Uuid::from_u128(7),
            key_id: Some("key_1"),
            account_id: Some("acct_1"),
            model: Some("a \"quoted\"\nmodel"),
            provider: None,
            status: 200,
            code: None,
            input_tokens: u64::MAX,
            cache_read_tokens: 1,
            cache_write_tokens: 2,
            output_tokens: 3,
            cost_nano_usd: -4,
            estimated: true,
            interrupted: false,
            first_token_ms: None,
            total_ms: 5,
        }
    }

    #[test]
    fn a_line_is_one_json_object() {
        let mut text = Vec::new();
        line().write_to(&mut text);
        assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let read: Value = serde_json::from_slice(&text).unwrap();
        let expected = json!({
            "time": "2026-01-02T03:04:05Z", "request_id": "00000000-0000-0000-0000-000000000007", "key_id": "key_1",
            "account_id": "acct_1", "model": "a \"quoted\"\nmodel", "status": 200, "input_tokens": u64::MAX,
            "cache_read_tokens": 1, "cache_write_tokens": 2, "output_tokens": 3, "cost_nano_usd": -4, "estimated": true,
            "interrupted": false, "total_ms": 5,
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn what_was_handed_over_is_written_before_the_end_and_nothing_after_it() {
        let page = Arc::<Page>::default();
        let log = AccessLog { page: Arc::clone(&page) };
        let (sender, receiver) = std::sync::mpsc::channel();
        let read = Arc::clone(&page);
        let thread = std::thread::spawn(move || {
            let mut out = Vec::new();
            write_all(&read, &mut out);
            sender.send(out).unwrap();
        });
        for _ in 0..1_000 {
            log.write(&line());
        }
        Writer { page, thread }.end();
        log.write(&line());
        let out = receiver.recv().unwrap();
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1_000);
        assert_eq!(log.dropped(), 1);
    }

    #[test]
    fn lines_without_a_reader_are_dropped_and_counted() {
        let log = AccessLog { page: Arc::default() };
        while log.dropped() < 3 {
            log.write(&line());
        }
        let waiting = log.page.lines().text.len();
        assert!((WAITING_BYTES_MAX..WAITING_BYTES_MAX + 1024).contains(&waiting), "{waiting}");
    }
}
