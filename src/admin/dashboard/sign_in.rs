//! Signing in by password, and out.

use askama::Template;
use axum::http::header;
use axum::response::Response;

use super::Dashboard;
use super::answer::{Answer, Refused, own_path, page, page_as, see_other};
use super::form::{Asked, Form};
use super::guard::{Anyone, SignedIn, cookie, new_session};
use super::layout::Frame;
use super::map::Map;
use crate::relay::refusal::Cause;
use crate::store::StoreError;
use axum::extract::State;

/// One for all: whether there is such a person is not told.
const WRONG: &str = "E-mail address and password do not belong together.";
const TOO_OFTEN: &str = "Too many tries. Wait a minute and try again.";

pub(super) fn map(map: Map) -> Map {
    map.page("/sign-in", show).action("/sign-in", sign_in).action("/sign-out", sign_out)
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage<'a> {
    frame: Frame,
    email: &'a str,
    next: &'a str,
    wrong: &'a str,
    has_registration: bool,
}

async fn show(_: Anyone, State(dashboard): State<Dashboard>, Asked(asked): Asked) -> Answer {
    page(&sign_in_page(&dashboard, "", asked.text("next"), ""))
}

fn sign_in_page<'a>(dashboard: &Dashboard, email: &'a str, next: &'a str, wrong: &'a str) -> SignInPage<'a> {
    let has_registration = dashboard.snapshot().dashboard.registration;
    SignInPage { frame: Frame::bare("Sign in"), email, next, wrong, has_registration }
}

async fn sign_in(visitor: Anyone, State(dashboard): State<Dashboard>, Form(form): Form) -> Answer {
    let (email, next) = (form.text("email"), form.text("next"));
    if !dashboard.process().may_try_password(visitor.address, &email.to_lowercase()) {
        return page_as(Cause::TooManyFailedAttempts, &sign_in_page(&dashboard, email, next, TOO_OFTEN));
    }
    let user = dashboard.store().user_by_email(email).await?;
    // Who is not there is asked for as who is, so that it takes as long.
    let phc = dashboard.store().password_of(user.as_ref().map_or("", |user| &user.id)).await?;
    let is_right = dashboard.passwords().verify(form.raw("password"), phc).await?;
    let wrong = || page_as(Cause::InvalidValue, &sign_in_page(&dashboard, email, next, WRONG));
    let Some(user) = user.filter(|user| is_right && user.active) else { return wrong() };
    let (token, expires_at_ms) = new_session(&dashboard)?;
    let now_ms = dashboard.now_ms();
    match dashboard.store().begin_session(&user.id, &token.digest(), now_ms, expires_at_ms).await {
        Ok(()) => {}
        Err(StoreError::UserSuspended) => return wrong(),
        Err(error) => return Err(error.into()),
    }
    end_earlier(&dashboard, &visitor).await?;
    let back = own_path(next).unwrap_or("/");
    with_cookie(see_other(back), Some((&token, expires_at_ms)), now_ms)
}

async fn sign_out(who: SignedIn, Form(_): Form) -> Answer {
    who.store.end_session(&who.token.digest()).await?;
    with_cookie(see_other("/sign-in"), None, who.now_ms())
}

/// Ends the session that the browser had until now, which it forgets.
pub(super) async fn end_earlier(dashboard: &Dashboard, visitor: &Anyone) -> Result<(), Refused> {
    match &visitor.token {
        Some(token) => Ok(dashboard.store().end_session(&token.digest()).await?),
        None => Ok(()),
    }
}

/// An answer with which a session begins or ends.
pub(super) fn with_cookie(
    mut answer: Response,
    session: Option<(&crate::admin::people::Token, i64)>,
    now_ms: i64,
) -> Result<Response, Refused> {
    answer.headers_mut().insert(header::SET_COOKIE, cookie(session, now_ms)?);
    Ok(answer)
}
