//! OpenAI's chunks, written as the answer is told.

use std::fmt::Write;

use bytes::{Bytes, BytesMut};

use super::logprobs;
use super::progress::{NewCall, Sink};
use crate::relay::dialect::AnswerTerms;
use crate::relay::json::write_string;
use crate::relay::meter::Usage;

/// What ends a stream that has gone well.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Writes chunks behind one another.
#[derive(Debug)]
pub(super) struct Chunks {
    out: BytesMut,
    /// A chunk up to its choices, the same in all.
    head: Box<[u8]>,
    /// What follows the delta of a chunk that is not its answer's last.
    delta_tail: &'static [u8],
    show_usage: bool,
}

impl Chunks {
    /// Of an answer with these terms.
    pub(super) fn new(terms: &AnswerTerms) -> Self {
        let mut head = b"data: {\"id\":".to_vec();
        write_string(&mut head, &terms.id);
        head.extend_from_slice(b",\"object\":\"chat.completion.chunk\",\"created\":");
        head.extend_from_slice(terms.created.to_string().as_bytes());
        head.extend_from_slice(b",\"model\":");
        write_string(&mut head, &terms.model);
        head.extend_from_slice(b",\"choices\":[");
        // To those who asked for it, usage is null until it is told.
        let delta_tail: &[u8] = if terms.show_usage {
            b"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n"
        } else {
            b"},\"logprobs\":null,\"finish_reason\":null}]}\n\n"
        };
        Self { out: BytesMut::new(), head: head.into(), delta_tail, show_usage: terms.show_usage }
    }

    /// Makes room for what so many bytes of the provider's may come to.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.out.reserve(bytes + self.head.len() + 256);
    }

    /// What was written since the last time.
    pub(super) fn take(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    /// Writes an event of its own.
    pub(super) fn event(&mut self, event: &[u8]) {
        self.out.extend_from_slice(event);
    }

    /// Writes the usage, if the client asked for it, and the stream's end.
    pub(super) fn end(&mut self, usage: Option<Usage>) {
        if let Some(usage) = usage.filter(|_| self.show_usage) {
            self.out.extend_from_slice(&self.head);
            self.out.extend_from_slice(b"],\"usage\":");
            self.out.extend_from_slice(usage_json(&usage).as_bytes());
            self.out.extend_from_slice(b"}\n\n");
        }
        self.out.extend_from_slice(DONE);
    }

    fn open(&mut self, choice: u32) {
        self.out.extend_from_slice(&self.head);
        self.out.extend_from_slice(b"{\"index\":");
        self.number(choice);
        self.out.extend_from_slice(b",\"delta\":{");
    }

    fn close(&mut self) {
        self.out.extend_from_slice(self.delta_tail);
    }

    fn number(&mut self, number: u32) {
        match u8::try_from(number) {
            Ok(digit @ 0..=9) => self.out.extend_from_slice(&[b'0' + digit]),
            // Into memory there is no error.
            _ => drop(write!(self.out, "{number}")),
        }
    }

    fn write_all(&mut self, pieces: &[&[u8]]) {
        pieces.iter().for_each(|piece| self.out.extend_from_slice(piece));
    }

    /// Writes what OpenAI has no place for, under Google's name for it.
    fn extra(&mut self, signature: &[u8]) {
        self.write_all(&[b"\"extra_content\":{\"google\":{\"thought_signature\":\"", signature, b"\"}}"]);
    }
}

impl Sink for Chunks {
    fn begin(&mut self, choice: u32, with_call: bool) {
        self.open(choice);
        let content: &[u8] = if with_call { b"null" } else { b"\"\"" };
        self.write_all(&[b"\"role\":\"assistant\",\"content\":", content, b",\"refusal\":null"]);
        self.close();
    }

    fn text(&mut self, choice: u32, text: &[u8]) {
        self.open(choice);
        self.write_all(&[b"\"content\":\"", text, b"\""]);
        self.close();
    }

    fn reasoning(&mut self, choice: u32, text: &[u8]) {
        self.open(choice);
        self.write_all(&[b"\"reasoning_content\":\"", text, b"\""]);
        self.close();
    }

    fn image(&mut self, choice: u32, index: u32, mime: &[u8], data: &[u8]) {
        self.open(choice);
        self.out.extend_from_slice(b"\"images\":[{\"type\":\"image_url\",\"index\":");
        self.number(index);
        self.write_all(&[b",\"image_url\":{\"url\":\"data:", mime, b";base64,", data, b"\"}}]"]);
        self.close();
    }

    fn logprobs(&mut self, choice: u32, result: &[u8]) {
        let Some(logprobs) = logprobs::translate(result) else { return };
        self.open(choice);
        let usage: &[u8] = if self.show_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        self.write_all(&[b"},\"logprobs\":", &logprobs, b",\"finish_reason\":null}", usage]);
    }

    fn call(&mut self, choice: u32, index: u32, call: &NewCall<'_>) {
        self.open(choice);
        self.out.extend_from_slice(b"\"tool_calls\":[{\"index\":");
        self.number(index);
        self.write_all(&[b",\"id\":\"", call.id, b"\",\"type\":\"function\",\"function\":{\"name\":\"", call.name]);
        self.out.extend_from_slice(b"\",\"arguments\":\"\"}");
        if let Some(signature) = call.signature {
            self.out.extend_from_slice(b",");
            self.extra(signature);
        }
        self.out.extend_from_slice(b"}]");
        self.close();
    }

    fn arguments(&mut self, choice: u32, index: u32, json: &[u8], signature: Option<&[u8]>) {
        let mut quoted = Vec::with_capacity(json.len() + json.len() / 4 + 2);
        write_string(&mut quoted, &String::from_utf8_lossy(json));
        self.open(choice);
        self.out.extend_from_slice(b"\"tool_calls\":[{\"index\":");
        self.number(index);
        self.write_all(&[b",\"function\":{\"arguments\":", &quoted, b"}"]);
        if let Some(signature) = signature {
            self.out.extend_from_slice(b",");
            self.extra(signature);
        }
        self.out.extend_from_slice(b"}]");
        self.close();
    }

    fn finish(&mut self, choice: u32, reason: &'static str, signature: Option<&[u8]>) {
        if let Some(signature) = signature {
            self.open(choice);
            self.extra(signature);
            self.close();
        }
        self.open(choice);
        let usage: &[u8] = if self.show_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        self.write_all(&[b"},\"logprobs\":null,\"finish_reason\":\"", reason.as_bytes(), b"\"}", usage]);
    }
}

/// Usage as OpenAI writes it.
pub(super) fn usage_json(usage: &Usage) -> String {
    format!(
        "{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},\"prompt_tokens_details\":{{\"cached_tokens\":{}}},\
         \"completion_tokens_details\":{{\"reasoning_tokens\":{}}}}}",
        usage.prompt(),
        usage.output,
        usage.total(),
        usage.cache_read,
        usage.reasoning
    )
}
