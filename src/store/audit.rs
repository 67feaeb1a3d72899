//! Re-derives from the ledger's entries everything that is kept beside them, and names what differs.

use std::collections::HashMap;

use uuid::Uuid;

use super::engine::{Connection, Each, Sql, WHOLE_TABLE_SECONDS_MAX, query_as};
use super::months::{self, Month};
use super::rollup::SUMMED;
use super::totals::of_a_row;
use super::{Store, StoreError, open};
use crate::relay::meter::NanoUsd;

/// A place where the store contradicts its ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub kind: DifferenceKind,
    /// The account, key or request.
    pub id: String,
    /// What is kept beside the ledger; `None` where nothing is.
    pub stored: Option<NanoUsd>,
    /// What the ledger's entries say; `None` where there are none.
    pub derived: Option<NanoUsd>,
}

/// What can differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    /// An account's balance is not the sum of its entries.
    Balance,
    /// A key's spending is not the sum of its entries.
    Spent,
    /// A request's cost is not its entry's amount, or the two name different payers or requests.
    Cost,
    /// A request that cost something has no entry.
    EntryMissing,
    /// An entry of usage has no request.
    UsageMissing,
    /// A request is in another account's, key's, model's or provider's series, or in none.
    Series,
    /// The sums of a day are not those of its requests. Shown are the costs; what differs may be another sum.
    UsageDay,
    /// Entries name an account that is not there.
    AccountMissing,
    /// Entries name a key that is not there.
    KeyMissing,
    /// A month of a plan was paid from credit, and the ledger has no fee for it.
    FeeMissing,
    /// A voucher was redeemed, and the ledger has not its credit.
    VoucherMissing,
    /// Batches of a relay's spool never came; what they held is not known.
    SpoolGap,
    /// Nodes have leased more of an account than its balance. That may be for a moment, where a correction, a hold that was too small or
    /// the spool of a dead node has just taken from the balance; requests that run may hold it for as long as they do.
    Overleased,
    /// A node has leased less than nothing.
    LeaseNegative,
    /// A lease is of a node that is not there, or was made in another of its epochs.
    LeaseOrphan,
    /// A request is in the ledger, and in the spool it runs still and holds credit.
    HoldSettled,
    /// A request that runs has a row in the spool that cannot be read.
    HoldUnreadable,
}

impl DifferenceKind {
    /// One word for tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            DifferenceKind::Balance => "balance",
            DifferenceKind::Spent => "spent",
            DifferenceKind::Cost => "cost",
            DifferenceKind::EntryMissing => "entry_missing",
            DifferenceKind::UsageMissing => "usage_missing",
            DifferenceKind::Series => "series",
            DifferenceKind::UsageDay => "usage_day",
            DifferenceKind::AccountMissing => "account_missing",
            DifferenceKind::KeyMissing => "key_missing",
            DifferenceKind::FeeMissing => "fee_missing",
            DifferenceKind::VoucherMissing => "voucher_missing",
            DifferenceKind::SpoolGap => "spool_gap",
            DifferenceKind::Overleased => "overleased",
            DifferenceKind::LeaseNegative => "lease_negative",
            DifferenceKind::LeaseOrphan => "lease_orphan",
            DifferenceKind::HoldSettled => "hold_settled",
            DifferenceKind::HoldUnreadable => "hold_unreadable",
        }
    }
}

/// Each finds the differences of its kind: the id, what is stored, what the ledger says. Costs are positive in the usage
/// rows and negative in the ledger.
const CHECKS: &[(DifferenceKind, &str)] = &[
    (
        DifferenceKind::Balance,
        "SELECT a.id, a.balance_nano_usd, CAST(COALESCE(e.balance, 0) AS BIGINT) FROM accounts a LEFT JOIN \
         (SELECT account_id, SUM(amount_nano_usd) AS balance FROM ledger_entries GROUP BY account_id) e \
         ON e.account_id = a.id WHERE a.balance_nano_usd <> COALESCE(e.balance, 0) ORDER BY a.id",
    ),
    (
        DifferenceKind::Spent,
        "SELECT k.id, k.spent_nano_usd, CAST(COALESCE(e.spent, 0) AS BIGINT) FROM api_keys k LEFT JOIN \
         (SELECT key_id, -SUM(amount_nano_usd) AS spent FROM ledger_entries WHERE kind = 'usage' GROUP BY key_id) e \
         ON e.key_id = k.id WHERE k.spent_nano_usd <> COALESCE(e.spent, 0) ORDER BY k.id",
    ),
    (
        DifferenceKind::Cost,
        "SELECT u.request_id, u.cost_nano_usd, -e.amount_nano_usd FROM usage_records u \
         JOIN ledger_entries e ON e.seq = u.seq WHERE e.amount_nano_usd <> -u.cost_nano_usd \
         OR e.account_id <> u.account_id OR e.key_id IS NULL OR e.key_id <> u.key_id OR e.kind <> 'usage' \
         OR e.request_id IS NULL OR e.request_id <> u.request_id ORDER BY u.request_id",
    ),
    (
        DifferenceKind::EntryMissing,
        "SELECT u.request_id, u.cost_nano_usd, CAST(NULL AS BIGINT) FROM usage_records u \
         WHERE u.cost_nano_usd <> 0 \
         AND NOT EXISTS (SELECT 1 FROM ledger_entries e WHERE e.seq = u.seq) ORDER BY u.request_id",
    ),
    (
        DifferenceKind::UsageMissing,
        "SELECT COALESCE(e.request_id, 'entry ' || CAST(e.seq AS TEXT)), CAST(NULL AS BIGINT), -e.amount_nano_usd \
         FROM ledger_entries e WHERE (e.kind = 'usage' OR e.request_id IS NOT NULL) \
         AND NOT EXISTS (SELECT 1 FROM usage_records u WHERE u.seq = e.seq)",
    ),
    (
        DifferenceKind::Series,
        "SELECT u.request_id, u.cost_nano_usd, CAST(NULL AS BIGINT) FROM usage_records u LEFT JOIN usage_series s \
         ON s.id = u.series WHERE s.id IS NULL OR s.account_id <> u.account_id OR s.key_id <> u.key_id \
         OR s.model <> u.model OR s.provider <> u.provider ORDER BY u.request_id",
    ),
    (
        DifferenceKind::AccountMissing,
        "SELECT e.account_id, CAST(NULL AS BIGINT), CAST(SUM(e.amount_nano_usd) AS BIGINT) FROM ledger_entries e \
         WHERE NOT EXISTS (SELECT 1 FROM accounts a WHERE a.id = e.account_id) \
         GROUP BY e.account_id ORDER BY e.account_id",
    ),
    (
        DifferenceKind::KeyMissing,
        "SELECT e.key_id, CAST(NULL AS BIGINT), CAST(-SUM(e.amount_nano_usd) AS BIGINT) FROM ledger_entries e \
         WHERE e.key_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM api_keys k WHERE k.id = e.key_id) \
         GROUP BY e.key_id ORDER BY e.key_id",
    ),
    (
        DifferenceKind::FeeMissing,
        "SELECT p.subscription_id || '.' || CAST(p.period AS TEXT), p.price_nano_usd, CAST(NULL AS BIGINT) \
         FROM subscription_periods p JOIN subscriptions s ON s.id = p.subscription_id WHERE p.seq IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM ledger_entries e WHERE e.seq = p.seq AND e.kind = 'fee' \
         AND e.account_id = s.account_id) ORDER BY p.subscription_id, p.period",
    ),
    (
        DifferenceKind::VoucherMissing,
        "SELECT v.batch_id || ' of ' || v.account_id, b.amount_nano_usd, e.amount_nano_usd FROM vouchers v \
         JOIN voucher_batches b ON b.id = v.batch_id LEFT JOIN ledger_entries e ON e.seq = v.seq \
         WHERE v.redeemed_at_ms IS NOT NULL AND (e.seq IS NULL OR e.kind <> 'grant' \
         OR e.account_id <> v.account_id OR e.amount_nano_usd <> b.amount_nano_usd) ORDER BY v.batch_id, v.digest",
    ),
    (
        DifferenceKind::SpoolGap,
        "SELECT writer || '/' || CAST(first AS TEXT) || '-' || CAST(last AS TEXT), CAST(NULL AS BIGINT), \
         CAST(NULL AS BIGINT) FROM spool_gaps ORDER BY writer, first",
    ),
    (
        DifferenceKind::Overleased,
        "SELECT l.account_id, l.leased, COALESCE(a.balance_nano_usd, 0) FROM \
         (SELECT account_id, CAST(SUM(amount_nano_usd) AS BIGINT) AS leased FROM leases GROUP BY account_id) AS l \
         LEFT JOIN accounts a ON a.id = l.account_id \
         WHERE l.leased > 0 AND l.leased > COALESCE(a.balance_nano_usd, 0) ORDER BY l.account_id",
    ),
    (
        DifferenceKind::LeaseNegative,
        "SELECT account_id || ' at ' || node_id, amount_nano_usd, CAST(NULL AS BIGINT) FROM leases \
         WHERE amount_nano_usd < 0 ORDER BY account_id, node_id",
    ),
    (
        DifferenceKind::LeaseOrphan,
        "SELECT l.account_id || ' at ' || l.node_id, l.amount_nano_usd, CAST(NULL AS BIGINT) FROM leases l \
         LEFT JOIN nodes n ON n.id = l.node_id AND n.epoch = l.epoch WHERE n.id IS NULL \
         ORDER BY l.account_id, l.node_id",
    ),
];

impl Store {
    /// Compares balances, spendings and requests with the ledger's entries, and the sums by day with the requests, all as of
    /// one moment. Empty when all is well.
    pub async fn audit(&self) -> Result<Vec<Difference>, StoreError> {
        let mut transaction = self.read().await?;
        let mut differences = Vec::new();
        let detached = months::detached(&mut transaction).await?;
        for (kind, sql) in CHECKS {
            let sql = match kind {
                DifferenceKind::UsageMissing => Sql::Built(format!("{sql}{} ORDER BY e.seq", but_ids_of(&detached))),
                _ => Sql::Same(sql),
            };
            differences.extend(check(&mut transaction, *kind, sql).await?);
        }
        for sql in sums_checks(&detached) {
            differences.extend(check(&mut transaction, DifferenceKind::UsageDay, Sql::Built(sql)).await?);
        }
        open::shrink(&mut transaction).await?;
        Ok(differences)
    }
}

/// Each day's sums of a series against its requests; and those of an account, and of a model at a provider, against those of their
/// series. What stands on one side only differs too. Of days whose requests are detached there is nothing to compare with.
fn sums_checks(detached: &[Month]) -> [String; 3] {
    let both = |id: &str, by: &str, kept: &str, derived: &str| {
        let differs = SUMMED.map(|sum| format!("SUM(side * {sum}) <> 0")).join(" OR ");
        format!(
            "SELECT {id}, CAST(SUM(CASE WHEN side = 1 THEN cost_nano_usd END) AS BIGINT), \
             CAST(SUM(CASE WHEN side = -1 THEN cost_nano_usd END) AS BIGINT) \
             FROM (SELECT 1 AS side, {kept} UNION ALL SELECT -1 AS side, {derived}) AS sides \
             GROUP BY {by} HAVING {differs} ORDER BY {by}"
        )
    };
    let sums = SUMMED.join(", ");
    let of_rows = SUMMED.map(|sum| format!("{} AS {sum}", of_a_row(sum))).join(", ");
    let of_series = SUMMED.map(|sum| format!("d.{sum}")).join(", ");
    [
        both(
            "'day ' || CAST(day AS TEXT) || ' series ' || CAST(series AS TEXT)",
            "day, series",
            &format!("day, series, {sums} FROM usage_days WHERE 1 = 1{}", but_days_of("day", detached)),
            &format!(
                "started_at_ms / 86400000 AS day, series, {of_rows} FROM usage_records WHERE 1 = 1{}",
                but_days_of("started_at_ms / 86400000", detached)
            ),
        ),
        both(
            "'day ' || CAST(day AS TEXT) || ' ' || account_id",
            "day, account_id",
            &format!("day, account_id, {sums} FROM usage_accounts"),
            &format!("d.day, s.account_id, {of_series} FROM usage_days d JOIN usage_series s ON s.id = d.series"),
        ),
        both(
            "'day ' || CAST(day AS TEXT) || ' ' || model || ' at ' || provider",
            "day, model, provider",
            &format!("day, model, provider, {sums} FROM usage_totals"),
            &format!(
                "d.day, s.model, s.provider, {of_series} FROM usage_days d JOIN usage_series s ON s.id = d.series"
            ),
        ),
    ]
}

/// Leaves out entries whose requests are detached.
fn but_ids_of(detached: &[Month]) -> String {
    let ids = detached.iter().filter_map(|month| month.ids());
    ids.map(|(first, end)| format!(" AND NOT (e.request_id >= '{first}' AND e.request_id < '{end}')")).collect()
}

/// Leaves out days whose requests are detached.
fn but_days_of(day: &str, detached: &[Month]) -> String {
    let days = detached.iter().filter_map(|month| month.days_and_beside());
    days.map(|(first, last)| format!(" AND NOT ({day} BETWEEN {first} AND {last})")).collect()
}

impl Store {
    /// Which of those requests are in the ledger, and what they cost.
    pub async fn settled_among(&self, requests: &[Uuid]) -> Result<HashMap<Uuid, NanoUsd>, StoreError> {
        const SELECT: Each = Each {
            sqlite: "SELECT request_id, cost_nano_usd FROM usage_records \
                 WHERE request_id IN (SELECT value FROM json_each($1))",
            postgres: "SELECT request_id, cost_nano_usd FROM usage_records \
                 WHERE request_id = ANY (ARRAY(SELECT jsonb_array_elements_text(CAST($1 AS JSONB))))",
        };
        let ids = serde_json::to_string(requests).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let rows: Vec<(String, i64)> = query_as(SELECT).bind(ids).fetch_all(&self.pool).await?;
        Ok(rows.into_iter().filter_map(|(id, cost)| Some((id.parse().ok()?, NanoUsd(cost)))).collect())
    }
}

async fn check(
    connection: &mut Connection,
    kind: DifferenceKind,
    sql: impl Into<Sql>,
) -> Result<Vec<Difference>, StoreError> {
    let rows: Vec<(String, Option<i64>, Option<i64>)> =
        query_as(sql).within_seconds(WHOLE_TABLE_SECONDS_MAX).fetch_all(connection).await?;
    let difference = |(id, stored, derived): (String, Option<i64>, Option<i64>)| Difference {
        kind,
        id,
        stored: stored.map(NanoUsd),
        derived: derived.map(NanoUsd),
    };
    Ok(rows.into_iter().map(difference).collect())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, record};
    use super::super::{NewVouchers, Offer, PaidBy};
    use super::*;
    use crate::relay::auth::KeyDigest;

    /// What the audit finds after a change behind the ledger's back.
    async fn found_after(sql: &'static str) -> Vec<(DifferenceKind, Option<i64>, Option<i64>)> {
        let fixture = Fixture::with_credit("5").await;
        fixture.store.settle(&[record(&fixture, 100), record(&fixture, 20)], None).await.unwrap();
        assert_eq!(fixture.store.audit().await.unwrap(), []);
        fixture.store.pool.run(sql).await.unwrap();
        let nano = |amount: Option<NanoUsd>| amount.map(|amount| amount.0);
        let found = fixture.store.audit().await.unwrap();
        found.into_iter().map(|found| (found.kind, nano(found.stored), nano(found.derived))).collect()
    }

    #[tokio::test]
    async fn a_doctored_balance_is_found() {
        let found = found_after("UPDATE accounts SET balance_nano_usd = balance_nano_usd + 1").await;
        assert_eq!(found, [(DifferenceKind::Balance, Some(4_999_999_881), Some(4_999_999_880))]);
    }

    #[tokio::test]
    async fn a_doctored_spending_is_found() {
        let found = found_after("UPDATE api_keys SET spent_nano_usd = 0").await;
        assert_eq!(found, [(DifferenceKind::Spent, Some(0), Some(120))]);
    }

    #[tokio::test]
    async fn a_doctored_cost_is_found() {
        let found = found_after("UPDATE usage_records SET cost_nano_usd = 21 WHERE cost_nano_usd = 20").await;
        let day = (DifferenceKind::UsageDay, Some(120), Some(121));
        assert_eq!(found, [(DifferenceKind::Cost, Some(21), Some(20)), day]);
    }

    #[tokio::test]
    async fn a_request_given_to_another_payer_is_found() {
        let found = found_after("UPDATE usage_records SET account_id = 'x' WHERE cost_nano_usd = 20").await;
        assert_eq!(found, [(DifferenceKind::Cost, Some(20), Some(20)), (DifferenceKind::Series, Some(20), None)]);
    }

    #[tokio::test]
    async fn a_deleted_entry_is_found_in_every_sum() {
        let found = found_after("DELETE FROM ledger_entries WHERE amount_nano_usd = -20").await;
        assert_eq!(
            found,
            [
                (DifferenceKind::Balance, Some(4_999_999_880), Some(4_999_999_900)),
                (DifferenceKind::Spent, Some(120), Some(100)),
                (DifferenceKind::EntryMissing, Some(20), None),
            ]
        );
    }

    #[tokio::test]
    async fn a_deleted_request_is_found() {
        let found = found_after("DELETE FROM usage_records WHERE cost_nano_usd = 20").await;
        let day = (DifferenceKind::UsageDay, Some(120), Some(100));
        assert_eq!(found, [(DifferenceKind::UsageMissing, None, Some(20)), day]);
    }

    #[tokio::test]
    async fn a_days_sum_that_drifts_is_found() {
        for (sql, found) in [
            ("UPDATE usage_days SET cost_nano_usd = cost_nano_usd + 1", vec![(Some(121), Some(120)); 1]),
            ("UPDATE usage_days SET requests = requests + 1", vec![(Some(120), Some(120))]),
            ("UPDATE usage_totals SET output_tokens = 0", vec![(Some(120), Some(120))]),
            ("DELETE FROM usage_totals", vec![(None, Some(120))]),
            ("UPDATE usage_accounts SET errors = 1", vec![(Some(120), Some(120))]),
            ("UPDATE usage_totals SET day = 7", vec![(None, Some(120)), (Some(120), None)]),
            (
                "INSERT INTO usage_days SELECT series, 9, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0 FROM usage_days",
                vec![(Some(5), None)],
            ),
        ] {
            // What is kept of the series is what the sums of all are held against.
            let both = sql.contains("usage_days");
            let of_series: Vec<_> =
                found.into_iter().map(|(stored, derived)| (DifferenceKind::UsageDay, stored, derived)).collect();
            let all = found_after(sql).await;
            assert_eq!(all[..of_series.len()], of_series, "{sql}");
            assert_eq!(all.len(), of_series.len() * if both { 3 } else { 1 }, "{sql}: {all:?}");
        }
    }

    #[tokio::test]
    async fn fees_and_vouchers_without_their_entries_are_found() {
        let fixture = Fixture::with_credit("5").await;
        let (store, id) = (&fixture.store, &fixture.account_id);
        let offer = Offer { plan: "pro", price: NanoUsd(30) };
        store.subscribe(id, offer, PaidBy::Credit, None, 2_000).await.unwrap();
        let code = KeyDigest([3; 32]);
        let new = NewVouchers { amount: NanoUsd(40), note: None, expires_at_ms: None };
        store.create_vouchers(&new, &[code], 2_000).await.unwrap();
        store.redeem_voucher(id, Some(&code), 2_000).await.unwrap();
        assert_eq!(store.audit().await.unwrap(), []);
        let doctored = "UPDATE ledger_entries SET kind = 'correction' WHERE kind = 'fee'; \
             UPDATE voucher_batches SET amount_nano_usd = 41";
        store.pool.run(doctored).await.unwrap();
        let found = store.audit().await.unwrap();
        let found: Vec<_> = found.iter().map(|found| (found.kind, found.stored, found.derived)).collect();
        let fee = (DifferenceKind::FeeMissing, Some(NanoUsd(30)), None);
        assert_eq!(found, [fee, (DifferenceKind::VoucherMissing, Some(NanoUsd(41)), Some(NanoUsd(40)))]);
    }

    #[tokio::test]
    async fn deleted_owners_are_found() {
        let found = found_after("DELETE FROM api_keys; DELETE FROM accounts").await;
        assert_eq!(
            found,
            [
                (DifferenceKind::AccountMissing, None, Some(4_999_999_880)),
                (DifferenceKind::KeyMissing, None, Some(120)),
            ]
        );
    }
}
