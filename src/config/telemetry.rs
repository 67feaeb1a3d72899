//! `[telemetry]`: what is shown of requests besides the metrics page and the access log. So far `[telemetry.traces]`.

use super::provider::address;
use super::reader::{Table, Value};
use super::secret;
use super::snapshot::TracesConfig;
use crate::relay::route::Secret;

/// What a share of all requests is counted in: a billion is all of them.
const ALL: u32 = 1_000_000_000;

/// Where OTLP takes traces, for an endpoint that is written without a path.
const USUAL_PATH: &str = "/v1/traces";

/// Headers that the relay writes itself.
const OWN_HEADERS: [&str; 5] = ["host", "content-type", "content-length", "transfer-encoding", "connection"];

/// Reads `[telemetry]`; the traces are `None` where there are to be none.
pub(super) fn read(value: &Value<'_>) -> Option<Option<TracesConfig>> {
    let table = value.table()?;
    let traces = match table.optional("traces") {
        Some(value) => traces(&value).map(Some),
        None => Some(None),
    };
    table.finish();
    traces
}

fn traces(value: &Value<'_>) -> Option<TracesConfig> {
    let table = value.table()?;
    let endpoint = table.required("endpoint", "write where OTLP is taken, such as \"http://127.0.0.1:4318\"");
    let endpoint = endpoint.and_then(|value| endpoint_of(&value));
    let headers = match table.optional("headers") {
        Some(value) => headers_of(&value),
        None => Some(Vec::new()),
    };
    let sample_per_billion = match table.optional("sample_ratio") {
        Some(value) => value.share_per_billion(),
        None => Some(ALL / 100),
    };
    let trust_parent = flag(&table, "trust_parent");
    let propagate = flag(&table, "propagate");
    let service_name = match table.optional("service_name") {
        Some(value) => value.string().map(Into::into),
        None => Some("tollgate".into()),
    };
    table.finish();
    Some(TracesConfig {
        endpoint: endpoint?,
        headers: headers?,
        sample_per_billion: sample_per_billion?,
        trust_parent: trust_parent?,
        propagate: propagate?,
        service_name: service_name?,
    })
}

fn flag(table: &Table<'_>, key: &'static str) -> Option<bool> {
    table.optional(key).map_or(Some(false), |value| value.boolean())
}

/// It may hold a token, so it is not repeated.
fn endpoint_of(value: &Value<'_>) -> Option<Box<str>> {
    const FORM: &str = "is not an http:// or https:// URL with a host; write one such as \"http://127.0.0.1:4318\"";
    let text = value.string()?;
    let (before_query, query) = text.split_once('?').map_or((text, None), |(before, query)| (before, Some(query)));
    if before_query.contains('@') {
        return value.refuse("holds a user or password; remove it and use headers");
    }
    if text.contains('#') {
        return value.refuse("holds a fragment, which is never sent; remove it");
    }
    let Ok(address) = address(before_query) else { return value.refuse(FORM) };
    if text.parse::<http::Uri>().is_err() {
        return value.refuse(FORM);
    }
    let path = if address.path.is_empty() { USUAL_PATH } else { "" };
    let base = if path.is_empty() { before_query } else { before_query.trim_end_matches('/') };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("{base}{path}{query}").into())
}

fn headers_of(value: &Value<'_>) -> Option<Vec<(Box<str>, Secret)>> {
    let mut headers: Vec<(Box<str>, Secret)> = Vec::new();
    for row in value.items()? {
        let header = header_of(&row)?;
        if headers.iter().any(|(name, _)| *name == header.0) {
            return row.refuse("names a header that stands there already; remove one");
        }
        headers.push(header);
    }
    Some(headers)
}

/// `{ name, value, scheme }`: values are secrets, and a secret has no spaces, so what stands before one has a place of its own.
fn header_of(value: &Value<'_>) -> Option<(Box<str>, Secret)> {
    let table = value.table()?;
    let name = table.required("name", "write the header's name, such as \"authorization\"");
    let name = name.and_then(|value| header_name(&value));
    let scheme = match table.optional("scheme") {
        Some(value) => scheme(&value).map(Some),
        None => Some(None),
    };
    let secret = table.required("value", "write value = { env = \"NAME\" }");
    let secret = secret.and_then(|value| secret::required(&value));
    table.finish();
    let (secret, scheme) = (secret?, scheme?);
    let secret = match scheme {
        Some(scheme) => Secret::new(format!("{scheme} {}", secret.expose())),
        None => secret,
    };
    Some((name?, secret))
}

fn header_name(value: &Value<'_>) -> Option<Box<str>> {
    let Ok(name) = http::HeaderName::from_bytes(value.string()?.as_bytes()) else {
        return value.refuse("is not the name of a header; write one such as \"authorization\"");
    };
    if OWN_HEADERS.contains(&name.as_str()) {
        return value.refuse("is written by the relay itself; remove it");
    }
    Some(name.as_str().into())
}

fn scheme<'s>(value: &Value<'s>) -> Option<&'s str> {
    let scheme = value.string()?;
    if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Some(scheme);
    }
    value.refuse("is one word before the secret; write \"Bearer\" or \"Basic\"")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn environment(name: &str) -> Option<OsString> {
        (name == "TOKEN").then(|| "om_1".into())
    }

    fn read_traces(toml: &str) -> (Option<TracesConfig>, String) {
        let mut found = None;
        let mistakes = with_root(toml, &environment, |root| {
            found = root.optional("telemetry").and_then(|value| read(&value)).flatten();
        });
        (found, mistakes_of(&mistakes))
    }

    fn with(lines: &str) -> (Option<TracesConfig>, String) {
        read_traces(&format!("[telemetry.traces]\nendpoint = 'http://127.0.0.1:4318'\n{lines}"))
    }

    #[test]
    fn there_are_no_traces_unless_they_are_wanted() {
        assert_eq!(read_traces("[telemetry]"), (None, String::new()));
        let (found, mistakes) = with("");
        let found = found.unwrap();
        assert_eq!((&*found.endpoint, &*found.service_name), ("http://127.0.0.1:4318/v1/traces", "tollgate"));
        assert_eq!((found.sample_per_billion, mistakes.as_str()), (10_000_000, ""));
        assert!(!found.trust_parent && !found.propagate && found.headers.is_empty());
    }

    #[test]
    fn everything_can_be_said() {
        let (found, mistakes) = with(
            "sample_ratio = 0.25\ntrust_parent = true\npropagate = true\nservice_name = 'relay-eu'\n\
             headers = [{ name = 'Authorization', scheme = 'Bearer', value = { env = 'TOKEN' } }, \
             { name = 'x-team', value = { env = 'TOKEN' } }]",
        );
        assert_eq!(mistakes, "");
        let found = found.unwrap();
        assert_eq!((found.sample_per_billion, found.trust_parent, found.propagate), (ALL / 4, true, true));
        let headers: Vec<(&str, &str)> = found.headers.iter().map(|(name, value)| (&**name, value.expose())).collect();
        assert_eq!(headers, [("authorization", "Bearer om_1"), ("x-team", "om_1")]);
        assert!(!format!("{found:?}").contains("om_1"));
    }

    #[test]
    fn a_ratio_is_a_decimal_from_none_to_all() {
        for (written, share) in [("0", 0), ("1", ALL), ("0.0", 0), ("1.0", ALL), ("0.5", ALL / 2), ("0.000000001", 1)] {
            assert_eq!(with(&format!("sample_ratio = {written}")).0.unwrap().sample_per_billion, share, "{written}");
        }
        for wrong in ["1.1", "-0.1", "2", "1e-3", "nan", "'0.5'", "0.0000000001"] {
            let (found, mistakes) = with(&format!("sample_ratio = {wrong}"));
            assert!(
                found.is_none() && mistakes.starts_with("test.toml:3: telemetry.traces.sample_ratio: "),
                "{mistakes}"
            );
        }
    }

    #[test]
    fn an_endpoint_with_a_path_is_taken_as_it_is() {
        for (written, meant) in [
            ("https://h/", "https://h/v1/traces"),
            ("https://h?key=1", "https://h/v1/traces?key=1"),
            ("https://h/otlp/v1/traces", "https://h/otlp/v1/traces"),
            ("https://h/in/?a=b", "https://h/in/?a=b"),
        ] {
            let (found, mistakes) = read_traces(&format!("[telemetry.traces]\nendpoint = '{written}'"));
            assert_eq!((&*found.unwrap().endpoint, mistakes.as_str()), (meant, ""));
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_not_repeated() {
        for (lines, told) in [
            ("headers = [{ name = 'a b', value = { env = 'TOKEN' } }]", "headers.name: is not the name"),
            ("headers = [{ name = 'Host', value = { env = 'TOKEN' } }]", "headers.name: is written by the relay"),
            ("headers = [{ name = 'a', value = 'hunter2' }]", "headers.value: a secret does not stand"),
            ("headers = [{ name = 'a', value = { env = 'NO' } }]", "headers.value: the environment"),
            (
                "headers = [{ name = 'a', scheme = 'hunter 2', value = { env = 'TOKEN' } }]",
                "headers.scheme: is one word",
            ),
            ("sample_rate = 0.5", "sample_rate\"; did you mean \"sample_ratio\"?"),
        ] {
            let (_, mistakes) = with(lines);
            assert!(mistakes.starts_with("test.toml:3: ") && mistakes.contains(told), "{mistakes}");
            assert!(!mistakes.contains("hunter") && mistakes.contains(';'), "{mistakes}");
        }
        for endpoint in ["hunter2", "ftp://hunter2", "https://u:hunter2@h", "https://h/#hunter2", "https://h:0/hunter2"]
        {
            let (found, mistakes) = read_traces(&format!("[telemetry.traces]\nendpoint = '{endpoint}'"));
            assert!(found.is_none() && mistakes.starts_with("test.toml:2: telemetry.traces.endpoint: "), "{mistakes}");
            assert!(!mistakes.contains("hunter"), "{mistakes}");
        }
        assert!(read_traces("[telemetry.traces]").1.contains("telemetry.traces.endpoint is missing; "));
    }
}
