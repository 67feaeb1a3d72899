//! Amounts, counts and times as pages show them.

use crate::relay::meter::{NanoUsd, rfc3339};

const CENT: i64 = 10_000_000;

/// Exact, with the currency's sign and a comma between thousands.
pub(super) fn usd(amount: NanoUsd) -> String {
    let sign = if amount.0 < 0 { "-" } else { "" };
    let text = amount.to_string();
    let (dollars, fraction) = text.trim_start_matches('-').split_once('.').unwrap_or((&text, "00"));
    format!("{sign}${}.{fraction}", thousands(dollars))
}

/// To the cent, never more than there is, from a dollar on; exact below.
pub(super) fn usd_figure(amount: NanoUsd) -> String {
    let is_small = amount.0.unsigned_abs() < 100 * CENT.unsigned_abs();
    usd(if is_small { amount } else { NanoUsd(amount.0.div_euclid(CENT).saturating_mul(CENT)) })
}

/// With a comma between thousands.
pub(super) fn count(number: u64) -> String {
    thousands(&number.to_string())
}

fn thousands(digits: &str) -> String {
    let mut shown = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// So many requests.
pub(super) fn requests(number: u64) -> String {
    format!("{} {}", count(number), if number == 1 { "request" } else { "requests" })
}

/// A moment in UTC, for programs and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    /// RFC 3339.
    pub(super) exact: String,
    /// To the minute.
    pub(super) text: String,
}

impl Moment {
    /// Of milliseconds since the Unix epoch.
    pub(super) fn of(unix_ms: i64) -> Self {
        let exact = rfc3339(unix_ms);
        let text = exact.get(..16).unwrap_or_default().replace('T', " ");
        Self { exact, text }
    }

    /// The day alone, as `YYYY-MM-DD`.
    pub(super) fn day(&self) -> &str {
        self.exact.get(..10).unwrap_or_default()
    }

    /// The day on which the month of this moment begins, as `YYYY-MM-DD`.
    pub(super) fn first_of_month(&self) -> String {
        format!("{}-01", self.exact.get(..7).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_counts_and_times_as_people_read_them() {
        let exact = [1_500_000_000, -250_000_000, 1, -1_234_567_000_000_000].map(|nano| usd(NanoUsd(nano)));
        assert_eq!(exact, ["$1.50", "-$0.25", "$0.000000001", "-$1,234,567.00"]);
        let figures = [1_135_559_403_300, 999_999_999, -1_001_000_000].map(|nano| usd_figure(NanoUsd(nano)));
        assert_eq!(figures, ["$1,135.55", "$0.999999999", "-$1.01"]);
        assert_eq!(usd_figure(NanoUsd(i64::MIN)), "-$9,223,372,036.854775808", "there is no cent below");
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1, 2_000].map(requests), ["1 request", "2,000 requests"]);
        let moment = Moment::of(1_795_000_000_123);
        assert_eq!((&*moment.exact, &*moment.text), ("2026-11-18T11:06:40.123Z", "2026-11-18 11:06"));
        assert_eq!((moment.day(), &*moment.first_of_month()), ("2026-11-18", "2026-11-01"));
    }
}
