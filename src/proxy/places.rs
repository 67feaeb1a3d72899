//! The configuration of billing and traces, as those rooms want to be told of it.

use crate::billing::{self, SinkPlace, SpoolPlace};
use crate::config;
use crate::telemetry::TracesPlace;

pub(super) fn spool_place(config: &config::BillingConfig) -> SpoolPlace {
    SpoolPlace {
        path: config.spool.clone(),
        bytes_max: config.spool_bytes_max,
        durability: match config.durability {
            config::Durability::Process => billing::Durability::Process,
            config::Durability::Power => billing::Durability::Power,
        },
        sinks: config.sinks.iter().map(sink_place).collect(),
    }
}

fn sink_place(config: &config::SinkConfig) -> SinkPlace {
    let target = match config.target.clone() {
        config::SinkTarget::Webhook { url, key, authorization, source } => {
            billing::SinkTarget::Webhook { url, key, authorization, source }
        }
        config::SinkTarget::File { path, bytes_max, files_max } => {
            billing::SinkTarget::File { path, bytes_max, files_max: Some(files_max).filter(|files| *files > 0) }
        }
    };
    SinkPlace { name: config.name.clone(), target }
}

pub(super) fn traces_place(config: config::TracesConfig) -> TracesPlace {
    TracesPlace {
        endpoint: config.endpoint,
        headers: config.headers,
        sample_per_billion: config.sample_per_billion,
        trust_parent: config.trust_parent,
        propagate: config.propagate,
        service_name: config.service_name,
    }
}
