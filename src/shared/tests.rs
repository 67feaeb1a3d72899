//! The scripts on a real Redis, against the rules of `relay::admit`.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use redis::{Cmd, Connection};
use uuid::Uuid;

use super::Tag;
use super::script::{Answered, Ask, Outcome, SLOT_US, Scripts};
use super::testing::Server;
use crate::relay::admit::{Denied, KeyLimiter, KeyLimits, Permit};

/// Time stands still until a test moves it.
const TEST_CLOCK: &str = "local now = tonumber(redis.call('GET', 'clock'))\n";
/// A time as servers have it.
const BEGAN_US: u64 = 1_800_000_000_123_456;
const SECOND_US: u64 = 1_000_000;
/// For slots that nobody renews and that are not to end.
const NEVER_US: u64 = 1 << 50;

/// The scripts on a server, at a time that the test sets.
struct Bench {
    scripts: Scripts,
    connection: Connection,
    now_us: u64,
    asked: u128,
}

impl Bench {
    fn new(server: &Server) -> Self {
        let mut bench =
            Self { scripts: Scripts::by_clock(TEST_CLOCK), connection: server.connect(), now_us: 0, asked: 0 };
        for script in bench.scripts.all() {
            redis::cmd("SCRIPT").arg("LOAD").arg(&script.source).exec(&mut bench.connection).unwrap();
        }
        bench.set(BEGAN_US);
        bench
    }

    fn set(&mut self, now_us: u64) {
        self.now_us = now_us;
        redis::cmd("SET").arg("clock").arg(now_us).exec(&mut self.connection).unwrap();
    }

    fn run(&mut self, command: &Cmd) -> i64 {
        command.query(&mut self.connection).unwrap()
    }

    fn admit(&mut self, tag: Tag, limits: &KeyLimits, reserve: u64) -> (Uuid, Answered) {
        self.admit_for(tag, limits, reserve, NEVER_US)
    }

    fn admit_for(&mut self, tag: Tag, limits: &KeyLimits, reserve: u64, slot_us: u64) -> (Uuid, Answered) {
        self.asked += 1;
        let id = Uuid::from_u128(self.asked);
        let ask = Ask { tag, id, limits, reserve, latest_us: self.now_us, slot_us };
        let numbers: Vec<i64> = self.scripts.admit(&ask).query(&mut self.connection).unwrap();
        (id, Answered::read(&numbers, limits).unwrap())
    }

    fn release(&mut self, tag: Tag, id: Uuid, at_us: Option<u64>, reserved: Option<u64>, used: Option<u64>) -> i64 {
        let command = self.scripts.release(tag, id, at_us, reserved, used);
        self.run(&command)
    }
}

fn tag(number: u8) -> Tag {
    Tag([number; 16])
}

fn limits(requests: u32, tokens: Option<u64>, at_once: Option<u32>) -> KeyLimits {
    KeyLimits { requests_per_minute: requests, tokens_per_minute: tokens, concurrent_requests: at_once }
}

#[derive(Debug, Clone)]
enum Step {
    Wait { us: u64 },
    Admit { requests: u32, tokens: u64, at_once: u32, reserve: u64 },
    End { which: usize, used: Option<u64>, knows_when: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait = prop_oneof![
        Just(0),
        Just(1),
        Just(60 * SECOND_US),
        Just(60 * SECOND_US + 1),
        0..SECOND_US,
        0..10 * SECOND_US,
        0..40 * SECOND_US
    ];
    let step = prop_oneof![
        2 => wait.prop_map(|us| Step::Wait { us }),
        4 => (0u32..7, 0u64..120, 0u32..5, 0u64..60).prop_map(|(requests, tokens, at_once, reserve)| {
            Step::Admit { requests, tokens, at_once, reserve }
        }),
        2 => (any::<usize>(), proptest::option::of(0u64..150), any::<bool>())
            .prop_map(|(which, used, knows_when)| Step::End { which, used, knows_when }),
    ];
    proptest::collection::vec(step, 1..60)
}

/// A request that both have admitted.
struct Running {
    id: Uuid,
    at_us: u64,
    reserved: Option<u64>,
    permit: Permit,
}

fn agree(bench: &mut Bench, key: Tag, has_tokens: bool, has_at_once: bool, steps: Vec<Step>) {
    let model = Arc::new(KeyLimiter::default());
    let mut running: Vec<Running> = Vec::new();
    for step in steps {
        match step {
            Step::Wait { us } => bench.set(bench.now_us + us),
            Step::Admit { requests, tokens, at_once, reserve } => {
                let terms = limits(requests, has_tokens.then_some(tokens), has_at_once.then_some(at_once));
                let expected = model.admit(&terms, reserve, bench.now_us);
                let (id, found) = bench.admit(key, &terms, reserve);
                match (expected, &found.outcome) {
                    (Ok(permit), Outcome::Admitted) => {
                        assert_eq!(&found.view, permit.view());
                        let reserved = has_tokens.then_some(reserve);
                        running.push(Running { id, at_us: found.at_us, reserved, permit });
                    }
                    (Err(refusal), Outcome::Denied(denied)) => {
                        let told = denied.refusal(&terms, reserve);
                        assert_eq!(
                            (told.cause, told.retry_after_ms, &told.message),
                            (refusal.cause, refusal.retry_after_ms, &refusal.message)
                        );
                        assert_eq!(found.view, model.view(&terms, bench.now_us));
                    }
                    (expected, found) => panic!("{found:?}, and not {:?}", expected.map(|_| ())),
                }
            }
            Step::End { which, used, knows_when } => {
                if running.is_empty() {
                    continue;
                }
                let mut ended = running.swap_remove(which % running.len());
                if let Some(used) = used {
                    ended.permit.settle_tokens(used, bench.now_us);
                }
                // Where it is not known it is looked for among the last minute's.
                let at_us = (knows_when || bench.now_us > ended.at_us + 60 * SECOND_US).then_some(ended.at_us);
                bench.release(key, ended.id, at_us, ended.reserved, used);
                assert_eq!(bench.release(key, ended.id, at_us, ended.reserved, used), 0, "twice is once");
            }
        }
    }
}

#[test]
fn the_scripts_and_the_rules_agree() {
    let Some(server) = Server::start() else { return };
    let bench = RefCell::new((0u32, Bench::new(&server)));
    let config = ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(has_tokens in any::<bool>(), has_at_once in any::<bool>(), steps in steps())| {
        let (case, bench) = &mut *bench.borrow_mut();
        *case += 1;
        let mut key = [0; 16];
        key[..4].copy_from_slice(&case.to_be_bytes());
        agree(bench, Tag(key), has_tokens, has_at_once, steps);
    });
}

#[test]
fn what_is_undone_was_never_there() {
    let Some(server) = Server::start() else { return };
    let mut bench = Bench::new(&server);
    let terms = limits(2, Some(100), Some(2));
    let (first, found) = bench.admit(tag(1), &terms, 60);
    assert_eq!((found.view.requests.remaining, found.view.tokens.unwrap().remaining), (1, 40));
    let undo = bench.scripts.undo(tag(1), first, Some(60));
    assert_eq!((bench.run(&undo), bench.run(&undo)), (1, 0));
    let (_, found) = bench.admit(tag(1), &terms, 100);
    assert_eq!((found.outcome, found.view.requests.remaining), (Outcome::Admitted, 1));
    assert_eq!(bench.admit(tag(1), &limits(2, None, Some(2)), 0).1.outcome, Outcome::Admitted, "one more at once");
}

#[test]
fn what_was_admitted_elsewhere_is_counted_once_and_at_its_time() {
    let Some(server) = Server::start() else { return };
    let mut bench = Bench::new(&server);
    let terms = limits(3, Some(100), Some(1));
    let at_us = BEGAN_US - 59 * SECOND_US;
    let record = bench.scripts.record(tag(1), Uuid::from_u128(77), at_us, Some(90), Some(SECOND_US));
    assert_eq!((bench.run(&record), bench.run(&record)), (1, 0));
    assert_eq!(bench.admit(tag(1), &terms, 20).1.outcome, Outcome::Denied(Denied::Tokens { retry_after_ms: 1_001 }));
    assert_eq!(bench.admit(tag(1), &terms, 10).1.outcome, Outcome::Denied(Denied::AtOnce));
    let later_us = BEGAN_US + SECOND_US + 1;
    bench.set(later_us);
    let (_, found) = bench.admit(tag(1), &terms, 100);
    assert_eq!((found.outcome, found.view.requests.remaining), (Outcome::Admitted, 2), "it has left all of them");
    let old = bench.scripts.record(tag(1), Uuid::from_u128(78), at_us, Some(90), None);
    assert_eq!(bench.run(&old), 0, "too old to count");
    // It ran when slots were renewed, and had ended when it was told of.
    let (id, limit) = (Uuid::from_u128(79), limits(9, Some(100), None));
    let renew = bench.scripts.renew(tag(3), &[id]);
    let record = bench.scripts.record(tag(3), id, later_us, Some(30), None);
    assert_eq!((bench.run(&renew), bench.run(&record)), (1, 1));
    assert_eq!(bench.release(tag(3), id, None, Some(90), Some(30)), 0);
    assert_eq!(bench.admit(tag(3), &limit, 0).1.view.tokens.unwrap().remaining, 70);
    // Between others, as if it had always been there.
    for (number, seconds) in [(80, 30), (81, 50), (82, 40), (83, 40)] {
        let at_us = later_us - seconds * SECOND_US;
        let record = bench.scripts.record(tag(2), Uuid::from_u128(number), at_us, Some(10), None);
        assert_eq!(bench.run(&record), 1);
    }
    let found = bench.admit(tag(2), &limits(9, Some(45), None), 45).1.outcome;
    assert_eq!(found, Outcome::Denied(Denied::Tokens { retry_after_ms: 30_001 }), "when the last of them leaves");
    let found = bench.admit(tag(2), &limits(9, Some(45), None), 35).1.outcome;
    assert_eq!(found, Outcome::Denied(Denied::Tokens { retry_after_ms: 20_001 }), "when those of one second leave");
}

#[test]
fn a_slot_that_nobody_renews_comes_back() {
    let Some(server) = Server::start() else { return };
    let mut bench = Bench::new(&server);
    let terms = limits(9, None, Some(1));
    let (id, _) = bench.admit_for(tag(1), &terms, 0, SLOT_US);
    let renewed_us = BEGAN_US + SLOT_US - 1;
    bench.set(renewed_us);
    let renew = bench.scripts.renew(tag(1), &[id]);
    assert_eq!(bench.run(&renew), 1);
    bench.set(renewed_us + SLOT_US - 1);
    assert_eq!(bench.admit(tag(1), &terms, 0).1.outcome, Outcome::Denied(Denied::AtOnce));
    bench.set(renewed_us + SLOT_US);
    assert_eq!(bench.admit(tag(1), &terms, 0).1.outcome, Outcome::Admitted);
}

#[test]
fn what_comes_too_late_does_nothing() {
    let Some(server) = Server::start() else { return };
    let mut bench = Bench::new(&server);
    let terms = limits(1, None, None);
    let ask = Ask {
        tag: tag(1),
        id: Uuid::from_u128(1),
        limits: &terms,
        reserve: 0,
        latest_us: BEGAN_US - 1,
        slot_us: NEVER_US,
    };
    let numbers: Vec<i64> = bench.scripts.admit(&ask).query(&mut bench.connection).unwrap();
    assert_eq!(Answered::read(&numbers, &terms).unwrap().outcome, Outcome::Late);
    assert_eq!(bench.admit(tag(1), &terms, 0).1.outcome, Outcome::Admitted);
}

#[test]
fn a_servers_clock_that_is_set_back_holds_nobody_up_for_long() {
    let Some(server) = Server::start() else { return };
    let mut bench = Bench::new(&server);
    let terms = limits(1, None, None);
    bench.admit(tag(1), &terms, 0);
    bench.set(BEGAN_US - 30 * SECOND_US);
    let found = bench.admit(tag(1), &terms, 0).1.outcome;
    assert_eq!(found, Outcome::Denied(Denied::Requests { retry_after_ms: 90_000 }));
    bench.set(BEGAN_US - 3_600 * SECOND_US);
    assert_eq!(bench.admit(tag(1), &terms, 0).1.outcome, Outcome::Admitted);
}

/// Not a test of anything: it prints what a request costs Redis.
#[test]
fn what_a_request_costs_is_shown() {
    let Some(server) = Server::start() else { return };
    let mut bench = Bench::new(&server);
    let spent = |bench: &mut Bench| {
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut bench.connection).unwrap();
        redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut bench.connection).unwrap();
        let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        line.split(',').find_map(|part| part.strip_prefix("usec_per_call=")).unwrap_or("?").to_owned()
    };
    for (number, terms) in
        [limits(100_000, None, None), limits(100_000, Some(1 << 40), Some(100_000))].into_iter().enumerate()
    {
        let key = tag(u8::try_from(number).unwrap());
        spent(&mut bench);
        let began = Instant::now();
        let admitted: Vec<_> = (0..5_000)
            .map(|turn| {
                if turn % 100 == 0 {
                    bench.set(bench.now_us + SECOND_US);
                }
                bench.admit(key, &terms, 100)
            })
            .collect();
        let (whole, admission) = (began.elapsed() / 5_000, spent(&mut bench));
        for (id, found) in admitted {
            bench.release(key, id, Some(found.at_us), terms.tokens_per_minute.map(|_| 100), Some(50));
        }
        let release = spent(&mut bench);
        println!(
            "{terms:?}: {admission} µs of Redis an admission, {release} µs a release; one after the other {whole:?} each"
        );
    }
}

// House rules know a file of tests by this.
#[cfg(test)]
mod nodes;
