//! Which providers may answer a request for a model, and in which order they are asked.

mod candidates;
mod catalogue;
mod quirks;
mod rules;
mod secret;

pub use candidates::candidates;
pub use catalogue::{
    Address, Catalogue, Dialect, Endpoint, Model, Plan, Provider, ProviderTimes, Target, UnknownDialect,
};
pub use quirks::{Quirk, Quirks};
pub use rules::{ModelRules, Sampling, SchemaForm, Thinking};
pub use secret::Secret;
