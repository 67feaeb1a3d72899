//! Usage by month, where the store is in Postgres: each month's requests are a table of their own, which can be kept elsewhere or dropped
//! as one. Months are made ahead; a request whose month is not there is in the default one until that is made.
//!
//! A request's month is that of its id, a UUIDv7, which begins with the time that it was made at. SQLite has no such tables, and nothing
//! here does anything there.

use std::sync::atomic::{AtomicI64, Ordering};

use time::{Date, Month as CalendarMonth, OffsetDateTime};
use uuid::Uuid;

use super::engine::{Connection, Engine, Sql, query, query_scalar};
use super::rollup::DAY_MS;
use super::{Store, StoreError};

/// So many months are there beside the present one.
const AHEAD: i64 = 2;

/// The latest month that was asked for, so that the server is asked once a month. Months are counted from January of the year 0.
#[derive(Debug, Default)]
pub(super) struct MonthsMade(AtomicI64);

/// A month of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Month(i64);

impl Month {
    fn at(unix_ms: i64) -> Option<Self> {
        let date = OffsetDateTime::from_unix_timestamp(unix_ms.div_euclid(1_000)).ok()?.date();
        Some(Self(i64::from(date.year()) * 12 + i64::from(u8::from(date.month())) - 1))
    }

    /// That of a request's id; `None` where the id tells no time.
    fn of(request_id: &Uuid) -> Option<Self> {
        let (seconds, _) = request_id.get_timestamp()?.to_unix();
        Self::at(i64::try_from(seconds).ok()?.checked_mul(1_000)?)
    }

    /// As an operator writes it: `2026-11`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (year, month) = name.split_once('-')?;
        let (year, month): (i64, i64) = (year.parse().ok()?, month.parse().ok()?);
        (1..=12).contains(&month).then_some(Self(year * 12 + month - 1))
    }

    fn begins_ms(self) -> Option<i64> {
        let year = i32::try_from(self.0.div_euclid(12)).ok()?;
        let month = CalendarMonth::try_from(u8::try_from(self.0.rem_euclid(12) + 1).ok()?).ok()?;
        let date = Date::from_calendar_date(year, month, 1).ok()?;
        date.midnight().assume_utc().unix_timestamp().checked_mul(1_000)
    }

    /// Its ids are those from the first of these texts to before the second.
    pub(super) fn ids(self) -> Option<(String, String)> {
        let first_id = |month: Self| {
            let ms = month.begins_ms()?;
            Some(format!("{:08x}-{:04x}", ms >> 16, ms & 0xffff))
        };
        Some((first_id(self)?, first_id(Self(self.0 + 1))?))
    }

    /// Its days, counted from the Unix epoch, and one more on either side: a request that began around midnight may have its id from the
    /// other month.
    pub(super) fn days_and_beside(self) -> Option<(i64, i64)> {
        Some((self.begins_ms()? / DAY_MS - 1, Self(self.0 + 1).begins_ms()? / DAY_MS))
    }

    fn table(self) -> String {
        format!("usage_records_{:04}_{:02}", self.0.div_euclid(12), self.0.rem_euclid(12) + 1)
    }
}

impl Store {
    /// Makes the present months, where that has not been asked for since the month began. That it fails is no harm: requests have a place
    /// in any case.
    pub(super) async fn prepare_months<'a>(&self, request_ids: impl Iterator<Item = &'a Uuid>) {
        if self.pool.engine() != Engine::Postgres {
            return;
        }
        let Some(latest) = request_ids.filter_map(Month::of).map(|month| month.0).max() else { return };
        if self.months.0.fetch_max(latest, Ordering::Relaxed) >= latest {
            return;
        }
        if let Err(error) = self.make_months().await {
            tracing::warn!(%error, "the tables of the coming months' usage could not be made; usage is kept in the default one");
        }
    }

    /// Makes the table of the present month, by the server's clock, and those of the next ones, where there are none.
    pub(super) async fn make_months(&self) -> Result<(), StoreError> {
        const NOW: &str = "SELECT CAST(EXTRACT(EPOCH FROM now()) * 1000 AS BIGINT)";
        const THERE: &str = "SELECT CAST(c.relname AS TEXT) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = CAST('usage_records' AS REGCLASS)";
        if self.pool.engine() != Engine::Postgres {
            return Ok(());
        }
        let now_ms: i64 = query_scalar(NOW).fetch_one(&self.pool).await?;
        let there: Vec<String> = query_scalar(THERE).fetch_all(&self.pool).await?;
        let Some(Month(present)) = Month::at(now_ms) else { return Ok(()) };
        let missing = (present..=present + AHEAD).map(Month).filter(|month| !there.contains(&month.table()));
        for month in missing {
            self.make(month).await?;
        }
        self.months.0.fetch_max(present, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a month's table, and moves to it what was put into the default one. Whoever reads for long is not waited for for long:
    /// all who settle wait meanwhile.
    async fn make(&self, month: Month) -> Result<(), StoreError> {
        const IS_THERE: &str = "SELECT to_regclass($1) IS NOT NULL";
        let (Some((first, end)), table) = (month.ids(), month.table()) else { return Ok(()) };
        let mut transaction = self.write().await?;
        // Another node may have come first.
        let is_there: bool = query_scalar(IS_THERE).bind(&table).fetch_one(&mut *transaction).await?;
        if is_there {
            return Ok(());
        }
        for statement in [
            "SET LOCAL lock_timeout = '2s'".to_owned(),
            format!("CREATE TABLE {table} (LIKE usage_records INCLUDING ALL)"),
            "LOCK TABLE usage_records_default IN ACCESS EXCLUSIVE MODE".to_owned(),
            format!(
                "WITH moved AS (DELETE FROM usage_records_default WHERE request_id >= '{first}' AND request_id < '{end}' \
                 RETURNING *) INSERT INTO {table} SELECT * FROM moved"
            ),
            format!("ALTER TABLE usage_records ATTACH PARTITION {table} FOR VALUES FROM ('{first}') TO ('{end}')"),
        ] {
            query(Sql::Built(statement)).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// The months that the operator has detached. None where the store is in SQLite.
pub(super) async fn detached(connection: &mut Connection) -> Result<Vec<Month>, StoreError> {
    if matches!(connection, Connection::Sqlite(_)) {
        return Ok(Vec::new());
    }
    let names = query_scalar("SELECT month FROM usage_months_detached ORDER BY month");
    let names: Vec<String> = names.fetch_all(connection).await?;
    Ok(names.iter().filter_map(|name| Month::named(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::DifferenceKind;
    use super::super::fixture::{Fixture, record, skip_without_postgres};
    use super::*;
    use crate::relay::meter::UsageRecord;

    const NOVEMBER_MS: i64 = 1_793_491_200_000;

    fn id_at(unix_ms: i64, number: u128) -> Uuid {
        Uuid::from_u128((u128::try_from(unix_ms).unwrap() << 80) | (7 << 76) | (1 << 63) | number)
    }

    #[test]
    fn a_months_ids_are_between_its_texts() {
        let november = Month::named("2026-11").unwrap();
        assert_eq!((november.table().as_str(), november.begins_ms()), ("usage_records_2026_11", Some(NOVEMBER_MS)));
        let (first, end) = november.ids().unwrap();
        let (early, late) = (id_at(NOVEMBER_MS, 0), id_at(NOVEMBER_MS + 30 * DAY_MS - 1, u128::from(u64::MAX >> 2)));
        for inside in [early, late] {
            assert_eq!(Month::of(&inside), Some(november));
            assert!(*first <= *inside.to_string() && *inside.to_string() < *end, "{first} {inside} {end}");
        }
        for (outside, is_before) in [(NOVEMBER_MS - 1, true), (NOVEMBER_MS + 30 * DAY_MS, false)] {
            let text = id_at(outside, 0).to_string();
            assert_eq!((text < first, text >= end), (is_before, !is_before), "{text}");
        }
        assert_eq!(november.days_and_beside(), Some((NOVEMBER_MS / DAY_MS - 1, NOVEMBER_MS / DAY_MS + 30)));
        assert_eq!(Month::named("2026-13"), None);
        assert_eq!(Month::of(&Uuid::from_u128(7)), None);
    }

    async fn rows_of(store: &Store, table: &str) -> i64 {
        let count = Sql::Built(format!("SELECT COUNT(*) FROM {table}"));
        query_scalar(count).fetch_one(&store.pool).await.unwrap()
    }

    #[tokio::test]
    async fn a_month_that_is_made_late_takes_over_its_requests_and_enters_none_twice() {
        if skip_without_postgres().is_none() {
            return;
        }
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let at = |unix_ms, number| UsageRecord { request_id: id_at(unix_ms, number), ..record(&fixture, 7) };
        let records =
            [at(NOVEMBER_MS - 1, 1), at(NOVEMBER_MS, 2), at(NOVEMBER_MS + 29 * DAY_MS, 3), at(NOVEMBER_MS, 4)];
        store.settle(&records[..3], None).await.unwrap();
        // Whatever month it is now, a month of another century is not there.
        let far = Month::named("2226-11").unwrap();
        let far_id = id_at(far.begins_ms().unwrap() + 5, 9);
        let of_far = UsageRecord { request_id: far_id, ..record(&fixture, 7) };
        store.settle(std::slice::from_ref(&of_far), None).await.unwrap();
        assert!(rows_of(store, "usage_records_default").await >= 1);
        store.make(far).await.unwrap();
        store.make(far).await.unwrap();
        assert_eq!(rows_of(store, "usage_records_2226_11").await, 1);
        let again = store.settle(&[of_far, records[1].clone(), records[3].clone()], None).await.unwrap();
        assert_eq!(again.iter().map(|one| one.fresh).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(rows_of(store, "usage_records").await, 5);
        assert_eq!(store.audit().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_detached_month_is_not_missed_and_another_is() {
        if skip_without_postgres().is_none() {
            return;
        }
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let (old, older) = (Month::named("2020-02").unwrap(), Month::named("2020-01").unwrap());
        let records = [(old, 10), (older, 20)].map(|(month, day)| {
            let started_at_ms = month.begins_ms().unwrap() + day * DAY_MS;
            UsageRecord { request_id: id_at(started_at_ms, 1), started_at_ms, ..record(&fixture, 7) }
        });
        for month in [old, older] {
            store.make(month).await.unwrap();
        }
        store.settle(&records, None).await.unwrap();
        store.pool.run("ALTER TABLE usage_records DETACH PARTITION usage_records_2020_01").await.unwrap();
        let kinds = async || store.audit().await.unwrap().into_iter().map(|found| found.kind).collect::<Vec<_>>();
        assert_eq!(kinds().await, [DifferenceKind::UsageMissing, DifferenceKind::UsageDay]);
        store.pool.run("INSERT INTO usage_months_detached VALUES ('2020-01')").await.unwrap();
        assert_eq!(kinds().await, []);
        store.pool.run("DELETE FROM usage_records").await.unwrap();
        assert_eq!(kinds().await, [DifferenceKind::UsageMissing, DifferenceKind::UsageDay]);
    }

    #[tokio::test]
    async fn this_month_and_the_next_two_are_there() {
        if skip_without_postgres().is_none() {
            return;
        }
        let fixture = Fixture::with_credit("5").await;
        fixture.store.settle(&[record(&fixture, 7)], None).await.unwrap();
        assert_eq!(rows_of(&fixture.store, "usage_records_default").await, 0);
        const MONTHS: &str = "SELECT COUNT(*) FROM pg_inherits WHERE inhparent = CAST('usage_records' AS REGCLASS)";
        let months: i64 = query_scalar(MONTHS).fetch_one(&fixture.store.pool).await.unwrap();
        assert_eq!(months, 2 + AHEAD);
    }
}
