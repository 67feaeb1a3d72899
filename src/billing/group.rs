//! What is to be written next, and when.
//!
//! A finished request is written at once where its client waits. All else can wait a little, and is then written together with
//! others, or never: a request that ends before its row was due has none.
//!
//! Pure: what has come and the time go in, writes come out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::open_row::{self, Facts};
use super::recorder::{Finished, Progress};
use super::spool::{Acknowledged, Writes};
use super::state::Reserved;

/// How long things may wait, microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// From a request's admission to its row. What follows upon a power cut or a crash is decided by that row.
    pub(super) open_within_us: u64,
    /// From a request's end to its batch, where the journal has it.
    pub(super) spool_within_us: u64,
    /// From a checkpoint to the row's rewriting. The last one counts.
    pub(super) checkpoint_within_us: u64,
    /// From an acknowledgement, or a request that was given up, to the removal of its rows.
    pub(super) removal_within_us: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            open_within_us: 20_000,
            spool_within_us: 50_000,
            checkpoint_within_us: 50_000,
            removal_within_us: 50_000,
        }
    }
}

/// A commit takes along what would be due within this part of the time that it may wait.
const TAKEN_ALONG_PARTS: u64 = 4;

/// What has come since it was last looked.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) opened: Vec<(Uuid, Arc<Facts>)>,
    /// The last word of each.
    pub(super) passed: HashMap<Uuid, Progress>,
    finished: Vec<(Finished, Keeping)>,
    /// Whether some of those are to be written at once.
    is_hurried: bool,
    /// Requests that were given up, and what was reserved for them.
    pub(super) released: Vec<(Uuid, Reserved)>,
    pub(super) acknowledged: Vec<Acknowledgement>,
    /// Who waits for all to be written that came before.
    pub(super) flushes: Vec<oneshot::Sender<()>>,
}

/// How a finished request is kept.
#[derive(Debug)]
pub(super) enum Keeping {
    /// It is an entry of the journal.
    Journal(u64),
    /// By its batch, and whoever waits for that is told.
    Batch(oneshot::Sender<()>),
}

/// A sink's word, and who waits for it to be written.
#[derive(Debug)]
pub(super) struct Acknowledgement {
    pub(super) of: Acknowledged,
    pub(super) written: oneshot::Sender<()>,
}

/// What is known of all requests that run, and of what waits to be written.
#[derive(Debug)]
pub(super) struct Group {
    pace: Pace,
    records_max: usize,
    running: HashMap<Uuid, Running>,
    /// How many of them have a row.
    rows: u64,
    /// Requests without a row, in the order in which they are due.
    staged: VecDeque<Due>,
    /// Requests whose row is behind, in the same order.
    stale: VecDeque<Due>,
    finished: VecDeque<Ended>,
    /// When the first of them is due.
    finished_due_us: Option<u64>,
    removals: Vec<(Uuid, Reserved)>,
    acknowledged: Vec<Acknowledgement>,
    /// Who waits for a row of every request that runs.
    flushes: Vec<oneshot::Sender<()>>,
    /// When the first of the removals and acknowledgements is due.
    removals_due_us: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at_us: u64,
    id: Uuid,
}

#[derive(Debug)]
struct Running {
    facts: Arc<Facts>,
    progress: Option<Progress>,
    row: Row,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    /// There is none yet.
    Staged,
    /// It says what is known.
    Written,
    /// It does not say the last checkpoint.
    Stale,
}

/// A finished request, and whether there is a row of it to be removed.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) finished: Finished,
    pub(super) keeping: Keeping,
    has_row: bool,
}

/// One transaction's content, taken out of the group. It is either written, or put back.
#[derive(Debug, Default)]
pub(super) struct Portion {
    opened: Vec<(Uuid, String)>,
    passed: Vec<(Uuid, String)>,
    closed: Vec<Uuid>,
    removals: Vec<(Uuid, Reserved)>,
    pub(super) ended: Vec<Ended>,
    acknowledged: Vec<Acknowledged>,
    pub(super) waiting: Vec<oneshot::Sender<()>>,
    pub(super) flushes: Vec<oneshot::Sender<()>>,
}

impl Arrived {
    pub(super) fn is_empty(&self) -> bool {
        self.opened.is_empty()
            && self.passed.is_empty()
            && self.finished.is_empty()
            && self.released.is_empty()
            && self.acknowledged.is_empty()
            && self.flushes.is_empty()
    }

    /// Whether somebody waits for what has come to be written.
    pub(super) fn is_urgent(&self) -> bool {
        self.is_hurried || !self.flushes.is_empty()
    }

    /// A request has ended.
    pub(super) fn finish(&mut self, finished: Finished, keeping: Keeping) {
        self.is_hurried |= matches!(keeping, Keeping::Batch(_));
        self.finished.push((finished, keeping));
    }

    /// What has ended is to be written at once, though nobody waits.
    pub(super) fn hurry(&mut self) {
        self.is_hurried = true;
    }
}

impl Group {
    pub(super) fn new(pace: Pace, records_max: usize) -> Self {
        Self {
            pace,
            records_max,
            running: HashMap::new(),
            rows: 0,
            staged: VecDeque::new(),
            stale: VecDeque::new(),
            finished: VecDeque::new(),
            finished_due_us: None,
            removals: Vec::new(),
            acknowledged: Vec::new(),
            flushes: Vec::new(),
            removals_due_us: None,
        }
    }

    /// Takes what has come.
    pub(super) fn take(&mut self, arrived: &mut Arrived, now_us: u64) {
        for (id, facts) in arrived.opened.drain(..) {
            self.running.insert(id, Running { facts, progress: None, row: Row::Staged });
            self.staged.push_back(Due { at_us: now_us + self.pace.open_within_us, id });
        }
        for (id, progress) in arrived.passed.drain() {
            let Some(running) = self.running.get_mut(&id) else { continue };
            running.progress = Some(progress);
            if running.row == Row::Written {
                running.row = Row::Stale;
                self.stale.push_back(Due { at_us: now_us + self.pace.checkpoint_within_us, id });
            }
        }
        if !arrived.finished.is_empty() {
            let due_us = if arrived.is_hurried { 0 } else { now_us + self.pace.spool_within_us };
            self.finished_due_us = Some(self.finished_due_us.map_or(due_us, |first| first.min(due_us)));
        }
        arrived.is_hurried = false;
        for (finished, keeping) in arrived.finished.drain(..) {
            let has_row = self.ended(finished.ticket);
            self.finished.push_back(Ended { finished, keeping, has_row });
        }
        for (id, reserved) in arrived.released.drain(..) {
            if self.ended(id) {
                self.removals.push((id, reserved));
            }
        }
        self.acknowledged.append(&mut arrived.acknowledged);
        self.flushes.append(&mut arrived.flushes);
        if self.removals_due_us.is_none() && !(self.removals.is_empty() && self.acknowledged.is_empty()) {
            self.removals_due_us = Some(now_us + self.pace.removal_within_us);
        }
    }

    /// When something is to be written; `None` where nothing waits.
    pub(super) fn due_us(&self) -> Option<u64> {
        if !self.flushes.is_empty() {
            return Some(0);
        }
        let firsts = [self.staged.front(), self.stale.front()].into_iter().flatten().map(|due| due.at_us);
        firsts.chain(self.finished_due_us).chain(self.removals_due_us).min()
    }

    /// How many requests have a row.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes out what to write together now.
    pub(super) fn portion(&mut self, now_us: u64) -> Result<Portion, serde_json::Error> {
        let mut portion = self.removals_only();
        let along = if self.flushes.is_empty() { self.pace.open_within_us / TAKEN_ALONG_PARTS } else { u64::MAX };
        let before = now_us.saturating_add(along);
        while let Some(due) = self.staged.pop_front_if(|due| due.at_us <= before) {
            if let Some(running) = self.running.get_mut(&due.id).filter(|running| running.row == Row::Staged) {
                portion.opened.push((due.id, open_row::encode(&running.facts, running.progress.as_ref())?));
                running.row = Row::Written;
                self.rows += 1;
            }
        }
        let before = now_us.saturating_add(self.pace.checkpoint_within_us / TAKEN_ALONG_PARTS);
        while let Some(due) = self.stale.pop_front_if(|due| due.at_us <= before) {
            if let Some(running) = self.running.get_mut(&due.id).filter(|running| running.row == Row::Stale) {
                portion.passed.push((due.id, open_row::encode(&running.facts, running.progress.as_ref())?));
                running.row = Row::Written;
            }
        }
        let ended = self.finished.len().min(self.records_max);
        portion.ended.extend(self.finished.drain(..ended));
        self.finished_due_us = (!self.finished.is_empty()).then_some(0);
        portion.flushes.append(&mut self.flushes);
        portion.closed.extend(portion.ended.iter().filter(|ended| ended.has_row).map(|ended| ended.finished.ticket));
        Ok(portion)
    }

    /// Takes out only what makes room.
    pub(super) fn removals_only(&mut self) -> Portion {
        self.removals_due_us = None;
        let mut portion = Portion { removals: std::mem::take(&mut self.removals), ..Portion::default() };
        portion.closed.extend(portion.removals.iter().map(|(id, _)| *id));
        for Acknowledgement { of, written } in self.acknowledged.drain(..) {
            portion.acknowledged.push(of);
            portion.waiting.push(written);
        }
        portion
    }

    /// Puts back what could not be written.
    pub(super) fn put_back(&mut self, portion: Portion) {
        self.rows -= portion.opened.len() as u64;
        for (rows, queue, row) in
            [(portion.opened, &mut self.staged, Row::Staged), (portion.passed, &mut self.stale, Row::Stale)]
        {
            for (id, _) in rows.into_iter().rev() {
                if let Some(running) = self.running.get_mut(&id) {
                    running.row = row;
                    queue.push_front(Due { at_us: 0, id });
                }
            }
        }
        for ended in portion.ended.into_iter().rev() {
            self.finished.push_front(ended);
            self.finished_due_us = Some(0);
        }
        self.removals.extend(portion.removals);
        self.flushes.extend(portion.flushes);
        let back = portion.acknowledged.into_iter().zip(portion.waiting);
        self.acknowledged.extend(back.map(|(of, written)| Acknowledgement { of, written }));
        if !(self.removals.is_empty() && self.acknowledged.is_empty()) {
            self.removals_due_us = Some(0);
        }
    }

    /// A request runs no more; whether there is a row of it.
    fn ended(&mut self, id: Uuid) -> bool {
        let has_row = self.running.remove(&id).is_some_and(|running| running.row != Row::Staged);
        self.rows -= u64::from(has_row);
        has_row
    }
}

impl Portion {
    pub(super) fn is_empty(&self) -> bool {
        self.opened.is_empty()
            && self.passed.is_empty()
            && self.closed.is_empty()
            && self.ended.is_empty()
            && self.acknowledged.is_empty()
            && self.flushes.is_empty()
    }

    /// About how much it adds to the file.
    pub(super) fn bytes(&self) -> u64 {
        /// A record in a batch.
        const RECORD_BYTES: usize = 256;
        let rows: usize = self.opened.iter().map(|(_, body)| body.len()).sum();
        (rows + self.ended.len() * RECORD_BYTES) as u64
    }

    /// Has it written.
    pub(super) fn write<T>(&self, write: impl FnOnce(Writes<'_>) -> T) -> T {
        let records: Vec<_> = self.ended.iter().map(|ended| &ended.finished.record).collect();
        let journaled = |ended: &Ended| match ended.keeping {
            Keeping::Journal(entry) => Some(entry),
            Keeping::Batch(_) => None,
        };
        write(Writes {
            opened: &self.opened,
            passed: &self.passed,
            closed: &self.closed,
            records: &records,
            // They are in the journal's order.
            journaled: self.ended.iter().rev().find_map(journaled),
            acknowledged: &self.acknowledged,
        })
    }
}

#[cfg(test)]
mod tests;
