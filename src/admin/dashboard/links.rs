//! Links that let somebody in: an invitation, a new password, a way in without one.
//!
//! Looking at a link does not use it up: programs that look at whatever stands in a message do so. Its page has a button, and the
//! button does.

use askama::Template;
use axum::extract::{Path, State};

use super::Dashboard;
use super::answer::{Answer, Refused, page, page_as, see_other};
use super::form::Form;
use super::guard::{Anyone, new_session};
use super::layout::Frame;
use super::map::Map;
use super::password;
use super::sign_in::{end_earlier, with_cookie};
use crate::admin::people::Token;
use crate::relay::refusal::Cause;
use crate::store::{Actor, Link, LinkPurpose};

const NOT_GOOD: Refused = Refused::Because(
    Cause::UnknownUrl,
    "This link is good no more: it was used, it is too old, or a newer one was made. Ask whoever gave it to you for another.",
);

pub(super) fn map(map: Map) -> Map {
    map.page("/link/{token}", show).action("/link/{token}", take)
}

#[derive(Template)]
#[template(path = "link.html")]
struct LinkPage<'a> {
    frame: Frame,
    email: &'a str,
    asks_password: bool,
    wrong: &'a str,
}

fn link_page<'a>(link: &'a Link, wrong: &'a str) -> LinkPage<'a> {
    let title = match link.purpose {
        LinkPurpose::Invite => "Welcome",
        LinkPurpose::Reset => "Choose another password",
        LinkPurpose::SignIn => "Sign in",
    };
    let (email, asks_password) = (&*link.user.email, link.purpose.sets_password());
    LinkPage { frame: Frame::bare(title), email, asks_password, wrong }
}

async fn found(dashboard: &Dashboard, token: &str) -> Result<(Token, Link), Refused> {
    let token = Token::parse(token).ok_or(NOT_GOOD)?;
    let link = dashboard.store().link(&token.digest(), dashboard.now_ms()).await?;
    Ok((token, link.ok_or(NOT_GOOD)?))
}

async fn show(_: Anyone, State(dashboard): State<Dashboard>, Path(token): Path<String>) -> Answer {
    let (_, link) = found(&dashboard, &token).await?;
    page(&link_page(&link, ""))
}

async fn take(
    visitor: Anyone,
    State(dashboard): State<Dashboard>,
    Path(token): Path<String>,
    Form(form): Form,
) -> Answer {
    let (link_token, link) = found(&dashboard, &token).await?;
    let phc = match link.purpose.sets_password() {
        true => {
            let chosen = form.raw("password");
            if let Err(wrong) = password::check(chosen) {
                return page_as(Cause::InvalidValue, &link_page(&link, wrong));
            }
            Some(dashboard.passwords().hash(chosen).await?)
        }
        false => None,
    };
    let (session, expires_at_ms) = new_session(&dashboard)?;
    let now_ms = dashboard.now_ms();
    let store = dashboard.store().in_the_name_of(Actor::User(link.user.email.as_str().into()));
    let (digest, new) = (link_token.digest(), session.digest());
    if !store.use_link(&digest, phc.as_deref(), &new, now_ms, expires_at_ms).await? {
        return Err(NOT_GOOD);
    }
    end_earlier(&dashboard, &visitor).await?;
    with_cookie(see_other("/"), Some((&session, expires_at_ms)), now_ms)
}
