//! Traces that are over wait here, and a thread of its own sends them in batches. A request that ends never waits for it:
//! where there is no place left its trace is dropped, and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use uuid::Uuid;

use super::Kept;
use super::post::{Delivery, Post};
use super::recording::Finished;
use super::spans::{self, Attributes};
use super::wire::{Export, Resource, ResourceSpans, Scope, ScopeSpans, Span};

/// Traces that may wait.
const WAITING_MAX: usize = 4_096;
/// Traces that are sent together.
const BATCH: usize = 256;
/// How long a trace may wait for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long is waited before a batch that could not be taken is sent again, each time.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How long what is left is still sent when the process ends.
const ENDING_MAX: Duration = Duration::from_secs(5);

/// What has become of spans, totals since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SpanCounts {
    /// The receiver has them.
    pub sent: u64,
    /// There was no place for them.
    pub queue_full: u64,
    /// The receiver could not be reached, or could not take them, several times in a row.
    pub undelivered: u64,
    /// The receiver did not want them.
    pub refused: u64,
}

/// Traces on their way out.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    bell: Condvar,
    sent: AtomicU64,
    queue_full: AtomicU64,
    undelivered: AtomicU64,
    refused: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    finished: VecDeque<Finished>,
    /// What is here is to be sent at once, and nothing is tried twice any more.
    is_ending: bool,
    /// The thread is done.
    has_ended: bool,
}

impl Queue {
    /// Takes a trace, if there is a place for it; never waits.
    pub(super) fn push(&self, finished: Finished) {
        let mut waiting = self.waiting();
        if waiting.has_ended || waiting.finished.len() >= WAITING_MAX {
            drop(waiting);
            self.queue_full.fetch_add(spans::count(&finished), Ordering::Relaxed);
            return;
        }
        waiting.finished.push_back(finished);
        let is_awaited = matches!(waiting.finished.len(), 1 | BATCH);
        drop(waiting);
        if is_awaited {
            self.bell.notify_all();
        }
    }

    pub(super) fn counts(&self) -> SpanCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SpanCounts {
            sent: read(&self.sent),
            queue_full: read(&self.queue_full),
            undelivered: read(&self.undelivered),
            refused: read(&self.refused),
        }
    }

    /// The next traces to send; `None` when the process ends and all are sent.
    fn next(&self) -> Option<Vec<Finished>> {
        let is_idle = |waiting: &mut Waiting| waiting.finished.is_empty() && !waiting.is_ending;
        let waiting = self.bell.wait_while(self.waiting(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let is_gathering = |waiting: &mut Waiting| waiting.finished.len() < BATCH && !waiting.is_ending;
        let gathered = self.bell.wait_timeout_while(waiting, GATHER, is_gathering);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        let count = waiting.finished.len().min(BATCH);
        (count > 0).then(|| waiting.finished.drain(..count).collect())
    }

    /// Waits for so long; `false` where the process ends before.
    fn pause(&self, pause: Duration) -> bool {
        let waited = self.bell.wait_timeout_while(self.waiting(), pause, |waiting| !waiting.is_ending);
        let (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !waiting.is_ending
    }

    /// All that waits, taken, for tests without a thread.
    #[cfg(test)]
    pub(super) fn taken(&self) -> Vec<Finished> {
        self.waiting().finished.drain(..).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that sends traces.
pub struct TraceWriter(Arc<Kept>);

impl TraceWriter {
    /// Sends what there is, once, and as far as it goes in some seconds. Called when nothing more is billed.
    pub fn end(self) {
        let Self(kept) = self;
        kept.give_up_waiting();
        let queue = &kept.queue;
        let mut waiting = queue.waiting();
        waiting.is_ending = true;
        queue.bell.notify_all();
        let ended = queue.bell.wait_timeout_while(waiting, ENDING_MAX, |waiting| !waiting.has_ended);
        let (waiting, _) = ended.unwrap_or_else(PoisonError::into_inner);
        if !waiting.has_ended {
            tracing::warn!(traces = waiting.finished.len(), "not all traces were sent in time");
        }
    }
}

/// Starts the thread.
///
/// # Errors
/// No thread could be had.
pub(super) fn start(kept: Arc<Kept>, post: Post, service_name: &str) -> Result<TraceWriter, String> {
    let writer = TraceWriter(Arc::clone(&kept));
    let sender = Sender { post, resource: resource(service_name), is_failing: false };
    std::thread::Builder::new()
        .name("traces".into())
        .spawn(move || sender.run(&kept.queue))
        .map_err(|error| format!("no thread for traces: {error}"))?;
    Ok(writer)
}

/// This process.
fn resource(service_name: &str) -> Resource {
    let mut attributes = Attributes::default();
    attributes.text("service.name", service_name);
    attributes.text("service.version", env!("CARGO_PKG_VERSION"));
    attributes.text("service.instance.id", &Uuid::now_v7().hyphenated().to_string());
    Resource { attributes: attributes.0 }
}

struct Sender {
    post: Post,
    resource: Resource,
    /// The last batch did not go through; the log has been told.
    is_failing: bool,
}

impl Sender {
    fn run(mut self, queue: &Queue) {
        while let Some(batch) = queue.next() {
            self.deliver(queue, &batch);
        }
        queue.waiting().has_ended = true;
        queue.bell.notify_all();
    }

    fn deliver(&mut self, queue: &Queue, batch: &[Finished]) {
        let spans: Vec<Span> = batch.iter().flat_map(spans::of).collect();
        let count = spans.len() as u64;
        let body = self.export(spans).encode_to_vec();
        let mut pauses = PAUSES.into_iter();
        loop {
            match self.post.send(&body) {
                Delivery::Taken { rejected } => {
                    let rejected = rejected.min(count);
                    queue.sent.fetch_add(count - rejected, Ordering::Relaxed);
                    queue.refused.fetch_add(rejected, Ordering::Relaxed);
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!("traces go through again");
                    }
                    return;
                }
                Delivery::Refused(why) => {
                    queue.refused.fetch_add(count, Ordering::Relaxed);
                    return self.tell(&why);
                }
                Delivery::Later(why) => {
                    self.tell(&why);
                    if !pauses.next().is_some_and(|pause| queue.pause(pause)) {
                        queue.undelivered.fetch_add(count, Ordering::Relaxed);
                        return;
                    }
                }
            }
        }
    }

    /// Says that traces do not go through, once until they do again.
    fn tell(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(why, "traces do not go through; requests are served all the same");
        }
    }

    fn export(&self, spans: Vec<Span>) -> Export {
        let scope = Scope { name: "tollgate".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let resource = Some(self.resource.clone());
        Export { resource_spans: vec![ResourceSpans { resource, scope_spans }] }
    }
}

#[cfg(test)]
mod tests {
    use super::super::recording::{Beginning, Context, Gathered};
    use super::*;

    fn finished() -> Finished {
        let beginning = Beginning { at_us: 0, unix_nanos: 0, method: None, route: None };
        let context = Context { request_id: Uuid::nil(), trace_id: [1; 16], parent: None, beginning };
        Finished { context, gathered: Gathered::default() }
    }

    #[test]
    fn what_finds_no_place_is_dropped_and_counted() {
        let queue = Queue::default();
        for _ in 0..WAITING_MAX + 3 {
            queue.push(finished());
        }
        assert_eq!(queue.counts(), SpanCounts { queue_full: 3, ..SpanCounts::default() });
        assert_eq!(queue.waiting().finished.len(), WAITING_MAX);
    }

    #[test]
    fn a_batch_is_no_larger_than_it_may_be() {
        let queue = Queue::default();
        for _ in 0..=BATCH {
            queue.push(finished());
        }
        queue.waiting().is_ending = true;
        assert_eq!(queue.next().map(|batch| batch.len()), Some(BATCH));
        assert_eq!(queue.next().map(|batch| batch.len()), Some(1));
        assert!(queue.next().is_none(), "it has ended");
        assert!(!queue.pause(Duration::from_secs(600)), "nothing is waited for at the end");
    }
}
