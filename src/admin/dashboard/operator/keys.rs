//! All keys, to be searched and revoked.

use askama::Template;
use axum::extract::Path;

use super::{ROWS, address, cut, moment, usd};
use crate::admin::dashboard::answer::{Answer, Refused, own_path, page, see_other};
use crate::admin::dashboard::form::{Asked, Form};
use crate::admin::dashboard::guard::{Operator, SignedIn};
use crate::admin::dashboard::layout::Frame;
use crate::admin::dashboard::map::Map;
use crate::store::{Key, KeyStatus};

const PATH: &str = "/operator/keys";

pub(super) fn map(map: Map) -> Map {
    map.page(PATH, show).action("/operator/keys/{key}/revoke", revoke)
}

#[derive(Template)]
#[template(path = "operator_keys.html")]
struct KeysPage {
    frame: Frame,
    search: String,
    rows: Vec<KeyRow>,
    next: Option<String>,
    /// Where revoking leads back to.
    here: String,
}

/// A key as lists have it.
pub(super) struct KeyRow {
    pub(super) id: String,
    pub(super) account_id: String,
    pub(super) name: String,
    pub(super) status: &'static str,
    pub(super) can_be_revoked: bool,
    pub(super) spent: String,
    pub(super) budget: String,
    pub(super) created: String,
    pub(super) last_used: String,
}

/// Keys as lists have them.
pub(super) async fn rows(who: &SignedIn, keys: Vec<Key>) -> Result<Vec<KeyRow>, Refused> {
    let mut rows = Vec::with_capacity(keys.len());
    for key in keys {
        let status = key.status_at(who.now_ms());
        rows.push(KeyRow {
            status: status.name(),
            can_be_revoked: status != KeyStatus::Revoked,
            spent: usd(key.spent),
            budget: key.terms.budget.map(usd).unwrap_or_default(),
            created: moment(key.created_at_ms),
            last_used: who.store.key_last_used(&key.id).await?.map(moment).unwrap_or_default(),
            id: key.id,
            account_id: key.account_id,
            name: key.name,
        });
    }
    Ok(rows)
}

async fn show(Operator(who): Operator, Asked(asked): Asked) -> Answer {
    let (search, after) = (asked.text("q"), asked.given("after"));
    let found = match search {
        "" => who.store.keys_after(None, after, ROWS + 1).await?,
        search => who.store.search_keys(search, after, ROWS + 1).await?,
    };
    let (found, next) = cut(found, |key| &key.id);
    page(&KeysPage {
        frame: Frame::of(&who, "Keys", PATH),
        rows: rows(&who, found).await?,
        next: next.map(|after| address(PATH, &[("q", search), ("after", &after)])),
        here: address(PATH, &[("q", search), ("after", after.unwrap_or_default())]),
        search: search.to_owned(),
    })
}

async fn revoke(Operator(who): Operator, Path(id): Path<String>, Form(form): Form) -> Answer {
    who.store.revoke_key(&id, who.now_ms()).await?;
    who.dashboard.process().store_changed().await;
    Ok(see_other(own_path(form.text("back")).unwrap_or(PATH)))
}
