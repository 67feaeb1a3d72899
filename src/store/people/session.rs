//! Who is signed in.

use super::{TokenDigest, User, UserRow};
use crate::store::engine::{Connection, query, query_as};
use crate::store::{Store, StoreError};

/// A browser in which somebody is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// When it was used last, to the minute or so. Milliseconds since the Unix epoch.
    pub seen_at_ms: i64,
    /// When it ends, whatever happens. Milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
}

#[derive(sqlx::FromRow)]
struct SessionRow {
    session_created_at_ms: i64,
    seen_at_ms: i64,
    expires_at_ms: i64,
    #[sqlx(flatten)]
    user: UserRow,
}

impl Store {
    /// Signs somebody in.
    ///
    /// # Errors
    /// There is no such person, or they are suspended.
    pub async fn begin_session(
        &self,
        user_id: &str,
        digest: &TokenDigest,
        now_ms: i64,
        expires_at_ms: i64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        begin(&mut transaction, user_id, digest, now_ms, expires_at_ms).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Who is signed in by that session, if its time is not over and they are not suspended.
    pub async fn session(&self, digest: &TokenDigest, now_ms: i64) -> Result<Option<(User, Session)>, StoreError> {
        let row: Option<SessionRow> = query_as(
            "SELECT u.id, u.email, u.password IS NOT NULL AS has_password, u.role, u.account_id, u.active, \
             u.created_at_ms, s.created_at_ms AS session_created_at_ms, s.seen_at_ms, s.expires_at_ms \
             FROM sessions s JOIN users u ON u.id = s.user_id \
             WHERE s.digest = $1 AND s.expires_at_ms > $2 AND u.active",
        )
        .bind(digest.to_string())
        .bind(now_ms)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let SessionRow { session_created_at_ms: created_at_ms, seen_at_ms, expires_at_ms, user } = row;
        Ok(Some((user.try_into()?, Session { created_at_ms, seen_at_ms, expires_at_ms })))
    }

    /// A session was used. Of two who tell so at once the later time stays.
    pub async fn touch_session(&self, digest: &TokenDigest, now_ms: i64) -> Result<(), StoreError> {
        let mut transaction = self.write_row().await?;
        query("UPDATE sessions SET seen_at_ms = $1 WHERE digest = $2 AND seen_at_ms < $1")
            .bind(now_ms)
            .bind(digest.to_string())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Signs out.
    pub async fn end_session(&self, digest: &TokenDigest) -> Result<(), StoreError> {
        let mut transaction = self.write_row().await?;
        query("DELETE FROM sessions WHERE digest = $1").bind(digest.to_string()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Signs a person out of every browser, but the one of `kept`.
    pub async fn end_sessions(&self, user_id: &str, kept: Option<&TokenDigest>) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        query("DELETE FROM sessions WHERE user_id = $1 AND digest <> $2")
            .bind(user_id)
            .bind(kept.map(ToString::to_string).unwrap_or_default())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// A person's sessions whose time is not over, the latest first.
    pub async fn sessions_of(&self, user_id: &str, now_ms: i64) -> Result<Vec<Session>, StoreError> {
        let rows: Vec<(i64, i64, i64)> = query_as(
            "SELECT created_at_ms, seen_at_ms, expires_at_ms FROM sessions \
             WHERE user_id = $1 AND expires_at_ms > $2 ORDER BY created_at_ms DESC",
        )
        .bind(user_id)
        .bind(now_ms)
        .fetch_all(&self.pool)
        .await?;
        let session = |(created_at_ms, seen_at_ms, expires_at_ms)| Session { created_at_ms, seen_at_ms, expires_at_ms };
        Ok(rows.into_iter().map(session).collect())
    }
}

/// Writes a session, and forgets those whose time is over.
pub(super) async fn begin(
    connection: &mut Connection,
    user_id: &str,
    digest: &TokenDigest,
    now_ms: i64,
    expires_at_ms: i64,
) -> Result<(), StoreError> {
    let user = super::find(connection, user_id).await?;
    if !user.active {
        return Err(StoreError::UserSuspended);
    }
    query("DELETE FROM sessions WHERE expires_at_ms <= $1").bind(now_ms).execute(&mut *connection).await?;
    query(
        "INSERT INTO sessions (digest, user_id, created_at_ms, seen_at_ms, expires_at_ms) VALUES ($1, $2, $3, $3, $4)",
    )
    .bind(digest.to_string())
    .bind(user_id)
    .bind(now_ms)
    .bind(expires_at_ms)
    .execute(&mut *connection)
    .await?;
    Ok(())
}
