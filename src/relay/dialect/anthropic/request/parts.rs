//! What a message is made of: text, images, files.

use std::borrow::Cow;

use super::cache::{CacheMark, read_mark, write_mark};
use super::data_uri::DataUri;
use super::refuse::Path;
use crate::relay::dialect::anthropic::text::{is_blank, push_string};
use crate::relay::json::{Cursor, Kind, RawStr, write_string};
use crate::relay::refusal::Refusal;

/// Who says it, for not everyone may say everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    /// The operator: text.
    System,
    /// The user, or a tool's result: text, images and files.
    User,
    /// The model: text, and what it refused to say.
    Assistant,
}

/// A part of a message, as Anthropic can be told it.
#[derive(Debug)]
pub(super) struct Part<'a> {
    content: Content<'a>,
    pub(super) mark: CacheMark<'a>,
}

#[derive(Debug)]
enum Content<'a> {
    Text(RawStr<'a>),
    /// An image at an address.
    ImageUrl(Cow<'a, str>),
    /// Bytes as base64, which begin at `data_at` of the URI.
    Base64 {
        kind: &'static str,
        media_type: &'static str,
        uri: Cow<'a, str>,
        data_at: usize,
        title: Option<RawStr<'a>>,
    },
    /// A document of text.
    PlainText {
        text: String,
        title: Option<RawStr<'a>>,
    },
}

/// A message's `content`: a string, or parts. What is blank is left out: Anthropic refuses it. A part is given together with
/// its place.
pub(super) fn read_content<'a>(
    path: &Path<'_>,
    content: &'a [u8],
    speaker: Speaker,
    mut take: impl FnMut(&Path<'_>, Part<'a>) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let cursor = &mut Cursor::new(content);
    match cursor.kind()? {
        Kind::String => match Part::text(cursor.string()?, None) {
            Some(part) => take(path, part),
            None => Ok(()),
        },
        Kind::Array => path.items(cursor, |path, cursor| match Part::read(&path, cursor, speaker)? {
            Some(part) => take(&path, part),
            None => Ok(()),
        }),
        kind => Err(path.wrong_type("a string or an array of parts", kind)),
    }
}

impl<'a> Part<'a> {
    /// Text; `None` if there is nothing to read in it.
    pub(super) fn text(text: RawStr<'a>, mark: CacheMark<'a>) -> Option<Self> {
        (!is_blank(text)).then_some(Self { content: Content::Text(text), mark })
    }

    fn read(path: &Path<'_>, cursor: &mut Cursor<'a>, speaker: Speaker) -> Result<Option<Self>, Refusal> {
        if cursor.kind()? == Kind::String {
            // Not OpenAI's, but what is meant is clear.
            return Ok(Self::text(cursor.string()?, None));
        }
        let (mut kind, mut mark) = (None, None);
        let (mut text, mut refusal, mut image, mut file) = (None, None, None, None);
        path.members(cursor, |key, cursor| {
            match key {
                b"type" => kind = Some(path.field("type").string(cursor)?),
                b"text" => text = Some(cursor.raw()?),
                b"refusal" => refusal = Some(cursor.raw()?),
                b"image_url" => image = Some(cursor.raw()?),
                b"file" => file = Some(cursor.raw()?),
                b"cache_control" => mark = read_mark(path, cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        let kind = kind.ok_or_else(|| path.field("type").missing())?.decode();
        let string = |name, value: Option<&'a [u8]>| {
            let path = path.field(name);
            path.string(&mut Cursor::new(value.ok_or_else(|| path.missing())?))
        };
        let content = match (&*kind, speaker) {
            (b"text", _) => return Ok(Self::text(string("text", text)?, mark)),
            (b"refusal", Speaker::Assistant) => return Ok(Self::text(string("refusal", refusal)?, mark)),
            (b"image_url", Speaker::User) => {
                let path = path.field("image_url");
                read_image(&path, image.ok_or_else(|| path.missing())?)?
            }
            (b"file", Speaker::User) => {
                let path = path.field("file");
                read_file(&path, file.ok_or_else(|| path.missing())?)?
            }
            _ => {
                let kind = String::from_utf8_lossy(&kind);
                let kind: String = kind.chars().take(40).collect();
                let message = format!("This model's provider does not take parts of type '{kind}' here.");
                return Err(path.field("type").invalid(message));
            }
        };
        Ok(Some(Self { content, mark }))
    }

    /// Appends it as a block. Of text, tells where in `out` its inside stands.
    pub(super) fn write(&self, out: &mut Vec<u8>, mark: CacheMark<'_>) -> Option<std::ops::Range<usize>> {
        let mut text_span = None;
        match &self.content {
            Content::Text(text) => {
                out.extend_from_slice(b"{\"type\":\"text\",\"text\":");
                let start = out.len() + 1;
                push_string(out, *text);
                text_span = Some(start..out.len() - 1);
            }
            Content::ImageUrl(url) => {
                out.extend_from_slice(b"{\"type\":\"image\",\"source\":{\"type\":\"url\",\"url\":");
                write_string(out, url);
                out.push(b'}');
            }
            Content::Base64 { kind, media_type, uri, data_at, title } => {
                out.extend_from_slice(
                    format!("{{\"type\":\"{kind}\",\"source\":{{\"type\":\"base64\",\"media_type\":\"{media_type}\",\"data\":")
                        .as_bytes(),
                );
                write_string(out, &uri[*data_at..]);
                out.push(b'}');
                write_title(out, *title);
            }
            Content::PlainText { text, title } => {
                let source =
                    b"{\"type\":\"document\",\"source\":{\"type\":\"text\",\"media_type\":\"text/plain\",\"data\":";
                out.extend_from_slice(source);
                write_string(out, text);
                out.push(b'}');
                write_title(out, *title);
            }
        }
        write_mark(out, mark);
        out.push(b'}');
        text_span
    }
}

fn write_title(out: &mut Vec<u8>, title: Option<RawStr<'_>>) {
    if let Some(title) = title {
        out.extend_from_slice(b",\"title\":");
        push_string(out, title);
    }
}

/// `image_url`: an object with a `url`, or the URL alone. `detail` has no equal.
fn read_image<'a>(path: &Path<'_>, json: &'a [u8]) -> Result<Content<'a>, Refusal> {
    let cursor = &mut Cursor::new(json);
    let mut url = None;
    if cursor.kind()? == Kind::String {
        url = Some(cursor.string()?);
    } else {
        path.members(cursor, |key, cursor| {
            match key {
                b"url" => url = Some(path.field("url").string(cursor)?),
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
    }
    let path = path.field("url");
    let url = to_text(url.ok_or_else(|| path.missing())?.decode());
    let is_web = |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if is_web("https://") || is_web("http://") {
        return Ok(Content::ImageUrl(url));
    }
    match DataUri::parse(&url) {
        Some(uri) => {
            let (media_type, data_at) = image_of(&path, &url, &uri)?;
            Ok(Content::Base64 { kind: "image", media_type, uri: url, data_at, title: None })
        }
        None => Err(path.invalid("Invalid image: expected an http(s) URL or a data URI with base64.")),
    }
}

/// The type of an image, and where its data begin.
fn image_of(path: &Path<'_>, url: &str, uri: &DataUri<'_>) -> Result<(&'static str, usize), Refusal> {
    if !uri.is_base64 || !uri.is_of("image") {
        return Err(path.invalid("Invalid image: expected the data URI of an image, with base64."));
    }
    match uri.image_type() {
        Some(media_type) => Ok((media_type, url.len() - uri.data.len())),
        None => Err(path.invalid("Invalid image: its bytes are not of a JPEG, PNG, GIF or WebP image.")),
    }
}

/// `file`: a PDF, a text or an image in a data URI.
fn read_file<'a>(path: &Path<'_>, json: &'a [u8]) -> Result<Content<'a>, Refusal> {
    let (mut data, mut title, mut has_id) = (None, None, false);
    path.members(&mut Cursor::new(json), |key, cursor| {
        match key {
            b"file_data" => data = path.field("file_data").optional_string(cursor)?,
            b"filename" => title = path.field("filename").optional_string(cursor)?.filter(|title| !is_blank(*title)),
            b"file_id" => has_id = path.field("file_id").optional_string(cursor)?.is_some(),
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    let Some(data) = data else {
        let message = "This model's provider does not know uploaded files: send 'file_data'.";
        return Err(if has_id { path.field("file_id").invalid(message) } else { path.field("file_data").missing() });
    };
    let path = path.field("file_data");
    let url = to_text(data.decode());
    let Some(uri) = DataUri::parse(&url) else {
        return Err(path.invalid("Invalid file: expected a data URI."));
    };
    if uri.is_of("image") {
        let (media_type, data_at) = image_of(&path, &url, &uri)?;
        return Ok(Content::Base64 { kind: "image", media_type, uri: url, data_at, title: None });
    }
    if uri.media_type.eq_ignore_ascii_case("application/pdf") && uri.is_base64 {
        let data_at = url.len() - uri.data.len();
        return Ok(Content::Base64 { kind: "document", media_type: "application/pdf", uri: url, data_at, title });
    }
    if uri.is_of("text") || uri.media_type.eq_ignore_ascii_case("application/json") {
        let text = uri.text().filter(|text| !text.trim().is_empty());
        let text = text.ok_or_else(|| path.invalid("Invalid file: expected text in UTF-8, with base64 or without."))?;
        return Ok(Content::PlainText { text, title });
    }
    Err(path.invalid("Invalid file: this model's provider takes PDFs, texts and images."))
}

fn to_text(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Cow::Owned(text),
            Err(error) => Cow::Owned(String::from_utf8_lossy(error.as_bytes()).into_owned()),
        },
    }
}
