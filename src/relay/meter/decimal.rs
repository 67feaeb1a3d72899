//! Amounts of money as people write them: decimal US dollars to whole nano-USD and back, exactly.
//!
//! Deliberately absent: floats, exponents, currency signs, digit grouping and rounding. What cannot be held exactly is
//! not an amount.

use std::fmt;

use super::NanoUsd;

const NANO_DIGITS: usize = 9;
const NANO_PER_USD: u64 = 1_000_000_000;

/// Reads decimal US dollars (`12`, `-0.5`, `3.000000001`) as nano-USD.
///
/// `None` unless it is an optional minus, one or more digits, and optionally a point with one to nine digits, within
/// what an `i64` of nano-USD holds (about 9.2 billion dollars).
pub fn parse_nano_usd(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match unsigned.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (unsigned, None),
    };
    let fraction_nano = match fraction {
        None => 0,
        Some(digits) if digits.len() <= NANO_DIGITS => {
            let padding = NANO_DIGITS - digits.len();
            parse_digits(digits)? * 10_i128.pow(u32::try_from(padding).ok()?)
        }
        Some(_) => return None,
    };
    let magnitude = parse_digits(whole)?.checked_mul(i128::from(NANO_PER_USD))?.checked_add(fraction_nano)?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// One or more ASCII digits and nothing else; `str::parse` alone would take a sign.
fn parse_digits(digits: &str) -> Option<i128> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
}

/// Decimal US dollars without a currency sign, exact: at least two digits after the point, at most nine.
impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.unsigned_abs();
        let fraction = format!("{:09}", magnitude % NANO_PER_USD);
        let significant = fraction.trim_end_matches('0').len().max(2);
        let decimal = format!("{}.{}", magnitude / NANO_PER_USD, &fraction[..significant]);
        f.pad_integral(self.0 >= 0, "", &decimal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, nano) in [
            ("0", 0),
            ("-0", 0),
            ("5", 5_000_000_000),
            ("5.00", 5_000_000_000),
            ("0.30", 300_000_000),
            ("0.000000001", 1),
            ("-12.5", -12_500_000_000),
            ("007.10", 7_100_000_000),
            ("9223372036.854775807", i64::MAX),
            ("-9223372036.854775808", i64::MIN),
        ] {
            assert_eq!(parse_nano_usd(text), Some(nano), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_an_exact_amount() {
        for text in [
            "",
            "-",
            ".",
            "5.",
            ".5",
            "+5",
            "--5",
            "5.-1",
            "-.5",
            "1e3",
            "1_000",
            "1,5",
            "$5",
            " 5",
            "5 ",
            "0.0000000001",
            "0.1234567890",
            "9223372036.854775808",
            "-9223372036.854775809",
            "99999999999999999999999999999999999999999999",
            "٣",
            "NaN",
            "inf",
        ] {
            assert_eq!(parse_nano_usd(text), None, "{text}");
        }
    }

    #[test]
    fn shows_cents_always_and_more_where_there_is_more() {
        for (nano, text) in [
            (0, "0.00"),
            (5_000_000_000, "5.00"),
            (300_000_000, "0.30"),
            (-1, "-0.000000001"),
            (123_000, "0.000123"),
            (i64::MAX, "9223372036.854775807"),
            (i64::MIN, "-9223372036.854775808"),
        ] {
            assert_eq!(NanoUsd(nano).to_string(), text);
        }
        assert_eq!(format!("{:>8}|{:<8}|", NanoUsd(-500_000_000), NanoUsd(1_000_000_000)), "   -0.50|1.00    |");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(nano: i64) {
            prop_assert_eq!(parse_nano_usd(&NanoUsd(nano).to_string()), Some(nano));
        }

        #[test]
        fn no_text_panics(text in "[-0-9.]{0,40}|.{0,12}") {
            let _ = parse_nano_usd(&text);
        }
    }
}
