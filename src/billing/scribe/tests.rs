//! The scribe step by step, in a process that dies between any two of them: whatever was acknowledged is billed once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc;

use proptest::collection::vec;
use proptest::prelude::*;

use uuid::Uuid;

use super::*;
use crate::billing::SpoolPlace;
use crate::billing::group::{Acknowledgement, Pace};
use crate::billing::open_row::Facts;
use crate::billing::recorder::{Finished, Progress};
use crate::billing::spool::{Acknowledged, Entry, LEDGER, SpoolReader, Stretch, place, record};
use crate::relay::admit::{Purse, Spending};
use crate::relay::meter::{NanoUsd, Usage};

/// What happens next.
#[derive(Debug, Clone)]
enum Event {
    Open,
    Pass(prop::sample::Index, i64),
    Finish(prop::sample::Index),
    Release(prop::sample::Index),
    /// Time goes on, and what is due is written.
    Step(u64),
    /// The ledger takes a batch; the word of it is lost, or not.
    Deliver {
        lost: bool,
    },
    /// There is room for so many pages more.
    Room(i64),
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    let any_of = any::<prop::sample::Index>;
    prop_oneof![
        4 => Just(Event::Open),
        3 => (any_of(), 0_i64..1_000).prop_map(|(which, cost)| Event::Pass(which, cost)),
        4 => any_of().prop_map(Event::Finish),
        1 => any_of().prop_map(Event::Release),
        6 => (0_u64..60_000).prop_map(Event::Step),
        2 => any::<bool>().prop_map(|lost| Event::Deliver { lost }),
        2 => (0_i64..3).prop_map(Event::Room),
        1 => Just(Event::Crash),
    ]
}

/// What the world outside of the process knows.
#[derive(Debug, Default)]
struct World {
    now_us: u64,
    minted: u128,
    running: Vec<u128>,
    released: BTreeSet<u128>,
    waiting: BTreeMap<u128, oneshot::Receiver<()>>,
    acknowledged: BTreeSet<u128>,
    /// What each entry costs, as the ledger has it.
    entries: BTreeMap<u128, Vec<i64>>,
    cursors: BTreeMap<Arc<str>, i64>,
}

type Told = Box<dyn FnMut(i64, Vec<Kept>)>;

struct Process {
    scribe: Scribe<Told>,
    arrived: Arrived,
    batches: mpsc::Receiver<i64>,
    reader: SpoolReader,
    /// What is to be delivered.
    stretches: Vec<Stretch>,
    state: Arc<BillingState>,
}

impl Process {
    fn begin(place: &SpoolPlace) -> Self {
        let mut file = SpoolFile::open(place).unwrap();
        let mut stretches = file.adopt().unwrap().stretches;
        stretches.push(Stretch {
            writer: Arc::clone(file.writer()),
            legacy: false,
            after: 0,
            last: 0,
            records: 0,
            oldest_ms: 0,
        });
        let state = Arc::new(BillingState::default());
        state.set_room(file.room().unwrap());
        let (sender, batches) = mpsc::channel();
        let kept: Told = Box::new(move |number, _| sender.send(number).unwrap());
        let scribe = Scribe::new(file, Group::new(Pace::default(), 3), Arc::clone(&state), kept);
        let reader = SpoolReader::open(&place.path).unwrap();
        Self { scribe, arrived: Arrived::default(), batches, reader, stretches, state }
    }

    fn open(&mut self, world: &mut World) {
        world.minted += 1;
        let name = || Arc::from("n");
        let facts = Facts { account: name(), key: name(), model: long_name(), started_at_ms: 1, hold: 9 };
        self.arrived.opened.push((Uuid::from_u128(world.minted), Arc::new(facts)));
        world.running.push(world.minted);
    }

    fn finish(&mut self, number: u128, world: &mut World) {
        let charge = Charge {
            account: Arc::new(Purse::new(NanoUsd(0), 0)),
            spending: Arc::new(Spending::new(NanoUsd(0), 0)),
            cost: NanoUsd(0),
        };
        // Tickets are given out before there is want of room.
        let reserved = Arc::new(BillingState::default());
        reserved.set_room(crate::billing::spool::Room { used: 0, limit: u64::MAX });
        let reserved = reserved.reserve(1).unwrap();
        let record = UsageRecord { cost: NanoUsd(FINAL), model: long_name(), ..record(number) };
        let entry = Entry::of(&record).unwrap();
        let mut finished = Some(Finished { ticket: Uuid::from_u128(number), record, charge, reserved });
        let journal = self.scribe.file.journal().unwrap();
        let arrived = &mut self.arrived;
        journal.append(entry, |written| {
            arrived.finish(finished.take().unwrap(), Keeping::Journal(written.number));
        });
        match finished {
            None => drop(world.acknowledged.insert(number)),
            Some(finished) => {
                let (kept, wait) = oneshot::channel();
                arrived.finish(finished, Keeping::Batch(kept));
                world.waiting.insert(number, wait);
            }
        }
    }

    fn step(&mut self, world: &mut World) {
        self.scribe.step(&mut self.arrived, world.now_us).unwrap();
        self.stretches.last_mut().unwrap().last =
            self.batches.try_iter().last().unwrap_or(self.stretches.last().unwrap().last);
        let World { waiting, acknowledged, .. } = world;
        waiting.retain(|number, wait| {
            let told = wait.try_recv();
            if told == Ok(()) {
                acknowledged.insert(*number);
            }
            told == Err(oneshot::error::TryRecvError::Empty)
        });
    }

    /// One round of delivery; whether there was anything.
    fn deliver(&mut self, lost: bool, world: &mut World) -> bool {
        for stretch in &mut self.stretches {
            let read = self.reader.read(stretch, 4).unwrap();
            let Some((first, last)) = read.first().zip(read.last()) else { continue };
            let entered = world.cursors.entry(Arc::clone(&stretch.writer)).or_default();
            assert!(first <= *entered + 1, "a gap: {first} after {entered}");
            if last > *entered {
                *entered = last;
                // At most once by its id, as the store has it: what is written down here is each cost that was offered.
                for record in read.batches.iter().flat_map(|batch| &batch.records) {
                    let costs = world.entries.entry(record.request_id.as_u128()).or_default();
                    if costs.is_empty() || !costs.contains(&record.cost.0) {
                        costs.push(record.cost.0);
                    }
                }
            }
            if !lost {
                let (written, _) = oneshot::channel();
                let of = Acknowledged { sink: LEDGER.into(), writer: Arc::clone(&stretch.writer), last };
                self.arrived.acknowledged.push(Acknowledgement { of, written });
                stretch.after = last;
            }
            return true;
        }
        false
    }
}

const FINAL: i64 = 5_000;

/// A few rows fill a page, so that room matters.
fn long_name() -> Arc<str> {
    "n".repeat(1_500).into()
}

fn live(events: Vec<Event>) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let place = SpoolPlace { bytes_max: 1 << 20, ..place(&folder) };
    let mut world = World::default();
    let mut process = Process::begin(&place);
    for event in events {
        match event {
            Event::Open => process.open(&mut world),
            Event::Pass(which, cost) if !world.running.is_empty() => {
                let number = *which.get(&world.running);
                let usage = Usage::default();
                let progress = Progress {
                    provider: "p".into(),
                    usage,
                    cost: NanoUsd(cost),
                    provider_cost: None,
                    first_token_ms: Some(1),
                    total_ms: 2,
                };
                process.arrived.passed.insert(Uuid::from_u128(number), progress);
            }
            Event::Finish(which) if !world.running.is_empty() => {
                let number = world.running.swap_remove(which.index(world.running.len()));
                process.finish(number, &mut world);
            }
            Event::Release(which) if !world.running.is_empty() => {
                let number = world.running.swap_remove(which.index(world.running.len()));
                world.released.insert(number);
                let reserved = process.state.reserve(1);
                process.arrived.released.extend(reserved.map(|reserved| (Uuid::from_u128(number), reserved)));
            }
            Event::Step(us) => {
                world.now_us += us;
                process.step(&mut world);
            }
            Event::Deliver { lost } => drop(process.deliver(lost, &mut world)),
            Event::Room(pages) => process.scribe.file.leave_pages(pages),
            Event::Crash => {
                drop(process);
                world.running.clear();
                world.waiting.clear();
                process = Process::begin(&place);
            }
            _ => {}
        }
    }
    // A last life, with room enough, in which all is delivered.
    drop(process);
    let mut process = Process::begin(&place);
    while process.deliver(false, &mut world) {
        process.step(&mut world);
        world.now_us += 1_000_000;
        process.step(&mut world);
    }
    for (number, costs) in &world.entries {
        prop_assert_eq!(costs.len(), 1, "request {} was offered as {:?}", number, costs);
        prop_assert!(*number <= world.minted);
    }
    for number in &world.acknowledged {
        prop_assert_eq!(world.entries.get(number), Some(&vec![FINAL]), "request {}", number);
    }
    drop(process);
    let mut last = SpoolFile::open(&place).unwrap();
    prop_assert!(last.adopt().unwrap().stretches.is_empty(), "nothing is left");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_acknowledged_is_billed_once_whatever_happens(events in vec(event(), 1..120)) {
        live(events)?;
    }
}
