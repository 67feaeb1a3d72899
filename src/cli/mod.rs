//! The command line: one file a command.
//!
//! Errors go to stderr with exit status 1, usage mistakes with 2 (clap's own), both without a backtrace.

mod account;
mod audit;
mod audit_log;
mod check;
mod key;
mod node;
mod output;
mod plan;
mod process;
mod quickstart;
mod serve;
mod store;
mod subscription;
mod usage;
mod user;
mod value;
mod voucher;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::Mistake;

/// An OpenAI-compatible relay for language models.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, propagate_version = true, about, max_term_width = 100)]
struct CommandLine {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes, anywhere after its name.
#[derive(Debug, Args)]
struct Common {
    /// The configuration [default: /etc/tollgate/tollgate.toml, then ./data/tollgate.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything on this machine with embedded defaults
    Quickstart(quickstart::Quickstart),
    /// Run the relay
    Serve(serve::Serve),
    /// Read and validate everything that `serve` would, touch nothing
    Check(check::Check),
    /// Customers and their money
    Account(account::Account),
    /// API keys
    Key(key::Key),
    /// The nodes that sell from one store
    Node(node::Node),
    /// The plans of the configuration, and what they cost
    Plan(plan::Plan),
    /// Accounts' plans by the month
    Subscription(subscription::Subscription),
    /// Credit for whoever has a code
    Voucher(voucher::Voucher),
    /// People who sign in to the dashboard
    User(user::User),
    /// What was used and what it cost
    Usage(usage::Usage),
    /// Re-derive every balance from the ledger and compare
    Audit(audit::Audit),
    /// Who changed accounts and keys, and how
    AuditLog(audit_log::AuditLog),
}

/// Why a command failed, for a person to read on stderr.
#[derive(Debug)]
struct Failure(String);

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl Failure {
    /// A configuration that cannot be used, with every mistake on a line of its own.
    fn of_mistakes(mistakes: &[Mistake]) -> Self {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Self(format!("the configuration cannot be used:\n{}", lines.join("\n")))
    }
}

type Outcome = Result<ExitCode, Failure>;

/// The command line, for its manual page.
pub fn command() -> clap::Command {
    CommandLine::command()
}

/// Parses the command line and runs its command.
pub fn main() -> ExitCode {
    let CommandLine { common, command } = CommandLine::parse();
    let outcome = match command {
        Command::Quickstart(command) => command.run(&common),
        Command::Serve(command) => command.run(&common),
        Command::Check(command) => command.run(&common),
        Command::Account(command) => command.run(&common),
        Command::Key(command) => command.run(&common),
        Command::Node(command) => command.run(&common),
        Command::Plan(command) => command.run(&common),
        Command::Subscription(command) => command.run(&common),
        Command::Voucher(command) => command.run(&common),
        Command::User(command) => command.run(&common),
        Command::Usage(command) => command.run(&common),
        Command::Audit(command) => command.run(&common),
        Command::AuditLog(command) => command.run(&common),
    };
    outcome.unwrap_or_else(|Failure(message)| {
        output::error(&message);
        ExitCode::FAILURE
    })
}
