//! Bad weather: a hundred clients, two providers, and one of them fails in every way there is.
//!
//! `TOLLGATE_CHAOS_SECONDS` says for how long, in all: 6 unless told otherwise, 60 in `tests/run`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::setup::{MODEL, PROVIDER_MODEL};
use support::upstream::word;
use support::{Answer, Received, Relay, Response, Setup, Upstream, until};

const CLIENTS: usize = 100;
const SECONDS: u64 = 6;

/// The ways in which a provider fails before it has said anything.
const FAILURES: [Failure; 8] = [
    Failure::Refuse,
    Failure::Stall,
    Failure::Reset,
    Failure::Status(429),
    Failure::Status(500),
    Failure::Status(503),
    Failure::Status(529),
    Failure::CutBeforeAnEvent,
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Failure {
    /// Nobody listens.
    Refuse,
    /// It takes the request and says nothing.
    Stall,
    Reset,
    Status(u16),
    /// The head of a stream, and then the end.
    CutBeforeAnEvent,
}

impl Failure {
    fn happen(self, answer: &mut Answer) {
        match self {
            // One that listens cannot refuse; it closes at once.
            Self::Refuse => answer.cut(),
            Self::Stall => drop(answer.sees_it_leave()),
            Self::Reset => answer.reset(),
            Self::Status(status) => answer.json(status, &json!({"error": {"message": "not now"}})),
            Self::CutBeforeAnEvent => {
                answer.begin_events();
                answer.cut();
            }
        }
    }
}

/// A part of the time that there is for all.
fn share(parts: u64, of: u64) -> Duration {
    let seconds = std::env::var("TOLLGATE_CHAOS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_millis(seconds.unwrap_or(SECONDS) * 1_000 * parts / of)
}

/// A relay whose model is with both of them alike.
fn relay(providers: &[(&str, &str)], lines: &str) -> Relay {
    let mut setup = Setup::bare();
    for (name, base_url) in providers {
        setup = setup.provider_with(name, base_url, lines);
    }
    let targets: Vec<(&str, u32)> = providers.iter().map(|(name, _)| (*name, 0)).collect();
    let model = support::setup::model(MODEL, &targets).replace("owned_by", "retry_timeouts = true\nowned_by");
    setup.model("unused", &[(providers[0].0, 0)]).table(&model).limits("connections_per_ip_max = 10_000").start()
}

fn body(stream: bool) -> Value {
    json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Say hello"}]})
}

/// A hundred clients ask for so long, one request after the other, every other one streamed.
fn ask_for(relay: &Relay, time: Duration) -> Vec<Response> {
    let end = Instant::now() + time;
    let client = |number: usize| {
        let mut answers = Vec::new();
        while Instant::now() < end {
            answers.push(relay.chat(&body((number + answers.len()).is_multiple_of(2))));
        }
        answers
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

/// What a client was told.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
enum Told {
    All,
    /// That the answer broke off.
    Broken,
    /// A refusal, before anything.
    Nothing,
}

#[track_caller]
fn told(answer: &Response) -> Told {
    let text = answer.text();
    if answer.status != 200 {
        let error = &answer.json()["error"];
        assert!(error["code"].is_string() && error["message"].is_string(), "{text}");
        return Told::Nothing;
    }
    if answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
        assert!(text.contains("Hello there"), "{text}");
        return Told::All;
    }
    let events = answer.events();
    let last = events.last().expect("a stream of nothing");
    if last == "[DONE]" {
        assert!(text.contains("Hello") && text.contains(" there") && text.contains("\"stop\""), "{text}");
        return Told::All;
    }
    let last: Value = serde_json::from_str(last).unwrap();
    assert!(last["error"]["code"].is_string(), "a quiet end: {text}");
    assert!(!text.contains("[DONE]") && !text.contains("\"stop\""), "{text}");
    Told::Broken
}

/// Each request has one row, those that brought something a price, and the books agree.
#[track_caller]
fn assert_settled(relay: &Relay, answers: &[Response]) {
    let asked: HashSet<String> = answers.iter().map(Response::request_id).collect();
    assert_eq!(asked.len(), answers.len(), "ids are unique");
    let brought: HashSet<String> =
        answers.iter().filter(|answer| told(answer) != Told::Nothing).map(Response::request_id).collect();
    let rows = until("every bill", || {
        let rows = relay.usage();
        let here = rows.iter().filter(|row| brought.contains(row["request_id"].as_str().unwrap())).count();
        (here >= brought.len()).then_some(rows)
    });
    let mut seen = HashSet::new();
    for row in &rows {
        let id = row["request_id"].as_str().unwrap();
        assert!(seen.insert(id.to_owned()) && asked.contains(id), "billed twice, or never asked: {row}");
        assert_eq!(row["cost_nano_usd"].as_u64().unwrap() > 0, brought.contains(id), "{row}");
    }
    assert!(relay.metric("tollgate_holds_active", &[]) < 0.5, "a hold is left");
    let audit = relay.cli(&["audit"]);
    assert!(audit.status.success(), "{}", audit.stdout);
}

/// A provider that fails whenever `when` says so of its n-th answer since the storm began.
fn stormy(
    storm: &Arc<AtomicBool>,
    when: impl Fn(usize) -> Option<Failure> + Send + Sync + 'static,
) -> impl Fn(&Received, &mut Answer) + Send + Sync + 'static {
    let (storm, count) = (Arc::clone(storm), AtomicUsize::new(0));
    move |request, answer| {
        let failure = if storm.load(Ordering::SeqCst) { when(count.fetch_add(1, Ordering::SeqCst)) } else { None };
        match failure {
            Some(failure) => failure.happen(answer),
            None => answer.politely(request),
        }
    }
}

#[test]
fn while_one_provider_fails_as_a_whole_every_request_succeeds() {
    for failure in FAILURES {
        let storm = Arc::new(AtomicBool::new(false));
        let good = Upstream::polite();
        let bad = Upstream::start(stormy(&storm, move |_| Some(failure)));
        let relay = relay(&[("good", &good.base_url()), ("bad", &bad.base_url())], "first_byte_seconds_max = 1");
        // Quiet requests pay for the second tries of the storm.
        let mut answers: Vec<Response> = (0..300).map(|_| relay.chat(&body(false))).collect();
        storm.store(true, Ordering::SeqCst);
        let before = bad.count();
        let bad = (failure != Failure::Refuse).then_some(bad);
        answers.extend(ask_for(&relay, share(4, 60)));
        for answer in &answers {
            assert_eq!(told(answer), Told::All, "{failure:?}: {} {}", answer.status, answer.text());
        }
        let failed: f64 = if let Some(bad) = bad {
            (bad.count() - before) as f64
        } else {
            relay.metric("tollgate_upstream_attempts_total", &[("provider", "bad"), ("outcome", "unconnected")])
        };
        assert!(failed >= 5.0, "{failure:?}: the storm was a breeze: {failed}");
        assert!(failed < 5.0 + CLIENTS as f64, "{failure:?}: nobody stopped asking it: {failed}");
        println!("{failure:?}: {} requests, {failed} of them at the one that failed", answers.len());
        assert_settled(&relay, &answers);
    }
}

#[test]
fn while_one_provider_fails_now_and_then_every_request_succeeds() {
    let storm = Arc::new(AtomicBool::new(true));
    let good = Upstream::polite();
    // One of seven answers is 14 of a hundred. Refusing is for who does not listen.
    let failures = &FAILURES[1..];
    let bad = Upstream::start(stormy(&storm, |turn| (turn % 7 == 6).then(|| failures[turn / 7 % failures.len()])));
    let relay = relay(&[("good", &good.base_url()), ("bad", &bad.base_url())], "first_byte_seconds_max = 1");
    let answers = ask_for(&relay, share(15, 60));
    for answer in &answers {
        assert_eq!(told(answer), Told::All, "{} {}", answer.status, answer.text());
    }
    println!("{} requests, {} of them at the one that failed", answers.len(), bad.count());
    assert!(bad.count() > 70, "the storm was a breeze: {}", bad.count());
    assert_settled(&relay, &answers);
}

#[test]
fn whoever_is_cut_off_is_told_and_pays_for_what_came() {
    let count = AtomicUsize::new(0);
    let cut = move |request: &Received, answer: &mut Answer| {
        let turn = count.fetch_add(1, Ordering::SeqCst);
        if request.json()["stream"] != true || turn.is_multiple_of(3) {
            return answer.politely(request);
        }
        answer.begin_events();
        answer.event(&word(&json!(PROVIDER_MODEL), "Hello"));
        match turn % 4 {
            0 => answer.cut(),
            1 => answer.reset(),
            // An end without a finish.
            2 => answer.end(),
            // In the middle of an event.
            _ => {
                answer.chunk(b"data: {\"id\":\"chatcmpl-1\",\"choi");
                answer.cut();
            }
        }
    };
    let (one, other) = (Upstream::start(cut), Upstream::polite());
    let relay = relay(&[("one", &one.base_url()), ("other", &other.base_url())], "breaker = false");
    let answers = ask_for(&relay, share(8, 60));
    let count = |what| answers.iter().filter(|answer| told(answer) == what).count();
    println!("{} requests: {} whole, {} broken off", answers.len(), count(Told::All), count(Told::Broken));
    assert_eq!(count(Told::Nothing), 0, "none failed before its first byte");
    assert!(count(Told::Broken) > 20 && count(Told::All) > 20);
    assert_settled(&relay, &answers);
}

#[test]
fn where_every_provider_fails_they_are_asked_hardly_more_often_than_the_relay() {
    let failing = |_: &Received, answer: &mut Answer| answer.json(503, &json!({"error": {"message": "not now"}}));
    for lines in ["breaker = false", ""] {
        let (one, other) = (Upstream::start(failing), Upstream::start(failing));
        let relay = relay(&[("one", &one.base_url()), ("other", &other.base_url())], lines);
        let began = Instant::now();
        let answers = ask_for(&relay, share(5, 60));
        let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
        for answer in &answers {
            answer.assert_error(502, "upstream_error", "upstream_error");
        }
        let tries = one.count() + other.count();
        println!("{} requests, {tries} tries in {seconds} s ({lines})", answers.len());
        // Three at the beginning, as after any quiet second.
        assert!(tries <= answers.len() * 12 / 10 + 3 * seconds + 3, "{tries} tries of {} requests", answers.len());
        assert_settled(&relay, &answers);
    }
}
