//! Which requests with an `Idempotency-Key` run, and what those that have ended were answered.
//!
//! A row is made by one guarded insert, so that of many equal requests, in one process or in several, one is served. While it
//! runs the row is a claim of that request, which holds for the length of a lease unless it is renewed: the claims of a process
//! that died end by themselves. Every later step names the request that claimed the row and finds nothing where another took
//! the row over.
//!
//! Deliberately absent: keys, bodies and answers in clear. Callers bring digests and sealed bytes, see `relay::idempotency`.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::engine::{Connection, Each, query, query_as, query_scalar};
use super::{Store, StoreError};
use crate::relay::idempotency::{ACCOUNT_BYTES_MAX, Digest, KEPT_MS, LEASE_MS, Unkept};

/// A request's place in the table: whose it is, its key's digest, and which request it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPlace {
    /// Whose key.
    pub account_id: Box<str>,
    /// Of the key.
    pub key_digest: Digest,
    /// The request that claims or has claimed it.
    pub request_id: Uuid,
}

/// What is to be done with a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyStep {
    /// The request wants to run.
    Claim {
        /// Where.
        place: KeyPlace,
        /// Of the body that it came with.
        body_digest: Digest,
    },
    /// It ended without an answer that counts: as if it had never come.
    Free(KeyPlace),
    /// It was answered.
    Answer {
        /// Where.
        place: KeyPlace,
        /// The answer, or why there is none to keep.
        answer: Result<SealedAnswer, Unkept>,
    },
}

/// An answer that only its client can have read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedAnswer {
    /// The HTTP status.
    pub status: u16,
    /// Its `content-type`.
    pub content_type: Box<str>,
    /// The body, encrypted.
    pub bytes: Vec<u8>,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyFound {
    /// The claim is made, or the claimed place was freed or answered.
    Done,
    /// An equal request is running.
    Running,
    /// The key came with another body.
    OtherBody,
    /// An equal request, of this id, was answered so.
    Answered(Uuid, SealedAnswer),
    /// An equal request was answered; the answer is not here.
    Unkept(Unkept),
    /// The place was somebody else's by then, and was left alone.
    Lost,
}

impl Store {
    /// Takes steps, all in one transaction and in their order, and says what came of each.
    pub async fn idempotency_steps(&self, steps: &[KeyStep], now_ms: i64) -> Result<Vec<KeyFound>, StoreError> {
        let mut transaction = self.write_keys().await?;
        let mut found = Vec::with_capacity(steps.len());
        for step in steps {
            found.push(match step {
                KeyStep::Claim { place, body_digest } => claim(&mut transaction, place, body_digest, now_ms).await?,
                KeyStep::Free(place) => free(&mut transaction, place).await?,
                KeyStep::Answer { place, answer } => settle(&mut transaction, place, answer.as_ref()).await?,
            });
        }
        transaction.commit().await?;
        Ok(found)
    }

    /// What there is of an equal request; `None` where its place can be claimed. Only reads.
    pub async fn find_idempotency_key(
        &self,
        place: &KeyPlace,
        body_digest: &str,
        now_ms: i64,
    ) -> Result<Option<KeyFound>, StoreError> {
        found(&mut self.pool.acquire().await?, place, body_digest, now_ms).await
    }

    /// Renews the claims of these requests, for another lease from now on.
    pub async fn renew_idempotency_claims(&self, request_ids: &[Uuid], now_ms: i64) -> Result<(), StoreError> {
        const RENEW: Each = Each {
            sqlite: "UPDATE idempotency_keys SET claimed_until_ms = $1 \
                 WHERE state = 'running' AND request_id IN (SELECT value FROM json_each($2))",
            postgres: "UPDATE idempotency_keys SET claimed_until_ms = $1 WHERE state = 'running' \
                 AND request_id = ANY (ARRAY(SELECT jsonb_array_elements_text(CAST($2 AS JSONB))))",
        };
        let ids: Vec<String> = request_ids.iter().map(Uuid::to_string).collect();
        let mut transaction = self.write_keys().await?;
        query(RENEW).bind(now_ms + LEASE_MS).bind(json(&ids)?).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Forgets at most `rows_max` requests whose time is over, oldest first, but none that runs. Returns how many it were.
    pub async fn forget_idempotency_keys(&self, rows_max: u32, now_ms: i64) -> Result<u64, StoreError> {
        const FORGET: &str = "DELETE FROM idempotency_keys WHERE (account_id, key_digest) IN \
             (SELECT account_id, key_digest FROM idempotency_keys WHERE created_at_ms <= $1 \
              AND (state <> 'running' OR claimed_until_ms <= $2) ORDER BY created_at_ms LIMIT $3) \
             RETURNING account_id, answer_bytes";
        let mut transaction = self.write_keys().await?;
        let forgotten = query_as(FORGET).bind(now_ms - KEPT_MS).bind(now_ms).bind(i64::from(rows_max));
        let forgotten: Vec<(String, i64)> = forgotten.fetch_all(&mut *transaction).await?;
        let mut by_account: BTreeMap<&str, i64> = BTreeMap::new();
        for (account_id, bytes) in &forgotten {
            *by_account.entry(account_id).or_default() += bytes;
        }
        for (account_id, bytes) in by_account.into_iter().filter(|(_, bytes)| *bytes != 0) {
            add_kept(&mut transaction, account_id, -bytes).await?;
        }
        transaction.commit().await?;
        Ok(forgotten.len() as u64)
    }
}

async fn claim(
    connection: &mut Connection,
    place: &KeyPlace,
    body_digest: &str,
    now_ms: i64,
) -> Result<KeyFound, StoreError> {
    // The guard is in the statement: whoever comes second finds the row of the first, wherever the two run.
    const CLAIM: &str = "INSERT INTO idempotency_keys \
         (account_id, key_digest, body_digest, request_id, state, claimed_until_ms, created_at_ms, answer_bytes) \
         VALUES ($1, $2, $3, $4, 'running', $5, $6, 0) \
         ON CONFLICT (account_id, key_digest) DO UPDATE SET body_digest = excluded.body_digest, \
         request_id = excluded.request_id, state = 'running', claimed_until_ms = excluded.claimed_until_ms, \
         created_at_ms = excluded.created_at_ms \
         WHERE idempotency_keys.state = 'running' AND idempotency_keys.claimed_until_ms <= $6";
    forget_if_over(connection, place, now_ms).await?;
    let claim = query(CLAIM)
        .bind(&place.account_id)
        .bind(&place.key_digest)
        .bind(body_digest)
        .bind(place.request_id.to_string())
        .bind(now_ms + LEASE_MS)
        .bind(now_ms);
    if claim.execute(&mut *connection).await? == 1 {
        return Ok(KeyFound::Done);
    }
    // Gone between two statements, which another database may allow: the client will ask again.
    Ok(found(connection, place, body_digest, now_ms).await?.unwrap_or(KeyFound::Running))
}

/// Forgets what the key meant more than a day ago, with its answer, so that it can be claimed like a new one.
async fn forget_if_over(connection: &mut Connection, place: &KeyPlace, now_ms: i64) -> Result<(), StoreError> {
    const FORGET: &str = "DELETE FROM idempotency_keys WHERE account_id = $1 AND key_digest = $2 \
         AND created_at_ms <= $3 AND state <> 'running' RETURNING answer_bytes";
    let forgotten = query_scalar(FORGET).bind(&place.account_id).bind(&place.key_digest).bind(now_ms - KEPT_MS);
    let bytes: Option<i64> = forgotten.fetch_optional(&mut *connection).await?;
    match bytes {
        Some(bytes) if bytes != 0 => add_kept(connection, &place.account_id, -bytes).await,
        Some(_) | None => Ok(()),
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    body_digest: String,
    request_id: String,
    state: String,
    claimed_until_ms: i64,
    created_at_ms: i64,
    status: Option<i64>,
    content_type: Option<String>,
}

impl Row {
    /// Whether it means nothing any more: a new claim takes its place.
    fn is_over(&self, now_ms: i64) -> bool {
        match &*self.state {
            "running" => self.claimed_until_ms <= now_ms,
            _ => self.created_at_ms <= now_ms - KEPT_MS,
        }
    }
}

/// What is in a place, if anything is.
async fn found(
    connection: &mut Connection,
    place: &KeyPlace,
    body_digest: &str,
    now_ms: i64,
) -> Result<Option<KeyFound>, StoreError> {
    const READ: &str = "SELECT body_digest, request_id, state, claimed_until_ms, created_at_ms, status, content_type \
         FROM idempotency_keys WHERE account_id = $1 AND key_digest = $2";
    let read = query_as(READ).bind(&place.account_id).bind(&place.key_digest);
    let row: Option<Row> = read.fetch_optional(&mut *connection).await?;
    let Some(row) = row.filter(|row| !row.is_over(now_ms)) else { return Ok(None) };
    Ok(Some(match &*row.state {
        _ if row.body_digest != body_digest => KeyFound::OtherBody,
        "running" => KeyFound::Running,
        "too_large" => KeyFound::Unkept(Unkept::TooLarge),
        "answered" => match answer(connection, place, row).await? {
            Some((request_id, answer)) => KeyFound::Answered(request_id, answer),
            None => KeyFound::Unkept(Unkept::Dropped),
        },
        _ => KeyFound::Unkept(Unkept::Dropped),
    }))
}

/// The answer that belongs to a row; `None` where it has just been dropped, or somebody has meddled with it.
async fn answer(
    connection: &mut Connection,
    place: &KeyPlace,
    row: Row,
) -> Result<Option<(Uuid, SealedAnswer)>, StoreError> {
    const READ: &str = "SELECT answer FROM idempotency_keys \
         WHERE account_id = $1 AND key_digest = $2 AND request_id = $3 AND state = 'answered'";
    let read = query_scalar(READ).bind(&place.account_id).bind(&place.key_digest).bind(&row.request_id);
    let bytes: Option<Option<Vec<u8>>> = read.fetch_optional(connection).await?;
    let answer = || {
        let status = row.status.and_then(|status| status.try_into().ok())?;
        let answer = SealedAnswer { status, content_type: row.content_type?.into(), bytes: bytes.flatten()? };
        Some((row.request_id.parse().ok()?, answer))
    };
    Ok(answer())
}

async fn free(connection: &mut Connection, place: &KeyPlace) -> Result<KeyFound, StoreError> {
    const FREE: &str = "DELETE FROM idempotency_keys \
         WHERE account_id = $1 AND key_digest = $2 AND request_id = $3 AND state = 'running'";
    let free = query(FREE).bind(&place.account_id).bind(&place.key_digest).bind(place.request_id.to_string());
    Ok(done(free.execute(connection).await?))
}

async fn settle(
    connection: &mut Connection,
    place: &KeyPlace,
    answer: Result<&SealedAnswer, &Unkept>,
) -> Result<KeyFound, StoreError> {
    const SETTLE: &str = "UPDATE idempotency_keys \
         SET state = $1, status = $2, content_type = $3, answer = $4, answer_bytes = $5 \
         WHERE account_id = $6 AND key_digest = $7 AND request_id = $8 AND state = 'running'";
    let state = match answer {
        Ok(_) => "answered",
        Err(Unkept::TooLarge) => "too_large",
        Err(Unkept::Dropped) => "dropped",
    };
    let answer = answer.ok();
    let bytes = answer.map_or(0, |answer| i64::try_from(answer.bytes.len()).unwrap_or(i64::MAX));
    let settle = query(SETTLE)
        .bind(state)
        .bind(answer.map(|answer| i64::from(answer.status)))
        .bind(answer.map(|answer| &*answer.content_type))
        .bind(answer.map(|answer| &*answer.bytes))
        .bind(bytes)
        .bind(&place.account_id)
        .bind(&place.key_digest)
        .bind(place.request_id.to_string());
    let settled = done(settle.execute(&mut *connection).await?);
    if settled == KeyFound::Done && answer.is_some() {
        add_kept(connection, &place.account_id, bytes).await?;
        make_room(connection, &place.account_id).await?;
    }
    Ok(settled)
}

fn done(rows: u64) -> KeyFound {
    if rows == 1 { KeyFound::Done } else { KeyFound::Lost }
}

async fn add_kept(connection: &mut Connection, account_id: &str, bytes: i64) -> Result<(), StoreError> {
    const ADD: &str = "INSERT INTO idempotency_kept (account_id, answer_bytes) VALUES ($1, $2) ON CONFLICT (account_id) \
         DO UPDATE SET answer_bytes = idempotency_kept.answer_bytes + excluded.answer_bytes";
    query(ADD).bind(account_id).bind(bytes).execute(connection).await?;
    Ok(())
}

/// How many answers are looked at in one go when room is made.
const ANSWERS_AT_ONCE: i64 = 256;

/// Drops an account's oldest answers until the rest takes no more than it may.
async fn make_room(connection: &mut Connection, account_id: &str) -> Result<(), StoreError> {
    const KEPT: &str = "SELECT answer_bytes FROM idempotency_kept WHERE account_id = $1";
    const OLDEST: &str = "SELECT key_digest, answer_bytes FROM idempotency_keys \
         WHERE account_id = $1 AND state = 'answered' ORDER BY created_at_ms LIMIT $2";
    const DROP: Each = Each {
        sqlite: "UPDATE idempotency_keys \
             SET state = 'dropped', status = NULL, content_type = NULL, answer = NULL, answer_bytes = 0 \
             WHERE account_id = $1 AND key_digest IN (SELECT value FROM json_each($2))",
        postgres: "UPDATE idempotency_keys \
             SET state = 'dropped', status = NULL, content_type = NULL, answer = NULL, answer_bytes = 0 \
             WHERE account_id = $1 AND key_digest = ANY (ARRAY(SELECT jsonb_array_elements_text(CAST($2 AS JSONB))))",
    };
    let kept = query_scalar(KEPT).bind(account_id).fetch_one(&mut *connection).await;
    let mut surplus = kept.map(|kept: i64| kept - ACCOUNT_BYTES_MAX)?;
    while surplus > 0 {
        let oldest = query_as(OLDEST).bind(account_id).bind(ANSWERS_AT_ONCE);
        let oldest: Vec<(String, i64)> = oldest.fetch_all(&mut *connection).await?;
        if oldest.is_empty() {
            return Ok(());
        }
        let mut dropped = Vec::new();
        let mut freed = 0;
        for (key_digest, bytes) in oldest {
            if freed >= surplus {
                break;
            }
            freed += bytes;
            dropped.push(key_digest);
        }
        query(DROP).bind(account_id).bind(json(&dropped)?).execute(&mut *connection).await?;
        add_kept(connection, account_id, -freed).await?;
        surplus -= freed;
    }
    Ok(())
}

fn json(list: &[String]) -> Result<String, StoreError> {
    serde_json::to_string(list).map_err(|error| StoreError::Database(sqlx::Error::Encode(error.into())))
}

#[cfg(test)]
mod tests;
