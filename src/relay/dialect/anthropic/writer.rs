//! The client's side of a stream: OpenAI's chunks, written.

use bytes::Bytes;

use super::text::push_number;
use super::usage::write_usage;
use crate::relay::dialect::AnswerTerms;
use crate::relay::json::write_string;
use crate::relay::meter::Usage;

/// Writes chunks that all say the same of themselves.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    /// From `data: ` up to the value of `choices`.
    head: Vec<u8>,
    /// What follows a chunk's choices.
    tail: &'static [u8],
    show_usage: bool,
    out: Vec<u8>,
}

/// Where in a JSON document an answer tells who it is: up to the value of `choices`.
pub(super) fn write_head(out: &mut Vec<u8>, terms: &AnswerTerms, object: &str) {
    out.extend_from_slice(b"{\"id\":");
    write_string(out, &terms.id);
    out.extend_from_slice(format!(",\"object\":\"{object}\",\"created\":{},\"model\":", terms.created).as_bytes());
    write_string(out, &terms.model);
    out.extend_from_slice(b",\"choices\":");
}

impl ChunkWriter {
    pub(super) fn new(terms: &AnswerTerms) -> Self {
        let mut head = b"data: ".to_vec();
        write_head(&mut head, terms, "chat.completion.chunk");
        let tail: &[u8] = if terms.show_usage { b",\"usage\":null}\n\n" } else { b"}\n\n" };
        Self { head, tail, show_usage: terms.show_usage, out: Vec::new() }
    }

    /// A chunk with a delta, whose members `write` appends.
    pub(super) fn delta(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.out.extend_from_slice(&self.head);
        self.out.extend_from_slice(b"[{\"index\":0,\"delta\":{");
        write(&mut self.out);
        self.out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":null}]");
        self.out.extend_from_slice(self.tail);
    }

    /// A chunk with a delta of one string, whose inside `write` appends.
    pub(super) fn text(&mut self, member: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.delta(|out| {
            out.push(b'"');
            out.extend_from_slice(member.as_bytes());
            out.extend_from_slice(b"\":\"");
            write(out);
            out.push(b'"');
        });
    }

    /// A chunk with a piece of a call's arguments, whose inside `write` appends.
    pub(super) fn arguments(&mut self, call: u64, write: impl FnOnce(&mut Vec<u8>)) {
        self.delta(|out| {
            out.extend_from_slice(b"\"tool_calls\":[{\"index\":");
            push_number(out, call);
            out.extend_from_slice(b",\"function\":{\"arguments\":\"");
            write(out);
            out.extend_from_slice(b"\"}}]");
        });
    }

    /// The chunk that ends the choice, the usage where it was asked for, and the stream's end.
    pub(super) fn finish(&mut self, reason: &str, usage: Option<Usage>) {
        self.out.extend_from_slice(&self.head);
        self.out.extend_from_slice(b"[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"");
        self.out.extend_from_slice(reason.as_bytes());
        self.out.extend_from_slice(b"\"}]");
        self.out.extend_from_slice(self.tail);
        if self.show_usage {
            self.out.extend_from_slice(&self.head);
            self.out.extend_from_slice(b"[],\"usage\":");
            write_usage(&mut self.out, &usage.unwrap_or_default());
            self.out.extend_from_slice(b"}\n\n");
        }
        self.out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// An event that is ready.
    pub(super) fn event(&mut self, event: &[u8]) {
        self.out.extend_from_slice(event);
    }

    /// Makes room for what a piece of so many bytes may become.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.out.reserve(bytes);
    }

    /// What has been written since it was last taken.
    pub(super) fn take(&mut self) -> Bytes {
        if self.out.is_empty() { Bytes::new() } else { std::mem::take(&mut self.out).into() }
    }
}
