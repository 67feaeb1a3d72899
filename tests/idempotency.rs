//! `Idempotency-Key`: a request that is sent again is served and billed once, however the first one went.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use support::setup::MODEL;
use support::tls::Authority;
use support::upstream::{finish, usage, word};
use support::upstream_h2::{UpstreamH2, politely};
use support::{Answer, Connection, Gate, Received, Relay, Request, Response, Setup, Upstream, h2c, until};

/// "Hello there": 9 tokens in for 1,000 nano-USD each, 2 out for 2,000.
const COST: i64 = 13_000;
const CREDIT: i64 = 10_000_000_000;

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn streamed() -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn request(relay: &Relay, key: &str, body: &Value) -> Request {
    Request::chat(body).key(&relay.key).header("idempotency-key", key)
}

fn ask(relay: &Relay, key: &str, body: &Value) -> Response {
    request(relay, key, body).send(relay.http)
}

fn scripted(script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> (Upstream, Relay) {
    let upstream = Upstream::start(script);
    let relay = Setup::new(&upstream).start();
    (upstream, relay)
}

/// An upstream whose first answer is scripted, and whose others are polite.
fn first(script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> (Upstream, Relay) {
    let asked = AtomicUsize::new(0);
    scripted(move |request, answer| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => script(request, answer),
        _ => answer.politely(request),
    })
}

#[track_caller]
fn assert_served(answer: &Response) {
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (200, None), "{}", answer.text());
}

#[track_caller]
fn assert_replayed(answer: &Response, first: &Response) {
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (200, Some("true")), "{}", answer.text());
    assert_eq!(answer.text(), first.text());
    assert_eq!(answer.header("content-type"), first.header("content-type"));
    assert_ne!(answer.request_id(), first.request_id());
}

/// Waits until these answers are billed, and asserts that no others were.
#[track_caller]
fn assert_billed(relay: &Relay, answers: &[&Response]) {
    for answer in answers {
        assert_eq!(relay.usage_of(&answer.request_id())["cost_nano_usd"], COST);
    }
    let costly = relay.usage().into_iter().filter(|row| row["cost_nano_usd"] != 0).count();
    let balance = CREDIT - COST * i64::try_from(answers.len()).unwrap();
    assert_eq!((costly, relay.balance(&relay.account)), (answers.len(), balance));
}

/// Runs a statement on the relay's store.
fn sql(relay: &Relay, statement: &'static str) {
    relay.store().run(statement);
}

#[test]
fn a_repeat_is_answered_with_the_first_answer_byte_for_byte_and_billed_once() {
    let (upstream, relay) = scripted(|request, answer| answer.politely(request));
    for (count, body) in [hello(), streamed()].iter().enumerate() {
        let key = format!("key-{count}");
        let served = ask(&relay, &key, body);
        assert_served(&served);
        let remaining = served.number("x-ratelimit-remaining");
        for _ in 0..3 {
            let again = ask(&relay, &key, body);
            assert_replayed(&again, &served);
            assert_eq!(again.number("x-ratelimit-remaining"), remaining, "it takes no place in the key's limits");
            let line = relay.access_line(&again.request_id());
            assert_eq!((&line["status"], &line["cost_nano_usd"]), (&json!(200), &json!(0)), "{line}");
        }
        let kind = if count == 0 { "application/json" } else { "text/event-stream; charset=utf-8" };
        assert_eq!(served.header("content-type"), Some(kind));
        let received = upstream.received();
        assert_eq!(received.len(), count + 1);
        assert_eq!(received[count].header("idempotency-key"), None, "it is the relay's, not the provider's");
    }
    until("both to be billed", || (relay.usage().len() == 2).then_some(()));
    assert_eq!(relay.balance(&relay.account), CREDIT - 2 * COST);
}

#[test]
fn a_translated_answer_is_replayed_as_it_was_translated() {
    let upstream = Upstream::start(|_, answer| {
        let content = json!([{"type": "text", "text": "Hello"}]);
        answer.json(
            200,
            &json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content,
                "stop_reason": "end_turn", "stop_sequence": null, "usage": {"input_tokens": 7, "output_tokens": 5}}),
        );
    });
    let table = format!(
        "[[provider]]\nname = \"anthropic\"\ndialect = \"anthropic\"\nbase_url = \"http://{}\"\n\
         credentials = [{{ env = \"UPSTREAM_KEY\" }}]\n",
        upstream.address
    );
    let relay = Setup::bare().table(&table).model(MODEL, &[("anthropic", 0)]).start();
    let served = ask(&relay, "k", &hello());
    assert_served(&served);
    assert_eq!(served.json()["choices"][0]["message"]["content"], "Hello");
    assert_replayed(&ask(&relay, "k", &hello()), &served);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn over_http_2_on_either_side_it_is_the_same() {
    let authority = Authority::new("trusted");
    let upstream = UpstreamH2::start(&authority.certify("localhost"), politely);
    let setup = Setup::bare().provider("upstream", &upstream.base_url()).listen("h2c = true");
    let relay = setup.file("roots.pem", &authority.pem()).env("SSL_CERT_FILE", "roots.pem").start();
    for (count, body) in [streamed(), hello()].iter().enumerate() {
        let request = request(&relay, &format!("key-{count}"), body);
        let served = h2c::send(&request, relay.http);
        assert_served(&served);
        assert_replayed(&h2c::send(&request, relay.http), &served);
        assert_replayed(&request.send(relay.http), &served);
    }
    assert_eq!(upstream.asked().len(), 2);
}

#[test]
fn while_the_first_runs_a_repeat_is_told_to_wait() {
    let gate = Gate::new();
    let opened = gate.clone();
    let (upstream, relay) = scripted(move |request, answer| {
        assert!(opened.wait());
        answer.politely(request);
    });
    let mut running = request(&relay, "k", &hello()).begin(relay.http);
    upstream.wait_for(1);
    for _ in 0..2 {
        let refused = ask(&relay, "k", &hello());
        refused.assert_error(409, "invalid_request_error", "idempotency_in_progress");
        assert_eq!((refused.number("retry-after"), refused.number("retry-after-ms")), (1, 1000));
    }
    let other = ask(&relay, "k", &streamed());
    other.assert_error(400, "invalid_request_error", "idempotency_key_reused");
    gate.open();
    let served = running.response();
    assert_served(&served);
    assert_replayed(&ask(&relay, "k", &hello()), &served);
    assert_eq!(upstream.count(), 1);
    assert_billed(&relay, &[&served]);
}

#[test]
fn of_twenty_at_once_one_is_served() {
    let gate = Gate::new();
    let opened = gate.clone();
    let (upstream, relay) = scripted(move |request, answer| {
        assert!(opened.wait());
        answer.politely(request);
    });
    let mut running: Vec<Connection> = (0..20).map(|_| request(&relay, "k", &hello()).begin(relay.http)).collect();
    let (sender, answers) = std::sync::mpsc::channel();
    for mut connection in running.drain(..) {
        let sender = sender.clone();
        thread::spawn(move || sender.send(connection.response()));
    }
    for _ in 0..19 {
        let refused = answers.recv_timeout(support::PATIENCE).unwrap();
        refused.assert_error(409, "invalid_request_error", "idempotency_in_progress");
    }
    gate.open();
    let served = answers.recv_timeout(support::PATIENCE).unwrap();
    assert_served(&served);
    assert_eq!(upstream.count(), 1);
    assert_billed(&relay, &[&served]);
}

#[test]
fn a_key_belongs_to_one_body_of_one_account() {
    let (upstream, relay) = scripted(|request, answer| answer.politely(request));
    let served = ask(&relay, "k", &hello());
    assert_served(&served);
    let mut other = hello();
    other["seed"] = json!(1);
    let (_, param) = ask(&relay, "k", &other).assert_error(400, "invalid_request_error", "idempotency_key_reused");
    assert_eq!(param.as_deref(), Some("Idempotency-Key"));

    let second_key = relay.key_of(&relay.account, &[]).key;
    let same_account = Request::chat(&hello()).key(&second_key).header("Idempotency-Key", "k").send(relay.http);
    assert_replayed(&same_account, &served);
    let narrow = relay.key_of(&relay.account, &["--models", support::setup::SLASHED]).key;
    let not_allowed = Request::chat(&hello()).key(&narrow).header("Idempotency-Key", "k").send(relay.http);
    not_allowed.assert_error(403, "permission_error", "model_not_allowed");

    let stranger = relay.key_of(&relay.account("open", "1"), &[]).key;
    assert_served(&Request::chat(&other).key(&stranger).header("Idempotency-Key", "k").send(relay.http));
    assert_eq!(upstream.count(), 2);
}

#[test]
fn what_is_no_key_is_refused_before_anything_is_asked() {
    let (upstream, relay) = scripted(|request, answer| answer.politely(request));
    for bad in ["", "two words", &"x".repeat(256)] {
        let (_, param) = ask(&relay, bad, &hello()).assert_error(400, "invalid_request_error", "invalid_value");
        assert_eq!(param.as_deref(), Some("Idempotency-Key"));
    }
    let twice = request(&relay, "a", &hello()).header("idempotency-key", "a").send(relay.http);
    twice.assert_error(400, "invalid_request_error", "invalid_value");
    assert_served(&ask(&relay, &"x".repeat(255), &hello()));
    assert_eq!(upstream.count(), 1);
}

/// A first answer that is told to have failed leaves the key free by the time it is told.
#[track_caller]
fn assert_frees_at_once(status: u16, body: &Value, script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) {
    let (upstream, relay) = first(script);
    let failed = ask(&relay, "k", body);
    assert_eq!(failed.status, status, "{}", failed.text());
    let served = ask(&relay, "k", body);
    assert_served(&served);
    assert_replayed(&ask(&relay, "k", body), &served);
    assert_eq!(upstream.count(), 2);
    assert_billed(&relay, &[&served]);
}

#[test]
fn a_first_request_that_failed_frees_the_key() {
    assert_frees_at_once(502, &hello(), |_, answer| answer.json(503, &json!({"error": {"message": "busy"}})));
    assert_frees_at_once(400, &streamed(), |_, answer| answer.json(400, &json!({"error": {"message": "no such"}})));
    assert_frees_at_once(502, &hello(), |_, answer| answer.cut());
}

#[test]
fn a_stream_that_broke_off_frees_the_key() {
    let (upstream, relay) = first(|_, answer| {
        answer.begin_events();
        answer.event(&word(&json!(MODEL), "Hel"));
        answer.cut();
    });
    let broken = ask(&relay, "k", &streamed());
    assert!(broken.text().contains("upstream_truncated"), "{}", broken.text());
    assert_served(&ask(&relay, "k", &streamed()));
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_document_that_broke_off_frees_the_key() {
    let (upstream, relay) = first(|_, answer| {
        answer.head(200, &[("content-type", "application/json")], "content-length: 1000\r\n");
        answer.raw(r#"{"id": "chatcmpl-1", "choices": ["#);
        answer.cut();
    });
    assert_eq!(ask(&relay, "k", &hello()).end, support::End::Cut);
    // There was no moment to wait in before the client saw the end.
    let served = until("the key to be free", || Some(ask(&relay, "k", &hello())).filter(|again| again.status == 200));
    assert_served(&served);
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_client_that_leaves_in_the_middle_frees_the_key() {
    let (upstream, relay) = first(|_, answer| {
        answer.begin_events();
        answer.event(&word(&json!(MODEL), "Hel"));
        assert!(answer.sees_it_leave());
    });
    let mut leaving = request(&relay, "k", &streamed()).begin(relay.http);
    leaving.head();
    leaving.read_until("Hel");
    drop(leaving);
    let again = || Some(ask(&relay, "k", &streamed())).filter(|again| again.status == 200);
    assert_served(&until("the key to be free", again));
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_client_that_leaves_after_the_last_event_has_its_answer_kept() {
    let gate = Gate::new();
    let opened = gate.clone();
    // The event that ends the answer comes, the transport's end does not.
    let (upstream, relay) = scripted(move |_, answer| {
        answer.begin_events();
        answer.event(&word(&json!(MODEL), "Hello"));
        answer.event(&finish(&json!(MODEL)));
        answer.event("[DONE]");
        assert!(opened.wait());
    });
    let mut leaving = request(&relay, "k", &streamed()).begin(relay.http);
    leaving.head();
    leaving.read_until("[DONE]");
    drop(leaving);
    // It is told only when it is kept: there is nothing to wait for.
    let again = ask(&relay, "k", &streamed());
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")), "{}", again.text());
    assert_eq!(again.events().last().map(String::as_str), Some("[DONE]"));
    assert_eq!(upstream.count(), 1);
    gate.open();
}

#[test]
fn an_answer_that_is_read_on_without_its_client_is_kept_for_it() {
    let gate = Gate::new();
    let opened = gate.clone();
    let upstream = Upstream::start(move |_, answer| {
        answer.begin_events();
        answer.event(&word(&json!(MODEL), "Hel"));
        assert!(opened.wait());
        for event in [word(&json!(MODEL), "lo"), finish(&json!(MODEL)), "[DONE]".into()] {
            answer.event(&event);
        }
        answer.end();
    });
    let relay = Setup::new(&upstream).billing("drain_seconds_max = 60").start();
    let mut leaving = request(&relay, "k", &streamed()).begin(relay.http);
    leaving.head();
    leaving.read_until("Hel");
    drop(leaving);
    let refused = ask(&relay, "k", &streamed());
    refused.assert_error(409, "invalid_request_error", "idempotency_in_progress");
    gate.open();
    let again = until("the answer to be kept", || Some(ask(&relay, "k", &streamed())).filter(|it| it.status == 200));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!((again.events().len(), again.events().last().map(String::as_str)), (4, Some("[DONE]")));
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_relay_that_was_killed_leaves_the_key_until_its_lease_is_over() {
    let (upstream, relay) = first(|_, answer| assert!(answer.sees_it_leave()));
    let _lost = request(&relay, "k", &hello()).begin(relay.http);
    upstream.wait_for(1);
    relay.signal("KILL");
    relay.restart();
    ask(&relay, "k", &hello()).assert_error(409, "invalid_request_error", "idempotency_in_progress");
    sql(&relay, "UPDATE idempotency_keys SET claimed_until_ms = claimed_until_ms - 60000");
    let served = ask(&relay, "k", &hello());
    assert_served(&served);
    assert_eq!(upstream.count(), 2);
    // What was answered outlives the process, however it ends.
    for signal in ["KILL", "TERM"] {
        relay.signal(signal);
        relay.restart();
        assert_replayed(&ask(&relay, "k", &hello()), &served);
    }
}

#[test]
fn what_was_answered_a_day_ago_is_forgotten() {
    let (upstream, relay) = scripted(|request, answer| answer.politely(request));
    assert_served(&ask(&relay, "k", &hello()));
    sql(&relay, "UPDATE idempotency_keys SET created_at_ms = created_at_ms - 86400000");
    assert_served(&ask(&relay, "k", &hello()));
    assert_eq!(upstream.count(), 2);
}

#[test]
fn neither_key_nor_prompt_nor_answer_can_be_read_in_the_stores_files() {
    if support::store::server().is_some() {
        println!("skipped: the store has no files here");
        return;
    }
    let (_upstream, relay) = scripted(|request, answer| answer.politely(request));
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "an unmistakable prompt"}]});
    assert_served(&ask(&relay, "an-unmistakable-key", &body));
    let mut found = 0;
    let entries = std::fs::read_dir(relay.folder()).unwrap().map(|entry| entry.unwrap().path());
    for path in entries.filter(|path| path.is_file()) {
        let bytes = std::fs::read(&path).unwrap();
        for secret in ["unmistakable", "Hello there", "chat.completion"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} is in {path:?}");
        }
        found += bytes.windows(16).filter(|window| window == b"application/json").count();
    }
    assert!(found > 0, "the row was looked for in the wrong place");
}

#[test]
fn an_answer_too_long_to_keep_is_not_billed_again() {
    let text = Arc::new("x".repeat(4 * 1024 * 1024));
    let (upstream, relay) = scripted(move |_, answer| {
        let message = json!({"role": "assistant", "content": *text});
        let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
        answer.json(200, &json!({"id": "c", "object": "chat.completion", "choices": choices, "usage": usage(9, 2)}));
    });
    let served = ask(&relay, "k", &hello());
    assert_served(&served);
    let again = ask(&relay, "k", &hello());
    again.assert_error(409, "invalid_request_error", "idempotency_answer_too_large");
    assert_eq!(upstream.count(), 1);
    assert_billed(&relay, &[&served]);
}

#[test]
fn an_account_that_has_nothing_left_still_gets_its_answer_again() {
    // Enough for what is held; and then the provider counts far more than that.
    let (upstream, relay) = scripted(|_, answer| {
        let message = json!({"role": "assistant", "content": "Hello there"});
        let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
        answer.json(200, &json!({"id": "c", "object": "chat.completion", "choices": choices, "usage": usage(1000, 2)}));
    });
    let poor = relay.key_of(&relay.account("open", "0.0002"), &[]).key;
    let ask = |key: &str| Request::chat(&hello()).key(&poor).header("idempotency-key", key).send(relay.http);
    let served = ask("k");
    assert_served(&served);
    ask("another").assert_error(402, "insufficient_quota", "insufficient_credits");
    assert_replayed(&ask("k"), &served);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn without_the_table_nothing_that_asked_for_protection_is_served() {
    let (upstream, relay) = scripted(|request, answer| answer.politely(request));
    sql(&relay, "ALTER TABLE idempotency_keys RENAME TO elsewhere");
    let refused = ask(&relay, "k", &hello());
    refused.assert_error(503, "server_error", "billing_unavailable");
    assert_eq!((refused.number("retry-after"), upstream.count()), (1, 0));
    assert_eq!(relay.chat(&hello()).status, 200, "others are served");
    sql(&relay, "ALTER TABLE elsewhere RENAME TO idempotency_keys");
    assert_served(&ask(&relay, "k", &hello()));
}
