//! A smoke run of a fuzzer: bytes made of chance and of recordings that were damaged, through everything that reads what
//! others send: the parser of event streams, each translation of a request, of a stream, of a whole answer and of an error.
//!
//! Whatever comes in, nothing panics, what goes out is what OpenAI could have sent or a clean error, and memory stays within
//! the named limits. The number of rounds is fixed and so is the chance, so that a failure comes again; it names its seed.
//!
//! Deliberately absent: guidance by coverage. `cargo fuzz` would bring it, and needs a nightly compiler, which this
//! repository does not use.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use support::decoded::Decoded;
use support::{Chance, cases};
use tollgate::relay::dialect::anthropic;
use tollgate::relay::dialect::gemini::{self, SignatureMemory, SignatureScope};
use tollgate::relay::dialect::openai::{
    self, ChatRequest, JsonReader, LOOSE_EVENT_BYTES_MAX, LooseDocument, LooseStream, StreamReader,
};
use tollgate::relay::dialect::{Answer, AnswerTerms, Outcome, Outgoing, ProviderError, error_event, read_error};
use tollgate::relay::meter::SAMPLE_BYTES_MAX;
use tollgate::relay::refusal::{Cause, Refusal};
use tollgate::relay::route::{Dialect, ModelRules, Quirk, Quirks, Sampling, SchemaForm, Thinking};
use tollgate::relay::sse::{EVENT_BYTES_MAX, Piece, SseParser};

/// Rounds of each test. Enough for ten seconds or so without optimisation.
const STREAM_ROUNDS: u64 = 6000;
const WHOLE_ROUNDS: u64 = 5000;
const REQUEST_ROUNDS: u64 = 10_000;
const ERROR_ROUNDS: u64 = 9000;
const EVENT_ROUNDS: u64 = 6000;
/// Recordings up to this length are damaged; longer ones say nothing new.
const SEED_BYTES_MAX: usize = 6000;

/// What breaks readers: the ends of strings and numbers, what looks like framing, and what is no UTF-8.
const TOKENS: &[&[u8]] = &[
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"data: ",
    b"data:",
    b"event: error\n",
    b": ",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"0.1",
    b"\"\"",
    b"{}",
    b"[]",
    b"\\ud800",
    b"\\u0000",
    b"\xff",
    b"\xf0\x9f",
    b"\x00",
    b"\xef\xbb\xbf",
    b"[DONE]",
    b"{\"error\":{\"message\":\"m\"}}",
    b"\"index\":4294967295",
    b"\"type\":\"message_stop\"",
    b"\"finishReason\":\"STOP\"",
    b"\"finish_reason\":\"\"",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

/// A text with some damage: bytes changed, pieces left out, told twice, moved or taken from another text, tokens put in.
fn damaged(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut text = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(5) {
        let at = chance.below(text.len() + 1);
        let end = at + chance.below((text.len() - at).min(200) + 1);
        match chance.below(7) {
            0 if at < text.len() => text[at] = u8::try_from(chance.below(256)).unwrap(),
            1 => drop(text.drain(at..end)),
            2 => {
                let twice = text[at..end].to_vec();
                text.splice(at..at, twice);
            }
            3 => {
                let other = &seeds[chance.below(seeds.len())];
                let from = chance.below(other.len() + 1);
                let to = from + chance.below((other.len() - from).min(400) + 1);
                text.splice(at..end, other[from..to].iter().copied());
            }
            4 => text.truncate(at),
            _ => drop(text.splice(at..at, TOKENS[chance.below(TOKENS.len())].iter().copied())),
        }
    }
    if chance.below(20) == 0 {
        text = (0..chance.below(300)).map(|_| u8::try_from(chance.below(256)).unwrap()).collect();
    }
    text
}

/// A document with another value in one or a few of its places, or without some: what no damage to its bytes leaves readable.
fn altered(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    const VALUES: [&str; 14] = [
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e308",
        "\"\"",
        "\"x\"",
        "\"data:image/png;base64,iVBORw0KGgo=\"",
        "[]",
        "{}",
        "[[{}]]",
        "{\"type\":\"text\",\"text\":\"t\"}",
        "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}}}",
    ];
    let mut document: Value = serde_json::from_slice(&seeds[chance.below(seeds.len())]).unwrap();
    for _ in 0..=chance.below(3) {
        let mut place = &mut document;
        // Down from the top, stopping anywhere on the way.
        while chance.below(4) != 0 {
            let next = match &*place {
                Value::Array(entries) if !entries.is_empty() => Err(chance.below(entries.len())),
                Value::Object(members) if !members.is_empty() => {
                    Ok(members.keys().nth(chance.below(members.len())).unwrap().clone())
                }
                _ => break,
            };
            place = match next {
                Ok(name) => &mut place[name],
                Err(index) => &mut place[index],
            };
        }
        match place {
            Value::Array(entries) if chance.below(2) == 0 => {
                entries.extend(entries.clone());
                entries.truncate(chance.below(entries.len() + 1));
            }
            Value::Object(members) if chance.below(2) == 0 && !members.is_empty() => {
                let name = members.keys().nth(chance.below(members.len())).unwrap().clone();
                members.remove(&name);
            }
            other => *other = serde_json::from_str(VALUES[chance.below(VALUES.len())]).unwrap(),
        }
    }
    document.to_string().into_bytes()
}

/// Runs the rounds, each with a chance of its own; the first that fails is named.
fn rounds(what: &str, count: u64, mut round: impl FnMut(&mut Chance)) {
    for seed in 0..count {
        let ran = catch_unwind(AssertUnwindSafe(|| round(&mut Chance(seed))));
        assert!(ran.is_ok(), "{what}: the round of seed {seed} failed");
    }
}

/// Recorded bodies of a protocol, streamed or whole; a few of its own where there are no recordings.
fn bodies(protocol: &str, streams: bool) -> Vec<Vec<u8>> {
    let is_one = |case: &cases::Case| {
        case.expect["protocol"] == protocol && case.is_stream == streams && case.body.len() <= SEED_BYTES_MAX
    };
    let mut bodies: Vec<Vec<u8>> = cases::all().into_iter().filter(is_one).map(|case| case.body).collect();
    bodies.push(
        b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n".to_vec(),
    );
    bodies.push(b"{\"error\":{\"message\":\"no\",\"type\":\"t\",\"param\":null,\"code\":null}}".to_vec());
    bodies
}

fn terms(show_usage: bool) -> AnswerTerms {
    AnswerTerms { id: "chatcmpl-1".into(), created: 1, model: "m".into(), show_usage }
}

fn scope() -> SignatureScope {
    Arc::new(SignatureMemory::default()).scope("account")
}

fn pass(answer: &mut dyn Answer, chance: &mut Chance, body: &[u8]) -> (Vec<u8>, Outcome) {
    let longest = [1, 7, 100, 5000][chance.below(4)];
    let mut out = Vec::new();
    for piece in chance.pieces(body, longest) {
        out.extend_from_slice(&answer.pass(Bytes::copy_from_slice(piece)));
    }
    let end = answer.end();
    out.extend_from_slice(&end.append);
    assert!(answer.end().append.is_empty(), "the end was told twice");
    assert!(answer.sample().sample().len() <= SAMPLE_BYTES_MAX, "the sample is longer than it may be");
    (out, end.outcome)
}

/// Half of a surrogate pair, escaped, is JSON, and passes as it came; but this test's own reader does not take it.
fn readable(out: &[u8]) -> Vec<u8> {
    let mut out = out.to_vec();
    for at in 0..out.len().saturating_sub(2) {
        if out[at..].starts_with(b"\\ud") || out[at..].starts_with(b"\\uD") {
            out[at + 2] = b'0';
        }
    }
    out
}

/// A stream that its dialect's translation has written, with what the proxy adds where it broke off.
fn check_stream(mut out: Vec<u8>, outcome: Outcome, show_usage: bool) {
    if outcome == Outcome::Truncated {
        out.extend_from_slice(&error_event(&Refusal::new(Cause::UpstreamTruncated, "It broke off.")));
    }
    let decoded = Decoded::stream(&readable(&out), show_usage);
    assert_eq!((decoded.done, decoded.error.is_some()), (outcome == Outcome::Complete, outcome != Outcome::Complete));
}

fn fuzz_streams(protocol: &str, make: impl Fn(AnswerTerms) -> Box<dyn Answer>) {
    let seeds = bodies(protocol, true);
    rounds(protocol, STREAM_ROUNDS, |chance| {
        let (show_usage, body) = (chance.below(2) == 0, damaged(chance, &seeds));
        let (out, outcome) = pass(&mut *make(terms(show_usage)), chance, &body);
        check_stream(out, outcome, show_usage);
    });
}

#[test]
fn damaged_anthropic_streams() {
    fuzz_streams("anthropic", |terms| Box::new(anthropic::StreamTranslator::new(terms)));
}

#[test]
fn damaged_gemini_streams() {
    fuzz_streams("gemini", |terms| Box::new(gemini::StreamTranslator::new(&terms, 1, scope())));
}

#[test]
fn damaged_streams_of_loose_providers() {
    fuzz_streams("openai", |terms| Box::new(LooseStream::new(terms, 1)));
}

/// What is only looked at passes as it is.
#[test]
fn damaged_streams_that_pass_unchanged() {
    let seeds = bodies("openai", true);
    rounds("unchanged", STREAM_ROUNDS, |chance| {
        let body = damaged(chance, &seeds);
        let (out, _) = pass(&mut StreamReader::new(true, 1), chance, &body);
        // What is behind the end reaches nobody, nor half an event; and an error is told in the relay's words.
        let has = |word: &[u8]| body.windows(word.len()).any(|part| part == word);
        let same = out.iter().zip(&body).take_while(|(one, other)| one == other).count();
        let mut whole = 0;
        SseParser::default().push(&Bytes::from(body.clone()), |piece| whole += piece.place().bytes.len());
        let has_ended = has(b"[DONE]") && same == out.len();
        assert!(same >= whole || has_ended || has(b"error"), "not as it came");
        pass(&mut StreamReader::new(false, 1), chance, &body);
        let (out, _) = pass(&mut JsonReader::new(), chance, &body);
        assert!(out == body);
    });
}

fn fuzz_documents(protocol: &str, make: impl Fn(AnswerTerms) -> Box<dyn Answer>) {
    let seeds = bodies(protocol, false);
    rounds(protocol, WHOLE_ROUNDS, |chance| {
        let body = damaged(chance, &seeds);
        let (out, outcome) = pass(&mut *make(terms(false)), chance, &body);
        if outcome == Outcome::Truncated {
            let is_told = || Decoded::document(&readable(&out)).error.is_some();
            return assert!(out.is_empty() || is_told(), "something is made up of half an answer");
        }
        let decoded = Decoded::document(&readable(&out));
        assert_eq!(
            (decoded.done, decoded.error.is_some()),
            (outcome == Outcome::Complete, outcome == Outcome::Errored)
        );
    });
}

#[test]
fn damaged_whole_answers() {
    fuzz_documents("anthropic", |terms| Box::new(anthropic::WholeTranslator::new(terms)));
    fuzz_documents("gemini", |terms| Box::new(gemini::WholeTranslator::new(terms, 1, scope())));
    fuzz_documents("openai", |terms| Box::new(LooseDocument::new(terms)));
}

#[test]
fn damaged_errors() {
    let dialects = [("openai", Dialect::OpenAi), ("anthropic", Dialect::Anthropic), ("gemini", Dialect::Gemini)];
    for (protocol, dialect) in dialects {
        let seeds = bodies(protocol, false);
        rounds(protocol, ERROR_ROUNDS / 3, |chance| {
            let status = [400, 401, 404, 413, 422, 429, 500, 503, 529, 302][chance.below(10)];
            match read_error(dialect, status, &damaged(chance, &seeds), None) {
                ProviderError::Request { cause, body } => {
                    assert_eq!((cause.status(), Decoded::document(&body).error.is_some()), (400, true));
                    assert!(body.len() < 64 * 1024);
                }
                ProviderError::Provider(refusal) => {
                    assert!(refusal.cause.status() >= 500 && refusal.message.len() < 300, "{refusal:?}");
                }
            }
        });
    }
}

/// However a stream is cut, its events are the same, and none is longer than the limit.
#[test]
fn events_of_damaged_streams() {
    let seeds: Vec<Vec<u8>> = ["openai", "anthropic", "gemini"].iter().flat_map(|name| bodies(name, true)).collect();
    let events = |pieces: Vec<&[u8]>| {
        let (mut parser, mut events) = (SseParser::new(512), Vec::new());
        let mut see = |piece: Piece<'_>| {
            if let Piece::Event { event, .. } = piece {
                assert!(event.data.len() <= 512, "longer than the limit");
                events.push(event.data.to_vec());
            }
        };
        pieces.iter().for_each(|piece| parser.push(&Bytes::copy_from_slice(piece), &mut see));
        parser.finish(&mut see);
        events
    };
    rounds("events", EVENT_ROUNDS, |chance| {
        let body = damaged(chance, &seeds);
        let whole = events(vec![&body]);
        let longest = [1, 3, 50][chance.below(3)];
        assert_eq!(whole, events(chance.pieces(&body, longest)));
    });
}

/// Requests with something of everything.
const REQUESTS: &[&str] = &[
    r#"{"model":"m","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}],"temperature":0.7,"top_p":0.9,"max_tokens":100,"stop":["a","b"],"stream":true,"stream_options":{"include_usage":true},"seed":12345678901234567890123,"user":"u","unknown":{"a":[1,2]}}"#,
    r#"{"model":"m","messages":[{"role":"developer","content":[{"type":"text","text":"d"}]},{"role":"user","name":"n","content":[{"type":"text","text":"See","cache_control":{"type":"ephemeral"}},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==","detail":"low"}},{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}]}],"n":1,"logprobs":true,"top_logprobs":3,"logit_bias":{"5":-100},"presence_penalty":-2,"frequency_penalty":2,"metadata":{"k":"v"},"store":false}"#,
    r##"{"model":"m","messages":[{"role":"user","content":"w"},{"role":"assistant","content":null,"reasoning_content":"r","thinking_blocks":[{"type":"thinking","thinking":"t","signature":"c2ln","index":0},{"type":"redacted_thinking","data":"ZA=="}],"tool_calls":[{"id":"call:1","type":"function","function":{"name":"f","arguments":"{\"x\":1.50,\"y\":\"\\u00e9\"}"},"extra_content":{"google":{"thought_signature":"c2ln"}}},{"id":"call:2","type":"function","function":{"name":"g","arguments":""}}]},{"role":"tool","tool_call_id":"call:1","content":"1"},{"role":"tool","tool_call_id":"call:2","content":[{"type":"text","text":"{\"a\":1}"}]}],"tools":[{"type":"function","function":{"name":"f","description":"d","strict":true,"parameters":{"type":"object","$defs":{"a":{"type":["string","null"],"enum":["x",null]}},"properties":{"x":{"$ref":"#/$defs/a"},"y":{"anyOf":[{"type":"integer","exclusiveMinimum":0},{"const":5}]}},"required":["x"],"additionalProperties":false}}},{"type":"function","function":{"name":"g"}}],"tool_choice":{"type":"function","function":{"name":"f"}},"parallel_tool_calls":false,"reasoning_effort":"high"}"##,
    r#"{"model":"m","messages":[{"role":"user","content":"json"}],"response_format":{"type":"json_schema","json_schema":{"name":"s","strict":true,"schema":{"type":"object","properties":{"a":{"type":"array","items":{"type":"number"},"minItems":1}},"required":["a"],"additionalProperties":false}}},"max_completion_tokens":18446744073709551615,"modalities":["text"],"prediction":{"type":"content","content":"x"},"service_tier":"auto"}"#,
    r#"{"model":"m","messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}},{"type":"file","file":{"filename":"a.pdf","file_data":"data:application/pdf;base64,JVBERi0="}}]},{"role":"assistant","content":"pre"}],"response_format":{"type":"json_object"},"stop":"x","tool_choice":"auto","tools":[]}"#,
];

fn rules(chance: &mut Chance) -> ModelRules {
    let thinking = [
        Thinking::None,
        Thinking::Switch,
        Thinking::Level,
        Thinking::Adaptive { xhigh: chance.below(2) == 0 },
        Thinking::Budget { min: 1024, max: 32_768 },
    ];
    ModelRules {
        thinking: thinking[chance.below(thinking.len())],
        sampling: [Sampling::Free, Sampling::OneOf, Sampling::None][chance.below(3)],
        schema: [SchemaForm::Native, SchemaForm::ForcedTool, SchemaForm::None][chance.below(3)],
        prefill: chance.below(2) == 0,
        schema_with_tools: chance.below(2) == 0,
        show_thinking: chance.below(2) == 0,
        system_turns: chance.below(2) == 0,
    }
}

/// A request that a provider could read, or a refusal that a client can.
fn check_outgoing(sent: Result<Outgoing, Refusal>, asked: usize) {
    match sent {
        Ok(Outgoing { path, body, dropped }) => {
            // As text: a lone surrogate that the client has escaped is JSON, and passes as it came.
            let json: &RawValue = serde_json::from_slice(&body)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&body)));
            assert!(json.get().starts_with('{') && path.starts_with('/'), "{path}");
            assert!(body.len() <= asked * 16 + 64 * 1024, "{} bytes of {asked}", body.len());
            assert!(dropped.iter().all(|name| !name.is_empty()) || asked > 0);
        }
        Err(refusal) => check_refusal(&refusal),
    }
}

fn check_refusal(refusal: &Refusal) {
    assert_eq!(refusal.cause.status(), 400, "{refusal:?}");
    assert!(Decoded::document(&refusal.to_json()).error.is_some());
    assert!(refusal.message.len() < 4096, "{refusal:?}");
}

#[test]
fn damaged_requests() {
    let seeds: Vec<Vec<u8>> = REQUESTS.iter().map(|text| text.as_bytes().to_vec()).collect();
    let (mut read, scope) = (0, scope());
    rounds("requests", REQUEST_ROUNDS, |chance| {
        let body = if chance.below(3) == 0 { damaged(chance, &seeds) } else { altered(chance, &seeds) };
        let asked = body.len();
        let mut request = match ChatRequest::parse(body.into()) {
            Ok(request) => request,
            Err(refusal) => return check_refusal(&refusal),
        };
        read += 1;
        if chance.below(2) == 0 {
            request.limit_output([1, 200, 5000, u64::MAX][chance.below(4)]);
        }
        let rules = rules(chance);
        let most = [1, 4096, u64::MAX][chance.below(3)];
        let quirks: Quirks = Quirk::ALL.iter().copied().filter(|_| chance.below(3) == 0).collect();
        check_outgoing(anthropic::request(&request, "m", &rules, most), asked);
        check_outgoing(gemini::request(&request, "m", &rules, most, &scope), asked);
        check_outgoing(openai::outgoing(&request, "m", quirks, &rules, most), asked);
        check_outgoing(openai::outgoing(&request, "m", Quirks::default(), &rules, most), asked);
    });
    assert!(read > REQUEST_ROUNDS / 10, "of {REQUEST_ROUNDS} requests only {read} could be read at all");
}

/// The most memory that this process has had, in bytes, since it was last asked to forget.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Feeds an answer that begins like this and goes on for six times what may be held; nothing of that much is kept.
fn endless(what: &str, limit: usize, begin: &str, answer: &mut dyn Answer) {
    // Forgets the peak so far.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_bytes();
    let piece = Bytes::from(vec![b'a'; 64 * 1024]);
    answer.pass(Bytes::copy_from_slice(begin.as_bytes()));
    for _ in 0..(6 * limit / piece.len()).max(64) {
        answer.pass(piece.clone());
    }
    let end = answer.end();
    // A buffer that doubles as it grows holds two halves at the moment that it moves.
    let (grown, most) = (peak_bytes().saturating_sub(before), 3 * limit + 8 * 1024 * 1024);
    assert!(grown <= most, "{what} grew by {grown} bytes, and may hold {limit}");
    assert_ne!(end.outcome, Outcome::Complete, "{what}");
}

#[test]
fn an_event_without_an_end_is_held_within_the_limits() {
    let open = "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"";
    endless("anthropic's stream", EVENT_BYTES_MAX, open, &mut anthropic::StreamTranslator::new(terms(true)));
    let open = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"";
    let mut stream = gemini::StreamTranslator::new(&terms(true), 1, scope());
    endless("gemini's stream", gemini::EVENT_BYTES_MAX, open, &mut stream);
    let open = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"";
    endless("a loose stream", LOOSE_EVENT_BYTES_MAX, open, &mut LooseStream::new(terms(true), 1));
    endless("a stream with its usage cut out", EVENT_BYTES_MAX, open, &mut StreamReader::new(false, 1));
    endless("a stream that passes", EVENT_BYTES_MAX, open, &mut StreamReader::new(true, 1));
}

#[test]
fn a_document_without_an_end_is_held_within_the_limits() {
    let open = "{\"content\":[{\"type\":\"text\",\"text\":\"";
    let mut whole = anthropic::WholeTranslator::new(terms(false));
    endless("anthropic's document", anthropic::WHOLE_BYTES_MAX, open, &mut whole);
    let mut whole = gemini::WholeTranslator::new(terms(false), 1, scope());
    endless("gemini's document", gemini::WHOLE_BYTES_MAX, open, &mut whole);
    let mut whole = LooseDocument::new(terms(false));
    endless("a loose document", openai::LOOSE_DOCUMENT_BYTES_MAX, open, &mut whole);
}
