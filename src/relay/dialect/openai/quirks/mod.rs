//! Providers that speak OpenAI's dialect in their own way.
//!
//! What they want is spliced into the request, what they answer is put right as it passes; what is done is named by the
//! quirks of the provider's row (`route/quirks.rs`) and the rules of the model. Without quirks neither happens, and the
//! ways are the plain ones: [`ChatRequest::for_upstream`], [`StreamReader`] and [`JsonReader`].

mod edits;
mod history;
mod members;
mod request;
mod schema;
mod thinking;

pub use request::outgoing;
