//! `[payment]`: how customers pay by themselves. So far `[payment.stripe]`.
//!
//! Without one of its secrets there is no payment, and nothing is wrong: the same files serve a machine that sells and one that does
//! not.

use super::provider::address;
use super::reader::{Table, Value};
use super::secret::{self, Credential};
use super::snapshot::StripeConfig;
use crate::relay::route::Secret;

/// Stripe's own API.
const BASE_URL: &str = "https://api.stripe.com";

/// What a top-up may be, in whole USD: Stripe takes no more at once.
const TOP_UP_USD: std::ops::RangeInclusive<u64> = 1..=999_999;

/// How many amounts are offered.
const TOP_UPS_MAX: usize = 12;

/// `[payment]` as written.
#[derive(Default)]
pub(super) struct Payment {
    pub(super) stripe: Option<StripeConfig>,
    /// Why there is none, where it was asked for.
    pub(super) left_out: Option<String>,
}

/// What a secret's place held.
enum Found {
    Secret(Secret),
    Nothing(String),
}

pub(super) fn read(value: &Value<'_>) -> Option<Payment> {
    let table = value.table()?;
    let payment = table.optional("stripe").map_or_else(|| Some(Payment::default()), |value| stripe(&value));
    table.finish();
    payment
}

fn stripe(value: &Value<'_>) -> Option<Payment> {
    const KEY: &str = "write secret_key = { env = \"STRIPE_SECRET_KEY\" }";
    const HOOK: &str = "write webhook_secret = { env = \"STRIPE_WEBHOOK_SECRET\" }, the endpoint's signing secret";
    let table = value.table()?;
    let secret_key = secret_of(&table, "secret_key", KEY);
    let webhook_secret = secret_of(&table, "webhook_secret", HOOK);
    let base_url = table.optional("base_url").map_or_else(|| Some(BASE_URL.into()), |value| url(&value));
    let top_up_usd = table.optional("top_up_usd").map_or_else(|| Some(vec![10, 25, 100]), |value| top_ups(&value));
    table.finish();
    let (secret_key, webhook_secret, base_url, top_up_usd) = (secret_key?, webhook_secret?, base_url?, top_up_usd?);
    Some(match (secret_key, webhook_secret) {
        (Found::Secret(secret_key), Found::Secret(webhook_secret)) => {
            let stripe = StripeConfig { secret_key, webhook_secret, base_url, top_up_usd };
            Payment { stripe: Some(stripe), left_out: None }
        }
        (Found::Nothing(why), _) | (_, Found::Nothing(why)) => {
            Payment { stripe: None, left_out: Some(format!("payment by Stripe is off: {why}")) }
        }
    })
}

fn secret_of(table: &Table<'_>, key: &'static str, mend: &str) -> Option<Found> {
    match secret::read(&table.required(key, mend)?)? {
        Credential::Ready(secret) => Some(Found::Secret(secret)),
        Credential::Missing { why, .. } => Some(Found::Nothing(why)),
    }
}

fn url(value: &Value<'_>) -> Option<Box<str>> {
    let text = value.string()?;
    match address(text) {
        Ok(_) => Some(text.trim_end_matches('/').into()),
        Err(why) => value.refuse(why),
    }
}

fn top_ups(value: &Value<'_>) -> Option<Vec<u32>> {
    let items = value.items()?;
    if items.len() > TOP_UPS_MAX {
        return value.refuse(format_args!("are too many to choose from; write at most {TOP_UPS_MAX}"));
    }
    let amounts: Vec<u32> =
        items.iter().map(|item| u32::try_from(item.number(TOP_UP_USD)?).ok()).collect::<Option<_>>()?;
    if amounts.iter().zip(amounts.iter().skip(1)).any(|(one, next)| one >= next) {
        return value.refuse("must rise, each amount once; sort them");
    }
    Some(amounts)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    const SECRETS: &str = "secret_key = { env = 'KEY' }\nwebhook_secret = { env = 'HOOK' }\n";

    fn environment(name: &str) -> Option<OsString> {
        match name {
            "KEY" => Some("sk_test_1".into()),
            "HOOK" => Some("whsec_1".into()),
            "EMPTY" => Some("".into()),
            _ => None,
        }
    }

    fn read_payment(toml: &str) -> (Option<Payment>, String) {
        let mut payment = None;
        let mistakes = with_root(&format!("[payment.stripe]\n{toml}"), &environment, |root| {
            payment = root.optional("payment").and_then(|value| read(&value));
        });
        (payment, mistakes_of(&mistakes))
    }

    #[test]
    fn secrets_are_enough() {
        let (payment, mistakes) = read_payment(SECRETS);
        let stripe = payment.unwrap().stripe.unwrap();
        assert_eq!((mistakes.as_str(), stripe.secret_key.expose()), ("", "sk_test_1"));
        assert_eq!((&*stripe.base_url, &*stripe.top_up_usd), (BASE_URL, &[10, 25, 100][..]));
        let toml = format!("{SECRETS}base_url = 'http://127.0.0.1:9/'\ntop_up_usd = [5]");
        let stripe = read_payment(&toml).0.unwrap().stripe.unwrap();
        assert_eq!((&*stripe.base_url, &*stripe.top_up_usd), ("http://127.0.0.1:9", &[5][..]));
    }

    #[test]
    fn without_a_secret_there_is_no_payment_and_no_mistake() {
        for place in ["{ env = 'EMPTY' }", "{ env = 'UNSET' }", "{ file = '/nonexistent/key' }"] {
            let (payment, mistakes) = read_payment(&SECRETS.replace("{ env = 'HOOK' }", place));
            let Payment { stripe, left_out } = payment.unwrap();
            assert!(mistakes.is_empty() && stripe.is_none(), "{mistakes}");
            assert!(left_out.unwrap().starts_with("payment by Stripe is off: payment.stripe.webhook_secret: "));
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (toml, told) in [
            ("webhook_secret = { env = 'HOOK' }".to_owned(), "test.toml:1: payment.stripe.secret_key is missing; "),
            (SECRETS.replace("{ env = 'KEY' }", "'sk_live_1'"), "test.toml:2: payment.stripe.secret_key: a secret "),
            (format!("{SECRETS}base_url = 'stripe'"), "test.toml:4: payment.stripe.base_url: "),
            (format!("{SECRETS}top_up_usd = [10, 10]"), "test.toml:4: payment.stripe.top_up_usd: must rise"),
            (format!("{SECRETS}top_up_usd = [0]"), "test.toml:4: payment.stripe.top_up_usd: is 0; "),
            (format!("{SECRETS}curency = 'EUR'"), "test.toml:4: unknown key \"payment.stripe.curency\"; "),
        ] {
            let (_, mistakes) = read_payment(&toml);
            assert!(mistakes.starts_with(told) && !mistakes.contains("sk_live"), "{toml}: {mistakes}");
        }
    }
}
