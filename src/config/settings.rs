//! The small tables: `[store]`, `[billing]`, `[limits]`. Every entry has a default.

use std::time::Duration;

use super::reader::{Table, Value};
use super::snapshot::{BillingConfig, Durability, Limits, Share, StoreConfig};
use super::{secret, sink};
use crate::relay::route::Secret;

/// The longest time limit that is believed, in seconds; more is a slip of the unit.
pub(super) const SECONDS_MAX: u64 = 86_400;

pub(super) fn store(value: &Value<'_>) -> Option<StoreConfig> {
    let table = value.table()?;
    let mut store = StoreConfig::default();
    let url = table.optional("url").map(|url| store_url(&url));
    if let Some(seconds) = table.optional("grace_seconds_max").and_then(|value| value.number(1..=SECONDS_MAX)) {
        store.grace_max = Duration::from_secs(seconds);
    }
    table.finish();
    match url {
        Some(url) => Some(StoreConfig { url: url?, ..store }),
        None => Some(store),
    }
}

/// The URL may hold a password, so it is not repeated, and one that does comes from where secrets are.
fn store_url(value: &Value<'_>) -> Option<String> {
    const MEND: &str = r#"write "sqlite://data/tollgate.db" (relative to the working directory), "sqlite:///absolute/path" or "postgres://USER@HOST/DATABASE""#;
    let secret = if value.is_string() { None } else { Some(secret::required(value)?) };
    let url = match &secret {
        Some(secret) => secret.expose(),
        None => value.string()?,
    };
    if let Some(rest) = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")) {
        let (address, options) = rest.split_once('?').unwrap_or((rest, ""));
        let has_password = address.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
            || options.split('&').any(|option| option.starts_with("password="));
        if has_password && secret.is_none() {
            return value.refuse(
                "holds a password, which does not stand in a configuration; write url = { env = \"NAME\" }, \
                 { file = \"PATH\" } or { credential = \"NAME\" }, and the whole URL there",
            );
        }
        if address.split_once('/').is_none_or(|(_, database)| database.is_empty()) {
            return value.refuse("names no database; write \"postgres://USER@HOST/DATABASE\"");
        }
        return Some(url.to_owned());
    }
    match url.strip_prefix("sqlite://") {
        Some(path) if path.is_empty() || path.ends_with('/') => value.refuse(format_args!("names no file; {MEND}")),
        Some(path) if path.contains(['?', '#']) => value.refuse(format_args!("takes no options; {MEND}")),
        Some(_) => Some(url.to_owned()),
        None => value.refuse(format_args!("is not a store that is known; {MEND}")),
    }
}

pub(super) fn billing(value: &Value<'_>) -> Option<BillingConfig> {
    let table = value.table()?;
    let mut billing = BillingConfig::default();
    if let Some(spool) = table.optional("spool").and_then(|value| value.string()) {
        billing.spool = spool.into();
    }
    if let Some(bytes) = table.optional("spool_bytes_max").and_then(|value| value.number(1 << 20..=1 << 50)) {
        billing.spool_bytes_max = bytes;
    }
    if let Some(durability) = table.optional("durability").and_then(|value| durability(&value)) {
        billing.durability = durability;
    }
    if let Some(seconds) = table.optional("drain_seconds_max").and_then(|value| value.number(0..=3_600)) {
        billing.drain_max = Duration::from_secs(seconds);
    }
    if let Some(currency) = table.optional("currency")
        && currency.string().is_some_and(|name| name != "USD")
    {
        currency.report("prices and balances are in USD; write \"USD\", or remove the line");
    }
    if let Some(sinks) = table.optional("sink") {
        billing.sinks = sink::read_all(&sinks);
        if billing.sinks.iter().any(|sink| sink.path() == Some(&billing.spool)) {
            sinks.report("one of them is the spool's own file; give it another path");
        }
    }
    table.finish();
    Some(billing)
}

fn durability(value: &Value<'_>) -> Option<Durability> {
    match value.string()? {
        "process" => Some(Durability::Process),
        "power" => Some(Durability::Power),
        _ => value
            .refuse("is not known; write \"process\" (survives kill -9) or \"power\" (survives a power cut, slower)"),
    }
}

/// `[admin]`: what the admin API asks of who uses it.
pub(super) fn admin(value: &Value<'_>) -> Option<Secret> {
    let table = value.table()?;
    let token = table.required("token", "write token = { env = \"TOLLGATE_ADMIN_TOKEN\" }");
    let token = token.and_then(|value| secret::required(&value));
    table.finish();
    token
}

pub(super) fn limits(value: &Value<'_>) -> Option<Limits> {
    let table = value.table()?;
    let mut limits = Limits::default();
    if let Some(bytes) = table.optional("request_bytes_max").and_then(|value| value.number(1024..=1 << 30)) {
        limits.request_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
    }
    set_seconds(&table, "header_seconds_max", &mut limits.header_max);
    set_seconds(&table, "body_idle_seconds_max", &mut limits.body_idle_max);
    set_seconds(&table, "body_total_seconds_max", &mut limits.body_total_max);
    if let Some(seconds) = table.optional("stream_silence_seconds_max").and_then(|value| value.number(0..=3_600)) {
        limits.stream_silence_max = Duration::from_secs(seconds);
    }
    set_seconds(&table, "shutdown_seconds_max", &mut limits.shutdown_max);
    set_seconds(&table, "keep_alive_seconds_max", &mut limits.keep_alive_max);
    if let Some(share) = table.optional("memory_share_max").and_then(|value| share(&value)) {
        limits.memory_share_max = share;
    }
    set_count(&table, "connections_per_ip_max", &mut limits.connections_per_ip_max);
    set_count(&table, "requests_in_flight_max", &mut limits.requests_in_flight_max);
    set_count(&table, "failed_auth_per_minute_max", &mut limits.failed_auth_per_minute_max);
    table.finish();
    Some(limits)
}

/// A part of a whole, written as prices are: a decimal in quotes, exact.
fn share(value: &Value<'_>) -> Option<Share> {
    const MEND: &str = r#"write a decimal from "0.0001" to "1", such as "0.85""#;
    if !value.is_string() {
        return value.refuse(format_args!("must be a string, not {}; {MEND}", value.type_name()));
    }
    let text = value.string()?;
    let millionths = match text.split_once('.') {
        Some((whole, fraction)) if (1..=6).contains(&fraction.len()) => digits(&format!("{whole}{fraction:0<6}")),
        Some(_) => None,
        None => digits(&format!("{text}000000")),
    };
    match millionths {
        Some(millionths @ 100..=1_000_000) => Some(Share(millionths)),
        _ => value.refuse(format_args!("is {text:?}; {MEND}")),
    }
}

fn digits(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Takes a time limit in whole seconds, where there is one.
pub(super) fn set_seconds(table: &Table<'_>, key: &'static str, limit: &mut Duration) {
    if let Some(seconds) = table.optional(key).and_then(|value| value.number(1..=SECONDS_MAX)) {
        *limit = Duration::from_secs(seconds);
    }
}

fn set_count(table: &Table<'_>, key: &'static str, limit: &mut u32) {
    if let Some(count) = table.optional(key).and_then(|value| value.count()) {
        *limit = count;
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn read<T>(toml: &str, read: impl FnOnce(&Value<'_>) -> Option<T>) -> (Option<T>, String) {
        let mut found = None;
        let mistakes = with_root(toml, &|_| None, |root| {
            found = root.required("it", "").and_then(|value| read(&value));
        });
        (found, mistakes_of(&mistakes))
    }

    #[test]
    fn empty_tables_are_the_defaults() {
        assert_eq!(read("[it]", store), (Some(StoreConfig::default()), String::new()));
        assert_eq!(read("[it]", billing), (Some(BillingConfig::default()), String::new()));
        assert_eq!(read("[it]", limits), (Some(Limits::default()), String::new()));
    }

    #[test]
    fn store_urls_are_files_or_databases() {
        for url in ["sqlite:///var/lib/t.db", "postgres://u@host:5433/db", "postgresql:///db?host=/run/postgresql"] {
            assert_eq!(read(&format!("it = {{ url = '{url}' }}"), store).0.unwrap().url, url);
        }
        for (url, told) in [
            ("postgres://u:hunter2@host/db", "holds a password"),
            ("postgres://u@host/db?sslmode=require&password=hunter2", "holds a password"),
            ("postgres://u@host", "names no database"),
            ("postgres://host/?user=u", "names no database"),
            ("sqlite://", "names no file"),
            ("sqlite://dir/", "names no file"),
            ("sqlite://a.db?mode=ro", "no options"),
            ("/var/lib/t.db", "not a store that is known"),
        ] {
            let (store, message) = read(&format!("it = {{ url = '{url}' }}"), store);
            assert_eq!(store, None);
            assert!(message.contains(told) && !message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn a_store_url_with_a_password_comes_from_where_secrets_are() {
        let url = "postgres://u:hunter2@host/db";
        let environment = |name: &str| (name == "STORE").then(|| OsString::from(url));
        for (toml, is_there) in [("it = { url = { env = 'STORE' } }", true), ("it = { url = { env = 'ELSE' } }", false)]
        {
            let mut found = None;
            let mistakes = with_root(toml, &environment, |root| {
                found = root.required("it", "").and_then(|value| store(&value));
            });
            assert_eq!(found.as_ref().map(|store| &*store.url), is_there.then_some(url));
            let told = format!("{found:?} {}", mistakes_of(&mistakes));
            assert!(!told.contains("hunter2") && told.contains("ELSE") != is_there, "{told}");
        }
    }

    #[test]
    fn limits_of_zero_are_refused() {
        let keys = [
            "request_bytes_max",
            "header_seconds_max",
            "body_idle_seconds_max",
            "body_total_seconds_max",
            "keep_alive_seconds_max",
            "connections_per_ip_max",
            "requests_in_flight_max",
            "failed_auth_per_minute_max",
        ];
        for key in keys {
            let (_, told) = read(&format!("[it]\n{key} = 0"), limits);
            assert!(told.starts_with(&format!("test.toml:2: it.{key}: is 0; ")), "{told}");
        }
    }

    #[test]
    fn shares_are_decimals_of_a_whole() {
        for (text, millionths) in [("0.85", 850_000), ("1", 1_000_000), ("1.0", 1_000_000), ("0.0001", 100)] {
            let (found, told) = read(&format!("[it]\nmemory_share_max = \"{text}\""), limits);
            assert_eq!((found.unwrap().memory_share_max, told.as_str()), (Share(millionths), ""), "{text}");
        }
        for wrong in
            ["0.85", "\"85\"", "\"0\"", "\"1.1\"", "\"0.\"", "\"-0.5\"", "\"85%\"", "\"0.00001\"", "\"0.1234567\""]
        {
            let (_, told) = read(&format!("[it]\nmemory_share_max = {wrong}"), limits);
            assert!(told.contains("it.memory_share_max: ") && told.contains("such as \"0.85\""), "{wrong}: {told}");
        }
        assert_eq!(Share(850_000).of(u64::MAX / 2), 7_839_866_231_326_559_435);
    }

    #[test]
    fn sinks_are_a_part_of_billing() {
        let toml = "[it]\nspool = 's'\n[[it.sink]]\nkind = 'file'\npath = 'a'";
        let (found, told) = read(toml, billing);
        assert_eq!((found.unwrap().sinks.len(), told.as_str()), (1, ""));
        let (_, told) = read(&toml.replace("'a'", "'s'"), billing);
        assert!(told.starts_with("test.toml:3: it.sink: one of them is the spool's own file; "), "{told}");
    }

    #[test]
    fn what_is_not_built_is_refused() {
        assert!(read("it = { currency = 'EUR' }", billing).1.contains("USD"));
        assert!(read("it = { durability = 'none' }", billing).1.contains("\"power\""));
    }
}
