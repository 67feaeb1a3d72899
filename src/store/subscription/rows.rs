//! Subscriptions as rows.

use serde_json::Value;
use sqlx::FromRow;

use super::{EndReason, PaidBy, Period, Subscription};
use crate::relay::meter::NanoUsd;
use crate::store::change::Counter;
use crate::store::engine::{Connection, query, query_as, query_scalar};
use crate::store::{Store, StoreError, account};

#[derive(FromRow)]
pub(super) struct SubscriptionRow {
    id: String,
    account_id: String,
    plan: String,
    paid_by: String,
    anchor_ms: i64,
    period: i64,
    period_starts_ms: i64,
    period_ends_ms: i64,
    period_price_nano_usd: i64,
    renews: bool,
    next_plan: Option<String>,
    ends_at_ms: Option<i64>,
    stripe_subscription: Option<String>,
    started_at_ms: i64,
    ended_at_ms: Option<i64>,
    end_reason: Option<String>,
}

impl From<SubscriptionRow> for Subscription {
    fn from(row: SubscriptionRow) -> Self {
        let paid_by = match &*row.paid_by {
            "credit" => PaidBy::Credit,
            "stripe" => PaidBy::Stripe,
            // The table takes no other.
            _ => PaidBy::Operator,
        };
        Self {
            id: row.id,
            account_id: row.account_id,
            plan: row.plan,
            paid_by,
            anchor_ms: row.anchor_ms,
            period: row.period,
            period_starts_ms: row.period_starts_ms,
            period_ends_ms: row.period_ends_ms,
            period_price: NanoUsd(row.period_price_nano_usd),
            renews: row.renews,
            next_plan: row.next_plan,
            ends_at_ms: row.ends_at_ms,
            stripe_subscription: row.stripe_subscription,
            started_at_ms: row.started_at_ms,
            ended_at_ms: row.ended_at_ms,
            end_reason: row.end_reason,
        }
    }
}

macro_rules! select_subscriptions {
    ($rest:literal) => {
        concat!(
            "SELECT id, account_id, plan, paid_by, anchor_ms, period, period_starts_ms, period_ends_ms, \
             period_price_nano_usd, renews, next_plan, ends_at_ms, stripe_subscription, started_at_ms, ended_at_ms, \
             end_reason FROM subscriptions ",
            $rest
        )
    };
}
pub(super) use select_subscriptions;

type PeriodRow = (String, i64, String, i64, i64, i64, Option<i64>);

impl Store {
    /// The subscription of an account that has not ended, if there is one.
    pub async fn subscription(&self, account_id: &str) -> Result<Option<Subscription>, StoreError> {
        live(&mut self.pool.acquire().await?, account_id).await
    }

    /// At most `limit` subscriptions that have not ended, oldest first, from the first or from those after the one of that id, which
    /// is taken to be there.
    pub async fn subscriptions_after(&self, after: Option<&str>, limit: u32) -> Result<Vec<Subscription>, StoreError> {
        const PAGE: &str = select_subscriptions!(
            "WHERE ended_at_ms IS NULL AND number > COALESCE((SELECT number FROM subscriptions WHERE id = $1), -1) \
             ORDER BY number LIMIT $2"
        );
        let rows: Vec<SubscriptionRow> =
            query_as(PAGE).bind(after.unwrap_or_default()).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Subscription::from).collect())
    }

    /// Whether there is or was a subscription of that id.
    pub async fn knows_subscription(&self, id: &str) -> Result<bool, StoreError> {
        let found: Option<i64> = query_scalar("SELECT CAST(1 AS BIGINT) FROM subscriptions WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.is_some())
    }

    /// At most `limit` subscriptions of an account, those that ended too, newest first.
    pub async fn subscriptions_of(&self, account_id: &str, limit: u32) -> Result<Vec<Subscription>, StoreError> {
        let rows: Vec<SubscriptionRow> =
            query_as(select_subscriptions!("WHERE account_id = $1 ORDER BY number DESC LIMIT $2"))
                .bind(account_id)
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
                .await?;
        Ok(rows.into_iter().map(Subscription::from).collect())
    }

    /// At most `limit` periods of an account's subscriptions, newest first.
    pub async fn periods_of(&self, account_id: &str, limit: u32) -> Result<Vec<Period>, StoreError> {
        const SELECT: &str = "SELECT p.subscription_id, p.period, p.plan, p.starts_ms, p.ends_ms, p.price_nano_usd, p.seq \
             FROM subscriptions s JOIN subscription_periods p ON p.subscription_id = s.id \
             WHERE s.account_id = $1 ORDER BY s.number DESC, p.period DESC LIMIT $2";
        let rows: Vec<PeriodRow> =
            query_as(SELECT).bind(account_id).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        let period = |(subscription_id, period, plan, starts_ms, ends_ms, price, seq)| Period {
            subscription_id,
            period,
            plan,
            starts_ms,
            ends_ms,
            price: NanoUsd(price),
            seq,
        };
        Ok(rows.into_iter().map(period).collect())
    }
}

/// The subscription of an account that has not ended.
pub(in crate::store) async fn live(
    connection: &mut Connection,
    account_id: &str,
) -> Result<Option<Subscription>, StoreError> {
    let row: Option<SubscriptionRow> = query_as(select_subscriptions!("WHERE account_id = $1 AND ended_at_ms IS NULL"))
        .bind(account_id)
        .fetch_optional(connection)
        .await?;
    Ok(row.map(Subscription::from))
}

/// Enters a new subscription with its first period, and puts the account on its plan.
pub(in crate::store) async fn insert(
    connection: &mut Connection,
    new: &Subscription,
    seq: Option<i64>,
) -> Result<(), StoreError> {
    let number = Counter::Version.advance(connection, 1).await?;
    query(
        "INSERT INTO subscriptions (id, account_id, plan, paid_by, anchor_ms, period, period_starts_ms, period_ends_ms, \
         period_price_nano_usd, renews, next_plan, ends_at_ms, stripe_subscription, started_at_ms, number) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
    )
    .bind(&new.id)
    .bind(&new.account_id)
    .bind(&new.plan)
    .bind(new.paid_by.name())
    .bind(new.anchor_ms)
    .bind(new.period)
    .bind(new.period_starts_ms)
    .bind(new.period_ends_ms)
    .bind(new.period_price.0)
    .bind(new.renews)
    .bind(&new.next_plan)
    .bind(new.ends_at_ms)
    .bind(&new.stripe_subscription)
    .bind(new.started_at_ms)
    .bind(number)
    .execute(&mut *connection)
    .await?;
    enter_period(connection, new, seq).await?;
    account::move_plan(connection, &new.account_id, &new.plan).await
}

/// Writes what changed of a subscription. Where its period is another one, that is entered, and the account put on its plan.
pub(in crate::store) async fn save(
    connection: &mut Connection,
    (before, after): (&Subscription, &Subscription),
    seq: Option<i64>,
) -> Result<(), StoreError> {
    query(
        "UPDATE subscriptions SET plan = $1, paid_by = $2, anchor_ms = $3, period = $4, period_starts_ms = $5, \
         period_ends_ms = $6, period_price_nano_usd = $7, renews = $8, next_plan = $9, ends_at_ms = $10 WHERE id = $11",
    )
    .bind(&after.plan)
    .bind(after.paid_by.name())
    .bind(after.anchor_ms)
    .bind(after.period)
    .bind(after.period_starts_ms)
    .bind(after.period_ends_ms)
    .bind(after.period_price.0)
    .bind(after.renews)
    .bind(&after.next_plan)
    .bind(after.ends_at_ms)
    .bind(&after.id)
    .execute(&mut *connection)
    .await?;
    if after.period != before.period {
        enter_period(connection, after, seq).await?;
        account::move_plan(connection, &after.account_id, &after.plan).await?;
    }
    Ok(())
}

async fn enter_period(connection: &mut Connection, of: &Subscription, seq: Option<i64>) -> Result<(), StoreError> {
    query(
        "INSERT INTO subscription_periods (subscription_id, period, plan, starts_ms, ends_ms, price_nano_usd, seq) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&of.id)
    .bind(of.period)
    .bind(&of.plan)
    .bind(of.period_starts_ms)
    .bind(of.period_ends_ms)
    .bind(of.period_price.0)
    .bind(seq)
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends a subscription, and puts its account on the default plan. Gives what the trail is told.
pub(in crate::store) async fn finish(
    connection: &mut Connection,
    of: &mut Subscription,
    reason: EndReason,
    (default_plan, now_ms): (&str, i64),
) -> Result<Value, StoreError> {
    of.ended_at_ms = Some(now_ms);
    of.end_reason = Some(reason.name().to_owned());
    query("UPDATE subscriptions SET ended_at_ms = $1, end_reason = $2 WHERE id = $3 AND ended_at_ms IS NULL")
        .bind(now_ms)
        .bind(reason.name())
        .bind(&of.id)
        .execute(&mut *connection)
        .await?;
    account::move_plan(connection, &of.account_id, default_plan).await?;
    Ok(serde_json::json!({"subscription": of.id, "plan": default_plan, "reason": reason.name()}))
}
