//! The answer that is no stream: gathered, and translated when all of it is there.

use bytes::Bytes;

use super::chunks::usage_json;
use super::error::map_answer_error;
use super::logprobs;
use super::progress::{Conclusion, NewCall, Progress, Sink, failed};
use super::response;
use super::signatures::SignatureScope;
use crate::relay::dialect::{Answer, AnswerError, AnswerTerms, End, Outcome, ProviderError};
use crate::relay::json::{Fault, What, write_string};
use crate::relay::meter::{SampledText, Usage};
use crate::relay::refusal::{Cause, Refusal};

/// The largest answer that is translated.
pub const WHOLE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A whole answer on its way through. Nothing passes until it has ended; then its translation does, or an error object in
/// its place, whose status is 502 but for a fault of the request.
#[derive(Debug)]
pub struct WholeTranslator {
    terms: AnswerTerms,
    progress: Progress,
    body: Vec<u8>,
    error: Option<AnswerError>,
    is_too_large: bool,
    /// How the answer has ended, once it has.
    outcome: Option<Outcome>,
}

impl WholeTranslator {
    /// At the beginning of an answer to a request for so many choices. The signatures of its calls are remembered.
    pub fn new(terms: AnswerTerms, choices: u64, signatures: SignatureScope) -> Self {
        let progress = Progress::new(&terms, choices, signatures);
        Self { terms, progress, body: Vec::new(), error: None, is_too_large: false, outcome: None }
    }

    /// What the client gets, and how the answer has ended.
    fn translate(&mut self) -> (Outcome, Vec<u8>) {
        if self.is_too_large {
            return self.fail(&failed("The provider's answer is larger than the relay takes."));
        }
        let mut body = std::mem::take(&mut self.body);
        if str::from_utf8(&body).is_err() {
            body = String::from_utf8_lossy(&body).into_owned().into_bytes();
        }
        let responses = match response::read(&body) {
            Ok(responses) => responses,
            Err(Fault { what: What::Ended, .. }) => return self.truncated(),
            Err(_) => return self.fail(&failed("The provider's answer cannot be read.")),
        };
        let mut messages = Messages::default();
        for response in responses.iter() {
            if let Some(error) = response.error {
                let (told, seen) = map_answer_error(error);
                self.error = Some(seen);
                let body = match told {
                    ProviderError::Provider(refusal) => refusal.to_json(),
                    ProviderError::Request { body, .. } => body.into(),
                };
                return (Outcome::Errored, body);
            }
            if let Err(refusal) = self.progress.tell(response, &mut messages) {
                return self.fail(&refusal);
            }
        }
        match self.progress.conclude(true, &mut messages) {
            Conclusion::Complete => (Outcome::Complete, self.document(&messages)),
            Conclusion::Truncated => self.fail(&failed("The provider's answer has nothing in it.")),
            Conclusion::Failed(refusal) => self.fail(&refusal),
        }
    }

    fn truncated(&self) -> (Outcome, Vec<u8>) {
        let refusal = Refusal::new(Cause::UpstreamTruncated, "The provider's answer broke off before its end.");
        (Outcome::Truncated, refusal.to_json())
    }

    fn fail(&mut self, refusal: &Refusal) -> (Outcome, Vec<u8>) {
        self.error = Some(AnswerError { message: (*refusal.message).into(), ..AnswerError::default() });
        (Outcome::Errored, refusal.to_json())
    }

    /// The answer as OpenAI writes it.
    fn document(&self, messages: &Messages) -> Vec<u8> {
        let mut out = b"{\"id\":".to_vec();
        write_string(&mut out, &self.terms.id);
        out.extend_from_slice(b",\"object\":\"chat.completion\",\"created\":");
        out.extend_from_slice(self.terms.created.to_string().as_bytes());
        out.extend_from_slice(b",\"model\":");
        write_string(&mut out, &self.terms.model);
        out.extend_from_slice(b",\"choices\":[");
        let mut first = true;
        for message in &messages.messages {
            if !first {
                out.push(b',');
            }
            first = false;
            message.write(&mut out);
        }
        out.push(b']');
        if let Some(usage) = self.usage() {
            out.extend_from_slice(b",\"usage\":");
            out.extend_from_slice(usage_json(&usage).as_bytes());
        }
        out.push(b'}');
        out
    }
}

impl Answer for WholeTranslator {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        if self.body.len() + chunk.len() > WHOLE_BYTES_MAX {
            self.is_too_large = true;
            self.body = Vec::new();
        }
        if !self.is_too_large && self.outcome.is_none() {
            self.body.extend_from_slice(&chunk);
        }
        Bytes::new()
    }

    fn end(&mut self) -> End {
        if let Some(outcome) = self.outcome {
            return End { outcome, append: Bytes::new() };
        }
        let (outcome, document) = self.translate();
        self.outcome = Some(outcome);
        End { outcome, append: document.into() }
    }

    fn is_whole(&self) -> bool {
        // It is told at its end.
        false
    }

    fn usage(&self) -> Option<Usage> {
        self.progress.report.usage()
    }

    fn sample(&self) -> &SampledText {
        &self.progress.sample
    }

    fn take_sample(&mut self) -> SampledText {
        std::mem::take(&mut self.progress.sample)
    }

    fn began(&self) -> bool {
        self.progress.began
    }

    fn error(&self) -> Option<&AnswerError> {
        self.error.as_ref()
    }
}

/// The messages of an answer, by choice, as they are put together.
#[derive(Debug, Default)]
struct Messages {
    messages: Vec<Message>,
}

/// One of them. Texts are insides of JSON strings, lists are insides of JSON arrays.
#[derive(Debug, Default)]
struct Message {
    choice: u32,
    content: Vec<u8>,
    reasoning: Vec<u8>,
    images: Vec<u8>,
    calls: Vec<Call>,
    logprobs: Option<Vec<u8>>,
    signature: Option<Vec<u8>>,
    reason: &'static str,
}

#[derive(Debug)]
struct Call {
    id: Vec<u8>,
    name: Vec<u8>,
    /// With its quotes.
    arguments: Vec<u8>,
    signature: Option<Vec<u8>>,
}

impl Messages {
    /// The message of a choice; one that has not begun begins so.
    fn of(&mut self, choice: u32) -> &mut Message {
        let at = self.messages.iter().position(|message| message.choice == choice).unwrap_or_else(|| {
            self.messages.push(Message { choice, ..Message::default() });
            self.messages.len() - 1
        });
        &mut self.messages[at]
    }
}

impl Sink for Messages {
    fn begin(&mut self, choice: u32, _with_call: bool) {
        self.of(choice);
    }

    fn text(&mut self, choice: u32, text: &[u8]) {
        self.of(choice).content.extend_from_slice(text);
    }

    fn reasoning(&mut self, choice: u32, text: &[u8]) {
        self.of(choice).reasoning.extend_from_slice(text);
    }

    fn image(&mut self, choice: u32, index: u32, mime: &[u8], data: &[u8]) {
        let images = &mut self.of(choice).images;
        if index > 0 {
            images.push(b',');
        }
        for piece in [&b"{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:"[..], mime, b";base64,", data, b"\"}}"]
        {
            images.extend_from_slice(piece);
        }
    }

    fn logprobs(&mut self, choice: u32, result: &[u8]) {
        self.of(choice).logprobs = logprobs::translate(result);
    }

    fn call(&mut self, choice: u32, _index: u32, call: &NewCall<'_>) {
        self.of(choice).calls.push(Call {
            id: call.id.to_vec(),
            name: call.name.to_vec(),
            arguments: b"\"{}\"".to_vec(),
            signature: call.signature.map(<[u8]>::to_vec),
        });
    }

    fn arguments(&mut self, choice: u32, index: u32, json: &[u8], signature: Option<&[u8]>) {
        let calls = &mut self.of(choice).calls;
        if let Some(call) = usize::try_from(index).ok().and_then(|index| calls.get_mut(index)) {
            call.arguments.clear();
            write_string(&mut call.arguments, &String::from_utf8_lossy(json));
            call.signature = signature.map(<[u8]>::to_vec).or(call.signature.take());
        }
    }

    fn finish(&mut self, choice: u32, reason: &'static str, signature: Option<&[u8]>) {
        let message = self.of(choice);
        message.reason = reason;
        message.signature = signature.map(<[u8]>::to_vec);
    }
}

impl Message {
    fn write(&self, out: &mut Vec<u8>) {
        let mut write = |pieces: &[&[u8]]| pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        write(&[
            b"{\"index\":",
            self.choice.to_string().as_bytes(),
            b",\"message\":{\"role\":\"assistant\",\"content\":",
        ]);
        if self.content.is_empty() && !self.calls.is_empty() {
            write(&[b"null"]);
        } else {
            write(&[b"\"", &self.content, b"\""]);
        }
        write(&[b",\"refusal\":null,\"annotations\":[]"]);
        if !self.reasoning.is_empty() {
            write(&[b",\"reasoning_content\":\"", &self.reasoning, b"\""]);
        }
        if !self.images.is_empty() {
            write(&[b",\"images\":[", &self.images, b"]"]);
        }
        for (index, call) in self.calls.iter().enumerate() {
            write(&[if index == 0 { b",\"tool_calls\":[" } else { b"," }]);
            write(&[b"{\"id\":\"", &call.id, b"\",\"type\":\"function\",\"function\":{\"name\":\"", &call.name]);
            write(&[b"\",\"arguments\":", &call.arguments, b"}"]);
            if let Some(signature) = &call.signature {
                write(&[b",\"extra_content\":{\"google\":{\"thought_signature\":\"", signature, b"\"}}"]);
            }
            write(&[b"}"]);
        }
        if !self.calls.is_empty() {
            write(&[b"]"]);
        }
        if let Some(signature) = &self.signature {
            write(&[b",\"extra_content\":{\"google\":{\"thought_signature\":\"", signature, b"\"}}"]);
        }
        let logprobs = self.logprobs.as_deref().unwrap_or(b"null");
        write(&[b"},\"logprobs\":", logprobs, b",\"finish_reason\":\"", self.reason.as_bytes(), b"\"}"]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::relay::dialect::gemini::SignatureMemory;
    use crate::relay::dialect::gemini::testing::{terms, told_by_document};

    fn translator() -> WholeTranslator {
        WholeTranslator::new(terms(false), 1, Arc::new(SignatureMemory::default()).scope("acct"))
    }

    fn translate(document: &[u8]) -> (Value, Outcome) {
        let mut translator = translator();
        assert_eq!(translator.pass(Bytes::copy_from_slice(document)), Bytes::new());
        let end = translator.end();
        assert_eq!(translator.end(), End { outcome: end.outcome, append: Bytes::new() });
        (serde_json::from_slice(&end.append).unwrap(), end.outcome)
    }

    #[test]
    fn a_document_has_all_that_openais_have() {
        let (document, outcome) = translate(
            json!({"candidates": [
                {"content": {"parts": [{"text": "Hm", "thought": true}, {"text": "a\""}, {"text": "b", "thoughtSignature": "W"}]},
                 "finishReason": "STOP", "logprobsResult": {"chosenCandidates": [{"token": "a", "logProbability": -1.5}]}},
                {"content": {"parts": [{"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": "S"}]}, "index": 1}],
                "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 1}})
            .to_string()
            .as_bytes(),
        );
        assert_eq!(outcome, Outcome::Complete);
        let expected = json!({
            "id": "chatcmpl-0198c7f2-1b7a-7c3d-8e4f-0123456789ab", "object": "chat.completion", "created": 1_782_321_902,
            "model": "gemini/\"2.5\"",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "a\"b", "refusal": null, "annotations": [],
                    "reasoning_content": "Hm", "extra_content": {"google": {"thought_signature": "W"}}},
                 "logprobs": {"content": [{"token": "a", "logprob": -1.5, "bytes": null, "top_logprobs": []}], "refusal": null},
                 "finish_reason": "stop"},
                {"index": 1, "message": {"role": "assistant", "content": null, "refusal": null, "annotations": [], "tool_calls": [
                    {"id": "call_tg_f21b7a7c3d8e4f0123456789ab_0", "type": "function",
                     "function": {"name": "f", "arguments": "{\"x\":1}"}, "extra_content": {"google": {"thought_signature": "S"}}}]},
                 "logprobs": null, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 1}},
        });
        assert_eq!(document, expected);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for (document, outcome, code) in [
            ("", Outcome::Truncated, "upstream_truncated"),
            ("{\"candidates\": [", Outcome::Truncated, "upstream_truncated"),
            ("<html>", Outcome::Errored, "upstream_error"),
            ("{}", Outcome::Errored, "upstream_error"),
            ("[]", Outcome::Errored, "upstream_error"),
            (r#"{"error":{"code":429,"message":"x"}}"#, Outcome::Errored, "upstream_rate_limited"),
            (r#"{"candidates":[{"finishReason":"OTHER"}]}"#, Outcome::Errored, "upstream_error"),
        ] {
            let (body, seen) = translate(document.as_bytes());
            assert_eq!((seen, body["error"]["code"].as_str()), (outcome, Some(code)), "{document}");
        }
    }

    #[test]
    fn an_answer_too_large_is_an_error_and_is_not_kept() {
        let mut translator = translator();
        let chunk = Bytes::from(vec![b' '; 1024 * 1024]);
        for _ in 0..33 {
            translator.pass(chunk.clone());
        }
        assert_eq!(translator.body.capacity(), 0);
        assert_eq!(translator.end().outcome, Outcome::Errored);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_document_or_an_error(
            bytes: Vec<u8>,
            text in r#"\{("candidates":\[(\{("content":\{"parts":\[\{"text":"(a|\\ud800)"\}\]\})?(,"finishReason":"(STOP|OTHER)")?\})?\])?(,?"promptFeedback":\{\})?(,"error":(null|1))?\}?"#,
        ) {
            for document in [&bytes[..], text.as_bytes(), &[text.as_bytes(), &bytes].concat()] {
                let mut translator = translator();
                translator.pass(Bytes::copy_from_slice(document));
                let end = translator.end();
                if end.outcome == Outcome::Complete {
                    told_by_document(&end.append);
                } else {
                    prop_assert!(serde_json::from_slice::<Value>(&end.append).unwrap()["error"]["code"].is_string());
                }
            }
        }
    }
}
