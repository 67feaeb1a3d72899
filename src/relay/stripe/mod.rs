//! Stripe's wire format: what its events say and how they are signed, and the forms that it is asked by. What is sent and when, and
//! what an event does, is `admin`'s and `store`'s.
//!
//! Events are read as API versions from 2022 on write them: where a field moved (a subscription's period to its items, an invoice's
//! subscription to its parent), both places are looked at.

mod event;
mod form;
mod signature;

pub use event::{Event, Invoice, Payment, State, Told};
pub use form::{Back, CheckoutOf, PlanSwitch, cancel_form, checkout_form, switch_form};
pub use signature::{SignatureError, verify};

/// Sessions and subscriptions that the relay began carry its account under this name.
const ACCOUNT: &str = "tollgate_account";
