//! What a `Retry-After` says.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

/// Milliseconds from now, where it is seconds or a date, as HTTP has them. `now_unix_ms` is the wall clock's.
pub fn retry_after_ms(text: &str, now_unix_ms: i64) -> Option<u64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    if let Some((seconds, fraction)) = text.split_once('.')
        && fraction.bytes().all(|byte| byte.is_ascii_digit())
    {
        // Not HTTP, but said: to be rounded up.
        return seconds.parse::<u64>().ok().map(|seconds| seconds.saturating_add(1).saturating_mul(1000));
    }
    // HTTP's dates are mail's, but for the name of the zone.
    let date = OffsetDateTime::parse(&text.replace("GMT", "+0000"), &Rfc2822).ok()?;
    let from_now_ms = date.unix_timestamp().saturating_mul(1000).saturating_sub(now_unix_ms);
    Some(u64::try_from(from_now_ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read() {
        let now_unix_ms = 1_445_412_480_000;
        for (text, expected) in [
            ("7", Some(7_000)),
            (" 0 ", Some(0)),
            ("1.5", Some(2_000)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30_000)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(retry_after_ms(text, now_unix_ms), expected, "{text}");
        }
    }
}
