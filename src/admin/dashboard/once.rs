//! Forms that are to be sent once: where their answer shows a secret it cannot lead elsewhere, and whoever loads that page again sends
//! the form again.
//!
//! What was sent is remembered by this process, so much of it and no more. Who sends a form again after that, or to the next process,
//! does it twice.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::form::Fields;
use crate::admin::people::{PeopleError, Token};
use crate::store::User;

/// The field of the form's own number.
pub(super) const ONCE: &str = "once";

/// A form of somebody, digested: whatever was sent in that field, it takes so much room.
type Number = [u8; 32];

/// How many forms are remembered.
const FORMS_MAX: usize = 4_096;

/// A number for a form that is to be sent once.
pub(super) fn new() -> Result<String, PeopleError> {
    Ok(Token::new()?.expose())
}

/// The forms that were sent.
#[derive(Default)]
pub(super) struct Sent(Mutex<VecDeque<Entry>>);

struct Entry {
    form: Number,
    /// Where it led; empty for as long as it is worked on.
    path: String,
}

/// Whether a form comes for the first time.
pub(super) enum Turn<'a> {
    /// It does, or cannot be told from others.
    First(Working<'a>),
    /// It was sent before, and led there; empty where it is being worked on.
    Again(String),
}

/// A form that is being worked on. Dropped before it is [`Working::done`], it may be sent again.
pub(super) struct Working<'a> {
    sent: &'a Sent,
    form: Option<Number>,
}

impl Sent {
    /// Somebody sends a form, which [`new`] gave a number. One without is taken each time.
    pub(super) fn take(&self, user: &User, fields: &Fields) -> Turn<'_> {
        let Some(number) = fields.given(ONCE) else { return Turn::First(Working { sent: self, form: None }) };
        // Nobody is led where another's form led.
        let form = Sha256::digest(format!("{} {number}", user.id)).into();
        let mut sent = self.lock();
        if let Some(entry) = sent.iter().find(|entry| entry.form == form) {
            return Turn::Again(entry.path.clone());
        }
        if sent.len() >= FORMS_MAX {
            sent.pop_front();
        }
        sent.push_back(Entry { form, path: String::new() });
        Turn::First(Working { sent: self, form: Some(form) })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Working<'_> {
    /// It is done; whoever sends it again is led there.
    pub(super) fn done(mut self, path: &str) {
        let Some(form) = self.form.take() else { return };
        if let Some(entry) = self.sent.lock().iter_mut().find(|entry| entry.form == form) {
            path.clone_into(&mut entry.path);
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if let Some(form) = self.form.take() {
            self.sent.lock().retain(|entry| entry.form != form);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Role;

    fn user(id: &str) -> User {
        User {
            id: id.into(),
            email: String::new(),
            role: Role::Customer,
            account_id: None,
            active: true,
            has_password: true,
            created_at_ms: 0,
        }
    }

    fn fields(number: &str) -> Fields {
        Fields::parse(format!("{ONCE}={number}").as_bytes()).unwrap()
    }

    fn first<'a>(sent: &'a Sent, user: &User, number: &str) -> Option<Working<'a>> {
        match sent.take(user, &fields(number)) {
            Turn::First(working) => Some(working),
            Turn::Again(_) => None,
        }
    }

    #[test]
    fn a_form_is_taken_once_and_leads_where_it_led() {
        let (sent, ada, bea) = (Sent::default(), user("ada"), user("bea"));
        let working = first(&sent, &ada, "1").unwrap();
        assert!(matches!(sent.take(&ada, &fields("1")), Turn::Again(path) if path.is_empty()), "a second click");
        working.done("/keys/a");
        assert!(matches!(sent.take(&ada, &fields("1")), Turn::Again(path) if path == "/keys/a"));
        assert!(first(&sent, &bea, "1").is_some() && first(&sent, &ada, "2").is_some());
        for _ in 0..2 {
            first(&sent, &ada, "").expect("one without a number is taken each time").done("/keys/b");
        }
    }

    #[test]
    fn what_failed_may_be_sent_again_and_what_is_long_ago_is_forgotten() {
        let (sent, ada) = (Sent::default(), user("ada"));
        drop(first(&sent, &ada, "1").unwrap());
        first(&sent, &ada, "1").expect("it failed").done("/keys/a");
        for number in 0..FORMS_MAX {
            first(&sent, &ada, &format!("n{number}")).unwrap().done("/");
        }
        assert_eq!(sent.lock().len(), FORMS_MAX);
        assert!(first(&sent, &ada, "1").is_some());
    }
}
