//! The configuration of billing, traces and shared windows, as those rooms want to be told of it.

use crate::billing::{self, SinkPlace, SpoolPlace};
use crate::config;
use crate::shared;
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

/// Without a name of its own a node is called by its host and the port of its client API: so two of one machine differ, and a process
/// that takes over from another is the same node.
pub(super) fn shared_place(
    redis: config::RedisConfig,
    node: Option<Box<str>>,
    listen: &config::Listen,
) -> shared::Place {
    let port = listen.http.or(listen.https.as_ref().map(|https| https.address)).map_or(0, |address| address.port());
    let by_host = || format!("{}:{port}", super::leases::host_name()).into();
    shared::Place {
        url: redis.url,
        username: redis.username,
        password: redis.password,
        node: node.unwrap_or_else(by_host),
        nodes_min: redis.nodes,
        wait_max: redis.wait_max,
    }
}
