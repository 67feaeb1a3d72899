//! Answers: documents, pages of them, and refusals as the client API has them.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::admin::sale::{SaleError, VoucherError};
use crate::admin::{KeyError, UnknownPlan};
use crate::relay::refusal::{Cause, Refusal};
use crate::store::StoreError;

/// What a route answers.
pub(super) type Answer = Result<Response, Refused>;

/// A refusal on its way out.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Refusal);

impl Refused {
    /// A value that cannot be.
    pub(super) fn value(param: &'static str, message: impl std::fmt::Display) -> Self {
        Self(Refusal::new(Cause::InvalidValue, format!("{param}: {message}")).param(param))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(refusal) = self;
        let status = StatusCode::from_u16(refusal.cause.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], refusal.to_json()).into_response();
        if let Some(milliseconds) = refusal.retry_after_ms {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1000)));
        }
        response
    }
}

/// What the store refuses, in the words of this API; and what it fails in, which is for the log.
impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::UnknownAccount(_) => {
                Self(Refusal::new(Cause::AccountNotFound, "There is no account of this id.").param("id"))
            }
            StoreError::UnknownKey(_) => {
                Self(Refusal::new(Cause::KeyNotFound, "There is no key of this id.").param("id"))
            }
            StoreError::AmountTooLarge => Self::value("amount", error),
            StoreError::CreditKeyReused => {
                Self(Refusal::new(Cause::IdempotencyKeyReused, error.to_string()).param("Idempotency-Key"))
            }
            StoreError::UnknownVoucherBatch(_) => {
                Self(Refusal::new(Cause::VoucherBatchNotFound, "There is no batch of vouchers of this id.").param("id"))
            }
            StoreError::TooManyVouchers { retry_after_ms } => {
                let refusal = Refusal::new(Cause::TooManyFailedAttempts, error.to_string());
                Self(refusal.retry_after_ms(retry_after_ms.unsigned_abs()))
            }
            StoreError::Subscribed { .. }
            | StoreError::NotSubscribed(_)
            | StoreError::PaidAtStripe
            | StoreError::NotEnoughCredit { .. }
            | StoreError::UnknownVoucher
            | StoreError::VoucherUsed
            | StoreError::VoucherExpired
            | StoreError::VoucherRevoked => Self(Refusal::new(of_sale(&error), error.to_string())),
            StoreError::Damaged { .. } => {
                tracing::error!(%error, "the admin API could not be answered from the store");
                Self(Refusal::new(Cause::InternalError, "The store is damaged there; the log says where."))
            }
            error => {
                tracing::error!(%error, "the admin API could not be answered from the store");
                let refusal = Refusal::new(Cause::StoreUnavailable, "The store cannot be reached at the moment.");
                Self(refusal.retry_after_ms(1_000))
            }
        }
    }
}

/// What is refused of subscriptions and vouchers in the store's own words.
fn of_sale(error: &StoreError) -> Cause {
    match error {
        StoreError::Subscribed { .. } => Cause::Subscribed,
        StoreError::NotSubscribed(_) => Cause::SubscriptionNotFound,
        StoreError::PaidAtStripe => Cause::PaidAtStripe,
        StoreError::NotEnoughCredit { .. } => Cause::InsufficientCredits,
        StoreError::UnknownVoucher => Cause::VoucherNotFound,
        StoreError::VoucherUsed => Cause::VoucherUsed,
        StoreError::VoucherExpired => Cause::VoucherExpired,
        StoreError::VoucherRevoked => Cause::VoucherRevoked,
        _ => Cause::InternalError,
    }
}

impl From<SaleError> for Refused {
    fn from(error: SaleError) -> Self {
        match error {
            SaleError::Store(error) => error.into(),
            SaleError::Plan(error) => error.into(),
            error @ (SaleError::NotForSale(_) | SaleError::NoPlans) => Self::value("plan", error),
        }
    }
}

impl From<VoucherError> for Refused {
    fn from(error: VoucherError) -> Self {
        match error {
            VoucherError::Store(error) => error.into(),
            VoucherError::Entropy => Self(Refusal::new(Cause::InternalError, error.to_string())),
        }
    }
}

impl From<UnknownPlan> for Refused {
    fn from(error: UnknownPlan) -> Self {
        Self::value("plan", error)
    }
}

impl From<KeyError> for Refused {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Store(error) => error.into(),
            KeyError::Entropy => Self(Refusal::new(Cause::InternalError, error.to_string())),
        }
    }
}

/// A document as an answer.
pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Answer {
    match serde_json::to_vec(document) {
        Ok(body) => Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response()),
        Err(error) => {
            tracing::error!(%error, "an answer of the admin API could not be written");
            Err(Refused(Refusal::new(Cause::InternalError, "The answer could not be written.")))
        }
    }
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    /// `list`.
    #[schema(value_type = String)]
    object: &'static str,
    data: Vec<T>,
    /// Whether there is more after this page.
    has_more: bool,
    /// What `after` takes for the page after this one; null where there is none.
    #[schema(required)]
    next: Option<String>,
}

impl<T> Page<T> {
    /// A page of rows, of which one more than `limit` was asked for to see whether there is one.
    pub(super) fn cut(mut rows: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| has_more).map(cursor);
        Self { object: "list", data: rows, has_more, next }
    }

    /// The same page of other rows.
    pub(super) fn map<U>(self, to: impl FnMut(T) -> U) -> Page<U> {
        let data = self.data.into_iter().map(to).collect();
        Page { object: self.object, data, has_more: self.has_more, next: self.next }
    }
}

/// Every refusal's body.
#[derive(ToSchema)]
#[schema(as = Error)]
#[expect(dead_code, reason = "it describes what `Refusal` writes")]
pub(super) struct ErrorDocument {
    error: ErrorBody,
}

/// What is wrong.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Refusal` writes")]
struct ErrorBody {
    /// For people.
    message: String,
    r#type: String,
    /// Which field, parameter or header is at fault.
    #[schema(required)]
    param: Option<String>,
    /// For programs.
    code: String,
}

/// What every route may refuse with.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes what `Refused` answers")]
pub(super) enum Refusals {
    /// The request is at fault; `param` says where
    #[response(status = 400)]
    Request(ErrorDocument),
    /// The token is missing or wrong
    #[response(status = 401)]
    Token(ErrorDocument),
    /// The account has not the credit
    #[response(status = 402)]
    Credit(ErrorDocument),
    /// There is no such thing, or no admin API
    #[response(status = 404)]
    Absent(ErrorDocument),
    /// The request took too long to arrive
    #[response(status = 408)]
    Slow(ErrorDocument),
    /// It is not such that this could be done to it
    #[response(status = 409)]
    Conflict(ErrorDocument),
    /// The body is larger than 1 MiB
    #[response(status = 413)]
    Large(ErrorDocument),
    /// Too many wrong tokens came from this address, or too many wrong codes of this account
    #[response(status = 429)]
    Guessing(ErrorDocument),
    /// A fault of the relay
    #[response(status = 500)]
    Fault(ErrorDocument),
    /// The store cannot be reached
    #[response(status = 503)]
    Store(ErrorDocument),
}
