//! Links that let somebody in once: what an operator passes on, for this program sends no mail.

use serde_json::json;

use super::{TokenDigest, User, UserRow, session};
use crate::store::engine::{query, query_as, query_scalar};
use crate::store::trail::{Action, Deed};
use crate::store::{Store, StoreError};

/// What a link is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkPurpose {
    /// To choose the first password.
    Invite,
    /// To choose another password.
    Reset,
    /// To sign in without a password.
    SignIn,
}

impl LinkPurpose {
    /// For tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            LinkPurpose::Invite => "invite",
            LinkPurpose::Reset => "reset",
            LinkPurpose::SignIn => "sign_in",
        }
    }

    /// Whether a password is chosen by it.
    pub fn sets_password(self) -> bool {
        !matches!(self, LinkPurpose::SignIn)
    }

    fn of(name: &str) -> Option<Self> {
        [LinkPurpose::Invite, LinkPurpose::Reset, LinkPurpose::SignIn]
            .into_iter()
            .find(|purpose| purpose.name() == name)
    }
}

/// A link that is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What for.
    pub purpose: LinkPurpose,
    /// Whom it lets in.
    pub user: User,
    /// Milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
}

#[derive(sqlx::FromRow)]
struct LinkRow {
    purpose: String,
    expires_at_ms: i64,
    #[sqlx(flatten)]
    user: UserRow,
}

impl Store {
    /// A new link. Earlier ones of the same purpose are good no more.
    ///
    /// # Errors
    /// There is no such person, or they are suspended.
    pub async fn create_link(
        &self,
        user_id: &str,
        purpose: LinkPurpose,
        digest: &TokenDigest,
        now_ms: i64,
        expires_at_ms: i64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        if !super::find(&mut transaction, user_id).await?.active {
            return Err(StoreError::UserSuspended);
        }
        query("DELETE FROM links WHERE (user_id = $1 AND purpose = $2) OR expires_at_ms <= $3")
            .bind(user_id)
            .bind(purpose.name())
            .bind(now_ms)
            .execute(&mut *transaction)
            .await?;
        query(
            "INSERT INTO links (digest, purpose, user_id, created_at_ms, expires_at_ms, used_at_ms) \
             VALUES ($1, $2, $3, $4, $5, NULL)",
        )
        .bind(digest.to_string())
        .bind(purpose.name())
        .bind(user_id)
        .bind(now_ms)
        .bind(expires_at_ms)
        .execute(&mut *transaction)
        .await?;
        let deed = Deed {
            action: Action::UserLink,
            subject_id: user_id,
            before: None,
            after: json!({"purpose": purpose.name()}),
        };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The link of that token, while it is good. Looking does not use it up.
    pub async fn link(&self, digest: &TokenDigest, now_ms: i64) -> Result<Option<Link>, StoreError> {
        let row: Option<LinkRow> = query_as(
            "SELECT u.id, u.email, u.password IS NOT NULL AS has_password, u.role, u.account_id, u.active, \
             u.created_at_ms, l.purpose, l.expires_at_ms FROM links l JOIN users u ON u.id = l.user_id \
             WHERE l.digest = $1 AND l.used_at_ms IS NULL AND l.expires_at_ms > $2 AND u.active",
        )
        .bind(digest.to_string())
        .bind(now_ms)
        .fetch_optional(&self.pool)
        .await?;
        let Some(LinkRow { purpose, expires_at_ms, user }) = row else { return Ok(None) };
        let user = User::try_from(user)?;
        let purpose =
            LinkPurpose::of(&purpose).ok_or_else(|| StoreError::Damaged { what: "purpose", id: user.id.clone() })?;
        Ok(Some(Link { purpose, user, expires_at_ms }))
    }

    /// Uses a link up, sets the password that was chosen by it, and signs in: all of it or nothing. Whether the link was good.
    pub async fn use_link(
        &self,
        link: &TokenDigest,
        password: Option<&str>,
        session: &TokenDigest,
        now_ms: i64,
        expires_at_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.write().await?;
        let user_id: Option<String> = query_scalar(
            "UPDATE links SET used_at_ms = $1 WHERE digest = $2 AND used_at_ms IS NULL AND expires_at_ms > $1 \
             AND (purpose = 'sign_in') = $3 RETURNING user_id",
        )
        .bind(now_ms)
        .bind(link.to_string())
        .bind(password.is_none())
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(user_id) = user_id else { return Ok(false) };
        if let Some(password) = password {
            self.change_password(&mut transaction, &user_id, password, now_ms).await?;
        }
        session::begin(&mut transaction, &user_id, session, now_ms, expires_at_ms).await?;
        transaction.commit().await?;
        Ok(true)
    }
}
