//! Settling: finished requests become usage rows and, where there is something to enter, ledger entries, each at most once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::bulk::{self, BALANCES, Kept, SPENDINGS};
use super::change::Counter;
use super::engine::Connection;
use super::{Store, StoreError, lease, rollup, spool};
use crate::relay::admit::Lease;
use crate::relay::meter::{NanoUsd, UsageRecord};

/// The most that one request is charged: a million dollars. A cost above it is a provider's nonsense, and would leave
/// sums that no longer fit.
const COST_MAX: NanoUsd = NanoUsd(1_000_000_000_000_000);

/// A request as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The request.
    pub request_id: Uuid,
    /// Whether this call entered it; otherwise an earlier one had.
    pub fresh: bool,
    /// Who paid.
    pub account_id: Arc<str>,
    /// The account's balance after the whole call.
    pub balance: NanoUsd,
    /// The ledger entry up to which `balance` counts.
    pub balance_seq: i64,
    /// What the settling node may still spend of that after the whole call, where nodes lease credit; of number 0 where the call did
    /// not change it.
    pub lease: Option<Lease>,
    /// The key.
    pub key_id: Arc<str>,
    /// What the key has spent after the whole call.
    pub spent: NanoUsd,
    /// The ledger entry up to which `spent` counts.
    pub spent_seq: i64,
}

/// Which batches of a spool records are: all those of one writer from one number to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolCursor<'a> {
    /// The process that wrote them. It numbers its batches from 1 on without a gap.
    pub writer: &'a str,
    /// The first.
    pub first: i64,
    /// The last.
    pub last: i64,
}

impl Settled {
    /// What the node may still spend of the account, and as of which number of the ledger.
    pub fn credit(&self) -> Lease {
        self.lease.unwrap_or(Lease { amount: self.balance, seq: self.balance_seq })
    }
}

impl Store {
    /// Enters finished requests in one transaction: a usage row, a ledger entry of minus its cost, the account's balance,
    /// the key's spending, the day's sums, and the node's lease where nodes lease credit. A request that failed and cost nothing has its usage row and no entry. A request that was
    /// settled before is left as it is, so a call may be repeated.
    ///
    /// With a cursor it is remembered up to where the writer's batches are entered, and batches at or below that are not entered
    /// again, whatever they hold. Batches that were left out are missed for ever: that is logged, and found by every audit.
    ///
    /// It fails only when the database does, and then nothing was entered: a request whose account or key is not there
    /// is entered nevertheless (with sums of 0 in the answer), for the audit to name.
    pub async fn settle(
        &self,
        records: &[UsageRecord],
        cursor: Option<SpoolCursor<'_>>,
    ) -> Result<Vec<Settled>, StoreError> {
        self.prepare_months(records.iter().map(|record| &record.request_id)).await;
        let mut transaction = self.write().await?;
        if let Some(cursor) = cursor
            && !spool::advance(&mut transaction, cursor, records.len()).await?
        {
            let mut settled = entered_before(&mut transaction, records).await?;
            if self.node.is_some() {
                settled.iter_mut().for_each(|settled| settled.lease = Some(Lease::default()));
            }
            return Ok(settled);
        }
        let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
        let last_seq = Counter::LedgerSeq.advance(&mut transaction, count).await?;
        let first_seq = last_seq - count + 1;
        let series = self.series.of(&mut transaction, records).await?;
        let repeated = bulk::insert_usage(&mut transaction, first_seq, records, &series.ids).await?;
        let unentered: Vec<i64> =
            (first_seq..).zip(records).filter(|(_, record)| !is_entered(record)).map(|(seq, _)| seq).collect();
        bulk::insert_entries(&mut transaction, first_seq, last_seq, &unentered).await?;
        let (mut by_account, mut by_key) = (Sums::new(), Sums::new());
        for (seq, record) in (first_seq..).zip(records) {
            let fresh = !repeated.contains(&seq);
            let moves = fresh && is_entered(record);
            let charge = if moves { Sum { amount: charged(record), seq } } else { Sum::default() };
            by_account.entry(&record.account_id).or_default().add(charge);
            by_key.entry(&record.key_id).or_default().add(charge);
        }
        charge(&mut transaction, &BALANCES, &mut by_account, i64::saturating_sub).await?;
        charge(&mut transaction, &SPENDINGS, &mut by_key, i64::saturating_add).await?;
        let leases = match &self.node {
            Some(node) => Some(lease::charge(&mut transaction, node, first_seq, last_seq).await?),
            None => None,
        };
        let fresh = (first_seq..)
            .zip(records.iter().zip(series.ids.iter().copied()))
            .filter(|(seq, _)| !repeated.contains(seq));
        rollup::add(&mut transaction, fresh.map(|(_, record)| record)).await?;
        transaction.commit().await?;
        self.series.learn(series);
        let settled = |(seq, record): (i64, &UsageRecord)| {
            let settled = settled(record, !repeated.contains(&seq), &by_account, &by_key);
            // A node that has no lease of an account has nothing of it; but what did not move is no news.
            let moved = settled.balance_seq >= first_seq;
            let none = Lease { amount: NanoUsd(0), seq: if moved { settled.balance_seq } else { 0 } };
            let lease = |leases: &HashMap<String, Lease>| leases.get(&*record.account_id).copied().unwrap_or(none);
            Settled { lease: leases.as_ref().map(lease), ..settled }
        };
        Ok((first_seq..).zip(records).map(settled).collect())
    }
}

/// The answer for records of which none is entered again.
async fn entered_before(connection: &mut Connection, records: &[UsageRecord]) -> Result<Vec<Settled>, StoreError> {
    let (mut by_account, mut by_key) = (Sums::new(), Sums::new());
    for record in records {
        by_account.entry(&record.account_id).or_default();
        by_key.entry(&record.key_id).or_default();
    }
    charge(connection, &BALANCES, &mut by_account, i64::saturating_sub).await?;
    charge(connection, &SPENDINGS, &mut by_key, i64::saturating_add).await?;
    Ok(records.iter().map(|record| settled(record, false, &by_account, &by_key)).collect())
}

fn settled(record: &UsageRecord, fresh: bool, by_account: &Sums<'_>, by_key: &Sums<'_>) -> Settled {
    let balance = by_account.get(&*record.account_id).copied().unwrap_or_default();
    let spent = by_key.get(&*record.key_id).copied().unwrap_or_default();
    Settled {
        request_id: record.request_id,
        fresh,
        account_id: record.account_id.clone(),
        balance: balance.amount,
        balance_seq: balance.seq,
        lease: None,
        key_id: record.key_id.clone(),
        spent: spent.amount,
        spent_seq: spent.seq,
    }
}

/// By account or key.
type Sums<'a> = BTreeMap<&'a str, Sum>;

/// An amount, and the last ledger entry that it includes; 0 where it includes none.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    amount: NanoUsd,
    seq: i64,
}

impl Sum {
    fn add(&mut self, other: Sum) {
        self.amount = NanoUsd(self.amount.0.saturating_add(other.amount.0));
        self.seq = self.seq.max(other.seq);
    }
}

/// Charges each of the sums that are kept beside the ledger, and leaves the new sum in the charge's place, or 0 where no sum is
/// kept. Nobody can have moved a sum between its reading and its writing: the transaction holds the ledger's counter.
async fn charge(
    connection: &mut Connection,
    kept: &Kept,
    charges: &mut Sums<'_>,
    charge: fn(i64, i64) -> i64,
) -> Result<(), StoreError> {
    let ids: Vec<&str> = charges.keys().copied().collect();
    let stored = kept.read(connection, &ids).await?;
    let stored: HashMap<&str, (i64, i64)> = stored.iter().map(|(id, amount, seq)| (&**id, (*amount, *seq))).collect();
    let mut moved = Vec::with_capacity(ids.len());
    for (id, sum) in charges {
        *sum = match stored.get(id) {
            None => Sum::default(),
            Some(&(amount, seq)) if sum.seq == 0 => Sum { amount: NanoUsd(amount), seq },
            Some(&(amount, _)) => {
                let amount = charge(amount, sum.amount.0);
                moved.push((*id, amount, sum.seq));
                Sum { amount: NanoUsd(amount), seq: sum.seq }
            }
        };
    }
    kept.write(connection, &moved).await
}

/// Whether a record's request is in the ledger: not where it failed before it cost anything, for then no money moved. A whole
/// answer that was free is there, with an amount of 0.
fn is_entered(record: &UsageRecord) -> bool {
    charged(record) != NanoUsd(0) || (record.status < 400 && !record.interrupted)
}

/// What a record's request is charged.
pub(super) fn charged(record: &UsageRecord) -> NanoUsd {
    record.cost.clamp(NanoUsd(0), COST_MAX)
}

/// What the provider charges for a record's request, where that is known.
pub(super) fn provider_charged(record: &UsageRecord) -> Option<NanoUsd> {
    record.provider_cost.map(|cost| cost.clamp(NanoUsd(0), COST_MAX))
}

#[cfg(test)]
mod tests {
    use super::super::engine::query_scalar;
    use super::super::fixture::{Fixture, record};
    use super::*;
    use crate::relay::meter::Usage;

    #[tokio::test]
    async fn a_request_is_entered_once_however_often_it_is_settled() {
        let fixture = Fixture::with_credit("5").await;
        let (first, second) = (record(&fixture, 100), record(&fixture, 20));
        let settled = fixture.store.settle(&[first.clone(), second.clone(), first.clone()], None).await.unwrap();
        assert_eq!(settled.iter().map(|one| one.fresh).collect::<Vec<_>>(), [true, true, false]);
        let again = fixture.store.settle(&[second, first], None).await.unwrap();
        for one in settled.iter().chain(&again) {
            assert_eq!((one.balance, one.balance_seq), (NanoUsd(4_999_999_880), 3));
            assert_eq!((one.spent, one.spent_seq), (NanoUsd(120), 3));
        }
        assert!(again.iter().all(|one| !one.fresh));
        assert_eq!(fixture.account().await.balance, NanoUsd(4_999_999_880));
        assert_eq!(fixture.store.audit().await.unwrap(), []);
    }

    #[tokio::test]
    async fn an_empty_call_changes_nothing() {
        let fixture = Fixture::with_credit("5").await;
        let before = fixture.store.balances_since(0).await.unwrap();
        assert_eq!(fixture.store.settle(&[], None).await.unwrap(), []);
        assert_eq!(fixture.store.balances_since(0).await.unwrap(), before);
    }

    #[tokio::test]
    async fn a_request_that_failed_has_an_entry_only_if_it_cost_something() {
        let fixture = Fixture::with_credit("5").await;
        let with = |cost, status, interrupted| UsageRecord { status, interrupted, ..record(&fixture, cost) };
        let entered = [with(0, 200, false), with(9, 200, true), with(8, 499, true), with(7, 502, false)];
        let others = [with(0, 502, false), with(0, 499, true), with(0, 200, true), with(0, 400, false)];
        let settled = fixture.store.settle(&[entered.clone(), others.clone()].concat(), None).await.unwrap();
        assert!(settled.iter().all(|one| one.fresh && one.balance_seq == 5 && one.spent_seq == 5), "{settled:?}");
        assert_eq!(fixture.account().await.balance, NanoUsd(5_000_000_000 - 24));
        let ids = "SELECT request_id FROM ledger_entries WHERE kind = 'usage' ORDER BY seq";
        let ids: Vec<String> = query_scalar(ids).fetch_all(&fixture.store.pool).await.unwrap();
        assert_eq!(ids, entered.map(|record| record.request_id.to_string()));
        assert_eq!(fixture.store.audit().await.unwrap(), []);

        let again = fixture.store.settle(&others, None).await.unwrap();
        assert!(again.iter().all(|one| !one.fresh && one.balance_seq == 5 && one.balance == NanoUsd(4_999_999_976)));
        let usage = fixture.store.usage(&Default::default(), None, 100).await.unwrap();
        assert_eq!(usage.len(), 8, "each has its row");
    }

    #[tokio::test]
    async fn failures_alone_move_no_sum() {
        let fixture = Fixture::with_credit("5").await;
        let before = fixture.store.balances_since(0).await.unwrap();
        let failed = UsageRecord { status: 502, ..record(&fixture, 0) };
        let settled = fixture.store.settle(&[failed], None).await.unwrap();
        assert_eq!((settled[0].balance, settled[0].balance_seq), (NanoUsd(5_000_000_000), 1));
        let after = fixture.store.balances_since(0).await.unwrap();
        assert_eq!((after.accounts, after.keys), (before.accounts, before.keys));
    }

    #[tokio::test]
    async fn nonsense_of_a_provider_stays_exact() {
        let fixture = Fixture::with_credit("5").await;
        let mut records: Vec<_> = (0..20).map(|_| record(&fixture, i64::MAX)).collect();
        for record in &mut records {
            record.usage = Usage { input: u64::MAX, output: u64::MAX, ..Usage::default() };
        }
        fixture.store.settle(&records, None).await.unwrap();
        assert_eq!(fixture.account().await.balance, NanoUsd(5_000_000_000 - 20 * COST_MAX.0));
        assert_eq!(fixture.store.audit().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_request_of_an_unknown_account_is_entered_for_the_audit_to_name() {
        let fixture = Fixture::with_credit("5").await;
        let mut lost = record(&fixture, 7);
        lost.account_id = "acct_lost".into();
        let settled = fixture.store.settle(&[lost, record(&fixture, 3)], None).await.unwrap();
        assert_eq!((settled[0].fresh, settled[0].balance, settled[0].balance_seq), (true, NanoUsd(0), 0));
        assert_eq!(settled[1].balance, NanoUsd(4_999_999_997));
        let named: Vec<_> = fixture.store.audit().await.unwrap().into_iter().map(|found| found.id).collect();
        assert_eq!(named, ["acct_lost"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_handles_on_one_file_lose_nothing() {
        let fixture = Fixture::with_credit("5").await;
        let other = Store::open(&fixture.url).await.unwrap();
        let mut writers = Vec::new();
        for (handle, cost) in [(fixture.store.clone(), 1), (other.clone(), 2), (fixture.store.clone(), 3)] {
            let records: Vec<_> = (0..60).map(|_| record(&fixture, cost)).collect();
            writers.push(tokio::spawn(async move {
                for pair in records.chunks(2) {
                    handle.settle(pair, None).await.unwrap();
                }
            }));
        }
        for _ in 0..20 {
            other.credit(&fixture.account_id, NanoUsd(10), None, 0).await.unwrap();
            fixture.store.changes_since(0).await.unwrap();
        }
        for writer in writers {
            writer.await.unwrap();
        }
        assert_eq!(fixture.account().await.balance, NanoUsd(5_000_000_000 + 20 * 10 - 60 * (1 + 2 + 3)));
        assert_eq!(other.audit().await.unwrap(), []);
    }
}
