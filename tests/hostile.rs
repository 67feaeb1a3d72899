//! Clients that take their time, say too much or say what is not theirs to say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::float_arithmetic)]

mod support;

use serde_json::{Value, json};
use support::frames::{END_HEADERS, Frames, PREFACE, block, chat_fields, frame, kind};
use support::setup::{MODEL, PROVIDER_KEY};
use support::tls::{Authority, connect};
use support::{Connection, Relay, Request, Setup, Upstream, h2c, until};

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

/// Heads have a second; everything else has as long as the test has patience.
fn hasty(upstream: &Upstream, more: &str) -> Setup {
    Setup::new(upstream).limits("header_seconds_max = 1").limits(more).listen("h2c = true")
}

/// Writes a byte at a time, between two looks, for as long as the other side listens.
#[track_caller]
fn trickle(what: &str, client: &mut Frames, bytes: &[u8]) {
    let mut left = bytes.iter();
    until(what, || {
        let byte = left.next().unwrap_or_else(|| panic!("{what}: all of it was taken"));
        (!client.raw(&[*byte]) || client.has_ended()).then_some(())
    });
}

fn too_slow(relay: &Relay) -> f64 {
    relay.metric("tollgate_connections_closed_total", &[("reason", "too_slow")])
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let upstream = Upstream::polite();
    let authority = Authority::new("of the relay");
    let relay = hasty(&upstream, "").https(&authority.certify("relay.test")).start();
    let before = too_slow(&relay);
    let https = relay.https;
    let hello_of_tls = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 100]].concat();
    let bearer = format!("Bearer {}", relay.key);
    let head = block(&chat_fields(&bearer, &[]));
    let silences: Vec<(&str, Frames)> = vec![
        ("nothing at all", Frames::silent(relay.http)),
        ("no handshake", Frames::silent(https)),
        ("half a handshake", said(https, &hello_of_tls)),
        ("half a head", said(relay.http, b"GET /v1/models HTTP/1.1\r\nhost: a\r\n")),
        ("half a preface", said(relay.http, &PREFACE[..20])),
        ("a preface and no settings", said(relay.http, PREFACE)),
        ("half of the settings", said(relay.http, &[PREFACE, &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4]].concat())),
        ("a head that is not continued", opened(relay.http, &frame(kind::HEADERS, 0, 1, &head))),
        ("half a frame of a head", {
            let whole = frame(kind::HEADERS, END_HEADERS, 1, &head);
            opened(relay.http, &whole[..whole.len() - 5])
        }),
    ];
    let count = silences.len();
    std::thread::scope(|scope| {
        for (what, mut client) in silences {
            scope.spawn(move || until(what, || client.has_ended().then_some(())));
        }
        scope.spawn(|| {
            // After the handshake, too.
            let (mut connection, _) = connect(https, "relay.test", &authority.client(&["http/1.1"])).unwrap();
            assert!(connection.is_closed());
        });
    });
    let closed = too_slow(&relay) - before;
    assert!(closed > f64::from(u32::try_from(count).unwrap()), "{closed} of {}", count + 1);
    assert_eq!(relay.chat(&hello()).status, 200);
}

fn said(to: std::net::SocketAddr, bytes: &[u8]) -> Frames {
    let mut client = Frames::silent(to);
    client.raw(bytes);
    client
}

fn opened(to: std::net::SocketAddr, bytes: &[u8]) -> Frames {
    let mut client = Frames::open(to);
    client.raw(bytes);
    client
}

#[test]
fn a_head_has_its_time_in_all_however_it_comes() {
    let upstream = Upstream::polite();
    let relay = hasty(&upstream, "keep_alive_seconds_max = 3600").start();
    let head = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nx-slow: {}\r\n\r\n", "y".repeat(10_000));
    let first = |kept: bool| {
        let mut client = Frames::silent(relay.http);
        if kept {
            let request = Request::get("/v1/models").key(&relay.key);
            client.raw(&request.bytes());
            until("an answer", || client.answered().then_some(()));
        }
        client
    };
    let (head, relay) = (head.as_bytes(), &relay);
    std::thread::scope(|scope| {
        scope.spawn(|| trickle("the first head", &mut first(false), head));
        scope.spawn(|| trickle("the second head on a connection", &mut first(true), head));
        scope.spawn(|| {
            let bearer = format!("Bearer {}", relay.key);
            let head =
                frame(kind::HEADERS, END_HEADERS, 1, &block(&chat_fields(&bearer, &[("x-slow", &"y".repeat(10_000))])));
            trickle("a head over h2", &mut Frames::open(relay.http), &head);
        });
        scope.spawn(|| {
            // A stream that is under way keeps the connection, and not the head of the next.
            let mut client = Frames::open(relay.http);
            let bearer = format!("Bearer {}", relay.key);
            client.raw(&frame(kind::HEADERS, END_HEADERS, 1, &block(&chat_fields(&bearer, &[]))));
            client.raw(&frame(kind::HEADERS, 0, 3, &block(&chat_fields(&bearer, &[]))));
            trickle("a head beside a stream", &mut client, &frame(kind::CONTINUATION, END_HEADERS, 3, &[0; 10_000]));
        });
    });
}

#[test]
fn a_connection_without_a_request_ends() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("keep_alive_seconds_max = 1").listen("h2c = true").start();
    let mut kept = Connection::open(relay.http);
    assert_eq!(kept.ask(&Request::get("/v1/models").key(&relay.key)).status, 200);
    assert!(kept.is_closed());
    let mut silent = Frames::open(relay.http);
    until("the end of a connection without streams", || silent.has_ended().then_some(()));
    let mut pinging = Frames::open(relay.http);
    until("the end of a connection that pings", || {
        (!pinging.send(kind::PING, 0, 0, &[0; 8]) || pinging.has_ended()).then_some(())
    });
    assert_eq!(too_slow(&relay), 0.0, "to have nothing to say is no fault");
}

/// The answer to a body that is late, over h2: its text.
fn late_over_h2(client: &mut Frames) -> String {
    let head = client.next_of(kind::HEADERS).expect("no answer");
    assert_eq!(head.status(), 408);
    String::from_utf8(client.next_of(kind::DATA).unwrap().payload).unwrap()
}

#[test]
fn a_body_may_pause_for_so_long() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("body_idle_seconds_max = 1").listen("h2c = true").start();
    let request = Request::chat(&hello()).key(&relay.key).bytes();
    let mut connection = Connection::open(relay.http);
    connection.write(&request[..request.len() - 5]);
    connection.response().assert_error(408, "invalid_request_error", "request_timeout");
    let bearer = format!("Bearer {}", relay.key);
    let mut client = Frames::open(relay.http);
    client.raw(&frame(kind::HEADERS, END_HEADERS, 1, &block(&chat_fields(&bearer, &[]))));
    client.send(kind::DATA, 0, 1, b"{");
    assert!(late_over_h2(&mut client).contains("request_timeout"));
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_body_has_its_time_in_all() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("body_total_seconds_max = 1").listen("h2c = true").start();
    let head = Request { body: vec![b' '; 100_000], ..Request::chat(&hello()).key(&relay.key) }.head();
    let mut connection = Frames::silent(relay.http);
    connection.raw(head.as_bytes());
    until("an answer while the body comes", || {
        connection.raw(b" ");
        connection.answered().then_some(())
    });
    assert!(connection.said().starts_with("HTTP/1.1 408 "), "{}", connection.said());
    let bearer = format!("Bearer {}", relay.key);
    let mut client = Frames::open(relay.http);
    client.raw(&frame(kind::HEADERS, END_HEADERS, 1, &block(&chat_fields(&bearer, &[]))));
    // Past the settings and their acknowledgement.
    client.next();
    client.next();
    until("an answer while the body comes over h2", || {
        client.send(kind::DATA, 0, 1, b" ");
        client.answered().then_some(())
    });
    assert!(late_over_h2(&mut client).contains("request_timeout"));
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_head_has_its_size() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).listen("h2c = true").start();
    let with = |count: usize, bytes: usize| {
        let request = Request::chat(&hello()).key(&relay.key);
        (0..count).fold(request, |request, number| request.header(&format!("x-{number}"), &"y".repeat(bytes)))
    };
    for (what, request) in
        [("90 of them", with(90, 10)), ("60 KiB", with(15, 4096)), ("60 KiB in one", with(1, 61_440))]
    {
        assert_eq!(request.send(relay.http).status, 200, "{what}");
        assert_eq!(h2c::send(&request, relay.http).status, 200, "{what} over h2");
    }
    for (what, request) in [
        ("101 headers", with(101, 1)),
        ("300, more than Pingora reads", with(300, 1)),
        ("over 64 KiB", with(1, 66_000)),
        ("over 96 KiB, before their end is seen", with(1, 120_000)),
        ("over a megabyte", with(4, 400_000)),
    ] {
        let answer = request.send(relay.http);
        answer.assert_error(400, "invalid_request_error", "bad_request");
        assert!(answer.header("x-request-id").is_some(), "{what}");
    }
    for (what, request) in [("101 headers", with(101, 1)), ("over 64 KiB", with(1, 66_000))] {
        let answer = h2c::send(&request, relay.http);
        assert_eq!((what, answer.status), (what, 400));
        answer.assert_error(400, "invalid_request_error", "bad_request");
    }
    assert_eq!(h2c::send(&with(1, 140_000), relay.http).status, 431, "HTTP/2's own answer, for what is not unfolded");
    assert_eq!(upstream.count(), 6);
}

#[test]
fn what_is_no_request_is_told_so_at_once() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("header_seconds_max = 3600").start();
    let authority = Authority::new("of nobody");
    assert!(connect(relay.http, "relay.test", &authority.client(&[])).is_err(), "a handshake where none is spoken");
    let mut connection = Connection::open(relay.http);
    connection.write(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]);
    connection.response().assert_error(400, "invalid_request_error", "bad_request");
    assert!(connection.is_closed());
    // Line ends before a request are none of it, up to a point.
    let mut connection = Connection::open(relay.http);
    connection.write(&b"\r\n".repeat(400_000));
    connection.response().assert_error(400, "invalid_request_error", "bad_request");
}

#[test]
fn a_head_that_came_with_the_request_before_may_end_later() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let request = Request::get("/v1/models").key(&relay.key).bytes();
    for cut in [1, 2, 3, 4, 5, request.len() - 1] {
        let (one, other) = request.split_at(request.len() - cut);
        let mut connection = Connection::open(relay.http);
        connection.write(&[&request, one].concat());
        assert_eq!(connection.response().status, 200);
        connection.write(other);
        assert_eq!(connection.response().status, 200, "{cut} bytes came later");
    }
}

const FOREIGN: [(&str, &str); 12] = [
    ("x-unknown", "canary"),
    ("x-forwarded-for", "192.0.2.1"),
    ("forwarded", "for=192.0.2.1"),
    ("cookie", "session=canary"),
    ("openai-organization", "org-canary"),
    ("openai-beta", "canary"),
    ("x-api-key", "canary"),
    ("anthropic-version", "canary"),
    ("proxy-authorization", "Basic canary"),
    ("te", "trailers"),
    ("traceparent", "00-canary"),
    ("accept-encoding", "br"),
];

#[test]
fn a_clients_headers_do_not_reach_the_provider() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).listen("h2c = true").start();
    let request = FOREIGN
        .iter()
        .fold(Request::chat(&hello()).key(&relay.key), |request, (name, value)| request.header(name, value));
    assert_eq!(request.send(relay.http).status, 200);
    assert_eq!(h2c::send(&request, relay.http).status, 200);
    let allowed = ["host", "content-type", "content-length", "accept", "user-agent", "authorization"];
    for received in upstream.received() {
        for (name, value) in &received.headers.0 {
            assert!(allowed.contains(&name.to_ascii_lowercase().as_str()), "{name}: {value} reached the provider");
        }
        assert_eq!(received.header("authorization"), Some(&*format!("Bearer {PROVIDER_KEY}")));
        assert!(!received.head.contains("canary") && !received.head.contains(&relay.key), "{}", received.head);
    }
}

#[test]
fn a_providers_headers_do_not_reach_the_client() {
    let foreign: Vec<(&str, &str)> = FOREIGN
        .into_iter()
        .chain([
            ("content-type", "application/json"),
            ("set-cookie", "canary=1"),
            ("server", "canary"),
            ("x-request-id", "canary"),
            ("x-ratelimit-remaining-requests", "31415926"),
            ("openai-processing-ms", "1"),
            ("location", "http://canary.test"),
            ("strict-transport-security", "max-age=1"),
            ("alt-svc", "h3=\":443\""),
        ])
        .collect();
    let upstream = Upstream::start(move |request, answer| {
        let asked = request.json();
        if asked["stream"] == true {
            let mut headers = foreign.clone();
            headers.retain(|(name, _)| *name != "content-type");
            headers.push(("content-type", "text/event-stream"));
            answer.head(200, &headers, "transfer-encoding: chunked\r\n");
            answer.event(&support::upstream::word(&asked["model"], "Hello"));
            answer.event(&support::upstream::finish(&asked["model"]));
            answer.event("[DONE]");
            return answer.end();
        }
        let status = u16::try_from(asked["seed"].as_u64().unwrap_or(200)).unwrap();
        let body = json!({"id": "x", "choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}],
            "error": if status == 200 { Value::Null } else { json!({"message": "no", "type": "t", "code": null}) }});
        answer.whole(status, &foreign, body.to_string().as_bytes());
    });
    let relay =
        Setup::bare().provider_with("upstream", &upstream.base_url(), "breaker = false").listen("h2c = true").start();
    let allowed = |name: &str| {
        let own = ["content-type", "content-length", "transfer-encoding", "date", "x-request-id", "cache-control"];
        let more = ["connection", "retry-after", "retry-after-ms", "x-tollgate-dropped", "x-accel-buffering"];
        own.contains(&name) || more.contains(&name) || name.starts_with("x-ratelimit-")
    };
    for (stream, seed) in [(true, 200), (false, 200), (false, 400), (false, 401), (false, 429), (false, 500)] {
        let mut body = hello();
        (body["stream"], body["seed"]) = (json!(stream), json!(seed));
        let request = Request::chat(&body).key(&relay.key);
        for answer in [request.send(relay.http), h2c::send(&request, relay.http)] {
            for (name, value) in &answer.headers.0 {
                assert!(allowed(&name.to_ascii_lowercase()), "{seed}: {name}: {value} reached the client");
                assert!(!value.contains("canary") && !value.contains("31415926"), "{seed}: {name}: {value}");
            }
        }
    }
    assert!(upstream.count() >= 12);
}
