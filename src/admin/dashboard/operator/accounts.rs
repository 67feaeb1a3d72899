//! All accounts, to be searched, and new ones.

use askama::Template;

use super::account::{self, Invitation};
use super::{ROWS, address, cut, usd};
use crate::admin::dashboard::answer::{Answer, Refused, page, page_as, see_other};
use crate::admin::dashboard::form::{Asked, Fields, Form};
use crate::admin::dashboard::guard::Operator;
use crate::admin::dashboard::layout::Frame;
use crate::admin::dashboard::map::Map;
use crate::admin::dashboard::once::{self, Turn};
use crate::admin::{require_plan, value};
use crate::relay::meter::NanoUsd;
use crate::relay::refusal::Cause;

const PATH: &str = "/operator/accounts";

pub(super) fn map(map: Map) -> Map {
    map.page(PATH, show).action(PATH, create)
}

#[derive(Template)]
#[template(path = "operator_accounts.html")]
struct AccountsPage {
    frame: Frame,
    search: String,
    rows: Vec<Row>,
    next: Option<String>,
    plans: Vec<String>,
    /// What was typed, where it was refused; and why.
    typed: Typed,
    wrong: String,
    /// The form's own number, so that it makes one account.
    once: String,
}

#[derive(Default)]
struct Typed {
    name: String,
    plan: String,
    credit: String,
    email: String,
}

struct Row {
    id: String,
    name: String,
    plan: String,
    is_active: bool,
    balance: String,
}

async fn show(operator: Operator, Asked(asked): Asked) -> Answer {
    page(&accounts_page(&operator, &asked, Typed::default(), String::new()).await?)
}

async fn accounts_page(
    Operator(who): &Operator,
    asked: &Fields,
    typed: Typed,
    wrong: String,
) -> Result<AccountsPage, Refused> {
    let (search, after) = (asked.text("q"), asked.given("after"));
    let found = match search {
        "" => who.store.accounts_after(after, ROWS + 1).await?,
        search => who.store.search_accounts(search, after, ROWS + 1).await?,
    };
    let (found, next) = cut(found, |account| &account.id);
    let rows = found.into_iter().map(|account| Row {
        is_active: account.active,
        balance: usd(account.balance),
        id: account.id,
        name: account.name,
        plan: account.plan,
    });
    Ok(AccountsPage {
        frame: Frame::of(who, "Accounts", PATH),
        rows: rows.collect(),
        next: next.map(|after| address(PATH, &[("q", search), ("after", &after)])),
        search: search.to_owned(),
        plans: account::plans(&who.dashboard),
        typed,
        wrong,
        once: once::new()?,
    })
}

/// A new account, with what was given for it.
struct New {
    name: String,
    credit: Option<NanoUsd>,
    email: Option<String>,
}

impl New {
    fn read(form: &Fields) -> Result<Self, String> {
        let credit = form.given("credit").map(value::amount).transpose();
        Ok(Self {
            name: value::name(form.text("name")).map_err(|wrong| format!("Name: {wrong}."))?,
            credit: credit.map_err(|wrong| format!("Credit: {wrong}."))?,
            email: form.given("email").map(value::email).transpose().map_err(|wrong| format!("E-mail: {wrong}."))?,
        })
    }
}

async fn create(operator: Operator, Form(form): Form) -> Answer {
    let new = match New::read(&form) {
        Ok(new) => new,
        Err(wrong) => return refused(&operator, &form, wrong).await,
    };
    let Operator(who) = &operator;
    let plan = form.text("plan");
    require_plan(&who.dashboard.snapshot().catalogue, plan)?;
    if let Some(email) = &new.email
        && who.store.user_by_email(email).await?.is_some()
    {
        return refused(&operator, &form, "E-mail: somebody has this address already.".to_owned()).await;
    }
    let working = match who.dashboard.sent().take(&who.user, &form) {
        Turn::First(working) => working,
        Turn::Again(path) => return Ok(see_other(if path.is_empty() { PATH } else { &path })),
    };
    let now_ms = who.now_ms();
    let account = who.store.create_account(&new.name, plan, now_ms).await?;
    if let Some(amount) = new.credit {
        who.store.credit(&account.id, amount, None, now_ms).await?;
    }
    working.done(&format!("{PATH}/{}", account.id));
    who.dashboard.process().store_changed().await;
    match new.email {
        Some(email) => {
            let invitation = Invitation::of_somebody_new(who, &account.id, &email).await?;
            account::show_with(&operator, &account.id, Some(invitation), "The account is made.").await
        }
        None => Ok(see_other(&format!("{PATH}/{}?done=made", account.id))),
    }
}

async fn refused(operator: &Operator, form: &Fields, wrong: String) -> Answer {
    let text = |name| form.text(name).to_owned();
    let typed = Typed { name: text("name"), plan: text("plan"), credit: text("credit"), email: text("email") };
    page_as(Cause::InvalidValue, &accounts_page(operator, &Fields::default(), typed, wrong).await?)
}
