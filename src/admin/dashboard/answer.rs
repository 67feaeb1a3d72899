//! Answers: pages, ways elsewhere, and refusals as pages; and the headers that all of them have.

use askama::Template;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::layout::Frame;
use crate::admin::people::PeopleError;
use crate::admin::{KeyError, UnknownPlan};
use crate::relay::refusal::Cause;
use crate::store::StoreError;

/// What a handler answers.
pub(super) type Answer = Result<Response, Refused>;

/// What browsers may load and do: what is ours, without inline script or style. A form that leads to another origin in the end needs that
/// origin in `form-action`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// A refusal on its way out.
#[derive(Debug)]
pub(super) enum Refused {
    /// Somebody is to sign in first, and comes back to there then.
    SignIn(String),
    /// A page that says why.
    Because(Cause, &'static str),
}

impl Refused {
    pub(super) fn nothing_here() -> Self {
        Self::Because(Cause::UnknownUrl, "There is nothing here.")
    }
}

/// A page of its own that says what is the matter.
#[derive(Template)]
#[template(path = "refused.html")]
struct RefusedPage {
    frame: Frame,
    message: &'static str,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::SignIn(back) => {
                let query = serde_urlencoded::to_string([("next", back)]).unwrap_or_default();
                see_other(&format!("/sign-in?{query}"))
            }
            Self::Because(cause, message) => {
                let page = RefusedPage { frame: Frame::bare("Not possible"), message };
                page_as(cause, &page).unwrap_or_else(|_| status_of(cause).into_response())
            }
        }
    }
}

/// What the store refuses, and what it fails in, which is for the log.
impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::UnknownAccount(_) | StoreError::UnknownKey(_) | StoreError::UnknownUser(_) => {
                Self::nothing_here()
            }
            StoreError::UserSuspended => Self::Because(Cause::InvalidValue, "This user is suspended."),
            StoreError::EmailTaken => Self::Because(Cause::InvalidValue, "There is a user with this address already."),
            StoreError::AmountTooLarge => {
                Self::Because(Cause::InvalidValue, "The balance would pass the largest amount that can be kept.")
            }
            StoreError::UnknownVoucherBatch(_) => Self::nothing_here(),
            StoreError::Subscribed { .. } => {
                Self::Because(Cause::Subscribed, "The account has a plan by the month; change, cancel or end that.")
            }
            StoreError::NotSubscribed(_) => {
                Self::Because(Cause::SubscriptionNotFound, "The account has no plan by the month.")
            }
            StoreError::PaidAtStripe => {
                Self::Because(Cause::PaidAtStripe, "The plan is paid by card; change it at Stripe.")
            }
            StoreError::NotEnoughCredit { .. } => {
                Self::Because(Cause::InsufficientCredits, "The account has not the credit for that.")
            }
            error => {
                tracing::error!(%error, "the dashboard could not be answered from the store");
                Self::Because(Cause::StoreUnavailable, "The store cannot be reached at the moment. Try again.")
            }
        }
    }
}

impl From<PeopleError> for Refused {
    fn from(error: PeopleError) -> Self {
        match error {
            PeopleError::Store(error) => error.into(),
            PeopleError::Entropy => failed(&error),
        }
    }
}

impl From<KeyError> for Refused {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Store(error) => error.into(),
            KeyError::Entropy => failed(&error),
        }
    }
}

impl From<UnknownPlan> for Refused {
    fn from(_: UnknownPlan) -> Self {
        Self::Because(Cause::InvalidValue, "There is no such plan.")
    }
}

fn failed(error: &impl std::fmt::Display) -> Refused {
    tracing::error!(%error, "the dashboard failed");
    Refused::Because(Cause::InternalError, "Something went wrong here. The log says what.")
}

/// A page.
pub(super) fn page(template: &impl Template) -> Answer {
    html(StatusCode::OK, template)
}

/// A page that says what was wrong with what was sent, and keeps it.
pub(super) fn page_as(cause: Cause, template: &impl Template) -> Answer {
    html(status_of(cause), template)
}

fn html(status: StatusCode, template: &impl Template) -> Answer {
    match template.render() {
        Ok(text) => Ok((status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()),
        Err(error) => {
            tracing::error!(%error, "a page could not be written");
            Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response())
        }
    }
}

fn status_of(cause: Cause) -> StatusCode {
    StatusCode::from_u16(cause.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Lets the forms of a page lead to those origins too, after a redirect.
pub(super) fn with_forms_to(mut answer: Response, origins: &[&str]) -> Response {
    let forms = origins.iter().map(|origin| format!(" {origin}")).collect::<String>();
    let policy = CONTENT_SECURITY_POLICY.replace("form-action 'self'", &format!("form-action 'self'{forms}"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    answer
}

/// Shows another page in place of this one.
pub(super) fn see_other(path: &str) -> Response {
    let to = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response()
}

/// A path of the dashboard to which somebody may be sent back; nothing that a browser takes for another host's.
pub(super) fn own_path(text: &str) -> Option<&str> {
    let is_own = text.starts_with('/')
        && !text.starts_with("//")
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    is_own.then_some(text)
}

/// Puts the headers on that every answer has.
pub(super) async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let policy = HeaderValue::from_static(CONTENT_SECURITY_POLICY);
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(policy);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::own_path;

    #[test]
    fn nobody_is_sent_to_another_host() {
        for path in ["/", "/keys", "/usage?model=a%2Fb&after=x"] {
            assert_eq!(own_path(path), Some(path));
        }
        for path in
            ["", "keys", "//evil.example", "/\\evil.example", "https://evil.example", "/a\nb", "/\t/evil.example"]
        {
            assert_eq!(own_path(path), None, "{path:?}");
        }
    }
}
