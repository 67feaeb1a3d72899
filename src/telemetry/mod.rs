//! What the relay shows of itself: metrics for Prometheus, one line a request, and traces where they are wanted. Never a key,
//! never a prompt, and no label whose values a client can choose.

mod access_log;
mod metrics;
mod observed;
mod traces;

pub use access_log::{AccessLine, AccessLog, Writer};
pub use metrics::Metrics;
pub use observed::{Observed, ObservedLeases, ObservedProvider, ObservedSink, ObservedWindows};
pub use traces::{Beginning, SpanCounts, Trace, TraceWriter, Traces, TracesPlace};
