//! `tollgate node`: the nodes that sell from one store.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output::{self, Column, Table};
use super::store::with_store;
use super::value::rfc3339;
use super::{Common, Failure, Outcome};
use crate::admin::NodeDocument;
use crate::billing::known_node_id;
use crate::config::Snapshot;
use crate::store::{self, Store};

#[derive(Debug, Args)]
pub(super) struct Node {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// All nodes, with what they have leased
    List,
    /// Have a node say that it is not ready, so that balancers leave it
    Drain {
        #[command(flatten)]
        which: Which,
    },
    /// Let a node say that it is ready again
    Resume {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The node, as `node list` shows it
    id: Option<String>,
    /// The node of this configuration's spool
    #[arg(long = "self")]
    itself: bool,
}

impl Node {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |snapshot, store| {
            match &self.action {
                Action::List => list(store, common.json).await?,
                Action::Drain { which } => set_draining(snapshot, store, which, true, common.json).await?,
                Action::Resume { which } => set_draining(snapshot, store, which, false, common.json).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn set_draining(
    snapshot: &Snapshot,
    store: &Store,
    which: &Which,
    draining: bool,
    json: bool,
) -> Result<(), Failure> {
    let id = match &which.id {
        Some(id) => id.clone(),
        None => {
            let known = known_node_id(&snapshot.billing.spool)?;
            known.ok_or_else(|| Failure("no node has begun at this configuration's spool".to_owned()))?.to_string()
        }
    };
    let node = store.set_node_draining(&id, draining).await?;
    print(&[node], store.clock_ms().await?, json, true);
    Ok(())
}

async fn list(store: &Store, json: bool) -> Result<(), Failure> {
    print(&store.nodes().await?, store.clock_ms().await?, json, false);
    Ok(())
}

fn print(nodes: &[store::Node], now_ms: i64, json: bool, is_one: bool) {
    let documents: Vec<_> = nodes.iter().map(|node| NodeDocument::new(node, now_ms)).collect();
    match documents.as_slice() {
        [one] if json && is_one => return output::json(one),
        all if json => return output::json(&all),
        _ => {}
    }
    let row = |node: &store::Node| {
        [
            node.id.clone(),
            node.name.clone(),
            NodeDocument::status(node, now_ms).to_owned(),
            node.version.clone(),
            node.epoch.to_string(),
            rfc3339(node.seen_at_ms),
            rfc3339(node.expires_at_ms),
            node.leased.to_string(),
        ]
    };
    let columns = [
        Column::Left("ID"),
        Column::Left("NAME"),
        Column::Left("STATUS"),
        Column::Left("VERSION"),
        Column::Right("EPOCH"),
        Column::Left("SEEN"),
        Column::Left("EXPIRES"),
        Column::Right("LEASED USD"),
    ];
    Table::new(columns).rows(&nodes.iter().map(row).collect::<Vec<_>>());
}
