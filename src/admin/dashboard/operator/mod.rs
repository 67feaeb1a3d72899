//! The operator's pages: accounts and their money, all keys, what is earned against what providers charge, how providers and the process
//! are, who changed what.
//!
//! Whatever is changed here is changed in the name of who is signed in, and taken over by this process at once.

mod account;
mod accounts;
mod audit;
mod configuration;
mod keys;
mod live;
mod providers;
mod revenue;

use super::map::Map;
use super::shown::{Moment, usd};

pub(super) use self::live::Looks;

pub(super) fn map(map: Map) -> Map {
    map.with(accounts::map)
        .with(account::map)
        .with(keys::map)
        .with(revenue::map)
        .with(providers::map)
        .with(live::map)
        .with(audit::map)
        .with(configuration::map)
}

/// Rows on a page.
const ROWS: u32 = 50;

/// Rows of which one more than [`ROWS`] was asked for, cut to a page, and the id after which the next page begins.
fn cut<T>(mut rows: Vec<T>, id: impl Fn(&T) -> &str) -> (Vec<T>, Option<String>) {
    let has_more = rows.len() > ROWS as usize;
    rows.truncate(ROWS as usize);
    let next = rows.last().filter(|_| has_more).map(|last| id(last).to_owned());
    (rows, next)
}

/// The address of a page of a list, with what is not empty of its query.
fn address(path: &str, query: &[(&str, &str)]) -> String {
    let given: Vec<_> = query.iter().filter(|(_, value)| !value.is_empty()).collect();
    match serde_urlencoded::to_string(given) {
        Ok(query) if !query.is_empty() => format!("{path}?{query}"),
        _ => path.to_owned(),
    }
}

/// A time as pages show it.
fn moment(unix_ms: i64) -> String {
    Moment::of(unix_ms).text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_say_where_the_next_one_begins() {
        let ids: Vec<String> = (0..=ROWS).map(|at| format!("{at:02}")).collect();
        let (rows, next) = cut(ids.clone(), |id| id);
        assert_eq!((rows.len(), next.as_deref()), (50, Some("49")));
        assert_eq!(cut(ids[..50].to_vec(), |id| id).1, None);
        assert_eq!(address("/k", &[("q", "a b&c"), ("after", "")]), "/k?q=a+b%26c");
        assert_eq!(address("/k", &[("q", "")]), "/k");
    }
}
