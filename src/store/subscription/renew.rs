//! What time does with subscriptions: they renew, or end.

use super::rows::{SubscriptionRow, select_subscriptions};
use super::step::pay;
use super::{EndReason, Offer, PaidBy, Subscription, finish, live, save};
use crate::relay::meter::NanoUsd;
use crate::store::engine::query_as;
use crate::store::period::month_of;
use crate::store::trail::{Action, Deed};
use crate::store::{Store, StoreError, account};

/// How long after its period one that is paid at Stripe is waited for: an invoice is paid about an hour after the period's end, and
/// tried again for days where a card is refused.
pub(in crate::store) const STRIPE_GRACE_MS: i64 = 3 * 86_400_000;

/// What the configuration says to a subscription's renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal<'a> {
    /// The next period's plan; `None` where it cannot be had any more.
    pub offer: Option<Offer<'a>>,
    /// The plan of those that end.
    pub default_plan: &'a str,
}

impl Store {
    /// At most `limit` subscriptions of which the period, or the time, is over.
    pub async fn subscriptions_due(&self, now_ms: i64, limit: u32) -> Result<Vec<Subscription>, StoreError> {
        let rows: Vec<SubscriptionRow> = query_as(select_subscriptions!(
            "WHERE ended_at_ms IS NULL AND (ends_at_ms <= $1 \
             OR (period_ends_ms <= $1 AND (paid_by <> 'stripe' OR period_ends_ms <= $2))) \
             ORDER BY period_ends_ms LIMIT $3"
        ))
        .bind(now_ms)
        .bind(now_ms.saturating_sub(STRIPE_GRACE_MS))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(Subscription::from).collect())
    }

    /// Renews a subscription that is due, or ends it. `None` where it is not as it was seen: another process came first, or somebody
    /// changed it; it is looked at again the next time.
    pub async fn renew_subscription(
        &self,
        seen: &Subscription,
        renewal: Renewal<'_>,
        now_ms: i64,
    ) -> Result<Option<Subscription>, StoreError> {
        let mut transaction = self.write().await?;
        if live(&mut transaction, &seen.account_id).await?.as_ref() != Some(seen) {
            return Ok(None);
        }
        let account = account::find(&mut transaction, &seen.account_id).await?;
        let mut after = seen.clone();
        let next = match (renewal.offer, why_it_ends(seen, account.active, now_ms)) {
            (_, Some(reason)) => Err(reason),
            (None, None) => Err(EndReason::PlanGone),
            (Some(offer), None) => match next_period(&mut after, offer, now_ms) {
                price if after.paid_by == PaidBy::Credit && price.0 > 0 && price > account.balance => {
                    Err(EndReason::InsufficientCredits)
                }
                price => Ok(price),
            },
        };
        let (action, told) = match next {
            Ok(price) => {
                let seq = pay(&mut transaction, &after, price, now_ms).await?;
                save(&mut transaction, (seen, &after), seq).await?;
                (Action::SubscriptionRenew, after.told())
            }
            Err(reason) => {
                after = seen.clone();
                let told = finish(&mut transaction, &mut after, reason, (renewal.default_plan, now_ms)).await?;
                (Action::SubscriptionEnd, told)
            }
        };
        let deed = Deed { action, subject_id: &seen.account_id, before: Some(seen.told()), after: told };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(Some(after))
    }
}

fn why_it_ends(due: &Subscription, is_active: bool, now_ms: i64) -> Option<EndReason> {
    if due.ends_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
        return Some(EndReason::EndDate);
    }
    match due.paid_by {
        PaidBy::Stripe => Some(EndReason::Stripe),
        _ if !due.renews => Some(EndReason::Cancelled),
        // What cannot be used is not paid for.
        _ if !is_active => Some(EndReason::Suspended),
        _ => None,
    }
}

/// The period that it is now time for: the next one, or a later one where nobody renewed for so long. Gives what it costs.
fn next_period(subscription: &mut Subscription, offer: Offer<'_>, now_ms: i64) -> NanoUsd {
    let at_ms = now_ms.max(subscription.period_ends_ms);
    let (starts_ms, ends_ms) = month_of(subscription.anchor_ms, at_ms);
    offer.plan.clone_into(&mut subscription.plan);
    subscription.next_plan = None;
    subscription.period += 1;
    (subscription.period_starts_ms, subscription.period_ends_ms) = (starts_ms, ends_ms);
    subscription.period_price = if subscription.paid_by == PaidBy::Operator { NanoUsd(0) } else { offer.price };
    subscription.period_price
}
