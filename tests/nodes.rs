//! Several nodes, each with a spool of its own, that sell from one store: what they sell in sum, and what becomes of a node's credit
//! that dies, is drained, or cannot reach the store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::setup::{MODEL, PROVIDER_MODEL};
use support::upstream::usage;
use support::{
    Account, Answer, Connection, End, Gate, Received, Relay, Request, Response, Setup, Upstream, until, within,
};

/// What a token of [`MODEL`] costs, in nano-USD.
const INPUT: i64 = 1_000;
const OUTPUT: i64 = 2_000;
const OUTPUT_TOKENS: i64 = 50;

/// How long leases last in these tests that are not renewed.
const LEASE: Duration = Duration::from_secs(3);

const STORM: usize = 1_000;

fn hello() -> Value {
    let messages = json!([{"role": "user", "content": "Say hello"}]);
    json!({"model": MODEL, "max_tokens": OUTPUT_TOKENS, "messages": messages})
}

fn dollars(nano_usd: i64) -> String {
    format!("{}.{:09}", nano_usd / 1_000_000_000, nano_usd % 1_000_000_000)
}

/// Three nodes at one store.
struct Fleet {
    nodes: Vec<Relay>,
}

impl Fleet {
    fn start(upstream: &Upstream) -> Self {
        let setup = |node: usize| {
            Setup::new(upstream)
                .limits("connections_per_ip_max = 10_000")
                .table(&format!("[shared]\nlease_seconds = {}\nnode = \"node-{node}\"", LEASE.as_secs()))
        };
        let first = setup(0).start();
        let others = (1..3).map(|node| setup(node).store(first.store().shared()).start());
        let nodes = std::iter::once(None).chain(others.map(Some)).collect::<Vec<_>>();
        Self { nodes: std::iter::once(first).chain(nodes.into_iter().flatten()).collect() }
    }

    /// An account with credit for so many requests, and a key of it.
    fn account(&self, holds: i64, held: i64) -> (Account, String) {
        let account = self.nodes[0].account("open", &dollars(holds * held));
        let key = self.nodes[0].key_of(&account, &[]).key;
        (account, key)
    }

    fn balance(&self, account: &Account) -> i64 {
        self.nodes[0].balance(account)
    }

    fn audits_well(&self) {
        until("an audit without differences", || self.nodes[0].cli(&["audit"]).status.success().then_some(()));
    }
}

/// What a request holds while it runs.
fn hold() -> i64 {
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::start(move |request, answer| {
        assert!(wait.wait());
        answer.politely(request);
    });
    let relay = Setup::new(&upstream).start();
    let mut running = Request::chat(&hello()).key(&relay.key).begin(relay.http);
    #[expect(clippy::cast_possible_truncation, reason = "a whole number, as far as floats have them")]
    let held = until("the hold", || Some(relay.metric("tollgate_held_nano_usd", &[]) as i64).filter(|held| *held > 0));
    gate.open();
    assert_eq!(running.response().status, 200);
    held
}

/// Says that the request has used all that is held for it.
fn use_all(answer: &mut Answer, held: i64) {
    let input = u64::try_from((held - OUTPUT_TOKENS * OUTPUT) / INPUT).unwrap();
    let message = json!({"role": "assistant", "content": "Hello", "refusal": null});
    answer.json(
        200,
        &json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": PROVIDER_MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "length"}],
            "usage": usage(input, OUTPUT_TOKENS.unsigned_abs())}),
    );
}

/// Answers when the gate is open, and uses all that is held.
fn greedy_behind(gate: &Gate, held: i64) -> Upstream {
    let wait = gate.clone();
    Upstream::start(move |_, answer| {
        assert!(wait.wait());
        use_all(answer, held);
    })
}

fn code(answer: &Response) -> (u16, String) {
    let code = answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
    (answer.status, code)
}

/// So many requests at the same time, over all nodes; how many were answered how.
fn storm(fleet: &Fleet, key: &str) -> BTreeMap<(u16, String), usize> {
    let barrier = Barrier::new(STORM / 10);
    let answers: Vec<Response> = thread::scope(|scope| {
        let work = || {
            let request = Request::chat(&hello()).key(key);
            let mut connections: Vec<Connection> =
                (0..10).map(|place| Connection::open(fleet.nodes[place % fleet.nodes.len()].http)).collect();
            barrier.wait();
            connections.iter_mut().for_each(|connection| connection.write(&request.bytes()));
            connections.iter_mut().map(Connection::response).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..STORM / 10).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut counts = BTreeMap::new();
    for answer in &answers {
        assert_eq!(answer.header("x-tollgate-output-tokens-max"), None, "no answer is made shorter");
        *counts.entry(code(answer)).or_default() += 1;
    }
    counts
}

#[test]
fn of_a_thousand_over_three_nodes_exactly_those_pass_that_there_is_credit_for() {
    let held = hold();
    let (arrived, all_there) = (AtomicUsize::new(0), Gate::new());
    let upstream = Upstream::start(move |_: &Received, answer: &mut Answer| {
        if arrived.fetch_add(1, Ordering::SeqCst) + 1 == 10 {
            all_there.open();
        }
        assert!(all_there.wait(), "ten requests have not come");
        use_all(answer, held);
    });
    let fleet = Fleet::start(&upstream);
    let (account, key) = fleet.account(10, held);
    let expected = [((200, String::new()), 10), ((402, "insufficient_credits".to_owned()), STORM - 10)];
    assert_eq!(storm(&fleet, &key), expected.into());
    until("the bills", || (fleet.balance(&account) == 0).then_some(()));
    fleet.audits_well();
}

#[test]
fn what_lies_idle_at_one_node_comes_back_for_a_request_at_another() {
    let held = hold();
    let gate = Gate::new();
    gate.open();
    let upstream = greedy_behind(&gate, held);
    let fleet = Fleet::start(&upstream);
    let (account, key) = fleet.account(3, held);
    for node in &fleet.nodes {
        let answer = Request::chat(&hello()).key(&key).send(node.http);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-tollgate-output-tokens-max"), None, "the answer is not made shorter");
    }
    let last = Request::chat(&hello()).key(&key).send(fleet.nodes[0].http);
    assert_eq!(code(&last), (402, "insufficient_credits".to_owned()));
    until("the bills", || (fleet.balance(&account) == 0).then_some(()));
    fleet.audits_well();
}

#[test]
fn a_node_that_dies_strands_its_lease_until_that_expires_and_nothing_is_overdrawn() {
    let held = hold();
    let gate = Gate::new();
    let upstream = greedy_behind(&gate, held);
    let fleet = Fleet::start(&upstream);
    let (account, key) = fleet.account(12, held);
    let request = Request::chat(&hello()).key(&key);
    let mut running: Vec<(usize, Connection)> = Vec::new();
    for _ in 0..2 {
        running.extend((0..3).map(|node| (node, request.begin(fleet.nodes[node].http))));
    }
    upstream.wait_for(6);
    let killed_at = Instant::now();
    fleet.nodes[1].signal("KILL");
    fleet.nodes[1].wait_for_end();
    gate.open();
    for (node, mut connection) in running {
        if node != 1 {
            assert_eq!(connection.response().status, 200);
        }
    }
    // What the dead node's requests held is not known to be spent: they got nothing.
    let mut sold = 4;
    until("the dead node's credit to be free", || {
        let answer = request.send(fleet.nodes[0].http);
        match code(&answer) {
            (200, _) => sold += 1,
            (402, _) => {}
            other => panic!("{other:?}"),
        }
        (sold == 12).then_some(())
    });
    let back_after = killed_at.elapsed();
    assert!(back_after < LEASE + Duration::from_secs(5), "{back_after:?}");
    assert_eq!(code(&request.send(fleet.nodes[2].http)), (402, "insufficient_credits".to_owned()));
    fleet.nodes[1].restart();
    until("the bills", || (fleet.balance(&account) == 0).then_some(()));
    assert_eq!(fleet.balance(&account), 0);
    fleet.audits_well();
}

#[test]
fn a_key_that_is_revoked_at_one_node_is_refused_by_all_within_two_seconds() {
    let gate = Gate::new();
    gate.open();
    let upstream = greedy_behind(&gate, 200_000);
    let fleet = Fleet::start(&upstream);
    let account = fleet.nodes[0].account("open", "10");
    let key = fleet.nodes[0].key_of(&account, &[]);
    let request = Request::chat(&hello()).key(&key.key);
    for node in &fleet.nodes {
        assert_eq!(request.send(node.http).status, 200);
    }
    fleet.nodes[0].cli_json(&["key", "revoke", &key.id]);
    let revoked_at = Instant::now();
    for node in &fleet.nodes {
        let refused = within(Duration::from_secs(2).saturating_sub(revoked_at.elapsed()), || {
            (request.send(node.http).status == 401).then_some(())
        });
        assert!(refused.is_some(), "still answered after {:?}", revoked_at.elapsed());
    }
}

#[test]
fn without_the_store_what_is_leased_is_sold_until_it_expires_and_then_nothing() {
    if support::store::server().is_some() {
        eprintln!("skipped: it is the lock on SQLite's file that keeps the nodes from the store");
        return;
    }
    let gate = Gate::new();
    gate.open();
    let upstream = greedy_behind(&gate, 200_000);
    let fleet = Fleet::start(&upstream);
    let node = &fleet.nodes[1];
    let request = Request::chat(&hello()).key(&node.key);
    assert_eq!(request.send(node.http).status, 200);

    let writer = rusqlite::Connection::open(fleet.nodes[0].folder().join("tollgate.db")).unwrap();
    writer.busy_timeout(Duration::from_secs(10)).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let locked_at = Instant::now();
    assert_eq!(request.send(node.http).status, 200, "what is leased can be sold");
    let refused = until("the lease's end", || Some(request.send(node.http)).filter(|answer| answer.status != 200));
    assert_eq!(code(&refused), (503, "billing_unavailable".to_owned()));
    assert!(refused.header("retry-after").is_some());
    until("all to be refused", || (locked_at.elapsed() > LEASE).then_some(()));
    assert_eq!(code(&request.send(node.http)), (503, "billing_unavailable".to_owned()));
    writer.execute_batch("ROLLBACK").unwrap();
    until("the node to sell again", || (request.send(node.http).status == 200).then_some(()));
    fleet.audits_well();
}

#[test]
fn nodes_are_listed_and_a_drained_one_says_that_it_is_not_ready() {
    let upstream = Upstream::polite();
    let fleet = Fleet::start(&upstream);
    let (first, second) = (&fleet.nodes[0], &fleet.nodes[1]);
    assert_eq!(first.chat(&hello()).status, 200);
    let listed = first.cli_json(&["node", "list"]);
    let nodes = listed.as_array().unwrap();
    let names: Vec<&str> = nodes.iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["node-0", "node-1", "node-2"]);
    assert!(nodes[0]["leased_nano_usd"].as_i64().unwrap() > 0, "{listed}");
    assert_eq!((&nodes[0]["epoch"], &nodes[0]["status"]), (&json!(1), &json!("live")));

    let id = nodes[1]["id"].as_str().unwrap();
    assert_eq!(first.cli_json(&["node", "drain", id])["draining"], true);
    let readiness = |relay: &Relay| Request::get("/readyz").send(relay.admin).status;
    until("the drained node to say so", || (readiness(second) == 503).then_some(()));
    assert_eq!(readiness(first), 200);
    assert_eq!(Request::chat(&hello()).key(&first.key).send(second.http).status, 200, "who still comes is served");
    assert_eq!(second.cli_json(&["node", "resume", "--self"])["draining"], false);
    until("the node to be ready again", || (readiness(second) == 200).then_some(()));

    second.signal("TERM");
    second.wait_for_end();
    let ended = first.cli_json(&["node", "list"]);
    assert_eq!((&ended[1]["status"], &ended[1]["leased_nano_usd"]), (&json!("gone"), &json!(0)), "{ended}");
}

#[test]
fn a_node_that_leases_nothing_does_not_sell_beside_those_that_do() {
    let upstream = Upstream::polite();
    let fleet = Fleet::start(&upstream);
    let first = &fleet.nodes[0];
    let mut alone =
        std::fs::read_to_string(first.config_path()).unwrap().replace("[shared]", "[shared]\nleases = false");
    alone = alone.replace("/spool.db", "/other.db");
    let ports = [(); 3].map(|()| support::Reserved::new());
    for (taken, free) in [first.http, first.admin, first.metrics].iter().zip(&ports) {
        alone = alone.replace(&taken.to_string(), &free.address.to_string());
    }
    std::fs::write(first.folder().join("alone.toml"), alone).unwrap();
    let mut environment = vec![("UPSTREAM_KEY".to_owned(), "x".to_owned())];
    environment.extend(first.store().environment());
    let mut child = support::relay::command(first.folder(), &environment)
        .args(["serve", "--config", "alone.toml"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let status = within(support::PATIENCE, || child.try_wait().unwrap());
    let _ = child.kill();
    let told = String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr).into_owned();
    assert!(status.is_some_and(|status| !status.success()), "{told}");
    assert!(told.contains("lease credit of this store"), "{told}");
}

/// Asks and reads the answer as far as it comes; whether all of it did, and it was one.
fn is_answered(relay: &Relay, key: &str) -> bool {
    let Some(mut connection) = Request::chat(&hello()).key(key).try_begin(relay.http) else { return false };
    let Some(head) = connection.try_head() else { return false };
    assert!([200, 402].contains(&head.status), "{}", head.status);
    let (_, end) = connection.rest();
    head.status == 200 && end == End::Clean
}

#[test]
fn a_node_that_is_killed_in_the_midst_of_a_storm_overdraws_nothing() {
    let held = hold();
    let gate = Gate::new();
    let upstream = greedy_behind(&gate, held);
    let fleet = Fleet::start(&upstream);
    let (account, key) = fleet.account(10, held);
    let answered: usize = thread::scope(|scope| {
        let ask = |place: usize| is_answered(&fleet.nodes[place % 3], &key);
        let clients: Vec<_> = (0..120).map(|place| scope.spawn(move || ask(place))).collect();
        upstream.wait_for(5);
        fleet.nodes[1].signal("KILL");
        fleet.nodes[1].wait_for_end();
        gate.open();
        clients.into_iter().map(|client| usize::from(client.join().unwrap())).sum()
    });
    assert!(answered <= 10, "{answered}");
    let mut sold = answered;
    until("the dead node's credit to be sold by the others", || {
        sold += usize::from(is_answered(&fleet.nodes[0], &key));
        (sold >= 10).then_some(())
    });
    fleet.nodes[1].restart();
    until("the bills", || (fleet.balance(&account) == 0).then_some(()));
    assert!(!is_answered(&fleet.nodes[1], &key), "there is no more");
    fleet.audits_well();
    assert_eq!((sold, fleet.balance(&account)), (10, 0));
}
