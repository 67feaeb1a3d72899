//! More than the relay can or may do: who comes late is told so at once, and who is being served notices nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::float_arithmetic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::frames::{END_HEADERS, END_STREAM, Frames, block, chat_fields, frame, kind};
use support::setup::MODEL;
use support::tls::{Authority, connect};
use support::upstream::{finish, word};
use support::{Connection, End, Gate, Relay, Request, Response, Setup, Upstream, until};

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn streamed() -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Say hello"}]})
}

#[track_caller]
fn assert_overloaded(answer: &Response) {
    answer.assert_error(503, "server_error", "overloaded");
    assert!(answer.number("retry-after") >= 1);
    assert!(answer.header("x-request-id").is_some());
}

/// An upstream whose streams say one word and end when the gate opens.
fn waiting(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::start(move |request, answer| {
        if request.json()["stream"] != true {
            return answer.politely(request);
        }
        let model = &request.json()["model"];
        answer.begin_events();
        answer.event(&word(model, "Once"));
        assert!(gate.wait());
        answer.event(&finish(model));
        answer.event("[DONE]");
        answer.end();
    })
}

/// A stream that has begun.
fn begin(relay: &Relay) -> Connection {
    let mut connection = Request::chat(&streamed()).key(&relay.key).begin(relay.http);
    assert_eq!(connection.head().status, 200);
    connection.read_until("Once");
    connection
}

#[track_caller]
fn assert_ends_whole(mut connection: Connection) {
    let (rest, end) = connection.rest();
    assert!(end == End::Clean && String::from_utf8_lossy(&rest).contains("[DONE]"), "{end:?}");
}

/// A connection that is kept after its first answer. What others have just closed may still take a place.
fn hold(relay: &Relay) -> Connection {
    let request = Request::get("/v1/models").key(&relay.key);
    until("a place for a connection", || {
        let mut connection = Connection::open(relay.http);
        (connection.ask(&request).status == 200).then_some(connection)
    })
}

#[test]
fn connections_of_one_address_are_limited() {
    let gate = Gate::new();
    let upstream = waiting(&gate);
    let authority = Authority::new("of the relay");
    let setup = Setup::new(&upstream).limits("connections_per_ip_max = 8");
    let relay = setup.https(&authority.certify("relay.test")).start();
    let running = begin(&relay);
    let idle: Vec<Connection> = (0..7).map(|_| hold(&relay)).collect();
    // One that says what it wants, and one that says nothing.
    let mut late = Request::chat(&hello()).key(&relay.key).begin(relay.http);
    assert_overloaded(&late.response());
    assert!(late.is_closed());
    let mut late = Connection::open(relay.http);
    assert_overloaded(&late.response());
    assert!(late.is_closed());
    let refused = connect(relay.https, "relay.test", &authority.client(&["http/1.1"]));
    assert!(refused.is_err(), "TLS is not spoken with one too many");
    assert!(relay.metric("tollgate_connections_closed_total", &[("reason", "too_many")]) >= 3.0);
    assert_eq!(Request::get("/healthz").send(relay.admin).status, 200, "machines are not counted");
    drop(idle);
    until("room", || (relay.chat(&hello()).status == 200).then_some(()));
    connect(relay.https, "relay.test", &authority.client(&["http/1.1"])).unwrap();
    gate.open();
    assert_ends_whole(running);
}

#[test]
fn a_reload_counts_for_those_who_connect_after_it() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("connections_per_ip_max = 4").start();
    let mut held: Vec<Connection> = (0..4).map(|_| hold(&relay)).collect();
    assert_eq!(Connection::open(relay.http).response().status, 503);
    relay.edit_config(|toml| toml.replace("connections_per_ip_max = 4", "connections_per_ip_max = 5"));
    until("the fifth to be let in", || (relay.chat(&hello()).status == 200).then_some(()));
    relay.edit_config(|toml| toml.replace("connections_per_ip_max = 5", "connections_per_ip_max = 2"));
    until("the fifth to be turned away", || (relay.chat(&hello()).status == 503).then_some(()));
    let ask = Request::chat(&hello()).key(&relay.key);
    for connection in &mut held {
        assert_eq!(connection.ask(&ask).status, 200, "who is there stays");
    }
}

#[test]
fn requests_under_way_are_limited() {
    let gate = Gate::new();
    let upstream = waiting(&gate);
    let relay = Setup::new(&upstream).limits("requests_in_flight_max = 2").start();
    let running = [begin(&relay), begin(&relay)];
    assert_eq!(relay.metric("tollgate_requests_in_flight", &[]), 2.0);
    for body in [hello(), streamed()] {
        assert_overloaded(&relay.chat(&body));
    }
    assert_eq!(upstream.count(), 2);
    assert!(relay.metric("tollgate_refusals_total", &[("code", "overloaded")]) >= 2.0);
    gate.open();
    running.into_iter().for_each(assert_ends_whole);
    until("room", || (relay.chat(&hello()).status == 200).then_some(()));
}

#[test]
fn past_its_share_of_the_memory_nothing_new_begins() {
    let gate = Gate::new();
    let upstream = waiting(&gate);
    let relay = Setup::new(&upstream).limits("memory_share_max = \"1\"").start();
    let running = begin(&relay);
    until("a look at the memory", || (relay.metric("tollgate_memory_used_bytes", &[]) > 0.5).then_some(()));
    assert_eq!(relay.chat(&hello()).status, 200);
    // As if there were less: a ten-thousandth of what there is, which the process alone takes.
    relay.edit_config(|toml| toml.replace("memory_share_max = \"1\"", "memory_share_max = \"0.0001\""));
    let refused = until("a refusal", || Some(relay.chat(&hello())).filter(|answer| answer.status != 200));
    assert_overloaded(&refused);
    let used = relay.metric("tollgate_memory_used_bytes", &[]);
    assert!(used > relay.metric("tollgate_memory_limit_bytes", &[]));
    assert_eq!(Request::get("/healthz").send(relay.admin).status, 200);
    gate.open();
    assert_ends_whole(running);
    relay.edit_config(|toml| toml.replace("memory_share_max = \"0.0001\"", "memory_share_max = \"1\""));
    until("room", || (relay.chat(&hello()).status == 200).then_some(()));
}

/// The longest stream of the test: more than every buffer on its way holds.
const LONG_BYTES: usize = 512 * 1024 * 1024;

/// Streams without an end to who asks for it, and counts what of it has been taken.
fn endless(taken: &Arc<AtomicUsize>) -> Upstream {
    let taken = Arc::clone(taken);
    Upstream::start(move |request, answer| {
        if request.json()["user"] != "endless" {
            return answer.politely(request);
        }
        answer.begin_events();
        let event = format!("data: {}\n\n", word(&request.json()["model"], &"word ".repeat(800)));
        for _ in 0..LONG_BYTES / event.len() {
            answer.chunk(event.as_bytes());
            taken.fetch_add(event.len(), Ordering::SeqCst);
        }
    })
}

/// One client takes nothing of a long stream; fifty others get theirs, and what the relay holds does not grow.
fn assert_alone_with_it(relay: &Relay, taken: &AtomicUsize, ask: impl FnOnce()) {
    assert_eq!(relay.chat(&streamed()).status, 200);
    let resident = || relay.metric("process_resident_memory_bytes", &[]);
    let before = resident();
    ask();
    until("the long stream", || (taken.load(Ordering::SeqCst) > 0).then_some(()));
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let answer = relay.chat(&streamed());
                    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"), "{}", answer.text());
                }
            });
        }
    });
    let mut looks = (0, 0);
    until("the long stream to stand still", || {
        let now = taken.load(Ordering::SeqCst);
        looks = if looks.0 == now { (now, looks.1 + 1) } else { (now, 0) };
        (looks.1 >= 50).then_some(())
    });
    let (taken, grown) = (taken.load(Ordering::SeqCst), resident() - before);
    println!("the slow reader's stream: {taken} bytes were taken from the provider; the relay grew by {grown} bytes");
    assert!(taken < 64 * 1024 * 1024, "{taken} bytes were read for who reads nothing");
    assert!(grown < 96.0 * 1024.0 * 1024.0, "the relay grew by {grown} bytes");
}

#[test]
fn a_large_answer_passes_through_small_buffers() {
    let large = "word ".repeat(2 * 1024 * 1024);
    let text = large.clone();
    let upstream = Upstream::start(move |_, answer| {
        let message = json!({"role": "assistant", "content": text});
        let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
        answer.json(200, &json!({"id": "x", "choices": [choice], "usage": support::upstream::usage(9, 2)}));
    });
    let relay = Setup::new(&upstream).listen("h2c = true").start();
    let request = Request::chat(&hello()).key(&relay.key);
    for answer in [request.send(relay.http), support::h2c::send(&request, relay.http)] {
        assert_eq!((answer.status, answer.end), (200, End::Clean));
        assert!(answer.json()["choices"][0]["message"]["content"] == large.as_str());
    }
}

fn endless_body() -> Value {
    let mut body = streamed();
    body["user"] = json!("endless");
    body
}

#[test]
fn a_slow_reader_slows_itself_alone() {
    let taken = Arc::new(AtomicUsize::new(0));
    let upstream = endless(&taken);
    let relay = Setup::new(&upstream).start();
    let mut slow = None;
    assert_alone_with_it(&relay, &taken, || {
        slow = Some(Request::chat(&endless_body()).key(&relay.key).begin(relay.http));
    });
}

#[test]
fn a_slow_reader_over_h2_slows_itself_alone() {
    let taken = Arc::new(AtomicUsize::new(0));
    let upstream = endless(&taken);
    let relay = Setup::new(&upstream).listen("h2c = true").start();
    let mut slow = None;
    assert_alone_with_it(&relay, &taken, || {
        let mut client = Frames::open(relay.http);
        // As much as it may have on its way: windows do not help, for nothing is read.
        client.send(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        client.send(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xf0, 0, 0]);
        let (bearer, body) = (format!("Bearer {}", relay.key), endless_body().to_string());
        for stream in [1, 3, 5, 7] {
            client.raw(&frame(kind::HEADERS, END_HEADERS, stream, &block(&chat_fields(&bearer, &[]))));
            client.send(kind::DATA, END_STREAM, stream, body.as_bytes());
        }
        slow = Some(client);
    });
}
