//! What surrounds every page: title, navigation, who is signed in, and the proof that its forms carry.

use super::assets::PATHS;
use super::form::PROOF;
use super::guard::SignedIn;
use super::map::Who;
use crate::store::{Role, User};

/// A place in the navigation.
struct Entry {
    label: &'static str,
    path: &'static str,
    who: Who,
}

const fn entry(who: Who, label: &'static str, path: &'static str) -> Entry {
    Entry { label, path, who }
}

/// The navigation in its order; everybody sees what they may.
const NAVIGATION: &[Entry] = &[
    entry(Who::Customer, "Overview", "/overview"),
    entry(Who::Customer, "Keys", "/keys"),
    entry(Who::Customer, "Usage", "/usage"),
    entry(Who::Customer, "Models", "/models"),
    entry(Who::Customer, "Credit", "/credit"),
    entry(Who::Customer, "Plan", "/plan"),
    entry(Who::Customer, "Quick start", "/start"),
    entry(Who::SignedIn, "Account", "/settings"),
    entry(Who::Operator, "Accounts", "/operator/accounts"),
    entry(Who::Operator, "People", "/operator/people"),
    entry(Who::Operator, "Keys", "/operator/keys"),
    entry(Who::Operator, "Revenue", "/operator/revenue"),
    entry(Who::Operator, "Vouchers", "/operator/vouchers"),
    entry(Who::Operator, "Providers", "/operator/providers"),
    entry(Who::Operator, "Live", "/operator/live"),
    entry(Who::Operator, "Audit log", "/operator/audit"),
    entry(Who::Operator, "Configuration", "/operator/configuration"),
];

/// A link of the navigation, as a template has it.
pub(super) struct Tab {
    pub(super) label: &'static str,
    pub(super) path: &'static str,
    pub(super) is_here: bool,
}

/// What surrounds a page.
pub(super) struct Frame {
    pub(super) title: &'static str,
    /// Who is signed in; empty where nobody is.
    pub(super) email: String,
    pub(super) own: Vec<Tab>,
    pub(super) operator: Vec<Tab>,
    /// The field that carries the proof, and the proof.
    pub(super) proof_name: &'static str,
    pub(super) proof: String,
    pub(super) home: &'static str,
    pub(super) style: &'static str,
    pub(super) script: &'static str,
    pub(super) icon: &'static str,
    /// Seconds after which the page is loaded again by browsers without script; 0 for never.
    pub(super) refresh_seconds: u32,
}

impl Frame {
    /// Around a page for nobody in particular.
    pub(super) fn bare(title: &'static str) -> Self {
        Self {
            title,
            email: String::new(),
            own: Vec::new(),
            operator: Vec::new(),
            proof_name: PROOF,
            proof: String::new(),
            home: "/",
            style: &PATHS.style,
            script: &PATHS.script,
            icon: &PATHS.icon,
            refresh_seconds: 0,
        }
    }

    /// Around a page of who is signed in. `path` is the page's place in the navigation.
    pub(super) fn of(who: &SignedIn, title: &'static str, path: &str) -> Self {
        let tabs = |wanted: &[Who]| {
            let seen = NAVIGATION.iter().filter(|entry| wanted.contains(&entry.who) && sees(&who.user, entry.who));
            seen.map(|entry| Tab { label: entry.label, path: entry.path, is_here: entry.path == path }).collect()
        };
        Self {
            email: who.user.email.clone(),
            own: tabs(&[Who::Customer, Who::SignedIn]),
            operator: tabs(&[Who::Operator]),
            proof: who.token.forms_proof(),
            home: home_of(&who.user),
            ..Self::bare(title)
        }
    }
}

fn sees(user: &User, who: Who) -> bool {
    match who {
        Who::Anyone | Who::SignedIn => true,
        Who::Customer => user.account_id.is_some(),
        Who::Operator => user.role == Role::Operator,
    }
}

/// The page on which somebody begins.
pub(super) fn home_of(user: &User) -> &'static str {
    match (&user.account_id, user.role) {
        (Some(_), _) => "/overview",
        (None, Role::Operator) => "/operator/people",
        (None, Role::Customer) => "/settings",
    }
}
