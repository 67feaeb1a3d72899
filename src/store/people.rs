//! People who sign in to the dashboard: who they are, and what they may see.
//!
//! Their sessions are in `session`, the links that let them in without a password in `link`. Changes of people have their
//! entries in the audit log; signing in and out has none.
//!
//! Deliberately absent: how passwords are hashed and compared, and tokens: both are `admin`'s, only PHC strings and digests
//! come here.

mod link;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::change::Counter;
use super::engine::{Connection, query, query_as, query_scalar};
use super::trail::{Action, Deed};
use super::{Store, StoreError};

pub use link::{Link, LinkPurpose};
pub use session::Session;

/// What a session or a link is known by: the SHA-256 of its token, which is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenDigest(pub [u8; 32]);

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a person may see and do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What belongs to their own account.
    Customer,
    /// Everything, and what belongs to their own account if they have one.
    Operator,
}

impl Role {
    /// For tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Role::Customer => "customer",
            Role::Operator => "operator",
        }
    }

    /// The role of that name.
    pub fn of(name: &str) -> Option<Self> {
        [Role::Customer, Role::Operator].into_iter().find(|role| role.name() == name)
    }
}

/// Somebody who may sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `user_` and a UUIDv7 in hexadecimal.
    pub id: String,
    /// Unique; in lower case.
    pub email: String,
    /// What they may see.
    pub role: Role,
    /// Whose keys, usage and money are theirs.
    pub account_id: Option<String>,
    /// Not suspended.
    pub active: bool,
    /// They have taken their invitation.
    pub has_password: bool,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: i64,
}

impl User {
    /// `active`, `invited` or `suspended`, for tables and JSON.
    pub fn status(&self) -> &'static str {
        match (self.active, self.has_password) {
            (false, _) => "suspended",
            (true, false) => "invited",
            (true, true) => "active",
        }
    }
}

/// Somebody who is to be able to sign in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewUser<'a> {
    /// Taken in lower case.
    pub email: &'a str,
    /// What they may see.
    pub role: Role,
    /// Whose keys, usage and money are theirs.
    pub account_id: Option<&'a str>,
    /// An Argon2id PHC string; without, they come in by a link.
    pub password: Option<&'a str>,
}

/// What is to be changed of a person; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserChange<'a> {
    /// What they may see.
    pub role: Option<Role>,
    /// Whose keys, usage and money are theirs.
    pub account_id: Option<&'a str>,
    /// Not suspended. Suspending ends all sessions and links.
    pub active: Option<bool>,
}

#[derive(sqlx::FromRow)]
struct UserRow {
    id: String,
    email: String,
    has_password: bool,
    role: String,
    account_id: Option<String>,
    active: bool,
    created_at_ms: i64,
}

macro_rules! select_user {
    ($rest:literal) => {
        concat!(
            "SELECT id, email, password IS NOT NULL AS has_password, role, account_id, active, created_at_ms FROM users ",
            $rest
        )
    };
}

impl TryFrom<UserRow> for User {
    type Error = StoreError;

    fn try_from(row: UserRow) -> Result<Self, StoreError> {
        let role = Role::of(&row.role).ok_or_else(|| StoreError::Damaged { what: "role", id: row.id.clone() })?;
        Ok(Self {
            id: row.id,
            email: row.email,
            role,
            account_id: row.account_id,
            active: row.active,
            has_password: row.has_password,
            created_at_ms: row.created_at_ms,
        })
    }
}

impl Store {
    /// Somebody new.
    ///
    /// # Errors
    /// The address is somebody's already, or there is no such account.
    pub async fn create_user(&self, new: &NewUser<'_>, now_ms: i64) -> Result<User, StoreError> {
        let mut transaction = self.write().await?;
        let number = Counter::Version.advance(&mut transaction, 1).await?;
        let (id, email) = (format!("user_{}", Uuid::now_v7().simple()), new.email.to_lowercase());
        if by_email(&mut transaction, &email).await?.is_some() {
            return Err(StoreError::EmailTaken);
        }
        if let Some(account_id) = new.account_id {
            super::account::find(&mut transaction, account_id).await?;
        }
        query(
            "INSERT INTO users (id, email, password, role, account_id, active, created_at_ms, number) \
             VALUES ($1, $2, $3, $4, $5, TRUE, $6, $7)",
        )
        .bind(&id)
        .bind(&email)
        .bind(new.password)
        .bind(new.role.name())
        .bind(new.account_id)
        .bind(now_ms)
        .bind(number)
        .execute(&mut *transaction)
        .await?;
        let user = find(&mut transaction, &id).await?;
        let after = json!({"email": email, "role": user.role.name(), "account_id": user.account_id});
        let deed = Deed { action: Action::UserCreate, subject_id: &id, before: None, after };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(user)
    }

    /// At most `limit` people, oldest first, from the first or from those after the one of that id.
    pub async fn users_after(&self, after: Option<&str>, limit: u32) -> Result<Vec<User>, StoreError> {
        const PAGE: &str = select_user!(
            "WHERE number > COALESCE((SELECT number FROM users WHERE id = $1), -1) ORDER BY number LIMIT $2"
        );
        let rows: Vec<UserRow> =
            query_as(PAGE).bind(after.unwrap_or_default()).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        rows.into_iter().map(User::try_from).collect()
    }

    /// The people of an account, oldest first.
    pub async fn users_of(&self, account_id: &str) -> Result<Vec<User>, StoreError> {
        let rows: Vec<UserRow> = query_as(select_user!("WHERE account_id = $1 ORDER BY number"))
            .bind(account_id)
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(User::try_from).collect()
    }

    /// The person of that id.
    pub async fn user(&self, id: &str) -> Result<User, StoreError> {
        find(&mut self.pool.acquire().await?, id).await
    }

    /// The person of that address, however it is written.
    pub async fn user_by_email(&self, email: &str) -> Result<Option<User>, StoreError> {
        by_email(&mut self.pool.acquire().await?, &email.to_lowercase()).await
    }

    /// A person's password, as its PHC string; `None` before they have one.
    pub async fn password_of(&self, user_id: &str) -> Result<Option<String>, StoreError> {
        let password: Option<Option<String>> =
            query_scalar("SELECT password FROM users WHERE id = $1").bind(user_id).fetch_optional(&self.pool).await?;
        Ok(password.flatten())
    }

    /// Gives a person another password, as its PHC string. All their sessions and links end.
    pub async fn set_password(&self, user_id: &str, password: &str, now_ms: i64) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        self.change_password(&mut transaction, user_id, password, now_ms).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn change_password(
        &self,
        connection: &mut Connection,
        user_id: &str,
        password: &str,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        find(connection, user_id).await?;
        query("UPDATE users SET password = $1 WHERE id = $2")
            .bind(password)
            .bind(user_id)
            .execute(&mut *connection)
            .await?;
        self.shut_out(connection, user_id).await?;
        let deed = Deed { action: Action::UserPassword, subject_id: user_id, before: None, after: json!({}) };
        self.note(connection, deed, now_ms).await
    }

    /// Changes what is to be changed. Answers with the person as they are then.
    pub async fn update_user(&self, id: &str, change: &UserChange<'_>, now_ms: i64) -> Result<User, StoreError> {
        let mut transaction = self.write().await?;
        let before = find(&mut transaction, id).await?;
        if let Some(account_id) = change.account_id {
            super::account::find(&mut transaction, account_id).await?;
        }
        let after = User {
            role: change.role.unwrap_or(before.role),
            account_id: change.account_id.map(str::to_owned).or_else(|| before.account_id.clone()),
            active: change.active.unwrap_or(before.active),
            ..before.clone()
        };
        if after == before {
            return Ok(before);
        }
        query("UPDATE users SET role = $1, account_id = $2, active = $3 WHERE id = $4")
            .bind(after.role.name())
            .bind(&after.account_id)
            .bind(after.active)
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        if !after.active {
            self.shut_out(&mut transaction, id).await?;
        }
        let (was, is) = (what_differs(&before, &after), what_differs(&after, &before));
        let deed = Deed { action: Action::UserUpdate, subject_id: id, before: Some(was), after: is };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(after)
    }

    /// Ends whatever lets a person in but their password.
    async fn shut_out(&self, connection: &mut Connection, user_id: &str) -> Result<(), StoreError> {
        for sql in ["DELETE FROM sessions WHERE user_id = $1", "DELETE FROM links WHERE user_id = $1"] {
            query(sql).bind(user_id).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

async fn find(connection: &mut Connection, id: &str) -> Result<User, StoreError> {
    let row: Option<UserRow> = query_as(select_user!("WHERE id = $1")).bind(id).fetch_optional(connection).await?;
    row.ok_or_else(|| StoreError::UnknownUser(id.to_owned()))?.try_into()
}

async fn by_email(connection: &mut Connection, email: &str) -> Result<Option<User>, StoreError> {
    let row: Option<UserRow> =
        query_as(select_user!("WHERE email = $1")).bind(email).fetch_optional(connection).await?;
    row.map(User::try_from).transpose()
}

/// What one has otherwise than the other.
fn what_differs(of: &User, from: &User) -> Value {
    let mut differing = Map::new();
    if of.role != from.role {
        differing.insert("role".into(), of.role.name().into());
    }
    if of.account_id != from.account_id {
        differing.insert("account_id".into(), of.account_id.clone().into());
    }
    if of.active != from.active {
        differing.insert("status".into(), if of.active { "active" } else { "suspended" }.into());
    }
    Value::Object(differing)
}
