//! What a delta or a message says, whichever of the vendors' fields it says it in.

use std::borrow::Cow;

use crate::relay::json::{Cursor, Fault, Kind};

/// A member that is passed on as it stands: the inside of its key, and its value.
pub(super) type Other<'a> = (&'a [u8], &'a [u8]);

/// A delta or a message, read. Texts are the insides of JSON strings, with their escapes; an empty one is none.
#[derive(Debug, Default)]
pub(super) struct Said<'a> {
    /// What is said.
    pub(super) content: Cow<'a, [u8]>,
    /// What was thought: `reasoning_content`, or what others call it (OpenRouter and Groq: `reasoning`), or the thinking
    /// parts of a content that is a list (Mistral), or else the text of `reasoning_details`.
    pub(super) reasoning: Cow<'a, [u8]>,
    /// A refusal in so many words.
    pub(super) refusal: &'a [u8],
    /// The array, unless it is empty.
    pub(super) tool_calls: Option<&'a [u8]>,
    /// All else that is not null. `reasoning` and `reasoning_details` stay, for the signatures in them must come back.
    pub(super) others: Vec<Other<'a>>,
}

impl<'a> Said<'a> {
    /// Takes the value; what is no object says nothing.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut said = Self::default();
        if cursor.kind()? != Kind::Object {
            return cursor.skip().map(|()| said);
        }
        let mut thoughts = Thoughts::default();
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            let kind = cursor.kind()?;
            match (key.raw(), kind) {
                (b"role", _) | (_, Kind::Null) => cursor.skip()?,
                (b"content", Kind::String) => said.content = Cow::Borrowed(cursor.string()?.raw()),
                (b"content", Kind::Array) => {
                    let (content, thinking) = parts(cursor)?;
                    said.content = Cow::Owned(content);
                    thoughts.parts = thinking;
                }
                (b"reasoning_content", Kind::String) => thoughts.own = cursor.string()?.raw(),
                (b"reasoning", Kind::String) => {
                    let raw = cursor.raw()?;
                    thoughts.alias = &raw[1..raw.len() - 1];
                    if !thoughts.alias.is_empty() {
                        said.others.push((key.raw(), raw));
                    }
                }
                (b"reasoning_details", Kind::Array) => {
                    let raw = cursor.raw()?;
                    if raw.len() > 2 {
                        said.others.push((key.raw(), raw));
                        thoughts.details = raw;
                    }
                }
                (b"refusal", Kind::String) => said.refusal = cursor.string()?.raw(),
                (b"tool_calls", Kind::Array) => said.tool_calls = Some(cursor.raw()?).filter(|raw| raw.len() > 2),
                _ => said.others.push((key.raw(), cursor.raw()?)),
            }
        }
        said.reasoning = thoughts.best()?;
        Ok(said)
    }

    /// Whether there is any text or call in it.
    pub(super) fn has_words(&self) -> bool {
        !self.content.is_empty() || !self.reasoning.is_empty() || !self.refusal.is_empty() || self.tool_calls.is_some()
    }
}

/// The places where reasoning was found.
#[derive(Default)]
struct Thoughts<'a> {
    own: &'a [u8],
    alias: &'a [u8],
    parts: Vec<u8>,
    details: &'a [u8],
}

impl<'a> Thoughts<'a> {
    fn best(self) -> Result<Cow<'a, [u8]>, Fault> {
        if !self.own.is_empty() {
            return Ok(Cow::Borrowed(self.own));
        }
        if !self.alias.is_empty() {
            return Ok(Cow::Borrowed(self.alias));
        }
        if !self.parts.is_empty() || self.details.is_empty() {
            return Ok(Cow::Owned(self.parts));
        }
        let mut texts = Vec::new();
        push_texts(&mut Cursor::new(self.details), &[b"text", b"summary"], &mut texts)?;
        Ok(Cow::Owned(texts))
    }
}

/// A content that is a list: what is said in it, and what is thought.
fn parts(cursor: &mut Cursor<'_>) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let (mut content, mut thinking) = (Vec::new(), Vec::new());
    let mut items = cursor.array()?;
    while cursor.next_item(&mut items)? {
        if cursor.kind()? != Kind::Object {
            cursor.skip()?;
            continue;
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match (key.raw(), cursor.kind()?) {
                (b"text", Kind::String) => content.extend_from_slice(cursor.string()?.raw()),
                (b"thinking", Kind::String) => thinking.extend_from_slice(cursor.string()?.raw()),
                (b"thinking", Kind::Array) => push_texts(cursor, &[b"text"], &mut thinking)?,
                _ => cursor.skip()?,
            }
        }
    }
    Ok((content, thinking))
}

/// Takes an array of objects, and appends the strings under these keys.
fn push_texts(cursor: &mut Cursor<'_>, keys: &[&[u8]], texts: &mut Vec<u8>) -> Result<(), Fault> {
    let mut items = cursor.array()?;
    while cursor.next_item(&mut items)? {
        if cursor.kind()? != Kind::Object {
            cursor.skip()?;
            continue;
        }
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            if keys.contains(&key.raw()) && cursor.kind()? == Kind::String {
                texts.extend_from_slice(cursor.string()?.raw());
            } else {
                cursor.skip()?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> (String, String, usize) {
        let said = Said::read(&mut Cursor::new(json.as_bytes())).unwrap();
        let text = |text: &[u8]| String::from_utf8(text.to_vec()).unwrap();
        (text(&said.content), text(&said.reasoning), said.others.len())
    }

    #[test]
    fn reasoning_is_found_under_each_of_its_names() {
        for (json, content, reasoning, others) in [
            (r#"{"content":"a\n","reasoning_content":"b"}"#, r"a\n", "b", 0),
            (r#"{"content":null,"reasoning":"b","channel":"analysis"}"#, "", "b", 2),
            (r#"{"reasoning":"b","reasoning_content":"c","reasoning_details":[{"text":"d"}]}"#, "", "c", 2),
            (r#"{"reasoning":null,"reasoning_details":[{"text":"d"},{"summary":"e"},{"data":"f"},1]}"#, "", "de", 1),
            (
                r#"{"content":[{"type":"thinking","thinking":[{"type":"text","text":"x"}]},{"type":"text","text":"y"}]}"#,
                "y",
                "x",
                0,
            ),
            (r#"{"content":[{"type":"thinking","thinking":"x"},1,{"type":"reference"}]}"#, "", "x", 0),
            (r#"{"content":"","reasoning":"","reasoning_details":[],"tool_calls":[],"role":null,"x":null}"#, "", "", 0),
            (r#"null"#, "", "", 0),
        ] {
            assert_eq!(read(json), (content.to_owned(), reasoning.to_owned(), others), "{json}");
        }
    }
}
