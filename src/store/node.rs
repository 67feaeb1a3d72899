//! The nodes that sell from one store: who they are, and until when what they have leased is theirs.
//!
//! A node renews all that it has leased by one row, its own. Until `expires_at_ms` nobody else touches it. Whoever finds a node past
//! that buries it: its leases go, and its epoch rises, so that it cannot go on as if nothing had been. A node that nobody has buried
//! goes on as it was, however late it is: its credit was nobody else's meanwhile.
//!
//! Times are the callers', but [`Store::clock_ms`] tells them the database's, by which nodes whose clocks differ agree.

use std::sync::Arc;

use super::change::Counter;
use super::engine::{Connection, Each, query, query_as, query_scalar};
use super::{Store, StoreError};
use crate::relay::meter::NanoUsd;

/// For how long a node that has gone is told of.
const GONE_KEPT_MS: i64 = 24 * 60 * 60 * 1_000;

/// A node, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// `node_` and a UUIDv7 in hexadecimal; its spool's.
    pub id: Arc<str>,
    /// For people; need not be unique.
    pub name: String,
    /// The program's.
    pub version: String,
}

/// A node between two burials. What it has leased is leased in its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTerm {
    /// The node.
    pub id: Arc<str>,
    /// Rises whenever its leases were taken back.
    pub epoch: i64,
    /// The ledger's number at which it began.
    pub seq: i64,
    /// It is to get no more requests.
    pub draining: bool,
}

/// A node as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `node_` and a UUIDv7 in hexadecimal.
    pub id: String,
    /// For people; need not be unique.
    pub name: String,
    /// The program's.
    pub version: String,
    /// How often its leases were taken back, and one.
    pub epoch: i64,
    /// Milliseconds since the Unix epoch, of its last process.
    pub started_at_ms: i64,
    /// When it last renewed its leases. Milliseconds since the Unix epoch.
    pub seen_at_ms: i64,
    /// Until when they are its own. Milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
    /// It is to get no more requests.
    pub draining: bool,
    /// What it may still spend, of all accounts.
    pub leased: NanoUsd,
}

macro_rules! select_node {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, version, epoch, started_at_ms, seen_at_ms, expires_at_ms, draining, \
             (SELECT CAST(COALESCE(SUM(amount_nano_usd), 0) AS BIGINT) FROM leases WHERE node_id = nodes.id) \
             FROM nodes ",
            $rest
        )
    };
}

type NodeRow = (String, String, String, i64, i64, i64, i64, bool, i64);

impl From<NodeRow> for Node {
    fn from(row: NodeRow) -> Self {
        let (id, name, version, epoch, started_at_ms, seen_at_ms, expires_at_ms, draining, leased) = row;
        let leased = NanoUsd(leased);
        Self { id, name, version, epoch, started_at_ms, seen_at_ms, expires_at_ms, draining, leased }
    }
}

impl Store {
    /// The same store, from which requests of that node are settled: what they cost comes off what the node has leased.
    #[must_use]
    pub fn leasing(&self, node_id: Arc<str>) -> Self {
        Self { node: Some(node_id), ..self.clone() }
    }

    /// What time it is by the database, in milliseconds since the Unix epoch.
    pub async fn clock_ms(&self) -> Result<i64, StoreError> {
        const CLOCK: Each = Each {
            sqlite: "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS BIGINT)",
            postgres: "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        };
        Ok(query_scalar(CLOCK).fetch_one(&self.pool).await?)
    }

    /// A node begins, for the first time, again, or because it was buried. What it has leased and nobody has taken back stays its own.
    pub async fn begin_node(&self, node: &NodeName, now_ms: i64, lease_ms: i64) -> Result<NodeTerm, StoreError> {
        const BEGIN: &str = "INSERT INTO nodes \
             (id, name, version, epoch, started_at_ms, seen_at_ms, expires_at_ms, draining) \
             VALUES ($1, $2, $3, 1, $4, $4, $5, FALSE) ON CONFLICT (id) DO UPDATE SET name = excluded.name, \
             version = excluded.version, started_at_ms = excluded.started_at_ms, seen_at_ms = excluded.seen_at_ms, \
             expires_at_ms = excluded.expires_at_ms RETURNING epoch, draining";
        let mut transaction = self.write().await?;
        let seq = Counter::LedgerSeq.advance(&mut transaction, 1).await?;
        let begun = query_as(BEGIN).bind(&*node.id).bind(&node.name).bind(&node.version);
        let begun = begun.bind(now_ms).bind(now_ms.saturating_add(lease_ms));
        let (epoch, draining): (i64, bool) = begun.fetch_one(&mut *transaction).await?;
        bury(&mut transaction, now_ms).await?;
        transaction.commit().await?;
        Ok(NodeTerm { id: Arc::clone(&node.id), epoch, seq, draining })
    }

    /// A node lives, and what it has leased is its own for so long again; `None` where it was buried, and has to begin anew. Otherwise
    /// whether it is to get no more requests.
    pub async fn renew_node(&self, term: &NodeTerm, now_ms: i64, lease_ms: i64) -> Result<Option<bool>, StoreError> {
        const RENEW: &str = "UPDATE nodes SET seen_at_ms = $3, expires_at_ms = $4 WHERE id = $1 AND epoch = $2 \
             RETURNING draining";
        let renew = query_scalar(RENEW).bind(&*term.id).bind(term.epoch);
        Ok(renew.bind(now_ms).bind(now_ms.saturating_add(lease_ms)).fetch_optional(&self.writer).await?)
    }

    /// A node ends in good order: what it has leased is free at once.
    pub async fn end_node(&self, term: &NodeTerm, now_ms: i64) -> Result<(), StoreError> {
        const RETURN: &str = "DELETE FROM leases WHERE node_id = $1 AND epoch = $2";
        const END: &str = "UPDATE nodes SET seen_at_ms = $3, expires_at_ms = $3 WHERE id = $1 AND epoch = $2";
        let mut transaction = self.write().await?;
        Counter::LedgerSeq.advance(&mut transaction, 1).await?;
        query(RETURN).bind(&*term.id).bind(term.epoch).execute(&mut *transaction).await?;
        query(END).bind(&*term.id).bind(term.epoch).bind(now_ms).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Takes back what nodes had leased that are past their time, and forgets what nobody needs any more: leases of nothing and
    /// wants up to the ledger's number `stale_seq`, which everyone has heard of, and nodes that went long ago.
    pub async fn sweep_nodes(&self, now_ms: i64, stale_seq: i64) -> Result<(), StoreError> {
        const NEEDED: &str = "SELECT EXISTS (SELECT 1 FROM nodes WHERE expires_at_ms <= $1 \
             AND (expires_at_ms <= $2 OR EXISTS (SELECT 1 FROM leases WHERE node_id = nodes.id))) \
             OR EXISTS (SELECT 1 FROM lease_wants WHERE seq <= $3) \
             OR EXISTS (SELECT 1 FROM leases WHERE amount_nano_usd = 0 AND seq <= $3)";
        const WANTS: &str = "DELETE FROM lease_wants WHERE seq <= $1";
        const EMPTY: &str = "DELETE FROM leases WHERE amount_nano_usd = 0 AND seq <= $1";
        const GONE: &str = "DELETE FROM nodes WHERE expires_at_ms <= $1 \
             AND NOT EXISTS (SELECT 1 FROM leases WHERE node_id = nodes.id)";
        let gone_ms = now_ms.saturating_sub(GONE_KEPT_MS);
        let needed = query_scalar(NEEDED).bind(now_ms).bind(gone_ms).bind(stale_seq);
        if !needed.fetch_one(&self.pool).await? {
            return Ok(());
        }
        let mut transaction = self.write().await?;
        Counter::LedgerSeq.advance(&mut transaction, 1).await?;
        bury(&mut transaction, now_ms).await?;
        for (sql, upto) in [(WANTS, stale_seq), (EMPTY, stale_seq), (GONE, gone_ms)] {
            query(sql).bind(upto).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// All nodes, the longest known first.
    pub async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        let rows: Vec<NodeRow> = query_as(select_node!("ORDER BY id")).fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Node::from).collect())
    }

    /// Says that a node is to get no more requests, or that it is again. It hears of it when it next renews its leases.
    pub async fn set_node_draining(&self, id: &str, draining: bool) -> Result<Node, StoreError> {
        const SET: &str = "UPDATE nodes SET draining = $2 WHERE id = $1";
        let mut transaction = self.write().await?;
        query(SET).bind(id).bind(draining).execute(&mut *transaction).await?;
        let row: Option<NodeRow> =
            query_as(select_node!("WHERE id = $1")).bind(id).fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        row.map(Node::from).ok_or_else(|| StoreError::UnknownNode(id.to_owned()))
    }

    /// The nodes other than that one that lease credit of this store now.
    pub async fn other_nodes(&self, id: &str, now_ms: i64) -> Result<Vec<String>, StoreError> {
        const OTHERS: &str = "SELECT id FROM nodes WHERE id <> $1 AND expires_at_ms > $2 ORDER BY id";
        Ok(query_scalar(OTHERS).bind(id).bind(now_ms).fetch_all(&self.pool).await?)
    }
}

/// Takes back what nodes had leased that are past their time. The transaction has the ledger's counter, as whoever moves leases has.
pub(super) async fn bury(connection: &mut Connection, now_ms: i64) -> Result<(), StoreError> {
    const BURY: &str = "UPDATE nodes SET epoch = epoch + 1 WHERE expires_at_ms <= $1 \
         AND EXISTS (SELECT 1 FROM leases WHERE node_id = nodes.id) RETURNING id";
    const TAKE_BACK: &str = "DELETE FROM leases WHERE node_id = $1";
    let buried: Vec<String> = query_scalar(BURY).bind(now_ms).fetch_all(&mut *connection).await?;
    for node in buried {
        query(TAKE_BACK).bind(&node).execute(&mut *connection).await?;
        tracing::warn!(node, "a node did not renew its leases in time; they were taken back");
    }
    Ok(())
}
