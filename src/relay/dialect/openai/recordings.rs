//! The answers that providers really gave, passed through the readers. The folder is named by `TOLLGATE_RECORDINGS`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::relay::dialect::{Answer, Outcome, ProviderError, map_error};
use crate::relay::json::Cursor;
use crate::relay::meter::ImageTokens;
use crate::relay::sse::{Piece, SseParser};

/// Cuts a text at places that look random and are the same in every run.
pub(super) fn cut(mut rest: &[u8], bytes_max: usize) -> Vec<&[u8]> {
    let mut state = rest.len() as u64;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        // Knuth's linear congruential generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = 1 + (state >> 33) as usize % bytes_max;
        let (chunk, after) = rest.split_at(bytes.min(rest.len()));
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

/// The cases whose answers are in OpenAI's dialect, of all providers; empty where the recordings are not.
pub(super) fn cases() -> Vec<PathBuf> {
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
    cases.into_iter().filter(|case| json(case, "expect.json")["protocol"] == "openai").collect()
}

pub(super) fn json(case: &Path, name: &str) -> Value {
    std::fs::read(case.join(name)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// How long the text is that the expectation holds: prose, reasoning, refusals, and tools' names and arguments are strings
/// that the sample has escaped, so only their presence can be compared with certainty, and prose exactly.
fn prose(expect: &Value) -> String {
    let choices = expect["choices"].as_array().into_iter().flatten();
    choices.filter_map(|choice| choice["text"].as_str()).collect()
}

pub(super) fn has_text(expect: &Value) -> bool {
    expect["choices"].as_array().into_iter().flatten().any(|choice| {
        let said = |key: &str| choice[key].as_str().is_some_and(|text| !text.is_empty());
        said("text")
            || said("reasoning")
            || said("refusal")
            || choice["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
    })
}

/// Usage as the expectation has it: prompt with what was cached, what of it was cached, and the answer with its reasoning.
fn check_usage(case: &Path, expect: &Value, reader: &dyn Answer) {
    let tokens = |key: &str| expect["usage"][key].as_u64();
    let Some(prompt) = tokens("prompt_tokens") else {
        assert_eq!(reader.usage(), None, "{}", case.display());
        return;
    };
    let usage = reader.usage().unwrap_or_default();
    let completion = tokens("completion_tokens").unwrap_or(0);
    let reasoning = tokens("reasoning_tokens").unwrap_or(0);
    let beside = reasoning > 0 && tokens("total_tokens") == Some(prompt + completion + reasoning);
    let expected = (
        prompt,
        tokens("cached_tokens").unwrap_or(0),
        tokens("cache_write_tokens").unwrap_or(0),
        completion + if beside { reasoning } else { 0 },
        reasoning,
    );
    let seen = (usage.prompt(), usage.cache_read, usage.cache_write_5m, usage.output, usage.reasoning);
    assert_eq!(seen, expected, "{}", case.display());
}

fn check_text(case: &Path, expect: &Value, reader: &dyn Answer) {
    assert_eq!(!reader.sample().is_empty(), has_text(expect), "{}", case.display());
    let only_one_prose = expect["choices"].as_array().is_some_and(|choices| choices.len() == 1)
        && ["reasoning", "refusal"].iter().all(|key| expect["choices"][0][key].as_str().is_none_or(str::is_empty))
        && expect["choices"][0]["tool_calls"].as_array().is_none_or(Vec::is_empty);
    if only_one_prose && reader.sample().total_bytes() == reader.sample().sample().len() as u64 {
        let quoted = [b"\"", reader.sample().sample(), b"\""].concat();
        let text = Cursor::new(&quoted).string().unwrap().decode().into_owned();
        assert_eq!(String::from_utf8(text).unwrap(), prose(expect), "{}", case.display());
    }
}

pub(super) fn outcome(expect: &Value) -> Outcome {
    match expect["outcome"].as_str() {
        Some("ok") => Outcome::Complete,
        Some("truncated") => Outcome::Truncated,
        _ => Outcome::Errored,
    }
}

pub(super) fn choices(expect: &Value) -> u64 {
    expect["choices"].as_array().map_or(1, Vec::len).max(1) as u64
}

#[test]
fn recorded_streams_pass_and_are_metered_as_expected() {
    for case in cases() {
        let Ok(stream) = std::fs::read(case.join("response.sse")) else { continue };
        let expect = json(&case, "expect.json");
        for bytes_max in [stream.len().max(1), 2000, 100, 3] {
            for show_usage in [true, false] {
                let mut reader = StreamReader::new(show_usage, choices(&expect));
                let mut forwarded = Vec::new();
                for chunk in cut(&stream, bytes_max) {
                    forwarded.extend_from_slice(&reader.pass(Bytes::copy_from_slice(chunk)));
                }
                if show_usage {
                    let end = reader.end();
                    let forwarded = [&forwarded[..], &end.append].concat();
                    let ours = b"data: {\"error\":";
                    let error_at = forwarded.windows(ours.len()).position(|bytes| bytes == ours);
                    let as_recorded = match (end.outcome, error_at) {
                        (Outcome::Complete, None) => forwarded.starts_with(stream.trim_ascii_end()),
                        (Outcome::Truncated, None) => stream.starts_with(&forwarded),
                        // An error is told in the relay's words.
                        (Outcome::Errored, Some(at)) => stream.starts_with(&forwarded[..at]),
                        _ => false,
                    };
                    assert!(as_recorded, "{}: not as recorded", case.display());
                } else {
                    assert!(!shows_usage(&forwarded), "{}", case.display());
                }
                assert_eq!(reader.end().outcome, outcome(&expect), "{}", case.display());
                assert_eq!(reader.error().is_some(), !expect["error"].is_null(), "{}", case.display());
                assert_eq!(reader.began(), has_text(&expect), "{}", case.display());
                check_usage(&case, &expect, &reader);
                check_text(&case, &expect, &reader);
            }
        }
    }
}

/// Whether any event has a `usage` member at its top.
fn shows_usage(stream: &[u8]) -> bool {
    let mut shows = false;
    SseParser::default().push(&Bytes::copy_from_slice(stream), |piece| {
        if let Piece::Event { event, .. } = piece {
            shows |= serde_json::from_slice::<Value>(&event.data).is_ok_and(|data| data.get("usage").is_some());
        }
    });
    shows
}

#[test]
fn recorded_documents_pass_and_are_metered_as_expected() {
    for case in cases() {
        let Ok(document) = std::fs::read(case.join("response.json")) else { continue };
        let expect = json(&case, "expect.json");
        if expect["outcome"] == "error" {
            check_error(&case, &document, &expect);
            continue;
        }
        for bytes_max in [document.len().max(1), 100, 3] {
            let mut reader = JsonReader::new();
            for chunk in cut(&document, bytes_max) {
                assert_eq!(reader.pass(Bytes::copy_from_slice(chunk)), chunk);
            }
            assert_eq!(reader.end().outcome, outcome(&expect), "{}", case.display());
            check_usage(&case, &expect, &reader);
            check_text(&case, &expect, &reader);
        }
    }
}

/// A fault of the request reaches the client in the provider's words, and nothing else does.
fn check_error(case: &Path, document: &[u8], expect: &Value) {
    let status = json(case, "meta.json")["http_status"].as_u64().or_else(|| json(case, "meta.json")["status"].as_u64());
    let Some(status) = status.and_then(|status| u16::try_from(status).ok()) else {
        panic!("{}: no status", case.display())
    };
    match map_error(status, document, None) {
        ProviderError::Request { body, .. } => {
            let body: Value = serde_json::from_slice(&body).unwrap();
            if let Some(message) = expect["error"]["message"].as_str() {
                assert_eq!(body["error"]["message"], message, "{}", case.display());
            }
        }
        ProviderError::Provider(refusal) => assert_eq!(refusal.cause.status(), 502, "{}", case.display()),
    }
}

/// Requests of which the provider told how long their prompts were.
#[test]
fn no_recorded_prompt_is_longer_than_its_ceiling() {
    let (mut compared, mut ratios) = (0, Vec::new());
    for case in cases() {
        let body = json(&case, "request.json").to_string();
        let (Ok(request), Some(counted)) =
            (ChatRequest::parse(Bytes::from(body)), json(&case, "expect.json")["usage"]["prompt_tokens"].as_u64())
        else {
            continue;
        };
        let ceiling = request.ceiling().tokens(ImageTokens { full: 1_500, low: 85 }, 128_000);
        ratios.push((ceiling * 100 / counted.max(1), counted, case.file_name().unwrap_or_default().to_owned()));
        assert!(ceiling >= counted, "{}: {ceiling} for {counted}", case.display());
        compared += 1;
    }
    ratios.sort();
    println!("per cent, tokens: {:?} … {:?}", ratios.first_chunk::<5>(), ratios.last_chunk::<3>());
    assert!(cases().is_empty() || compared > 40, "only {compared} could be compared");
}
