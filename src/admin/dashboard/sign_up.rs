//! Open registration, where the configuration has it: anybody makes themselves an account, which begins with some credit.
//!
//! The e-mail address is a name to sign in with. That it can be read is not checked, for this program sends no mail.

use askama::Template;
use axum::extract::State;

use super::Dashboard;
use super::answer::{Answer, Refused, page, page_as, see_other};
use super::form::Form;
use super::guard::{Anyone, new_session};
use super::layout::Frame;
use super::map::Map;
use super::password;
use super::sign_in::{end_earlier, with_cookie};
use crate::admin::{require_plan, value};
use crate::relay::refusal::Cause;
use crate::store::{Actor, NewUser, Role, StoreError};

pub(super) fn map(map: Map) -> Map {
    map.page("/register", show).action("/register", register)
}

#[derive(Template)]
#[template(path = "register.html")]
struct RegisterPage<'a> {
    frame: Frame,
    email: &'a str,
    wrong: &'a str,
}

fn register_page<'a>(email: &'a str, wrong: &'a str) -> RegisterPage<'a> {
    RegisterPage { frame: Frame::bare("Register"), email, wrong }
}

async fn show(_: Anyone, State(dashboard): State<Dashboard>) -> Answer {
    require_open(&dashboard)?;
    page(&register_page("", ""))
}

fn require_open(dashboard: &Dashboard) -> Result<(), Refused> {
    if dashboard.snapshot().dashboard.registration { Ok(()) } else { Err(Refused::nothing_here()) }
}

async fn register(visitor: Anyone, State(dashboard): State<Dashboard>, Form(form): Form) -> Answer {
    require_open(&dashboard)?;
    let (typed, chosen) = (form.text("email"), form.raw("password"));
    let again = |wrong| page_as(Cause::InvalidValue, &register_page(typed, wrong));
    let email = match value::email(typed) {
        Ok(email) => email,
        Err(_) => return again("Write an e-mail address, such as ada@example.com."),
    };
    if let Err(wrong) = password::check(chosen) {
        return again(wrong);
    }
    // Whoever tries out which addresses are taken is as slow as whoever guesses passwords.
    if !dashboard.process().may_try_password(visitor.address, &email) {
        let page = register_page(typed, "Too many tries. Wait a minute and try again.");
        return page_as(Cause::TooManyFailedAttempts, &page);
    }
    let phc = dashboard.passwords().hash(chosen).await?;
    let user_id = match create(&dashboard, &email, &phc).await {
        Err(Refused::Because(Cause::InvalidValue, wrong)) => return again(wrong),
        created => created?,
    };
    let (token, expires_at_ms) = new_session(&dashboard)?;
    let now_ms = dashboard.now_ms();
    dashboard.store().begin_session(&user_id, &token.digest(), now_ms, expires_at_ms).await?;
    end_earlier(&dashboard, &visitor).await?;
    with_cookie(see_other("/"), Some((&token, expires_at_ms)), now_ms)
}

/// The account, its credit and who signs in to it. Answers with their id.
async fn create(dashboard: &Dashboard, email: &str, phc: &str) -> Result<String, Refused> {
    let (snapshot, now_ms) = (dashboard.snapshot(), dashboard.now_ms());
    let terms = &snapshot.dashboard;
    require_plan(&snapshot.catalogue, &terms.starting_plan)?;
    let store = dashboard.store().in_the_name_of(Actor::User(email.into()));
    // Two at once with one address: the second fails at the user, and its account has no credit yet.
    if store.user_by_email(email).await?.is_some() {
        return Err(StoreError::EmailTaken.into());
    }
    let account = store.create_account(email, &terms.starting_plan, now_ms).await?;
    let new = NewUser { email, role: Role::Customer, account_id: Some(&account.id), password: Some(phc) };
    let user = store.create_user(&new, now_ms).await?;
    if terms.starting_credit.0 > 0 {
        store.credit(&account.id, terms.starting_credit, Some("to begin with"), now_ms).await?;
    }
    dashboard.process().store_changed().await;
    Ok(user.id)
}
