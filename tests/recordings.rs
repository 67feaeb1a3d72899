//! Every recorded answer of every provider, replayed by a scripted upstream through the relay, with the rows of
//! `conf/providers.toml`: what the client receives and what is billed is what a second decoder made of the recording, and
//! every stream keeps OpenAI's promises (`support/decoded.rs`). Skipped, with a line, where the recordings are not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use support::cases::{self, Case, Row};
use support::decoded::{Choice, Decoded};
use support::setup::{PROVIDER_KEY, PROVIDER_MODEL};
use support::{Chance, End, Received, Relay, Response, Setup, Upstream};

/// Answers up to this length are also sent a byte at a time.
const SMALL_BYTES: usize = 4096;
/// How often each case is cut at other places.
const REPLAYS: u64 = 6;
/// How many requests are under way at once.
const LANES: usize = 4;
/// Streams that pass as they are, and do not keep all that OpenAI promises: Anthropic's own imitation, whose first call has
/// the index 1, and a recording whose usage chunk has another time of creation and another model than its 20 others.
const UNLIKE_OPENAI: [&str; 2] =
    ["openai/stream_anthropic_compat_endpoint_tool_index1", "openai/stream_tool_parallel_doc"];
/// Nano-USD for a token: fresh, read from a cache, written to one for 5 minutes or an hour, and answered.
const PRICE: Price = Price { fresh: 1000, read: 100, written_5m: 1250, written_1h: 2000, output: 2000 };

struct Price {
    fresh: u64,
    read: u64,
    written_5m: u64,
    written_1h: u64,
    output: u64,
}

/// One replay of a case.
#[derive(Clone, Copy)]
struct Replay {
    case: usize,
    /// Where it is cut; at every byte where there is none.
    seed: Option<u64>,
    asks_usage: bool,
}

#[test]
fn every_recorded_answer_cut_at_random_is_as_if_it_were_openais() {
    let cases = Arc::new(cases::all());
    let mut replays = Vec::new();
    for seed in 0..REPLAYS {
        let replay = |case| Replay { case, seed: Some(seed), asks_usage: seed % 2 == 0 };
        replays.extend((0..cases.len()).map(replay));
    }
    replay_all(&cases, &replays);
}

#[test]
fn every_small_recorded_answer_cut_at_every_byte_is_as_if_it_were_openais() {
    let cases = Arc::new(cases::all());
    let small = (0..cases.len()).filter(|&at| cases[at].body.len() < SMALL_BYTES);
    let replays: Vec<Replay> = small.map(|case| Replay { case, seed: None, asks_usage: case % 2 == 0 }).collect();
    replay_all(&cases, &replays);
}

/// Replays them through one relay that knows every provider, and checks each answer and its bill.
fn replay_all(cases: &Arc<Vec<Case>>, replays: &[Replay]) {
    if cases.is_empty() {
        return;
    }
    let rows = Arc::new(cases::rows());
    let (upstream, relay) = stage(cases, &rows, replays);
    let answers = ask_all(&relay, cases, replays);
    let bills = bills(&relay, &answers);
    let mut wrong = Vec::new();
    for (replay, answer) in replays.iter().zip(&answers) {
        let case = &cases[replay.case];
        let checked = catch_unwind(AssertUnwindSafe(|| check(case, *replay, answer, &bills)));
        if checked.is_err() {
            wrong.push(format!("{} at {:?}", case.name, replay.seed));
        }
    }
    assert!(wrong.is_empty(), "of {} replays, {} failed: {wrong:#?}", replays.len(), wrong.len());
    assert!(upstream.count() >= replays.len());
}

fn stage(cases: &Arc<Vec<Case>>, rows: &Arc<Vec<Row>>, replays: &[Replay]) -> (Upstream, Relay) {
    let (scripted, known, script) = (Arc::clone(cases), Arc::clone(rows), replays.to_vec());
    let upstream = Upstream::start(move |request, answer| {
        let replay = script[number(&request.body)];
        let case = &scripted[replay.case];
        let row = known.iter().find(|row| row.name == case.provider).unwrap();
        if let Err(wrong) = said_right(request, row, case) {
            return answer.json(418, &json!({"error": {"message": wrong}}));
        }
        case.play(replay.seed.map(|seed| Chance(seed << 32 | replay.case as u64)).as_mut(), answer);
    });
    let mut setup = Setup::bare();
    for row in rows.iter() {
        let Row { name, dialect, path, quirks } = row;
        setup = setup.table(&format!(
            "[[provider]]\nname = {name:?}\ndialect = {dialect:?}\nbase_url = \"http://{}/{name}{path}\"\n\
             credentials = [{{ env = \"UPSTREAM_KEY\" }}]\nquirks = [{quirks}]\nbreaker = false\n\n\
             [[model]]\nid = {name:?}\ncontext_window = 128_000\noutput_tokens_max = 16_384\nowned_by = \"tests\"\n\
             price = {{ input = \"1.00\", output = \"2.00\", cache_read = \"0.10\", cache_write_5m = \"1.25\", \
             cache_write_1h = \"2.00\" }}\ntargets = [{{ provider = {name:?}, model = {PROVIDER_MODEL:?} }}]\n",
            upstream.address
        ));
    }
    let relay = setup.model("unused", &[("openai", 0)]).start();
    (upstream, relay)
}

/// The number in `replay N.`, wherever the dialect has put the message.
fn number(body: &[u8]) -> usize {
    let text = String::from_utf8_lossy(body);
    let (_, after) = text.split_once("replay ").expect("a request without its number");
    after.split_once('.').unwrap().0.parse().unwrap()
}

/// The path and the credential are where this dialect has them.
fn said_right(request: &Received, row: &Row, case: &Case) -> Result<(), String> {
    let gemini = if case.is_stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
    let (path, header, credential) = match row.dialect.as_str() {
        "anthropic" => ("/v1/messages".to_owned(), "x-api-key", PROVIDER_KEY.to_owned()),
        "gemini" => (format!("/v1beta/models/{PROVIDER_MODEL}:{gemini}"), "x-goog-api-key", PROVIDER_KEY.to_owned()),
        _ => ("/chat/completions".to_owned(), "authorization", format!("Bearer {PROVIDER_KEY}")),
    };
    let path = format!("/{}{}{path}", row.name, row.path);
    let seen = (request.method(), request.path(), request.header(header));
    let right = ("POST", path.as_str(), Some(credential.as_str()));
    if seen == right { Ok(()) } else { Err(format!("{seen:?} is not {right:?}")) }
}

fn ask_all(relay: &Relay, cases: &[Case], replays: &[Replay]) -> Vec<Response> {
    let next = AtomicUsize::new(0);
    let answers: Vec<Mutex<Option<Response>>> = replays.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(replay) = replays.get(number) else { return };
                    let answer = relay.chat(&request(number, &cases[replay.case], *replay));
                    *answers[number].lock().unwrap() = Some(answer);
                }
            });
        }
    });
    answers.into_iter().map(|answer| answer.into_inner().unwrap().unwrap()).collect()
}

fn request(number: usize, case: &Case, replay: Replay) -> Value {
    let say = json!([{"role": "user", "content": format!("replay {number}. and what came of it")}]);
    let mut body = json!({"model": case.provider, "messages": say});
    if case.choices() > 1 {
        body["n"] = json!(case.choices());
    }
    if case.is_stream {
        body["stream"] = json!(true);
        if replay.asks_usage {
            body["stream_options"] = json!({"include_usage": true});
        }
    }
    body
}

/// The bills of all requests, once every one of those that were answered has one.
fn bills(relay: &Relay, answers: &[Response]) -> HashMap<String, Value> {
    let last = answers.iter().filter(|answer| answer.status == 200).map(Response::request_id);
    let wanted: Vec<String> = last.collect();
    support::until("the bills of all answers", || {
        let rows = relay.usage().into_iter();
        let bills: HashMap<String, Value> =
            rows.map(|row| (row["request_id"].as_str().unwrap().to_owned(), row)).collect();
        wanted.iter().all(|id| bills.contains_key(id)).then_some(bills)
    })
}

/// Whether the answers of this row pass byte for byte.
fn passes_unchanged(case: &Case) -> bool {
    case.provider == "openai"
}

/// Whether the model failed, in Gemini's word: an answer without an end, which is an error (WIRE §5).
fn has_failed(case: &Case) -> bool {
    let finish = case.expect["choices"][0]["finish_reason"].as_str().unwrap_or_default();
    finish.starts_with("error:")
}

fn check(case: &Case, replay: Replay, answer: &Response, bills: &HashMap<String, Value>) {
    let name = &case.name;
    assert_eq!(answer.end, End::Clean, "{name}");
    if case.status != 200 {
        check_refusal(case, answer);
        let bill = bills.get(&answer.request_id());
        assert!(bill.is_none_or(|bill| bill["cost_nano_usd"] == 0), "{name}: {bill:?}");
        return;
    }
    let bill = bills.get(&answer.request_id());
    if answer.status != 200 {
        // An error under a good status: nothing of it is told before it is whole, or of a stream before its first event, so it
        // is told as an error.
        assert!(case.outcome() != "ok" || has_failed(case), "{name}: {}", answer.text());
        let said_nothing = case.expect["choices"].as_array().is_none_or(Vec::is_empty);
        assert!(!case.is_stream || said_nothing, "{name}: {}", answer.text());
        assert!(answer.json()["error"]["message"].is_string(), "{name}: {}", answer.text());
        assert!(bill.is_none_or(|bill| bill["cost_nano_usd"] == 0), "{name}: {bill:?}");
        return;
    }
    let bill = bill.unwrap();
    assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    if passes_unchanged(case) && replay.asks_usage {
        check_same_bytes(case, answer);
    }
    if UNLIKE_OPENAI.contains(&name.as_str()) {
        return check_bill(case, bill);
    }
    // What the provider did not report, because that recording's client had not asked for it, is not made up.
    let reported = !case.expect["usage"].is_null();
    let decoded = Decoded::answer(answer, replay.asks_usage && (reported || !passes_unchanged(case)));
    if decoded.done {
        assert_eq!(decoded.usage.is_some(), reported && (replay.asks_usage || !case.is_stream), "{name}");
    }
    let expected = case.expect["choices"].as_array().unwrap();
    let has_failed = has_failed(case);
    assert_eq!(decoded.done, case.outcome() == "ok" && !has_failed, "{name}: {}", answer.text());
    match case.outcome() {
        "ok" if has_failed => {
            assert_eq!(decoded.error.as_ref().unwrap()["code"], "upstream_error", "{name}");
            return assert_eq!(bill["output_tokens"], 0, "{name}");
        }
        "ok" => {
            assert_eq!(decoded.choices.len(), expected.len(), "{name}");
            assert!(decoded.error.is_none(), "{name}");
            check_usage(case, decoded.usage.as_ref());
            check_bill(case, bill);
        }
        "truncated" => {
            assert_eq!(decoded.error.as_ref().unwrap()["code"], "upstream_truncated", "{name}");
            assert_eq!((&bill["estimated"], &bill["interrupted"]), (&json!(true), &json!(true)), "{name}");
        }
        // An error in the answer's place, or in its middle.
        _ => check_error_event(case, &decoded, bill),
    }
    for (expected, seen) in expected.iter().zip(&decoded.choices) {
        check_choice(name, expected, seen);
    }
}

fn check_choice(name: &str, expected: &Value, seen: &Choice) {
    assert_eq!(json!(seen.index), expected["index"], "{name}");
    assert_eq!(seen.text, expected["text"].as_str().unwrap_or_default(), "{name}");
    assert_eq!(seen.reasoning, expected["reasoning"].as_str().unwrap_or_default(), "{name}");
    assert_eq!(seen.refusal, expected["refusal"].as_str().unwrap_or_default(), "{name}");
    assert_eq!(seen.finish.as_deref(), expected["finish_reason"].as_str(), "{name}");
    let calls = expected["tool_calls"].as_array().unwrap();
    assert_eq!(seen.calls.len(), calls.len(), "{name}: {:?}", seen.calls);
    for (call, seen) in calls.iter().zip(&seen.calls) {
        assert_eq!(call["name"], seen.name, "{name}");
        if let Some(id) = call["id"].as_str().filter(|id| !["", "<generate>"].contains(id)) {
            assert_eq!(id, seen.id, "{name}");
        }
        match &call["arguments"] {
            // What is no JSON, because it was cut, is expected as text.
            Value::String(raw) => assert_eq!(raw, &seen.arguments, "{name}"),
            arguments => {
                let seen: Value =
                    serde_json::from_str(&seen.arguments).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(unfolded(arguments), seen, "{name}");
            }
        }
    }
    let mut ids: Vec<&str> = seen.calls.iter().map(|call| call.id.as_str()).collect();
    assert!(!ids.contains(&""), "{name}: a call without an id");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), seen.calls.len(), "{name}: two calls of one id");
}

/// Arguments as an object. The second decoder is wrong where arguments came in parts: it took `jsonPath`, which is a path
/// (`"$.operations[0].action"` in the bytes of gemini/stream_function_call_missing_terminal), for a member's name.
fn unfolded(arguments: &Value) -> Value {
    let is_path = |name: &String| name.contains(['[', '.']);
    let Some(members) = arguments.as_object().filter(|members| members.keys().any(is_path)) else {
        return arguments.clone();
    };
    let mut whole = json!({});
    for (path, value) in members {
        let mut place = &mut whole;
        for step in path.split(['.', '[']) {
            place = match step.strip_suffix(']') {
                Some(index) => {
                    let index: usize = index.parse().unwrap();
                    if !place.is_array() {
                        *place = json!([]);
                    }
                    let entries = place.as_array_mut().unwrap();
                    entries.resize(entries.len().max(index + 1), Value::Null);
                    &mut entries[index]
                }
                None => &mut place[step],
            };
        }
        *place = value.clone();
    }
    whole
}

/// What the recording's decoder read of the usage.
struct Tokens {
    fresh: u64,
    read: u64,
    written: u64,
    output: u64,
    reasoning: u64,
}

fn tokens(case: &Case) -> Option<Tokens> {
    let usage = case.expect["usage"].as_object()?;
    let tokens = |name: &str| usage[name].as_u64().unwrap_or(0);
    let (prompt, completion, reasoning) =
        (tokens("prompt_tokens"), tokens("completion_tokens"), tokens("reasoning_tokens"));
    // Reasoning that is counted beside the completion is a part of the answer all the same: xAI.
    let beside = reasoning > 0 && tokens("total_tokens") == prompt + completion + reasoning;
    let (read, written) = (tokens("cached_tokens"), tokens("cache_write_tokens"));
    let output = completion + if beside { reasoning } else { 0 };
    Some(Tokens { fresh: prompt - read - written, read, written, output, reasoning })
}

/// The usage that the client was shown, where there is one: the sums that OpenAI's clients read.
fn check_usage(case: &Case, shown: Option<&Value>) {
    let (Some(shown), Some(tokens)) = (shown, tokens(case)) else { return };
    let name = &case.name;
    let number = |pointer: &str| shown.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let prompt = tokens.fresh + tokens.read + tokens.written;
    assert_eq!((number("/prompt_tokens"), number("/completion_tokens")), (prompt, tokens.output), "{name}: {shown}");
    assert_eq!(number("/total_tokens"), prompt + tokens.output, "{name}");
    assert_eq!(number("/prompt_tokens_details/cached_tokens"), tokens.read, "{name}");
    assert_eq!(number("/completion_tokens_details/reasoning_tokens"), tokens.reasoning, "{name}");
    if case.expect["protocol"] == "anthropic" {
        assert_eq!(number("/cache_creation_input_tokens"), tokens.written, "{name}");
    }
}

fn check_bill(case: &Case, bill: &Value) {
    let name = &case.name;
    let Some(tokens) = tokens(case) else {
        assert!(bill["estimated"] == true || !has_said(case), "{name}: the provider reported nothing: {bill}");
        assert_eq!(bill["output_tokens"].as_u64().unwrap() > 0, has_said(case), "{name}: {bill}");
        return;
    };
    assert_eq!((&bill["estimated"], &bill["interrupted"]), (&json!(false), &json!(false)), "{name}: {bill}");
    check_tokens(name, &tokens, bill);
}

/// Whether there is anything in the answer that could be counted.
fn has_said(case: &Case) -> bool {
    case.expect["choices"].as_array().unwrap().iter().any(|choice| {
        let said = |name: &str| choice[name].as_str().is_some_and(|text| !text.is_empty());
        said("text") || said("reasoning") || said("refusal") || choice["tool_calls"] != json!([])
    })
}

/// Each class of tokens as it was reported, and the cost exactly that of these tokens.
fn check_tokens(name: &str, tokens: &Tokens, bill: &Value) {
    let billed = |class: &str| bill[class].as_u64().unwrap();
    let (short, long) = (billed("cache_write_5m_tokens"), billed("cache_write_1h_tokens"));
    assert_eq!(billed("input_tokens"), tokens.fresh, "{name}");
    assert_eq!(billed("cache_read_tokens"), tokens.read, "{name}");
    assert_eq!(short + long, tokens.written, "{name}");
    assert_eq!(billed("output_tokens"), tokens.output, "{name}");
    assert_eq!(billed("reasoning_tokens"), tokens.reasoning, "{name}");
    let prompt = tokens.fresh * PRICE.fresh + tokens.read * PRICE.read;
    let cost = prompt + short * PRICE.written_5m + long * PRICE.written_1h + tokens.output * PRICE.output;
    assert_eq!(bill["cost_nano_usd"], cost, "{name}");
}

/// The body as recorded. A stream whose last event lacks its blank line, as one recording's does, is given it, and one more.
fn closed(case: &Case) -> Vec<u8> {
    let mut body = case.body.clone();
    if case.is_stream && body.ends_with(b"[DONE]\n") {
        body.extend(b"\n\n");
    }
    body
}

/// What OpenAI itself sent arrives as it was sent.
fn check_same_bytes(case: &Case, answer: &Response) {
    let name = &case.name;
    let sent = match case.outcome() {
        "ok" => return assert!(answer.body == closed(case), "{name} did not arrive as recorded:\n{}", answer.text()),
        // Half an event is worth nothing to anyone.
        "truncated" => {
            let events = case.body.windows(2).rposition(|end| end == b"\n\n").map_or(0, |at| at + 2);
            &case.body[..events]
        }
        _ => {
            let text = std::str::from_utf8(&case.body).unwrap();
            &case.body[..text.find("data: {\"error\"").expect("an error event")]
        }
    };
    assert!(answer.body.starts_with(sent), "{name} did not arrive as recorded:\n{}", answer.text());
}

/// An error event, the only one, in words that are no secret; and what is billed for what was said before it.
fn check_error_event(case: &Case, decoded: &Decoded, bill: &Value) {
    let name = &case.name;
    assert!(decoded.error.is_some() && decoded.usage.is_none(), "{name}: {decoded:?}");
    if case.outcome() == "error" {
        assert_eq!(decoded.choices, [], "{name}");
        assert_eq!(bill["output_tokens"], 0, "{name}: nothing was said");
    } else {
        assert!(bill["output_tokens"].as_u64().unwrap() > 0, "{name}: {bill}");
    }
}

/// A fault of the request stays one, with the provider's words; all else is the operator's trouble.
fn check_refusal(case: &Case, answer: &Response) {
    let (name, told) = (&case.name, &case.expect["error"]);
    let words = ["message", "msg", "detail"].iter().find_map(|field| told[field].as_str()).unwrap();
    let Some(code) = trouble(case) else {
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        let error = &answer.json()["error"];
        assert_eq!(error["message"], words, "{name}");
        assert!(["type", "param", "code"].iter().all(|field| error.get(field).is_some()), "{name}: {error}");
        if passes_unchanged(case) {
            for field in ["type", "param", "code"] {
                assert_eq!(error[field], told[field], "{name}");
            }
        }
        let code = match name.as_str() {
            "deepseek/error_400_context_length"
            | "moonshot/synthetic_error_400_context"
            | "openrouter/error_400_context" => "context_length_exceeded",
            "qwen/synthetic_error_400_data_inspection" => "content_filter",
            _ => return,
        };
        assert_eq!(error["code"], code, "{name}: {error}");
        return;
    };
    let (message, _) = answer.assert_error(502, "upstream_error", code);
    assert!(!words.contains(&message) && !message.contains(words), "{name}: the provider's words are not for clients");
    if let Some((_, after)) = case.headers.iter().find(|(name, _)| name == "retry-after") {
        assert_eq!(answer.header("retry-after"), Some(after.as_str()), "{name}");
    }
}

/// The code of the operator's trouble (WIRE §7), whose words no client gets; `None` for a fault of the request.
fn trouble(case: &Case) -> Option<&'static str> {
    let error = &case.expect["error"];
    let said = |words: &[&str]| {
        let text = error.to_string();
        words.iter().any(|word| text.contains(&format!("\"{word}\"")))
    };
    // An account that is empty or a key that is no good, under whatever status; SiliconFlow's code is a number.
    let accounts = ["insufficient_quota", "exceeded_current_quota_error", "1113", "API_KEY_INVALID"];
    match case.status {
        _ if said(&accounts) || error["code"] == 30001 => Some("upstream_auth"),
        401..=403 => Some("upstream_auth"),
        429 => Some("upstream_rate_limited"),
        404 | 500.. => Some("upstream_error"),
        _ => None,
    }
}
