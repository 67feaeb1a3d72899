//! One response of Gemini's, the whole answer or a chunk of it, as it came: read in one walk, nothing copied.

use super::usage::Report;
use crate::relay::json::{Cursor, Fault, Kind, RawStr};

/// What a response says. It is read as a whole before any of it is believed.
#[derive(Debug, Default)]
pub(super) struct Response<'a> {
    pub(super) candidates: Few<Candidate<'a>>,
    pub(super) report: Report,
    /// Something is said of the prompt; if there never is a candidate, that it was blocked.
    pub(super) has_feedback: bool,
    /// The text of the response, if it is an error's.
    pub(super) error: Option<&'a [u8]>,
}

/// A piece of one of the answers.
#[derive(Debug, Default)]
pub(super) struct Candidate<'a> {
    pub(super) index: u32,
    pub(super) parts: Few<Part<'a>>,
    pub(super) finish: Option<RawStr<'a>>,
    /// The text of `logprobsResult`.
    pub(super) logprobs: Option<&'a [u8]>,
}

/// A piece of what is said.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) text: Option<RawStr<'a>>,
    pub(super) is_thought: bool,
    pub(super) signature: Option<RawStr<'a>>,
    pub(super) call: Option<Call<'a>>,
    pub(super) inline: Option<Inline<'a>>,
}

/// A function call, or a piece of one.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) id: Option<RawStr<'a>>,
    pub(super) name: Option<RawStr<'a>>,
    /// The arguments' text.
    pub(super) args: Option<&'a [u8]>,
    /// The text of an array of pieces of arguments.
    pub(super) partial_args: Option<&'a [u8]>,
    pub(super) will_continue: bool,
}

/// Bytes, as base64.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Inline<'a> {
    pub(super) mime: Option<RawStr<'a>>,
    pub(super) data: Option<RawStr<'a>>,
}

/// A list that nearly always has one item, for which it needs no memory of its own.
#[derive(Debug)]
pub(super) struct Few<T> {
    first: Option<T>,
    rest: Vec<T>,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { first: None, rest: Vec::new() }
    }
}

impl<T> Few<T> {
    fn push(&mut self, item: T) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            self.rest.push(item);
        }
    }

    /// The items in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.rest)
    }
}

/// Reads a text: one response, or an array of them, as Gemini sends streams and errors that are no events.
pub(super) fn read(json: &[u8]) -> Result<Few<Response<'_>>, Fault> {
    let mut cursor = Cursor::new(json);
    let mut responses = Few::default();
    if cursor.kind()? == Kind::Array {
        let mut items = cursor.array()?;
        while cursor.next_item(&mut items)? {
            responses.push(Response::read(&mut cursor, json)?);
        }
    } else {
        responses.push(Response::read(&mut cursor, json)?);
    }
    cursor.end()?;
    Ok(responses)
}

impl<'a> Response<'a> {
    fn read(cursor: &mut Cursor<'a>, json: &'a [u8]) -> Result<Self, Fault> {
        let mut response = Self::default();
        let mut is_error = false;
        cursor.kind()?;
        let begin = cursor.at();
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            let kind = cursor.kind()?;
            match key.raw() {
                b"candidates" if kind == Kind::Array => {
                    let mut items = cursor.array()?;
                    while cursor.next_item(&mut items)? {
                        response.candidates.push(Candidate::read(cursor)?);
                    }
                }
                b"usageMetadata" => response.report = Report::read(cursor)?,
                b"promptFeedback" if kind == Kind::Object => {
                    cursor.skip()?;
                    response.has_feedback = true;
                }
                b"error" if kind != Kind::Null => {
                    cursor.skip()?;
                    is_error = true;
                }
                _ => cursor.skip()?,
            }
        }
        response.error = is_error.then(|| &json[begin..cursor.at()]);
        Ok(response)
    }
}

impl<'a> Candidate<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut candidate = Self::default();
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            let kind = cursor.kind()?;
            match key.raw() {
                b"index" => {
                    let text = cursor.raw()?;
                    candidate.index = str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                }
                b"content" if kind == Kind::Object => candidate.content(cursor)?,
                b"finishReason" if kind == Kind::String => candidate.finish = Some(cursor.string()?),
                b"logprobsResult" if kind == Kind::Object => candidate.logprobs = Some(cursor.raw()?),
                _ => cursor.skip()?,
            }
        }
        Ok(candidate)
    }

    fn content(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Fault> {
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            if key.raw() != b"parts" || cursor.kind()? != Kind::Array {
                cursor.skip()?;
                continue;
            }
            let mut items = cursor.array()?;
            while cursor.next_item(&mut items)? {
                self.parts.push(Part::read(cursor)?);
            }
        }
        Ok(())
    }
}

impl<'a> Part<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut part = Self::default();
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            let kind = cursor.kind()?;
            match key.raw() {
                b"text" if kind == Kind::String => part.text = Some(cursor.string()?),
                b"thought" => {
                    part.is_thought = kind == Kind::True;
                    cursor.skip()?;
                }
                b"thoughtSignature" if kind == Kind::String => part.signature = Some(cursor.string()?),
                b"functionCall" if kind == Kind::Object => part.call = Some(Call::read(cursor)?),
                b"inlineData" if kind == Kind::Object => part.inline = Some(Inline::read(cursor)?),
                _ => cursor.skip()?,
            }
        }
        part.signature = part.signature.filter(|signature| !signature.is_empty());
        Ok(part)
    }
}

impl<'a> Call<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut call = Self::default();
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            let kind = cursor.kind()?;
            match key.raw() {
                b"id" if kind == Kind::String => call.id = Some(cursor.string()?),
                b"name" if kind == Kind::String => call.name = Some(cursor.string()?),
                b"args" if kind != Kind::Null => call.args = Some(cursor.raw()?),
                b"partialArgs" if kind == Kind::Array => call.partial_args = Some(cursor.raw()?),
                b"willContinue" => {
                    call.will_continue = kind == Kind::True;
                    cursor.skip()?;
                }
                _ => cursor.skip()?,
            }
        }
        call.id = call.id.filter(|id| !id.is_empty());
        call.name = call.name.filter(|name| !name.is_empty());
        Ok(call)
    }
}

impl<'a> Inline<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut inline = Self::default();
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            let kind = cursor.kind()?;
            match key.raw() {
                b"mimeType" if kind == Kind::String => inline.mime = Some(cursor.string()?),
                b"data" if kind == Kind::String => inline.data = Some(cursor.string()?),
                _ => cursor.skip()?,
            }
        }
        Ok(inline)
    }
}
