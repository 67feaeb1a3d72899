//! Sums by day, kept in the transaction that enters the requests that they are over.
//!
//! A parcel of requests is summed in memory first, so that a day's row is written once a parcel, whatever number of requests it is
//! about. Reading them is `totals`'.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, SqliteConnection};

use super::StoreError;
use super::bulk::{Insert, json, tokens};
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

/// The series of each record; those that there were none of yet are added.
pub(super) async fn series(connection: &mut SqliteConnection, records: &[UsageRecord]) -> Result<Vec<i64>, StoreError> {
    const SELECT: &str = "SELECT wanted.key, s.id FROM json_each($1) AS wanted JOIN usage_series s \
         ON s.account_id = wanted.value->>0 AND s.key_id = wanted.value->>1 AND s.model = wanted.value->>2 \
         AND s.provider = wanted.value->>3";
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
    let found: Vec<(i64, i64)> = sqlx::query_as(SELECT).bind(json(&kinds)?).fetch_all(&mut *connection).await?;
    let mut ids: Vec<Option<i64>> = vec![None; kinds.len()];
    for (place, id) in found {
        if let Some(place) = usize::try_from(place).ok().and_then(|place| ids.get_mut(place)) {
            *place = Some(id);
        }
    }
    if ids.contains(&None) {
        add_series(connection, &kinds, &mut ids).await?;
    }
    Ok(of_records.into_iter().filter_map(|place| ids.get(place).copied().flatten()).collect())
}

/// Adds those that have no id. Nobody else does meanwhile: the transaction holds the ledger's counter.
async fn add_series(
    connection: &mut SqliteConnection,
    kinds: &[Kind<'_>],
    ids: &mut [Option<i64>],
) -> Result<(), StoreError> {
    const LAST: &str = "SELECT COALESCE(MAX(id), 0) FROM usage_series";
    const INSERT: &str = "INSERT INTO usage_series (id, account_id, key_id, model, provider) \
         SELECT $2 + added.key, added.value->>0, added.value->>1, added.value->>2, added.value->>3 \
         FROM json_each($1) AS added";
    let last: i64 = sqlx::query_scalar(LAST).fetch_one(&mut *connection).await?;
    let mut added = Vec::new();
    let mut numbers = last + 1..;
    for (id, kind) in ids.iter_mut().zip(kinds).filter(|(id, _)| id.is_none()) {
        *id = numbers.next();
        added.push(kind);
    }
    sqlx::query(INSERT).bind(json(&added)?).bind(last + 1).execute(connection).await?;
    Ok(())
}

/// Adds requests to the sums of their days. Each comes with its series.
pub(super) async fn add<'a>(
    connection: &mut SqliteConnection,
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
            to.add(series)?;
            to.add(day)?;
            bind(to, sums)
        })
        .await?;
    ADD_TO_ACCOUNTS
        .run(connection, &accounts, |to, ((day, account_id), sums)| {
            to.add(*account_id)?;
            to.add(day)?;
            bind(to, sums)
        })
        .await?;
    ADD_TO_TOTALS
        .run(connection, &totals, |to, ((day, model, provider), sums)| {
            to.add(day)?;
            to.add(*model)?;
            to.add(*provider)?;
            bind(to, sums)
        })
        .await?;
    Ok(())
}

fn bind(to: &mut SqliteArguments, sums: &Sums) -> Result<(), BoxDynError> {
    sums.iter().try_for_each(|sum| to.add(*sum))
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
