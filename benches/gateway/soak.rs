//! Mixed load with faults for a long time, and what becomes of the relay's memory and descriptors: both are to be flat.
//!
//! Whole answers and streams, large bodies, providers that fail and break off, clients that leave midway, keys that are none, and a
//! new connection for every third request. The rate is held, so that the ledger on disk grows no faster than it must.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::contender::{Gateway, Place};
use crate::load::{Target, Work};
use crate::{Failure, LARGE, Options, SMALL, STREAM, start_upstream};

const WORKERS: u64 = 48;
/// How long a worker rests after each request.
const REST: Duration = Duration::from_millis(40);
const LOOK_EVERY: Duration = Duration::from_secs(60);
const ANSWER_SECONDS_MAX: u64 = 20;
/// The part of the time, in hundredths, after which memory is to be flat.
const SETTLED_PERCENT: usize = 25;

const FLAKY: Work = Work { model: "flaky", ..SMALL };
const CUT: Work = Work { model: "cut", ..STREAM };

/// What is asked, and what must come of it.
struct Kind {
    name: &'static str,
    work: Work,
    end: End,
}

enum End {
    /// A whole answer.
    Whole,
    /// A stream that says that it broke off.
    Told,
    /// The client leaves after the first bytes.
    Leaves,
    /// 401.
    Refused,
}

const KINDS: [Kind; 8] = [
    Kind { name: "small", work: SMALL, end: End::Whole },
    Kind { name: "stream", work: STREAM, end: End::Whole },
    Kind { name: "flaky", work: FLAKY, end: End::Whole },
    Kind { name: "large", work: LARGE, end: End::Whole },
    Kind { name: "small", work: SMALL, end: End::Whole },
    Kind { name: "cut", work: CUT, end: End::Told },
    Kind { name: "leaves", work: STREAM, end: End::Leaves },
    Kind { name: "refused", work: SMALL, end: End::Refused },
];

/// Loads a relay for so long and prints what it takes, a line a minute, and the slopes.
pub async fn run(options: &Options, time: Duration) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let (_upstream, upstream) = start_upstream(options.load_core)?;
    let place = Place {
        folder: PathBuf::from(folder.path()),
        core: options.gateway_core,
        upstream,
        tollgate: &options.tollgate,
    };
    let gateway = place.start("tollgate").await?;
    let (began, asked) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        let (target, asked) = (gateway.target.clone(), Arc::clone(&asked));
        workers.spawn(async move { work(&target, number, began + time, &asked).await });
    }
    println!("| minute | requests | PSS, KiB | descriptors |\n|---:|---:|---:|---:|");
    let mut looks = Vec::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.tick().await;
    while began.elapsed() + LOOK_EVERY / 2 < time {
        tokio::select! {
            _ = ticks.tick() => {}
            // Only a failure ends a worker before its time.
            Some(ended) = workers.join_next() => ended??,
        }
        looks.push(look(&gateway, looks.len() + 1, asked.load(Ordering::Relaxed))?);
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    tell_slopes(&looks);
    Ok(())
}

/// A look at the process: its memory in KiB, and its descriptors.
fn look(gateway: &Gateway, minute: usize, asked: u64) -> Result<(f64, f64), Failure> {
    let (kib, descriptors) = (gateway.process.pss_kib()?, gateway.process.descriptors()?);
    println!("| {minute} | {asked} | {kib} | {descriptors} |");
    Ok((kib as f64, descriptors as f64))
}

fn tell_slopes(looks: &[(f64, f64)]) {
    let settled = &looks[looks.len() * SETTLED_PERCENT / 100..];
    let memory = slope(settled.iter().map(|look| look.0));
    let descriptors = slope(settled.iter().map(|look| look.1));
    let minutes = settled.len();
    println!("\nover the last {minutes} minutes: {memory:.1} KiB a minute, {descriptors:.2} descriptors a minute");
}

/// By how much the figures rise from one to the next: least squares.
fn slope(figures: impl Iterator<Item = f64>) -> f64 {
    let figures: Vec<f64> = figures.collect();
    let count = figures.len() as f64;
    let (middle, mean) = ((count - 1.0) / 2.0, figures.iter().sum::<f64>() / count);
    let (mut rise, mut run) = (0.0, 0.0);
    for (at, figure) in figures.iter().enumerate() {
        rise += (at as f64 - middle) * (figure - mean);
        run += (at as f64 - middle) * (at as f64 - middle);
    }
    rise / run
}

async fn work(target: &Target, number: u64, end: Instant, asked: &AtomicU64) -> Result<(), Failure> {
    let nobody = Target { key: "tg_live_none".to_owned(), ..target.clone() };
    let mut turn = number;
    let mut kept = None;
    while Instant::now() < end {
        let kind = &KINDS[usize::try_from(turn)? % KINDS.len()];
        let target = if matches!(kind.end, End::Refused) { &nobody } else { target };
        let exchange = exchange(&mut kept, target, kind);
        let told = tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS_MAX), exchange).await;
        told?.map_err(|error| format!("{}: {error}", kind.name))?;
        if turn.is_multiple_of(3) {
            kept = None;
        }
        asked.fetch_add(1, Ordering::Relaxed);
        turn += 1;
        tokio::time::sleep(REST).await;
    }
    Ok(())
}

/// One request on the connection that is there, or on a new one, which is kept where it can be.
async fn exchange(kept: &mut Option<TcpStream>, target: &Target, kind: &Kind) -> Result<(), Failure> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => TcpStream::connect(target.address).await?,
    };
    stream.write_all(&kind.work.request(target)).await?;
    let mut answer = Vec::new();
    let is_over = |answer: &[u8]| match kind.end {
        End::Whole if kind.work.members.is_empty() => answer.ends_with(b"}"),
        End::Whole => answer.ends_with(b"0\r\n\r\n"),
        End::Leaves => answer.len() > 1_000,
        End::Told | End::Refused => false,
    };
    while !is_over(&answer) {
        if stream.read_buf(&mut answer).await? == 0 {
            break;
        }
        if matches!(kind.end, End::Refused) && memchr::memmem::find(&answer, b"invalid_api_key").is_some() {
            break;
        }
    }
    let has = |what: &str| memchr::memmem::find(&answer, what.as_bytes()).is_some();
    let is_good = match kind.end {
        End::Whole => has("HTTP/1.1 200") && (kind.work.members.is_empty() || has("[DONE]")),
        End::Told => has("HTTP/1.1 200") && has("upstream_truncated") && !has("[DONE]"),
        End::Leaves => has("HTTP/1.1 200"),
        End::Refused => has("HTTP/1.1 401") || has("HTTP/1.1 429"),
    };
    if !is_good {
        return Err(String::from_utf8_lossy(&answer[..answer.len().min(2_000)]).into());
    }
    if matches!(kind.end, End::Whole) {
        *kept = Some(stream);
    }
    Ok(())
}
