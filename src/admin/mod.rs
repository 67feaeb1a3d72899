//! What machines and operators ask of the relay: whether it lives, whether it should get traffic, how its providers are; and the
//! admin API, which does all that the command line does.
//!
//! Absent: the listener, which is `proxy`'s.

pub mod api;
mod document;
mod health;
mod operation;
mod providers;
pub mod sale;
mod sale_document;
pub mod value;

pub use document::{
    AccountDocument, AuditDocument, CreatedKeyDocument, CreditDocument, KeyDocument, UsageTotalDocument,
};
pub use health::{Behind, Readiness};
pub use operation::{KeyError, UnknownPlan, create_key, require_plan};
pub use sale_document::{
    CreatedVouchersDocument, PeriodDocument, PlanDocument, SubscriptionDocument, VoucherBatchDocument,
};
