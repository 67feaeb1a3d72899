//! The streamed answer: forwarded as it comes, and looked at.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::chunk::Progress;
use super::fault::Trouble;
use super::outlet::Outlet;
use crate::relay::dialect::{Answer, AnswerError, End, Outcome};
use crate::relay::meter::{SampledText, Usage};
use crate::relay::sse::{EVENT_BYTES_MAX, Event, Piece, SseParser};

const DONE: &[u8] = b"data: [DONE]\n\n";

/// A streamed answer on its way through.
///
/// What comes is forwarded, event by event and the very same bytes: one that has not wholly arrived is held back, for it may
/// be an error, which the client is told in the relay's words. One too long to be held is let through as it is. Where the
/// client did not ask for usage, the relay still asked the provider: then the `usage` members are cut out of the chunks and
/// the chunk that has nothing else is dropped. Behind `[DONE]` or an error nothing more is forwarded.
#[derive(Debug)]
pub struct StreamReader {
    parser: SseParser,
    gate: Gate,
    /// Room for what is not forwarded as it came.
    room: BytesMut,
}

/// What the pieces of the stream have shown, and so which of them pass.
#[derive(Debug, Default)]
struct Gate {
    progress: Progress,
    hide_usage: bool,
    /// `[DONE]` has passed.
    done: bool,
    /// `[DONE]` or an error has passed.
    closed: bool,
    /// Whether the last piece was forwarded; the line feed that belongs to it shares its fate.
    forwards: bool,
    /// What to cut out of the event at hand, in its data.
    cuts: Vec<Range<usize>>,
    /// What the client gets in place of the event at hand.
    substitute: Vec<u8>,
}

/// What becomes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Forward,
    Drop,
    /// Forward it without [`Gate::cuts`].
    Cut,
    /// Forward [`Gate::substitute`].
    Replace,
}

impl StreamReader {
    /// At the beginning of an answer to a client that asked for so many choices and, or not, to be shown the usage.
    pub fn new(show_usage: bool, choices: u64) -> Self {
        Self::with_event_bytes_max(show_usage, choices, EVENT_BYTES_MAX)
    }

    fn with_event_bytes_max(show_usage: bool, choices: u64, event_bytes_max: usize) -> Self {
        let progress = Progress { choices, ..Progress::default() };
        let gate = Gate { hide_usage: !show_usage, progress, ..Gate::default() };
        Self { parser: SseParser::new(event_bytes_max), gate, room: BytesMut::new() }
    }

    /// What is left at the end of the stream: an event without its blank line, of which nothing or something was forwarded.
    fn rest(&mut self) -> Bytes {
        if self.gate.closed || self.parser.is_between() {
            self.parser.finish(|_| {});
            return Bytes::new();
        }
        let gate = &mut self.gate;
        let none = Bytes::new();
        let mut outlet = Outlet::new(&none, &mut self.room);
        // An overflow was forwarded as it came, and nothing of it was held.
        let mut forwarded = true;
        self.parser.finish(|piece| {
            let fate = gate.judge_rest(&piece);
            forwarded = matches!(fate, Fate::Forward | Fate::Cut);
            match fate {
                Fate::Drop => {}
                Fate::Forward => outlet.forward_cut(&piece, &[]),
                Fate::Cut => outlet.forward_cut(&piece, &gate.cuts),
                Fate::Replace => outlet.write(&gate.substitute),
            }
        });
        if forwarded {
            // Ends the line, if it has not ended, and the event. A blank line too many says nothing.
            outlet.write(b"\n\n");
        }
        outlet.finish()
    }
}

impl Answer for StreamReader {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let gate = &mut self.gate;
        let mut outlet = Outlet::new(&chunk, &mut self.room);
        self.parser.push(&chunk, |piece| match gate.judge(&piece) {
            Fate::Forward => outlet.forward(piece.place()),
            Fate::Drop => {}
            Fate::Cut => outlet.forward_cut(&piece, &gate.cuts),
            Fate::Replace => outlet.write(&gate.substitute),
        });
        outlet.finish()
    }

    fn end(&mut self) -> End {
        let rest = self.rest();
        let gate = &mut self.gate;
        if gate.progress.error.is_some() {
            return End { outcome: Outcome::Errored, append: rest };
        }
        if gate.done {
            return End { outcome: Outcome::Complete, append: rest };
        }
        if !gate.progress.is_finished() {
            return End { outcome: Outcome::Truncated, append: rest };
        }
        gate.done = true;
        gate.closed = true;
        End { outcome: Outcome::Complete, append: [&rest[..], DONE].concat().into() }
    }

    fn is_whole(&self) -> bool {
        self.gate.done && self.gate.progress.error.is_none()
    }

    fn usage(&self) -> Option<Usage> {
        let marks = &self.gate.progress.marks;
        marks.report.usage().or_else(|| marks.report_elsewhere.usage())
    }

    fn sample(&self) -> &SampledText {
        &self.gate.progress.sample
    }

    fn take_sample(&mut self) -> SampledText {
        std::mem::take(&mut self.gate.progress.sample)
    }

    fn began(&self) -> bool {
        self.gate.progress.marks.began
    }

    fn error(&self) -> Option<&AnswerError> {
        self.gate.progress.error.as_ref()
    }
}

impl Gate {
    fn judge(&mut self, piece: &Piece<'_>) -> Fate {
        let fate = match piece {
            Piece::LineFeed(_) if self.forwards => Fate::Forward,
            Piece::LineFeed(_) => Fate::Drop,
            _ if self.closed => Fate::Drop,
            Piece::Event { event, .. } => self.judge_event(event).unwrap_or(Fate::Forward),
            Piece::Silent(_) | Piece::Overflow(_) => Fate::Forward,
        };
        self.forwards = matches!(fate, Fate::Forward | Fate::Cut);
        fate
    }

    /// As [`Self::judge`], of what the stream broke off in: what cannot be read is worth nothing to the client.
    fn judge_rest(&mut self, piece: &Piece<'_>) -> Fate {
        match piece {
            Piece::Event { event, .. } => self.judge_event(event).unwrap_or(Fate::Drop),
            _ => Fate::Drop,
        }
    }

    /// `None` if the event cannot be read.
    fn judge_event(&mut self, event: &Event<'_>) -> Option<Fate> {
        self.cuts.clear();
        if event.data.trim_ascii() == b"[DONE]" {
            self.done = true;
            self.closed = true;
            return Some(Fate::Forward);
        }
        let is_named_error = event.name == Some(b"error") && !self.progress.is_finished();
        let chunk = self.progress.look(&event.data, &mut self.cuts);
        if is_named_error || chunk.as_ref().is_ok_and(|chunk| chunk.error) {
            return Some(self.fail(&event.data));
        }
        let Ok(chunk) = chunk else {
            self.cuts.clear();
            return None;
        };
        Some(match self.hide_usage {
            true if chunk.only_usage => Fate::Drop,
            true if !self.cuts.is_empty() => Fate::Cut,
            _ => Fate::Forward,
        })
    }

    /// The provider has failed. What it says may name the operator's account and key.
    fn fail(&mut self, data: &[u8]) -> Fate {
        let trouble = Trouble::of_event(data);
        self.closed = true;
        self.progress.error = Some(trouble.error);
        self.substitute = [b"data: ", &trouble.body[..], b"\n\n"].concat();
        Fate::Replace
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn reader_of(show_usage: bool) -> StreamReader {
        StreamReader::new(show_usage, 1)
    }

    /// What the client gets, and how it ended.
    fn pass<'a>(reader: &mut StreamReader, chunks: impl IntoIterator<Item = &'a [u8]>) -> (String, Outcome) {
        let mut forwarded = Vec::new();
        for chunk in chunks {
            forwarded.extend_from_slice(&reader.pass(Bytes::copy_from_slice(chunk)));
        }
        let end = reader.end();
        forwarded.extend_from_slice(&end.append);
        (String::from_utf8_lossy(&forwarded).into_owned(), end.outcome)
    }

    fn hidden(stream: &str) -> (String, Outcome) {
        let whole = pass(&mut reader_of(false), [stream.as_bytes()]);
        for chunk_bytes in [1, 5, 50] {
            assert_eq!(pass(&mut reader_of(false), stream.as_bytes().chunks(chunk_bytes)), whole, "{stream:?}");
        }
        whole
    }

    fn shown(stream: &str) -> (String, Outcome) {
        let whole = pass(&mut reader_of(true), [stream.as_bytes()]);
        for chunk_bytes in [1, 5, 50] {
            assert_eq!(pass(&mut reader_of(true), stream.as_bytes().chunks(chunk_bytes)), whole, "{stream:?}");
        }
        whole
    }

    const DELTA: &str = r#"data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}],"usage":null}"#;
    const FINISH: &str = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    const USAGE: &str = r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;

    #[test]
    fn a_client_that_asked_gets_the_very_same_bytes() {
        let events = format!("{DELTA}\n\n{FINISH}\n\n{USAGE}\n\n");
        let chunk = Bytes::from(format!("{events}data: [DO"));
        let mut reader = reader_of(true);
        let forwarded = reader.pass(chunk.clone());
        assert_eq!((forwarded.as_ptr(), forwarded.len()), (chunk.as_ptr(), events.len()));
        assert_eq!(reader.usage(), Some(Usage { input: 3, output: 1, ..Usage::default() }));
        assert_eq!(reader.sample().sample(), b"Hi");
        assert_eq!(&reader.pass(Bytes::from_static(b"NE]\n\n"))[..], b"data: [DONE]\n\n");
        assert_eq!(reader.end(), End { outcome: Outcome::Complete, append: Bytes::new() });
    }

    #[test]
    fn a_client_that_did_not_ask_sees_no_usage() {
        let stream = format!(": hello\n\n{DELTA}\n\n{FINISH}\n\n{USAGE}\n\ndata: [DONE]\n\n");
        let expected = format!(": hello\n\n{}\n\n{FINISH}\n\ndata: [DONE]\n\n", DELTA.replace(r#","usage":null"#, ""));
        assert_eq!(hidden(&stream), (expected.clone(), Outcome::Complete));
        assert_eq!(hidden(&stream.replace('\n', "\r\n")), (expected.replace('\n', "\r\n"), Outcome::Complete));
        assert_eq!(hidden(&stream.replace('\n', "\r")), (expected.replace('\n', "\r"), Outcome::Complete));
    }

    #[test]
    fn usage_is_cut_wherever_it_stands() {
        for (before, after) in [
            (r#"{"usage":null}"#, "{}"),
            (r#"{ "usage" : null , "a":1 }"#, r#"{ "a":1 }"#),
            (r#"{"a":1 , "usage":null}"#, r#"{"a":1}"#),
            (r#"{"a":1,"usage":null,"b":2}"#, r#"{"a":1,"b":2}"#),
            (r#"{"usage":null,"usage":{},"a":1,"usage":3,"b":{"usage":4}}"#, r#"{"a":1,"b":{"usage":4}}"#),
            (r#"{"\u0075sage":null,"a":1}"#, r#"{"a":1}"#),
            (r#"{"choices":[],"prompt_filter_results":[]}"#, r#"{"choices":[],"prompt_filter_results":[]}"#),
        ] {
            let choice = r#""choices":[{"index":0}],"#;
            let (before, after) = (
                before.replacen(r#""a""#, &format!(r#"{choice}"a""#), 1),
                after.replacen(r#""a""#, &format!(r#"{choice}"a""#), 1),
            );
            assert_eq!(hidden(&format!("data:{before}\n\n")).0, format!("data:{after}\n\n"));
        }
        let lines = "event: x\ndata: {\"choices\":[{}],\ndata: \"usage\":\ndata: null}\n\n";
        assert_eq!(hidden(lines).0, "event: x\ndata: {\"choices\":[{}]}\n\n");
    }

    #[test]
    fn what_is_whole_and_unchanged_is_not_copied() {
        let chunk = Bytes::from(format!("{FINISH}\n\n{FINISH}\n\n{USAGE}\n\n"));
        let forwarded = reader_of(false).pass(chunk.clone());
        assert_eq!((forwarded.as_ptr(), forwarded.len()), (chunk.as_ptr(), 2 * (FINISH.len() + 2)));
    }

    #[test]
    fn the_end_is_told_by_the_finish_and_done_is_added_once() {
        for run in [shown, hidden] {
            let finished = format!("{FINISH}\n\n");
            assert_eq!(run(&finished), (format!("{finished}data: [DONE]\n\n"), Outcome::Complete));
            assert_eq!(run(&format!("{FINISH}\n")), (format!("{FINISH}\n\n\ndata: [DONE]\n\n"), Outcome::Complete));
            assert_eq!(run(FINISH), (format!("{FINISH}\n\ndata: [DONE]\n\n"), Outcome::Complete));
            assert_eq!(run(&format!("{finished}data: [DONE]")).0, format!("{finished}data: [DONE]\n\n"));
            let twice = format!("{finished}data: [DONE]\r\n\r\ndata: [DONE]\r\n\r\n: x\n\n");
            assert_eq!(run(&twice).0, format!("{finished}data: [DONE]\r\n\r\n"));
            assert_eq!(run("").1, Outcome::Truncated);
        }
    }

    #[test]
    fn a_finish_that_broke_off_is_no_finish() {
        let cut = &FINISH[..FINISH.len() - 1];
        assert_eq!(hidden(cut), (String::new(), Outcome::Truncated));
        assert_eq!(shown(cut), (String::new(), Outcome::Truncated));
    }

    #[test]
    fn a_stream_that_broke_off_is_not_made_whole() {
        let stream = format!("{FINISH}\n\n").replace("\"stop\"", "\"\"");
        let cut = format!("{stream}data: {{\"choi");
        assert_eq!(hidden(&cut), (stream.clone(), Outcome::Truncated));
        assert_eq!(shown(&cut), (stream, Outcome::Truncated));
        // Two were asked for: one that has finished is not all.
        let mut reader = StreamReader::new(true, 2);
        assert_eq!(pass(&mut reader, [format!("{FINISH}\n\n").as_bytes()]).1, Outcome::Truncated);
    }

    #[test]
    fn an_error_is_told_in_the_relays_words_and_nothing_behind_it() {
        let first = format!("{DELTA}\n\n").replace(r#","usage":null"#, "");
        let ours = |stream: &str| {
            let told: Value = serde_json::from_str(stream.strip_prefix(&first)?.strip_prefix("data: ")?).ok()?;
            Some(told["error"].clone())
        };
        for (error, kind, code) in [
            (
                r#"{"error":{"message":"key sk-1234567 of org-7","type":"server_error","code":7}}"#,
                "upstream_error",
                "upstream_error",
            ),
            (r#"{"error":"org-7 is tired"}"#, "upstream_error", "upstream_error"),
            (r#"{"error":{"message":"org-7 is busy","code":429}}"#, "upstream_error", "upstream_rate_limited"),
            (
                r#"{"error":{"message":"no","type":"invalid_request_error","code":"bad"}}"#,
                "invalid_request_error",
                "bad",
            ),
        ] {
            let stream = format!("{first}event: error\ndata: {error}\n\n{DELTA}\n\ndata: [DONE]\n\n");
            for run in [shown, hidden] {
                let (told, outcome) = run(&stream);
                assert!(!told.contains("org-7") && !told.contains("sk-") && told.ends_with("}\n\n"), "{told}");
                let told = ours(&told).unwrap();
                assert_eq!((&told["type"], &told["code"], outcome), (&kind.into(), &code.into(), Outcome::Errored));
            }
            // Without its blank line, and without its name.
            let cut = format!("{first}data: {error}");
            for run in [shown, hidden] {
                assert_eq!(ours(&run(&cut).0).unwrap()["code"], code);
            }
        }
        for unnamed in ["the key sk-1234567 is bad", r#"{"message":"the key sk-1234567 is bad"}"#, "{\"error\":"] {
            let (told, outcome) = shown(&format!("{first}event: error\ndata: {unnamed}\n\n"));
            assert_eq!((&ours(&told).unwrap()["code"], outcome), (&"upstream_error".into(), Outcome::Errored));
        }
    }

    #[test]
    fn an_answer_that_is_finished_is_not_taken_back() {
        let reason = r#"data: {"choices":[],"error":{"message":"Token limit reached"}}"#;
        assert_eq!(shown(&format!("{FINISH}\n\n{reason}\n\ndata: [DONE]\n\n")).1, Outcome::Complete);
    }

    #[test]
    fn an_error_is_known_to_the_relay_as_it_was_said() {
        let mut reader = reader_of(true);
        reader.pass(Bytes::from_static(b"data: {\"error\":{\"message\":\"no\",\"type\":\"t\",\"code\":7}}\n\n"));
        assert!(!reader.began());
        let error = reader.error().unwrap();
        assert_eq!((&*error.message, error.kind.as_deref(), error.code.as_deref()), ("no", Some("t"), Some("7")));
        assert!(!error.is_of_the_request());
    }

    #[test]
    fn an_event_too_long_to_hold_is_let_through() {
        let long = format!("data: {{\"usage\":null,\"x\":\"{}\"}}\n\n", "x".repeat(200));
        let stream = format!("{long}{DELTA}\n\n{FINISH}\n\n");
        let expected = format!("{long}{}\n\n{FINISH}\n\ndata: [DONE]\n\n", DELTA.replace(r#","usage":null"#, ""));
        for chunk_bytes in [1, 30, 150, 1000] {
            let mut reader = StreamReader::with_event_bytes_max(false, 1, 150);
            assert_eq!(pass(&mut reader, stream.as_bytes().chunks(chunk_bytes)), (expected.clone(), Outcome::Complete));
        }
    }

    #[test]
    fn began_is_the_first_word_not_the_greeting() {
        let mut reader = reader_of(true);
        reader.pass(Bytes::from_static(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[]}}]}\n\n"));
        assert!(!reader.began());
        reader.pass(Bytes::from(format!("{DELTA}\n\n")));
        assert!(reader.began());
        let mut tool = reader_of(true);
        tool.pass(Bytes::from_static(
            br#"data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":"{\"a\""}}]}}]}

"#,
        ));
        assert!(tool.began());
        assert_eq!(tool.sample().sample(), br#"f{\"a\""#);
    }

    /// Streams made of what matters here, framed in any way.
    fn whole_streams() -> impl Strategy<Value = Vec<u8>> {
        let usage = prop::sample::select(vec![
            r#""usage":null"#,
            r#""usage" : {"prompt_tokens":1}"#,
            r#""\u0075sage":1"#,
            r#""x":{"usage":1}"#,
        ]);
        let choices = prop::sample::select(vec![
            r#""choices":[]"#,
            r#""choices":[{"delta":{"content":"é"}}]"#,
            r#""choices":[{"finish_reason":"stop"}]"#,
        ]);
        let chunk = (prop::collection::vec(prop_oneof![2 => usage, 2 => choices], 0..4), "[ \n]?")
            .prop_map(|(members, space)| format!("{{{space}{}{space}}}", members.join(&format!("{space},{space}"))));
        let other =
            prop::sample::select(vec!["[DONE]", "{\"error\":{\"message\":\"e\"}}", "{\"choices\":", "", "{} {}"]);
        let data = prop_oneof![8 => chunk, 1 => other.prop_map(str::to_owned)];
        let block = (data, any::<bool>()).prop_map(|(data, named)| {
            let lines = data.replace('\n', "\ndata: ");
            format!("{}data: {lines}\n\n", if named { "event: e\n" } else { "" })
        });
        let block = prop_oneof![9 => block, 1 => Just(": ping\n\n".to_owned())];
        let line_end = prop::sample::select(vec!["\n", "\r\n", "\r"]);
        (prop::collection::vec(block, 0..6), line_end)
            .prop_map(|(blocks, line_end)| blocks.concat().replace('\n', line_end).into_bytes())
    }

    /// The same, some of them cut off anywhere.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        (whole_streams(), any::<prop::sample::Index>(), any::<bool>()).prop_map(|(mut stream, index, cut)| {
            if cut && !stream.is_empty() {
                stream.truncate(index.index(stream.len()));
            }
            stream
        })
    }

    fn data_of(stream: &[u8]) -> Vec<Value> {
        let mut parser = SseParser::default();
        let mut data = Vec::new();
        parser.push(&Bytes::copy_from_slice(stream), |piece| {
            if let Piece::Event { event, .. } = piece {
                data.push(
                    serde_json::from_slice(&event.data).unwrap_or_else(|_| String::from_utf8_lossy(&event.data).into()),
                );
            }
        });
        data
    }

    /// All that a client or a meter can see of a run.
    fn seen(
        reader: &mut StreamReader,
        stream: &[u8],
        chunk_bytes: usize,
    ) -> (Vec<u8>, Outcome, Option<Usage>, SampledText, bool) {
        let (forwarded, outcome) = pass(reader, stream.chunks(chunk_bytes));
        (forwarded.into_bytes(), outcome, reader.usage(), reader.sample().clone(), reader.began())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_split_looks_the_same(stream in streams(), chunk_bytes in 1usize..40, show_usage: bool, event_bytes_max in 10usize..150) {
            let reader = || StreamReader::with_event_bytes_max(show_usage, 1, event_bytes_max);
            prop_assert_eq!(seen(&mut reader(), &stream, chunk_bytes), seen(&mut reader(), &stream, usize::MAX));
        }

        #[test]
        fn any_split_of_any_bytes_looks_the_same(stream: Vec<u8>, chunk_bytes in 1usize..40, show_usage: bool) {
            prop_assert_eq!(seen(&mut reader_of(show_usage), &stream, chunk_bytes), seen(&mut reader_of(show_usage), &stream, usize::MAX));
        }

        #[test]
        fn hiding_takes_usage_and_nothing_else(stream in whole_streams()) {
            let (forwarded, _) = pass(&mut reader_of(false), [&stream[..]]);
            let (shown, _) = pass(&mut reader_of(true), [&stream[..]]);
            let mut expected = data_of(shown.as_bytes());
            expected.retain_mut(|data| {
                let choices = data["choices"].as_array().is_some_and(|choices| !choices.is_empty());
                let usage = data.as_object_mut().and_then(|data| data.remove("usage"));
                choices || !usage.is_some_and(|usage| usage.is_object()) || data.get("error").is_some()
            });
            let data = data_of(forwarded.as_bytes());
            prop_assert!(data.iter().all(|data| data.get("usage").is_none()));
            prop_assert_eq!(data, expected);
        }
    }
}
