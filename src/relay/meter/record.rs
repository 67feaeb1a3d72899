//! The finished request as it is billed, stored and reported.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{NanoUsd, Usage};

/// One request, finished: the row of `usage`, and the ledger's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// UUIDv7 minted at admission; the answer's `x-request-id` and the ledger entry's id.
    #[serde(with = "as_text")]
    pub request_id: Uuid,
    /// Who pays.
    pub account_id: Arc<str>,
    /// With which key it was asked.
    pub key_id: Arc<str>,
    /// The public id of the model.
    pub model: Arc<str>,
    /// Who answered, or was asked last.
    pub provider: Arc<str>,
    /// The HTTP status that the client got.
    pub status: u16,
    /// What was used.
    pub usage: Usage,
    /// What it costs.
    pub cost: NanoUsd,
    /// What the provider charges for it; `None` where nobody has said what that would be. For the operator's eyes: it stands in no
    /// answer, and not in the request's own object.
    pub provider_cost: Option<NanoUsd>,
    /// Whether `usage` is the relay's own count, because the provider reported none.
    pub estimated: bool,
    /// Whether the answer ended before its end: by the client, the provider or a shutdown.
    pub interrupted: bool,
    /// Milliseconds since the Unix epoch.
    pub started_at_ms: i64,
    /// From the request's arrival to the answer's first byte.
    pub first_token_ms: Option<i64>,
    /// From the request's arrival to the answer's last byte.
    pub total_ms: i64,
}

/// Ids as the text that people and the store know them by.
mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Uuid::parse_str(&text).map_err(D::Error::custom)
    }
}
