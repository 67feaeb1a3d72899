//! What a key may take: requests and tokens of its windows, requests at once, and its account's credit.
//!
//! Windows, counts and holds are exact and belong to this process. Where several nodes sell an account's credit, each leases a part
//! of it ([`LeaseBook`]); and they share windows by the same rules in Redis (`shared`). What a request may come to cost ([`Estimate`]) is held ([`Hold`]) from before it is sent until its cost is known.

mod estimate;
mod lease;
mod limiter;
mod purse;
mod window;

pub use estimate::{Bounds, Estimate};
pub use lease::{Lease, LeaseAnswer, LeaseAsk, LeaseBook, LeaseCounts, LeaseReturn, LeaseReturned, LeaseVerdict};
pub use limiter::{Denied, KeyLimiter, KeyLimits, Permit, TakenLimits, WindowView};
pub use purse::{Charge, Hold, HoldGauge, Purse, PurseUse, Spending, check_credit, no_credit};
pub use window::{WINDOW_SECONDS, Window};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic elsewhere: what these locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
