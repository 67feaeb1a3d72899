//! Which providers may answer a request for a model, and in which order they are asked.

mod catalogue;
mod secret;

pub use catalogue::{
    Address, Catalogue, Dialect, Endpoint, Model, Plan, Provider, ProviderTimes, Target, UnknownDialect,
};
pub use secret::Secret;
