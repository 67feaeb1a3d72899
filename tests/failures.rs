//! Upstreams that fail and clients that leave: what the other side sees of it, and what is billed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::setup::{MODEL, PROVIDER_KEY};
use support::upstream::{finish, word};
use support::{Answer, End, Gate, Received, Relay, Request, Response, Setup, Upstream};

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn streamed() -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn failing(script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> (Upstream, Relay) {
    let upstream = Upstream::start(script);
    let relay = Setup::new(&upstream).start();
    (upstream, relay)
}

/// Two upstreams for one model, the second asked when the first fails.
fn pair(first: impl Fn(&Received, &mut Answer) + Send + Sync + 'static, more: &str) -> (Upstream, Upstream, Relay) {
    let (first, second) = (Upstream::start(first), Upstream::polite());
    let relay = Setup::bare()
        .provider_with("first", &first.base_url(), more)
        .provider("second", &second.base_url())
        .model(MODEL, &[("first", 0), ("second", 1)])
        .start();
    (first, second, relay)
}

#[track_caller]
fn assert_not_billed(relay: &Relay, answer: &Response) {
    // A later request that is billed shows that this one would have been.
    relay.access_line(&answer.request_id());
    let row = relay.usage().into_iter().find(|row| row["request_id"] == answer.request_id());
    assert!(row.as_ref().is_none_or(|row| row["cost_nano_usd"] == 0), "{row:?}");
    assert_eq!(relay.balance(&relay.account), 10_000_000_000);
}

#[test]
fn the_providers_own_errors_become_the_operators_trouble() {
    let leaky = format!("Incorrect API key provided: {PROVIDER_KEY} of org-SECRET. {{}}");
    let table = [
        (401, "upstream_auth"),
        (402, "upstream_auth"),
        (403, "upstream_auth"),
        (408, "upstream_timeout"),
        (429, "upstream_rate_limited"),
        (500, "upstream_error"),
        (503, "upstream_error"),
        (529, "upstream_error"),
    ];
    let upstream = Upstream::start(move |request, answer| {
        let status = request.json()["seed"].as_u64().unwrap();
        let error = json!({"error": {"message": leaky, "type": "x", "param": null, "code": "y"}});
        let headers =
            [("content-type", "application/json"), ("x-ratelimit-remaining-requests", "31415926535897932384")];
        answer.whole(u16::try_from(status).unwrap(), &headers, error.to_string().as_bytes());
    });
    let relay = Setup::bare().provider_with("upstream", &upstream.base_url(), "breaker = false").start();
    for (status, code) in table {
        for mut body in [hello(), streamed()] {
            body["seed"] = json!(status);
            let answer = relay.chat(&body);
            answer.assert_error(502, "upstream_error", code);
            assert_eq!(
                answer.header("content-type"),
                Some("application/json"),
                "{status}: before a stream it is plain JSON"
            );
            let all = format!("{:?}{}", answer.headers, answer.text());
            for secret in [PROVIDER_KEY, "org-SECRET", "31415926535897932384"] {
                assert!(!all.contains(secret), "{status}: {secret} reached the client: {all}");
            }
            assert_not_billed(&relay, &answer);
        }
    }
    assert!(relay.metric("tollgate_refusals_total", &[("code", "upstream_auth")]) >= 3.0);
}

#[test]
fn the_providers_retry_after_passes() {
    let (_upstream, relay) = failing(|_, answer| {
        let headers = [("content-type", "application/json"), ("retry-after", "7")];
        answer.whole(429, &headers, br#"{"error":{"message":"slow down","type":"t","param":null,"code":"c"}}"#);
    });
    let answer = relay.chat(&hello());
    answer.assert_error(502, "upstream_error", "upstream_rate_limited");
    assert_eq!(answer.number("retry-after"), 7);
}

#[test]
fn a_fault_of_the_request_keeps_the_providers_words() {
    let (_upstream, relay) = failing(|_, answer| {
        let error = json!({"error": {"message": "Unsupported value: 'temperature'", "type": "invalid_request_error",
            "param": "temperature", "code": "unsupported_value"}});
        answer.json(400, &error);
    });
    for body in [hello(), streamed()] {
        let answer = relay.chat(&body);
        let (message, param) = answer.assert_error(400, "invalid_request_error", "unsupported_value");
        assert_eq!((message.as_str(), param.as_deref()), ("Unsupported value: 'temperature'", Some("temperature")));
        assert_not_billed(&relay, &answer);
    }
}

#[test]
fn errors_that_are_no_json_are_errors_all_the_same() {
    let (_upstream, relay) = failing(|_, answer| {
        answer.whole(502, &[("content-type", "text/html")], b"<html><h1>502 Bad Gateway</h1></html>");
    });
    let (message, _) = relay.chat(&hello()).assert_error(502, "upstream_error", "upstream_error");
    assert!(!message.contains("<html>"), "{message}");
}

#[test]
fn an_upstream_that_is_not_there() {
    let upstream = Upstream::polite();
    let gone = upstream.base_url();
    drop(upstream);
    let relay = Setup::bare().provider("upstream", &gone).start();
    let answer = relay.chat(&hello());
    answer.assert_error(502, "upstream_error", "upstream_error");
    assert_not_billed(&relay, &answer);
}

#[test]
fn an_upstream_that_closes_or_resets_without_an_answer() {
    let (upstream, relay) = failing(|request, answer| match request.json()["seed"].as_u64() {
        Some(1) => answer.cut(),
        _ => answer.reset(),
    });
    for seed in [1, 2] {
        let mut body = hello();
        body["seed"] = json!(seed);
        let answer = relay.chat(&body);
        answer.assert_error(502, "upstream_error", "upstream_error");
        assert_not_billed(&relay, &answer);
    }
    assert!(upstream.count() >= 2);
}

#[test]
fn the_next_target_is_tried_before_the_first_byte() {
    type Failure = fn(&Received, &mut Answer);
    let failures: [(&str, Failure); 5] = [
        ("503", |_, answer| answer.json(503, &json!({"error": {"message": "busy"}}))),
        ("529", |_, answer| answer.json(529, &json!({"error": {"message": "overloaded"}}))),
        ("429", |_, answer| answer.json(429, &json!({"error": {"message": "slow down"}}))),
        ("cut", |_, answer| answer.cut()),
        ("reset", |_, answer| answer.reset()),
    ];
    for (what, failure) in failures {
        let (first, second, relay) = pair(failure, "");
        for body in [hello(), streamed()] {
            let answer = relay.chat(&body);
            assert_eq!((answer.status, answer.end), (200, End::Clean), "{what}: {}", answer.text());
            assert!(answer.text().contains("Hello"), "{what}");
            let bill = relay.usage_of(&answer.request_id());
            assert_eq!((&bill["provider"], &bill["cost_nano_usd"]), (&json!("second"), &json!(13_000)), "{what}");
        }
        assert!(first.count() >= 1, "{what}");
        for (sent, again) in first.received().iter().zip(second.received()) {
            again.assert_framing();
            assert_eq!(sent.body, again.body, "{what}: the second try gets the same body");
        }
    }
}

#[test]
fn a_fault_of_the_request_is_not_tried_again() {
    let (first, second, relay) = pair(|_, answer| answer.json(400, &json!({"error": {"message": "no"}})), "");
    assert_eq!(relay.chat(&hello()).status, 400);
    assert_eq!((first.count(), second.count()), (1, 0));
}

#[test]
fn a_slow_first_byte_moves_on_to_the_next_target() {
    let gate = Gate::new();
    let stalled = gate.clone();
    let (_first, second, relay) = pair(
        move |_, _| {
            stalled.wait();
        },
        "first_byte_seconds_max = 1",
    );
    assert_eq!(relay.chat(&hello()).status, 200);
    assert_eq!(second.count(), 1);
    gate.open();
}

#[test]
fn a_first_byte_that_never_comes_is_a_timeout() {
    let gate = Gate::new();
    let stalled = gate.clone();
    let upstream = Upstream::start(move |_, _| {
        stalled.wait();
    });
    let relay = Setup::bare().provider_with("upstream", &upstream.base_url(), "first_byte_seconds_max = 1").start();
    let answer = relay.chat(&hello());
    answer.assert_error(502, "upstream_error", "upstream_timeout");
    assert_not_billed(&relay, &answer);
    gate.open();
}

/// Starts a stream with two words, then does what the test says.
fn breaking_off(then: impl Fn(&mut Answer) + Send + Sync + 'static) -> (Upstream, Relay) {
    failing(move |request, answer| {
        let model = &request.json()["model"];
        answer.begin_events();
        answer.event(&word(model, "Once upon"));
        answer.event(&word(model, " a time"));
        then(answer);
    })
}

/// The words, then one error event and nothing after it.
#[track_caller]
fn assert_broken_off(answer: &Response, code: &str) {
    assert_eq!(answer.status, 200);
    let events = answer.events();
    assert_eq!(events.len(), 3, "{}", answer.text());
    assert!(events[1].contains(" a time"));
    let error: Value = serde_json::from_str(&events[2]).unwrap();
    support::client::assert_error_object(&error, "upstream_error", code);
    assert!(!answer.text().contains("[DONE]") && !answer.text().contains("\"stop\""), "{}", answer.text());
}

#[track_caller]
fn assert_billed_by_estimate(relay: &Relay, answer: &Response) {
    let bill = relay.usage_of(&answer.request_id());
    assert_eq!((&bill["estimated"], &bill["interrupted"]), (&json!(true), &json!(true)), "{bill}");
    let tokens = |name: &str| bill[name].as_u64().unwrap();
    assert!((2..=20).contains(&tokens("input_tokens")), "{bill}");
    assert!((3..=6).contains(&tokens("output_tokens")), "\"Once upon a time\" is four tokens: {bill}");
    assert_eq!(bill["cost_nano_usd"], tokens("input_tokens") * 1000 + tokens("output_tokens") * 2000);
}

#[test]
fn an_upstream_cut_in_a_stream_ends_it_with_an_error_event() {
    for reset in [false, true] {
        let sent = Gate::new();
        let seen = sent.clone();
        let (_upstream, relay) = breaking_off(move |answer| {
            assert!(seen.wait());
            if reset { answer.reset() } else { answer.cut() }
        });
        let mut connection = Request::chat(&streamed()).key(&relay.key).begin(relay.http);
        let mut answer = connection.head();
        // The words have passed before the cut, so that a reset cannot overtake them.
        answer.body = connection.read_until(" a time").into_bytes();
        sent.open();
        answer.body.extend(connection.rest().0);
        assert_broken_off(&answer, "upstream_truncated");
        assert_billed_by_estimate(&relay, &answer);
    }
}

#[test]
fn a_clean_end_without_a_finish_is_no_clean_end() {
    let (_upstream, relay) = breaking_off(|answer| answer.end());
    let answer = relay.chat(&streamed());
    assert_broken_off(&answer, "upstream_truncated");
    assert_billed_by_estimate(&relay, &answer);
}

#[test]
fn a_close_delimited_stream_is_believed_only_after_its_finish() {
    let (_upstream, relay) = failing(|request, answer| {
        let model = &request.json()["model"];
        answer.head(200, &[("content-type", "text/event-stream"), ("connection", "close")], "");
        answer.raw(format!("data: {}\n\ndata: {}\n\n", word(model, "Once upon"), word(model, " a time")));
        if request.json()["seed"] == 1 {
            answer.raw(format!("data: {}\n\ndata: [DONE]\n\n", finish(model)));
        }
        answer.cut();
    });
    assert_broken_off(&relay.chat(&streamed()), "upstream_truncated");
    let mut whole = streamed();
    whole["seed"] = json!(1);
    let answer = relay.chat(&whole);
    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"), "{}", answer.text());
}

#[test]
fn a_finished_stream_without_done_gets_one() {
    let (_upstream, relay) = failing(|request, answer| {
        let model = &request.json()["model"];
        answer.begin_events();
        answer.event(&word(model, "Hello"));
        answer.event(&finish(model));
        answer.end();
    });
    let answer = relay.chat(&streamed());
    assert_eq!(answer.end, End::Clean);
    assert_eq!(answer.events().len(), 3, "{}", answer.text());
    assert_eq!(answer.events()[2], "[DONE]");
}

#[test]
fn a_stream_that_falls_silent_is_ended() {
    let gate = Gate::new();
    let silent = gate.clone();
    let upstream = Upstream::start(move |request, answer| {
        let model = &request.json()["model"];
        answer.begin_events();
        answer.event(&word(model, "Once upon"));
        answer.event(&word(model, " a time"));
        silent.wait();
    });
    let relay = Setup::bare().provider_with("upstream", &upstream.base_url(), "idle_seconds_max = 1").start();
    assert_broken_off(&relay.chat(&streamed()), "upstream_timeout");
    gate.open();
}

#[test]
fn an_answer_cut_before_its_length_is_cut_for_the_client_too() {
    let (_upstream, relay) = failing(|_, answer| {
        answer.head(200, &[("content-type", "application/json")], "content-length: 1000\r\n");
        answer.raw(r#"{"id":"chatcmpl-1","choices":[{"index":0,"message":{"content":"Once"#);
        answer.cut();
    });
    let answer = relay.chat(&hello());
    if answer.status == 200 {
        assert_eq!(answer.end, End::Cut, "half an answer must not look whole");
    } else {
        answer.assert_error(502, "upstream_error", "upstream_truncated");
    }
}

#[test]
fn a_client_that_leaves_closes_the_upstream_and_pays_for_what_passed() {
    let (began, left) = (Gate::new(), Gate::new());
    let (script_began, script_left) = (began.clone(), left.clone());
    let (_upstream, relay) = breaking_off(move |answer| {
        script_began.open();
        if answer.sees_it_leave() {
            script_left.open();
        }
    });
    let mut connection = Request::chat(&streamed()).key(&relay.key).begin(relay.http);
    let answer = connection.head();
    connection.read_until(" a time");
    assert!(began.wait());
    drop(connection);
    assert!(left.wait(), "the relay did not leave the upstream");
    assert_billed_by_estimate(&relay, &answer);
    assert_eq!(relay.access_line(&answer.request_id())["status"], 200);
    support::until("the stream to be over", || (relay.metric("tollgate_streams_active", &[]) < 0.5).then_some(()));
}

#[test]
fn a_client_that_leaves_before_the_first_byte_pays_nothing() {
    let left = Gate::new();
    let seen = left.clone();
    let (upstream, relay) = failing(move |_, answer| {
        if answer.sees_it_leave() {
            seen.open();
        }
    });
    let connection = Request::chat(&streamed()).key(&relay.key).begin(relay.http);
    upstream.wait_for(1);
    drop(connection);
    assert!(left.wait(), "the relay did not leave the upstream");
    assert_eq!(relay.balance(&relay.account), 10_000_000_000);
}

#[test]
fn chunks_leave_as_they_arrive() {
    let (first, second) = (Gate::new(), Gate::new());
    let (script_first, script_second) = (first.clone(), second.clone());
    let (_upstream, relay) = failing(move |request, answer| {
        let model = &request.json()["model"];
        answer.begin_events();
        answer.event(&word(model, "one"));
        assert!(script_first.wait());
        // Half an event is passed on as well, or held until its end comes: either way nothing is lost.
        let event = format!("data: {}\n\n", word(model, "two"));
        let (head, tail) = event.split_at(20);
        answer.chunk(head.as_bytes());
        assert!(script_second.wait());
        answer.chunk(tail.as_bytes());
        answer.event(&finish(model));
        answer.event("[DONE]");
        answer.end();
    });
    let mut connection = Request::chat(&streamed()).key(&relay.key).begin(relay.http);
    connection.head();
    connection.read_until("one");
    first.open();
    second.open();
    let mut all = connection.read_until("two").into_bytes();
    let (rest, end) = connection.rest();
    all.extend(rest);
    let all = String::from_utf8_lossy(&all);
    assert!(end == End::Clean && all.ends_with("data: [DONE]\n\n"), "{end:?}: {all}");
}

#[test]
fn an_upstream_connection_that_went_stale_costs_nobody_an_error() {
    let (upstream, relay) = failing(|request, answer| {
        answer.politely(request);
        // Keeps the connection alive in words, then closes it.
        answer.cut();
    });
    for _ in 0..10 {
        assert_eq!(relay.chat(&hello()).status, 200);
    }
    assert_eq!(upstream.count(), 10);
}

#[test]
fn a_whole_answer_that_cannot_be_translated_is_an_error_by_its_status() {
    let bodies = [
        // Broken off, with a clean end of its framing.
        ("anthropic", r#"{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"te"#),
        // The model failed: WIRE §5 wants 502.
        ("gemini", r#"{"candidates":[{"content":{},"finishReason":"MALFORMED_FUNCTION_CALL","index":0}]}"#),
    ];
    for (dialect, body) in bodies {
        let upstream = Upstream::start(move |_, answer| {
            answer.whole(200, &[("content-type", "application/json")], body.as_bytes());
        });
        let provider = format!(
            "[[provider]]\nname = \"upstream\"\ndialect = {dialect:?}\nbase_url = \"http://{}\"\n\
             credentials = [{{ env = \"UPSTREAM_KEY\" }}]\n",
            upstream.address
        );
        let relay = Setup::bare().table(&provider).start();
        let answer = relay.chat(&hello());
        assert_eq!(
            (answer.status, answer.json()["error"]["type"].as_str()),
            (502, Some("upstream_error")),
            "{dialect}"
        );
    }
}
