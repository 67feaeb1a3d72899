//! Secrets: a configuration says where one is, never what it is. No message repeats what stands where a secret may, and what was
//! read on the way to a secret is wiped.

use std::path::PathBuf;

use zeroize::Zeroizing;

use super::mistake::Place;
use super::reader::Value;
use crate::relay::route::Secret;

const MEND: &str = r#"write { env = "NAME" }, { file = "PATH" } or { credential = "NAME" }"#;

/// A secret that was asked for.
pub(super) enum Credential {
    /// It is there.
    Ready(Secret),
    /// It is described well, but its place is empty: a mistake to those who need it.
    Missing {
        /// Who asks for it.
        place: Place,
        /// What was not found, and the mend.
        why: String,
    },
}

/// Reads one secret. `None` when its description is wrong, which has been reported.
pub(super) fn read(value: &Value<'_>) -> Option<Credential> {
    if value.is_string() {
        return value.refuse(format_args!("a secret does not stand in a configuration; {MEND}"));
    }
    let table = value.table()?;
    let (env, file, credential) = (table.optional("env"), table.optional("file"), table.optional("credential"));
    table.finish();
    let found = match (env, file, credential) {
        (Some(env), None, None) => from_environment(&env)?,
        (None, Some(file), None) => from_file(value, value.source.resolve(file.string()?)),
        (None, None, Some(credential)) => from_credentials_folder(&credential)?,
        _ => return value.refuse(format_args!("must name exactly one place; {MEND}")),
    };
    Some(match found.and_then(check) {
        Ok(secret) => Credential::Ready(secret),
        Err(why) => {
            let place = value.place().clone();
            Credential::Missing { place, why: format!("{}: {why}", value.name()) }
        }
    })
}

/// Reads one secret that must be there.
pub(super) fn required(value: &Value<'_>) -> Option<Secret> {
    match read(value)? {
        Credential::Ready(secret) => Some(secret),
        Credential::Missing { place, why } => {
            value.source.reading.mistakes.report(&place, why);
            None
        }
    }
}

/// What a place holds, or why it holds nothing.
type Found = Result<Zeroizing<String>, String>;

fn from_environment(value: &Value<'_>) -> Option<Found> {
    let name = value.string()?;
    let is_name = !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_name {
        return value.refuse("is not the name of an environment variable; write letters, digits and _");
    }
    // A key that was pasted where its variable's name belongs is seldom all capitals; such text is not repeated.
    let shown = if name.bytes().any(|byte| byte.is_ascii_lowercase()) { "that it names" } else { name };
    Some(match (value.source.reading.environment)(name).map(std::ffi::OsString::into_string) {
        Some(Ok(text)) => Ok(Zeroizing::new(text)),
        Some(Err(_)) => Err(format!("the environment variable {shown} is not UTF-8; set it anew")),
        None => Err(format!("the environment variable {shown} is not set; set it, or remove what needs it")),
    })
}

fn from_credentials_folder(value: &Value<'_>) -> Option<Found> {
    let name = value.string()?;
    if name.contains('/') || name == ".." || name == "." {
        return value.refuse("must be the bare name of a systemd credential; use { file = } for a path");
    }
    Some(match (value.source.reading.environment)("CREDENTIALS_DIRECTORY") {
        Some(folder) => from_file(value, PathBuf::from(folder).join(name)),
        None => Err(format!(
            "the credential {name:?} needs $CREDENTIALS_DIRECTORY, which is not set; run under systemd with \
             LoadCredential={name}:PATH"
        )),
    })
}

fn from_file(value: &Value<'_>, path: PathBuf) -> Found {
    let shown = path.display();
    let bytes = value
        .source
        .reading
        .files
        .borrow_mut()
        .read(&path)
        .map(Zeroizing::new)
        .map_err(|error| format!("{shown} cannot be read: {error}; put the secret there, readable to this user"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{shown} is not UTF-8; put the bare secret there"))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// A secret travels in a header, so it is made of what a header can carry.
fn check(text: Zeroizing<String>) -> Result<Secret, String> {
    if text.is_empty() {
        return Err("the secret there is empty; put it there, or remove what needs it".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "the secret there has spaces, line ends or non-ASCII characters inside; put it there bare".to_owned()
        );
    }
    Ok(Secret::new(text.as_str()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn environment(name: &str) -> Option<OsString> {
        match name {
            "PLAIN_KEY" => Some("sk-1".into()),
            "EMPTY_KEY" => Some("".into()),
            "SPLIT_KEY" => Some("sk 1".into()),
            "CREDENTIALS_DIRECTORY" => Some("/nonexistent".into()),
            _ => None,
        }
    }

    /// What `key = …` reads as: the secret, why it is missing, or the mistakes.
    fn outcome(toml: &str) -> Result<String, String> {
        let mut credential = None;
        let mistakes = with_root(toml, &environment, |root| {
            credential = root.required("key", "").and_then(|value| read(&value));
        });
        match credential {
            Some(Credential::Ready(secret)) => Ok(secret.expose().to_owned()),
            Some(Credential::Missing { why, .. }) => Err(why),
            None => Err(mistakes_of(&mistakes)),
        }
    }

    #[test]
    fn the_environment_gives_a_secret() {
        assert_eq!(outcome(r#"key = { env = "PLAIN_KEY" }"#).as_deref(), Ok("sk-1"));
        assert!(outcome(r#"key = { env = "NO_KEY" }"#).unwrap_err().contains("NO_KEY is not set"));
        assert!(outcome(r#"key = { env = "EMPTY_KEY" }"#).unwrap_err().contains("empty"));
        assert!(outcome(r#"key = { env = "SPLIT_KEY" }"#).unwrap_err().contains("put it there bare"));
    }

    #[test]
    fn a_file_gives_a_secret_without_its_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "sk-2\r\n").unwrap();
        assert_eq!(outcome(&format!("key = {{ file = {path:?} }}")).as_deref(), Ok("sk-2"));
        assert!(outcome(r#"key = { file = "/nonexistent/key" }"#).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn systemds_folder_gives_a_secret_by_its_bare_name() {
        let missing = outcome(r#"key = { credential = "openai" }"#).unwrap_err();
        assert!(missing.contains("/nonexistent/openai cannot be read"), "{missing}");
        assert!(outcome(r#"key = { credential = "../etc/shadow" }"#).unwrap_err().contains("bare name"));
    }

    #[test]
    fn a_literal_is_refused_and_not_repeated() {
        for toml in [
            r#"key = "sk-verysecret""#,
            r#"key = { env = "sk-verysecret" }"#,
            r#"key = { env = "verysecret" }"#,
            r#"key = { literal = "verysecret" }"#,
            r#"key = ["verysecret"]"#,
        ] {
            let told = outcome(toml).unwrap_err();
            assert!(!told.contains("verysecret"), "{told}");
            assert!(told.contains(';'), "a mend: {told}");
        }
    }

    #[test]
    fn one_place_is_named_not_two() {
        let told = outcome(r#"key = { env = "PLAIN_KEY", file = "x" }"#).unwrap_err();
        assert!(told.contains("exactly one place"), "{told}");
    }
}
