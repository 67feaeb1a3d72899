//! What the dead leave, and who takes it over.

use super::super::tests::{open_row, place, read_all, record};
use super::super::{Entry, LEDGER, SpoolReader, Writes, space};
use super::*;

#[test]
fn what_a_dead_process_was_serving_is_billed_once_at_its_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(&folder);
    let mut old = SpoolFile::open(&place).unwrap();
    let opened = [open_row(1, None), open_row(2, Some(70)), (Uuid::from_u128(3), "?".to_owned())];
    old.commit(Writes { opened: &opened, ..Writes::default() }).unwrap();
    old.append(&[record(9)]);
    let mut new = SpoolFile::open(&place).unwrap();
    let adopted = new.adopt().unwrap();
    assert_eq!((adopted.stretches, adopted.found, adopted.living), (vec![], vec![], 1), "it lives");

    let writer = Arc::clone(old.writer());
    drop(old);
    let adopted = new.adopt().unwrap();
    let billed: Vec<_> = adopted.found.iter().map(|one| (one.request_id.as_u128(), one.status, one.cost.0)).collect();
    assert_eq!(billed, [(1, 500, 0), (2, 200, 70)]);
    let [left, of_heir] = &*adopted.stretches else { panic!("{:?}", adopted.stretches) };
    assert_eq!((&left.writer, left.records, of_heir.after, of_heir.records), (&writer, 1, 0, 2));
    let reader = SpoolReader::open(&place.path).unwrap();
    assert_eq!(read_all(&reader, of_heir), adopted.found);
    let aside: String = new.connection.query_row("SELECT body FROM unreadable_batches", [], |row| row.get(0)).unwrap();
    assert!(aside.contains("\"?\"") && aside.contains(&Uuid::from_u128(3).to_string()), "{aside}");
    let again = new.adopt().unwrap();
    assert_eq!((again.stretches.len(), again.found.len(), again.living), (0, 0, 0));

    // Nobody else takes what has an heir who lives.
    let mut third = SpoolFile::open(&place).unwrap();
    assert_eq!((third.adopt().unwrap().stretches.len(), third.adopt().unwrap().living), (0, 3));
    for stretch in &adopted.stretches {
        new.took(LEDGER, &stretch.writer, stretch.last);
    }
    assert_eq!(third.adopt().unwrap().living, 1, "what is delivered has nobody any more");
    drop(third);
    new.adopt().unwrap();
    let locks = std::fs::read_dir(folder.path().join("data")).unwrap();
    let locks = locks.filter(|it| it.as_ref().unwrap().path().extension().is_some_and(|it| it == "lock")).count();
    assert_eq!(locks, 1, "its own");
}

#[test]
fn who_ends_in_good_order_leaves_no_trace_but_what_is_undelivered() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(&folder);
    SpoolFile::open(&place).unwrap().close().unwrap();
    let mut spool = SpoolFile::open(&place).unwrap();
    spool.append(&[record(1)]);
    spool.close().unwrap();
    assert!(place.path.metadata().unwrap().len() > 0);
    assert_eq!(space::log_path(&place.path).metadata().map_or(0, |log| log.len()), 0, "all is in the file");
    let mut next = SpoolFile::open(&place).unwrap();
    let adopted = next.adopt().unwrap();
    assert_eq!((adopted.stretches.len(), adopted.found.len()), (1, 0));
}

#[test]
fn what_there_is_no_room_to_take_over_is_told_of_and_the_rest_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    SpoolFile::open(&place(&folder)).unwrap().append(&[record(1)]);
    let second = SpoolFile::open(&place(&folder)).unwrap();
    for number in 1_000..1_200 {
        second.journal().unwrap().append(Entry::of(&record(number)).unwrap(), |_| ()).unwrap();
    }
    drop(second);
    let mut next = SpoolFile::open(&place(&folder)).unwrap();
    next.leave_pages(0);
    for stretches in [1, 0] {
        let adopted = next.adopt().unwrap();
        assert_eq!((adopted.stretches.len(), adopted.remains), (stretches, true));
    }
    next.leave_pages(1 << 20);
    let rest = next.adopt().unwrap();
    assert_eq!((rest.stretches.len(), rest.found.len(), rest.remains), (1, 200, false));
}

#[test]
fn what_is_in_a_journal_and_has_a_row_still_ended_as_the_journal_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut dead = SpoolFile::open(&place(&folder)).unwrap();
    let opened = [open_row(1, Some(70)), open_row(2, None)];
    dead.commit(Writes { opened: &opened, ..Writes::default() }).unwrap();
    let journal = Arc::clone(dead.journal().unwrap());
    for number in [3, 1, 4] {
        journal.append(Entry::of(&record(number)).unwrap(), |_| ()).unwrap();
    }
    dead.commit(Writes { records: &[&record(3)], journaled: Some(1), ..Writes::default() }).unwrap();
    drop((dead, journal));

    let mut next = SpoolFile::open(&place(&folder)).unwrap();
    let adopted = next.adopt().unwrap();
    let found: Vec<_> = adopted.found.iter().map(|one| (one.request_id.as_u128(), one.status)).collect();
    assert_eq!(found, [(1, 200), (4, 200), (2, 500)], "what is in a batch already does not come again");
    drop(next);
    // The one who adopted it dies too.
    let mut last = SpoolFile::open(&place(&folder)).unwrap();
    let again = last.adopt().unwrap();
    assert_eq!((again.found.len(), again.stretches.iter().map(|one| one.records).sum::<u64>()), (0, 4));
}

#[test]
fn a_spool_of_a_version_without_a_journal_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    SpoolFile::open(&place(&folder)).unwrap().append(&[record(1)]);
    let connection = rusqlite::Connection::open(place(&folder).path).unwrap();
    connection.execute_batch("ALTER TABLE writers DROP COLUMN journaled").unwrap();
    drop(connection);
    let mut next = SpoolFile::open(&place(&folder)).unwrap();
    assert_eq!(next.adopt().unwrap().stretches.len(), 1);
}

#[test]
fn what_lies_beside_the_spool_of_nobody_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let (dead, lives) = (SpoolFile::open(&place(&folder)).unwrap(), SpoolFile::open(&place(&folder)).unwrap());
    let dead_writer = dead.writer().clone();
    dead.connection.execute("DELETE FROM writers WHERE writer = ?1", [&*dead_writer]).unwrap();
    drop(dead);
    let journal_of = |writer: &str| journal::path_of(&place(&folder).path, writer);
    assert!(journal_of(&dead_writer).exists());
    lives.connection.execute("DELETE FROM writers WHERE writer = ?1", [&**lives.writer()]).unwrap();
    let next = SpoolFile::open(&place(&folder)).unwrap();
    assert!(!journal_of(&dead_writer).exists() && !lock::path_of(&next.path, &dead_writer).exists());
    assert!(journal_of(lives.writer()).exists(), "it has the lock");
}
