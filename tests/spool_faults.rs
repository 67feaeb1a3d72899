//! The spool's disk full, and broken: what is sold then, and what becomes of what was sold before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::setup::MODEL;
use support::upstream::{finish, usage_chunk, word};
use support::{Answer, Gate, Received, Relay, Request, Response, Setup, Upstream, until, within};
use tempfile::TempDir;

fn hello() -> Value {
    json!({"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn streamed() -> Value {
    json!({"model": MODEL, "max_tokens": 100, "stream": true, "messages": [{"role": "user", "content": "Say hello"}]})
}

/// A stream that ends when the gate is opened.
fn in_two(request: &Received, answer: &mut Answer, gate: &Gate) {
    let model = &request.json()["model"];
    answer.begin_events();
    answer.event(&word(model, "Hello"));
    assert!(gate.wait());
    answer.event(&finish(model));
    answer.event(&usage_chunk(model, 9, 2));
    answer.event("[DONE]");
    answer.end();
}

/// The shim that lets the spool's syncs fail, built into that folder.
fn sync_fault(folder: &Path) -> PathBuf {
    let library = folder.join("sync_fault.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/sync_fault.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    assert!(compiled.expect("a C compiler is needed for the build already").success());
    library
}

/// Each of those is billed once, and nothing is at odds.
#[track_caller]
fn assert_billed_once(relay: &Relay, answers: &[Response]) {
    for answer in answers {
        relay.usage_of(&answer.request_id());
    }
    let rows = relay.usage();
    for answer in answers {
        let bills = rows.iter().filter(|row| row["request_id"] == answer.request_id()).count();
        assert_eq!(bills, 1, "{}", answer.request_id());
    }
    let audit = relay.cli(&["audit"]);
    assert!(audit.status.success(), "{}{}", audit.stdout, audit.stderr);
    let spent: i64 = rows.iter().map(|row| row["cost_nano_usd"].as_i64().unwrap()).sum();
    assert_eq!(relay.balance(&relay.account), 10_000_000_000 - spent);
}

#[test]
fn a_disk_that_fails_a_sync_ends_the_process_and_loses_nothing_acknowledged() {
    let tools = TempDir::new().unwrap();
    let fault = tools.path().join("fault");
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream)
        .billing("durability = \"power\"")
        .env("LD_PRELOAD", sync_fault(tools.path()).to_str().unwrap())
        .env("TOLLGATE_TEST_SYNC_FAULT", fault.to_str().unwrap())
        .start();
    let mut answers: Vec<_> = (0..5).map(|_| relay.chat(&hello())).collect();
    assert!(answers.iter().all(|answer| answer.status == 200));

    fs::write(&fault, "").unwrap();
    let refused = relay.chat(&hello());
    refused.assert_error(503, "server_error", "billing_unavailable");
    // Whoever comes until it has ended gets the same.
    while let Some(answer) =
        Request::chat(&streamed()).key(&relay.key).try_begin(relay.http).and_then(|mut c| c.try_head())
    {
        assert_eq!(answer.status, 503);
    }
    let status = relay.wait_for_end();
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    assert!(relay.stderr().contains("spool"), "{}", relay.stderr());

    fs::remove_file(&fault).unwrap();
    relay.restart();
    let after = relay.chat(&hello());
    assert_eq!(after.status, 200);
    answers.push(after);
    assert_billed_once(&relay, &answers);
}

#[test]
fn a_stream_whose_record_cannot_be_kept_does_not_end_well() {
    let tools = TempDir::new().unwrap();
    let fault = tools.path().join("fault");
    let go_on = Gate::new();
    let gate = go_on.clone();
    let upstream = Upstream::start(move |request, answer| in_two(request, answer, &gate));
    let relay = Setup::new(&upstream)
        .billing("durability = \"power\"")
        .env("LD_PRELOAD", sync_fault(tools.path()).to_str().unwrap())
        .env("TOLLGATE_TEST_SYNC_FAULT", fault.to_str().unwrap())
        .start();
    let mut connection = Request::chat(&streamed()).key(&relay.key).begin(relay.http);
    let mut answer = connection.head();
    answer.body = connection.read_until("Hello").into_bytes();
    fs::write(&fault, "").unwrap();
    go_on.open();
    answer.body.extend(connection.rest().0);
    assert!(!answer.text().contains("[DONE]"), "{}", answer.text());
    let last: Value = serde_json::from_str(answer.events().last().unwrap()).unwrap();
    support::client::assert_error_object(&last, "server_error", "billing_unavailable");
    assert!(!relay.wait_for_end().success());
}

/// A file system of its own, of that many bytes, for as long as the value lives.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount(bytes: usize) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let options = format!("size={bytes},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_spool_refuses_before_it_asks_and_settles_what_runs() {
    let Some(disk) = SmallDisk::mount(1 << 20) else {
        println!("skipped: mounting a tmpfs needs root");
        return;
    };
    if support::store::server().is_some() {
        println!("skipped: it is SQLite's lock that keeps the ledger from being written");
        return;
    }
    let go_on = Gate::new();
    let gate = go_on.clone();
    let upstream = Upstream::start(move |request, answer| {
        if request.json()["stream"] == true { in_two(request, answer, &gate) } else { answer.politely(request) }
    });
    let spool = disk.0.path().join("spool.db");
    let relay = Setup::new(&upstream).spool(&spool).start();
    // Nothing leaves the spool for as long as the ledger cannot be written.
    let ledger = rusqlite::Connection::open(relay.folder().join("tollgate.db")).unwrap();
    ledger.busy_timeout(Duration::from_secs(20)).unwrap();
    ledger.execute_batch("BEGIN IMMEDIATE").unwrap();

    let mut streams: Vec<_> = (0..10).map(|_| Request::chat(&streamed()).key(&relay.key).begin(relay.http)).collect();
    let mut running: Vec<_> = streams.iter_mut().map(|stream| stream.head()).collect();
    let mut answers = Vec::new();
    let refused = loop {
        let some: Vec<Response> = thread::scope(|scope| {
            let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| relay.chat(&hello()))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let (good, bad): (Vec<_>, Vec<_>) = some.into_iter().partition(|answer| answer.status == 200);
        answers.extend(good);
        if let Some(refused) = bad.into_iter().next() {
            break refused;
        }
        assert!(answers.len() < 100_000, "one MiB takes no end");
    };
    refused.assert_error(503, "server_error", "billing_unavailable");
    assert!(refused.header("retry-after").is_some());
    assert!(answers.len() > 100, "hardly anything fits: {}", answers.len());
    // Where several do not fit one may still, and what was reckoned is measured now and then.
    until("it to be full for everyone", || {
        let asked = upstream.count();
        let answer = relay.chat(&hello());
        if answer.status == 200 {
            answers.push(answer);
            return None;
        }
        assert_eq!(upstream.count(), asked, "it is refused before a provider is asked");
        (Request::get("/readyz").send(relay.admin).status == 503).then_some(())
    });

    go_on.open();
    for (answer, mut stream) in running.iter_mut().zip(streams) {
        answer.body = stream.rest().0;
        assert!(answer.text().contains("[DONE]"), "what runs settles: {}", answer.text());
    }

    ledger.execute_batch("ROLLBACK").unwrap();
    drop(ledger);
    until("the spool to have room again", || (relay.chat(&hello()).status == 200).then_some(()));
    answers.append(&mut running);
    let all = within(Duration::from_secs(60), || (relay.usage().len() >= answers.len()).then_some(()));
    assert!(all.is_some(), "{} answers, {} bills", answers.len(), relay.usage().len());
    assert_billed_once_in_bulk(&relay, &answers);
}

/// As [`assert_billed_once`], for thousands.
#[track_caller]
fn assert_billed_once_in_bulk(relay: &Relay, answers: &[Response]) {
    let rows = relay.usage();
    let mut billed: Vec<&str> = rows.iter().map(|row| row["request_id"].as_str().unwrap()).collect();
    billed.sort_unstable();
    assert!(billed.windows(2).all(|two| two[0] != two[1]), "a request is billed twice");
    for answer in answers {
        assert!(billed.binary_search(&&*answer.request_id()).is_ok(), "not billed: {}", answer.request_id());
    }
    let audit = relay.cli(&["audit"]);
    assert!(audit.status.success(), "{}{}", audit.stdout, audit.stderr);
}
