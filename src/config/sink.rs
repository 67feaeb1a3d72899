//! `[[billing.sink]]`: where finished requests are delivered besides the ledger.

use std::path::PathBuf;

use super::provider::address;
use super::reader::{Table, Value};
use super::secret;
use super::snapshot::{SinkConfig, SinkTarget};
use crate::relay::webhook::SigningKey;

/// The longest name: it is a label of metrics.
const NAME_BYTES_MAX: usize = 32;

/// Metrics know the ledger by this name.
const LEDGER: &str = "ledger";

const FILE_BYTES_MAX: u64 = 64 << 20;

/// Reads all sinks. Mistakes are reported, and what has some is left out.
pub(super) fn read_all(value: &Value<'_>) -> Vec<SinkConfig> {
    let mut sinks: Vec<SinkConfig> = Vec::new();
    let mut counts = [0; 2];
    for row in value.rows().unwrap_or_default() {
        let Some(sink) = read(&row, &mut counts) else { continue };
        if sinks.iter().any(|other| other.name == sink.name) {
            row.report(format_args!("there is another sink {:?}; give one of them another name", sink.name));
        }
        if let SinkTarget::File { path, .. } = &sink.target
            && sinks.iter().any(|other| other.path() == Some(path))
        {
            row.report("another sink writes the same file; give one of them another path");
        }
        sinks.push(sink);
    }
    sinks
}

fn read(value: &Value<'_>, counts: &mut [u32; 2]) -> Option<SinkConfig> {
    const KINDS: &str = "write \"webhook\" or \"file\"";
    let table = value.table()?;
    let kind = table.required("kind", KINDS)?;
    // The count is of those that are written, so that a mistake in one does not rename the next.
    let (kind_name, place, read): (_, _, fn(&Table<'_>) -> Option<SinkTarget>) = match kind.string()? {
        "webhook" => ("webhook", 0, webhook),
        "file" => ("file", 1, file),
        _ => return kind.refuse(format_args!("is not a kind that is known; {KINDS}")),
    };
    counts[place] += 1;
    let usual = if counts[place] == 1 { kind_name.to_owned() } else { format!("{kind_name}_{}", counts[place]) };
    let name = match table.optional("name") {
        Some(value) => name(&value),
        None => Some(usual.into()),
    };
    let target = read(&table);
    table.finish();
    Some(SinkConfig { name: name?, target: target? })
}

/// The spool remembers by its name how far a sink is, and metrics have it as a label.
fn name(value: &Value<'_>) -> Option<Box<str>> {
    let name = value.string()?;
    let is_name = name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    match name {
        LEDGER => value.refuse("is what the ledger is called; write another name"),
        _ if !is_name => value.refuse("must be at most 32 of the characters a-z, 0-9, _ and -; mend it"),
        _ => Some(name.into()),
    }
}

fn webhook(table: &Table<'_>) -> Option<SinkTarget> {
    const SECRET: &str =
        "write secret = { env = \"NAME\" }, with what echo whsec_$(openssl rand -base64 32) prints in that variable";
    let url = table.required("url", "write where to post to, such as \"https://meter.example/api/v1/events\"");
    let url = url.and_then(|value| url_of(&value));
    let key = table.required("secret", SECRET).and_then(|value| signing_key(&value));
    let authorization = match table.optional("authorization") {
        Some(value) => secret::required(&value).map(Some),
        None => Some(None),
    };
    let source = match table.optional("source") {
        Some(value) => source(&value),
        None => Some("tollgate".into()),
    };
    Some(SinkTarget::Webhook { url: url?, key: key?, authorization: authorization?, source: source? })
}

/// It may hold a token, so it is not repeated.
fn url_of(value: &Value<'_>) -> Option<Box<str>> {
    const FORM: &str =
        "is not an http:// or https:// URL with a host; write one such as \"https://meter.example/api/v1/events\"";
    let text = value.string()?;
    let (before_query, _) = text.split_once('?').unwrap_or((text, ""));
    if before_query.contains('@') {
        return value.refuse("holds a user or password; remove it and use authorization = { env = \"NAME\" }");
    }
    if text.contains('#') {
        return value.refuse("holds a fragment, which is never sent; remove it");
    }
    if text.parse::<http::Uri>().is_err() || address(before_query).is_err() {
        return value.refuse(FORM);
    }
    Some(text.into())
}

fn signing_key(value: &Value<'_>) -> Option<SigningKey> {
    let secret = secret::required(value)?;
    SigningKey::parse(secret.expose()).map_err(|why| value.report(why)).ok()
}

/// A secret that must be there.
fn source(value: &Value<'_>) -> Option<Box<str>> {
    let source = value.string()?;
    if source.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(source.into());
    }
    value.refuse("is a URI reference, without spaces and with ASCII only; write one such as \"tollgate-eu\"")
}

fn file(table: &Table<'_>) -> Option<SinkTarget> {
    let path = table.required("path", "write where the file is to be, such as \"data/usage.ndjson\"");
    let path = path.and_then(|value| path_of(&value));
    let bytes_max = match table.optional("bytes_max") {
        Some(value) => value.number(1 << 10..=1 << 50),
        None => Some(FILE_BYTES_MAX),
    };
    let files_max = match table.optional("files_max") {
        Some(value) => value.number(0..=u64::from(u32::MAX)).and_then(|count| u32::try_from(count).ok()),
        None => Some(0),
    };
    Some(SinkTarget::File { path: path?, bytes_max: bytes_max?, files_max: files_max? })
}

fn path_of(value: &Value<'_>) -> Option<PathBuf> {
    let path = value.string()?;
    if path.ends_with('/') {
        return value.refuse("names a folder; write the file's name too, such as \"data/usage.ndjson\"");
    }
    Some(path.into())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn environment(name: &str) -> Option<OsString> {
        match name {
            "HOOK_SECRET" => Some(SECRET.into()),
            "EMPTY" => Some("".into()),
            "WEAK" => Some("hunter2".into()),
            "TOKEN" => Some("om_1".into()),
            _ => None,
        }
    }

    fn read_sinks(toml: &str) -> (Vec<SinkConfig>, String) {
        let mut sinks = Vec::new();
        let mistakes = with_root(toml, &environment, |root| {
            sinks = root.optional("sink").map(|value| read_all(&value)).unwrap_or_default();
        });
        (sinks, mistakes_of(&mistakes))
    }

    fn webhook(more: &str) -> String {
        format!("[[sink]]\nkind = 'webhook'\nsecret = {{ env = 'HOOK_SECRET' }}\n{more}\n")
    }

    #[test]
    fn a_webhook_and_a_file_with_their_defaults() {
        let toml = webhook("url = 'https://h/in?a=b'") + "[[sink]]\nkind = 'file'\npath = 'data/usage.ndjson'";
        let (sinks, mistakes) = read_sinks(&toml);
        assert_eq!(mistakes, "");
        let key = SigningKey::parse(SECRET).unwrap();
        let (url, source) = ("https://h/in?a=b".into(), "tollgate".into());
        let hook = SinkTarget::Webhook { url, key, authorization: None, source };
        let file = SinkTarget::File { path: "data/usage.ndjson".into(), bytes_max: 64 << 20, files_max: 0 };
        assert_eq!(
            sinks,
            [SinkConfig { name: "webhook".into(), target: hook }, SinkConfig { name: "file".into(), target: file }]
        );
    }

    #[test]
    fn everything_can_be_said() {
        let toml = webhook(
            "url = 'http://127.0.0.1:9/'\nname = 'open-meter_1'\nsource = '//eu/tollgate'\n\
             authorization = { env = 'TOKEN' }",
        ) + "[[sink]]\nkind = 'file'\npath = '/var/u'\nbytes_max = 1024\nfiles_max = 7";
        let (sinks, mistakes) = read_sinks(&toml);
        assert_eq!((mistakes.as_str(), &*sinks[0].name), ("", "open-meter_1"));
        let SinkTarget::Webhook { authorization: Some(token), source, .. } = &sinks[0].target else {
            panic!("{sinks:?}")
        };
        assert_eq!((token.expose(), &**source), ("om_1", "//eu/tollgate"));
        assert_eq!(sinks[1].target, SinkTarget::File { path: "/var/u".into(), bytes_max: 1_024, files_max: 7 });
        assert_eq!(sinks[1].path(), Some(Path::new("/var/u")));
    }

    #[test]
    fn sinks_are_named_after_their_kind_and_place() {
        let hook = webhook("url = 'http://h'");
        let named = webhook("url = 'http://h'\nname = 'a'");
        let (sinks, mistakes) = read_sinks(&[hook.as_str(), &named, &hook].concat());
        let names: Vec<&str> = sinks.iter().map(|sink| &*sink.name).collect();
        assert_eq!((names, mistakes.as_str()), (vec!["webhook", "a", "webhook_3"], ""));
        let (_, mistakes) = read_sinks(&[hook.as_str(), &webhook("url = 'http://h'\nname = 'webhook'")].concat());
        assert!(mistakes.starts_with("test.toml:5: sink: there is another sink \"webhook\"; "), "{mistakes}");
    }

    #[test]
    fn what_is_missing_or_wrong_is_told_with_its_line() {
        for (toml, line, told) in [
            ("[[sink]]\nurl = 'http://h'".to_owned(), 1, "sink.kind is missing; "),
            ("[[sink]]\nkind = 'kafka'".to_owned(), 2, "sink.kind: is not a kind that is known; "),
            ("[sink]\nkind = 'file'".to_owned(), 1, "sink: is a list; "),
            (webhook(""), 1, "sink.url is missing; "),
            ("[[sink]]\nkind = 'webhook'\nurl = 'http://h'".to_owned(), 1, "sink.secret is missing; "),
            (webhook("url = 'http://h'\npath = 'x'"), 5, "unknown key \"sink.path\"; "),
            (webhook("url = 'http://h'\nname = 'A b'"), 5, "sink.name: must be at most 32 of the characters "),
            (webhook("url = 'http://h'\nname = 'ledger'"), 5, "sink.name: is what the ledger is called; "),
            (webhook("url = 'http://h'\nsource = 'a b'"), 5, "sink.source: is a URI reference, "),
            (webhook("url = 'http://h'\nauthorization = { env = 'NO' }"), 5, "sink.authorization: the environment "),
            ("[[sink]]\nkind = 'file'".to_owned(), 1, "sink.path is missing; "),
            ("[[sink]]\nkind = 'file'\npath = 'a/'".to_owned(), 3, "sink.path: names a folder; "),
            ("[[sink]]\nkind = 'file'\npath = 'a'\nbytes_max = 9".to_owned(), 4, "sink.bytes_max: is 9; "),
        ] {
            let (sinks, mistakes) = read_sinks(&toml);
            assert!(mistakes.starts_with(&format!("test.toml:{line}: {told}")), "{toml}: {mistakes}");
            assert!(!mistakes.contains('\n') && mistakes.contains(';'), "one, with a mend: {mistakes}");
            assert!(sinks.is_empty() || mistakes.contains("unknown key"));
        }
    }

    #[test]
    fn one_file_has_one_writer() {
        let file = "[[sink]]\nkind = 'file'\npath = 'a'\n";
        let (_, mistakes) = read_sinks(&file.repeat(2));
        assert_eq!(mistakes, "test.toml:4: sink: another sink writes the same file; give one of them another path");
    }

    #[test]
    fn urls_that_lead_nowhere_are_refused_and_not_repeated() {
        for url in [
            "hunter2",
            "ftp://hunter2",
            "https://",
            "https://u:hunter2@h/",
            "https://h/#hunter2",
            "https://h:0/hunter2",
            "https://h/hunter 2",
            "//h/hunter2",
            "https://?hunter2",
        ] {
            let (sinks, mistakes) = read_sinks(&webhook(&format!("url = '{url}'")));
            assert!(sinks.is_empty() && mistakes.starts_with("test.toml:4: sink.url: "), "{url}: {mistakes}");
            assert!(!mistakes.contains("hunter"), "{mistakes}");
        }
    }

    #[test]
    fn secrets_are_there_strong_and_elsewhere() {
        for secret in ["'whsec_x'", "{ env = 'NO' }", "{ env = 'EMPTY' }", "{ env = 'WEAK' }"] {
            let toml = format!("[[sink]]\nkind = 'webhook'\nurl = 'http://h'\nsecret = {secret}");
            let (sinks, mistakes) = read_sinks(&toml);
            assert!(sinks.is_empty() && mistakes.starts_with("test.toml:4: sink.secret: "), "{mistakes}");
            assert!(!mistakes.contains("hunter2") && mistakes.contains(';'), "{mistakes}");
        }
    }
}
