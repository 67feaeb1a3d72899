//! The configuration in force and what became of the last reload; whether the process should get traffic, and why not.

use askama::Template;

use super::moment;
use crate::admin::Behind;
use crate::admin::dashboard::answer::{Answer, page};
use crate::admin::dashboard::guard::Operator;
use crate::admin::dashboard::layout::Frame;
use crate::admin::dashboard::map::Map;

const PATH: &str = "/operator/configuration";

pub(super) fn map(map: Map) -> Map {
    map.page(PATH, show)
}

#[derive(Template)]
#[template(path = "operator_configuration.html")]
struct ConfigurationPage {
    frame: Frame,
    takes_traffic: bool,
    store_reachable: bool,
    billing: &'static str,
    billing_behind: Vec<Behind>,
    draining: bool,
    version: u64,
    loaded: String,
    /// When the last reload was tried; empty where none was.
    reloaded: String,
    reload_taken: bool,
    mistakes: Vec<String>,
    needs_restart: Vec<&'static str>,
    files: Vec<String>,
    models: usize,
    providers: usize,
    plans: usize,
}

async fn show(Operator(who): Operator) -> Answer {
    let (process, snapshot) = (who.dashboard.process(), who.dashboard.snapshot());
    let (readiness, status) = (process.readiness(), process.config());
    let billing = match (readiness.billing_open, readiness.billing_failed) {
        (true, _) => "takes records",
        (false, true) => "failed; the process is to be started again",
        (false, false) => "closed until there is room in the spool",
    };
    page(&ConfigurationPage {
        frame: Frame::of(&who, "Configuration", PATH),
        takes_traffic: readiness.takes_traffic(),
        store_reachable: readiness.store_reachable,
        billing,
        draining: readiness.draining,
        version: snapshot.version,
        loaded: moment(status.loaded_at_ms),
        reloaded: status.last_reload.map(|(at_ms, _)| moment(at_ms)).unwrap_or_default(),
        reload_taken: status.last_reload.is_some_and(|(_, taken)| taken),
        mistakes: readiness.config_mistakes,
        billing_behind: readiness.billing_behind,
        needs_restart: status.needs_restart,
        files: snapshot.files.iter().map(|path| path.display().to_string()).collect(),
        models: snapshot.catalogue.models().len(),
        providers: snapshot.catalogue.providers().len(),
        plans: snapshot.catalogue.plan_names().len(),
    })
}
