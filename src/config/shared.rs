//! `[shared]`: what several nodes have in common besides their store. Where it stands, they lease credit; where it names Redis, they
//! share the windows of keys.

use std::time::Duration;

use super::reader::{Table, Value};
use super::secret;
use crate::relay::route::Secret;

/// The longest name of a node.
const NAME_BYTES_MAX: usize = 64;
/// How long leases last that are not renewed.
const LEASE_SECONDS: u64 = 30;
/// How long a request waits for Redis.
const WAIT_MS: u64 = 20;
/// More nodes than anybody has is a slip.
const NODES_MAX: u64 = 10_000;

/// `[shared]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedConfig {
    /// Whether nodes lease credit.
    pub leases: bool,
    /// How long leases last that are not renewed.
    pub lease: Duration,
    /// What this node is called, where it is not by its host.
    pub node: Option<Box<str>>,
    /// Where nodes share the windows of keys, if they do.
    pub redis: Option<RedisConfig>,
}

impl Default for SharedConfig {
    fn default() -> Self {
        Self { leases: true, lease: Duration::from_secs(LEASE_SECONDS), node: None, redis: None }
    }
}

/// Where nodes share the windows of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// `redis://` or `rediss://`, with a host and without user and password.
    pub url: Box<str>,
    /// Who logs in there.
    pub username: Option<Box<str>>,
    /// By what.
    pub password: Option<Secret>,
    /// How many nodes there are at least.
    pub nodes: u32,
    /// How long a request waits for Redis.
    pub wait_max: Duration,
}

/// Reads `[shared]`.
pub(super) fn read(value: &Value<'_>) -> Option<SharedConfig> {
    let table = value.table()?;
    let leases = table.optional("leases").map_or(Some(true), |value| value.boolean());
    let lease = table.optional("lease_seconds").map_or(Some(LEASE_SECONDS), |value| value.number(2..=600));
    let node = text_of(&table, "node");
    let redis = match table.optional("redis") {
        Some(value) => redis(&table, &value).map(Some),
        None => Some(None),
    };
    table.finish();
    Some(SharedConfig { leases: leases?, lease: Duration::from_secs(lease?), node: node?, redis: redis? })
}

fn redis(table: &Table<'_>, redis: &Value<'_>) -> Option<RedisConfig> {
    let url = url(redis);
    let username = text_of(table, "username");
    let password = match table.optional("password") {
        Some(value) => secret::required(&value).map(Some),
        None => Some(None),
    };
    let nodes = table.optional("nodes").map_or(Some(1), |value| value.number(1..=NODES_MAX));
    let wait = table.optional("wait_milliseconds_max").map_or(Some(WAIT_MS), |value| value.number(1..=1_000));
    Some(RedisConfig {
        url: url?,
        username: username?,
        password: password?,
        nodes: u32::try_from(nodes?).unwrap_or(u32::MAX),
        wait_max: Duration::from_millis(wait?),
    })
}

/// It may hold a password, so it is not repeated.
fn url(value: &Value<'_>) -> Option<Box<str>> {
    const FORM: &str = "is not a redis:// or rediss:// URL with a host; write one such as \"redis://127.0.0.1:6379/0\"";
    let text = value.string()?;
    if text.contains('@') {
        return value.refuse("holds a user or password; remove it and use username and password = { env = \"NAME\" }");
    }
    if text.contains(['?', '#']) {
        return value.refuse("holds a query or fragment; end it after the database's number");
    }
    let Some(rest) = text.strip_prefix("redis://").or_else(|| text.strip_prefix("rediss://")) else {
        return value.refuse(FORM);
    };
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let has_host = authority.parse::<http::uri::Authority>().is_ok_and(|authority| {
        let port = authority.as_str().get(authority.host().len()..).unwrap_or_default();
        !authority.host().is_empty() && (port.is_empty() || authority.port_u16().is_some_and(|port| port != 0))
    });
    if !has_host || !(database.is_empty() || database.parse::<u16>().is_ok()) {
        return value.refuse(FORM);
    }
    Some(text.into())
}

/// A word that the store, Redis and the log get to see; `Some(None)` where there is none.
fn text_of(table: &Table<'_>, key: &'static str) -> Option<Option<Box<str>>> {
    let Some(value) = table.optional(key) else { return Some(None) };
    let text = value.string()?;
    if text.len() > NAME_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return value.refuse("must be 1 to 64 visible ASCII characters; mend it");
    }
    Some(Some(text.into()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn environment(name: &str) -> Option<OsString> {
        (name == "REDIS_PASSWORD").then(|| "hunter2".into())
    }

    fn with(lines: &str) -> (Option<SharedConfig>, String) {
        let mut found = None;
        let mistakes = with_root(&format!("[shared]\n{lines}"), &environment, |root| {
            found = root.optional("shared").and_then(|value| read(&value));
        });
        (found, mistakes_of(&mistakes))
    }

    #[test]
    fn nodes_lease_where_the_table_stands() {
        assert_eq!(with(""), (Some(SharedConfig::default()), String::new()));
        let (found, told) = with("lease_seconds = 2\nnode = \"eu-1\"");
        let expected =
            SharedConfig { lease: Duration::from_secs(2), node: Some("eu-1".into()), ..SharedConfig::default() };
        assert_eq!((found, told.as_str()), (Some(expected), ""));
    }

    #[test]
    fn leases_that_cannot_be_renewed_in_time_are_refused() {
        for line in ["lease_seconds = 1", "lease_seconds = 9_000", "node = \"\"", "node = \"a b\"", "leases = 1"] {
            assert!(with(line).1.starts_with("test.toml:2: shared."), "{line}");
        }
    }

    #[test]
    fn what_is_redis_alone_is_not_known_without_it() {
        assert!(with("password = { env = 'REDIS_PASSWORD' }").1.contains("\"shared.password\""));
    }

    #[test]
    fn an_address_suffices() {
        let (found, mistakes) = with("redis = 'redis://127.0.0.1:6379'");
        let redis = RedisConfig {
            url: "redis://127.0.0.1:6379".into(),
            username: None,
            password: None,
            nodes: 1,
            wait_max: Duration::from_millis(20),
        };
        let usual = SharedConfig { redis: Some(redis), ..SharedConfig::default() };
        assert_eq!((found, mistakes.as_str()), (Some(usual), ""));
        for url in ["redis://cache", "rediss://cache.example:6380/3", "redis://[::1]:6379/"] {
            assert_eq!(&*with(&format!("redis = '{url}'")).0.unwrap().redis.unwrap().url, url);
        }
    }

    #[test]
    fn everything_can_be_said_and_the_password_is_not_shown() {
        let (found, mistakes) = with(
            "redis = 'rediss://cache:6380/1'\nusername = 'tollgate'\npassword = { env = 'REDIS_PASSWORD' }\n\
             node = 'relay-1'\nnodes = 3\nwait_milliseconds_max = 50",
        );
        assert_eq!(mistakes, "");
        let found = found.unwrap();
        let redis = found.redis.as_ref().unwrap();
        assert_eq!(redis.password.as_ref().unwrap().expose(), "hunter2");
        assert_eq!((found.node.as_deref(), redis.nodes, redis.wait_max.as_millis()), (Some("relay-1"), 3, 50));
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_not_repeated() {
        for url in [
            "redis://u:hunter2@h",
            "http://hunter2",
            "redis://",
            "redis://hunter2:0",
            "redis://h:hunter2",
            "rediss://h/hunter2",
            "rediss://h/#hunter2",
            "unix:///hunter2",
        ] {
            let (found, mistakes) = with(&format!("redis = '{url}'"));
            assert!(found.is_none() && mistakes.starts_with("test.toml:2: shared.redis: "), "{url}: {mistakes}");
            assert!(!mistakes.contains("hunter2") && mistakes.contains(';'), "{mistakes}");
        }
        for (line, told) in [
            ("nodes = 0", "shared.nodes: is 0; "),
            ("node = ''", "shared.node: is empty"),
            ("node = 'a b'", "shared.node: must be 1 to 64"),
            ("wait_milliseconds_max = 0", "shared.wait_milliseconds_max: is 0; "),
            ("password = 'hunter2'", "shared.password: a secret does not stand"),
            ("url = 'hunter2'", "\"shared.url\""),
        ] {
            let (_, mistakes) = with(&format!("redis = 'redis://h'\n{line}"));
            assert!(mistakes.starts_with("test.toml:3: ") && mistakes.contains(told), "{mistakes}");
            assert!(!mistakes.contains("hunter2"), "{mistakes}");
        }
    }
}
