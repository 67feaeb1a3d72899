//! Streams that Anthropic, and proxies before it, may send.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::client::{Seen, pass, read_stream, terms};
use super::super::reasoning::THINKING_BYTES_MAX;
use super::*;

fn event(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap_or("x"))
}

fn start() -> Value {
    json!({"type":"message_start","message":{"id":"msg_1","content":[],"usage":{"input_tokens":5,"output_tokens":1}}})
}

fn block(index: u64, block: &Value) -> Value {
    json!({"type":"content_block_start","index":index,"content_block":block})
}

fn delta(index: u64, kind: &str, key: &str, text: &str) -> Value {
    json!({"type":"content_block_delta","index":index,"delta":{"type":kind,key:text}})
}

fn stop(index: u64) -> Value {
    json!({"type":"content_block_stop","index":index})
}

fn text(text: &str) -> Value {
    delta(0, "text_delta", "text", text)
}

fn arguments(index: u64, json: &str) -> Value {
    delta(index, "input_json_delta", "partial_json", json)
}

fn tool(index: u64, name: &str) -> Value {
    block(index, &json!({"type":"tool_use","id":format!("toolu_{index}"),"name":name,"input":{}}))
}

fn end(reason: &str) -> [Value; 2] {
    [
        json!({"type":"message_delta","delta":{"stop_reason":reason},"usage":{"output_tokens":7}}),
        json!({"type":"message_stop"}),
    ]
}

fn stream(events: &[Value]) -> String {
    events.iter().map(event).collect()
}

/// What a client sees of a stream, which is the same however it is cut.
fn seen(stream: &str) -> Seen {
    let read = |show_usage: bool, chunk_bytes: usize| {
        let mut answer = StreamTranslator::new(terms(show_usage));
        let (out, outcome) = pass(&mut answer, stream.as_bytes().chunks(chunk_bytes));
        read_stream(&out, outcome, show_usage)
    };
    let whole = read(true, usize::MAX);
    for chunk_bytes in [1, 3, 64] {
        assert_eq!(read(true, chunk_bytes), whole, "{stream}");
    }
    assert_eq!(Seen { usage: whole.usage.clone(), ..read(false, 7) }, whole);
    whole
}

fn seen_of(events: &[Value]) -> Seen {
    seen(&stream(events))
}

#[test]
fn a_stream_is_this() {
    let mut events =
        vec![start(), block(0, &json!({"type":"text","text":""})), json!({"type":"ping"}), text("Hi \"é\"")];
    events.push(stop(0));
    events.extend(end("end_turn"));
    let mut answer = StreamTranslator::new(terms(true));
    let (out, outcome) = pass(&mut answer, [stream(&events).as_bytes()]);
    let head = r#"data: {"id":"chatcmpl-\"1\"","object":"chat.completion.chunk","created":1700000000,"model":"claude/é","choices":"#;
    let chunk = |delta: &str, finish: &str| {
        format!(r#"{head}[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}],"usage":null}}"#)
    };
    let usage = r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0},"cache_creation_input_tokens":0}"#;
    let expected = [
        chunk(r#"{"role":"assistant","content":"","refusal":null}"#, "null"),
        chunk(r#"{"content":"Hi \"é\""}"#, "null"),
        chunk("{}", r#""stop""#),
        format!(r#"{head}[],"usage":{usage}}}"#),
        "data: [DONE]".to_owned(),
    ];
    assert_eq!(String::from_utf8(out).unwrap(), expected.map(|chunk| chunk + "\n\n").concat());
    assert_eq!((outcome, answer.sample().sample()), (Outcome::Complete, "Hi \\\"é\\\"".as_bytes()));
}

#[test]
fn each_event_is_told_at_once() {
    let mut answer = StreamTranslator::new(terms(false));
    let mut tell = |event_: Value| answer.pass(Bytes::from(event(&event_))).len();
    assert!(tell(start()) > 0);
    assert_eq!(tell(block(0, &json!({"type":"text","text":""}))), 0);
    for _ in 0..3 {
        assert!(tell(text("a")) > 0);
    }
    assert_eq!(tell(stop(0)) + tell(tool(1, "f")), 0);
    assert!(tell(arguments(1, &"x".repeat(CALL_BYTES_HELD_MAX + 1))) > 0);
    assert!(tell(arguments(1, "y")) > 0, "what is long goes on as it comes");
}

#[test]
fn finish_reasons_are_openais() {
    for (reason, finish) in [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ] {
        let [delta, stop] = end(reason);
        assert_eq!(seen_of(&[start(), delta, stop]).finish.as_deref(), Some(finish));
    }
}

#[test]
fn calls_have_dense_indexes_and_whole_arguments() {
    let mut events = vec![start(), block(0, &json!({"type":"text","text":"So: "})), stop(0)];
    events.extend([tool(1, "f"), arguments(1, ""), arguments(1, "{\"a\":"), arguments(1, " 1.50}"), stop(1)]);
    events.extend([block(2, &json!({"type":"server_tool_use","id":"s","name":"web_search","input":{}}))]);
    events.extend([arguments(2, "{\"query\":1}"), stop(2), tool(3, "none"), arguments(3, ""), stop(3)]);
    // One that came whole, and one that was not ended.
    let given = json!({"type":"tool_use","id":"g","name":"given","input":{"b":[1, "x"]}});
    events.extend([block(4, &given), stop(4), block(5, &given), arguments(5, "{}")]);
    events.extend(end("tool_use"));
    let seen = seen_of(&events);
    let calls: Vec<_> = seen.calls.iter().map(|(id, name, arguments)| [&**id, &**name, &**arguments]).collect();
    assert_eq!(
        calls,
        [
            ["toolu_1", "f", "{\"a\": 1.50}"],
            ["toolu_3", "none", "{}"],
            ["g", "given", r#"{"b":[1,"x"]}"#],
            ["g", "given", "{}"]
        ]
    );
    assert_eq!((&*seen.text, seen.finish.as_deref()), ("So: ", Some("tool_calls")));
}

#[test]
fn blocks_that_come_at_the_same_time_are_kept_apart() {
    let mut events = vec![start(), tool(0, "f"), tool(1, "g"), arguments(0, "{\"a\""), arguments(1, "{\"b\"")];
    events.extend([arguments(0, ":1}"), arguments(1, ":2}"), stop(1), stop(0)]);
    events.extend(end("tool_use"));
    let calls = seen_of(&events).calls;
    assert_eq!((&*calls[0].2, &*calls[1].2), ("{\"b\":2}", "{\"a\":1}"));
}

#[test]
fn an_answer_in_a_schema_is_content() {
    let mut events = vec![start(), tool(0, SCHEMA_TOOL), arguments(0, "{\"a\":"), arguments(0, "1}"), stop(0)];
    events.extend(end("tool_use"));
    let seen = seen_of(&events);
    assert_eq!((&*seen.text, seen.calls.len(), seen.finish.as_deref()), ("{\"a\":1}", 0, Some("stop")));
}

#[test]
fn thinking_is_told_twice_and_kept_whole() {
    let mut events = vec![start(), block(0, &json!({"type":"thinking","thinking":"","signature":""}))];
    let think = |index, text: &str| delta(index, "thinking_delta", "thinking", text);
    let sign = |index, text: &str| delta(index, "signature_delta", "signature", text);
    events.extend([think(0, "a\n"), think(0, "b\"é"), sign(0, "si"), sign(0, "g/+=="), stop(0)]);
    events.extend([block(1, &json!({"type":"redacted_thinking","data":"xyz"})), stop(1)]);
    events.extend([block(2, &json!({"type":"thinking","thinking":""})), sign(2, "alone"), stop(2)]);
    events.extend([block(3, &json!({"type":"thinking","thinking":""})), think(3, "unsigned"), stop(3)]);
    events.extend(end("end_turn"));
    let seen = seen_of(&events);
    assert_eq!(seen.reasoning, "a\nb\"éunsigned");
    let blocks = json!([
        {"index":0,"type":"thinking","thinking":"a\nb\"é","signature":"sig/+=="},
        {"index":1,"type":"redacted_thinking","data":"xyz"},
        {"index":2,"type":"thinking","thinking":"","signature":"alone"}]);
    assert_eq!((&seen.python["thinking_blocks"], &seen.node["thinking_blocks"]), (&blocks, &blocks));
}

#[test]
fn thinking_too_long_to_keep_is_told_once() {
    let mut events = vec![start(), block(0, &json!({"type":"thinking","thinking":""}))];
    let piece = "x".repeat(THINKING_BYTES_MAX / 4);
    events.extend((0..5).map(|_| delta(0, "thinking_delta", "thinking", &piece)));
    events.extend([delta(0, "signature_delta", "signature", "s"), stop(0)]);
    events.extend(end("end_turn"));
    let mut answer = StreamTranslator::new(terms(false));
    let (out, outcome) = pass(&mut answer, [stream(&events).as_bytes()]);
    let seen = read_stream(&out, outcome, false);
    assert_eq!((seen.reasoning.len(), seen.python.get("thinking_blocks")), (piece.len() * 5, None));
}

#[test]
fn a_message_that_begins_anew_leaves_no_half_call() {
    let begun = [start(), tool(0, "f"), arguments(0, "{\"a\":\"ha")];
    let mut anew = vec![start(), tool(0, "f"), arguments(0, "{}"), stop(0)];
    anew.extend(end("tool_use"));
    let seen = seen_of(&[&begun[..], &anew].concat());
    assert_eq!(seen.calls, [("toolu_0".into(), "f".into(), "{}".into())]);
    // What was told cannot be taken back.
    let long = [start(), tool(0, "f"), arguments(0, &"x".repeat(300))];
    let seen = seen_of(&[&long[..], &anew].concat());
    assert_eq!((seen.outcome, seen.calls.len()), (Some(Outcome::Errored), 1));
}

#[test]
fn the_end_is_the_providers_word() {
    let [last, _] = end("end_turn");
    let finished = stream(&[start(), text("a"), last.clone()]);
    assert_eq!(seen(&finished).finish.as_deref(), Some("stop"));
    assert_eq!(seen(finished.trim_end()).finish.as_deref(), Some("stop"));
    for cut in [stream(&[start(), text("a")]), finished[..finished.len() - 3].to_owned(), String::new()] {
        assert_eq!(seen(&cut).outcome, Some(Outcome::Truncated), "{cut}");
    }
    // A stop without a word on why, and whatever comes behind the end.
    let stopped = stream(&[start(), json!({"type":"message_stop"}), text("b"), start(), last]);
    let seen = seen(&(stopped + "data: [DONE]\n\n"));
    assert_eq!((seen.finish.as_deref(), &*seen.text), (Some("stop"), ""));
}

#[test]
fn errors_are_told_once() {
    let error = json!({"type":"error","error":{"details":null,"type":"overloaded_error","message":"Overloaded"}});
    let cut = stream(&[start(), text("a"), error, text("b")]);
    let seen = seen(&cut);
    assert_eq!((seen.outcome, &*seen.text), (Some(Outcome::Errored), "a"));
    assert_eq!(seen.error.unwrap()["code"], "upstream_error");
    let mut answer = StreamTranslator::new(terms(false));
    pass(&mut answer, [cut.as_bytes()]);
    assert_eq!(answer.error().map(|error| &*error.message), Some("Overloaded"));
    assert_eq!((answer.usage().unwrap().input, answer.output_is_reported()), (5, false));
}

#[test]
fn noise_is_passed_over_and_loss_is_not() {
    let mut events = vec![start(), json!({"type":"vibes","index":"x"}), block(7, &json!({"type":"holograms"}))];
    events.extend([delta(7, "light_delta", "light", "x"), stop(7), stop(9), arguments(9, "{}")]);
    events.push(json!({"delta":{"text":"a","type":"text_delta"},"index":0,"type":"content_block_delta"}));
    let [last, stop] = end("end_turn");
    let noisy = format!(": ping\n\ndata: [DONE]\n\n{}data: hm\n\n{}", stream(&events), stream(&[last, stop]));
    assert_eq!(seen(&noisy).text, "a");
    let typeless = "event: content_block_delta\ndata: {\"index\":0,\"delta\":{\"text\":\"a\"}}\n\n";
    assert_eq!(seen(typeless).text, "a");
    let broken =
        format!("{}data: {{\"type\":\"content_block_delta\",\"delta\":{{\"text\":\"a}}}}\n\n", event(&start()));
    assert_eq!(seen(&broken).outcome, Some(Outcome::Errored));
    let mut answer = StreamTranslator::with_event_bytes_max(&terms(false), 300);
    let long = stream(&[start(), text(&"x".repeat(300))]);
    let (out, outcome) = pass(&mut answer, long.as_bytes().chunks(10));
    assert!(read_stream(&out, outcome, false).error.is_some());
}

#[test]
fn halves_of_characters_are_made_whole() {
    let half = "data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"a\\ud83d\"}}\n\n";
    assert_eq!(seen(half).text, "a\u{FFFD}");
    let mut answer = StreamTranslator::new(terms(false));
    let (out, outcome) =
        pass(&mut answer, [&b"data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\xFF\"}}\n\n"[..]]);
    assert_eq!(read_stream(&out, outcome, false).text, "a\u{FFFD}");
}

/// Events that may come, in any order and in many more than Anthropic's.
fn events() -> impl Strategy<Value = Vec<Value>> {
    let index = 0u64..3;
    let text = "[a\"\\\\é\n]{0,3}";
    let kind = prop::sample::select(vec!["text", "thinking", "redacted_thinking", "tool_use", "server_tool_use"]);
    let some_block = (index.clone(), kind, text, any::<bool>()).prop_map(|(index, kind, text, schema)| {
        let name = if schema { SCHEMA_TOOL } else { "f" };
        block(index, &json!({"type":kind,"text":text,"thinking":text,"signature":text,"data":text,"id":text,"name":name,"input":{"a":text}}))
    });
    let some_delta = prop::sample::select(vec![
        ("text_delta", "text"),
        ("thinking_delta", "thinking"),
        ("signature_delta", "signature"),
        ("input_json_delta", "partial_json"),
    ]);
    let some_delta = (index.clone(), some_delta, prop_oneof![9 => text.prop_map(String::from), 1 => "a{200}"])
        .prop_map(|(index, (kind, key), text)| delta(index, kind, key, &text));
    let reason = prop::sample::select(vec!["end_turn", "tool_use", "max_tokens", "refusal", "x"]);
    let other = prop_oneof![
        Just(start()),
        Just(json!({"type":"ping"})),
        Just(json!({"type":"error","error":{"type":"api_error","message":"m"}})),
        Just(json!({"type":"message_stop"})),
        reason.prop_map(|reason| end(reason)[0].clone()),
    ];
    let event = prop_oneof![4 => some_block, 8 => some_delta, 4 => index.prop_map(stop), 2 => other];
    prop::collection::vec(event, 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_events_are_a_stream_of_openais_at_any_split(events in events(), ends: bool, cut in 0usize..60, line_end in "\n|\r\n|\r") {
        let mut stream = events.iter().map(event).collect::<String>().replace('\n', &line_end);
        if ends {
            stream.push_str(&event(&json!({"type":"message_stop"})));
        }
        stream.truncate(stream.floor_char_boundary(stream.len().saturating_sub(cut.saturating_sub(30))));
        seen(&stream);
    }

    #[test]
    fn any_bytes_are_a_stream_of_openais(bytes: Vec<u8>, json in r#"(data: |event: error|\{"type":"|content_block_delta"|,"delta":\{"text":|"a"|\}|\n)*"#) {
        for stream in [&bytes[..], json.as_bytes(), &[json.as_bytes(), &bytes].concat()] {
            let (out, outcome) = pass(&mut StreamTranslator::new(terms(true)), stream.chunks(5));
            read_stream(&out, outcome, true);
        }
    }
}
