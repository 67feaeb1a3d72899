//! How the process ends: what it is told by signals, and what it waits for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Shared;
use super::doors::{Guests, Sockets};
use super::handover::Link;
use super::notify::{Notifier, Watchdog};

/// How long running requests may take where they cannot be billed any more.
const UNBILLED_GRACE: Duration = Duration::from_secs(3);
/// How long settling may take after Pingora has dropped the requests that did not end.
const LAST_DROPS_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether the last request has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the last frames of HTTP/2 connections may take to leave.
const LAST_FRAMES: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT, with the word passed on that nothing new is taken. Pingora is told when there is nothing to wait for any more,
/// and drops what is left at once.
pub(super) struct Signals {
    pub(super) shared: Arc<Shared>,
    pub(super) notifier: Notifier,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            tracing::error!("signals cannot be received; the process ends only when it is killed");
            return std::future::pending().await;
        };
        let stage = &self.shared.stage;
        let has_grace = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => false,
            () = stage.until_ending() => true,
        };
        self.notifier.stopping();
        stage.end();
        tracing::info!(in_flight = self.shared.requests_in_flight.count(), "the process was told to end");
        if has_grace {
            self.grace(&mut terminate, &mut interrupt).await;
        }
        ShutdownSignal::FastShutdown
    }
}

impl Signals {
    /// Returns when requests under way have had their time, or somebody loses patience.
    async fn grace(&self, terminate: &mut Signal, interrupt: &mut Signal) {
        let most = self.shared.live.load().limits.shutdown_max;
        let why = tokio::select! {
            _ = terminate.recv() => "the process was told again",
            _ = interrupt.recv() => "the process was interrupted",
            () = tokio::time::sleep(most) => "limits.shutdown_seconds_max is over",
        };
        tracing::warn!(why, in_flight = self.shared.requests_in_flight.count(), "requests under way are cut");
    }
}

/// What the process's end depends on.
pub(super) struct End<'a> {
    pub(super) shared: &'a Shared,
    pub(super) sockets: &'a Sockets,
    pub(super) guests: Guests,
    /// The process that this one has taken over from.
    pub(super) predecessor: Option<Link>,
    pub(super) watchdog: Watchdog,
    pub(super) pingora_ended: Receiver<()>,
}

impl End<'_> {
    /// Returns when Pingora has ended, or the last request after the signal has. Once nothing can be billed any more that is a signal
    /// too, and those who run have little time: they are told by the answer's breaking off that it is not whole.
    pub(super) fn wait(mut self) {
        let mut unbilled_since = None;
        let mut is_told = false;
        while let Err(RecvTimeoutError::Timeout) = self.pingora_ended.recv_timeout(LOOK_EVERY) {
            let (now, has_failed) = (Instant::now(), self.shared.recorder.state().failed());
            self.watchdog.turn(now, !has_failed);
            if unbilled_since.is_none() && has_failed {
                let in_flight = self.shared.requests_in_flight.count();
                tracing::error!(in_flight, "requests cannot be billed any more; the process ends");
                unbilled_since = Some(now);
            }
            if unbilled_since.is_some_and(|since| now.duration_since(since) > UNBILLED_GRACE) {
                return;
            }
            if self.shared.stage.is_ending() && !is_told {
                is_told = true;
                self.sockets.close();
                self.predecessor.as_ref().inspect(|link| link.end());
            }
            if self.may_go(now, has_failed) {
                // HTTP/2 sends a request's last frames after the request has ended.
                std::thread::park_timeout(LAST_FRAMES);
                return;
            }
        }
        let patience = Instant::now() + LAST_DROPS_MAX;
        while self.shared.requests_in_flight.count() > 0 && Instant::now() < patience {
            std::thread::park_timeout(LOOK_EVERY);
        }
    }

    /// Whether nobody needs the process any more. Its predecessor does: once the main process has gone, service managers kill the rest.
    fn may_go(&self, now: Instant, has_failed: bool) -> bool {
        if self.shared.requests_in_flight.count() > 0 {
            return false;
        }
        let stage = &self.shared.stage;
        let is_alone = self.predecessor.as_ref().is_none_or(Link::is_gone);
        // Connections that are asked nothing are kept for as long as they would have been if the doors were still ours.
        let last_call = self.shared.live.load().limits.keep_alive_max;
        let is_left = |since| self.guests.count() == 0 || now.saturating_duration_since(since) > last_call;
        has_failed || is_alone && (stage.is_ending() || stage.handed_over_at().is_some_and(is_left))
    }
}
