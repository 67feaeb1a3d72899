//! What `admin` asks of the process that serves it.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use axum::Router;

use super::Shared;
use super::failed_logins::Failed;
use crate::admin::api::{self, Api, ConfigStatus, Moment, Process, Traffic};
use crate::admin::dashboard::{self, Dashboard};
use crate::admin::stripe::{self, Webhook};
use crate::admin::{Behind, Readiness};

/// The routes of `listen.admin`.
pub(super) fn api_routes(shared: &Arc<Shared>) -> Router {
    api::router(Api::new(Arc::clone(&shared.live), &shared.store, Arc::new(Here(Arc::clone(shared)))))
}

/// The routes of `listen.dashboard`.
pub(super) fn dashboard_routes(shared: &Arc<Shared>) -> Router {
    let here: Arc<dyn Process> = Arc::new(Here(Arc::clone(shared)));
    let webhook = Webhook::new(Arc::clone(&shared.live), &shared.store, Arc::clone(&here));
    // What Stripe tells comes from outside, and the dashboard is what is reached from there.
    stripe::routes(webhook).merge(dashboard::router(Dashboard::new(Arc::clone(&shared.live), &shared.store, here)))
}

/// This process, as they see it.
struct Here(Arc<Shared>);

#[async_trait]
impl Process for Here {
    fn readiness(&self) -> Readiness {
        let shared = &self.0;
        let mistakes = shared.live.refused();
        Readiness {
            store_reachable: shared.keyring.is_store_reachable(),
            store_lost: !shared.keyring.is_trusted(),
            config_mistakes: mistakes.iter().flat_map(|mistakes| mistakes.iter()).map(ToString::to_string).collect(),
            billing_open: shared.recorder.is_open()
                && shared.leases.as_ref().is_none_or(|leases| leases.are_current(shared.clock.now_us())),
            billing_failed: shared.recorder.state().failed(),
            billing_behind: shared.billing_behind(),
            draining: shared.stage.is_leaving() || shared.leases.as_ref().is_some_and(|leases| leases.is_draining()),
        }
    }

    fn now(&self) -> Moment {
        Moment { us: self.0.clock.now_us(), unix_ms: self.0.clock.unix_ms() }
    }

    fn config(&self) -> ConfigStatus {
        self.0.config_status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn traffic(&self) -> Traffic {
        let (requests, failed) = self.0.metrics.ended();
        let in_flight = self.0.requests_in_flight.count() as u64;
        Traffic { requests, failed, in_flight, streams: self.0.metrics.streams_active.get().try_into().unwrap_or(0) }
    }

    async fn store_changed(&self) {
        // What cannot be taken over now is when the store is asked the next time.
        if let Err(error) = self.0.keyring.catch_up().await {
            tracing::warn!(%error, "a change by the admin API is taken over later");
        }
    }

    fn is_guessing(&self, from: Option<IpAddr>) -> bool {
        let most = self.0.live.load().limits.failed_auth_per_minute_max;
        self.0.failed_logins.is_flooding(Failed::AdminToken, from, most)
    }

    fn wrong_token(&self, from: Option<IpAddr>) {
        self.0.failed_logins.count(Failed::AdminToken, from);
    }

    fn may_try_password(&self, from: Option<IpAddr>, email: &str) -> bool {
        self.0.failed_logins.may_try_password(from, email, self.0.live.load().limits.failed_auth_per_minute_max)
    }
}

impl Shared {
    /// Who keeps the spool full, and why nothing is sold.
    fn billing_behind(&self) -> Vec<Behind> {
        let billing = self.recorder.state();
        if !billing.spool_full() {
            return Vec::new();
        }
        let seconds = |oldest_ms: Option<i64>| oldest_ms.map_or(0, |at| self.seconds_since(at));
        let behind = billing.behind().into_iter();
        behind.map(|(sink, records, oldest)| Behind { sink: sink.into(), records, seconds: seconds(oldest) }).collect()
    }
}
