//! A store of its own with one account and one key, for the tests of this room.
//!
//! In a file; or, where `TOLLGATE_TEST_POSTGRES` names a server on which databases may be made (`postgres://user@host:port/postgres`), in
//! a database there, which is dropped afterwards. So the same tests are for both.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use super::open::postgres::migrator;
use super::{Account, KeyTerms, NewKey, Store};
use crate::relay::auth::KeyDigest;
use crate::relay::meter::{NanoUsd, Usage, UsageRecord, parse_nano_usd};

pub(super) const DIGEST: KeyDigest = KeyDigest([7; 32]);

pub(super) struct Fixture {
    pub(super) store: Store,
    pub(super) url: String,
    pub(super) account_id: String,
    pub(super) key_id: String,
    _place: Place,
}

/// Where a fixture's store is, for as long as it is there.
enum Place {
    Folder(#[allow(dead_code, reason = "removes the folder in the end")] tempfile::TempDir),
    Database(Database),
}

impl Fixture {
    /// With an account that was credited once, and a key of that account without terms.
    pub(super) async fn with_credit(usd: &str) -> Self {
        let place = match server() {
            Some(server) => Place::Database(Database::migrated(&server).await),
            None => Place::Folder(tempfile::tempdir().unwrap()),
        };
        let url = match &place {
            Place::Folder(folder) => format!("sqlite://{}/tollgate.db", folder.path().display()),
            Place::Database(database) => database.url.clone(),
        };
        let store = Store::open(&url).await.unwrap();
        let account_id = store.create_account("Ada", "free", 1_000).await.unwrap().id;
        store.credit(&account_id, NanoUsd(parse_nano_usd(usd).unwrap()), None, 1_000).await.unwrap();
        let key = NewKey { account_id: account_id.clone(), name: "laptop".into(), terms: KeyTerms::default() };
        let key_id = store.create_key(&key, &DIGEST, 1_000).await.unwrap().id;
        Self { store, url, account_id, key_id, _place: place }
    }

    pub(super) async fn account(&self) -> Account {
        self.store.account(&self.account_id).await.unwrap()
    }
}

/// The server that tests may make databases on.
fn server() -> Option<String> {
    std::env::var("TOLLGATE_TEST_POSTGRES").ok().filter(|url| !url.is_empty())
}

/// Whether fixtures keep their store in Postgres.
pub(super) fn is_in_postgres() -> bool {
    server().is_some()
}

/// The server, for tests that are about Postgres; where there is none, it is said that the test was left out.
pub(super) fn skip_without_postgres() -> Option<String> {
    let server = server();
    if server.is_none() {
        eprintln!("left out: TOLLGATE_TEST_POSTGRES names no server");
    }
    server
}

/// Whether a test that is about SQLite alone is to be left out.
pub(super) fn skip_in_postgres() -> bool {
    if is_in_postgres() {
        eprintln!("left out: about SQLite alone");
    }
    is_in_postgres()
}

/// A database of its own, dropped in the end.
pub(super) struct Database {
    server: String,
    pub(super) name: String,
    pub(super) url: String,
}

impl Database {
    /// Without tables.
    pub(super) async fn empty(server: &str) -> Self {
        Self::made(server, "template0").await
    }

    /// With the tables of this version, copied from a database that is made once.
    pub(super) async fn migrated(server: &str) -> Self {
        // Another set of migrations is another template.
        let texts: Vec<u8> = migrator().iter().flat_map(|migration| migration.checksum.to_vec()).collect();
        let digest = crc32fast::hash(&texts);
        let mut connection = PgConnection::connect(server).await.unwrap();
        let template = format!("tollgate_template_{digest:08x}");
        const MADE: &str = "SELECT COUNT(*) FROM pg_database WHERE datname = $1 AND datistemplate";
        // Of several tests that begin at once one makes it.
        sqlx::raw_sql("SELECT pg_advisory_lock(7166)").execute(&mut connection).await.unwrap();
        let made: i64 = sqlx::query_scalar(MADE).bind(&template).fetch_one(&mut connection).await.unwrap();
        if made == 0 {
            run(&mut connection, format!("DROP DATABASE IF EXISTS {template} WITH (FORCE)")).await;
            run(&mut connection, format!("CREATE DATABASE {template} TEMPLATE template0")).await;
            let store = Store::open(&at(server, &template)).await.unwrap();
            store.close().await;
            run(&mut connection, format!("ALTER DATABASE {template} IS_TEMPLATE true")).await;
        }
        let database = Self::made(server, &template).await;
        connection.close().await.unwrap();
        database
    }

    async fn made(server: &str, template: &str) -> Self {
        let name = format!("tollgate_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(server).await.unwrap();
        run(&mut connection, format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
        connection.close().await.unwrap();
        Self { server: server.to_owned(), url: at(server, &name), name }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&server).await.unwrap();
                run(&mut connection, format!("DROP DATABASE {name} WITH (FORCE)")).await;
            });
        });
        let _ = dropping.join();
    }
}

async fn run(connection: &mut PgConnection, statement: String) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.unwrap();
}

/// Another database of the same server.
fn at(server: &str, database: &str) -> String {
    let (before, after) = server.rsplit_once('/').unwrap();
    let options = after.split_once('?').map_or(String::new(), |(_, options)| format!("?{options}"));
    format!("{before}/{database}{options}")
}

/// A finished request of the fixture's key.
pub(super) fn record(fixture: &Fixture, cost_nano_usd: i64) -> UsageRecord {
    UsageRecord {
        request_id: Uuid::now_v7(),
        account_id: fixture.account_id.as_str().into(),
        key_id: fixture.key_id.as_str().into(),
        model: "gpt-4o".into(),
        provider: "openai".into(),
        status: 200,
        usage: Usage { input: 11, cache_read: 2, cache_write_5m: 3, cache_write_1h: 4, output: 5, reasoning: 1 },
        cost: NanoUsd(cost_nano_usd),
        provider_cost: None,
        estimated: false,
        interrupted: false,
        started_at_ms: 10_000,
        first_token_ms: Some(120),
        total_ms: 900,
    }
}
