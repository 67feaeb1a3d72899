//! One block of lines, up to and with the blank one: is it an event, and what does it say?

use std::borrow::Cow;

use memchr::memchr2;

/// An event that has data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// What its `event` field says, where it has one that is not empty.
    pub name: Option<&'a [u8]>,
    /// Its data: borrowed where it stands in one line, joined with line feeds where it stands in several.
    pub data: Cow<'a, [u8]>,
    /// Where the data begins in the block, if it stands there in one line.
    pub data_at: Option<usize>,
}

impl<'a> Event<'a> {
    /// Reads a block; `None` if there is no data in it, only comments, other fields or nothing.
    /// `lines` is how many lines that are not blank it has, where that is known.
    pub(super) fn read(block: &'a [u8], lines: Option<usize>) -> Option<Self> {
        if lines == Some(1)
            && let Some(event) = Self::read_single(block)
        {
            return Some(event);
        }
        let mut event: Option<Self> = None;
        let mut name = None;
        let mut at = 0;
        while at < block.len() {
            let line_bytes = memchr2(b'\n', b'\r', &block[at..]).unwrap_or(block.len() - at);
            let line = &block[at..at + line_bytes];
            let (field, value) = split_field(line);
            match field {
                b"data" => {
                    let value_at = at + line_bytes - value.len();
                    event = Some(match event {
                        None => Self { name: None, data: Cow::Borrowed(value), data_at: Some(value_at) },
                        Some(event) => event.joined(value),
                    });
                }
                b"event" => name = (!value.is_empty()).then_some(value),
                _ => {}
            }
            // A line feed behind a carriage return makes a blank line here, and that says nothing.
            at += line_bytes + 1;
        }
        event.map(|event| Self { name, ..event })
    }

    /// The block that nearly all blocks are: one line of data.
    fn read_single(block: &'a [u8]) -> Option<Self> {
        let end = block.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r'))? + 1;
        let value = block[..end].strip_prefix(b"data:")?;
        let data = value.strip_prefix(b" ").unwrap_or(value);
        Some(Self { name: None, data: Cow::Borrowed(data), data_at: Some(end - data.len()) })
    }

    fn joined(self, line: &[u8]) -> Self {
        let mut data = self.data.into_owned();
        data.push(b'\n');
        data.extend_from_slice(line);
        Self { name: None, data: Cow::Owned(data), data_at: None }
    }
}

/// A line's field and value, one space between them passed. A comment has the empty field.
fn split_field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line) {
        Some(colon) => {
            let value = &line[colon + 1..];
            (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, &[]),
    }
}
