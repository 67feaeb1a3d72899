//! Subscriptions through their days, at times that the tests name.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::fixture::{Fixture, record};
use super::super::{AuditFilter, CreditKind, Store, StoreError};
use super::*;

const USD: i64 = 1_000_000_000;

fn at(date: &str) -> i64 {
    let text = if date.len() == 10 { format!("{date}T00:00:00Z") } else { format!("{date}:00Z") };
    OffsetDateTime::parse(&text, &Rfc3339).unwrap().unix_timestamp() * 1_000
}

fn offer(plan: &str) -> Offer<'_> {
    let usd = match plan {
        "starter" => 9,
        "pro" => 29,
        "max" => 99,
        _ => 0,
    };
    Offer { plan, price: NanoUsd(usd * USD) }
}

impl Fixture {
    async fn subscribe(&self, plan: &str, paid_by: PaidBy, date: &str) -> Result<Subscription, StoreError> {
        self.store.subscribe(&self.account_id, offer(plan), paid_by, None, at(date)).await
    }

    async fn to(&self, plan: &str, date: &str) -> Result<Subscription, StoreError> {
        let present = self.store.subscription(&self.account_id).await.unwrap().unwrap().plan;
        let present_price = Some(offer(&present).price);
        let to = SubscriptionChange::To { offer: offer(plan), present_price, paid_by: PaidBy::Credit };
        self.change(to, date).await
    }

    async fn change(&self, change: SubscriptionChange<'_>, date: &str) -> Result<Subscription, StoreError> {
        self.store.change_subscription(&self.account_id, change, at(date)).await
    }

    /// What the loop does, with the prices that there are. Gives how many were looked after.
    async fn renew(&self, date: &str) -> usize {
        let due = self.store.subscriptions_due(at(date), 100).await.unwrap();
        for seen in &due {
            let next = seen.next_plan.as_deref().unwrap_or(&seen.plan);
            let renewal = Renewal { offer: (next != "gone").then(|| offer(next)), default_plan: "free" };
            self.store.renew_subscription(seen, renewal, at(date)).await.unwrap();
        }
        due.len()
    }

    /// The account's plan, and its balance in whole USD.
    async fn stands(&self) -> (String, i64) {
        let account = self.account().await;
        assert_eq!(account.balance.0 % USD, 0, "{account:?}");
        assert_eq!(self.store.audit().await.unwrap(), []);
        (account.plan, account.balance.0 / USD)
    }

    async fn actions(&self) -> Vec<String> {
        let filter = AuditFilter { subject_id: Some(self.account_id.clone()), since_ms: None };
        let entries = self.store.audit_entries(&filter, None, 100).await.unwrap();
        entries.into_iter().map(|entry| entry.action).filter(|action| action.starts_with("sub")).rev().collect()
    }
}

fn is(plan: &str, usd: i64) -> (String, i64) {
    (plan.to_owned(), usd)
}

#[tokio::test]
async fn a_plan_is_paid_from_credit_month_by_month() {
    let fixture = Fixture::with_credit("30").await;
    let began = fixture.subscribe("starter", PaidBy::Credit, "2027-01-31").await.unwrap();
    assert_eq!((began.period_ends_ms, fixture.stands().await), (at("2027-02-28"), is("starter", 21)));
    let again = fixture.subscribe("starter", PaidBy::Credit, "2027-02-01").await.unwrap();
    assert_eq!((again, fixture.stands().await), (began.clone(), is("starter", 21)), "it is there");
    assert_eq!(fixture.renew("2027-02-27T23:59").await, 0);
    assert_eq!((fixture.renew("2027-02-28").await, fixture.renew("2027-02-28").await), (1, 0));
    assert_eq!(fixture.stands().await, is("starter", 12));
    fixture.renew("2027-03-31T00:01").await;
    let third = fixture.store.subscription(&fixture.account_id).await.unwrap().unwrap();
    let period = (third.period, third.period_starts_ms, third.period_ends_ms);
    assert_eq!(period, (3, at("2027-03-31"), at("2027-04-30")), "the anchor's day is kept");
    fixture.store.settle(&[record(&fixture, 3 * USD)], None).await.unwrap();
    assert_eq!(fixture.stands().await, is("starter", 0));

    let credits = fixture.store.credits(&fixture.account_id).await.unwrap();
    let fees: Vec<_> = credits.iter().filter(|credit| credit.kind == CreditKind::Fee).collect();
    assert_eq!((fees.len(), fees[0].amount), (3, NanoUsd(-9 * USD)));
    assert_eq!(fees[2].note.as_deref(), Some("plan starter, 2027-01-31 to 2027-02-28"));
    let periods = fixture.store.periods_of(&fixture.account_id, 10).await.unwrap();
    assert_eq!(
        periods.iter().map(|period| period.seq).collect::<Vec<_>>(),
        fees.iter().map(|fee| Some(fee.seq)).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn without_the_credit_for_the_next_month_the_account_falls_to_the_default() {
    let fixture = Fixture::with_credit("17").await;
    let key_before = fixture.store.changes_since(i64::MAX).await.unwrap().version;
    let began = fixture.subscribe("starter", PaidBy::Credit, "2027-01-01").await.unwrap();
    assert!(fixture.store.changes_since(key_before).await.unwrap().keys.iter().all(|key| &*key.plan == "starter"));
    fixture.renew("2027-02-01").await;
    assert_eq!(fixture.stands().await, is("free", 8));
    assert_eq!(fixture.store.subscription(&fixture.account_id).await.unwrap(), None);
    let ended = &fixture.store.subscriptions_of(&fixture.account_id, 9).await.unwrap()[0];
    assert_eq!((&ended.id, ended.end_reason.as_deref()), (&began.id, Some("insufficient_credits")));
    assert_eq!(fixture.actions().await, ["subscription.start", "subscription.end"]);
    let keys = fixture.store.changes_since(key_before).await.unwrap().keys;
    assert_eq!(keys.iter().map(|key| &*key.plan).collect::<Vec<_>>(), ["free"], "the relay is told");

    let error = fixture.subscribe("pro", PaidBy::Credit, "2027-02-01").await.unwrap_err();
    let StoreError::NotEnoughCredit { needed, balance } = error else { panic!("{error}") };
    assert_eq!((needed, balance, fixture.stands().await), (NanoUsd(29 * USD), NanoUsd(8 * USD), is("free", 8)));
}

#[tokio::test]
async fn up_is_at_once_and_what_is_unused_is_taken_off() {
    let fixture = Fixture::with_credit("100").await;
    fixture.subscribe("starter", PaidBy::Credit, "2027-04-01").await.unwrap();
    // Ten of thirty days are used: six of nine dollars are not.
    let up = fixture.to("pro", "2027-04-11").await.unwrap();
    assert_eq!((up.plan.as_str(), up.period_ends_ms), ("pro", at("2027-05-11")));
    assert_eq!(fixture.stands().await, is("pro", 100 - 9 - 29 + 6));
    assert_eq!(fixture.to("pro", "2027-04-12").await.unwrap(), up, "it is so already");
    assert_eq!(up.fee_of_change(NanoUsd(99 * USD), at("2027-04-11") + 1).0, 70 * USD, "to the cent, for the customer");
    assert_eq!(fixture.renew("2027-05-01").await, 0, "the month that was begun is no more");
    fixture.renew("2027-05-11").await;
    assert_eq!(fixture.stands().await, is("pro", 68 - 29));
    let error = fixture.to("max", "2027-05-11").await.unwrap_err();
    assert!(matches!(error, StoreError::NotEnoughCredit { needed: NanoUsd(70_000_000_000), .. }), "{error}");
    assert_eq!(fixture.stands().await, is("pro", 39));
}

#[tokio::test]
async fn down_is_at_the_periods_end() {
    let fixture = Fixture::with_credit("100").await;
    fixture.subscribe("pro", PaidBy::Credit, "2027-01-15").await.unwrap();
    let down = fixture.to("starter", "2027-01-20").await.unwrap();
    assert_eq!((down.plan.as_str(), down.next_plan.as_deref()), ("pro", Some("starter")));
    assert_eq!(fixture.stands().await, is("pro", 71));
    fixture.renew("2027-02-15").await;
    assert_eq!(fixture.stands().await, is("starter", 62));
    fixture.to("pro", "2027-02-15").await.unwrap();
    assert_eq!(fixture.stands().await, is("pro", 62 - 29 + 9), "up on the first day, nothing is used");
}

#[tokio::test]
async fn a_cancellation_is_at_the_periods_end_and_can_be_thought_better_of() {
    let fixture = Fixture::with_credit("100").await;
    fixture.subscribe("pro", PaidBy::Credit, "2027-01-15").await.unwrap();
    for _ in 0..2 {
        assert!(!fixture.change(SubscriptionChange::Cancel, "2027-01-16").await.unwrap().renews);
    }
    assert!(fixture.change(SubscriptionChange::Keep, "2027-01-17").await.unwrap().renews);
    fixture.change(SubscriptionChange::Cancel, "2027-01-18").await.unwrap();
    let change = "subscription.change";
    assert_eq!(fixture.actions().await, ["subscription.start", change, change, change], "a repeat changes nothing");
    fixture.renew("2027-02-15").await;
    assert_eq!(fixture.stands().await, is("free", 71));
    let error = fixture.change(SubscriptionChange::Cancel, "2027-02-16").await.unwrap_err();
    assert!(matches!(error, StoreError::NotSubscribed(_)), "{error}");
}

#[tokio::test]
async fn it_ends_by_date_or_at_once() {
    let fixture = Fixture::with_credit("100").await;
    let (id, store) = (&fixture.account_id, &fixture.store);
    store.subscribe(id, offer("pro"), PaidBy::Operator, Some(at("2027-02-20")), at("2027-01-15")).await.unwrap();
    fixture.renew("2027-02-15").await;
    assert_eq!(fixture.stands().await, is("pro", 100), "the operator pays");
    assert_eq!(fixture.renew("2027-02-19").await, 0);
    fixture.change(SubscriptionChange::EndAt(at("2027-02-18")), "2027-02-17").await.unwrap();
    fixture.renew("2027-02-18").await;
    assert_eq!(fixture.stands().await, is("free", 100));
    fixture.subscribe("starter", PaidBy::Credit, "2027-03-01").await.unwrap();
    store.end_subscription(id, "free", at("2027-03-02")).await.unwrap();
    assert_eq!(fixture.stands().await, is("free", 91));
    assert!(matches!(store.end_subscription(id, "free", 1).await, Err(StoreError::NotSubscribed(_))));
    let reasons: Vec<_> =
        store.subscriptions_of(id, 9).await.unwrap().into_iter().filter_map(|one| one.end_reason).collect();
    assert_eq!(reasons, ["ended", "end_date"]);
}

#[tokio::test]
async fn months_in_which_nobody_renewed_are_not_charged() {
    let fixture = Fixture::with_credit("100").await;
    fixture.subscribe("starter", PaidBy::Credit, "2027-01-31").await.unwrap();
    fixture.renew("2027-06-10").await;
    let now = fixture.store.subscription(&fixture.account_id).await.unwrap().unwrap();
    assert_eq!((now.period_starts_ms, now.period_ends_ms), (at("2027-05-31"), at("2027-06-30")));
    assert_eq!((fixture.stands().await, fixture.renew("2027-06-10").await), (is("starter", 82), 0));
}

#[tokio::test]
async fn what_cannot_be_had_or_used_is_not_paid_for() {
    let fixture = Fixture::with_credit("100").await;
    fixture.subscribe("gone", PaidBy::Credit, "2027-01-01").await.unwrap();
    fixture.renew("2027-02-01").await;
    assert_eq!(fixture.stands().await, is("free", 100));
    fixture.subscribe("pro", PaidBy::Credit, "2027-02-01").await.unwrap();
    fixture.store.set_account_active(&fixture.account_id, false, at("2027-02-02")).await.unwrap();
    fixture.renew("2027-03-01").await;
    assert_eq!(fixture.stands().await, is("free", 71));
    let ended = fixture.store.subscriptions_of(&fixture.account_id, 9).await.unwrap();
    assert_eq!(
        ended.iter().filter_map(|one| one.end_reason.as_deref()).collect::<Vec<_>>(),
        ["suspended", "plan_gone"]
    );
}

#[tokio::test]
async fn a_plan_that_costs_nothing_is_renewed_whatever_is_owed() {
    let fixture = Fixture::with_credit("1").await;
    fixture.subscribe("free", PaidBy::Credit, "2027-01-01").await.unwrap();
    fixture.store.credit(&fixture.account_id, NanoUsd(-3 * USD), None, 1).await.unwrap();
    fixture.renew("2027-02-01").await;
    assert_eq!(fixture.stands().await, is("free", -2));
    assert_eq!(fixture.store.subscription(&fixture.account_id).await.unwrap().unwrap().period, 2);
}

#[tokio::test]
async fn the_plan_of_who_has_a_subscription_is_changed_there() {
    let fixture = Fixture::with_credit("100").await;
    fixture.subscribe("pro", PaidBy::Credit, "2027-01-01").await.unwrap();
    let error = fixture.store.set_plan(&fixture.account_id, "max", at("2027-01-02")).await.unwrap_err();
    assert!(matches!(error, StoreError::Subscribed { .. }), "{error}");
    let error = fixture.subscribe("max", PaidBy::Credit, "2027-01-02").await.unwrap_err();
    assert!(matches!(error, StoreError::Subscribed { .. }), "{error}");
    fixture.store.set_plan(&fixture.account_id, "pro", 1).await.unwrap();
    assert_eq!(fixture.stands().await, is("pro", 71));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_renew_once() {
    let fixture = Fixture::with_credit("100").await;
    fixture.subscribe("starter", PaidBy::Credit, "2027-01-01").await.unwrap();
    let other = Store::open(&fixture.url).await.unwrap();
    let seen = fixture.store.subscriptions_due(at("2027-02-01"), 9).await.unwrap().remove(0);
    let renewing: Vec<_> = (0..8)
        .map(|turn| {
            let (store, seen) = (if turn % 2 == 0 { fixture.store.clone() } else { other.clone() }, seen.clone());
            tokio::spawn(async move {
                let renewal = Renewal { offer: Some(offer("starter")), default_plan: "free" };
                store.renew_subscription(&seen, renewal, at("2027-02-01")).await.unwrap().is_some()
            })
        })
        .collect();
    let mut renewed = 0;
    for one in renewing {
        renewed += u32::from(one.await.unwrap());
    }
    assert_eq!((renewed, fixture.stands().await), (1, is("starter", 82)));
}

#[tokio::test]
async fn a_refused_step_leaves_nothing() {
    let fixture = Fixture::with_credit("8").await;
    let before = fixture.store.balances_since(i64::MAX).await.unwrap().seq;
    assert!(fixture.subscribe("starter", PaidBy::Credit, "2027-01-01").await.is_err());
    assert!(fixture.change(SubscriptionChange::Keep, "2027-01-01").await.is_err());
    let nobody = fixture.store.subscribe("acct_none", offer("pro"), PaidBy::Operator, None, 1).await;
    assert!(matches!(nobody, Err(StoreError::UnknownAccount(_))));
    assert_eq!(fixture.store.balances_since(i64::MAX).await.unwrap().seq, before);
    assert!(fixture.actions().await.is_empty());
}
