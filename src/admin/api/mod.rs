//! The admin API: JSON over HTTP for programs of the operator, one axum router that knows nothing of where it is served.
//!
//! What it changes it changes by the store's own operations, in the name of whoever knows the token, and each change has its
//! entry in the audit log. Its documents are those of the command line. Every route is put into the router and into the OpenAPI
//! document by the same line (`routes!`); nothing here may call axum's `route`.
//!
//! Deliberately absent: people and their sessions, for whom the dashboard is.

mod accounts;
mod answer;
mod audit;
mod catalogue;
mod credits;
mod document;
mod gate;
mod input;
mod keys;
mod status;
mod subscriptions;
#[cfg(test)]
mod tests;
mod usage;
mod vouchers;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::middleware::from_fn_with_state;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Readiness;
use crate::config::{Live, Snapshot};
use crate::relay::refusal::{Cause, Refusal};
use crate::store::{Actor, Store};

use self::answer::Refused;
pub use self::gate::Peer;

/// What the process that serves the API knows and does.
#[async_trait]
pub trait Process: Send + Sync {
    /// What readiness is made of, now.
    fn readiness(&self) -> Readiness;
    /// What time it is.
    fn now(&self) -> Moment;
    /// How the configuration came to be the one in force.
    fn config(&self) -> ConfigStatus;
    /// What is going on.
    fn traffic(&self) -> Traffic;
    /// Takes a change of the store over at once, for the requests of this process.
    async fn store_changed(&self);
    /// Whether too many wrong tokens came from there.
    fn is_guessing(&self, from: Option<IpAddr>) -> bool;
    /// A wrong token came from there.
    fn wrong_token(&self, from: Option<IpAddr>);
    /// Counts that somebody from there tries the password of that e-mail address, and answers whether they may.
    fn may_try_password(&self, from: Option<IpAddr>, email: &str) -> bool;
}

/// A moment, by the relay's clock and by the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Microseconds of the relay's clock.
    pub us: u64,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: i64,
}

impl Moment {
    /// What the wall clock shows at a later time of the relay's clock.
    pub(super) fn unix_ms_at(self, us: u64) -> i64 {
        let from_now_ms = i64::try_from(us.saturating_sub(self.us) / 1000).unwrap_or(i64::MAX);
        self.unix_ms.saturating_add(from_now_ms)
    }
}

/// What is going on in the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that have ended since the process began, whatever became of them.
    pub requests: u64,
    /// Those of them that were answered with 500 or more.
    pub failed: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Answers that are being streamed.
    pub streams: u64,
}

/// How the configuration came to be the one in force.
#[derive(Debug, Clone, Default)]
pub struct ConfigStatus {
    /// When it was loaded. Milliseconds since the Unix epoch.
    pub loaded_at_ms: i64,
    /// When the last reload was tried, and whether it was taken.
    pub last_reload: Option<(i64, bool)>,
    /// Settings that changed but are only taken up at the next start.
    pub needs_restart: Vec<&'static str>,
}

/// What the routes work on.
#[derive(Clone)]
pub struct Api {
    live: Arc<Live>,
    store: Store,
    process: Arc<dyn Process>,
}

impl Api {
    /// An API over that configuration and store.
    pub fn new(live: Arc<Live>, store: &Store, process: Arc<dyn Process>) -> Self {
        Self { live, store: store.in_the_name_of(Actor::AdminToken), process }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.live.load()
    }

    fn now_ms(&self) -> i64 {
        self.process.now().unix_ms
    }
}

/// All routes, ready to be served: `/healthz`, `/readyz` and what lies below `/admin/v1`. Requests should carry a [`Peer`].
pub fn router(api: Api) -> Router {
    let gate = from_fn_with_state(api.clone(), gate::gate);
    let (health, _) = health_routes().split_for_parts();
    let (admin, _) = admin_routes().split_for_parts();
    Router::new()
        .nest("/admin/v1", admin.route_layer(gate))
        .merge(health)
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

fn health_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(status::healthz)).routes(routes!(status::readyz))
}

fn admin_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(accounts::list, accounts::create))
        .routes(routes!(accounts::show, accounts::update))
        .routes(routes!(credits::list, credits::create))
        .routes(routes!(keys::list_of_account, keys::create))
        .routes(routes!(keys::list))
        .routes(routes!(keys::show, keys::revoke))
        .routes(routes!(subscriptions::list))
        .routes(routes!(subscriptions::show, subscriptions::create, subscriptions::update, subscriptions::end))
        .routes(routes!(subscriptions::periods))
        .routes(routes!(vouchers::list, vouchers::create))
        .routes(routes!(vouchers::show, vouchers::revoke))
        .routes(routes!(vouchers::redeem))
        .routes(routes!(usage::usage))
        .routes(routes!(catalogue::models))
        .routes(routes!(catalogue::plans))
        .routes(routes!(catalogue::providers))
        .routes(routes!(audit::list))
        .routes(routes!(status::config))
        .routes(routes!(document::openapi))
}

async fn nothing_here() -> Refused {
    Refused(Refusal::new(Cause::UnknownUrl, "There is nothing here; /healthz, /readyz and /admin/v1/openapi.json are."))
}

async fn wrong_method() -> Refused {
    Refused(Refusal::new(Cause::MethodNotAllowed, "This path has other methods; the Allow header names them."))
}
