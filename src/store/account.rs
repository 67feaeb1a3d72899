//! Customers and their money.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::change::Counter;
use super::engine::{Connection, query, query_as};
use super::trail::{Action, Deed};
use super::{Store, StoreError, lease, subscription};
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

impl Account {
    /// `active` or `suspended`, for tables and JSON.
    pub fn status(&self) -> &'static str {
        if self.active { "active" } else { "suspended" }
    }
}

/// What is to be changed of an account; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccountChange<'a> {
    /// The name.
    pub name: Option<&'a str>,
    /// The plan.
    pub plan: Option<&'a str>,
    /// Not suspended.
    pub active: Option<bool>,
}

/// A movement of an account's money that no request caused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credit {
    /// Its place in the ledger.
    pub seq: i64,
    /// Whether it gave, took back, or paid for a plan.
    pub kind: CreditKind,
    /// Positive for a grant, negative for a correction and a fee.
    pub amount: NanoUsd,
    /// What the operator wrote beside it, or what it was for.
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
    /// What a plan cost.
    Fee,
}

impl CreditKind {
    /// As the ledger, tables and JSON have it.
    pub fn name(self) -> &'static str {
        match self {
            CreditKind::Grant => "grant",
            CreditKind::Correction => "correction",
            CreditKind::Fee => "fee",
        }
    }

    fn of(amount: NanoUsd) -> Self {
        if amount.0 < 0 { CreditKind::Correction } else { CreditKind::Grant }
    }
}

/// A credit that was entered, now or before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credited {
    /// The entry.
    pub credit: Credit,
    /// The account as it is now.
    pub account: Account,
    /// The entry was there already, under the same Idempotency-Key.
    pub is_repeat: bool,
}

type AccountRow = (String, String, String, bool, i64, i64, i64);

macro_rules! select_account {
    ($rest:literal) => {
        concat!("SELECT id, name, plan, active, balance_nano_usd, balance_seq, created_at_ms FROM accounts ", $rest)
    };
}

type CreditRow = (i64, String, i64, Option<String>, i64);

macro_rules! select_credit {
    ($rest:literal) => {
        concat!("SELECT seq, kind, amount_nano_usd, note, created_at_ms FROM ledger_entries ", $rest)
    };
}

impl From<AccountRow> for Account {
    fn from((id, name, plan, active, balance, balance_seq, created_at_ms): AccountRow) -> Self {
        Self { id, name, plan, active, balance: NanoUsd(balance), balance_seq, created_at_ms }
    }
}

impl From<CreditRow> for Credit {
    fn from((seq, kind, nano, note, created_at_ms): CreditRow) -> Self {
        let kind = match &*kind {
            "correction" => CreditKind::Correction,
            "fee" => CreditKind::Fee,
            // The table takes no other kinds.
            _ => CreditKind::Grant,
        };
        Self { seq, kind, amount: NanoUsd(nano), note, created_at_ms }
    }
}

impl Store {
    /// A new account without money.
    pub async fn create_account(&self, name: &str, plan: &str, now_ms: i64) -> Result<Account, StoreError> {
        let mut transaction = self.write().await?;
        let version = Counter::Version.advance(&mut transaction, 1).await?;
        let id = format!("acct_{}", Uuid::now_v7().simple());
        query(
            "INSERT INTO accounts (id, name, plan, active, balance_nano_usd, balance_seq, version, created_at_ms, number) \
             VALUES ($1, $2, $3, TRUE, 0, 0, $4, $5, $4)",
        )
        .bind(&id)
        .bind(name)
        .bind(plan)
        .bind(version)
        .bind(now_ms)
        .execute(&mut *transaction)
        .await?;
        let account = find(&mut transaction, &id).await?;
        let after = json!({"name": name, "plan": plan, "status": account.status()});
        let deed = Deed { action: Action::AccountCreate, subject_id: &id, before: None, after };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(account)
    }

    /// All accounts, oldest first.
    pub async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        let rows: Vec<AccountRow> = query_as(select_account!("ORDER BY number")).fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Account::from).collect())
    }

    /// At most `limit` accounts, oldest first, from the first or from those after the account of that id, which is taken to
    /// be there.
    pub async fn accounts_after(&self, after: Option<&str>, limit: u32) -> Result<Vec<Account>, StoreError> {
        const PAGE: &str = select_account!(
            "WHERE number > COALESCE((SELECT number FROM accounts WHERE id = $1), -1) ORDER BY number LIMIT $2"
        );
        let rows: Vec<AccountRow> =
            query_as(PAGE).bind(after.unwrap_or_default()).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Account::from).collect())
    }

    /// The account of that id.
    pub async fn account(&self, id: &str) -> Result<Account, StoreError> {
        find(&mut self.pool.acquire().await?, id).await
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
        Ok(self.credit_once(id, amount, note, None, now_ms).await?.account)
    }

    /// As [`Store::credit`]; what comes again with the same `idempotency_key` moves nothing more.
    pub async fn credit_once(
        &self,
        id: &str,
        amount: NanoUsd,
        note: Option<&str>,
        idempotency_key: Option<&str>,
        now_ms: i64,
    ) -> Result<Credited, StoreError> {
        let mut transaction = self.write().await?;
        let seq = Counter::LedgerSeq.advance(&mut transaction, 1).await?;
        let before = find(&mut transaction, id).await?;
        if let Some(key) = idempotency_key
            && let Some(credit) = credit_of_key(&mut transaction, id, key).await?
        {
            let is_same = credit.amount == amount && credit.note.as_deref() == note;
            return match is_same {
                true => Ok(Credited { credit, account: before, is_repeat: true }),
                false => Err(StoreError::CreditKeyReused),
            };
        }
        let balance = before.balance.0.checked_add(amount.0).ok_or(StoreError::AmountTooLarge)?;
        let kind = CreditKind::of(amount);
        let credit = Credit { seq, kind, amount, note: note.map(str::to_owned), created_at_ms: now_ms };
        enter(&mut transaction, id, &credit).await?;
        set_balance(&mut transaction, id, NanoUsd(balance), seq).await?;
        if let Some(key) = idempotency_key {
            remember(&mut transaction, id, key, seq).await?;
        }
        let deed = Deed {
            action: Action::AccountCredit,
            subject_id: id,
            before: Some(json!({"balance_nano_usd": before.balance})),
            after: json!({"balance_nano_usd": balance, "amount_nano_usd": amount, "note": note, "seq": seq}),
        };
        self.note(&mut transaction, deed, now_ms).await?;
        let account = find(&mut transaction, id).await?;
        transaction.commit().await?;
        Ok(Credited { credit, account, is_repeat: false })
    }

    /// An account's grants, corrections and fees, newest first.
    pub async fn credits(&self, id: &str) -> Result<Vec<Credit>, StoreError> {
        self.credits_before(id, i64::MAX, u32::MAX).await
    }

    /// At most `limit` of an account's grants, corrections and fees, newest first, from before that place in the ledger.
    pub async fn credits_before(&self, id: &str, seq: i64, limit: u32) -> Result<Vec<Credit>, StoreError> {
        let rows: Vec<CreditRow> = query_as(select_credit!(
            "WHERE account_id = $1 AND kind <> 'usage' AND seq < $2 ORDER BY seq DESC LIMIT $3"
        ))
        .bind(id)
        .bind(seq)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(Credit::from).collect())
    }

    /// Puts an account that has no subscription on another plan. Answers with the account as it is then.
    pub async fn set_plan(&self, id: &str, plan: &str, now_ms: i64) -> Result<Account, StoreError> {
        self.update_account(id, &AccountChange { plan: Some(plan), ..AccountChange::default() }, now_ms).await
    }

    /// Suspends an account, or resumes it. Answers with the account as it is then.
    pub async fn set_account_active(&self, id: &str, active: bool, now_ms: i64) -> Result<Account, StoreError> {
        self.update_account(id, &AccountChange { active: Some(active), ..AccountChange::default() }, now_ms).await
    }

    /// Changes what is to be changed, all of it at once. Answers with the account as it is then.
    pub async fn update_account(
        &self,
        id: &str,
        change: &AccountChange<'_>,
        now_ms: i64,
    ) -> Result<Account, StoreError> {
        let mut transaction = self.write().await?;
        let version = Counter::Version.advance(&mut transaction, 1).await?;
        let before = find(&mut transaction, id).await?;
        let after = Account {
            name: change.name.unwrap_or(&before.name).to_owned(),
            plan: change.plan.unwrap_or(&before.plan).to_owned(),
            active: change.active.unwrap_or(before.active),
            ..before.clone()
        };
        if after == before {
            return Ok(before);
        }
        if after.plan != before.plan
            && let Some(subscription) = subscription::live(&mut transaction, id).await?
        {
            return Err(StoreError::Subscribed { plan: subscription.plan });
        }
        query("UPDATE accounts SET name = $1, plan = $2, active = $3, version = $4 WHERE id = $5")
            .bind(&after.name)
            .bind(&after.plan)
            .bind(after.active)
            .bind(version)
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        let (was, is) = (what_differs(&before, &after), what_differs(&after, &before));
        let deed = Deed { action: Action::AccountUpdate, subject_id: id, before: Some(was), after: is };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(after)
    }
}

/// What one account has otherwise than the other.
fn what_differs(of: &Account, from: &Account) -> Value {
    let fields =
        [("name", &*of.name, &*from.name), ("plan", &*of.plan, &*from.plan), ("status", of.status(), from.status())];
    let differing = fields.into_iter().filter(|(_, one, other)| one != other);
    Value::Object(differing.map(|(name, one, _)| (name.to_owned(), one.into())).collect::<Map<_, _>>())
}

/// Moves an account's money in a transaction of which that is a part, and gives the entry and the balance then. Neither the limits
/// of what the account has nor the trail is looked after here.
pub(super) async fn move_money(
    connection: &mut Connection,
    id: &str,
    kind: CreditKind,
    (amount, note): (NanoUsd, &str),
    now_ms: i64,
) -> Result<(Credit, NanoUsd), StoreError> {
    let seq = Counter::LedgerSeq.advance(connection, 1).await?;
    let before = find(connection, id).await?;
    let balance = before.balance.0.checked_add(amount.0).map(NanoUsd).ok_or(StoreError::AmountTooLarge)?;
    let credit = Credit { seq, kind, amount, note: Some(note.to_owned()), created_at_ms: now_ms };
    enter(connection, id, &credit).await?;
    set_balance(connection, id, balance, seq).await?;
    Ok((credit, balance))
}

/// Puts an account on that plan, in a transaction of which that is a part.
pub(super) async fn move_plan(connection: &mut Connection, id: &str, plan: &str) -> Result<(), StoreError> {
    let version = Counter::Version.advance(connection, 1).await?;
    query("UPDATE accounts SET plan = $1, version = $2 WHERE id = $3 AND plan <> $1")
        .bind(plan)
        .bind(version)
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes a credit into the ledger.
async fn enter(connection: &mut Connection, id: &str, credit: &Credit) -> Result<(), StoreError> {
    query(
        "INSERT INTO ledger_entries (seq, account_id, kind, amount_nano_usd, note, created_at_ms) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(credit.seq)
    .bind(id)
    .bind(credit.kind.name())
    .bind(credit.amount.0)
    .bind(&credit.note)
    .bind(credit.created_at_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// What was entered under that Idempotency-Key.
async fn credit_of_key(connection: &mut Connection, id: &str, key: &str) -> Result<Option<Credit>, StoreError> {
    let row: Option<CreditRow> = query_as(select_credit!(
        "WHERE seq = (SELECT seq FROM credit_keys WHERE account_id = $1 AND idempotency_key = $2)"
    ))
    .bind(id)
    .bind(key)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Credit::from))
}

async fn remember(connection: &mut Connection, id: &str, key: &str, seq: i64) -> Result<(), StoreError> {
    query("INSERT INTO credit_keys (account_id, idempotency_key, seq) VALUES ($1, $2, $3)")
        .bind(id)
        .bind(key)
        .bind(seq)
        .execute(connection)
        .await?;
    Ok(())
}

/// Reads an account inside a transaction. The account that is not there is an error, and with it the transaction ends
/// without effect.
pub(super) async fn find(connection: &mut Connection, id: &str) -> Result<Account, StoreError> {
    let row: Option<AccountRow> =
        query_as(select_account!("WHERE id = $1")).bind(id).fetch_optional(connection).await?;
    row.map(Account::from).ok_or_else(|| StoreError::UnknownAccount(id.to_owned()))
}

/// Sets a balance that was read after the ledger's counter was advanced, so that nobody else can have moved it since.
pub(super) async fn set_balance(
    connection: &mut Connection,
    id: &str,
    balance: NanoUsd,
    seq: i64,
) -> Result<(), StoreError> {
    query("UPDATE accounts SET balance_nano_usd = $1, balance_seq = $2 WHERE id = $3")
        .bind(balance.0)
        .bind(seq)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    lease::want_where_overdone(connection, id, seq).await?;
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
    async fn a_credit_that_comes_again_with_its_key_moves_nothing_more() {
        let fixture = Fixture::with_credit("5").await;
        let (store, id) = (&fixture.store, &fixture.account_id);
        let credit = async |amount, note, key| store.credit_once(id, NanoUsd(amount), note, key, 2_000).await;
        let first = credit(7, Some("x"), Some("k")).await.unwrap();
        let again = credit(7, Some("x"), Some("k")).await.unwrap();
        assert_eq!((first.is_repeat, again.is_repeat, &again.credit), (false, true, &first.credit));
        assert_eq!(again.account.balance, NanoUsd(5_000_000_007));
        for (amount, note) in [(8, Some("x")), (7, None)] {
            let error = credit(amount, note, Some("k")).await.unwrap_err();
            assert!(matches!(error, StoreError::CreditKeyReused), "{error}");
        }
        let other = store.create_account("Bob", "free", 2_000).await.unwrap().id;
        let elsewhere = store.credit_once(&other, NanoUsd(7), Some("x"), Some("k"), 2_000).await.unwrap();
        assert!(!elsewhere.is_repeat, "a key is an account's own");
        credit(7, Some("x"), Some("l")).await.unwrap();
        assert_eq!((store.credits(id).await.unwrap().len(), store.audit().await.unwrap().len()), (3, 0));
    }

    #[tokio::test]
    async fn pages_of_accounts_miss_nobody_who_came_late_with_an_early_time() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        for at in [9_000, 8_000, 7_000] {
            store.create_account("Bob", "free", at).await.unwrap();
        }
        let mut paged: Vec<Account> = Vec::new();
        for late in [1, 2, 3] {
            let after = paged.last().map(|account| account.id.clone());
            paged.extend(store.accounts_after(after.as_deref(), 2).await.unwrap());
            // Its time is before all others': the clock was put back, or it waited long for its turn.
            store.create_account("Late", "free", late).await.unwrap();
        }
        paged.extend(store.accounts_after(Some(&paged.last().unwrap().id), 100).await.unwrap());
        assert_eq!((paged.len(), paged), (7, store.accounts().await.unwrap()));
    }

    #[tokio::test]
    async fn a_balance_that_cannot_be_held_is_refused() {
        let fixture = Fixture::with_credit("5").await;
        let error = fixture.store.credit(&fixture.account_id, NanoUsd(i64::MAX), None, 1).await.unwrap_err();
        assert!(matches!(error, StoreError::AmountTooLarge));
        assert_eq!(fixture.account().await.balance, NanoUsd(5_000_000_000));
    }
}
