//! Usage as CloudEvents 1.0, in the JSON batch format.
//!
//! An event's id is the request's, so a receiver that keeps ids counts a request once however often it is told of it.

use serde::Serialize;

use crate::relay::meter::{UsageDocument, UsageRecord, rfc3339};

/// The media type of a batch. Without a charset: JSON is UTF-8, and OpenMeter compares the header as a whole
/// (`openmeter/ingest/httpdriver/ingest.go`).
pub const BATCH_CONTENT_TYPE: &str = "application/cloudevents-batch+json";

/// Every event's `type`. What a meter selects events by.
pub const EVENT_TYPE: &str = "tollgate.usage";

#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    id: String,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    subject: &'a str,
    time: String,
    data: UsageDocument<'a>,
}

/// Records as one JSON array of events: `subject` is the account, `time` the request's beginning, by which `tollgate usage`
/// groups days too, `data` the object of `tollgate usage --json`. `None` where it would be more than `bytes_max`.
///
/// # Errors
/// A record cannot be written as JSON.
pub fn encode_batch(
    records: &[UsageRecord],
    source: &str,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let mut body = Vec::with_capacity(bytes_max.min(records.len().saturating_mul(1024)));
    body.push(b'[');
    for (place, record) in records.iter().enumerate() {
        if place > 0 {
            body.push(b',');
        }
        let event = Event {
            specversion: "1.0",
            id: record.request_id.to_string(),
            source,
            kind: EVENT_TYPE,
            subject: &record.account_id,
            time: rfc3339(record.started_at_ms),
            data: UsageDocument::from(record),
        };
        serde_json::to_writer(&mut body, &event)?;
        if body.len() >= bytes_max {
            return Ok(None);
        }
    }
    body.push(b']');
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::relay::meter::{NanoUsd, Usage};

    fn record(number: u128) -> UsageRecord {
        UsageRecord {
            request_id: Uuid::from_u128(number),
            account_id: "acct_1".into(),
            key_id: "key_1".into(),
            model: "m".into(),
            provider: "p".into(),
            status: 200,
            usage: Usage { input: 7, output: 3, ..Usage::default() },
            cost: NanoUsd(100),
            provider_cost: None,
            estimated: false,
            interrupted: false,
            started_at_ms: 1_795_000_000_123,
            first_token_ms: Some(12),
            total_ms: 500,
        }
    }

    #[test]
    fn a_batch_is_an_array_of_cloud_events() {
        let body = encode_batch(&[record(1), record(2)], "tollgate", usize::MAX).unwrap().unwrap();
        let events: Vec<Value> = serde_json::from_slice(&body).unwrap();
        assert_eq!(events.len(), 2);
        let data = serde_json::to_value(UsageDocument::from(&record(1))).unwrap();
        let expected = json!({
            "specversion": "1.0",
            "id": "00000000-0000-0000-0000-000000000001",
            "source": "tollgate",
            "type": "tollgate.usage",
            "subject": "acct_1",
            "time": "2026-11-18T11:06:40.123Z",
            "data": data,
        });
        assert_eq!(events[0], expected);
        assert_eq!(events[1]["id"], "00000000-0000-0000-0000-000000000002");
    }

    #[test]
    fn a_batch_is_never_larger_than_allowed() {
        let whole = encode_batch(&[record(1), record(2)], "s", usize::MAX).unwrap().unwrap().len();
        assert_eq!(encode_batch(&[record(1), record(2)], "s", whole).unwrap().map(|body| body.len()), Some(whole));
        assert_eq!(encode_batch(&[record(1), record(2)], "s", whole - 1).unwrap(), None);
    }
}
