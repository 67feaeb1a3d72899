//! An error that a provider has put in the place of an answer, or of the rest of one.

use crate::relay::dialect::openai::chunk::read_error;
use crate::relay::dialect::{AnswerError, ProviderError, map_error};
use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::refusal::{Cause, Refusal};

/// What went wrong: what the relay knows of it, and the body that the client gets, an OpenAI error object.
#[derive(Debug)]
pub(super) struct Trouble {
    /// For the relay's own eyes.
    pub(super) error: AnswerError,
    /// One line of JSON.
    pub(super) body: Vec<u8>,
}

impl Trouble {
    /// Reads an error that came as a part of this document: under `error`, or, at vendors without one, as the document
    /// itself. The status that belongs to it is said in it, or guessed from its type.
    pub(super) fn read(document: &[u8], error: &[u8]) -> Result<Self, Fault> {
        let error_read = read_error(&mut Cursor::new(error))?;
        let status = status_of(error, &error_read)?;
        let told = map_error(status, document, None);
        let body = match &told {
            ProviderError::Request { body, .. } => body.to_vec(),
            ProviderError::Provider(refusal) => refusal.to_json(),
        };
        Ok(Self { error: AnswerError { told: Some(Box::new(told)), ..error_read }, body })
    }

    /// Reads an event that is an error: under `error`, or as a whole. One that cannot be read is a failure all the same.
    pub(super) fn of_event(data: &[u8]) -> Self {
        let read = error_member(data).and_then(|error| Self::read(data, error.unwrap_or(data)));
        read.unwrap_or_else(|_| Self::upstream("unreadable", "The provider failed."))
    }

    /// A provider's failure that it gave no more than a word for, or none.
    pub(super) fn upstream(word: &str, told: &'static str) -> Self {
        let error = AnswerError { message: word.into(), ..AnswerError::default() };
        Self { error, body: Refusal::new(Cause::UpstreamError, told).to_json() }
    }
}

/// The document's `error`, where it has one that is not null.
fn error_member(document: &[u8]) -> Result<Option<&[u8]>, Fault> {
    let mut cursor = Cursor::new(document);
    let mut error = None;
    let mut members = cursor.object()?;
    while let Some(key) = cursor.next_member(&mut members)? {
        match (&*key.decode(), cursor.kind()?) {
            (_, Kind::Null) => cursor.skip()?,
            (b"error", _) => error = Some(cursor.raw()?),
            _ => cursor.skip()?,
        }
    }
    Ok(error)
}

/// The HTTP status that the error would have had, had it come in time.
fn status_of(error: &[u8], read: &AnswerError) -> Result<u16, Fault> {
    let is_status = |status: &u16| (400..600).contains(status);
    if let Some(status) = read.code.as_ref().and_then(|code| code.parse().ok()).filter(is_status) {
        return Ok(status);
    }
    let mut cursor = Cursor::new(error);
    if cursor.kind()? == Kind::Object {
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            let value = cursor.raw()?;
            let said = str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).filter(is_status);
            if let (b"status_code" | b"status" | b"http_status", Some(status)) = (key.raw(), said) {
                return Ok(status);
            }
        }
    }
    Ok(match read.kind.as_deref() {
        Some("invalid_request_error") => 400,
        Some("authentication_error" | "permission_error") => 401,
        Some("rate_limit_error" | "rate_limit_exceeded" | "rate_limit_reached_error" | "engine_overloaded_error") => {
            429
        }
        _ => 500,
    })
}
