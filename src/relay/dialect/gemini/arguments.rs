//! Arguments that come in parts: each a place in the object and a piece of what stands there (Vertex AI).
//!
//! The object is put together here, for OpenAI's deltas are pieces of its text in their order, and parts may come in any.

use crate::relay::json::{Cursor, Fault, Kind, RawStr};

/// The most values that one call's arguments may have.
const VALUES_MAX: usize = 20_000;
/// The most bytes of them.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// The deepest place that is followed.
const DEPTH_MAX: usize = 64;

/// The arguments of a call that is still being made.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    root: Value,
    values: usize,
    bytes: usize,
}

/// A value that is being put together.
#[derive(Debug, Default)]
enum Value {
    /// Nothing has been said of it.
    #[default]
    Absent,
    Object(Vec<(Box<[u8]>, Value)>),
    Array(Vec<Value>),
    /// The inside of a JSON string, as it came.
    Text(Vec<u8>),
    /// Any other value's text.
    Plain(Box<[u8]>),
}

/// Why a part cannot be taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// More than is kept.
    Large,
    /// Not what a part is.
    Unreadable,
}

impl From<Fault> for Unfit {
    fn from(_: Fault) -> Self {
        Self::Unreadable
    }
}

/// A step from a value to one inside of it.
#[derive(Debug, PartialEq, Eq)]
enum Step<'p> {
    Name(&'p [u8]),
    Index(usize),
}

impl Arguments {
    /// Takes an array of parts.
    pub(super) fn take(&mut self, parts: &[u8]) -> Result<(), Unfit> {
        let mut cursor = Cursor::new(parts);
        let mut items = cursor.array()?;
        while cursor.next_item(&mut items)? {
            let mut path = None;
            let mut said = None;
            let mut members = cursor.object()?;
            while let Some(key) = cursor.next_member(&mut members)? {
                let kind = cursor.kind()?;
                match key.raw() {
                    b"jsonPath" if kind == Kind::String => path = Some(cursor.string()?.decode()),
                    b"stringValue" if kind == Kind::String => said = Some(Said::Text(cursor.string()?)),
                    b"numberValue" | b"boolValue" => said = Some(Said::Plain(cursor.raw()?)),
                    // Its value is an enumeration's name, or null.
                    b"nullValue" => {
                        cursor.skip()?;
                        said = Some(Said::Plain(b"null"));
                    }
                    _ => cursor.skip()?,
                }
            }
            if let (Some(path), Some(said)) = (path, said) {
                self.put(&path, said)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &[u8], said: Said<'_>) -> Result<(), Unfit> {
        let steps = steps(path).ok_or(Unfit::Unreadable)?;
        if steps.len() > DEPTH_MAX {
            return Err(Unfit::Large);
        }
        let mut place = &mut self.root;
        for step in steps {
            let before = self.values;
            place = place.step(&step, &mut self.values)?;
            if self.values > before {
                self.bytes += if let Step::Name(name) = step { name.len() } else { 0 };
            }
        }
        match said {
            Said::Text(piece) => {
                self.bytes += piece.raw().len();
                if self.bytes > BYTES_MAX {
                    return Err(Unfit::Large);
                }
                // A string goes on where its last piece ended.
                match place {
                    Value::Text(text) => text.extend_from_slice(piece.raw()),
                    _ => *place = Value::Text(piece.raw().to_vec()),
                }
            }
            Said::Plain(text) => {
                self.bytes += text.len();
                *place = Value::Plain(text.into());
            }
        }
        if self.bytes > BYTES_MAX { Err(Unfit::Large) } else { Ok(()) }
    }

    /// The text of the object, as far as it has come.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes + 8 * self.values + 2);
        match self.root {
            Value::Object(_) => self.root.write(&mut out),
            _ => out.extend_from_slice(b"{}"),
        }
        out
    }
}

/// What a part says.
enum Said<'a> {
    Text(RawStr<'a>),
    Plain(&'a [u8]),
}

impl Value {
    /// The value one step further; made if there was none. `values` counts those that are made.
    fn step(&mut self, step: &Step<'_>, values: &mut usize) -> Result<&mut Self, Unfit> {
        match (step, &mut *self) {
            (Step::Name(_), Self::Absent) => *self = Self::Object(Vec::new()),
            (Step::Index(_), Self::Absent) => *self = Self::Array(Vec::new()),
            _ => {}
        }
        match (step, self) {
            (Step::Name(name), Self::Object(members)) => {
                // Nearly always the last one.
                let at = members.iter().rposition(|(key, _)| **key == **name);
                let at = at.unwrap_or(members.len());
                if at == members.len() {
                    *values = counted(*values, 1)?;
                    members.push(((*name).into(), Self::Absent));
                }
                members.get_mut(at).map(|(_, value)| value).ok_or(Unfit::Unreadable)
            }
            (Step::Index(index), Self::Array(items)) => {
                if *index >= items.len() {
                    *values = counted(*values, index - items.len() + 1)?;
                    items.resize_with(index + 1, Self::default);
                }
                items.get_mut(*index).ok_or(Unfit::Unreadable)
            }
            _ => Err(Unfit::Unreadable),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Absent => out.extend_from_slice(b"null"),
            Self::Plain(text) => out.extend_from_slice(text),
            Self::Text(text) => {
                out.push(b'"');
                out.extend_from_slice(text);
                out.push(b'"');
            }
            Self::Object(members) => {
                out.push(b'{');
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    crate::relay::json::write_string(out, &String::from_utf8_lossy(key));
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
            Self::Array(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
        }
    }
}

/// So many values and some more, if that is not too many.
fn counted(values: usize, more: usize) -> Result<usize, Unfit> {
    values.checked_add(more).filter(|values| *values <= VALUES_MAX).ok_or(Unfit::Large)
}

/// The steps of a path (`$.a[0].b`, `$['a b']`); `None` if it is none.
fn steps(path: &[u8]) -> Option<Vec<Step<'_>>> {
    let mut rest = path.strip_prefix(b"$")?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (step, after) = if let Some(name) = rest.strip_prefix(b".") {
            let bytes = name.iter().position(|byte| matches!(byte, b'.' | b'[')).unwrap_or(name.len());
            (Step::Name(&name[..bytes]), &name[bytes..])
        } else {
            let inside = rest.strip_prefix(b"[")?;
            match inside.first()? {
                quote @ (b'\'' | b'"') => {
                    let name = &inside[1..];
                    let end = memchr::memmem::find(name, &[*quote, b']'])?;
                    (Step::Name(&name[..end]), &name[end + 2..])
                }
                _ => {
                    let end = memchr::memchr(b']', inside)?;
                    let index = str::from_utf8(&inside[..end]).ok()?.parse().ok()?;
                    (Step::Index(index), &inside[end + 1..])
                }
            }
        };
        steps.push(step);
        rest = after;
        if steps.len() > DEPTH_MAX {
            break;
        }
    }
    (!steps.is_empty()).then_some(steps)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(parts: &[&str]) -> String {
        let mut arguments = Arguments::default();
        for part in parts {
            arguments.take(part.as_bytes()).unwrap();
        }
        String::from_utf8(arguments.text()).unwrap()
    }

    #[test]
    fn parts_are_put_where_their_paths_say() {
        let parts = [
            r#"[{"jsonPath":"$.items[0].name","stringValue":"red \"","willContinue":true}]"#,
            r#"[{"jsonPath":"$.items[0].name","stringValue":"apple\n"}]"#,
            r#"[{"jsonPath":"$.items[0].price","numberValue":0.50},{"jsonPath":"$.items[1]['a.b']","boolValue":true}]"#,
            r#"[{"jsonPath":"$.items[0].none","nullValue":"NULL_VALUE"},{"jsonPath":"$[\"x\"]","numberValue":12345678901234567890123}]"#,
        ];
        assert_eq!(
            text(&parts),
            r#"{"items":[{"name":"red \"apple\n","price":0.50,"none":null},{"a.b":true}],"x":12345678901234567890123}"#
        );
        assert_eq!(text(&[]), "{}");
    }

    #[test]
    fn what_is_too_large_or_no_part_is_refused() {
        let take = |parts: &str| Arguments::default().take(parts.as_bytes());
        assert_eq!(take(r#"[{"jsonPath":"$.a[999999999999]","numberValue":1}]"#), Err(Unfit::Large));
        assert_eq!(
            take(&format!(r#"[{{"jsonPath":"${}","numberValue":1}}]"#, ".a".repeat(100_000))),
            Err(Unfit::Large)
        );
        for path in ["", "a", "$x", "$[a]", "$['a", "$[", "$"] {
            assert_eq!(
                take(&format!(r#"[{{"jsonPath":"{path}","numberValue":1}}]"#)),
                Err(Unfit::Unreadable),
                "{path}"
            );
        }
        assert_eq!(
            take(r#"[{"jsonPath":"$.a","numberValue":1},{"jsonPath":"$.a.b","numberValue":1}]"#),
            Err(Unfit::Unreadable)
        );
    }

    proptest! {
        #[test]
        fn any_parts_give_an_object_or_are_refused(parts in prop::collection::vec((r"\$([.][ab]|\[[0-9]\]|\['.'\]){0,4}", r#""[a-z]*"|1|-2e5"#), 0..20)) {
            let mut arguments = Arguments::default();
            for (path, value) in parts {
                let member = if value.starts_with('"') { "stringValue" } else { "numberValue" };
                let path = serde_json::to_string(&path).unwrap();
                let _ = arguments.take(format!(r#"[{{"jsonPath":{path},"{member}":{value}}}]"#).as_bytes());
            }
            prop_assert!(serde_json::from_slice::<serde_json::Map<_, _>>(&arguments.text()).is_ok());
        }
    }
}
