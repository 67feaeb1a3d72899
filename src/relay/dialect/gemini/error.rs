//! What the client is told of Gemini's errors (WIRE §7).
//!
//! Google's errors have a status in words and details that say more than the HTTP status does: a key that is no good comes
//! as 400, and when to come back stands in the body.

use serde_json::Value;

use crate::relay::dialect::{AnswerError, ProviderError, error, map_error as map_any_error};
use crate::relay::refusal::{Cause, Refusal};

/// The most bytes of an error's body that are read.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Where an error's message is cut.
const MESSAGE_CHARS_MAX: usize = 2000;

/// Reads Gemini's answer of that status. When the body says when to come back, that counts before what the header said.
pub fn map_error(status: u16, body: &[u8], retry_after_ms: Option<u64>) -> ProviderError {
    let Some(google) = Google::read(body) else { return map_any_error(status, body, retry_after_ms) };
    let retry_after_ms = google.retry_after_ms.or(retry_after_ms);
    let provider =
        |cause, message: String| ProviderError::Provider(Refusal { retry_after_ms, ..Refusal::new(cause, message) });
    if google.is_operators() {
        return provider(Cause::UpstreamAuth, "The provider refused the relay's credential or account.".into());
    }
    match (status, &*google.status) {
        (401 | 403, _) | (_, "UNAUTHENTICATED" | "PERMISSION_DENIED") => {
            provider(Cause::UpstreamAuth, "The provider refused the relay's credential.".into())
        }
        (429, _) | (_, "RESOURCE_EXHAUSTED") => {
            provider(Cause::UpstreamRateLimited, "The provider is limiting the relay's requests.".into())
        }
        (408 | 504, _) | (_, "DEADLINE_EXCEEDED") => {
            provider(Cause::UpstreamTimeout, "The provider took too long.".into())
        }
        // Of an unknown model the request is innocent: the relay's own catalogue named it.
        (404, _) | (_, "NOT_FOUND") if google.message.contains("models/") => {
            provider(Cause::UpstreamError, "The provider does not know what the relay asked it for.".into())
        }
        (400 | 404 | 409 | 413 | 422, _) => {
            let code = google.is_too_long().then_some("context_length_exceeded");
            error::request_fault(&google.message, None, code)
        }
        (status, _) => provider(Cause::UpstreamError, format!("The provider failed (status {status}).")),
    }
}

/// An error inside of an answer whose status said that all was well, for the client and for the relay's own eyes.
pub(super) fn map_answer_error(body: &[u8]) -> (ProviderError, AnswerError) {
    let google = Google::read(body);
    let status = google.as_ref().map_or(500, |google| google.http_status());
    let told = map_error(status, body, None);
    let seen = google.map(|google| AnswerError {
        message: google.message.chars().take(500).collect::<String>().into(),
        code: Some(google.code.to_string().into()),
        kind: (!google.status.is_empty()).then(|| google.status.into()),
        told: None,
    });
    let seen = AnswerError { told: Some(Box::new(told.clone())), ..seen.unwrap_or_default() };
    (told, seen)
}

/// An error as Google's APIs write it.
#[derive(Debug)]
struct Google {
    code: u64,
    message: String,
    status: String,
    /// The machine's words for it, of all details.
    reasons: Vec<String>,
    retry_after_ms: Option<u64>,
}

impl Google {
    /// `None` if it is not of that form.
    fn read(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(&body[..body.len().min(BODY_BYTES_MAX)]).ok()?;
        // Without `alt=sse` errors come in an array.
        let value = value.get(0).unwrap_or(&value);
        let error = value.get("error")?;
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
        let details = error.get("details").and_then(Value::as_array).into_iter().flatten();
        let reasons = details.clone().filter_map(|detail| detail.get("reason")?.as_str());
        let retry = details.clone().find_map(|detail| milliseconds(detail.get("retryDelay")?.as_str()?));
        error.is_object().then(|| Self {
            code: error.get("code").and_then(Value::as_u64).unwrap_or(0),
            message: text("message").trim().chars().take(MESSAGE_CHARS_MAX).collect(),
            status: text("status").to_owned(),
            reasons: reasons.map(str::to_owned).collect(),
            retry_after_ms: retry,
        })
    }

    /// The key or the account is at fault, though the status says that the request is.
    fn is_operators(&self) -> bool {
        let words = ["API key not valid", "API key expired", "User location is not supported", "enable billing"];
        self.reasons.iter().any(|reason| reason.starts_with("API_KEY_") || reason == "SERVICE_DISABLED")
            || words.iter().any(|words| self.message.contains(words))
    }

    fn is_too_long(&self) -> bool {
        self.message.contains("input token count") && self.message.contains("exceeds the maximum")
    }

    /// The status that the error would have had before the answer began.
    fn http_status(&self) -> u16 {
        u16::try_from(self.code).ok().filter(|code| (400..=599).contains(code)).unwrap_or(500)
    }
}

/// A duration as Google writes it: `48s`, `48.9s`. Rounded up.
fn milliseconds(duration: &str) -> Option<u64> {
    let (whole, fraction) = {
        let seconds = duration.strip_suffix('s')?;
        seconds.split_once('.').unwrap_or((seconds, ""))
    };
    let whole: u64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let more = fraction.bytes().skip(3).any(|byte| byte != b'0');
    Some(whole.saturating_mul(1000).saturating_add(thousandths + u64::from(more)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn error(code: u16, status: &str, message: &str) -> Value {
        json!({"error": {"code": code, "message": message, "status": status}})
    }

    fn cause(status: u16, body: &Value) -> Cause {
        match map_error(status, body.to_string().as_bytes(), Some(7)) {
            ProviderError::Provider(refusal) => {
                assert_eq!(refusal.cause.status(), 502);
                assert_eq!(refusal.retry_after_ms, Some(7));
                refusal.cause
            }
            ProviderError::Request { body, .. } => panic!("the request's fault: {body:?}"),
        }
    }

    fn request_fault(status: u16, body: &Value) -> Value {
        match map_error(status, body.to_string().as_bytes(), None) {
            ProviderError::Request { cause, body } => {
                assert_eq!(cause.status(), 400);
                serde_json::from_slice::<Value>(&body).unwrap()["error"].take()
            }
            ProviderError::Provider(refusal) => panic!("not the request's fault: {refusal:?}"),
        }
    }

    #[test]
    fn a_fault_of_the_request_keeps_googles_words() {
        let told = request_fault(400, &error(400, "INVALID_ARGUMENT", "Unknown name \"x\""));
        let expected =
            json!({"message": "Unknown name \"x\"", "type": "invalid_request_error", "param": null, "code": null});
        assert_eq!(told, expected);
        assert_eq!(request_fault(400, &json!([error(400, "INVALID_ARGUMENT", "no")]))["message"], "no");
        let long = "The input token count (1196386) exceeds the maximum number of tokens allowed (1048576).";
        assert_eq!(request_fault(400, &error(400, "INVALID_ARGUMENT", long))["code"], "context_length_exceeded");
        let key = request_fault(400, &error(400, "INVALID_ARGUMENT", "with AIzaSyFake_key-1 it fails"));
        assert_eq!(key["message"], "with *** it fails");
    }

    #[test]
    fn the_operators_trouble_is_told_as_a_kind() {
        let key = json!({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT",
            "details": [{"reason": "API_KEY_INVALID"}]}});
        for (status, body, expected) in [
            (400, key, Cause::UpstreamAuth),
            (400, error(400, "FAILED_PRECONDITION", "User location is not supported."), Cause::UpstreamAuth),
            (403, error(403, "PERMISSION_DENIED", "no"), Cause::UpstreamAuth),
            (429, error(429, "RESOURCE_EXHAUSTED", "no"), Cause::UpstreamRateLimited),
            (404, error(404, "NOT_FOUND", "models/x is not found"), Cause::UpstreamError),
            (500, error(500, "INTERNAL", "no"), Cause::UpstreamError),
            (503, error(503, "UNAVAILABLE", "no"), Cause::UpstreamError),
            (504, error(504, "DEADLINE_EXCEEDED", "no"), Cause::UpstreamTimeout),
            (502, json!("<html>"), Cause::UpstreamError),
        ] {
            assert_eq!(cause(status, &body), expected, "{status} {body}");
        }
    }

    #[test]
    fn the_body_says_when_to_come_back() {
        let body = json!({"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED",
            "details": [{"violations": []}, {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "48s"}]}});
        let ProviderError::Provider(refusal) = map_error(429, body.to_string().as_bytes(), Some(1)) else { panic!() };
        assert_eq!(refusal.retry_after_ms, Some(48_000));
        for (duration, expected) in [
            ("0s", Some(0)),
            ("1.5s", Some(1500)),
            ("48.939935699s", Some(48_940)),
            ("5", None),
            ("-1s", None),
            ("1.xs", None),
        ] {
            assert_eq!(milliseconds(duration), expected, "{duration}");
        }
    }

    proptest! {
        #[test]
        fn any_body_is_mapped_without_panic(status: u16, body: Vec<u8>, text: String) {
            map_error(status, &body, None);
            map_answer_error(&body);
            map_error(status, error(status, &text, &text).to_string().as_bytes(), None);
            milliseconds(&format!("{text}s"));
        }
    }
}
