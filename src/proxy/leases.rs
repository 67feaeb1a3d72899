//! The node's leases of accounts' credit at work: what is asked of the store and when, who waits for it, and until when it holds.
//!
//! Everything goes through one task, several accounts in one transaction, so that a request that goes away leaves nothing half done,
//! and many requests of an account are one question. What to ask and to give back is decided in [`LeaseBook`].
//!
//! Leases end by the node's own clock, which never jumps, a margin before they end in the store: past that nothing is sold, until they
//! are renewed. While nobody has taken them back they are renewed as they were.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::clock::{Clock, micros};
use crate::relay::admit::{LeaseAsk, LeaseBook, LeaseCounts, LeaseVerdict, Purse};
use crate::relay::meter::NanoUsd;
use crate::store::{NodeName, NodeTerm, Store, StoreError};

/// How often all accounts are looked at.
const TURN: Duration = Duration::from_millis(750);

/// How long the store may take for one statement about leases. Requests wait for it.
const STORE_MAX: Duration = Duration::from_secs(2);

/// How long a request waits in all, for the store and for other nodes.
const WAIT_MAX: Duration = Duration::from_secs(4);

/// A node is seen at least so often, and so hears what is wanted of it.
const RENEW_EVERY_MAX: Duration = Duration::from_secs(2);

/// How often it is looked which nodes are gone.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// What every node has heard of by now: they ask each second.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// How many accounts are asked for, or given back, in one transaction.
const ACCOUNTS_MAX: usize = 256;

/// How often what could not be given back, because it had changed, is tried again at once.
const RETURN_ROUNDS_MAX: usize = 3;

/// The node's leases.
pub(super) struct Leases {
    store: Store,
    node: NodeName,
    clock: Clock,
    /// How long leases last that are not renewed.
    lease: Duration,
    book: Mutex<LeaseBook>,
    term: Mutex<NodeTerm>,
    /// Until then they hold, by the node's clock.
    until_us: AtomicU64,
    /// What is to be added to the node's clock to have the store's, in milliseconds.
    offset_ms: AtomicI64,
    is_draining: AtomicBool,
    /// This process gives back what the node does not need. Another one that is the node too may know of needs that this one does not.
    is_in_charge: AtomicBool,
    /// The ledger's number up to which the node has heard.
    heard_seq: AtomicI64,
    /// There is something to ask, or others want something.
    wake: Notify,
    wanted: AtomicBool,
    /// Rises with each answer.
    answers: watch::Sender<u64>,
}

/// When what was done last.
struct Done {
    turned_us: u64,
    renewed_us: u64,
    swept_us: u64,
    /// The ledger's number that was heard of then.
    stale: (u64, i64),
}

/// How leases stand, for metrics.
pub(super) struct LeaseState {
    pub(super) leased: NanoUsd,
    pub(super) counts: LeaseCounts,
    pub(super) epoch: i64,
    pub(super) seconds_left: u64,
}

impl Leases {
    /// The node begins, or goes on with what it had leased.
    ///
    /// # Errors
    /// The store could not be asked.
    pub(super) async fn begin(
        store: Store,
        node: NodeName,
        lease: Duration,
        clock: Clock,
    ) -> Result<Arc<Self>, StoreError> {
        let now_us = clock.now_us();
        let store_ms = store.clock_ms().await?;
        let term = store.begin_node(&node, store_ms, millis(lease)).await?;
        let leases = Self {
            store,
            node,
            clock,
            lease,
            book: Mutex::default(),
            is_draining: AtomicBool::new(false),
            until_us: AtomicU64::new(0),
            offset_ms: AtomicI64::new(0),
            heard_seq: AtomicI64::new(term.seq),
            term: Mutex::new(term.clone()),
            is_in_charge: AtomicBool::new(false),
            wake: Notify::new(),
            wanted: AtomicBool::new(false),
            answers: watch::Sender::new(0),
        };
        leases.set_clock(now_us, store_ms);
        leases.renewed(now_us, term.draining);
        tracing::info!(node = &*leases.node.id, name = leases.node.name, epoch = term.epoch, "this node leases credit");
        Ok(Arc::new(leases))
    }

    /// The node.
    pub(super) fn node_id(&self) -> &Arc<str> {
        &self.node.id
    }

    /// Whether what is leased may be sold now.
    pub(super) fn are_current(&self, now_us: u64) -> bool {
        now_us < self.until_us.load(Ordering::Acquire)
    }

    /// Whether the node is to get no more requests.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// This process lets clients in, and gives back from now on what the node does not need.
    pub(super) fn take_charge(&self) {
        self.is_in_charge.store(true, Ordering::Release);
        self.tell_book();
    }

    /// Another process does from now on.
    pub(super) fn leave_charge(&self) {
        self.is_in_charge.store(false, Ordering::Release);
        self.tell_book();
    }

    /// How they stand.
    pub(super) fn state(&self) -> LeaseState {
        let book = self.book();
        let left_us = self.until_us.load(Ordering::Relaxed).saturating_sub(self.clock.now_us());
        let (leased, counts) = (book.leased(), book.counts());
        LeaseState { leased, counts, epoch: self.term().epoch, seconds_left: left_us / 1_000_000 }
    }

    /// Whether it is known that the account has no credit that this node could have.
    pub(super) fn is_exhausted(&self, account_id: &str, purse: &Purse) -> bool {
        purse.available() <= NanoUsd(0) && self.book().is_exhausted(account_id, self.clock.now_us())
    }

    /// A request was admitted: where little is left, more is asked for before the next one needs it.
    pub(super) fn used(&self, account_id: &str, purse: &Purse) {
        if purse.is_low() {
            self.book().is_low(account_id);
            self.wake.notify_one();
        }
    }

    /// Returns when the account has `most` available here, or will not have that now; it must have `least`.
    pub(super) async fn cover(
        &self,
        account_id: &str,
        purse: &Arc<Purse>,
        least: NanoUsd,
        most: NanoUsd,
    ) -> LeaseVerdict {
        let mut answers = self.answers.subscribe();
        let number = self.book().join(account_id, purse, least, most, self.clock.now_us());
        let _waiting = Waiting { leases: self, account_id, number };
        self.wake.notify_one();
        let decided = async {
            loop {
                let verdict = self.book().verdict(account_id, number, most);
                if verdict != LeaseVerdict::Wait || answers.changed().await.is_err() {
                    return verdict;
                }
            }
        };
        timeout(WAIT_MAX, decided).await.unwrap_or(LeaseVerdict::Away)
    }

    /// The store says that leases have changed, up to the ledger's number `seq`: something is leased of these accounts, and others want
    /// some of those.
    pub(super) fn hear(&self, leased: &[(Arc<str>, Arc<Purse>)], wanted: &[(Arc<str>, i64)], seq: i64) {
        let now_us = self.clock.now_us();
        let mut book = self.book();
        leased.iter().for_each(|(account_id, purse)| book.keep(account_id, purse, now_us));
        wanted.iter().for_each(|(account_id, seq)| book.want(account_id, *seq));
        drop(book);
        self.heard_seq.fetch_max(seq, Ordering::Relaxed);
        if !wanted.is_empty() {
            self.wanted.store(true, Ordering::Release);
            self.wake.notify_one();
        }
    }

    /// Asks, renews and gives back, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let now_us = self.clock.now_us();
        let mut done = Done { turned_us: now_us, renewed_us: now_us, swept_us: now_us, stale: (now_us, 0) };
        loop {
            let _ = timeout(self.pause(&done), self.wake.notified()).await;
            if self.is_due(done.renewed_us, self.renew_every()) {
                done.renewed_us = self.clock.now_us();
                self.renew().await;
            }
            self.ask().await;
            let is_turn = self.is_due(done.turned_us, self.turn());
            if is_turn {
                done.turned_us = self.clock.now_us();
                self.book().turn(done.turned_us);
            }
            if self.wanted.swap(false, Ordering::AcqRel) || is_turn {
                self.give_back().await;
            }
            if self.is_due(done.swept_us, SWEEP_EVERY.min(self.lease)) {
                done.swept_us = self.clock.now_us();
                self.sweep(&mut done.stale).await;
            }
        }
    }

    /// The process ends. Everything is given back, unless requests are left that the leases are for, or another process is the node too.
    pub(super) async fn end(&self, all_is_settled: bool) {
        if !self.is_in_charge.load(Ordering::Acquire) {
            return;
        }
        if !all_is_settled {
            tracing::warn!(
                "what the node has leased stays its own for a while, for requests in its spool that are not billed yet"
            );
            return;
        }
        let (term, now_ms) = (self.term().clone(), self.store_ms());
        match timeout(STORE_MAX, self.store.end_node(&term, now_ms)).await {
            Ok(Ok(())) => {}
            failed => {
                tracing::warn!(?failed, "what the node has leased could not be given back; it is free when it expires")
            }
        }
    }

    /// Asks the store for what requests wait for, and for what will be needed.
    async fn ask(&self) {
        loop {
            let asks = self.book().asks(self.clock.now_us(), ACCOUNTS_MAX);
            if asks.is_empty() {
                return;
            }
            let (term, now_ms) = (self.term().clone(), self.store_ms());
            let answer = timeout(STORE_MAX, self.store.take_leases(&term, &asks, now_ms)).await;
            let now_us = self.clock.now_us();
            match answer {
                Ok(Ok(Some(answers))) => self.book().answered(answers, now_us),
                Ok(Ok(None)) => {
                    if !self.begin_anew().await {
                        self.book().failed(&asks, now_us);
                    }
                }
                Ok(Err(error)) => self.not_asked(&asks, &error, now_us),
                Err(late) => self.not_asked(&asks, &late, now_us),
            }
            self.answers.send_modify(|number| *number = number.wrapping_add(1));
        }
    }

    fn not_asked(&self, asks: &[LeaseAsk], error: &dyn std::fmt::Display, now_us: u64) {
        tracing::warn!(%error, accounts = asks.len(), "the store cannot be asked for credit");
        self.book().failed(asks, now_us);
    }

    async fn renew(&self) {
        match timeout(STORE_MAX, self.try_renew()).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                self.begin_anew().await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "the node's leases cannot be renewed"),
            Err(late) => tracing::warn!(%late, "the node's leases cannot be renewed"),
        }
    }

    /// Whether the node is still who it was.
    async fn try_renew(&self) -> Result<bool, StoreError> {
        let term = self.term().clone();
        // Before the store's clock is read: the lease ends earlier here than there.
        let now_us = self.clock.now_us();
        let store_ms = self.store.clock_ms().await?;
        self.set_clock(now_us, store_ms);
        let renewed = self.store.renew_node(&term, store_ms, millis(self.lease)).await?;
        if let Some(draining) = renewed {
            self.renewed(now_us, draining);
        }
        Ok(renewed.is_some())
    }

    /// The node's leases were taken back: it begins with none. Whether that went well.
    async fn begin_anew(&self) -> bool {
        self.until_us.store(0, Ordering::Release);
        let begun = async {
            let now_us = self.clock.now_us();
            let store_ms = self.store.clock_ms().await?;
            self.set_clock(now_us, store_ms);
            let term = self.store.begin_node(&self.node, store_ms, millis(self.lease)).await?;
            Ok::<_, StoreError>((now_us, term))
        };
        match timeout(STORE_MAX, begun).await {
            Ok(Ok((now_us, term))) => {
                tracing::warn!(
                    epoch = term.epoch,
                    "the node's leases were taken back, for it did not renew them in time"
                );
                self.book().lost(term.seq);
                let draining = term.draining;
                *self.term() = term;
                self.renewed(now_us, draining);
                true
            }
            failed => {
                tracing::warn!(?failed, "the node cannot lease credit");
                false
            }
        }
    }

    async fn give_back(&self) {
        if !self.is_in_charge.load(Ordering::Acquire) {
            return;
        }
        for _ in 0..RETURN_ROUNDS_MAX {
            let returns = self.book().returns(self.clock.now_us(), ACCOUNTS_MAX);
            if returns.is_empty() {
                return;
            }
            let term = self.term().clone();
            match timeout(STORE_MAX, self.store.return_leases(&term, &returns)).await {
                Ok(Ok(returned)) => self.book().returned(returned),
                // The same is given back the next time, if it was not this time.
                _ => return,
            }
        }
    }

    async fn sweep(&self, stale: &mut (u64, i64)) {
        let (since_us, seq) = *stale;
        let is_stale = self.is_due(since_us, STALE_AFTER);
        match timeout(STORE_MAX, self.store.sweep_nodes(self.store_ms(), if is_stale { seq } else { 0 })).await {
            Ok(Ok(())) if is_stale => *stale = (self.clock.now_us(), self.heard_seq.load(Ordering::Relaxed)),
            Ok(Ok(())) => {}
            _ => tracing::warn!("it could not be looked which nodes are gone"),
        }
    }

    fn renewed(&self, now_us: u64, draining: bool) {
        let margin = (self.lease / 6).max(Duration::from_millis(300));
        self.until_us.store(now_us + micros(self.lease.saturating_sub(margin)), Ordering::Release);
        if self.is_draining.swap(draining, Ordering::Relaxed) != draining {
            tracing::info!(draining, "the node was told whether it is to get requests");
        }
        self.tell_book();
    }

    /// Who is to have no more requests leases nothing beforehand, and neither does who is not in charge.
    fn tell_book(&self) {
        self.book().set_draining(self.is_draining() || !self.is_in_charge.load(Ordering::Acquire));
    }

    fn set_clock(&self, now_us: u64, store_ms: i64) {
        let now_ms = i64::try_from(now_us / 1_000).unwrap_or(i64::MAX);
        self.offset_ms.store(store_ms.saturating_sub(now_ms), Ordering::Relaxed);
    }

    /// What time it is in the store.
    fn store_ms(&self) -> i64 {
        let now_ms = i64::try_from(self.clock.now_us() / 1_000).unwrap_or(i64::MAX);
        now_ms.saturating_add(self.offset_ms.load(Ordering::Relaxed))
    }

    fn turn(&self) -> Duration {
        TURN.min(self.lease / 4)
    }

    fn renew_every(&self) -> Duration {
        RENEW_EVERY_MAX.min(self.lease / 4)
    }

    fn is_due(&self, done_us: u64, every: Duration) -> bool {
        self.clock.now_us().saturating_sub(done_us) >= micros(every)
    }

    /// Until when there is nothing to do.
    fn pause(&self, done: &Done) -> Duration {
        let turn_us = done.turned_us + micros(self.turn());
        let renew_us = done.renewed_us + micros(self.renew_every());
        let due_us = self.book().due_us().unwrap_or(u64::MAX).min(turn_us).min(renew_us);
        Duration::from_micros(due_us.saturating_sub(self.clock.now_us()))
    }

    fn book(&self) -> MutexGuard<'_, LeaseBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn term(&self) -> MutexGuard<'_, NodeTerm> {
        self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits. It leaves when this is dropped, also where its client has gone.
struct Waiting<'a> {
    leases: &'a Leases,
    account_id: &'a str,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.leases.book().leave(self.account_id, self.number);
    }
}

/// What the machine is called, for who has not given the node a name.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
