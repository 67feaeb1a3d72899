//! Money that requests are admitted against: an account's credit, and what a key has spent of its budget.
//!
//! A request that is admitted holds what it may come to cost. Its hold ends when its cost is known, and the cost takes its place,
//! or it is released. What is available is what the ledger has, less what is pending, less what is held, and a hold is only
//! taken of what is available: so requests that run at the same time can never spend more than there is, but for as much as their
//! holds were too small.
//!
//! Each follows the ledger from behind. What requests have cost since is `pending` until the ledger has it, so that a request
//! that has ended counts at once, not when its entry is committed. The ledger's amount and a request's settlement arrive by two
//! ways (the poll of the store, the billing worker) and in any order: sequence numbers say which amount is the newer, and a cost
//! leaves `pending` only with its own settlement. In between it may count twice, never not at all.
//!
//! What an account's requests hold and owe in other processes is told from time to time, as one amount.
//!
//! Where several nodes sell an account's credit, what the ledger has for this one is its lease of the balance, and no more ([`Lease`]).
//! Nothing else changes: settling takes a cost off the lease as it does off the balance.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use super::lease::Lease;
use super::lock;
use crate::relay::meter::NanoUsd;
use crate::relay::refusal::{Cause, Refusal};

/// An account's credit. One for each account, shared by all its keys.
#[derive(Debug)]
pub struct Purse {
    state: Mutex<State>,
    holds: Arc<HoldGauge>,
    /// What it has is leased of the balance, and not the balance.
    is_leased: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The ledger's amount, including all entries of this amount's owner up to `seq`.
    committed: NanoUsd,
    seq: i64,
    /// What ended requests cost that have not been settled.
    pending: NanoUsd,
    /// What running requests may come to cost.
    held: NanoUsd,
    /// What is pending and held in other processes.
    elsewhere: NanoUsd,
    /// What of a lease is being given back, and may be the store's again or not.
    returning: NanoUsd,
    /// Where less than this is available, more is to be leased.
    low_water: NanoUsd,
    /// What all requests have cost that ended here, and how many holds were taken.
    use_so_far: PurseUse,
}

/// How much a purse has been used since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PurseUse {
    /// What requests have cost.
    pub spent: NanoUsd,
    /// How many were admitted.
    pub holds: u64,
}

impl Purse {
    /// A purse with what the ledger says, up to its entry `seq`.
    pub fn new(committed: NanoUsd, seq: i64) -> Self {
        Self::gauged(committed, seq, Arc::default())
    }

    /// The same, with the gauge that its holds are counted in.
    pub fn gauged(committed: NanoUsd, seq: i64, holds: Arc<HoldGauge>) -> Self {
        let state = State { committed, seq, ..State::default() };
        Self { state: Mutex::new(state), holds, is_leased: false }
    }

    /// A purse of a node that leases: it has nothing until it hears of a lease, and is not told of the balance.
    pub fn leased(holds: Arc<HoldGauge>) -> Self {
        Self { state: Mutex::default(), holds, is_leased: true }
    }

    /// Whether what it has is leased.
    pub fn is_leased(&self) -> bool {
        self.is_leased
    }

    /// What is left: the ledger's amount less what is pending and what running requests hold, here and elsewhere.
    pub fn available(&self) -> NanoUsd {
        lock(&self.state).available()
    }

    /// What running requests hold.
    pub fn held(&self) -> NanoUsd {
        lock(&self.state).held
    }

    /// Other processes have so much pending and held now.
    pub fn set_elsewhere(&self, elsewhere: NanoUsd) {
        lock(&self.state).elsewhere = elsewhere;
    }

    /// Ends a hold: a cost takes its place.
    fn settle_hold(&self, held: NanoUsd, cost: NanoUsd) {
        let mut state = lock(&self.state);
        state.held.0 = state.held.0.saturating_sub(held.0);
        state.pending.0 = state.pending.0.saturating_add(cost.0);
        state.use_so_far.spent.0 = state.use_so_far.spent.0.saturating_add(cost.0);
    }

    /// A cost charged before is in the ledger now, which amounts to `committed` at its entry `seq`.
    pub fn settled(&self, cost: NanoUsd, committed: NanoUsd, seq: i64) {
        let mut state = lock(&self.state);
        state.pending.0 = state.pending.0.saturating_sub(cost.0);
        state.take(committed, seq);
    }

    /// The ledger amounts to `committed` at its entry `seq`; older news than what is known is ignored, and so is the balance where
    /// only a part of it is leased.
    pub fn refresh(&self, committed: NanoUsd, seq: i64) {
        if !self.is_leased {
            lock(&self.state).take(committed, seq);
        }
    }
}

/// What only concerns a leased purse.
impl Purse {
    /// The lease is that; older news than what is known is ignored.
    pub fn refresh_lease(&self, lease: Lease) {
        lock(&self.state).take(lease.amount, lease.seq);
    }

    /// The lease was taken back, at the ledger's number `seq`. What is held and pending is still.
    pub fn lose_lease(&self, seq: i64) {
        let mut state = lock(&self.state);
        state.take(NanoUsd(0), seq);
        state.returning = NanoUsd(0);
    }

    /// Takes out of use what nothing is held or owed of, for it to be given back; [`Purse::returned`] follows. Says how much that is,
    /// and as of which number of the ledger the lease is known.
    pub fn begin_return(&self) -> Lease {
        let mut state = lock(&self.state);
        let amount = state.available().max(NanoUsd(0));
        state.returning.0 = state.returning.0.saturating_add(amount.0);
        Lease { amount, seq: state.seq }
    }

    /// It is known what became of an amount that was to be given back: the lease is that now.
    pub fn returned(&self, amount: NanoUsd, lease: Lease) {
        let mut state = lock(&self.state);
        state.returning.0 = state.returning.0.saturating_sub(amount.0);
        state.take(lease.amount, lease.seq);
    }

    /// What is leased, as far as is known.
    pub fn lease(&self) -> NanoUsd {
        lock(&self.state).committed
    }

    /// Whether nothing is leased, held or owed.
    pub fn is_at_rest(&self) -> bool {
        let State { committed, pending, held, returning, .. } = *lock(&self.state);
        [committed, pending, held, returning] == [NanoUsd(0); 4]
    }

    /// More is to be leased where less than that is available.
    pub fn set_low_water(&self, low_water: NanoUsd) {
        lock(&self.state).low_water = low_water;
    }

    /// Whether more is to be leased.
    pub fn is_low(&self) -> bool {
        let state = lock(&self.state);
        state.available() < state.low_water
    }

    /// How much it has been used so far.
    pub fn use_so_far(&self) -> PurseUse {
        lock(&self.state).use_so_far
    }
}

impl State {
    fn available(&self) -> NanoUsd {
        let Self { committed, pending, held, elsewhere, returning, .. } = self;
        let owed = [pending, held, elsewhere, returning];
        NanoUsd(owed.iter().fold(committed.0, |left, owed| left.saturating_sub(owed.0)))
    }

    fn take(&mut self, committed: NanoUsd, seq: i64) {
        if seq > self.seq {
            self.committed = committed;
            self.seq = seq;
        }
    }
}

/// What a key has spent in all. One for each key. Kept as a purse that began empty and is only ever taken from.
#[derive(Debug)]
pub struct Spending(Purse);

impl Spending {
    /// What the ledger says the key has spent, up to its entry `seq`.
    pub fn new(spent: NanoUsd, seq: i64) -> Self {
        Self(Purse::new(negative(spent), seq))
    }

    /// What the key has spent, with what is pending and what its running requests hold.
    pub fn spent(&self) -> NanoUsd {
        negative(self.0.available())
    }

    /// A cost charged before is in the ledger now, where the key has spent `spent` at the entry `seq`.
    pub fn settled(&self, cost: NanoUsd, spent: NanoUsd, seq: i64) {
        self.0.settled(cost, negative(spent), seq);
    }

    /// The key has spent `spent` at the ledger's entry `seq`; older news than what is known is ignored.
    pub fn refresh(&self, spent: NanoUsd, seq: i64) {
        self.0.refresh(negative(spent), seq);
    }
}

/// What one running request may come to cost, held back from its account and from its key's budget.
///
/// It ends once and in one place, its drop: at the cost that [`Hold::settle`] has noted, or at nothing. Whatever ends a request
/// (an answer's end, a client that leaves, a panic, a shutdown that drops its task) drops its hold.
#[derive(Debug)]
#[must_use = "what is held is released when the hold is dropped"]
pub struct Hold {
    account: Arc<Purse>,
    spending: Arc<Spending>,
    amount: NanoUsd,
    /// What takes the hold's place.
    cost: NanoUsd,
}

impl Hold {
    /// Holds as much of `most` as is free, at least `least`, of the account and of what the budget leaves to the key. Both are
    /// looked at and taken from under their locks, so that holds taken at the same time never add up to more than there is.
    ///
    /// # Errors
    /// [`Cause::InsufficientCredits`] where the account has less than `least`; [`Cause::BudgetExceeded`] where only the key has.
    pub fn take(
        account: &Arc<Purse>,
        spending: &Arc<Spending>,
        budget: Option<NanoUsd>,
        least: NanoUsd,
        most: NanoUsd,
    ) -> Result<Self, Refusal> {
        Self::take_of(account, spending, budget, least, most, false)
    }

    /// The same, but for an account that has less than all that the request would hold: then nothing is held, for more may be leased.
    ///
    /// # Errors
    /// As of [`Hold::take`].
    pub fn take_whole(
        account: &Arc<Purse>,
        spending: &Arc<Spending>,
        budget: Option<NanoUsd>,
        least: NanoUsd,
        most: NanoUsd,
    ) -> Result<Self, Refusal> {
        Self::take_of(account, spending, budget, least, most, true)
    }

    fn take_of(
        account: &Arc<Purse>,
        spending: &Arc<Spending>,
        budget: Option<NanoUsd>,
        least: NanoUsd,
        most: NanoUsd,
        is_whole: bool,
    ) -> Result<Self, Refusal> {
        let mut purse = lock(&account.state);
        let mut key = lock(&spending.0.state);
        let free = purse.available();
        if free <= NanoUsd(0) {
            return Err(no_credit());
        }
        if free < least {
            return Err(short_credit());
        }
        // What a key has spent is kept as a purse that began empty.
        let left = budget.map(|budget| NanoUsd(budget.0.saturating_add(key.available().0)));
        if left.is_some_and(|left| left <= NanoUsd(0)) {
            return Err(no_budget());
        }
        if left.is_some_and(|left| left < least) {
            return Err(short_budget());
        }
        let whole = most.min(left.unwrap_or(most)).max(least);
        if is_whole && free < whole {
            return Err(short_credit());
        }
        let amount = whole.min(free);
        purse.held.0 = purse.held.0.saturating_add(amount.0);
        purse.use_so_far.holds = purse.use_so_far.holds.wrapping_add(1);
        key.held.0 = key.held.0.saturating_add(amount.0);
        drop((purse, key));
        account.holds.taken(amount);
        Ok(Self { account: Arc::clone(account), spending: Arc::clone(spending), amount, cost: NanoUsd(0) })
    }

    /// How much is held.
    pub fn amount(&self) -> NanoUsd {
        self.amount
    }

    /// Ends the hold: the request's cost, as soon as it is known, takes its place.
    pub fn settle(mut self, cost: NanoUsd) -> Charge {
        self.cost = cost;
        Charge { account: Arc::clone(&self.account), spending: Arc::clone(&self.spending), cost }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.account.settle_hold(self.amount, self.cost);
        self.spending.0.settle_hold(self.amount, self.cost);
        self.account.holds.ended(self.amount);
    }
}

/// How many holds there are, and how much they hold. Only holds move it.
#[derive(Debug, Default)]
pub struct HoldGauge {
    active: AtomicI64,
    held: AtomicI64,
}

impl HoldGauge {
    /// How many requests hold something, be it nothing.
    pub fn active(&self) -> i64 {
        self.active.load(Ordering::Relaxed)
    }

    /// How much they hold in all.
    pub fn held(&self) -> NanoUsd {
        NanoUsd(self.held.load(Ordering::Relaxed))
    }

    fn taken(&self, amount: NanoUsd) {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_add(amount.0, Ordering::Relaxed);
    }

    fn ended(&self, amount: NanoUsd) {
        self.active.fetch_sub(1, Ordering::Relaxed);
        self.held.fetch_sub(amount.0, Ordering::Relaxed);
    }
}

/// A cost that was charged and that the ledger does not have yet.
#[derive(Debug)]
pub struct Charge {
    /// Who pays.
    pub account: Arc<Purse>,
    /// Whose budget it is.
    pub spending: Arc<Spending>,
    /// How much.
    pub cost: NanoUsd,
}

fn negative(amount: NanoUsd) -> NanoUsd {
    NanoUsd(amount.0.saturating_neg())
}

/// Whether there is anything left for one more request, whatever it may come to cost: what is refused here no [`Hold::take`]
/// would grant. It tells early what the request itself need not be read for. Of a leased purse it is not known here: more may be
/// leased.
///
/// # Errors
/// [`Cause::InsufficientCredits`], or [`Cause::BudgetExceeded`] where it is only the key's own budget that is used up.
pub fn check_credit(account: &Purse, spending: &Spending, budget: Option<NanoUsd>) -> Result<(), Refusal> {
    if !account.is_leased() && account.available() <= NanoUsd(0) {
        return Err(no_credit());
    }
    if budget.is_some_and(|budget| spending.spent() >= budget) {
        return Err(no_budget());
    }
    Ok(())
}

/// There is no credit that could be held.
pub fn no_credit() -> Refusal {
    Refusal::new(
        Cause::InsufficientCredits,
        "The account's credit is used up, or held by requests that are still running. Add credit to go on.",
    )
}

fn short_credit() -> Refusal {
    Refusal::new(
        Cause::InsufficientCredits,
        "What the account has free does not cover this request's prompt. Add credit, shorten it, or wait for running requests.",
    )
}

fn no_budget() -> Refusal {
    Refusal::new(
        Cause::BudgetExceeded,
        "This key has spent its budget, or holds the rest for requests that are still running. Use another key, or raise its \
         budget.",
    )
}

fn short_budget() -> Refusal {
    Refusal::new(
        Cause::BudgetExceeded,
        "What is left of this key's budget does not cover this request's prompt. Raise it, or wait for running requests.",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    impl Purse {
        /// A cost that nothing was held for.
        pub(in crate::relay) fn charge(&self, cost: NanoUsd) {
            self.settle_hold(NanoUsd(0), cost);
        }
    }

    impl Spending {
        /// A cost that nothing was held for.
        pub(in crate::relay) fn charge(&self, cost: NanoUsd) {
            self.0.charge(cost);
        }
    }

    #[test]
    fn a_cost_counts_at_once_and_once() {
        let purse = Purse::new(NanoUsd(100), 5);
        purse.charge(NanoUsd(30));
        assert_eq!(purse.available(), NanoUsd(70));
        purse.settled(NanoUsd(30), NanoUsd(70), 6);
        assert_eq!(purse.available(), NanoUsd(70));
        purse.refresh(NanoUsd(100), 5);
        assert_eq!(purse.available(), NanoUsd(70), "old news");
        purse.refresh(NanoUsd(570), 7);
        assert_eq!(purse.available(), NanoUsd(570));
    }

    #[test]
    fn a_poll_that_overtakes_the_settlement_counts_twice_for_a_moment() {
        let purse = Purse::new(NanoUsd(100), 5);
        purse.charge(NanoUsd(30));
        purse.refresh(NanoUsd(70), 6);
        assert_eq!(purse.available(), NanoUsd(40));
        purse.settled(NanoUsd(30), NanoUsd(70), 6);
        assert_eq!(purse.available(), NanoUsd(70));
    }

    #[test]
    fn what_is_held_elsewhere_is_not_free() {
        let (purse, spending) = (Arc::new(Purse::new(NanoUsd(100), 5)), Arc::new(Spending::new(NanoUsd(0), 0)));
        purse.set_elsewhere(NanoUsd(70));
        let hold = Hold::take(&purse, &spending, None, NanoUsd(1), NanoUsd(50)).unwrap();
        assert_eq!((hold.amount(), purse.available()), (NanoUsd(30), NanoUsd(0)));
        assert!(Hold::take(&purse, &spending, None, NanoUsd(0), NanoUsd(1)).is_err());
        purse.set_elsewhere(NanoUsd(0));
        assert_eq!(purse.available(), NanoUsd(70));
    }

    #[test]
    fn spending_rises() {
        let spending = Spending::new(NanoUsd(10), 1);
        spending.charge(NanoUsd(5));
        assert_eq!(spending.spent(), NanoUsd(15));
        spending.settled(NanoUsd(5), NanoUsd(15), 2);
        spending.refresh(NanoUsd(10), 1);
        assert_eq!(spending.spent(), NanoUsd(15));
    }

    #[test]
    fn credit_and_budget_end_at_nothing_left() {
        let refused = |balance, spent, budget: Option<i64>| {
            let (purse, spending) = (Purse::new(NanoUsd(balance), 1), Spending::new(NanoUsd(spent), 1));
            check_credit(&purse, &spending, budget.map(NanoUsd)).map_err(|refusal| refusal.cause).err()
        };
        assert_eq!(refused(1, 1_000, None), None);
        assert_eq!(refused(0, 0, None), Some(Cause::InsufficientCredits));
        assert_eq!(refused(-5, 9, Some(9)), Some(Cause::InsufficientCredits));
        assert_eq!(refused(1, 8, Some(9)), None);
        assert_eq!(refused(1, 9, Some(9)), Some(Cause::BudgetExceeded));
    }

    #[test]
    fn charges_of_many_threads_add_up() {
        let purse = Purse::new(NanoUsd(0), 0);
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| (0..1_000).for_each(|_| purse.charge(NanoUsd(3))));
            }
        });
        assert_eq!(purse.available(), NanoUsd(-48_000));
    }

    fn take(
        purse: &Arc<Purse>,
        spending: &Arc<Spending>,
        budget: Option<i64>,
        least: i64,
        most: i64,
    ) -> Result<Hold, Cause> {
        Hold::take(purse, spending, budget.map(NanoUsd), NanoUsd(least), NanoUsd(most)).map_err(|refusal| refusal.cause)
    }

    fn purses(balance: i64) -> (Arc<Purse>, Arc<Spending>) {
        (Arc::new(Purse::new(NanoUsd(balance), 1)), Arc::new(Spending::new(NanoUsd(0), 1)))
    }

    #[test]
    fn a_hold_takes_what_is_free_and_its_cost_takes_its_place() {
        let (purse, spending) = purses(100);
        let first = take(&purse, &spending, Some(90), 10, 60).unwrap();
        assert_eq!((first.amount(), purse.available(), spending.spent()), (NanoUsd(60), NanoUsd(40), NanoUsd(60)));
        let second = take(&purse, &spending, Some(90), 10, 60).unwrap();
        assert_eq!((second.amount(), purse.available()), (NanoUsd(30), NanoUsd(10)), "what the budget leaves");
        assert_eq!(take(&purse, &spending, Some(90), 10, 60).unwrap_err(), Cause::BudgetExceeded);
        assert_eq!(
            take(&purse, &spending, Some(99), 10, 60).unwrap_err(),
            Cause::BudgetExceeded,
            "less than the prompt"
        );
        assert_eq!(take(&purse, &spending, None, 11, 60).unwrap_err(), Cause::InsufficientCredits);
        assert_eq!((purse.holds.active(), purse.holds.held()), (2, NanoUsd(90)), "the refused hold nothing");
        let charge = first.settle(NanoUsd(75));
        assert_eq!((charge.cost, purse.available(), spending.spent()), (NanoUsd(75), NanoUsd(-5), NanoUsd(105)));
        drop(second);
        assert_eq!((purse.available(), spending.spent()), (NanoUsd(25), NanoUsd(75)));
        assert_eq!((purse.holds.active(), purse.holds.held(), purse.held()), (0, NanoUsd(0), NanoUsd(0)));
    }

    #[test]
    fn a_panic_releases_what_was_held() {
        let (purse, spending) = purses(100);
        let panicked = std::panic::catch_unwind(|| {
            let _hold = take(&purse, &spending, None, 1, 60).unwrap();
            panic!("in the middle of a request");
        });
        assert!(panicked.is_err());
        assert_eq!((purse.available(), spending.spent(), purse.holds.active()), (NanoUsd(100), NanoUsd(0), 0));
    }

    #[test]
    fn of_a_thousand_at_once_as_many_get_a_hold_as_there_is_money_for() {
        let (purse, spending) = purses(10 * 7);
        let barrier = Barrier::new(8);
        let held: Vec<Hold> = thread::scope(|scope| {
            let work = || {
                barrier.wait();
                (0..125).filter_map(|_| take(&purse, &spending, None, 7, 7).ok()).collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!((held.len(), purse.available()), (10, NanoUsd(0)));
        for hold in held {
            let amount = hold.amount();
            drop(hold.settle(amount));
            assert_eq!(purse.available(), NanoUsd(0), "at no moment below, nor above");
        }
        assert_eq!((purse.held(), purse.holds.active()), (NanoUsd(0), 0));
    }

    proptest! {
        /// Requests of many costs are charged, committed and reported back in any interleaving, with polls in between that
        /// may be stale. What is available is never more than the truth, and is the truth when all is reported.
        #[test]
        fn never_more_than_the_truth_and_exact_in_the_end(
            costs in vec(0i64..1_000, 1..40), steps in vec((0u8..4, any::<prop::sample::Index>()), 0..200),
        ) {
            const START: i64 = 10_000;
            let purse = Purse::new(NanoUsd(START), 0);
            let mut charged = 0;
            // The ledger: the amount after each of its entries; its sequence numbers are the places.
            let mut ledger = vec![START];
            let mut reported = 0;
            for (step, index) in steps {
                match step {
                    0 if charged < costs.len() => {
                        purse.charge(NanoUsd(costs[charged]));
                        charged += 1;
                    }
                    1 if ledger.len() - 1 < charged => ledger.push(ledger[ledger.len() - 1] - costs[ledger.len() - 1]),
                    2 if reported < ledger.len() - 1 => {
                        reported += 1;
                        purse.settled(NanoUsd(costs[reported - 1]), NanoUsd(ledger[reported]), reported as i64);
                    }
                    3 => {
                        let seq = index.index(ledger.len());
                        purse.refresh(NanoUsd(ledger[seq]), seq as i64);
                    }
                    _ => {}
                }
                let truth = START - costs[..charged].iter().sum::<i64>();
                prop_assert!(purse.available() <= NanoUsd(truth));
            }
            while ledger.len() - 1 < charged {
                ledger.push(ledger[ledger.len() - 1] - costs[ledger.len() - 1]);
            }
            while reported < charged {
                reported += 1;
                purse.settled(NanoUsd(costs[reported - 1]), NanoUsd(ledger[reported]), reported as i64);
            }
            prop_assert_eq!(purse.available(), NanoUsd(ledger[charged]));
        }

        /// Requests of two keys that take, settle, are dropped, reach the ledger and are heard of again, in any order.
        #[test]
        fn holds_add_up_whatever_happens(
            steps in vec((0u8..6, any::<prop::sample::Index>(), 0i64..400, 0i64..400), 0..80),
        ) {
            const START: i64 = 1_000;
            let purse = Arc::new(Purse::new(NanoUsd(START), 0));
            let keys = [(), ()].map(|()| Arc::new(Spending::new(NanoUsd(0), 0)));
            let mut live: Vec<(usize, Hold)> = Vec::new();
            // What ended requests cost, and the key; how many of them the ledger has, and how many it has told of.
            let (mut costs, mut entered, mut told) = (Vec::<(usize, i64)>::new(), 0, 0);
            let spent_of = |costs: &[(usize, i64)], key: usize| -> i64 {
                costs.iter().filter(|(of, _)| *of == key).map(|(_, cost)| cost).sum()
            };
            let ledger = |costs: &[(usize, i64)]| START - costs.iter().map(|(_, cost)| cost).sum::<i64>();
            for (step, index, least, more) in steps {
                let key = index.index(2);
                match step {
                    0 | 1 => {
                        let free = purse.available();
                        match take(&purse, &keys[key], Some(700), least, least + more) {
                            Ok(hold) => {
                                prop_assert!(hold.amount() >= NanoUsd(least) && hold.amount() <= free);
                                prop_assert!(hold.amount() <= NanoUsd(least + more));
                                prop_assert!(keys[key].spent() <= NanoUsd(700));
                                live.push((key, hold));
                            }
                            Err(Cause::BudgetExceeded) => prop_assert!(keys[key].spent() > NanoUsd(700 - least.max(1))),
                            Err(_) => prop_assert!(free < NanoUsd(least.max(1))),
                        }
                    }
                    2 if !live.is_empty() => {
                        let (key, hold) = live.swap_remove(index.index(live.len()));
                        let cost = more.min(hold.amount().0);
                        drop(hold.settle(NanoUsd(cost)));
                        costs.push((key, cost));
                    }
                    3 if !live.is_empty() => drop(live.swap_remove(index.index(live.len()))),
                    4 if entered < costs.len() => entered += 1,
                    5 if told < entered => {
                        let (key, cost) = costs[told];
                        told += 1;
                        purse.settled(NanoUsd(cost), NanoUsd(ledger(&costs[..told])), told as i64);
                        keys[key].settled(NanoUsd(cost), NanoUsd(spent_of(&costs[..told], key)), told as i64);
                    }
                    _ => purse.refresh(NanoUsd(ledger(&costs[..entered])), entered as i64),
                }
                let held: i64 = live.iter().map(|(_, hold)| hold.amount().0).sum();
                prop_assert_eq!((purse.held(), purse.holds.held()), (NanoUsd(held), NanoUsd(held)));
                prop_assert_eq!(purse.holds.active(), live.len() as i64);
                prop_assert!(purse.available() <= NanoUsd(ledger(&costs) - held), "never more than there is");
                prop_assert!(ledger(&costs) >= 0, "no cost above its hold, so nothing is overdrawn");
            }
            live.clear();
            while told < costs.len() {
                let (key, cost) = costs[told];
                told += 1;
                purse.settled(NanoUsd(cost), NanoUsd(ledger(&costs[..told])), told as i64);
                keys[key].settled(NanoUsd(cost), NanoUsd(spent_of(&costs[..told], key)), told as i64);
            }
            prop_assert_eq!((purse.available(), purse.held()), (NanoUsd(ledger(&costs)), NanoUsd(0)));
            for (number, key) in keys.iter().enumerate() {
                prop_assert_eq!(key.spent(), NanoUsd(spent_of(&costs, number)));
            }
        }
    }
}
