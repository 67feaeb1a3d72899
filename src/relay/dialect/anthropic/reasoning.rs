//! The blocks of thinking in a stream, gathered until they can be told at once.
//!
//! They are told at once because OpenAI's helpers treat a field that they do not know differently: Python's adds the deltas
//! up, Node's keeps the last. Only a value that comes once, whole, is the same to both.

use super::text::{push_inside, push_number, push_string};
use crate::relay::json::RawStr;

/// The most bytes of thinking and signatures that are kept of one answer. The longest thinking there is, 128,000 tokens, is
/// about half of it. An answer with more has no `thinking_blocks`.
pub(super) const THINKING_BYTES_MAX: usize = 1024 * 1024;

/// The finished blocks of an answer.
#[derive(Debug, Default)]
pub(super) struct ThinkingBlocks {
    /// The blocks' JSON, with commas between them.
    json: Vec<u8>,
    blocks: u64,
    /// Bytes in `json` and in the drafts.
    bytes: usize,
    overflowing: bool,
}

/// A block of thinking that has not ended.
#[derive(Debug, Default)]
pub(super) struct Draft {
    thinking: Vec<u8>,
    signature: Vec<u8>,
}

impl ThinkingBlocks {
    /// Adds to a draft's thinking.
    pub(super) fn think(&mut self, draft: &mut Draft, text: RawStr<'_>) {
        if self.has_room(text) {
            push_inside(&mut draft.thinking, text);
        }
    }

    /// Adds to a draft's signature.
    pub(super) fn sign(&mut self, draft: &mut Draft, text: RawStr<'_>) {
        if self.has_room(text) {
            push_inside(&mut draft.signature, text);
        }
    }

    /// A block has ended. One without a signature could not be sent back.
    pub(super) fn finish(&mut self, draft: Draft) {
        if draft.signature.is_empty() || self.overflowing {
            return;
        }
        self.begin(b"\"type\":\"thinking\",\"thinking\":\"");
        self.json.extend_from_slice(&draft.thinking);
        self.json.extend_from_slice(b"\",\"signature\":\"");
        self.json.extend_from_slice(&draft.signature);
        self.json.extend_from_slice(b"\"}");
    }

    /// A block of thinking that is not for reading.
    pub(super) fn redacted(&mut self, data: RawStr<'_>) {
        if self.has_room(data) {
            self.begin(b"\"type\":\"redacted_thinking\",\"data\":");
            push_string(&mut self.json, data);
            self.json.push(b'}');
        }
    }

    /// The blocks' JSON; `None` if there is none to tell.
    pub(super) fn json(&self) -> Option<&[u8]> {
        (self.blocks > 0 && !self.overflowing).then_some(&self.json)
    }

    /// Python's helper cannot do with objects in a list that have no `index`.
    fn begin(&mut self, members: &[u8]) {
        if self.blocks > 0 {
            self.json.push(b',');
        }
        self.json.extend_from_slice(b"{\"index\":");
        push_number(&mut self.json, self.blocks);
        self.json.push(b',');
        self.json.extend_from_slice(members);
        self.blocks += 1;
    }

    fn has_room(&mut self, text: RawStr<'_>) -> bool {
        self.bytes = self.bytes.saturating_add(text.raw().len());
        if self.bytes > THINKING_BYTES_MAX {
            self.overflowing = true;
            self.json = Vec::new();
        }
        !self.overflowing
    }
}
