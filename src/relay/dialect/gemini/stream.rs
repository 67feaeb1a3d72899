//! The streamed answer: Gemini's events in, OpenAI's chunks out, each as soon as it is there.

use bytes::Bytes;

use super::chunks::Chunks;
use super::error::map_answer_error;
use super::progress::{Conclusion, Progress, failed};
use super::response::{self, Few, Response};
use super::signatures::SignatureScope;
use crate::relay::dialect::{Answer, AnswerError, AnswerTerms, End, Outcome, ProviderError, error_event};
use crate::relay::json::{Fault, What};
use crate::relay::meter::{SampledText, Usage};
use crate::relay::refusal::Refusal;
use crate::relay::sse::{Event, Piece, SseParser};

/// The longest event that is read. An image comes as one event of some two million bytes.
pub const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most bytes of an error without an event's form that are gathered.
const LOOSE_BYTES_MAX: usize = 64 * 1024;

/// A streamed answer on its way through.
///
/// Gemini ends its events with CRLF, reports usage on each, may finish an answer more than once, and has no `[DONE]`: an
/// answer's finish, its usage and `[DONE]` are told when the body has ended. An error in the middle comes as an event, or
/// as bare JSON between events; either way the client gets it as one, and nothing behind it.
#[derive(Debug)]
pub struct StreamTranslator {
    parser: SseParser,
    state: State,
}

#[derive(Debug)]
struct State {
    progress: Progress,
    chunks: Chunks,
    /// Bare JSON that is not complete.
    loose: Vec<u8>,
    error: Option<AnswerError>,
    /// How the answer has ended, once it has.
    outcome: Option<Outcome>,
}

impl StreamTranslator {
    /// At the beginning of an answer to a request for so many choices. The signatures of its calls are remembered.
    pub fn new(terms: &AnswerTerms, choices: u64, signatures: SignatureScope) -> Self {
        Self::with_event_bytes_max(terms, choices, signatures, EVENT_BYTES_MAX)
    }

    fn with_event_bytes_max(
        terms: &AnswerTerms,
        choices: u64,
        signatures: SignatureScope,
        event_bytes_max: usize,
    ) -> Self {
        let state = State {
            progress: Progress::new(terms, choices, signatures),
            chunks: Chunks::new(terms),
            loose: Vec::new(),
            error: None,
            outcome: None,
        };
        Self { parser: SseParser::new(event_bytes_max), state }
    }
}

impl Answer for StreamTranslator {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let state = &mut self.state;
        if state.outcome.is_some() {
            return Bytes::new();
        }
        state.chunks.reserve(chunk.len());
        self.parser.push(&chunk, |piece| state.piece(&piece));
        state.chunks.take()
    }

    fn end(&mut self) -> End {
        let state = &mut self.state;
        if state.outcome.is_none() {
            self.parser.finish(|piece| state.rest(&piece));
        }
        let outcome = match state.outcome {
            Some(outcome) => outcome,
            None => state.conclude(),
        };
        state.outcome = Some(outcome);
        End { outcome, append: state.chunks.take() }
    }

    fn is_whole(&self) -> bool {
        self.state.outcome == Some(Outcome::Complete)
    }

    fn usage(&self) -> Option<Usage> {
        self.state.progress.report.usage()
    }

    /// Early reports have the prompt alone: of an answer that breaks off behind them, its own tokens are still to be counted.
    fn output_is_reported(&self) -> bool {
        self.state.outcome == Some(Outcome::Complete) || self.state.progress.report.has_output()
    }

    fn sample(&self) -> &SampledText {
        &self.state.progress.sample
    }

    fn take_sample(&mut self) -> SampledText {
        std::mem::take(&mut self.state.progress.sample)
    }

    fn began(&self) -> bool {
        self.state.progress.began
    }

    fn error(&self) -> Option<&AnswerError> {
        self.state.error.as_ref()
    }
}

impl State {
    fn piece(&mut self, piece: &Piece<'_>) {
        match piece {
            _ if self.outcome.is_some() => {}
            Piece::Event { event, place } => {
                if self.event(event, place.bytes).is_err() {
                    self.fail(&failed("The provider's answer has an event that cannot be read."));
                }
            }
            Piece::Silent(place) => self.bare(place.bytes),
            Piece::Overflow(_) => self.fail(&failed("The provider's answer has an event that is too long to be read.")),
            Piece::LineFeed(_) => {}
        }
    }

    /// What the stream broke off in, if it did: it counts only if it is complete.
    fn rest(&mut self, piece: &Piece<'_>) {
        match piece {
            Piece::Event { event, place } => drop(self.event(event, place.bytes)),
            Piece::Silent(place) => self.bare(place.bytes),
            _ => {}
        }
    }

    /// An event's data.
    fn data(&mut self, data: &[u8]) -> Result<(), Fault> {
        if data.trim_ascii() == b"[DONE]" {
            return Ok(());
        }
        // What is passed on as it came must be what JSON is: UTF-8.
        match str::from_utf8(data) {
            Ok(_) => self.tell(&response::read(data)?),
            Err(_) => self.tell(&response::read(String::from_utf8_lossy(data).as_bytes())?),
        }
        Ok(())
    }

    fn tell(&mut self, responses: &Few<Response<'_>>) {
        for response in responses.iter() {
            if self.outcome.is_some() {
                return;
            }
            match response.error {
                Some(error) => self.error(error),
                None => {
                    if let Err(refusal) = self.progress.tell(response, &mut self.chunks) {
                        self.fail(&refusal);
                    }
                }
            }
        }
    }

    /// An error in the answer's place. Behind an answer that is complete it takes nothing back.
    fn error(&mut self, body: &[u8]) {
        if self.progress.is_finished() {
            return;
        }
        let (told, seen) = map_answer_error(body);
        match told {
            ProviderError::Provider(refusal) => self.chunks.event(&error_event(&refusal)),
            ProviderError::Request { body, .. } => self.chunks.event(&[b"data: ", &body[..], b"\n\n"].concat()),
        }
        self.error = Some(seen);
        self.outcome = Some(Outcome::Errored);
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.chunks.event(&error_event(refusal));
        self.error = Some(AnswerError { message: (*refusal.message).into(), ..AnswerError::default() });
        self.outcome = Some(Outcome::Errored);
    }

    /// An event, and what lines there are in its block that are no fields. Nearly always there are none.
    fn event(&mut self, event: &Event<'_>, block: &[u8]) -> Result<(), Fault> {
        // Bare JSON that was not complete before an event came to nothing.
        self.loose.clear();
        let is_all = event.data_at.is_some_and(|data_at| {
            let rest = &block[data_at + event.data.len()..];
            block.starts_with(b"data:") && rest.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
        });
        if is_all {
            return self.data(&event.data);
        }
        let fields = [&b"data"[..], b"event", b"id", b"retry", b":"];
        let is_field = |line: &[u8]| fields.iter().any(|name| line.starts_with(name));
        let mut lines = block.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.is_empty());
        let data_first = lines.clone().next().is_some_and(is_field);
        let bare = lines.by_ref().filter(|line| !is_field(line)).collect::<Vec<_>>().join(&b'\n');
        if !data_first {
            self.bare(&bare);
        }
        if self.outcome.is_none() {
            self.data(&event.data)?;
        }
        if data_first && self.outcome.is_none() {
            self.bare(&bare);
        }
        self.loose.clear();
        Ok(())
    }

    /// Lines that are no event: comments and the like, or bare JSON, which may go on behind a blank line.
    fn bare(&mut self, lines: &[u8]) {
        let text = if self.loose.is_empty() {
            let Some(begin) = bare_json(lines) else { return };
            &lines[begin..]
        } else {
            lines
        };
        if self.loose.len() + text.len() > LOOSE_BYTES_MAX {
            return self.fail(&failed("The provider's answer has something in it that is no event."));
        }
        self.loose.extend_from_slice(text);
        let loose = std::mem::take(&mut self.loose);
        match self.data(loose.trim_ascii()) {
            Ok(()) => {}
            Err(Fault { what: What::Ended, .. }) => self.loose = loose,
            Err(_) => self.fail(&failed("The provider's answer has something in it that is no event.")),
        }
    }

    /// The body has ended.
    fn conclude(&mut self) -> Outcome {
        match self.progress.conclude(false, &mut self.chunks) {
            Conclusion::Complete => {
                self.chunks.end(self.progress.report.usage());
                Outcome::Complete
            }
            Conclusion::Truncated => Outcome::Truncated,
            Conclusion::Failed(refusal) => {
                self.fail(&refusal);
                Outcome::Errored
            }
        }
    }
}

/// Where a line begins that begins JSON.
fn bare_json(lines: &[u8]) -> Option<usize> {
    let begins = |at: usize| at == 0 || matches!(lines[at - 1], b'\r' | b'\n');
    memchr::memchr2_iter(b'{', b'[', lines).find(|&at| begins(at))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::relay::dialect::gemini::SignatureMemory;
    use crate::relay::dialect::gemini::testing::{Heard, terms, told_by_stream};

    fn scope() -> SignatureScope {
        Arc::new(SignatureMemory::default()).scope("acct")
    }

    fn translator() -> StreamTranslator {
        StreamTranslator::new(&terms(true), 1, scope())
    }

    fn pass<'a>(
        mut translator: StreamTranslator,
        chunks: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<u8>, Outcome, StreamTranslator) {
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&translator.pass(Bytes::copy_from_slice(chunk)));
        }
        let end = translator.end();
        out.extend_from_slice(&end.append);
        assert_eq!(translator.end(), End { outcome: end.outcome, append: Bytes::new() });
        (out, end.outcome, translator)
    }

    /// What a client hears of a stream, however it is cut.
    fn hear(stream: &str) -> (Heard, Outcome) {
        let (whole, outcome, _) = pass(translator(), [stream.as_bytes()]);
        for chunk_bytes in [1, 7, 50] {
            let (out, ..) = pass(translator(), stream.as_bytes().chunks(chunk_bytes));
            assert!(out == whole, "cut by {chunk_bytes}: {}", String::from_utf8_lossy(&out));
        }
        (told_by_stream(&whole, true), outcome)
    }

    fn event(response: &Value) -> String {
        format!("data: {response}\r\n\r\n")
    }

    fn parts(parts: Value) -> String {
        event(&json!({"candidates": [{"content": {"parts": parts, "role": "model"}, "index": 0}]}))
    }

    fn stop() -> String {
        event(&json!({"candidates": [{"content": {"parts": [{"text": ""}]}, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2}}))
    }

    const ERROR: &str = "{\n  \"error\": {\n    \"code\": 503,\n    \"message\": \"key AIzaSecret is tired\",\n    \"status\": \"UNAVAILABLE\"\n  }\n}\n";

    #[test]
    fn an_error_reaches_the_client_once_whatever_its_frame() {
        let hello = parts(json!([{"text": "Hello"}]));
        let compact: Value = serde_json::from_str(ERROR).unwrap();
        for stream in [
            format!("{hello}data: {compact}\r\n\r\n{}", stop()),
            format!("{hello}data: [{compact}]\r\n\r\n"),
            format!("{hello}{ERROR}"),
            format!("{hello}{ERROR}\r\n\r\n{}", stop()),
            format!("{hello}{}", ERROR.replace('\n', "\r\n")),
            format!("{hello}[{compact}]"),
            // A blank line within.
            format!("{hello}{}", ERROR.replace("  }\n}", "  }\n\n}")),
            // No blank line between.
            format!("{hello}{compact}\r\n{}", stop()),
            format!("{}\r\n{compact}\r\n\r\n", hello.trim_end()),
        ] {
            let (heard, outcome) = hear(&stream);
            assert_eq!(outcome, Outcome::Errored, "{stream}");
            assert_eq!(heard.choices[0].text, "Hello");
            let error = heard.error.unwrap_or_else(|| panic!("no error: {stream}"));
            assert_eq!(
                (error["type"].as_str(), error["code"].as_str()),
                (Some("upstream_error"), Some("upstream_error"))
            );
            assert!(!heard.done && !error.to_string().contains("AIza"));
        }
        let (.., translator) = pass(translator(), [ERROR.as_bytes()]);
        let seen = translator.error().unwrap();
        assert_eq!((seen.code.as_deref(), seen.kind.as_deref()), (Some("503"), Some("UNAVAILABLE")));
        assert!(!translator.began());
    }

    #[test]
    fn an_errors_kind_is_told() {
        let limited = json!({"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED"}});
        assert_eq!(hear(&event(&limited)).0.error.unwrap()["code"], "upstream_rate_limited");
        let fault = json!({"error": {"code": 400, "message": "Bad image", "status": "INVALID_ARGUMENT"}});
        let error = hear(&event(&fault)).0.error.unwrap();
        assert_eq!(
            (error["message"].as_str(), error["type"].as_str()),
            (Some("Bad image"), Some("invalid_request_error"))
        );
    }

    #[test]
    fn an_error_behind_the_end_takes_nothing_back() {
        let (heard, outcome) = hear(&format!("{}{}{ERROR}", parts(json!([{"text": "a"}])), stop()));
        assert_eq!((outcome, heard.done, heard.error), (Outcome::Complete, true, None));
    }

    #[test]
    fn what_breaks_off_or_cannot_be_read_is_no_success() {
        let hello = parts(json!([{"text": "Hello"}]));
        for (stream, outcome) in [
            (hello.clone(), Outcome::Truncated),
            (String::new(), Outcome::Truncated),
            (": keep-alive\n\n".to_owned(), Outcome::Truncated),
            (format!("{hello}data: {{\"candidates\": [{{\"fin"), Outcome::Truncated),
            (format!("{hello}{}", &ERROR[..40]), Outcome::Truncated),
            (event(&json!({"usageMetadata": {"promptTokenCount": 1}})), Outcome::Truncated),
            (format!("{hello}data: {{broken}}\r\n\r\n{}", stop()), Outcome::Errored),
            (format!("{hello}{{broken}}\r\n\r\n{}", stop()), Outcome::Errored),
            (
                format!("{hello}{}", event(&json!({"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]}))),
                Outcome::Errored,
            ),
        ] {
            let (heard, seen) = hear(&stream);
            assert_eq!((seen, heard.done), (outcome, false), "{stream}");
            assert_eq!(heard.error.is_some(), outcome == Outcome::Errored, "{stream}");
        }
        // The last event lacks only its blank line.
        assert_eq!(hear(stop().trim_end()).1, Outcome::Complete);
    }

    #[test]
    fn an_event_too_long_is_an_error() {
        let long = parts(json!([{"text": "x".repeat(200)}]));
        let translator = StreamTranslator::with_event_bytes_max(&terms(false), 1, scope(), 100);
        let (out, outcome, _) = pass(translator, long.as_bytes().chunks(30));
        assert_eq!(outcome, Outcome::Errored);
        assert!(told_by_stream(&out, false).error.is_some());
    }

    #[test]
    fn calls_are_numbered_through_all_chunks_and_found_again() {
        let memory = Arc::new(SignatureMemory::default());
        let translator = StreamTranslator::new(&terms(false), 1, memory.scope("acct"));
        let stream = [
            parts(json!([{"text": "Thinking", "thought": true}, {"text": "Calling"}])),
            parts(json!([{"functionCall": {"name": "f", "args": {"a": [1.50, "\u{e9}\"\n"]}}, "thoughtSignature": "AB+/=="},
                         {"functionCall": {"name": "f", "args": {"a": 2}}}])),
            parts(json!([{"functionCall": {"name": "g", "id": "own/1"}, "thoughtSignature": "CD"}])),
            parts(json!([{"text": "", "thoughtSignature": "EF"}])),
            stop(),
        ]
        .concat();
        let (out, outcome, _) = pass(translator, [stream.as_bytes()]);
        assert_eq!(outcome, Outcome::Complete);
        let heard = told_by_stream(&out, false);
        let ids: Vec<_> = heard.choices[0].calls.iter().map(|(id, ..)| id.clone().unwrap()).collect();
        let minted = |n: usize| format!("call_tg_f21b7a7c3d8e4f0123456789ab_{n}");
        assert_eq!(ids, [minted(0), minted(1), "own/1".into()]);
        assert_eq!(heard.choices[0].calls[0].2, json!({"a": [1.5, "\u{e9}\"\n"]}));
        assert_eq!(heard.choices[0].calls[2].2, json!({}));
        assert_eq!(heard.choices[0].finish.as_deref(), Some("tool_calls"));
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.matches(r#""extra_content":{"google":{"thought_signature":"AB+/=="}}"#).count(), 1);
        // The words' signature comes by itself, before the finish.
        assert!(out.contains(r#""delta":{"extra_content":{"google":{"thought_signature":"EF"}}}"#));
        let recalled = |id: &str| memory.scope("acct").recall(id.as_bytes()).map(|signature| signature.to_vec());
        assert_eq!(recalled(&minted(0)), Some(b"AB+/==".to_vec()));
        assert_eq!((recalled(&minted(1)), recalled("own/1")), (None, Some(b"CD".to_vec())));
        assert_eq!(memory.scope("other").recall(minted(0).as_bytes()), None);
    }

    #[test]
    fn choices_are_kept_apart() {
        let piece = |index: u32, text: &str, finish: Option<&str>| {
            event(
                &json!({"candidates": [{"content": {"parts": [{"text": text}]}, "index": index, "finishReason": finish}]}),
            )
        };
        let stream = [piece(1, "b", None), piece(0, "a", Some("MAX_TOKENS")), piece(1, "c", Some("STOP"))].concat();
        let (heard, outcome) = hear(&stream);
        let told: Vec<_> =
            heard.choices.iter().map(|told| (told.text.as_str(), told.finish.as_deref().unwrap())).collect();
        assert_eq!((told, outcome), (vec![("bc", "stop"), ("a", "length")], Outcome::Complete));
        assert_eq!(hear(&[piece(1, "b", None), piece(0, "a", Some("STOP"))].concat()).1, Outcome::Truncated);
    }

    #[test]
    fn a_blocked_prompt_is_an_answer() {
        let stream =
            event(&json!({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}}));
        let (heard, outcome) = hear(&stream);
        assert_eq!((outcome, heard.done), (Outcome::Complete, true));
        assert_eq!((heard.choices[0].text.as_str(), heard.choices[0].finish.as_deref()), ("", Some("content_filter")));
        assert_eq!(heard.usage["prompt_tokens"], 9);
    }

    #[test]
    fn an_image_is_an_address() {
        let image = parts(json!([{"inlineData": {"mimeType": "image/png", "data": "iVBO"}}]));
        let (out, outcome, translator) = pass(translator(), [image.as_bytes(), stop().as_bytes()]);
        assert!(outcome == Outcome::Complete && translator.began());
        let expected =
            r#""delta":{"images":[{"type":"image_url","index":0,"image_url":{"url":"data:image/png;base64,iVBO"}}]}"#;
        assert!(String::from_utf8(out).unwrap().contains(expected));
    }

    #[test]
    fn what_some_readers_of_json_cannot_read_is_replaced() {
        let stream = concat!(
            r#"data: {"candidates":[{"content":{"parts":[{"text":"a\ud83d\\ud83d \ud83d\ude00"}]},"finishReason":"STOP"}]}"#,
            "\n\n"
        );
        assert_eq!(hear(stream).0.choices[0].text, "a\u{FFFD}\\ud83d \u{1F600}");
        let mut bytes = parts(json!([{"text": "abc"}])).into_bytes();
        let at = bytes.windows(3).position(|window| window == b"abc").unwrap();
        bytes[at] = 0xFF;
        let (out, ..) = pass(translator(), [&bytes[..], stop().as_bytes()]);
        assert_eq!(told_by_stream(&out, true).choices[0].text, "\u{FFFD}bc");
    }

    fn responses() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            r#"{"text":"a\n"}"#,
            r#"{"text":"\ud800"}"#,
            r#"{"text":"t","thought":true}"#,
            r#"{"text":"","thoughtSignature":"S="}"#,
            r#"{"functionCall":{"name":"f","args":{"a": 1}},"thoughtSignature":"S"}"#,
            r#"{"functionCall":{"name":"g","willContinue":true}}"#,
            r#"{"functionCall":{"partialArgs":[{"jsonPath":"$.a","stringValue":"x"}],"willContinue":true}}"#,
            r#"{"functionCall":{}}"#,
            r#"{"inlineData":{"mimeType":"image/png","data":"AA"}}"#,
            r#"{"text":1,"functionCall":null}"#,
            "1",
            "{}",
        ]);
        let finish = prop::sample::select(vec![
            "",
            r#","finishReason":"STOP""#,
            r#","finishReason":"OTHER""#,
            r#","finishReason":1"#,
        ]);
        let frame = prop::sample::select(vec![
            ("data: ", "\r\n\r\n"),
            ("data:", "\n\n"),
            ("", "\n\n"),
            ("data: ", "\n"),
            ("data: [", "]\n\n"),
        ]);
        (prop::collection::vec(part, 0..4), 0u32..3, finish, frame).prop_map(|(parts, index, finish, (before, after))| {
            let parts = parts.join(",");
            format!("{before}{{\"candidates\":[{{\"content\":{{\"parts\":[{parts}]}},\"index\":{index}{finish}}}]}}{after}")
        })
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_stream_or_an_error(bytes: Vec<u8>, chunk_bytes in 1usize..9) {
            let (out, outcome, _) = pass(translator(), bytes.chunks(chunk_bytes));
            let heard = told_by_stream(&out, true);
            prop_assert_eq!(heard.done, outcome == Outcome::Complete);
        }

        #[test]
        fn anything_like_a_stream_gives_the_same_however_it_is_cut(
            events in prop::collection::vec(responses(), 0..8),
            noise in r#"(: c\n\n|\{"error":\{\}\}\n|event: x\n|\{\n|data: \[DONE\]\n\n)?"#,
            at in 0usize..400,
            chunk_bytes in 1usize..50,
        ) {
            let mut stream = events.concat();
            let at = (0..=at.min(stream.len())).rev().find(|at| stream.is_char_boundary(*at)).unwrap();
            stream.insert_str(at, &noise);
            let (whole, outcome, _) = pass(translator(), [stream.as_bytes()]);
            let heard = told_by_stream(&whole, true);
            prop_assert_eq!(heard.done, outcome == Outcome::Complete, "{}", stream);
            prop_assert_eq!(heard.error.is_some(), outcome == Outcome::Errored, "{}", stream);
            let (cut, again, _) = pass(translator(), stream.as_bytes().chunks(chunk_bytes));
            prop_assert_eq!(String::from_utf8(cut).unwrap(), String::from_utf8(whole).unwrap());
            prop_assert_eq!(again, outcome);
        }
    }
}
