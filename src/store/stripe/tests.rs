//! What follows from what Stripe told, in any order.

use proptest::prelude::*;

use super::super::fixture::{Fixture, is_in_postgres};
use super::*;
use crate::relay::stripe::Payment;
use crate::store::engine::query_scalar;

const DAY_MS: i64 = 86_400_000;
const NOW: i64 = 1_000 * DAY_MS;
const CENT: i64 = NANO_USD_PER_CENT;

fn event(id: &str, created_ms: i64, told: Told) -> Event {
    Event { id: id.into(), kind: "test".into(), created_ms, told }
}

fn paid(fixture: &Fixture, cents: i64) -> Told {
    let account = fixture.account_id.clone();
    Told::Paid(Payment { payment_intent: "pi_1".into(), account, cents })
}

fn refunded(cents: i64) -> Told {
    Told::Refunded { payment_intent: "pi_1".into(), cents }
}

fn disputed(cents: i64) -> Told {
    Told::Disputed { payment_intent: "pi_1".into(), cents }
}

/// A month of that price that begins on that day from now.
fn invoice(price: &str, day: i64) -> Told {
    Told::Invoice(Invoice {
        subscription: "sub_1".into(),
        account: None,
        price: price.into(),
        starts_ms: NOW + day * DAY_MS,
        ends_ms: NOW + (day + 30) * DAY_MS,
        cents: if price == "pro" { 2_900 } else { 900 },
    })
}

fn state(price: &str, renews: bool, is_over: bool) -> Told {
    let (subscription, price) = ("sub_1".into(), Some(price.to_owned()));
    Told::State(State { subscription, account: None, price, renews, is_over })
}

fn of_account(fixture: &Fixture) -> Told {
    Told::Subscribed { subscription: "sub_1".into(), account: fixture.account_id.clone() }
}

impl Fixture {
    async fn take(&self, event: &Event) -> StripeOutcome {
        self.take_at(event, NOW).await
    }

    /// Prices are called as their plans are, but for one that no plan has.
    async fn take_at(&self, event: &Event, now_ms: i64) -> StripeOutcome {
        let price = match &event.told {
            Told::Invoice(invoice) => Some(&*invoice.price),
            Told::State(state) => state.price.as_deref(),
            _ => None,
        };
        let plans = StripePlans { of_price: price.filter(|price| *price != "none"), default: "free" };
        self.store.take_stripe_event(event, plans, now_ms).await.unwrap()
    }

    async fn tell(&self, id: &str, created_ms: i64, told: Told) -> StripeOutcome {
        self.take(&event(id, created_ms, told)).await
    }

    /// Plan, cents above those of the beginning, and what the subscription says of what comes.
    async fn stands_at_stripe(&self) -> (String, i64, Option<(i64, bool, Option<String>)>) {
        assert_eq!(self.store.audit().await.unwrap(), []);
        let (account, present) = (self.account().await, self.store.subscription(&self.account_id).await.unwrap());
        let cents = (account.balance.0 - 5_000_000_000) / CENT;
        (account.plan, cents, present.map(|present| (present.period_ends_ms, present.renews, present.next_plan)))
    }
}

#[tokio::test]
async fn credit_that_was_paid_for_comes_once() {
    let fixture = Fixture::with_credit("5").await;
    let first = event("evt_1", 1, paid(&fixture, 2_500));
    assert_eq!(
        (fixture.take(&first).await, fixture.take(&first).await),
        (StripeOutcome::Taken, StripeOutcome::Repeated)
    );
    // Completed, and paid later by another event of the same session.
    fixture.tell("evt_2", 2, paid(&fixture, 2_500)).await;
    assert_eq!(fixture.stands_at_stripe().await.1, 2_500);
    let credit = &fixture.store.credits(&fixture.account_id).await.unwrap()[0];
    assert_eq!((credit.kind, credit.note.as_deref()), (CreditKind::Grant, Some("Stripe pi_1: paid")));
}

#[tokio::test]
async fn what_is_refunded_and_contested_is_taken_back_once_and_no_more_than_was_paid() {
    let fixture = Fixture::with_credit("5").await;
    fixture.tell("evt_1", 1, refunded(500)).await;
    assert_eq!(fixture.stands_at_stripe().await.1, 0, "nothing is known of it yet");
    fixture.tell("evt_2", 1, paid(&fixture, 2_500)).await;
    assert_eq!(fixture.stands_at_stripe().await.1, 2_000);
    let kinds: Vec<_> = fixture.store.credits(&fixture.account_id).await.unwrap().iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [CreditKind::Correction, CreditKind::Grant, CreditKind::Grant], "both stand in the ledger");
    fixture.tell("evt_3", 2, refunded(700)).await;
    assert_eq!(fixture.stands_at_stripe().await.1, 1_800, "amounts are in all");
    fixture.tell("evt_4", 3, disputed(2_500)).await;
    assert_eq!(fixture.stands_at_stripe().await.1, 0);
    let won = Told::DisputeWon { payment_intent: "pi_1".into() };
    fixture.tell("evt_5", 4, won).await;
    assert_eq!(fixture.stands_at_stripe().await.1, 1_800);
}

#[tokio::test]
async fn a_refund_of_what_is_spent_leaves_less_than_nothing() {
    let fixture = Fixture::with_credit("5").await;
    fixture.tell("evt_1", 1, paid(&fixture, 2_500)).await;
    fixture.store.credit(&fixture.account_id, NanoUsd(-3_000 * CENT), None, NOW).await.unwrap();
    fixture.tell("evt_2", 2, refunded(2_500)).await;
    assert_eq!(fixture.account().await.balance, NanoUsd(-2_500 * CENT));
}

#[tokio::test]
async fn a_plan_is_had_while_its_months_are_paid() {
    let fixture = Fixture::with_credit("5").await;
    fixture.tell("evt_1", 1, of_account(&fixture)).await;
    assert_eq!(fixture.stands_at_stripe().await, ("free".into(), 0, None), "nothing is paid yet");
    fixture.tell("evt_2", 1, invoice("starter", 0)).await;
    assert_eq!(fixture.stands_at_stripe().await, ("starter".into(), 0, Some((NOW + 30 * DAY_MS, true, None))));
    fixture.tell("evt_3", 2, state("pro", true, false)).await;
    assert_eq!(fixture.stands_at_stripe().await.2.unwrap().2.as_deref(), Some("pro"), "the next invoice's");
    fixture.tell("evt_4", 3, invoice("pro", 30)).await;
    assert_eq!(fixture.stands_at_stripe().await, ("pro".into(), 0, Some((NOW + 60 * DAY_MS, true, None))));
    fixture.tell("evt_5", 4, state("pro", false, false)).await;
    assert_eq!(fixture.stands_at_stripe().await.2, Some((NOW + 60 * DAY_MS, false, None)));
    fixture.tell("evt_6", 5, state("pro", false, true)).await;
    assert_eq!(fixture.stands_at_stripe().await, ("free".into(), 0, None));
    fixture.tell("evt_7", 6, invoice("pro", 60)).await;
    assert_eq!(fixture.stands_at_stripe().await.0, "free", "an end is for good");
    let periods = fixture.store.periods_of(&fixture.account_id, 9).await.unwrap();
    assert_eq!(
        periods.iter().map(|period| (&*period.plan, period.price.0 / CENT)).collect::<Vec<_>>(),
        [("pro", 2_900), ("starter", 900)]
    );
}

#[tokio::test]
async fn what_is_paid_at_stripe_is_changed_there_and_waited_for_some_days() {
    let fixture = Fixture::with_credit("5").await;
    fixture.tell("evt_1", 1, of_account(&fixture)).await;
    fixture.tell("evt_2", 1, invoice("starter", 0)).await;
    let (id, store) = (&fixture.account_id, &fixture.store);
    let cancel = super::super::SubscriptionChange::Cancel;
    assert!(matches!(store.change_subscription(id, cancel, NOW).await, Err(StoreError::PaidAtStripe)));
    let ends_ms = NOW + 30 * DAY_MS;
    assert_eq!(store.subscriptions_due(ends_ms + 2 * DAY_MS, 9).await.unwrap(), []);
    let due = store.subscriptions_due(ends_ms + 3 * DAY_MS, 9).await.unwrap();
    let renewal = super::super::Renewal { offer: None, default_plan: "free" };
    store.renew_subscription(&due[0], renewal, ends_ms + 3 * DAY_MS).await.unwrap();
    assert_eq!(fixture.account().await.plan, "free");
    let late = event("evt_3", 9, invoice("starter", 30));
    fixture.take_at(&late, ends_ms + 4 * DAY_MS).await;
    assert_eq!(fixture.account().await.plan, "starter", "paid late is paid");
}

#[tokio::test]
async fn it_takes_the_place_of_what_credit_paid() {
    let fixture = Fixture::with_credit("100").await;
    let offer = super::super::Offer { plan: "pro", price: NanoUsd(2_900 * CENT) };
    fixture.store.subscribe(&fixture.account_id, offer, PaidBy::Credit, None, NOW).await.unwrap();
    fixture.tell("evt_1", 1, of_account(&fixture)).await;
    fixture.tell("evt_2", 1, invoice("starter", 0)).await;
    let had = fixture.store.subscriptions_of(&fixture.account_id, 9).await.unwrap();
    assert_eq!(
        had.iter().map(|one| (&*one.plan, one.end_reason.as_deref())).collect::<Vec<_>>(),
        [("starter", None), ("pro", Some("replaced"))]
    );
    assert_eq!(fixture.account().await.plan, "starter");
}

#[tokio::test]
async fn what_is_not_ours_is_noted_and_does_nothing() {
    let fixture = Fixture::with_credit("5").await;
    let theirs = Told::Paid(Payment { payment_intent: "pi_9".into(), account: "acct_none".into(), cents: 1 });
    assert_eq!(fixture.tell("evt_1", 1, theirs).await, StripeOutcome::UnknownAccount);
    assert_eq!(fixture.tell("evt_2", 1, Told::OtherCurrency).await, StripeOutcome::OtherCurrency);
    assert_eq!(fixture.tell("evt_3", 1, Told::Nothing).await, StripeOutcome::Ignored);
    fixture.tell("evt_4", 1, of_account(&fixture)).await;
    assert_eq!(fixture.tell("evt_5", 1, invoice("none", 0)).await, StripeOutcome::UnknownPrice);
    assert_eq!(fixture.stands_at_stripe().await, ("free".into(), 0, None));
    let noted: Vec<String> =
        query_scalar("SELECT outcome FROM stripe_events ORDER BY id").fetch_all(&fixture.store.pool).await.unwrap();
    assert_eq!(noted, ["unknown_account", "other_currency", "ignored", "taken"]);
    assert_eq!(fixture.tell("evt_5", 1, invoice("pro", 0)).await, StripeOutcome::Taken, "it can be sent again");
}

/// Everything that is told of a payment and of a subscription's life, some of it in one second.
fn life(fixture: &Fixture) -> Vec<Event> {
    let told = [
        (1, paid(fixture, 2_500)),
        (2, refunded(300)),
        (3, refunded(700)),
        (3, disputed(1_000)),
        (5, Told::DisputeWon { payment_intent: "pi_1".into() }),
        (1, of_account(fixture)),
        (1, invoice("starter", 0)),
        (1, state("starter", true, false)),
        (2, invoice("pro", 3)),
        (2, state("pro", true, false)),
        (2, state("starter", true, false)),
        (9, state("starter", false, false)),
        (12, state("starter", false, true)),
    ];
    told.into_iter().enumerate().map(|(number, (at, told))| event(&format!("evt_{number}"), at, told)).collect()
}

/// Making two databases a case takes Postgres seconds.
fn cases() -> u32 {
    if is_in_postgres() { 6 } else { 24 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_any_repetition_ends_the_same(
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        shuffled in Just((0..13usize).collect::<Vec<_>>()).prop_shuffle(),
        known in 0..=13usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (one, other) = (Fixture::with_credit("5").await, Fixture::with_credit("5").await);
            let (events, same) = (life(&one), life(&other));
            // In the order of the world, up to a moment.
            for event in &events[..known] {
                one.take(event).await;
            }
            // The same ones in any order, some of them often.
            for index in &order {
                if known > 0 {
                    other.take(&same[index.index(known)]).await;
                }
            }
            for number in shuffled.into_iter().filter(|number| *number < known) {
                other.take(&same[number]).await;
            }
            assert_eq!(one.stands_at_stripe().await, other.stands_at_stripe().await);
        });
    }
}
