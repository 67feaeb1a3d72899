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

use crate::relay::dialect::openai::{JsonReader, StreamReader};
use crate::relay::dialect::{Answer, AnswerTerms};
use crate::relay::route::{Quirk, Quirks};

pub use request::{outgoing, output_ceiling};
pub use stream::{LOOSE_EVENT_BYTES_MAX, LooseStream};
pub use whole::{LOOSE_DOCUMENT_BYTES_MAX, LooseDocument};

/// Who passes the answer of a provider with these quirks on, to a client that asked for so many choices. With
/// [`Quirk::LooseAnswers`] an answer that is no stream changes its length.
pub fn incoming(quirks: Quirks, terms: AnswerTerms, choices: u64, is_stream: bool) -> Box<dyn Answer + Sync> {
    match (quirks.has(Quirk::LooseAnswers), is_stream) {
        (false, true) => Box::new(StreamReader::new(terms.show_usage, choices)),
        (false, false) => Box::new(JsonReader::new()),
        (true, true) => Box::new(LooseStream::new(terms, choices)),
        (true, false) => Box::new(LooseDocument::new(terms)),
    }
}
