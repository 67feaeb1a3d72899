//! No room, a file that fails, and processes that die or live beside this one.

use super::*;
use crate::billing::recorder::NotKept;
use crate::billing::spool::{Writes, open_row};
use crate::billing::{Durability, Progress, SpoolPlace};
use crate::relay::meter::Usage;

/// How long what should come soon may take.
const SOON: Duration = Duration::from_secs(20);

/// A place without a journal: clients wait for the spool itself.
fn patient(folder: &tempfile::TempDir) -> SpoolPlace {
    SpoolPlace { durability: Durability::Power, ..place(folder) }
}

#[tokio::test]
async fn a_full_spool_gives_no_tickets_and_settles_what_runs() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    ledger.books().fail_before = u32::MAX;
    let small = SpoolPlace { bytes_max: 1 << 20, ..place(&folder) };
    let (recorder, worker) = open(&small, ledger.clone()).await.unwrap();
    let payer = Payer::new();
    let running = Running::start(worker);
    let mut number = 0;
    let mut runs = Vec::new();
    // Some run on, most end.
    while let Some(ticket) = payer.ticket(&recorder, number + 1) {
        number += 1;
        match number % 50 {
            0 => runs.push((number, ticket)),
            _ => ticket.finish(record(number), None).kept().await.unwrap(),
        }
        assert!(number < 20_000);
    }
    assert!(number > 1_000 && recorder.state().bytes_used() < 1 << 20, "{number}");
    for (number, ticket) in runs {
        ticket.finish(record(number), None).kept().await.unwrap();
    }
    ledger.books().fail_before = 0;
    while !recorder.is_open() {
        tokio::task::yield_now().await;
    }
    running.stop().await;
    assert_eq!(ledger.total().0, number as usize);
    assert!(small.path.metadata().unwrap().len() <= 1 << 20);
}

#[tokio::test]
async fn a_disk_without_room_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    let (recorder, worker) = open(&patient(&folder), ledger.clone()).await.unwrap();
    let payer = Payer::new();
    worker.file.leave_pages(0);
    let inbox = Arc::clone(&worker.inbox);
    let tickets: Vec<_> = (1..=200).map(|number| payer.ticket(&recorder, number).unwrap()).collect();
    let running = Running::start(worker);
    let receipts: Vec<_> =
        tickets.into_iter().zip(1..).map(|(ticket, number)| ticket.finish(record(number), None)).collect();
    while !recorder.state().spool_full() {
        tokio::task::yield_now().await;
    }
    assert!(payer.ticket(&recorder, 201).is_none() && !recorder.state().failed());
    assert_eq!((ledger.total().0, recorder.state().spooled()), (0, 0), "nothing is acknowledged");
    let job = |file: &mut SpoolFile| {
        file.leave_pages(1_000);
        Ok(())
    };
    inbox.ask(job).await.unwrap();
    for receipt in receipts {
        receipt.kept().await.unwrap();
    }
    assert!(recorder.is_open());
    running.stop().await;
    assert_eq!(ledger.total(), (200, 20_000));
}

#[tokio::test]
async fn a_spool_that_fails_acknowledges_nothing_more_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    let (recorder, worker) = open(&patient(&folder), ledger.clone()).await.unwrap();
    let payer = Payer::new();
    let inbox = Arc::clone(&worker.inbox);
    let running = Running::start(worker);
    payer.finish(&recorder, 1).kept().await.unwrap();
    let [runs, waits] = [2, 3].map(|number| payer.ticket(&recorder, number).unwrap());
    while recorder.state().open_rows() < 2 {
        tokio::task::yield_now().await;
    }
    runs.checkpoint(Progress {
        provider: "moonshot".into(),
        usage: Usage { input: 7, output: 1, ..Usage::default() },
        cost: NanoUsd(70),
        provider_cost: None,
        first_token_ms: Some(3),
        total_ms: 9,
    });
    let job = |file: &mut SpoolFile| {
        file.break_writes();
        Ok(())
    };
    inbox.ask(job).await.unwrap();
    // A checkpoint has its time; it is written before or with what breaks.
    assert_eq!(waits.finish(record(3), None).kept().await, Err(NotKept));
    tokio::time::timeout(SOON, recorder.state().until_failed()).await.unwrap();
    assert!(payer.ticket(&recorder, 4).is_none() && !recorder.is_open());
    assert_eq!(runs.finish(record(2), None).kept().await, Err(NotKept));
    tokio::time::timeout(SOON, running.worker).await.unwrap().unwrap();
    assert!(ledger.total().0 <= 1);

    let mended = SpoolFile::open(&place(&folder)).unwrap();
    mended.mend_writes();
    mended.close().unwrap();
    let (_recorder, worker) = open(&patient(&folder), ledger.clone()).await.unwrap();
    let observed = Running::start(worker).stop().await;
    assert_eq!(ledger.total(), (3, 100), "what was not kept had sent nothing at its last checkpoint");
    assert_eq!(observed.iter().map(|one| one.status).collect::<Vec<_>>(), [500, 500]);
}

#[tokio::test]
async fn what_the_journal_has_outlives_a_spool_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let payer = Payer::new();
    let inbox = Arc::clone(&worker.inbox);
    let running = Running::start(worker);
    let tickets: Vec<_> = (1..=3).map(|number| payer.ticket(&recorder, number).unwrap()).collect();
    while recorder.state().open_rows() < 3 {
        tokio::task::yield_now().await;
    }
    let job = |file: &mut SpoolFile| {
        file.break_writes();
        Ok(())
    };
    inbox.ask(job).await.unwrap();
    let mut kept = Vec::new();
    for (ticket, number) in tickets.into_iter().zip(1..) {
        if ticket.finish(record(number), None).kept().await.is_ok() {
            kept.push(number);
        }
    }
    assert_eq!(kept.first(), Some(&1), "the journal is not the spool");
    tokio::time::timeout(SOON, recorder.state().until_failed()).await.unwrap();
    tokio::time::timeout(SOON, running.worker).await.unwrap().unwrap();
    assert_eq!(ledger.total().0, 0);

    let mended = SpoolFile::open(&place(&folder)).unwrap();
    mended.mend_writes();
    mended.close().unwrap();
    let (_recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let observed = Running::start(worker).stop().await;
    let whole = observed.iter().filter(|one| one.status == 200).map(|one| one.request_id.as_u128());
    assert_eq!((whole.collect::<Vec<_>>(), observed.len()), (kept, 3), "each once, as it ended or as it ran");
    assert_eq!(ledger.total().0, 3);
    let names = std::fs::read_dir(place(&folder).path.parent().unwrap()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.ends_with(".journal")), "{names:?}");
}

#[tokio::test]
async fn what_ran_in_a_process_that_died_is_billed_and_seen() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let running = Running::start(worker);
    let mut dead = SpoolFile::open(&place(&folder)).unwrap();
    let opened = [open_row(1, None), open_row(2, Some(70))];
    dead.commit(Writes { opened: &opened, ..Writes::default() }).unwrap();
    dead.append(&[record(3)]);
    assert_eq!(ledger.total().0, 0, "it lives");
    drop(dead);
    let delivered = async {
        while recorder.state().delivered() < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, delivered).await.unwrap();
    assert_eq!(ledger.total(), (3, 170));
    let observed = running.stop().await;
    assert_eq!(observed.iter().map(|one| one.request_id.as_u128()).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn what_lives_elsewhere_counts_until_the_ledger_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    ledger.books().fail_before = u32::MAX;
    let mut other = SpoolFile::open(&place(&folder)).unwrap();
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let owed = async |recorder: &Recorder| {
        let amounts = recorder.elsewhere().amounts().await.unwrap();
        amounts.get("acct_1").copied().unwrap_or_default().0
    };
    other.commit(Writes { opened: &[open_row(1, None), open_row(2, Some(70))], ..Writes::default() }).unwrap();
    assert_eq!(owed(&recorder).await, 1_800);
    other.commit(Writes { closed: &[Uuid::from_u128(1)], records: &[&record(1)], ..Writes::default() }).unwrap();
    assert_eq!(owed(&recorder).await, 1_000);
    other.append(&[record(3), record(4)]);
    let writer = Arc::clone(other.writer());
    assert_eq!(owed(&recorder).await, 1_200);
    other.took("ledger", &writer, 1);
    assert_eq!(owed(&recorder).await, 1_100);
    drop(other);
    let running = Running::start(worker);
    // What ran is a record now, at what had passed.
    let adopted = async {
        while owed(&recorder).await != 270 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, adopted).await.unwrap();
    ledger.books().cursors.insert(writer.to_string(), 1);
    ledger.books().fail_before = 0;
    let settled = async {
        while owed(&recorder).await != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, settled).await.unwrap();
    running.stop().await;
    assert_eq!(ledger.total(), (3, 270));
}
