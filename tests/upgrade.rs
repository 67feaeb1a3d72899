//! One process takes over from another while clients are served, and processes that end: nobody is refused, cut, or billed twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use support::setup::MODEL;
use support::tls::{Authority, connect};
use support::upstream::{finish, usage_chunk, word};
use support::{Connection, End, Gate, Manager, Relay, Request, Reserved, Setup, Upstream, until};

fn asked(text: &str, stream: bool) -> Value {
    json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": text}]})
}

/// Answers at once, but streams that are asked to wait end when the gate opens.
fn waits_for(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::start(move |request, answer| {
        let body = request.json();
        if body["messages"][0]["content"] != "wait" {
            return answer.politely(request);
        }
        let model = &body["model"];
        answer.begin_events();
        answer.event(&word(model, "Once"));
        gate.wait();
        answer.event(&word(model, " upon a time"));
        answer.event(&finish(model));
        answer.event(&usage_chunk(model, 9, 4));
        answer.event("[DONE]");
        answer.end();
    })
}

/// A stream that has begun, and its request's id.
fn begin(relay: &Relay, key: &str) -> (Connection, String) {
    let mut stream = Request::chat(&asked("wait", true)).key(key).begin(relay.http);
    let head = stream.head();
    assert_eq!(head.status, 200, "{:?}", stream.rest());
    stream.read_until("Once");
    (stream, head.request_id())
}

#[track_caller]
fn assert_whole(stream: &mut Connection) {
    let (rest, end) = stream.rest();
    let rest = String::from_utf8_lossy(&rest);
    assert!(end == End::Clean && rest.contains("upon a time") && rest.ends_with("data: [DONE]\n\n"), "{end:?}: {rest}");
}

#[track_caller]
fn assert_audited(relay: &Relay) {
    let audit = relay.cli(&["audit"]);
    assert!(audit.status.success(), "{}", audit.stdout);
}

fn is_alive(pid: u32) -> bool {
    // One that nobody has asked for its status is a zombie, and has none of this.
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// What a client saw that asks as fast as it is answered.
#[derive(Default)]
struct Seen {
    ids: Mutex<Vec<String>>,
    failures: Mutex<Vec<String>>,
}

impl Seen {
    /// Asks until it is told to stop, on connections of their own or on one for as long as it is kept.
    fn ask(&self, relay: &Relay, keeps: bool, over: &AtomicBool) {
        let mut kept = None;
        while !over.load(Ordering::SeqCst) {
            let mut request = Request::chat(&asked("now", false)).key(&relay.key);
            if !keeps {
                request = request.header("connection", "close");
            }
            let Ok(mut connection) = kept.take().map_or_else(|| Connection::try_open(relay.http), Ok) else {
                self.failed("no connection");
                continue;
            };
            connection.write(&request.bytes());
            let Some(head) = connection.try_head() else {
                self.failed("closed without an answer");
                continue;
            };
            let (body, end) = connection.rest();
            if head.status != 200 || end != End::Clean {
                self.failed(&format!("{} {end:?} {}", head.status, String::from_utf8_lossy(&body)));
                continue;
            }
            self.ids.lock().unwrap().push(head.request_id());
            let closes = head.header("connection").is_some_and(|it| it.eq_ignore_ascii_case("close"));
            kept = (keeps && !closes).then_some(connection);
        }
    }

    fn failed(&self, why: &str) {
        self.failures.lock().unwrap().push(why.to_owned());
    }

    #[track_caller]
    fn assert_none_failed(&self) -> usize {
        let failures = self.failures.lock().unwrap();
        let mut kinds = BTreeMap::<&str, usize>::new();
        failures.iter().for_each(|why| *kinds.entry(why).or_default() += 1);
        let served = self.ids.lock().unwrap().len();
        assert!(failures.is_empty(), "of {served}: {kinds:?}");
        served
    }
}

/// Does something while clients ask as fast as they are answered, four of eight on connections that they keep.
fn under_load(relay: &Relay, work: impl FnOnce(&Seen)) -> Seen {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (seen, over) = (Seen::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (seen, over) = (&seen, &over);
            scope.spawn(move || seen.ask(relay, number % 2 == 0, over));
        }
        let _stop = Stop(&over);
        work(&seen);
    });
    seen
}

/// Waits until so many more requests were served.
fn more(seen: &Seen, count: usize) {
    let before = seen.ids.lock().unwrap().len();
    until("clients to be served", || (seen.ids.lock().unwrap().len() >= before + count).then_some(()));
}

#[test]
fn three_upgrades_under_load_fail_nobody_cut_nothing_and_bill_each_request_once() {
    let gate = Gate::new();
    let upstream = waits_for(&gate);
    let manager = Manager::new();
    let relay = manager.of(Setup::new(&upstream)).start();
    let streams: Vec<_> = (0..200).map(|_| begin(&relay, &relay.key)).collect();
    let began = Instant::now();
    let mut pids = vec![relay.pid()];
    let seen = under_load(&relay, |seen| {
        more(seen, 200);
        for _ in 0..3 {
            pids.push(manager.upgrade(&relay));
            more(seen, 200);
        }
    });
    let served = seen.assert_none_failed();
    println!("{served} requests in {:?}, over three upgrades, with {} streams", began.elapsed(), streams.len());
    assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 4);
    assert!(is_alive(pids[0]), "the first still has its streams");
    gate.open();
    let ends = |(mut stream, id): (Connection, String)| {
        assert_whole(&mut stream);
        id
    };
    let mut ids: Vec<String> = streams.into_iter().map(ends).collect();
    assert!(relay.wait_for_end().success(), "{}", relay.stderr());
    until("the others to end", || pids[1..3].iter().all(|pid| !is_alive(*pid)).then_some(()));
    assert!(is_alive(pids[3]));

    ids.append(&mut seen.ids.lock().unwrap());
    let usage = until("every request to be billed", || Some(relay.usage()).filter(|usage| usage.len() >= ids.len()));
    let mut billed: Vec<&str> = usage.iter().map(|used| used["request_id"].as_str().unwrap()).collect();
    billed.sort_unstable();
    ids.sort_unstable();
    assert_eq!(billed, ids);
    assert!(usage.iter().all(|used| used["interrupted"] == false && used["estimated"] == false));
    let cost: i64 = usage.iter().map(|used| used["cost_nano_usd"].as_i64().unwrap()).sum();
    assert_eq!(relay.balance(&relay.account), 10_000_000_000 - cost);
    assert_audited(&relay);
}

#[test]
fn a_connection_that_is_kept_has_one_more_answer_of_the_old_process_and_is_told_to_leave() {
    let gate = Gate::new();
    let upstream = waits_for(&gate);
    let manager = Manager::new();
    let authority = Authority::new("of the relay");
    let relay = manager.of(Setup::new(&upstream)).https(&authority.certify("relay.test")).start();
    let secured = || connect(relay.https, "relay.test", &authority.client(&[])).unwrap().0;
    let mut kept = [Connection::open(relay.http), secured()];
    let ask = Request::chat(&asked("now", false)).key(&relay.key);
    for connection in &mut kept {
        assert_ne!(connection.ask(&ask).header("connection"), Some("close"));
    }
    let old = relay.pid();
    manager.upgrade(&relay);
    assert!(is_alive(old), "for as long as somebody may still ask");
    let [last, _] = kept.each_mut().map(|connection| {
        let last = connection.ask(&ask);
        assert_eq!((last.status, last.header("connection")), (200, Some("close")), "{}", last.text());
        assert!(connection.is_closed());
        last
    });
    assert_eq!(secured().ask(&ask).status, 200);
    assert!(relay.wait_for_end().success(), "{}", relay.stderr());
    assert_eq!(relay.usage_of(&last.request_id())["cost_nano_usd"], 13_000);
    assert_eq!(Request::get("/readyz").send(relay.admin).status, 200);
    assert!(relay.metrics_page().contains("tollgate_"));
    gate.open();
}

#[test]
fn an_upgrade_takes_up_what_a_restart_would() {
    let upstream = Upstream::polite();
    let manager = Manager::new();
    let relay = manager.of(Setup::new(&upstream)).start();
    let elsewhere = Reserved::new();
    relay.edit_config(|text| text.replace(&relay.metrics.to_string(), &elsewhere.address.to_string()));
    manager.upgrade(&relay);
    assert_eq!(Request::get("/metrics").send(elsewhere.address).status, 200);
    assert!(relay.wait_for_end().success());
    assert!(Connection::try_open(relay.metrics).is_err(), "nobody listens there any more");
    assert_eq!(relay.chat(&asked("now", false)).status, 200);
}

#[test]
fn what_a_key_has_taken_is_taken_after_an_upgrade() {
    let gate = Gate::new();
    let upstream = waits_for(&gate);
    let manager = Manager::new();
    let relay = manager.of(Setup::new(&upstream)).start();
    let windowed = relay.key_of(&relay.account, &["--rpm", "3"]).key;
    let alone = relay.key_of(&relay.account, &["--concurrency", "1"]).key;
    // What the running stream holds leaves nothing for a second.
    let poor = relay.account("open", "0.033");
    let poor_key = relay.key_of(&poor, &[]).key;
    let ask = |key: &str| Request::chat(&asked("now", false)).key(key).header("connection", "close").send(relay.http);
    assert_eq!([ask(&windowed).status, ask(&windowed).status], [200, 200]);
    let (mut stream, _) = begin(&relay, &alone);
    let mut limited = asked("wait", true);
    limited["max_tokens"] = json!(16_384);
    let mut held = Request::chat(&limited).key(&poor_key).begin(relay.http);
    assert_eq!(held.head().status, 200);
    held.read_until("Once");
    manager.upgrade(&relay);
    let mut large = asked(&"word ".repeat(400), false);
    large["max_tokens"] = json!(1);
    let refused = Request::chat(&large).key(&poor_key).send(relay.http);
    refused.assert_error(402, "insufficient_quota", "insufficient_credits");
    ask(&alone).assert_error(429, "rate_limit_error", "concurrency_limit_exceeded");
    assert_eq!([ask(&windowed).status, ask(&windowed).status], [200, 429]);
    gate.open();
    assert_whole(&mut stream);
    assert_whole(&mut held);
    drop((stream, held));
    assert!(relay.wait_for_end().success());
    until("the old process's request to be forgotten", || (ask(&alone).status == 200).then_some(()));
    assert_audited(&relay);
}

#[test]
fn a_new_process_that_fails_leaves_the_old_one_serving() {
    let upstream = Upstream::polite();
    let manager = Manager::new();
    let relay = manager.of(Setup::new(&upstream)).start();
    let serves = || assert_eq!(relay.chat(&asked("now", false)).status, 200);
    let fails = |told: &str, times: usize| {
        relay.signal("USR2");
        until(told, || (relay.stderr().matches(told).count() >= times).then_some(()));
        serves();
    };
    let config = fs::read_to_string(relay.config_path()).unwrap();
    relay.edit_config(|text| format!("{text}\n[nonsense]\n"));
    fails("the configuration cannot be used", 1);
    relay.edit_config(|_| config);

    let binary = fs::read_link(relay.binary()).unwrap();
    fs::remove_file(relay.binary()).unwrap();
    fails("a new process could not be started", 1);
    fs::write(relay.binary(), "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(relay.binary(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fails("a new process could not be started", 2);
    fs::remove_file(relay.binary()).unwrap();
    std::os::unix::fs::symlink(binary, relay.binary()).unwrap();

    // One that is ready, and breaks off before it has said that it takes over: at that time nobody is let in.
    let folder = relay.folder().join("spool.db.upgrade");
    let socket = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut breaks_off = UnixStream::connect(socket).unwrap();
    breaks_off.write_all(b"\"Ready\"\n").unwrap();
    let mut words = BufReader::new(breaks_off).lines();
    let stopped = words.by_ref().map(Result::unwrap).find(|word| word.contains("Stopped"));
    assert!(stopped.is_some());
    drop(words);
    serves();
    assert_eq!(manager.count("MAINPID="), 0);
    let old = relay.pid();
    assert!(is_alive(old));
    manager.upgrade(&relay);
    serves();
    assert!(relay.wait_for_end().success());
    assert_audited(&relay);
}

#[test]
fn who_has_nobody_to_take_over_from_says_so() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    relay.signal("TERM");
    relay.wait_for_end();
    let alone = relay.cli(&["serve", "--upgrade"]);
    assert_eq!(alone.status.code(), Some(1));
    assert!(alone.stderr.contains("was not taken over from"), "{}", alone.stderr);
}

#[test]
fn the_service_manager_hears_of_start_reload_and_end_and_of_a_life() {
    let upstream = Upstream::polite();
    let manager = Manager::new();
    let relay = manager.of(Setup::new(&upstream)).env("WATCHDOG_USEC", "200000").start();
    manager.wait_for("WATCHDOG=1", 3);
    relay.signal("HUP");
    manager.wait_for("READY=1", 2);
    relay.signal("TERM");
    assert!(relay.wait_for_end().success());
    let heard = manager.heard();
    let place = |line: &str| heard.iter().position(|heard| heard.starts_with(line)).unwrap();
    assert!(place("READY=1") < place("RELOADING=1") && place("RELOADING=1") < place("STOPPING=1"), "{heard:?}");
    assert_eq!(heard[place("RELOADING=1") + 1].split('=').next(), Some("MONOTONIC_USEC"));
}

#[test]
fn a_hundred_reloads_under_load_fail_nobody() {
    let upstream = Upstream::polite();
    let manager = Manager::new();
    let relay = manager.of(Setup::new(&upstream)).start();
    let seen = under_load(&relay, |seen| {
        more(seen, 50);
        for count in 1..=100 {
            relay.signal("HUP");
            manager.wait_for("RELOADING=1", count);
            manager.wait_for("READY=1", count + 1);
        }
        more(seen, 50);
    });
    let served = seen.assert_none_failed();
    println!("{served} requests over a hundred reloads");
    assert!(relay.metric("tollgate_config_reloads_total", &[("outcome", "ok")]) >= 100.0);
    assert_audited(&relay);
}

#[test]
fn a_stop_lets_fifty_streams_end_and_tells_who_asks_meanwhile() {
    let gate = Gate::new();
    let upstream = waits_for(&gate);
    let relay = Setup::new(&upstream).start();
    let mut kept = Connection::open(relay.http);
    let ask = Request::chat(&asked("now", false)).key(&relay.key);
    assert_eq!(kept.ask(&ask).status, 200);
    let mut streams: Vec<_> = (0..50).map(|_| begin(&relay, &relay.key)).collect();
    relay.signal("TERM");
    until("the listener to close", || Connection::try_open(relay.http).is_err().then_some(()));
    let refused = kept.ask(&ask);
    assert_eq!(refused.header("connection"), Some("close"));
    refused.assert_error(503, "server_error", "shutting_down");
    gate.open();
    streams.iter_mut().for_each(|(stream, _)| assert_whole(stream));
    assert!(relay.wait_for_end().success(), "{}", relay.stderr());
    let usage = relay.usage();
    assert_eq!(usage.iter().filter(|used| used["interrupted"] == false).count(), 51);
    assert_audited(&relay);
}

#[test]
fn http2_connections_are_told_to_leave_and_end_what_they_are_at() {
    let gate = Gate::new();
    let upstream = waits_for(&gate);
    let manager = Manager::new();
    let relay = manager.of(Setup::new(&upstream).listen("h2c = true")).start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for signal in ["USR2", "TERM"] {
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(relay.http).await.unwrap();
            let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
            let connection = tokio::spawn(connection);
            let head = http::Request::post("http://relay.test/v1/chat/completions");
            let head = head.header("authorization", format!("Bearer {}", relay.key)).body(()).unwrap();
            let (answer, mut body) = client.send_request(head, false).unwrap();
            body.send_data(asked("wait", true).to_string().into(), true).unwrap();
            let mut answer = answer.await.unwrap().into_body();
            let mut read = answer.data().await.unwrap().unwrap().to_vec();
            match signal {
                "USR2" => drop(manager.upgrade(&relay)),
                _ => relay.signal(signal),
            }
            gate.open();
            while let Some(piece) = answer.data().await {
                let piece = piece.unwrap();
                answer.flow_control().release_capacity(piece.len()).unwrap();
                read.extend(piece);
            }
            assert!(String::from_utf8_lossy(&read).ends_with("data: [DONE]\n\n"));
            drop((client, answer));
            tokio::time::timeout(support::PATIENCE, connection).await.unwrap().unwrap().unwrap();
        });
    }
    assert!(relay.wait_for_end().success());
}

#[test]
fn who_is_told_twice_to_end_ends_at_once_and_so_who_is_interrupted() {
    for signals in [["TERM", "TERM"], ["TERM", "INT"]] {
        let gate = Gate::new();
        let upstream = waits_for(&gate);
        let relay = Setup::new(&upstream).start();
        let (mut stream, id) = begin(&relay, &relay.key);
        relay.signal(signals[0]);
        until("the listener to close", || Connection::try_open(relay.http).is_err().then_some(()));
        relay.signal(signals[1]);
        assert!(relay.wait_for_end().success());
        assert_eq!(stream.rest().1, End::Cut);
        let bill = relay.usage_of(&id);
        assert_eq!(bill["interrupted"], true);
        assert_audited(&relay);
        gate.open();
    }
}

#[test]
fn a_stop_waits_no_longer_than_it_may() {
    let gate = Gate::new();
    let upstream = waits_for(&gate);
    let relay = Setup::new(&upstream).limits("shutdown_seconds_max = 1").start();
    let (mut stream, _) = begin(&relay, &relay.key);
    relay.signal("TERM");
    assert!(relay.wait_for_end().success());
    assert_eq!(stream.rest().1, End::Cut);
    assert!(relay.stderr().contains("limits.shutdown_seconds_max is over"));
    assert_audited(&relay);
    gate.open();
}
