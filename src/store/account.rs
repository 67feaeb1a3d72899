//! Customers and their money.

use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Sqlite, SqliteConnection};
use uuid::Uuid;

use super::change::Counter;
use super::{Store, StoreError};
use crate::relay::meter::NanoUsd;

/// A customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// `acct_` and a UUIDv7 in hexadecimal.
    pub id: String,
    /// For people; need not be unique.
    pub name: String,
    /// The plan, by name.
    pub plan: String,
    /// Not suspended.
    pub active: bool,
    /// What is left of the credit.
    pub balance: NanoUsd,
    /// The last ledger entry that `balance` includes; 0 before the first.
    pub balance_seq: i64,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: i64,
}

/// A movement of an account's money that no request caused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credit {
    /// Its place in the ledger.
    pub seq: i64,
    /// Whether it gave or took back.
    pub kind: CreditKind,
    /// Positive for a grant, negative for a correction.
    pub amount: NanoUsd,
    /// What the operator wrote beside it.
    pub note: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: i64,
}

/// What an entry that no request caused is in the ledger. A request's is `usage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreditKind {
    /// Money that the account was given.
    Grant,
    /// Money that was taken back.
    Correction,
}

impl CreditKind {
    /// As the ledger, tables and JSON have it.
    pub fn name(self) -> &'static str {
        match self {
            CreditKind::Grant => "grant",
            CreditKind::Correction => "correction",
        }
    }

    fn of(amount: NanoUsd) -> Self {
        if amount.0 < 0 { CreditKind::Correction } else { CreditKind::Grant }
    }
}

type AccountRow = (String, String, String, bool, i64, i64, i64);

macro_rules! select_account {
    ($rest:literal) => {
        concat!("SELECT id, name, plan, active, balance_nano_usd, balance_seq, created_at_ms FROM accounts ", $rest)
    };
}

impl From<AccountRow> for Account {
    fn from((id, name, plan, active, balance, balance_seq, created_at_ms): AccountRow) -> Self {
        Self { id, name, plan, active, balance: NanoUsd(balance), balance_seq, created_at_ms }
    }
}

impl Store {
    /// A new account without money.
    pub async fn create_account(&self, name: &str, plan: &str, now_ms: i64) -> Result<Account, StoreError> {
        let mut transaction = self.write().await?;
        let version = Counter::Version.advance(&mut transaction, 1).await?;
        let id = format!("acct_{}", Uuid::now_v7().simple());
        sqlx::query(
            "INSERT INTO accounts (id, name, plan, active, balance_nano_usd, balance_seq, version, created_at_ms) \
             VALUES ($1, $2, $3, TRUE, 0, 0, $4, $5)",
        )
        .bind(&id)
        .bind(name)
        .bind(plan)
        .bind(version)
        .bind(now_ms)
        .execute(&mut *transaction)
        .await?;
        let account = find(&mut transaction, &id).await?;
        transaction.commit().await?;
        Ok(account)
    }

    /// All accounts, oldest first.
    pub async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        let rows: Vec<AccountRow> =
            sqlx::query_as(select_account!("ORDER BY created_at_ms, id")).fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Account::from).collect())
    }

    /// The account of that id.
    pub async fn account(&self, id: &str) -> Result<Account, StoreError> {
        find(&mut *self.pool.acquire().await?, id).await
    }

    /// Adds to an account's balance, or takes from it where the amount is negative. Answers with the account as it is
    /// then.
    pub async fn credit(
        &self,
        id: &str,
        amount: NanoUsd,
        note: Option<&str>,
        now_ms: i64,
    ) -> Result<Account, StoreError> {
        let mut transaction = self.write().await?;
        let seq = Counter::LedgerSeq.advance(&mut transaction, 1).await?;
        let balance = find(&mut transaction, id).await?.balance;
        let balance = balance.0.checked_add(amount.0).ok_or(StoreError::AmountTooLarge)?;
        sqlx::query(
            "INSERT INTO ledger_entries (seq, account_id, kind, amount_nano_usd, note, created_at_ms) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(seq)
        .bind(id)
        .bind(CreditKind::of(amount).name())
        .bind(amount.0)
        .bind(note)
        .bind(now_ms)
        .execute(&mut *transaction)
        .await?;
        set_balance(&mut transaction, id, NanoUsd(balance), seq).await?;
        let account = find(&mut transaction, id).await?;
        transaction.commit().await?;
        Ok(account)
    }

    /// An account's grants and corrections, newest first.
    pub async fn credits(&self, id: &str) -> Result<Vec<Credit>, StoreError> {
        let rows: Vec<(i64, String, i64, Option<String>, i64)> = sqlx::query_as(
            "SELECT seq, kind, amount_nano_usd, note, created_at_ms FROM ledger_entries \
             WHERE account_id = $1 AND kind <> 'usage' ORDER BY seq DESC",
        )
        .bind(id)
        .fetch_all(&self.pool)
        .await?;
        let credit = |(seq, kind, nano, note, created_at_ms): (i64, String, i64, Option<String>, i64)| {
            // The table takes no other kinds.
            let kind = if kind == CreditKind::Correction.name() { CreditKind::Correction } else { CreditKind::Grant };
            Credit { seq, kind, amount: NanoUsd(nano), note, created_at_ms }
        };
        Ok(rows.into_iter().map(credit).collect())
    }

    /// Puts an account on another plan. Answers with the account as it is then.
    pub async fn set_plan(&self, id: &str, plan: &str) -> Result<Account, StoreError> {
        self.change(id, sqlx::query("UPDATE accounts SET plan = $1, version = $2 WHERE id = $3").bind(plan)).await
    }

    /// Suspends an account, or resumes it. Answers with the account as it is then.
    pub async fn set_account_active(&self, id: &str, active: bool) -> Result<Account, StoreError> {
        self.change(id, sqlx::query("UPDATE accounts SET active = $1, version = $2 WHERE id = $3").bind(active)).await
    }

    /// Runs an update of one account that still lacks the new version and the id.
    async fn change(&self, id: &str, update: Query<'_, Sqlite, SqliteArguments>) -> Result<Account, StoreError> {
        let mut transaction = self.write().await?;
        let version = Counter::Version.advance(&mut transaction, 1).await?;
        update.bind(version).bind(id).execute(&mut *transaction).await?;
        let account = find(&mut transaction, id).await?;
        transaction.commit().await?;
        Ok(account)
    }
}

/// Reads an account inside a transaction. The account that is not there is an error, and with it the transaction ends
/// without effect.
pub(super) async fn find(connection: &mut SqliteConnection, id: &str) -> Result<Account, StoreError> {
    let row: Option<AccountRow> =
        sqlx::query_as(select_account!("WHERE id = $1")).bind(id).fetch_optional(connection).await?;
    row.map(Account::from).ok_or_else(|| StoreError::UnknownAccount(id.to_owned()))
}

/// Sets a balance that was read after the ledger's counter was advanced, so that nobody else can have moved it since.
pub(super) async fn set_balance(
    connection: &mut SqliteConnection,
    id: &str,
    balance: NanoUsd,
    seq: i64,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE accounts SET balance_nano_usd = $1, balance_seq = $2 WHERE id = $3")
        .bind(balance.0)
        .bind(seq)
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, record};
    use super::*;

    #[tokio::test]
    async fn accounts_are_listed_oldest_first() {
        let fixture = Fixture::with_credit("5").await;
        let second = fixture.store.create_account("Bob", "pro", 2_000).await.unwrap();
        let expected = Account {
            id: second.id.clone(),
            name: "Bob".into(),
            plan: "pro".into(),
            active: true,
            balance: NanoUsd(0),
            balance_seq: 0,
            created_at_ms: 2_000,
        };
        assert_eq!(second, expected);
        assert_eq!(fixture.store.accounts().await.unwrap(), [fixture.account().await, second]);
    }

    #[tokio::test]
    async fn credits_are_kept_with_their_notes_apart_from_usage() {
        let fixture = Fixture::with_credit("5").await;
        fixture.store.settle(&[record(&fixture, 100)], None).await.unwrap();
        let id = &fixture.account_id;
        let account = fixture.store.credit(id, NanoUsd(-200), Some("a mistake"), 3_000).await.unwrap();
        assert_eq!((account.balance, account.balance_seq), (NanoUsd(4_999_999_700), 3));
        let credits = fixture.store.credits(id).await.unwrap();
        let expected = [
            Credit {
                seq: 3,
                kind: CreditKind::Correction,
                amount: NanoUsd(-200),
                note: Some("a mistake".into()),
                created_at_ms: 3_000,
            },
            Credit {
                seq: 1,
                kind: CreditKind::Grant,
                amount: NanoUsd(5_000_000_000),
                note: None,
                created_at_ms: 1_000,
            },
        ];
        assert_eq!(credits, expected);
    }

    #[tokio::test]
    async fn a_balance_that_cannot_be_held_is_refused() {
        let fixture = Fixture::with_credit("5").await;
        let error = fixture.store.credit(&fixture.account_id, NanoUsd(i64::MAX), None, 1).await.unwrap_err();
        assert!(matches!(error, StoreError::AmountTooLarge));
        assert_eq!(fixture.account().await.balance, NanoUsd(5_000_000_000));
    }
}
