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
    let report = Report::read(body);
    let provider = |cause, message: Cow<'static, str>| {
        ProviderError::Provider(Refusal { retry_after_ms, ..Refusal::new(cause, message) })
    };
    match status {
        _ if report.is_moderation() => report.request_fault(Cause::InvalidValue, Some("content_filter")),
        // A balance that is used up, or a credential that is no good, under whatever status.
        _ if report.is_out_of_funds() => {
            provider(Cause::UpstreamFunds, "The provider refused the relay's account.".into())
        }
        402 => provider(Cause::UpstreamFunds, "The provider refused the relay's account.".into()),
        401 | 403 => provider(Cause::UpstreamAuth, "The provider refused the relay's credential.".into()),
        429 => provider(Cause::UpstreamRateLimited, "The provider is limiting the relay's requests.".into()),
        408 | 504 => provider(Cause::UpstreamTimeout, "The provider took too long.".into()),
        // Of an unknown model or path the request is innocent: the relay's own catalogue named them.
        404 if !report.is_shaped || report.is_unknown_model() => {
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
pub(super) struct Report {
    pub(super) message: String,
    pub(super) kind: Option<String>,
    pub(super) param: Option<String>,
    pub(super) code: Option<String>,
    /// It is an error object, not a page of HTML or the like.
    pub(super) is_shaped: bool,
}

impl Report {
    /// Reads a body of which at most 64 KiB matter.
    pub(super) fn read(body: &[u8]) -> Self {
        let body = &body[..body.len().min(BODY_BYTES_MAX)];
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return Self { message: cut(&String::from_utf8_lossy(body), TEXT_CHARS_MAX), ..Self::default() };
        };
        // Google wraps its errors in an array.
        let value = value.get(0).unwrap_or(&value);
        let error = value.get("error").filter(|error| error.is_object()).unwrap_or(value);
        let detail = value.get("detail").or_else(|| error.get("detail"));
        let said = [relayed(error), value.get("error"), error.get("message"), detail, error.get("msg"), Some(value)];
        let message = said.into_iter().flatten().find_map(Value::as_str).map(str::to_owned);
        // Mistral and all who use the same framework list what is wrong with each field.
        let list = || detail.or_else(|| error.get("message").map(|nested| nested.get("detail").unwrap_or(nested)));
        let message = message.or_else(|| list().filter(|list| !list.is_null()).map(Value::to_string));
        let message = cut(&message.unwrap_or_default(), MESSAGE_CHARS_MAX);
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
        let words = ["content_filter", "data_inspection_failed", "DataInspectionFailed", "1301"];
        self.has_word(&words) || self.message.contains("Content Exists Risk")
    }

    /// The relay's own catalogue names a model that the provider does not have.
    fn is_unknown_model(&self) -> bool {
        self.has_word(&["model_not_found", "DeploymentNotFound"])
    }

    /// The operator's account with the provider is empty.
    fn is_out_of_funds(&self) -> bool {
        // In the order of WIRE §7: OpenAI, Moonshot, Zhipu, SiliconFlow; and DashScope, which says it with status 400.
        self.has_word(&["insufficient_quota", "exceeded_current_quota_error", "1113", "30001", "Arrearage"])
    }

    /// Whether its code or its type is one of these.
    fn has_word(&self, words: &[&str]) -> bool {
        [&self.code, &self.kind].into_iter().flatten().any(|word| words.contains(&word.as_str()))
    }

    /// Vendors that have no code for a prompt that is too long still say it.
    fn is_too_long(&self) -> bool {
        const WORDS: [&str; 8] = [
            "maximum context length",
            "context_length_exceeded",
            "prompt is too long",
            // Moonshot, DashScope, SiliconFlow, Groq, Mistral.
            "exceeded model token limit",
            "Range of input length should be",
            "must be less than max_seq_len",
            "reduce the length of the messages",
            "too large for model with",
        ];
        WORDS.iter().any(|words| self.message.contains(words))
    }

    /// Whether the code says no more than the type or the status: DeepSeek's is always the type, others' are numbers.
    fn has_own_code(&self) -> bool {
        let code = self.code.as_deref().unwrap_or_default();
        Some(code) != self.kind.as_deref() && !code.bytes().all(|byte| byte.is_ascii_digit())
    }

    /// The fault of a request, in the provider's words; with this code, the provider's own, or what the words tell.
    pub(super) fn request_fault(self, cause: Cause, code: Option<&str>) -> ProviderError {
        let message = match redact(&self.message) {
            message if message.is_empty() => "The provider refused the request and did not say why.".to_owned(),
            message => message,
        };
        let too_long = (!self.has_own_code() && self.is_too_long()).then_some("context_length_exceeded");
        // Where the relay has a word for it, the type is OpenAI's as well.
        let known = code.or(too_long);
        let kind = self.kind.as_deref().filter(|_| known.is_none()).unwrap_or(cause.kind());
        let code = known.or(self.code.as_deref());
        let body = serde_json::json!({"error": {"message": message, "type": kind, "param": self.param, "code": code}});
        ProviderError::Request { cause, body: body.to_string().into() }
    }
}

/// What the provider behind a relay such as OpenRouter said, where the relay says no more than that one did.
fn relayed(error: &Value) -> Option<&Value> {
    let is_empty = error.get("message").and_then(Value::as_str) == Some("Provider returned error");
    error.pointer("/metadata/raw").filter(|_| is_empty)
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
        let is_secret = ["sk-", "ak-", "org-", "proj_", "tp-", "gsk_", "AIza"]
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
    fn what_vendors_mean_has_openais_words() {
        for (body, kind, code) in [
            (
                r#"{"error":{"message":"This model's maximum context length is 9 tokens.","type":"invalid_request_error","param":null,"code":"invalid_request_error"}}"#,
                "invalid_request_error",
                "context_length_exceeded",
            ),
            (
                r#"{"error":{"message":"Invalid request: Your request exceeded model token limit: 262144 (requested: 558009)","type":"invalid_request_error"}}"#,
                "invalid_request_error",
                "context_length_exceeded",
            ),
            (
                r#"{"error":{"message":"This endpoint's maximum context length is 9 tokens.","code":400}}"#,
                "invalid_request_error",
                "context_length_exceeded",
            ),
            (
                r#"{"error":{"code":"data_inspection_failed","param":null,"message":"m","type":"data_inspection_failed"}}"#,
                "invalid_request_error",
                "content_filter",
            ),
            (
                r#"{"error":{"message":"rejected because it was considered high risk","type":"content_filter"}}"#,
                "invalid_request_error",
                "content_filter",
            ),
            (
                r#"{"code":"1500","message":"Invalid model: x","object":"error","param":null,"type":"invalid_model"}"#,
                "invalid_model",
                "1500",
            ),
        ] {
            let error = request_fault(400, body);
            assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)), "{body}");
        }
    }

    #[test]
    fn lists_and_relayed_words_are_told() {
        let list = r#"{"object":"error","message":{"detail":[{"loc":["body","store"]}]},"type":"t","code":null}"#;
        assert_eq!(request_fault(422, list)["message"], r#"[{"loc":["body","store"]}]"#);
        let relayed = r#"{"error":{"message":"Provider returned error","code":400,"metadata":{"raw":"too hot"}}}"#;
        assert_eq!(request_fault(400, relayed)["message"], "too hot");
    }

    #[test]
    fn the_operators_trouble_is_told_as_a_kind() {
        let limited =
            r#"{"error":{"message":"Rate limit reached in organization org-SYNTH","code":"rate_limit_exceeded"}}"#;
        let quota = r#"{"error":{"message":"balance","type":"insufficient_quota","code":"insufficient_quota"}}"#;
        for (status, body, expected) in [
            (401, r#"{"error":{"message":"Incorrect API key provided: sk-fake"}}"#, Cause::UpstreamAuth),
            (402, "", Cause::UpstreamFunds),
            (403, r#""Invalid token""#, Cause::UpstreamAuth),
            (404, "<html>", Cause::UpstreamError),
            (404, r#"{"error":{"message":"m","code":"model_not_found"}}"#, Cause::UpstreamError),
            (408, "", Cause::UpstreamTimeout),
            (429, limited, Cause::UpstreamRateLimited),
            (429, quota, Cause::UpstreamFunds),
            (429, r#"{"error":{"code":"1113","message":"balance"}}"#, Cause::UpstreamFunds),
            (429, r#"{"error":{"code":"1302","message":"busy"}}"#, Cause::UpstreamRateLimited),
            (429, r#"{"error":{"message":"org-SYNTH","type":"exceeded_current_quota_error"}}"#, Cause::UpstreamFunds),
            (429, r#"{"error":{"message":"busy","type":"engine_overloaded_error"}}"#, Cause::UpstreamRateLimited),
            (429, r#"{"message":"TPM limit reached.","data":null}"#, Cause::UpstreamRateLimited),
            (403, r#"{"code":30001,"message":"your account balance","data":null}"#, Cause::UpstreamFunds),
            (400, r#"{"error":{"code":"Arrearage","message":"balance"}}"#, Cause::UpstreamFunds),
            (401, r#"{"detail":"Invalid API Key"}"#, Cause::UpstreamAuth),
            (404, r#"{"error":{"message":"m","code":"DeploymentNotFound"}}"#, Cause::UpstreamError),
            (503, r#"{"code":50505,"message":"overloaded","data":null}"#, Cause::UpstreamError),
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
