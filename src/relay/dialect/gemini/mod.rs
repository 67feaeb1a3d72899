//! Gemini's generateContent, for clients that speak OpenAI's dialect.
//!
//! [`request`] translates what a client asks. [`StreamTranslator`] and [`WholeTranslator`] translate what Gemini answers,
//! streamed and whole, and [`map_error`] what it says when it does not. [`SignatureMemory`] keeps what clients lose. Vertex
//! AI's answers are the same, with calls whose arguments come in parts.
//!
//! The credential goes into the header `x-goog-api-key`, which is the proxy's to write: this room sees no secret.
//!
//! Deliberately absent: uploads of files, caches and batches, which are other methods; and what Gemini tells beside the
//! answer (safety ratings, citations, the modalities of tokens), for which OpenAI's answers have no place.

mod arguments;
mod chunks;
mod error;
mod finish;
mod ids;
mod logprobs;
mod progress;
#[cfg(test)]
mod recordings;
mod request;
mod response;
mod sealed;
mod signatures;
mod stream;
#[cfg(test)]
mod testing;
mod usage;
mod whole;

pub use error::map_error;
pub use request::request;
pub use sealed::{NONCE_BYTES, SignaturePlace};
pub use signatures::{SIGNATURE_BYTES_MAX, SIGNATURES_BYTES_MAX, SIGNATURES_MAX, SignatureMemory, SignatureScope};
pub use stream::{EVENT_BYTES_MAX, StreamTranslator};
pub use whole::{WHOLE_BYTES_MAX, WholeTranslator};
