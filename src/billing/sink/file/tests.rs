//! The file as it is found after everything that can happen to it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::super::testing::{BEGIN_MS, MemorySource, ids, records, times};
use super::super::{RECORDS_MAX, Source};
use super::*;

const ALL: Rotation = Rotation { bytes_max: u64::MAX, files_max: None };

struct Place {
    folder: tempfile::TempDir,
    unix_ms: UnixMs,
    now: Arc<AtomicI64>,
}

impl Place {
    fn new() -> Self {
        let (times, now) = times();
        Self { folder: tempfile::tempdir().unwrap(), unix_ms: times.unix_ms, now }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("data/usage.ndjson")
    }

    async fn open(&self, rotation: Rotation) -> FileSink {
        self.date();
        FileSink::open("file".into(), self.path(), rotation, Arc::clone(&self.unix_ms)).await.unwrap()
    }

    /// The file was last written to at the tests' time, not at the machine's.
    fn date(&self) {
        if let Ok(file) = OpenOptions::new().append(true).open(self.path()) {
            let now = Duration::from_millis(self.now.load(Ordering::Relaxed).try_into().unwrap());
            file.set_modified(SystemTime::UNIX_EPOCH + now).unwrap();
        }
    }

    fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.path().parent().unwrap()).unwrap();
        let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The ids in all files, the oldest file first.
    fn written(&self) -> Vec<Uuid> {
        let text = |name: &String| std::fs::read_to_string(self.path().with_file_name(name)).unwrap();
        let text: String = self.names().iter().map(text).collect();
        assert!(text.is_empty() || text.ends_with('\n'));
        let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["request_id"].clone();
        text.lines().map(|line| id(line).as_str().unwrap().parse().unwrap()).collect()
    }
}

#[tokio::test]
async fn a_line_is_what_the_usage_command_prints() {
    let place = Place::new();
    let mut sink = place.open(ALL).await;
    sink.deliver(&records(0..2)).await.unwrap();
    let text = std::fs::read_to_string(place.path()).unwrap();
    let expected: Vec<String> =
        records(0..2).iter().map(|record| serde_json::to_string(&UsageDocument::from(record)).unwrap()).collect();
    assert_eq!(text, expected.join("\n") + "\n");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&place.path()), mode(place.path().parent().unwrap())), (0o600, 0o700));
}

#[tokio::test]
async fn a_batch_that_comes_again_is_not_written_again() {
    let place = Place::new();
    let mut sink = place.open(ALL).await;
    sink.deliver(&records(0..3)).await.unwrap();
    sink.deliver(&records(0..3)).await.unwrap();
    drop(sink);
    let mut sink = place.open(ALL).await;
    sink.deliver(&records(0..5)).await.unwrap();
    assert_eq!(place.written(), ids(&records(0..5)));
}

#[tokio::test]
async fn half_a_batch_is_completed_wherever_the_crash_tore_it() {
    let place = Place::new();
    let mut sink = place.open(ALL).await;
    sink.deliver(&records(0..2)).await.unwrap();
    let before = std::fs::metadata(place.path()).unwrap().len();
    sink.deliver(&records(2..4)).await.unwrap();
    drop(sink);
    let whole = std::fs::read(place.path()).unwrap();
    for end in usize::try_from(before).unwrap()..=whole.len() {
        std::fs::write(place.path(), &whole[..end]).unwrap();
        // When it was written says whether another file is due.
        let began = SystemTime::UNIX_EPOCH + Duration::from_millis(BEGIN_MS.unsigned_abs());
        File::options().append(true).open(place.path()).unwrap().set_modified(began).unwrap();
        let mut sink = place.open(ALL).await;
        sink.deliver(&records(2..4)).await.unwrap();
        assert_eq!(std::fs::read(place.path()).unwrap(), whole, "{end}");
    }
}

#[tokio::test]
async fn half_a_batch_is_completed_where_it_is() {
    let place = Place::new();
    let rotation = Rotation { bytes_max: 1, files_max: None };
    place.open(rotation).await.deliver(&records(0..2)).await.unwrap();
    let file = OpenOptions::new().append(true).open(place.path()).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    place.now.fetch_add(86_400_000, Ordering::Relaxed);
    place.open(rotation).await.deliver(&records(0..2)).await.unwrap();
    assert_eq!(place.names(), ["usage.ndjson"], "a crash now finds all of the batch in one place");
    assert_eq!(place.written(), ids(&records(0..2)));
}

#[tokio::test]
async fn full_files_make_room_and_the_oldest_go() {
    let place = Place::new();
    let line_bytes = serde_json::to_string(&UsageDocument::from(&records(0..1)[0])).unwrap().len() as u64 + 1;
    let mut sink = place.open(Rotation { bytes_max: 3 * line_bytes, files_max: Some(2) }).await;
    for batch in 0..5 {
        sink.deliver(&records(2 * batch..2 * batch + 2)).await.unwrap();
        place.now.fetch_add(1_000, Ordering::Relaxed);
    }
    let expected = ["usage-20261123T101502Z.ndjson", "usage-20261123T101503Z.ndjson", "usage.ndjson"];
    assert_eq!(place.names(), expected);
    assert_eq!(place.written(), ids(&records(4..10)));
}

#[tokio::test]
async fn a_day_is_a_file() {
    let place = Place::new();
    let mut sink = place.open(ALL).await;
    sink.deliver(&records(0..1)).await.unwrap();
    place.now.fetch_add(3_600_000, Ordering::Relaxed);
    sink.deliver(&records(1..2)).await.unwrap();
    drop(sink);
    let mut sink = place.open(ALL).await;
    place.now.fetch_add(86_400_000, Ordering::Relaxed);
    sink.deliver(&records(1..2)).await.unwrap();
    assert_eq!(place.names(), ["usage.ndjson"], "nothing new, nothing to begin a file with");
    sink.deliver(&records(2..3)).await.unwrap();
    assert_eq!(place.names(), ["usage-20261123T111500Z.ndjson", "usage.ndjson"]);
    assert_eq!(place.written(), ids(&records(0..3)));
}

#[tokio::test]
async fn what_is_in_the_file_before_is_remembered_too() {
    let place = Place::new();
    let mut sink = place.open(Rotation { bytes_max: 1, files_max: None }).await;
    sink.deliver(&records(0..2)).await.unwrap();
    place.now.fetch_add(1_000, Ordering::Relaxed);
    sink.deliver(&records(2..4)).await.unwrap();
    drop(sink);
    assert_eq!(place.names().len(), 2);
    place.now.fetch_add(1_000, Ordering::Relaxed);
    let mut sink = place.open(Rotation { bytes_max: 1, files_max: None }).await;
    sink.deliver(&records(0..5)).await.unwrap();
    assert_eq!(place.written(), ids(&records(0..5)));
}

#[tokio::test]
async fn one_process_writes_at_a_time() {
    let place = Place::new();
    let mut old = place.open(ALL).await;
    let mut new = place.open(ALL).await;
    old.deliver(&records(0..1)).await.unwrap();
    let outcome = new.deliver(&records(0..1)).await;
    assert!(matches!(&outcome, Err(SinkError::Later { why, .. }) if why.contains("another process")), "{outcome:?}");
    drop(old);
    new.deliver(&records(0..2)).await.unwrap();
    assert_eq!(place.written(), ids(&records(0..2)));
}

#[tokio::test]
async fn a_file_that_is_moved_away_is_begun_anew() {
    let place = Place::new();
    let mut sink = place.open(ALL).await;
    sink.deliver(&records(0..1)).await.unwrap();
    std::fs::rename(place.path(), place.path().with_file_name("a.ndjson")).unwrap();
    sink.deliver(&records(0..2)).await.unwrap();
    std::fs::remove_file(place.path()).unwrap();
    sink.deliver(&records(2..3)).await.unwrap();
    assert_eq!(place.written(), ids(&[records(0..1), records(2..3)].concat()));
}

#[tokio::test]
async fn another_file_is_not_taken_for_ours() {
    let place = Place::new();
    std::fs::create_dir_all(place.path().parent().unwrap()).unwrap();
    std::fs::write(place.path(), "precious").unwrap();
    let opened = FileSink::open("file".into(), place.path(), ALL, Arc::clone(&place.unix_ms)).await;
    let why = opened.unwrap_err();
    assert!(why.contains("usage.ndjson: there is something else"), "{why}");
    assert_eq!(std::fs::read_to_string(place.path()).unwrap(), "precious");
}

/// What happens between two batches.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// All goes well.
    Well,
    /// The process dies when the batch is in the file and before the cursor has moved, and that part of a thousand of what was
    /// written is lost with it.
    Dies(u64),
    /// The cursor cannot be moved, and the process goes on.
    Fails,
}

fn fates() -> impl Strategy<Value = Vec<(Fate, usize, i64)>> {
    let fate = prop_oneof![Just(Fate::Well), (0..=1_000_u64).prop_map(Fate::Dies), Just(Fate::Fails)];
    prop::collection::vec((fate, 1_usize..40, prop_oneof![Just(0_i64), Just(1_500), Just(40_000_000)]), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn each_record_is_in_the_files_once_whatever_happens(fates in fates(), bytes_max in 500_u64..20_000) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (place, rotation) = (Place::new(), Rotation { bytes_max, files_max: None });
            let mut source = MemorySource::new(Vec::new());
            let mut sink = place.open(rotation).await;
            let mut pushed = 0;
            for (fate, count, later_ms) in fates {
                source.push(records(pushed..pushed + count));
                pushed += count;
                place.now.fetch_add(later_ms, Ordering::Relaxed);
                let next = source.next(RECORDS_MAX).await.unwrap();
                let before: BTreeMap<String, u64> = place.sizes();
                sink.deliver(&next).await.unwrap();
                match fate {
                    Fate::Well => source.advance(&[]).await.unwrap(),
                    Fate::Fails => {}
                    Fate::Dies(lost) => {
                        drop(sink);
                        place.lose(&before, lost);
                        sink = place.open(rotation).await;
                    }
                }
            }
            let rest = source.next(usize::MAX).await.unwrap();
            sink.deliver(&rest).await.unwrap();
            let mut written = place.written();
            written.sort_unstable();
            assert_eq!(written, ids(&records(0..pushed)));
        });
    }
}

impl Place {
    fn sizes(&self) -> BTreeMap<String, u64> {
        let size = |name: &String| std::fs::metadata(self.path().with_file_name(name)).unwrap().len();
        self.names().iter().map(|name| (name.clone(), size(name))).collect()
    }

    /// Cuts off a part of what was written since.
    fn lose(&self, before: &BTreeMap<String, u64>, lost_per_mille: u64) {
        let old = if self.names().len() == before.len() { before.get("usage.ndjson").copied().unwrap_or(0) } else { 0 };
        let file = OpenOptions::new().append(true).open(self.path()).unwrap();
        let bytes = file.metadata().unwrap().len();
        file.set_len(bytes - (bytes - old) * lost_per_mille / 1_000).unwrap();
    }
}

#[test]
fn the_tests_begin_when_they_say() {
    let name = Rotation::name(Path::new("usage.ndjson"), BEGIN_MS);
    assert_eq!(name, Path::new("usage-20261123T101500Z.ndjson"));
}
