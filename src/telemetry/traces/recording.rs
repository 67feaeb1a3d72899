//! One request's trace while it runs. Several hold it: the request, the try that is being made, and billing until it has
//! priced the request. When the last of them lets go of it, whatever the reason, it goes to be sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderValue;
use uuid::Uuid;

use super::{Kept, parent};
use crate::relay::meter::UsageRecord;
use crate::relay::refusal::Cause;
use crate::relay::route::{Provider, Target, scattered};

/// A request's trace; of a request that is not sampled, nothing, and nothing is done for it.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Recording>>);

/// What is known of a request that is traced when it begins.
#[derive(Debug, Clone, Copy)]
pub struct Beginning {
    /// When it arrived, by the relay's clock.
    pub at_us: u64,
    /// The same, nanoseconds since the Unix epoch.
    pub unix_nanos: u64,
    /// Its method, where that is one that HTTP knows.
    pub method: Option<&'static str>,
    /// The path as the API has it, where the API has it: what a client makes up is not told.
    pub route: Option<&'static str>,
}

/// A request that is recorded.
pub(super) struct Recording {
    kept: Arc<Kept>,
    context: Context,
    gathered: Mutex<Gathered>,
}

/// Where the trace stands among others, and when it began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub(super) request_id: Uuid,
    pub(super) trace_id: [u8; 16],
    /// The client's span.
    pub(super) parent: Option<[u8; 8]>,
    pub(super) beginning: Beginning,
}

/// What has become of the request so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) tries: Vec<Try>,
    /// Whose it is, and the model's public id: where the relay answered by itself.
    pub(super) account_id: Option<Box<str>>,
    pub(super) key_id: Option<Box<str>>,
    pub(super) model: Option<Box<str>>,
    /// The model that answered, by its own word, and why its choices ended.
    pub(super) answer_model: Option<Box<str>>,
    pub(super) finish_reasons: Box<[&'static str]>,
    /// Why it failed, if it did.
    pub(super) cause: Option<Cause>,
    /// What it used, where it was admitted.
    pub(super) record: Option<Box<UsageRecord>>,
    /// Whether the record is as it was billed.
    pub(super) is_billed: bool,
    /// When it ended, and with which status; 0 where the client got none.
    pub(super) end: Option<(u64, u16)>,
}

/// A try at a provider.
#[derive(Debug)]
pub(super) struct Try {
    pub(super) provider: Arc<Provider>,
    /// The provider's own name for it.
    pub(super) model: Box<str>,
    pub(super) is_stream: bool,
    pub(super) began_us: u64,
    /// As `tollgate_upstream_attempts_total` counts it; none where it was given up before there was any.
    pub(super) outcome: Option<Box<str>>,
    /// None where it lasts as long as the request.
    pub(super) ended_us: Option<u64>,
}

/// A trace that is over.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) context: Context,
    pub(super) gathered: Gathered,
}

impl Trace {
    pub(super) fn begin(kept: &Arc<Kept>, context: Context) -> Self {
        let recording = Recording { kept: Arc::clone(kept), context, gathered: Mutex::default() };
        Self(Some(Arc::new(recording)))
    }

    /// A provider is about to be asked.
    pub fn tries(&self, target: &Target, is_stream: bool, now_us: u64) {
        self.note(|gathered| {
            gathered.tries.push(Try {
                provider: Arc::clone(&target.provider),
                model: target.model.clone(),
                is_stream,
                began_us: now_us,
                outcome: None,
                ended_us: None,
            });
        });
    }

    /// The try has come to this, as it is counted. An answer that passes (`ok`) ends with the request.
    pub fn tried(&self, outcome: &str, now_us: impl FnOnce() -> u64) {
        self.note(|gathered| {
            let Some(last) = gathered.tries.last_mut().filter(|last| last.outcome.is_none()) else { return };
            last.outcome = Some(outcome.into());
            last.ended_us = (outcome != OK).then(now_us);
        });
    }

    /// The request has failed, for this.
    pub fn fails(&self, cause: Cause) {
        self.note(|gathered| gathered.cause = Some(cause));
    }

    /// Whether anything of the request is wanted.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// What the provider's answer said of itself.
    pub fn answered(&self, model: Option<&str>, finish_reasons: &[&'static str]) {
        self.note(|gathered| {
            gathered.answer_model = model.map(Into::into);
            gathered.finish_reasons = finish_reasons.into();
        });
    }

    /// The relay answers by itself.
    pub fn answers(&self, account_id: Option<&str>, key_id: Option<&str>, model: Option<&str>) {
        self.note(|gathered| {
            gathered.account_id = account_id.map(Into::into);
            gathered.key_id = key_id.map(Into::into);
            gathered.model = model.map(Into::into);
        });
    }

    /// The request's record is about to be handed to billing, which may still have to count: the trace waits for it.
    pub fn settles(&self, record: &UsageRecord) {
        let Some(recording) = &self.0 else { return };
        recording.gathered().record = Some(Box::new(record.clone()));
        recording.kept.wait_for_price(recording.context.request_id, recording);
    }

    /// The request is over; its client got that status, or none (0).
    pub fn ends(&self, status: u16, now_us: impl FnOnce() -> u64) {
        self.note(|gathered| gathered.end = Some((now_us(), status)));
    }

    /// What the provider that is being asked is told of the trace, where it is to be told.
    pub fn for_provider(&self) -> Option<HeaderValue> {
        let recording = self.0.as_ref().filter(|recording| recording.kept.propagate)?;
        let number = recording.gathered().tries.len();
        let written = parent::written(recording.context.trace_id, recording.context.span_id(number));
        HeaderValue::try_from(written).ok()
    }

    fn note(&self, note: impl FnOnce(&mut Gathered)) {
        if let Some(recording) = &self.0 {
            note(&mut recording.gathered());
        }
    }
}

/// The outcome of a try whose answer passes.
pub(super) const OK: &str = "ok";

impl Context {
    /// The id of the trace's span of that number: 0 is the request's, from 1 on they are the tries'. Made from the request's
    /// id, which is random enough and no other request's.
    pub(super) fn span_id(&self, number: usize) -> [u8; 8] {
        let seed = (self.request_id.as_u128() as u64).wrapping_add(number as u64);
        scattered(scattered(seed)).max(1).to_be_bytes()
    }

    /// A moment of the relay's clock as nanoseconds since the Unix epoch.
    pub(super) fn unix_nanos(&self, at_us: u64) -> u64 {
        let since = at_us.saturating_sub(self.beginning.at_us);
        self.beginning.unix_nanos.saturating_add(since.saturating_mul(1_000))
    }
}

impl Recording {
    /// The request as it was billed.
    pub(super) fn billed(&self, record: &UsageRecord) {
        let mut gathered = self.gathered();
        gathered.record = Some(Box::new(record.clone()));
        gathered.is_billed = true;
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let gathered = std::mem::take(self.gathered.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.kept.queue.push(Finished { context: self.context, gathered });
    }
}
