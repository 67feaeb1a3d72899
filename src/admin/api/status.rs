//! How the process is: `/healthz` and `/readyz`, which ask for no token, and `/config`.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::{Answer, ErrorDocument, Refusals, json};
use crate::admin::health::{HealthDocument, ReadinessDocument};
use crate::relay::meter::rfc3339;

/// The configuration in force.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Configuration)]
struct ConfigDocument {
    /// Counts the configurations that were in force in this process, from 1.
    version: u64,
    #[schema(format = DateTime)]
    loaded_at: String,
    /// The last attempt to load another one; null where there was none.
    #[schema(required)]
    last_reload: Option<ReloadDocument>,
    /// Settings that changed but are only taken up at the next start.
    needs_restart: Vec<String>,
    /// Every file that was read for it.
    files: Vec<String>,
}

/// An attempt to load a configuration.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Reload)]
struct ReloadDocument {
    #[schema(format = DateTime)]
    at: String,
    /// `ok`, or `refused`: then the one before stays in force.
    #[schema(value_type = String)]
    outcome: &'static str,
    /// Why it was refused, as `FILE:LINE: what is wrong, and the mend`.
    mistakes: Vec<String>,
}

/// Whether the process lives
#[utoipa::path(
    get, path = "/healthz", operation_id = "healthz", tag = "status", security(()),
    responses((status = 200, description = "It does", body = HealthDocument),
              (status = 400, description = "The request cannot be read", body = ErrorDocument))
)]
pub(super) async fn healthz() -> Answer {
    json(StatusCode::OK, &HealthDocument { status: "ok" })
}

/// Whether the process should get traffic
///
/// 503 takes it out of a load balancer. A refused reload does not: the old configuration serves, and the document says so.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "status", security(()),
    responses((status = 200, description = "It should", body = ReadinessDocument),
              (status = 400, description = "The request cannot be read", body = ErrorDocument),
              (status = 503, description = "It should not", body = ReadinessDocument))
)]
pub(super) async fn readyz(State(api): State<Api>) -> Answer {
    let readiness = api.process.readiness();
    let status = if readiness.takes_traffic() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &ReadinessDocument::from(readiness))
}

/// The configuration in force: which, since when, and what became of the last reload
#[utoipa::path(
    get, path = "/config", operation_id = "show_config", tag = "status",
    responses((status = 200, description = "How it stands", body = ConfigDocument), Refusals)
)]
pub(super) async fn config(State(api): State<Api>) -> Answer {
    let (snapshot, status) = (api.snapshot(), api.process.config());
    let refused = api.live.refused();
    let mistakes = || refused.iter().flat_map(|mistakes| mistakes.iter()).map(ToString::to_string).collect();
    let last_reload = status.last_reload.map(|(at_ms, taken)| ReloadDocument {
        at: rfc3339(at_ms),
        outcome: if taken { "ok" } else { "refused" },
        mistakes: if taken { Vec::new() } else { mistakes() },
    });
    let document = ConfigDocument {
        version: snapshot.version,
        loaded_at: rfc3339(status.loaded_at_ms),
        last_reload,
        needs_restart: status.needs_restart.into_iter().map(str::to_owned).collect(),
        files: snapshot.files.iter().map(|path| path.display().to_string()).collect(),
    };
    json(StatusCode::OK, &document)
}
