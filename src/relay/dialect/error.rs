//! What the client is told of a provider's error.
//!
//! Two kinds (CONTRACT §3): a fault of the request is the client's to mend and keeps the provider's words; everything else
//! is the operator's or the provider's trouble, another provider may be tried, and the client learns no more than which
//! kind of trouble it was.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;

use crate::relay::refusal::{Cause, Refusal};

/// The most bytes of an error's body that are read.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// The most characters of a provider's message that are passed on.
const MESSAGE_CHARS_MAX: usize = 2000;
/// The most characters of a body that is no JSON.
const TEXT_CHARS_MAX: usize = 300;

/// A provider's answer that is no success, and whose fault that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderError {
    /// The request's: to be answered with the status of this cause and this body. No other provider would like it better.
    Request {
        /// A cause of status 400.
        cause: Cause,
        /// OpenAI's error object, as JSON.
        body: Bytes,
    },
    /// The operator's or the provider's: another may be tried, and if none is left this is the answer.
    Provider(Refusal),
}

/// The event that ends a stream that has failed. No `[DONE]` follows it.
pub fn error_event(refusal: &Refusal) -> Bytes {
    [b"data: ", &refusal.to_json()[..], b"\n\n"].concat().into()
}

/// Reads a provider's answer of that status, of which at most 64 KiB of body matter.
pub fn map_error(status: u16, body: &[u8], retry_after_ms: Option<u64>) -> ProviderError {
    let report = Report::read(&body[..body.len().min(BODY_BYTES_MAX)]);
    let provider = |cause, message: Cow<'static, str>| {
        ProviderError::Provider(Refusal { retry_after_ms, ..Refusal::new(cause, message) })
    };
    match status {
        _ if report.is_moderation() => report.request_fault(Cause::InvalidValue, Some("content_filter")),
        // A balance that is used up, or a credential that is no good, under whatever status.
        _ if report.is_out_of_funds() => {
            provider(Cause::UpstreamAuth, "The provider refused the relay's account.".into())
        }
        401..=403 => provider(Cause::UpstreamAuth, "The provider refused the relay's credential.".into()),
        429 => provider(Cause::UpstreamRateLimited, "The provider is limiting the relay's requests.".into()),
        408 | 504 => provider(Cause::UpstreamTimeout, "The provider took too long.".into()),
        // Of an unknown model or path the request is innocent: the relay's own catalogue named them.
        404 if !report.is_shaped || report.code.as_deref() == Some("model_not_found") => {
            provider(Cause::UpstreamError, "The provider does not know what the relay asked it for.".into())
        }
        400 | 404 | 409 | 413 | 415 | 422 => report.request_fault(Cause::InvalidValue, None),
        status => provider(Cause::UpstreamError, format!("The provider failed (status {status}).").into()),
    }
}

/// A fault of the request, in the provider's words but for what would name the operator's account.
pub(super) fn request_fault(message: &str, param: Option<&str>, code: Option<&str>) -> ProviderError {
    let report = Report { message: message.to_owned(), param: param.map(str::to_owned), ..Report::default() };
    report.request_fault(Cause::InvalidValue, code)
}

/// What an error's body says, in whichever of the shapes that vendors use (WIRE §7).
#[derive(Debug, Default)]
struct Report {
    message: String,
    kind: Option<String>,
    param: Option<String>,
    code: Option<String>,
    /// It is an error object, not a page of HTML or the like.
    is_shaped: bool,
}

impl Report {
    fn read(body: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return Self { message: cut(&String::from_utf8_lossy(body), TEXT_CHARS_MAX), ..Self::default() };
        };
        // Google wraps its errors in an array.
        let value = value.get(0).unwrap_or(&value);
        let error = value.get("error").filter(|error| error.is_object()).unwrap_or(value);
        let detail = value.get("detail").or_else(|| error.get("detail"));
        let message = [value.get("error"), error.get("message"), detail, error.get("msg"), Some(value)]
            .into_iter()
            .flatten()
            .find_map(Value::as_str);
        let message = match (message, detail) {
            (Some(message), _) => cut(message, MESSAGE_CHARS_MAX),
            (None, Some(detail)) => cut(&detail.to_string(), MESSAGE_CHARS_MAX),
            (None, None) => String::new(),
        };
        Self {
            is_shaped: !message.is_empty(),
            message,
            kind: text(error.get("type")),
            param: text(error.get("param")),
            code: text(error.get("code")),
        }
    }

    /// The provider will not speak of what the request is about.
    fn is_moderation(&self) -> bool {
        matches!(self.code.as_deref(), Some("content_filter" | "data_inspection_failed" | "1301"))
            || self.message.contains("Content Exists Risk")
    }

    /// The operator's account with the provider is empty.
    fn is_out_of_funds(&self) -> bool {
        [&self.code, &self.kind].into_iter().flatten().any(|word| {
            matches!(word.as_str(), "insufficient_quota" | "exceeded_current_quota_error" | "1113" | "30001")
        })
    }

    fn request_fault(self, cause: Cause, code: Option<&str>) -> ProviderError {
        let message = match redact(&self.message) {
            message if message.is_empty() => "The provider refused the request and did not say why.".to_owned(),
            message => message,
        };
        let code = code.map(str::to_owned).or(self.code).or_else(|| {
            // Vendors that have no code for it still say it.
            let too_long = ["maximum context length", "context_length_exceeded", "prompt is too long"];
            too_long.iter().any(|words| message.contains(words)).then(|| "context_length_exceeded".to_owned())
        });
        let kind = self.kind.as_deref().unwrap_or(cause.kind());
        let body = serde_json::json!({"error": {"message": message, "type": kind, "param": self.param, "code": code}});
        ProviderError::Request { cause, body: body.to_string().into() }
    }
}

fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    text.trim().chars().take(chars_max).collect()
}

/// The message without words that name the operator's key, organisation or project.
fn redact(message: &str) -> String {
    let mut redacted = String::with_capacity(message.len());
    let is_part = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '*');
    let mut rest = message;
    while !rest.is_empty() {
        let word_bytes = rest.find(|character| !is_part(character)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_bytes);
        let is_secret = ["sk-", "org-", "proj_", "tp-", "gsk_", "AIza"]
            .iter()
            .any(|prefix| word.starts_with(prefix) && word.len() > prefix.len());
        redacted.push_str(if is_secret { "***" } else { word });
        let between = after.find(is_part).unwrap_or(after.len());
        redacted.push_str(&after[..between]);
        rest = &after[between..];
    }
    redacted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn request_fault(status: u16, body: &str) -> Value {
        match map_error(status, body.as_bytes(), None) {
            ProviderError::Request { cause, body } => {
                assert_eq!(cause.status(), 400);
                serde_json::from_slice::<Value>(&body).unwrap()["error"].take()
            }
            ProviderError::Provider(refusal) => panic!("not the request's fault: {refusal:?}"),
        }
    }

    fn cause(status: u16, body: &str) -> Cause {
        match map_error(status, body.as_bytes(), Some(1400)) {
            ProviderError::Provider(refusal) => {
                assert_eq!((refusal.cause.status(), refusal.retry_after_ms), (502, Some(1400)));
                for secret in ["sk-", "org-", "SYNTH", "balance", "<html>"] {
                    assert!(!refusal.message.contains(secret), "{}", refusal.message);
                }
                refusal.cause
            }
            ProviderError::Request { body, .. } => panic!("the request's fault: {body:?}"),
        }
    }

    #[test]
    fn a_fault_of_the_request_keeps_the_providers_words() {
        let error = json!({"message": "Unsupported value", "type": "invalid_request_error", "param": "messages[0].role", "code": "unsupported_value"});
        assert_eq!(request_fault(400, &json!({"error": error}).to_string()), error);
        for status in [404, 409, 413, 422] {
            assert_eq!(request_fault(status, &json!({"error": error}).to_string()), error);
        }
    }

    #[test]
    fn vendors_shapes_are_understood() {
        for (body, message) in [
            (r#"{"error":{"code":20012,"message":"m"}}"#, "m"),
            (r#"{"error":"m"}"#, "m"),
            (r#"{"message":"m"}"#, "m"),
            (r#"{"detail":"m"}"#, "m"),
            (r#"{"detail":[{"loc":["body"]}]}"#, r#"[{"loc":["body"]}]"#),
            (r#"{"msg":"m"}"#, "m"),
            (r#""m""#, "m"),
            (r#"[{"error":{"message":"m"}}]"#, "m"),
            ("plain", "plain"),
            ("", "The provider refused the request and did not say why."),
        ] {
            assert_eq!(request_fault(400, body)["message"], message, "{body}");
        }
        assert_eq!(request_fault(400, r#"{"error":{"code":20012,"message":"m"}}"#)["code"], "20012");
        let long = r#"{"error":{"message":"This model's maximum context length is 8192 tokens.","code":null}}"#;
        assert_eq!(request_fault(400, long)["code"], "context_length_exceeded");
        for refused in [
            r#"{"error":{"code":"1301","message":"m"}}"#,
            r#"{"error":{"code":"data_inspection_failed","message":"m"}}"#,
        ] {
            assert_eq!(request_fault(400, refused)["code"], "content_filter");
        }
    }

    #[test]
    fn the_operators_trouble_is_told_as_a_kind() {
        let limited =
            r#"{"error":{"message":"Rate limit reached in organization org-SYNTH","code":"rate_limit_exceeded"}}"#;
        let quota = r#"{"error":{"message":"balance","type":"insufficient_quota","code":"insufficient_quota"}}"#;
        for (status, body, expected) in [
            (401, r#"{"error":{"message":"Incorrect API key provided: sk-fake"}}"#, Cause::UpstreamAuth),
            (402, "", Cause::UpstreamAuth),
            (403, r#""Invalid token""#, Cause::UpstreamAuth),
            (404, "<html>", Cause::UpstreamError),
            (404, r#"{"error":{"message":"m","code":"model_not_found"}}"#, Cause::UpstreamError),
            (408, "", Cause::UpstreamTimeout),
            (429, limited, Cause::UpstreamRateLimited),
            (429, quota, Cause::UpstreamAuth),
            (429, r#"{"error":{"code":"1113","message":"balance"}}"#, Cause::UpstreamAuth),
            (500, "<html>", Cause::UpstreamError),
            (504, "", Cause::UpstreamTimeout),
            (529, "", Cause::UpstreamError),
            (302, "", Cause::UpstreamError),
        ] {
            assert_eq!(cause(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn keys_and_organisations_are_not_told() {
        let message = "The task-force's key sk-proj-abc_1*** of org-X, proj_Y.";
        assert_eq!(redact(message), "The task-force's key *** of ***, ***.");
    }

    #[test]
    fn an_error_event_is_one_line_and_a_blank_one() {
        let event = error_event(&Refusal::new(Cause::UpstreamTruncated, "broke\noff"));
        let text = String::from_utf8(event.to_vec()).unwrap();
        let json = text.strip_prefix("data: ").and_then(|text| text.strip_suffix("\n\n")).unwrap();
        assert!(!json.contains('\n'));
        assert_eq!(serde_json::from_str::<Value>(json).unwrap()["error"]["code"], "upstream_truncated");
    }

    proptest! {
        #[test]
        fn any_body_is_mapped_without_panic(status: u16, body: Vec<u8>) {
            map_error(status, &body, None);
        }

        #[test]
        fn redacting_plain_words_changes_nothing(message in "[a-r éü.,]{0,40}") {
            prop_assert_eq!(redact(&message), message);
        }
    }
}
