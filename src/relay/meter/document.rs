//! The finished request as people and other programs read it: one JSON object, the same wherever one leaves the relay.

use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;
use utoipa::ToSchema;

use super::{Usage, UsageRecord};

/// A request in JSON. Names and units are what receivers build on: they do not change.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Request)]
pub struct UsageDocument<'a> {
    request_id: String,
    account_id: &'a str,
    key_id: &'a str,
    model: &'a str,
    provider: &'a str,
    status: u16,
    #[serde(flatten)]
    tokens: TokensDocument,
    cost_nano_usd: i64,
    estimated: bool,
    interrupted: bool,
    #[schema(format = DateTime)]
    started_at: String,
    #[schema(required)]
    first_token_ms: Option<i64>,
    total_ms: i64,
}

/// Tokens by class, one key a class.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tokens)]
pub struct TokensDocument {
    input_tokens: u64,
    cache_read_tokens: u64,
    cache_write_5m_tokens: u64,
    cache_write_1h_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
}

impl From<&Usage> for TokensDocument {
    fn from(usage: &Usage) -> Self {
        Self {
            input_tokens: usage.input,
            cache_read_tokens: usage.cache_read,
            cache_write_5m_tokens: usage.cache_write_5m,
            cache_write_1h_tokens: usage.cache_write_1h,
            output_tokens: usage.output,
            reasoning_tokens: usage.reasoning,
        }
    }
}

impl<'a> From<&'a UsageRecord> for UsageDocument<'a> {
    fn from(record: &'a UsageRecord) -> Self {
        Self {
            request_id: record.request_id.to_string(),
            account_id: &record.account_id,
            key_id: &record.key_id,
            model: &record.model,
            provider: &record.provider,
            status: record.status,
            tokens: TokensDocument::from(&record.usage),
            cost_nano_usd: record.cost.0,
            estimated: record.estimated,
            interrupted: record.interrupted,
            started_at: rfc3339(record.started_at_ms),
            first_token_ms: record.first_token_ms,
            total_ms: record.total_ms,
        }
    }
}

/// A time in milliseconds since the Unix epoch as RFC 3339 in UTC, to the millisecond.
pub fn rfc3339(unix_ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| unix_ms.to_string())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::relay::meter::NanoUsd;

    #[test]
    fn a_request_is_written_in_the_words_of_the_contract() {
        let record = UsageRecord {
            request_id: Uuid::from_u128(1),
            account_id: "acct_1".into(),
            key_id: "key_1".into(),
            model: "a/b".into(),
            provider: "p".into(),
            status: 200,
            usage: Usage {
                input: 1,
                cache_read: 2,
                cache_write_5m: 3,
                cache_write_1h: 4,
                output: u64::MAX,
                reasoning: 6,
            },
            cost: NanoUsd(i64::MAX),
            provider_cost: Some(NanoUsd(1)),
            estimated: true,
            interrupted: false,
            started_at_ms: 1_795_000_000_123,
            first_token_ms: None,
            total_ms: 9,
        };
        let written = serde_json::to_string(&UsageDocument::from(&record)).unwrap();
        let expected = concat!(
            r#"{"request_id":"00000000-0000-0000-0000-000000000001","account_id":"acct_1","key_id":"key_1","#,
            r#""model":"a/b","provider":"p","status":200,"input_tokens":1,"cache_read_tokens":2,"#,
            r#""cache_write_5m_tokens":3,"cache_write_1h_tokens":4,"output_tokens":18446744073709551615,"#,
            r#""reasoning_tokens":6,"cost_nano_usd":9223372036854775807,"estimated":true,"interrupted":false,"#,
            r#""started_at":"2026-11-18T11:06:40.123Z","first_token_ms":null,"total_ms":9}"#
        );
        assert_eq!(written, expected);
    }
}
