//! A customer's plan: what there is, to change and cancel it; credit by card and by voucher.
//!
//! What a form names is a plan or an amount of the configuration; what it costs is never the form's to say.

use askama::Template;
use axum::http::HeaderValue;
use axum::http::header::LOCATION;
use axum::response::Response;
use uuid::Uuid;

use super::answer::{Answer, Refused, page, page_as, see_other, with_forms_to};
use super::form::{Asked, Fields, Form};
use super::guard::Customer;
use super::layout::Frame;
use super::map::Map;
use super::offer::{Offer, offers};
use super::overview::limits_of;
use super::shown::{Moment, usd};
use crate::admin::sale::{self, SaleError};
use crate::admin::stripe::{self, StripeError};
use crate::config::{Snapshot, StripeConfig};
use crate::relay::auth::VoucherCode;
use crate::relay::refusal::Cause;
use crate::relay::stripe::{Back, CheckoutOf};
use crate::store::{PaidBy, StoreError, Subscription, SubscriptionChange};

/// How many months are shown.
const PERIODS: u32 = 24;

const STRIPE_API: &str = "https://api.stripe.com";

/// Where sessions that Stripe makes are.
const STRIPE_PAGES: &str = "https://checkout.stripe.com";

pub(super) fn map(map: Map) -> Map {
    map.page("/plan", show)
        .action("/plan/subscribe", subscribe)
        .action("/plan/change", change)
        .action("/plan/cancel", cancel)
        .action("/plan/keep", keep)
        .action("/plan/checkout", checkout)
        .action("/plan/voucher", redeem)
}

#[derive(Template)]
#[template(path = "plan.html")]
struct PlanPage {
    frame: Frame,
    done: &'static str,
    wrong: String,
    balance: String,
    plan: String,
    limits: String,
    state: Vec<String>,
    offers: Vec<Offer>,
    default_plan: String,
    can_cancel: bool,
    can_keep: bool,
    top_ups: Vec<u32>,
    /// Marks the forms of this page, so that one that is sent twice pays once.
    once: String,
    code: String,
    periods: Vec<Month>,
}

/// A month that was paid for.
struct Month {
    from: String,
    to: String,
    plan: String,
    price: String,
}

pub(super) fn day(at_ms: i64) -> String {
    Moment::of(at_ms).day().to_owned()
}

async fn plan_page(customer: &Customer, typed: &Fields, said: Said) -> Result<PlanPage, Refused> {
    let (who, account) = (&customer.who, &customer.account);
    let (snapshot, now_ms) = (who.dashboard.snapshot(), who.now_ms());
    // What was done may have moved it.
    let account = who.store.account(&account.id).await?;
    let present = who.store.subscription(&account.id).await?;
    let months = who.store.periods_of(&account.id, PERIODS).await?;
    let plan = snapshot.catalogue.plan(&account.plan);
    let has_card = snapshot.stripe.is_some();
    let is_own = present.as_ref().is_some_and(|present| present.paid_by != PaidBy::Operator);
    let renews = present.as_ref().is_some_and(|present| present.renews && present.next_plan.is_none());
    Ok(PlanPage {
        frame: Frame::of(who, "Plan", "/plan"),
        done: said.done,
        wrong: said.wrong,
        balance: usd(account.balance),
        limits: plan.map(|plan| limits_of(plan)).unwrap_or_default(),
        state: present.as_ref().map(state_of).unwrap_or_default(),
        offers: offers(&snapshot.catalogue, present.as_ref(), (&account.plan, has_card), now_ms),
        default_plan: snapshot.catalogue.default_plan().map(|plan| plan.name.to_string()).unwrap_or_default(),
        can_cancel: is_own && present.as_ref().is_some_and(|present| present.renews),
        can_keep: is_own && !renews,
        top_ups: snapshot.stripe.as_ref().map(|stripe| stripe.top_up_usd.clone()).unwrap_or_default(),
        once: Uuid::now_v7().simple().to_string(),
        code: typed.text("code").to_owned(),
        periods: months
            .iter()
            .map(|month| Month {
                from: day(month.starts_ms),
                to: day(month.ends_ms),
                plan: month.plan.clone(),
                price: usd(month.price),
            })
            .collect(),
        plan: account.plan,
    })
}

/// What a page says of what was done.
#[derive(Default)]
struct Said {
    done: &'static str,
    wrong: String,
}

/// What is to be known of a subscription, in sentences.
fn state_of(present: &Subscription) -> Vec<String> {
    let until = day(present.period_ends_ms);
    let paid = match present.paid_by {
        PaidBy::Credit => format!("Paid from your credit until {until}."),
        PaidBy::Operator => format!("Given to you until {until}."),
        PaidBy::Stripe => format!("Paid by card until {until}."),
    };
    let then = match (&present.next_plan, present.renews) {
        (Some(plan), _) => format!("From then on your plan is {plan}."),
        (None, true) => "It renews by itself.".to_owned(),
        (None, false) => "It is cancelled, and ends then.".to_owned(),
    };
    let ends = present.ends_at_ms.map(|at_ms| format!("It ends on {} in any case.", day(at_ms)));
    [paid, then].into_iter().chain(ends).collect()
}

async fn show(customer: Customer, Asked(asked): Asked) -> Answer {
    let done = match asked.text("done") {
        "plan" => "Your plan is changed.",
        "cancelled" => "Your plan is cancelled. You have it until the end of what is paid.",
        "kept" => "Your plan goes on.",
        "asked" => "The change is asked for. It shows here in a moment.",
        "paid" => "Thank you. What you paid for shows here in a moment.",
        "voucher" => "The voucher is redeemed.",
        _ => "",
    };
    let said = Said { done, wrong: String::new() };
    let snapshot = customer.who.dashboard.snapshot();
    let shown = page(&plan_page(&customer, &Fields::default(), said).await?)?;
    Ok(led_to_stripe(shown, &snapshot))
}

/// Forms of the page lead to where Stripe takes payments, if it does.
fn led_to_stripe(shown: Response, snapshot: &Snapshot) -> Response {
    match &snapshot.stripe {
        Some(stripe) if &*stripe.base_url == STRIPE_API => with_forms_to(shown, &[STRIPE_PAGES]),
        // Who stands in for Stripe takes payments where it is.
        Some(stripe) => with_forms_to(shown, &[STRIPE_PAGES, &stripe.base_url]),
        None => shown,
    }
}

/// The page again, with what was wrong and what was typed.
async fn again(customer: &Customer, typed: &Fields, (cause, wrong): (Cause, String)) -> Answer {
    let snapshot = customer.who.dashboard.snapshot();
    let shown = page_as(cause, &plan_page(customer, typed, Said { done: "", wrong }).await?)?;
    Ok(led_to_stripe(shown, &snapshot))
}

async fn done(customer: &Customer, what: &str) -> Answer {
    customer.who.dashboard.process().store_changed().await;
    Ok(see_other(&format!("/plan?done={what}")))
}

async fn subscribe(customer: Customer, Form(form): Form) -> Answer {
    let (who, id) = (&customer.who, &customer.account.id);
    let (snapshot, plan) = (who.dashboard.snapshot(), (form.text("plan"), PaidBy::Credit));
    match sale::subscribe(&who.store, &snapshot.catalogue, id, plan, None, who.now_ms()).await {
        Ok(_) => done(&customer, "plan").await,
        Err(error) => again(&customer, &form, of_sale(error)?).await,
    }
}

async fn change(customer: Customer, Form(form): Form) -> Answer {
    let (who, id, plan) = (&customer.who, &customer.account.id, form.text("plan"));
    let (snapshot, present) = (who.dashboard.snapshot(), who.store.subscription(id).await?);
    let offer = offers(
        &snapshot.catalogue,
        present.as_ref(),
        (&customer.account.plan, snapshot.stripe.is_some()),
        who.now_ms(),
    );
    // Only what the page offers: of what the operator gives, a customer does not choose less.
    if !offer.iter().any(|offer| offer.name == plan && !offer.change.is_empty()) {
        return again(&customer, &form, (Cause::InvalidValue, "Your plan cannot be changed to that.".to_owned())).await;
    }
    if let Some(present) = at_stripe(present.as_ref()) {
        let Ok(once) = Uuid::parse_str(form.text("once")) else { return again(&customer, &form, old_page()).await };
        return match change_at_stripe(&snapshot, present, (plan, once)).await {
            Ok(()) => done(&customer, "asked").await,
            Err(error) => again(&customer, &form, of_stripe(&error)).await,
        };
    }
    let to = (plan, Some(PaidBy::Credit));
    match sale::change_plan(&who.store, &snapshot.catalogue, id, to, who.now_ms()).await {
        Ok(_) => done(&customer, "plan").await,
        Err(error) => again(&customer, &form, of_sale(error)?).await,
    }
}

/// A subscription that is paid at Stripe, and what it is called there.
fn at_stripe(present: Option<&Subscription>) -> Option<(&Subscription, &str)> {
    let present = present.filter(|present| present.paid_by == PaidBy::Stripe)?;
    Some((present, present.stripe_subscription.as_deref()?))
}

async fn change_at_stripe(
    snapshot: &Snapshot,
    (present, subscription): (&Subscription, &str),
    (plan, once): (&str, Uuid),
) -> Result<(), StripeError> {
    let config = snapshot.stripe.as_ref().ok_or(StripeError::Odd("configuration"))?;
    let wanted = snapshot.catalogue.plan(plan).ok_or(StripeError::Odd("plan"))?;
    let price = wanted.stripe_price.as_deref().ok_or(StripeError::Odd("price"))?;
    let present_price = snapshot.catalogue.plan(&present.plan).and_then(|plan| plan.price);
    let at_once = wanted.price > present_price.or(Some(present.period_price));
    let key = format!("tollgate-{subscription}-{price}-{once}");
    stripe::change_plan(config, subscription, (price, at_once), key).await
}

async fn cancel(customer: Customer, Form(form): Form) -> Answer {
    go_on(&customer, &form, false).await
}

async fn keep(customer: Customer, Form(form): Form) -> Answer {
    go_on(&customer, &form, true).await
}

async fn go_on(customer: &Customer, form: &Fields, goes_on: bool) -> Answer {
    let (who, id) = (&customer.who, &customer.account.id);
    let (snapshot, present) = (who.dashboard.snapshot(), who.store.subscription(id).await?);
    if let (Some((_, subscription)), Some(config)) = (at_stripe(present.as_ref()), &snapshot.stripe) {
        return match stripe::set_cancelled(config, subscription, !goes_on).await {
            Ok(()) => done(customer, "asked").await,
            Err(error) => again(customer, form, of_stripe(&error)).await,
        };
    }
    if present.is_some_and(|present| present.paid_by == PaidBy::Operator) {
        let wrong = "This plan is given to you; ask who gives it.".to_owned();
        return again(customer, form, (Cause::InvalidValue, wrong)).await;
    }
    let change = if goes_on { SubscriptionChange::Keep } else { SubscriptionChange::Cancel };
    match who.store.change_subscription(id, change, who.now_ms()).await {
        Ok(_) => done(customer, if goes_on { "kept" } else { "cancelled" }).await,
        Err(error) => again(customer, form, of_store(error)?).await,
    }
}

async fn checkout(customer: Customer, Form(form): Form) -> Answer {
    let snapshot = customer.who.dashboard.snapshot();
    let config = snapshot.stripe.as_ref().ok_or_else(Refused::nothing_here)?;
    let wrong = |text: &str| (Cause::InvalidValue, text.to_owned());
    let plan = snapshot.catalogue.plan(form.text("plan"));
    let of = match (plan, form.text("usd").parse().ok()) {
        (Some(plan), _) => plan.stripe_price.as_deref().map(|price| CheckoutOf::Plan { price }),
        (None, Some(usd)) => config.top_up_usd.contains(&usd).then_some(CheckoutOf::Credit { usd }),
        (None, None) => None,
    };
    let Some(of) = of else { return again(&customer, &form, wrong("This is not for sale.")).await };
    let is_plan = matches!(of, CheckoutOf::Plan { .. });
    if is_plan && customer.who.store.subscription(&customer.account.id).await?.is_some() {
        return again(&customer, &form, wrong("You have a plan by the month already. Change that.")).await;
    }
    let Ok(once) = Uuid::parse_str(form.text("once")) else { return again(&customer, &form, old_page()).await };
    match begin_checkout(&customer, (config, &snapshot), of, once).await {
        Ok(url) => Ok(elsewhere(&url)),
        Err(error) => again(&customer, &form, of_stripe(&error)).await,
    }
}

async fn begin_checkout(
    customer: &Customer,
    (config, snapshot): (&StripeConfig, &Snapshot),
    of: CheckoutOf<'_>,
    once: Uuid,
) -> Result<String, StripeError> {
    let (id, listen) = (&customer.account.id, snapshot.listen.dashboard);
    let own = || listen.map(|address| format!("http://{address}")).unwrap_or_default();
    let base = snapshot.dashboard.public_url.as_deref().map_or_else(own, str::to_owned);
    let (success, cancel) = (format!("{base}/plan?done=paid"), format!("{base}/plan"));
    let what = match of {
        CheckoutOf::Plan { price } => price.to_owned(),
        CheckoutOf::Credit { usd } => usd.to_string(),
    };
    let key = format!("tollgate-{id}-{what}-{once}");
    stripe::begin_checkout(config, id, of, Back { success: &success, cancel: &cancel }, key).await
}

/// To another origin's page, where the customer pays.
fn elsewhere(url: &str) -> Response {
    let mut response = see_other("/plan");
    if let Ok(url) = HeaderValue::from_str(url) {
        response.headers_mut().insert(LOCATION, url);
    }
    response
}

async fn redeem(customer: Customer, Form(form): Form) -> Answer {
    let (who, id) = (&customer.who, &customer.account.id);
    let digest = VoucherCode::parse(form.text("code")).map(|code| code.digest());
    match who.store.redeem_voucher(id, digest.as_ref(), who.now_ms()).await {
        Ok(_) => done(&customer, "voucher").await,
        Err(error) => again(&customer, &form, of_store(error)?).await,
    }
}

fn old_page() -> (Cause, String) {
    (Cause::InvalidValue, "The page is old. Try again.".to_owned())
}

fn of_sale(error: SaleError) -> Result<(Cause, String), Refused> {
    match error {
        SaleError::Store(error) => of_store(error),
        SaleError::Plan(_) | SaleError::NotForSale(_) | SaleError::NoPlans => {
            Ok((Cause::InvalidValue, "This plan is not for sale.".to_owned()))
        }
    }
}

/// What a customer is told of what the store refuses.
fn of_store(error: StoreError) -> Result<(Cause, String), Refused> {
    let (cause, told) = match error {
        StoreError::NotEnoughCredit { needed, balance } => {
            let told = format!("This costs {} and your balance is {}. Add credit first.", usd(needed), usd(balance));
            return Ok((Cause::InsufficientCredits, told));
        }
        StoreError::TooManyVouchers { retry_after_ms } => {
            let minutes = retry_after_ms.unsigned_abs().div_ceil(60_000);
            let told = format!("Too many codes were wrong. Try again in {minutes} minutes.");
            return Ok((Cause::TooManyFailedAttempts, told));
        }
        StoreError::Subscribed { .. } => (Cause::Subscribed, "You have a plan by the month already. Change that."),
        StoreError::NotSubscribed(_) => (Cause::SubscriptionNotFound, "You have no plan by the month."),
        StoreError::PaidAtStripe => (Cause::PaidAtStripe, "Your plan is paid by card. Payment by card is off now."),
        StoreError::UnknownVoucher => {
            (Cause::VoucherNotFound, "This is no voucher's code. Look whether it is typed as it was given.")
        }
        StoreError::VoucherUsed => (Cause::VoucherUsed, "This voucher was redeemed before."),
        StoreError::VoucherExpired => (Cause::VoucherExpired, "This voucher has expired."),
        StoreError::VoucherRevoked => (Cause::VoucherRevoked, "This voucher was taken back."),
        error => return Err(error.into()),
    };
    Ok((cause, told.to_owned()))
}

fn of_stripe(error: &StripeError) -> (Cause, String) {
    tracing::warn!(%error, "a customer could not pay");
    match error {
        StripeError::Declined => {
            (Cause::InsufficientCredits, "The payment was declined, and nothing is changed.".to_owned())
        }
        _ => (Cause::UpstreamError, "Payment by card cannot be had at the moment. Try again.".to_owned()),
    }
}
