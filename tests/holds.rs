//! What requests hold of their accounts while they run: how much of it, how exactly, and what is left of it afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use support::setup::{MODEL, PROVIDER_MODEL};
use support::upstream::usage;
use support::{Account, Answer, Connection, Gate, Received, Relay, Request, Response, Setup, Upstream, until};

/// What a token of [`MODEL`] costs, in nano-USD.
const INPUT: i64 = 1_000;
const OUTPUT: i64 = 2_000;

fn hello(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// How many requests hold something, and how much.
fn holds(relay: &Relay) -> (i64, i64) {
    let page = relay.metrics_page();
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers, as far as floats have them")]
    let read = |name: &str| support::relay::metric(&page, name, &[]) as i64;
    (read("tollgate_holds_active"), read("tollgate_held_nano_usd"))
}

#[track_caller]
fn assert_nothing_is_held(relay: &Relay) {
    until("all holds to be released", || (holds(relay) == (0, 0)).then_some(()));
}

fn dollars(nano_usd: i64) -> String {
    format!("{}.{:09}", nano_usd / 1_000_000_000, nano_usd % 1_000_000_000)
}

/// An upstream that answers when its gate is open, as politely as ever.
fn gated(gate: &Gate) -> Upstream {
    let wait = gate.clone();
    Upstream::start(move |request, answer| {
        assert!(wait.wait());
        answer.politely(request);
    })
}

/// What a request holds while it runs, and its lowered length if it has one.
fn held_by(relay: &Relay, key: &str, gate: &Gate, body: &Value) -> (i64, Response) {
    assert_nothing_is_held(relay);
    let mut running = Request::chat(body).key(key).begin(relay.http);
    let held = until("the hold", || Some(holds(relay)).filter(|(active, _)| *active == 1)).1;
    gate.open();
    let answer = running.response();
    assert_nothing_is_held(relay);
    (held, answer)
}

/// What that request holds where there is money for all of it.
fn whole_hold(body: &Value) -> i64 {
    let gate = Gate::new();
    let upstream = gated(&gate);
    let relay = Setup::new(&upstream).start();
    let (held, answer) = held_by(&relay, &relay.key, &gate, body);
    assert_eq!((answer.status, answer.header("x-tollgate-output-tokens-max")), (200, None), "{}", answer.text());
    let sent = upstream.only().json();
    for name in ["max_tokens", "max_completion_tokens"] {
        assert_eq!(sent.get(name), body.get(name), "nothing is lowered and nothing is inserted");
    }
    held
}

/// An upstream that waits until so many requests have come, and then reports that each used all that is held for it.
fn greedy(count: usize, held: i64, output: i64) -> Upstream {
    let (arrived, all_there) = (AtomicUsize::new(0), Gate::new());
    Upstream::start(move |_: &Received, answer: &mut Answer| {
        if arrived.fetch_add(1, Ordering::SeqCst) + 1 == count {
            all_there.open();
        }
        assert!(all_there.wait(), "{count} requests have not come");
        let input = u64::try_from((held - output * OUTPUT) / INPUT).unwrap();
        let message = json!({"role": "assistant", "content": "Hello", "refusal": null});
        answer.json(
            200,
            &json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": PROVIDER_MODEL,
                "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "length"}],
                "usage": usage(input, u64::try_from(output).unwrap())}),
        );
    })
}

const STORM: usize = 1_000;

/// So many requests at the same time; how many were answered how.
fn storm(relay: &Relay, key: &str, body: &Value) -> BTreeMap<(u16, String), usize> {
    let barrier = Barrier::new(STORM / 10);
    let answers: Vec<Response> = thread::scope(|scope| {
        let work = || {
            let request = Request::chat(body).key(key);
            let mut connections: Vec<Connection> = (0..10).map(|_| Connection::open(relay.http)).collect();
            barrier.wait();
            connections.iter_mut().for_each(|connection| connection.write(&request.bytes()));
            connections.iter_mut().map(Connection::response).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..STORM / 10).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut counts = BTreeMap::new();
    for answer in answers {
        let code = answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
        *counts.entry((answer.status, code)).or_default() += 1;
    }
    counts
}

fn ten_pass_and_the_rest_not(code: &str) -> BTreeMap<(u16, String), usize> {
    [((200, String::new()), 10), ((402, code.to_owned()), STORM - 10)].into()
}

#[test]
fn of_a_thousand_at_once_exactly_those_pass_that_there_is_credit_for() {
    let body = hello(json!({"max_tokens": 50}));
    let held = whole_hold(&body);
    let upstream = greedy(10, held, 50);
    let relay = Setup::new(&upstream).limits("connections_per_ip_max = 10_000").start();
    let account = relay.account("open", &dollars(10 * held));
    let key = relay.key_of(&account, &[]).key;
    assert_eq!(storm(&relay, &key, &body), ten_pass_and_the_rest_not("insufficient_credits"));
    assert_eq!(upstream.count(), 10);
    assert_nothing_is_held(&relay);
    until("the bills", || (relay.usage().len() == 10).then_some(()));
    assert_eq!(relay.balance(&account), 0, "to the last nano-USD, and none below");
}

#[test]
fn of_a_thousand_at_once_exactly_those_pass_that_the_key_has_budget_for() {
    let body = hello(json!({"max_tokens": 50}));
    let held = whole_hold(&body);
    let upstream = greedy(10, held, 50);
    let relay = Setup::new(&upstream).limits("connections_per_ip_max = 10_000").start();
    let key = relay.key_of(&relay.account, &["--budget", &dollars(10 * held)]).key;
    assert_eq!(storm(&relay, &key, &body), ten_pass_and_the_rest_not("budget_exceeded"));
    assert_nothing_is_held(&relay);
    until("the bills", || (relay.usage().len() == 10).then_some(()));
    assert_eq!(relay.balance(&relay.account), 10_000_000_000 - 10 * held);
    let other = relay.key_of(&relay.account, &[]).key;
    assert_eq!(Request::chat(&body).key(&other).send(relay.http).status, 200, "the account's other keys go on");
}

/// Three providers, one of each dialect, behind one upstream; every model has the price and the length of [`MODEL`].
fn three_dialects(upstream: &Upstream) -> Relay {
    let mut setup = Setup::bare();
    for (name, dialect, path, lines, rules) in [
        ("openai", "openai", "/v1", "", ""),
        ("older", "openai", "/v1", "quirks = [\"max_tokens\"]", ""),
        ("anthropic", "anthropic", "", "", "thinking = { form = \"budget\", min = 1_024, max = 32_000 }"),
        ("gemini", "gemini", "", "", "thinking = { form = \"budget\", min = 0, max = 24_576 }"),
    ] {
        setup = setup.table(&format!(
            "[[provider]]\nname = {name:?}\ndialect = {dialect:?}\nbase_url = \"http://{}{path}\"\n\
             credentials = [{{ env = \"UPSTREAM_KEY\" }}]\n{lines}\n\n\
             [[model]]\nid = {name:?}\ncontext_window = 128_000\noutput_tokens_max = 16_384\nowned_by = \"tests\"\n{rules}\n\
             price = {{ input = \"1.00\", output = \"2.00\" }}\n\
             targets = [{{ provider = {name:?}, model = {PROVIDER_MODEL:?} }}]\n",
            upstream.address
        ));
    }
    setup.model("unused", &[("openai", 0)]).start()
}

/// Answers a request in its provider's dialect.
fn in_its_dialect(request: &Received, answer: &mut Answer) {
    if request.path().contains("Content") {
        let whole = json!({"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": "Hi"}]},
            "finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 2,
            "totalTokenCount": 11}, "modelVersion": "g", "responseId": "r"});
        if request.path().contains("stream") {
            answer.begin_events();
            answer.event(&whole.to_string());
            return answer.end();
        }
        return answer.json(200, &whole);
    }
    if request.path().ends_with("/messages") {
        let message = |content: Value, stop: Value| {
            json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "c", "content": content,
                "stop_reason": stop, "stop_sequence": null, "usage": {"input_tokens": 9, "output_tokens": 2}})
        };
        if request.json()["stream"] != true {
            return answer.json(200, &message(json!([{"type": "text", "text": "Hi"}]), json!("end_turn")));
        }
        answer.begin_events();
        for event in [
            json!({"type": "message_start", "message": message(json!([]), Value::Null)}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}),
            json!({"type": "message_stop"}),
        ] {
            answer.chunk(format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()).as_bytes());
        }
        return answer.end();
    }
    answer.politely(request);
}

/// A key of a new account with so much; it is spent by what it answers, a little each time.
fn key_with(relay: &Relay, nano_usd: i64) -> String {
    relay.key_of(&relay.account("open", &dollars(nano_usd)), &[]).key
}

/// Asks and gives the length that the client was told of, with what the upstream got.
fn lowered(relay: &Relay, upstream: &Upstream, nano_usd: i64, body: &Value) -> (u64, Value) {
    let answer = Request::chat(body).key(&key_with(relay, nano_usd)).send(relay.http);
    assert_eq!(answer.status, 200, "{}", answer.text());
    (answer.number("x-tollgate-output-tokens-max"), upstream.received().last().unwrap().json())
}

#[test]
fn what_the_account_cannot_cover_is_lowered_in_every_dialect() {
    let upstream = Upstream::start(in_its_dialect);
    let relay = three_dialects(&upstream);
    // For some 1,500 tokens of output, or less by what the prompt is held at.
    const CREDIT: i64 = 1_500 * OUTPUT;
    for (model, asked, name, path) in [
        ("openai", json!({"max_tokens": 9_000}), "max_tokens", "/max_tokens"),
        ("openai", json!({"max_completion_tokens": 9_000}), "max_completion_tokens", "/max_completion_tokens"),
        ("openai", json!({}), "", "/max_completion_tokens"),
        ("older", json!({"max_completion_tokens": 9_000}), "max_completion_tokens", "/max_tokens"),
        ("older", json!({}), "", "/max_tokens"),
        ("anthropic", json!({"max_tokens": 9_000}), "max_tokens", "/max_tokens"),
        ("anthropic", json!({}), "", "/max_tokens"),
        ("gemini", json!({"max_tokens": 9_000}), "max_tokens", "/generationConfig/maxOutputTokens"),
        ("gemini", json!({}), "", "/generationConfig/maxOutputTokens"),
    ] {
        for more in [json!({}), json!({"stream": true})] {
            let mut body = hello(more.clone());
            body.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
            body["model"] = json!(model);
            let (told, sent) = lowered(&relay, &upstream, CREDIT, &body);
            assert!((1_000..1_500).contains(&told), "{model} {asked} {more}: {told}");
            assert_eq!(sent.pointer(path), Some(&json!(told)), "{model} {asked} {more}: {sent}");
            let other = ["max_tokens", "max_completion_tokens"].into_iter().find(|other| !path.ends_with(other));
            assert!(other.is_none_or(|other| sent.get(other).is_none()), "{name} once: {sent}");
        }
    }
    assert_nothing_is_held(&relay);
}

#[test]
fn several_answers_share_what_there_is_and_thinking_stays_below_it() {
    let upstream = Upstream::start(in_its_dialect);
    let relay = three_dialects(&upstream);
    let ask = |model: &str, credit: i64, more: Value| {
        let mut body = hello(more);
        body["model"] = json!(model);
        lowered(&relay, &upstream, credit, &body)
    };
    let (one, _) = ask("openai", 3_000 * OUTPUT, json!({"max_tokens": 9_000}));
    let (two, sent) = ask("openai", 3_000 * OUTPUT, json!({"max_tokens": 9_000, "n": 2}));
    assert_eq!((one / 2, &sent["max_tokens"], &sent["n"]), (two, &json!(two), &json!(2)));
    let (three, sent) = ask("gemini", 3_000 * OUTPUT, json!({"n": 3}));
    assert!(three <= one / 3 + 1 && sent["generationConfig"]["maxOutputTokens"] == three, "{sent}");

    // What Anthropic thinks comes on top of what was asked for, and is held for with it.
    let (told, sent) = ask("anthropic", 6_000 * OUTPUT, json!({"max_tokens": 1_000, "reasoning_effort": "medium"}));
    assert!((5_000..6_000).contains(&told) && sent["max_tokens"] == told, "{told}: {sent}");
    let budget = sent["thinking"]["budget_tokens"].as_u64().unwrap();
    assert!((1_024..told).contains(&budget), "{sent}");
    let (told, sent) = ask("anthropic", 1_000 * OUTPUT, json!({"max_tokens": 900, "reasoning_effort": "medium"}));
    assert_eq!((sent["max_tokens"].as_u64().unwrap(), sent.get("thinking")), (told.min(900), None), "{sent}");
    let (told, sent) = ask("gemini", 1_000 * OUTPUT, json!({"reasoning_effort": "high"}));
    let budget = sent["generationConfig"]["thinkingConfig"]["thinkingBudget"].as_u64().unwrap();
    assert!(budget < told && budget > told / 2, "{sent}");
}

#[test]
fn only_what_is_lowered_is_edited() {
    let gate = Gate::new();
    let upstream = gated(&gate);
    gate.open();
    let relay = Setup::new(&upstream).start();
    let poor = key_with(&relay, 200 * OUTPUT);
    let odd = format!(
        "{{ \"max_completion_tokens\" : 5000, \"model\": \"{MODEL}\",\"seed\":12345678901234567890123,  \
         \"messages\":[{{\"role\":\"user\",\"content\":\"\\u00e9\\/\"}}] }}"
    );
    let answer = Request::post("/v1/chat/completions", odd.clone()).key(&poor).send(relay.http);
    let told = answer.header("x-tollgate-output-tokens-max").unwrap_or_else(|| panic!("{}", answer.text())).to_owned();
    let expected = odd.replace("5000", &told).replace(&format!("\"{MODEL}\""), &format!("\"{PROVIDER_MODEL}\""));
    assert_eq!(String::from_utf8(upstream.only().body).unwrap(), expected);
    // Asked for less than that, nothing is held back and nothing is said. The first hold has ended with its answer's last byte.
    let modest = Request::chat(&hello(json!({"max_tokens": 20}))).key(&poor).send(relay.http);
    assert_eq!((modest.status, modest.header("x-tollgate-output-tokens-max")), (200, None));
    assert_eq!(upstream.received()[1].json()["max_tokens"], 20);
}

#[test]
fn what_says_nothing_of_its_length_is_held_for_all_that_the_model_has() {
    let gate = Gate::new();
    let upstream = gated(&gate);
    let relay = Setup::new(&upstream).start();
    let (held, answer) = held_by(&relay, &relay.key, &gate, &hello(json!({})));
    assert_eq!((answer.status, answer.header("x-tollgate-output-tokens-max")), (200, None));
    let prompt = held - 16_384 * OUTPUT;
    assert!((11 * INPUT..200 * INPUT).contains(&prompt), "{prompt}");
    assert_eq!(relay.usage_of(&answer.request_id())["cost_nano_usd"], 13_000, "and billed for what it used");
}

#[test]
fn images_are_not_held_for_by_their_length() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let image = format!("data:image/png;base64,{}", "iVBORw0K".repeat(5 * 1024 * 1024 / 8));
    let parts = json!([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": image}}]);
    let body = json!({"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": parts}]});
    let cents = key_with(&relay, 3_000 * INPUT);
    let answer = Request::chat(&body).key(&cents).send(relay.http);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let few = key_with(&relay, 500 * INPUT);
    let refused = Request::chat(&body).key(&few).send(relay.http);
    refused.assert_error(402, "insufficient_quota", "insufficient_credits");
    let text = hello(json!({"max_tokens": 10}));
    assert_eq!(Request::chat(&text).key(&few).send(relay.http).status, 200, "what costs less still passes");
}

#[test]
fn a_request_without_money_takes_no_slot_and_one_without_a_slot_no_money() {
    let gate = Gate::new();
    let upstream = gated(&gate);
    let relay = Setup::new(&upstream).start();
    let account: Account = relay.account("free", &dollars(40 * INPUT));
    let key = relay.key_of(&account, &[]).key;
    let refused = Request::chat(&hello(json!({}))).key(&key).send(relay.http);
    refused.assert_error(402, "insufficient_quota", "insufficient_credits");
    assert_eq!((refused.number("x-ratelimit-limit"), refused.number("x-ratelimit-remaining")), (30, 30));
    assert_nothing_is_held(&relay);

    let one = relay.key_of(&relay.account, &["--concurrency", "1"]).key;
    let mut running = Request::chat(&hello(json!({}))).key(&one).begin(relay.http);
    upstream.wait_for(1);
    let held = holds(&relay);
    for _ in 0..20 {
        assert_eq!(Request::chat(&hello(json!({}))).key(&one).send(relay.http).status, 429);
    }
    assert_eq!((held.0, holds(&relay)), (1, held));
    gate.open();
    assert_eq!(running.response().status, 200);
    assert_nothing_is_held(&relay);
}

/// Requests that end in every way there is: whole, streamed, cut by the upstream, refused by it, left by the client before
/// and in the middle of their answer, and by nobody until the relay is stopped.
#[test]
fn after_a_storm_of_broken_requests_nothing_is_held() {
    let never = Gate::new();
    let wait = never.clone();
    let upstream = Upstream::start(move |request, answer| match request.json()["seed"].as_u64() {
        Some(1) => answer.cut(),
        Some(2) => answer.json(500, &json!({"error": {"message": "no", "type": "server_error"}})),
        Some(3) => answer.json(400, &json!({"error": {"message": "no", "type": "invalid_request_error"}})),
        Some(4) => {
            let _ = answer.sees_it_leave();
        }
        Some(5) => {
            answer.begin_events();
            answer.event(&support::upstream::word(&json!("m"), "Hello"));
            answer.cut();
        }
        Some(6) => {
            answer.begin_events();
            answer.event(&support::upstream::word(&json!("m"), "Hello"));
            {
                let _ = answer.sees_it_leave();
            };
        }
        Some(7) => assert!(wait.wait()),
        _ => answer.politely(request),
    });
    // What fails on purpose is to be asked on.
    let relay = Setup::bare().provider_with("upstream", &upstream.base_url(), "breaker = false").start();
    let end = |kind: u64| {
        let body = hello(json!({"seed": kind, "stream": kind.is_multiple_of(2) || kind == 5, "max_tokens": 10}));
        let mut connection = Request::chat(&body).key(&relay.key).begin(relay.http);
        match kind {
            // It goes away when the upstream has it, or at any moment before.
            4 => {}
            6 => {
                connection.head();
                connection.read_until("Hello");
            }
            _ => drop(connection.response()),
        }
    };
    thread::scope(|scope| {
        for thread in 0..8u64 {
            scope.spawn(move || (0..35).for_each(|turn| end((thread + turn) % 7)));
        }
    });
    assert_nothing_is_held(&relay);
    let waiting = Request::chat(&hello(json!({"seed": 7}))).key(&relay.key).begin(relay.http);
    until("its hold", || (holds(&relay).0 == 1).then_some(()));
    drop(waiting);
    assert_nothing_is_held(&relay);
    never.open();
    until("the ledger to have all", || {
        let audit = relay.cli(&["audit"]);
        audit.status.success().then_some(())
    });
}
