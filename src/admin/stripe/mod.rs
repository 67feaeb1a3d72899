//! Payment by Stripe: the sessions that customers pay in, and the events by which Stripe tells what became of them.
//!
//! What is paid for is had when a signed event says so, never because a browser came back. Amounts come from the configuration and
//! from Stripe, never from a form. Without `[payment.stripe]`, or one of its secrets, there is none of it.

mod client;
mod webhook;

pub use client::{StripeError, begin_checkout, change_plan, set_cancelled};
pub use webhook::{Webhook, routes};
