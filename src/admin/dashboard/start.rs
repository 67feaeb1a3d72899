//! The quick start: the first request, with the customer's own base URL.

use askama::Template;

use super::answer::{Answer, page};
use super::guard::Customer;
use super::key_form::allowed_models;
use super::layout::Frame;
use super::map::Map;

/// What stands in the place of a key that is not known.
const KEY: &str = "tg_live_YOUR_KEY";

pub(super) fn map(map: Map) -> Map {
    map.page("/start", show)
}

/// What `snippets.html` fills in.
pub(super) struct Snippets<'a> {
    /// Of the client API, `/v1` included.
    pub(super) base_url: &'a str,
    pub(super) key: &'a str,
    pub(super) model: &'a str,
}

#[derive(Template)]
#[template(path = "start.html")]
struct StartPage<'a> {
    frame: Frame,
    snippets: Snippets<'a>,
}

async fn show(customer: Customer) -> Answer {
    let snapshot = customer.who.dashboard.snapshot();
    let plan = snapshot.catalogue.plan(&customer.account.plan).map(|plan| &**plan);
    let model = allowed_models(&snapshot.catalogue, plan).next().unwrap_or_default();
    let base_url = snapshot.api_url();
    let snippets = Snippets { base_url: &base_url, key: KEY, model: &model };
    page(&StartPage { frame: Frame::of(&customer.who, "Quick start", "/start"), snippets })
}
