//! tollgate: an OpenAI-compatible relay that meters, limits and bills what passes through it.
//!
//! The rooms, in the order in which a request meets them, and what each may know. An arrow never points up:
//! `cli` → `proxy`, `admin` → `billing`, `telemetry`, `config` → `store`, `shared`, `outbound` → `relay` (`tests/house.rs` holds it).
//!
//! | room | what it is |
//! |---|---|
//! | [`cli`] | the command line, one file a command |
//! | [`config`] | the TOML as written, checked into one immutable snapshot, watched and swapped whole |
//! | [`proxy`] | the Pingora shell: the only room that names pingora, and the way of one request |
//! | [`relay`] | the rules: keys, limits, routes, dialects, events, metering; pure, time and chance come in as arguments |
//! | [`billing`] | from a finished request to a ledger entry: recorder, spool, sinks |
//! | [`store`] | accounts, keys, ledger and usage at rest |
//! | [`shared`] | what several nodes have in common besides: windows in Redis |
//! | `outbound` | the HTTP client for what the relay posts on its own account |
//! | [`admin`] | what machines and operators ask of the relay: health, readiness and the admin API |
//! | [`telemetry`] | metrics, the access log, traces |

pub mod admin;
pub mod billing;
pub mod cli;
pub mod config;
mod outbound;
pub mod proxy;
pub mod relay;
pub mod shared;
pub mod store;
pub mod telemetry;
