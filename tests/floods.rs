//! Clients that keep HTTP/2 busy without asking for anything: each is closed within a bound, and nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use serde_json::json;
use support::frames::{END_HEADERS, END_STREAM, Frames, block, chat_fields, frame, kind};
use support::setup::MODEL;
use support::{Relay, Request, Setup, Upstream, h2c, until};

const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

fn relay(upstream: &Upstream) -> Relay {
    Setup::new(upstream).listen("h2c = true").start()
}

fn hello() -> Request {
    Request::chat(&json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]}))
}

/// A request that waits for nothing: it has no key.
fn head(stream: u32, flags: u8) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/v1/models"), (":authority", "relay.test")];
    frame(kind::HEADERS, END_HEADERS | flags, stream, &block(&fields))
}

/// A chat whose body is to come.
fn chat(relay: &Relay, stream: u32) -> Vec<u8> {
    let bearer = format!("Bearer {}", relay.key);
    frame(kind::HEADERS, END_HEADERS, stream, &block(&chat_fields(&bearer, &[])))
}

fn stream_of(count: usize) -> u32 {
    u32::try_from(2 * count + 1).unwrap()
}

/// Writes until the connection is closed, which it must be before `most`; then others are served as before.
#[track_caller]
fn assert_closed(what: &str, relay: &Relay, first: &[u8], most: usize, bytes: impl Fn(usize) -> Vec<u8>) {
    let mut client = Frames::open(relay.http);
    client.raw(first);
    let written = client.flood(most, bytes);
    println!("{what}: closed after at most {written} of {most}");
    assert!(written < most, "{what}: all {most} were taken");
    let answer = h2c::send(&hello().key(&relay.key), relay.http);
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
}

#[test]
fn frames_that_ask_for_nothing() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    type Bytes = fn(usize) -> Vec<u8>;
    let floods: [(&str, Bytes); 5] = [
        ("PING", |_| frame(kind::PING, 0, 0, &[0; 8])),
        ("SETTINGS", |_| frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("PRIORITY", |count| frame(kind::PRIORITY, 0, stream_of(count), &[0, 0, 0, 0, 1])),
        ("a kind of frame that there is not", |_| frame(77, 0, 0, &[0; 100])),
        ("WINDOW_UPDATE", |_| frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    ];
    for (what, bytes) in floods {
        assert_closed(what, &relay, &[], 200_000, bytes);
    }
    assert!(relay.metric("tollgate_connections_closed_total", &[("reason", "flood")]) >= 5.0);
}

#[test]
fn requests_that_are_reset_as_soon_as_they_are_made() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    assert_closed("rapid reset", &relay, &[], 100_000, |count| {
        let stream = stream_of(count);
        [head(stream, END_STREAM), frame(kind::RST_STREAM, 0, stream, &CANCEL)].concat()
    });
    let began = relay.metric("tollgate_refusals_total", &[("code", "invalid_api_key")]);
    assert!(began < 2_000.0, "{began} requests were begun");
}

#[test]
fn requests_that_are_reset_once_they_have_begun() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let mut client = Frames::open(relay.http);
    let resets = (0..2_000).take_while(|count| {
        let stream = stream_of(*count);
        // The relay has seen the request when it answers the ping that came after it.
        client.raw(&[chat(&relay, stream), frame(kind::PING, 0, 0, &[0; 8])].concat())
            && client.next_of(kind::PING).is_some()
            && client.send(kind::RST_STREAM, 0, stream, &CANCEL)
    });
    let resets = resets.count();
    assert!(resets < 2_000, "none of them ended the connection");
    println!("resets of requests that had begun: closed after {resets}");
    assert_eq!(h2c::send(&hello().key(&relay.key), relay.http).status, 200);
}

#[test]
fn heads_without_an_end() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let begin = frame(kind::HEADERS, 0, 1, &block(&[(":method", "GET")]));
    let large = block(&[("x-large", &"y".repeat(4_000))]);
    assert_closed("CONTINUATION", &relay, &begin, 100_000, |_| frame(kind::CONTINUATION, 0, 1, &large));
    assert_closed("CONTINUATION without anything", &relay, &begin, 100_000, |_| frame(kind::CONTINUATION, 0, 1, &[]));
    // An index of one byte for each field, of a field that was kept: 4,000 bytes that unfold to 16 MB.
    let mut kept = vec![0x40, 7];
    kept.extend(b"x-large");
    kept.extend([127, 161, 30]);
    kept.extend([b'y'; 4_000]);
    let begin = frame(kind::HEADERS, 0, 1, &kept);
    assert_closed("a bomb of indexes", &relay, &begin, 100_000, |_| frame(kind::CONTINUATION, 0, 1, &[0xbe; 4_000]));
}

#[test]
fn bodies_in_pieces_of_a_byte_or_none() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    assert_closed("DATA of a byte", &relay, &chat(&relay, 1), 2_000_000, |_| frame(kind::DATA, 0, 1, b" "));
    assert_closed("DATA of nothing", &relay, &chat(&relay, 1), 100_000, |_| frame(kind::DATA, 0, 1, b""));
    // One byte, padded to 256.
    let padded = [&[255, b' '][..], &[0; 255]].concat();
    assert_closed("DATA of a byte and padding", &relay, &chat(&relay, 1), 200_000, |_| {
        frame(kind::DATA, 8, 1, &padded)
    });
    assert_eq!(upstream.count(), 3, "only the good ones reached the provider");
}

/// What makes a server reset a stream that is under way.
#[test]
fn resets_that_the_relay_is_made_to_send() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    type Fault = fn(u32) -> Vec<u8>;
    let faults: [(&str, u8, Fault); 4] = [
        ("a window update of nothing", 0, |stream| frame(kind::WINDOW_UPDATE, 0, stream, &[0; 4])),
        ("a window beyond its limit", 0, |stream| frame(kind::WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])),
        ("DATA after the end", END_STREAM, |stream| frame(kind::DATA, 0, stream, b"x")),
        ("a head after the end", END_STREAM, |stream| head(stream, 0)),
    ];
    for (what, flags, fault) in faults {
        assert_closed(what, &relay, &[], 100_000, |count| {
            let stream = stream_of(count);
            [head(stream, flags), fault(stream)].concat()
        });
    }
    assert_closed("a length that is not the data's", &relay, &[], 100_000, |count| {
        let stream = stream_of(count);
        let fields = chat_fields("Bearer none", &[("content-length", "5")]);
        [frame(kind::HEADERS, END_HEADERS, stream, &block(&fields)), frame(kind::DATA, END_STREAM, stream, b"123")]
            .concat()
    });
}

#[test]
fn a_client_that_changes_its_mind_a_lot_is_no_flood() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let mut client = Frames::open(relay.http);
    for count in 0..100 {
        let stream = stream_of(count);
        client.raw(&chat(&relay, stream));
        client.send(kind::PING, 0, 0, &[0; 8]);
        assert!(client.next_of(kind::PING).is_some(), "closed after {count}");
        assert!(client.send(kind::RST_STREAM, 0, stream, &CANCEL));
    }
    for _ in 0..2_000 {
        client.send(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]);
    }
    client.raw(&head(stream_of(100), END_STREAM));
    let answer = client.next_of(kind::HEADERS).expect("it was closed");
    assert_eq!(answer.stream, stream_of(100));
    until("the connections to be over", || (relay.metric("tollgate_connections_open", &[]) < 1.5).then_some(()));
    assert_eq!(relay.metric("tollgate_connections_closed_total", &[("reason", "flood")]), 0.0);
}
