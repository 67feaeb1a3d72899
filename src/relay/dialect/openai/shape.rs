//! How large a request's prompt is, in what its tokens can be estimated from. Read on the request's one walk.

use memchr::memmem;

use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::meter::{Attachment, CacheTime, PromptCeiling};

/// How large the prompt is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) messages: u64,
    /// Bytes of text as sent, escapes included, tools and schemas with it.
    pub(super) text_bytes: u64,
    /// Images, sounds and files.
    pub(super) attachments: u64,
    /// What its tokens are bounded from.
    pub(super) ceiling: PromptCeiling,
}

impl Shape {
    /// Counts one more message.
    pub(super) fn message(&mut self) {
        self.messages += 1;
        self.ceiling.messages = self.messages;
    }

    /// Takes a value that is text, whatever it is.
    pub(super) fn text(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let json = cursor.raw()?;
        self.text_bytes += json.len() as u64;
        self.ceiling.text(json);
        Ok(())
    }

    /// Takes tools, or what was called functions.
    pub(super) fn tools(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        self.ceiling.has_tools |= cursor.kind()? != Kind::Null;
        let mut tools = cursor.clone();
        let json = cursor.raw()?;
        self.text_bytes += json.len() as u64;
        self.ceiling.text(json);
        // Few have a mark, and only those, or whose keys are not to be read without their escapes, are walked.
        if memmem::find(json, b"cache_control").is_none() && memmem::find(json, b"\\u").is_none() {
            return Ok(());
        }
        self.marks(&mut tools, 3)
    }

    /// Takes the answer's form.
    pub(super) fn format(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        self.ceiling.has_schema |= cursor.kind()? != Kind::Null;
        self.text(cursor)
    }

    /// Takes a field that the relay does not know. It may be text for the model all the same, and it may name a cache that the
    /// provider has.
    pub(super) fn other(&mut self, key: &[u8], cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        match key {
            b"cache_control" => return self.mark(cursor),
            b"cached_content" if cursor.kind()? != Kind::Null => self.ceiling.attachment(Attachment::Named),
            _ => {}
        }
        let json = cursor.raw()?;
        if key == b"extra_body" && memmem::find(json, b"cached_content").is_some() {
            self.ceiling.attachment(Attachment::Named);
        }
        self.ceiling.text(json);
        Ok(())
    }

    /// Takes `cache_control`: what stands before it is written to a cache.
    pub(super) fn mark(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let is_mark = cursor.kind()? != Kind::Null;
        let json = cursor.raw()?;
        if is_mark {
            let is_long = memmem::find(json, b"1h").is_some() || json.contains(&b'\\');
            self.ceiling.cached(if is_long { CacheTime::Long } else { CacheTime::Short });
        }
        Ok(())
    }

    /// Takes the marks of a value whose text has been taken, so many levels down.
    fn marks(&mut self, cursor: &mut Cursor<'_>, levels: usize) -> Result<(), Fault> {
        match cursor.kind()? {
            Kind::Array if levels > 0 => {
                let mut items = cursor.array()?;
                while cursor.next_item(&mut items)? {
                    self.marks(cursor, levels - 1)?;
                }
                Ok(())
            }
            Kind::Object if levels > 0 => {
                let mut members = cursor.object()?;
                while let Some(key) = cursor.next_member(&mut members)? {
                    match &*key.decode() {
                        b"cache_control" => self.mark(cursor)?,
                        _ => self.marks(cursor, levels - 1)?,
                    }
                }
                Ok(())
            }
            _ => cursor.skip(),
        }
    }

    /// Takes the parts of a message's content: only their text counts as text, for an image's base64 is no prompt of that
    /// length.
    pub(super) fn parts(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let mut items = cursor.array()?;
        while cursor.next_item(&mut items)? {
            if cursor.kind()? != Kind::Object {
                self.text(cursor)?;
                continue;
            }
            let mut members = cursor.object()?;
            while let Some(key) = cursor.next_member(&mut members)? {
                match &*key.decode() {
                    kind @ (b"image_url" | b"input_audio" | b"file" | b"video_url" | b"audio_url") => {
                        self.attachments += 1;
                        self.attachment(kind, cursor)?;
                    }
                    b"cache_control" => self.mark(cursor)?,
                    b"type" => cursor.skip()?,
                    _ => self.text(cursor)?,
                }
            }
        }
        Ok(())
    }

    /// Takes an image, a sound or a file, in whichever of its forms.
    fn attachment(&mut self, part: &[u8], cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let mut found = Found { part, address: None, is_low: false, is_wave: false };
        match cursor.kind()? {
            Kind::String => found.address = Some(cursor.string()?.raw()),
            Kind::Object => {
                let mut members = cursor.object()?;
                while let Some(key) = cursor.next_member(&mut members)? {
                    found.member(&key.decode(), cursor)?;
                }
            }
            _ => cursor.skip()?,
        }
        self.ceiling.attachment(found.attachment());
        Ok(())
    }
}

/// What is found of an attachment.
struct Found<'a> {
    /// The part's type.
    part: &'a [u8],
    /// Where it is, or what it holds.
    address: Option<&'a [u8]>,
    is_low: bool,
    is_wave: bool,
}

impl<'a> Found<'a> {
    fn member<'b: 'a>(&mut self, key: &[u8], cursor: &mut Cursor<'b>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::String {
            return cursor.skip();
        }
        let value = cursor.string()?;
        match key {
            b"url" | b"data" | b"file_data" => self.address = Some(value.raw()),
            b"detail" => self.is_low = value.raw() == b"low",
            b"format" => self.is_wave = value.raw() == b"wav",
            _ => {}
        }
        Ok(())
    }

    fn attachment(&self) -> Attachment {
        let image = Attachment::Image { is_low: self.is_low };
        let Some(address) = self.address else { return Attachment::Named };
        let bytes = address.len() as u64;
        let holds = |kind: &[u8]| address.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind));
        // What it is, it says itself, whatever part it stands in: providers go by that too.
        if holds(b"data:") {
            return match () {
                () if holds(b"data:image") => image,
                () if holds(b"data:audio") => Attachment::Sound { bytes, is_wave: holds(b"data:audio/wav") },
                () => Attachment::File { bytes },
            };
        }
        match self.part {
            b"image_url" => image,
            b"input_audio" => Attachment::Sound { bytes, is_wave: self.is_wave },
            b"file" if !holds(b"http") => Attachment::File { bytes },
            _ => Attachment::Named,
        }
    }
}
