//! Providers that speak OpenAI's dialect in their own way.
//!
//! What they want is spliced into the request, what they answer is put right as it passes; what is done is named by the
//! quirks of the provider's row (`route/quirks.rs`) and the rules of the model. Without quirks neither happens, and the
//! ways are the plain ones: `ChatRequest::for_upstream`, `StreamReader` and `JsonReader`.

mod calls;
mod choice;
#[cfg(test)]
mod decoded;
mod edits;
mod fault;
mod finish;
mod history;
mod members;
#[cfg(test)]
mod recordings;
mod request;
mod said;
mod schema;
mod stream;
mod thinking;
mod whole;
mod writer;

pub use request::outgoing;
pub use stream::{LOOSE_EVENT_BYTES_MAX, LooseStream};
pub use whole::{LOOSE_DOCUMENT_BYTES_MAX, LooseDocument};
