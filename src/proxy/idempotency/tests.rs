//! The desk with its store, turn by turn: what reaches the table when claims end, and when the table cannot be reached.

use std::task::{Context, Poll, Waker};

use sqlx::Connection as _;

use super::*;
use crate::relay::refusal::Cause;

struct Fixture {
    requests: Idempotency,
    desk: Desk,
    url: String,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/tollgate.db", folder.path().display());
        let (requests, desk) = Idempotency::new(Store::open(&url).await.unwrap(), Clock::start());
        Self { requests, desk, url, _folder: folder }
    }

    async fn look(&self, request_id: u128) -> Result<Looked, Refusal> {
        let key = IdempotencyKey::parse([b"k".as_slice()]).unwrap().unwrap();
        self.requests.look("acct_a", Uuid::from_u128(request_id), &key, b"body").await
    }

    async fn claim(&mut self, request_id: u128) -> Result<Box<Claim>, Refusal> {
        let Looked::First(candidate) = self.look(request_id).await? else { panic!("not the first") };
        let mut claim = pin!(self.requests.claim(*candidate));
        assert!(claim.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        turn(&mut self.desk).await;
        claim.await
    }

    async fn sql(&self, statement: &'static str) {
        let mut connection = sqlx::SqliteConnection::connect(&self.url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

/// Writes what is in the queue.
async fn turn(desk: &mut Desk) {
    let mut jobs = Vec::new();
    while let Ok(job) = desk.jobs.try_recv() {
        jobs.push(job);
    }
    desk.write(&mut jobs).await;
}

/// An answer that passes through a claim to its end.
fn answer(claim: &mut Claim, outcome: Outcome) {
    claim.begin(StatusCode::OK, &HeaderValue::from_static("text/plain"));
    claim.tee(b"Hello");
    claim.ended(outcome, b" there");
}

fn cause(looked: Result<Looked, Refusal>) -> Option<Cause> {
    looked.err().map(|refusal| refusal.cause)
}

#[tokio::test]
async fn a_claim_that_is_dropped_leaves_what_came_of_it() {
    let mut fixture = Fixture::new().await;
    for outcome in [None, Some(Outcome::Truncated), Some(Outcome::Errored), Some(Outcome::Complete)] {
        let mut claim = fixture.claim(1).await.unwrap();
        assert_eq!(cause(fixture.look(2).await), Some(Cause::IdempotencyInProgress));
        if let Some(outcome) = outcome {
            answer(&mut claim, outcome);
        }
        drop(claim);
        turn(&mut fixture.desk).await;
        assert!(fixture.desk.living.is_empty());
    }
    let Ok(Looked::Repeat(replay)) = fixture.look(2).await else { panic!("not kept") };
    assert_eq!((replay.status, &*replay.content_type, &*replay.body), (200, "text/plain", b"Hello there".as_slice()));
}

#[tokio::test]
async fn settling_waits_until_it_is_written() {
    let mut fixture = Fixture::new().await;
    let mut claim = fixture.claim(1).await.unwrap();
    answer(&mut claim, Outcome::Complete);
    let mut settling = pin!(claim.settle());
    assert_eq!(settling.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    assert_eq!(cause(fixture.look(2).await), Some(Cause::IdempotencyInProgress));
    turn(&mut fixture.desk).await;
    assert_eq!(settling.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
    assert!(matches!(fixture.look(2).await, Ok(Looked::Repeat(_))));
}

#[tokio::test]
async fn a_request_that_leaves_while_it_claims_holds_nothing() {
    let mut fixture = Fixture::new().await;
    let Ok(Looked::First(candidate)) = fixture.look(1).await else { panic!("not the first") };
    {
        let mut claim = pin!(fixture.requests.claim(*candidate));
        assert!(claim.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    turn(&mut fixture.desk).await;
    assert!(fixture.desk.living.is_empty());
    assert!(fixture.claim(2).await.is_ok());
}

#[tokio::test]
async fn claims_of_requests_that_run_are_renewed_and_no_others() {
    let mut fixture = Fixture::new().await;
    let running = fixture.claim(1).await.unwrap();
    fixture.sql("UPDATE idempotency_keys SET claimed_until_ms = 0").await;
    fixture.desk.renew(&mut Vec::new()).await;
    assert_eq!(cause(fixture.look(2).await), Some(Cause::IdempotencyInProgress));
    // As if it had died.
    std::mem::forget(running);
    fixture.desk.living.clear();
    fixture.sql("UPDATE idempotency_keys SET claimed_until_ms = 0").await;
    fixture.desk.renew(&mut Vec::new()).await;
    assert!(fixture.claim(2).await.is_ok());
}

#[tokio::test]
async fn while_the_store_fails_claims_are_refused_and_ends_are_owed() {
    let mut fixture = Fixture::new().await;
    let mut claim = fixture.claim(1).await.unwrap();
    let key = IdempotencyKey::parse([b"another".as_slice()]).unwrap().unwrap();
    let late = fixture.requests.look("acct_a", Uuid::from_u128(2), &key, b"body").await;
    let Ok(Looked::First(late)) = late else { panic!("not the first") };
    fixture.sql("ALTER TABLE idempotency_keys RENAME TO elsewhere").await;
    assert_eq!(cause(fixture.look(3).await), Some(Cause::BillingUnavailable));
    answer(&mut claim, Outcome::Complete);
    let mut settling = pin!(claim.settle());
    assert!(settling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let mut refused = pin!(fixture.requests.claim(*late));
    assert!(refused.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    turn(&mut fixture.desk).await;
    assert_eq!(refused.await.err().map(|refusal| refusal.cause), Some(Cause::BillingUnavailable));
    // The answer's last bytes do not wait for longer.
    assert!(settling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());

    fixture.sql("ALTER TABLE elsewhere RENAME TO idempotency_keys").await;
    fixture.desk.renew(&mut Vec::new()).await;
    assert_eq!(
        cause(fixture.look(3).await),
        Some(Cause::IdempotencyAnswerDropped),
        "it is not served and billed again"
    );
    assert!(fixture.desk.owed.is_empty());
}
