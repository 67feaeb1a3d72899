//! The request: read once, and sent on with as few bytes changed as can be.
//!
//! What the relay does not read it does not touch: key order, unknown fields, the digits of numbers and the escapes of
//! strings arrive at the provider as the client sent them. Whether the rest makes sense is for the provider to say.

use std::ops::Range;

use bytes::Bytes;

use super::fields::{Fields, StreamOptions};
use crate::relay::json::write_string;

use crate::relay::meter::{ATTACHMENT_TOKENS, PromptCeiling, PromptHead};
use crate::relay::refusal::{Cause, Refusal};

/// Bytes of text that are taken for a token where a quick guess must do. English and code are near it.
const TOKEN_BYTES: u64 = 4;
/// What a message costs besides its text.
const MESSAGE_TOKENS: u64 = 4;

/// A chat request whose form has been checked.
#[derive(Debug)]
pub struct ChatRequest {
    body: Bytes,
    fields: Fields,
    /// The most tokens that each answer may have by what is held for it.
    output_limit: Option<u64>,
}

impl ChatRequest {
    /// Reads a body in one walk. What it refuses, each with a message that says where the mistake is: no body, bytes that
    /// are not UTF-8, text that is not JSON or nested too deep, no object, and fields that are missing, of the wrong type,
    /// out of range or there twice, of those that the relay reads.
    pub fn parse(body: Bytes) -> Result<Self, Refusal> {
        if body.trim_ascii().is_empty() {
            return Err(Refusal::new(Cause::InvalidJson, "The request has no body; expected a JSON object."));
        }
        if let Err(error) = str::from_utf8(&body) {
            let at = error.valid_up_to();
            return Err(Refusal::new(Cause::InvalidJson, format!("The body is not valid UTF-8 at byte {at}.")));
        }
        let fields = Fields::read(&body)?;
        Ok(Self { body, fields, output_limit: None })
    }

    /// The body as the client sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The model that the client named.
    pub fn model(&self) -> &str {
        self.fields.model.as_ref().map_or("", |(model, _)| model)
    }

    /// Whether the answer is to be a stream of events.
    pub fn stream(&self) -> bool {
        matches!(self.fields.stream, Some((true, _)))
    }

    /// Whether the client asked to see the stream's usage.
    pub fn wants_usage(&self) -> bool {
        matches!(self.fields.stream_options, Some(StreamOptions::IncludeUsage(true, _)))
    }

    /// The most tokens that the client lets each answer have, if it says so.
    pub fn output_tokens_asked(&self) -> Option<u64> {
        self.fields.max_completion_tokens.or(self.fields.max_tokens)
    }

    /// Lowers how long each answer may become, thinking included, whatever was asked for.
    pub fn limit_output(&mut self, tokens: u64) {
        self.output_limit = Some(tokens);
    }

    /// What [`Self::limit_output`] has lowered it to.
    pub fn output_limit(&self) -> Option<u64> {
        self.output_limit
    }

    /// The word of `reasoning_effort`, as sent; empty where it is no string.
    pub(in crate::relay::dialect) fn effort(&self) -> Option<&[u8]> {
        let raw = &self.body[self.fields.effort.clone()?];
        Some(raw.strip_prefix(b"\"").and_then(|raw| raw.strip_suffix(b"\"")).unwrap_or_default())
    }

    /// The most tokens that the client lets the model think, by the vendors' own fields: `enable_thinking` and
    /// `thinking_budget`.
    pub(in crate::relay::dialect) fn thinking_asked(&self) -> Option<u64> {
        if self.fields.is_thoughtless { Some(0) } else { self.fields.thinking_budget }
    }

    /// How many answers are asked for: `n`.
    pub fn choices(&self) -> u64 {
        self.fields.choices.unwrap_or(1)
    }

    /// Bytes of text in messages, tools and schemas, as sent.
    pub fn text_bytes(&self) -> u64 {
        self.fields.shape.text_bytes
    }

    /// Images, sounds and files in the messages.
    pub fn attachments(&self) -> u64 {
        self.fields.shape.attachments
    }

    /// A quick guess at the prompt's tokens, for what is reserved of a window before the provider has counted. Neither high nor
    /// low; what is held of money is [`Self::ceiling`].
    pub fn input_tokens_estimate(&self) -> u64 {
        let shape = &self.fields.shape;
        shape.text_bytes.div_ceil(TOKEN_BYTES) + shape.messages * MESSAGE_TOKENS + shape.attachments * ATTACHMENT_TOKENS
    }

    /// What the prompt's tokens are bounded from, for what must be held.
    pub fn ceiling(&self) -> &PromptCeiling {
        &self.fields.shape.ceiling
    }

    /// The raw `messages` array.
    pub fn messages(&self) -> &[u8] {
        self.fields.messages.clone().map_or(&[], |span| &self.body[span])
    }

    /// What the prompt's tokens are counted from if the provider should report none. Bounded, but a copy: take it when the
    /// body is let go of, not before. Tools and schemas are not in it, but counted as part of the prompt.
    pub fn prompt_head(&self) -> PromptHead {
        let shape = &self.fields.shape;
        PromptHead::new(self.messages(), shape.text_bytes, shape.messages, shape.attachments)
    }

    /// The body to send to a provider that calls the model so: the same bytes, but for the model's name and, in a stream,
    /// for `stream_options.include_usage`, which is always asked for. The very same body if nothing changes.
    pub fn for_upstream(&self, model: &str) -> Bytes {
        let parts = self.upstream_parts(model);
        match &parts[..] {
            [whole] => whole.clone(),
            parts => parts.concat().into(),
        }
    }

    /// [`Self::for_upstream`] in parts to send one after the other: slices of the body, and what changes between them.
    /// Nothing of the body is copied.
    pub fn upstream_parts(&self, model: &str) -> Vec<Bytes> {
        let mut edits: Vec<_> = self.model_edit(model).into_iter().chain(self.usage_edit()).collect();
        edits.sort_unstable_by_key(|(span, _)| span.start);
        let mut parts = Vec::with_capacity(2 * edits.len() + 1);
        let mut from = 0;
        for (span, text) in edits {
            parts.push(self.body.slice(from..span.start));
            parts.push(text);
            from = span.end;
        }
        parts.push(self.body.slice(from..));
        parts
    }

    /// What must change for the provider to know the model.
    pub(super) fn model_edit(&self, model: &str) -> Option<(Range<usize>, Bytes)> {
        let (_, span) = self.fields.model.as_ref().filter(|(asked, _)| **asked != *model)?;
        let mut text = Vec::with_capacity(model.len() + 2);
        write_string(&mut text, model);
        Some((span.clone(), text.into()))
    }

    /// Where the raw `messages` array stands in the body.
    pub(super) fn messages_span(&self) -> Range<usize> {
        self.fields.messages.clone().unwrap_or_default()
    }

    /// What must change for a stream to report its usage.
    pub(super) fn usage_edit(&self) -> Option<(Range<usize>, Bytes)> {
        let Some((true, stream_end)) = self.fields.stream else { return None };
        let (span, text): (_, &'static str) = match &self.fields.stream_options {
            None => (stream_end..stream_end, r#","stream_options":{"include_usage":true}"#),
            Some(StreamOptions::Null(span)) => (span.clone(), r#"{"include_usage":true}"#),
            Some(StreamOptions::Silent { begin, empty: true }) => (begin + 1..begin + 1, r#""include_usage":true"#),
            Some(StreamOptions::Silent { begin, empty: false }) => (begin + 1..begin + 1, r#""include_usage":true,"#),
            Some(StreamOptions::IncludeUsage(false, span)) => (span.clone(), "true"),
            Some(StreamOptions::IncludeUsage(true, _)) => return None,
        };
        Some((span, Bytes::from_static(text.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::relay::meter::{CacheTime, ImageTokens};

    fn parse(body: &str) -> Result<ChatRequest, Refusal> {
        ChatRequest::parse(Bytes::copy_from_slice(body.as_bytes()))
    }

    fn refused(body: impl AsRef<[u8]>) -> Refusal {
        ChatRequest::parse(Bytes::copy_from_slice(body.as_ref())).expect_err("not refused")
    }

    /// A good request but for these members, which stand first.
    fn with(members: &str) -> String {
        format!(r#"{{{members},"model":"m","messages":[{{"role":"user","content":"Hi"}}]}}"#)
    }

    #[test]
    fn each_mistake_in_the_text_has_its_message() {
        for (body, message) in [
            (&b""[..], "The request has no body; expected a JSON object."),
            (b" \n", "The request has no body; expected a JSON object."),
            (b"{\"model\":\"\xFF\"}", "The body is not valid UTF-8 at byte 10."),
            (b"[]", "The body must be a JSON object, not an array."),
            (b"{\"model\":\"m\"", "The body is not valid JSON: the text ends inside a value, at byte 12."),
            (b"{'model':1}", "The body is not valid JSON: expected a key at byte 1."),
            (b"{\"model\":\"m\"} x", "The body is not valid JSON: expected the end of the text at byte 14."),
        ] {
            let refusal = refused(body);
            assert_eq!((refusal.cause, &*refusal.message, refusal.param), (Cause::InvalidJson, message, None));
        }
        let deep = with(&format!("\"tools\":{}{}", "[".repeat(100_000), "]".repeat(100_000)));
        assert_eq!(refused(deep).message, "The body is not valid JSON: nested deeper than 128 levels at byte 136.");
    }

    #[test]
    fn each_mistake_in_a_field_names_it() {
        let messages = |messages: &str| format!(r#"{{"model":"m","messages":{messages}}}"#);
        for (body, cause, param) in [
            (r#"{"messages":[{"role":"user"}]}"#.to_owned(), Cause::MissingField, "model"),
            (r#"{"model":null}"#.to_owned(), Cause::InvalidValue, "model"),
            (r#"{"model":7}"#.to_owned(), Cause::InvalidValue, "model"),
            (r#"{"model":""}"#.to_owned(), Cause::InvalidValue, "model"),
            (r#"{"model":"m"}"#.to_owned(), Cause::MissingField, "messages"),
            (messages("null"), Cause::InvalidValue, "messages"),
            (messages(r#""Hi""#), Cause::InvalidValue, "messages"),
            (messages("[]"), Cause::InvalidValue, "messages"),
            (messages(r#"[{"role":"user"},"Hi"]"#), Cause::InvalidValue, "messages[1]"),
            (messages(r#"[{"content":"Hi"}]"#), Cause::MissingField, "messages[0].role"),
            (messages(r#"[{"role":"user"},{"role":1}]"#), Cause::InvalidValue, "messages[1].role"),
            (with(r#""stream":1"#), Cause::InvalidValue, "stream"),
            (with(r#""stream":true,"stream_options":[]"#), Cause::InvalidValue, "stream_options"),
            (with(r#""stream_options":{"include_usage":true}"#), Cause::InvalidValue, "stream_options"),
            (
                with(r#""stream":true,"stream_options":{"include_usage":1}"#),
                Cause::InvalidValue,
                "stream_options.include_usage",
            ),
            (with(r#""max_tokens":0"#), Cause::InvalidValue, "max_tokens"),
            (with(r#""max_tokens":1.5"#), Cause::InvalidValue, "max_tokens"),
            (with(r#""max_completion_tokens":-1"#), Cause::InvalidValue, "max_completion_tokens"),
            (with(r#""n":"2""#), Cause::InvalidValue, "n"),
            (with(r#""\u006dodel":"other""#), Cause::InvalidValue, "model"),
            (with(r#""stream":null,"stream":true"#), Cause::InvalidValue, "stream"),
        ] {
            let refusal = refused(&body);
            assert_eq!((refusal.cause, refusal.param.as_deref()), (cause, Some(param)), "{body}: {}", refusal.message);
        }
    }

    #[test]
    fn it_tells_what_was_asked() {
        let request = parse(
            r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[
                {"type":"text","text":"What?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],
                "n":2,"max_tokens":99,"max_completion_tokens":100000000000000000000000,"stream":true,
                "stream_options":{"include_usage":true},"model":"a\/b\u00e9"}"#,
        )
        .unwrap();
        assert_eq!(request.model(), "a/bé");
        assert!(request.stream() && request.wants_usage());
        assert_eq!((request.choices(), request.output_tokens_asked()), (2, Some(u64::MAX)));
        assert_eq!((request.text_bytes(), request.attachments()), (18, 1));
        assert_eq!(request.input_tokens_estimate(), 5 + 2 * 4 + 765);
        assert!(request.messages().starts_with(b"[{\"role\":\"system\"") && request.messages().ends_with(b"}]}]"));
        let quiet = parse(&with(r#""n":null,"max_tokens":null,"stream":null,"stream_options":null"#)).unwrap();
        assert!(!quiet.stream() && !quiet.wants_usage());
        assert_eq!((quiet.choices(), quiet.output_tokens_asked()), (1, None));
    }

    #[test]
    fn the_prompts_ceiling_is_made_of_all_that_the_model_may_read() {
        const IMAGES: ImageTokens = ImageTokens { full: 1_000_000, low: 1_000 };
        let ceiling = |body: &str| parse(body).unwrap().ceiling().tokens(IMAGES, u64::MAX);
        let of = |part: &str| {
            let body = |parts: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{parts}]}}]}}"#);
            ceiling(&body(part)) - ceiling(&body(""))
        };
        let image =
            |uri: &str, more: &str| of(&format!(r#"{{"type":"image_url","image_url":{{"url":"{uri}"{more}}}}}"#));
        let base64 = "A".repeat(400_000);
        assert_eq!(image(&format!("data:image\\/png;base64,{base64}"), ""), 1_000_000, "not by its length");
        assert_eq!(image("https://x.test/a.png", r#","detail":"high""#), 1_000_000);
        assert_eq!(image("https://x.test/a.png", r#","detail":"low""#), 1_000);
        let pdf = format!("data:application/pdf;base64,{base64}");
        assert_eq!(image(&pdf, ""), 100_007, "a file, whatever it stands in");
        assert_eq!(of(&format!(r#"{{"type":"file","file":{{"filename":"a","file_data":"{pdf}"}}}}"#)), 100_007);
        assert_eq!(of(r#"{"type":"file","file":{"file_id":"file-1"}}"#), 32_768);
        let sound = |format: &str| {
            of(&format!(r#"{{"type":"input_audio","input_audio":{{"data":"{base64}","format":"{format}"}}}}"#))
        };
        assert_eq!((sound("wav"), sound("mp3")), (625, 2_500));

        let plain = ceiling(&with(r#""user":"u""#));
        assert!(ceiling(&with(r#""tools":[]"#)) >= plain + 500, "what makers add for tools");
        assert!(ceiling(&with(r#""response_format":{"type":"json_schema"}"#)) >= plain + 200);
        assert!(ceiling(&with(r#""documents":["a text that some servers put in front of the prompt"]"#)) > plain + 10);
        assert!(ceiling(&with(r#""extra_body":{"google":{"cached_content":"cachedContents/1"}}"#)) > plain + 30_000);
    }

    #[test]
    fn cache_marks_are_seen_wherever_they_may_stand() {
        let cache = |body: &str| parse(body).unwrap().ceiling().cache;
        let message = |inner: &str| format!(r#"{{"model":"m","messages":[{{"role":"user",{inner}}}]}}"#);
        const SHORT: &str = r#""cache_control":{"type":"ephemeral"}"#;
        const LONG: &str = r#""cache_control":{"type":"ephemeral","ttl":"1h"}"#;
        assert_eq!(cache(&message(r#""content":"cache_control 1h""#)), None);
        assert_eq!(cache(&message(&format!(r#""content":"a",{SHORT}"#))), Some(CacheTime::Short));
        assert_eq!(
            cache(&message(&format!(r#""content":[{{"type":"text","text":"a",{LONG}}}]"#))),
            Some(CacheTime::Long)
        );
        assert_eq!(cache(&with(&format!(r#""tools":[{{"type":"function",{LONG}}}]"#))), Some(CacheTime::Long));
        assert_eq!(
            cache(&with(r#""tools":[{"function":{"c\u0061che_control":{"type":"ephemeral"}}}]"#)),
            Some(CacheTime::Short)
        );
        assert_eq!(cache(&with(r#""tools":[{"function":{"description":"cache_control, \u00e9"}}]"#)), None);
        assert_eq!(cache(&with(SHORT)), Some(CacheTime::Short));
        assert_eq!(cache(&with(r#""cache_control":null"#)), None);
    }

    #[test]
    fn only_what_must_change_changes() {
        let messages = r#""messages" : [ {"role":"user","content":"\u00e9\/é"} ] "#;
        for (before, after) in [
            (r#"{"model":"m", M}"#, r#"{"model":"up/\"x\"", M}"#),
            (r#"{M,"x":12345678901234567890123,"model":"m"}"#, r#"{M,"x":12345678901234567890123,"model":"up/\"x\""}"#),
            (r#"{"model":"m","stream":false,M}"#, r#"{"model":"up/\"x\"","stream":false,M}"#),
            (
                r#"{"stream" : true ,M,"model":"m"}"#,
                r#"{"stream" : true,"stream_options":{"include_usage":true} ,M,"model":"up/\"x\""}"#,
            ),
            (
                r#"{"stream":true,"stream_options":null,M,"model":"m"}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true},M,"model":"up/\"x\""}"#,
            ),
            (
                r#"{"stream_options":{ },M,"model":"m","stream":true}"#,
                r#"{"stream_options":{"include_usage":true },M,"model":"up/\"x\"","stream":true}"#,
            ),
            (
                r#"{"model":"m","stream_options":{"a":1},M,"stream":true}"#,
                r#"{"model":"up/\"x\"","stream_options":{"include_usage":true,"a":1},M,"stream":true}"#,
            ),
            (
                r#"{"model":"up\/\u0022x\"","stream_options":{"a":1,"include_usage":false },M,"stream":true}"#,
                r#"{"model":"up\/\u0022x\"","stream_options":{"a":1,"include_usage":true },M,"stream":true}"#,
            ),
        ] {
            let request = parse(&before.replace('M', messages)).unwrap();
            let sent = request.for_upstream("up/\"x\"");
            assert_eq!(String::from_utf8_lossy(&sent), after.replace('M', messages));
        }
    }

    #[test]
    fn the_very_same_body_is_sent_where_nothing_changes() {
        let request = parse(&with(r#""stream":true,"stream_options":{"include_usage":true}"#)).unwrap();
        assert_eq!(request.for_upstream("m").as_ptr(), request.body().as_ptr());
    }

    /// A request with fields around those that are read, in any order.
    fn requests() -> impl Strategy<Value = Vec<(String, String)>> {
        let unknown = r#"(x|y|tools|seed|logit_bias|user|\\u006eame|é)"#.prop_map(|key| format!("{key}_"));
        let value = prop::sample::select(vec![
            "1",
            "12345678901234567890123",
            "1.50e+2",
            "null",
            "true",
            r#""a\u00e9\/\n""#,
            "[]",
            "{}",
            r#"[ {"model":"no"} , 1 ]"#,
            r#"{"stream":true,"b":[{"c":"}\""}]}"#,
        ]);
        let options = prop::sample::select(vec![
            None,
            Some("null"),
            Some("{}"),
            Some(r#"{"a":1}"#),
            Some(r#"{"include_usage":true}"#),
        ]);
        let extra = prop::collection::vec((unknown, value.prop_map(str::to_owned)), 0..6);
        (extra, prop::option::of(any::<bool>()), options).prop_map(|(mut members, stream, options)| {
            members.push(("model".into(), r#""m\u00e9""#.into()));
            members.push(("messages".into(), r#"[{"role":"user","content":"H\ti","z":1e5}]"#.into()));
            members.extend(stream.map(|stream| ("stream".to_owned(), stream.to_string())));
            members.extend(
                options
                    .filter(|_| stream == Some(true))
                    .map(|options| ("stream_options".to_owned(), options.to_owned())),
            );
            members
        })
    }

    proptest! {
        #[test]
        fn a_splice_changes_its_fields_and_no_other_byte(members in requests().prop_shuffle(), space in "[ \n\t]{0,2}") {
            let written: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\"{space}:{space}{value}")).collect();
            let body = format!("{{{space}{}{space}}}", written.join(&format!("{space},{space}")));
            let request = parse(&body).unwrap();
            let sent = request.for_upstream("new \"name\"");
            prop_assert_eq!(request.upstream_parts("new \"name\"").concat(), sent.to_vec());

            let mut expected: Value = serde_json::from_str(&body).unwrap();
            expected["model"] = json!("new \"name\"");
            if request.stream() {
                if !expected["stream_options"].is_object() {
                    expected["stream_options"] = json!({});
                }
                expected["stream_options"]["include_usage"] = json!(true);
            }
            prop_assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), expected);

            // Every member that is not one of those stands in it, letter by letter and in its place.
            let sent = String::from_utf8(sent.to_vec()).unwrap();
            let mut from = 0;
            for ((key, _), text) in members.iter().zip(&written) {
                if key != "model" && key != "stream_options" {
                    let found = sent[from..].find(text.as_str());
                    prop_assert!(found.is_some(), "{} not behind byte {} of {}", text, from, sent);
                    from += found.unwrap() + text.len();
                }
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read_without_panic(body: Vec<u8>) {
            if let Ok(request) = ChatRequest::parse(body.into()) {
                request.for_upstream("x");
            }
        }

        #[test]
        fn a_body_cut_or_changed_anywhere_does_not_panic(at in 0usize..200, byte: u8) {
            let body = with(r#""stream":true,"stream_options":{"include_usage":false},"n":2"#).into_bytes();
            let at = at.min(body.len() - 1);
            prop_assert!(ChatRequest::parse(Bytes::copy_from_slice(&body[..at])).is_err());
            let mut changed = body;
            changed[at] = byte;
            if let Ok(request) = ChatRequest::parse(changed.into()) {
                prop_assert!(serde_json::from_slice::<Value>(&request.for_upstream("x")).is_ok());
            }
        }
    }
}
