//! Months by the calendar: from a day to the same day of the next month, or to the month's last where it has no such day.
//!
//! Months are counted from the first day of all, not from the last: 31 January, 28 February, 31 March. All of it is UTC.

use time::{Date, Month, OffsetDateTime};

/// When so many months have passed since `anchor_ms`. A time beyond the calendar is the end of all times.
pub(super) fn months_after(anchor_ms: i64, months: i64) -> i64 {
    shifted(anchor_ms, months).unwrap_or(i64::MAX)
}

/// The month, counted from `anchor_ms`, that `at_ms` lies in: when it begins and when it ends. A moment at which one ends and the
/// next begins is the next's.
pub(super) fn month_of(anchor_ms: i64, at_ms: i64) -> (i64, i64) {
    let mut months = whole_months(anchor_ms, at_ms).max(0);
    while months > 0 && months_after(anchor_ms, months) > at_ms {
        months -= 1;
    }
    (months_after(anchor_ms, months), months_after(anchor_ms, months + 1))
}

/// How many turns of the calendar's page lie between.
fn whole_months(from_ms: i64, to_ms: i64) -> i64 {
    let page = |at_ms| time_of(at_ms).map(|at| i64::from(at.year()) * 12 + i64::from(u8::from(at.month())));
    page(to_ms).zip(page(from_ms)).map_or(0, |(to, from)| to - from)
}

fn shifted(anchor_ms: i64, months: i64) -> Option<i64> {
    let anchor = time_of(anchor_ms)?;
    let months = i64::from(anchor.year()) * 12 + i64::from(u8::from(anchor.month())) - 1 + months;
    let year = i32::try_from(months.div_euclid(12)).ok()?;
    let month = Month::try_from(u8::try_from(months.rem_euclid(12) + 1).ok()?).ok()?;
    let date = Date::from_calendar_date(year, month, anchor.day().min(month.length(year))).ok()?;
    let midnight_s = date.midnight().assume_utc().unix_timestamp();
    let of_day_ms = anchor_ms.rem_euclid(86_400_000);
    midnight_s.checked_mul(1_000)?.checked_add(of_day_ms)
}

fn time_of(at_ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(at_ms.div_euclid(1_000)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::format_description::well_known::Rfc3339;

    use super::*;

    fn at(text: &str) -> i64 {
        OffsetDateTime::parse(&format!("{text}:00Z"), &Rfc3339).unwrap().unix_timestamp() * 1_000
    }

    #[test]
    fn a_31st_is_every_months_last_day() {
        let anchor = at("2027-01-31T12:30");
        let ends = ["2027-02-28T12:30", "2027-03-31T12:30", "2027-04-30T12:30", "2027-05-31T12:30"];
        assert_eq!([1, 2, 3, 4].map(|months| months_after(anchor, months)), ends.map(at));
        assert_eq!(months_after(anchor, 13), at("2028-02-29T12:30"));
        assert_eq!(months_after(at("2026-12-15T00:00"), 1), at("2027-01-15T00:00"));
    }

    #[test]
    fn a_month_begins_where_the_one_before_ends() {
        let anchor = at("2027-01-31T12:30");
        let february = (at("2027-02-28T12:30"), at("2027-03-31T12:30"));
        for inside in ["2027-02-28T12:30", "2027-03-01T00:00", "2027-03-31T12:29"] {
            assert_eq!(month_of(anchor, at(inside)), february, "{inside}");
        }
        assert_eq!(month_of(anchor, at("2027-02-28T12:29")).1, february.0);
        assert_eq!(month_of(anchor, anchor), (anchor, february.0));
        assert_eq!(month_of(anchor, anchor - 1), (anchor, february.0), "there is none before the first");
    }

    #[test]
    fn times_beyond_the_calendar_end_nothing() {
        assert_eq!(months_after(i64::MAX, 1), i64::MAX);
        assert_eq!(months_after(at("9999-12-31T00:00"), 1), i64::MAX);
    }

    proptest! {
        #[test]
        fn every_moment_lies_in_its_month(anchor in 0i64..4_000_000_000_000, later in 0i64..400_000_000_000) {
            let at_ms = anchor + later;
            let (starts, ends) = month_of(anchor, at_ms);
            prop_assert!(starts <= at_ms && at_ms < ends, "{starts} {at_ms} {ends}");
            prop_assert!((27 * 86_400_000..=31 * 86_400_000).contains(&(ends - starts)));
        }
    }
}
