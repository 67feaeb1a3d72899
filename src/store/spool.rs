//! Up to where the relays' spools are in the ledger.

use super::StoreError;
use super::engine::{Connection, query, query_scalar};
use super::ledger::SpoolCursor;

/// Moves a writer's cursor to the last of the batches; says whether they are to be entered. What lies between the cursor and the
/// first of them is a gap.
pub(super) async fn advance(
    connection: &mut Connection,
    cursor: SpoolCursor<'_>,
    records: usize,
) -> Result<bool, StoreError> {
    const SELECT: &str = "SELECT number FROM spool_cursors WHERE writer = $1";
    const BEGIN: &str = "INSERT INTO spool_cursors (writer, number, records) VALUES ($1, 0, 0) ON CONFLICT DO NOTHING";
    const MOVE: &str = "UPDATE spool_cursors SET number = $2, records = records + $3 WHERE writer = $1";
    const GAP: &str = "INSERT INTO spool_gaps (writer, first, last) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    let SpoolCursor { writer, first, last } = cursor;
    let entered: Option<i64> = query_scalar(SELECT).bind(writer).fetch_optional(&mut *connection).await?;
    if entered.is_none() {
        query(BEGIN).bind(writer).execute(&mut *connection).await?;
    }
    let entered = entered.unwrap_or(0);
    if last <= entered {
        return Ok(false);
    }
    if first > entered + 1 {
        tracing::error!(
            writer,
            first = entered + 1,
            last = first - 1,
            "batches of a spool never came; their requests are not billed"
        );
        query(GAP).bind(writer).bind(entered + 1).bind(first - 1).execute(&mut *connection).await?;
    }
    let records = i64::try_from(records).unwrap_or(i64::MAX);
    query(MOVE).bind(writer).bind(last).bind(records).execute(&mut *connection).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::DifferenceKind;
    use super::super::fixture::{Fixture, record};
    use super::*;
    use crate::relay::meter::NanoUsd;

    fn batches(first: i64, last: i64) -> Option<SpoolCursor<'static>> {
        Some(SpoolCursor { writer: "w", first, last })
    }

    #[tokio::test]
    async fn a_batch_is_entered_once_whatever_it_holds() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let (first, second) = (record(&fixture, 100), record(&fixture, 20));
        assert!(store.settle(std::slice::from_ref(&first), batches(1, 1)).await.unwrap()[0].fresh);
        let again = store.settle(&[first.clone(), record(&fixture, 7)], batches(1, 1)).await.unwrap();
        assert_eq!(again.iter().map(|one| one.fresh).collect::<Vec<_>>(), [false, false]);
        assert_eq!((again[1].balance, again[1].spent), (NanoUsd(4_999_999_900), NanoUsd(100)));
        // Batches are put together anew after a restart.
        let overlapping = store.settle(&[first, second], batches(1, 3)).await.unwrap();
        assert_eq!(overlapping.iter().map(|one| one.fresh).collect::<Vec<_>>(), [false, true]);
        assert!(!store.settle(&[record(&fixture, 1)], batches(2, 3)).await.unwrap()[0].fresh);
        assert_eq!(fixture.account().await.balance, NanoUsd(4_999_999_880));
        let other = Some(SpoolCursor { writer: "v", first: 1, last: 1 });
        assert!(store.settle(&[record(&fixture, 1)], other).await.unwrap()[0].fresh, "each writer has its own");
        assert_eq!(store.audit().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_gap_is_entered_over_and_never_forgotten() {
        let fixture = Fixture::with_credit("5").await;
        fixture.store.settle(&[record(&fixture, 1)], batches(1, 2)).await.unwrap();
        assert!(fixture.store.settle(&[record(&fixture, 1)], batches(5, 6)).await.unwrap()[0].fresh);
        let found = fixture.store.audit().await.unwrap();
        assert_eq!(
            found.iter().map(|one| (one.kind, &*one.id)).collect::<Vec<_>>(),
            [(DifferenceKind::SpoolGap, "w/3-4")]
        );
        assert!(!fixture.store.settle(&[record(&fixture, 1)], batches(3, 4)).await.unwrap()[0].fresh, "too late");
    }
}
