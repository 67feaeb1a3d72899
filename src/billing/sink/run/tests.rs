//! A sink that fails by a script, fed from memory: what is kept, what is tried again and when.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;

use super::super::testing::{MemorySource, ids, records, times};
use super::super::{AnySink, Parked, SinkPlace, SinkTarget, TAKEN_MAX};
use super::*;
use crate::relay::meter::UsageRecord;

/// What the sink makes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Take,
    /// Takes it, and fails to say so.
    TakeSilently,
    Fail,
    Ask(u64),
    Close,
}

/// A receiver. Clones are the same one.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    script: VecDeque<Act>,
    poison: BTreeSet<Uuid>,
    refuses_all: bool,
    attempts: Vec<Vec<Uuid>>,
    taken: Vec<Uuid>,
}

impl Scripted {
    fn new(script: &[Act]) -> Self {
        let scripted = Self::default();
        scripted.inside(|inside| inside.script.extend(script));
        scripted
    }

    fn inside<T>(&self, with: impl FnOnce(&mut Inside) -> T) -> T {
        with(&mut self.0.lock().unwrap())
    }

    fn taken(&self) -> Vec<Uuid> {
        self.inside(|inside| inside.taken.clone())
    }
}

impl Sink for Scripted {
    fn name(&self) -> &str {
        "webhook"
    }

    async fn deliver(&mut self, records: &[UsageRecord]) -> Result<(), SinkError> {
        self.inside(|inside| {
            let batch = ids(records);
            assert!(!batch.is_empty() && batch.len() <= RECORDS_MAX);
            inside.attempts.push(batch.clone());
            let later = |retry_after| SinkError::Later { why: "not now".to_owned(), retry_after };
            match inside.script.pop_front().unwrap_or(Act::Take) {
                Act::Fail => Err(later(None)),
                Act::Ask(seconds) => Err(later(Some(Duration::from_secs(seconds)))),
                Act::Close => Err(SinkError::Closed("not you".to_owned())),
                _ if inside.refuses_all || batch.iter().any(|id| inside.poison.contains(id)) => {
                    Err(SinkError::Refused("not this".to_owned()))
                }
                act => {
                    inside.taken.extend(batch);
                    if act == Act::Take { Ok(()) } else { Err(later(None)) }
                }
            }
        })
    }
}

struct Bench {
    sink: Scripted,
    source: MemorySource,
    runner: Runner<Scripted, MemorySource>,
    now: Arc<AtomicI64>,
}

fn bench(records: Vec<UsageRecord>, script: &[Act]) -> Bench {
    let (sink, source, (times, now)) = (Scripted::new(script), MemorySource::new(records), times());
    let runner = Runner::new(sink.clone(), source.clone(), times, Arc::clone(source.state()));
    Bench { sink, source, runner, now }
}

impl Bench {
    /// Steps until it has nothing to do or must wait.
    async fn go(&mut self) -> Step {
        loop {
            match self.runner.step(false).await {
                Step::Moved => {}
                stop => return stop,
            }
        }
    }

    /// The process dies and another takes over.
    fn die(&mut self) {
        let state = Arc::clone(self.source.state());
        self.runner = Runner::new(self.sink.clone(), self.source.clone(), self.runner.times.clone(), state);
    }

    fn pass(&self, time: Duration) {
        self.now.fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

const fn seconds(seconds: u64) -> Step {
    Step::Later(Duration::from_secs(seconds))
}

#[tokio::test]
async fn everything_goes_through_once_and_in_order() {
    let mut bench = bench(records(0..2_500), &[]);
    assert_eq!(bench.source.state().waiting(), 2_500);
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.sink.taken(), ids(&records(0..2_500)));
    assert_eq!((bench.source.state().delivered(), bench.source.state().waiting()), (2_500, 0));
}

#[tokio::test]
async fn failures_are_tried_again_ever_more_slowly_until_one_goes_through() {
    let script = [Act::Fail, Act::Fail, Act::Fail, Act::Ask(60), Act::TakeSilently, Act::Take, Act::Fail];
    let mut bench = bench(records(0..3), &script);
    for expected in [1, 2, 4, 60, 16] {
        assert_eq!(bench.go().await, seconds(expected));
        assert_eq!(bench.source.waiting(), 3);
    }
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.sink.taken(), [ids(&records(0..3)), ids(&records(0..3))].concat(), "the same ids");
    assert_eq!(bench.source.state().failed(), 5);
    bench.source.push(records(3..4));
    assert_eq!(bench.go().await, seconds(1), "from the beginning");
}

#[tokio::test]
async fn a_cursor_that_cannot_be_moved_is_no_reason_to_deliver_again() {
    let mut bench = bench(records(0..3), &[]);
    bench.source.fail(2);
    assert_eq!([bench.go().await, bench.go().await], [seconds(1), seconds(2)]);
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.sink.taken(), ids(&records(0..3)));
}

#[tokio::test]
async fn a_refused_record_is_parked_and_goes_through_when_the_receiver_is_mended() {
    let mut bench = bench(records(0..1_000), &[]);
    let poison = ids(&records(300..302));
    bench.sink.inside(|inside| inside.poison.extend(&poison));
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.sink.taken().len(), 998);
    let parked: Vec<Uuid> = bench.source.parked_now().iter().map(|Parked { record, .. }| record.request_id).collect();
    assert_eq!((parked, bench.source.state().parked(), bench.source.waiting()), (poison.clone(), 2, 0));

    let attempts = bench.sink.inside(|inside| inside.attempts.len());
    bench.pass(PAUSE_MAX - Duration::from_millis(1));
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.sink.inside(|inside| inside.attempts.len()), attempts, "not before its time");
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.go().await, Step::Nothing);
    assert!(bench.sink.inside(|inside| inside.attempts.len()) > attempts);
    assert_eq!(bench.source.state().parked(), 2);

    bench.sink.inside(|inside| inside.poison.clear());
    bench.pass(PAUSE_MAX);
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!((bench.source.parked_now().len(), bench.source.state().parked()), (0, 0));
    assert_eq!(bench.sink.taken()[998..], poison);
}

#[tokio::test]
async fn many_parked_records_go_at_once_when_the_receiver_is_mended() {
    let mut bench = bench(records(0..500), &[]);
    bench.sink.inside(|inside| inside.poison.extend(ids(&records(1..400))));
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.source.state().parked(), 399);
    bench.sink.inside(|inside| inside.poison.clear());
    bench.pass(PAUSE_MAX);
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!((bench.source.state().parked(), bench.sink.taken().len()), (0, 500));
}

#[tokio::test]
async fn parked_records_that_are_refused_still_stop_nobody() {
    let mut bench = bench(records(0..300), &[]);
    let poison = ids(&records(1..290));
    bench.sink.inside(|inside| inside.poison.extend(&poison));
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.source.state().parked(), 289);
    let mended = poison[200];
    bench.sink.inside(|inside| inside.poison.remove(&mended));
    for batch in 0..3 {
        bench.pass(PAUSE_MAX);
        bench.source.push(records(300 + batch..301 + batch));
        assert_eq!(bench.go().await, Step::Nothing);
        assert_eq!(bench.source.waiting(), 0, "what is new goes through");
    }
    assert!(bench.sink.inside(|inside| inside.attempts.iter().any(|batch| batch.contains(&poison[280]))));
    let first = bench.sink.inside(|inside| inside.attempts.len());
    bench.pass(PAUSE_MAX);
    assert_eq!(bench.go().await, Step::Nothing);
    let again = bench.sink.inside(|inside| inside.attempts[first..].concat());
    assert!(again.contains(&poison[0]), "from the beginning again: {again:?}");
}

#[tokio::test]
async fn a_receiver_that_refuses_everything_gets_it_when_it_is_mended() {
    let mut bench = bench(records(0..1_500), &[]);
    bench.sink.inside(|inside| inside.refuses_all = true);
    assert_eq!(bench.go().await, seconds(300));
    assert!(bench.sink.inside(|inside| inside.attempts.len()) < 12);
    assert_eq!((bench.source.parked_now().len(), bench.source.waiting()), (0, 1_500));
    assert_eq!(bench.source.state().parked(), 1_000, "it shows");
    bench.sink.inside(|inside| inside.refuses_all = false);
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.sink.taken(), ids(&records(0..1_500)));
    assert_eq!(bench.source.state().parked(), 0);
}

#[tokio::test]
async fn a_receiver_that_is_closed_is_asked_once_in_a_while() {
    let mut bench = bench(records(0..20), &[Act::Close, Act::Close]);
    assert_eq!([bench.go().await, bench.go().await], [seconds(300), seconds(300)]);
    assert_eq!(bench.sink.inside(|inside| inside.attempts.len()), 2);
    assert_eq!((bench.source.state().refused(), bench.source.state().parked()), (2, 20));
    assert_eq!(bench.go().await, Step::Nothing);
    assert_eq!(bench.sink.taken().len(), 20);
}

#[tokio::test]
async fn the_end_of_the_process_leaves_what_does_not_go_through() {
    let source = MemorySource::new(records(0..2_000));
    let sink = Scripted::new(&[Act::Take, Act::Fail, Act::Take]);
    let state = Arc::clone(source.state());
    run(sink.clone(), source.clone(), times().0, state, std::future::ready(())).await;
    assert_eq!((sink.taken().len(), source.waiting()), (1_000, 1_000));
}

#[tokio::test]
async fn the_end_of_the_process_is_not_put_off_for_long() {
    let source = MemorySource::new(records(0..3_000));
    let (mut times, now) = times();
    let clock = Arc::clone(&now);
    // Every look at the clock takes 4 seconds.
    times.unix_ms = Arc::new(move || clock.fetch_add(4_000, Ordering::Relaxed));
    let state = Arc::clone(source.state());
    run(Scripted::default(), source.clone(), times, state, std::future::ready(())).await;
    assert!((1..3_000).contains(&source.waiting()), "{}", source.waiting());
}

#[tokio::test]
async fn what_comes_while_nothing_waits_is_delivered_and_the_end_is_noticed() {
    let (source, sink) = (MemorySource::new(Vec::new()), Scripted::default());
    let state = Arc::clone(source.state());
    let running = tokio::spawn(run(sink.clone(), source.clone(), times().0, state, std::future::pending()));
    for batch in 0..3 {
        source.push(records(batch..batch + 1));
        while source.waiting() > 0 {
            tokio::task::yield_now().await;
        }
    }
    source.close();
    running.await.unwrap();
    assert_eq!(sink.taken(), ids(&records(0..3)));
}

#[tokio::test]
async fn a_sink_is_opened_from_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage.ndjson");
    let target = SinkTarget::File { path: path.clone(), bytes_max: 1 << 20, files_max: None };
    let sink = AnySink::open(SinkPlace { name: "file".into(), target }, &Times::real()).await.unwrap();
    assert_eq!(sink.name(), "file");
    let source = MemorySource::new(records(0..5));
    let state = Arc::clone(source.state());
    run(sink, source, Times::real(), state, std::future::ready(())).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 5);

    let target = SinkTarget::File { path: path.join("not-a-folder"), bytes_max: 1 << 20, files_max: None };
    let error = AnySink::open(SinkPlace { name: "file_2".into(), target }, &Times::real()).await.unwrap_err();
    assert!(error.to_string().starts_with("the sink file_2 cannot be opened: "), "{error}");
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => Just(Act::Take),
        2 => Just(Act::TakeSilently),
        2 => Just(Act::Fail),
        1 => (0..9_u64).prop_map(Act::Ask),
        1 => Just(Act::Close),
    ];
    prop::collection::vec(act, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn each_record_arrives_whatever_fails_when(
        script in acts(),
        batches in prop::collection::vec((1_usize..60, 0..3_usize, any::<bool>()), 1..12),
        poison in prop::collection::btree_set(0..300_usize, 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut bench = bench(Vec::new(), &script);
            let all = ids(&records(0..300));
            bench.sink.inside(|inside| inside.poison = poison.iter().map(|place| all[*place]).collect());
            let mut pushed = 0;
            for (count, failures, dies) in batches {
                bench.source.push(records(pushed..pushed + count));
                pushed += count;
                bench.source.fail(failures);
                for _ in 0..count {
                    bench.runner.step(false).await;
                }
                if dies {
                    bench.die();
                }
                bench.pass(Duration::from_secs(200));
            }
            bench.source.fail(0);
            // However it stands, it goes on: the script ends.
            for _ in 0..100 {
                bench.go().await;
                bench.pass(PAUSE_MAX);
            }
            let poison: BTreeSet<Uuid> = bench.sink.inside(|inside| inside.poison.clone());
            let expected: BTreeSet<Uuid> = ids(&records(0..pushed)).into_iter().collect();
            let taken: BTreeSet<Uuid> = bench.sink.taken().into_iter().collect();
            let parked: BTreeSet<Uuid> =
                bench.source.parked_now().iter().map(|parked| parked.record.request_id).collect();
            // All of a few records may be poison: then nothing of them moves, and nothing is lost either.
            let waiting: BTreeSet<Uuid> =
                ids(&records(pushed - bench.source.waiting()..pushed)).into_iter().collect();
            prop_assert!(taken.is_disjoint(&poison));
            prop_assert!(parked.is_subset(&poison));
            let kept: BTreeSet<Uuid> = taken.iter().chain(&parked).chain(&waiting).copied().collect();
            prop_assert_eq!(&kept, &expected);

            bench.sink.inside(|inside| inside.poison.clear());
            for _ in 0..20 {
                bench.go().await;
                bench.pass(PAUSE_MAX);
            }
            let taken: BTreeSet<Uuid> = bench.sink.taken().into_iter().collect();
            prop_assert_eq!(taken, expected);
            prop_assert_eq!((bench.source.waiting(), bench.source.parked_now().len()), (0, 0));
            Ok(())
        })?;
    }
}

#[test]
fn what_is_taken_at_once_can_be_remembered() {
    const { assert!(RECORDS_MAX <= TAKEN_MAX) };
}
