//! Who is asked when a provider fails: other targets, other credentials, nobody for a while; and what may be tried again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use support::setup::{MODEL, PROVIDER_KEY, PROVIDER_MODEL};
use support::upstream::word;
use support::{Answer, Gate, Received, Relay, Request, Response, Setup, Upstream};

const SECOND_KEY: &str = "sk-second-of-the-provider-987654";
const ADMIN_TOKEN: &str = "the-operators-own-token";

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn streamed() -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn failing(status: u16) -> impl Fn(&Received, &mut Answer) + Send + Sync + Clone + 'static {
    move |_, answer| answer.json(status, &json!({"error": {"message": "no"}}))
}

fn limiting(seconds: &str) -> impl Fn(&Received, &mut Answer) + Send + Sync + 'static {
    let seconds = seconds.to_owned();
    move |_, answer| {
        let headers = [("content-type", "application/json"), ("retry-after", &*seconds)];
        answer.whole(429, &headers, br#"{"error":{"message":"slow down"}}"#);
    }
}

fn setup(providers: &[(&str, &Upstream)]) -> Setup {
    let targets: Vec<(&str, u32)> = providers.iter().zip(0..).map(|((name, _), tier)| (*name, tier)).collect();
    let bare = Setup::bare().env("TOLLGATE_ADMIN_TOKEN", ADMIN_TOKEN);
    let with_providers =
        providers.iter().fold(bare, |setup, (name, upstream)| setup.provider(name, &upstream.base_url()));
    with_providers.model(MODEL, &targets).table("[admin]\ntoken = { env = \"TOLLGATE_ADMIN_TOKEN\" }\n")
}

/// A first upstream that does so, and a polite one behind it.
fn pair(first: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> (Upstream, Upstream, Relay) {
    let (first, second) = (Upstream::start(first), Upstream::polite());
    let relay = setup(&[("first", &first), ("second", &second)]).start();
    (first, second, relay)
}

fn alone(script: impl Fn(&Received, &mut Answer) + Send + Sync + 'static) -> (Upstream, Relay) {
    let upstream = Upstream::start(script);
    let relay = setup(&[("only", &upstream)]).start();
    (upstream, relay)
}

/// A provider with two credentials, of which the script gets whether it is the second.
fn two_credentials(script: impl Fn(bool, &Received, &mut Answer) + Send + Sync + 'static) -> (Upstream, Relay) {
    let upstream = Upstream::start(move |request, answer| script(with_second_key(request), request, answer));
    let provider = format!(
        "[[provider]]\nname = \"upstream\"\ndialect = \"openai\"\nbase_url = {:?}\n\
         credentials = [{{ env = \"UPSTREAM_KEY\" }}, {{ env = \"SECOND_KEY\" }}]\n",
        upstream.base_url()
    );
    let relay = Setup::bare().env("SECOND_KEY", SECOND_KEY).table(&provider).start();
    (upstream, relay)
}

fn with_second_key(request: &Received) -> bool {
    request.header("authorization").unwrap().ends_with(SECOND_KEY)
}

fn asked_with_first_key(upstream: &Upstream) -> usize {
    upstream.received().iter().filter(|request| !with_second_key(request)).count()
}

fn reload(relay: &Relay) {
    let reloads = || relay.metric("tollgate_config_reloads_total", &[("outcome", "ok")]);
    let before = reloads();
    relay.signal("HUP");
    support::until("a reload", || (reloads() > before).then_some(()));
}

fn providers(relay: &Relay) -> Value {
    let answer = Request::get("/admin/v1/providers").key(ADMIN_TOKEN).send(relay.admin);
    assert_eq!(answer.status, 200, "{}", answer.text());
    for secret in [PROVIDER_KEY, SECOND_KEY, ADMIN_TOKEN] {
        assert!(!answer.text().contains(secret), "{}", answer.text());
    }
    answer.json()
}

#[test]
fn a_refused_credential_is_set_aside_until_the_configuration_is_read_anew() {
    let (upstream, relay) = two_credentials(|second, request, answer| match second {
        true => answer.politely(request),
        false => answer.json(401, &json!({"error": {"message": "Incorrect API key provided"}})),
    });
    for round in 1..=2 {
        for body in [hello(), streamed()].iter().cycle().take(24) {
            assert_eq!(relay.chat(body).status, 200);
        }
        assert_eq!(asked_with_first_key(&upstream), round, "in round {round}");
        reload(&relay);
    }
}

#[test]
fn a_limited_credential_rests_and_the_other_is_asked() {
    let (upstream, relay) = two_credentials(|second, request, answer| match second {
        true => answer.politely(request),
        false => limiting("60")(request, answer),
    });
    for _ in 0..24 {
        assert_eq!(relay.chat(&hello()).status, 200);
    }
    assert_eq!(asked_with_first_key(&upstream), 1);
}

#[test]
fn a_refused_credential_is_no_reason_to_ask_another_provider_but_for_the_next_request() {
    let (first, second, relay) = pair(failing(401));
    relay.chat(&hello()).assert_error(502, "upstream_error", "upstream_auth");
    assert_eq!(second.count(), 0);
    assert_eq!(relay.chat(&hello()).status, 200);
    assert_eq!((first.count(), second.count()), (1, 1));
}

#[test]
fn a_used_up_quota_is_not_tried_again() {
    for (status, code) in [(429, "insufficient_quota"), (402, "x")] {
        let (first, second, relay) = pair(move |_, answer| {
            answer.json(status, &json!({"error": {"message": "no", "type": code, "code": code}}));
        });
        relay.chat(&hello()).assert_error(502, "upstream_error", "upstream_auth");
        assert_eq!((first.count(), second.count()), (1, 0), "{status}");
    }
}

#[test]
fn who_asks_to_be_left_alone_is() {
    let (first, second, relay) = pair(limiting("60"));
    for _ in 0..5 {
        assert_eq!(relay.chat(&hello()).status, 200);
    }
    assert_eq!((first.count(), second.count()), (1, 5));
    assert_eq!(providers(&relay)["data"][0]["models"][0]["state"], "resting");
}

#[test]
fn the_soonest_is_told_where_all_ask_to_be_left_alone() {
    let (first, second) = (Upstream::start(limiting("7")), Upstream::start(limiting("60")));
    let relay = setup(&[("first", &first), ("second", &second)]).start();
    for _ in 0..3 {
        let answer = relay.chat(&hello());
        answer.assert_error(502, "upstream_error", "upstream_rate_limited");
        let after = answer.number("retry-after");
        assert!((1..=7).contains(&after), "{after}");
    }
    assert_eq!((first.count(), second.count()), (1, 1), "and nobody is asked meanwhile");
}

#[test]
fn five_failures_open_a_breaker_and_everybody_is_told() {
    let (upstream, relay) = alone(failing(500));
    assert!((relay.metric("tollgate_upstream_healthy", &[("provider", "only")]) - 1.0).abs() < 0.1);
    for _ in 0..5 {
        relay.chat(&hello()).assert_error(502, "upstream_error", "upstream_error");
    }
    let answer = relay.chat(&hello());
    answer.assert_error(502, "upstream_error", "upstream_error");
    assert!((1..=30).contains(&answer.number("retry-after")));
    assert_eq!(upstream.count(), 5, "it is left alone");
    assert!(relay.metric("tollgate_upstream_healthy", &[("provider", "only")]) < 0.5);
    let open = relay.metric("tollgate_upstream_breakers", &[("provider", "only"), ("state", "open")]);
    assert!((open - 1.0).abs() < 0.1);
    let lane = providers(&relay)["data"][0]["models"][0].clone();
    assert_eq!(
        (&lane["model"], &lane["credential"], &lane["state"]),
        (&json!(PROVIDER_MODEL), &json!(1), &json!("open"))
    );
    assert!(lane["open_until"].as_str().unwrap().ends_with('Z') && lane["consecutive_failures"] == 5, "{lane}");
    reload(&relay);
    relay.chat(&hello()).assert_error(502, "upstream_error", "upstream_error");
    assert_eq!(upstream.count(), 5, "a reload forgets nothing");
}

#[test]
fn what_a_request_is_refused_for_is_no_failure_of_the_provider() {
    let script = |request: &Received, answer: &mut Answer| match request.json()["seed"].as_u64() {
        Some(1) => answer.json(400, &json!({"error": {"message": "no"}})),
        _ => answer.json(500, &json!({"error": {"message": "no"}})),
    };
    let (upstream, relay) = alone(script);
    let mut wrong = hello();
    wrong["seed"] = json!(1);
    for _ in 0..3 {
        (0..4).for_each(|_| assert_eq!(relay.chat(&hello()).status, 502));
        assert_eq!(relay.chat(&wrong).status, 400);
    }
    assert_eq!(upstream.count(), 15);
}

#[test]
fn a_cut_answer_is_a_failure_and_a_client_that_leaves_is_none() {
    let left = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&left);
    let (upstream, relay) = alone(move |request, answer| {
        answer.begin_events();
        answer.event(&word(&request.json()["model"], "Once upon"));
        match request.json()["seed"].as_u64() {
            Some(1) => {
                assert!(answer.sees_it_leave());
                seen.fetch_add(1, Ordering::SeqCst);
            }
            _ => answer.cut(),
        }
    });
    let mut leaves = streamed();
    leaves["seed"] = json!(1);
    for so_far in 1..=6 {
        let mut connection = Request::chat(&leaves).key(&relay.key).begin(relay.http);
        connection.head();
        connection.read_until("Once upon");
        drop(connection);
        support::until("the relay to leave", || (left.load(Ordering::SeqCst) == so_far).then_some(()));
    }
    for _ in 0..5 {
        let answer = relay.chat(&streamed());
        assert!(answer.status == 200 && answer.text().contains("upstream_truncated"), "{}", answer.text());
    }
    assert_eq!(relay.chat(&streamed()).status, 502);
    assert_eq!(upstream.count(), 11);
}

#[test]
fn a_timeout_is_repeated_only_where_the_model_says_so() {
    for (repeats, status) in [(true, 200), (false, 502)] {
        let gate = Gate::new();
        let stalled = gate.clone();
        let first = Upstream::start(move |_, _| {
            stalled.wait();
        });
        let second = Upstream::polite();
        let model = support::setup::model(MODEL, &[("first", 0), ("second", 1)])
            .replace("owned_by", &format!("retry_timeouts = {repeats}\nowned_by"));
        let relay = Setup::bare()
            .provider_with("first", &first.base_url(), "first_byte_seconds_max = 1")
            .provider("second", &second.base_url())
            .model("another", &[("second", 0)])
            .table(&model)
            .start();
        assert_eq!(relay.chat(&hello()).status, status, "retry_timeouts = {repeats}");
        assert_eq!((first.count(), second.count()), (1, usize::from(repeats)));
        gate.open();
    }
}

#[test]
fn second_tries_have_a_budget() {
    // Four of five fail, so that the breaker stays closed.
    let count = AtomicUsize::new(0);
    let (first, second, relay) = pair(move |request, answer| match count.fetch_add(1, Ordering::SeqCst) % 5 {
        4 => answer.politely(request),
        _ => failing(503)(request, answer),
    });
    let began = Instant::now();
    let requests = 200;
    let good = (0..requests).filter(|_| relay.chat(&hello()).status == 200).count();
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    let attempts = first.count() + second.count();
    assert!(attempts <= requests + requests / 5 + 3 * (seconds + 1), "{attempts} in {seconds} s");
    assert!(second.count() >= requests / 5, "what there is, is used: {}", second.count());
    assert_eq!(good, attempts - first.count() + first.count() / 5);
    assert!(relay.metric("tollgate_upstream_retries_total", &[("outcome", "no_budget")]) > 0.5);
}

#[test]
fn the_providers_health_is_told_to_whoever_knows_the_token() {
    let (_upstream, relay) = two_credentials(|_, request, answer| answer.politely(request));
    assert_eq!(Request::get("/admin/v1/providers").key("x").send(relay.admin).status, 404, "without a token");
    let (_upstream, relay) = alone(|request, answer| answer.politely(request));
    assert_eq!(relay.chat(&streamed()).status, 200);
    for answer in [
        Request::get("/admin/v1/providers").send(relay.admin),
        Request::get("/admin/v1/providers").key("wrong").send(relay.admin),
    ] {
        answer.assert_error(401, "authentication_error", "invalid_api_key");
    }
    let told = providers(&relay);
    let only = &told["data"][0];
    assert_eq!(
        (&only["name"], &only["healthy"], told["data"].as_array().unwrap().len()),
        (&json!("only"), &json!(true), 1)
    );
    assert_eq!(only["credentials"], json!([{"number": 1, "refused": false}]));
    let lane = &only["models"][0];
    assert_eq!((&lane["state"], &lane["open_until"]), (&json!("closed"), &Value::Null));
    assert!(lane["first_byte_ms"].is_u64(), "{lane}");
    assert_eq!(
        Request::get("/admin/v1/providers").key(ADMIN_TOKEN).send(relay.http).status,
        404,
        "clients have no such page"
    );
}

/// Fails every sixth time, each time in another way.
fn moody() -> impl Fn(&Received, &mut Answer) + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |request, answer| {
        let turn = count.fetch_add(1, Ordering::SeqCst);
        match (turn % 6, turn / 6 % 6) {
            (5, 0) => answer.json(503, &json!({"error": {"message": "busy"}})),
            (5, 1) => answer.cut(),
            (5, 2) => answer.json(529, &json!({"error": {"message": "overloaded"}})),
            (5, 3) => answer.reset(),
            (5, 4) => {
                answer.begin_events();
                answer.event(r#"{"error":{"message":"tired","type":"server_error"}}"#);
                answer.end();
            }
            (5, _) => answer.json(429, &json!({"error": {"message": "slow down"}})),
            _ => answer.politely(request),
        }
    }
}

#[test]
fn with_one_good_target_every_request_succeeds_and_is_billed_once() {
    const CLIENTS: usize = 8;
    const EACH: usize = 40;
    let (good, moody, gone) = (Upstream::polite(), Upstream::start(moody()), Upstream::polite());
    let nowhere = gone.base_url();
    drop(gone);
    let relay = Setup::bare()
        .provider("good", &good.base_url())
        .provider("moody", &moody.base_url())
        .provider("gone", &nowhere)
        .model(MODEL, &[("good", 0), ("moody", 0), ("gone", 0)])
        .table(&support::setup::model("calm", &[("good", 0)]))
        .start();
    // Quiet requests pay for the tries of the storm.
    let mut calm = hello();
    calm["model"] = json!("calm");
    let mut answers: Vec<Response> = (0..100).map(|_| relay.chat(&calm)).collect();
    let relay = &relay;
    thread::scope(|scope| {
        let client = |number: usize| {
            move || -> Vec<Response> {
                (0..EACH)
                    .map(|turn| relay.chat(&if (number + turn).is_multiple_of(2) { streamed() } else { hello() }))
                    .collect()
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(client(number))).collect();
        answers.extend(clients.into_iter().flat_map(|client| client.join().unwrap()));
    });
    for answer in &answers {
        assert!(answer.status == 200 && answer.text().contains("Hello"), "{} {}", answer.status, answer.text());
    }
    assert!(moody.count() > EACH, "the storm was a breeze: {}", moody.count());
    let mut asked: Vec<String> = answers.iter().map(Response::request_id).collect();
    asked.sort_unstable();
    let billed = support::until("every bill", || {
        let rows = relay.usage();
        (rows.len() >= asked.len()).then_some(rows)
    });
    let mut ids: Vec<&str> = billed.iter().map(|row| row["request_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, asked, "each once, and no other");
    assert!(billed.iter().all(|row| row["cost_nano_usd"].as_u64().unwrap() > 0));
    assert!(relay.cli(&["audit"]).status.success());
}
