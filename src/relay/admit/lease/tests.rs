//! What is asked for, who waits how long, and what is given back.

use super::*;
use crate::relay::admit::{Hold, Spending};

const A: &str = "acct_a";

/// A book with a purse of one account, and a store that has so much free.
struct Fixture {
    book: LeaseBook,
    purse: Arc<Purse>,
    spending: Arc<Spending>,
    free: i64,
    /// What other nodes have that have not answered.
    elsewhere: i64,
    lease: i64,
    seq: i64,
    now_us: u64,
}

impl Fixture {
    fn with(free: i64) -> Self {
        let (purse, spending) = (Arc::new(Purse::leased(Arc::default())), Arc::new(Spending::new(NanoUsd(0), 0)));
        let book = LeaseBook::default();
        Self { book, purse, spending, free, elsewhere: 0, lease: 0, seq: 0, now_us: 1_000_000 }
    }

    fn join(&mut self, most: i64) -> u64 {
        self.book.join(A, &self.purse, NanoUsd(1), NanoUsd(most), self.now_us)
    }

    fn verdict(&self, number: u64, most: i64) -> LeaseVerdict {
        self.book.verdict(A, number, NanoUsd(most))
    }

    fn ask(&mut self) -> Option<LeaseAsk> {
        let mut asks = self.book.asks(self.now_us, 9);
        assert!(asks.len() <= 1);
        asks.pop()
    }

    fn answer(&mut self, ask: &LeaseAsk) {
        let granted = ask.granted(NanoUsd(self.free), false, self.elsewhere > 0).0;
        (self.free, self.lease, self.seq) = (self.free - granted, self.lease + granted, self.seq + 1);
        let lease = Lease { amount: NanoUsd(self.lease), seq: self.seq };
        let wanted = (granted < ask.need.0 && self.elsewhere > 0).then(|| ask.since.unwrap_or(self.seq));
        let (free, is_short) = (NanoUsd(self.free), granted < ask.need.0);
        let answer = LeaseAnswer { account_id: A.into(), lease, free, is_short, wanted };
        self.book.answered(vec![answer], self.now_us);
    }

    /// Asks and answers once; whether there was anything to ask.
    fn step(&mut self) -> bool {
        let ask = self.ask();
        ask.iter().for_each(|ask| self.answer(ask));
        ask.is_some()
    }

    fn hold(&self, amount: i64) -> Hold {
        Hold::take_whole(&self.purse, &self.spending, None, NanoUsd(amount), NanoUsd(amount)).unwrap()
    }

    fn pass_us(&mut self, us: u64) {
        self.now_us += us;
        self.book.turn(self.now_us);
    }
}

#[test]
fn many_who_wait_are_one_question_for_all_of_them() {
    let mut fixture = Fixture::with(1_000);
    let numbers: Vec<u64> = (0..5).map(|_| fixture.join(10)).collect();
    let ask = fixture.ask().unwrap();
    assert_eq!((ask.need, ask.useful, ask.since), (NanoUsd(50), NanoUsd(1), None));
    let late = fixture.join(10);
    assert_eq!(fixture.ask(), None, "one at a time");
    fixture.answer(&ask);
    assert_eq!(fixture.purse.available(), NanoUsd(90), "and some beyond");
    assert!(numbers.iter().all(|number| fixture.verdict(*number, 10) == LeaseVerdict::Ready));
    assert_eq!(fixture.verdict(late, 10), LeaseVerdict::Ready);
}

#[test]
fn who_comes_while_it_is_asked_and_is_faster_does_not_have_others_refused() {
    let mut fixture = Fixture::with(35);
    let first = fixture.join(10);
    let ask = fixture.ask().unwrap();
    let second = fixture.join(10);
    fixture.answer(&ask);
    assert_eq!((fixture.lease, fixture.verdict(second, 10)), (10, LeaseVerdict::Ready));
    let hold = fixture.hold(10);
    fixture.book.leave(A, second);
    assert_eq!(fixture.verdict(first, 10), LeaseVerdict::Wait);
    assert!(fixture.step());
    assert_eq!(fixture.verdict(first, 10), LeaseVerdict::Ready);
    drop(hold);
}

#[test]
fn what_there_is_not_is_known_for_a_moment() {
    let mut fixture = Fixture::with(5);
    let number = fixture.join(10);
    assert!(fixture.step());
    assert_eq!(fixture.verdict(number, 10), LeaseVerdict::Nothing);
    assert_eq!(fixture.purse.available(), NanoUsd(5), "the last cents can be spent");
    fixture.book.leave(A, number);
    let hold = fixture.hold(5);
    assert!(fixture.book.is_exhausted(A, fixture.now_us));
    let next = fixture.join(10);
    assert_eq!((fixture.verdict(next, 10), fixture.ask()), (LeaseVerdict::Nothing, None), "it is not asked again");
    fixture.book.leave(A, next);
    drop(hold);
    fixture.now_us += REST_US;
    assert!(!fixture.book.is_exhausted(A, fixture.now_us));
    let later = fixture.join(10);
    assert_eq!(fixture.verdict(later, 10), LeaseVerdict::Wait);
    assert!(fixture.step());
}

#[test]
fn a_large_request_that_there_is_too_little_for_is_no_reason_to_refuse_a_small_one() {
    let mut fixture = Fixture::with(50);
    let large = fixture.book.join(A, &fixture.purse, NanoUsd(60), NanoUsd(100), fixture.now_us);
    assert!(fixture.step());
    assert_eq!(fixture.verdict(large, 100), LeaseVerdict::Nothing);
    let small = fixture.join(40);
    assert!(fixture.step());
    assert_eq!(fixture.verdict(small, 40), LeaseVerdict::Ready);
}

#[test]
fn what_lies_elsewhere_is_waited_for_and_not_for_ever() {
    let mut fixture = Fixture::with(0);
    fixture.elsewhere = 100;
    let number = fixture.join(10);
    assert!(fixture.step());
    assert_eq!((fixture.verdict(number, 10), fixture.ask()), (LeaseVerdict::Wait, None));
    assert_eq!(fixture.book.due_us(), Some(fixture.now_us + AGAIN_US));
    fixture.now_us += AGAIN_US;
    let ask = fixture.ask().unwrap();
    assert_eq!(ask.since, Some(1), "the same want");
    fixture.free = 60;
    fixture.answer(&ask);
    assert_eq!(fixture.verdict(number, 10), LeaseVerdict::Ready);
    fixture.book.leave(A, number);

    let hold = fixture.hold(10);
    fixture.free = 0;
    let vain = fixture.join(1_000);
    let began_us = fixture.now_us;
    while fixture.verdict(vain, 1_000) == LeaseVerdict::Wait {
        fixture.step();
        fixture.now_us += AGAIN_US;
    }
    assert_eq!(fixture.verdict(vain, 1_000), LeaseVerdict::Nothing);
    assert!((PATIENCE_US..PATIENCE_US + 3 * AGAIN_US).contains(&(fixture.now_us - began_us)));
    drop(hold);
}

#[test]
fn nobody_is_given_what_is_of_no_use_while_more_may_come() {
    let steps = vec![NanoUsd(10), NanoUsd(30)];
    let since = None;
    let (need, target, useful) = (NanoUsd(60), NanoUsd(200), NanoUsd(3));
    let ask = LeaseAsk { account_id: A.into(), need, steps, target, unit: NanoUsd(40), useful, since };
    let granted = |free, scarce, may_come| ask.granted(NanoUsd(free), scarce, may_come).0;
    assert_eq!((granted(59, false, true), granted(29, true, false), granted(30, true, true)), (30, 10, 30));
    assert_eq!((granted(9, false, true), granted(9, false, false), granted(2, false, false)), (0, 9, 0));
    assert_eq!((granted(600, false, false), granted(600, true, false), granted(100, false, true)), (140, 60, 60));
    assert_eq!((granted(0, false, false), granted(-5, false, false)), (0, 0));
    let beforehand = LeaseAsk { need: NanoUsd(0), steps: Vec::new(), useful: NanoUsd(100), ..ask.clone() };
    let granted = |free, scarce| beforehand.granted(NanoUsd(free), scarce, false).0;
    assert_eq!((granted(800, false), granted(800, true), granted(99, false)), (200, 0, 0));
}

#[test]
fn a_store_that_is_away_is_told_from_an_account_without_credit() {
    let mut fixture = Fixture::with(100);
    let number = fixture.join(10);
    let ask = fixture.ask().unwrap();
    fixture.book.failed(&[ask], fixture.now_us);
    assert_eq!(fixture.verdict(number, 10), LeaseVerdict::Away);
    assert!(!fixture.book.is_exhausted(A, fixture.now_us));
}

#[test]
fn more_is_leased_before_it_runs_out_and_what_nobody_uses_is_given_back() {
    let mut fixture = Fixture::with(10_000);
    let number = fixture.join(100);
    assert!(fixture.step());
    fixture.book.leave(A, number);
    assert_eq!(fixture.lease, 500, "four more are kept ready");
    fixture.pass_us(750_000);
    assert!(!fixture.step());
    let charges: Vec<_> = (0..4).map(|_| fixture.hold(100).settle(NanoUsd(100))).collect();
    fixture.pass_us(750_000);
    assert!(fixture.step(), "a hundred is left of four");
    assert!(fixture.purse.available() >= NanoUsd(370), "{:?}", fixture.purse.available());
    assert_eq!(fixture.book.returns(fixture.now_us, 9), []);

    fixture.pass_us(IDLE_US);
    let returns = fixture.book.returns(fixture.now_us, 9);
    assert_eq!(returns[0].amount.0, fixture.lease - 400, "all but what is owed");
    assert_eq!(fixture.purse.available(), NanoUsd(0), "nobody can use it while it is on its way");
    assert_eq!(fixture.book.returns(fixture.now_us, 9), returns, "until it is known what became of it");
    let lease = Lease { amount: NanoUsd(400), seq: fixture.seq + 1 };
    fixture.book.returned(vec![LeaseReturned { account_id: A.into(), lease, taken: true }]);
    assert_eq!((fixture.purse.available(), fixture.book.counts().returns), (NanoUsd(0), 1));
    assert_eq!(charges.len(), 4);
}

#[test]
fn what_others_want_is_given_back_at_once_but_for_what_is_held() {
    let mut fixture = Fixture::with(1_000);
    let number = fixture.join(100);
    fixture.step();
    fixture.book.want(A, 7);
    assert_eq!(fixture.book.returns(fixture.now_us, 9), [], "somebody has waited for it");
    fixture.book.leave(A, number);
    let hold = fixture.hold(100);
    let returns = fixture.book.returns(fixture.now_us, 9);
    assert_eq!((returns[0].amount.0, returns[0].wanted), (fixture.lease - 100, Some(7)));
    // It changed in between.
    let lease = Lease { amount: NanoUsd(fixture.lease), seq: 9 };
    fixture.book.returned(vec![LeaseReturned { account_id: A.into(), lease, taken: false }]);
    assert_eq!(fixture.purse.available().0, fixture.lease - 100);
    let again = fixture.book.returns(fixture.now_us, 9);
    assert_eq!((again[0].amount, again[0].seq), (returns[0].amount, 9));
    let lease = Lease { amount: NanoUsd(100), seq: 10 };
    fixture.book.returned(vec![LeaseReturned { account_id: A.into(), lease, taken: true }]);
    assert_eq!(fixture.book.returns(fixture.now_us, 9), []);
    drop(hold);
}

#[test]
fn a_node_that_was_buried_has_nothing_and_owes_what_it_holds() {
    let mut fixture = Fixture::with(1_000);
    let number = fixture.join(100);
    fixture.step();
    fixture.book.leave(A, number);
    let hold = fixture.hold(60);
    fixture.book.lost(5);
    assert_eq!((fixture.book.leased(), fixture.purse.available()), (NanoUsd(0), NanoUsd(-60)));
    fixture.purse.refresh_lease(Lease { amount: NanoUsd(900), seq: 4 });
    assert_eq!(fixture.purse.available(), NanoUsd(-60), "old news");
    fixture.join(10);
    assert_eq!(fixture.ask().unwrap().need, NanoUsd(70));
    drop(hold);
}

#[test]
fn accounts_that_nobody_uses_are_forgotten() {
    let mut fixture = Fixture::with(0);
    let number = fixture.join(100);
    fixture.step();
    fixture.book.leave(A, number);
    fixture.pass_us(REMEMBERED_US / 2);
    assert_eq!(fixture.book.accounts.len(), 1);
    fixture.pass_us(REMEMBERED_US);
    assert_eq!(fixture.book.accounts.len(), 0);
}
