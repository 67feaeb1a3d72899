//! What the tools gave: matched to the calls by id, and written by the calls' names.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use super::parts::Part;
use super::read::{items, kind, object_text, string, unsupported};
use crate::relay::dialect::gemini::ids;
use crate::relay::json::{Kind, RawStr};
use crate::relay::refusal::Refusal;

/// A call of the last turn of the model, and what it gave.
#[derive(Debug)]
pub(super) struct Call<'a> {
    id: Cow<'a, [u8]>,
    raw_id: &'a [u8],
    name: &'a [u8],
    gave: Option<Gave<'a>>,
}

#[derive(Debug)]
enum Gave<'a> {
    /// The text of a JSON object.
    Object(Vec<u8>),
    /// Any other text, in pieces as they stood inside of JSON strings.
    Text(Vec<&'a [u8]>),
}

/// The calls of one turn.
#[derive(Debug, Default)]
pub(super) struct Results<'a> {
    calls: Vec<Call<'a>>,
    /// Where the calls of an id are that have no result yet. Some models call everything by one id.
    waiting: HashMap<Vec<u8>, VecDeque<usize>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(id: RawStr<'a>, name: RawStr<'a>) -> Self {
        Self { id: id.decode(), raw_id: id.raw(), name: name.raw(), gave: None }
    }

    pub(super) fn id(&self) -> &[u8] {
        &self.id
    }

    /// Writes `{"name":…` and the id, if Gemini would know it again. Those that the relay has made up it would not.
    pub(super) fn write_open(&self, out: &mut Vec<u8>) {
        if !ids::is_minted(&self.id) {
            out.extend_from_slice(b"{\"id\":\"");
            out.extend_from_slice(self.raw_id);
            out.extend_from_slice(b"\",\"name\":\"");
        } else {
            out.extend_from_slice(b"{\"name\":\"");
        }
        out.extend_from_slice(self.name);
        out.push(b'"');
    }

    /// Writes the part with what it gave. Gemini wants a part for each call: where the client has none it is told so.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"functionResponse\":");
        self.write_open(out);
        out.extend_from_slice(b",\"response\":");
        match &self.gave {
            Some(Gave::Object(object)) => out.extend_from_slice(object),
            Some(Gave::Text(pieces)) => {
                out.extend_from_slice(b"{\"result\":\"");
                pieces.iter().for_each(|piece| out.extend_from_slice(piece));
                out.extend_from_slice(b"\"}");
            }
            None => out.extend_from_slice(b"{\"error\":\"There is no result of this call.\"}"),
        }
        out.extend_from_slice(b"}}");
    }
}

impl<'a> Results<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// In the order in which they were called.
    pub(super) fn calls(&self) -> &[Call<'a>] {
        &self.calls
    }

    /// Notes a call.
    pub(super) fn called(&mut self, call: Call<'a>) {
        self.waiting.entry(call.id.to_vec()).or_default().push_back(self.calls.len());
        self.calls.push(call);
    }

    /// Notes what the call of an id gave; `false` if none is waiting for it.
    pub(super) fn gave(&mut self, id: &[u8], content: Option<&'a [u8]>, param: &str) -> Result<bool, Refusal> {
        let Some(index) = self.waiting.get_mut(id).and_then(VecDeque::pop_front) else { return Ok(false) };
        let pieces = pieces(content, param)?;
        let object = match &pieces[..] {
            [piece] => object(*piece),
            _ => None,
        };
        self.calls[index].gave = Some(match object {
            Some(object) => Gave::Object(object),
            None => Gave::Text(pieces.iter().map(RawStr::raw).collect()),
        });
        Ok(true)
    }
}

/// The text of a tool's message, in pieces.
fn pieces<'a>(content: Option<&'a [u8]>, param: &str) -> Result<Vec<RawStr<'a>>, Refusal> {
    let Some(content) = content else { return Ok(Vec::new()) };
    if kind(content)? == Kind::String {
        return Ok(vec![string(content, param)?]);
    }
    let mut pieces = Vec::new();
    items(content, param, |cursor, index| {
        let param = format!("{param}[{index}]");
        match Part::read(cursor, &param)? {
            Part::Text(text) => pieces.push(text),
            _ => return Err(unsupported(&param, "anything but text as a tool's result")),
        }
        Ok(())
    })?;
    Ok(pieces)
}

/// The text, if it is that of a JSON object. Decoded only if it looks like one.
fn object(text: RawStr<'_>) -> Option<Vec<u8>> {
    let mut rest = text.raw();
    while let Some(after) = [&b" "[..], b"\\n", b"\\r", b"\\t"].iter().find_map(|space| rest.strip_prefix(*space)) {
        rest = after;
    }
    if !rest.starts_with(b"{") {
        return None;
    }
    match text.decode() {
        Cow::Borrowed(text) => object_text(text).map(<[u8]>::to_vec),
        Cow::Owned(text) => object_text(&text).map(<[u8]>::to_vec),
    }
}
