//! The connection: commands of all requests on one, each sent as it comes, answered in order.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError,
    ServerErrorKind,
};

use super::keepsakes::Thing;
use super::script::{Script, Scripts};
use crate::relay::route::Secret;

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// How long whatever no request waits for may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How many commands may wait to be written.
const QUEUE_MAX: usize = 4096;

/// Where Redis is, and on what terms it is asked.
#[derive(Debug, Clone)]
pub struct Place {
    /// `redis://` or `rediss://`, with host, port and database, and without user and password.
    pub url: Box<str>,
    /// Who logs in there.
    pub username: Option<Box<str>>,
    /// By what.
    pub password: Option<Secret>,
    /// What this node is called there. Two processes of one node are called the same.
    pub node: Box<str>,
    /// How many nodes there are at least.
    pub nodes_min: u32,
    /// How long a request waits.
    pub wait_max: Duration,
}

/// A place that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("shared.redis: {0}")]
pub struct PlaceError(RedisError);

impl Place {
    pub(super) fn client(&self) -> Result<Client, PlaceError> {
        let info = (&*self.url).into_connection_info().map_err(PlaceError)?;
        let mut settings = info.redis_settings().clone();
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password.expose());
        }
        Client::open(info.set_redis_settings(settings)).map_err(PlaceError)
    }
}

/// A connection, and what the server's clock shows.
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// The server's time less this node's.
    offset_us: AtomicI64,
}

impl Link {
    /// Connects, and sees to it that the scripts are there.
    pub(super) async fn connect(client: &Client, scripts: &Scripts) -> Result<Self, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(ANSWER_MAX))
            .set_pipeline_buffer_size(QUEUE_MAX);
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let link = Self { connection, offset_us: AtomicI64::new(0) };
        link.load(scripts).await?;
        Ok(link)
    }

    /// Loads the scripts. Redis forgets them when it starts anew, and when it is told to.
    pub(super) async fn load(&self, scripts: &Scripts) -> Result<(), RedisError> {
        let mut pipeline = Pipeline::new();
        for Script { source, .. } in scripts.all() {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(source).ignore();
        }
        pipeline.exec_async(&mut self.connection.clone()).await
    }

    /// Asks one thing. A script that was forgotten is loaded, and asked again: it was not run.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd, scripts: &Scripts) -> Result<T, RedisError> {
        let mut connection = self.connection.clone();
        match command.query_async(&mut connection).await {
            Err(error) if is_forgotten(&error) => {
                self.load(scripts).await?;
                command.query_async(&mut connection).await
            }
            outcome => outcome,
        }
    }

    /// Says many things, and waits until all are done.
    pub(super) async fn say(&self, commands: &[Cmd], scripts: &Scripts) -> Result<(), RedisError> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.clone()).ignore();
        }
        match pipeline.exec_async(&mut self.connection.clone()).await {
            Err(error) if is_forgotten(&error) => {
                self.load(scripts).await?;
                // Those that were run are run again, which changes nothing.
                pipeline.exec_async(&mut self.connection.clone()).await
            }
            outcome => outcome,
        }
    }

    /// What was kept under those names.
    pub(super) async fn fetch(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, RedisError> {
        let mut pipeline = Pipeline::with_capacity(names.len());
        for name in names {
            pipeline.cmd("GET").arg(keepsake_key(name));
        }
        pipeline.query_async(&mut self.connection.clone()).await
    }

    /// Keeps things, each for so many milliseconds.
    pub(super) async fn keep(&self, things: &[Thing], kept_ms: u64) -> Result<(), RedisError> {
        let mut pipeline = Pipeline::with_capacity(things.len());
        for (name, thing) in things {
            pipeline.cmd("SET").arg(keepsake_key(name)).arg(thing.as_slice()).arg("PX").arg(kept_ms).ignore();
        }
        pipeline.exec_async(&mut self.connection.clone()).await
    }

    /// The server showed that time when it was this here.
    pub(super) fn note_time(&self, server_us: u64, here_us: u64) {
        let signed = |us: u64| i64::try_from(us).unwrap_or(i64::MAX);
        self.offset_us.store(signed(server_us).saturating_sub(signed(here_us)), Ordering::Relaxed);
    }

    /// What the server shows when it is that time here.
    pub(super) fn server_us(&self, here_us: u64) -> u64 {
        here_us.saturating_add_signed(self.offset_us.load(Ordering::Relaxed))
    }
}

fn keepsake_key(name: &str) -> String {
    format!("tollgate:kept:{name}")
}

fn is_forgotten(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether the server answered, and answered that it will not.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// An error without what it quotes: that may be a server's banner, or a command.
pub(super) fn shown(error: &RedisError) -> String {
    match error.code() {
        Some(code) => code.to_owned(),
        None => error.category().to_owned() + &error.detail().map(|why| format!(": {why}")).unwrap_or_default(),
    }
}
