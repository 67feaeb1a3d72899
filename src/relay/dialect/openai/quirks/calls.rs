//! Tool calls in pieces, put under dense indexes.

use std::borrow::Cow;

use super::said::Other;
use super::writer::ObjectWriter;
use crate::relay::json::{Cursor, Fault, Kind, write_string};
use crate::relay::meter::SampledText;

/// The most calls of one answer. OpenAI takes 128 tools; nobody calls each of them four times at once.
pub(super) const CALLS_MAX: usize = 512;
/// How much of an id or a name is remembered, to know it again.
const NAME_BYTES_MAX: usize = 256;

/// An answer's tool calls so far.
#[derive(Debug, Default)]
pub(super) struct Calls(Vec<Call>);

#[derive(Debug)]
struct Call {
    /// The index that the vendor gave it.
    given: Option<u64>,
    id: Box<[u8]>,
    name: Box<[u8]>,
    has_arguments: bool,
}

/// A call's delta, or a whole call, as sent.
#[derive(Debug, Default)]
struct Item<'a> {
    index: Option<u64>,
    id: &'a [u8],
    kind: &'a [u8],
    name: &'a [u8],
    /// The inside of a string.
    arguments: Cow<'a, [u8]>,
    others: Vec<Other<'a>>,
    function_others: Vec<Other<'a>>,
}

/// More calls than [`CALLS_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Calls {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes an array of deltas anew, as OpenAI sends them: id, type and name once for each call and at its beginning,
    /// then nothing but arguments. `mint` is what the ids begin with of calls that have none. Nothing is written where
    /// nothing is said.
    pub(super) fn write_deltas(
        &mut self,
        array: &[u8],
        mint: &str,
        object: &mut ObjectWriter<'_>,
        sample: &mut SampledText,
    ) -> Result<Result<(), TooMany>, Fault> {
        let mut written = Vec::new();
        let too_many = each(array, |item| self.write_delta(item, mint, &mut written, sample))?;
        if !written.is_empty() {
            let out = object.key(b"tool_calls");
            out.push(b'[');
            out.extend_from_slice(&written);
            out.push(b']');
        }
        Ok(too_many)
    }

    /// Writes an array of whole calls anew: no index, but an id and a type for each.
    pub(super) fn write_whole(
        &mut self,
        array: &[u8],
        mint: &str,
        object: &mut ObjectWriter<'_>,
        sample: &mut SampledText,
    ) -> Result<Result<(), TooMany>, Fault> {
        let out = object.key(b"tool_calls");
        out.push(b'[');
        let too_many = each(array, |item| {
            if !self.is_empty() {
                out.push(b',');
            }
            let slot = self.open(&item, mint)?;
            sample.push(item.name);
            sample.push(&item.arguments);
            let mut call = ObjectWriter::open(out);
            let arguments = if item.arguments.is_empty() { b"{}" } else { &*item.arguments };
            self.0[slot].write_head(&item, arguments, &mut call);
            call.close();
            Ok(())
        })?;
        out.push(b']');
        Ok(too_many)
    }

    /// Writes the deltas that give each call without arguments the ones that it must have, `{}`.
    pub(super) fn write_missing_arguments(&self, object: &mut ObjectWriter<'_>) {
        let missing = self.0.iter().enumerate().filter(|(_, call)| !call.has_arguments);
        let deltas: Vec<String> =
            missing.map(|(index, _)| format!(r#"{{"index":{index},"function":{{"arguments":"{{}}"}}}}"#)).collect();
        if !deltas.is_empty() {
            object.raw(b"tool_calls", format!("[{}]", deltas.join(",")).as_bytes());
        }
    }

    fn write_delta(
        &mut self,
        item: Item<'_>,
        mint: &str,
        out: &mut Vec<u8>,
        sample: &mut SampledText,
    ) -> Result<(), TooMany> {
        let (slot, is_new) = match self.slot(&item) {
            Some(slot) => (slot, false),
            None => (self.open(&item, mint)?, true),
        };
        let call = &mut self.0[slot];
        let names_now = call.name.is_empty() && !item.name.is_empty();
        if !is_new && item.arguments.is_empty() && !names_now {
            return Ok(());
        }
        if is_new || names_now {
            sample.push(item.name);
            call.name = short(item.name);
        }
        sample.push(&item.arguments);
        call.has_arguments |= !item.arguments.is_empty();
        if !out.is_empty() {
            out.push(b',');
        }
        let mut object = ObjectWriter::open(out);
        object.number(b"index", slot as u64);
        if is_new {
            call.write_head(&item, &item.arguments, &mut object);
        } else {
            let mut function = ObjectWriter::open(object.key(b"function"));
            if names_now {
                function.string(b"name", item.name);
            }
            function.string(b"arguments", &item.arguments);
            function.close();
            object.others(&item.others);
        }
        object.close();
        Ok(())
    }

    /// Which of the calls that have begun goes on in this delta.
    fn slot(&self, item: &Item<'_>) -> Option<usize> {
        let Some(index) = item.index else {
            return match (item.id, item.name) {
                (b"", b"") => self.0.len().checked_sub(1),
                // Mistral and others leave the index out: each name begins a call.
                (b"", _) => None,
                (id, _) => self.0.iter().rposition(|call| call.id == short(id)),
            };
        };
        let slot = self.0.iter().rposition(|call| call.given == Some(index))?;
        let call = &self.0[slot];
        let is_other = match (item.id, item.name) {
            (_, b"") => false,
            // Some number every call 0 (dynamo#4723); another id or another name tells that it is another call.
            (b"", name) => call.has_arguments && call.name != short(name),
            (id, _) => !call.id.is_empty() && call.id != short(id),
        };
        (!is_other).then_some(slot)
    }

    fn open(&mut self, item: &Item<'_>, mint: &str) -> Result<usize, TooMany> {
        let slot = self.0.len();
        if slot == CALLS_MAX {
            return Err(TooMany);
        }
        let id = if item.id.is_empty() { format!("{mint}{slot}").into_bytes().into() } else { short(item.id) };
        let has_arguments = !item.arguments.is_empty();
        self.0.push(Call { given: item.index, id, name: short(item.name), has_arguments });
        Ok(slot)
    }
}

impl Call {
    /// What only a call's beginning has, and its first arguments.
    fn write_head(&self, item: &Item<'_>, arguments: &[u8], object: &mut ObjectWriter<'_>) {
        object.string(b"id", if item.id.is_empty() { &self.id } else { item.id });
        object.string(b"type", if item.kind.is_empty() { b"function" } else { item.kind });
        let mut function = ObjectWriter::open(object.key(b"function"));
        function.string(b"name", item.name);
        function.string(b"arguments", arguments);
        function.others(&item.function_others);
        function.close();
        object.others(&item.others);
    }
}

fn short(name: &[u8]) -> Box<[u8]> {
    name[..name.len().min(NAME_BYTES_MAX)].into()
}

/// Reads the items of an array one by one.
fn each<'a>(
    array: &'a [u8],
    mut take: impl FnMut(Item<'a>) -> Result<(), TooMany>,
) -> Result<Result<(), TooMany>, Fault> {
    let mut cursor = Cursor::new(array);
    let mut items = cursor.array()?;
    while cursor.next_item(&mut items)? {
        if cursor.kind()? != Kind::Object {
            cursor.skip()?;
        } else if let Err(too_many) = take(Item::read(&mut cursor)?) {
            return Ok(Err(too_many));
        }
    }
    Ok(Ok(()))
}

impl<'a> Item<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut item = Self::default();
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match (key.raw(), cursor.kind()?) {
                (b"index", _) => {
                    item.index = str::from_utf8(cursor.raw()?).ok().and_then(|digits| digits.parse().ok());
                }
                (b"id", Kind::String) => item.id = cursor.string()?.raw(),
                (b"type", Kind::String) => item.kind = cursor.string()?.raw(),
                (b"function", Kind::Object) => item.read_function(cursor)?,
                (b"id" | b"type" | b"function", _) | (_, Kind::Null) => cursor.skip()?,
                (key, _) => item.others.push((key, cursor.raw()?)),
            }
        }
        Ok(item)
    }

    fn read_function(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Fault> {
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            match (key.raw(), cursor.kind()?) {
                (b"name", Kind::String) => self.name = cursor.string()?.raw(),
                (b"arguments", Kind::String) => self.arguments = Cow::Borrowed(cursor.string()?.raw()),
                // Some give the arguments as they mean them, not as text.
                (b"arguments", Kind::Object | Kind::Array) => {
                    let mut text = Vec::new();
                    write_string(&mut text, &String::from_utf8_lossy(cursor.raw()?));
                    self.arguments = Cow::Owned(text[1..text.len() - 1].to_vec());
                }
                (b"name" | b"arguments", _) | (_, Kind::Null) => cursor.skip()?,
                (key, _) => self.function_others.push((key, cursor.raw()?)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written of each of these arrays in turn.
    fn written(arrays: &[&str]) -> Vec<String> {
        let mut calls = Calls::default();
        let mut write = |array: &&str| {
            let mut out = Vec::new();
            let mut object = ObjectWriter::open(&mut out);
            calls.write_deltas(array.as_bytes(), "call_x_", &mut object, &mut SampledText::new()).unwrap().unwrap();
            object.close();
            String::from_utf8(out).unwrap()
        };
        arrays.iter().map(&mut write).collect()
    }

    fn wrapped(array: &str) -> String {
        format!(r#"{{"tool_calls":{array}}}"#)
    }

    #[test]
    fn a_continuation_is_nothing_but_arguments() {
        let first = r#"[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]"#;
        let next = r#"[{"index":0,"function":{"arguments":"{}"}}]"#;
        for continuation in [
            r#"[{"index":0,"id":null,"type":null,"function":{"name":null,"arguments":"{}"}}]"#,
            r#"[{"index":0,"id":"","type":"function","function":{"name":"","arguments":"{}"}}]"#,
            r#"[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}]"#,
            r#"[{"id":"a","function":{"arguments":"{}"}}]"#,
            r#"[{"function":{"arguments":"{}"}}]"#,
            r#"[{"index":0,"id":"other","function":{"arguments":"{}"}}]"#,
        ] {
            let empty = r#"[{"index":0,"function":{"arguments":""}}]"#;
            let expected = [wrapped(first), wrapped(next), "{}".to_owned()];
            assert_eq!(written(&[first, continuation, empty]), expected, "{continuation}");
        }
        let late = [r#"[{"index":0,"id":"a"}]"#, r#"[{"index":0,"function":{"name":"f"}}]"#];
        assert_eq!(written(&late)[1], wrapped(r#"[{"index":0,"function":{"name":"f","arguments":""}}]"#));
    }

    #[test]
    fn a_call_without_arguments_gets_some_at_the_end() {
        let mut calls = Calls::default();
        let array = br#"[{"id":"a","function":{"name":"f"}},{"id":"b","function":{"name":"g","arguments":"1"}}]"#;
        let (mut ignored, mut out) = (Vec::new(), Vec::new());
        let mut object = ObjectWriter::open(&mut ignored);
        calls.write_deltas(array, "", &mut object, &mut SampledText::new()).unwrap().unwrap();
        let mut object = ObjectWriter::open(&mut out);
        calls.write_missing_arguments(&mut object);
        object.close();
        let expected = wrapped(r#"[{"index":0,"function":{"arguments":"{}"}}]"#);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn indexes_are_dense_whatever_was_sent() {
        let call = |index: &str, id: &str, name: &str| {
            format!(r#"{{{index}"id":{id},"type":"function","function":{{"name":"{name}","arguments":"1"}}}}"#)
        };
        let whole =
            |index: usize, id: &str, name: &str| call(&format!("\"index\":{index},"), &format!("\"{id}\""), name);
        let expected = format!("[{},{}]", whole(0, "a", "f"), whole(1, "b", "g"));
        for (first, second) in [
            (call("", "\"a\"", "f"), call("", "\"b\"", "g")),
            (call("\"index\":0,", "\"a\"", "f"), call("\"index\":0,", "\"b\"", "g")),
            (call("\"index\":1,", "\"a\"", "f"), call("\"index\":2,", "\"b\"", "g")),
            (call("\"index\":null,", "\"a\"", "f"), call("\"index\":\"x\",", "\"b\"", "g")),
        ] {
            assert_eq!(written(&[&format!("[{first},{second}]")]), [wrapped(&expected)], "{first}");
        }
        let minted = format!("[{},{}]", whole(0, "call_x_0", "f"), whole(1, "call_x_1", "g"));
        for index in ["", "\"index\":0,"] {
            let array = format!("[{},{}]", call(index, "null", "f"), call(index, "\"\"", "g"));
            assert_eq!(written(&[&array]), [wrapped(&minted)]);
        }
    }

    #[test]
    fn arguments_that_are_no_text_become_text() {
        let array = r#"[{"function":{"name":"f","arguments":{"a":"b"}},"extra_content":{"s":1},"x":null}]"#;
        let expected = r#"[{"index":0,"id":"call_x_0","type":"function","function":{"name":"f","arguments":"{\"a\":\"b\"}"},"extra_content":{"s":1}}]"#;
        assert_eq!(written(&[array]), [wrapped(expected)]);
    }

    #[test]
    fn calls_are_bounded() {
        let mut calls = Calls::default();
        let array = format!("[{}{{}}]", r#"{"function":{"name":"f"}},"#.repeat(CALLS_MAX + 1));
        let mut out = Vec::new();
        let written =
            calls.write_deltas(array.as_bytes(), "", &mut ObjectWriter::open(&mut out), &mut SampledText::new());
        assert_eq!(written.unwrap(), Err(TooMany));
    }
}
