//! Conversations through the running relay: what passes, what the upstream sees of it, and who is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::setup::{MODEL, PROVIDER_KEY, PROVIDER_MODEL, SLASHED};
use support::{Connection, End, Relay, Request, Response, Setup, Upstream};

fn hello(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn streamed(model: &str) -> Value {
    json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "Say hello"}]})
}

/// What every answer to a known key carries.
#[track_caller]
fn assert_limit_headers(answer: &Response, limit: u64) {
    assert_eq!(answer.number("x-ratelimit-limit"), limit);
    assert_eq!(answer.number("x-ratelimit-limit-requests"), limit);
    assert_eq!(answer.number("x-ratelimit-remaining"), answer.number("x-ratelimit-remaining-requests"));
    // A refused request takes none.
    let taken = u64::from(answer.status == 200);
    assert!(answer.number("x-ratelimit-remaining") + taken <= limit);
    assert!(answer.number("x-ratelimit-reset") <= 60, "whole seconds until a slot frees");
    assert!(answer.header("x-ratelimit-reset-requests").is_some());
    uuid_v7(&answer.request_id());
}

#[track_caller]
fn uuid_v7(id: &str) {
    let id: uuid::Uuid = id.parse().unwrap_or_else(|_| panic!("x-request-id is no UUID: {id}"));
    assert_eq!(id.get_version_num(), 7, "{id}");
}

#[test]
fn a_chat_passes_and_is_billed() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let before = relay.balance(&relay.account);
    let answer = relay.chat(&hello(MODEL));

    assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "Hello there");
    assert_eq!(answer.json()["usage"]["prompt_tokens"], 9);
    assert_limit_headers(&answer, 100_000);

    let sent = upstream.only();
    sent.assert_framing();
    assert_eq!((sent.method(), sent.path()), ("POST", "/v1/chat/completions"));
    assert_eq!(
        sent.header("authorization"),
        Some(&*format!("Bearer {PROVIDER_KEY}")),
        "the provider's key, not the client's"
    );
    assert!(!sent.head.contains(&relay.key));
    assert_eq!(sent.header("host"), Some(&*upstream.address.to_string()));
    assert_eq!(sent.header("accept-encoding").unwrap_or("identity"), "identity", "the relay reads the answer's text");
    assert_eq!(sent.json(), hello(PROVIDER_MODEL));

    let bill = relay.usage_of(&answer.request_id());
    assert_eq!(bill["account_id"], relay.account.id);
    assert_eq!((&bill["model"], &bill["provider"], &bill["status"]), (&json!(MODEL), &json!("upstream"), &json!(200)));
    assert_eq!((&bill["input_tokens"], &bill["output_tokens"]), (&json!(9), &json!(2)));
    assert_eq!((&bill["estimated"], &bill["interrupted"]), (&json!(false), &json!(false)));
    assert_eq!(bill["cost_nano_usd"], 9 * 1000 + 2 * 2000);
    assert_eq!(relay.balance(&relay.account), before - 13_000);
    assert!(relay.cli(&["audit"]).status.success());
}

#[test]
fn the_access_line_tells_all_but_secrets() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let answer = relay.chat(&hello(MODEL));
    let line = relay.access_line(&answer.request_id());
    assert_eq!((&line["model"], &line["provider"], &line["status"]), (&json!(MODEL), &json!("upstream"), &json!(200)));
    assert_eq!(line["account_id"], relay.account.id);
    assert!(line["key_id"].as_str().is_some_and(|id| id.starts_with("key_")), "{line}");
    assert_eq!(
        (&line["input_tokens"], &line["output_tokens"], &line["cost_nano_usd"]),
        (&json!(9), &json!(2), &json!(13_000))
    );
    assert!(line["total_ms"].is_number() && line["first_token_ms"].is_number(), "{line}");
    for said in [relay.stdout(), relay.stderr(), relay.metrics_page()] {
        for secret in ["Say hello", "Hello there", relay.key.as_str(), PROVIDER_KEY] {
            assert!(!said.contains(secret), "{secret:?} stands in what the relay says");
        }
    }
}

#[test]
fn a_stream_passes_as_it_came_and_usage_shows_only_to_who_asked() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();

    let quiet = relay.chat(&streamed(MODEL));
    assert_eq!((quiet.status, quiet.end), (200, End::Clean), "{}", quiet.text());
    assert!(quiet.header("content-type").unwrap().starts_with("text/event-stream"));
    assert_limit_headers(&quiet, 100_000);
    assert_eq!(quiet.events().last().map(String::as_str), Some("[DONE]"));
    assert_eq!(quiet.events().len(), 4, "two words, the finish and [DONE]: {}", quiet.text());
    assert!(!quiet.text().contains("usage"), "{}", quiet.text());

    let mut asking = streamed(MODEL);
    asking["stream_options"] = json!({"include_usage": true});
    let loud = relay.chat(&asking);
    let events = loud.events();
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(11)));

    for received in upstream.received() {
        received.assert_framing();
        assert_eq!(received.json()["stream_options"]["include_usage"], true, "usage is always asked for");
    }
    for answer in [quiet, loud] {
        let bill = relay.usage_of(&answer.request_id());
        assert_eq!(
            (&bill["input_tokens"], &bill["output_tokens"], &bill["estimated"]),
            (&json!(9), &json!(2), &json!(false))
        );
    }
}

#[test]
fn what_the_relay_does_not_know_arrives_as_it_was_sent() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let around = |model: &str| {
        format!(
            "{{ \"zeta\" : 12345678901234567890123,\n\t\"messages\":[{{\"content\":\"caf\\u00e9 \\/ \\ud83d\\ude00\",\
             \"role\":\"user\",\"x\":1.0e2}}], \"model\":\"{model}\" , \"alpha\":{{\"b\":[],\"a\":null}} }}"
        )
    };
    let answer = Request::post("/v1/chat/completions", around(MODEL)).key(&relay.key).send(relay.http);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(String::from_utf8(upstream.only().body).unwrap(), around(PROVIDER_MODEL));
}

#[test]
fn models_are_listed_and_retrieved() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let list = Request::get("/v1/models").key(&relay.key).send(relay.http);
    assert_eq!(list.status, 200, "{}", list.text());
    assert_eq!(list.json()["object"], "list");
    let ids: Vec<Value> = list.json()["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, [MODEL, SLASHED]);
    uuid_v7(&list.request_id());
    assert!(list.header("x-ratelimit-limit").is_some());

    for path in [format!("/v1/models/{SLASHED}"), format!("/v1/models/{}", SLASHED.replace('/', "%2F"))] {
        let model = Request::get(&path).key(&relay.key).send(relay.http);
        assert_eq!(model.status, 200, "{path}: {}", model.text());
        let model = model.json();
        assert_eq!(
            (&model["id"], &model["object"], &model["owned_by"]),
            (&json!(SLASHED), &json!("model"), &json!("tests"))
        );
        assert!(model["created"].is_number(), "{model}");
        assert_eq!((&model["context_window"], &model["max_output_tokens"]), (&json!(128_000), &json!(16_384)));
        let prices = (model["pricing"]["input"].as_str(), model["pricing"]["output"].as_str());
        assert_eq!(prices, (Some("1.00"), Some("2.00")), "{model}");
    }
    let missing = Request::get("/v1/models/none/such").key(&relay.key).send(relay.http);
    missing.assert_error(404, "invalid_request_error", "model_not_found");
    Request::get("/v1/models").send(relay.http).assert_error(401, "authentication_error", "invalid_api_key");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_key_sees_and_uses_only_its_models() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let key = relay.key_of(&relay.account, &["--models", SLASHED]).key;
    let list = Request::get("/v1/models").key(&key).send(relay.http).json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    assert_eq!(list["data"][0]["id"], SLASHED);
    let refused = Request::chat(&hello(MODEL)).key(&key).send(relay.http);
    refused.assert_error(403, "permission_error", "model_not_allowed");
    assert_eq!(Request::chat(&hello(SLASHED)).key(&key).send(relay.http).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn every_failed_authentication_looks_the_same() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let suspended = relay.account("open", "1");
    let of_suspended = relay.key_of(&suspended, &[]).key;
    assert!(relay.cli(&["account", "suspend", &suspended.id]).status.success());
    let expired = relay.key_of(&relay.account, &["--expires", "2020-01-01T00:00:00Z"]).key;
    let revoked = relay.key_of(&relay.account, &[]);
    assert!(relay.cli(&["key", "revoke", &revoked.id]).status.success());

    let mut wrong_checksum = relay.key.clone();
    let last = if wrong_checksum.pop() == Some('0') { '1' } else { '0' };
    wrong_checksum.push(last);
    let lower_case = Request::chat(&hello(MODEL)).header("authorization", &format!("bearer {}", relay.key));
    assert_eq!(lower_case.send(relay.http).status, 200, "the scheme's case does not matter");

    let mut messages = Vec::new();
    let keys = ["", "nonsense", "sk-proj-0123456789", &wrong_checksum, &revoked.key, &of_suspended, &expired];
    let with_key = keys.map(|key| Request::chat(&hello(MODEL)).key(key));
    let others =
        ["Basic dXNlcjpwYXNz", &relay.key].map(|value| Request::chat(&hello(MODEL)).header("authorization", value));
    for request in with_key.into_iter().chain(others).chain([Request::chat(&hello(MODEL))]) {
        let answer = request.send(relay.http);
        messages.push(answer.assert_error(401, "authentication_error", "invalid_api_key").0);
        uuid_v7(&answer.request_id());
        assert_eq!(answer.header("x-ratelimit-limit"), None, "limits are a key's, and there is none");
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "one message for all: {messages:?}");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn failed_authentication_is_throttled_per_address() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).limits("failed_auth_per_minute_max = 5").start();
    let codes: Vec<Value> = (0..8)
        .map(|_| Request::chat(&hello(MODEL)).key("x").send(relay.http).json()["error"]["code"].clone())
        .collect();
    assert_eq!(codes[0], "invalid_api_key");
    assert_eq!(codes[7], "too_many_failed_attempts", "{codes:?}");
}

#[test]
fn without_money_nothing_passes() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let poor = relay.account("open", "0");
    let key = relay.key_of(&poor, &[]).key;
    let refused = Request::chat(&hello(MODEL)).key(&key).send(relay.http);
    refused.assert_error(402, "insufficient_quota", "insufficient_credits");
    assert_limit_headers(&refused, 100_000);
    assert_eq!(upstream.count(), 0);

    // 13,000 nano-USD a request, of which up to 90,000 are held for a prompt of a few words: the third finds too little left.
    assert!(relay.cli(&["account", "credit", &poor.id, "0.0001"]).status.success());
    support::until("the credit to be seen", || {
        (Request::chat(&hello(MODEL)).key(&key).send(relay.http).status == 200).then_some(())
    });
    let mut passed = 1;
    let refused = loop {
        let answer = Request::chat(&hello(MODEL)).key(&key).send(relay.http);
        if answer.status != 200 {
            break answer;
        }
        passed += 1;
        assert!(passed < 100 / 13, "the charge holds at once, not after the ledger is written");
    };
    refused.assert_error(402, "insufficient_quota", "insufficient_credits");
    assert_eq!(upstream.count(), passed);
}

#[test]
fn a_keys_budget_ends_before_the_accounts_money() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let key = relay.key_of(&relay.account, &["--budget", "0.0001"]).key;
    let ask = || Request::chat(&hello(MODEL)).key(&key).send(relay.http);
    let refused = (0..100 / 13).map(|_| ask()).find(|answer| answer.status != 200);
    let refused = refused.expect("13,000 nano-USD of 100,000 each time, and no refusal");
    refused.assert_error(402, "insufficient_quota", "budget_exceeded");
    assert_eq!(relay.chat(&hello(MODEL)).status, 200, "the account's other keys go on");
}

#[test]
fn a_key_may_be_bound_to_addresses() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let far = relay.key_of(&relay.account, &["--allow-ip", "10.0.0.0/8,2001:db8::/32"]).key;
    let near = relay.key_of(&relay.account, &["--allow-ip", "10.0.0.0/8,127.0.0.0/8"]).key;
    let ask = |key: &str| Request::chat(&hello(MODEL)).key(key).send(relay.http);
    ask(&far).assert_error(403, "permission_error", "ip_not_allowed");
    assert_eq!(ask(&near).status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn unknown_paths_models_and_methods() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let ask = |request: Request| request.key(&relay.key).send(relay.http);
    for path in [
        "/",
        "/v1",
        "/v1/completions",
        "/v1/chat",
        "/v2/chat/completions",
        "/v1/chat/completions/x",
        "/healthz",
        "/metrics",
    ] {
        ask(Request::get(path)).assert_error(404, "invalid_request_error", "unknown_url");
        ask(Request::post(path, "{}")).assert_error(404, "invalid_request_error", "unknown_url");
    }
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let answer = ask(Request::new(method, "/v1/chat/completions"));
        answer.assert_error(405, "invalid_request_error", "method_not_allowed");
        assert_eq!(answer.header("allow"), Some("POST"));
    }
    ask(Request::post("/v1/models", "{}")).assert_error(405, "invalid_request_error", "method_not_allowed");
    let (_, param) = relay.chat(&hello("gpt-nonesuch")).assert_error(404, "invalid_request_error", "model_not_found");
    assert_eq!(param.as_deref(), Some("model"));
    assert_eq!(ask(Request::chat(&hello(MODEL))).status, 200);
    let query = Request::post("/v1/chat/completions?api-version=1", hello(MODEL).to_string());
    assert_eq!(ask(query).status, 200, "a query changes nothing");
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_refusal_leaves_the_connection_usable() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let mut connection = Connection::open(relay.http);
    assert_eq!(connection.ask(&Request::chat(&hello("none")).key(&relay.key)).status, 404);
    assert_eq!(connection.ask(&Request::get("/nowhere").key(&relay.key)).status, 404);
    for _ in 0..3 {
        assert_eq!(connection.ask(&Request::chat(&streamed(MODEL)).key(&relay.key)).end, End::Clean);
    }
    let ids: std::collections::HashSet<String> =
        relay.usage().iter().map(|row| row["request_id"].to_string()).collect();
    assert!(ids.len() <= 3, "refusals are not billed");
}

#[test]
fn two_requests_written_at_once_are_answered_in_order() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let mut connection = Connection::open(relay.http);
    let first = Request::chat(&hello(MODEL)).key(&relay.key);
    let second = Request::chat(&hello("none")).key(&relay.key);
    connection.write(&[first.bytes(), second.bytes()].concat());
    assert_eq!(connection.response().status, 200);
    assert_eq!(connection.response().status, 404);
}

#[test]
fn a_client_that_waits_for_100_gets_it() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let request = Request::chat(&hello(MODEL)).key(&relay.key).header("expect", "100-continue");
    let mut connection = Connection::open(relay.http);
    connection.write(request.head().as_bytes());
    assert_eq!(connection.head().status, 100);
    connection.write(&request.body);
    assert_eq!(connection.response().status, 200);
    upstream.only().assert_framing();

    // Who is refused anyway need not send the body first.
    let refused = Request::chat(&hello(MODEL)).key("wrong").header("expect", "100-continue");
    let mut connection = Connection::open(relay.http);
    connection.write(refused.head().as_bytes());
    assert_eq!(connection.head().status, 401);
}

#[test]
fn requests_are_counted() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    for _ in 0..3 {
        relay.chat(&hello(MODEL));
    }
    relay.chat(&hello("a-model-that-a-client-made-up"));
    let seen = |relay: &Relay, name: &str, labels: &[(&str, &str)], count: f64| {
        support::until(&format!("{name} to be {count}"), || {
            ((relay.metric(name, labels) - count).abs() < 1e-9).then_some(())
        });
    };
    seen(&relay, "tollgate_requests_total", &[("model", MODEL), ("provider", "upstream"), ("status", "200")], 3.0);
    seen(&relay, "tollgate_refusals_total", &[("code", "model_not_found")], 1.0);
    seen(&relay, "tollgate_tokens_total", &[("model", MODEL), ("class", "input")], 27.0);
    seen(&relay, "tollgate_tokens_total", &[("model", MODEL), ("class", "output")], 6.0);
    seen(&relay, "tollgate_upstream_attempts_total", &[("provider", "upstream"), ("outcome", "ok")], 3.0);
    seen(&relay, "tollgate_streams_active", &[], 0.0);
    seen(&relay, "tollgate_request_seconds_count", &[], 3.0);
    let page = relay.metrics_page();
    assert!(!page.contains("made-up"), "a client can choose no label's value");
    assert!(page.contains("process_"), "the process's own figures");
}

#[test]
fn health_is_told_on_the_admin_address_alone() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    assert_eq!(Request::get("/healthz").send(relay.admin).status, 200);
    assert_eq!(Request::get("/readyz").send(relay.admin).status, 200);
    assert_eq!(Request::get("/nowhere").send(relay.admin).status, 404);
    assert_eq!(Request::chat(&hello(MODEL)).key(&relay.key).send(relay.admin).status, 404);
}

#[test]
fn what_was_billed_before_a_stop_is_there_after_it() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let answer = relay.chat(&hello(MODEL));
    relay.signal("TERM");
    assert!(relay.wait_for_end().success(), "{}", relay.stderr());
    let bill = relay.usage_of(&answer.request_id());
    assert_eq!(bill["cost_nano_usd"], 13_000, "settled before the process ended, or it would wait for the next one");
    relay.restart();
    assert_eq!(relay.chat(&hello(MODEL)).status, 200);
    assert!(relay.cli(&["audit"]).status.success());
}
