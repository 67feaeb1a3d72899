//! What runs beside the requests and outlives them: billing, the watch over store and configuration, the access log.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::clock::Clock;
use super::demo::Demo;
use super::failed_logins::FailedLogins;
use super::handover::{Launcher, Upgrade, watch_for_upgrades};
use super::idempotency::Idempotency;
use super::in_flight::InFlight;
use super::keyring::Keyring;
use super::leases::{self, Leases};
use super::notify::Notifier;
use super::places::{shared_place, spool_place, traces_place};
use super::resolve::Resolver;
use super::server::ServeError;
use super::stage::Stage;
use super::{Shared, memory, recollection, settle};
use crate::admin::api::ConfigStatus;
use crate::admin::sale;
use crate::billing::{self, BillingState};
use crate::config::{self, Live, Mistake, Reloaded};
use crate::relay::meter::{NanoUsd, UsageRecord};
use crate::relay::route::RetryBudget;
use crate::shared::{Keeper, Windows};
use crate::store::{Difference, NodeName, Store};
use crate::telemetry::{AccessLog, Metrics, TraceWriter, Traces, Writer};

/// How often the ledger is audited for `tollgate_ledger_drift_nano_usd`.
const AUDIT_EVERY: Duration = Duration::from_secs(600);

/// How often subscriptions are looked at that may be due.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// All of it, at work.
pub(super) struct Work {
    background: Vec<JoinHandle<()>>,
    leases: Option<Arc<Leases>>,
    state: Arc<BillingState>,
    desk: Ending,
    /// What keeps the windows that nodes share.
    keeper: Option<Ending>,
    billing: Ending,
    trace_writer: Option<TraceWriter>,
    log_writer: Writer,
}

/// A task that ends in good order when it is told to.
struct Ending {
    tell: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Work {
    /// Opens what requests need, and begins.
    ///
    /// # Errors
    /// The spool, a sink or the store cannot be opened.
    pub(super) fn begin(
        live: Arc<Live>,
        store: Store,
        runtime: &Runtime,
        upgrade: Option<Upgrade>,
        notifier: &Notifier,
    ) -> Result<(Arc<Shared>, Self), ServeError> {
        let process = |error: &dyn std::fmt::Display| ServeError::Process(error.to_string());
        let (access_log, log_writer) = AccessLog::start().map_err(|error| process(&error))?;
        let metrics = Arc::new(Metrics::new().map_err(|error| process(&error))?);
        let (traces, trace_writer) = start_traces(&live.load())?;
        let clock = Clock::start();
        let leases = runtime.block_on(begin_leases(&live.load(), &store, clock))?;
        let store = match &leases {
            Some(leases) => store.leasing(Arc::clone(leases.node_id())),
            None => store,
        };
        let (windows, keeper) = share_windows(&live.load(), &metrics)?.unzip();
        let signatures = recollection::memory(windows.as_ref());
        let (recorder, worker) = runtime
            .block_on(billing::open(&spool_place(&live.load().billing), store.clone()))
            .map_err(|error| ServeError::Billing(error.to_string()))?;
        let times = (clock, live.load().store.grace_max);
        let keyring = runtime
            .block_on(Keyring::open(store.clone(), recorder.elsewhere().clone(), leases.clone(), times))
            .map_err(|error| ServeError::Billing(format!("the store cannot be read: {error}")))?;
        let keyring = Arc::new(keyring);
        let (idempotency, desk) = Idempotency::new(store.clone(), clock);
        let shared = Arc::new(Shared {
            clock,
            live: Arc::clone(&live),
            config_status: Mutex::new(ConfigStatus { loaded_at_ms: clock.unix_ms(), ..ConfigStatus::default() }),
            store: store.clone(),
            keyring: Arc::clone(&keyring),
            leases: leases.clone(),
            windows,
            recorder,
            idempotency,
            metrics: Arc::clone(&metrics),
            retries: RetryBudget::default(),
            access_log,
            traces: traces.clone(),
            resolver: Resolver::new(),
            demo: Demo::default(),
            failed_logins: FailedLogins::new(),
            requests_in_flight: InFlight::default(),
            connections: Arc::default(),
            memory: Arc::default(),
            signatures,
            stage: Stage::default(),
        });
        let observe = observer(&metrics, &shared.access_log, traces);
        let (reloading, reloaded) = (notifier.clone(), reloaded(Arc::clone(&shared), notifier.clone()));
        let state = Arc::clone(shared.recorder.state());
        let mut background = vec![
            runtime.spawn(async move { keyring.follow().await }),
            runtime.spawn(memory::watch(Arc::clone(&shared.memory), Arc::clone(&live))),
            runtime.spawn(config::watch(live, move || reloading.reloading(), reloaded)),
            runtime.spawn(audit(store.clone(), metrics)),
            runtime.spawn(renew(store, Arc::clone(&shared))),
            runtime.spawn(watch_for_upgrades(Launcher::new(upgrade), Arc::clone(&shared))),
        ];
        background.extend(leases.clone().map(|leases| runtime.spawn(leases.run())));
        let billing = Ending::begin(runtime, |told| worker.run(told, observe));
        let desk = Ending::begin(runtime, |told| desk.run(told));
        let keeper = keeper.map(|keeper| Ending::begin(runtime, |told| keeper.run(told)));
        Ok((shared, Self { background, leases, state, desk, keeper, billing, trace_writer, log_writer }))
    }

    /// Brings everything that was recorded into the ledger and the sinks, or at least into the spool; and then the log.
    pub(super) fn end(self, runtime: &Runtime) {
        for task in self.background {
            task.abort();
        }
        if !self.desk.end(runtime) {
            tracing::error!("claims on Idempotency-Keys were not settled; they end by themselves");
        }
        if self.keeper.is_some_and(|keeper| !keeper.end(runtime)) {
            tracing::error!("Redis was not told which requests have ended; their places come back by themselves");
        }
        if !self.billing.end(runtime) {
            tracing::error!("billing broke off; what it had not settled is in the spool and settles at the next start");
        }
        if let Some(leases) = self.leases {
            runtime.block_on(leases.end(self.state.spooled() == 0 && !self.state.failed() && !self.state.others()));
        }
        if let Some(writer) = self.trace_writer {
            writer.end();
        }
        self.log_writer.end();
    }
}

/// Returns when the word comes.
type Heard = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Ending {
    fn begin<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, work: impl FnOnce(Heard) -> F) -> Self {
        let (tell, told) = oneshot::channel();
        let heard: Heard = Box::pin(async move {
            let _ = told.await;
        });
        Self { tell, task: runtime.spawn(work(heard)) }
    }

    /// Whether it ended as it should.
    fn end(self, runtime: &Runtime) -> bool {
        let _ = self.tell.send(());
        runtime.block_on(self.task).is_ok()
    }
}

/// Joins the nodes that sell from the store, where the configuration says that there are several.
async fn begin_leases(
    snapshot: &config::Snapshot,
    store: &Store,
    clock: Clock,
) -> Result<Option<Arc<Leases>>, ServeError> {
    let failed = |error: &dyn std::fmt::Display| ServeError::Billing(error.to_string());
    let spool = &snapshot.billing.spool;
    let Some(shared) = snapshot.leasing() else {
        let id = billing::known_node_id(spool).map_err(|error| failed(&error))?.unwrap_or_default();
        let now_ms = store.clock_ms().await.map_err(|error| failed(&error))?;
        let others = store.other_nodes(&id, now_ms).await.map_err(|error| failed(&error))?;
        return match others.is_empty() {
            true => Ok(None),
            false => Err(ServeError::OneOfSeveral(others.join(", "))),
        };
    };
    let id = billing::node_id(spool).map_err(|error| failed(&error))?;
    let name = shared.node.map_or_else(leases::host_name, String::from);
    let node = NodeName { id, name, version: env!("CARGO_PKG_VERSION").to_owned() };
    let begun = Leases::begin(store.clone(), node, shared.lease, clock).await;
    begun.map(Some).map_err(|error| failed(&format!("the node cannot lease credit: {error}")))
}

/// The windows that nodes share, where there are several.
#[expect(clippy::float_arithmetic, reason = "series are floats")]
fn share_windows(
    snapshot: &config::Snapshot,
    metrics: &Arc<Metrics>,
) -> Result<Option<(Arc<Windows>, Keeper)>, ServeError> {
    let Some(config) = snapshot.shared.clone() else { return Ok(None) };
    let Some(redis) = config.redis else { return Ok(None) };
    let metrics = Arc::clone(metrics);
    let observe = move |us: u64| metrics.shared_windows_seconds.observe(us as f64 / 1e6);
    let windows = Windows::new(shared_place(redis, config.node, &snapshot.listen), observe);
    windows.map(Some).map_err(|error| ServeError::Process(error.to_string()))
}

/// Starts what sends traces, where there are to be any.
fn start_traces(snapshot: &config::Snapshot) -> Result<(Traces, Option<TraceWriter>), ServeError> {
    let Some(config) = &snapshot.traces else { return Ok((Traces::default(), None)) };
    let started = Traces::start(traces_place(config.clone()));
    let (traces, writer) = started.map_err(|error| ServeError::Process(format!("telemetry.traces: {error}")))?;
    Ok((traces, Some(writer)))
}

/// What becomes of a record once billing has priced it: the metrics of what was used, its line, and its trace.
fn observer(metrics: &Arc<Metrics>, access_log: &AccessLog, traces: Traces) -> impl Fn(&UsageRecord) + use<> {
    let (metrics, access_log) = (Arc::clone(metrics), access_log.clone());
    move |record| {
        traces.billed(record);
        metrics.settled(record);
        access_log.write(&settle::line(record));
    }
}

fn reloaded(shared: Arc<Shared>, notifier: Notifier) -> impl Fn(&Result<Reloaded, Vec<Mistake>>) {
    move |outcome| {
        told_of_reload(&shared.metrics, outcome);
        remember_reload(&shared, outcome);
        // Whichever configuration it is, it is in force.
        notifier.ready();
    }
}

fn told_of_reload(metrics: &Metrics, outcome: &Result<Reloaded, Vec<Mistake>>) {
    match outcome {
        Ok(reloaded) => {
            metrics.config_reloads.with_label_values(&["ok"]).inc();
            tracing::info!(version = reloaded.snapshot.version, "the configuration was reloaded");
            for setting in &reloaded.needs_restart {
                tracing::warn!(setting, "this setting is taken up at the next start");
            }
        }
        Err(mistakes) => {
            metrics.config_reloads.with_label_values(&["refused"]).inc();
            for mistake in mistakes {
                tracing::error!(%mistake, "the new configuration is refused; the old one stays");
            }
        }
    }
}

fn remember_reload(shared: &Shared, outcome: &Result<Reloaded, Vec<Mistake>>) {
    let now_ms = shared.clock.unix_ms();
    let mut status = shared.config_status.lock().unwrap_or_else(PoisonError::into_inner);
    status.last_reload = Some((now_ms, outcome.is_ok()));
    if let Ok(reloaded) = outcome {
        status.loaded_at_ms = now_ms;
        // Each reload is compared with the one before, and what one left waiting waits still.
        for setting in &reloaded.needs_restart {
            if !status.needs_restart.contains(setting) {
                status.needs_restart.push(setting);
            }
        }
    }
}

/// Re-derives every balance now and then, for the drift that must be zero.
async fn audit(store: Store, metrics: Arc<Metrics>) {
    let mut turns = tokio::time::interval(AUDIT_EVERY);
    loop {
        turns.tick().await;
        match store.audit().await {
            Ok(differences) => metrics.ledger_drift.set(drift(&differences)),
            Err(error) => tracing::warn!(%error, "the ledger could not be audited"),
        }
    }
}

/// Renews subscriptions that are due, and ends those that are over. While a process is replaced, both do: each period is renewed once.
async fn renew(store: Store, shared: Arc<Shared>) {
    let mut turns = tokio::time::interval(RENEW_EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        match sale::renew_due(&store, &shared.live.load().catalogue, shared.clock.unix_ms()).await {
            Ok(0) => {}
            Ok(renewed) => tracing::info!(renewed, "subscriptions that were due are renewed or have ended"),
            Err(error) => tracing::warn!(%error, "the store cannot be asked which subscriptions are due"),
        }
    }
}

/// By how much what is stored differs from what the ledger's entries say, in all.
fn drift(differences: &[Difference]) -> i64 {
    let nano = |amount: Option<NanoUsd>| amount.unwrap_or_default().0;
    differences.iter().map(|found| nano(found.stored).saturating_sub(nano(found.derived)).saturating_abs()).sum()
}
