//! Vouchers: credit that is given to whoever has the code, once.
//!
//! They are made in batches. Whoever tries many codes that are no voucher's is not heard for a while; one that is used, expired or taken
//! back was a voucher's, and does not count. Deliberately absent: the codes, of which only digests come here.

use std::sync::LazyLock;

use serde_json::json;
use sqlx::FromRow;
use uuid::Uuid;

use super::account::{self, move_money};
use super::change::Counter;
use super::engine::{Connection, Insert, query, query_as};
use super::trail::{Action, Deed};
use super::{CreditKind, Credited, Store, StoreError};
use crate::relay::auth::KeyDigest;
use crate::relay::meter::NanoUsd;

/// So many wrong codes of an account are heard in that time.
const MISSES_MAX: i64 = 10;
const MISSES_WITHIN_MS: i64 = 3_600_000;

/// A batch to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVouchers {
    /// What each is worth.
    pub amount: NanoUsd,
    /// What the operator is to remember about it.
    pub note: Option<String>,
    /// When they cease to be good. Milliseconds since the Unix epoch.
    pub expires_at_ms: Option<i64>,
}

/// A batch of vouchers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoucherBatch {
    /// `vchb_` and a UUIDv7 in hexadecimal.
    pub id: String,
    /// What each is worth.
    pub amount: NanoUsd,
    /// How many were made.
    pub vouchers: u64,
    /// How many were redeemed.
    pub redeemed: u64,
    /// What the operator wrote beside it.
    pub note: Option<String>,
    /// When they cease to be good. Milliseconds since the Unix epoch, as all times here.
    pub expires_at_ms: Option<i64>,
    /// When they were made.
    pub created_at_ms: i64,
    /// When those that were not redeemed were taken back.
    pub revoked_at_ms: Option<i64>,
}

impl VoucherBatch {
    /// `active`, `expired`, `revoked` or `used`, for tables and JSON.
    pub fn status_at(&self, now_ms: i64) -> &'static str {
        match self {
            _ if self.redeemed == self.vouchers => "used",
            _ if self.revoked_at_ms.is_some() => "revoked",
            _ if self.expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms) => "expired",
            _ => "active",
        }
    }
}

#[derive(FromRow)]
struct BatchRow {
    id: String,
    amount_nano_usd: i64,
    vouchers: i64,
    redeemed: i64,
    note: Option<String>,
    expires_at_ms: Option<i64>,
    created_at_ms: i64,
    revoked_at_ms: Option<i64>,
}

impl From<BatchRow> for VoucherBatch {
    fn from(row: BatchRow) -> Self {
        Self {
            id: row.id,
            amount: NanoUsd(row.amount_nano_usd),
            vouchers: row.vouchers.unsigned_abs(),
            redeemed: row.redeemed.unsigned_abs(),
            note: row.note,
            expires_at_ms: row.expires_at_ms,
            created_at_ms: row.created_at_ms,
            revoked_at_ms: row.revoked_at_ms,
        }
    }
}

macro_rules! select_batches {
    ($rest:literal) => {
        concat!(
            "SELECT b.id, b.amount_nano_usd, b.vouchers, (SELECT COUNT(*) FROM vouchers v WHERE v.batch_id = b.id \
             AND v.redeemed_at_ms IS NOT NULL) AS redeemed, b.note, b.expires_at_ms, b.created_at_ms, b.revoked_at_ms \
             FROM voucher_batches b ",
            $rest
        )
    };
}

static INSERT_VOUCHERS: LazyLock<Insert> = LazyLock::new(|| Insert::new("vouchers", &["digest", "batch_id"], ""));

#[derive(FromRow)]
struct VoucherRow {
    batch_id: String,
    redeemed_at_ms: Option<i64>,
    amount_nano_usd: i64,
    expires_at_ms: Option<i64>,
    revoked_at_ms: Option<i64>,
}

impl Store {
    /// A new batch of the vouchers with those codes.
    pub async fn create_vouchers(
        &self,
        new: &NewVouchers,
        codes: &[KeyDigest],
        now_ms: i64,
    ) -> Result<VoucherBatch, StoreError> {
        let mut transaction = self.write().await?;
        let number = Counter::Version.advance(&mut transaction, 1).await?;
        let id = format!("vchb_{}", Uuid::now_v7().simple());
        query(
            "INSERT INTO voucher_batches (id, amount_nano_usd, vouchers, note, expires_at_ms, created_at_ms, number) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&id)
        .bind(new.amount.0)
        .bind(i64::try_from(codes.len()).unwrap_or(i64::MAX))
        .bind(&new.note)
        .bind(new.expires_at_ms)
        .bind(now_ms)
        .bind(number)
        .execute(&mut *transaction)
        .await?;
        let put_in = INSERT_VOUCHERS.run(&mut transaction, codes, |to, code| {
            to.text(code.to_string())?;
            to.text(id.clone())
        });
        put_in.await?;
        let after = json!({
            "amount_nano_usd": new.amount, "vouchers": codes.len(), "note": new.note, "expires_at_ms": new.expires_at_ms,
        });
        let deed = Deed { action: Action::VoucherCreate, subject_id: &id, before: None, after };
        self.note(&mut transaction, deed, now_ms).await?;
        let batch = find(&mut transaction, &id).await?;
        transaction.commit().await?;
        Ok(batch)
    }

    /// At most `limit` batches, newest first, from the newest or from those before the batch of that id, which is taken to be there.
    pub async fn voucher_batches(&self, before: Option<&str>, limit: u32) -> Result<Vec<VoucherBatch>, StoreError> {
        const PAGE: &str = select_batches!(
            "WHERE b.number < COALESCE((SELECT number FROM voucher_batches WHERE id = $1), $2) \
             ORDER BY b.number DESC LIMIT $3"
        );
        let rows: Vec<BatchRow> = query_as(PAGE)
            .bind(before.unwrap_or_default())
            .bind(i64::MAX)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(VoucherBatch::from).collect())
    }

    /// The batch of that id.
    pub async fn voucher_batch(&self, id: &str) -> Result<VoucherBatch, StoreError> {
        find(&mut self.pool.acquire().await?, id).await
    }

    /// Takes back what was not redeemed of a batch. One that was taken back before stays as it was.
    pub async fn revoke_vouchers(&self, id: &str, now_ms: i64) -> Result<VoucherBatch, StoreError> {
        let mut transaction = self.write().await?;
        let before = find(&mut transaction, id).await?;
        if before.revoked_at_ms.is_some() {
            return Ok(before);
        }
        query("UPDATE voucher_batches SET revoked_at_ms = $1 WHERE id = $2")
            .bind(now_ms)
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        let left = before.vouchers.saturating_sub(before.redeemed);
        let (action, after) = (Action::VoucherRevoke, json!({"revoked_at_ms": now_ms, "vouchers": left}));
        let deed = Deed { action, subject_id: id, before: Some(json!({"revoked_at_ms": null})), after };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(VoucherBatch { revoked_at_ms: Some(now_ms), ..before })
    }

    /// Gives an account the credit of the voucher with that code; `None` is a code that cannot be one.
    ///
    /// # Errors
    /// There is no such voucher, or it is used, expired or taken back; or the account tried too many that are none.
    pub async fn redeem_voucher(
        &self,
        account_id: &str,
        code: Option<&KeyDigest>,
        now_ms: i64,
    ) -> Result<Credited, StoreError> {
        let mut transaction = self.write().await?;
        let before = account::find(&mut transaction, account_id).await?;
        heard(&mut transaction, account_id, now_ms).await?;
        let digest = code.map(KeyDigest::to_string).unwrap_or_default();
        let Some(voucher) = voucher(&mut transaction, &digest).await? else {
            missed(&mut transaction, account_id, now_ms).await?;
            transaction.commit().await?;
            return Err(StoreError::UnknownVoucher);
        };
        if voucher.redeemed_at_ms.is_some() {
            return Err(StoreError::VoucherUsed);
        }
        if voucher.revoked_at_ms.is_some() {
            return Err(StoreError::VoucherRevoked);
        }
        if voucher.expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            return Err(StoreError::VoucherExpired);
        }
        let (amount, note) = (NanoUsd(voucher.amount_nano_usd), format!("voucher of {}", voucher.batch_id));
        let (credit, balance) =
            move_money(&mut transaction, account_id, CreditKind::Grant, (amount, &note), now_ms).await?;
        // The condition is what makes it one redemption where two meet, whichever database keeps them apart.
        let used = query(
            "UPDATE vouchers SET account_id = $1, redeemed_at_ms = $2, seq = $3 \
             WHERE digest = $4 AND redeemed_at_ms IS NULL",
        )
        .bind(account_id)
        .bind(now_ms)
        .bind(credit.seq)
        .bind(&digest)
        .execute(&mut *transaction)
        .await?;
        if used != 1 {
            return Err(StoreError::VoucherUsed);
        }
        let deed = Deed {
            action: Action::VoucherRedeem,
            subject_id: account_id,
            before: Some(json!({"balance_nano_usd": before.balance})),
            after: json!({
                "balance_nano_usd": balance, "amount_nano_usd": amount, "batch": voucher.batch_id, "seq": credit.seq,
            }),
        };
        self.note(&mut transaction, deed, now_ms).await?;
        let account = account::find(&mut transaction, account_id).await?;
        transaction.commit().await?;
        Ok(Credited { credit, account, is_repeat: false })
    }
}

async fn find(connection: &mut Connection, id: &str) -> Result<VoucherBatch, StoreError> {
    let row: Option<BatchRow> =
        query_as(select_batches!("WHERE b.id = $1")).bind(id).fetch_optional(connection).await?;
    row.map(VoucherBatch::from).ok_or_else(|| StoreError::UnknownVoucherBatch(id.to_owned()))
}

async fn voucher(connection: &mut Connection, digest: &str) -> Result<Option<VoucherRow>, StoreError> {
    const SELECT: &str = "SELECT v.batch_id, v.redeemed_at_ms, b.amount_nano_usd, b.expires_at_ms, b.revoked_at_ms \
         FROM vouchers v JOIN voucher_batches b ON b.id = v.batch_id WHERE v.digest = $1";
    Ok(query_as(SELECT).bind(digest).fetch_optional(connection).await?)
}

/// Whether an account's codes are heard.
async fn heard(connection: &mut Connection, account_id: &str, now_ms: i64) -> Result<(), StoreError> {
    const SELECT: &str =
        "SELECT COUNT(*), COALESCE(MIN(at_ms), 0) FROM voucher_misses WHERE account_id = $1 AND at_ms > $2";
    let since_ms = now_ms.saturating_sub(MISSES_WITHIN_MS);
    let (misses, first_ms): (i64, i64) = query_as(SELECT).bind(account_id).bind(since_ms).fetch_one(connection).await?;
    if misses < MISSES_MAX {
        return Ok(());
    }
    Err(StoreError::TooManyVouchers { retry_after_ms: first_ms.saturating_sub(since_ms).max(1) })
}

async fn missed(connection: &mut Connection, account_id: &str, now_ms: i64) -> Result<(), StoreError> {
    query("DELETE FROM voucher_misses WHERE at_ms <= $1")
        .bind(now_ms.saturating_sub(MISSES_WITHIN_MS))
        .execute(&mut *connection)
        .await?;
    query("INSERT INTO voucher_misses (account_id, at_ms) VALUES ($1, $2)")
        .bind(account_id)
        .bind(now_ms)
        .execute(connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, record};
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn code(number: u8) -> KeyDigest {
        KeyDigest([number; 32])
    }

    fn worth(nano: i64) -> NewVouchers {
        NewVouchers { amount: NanoUsd(nano), note: Some("fair".into()), expires_at_ms: Some(5_000) }
    }

    async fn redeem(fixture: &Fixture, number: u8, now_ms: i64) -> Result<Credited, StoreError> {
        fixture.store.redeem_voucher(&fixture.account_id, Some(&code(number)), now_ms).await
    }

    #[tokio::test]
    async fn a_voucher_is_redeemed_once_whoever_has_it() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let batch = store.create_vouchers(&worth(70), &[code(1), code(2)], 2_000).await.unwrap();
        assert_eq!((batch.vouchers, batch.redeemed, batch.status_at(2_000)), (2, 0, "active"));
        let credited = redeem(&fixture, 1, 3_000).await.unwrap();
        assert_eq!((credited.account.balance, credited.credit.kind), (NanoUsd(5_000_000_070), CreditKind::Grant));
        assert_eq!(credited.credit.note, Some(format!("voucher of {}", batch.id)));
        let other = store.create_account("Bob", "free", 3_000).await.unwrap().id;
        for account in [&fixture.account_id, &other] {
            let error = store.redeem_voucher(account, Some(&code(1)), 3_000).await.unwrap_err();
            assert!(matches!(error, StoreError::VoucherUsed), "{error}");
        }
        store.redeem_voucher(&other, Some(&code(2)), 3_000).await.unwrap();
        let batch = store.voucher_batch(&batch.id).await.unwrap();
        assert_eq!((batch.redeemed, batch.status_at(9_000)), (2, "used"));
        store.settle(&[record(&fixture, 9)], None).await.unwrap();
        assert_eq!(store.audit().await.unwrap(), []);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_many_who_come_at_once_one_has_it() {
        let fixture = Fixture::with_credit("5").await;
        fixture.store.create_vouchers(&worth(70), &[code(1)], 2_000).await.unwrap();
        let other = Store::open(&fixture.url).await.unwrap();
        let tries: Vec<_> = (0..16)
            .map(|turn| {
                let store = if turn % 2 == 0 { fixture.store.clone() } else { other.clone() };
                let id = fixture.account_id.clone();
                tokio::spawn(async move { store.redeem_voucher(&id, Some(&code(1)), 3_000).await.is_ok() })
            })
            .collect();
        let mut redeemed = 0;
        for attempt in tries {
            redeemed += u32::from(attempt.await.unwrap());
        }
        assert_eq!((redeemed, fixture.account().await.balance), (1, NanoUsd(5_000_000_070)));
    }

    #[tokio::test]
    async fn what_is_over_is_told_as_what_it_is() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let batch = store.create_vouchers(&worth(70), &[code(1), code(2)], 2_000).await.unwrap();
        assert!(matches!(redeem(&fixture, 1, 5_000).await, Err(StoreError::VoucherExpired)));
        redeem(&fixture, 2, 4_999).await.unwrap();
        let revoked = store.revoke_vouchers(&batch.id, 3_000).await.unwrap();
        assert_eq!((revoked.revoked_at_ms, revoked.status_at(9_000)), (Some(3_000), "revoked"));
        assert_eq!(store.revoke_vouchers(&batch.id, 4_000).await.unwrap(), revoked);
        assert!(matches!(redeem(&fixture, 1, 3_000).await, Err(StoreError::VoucherRevoked)));
        assert!(matches!(redeem(&fixture, 2, 3_000).await, Err(StoreError::VoucherUsed)));
        assert!(matches!(redeem(&fixture, 3, 3_000).await, Err(StoreError::UnknownVoucher)));
        assert!(matches!(store.revoke_vouchers("vchb_none", 1).await, Err(StoreError::UnknownVoucherBatch(_))));
    }

    #[tokio::test]
    async fn whoever_guesses_is_not_heard_for_a_while_even_with_a_good_code() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let lasting = NewVouchers { expires_at_ms: None, ..worth(70) };
        store.create_vouchers(&lasting, &[code(1)], 0).await.unwrap();
        for turn in 0..MISSES_MAX {
            let wrong = if turn % 2 == 0 { None } else { Some(code(9)) };
            let error = store.redeem_voucher(&fixture.account_id, wrong.as_ref(), 10_000 + turn).await.unwrap_err();
            assert!(matches!(error, StoreError::UnknownVoucher), "{error}");
        }
        let error = redeem(&fixture, 1, 20_000).await.unwrap_err();
        let StoreError::TooManyVouchers { retry_after_ms } = error else { panic!("{error}") };
        assert_eq!(20_000 + retry_after_ms, 10_000 + HOUR_MS);
        let other = store.create_account("Bob", "free", 1).await.unwrap().id;
        let elsewhere = store.redeem_voucher(&other, Some(&code(8)), 20_000).await.unwrap_err();
        assert!(matches!(elsewhere, StoreError::UnknownVoucher), "each account for itself: {elsewhere}");
        redeem(&fixture, 1, 10_000 + HOUR_MS).await.unwrap();
    }

    #[tokio::test]
    async fn batches_are_paged_newest_first_and_no_code_is_told() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let mut made = Vec::new();
        for number in 0..3 {
            made.insert(0, store.create_vouchers(&worth(1), &[code(number)], 2_000).await.unwrap());
        }
        let first = store.voucher_batches(None, 2).await.unwrap();
        assert_eq!(first, made[..2]);
        assert_eq!(store.voucher_batches(Some(&first[1].id), 2).await.unwrap(), made[2..]);
        redeem(&fixture, 1, 2_000).await.unwrap();
        let trail = format!("{:?}", store.audit_entries(&Default::default(), None, 100).await.unwrap());
        assert!(trail.contains("voucher.redeem") && !trail.contains(&code(1).to_string()), "{trail}");
    }
}
