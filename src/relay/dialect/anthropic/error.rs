//! Anthropic's errors: `{"type":"error","error":{"type","message"},"request_id"}` (WIRE §7).

use std::borrow::Cow;

use bytes::Bytes;

use crate::relay::dialect::error::Report;
use crate::relay::dialect::{AnswerError, ProviderError, error_event};
use crate::relay::refusal::{Cause, Refusal};

/// Where an error's message is cut in what the relay keeps for its own eyes.
const MESSAGE_CHARS_MAX: usize = 500;

/// What Anthropic says, as a fault of the request, where its own account has no money or no leave. The status is 400.
const ACCOUNT_TROUBLES: [&str; 4] = [
    "credit balance is too low",
    "reached your specified API usage limits",
    "organization has been disabled",
    "workspace has been disabled",
];

/// What is said of a prompt and an answer that do not fit.
const TOO_LONG: [&str; 3] = ["prompt is too long", "exceed context limit", "context window"];

/// Reads an answer of that status, of which at most 64 KiB of body matter. What the client gets is as for every provider: a
/// fault of the request keeps the provider's words, everything else is told as a kind of trouble.
pub fn map_error(status: u16, body: &[u8], retry_after_ms: Option<u64>) -> ProviderError {
    judge(status, Report::read(body), retry_after_ms)
}

/// An error in the middle of a stream, or in a good answer's place: the event that tells the client, the JSON that tells it,
/// and what the relay keeps of it.
pub(super) fn map_error_inside(json: &[u8]) -> (Bytes, Bytes, AnswerError) {
    let report = Report::read(json);
    let error = AnswerError {
        message: report.message.chars().take(MESSAGE_CHARS_MAX).collect(),
        kind: report.kind.as_deref().map(Into::into),
        code: report.code.as_deref().map(Into::into),
        told: None,
    };
    let told = judge(500, report, None);
    let (event, body) = match &told {
        ProviderError::Request { body, .. } => ([b"data: ", &body[..], b"\n\n"].concat().into(), body.clone()),
        ProviderError::Provider(refusal) => (error_event(refusal), refusal.to_json().into()),
    };
    (event, body, AnswerError { told: Some(Box::new(told)), ..error })
}

fn judge(status: u16, report: Report, retry_after_ms: Option<u64>) -> ProviderError {
    let provider = |cause, message: Cow<'static, str>| {
        ProviderError::Provider(Refusal { retry_after_ms, ..Refusal::new(cause, message) })
    };
    let says = |words: &[&str]| words.iter().any(|words| report.message.contains(words));
    // The type says it more exactly, and in the middle of a stream nothing else does.
    match report.kind.as_deref().and_then(status_of).unwrap_or(status) {
        _ if says(&ACCOUNT_TROUBLES) => {
            provider(Cause::UpstreamFunds, "The provider refused the relay's account.".into())
        }
        402 => provider(Cause::UpstreamFunds, "The provider refused the relay's account.".into()),
        401 | 403 => provider(Cause::UpstreamAuth, "The provider refused the relay's credential.".into()),
        429 => provider(Cause::UpstreamRateLimited, "The provider is limiting the relay's requests.".into()),
        408 | 504 => provider(Cause::UpstreamTimeout, "The provider took too long.".into()),
        // The relay's own catalogue named the model, and its own code the path.
        404 if !report.is_shaped || report.message.starts_with("model:") => {
            provider(Cause::UpstreamError, "The provider does not know what the relay asked it for.".into())
        }
        fault @ (400 | 404 | 409 | 413 | 415 | 422) => {
            let code = match fault {
                _ if says(&TOO_LONG) => Some("context_length_exceeded"),
                _ if says(&["content filtering policy"]) => Some("content_filter"),
                413 => Some("request_too_large"),
                _ => None,
            };
            let kind = Some(Cause::InvalidValue.kind().to_owned());
            Report { kind, ..report }.request_fault(Cause::InvalidValue, code)
        }
        529 => provider(Cause::UpstreamError, "The provider is overloaded.".into()),
        status => provider(Cause::UpstreamError, format!("The provider failed (status {status}).").into()),
    }
}

/// The status that a type of error has.
fn status_of(kind: &str) -> Option<u16> {
    Some(match kind {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "api_error" => 500,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn body(kind: &str, message: &str) -> String {
        json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}).to_string()
    }

    fn fault(status: u16, kind: &str, message: &str) -> Value {
        match map_error(status, body(kind, message).as_bytes(), None) {
            ProviderError::Request { cause, body } => {
                assert_eq!(cause.status(), 400);
                serde_json::from_slice::<Value>(&body).unwrap()["error"].take()
            }
            ProviderError::Provider(refusal) => panic!("not the request's fault: {refusal:?}"),
        }
    }

    #[test]
    fn a_fault_of_the_request_keeps_the_providers_words() {
        for (status, kind, message, code) in [
            (400, "invalid_request_error", "`temperature` is deprecated for this model.", Value::Null),
            (
                400,
                "invalid_request_error",
                "prompt is too long: 9 tokens > 8 maximum",
                "context_length_exceeded".into(),
            ),
            (400, "invalid_request_error", "Output blocked by content filtering policy", "content_filter".into()),
            (404, "not_found_error", "no such file", Value::Null),
            (413, "request_too_large", "Request exceeds the maximum size", "request_too_large".into()),
        ] {
            let expected = json!({"message": message, "type": "invalid_request_error", "param": null, "code": code});
            assert_eq!(fault(status, kind, message), expected);
        }
        let secret = fault(400, "invalid_request_error", "bad key sk-ant-api03-abc");
        assert_eq!(secret["message"], "bad key ***");
    }

    #[test]
    fn the_operators_trouble_is_told_as_a_kind() {
        for (status, kind, message, cause) in [
            (401, "authentication_error", "invalid x-api-key sk-ant-1", Cause::UpstreamAuth),
            (402, "billing_error", "m", Cause::UpstreamFunds),
            (403, "permission_error", "m", Cause::UpstreamAuth),
            (400, "invalid_request_error", "Your credit balance is too low to access sk-", Cause::UpstreamFunds),
            (404, "not_found_error", "model: claude-sonet-4-5", Cause::UpstreamError),
            (429, "rate_limit_error", "m", Cause::UpstreamRateLimited),
            (500, "api_error", "m", Cause::UpstreamError),
            (504, "timeout_error", "m", Cause::UpstreamTimeout),
            (529, "overloaded_error", "m", Cause::UpstreamError),
            (503, "new_error", "m", Cause::UpstreamError),
        ] {
            match map_error(status, body(kind, message).as_bytes(), Some(7)) {
                ProviderError::Provider(refusal) => {
                    assert_eq!((refusal.cause, refusal.retry_after_ms), (cause, Some(7)), "{kind}");
                    assert!(!refusal.message.contains("sk-"));
                }
                ProviderError::Request { body, .. } => panic!("the request's fault: {body:?}"),
            }
        }
        for (status, cause) in [(404, Cause::UpstreamError), (408, Cause::UpstreamTimeout), (502, Cause::UpstreamError)]
        {
            let ProviderError::Provider(refusal) = map_error(status, b"<html>", None) else { panic!("{status}") };
            assert_eq!(refusal.cause, cause);
        }
    }

    #[test]
    fn inside_a_stream_the_type_says_what_it_is() {
        let (event, _, error) = map_error_inside(body("overloaded_error", "Overloaded").as_bytes());
        assert!(event.starts_with(b"data: {\"error\":{") && event.ends_with(b"}}\n\n"));
        assert_eq!((&*error.message, error.kind.as_deref()), ("Overloaded", Some("overloaded_error")));
        let (event, json, _) = map_error_inside(body("invalid_request_error", "too\nmuch").as_bytes());
        assert_eq!(event.iter().filter(|byte| **byte == b'\n').count(), 2);
        let told: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(told["error"]["message"], "too\nmuch");
    }

    proptest! {
        #[test]
        fn any_body_is_mapped_without_panic(status: u16, body: Vec<u8>) {
            map_error(status, &body, None);
            map_error_inside(&body);
        }
    }
}
