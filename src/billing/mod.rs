//! From an admitted request to a ledger entry: recorder, spool, ledger.
//!
//! ```text
//! admitted → Recorder::open → a row in the spool (SQLite beside the relay), rewritten by Ticket::checkpoint
//! ended → Ticket::finish → the journal, a file of the process → Receipt::kept: the client gets the end
//!                                 └→ a batch in the row's place
//!                                      ├→ Store::settle ─────────┐
//!                                      └→ each sink, on its own ─┴→ removed from the spool
//! ```
//!
//! With `power` there is no journal, and the client waits for the batch.
//!
//! A request is admitted only with a [`Ticket`] in hand, for which there is room in the spool, so that recording it can neither fail
//! nor wait. What is in the spool the ledger takes from there, at most once by its request id. While the store cannot be reached
//! records stay in the spool. While the spool has no room no tickets are given and nothing is sold, until it has. When it fails in any
//! other way nothing is written, acknowledged or sold any more, and the process is to end: the next one finds out what is there.
//!
//! When a process dies, the requests that it was serving are billed as of their last checkpoints, by the next process or by one that
//! runs beside it. What lives elsewhere counts against its accounts ([`Elsewhere`]).
//!
//! Sinks besides the ledger ([`sink`]) are fed from the spool too, each with a cursor of its own ([`feed`]). A record leaves the spool
//! when the ledger and every sink have it.

mod backlog;
mod batch;
mod debts;
mod delivery;
mod elsewhere;
mod feed;
mod group;
mod holds;
mod inbox;
mod log_taker;
mod open_row;
mod reading;
mod recorder;
mod scribe;
#[cfg(test)]
mod simulation;
mod sink;
mod spool;
mod state;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::mpsc;

use self::backlog::Backlog;
use self::delivery::Delivery;
pub use self::delivery::Ledger;
pub use self::elsewhere::Elsewhere;
use self::feed::{Feed, SpoolSource};
use self::group::Pace;
pub use self::holds::{SpooledHold, spooled_holds};
use self::inbox::Inbox;
use self::reading::Reading;
pub use self::recorder::{
    NotKept, Opening, Progress, RECORDS_MAX, Receipt, Recorder, TICKET_BYTES, Ticket, Unreported,
};
use self::sink::{AnySink, Sink, Times};
pub use self::sink::{SinkOpenError, SinkPlace, SinkState, SinkTarget};
use self::spool::{Adopted, SpoolFile, SpoolReader};
pub use self::spool::{SpoolError, known_node_id, node_id};
pub use self::state::BillingState;
use self::worker::Books;
pub use self::worker::Worker;

/// Where finished requests wait for the ledger and the other sinks.
#[derive(Debug, Clone)]
pub struct SpoolPlace {
    /// The SQLite file; it and its folder are created where there are none, for their owner only.
    pub path: PathBuf,
    /// How large it may become, its log included. Before it is that large no more requests are admitted.
    pub bytes_max: u64,
    /// What a record in the spool survives.
    pub durability: Durability,
    /// Who is to have each record besides the ledger. Names differ.
    pub sinks: Vec<SinkPlace>,
}

/// What a record in the spool survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, however it comes.
    Process,
    /// The end of the machine's power too: each write waits for the disk.
    Power,
}

/// Why billing cannot begin.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The spool cannot be had.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A sink cannot be set up.
    #[error(transparent)]
    Sink(#[from] SinkOpenError),
}

/// Opens the spool and the sinks, and takes over what dead processes left. The recorder takes requests from now on; they go on to the
/// ledger and the sinks, and so does what was taken over, once the worker runs.
///
/// # Errors
/// When the spool's file cannot be created, or is no spool, or a sink's file cannot be written.
pub async fn open<L: Ledger>(place: &SpoolPlace, ledger: L) -> Result<(Recorder, Worker<L>), OpenError> {
    let times = Times::real();
    let mut sinks = Vec::with_capacity(place.sinks.len());
    for sink in &place.sinks {
        sinks.push(AnySink::open(sink.clone(), &times).await?);
    }
    let found = place.clone();
    let opening = tokio::task::spawn_blocking(move || Opened::of(SpoolFile::open(&found)?, &found));
    let opened = opening.await.unwrap_or(Err(SpoolError::Closed))?;
    Ok(assemble(opened, place, ledger, sinks, times)?)
}

/// Recorder and worker, joined by their inbox.
fn assemble<L: Ledger>(
    opened: Opened,
    place: &SpoolPlace,
    ledger: L,
    sinks: Vec<AnySink>,
    times: Times,
) -> Result<(Recorder, Worker<L>), SpoolError> {
    let Opened { file, reader, of_sinks, mut adopted } = opened;
    let sink_state = |sink: &AnySink| Arc::new(SinkState::new(sink.name()));
    let state = Arc::new(BillingState::with_sinks(sinks.iter().map(sink_state).collect()));
    state.set_room(file.room()?);
    let own = Arc::clone(file.writer());
    let inbox = Arc::new(Inbox::new(file.journal().cloned()));
    let (count, uncounted) = mpsc::unbounded_channel();
    let elsewhere = Elsewhere::new(place.path.clone(), Arc::clone(&own), Arc::clone(&state));
    let recorder = Recorder::new(Arc::clone(&inbox), count, elsewhere, Arc::clone(&state));
    let found = std::mem::take(&mut adopted.found);
    let feed = |state: &Arc<SinkState>| Arc::new(Feed::new(Arc::clone(&own), Arc::clone(state)));
    let feeds: Vec<Arc<Feed>> = state.sinks().iter().map(feed).collect();
    let fed = sinks.into_iter().zip(&feeds).zip(of_sinks).map(|((sink, feed), OfSink { reader, parked })| {
        let (feed, reading) = (Arc::clone(feed), Reading::new(Arc::clone(&inbox), reader));
        (sink, SpoolSource::new(feed, Arc::clone(&inbox), reading, times.clone(), parked))
    });
    let fed = fed.collect();
    let books = Arc::new(Books::new(Backlog::new(Arc::clone(&own), Vec::new()), feeds, state));
    books.inherit(adopted);
    let reading = Reading::new(Arc::clone(&inbox), reader);
    let delivery = Delivery::new(ledger, Arc::clone(&inbox), reading, Arc::clone(&books), own);
    let worker = Worker { file, inbox, uncounted, found, books, delivery, fed, times, pace: Pace::default() };
    Ok((recorder, worker))
}

/// A spool as it was found.
struct Opened {
    file: SpoolFile,
    /// For the ledger.
    reader: SpoolReader,
    of_sinks: Vec<OfSink>,
    adopted: Adopted,
}

/// What a sink has of the spool: a reader of its own, so that nobody waits for another, and so many parked records.
struct OfSink {
    reader: SpoolReader,
    parked: u64,
}

impl Opened {
    fn of(mut file: SpoolFile, place: &SpoolPlace) -> Result<Self, SpoolError> {
        let reader = SpoolReader::open(&place.path)?;
        let adopted = match file.adopt() {
            Ok(adopted) => adopted,
            // It cannot be looked what there is; it is tried again. Until then it is owed by whoever owes it.
            Err(spool::WriteError::Stalled(error)) => {
                tracing::warn!(%error, "what other processes left in the spool cannot be taken over yet");
                Adopted { remains: true, ..Adopted::default() }
            }
            Err(spool::WriteError::Broken(error)) => return Err(error),
        };
        let of_sink = |sink: &SinkPlace| {
            let reader = SpoolReader::open(&place.path)?;
            let parked = reader.count_parked(&sink.name)?;
            Ok(OfSink { reader, parked })
        };
        let of_sinks = place.sinks.iter().map(of_sink).collect::<Result<_, SpoolError>>()?;
        Ok(Self { file, reader, of_sinks, adopted })
    }
}
