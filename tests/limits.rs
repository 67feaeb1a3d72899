//! Limits in force: windows and concurrency under load, keys that come and go, and configuration that changes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::setup::{MODEL, model};
use support::{Connection, Gate, PATIENCE, Relay, Request, Response, Setup, Upstream, until};

/// The contract's promise: the relay sees what the commands change within 2 s. A second more for a loaded machine.
const SEEN_WITHIN: Duration = Duration::from_secs(3);

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn ask(relay: &Relay, key: &str) -> Response {
    Request::chat(&hello()).key(key).send(relay.http)
}

/// `count` requests at once, each on a connection of its own that is open already.
fn at_once(relay: &Relay, key: &str, count: usize) -> Vec<Response> {
    let barrier = Barrier::new(count);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(relay.http);
                    let request = Request::chat(&hello()).key(key);
                    barrier.wait();
                    connection.ask(&request)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[track_caller]
fn assert_refused_for_now(answer: &Response, code: &str) {
    answer.assert_error(429, "rate_limit_error", code);
    let (seconds, milliseconds) = (answer.number("retry-after"), answer.number("retry-after-ms"));
    // A token counts for 60 to 61 seconds, as it is counted by the second.
    assert!(seconds <= 61 && milliseconds <= 61_000, "{answer:?}");
    assert_eq!(seconds, milliseconds.div_ceil(1000), "both say the same, the coarser never too early");
}

#[test]
fn thirty_a_minute_pass_and_the_next_is_told_when_to_come_back() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let free = relay.account("free", "1");
    let key = relay.key_of(&free, &[]).key;
    let began = Instant::now();
    for remaining in (0..30).rev() {
        let answer = ask(&relay, &key);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.number("x-ratelimit-limit"), 30);
        assert_eq!(answer.number("x-ratelimit-remaining"), remaining, "counting down by one");
    }
    let refused = ask(&relay, &key);
    assert_refused_for_now(&refused, "rate_limit_exceeded");
    assert_eq!(refused.number("x-ratelimit-remaining"), 0);
    // The slot of the first request frees 60 s after it was admitted, which was after `began` and before now.
    let earliest = Duration::from_secs(60).saturating_sub(began.elapsed());
    let told = Duration::from_millis(refused.number("retry-after-ms"));
    assert!(told >= earliest, "told to come back in {told:?}, the slot frees in {earliest:?} at the earliest");
    assert_eq!(refused.number("x-ratelimit-reset"), refused.number("retry-after"));
    assert_eq!(upstream.count(), 30);

    // Other keys of the account have windows of their own; looking at the models takes no slot.
    assert_eq!(ask(&relay, &relay.key_of(&free, &[]).key).status, 200);
    assert_eq!(Request::get("/v1/models").key(&key).send(relay.http).status, 200);
}

#[test]
fn of_64_at_once_exactly_30_pass() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let free = relay.account("free", "1");
    let key = relay.key_of(&free, &[]).key;
    let answers = at_once(&relay, &key, 64);
    let (passed, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!((passed.len(), refused.len()), (30, 34));
    assert_eq!(upstream.count(), 30);
    for answer in refused {
        assert_refused_for_now(answer, "rate_limit_exceeded");
    }
    let mut remaining: Vec<u64> = passed.iter().map(|answer| answer.number("x-ratelimit-remaining")).collect();
    remaining.sort_unstable();
    assert_eq!(remaining, (0..30).collect::<Vec<u64>>(), "no two got the same slot");
    until("the bills", || (relay.usage().len() == 30).then_some(()));
    assert_eq!(relay.balance(&free), 1_000_000_000 - 30 * 13_000);
}

#[test]
fn requests_at_once_are_limited_and_a_finished_one_makes_room() {
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::start(move |request, answer| {
        assert!(wait.wait());
        answer.politely(request);
    });
    let relay = Setup::new(&upstream).start();
    let key = relay.key_of(&relay.account, &["--concurrency", "2"]).key;
    let mut running: Vec<Connection> = (0..2).map(|_| Request::chat(&hello()).key(&key).begin(relay.http)).collect();
    upstream.wait_for(2);
    let refused = ask(&relay, &key);
    assert_refused_for_now(&refused, "concurrency_limit_exceeded");
    gate.open();
    for connection in &mut running {
        assert_eq!(connection.response().status, 200);
    }
    until("a place to be free", || (ask(&relay, &key).status == 200).then_some(()));
}

#[test]
fn a_client_that_leaves_makes_room() {
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::start(move |request, answer| {
        if request.json()["seed"] == 1 {
            answer.sees_it_leave();
        } else {
            assert!(wait.wait());
            answer.politely(request);
        }
    });
    let relay = Setup::new(&upstream).start();
    let key = relay.key_of(&relay.account, &["--concurrency", "1"]).key;
    let mut body = hello();
    body["seed"] = json!(1);
    let leaving = Request::chat(&body).key(&key).begin(relay.http);
    upstream.wait_for(1);
    assert_eq!(ask(&relay, &key).status, 429);
    drop(leaving);
    gate.open();
    until("the place to be free", || (ask(&relay, &key).status == 200).then_some(()));
}

#[test]
fn tokens_a_minute_are_limited() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let key = relay.key_of(&relay.account, &["--tpm", "500"]).key;
    let mut body = hello();
    body["max_tokens"] = json!(100);
    let ask = |body: &Value| Request::chat(body).key(&key).send(relay.http);
    let first = ask(&body);
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.number("x-ratelimit-limit-tokens"), 500);
    assert!(first.number("x-ratelimit-remaining-tokens") < 500);
    // What was reserved and not used comes back: 11 tokens a request, so far more than five of them pass.
    for _ in 0..10 {
        until("the reservation to be settled", || (ask(&body).status == 200).then_some(()));
    }
    body["max_tokens"] = json!(400);
    assert_refused_for_now(&ask(&body), "rate_limit_exceeded");
    let other = ask_plain(&relay);
    assert_eq!(other.header("x-ratelimit-limit-tokens"), None, "a key without the limit has no header of it");
}

fn ask_plain(relay: &Relay) -> Response {
    ask(relay, &relay.key)
}

#[test]
fn a_new_key_works_at_once_and_a_revoked_one_not_for_long() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let key = relay.key_of(&relay.account, &[]);
    assert_eq!(ask(&relay, &key.key).status, 200, "nobody had asked for it before");
    assert!(relay.cli(&["key", "revoke", &key.id]).status.success());
    let revoked = support::within(SEEN_WITHIN, || (ask(&relay, &key.key).status == 401).then_some(()));
    assert!(revoked.is_some(), "a revoked key still works after {SEEN_WITHIN:?}");
}

#[test]
fn suspension_resumption_plans_and_credit_are_seen() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let account = relay.account("open", "1");
    let key = relay.key_of(&account, &[]).key;
    let status_becomes = |status: u16, what: &str| {
        let seen = support::within(SEEN_WITHIN, || (ask(&relay, &key).status == status).then_some(()));
        assert!(seen.is_some(), "{what} was not seen within {SEEN_WITHIN:?}");
    };
    status_becomes(200, "the key");
    assert!(relay.cli(&["account", "suspend", &account.id]).status.success());
    status_becomes(401, "the suspension");
    assert!(relay.cli(&["account", "resume", &account.id]).status.success());
    status_becomes(200, "the resumption");
    assert!(relay.cli(&["account", "plan", &account.id, "free"]).status.success());
    let seen = support::within(SEEN_WITHIN, || (ask(&relay, &key).number("x-ratelimit-limit") == 30).then_some(()));
    assert!(seen.is_some(), "the plan was not seen");
    assert!(relay.cli(&["account", "plan", &account.id, "open"]).status.success());
    until("the old plan", || (ask(&relay, &key).number("x-ratelimit-limit") == 100_000).then_some(()));
    assert!(relay.cli(&["account", "credit", &account.id, "-1", "--note", "a correction"]).status.success());
    status_becomes(402, "the correction");
}

const ADDED: &str = "added-later";

fn has_model(relay: &Relay, id: &str) -> bool {
    Request::get(&format!("/v1/models/{id}")).key(&relay.key).send(relay.http).status == 200
}

fn reloads(relay: &Relay, outcome: &str) -> f64 {
    relay.metric("tollgate_config_reloads_total", &[("outcome", outcome)])
}

#[test]
fn a_changed_file_is_taken_and_a_bad_one_refused() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    assert!(!has_model(&relay, ADDED));
    relay.edit_config(|text| text + &model(ADDED, &[("upstream", 0)]));
    until("the file's change to be taken", || has_model(&relay, ADDED).then_some(()));
    until("a good reload to be counted", || (reloads(&relay, "ok") > 0.5).then_some(()));

    relay.edit_config(|text| text.replace("weight = 1", "wait = 1"));
    until("the bad file to be refused", || (reloads(&relay, "refused") > 0.5).then_some(()));
    assert_eq!(ask_plain(&relay).status, 200, "the old configuration stays in force");
    let ready = Request::get("/readyz").send(relay.admin);
    assert!(ready.text().contains("tollgate.toml"), "readiness names the bad file: {}", ready.text());
    assert!(relay.stderr().contains("wait"), "the mistake is logged: {}", relay.stderr());

    relay.edit_config(|text| text.replace("wait = 1", "weight = 1"));
    until("the mended file to be taken", || {
        (!Request::get("/readyz").send(relay.admin).text().contains("tollgate.toml")).then_some(())
    });
}

#[test]
fn sighup_reloads_what_a_watcher_cannot_see() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let before = reloads(&relay, "ok");
    relay.signal("HUP");
    until("the reload", || (reloads(&relay, "ok") > before + 0.5).then_some(()));
    assert_eq!(ask_plain(&relay).status, 200);
}

#[test]
fn a_request_in_flight_ends_under_the_configuration_it_began_with() {
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::start(move |request, answer| {
        assert!(wait.wait());
        answer.politely(request);
    });
    let relay = Setup::new(&upstream).start();
    let mut running = Request::chat(&hello()).key(&relay.key).begin(relay.http);
    upstream.wait_for(1);
    relay.edit_config(|text| {
        text.replace("input = \"1.00\"", "input = \"1000.00\"") + &model(ADDED, &[("upstream", 0)])
    });
    until("the new file to be taken", || has_model(&relay, ADDED).then_some(()));
    gate.open();
    let first = running.response();
    let second = ask_plain(&relay);
    assert_eq!(relay.usage_of(&first.request_id())["cost_nano_usd"], 13_000, "the price of when it began");
    assert_eq!(relay.usage_of(&second.request_id())["cost_nano_usd"], 9_004_000);
}

#[test]
fn a_stop_lets_a_stream_end() {
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::start(move |request, answer| {
        let model = &request.json()["model"];
        answer.begin_events();
        answer.event(&support::upstream::word(model, "Hello"));
        assert!(wait.wait());
        answer.event(&support::upstream::finish(model));
        answer.event(&support::upstream::usage_chunk(model, 9, 1));
        answer.event("[DONE]");
        answer.end();
    });
    let relay = Setup::new(&upstream).start();
    let mut body = hello();
    body["stream"] = json!(true);
    let mut running = Request::chat(&body).key(&relay.key).begin(relay.http);
    let answer = running.head();
    running.read_until("Hello");
    relay.signal("TERM");
    until("the listener to close", || {
        std::net::TcpStream::connect_timeout(&relay.http, PATIENCE).is_err().then_some(())
    });
    gate.open();
    assert!(String::from_utf8_lossy(&running.rest().0).ends_with("data: [DONE]\n\n"));
    relay.wait_for_end();
    assert_eq!(relay.usage_of(&answer.request_id())["output_tokens"], 1);
}
