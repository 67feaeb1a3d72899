//! The answers that vendors really gave, put right and then read as a client reads them. The folder is named by
//! `TOLLGATE_RECORDINGS`.

use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use super::decoded::{Decoded, DecodedChoice};
use super::*;
use crate::relay::dialect::openai::recordings::{cases, choices, cut, has_text, json, outcome};
use crate::relay::dialect::{Answer, AnswerTerms};

/// Streams shorter than this are cut at every byte.
const SHORT_BYTES: usize = 4000;

fn terms(show_usage: bool) -> AnswerTerms {
    AnswerTerms { id: "chatcmpl-test".into(), created: 1, model: "test".into(), show_usage }
}

fn pass(answer: &mut dyn Answer, case: &Path, expect: &Value, chunks: Vec<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&answer.pass(Bytes::copy_from_slice(chunk)));
    }
    let end = answer.end();
    out.extend_from_slice(&end.append);
    assert_eq!(end.outcome, outcome(expect), "{}", case.display());
    assert_eq!(answer.error().is_some(), !expect["error"].is_null(), "{}", case.display());
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn check_choice(case: &Path, expect: &Value, seen: &DecodedChoice) {
    let name = case.display();
    assert_eq!(seen.text, text(&expect["text"]), "{name}");
    assert_eq!(seen.reasoning, text(&expect["reasoning"]), "{name}");
    assert_eq!(seen.refusal, text(&expect["refusal"]), "{name}");
    assert_eq!(seen.finish, text(&expect["finish_reason"]), "{name}");
    let calls = expect["tool_calls"].as_array().unwrap();
    assert_eq!(seen.calls.len(), calls.len(), "{name}");
    for (seen, call) in seen.calls.iter().zip(calls) {
        assert_eq!((seen.0.as_str(), seen.1.as_str()), (text(&call["id"]), text(&call["name"])), "{name}");
        match &call["arguments"] {
            // What is no JSON, because it was cut, is expected as text.
            Value::String(raw) => assert_eq!(&seen.2, raw, "{name}"),
            arguments => assert_eq!(&serde_json::from_str::<Value>(&seen.2).unwrap(), arguments, "{name}"),
        }
    }
}

/// What the client is shown is what is billed, and that is what was expected.
fn check_usage(case: &Path, expect: &Value, shown: Option<&Value>, answer: &dyn Answer) {
    let name = case.display();
    let tokens = |key: &str| expect["usage"][key].as_u64().unwrap_or(0);
    let (Some(usage), false) = (answer.usage(), expect["usage"].is_null()) else {
        assert!(answer.usage().is_none() && expect["usage"].is_null() && shown.is_none(), "{name}");
        return;
    };
    let (prompt, completion, reasoning) =
        (tokens("prompt_tokens"), tokens("completion_tokens"), tokens("reasoning_tokens"));
    // Reasoning that is counted beside the completion is a part of the answer all the same: xAI.
    let beside = reasoning > 0 && tokens("total_tokens") == prompt + completion + reasoning;
    let output = completion + if beside { reasoning } else { 0 };
    let seen = (usage.prompt(), usage.cache_read, usage.cache_write_5m, usage.output, usage.reasoning);
    let expected = (prompt, tokens("cached_tokens"), tokens("cache_write_tokens"), output, reasoning);
    assert_eq!(seen, expected, "{name}");
    if let Some(shown) = shown {
        let shown_tokens = |pointer: &str| shown.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        assert_eq!((shown_tokens("/prompt_tokens"), shown_tokens("/completion_tokens")), (prompt, output), "{name}");
        assert_eq!(shown_tokens("/total_tokens"), prompt + output, "{name}");
        assert_eq!(shown_tokens("/prompt_tokens_details/cached_tokens"), usage.cache_read, "{name}");
        assert_eq!(shown_tokens("/completion_tokens_details/reasoning_tokens"), reasoning, "{name}");
    }
}

#[test]
fn recorded_streams_are_as_if_they_were_openais() {
    for case in cases() {
        let Ok(stream) = std::fs::read(case.join("response.sse")) else { continue };
        let expect = json(&case, "expect.json");
        let mut splits: Vec<Vec<&[u8]>> = [usize::MAX, 1, 2000, 100, 3]
            .iter()
            .map(|bytes_max| {
                if *bytes_max == 1 {
                    stream.chunks(1).collect()
                } else {
                    cut(&stream, (*bytes_max).min(stream.len().max(1)))
                }
            })
            .collect();
        if stream.len() < SHORT_BYTES {
            splits.extend((0..stream.len()).map(|at| vec![&stream[..at], &stream[at..]]));
        }
        let mut first = None;
        for (number, chunks) in splits.into_iter().enumerate() {
            let show_usage = number % 2 == 0;
            let mut answer = LooseStream::new(terms(show_usage), choices(&expect));
            let out = pass(&mut answer, &case, &expect, chunks);
            let same = first.get_or_insert([None, None]);
            let same = &mut same[usize::from(show_usage)];
            // However it was cut, it is the same.
            if let Some(same) = same.as_ref() {
                assert!(same == &out, "{}", case.display());
                continue;
            }
            let decoded = Decoded::stream(&out);
            *same = Some(out);
            assert_eq!(decoded.done, expect["outcome"] == "ok", "{}", case.display());
            assert_eq!(answer.began(), has_text(&expect), "{}", case.display());
            let expected = expect["choices"].as_array().unwrap();
            assert_eq!(decoded.choices.len(), expected.len(), "{}", case.display());
            for (expected, seen) in expected.iter().zip(&decoded.choices) {
                assert_eq!(seen.index, expected["index"].as_u64().unwrap());
                check_choice(&case, expected, seen);
            }
            assert!(show_usage || decoded.usage.is_none(), "{}", case.display());
            check_usage(&case, &expect, decoded.usage.as_ref(), &answer);
        }
    }
}

#[test]
fn recorded_documents_are_as_if_they_were_openais() {
    for case in cases() {
        let Ok(document) = std::fs::read(case.join("response.json")) else { continue };
        let expect = json(&case, "expect.json");
        if expect["outcome"] == "error" {
            continue;
        }
        for bytes_max in [document.len().max(1), 100, 3] {
            let mut answer = LooseDocument::new(terms(false));
            let out = pass(&mut answer, &case, &expect, cut(&document, bytes_max));
            let decoded = Decoded::document(&out);
            for (expected, seen) in expect["choices"].as_array().unwrap().iter().zip(&decoded.choices) {
                check_choice(&case, expected, seen);
            }
            check_usage(&case, &expect, decoded.usage.as_ref(), &answer);
        }
    }
}
