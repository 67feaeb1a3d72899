//! Usage besides the ledger: what receivers and files get, whatever fails, and what it holds up, which is nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::setup::MODEL;
use support::{Answer, Gate, Received, Relay, Request, Reserved, Setup, Upstream, until, within};

const SECRET_BYTES: &[u8] = b"an example of thirty-two bytes!!";

/// How long a receiver that was away for some seconds may wait to be asked again.
const RETRIED_WITHIN: Duration = Duration::from_secs(60);

/// What a request costs: 9 tokens in at 1,000 nano-USD, 2 out at 2,000.
const COST: i64 = 13_000;

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

/// A relay's setup with a webhook to that address.
fn with_webhook(upstream: &Upstream, address: std::net::SocketAddr) -> Setup {
    Setup::new(upstream).env("HOOK", &format!("whsec_{}", STANDARD.encode(SECRET_BYTES))).table(&format!(
        "[[billing.sink]]\nkind = \"webhook\"\nurl = \"http://{address}/in\"\nsecret = {{ env = \"HOOK\" }}"
    ))
}

const FILE: &str = "[[billing.sink]]\nkind = \"file\"\npath = \"usage/usage.ndjson\"";

/// Sells so many requests, and returns their ids.
fn sell(relay: &Relay, count: usize) -> BTreeSet<String> {
    const AT_ONCE: usize = 4;
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let client = || {
            let mut ids = Vec::new();
            while next.fetch_add(1, Ordering::SeqCst) < count {
                let answer = relay.chat(&hello());
                assert_eq!(answer.status, 200, "{}", answer.text());
                ids.push(answer.request_id());
            }
            ids
        };
        let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

fn take(answer: &mut Answer) {
    answer.whole(200, &[], b"");
}

fn ids(request: &Received) -> Vec<String> {
    let events = request.json();
    events.as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

/// How often each id has come, in any request.
fn arrivals(receiver: &Upstream) -> BTreeMap<String, usize> {
    let mut arrivals = BTreeMap::new();
    for id in receiver.received().iter().flat_map(ids) {
        *arrivals.entry(id).or_default() += 1;
    }
    arrivals
}

fn arrived(receiver: &Upstream) -> BTreeSet<String> {
    arrivals(receiver).into_keys().collect()
}

#[track_caller]
fn wait_until_all_arrived(receiver: &Upstream, sold: &BTreeSet<String>) {
    let all = within(RETRIED_WITHIN, || sold.is_subset(&arrived(receiver)).then_some(()));
    all.expect("all events at the receiver");
}

/// Waits until the ledger has so many records, and the balance says so.
#[track_caller]
fn assert_billed(relay: &Relay, count: usize) {
    until("the ledger", || (relay.usage().len() >= count).then_some(()));
    assert_eq!(relay.usage().len(), count);
    assert_eq!(relay.balance(&relay.account), 10_000_000_000 - COST * i64::try_from(count).unwrap());
}

/// A whole number of a sink's.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
fn of_sink(relay: &Relay, name: &str, sink: &str) -> usize {
    relay.metric(name, &[("sink", sink)]) as usize
}

/// The records that the spool still holds, for whomever.
fn spooled(relay: &Relay) -> i64 {
    let spool = Connection::open(relay.folder().join("spool.db")).unwrap();
    spool.query_row("SELECT COALESCE(SUM(records), 0) FROM batches", [], |row| row.get(0)).unwrap()
}

#[track_caller]
fn wait_until_spool_is_empty(relay: &Relay) {
    until("the spool to be empty", || (spooled(relay) == 0).then_some(()));
}

/// The ids of the file's lines, in their order.
fn written(relay: &Relay) -> Vec<String> {
    let text = std::fs::read_to_string(relay.folder().join("usage/usage.ndjson")).unwrap_or_default();
    let whole = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    whole.map(|line| line["request_id"].as_str().unwrap().to_owned()).collect()
}

/// HMAC-SHA256 as RFC 2104 writes it.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

#[track_caller]
fn assert_signed(request: &Received) {
    let header = |name| request.header(name).unwrap_or_else(|| panic!("no {name}: {}", request.head));
    let signed = format!("{}.{}.", header("webhook-id"), header("webhook-timestamp"));
    let signature = hmac(SECRET_BYTES, &[signed.as_bytes(), &request.body].concat());
    assert_eq!(header("webhook-signature"), format!("v1,{}", STANDARD.encode(signature)));
    assert_eq!(header("content-type"), "application/cloudevents-batch+json");
}

/// The usage as the command line shows it, without what the provider charged: that is nobody's but the operator's.
fn as_sold(relay: &Relay) -> Vec<Value> {
    let mut rows = relay.usage();
    for row in &mut rows {
        row.as_object_mut().unwrap().remove("provider_cost_nano_usd").expect("what the provider charged");
    }
    rows
}

#[test]
fn each_request_arrives_once_signed_and_as_the_command_line_shows_it() {
    let upstream = Upstream::polite();
    let receiver = Upstream::start(|_, answer| take(answer));
    let relay = with_webhook(&upstream, receiver.address).start();
    let sold = sell(&relay, 50);
    assert_eq!(sold.len(), 50);
    wait_until_all_arrived(&receiver, &sold);
    assert_billed(&relay, 50);
    wait_until_spool_is_empty(&relay);
    assert!(arrivals(&receiver).values().all(|times| *times == 1));
    let received = receiver.received();
    received.iter().for_each(|request| assert_signed(request));
    let events: Vec<Value> = received.iter().flat_map(|request| request.json().as_array().unwrap().clone()).collect();
    for row in as_sold(&relay) {
        let event = events.iter().find(|event| event["id"] == row["request_id"]).unwrap();
        assert_eq!(event["data"], row);
        assert_eq!((&event["subject"], &event["type"]), (&json!(relay.account.id), &json!("tollgate.usage")));
    }
    assert_eq!(of_sink(&relay, "tollgate_sink_lag_events", "webhook"), 0);
    assert_eq!(relay.metric("tollgate_sink_delivered_total", &[("sink", "webhook"), ("outcome", "ok")]) as usize, 50);
}

#[test]
fn what_the_receiver_does_not_confirm_comes_again_and_is_billed_once() {
    let upstream = Upstream::polite();
    let count = AtomicUsize::new(0);
    let receiver = Upstream::start(move |_, answer| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            return answer.cut();
        }
        take(answer);
    });
    let relay = with_webhook(&upstream, receiver.address).start();
    let sold = sell(&relay, 10);
    wait_until_all_arrived(&receiver, &sold);
    wait_until_spool_is_empty(&relay);
    let requests = receiver.received();
    let (lost, again) = (ids(&requests[0]), ids(&requests[1]));
    assert_eq!(again, lost, "the same, in the same order");
    assert_eq!(requests[1].header("webhook-id"), requests[0].header("webhook-id"));
    let arrivals = arrivals(&receiver);
    assert!(arrivals.iter().all(|(id, times)| *times == if lost.contains(id) { 2 } else { 1 }));
    assert_billed(&relay, 10);
}

#[test]
fn a_receiver_that_is_away_holds_back_neither_ledger_nor_file_and_misses_nothing() {
    let upstream = Upstream::polite();
    let place = Reserved::new();
    let relay = with_webhook(&upstream, place.address).table(FILE).start();
    let sold = sell(&relay, 200);
    assert_billed(&relay, 200);
    until("the file", || (written(&relay).len() == 200).then_some(()));
    until("the webhook to show its lag", || {
        (of_sink(&relay, "tollgate_sink_lag_events", "webhook") == 200
            && relay.metric("tollgate_sink_delivered_total", &[("sink", "webhook"), ("outcome", "failed")]) > 0.0)
            .then_some(())
    });
    until("no lag of the file", || (of_sink(&relay, "tollgate_sink_lag_events", "file") == 0).then_some(()));
    until("it to grow old", || {
        (relay.metric("tollgate_sink_oldest_seconds", &[("sink", "webhook")]) > 0.0).then_some(())
    });
    assert_eq!(spooled(&relay), 200);
    let receiver = Upstream::start_at(place.address, |_, answer| take(answer));
    wait_until_all_arrived(&receiver, &sold);
    wait_until_spool_is_empty(&relay);
    assert_eq!(of_sink(&relay, "tollgate_sink_lag_events", "webhook"), 0);
    assert_eq!(written(&relay).into_iter().collect::<BTreeSet<_>>(), sold);
}

#[test]
fn a_receiver_that_is_slow_holds_back_neither_ledger_nor_file() {
    let upstream = Upstream::polite();
    let gate = Gate::new();
    let wait = gate.clone();
    let receiver = Upstream::start(move |_, answer| {
        wait.wait();
        take(answer);
    });
    let relay = with_webhook(&upstream, receiver.address).table(FILE).start();
    let first = sell(&relay, 1);
    receiver.wait_for(1);
    let more = sell(&relay, 50);
    assert_billed(&relay, 51);
    until("the file", || (written(&relay).len() == 51).then_some(()));
    assert_eq!((receiver.count(), of_sink(&relay, "tollgate_sink_lag_events", "webhook")), (1, 51));
    gate.open();
    wait_until_all_arrived(&receiver, &first.union(&more).cloned().collect());
}

#[test]
fn an_event_that_is_refused_is_parked_and_the_others_go_on() {
    let upstream = Upstream::polite();
    let away = Arc::new(AtomicBool::new(true));
    let poison = Arc::new(std::sync::Mutex::new(String::new()));
    let (is_away, refused) = (Arc::clone(&away), Arc::clone(&poison));
    let receiver = Upstream::start(move |request, answer| {
        if is_away.load(Ordering::SeqCst) {
            return answer.whole(503, &[], b"");
        }
        let status = if ids(request).contains(&*refused.lock().unwrap()) { 400 } else { 200 };
        answer.whole(status, &[], b"");
    });
    let relay = with_webhook(&upstream, receiver.address).start();
    // All of them wait together, with the one among them.
    let mut sold = sell(&relay, 20);
    let poisoned = sold.iter().nth(7).unwrap().clone();
    *poison.lock().unwrap() = poisoned.clone();
    receiver.wait_for(1);
    away.store(false, Ordering::SeqCst);
    until("one to be parked", || (of_sink(&relay, "tollgate_sink_parked", "webhook") == 1).then_some(()));
    wait_until_spool_is_empty(&relay);
    let later = sell(&relay, 5);
    sold.extend(later);
    wait_until_all_arrived(&receiver, &sold);
    assert_eq!(of_sink(&relay, "tollgate_sink_parked", "webhook"), 1);
    assert_billed(&relay, 25);
    let before = receiver.count();
    *poison.lock().unwrap() = String::new();
    relay.signal("KILL");
    relay.restart();
    // What is parked is the sink's, not the process's: a new one tries it at once.
    until("what was parked", || (of_sink(&relay, "tollgate_sink_parked", "webhook") == 0).then_some(()));
    assert!(receiver.received()[before..].iter().any(|request| ids(request) == [poisoned.as_str()]));
    assert_billed(&relay, 25);
}

#[test]
fn what_a_killed_process_did_not_deliver_the_next_one_does() {
    let upstream = Upstream::polite();
    let place = Reserved::new();
    let relay = with_webhook(&upstream, place.address).start();
    let mut sold = BTreeSet::new();
    for _ in 0..3 {
        sold.extend(sell(&relay, 20));
        relay.signal("KILL");
        relay.restart();
    }
    assert_billed(&relay, 60);
    until("the lag", || (of_sink(&relay, "tollgate_sink_lag_events", "webhook") == 60).then_some(()));
    let receiver = Upstream::start_at(place.address, |_, answer| take(answer));
    wait_until_all_arrived(&receiver, &sold);
    wait_until_spool_is_empty(&relay);
    assert_billed(&relay, 60);
}

#[test]
fn the_file_has_each_request_once_whatever_kills_the_process() {
    const KILLS: usize = 10;
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).table(FILE).start();
    let mut sold = BTreeSet::new();
    let mut chance = support::Chance(u64::from(std::process::id()));
    for _ in 0..KILLS {
        let lines = written(&relay).len();
        sold.extend(sell(&relay, 5 + chance.below(20)));
        if chance.below(2) == 0 {
            until("something in the file", || (written(&relay).len() > lines).then_some(()));
        }
        relay.signal("KILL");
        relay.restart();
    }
    until("all lines", || (written(&relay).len() >= sold.len()).then_some(()));
    wait_until_spool_is_empty(&relay);
    let lines = written(&relay);
    assert_eq!(lines.len(), sold.len());
    assert_eq!(lines.into_iter().collect::<BTreeSet<_>>(), sold);
    let text = std::fs::read_to_string(relay.folder().join("usage/usage.ndjson")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_billed(&relay, sold.len());
    for row in as_sold(&relay) {
        assert!(lines.contains(&row), "as the command line shows it: {row}");
    }
}

#[test]
fn the_end_waits_for_what_goes_through_and_not_for_what_does_not() {
    let upstream = Upstream::polite();
    let away = Reserved::new();
    let relay = with_webhook(&upstream, away.address).table(FILE).start();
    let sold = sell(&relay, 30);
    relay.signal("TERM");
    assert!(relay.wait_for_end().success());
    assert_eq!(written(&relay).into_iter().collect::<BTreeSet<_>>(), sold, "all of it, before the end");
    assert_eq!(spooled(&relay), 30);
    let receiver = Upstream::start_at(away.address, |_, answer| take(answer));
    relay.restart();
    wait_until_all_arrived(&receiver, &sold);
    wait_until_spool_is_empty(&relay);
    assert_billed(&relay, 30);
}

#[test]
fn a_sink_that_is_configured_no_more_does_not_keep_the_spool() {
    let upstream = Upstream::polite();
    let nobody = Reserved::new();
    let relay = with_webhook(&upstream, nobody.address).start();
    sell(&relay, 20);
    assert_billed(&relay, 20);
    relay.edit_config(|toml| {
        let (before, after) = toml.split_once("[[billing.sink]]").unwrap();
        let rest = after.find("[[").map_or("", |at| &after[at..]);
        format!("{before}{rest}")
    });
    assert_eq!(spooled(&relay), 20);
    relay.signal("TERM");
    relay.restart();
    wait_until_spool_is_empty(&relay);
    assert!(relay.stderr().contains("configured no more"));
    assert_billed(&relay, 20);
}

#[test]
fn a_full_spool_names_the_sink_that_keeps_it_full_and_goes_on_when_it_is_back() {
    let upstream = Upstream::polite();
    let back = Gate::new();
    let wait = back.clone();
    let receiver = Upstream::start(move |_, answer| if wait.wait() { take(answer) } else { answer.cut() });
    let relay = with_webhook(&upstream, receiver.address).table(FILE).billing("spool_bytes_max = 1_048_576").start();
    let full = AtomicBool::new(false);
    let sold = AtomicUsize::new(0);
    let client = || {
        let mut connection = support::Connection::open(relay.http);
        while !full.load(Ordering::SeqCst) {
            let answer = connection.ask(&Request::chat(&hello()).key(&relay.key));
            match answer.status {
                200 => drop(sold.fetch_add(1, Ordering::SeqCst)),
                503 => {
                    answer.assert_error(503, "server_error", "billing_unavailable");
                    // It may be for the room that the others' requests keep for themselves.
                    let is_ready = Request::get("/readyz").send(relay.admin).status == 200;
                    full.fetch_or(!is_ready, Ordering::SeqCst);
                }
                _ => panic!("{}", answer.text()),
            }
        }
    };
    thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(client))));
    let mut sold = sold.into_inner();
    // What the others kept for themselves and did not need is sold one by one.
    let readiness = until("the relay to be unready", || {
        let answer = Request::get("/readyz").send(relay.admin);
        if answer.status == 503 && answer.json()["billing_behind"] != json!([]) {
            return Some(answer.json());
        }
        sold += usize::from(relay.chat(&hello()).status == 200);
        None
    });
    let behind = readiness["billing_behind"].as_array().unwrap();
    assert_eq!((behind.len(), &behind[0]["sink"]), (1, &json!("webhook")), "{readiness}");
    assert!(behind[0]["records"].as_u64().unwrap() > 500, "{readiness}");
    // At its edge it is full by reckoning and then, measured, not quite.
    let told = until("the log", || {
        sold += usize::from(relay.chat(&hello()).status == 200);
        relay.stderr().lines().find(|line| line.contains("the spool is full")).map(str::to_owned)
    });
    assert!(told.contains("webhook: ") && !told.contains("file: "), "{told}");
    back.open();
    let ready = within(RETRIED_WITHIN, || (Request::get("/readyz").send(relay.admin).status == 200).then_some(()));
    ready.expect("the relay to be ready");
    sell(&relay, 1);
    until("all events at the receiver", || (arrived(&receiver).len() == sold + 1).then_some(()));
    assert_billed(&relay, sold + 1);
}
