//! The file alone: what is in it after each thing that is done to it, or happens to it.

use proptest::prelude::*;

use super::*;
use crate::billing::open_row::{self, Facts};
use crate::billing::recorder::Progress;
use crate::billing::sink::{Parked, SinkPlace, SinkTarget};
use crate::relay::meter::{NanoUsd, Usage};

pub(in crate::billing) fn place(folder: &tempfile::TempDir) -> SpoolPlace {
    SpoolPlace {
        path: folder.path().join("data/spool.db"),
        bytes_max: u64::MAX,
        durability: crate::billing::Durability::Process,
        sinks: Vec::new(),
    }
}

/// A sink of which only the name matters.
pub(in crate::billing) fn sink(name: &str) -> SinkPlace {
    SinkPlace {
        name: name.into(),
        target: SinkTarget::File { path: "/dev/null".into(), bytes_max: 1, files_max: None },
    }
}

pub(in crate::billing) fn record(number: u128) -> UsageRecord {
    UsageRecord {
        request_id: Uuid::from_u128(number),
        account_id: "acct_1".into(),
        key_id: "key_1".into(),
        model: "Pro/moonshotai/Kimi-K2.6".into(),
        provider: "moonshot".into(),
        status: 200,
        usage: Usage { input: 7, output: 3, ..Usage::default() },
        cost: NanoUsd(100),
        provider_cost: None,
        estimated: false,
        interrupted: true,
        started_at_ms: 1_700_000_000_000 + i64::try_from(number).unwrap(),
        first_token_ms: Some(12),
        total_ms: 500,
    }
}

/// A request that runs, as its row has it.
pub(in crate::billing) fn open_row(number: u128, cost: Option<i64>) -> (Uuid, String) {
    let facts = Facts {
        account: "acct_1".into(),
        key: "key_1".into(),
        model: "gpt-4o".into(),
        started_at_ms: 1_700_000_000_000,
        hold: 900,
    };
    let progress = cost.map(|cost| Progress {
        provider: "openai".into(),
        usage: Usage { input: 7, output: 1, ..Usage::default() },
        cost: NanoUsd(cost),
        provider_cost: None,
        first_token_ms: Some(12),
        total_ms: 300,
    });
    (Uuid::from_u128(number), open_row::encode(&facts, progress.as_ref()).unwrap())
}

impl SpoolFile {
    pub(in crate::billing) fn append(&mut self, records: &[UsageRecord]) -> i64 {
        let records: Vec<_> = records.iter().collect();
        self.commit(Writes { records: &records, ..Writes::default() }).unwrap().number.unwrap()
    }

    pub(in crate::billing) fn took(&mut self, sink: &str, writer: &Arc<str>, last: i64) {
        let acknowledged = [Acknowledged { sink: sink.into(), writer: Arc::clone(writer), last }];
        self.commit(Writes { acknowledged: &acknowledged, ..Writes::default() }).unwrap();
    }

    /// Makes a batch unreadable.
    pub(in crate::billing) fn damage(&self, number: i64) {
        self.connection.execute("UPDATE batches SET body = 'x' || body WHERE number = ?1", [number]).unwrap();
    }

    /// Lets the file grow by so many pages more, and not beyond.
    pub(in crate::billing) fn leave_pages(&self, pages: i64) {
        let has: i64 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        self.connection.query_row(&format!("PRAGMA max_page_count = {}", has + pages), [], |_| Ok(())).unwrap();
    }

    /// Lets every write to batches fail as no disk that is full does.
    pub(in crate::billing) fn break_writes(&self) {
        let trigger = "CREATE TRIGGER broken BEFORE INSERT ON batches BEGIN SELECT RAISE(ABORT, 'broken'); END";
        self.connection.execute_batch(trigger).unwrap();
    }

    /// Lets every write of that kind to that table fail so, for as long as this is open.
    pub(in crate::billing) fn break_for_good(&self, kind: &str, table: &str) {
        let trigger = format!(
            "CREATE TEMP TRIGGER broken BEFORE {kind} ON main.{table} BEGIN SELECT RAISE(ABORT, 'broken'); END"
        );
        self.connection.execute_batch(&trigger).unwrap();
    }

    pub(in crate::billing) fn mend_writes(&self) {
        self.connection.execute_batch("DROP TRIGGER broken").unwrap();
    }

    fn batches(&self) -> Vec<(String, i64)> {
        let mut select = self.connection.prepare("SELECT writer, number FROM batches ORDER BY 1, 2").unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    fn numbers(&self) -> Vec<i64> {
        self.batches().into_iter().map(|(_, number)| number).collect()
    }
}

/// All that can be read of a stretch.
pub(super) fn read_all(reader: &SpoolReader, stretch: &Stretch) -> Vec<UsageRecord> {
    let back = reader.read(stretch, usize::MAX).unwrap();
    back.batches.into_iter().flat_map(|batch| batch.records).collect()
}

/// All batches of a spool from the first to that one.
fn own(spool: &SpoolFile, last: i64) -> Stretch {
    Stretch { writer: Arc::clone(&spool.writer), legacy: false, after: 0, last, records: 0, oldest_ms: 0 }
}

#[test]
fn keeps_batches_in_order_until_they_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = SpoolFile::open(&place(&folder)).unwrap();
    let reader = SpoolReader::open(&spool.path).unwrap();
    let records: Vec<_> = (1..=5).map(record).collect();
    assert_eq!([&records[..2], &records[2..3], &records[3..]].map(|some| spool.append(some)), [1, 2, 3]);
    assert_eq!(read_all(&reader, &own(&spool, 9)), records);
    let oldest = reader.read(&own(&spool, 9), 3).unwrap();
    assert_eq!((oldest.batches.len(), oldest.first(), oldest.last()), (2, Some(1), Some(2)));
    let writer = Arc::clone(spool.writer());
    spool.took(LEDGER, &writer, 2);
    assert_eq!(read_all(&reader, &own(&spool, 9)), records[3..]);
    assert_eq!(reader.read(&own(&spool, 2), 100).unwrap().last(), None);
    spool.took(LEDGER, &writer, 1);
    assert_eq!((spool.append(&records[..1]), spool.numbers()), (4, vec![3, 4]), "a cursor does not go back");
}

#[test]
fn a_batch_goes_when_every_sink_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let place = SpoolPlace { sinks: vec![sink("file"), sink("hook")], ..place(&folder) };
    let mut spool = SpoolFile::open(&place).unwrap();
    let writer = Arc::clone(spool.writer());
    (1..=4).for_each(|number| assert!(spool.append(&[record(number)]) > 0));
    spool.took("file", &writer, 4);
    spool.took(LEDGER, &writer, 3);
    spool.took("unknown", &writer, 4);
    assert_eq!(spool.numbers(), [1, 2, 3, 4]);
    spool.took("hook", &writer, 2);
    assert_eq!(spool.numbers(), [3, 4]);
    drop(spool);
    // The hook is configured no more, the file knows what it has.
    let mut next = SpoolFile::open(&SpoolPlace { sinks: vec![sink("file")], ..place }).unwrap();
    let left = next.adopt().unwrap().stretches;
    assert_eq!((left.len(), left[0].after, left[0].last), (1, 3, 4));
    assert_eq!(next.numbers(), [4], "nobody waits for the third any more");
    next.took(LEDGER, &writer, 4);
    assert_eq!(next.numbers(), [0; 0], "nobody holds it back");
}

#[test]
fn what_only_a_removed_sink_waits_for_goes_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let with_hook = SpoolPlace { sinks: vec![sink("hook")], ..place(&folder) };
    let mut spool = SpoolFile::open(&with_hook).unwrap();
    let writer = Arc::clone(spool.writer());
    (1..=3).for_each(|number| assert!(spool.append(&[record(number)]) > 0));
    spool.took(LEDGER, &writer, 3);
    assert_eq!(spool.numbers(), [1, 2, 3]);
    drop(spool);
    let mut next = SpoolFile::open(&place(&folder)).unwrap();
    let adopted = next.adopt().unwrap();
    assert_eq!((adopted.dead, adopted.stretches.len(), adopted.of_sinks.len()), (1, 0, 0));
    assert_eq!(next.numbers(), [0; 0]);
    assert!(next.inherited.is_empty() && !lock::path_of(&next.path, &writer).exists());
}

#[test]
fn each_sink_inherits_what_it_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let place = SpoolPlace { sinks: vec![sink("file"), sink("hook")], ..place(&folder) };
    let mut spool = SpoolFile::open(&place).unwrap();
    let writer = Arc::clone(spool.writer());
    (1..=3).for_each(|number| assert!(spool.append(&[record(number), record(100 + number)]) > 0));
    spool.took(LEDGER, &writer, 3);
    spool.took("hook", &writer, 1);
    drop(spool);
    let mut next = SpoolFile::open(&place).unwrap();
    let adopted = next.adopt().unwrap();
    assert_eq!(adopted.stretches, [], "the ledger has all");
    let of_sinks: Vec<_> =
        adopted.of_sinks.iter().map(|(sink, left)| (*sink, left.after, left.last, left.records)).collect();
    assert_eq!(of_sinks, [(0, 0, 3, 6), (1, 1, 3, 4)]);
    next.took("file", &writer, 3);
    assert_eq!(next.numbers(), [2, 3]);
    next.took("hook", &writer, 3);
    assert!(next.numbers().is_empty() && next.inherited.is_empty());
}

#[test]
fn what_is_parked_is_kept_by_the_sinks_name_with_the_cursor_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let place = SpoolPlace { sinks: vec![sink("hook")], ..place(&folder) };
    let mut spool = SpoolFile::open(&place).unwrap();
    let reader = SpoolReader::open(&spool.path).unwrap();
    let writer = Arc::clone(spool.writer());
    (1..=2).for_each(|number| assert!(spool.append(&[record(number)]) > 0));
    spool.took(LEDGER, &writer, 2);
    let of = Acknowledged { sink: "hook".into(), writer: Arc::clone(&writer), last: 2 };
    let parked = |number| Parked { record: record(number), why: "the receiver answered 400".into() };
    let fails = "CREATE TRIGGER fails BEFORE DELETE ON batches BEGIN SELECT RAISE(ABORT, 'fails'); END";
    spool.connection.execute_batch(fails).unwrap();
    assert!(spool.park(&of, &[parked(2)], 5).is_err());
    assert_eq!((reader.count_parked("hook").unwrap(), spool.numbers()), (0, vec![1, 2]));
    spool.connection.execute_batch("DROP TRIGGER fails").unwrap();
    for _ in 0..2 {
        spool.park(&of, &[parked(2), parked(1)], 5).unwrap();
        assert_eq!((reader.count_parked("hook").unwrap(), spool.numbers()), (2, vec![]));
    }
    assert_eq!(reader.parked("hook", None, 9).unwrap(), [record(1), record(2)]);
    assert_eq!(reader.parked("hook", Some(Uuid::from_u128(1)), 9).unwrap(), [record(2)]);
    assert_eq!(reader.parked("hook", None, 1).unwrap(), [record(1)]);
    assert_eq!(reader.count_parked("other").unwrap(), 0);
    spool
        .connection
        .execute("UPDATE parked_events SET body = '?' WHERE id = ?1", [record(1).request_id.to_string()])
        .unwrap();
    assert_eq!(reader.parked("hook", None, 1).unwrap(), [record(2)], "one that cannot be read stops nobody");
    spool.unpark("other", &[record(2).request_id]).unwrap();
    spool.unpark("hook", &[record(2).request_id, record(7).request_id]).unwrap();
    assert_eq!(reader.count_parked("hook").unwrap(), 1);
}

#[test]
fn a_request_leaves_its_row_when_its_record_comes() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = SpoolFile::open(&place(&folder)).unwrap();
    let opened = [open_row(1, None), open_row(2, None)];
    spool.commit(Writes { opened: &opened, ..Writes::default() }).unwrap();
    spool.commit(Writes { passed: &[open_row(2, Some(70)), open_row(3, Some(1))], ..Writes::default() }).unwrap();
    let writes = Writes { closed: &[Uuid::from_u128(1)], records: &[&record(1)], ..Writes::default() };
    assert_eq!(spool.commit(writes).unwrap().number, Some(1));
    let reader = SpoolReader::open(&spool.path).unwrap();
    let mut rows = Vec::new();
    reader.open_rows(spool.writer(), |row| rows.push(row.to_owned())).unwrap();
    assert_eq!(rows, [open_row(2, Some(70)).1], "a checkpoint makes no row");
}

#[test]
fn a_damaged_record_is_kept_and_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = SpoolFile::open(&place(&folder)).unwrap();
    spool.append(&[record(1), record(2)]);
    spool.append(&[record(3)]);
    spool.append(&[record(4)]);
    let doctor = "UPDATE batches SET body = CASE number WHEN 1 THEN REPLACE(body, ?1, '?') ELSE 'x' || body END
        WHERE number < 3";
    spool.connection.execute(doctor, [record(1).request_id.to_string()]).unwrap();
    let reader = SpoolReader::open(&spool.path).unwrap();
    let writer = Arc::clone(spool.writer());
    for unreadable in [2, 0] {
        let read = reader.read(&own(&spool, 9), 100).unwrap();
        assert_eq!(read.batches.iter().filter(|batch| batch.unreadable.is_some()).count(), unreadable);
        for batch in &read.batches {
            if let Some(unreadable) = &batch.unreadable {
                spool.put_aside(&writer, batch.number, &batch.records, unreadable).unwrap();
            }
        }
        assert_eq!(read_all(&reader, &own(&spool, 9)), [record(2), record(4)]);
    }
    spool.took(LEDGER, &writer, 3);
    let mut kept = spool.connection.prepare("SELECT number, body FROM unreadable_batches ORDER BY number").unwrap();
    let kept: Vec<(i64, String)> =
        kept.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    assert_eq!(kept.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2]);
    assert!(kept[0].1.contains("\"?\"") && !kept[0].1.contains(&record(2).request_id.to_string()));
    assert_eq!(batch::decode(&kept[1].1[1..]).records, [record(3)]);
}

#[test]
fn what_is_missing_between_batches_is_not_read_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = SpoolFile::open(&place(&folder)).unwrap();
    (1..=4).for_each(|number| assert!(spool.append(&[record(number)]) > 0));
    spool.connection.execute("DELETE FROM batches WHERE number = 2", []).unwrap();
    let reader = SpoolReader::open(&spool.path).unwrap();
    let first = reader.read(&own(&spool, 9), 100).unwrap();
    assert_eq!((first.first(), first.last()), (Some(1), Some(1)));
    let rest = reader.read(&Stretch { after: 1, ..own(&spool, 9) }, 100).unwrap();
    assert_eq!((rest.first(), rest.last()), (Some(3), Some(4)), "the ledger sees the gap");
}

#[test]
fn what_is_no_spool_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(&folder);
    std::fs::create_dir_all(place.path.parent().unwrap()).unwrap();
    std::fs::write(&place.path, "this is a text of more than sixteen characters, and no database").unwrap();
    let error = SpoolFile::open(&place).unwrap_err().to_string();
    assert!(error.contains("spool.db") && error.contains("not a database"), "{error}");
}

#[test]
fn without_room_nothing_is_written_and_all_can_be_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = SpoolFile::open(&place(&folder)).unwrap();
    let writer = Arc::clone(spool.writer());
    let many: Vec<_> = (1..=300).map(record).collect();
    spool.append(&many);
    spool.leave_pages(2);
    let records: Vec<_> = many.iter().collect();
    let opened = [open_row(1_000, None)];
    let writes = Writes { opened: &opened, records: &records, ..Writes::default() };
    for _ in 0..3 {
        assert!(matches!(spool.commit(writes), Err(WriteError::Stalled(_))));
    }
    let reader = SpoolReader::open(&spool.path).unwrap();
    reader.open_rows(&writer, |row| panic!("half a transaction: {row}")).unwrap();
    spool.took(LEDGER, &writer, 1);
    assert_eq!(spool.commit(writes).unwrap().number, Some(2), "no number is left out");
    assert_eq!(spool.numbers(), [2]);
}

#[test]
fn what_is_no_want_of_room_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = SpoolFile::open(&place(&folder)).unwrap();
    spool.break_writes();
    let writes = Writes { records: &[&record(1)], ..Writes::default() };
    assert!(matches!(spool.commit(writes), Err(WriteError::Broken(_))));
}

#[test]
fn the_log_is_begun_anew_and_what_is_free_counts_as_free() {
    let folder = tempfile::tempdir().unwrap();
    let small = SpoolPlace { bytes_max: 1 << 20, ..place(&folder) };
    let mut spool = SpoolFile::open(&small).unwrap();
    let writer = Arc::clone(spool.writer());
    let many: Vec<_> = (1..=64).map(record).collect();
    let empty = spool.room().unwrap();
    assert!(empty.limit <= 1 << 20 && empty.used < 1 << 18, "{empty:?}");
    for round in 1..=200 {
        let records: Vec<_> = many.iter().collect();
        let log_bytes = spool.commit(Writes { records: &records, ..Writes::default() }).unwrap().log_bytes;
        assert!(log_bytes > 0);
        if log_bytes > spool.sizes.log_bytes_max {
            assert_eq!(spool.take_log_in().unwrap(), 0);
        }
        if round == 20 {
            assert!(spool.room().unwrap().used > empty.used + 20 * 64 * 100);
        }
        if round % 20 == 0 {
            spool.took(LEDGER, &writer, round);
        }
    }
    assert!(spool.room().unwrap().used <= empty.used + 64 * 1024);
    assert!(space::file_bytes(&small.path) < 1 << 20, "{}", space::file_bytes(&small.path));
}

/// The spool's files as they are now, elsewhere: what a process that died now would have left.
fn crashed(spool: &SpoolFile, to: &tempfile::TempDir) -> SpoolPlace {
    let copy = place(to);
    std::fs::create_dir_all(copy.path.parent().unwrap()).unwrap();
    for (from, to) in [(&spool.path, &copy.path), (&space::log_path(&spool.path), &space::log_path(&copy.path))] {
        std::fs::copy(from, to).unwrap();
    }
    copy
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The log is cut anywhere, as by a crash in the middle of a write: what is there is what some number of whole transactions wrote.
    #[test]
    fn a_torn_log_has_whole_transactions(cut in any::<prop::sample::Index>(), commits in 1_u128..12, taken_in in any::<bool>()) {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut spool = SpoolFile::open(&place(&folder)).unwrap();
        for number in 1..=commits {
            spool.commit(Writes { opened: &[open_row(number, Some(70))], ..Writes::default() }).unwrap();
            let records = [&record(100 * number), &record(100 * number + 1)];
            let closed = [Uuid::from_u128(number)];
            spool.commit(Writes { closed: &closed, records: &records, ..Writes::default() }).unwrap();
        }
        if taken_in {
            prop_assert_eq!(spool.take_log_in().unwrap(), 0);
            spool.commit(Writes { records: &[&record(9_000)], ..Writes::default() }).unwrap();
        }
        let copy = crashed(&spool, &other);
        let log = space::log_path(&copy.path);
        let bytes = std::fs::read(&log).unwrap();
        let cut = cut.index(bytes.len() + 1);
        std::fs::write(&log, &bytes[..cut]).unwrap();
        let mut next = SpoolFile::open(&copy).unwrap();
        let numbers = next.numbers();
        prop_assert_eq!(&numbers, &(1..=numbers.len() as i64).collect::<Vec<_>>());
        let least = if taken_in { commits as usize } else { 0 };
        prop_assert!(numbers.len() >= least, "what was synced is there");
        if cut == bytes.len() {
            prop_assert_eq!(numbers.len(), commits as usize + usize::from(taken_in));
        }
        let reader = SpoolReader::open(&copy.path).unwrap();
        let adopted = next.adopt().unwrap();
        let mut ids = std::collections::BTreeSet::new();
        for record in adopted.stretches.iter().flat_map(|stretch| read_all(&reader, stretch)) {
            prop_assert!(ids.insert(record.request_id), "twice");
        }
        // The one that was running when the last whole transaction was written, and no other.
        prop_assert!(adopted.found.len() <= 1);
        let interrupted: Vec<_> = adopted.found.iter().map(|one| one.request_id.as_u128()).collect();
        prop_assert!(interrupted.is_empty() || interrupted == [numbers.len() as u128 + 1], "{interrupted:?}");
    }
}
