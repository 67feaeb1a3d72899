//! The dashboard: pages for people, customers and operators, made on the server and good without script.
//!
//! A request goes through the `map` to its handler, whose first argument is a `guard`: the proof of who asks. A handler without
//! one cannot be put into the map, and none that changes something without a `form`, which proves that the page that sent it
//! was ours. What a page shows is a template (`templates/`); what surrounds it is `layout`'s.
//!
//! Deliberately absent: the listener, which is `proxy`'s; mail, for links are shown to the operator to pass on; and anything
//! from another origin.

mod answer;
mod assets;
mod chart;
mod credit;
mod form;
mod guard;
mod key_form;
mod keys;
mod layout;
mod links;
mod map;
mod models;
mod offer;
mod once;
mod operator;
mod overview;
mod password;
mod people;
mod plan;
mod settings;
mod shown;
mod sign_in;
mod sign_up;
mod start;
#[cfg(test)]
mod tests;
mod usage;
mod usage_csv;
mod vouchers;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn;
use axum::response::Response;

use super::api::Process;
use crate::config::{Live, Snapshot};
use crate::store::Store;

use self::answer::{Answer, Refused};
use self::guard::SignedIn;
use self::map::Map;
use self::once::Sent;
use self::operator::Looks;
use self::password::Passwords;

/// What the pages work on.
#[derive(Clone)]
pub struct Dashboard(Arc<Inner>);

struct Inner {
    live: Arc<Live>,
    store: Store,
    process: Arc<dyn Process>,
    passwords: Passwords,
    sent: Sent,
    looks: Looks,
}

impl Dashboard {
    /// A dashboard over that configuration and store.
    pub fn new(live: Arc<Live>, store: &Store, process: Arc<dyn Process>) -> Self {
        Self(Arc::new(Inner {
            live,
            store: store.clone(),
            process,
            passwords: Passwords::new(),
            sent: Sent::default(),
            looks: Looks::default(),
        }))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.live.load()
    }

    /// The store, changed in nobody's name: a guard has it in somebody's.
    fn store(&self) -> &Store {
        &self.0.store
    }

    fn process(&self) -> &dyn Process {
        &*self.0.process
    }

    fn looks(&self) -> &Looks {
        &self.0.looks
    }

    fn passwords(&self) -> &Passwords {
        &self.0.passwords
    }

    /// The forms that were sent.
    fn sent(&self) -> &Sent {
        &self.0.sent
    }

    fn now_ms(&self) -> i64 {
        self.0.process.now().unix_ms
    }
}

/// All routes, ready to be served. Requests should carry a [`super::api::Peer`].
pub fn router(dashboard: Dashboard) -> Router {
    map().into_router().fallback(nothing_here).layer(from_fn(answer::guarded)).with_state(dashboard)
}

/// Every page, and who may see it.
fn map() -> Map {
    Map::default()
        .page("/", home)
        .page("/assets/{name}", assets::asset)
        .with(sign_in::map)
        .with(sign_up::map)
        .with(links::map)
        .with(overview::map)
        .with(keys::map)
        .with(usage::map)
        .with(models::map)
        .with(credit::map)
        .with(start::map)
        .with(settings::map)
        .with(people::map)
        .with(plan::map)
        .with(vouchers::map)
        .with(operator::map)
}

/// Where somebody begins.
async fn home(who: SignedIn) -> Answer {
    Ok(answer::see_other(layout::home_of(&who.user)))
}

async fn nothing_here() -> Response {
    use axum::response::IntoResponse;
    Refused::nothing_here().into_response()
}
