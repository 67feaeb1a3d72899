//! One account: its plan, money, people, keys and usage, and what can be changed of them.

use askama::Template;
use axum::extract::Path;
use uuid::Uuid;

use super::keys::{self, KeyRow};
use super::{moment, usd};
use crate::admin::dashboard::Dashboard;
use crate::admin::dashboard::answer::{Answer, Refused, page, page_as, see_other};
use crate::admin::dashboard::chart::{DayChart, Unit};
use crate::admin::dashboard::form::{Asked, Form};
use crate::admin::dashboard::guard::{Operator, SignedIn};
use crate::admin::dashboard::layout::Frame;
use crate::admin::dashboard::map::Map;
use crate::admin::people::{create_link, purpose_for};
use crate::admin::{require_plan, value};
use crate::relay::refusal::Cause;
use crate::store::{By, NewUser, Role, StoreError, UsageFilter, User, day_number};

/// Days that the chart goes back, today included.
const CHART_DAYS: i64 = 30;
const DAY_MS: i64 = 86_400_000;
/// Movements of money on the page.
const CREDITS: u32 = 20;
/// Keys on the page; the page of all keys has the others.
const KEYS: u32 = 20;

pub(super) fn map(map: Map) -> Map {
    map.page("/operator/accounts/{account}", show)
        .action("/operator/accounts/{account}/plan", set_plan)
        .action("/operator/accounts/{account}/credit", credit)
        .action("/operator/accounts/{account}/status", set_status)
        .action("/operator/accounts/{account}/invite", invite)
}

#[derive(Template)]
#[template(path = "operator_account.html")]
struct AccountPage {
    frame: Frame,
    id: String,
    name: String,
    plan: String,
    plans: Vec<String>,
    is_active: bool,
    balance: String,
    created: String,
    requests: u64,
    errors: u64,
    spent: String,
    provider_cost: String,
    uncosted: u64,
    spent_chart: String,
    requests_chart: String,
    credits: Vec<CreditRow>,
    people: Vec<PersonRow>,
    rows: Vec<KeyRow>,
    /// Where revoking a key leads back to.
    here: String,
    has_more_keys: bool,
    /// Goes with the credit form, so that a form that is sent twice moves money once.
    once: String,
    invitation: Option<Invitation>,
    done: &'static str,
    wrong: String,
}

struct CreditRow {
    at: String,
    kind: &'static str,
    amount: String,
    note: String,
}

struct PersonRow {
    id: String,
    email: String,
    status: &'static str,
    has_password: bool,
}

/// A link to pass on; it is shown this once.
pub(super) struct Invitation {
    email: String,
    url: String,
    expires: String,
}

impl Invitation {
    /// For somebody who is to be a customer of that account.
    pub(super) async fn of_somebody_new(who: &SignedIn, account_id: &str, email: &str) -> Result<Self, Refused> {
        let new = NewUser { email, role: Role::Customer, account_id: Some(account_id), password: None };
        let user = who.store.create_user(&new, who.now_ms()).await?;
        Self::of(who, &user).await
    }

    async fn of(who: &SignedIn, user: &User) -> Result<Self, Refused> {
        let link = create_link(&who.store, user, purpose_for(user), who.now_ms()).await?;
        let dashboard = who.dashboard.snapshot().dashboard_url().unwrap_or_default();
        Ok(Self { email: user.email.clone(), url: link.url(&dashboard), expires: moment(link.expires_at_ms) })
    }
}

/// The plans that there are, by name.
pub(super) fn plans(dashboard: &Dashboard) -> Vec<String> {
    dashboard.snapshot().catalogue.plan_names().into_iter().map(str::to_owned).collect()
}

async fn show(operator: Operator, Path(id): Path<String>, Asked(asked): Asked) -> Answer {
    let done = match asked.text("done") {
        "made" => "The account is made.",
        "plan" => "The plan is changed.",
        "credit" => "The balance is changed.",
        "status" => "The account is changed; its keys know within 2 seconds.",
        _ => "",
    };
    show_with(&operator, &id, None, done).await
}

/// The page, with what was just done.
pub(super) async fn show_with(
    operator: &Operator,
    id: &str,
    invitation: Option<Invitation>,
    done: &'static str,
) -> Answer {
    page(&AccountPage { invitation, done, ..account_page(operator, id).await? })
}

async fn refused(operator: &Operator, id: &str, wrong: String) -> Answer {
    page_as(Cause::InvalidValue, &AccountPage { wrong, ..account_page(operator, id).await? })
}

async fn account_page(Operator(who): &Operator, id: &str) -> Result<AccountPage, Refused> {
    let (store, now_ms) = (&who.store, who.now_ms());
    let account = store.account(id).await?;
    let last_day = day_number(now_ms);
    let first_day = last_day - CHART_DAYS + 1;
    let filter = UsageFilter {
        account_id: Some(account.id.clone()),
        since_ms: Some(first_day * DAY_MS),
        ..UsageFilter::default()
    };
    let sum = store.usage_sum(&filter).await?;
    let days = store.usage_by_day_and(&filter, By::Model).await?;
    let shown = (first_day, last_day);
    let spent = DayChart::new("spent", "Spent by day and model", Unit::Usd, shown, &days, |sum| sum.cost.0);
    let requests = DayChart::new("requests", "Requests by day and model", Unit::Count, shown, &days, |sum| {
        i64::try_from(sum.requests).unwrap_or(i64::MAX)
    });
    let credits = store.credits_before(id, i64::MAX, CREDITS).await?.into_iter().map(|credit| CreditRow {
        at: moment(credit.created_at_ms),
        kind: credit.kind.name(),
        amount: usd(credit.amount),
        note: credit.note.unwrap_or_default(),
    });
    let people = store.users_of(id).await?.into_iter().map(|user| PersonRow {
        status: user.status(),
        has_password: user.has_password,
        email: user.email,
        id: user.id,
    });
    let mut keys = store.keys_after(Some(id), None, KEYS + 1).await?;
    let has_more_keys = keys.len() > KEYS as usize;
    keys.truncate(KEYS as usize);
    Ok(AccountPage {
        frame: Frame::of(who, "Account", "/operator/accounts"),
        plans: plans(&who.dashboard),
        is_active: account.active,
        balance: usd(account.balance),
        created: moment(account.created_at_ms),
        requests: sum.requests,
        errors: sum.errors,
        spent: usd(sum.cost),
        provider_cost: usd(sum.provider_cost),
        uncosted: sum.uncosted,
        spent_chart: spent.html(),
        requests_chart: requests.html(),
        credits: credits.collect(),
        people: people.collect(),
        rows: keys::rows(who, keys).await?,
        here: format!("/operator/accounts/{id}"),
        has_more_keys,
        once: Uuid::now_v7().to_string(),
        invitation: None,
        done: "",
        wrong: String::new(),
        id: account.id,
        name: account.name,
        plan: account.plan,
    })
}

fn back(id: &str, done: &str) -> Answer {
    Ok(see_other(&format!("/operator/accounts/{id}?done={done}")))
}

async fn set_plan(operator: Operator, Path(id): Path<String>, Form(form): Form) -> Answer {
    let Operator(who) = &operator;
    require_plan(&who.dashboard.snapshot().catalogue, form.text("plan"))?;
    let account = match who.store.set_plan(&id, form.text("plan"), who.now_ms()).await {
        Ok(account) => account,
        Err(error @ StoreError::Subscribed { .. }) => return refused(&operator, &id, format!("{error}.")).await,
        Err(error) => return Err(error.into()),
    };
    who.dashboard.process().store_changed().await;
    back(&account.id, "plan")
}

async fn credit(operator: Operator, Path(id): Path<String>, Form(form): Form) -> Answer {
    let Operator(who) = &operator;
    let amount = match value::amount(form.text("amount")) {
        Ok(amount) => amount,
        Err(wrong) => return refused(&operator, &id, format!("Amount: {wrong}.")).await,
    };
    let note = match form.given("note").map(value::name).transpose() {
        Ok(note) => note,
        Err(wrong) => return refused(&operator, &id, format!("Note: {wrong}.")).await,
    };
    let once = form.given("once").and_then(|once| Uuid::parse_str(once).ok()).map(|once| format!("dashboard-{once}"));
    let Some(once) = once else {
        return refused(&operator, &id, "The page was old. Try again.".to_owned()).await;
    };
    let credited = who.store.credit_once(&id, amount, note.as_deref(), Some(&once), who.now_ms()).await?;
    who.dashboard.process().store_changed().await;
    back(&credited.account.id, "credit")
}

async fn set_status(Operator(who): Operator, Path(id): Path<String>, Form(form): Form) -> Answer {
    let active = match form.text("status") {
        "active" => true,
        "suspended" => false,
        _ => return Err(Refused::Because(Cause::InvalidValue, "An account is active or suspended.")),
    };
    let account = who.store.set_account_active(&id, active, who.now_ms()).await?;
    who.dashboard.process().store_changed().await;
    back(&account.id, "status")
}

/// A link for somebody: who is new is made first; who is the account's already gets another link.
async fn invite(operator: Operator, Path(id): Path<String>, Form(form): Form) -> Answer {
    let Operator(who) = &operator;
    let account = who.store.account(&id).await?;
    let email = match value::email(form.text("email")) {
        Ok(email) => email,
        Err(wrong) => return refused(&operator, &id, format!("E-mail: {wrong}.")).await,
    };
    let invitation = match who.store.user_by_email(&email).await? {
        None => Invitation::of_somebody_new(who, &account.id, &email).await?,
        Some(user) if user.account_id.as_deref() == Some(&account.id) => Invitation::of(who, &user).await?,
        Some(_) => return refused(&operator, &id, "E-mail: somebody has this address already.".to_owned()).await,
    };
    show_with(&operator, &account.id, Some(invitation), "").await
}
