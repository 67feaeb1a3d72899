//! `[shared]`: what several nodes have in common besides their store. Where it stands, they lease credit.

use std::time::Duration;

use super::reader::Value;

/// `[shared]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedConfig {
    /// Whether nodes lease credit.
    pub leases: bool,
    /// How long leases last that are not renewed.
    pub lease: Duration,
    /// What this node is called; the host's name where it is not said.
    pub node: Option<Box<str>>,
}

impl Default for SharedConfig {
    fn default() -> Self {
        Self { leases: true, lease: Duration::from_secs(30), node: None }
    }
}

pub(super) fn read(value: &Value<'_>) -> Option<SharedConfig> {
    let table = value.table()?;
    let mut shared = SharedConfig::default();
    if let Some(leases) = table.optional("leases").and_then(|value| value.boolean()) {
        shared.leases = leases;
    }
    if let Some(seconds) = table.optional("lease_seconds").and_then(|value| value.number(2..=600)) {
        shared.lease = Duration::from_secs(seconds);
    }
    if let Some(name) = table.optional("node") {
        shared.node = node(&name);
    }
    table.finish();
    Some(shared)
}

fn node(value: &Value<'_>) -> Option<Box<str>> {
    let name = value.string()?;
    let is_name = !name.is_empty() && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name { Some(name.into()) } else { value.refuse("is no name; write 1 to 64 letters without spaces") }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn shared(toml: &str) -> (Option<SharedConfig>, String) {
        let mut found = None;
        let mistakes = with_root(toml, &|_| None, |root| {
            found = root.required("shared", "").and_then(|value| read(&value));
        });
        (found, mistakes_of(&mistakes))
    }

    #[test]
    fn nodes_lease_where_the_table_stands() {
        assert_eq!(shared("[shared]"), (Some(SharedConfig::default()), String::new()));
        let (found, told) = shared("[shared]\nlease_seconds = 2\nnode = \"eu-1\"");
        let expected = SharedConfig { lease: Duration::from_secs(2), node: Some("eu-1".into()), leases: true };
        assert_eq!((found, told.as_str()), (Some(expected), ""));
    }

    #[test]
    fn leases_that_cannot_be_renewed_in_time_are_refused() {
        for line in ["lease_seconds = 1", "lease_seconds = 9_000", "node = \"\"", "node = \"a b\"", "leases = 1"] {
            assert!(shared(&format!("[shared]\n{line}")).1.starts_with("test.toml:2: shared."), "{line}");
        }
    }
}
