//! Plans by the month and vouchers, as the command line, the admin API and the dashboard sell them: the store's operations with the
//! configuration's prices.

use crate::relay::auth::{KeyDigest, VoucherCode};
use crate::relay::meter::NanoUsd;
use crate::relay::route::Catalogue;
use crate::store::{
    NewVouchers, Offer, PaidBy, Renewal, Store, StoreError, Subscription, SubscriptionChange, VoucherBatch,
};

use super::{UnknownPlan, require_plan};

/// How many vouchers are made at once.
pub const VOUCHERS_MAX: u32 = 1_000;
/// What a voucher can be worth: a thousand dollars; more is a slip of the decimal point.
pub const VOUCHER_AMOUNT_MAX: NanoUsd = NanoUsd(1_000_000_000_000);
/// How many subscriptions are looked at before they are asked for again.
const DUE_AT_ONCE: u32 = 100;

/// Why a subscription is not as somebody wants it.
#[derive(Debug, thiserror::Error)]
pub enum SaleError {
    /// There is no such plan.
    #[error(transparent)]
    Plan(#[from] UnknownPlan),
    /// The plan has no price.
    #[error("the plan {0:?} is not for sale: it has no price_usd")]
    NotForSale(String),
    /// What ends would have no plan to go to.
    #[error("the configuration has no plans")]
    NoPlans,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why there are no new vouchers.
#[derive(Debug, thiserror::Error)]
pub enum VoucherError {
    /// The system gives no random bytes.
    #[error("the system's entropy makes no code")]
    Entropy,
    /// The store did not take them.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A plan at its price, for whoever pays. What the operator pays for need not be for sale.
fn offer<'a>(catalogue: &Catalogue, plan: &'a str, paid_by: PaidBy) -> Result<Offer<'a>, SaleError> {
    require_plan(catalogue, plan)?;
    let price = catalogue.plan(plan).and_then(|plan| plan.price);
    match (price, paid_by) {
        (Some(price), _) => Ok(Offer { plan, price }),
        (None, PaidBy::Operator) => Ok(Offer { plan, price: NanoUsd(0) }),
        (None, _) => Err(SaleError::NotForSale(plan.to_owned())),
    }
}

fn default_plan(catalogue: &Catalogue) -> Result<&str, SaleError> {
    catalogue.default_plan().map(|plan| &*plan.name).ok_or(SaleError::NoPlans)
}

/// Begins an account's subscription.
///
/// # Errors
/// There is no such plan, or it is not for sale; the account has another already, or not the credit.
pub async fn subscribe(
    store: &Store,
    catalogue: &Catalogue,
    account_id: &str,
    (plan, paid_by): (&str, PaidBy),
    ends_at_ms: Option<i64>,
    now_ms: i64,
) -> Result<Subscription, SaleError> {
    let offer = offer(catalogue, plan, paid_by)?;
    Ok(store.subscribe(account_id, offer, paid_by, ends_at_ms, now_ms).await?)
}

/// Puts an account's subscription on another plan: at once where that costs more, else from the period's end on. The default plan is
/// what there is without a subscription, so going there is to cancel. Who pays stays as it is where nothing is said.
///
/// # Errors
/// There is no such plan, or it is not for sale; the account has no subscription, or not the credit.
pub async fn change_plan(
    store: &Store,
    catalogue: &Catalogue,
    account_id: &str,
    (plan, paid_by): (&str, Option<PaidBy>),
    now_ms: i64,
) -> Result<Subscription, SaleError> {
    require_plan(catalogue, plan)?;
    let present = store.subscription(account_id).await?;
    let paid_by = paid_by.or(present.as_ref().map(|present| present.paid_by)).unwrap_or(PaidBy::Credit);
    let present = present.as_ref().map(|present| &*present.plan);
    let change = if present == Some(plan) {
        SubscriptionChange::Keep
    } else if plan == default_plan(catalogue)? {
        SubscriptionChange::Cancel
    } else {
        let present_price = present.and_then(|name| catalogue.plan(name)).map(|plan| plan.price.unwrap_or_default());
        SubscriptionChange::To { offer: offer(catalogue, plan, paid_by)?, present_price, paid_by }
    };
    Ok(store.change_subscription(account_id, change, now_ms).await?)
}

/// Ends an account's subscription at once.
///
/// # Errors
/// It has none.
pub async fn end_subscription(
    store: &Store,
    catalogue: &Catalogue,
    account_id: &str,
    now_ms: i64,
) -> Result<Subscription, SaleError> {
    Ok(store.end_subscription(account_id, default_plan(catalogue)?, now_ms).await?)
}

/// Renews all subscriptions that are due, or ends them. As many processes may do so at once as there are. Gives how many it was.
///
/// # Errors
/// The store cannot be asked which are due. What goes wrong with one is for the log, and the others are looked after.
pub async fn renew_due(store: &Store, catalogue: &Catalogue, now_ms: i64) -> Result<usize, StoreError> {
    let Some(default_plan) = catalogue.default_plan() else { return Ok(0) };
    let mut renewed = 0;
    loop {
        let due = store.subscriptions_due(now_ms, DUE_AT_ONCE).await?;
        let mut progress = 0;
        for seen in &due {
            let plan = seen.next_plan.as_deref().unwrap_or(&seen.plan);
            let renewal =
                Renewal { offer: offer(catalogue, plan, seen.paid_by).ok(), default_plan: &default_plan.name };
            match store.renew_subscription(seen, renewal, now_ms).await {
                Ok(Some(_)) => progress += 1,
                // Whoever came first has done it, or changed it.
                Ok(None) => {}
                Err(error) => tracing::error!(subscription = seen.id, %error, "a subscription could not be renewed"),
            }
        }
        renewed += progress;
        if progress == 0 {
            return Ok(renewed);
        }
    }
}

/// Makes vouchers with codes from the system's entropy, and stores their digests.
///
/// # Errors
/// There is no entropy, or the store failed.
pub async fn create_vouchers(
    store: &Store,
    new: &NewVouchers,
    count: u32,
    now_ms: i64,
) -> Result<(VoucherBatch, Vec<VoucherCode>), VoucherError> {
    let code = || {
        let mut entropy = [0; VoucherCode::ENTROPY_BYTES];
        getrandom::fill(&mut entropy).map_err(|_| VoucherError::Entropy)?;
        Ok(VoucherCode::from_entropy(&entropy))
    };
    let codes = (0..count.min(VOUCHERS_MAX)).map(|_| code()).collect::<Result<Vec<_>, VoucherError>>()?;
    let digests: Vec<KeyDigest> = codes.iter().map(VoucherCode::digest).collect();
    Ok((store.create_vouchers(new, &digests, now_ms).await?, codes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::relay::route::Plan;

    const DAY_MS: i64 = 86_400_000;
    const USD: i64 = 1_000_000_000;

    struct Fixture {
        store: Store,
        catalogue: Catalogue,
        id: String,
        _folder: tempfile::TempDir,
    }

    fn catalogue(plans: &[(&str, Option<i64>)]) -> Catalogue {
        let plan = |(name, usd): &(&str, Option<i64>)| Plan {
            name: (*name).into(),
            requests_per_minute: 1,
            price: usd.map(|usd| NanoUsd(usd * USD)),
            ..Plan::default()
        };
        Catalogue::new(Vec::new(), Vec::new(), plans.iter().map(plan).map(Arc::new).collect())
    }

    impl Fixture {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&format!("sqlite://{}/tollgate.db", folder.path().display())).await.unwrap();
            let id = store.create_account("Ada", "free", 1).await.unwrap().id;
            store.credit(&id, NanoUsd(100 * USD), None, 1).await.unwrap();
            let plans = [("inner", None), ("pro", Some(29)), ("free", Some(0)), ("starter", Some(9))];
            Self { store, catalogue: catalogue(&plans), id, _folder: folder }
        }

        async fn start(&self, plan: &str, paid_by: PaidBy) -> Result<Subscription, SaleError> {
            subscribe(&self.store, &self.catalogue, &self.id, (plan, paid_by), None, 0).await
        }

        async fn to(&self, plan: &str) -> Result<Subscription, SaleError> {
            change_plan(&self.store, &self.catalogue, &self.id, (plan, None), DAY_MS).await
        }

        async fn stands(&self) -> (String, i64) {
            let account = self.store.account(&self.id).await.unwrap();
            (account.plan, account.balance.0 / USD)
        }
    }

    #[tokio::test]
    async fn the_default_plan_is_the_cheapest_or_the_one_that_is_marked() {
        let fixture = Fixture::new().await;
        assert_eq!(default_plan(&fixture.catalogue).unwrap(), "inner", "what has no price costs nothing");
        let marked = Plan { name: "dear".into(), price: Some(NanoUsd(9)), is_default: true, ..Plan::default() };
        let cheap = Plan { name: "cheap".into(), price: Some(NanoUsd(1)), ..Plan::default() };
        let of = |plans: Vec<Plan>| Catalogue::new(Vec::new(), Vec::new(), plans.into_iter().map(Arc::new).collect());
        assert_eq!(default_plan(&of(vec![marked.clone(), cheap.clone()])).unwrap(), "dear");
        assert_eq!(default_plan(&of(vec![Plan { is_default: false, ..marked }, cheap])).unwrap(), "cheap");
        assert!(matches!(default_plan(&of(Vec::new())), Err(SaleError::NoPlans)));
    }

    #[tokio::test]
    async fn only_what_has_a_price_is_sold_and_the_operator_gives_anything() {
        let fixture = Fixture::new().await;
        assert!(matches!(fixture.start("inner", PaidBy::Credit).await, Err(SaleError::NotForSale(_))));
        assert!(matches!(fixture.start("none", PaidBy::Operator).await, Err(SaleError::Plan(_))));
        fixture.start("inner", PaidBy::Operator).await.unwrap();
        assert_eq!(fixture.stands().await, ("inner".into(), 100));
    }

    #[tokio::test]
    async fn every_subscription_that_is_due_is_renewed_at_the_prices_of_the_day() {
        let fixture = Fixture::new().await;
        fixture.start("starter", PaidBy::Credit).await.unwrap();
        let other = fixture.store.create_account("Bob", "free", 1).await.unwrap().id;
        let plan = ("pro", PaidBy::Operator);
        subscribe(&fixture.store, &fixture.catalogue, &other, plan, None, 0).await.unwrap();
        let dearer = catalogue(&[("free", Some(0)), ("starter", Some(10)), ("pro", Some(29))]);
        assert_eq!(renew_due(&fixture.store, &dearer, 30 * DAY_MS).await.unwrap(), 0);
        assert_eq!(renew_due(&fixture.store, &dearer, 31 * DAY_MS).await.unwrap(), 2);
        assert_eq!(renew_due(&fixture.store, &dearer, 31 * DAY_MS).await.unwrap(), 0);
        assert_eq!(fixture.stands().await, ("starter".into(), 100 - 9 - 10));
        assert_eq!(fixture.store.account(&other).await.unwrap().plan, "pro");
        let without = catalogue(&[("free", Some(0)), ("pro", Some(29))]);
        assert_eq!(renew_due(&fixture.store, &without, 65 * DAY_MS).await.unwrap(), 2);
        assert_eq!(fixture.stands().await, ("free".into(), 81));
    }

    #[tokio::test]
    async fn to_the_default_plan_is_to_cancel() {
        let mut fixture = Fixture::new().await;
        fixture.catalogue = catalogue(&[("free", Some(0)), ("starter", Some(9)), ("pro", Some(29))]);
        fixture.start("pro", PaidBy::Credit).await.unwrap();
        assert_eq!(fixture.to("starter").await.unwrap().next_plan.as_deref(), Some("starter"));
        let cancelled = fixture.to("free").await.unwrap();
        assert_eq!((cancelled.renews, cancelled.next_plan.as_deref()), (false, None));
        assert!(fixture.to("pro").await.unwrap().renews, "staying takes that back");
        let ended = end_subscription(&fixture.store, &fixture.catalogue, &fixture.id, DAY_MS).await.unwrap();
        assert_eq!((ended.end_reason.as_deref(), fixture.stands().await), (Some("ended"), ("free".into(), 71)));
    }

    #[tokio::test]
    async fn codes_are_all_different_and_each_is_good() {
        let fixture = Fixture::new().await;
        let new = NewVouchers { amount: NanoUsd(USD), note: None, expires_at_ms: None };
        let (batch, codes) = create_vouchers(&fixture.store, &new, 20, 0).await.unwrap();
        assert_eq!((batch.vouchers, codes.len()), (20, 20));
        for code in &codes {
            let typed = VoucherCode::parse(&code.expose().to_lowercase()).unwrap();
            fixture.store.redeem_voucher(&fixture.id, Some(&typed.digest()), 0).await.unwrap();
        }
        assert_eq!(fixture.stands().await, ("free".into(), 120));
    }
}
