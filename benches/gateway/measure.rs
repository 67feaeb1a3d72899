//! What the kernel says about a process: its CPU time and its memory. Linux's `/proc`, nothing else.

use std::fs;
use std::time::Duration;

use crate::Failure;

/// A user-space clock tick: `USER_HZ` is 100 on every architecture that Linux runs servers on.
const TICK_NANOS: u64 = 10_000_000;
const QUIET_STEP: Duration = Duration::from_millis(100);
/// A process that used less CPU than this in a step does nothing but look at its clocks.
const QUIET_NANOS: u64 = 1_000_000;
const QUIET_STEPS: u32 = 2;
const QUIET_STEPS_MAX: u32 = 80;

/// A process seen through `/proc`.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
}

impl Process {
    /// CPU time of all threads since the start, in nanoseconds.
    ///
    /// The sum over living threads is exact to a scheduler's tick; the process's own figure is rounded down to 10 ms,
    /// but remembers threads that have ended. Both are floors of the truth, so the larger is taken.
    pub fn cpu_nanos(self) -> Result<u64, Failure> {
        let mut living: u64 = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            living += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name in parentheses may hold spaces; utime and stime are the 12th and 13th fields after it.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| -> Result<u64, Failure> { Ok(fields.get(at).ok_or("a short stat")?.parse()?) };
        Ok(living.max((ticks(11)? + ticks(12)?) * TICK_NANOS))
    }

    /// Proportional set size in KiB: the pages that are its own, and its share of those it shares.
    pub fn pss_kib(self) -> Result<u64, Failure> {
        self.kib("smaps_rollup", "Pss:")
    }

    /// The most that was ever resident, in KiB.
    pub fn peak_rss_kib(self) -> Result<u64, Failure> {
        self.kib("status", "VmHWM:")
    }

    /// How many descriptors are open.
    pub fn descriptors(self) -> Result<usize, Failure> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid))?.count())
    }

    fn kib(self, file: &str, field: &str) -> Result<u64, Failure> {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.pid))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)).ok_or("a field is missing in /proc")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Waits until the process does nothing: what it has put off (billing, logs) belongs to the work before.
    pub async fn quiet(self) -> Result<(), Failure> {
        let mut before = self.cpu_nanos()?;
        let mut quiet_steps = 0;
        for _ in 0..QUIET_STEPS_MAX {
            tokio::time::sleep(QUIET_STEP).await;
            let now = self.cpu_nanos()?;
            quiet_steps = if now - before < QUIET_NANOS { quiet_steps + 1 } else { 0 };
            if quiet_steps == QUIET_STEPS {
                return Ok(());
            }
            before = now;
        }
        Err(format!("process {} never came to rest", self.pid).into())
    }
}
