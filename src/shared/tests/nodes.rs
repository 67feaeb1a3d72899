//! Nodes that share a real Redis, which stops, stands still, and forgets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Connection;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::limits;
use crate::relay::admit::KeyLimits;
use crate::relay::auth::KeyDigest;
use crate::shared::testing::Server;
use crate::shared::{Keeper, Place, Slot, Tag, Verdict, Windows};

/// A node of a test: its windows, and the task that keeps them.
struct Node {
    windows: Arc<Windows>,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Node {
    fn start(server: &Server, name: &str, wait_ms: u64) -> Self {
        Self::start_as_one_of(1, server, name, wait_ms)
    }

    fn start_as_one_of(nodes_min: u32, server: &Server, name: &str, wait_ms: u64) -> Self {
        let place = Place {
            url: server.url.as_str().into(),
            username: None,
            password: None,
            node: name.into(),
            nodes_min,
            wait_max: Duration::from_millis(wait_ms),
        };
        let (windows, keeper): (_, Keeper) = Windows::new(place, |_| {}).unwrap();
        let (end, told) = oneshot::channel();
        let task = tokio::spawn(async move {
            keeper
                .run(async {
                    let _ = told.await;
                })
                .await;
        });
        Self { windows, end: Some(end), task }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Windows) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds(&self.windows) {
            assert!(Instant::now() < end, "waited in vain: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_asked(&self) {
        self.until("Redis to be asked", |windows| !windows.observed().degraded).await;
    }

    async fn admit(&self, terms: &KeyLimits, reserve: u64) -> Verdict {
        self.windows.admit(&KeyDigest([5; 32]), Uuid::now_v7(), terms, reserve).await
    }

    /// Admits by Redis and holds; the error is why not.
    async fn hold(&self, terms: &KeyLimits, reserve: u64) -> Result<Slot, String> {
        match self.admit(terms, reserve).await {
            Verdict::Admitted(mut slot, _) => {
                slot.hold();
                Ok(slot)
            }
            Verdict::Refused(refusal, _) => Err(refusal.message.into_owned()),
            Verdict::Here(..) => Err("decided here".into()),
        }
    }

    async fn end(mut self) {
        drop(self.end.take());
        self.task.await.unwrap();
    }
}

/// Long enough for a machine that has other things to do.
const PATIENT_MS: u64 = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_give_out_exactly_the_limit() {
    let Some(server) = Server::start() else { return };
    let nodes = ["a", "b", "c"].map(|name| Node::start(&server, name, PATIENT_MS));
    for node in &nodes {
        node.until_asked().await;
    }
    let terms = limits(60, None, None);
    let mut tasks = Vec::new();
    for turn in 0..150 {
        let windows = Arc::clone(&nodes[turn % 3].windows);
        tasks.push(tokio::spawn(async move {
            match windows.admit(&KeyDigest([5; 32]), Uuid::now_v7(), &terms, 0).await {
                Verdict::Admitted(mut slot, view) => {
                    slot.hold();
                    Some(view.requests.remaining)
                }
                Verdict::Refused(refusal, _) => {
                    assert!(refusal.retry_after_ms.is_some_and(|wait| (1..=60_000).contains(&wait)));
                    None
                }
                Verdict::Here(..) => panic!("decided here"),
            }
        }));
    }
    let mut remaining = Vec::new();
    for task in tasks {
        remaining.extend(task.await.unwrap());
    }
    remaining.sort_unstable();
    assert_eq!(remaining, (0..60).collect::<Vec<u64>>(), "sixty, each told of another one less");
    nodes[0].until("all nodes to be seen", |windows| windows.observed().nodes == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dropped_before_it_is_held_is_given_back_and_what_ends_gives_back_its_place() {
    let Some(server) = Server::start() else { return };
    let (one, other) = (Node::start(&server, "a", PATIENT_MS), Node::start(&server, "b", PATIENT_MS));
    one.until_asked().await;
    other.until_asked().await;
    let terms = limits(2, Some(100), Some(1));
    let Verdict::Admitted(slot, view) = one.admit(&terms, 90).await else { panic!("there is room") };
    assert_eq!((view.requests.remaining, view.tokens.unwrap().remaining), (1, 10));
    let refused = other.hold(&terms, 10).await.err().unwrap();
    assert!(refused.contains("requests running at once"), "{refused}");
    drop(slot);
    one.until("the slot to be undone", |windows| windows.trail().waiting() == 0).await;
    let mut slot = until_held(&other, &terms, 80).await;
    slot.settle(30);
    drop(slot);
    let Verdict::Admitted(_slot, view) = until_admitted(&one, &terms, 70).await else { panic!("there is room") };
    assert_eq!((view.requests.remaining, view.tokens.unwrap().remaining), (0, 0), "30 used, 70 reserved");
    other.end().await;
}

async fn until_held(node: &Node, terms: &KeyLimits, reserve: u64) -> Slot {
    let Verdict::Admitted(mut slot, _) = until_admitted(node, terms, reserve).await else { panic!("not admitted") };
    slot.hold();
    slot
}

/// Asks until there is room: what is given back is given back soon, not at once.
async fn until_admitted(node: &Node, terms: &KeyLimits, reserve: u64) -> Verdict {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match node.admit(terms, reserve).await {
            Verdict::Refused(refusal, _) => assert!(Instant::now() < end, "{}", refusal.message),
            verdict => return verdict,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_back_empty_learns_what_was_admitted_whoever_did() {
    let Some(mut server) = Server::start() else { return };
    let node = Node::start(&server, "a", PATIENT_MS);
    node.until_asked().await;
    let terms = limits(10, Some(1_000), Some(10));
    let mut slots = Vec::new();
    for _ in 0..4 {
        slots.push(node.hold(&terms, 100).await.unwrap());
    }
    server.stop();
    node.until("the node to decide by itself", |windows| windows.observed().degraded).await;
    for _ in 0..3 {
        let Verdict::Here(mut slot, share) = node.admit(&terms, 100).await else { panic!("Redis is away") };
        assert_eq!(share, terms, "there is one node");
        slot.hold();
        slots.push(slot);
    }
    let mut ended = slots.pop().unwrap();
    ended.settle(50);
    drop((ended, slots.remove(0)));
    server.restart();
    node.until_asked().await;
    let Verdict::Admitted(_slot, view) = node.admit(&terms, 0).await else { panic!("there is room") };
    assert_eq!(view.requests.remaining, 10 - 7 - 1);
    assert_eq!(view.tokens.unwrap().remaining, 1_000 - 6 * 100 - 50);
    let mut connection = server.connect();
    let slot_key = Tag::of(&KeyDigest([5; 32])).key('c');
    let running: u32 = redis::cmd("ZCARD").arg(slot_key).query(&mut connection).unwrap();
    assert_eq!(running, 5 + 1, "those that run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_and_windows_that_are_flushed_come_back() {
    let Some(server) = Server::start() else { return };
    let node = Node::start(&server, "a", PATIENT_MS);
    node.until_asked().await;
    let terms = limits(10, None, None);
    let _first = node.hold(&terms, 0).await.unwrap();
    let mut connection = server.connect();
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut connection).unwrap();
    let _second = node.hold(&terms, 0).await.unwrap();
    redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut connection).unwrap();
    let key = Tag::of(&KeyDigest([5; 32])).key('r');
    node.until("what was flushed to be there again", |_| {
        redis::cmd("ZCARD").arg(&key).query::<u32>(&mut server.connect()).unwrap() == 2
    })
    .await;
    assert!(node.hold(&terms, 0).await.is_ok());
    assert!(!node.windows.observed().degraded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_is_waited_for_shortly_and_then_not_at_all() {
    let Some(server) = Server::start() else { return };
    let node = Node::start_as_one_of(3, &server, "a", 20);
    node.until_asked().await;
    let terms = limits(60, None, None);
    server.signal("STOP");
    let mut slots = Vec::new();
    for turn in 0..20 {
        let asked = Instant::now();
        let Verdict::Here(mut slot, share) = node.admit(&terms, 0).await else { panic!("it stands still") };
        assert_eq!(share.requests_per_minute, 20);
        // A machine that is busy with other things is allowed some more.
        assert!(asked.elapsed() < Duration::from_millis(150), "{turn}: {:?}", asked.elapsed());
        slot.hold();
        slots.push(slot);
    }
    assert!(node.windows.observed().degraded);
    let asked = Instant::now();
    for _ in 0..100 {
        assert!(matches!(node.admit(&terms, 0).await, Verdict::Here(..)));
    }
    assert!(asked.elapsed() < Duration::from_millis(100), "nobody waits any more: {:?}", asked.elapsed());
    server.signal("CONT");
    node.until_asked().await;
    node.until("everything to be told", |windows| windows.trail().waiting() == 0).await;
    let key = Tag::of(&KeyDigest([5; 32])).key('r');
    let counted: u32 = redis::cmd("ZCARD").arg(key).query(&mut server.connect()).unwrap();
    assert_eq!(counted, 20, "what was asked in vain and what was decided here, each once");
}

/// How many the key's sorted set has of that part.
fn counted(connection: &mut Connection, part: char) -> u32 {
    redis::cmd("ZCARD").arg(Tag::of(&KeyDigest([5; 32])).key(part)).query(connection).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_given_up_at_any_moment_leave_nothing_behind() {
    let Some(server) = Server::start() else { return };
    let node = Node::start(&server, "a", 20);
    node.until_asked().await;
    let terms = limits(10_000, Some(1_000_000), Some(10_000));
    let (mut held, mut ran) = (Vec::new(), 0);
    for round in 0..6u64 {
        if round % 3 == 1 {
            server.signal("STOP");
        }
        let mut tasks = Vec::new();
        for turn in 0..60u64 {
            let windows = Arc::clone(&node.windows);
            tasks.push(tokio::spawn(async move {
                let admitted = windows.admit(&KeyDigest([5; 32]), Uuid::now_v7(), &terms, 10);
                let patience = Duration::from_micros((turn % 30) * 150);
                let (Verdict::Admitted(mut slot, _) | Verdict::Here(mut slot, _)) = (match turn % 3 {
                    0 => admitted.await,
                    // The client leaves.
                    _ => tokio::time::timeout(patience, admitted).await.ok()?,
                }) else {
                    return None;
                };
                // Every other one is refused for another reason after it was admitted.
                (turn % 2 == 0).then(|| {
                    slot.hold();
                    slot.settle(5);
                    slot
                })
            }));
        }
        for task in tasks {
            held.extend(task.await.unwrap());
        }
        server.signal("CONT");
        ran += held.len();
        if round % 2 == 0 {
            held.clear();
        }
    }
    assert!(ran > 20, "some of them ran");
    node.until_asked().await;
    node.until("everything to be told", |windows| windows.trail().waiting() == 0).await;
    let mut connection = server.connect();
    let end = Instant::now() + Duration::from_secs(10);
    while counted(&mut connection, 'c') as usize != held.len() {
        assert!(Instant::now() < end, "{} of {} places", counted(&mut connection, 'c'), held.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    held.clear();
    while counted(&mut connection, 'c') > 0 {
        assert!(Instant::now() < end, "{} places are left", counted(&mut connection, 'c'));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let entries = node.windows.trail().remembered();
    assert_eq!(counted(&mut connection, 'r') as usize, entries, "what was held, and nothing else");
    let Verdict::Admitted(_slot, view) = node.admit(&terms, 0).await else { panic!("there is room") };
    assert_eq!(view.tokens.unwrap().remaining, 1_000_000 - 5 * entries as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_keeps_another_finds() {
    let Some(server) = Server::start() else { return };
    let (one, other) = (Node::start(&server, "a", PATIENT_MS), Node::start(&server, "b", PATIENT_MS));
    one.until_asked().await;
    other.until_asked().await;
    one.windows.keep("first".into(), b"a thing".to_vec());
    let names = ["nothing".to_owned(), "first".to_owned()];
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let found = other.windows.fetch(&names).await;
        assert_eq!((found.len(), &found[0]), (2, &None));
        if found[1].as_deref() == Some(b"a thing") {
            break;
        }
        assert!(Instant::now() < end, "it is not there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let left: i64 = redis::cmd("PTTL").arg("tollgate:kept:first").query(&mut server.connect()).unwrap();
    assert!((1..=3_600_000).contains(&left));
}
