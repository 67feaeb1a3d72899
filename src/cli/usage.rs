//! `tollgate usage`.

use clap::Args;

use super::{Common, Outcome};

#[derive(Debug, Args)]
pub(super) struct Usage {}

impl Usage {
    pub(super) fn run(&self, _common: &Common) -> Outcome {
        Err("not built yet".into())
    }
}
