//! The task beside the requests: it keeps the connection, says that this node is there, tells Redis what it has missed, and decides when
//! it is asked again.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{Client, Cmd, RedisError};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use super::breaker::NodeCount;
use super::keepsakes::KEPT_MS;
use super::link::{Link, is_refusal, shown};
use super::script::SLOT_US;
use super::trail::Word;
use super::windows::Windows;

/// How often the node says that it is there.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// After how many beats running requests are renewed: twice they may fail to be before they count as dead.
const BEATS_TO_RENEW: u32 = 5;
/// How often it is tried whether Redis is fast enough again.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// How much is said at once: Redis does it in a few milliseconds, for which requests wait.
const WORDS_AT_ONCE: usize = 128;
/// How many small things are written at once.
const THINGS_AT_ONCE: usize = 16;
/// How many requests are renewed by one call.
const RENEWED_AT_ONCE: usize = 500;
/// How long telling may take at a time, and so hold up that Redis is asked again.
const TELLING_MAX: Duration = Duration::from_secs(3);
/// How long the process's end waits for the last words.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Keeps Redis and the node together. To be run for as long as requests are.
pub struct Keeper {
    windows: Arc<Windows>,
    client: Client,
    nodes: NodeCount,
    /// What this process is known by: Redis knows whether it has told everything.
    process: Uuid,
    /// Whether it is to be said that everything is told, once it is.
    owes_word: bool,
    /// Whether it was told that Redis is away.
    is_told: bool,
}

/// Why Redis is not asked.
enum Trouble {
    Slow,
    Failed(RedisError),
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        Self::Failed(error)
    }
}

impl Keeper {
    pub(super) fn new(windows: Arc<Windows>, client: Client) -> Self {
        let nodes = NodeCount::new(windows.place.nodes_min);
        Self { windows, client, nodes, process: Uuid::now_v7(), owes_word: false, is_told: false }
    }

    /// Runs until it is told to end; then it says what is left to be said.
    pub async fn run(mut self, told: impl Future<Output = ()>) {
        let mut told = pin!(told);
        let mut beats = interval(BEAT_EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0u32;
        loop {
            if self.windows.breaker.is_open() {
                match self.recover().await {
                    Ok(()) => {
                        self.is_told = false;
                        self.windows.breaker.close();
                        tracing::info!(nodes = self.nodes_known(), "Redis decides over the shared windows");
                    }
                    Err(trouble) => {
                        self.give_up(&trouble);
                        tokio::select! {
                            () = &mut told => return,
                            () = sleep(TRY_EVERY) => {}
                        }
                    }
                }
                continue;
            }
            let outcome = tokio::select! {
                () = &mut told => {
                    let _ = timeout(LAST_WORDS_MAX, self.tell()).await;
                    return;
                }
                () = self.windows.news.notified() => self.tell().await,
                () = self.until_due() => self.tell().await,
                _ = beats.tick() => {
                    count = count.wrapping_add(1);
                    self.beat(count.is_multiple_of(BEATS_TO_RENEW)).await
                }
            };
            if let Err(Trouble::Failed(error)) = &outcome {
                self.windows.broke(error);
            }
        }
    }

    /// Finds out whether Redis is there and fast, and tells it what it has missed. Requests ask it when this is done.
    async fn recover(&mut self) -> Result<(), Trouble> {
        let link = match self.windows.link.load_full() {
            Some(link) => link,
            None => {
                let link = Arc::new(Link::connect(&self.client, &self.windows.scripts).await?);
                self.windows.link.store(Some(Arc::clone(&link)));
                link
            }
        };
        let wait_max = self.windows.place.wait_max;
        match timeout(wait_max, self.call(&link)).await {
            Ok(answered) => answered?,
            Err(_) => return Err(Trouble::Slow),
        };
        self.renew(&link).await?;
        self.tell().await
    }

    fn give_up(&mut self, trouble: &Trouble) {
        self.windows.link.store(None);
        self.nodes.blind();
        if !self.is_told {
            self.is_told = true;
            let nodes = self.nodes_known();
            let why = match trouble {
                Trouble::Slow => "it is slow".to_owned(),
                Trouble::Failed(error) => shown(error),
            };
            tracing::warn!(why, nodes, "Redis cannot be asked; keys are kept to this node's share of their limits");
        }
    }

    /// A sign of life, once the last one is old. In between, what runs is renewed.
    async fn beat(&mut self, renews: bool) -> Result<(), Trouble> {
        let Some(link) = self.windows.link.load_full() else { return Ok(()) };
        let sent = Instant::now();
        let was_known = self.call(&link).await?;
        if sent.elapsed() > self.windows.place.wait_max {
            self.windows.slow();
        } else {
            self.windows.breaker.succeeded();
        }
        if renews || !was_known {
            self.renew(&link).await?;
        }
        self.tell().await
    }

    /// Says that the node is there. Whether Redis knows what this process has told; else all of it is to be told again.
    async fn call(&mut self, link: &Link) -> Result<bool, Trouble> {
        let windows = &self.windows;
        let command = windows.scripts.beat(&windows.place.node, self.process);
        let (server_us, nodes, was_known): (u64, u32, u8) = link.ask(&command, &windows.scripts).await?;
        let now_us = windows.now_us();
        link.note_time(server_us, now_us);
        windows.nodes.store(self.nodes.seen(nodes, now_us), Ordering::Relaxed);
        let was_known = was_known == 1;
        if !was_known {
            self.owes_word = true;
            windows.trail().record_all(now_us);
        }
        Ok(was_known)
    }

    /// Says of all requests that have a slot that they still run.
    async fn renew(&self, link: &Link) -> Result<(), Trouble> {
        let running = self.windows.trail().running();
        let of_keys = running.chunk_by(|one, other| one.0 == other.0).flat_map(|of_key| of_key.chunks(RENEWED_AT_ONCE));
        let commands: Vec<Cmd> = of_keys
            .filter_map(|some| {
                let ids: Vec<_> = some.iter().map(|(_, id)| *id).collect();
                Some(self.windows.scripts.renew(some.first()?.0, &ids))
            })
            .collect();
        for some in commands.chunks(WORDS_AT_ONCE) {
            link.say(some, &self.windows.scripts).await?;
        }
        Ok(())
    }

    /// Tells what is due to be told, for a while: what is due after that is told the next time.
    async fn tell(&mut self) -> Result<(), Trouble> {
        let windows = Arc::clone(&self.windows);
        let Some(link) = windows.link.load_full() else { return Ok(()) };
        let began = Instant::now();
        while began.elapsed() < TELLING_MAX {
            let due = windows.trail().due(windows.now_us(), WORDS_AT_ONCE);
            if due.is_empty() {
                if std::mem::take(&mut self.owes_word) {
                    link.say(&[windows.scripts.told(self.process)], &windows.scripts).await?;
                }
                return self.keep(&link).await;
            }
            let commands: Vec<Cmd> = due.iter().map(|(_, word)| self.command(&link, word)).collect();
            match link.say(&commands, &windows.scripts).await {
                Ok(()) => {}
                // Said again it would be refused again: what is lost leaves its window by itself.
                Err(error) if is_refusal(&error) => {
                    tracing::warn!(why = shown(&error), words = due.len(), "Redis refuses what it is told");
                    windows.slow();
                }
                Err(error) => {
                    windows.trail().put_back(due.into_iter().map(|(note, _)| note));
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Writes what this node keeps for others. What cannot be written is no loss.
    async fn keep(&self, link: &Link) -> Result<(), Trouble> {
        loop {
            let things = self.windows.keepsakes().take(THINGS_AT_ONCE);
            if things.is_empty() {
                return Ok(());
            }
            link.keep(&things, KEPT_MS).await?;
        }
    }

    fn command(&self, link: &Link, word: &Word) -> Cmd {
        let scripts = &self.windows.scripts;
        match word {
            Word::Record(entry) => {
                let at_us = entry.server_at_us.unwrap_or_else(|| link.server_us(entry.at_us));
                scripts.record(entry.tag, entry.id, at_us, entry.tokens, entry.has_slot.then_some(SLOT_US))
            }
            Word::Release { tag, id, server_at_us, reserved, used } => {
                scripts.release(*tag, *id, *server_at_us, *reserved, *used)
            }
            Word::Undo { tag, id, reserved } => scripts.undo(*tag, *id, *reserved),
        }
    }

    /// Returns when something is due that was not when it was last looked.
    async fn until_due(&self) {
        let due_us = self.windows.trail().next_due_us();
        match due_us {
            Some(due_us) => sleep(Duration::from_micros(due_us.saturating_sub(self.windows.now_us()))).await,
            None => std::future::pending().await,
        }
    }

    fn nodes_known(&self) -> u32 {
        self.windows.nodes.load(Ordering::Relaxed)
    }
}
