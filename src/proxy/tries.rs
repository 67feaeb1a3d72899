//! Who is asked, and who is asked next: the request said to one target after another, and what a failure means for the next.

use std::sync::Arc;
use std::time::Duration;

use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use super::exchange::{Dispatch, Exchange, Refused};
use super::phases::Relay;
use super::upstream::{self, Again, TARGETS_MAX};
use super::{Shared, answer, recollection};
use crate::relay::dialect::{self, Outgoing, ProviderError};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Dialect, Moment, Stop, Target, Verdict, nobody, scattered, soonest, wait_ms};

/// Why a request was not sent to a target.
pub(super) enum Unsaid {
    /// It cannot be said in the target's dialect.
    Untranslatable(Refusal),
    /// The target's address was not found.
    Unresolved(Refusal),
}

impl Dispatch {
    /// Chooses who is asked first.
    ///
    /// # Errors
    /// None of the model's targets may be asked now: what the client is told.
    pub(super) fn set_out(&mut self, shared: &Shared) -> Result<(), Refusal> {
        let moment = self.moment(shared);
        let targets = &self.admitted.model.targets;
        let health = self.snapshot.catalogue.health();
        shared.retries.earn();
        self.stop = self.course.next(targets, health, moment);
        self.asked = 1;
        if self.stop.is_some() { Ok(()) } else { Err(nobody(targets, health, moment.now_us)) }
    }

    /// The turn of who is asked next, if there is anyone, and if a second try may be paid for.
    pub(super) fn advance(&mut self, again: Again, shared: &Shared) -> bool {
        // Nobody is left to answer to, or who answers is settled.
        if self.tape.is_draining() || self.tape.has_head_passed() || self.asked >= TARGETS_MAX {
            return false;
        }
        let Some(next) = self.next_stop(again, self.moment(shared)) else { return false };
        let may = shared.retries.take(shared.clock.now_us());
        let outcome = if may { "made" } else { "no_budget" };
        shared.metrics.upstream_retries.with_label_values(&[outcome]).inc();
        if may {
            self.asked += 1;
            self.redialled = false;
            self.stop = Some(next);
        }
        may
    }

    fn next_stop(&mut self, again: Again, moment: Moment) -> Option<Stop> {
        let Stop { target, credential, .. } = *self.stop.as_ref()?;
        let targets = &self.admitted.model.targets;
        let health = self.snapshot.catalogue.health();
        let is_credential = !matches!(again, Again::Target);
        if is_credential {
            self.course.shut_credential(target, credential);
            let other = self.course.another_credential(target, targets, health, moment);
            if other.is_some() || matches!(again, Again::Credential) {
                return other;
            }
        }
        self.course.shut_target(target);
        self.course.next(targets, health, moment)
    }

    /// The current target was not sent anything; another takes its turn, for which nothing is paid.
    fn pass_over(&mut self, shared: &Shared) -> bool {
        let next = self.next_stop(Again::Target, self.moment(shared));
        let is_there = next.is_some();
        if is_there {
            self.stop = next;
        }
        is_there
    }

    fn moment(&self, shared: &Shared) -> Moment {
        let chance = (0..self.asked).fold(self.chance, |chance, _| scattered(chance));
        Moment { now_us: shared.clock.now_us(), is_stream: self.request.stream(), chance }
    }

    /// Tells the health of who is being asked how that went.
    pub(super) fn end_try(&mut self, verdict: Verdict, shared: &Shared) {
        if let Some(stop) = &mut self.stop {
            stop.lease.end(verdict, shared.clock.now_us());
        }
    }

    /// Whether the current target may be asked once more over a new connection: once.
    pub(super) fn redial(&mut self) -> bool {
        !std::mem::replace(&mut self.redialled, true)
    }

    /// The name of who is being asked.
    pub(super) fn provider(&self) -> &str {
        self.target().map(|target| &*target.provider.name).unwrap_or_default()
    }

    /// What the answer's length is lowered to, where who is being asked would have been asked for more.
    pub(super) fn lowered_output(&self) -> Option<u64> {
        let ceiling = dialect::output_ceiling(&self.request, self.target()?, self.admitted.model.output_tokens_max);
        self.request.output_limit().filter(|limit| *limit < ceiling)
    }

    /// What who is being asked speaks.
    pub(super) fn dialect(&self) -> Dialect {
        self.target().map_or(Dialect::OpenAi, |target| target.provider.dialect)
    }

    /// The error as the client is told it: where all targets have to be waited for, with when the soonest may be asked.
    pub(super) fn with_soonest(&self, error: ProviderError, now_us: u64) -> ProviderError {
        let ProviderError::Provider(refusal) = error else { return error };
        let soonest = soonest(&self.admitted.model.targets, self.snapshot.catalogue.health(), now_us);
        let after_ms = soonest.map(|(until_us, _)| wait_ms(until_us, now_us));
        ProviderError::Provider(Refusal { retry_after_ms: after_ms.or(refusal.retry_after_ms), ..refusal })
    }
}

impl Relay {
    /// Brings the request to whom it is to be said, and gives where that is. An error where there is nobody.
    pub(super) async fn ask(&self, dispatch: &mut Dispatch) -> Result<HttpPeer> {
        if dispatch.stop.is_none()
            && let Err(refusal) = dispatch.set_out(&self.shared)
        {
            dispatch.failure = Some(ProviderError::Provider(refusal));
            return Err(Error::explain(ErrorType::ConnectNoRoute, "no target may be asked").into_up());
        }
        loop {
            dispatch.tries += 1;
            let Some(target) = dispatch.target().cloned() else {
                return Error::e_explain(ErrorType::InternalError, "no target is left");
            };
            let (refusal, has_next) = match self.say(dispatch, &target).await {
                Ok(peer) => return Ok(peer),
                Err(Unsaid::Untranslatable(refusal)) => (refusal, dispatch.pass_over(&self.shared)),
                Err(Unsaid::Unresolved(refusal)) => {
                    self.attempt(dispatch, "unresolved");
                    dispatch.end_try(Verdict::Failed, &self.shared);
                    (refusal, dispatch.advance(Again::Target, &self.shared))
                }
            };
            // What was really asked and failed says more than what was not.
            dispatch.failure.get_or_insert(ProviderError::Provider(refusal));
            if !has_next {
                return Err(Error::explain(ErrorType::ConnectNoRoute, "no provider can be asked").into_up());
            }
        }
    }

    /// Puts the request as the target gets it on the tape, and gives where that is.
    async fn say(&self, dispatch: &mut Dispatch, target: &Target) -> Result<HttpPeer, Unsaid> {
        let output_tokens_max = dispatch.admitted.model.output_tokens_max;
        let outgoing = || {
            dialect::outgoing(&dispatch.request, target, output_tokens_max, &dispatch.signatures)
                .map_err(Unsaid::Untranslatable)
        };
        let mut said = outgoing()?;
        if let Some(windows) = &self.shared.windows
            && recollection::ask_others(windows, &dispatch.signatures).await
        {
            said = outgoing()?;
        }
        let Outgoing { path, body, dropped } = said;
        dispatch.trace.tries(target, dispatch.request.stream(), self.shared.clock.now_us());
        let peer = upstream::peer(&self.shared, &target.provider, dispatch.tries).await.map_err(|reason| {
            let provider = &target.provider.name;
            tracing::warn!(%provider, %reason, "a provider has no address");
            let message = format!("The provider {provider} could not be found.");
            Unsaid::Unresolved(Refusal::new(Cause::UpstreamError, message))
        })?;
        (dispatch.path, dispatch.dropped, dispatch.refused) = (path, dropped, None);
        dispatch.opening = None;
        dispatch.tape.load(body);
        dispatch.tape.hold(false);
        dispatch.tape.comment_every(Duration::ZERO);
        if let Some(stop) = &mut dispatch.stop {
            stop.lease.sent(self.shared.clock.now_us());
        }
        Ok(peer)
    }

    /// Counts a try.
    pub(super) fn attempt(&self, dispatch: &Dispatch, outcome: &str) {
        self.shared.metrics.upstream_attempts.with_label_values(&[dispatch.provider(), outcome]).inc();
        dispatch.trace.tried(outcome, || self.shared.clock.now_us());
    }

    /// A try failed without an answer. Whether another is made.
    pub(super) fn try_failed(&self, dispatch: &mut Dispatch, outcome: &str, error: &Error, may_repeat: bool) -> bool {
        self.attempt(dispatch, outcome);
        dispatch.end_try(Verdict::Failed, &self.shared);
        dispatch.failure = upstream::explain(error, dispatch.provider()).map(ProviderError::Provider);
        may_repeat && dispatch.advance(Again::Target, &self.shared)
    }

    /// A refusal has been read: another upstream is asked, or the client is told.
    pub(super) fn finish_refusal(&self, exchange: &mut Exchange) -> Result<()> {
        let Some(dispatch) = exchange.dispatch_mut() else { return Ok(()) };
        let Some(refused) = dispatch.refused.take() else { return Ok(()) };
        let told = self.judge_refusal(dispatch, &refused)?;
        let told = dispatch.with_soonest(told, self.shared.clock.now_us());
        let tape = Arc::clone(&dispatch.tape);
        if let Some(claim) = dispatch.admitted.claim.take() {
            tape.settle_claim_at_end(claim);
        }
        exchange.fails(answer::cause_of(&told));
        tape.substitute(answer::substitute(exchange, &told)?);
        Ok(())
    }

    /// What a refusal, as far as it was read, means. An error where another upstream is asked next.
    pub(super) fn judge_refusal(&self, dispatch: &mut Dispatch, refused: &Refused) -> Result<ProviderError> {
        let error = dialect::read_error(dispatch.dialect(), refused.status, refused.body(), refused.retry_after_ms);
        if refused.is_final {
            return Ok(error);
        }
        self.refused(dispatch, &refused.status.to_string(), refused.status, error)
    }

    /// Counts a refusal, as that outcome. An error where another upstream is asked next.
    pub(super) fn refused(
        &self,
        dispatch: &mut Dispatch,
        outcome: &str,
        status: u16,
        error: ProviderError,
    ) -> Result<ProviderError> {
        self.attempt(dispatch, outcome);
        let (verdict, again) = upstream::judge(status, &error);
        if matches!(verdict, Verdict::CredentialRefused | Verdict::ModelRefused) {
            let credential = dispatch.stop.as_ref().map_or(0, |stop| stop.credential + 1);
            tracing::error!(provider = %dispatch.provider(), credential, status,
                "a provider refuses a credential; it is set aside until the configuration is reloaded");
        }
        dispatch.end_try(verdict, &self.shared);
        if !again.is_some_and(|again| dispatch.advance(again, &self.shared)) {
            return Ok(error);
        }
        dispatch.failure = Some(error);
        let mut retry = Error::explain(ErrorType::HTTPStatus(status), "another is asked").into_up();
        retry.set_retry(true);
        Err(retry)
    }
}
