//! Leases in the store: taken, charged, given back, wanted, buried, and found by the audit.

use super::super::fixture::{Fixture, record};
use super::super::{DifferenceKind, NodeName};
use super::*;

const NOW: i64 = 1_000_000;
const LEASE: i64 = 30_000;

async fn node(fixture: &Fixture, id: &str) -> NodeTerm {
    let name = NodeName { id: id.into(), name: id.to_owned(), version: "1".to_owned() };
    fixture.store.begin_node(&name, NOW, LEASE).await.unwrap()
}

fn ask(fixture: &Fixture, need: i64, target: i64) -> LeaseAsk {
    LeaseAsk {
        account_id: fixture.account_id.as_str().into(),
        need: NanoUsd(need),
        steps: Vec::new(),
        unit: NanoUsd(1),
        target: NanoUsd(target),
        useful: NanoUsd(1),
        since: None,
    }
}

async fn take_at(fixture: &Fixture, term: &NodeTerm, ask: LeaseAsk, now_ms: i64) -> LeaseAnswer {
    fixture.store.take_leases(term, &[ask], now_ms).await.unwrap().unwrap().remove(0)
}

/// What is leased after that need was asked for, and whether it pays to ask again.
async fn take(fixture: &Fixture, term: &NodeTerm, need: i64) -> (i64, bool) {
    let answer = take_at(fixture, term, ask(fixture, need, need), NOW).await;
    (answer.lease.amount.0, answer.wanted.is_some())
}

async fn give_back(fixture: &Fixture, term: &NodeTerm, amount: i64, seq: i64, wanted: Option<i64>) -> LeaseReturned {
    let given = LeaseReturn { account_id: fixture.account_id.as_str().into(), amount: NanoUsd(amount), seq, wanted };
    fixture.store.return_leases(term, &[given]).await.unwrap().remove(0)
}

async fn lease_of(fixture: &Fixture, term: &NodeTerm) -> Option<i64> {
    let news = fixture.store.leases_since(&term.id, 0).await.unwrap();
    news.leases.first().map(|(_, lease)| lease.amount.0)
}

/// With 1,000 nano-USD.
async fn fixture() -> Fixture {
    Fixture::with_credit("0.000001").await
}

#[tokio::test]
async fn what_one_node_has_leased_another_cannot() {
    let fixture = fixture().await;
    let (a, b) = (node(&fixture, "a").await, node(&fixture, "b").await);
    assert_eq!(take(&fixture, &a, 700).await, (700, false));
    assert_eq!(take(&fixture, &b, 700).await, (0, true), "a part of it would help nobody, and the rest may come back");
    assert_eq!(take(&fixture, &b, 300).await, (300, false));
    assert_eq!(take(&fixture, &a, 1).await, (700, true));
    assert_eq!(fixture.store.audit().await.unwrap(), []);
}

#[tokio::test]
async fn beyond_what_is_needed_a_part_of_what_is_free_is_given() {
    let fixture = fixture().await;
    let a = node(&fixture, "a").await;
    let answer = take_at(&fixture, &a, ask(&fixture, 10, 10_000), NOW).await;
    assert_eq!((answer.lease.amount, answer.free), (NanoUsd(250), NanoUsd(750)));
    let useless = LeaseAsk { useful: NanoUsd(751), ..ask(&fixture, 900, 900) };
    assert_eq!(take_at(&fixture, &a, useless, NOW).await.lease.amount, NanoUsd(250), "it would have helped nobody");
}

#[tokio::test]
async fn what_is_settled_leaves_balance_and_lease_together() {
    let fixture = fixture().await;
    let (a, b) = (node(&fixture, "a").await, node(&fixture, "b").await);
    take(&fixture, &a, 600).await;
    let of_a = fixture.store.leasing("a".into());
    let records = [record(&fixture, 100), record(&fixture, 50)];
    let settled = of_a.settle(&records, None).await.unwrap();
    assert!(settled.iter().all(|one| one.credit().amount == NanoUsd(450) && one.balance == NanoUsd(850)));
    let again = of_a.settle(&records, None).await.unwrap();
    assert!(again.iter().all(|one| !one.fresh && one.credit() == Lease::default()), "no news");
    assert_eq!(lease_of(&fixture, &a).await, Some(450));
    assert_eq!(take(&fixture, &b, 401).await, (0, true), "as much is free as before");
    assert_eq!(take(&fixture, &b, 400).await, (400, false));

    // A hold that was too small.
    let settled = of_a.settle(&[record(&fixture, 460)], None).await.unwrap();
    assert_eq!(settled[0].credit().amount, NanoUsd(0));
    let found = fixture.store.audit().await.unwrap();
    assert_eq!(found.iter().map(|one| one.kind).collect::<Vec<_>>(), [DifferenceKind::Overleased]);
    let news = fixture.store.leases_since("b", 0).await.unwrap();
    assert_eq!((news.leases[0].1.amount, news.wanted.len()), (NanoUsd(390), 1), "b has no more than there is");
}

#[tokio::test]
async fn who_has_no_lease_is_told_so() {
    let fixture = fixture().await;
    node(&fixture, "a").await;
    let settled = fixture.store.leasing("a".into()).settle(&[record(&fixture, 5)], None).await.unwrap();
    assert_eq!(settled[0].credit(), Lease { amount: NanoUsd(0), seq: settled[0].balance_seq });
    assert_eq!(fixture.store.settle(&[record(&fixture, 5)], None).await.unwrap()[0].credit().amount, NanoUsd(990));
}

#[tokio::test]
async fn what_is_given_back_is_free_and_is_given_back_once() {
    let fixture = fixture().await;
    let (a, b) = (node(&fixture, "a").await, node(&fixture, "b").await);
    let seq = take_at(&fixture, &a, ask(&fixture, 700, 700), NOW).await.lease.seq;
    let returned = give_back(&fixture, &a, 200, seq, None).await;
    assert_eq!((returned.taken, returned.lease.amount), (true, NanoUsd(500)));
    let repeated = give_back(&fixture, &a, 200, seq, None).await;
    assert_eq!((repeated.taken, repeated.lease.amount), (false, NanoUsd(500)), "it was not heard that it was taken");
    let stepwise = LeaseAsk { steps: vec![NanoUsd(200), NanoUsd(400), NanoUsd(600)], ..ask(&fixture, 600, 600) };
    assert_eq!(
        take_at(&fixture, &b, stepwise, NOW).await.lease.amount,
        NanoUsd(400),
        "what some of those who wait need"
    );
    let whole = give_back(&fixture, &a, 500, repeated.lease.seq.max(returned.lease.seq), None).await;
    assert_eq!((whole.taken, lease_of(&fixture, &a).await), (true, Some(0)));
}

#[tokio::test]
async fn a_want_is_heard_until_it_is_answered() {
    let fixture = fixture().await;
    let (a, b) = (node(&fixture, "a").await, node(&fixture, "b").await);
    let seq = take_at(&fixture, &a, ask(&fixture, 1_000, 1_000), NOW).await.lease.seq;
    let wanted = take_at(&fixture, &b, ask(&fixture, 10, 10), NOW).await.wanted.unwrap();
    let heard = fixture.store.leases_since("a", seq).await.unwrap().wanted;
    assert_eq!(heard, [(fixture.account_id.as_str().into(), wanted)]);
    let again = LeaseAsk { since: Some(wanted), ..ask(&fixture, 10, 10) };
    assert_eq!(take_at(&fixture, &b, again.clone(), NOW).await.wanted, Some(wanted), "it has not answered");
    // All of it is in use.
    assert!(give_back(&fixture, &a, 0, seq, Some(wanted)).await.taken);
    assert_eq!(fixture.store.leases_since("a", seq).await.unwrap().wanted, []);
    assert_eq!(take_at(&fixture, &b, again, NOW).await.wanted, None, "nothing comes back");
}

#[tokio::test]
async fn a_node_past_its_time_is_buried_by_whoever_needs_its_credit() {
    let fixture = fixture().await;
    let (a, b) = (node(&fixture, "a").await, node(&fixture, "b").await);
    take(&fixture, &a, 1_000).await;
    let late = NOW + LEASE;
    assert_eq!(fixture.store.renew_node(&b, late - 1, LEASE).await.unwrap(), Some(false));
    assert_eq!(take_at(&fixture, &b, ask(&fixture, 600, 600), late - 1).await.lease.amount, NanoUsd(0));
    assert_eq!(take_at(&fixture, &b, ask(&fixture, 600, 600), late).await.lease.amount, NanoUsd(600));

    assert_eq!(fixture.store.renew_node(&a, late, LEASE).await.unwrap(), None, "it has to begin anew");
    assert_eq!(fixture.store.take_leases(&a, &[ask(&fixture, 1, 1)], late).await.unwrap(), None);
    let name = NodeName { id: "a".into(), name: "a".into(), version: "1".into() };
    let anew = fixture.store.begin_node(&name, late, LEASE).await.unwrap();
    assert_eq!((anew.epoch, lease_of(&fixture, &anew).await), (a.epoch + 1, None));
    // What it had sold is settled all the same, once.
    let sold = [record(&fixture, 1_000)];
    let of_a = fixture.store.leasing("a".into());
    of_a.settle(&sold, None).await.unwrap();
    of_a.settle(&sold, None).await.unwrap();
    assert_eq!(fixture.account().await.balance, NanoUsd(0), "and b has leased what it may not sell any more");
    assert_eq!(fixture.store.leases_since("b", 0).await.unwrap().leases[0].1.amount, NanoUsd(0));
}

#[tokio::test]
async fn a_late_node_whose_credit_nobody_needed_goes_on() {
    let fixture = fixture().await;
    let a = node(&fixture, "a").await;
    take(&fixture, &a, 400).await;
    assert_eq!(fixture.store.renew_node(&a, NOW + 10 * LEASE, LEASE).await.unwrap(), Some(false));
    let name = NodeName { id: "a".into(), name: "a".into(), version: "1".into() };
    let restarted = fixture.store.begin_node(&name, NOW + 20 * LEASE, LEASE).await.unwrap();
    assert_eq!((restarted.epoch, lease_of(&fixture, &restarted).await), (a.epoch, Some(400)));
}

#[tokio::test]
async fn the_dead_are_swept_and_who_ends_in_good_order_leaves_nothing() {
    let fixture = fixture().await;
    let (a, b) = (node(&fixture, "a").await, node(&fixture, "b").await);
    take(&fixture, &a, 400).await;
    take(&fixture, &b, 400).await;
    assert_eq!(take(&fixture, &b, 200).await, (600, false));
    fixture.store.end_node(&b, NOW).await.unwrap();
    assert_eq!(lease_of(&fixture, &b).await, None);
    fixture.store.sweep_nodes(NOW + LEASE, 0).await.unwrap();
    assert_eq!(lease_of(&fixture, &a).await, None);
    assert_eq!(fixture.store.nodes().await.unwrap().len(), 2, "they are told of for a while");
    fixture.store.sweep_nodes(NOW + 48 * 3_600_000, 0).await.unwrap();
    assert_eq!(fixture.store.nodes().await.unwrap(), []);
}

#[tokio::test]
async fn money_that_is_taken_back_is_wanted_of_those_who_leased_it() {
    let fixture = fixture().await;
    let a = node(&fixture, "a").await;
    let seq = take_at(&fixture, &a, ask(&fixture, 900, 900), NOW).await.lease.seq;
    fixture.store.credit(&fixture.account_id, NanoUsd(-50), None, 1).await.unwrap();
    assert_eq!(fixture.store.leases_since("a", seq).await.unwrap().wanted, []);
    fixture.store.credit(&fixture.account_id, NanoUsd(-550), None, 1).await.unwrap();
    let news = fixture.store.leases_since("a", seq).await.unwrap();
    assert_eq!((news.leases[0].1.amount, news.wanted.len()), (NanoUsd(400), 1));
    let known = news.leases[0].1;
    assert_eq!(give_back(&fixture, &a, 400, known.seq, Some(news.wanted[0].1)).await.lease.amount, NanoUsd(400));
    fixture.store.credit(&fixture.account_id, NanoUsd(600), None, 1).await.unwrap();
    assert_eq!(lease_of(&fixture, &a).await, Some(500));
}

#[tokio::test]
async fn operators_see_the_nodes_and_drain_them() {
    let fixture = fixture().await;
    let a = node(&fixture, "a").await;
    take(&fixture, &a, 400).await;
    let listed = fixture.store.nodes().await.unwrap();
    assert_eq!((listed[0].leased, listed[0].expires_at_ms, listed[0].draining), (NanoUsd(400), NOW + LEASE, false));
    assert!(fixture.store.set_node_draining("a", true).await.unwrap().draining);
    assert_eq!(fixture.store.renew_node(&a, NOW, LEASE).await.unwrap(), Some(true));
    assert!(matches!(fixture.store.set_node_draining("x", true).await, Err(StoreError::UnknownNode(_))));
    assert_eq!(fixture.store.other_nodes("b", NOW).await.unwrap(), ["a"]);
    assert_eq!(fixture.store.other_nodes("a", NOW).await.unwrap(), [] as [String; 0]);
    let off_by = fixture.store.clock_ms().await.unwrap()
        - i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis())
            .unwrap();
    assert!(off_by.abs() < 60_000, "{off_by}");
}

#[tokio::test]
async fn leases_that_contradict_the_books_are_found() {
    for (sql, kind) in [
        ("UPDATE leases SET amount_nano_usd = 1_001", DifferenceKind::Overleased),
        ("UPDATE leases SET amount_nano_usd = -1", DifferenceKind::LeaseNegative),
        ("UPDATE nodes SET epoch = 7", DifferenceKind::LeaseOrphan),
        ("DELETE FROM nodes", DifferenceKind::LeaseOrphan),
    ] {
        let fixture = fixture().await;
        let a = node(&fixture, "a").await;
        take(&fixture, &a, 400).await;
        assert_eq!(fixture.store.audit().await.unwrap(), []);
        fixture.store.pool.run(sql).await.unwrap();
        let found = fixture.store.audit().await.unwrap();
        assert_eq!(found.iter().map(|one| one.kind).collect::<Vec<_>>(), [kind], "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_take_and_settle_at_once_never_have_more_than_there_is() {
    let fixture = fixture().await;
    let mut at_work = Vec::new();
    for id in ["a", "b", "c"] {
        let (store, term) = (Store::open(&fixture.url).await.unwrap().leasing(id.into()), node(&fixture, id).await);
        let (ask, record) = (ask(&fixture, 7, 30), record(&fixture, 7));
        at_work.push(tokio::spawn(async move {
            let mut spent = 0;
            for _ in 0..80 {
                let answer =
                    store.take_leases(&term, std::slice::from_ref(&ask), NOW).await.unwrap().unwrap().remove(0);
                if answer.lease.amount.0 >= 7 {
                    let record =
                        crate::relay::meter::UsageRecord { request_id: uuid::Uuid::now_v7(), ..record.clone() };
                    store.settle(&[record], None).await.unwrap();
                    spent += 7;
                }
            }
            spent
        }));
    }
    let mut spent = 0;
    for one in at_work {
        spent += one.await.unwrap();
    }
    let balance = fixture.account().await.balance.0;
    assert_eq!(balance, 1_000 - spent);
    assert!(balance >= 0 && spent > 0, "{balance}");
    assert_eq!(fixture.store.audit().await.unwrap(), []);
}
