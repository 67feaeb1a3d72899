//! Runs one sink: takes what its source has, delivers it, moves the cursor; and waits where it does not go through.
//!
//! | the receiver | what happens |
//! |---|---|
//! | takes it | the cursor moves past it |
//! | cannot now | the same again, after a pause by chance of up to 1, 2, 4 … 300 s, or what it asks for |
//! | refuses a record | the record is parked, the others go on; parked ones are tried again every 300 s |
//! | refuses everything | nothing moves; the same again every 300 s, as an operator has to mend something |

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::pace::PAUSE_MAX;
use super::work::Work;
use super::{RECORDS_MAX, Sink, SinkError, SinkState, Source, Times};

/// How many parked records are tried together.
const PARKED_RECORDS_MAX: usize = 128;

/// How long what is left is still delivered when the process ends. The rest is not lost, but late.
const ENDING_MAX: Duration = Duration::from_secs(10);

/// Runs a sink until `shutdown`, and then until its source has nothing more, it does not go through or has taken long enough; what
/// is left waits in the source for the next run. A delivery that has begun is never broken off.
pub(in crate::billing) async fn run<S: Sink, Q: Source>(
    sink: S,
    source: Q,
    times: Times,
    state: Arc<SinkState>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut runner = Runner::new(sink, source, times, state);
    let mut shutdown = std::pin::pin!(shutdown);
    let mut ends_at = None;
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown, if ends_at.is_none() => ends_at = Some(runner.now_ms().saturating_add(ms(ENDING_MAX))),
            () = std::future::ready(()) => {}
        }
        let pause = match (runner.step(ends_at.is_some()).await, ends_at) {
            (Step::Moved, Some(end)) if runner.now_ms() >= end => return,
            (Step::Moved, _) => continue,
            (_, Some(_)) => return,
            (Step::Nothing, None) => None,
            (Step::Later(pause), None) => Some(pause),
        };
        let wait = async {
            match pause {
                Some(pause) => {
                    tokio::time::sleep(pause).await;
                    true
                }
                // Parked records come due while nothing new comes.
                None => tokio::time::timeout(PAUSE_MAX, runner.source.more()).await.unwrap_or(true),
            }
        };
        let more = tokio::select! {
            () = &mut shutdown => false,
            more = wait => more,
        };
        if !more {
            ends_at = Some(runner.now_ms().saturating_add(ms(ENDING_MAX)));
        }
    }
}

/// What came of one step.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Something was done; there may be more.
    Moved,
    /// There is nothing to do.
    Nothing,
    /// It did not go through; try again after this.
    Later(Duration),
}

struct Runner<S, Q> {
    sink: S,
    source: Q,
    times: Times,
    state: Arc<SinkState>,
    job: Option<Job>,
    /// Failures since something went through.
    failures: u32,
    /// When the next parked records are tried, Unix milliseconds.
    parked_due_ms: i64,
    /// Those up to this id have been tried in this turn.
    parked_after: Option<Uuid>,
}

/// Records in hand.
struct Job {
    work: Work,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Cursor,
    Parked,
}

impl<S: Sink, Q: Source> Runner<S, Q> {
    fn new(sink: S, source: Q, times: Times, state: Arc<SinkState>) -> Self {
        Self { sink, source, times, state, job: None, failures: 0, parked_due_ms: 0, parked_after: None }
    }

    /// Tries one piece once, or takes or finishes a job. When the process is `ending` nothing parked is tried.
    async fn step(&mut self, ending: bool) -> Step {
        if self.job.is_none() {
            match self.take(ending).await {
                Ok(job) => self.job = job,
                Err(error) => return self.source_failed(&error),
            }
        }
        let Some(job) = &mut self.job else { return Step::Nothing };
        let Some(piece) = job.work.next() else { return self.finish().await };
        match self.sink.deliver(piece).await {
            Ok(()) => {
                self.failures = 0;
                self.state.took(job.work.pass());
                Step::Moved
            }
            Err(SinkError::Later { why, retry_after }) => self.failed(&why, retry_after),
            Err(SinkError::TooLarge(why)) => {
                job.work.split(&why);
                Step::Moved
            }
            Err(SinkError::Refused(why)) => {
                self.state.has_refused();
                if job.work.refuse(&why) { Step::Moved } else { self.refused(&why) }
            }
            Err(SinkError::Closed(why)) => {
                self.state.has_refused();
                self.refused(&why)
            }
        }
    }

    async fn take(&mut self, ending: bool) -> Result<Option<Job>, Q::Error> {
        let now_ms = self.now_ms();
        if !ending && self.state.aside() > 0 && now_ms >= self.parked_due_ms {
            let parked = self.source.parked(self.parked_after, PARKED_RECORDS_MAX).await?;
            let there_may_be_more = parked.len() == PARKED_RECORDS_MAX;
            self.parked_after = parked.last().filter(|_| there_may_be_more).map(|record| record.request_id);
            self.parked_due_ms = now_ms.saturating_add(ms(PAUSE_MAX));
            if !parked.is_empty() {
                return Ok(Some(Job { work: Work::new(parked), origin: Origin::Parked }));
            }
        }
        let records = self.source.next(RECORDS_MAX).await?;
        Ok((!records.is_empty()).then(|| Job { work: Work::new(records), origin: Origin::Cursor }))
    }

    /// All of the job was passed or refused: the source is told, and with that it is done.
    async fn finish(&mut self) -> Step {
        let Some(job) = &self.job else { return Step::Nothing };
        let parked = job.work.parked();
        let told = match job.origin {
            Origin::Cursor => self.source.advance(&parked).await,
            Origin::Parked => self.source.unpark(&job.work.passed()).await,
        };
        if let Err(error) = told {
            return self.source_failed(&error);
        }
        let now_ms = self.now_ms();
        match job.origin {
            Origin::Cursor => {
                for parked in &parked {
                    tracing::error!(
                        sink = self.sink.name(), request_id = %parked.record.request_id, why = parked.why,
                        "a record is refused; it is parked and tried again every few minutes"
                    );
                }
                if !parked.is_empty() && self.parked_due_ms <= now_ms {
                    self.parked_due_ms = now_ms.saturating_add(ms(PAUSE_MAX));
                }
            }
            // The receiver was mended: the others need not wait their turn.
            Origin::Parked if job.work.is_whole() => self.parked_due_ms = now_ms,
            Origin::Parked => {}
        }
        self.job = None;
        Step::Moved
    }

    /// Everything is refused. Records from the cursor stay in hand; parked ones are back in their place.
    fn refused(&mut self, why: &str) -> Step {
        let Some(job) = &mut self.job else { return Step::Nothing };
        if job.origin == Origin::Parked {
            job.work.abandon();
            return Step::Moved;
        }
        self.state.set_held(job.work.left());
        tracing::error!(
            sink = self.sink.name(),
            why,
            records = job.work.left(),
            "everything is refused; it is kept and tried again every few minutes"
        );
        Step::Later(PAUSE_MAX)
    }

    fn failed(&mut self, why: &str, retry_after: Option<Duration>) -> Step {
        self.failures = self.failures.saturating_add(1);
        self.state.has_failed();
        self.state.set_held(0);
        let pause = self.times.pause_after(self.failures, retry_after);
        tracing::warn!(sink = self.sink.name(), why, failures = self.failures, ?pause, "records do not go through");
        Step::Later(pause)
    }

    fn source_failed(&mut self, error: &Q::Error) -> Step {
        self.failures = self.failures.saturating_add(1);
        let pause = self.times.pause_after(self.failures, None);
        tracing::error!(sink = self.sink.name(), %error, ?pause, "the spool fails a sink; trying again");
        Step::Later(pause)
    }

    fn now_ms(&self) -> i64 {
        self.times.now_ms()
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
