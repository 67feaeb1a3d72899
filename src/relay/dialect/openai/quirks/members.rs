//! Which members of an object are to go, and which bytes go with them.

use std::ops::Range;

use crate::relay::json::{Cursor, Fault, Kind, RawStr};

/// A member of an object, where it stands in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its place among the object's members, from 0.
    pub(super) ordinal: usize,
    /// Behind the value or the bracket before it.
    pub(super) before: usize,
    /// Its value.
    pub(super) value: Range<usize>,
    /// What its value is.
    pub(super) kind: Kind,
}

impl Member {
    /// Takes the value that the cursor is before.
    pub(super) fn take(cursor: &mut Cursor<'_>, ordinal: usize, before: usize) -> Result<Self, Fault> {
        let kind = cursor.kind()?;
        let value = cursor.span()?;
        Ok(Self { ordinal, before, value, kind })
    }

    /// Where its key stands, with the quotes.
    pub(super) fn key(&self, text: &[u8]) -> Range<usize> {
        // Between the value before and the key there is white space and at most a comma.
        let quote = |from: usize| memchr::memchr(b'"', &text[from..]).map_or(self.value.start, |at| from + at);
        let start = quote(self.before);
        // The keys that are asked for here are plain; `\u`-escaped ones end at the last quote before the colon all the same.
        let end =
            memchr::memrchr(b'"', &text[start + 1..self.value.start]).map_or(self.value.start, |at| start + 2 + at);
        start..end
    }
}

/// Walks an object's members: `visit` is given each key, the member's ordinal and where the text before it ends, and must
/// take the value.
pub(super) fn walk<'a>(
    cursor: &mut Cursor<'a>,
    mut visit: impl FnMut(RawStr<'a>, usize, usize, &mut Cursor<'a>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut members = cursor.object()?;
    let mut ordinal = 0;
    loop {
        let before = cursor.at();
        let Some(key) = cursor.next_member(&mut members)? else { return Ok(()) };
        visit(key, ordinal, before, cursor)?;
        ordinal += 1;
    }
}

/// The spans to cut so that an object loses these members, which are in its order, and stays an object: with each goes one
/// comma, the one before it, or the one behind where nothing stays before it.
pub(super) fn cuts(text: &[u8], members: &[Member]) -> Vec<Range<usize>> {
    let leading = members.iter().enumerate().take_while(|(at, member)| member.ordinal == *at).count();
    let (leading, rest) = members.split_at(leading);
    let mut cuts = Vec::with_capacity(members.len());
    if let (Some(first), Some(last)) = (leading.first(), leading.last()) {
        let behind = &text[last.value.end..];
        let space = behind.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let comma = usize::from(behind.get(space) == Some(&b','));
        cuts.push(first.before..last.value.end + comma * (space + 1));
    }
    cuts.extend(rest.iter().map(|member| member.before..member.value.end));
    cuts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn without(text: &str, gone: impl Fn(&str) -> bool) -> String {
        let mut found = Vec::new();
        let mut cursor = Cursor::new(text.as_bytes());
        walk(&mut cursor, |key, ordinal, before, cursor| {
            let member = Member::take(cursor, ordinal, before)?;
            let key = String::from_utf8(key.decode().into_owned()).unwrap();
            assert_eq!(serde_json::from_str::<String>(&text[member.key(text.as_bytes())]).unwrap(), key);
            if gone(&key) {
                found.push(member);
            }
            Ok(())
        })
        .unwrap();
        let mut left = text.to_owned();
        for cut in cuts(text.as_bytes(), &found).into_iter().rev() {
            left.replace_range(cut, "");
        }
        left
    }

    #[test]
    fn a_comma_goes_with_each_member() {
        let text = r#"{ "a":1 , "b" : {"a":2},"\u0063":3 , "a":4 }"#;
        for (gone, left) in [
            ("a", r#"{ "b" : {"a":2},"\u0063":3 }"#),
            ("b", r#"{ "a":1,"\u0063":3 , "a":4 }"#),
            ("ab", r#"{"\u0063":3 }"#),
            ("abc", "{ }"),
            ("", text),
        ] {
            assert_eq!(without(text, |key| gone.contains(key)), left, "{gone}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_was_not_cut(keys in prop::collection::vec("[abc]", 0..8), gone in "[abc]{0,2}", space in "[ \n]?") {
            let members: Vec<String> = keys.iter().map(|key| format!("\"{key}\"{space}:{space}[1]{space}")).collect();
            let text = format!("{{{space}{}}}", members.join(&format!(",{space}")));
            let left: Value = serde_json::from_str(&without(&text, |key| gone.contains(key))).unwrap();
            let left: Vec<&str> = left.as_object().unwrap().keys().map(String::as_str).collect();
            let mut expected: Vec<&str> = keys.iter().map(String::as_str).filter(|key| !gone.contains(key)).collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(left, expected);
        }
    }
}
