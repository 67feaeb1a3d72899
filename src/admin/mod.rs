//! What machines ask of the relay: whether the process lives, whether it should get traffic, and how its providers are.
//!
//! Absent: the listener, which is `proxy`'s, and the rest of the admin API.

mod providers;

use serde_json::json;

pub use providers::{Now, Question, providers};

/// What readiness is made of.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// The store answered when it was last asked.
    pub store_reachable: bool,
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
#[derive(Debug, Clone)]
pub struct Behind {
    /// Its name; `ledger` is one too.
    pub sink: Box<str>,
    /// How many records the spool keeps for it.
    pub records: u64,
    /// How long the oldest of those that it has not taken has waited.
    pub seconds: u64,
}

/// An answer to a machine: a status and a JSON document.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The document.
    pub body: String,
}

/// Answers `/healthz` and `/readyz`; `None` for other paths.
pub fn answer(path: &str, readiness: &Readiness) -> Option<Reply> {
    match path {
        "/healthz" => Some(Reply { status: 200, body: json!({"status": "ok"}).to_string() }),
        "/readyz" => Some(ready(readiness)),
        _ => None,
    }
}

/// 503 takes a process out of a load balancer. A refused reload does not: the old configuration serves, and the document
/// says so.
fn ready(readiness: &Readiness) -> Reply {
    let Readiness { store_reachable, ref config_mistakes, billing_open, billing_failed, ref billing_behind, draining } =
        *readiness;
    let behind: Vec<_> = billing_behind
        .iter()
        .map(|behind| json!({"sink": behind.sink, "records": behind.records, "seconds": behind.seconds}))
        .collect();
    let config_valid = config_mistakes.is_empty();
    let takes_traffic = store_reachable && billing_open && !draining;
    let body = json!({
        "status": if !takes_traffic { "not ready" } else if config_valid { "ok" } else { "degraded" },
        "store": if store_reachable { "ok" } else { "unreachable" },
        "config": if config_valid { "ok" } else { "the last reload was refused" },
        "config_mistakes": config_mistakes,
        "billing": if billing_open { "ok" } else if billing_failed { "failed" } else { "closed" },
        "billing_behind": behind,
        "draining": draining,
    });
    Reply { status: if takes_traffic { 200 } else { 503 }, body: body.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Readiness = Readiness {
        store_reachable: true,
        config_mistakes: Vec::new(),
        billing_open: true,
        billing_failed: false,
        billing_behind: Vec::new(),
        draining: false,
    };

    #[test]
    fn a_process_that_drains_or_cannot_bill_gets_no_traffic() {
        let status = |readiness: &Readiness| answer("/readyz", readiness).unwrap().status;
        assert_eq!(status(&WELL), 200);
        assert_eq!(status(&Readiness { draining: true, ..WELL }), 503);
        assert_eq!(status(&Readiness { billing_open: false, ..WELL }), 503);
        assert_eq!(status(&Readiness { store_reachable: false, ..WELL }), 503);
    }

    #[test]
    fn who_keeps_the_spool_full_is_named() {
        let behind = Behind { sink: "webhook".into(), records: 7_000, seconds: 60 };
        let full = Readiness { billing_open: false, billing_behind: vec![behind], ..WELL };
        let reply = answer("/readyz", &full).unwrap();
        let document: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!((reply.status, &document["billing"]), (503, &json!("closed")));
        assert_eq!(document["billing_behind"], json!([{"sink": "webhook", "records": 7_000, "seconds": 60}]));
    }

    #[test]
    fn a_refused_reload_is_told_and_takes_nothing_away() {
        let config_mistakes = vec!["tollgate.toml:3: unknown key".to_owned()];
        let reply = answer("/readyz", &Readiness { config_mistakes, ..WELL }).unwrap();
        assert_eq!(reply.status, 200);
        assert!(reply.body.contains("refused") && reply.body.contains("tollgate.toml:3"));
        assert_eq!(answer("/elsewhere", &WELL), None);
    }
}
