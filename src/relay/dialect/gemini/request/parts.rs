//! Parts of a message: text, and images, sounds and files by their bytes or by where they are.
//!
//! Deliberately absent: fetching what an address points to. Gemini does that itself, for public addresses.

use std::borrow::Cow;

use super::read::{given, invalid, members, members_of, missing, string, unsupported};
use crate::relay::json::{Cursor, RawStr, write_string};
use crate::relay::refusal::Refusal;

/// A part, and what of it Gemini gets.
#[derive(Debug)]
pub(super) enum Part<'a> {
    Text(RawStr<'a>),
    /// Bytes, as base64.
    Inline {
        mime: Cow<'static, str>,
        data: Cow<'a, [u8]>,
    },
    /// An address.
    File {
        mime: &'static str,
        address: RawStr<'a>,
    },
}

/// Writes a part of text, with the escapes that the client chose.
pub(super) fn write_text(out: &mut Vec<u8>, text: RawStr<'_>) {
    out.extend_from_slice(b"{\"text\":\"");
    out.extend_from_slice(text.raw());
    out.extend_from_slice(b"\"}");
}

impl<'a> Part<'a> {
    /// Takes the part that the cursor stands before.
    pub(super) fn read(cursor: &mut Cursor<'a>, param: &str) -> Result<Self, Refusal> {
        let (mut kind, mut text, mut content) = (None, None, None);
        members_of(cursor, param, &mut |key, value| {
            match key {
                b"type" => kind = Some(string(value, &format!("{param}.type"))?.decode()),
                b"text" | b"refusal" => text = given(Some(value)),
                b"image_url" | b"input_audio" | b"file" => content = given(Some(value)),
                _ => {}
            }
            Ok(())
        })?;
        let Some(kind) = kind else { return Err(missing(&format!("{param}.type"))) };
        let inside = |name: &str| format!("{param}.{name}");
        let content = |name: &str| content.ok_or_else(|| missing(&inside(name)));
        match &*kind {
            b"text" | b"refusal" => {
                let name = inside(&String::from_utf8_lossy(&kind));
                Ok(Self::Text(string(text.ok_or_else(|| missing(&name))?, &name)?))
            }
            b"image_url" => Self::image(content("image_url")?, &inside("image_url")),
            b"input_audio" => Self::audio(content("input_audio")?, &inside("input_audio")),
            b"file" => Self::file(content("file")?, &inside("file")),
            _ => Err(unsupported(&inside("type"), "parts of this type")),
        }
    }

    /// Whether it is text that says nothing.
    pub(super) fn is_empty_text(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }

    /// Writes it.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        match self {
            Self::Text(text) => write_text(out, *text),
            Self::Inline { mime, data } => {
                out.extend_from_slice(b"{\"inlineData\":{\"mimeType\":\"");
                out.extend_from_slice(mime.as_bytes());
                out.extend_from_slice(b"\",\"data\":");
                match data {
                    // It stood in a string without escapes, and so it can again.
                    Cow::Borrowed(data) => {
                        out.push(b'"');
                        out.extend_from_slice(data);
                        out.push(b'"');
                    }
                    Cow::Owned(data) => write_string(out, &String::from_utf8_lossy(data)),
                }
                out.extend_from_slice(b"}}");
            }
            Self::File { mime, address } => {
                out.extend_from_slice(b"{\"fileData\":{\"mimeType\":\"");
                out.extend_from_slice(mime.as_bytes());
                out.extend_from_slice(b"\",\"fileUri\":\"");
                out.extend_from_slice(address.raw());
                out.extend_from_slice(b"\"}}");
            }
        }
        Ok(())
    }

    fn image(value: &'a [u8], param: &str) -> Result<Self, Refusal> {
        let mut url = None;
        let param = format!("{param}.url");
        members(value, param.trim_end_matches(".url"), |key, value| {
            if key == b"url" {
                url = Some(string(value, &param)?);
            }
            Ok(())
        })?;
        Self::by_address(url.ok_or_else(|| missing(&param))?, "image/jpeg", &param)
    }

    fn audio(value: &'a [u8], param: &str) -> Result<Self, Refusal> {
        let (mut data, mut format) = (None, None);
        members(value, param, |key, value| {
            match key {
                b"data" => data = Some(string(value, &format!("{param}.data"))?),
                b"format" => format = Some(string(value, &format!("{param}.format"))?.decode()),
                _ => {}
            }
            Ok(())
        })?;
        let data = data.ok_or_else(|| missing(&format!("{param}.data")))?.decode();
        let mime = match format.as_deref() {
            Some(b"wav") => "audio/wav",
            Some(b"mp3") => "audio/mp3",
            Some(b"flac") => "audio/flac",
            Some(b"ogg") => "audio/ogg",
            Some(b"aac") => "audio/aac",
            Some(b"aiff") => "audio/aiff",
            _ => {
                let param = format!("{param}.format");
                return Err(invalid(&*param, format!("Invalid '{param}': expected 'wav' or 'mp3'.")));
            }
        };
        Ok(Self::Inline { mime: mime.into(), data })
    }

    fn file(value: &'a [u8], param: &str) -> Result<Self, Refusal> {
        let (mut data, mut is_id) = (None, false);
        members(value, param, |key, value| {
            match key {
                b"file_data" if value != b"null" => data = Some(string(value, &format!("{param}.file_data"))?),
                b"file_id" => is_id = value != b"null",
                _ => {}
            }
            Ok(())
        })?;
        match data {
            Some(data) => Self::by_address(data, "application/pdf", &format!("{param}.file_data")),
            None if is_id => Err(unsupported(&format!("{param}.file_id"), "files by id; send 'file_data'")),
            None => Err(missing(&format!("{param}.file_data"))),
        }
    }

    /// What a `data:` address holds, or where another one points.
    fn by_address(address: RawStr<'a>, mime_default: &'static str, param: &str) -> Result<Self, Refusal> {
        let text = address.decode();
        let scheme = text.split(|&byte| byte == b':').next().unwrap_or_default().to_ascii_lowercase();
        match &scheme[..] {
            b"data" => {
                let comma = memchr::memchr(b',', &text).map(|comma| (mime(&text[5..comma]), comma + 1));
                let Some((Some(mime), from)) = comma else {
                    let message =
                        format!("Invalid '{param}': expected 'data:', a media type, ';base64,' and the bytes.");
                    return Err(invalid(param, message));
                };
                let data = match text {
                    Cow::Borrowed(text) => Cow::Borrowed(&text[from..]),
                    Cow::Owned(mut text) => Cow::Owned(text.split_off(from)),
                };
                Ok(Self::Inline { mime, data })
            }
            b"http" | b"https" | b"gs" => Ok(Self::File { mime: mime_by_name(&text).unwrap_or(mime_default), address }),
            _ => Err(invalid(param, format!("Invalid '{param}': expected a 'data:' or an 'https:' address."))),
        }
    }
}

/// The media type in a `data:` address's head, which must say that base64 follows.
fn mime(head: &[u8]) -> Option<Cow<'static, str>> {
    let mut fields = head.split(|&byte| byte == b';');
    let mime = fields.next()?.to_ascii_lowercase();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/.+-_".contains(byte);
    if !fields.any(|field| field.eq_ignore_ascii_case(b"base64")) || !mime.contains(&b'/') || !mime.iter().all(is_plain)
    {
        return None;
    }
    Some(match &mime[..] {
        // A name that there is not, for one that there is.
        b"image/jpg" => "image/jpeg".into(),
        _ => String::from_utf8(mime).ok()?.into(),
    })
}

/// The media type that an address's last letters promise.
fn mime_by_name(address: &[u8]) -> Option<&'static str> {
    let path = address.split(|byte| matches!(byte, b'?' | b'#')).next()?;
    let name = path.rsplit(|&byte| byte == b'/').next()?;
    let extension = name.rsplit(|&byte| byte == b'.').next()?.to_ascii_lowercase();
    Some(match &extension[..] {
        b"jpg" | b"jpeg" => "image/jpeg",
        b"png" => "image/png",
        b"webp" => "image/webp",
        b"gif" => "image/gif",
        b"heic" => "image/heic",
        b"heif" => "image/heif",
        b"pdf" => "application/pdf",
        b"txt" => "text/plain",
        b"mp4" => "video/mp4",
        b"webm" => "video/webm",
        b"mp3" => "audio/mp3",
        b"wav" => "audio/wav",
        _ => return None,
    })
}
