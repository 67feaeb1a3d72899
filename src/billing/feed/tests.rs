//! Sinks fed from a real spool: in what order, how far, and what is left when the process dies.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::*;
use crate::billing::SpoolPlace;
use crate::billing::backlog::Backlog;
use crate::billing::group::{Group, Pace};
use crate::billing::scribe::{self, Scribe};
use crate::billing::sink::{self, Sink, SinkError};
use crate::billing::spool::{Adopted, LEDGER, SpoolReader, place, record, sink};
use crate::billing::state::BillingState;
use crate::billing::worker::Books;

const HOOK: &str = "hook";

/// A process at a spool with one sink, without a ledger.
struct Process {
    source: SpoolSource,
    feed: Arc<Feed>,
    books: Books,
    inbox: Arc<Inbox>,
    own: Arc<str>,
    ended: oneshot::Receiver<()>,
}

impl Process {
    fn start(folder: &tempfile::TempDir) -> Self {
        let place = SpoolPlace { sinks: vec![sink(HOOK)], ..place(folder) };
        let mut file = SpoolFile::open(&place).unwrap();
        let adopted = file.adopt().unwrap();
        let reader = SpoolReader::open(&place.path).unwrap();
        let (own, parked) = (Arc::clone(file.writer()), reader.count_parked(HOOK).unwrap());
        let state = Arc::new(BillingState::with_sinks(vec![Arc::new(SinkState::new(HOOK))]));
        let feed = Arc::new(Feed::new(Arc::clone(&own), Arc::clone(&state.sinks()[0])));
        let inbox = Arc::new(Inbox::new(None));
        let reading = Reading::new(Arc::clone(&inbox), reader);
        let mut source = SpoolSource::new(Arc::clone(&feed), Arc::clone(&inbox), reading, Times::real(), parked);
        source.gather = Duration::ZERO;
        let books = Books::new(Backlog::new(Arc::clone(&own), Vec::new()), vec![Arc::clone(&feed)], Arc::clone(&state));
        books.inherit(adopted);
        let group = Group::new(Pace { removal_within_us: 0, ..Pace::default() }, 1_024);
        let ended = scribe::start(Arc::clone(&inbox), Scribe::new(file, group, state, |_, _| {})).unwrap();
        Self { source, feed, books, inbox, own, ended }
    }

    /// Spools a batch, which the ledger has at once.
    async fn spool(&self, numbers: std::ops::Range<u128>) {
        let records: Vec<_> = numbers.map(record).collect();
        let (count, oldest) = (records.len() as u64, oldest_ms(records.iter()));
        let own = Arc::clone(&self.own);
        let number = self.inbox.ask(move |file: &mut SpoolFile| Ok(file.append(&records))).await.unwrap();
        self.inbox.acknowledge(Acknowledged { sink: LEDGER.into(), writer: own, last: number }).await.unwrap();
        self.feed.push(number, count, oldest);
    }

    async fn adopt(&self) {
        let adopted: Adopted = self.inbox.ask(SpoolFile::adopt).await.unwrap();
        self.books.inherit(adopted);
    }

    /// Takes records and acknowledges them; those numbers.
    async fn take(&mut self, records_max: usize) -> Vec<u128> {
        let taken = numbers(&self.source.next(records_max).await.unwrap());
        self.source.advance(&[]).await.unwrap();
        taken
    }

    fn waiting(&self) -> (u64, Option<i64>) {
        (self.feed.state().waiting(), self.feed.state().oldest_ms())
    }

    /// Nothing that it has not written yet is.
    async fn die(self) {
        let Self { inbox, ended, source, .. } = self;
        drop(source);
        inbox.end();
        let _ = ended.await;
    }
}

fn numbers(records: &[UsageRecord]) -> Vec<u128> {
    records.iter().map(|record| record.request_id.as_u128()).collect()
}

fn range(numbers: std::ops::Range<u128>) -> Vec<u128> {
    numbers.collect()
}

fn ended_ms(number: u128) -> Option<i64> {
    Some(oldest_ms(std::iter::once(&record(number))))
}

#[tokio::test]
async fn the_same_comes_again_and_more_until_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(&folder);
    assert_eq!(process.source.next(10).await.unwrap(), []);
    process.spool(1..4).await;
    assert_eq!(process.waiting(), (3, ended_ms(1)));
    assert_eq!(numbers(&process.source.next(10).await.unwrap()), range(1..4));
    process.spool(4..6).await;
    assert_eq!(numbers(&process.source.next(10).await.unwrap()), range(1..6));
    process.spool(6..26).await;
    assert_eq!(process.take(10).await, range(1..6), "no half of a batch");
    assert_eq!(process.waiting().0, 20);
    assert_eq!(process.take(10).await, range(6..26), "but at least one");
    assert_eq!(process.waiting(), (0, None));
    assert_eq!(process.source.next(10).await.unwrap(), []);
    process.source.advance(&[]).await.unwrap();
    process.spool(26..27).await;
    assert_eq!(process.waiting(), (1, ended_ms(26)));
    assert_eq!(process.take(10).await, [26]);
}

#[tokio::test]
async fn what_is_taken_stays_in_hand_though_others_die() {
    let folder = tempfile::tempdir().unwrap();
    let (old, mut new) = (Process::start(&folder), Process::start(&folder));
    old.spool(1..4).await;
    new.spool(10..12).await;
    new.adopt().await;
    assert_eq!(numbers(&new.source.next(10).await.unwrap()), [10, 11], "what lives delivers its own");
    old.die().await;
    new.adopt().await;
    assert_eq!(new.waiting().0, 5);
    assert_eq!(new.take(10).await, [10, 11]);
    new.spool(12..13).await;
    assert_eq!(new.take(10).await, range(1..4));
    assert_eq!(new.take(10).await, [12]);
    new.die().await;
    let mut next = Process::start(&folder);
    assert_eq!((next.waiting(), next.source.next(10).await.unwrap().len()), ((0, None), 0));
}

#[tokio::test]
async fn what_several_left_is_taken_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    for first in [1, 11, 21] {
        let process = Process::start(&folder);
        for number in first..first + 2 {
            process.spool(number..number + 1).await;
        }
        process.die().await;
    }
    let mut heir = Process::start(&folder);
    heir.spool(31..32).await;
    let mut order = Vec::new();
    for _ in 0..7 {
        order.extend(heir.take(1).await);
    }
    assert_eq!(order, [1, 11, 21, 2, 12, 22, 31]);
    assert_eq!(heir.waiting(), (0, None));
}

#[tokio::test]
async fn a_batch_of_nothing_readable_is_passed_over_and_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(&folder);
    process.spool(1..3).await;
    process.spool(3..4).await;
    let job = |file: &mut SpoolFile| {
        file.damage(1);
        Ok(())
    };
    process.inbox.ask(job).await.unwrap();
    assert_eq!(process.take(1).await, [3]);
    assert_eq!(process.waiting(), (0, None));
    let aside = "SELECT COUNT(*) FROM unreadable_batches";
    let aside: i64 =
        rusqlite::Connection::open(place(&folder).path).unwrap().query_row(aside, [], |row| row.get(0)).unwrap();
    assert_eq!(aside, 1);
}

#[tokio::test]
async fn what_is_parked_is_there_for_the_next_process_by_the_sinks_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(&folder);
    process.spool(1..5).await;
    process.source.next(10).await.unwrap();
    let parked = [4, 2].map(|number| Parked { record: record(number), why: "no".to_owned() });
    process.source.advance(&parked).await.unwrap();
    assert_eq!((process.feed.state().parked(), process.waiting().0), (2, 0));
    process.die().await;

    let (mut next, witness) = (Process::start(&folder), Process::start(&folder));
    assert_eq!(next.feed.state().parked(), 2);
    assert_eq!(numbers(&next.source.parked(None, 1).await.unwrap()), [2]);
    assert_eq!(numbers(&next.source.parked(Some(Uuid::from_u128(2)), 9).await.unwrap()), [4]);
    next.source.unpark(&[Uuid::from_u128(2)]).await.unwrap();
    assert_eq!(next.feed.state().parked(), 1);
    next.spool(9..10).await;
    next.source.next(10).await.unwrap();
    next.source.advance(&[Parked { record: record(9), why: "no".to_owned() }]).await.unwrap();
    next.source.unpark(&[Uuid::from_u128(4)]).await.unwrap();
    next.die().await;

    let mut witness = witness;
    assert_eq!(witness.feed.state().parked(), 2, "as it was when it began");
    witness.adopt().await;
    assert!(witness.source.more().await);
    assert_eq!(witness.source.next(10).await.unwrap(), []);
    assert_eq!(witness.feed.state().parked(), 1, "who died has parked and delivered");
}

/// Takes everything, and fails every third time; half of these times it has taken it all the same.
#[derive(Clone, Default)]
struct Receiver {
    taken: Arc<Mutex<Vec<u128>>>,
    calls: Arc<AtomicUsize>,
}

impl Sink for Receiver {
    fn name(&self) -> &str {
        HOOK
    }

    async fn deliver(&mut self, records: &[UsageRecord]) -> Result<(), SinkError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call % 3 != 2 || call.is_multiple_of(2) {
            self.taken.lock().unwrap().extend(numbers(records));
        }
        match call % 3 {
            2 => Err(SinkError::Later { why: "not now".to_owned(), retry_after: None }),
            _ => Ok(()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Batches are spooled, taken, taken without a word, and left by processes that die: each record arrives, and nothing stays.
    #[test]
    fn each_record_arrives_whoever_dies(lives in prop::collection::vec((1_u128..20, 0_usize..6, 1_usize..40, any::<bool>()), 1..8)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let (mut spooled, mut arrived) = (0, BTreeSet::new());
            for (batches, takes, records_max, silently) in lives {
                let mut process = Process::start(&folder);
                for batch in 1..=batches {
                    let count = 1 + batch % 7;
                    process.spool(spooled + 1..spooled + 1 + count).await;
                    spooled += count;
                }
                for _ in 0..takes {
                    arrived.extend(process.take(records_max).await);
                }
                if silently {
                    arrived.extend(numbers(&process.source.next(records_max).await.unwrap()));
                }
                let missing = spooled as usize - arrived.len();
                prop_assert!(process.waiting().0 as usize >= missing);
                process.die().await;
            }
            let receiver = Receiver::default();
            let mut last = Process::start(&folder);
            last.source.times = Times::without_pauses();
            let (state, feed) = (Arc::clone(last.source.state()), Arc::clone(&last.feed));
            let Process { source, inbox, ended, .. } = last;
            let (end, told) = oneshot::channel::<()>();
            let running = tokio::spawn(sink::run(receiver.clone(), source, Times::without_pauses(), state, async {
                let _ = told.await;
            }));
            while feed.state().waiting() > 0 {
                tokio::task::yield_now().await;
            }
            end.send(()).unwrap();
            running.await.unwrap();
            inbox.end();
            let _ = ended.await;
            arrived.extend(receiver.taken.lock().unwrap().iter());
            prop_assert_eq!(arrived, (1..=spooled).collect::<BTreeSet<_>>());
            let batches = "SELECT COUNT(*) FROM batches";
            let left: i64 = rusqlite::Connection::open(place(&folder).path).unwrap().query_row(batches, [], |row| row.get(0)).unwrap();
            prop_assert_eq!(left, 0);
            Ok(())
        })?;
    }
}
