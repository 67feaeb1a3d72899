//! People, their sessions and their links.

use super::super::fixture::Fixture;
use super::super::{Actor, AuditFilter};
use super::*;

const SESSION: TokenDigest = TokenDigest([1; 32]);
const OTHER: TokenDigest = TokenDigest([2; 32]);
const LINK: TokenDigest = TokenDigest([3; 32]);

async fn customer(fixture: &Fixture) -> User {
    let new = NewUser {
        email: "Ada@Example.com",
        role: Role::Customer,
        account_id: Some(&fixture.account_id),
        password: Some("$argon2id$secret"),
    };
    fixture.store.create_user(&new, 1_000).await.unwrap()
}

#[tokio::test]
async fn an_address_is_one_persons_however_it_is_written() {
    let fixture = Fixture::with_credit("5").await;
    let ada = customer(&fixture).await;
    assert_eq!(ada.email, "ada@example.com");
    let again = NewUser { email: "ADA@example.COM", role: Role::Operator, account_id: None, password: None };
    assert!(matches!(fixture.store.create_user(&again, 1_000).await, Err(StoreError::EmailTaken)));
    assert_eq!(fixture.store.user_by_email("aDa@example.com").await.unwrap(), Some(ada.clone()));
    assert_eq!(fixture.store.users_of(&fixture.account_id).await.unwrap(), [ada]);
    let nowhere = NewUser { email: "b@b", role: Role::Customer, account_id: Some("acct_none"), password: None };
    assert!(matches!(fixture.store.create_user(&nowhere, 1_000).await, Err(StoreError::UnknownAccount(_))));
}

#[tokio::test]
async fn a_session_ends_by_time_by_hand_and_by_suspension() {
    let fixture = Fixture::with_credit("5").await;
    let (store, ada) = (&fixture.store, customer(&fixture).await);
    let is_in = async |digest: &TokenDigest, now_ms| store.session(digest, now_ms).await.unwrap().is_some();
    for digest in [&SESSION, &OTHER] {
        store.begin_session(&ada.id, digest, 1_000, 2_000).await.unwrap();
    }
    assert!(is_in(&SESSION, 1_999).await && !is_in(&SESSION, 2_000).await && !is_in(&LINK, 1_000).await);
    store.touch_session(&SESSION, 1_500).await.unwrap();
    assert_eq!(store.session(&SESSION, 1_999).await.unwrap().unwrap().1.seen_at_ms, 1_500);
    store.end_sessions(&ada.id, Some(&SESSION)).await.unwrap();
    assert!(is_in(&SESSION, 1_000).await && !is_in(&OTHER, 1_000).await);
    store.end_session(&SESSION).await.unwrap();
    assert!(!is_in(&SESSION, 1_000).await);

    store.begin_session(&ada.id, &SESSION, 1_000, 2_000).await.unwrap();
    let suspended = UserChange { active: Some(false), ..UserChange::default() };
    store.update_user(&ada.id, &suspended, 1_100).await.unwrap();
    let resumed = UserChange { active: Some(true), ..UserChange::default() };
    assert!(matches!(store.begin_session(&ada.id, &OTHER, 1_200, 2_000).await, Err(StoreError::UserSuspended)));
    store.update_user(&ada.id, &resumed, 1_300).await.unwrap();
    assert!(!is_in(&SESSION, 1_400).await, "whoever was shut out signs in anew");
}

#[tokio::test]
async fn another_password_ends_every_session_and_link() {
    let fixture = Fixture::with_credit("5").await;
    let (store, ada) = (&fixture.store, customer(&fixture).await);
    store.begin_session(&ada.id, &SESSION, 1_000, 9_000).await.unwrap();
    store.create_link(&ada.id, LinkPurpose::SignIn, &LINK, 1_000, 9_000).await.unwrap();
    store.set_password(&ada.id, "$argon2id$other", 1_100).await.unwrap();
    assert_eq!(store.session(&SESSION, 1_200).await.unwrap(), None);
    assert_eq!(store.link(&LINK, 1_200).await.unwrap(), None);
    assert_eq!(store.password_of(&ada.id).await.unwrap().as_deref(), Some("$argon2id$other"));
}

#[tokio::test]
async fn a_link_is_good_once_until_its_time_and_until_the_next() {
    let fixture = Fixture::with_credit("5").await;
    let (store, ada) = (&fixture.store, customer(&fixture).await);
    store.create_link(&ada.id, LinkPurpose::Reset, &LINK, 1_000, 2_000).await.unwrap();
    assert_eq!(store.link(&LINK, 2_000).await.unwrap(), None, "its time is over");
    assert!(store.link(&LINK, 1_500).await.unwrap().is_some() && store.link(&LINK, 1_500).await.unwrap().is_some());
    assert!(!store.use_link(&LINK, None, &SESSION, 1_500, 9_000).await.unwrap(), "it asks for a password");
    assert!(store.use_link(&LINK, Some("$argon2id$new"), &SESSION, 1_500, 9_000).await.unwrap());
    assert!(!store.use_link(&LINK, Some("$argon2id$newer"), &OTHER, 1_501, 9_000).await.unwrap());
    assert_eq!(store.password_of(&ada.id).await.unwrap().as_deref(), Some("$argon2id$new"));
    assert_eq!(store.session(&SESSION, 1_600).await.unwrap().unwrap().0.id, ada.id);

    store.create_link(&ada.id, LinkPurpose::SignIn, &LINK, 1_000, 2_000).await.unwrap();
    store.create_link(&ada.id, LinkPurpose::SignIn, &OTHER, 1_001, 2_000).await.unwrap();
    assert_eq!(store.link(&LINK, 1_500).await.unwrap(), None, "the next one replaces it");
    assert!(!store.use_link(&OTHER, Some("$argon2id$x"), &LINK, 1_500, 9_000).await.unwrap(), "it sets no password");
    assert!(store.use_link(&OTHER, None, &LINK, 1_500, 9_000).await.unwrap());
}

#[tokio::test]
async fn changes_of_people_are_in_the_audit_log_without_secrets() {
    let fixture = Fixture::with_credit("5").await;
    let ada = customer(&fixture).await;
    let store = fixture.store.in_the_name_of(Actor::User("op@example.com".into()));
    store.create_link(&ada.id, LinkPurpose::Reset, &LINK, 1_000, 2_000).await.unwrap();
    store.set_password(&ada.id, "$argon2id$other", 1_100).await.unwrap();
    let operator = UserChange { role: Some(Role::Operator), ..UserChange::default() };
    store.update_user(&ada.id, &operator, 1_200).await.unwrap();
    store.update_user(&ada.id, &operator, 1_300).await.unwrap();
    let filter = AuditFilter { subject_id: Some(ada.id.clone()), since_ms: None };
    let entries = store.audit_entries(&filter, None, 10).await.unwrap();
    let actions: Vec<_> = entries.iter().map(|entry| (&*entry.action, &*entry.subject_kind)).collect();
    let expected = ["user.update", "user.password", "user.link", "user.create"].map(|action| (action, "user"));
    assert_eq!(actions, expected);
    assert_eq!((&*entries[0].actor_kind, entries[0].actor_name.as_deref()), ("user", Some("op@example.com")));
    let told = format!("{entries:?}");
    assert!(!told.contains("argon2") && !told.contains(&LINK.to_string()), "{told}");
}
