//! Traces, as OpenTelemetry has them: of a request that is sampled, one span for the request and, below it, one for each try
//! at a provider, with what it used and what it cost. They leave in batches, on a thread of their own, as OTLP over HTTP.
//!
//! Whether a request is sampled is decided once, when it begins. Where there are no traces that is one branch; where it is
//! not sampled, one number by chance. What is sampled is gathered as the request goes (`recording`), made into spans
//! (`spans`) by the thread that sends them (`export`). A trace has the request's id unless its client brought one.
//!
//! Deliberately absent: what a client or a provider said, keys, addresses of clients and whatever path a client makes up;
//! `tracestate`; metrics and logs over OTLP, for which there are the metrics page and the access log; and settings from
//! `OTEL_*` variables, for which there is the configuration.

mod export;
mod parent;
mod post;
mod recording;
mod spans;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use uuid::Uuid;

use self::export::Queue;
use self::parent::Parent;
use self::post::Post;
use self::recording::{Context, Recording};
use crate::relay::meter::UsageRecord;
use crate::relay::route::{Secret, scattered};

pub use self::export::{SpanCounts, TraceWriter};
pub use self::recording::{Beginning, Trace};

/// How many traces may wait for billing; past it they go without what was billed.
const UNPRICED_MAX: usize = 8_192;

/// A part of the share of requests that are sampled: all of them are so many.
const ALL: u64 = 1_000_000_000;

/// Where traces go, and which.
#[derive(Debug, Clone)]
pub struct TracesPlace {
    /// Where they are posted to: `http://` or `https://`, with a path.
    pub endpoint: Box<str>,
    /// Names and values of headers that the receiver asks for.
    pub headers: Vec<(Box<str>, Secret)>,
    /// How many of a billion requests are sampled.
    pub sample_per_billion: u32,
    /// Whether a client's word is taken for whether its request is sampled.
    pub trust_parent: bool,
    /// Whether providers are told of the trace.
    pub propagate: bool,
    /// `service.name`.
    pub service_name: Box<str>,
}

/// The way to the traces. Cloning it is cheap. The default has none.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Kept>>);

/// What all traces share.
struct Kept {
    sample_per_billion: u64,
    trust_parent: bool,
    propagate: bool,
    queue: Queue,
    /// Those whose record is with billing.
    unpriced: Mutex<HashMap<Uuid, Arc<Recording>>>,
}

impl Traces {
    /// Starts the thread that sends them.
    ///
    /// # Errors
    /// No thread could be had, or the system has no certificates and the endpoint is https: for the operator.
    pub fn start(place: TracesPlace) -> Result<(Self, TraceWriter), String> {
        let kept = Arc::new(Kept {
            sample_per_billion: place.sample_per_billion.into(),
            trust_parent: place.trust_parent,
            propagate: place.propagate,
            queue: Queue::default(),
            unpriced: Mutex::default(),
        });
        let writer = export::start(Arc::clone(&kept), Post::open(&place)?, &place.service_name)?;
        Ok((Self(Some(kept)), writer))
    }

    /// Begins a request's trace, if there are traces and it is sampled. `more` is asked only then.
    pub fn begin(&self, request_id: Uuid, headers: &HeaderMap, more: impl FnOnce() -> Beginning) -> Trace {
        let Some(kept) = &self.0 else { return Trace::default() };
        let sampled_parent = match kept.trust_parent {
            false if !kept.draws(request_id) => return Trace::default(),
            false => Parent::of(headers),
            true => match Parent::of(headers) {
                Some(parent) if !parent.is_sampled => return Trace::default(),
                None if !kept.draws(request_id) => return Trace::default(),
                parent => parent,
            },
        };
        let trace_id = sampled_parent.map_or(*request_id.as_bytes(), |parent| parent.trace_id);
        let parent = sampled_parent.map(|parent| parent.span_id);
        Trace::begin(kept, Context { request_id, trace_id, parent, beginning: more() })
    }

    /// A request was billed so: its trace, if it has one, need not wait any longer.
    pub fn billed(&self, record: &UsageRecord) {
        let Some(kept) = &self.0 else { return };
        // Let go of outside of the lock: it may be the last who holds it.
        let waiting = kept.unpriced().remove(&record.request_id);
        if let Some(recording) = waiting {
            recording.billed(record);
        }
    }

    /// What has become of the spans so far.
    pub fn counts(&self) -> SpanCounts {
        self.0.as_ref().map(|kept| kept.queue.counts()).unwrap_or_default()
    }
}

impl Kept {
    /// Whether a request is one of those that are sampled. Made from its id, whose own bits choose among targets: scattered
    /// twice they have nothing in common with that choice.
    fn draws(&self, request_id: Uuid) -> bool {
        const OTHERWISE: u64 = 0x7472_6163_6573_2121;
        let chance = scattered(scattered(request_id.as_u128() as u64 ^ OTHERWISE));
        ((chance >> 32) * ALL) >> 32 < self.sample_per_billion
    }

    fn wait_for_price(&self, request_id: Uuid, recording: &Arc<Recording>) {
        let mut unpriced = self.unpriced();
        if unpriced.len() < UNPRICED_MAX {
            unpriced.insert(request_id, Arc::clone(recording));
        }
    }

    /// Nothing more will be billed.
    fn give_up_waiting(&self) {
        let waiting = std::mem::take(&mut *self.unpriced());
        drop(waiting);
    }

    fn unpriced(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Recording>>> {
        self.unpriced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
