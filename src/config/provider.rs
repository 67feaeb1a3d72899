//! `[[provider]]`: who delivers, where, in which dialect, with which credentials.

use std::time::Duration;

use super::draft::Row;
use super::plan::name;
use super::reader::{Table, Value};
use super::secret::{self, Credential};
use super::settings::set_seconds;
use crate::relay::route::{Address, Dialect, Endpoint, Provider, ProviderTimes, Quirk, Quirks, Secret};

/// The provider inside this process.
const DEMO: &str = "builtin:demo";

/// A provider as written; which of its credentials are there is decided by who asks.
pub(super) struct ProviderRow {
    pub(super) dialect: Dialect,
    pub(super) endpoint: Endpoint,
    pub(super) credentials: Vec<Credential>,
    pub(super) quirks: Quirks,
    pub(super) times: ProviderTimes,
    pub(super) breaker: bool,
}

impl ProviderRow {
    pub(super) fn into_provider(self, name: Box<str>) -> Provider {
        let ready = |credential| match credential {
            Credential::Ready(secret) => Some(secret),
            Credential::Missing { .. } => None,
        };
        let credentials: Vec<Secret> = self.credentials.into_iter().filter_map(ready).collect();
        let Self { dialect, endpoint, quirks, times, breaker, .. } = self;
        Provider { name: name.into(), dialect, endpoint, credentials, quirks, times, breaker }
    }
}

pub(super) fn read(value: &Value<'_>) -> Option<Row<ProviderRow>> {
    let table = value.table()?;
    let name = table.required("name", "name the provider").and_then(|value| name(&value));
    let content = content(&table);
    table.finish();
    Some(Row { name: name?, place: value.place().clone(), content })
}

fn content(table: &Table<'_>) -> Option<ProviderRow> {
    let dialect = table.required("dialect", "write \"openai\", \"anthropic\" or \"gemini\"");
    let dialect = dialect.and_then(|value| {
        let known = value.string()?.parse().ok();
        known.or_else(|| value.refuse("is not a dialect that is known; write \"openai\", \"anthropic\" or \"gemini\""))
    });
    let base_url =
        table.required("base_url", "write where the provider's API is, such as \"https://api.openai.com/v1\"");
    let endpoint = base_url.as_ref().and_then(endpoint);
    let is_demo = endpoint == Some(Endpoint::Demo);
    let credentials = credentials(table, is_demo);
    if let (Some(base_url), true, Some(Dialect::Anthropic | Dialect::Gemini)) = (&base_url, is_demo, dialect) {
        base_url.report("the demo speaks OpenAI's dialect; write dialect = \"openai\"");
    }
    let quirks = quirks(table, dialect);
    let mut times = ProviderTimes::default();
    let time = |key, limit: &mut Duration| set_seconds(table, key, limit);
    time("connect_seconds_max", &mut times.connect);
    time("first_byte_seconds_max", &mut times.first_byte);
    time("idle_seconds_max", &mut times.idle);
    time("total_seconds_max", &mut times.total);
    let breaker = table.optional("breaker").map_or(Some(true), |value| value.boolean());
    Some(ProviderRow {
        dialect: dialect?,
        endpoint: endpoint?,
        credentials: credentials?,
        quirks: quirks?,
        times,
        breaker: breaker?,
    })
}

fn credentials(table: &Table<'_>, is_demo: bool) -> Option<Vec<Credential>> {
    const MEND: &str = "write [{ env = \"NAME\" }], or [] for a provider that asks for none";
    let value = match table.optional("credentials") {
        None if is_demo => return Some(Vec::new()),
        None => table.required("credentials", MEND)?,
        Some(value) if value.is_string() => {
            return value.refuse(format_args!("a secret does not stand in a configuration; {MEND}"));
        }
        Some(value) => value,
    };
    let items = value.items()?;
    if is_demo && !items.is_empty() {
        return value.refuse("the demo asks for no credentials; remove the line");
    }
    // All are read before any is given up on, so that every mistake is told.
    let credentials: Vec<Option<Credential>> = items.iter().map(secret::read).collect();
    credentials.into_iter().collect()
}

fn quirks(table: &Table<'_>, dialect: Option<Dialect>) -> Option<Quirks> {
    let Some(value) = table.optional("quirks") else { return Some(Quirks::NONE) };
    // All are read before any is given up on, so that every mistake is told.
    let quirks: Vec<Option<Quirk>> = value.items()?.iter().map(quirk).collect();
    let quirks: Quirks = quirks.into_iter().collect::<Option<_>>()?;
    if !quirks.is_empty() && matches!(dialect, Some(Dialect::Anthropic | Dialect::Gemini)) {
        return value.refuse("these are deviations from OpenAI's dialect; write quirks = []");
    }
    if quirks.has(Quirk::ThinkingObject) && quirks.has(Quirk::EnableThinking) {
        return value.refuse("a provider has either thinking_object or enable_thinking; remove one");
    }
    Some(quirks)
}

fn quirk(item: &Value<'_>) -> Option<Quirk> {
    let name = item.string()?;
    Quirk::named(name).or_else(|| {
        let known: Vec<&str> = Quirk::ALL.iter().map(|quirk| quirk.name()).collect();
        item.refuse(format_args!("is a quirk that nobody knows; the quirks are {}", known.join(", ")))
    })
}

/// Reads a `base_url`. It may hold a password where it should not, so it is not repeated.
fn endpoint(value: &Value<'_>) -> Option<Endpoint> {
    let text = value.string()?;
    if text == DEMO {
        return Some(Endpoint::Demo);
    }
    address(text).map_or_else(|why| value.refuse(why), |address| Some(Endpoint::Network(address)))
}

/// Takes a URL without a query apart.
pub(super) fn address(text: &str) -> Result<Address, &'static str> {
    const FORM: &str = "is not a URL; write one such as \"https://api.openai.com/v1\"";
    if text.contains('@') {
        return Err("holds a user or password; remove it and use credentials");
    }
    if text.contains(['?', '#']) {
        return Err("holds a query or fragment; end it after the path");
    }
    let uri: http::Uri = text.parse().map_err(|_| FORM)?;
    let (tls, scheme_port) = match uri.scheme_str() {
        Some("https") => (true, 443),
        Some("http") => (false, 80),
        _ => return Err("must begin with https:// or http://; write the whole URL"),
    };
    let authority = uri.authority().ok_or(FORM)?;
    let host = authority.host().to_ascii_lowercase();
    // What follows the host is nothing, or a colon and the port; `http` lets a port be empty or too large.
    let port = match authority.as_str().get(host.len()..).and_then(|rest| rest.strip_prefix(':')) {
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or("has a port that is none; write 1 to 65535")?,
        None => scheme_port,
    };
    if host.is_empty() {
        return Err(FORM);
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare != host && bare.parse::<std::net::Ipv6Addr>().is_err() {
        return Err("has brackets around what is no IPv6 address; mend the host");
    }
    let authority = if port == scheme_port { host.clone() } else { format!("{host}:{port}") };
    Ok(Address {
        tls,
        host: bare.into(),
        port,
        authority: authority.into(),
        path: uri.path().trim_end_matches('/').into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn read_provider(toml: &str) -> (Option<ProviderRow>, String) {
        let mut row = None;
        let mistakes = with_root(toml, &|_| None, |root| {
            row = root.required("it", "").and_then(|value| read(&value));
        });
        (row.and_then(|row| row.content), mistakes_of(&mistakes))
    }

    fn parts(url: &str) -> (bool, String, u16, String, String) {
        let Address { tls, host, port, authority, path } = address(url).unwrap();
        (tls, host.into(), port, authority.into(), path.into())
    }

    #[test]
    fn base_urls_are_taken_apart() {
        let https = |host: &str, port, authority: &str, path: &str| {
            (true, host.to_owned(), port, authority.to_owned(), path.to_owned())
        };
        assert_eq!(parts("https://API.openai.com/v1"), https("api.openai.com", 443, "api.openai.com", "/v1"));
        assert_eq!(parts("https://api.deepseek.com"), https("api.deepseek.com", 443, "api.deepseek.com", ""));
        assert_eq!(parts("https://h:8443/a/b/"), https("h", 8443, "h:8443", "/a/b"));
        assert_eq!(parts("https://h:443/"), https("h", 443, "h", ""));
        assert_eq!(parts("http://127.0.0.1:9/x"), (false, "127.0.0.1".into(), 9, "127.0.0.1:9".into(), "/x".into()));
        assert_eq!(parts("http://[::1]:9"), (false, "::1".into(), 9, "[::1]:9".into(), String::new()));
        assert_eq!(parts("https://[::1]"), https("::1", 443, "[::1]", ""));
    }

    #[test]
    fn base_urls_that_lead_nowhere_are_refused() {
        for url in [
            "api.openai.com/v1",
            "ftp://h",
            "https://",
            "https:///v1",
            "https://h:0",
            "https://h:65536",
            "https://h:",
            "https://h:port",
            "https://u:hunter2@h",
            "https://h/?key=hunter2",
            "https://h/#x",
            "https://[nonsense]/",
            "https://h h/",
            "/v1",
            "builtin:other",
        ] {
            let told = address(url).unwrap_err();
            assert!(told.contains(';') || told.contains("write"), "{url}: {told}");
        }
    }

    #[test]
    fn the_demo_needs_nothing() {
        let (row, told) = read_provider("it = { name = 'demo', dialect = 'openai', base_url = 'builtin:demo' }");
        let row = row.unwrap();
        assert_eq!((told.as_str(), &row.endpoint, row.credentials.len()), ("", &Endpoint::Demo, 0));
        let demo = "[it]\nname = 'demo'\ndialect = 'gemini'\nbase_url = 'builtin:demo'\ncredentials = [{ env = 'X' }]";
        let (_, told) = read_provider(demo);
        assert!(told.contains("asks for no credentials") && told.contains("dialect = \"openai\""), "{told}");
    }

    #[test]
    fn credentials_are_named_or_said_to_be_none() {
        let network = "[it]\nname = 'a'\ndialect = 'openai'\nbase_url = 'http://h'\n";
        assert!(read_provider(network).1.contains("it.credentials is missing"));
        assert_eq!(read_provider(&format!("{network}credentials = []")).1, "");
        let (_, told) = read_provider(&format!("{network}credentials = 'sk-verysecret'"));
        assert!(told.contains("does not stand in a configuration") && !told.contains("verysecret"), "{told}");
    }

    #[test]
    fn quirks_must_be_known_and_go_together() {
        let with = |dialect: &str, quirks: &str| {
            read_provider(&format!(
                "[it]\nname = 'a'\ndialect = '{dialect}'\nbase_url = 'http://h'\ncredentials = []\nquirks = [{quirks}]"
            ))
        };
        let (row, told) = with("openai", "'max_tokens', 'loose_answers'");
        let quirks = row.unwrap().quirks;
        assert_eq!((told.as_str(), quirks), ("", [Quirk::MaxTokens, Quirk::LooseAnswers].into_iter().collect()));
        let (_, told) = with("openai", "'odd', 'max_tokens',\n'strange'");
        assert_eq!(told.lines().count(), 2, "{told}");
        assert!(told.starts_with("test.toml:6: it.quirks: is a quirk that nobody knows; the quirks are developer_as_"));
        for (dialect, quirks) in [("gemini", "'max_tokens'"), ("openai", "'thinking_object', 'enable_thinking'")] {
            let (row, told) = with(dialect, quirks);
            assert!(row.is_none() && told.starts_with("test.toml:6: it.quirks: "), "{told}");
        }
        assert!(with("gemini", "").0.is_some());
    }
}
