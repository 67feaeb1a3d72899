//! Streamed and not streamed, the same answer costs the same: each provider's usage, with what was read from its caches and
//! written to them, in exact nano-USD. And what the ledger has of requests that failed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::decoded::Decoded;
use support::setup::{MODEL, PROVIDER_MODEL};
use support::upstream::word;
use support::{Answer, Relay, Setup, Upstream, until};

/// USD per million tokens. A fresh token costs no whole number of nano-USD, so that sums must be rounded once, and up.
const PRICE: &str = r#"price.input = "3.0000007"
price.output = "15.00"
price.cache_read = "0.30"
price.cache_write_5m = "3.75"
price.cache_write_1h = "6.00"
price.above = [{ prompt_tokens = 200_000, input = "6.00", output = "22.50", cache_read = "0.60" }]"#;

/// One answer, as its provider gives it whole and streamed, and what it must cost.
struct Bill {
    provider: &'static str,
    whole: Value,
    events: Vec<Value>,
    /// Fresh, read, written for 5 minutes, for an hour; the answer, and the reasoning in it.
    tokens: [u64; 6],
    nano_usd: u64,
}

fn anthropic(usage: &Value, at_start: &Value, at_end: &Value, tokens: [u64; 6], nano_usd: u64) -> Bill {
    let message = |content: Value, stop: Value, usage: &Value| {
        json!({"id": "msg_1", "type": "message", "role": "assistant", "model": PROVIDER_MODEL, "content": content,
            "stop_reason": stop, "stop_sequence": null, "usage": usage})
    };
    let events = vec![
        json!({"type": "message_start", "message": message(json!([]), Value::Null, at_start)}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": at_end}),
        json!({"type": "message_stop"}),
    ];
    let whole = message(json!([{"type": "text", "text": "Hello"}]), json!("end_turn"), usage);
    Bill { provider: "anthropic", whole, events, tokens, nano_usd }
}

fn gemini(early: &Value, usage: &Value, tokens: [u64; 6], nano_usd: u64) -> Bill {
    let answer = |text: &str, finish: Value, usage: &Value| {
        json!({"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": text}]},
            "finishReason": finish}], "usageMetadata": usage, "modelVersion": PROVIDER_MODEL, "responseId": "r"})
    };
    let events = vec![answer("Hel", Value::Null, early), answer("lo", json!("STOP"), usage)];
    Bill { provider: "gemini", whole: answer("Hello", json!("STOP"), usage), events, tokens, nano_usd }
}

/// OpenAI's own way to report, or with the usage on the finish chunk.
fn openai(provider: &'static str, usage: &Value, on_finish: bool, tokens: [u64; 6], nano_usd: u64) -> Bill {
    let envelope = |kind: &str| json!({"id": "chatcmpl-1", "object": kind, "created": 1, "model": PROVIDER_MODEL});
    let with = |mut envelope: Value, choices: Value, usage: Option<&Value>| {
        envelope["choices"] = choices;
        if let Some(usage) = usage {
            envelope["usage"] = usage.clone();
        }
        envelope
    };
    let message = json!({"role": "assistant", "content": "Hello", "refusal": null});
    let chunk = || envelope("chat.completion.chunk");
    let delta = json!([{"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": null}]);
    let finish = json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]);
    let mut events = vec![
        with(chunk(), delta, Some(&Value::Null)),
        with(chunk(), finish, Some(if on_finish { usage } else { &Value::Null })),
    ];
    if !on_finish {
        events.push(with(chunk(), json!([]), Some(usage)));
    }
    let choices = json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"}]);
    Bill { provider, whole: with(envelope("chat.completion"), choices, Some(usage)), events, tokens, nano_usd }
}

fn bills() -> Vec<Bill> {
    let plain = json!({"input_tokens": 7, "output_tokens": 5});
    let written = json!({"input_tokens": 4, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 1167,
        "cache_creation": {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500}, "output_tokens": 300});
    let written_begun = json!({"input_tokens": 4, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 1167,
        "cache_creation": {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500}, "output_tokens": 2});
    // All of it is told again at the end, which must not be added to what was told at the beginning.
    let told_again = json!({"input_tokens": 4, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 1167,
        "output_tokens": 300});
    let long = json!({"input_tokens": 2, "cache_read_input_tokens": 199_999, "cache_creation_input_tokens": 0,
        "output_tokens": 10});
    let cached = json!({"promptTokenCount": 1087, "cachedContentTokenCount": 1081, "candidatesTokenCount": 2,
        "totalTokenCount": 1089});
    let thought = json!({"promptTokenCount": 100, "cachedContentTokenCount": 40, "toolUsePromptTokenCount": 7,
        "candidatesTokenCount": 5, "thoughtsTokenCount": 20, "totalTokenCount": 132});
    let early = json!({"promptTokenCount": 100, "thoughtsTokenCount": 20, "totalTokenCount": 120});
    let details = json!({"prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
        "prompt_tokens_details": {"cached_tokens": 1920}, "completion_tokens_details": {"reasoning_tokens": 192}});
    let hits = json!({"prompt_tokens": 350, "completion_tokens": 49, "total_tokens": 399, "prompt_cache_hit_tokens": 320,
        "prompt_cache_miss_tokens": 30});
    let above = json!({"prompt_tokens": 200_001, "completion_tokens": 1, "total_tokens": 200_002});
    // Of each cost, the fresh tokens' part first: 7 × 3000.0007 is 21,000.0049, and the sum is rounded up.
    vec![
        anthropic(
            &plain,
            &json!({"input_tokens": 7, "output_tokens": 1}),
            &json!({"output_tokens": 5}),
            [7, 0, 0, 0, 5, 0],
            21_001 + 75_000,
        ),
        anthropic(
            &written,
            &written_begun,
            &json!({"output_tokens": 300}),
            [4, 1167, 1500, 500, 300, 0],
            12_001 + 350_100 + 5_625_000 + 3_000_000 + 4_500_000,
        ),
        anthropic(
            &written,
            &written_begun,
            &told_again,
            [4, 1167, 1500, 500, 300, 0],
            12_001 + 350_100 + 5_625_000 + 3_000_000 + 4_500_000,
        ),
        anthropic(
            &long,
            &json!({"input_tokens": 2, "cache_read_input_tokens": 199_999, "output_tokens": 1}),
            &json!({"output_tokens": 10}),
            [2, 199_999, 0, 0, 10, 0],
            12_000 + 119_999_400 + 225_000,
        ),
        gemini(&cached, &cached, [6, 1081, 0, 0, 2, 0], 18_001 + 324_300 + 30_000),
        gemini(&early, &thought, [67, 40, 0, 0, 25, 20], 201_001 + 12_000 + 375_000),
        openai("openai", &details, false, [86, 1920, 0, 0, 300, 192], 258_001 + 576_000 + 4_500_000),
        openai("openai", &above, false, [200_001, 0, 0, 0, 1, 0], 1_200_006_000 + 22_500),
        openai("loose", &hits, true, [30, 320, 0, 0, 49, 0], 90_001 + 96_000 + 735_000),
    ]
}

fn play(bill: &Bill, streamed: bool, answer: &mut Answer) {
    if !streamed {
        return answer.json(200, &bill.whole);
    }
    answer.begin_events();
    for event in &bill.events {
        let name = event["type"].as_str().map(|name| format!("event: {name}\n")).unwrap_or_default();
        let line_end = if bill.provider == "gemini" { "\r\n" } else { "\n" };
        answer.chunk(format!("{name}data: {event}{line_end}{line_end}").as_bytes());
    }
    if matches!(bill.provider, "openai" | "loose") {
        answer.event("[DONE]");
    }
    answer.end();
}

fn stage() -> (Upstream, Relay) {
    let script = bills();
    let upstream = Upstream::start(move |request, answer| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let number = body.split_once("bill ").unwrap().1.split_once('.').unwrap().0;
        let streamed = request.path().contains("stream") || body.contains("\"stream\":true");
        play(&script[number.parse::<usize>().unwrap()], streamed, answer);
    });
    let mut setup = Setup::bare();
    for (name, dialect, quirks) in [
        ("anthropic", "anthropic", ""),
        ("gemini", "gemini", ""),
        ("openai", "openai", ""),
        ("loose", "openai", "\"loose_answers\""),
    ] {
        setup = setup.table(&format!(
            "[[provider]]\nname = {name:?}\ndialect = {dialect:?}\nbase_url = \"http://{}\"\n\
             credentials = [{{ env = \"UPSTREAM_KEY\" }}]\nquirks = [{quirks}]\n\n\
             [[model]]\nid = {name:?}\ncontext_window = 400_000\noutput_tokens_max = 1_000\nowned_by = \"tests\"\n\
             {PRICE}\ntargets = [{{ provider = {name:?}, model = {PROVIDER_MODEL:?} }}]\n",
            upstream.address
        ));
    }
    let relay = setup.model("unused", &[("openai", 0)]).start();
    (upstream, relay)
}

#[test]
fn streamed_and_whole_the_same_answer_costs_the_same() {
    let (_upstream, relay) = stage();
    let mut left = relay.balance(&relay.account);
    for (number, bill) in bills().iter().enumerate() {
        let say = json!([{"role": "user", "content": format!("bill {number}.")}]);
        let body = json!({"model": bill.provider, "messages": say});
        let mut shown = Vec::new();
        for (streamed, asks_usage) in [(false, false), (true, true), (true, false)] {
            let mut body = body.clone();
            if streamed {
                body["stream"] = json!(true);
                body["stream_options"] = json!({"include_usage": asks_usage});
            }
            let answer = relay.chat(&body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            let decoded = Decoded::answer(&answer, asks_usage);
            assert_eq!((decoded.only().text.as_str(), decoded.done), ("Hello", true), "{}", answer.text());
            shown.extend(decoded.usage);
            check(&relay.usage_of(&answer.request_id()), bill);
            left -= i64::try_from(bill.nano_usd).unwrap();
            until("the balance to be what it was, less the cost", || {
                (relay.balance(&relay.account) == left).then_some(())
            });
        }
        let [whole, streamed] = &shown[..] else { panic!("usage whole, and streamed when asked for: {shown:?}") };
        assert_eq!(whole, streamed, "bill {number}");
        let prompt: u64 = bill.tokens[..4].iter().sum();
        assert_eq!((&whole["prompt_tokens"], &whole["completion_tokens"]), (&json!(prompt), &json!(bill.tokens[4])));
    }
}

fn check(row: &Value, bill: &Bill) {
    let classes = [
        "input_tokens",
        "cache_read_tokens",
        "cache_write_5m_tokens",
        "cache_write_1h_tokens",
        "output_tokens",
        "reasoning_tokens",
    ];
    assert_eq!(classes.map(|class| row[class].as_u64().unwrap()), bill.tokens, "{row}");
    assert_eq!((&row["estimated"], &row["cost_nano_usd"]), (&json!(false), &json!(bill.nano_usd)), "{row}");
}

/// The amounts of the requests' entries in the ledger, in their order.
fn entries(relay: &Relay) -> Vec<i64> {
    relay.store().numbers("SELECT amount_nano_usd FROM ledger_entries WHERE kind = 'usage' ORDER BY seq")
}

#[test]
fn a_request_that_failed_has_its_row_and_makes_no_entry() {
    let asked = AtomicUsize::new(0);
    let upstream = Upstream::start(move |request, answer| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => answer.json(500, &json!({"error": {"message": "broken"}})),
        1 => answer.json(503, &json!({"error": {"message": "busy"}})),
        2 => answer.json(400, &json!({"error": {"message": "no such thing"}})),
        // A stream that breaks off before it has said anything, and one after.
        3 => {
            answer.begin_events();
            answer.cut();
        }
        4 => {
            answer.begin_events();
            answer.event(&word(&json!(MODEL), "Hello"));
            answer.cut();
        }
        _ => answer.politely(request),
    });
    let relay = Setup::new(&upstream).start();
    let say = json!([{"role": "user", "content": "Say hello"}]);
    let mut costs = Vec::new();
    for number in 0..6 {
        let answer = relay.chat(&json!({"model": MODEL, "messages": say, "stream": number == 3 || number == 4}));
        let row = relay.usage_of(&answer.request_id());
        assert_eq!(row["status"], answer.status, "{row}");
        costs.push(row["cost_nano_usd"].as_i64().unwrap());
    }
    assert_eq!((&costs[..4], costs[5]), ([0; 4].as_slice(), 13_000));
    assert!(costs[4] > 0, "what passed is counted");
    assert_eq!(entries(&relay), [-costs[4], -13_000]);
    assert_eq!(relay.balance(&relay.account), 10_000_000_000 - costs[4] - 13_000);
    assert!(relay.cli(&["audit"]).status.success());
}
