//! Leases: which part of an account's balance is in which node's hands.
//!
//! Free is what is left of a balance beside all leases of it, and of that alone leases are made larger. What a node has spent comes off
//! its lease and off the balance in one transaction, so what is free stays as it is. A lease never falls below nothing: what a request
//! cost above its hold comes out of what is free.
//!
//! Leases are moved under the ledger's counter, as money is, and numbered by it: two nodes cannot be given the same money, and of two
//! news about a lease the later one is known. So a node may hear of its leases by three ways (the answer to what it asked, the
//! settling of what it sold, the poll) in any order.
//!
//! Absent: how much a node asks for, how much of what is free it is given, and when it gives something back, which is
//! `relay::admit`'s.

use std::collections::HashMap;
use std::sync::Arc;

use super::change::Counter;
use super::engine::{Connection, query, query_as, query_scalar};
use super::node::{self, NodeTerm};
use super::{Store, StoreError};
use crate::relay::admit::{Lease, LeaseAnswer, LeaseAsk, LeaseReturn, LeaseReturned};
use crate::relay::meter::NanoUsd;

/// What has changed about a node's leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseNews {
    /// What the node may spend of accounts now.
    pub leases: Vec<(Arc<str>, Lease)>,
    /// Accounts of which it has a lease and others want some, and the want's number.
    pub wanted: Vec<(Arc<str>, i64)>,
}

impl Store {
    /// Makes a node's leases larger, as far as the accounts have something free. Answers in the order of what is asked; `None` where the
    /// node was buried, and has to begin anew.
    ///
    /// Where an account has less free than is needed, and other nodes have leases that they have not been asked to give back since the
    /// ask began, the account is marked as wanted, and it pays to ask again.
    pub async fn take_leases(
        &self,
        term: &NodeTerm,
        asks: &[LeaseAsk],
        now_ms: i64,
    ) -> Result<Option<Vec<LeaseAnswer>>, StoreError> {
        let mut transaction = self.write().await?;
        let count = i64::try_from(asks.len()).unwrap_or(i64::MAX);
        let last_seq = Counter::LedgerSeq.advance(&mut transaction, count).await?;
        if !is_current(&mut transaction, term).await? {
            return Ok(None);
        }
        node::bury(&mut transaction, now_ms).await?;
        let mut answers = Vec::with_capacity(asks.len());
        for (seq, ask) in (last_seq - count + 1..).zip(asks) {
            answers.push(take(&mut transaction, term, ask, seq).await?);
        }
        transaction.commit().await?;
        Ok(Some(answers))
    }

    /// Makes a node's leases smaller by what it gives back. A lease that has changed since the number that the node knows it by stays as
    /// it is, so that a call may be repeated. Answers with the leases as they are then, in the same order.
    pub async fn return_leases(
        &self,
        term: &NodeTerm,
        returns: &[LeaseReturn],
    ) -> Result<Vec<LeaseReturned>, StoreError> {
        const RETURN: &str = "UPDATE leases SET amount_nano_usd = amount_nano_usd - $4, seq = $5, \
             answered = CASE WHEN answered < $6 THEN $6 ELSE answered END WHERE account_id = $1 AND node_id = $2 \
             AND epoch = $3 AND seq <= $7 AND amount_nano_usd >= $4";
        let mut transaction = self.write().await?;
        let count = i64::try_from(returns.len()).unwrap_or(i64::MAX);
        let last_seq = Counter::LedgerSeq.advance(&mut transaction, count).await?;
        let mut leases = Vec::with_capacity(returns.len());
        for (seq, given) in (last_seq - count + 1..).zip(returns) {
            let update = query(RETURN).bind(&*given.account_id).bind(&*term.id).bind(term.epoch);
            let update = update.bind(given.amount.0).bind(seq).bind(given.wanted.unwrap_or(0)).bind(given.seq);
            let taken = update.execute(&mut *transaction).await? > 0;
            let lease = told(&mut transaction, &term.id, &given.account_id).await?;
            let lease = lease.unwrap_or(Lease { amount: NanoUsd(0), seq });
            leases.push(LeaseReturned { account_id: given.account_id.clone(), lease, taken });
        }
        transaction.commit().await?;
        Ok(leases)
    }

    /// What has changed about a node's leases after the ledger's number `seq`: in them, in their accounts' balances, or because others
    /// want some.
    pub async fn leases_since(&self, node_id: &str, seq: i64) -> Result<LeaseNews, StoreError> {
        // Written so that each half of the condition has an index of its own.
        const LEASES: &str = "SELECT l.account_id, l.amount_nano_usd, l.seq, a.balance_nano_usd, a.balance_seq \
             FROM leases l JOIN accounts a ON a.id = l.account_id WHERE l.node_id = $1 \
             AND (l.seq > $2 OR l.account_id IN (SELECT id FROM accounts WHERE balance_seq > $2))";
        const WANTED: &str = "SELECT w.account_id, w.seq FROM lease_wants w JOIN leases l \
             ON l.account_id = w.account_id AND l.node_id = $1 WHERE w.seq > $2 AND l.answered < w.seq";
        let mut transaction = self.read().await?;
        let leases: Vec<(String, i64, i64, i64, i64)> =
            query_as(LEASES).bind(node_id).bind(seq).fetch_all(&mut *transaction).await?;
        let wanted: Vec<(String, i64)> = query_as(WANTED).bind(node_id).bind(seq).fetch_all(&mut *transaction).await?;
        let lease = |(account, amount, seq, balance, balance_seq): (String, i64, i64, i64, i64)| {
            (account.into(), capped((amount, seq), (balance, balance_seq)))
        };
        Ok(LeaseNews {
            leases: leases.into_iter().map(lease).collect(),
            wanted: wanted.into_iter().map(|(account, seq)| (account.into(), seq)).collect(),
        })
    }
}

/// What a node has leased is no more than the balance, whatever has become of that since.
fn capped((amount, seq): (i64, i64), (balance, balance_seq): (i64, i64)) -> Lease {
    Lease { amount: NanoUsd(amount.min(balance.max(0))), seq: seq.max(balance_seq) }
}

async fn is_current(connection: &mut Connection, term: &NodeTerm) -> Result<bool, StoreError> {
    let epoch: Option<i64> =
        query_scalar("SELECT epoch FROM nodes WHERE id = $1").bind(&*term.id).fetch_optional(connection).await?;
    Ok(epoch == Some(term.epoch))
}

/// A node's lease of an account, if it has one.
async fn told(connection: &mut Connection, node_id: &str, account_id: &str) -> Result<Option<Lease>, StoreError> {
    const TOLD: &str = "SELECT l.amount_nano_usd, l.seq, a.balance_nano_usd, a.balance_seq FROM leases l \
         JOIN accounts a ON a.id = l.account_id WHERE l.account_id = $1 AND l.node_id = $2";
    let row: Option<(i64, i64, i64, i64)> =
        query_as(TOLD).bind(account_id).bind(node_id).fetch_optional(connection).await?;
    Ok(row.map(|(amount, seq, balance, balance_seq)| capped((amount, seq), (balance, balance_seq))))
}

/// Answers one ask, as of the ledger's number `seq`.
async fn take(
    connection: &mut Connection,
    term: &NodeTerm,
    ask: &LeaseAsk,
    seq: i64,
) -> Result<LeaseAnswer, StoreError> {
    const BALANCE: &str = "SELECT balance_nano_usd FROM accounts WHERE id = $1";
    const LEASES: &str = "SELECT node_id, amount_nano_usd, answered FROM leases WHERE account_id = $1";
    const TAKE: &str = "INSERT INTO leases (account_id, node_id, epoch, amount_nano_usd, seq, answered) \
         VALUES ($1, $2, $3, $4, $5, 0) ON CONFLICT (account_id, node_id) DO UPDATE SET epoch = excluded.epoch, \
         amount_nano_usd = leases.amount_nano_usd + excluded.amount_nano_usd, seq = excluded.seq";
    // Wants are remembered for a minute or two.
    const SCARCE: &str = "SELECT EXISTS (SELECT 1 FROM lease_wants WHERE account_id = $1)";
    let account_id = &*ask.account_id;
    let balance: Option<i64> = query_scalar(BALANCE).bind(account_id).fetch_optional(&mut *connection).await?;
    let balance = balance.unwrap_or(0);
    let leases: Vec<(String, i64, i64)> = query_as(LEASES).bind(account_id).fetch_all(&mut *connection).await?;
    let own = leases.iter().find(|(node, ..)| **node == *term.id).map_or(0, |(_, amount, _)| *amount);
    let free = leases.iter().fold(balance, |free, (_, amount, _)| free.saturating_sub(*amount));
    let since = ask.since.unwrap_or(seq);
    let may_answer =
        |(node, amount, answered): &(String, i64, i64)| **node != *term.id && *amount > 0 && *answered < since;
    let may_come = leases.iter().any(may_answer);
    let is_scarce: bool = query_scalar(SCARCE).bind(account_id).fetch_one(&mut *connection).await?;
    let granted = ask.granted(NanoUsd(free), is_scarce, may_come).0;
    if granted > 0 {
        let take = query(TAKE).bind(account_id).bind(&*term.id).bind(term.epoch).bind(granted).bind(seq);
        take.execute(&mut *connection).await?;
    }
    let wanted = (granted < ask.need.0 && may_come).then_some(since);
    if ask.since.is_none() && wanted.is_some() {
        want(connection, account_id, seq).await?;
    }
    let lease = Lease { amount: NanoUsd(own.saturating_add(granted).min(balance.max(0))), seq };
    let free = NanoUsd(free.saturating_sub(granted));
    let is_short = granted < ask.need.0;
    Ok(LeaseAnswer { account_id: ask.account_id.clone(), lease, free, is_short, wanted })
}

/// Asks all nodes to give back what they have of the account and do not need.
pub(super) async fn want(connection: &mut Connection, account_id: &str, seq: i64) -> Result<(), StoreError> {
    const WANT: &str = "INSERT INTO lease_wants (account_id, seq) VALUES ($1, $2) \
         ON CONFLICT (account_id) DO UPDATE SET seq = excluded.seq";
    query(WANT).bind(account_id).bind(seq).execute(connection).await?;
    Ok(())
}

/// Asks nodes to give back what they can of an account whose balance has become less than what is leased of it: money was taken back.
pub(super) async fn want_where_overdone(
    connection: &mut Connection,
    account_id: &str,
    seq: i64,
) -> Result<(), StoreError> {
    const OVERDONE: &str = "INSERT INTO lease_wants (account_id, seq) SELECT a.id, $2 FROM accounts a \
         WHERE a.id = $1 AND a.balance_nano_usd < \
         (SELECT SUM(l.amount_nano_usd) FROM leases l WHERE l.account_id = a.id AND l.amount_nano_usd > 0) \
         ON CONFLICT (account_id) DO UPDATE SET seq = excluded.seq";
    query(OVERDONE).bind(account_id).bind(seq).execute(connection).await?;
    Ok(())
}

/// Takes what those of the usage rows cost off the node's leases, and tells the leases that changed. Where accounts have less than is
/// leased of them, because holds were too small or an old spool was settled, nodes are asked to give back what they can.
pub(super) async fn charge(
    connection: &mut Connection,
    node_id: &str,
    first_seq: i64,
    last_seq: i64,
) -> Result<HashMap<String, Lease>, StoreError> {
    const CHARGE: &str = "UPDATE leases SET seq = u.last, amount_nano_usd = \
         CASE WHEN leases.amount_nano_usd > u.cost THEN leases.amount_nano_usd - u.cost ELSE 0 END \
         FROM (SELECT account_id AS payer, CAST(SUM(cost_nano_usd) AS BIGINT) AS cost, MAX(seq) AS last \
         FROM usage_records WHERE seq BETWEEN $1 AND $2 GROUP BY account_id) AS u \
         WHERE leases.account_id = u.payer AND leases.node_id = $3";
    const TOLD: &str = "SELECT l.account_id, l.amount_nano_usd, l.seq, a.balance_nano_usd, a.balance_seq FROM leases l \
         JOIN accounts a ON a.id = l.account_id WHERE l.node_id = $3 AND l.seq BETWEEN $1 AND $2";
    const OVERDONE: &str = "INSERT INTO lease_wants (account_id, seq) SELECT a.id, $2 FROM accounts a \
         WHERE a.id IN (SELECT account_id FROM usage_records WHERE seq BETWEEN $1 AND $2) AND a.balance_nano_usd < \
         (SELECT SUM(l.amount_nano_usd) FROM leases l WHERE l.account_id = a.id AND l.amount_nano_usd > 0) \
         ON CONFLICT (account_id) DO UPDATE SET seq = excluded.seq";
    let update = query(CHARGE).bind(first_seq).bind(last_seq).bind(node_id);
    update.execute(&mut *connection).await?;
    query(OVERDONE).bind(first_seq).bind(last_seq).execute(&mut *connection).await?;
    let told = query_as(TOLD).bind(first_seq).bind(last_seq).bind(node_id);
    let told: Vec<(String, i64, i64, i64, i64)> = told.fetch_all(connection).await?;
    let lease = |(account, amount, seq, balance, balance_seq)| (account, capped((amount, seq), (balance, balance_seq)));
    Ok(told.into_iter().map(lease).collect())
}

#[cfg(test)]
mod tests;
