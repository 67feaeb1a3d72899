//! `tollgate check`: reads and validates everything that `serve` would, touches nothing.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Common, Outcome, output};
use crate::config::{self, Mistake, Providers, Snapshot};

#[derive(Debug, Args)]
pub(super) struct Check {}

impl Check {
    /// Prints one line of counts, or every mistake on stderr as `FILE:LINE: what is wrong; the mend`.
    pub(super) fn run(&self, common: &Common) -> Outcome {
        let path = config::locate(common.config.as_deref());
        match config::load(&path, Providers::All) {
            Ok(loaded) => {
                tell_good(&loaded.snapshot, common.json);
                Ok(ExitCode::SUCCESS)
            }
            Err(mistakes) => {
                tell_mistakes(&mistakes, common.json);
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

fn tell_good(snapshot: &Snapshot, as_json: bool) {
    let catalogue = &snapshot.catalogue;
    let (models, providers) = (catalogue.models().len(), catalogue.providers().len());
    let plans = catalogue.plan_names().len();
    if as_json {
        output::json(&json!({ "models": models, "providers": providers, "plans": plans, "mistakes": [] }));
    } else {
        output::line(&format!("ok: {models} models, {providers} providers, {plans} plans"));
    }
}

fn tell_mistakes(mistakes: &[Mistake], as_json: bool) {
    if as_json {
        let rows: Vec<_> = mistakes.iter().map(as_row).collect();
        output::json(&json!({ "mistakes": rows }));
    } else {
        mistakes.iter().for_each(|mistake| output::note(&mistake.to_string()));
    }
}

fn as_row(Mistake { file, line, what }: &Mistake) -> serde_json::Value {
    json!({ "file": file.display().to_string(), "line": line, "what": what })
}
