//! What the relay shows of itself: metrics for Prometheus and one line a request. Never a key, never a prompt, and no label
//! whose values a client can choose.

mod access_log;
mod metrics;

pub use access_log::{AccessLine, AccessLog, Writer};
pub use metrics::{Metrics, Observed, ObservedProvider, ObservedSink};
