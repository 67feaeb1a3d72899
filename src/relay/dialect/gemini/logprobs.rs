//! How sure the model was of its words, from Gemini's lists to OpenAI's.

use crate::relay::json::{Cursor, Fault, Kind};

/// A token and how sure the model was of it, both as they came.
struct Sure<'a> {
    token: &'a [u8],
    logprob: &'a [u8],
}

/// Translates a `logprobsResult`; `None` if nothing can be made of it.
pub(super) fn translate(result: &[u8]) -> Option<Vec<u8>> {
    let (chosen, tops) = read(result).ok()?;
    if chosen.is_empty() {
        return None;
    }
    let mut out = b"{\"content\":[".to_vec();
    for (index, sure) in chosen.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        sure.write(&mut out);
        out.extend_from_slice(b",\"top_logprobs\":[");
        for (index, top) in tops.get(index).into_iter().flatten().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            top.write(&mut out);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"],\"refusal\":null}");
    Some(out)
}

type Lists<'a> = (Vec<Sure<'a>>, Vec<Vec<Sure<'a>>>);

fn read(result: &[u8]) -> Result<Lists<'_>, Fault> {
    let mut cursor = Cursor::new(result);
    let (mut chosen, mut tops) = (Vec::new(), Vec::new());
    let mut members = cursor.object()?;
    while let Some(key) = cursor.next_member(&mut members)? {
        match key.raw() {
            b"chosenCandidates" => chosen = Sure::list(&mut cursor)?,
            b"topCandidates" if cursor.kind()? == Kind::Array => {
                let mut items = cursor.array()?;
                while cursor.next_item(&mut items)? {
                    let mut list = Vec::new();
                    let mut members = cursor.object()?;
                    while let Some(key) = cursor.next_member(&mut members)? {
                        if key.raw() == b"candidates" {
                            list = Sure::list(&mut cursor)?;
                        } else {
                            cursor.skip()?;
                        }
                    }
                    tops.push(list);
                }
            }
            _ => cursor.skip()?,
        }
    }
    Ok((chosen, tops))
}

impl<'a> Sure<'a> {
    fn list(cursor: &mut Cursor<'a>) -> Result<Vec<Self>, Fault> {
        let mut list = Vec::new();
        if cursor.kind()? != Kind::Array {
            return cursor.skip().map(|()| list);
        }
        let mut items = cursor.array()?;
        while cursor.next_item(&mut items)? {
            let mut sure = Self { token: b"", logprob: b"0" };
            let mut members = cursor.object()?;
            while let Some(key) = cursor.next_member(&mut members)? {
                let kind = cursor.kind()?;
                match key.raw() {
                    b"token" if kind == Kind::String => sure.token = cursor.string()?.raw(),
                    b"logProbability" if kind == Kind::Number => sure.logprob = cursor.raw()?,
                    _ => cursor.skip()?,
                }
            }
            list.push(sure);
        }
        Ok(list)
    }

    /// Writes it, but for the closing bracket.
    fn write(&self, out: &mut Vec<u8>) {
        for piece in [&b"{\"token\":\""[..], self.token, b"\",\"logprob\":", self.logprob, b",\"bytes\":null"] {
            out.extend_from_slice(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn lists_are_put_together_token_by_token() {
        let result = br#"{"topCandidates":[{"candidates":[{"token":"a","tokenId":1,"logProbability":-0.10},
            {"token":"b","logProbability":-2}]}],"chosenCandidates":[{"token":"a","logProbability":-0.10},{"token":"\""}]}"#;
        let translated: Value = serde_json::from_slice(&translate(result).unwrap()).unwrap();
        let a = json!({"token": "a", "logprob": -0.1, "bytes": null});
        assert_eq!(translated["content"][0]["token"], "a");
        assert_eq!(translated["content"][0]["top_logprobs"][0], a);
        assert_eq!(translated["content"][0]["top_logprobs"][1]["logprob"], -2);
        assert_eq!(translated["content"][1], json!({"token": "\"", "logprob": 0, "bytes": null, "top_logprobs": []}));
        assert_eq!(translate(b"{}"), None);
        assert_eq!(translate(b"{\"chosenCandidates\":[1]}"), None);
    }
}
