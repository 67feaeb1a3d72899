//! The forms that Stripe is asked by: `application/x-www-form-urlencoded`, nested names in brackets.

use super::ACCOUNT;

/// Fields, in order.
type Fields = Vec<(String, String)>;

/// What is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckoutOf<'a> {
    /// Credit, in whole USD.
    Credit {
        /// How much.
        usd: u32,
    },
    /// A plan by the month.
    Plan {
        /// `price_…`.
        price: &'a str,
    },
}

/// Where Stripe leads the customer afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Back<'a> {
    /// Where they paid.
    pub success: &'a str,
    /// Where they thought better of it.
    pub cancel: &'a str,
}

/// A Checkout Session of that account: `POST /v1/checkout/sessions`.
pub fn checkout_form(account: &str, of: CheckoutOf<'_>, back: Back<'_>) -> Fields {
    let mut fields = Vec::new();
    let mut add = |name: &str, value: &str| fields.push((name.to_owned(), value.to_owned()));
    let of_account = |prefix: &str| format!("{prefix}[{ACCOUNT}]");
    add("client_reference_id", account);
    add(&of_account("metadata"), account);
    add("success_url", back.success);
    add("cancel_url", back.cancel);
    add("line_items[0][quantity]", "1");
    match of {
        CheckoutOf::Credit { usd } => {
            add("mode", "payment");
            add("line_items[0][price_data][currency]", "usd");
            add("line_items[0][price_data][unit_amount]", &(u64::from(usd) * 100).to_string());
            add("line_items[0][price_data][product_data][name]", "Credit");
            add(&of_account("payment_intent_data[metadata]"), account);
        }
        CheckoutOf::Plan { price } => {
            add("mode", "subscription");
            add("line_items[0][price]", price);
            // What renews it years later tells whose it is, too.
            add(&of_account("subscription_data[metadata]"), account);
        }
    }
    fields
}

/// Whether a subscription ends with its period: `POST /v1/subscriptions/{id}`.
pub fn cancel_form(cancel: bool) -> Fields {
    vec![("cancel_at_period_end".to_owned(), cancel.to_string())]
}

/// Another plan for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanSwitch<'a> {
    /// `si_…`: what of the subscription it is.
    pub item: &'a str,
    /// `price_…`: what it is to be.
    pub price: &'a str,
    /// At once, with what is unused taken off; else from the next invoice on.
    pub at_once: bool,
}

/// Another plan for a subscription: `POST /v1/subscriptions/{id}`. What cannot be paid changes nothing.
pub fn switch_form(switch: PlanSwitch<'_>) -> Fields {
    let mut fields = Vec::new();
    let mut add = |name: &str, value: &str| fields.push((name.to_owned(), value.to_owned()));
    add("items[0][id]", switch.item);
    add("items[0][price]", switch.price);
    add("cancel_at_period_end", "false");
    if switch.at_once {
        add("proration_behavior", "always_invoice");
        add("billing_cycle_anchor", "now");
        add("payment_behavior", "error_if_incomplete");
    } else {
        add("proration_behavior", "none");
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'f>(fields: &'f Fields, name: &str) -> Option<&'f str> {
        let mut found = fields.iter().filter(|(field, _)| field == name).map(|(_, value)| &**value);
        let first = found.next();
        assert!(found.next().is_none(), "{name} is there twice");
        first
    }

    #[test]
    fn a_session_says_whose_it_is_wherever_it_is_looked_for() {
        let back = Back { success: "https://t/paid", cancel: "https://t/" };
        let credit = checkout_form("acct_1", CheckoutOf::Credit { usd: 25 }, back);
        assert_eq!(value(&credit, "line_items[0][price_data][unit_amount]"), Some("2500"));
        assert_eq!(value(&credit, "payment_intent_data[metadata][tollgate_account]"), Some("acct_1"));
        let plan = checkout_form("acct_1", CheckoutOf::Plan { price: "price_pro" }, back);
        assert_eq!(value(&plan, "line_items[0][price]"), Some("price_pro"));
        assert_eq!(value(&plan, "subscription_data[metadata][tollgate_account]"), Some("acct_1"));
        for (fields, mode) in [(&credit, "payment"), (&plan, "subscription")] {
            assert_eq!(value(fields, "mode"), Some(mode));
            assert_eq!(value(fields, "client_reference_id"), Some("acct_1"));
            assert_eq!(value(fields, "metadata[tollgate_account]"), Some("acct_1"));
            assert_eq!(value(fields, "success_url"), Some("https://t/paid"));
        }
    }

    #[test]
    fn up_is_paid_at_once_and_down_with_the_next_invoice() {
        let up = switch_form(PlanSwitch { item: "si_1", price: "price_max", at_once: true });
        assert_eq!(value(&up, "proration_behavior"), Some("always_invoice"));
        assert_eq!(value(&up, "billing_cycle_anchor"), Some("now"));
        let down = switch_form(PlanSwitch { item: "si_1", price: "price_starter", at_once: false });
        assert_eq!((value(&down, "proration_behavior"), value(&down, "billing_cycle_anchor")), (Some("none"), None));
        assert_eq!(value(&cancel_form(true), "cancel_at_period_end"), Some("true"));
    }
}
