//! Who asks. A guard is an argument of a handler, and the handler is not called without it.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};

use super::Dashboard;
use super::answer::{Refused, own_path};
use super::form::Proof;
use super::map::{Guard, Who};
use crate::admin::api::Peer;
use crate::admin::people::{PeopleError, Token};
use crate::config::DashboardConfig;
use crate::relay::refusal::Cause;
use crate::relay::route::Secret;
use crate::store::{Account, Actor, Key, Role, Session, Store, User};

/// Sent over TLS, or to this machine itself, and to no other host.
const COOKIE: &str = "__Host-tollgate";

/// How often it is written down that a session is used.
const SEEN_EVERY_MS: i64 = 60_000;

/// Whoever it is.
pub(super) struct Anyone {
    /// Where they come from.
    pub(super) address: Option<IpAddr>,
    /// The session that their browser says it has, good or not.
    pub(super) token: Option<Token>,
}

impl Guard for Anyone {
    const WHO: Who = Who::Anyone;
}

impl FromRequestParts<Dashboard> for Anyone {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, dashboard: &Dashboard) -> Result<Self, Refused> {
        parts.extensions.insert(Proof::Headers);
        Ok(Self { address: address_of(parts, dashboard), token: token_of(&parts.headers) })
    }
}

/// Somebody who is signed in.
pub(super) struct SignedIn {
    /// Who.
    pub(super) user: User,
    /// Where they come from.
    pub(super) address: Option<IpAddr>,
    /// The browser's session.
    pub(super) session: Session,
    pub(super) token: Token,
    pub(super) dashboard: Dashboard,
    /// The store, changed in their name.
    pub(super) store: Store,
}

impl Guard for SignedIn {
    const WHO: Who = Who::SignedIn;
}

impl SignedIn {
    pub(super) fn now_ms(&self) -> i64 {
        self.dashboard.now_ms()
    }
}

impl FromRequestParts<Dashboard> for SignedIn {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, dashboard: &Dashboard) -> Result<Self, Refused> {
        let found = match token_of(&parts.headers) {
            Some(token) => signed_in(dashboard, &token).await?.map(|(user, session)| (token, user, session)),
            None => None,
        };
        let Some((token, user, session)) = found else {
            // What was to be done is not done again unseen.
            let back = parts.uri.path_and_query().map(|path| path.as_str()).filter(|_| parts.method == Method::GET);
            return Err(Refused::SignIn(back.and_then(own_path).unwrap_or("/").to_owned()));
        };
        parts.extensions.insert(Proof::Session(Secret::new(token.forms_proof())));
        let store = dashboard.store().in_the_name_of(Actor::User(user.email.as_str().into()));
        let address = address_of(parts, dashboard);
        Ok(Self { user, address, session, token, dashboard: dashboard.clone(), store })
    }
}

/// Whose session that is, while it is good.
async fn signed_in(dashboard: &Dashboard, token: &Token) -> Result<Option<(User, Session)>, Refused> {
    let (digest, now_ms) = (token.digest(), dashboard.now_ms());
    let Some((user, session)) = dashboard.store().session(&digest, now_ms).await? else { return Ok(None) };
    if is_over(&session, &dashboard.snapshot().dashboard, now_ms) {
        dashboard.store().end_session(&digest).await?;
        return Ok(None);
    }
    if session.seen_at_ms.saturating_add(SEEN_EVERY_MS) <= now_ms {
        dashboard.store().touch_session(&digest, now_ms).await?;
    }
    Ok(Some((user, session)))
}

/// Whether a session's time is over by the configuration in force, which may have become stricter since it began.
fn is_over(session: &Session, config: &DashboardConfig, now_ms: i64) -> bool {
    let after = |at_ms: i64, time| at_ms.saturating_add(milliseconds(time)) <= now_ms;
    after(session.created_at_ms, config.session_max) || after(session.seen_at_ms, config.session_idle_max)
}

fn milliseconds(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Somebody with an account, and the account.
pub(super) struct Customer {
    pub(super) who: SignedIn,
    pub(super) account: Account,
}

impl Guard for Customer {
    const WHO: Who = Who::Customer;
}

impl Customer {
    /// The key of that id, if it is theirs. That it is another's is not told from that there is none.
    pub(super) async fn key(&self, id: &str) -> Result<Key, Refused> {
        let key = self.who.store.key(id).await?;
        if key.account_id == self.account.id { Ok(key) } else { Err(Refused::nothing_here()) }
    }
}

impl FromRequestParts<Dashboard> for Customer {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, dashboard: &Dashboard) -> Result<Self, Refused> {
        let who = SignedIn::from_request_parts(parts, dashboard).await?;
        let id = who.user.account_id.as_deref().ok_or_else(Refused::nothing_here)?;
        let account = who.store.account(id).await?;
        Ok(Self { who, account })
    }
}

/// An operator.
pub(super) struct Operator(pub(super) SignedIn);

impl Guard for Operator {
    const WHO: Who = Who::Operator;
}

impl FromRequestParts<Dashboard> for Operator {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, dashboard: &Dashboard) -> Result<Self, Refused> {
        let who = SignedIn::from_request_parts(parts, dashboard).await?;
        // Customers are not told what there is for others.
        if who.user.role == Role::Operator { Ok(Self(who)) } else { Err(Refused::nothing_here()) }
    }
}

/// A session that is to begin: its token, and when it ends at the latest. Milliseconds since the Unix epoch.
pub(super) fn new_session(dashboard: &Dashboard) -> Result<(Token, i64), PeopleError> {
    let longest_ms = milliseconds(dashboard.snapshot().dashboard.session_max);
    Ok((Token::new()?, dashboard.now_ms().saturating_add(longest_ms)))
}

/// Has the browser keep a session, or forget the one that it has.
pub(super) fn cookie(session: Option<(&Token, i64)>, now_ms: i64) -> Result<HeaderValue, Refused> {
    let (text, seconds) = match session {
        Some((token, expires_at_ms)) => (token.expose(), expires_at_ms.saturating_sub(now_ms) / 1_000),
        None => (String::new(), 0),
    };
    let cookie = format!("{COOKIE}={text}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax");
    let mut value = HeaderValue::from_str(&cookie)
        .map_err(|_| Refused::Because(Cause::InternalError, "The session could not begin."))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The session that a browser says it has.
fn token_of(headers: &HeaderMap) -> Option<Token> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).find_map(|(_, value)| Token::parse(value))
}

fn address_of(parts: &Parts, dashboard: &Dashboard) -> Option<IpAddr> {
    let peer = parts.extensions.get::<Peer>().and_then(|peer| peer.0);
    address(peer, &parts.headers, dashboard.snapshot().dashboard.public_url.is_some())
}

/// Where a request comes from. A reverse proxy on this machine is believed about it, where there is one.
fn address(peer: Option<IpAddr>, headers: &HeaderMap, has_proxy: bool) -> Option<IpAddr> {
    if !has_proxy || !peer.is_some_and(|peer| peer.is_loopback()) {
        return peer;
    }
    // The last entry is the proxy's own; those before it are whatever the client made up.
    let told = headers.get_all("x-forwarded-for").iter().next_back().and_then(|value| value.to_str().ok());
    let last = told.and_then(|told| told.rsplit(',').next()).and_then(|last| last.trim().parse().ok());
    last.or(peer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_session_ends_when_nothing_is_done_and_after_its_longest_time() {
        let config = DashboardConfig {
            session_max: Duration::from_secs(100),
            session_idle_max: Duration::from_secs(10),
            ..DashboardConfig::default()
        };
        let session = |created_at_ms, seen_at_ms| Session { created_at_ms, seen_at_ms, expires_at_ms: i64::MAX };
        assert!(!is_over(&session(0, 85_000), &config, 94_999));
        assert!(is_over(&session(0, 85_000), &config, 95_000), "idle");
        assert!(is_over(&session(0, 99_000), &config, 100_000), "too long");
    }

    #[test]
    fn the_cookie_reads_back_and_is_for_this_host_alone() {
        let token = Token::new().unwrap();
        let set = cookie(Some((&token, 61_000)), 1_000).unwrap();
        let text = set.to_str().unwrap();
        assert!(text.ends_with("; Path=/; Max-Age=60; Secure; HttpOnly; SameSite=Lax"), "{text}");
        let sent = text.split(';').next().unwrap();
        assert_eq!(token_of(&headers("cookie", &[&format!("a=b; {sent}; c=d")])), Some(token));
        assert_eq!(token_of(&headers("cookie", &["tollgate=x", "__Host-tollgate=short"])), None);
        assert!(cookie(None, 0).unwrap().to_str().unwrap().contains("=; Path=/; Max-Age=0;"));
    }

    #[test]
    fn only_a_proxy_of_this_machine_tells_where_somebody_comes_from() {
        let (here, far): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "203.0.113.7".parse().unwrap());
        let told = headers("x-forwarded-for", &["198.51.100.1", "6.6.6.6, 198.51.100.9"]);
        assert_eq!(address(Some(here), &told, true), "198.51.100.9".parse().ok());
        assert_eq!(address(Some(here), &told, false), Some(here));
        assert_eq!(address(Some(far), &told, true), Some(far));
        assert_eq!(address(Some(here), &headers("x-forwarded-for", &["unknown"]), true), Some(here));
    }
}
