//! From a request's head to its admission: whose it is, what it asks, and whether it may.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use percent_encoding::percent_decode_str;
use pingora_proxy::Session;
use uuid::Uuid;

use super::body::{self, BodyLimits};
use super::exchange::{Admitted, Caller, Dispatch, Exchange, Step};
use super::failed_logins::Failed;
use super::idempotency::{self, Looked};
use super::leases::Leases;
use super::{Shared, answer, head, replay};
use crate::billing::{Opening, Ticket};
use crate::relay::admit::{Bounds, Estimate, Hold, KeyLimits, LeaseVerdict, WindowView, check_credit, no_credit};
use crate::relay::auth::{ApiKey, KeyEntry};
use crate::relay::dialect::{self, openai::ChatRequest};
use crate::relay::meter::NanoUsd;
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Course, Model, Target};
use crate::shared::{Slot, Verdict, Windows};

/// How long a request tries to have credit that others take before it does.
const LEASE_WAIT_MAX_US: u64 = 4_000_000;

/// What has become of a request.
pub(super) enum Received {
    /// It goes upstream.
    Dispatched,
    /// The relay has answered it.
    Answered,
}

/// Takes a request as far as it may go. A refusal is the caller's to write.
pub(super) async fn receive(
    shared: &Shared,
    session: &mut Session,
    exchange: &mut Exchange,
) -> Result<Received, Refusal> {
    head::check(session)?;
    let path = session.req_header().uri.path().to_owned();
    match Route::of(&path) {
        Some(Route::ChatCompletions) => {
            expect_method(session, "POST")?;
            exchange.step = Step::Authenticated(authenticate(shared, session, exchange).await?);
            chat(shared, session, exchange).await
        }
        Some(Route::Models) => {
            expect_method(session, "GET")?;
            exchange.step = Step::Authenticated(authenticate(shared, session, exchange).await?);
            answer::models(session, exchange).await
        }
        Some(Route::Model(id)) => {
            expect_method(session, "GET")?;
            exchange.step = Step::Authenticated(authenticate(shared, session, exchange).await?);
            // Some SDKs escape the slashes of an id, some do not.
            let id = percent_decode_str(id).decode_utf8_lossy();
            answer::model(session, exchange, &id).await
        }
        None => Err(Refusal::new(
            Cause::UnknownUrl,
            format!("Unknown request URL: {} {path}. The API is at /v1.", session.req_header().method),
        )),
    }
}

/// What the client API has.
enum Route<'a> {
    ChatCompletions,
    Models,
    Model(&'a str),
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        match path.strip_prefix("/v1/")? {
            "chat/completions" => Some(Self::ChatCompletions),
            "models" => Some(Self::Models),
            other => other.strip_prefix("models/").filter(|id| !id.is_empty()).map(Self::Model),
        }
    }
}

/// The path as the API has it, where it has it: a model's own name is left open.
pub(super) fn route_name(path: &str) -> Option<&'static str> {
    Some(match Route::of(path)? {
        Route::ChatCompletions => "/v1/chat/completions",
        Route::Models => "/v1/models",
        Route::Model(_) => "/v1/models/{id}",
    })
}

fn expect_method(session: &Session, expected: &'static str) -> Result<(), Refusal> {
    let method = &session.req_header().method;
    if method == expected {
        return Ok(());
    }
    let message = format!("Not allowed to {method} here; use {expected}.");
    Err(Refusal { allow: Some(expected), ..Refusal::new(Cause::MethodNotAllowed, message) })
}

/// Finds out whose request it is.
async fn authenticate(shared: &Shared, session: &Session, exchange: &Exchange) -> Result<Caller, Refusal> {
    let address = client_ip(session);
    let most = exchange.arrival.snapshot.limits.failed_auth_per_minute_max;
    let entry = match bearer(&session.req_header().headers).and_then(ApiKey::parse) {
        Some(key) => {
            if shared.failed_logins.is_flooding(Failed::Key, address, most) && !shared.keyring.knows(&key) {
                return Err(too_many_failures());
            }
            if !shared.keyring.is_trusted() {
                return Err(unchecked());
            }
            shared.keyring.lookup(&key).await.map_err(|error| {
                tracing::error!(%error, "a key could not be looked up");
                unchecked()
            })?
        }
        None => return Err(refuse_login(shared, Failed::Form, address, most)),
    };
    let good = entry.filter(|entry| entry.record().is_good_at(exchange.arrival.unix_ms));
    let Some(entry) = good else { return Err(refuse_login(shared, Failed::Key, address, most)) };
    let record = entry.record();
    if address.is_some_and(|address| !record.allows_ip(address)) {
        return Err(Refusal::new(Cause::IpNotAllowed, "This key may not be used from this address."));
    }
    let limits = limits_of(exchange, &entry)?;
    let window = entry.limiter.view(&limits, exchange.arrival.at_us);
    Ok(Caller { entry, record, window })
}

/// The store cannot be asked about the key, or has not been for so long that what is known of it may not be so any more.
fn unchecked() -> Refusal {
    Refusal::new(Cause::StoreUnavailable, "The key cannot be checked at the moment.").retry_after_ms(1000)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

/// One answer to whatever is wrong with a key, until there are too many from one address.
fn refuse_login(shared: &Shared, failed: Failed, address: Option<IpAddr>, most: u32) -> Refusal {
    let flooding = shared.failed_logins.is_flooding(failed, address, most);
    shared.failed_logins.count(failed, address);
    if flooding { too_many_failures() } else { Refusal::invalid_api_key() }
}

fn too_many_failures() -> Refusal {
    Refusal::new(Cause::TooManyFailedAttempts, "Too many requests with wrong keys came from this address.")
        .retry_after_ms(60_000)
}

/// The address of the client's socket.
fn client_ip(session: &Session) -> Option<IpAddr> {
    session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip().to_canonical())
}

/// The key's own limits where it has any, its plan's elsewhere.
fn limits_of(exchange: &Exchange, entry: &KeyEntry) -> Result<KeyLimits, Refusal> {
    let record = entry.record();
    let Some(plan) = exchange.arrival.snapshot.catalogue.plan(&record.plan) else {
        tracing::error!(account = %record.account_id, plan = %record.plan, "an account has a plan that the configuration does not");
        return Err(Refusal::new(Cause::InternalError, "The account's plan is not configured. Ask the operator."));
    };
    Ok(KeyLimits::new(&record, plan))
}

/// Whether the key may use that model: its own list where it has one, its plan's elsewhere.
pub(super) fn may_use(exchange: &Exchange, caller: &Caller, model: &str) -> bool {
    let plan = exchange.arrival.snapshot.catalogue.plan(&caller.record.plan);
    let allowed = |models: &Vec<Box<str>>| models.iter().any(|id| &**id == model);
    let by_plan = plan.and_then(|plan| plan.models.as_ref()).is_none_or(allowed);
    by_plan && caller.record.models.as_ref().is_none_or(allowed)
}

/// Reads what is asked and admits it.
async fn chat(shared: &Shared, session: &mut Session, exchange: &mut Exchange) -> Result<Received, Refusal> {
    let key = idempotency::key_of(&session.req_header().headers)?;
    // A repeat costs nothing: it is answered to an account that has nothing left, too.
    if let (Step::Authenticated(caller), None) = (&exchange.step, &key) {
        // Before the body is taken, which may be large: nothing that it says will change this.
        check_credit(&caller.entry.account, &caller.entry.spending, caller.record.budget)?;
        if let Some(leases) = &shared.leases
            && leases.is_exhausted(&caller.record.account_id, &caller.entry.account)
        {
            return Err(no_credit());
        }
    }
    let limits = &exchange.arrival.snapshot.limits;
    let body_limits = BodyLimits {
        bytes_max: limits.request_bytes_max,
        idle_max: limits.body_idle_max,
        total_max: limits.body_total_max,
    };
    let whole = body::read_whole(session, &body_limits).await?;
    let read_us = exchange.arrival.clock.now_us();
    let mut request = ChatRequest::parse(whole.clone())?;
    let Step::Authenticated(caller) = &exchange.step else {
        return Err(Refusal::new(Cause::InternalError, "The request was not authenticated."));
    };
    let caller = caller.clone();
    let model = find_model(exchange, &caller, request.model())?;
    let request_id = exchange.arrival.request_id;
    let candidate = match key {
        None => None,
        Some(key) => match shared.idempotency.look(&caller.record.account_id, request_id, &key, &whole).await? {
            Looked::First(candidate) => Some(candidate),
            Looked::Repeat(replay) => return answer::replay(session, exchange, model, replay).await,
        },
    };
    let mut admitted = admit(shared, exchange, caller, model, &mut request).await?;
    if let Some(candidate) = candidate {
        match shared.idempotency.claim(*candidate).await {
            Ok(claim) => admitted.claim = Some(claim),
            Err(refusal) => {
                admitted.settle_tokens(0, exchange.arrival.clock.now_us());
                exchange.step = Step::Authenticated(admitted.caller);
                return Err(refusal);
            }
        }
    }
    let signatures = shared.signatures.scope(&admitted.caller.record.account_id);
    let tape = replay::replace(session, shared.clock, exchange.arrival.snapshot.billing.drain_max);
    shared.observe_overhead(read_us, exchange.arrival.clock.now_us());
    exchange.step = Step::Dispatched(Box::new(Dispatch {
        admitted,
        request,
        tape,
        snapshot: Arc::clone(&exchange.arrival.snapshot),
        chance: request_id.as_u128() as u64,
        course: Course::default(),
        stop: None,
        asked: 0,
        tries: 0,
        redialled: false,
        path: Box::default(),
        dropped: Vec::new(),
        signatures,
        failure: None,
        refused: None,
        opening: None,
        trace: exchange.trace.clone(),
    }));
    Ok(Received::Dispatched)
}

/// Holds what the request may come to cost, and opens its record. Where there is less, its answer is to be shorter.
fn ticket(
    shared: &Shared,
    exchange: &Exchange,
    caller: &Caller,
    request: &mut ChatRequest,
    model: &Model,
    of_account: OfAccount,
) -> Result<Ticket, Refusal> {
    let entry = &caller.entry;
    if shared.leases.as_ref().is_some_and(|leases| !leases.are_current(exchange.arrival.clock.now_us())) {
        return Err(unbilled());
    }
    let estimate = Estimate::new(&model.price, &bounds(request, model));
    let take = match of_account {
        OfAccount::All => Hold::take_whole,
        OfAccount::Rest => Hold::take,
    };
    let hold = take(&entry.account, &entry.spending, caller.record.budget, estimate.least(), estimate.most())?;
    if let Some(tokens) = estimate.lowered(hold.amount()) {
        request.limit_output(tokens);
    }
    let opening = Opening {
        request_id: exchange.arrival.request_id,
        account_id: caller.record.account_id.clone(),
        key_id: caller.record.key_id.clone(),
        model: model.id.clone(),
        started_at_ms: exchange.arrival.unix_ms,
        hold,
    };
    shared.recorder.open(opening).ok_or_else(unbilled)
}

/// Nothing can be billed, so nothing is sold.
pub(super) fn unbilled() -> Refusal {
    Refusal::new(Cause::BillingUnavailable, "Requests cannot be billed at the moment.").retry_after_ms(1000)
}

/// What the request may use, at whichever of the model's targets that is the most.
fn bounds(request: &ChatRequest, model: &Model) -> Bounds {
    let most = |of: &dyn Fn(&Target) -> u64| model.targets.iter().map(of).max().unwrap_or(u64::MAX);
    Bounds {
        prompt_tokens: most(&|target| dialect::prompt_ceiling(request, target, model)),
        cache: request.ceiling().cache,
        output_tokens: most(&|target| dialect::output_ceiling(request, target, model.output_tokens_max)),
        choices: request.choices(),
    }
}

/// What is held where an account has less than the request may come to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OfAccount {
    /// Nothing, for more may be leased.
    All,
    /// What there is, and the answer is to be shorter.
    Rest,
}

/// By what the node's own windows admit a request.
struct Terms {
    /// Of the key.
    whole: KeyLimits,
    /// What the node's own windows keep to.
    limits: KeyLimits,
    /// The tokens that the request takes of them.
    reserved: u64,
    /// What other nodes count already, and the windows of all of them, where they were asked.
    shared: Option<(Slot, Option<WindowView>)>,
}

impl Terms {
    /// The windows that the client is told of, where `own` are the node's.
    fn window(&self, own: WindowView) -> WindowView {
        self.shared.as_ref().and_then(|(_, view)| *view).unwrap_or(own)
    }

    /// The same where the request gives back what it took.
    fn window_without(&self, own: WindowView) -> WindowView {
        let Some(mut view) = self.shared.as_ref().and_then(|(_, view)| *view) else { return own };
        view.requests.remaining = (view.requests.remaining + 1).min(view.requests.limit);
        view
    }
}

/// Asks the windows that nodes share. The error is their refusal.
async fn ask_all_nodes(
    windows: &Arc<Windows>,
    caller: &Caller,
    request_id: Uuid,
    limits: KeyLimits,
    reserved: u64,
) -> Result<Terms, (Refusal, WindowView)> {
    let terms = |own, slot, view| Terms { whole: limits, limits: own, reserved, shared: Some((slot, view)) };
    match windows.admit(&caller.record.digest, request_id, &limits, reserved).await {
        // What is admitted there is only counted here.
        Verdict::Admitted(slot, view) => Ok(terms(limits.counting(), slot, Some(view))),
        Verdict::Refused(refusal, view) => Err((refusal, view)),
        Verdict::Here(slot, share) => Ok(terms(share, slot, None)),
    }
}

/// Takes the request's place in the limits and in the books.
async fn admit(
    shared: &Shared,
    exchange: &mut Exchange,
    caller: Caller,
    model: Arc<Model>,
    request: &mut ChatRequest,
) -> Result<Admitted, Refusal> {
    let limits = limits_of(exchange, &caller.entry)?;
    let reserved = reservation(request, &model);
    let terms = match &shared.windows {
        None => Terms { whole: limits, limits, reserved, shared: None },
        Some(windows) => {
            let request_id = exchange.arrival.request_id;
            match ask_all_nodes(windows, &caller, request_id, limits, reserved).await {
                Ok(terms) => terms,
                Err((refusal, window)) => {
                    exchange.step = Step::Authenticated(Caller { window, ..caller });
                    return Err(refusal);
                }
            }
        }
    };
    let admitted = match &shared.leases {
        None => admit_once(shared, exchange, caller, model, request, &terms, OfAccount::Rest),
        Some(leases) => admit_leasing(shared, leases, exchange, caller, model, request, &terms).await,
    };
    let slot = terms.shared.map(|(mut slot, _)| {
        if admitted.is_ok() {
            slot.hold();
        }
        slot
    });
    admitted.map(|admitted| Admitted { slot, ..admitted })
}

/// As [`admit_once`], where nodes lease credit: it is first tried to have enough for all of the answer that is asked for; only when that
/// cannot be had the answer is to be shorter, or the request is refused.
async fn admit_leasing(
    shared: &Shared,
    leases: &Leases,
    exchange: &mut Exchange,
    caller: Caller,
    model: Arc<Model>,
    request: &mut ChatRequest,
    terms: &Terms,
) -> Result<Admitted, Refusal> {
    let (account_id, entry) = (caller.record.account_id.clone(), Arc::clone(&caller.entry));
    let began_us = exchange.arrival.clock.now_us();
    while exchange.arrival.clock.now_us().saturating_sub(began_us) < LEASE_WAIT_MAX_US {
        let admitted = admit_once(shared, exchange, caller.clone(), Arc::clone(&model), request, terms, OfAccount::All);
        match admitted {
            Err(refusal) if refusal.cause == Cause::InsufficientCredits => {}
            admitted => {
                leases.used(&account_id, &entry.account);
                return admitted;
            }
        }
        let estimate = Estimate::new(&model.price, &bounds(request, &model));
        let left = caller.record.budget.map(|budget| NanoUsd(budget.0.saturating_sub(entry.spending.spent().0)));
        let most = estimate.most().min(left.unwrap_or(estimate.most())).max(estimate.least());
        match leases.cover(&account_id, &entry.account, estimate.least(), most).await {
            // Or it was ready; of many who waited others may be faster.
            LeaseVerdict::Ready => tokio::task::yield_now().await,
            LeaseVerdict::Nothing => break,
            LeaseVerdict::Wait | LeaseVerdict::Away => {
                let admitted = admit_once(shared, exchange, caller, model, request, terms, OfAccount::Rest);
                // Nobody knows what the account has.
                let is_short = |refusal: &Refusal| refusal.cause == Cause::InsufficientCredits;
                return admitted.map_err(|refusal| if is_short(&refusal) { unbilled() } else { refusal });
            }
        }
    }
    admit_once(shared, exchange, caller, model, request, terms, OfAccount::Rest)
}

fn admit_once(
    shared: &Shared,
    exchange: &mut Exchange,
    caller: Caller,
    model: Arc<Model>,
    request: &mut ChatRequest,
    terms: &Terms,
    of_account: OfAccount,
) -> Result<Admitted, Refusal> {
    let now_us = exchange.arrival.clock.now_us();
    let open = || ticket(shared, exchange, &caller, request, &model, of_account);
    let (permit, ticket) = match caller.entry.limiter.admit_with(&terms.limits, terms.reserved, now_us, open) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let window = terms.window_without(caller.entry.limiter.view(&terms.limits, now_us));
            exchange.step = Step::Authenticated(Caller { window, ..caller });
            return Err(for_now(refusal, &terms.whole, terms.reserved));
        }
    };
    let caller = Caller { window: terms.window(*permit.view()), ..caller };
    Ok(Admitted { caller, model, permit, slot: None, ticket: Some(ticket), claim: None })
}

/// What a node's share is too small for may still fit the whole limit, once all nodes can be asked again.
fn for_now(refusal: Refusal, limits: &KeyLimits, reserved: u64) -> Refusal {
    let is_for_ever = refusal.cause == Cause::RateLimitExceeded && refusal.retry_after_ms.is_none();
    if is_for_ever && limits.tokens_per_minute.is_some_and(|limit| reserved <= limit) {
        return refusal.retry_after_ms(SHARE_RETRY_MS);
    }
    refusal
}

/// When to come back where it depends on Redis: nobody can know, so soon.
const SHARE_RETRY_MS: u64 = 1_000;

fn find_model(exchange: &Exchange, caller: &Caller, id: &str) -> Result<Arc<Model>, Refusal> {
    let Some(model) = exchange.arrival.snapshot.catalogue.model(id) else {
        return Err(model_not_found(id));
    };
    if !may_use(exchange, caller, id) {
        return Err(
            Refusal::new(Cause::ModelNotAllowed, format!("This key may not use the model `{id}`.")).param("model")
        );
    }
    Ok(Arc::clone(model))
}

/// There is no such model. The name is the client's own, cut to what a name may be.
pub(super) fn model_not_found(id: &str) -> Refusal {
    let id: String = id.chars().take(200).collect();
    Refusal::new(Cause::ModelNotFound, format!("The model `{id}` does not exist or you do not have access to it."))
        .param("model")
}

/// The output that a request reserves of its tokens a minute when it does not say how much it may produce.
const OUTPUT_TOKENS_ASSUMED: u64 = 1024;

/// What a request takes of the tokens a minute until it is known what it used.
fn reservation(request: &ChatRequest, model: &Model) -> u64 {
    let output = request.output_tokens_asked().unwrap_or(OUTPUT_TOKENS_ASSUMED).min(model.output_tokens_max);
    request.input_tokens_estimate().saturating_add(output.saturating_mul(request.choices()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_id_may_hold_slashes() {
        assert!(matches!(Route::of("/v1/models/Pro/zai-org/GLM-5.1"), Some(Route::Model("Pro/zai-org/GLM-5.1"))));
        assert!(matches!(Route::of("/v1/models"), Some(Route::Models)));
        assert!(Route::of("/v1/models/").is_none());
        assert!(Route::of("/models").is_none());
    }

    #[test]
    fn a_bearer_key_is_read_whatever_the_schemes_case() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, http::HeaderValue::from_static("bearer  tg_live_x"));
        assert_eq!(bearer(&headers), Some("tg_live_x"));
        headers.insert(AUTHORIZATION, http::HeaderValue::from_static("Basic tg_live_x"));
        assert_eq!(bearer(&headers), None);
    }
}
