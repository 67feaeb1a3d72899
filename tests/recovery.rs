//! A process that dies, and one whose spool fails: what the next one bills.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::Connection;
use serde_json::{Value, json};
use support::setup::MODEL;
use support::upstream::{finish, usage_chunk, word};
use support::{Gate, Relay, Request, Reserved, Setup, Upstream, until};

fn asked(stream: bool) -> Value {
    json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Say hello"}]})
}

/// Answers with one word, and with no more before a gate opens: the first request's, or that of all others.
fn begins(first: &Gate, others: &Gate) -> Upstream {
    let (first, others, count) = (first.clone(), others.clone(), AtomicU32::new(0));
    Upstream::start(move |request, answer| {
        answer.begin_events();
        answer.event(&word(&request.json()["model"], "Once"));
        let gate = if count.fetch_add(1, Ordering::SeqCst) == 0 { &first } else { &others };
        gate.wait();
        answer.cut();
    })
}

#[track_caller]
fn assert_audited(relay: &Relay) {
    let audit = relay.cli(&["audit"]);
    assert!(audit.status.success(), "{}", audit.stdout);
}

#[track_caller]
fn wait_for_open_requests(relay: &Relay, count: u32) {
    until("the spool knows what runs", || {
        (relay.metric("tollgate_spool_open_requests", &[]) >= f64::from(count)).then_some(())
    });
}

/// What was used, once so many requests are in the ledger.
#[track_caller]
fn usage(relay: &Relay, count: usize) -> Vec<Value> {
    until("the ledger has them", || Some(relay.usage()).filter(|usage| usage.len() >= count))
}

#[test]
fn what_runs_when_the_process_is_killed_is_in_the_ledger_once() {
    let gate = Gate::new();
    let upstream = begins(&gate, &gate);
    let relay = Setup::new(&upstream).start();
    let mut connections: Vec<_> =
        (0..3).map(|_| Request::chat(&asked(true)).key(&relay.key).begin(relay.http)).collect();
    let ids: Vec<_> = connections.iter_mut().map(|connection| connection.head().request_id()).collect();
    wait_for_open_requests(&relay, 3);
    for _ in 0..2 {
        relay.signal("KILL");
        relay.restart();
    }
    let usage = usage(&relay, 3);
    assert_eq!(usage.len(), 3);
    for id in ids {
        let used = usage.iter().find(|used| used["request_id"] == *id).unwrap();
        assert_eq!((&used["interrupted"], &used["estimated"]), (&json!(true), &json!(true)), "{used}");
    }
    assert_audited(&relay);
    until("the dead leave no lock once all is delivered", || {
        let files = std::fs::read_dir(relay.folder()).unwrap();
        let locks = files.filter(|it| it.as_ref().unwrap().path().extension().is_some_and(|it| it == "lock"));
        (locks.count() == 1).then_some(())
    });
    gate.open();
}

#[test]
fn the_audit_names_a_hold_of_a_request_that_is_settled_and_one_that_cannot_be_read() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let answer = relay.chat(&asked(false));
    relay.usage_of(&answer.request_id());
    assert_audited(&relay);
    let spool = Connection::open(relay.folder().join("spool.db")).unwrap();
    let row = "INSERT INTO open_requests (writer, id, body) SELECT writer, ?1, ?2 FROM writers LIMIT 1";
    let id = uuid::Uuid::parse_str(&answer.request_id()).unwrap();
    let body = json!({"account": relay.account.id, "key": "k", "model": MODEL, "started_at_ms": 1, "hold_nano_usd": 7});
    spool.execute(row, (id.as_bytes(), body.to_string())).unwrap();
    spool.execute(row, (uuid::Uuid::nil().as_bytes(), "{}")).unwrap();
    let audit = relay.cli(&["audit", "--json"]);
    assert!(!audit.status.success());
    let found: Value = serde_json::from_str(&audit.stdout).unwrap();
    let expected = json!([
        {"kind": "hold_unreadable", "id": "?", "stored_nano_usd": 0, "derived_nano_usd": null},
        {"kind": "hold_settled", "id": answer.request_id(), "stored_nano_usd": 7, "derived_nano_usd": 13_000},
    ]);
    assert_eq!(found, expected);
}

#[test]
fn a_spool_that_fails_ends_the_process_and_the_next_bills_what_ran() {
    let (first, others) = (Gate::new(), Gate::new());
    let upstream = begins(&first, &others);
    let relay = Setup::new(&upstream).start();
    let begin = || {
        let mut runs = Request::chat(&asked(true)).key(&relay.key).begin(relay.http);
        let id = runs.head().request_id();
        (runs, id)
    };
    let [(_ends, first_id), (_runs_on, second_id)] = [begin(), begin()];
    wait_for_open_requests(&relay, 2);
    let spool = Connection::open(relay.folder().join("spool.db")).unwrap();
    let broken = "CREATE TRIGGER broken BEFORE INSERT ON batches BEGIN SELECT RAISE(ABORT, 'broken'); END";
    spool.execute_batch(broken).unwrap();
    // Its upstream leaves, and its record finds the spool broken. The other lets the process live a little.
    first.open();
    until("the spool fails", || relay.stderr().contains("cannot be billed any more").then_some(()));
    relay.chat(&asked(false)).assert_error(503, "server_error", "billing_unavailable");
    assert_eq!(relay.wait_for_end().code(), Some(1));
    assert!(relay.stderr().contains("the spool failed"));
    spool.execute_batch("DROP TRIGGER broken").unwrap();
    drop(spool);
    relay.restart();
    let used = usage(&relay, 2);
    for id in [first_id, second_id] {
        assert!(used.iter().any(|used| used["request_id"] == *id && used["interrupted"] == true), "{used:?}");
    }
    assert_audited(&relay);
    others.open();
}

/// A second process at the same store and spool, on ports of its own; killed when it is dropped.
struct Sibling {
    child: Child,
    http: SocketAddr,
    _ports: [Reserved; 3],
}

impl Sibling {
    fn beside(relay: &Relay) -> Self {
        let ports = [(); 3].map(|()| Reserved::new());
        let mut config = fs::read_to_string(relay.config_path()).unwrap();
        for (own, other) in [relay.http, relay.admin, relay.metrics].into_iter().zip(&ports) {
            config = config.replace(&own.to_string(), &other.address.to_string());
        }
        fs::write(relay.folder().join("sibling.toml"), config).unwrap();
        let log = |name: &str| File::create(relay.folder().join(name)).unwrap();
        let child = support::relay::command(relay.folder(), relay.environment())
            .args(["serve", "--config", "sibling.toml"])
            .stdout(log("sibling-stdout.log"))
            .stderr(log("sibling-stderr.log"))
            .spawn()
            .unwrap();
        let sibling = Self { child, http: ports[0].address, _ports: ports };
        for port in &sibling._ports {
            until("the sibling", || Request::get("/readyz").try_send(port.address));
        }
        sibling
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_a_living_process_serves_is_a_hold_to_another_and_what_a_dead_one_served_its_to_settle() {
    let first = Gate::new();
    let (first_waits, count) = (first.clone(), AtomicU32::new(0));
    let upstream = Upstream::start(move |request, answer| {
        let model = &request.json()["model"];
        answer.begin_events();
        (0..1500).for_each(|_| answer.event(&word(model, " word")));
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            first_waits.wait();
        }
        answer.event(&finish(model));
        answer.event(&usage_chunk(model, 9, 1500));
        answer.event("[DONE]");
        answer.end();
    });
    let relay = Setup::new(&upstream).start();
    // What is left after the first is not enough for the input of a second.
    let account = relay.account("open", "0.0042");
    let key = relay.key_of(&account, &[]).key;
    let body = json!({"model": MODEL, "stream": true, "max_tokens": 2000,
        "messages": [{"role": "user", "content": "Say hello"}]});
    let mut connection = Request::chat(&body).key(&key).begin(relay.http);
    let head = connection.head();
    assert_eq!(head.status, 200);
    connection.read_until(" word");
    wait_for_open_requests(&relay, 1);

    let sibling = Sibling::beside(&relay);
    let refused = Request::chat(&json!({"model": MODEL, "max_tokens": 500,
        "messages": [{"role": "user", "content": "word ".repeat(200)}]}));
    until("the other's hold to count here", || {
        (refused.clone().key(&key).send(sibling.http).status == 402).then_some(())
    });
    assert!(relay.usage().is_empty(), "a living process's request is not settled by another");

    relay.signal("KILL");
    relay.wait_for_end();
    let bill = until("the dead process's request to be settled by the one that lives", || {
        relay.usage().into_iter().find(|row| row["request_id"] == head.request_id())
    });
    assert_eq!((&bill["interrupted"], &bill["estimated"], &bill["status"]), (&json!(true), &json!(true), &json!(200)));
    // The last checkpoint is at a thousand tokens or after.
    assert!((1000..=1600).contains(&bill["output_tokens"].as_u64().unwrap()), "{bill}");
    assert_audited(&relay);
    first.open();
}
