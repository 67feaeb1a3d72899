//! Every recorded answer of OpenAI, replayed by a scripted provider: it reaches the client as it was recorded and is
//! metered as its second decoder says. Skipped, with a line, where the recordings are not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use support::setup::MODEL;
use support::{Answer, Chance, End, Relay, Response, Setup, Upstream};

/// How often each case is replayed, each time cut at other places.
const REPLAYS: u64 = 3;

struct Case {
    name: String,
    status: u16,
    headers: Vec<(String, String)>,
    streamed: bool,
    body: Vec<u8>,
    expect: Value,
}

fn folder() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/recordings");
    std::env::var_os("TOLLGATE_RECORDINGS").map_or_else(default, PathBuf::from).join("openai")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn cases() -> Vec<Case> {
    let Ok(entries) = fs::read_dir(folder()) else {
        println!("skipped: there are no recordings at {}", folder().display());
        return Vec::new();
    };
    let mut cases: Vec<Case> = entries.map(|entry| case(&entry.unwrap().path())).collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(cases.len() > 20, "the recordings at {} are incomplete", folder().display());
    cases
}

fn case(folder: &Path) -> Case {
    let meta = read_json(&folder.join("meta.json"));
    let file = meta["response_file"].as_str().unwrap();
    let streamed = Path::new(file).extension().is_some_and(|extension| extension == "sse");
    let headers = meta["response_headers"].as_object().into_iter().flatten();
    let mut headers: Vec<(String, String)> = headers
        .filter(|(name, _)| {
            !["content-length", "transfer-encoding", "content-encoding", "connection"]
                .contains(&name.to_lowercase().as_str())
        })
        .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
        .collect();
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        let kind = if streamed { "text/event-stream" } else { "application/json" };
        headers.push(("content-type".into(), kind.into()));
    }
    Case {
        name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
        status: meta["http_status"].as_u64().unwrap().try_into().unwrap(),
        headers,
        streamed,
        body: fs::read(folder.join(file)).unwrap(),
        expect: read_json(&folder.join("expect.json")),
    }
}

/// Plays a case, its body chunked and cut into pieces of 1 byte to a few hundred.
fn play(case: &Case, chance: &mut Chance, answer: &mut Answer) {
    let headers: Vec<(&str, &str)> = case.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    answer.head(case.status, &headers, "transfer-encoding: chunked\r\n");
    let longest = [3, 40, 700][chance.below(3)];
    for piece in chance.pieces(&case.body, longest) {
        answer.chunk(piece);
    }
    answer.end();
}

fn request(number: usize, case: &Case) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "the case"}], "seed": number});
    if case.streamed {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

#[test]
fn every_recorded_answer_passes_and_is_metered() {
    let cases = Arc::new(cases());
    if cases.is_empty() {
        return;
    }
    let scripted = Arc::clone(&cases);
    let upstream = Upstream::start(move |request, answer| {
        let seed = request.json()["seed"].as_u64().unwrap();
        let case = &scripted[usize::try_from(seed).unwrap() % scripted.len()];
        play(case, &mut Chance(seed), answer);
    });
    let relay = Setup::new(&upstream).start();
    let mut answers = Vec::new();
    for replay in 0..REPLAYS {
        for (number, case) in cases.iter().enumerate() {
            let seed = number + usize::try_from(replay).unwrap() * cases.len();
            answers.push((case, relay.chat(&request(seed, case))));
        }
    }
    let mut wrong = Vec::new();
    for (case, answer) in answers {
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&relay, case, &answer)));
        if checked.is_err() {
            wrong.push(case.name.clone());
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "of {} cases, these failed: {wrong:?}", cases.len());
}

fn check(relay: &Relay, case: &Case, answer: &Response) {
    let name = &case.name;
    match case.expect["outcome"].as_str().unwrap() {
        "ok" => {
            assert_eq!((answer.status, answer.end), (200, End::Clean), "{name}: {}", answer.text());
            assert!(
                answer.body == closed(case),
                "{name} did not arrive as recorded:\n{}\n---\n{}",
                answer.text(),
                String::from_utf8_lossy(&case.body)
            );
            check_bill(relay, case, answer);
        }
        "error" => check_error(case, answer),
        "error_after_output" => {
            assert!(answer.body.starts_with(&up_to_last_word(&case.body)), "{name}: {}", answer.text());
            assert_last_event_is_an_error(case, answer, None);
            assert_eq!(relay.usage_of(&answer.request_id())["estimated"], true, "{name}");
        }
        "truncated" => {
            assert!(answer.body.starts_with(&case.body), "{name}: {}", answer.text());
            assert_last_event_is_an_error(case, answer, Some("upstream_truncated"));
            let bill = relay.usage_of(&answer.request_id());
            assert_eq!((&bill["estimated"], &bill["interrupted"]), (&json!(true), &json!(true)), "{name}");
        }
        other => panic!("{name}: an outcome that this test does not know: {other}"),
    }
}

/// The body as recorded. A stream whose last event lacks its blank line, as one recording's does, is given it, and one more.
fn closed(case: &Case) -> Vec<u8> {
    let mut body = case.body.clone();
    if case.streamed && body.ends_with(b"[DONE]\n") {
        body.extend(b"\n\n");
    }
    body
}

/// The stream up to the error that ends it.
fn up_to_last_word(body: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(body).unwrap();
    body[..text.find("data: {\"error\"").expect("an error event")].to_vec()
}

fn assert_last_event_is_an_error(case: &Case, answer: &Response, code: Option<&str>) {
    assert!(!answer.text().contains("[DONE]"), "{}", case.name);
    let mut events = answer.events();
    let last = events.pop().unwrap();
    assert!(
        !events.iter().any(|event| event.starts_with("{\"error\"")),
        "{}: more than one error: {events:?}",
        case.name
    );
    let error: Value = serde_json::from_str(&last).unwrap_or_else(|_| panic!("{}: {last}", case.name));
    assert!(error["error"]["message"].is_string(), "{}: {last}", case.name);
    if let Some(code) = code {
        assert_eq!(error["error"]["code"], code, "{}", case.name);
    }
}

fn check_bill(relay: &Relay, case: &Case, answer: &Response) {
    let bill = relay.usage_of(&answer.request_id());
    let name = &case.name;
    let usage = &case.expect["usage"];
    let tokens = |key: &str| usage[key].as_u64().unwrap();
    if usage.is_null() {
        assert_eq!(bill["estimated"], true, "{name}: the provider reported nothing");
        assert!(bill["output_tokens"].as_u64().unwrap() > 0, "{name}");
        return;
    }
    let (cached, written) = (tokens("cached_tokens"), tokens("cache_write_tokens"));
    let fresh = tokens("prompt_tokens") - cached - written;
    assert_eq!((&bill["estimated"], &bill["interrupted"]), (&json!(false), &json!(false)), "{name}");
    assert_eq!(bill["input_tokens"], fresh, "{name}");
    assert_eq!(bill["cache_read_tokens"], cached, "{name}");
    assert_eq!(bill["cache_write_5m_tokens"], written, "{name}");
    assert_eq!(bill["output_tokens"], tokens("completion_tokens"), "{name}");
    assert_eq!(bill["reasoning_tokens"], tokens("reasoning_tokens"), "{name}");
    let cost = (fresh + written) * 1000 + cached * 100 + tokens("completion_tokens") * 2000;
    assert_eq!(bill["cost_nano_usd"], cost, "{name}");
}

/// A fault of the request stays one, with the provider's words; all else is the operator's trouble.
fn check_error(case: &Case, answer: &Response) {
    let told = &case.expect["error"];
    if case.status == 400 {
        assert_eq!(answer.status, 400, "{}", case.name);
        for field in ["message", "type", "param", "code"] {
            assert_eq!(answer.json()["error"][field], told[field], "{}", case.name);
        }
        return;
    }
    // A quota that is used up is a matter between the operator and the provider: no rate that a wait would mend.
    let is_account = case.status == 401 || told["code"] == "insufficient_quota";
    let code = if is_account { "upstream_auth" } else { "upstream_rate_limited" };
    let (message, _) = answer.assert_error(502, "upstream_error", code);
    assert!(
        !told["message"].as_str().unwrap().contains(&message),
        "{}: the provider's words are not for clients",
        case.name
    );
    let retry_after = case.headers.iter().find(|(name, _)| name == "retry-after").map(|(_, value)| value.as_str());
    assert_eq!(answer.header("retry-after"), retry_after, "{}", case.name);
}
