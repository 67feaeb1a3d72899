//! Who may come in: whoever knows the token.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::answer::Refused;
use crate::relay::refusal::{Cause, Refusal};

/// Guesses are counted by the minute.
const GUESSING_RETRY_MS: u64 = 60_000;

/// The address that a request comes from; an extension of requests.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub Option<IpAddr>);

/// Lets a request through to its route.
pub(super) async fn gate(State(api): State<Api>, request: Request, next: Next) -> Response {
    match admitted(&api, &request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => Refused(refusal).into_response(),
    }
}

/// While somebody guesses, the right token is refused from there too: otherwise guessing could go on.
fn admitted(api: &Api, request: &Request) -> Result<(), Refusal> {
    let snapshot = api.snapshot();
    let Some(token) = &snapshot.admin_token else {
        return Err(Refusal::new(Cause::UnknownUrl, "There is no admin API without [admin] token."));
    };
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
    if api.process.is_guessing(peer) {
        let refusal = Refusal::new(Cause::TooManyFailedAttempts, "Too many wrong tokens came from your address.");
        return Err(refusal.retry_after_ms(GUESSING_RETRY_MS));
    }
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|text| text.split_once(' '));
    if given.is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case("bearer") && token.is(given.trim())) {
        return Ok(());
    }
    api.process.wrong_token(peer);
    Err(Refusal::new(Cause::InvalidApiKey, "The admin token is missing or wrong."))
}
