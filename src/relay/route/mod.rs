//! Which providers may answer a request for a model, in which order they are asked, what is known of their health, and how
//! often a request may be tried again.

mod breaker;
mod budget;
mod catalogue;
mod course;
mod health;
mod lane;
mod load;
mod quirks;
mod retry_after;
mod rules;
mod secret;
#[cfg(test)]
mod testing;

pub use budget::RetryBudget;
pub use catalogue::{
    Address, Catalogue, Dialect, Endpoint, Model, Plan, Provider, ProviderTimes, Target, UnknownDialect,
};
pub use course::{Course, Moment, Stop, nobody, scattered, soonest, wait_ms};
pub use health::{Health, Lanes, ProviderHealth};
pub use lane::{Account, Lane, LaneView, Lease, Standing, Verdict};
pub use quirks::{Quirk, Quirks};
pub use retry_after::retry_after_ms;
pub use rules::{ModelRules, Sampling, SchemaForm, Thinking};
pub use secret::Secret;
