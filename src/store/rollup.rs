//! Sums by day, kept in the transaction that enters the requests that they are over.
//!
//! A parcel of requests is summed in memory first, so that a day's row is written once a parcel, whatever number of requests it is
//! about. Reading them is `totals`'.

use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex, PoisonError};

use sqlx::error::BoxDynError;

use super::StoreError;
use super::bulk::{json, tokens};
use super::engine::{Cells, Connection, Each, Insert, query, query_as, query_scalar};
use super::ledger::{charged, provider_charged};
use crate::relay::meter::UsageRecord;

/// A UTC day.
pub(super) const DAY_MS: i64 = 86_400_000;

/// What is summed up, in the order of [`Sums`].
pub(super) const SUMMED: [&str; SUMS] = [
    "requests",
    "errors",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_nano_usd",
    "provider_cost_nano_usd",
    "uncosted",
];

const SUMS: usize = 11;

/// Sums as [`SUMMED`] names them.
type Sums = [i64; SUMS];

/// From this status on an answer counts as an error.
const FIRST_ERROR_STATUS: u16 = 400;

/// Account, key, model and provider: what the requests of a series have in common.
type Kind<'a> = (&'a str, &'a str, &'a str, &'a str);

static ADD_TO_DAYS: LazyLock<Insert> = LazyLock::new(|| upsert("usage_days", &["series", "day"]));
static ADD_TO_ACCOUNTS: LazyLock<Insert> = LazyLock::new(|| upsert("usage_accounts", &["account_id", "day"]));
static ADD_TO_TOTALS: LazyLock<Insert> = LazyLock::new(|| upsert("usage_totals", &["day", "model", "provider"]));

fn upsert(table: &str, key: &[&str]) -> Insert {
    let added = SUMMED.map(|sum| format!("{sum} = {table}.{sum} + excluded.{sum}")).join(", ");
    let on_conflict = format!("ON CONFLICT ({}) DO UPDATE SET {added}", key.join(", "));
    Insert::new(table, &[key, &SUMMED].concat(), &on_conflict)
}

/// The numbers of series that are known to be in the store: they never change there, and asking for them costs as much as a row.
#[derive(Debug, Default)]
pub(super) struct KnownSeries(Mutex<HashMap<Box<str>, i64>>);

/// The series of a parcel of records.
pub(super) struct ParcelSeries {
    /// Of each record.
    pub(super) ids: Vec<i64>,
    /// Those that were not known before.
    learned: Vec<(Box<str>, i64)>,
}

impl KnownSeries {
    /// How many are known at the most, each in some 200 bytes.
    const MAX: usize = 16_384;

    /// The series of each record; those that there were none of yet are added.
    pub(super) async fn of(
        &self,
        connection: &mut Connection,
        records: &[UsageRecord],
    ) -> Result<ParcelSeries, StoreError> {
        let mut places: HashMap<Kind<'_>, usize> = HashMap::new();
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        let mut of_records = Vec::with_capacity(records.len());
        for record in records {
            let kind = kind(record);
            of_records.push(*places.entry(kind).or_insert_with(|| {
                kinds.push(kind);
                kinds.len() - 1
            }));
        }
        let texts: Vec<Box<str>> = kinds.iter().map(text_of).collect();
        let mut ids = self.known(&texts);
        let unknown: Vec<Kind<'_>> =
            kinds.iter().zip(&ids).filter(|(_, id)| id.is_none()).map(|(kind, _)| *kind).collect();
        let mut learned = Vec::with_capacity(unknown.len());
        if !unknown.is_empty() {
            let found = find_or_add(connection, &unknown).await?;
            let places = ids.iter_mut().zip(texts).filter(|(id, _)| id.is_none());
            for ((place, text), id) in places.zip(found) {
                *place = Some(id);
                learned.push((text, id));
            }
        }
        let ids = of_records.into_iter().filter_map(|place| ids.get(place).copied().flatten()).collect();
        Ok(ParcelSeries { ids, learned })
    }

    /// Takes over what was learned in a transaction, once that is committed: what it added might else never be there.
    pub(super) fn learn(&self, series: ParcelSeries) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() + series.learned.len() > Self::MAX {
            known.clear();
        }
        known.extend(series.learned.into_iter().take(Self::MAX));
    }

    fn known(&self, texts: &[Box<str>]) -> Vec<Option<i64>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        texts.iter().map(|text| known.get(text).copied()).collect()
    }
}

/// A kind in one text. No name has a line end.
fn text_of((account, key, model, provider): &Kind<'_>) -> Box<str> {
    [account, key, model, provider].map(|name| *name).join("\n").into()
}

/// The series of those kinds, in their order. Nobody else adds one meanwhile: the transaction holds the ledger's counter.
async fn find_or_add(connection: &mut Connection, kinds: &[Kind<'_>]) -> Result<Vec<i64>, StoreError> {
    // Postgres counts from 1.
    const SELECT: Each = Each {
        sqlite: "SELECT wanted.key, s.id FROM json_each($1) AS wanted JOIN usage_series s \
             ON s.account_id = wanted.value->>0 AND s.key_id = wanted.value->>1 AND s.model = wanted.value->>2 \
             AND s.provider = wanted.value->>3",
        postgres: "SELECT wanted.key - 1, s.id \
             FROM jsonb_array_elements(CAST($1 AS JSONB)) WITH ORDINALITY AS wanted (value, key) JOIN usage_series s \
             ON s.account_id = wanted.value->>0 AND s.key_id = wanted.value->>1 AND s.model = wanted.value->>2 \
             AND s.provider = wanted.value->>3",
    };
    const LAST: &str = "SELECT COALESCE(MAX(id), 0) FROM usage_series";
    const INSERT: Each = Each {
        sqlite: "INSERT INTO usage_series (id, account_id, key_id, model, provider) \
             SELECT $2 + added.key, added.value->>0, added.value->>1, added.value->>2, added.value->>3 \
             FROM json_each($1) AS added",
        postgres: "INSERT INTO usage_series (id, account_id, key_id, model, provider) \
             SELECT $2 + added.key - 1, added.value->>0, added.value->>1, added.value->>2, added.value->>3 \
             FROM jsonb_array_elements(CAST($1 AS JSONB)) WITH ORDINALITY AS added (value, key)",
    };
    let found: Vec<(i64, i64)> = query_as(SELECT).bind(json(&kinds)?).fetch_all(&mut *connection).await?;
    let found: HashMap<i64, i64> = found.into_iter().collect();
    let mut ids: Vec<Option<i64>> = (0..).zip(kinds).map(|(place, _)| found.get(&place).copied()).collect();
    if ids.contains(&None) {
        let last: i64 = query_scalar(LAST).fetch_one(&mut *connection).await?;
        let mut numbers = last + 1..;
        let mut added = Vec::new();
        for (id, kind) in ids.iter_mut().zip(kinds).filter(|(id, _)| id.is_none()) {
            *id = numbers.next();
            added.push(kind);
        }
        query(INSERT).bind(json(&added)?).bind(last + 1).execute(connection).await?;
    }
    Ok(ids.into_iter().flatten().collect())
}

/// Adds requests to the sums of their days. Each comes with its series.
pub(super) async fn add<'a>(
    connection: &mut Connection,
    records: impl Iterator<Item = (&'a UsageRecord, i64)>,
) -> Result<(), StoreError> {
    let mut days: BTreeMap<(i64, i64), Sums> = BTreeMap::new();
    let mut accounts: BTreeMap<(i64, &str), Sums> = BTreeMap::new();
    let mut totals: BTreeMap<(i64, &str, &str), Sums> = BTreeMap::new();
    for (record, series) in records {
        let day = record.started_at_ms / DAY_MS;
        let one = of_one(record);
        add_up(days.entry((day, series)).or_default(), &one);
        add_up(accounts.entry((day, &record.account_id)).or_default(), &one);
        add_up(totals.entry((day, &record.model, &record.provider)).or_default(), &one);
    }
    let days: Vec<_> = days.into_iter().collect();
    let accounts: Vec<_> = accounts.into_iter().collect();
    let totals: Vec<_> = totals.into_iter().collect();
    ADD_TO_DAYS
        .run(connection, &days, |to, ((day, series), sums)| {
            to.integer(*series)?;
            to.integer(*day)?;
            bind(to, sums)
        })
        .await?;
    ADD_TO_ACCOUNTS
        .run(connection, &accounts, |to, ((day, account_id), sums)| {
            to.text((*account_id).to_owned())?;
            to.integer(*day)?;
            bind(to, sums)
        })
        .await?;
    ADD_TO_TOTALS
        .run(connection, &totals, |to, ((day, model, provider), sums)| {
            to.integer(*day)?;
            to.text((*model).to_owned())?;
            to.text((*provider).to_owned())?;
            bind(to, sums)
        })
        .await?;
    Ok(())
}

fn bind(to: &mut Cells<'_>, sums: &Sums) -> Result<(), BoxDynError> {
    sums.iter().try_for_each(|sum| to.integer(*sum))
}

fn kind(record: &UsageRecord) -> Kind<'_> {
    (&record.account_id, &record.key_id, &record.model, &record.provider)
}

fn of_one(record: &UsageRecord) -> Sums {
    let usage = &record.usage;
    let provider_cost = provider_charged(record);
    [
        1,
        i64::from(record.status >= FIRST_ERROR_STATUS),
        tokens(usage.input),
        tokens(usage.cache_read),
        tokens(usage.cache_write_5m),
        tokens(usage.cache_write_1h),
        tokens(usage.output),
        tokens(usage.reasoning),
        charged(record).0,
        provider_cost.map_or(0, |cost| cost.0),
        i64::from(provider_cost.is_none() && usage.total() > 0),
    ]
}

fn add_up(sums: &mut Sums, one: &Sums) {
    for (sum, one) in sums.iter_mut().zip(one) {
        *sum = sum.saturating_add(*one);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, record};
    use super::*;

    #[tokio::test]
    async fn a_series_is_known_once_it_is_committed() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let (first, second) = (record(&fixture, 1), UsageRecord { model: "m".into(), ..record(&fixture, 2) });
        let mut given_up = store.write().await.unwrap();
        let series = store.series.of(&mut given_up, &[second.clone(), first.clone(), second.clone()]).await.unwrap();
        assert_eq!(series.ids, [1, 2, 1]);
        drop((given_up, series));
        store.settle(&[first.clone(), second.clone()], None).await.unwrap();
        let mut transaction = store.write().await.unwrap();
        query("DELETE FROM usage_series").execute(&mut *transaction).await.unwrap();
        let series = store.series.of(&mut transaction, &[second, first]).await.unwrap();
        assert_eq!(series.ids, [2, 1], "by what was committed, without asking");
        assert!(series.learned.is_empty());
    }

    #[tokio::test]
    async fn what_is_known_is_bounded() {
        let known = KnownSeries::default();
        for part in 0..3 {
            let learned = (0..KnownSeries::MAX / 2 + 1).map(|at| (format!("{part}/{at}").into(), 7)).collect();
            known.learn(ParcelSeries { ids: Vec::new(), learned });
        }
        assert_eq!(known.known(&["2/1".into(), "1/1".into()]), [Some(7), None]);
        assert!(known.0.lock().unwrap().len() <= KnownSeries::MAX);
    }
}
