//! The operators' page of people: who may sign in, and the links that let them.

use askama::Template;
use axum::extract::Path;

use super::answer::{Answer, Refused, page, page_as, see_other};
use super::form::{Asked, Fields, Form};
use super::guard::Operator;
use super::layout::Frame;
use super::map::Map;
use super::shown::Moment;
use crate::admin::people::create_link;
use crate::admin::value;
use crate::relay::refusal::Cause;
use crate::store::{LinkPurpose, NewUser, Role, StoreError, User, UserChange};

const ROWS: u32 = 50;

pub(super) fn map(map: Map) -> Map {
    map.page("/operator/people", list)
        .action("/operator/people", create)
        .page("/operator/people/{id}", show)
        .action("/operator/people/{id}/link", link)
        .action("/operator/people/{id}/change", change)
        .action("/operator/people/{id}/sign-out", sign_out)
}

#[derive(Template)]
#[template(path = "people.html")]
struct PeoplePage {
    frame: Frame,
    people: Vec<Row>,
    next: String,
    is_first: bool,
    email: String,
    account: String,
    is_operator: bool,
    wrong: String,
}

/// Somebody.
struct Row {
    id: String,
    email: String,
    role: &'static str,
    account: String,
    status: &'static str,
    is_suspended: bool,
    created: Moment,
}

fn row(user: &User) -> Row {
    Row {
        id: user.id.clone(),
        email: user.email.clone(),
        role: user.role.name(),
        account: user.account_id.clone().unwrap_or_default(),
        status: user.status(),
        is_suspended: !user.active,
        created: Moment::of(user.created_at_ms),
    }
}

async fn list(operator: Operator, Asked(asked): Asked) -> Answer {
    page(&people_page(&operator, asked.given("after"), &asked, String::new()).await?)
}

async fn people_page(
    Operator(who): &Operator,
    after: Option<&str>,
    typed: &Fields,
    wrong: String,
) -> Result<PeoplePage, Refused> {
    if let Some(after) = after {
        who.store.user(after).await?;
    }
    let mut users = who.store.users_after(after, ROWS + 1).await?;
    let has_more = users.len() > ROWS as usize;
    users.truncate(ROWS as usize);
    Ok(PeoplePage {
        frame: Frame::of(who, "People", "/operator/people"),
        next: users.last().filter(|_| has_more).map(|user| user.id.clone()).unwrap_or_default(),
        people: users.iter().map(row).collect(),
        is_first: after.is_none(),
        email: typed.text("email").to_owned(),
        account: typed.text("account").to_owned(),
        is_operator: typed.text("role") == Role::Operator.name(),
        wrong,
    })
}

async fn create(operator: Operator, Form(typed): Form) -> Answer {
    let wrong = match create_user(&operator, &typed).await? {
        Ok(user) => return show_link(&operator, &user, LinkPurpose::Invite).await,
        Err(wrong) => wrong,
    };
    page_as(Cause::InvalidValue, &people_page(&operator, None, &typed, wrong).await?)
}

/// Somebody new, or what is wrong with what was typed.
async fn create_user(Operator(who): &Operator, typed: &Fields) -> Result<Result<User, String>, Refused> {
    let email = match value::email(typed.text("email")) {
        Ok(email) => email,
        Err(wrong) => return Ok(Err(format!("The address {wrong}."))),
    };
    let Some(role) = Role::of(typed.text("role")) else { return Ok(Err("Choose what they may see.".to_owned())) };
    let account_id = typed.given("account");
    if account_id.is_none() && role == Role::Customer {
        return Ok(Err("A customer needs an account.".to_owned()));
    }
    let new = NewUser { email: &email, role, account_id, password: None };
    match who.store.create_user(&new, who.now_ms()).await {
        Ok(user) => Ok(Ok(user)),
        Err(StoreError::EmailTaken) => Ok(Err("There is somebody with this address already.".to_owned())),
        Err(StoreError::UnknownAccount(_)) => Ok(Err("There is no account of this id.".to_owned())),
        Err(error) => Err(error.into()),
    }
}

#[derive(Template)]
#[template(path = "person.html")]
struct PersonPage {
    frame: Frame,
    person: Row,
    has_password: bool,
    is_self: bool,
    sessions: usize,
    wrong: &'static str,
}

async fn show(operator: Operator, Path(id): Path<String>) -> Answer {
    let user = operator.0.store.user(&id).await?;
    page(&person_page(&operator, &user, "").await?)
}

async fn person_page(Operator(who): &Operator, user: &User, wrong: &'static str) -> Result<PersonPage, Refused> {
    Ok(PersonPage {
        frame: Frame::of(who, "Person", "/operator/people"),
        person: row(user),
        has_password: user.has_password,
        is_self: user.id == who.user.id,
        sessions: who.store.sessions_of(&user.id, who.now_ms()).await?.len(),
        wrong,
    })
}

#[derive(Template)]
#[template(path = "person_link.html")]
struct LinkPage<'a> {
    frame: Frame,
    id: &'a str,
    email: &'a str,
    what: &'static str,
    url: String,
    expires: Moment,
}

async fn link(operator: Operator, Path(id): Path<String>, Form(typed): Form) -> Answer {
    let user = operator.0.store.user(&id).await?;
    let purpose = match typed.text("purpose") {
        "invite" => LinkPurpose::Invite,
        "reset" => LinkPurpose::Reset,
        "sign_in" => LinkPurpose::SignIn,
        _ => return Err(Refused::Because(Cause::InvalidValue, "Choose what the link is for.")),
    };
    show_link(&operator, &user, purpose).await
}

async fn show_link(Operator(who): &Operator, user: &User, purpose: LinkPurpose) -> Answer {
    let link = create_link(&who.store, user, purpose, who.now_ms()).await?;
    let address = who.dashboard.snapshot().dashboard_url().unwrap_or_default();
    page(&LinkPage {
        frame: Frame::of(who, "A link to pass on", "/operator/people"),
        id: &user.id,
        email: &user.email,
        what: match purpose {
            LinkPurpose::Invite => "choose their password",
            LinkPurpose::Reset => "choose another password",
            LinkPurpose::SignIn => "sign in without a password",
        },
        url: link.url(&address),
        expires: Moment::of(link.expires_at_ms),
    })
}

async fn change(operator: Operator, Path(id): Path<String>, Form(typed): Form) -> Answer {
    let who = &operator.0;
    let user = who.store.user(&id).await?;
    // Whoever shuts themselves out needs a terminal to come in again.
    let is_self = user.id == who.user.id;
    let change = match typed.text("what") {
        "suspend" if !is_self => UserChange { active: Some(false), ..UserChange::default() },
        "customer" if !is_self => UserChange { role: Some(Role::Customer), ..UserChange::default() },
        "resume" => UserChange { active: Some(true), ..UserChange::default() },
        "operator" => UserChange { role: Some(Role::Operator), ..UserChange::default() },
        "account" => UserChange { account_id: typed.given("account"), ..UserChange::default() },
        _ => return Err(Refused::Because(Cause::InvalidValue, "This cannot be done.")),
    };
    match who.store.update_user(&user.id, &change, who.now_ms()).await {
        Ok(user) => Ok(see_other(&format!("/operator/people/{}", user.id))),
        Err(StoreError::UnknownAccount(_)) => {
            let wrong = person_page(&operator, &user, "There is no account of this id.").await?;
            page_as(Cause::InvalidValue, &wrong)
        }
        Err(error) => Err(error.into()),
    }
}

async fn sign_out(Operator(who): Operator, Path(id): Path<String>, Form(_): Form) -> Answer {
    let user = who.store.user(&id).await?;
    who.store.end_sessions(&user.id, None).await?;
    Ok(see_other(&format!("/operator/people/{}", user.id)))
}
