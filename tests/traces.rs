//! What a receiver of traces gets, through the public door: which spans, below which, with what of the request in them, and
//! nothing of what was said; and that a receiver which is away costs requests nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

#[path = "traces/receiver.rs"]
mod receiver;

use receiver::{
    ALL, Any, CLIENT, ERROR, SERVER, TOKEN, UNSET, assert_as_billed, assert_texts, attributes, decoded, receiver,
    spans, status, text, texts, trace_of, traced, truth, whole,
};
use serde_json::{Value, json};
use support::client::Request;
use support::setup::{MODEL, PROVIDER_KEY, PROVIDER_MODEL};
use support::tls::Authority;
use support::upstream::word;
use support::{Answer, End, Gate, Relay, Reserved, Setup, Upstream, until};

/// What a client says, and nobody else is to read.
const PROMPT: &str = "the-clients-own-secret-words";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const PARENT_TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const PARENT_SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]})
}

fn streamed() -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": PROMPT}]})
}

/// So many spans have come to this.
#[track_caller]
fn wait_for_outcome(relay: &Relay, outcome: &str, count: f64) {
    let name = "tollgate_trace_spans_total";
    until(outcome, || (relay.metric(name, &[("outcome", outcome)]) >= count).then_some(()));
}

/// The id of the one request that was not answered, by the access log.
#[track_caller]
fn request_of(relay: &Relay, status: u16) -> String {
    let line = until("the access line", || relay.access_log().into_iter().find(|line| line["status"] == status));
    line["request_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_request_is_a_span_and_its_try_one_below_it() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let answer = relay.chat(&hello());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let id = answer.request_id();
    let trace = trace_of(&receiver, &id);
    let [own, tried] = &trace[..] else { panic!("{trace:#?}") };

    assert_eq!((own.kind, &*own.name, status(own)), (SERVER, "POST /v1/chat/completions", UNSET));
    assert_eq!(own.trace_id, id_bytes(&id), "a trace without a parent has the request's id");
    assert!(own.parent_span_id.is_empty() && own.span_id != [0; 8]);
    assert_texts(own, &[("http.request.method", "POST"), ("http.route", "/v1/chat/completions")]);
    assert_eq!(whole(own, "http.response.status_code"), Some(200));
    assert_eq!((truth(own, "gen_ai.request.stream"), whole(own, "tollgate.tries")), (Some(false), Some(1)));
    assert_eq!(text(own, "error.type"), None);
    assert_as_billed(&relay, own, &id);

    assert_eq!((tried.kind, &*tried.name, status(tried)), (CLIENT, &*format!("chat {PROVIDER_MODEL}"), UNSET));
    assert_eq!((&tried.trace_id, &tried.parent_span_id), (&own.trace_id, &own.span_id));
    assert_ne!(tried.span_id, own.span_id);
    assert_texts(
        tried,
        &[
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "upstream"),
            ("gen_ai.request.model", PROVIDER_MODEL),
            ("tollgate.outcome", "ok"),
            ("server.address", "127.0.0.1"),
            ("gen_ai.response.model", PROVIDER_MODEL),
        ],
    );
    assert_eq!(whole(tried, "server.port"), Some(upstream.address.port().into()));
    assert_eq!(whole(tried, "http.response.status_code"), Some(200));
    assert_eq!(whole(tried, "gen_ai.usage.input_tokens"), Some(9));
    assert_eq!(whole(tried, "gen_ai.usage.output_tokens"), Some(2));
    assert_eq!(texts(tried, "gen_ai.response.finish_reasons"), ["stop"]);
    assert!(own.start_time_unix_nano <= tried.start_time_unix_nano);
    assert!(
        tried.start_time_unix_nano < tried.end_time_unix_nano && tried.end_time_unix_nano <= own.end_time_unix_nano
    );
}

#[test]
fn batches_say_who_sends_them() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay =
        traced(Setup::new(&upstream), receiver.address, "sample_ratio = 1\nservice_name = \"relay-eu\"").start();
    trace_of(&receiver, &relay.chat(&hello()).request_id());
    let batch = decoded(&receiver.received()[0]);
    let resource = attributes(&batch.resource_spans[0].resource.as_ref().unwrap().attributes);
    assert_eq!(resource["service.name"], Any::StringValue("relay-eu".into()));
    assert_eq!(resource["service.version"], Any::StringValue(env!("CARGO_PKG_VERSION").into()));
    assert!(resource.contains_key("service.instance.id"));
    assert_eq!(batch.resource_spans[0].scope_spans[0].scope.as_ref().unwrap().name, "tollgate");
}

#[test]
fn a_stream_tells_when_its_first_token_came() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let id = relay.chat(&streamed()).request_id();
    let trace = trace_of(&receiver, &id);
    let row = assert_as_billed(&relay, &trace[0], &id);
    assert_eq!(whole(&trace[0], "tollgate.first_token_ms"), row["first_token_ms"].as_i64());
    assert_eq!(truth(&trace[1], "gen_ai.request.stream"), Some(true));
    assert_eq!(texts(&trace[1], "gen_ai.response.finish_reasons"), ["stop"]);
    let [event] = &trace[1].events[..] else { panic!("{trace:#?}") };
    assert_eq!(event.name, "first_token");
    let Some(Any::DoubleValue(seconds)) =
        attributes(&trace[1].attributes).remove("gen_ai.response.time_to_first_chunk")
    else {
        panic!("{trace:#?}")
    };
    assert!((0.0..20.0).contains(&seconds), "{seconds}");
}

#[test]
fn what_nobody_reported_is_told_as_it_was_counted() {
    let upstream = Upstream::start(|request, answer| {
        let model = request.json()["model"].clone();
        answer.begin_events();
        answer.event(&word(&model, "Hello there, and a few words more"));
        answer.event(&support::upstream::finish(&model));
        answer.event("[DONE]");
        answer.end();
    });
    let receiver = receiver();
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let id = relay.chat(&streamed()).request_id();
    let trace = trace_of(&receiver, &id);
    let row = assert_as_billed(&relay, &trace[0], &id);
    assert!(row["estimated"] == true && row["output_tokens"].as_i64() > Some(0), "{row}");
    assert_eq!(whole(&trace[1], "gen_ai.usage.output_tokens"), row["output_tokens"].as_i64());
}

#[test]
fn a_failover_is_a_span_for_each_try() {
    let first = Upstream::start(|_, answer| answer.json(500, &json!({"error": {"message": "no"}})));
    let (second, receiver) = (Upstream::polite(), receiver());
    let setup = Setup::bare()
        .provider("first", &first.base_url())
        .provider("second", &second.base_url())
        .model(MODEL, &[("first", 0), ("second", 1)]);
    let relay = traced(setup, receiver.address, ALL).start();
    let answer = relay.chat(&hello());
    assert_eq!(answer.status, 200);
    let id = answer.request_id();
    let trace = trace_of(&receiver, &id);
    let [own, failed, tried] = &trace[..] else { panic!("{trace:#?}") };
    assert_eq!((status(own), whole(own, "tollgate.tries"), text(own, "error.type")), (UNSET, Some(2), None));
    assert_texts(failed, &[("tollgate.provider", "first"), ("tollgate.outcome", "500"), ("error.type", "500")]);
    assert_eq!((status(failed), whole(failed, "http.response.status_code")), (ERROR, Some(500)));
    assert_eq!(whole(failed, "gen_ai.usage.input_tokens"), None, "usage is told once");
    assert_texts(tried, &[("tollgate.provider", "second"), ("tollgate.outcome", "ok")]);
    assert_eq!((status(tried), whole(tried, "gen_ai.usage.input_tokens")), (UNSET, Some(9)));
    assert_ne!(failed.span_id, tried.span_id);
    assert!(failed.end_time_unix_nano <= tried.end_time_unix_nano);
    assert_as_billed(&relay, own, &id);
}

#[test]
fn a_request_that_nobody_answers_is_an_error() {
    let upstream = Reserved::new();
    let receiver = receiver();
    let setup = Setup::bare().provider("upstream", &format!("http://{}/v1", upstream.address));
    let relay = traced(setup, receiver.address, ALL).start();
    let answer = relay.chat(&hello());
    assert_eq!(answer.status, 502);
    let trace = trace_of(&receiver, &answer.request_id());
    assert_eq!((status(&trace[0]), whole(&trace[0], "http.response.status_code")), (ERROR, Some(502)));
    assert_texts(&trace[0], &[("error.type", "upstream_error")]);
    assert_texts(&trace[1], &[("error.type", "unconnected"), ("tollgate.outcome", "unconnected")]);
    assert_eq!((status(&trace[1]), whole(&trace[1], "http.response.status_code")), (ERROR, None));
}

#[test]
fn a_refusal_is_a_span_without_tries() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let unknown = Request::chat(&hello()).key("tg_live_nobody-knows-this").send(relay.http);
    let lost = Request::get("/v1/what?a-client-made=this-up").key(&relay.key).send(relay.http);
    let wrong = relay.chat(&json!({"model": "no-such-model", "messages": [{"role": "user", "content": "Hi"}]}));
    let models = Request::get("/v1/models").key(&relay.key).send(relay.http);
    assert_eq!([&unknown, &lost, &wrong, &models].map(|answer| answer.status), [401, 404, 404, 200]);
    let of = |answer: &support::Response| {
        let trace = trace_of(&receiver, &answer.request_id());
        assert_eq!((trace.len(), status(&trace[0])), (1, UNSET), "a client's fault is no failure of the server");
        trace[0].clone()
    };
    assert_texts(&of(&unknown), &[("error.type", "invalid_api_key")]);
    assert_texts(&of(&wrong), &[("error.type", "model_not_found"), ("tollgate.account_id", &relay.account.id)]);
    let lost = of(&lost);
    assert_eq!((&*lost.name, text(&lost, "http.route")), ("GET", None), "what a client makes up is not told");
    assert_eq!((&*of(&models).name, text(&of(&models), "error.type")), ("GET /v1/models", None));
}

#[test]
fn a_client_that_leaves_is_an_error() {
    let upstream = Upstream::start(|request, answer| {
        let model = request.json()["model"].clone();
        answer.begin_events();
        answer.event(&word(&model, "Hello"));
        answer.sees_it_leave();
    });
    let receiver = receiver();
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let mut connection = Request::chat(&streamed()).key(&relay.key).begin(relay.http);
    let id = connection.head().request_id();
    connection.read_until("Hello");
    drop(connection);
    let trace = trace_of(&receiver, &id);
    assert_eq!((status(&trace[0]), status(&trace[1])), (ERROR, ERROR));
    assert_texts(&trace[0], &[("error.type", "interrupted")]);
    assert_texts(&trace[1], &[("error.type", "interrupted"), ("tollgate.outcome", "ok")]);
    let row = assert_as_billed(&relay, &trace[0], &id);
    assert_eq!((row["interrupted"].as_bool(), row["estimated"].as_bool()), (Some(true), Some(true)));
}

#[test]
fn a_client_that_leaves_before_the_answer_is_an_error_without_a_status() {
    let upstream = Upstream::start(|_, answer| {
        answer.sees_it_leave();
    });
    let receiver = receiver();
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let connection = Request::chat(&hello()).key(&relay.key).begin(relay.http);
    upstream.wait_for(1);
    drop(connection);
    let trace = trace_of(&receiver, &request_of(&relay, 499));
    assert_eq!((status(&trace[0]), whole(&trace[0], "http.response.status_code")), (ERROR, None));
    assert_texts(&trace[0], &[("error.type", "interrupted")]);
    assert_texts(&trace[1], &[("error.type", "interrupted"), ("tollgate.outcome", "interrupted")]);
}

#[test]
fn a_stream_that_breaks_off_is_an_error_of_the_try_and_of_the_request() {
    let upstream = Upstream::start(|request, answer| {
        let model = request.json()["model"].clone();
        answer.begin_events();
        answer.event(&word(&model, "Hello"));
        answer.cut();
    });
    let receiver = receiver();
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let trace = trace_of(&receiver, &relay.chat(&streamed()).request_id());
    for span in &trace[..2] {
        assert_eq!(status(span), ERROR);
        assert_texts(span, &[("error.type", "upstream_truncated")]);
    }
    assert_eq!(whole(&trace[0], "http.response.status_code"), Some(200), "which the client had by then");
}

#[test]
fn nothing_that_was_said_and_no_secret_is_exported() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let answers = [
        relay.chat(&hello()),
        relay.chat(&streamed()),
        relay.chat(&json!({"model": PROMPT, "messages": [{"role": "user", "content": PROMPT}]})),
        Request::get(&format!("/{PROMPT}?{PROMPT}")).key(&relay.key).header("x-a", PROMPT).send(relay.http),
        Request::new(&PROMPT.to_uppercase(), "/v1/models").key(&relay.key).send(relay.http),
    ];
    for answer in &answers {
        trace_of(&receiver, &answer.request_id());
    }
    let sent: Vec<u8> = receiver.received().iter().flat_map(|batch| batch.body.clone()).collect();
    let shared = PROMPT.to_uppercase();
    for secret in [PROMPT, &shared, "Hello there", &relay.key, &relay.key[8..], PROVIDER_KEY, TOKEN] {
        assert!(!sent.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
    }
    assert!(sent.windows(MODEL.len()).any(|window| window == MODEL.as_bytes()), "what is looked for would be found");
}

#[test]
fn a_clients_trace_is_gone_on_with() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    // A client that is not trusted cannot hide its request from the sample either.
    for parent in [PARENT.to_owned(), PARENT.replace("-01", "-00")] {
        let id = Request::chat(&hello()).key(&relay.key).header("traceparent", &parent).send(relay.http).request_id();
        let trace = trace_of(&receiver, &id);
        assert!(trace.iter().all(|span| span.trace_id == PARENT_TRACE.to_be_bytes()));
        assert_eq!(trace[0].parent_span_id, PARENT_SPAN.to_be_bytes());
        assert_eq!(trace[1].parent_span_id, trace[0].span_id);
    }
    assert!(upstream.received().iter().all(|request| request.header("traceparent").is_none()), "no provider is told");
}

#[test]
fn a_client_that_is_not_trusted_cannot_have_itself_sampled() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, "sample_ratio = 0").start();
    for _ in 0..5 {
        let answer = Request::chat(&hello()).key(&relay.key).header("traceparent", PARENT).send(relay.http);
        assert_eq!(answer.status, 200);
    }
    relay.signal("TERM");
    relay.wait_for_end();
    assert_eq!(receiver.count(), 0, "what is sampled is sent at the end at the latest");
}

#[test]
fn a_client_that_is_trusted_decides() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, "sample_ratio = 0.0\ntrust_parent = true").start();
    let ask = |parent: &str| Request::chat(&hello()).key(&relay.key).header("traceparent", parent).send(relay.http);
    ask(&PARENT.replace("-01", "-00"));
    let sampled = ask(PARENT).request_id();
    relay.signal("TERM");
    relay.wait_for_end();
    assert_eq!(trace_of(&receiver, &sampled).len(), 2);
    assert_eq!(spans(&receiver).len(), 2, "the other is not there");
}

#[test]
fn a_provider_is_told_of_the_trace_where_that_is_wanted() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, "sample_ratio = 1.0\npropagate = true").start();
    let id = Request::chat(&hello()).key(&relay.key).header("traceparent", PARENT).send(relay.http).request_id();
    let trace = trace_of(&receiver, &id);
    let try_id = u64::from_be_bytes(trace[1].span_id.clone().try_into().unwrap());
    let told = format!("00-{PARENT_TRACE:032x}-{try_id:016x}-01");
    assert_eq!(upstream.only().header("traceparent"), Some(&*told));
}

#[test]
fn a_receiver_that_is_away_costs_requests_nothing() {
    let (upstream, nobody) = (Upstream::polite(), Reserved::new());
    let relay = traced(Setup::new(&upstream), nobody.address, ALL).start();
    for _ in 0..5 {
        assert_eq!(relay.chat(&hello()).status, 200);
    }
    assert_eq!(relay.metric("tollgate_requests_total", &[("status", "200")]), 5.0);
    wait_for_outcome(&relay, "undelivered", 2.0);
    assert!(relay.stderr().contains("traces do not go through"), "{}", relay.stderr());
    assert_eq!(relay.metric("tollgate_trace_spans_total", &[("outcome", "sent")]), 0.0);
    assert!(!relay.stderr().contains(TOKEN));
}

#[test]
fn a_receiver_that_is_away_for_a_moment_gets_it_all() {
    let gate = Gate::new();
    let opened = gate.clone();
    let refused = std::sync::atomic::AtomicBool::new(false);
    let receiver = Upstream::start(move |_, answer: &mut Answer| {
        let is_first = !refused.swap(true, std::sync::atomic::Ordering::SeqCst);
        if is_first {
            answer.whole(503, &[], b"");
        } else {
            opened.wait();
            answer.whole(200, &[], b"");
        }
    });
    let upstream = Upstream::polite();
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    assert_eq!(relay.chat(&hello()).status, 200);
    let batches = receiver.wait_for(2);
    assert_eq!(batches[0].body, batches[1].body, "the same again");
    gate.open();
    wait_for_outcome(&relay, "sent", 2.0);
    assert_eq!(relay.metric("tollgate_trace_spans_total", &[("outcome", "undelivered")]), 0.0);
}

#[test]
fn a_receiver_that_refuses_is_not_asked_again() {
    let receiver = Upstream::start(|_, answer| answer.whole(401, &[], b""));
    let upstream = Upstream::polite();
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    assert_eq!(relay.chat(&hello()).status, 200);
    wait_for_outcome(&relay, "refused", 2.0);
    assert_eq!(receiver.count(), 1);
}

#[test]
fn what_waits_is_sent_before_the_process_ends() {
    let (upstream, receiver) = (Upstream::polite(), receiver());
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    let ids: Vec<String> = (0..3).map(|_| relay.chat(&hello()).request_id()).collect();
    relay.signal("TERM");
    assert!(relay.wait_for_end().success());
    for id in ids {
        assert_eq!(trace_of(&receiver, &id).len(), 2);
    }
}

#[test]
fn a_receiver_that_never_answers_does_not_hold_up_the_end() {
    let gate = Gate::new();
    let held = gate.clone();
    let receiver = Upstream::start(move |_, _| {
        held.wait();
    });
    let upstream = Upstream::polite();
    let relay = traced(Setup::new(&upstream), receiver.address, ALL).start();
    assert_eq!(relay.chat(&hello()).status, 200);
    receiver.wait_for(1);
    relay.signal("TERM");
    assert!(relay.wait_for_end().success());
    assert!(relay.stderr().contains("not all traces were sent in time"), "{}", relay.stderr());
    gate.open();
}

#[test]
fn without_the_setting_nobody_is_asked_and_nothing_is_said() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let answer = Request::chat(&streamed()).key(&relay.key).header("traceparent", PARENT).send(relay.http);
    assert_eq!((answer.status, answer.end), (200, End::Clean));
    assert_eq!(upstream.only().header("traceparent"), None);
    assert_eq!(relay.metric("tollgate_trace_spans_total", &[]), 0.0);
}

#[test]
fn a_translated_answer_is_told_in_the_conventions_words() {
    let upstream = Upstream::start(|_, answer| {
        answer.json(
            200,
            &json!({
                "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-at-home",
                "content": [{"type": "text", "text": "Hello there"}], "stop_reason": "max_tokens",
                "usage": {"input_tokens": 5, "cache_read_input_tokens": 30, "output_tokens": 2},
            }),
        );
    });
    let receiver = receiver();
    let provider = format!(
        "[[provider]]\nname = \"claude\"\ndialect = \"anthropic\"\nbase_url = \"http://{}\"\n\
         credentials = [{{ env = \"UPSTREAM_KEY\" }}]\n",
        upstream.address
    );
    let setup = Setup::bare().table(&provider).model(MODEL, &[("claude", 0)]);
    let relay = traced(setup, receiver.address, ALL).start();
    let answer = relay.chat(&hello());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let id = answer.request_id();
    let trace = trace_of(&receiver, &id);
    let row = assert_as_billed(&relay, &trace[0], &id);
    assert_eq!((row["input_tokens"].as_i64(), row["cache_read_tokens"].as_i64()), (Some(5), Some(30)));
    assert_texts(&trace[1], &[("gen_ai.provider.name", "anthropic"), ("tollgate.provider", "claude")]);
    assert_eq!(whole(&trace[1], "gen_ai.usage.input_tokens"), Some(35), "those from a cache are of the prompt");
    assert_eq!(whole(&trace[1], "gen_ai.usage.cache_read.input_tokens"), Some(30));
    assert_eq!(texts(&trace[1], "gen_ai.response.finish_reasons"), ["length"]);
    assert_eq!(text(&trace[1], "gen_ai.response.model"), None, "the client's own name for it is no news");
}

#[test]
fn a_receiver_behind_tls_has_to_show_who_it_is() {
    let authority = Authority::new("An authority");
    for (host, outcome) in [("localhost", "sent"), ("another.test", "undelivered")] {
        let tls = authority.certify(host).server();
        let receiver = Upstream::start_tls(tls, |_, answer| answer.whole(200, &[], b""));
        let upstream = Upstream::polite();
        let endpoint = format!("https://localhost:{}", receiver.address.port());
        let relay = Setup::new(&upstream)
            .file("roots.pem", &authority.pem())
            .env("SSL_CERT_FILE", "roots.pem")
            .table(&format!("[telemetry.traces]\nendpoint = {endpoint:?}\n{ALL}"))
            .start();
        assert_eq!(relay.chat(&hello()).status, 200);
        wait_for_outcome(&relay, outcome, 2.0);
        assert_eq!(receiver.count() == 0, outcome == "undelivered");
    }
}

/// A UUID's bytes.
fn id_bytes(id: &str) -> Vec<u8> {
    u128::from_str_radix(&id.replace('-', ""), 16).unwrap().to_be_bytes().to_vec()
}
