//! The answers that Anthropic really gave, translated. The folder is named by `TOLLGATE_RECORDINGS`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::client::{Seen, pass, read_stream, read_whole, terms};
use super::*;
use crate::relay::dialect::{Answer, Outcome, ProviderError};

/// Streams up to this length are cut at each of their bytes.
const SMALL_BYTES: usize = 3000;

/// The cases of this provider; empty where the recordings are not.
fn cases() -> Vec<PathBuf> {
    let root = std::env::var_os("TOLLGATE_RECORDINGS").map_or_else(|| "../shared/recordings".into(), PathBuf::from);
    let entries = std::fs::read_dir(root.join("anthropic")).into_iter().flatten().flatten();
    let mut cases: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    if cases.is_empty() {
        println!("skipped: no recordings in {}", root.display());
    }
    cases
}

fn json(case: &Path, name: &str) -> Value {
    std::fs::read(case.join(name)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Ways to cut a text: not, in pieces of some sizes that look random, and a small one in two at each byte.
fn cuts(text: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut ways = vec![vec![text]];
    for bytes_max in [2000, 100, 7, 1] {
        let (mut state, mut rest, mut pieces) = (text.len() as u64, text, Vec::new());
        while !rest.is_empty() {
            // Knuth's linear congruential generator.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (piece, after) = rest.split_at((1 + (state >> 33) as usize % bytes_max).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        ways.push(pieces);
    }
    if text.len() <= SMALL_BYTES {
        ways.extend((1..text.len()).map(|at| vec![&text[..at], &text[at..]]));
    }
    ways
}

/// Compares with the expectation: text, reasoning, calls, finish, usage.
fn check(case: &Path, expect: &Value, seen: &Seen, answer: &dyn Answer) {
    let name = case.display();
    let outcome = match expect["outcome"].as_str() {
        Some("ok") => Outcome::Complete,
        Some("truncated") => Outcome::Truncated,
        _ => Outcome::Errored,
    };
    assert_eq!(seen.outcome, Some(outcome), "{name}");
    let choice = &expect["choices"][0];
    if !choice.is_null() {
        assert_eq!(json!(seen.text), choice["text"], "{name}");
        assert_eq!(json!(seen.reasoning), choice["reasoning"], "{name}");
        assert_eq!(json!(seen.finish), choice["finish_reason"], "{name}");
        let calls: Vec<Value> = seen
            .calls
            .iter()
            .map(|(id, name, arguments)| {
                let arguments: Value = serde_json::from_str(arguments).unwrap();
                json!({"id": id, "name": name, "arguments": arguments})
            })
            .collect();
        assert_eq!(json!(calls), choice["tool_calls"], "{name}");
    }
    assert_eq!(seen.error.is_some(), !expect["error"].is_null(), "{name}");
    assert_eq!(answer.error().map(|error| json!(error.message)), expect["error"].get("message").cloned(), "{name}");
    check_usage(&name.to_string(), &expect["usage"], seen, answer);
}

fn check_usage(name: &str, expect: &Value, seen: &Seen, answer: &dyn Answer) {
    let usage = answer.usage().unwrap_or_default();
    let tokens = |key: &str| expect[key].as_u64().unwrap_or(0);
    let expected = (tokens("prompt_tokens"), tokens("completion_tokens"), tokens("total_tokens"));
    assert_eq!((usage.prompt(), usage.output, usage.total()), expected, "{name}");
    assert_eq!((usage.cache_read, usage.reasoning), (tokens("cached_tokens"), tokens("reasoning_tokens")), "{name}");
    assert_eq!(usage.cache_write_5m + usage.cache_write_1h, tokens("cache_write_tokens"), "{name}");
    if let Some(shown) = &seen.usage {
        assert_eq!((&shown["prompt_tokens"], &shown["completion_tokens"]), (&json!(expected.0), &json!(expected.1)));
        assert_eq!(
            (&shown["total_tokens"], &shown["cache_creation_input_tokens"]),
            (&json!(expected.2), &json!(tokens("cache_write_tokens")))
        );
        assert_eq!(shown["prompt_tokens_details"]["cached_tokens"], json!(usage.cache_read), "{name}");
        assert_eq!(shown["completion_tokens_details"]["reasoning_tokens"], json!(usage.reasoning), "{name}");
    }
}

#[test]
fn recorded_streams_are_what_was_expected() {
    for case in cases() {
        let Ok(stream) = std::fs::read(case.join("response.sse")) else { continue };
        let expect = json(&case, "expect.json");
        let mut first: Option<Seen> = None;
        for (way, pieces) in cuts(&stream).into_iter().enumerate() {
            let show_usage = way % 2 == 0;
            let mut answer = StreamTranslator::new(&terms(show_usage));
            let (out, outcome) = pass(&mut answer, pieces);
            let seen = read_stream(&out, outcome, show_usage);
            check(&case, &expect, &seen, &answer);
            assert!(
                answer.began() != answer.sample().is_empty()
                    && answer.output_is_reported() == (outcome == Outcome::Complete)
            );
            let first = first.get_or_insert_with(|| seen.clone());
            assert_eq!((&seen.python, &seen.node), (&first.python, &first.node), "{}", case.display());
        }
    }
}

#[test]
fn recorded_documents_are_what_was_expected() {
    for case in cases() {
        let Ok(document) = std::fs::read(case.join("response.json")) else { continue };
        let expect = json(&case, "expect.json");
        if expect["outcome"] == "error" {
            check_error(&case, &document, &expect);
            continue;
        }
        for pieces in cuts(&document) {
            let mut answer = WholeTranslator::new(terms(false));
            let (out, outcome) = pass(&mut answer, pieces);
            check(&case, &expect, &read_whole(&out, outcome), &answer);
        }
        // One byte less is not all of it, and nothing is made up.
        let mut cut = WholeTranslator::new(terms(false));
        let (out, outcome) = pass(&mut cut, [&document.trim_ascii_end()[..document.trim_ascii_end().len() - 1]]);
        assert_eq!((out.len(), outcome), (0, Outcome::Truncated));
    }
}

/// A fault of the request reaches the client in the provider's words, everything else as a kind of trouble.
fn check_error(case: &Path, document: &[u8], expect: &Value) {
    let status = json(case, "meta.json")["http_status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap();
    let is_fault = status == 400;
    match map_error(status, document, None) {
        ProviderError::Request { body, .. } if is_fault => {
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["message"], expect["error"]["message"], "{}", case.display());
            assert_eq!(body["error"]["type"], "invalid_request_error");
        }
        // A model that Anthropic does not know was named by the relay's catalogue, not by the client.
        ProviderError::Provider(refusal) if !is_fault => assert_eq!(refusal.cause.status(), 502),
        other => panic!("{}: {other:?}", case.display()),
    }
}

/// What the recorded answers thought reaches a client, and from it Anthropic again, byte for byte.
#[test]
fn recorded_thinking_goes_round() {
    for case in cases() {
        let (stream, document) = (std::fs::read(case.join("response.sse")), std::fs::read(case.join("response.json")));
        let (seen, expected) = match (stream, document) {
            (Ok(stream), _) => {
                let (out, outcome) = pass(&mut StreamTranslator::new(&terms(false)), [&stream[..]]);
                (read_stream(&out, outcome, false), thinking_of_stream(&stream))
            }
            (_, Ok(document)) if json(&case, "expect.json")["outcome"] == "ok" => {
                let (out, outcome) = pass(&mut WholeTranslator::new(terms(false)), [&document[..]]);
                let blocks = json(&case, "response.json")["content"].as_array().unwrap().clone();
                (read_whole(&out, outcome), blocks.into_iter().filter(|block| block["type"] == "thinking").collect())
            }
            _ => continue,
        };
        for message in [&seen.python, &seen.node] {
            let mut echoed = json!({"role": "assistant", "content": "x"});
            if let Some(blocks) = message.get("thinking_blocks") {
                echoed["thinking_blocks"] = blocks.clone();
            }
            let messages = json!([{"role": "user", "content": "a"}, echoed, {"role": "user", "content": "b"}]);
            let sent = super::request::tests::translate(&json!({"model": "m", "messages": messages})).unwrap();
            let mut blocks = sent["messages"][1]["content"].as_array().unwrap().clone();
            assert_eq!(blocks.pop(), Some(json!({"type": "text", "text": "x"})));
            assert_eq!(blocks, expected, "{}", case.display());
        }
    }
}

/// The blocks that a recorded stream has finished, put together without any of the code that is tested.
fn thinking_of_stream(stream: &[u8]) -> Vec<Value> {
    let (mut blocks, mut open) = (Vec::new(), Value::Null);
    for line in str::from_utf8(stream).unwrap().lines().filter_map(|line| line.strip_prefix("data: ")) {
        let event: Value = serde_json::from_str(line).unwrap();
        match event["type"].as_str() {
            Some("content_block_start") => {
                open = event["content_block"].clone();
                if open["type"] == "thinking" {
                    open["signature"] = json!("");
                }
            }
            Some("content_block_delta") if open["type"] == "thinking" => {
                for key in ["thinking", "signature"] {
                    if let Some(more) = event["delta"][key].as_str() {
                        open[key] = json!(open[key].as_str().unwrap().to_owned() + more);
                    }
                }
            }
            Some("content_block_stop") if open["type"] == "thinking" => blocks.push(open.take()),
            _ => {}
        }
    }
    blocks
}
