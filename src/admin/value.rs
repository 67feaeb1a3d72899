//! Values as people write them, on the command line and in the admin API: what is refused by one is refused by the other.
//!
//! Each error says what is asked for; the value is not repeated.

use std::net::IpAddr;

use ipnet::IpNet;
use time::format_description::well_known::Rfc3339;
use time::macros::{format_description, time};
use time::{Date, OffsetDateTime};

use super::sale::VOUCHER_AMOUNT_MAX;
use crate::relay::meter::{NanoUsd, parse_nano_usd};

const NAME_CHARACTERS_MAX: usize = 200;
/// What mail allows.
const EMAIL_BYTES_MAX: usize = 254;

/// A name or note: something to read, on one line.
pub fn name(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if text.is_empty() {
        return Err("must not be empty");
    }
    if text.chars().any(char::is_control) || text.chars().count() > NAME_CHARACTERS_MAX {
        return Err("must be one line of at most 200 characters");
    }
    Ok(text.to_owned())
}

/// An e-mail address, in lower case. What is before and after the @ is the mail server's affair.
pub fn email(text: &str) -> Result<String, &'static str> {
    let text = text.trim().to_lowercase();
    let (local, domain) = text.rsplit_once('@').unwrap_or_default();
    let is_address = !local.is_empty()
        && !domain.is_empty()
        && text.len() <= EMAIL_BYTES_MAX
        && !text.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | '"' | ','));
    if is_address { Ok(text) } else { Err("must be an e-mail address, as ada@example.com") }
}

/// An amount that moves a balance: decimal USD, either sign, not zero.
pub fn amount(text: &str) -> Result<NanoUsd, &'static str> {
    match parse_nano_usd(text) {
        Some(0) => Err("an amount of 0 changes nothing"),
        Some(nano) => Ok(NanoUsd(nano)),
        None => Err("must be decimal USD with at most 9 places after the point, as 5.00 or -0.25"),
    }
}

/// A budget: decimal USD, not negative.
pub fn budget(text: &str) -> Result<NanoUsd, &'static str> {
    match parse_nano_usd(text) {
        Some(nano) if nano >= 0 => Ok(NanoUsd(nano)),
        _ => Err("must be decimal USD, 0 or more, with at most 9 places after the point, as 25.00"),
    }
}

/// What a voucher is worth: decimal USD, more than 0.
pub fn voucher_amount(text: &str) -> Result<NanoUsd, &'static str> {
    match parse_nano_usd(text) {
        Some(nano) if nano > 0 && NanoUsd(nano) <= VOUCHER_AMOUNT_MAX => Ok(NanoUsd(nano)),
        _ => Err("must be decimal USD, more than 0 and at most 1000, with at most 9 places after the point, as 10.00"),
    }
}

/// A network, or a single address.
pub fn network(text: &str) -> Result<IpNet, &'static str> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network
        .map(|network| network.trunc())
        .map_err(|_| "must be an address or a network in CIDR notation, as 203.0.113.0/24 or 2001:db8::/32")
}

/// A moment to come or gone: RFC 3339. Milliseconds since the Unix epoch.
pub fn moment(text: &str) -> Result<i64, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .and_then(to_unix_ms)
        .ok_or("must be an RFC 3339 time, as 2027-01-31T12:00:00Z")
}

/// Since when or until when: RFC 3339, a UTC date, or so long before `now_ms`. Milliseconds since the Unix epoch.
pub fn since(text: &str, now_ms: i64) -> Result<i64, &'static str> {
    let date = || {
        let date = Date::parse(text, format_description!("[year]-[month]-[day]")).ok()?;
        to_unix_ms(date.with_time(time!(0:00)).assume_utc())
    };
    moment(text)
        .ok()
        .or_else(date)
        .or_else(|| now_ms.checked_sub(duration_ms(text)?))
        .ok_or("must be an RFC 3339 time, a date as 2027-01-31, or how long ago as 30m, 24h or 7d")
}

fn duration_ms(text: &str) -> Option<i64> {
    let unit = text.chars().next_back()?;
    let unit_ms = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    let count: u32 = text.strip_suffix(unit)?.parse().ok()?;
    i64::from(count).checked_mul(unit_ms)
}

fn to_unix_ms(time: OffsetDateTime) -> Option<i64> {
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::meter::rfc3339;

    #[test]
    fn amounts_and_budgets() {
        assert_eq!(amount("-0.25"), Ok(NanoUsd(-250_000_000)));
        assert_eq!(budget("0"), Ok(NanoUsd(0)));
        assert!(amount("0.00").is_err() && amount("5 USD").is_err() && budget("-1").is_err());
    }

    #[test]
    fn names_are_one_line_to_read() {
        assert_eq!(name(" Ada & Co. \u{e9}").as_deref(), Ok("Ada & Co. \u{e9}"));
        for text in ["", "  ", "two\nlines", "\u{1b}[31mred", &"x".repeat(201)] {
            assert!(name(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_are_in_lower_case() {
        assert_eq!(email(" Ada@Example.COM ").as_deref(), Ok("ada@example.com"));
        assert_eq!(email("operator@localhost").as_deref(), Ok("operator@localhost"));
        for text in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "a b@c",
            "a@b\nc",
            "Ada <ada@example.com>",
            &format!("{}@b", "x".repeat(254)),
        ] {
            assert!(email(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn networks_and_single_addresses() {
        for (text, read) in [
            ("203.0.113.7", "203.0.113.7/32"),
            ("203.0.113.7/24", "203.0.113.0/24"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), read);
        }
        assert!(network("203.0.113.0/33").is_err() && network("example.com").is_err());
    }

    #[test]
    fn times_are_read_in_any_zone_and_printed_in_utc() {
        assert_eq!(moment("1970-01-01T01:00:00.5+01:00"), Ok(500));
        assert_eq!(rfc3339(500), "1970-01-01T00:00:00.500Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(moment(&rfc3339(1_795_000_000_123)), Ok(1_795_000_000_123));
        assert!(moment("2027-01-31").is_err() && moment("tomorrow").is_err());
    }

    #[test]
    fn since_takes_a_time_a_date_or_an_age() {
        assert_eq!(since("1970-01-02", 0), Ok(86_400_000));
        assert_eq!(since("1970-01-02T00:00:01Z", 0), Ok(86_401_000));
        assert_eq!(since("24h", 86_400_007), Ok(7));
        assert_eq!(
            [duration_ms("90s"), duration_ms("30m"), duration_ms("7d")],
            [Some(90_000), Some(1_800_000), Some(604_800_000)]
        );
        for text in ["", "h", "-1h", "1.5h", "24", "24 h", "1w", "7\u{e9}", "2027-13-01", "99999999999d"] {
            assert!(since(text, 0).is_err(), "{text:?}");
        }
    }
}
