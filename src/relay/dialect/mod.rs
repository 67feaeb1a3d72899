//! OpenAI's wire format to and from each provider's.
//!
//! A dialect reads the answer as it passes, chunk by chunk, behind one interface, [`Answer`]: where provider and client
//! speak the same, what goes in comes out; where not, events go in and the client's events come out. Either way nothing is
//! kept of the text but a bounded sample, and no tree is built of a delta.

pub mod anthropic;
mod error;
pub mod gemini;
pub mod openai;
mod spoken;

use bytes::Bytes;

pub use error::{ProviderError, error_event, map_error};
pub use spoken::{answer, outgoing, output_ceiling, passes_unchanged, prompt_ceiling, read_error};

use super::meter::{SampledText, Usage};

/// An answer that passes through, streamed or whole.
pub trait Answer: Send {
    /// Takes the next bytes from the provider, and gives what the client gets now. Never waits for more than it must.
    fn pass(&mut self, chunk: Bytes) -> Bytes;

    /// The provider's body has ended, well or not: what that means, and what the client still gets.
    fn end(&mut self) -> End;

    /// Whether the answer is whole, by its own word, with what [`Self::pass`] has given so far: the client may take it for
    /// complete before the provider's body ends. What follows says nothing more. Not where the last of it comes with
    /// [`Self::end`].
    fn is_whole(&self) -> bool;

    /// What the provider has reported so far; `None` if nothing, or nothing but zeros.
    fn usage(&self) -> Option<Usage>;

    /// Whether [`Self::usage`], where there is one, tells all of the output. Not while a provider that reports the prompt
    /// first has still to report the answer: if that breaks off, the prompt is as reported and the output has to be counted.
    fn output_is_reported(&self) -> bool {
        true
    }

    /// The text that has passed, sampled, to count tokens by where nothing was reported.
    fn sample(&self) -> &SampledText;

    /// The same, taken: for the record of a request that is over.
    fn take_sample(&mut self) -> SampledText;

    /// Whether something was said: the first chunk that is more than a greeting has passed.
    fn began(&self) -> bool;

    /// The error that the provider has sent in place of an answer, or of the rest of one.
    fn error(&self) -> Option<&AnswerError>;
}

/// A request as a provider gets it.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// What follows the provider's own path, with its query: `/v1/messages`.
    pub path: Box<str>,
    /// The body, in the provider's dialect.
    pub body: Bytes,
    /// The request's top-level fields that the provider has no place for, as `x-tollgate-dropped` lists them.
    pub dropped: Vec<Box<str>>,
}

/// What a translated answer says of itself, the same in each of its chunks.
#[derive(Debug, Clone)]
pub struct AnswerTerms {
    /// The answer's id; `chatcmpl-` and the request's.
    pub id: Box<str>,
    /// Seconds since the Unix epoch.
    pub created: i64,
    /// The model as the client named it.
    pub model: Box<str>,
    /// Whether the client asked for a stream's usage.
    pub show_usage: bool,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Whether that was all of it.
    pub outcome: Outcome,
    /// What is left to send, before an error event if there is to be one. Often nothing.
    pub append: Bytes,
}

/// Whether an answer has come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has, by its own word.
    Complete,
    /// It broke off: the client must be told.
    Truncated,
    /// The provider sent an error, and the client has it.
    Errored,
}

/// A provider's error inside an answer whose status said that all was well. For the relay's own eyes: it may name the
/// operator's account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerError {
    /// What it says, cut at some hundred bytes.
    pub message: Box<str>,
    /// Its type, where it has one.
    pub kind: Option<Box<str>>,
    /// Its code, where it has one.
    pub code: Option<Box<str>>,
    /// What the client is to be told of it; `None` where it is no more than a failure.
    pub told: Option<Box<ProviderError>>,
}

impl AnswerError {
    /// Whether it is the request that the provider complains of.
    pub fn is_of_the_request(&self) -> bool {
        matches!(self.told.as_deref(), Some(ProviderError::Request { .. }))
    }
}
