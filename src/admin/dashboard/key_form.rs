//! The form by which a customer makes a key: what may stand in it, and what was wrong with what did.

use ipnet::IpNet;

use super::form::Fields;
use super::shown::count;
use crate::admin::value;
use crate::relay::meter::NanoUsd;
use crate::relay::route::{Catalogue, Plan};
use crate::store::{KeyTerms, day_begins_ms};

const DAY_MS: i64 = 86_400_000;
/// How many networks a key may be bound to.
const NETWORKS_MAX: usize = 50;

/// What was typed, and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct KeyForm {
    pub(super) name: String,
    pub(super) rpm: String,
    pub(super) tpm: String,
    pub(super) concurrency: String,
    pub(super) budget: String,
    pub(super) expires: String,
    pub(super) allow_ip: String,
    pub(super) models: Vec<Choice>,
    mistakes: Vec<(&'static str, String)>,
}

/// A model that the key may be bound to.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) id: String,
    pub(super) is_chosen: bool,
}

impl KeyForm {
    /// What was typed, or nothing yet.
    pub(super) fn new(typed: &Fields, catalogue: &Catalogue, plan: Option<&Plan>) -> Self {
        let text = |name| typed.text(name).to_owned();
        let ids = allowed_models(catalogue, plan);
        let choice = |id: String| Choice { is_chosen: typed.all("models").any(|chosen| chosen == id), id };
        Self {
            name: text("name"),
            rpm: text("rpm"),
            tpm: text("tpm"),
            concurrency: text("concurrency"),
            budget: text("budget"),
            expires: text("expires"),
            allow_ip: text("allow_ip"),
            models: ids.map(choice).collect(),
            mistakes: Vec::new(),
        }
    }

    /// What is wrong with a field; empty where nothing is.
    pub(super) fn wrong(&self, field: &str) -> &str {
        self.mistakes.iter().find(|(own, _)| *own == field).map_or("", |(_, wrong)| wrong)
    }

    pub(super) fn has_mistakes(&self) -> bool {
        !self.mistakes.is_empty()
    }

    /// Whether what is folded away at first has something in it.
    pub(super) fn has_more(&self) -> bool {
        [&self.tpm, &self.concurrency, &self.allow_ip].iter().any(|text| !text.is_empty())
    }

    /// The key's name and terms. `None` where something is wrong, which [`KeyForm::wrong`] tells then.
    pub(super) fn read(&mut self, typed: &Fields, plan: Option<&Plan>, now_ms: i64) -> Option<(String, KeyTerms)> {
        let Some(plan) = plan else {
            self.refuse("name", "Your plan is not known any more. Ask the operator.");
            return None;
        };
        let name = value::name(&self.name).map_err(|wrong| self.refuse("name", &format!("The name {wrong}."))).ok();
        let rpm = self.limit("rpm", "requests a minute", Some(plan.requests_per_minute.into()));
        let tpm = self.limit("tpm", "tokens a minute", plan.tokens_per_minute);
        let concurrency = self.limit("concurrency", "requests at once", plan.concurrent_requests.map(u64::from));
        let (budget, expires_at_ms) = (self.read_budget(), self.read_expiry(now_ms));
        let (models, allow_ip) = (self.read_models(typed), self.read_networks());
        if self.has_mistakes() {
            return None;
        }
        let small = |limit: Option<u64>| limit.and_then(|limit| u32::try_from(limit).ok());
        let terms = KeyTerms {
            requests_per_minute: small(rpm),
            tokens_per_minute: tpm,
            concurrent_requests: small(concurrency),
            budget,
            models,
            allow_ip,
            expires_at_ms,
            within_plan: true,
        };
        Some((name?, terms))
    }

    pub(super) fn refuse(&mut self, field: &'static str, wrong: &str) {
        self.mistakes.push((field, wrong.to_owned()));
    }

    /// A limit of the key's own, at most the plan's; none where nothing was typed.
    fn limit(&mut self, field: &'static str, what: &str, plans: Option<u64>) -> Option<u64> {
        let typed = match field {
            "rpm" => &self.rpm,
            "tpm" => &self.tpm,
            _ => &self.concurrency,
        };
        if typed.is_empty() {
            return None;
        }
        // Whatever the plan allows, the store's column is this wide.
        let widest = if field == "tpm" { i64::MAX.unsigned_abs() } else { u32::MAX.into() };
        let limit = typed.parse().ok().filter(|limit| (1..=widest).contains(limit));
        let wrong = match (limit, plans) {
            (None, _) => "Write a whole number from 1, or nothing for the plan's limit.".to_owned(),
            (Some(limit), Some(plans)) if limit > plans => {
                format!("Your plan allows at most {} {what}.", count(plans))
            }
            (Some(limit), _) => return Some(limit),
        };
        self.refuse(field, &wrong);
        None
    }

    fn read_budget(&mut self) -> Option<NanoUsd> {
        let typed = self.budget.strip_prefix('$').unwrap_or(&self.budget);
        if typed.is_empty() {
            return None;
        }
        match value::budget(typed) {
            Ok(budget) => Some(budget),
            Err(wrong) => {
                self.refuse("budget", &format!("The budget {wrong}."));
                None
            }
        }
    }

    /// A key is good until the end of its last day, UTC.
    fn read_expiry(&mut self, now_ms: i64) -> Option<i64> {
        if self.expires.is_empty() {
            return None;
        }
        match day_begins_ms(&self.expires).and_then(|begins| begins.checked_add(DAY_MS)) {
            Some(ends) if ends > now_ms => return Some(ends),
            Some(_) => self.refuse("expires", "This day is over."),
            None => self.refuse("expires", "Write a day as 2027-01-31, or nothing."),
        }
        None
    }

    /// The models that were chosen; all where none was.
    fn read_models(&mut self, typed: &Fields) -> Option<Vec<String>> {
        let chosen: Vec<String> = typed.all("models").map(str::to_owned).collect();
        if chosen.iter().any(|id| !self.models.iter().any(|choice| choice.id == *id)) {
            self.refuse("models", "One of these models is not there for you. The others are still chosen.");
        }
        (!chosen.is_empty()).then_some(chosen)
    }

    fn read_networks(&mut self) -> Vec<IpNet> {
        let words = self.allow_ip.split([',', ' ', '\n', '\r', '\t']).filter(|word| !word.is_empty());
        let networks: Result<Vec<_>, _> = words.map(value::network).collect();
        match networks {
            Ok(networks) if networks.len() <= NETWORKS_MAX => networks,
            Ok(_) => {
                self.refuse("allow_ip", "These are too many; write 50 at most.");
                Vec::new()
            }
            Err(wrong) => {
                self.refuse("allow_ip", &format!("Each {wrong}."));
                Vec::new()
            }
        }
    }
}

/// The ids of the models that a plan's keys may use.
pub(super) fn allowed_models<'a>(
    catalogue: &'a Catalogue,
    plan: Option<&'a Plan>,
) -> impl Iterator<Item = String> + 'a {
    let is_allowed = move |id: &str| {
        let only = plan.and_then(|plan| plan.models.as_deref());
        only.is_none_or(|only| only.iter().any(|allowed| **allowed == *id))
    };
    catalogue.models().iter().map(|model| model.id.to_string()).filter(move |id| is_allowed(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_795_000_000_000;

    fn plan() -> Plan {
        Plan {
            name: "free".into(),
            requests_per_minute: 30,
            tokens_per_minute: None,
            concurrent_requests: Some(2),
            models: None,
            price: None,
            stripe_price: None,
            is_default: false,
        }
    }

    fn read(typed: &[(&str, &str)]) -> (KeyForm, Option<(String, KeyTerms)>) {
        let text = serde_urlencoded::to_string(typed).unwrap();
        let fields = Fields::parse(text.as_bytes()).unwrap();
        let catalogue = Catalogue::new(Vec::new(), Vec::new(), Vec::new());
        let mut form = KeyForm::new(&fields, &catalogue, Some(&plan()));
        let terms = form.read(&fields, Some(&plan()), NOW_MS);
        (form, terms)
    }

    #[test]
    fn nothing_but_a_name_is_the_plans_terms() {
        assert_eq!(
            read(&[("name", " laptop ")]).1,
            Some(("laptop".into(), KeyTerms { within_plan: true, ..KeyTerms::default() }))
        );
    }

    #[test]
    fn terms_are_taken_as_they_are_written() {
        let typed = [
            ("name", "laptop"),
            ("rpm", "30"),
            ("tpm", "9000"),
            ("concurrency", "2"),
            ("budget", "$2.50"),
            ("expires", "2026-11-18"),
            ("allow_ip", "203.0.113.7, 2001:db8::/32"),
        ];
        let terms = read(&typed).1.unwrap().1;
        assert_eq!((terms.requests_per_minute, terms.tokens_per_minute), (Some(30), Some(9_000)));
        assert_eq!((terms.concurrent_requests, terms.budget), (Some(2), Some(NanoUsd(2_500_000_000))));
        assert_eq!(terms.expires_at_ms, day_begins_ms("2026-11-19"), "its last day is a good one");
        assert_eq!(terms.allow_ip.len(), 2);
    }

    #[test]
    fn what_is_wrong_is_told_at_its_field_and_what_was_typed_stays() {
        for (field, typed, told) in [
            ("name", "", "must not be empty"),
            ("rpm", "31", "at most 30 requests a minute"),
            ("rpm", "0", "a whole number from 1"),
            ("rpm", "many", "a whole number from 1"),
            ("concurrency", "3", "at most 2 requests at once"),
            ("tpm", "99999999999999999999", "a whole number from 1"),
            ("budget", "-1", "decimal USD"),
            ("expires", "2026-11-17", "is over"),
            ("expires", "tomorrow", "Write a day"),
            ("allow_ip", "example.com", "an address or a network"),
            ("models", "not-there", "not there for you"),
        ] {
            let (form, terms) = read(&[("name", if field == "name" { "" } else { "laptop" }), (field, typed)]);
            assert_eq!(terms, None, "{field} {typed}");
            assert!(form.wrong(field).contains(told), "{field} {typed}: {}", form.wrong(field));
            assert!(field == "name" || form.name == "laptop");
        }
    }
}
