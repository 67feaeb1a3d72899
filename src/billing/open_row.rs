//! How a request that runs is written: what it is billed by, should the process die before its end.
//!
//! ```json
//! {"account":"acct_1","key":"key_1","model":"gpt-4o","started_at_ms":1700000000000,"hold_nano_usd":378000,
//!  "passed":{"provider":"openai","tokens":[7,0,0,0,3,0],"cost_nano_usd":100,"first_token_ms":12,"total_ms":500}}
//! ```
//!
//! Nothing of the prompt or the answer stands in it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::recorder::Progress;
use crate::relay::meter::{NanoUsd, Usage, UsageRecord};

/// What the client of a request that died with its process would have been told, had it got anything.
const NOTHING_PASSED: u16 = 500;
/// What it was told where something had passed.
const SOMETHING_PASSED: u16 = 200;

/// What is known of a request from its admission on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) account: Arc<str>,
    pub(super) key: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) started_at_ms: i64,
    /// What it may come to cost.
    #[serde(rename = "hold_nano_usd")]
    pub(super) hold: i64,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    #[serde(skip_serializing_if = "Option::is_none")]
    passed: Option<Passed<&'a str>>,
}

#[derive(Deserialize)]
struct Found {
    #[serde(flatten)]
    facts: Facts,
    passed: Option<Passed<Arc<str>>>,
}

#[derive(Serialize, Deserialize)]
struct Passed<N> {
    provider: N,
    tokens: [u64; 6],
    #[serde(rename = "cost_nano_usd")]
    cost: i64,
    #[serde(rename = "provider_cost_nano_usd", default, skip_serializing_if = "Option::is_none")]
    provider_cost: Option<i64>,
    first_token_ms: Option<i64>,
    total_ms: i64,
}

/// A request as its row has it.
pub(super) fn encode(facts: &Facts, progress: Option<&Progress>) -> Result<String, serde_json::Error> {
    let passed = progress.map(|progress| {
        let Usage { input, cache_read, cache_write_5m, cache_write_1h, output, reasoning } = progress.usage;
        Passed {
            provider: &*progress.provider,
            tokens: [input, cache_read, cache_write_5m, cache_write_1h, output, reasoning],
            cost: progress.cost.0,
            provider_cost: progress.provider_cost.map(|cost| cost.0),
            first_token_ms: progress.first_token_ms,
            total_ms: progress.total_ms,
        }
    });
    serde_json::to_string(&Written { facts, passed })
}

/// What a row holds back from its account.
pub(super) fn held(body: &str) -> Result<(Arc<str>, NanoUsd), serde_json::Error> {
    #[derive(Deserialize)]
    struct Holding {
        account: Arc<str>,
        hold_nano_usd: i64,
    }
    let Holding { account, hold_nano_usd } = serde_json::from_str(body)?;
    Ok((account, NanoUsd(hold_nano_usd)))
}

/// The record of a request whose process died: what had passed at its last checkpoint, which is what its client had in hand for
/// certain. Without a first token it costs nothing.
pub(super) fn interrupted(id: Uuid, body: &str) -> Result<UsageRecord, serde_json::Error> {
    let Found { facts, passed } = serde_json::from_str(body)?;
    let mut record = UsageRecord {
        request_id: id,
        account_id: facts.account,
        key_id: facts.key,
        model: facts.model,
        provider: Arc::default(),
        status: NOTHING_PASSED,
        usage: Usage::default(),
        cost: NanoUsd(0),
        provider_cost: None,
        estimated: true,
        interrupted: true,
        started_at_ms: facts.started_at_ms,
        first_token_ms: None,
        total_ms: 0,
    };
    if let Some(passed) = passed {
        record.provider = passed.provider;
        record.total_ms = passed.total_ms;
        if passed.first_token_ms.is_some() {
            let [input, cache_read, cache_write_5m, cache_write_1h, output, reasoning] = passed.tokens;
            record.usage = Usage { input, cache_read, cache_write_5m, cache_write_1h, output, reasoning };
            record.status = SOMETHING_PASSED;
            record.cost = NanoUsd(passed.cost);
            record.provider_cost = passed.provider_cost.map(NanoUsd);
            record.first_token_ms = passed.first_token_ms;
        }
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            account: "acct_1".into(),
            key: "key_1".into(),
            model: "quoted \"\\ \u{1F600}".into(),
            started_at_ms: 1_700_000_000_000,
            hold: 378_000,
        }
    }

    fn progress(first_token_ms: Option<i64>) -> Progress {
        Progress {
            provider: "openai".into(),
            usage: Usage { input: u64::MAX, output: 3, reasoning: 1, ..Usage::default() },
            cost: NanoUsd(100),
            provider_cost: Some(NanoUsd(60)),
            first_token_ms,
            total_ms: 500,
        }
    }

    #[test]
    fn a_request_that_had_sent_nothing_costs_nothing() {
        let body = encode(&facts(), None).unwrap();
        assert_eq!(held(&body).unwrap(), ("acct_1".into(), NanoUsd(378_000)));
        let record = interrupted(Uuid::from_u128(7), &body).unwrap();
        assert_eq!((record.status, record.cost, record.usage), (500, NanoUsd(0), Usage::default()));
        assert!(record.interrupted && record.estimated);
        let before_the_first_token = encode(&facts(), Some(&progress(None))).unwrap();
        let record = interrupted(Uuid::from_u128(7), &before_the_first_token).unwrap();
        assert_eq!((record.status, record.cost, &*record.provider), (500, NanoUsd(0), "openai"));
    }

    #[test]
    fn what_had_passed_is_billed() {
        let body = encode(&facts(), Some(&progress(Some(12)))).unwrap();
        assert_eq!(held(&body).unwrap().1, NanoUsd(378_000));
        let record = interrupted(Uuid::from_u128(7), &body).unwrap();
        let expected = UsageRecord {
            request_id: Uuid::from_u128(7),
            account_id: "acct_1".into(),
            key_id: "key_1".into(),
            model: facts().model,
            provider: "openai".into(),
            status: 200,
            usage: progress(None).usage,
            cost: NanoUsd(100),
            provider_cost: Some(NanoUsd(60)),
            estimated: true,
            interrupted: true,
            started_at_ms: 1_700_000_000_000,
            first_token_ms: Some(12),
            total_ms: 500,
        };
        assert_eq!(record, expected);
        // As it was written before anyone knew what providers charge.
        let older = body.replace("\"provider_cost_nano_usd\":60,", "");
        assert_ne!(older, body);
        let record = interrupted(Uuid::from_u128(7), &older).unwrap();
        assert_eq!(record, UsageRecord { provider_cost: None, ..expected });
    }

    #[test]
    fn what_is_no_row_is_refused() {
        for body in ["", "{}", "[]", "{\"account\":\"a\"}"] {
            assert!(interrupted(Uuid::nil(), body).is_err() && held(body).is_err(), "{body}");
        }
    }
}
