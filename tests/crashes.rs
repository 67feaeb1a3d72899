//! The relay killed at any moment, and clients that leave at any moment: what was seen whole is billed, once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use support::setup::MODEL;
use support::upstream::{finish, usage_chunk, word};
use support::{Answer, Chance, Gate, Received, Relay, Request, Setup, Upstream, until};

/// Words of an answer in the tests of crashes.
const WORDS: usize = 12;

fn streamed(content: &str) -> Value {
    json!({"model": MODEL, "stream": true, "max_tokens": 1000, "messages": [{"role": "user", "content": content}]})
}

/// A stream of words, each in a write of its own, with the usage that was asked for.
fn in_words(request: &Received, answer: &mut Answer) {
    let model = &request.json()["model"];
    answer.begin_events();
    for _ in 0..WORDS {
        answer.event(&word(model, " word"));
    }
    answer.event(&finish(model));
    answer.event(&usage_chunk(model, 9, WORDS as u64));
    answer.event("[DONE]");
    answer.end();
}

/// What a client saw of a request.
struct Seen {
    request_id: String,
    whole: bool,
}

/// Asks for a stream and reads it to its end, or to the relay's.
fn ask(relay: &Relay, piece_came: &(dyn Fn() + Sync)) -> Option<Seen> {
    let mut connection = Request::chat(&streamed("Say it")).key(&relay.key).try_begin(relay.http)?;
    let head = connection.try_head()?;
    assert_eq!(head.status, 200, "{}", head.text());
    let mut text = Vec::new();
    while let Ok(piece) = connection.piece() {
        text.extend(piece);
        piece_came();
    }
    let whole = String::from_utf8_lossy(&text).contains("data: [DONE]\n\n");
    Some(Seen { request_id: head.request_id(), whole })
}

/// Lets `streams` clients ask at once, and kills the relay when that many pieces have reached them.
fn kill_after(relay: &Relay, streams: usize, pieces: usize) -> Vec<Seen> {
    let came = AtomicUsize::new(0);
    let piece_came = || {
        if came.fetch_add(1, Ordering::SeqCst) + 1 == pieces {
            relay.signal("KILL");
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..streams).map(|_| scope.spawn(|| ask(relay, &piece_came))).collect();
        let seen = clients.into_iter().filter_map(|client| client.join().unwrap()).collect();
        if came.load(Ordering::SeqCst) < pieces {
            relay.signal("KILL");
        }
        seen
    })
}

#[test]
fn what_a_client_saw_whole_is_billed_once_whatever_kills_the_relay() {
    const KILLS: usize = 50;
    const STREAMS: usize = 4;
    let upstream = Upstream::start(in_words);
    let relay = Setup::new(&upstream).start();
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut chance = Chance(seed);
    let mut seen = Vec::new();
    for _ in 0..KILLS {
        // Somewhere among all the pieces of all streams, the last ones and what follows them included.
        seen.extend(kill_after(&relay, STREAMS, 1 + chance.below(STREAMS * (WORDS + 3))));
        relay.restart();
    }
    let last = ask(&relay, &|| {}).unwrap();
    relay.usage_of(&last.request_id);
    seen.push(last);

    let mut bills: HashMap<String, Vec<Value>> = HashMap::new();
    for row in relay.usage() {
        bills.entry(row["request_id"].as_str().unwrap().to_owned()).or_default().push(row);
    }
    assert!(bills.values().all(|rows| rows.len() == 1), "a request is billed twice");
    let whole = seen.iter().filter(|seen| seen.whole).count();
    assert!(whole > KILLS / 2, "hardly any stream was whole: {whole}");
    for seen in seen.iter().filter(|seen| seen.whole) {
        let bill = bills.get(&seen.request_id).unwrap_or_else(|| panic!("seen whole, not billed: {}", seen.request_id));
        assert_eq!(bill[0]["output_tokens"], WORDS, "{bill:?}");
        assert_eq!((&bill[0]["estimated"], &bill[0]["interrupted"]), (&json!(false), &json!(false)), "{bill:?}");
    }
    let audit = relay.cli(&["audit"]);
    assert!(audit.status.success(), "{}{}", audit.stdout, audit.stderr);
    let spent: i64 = bills.values().map(|rows| rows[0]["cost_nano_usd"].as_i64().unwrap()).sum();
    assert_eq!(relay.balance(&relay.account), 10_000_000_000 - spent);
}

#[test]
fn a_document_seen_whole_is_billed_though_the_relay_dies_that_moment() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    for _ in 0..10 {
        let answer = relay.chat(&json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}));
        relay.signal("KILL");
        assert_eq!(answer.status, 200);
        relay.restart();
        assert_eq!(relay.usage_of(&answer.request_id())["output_tokens"], 2);
    }
    assert_eq!(relay.usage().len(), 10);
}

#[test]
fn whoever_leaves_after_k_words_pays_for_k_words_once() {
    const CLIENTS: usize = 100;
    const AT_ONCE: usize = 10;
    let left = std::sync::Arc::new(AtomicUsize::new(0));
    let seen = std::sync::Arc::clone(&left);
    let upstream = Upstream::start(move |request, answer| {
        let asked = request.json();
        answer.begin_events();
        for _ in 0..asked["seed"].as_u64().unwrap() {
            answer.event(&word(&asked["model"], " word"));
        }
        seen.fetch_add(usize::from(answer.sees_it_leave()), Ordering::SeqCst);
    });
    let relay = Setup::new(&upstream).start();
    let mut chance = Chance(u64::from(std::process::id()));
    let words: Vec<usize> = (0..CLIENTS).map(|_| 1 + chance.below(60)).collect();
    let leave = |&words: &usize| {
        let mut body = streamed("Say it");
        body["seed"] = json!(words);
        let mut connection = Request::chat(&body).key(&relay.key).begin(relay.http);
        let head = connection.head();
        let mut text = String::new();
        while text.matches(" word").count() < words {
            text.push_str(&String::from_utf8(connection.piece().unwrap()).unwrap());
        }
        (head.request_id(), words)
    };
    let asked: Vec<(String, usize)> = words
        .chunks(AT_ONCE)
        .flat_map(|some| {
            thread::scope(|scope| {
                let clients: Vec<_> = some.iter().map(|words| scope.spawn(|| leave(words))).collect();
                clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
            })
        })
        .collect();
    until("every upstream to be left", || (left.load(Ordering::SeqCst) == CLIENTS).then_some(()));
    let rows = until("every bill", || Some(relay.usage()).filter(|rows| rows.len() >= CLIENTS));
    assert_eq!(rows.len(), CLIENTS);
    for (request_id, words) in asked {
        let bills: Vec<_> = rows.iter().filter(|row| row["request_id"] == *request_id).collect();
        assert_eq!(bills.len(), 1);
        let output = bills[0]["output_tokens"].as_u64().unwrap() as usize;
        // " word" is one token, and so is each further one.
        assert!(output.abs_diff(words) <= 1, "{words} words: {}", bills[0]);
        assert_eq!(bills[0]["interrupted"], true);
    }
}

#[test]
fn an_answer_without_its_client_is_read_on_for_as_long_as_is_configured() {
    let go_on = Gate::new();
    let (gate, done) = (go_on.clone(), Gate::new());
    let script_done = done.clone();
    let upstream = Upstream::start(move |request, answer| {
        let model = &request.json()["model"];
        answer.begin_events();
        answer.event(&word(model, " word"));
        if request.json()["seed"] == 1 {
            // This one is never finished, and left in the end.
            return assert!(answer.sees_it_leave());
        }
        assert!(gate.wait());
        answer.event(&finish(model));
        answer.event(&usage_chunk(model, 9, 77));
        answer.event("[DONE]");
        answer.end();
        script_done.open();
    });
    let relay = Setup::new(&upstream).billing("drain_seconds_max = 1").start();
    let leave = |seed: u64| {
        let mut body = streamed("Say it");
        body["seed"] = json!(seed);
        let mut connection = Request::chat(&body).key(&relay.key).begin(relay.http);
        let head = connection.head();
        connection.read_until(" word");
        head.request_id()
    };
    let finished = leave(0);
    go_on.open();
    assert!(done.wait());
    let bill = relay.usage_of(&finished);
    assert_eq!((&bill["output_tokens"], &bill["estimated"]), (&json!(77), &json!(false)), "{bill}");
    assert_eq!(bill["interrupted"], true, "{bill}");
    let endless = leave(1);
    let bill = relay.usage_of(&endless);
    assert_eq!((&bill["output_tokens"], &bill["estimated"]), (&json!(1), &json!(true)), "{bill}");
}
