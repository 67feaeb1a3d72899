//! How records that are spooled together are written: as JSON in which each name stands once.
//!
//! ```json
//! {"names":["acct_1","key_1","gpt-4o","openai"],"records":[["0198…",0,1,2,3,200,[7,0,0,0,3,0],100,false,false,1700000000000,12,500]]}
//! ```
//!
//! What providers charge stands beside the records, in their order, so that versions that know nothing of it read the rest; where it is
//! known of none of them, it is left out.
//!
//! A quarter of the records' own JSON, which counts because the spool's cost is its bytes. A file of another version can be told from
//! this one by what its batches are made of, and by people without this program.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::relay::meter::{NanoUsd, Usage, UsageRecord};

/// Id; account, key, model and provider as places in the names; status; tokens; cost; estimated, interrupted; beginning, first token
/// and end as in [`UsageRecord`].
type Row = (Uuid, usize, usize, usize, usize, u16, [u64; 6], i64, bool, bool, i64, Option<i64>, i64);

#[derive(Debug, Serialize, Deserialize)]
struct Batch<N, R> {
    names: Vec<N>,
    records: Vec<R>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    provider_costs: Vec<Option<i64>>,
}

/// Records as they are spooled.
pub(super) fn encode(records: &[&UsageRecord]) -> Result<String, serde_json::Error> {
    serde_json::to_string(&batch(records))
}

/// Writes one record as a batch of its own after what is there.
pub(super) fn encode_one(record: &UsageRecord, to: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    serde_json::to_writer(to, &batch(&[record]))
}

fn batch<'a>(records: &[&'a UsageRecord]) -> Batch<&'a str, Row> {
    let mut names = Names::default();
    let rows = records.iter().map(|record| row(record, &mut names)).collect();
    let mut provider_costs: Vec<_> = records.iter().map(|record| record.provider_cost.map(|cost| cost.0)).collect();
    leave_out_if_unknown(&mut provider_costs);
    Batch { names: names.all, records: rows, provider_costs }
}

/// Names, each once, in the order in which they came.
#[derive(Default)]
struct Names<'a> {
    all: Vec<&'a str>,
    /// The places of those that are not among the first, which are looked through: mostly there are no others.
    others: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    const FIRST: usize = 8;

    fn place(&mut self, name: &'a str) -> usize {
        if let Some(place) = self.all.iter().take(Self::FIRST).position(|known| *known == name) {
            return place;
        }
        let next = self.all.len();
        let place = if next < Self::FIRST { next } else { *self.others.entry(name).or_insert(next) };
        if place == next {
            self.all.push(name);
        }
        place
    }
}

fn leave_out_if_unknown(provider_costs: &mut Vec<Option<i64>>) {
    if provider_costs.iter().all(Option::is_none) {
        provider_costs.clear();
    }
}

fn row<'a>(record: &'a UsageRecord, names: &mut Names<'a>) -> Row {
    let Usage { input, cache_read, cache_write_5m, cache_write_1h, output, reasoning } = record.usage;
    (
        record.request_id,
        names.place(&record.account_id),
        names.place(&record.key_id),
        names.place(&record.model),
        names.place(&record.provider),
        record.status,
        [input, cache_read, cache_write_5m, cache_write_1h, output, reasoning],
        record.cost.0,
        record.estimated,
        record.interrupted,
        record.started_at_ms,
        record.first_token_ms,
        record.total_ms,
    )
}

fn record(row: Row, names: &[Arc<str>], provider_cost: Option<i64>) -> Option<UsageRecord> {
    let (
        request_id,
        account,
        key,
        model,
        provider,
        status,
        tokens,
        cost,
        estimated,
        interrupted,
        started,
        first,
        total,
    ) = row;
    let [input, cache_read, cache_write_5m, cache_write_1h, output, reasoning] = tokens;
    Some(UsageRecord {
        request_id,
        account_id: names.get(account)?.clone(),
        key_id: names.get(key)?.clone(),
        model: names.get(model)?.clone(),
        provider: names.get(provider)?.clone(),
        status,
        usage: Usage { input, cache_read, cache_write_5m, cache_write_1h, output, reasoning },
        cost: NanoUsd(cost),
        provider_cost: provider_cost.map(NanoUsd),
        estimated,
        interrupted,
        started_at_ms: started,
        first_token_ms: first,
        total_ms: total,
    })
}

/// What could be read of a batch.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Read {
    pub(super) records: Vec<UsageRecord>,
    /// The batch without its readable records, where not all could be read.
    pub(super) unreadable: Option<String>,
}

/// Reads every record that can be read, whatever has become of others.
pub(super) fn decode(body: &str) -> Read {
    let Ok(Batch { names, records, provider_costs }) = serde_json::from_str::<Batch<Arc<str>, &RawValue>>(body) else {
        return Read { records: Vec::new(), unreadable: Some(body.to_owned()) };
    };
    let mut read = Read::default();
    let (mut unreadable, mut costs_of_unreadable) = (Vec::new(), Vec::new());
    for (row, provider_cost) in records.into_iter().zip(provider_costs.into_iter().chain(std::iter::repeat(None))) {
        match serde_json::from_str(row.get()).ok().and_then(|row| record(row, &names, provider_cost)) {
            Some(record) => read.records.push(record),
            None => {
                unreadable.push(row);
                costs_of_unreadable.push(provider_cost);
            }
        }
    }
    if !unreadable.is_empty() {
        leave_out_if_unknown(&mut costs_of_unreadable);
        let rest = serde_json::to_string(&Batch { names, records: unreadable, provider_costs: costs_of_unreadable });
        read.unreadable = Some(rest.unwrap_or_else(|_| body.to_owned()));
    }
    read
}

#[cfg(test)]
mod tests {
    use super::super::spool::record;
    use super::*;

    #[test]
    fn every_field_comes_back() {
        let most = u64::MAX;
        let full = UsageRecord {
            model: "quoted \"\\ \u{1F600}".into(),
            usage: Usage {
                input: most,
                cache_read: 1,
                cache_write_5m: 2,
                cache_write_1h: 3,
                output: most - 1,
                reasoning: 4,
            },
            cost: NanoUsd(i64::MAX),
            estimated: true,
            interrupted: false,
            first_token_ms: None,
            request_id: Uuid::from_u128(u128::MAX),
            ..record(1)
        };
        let others = UsageRecord { key_id: "acct_1".into(), account_id: "key_1".into(), ..record(2) };
        let body = encode(&[&full, &others, &record(3)]).unwrap();
        assert_eq!(decode(&body), Read { records: vec![full, others, record(3)], unreadable: None });
        assert_eq!(body.matches("acct_1").count(), 1, "{body}");
    }

    #[test]
    fn what_providers_charge_stands_beside_and_may_be_missing() {
        let known = UsageRecord { provider_cost: Some(NanoUsd(60)), ..record(2) };
        let body = encode(&[&record(1), &known, &record(3)]).unwrap();
        assert!(body.ends_with("],\"provider_costs\":[null,60,null]}"), "{body}");
        assert_eq!(decode(&body).records, [record(1), known.clone(), record(3)]);
        let second = known.request_id.to_string();
        let told = decode(&body.replace(&second, "?")).unreadable.unwrap();
        assert_eq!(decode(&told.replace('?', &second)).records, [known], "{told}");
        let of_an_older_version = encode(&[&record(1), &record(3)]).unwrap();
        assert!(!of_an_older_version.contains("provider_costs"), "{of_an_older_version}");
        assert_eq!(decode(&of_an_older_version).records, [record(1), record(3)]);
    }

    #[test]
    fn many_names_come_back_each_written_once() {
        let of = |number: u128| UsageRecord { key_id: format!("key_{}", number % 50).into(), ..record(number) };
        let records: Vec<_> = (1..=200).map(of).collect();
        let body = encode(&records.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(decode(&body), Read { records: records.clone(), unreadable: None });
        assert!(["\"key_0\"", "\"key_49\"", "\"moonshot\""].iter().all(|name| body.matches(name).count() == 1));

        let mut one = b"before".to_vec();
        encode_one(&records[7], &mut one).unwrap();
        let text = std::str::from_utf8(&one).unwrap().strip_prefix("before").unwrap();
        assert_eq!(text, encode(&[&records[7]]).unwrap());
    }

    #[test]
    fn what_is_readable_is_read_and_the_rest_told() {
        let body = encode(&[&record(1), &record(2), &record(3)]).unwrap();
        let second = record(2).request_id.to_string();
        let read = decode(&body.replace(&second, "?"));
        assert_eq!(read.records, [record(1), record(3)]);
        let told = read.unreadable.unwrap();
        assert!(told.contains("[\"?\",") && told.contains("acct_1"), "{told}");
        assert_eq!(told.matches("[7,").count(), 1, "only that one: {told}");
        // Mended by hand, it can be read.
        assert_eq!(decode(&told.replace('?', &second)).records, [record(2)]);

        let nameless = decode(&body.replace("\"moonshot\"", "7"));
        assert!(nameless.records.is_empty() && nameless.unreadable.is_some());
        let misplaced = decode(&body.replace(",0,1,2,3,200,", ",0,1,2,9,200,"));
        assert!(misplaced.records.is_empty() && misplaced.unreadable.is_some());
        for body in ["", "{}", "[]", "{\"names\":[],\"records\":[[", "null"] {
            assert_eq!(decode(body), Read { records: Vec::new(), unreadable: Some(body.to_owned()) });
        }
    }
}
