//! Requests that two readers may read in two ways, before the relay and, side by side, before nginx: of what is one request, the
//! provider gets one at most. The payloads are data, in `tests/hostile/`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;
use support::frames::{END_HEADERS, END_STREAM, Frames, block, kind};
use support::nginx::Nginx;
use support::setup::MODEL;
use support::{PATIENCE, Relay, Request, Setup, Upstream};

/// A payload: what the relay must do, its name, and its lines.
struct Payload {
    expected: &'static str,
    name: &'static str,
    lines: Vec<&'static str>,
}

fn payloads(text: &'static str) -> Vec<Payload> {
    let mut payloads: Vec<Payload> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(title) = line.strip_prefix("## ") {
            let (expected, name) = title.split_once(' ').unwrap();
            payloads.push(Payload { expected, name, lines: Vec::new() });
        } else if let Some(payload) = payloads.last_mut() {
            payload.lines.push(line);
        } else {
            assert!(line.starts_with('#'), "{line}");
        }
    }
    payloads
}

/// What stands for itself in a payload, and what does not.
struct Words {
    key: String,
    body: String,
    inner: String,
}

impl Words {
    /// `mark` is found in the body of each request that a payload may be taken for.
    fn new(key: &str, mark: &str) -> Self {
        let chat = |user: String| json!({"model": MODEL, "user": user, "messages": [{"role": "user", "content": "x"}]});
        let inner = Request::chat(&chat(format!("{mark} inner"))).key(key).bytes();
        let body = chat(format!("{mark} outer")).to_string();
        Self { key: key.to_owned(), body, inner: String::from_utf8(inner).unwrap() }
    }

    fn fill(&self, text: &str) -> Vec<u8> {
        let key = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", self.key);
        let text = unescape(text);
        let words = [
            ("{key}", key.clone()),
            ("{keylf}", key.replace("\r\n", "\n")),
            ("{bearer}", format!("Bearer {}", self.key)),
            ("{len}", self.body.len().to_string()),
            ("{hex}", format!("{:x}", self.body.len())),
            ("{innerlen}", self.inner.len().to_string()),
            ("{inner}", self.inner.clone()),
            ("{body}", self.body.clone()),
        ];
        words.iter().fold(text, |text, (word, value)| text.replace(word, value)).into_bytes()
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        out.push(match characters.next().unwrap() {
            'r' => '\r',
            'n' => '\n',
            't' => '\t',
            '0' => '\0',
            'x' => {
                let digits: String = characters.by_ref().take(2).collect();
                char::from(u8::from_str_radix(&digits, 16).unwrap())
            }
            other => panic!("\\{other} is not known"),
        });
    }
    out
}

/// Writes it and reads until the connection is closed, which both servers do soon after the last answer.
fn converse(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut piece = [0; 64 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend(&piece[..count]),
            Err(error) => {
                let is_late = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                assert!(!is_late, "still open after {PATIENCE:?}");
                break;
            }
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The statuses of all answers, interim ones left out.
fn statuses(answer: &str) -> Vec<String> {
    let found = answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3));
    found.filter(|status| !status.starts_with('1')).map(str::to_owned).collect()
}

/// What became of a payload at one server.
#[derive(Clone)]
struct Outcome {
    answers: Vec<String>,
    text: String,
    passed: usize,
}

impl Outcome {
    fn first(&self) -> &str {
        self.answers.first().map_or("none", String::as_str)
    }

    fn is_as(&self, expected: &str) -> bool {
        let is_4xx = self.first().starts_with('4');
        match expected {
            "any" => true,
            "4xx" => is_4xx,
            "refused" => is_4xx || self.first().starts_with("reset") || self.first().starts_with("closed"),
            other => self.first() == other,
        }
    }

    fn shown(&self) -> String {
        let answers = if self.answers.is_empty() { "none".to_owned() } else { self.answers.join("+") };
        format!("{answers}, {} passed", self.passed)
    }
}

/// A request over HTTP/2, by its fields.
fn ask_h2(to: SocketAddr, lines: &[&str], words: &Words) -> String {
    let text = |text: &str| String::from_utf8(words.fill(text)).unwrap();
    let pairs: Vec<(String, String)> = lines
        .iter()
        .filter_map(|line| line.split_once(" => "))
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    let fields: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let data: Vec<Vec<u8>> =
        lines.iter().filter_map(|line| line.strip_prefix("data")).map(|line| words.fill(line.trim_start())).collect();
    let mut client = Frames::open(to);
    client.send(kind::HEADERS, END_HEADERS, 1, &block(&fields));
    for (place, piece) in data.iter().enumerate() {
        let end = if place + 1 == data.len() { END_STREAM } else { 0 };
        client.send(kind::DATA, end, 1, piece);
    }
    // What is passed on is passed on before the answer, and a stream has one.
    loop {
        let Some(frame) = client.next() else { break "closed".to_owned() };
        match frame.kind {
            kind::HEADERS => break frame.status().to_string(),
            kind::RST_STREAM => break format!("reset {}", frame.code()),
            kind::GOAWAY if frame.code() != 0 => break format!("closed {}", frame.code()),
            _ => {}
        }
    }
}

struct Stage {
    relay: Relay,
    before_relay: Upstream,
    nginx: Option<Nginx>,
    before_nginx: Upstream,
}

impl Stage {
    fn new() -> Self {
        let before_relay = Upstream::polite();
        let limits = "header_seconds_max = 1\nbody_idle_seconds_max = 1\nkeep_alive_seconds_max = 1";
        let relay = Setup::new(&before_relay).limits(limits).listen("h2c = true").start();
        let before_nginx = Upstream::start(|_, answer| answer.json(200, &json!({"from": "the provider"})));
        let nginx = Nginx::start(before_nginx.address);
        if nginx.is_none() {
            println!("nginx is not installed: the relay is tested alone");
        }
        Self { relay, before_relay, nginx, before_nginx }
    }

    /// Sends every payload to both at the same time.
    fn run(
        &self,
        payloads: &[Payload],
        ask: impl Fn(&Payload, &Words, &str, SocketAddr) -> (Vec<String>, String) + Sync,
        at: impl Fn(&Nginx) -> SocketAddr,
    ) -> Vec<(Outcome, Option<Outcome>)> {
        let passed = |upstream: &Upstream, mark: &str| {
            let is_of = |body: &[u8]| String::from_utf8_lossy(body).matches(&format!("\"{mark} ")).count() > 0;
            upstream.received().iter().filter(|one| is_of(&one.body)).count()
        };
        let ask = &ask;
        let asked = |place: usize, payload: &Payload, to: SocketAddr, server: &'static str, upstream: &Upstream| {
            let mark = format!("payload {place} at {server}");
            let words = Words::new(&self.relay.key, &mark);
            let (answers, text) = ask(payload, &words, server, to);
            Outcome { answers, text, passed: passed(upstream, &mark) }
        };
        let asked = &asked;
        let nginx = self.nginx.as_ref().map(at);
        std::thread::scope(|scope| {
            let running: Vec<_> = payloads
                .iter()
                .enumerate()
                .map(|(place, payload)| {
                    let relay =
                        scope.spawn(move || asked(place, payload, self.relay.http, "relay", &self.before_relay));
                    let nginx =
                        nginx.map(|to| scope.spawn(move || asked(place, payload, to, "nginx", &self.before_nginx)));
                    (relay, nginx)
                })
                .collect();
            let ended = |(relay, nginx): (std::thread::ScopedJoinHandle<'_, Outcome>, Option<_>)| {
                let nginx: Option<std::thread::ScopedJoinHandle<'_, Outcome>> = nginx;
                (relay.join().unwrap(), nginx.map(|nginx| nginx.join().unwrap()))
            };
            running.into_iter().map(ended).collect()
        })
    }
}

/// How many requests a payload is.
fn requests_in(payload: &Payload) -> usize {
    if payload.name.starts_with("two requests") { 2 } else { 1 }
}

/// Prints where the two differ, and says what is wrong.
fn judge(payloads: &[Payload], outcomes: &[(Outcome, Option<Outcome>)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (payload, (relay, nginx)) in payloads.iter().zip(outcomes) {
        let (name, most) = (payload.name, requests_in(payload));
        if let Some(nginx) = nginx
            && (relay.first(), relay.passed) != (nginx.first(), nginx.passed)
        {
            println!("differ: {name}: relay {}; nginx {}", relay.shown(), nginx.shown());
        }
        if relay.passed > most || relay.answers.len() > most {
            wrong.push(format!("{name}: {}: more than {most}", relay.shown()));
        }
        if !relay.is_as(payload.expected) {
            wrong.push(format!("{name}: {} instead of {}", relay.shown(), payload.expected));
        }
        let should_pass = if payload.expected == "200" { most } else { 0 };
        if payload.expected != "any" && relay.passed != should_pass {
            wrong.push(format!("{name}: {} instead of {should_pass} passed", relay.shown()));
        }
        let is_refusal = relay.first().starts_with('4') && !relay.text.is_empty();
        if is_refusal && !relay.text.contains(r#""type":"invalid_request_error""#) {
            wrong.push(format!("{name}: refused without OpenAI's error object: {}", relay.text));
        }
    }
    wrong
}

#[test]
fn over_http1_a_request_is_one_request() {
    let stage = Stage::new();
    let payloads = payloads(include_str!("hostile/http1.txt"));
    assert!(payloads.len() >= 40, "{}", payloads.len());
    let ask = |payload: &Payload, words: &Words, _: &str, to: SocketAddr| {
        let answer = converse(to, &words.fill(&payload.lines.concat()));
        (statuses(&answer), answer)
    };
    let outcomes = stage.run(&payloads, ask, |nginx| nginx.http1);
    let wrong = judge(&payloads, &outcomes);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn over_http2_a_request_is_one_request() {
    let stage = Stage::new();
    let payloads = payloads(include_str!("hostile/http2.txt"));
    assert!(payloads.len() >= 20, "{}", payloads.len());
    let ask = |payload: &Payload, words: &Words, _: &str, to: SocketAddr| {
        (vec![ask_h2(to, &payload.lines, words)], String::new())
    };
    let outcomes = stage.run(&payloads, ask, |nginx| nginx.http2);
    let wrong = judge(&payloads, &outcomes);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn cut_anywhere_a_refused_request_is_refused() {
    let stage = Stage::new();
    let words = Words::new(&stage.relay.key, "cut");
    let line = r"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{key}Content-Length: 0\r\n\n{inner}";
    let bytes = words.fill(line);
    let end = bytes.windows(3).position(|window| window == b"\n\r\n" || window == b"\r\n\n").unwrap() + 3;
    std::thread::scope(|scope| {
        for cut in (1..end).step_by(7).chain(end - 4..end) {
            let (relay, bytes) = (&stage.relay, &bytes);
            scope.spawn(move || {
                let mut stream = TcpStream::connect(relay.http).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                stream.write_all(&bytes[..cut]).unwrap();
                // Another request's whole way lies between the two pieces.
                assert_eq!(Request::get("/v1/models").key(&relay.key).send(relay.http).status, 200);
                stream.write_all(&bytes[cut..]).unwrap();
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer);
                assert_eq!(statuses(&answer), ["400"], "cut at {cut}");
            });
        }
    });
    assert_eq!(stage.before_relay.count(), 0);
}
