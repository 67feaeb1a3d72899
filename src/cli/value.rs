//! Values as people write them on the command line, and as they are printed. The rules are `admin`'s.

use super::store::now_ms;
pub(super) use crate::admin::value::{amount, budget, email, moment, name, network, voucher_amount};
pub(super) use crate::relay::meter::rfc3339;

/// Since when: RFC 3339, a UTC date, or so long ago. Milliseconds since the Unix epoch.
pub(super) fn since(text: &str) -> Result<i64, &'static str> {
    crate::admin::value::since(text, now_ms())
}
