//! What accounts owe and hold by rows of the spool that no purse of this process knows of: requests of another process that still
//! runs, and what a dead one left, until the ledger has it.
//!
//! What is read must be older than the balances that it is put beside, or a cost that moved into the ledger in between would count in
//! neither: ask here first, then the store. It may count in both for a moment.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::open_row;
use super::spool::{SpoolError, SpoolReader};
use super::state::BillingState;
use crate::relay::meter::NanoUsd;

/// What accounts owe and hold elsewhere.
#[derive(Debug, Clone)]
pub struct Elsewhere(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// This process, whose own purses know.
    own: Arc<str>,
    state: Arc<BillingState>,
    books: Mutex<Books>,
}

/// Batches are read once; there may be many while the store cannot be reached.
#[derive(Debug, Default)]
struct Books {
    reader: Option<SpoolReader>,
    writers: HashMap<String, Written>,
}

#[derive(Debug, Default)]
struct Written {
    /// The last batch that was read.
    read: i64,
    /// By number, what each batch that the ledger does not have costs each account.
    batches: BTreeMap<i64, Amounts>,
}

type Amounts = HashMap<Arc<str>, i64>;

impl Elsewhere {
    pub(super) fn new(path: PathBuf, own: Arc<str>, state: Arc<BillingState>) -> Self {
        Self(Arc::new(Inner { path, own, state, books: Mutex::default() }))
    }

    /// What each account owes and holds elsewhere now; accounts that are not named owe nothing.
    ///
    /// # Errors
    /// The spool cannot be read.
    pub async fn amounts(&self) -> Result<HashMap<Arc<str>, NanoUsd>, SpoolError> {
        if !self.0.state.others() {
            return Ok(HashMap::new());
        }
        let inner = Arc::clone(&self.0);
        let reading = tokio::task::spawn_blocking(move || inner.read());
        reading.await.unwrap_or(Err(SpoolError::Closed))
    }
}

impl Inner {
    fn read(&self) -> Result<HashMap<Arc<str>, NanoUsd>, SpoolError> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let Books { reader, writers } = &mut *books;
        let reader = match reader {
            Some(reader) => reader,
            None => reader.insert(SpoolReader::open(&self.path)?),
        };
        let others = reader.others(&self.own)?;
        writers.retain(|writer, _| others.contains(writer));
        let mut sums = Amounts::new();
        for writer in others {
            reader.open_rows(&writer, |body| {
                // One that cannot be read is told when its process is gone.
                if let Ok((account, hold)) = open_row::held(body) {
                    add(&mut sums, account, hold.0);
                }
            })?;
            let written = writers.entry(writer.clone()).or_default();
            written.read(reader, &writer)?;
            for batch in written.batches.values() {
                batch.iter().for_each(|(account, cost)| add(&mut sums, account.clone(), *cost));
            }
        }
        Ok(sums.into_iter().map(|(account, sum)| (account, NanoUsd(sum))).collect())
    }
}

impl Written {
    fn read(&mut self, reader: &SpoolReader, writer: &str) -> Result<(), SpoolError> {
        let settled = reader.ledger_has(writer)?;
        self.batches = self.batches.split_off(&(settled + 1));
        self.read = self.read.max(settled);
        while let Some(batch) = reader.next_batch(writer, self.read)? {
            let mut costs = Amounts::new();
            batch.records.into_iter().for_each(|record| add(&mut costs, record.account_id, record.cost.0));
            self.batches.insert(batch.number, costs);
            self.read = batch.number;
        }
        Ok(())
    }
}

fn add(sums: &mut Amounts, account: Arc<str>, amount: i64) {
    let sum = sums.entry(account).or_default();
    *sum = sum.saturating_add(amount);
}
