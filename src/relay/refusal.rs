//! Every cause for which the relay refuses or fails a request, and the one table from cause to status, type and code.

use std::borrow::Cow;

/// Why a request is refused or failed, as the client is told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The row of the table.
    pub cause: Cause,
    /// For people. Never a secret, never a prompt.
    pub message: Cow<'static, str>,
    /// Which parameter of the request is at fault, in OpenAI's notation (`messages[0].role`).
    pub param: Option<Box<str>>,
    /// When to try again, where that is known. Milliseconds.
    pub retry_after_ms: Option<u64>,
    /// The method that the path does have, where the request's is not it.
    pub allow: Option<&'static str>,
}

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident => $status:literal, $kind:literal, $code:literal;)*) => {
        /// Causes of refusals. The table of statuses, types and codes is this one; no status stands anywhere else.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Cause { $($(#[$doc])* $name,)* }

        impl Cause {
            /// Every cause, for documentation and tests.
            pub const ALL: &'static [Cause] = &[$(Cause::$name,)*];

            /// The HTTP status.
            pub fn status(self) -> u16 { match self { $(Cause::$name => $status,)* } }

            /// `error.type`.
            pub fn kind(self) -> &'static str { match self { $(Cause::$name => $kind,)* } }

            /// `error.code`; also the label of `tollgate_refusals_total`.
            pub fn code(self) -> &'static str { match self { $(Cause::$name => $code,)* } }
        }
    };
}

causes! {
    /// The body is not JSON, or not an object.
    InvalidJson => 400, "invalid_request_error", "invalid_json";
    /// A field that must be there is not.
    MissingField => 400, "invalid_request_error", "missing_field";
    /// A field has a value that it cannot have.
    InvalidValue => 400, "invalid_request_error", "invalid_value";
    /// The request's head or framing is not one that can be trusted.
    BadRequest => 400, "invalid_request_error", "bad_request";
    /// The `Idempotency-Key` came with another body before.
    IdempotencyKeyReused => 400, "invalid_request_error", "idempotency_key_reused";
    /// Missing, malformed, unknown, expired, revoked, suspended: one for all.
    InvalidApiKey => 401, "authentication_error", "invalid_api_key";
    /// The account's balance is used up.
    InsufficientCredits => 402, "insufficient_quota", "insufficient_credits";
    /// The key's own budget is used up.
    BudgetExceeded => 402, "insufficient_quota", "budget_exceeded";
    /// The key may not use this model.
    ModelNotAllowed => 403, "permission_error", "model_not_allowed";
    /// The key may not be used from this address.
    IpNotAllowed => 403, "permission_error", "ip_not_allowed";
    /// There is no such model.
    ModelNotFound => 404, "invalid_request_error", "model_not_found";
    /// There is no such account; of the admin API.
    AccountNotFound => 404, "invalid_request_error", "account_not_found";
    /// There is no such key; of the admin API.
    KeyNotFound => 404, "invalid_request_error", "key_not_found";
    /// The account has no subscription; of the admin API.
    SubscriptionNotFound => 404, "invalid_request_error", "subscription_not_found";
    /// There is no such batch of vouchers; of the admin API.
    VoucherBatchNotFound => 404, "invalid_request_error", "voucher_batch_not_found";
    /// The code is no voucher's; of the admin API.
    VoucherNotFound => 404, "invalid_request_error", "voucher_not_found";
    /// There is nothing at this path.
    UnknownUrl => 404, "invalid_request_error", "unknown_url";
    /// The path is right, the method is not.
    MethodNotAllowed => 405, "invalid_request_error", "method_not_allowed";
    /// The first request with this `Idempotency-Key` is still running.
    IdempotencyInProgress => 409, "invalid_request_error", "idempotency_in_progress";
    /// A request with this `Idempotency-Key` was answered at such length that the answer was not kept.
    IdempotencyAnswerTooLarge => 409, "invalid_request_error", "idempotency_answer_too_large";
    /// A request with this `Idempotency-Key` was answered, and its answer had to make room.
    IdempotencyAnswerDropped => 409, "invalid_request_error", "idempotency_answer_dropped";
    /// The account has a subscription, which is to be changed instead; of the admin API.
    Subscribed => 409, "invalid_request_error", "subscribed";
    /// The subscription is changed where it is paid; of the admin API.
    PaidAtStripe => 409, "invalid_request_error", "paid_at_stripe";
    /// The voucher was redeemed before; of the admin API.
    VoucherUsed => 409, "invalid_request_error", "voucher_used";
    /// The voucher's time is over; of the admin API.
    VoucherExpired => 409, "invalid_request_error", "voucher_expired";
    /// The voucher was taken back; of the admin API.
    VoucherRevoked => 409, "invalid_request_error", "voucher_revoked";
    /// The client took too long to send its request.
    RequestTimeout => 408, "invalid_request_error", "request_timeout";
    /// The body is larger than the relay takes.
    RequestTooLarge => 413, "invalid_request_error", "request_too_large";
    /// The key's requests or tokens of this minute are used up.
    RateLimitExceeded => 429, "rate_limit_error", "rate_limit_exceeded";
    /// The key has as many requests running as it may have.
    ConcurrencyLimitExceeded => 429, "rate_limit_error", "concurrency_limit_exceeded";
    /// Too many failed attempts to authenticate from one address.
    TooManyFailedAttempts => 429, "rate_limit_error", "too_many_failed_attempts";
    /// A fault of the relay.
    InternalError => 500, "server_error", "internal_error";
    /// The provider failed.
    UpstreamError => 502, "upstream_error", "upstream_error";
    /// The provider took too long.
    UpstreamTimeout => 502, "upstream_error", "upstream_timeout";
    /// The provider refused for its own limits.
    UpstreamRateLimited => 502, "upstream_error", "upstream_rate_limited";
    /// The provider refused the operator's credential or account.
    UpstreamAuth => 502, "upstream_error", "upstream_auth";
    /// The operator's account with the provider is used up: the same to clients, for whom only the operator can help.
    UpstreamFunds => 502, "upstream_error", "upstream_auth";
    /// The provider's answer broke off.
    UpstreamTruncated => 502, "upstream_error", "upstream_truncated";
    /// The relay has as much to do as it can.
    Overloaded => 503, "server_error", "overloaded";
    /// The relay is going down.
    ShuttingDown => 503, "server_error", "shutting_down";
    /// The store cannot be read or written now; of the admin API.
    StoreUnavailable => 503, "server_error", "store_unavailable";
    /// Nothing can be billed now, so nothing is sold.
    BillingUnavailable => 503, "server_error", "billing_unavailable";
}

impl Refusal {
    /// A refusal with a message and nothing else.
    pub fn new(cause: Cause, message: impl Into<Cow<'static, str>>) -> Self {
        Self { cause, message: message.into(), param: None, retry_after_ms: None, allow: None }
    }

    /// Names the parameter at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<Box<str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after_ms(mut self, milliseconds: u64) -> Self {
        self.retry_after_ms = Some(milliseconds);
        self
    }

    /// The one answer to every failed authentication.
    pub fn invalid_api_key() -> Self {
        Self::new(Cause::InvalidApiKey, "Incorrect API key provided. Check the key, or make a new one.")
    }

    /// The body that clients get: `{"error":{"message","type","param","code"}}`.
    pub fn to_json(&self) -> Vec<u8> {
        let body = serde_json::json!({"error": {
            "message": self.message,
            "type": self.cause.kind(),
            "param": self.param,
            "code": self.cause.code(),
        }});
        body.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_openais_error_object() {
        let refusal = Refusal::new(Cause::MissingField, "you must provide a \"model\"").param("model");
        let body: serde_json::Value = serde_json::from_slice(&refusal.to_json()).unwrap();
        assert_eq!(body["error"]["message"], "you must provide a \"model\"");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["param"], "model");
        assert_eq!(body["error"]["code"], "missing_field");
    }

    #[test]
    fn every_status_is_an_error() {
        for cause in Cause::ALL {
            assert!((400..=599).contains(&cause.status()), "{cause:?}");
        }
    }
}
