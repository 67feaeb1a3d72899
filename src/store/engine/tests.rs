//! Connections and transactions, in the database that the fixture's store is in.

use super::super::fixture::{Fixture, skip_without_postgres};
use super::*;

type Values = (i64, Option<i64>, bool, String, Option<String>, Option<Vec<u8>>);

async fn name(fixture: &Fixture) -> String {
    fixture.account().await.name
}

async fn rename(transaction: &mut Connection, to: &str) -> u64 {
    query("UPDATE accounts SET name = $1").bind(to).execute(transaction).await.unwrap()
}

#[tokio::test]
async fn a_transaction_that_is_dropped_has_no_effect_and_holds_nobody_up() {
    let fixture = Fixture::with_credit("5").await;
    for _ in 0..3 {
        let mut transaction = fixture.store.write().await.unwrap();
        assert_eq!(rename(&mut transaction, "Nobody").await, 1);
        drop(transaction);
        assert_eq!(name(&fixture).await, "Ada");
    }
    let mut transaction = fixture.store.write().await.unwrap();
    rename(&mut transaction, "Bea").await;
    transaction.commit().await.unwrap();
    assert_eq!(name(&fixture).await, "Bea");
}

#[tokio::test]
async fn a_statement_that_is_refused_leaves_its_connection_as_it_was() {
    let fixture = Fixture::with_credit("5").await;
    let mut connection = fixture.store.pool.acquire().await.unwrap();
    let nonsense = query("UPDATE nowhere SET name = $1").bind("x").execute(&mut connection).await;
    assert!(matches!(nonsense, Err(sqlx::Error::Database(_))), "{nonsense:?}");
    let one: i64 = query_scalar("SELECT CAST(1 AS BIGINT)").fetch_one(&mut connection).await.unwrap();
    assert_eq!(one, 1);
}

#[tokio::test]
async fn a_transaction_of_which_a_statement_was_refused_is_not_taken_for_committed() {
    let fixture = Fixture::with_credit("5").await;
    let mut transaction = fixture.store.write().await.unwrap();
    rename(&mut transaction, "Bea").await;
    let nonsense = query("UPDATE nowhere SET name = $1").bind("x").execute(&mut *transaction).await;
    assert!(nonsense.is_err());
    // SQLite goes on with what was good.
    let is_committed = transaction.commit().await.is_ok();
    assert_eq!(name(&fixture).await, if is_committed { "Bea" } else { "Ada" });
}

#[tokio::test]
async fn all_kinds_of_values_come_back() {
    let fixture = Fixture::with_credit("5").await;
    let row: Values = query_as("SELECT $1, $2, $3, $4, $5, $6")
        .bind(i64::MIN)
        .bind(None::<i64>)
        .bind(true)
        .bind("ä'\"")
        .bind(None::<&str>)
        .bind(Some(&[0, 255][..]))
        .fetch_one(&fixture.store.pool)
        .await
        .unwrap();
    assert_eq!(row, (i64::MIN, None, true, "ä'\"".to_owned(), None, Some(vec![0, 255])));
}

#[tokio::test]
async fn a_text_with_a_nul_fails_nothing() {
    let fixture = Fixture::with_credit("5").await;
    fixture.store.search_accounts("A\0da", None, 9).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_server_has_ended_all_connections_nobody_notices() {
    if skip_without_postgres().is_none() {
        return;
    }
    let fixture = Fixture::with_credit("5").await;
    let store = &fixture.store;
    for _ in 0..2 {
        // Each of the pool's connections is made.
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(store.pool.acquire().await.unwrap());
        }
        drop(held);
        store.credit(&fixture.account_id, crate::relay::meter::NanoUsd(1), None, 1).await.unwrap();
        const END: &str = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let ended: i64 = query_scalar(END).fetch_one(&store.pool).await.unwrap();
        assert!(ended >= 8, "{ended}");
        for _ in 0..8 {
            store.ping().await.unwrap();
        }
        store.credit(&fixture.account_id, crate::relay::meter::NanoUsd(1), None, 1).await.unwrap();
        store.changes_since(0).await.unwrap();
    }
    assert_eq!(store.audit().await.unwrap(), []);
}

#[tokio::test]
async fn whoever_leaves_in_the_middle_of_a_statement_holds_nobody_up_for_long() {
    if skip_without_postgres().is_none() {
        return;
    }
    let fixture = Fixture::with_credit("5").await;
    let mut transaction = fixture.store.write().await.unwrap();
    rename(&mut transaction, "Nobody").await;
    let sleeping = query("SELECT pg_sleep(60)").execute(&mut *transaction);
    assert!(tokio::time::timeout(Duration::from_millis(50), sleeping).await.is_err());
    drop(transaction);
    let mut transaction = fixture.store.write().await.unwrap();
    rename(&mut transaction, "Bea").await;
    transaction.commit().await.unwrap();
    assert_eq!(name(&fixture).await, "Bea");
}
