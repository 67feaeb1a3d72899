//! `tollgate audit`.

use clap::Args;

use super::{Common, Outcome};

#[derive(Debug, Args)]
pub(super) struct Audit {}

impl Audit {
    pub(super) fn run(&self, _common: &Common) -> Outcome {
        Err("not built yet".into())
    }
}
