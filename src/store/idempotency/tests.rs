//! The table of keys with time handed in: claims, leases, answers, and what makes room for what.

use super::super::fixture::Fixture;
use super::*;
use crate::store::engine::query_as;

fn place(fixture: &Fixture, key: &str, request: u128) -> KeyPlace {
    let account_id = fixture.account_id.as_str().into();
    KeyPlace { account_id, key_digest: key.into(), request_id: Uuid::from_u128(request) }
}

fn answer_of(bytes: usize) -> SealedAnswer {
    SealedAnswer { status: 200, content_type: "text/plain".into(), bytes: vec![7; bytes] }
}

async fn step(store: &Store, step: KeyStep, now_ms: i64) -> KeyFound {
    store.idempotency_steps(&[step], now_ms).await.unwrap().remove(0)
}

/// Looks first, as requests do: what is found must be what the claim would have found.
async fn claim(store: &Store, place: &KeyPlace, now_ms: i64) -> KeyFound {
    let found = store.find_idempotency_key(place, "body", now_ms).await.unwrap();
    let claimed = claim_at_once(store, place, now_ms).await;
    assert_eq!(found.unwrap_or(KeyFound::Done), claimed);
    claimed
}

async fn claim_at_once(store: &Store, place: &KeyPlace, now_ms: i64) -> KeyFound {
    step(store, KeyStep::Claim { place: place.clone(), body_digest: "body".into() }, now_ms).await
}

async fn answer(store: &Store, place: &KeyPlace, answer: Result<SealedAnswer, Unkept>) -> KeyFound {
    step(store, KeyStep::Answer { place: place.clone(), answer }, 0).await
}

/// What is kept for the account by its own count, and by its rows.
async fn kept(fixture: &Fixture) -> (i64, i64) {
    let count = "SELECT CAST((SELECT COALESCE(SUM(answer_bytes), 0) FROM idempotency_kept) AS BIGINT), \
                 CAST(COALESCE(SUM(LENGTH(answer)), 0) AS BIGINT) FROM idempotency_keys";
    query_as(count).fetch_one(&fixture.store.pool).await.unwrap()
}

#[tokio::test]
async fn a_claimed_key_runs_until_it_is_answered_and_then_answers() {
    let fixture = Fixture::with_credit("5").await;
    let (store, first, second) = (&fixture.store, place(&fixture, "k", 1), place(&fixture, "k", 2));
    assert_eq!(claim(store, &first, 1_000).await, KeyFound::Done);
    assert_eq!(claim(store, &second, 1_001).await, KeyFound::Running);
    assert_eq!(claim(store, &first, 1_001).await, KeyFound::Running, "nobody claims twice");
    let other = KeyStep::Claim { place: second.clone(), body_digest: "other body".into() };
    assert_eq!(step(store, other.clone(), 1_001).await, KeyFound::OtherBody);
    assert_eq!(answer(store, &first, Ok(answer_of(9))).await, KeyFound::Done);
    assert_eq!(claim(store, &second, 1_002).await, KeyFound::Answered(first.request_id, answer_of(9)));
    assert_eq!(step(store, other, 1_002).await, KeyFound::OtherBody);
}

#[tokio::test]
async fn accounts_do_not_see_each_others_keys() {
    let fixture = Fixture::with_credit("5").await;
    let mine = place(&fixture, "k", 1);
    let theirs = KeyPlace { account_id: "acct_b".into(), ..place(&fixture, "k", 2) };
    assert_eq!(claim(&fixture.store, &mine, 1_000).await, KeyFound::Done);
    assert_eq!(claim(&fixture.store, &theirs, 1_000).await, KeyFound::Done);
}

#[tokio::test]
async fn a_freed_key_is_as_new_and_freeing_it_again_frees_nobody_else() {
    let fixture = Fixture::with_credit("5").await;
    let (store, first, second) = (&fixture.store, place(&fixture, "k", 1), place(&fixture, "k", 2));
    claim(store, &first, 1_000).await;
    assert_eq!(step(store, KeyStep::Free(second.clone()), 1_000).await, KeyFound::Lost);
    assert_eq!(step(store, KeyStep::Free(first.clone()), 1_000).await, KeyFound::Done);
    let other = KeyStep::Claim { place: second.clone(), body_digest: "other body".into() };
    assert_eq!(step(store, other, 1_000).await, KeyFound::Done, "nothing of the first is left");
    assert_eq!(step(store, KeyStep::Free(first), 1_000).await, KeyFound::Lost);
    assert_eq!(answer(store, &second, Ok(answer_of(1))).await, KeyFound::Done);
    assert_eq!(step(store, KeyStep::Free(second), 1_000).await, KeyFound::Lost, "an answer stays");
}

#[tokio::test]
async fn a_claim_that_nobody_renews_ends_with_its_lease() {
    let fixture = Fixture::with_credit("5").await;
    let (store, first, second) = (&fixture.store, place(&fixture, "k", 1), place(&fixture, "k", 2));
    claim(store, &first, 1_000).await;
    store.renew_idempotency_claims(&[first.request_id, Uuid::from_u128(9)], 21_000).await.unwrap();
    assert_eq!(claim(store, &second, 21_000 + LEASE_MS - 1).await, KeyFound::Running);
    assert_eq!(claim(store, &second, 21_000 + LEASE_MS).await, KeyFound::Done);
    // The first was not dead after all: it finds that the key is another's.
    store.renew_idempotency_claims(&[first.request_id], 500_000).await.unwrap();
    assert_eq!(answer(store, &first, Ok(answer_of(9))).await, KeyFound::Lost);
    assert_eq!(kept(&fixture).await, (0, 0));
    assert_eq!(claim(store, &first, 21_000 + 2 * LEASE_MS).await, KeyFound::Done);
}

#[tokio::test]
async fn a_day_later_a_key_is_new_and_what_it_kept_is_gone() {
    let fixture = Fixture::with_credit("5").await;
    let (store, first, second) = (&fixture.store, place(&fixture, "k", 1), place(&fixture, "k", 2));
    claim(store, &first, 1_000).await;
    answer(store, &first, Ok(answer_of(9))).await;
    assert!(matches!(claim(store, &second, 1_000 + KEPT_MS - 1).await, KeyFound::Answered(..)));
    let other = KeyStep::Claim { place: second, body_digest: "other body".into() };
    assert_eq!(step(store, other, 1_000 + KEPT_MS).await, KeyFound::Done);
    assert_eq!(kept(&fixture).await, (0, 0));
}

#[tokio::test]
async fn old_rows_are_forgotten_in_batches_and_running_ones_never() {
    let fixture = Fixture::with_credit("5").await;
    let store = &fixture.store;
    for number in 0..5 {
        let place = place(&fixture, &format!("k{number}"), number);
        claim(store, &place, 1_000).await;
        answer(store, &place, Ok(answer_of(10))).await;
    }
    let (running, dead) = (place(&fixture, "running", 10), place(&fixture, "dead", 11));
    claim(store, &running, 1_000).await;
    claim(store, &dead, 1_000).await;
    let now = 1_000 + KEPT_MS;
    store.renew_idempotency_claims(&[running.request_id], now).await.unwrap();
    assert_eq!(store.forget_idempotency_keys(4, now - 1).await.unwrap(), 0);
    assert_eq!(store.forget_idempotency_keys(4, now).await.unwrap(), 4);
    let (counted, real) = kept(&fixture).await;
    assert_eq!(counted, real);
    assert_eq!(store.forget_idempotency_keys(4, now).await.unwrap(), 2);
    assert_eq!(store.forget_idempotency_keys(4, now).await.unwrap(), 0);
    assert_eq!(kept(&fixture).await, (0, 0));
    assert_eq!(claim(store, &place(&fixture, "running", 12), now).await, KeyFound::Running);
}

#[tokio::test]
async fn answers_that_are_not_kept_still_say_that_they_were_given() {
    let fixture = Fixture::with_credit("5").await;
    let store = &fixture.store;
    for (number, unkept) in [Unkept::TooLarge, Unkept::Dropped].into_iter().enumerate() {
        let key = format!("k{number}");
        let (first, second) = (place(&fixture, &key, 1), place(&fixture, &key, 2));
        claim(store, &first, 1_000).await;
        assert_eq!(answer(store, &first, Err(unkept)).await, KeyFound::Done);
        assert_eq!(claim(store, &second, 1_000 + 2 * LEASE_MS).await, KeyFound::Unkept(unkept));
    }
    assert_eq!(kept(&fixture).await, (0, 0));
}

#[tokio::test]
async fn an_accounts_oldest_answers_make_room_for_its_newest() {
    let fixture = Fixture::with_credit("5").await;
    let store = &fixture.store;
    let large = usize::try_from(ACCOUNT_BYTES_MAX / 4).unwrap();
    for (number, bytes) in [100, 100, large, large, large].into_iter().enumerate() {
        let place = place(&fixture, &format!("k{number}"), 1);
        claim(store, &place, 1_000 + number as i64).await;
        answer(store, &place, Ok(answer_of(bytes))).await;
    }
    assert_eq!(kept(&fixture).await.0, 200 + 3 * (ACCOUNT_BYTES_MAX / 4));
    let last = place(&fixture, "last", 1);
    claim(store, &last, 2_000).await;
    answer(store, &last, Ok(answer_of(large - 50))).await;
    let (counted, real) = kept(&fixture).await;
    assert_eq!((counted, real), (ACCOUNT_BYTES_MAX - 50, ACCOUNT_BYTES_MAX - 50));
    let found = async |key: &str| claim(store, &place(&fixture, key, 2), 2_000).await;
    assert_eq!(found("k0").await, KeyFound::Unkept(Unkept::Dropped));
    assert_eq!(found("k1").await, KeyFound::Unkept(Unkept::Dropped));
    assert!(matches!(found("k2").await, KeyFound::Answered(..)));
    assert!(matches!(found("last").await, KeyFound::Answered(..)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_through_two_handles_one_claims() {
    let fixture = Fixture::with_credit("5").await;
    let other = Store::open(&fixture.url).await.unwrap();
    let claims: Vec<_> = (0..40)
        .map(|number| {
            let store = if number % 2 == 0 { fixture.store.clone() } else { other.clone() };
            let place = place(&fixture, "k", number);
            tokio::spawn(async move { claim_at_once(&store, &place, 1_000).await })
        })
        .collect();
    let mut found = Vec::new();
    for claim in claims {
        found.push(claim.await.unwrap());
    }
    assert_eq!(found.iter().filter(|found| **found == KeyFound::Done).count(), 1);
    assert_eq!(found.iter().filter(|found| **found == KeyFound::Running).count(), 39);
}
