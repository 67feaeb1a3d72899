//! When what is written, and what never is.

use super::super::spool::Room;
use super::super::spool::record;
use super::super::state::BillingState;
use super::*;
use crate::relay::admit::{Charge, Purse, Spending};
use crate::relay::meter::{NanoUsd, Usage};

const PACE: Pace =
    Pace { open_within_us: 4_000, spool_within_us: 10_000, checkpoint_within_us: 50_000, removal_within_us: 4_000 };

fn reserved() -> Reserved {
    let state = Arc::new(BillingState::default());
    state.set_room(Room { used: 0, limit: u64::MAX });
    state.reserve(1).unwrap()
}

fn finished(number: u128) -> Finished {
    let charge = Charge {
        account: Arc::new(Purse::new(NanoUsd(0), 0)),
        spending: Arc::new(Spending::new(NanoUsd(0), 0)),
        cost: NanoUsd(0),
    };
    Finished { ticket: Uuid::from_u128(number), record: record(number), charge, reserved: reserved() }
}

fn progress(total_ms: i64) -> Progress {
    Progress {
        provider: "p".into(),
        usage: Usage::default(),
        cost: NanoUsd(1),
        provider_cost: None,
        first_token_ms: Some(1),
        total_ms,
    }
}

/// A group, and what it was told.
struct Told {
    group: Group,
    arrived: Arrived,
}

impl Told {
    fn new() -> Self {
        Self { group: Group::new(PACE, 3), arrived: Arrived::default() }
    }

    fn open(mut self, numbers: impl IntoIterator<Item = u128>, now_us: u64) -> Self {
        for number in numbers {
            let name = || Arc::from("n");
            let facts = Facts { account: name(), key: name(), model: name(), started_at_ms: 1, hold: 9 };
            self.arrived.opened.push((Uuid::from_u128(number), Arc::new(facts)));
        }
        self.take(now_us)
    }

    fn pass(mut self, number: u128, total_ms: i64, now_us: u64) -> Self {
        self.arrived.passed.insert(Uuid::from_u128(number), progress(total_ms));
        self.take(now_us)
    }

    fn finish(mut self, numbers: impl IntoIterator<Item = u128>) -> Self {
        for number in numbers {
            self.arrived.finish(finished(number), Keeping::Batch(oneshot::channel().0));
        }
        self.take(0)
    }

    fn journal(mut self, numbers: impl IntoIterator<Item = u64>, now_us: u64) -> Self {
        for number in numbers {
            self.arrived.finish(finished(number.into()), Keeping::Journal(number));
        }
        self.take(now_us)
    }

    fn release(mut self, number: u128, now_us: u64) -> Self {
        self.arrived.released.push((Uuid::from_u128(number), reserved()));
        self.take(now_us)
    }

    fn take(mut self, now_us: u64) -> Self {
        self.group.take(&mut self.arrived, now_us);
        assert!(self.arrived.is_empty());
        self
    }

    /// Numbers of what is opened, passed, closed and ended in the next portion.
    fn portion(&mut self, now_us: u64) -> [Vec<u128>; 4] {
        let portion = self.group.portion(now_us).unwrap();
        Self::numbers(&portion)
    }

    fn numbers(portion: &Portion) -> [Vec<u128>; 4] {
        let ids = |rows: &[(Uuid, String)]| rows.iter().map(|(id, _)| id.as_u128()).collect();
        [
            ids(&portion.opened),
            ids(&portion.passed),
            portion.closed.iter().map(Uuid::as_u128).collect(),
            portion.ended.iter().map(|ended| ended.finished.ticket.as_u128()).collect(),
        ]
    }
}

#[test]
fn who_waits_for_all_rows_waits_for_no_time() {
    let mut told = Told::new().open([1, 2], 0).finish([2]);
    let (written, mut wait) = oneshot::channel();
    told.arrived.flushes.push(written);
    let mut told = told.take(1);
    assert_eq!(told.group.due_us(), Some(0));
    let portion = told.group.portion(1).unwrap();
    let rows: Vec<_> = portion.opened.iter().map(|(id, _)| id.as_u128()).collect();
    assert_eq!((rows, portion.ended.len()), (vec![1], 1), "who has ended needs no row");
    told.group.put_back(portion);
    assert!(wait.try_recv().is_err(), "there was no room for it");
    assert_eq!(told.group.due_us(), Some(0));
    let portion = told.group.portion(2).unwrap();
    assert_eq!((portion.opened.len(), portion.flushes.len()), (1, 1));
    drop(portion);
    assert_eq!(told.group.due_us(), None);
    assert!(told.group.removals_only().is_empty());
}

#[test]
fn a_request_that_ends_before_its_row_is_due_has_none() {
    let mut told = Told::new().open([1, 2], 100).finish([1]);
    assert_eq!(told.group.due_us(), Some(0), "a client waits");
    assert_eq!(told.portion(200), [vec![], vec![], vec![], vec![1]]);
    assert_eq!(told.group.due_us(), Some(4_100));
    let mut told = told.release(2, 300);
    assert_eq!(told.portion(4_100), [const { Vec::new() }; 4], "nor one that is given up");
    assert_eq!((told.group.due_us(), told.group.rows()), (None, 0));
}

#[test]
fn a_row_is_written_when_due_and_with_it_what_soon_would_be() {
    let mut told = Told::new().open([1], 0).open([2], 1_000).open([3], 1_001);
    assert_eq!(told.group.due_us(), Some(4_000));
    assert_eq!(told.portion(4_000), [vec![1, 2], vec![], vec![], vec![]]);
    assert_eq!((told.group.due_us(), told.group.rows()), (Some(5_001), 2));
    let mut told = told.finish([2]);
    assert_eq!(told.portion(4_000), [vec![], vec![], vec![2], vec![2]], "the row goes with the record");
    let mut told = told.release(1, 4_500);
    assert_eq!((told.group.due_us(), told.group.rows()), (Some(5_001), 0));
    assert_eq!(told.portion(5_001), [vec![3], vec![], vec![1], vec![]]);
}

#[test]
fn of_checkpoints_the_last_is_written_and_none_of_what_ended() {
    let mut told = Told::new().open([1, 2], 0).pass(2, 5, 10);
    let portion = told.group.portion(4_000).unwrap();
    assert!(portion.opened[1].1.contains("\"total_ms\":5"), "a row begins with what is known");
    let mut told = told.pass(1, 6, 5_000).pass(1, 7, 20_000).pass(2, 8, 30_000).pass(9, 9, 30_000);
    assert_eq!(told.group.due_us(), Some(55_000));
    let told_of = told.group.portion(55_000).unwrap();
    assert_eq!(Told::numbers(&told_of), [vec![], vec![1], vec![], vec![]]);
    assert!(told_of.passed[0].1.contains("\"total_ms\":7"));
    let mut told = told.finish([2]).pass(2, 9, 60_000);
    assert_eq!(told.portion(90_000), [vec![], vec![], vec![2], vec![2]]);
    assert_eq!(told.group.due_us(), None);
}

#[test]
fn what_the_journal_has_is_gathered_until_somebody_waits() {
    let mut told = Told::new().journal([1], 500).journal([2], 9_000);
    assert_eq!(told.group.due_us(), Some(10_500), "the first says when");
    let portion = told.group.portion(10_500).unwrap();
    assert_eq!(portion.write(|writes| (writes.records.len(), writes.journaled)), (2, Some(2)));
    assert_eq!(told.group.due_us(), None);

    let mut told = told.journal([3, 4, 5, 6], 20_000).finish([7]);
    assert_eq!(told.group.due_us(), Some(0), "one of them waits");
    let first = told.group.portion(20_000).unwrap();
    assert_eq!(first.write(|writes| writes.journaled), Some(5), "there is no room for more");
    told.group.put_back(first);
    let first = told.group.portion(20_000).unwrap();
    assert_eq!(first.write(|writes| writes.journaled), Some(5));
    let second = told.group.portion(20_000).unwrap();
    assert_eq!(Told::numbers(&second)[3], [6, 7]);
    assert_eq!(second.write(|writes| writes.journaled), Some(6));

    let mut told = told.finish([8]);
    assert_eq!(told.group.portion(0).unwrap().write(|writes| writes.journaled), None);
    told.arrived.hurry();
    assert!(told.arrived.is_urgent());
    assert_eq!(told.journal([9], 30_000).group.due_us(), Some(0), "the journal is nearly full");
}

#[test]
fn no_more_is_written_together_than_may_be() {
    let mut told = Told::new().finish(1..=5);
    assert_eq!(told.portion(0)[3], [1, 2, 3]);
    assert_eq!(told.portion(0)[3], [4, 5]);
    assert_eq!(told.group.due_us(), None);
}

#[test]
fn what_could_not_be_written_comes_again_in_its_order() {
    let mut told = Told::new().open([1, 2, 3], 0);
    let portion = told.group.portion(9_000).unwrap();
    told.group.put_back(portion);
    assert_eq!((told.group.rows(), told.group.due_us()), (0, Some(0)));
    let mut told = told.release(3, 9_000).finish([1]);
    let portion = told.group.portion(9_000).unwrap();
    assert_eq!(Told::numbers(&portion), [vec![2], vec![], vec![], vec![1]], "what has no row yet needs none");
    drop(portion);

    let mut told = told.open([4, 5], 10_000);
    drop(told.group.portion(20_000));
    let mut told = told.pass(4, 7, 20_000).release(5, 20_000).finish([6, 7, 8, 2]);
    let first = told.group.portion(90_000).unwrap();
    let expected = [vec![], vec![4], vec![5], vec![6, 7, 8]];
    assert_eq!(Told::numbers(&first), expected);
    told.group.put_back(first);
    assert_eq!(told.group.rows(), 1);
    assert_eq!(told.portion(90_000), expected);
    assert_eq!(told.portion(90_000), [vec![], vec![], vec![2], vec![2]]);
}

#[test]
fn room_is_made_by_what_takes_none() {
    let mut told = Told::new().open([1, 2], 0);
    drop(told.group.portion(9_000));
    let mut told = told.release(1, 9_000).finish([2]);
    let (written, _wait) = oneshot::channel();
    let of = Acknowledged { sink: "ledger".into(), writer: "w".into(), last: 7 };
    told.arrived.acknowledged.push(Acknowledgement { of: of.clone(), written });
    let mut told = told.take(9_000);
    let room = told.group.removals_only();
    assert_eq!((Told::numbers(&room), &room.acknowledged), ([vec![], vec![], vec![1], vec![]], &vec![of]));
    assert_eq!(told.portion(9_000), [vec![], vec![], vec![2], vec![2]]);
}
