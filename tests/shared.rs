//! Several nodes, one store and one Redis: what a key may take holds at all of them together, and goes on at a node's share where
//! Redis is away or slow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::setup::MODEL;
use support::tls::Authority;
use support::{Connection, Gate, Lag, Redis, Relay, Request, Response, Setup, Store, Upstream, until, within};
use tempfile::TempDir;

/// How long requests wait for Redis where a test is about what it decides, on a machine that has other things to do.
const PATIENT_MS: u64 = 1_000;
/// As it is without being configured.
const USUAL_MS: u64 = 20;
/// How much later than usual an answer may be because of Redis: what is waited for it, and some for a machine that is busy.
const LATER_MAX: Duration = Duration::from_millis(250);
/// How soon Redis decides again once it is back.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Nodes with a store in common.
struct Nodes {
    relays: Vec<Relay>,
    _store: Store,
    _folder: TempDir,
}

impl Nodes {
    fn start(count: usize, upstream: &Upstream, redis: &str, wait_ms: u64) -> Self {
        let folder = TempDir::with_prefix("tollgate-nodes-").unwrap();
        let store = Store::new(folder.path());
        let shared = format!("[shared]\nredis = \"{redis}\"\nwait_milliseconds_max = {wait_ms}\n");
        let start = |_| Setup::new(upstream).store(store.shared()).table(&shared).start();
        let nodes = Self { relays: (0..count).map(start).collect(), _store: store, _folder: folder };
        nodes.until_asked();
        for relay in &nodes.relays {
            until("all nodes to be seen", || {
                (relay.metric("tollgate_shared_windows_nodes", &[]) as usize == count).then_some(())
            });
        }
        nodes
    }

    fn until_asked(&self) {
        self.relays.iter().for_each(|relay| until("Redis to decide", || (!is_degraded(relay)).then_some(())));
    }

    fn until_degraded(&self) {
        self.relays.iter().for_each(|relay| until("the node to decide by itself", || is_degraded(relay).then_some(())));
    }

    /// A key of a new account.
    fn key(&self, options: &[&str]) -> String {
        let relay = &self.relays[0];
        relay.key_of(&relay.account("open", "10"), options).key
    }

    fn decided(&self, source: &str) -> f64 {
        self.relays.iter().map(|relay| decided(relay, source)).sum()
    }
}

fn decided(relay: &Relay, source: &str) -> f64 {
    relay.metric("tollgate_shared_windows_decisions_total", &[("source", source)])
}

fn is_degraded(relay: &Relay) -> bool {
    relay.metric("tollgate_shared_windows_degraded", &[]) > 0.5
}

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

fn ask(relay: &Relay, key: &str) -> Response {
    Request::chat(&hello()).key(key).send(relay.http)
}

/// So many requests at once, at each node as many as at the others.
fn at_once(nodes: &Nodes, key: &str, count: usize) -> Vec<Response> {
    let barrier = Barrier::new(count);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|turn| {
                let (relay, barrier) = (&nodes.relays[turn % nodes.relays.len()], &barrier);
                scope.spawn(move || {
                    let mut connection = Connection::open(relay.http);
                    let request = Request::chat(&hello()).key(key);
                    barrier.wait();
                    connection.ask(&request)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn passed(answers: &[Response]) -> usize {
    answers.iter().filter(|answer| answer.status == 200).count()
}

#[track_caller]
fn assert_refused_for_now(answer: &Response, code: &str) {
    answer.assert_error(429, "rate_limit_error", code);
    let (seconds, milliseconds) = (answer.number("retry-after"), answer.number("retry-after-ms"));
    assert!(seconds <= 61 && (1..=61_000).contains(&milliseconds), "{answer:?}");
}

#[test]
fn sixty_a_minute_at_three_nodes_are_sixty() {
    let Some(redis) = Redis::start() else { return };
    let upstream = Upstream::polite();
    let nodes = Nodes::start(3, &upstream, &redis.url(), PATIENT_MS);
    let key = nodes.key(&["--rpm", "60"]);
    let began = Instant::now();
    let answers = at_once(&nodes, &key, 150);
    let (passed, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!((passed.len(), refused.len(), upstream.count()), (60, 90, 60));
    let mut remaining: Vec<u64> = passed.iter().map(|answer| answer.number("x-ratelimit-remaining")).collect();
    remaining.sort_unstable();
    assert_eq!(remaining, (0..60).collect::<Vec<u64>>(), "no two got the same slot");
    let earliest = Duration::from_secs(60).saturating_sub(began.elapsed());
    for answer in refused {
        assert_refused_for_now(answer, "rate_limit_exceeded");
        assert!(Duration::from_millis(answer.number("retry-after-ms")) >= earliest, "true at every node: {answer:?}");
        assert_eq!((answer.number("x-ratelimit-limit"), answer.number("x-ratelimit-remaining")), (60, 0));
    }
    assert_eq!((nodes.decided("redis") as usize, nodes.decided("local") as usize), (150, 0));
    let digits = key.strip_prefix("tg_live_").unwrap();
    assert!(!redis.dump().contains(digits), "the key itself is not there");
}

#[test]
fn requests_at_once_are_counted_at_all_nodes_and_a_dead_ones_places_come_back() {
    let Some(redis) = Redis::start() else { return };
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::start(move |request, answer| {
        wait.wait();
        answer.politely(request);
    });
    let nodes = Nodes::start(3, &upstream, &redis.url(), PATIENT_MS);
    let key = nodes.key(&["--concurrency", "2"]);
    let [one, two, three] = &nodes.relays[..] else { panic!("three") };
    let mut first = Request::chat(&hello()).key(&key).begin(one.http);
    let _second = Request::chat(&hello()).key(&key).begin(two.http);
    upstream.wait_for(2);
    assert_refused_for_now(&ask(three, &key), "concurrency_limit_exceeded");
    two.signal("KILL");
    two.wait_for_end();
    gate.open();
    assert_eq!(first.response().status, 200);
    until("the place of what has ended", || (ask(three, &key).status == 200).then_some(()));
    let both = || {
        let slots = redis.ask(&format!("ZCARD {}", slots_key(&redis)));
        (slots == ":0").then_some(())
    };
    until("the dead node's place", || {
        let _ = ask(three, &key);
        both()
    });
}

/// The key of the one API key whose running requests Redis knows.
fn slots_key(redis: &Redis) -> String {
    let listed = redis.dump();
    let found = listed.lines().find(|line| line.starts_with("tollgate:{") && line.ends_with("}:c"));
    found.unwrap_or("none").to_owned()
}

#[test]
fn tokens_a_minute_are_counted_at_all_nodes() {
    let Some(redis) = Redis::start() else { return };
    let upstream = Upstream::polite();
    let nodes = Nodes::start(2, &upstream, &redis.url(), PATIENT_MS);
    let key = nodes.key(&["--tpm", "500"]);
    let [one, two] = &nodes.relays[..] else { panic!("two") };
    let asking = |relay: &Relay, tokens: u32| {
        let mut body = hello();
        body["max_tokens"] = json!(tokens);
        Request::chat(&body).key(&key).send(relay.http)
    };
    for turn in 0..10 {
        let relay = [one, two][turn % 2];
        until("the reservation to be settled", || (asking(relay, 300).status == 200).then_some(()));
    }
    let answer = until("the last to be settled", || Some(asking(one, 100)).filter(|answer| answer.status == 200));
    let remaining = answer.number("x-ratelimit-remaining-tokens");
    assert!(
        (270..=300).contains(&remaining),
        "eleven a request at both nodes, and what this one reserves: {remaining}"
    );
    assert_refused_for_now(&asking(two, 450), "rate_limit_exceeded");
    let other = asking(two, 501);
    assert_eq!((other.status, other.header("retry-after")), (429, None), "more than all of them");
}

#[test]
fn what_is_refused_for_want_of_credit_takes_no_place() {
    let Some(redis) = Redis::start() else { return };
    let upstream = Upstream::polite();
    let nodes = Nodes::start(2, &upstream, &redis.url(), PATIENT_MS);
    let [one, two] = &nodes.relays[..] else { panic!("two") };
    let poor = one.account("open", "0.000001");
    let key = one.key_of(&poor, &["--rpm", "1", "--concurrency", "1"]).key;
    for _ in 0..3 {
        let refused = ask(one, &key);
        assert_eq!(refused.status, 402, "{}", refused.text());
        assert_eq!(refused.number("x-ratelimit-remaining"), 1);
        until("what was taken to be given back", || {
            (redis.ask(&format!("ZCARD {}", slots_key(&redis))) == ":0").then_some(())
        });
    }
    one.cli_json(&["account", "credit", &poor.id, "1"]);
    until("the credit to be seen", || (ask(two, &key).status == 200).then_some(()));
    assert_eq!(ask(two, &key).status, 429);
}

#[test]
fn without_redis_each_node_gives_out_its_share_and_nobody_waits() {
    let Some(mut redis) = Redis::start() else { return };
    let upstream = Upstream::polite();
    let nodes = Nodes::start(3, &upstream, &redis.url(), USUAL_MS);
    let key = nodes.key(&["--rpm", "60"]);
    // So that each node knows the key.
    nodes.relays.iter().for_each(|relay| assert_eq!(ask(relay, &nodes.relays[0].key).status, 200));
    redis.stop();
    nodes.until_degraded();
    let began = Instant::now();
    let answers = at_once(&nodes, &key, 150);
    assert_eq!(passed(&answers), 60, "twenty at each of three");
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_refused_for_now(answer, "rate_limit_exceeded");
        assert_eq!(answer.number("x-ratelimit-remaining"), 0);
    }
    println!("150 answers without Redis within {:?}", began.elapsed());
    assert!(nodes.relays[0].stderr().contains("Redis cannot be asked"), "it is told once");

    redis.start_again();
    let back = within(BACK_WITHIN, || nodes.relays.iter().all(|relay| !is_degraded(relay)).then_some(()));
    assert!(back.is_some(), "Redis does not decide again within {BACK_WITHIN:?}");
    until("what all nodes have admitted to be known", || (redis.ask(&requests_in(&redis)) == ":60").then_some(()));
    assert_eq!(passed(&at_once(&nodes, &key, 30)), 0, "the minute's are not sold twice");
}

/// Asks how many requests of the last minute Redis knows, of the key that has the most.
fn requests_in(redis: &Redis) -> String {
    let listed = redis.dump();
    let keys = listed.lines().filter(|line| line.starts_with("tollgate:{") && line.ends_with("}:r"));
    let number = |key: &&str| redis.ask(&format!("ZCARD {key}")).trim_start_matches(':').parse::<u32>().unwrap_or(0);
    format!("ZCARD {}", keys.max_by_key(number).unwrap_or("none"))
}

/// Asks a few times, and gives how long the slowest answer took.
fn slowest(nodes: &Nodes, key: &str, times: usize) -> Duration {
    let took = |turn: usize| {
        let relay = &nodes.relays[turn % nodes.relays.len()];
        let asked = Instant::now();
        let answer = ask(relay, key);
        assert_eq!(answer.status, 200, "{}", answer.text());
        asked.elapsed()
    };
    (0..times).map(took).max().unwrap()
}

#[test]
fn a_redis_that_stands_still_is_noticed_and_comes_back() {
    let Some(redis) = Redis::start() else { return };
    let upstream = Upstream::polite();
    let nodes = Nodes::start(2, &upstream, &redis.url(), USUAL_MS);
    let key = nodes.key(&["--rpm", "1000", "--concurrency", "50"]);
    let usual = slowest(&nodes, &key, 20);
    redis.signal("STOP");
    let stopped = slowest(&nodes, &key, 60);
    println!("slowest answer: {usual:?} with Redis, {stopped:?} with one that stands still");
    assert!(stopped < usual + LATER_MAX, "{stopped:?} after {usual:?}");
    nodes.until_degraded();
    redis.signal("CONT");
    let back = within(BACK_WITHIN, || nodes.relays.iter().all(|relay| !is_degraded(relay)).then_some(()));
    assert!(back.is_some(), "Redis does not decide again within {BACK_WITHIN:?}");
    until("all of them to be counted, once", || (redis.ask(&requests_in(&redis)) == ":80").then_some(()));
    until("no place to be taken", || (redis.ask(&format!("ZCARD {}", slots_key(&redis))) == ":0").then_some(()));
}

#[test]
fn a_slow_line_is_as_none() {
    let Some(redis) = Redis::start() else { return };
    let line = Lag::start(redis.address);
    let upstream = Upstream::polite();
    let nodes = Nodes::start(2, &upstream, &format!("redis://{}", line.address), USUAL_MS);
    let key = nodes.key(&["--rpm", "1000"]);
    let usual = slowest(&nodes, &key, 10);
    line.set(Duration::from_millis(100));
    let slow = slowest(&nodes, &key, 40);
    println!("slowest answer: {usual:?} over a fast line, {slow:?} over one that takes 100 ms");
    assert!(slow < usual + LATER_MAX, "{slow:?} after {usual:?}");
    nodes.until_degraded();
    line.set(Duration::ZERO);
    let back = within(BACK_WITHIN, || nodes.relays.iter().all(|relay| !is_degraded(relay)).then_some(()));
    assert!(back.is_some(), "Redis does not decide again within {BACK_WITHIN:?}");
    until("all of them to be counted, once", || (redis.ask(&requests_in(&redis)) == ":50").then_some(()));
}

#[test]
fn what_is_flushed_is_told_again() {
    let Some(redis) = Redis::start() else { return };
    let upstream = Upstream::polite();
    let nodes = Nodes::start(2, &upstream, &redis.url(), PATIENT_MS);
    let key = nodes.key(&["--rpm", "20"]);
    assert_eq!(passed(&at_once(&nodes, &key, 12)), 12);
    assert_eq!(redis.ask("SCRIPT FLUSH"), "+OK");
    assert_eq!(passed(&at_once(&nodes, &key, 4)), 4);
    assert_eq!(redis.ask("FLUSHALL"), "+OK");
    assert_eq!(redis.ask("SCRIPT FLUSH"), "+OK");
    until("what was admitted to be known again", || (redis.ask(&requests_in(&redis)) == ":16").then_some(()));
    assert_eq!(passed(&at_once(&nodes, &key, 30)), 4);
    assert_eq!(nodes.decided("local") as usize, 0);
}

#[test]
fn what_gemini_signed_at_one_node_is_known_at_another() {
    let Some(redis) = Redis::start() else { return };
    let upstream = Upstream::start(|_, answer| {
        let call = json!({"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "U2lnbmVkQnlHZW1pbmk="});
        let usage = json!({"promptTokenCount": 5, "candidatesTokenCount": 3, "totalTokenCount": 8});
        answer.json(
            200,
            &json!({
                "candidates": [{"content": {"role": "model", "parts": [call]}, "finishReason": "STOP", "index": 0}],
                "usageMetadata": usage
            }),
        );
    });
    let folder = TempDir::with_prefix("tollgate-nodes-").unwrap();
    let table = format!(
        "[shared]\nredis = \"{}\"\nwait_milliseconds_max = {PATIENT_MS}\n\n\
         [[provider]]\nname = \"gemini\"\ndialect = \"gemini\"\nbase_url = \"http://{}\"\n\
         credentials = [{{ env = \"UPSTREAM_KEY\" }}]\n",
        redis.url(),
        upstream.address
    );
    let store = Store::new(folder.path());
    let start = || {
        let setup = Setup::bare().store(store.shared()).table(&table);
        setup.model(MODEL, &[("gemini", 0)]).start()
    };
    let nodes = Nodes { relays: vec![start(), start()], _store: store, _folder: folder };
    nodes.until_asked();
    let [one, two] = &nodes.relays[..] else { panic!("two") };
    let mut body = hello();
    body["tools"] = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let answer = Request::chat(&body).key(&one.key).send(one.http).json();
    let mut call = answer["choices"][0]["message"]["tool_calls"][0].clone();
    let id = call["id"].clone();
    // As clients do that drop what they do not know.
    call.as_object_mut().unwrap().remove("extra_content");
    let history = body["messages"].as_array_mut().unwrap();
    history.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
    history.push(json!({"role": "tool", "tool_call_id": id, "content": "done"}));
    until("the signature to be known at the other node", || {
        assert_eq!(Request::chat(&body).key(&one.key).send(two.http).status, 200);
        let sent = upstream.received().last().unwrap().json().to_string();
        sent.contains("U2lnbmVkQnlHZW1pbmk=").then_some(())
    });
    let kept = redis.dump();
    assert!(kept.contains("tollgate:kept:") && !kept.contains("U2lnbmVk"), "{kept}");
}

#[test]
fn a_guarded_redis_is_reached_over_tls_and_by_its_password() {
    const PASSWORD: &str = "a-password-of-tests-0123";
    let authority = Authority::new("tests");
    let Some(redis) = Redis::start_guarded(&authority.certify("127.0.0.1"), PASSWORD) else { return };
    let upstream = Upstream::polite();
    let start = |password: &str| {
        let table = format!(
            "[shared]\nredis = \"rediss://{}\"\npassword = {{ env = \"REDIS_PASSWORD\" }}\n\
             wait_milliseconds_max = {PATIENT_MS}\n",
            redis.tls
        );
        let setup = Setup::new(&upstream).table(&table).env("REDIS_PASSWORD", password);
        setup.file("roots.pem", &authority.pem()).env("SSL_CERT_FILE", "roots.pem").start()
    };
    let relay = start(PASSWORD);
    until("Redis to decide", || (!is_degraded(&relay)).then_some(()));
    assert_eq!(relay.chat(&hello()).status, 200);
    assert_eq!((decided(&relay, "redis") as usize, decided(&relay, "local") as usize), (1, 0));

    let other = start("another-password");
    until("it to be told why not", || other.stderr().contains("Redis cannot be asked").then_some(()));
    assert_eq!((other.chat(&hello()).status, decided(&other, "local") as usize), (200, 1));
    let told = other.stderr();
    assert!(told.contains("WRONGPASS") || told.contains("authentication failed"), "{told}");
    assert!(!told.contains("another-password"));
}

#[test]
fn a_process_that_takes_over_counts_on_and_the_old_ones_places_are_held() {
    let Some(redis) = Redis::start() else { return };
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::start(move |request, answer| {
        if request.json()["seed"] == 1 {
            wait.wait();
        }
        answer.politely(request);
    });
    let nodes = Nodes::start(1, &upstream, &redis.url(), PATIENT_MS);
    let [relay] = &nodes.relays[..] else { panic!("one") };
    let key = nodes.key(&["--rpm", "4", "--concurrency", "2"]);
    let mut slow = hello();
    slow["seed"] = json!(1);
    let mut running = Request::chat(&slow).key(&key).begin(relay.http);
    upstream.wait_for(1);
    assert_eq!(ask(relay, &key).status, 200);
    let old = relay.pid();
    relay.signal("USR2");
    let new = until("the new process", || taken_over(&relay.stderr()));
    assert_ne!(new, old);
    relay.succeeded_by(new);
    // A new connection is the new process's.
    let third = until("the new process to ask Redis", || Some(ask(relay, &key)).filter(|answer| answer.status == 200));
    assert_eq!(third.number("x-ratelimit-remaining"), 1, "three of four, at both processes");
    assert!((relay.metric("tollgate_shared_windows_nodes", &[]) as usize) <= 1, "one node still");
    gate.open();
    assert_eq!(running.response().status, 200);
    until("all places to be free", || (redis.ask(&format!("ZCARD {}", slots_key(&redis))) == ":0").then_some(()));
    assert_eq!((ask(relay, &key).status, ask(relay, &key).status), (200, 429));
}

/// The process that has taken over, by what the old one says.
fn taken_over(log: &str) -> Option<u32> {
    let line = log.lines().find(|line| line.contains("the new process has taken over"))?;
    line.split("pid=").nth(1)?.split(|other: char| !other.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn without_the_table_nothing_is_asked() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    assert_eq!(relay.chat(&hello()).status, 200);
    let page = relay.metrics_page();
    assert!(page.contains("tollgate_shared_windows_degraded 0"), "{page}");
    assert!((decided(&relay, "redis") + decided(&relay, "local")) < 0.5);
}
