//! Request bodies: whatever a client may send, by length, chunked, over HTTP/1.1 and h2; and every bad one's own error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::thread;

use serde_json::{Value, json};
use support::client::Framing;
use support::setup::{MODEL, PROVIDER_MODEL};
use support::{Connection, Relay, Request, Response, Setup, Upstream, h2c};

const MIB: usize = 1024 * 1024;

/// A relay that speaks h2c as well.
fn relay(upstream: &Upstream) -> Relay {
    Setup::new(upstream).listen("h2c = true").start()
}

/// A chat of about that many bytes: an image as a data URI, and `model` as the last of all.
fn large(bytes: usize, model: &str) -> Vec<u8> {
    let image: String =
        "abcdefghijklmnopqrstuvwxyz0123456789+/ABCDEFGHIJKLMNOPQRSTUVWXYZ".chars().cycle().take(bytes).collect();
    format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":[{{\"type\":\"text\",\"text\":\"What is \\u2603 this?\"}},\
         {{\"type\":\"image_url\",\"image_url\":{{\"url\":\"data:image/png;base64,{image}\"}}}}]}}],\
         \"seed\": 12345678901234567890123 ,\"model\":\"{model}\"}}"
    )
    .into_bytes()
}

#[track_caller]
fn assert_arrived(upstream: &Upstream, answer: &Response, expected: &[u8]) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "Hello there");
    let received = upstream.received();
    let sent = received.last().unwrap();
    sent.assert_framing();
    // Not assert_eq: five megabytes twice on a terminal help nobody.
    let differs = sent.body.iter().zip(expected).position(|(a, b)| a != b);
    assert!(
        sent.body == expected,
        "{} bytes sent, {} expected, first difference at {differs:?}",
        sent.body.len(),
        expected.len()
    );
}

#[test]
fn five_mebibytes_with_the_model_last_arrive_byte_for_byte() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let expected = large(5 * MIB, PROVIDER_MODEL);
    let by_length = Request::post("/v1/chat/completions", large(5 * MIB, MODEL)).key(&relay.key);
    let framings = [Framing::Length, Framing::Chunked(16 * 1024), Framing::Chunked(MIB + 1)];
    for framing in framings {
        let request = Request { framing, ..by_length.clone() };
        assert_arrived(&upstream, &request.send(relay.http), &expected);
        assert_arrived(&upstream, &h2c::send(&request, relay.http), &expected);
    }
    let patient = by_length.header("expect", "100-continue");
    let mut connection = Connection::open(relay.http);
    connection.write(patient.head().as_bytes());
    assert_eq!(connection.head().status, 100);
    connection.write(&patient.body);
    assert_arrived(&upstream, &connection.response(), &expected);
}

#[test]
fn every_size_around_a_buffers_edge_arrives() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let frame = large(0, MODEL).len();
    for edge in [4096, 16 * 1024, 64 * 1024, 128 * 1024] {
        for size in [edge - 1, edge, edge + 1] {
            let request = Request::post("/v1/chat/completions", large(size - frame, MODEL)).key(&relay.key);
            assert_eq!(request.body.len(), size);
            let expected = large(size - frame, PROVIDER_MODEL);
            assert_arrived(&upstream, &request.send(relay.http), &expected);
            assert_arrived(&upstream, &request.clone().chunked(1000).send(relay.http), &expected);
        }
    }
}

#[test]
fn a_chunk_a_byte_and_empty_frames_arrive() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let request = Request::post("/v1/chat/completions", large(300, MODEL)).key(&relay.key).chunked(1);
    let expected = large(300, PROVIDER_MODEL);
    assert_arrived(&upstream, &request.send(relay.http), &expected);
    // Hundreds of DATA frames of a byte are an attack over HTTP/2, and its connection is closed; some small ones are not.
    assert_arrived(&upstream, &h2c::send(&request.chunked(20), relay.http), &expected);
}

#[test]
fn large_bodies_at_once_do_not_mix() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    thread::scope(|scope| {
        for number in 0..8 {
            let relay = &relay;
            scope.spawn(move || {
                let request = Request::post("/v1/chat/completions", large(MIB + number, MODEL)).key(&relay.key);
                assert_eq!(request.send(relay.http).status, 200);
            });
        }
    });
    let mut bodies: Vec<Vec<u8>> = upstream.received().into_iter().map(|received| received.body).collect();
    bodies.sort_by_key(Vec::len);
    for (number, body) in bodies.iter().enumerate() {
        assert!(*body == large(MIB + number, PROVIDER_MODEL), "body {number} is another's");
    }
}

/// Bodies that no provider should see, with the code and the parameter that the client is told.
fn bad_bodies() -> Vec<(&'static str, Vec<u8>, &'static str, Option<&'static str>)> {
    let chat = |more: &str| format!("{{\"model\":\"{MODEL}\",{more}}}").into_bytes();
    let messages = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]";
    let with = |more: &str| chat(&format!("{messages},{more}"));
    vec![
        ("broken JSON", b"{\"model\":".to_vec(), "invalid_json", None),
        ("a trailing comma", b"{\"model\":\"m\",}".to_vec(), "invalid_json", None),
        ("two documents", [with("\"n\":1"), b"{}".to_vec()].concat(), "invalid_json", None),
        ("a list", b"[]".to_vec(), "invalid_json", None),
        ("a word", b"\"chat\"".to_vec(), "invalid_json", None),
        ("no body", Vec::new(), "invalid_json", None),
        ("only blanks", b" \r\n\t ".to_vec(), "invalid_json", None),
        (
            "invalid UTF-8",
            [&b"{\"model\":\""[..], &[0xff, 0xfe], b"\",\"messages\":[]}"].concat(),
            "invalid_json",
            None,
        ),
        (
            "100,000 nested arrays",
            with(&format!("\"x\":{}{}", "[".repeat(100_000), "]".repeat(100_000))),
            "invalid_json",
            None,
        ),
        (
            "100,000 arrays for messages",
            chat(&format!("\"messages\":{}{}", "[".repeat(100_000), "]".repeat(100_000))),
            "invalid_value",
            Some("messages[0]"),
        ),
        ("100,000 open arrays", "[".repeat(100_000).into_bytes(), "invalid_json", None),
        ("a form", b"model=x&messages=y".to_vec(), "invalid_json", None),
        ("no model", format!("{{{messages}}}").into_bytes(), "missing_field", Some("model")),
        (
            "a model that is a number",
            format!("{{\"model\":4,{messages}}}").into_bytes(),
            "invalid_value",
            Some("model"),
        ),
        ("a model that is null", format!("{{\"model\":null,{messages}}}").into_bytes(), "invalid_value", Some("model")),
        (
            "two models",
            format!("{{\"model\":\"a\",\"model\":\"b\",{messages}}}").into_bytes(),
            "invalid_value",
            Some("model"),
        ),
        ("no messages", format!("{{\"model\":\"{MODEL}\"}}").into_bytes(), "missing_field", Some("messages")),
        ("empty messages", chat("\"messages\":[]"), "invalid_value", Some("messages")),
        ("messages that are text", chat("\"messages\":\"hello\""), "invalid_value", Some("messages")),
        ("a message that is text", chat("\"messages\":[\"hello\"]"), "invalid_value", Some("messages[0]")),
        (
            "a message without a role",
            chat("\"messages\":[{\"content\":\"x\"}]"),
            "missing_field",
            Some("messages[0].role"),
        ),
        (
            "a role that is a number",
            chat("\"messages\":[{\"role\":1,\"content\":\"x\"}]"),
            "invalid_value",
            Some("messages[0].role"),
        ),
        ("stream as text", with("\"stream\":\"yes\""), "invalid_value", Some("stream")),
        (
            "stream_options as text",
            with("\"stream\":true,\"stream_options\":\"usage\""),
            "invalid_value",
            Some("stream_options"),
        ),
        ("max_tokens below one", with("\"max_tokens\":0"), "invalid_value", Some("max_tokens")),
        ("max_tokens that is text", with("\"max_tokens\":\"10\""), "invalid_value", Some("max_tokens")),
        (
            "max_completion_tokens below zero",
            with("\"max_completion_tokens\":-1"),
            "invalid_value",
            Some("max_completion_tokens"),
        ),
        ("n of zero", with("\"n\":0"), "invalid_value", Some("n")),
    ]
}

#[test]
fn every_bad_body_has_its_own_clear_error() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    for (what, body, code, param) in bad_bodies() {
        let request = Request::post("/v1/chat/completions", body).key(&relay.key);
        for (over, answer) in [
            ("HTTP/1.1", request.send(relay.http)),
            ("chunks", request.clone().chunked(10_000).send(relay.http)),
            ("h2", h2c::send(&request, relay.http)),
        ] {
            let told = &answer.json()["error"];
            assert_eq!(answer.status, 400, "{what} over {over}: {told}");
            assert_eq!(
                (told["type"].as_str(), told["code"].as_str()),
                (Some("invalid_request_error"), Some(code)),
                "{what} over {over}: {told}"
            );
            assert_eq!(told["param"].as_str(), param, "{what} over {over}: {told}");
            assert!(
                answer.header("x-request-id").is_some() && answer.header("x-ratelimit-limit").is_some(),
                "{what} over {over}"
            );
            assert!(told["message"].as_str().unwrap().len() < 500, "{what} over {over}: an error is not an echo");
        }
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(
        relay.chat(&json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})).status,
        200,
        "and it still works"
    );
}

#[test]
fn the_content_type_does_not_matter_when_the_body_is_json() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]}).to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", ""] {
        let request = Request {
            framing: Framing::Length,
            body: body.clone().into_bytes(),
            ..Request::new("POST", "/v1/chat/completions")
        };
        let answer = request.header("content-type", kind).key(&relay.key).send(relay.http);
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
    }
    for sent in upstream.received() {
        assert_eq!(sent.header("content-type"), Some("application/json"), "the provider gets the right one");
    }
}

#[test]
fn forty_mebibytes_are_too_many() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let announced = Request::post("/v1/chat/completions", large(40 * MIB, MODEL)).key(&relay.key);
    let chunked = announced.clone().chunked(256 * 1024);
    for (over, answer) in [
        ("length", announced.send(relay.http)),
        ("chunks", chunked.send(relay.http)),
        ("h2", h2c::send(&chunked, relay.http)),
    ] {
        assert_eq!(answer.status, 413, "{over}: {}", answer.text());
        support::client::assert_error_object(&answer.json(), "invalid_request_error", "request_too_large");
    }
    // Who says so beforehand is refused before a byte of it.
    let mut connection = Connection::open(relay.http);
    connection.write(announced.head().as_bytes());
    assert_eq!(connection.head().status, 413);
    assert_eq!(upstream.count(), 0);
}

#[test]
fn the_limit_is_the_configured_one_to_the_byte() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("request_bytes_max = 10_000").start();
    let frame = large(0, MODEL).len();
    let ask = |bytes: usize| Request::post("/v1/chat/completions", large(bytes - frame, MODEL)).key(&relay.key);
    assert_eq!(ask(10_000).send(relay.http).status, 200);
    assert_eq!(ask(10_000).chunked(999).send(relay.http).status, 200);
    assert_eq!(ask(10_001).send(relay.http).status, 413);
    assert_eq!(ask(10_001).chunked(999).send(relay.http).status, 413);
}

#[test]
fn a_body_that_stops_coming_is_given_up() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("body_idle_seconds_max = 1").start();
    let request = Request::post("/v1/chat/completions", large(1000, MODEL)).key(&relay.key);
    let mut connection = Connection::open(relay.http);
    let bytes = request.bytes();
    connection.write(&bytes[..bytes.len() - 10]);
    connection.response().assert_error(408, "invalid_request_error", "request_timeout");
    assert!(connection.is_closed(), "the rest of the body cannot be told from a new request");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn heads_that_two_readers_could_read_differently_are_refused() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]}).to_string();
    let length = format!("content-length: {}\r\n", body.len());
    let key = format!("authorization: Bearer {}\r\n", relay.key);
    let many: String = (0..120).map(|number| format!("x-{number}: y\r\n")).collect();
    let huge = format!("x-huge: {}\r\n", "y".repeat(70_000));
    let table = [
        ("two equal lengths", format!("host: a\r\n{length}{length}")),
        ("two different lengths", format!("host: a\r\n{length}content-length: 1\r\n")),
        ("a list of lengths", format!("host: a\r\ncontent-length: {0}, {0}\r\n", body.len())),
        ("a length with a sign", format!("host: a\r\ncontent-length: +{}\r\n", body.len())),
        ("a length and chunks", format!("host: a\r\n{length}transfer-encoding: chunked\r\n")),
        ("no host", length.clone()),
        ("two hosts", format!("host: a\r\nhost: b\r\n{length}")),
        ("two equal hosts", format!("host: a\r\nhost: a\r\n{length}")),
        ("more than 100 headers", format!("host: a\r\n{many}{length}")),
        ("more than 64 KiB of headers", format!("host: a\r\n{huge}{length}")),
        ("a folded header", format!("host: a\r\nx-a: b\r\n c\r\n{length}")),
    ];
    for (what, lines) in table {
        let mut connection = Connection::open(relay.http);
        connection.write(format!("POST /v1/chat/completions HTTP/1.1\r\n{lines}{key}\r\n{body}").as_bytes());
        let answer = connection.try_head();
        assert_eq!(answer.as_ref().map(|answer| answer.status), Some(400), "{what}");
    }
    assert_eq!(upstream.count(), 0, "none of them reached the provider");
}

#[test]
fn a_refused_bodys_bytes_are_not_read_as_a_request() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("request_bytes_max = 10_000").start();
    let smuggled =
        Request::chat(&json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})).key(&relay.key);
    let mut outer = Request::post("/v1/chat/completions", vec![b'\n'; 20_000]).key(&relay.key);
    outer.body.extend(smuggled.bytes());
    let mut connection = Connection::open(relay.http);
    connection.write(&outer.bytes());
    assert_eq!(connection.response().status, 413);
    assert!(connection.try_head().is_none(), "the refused body was answered as a request");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn unknown_value_types_pass_to_the_provider() {
    let upstream = Upstream::polite();
    let relay = relay(&upstream);
    let body: Value =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "temperature": "warm", "tools": 7});
    assert_eq!(relay.chat(&body).status, 200, "what the relay does not read is the provider's to judge");
    assert_eq!(upstream.only().json()["temperature"], "warm");
}
