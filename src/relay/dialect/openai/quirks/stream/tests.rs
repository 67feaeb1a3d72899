//! Streams in vendors' ways, and what clients get of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::decoded::Decoded;
use super::*;

fn terms(show_usage: bool) -> AnswerTerms {
    AnswerTerms { id: "chatcmpl-7".into(), created: 5, model: "shown \"x\"".into(), show_usage }
}

fn run(show_usage: bool, stream: &[u8], chunk_bytes: usize) -> (Vec<u8>, Outcome, LooseStream) {
    let mut answer = LooseStream::new(terms(show_usage), 1);
    let mut out = Vec::new();
    for chunk in stream.chunks(chunk_bytes) {
        out.extend_from_slice(&answer.pass(Bytes::copy_from_slice(chunk)));
    }
    let end = answer.end();
    out.extend_from_slice(&end.append);
    (out, end.outcome, answer)
}

fn events(data: &[&str]) -> String {
    data.iter().map(|data| format!("data: {data}\n\n")).collect()
}

/// The choices of the chunks that a client gets, and what follows them.
fn passed(data: &[&str]) -> (Vec<Value>, Outcome) {
    let (out, outcome, _) = run(false, events(data).as_bytes(), usize::MAX);
    let text = String::from_utf8(out).unwrap();
    let chunks = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let choices = chunks.map(|data| {
        let mut chunk: Value = serde_json::from_str(data).unwrap();
        if chunk.get("error").is_some() { chunk } else { chunk["choices"].take() }
    });
    (choices.collect(), outcome)
}

fn delta(delta: Value) -> Value {
    json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}])
}

fn finished(reason: &str) -> Value {
    json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": reason}])
}

#[test]
fn a_chunk_is_openais_letter_by_letter() {
    let stream = "\n\n: keep-alive\n\ndata: {\"model\":\"m\",\"id\":\"\",\"system_fingerprint\":\"fp\",\"p\":\"abc\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"H\\u00e9\"},\"index\":0}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n\
                  data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"index\":0,\"finish_reason\":\"\"}]}\n\n\
                  data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\",\"stop_reason\":7}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n";
    let head = r#"data: {"id":"chatcmpl-7","object":"chat.completion.chunk","created":5,"model":"shown \"x\"""#;
    let body = format!(
        r#"{head},"system_fingerprint":"fp","choices":[{{"index":0,"delta":{{"role":"assistant","content":"H\u00e9"}},"logprobs":null,"finish_reason":null}}]"#
    );
    let finish = format!(
        r#"{head},"choices":[{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop","stop_reason":7}}]"#
    );
    let usage = r#""usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}"#;
    let done = "data: [DONE]\n\n";
    let hidden = format!(": ping\n{body}}}\n\n{finish}}}\n\n{done}");
    let shown = format!(
        ": ping\n{body},\"usage\":null}}\n\n{finish},\"usage\":null}}\n\n{head},\"choices\":[],{usage}}}\n\n{done}"
    );
    for ending in ["", done] {
        for chunk_bytes in [1, 9, usize::MAX] {
            let stream = format!("{stream}{ending}");
            let (out, outcome, answer) = run(false, stream.as_bytes(), chunk_bytes);
            assert_eq!((String::from_utf8(out).unwrap(), outcome), (hidden.clone(), Outcome::Complete));
            assert_eq!(answer.usage(), Some(Usage { input: 9, output: 2, ..Usage::default() }));
            assert_eq!(answer.sample().sample(), br"H\u00e9");
            assert_eq!(String::from_utf8(run(true, stream.as_bytes(), chunk_bytes).0).unwrap(), shown);
        }
    }
}

#[test]
fn words_pass_at_once_and_the_finish_at_the_end() {
    let mut answer = LooseStream::new(terms(false), 1);
    let word = events(&[r#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#]);
    let out = answer.pass(Bytes::from(word.clone()));
    assert!(out.ends_with(b"\"finish_reason\":null}]}\n\n") && answer.began());
    // Said twice, and with a word that comes late.
    assert!(!answer.pass(Bytes::from(word)).is_empty());
    let end = answer.end();
    assert_eq!(end.outcome, Outcome::Complete);
    assert_eq!(String::from_utf8_lossy(&end.append).matches("\"finish_reason\":\"stop\"").count(), 1);
    assert_eq!(answer.end(), End { outcome: Outcome::Complete, append: Bytes::new() });
}

#[test]
fn an_answer_that_calls_tools_has_not_just_stopped() {
    let (choices, outcome) = passed(&[
        r#"{"choices":[]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":""}}]}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"","type":"function","function":{"name":"","arguments":""}}]},"finish_reason":"stop"}]}"#,
        "[DONE]",
    ]);
    let call = json!([{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]);
    let expected = vec![
        delta(json!({"role": "assistant", "content": null, "tool_calls": call})),
        delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})),
        finished("tool_calls"),
    ];
    assert_eq!((choices, outcome), (expected, Outcome::Complete));
}

#[test]
fn each_choice_has_its_own_role_and_finish() {
    let stream = events(&[
        r#"{"choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{"content":"a"}}]}"#,
        r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#,
        r#"{"choices":[{"index":0,"delta":{"content":"c"},"finish_reason":"stop"}]}"#,
    ]);
    let mut answer = LooseStream::new(terms(false), 2);
    let mut out = answer.pass(Bytes::from(stream)).to_vec();
    let end = answer.end();
    out.extend_from_slice(&end.append);
    let decoded = Decoded::stream(&out);
    assert_eq!(end.outcome, Outcome::Complete);
    let seen: Vec<_> = decoded.choices.iter().map(|choice| (choice.text.as_str(), choice.finish.as_str())).collect();
    assert_eq!(seen, [("ac", "stop"), ("b", "length")]);
    // One of two that were asked for is not all.
    let mut half = LooseStream::new(terms(false), 2);
    half.pass(Bytes::from(events(&[r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#])));
    assert_eq!(half.end().outcome, Outcome::Truncated);
}

#[test]
fn a_failure_is_told_once_and_nothing_follows() {
    let word = r#"{"choices":[{"delta":{"content":"a"}}]}"#;
    for (failure, status) in [
        (r#"{"error":{"message":"bad key sk-123","code":401}}"#, "upstream_auth"),
        (r#"{"error":{"message":"busy","type":"rate_limit_error"}}"#, "upstream_rate_limited"),
        (r#"{"error":"it broke"}"#, "upstream_error"),
        (r#"{"code":50505,"message":"Model service overloaded."}"#, "upstream_error"),
        (r#"{"choices":[{"delta":{"content":""},"finish_reason":"insufficient_system_resource"}]}"#, "upstream_error"),
        (r#"{"choices":[{"delta":{},"finish_reason":"network_error"}]}"#, "upstream_error"),
        (r#"{"choices":[],"x_groq":{"error":"Internal Server Error"}}"#, "upstream_error"),
    ] {
        let (choices, outcome) = passed(&[word, failure, word, "[DONE]"]);
        assert_eq!((choices.len(), outcome), (2, Outcome::Errored), "{failure}");
        assert_eq!(choices[1]["error"]["code"], status, "{failure}");
        assert!(!choices[1].to_string().contains("sk-123"));
    }
    // A fault of the request keeps its words, inside of a stream as well.
    let named = format!(
        "{}event: error\ndata: {{\"error\":{{\"message\":\"Tool call validation failed\",\"type\":\"invalid_request_error\",\"code\":\"tool_use_failed\",\"status_code\":400}}}}\n\n",
        events(&[word])
    );
    let (out, outcome, answer) = run(false, named.as_bytes(), 5);
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.ends_with("\"type\":\"invalid_request_error\"}}\n\n") && text.contains("Tool call validation failed"),
        "{text}"
    );
    assert_eq!(
        (outcome, answer.error().and_then(|error| error.code.as_deref())),
        (Outcome::Errored, Some("tool_use_failed"))
    );
}

#[test]
fn an_answer_that_is_finished_is_not_taken_back() {
    let (choices, outcome) = passed(&[
        r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"length"}]}"#,
        r#"{"error":{"code":400,"message":"Token limit reached"},"choices":[{"delta":{"content":""}}]}"#,
        "[DONE]",
    ]);
    assert_eq!((choices.len(), outcome), (2, Outcome::Complete));
    assert_eq!(choices[1], finished("length"));
}

#[test]
fn a_stream_that_broke_off_is_not_made_whole() {
    for stream in ["", "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"fin"] {
        let (out, outcome, _) = run(false, stream.as_bytes(), 3);
        assert_eq!(outcome, Outcome::Truncated);
        assert!(!String::from_utf8(out).unwrap().contains("[DONE]"));
    }
    // But a last event without its blank line is one.
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}";
    assert_eq!(run(false, stream.as_bytes(), 3).1, Outcome::Complete);
}

#[test]
fn an_event_too_long_to_hold_ends_the_answer() {
    let mut answer = LooseStream::with_event_bytes_max(&terms(false), 1, 100);
    let long = format!("data: {{\"x\":\"{}\"}}\n\n", "x".repeat(200));
    let out: Vec<u8> =
        long.as_bytes().chunks(30).flat_map(|chunk| answer.pass(Bytes::copy_from_slice(chunk))).collect();
    assert!(out.starts_with(b"data: {\"error\":{"), "{}", String::from_utf8_lossy(&out));
    assert_eq!(answer.end(), End { outcome: Outcome::Errored, append: Bytes::new() });
}

#[test]
fn reasoning_has_its_name_and_its_details_stay() {
    let (choices, _) = passed(&[
        r#"{"choices":[{"delta":{"role":"assistant","content":"","reasoning":"Hm","reasoning_details":[{"text":"Hm"}]}}]}"#,
        r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"x"}]},{"type":"text","text":"y"}]}}]}"#,
    ]);
    let first = json!({"role": "assistant", "content": "", "reasoning_content": "Hm", "reasoning": "Hm", "reasoning_details": [{"text": "Hm"}]});
    assert_eq!(choices, [delta(first), delta(json!({"content": "y", "reasoning_content": "x"}))]);
}

/// Streams made of what vendors make them of.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let text =
        prop::sample::select(vec!["null", "\"\"", "\"a\"", "\"\\u00e9\"", "[{\"type\":\"text\",\"text\":\"b\"}]", "7"]);
    let call = prop::sample::select(vec![
        r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{"}}"#,
        r#"{"index":0,"id":null,"function":{"name":null,"arguments":"}"}}"#,
        r#"{"index":5,"id":"b","type":"function","function":{"name":"g","arguments":{}}}"#,
        r#"{"function":{"name":"h"}}"#,
        "{}",
        "1",
    ]);
    let field = prop_oneof![
        4 => (prop::sample::select(vec!["content", "reasoning_content", "reasoning", "refusal", "role", "x"]), text).prop_map(|(key, value)| format!("\"{key}\":{value}")),
        2 => prop::collection::vec(call, 0..3).prop_map(|calls| format!("\"tool_calls\":[{}]", calls.join(","))),
    ];
    let delta = prop::collection::vec(field, 0..3).prop_map(|fields| format!("{{{}}}", fields.join(",")));
    let finish = prop::sample::select(vec![
        "",
        "",
        ",\"finish_reason\":null",
        ",\"finish_reason\":\"\"",
        ",\"finish_reason\":\"stop\"",
        ",\"finish_reason\":\"tool_calls\"",
        ",\"finish_reason\":\"network_error\"",
        ",\"matched_stop\":1",
        ",\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}",
        ",\"logprobs\":{\"content\":[]}",
    ]);
    let choice = (0..3u8, delta, finish).prop_map(|(index, delta, finish)| match index {
        2 => format!("{{\"delta\":{delta}{finish}}}"),
        index => format!("{{\"index\":{index},\"delta\":{delta}{finish}}}"),
    });
    let tail = prop::sample::select(vec![
        "",
        ",\"usage\":null",
        ",\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":3}",
        ",\"y\":[1]",
    ]);
    let chunk = (prop::collection::vec(choice, 0..3), tail)
        .prop_map(|(choices, tail)| format!("{{\"id\":\"z\",\"choices\":[{}]{tail}}}", choices.join(",")));
    let other = prop::sample::select(vec![
        "[DONE]",
        "{\"error\":{\"message\":\"e\"}}",
        "{\"choices\":",
        "",
        "{} {}",
        "{}",
        "1",
    ]);
    let event = prop_oneof![
        12 => chunk.prop_map(|data| format!("data: {data}\n\n")),
        1 => other.prop_map(|data| format!("data: {data}\n\n")),
        1 => Just(": ping\r\n\r\n".to_owned()),
    ];
    (prop::collection::vec(event, 0..8), any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(events, index, cut)| {
            let mut stream = events.concat().into_bytes();
            if cut && !stream.is_empty() {
                stream.truncate(index.index(stream.len()));
            }
            stream
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever comes, what goes out holds what clients are promised, and is the same however it was cut.
    #[test]
    fn what_clients_are_promised_holds(stream in streams(), chunk_bytes in 1usize..60, show_usage: bool) {
        let (out, outcome, answer) = run(show_usage, &stream, usize::MAX);
        let decoded = Decoded::stream(&out);
        prop_assert_eq!(decoded.done, outcome == Outcome::Complete);
        prop_assert_eq!(decoded.error.is_some(), outcome == Outcome::Errored);
        if decoded.done {
            prop_assert!(decoded.choices.iter().all(|choice| !choice.finish.is_empty()));
            prop_assert_eq!(decoded.usage.is_some(), show_usage && answer.usage().is_some());
        }
        let (other, other_outcome, other_answer) = run(show_usage, &stream, chunk_bytes);
        prop_assert_eq!((other, other_outcome), (out, outcome));
        prop_assert_eq!(other_answer.usage(), answer.usage());
    }

    #[test]
    fn any_bytes_are_passed_without_panic(stream: Vec<u8>, show_usage: bool) {
        let (out, _, _) = run(show_usage, &stream, 7);
        Decoded::stream(&out);
        let framed = [b"data: {\"choices\":[{\"delta\":{\"content\":\"", &stream[..], b"\"}}]}\n\n"].concat();
        Decoded::stream(&run(show_usage, &framed, 7).0);
    }
}
