//! What a key may take: requests and tokens of its windows, requests at once, and its account's credit.
//!
//! Windows and counts are exact and belong to one key in this process; how several nodes share them is not known here. The
//! credit is what is left, not what a request may come to cost: holds are absent yet, [`Purse`] is their place.

mod limiter;
mod purse;
mod window;

pub use limiter::{KeyLimiter, KeyLimits, Permit, WindowView};
pub use purse::{Charge, Hold, Purse, Spending, check_credit};
pub use window::{WINDOW_SECONDS, Window};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic elsewhere: what these locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
