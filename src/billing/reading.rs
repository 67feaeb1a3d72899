//! Reading the spool back, on threads where it holds nobody up, and beside the one that writes it.

use std::sync::{Arc, Mutex, PoisonError};

use super::inbox::Inbox;
use super::spool::{ReadBack, SpoolError, SpoolFile, SpoolReader, Stretch};

/// One reader of the spool. Clones share its connection.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    inbox: Arc<Inbox>,
    reader: Arc<Mutex<SpoolReader>>,
}

impl Reading {
    pub(super) fn new(inbox: Arc<Inbox>, reader: SpoolReader) -> Self {
        Self { inbox, reader: Arc::new(Mutex::new(reader)) }
    }

    /// Looks at the spool.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&SpoolReader) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let reader = Arc::clone(&self.reader);
        let looking = tokio::task::spawn_blocking(move || look(&reader.lock().unwrap_or_else(PoisonError::into_inner)));
        looking.await.unwrap_or(Err(SpoolError::Closed))
    }

    /// The oldest batches of a stretch, as [`SpoolReader::read`] gives them. What cannot be read is put aside.
    pub(super) async fn read(&self, stretch: &Stretch, records_max: usize) -> Result<ReadBack, SpoolError> {
        let of = stretch.clone();
        let mut read = self.look(move |reader| reader.read(&of, records_max)).await?;
        for batch in &mut read.batches {
            let Some(unreadable) = batch.unreadable.take() else { continue };
            let (writer, number) = (Arc::clone(&stretch.writer), batch.number);
            tracing::error!(
                batch = %format_args!("{writer}/{number}"),
                "spooled records cannot be read; they are put aside, undelivered, in the table unreadable_batches"
            );
            let readable = batch.records.clone();
            let job = move |file: &mut SpoolFile| file.put_aside(&writer, number, &readable, &unreadable);
            self.inbox.ask(job).await?;
        }
        Ok(read)
    }
}
