//! `/healthz` and `/readyz`, as documents.

use serde::Serialize;
use utoipa::ToSchema;

/// What readiness is made of.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// The store answered when it was last asked.
    pub store_reachable: bool,
    /// It has not for so long that keys cannot be relied on any more.
    pub store_lost: bool,
    /// Why the last reload of the configuration was refused, a line each; empty when it was taken.
    pub config_mistakes: Vec<String>,
    /// Records can be taken.
    pub billing_open: bool,
    /// None will be, until the process is started again.
    pub billing_failed: bool,
    /// Who keeps the spool full; nobody where it is not.
    pub billing_behind: Vec<Behind>,
    /// The process has been told to end.
    pub draining: bool,
}

/// A sink that keeps the spool full.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Behind {
    /// Its name; `ledger` is one too.
    pub sink: Box<str>,
    /// How many records the spool keeps for it.
    pub records: u64,
    /// How long the oldest of those that it has not taken has waited.
    pub seconds: u64,
}

impl Readiness {
    /// A refused reload takes nothing away: the old configuration serves, and the document says so. Nor does a store that is away for
    /// a while: what is known of keys is good still, and what is sold waits in the spool.
    pub(super) fn takes_traffic(&self) -> bool {
        !self.store_lost && self.billing_open && !self.draining
    }
}

/// The process lives.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct HealthDocument {
    /// `ok`.
    #[schema(value_type = String)]
    pub(super) status: &'static str,
}

/// Whether the process should get traffic, and why not.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
pub(super) struct ReadinessDocument {
    /// `ok`, `degraded` (the last reload was refused, or the store is away), or `not ready`.
    #[schema(value_type = String)]
    status: &'static str,
    /// `ok` or `unreachable`.
    #[schema(value_type = String)]
    store: &'static str,
    /// `ok` or `the last reload was refused`.
    #[schema(value_type = String)]
    config: &'static str,
    /// Why it was refused, as `FILE:LINE: what is wrong, and the mend`.
    config_mistakes: Vec<String>,
    /// `ok`, `closed` (until there is room in the spool), or `failed`.
    #[schema(value_type = String)]
    billing: &'static str,
    /// Who keeps the spool full.
    billing_behind: Vec<Behind>,
    /// The process has been told to end.
    draining: bool,
}

impl From<Readiness> for ReadinessDocument {
    fn from(readiness: Readiness) -> Self {
        let config_valid = readiness.config_mistakes.is_empty();
        let status = match readiness.takes_traffic() {
            false => "not ready",
            true if config_valid && readiness.store_reachable => "ok",
            true => "degraded",
        };
        let billing = match (readiness.billing_open, readiness.billing_failed) {
            (true, _) => "ok",
            (false, true) => "failed",
            (false, false) => "closed",
        };
        Self {
            status,
            store: if readiness.store_reachable { "ok" } else { "unreachable" },
            config: if config_valid { "ok" } else { "the last reload was refused" },
            config_mistakes: readiness.config_mistakes,
            billing,
            billing_behind: readiness.billing_behind,
            draining: readiness.draining,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const WELL: Readiness = Readiness {
        store_reachable: true,
        store_lost: false,
        config_mistakes: Vec::new(),
        billing_open: true,
        billing_failed: false,
        billing_behind: Vec::new(),
        draining: false,
    };

    fn document(readiness: Readiness) -> Value {
        serde_json::to_value(ReadinessDocument::from(readiness)).unwrap()
    }

    #[test]
    fn a_process_that_drains_or_cannot_bill_gets_no_traffic() {
        assert!(WELL.takes_traffic());
        assert!(!Readiness { draining: true, ..WELL }.takes_traffic());
        assert!(!Readiness { billing_open: false, ..WELL }.takes_traffic());
        assert!(!Readiness { store_reachable: false, store_lost: true, ..WELL }.takes_traffic());
        let away = Readiness { store_reachable: false, ..WELL };
        assert!(away.takes_traffic());
        assert_eq!(
            (&document(away.clone())["status"], &document(away)["store"]),
            (&json!("degraded"), &json!("unreachable"))
        );
        assert_eq!(document(Readiness { draining: true, ..WELL })["status"], "not ready");
    }

    #[test]
    fn who_keeps_the_spool_full_is_named() {
        let behind = Behind { sink: "webhook".into(), records: 7_000, seconds: 60 };
        let full = document(Readiness { billing_open: false, billing_behind: vec![behind], ..WELL });
        assert_eq!(full["billing"], "closed");
        assert_eq!(full["billing_behind"], json!([{"sink": "webhook", "records": 7_000, "seconds": 60}]));
    }

    #[test]
    fn a_refused_reload_is_told_and_takes_nothing_away() {
        let refused = Readiness { config_mistakes: vec!["tollgate.toml:3: unknown key".to_owned()], ..WELL };
        assert!(refused.takes_traffic());
        let told = document(refused);
        assert_eq!((&told["status"], &told["store"]), (&json!("degraded"), &json!("ok")));
        assert_eq!(told["config_mistakes"][0], "tollgate.toml:3: unknown key");
    }
}
