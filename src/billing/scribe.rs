//! The one who writes the spool, on a thread of its own.
//!
//! It takes what has come since it last looked, writes it in one transaction, wakes those who wait for it, and looks again: the more
//! comes, the more is written together. What is in the journal already is gathered for a while; what is not, because clients wait for
//! the disk or the journal has no place, is written at once. Requests leave what they have to say in the [`Inbox`] and never wait
//! there.
//!
//! A thread of ours and SQLite's own calls, where the store uses sqlx: there a statement is a hop to another thread and back, and a
//! transaction is several. A client waits for this one.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::group::{Arrived, Group, Keeping, Portion};
use super::inbox::{Inbox, Job};
use super::log_taker;
use super::spool::{Committed, SpoolError, SpoolFile, WriteError};
use super::state::BillingState;
use crate::relay::admit::Charge;
use crate::relay::meter::UsageRecord;

/// How often it is measured how much room there is, while something is written.
const MEASURED_EVERY_US: u64 = 1_000_000;
/// It is measured sooner when what was written since is this part of all.
const MEASURED_PARTS: u64 = 64;

/// How often it is told that the spool is full, while it is.
const FULL_TOLD_EVERY_US: u64 = 60_000_000;

/// When a write is tried again for which there was no room: after this, twice this, up to the next.
const RETRY_FIRST_US: u64 = 10_000;
const RETRY_MAX_US: u64 = 500_000;

/// A request that is durable, and what was charged for it.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) record: UsageRecord,
    pub(super) charge: Charge,
}

/// Writes the spool, a step at a time. `kept` gets each batch's number and its requests once they are durable.
pub(super) struct Scribe<K> {
    pub(super) file: SpoolFile,
    group: Group,
    state: Arc<BillingState>,
    kept: K,
    stall: Option<Stall>,
    measured_us: u64,
    bytes_unmeasured: u64,
    /// Whether something was removed since.
    is_freed: bool,
    /// The log is taken in when it is this large.
    log_bytes_due: u64,
    /// Who does most of that before, from the time when the log is half as large.
    log_taker: Option<SyncSender<()>>,
    /// Whether it was told to.
    is_log_told: bool,
    /// Since when the operator knows that the spool is full.
    told_full_us: Option<u64>,
}

/// There was no room.
#[derive(Debug, Clone, Copy)]
struct Stall {
    until_us: u64,
    next_us: u64,
}

impl<K: FnMut(i64, Vec<Kept>)> Scribe<K> {
    pub(super) fn new(file: SpoolFile, group: Group, state: Arc<BillingState>, kept: K) -> Self {
        let log_bytes_due = file.sizes().log_bytes_max;
        Self {
            file,
            group,
            state,
            kept,
            stall: None,
            measured_us: 0,
            bytes_unmeasured: 0,
            is_freed: false,
            log_bytes_due,
            log_taker: None,
            is_log_told: false,
            told_full_us: None,
        }
    }

    /// Looks once what there is, waiting for it as told, and does what is due. Says whether that was all: the inbox ends, and nothing is
    /// left that can be written.
    ///
    /// # Errors
    /// The file failed, and is not to be touched again.
    pub(super) fn turn(
        &mut self,
        inbox: &Inbox,
        wait: Option<Duration>,
        now_us: impl Fn() -> u64,
    ) -> Result<bool, SpoolError> {
        let (mut arrived, jobs, is_ending) = inbox.take(wait);
        for job in jobs {
            self.run(job)?;
        }
        self.step(&mut arrived, now_us())?;
        Ok(is_ending && (self.due_us().is_none() || self.stall.is_some()))
    }

    /// Ends the file's use in good order.
    pub(super) fn close(self) -> Result<(), WriteError> {
        self.file.close()
    }

    /// Takes what has come, and writes what is due: at most one transaction.
    ///
    /// # Errors
    /// The file failed, and is not to be touched again.
    pub(super) fn step(&mut self, arrived: &mut Arrived, now_us: u64) -> Result<(), SpoolError> {
        if self.state.failed() {
            // The log could not be taken in.
            return Err(SpoolError::Closed);
        }
        self.group.take(arrived, now_us);
        if self.due_us().is_some_and(|due| due <= now_us) {
            self.write(now_us)?;
        }
        self.state.set_open_rows(self.group.rows());
        if now_us.saturating_sub(self.measured_us) >= MEASURED_EVERY_US
            || self.is_freed
            || self.bytes_unmeasured > self.state.bytes_limit() / MEASURED_PARTS
        {
            self.measure(now_us)?;
        }
        Ok(())
    }

    /// When there is something to do again, if nothing comes.
    pub(super) fn due_us(&self) -> Option<u64> {
        let due = self.group.due_us()?;
        Some(self.stall.map_or(due, |stall| stall.until_us.max(due)))
    }

    /// Does something else with the file.
    fn run(&mut self, job: Job) -> Result<(), SpoolError> {
        job(&mut self.file).map_err(|error| match error {
            WriteError::Stalled(error) | WriteError::Broken(error) => error,
        })
    }

    fn write(&mut self, now_us: u64) -> Result<(), SpoolError> {
        if self.stall.is_some() && !self.make_room(now_us)? {
            return Ok(());
        }
        let portion = self.group.portion(now_us)?;
        self.commit(portion, now_us)?;
        Ok(())
    }

    /// Does what gives room without taking any, or hardly any; says whether it could.
    fn make_room(&mut self, now_us: u64) -> Result<bool, SpoolError> {
        self.take_log_in()?;
        let removals = self.group.removals_only();
        self.commit(removals, now_us)
    }

    /// Writes a portion, or puts it back where there is no room; says which.
    fn commit(&mut self, portion: Portion, now_us: u64) -> Result<bool, SpoolError> {
        if portion.is_empty() {
            return Ok(true);
        }
        match portion.write(|writes| self.file.commit(writes)) {
            Ok(committed) => {
                if self.stall.take().is_some() {
                    tracing::info!("the spool can be written again");
                    self.state.set_spool_stalled(false);
                }
                self.written(portion, committed)?;
                Ok(true)
            }
            Err(WriteError::Stalled(error)) => {
                self.group.put_back(portion);
                self.stall_after(&error, now_us);
                Ok(false)
            }
            Err(WriteError::Broken(error)) => Err(error),
        }
    }

    fn stall_after(&mut self, error: &SpoolError, now_us: u64) {
        let wait_us = match self.stall {
            Some(stall) => stall.next_us,
            None => {
                tracing::error!(%error, "the spool has no room; nothing more is sold until it has");
                self.state.set_spool_stalled(true);
                RETRY_FIRST_US
            }
        };
        self.stall = Some(Stall { until_us: now_us + wait_us, next_us: (wait_us * 2).min(RETRY_MAX_US) });
    }

    fn written(&mut self, portion: Portion, committed: Committed) -> Result<(), SpoolError> {
        let bytes = portion.bytes();
        self.bytes_unmeasured += bytes;
        self.state.add_used(bytes);
        let (mut kept, mut reserved) = (Vec::new(), Vec::new());
        for ended in portion.ended {
            if let Keeping::Batch(kept) = ended.keeping {
                // The client may have left.
                let _ = kept.send(());
            }
            let ended = ended.finished;
            kept.push(Kept { record: ended.record, charge: ended.charge });
            reserved.push(ended.reserved);
        }
        if let Some(number) = committed.number {
            (self.kept)(number, kept);
        }
        // When the last one is in, all have been passed on.
        drop(reserved);
        for waiting in portion.flushes {
            let _ = waiting.send(());
        }
        if !portion.waiting.is_empty() {
            // Something was removed.
            self.is_freed = true;
            for waiting in portion.waiting {
                let _ = waiting.send(());
            }
        }
        if committed.log_bytes < self.log_bytes_due / 2 {
            self.is_log_told = false;
        } else if committed.log_bytes >= self.log_bytes_due {
            self.take_log_in()?;
        } else if let Some(taker) = self.log_taker.as_ref().filter(|_| !self.is_log_told) {
            // Where it is at it still, it need not be told.
            let _ = taker.try_send(());
            self.is_log_told = true;
        }
        Ok(())
    }

    fn take_log_in(&mut self) -> Result<(), SpoolError> {
        let most = self.file.sizes().log_bytes_max;
        match self.file.take_log_in() {
            Ok(log_bytes) if log_bytes < most => self.log_bytes_due = most,
            // Somebody reads it, or there is no room: tried again, but not after each transaction.
            Ok(log_bytes) => self.log_bytes_due = log_bytes + most / 4,
            Err(WriteError::Stalled(error)) => {
                tracing::warn!(%error, "the spool's log cannot be taken in yet");
                self.log_bytes_due += most / 4;
            }
            Err(WriteError::Broken(error)) => return Err(error),
        }
        Ok(())
    }

    /// Says why nothing is sold, and says it again where it lasts.
    fn tell_if_full(&mut self, now_us: u64) {
        let is_told = self.told_full_us.is_some_and(|told| now_us.saturating_sub(told) < FULL_TOLD_EVERY_US);
        if is_told || !self.state.spool_full() {
            return;
        }
        self.told_full_us = Some(now_us);
        let behind = self.state.behind();
        let behind: Vec<_> = behind.iter().map(|(sink, records, _)| format!("{sink}: {records} records")).collect();
        tracing::error!(
            behind = behind.join(", "),
            used = self.state.bytes_used(),
            limit = self.state.bytes_limit(),
            "the spool is full; nothing more is sold until there is room"
        );
    }

    fn measure(&mut self, now_us: u64) -> Result<(), SpoolError> {
        self.measured_us = now_us;
        self.bytes_unmeasured = 0;
        self.is_freed = false;
        self.state.set_room(self.file.room()?);
        self.tell_if_full(now_us);
        Ok(())
    }
}

/// Starts the thread. It ends when the inbox does, or when the file fails; the receiver is told when it has.
pub(super) fn start<K>(inbox: Arc<Inbox>, mut scribe: Scribe<K>) -> std::io::Result<oneshot::Receiver<()>>
where
    K: FnMut(i64, Vec<Kept>) + Send + 'static,
{
    let (ended, wait) = oneshot::channel();
    scribe.log_taker = log_taker::start(&scribe.file, &scribe.state)?;
    std::thread::Builder::new().name("spool".into()).spawn(move || {
        let state = Arc::clone(&scribe.state);
        if let Err(error) = work(&inbox, &mut scribe) {
            tracing::error!(%error, "the spool failed; nothing more is sold, and the process is to end");
            state.fail();
        } else if let Err(error) = scribe.close() {
            tracing::warn!(%error, "the spool could not be closed in good order; the next start looks what is there");
        }
        inbox.abandon();
        drop(ended);
    })?;
    Ok(wait)
}

fn work<K: FnMut(i64, Vec<Kept>)>(inbox: &Inbox, scribe: &mut Scribe<K>) -> Result<(), SpoolError> {
    let began = Instant::now();
    let now_us = || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    loop {
        let wait = scribe.due_us().map(|due| Duration::from_micros(due.saturating_sub(now_us())));
        if scribe.turn(inbox, wait, now_us)? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
