//! The answers that Gemini really gave, passed through the translators. The folder is named by `TOLLGATE_RECORDINGS`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::testing::{Told, cut, terms, told_by_document, told_by_stream};
use super::*;
use crate::relay::dialect::{Answer, Outcome, ProviderError};

/// Streams up to this long are cut in two at every byte; longer ones at so many places.
const CUTS_MAX: usize = 1500;

/// The cases whose answers are in Gemini's dialect, of all providers; empty where the recordings are not.
fn cases() -> Vec<PathBuf> {
    let root = std::env::var_os("TOLLGATE_RECORDINGS").map_or_else(|| "../shared/recordings".into(), PathBuf::from);
    let folders = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    };
    let cases: Vec<_> = folders(&root).iter().flat_map(|provider| folders(provider)).collect();
    if cases.is_empty() {
        println!("skipped: no recordings in {}", root.display());
    }
    cases.into_iter().filter(|case| file(case, "expect.json")["protocol"] == "gemini").collect()
}

fn file(case: &Path, name: &str) -> Value {
    std::fs::read(case.join(name)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn scope() -> SignatureScope {
    Arc::new(SignatureMemory::default()).scope("acct")
}

/// An expectation that does not say what the bytes say, put right.
fn mended(case: &Path, mut expect: Value) -> Value {
    if case.ends_with("stream_function_call_missing_terminal") {
        // The parts' paths are `$.operations[0].action` and so on: places in an object with an array of objects. The second
        // decoder took each path for a name.
        let item = |action: &str, description: &str, id: &str, price: f64| json!({"action": action, "description": description, "itemid": id, "price": price});
        expect["choices"][0]["tool_calls"][0]["arguments"] = json!({"operations": [
            item("add", "Fresh red apple", "apple_001", 0.5),
            item("add", "Ripe yellow banana", "banana_001", 0.3),
        ]});
    }
    expect
}

/// What is expected of an answer that is one.
fn expected(expect: &Value) -> Vec<Told> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let call = |call: &Value| {
        let id = Some(text(&call["id"])).filter(|id| id != "<generate>");
        (id, text(&call["name"]), call["arguments"].clone(), call["thought_signature"] == true)
    };
    let choices = expect["choices"].as_array().into_iter().flatten();
    choices
        .map(|choice| Told {
            text: text(&choice["text"]),
            reasoning: text(&choice["reasoning"]),
            calls: choice["tool_calls"].as_array().into_iter().flatten().map(call).collect(),
            finish: choice["finish_reason"].as_str().map(str::to_owned),
        })
        .collect()
}

/// The same, of what was told: an id that was made up is not compared.
fn comparable(mut told: Vec<Told>) -> Vec<Told> {
    for (id, ..) in told.iter_mut().flat_map(|told| &mut told.calls) {
        *id = id.take().filter(|id| !ids::is_minted(id.as_bytes()));
    }
    told
}

fn outcome(expect: &Value) -> Outcome {
    let failed = |choice: &Value| choice["finish_reason"].as_str().is_some_and(|reason| reason.starts_with("error:"));
    match expect["outcome"].as_str() {
        Some("ok") if expect["choices"].as_array().is_some_and(|choices| choices.iter().any(failed)) => {
            Outcome::Errored
        }
        Some("ok") => Outcome::Complete,
        Some("truncated") => Outcome::Truncated,
        _ => Outcome::Errored,
    }
}

/// What the client is shown as usage.
fn usage(expect: &Value) -> Value {
    let usage = &expect["usage"];
    let tokens = |key: &str| usage[key].as_u64().unwrap_or(0);
    if usage.is_null() || tokens("prompt_tokens") + tokens("completion_tokens") == 0 {
        return Value::Null;
    }
    json!({
        "prompt_tokens": tokens("prompt_tokens"), "completion_tokens": tokens("completion_tokens"),
        "total_tokens": tokens("prompt_tokens") + tokens("completion_tokens"),
        "prompt_tokens_details": {"cached_tokens": tokens("cached_tokens")},
        "completion_tokens_details": {"reasoning_tokens": tokens("reasoning_tokens")},
    })
}

fn check_stream(case: &Path, stream: &[u8], expect: &Value, chunks: &[&[u8]], show_usage: bool) {
    let mut translator = StreamTranslator::new(&terms(show_usage), 1, scope());
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&translator.pass(Bytes::copy_from_slice(chunk)));
    }
    let end = translator.end();
    out.extend_from_slice(&end.append);
    let name = format!("{} in {} of {} bytes", case.display(), chunks.len(), stream.len());
    assert_eq!(end.outcome, outcome(expect), "{name}");
    let told = told_by_stream(&out, show_usage);
    assert_eq!(told.error.is_some(), outcome(expect) == Outcome::Errored, "{name}");
    assert_eq!(translator.error().is_some(), told.error.is_some(), "{name}");
    assert_eq!(comparable(told.choices), expected(expect), "{name}");
    if outcome(expect) == Outcome::Complete {
        assert_eq!(told.usage, if show_usage { usage(expect) } else { Value::Null }, "{name}");
    }
    check_report(&name, expect, &translator);
}

fn check_report(name: &str, expect: &Value, answer: &dyn Answer) {
    let tokens = |key: &str| expect["usage"][key].as_u64().unwrap_or(0);
    let usage = answer.usage().unwrap_or_default();
    assert_eq!(
        (usage.prompt(), usage.cache_read, usage.output, usage.reasoning),
        (tokens("prompt_tokens"), tokens("cached_tokens"), tokens("completion_tokens"), tokens("reasoning_tokens")),
        "{name}"
    );
}

#[test]
fn recorded_streams_become_the_chunks_that_are_expected() {
    for case in cases() {
        let Ok(stream) = std::fs::read(case.join("response.sse")) else { continue };
        let expect = mended(&case, file(&case, "expect.json"));
        for show_usage in [true, false] {
            for bytes_max in [stream.len().max(1), 2000, 100, 1] {
                check_stream(&case, &stream, &expect, &cut(&stream, bytes_max), show_usage);
            }
        }
        for at in (0..stream.len()).step_by(stream.len().div_ceil(CUTS_MAX)) {
            let (head, tail) = stream.split_at(at);
            check_stream(&case, &stream, &expect, &[head, tail], true);
        }
    }
}

#[test]
fn recorded_streams_that_break_off_are_truncated_and_never_done() {
    for case in cases() {
        let Ok(stream) = std::fs::read(case.join("response.sse")) else { continue };
        // Up to behind the last event but one nothing has finished, in all cases but those of a single event.
        let events: Vec<usize> = memchr::memmem::find_iter(&stream, b"\r\n\r\n").collect();
        let Some(last) = events.iter().rev().nth(1) else { continue };
        for at in (0..last + 4).step_by(7) {
            let mut translator = StreamTranslator::new(&terms(true), 1, scope());
            let mut out = translator.pass(Bytes::copy_from_slice(&stream[..at])).to_vec();
            let end = translator.end();
            out.extend_from_slice(&end.append);
            assert_eq!(end.outcome, Outcome::Truncated, "{} at {at}", case.display());
            assert!(!String::from_utf8(out).unwrap().contains("[DONE]"), "{} at {at}", case.display());
            assert_eq!(translator.end().append, Bytes::new());
        }
    }
}

#[test]
fn recorded_documents_become_the_documents_that_are_expected() {
    for case in cases() {
        let Ok(document) = std::fs::read(case.join("response.json")) else { continue };
        let expect = file(&case, "expect.json");
        if expect["outcome"] == "error" {
            check_error(&case, &document, &expect);
            continue;
        }
        for bytes_max in [document.len().max(1), 100, 1] {
            let mut translator = WholeTranslator::new(terms(false), 1, scope());
            for chunk in cut(&document, bytes_max) {
                assert_eq!(translator.pass(Bytes::copy_from_slice(chunk)), Bytes::new());
            }
            let end = translator.end();
            let name = case.display().to_string();
            assert_eq!(end.outcome, outcome(&expect), "{name}");
            if end.outcome == Outcome::Complete {
                let told = told_by_document(&end.append);
                assert_eq!(comparable(told.choices), expected(&expect), "{name}");
                assert_eq!(told.usage, usage(&expect), "{name}");
            } else {
                let body: Value = serde_json::from_slice(&end.append).unwrap();
                assert_eq!(body["error"]["code"], "upstream_error", "{name}");
            }
            check_report(&name, &expect, &translator);
        }
    }
}

/// A fault of the request reaches the client in Google's words, and nothing else does.
fn check_error(case: &Path, document: &[u8], expect: &Value) {
    let status = file(case, "meta.json")["http_status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap();
    match map_error(status, document, None) {
        ProviderError::Request { body, .. } => {
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["message"], expect["error"]["message"], "{}", case.display());
            assert_eq!(status, 400, "{}", case.display());
        }
        ProviderError::Provider(refusal) => {
            assert_eq!(refusal.cause.status(), 502, "{}", case.display());
            let retry = document.windows(12).any(|window| window == b"\"retryDelay\"");
            assert_eq!(refusal.retry_after_ms.is_some(), retry, "{}", case.display());
        }
    }
}
