//! Somebody's own sign-in: the password, and the browsers in which they are signed in.

use askama::Template;

use super::answer::{Answer, Refused, page, page_as, see_other};
use super::form::{Asked, Form};
use super::guard::{SignedIn, new_session};
use super::layout::Frame;
use super::map::Map;
use super::password;
use super::shown::Moment;
use super::sign_in::with_cookie;
use crate::relay::refusal::Cause;

pub(super) fn map(map: Map) -> Map {
    map.page("/settings", show)
        .action("/settings/password", change_password)
        .action("/settings/sign-out-elsewhere", sign_out_elsewhere)
}

#[derive(Template)]
#[template(path = "settings.html")]
struct SettingsPage<'a> {
    frame: Frame,
    role: &'static str,
    has_password: bool,
    sessions: Vec<Browser>,
    wrong: &'a str,
    done: &'static str,
}

/// A session, in words.
struct Browser {
    since: Moment,
    seen: Moment,
    is_this: bool,
}

async fn settings_page<'a>(who: &SignedIn, wrong: &'a str, done: &'static str) -> Result<SettingsPage<'a>, Refused> {
    let sessions = who.store.sessions_of(&who.user.id, who.now_ms()).await?;
    let sessions = sessions.iter().map(|session| Browser {
        since: Moment::of(session.created_at_ms),
        seen: Moment::of(session.seen_at_ms),
        is_this: session.created_at_ms == who.session.created_at_ms,
    });
    Ok(SettingsPage {
        frame: Frame::of(who, "Account", "/settings"),
        role: who.user.role.name(),
        has_password: who.user.has_password,
        sessions: sessions.collect(),
        wrong,
        done,
    })
}

async fn show(who: SignedIn, Asked(asked): Asked) -> Answer {
    let done = match asked.text("done") {
        "password" => "Your password is changed. You are signed out everywhere else.",
        "sessions" => "You are signed out everywhere else.",
        _ => "",
    };
    page(&settings_page(&who, "", done).await?)
}

async fn change_password(who: SignedIn, Form(form): Form) -> Answer {
    let passwords = who.dashboard.passwords();
    // Whoever came by a link has nothing to prove but that, until there is a password.
    if who.user.has_password {
        let (email, now) = (&who.user.email, who.store.password_of(&who.user.id).await?);
        let is_right = who.dashboard.process().may_try_password(who.address, email)
            && passwords.verify(form.raw("current"), now).await?;
        if !is_right {
            return page_as(Cause::InvalidValue, &settings_page(&who, "That is not your password so far.", "").await?);
        }
    }
    if let Err(wrong) = password::check(form.raw("password")) {
        return page_as(Cause::InvalidValue, &settings_page(&who, wrong, "").await?);
    }
    let phc = passwords.hash(form.raw("password")).await?;
    who.store.set_password(&who.user.id, &phc, who.now_ms()).await?;
    // All sessions ended, this one too.
    let (token, expires_at_ms) = new_session(&who.dashboard)?;
    who.store.begin_session(&who.user.id, &token.digest(), who.now_ms(), expires_at_ms).await?;
    with_cookie(see_other("/settings?done=password"), Some((&token, expires_at_ms)), who.now_ms())
}

async fn sign_out_elsewhere(who: SignedIn, Form(_): Form) -> Answer {
    who.store.end_sessions(&who.user.id, Some(&who.token.digest())).await?;
    Ok(see_other("/settings?done=sessions"))
}
