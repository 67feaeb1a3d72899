//! The rules of the relay, pure: no sockets, no runtime, no clock, no chance. Time comes in as an argument, so does
//! randomness, so that every rule can be tested without either.

pub mod admit;
pub mod auth;
pub mod dialect;
pub mod idempotency;
pub mod json;
pub mod meter;
pub mod refusal;
pub mod route;
pub mod sse;
pub mod stripe;
pub mod webhook;
