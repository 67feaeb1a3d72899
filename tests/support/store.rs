//! Where a relay of the tests keeps its store: a file in its folder; or a database of its own on the server of `TOLLGATE_TEST_POSTGRES`
//! (`postgres://user@host:port/postgres`), which is dropped in the end.

use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

/// The environment variable that the store's URL is told by, where it is a database's: it may hold a password.
const URL: &str = "STORE_URL";

pub enum Store {
    File(PathBuf),
    Database { server: String, name: String, is_own: bool },
}

impl Store {
    /// A new one, for a relay in that folder.
    pub fn new(folder: &Path) -> Self {
        let Some(server) = server() else { return Store::File(folder.join("tollgate.db")) };
        let name = format!("tollgate_test_{}", Uuid::now_v7().simple());
        on(&server, format!("CREATE DATABASE {name} TEMPLATE template0"));
        Store::Database { server, name, is_own: true }
    }

    /// The same one, for another relay, which ends before this.
    pub fn shared(&self) -> Self {
        match self {
            Store::File(path) => Store::File(path.clone()),
            Store::Database { server, name, .. } => {
                Store::Database { server: server.clone(), name: name.clone(), is_own: false }
            }
        }
    }

    /// What `store.url` is to be, as TOML.
    pub fn toml(&self) -> String {
        match self {
            Store::File(path) => format!("\"sqlite://{}\"", path.display()),
            Store::Database { .. } => format!("{{ env = \"{URL}\" }}"),
        }
    }

    /// What the environment is to say.
    pub fn environment(&self) -> Option<(String, String)> {
        self.database_url().map(|url| (URL.to_owned(), url))
    }

    /// Runs statements behind the relay's back.
    pub fn run(&self, statements: &'static str) {
        block_on(async {
            match self {
                Store::File(path) => {
                    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
                    sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
                    connection.close().await.unwrap();
                }
                Store::Database { .. } => {
                    let mut connection = PgConnection::connect(&self.database_url().unwrap()).await.unwrap();
                    sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
                    connection.close().await.unwrap();
                }
            }
        });
    }

    /// The numbers that a query finds.
    pub fn numbers(&self, query: &'static str) -> Vec<i64> {
        block_on(async {
            match self {
                Store::File(path) => {
                    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
                    let numbers = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
                    connection.close().await.unwrap();
                    numbers
                }
                Store::Database { .. } => {
                    let mut connection = PgConnection::connect(&self.database_url().unwrap()).await.unwrap();
                    let numbers = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
                    connection.close().await.unwrap();
                    numbers
                }
            }
        })
    }

    fn database_url(&self) -> Option<String> {
        let Store::Database { server, name, .. } = self else { return None };
        let (before, after) = server.rsplit_once('/').unwrap();
        let options = after.split_once('?').map_or(String::new(), |(_, options)| format!("?{options}"));
        Some(format!("{before}/{name}{options}"))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Store::Database { server, name, is_own: true } = self {
            on(server, format!("DROP DATABASE {name} WITH (FORCE)"));
        }
    }
}

/// The server that tests may make databases on.
pub fn server() -> Option<String> {
    std::env::var("TOLLGATE_TEST_POSTGRES").ok().filter(|url| !url.is_empty())
}

fn on(server: &str, statement: String) {
    block_on(async {
        let mut connection = PgConnection::connect(server).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
}

/// On a thread of its own: a test may have a runtime already.
fn block_on<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let working =
            scope.spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work));
        working.join().unwrap()
    })
}
