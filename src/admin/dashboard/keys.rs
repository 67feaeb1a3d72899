//! A customer's keys. A key is shown once, on the page that answers the form that made it.

use std::sync::Arc;

use askama::Template;
use axum::extract::Path;

use super::answer::{Answer, Refused, page, page_as, see_other};
use super::form::{Asked, Fields, Form};
use super::guard::Customer;
use super::key_form::KeyForm;
use super::layout::Frame;
use super::map::Map;
use super::once::{self, Turn};
use super::shown::{Moment, count, usd};
use super::start::Snippets;
use crate::admin::create_key;
use crate::relay::refusal::Cause;
use crate::relay::route::Plan;
use crate::store::{Key, KeyStatus, NewKey};

const ROWS: u32 = 50;

pub(super) fn map(map: Map) -> Map {
    map.page("/keys", list)
        .action("/keys", create)
        .page("/keys/new", form)
        .page("/keys/{id}", show)
        .action("/keys/{id}/revoke", revoke)
}

#[derive(Template)]
#[template(path = "keys.html")]
struct KeysPage {
    frame: Frame,
    keys: Vec<Row>,
    next: String,
    is_first: bool,
}

/// A key in the list, and on its own page.
struct Row {
    id: String,
    name: String,
    status: &'static str,
    is_active: bool,
    rpm: String,
    spent: String,
    budget: String,
    created: Moment,
    used: Option<Moment>,
}

fn row(key: &Key, plan: Option<&Arc<Plan>>, now_ms: i64, used_at_ms: Option<i64>) -> Row {
    let status = key.status_at(now_ms);
    let plans_is_less = |rpm: &u32| key.terms.within_plan && plan.is_some_and(|plan| plan.requests_per_minute < *rpm);
    let rpm = key.terms.requests_per_minute.filter(|rpm| !plans_is_less(rpm));
    Row {
        id: key.id.clone(),
        name: key.name.clone(),
        status: status.name(),
        is_active: status == KeyStatus::Active,
        rpm: rpm.map_or_else(|| "plan's".to_owned(), |rpm| count(rpm.into())),
        spent: usd(key.spent),
        budget: key.terms.budget.map(usd).unwrap_or_default(),
        created: Moment::of(key.created_at_ms),
        used: used_at_ms.map(Moment::of),
    }
}

async fn list(customer: Customer, Asked(asked): Asked) -> Answer {
    let (who, now_ms) = (&customer.who, customer.who.now_ms());
    let after = asked.given("after");
    if let Some(after) = after {
        customer.key(after).await?;
    }
    let mut keys = who.store.keys_after(Some(&customer.account.id), after, ROWS + 1).await?;
    let used = who.store.keys_last_used(&customer.account.id).await?;
    let has_more = keys.len() > ROWS as usize;
    keys.truncate(ROWS as usize);
    let snapshot = who.dashboard.snapshot();
    let plan = snapshot.catalogue.plan(&customer.account.plan);
    let next = keys.last().filter(|_| has_more).map(|key| key.id.clone()).unwrap_or_default();
    page(&KeysPage {
        frame: Frame::of(who, "Keys", "/keys"),
        keys: keys.iter().map(|key| row(key, plan, now_ms, used.get(&key.id).copied())).collect(),
        next,
        is_first: after.is_none(),
    })
}

#[derive(Template)]
#[template(path = "key_new.html")]
struct NewKeyPage {
    frame: Frame,
    plan: String,
    plans_rpm: String,
    form: KeyForm,
    /// The form's own number, so that it makes one key.
    once: String,
}

fn new_key_page(customer: &Customer, form: KeyForm) -> Result<NewKeyPage, Refused> {
    let snapshot = customer.who.dashboard.snapshot();
    let plan = snapshot.catalogue.plan(&customer.account.plan);
    Ok(NewKeyPage {
        frame: Frame::of(&customer.who, "New key", "/keys"),
        plan: customer.account.plan.clone(),
        plans_rpm: plan.map(|plan| count(plan.requests_per_minute.into())).unwrap_or_default(),
        form,
        once: once::new()?,
    })
}

async fn form(customer: Customer) -> Answer {
    let snapshot = customer.who.dashboard.snapshot();
    let plan = snapshot.catalogue.plan(&customer.account.plan);
    let form = KeyForm::new(&Fields::default(), &snapshot.catalogue, plan.map(|plan| &**plan));
    page(&new_key_page(&customer, form)?)
}

#[derive(Template)]
#[template(path = "key_made.html")]
struct MadeKeyPage<'a> {
    frame: Frame,
    name: &'a str,
    snippets: Snippets<'a>,
}

async fn create(customer: Customer, Form(typed): Form) -> Answer {
    let (who, now_ms) = (&customer.who, customer.who.now_ms());
    let snapshot = who.dashboard.snapshot();
    let plan = snapshot.catalogue.plan(&customer.account.plan).map(|plan| &**plan);
    let mut form = KeyForm::new(&typed, &snapshot.catalogue, plan);
    let Some((name, terms)) = form.read(&typed, plan, now_ms) else {
        return page_as(Cause::InvalidValue, &new_key_page(&customer, form)?);
    };
    let working = match who.dashboard.sent().take(&who.user, &typed) {
        Turn::First(working) => working,
        Turn::Again(path) => return Ok(see_other(if path.is_empty() { "/keys" } else { &path })),
    };
    let account_id = customer.account.id.clone();
    let keys = who.store.keys(Some(&account_id)).await?;
    let active = keys.iter().filter(|key| key.status_at(now_ms) == KeyStatus::Active).count();
    let most = snapshot.dashboard.keys_per_account_max;
    if u32::try_from(active).map_or(true, |active| active >= most) {
        form.refuse(
            "name",
            &format!("You have {active} keys that are good, and may have {most}. Revoke one that you do not need."),
        );
        return page_as(Cause::InvalidValue, &new_key_page(&customer, form)?);
    }
    let first_model = terms.models.as_ref().and_then(|models| models.first().cloned());
    let new = NewKey { account_id, name, terms };
    let (key, secret) = create_key(&who.store, &new, now_ms).await?;
    working.done(&format!("/keys/{}", key.id));
    who.dashboard.process().store_changed().await;
    let model = first_model.or_else(|| super::key_form::allowed_models(&snapshot.catalogue, plan).next());
    let (base_url, model) = (snapshot.api_url(), model.unwrap_or_default());
    let snippets = Snippets { base_url: &base_url, key: secret.expose(), model: &model };
    page(&MadeKeyPage { frame: Frame::of(who, "Your new key", "/keys"), name: &key.name, snippets })
}

#[derive(Template)]
#[template(path = "key.html")]
struct KeyPage {
    frame: Frame,
    key: Row,
    tpm: String,
    concurrency: String,
    models: Vec<String>,
    allow_ip: Vec<String>,
    expires: Option<Moment>,
    revoked: Option<Moment>,
}

async fn show(customer: Customer, Path(id): Path<String>) -> Answer {
    let key = customer.key(&id).await?;
    page(&key_page(&customer, &key).await?)
}

async fn key_page(customer: &Customer, key: &Key) -> Result<KeyPage, Refused> {
    let terms = &key.terms;
    let snapshot = customer.who.dashboard.snapshot();
    let plan = snapshot.catalogue.plan(&customer.account.plan);
    Ok(KeyPage {
        frame: Frame::of(&customer.who, "Key", "/keys"),
        key: row(key, plan, customer.who.now_ms(), customer.who.store.key_last_used(&key.id).await?),
        tpm: terms.tokens_per_minute.map(count).unwrap_or_default(),
        concurrency: terms.concurrent_requests.map(|most| count(most.into())).unwrap_or_default(),
        models: terms.models.clone().unwrap_or_default(),
        allow_ip: terms.allow_ip.iter().map(ToString::to_string).collect(),
        expires: terms.expires_at_ms.map(Moment::of),
        revoked: key.revoked_at_ms.map(Moment::of),
    })
}

async fn revoke(customer: Customer, Path(id): Path<String>, Form(_): Form) -> Answer {
    let key = customer.key(&id).await?;
    customer.who.store.revoke_key(&key.id, customer.who.now_ms()).await?;
    customer.who.dashboard.process().store_changed().await;
    Ok(see_other(&format!("/keys/{}", key.id)))
}
