//! `cargo bench --bench gateway`: what a request, a chunk and an open stream cost in tollgate, beside a bare Pingora
//! pass-through and nginx's `proxy_pass`, in one run. `cargo bench --profile dist --bench gateway` for figures to
//! publish: fat LTO, as packages are built.
//!
//! Gateways run on one core; the upstream and the load share another. Every round starts them afresh and takes each
//! measure of all of them before the next measure, so that a noisy minute of the machine meets all alike. CPU time is
//! the gateway process's own, read when it has come to rest, so that work put off (billing, logs) is counted; it is far
//! steadier than requests a second. One program plays the bare proxy and the upstream too: it starts itself with that
//! word as its first argument.
//!
//! Needs Linux with two cores and `taskset`, `setpriv` (util-linux). nginx is left out where it is not
//! installed. Everything is on loopback and in a temporary folder.

#![allow(
    clippy::float_arithmetic,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a program that prints averages; its modules are the bench's own"
)]

mod bare;
mod contender;
mod load;
mod measure;
mod report;
mod soak;
mod upstream;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use contender::{Gateway, Place, Running, on_core};
use load::{Limit, Target, Work};
use report::{Measure, Report};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Any error: the bench prints it and ends.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Requests that are timed while the streams are open.
const BESIDE: usize = 300;
const PACED_STREAMS: usize = 4;
const WARM_UP: Limit = Limit { time: Duration::from_millis(250), requests: 2_000 };
const REQUESTS_MAX: u64 = 200_000;

const SMALL: Work = Work { model: "small", body_bytes: 200, members: "", connections: 64 };
const STREAM: Work = Work { model: "stream", body_bytes: 200, members: "\"stream\":true,", connections: 16 };
const STREAM_WITH_USAGE: Work =
    Work { members: "\"stream\":true,\"stream_options\":{\"include_usage\":true},", ..STREAM };
const LARGE: Work = Work { model: "small", body_bytes: 100 * 1024, members: "", connections: 8 };
const HUGE: Work = Work { model: "small", body_bytes: 1024 * 1024, members: "", connections: 8 };
const SILENT: Work = Work { model: "silent", connections: 1, ..STREAM };
const PACED: Work = Work { model: "paced", connections: PACED_STREAMS, ..STREAM };

/// CPU measures: the work, and how many units one exchange holds.
const CPU_MEASURES: [(Measure, &Work, u64); 5] = [
    (Measure::Small, &SMALL, 1),
    (Measure::Chunk, &STREAM, upstream::CHUNKS),
    (Measure::ChunkWithUsage, &STREAM_WITH_USAGE, upstream::CHUNKS),
    (Measure::Large, &LARGE, 1),
    (Measure::Huge, &HUGE, 1),
];

/// What a request, a chunk and an open stream cost, beside bare Pingora and nginx.
#[derive(Debug, Parser)]
#[command(name = "gateway")]
struct Options {
    /// Rounds; the table tells the least and the median of them
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each CPU measure loads each gateway, in milliseconds
    #[arg(long, default_value_t = 1500)]
    load_ms: u64,
    /// How many streams are open at once where their memory is measured
    #[arg(long, default_value_t = 500)]
    open_streams: usize,
    /// Measures open streams, and nothing else
    #[arg(long)]
    only_open_streams: bool,
    /// In place of all that: so many minutes of mixed load with faults on tollgate alone, and what becomes of its memory
    #[arg(long)]
    soak_minutes: Option<u64>,
    /// The gateways, in the order of a round
    #[arg(long, value_delimiter = ',', default_value = "nginx,bare Pingora,tollgate")]
    gateways: Vec<String>,
    /// The tollgate binary
    #[arg(long, default_value = env!("CARGO_BIN_EXE_tollgate"))]
    tollgate: PathBuf,
    /// The core of the gateways
    #[arg(long, default_value_t = 0)]
    gateway_core: usize,
    /// The core of the upstream and the load
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["upstream"] => upstream::run(),
        ["bare", listen, upstream] => run_bare(listen, upstream),
        // `cargo bench` says so; `cargo test --all-targets` only wants to see that this builds and starts.
        given if given.contains(&"--bench") => run(&Options::parse()),
        _ => {
            println!("nothing measured: run `cargo bench --bench gateway`");
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_bare(listen: &str, upstream: &str) -> Result<(), Failure> {
    bare::run(listen.parse()?, upstream.parse()?);
    Ok(())
}

fn run(options: &Options) -> Result<(), Failure> {
    let own_pid = std::process::id().to_string();
    // Children inherit both; the gateways are then put on their own core.
    checked(Command::new("taskset").args(["-cp", &options.load_core.to_string(), &own_pid]))?;
    // A gateway has two descriptors for each open stream.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let gateways: Vec<String> = options.gateways.iter().filter(|name| is_here(name)).cloned().collect();
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("{} rounds of {} ms; load average before: {}", options.rounds, options.load_ms, load.trim());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(minutes) = options.soak_minutes {
        return runtime.block_on(soak::run(options, Duration::from_secs(60 * minutes)));
    }
    let report = runtime.block_on(measure_all(options, &gateways))?;
    println!("\n{}", report.table(&gateways));
    Ok(())
}

/// Whether the gateway can be started on this machine; says so when it cannot.
fn is_here(name: &str) -> bool {
    if name != "nginx" || checked(Command::new("nginx").arg("-v")).is_ok() {
        return true;
    }
    println!("nginx: left out, it is not installed");
    false
}

fn checked(command: &mut Command) -> Result<(), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

async fn measure_all(options: &Options, gateways: &[String]) -> Result<Report, Failure> {
    let folder = tempfile::tempdir()?;
    let (_upstream, upstream) = start_upstream(options.load_core)?;
    let mut report = Report::default();
    for round in 0..options.rounds {
        let folder = folder.path().join(format!("round-{round}"));
        let place = Place { folder, core: options.gateway_core, upstream, tollgate: &options.tollgate };
        let mut running = Vec::new();
        for name in gateways {
            running.push((name.as_str(), place.start(name).await?));
        }
        measure_round(options, round, &running, upstream, &mut report).await?;
        println!("round {} of {} done", round + 1, options.rounds);
    }
    Ok(report)
}

fn start_upstream(core: usize) -> Result<(Running, SocketAddr), Failure> {
    let mut command = on_core(core, &std::env::current_exe()?);
    let mut child = Running(command.arg("upstream").stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
    let port: u16 = line.trim().parse().map_err(|_| "the upstream did not start")?;
    Ok((child, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// Takes each measure of all gateways in turn. Memory comes first: what other work leaves with the allocator would
/// hide what a stream takes.
async fn measure_round(
    options: &Options,
    round: usize,
    running: &[(&str, Gateway)],
    upstream: SocketAddr,
    report: &mut Report,
) -> Result<(), Failure> {
    for (name, gateway) in running {
        let found = open_streams(gateway, options.open_streams).await;
        let (kib, beside) = found.map_err(|error| format!("{name}, open streams: {error}"))?;
        report.note(Measure::OpenStream, name, round, kib);
        report.note(Measure::Beside, name, round, percentile_micros(&beside, 50));
        report.note(Measure::BesideTail, name, round, percentile_micros(&beside, 99));
    }
    if options.only_open_streams {
        return Ok(());
    }
    let limit = Limit { time: Duration::from_millis(options.load_ms), requests: REQUESTS_MAX };
    for (measure, work, units) in CPU_MEASURES {
        for (name, gateway) in running {
            let cpu = cpu_micros(gateway, work, limit).await;
            let cpu = cpu.map_err(|error| format!("{name}, {measure:?}: {error}"))?;
            report.note(measure, name, round, cpu / units as f64);
        }
    }
    let direct = load::chunk_delays(&Target { address: upstream, key: "none".to_owned() }, &PACED).await?;
    for (name, gateway) in running {
        let delays = load::chunk_delays(&gateway.target, &PACED).await;
        let delays = delays.map_err(|error| format!("{name}, paced streams: {error}"))?;
        for (measure, percent) in [(Measure::Delay, 50), (Measure::DelayTail, 99)] {
            report.note(
                measure,
                name,
                round,
                percentile_micros(&delays, percent) - percentile_micros(&direct, percent),
            );
        }
        report.note(Measure::Peak, name, round, gateway.process.peak_rss_kib()? as f64 / 1024.0);
    }
    Ok(())
}

/// The gateway's CPU time for one exchange, everything it puts off included.
async fn cpu_micros(gateway: &Gateway, work: &Work, limit: Limit) -> Result<f64, Failure> {
    load::closed_loop(&gateway.target, work, WARM_UP).await?;
    gateway.process.quiet().await?;
    let before = gateway.process.cpu_nanos()?;
    let exchanges = load::closed_loop(&gateway.target, work, limit).await?;
    gateway.process.quiet().await?;
    Ok((gateway.process.cpu_nanos()? - before) as f64 / 1000.0 / exchanges as f64)
}

/// What one more open stream takes of the gateway's own memory, and how long new requests take while they are open, sorted.
async fn open_streams(gateway: &Gateway, count: usize) -> Result<(f64, Vec<u64>), Failure> {
    // What is loaded and built once at the first requests is not a stream's.
    load::closed_loop(&gateway.target, &SMALL, WARM_UP).await?;
    gateway.process.quiet().await?;
    let before = gateway.process.pss_kib()?;
    let streams = load::open_streams(&gateway.target, &SILENT, count).await?;
    gateway.process.quiet().await?;
    let kib = (gateway.process.pss_kib()? as f64 - before as f64) / streams.len() as f64;
    let beside = load::one_by_one(&gateway.target, &SMALL, BESIDE).await?;
    drop(streams);
    gateway.process.quiet().await?;
    Ok((kib, beside))
}

fn percentile_micros(sorted_nanos: &[u64], percent: usize) -> f64 {
    sorted_nanos.get(sorted_nanos.len() * percent / 100).map_or(f64::NAN, |nanos| *nanos as f64 / 1000.0)
}
