//! One chunk of a streamed answer, looked at as it passes.

use std::ops::Range;

use super::usage::Report;
use crate::relay::dialect::AnswerError;
use crate::relay::json::{Cursor, Fault, Follower, Interest, Kind, Watch};
use crate::relay::meter::SampledText;

/// Where an error's message is cut.
const ERROR_MESSAGE_BYTES_MAX: usize = 500;

/// What all chunks so far have shown.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// How many choices the client asked for.
    pub(super) choices: u64,
    pub(super) sample: SampledText,
    pub(super) error: Option<AnswerError>,
    pub(super) marks: Marks,
}

/// What a chunk changes only as a whole: a chunk that breaks off has not said anything, least of all that it finished.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Marks {
    pub(super) began: bool,
    /// What the chunks themselves reported.
    pub(super) report: Report,
    /// What was reported where only some vendors do: inside a choice (Moonshot), or under `x_groq`.
    pub(super) report_elsewhere: Report,
    /// One bit a choice: those that have been seen, and those that have their `finish_reason`.
    started: u128,
    finished: u128,
}

/// What one chunk is to those who forward it.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// It reports usage and has no choice in it: OpenAI's extra chunk for those who asked.
    pub(super) only_usage: bool,
    /// It is, or holds, an error.
    pub(super) error: bool,
}

impl Progress {
    /// Looks at a chunk's JSON. The spans to cut out of it, so that no `usage` is left at its top, are put into `cuts`.
    pub(super) fn look(&mut self, json: &[u8], cuts: &mut Vec<Range<usize>>) -> Result<Chunk, Fault> {
        let before = self.marks;
        // OpenRouter tells in an error, behind the finish, why it has finished. That takes no answer back.
        let answered = self.is_finished();
        let mut error = None;
        let mut chunk = self.read(json, cuts, &mut error);
        match &mut chunk {
            Ok(chunk) if answered => chunk.error = false,
            Ok(_) if self.error.is_none() => self.error = error,
            Ok(_) => {}
            Err(_) => self.marks = before,
        }
        chunk
    }

    fn read(
        &mut self,
        json: &[u8],
        cuts: &mut Vec<Range<usize>>,
        error: &mut Option<AnswerError>,
    ) -> Result<Chunk, Fault> {
        let mut cursor = Cursor::new(json);
        let mut chunk = Chunk::default();
        let mut cutter = Cutter { cuts, kept: false, leading: None };
        // Of a member that is there twice the last counts, as JSON parsers have it.
        let mut has_choice = false;
        let mut members = cursor.object()?;
        loop {
            let before = cursor.at();
            let Some(key) = cursor.next_member(&mut members)? else { break };
            let key = key.decode();
            if &*key == b"usage" {
                chunk.only_usage = cursor.kind()? == Kind::Object;
                if chunk.only_usage {
                    self.marks.report.overwrite(&Report::read(&mut cursor)?);
                } else {
                    cursor.skip()?;
                }
                cutter.cut(before..cursor.at());
                continue;
            }
            cutter.keep(json, before);
            match &*key {
                b"choices" => has_choice = self.choices(&mut cursor)?,
                b"error" if cursor.kind()? != Kind::Null => {
                    *error = Some(read_error(&mut cursor)?);
                    chunk.error = true;
                }
                b"x_groq" => self.x_groq(&mut cursor)?,
                _ => cursor.skip()?,
            }
        }
        cutter.end();
        cursor.end()?;
        chunk.only_usage &= !has_choice && !chunk.error;
        Ok(chunk)
    }

    /// Whether as many choices have finished as were asked for, and all that were begun.
    pub(super) fn is_finished(&self) -> bool {
        self.marks.started == self.marks.finished
            && u64::from(self.marks.finished.count_ones()) >= self.choices.clamp(1, 128)
    }

    /// Whether there is any choice in the value, which is taken.
    fn choices(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
        if cursor.kind()? != Kind::Array {
            return cursor.skip().map(|()| false);
        }
        let mut position = 0;
        let mut items = cursor.array()?;
        while cursor.next_item(&mut items)? {
            self.choice(cursor, position)?;
            position += 1;
        }
        Ok(position > 0)
    }

    fn choice(&mut self, cursor: &mut Cursor<'_>, position: u32) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let mut index = position;
        let mut finished = false;
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"index" => {
                    let text = cursor.raw()?;
                    index = str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(position);
                }
                b"delta" => self.delta(cursor)?,
                // Some vendors write "" where null is meant.
                b"finish_reason" if cursor.kind()? == Kind::String => finished = !cursor.string()?.is_empty(),
                b"usage" => self.marks.report_elsewhere.overwrite(&Report::read(cursor)?),
                _ => cursor.skip()?,
            }
        }
        let bit = 1u128.checked_shl(index).unwrap_or(0);
        self.marks.started |= bit;
        if finished {
            self.marks.finished |= bit;
            self.marks.began = true;
        }
        Ok(())
    }

    fn delta(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            let kind = cursor.kind()?;
            match key.raw() {
                b"content" | b"reasoning_content" | b"reasoning" | b"refusal" if kind == Kind::String => {
                    let text = cursor.string()?;
                    if !text.is_empty() {
                        self.marks.began = true;
                        self.sample.push(text.raw());
                    }
                }
                b"content" | b"tool_calls" | b"function_call" | b"audio"
                    if matches!(kind, Kind::Array | Kind::Object) =>
                {
                    let value = cursor.raw()?;
                    // More than the brackets of an empty one.
                    self.marks.began |= value.len() > 2;
                    Follower::default().push(value, &mut TextInside(&mut self.sample));
                }
                _ => cursor.skip()?,
            }
        }
        Ok(())
    }

    fn x_groq(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match key.raw() {
                b"usage" => self.marks.report_elsewhere.overwrite(&Report::read(cursor)?),
                _ => cursor.skip()?,
            }
        }
        Ok(())
    }
}

/// Reads the value of an `error` member: an object, or a message alone.
pub(super) fn read_error(cursor: &mut Cursor<'_>) -> Result<AnswerError, Fault> {
    let mut error = AnswerError::default();
    if cursor.kind()? != Kind::Object {
        error.message = short_text(cursor)?.unwrap_or_default();
        return Ok(error);
    }
    let mut members = cursor.object()?;
    while let Some(key) = cursor.next_member(&mut members)? {
        match key.raw() {
            b"message" => error.message = short_text(cursor)?.unwrap_or_default(),
            b"type" => error.kind = short_text(cursor)?,
            b"code" => error.code = short_text(cursor)?,
            _ => cursor.skip()?,
        }
    }
    Ok(error)
}

/// A string's text or a number's digits, cut at [`ERROR_MESSAGE_BYTES_MAX`]; `None` for anything else.
fn short_text(cursor: &mut Cursor<'_>) -> Result<Option<Box<str>>, Fault> {
    let text = match cursor.kind()? {
        Kind::String => cursor.string()?.decode(),
        Kind::Number => cursor.raw()?.into(),
        _ => return cursor.skip().map(|()| None),
    };
    let short = &text[..text.len().min(ERROR_MESSAGE_BYTES_MAX)];
    Ok(Some(String::from_utf8_lossy(short).into()))
}

/// The text inside of lists of parts and of tool calls.
pub(super) struct TextInside<'a>(pub(super) &'a mut SampledText);

impl Watch for TextInside<'_> {
    fn member(&mut self, _depth: usize, key: &[u8]) -> Interest {
        if matches!(key, b"text" | b"name" | b"arguments" | b"transcript") { Interest::Text } else { Interest::Pass }
    }

    fn text(&mut self, piece: &[u8]) {
        self.0.push(piece);
    }

    fn captured(&mut self, _value: &[u8]) {}
}

/// Works out which spans to cut so that an object loses members and stays an object: with each goes one comma.
struct Cutter<'a> {
    cuts: &'a mut Vec<Range<usize>>,
    /// A member that stays has been passed: those cut behind it take the comma before them.
    kept: bool,
    /// Members cut before any that stays: they take the comma behind them, if there is one.
    leading: Option<Range<usize>>,
}

impl Cutter<'_> {
    /// Cuts a member; the span begins behind the value or bracket before it.
    fn cut(&mut self, span: Range<usize>) {
        if self.kept {
            self.cuts.push(span);
        } else {
            let start = self.leading.as_ref().map_or(span.start, |leading| leading.start);
            self.leading = Some(start..span.end);
        }
    }

    /// Keeps a member; `before` is behind the value or bracket before it.
    fn keep(&mut self, json: &[u8], before: usize) {
        self.kept = true;
        if let Some(leading) = self.leading.take() {
            let comma = json[before..].iter().position(|&byte| byte == b',').unwrap_or(0);
            self.cuts.push(leading.start..before + comma + 1);
        }
    }

    fn end(&mut self) {
        self.cuts.extend(self.leading.take());
    }
}
