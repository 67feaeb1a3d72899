//! OpenAI's own dialect: what clients speak, and most providers with them.
//!
//! Where the provider speaks it too, nothing is translated: the request is spliced, the answer forwarded as it comes, and
//! both are only looked at.

mod answer;
mod chunk;
mod fault;
mod fields;
mod outlet;
mod quirks;
#[cfg(test)]
mod recordings;
mod remarks;
mod request;
mod shape;
mod usage;
mod whole;

pub use answer::StreamReader;
pub use quirks::{
    LOOSE_DOCUMENT_BYTES_MAX, LOOSE_EVENT_BYTES_MAX, LooseDocument, LooseStream, incoming, outgoing, output_ceiling,
};
pub use remarks::Remarks;
pub use request::ChatRequest;
pub use whole::JsonReader;
