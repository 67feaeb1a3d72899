//! The test harness itself: its client against its upstream, so that a failing process test points at the relay.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::json;
use support::client::Framing;
use support::relay::metric;
use support::{Chance, End, Gate, Request, Reserved, Upstream, h2c, tls};

#[test]
fn the_upstream_keeps_requests_byte_for_byte() {
    let upstream = Upstream::polite();
    let body = json!({"model": "m", "messages": []}).to_string();
    let by_length = Request::post("/v1/chat/completions", body.clone()).header("x-Mixed", "Case");
    let chunked = Request::post("/v1/chat/completions", body.clone()).chunked(7);
    assert_eq!(by_length.send(upstream.address).json()["choices"][0]["message"]["content"], "Hello there");
    assert_eq!(chunked.send(upstream.address).status, 200);
    let received = upstream.received();
    assert_eq!(received[0].head, by_length.head());
    assert_eq!(received[0].body, body.as_bytes());
    assert_eq!(received[1].body, body.as_bytes());
    received[0].assert_framing();
    assert!(
        std::panic::catch_unwind(|| received[1].assert_framing()).is_err(),
        "chunked is not what the relay may send"
    );
}

#[test]
fn a_connection_serves_several_requests() {
    let upstream = Upstream::polite();
    let mut connection = support::Connection::open(upstream.address);
    for _ in 0..3 {
        let request = Request::chat(&json!({"model": "m", "stream": true}));
        let answer = connection.ask(&request);
        assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn chunks_arrive_while_the_script_waits_and_cuts_are_seen() {
    let gate = Gate::new();
    let scripted = gate.clone();
    let upstream = Upstream::start(move |_, answer| {
        answer.begin_events();
        answer.event("one");
        assert!(scripted.wait());
        answer.event("two");
        answer.cut();
    });
    let mut connection = Request::chat(&json!({})).begin(upstream.address);
    assert_eq!(connection.head().status, 200);
    connection.read_until("one");
    gate.open();
    connection.read_until("two");
    assert_eq!(connection.rest(), (Vec::new(), End::Cut));
}

#[test]
fn resets_and_departures_are_seen() {
    let left = Gate::new();
    let seen = left.clone();
    let upstream = Upstream::start(move |request, answer| {
        if request.path() == "/reset" {
            return answer.reset();
        }
        answer.begin_events();
        answer.event("one");
        assert!(answer.sees_it_leave());
        seen.open();
    });
    assert!(Request::get("/reset").begin(upstream.address).try_head().is_none());
    let mut connection = Request::get("/stay").begin(upstream.address);
    connection.head();
    connection.read_until("one");
    drop(connection);
    assert!(left.wait(), "the upstream did not notice");
}

#[test]
fn tls_trusts_only_whom_it_is_told_to() {
    let authority = tls::Authority::new("one");
    let stranger = tls::Authority::new("two");
    let certified = authority.certify("localhost");
    let upstream = Upstream::start_tls(certified.server(), |request, answer| answer.politely(request));
    let (mut connection, peer) = tls::connect(upstream.address, "localhost", &authority.client(&[])).unwrap();
    assert_eq!(peer.certificate, certified.der());
    assert_eq!(connection.ask(&Request::chat(&json!({"model": "m"}))).status, 200);
    assert!(tls::connect(upstream.address, "localhost", &stranger.client(&[])).is_err());
    assert!(tls::connect(upstream.address, "elsewhere.test", &authority.client(&[])).is_err());
    let expired = authority.certify_until("localhost", 2021);
    let upstream = Upstream::start_tls(expired.server(), |request, answer| answer.politely(request));
    assert!(tls::connect(upstream.address, "localhost", &authority.client(&[])).is_err());
}

#[test]
fn h2_sends_a_body_in_frames() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = runtime.spawn(async move {
        let (stream, _) = tokio::net::TcpListener::from_std(listener).unwrap().accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let has_length = request.headers().contains_key("content-length");
        let mut body = request.into_body();
        let mut count = 0;
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            count += piece.len();
            body.flow_control().release_capacity(piece.len()).unwrap();
        }
        let mut answer = respond.send_response(http::Response::new(()), false).unwrap();
        answer.send_data(format!("{count} {has_length}").into(), true).unwrap();
    });
    let request = Request { framing: Framing::Chunked(10_000), ..Request::post("/x", vec![b'x'; 300_000]) };
    assert_eq!(h2c::send(&request, address).text(), "300000 false");
    runtime.block_on(server).unwrap();
}

#[test]
fn reserved_ports_differ_and_are_free() {
    let ports: Vec<Reserved> = (0..50).map(|_| Reserved::new()).collect();
    let mut numbers: Vec<u16> = ports.iter().map(|port| port.address.port()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 50);
    assert!(std::net::TcpListener::bind(ports[0].address).is_ok());
}

#[test]
fn metrics_are_summed_over_series() {
    let page = "# TYPE a counter\na{m=\"x\",s=\"200\"} 2\na{m=\"y\",s=\"200\"} 3\na_total 7\nb 1.5\n";
    assert!((metric(page, "a", &[("s", "200")]) - 5.0).abs() < 1e-9);
    assert!((metric(page, "a", &[("m", "y")]) - 3.0).abs() < 1e-9);
    assert!((metric(page, "b", &[]) - 1.5).abs() < 1e-9);
    assert!(metric(page, "c", &[]).abs() < 1e-9);
}

#[test]
fn pieces_are_the_whole_again() {
    let bytes: Vec<u8> = (0..=255).collect();
    let pieces = Chance(1).pieces(&bytes, 9);
    assert!(pieces.len() > 28 && pieces.iter().all(|piece| (1..=9).contains(&piece.len())));
    assert_eq!(pieces.concat(), bytes);
}
