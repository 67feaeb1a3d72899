//! Who is asked next: the request said to one candidate after another, and what a refusal means for the next.

use std::sync::Arc;

use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use super::answer;
use super::exchange::{Dispatch, Exchange, Refused};
use super::phases::Relay;
use super::upstream::{self, CANDIDATES_MAX};
use crate::relay::dialect::{self, Outgoing, ProviderError};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Dialect, Target};

impl Dispatch {
    /// Whether another candidate may be asked.
    pub(super) fn has_next(&self) -> bool {
        // Nobody is left to answer to.
        !self.tape.is_draining() && self.current + 1 < self.candidates.len().min(CANDIDATES_MAX)
    }

    /// The next candidate's turn, if there is one and it is allowed.
    pub(super) fn advance(&mut self) -> bool {
        let may = self.has_next();
        if may {
            self.current += 1;
            self.redialled = false;
        }
        may
    }

    /// Whether the current candidate may be asked once more over a new connection: once.
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
}

impl Relay {
    /// Puts the request as the target gets it on the tape, and gives where that is.
    pub(super) async fn say(&self, dispatch: &mut Dispatch, target: &Target) -> Result<HttpPeer, Refusal> {
        let output_tokens_max = dispatch.admitted.model.output_tokens_max;
        let Outgoing { path, body, dropped } =
            dialect::outgoing(&dispatch.request, target, output_tokens_max, &dispatch.signatures)?;
        let peer = upstream::peer(&self.shared, &target.provider, dispatch.tries).await.map_err(|reason| {
            let provider = &target.provider.name;
            tracing::warn!(%provider, %reason, "a provider has no address");
            self.attempt(provider, "unresolved", false);
            Refusal::new(Cause::UpstreamError, format!("The provider {provider} could not be found."))
        })?;
        (dispatch.path, dispatch.dropped, dispatch.refused) = (path, dropped, None);
        dispatch.tape.load(body);
        dispatch.tape.hold(false);
        Ok(peer)
    }

    /// Counts a try.
    pub(super) fn attempt(&self, provider: &str, outcome: &str, healthy: bool) {
        self.shared.metrics.upstream_attempts.with_label_values(&[provider, outcome]).inc();
        self.shared.metrics.upstream_healthy.with_label_values(&[provider]).set(i64::from(healthy));
    }

    /// Counts a try that failed.
    pub(super) fn attempt_failed(&self, dispatch: &Dispatch, outcome: &str) {
        self.attempt(dispatch.provider(), outcome, false);
    }

    /// A refusal has been read: another upstream is asked, or the client is told.
    pub(super) fn finish_refusal(&self, exchange: &mut Exchange) -> Result<()> {
        let Some(dispatch) = exchange.dispatch_mut() else { return Ok(()) };
        let Some(refused) = dispatch.refused.take() else { return Ok(()) };
        let told = self.judge_refusal(dispatch, &refused)?;
        let tape = Arc::clone(&dispatch.tape);
        if let Some(claim) = dispatch.admitted.claim.take() {
            tape.settle_claim_at_end(claim);
        }
        self.shared.metrics.refused(answer::cause_of(&told));
        tape.substitute(answer::substitute(exchange, &told)?);
        Ok(())
    }

    /// What a refusal, as far as it was read, means. An error where another upstream is asked next.
    pub(super) fn judge_refusal(&self, dispatch: &mut Dispatch, refused: &Refused) -> Result<ProviderError> {
        let error = dialect::read_error(dispatch.dialect(), refused.status, refused.body(), refused.retry_after_ms);
        self.refused(dispatch, refused.status, error)
    }

    /// Counts a refusal. An error where another upstream is asked next.
    pub(super) fn refused(&self, dispatch: &mut Dispatch, status: u16, error: ProviderError) -> Result<ProviderError> {
        let healthy = matches!(error, ProviderError::Request { .. });
        self.attempt(dispatch.provider(), &status.to_string(), healthy);
        if !upstream::another_may_answer(status, &error) || !dispatch.advance() {
            return Ok(error);
        }
        dispatch.failure = Some(error);
        let mut retry = Error::explain(ErrorType::HTTPStatus(status), "another provider is asked").into_up();
        retry.set_retry(true);
        Err(retry)
    }
}
