//! What a request costs from the recorder through the spool into the ledger, at a given pace, and how long its last byte waits.
//!
//! Prints the CPU of billing's threads and of the database's, a request, and how long it took from a request's end until its record
//! was kept. The pace matters, because what comes together is written together, and so does how long requests run: those of less than
//! 20 ms have no row while they do. What ending a request costs its caller, the journal's write included, is told apart.
//! `cargo bench --bench billing -- [power] [REQUESTS_PER_SECOND [SECONDS [RUNNING_MS]]]`.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a bench keeps a pace and prints")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tollgate::billing::{self, Durability, Opening, Recorder, SpoolPlace, Ticket};
use tollgate::relay::admit::{Hold, Purse, Spending};
use tollgate::relay::auth::KeyDigest;
use tollgate::relay::meter::{NanoUsd, Usage, UsageRecord};
use tollgate::store::{KeyTerms, NewKey, Store};
use uuid::Uuid;

/// As in the relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often the bench hands over what is due.
const TICK: Duration = Duration::from_micros(100);

/// Accounts, each with a key.
const PAYERS: usize = 8;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let rate = numbers.next().unwrap_or(10_000);
    let seconds = numbers.next().unwrap_or(5);
    let running = Duration::from_millis(numbers.next().unwrap_or(0));
    let power = std::env::args().any(|argument| argument == "power");
    let runtime = crate::runtime("background")?;
    let clients = crate::runtime("clients")?;
    let folder = tempfile::tempdir_in(std::env::var("BILLING_BENCH_FOLDER").unwrap_or_else(|_| ".".to_owned()))?;
    let store = runtime.block_on(Store::open(&format!("sqlite://{}/tollgate.db", folder.path().display())))?;
    let payers = runtime.block_on(payers(&store))?;
    let place = SpoolPlace {
        path: folder.path().join("spool.db"),
        bytes_max: 1 << 30,
        durability: if power { Durability::Power } else { Durability::Process },
        sinks: Vec::new(),
    };
    let (recorder, worker) = runtime.block_on(billing::open(&place, store.clone()))?;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let told = async move {
        let _ = ended.await;
    };
    let worker = runtime.spawn(worker.run(told, |_| {}));

    let before = cpu_by_thread()?;
    let mut bench =
        Bench { recorder: recorder.clone(), clients, waits: Arc::default(), runs: VecDeque::new(), called: 0 };
    let (opened, refused, took) = bench.run(&payers, rate, rate * seconds, running)?;
    while recorder.state().delivered() < opened - refused {
        std::thread::sleep(TICK);
    }
    let after = cpu_by_thread()?;
    let _ = end.send(());
    runtime.block_on(worker)?;

    println!("{opened} requests of {running:?} at {rate}/s, {refused} refused, all ended after {took:.2?}");
    bench.tell_waits();
    let caller = std::fs::read_to_string("/proc/self/comm")?.trim().to_owned();
    let mut all = bench.called / opened;
    println!("{:20} {:3}.{:02} us a request", "callers' part", all / 1_000, all % 1_000 / 10);
    for (name, nanoseconds) in after {
        let spent = nanoseconds - before.get(&name).copied().unwrap_or(0);
        let each = spent / opened;
        println!("{name:20} {:3}.{:02} us a request", each / 1_000, each % 1_000 / 10);
        if name != caller && name != "clients" {
            all += each;
        }
    }
    println!("{:20} {:3}.{:02} us a request", "billing's", all / 1_000, all % 1_000 / 10);
    let differences = runtime.block_on(store.audit())?;
    println!("audit: {} differences", differences.len());
    Ok(())
}

fn runtime(name: &str) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build()
}

/// Requests that run, and how long those waited that have ended.
struct Bench {
    recorder: Recorder,
    clients: tokio::runtime::Runtime,
    waits: Arc<Mutex<Vec<Duration>>>,
    runs: VecDeque<(Instant, Ticket, UsageRecord)>,
    /// Nanoseconds on a CPU that the callers' part took: taking a ticket, and turning it in.
    called: u64,
}

impl Bench {
    /// Lets requests come at that pace, and returns how many came, how many were refused, and how long it took.
    fn run(
        &mut self,
        payers: &[Payer],
        rate: u64,
        total: u64,
        running: Duration,
    ) -> Result<(u64, u64, Duration), Failure> {
        let start = Instant::now();
        let (mut opened, mut refused, mut ticks) = (0, 0, 0);
        while opened < total || !self.runs.is_empty() {
            // At work, as the relay's threads are at such a pace: what wakes a sleeping CPU is billed to who is woken.
            while start.elapsed() < TICK.saturating_mul(ticks) {
                std::hint::spin_loop();
            }
            ticks += 1;
            let due = (rate * start.elapsed().as_micros() as u64 / 1_000_000).min(total);
            while opened < due {
                let payer = &payers[opened as usize % PAYERS];
                let record = payer.record();
                let opening = payer.opening(&record)?;
                let before = on_cpu();
                let ticket = self.recorder.open(opening);
                self.called += on_cpu() - before;
                match ticket {
                    Some(ticket) => self.runs.push_back((Instant::now() + running, ticket, record)),
                    None => refused += 1,
                }
                opened += 1;
            }
            let now = Instant::now();
            while let Some((_, ticket, record)) = self.runs.pop_front_if(|(ends, ..)| *ends <= now) {
                self.end(ticket, record);
            }
        }
        Ok((opened, refused, start.elapsed()))
    }

    /// A client waits for the end.
    fn end(&mut self, ticket: Ticket, record: UsageRecord) {
        let waits = Arc::clone(&self.waits);
        let ends = Instant::now();
        let before = on_cpu();
        let receipt = ticket.finish(record, None);
        self.called += on_cpu() - before;
        self.clients.spawn(async move {
            if receipt.kept().await.is_ok() {
                waits.lock().unwrap_or_else(PoisonError::into_inner).push(ends.elapsed());
            }
        });
    }

    fn tell_waits(&self) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.sort_unstable();
        let at = |part: usize| waits.get(waits.len() * part / 1_000).copied().unwrap_or_default();
        println!("last byte: p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, p99.9 {:.1?}", at(500), at(900), at(990), at(999));
    }
}

struct Payer {
    account_id: Arc<str>,
    key_id: Arc<str>,
    account: Arc<Purse>,
    spending: Arc<Spending>,
}

impl Payer {
    fn opening(&self, record: &UsageRecord) -> Result<Opening, Failure> {
        let hold = Hold::take(&self.account, &self.spending, None, NanoUsd(378_000), NanoUsd(500_000))
            .map_err(|refusal| refusal.message)?;
        Ok(Opening {
            request_id: record.request_id,
            account_id: self.account_id.clone(),
            key_id: self.key_id.clone(),
            model: "gpt-4o-mini".into(),
            started_at_ms: started_at_ms(),
            hold,
        })
    }

    fn record(&self) -> UsageRecord {
        UsageRecord {
            request_id: Uuid::now_v7(),
            account_id: self.account_id.clone(),
            key_id: self.key_id.clone(),
            model: "gpt-4o-mini".into(),
            provider: "openai".into(),
            status: 200,
            usage: Usage { input: 1_234, output: 321, ..Usage::default() },
            cost: NanoUsd(378_000),
            provider_cost: None,
            estimated: false,
            interrupted: false,
            started_at_ms: started_at_ms(),
            first_token_ms: Some(412),
            total_ms: 1_500,
        }
    }
}

fn started_at_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

async fn payers(store: &Store) -> Result<Vec<Payer>, Failure> {
    let mut payers = Vec::new();
    for number in 0..PAYERS {
        let account_id = store.create_account("bench", "free", 1).await?.id;
        store.credit(&account_id, NanoUsd(i64::MAX / 2), None, 1).await?;
        let key = NewKey { account_id: account_id.clone(), name: "bench".into(), terms: KeyTerms::default() };
        let digest = KeyDigest([number as u8; 32]);
        let key_id = store.create_key(&key, &digest, 1).await?.id;
        payers.push(Payer {
            account_id: account_id.into(),
            key_id: key_id.into(),
            account: Arc::new(Purse::new(NanoUsd(i64::MAX / 2), 1)),
            spending: Arc::new(Spending::new(NanoUsd(0), 0)),
        });
    }
    Ok(payers)
}

/// Nanoseconds on a CPU so far, of this thread.
fn on_cpu() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

/// Nanoseconds on a CPU so far, by the threads' names.
fn cpu_by_thread() -> Result<BTreeMap<String, u64>, Failure> {
    let mut by_name = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let name = std::fs::read_to_string(task.join("comm"))?.trim().to_owned();
        let times = std::fs::read_to_string(task.join("schedstat"))?;
        let on_cpu: u64 = times.split(' ').next().unwrap_or_default().parse()?;
        *by_name.entry(name).or_default() += on_cpu;
    }
    Ok(by_name)
}
