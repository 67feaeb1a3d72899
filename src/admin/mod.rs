//! What machines and people ask of the relay: whether it lives, whether it should get traffic, how its providers are; the admin API,
//! which does all that the command line does; and the dashboard, where customers and operators do it in a browser.
//!
//! Absent: the listeners, which are `proxy`'s.

pub mod api;
pub mod dashboard;
mod document;
mod health;
mod operation;
pub mod people;
mod providers;
pub mod sale;
mod sale_document;
pub mod stripe;
pub mod value;

pub use document::{
    AccountDocument, AuditDocument, CreatedKeyDocument, CreditDocument, KeyDocument, LinkDocument, NodeDocument,
    RequestDocument, UsageTotalDocument, UserDocument,
};
pub use health::{Behind, Readiness};
pub use operation::{KeyError, UnknownPlan, create_key, require_plan};
pub use sale_document::{
    CreatedVouchersDocument, PeriodDocument, PlanDocument, SubscriptionDocument, VoucherBatchDocument,
};
