//! `tollgate serve`.

use clap::Args;

use super::{Common, Outcome};

#[derive(Debug, Args)]
pub(super) struct Serve {}

impl Serve {
    pub(super) fn run(&self, _common: &Common) -> Outcome {
        Err("not built yet".into())
    }
}
