//! Streams that fail or fall silent: what is tried elsewhere before their first event, what the client is told after it, and
//! how it is told that there is nothing to tell.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::setup::{MODEL, PROVIDER_KEY};
use support::upstream::word;
use support::{Answer, Gate, Received, Relay, Request, Response, Setup, Upstream, until};

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn streamed() -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn setup(first: &Upstream, second: &Upstream) -> Setup {
    Setup::bare()
        .provider("first", &first.base_url())
        .provider("second", &second.base_url())
        .model(MODEL, &[("first", 0), ("second", 1)])
}

/// A first upstream that does so, and a polite one behind it.
fn pair(first: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> (Upstream, Upstream, Relay) {
    let (first, second) = (Upstream::start(first), Upstream::polite());
    let relay = setup(&first, &second).start();
    (first, second, relay)
}

fn alone(script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> (Upstream, Relay) {
    let upstream = Upstream::start(script);
    let relay = Setup::new(&upstream).start();
    (upstream, relay)
}

#[test]
fn a_stream_that_begins_with_an_error_is_tried_elsewhere() {
    let error = json!({"error": {"message": format!("{PROVIDER_KEY} is overloaded"), "type": "server_error"}});
    let script = move |_: &Received, answer: &mut Answer| {
        answer.begin_events();
        answer.chunk(b": PROCESSING\n\n");
        // In two pieces, and with a comment before it.
        let event = format!("data: {error}\n\n");
        answer.chunk(&event.as_bytes()[..20]);
        answer.chunk(&event.as_bytes()[20..]);
        answer.end();
    };
    let (first, second, relay) = pair(script.clone());
    let answer = relay.chat(&streamed());
    assert_eq!((answer.status, first.count(), second.count()), (200, 1, 1), "{}", answer.text());
    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
    assert_eq!(relay.usage_of(&answer.request_id())["provider"], "second");
    let labels = [("provider", "first"), ("outcome", "error_event")];
    assert!(relay.metric("tollgate_upstream_attempts_total", &labels) > 0.5);

    let (_only, relay) = alone(script);
    let answer = relay.chat(&streamed());
    answer.assert_error(502, "upstream_error", "upstream_error");
    assert_eq!(answer.header("content-type"), Some("application/json"), "nothing had passed: {answer:?}");
    assert!(!answer.text().contains(PROVIDER_KEY));
}

#[test]
fn a_stream_that_ends_before_it_says_anything_is_tried_elsewhere() {
    let (_, second, relay) = pair(|_, answer| {
        answer.begin_events();
        answer.chunk(b": PROCESSING\n\n");
        answer.end();
    });
    assert_eq!(relay.chat(&streamed()).status, 200);
    assert_eq!(second.count(), 1);
}

#[test]
fn a_stream_cut_before_it_says_anything_is_no_stale_connection() {
    let (first, second, relay) = pair(|request, answer| {
        if request.json()["stream"] != true {
            return answer.politely(request);
        }
        answer.begin_events();
        answer.chunk(b": PROCESSING\n\n");
        answer.cut();
    });
    // A connection is kept a moment after the client has its answer.
    until("a stream on a kept connection", || {
        assert_eq!(relay.chat(&hello()).status, 200);
        assert_eq!(relay.chat(&streamed()).status, 200);
        let received = first.received();
        assert_eq!(received.len(), 2 * second.count(), "each stream is tried elsewhere");
        let [.., hello, stream] = &received[..] else { return None };
        (hello.connection == stream.connection).then_some(())
    });
    let outcomes =
        |outcome| relay.metric("tollgate_upstream_attempts_total", &[("provider", "first"), ("outcome", outcome)]);
    assert!(outcomes("broken") > 0.5 && outcomes("stale") < 0.5);
}

#[test]
fn another_dialects_error_before_the_first_word_is_tried_elsewhere() {
    let first = Upstream::start(|_, answer| {
        answer.begin_events();
        let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
        answer.chunk(format!("event: error\ndata: {error}\n\n").as_bytes());
        answer.end();
    });
    let second = Upstream::polite();
    let provider = format!(
        "[[provider]]\nname = \"first\"\ndialect = \"anthropic\"\nbase_url = \"http://{}\"\n\
         credentials = [{{ env = \"UPSTREAM_KEY\" }}]\n",
        first.address
    );
    let relay = Setup::bare()
        .table(&provider)
        .provider("second", &second.base_url())
        .model(MODEL, &[("first", 0), ("second", 1)])
        .start();
    assert_eq!(relay.chat(&streamed()).status, 200);
    assert_eq!((first.count(), second.count()), (1, 1));
}

#[test]
fn an_error_in_a_stream_is_told_in_the_relays_words() {
    for usage in [true, false] {
        let (_upstream, relay) = alone(|request, answer| {
            answer.begin_events();
            answer.event(&word(&request.json()["model"], "Once upon"));
            let error =
                json!({"error": {"message": format!("{PROVIDER_KEY} of org-SECRET is out"), "type": "server_error"}});
            let event = format!("data: {error}\n\n");
            answer.chunk(&event.as_bytes()[..60]);
            answer.chunk(&event.as_bytes()[60..]);
            answer.end();
        });
        let mut body = streamed();
        body["stream_options"] = json!({"include_usage": usage});
        let answer = relay.chat(&body);
        let events = answer.events();
        assert!(answer.status == 200 && events.len() == 2, "{}", answer.text());
        let error: Value = serde_json::from_str(&events[1]).unwrap();
        support::client::assert_error_object(&error, "upstream_error", "upstream_error");
        assert!(!answer.text().contains("org-SECRET") && !answer.text().contains(PROVIDER_KEY), "{}", answer.text());
    }
}

#[test]
fn interim_heads_of_the_provider_do_not_pass() {
    let (_upstream, relay) = alone(|request, answer| {
        answer.raw("HTTP/1.1 103 Early Hints\r\nlink: </secret>; rel=preload\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n");
        answer.politely(request);
    });
    for body in [hello(), streamed()] {
        let answer: Response = relay.chat(&body);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.text().contains("Hello"), "{}", answer.text());
    }
}

/// Two words, with a silence between them that ends when the gate opens.
fn silent_between(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::start(move |request, answer| {
        if request.json()["stream"] != true {
            assert!(gate.wait());
            return answer.politely(request);
        }
        let model = &request.json()["model"];
        answer.begin_events();
        answer.event(&word(model, "Hello"));
        // Half of an event is no place for a comment.
        let event = format!("data: {}\n\n", word(model, " there"));
        answer.chunk(&event.as_bytes()[..30]);
        assert!(gate.wait());
        answer.chunk(&event.as_bytes()[30..]);
        answer.event(&support::upstream::finish(model));
        answer.event("[DONE]");
        answer.end();
    })
}

#[test]
fn a_silent_stream_gets_comments_between_its_events_and_a_document_none() {
    let gate = Gate::new();
    let upstream = silent_between(&gate);
    let relay = Setup::new(&upstream).limits("stream_silence_seconds_max = 1").start();
    let request = Request::chat(&streamed()).key(&relay.key).header("idempotency-key", "one");
    let mut document = Request::chat(&hello()).key(&relay.key).begin(relay.http);
    let mut connection = request.begin(relay.http);
    let mut answer = connection.head();
    answer.body = connection.read_until(": ping\n").into_bytes();
    answer.body.extend(connection.read_until(": ping\n").into_bytes());
    gate.open();
    answer.body.extend(connection.rest().0);
    let text = answer.text();
    assert!(text.contains("}\n\n: ping\n: ping\ndata: {"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert!(!document.response().text().contains("ping"));

    let again = request.send(relay.http);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.text(), text.replace(": ping\n", ""), "comments are not kept");
    let bill = relay.usage_of(&answer.request_id());
    assert_eq!(bill["interrupted"], false, "{bill}");
}

#[test]
fn a_stream_that_thinks_for_long_gets_its_head_and_then_nobody_else_is_asked() {
    let error = json!({"error": {"message": format!("{PROVIDER_KEY} is tired"), "type": "server_error"}});
    for seed in 0..3 {
        let (gate, error) = (Gate::new(), error.to_string());
        let thinks = gate.clone();
        let first = Upstream::start(move |request, answer| {
            answer.begin_events();
            assert!(thinks.wait());
            match seed {
                0 => {
                    answer.event(&word(&request.json()["model"], "Hello"));
                    answer.event(&support::upstream::finish(&request.json()["model"]));
                    answer.event("[DONE]");
                }
                1 => answer.event(&error),
                _ => return answer.cut(),
            }
            answer.end();
        });
        let second = Upstream::polite();
        let relay = setup(&first, &second).limits("stream_silence_seconds_max = 1").start();
        let mut connection = Request::chat(&streamed()).key(&relay.key).begin(relay.http);
        let mut answer = connection.head();
        assert_eq!(answer.status, 200);
        answer.body = connection.read_until(": ping\n").into_bytes();
        gate.open();
        let (rest, end) = connection.rest();
        answer.body.extend(rest);
        assert_eq!((end, second.count()), (support::End::Clean, 0), "{}", answer.text());
        let told = answer.text().replace(": ping\n", "");
        if seed == 0 {
            assert!(told.contains("Hello") && told.ends_with("data: [DONE]\n\n"), "{told}");
        } else {
            let error: Value = serde_json::from_str(told.trim().strip_prefix("data: ").unwrap()).unwrap();
            support::client::assert_error_object(&error, "upstream_error", "upstream_error");
            assert!(!told.contains(PROVIDER_KEY), "{told}");
        }
    }
}
