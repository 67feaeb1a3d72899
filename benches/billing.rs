//! What a finished request costs from the recorder through the spool into the ledger, at a given pace.
//!
//! Prints the CPU of the worker's threads and of the database's, a record. The pace matters, because records that come together are
//! written together: `cargo bench --bench billing -- [RECORDS_PER_SECOND [SECONDS]]`.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a bench keeps a pace and prints")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate::billing::{self, Durability, Opening, SpoolPlace};
use tollgate::relay::admit::{Hold, Purse, Spending};
use tollgate::relay::auth::KeyDigest;
use tollgate::relay::meter::{NanoUsd, Usage, UsageRecord};
use tollgate::store::{KeyTerms, NewKey, Store};
use uuid::Uuid;

/// As in the relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often the bench hands over what is due.
const TICK: Duration = Duration::from_millis(1);

/// Accounts, each with a key.
const PAYERS: usize = 8;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let rate = numbers.next().unwrap_or(10_000);
    let seconds = numbers.next().unwrap_or(5);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("background").enable_all().build()?;
    let folder = tempfile::tempdir()?;
    let store = runtime.block_on(Store::open(&format!("sqlite://{}/tollgate.db", folder.path().display())))?;
    let payers = runtime.block_on(payers(&store))?;
    let place = SpoolPlace {
        path: folder.path().join("spool.db"),
        bytes_max: 1 << 30,
        durability: Durability::Process,
        sinks: Vec::new(),
    };
    let (recorder, worker) = runtime.block_on(billing::open(&place, store.clone()))?;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let told = async move {
        let _ = ended.await;
    };
    let worker = runtime.spawn(worker.run(told, |_| {}));

    let before = cpu_by_thread()?;
    let start = Instant::now();
    let total = rate * seconds;
    let mut recorded = 0;
    let mut ticks = 0;
    let mut refused = 0_u64;
    while recorded < total {
        // At work, as the relay's threads are at such a pace: what wakes a sleeping CPU is billed to who is woken.
        while start.elapsed() < TICK.saturating_mul(ticks) {
            std::hint::spin_loop();
        }
        ticks += 1;
        let due = (rate * start.elapsed().as_micros() as u64 / 1_000_000).min(total);
        while recorded < due {
            let payer = &payers[recorded as usize % PAYERS];
            match recorder.open(payer.opening()?) {
                Some(ticket) => drop(ticket.finish(payer.record(), None)),
                None => refused += 1,
            }
            recorded += 1;
        }
    }
    while recorder.state().delivered() < total - refused {
        std::thread::sleep(TICK);
    }
    let took = start.elapsed();
    let after = cpu_by_thread()?;
    let _ = end.send(());
    runtime.block_on(worker)?;

    println!("{recorded} records at {rate}/s, {refused} refused, delivered after {took:.2?}");
    let caller = std::fs::read_to_string("/proc/self/comm")?.trim().to_owned();
    let mut all = 0;
    for (name, nanoseconds) in after {
        let spent = nanoseconds - before.get(&name).copied().unwrap_or(0);
        let each = spent / recorded;
        println!("{name:20} {:3}.{:02} us a record", each / 1_000, each % 1_000 / 10);
        if name != caller {
            all += each;
        }
    }
    println!("{:20} {:3}.{:02} us a record", "without the caller", all / 1_000, all % 1_000 / 10);
    let differences = runtime.block_on(store.audit())?;
    println!("audit: {} differences", differences.len());
    Ok(())
}

struct Payer {
    account_id: Box<str>,
    key_id: Box<str>,
    account: Arc<Purse>,
    spending: Arc<Spending>,
}

impl Payer {
    fn opening(&self) -> Result<Opening, Failure> {
        let hold = Hold::take(&self.account, &self.spending, None, NanoUsd(378_000), NanoUsd(500_000))
            .map_err(|refusal| refusal.message)?;
        Ok(Opening {
            request_id: Uuid::now_v7(),
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
