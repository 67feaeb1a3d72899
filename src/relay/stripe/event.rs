//! What an event tells, of all that Stripe writes into it.

use serde::Deserialize;
use serde_json::Value;

use super::ACCOUNT;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `evt_…`: the same however often it comes.
    pub id: String,
    /// Its type, as `invoice.paid`.
    pub kind: String,
    /// When what it tells was so. Milliseconds since the Unix epoch, to the second.
    pub created_ms: i64,
    /// What it tells.
    pub told: Told,
}

/// What an event tells. Each is the state of something, so that it can be told late, twice, or before what it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Credit was paid for.
    Paid(Payment),
    /// So much of a payment was given back, in all. Cents.
    Refunded {
        /// The payment.
        payment_intent: String,
        /// In all.
        cents: i64,
    },
    /// A payment is contested. Cents.
    Disputed {
        /// The payment.
        payment_intent: String,
        /// What of it.
        cents: i64,
    },
    /// A contested payment stays paid.
    DisputeWon {
        /// The payment.
        payment_intent: String,
    },
    /// A subscription is an account's.
    Subscribed {
        /// `sub_…`.
        subscription: String,
        /// Whose.
        account: String,
    },
    /// A period of a subscription is paid.
    Invoice(Invoice),
    /// How a subscription stands.
    State(State),
    /// Money in another currency than USD; prices and balances are in USD.
    OtherCurrency,
    /// Nothing that matters here.
    Nothing,
}

/// Credit that was paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// `pi_…`.
    pub payment_intent: String,
    /// Whose credit it is.
    pub account: String,
    /// How much.
    pub cents: i64,
}

/// A period of a subscription that is paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoice {
    /// `sub_…`.
    pub subscription: String,
    /// Whose, where that is told.
    pub account: Option<String>,
    /// `price_…`: what was sold.
    pub price: String,
    /// When the period begins. Milliseconds since the Unix epoch.
    pub starts_ms: i64,
    /// When it ends.
    pub ends_ms: i64,
    /// What it costs.
    pub cents: i64,
}

/// How a subscription stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `sub_…`.
    pub subscription: String,
    /// Whose, where that is told.
    pub account: Option<String>,
    /// `price_…`: what the next invoice is for.
    pub price: Option<String>,
    /// Whether there is a next one.
    pub renews: bool,
    /// Whether it has ended for good.
    pub is_over: bool,
}

#[derive(Deserialize)]
struct Envelope {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    created: i64,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    object: Value,
}

impl Event {
    /// Reads an event. What it tells is [`Told::Nothing`] where that is not known or not all there: Stripe goes on to other versions, and
    /// sends what nobody asked for.
    ///
    /// # Errors
    /// It is no event.
    pub fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        let Envelope { id, kind, created, data } = serde_json::from_slice(body)?;
        let told = told(&kind, &data.object).unwrap_or(Told::Nothing);
        Ok(Self { id, kind, created_ms: created.saturating_mul(1_000), told })
    }
}

fn told(kind: &str, object: &Value) -> Option<Told> {
    match kind {
        "checkout.session.completed" | "checkout.session.async_payment_succeeded" => session(object),
        "charge.refunded" => {
            let (payment_intent, cents) = (text(object, "/payment_intent")?, cents(object, "/amount_refunded")?);
            Some(in_usd(object, Told::Refunded { payment_intent, cents }))
        }
        "charge.dispute.created" => {
            let (payment_intent, cents) = (text(object, "/payment_intent")?, cents(object, "/amount")?);
            Some(in_usd(object, Told::Disputed { payment_intent, cents }))
        }
        "charge.dispute.closed" if text(object, "/status")? == "won" => {
            Some(Told::DisputeWon { payment_intent: text(object, "/payment_intent")? })
        }
        "invoice.paid" => invoice(object),
        "customer.subscription.updated" | "customer.subscription.deleted" => state(kind, object),
        _ => None,
    }
}

fn session(object: &Value) -> Option<Told> {
    let account = text(object, "/client_reference_id")?;
    // Others may sell by the same account at Stripe: what is the relay's says so twice.
    if text(object, &format!("/metadata/{ACCOUNT}"))? != account {
        return None;
    }
    match text(object, "/mode")?.as_str() {
        "payment" if text(object, "/payment_status")? == "paid" => {
            let (payment_intent, cents) = (text(object, "/payment_intent")?, cents(object, "/amount_total")?);
            Some(in_usd(object, Told::Paid(Payment { payment_intent, account, cents })))
        }
        "subscription" => Some(Told::Subscribed { subscription: text(object, "/subscription")?, account }),
        _ => None,
    }
}

fn invoice(object: &Value) -> Option<Told> {
    let subscription =
        text(object, "/subscription").or_else(|| text(object, "/parent/subscription_details/subscription"))?;
    let account = ["/subscription_details", "/parent/subscription_details"];
    let account = account.iter().find_map(|place| text(object, &format!("{place}/metadata/{ACCOUNT}")));
    let lines = object.pointer("/lines/data")?.as_array()?;
    // What is given back for the rest of another period is a line of its own, below zero.
    let lines = lines.iter().filter_map(line).filter(|line| line.cents >= 0);
    let line = lines.max_by_key(|line| (line.ends_ms, line.cents))?;
    let Line { price, starts_ms, ends_ms, cents } = line;
    Some(in_usd(object, Told::Invoice(Invoice { subscription, account, price, starts_ms, ends_ms, cents })))
}

struct Line {
    price: String,
    starts_ms: i64,
    ends_ms: i64,
    cents: i64,
}

fn line(line: &Value) -> Option<Line> {
    let time_ms = |place| Some(line.pointer(place)?.as_i64()?.saturating_mul(1_000));
    Some(Line {
        price: text(line, "/price/id").or_else(|| text(line, "/pricing/price_details/price"))?,
        starts_ms: time_ms("/period/start")?,
        ends_ms: time_ms("/period/end")?,
        cents: line.pointer("/amount")?.as_i64()?,
    })
}

fn state(kind: &str, object: &Value) -> Option<Told> {
    let is_over = kind.ends_with(".deleted")
        || text(object, "/status").is_some_and(|status| matches!(&*status, "canceled" | "incomplete_expired"));
    let ends_with_period = object.pointer("/cancel_at_period_end").and_then(Value::as_bool).unwrap_or(false);
    let has_end = object.pointer("/cancel_at").is_some_and(|at| !at.is_null());
    Some(Told::State(State {
        subscription: text(object, "/id")?,
        account: text(object, &format!("/metadata/{ACCOUNT}")),
        price: text(object, "/items/data/0/price/id"),
        renews: !ends_with_period && !has_end,
        is_over,
    }))
}

fn in_usd(object: &Value, told: Told) -> Told {
    match text(object, "/currency").as_deref() {
        Some("usd") => told,
        _ => Told::OtherCurrency,
    }
}

fn text(object: &Value, place: &str) -> Option<String> {
    object.pointer(place)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// An amount, which is not below zero.
fn cents(object: &Value, place: &str) -> Option<i64> {
    object.pointer(place)?.as_i64().filter(|cents| *cents >= 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn told_of(kind: &str, object: Value) -> Told {
        let body = json!({"id": "evt_1", "object": "event", "type": kind, "created": 7, "data": {"object": object}});
        let event = Event::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!((&*event.id, &*event.kind, event.created_ms), ("evt_1", kind, 7_000));
        event.told
    }

    fn session(more: Value) -> Value {
        let mut session = json!({
            "object": "checkout.session", "mode": "payment", "payment_status": "paid", "payment_intent": "pi_1",
            "amount_total": 2_500, "currency": "usd", "client_reference_id": "acct_1",
            "metadata": {"tollgate_account": "acct_1"},
        });
        session.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        session
    }

    #[test]
    fn a_session_that_is_paid_is_credit() {
        let paid = Told::Paid(Payment { payment_intent: "pi_1".into(), account: "acct_1".into(), cents: 2_500 });
        assert_eq!(told_of("checkout.session.completed", session(json!({}))), paid);
        assert_eq!(told_of("checkout.session.async_payment_succeeded", session(json!({}))), paid);
        for (more, told) in [
            (json!({"payment_status": "unpaid"}), Told::Nothing),
            (json!({"metadata": {}}), Told::Nothing),
            (json!({"client_reference_id": "acct_2"}), Told::Nothing),
            (json!({"amount_total": -1}), Told::Nothing),
            (json!({"currency": "eur"}), Told::OtherCurrency),
            (
                json!({"mode": "subscription", "subscription": "sub_1", "payment_intent": null}),
                Told::Subscribed { subscription: "sub_1".into(), account: "acct_1".into() },
            ),
        ] {
            assert_eq!(told_of("checkout.session.completed", session(more.clone())), told, "{more}");
        }
    }

    #[test]
    fn what_is_taken_back_is_told_by_its_payment() {
        let charge = json!({"payment_intent": "pi_1", "amount": 2_500, "amount_refunded": 500, "currency": "usd"});
        let refunded = Told::Refunded { payment_intent: "pi_1".into(), cents: 500 };
        assert_eq!(told_of("charge.refunded", charge), refunded);
        let dispute = json!({"payment_intent": "pi_1", "amount": 2_500, "currency": "usd", "status": "won"});
        let disputed = Told::Disputed { payment_intent: "pi_1".into(), cents: 2_500 };
        assert_eq!(told_of("charge.dispute.created", dispute.clone()), disputed);
        let won = Told::DisputeWon { payment_intent: "pi_1".into() };
        assert_eq!(told_of("charge.dispute.closed", dispute), won);
        let lost = json!({"payment_intent": "pi_1", "status": "lost"});
        assert_eq!(told_of("charge.dispute.closed", lost), Told::Nothing);
    }

    #[test]
    fn an_invoice_is_read_as_older_and_newer_versions_write_it() {
        let expected = Told::Invoice(Invoice {
            subscription: "sub_1".into(),
            account: Some("acct_1".into()),
            price: "price_pro".into(),
            starts_ms: 100_000,
            ends_ms: 200_000,
            cents: 2_900,
        });
        let (period, metadata) = (json!({"start": 100, "end": 200}), json!({"tollgate_account": "acct_1"}));
        let unused = json!({"amount": -600, "period": {"start": 100, "end": 200}, "price": {"id": "price_starter"}});
        let older = json!({
            "subscription": "sub_1", "currency": "usd", "subscription_details": {"metadata": metadata},
            "lines": {"data": [unused, {"amount": 2_900, "period": period, "price": {"id": "price_pro"}}]},
        });
        assert_eq!(told_of("invoice.paid", older), expected);
        let newer = json!({
            "currency": "usd", "parent": {"subscription_details": {"subscription": "sub_1", "metadata": metadata}},
            "lines": {"data": [
                {"amount": 2_900, "period": period, "pricing": {"price_details": {"price": "price_pro"}}},
            ]},
        });
        assert_eq!(told_of("invoice.paid", newer), expected);
        let of_nothing = json!({"currency": "usd", "lines": {"data": []}});
        assert_eq!(told_of("invoice.paid", of_nothing), Told::Nothing);
    }

    #[test]
    fn a_subscription_goes_on_or_not() {
        let state = |renews, is_over| {
            Told::State(State {
                subscription: "sub_1".into(),
                account: Some("acct_1".into()),
                price: Some("price_pro".into()),
                renews,
                is_over,
            })
        };
        let with = |more: Value| {
            let mut object = json!({
                "id": "sub_1", "status": "active", "cancel_at_period_end": false, "cancel_at": null,
                "metadata": {"tollgate_account": "acct_1"}, "items": {"data": [{"price": {"id": "price_pro"}}]},
            });
            object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            object
        };
        let updated = "customer.subscription.updated";
        assert_eq!(told_of(updated, with(json!({}))), state(true, false));
        assert_eq!(told_of(updated, with(json!({"cancel_at_period_end": true}))), state(false, false));
        assert_eq!(told_of(updated, with(json!({"cancel_at": 9}))), state(false, false));
        assert_eq!(told_of(updated, with(json!({"status": "canceled"}))), state(true, true));
        assert_eq!(told_of("customer.subscription.deleted", with(json!({}))), state(true, true));
    }

    #[test]
    fn what_is_not_known_is_nothing_and_what_is_no_event_is_refused() {
        assert_eq!(told_of("customer.created", json!({"id": "cus_1"})), Told::Nothing);
        assert_eq!(told_of("charge.refunded", json!({"amount_refunded": "many"})), Told::Nothing);
        for body in ["", "[]", "{}", "{\"id\":\"evt_1\",\"type\":\"x\",\"created\":1}"] {
            assert!(Event::parse(body.as_bytes()).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Event::parse(&bytes);
        }
    }
}
