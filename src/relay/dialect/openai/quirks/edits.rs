//! Changes to a body, gathered while it is read and made in one copy.

use std::ops::Range;

use bytes::Bytes;

use super::members::{Member, cuts};

/// Changes to a text: spans and what stands there instead. They do not overlap.
#[derive(Debug, Default)]
pub(super) struct Edits {
    edits: Vec<(Range<usize>, Bytes)>,
    /// New members of the outermost object, each with a comma before it.
    added: Vec<u8>,
}

impl Edits {
    /// Puts a text in a span's place.
    pub(super) fn replace(&mut self, span: Range<usize>, text: impl Into<Bytes>) {
        self.edits.push((span, text.into()));
    }

    /// Puts a text in.
    pub(super) fn insert(&mut self, at: usize, text: impl Into<Bytes>) {
        self.replace(at..at, text);
    }

    /// Takes members out of one object, in the order in which they stand in it.
    pub(super) fn cut(&mut self, text: &[u8], members: &[Member]) {
        self.edits.extend(cuts(text, members).into_iter().map(|span| (span, Bytes::new())));
    }

    /// Adds a member to the outermost object, which keeps at least one of its own: `"key":value`.
    pub(super) fn add(&mut self, member: &str) {
        self.added.push(b',');
        self.added.extend_from_slice(member.as_bytes());
    }

    /// Takes an edit that others have made.
    pub(super) fn extend(&mut self, edits: impl IntoIterator<Item = (Range<usize>, Bytes)>) {
        self.edits.extend(edits);
    }

    /// The text, which is an object, with all changes; the very same where there are none.
    pub(super) fn apply(mut self, text: &Bytes) -> Bytes {
        if !self.added.is_empty() {
            let end = text.trim_ascii_end().len().saturating_sub(1);
            let added = std::mem::take(&mut self.added);
            self.insert(end, added);
        }
        if self.edits.is_empty() {
            return text.clone();
        }
        // What is put in goes before what is taken out at the same place.
        self.edits.sort_by_key(|(span, _)| (span.start, span.end));
        let more: usize = self.edits.iter().map(|(_, text)| text.len()).sum();
        let mut whole = Vec::with_capacity(text.len() + more);
        let mut from = 0;
        for (span, new) in &self.edits {
            whole.extend_from_slice(&text[from..span.start]);
            whole.extend_from_slice(new);
            from = span.end;
        }
        whole.extend_from_slice(&text[from..]);
        whole.into()
    }
}
