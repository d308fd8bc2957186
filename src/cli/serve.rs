//! `skygate serve`: configuration, lock, log, signals; the node does the rest.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::data_lock::DataLock;
use super::{CliError, Global};

/// Exit code of a process that a second signal ended: 128 + SIGINT, as shells say it.
const ENDED_BY_SIGNAL: i32 = 130;

const EXAMPLES: &str = "\
Examples:
  skygate serve                                   nine folders in the data directory: for trying things out
  skygate serve --config skygate.toml             hosts, redundancy and limits from a file
  skygate serve --listen 0.0.0.0:8080             let others in (put a TLS proxy before it)
  skygate serve --listen 127.0.0.1:0 --admin 127.0.0.1:0   ports of the system's choice, printed when ready

SIGTERM or Ctrl-C lets requests under way end; a second signal ends at once. What was acknowledged is never lost.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// Configuration file (TOML); flags and environment win over it
    #[arg(long, value_name = "FILE", env = "SKYGATE_CONFIG")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub listen: ListenArgs,
}

#[derive(Clone, Debug, Default, Args)]
pub struct ListenArgs {
    /// Public listener [default: 127.0.0.1:8080]
    #[arg(long, value_name = "IP:PORT", env = "SKYGATE_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Admin listener [default: 127.0.0.1:8081]
    #[arg(long, value_name = "IP:PORT", env = "SKYGATE_ADMIN")]
    pub admin: Option<SocketAddr>,
}

pub fn run(global: &Global, args: ServeArgs) -> Result<(), CliError> {
    let checked = global.configuration(args.config.as_deref(), &args.listen)?;
    start_log(global.json)?;
    let _lock = DataLock::take(&checked.data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CliError::failed(format!("the runtime cannot be started: {error}")))?;
    let done = runtime.block_on(async {
        let signals = Signals::listen()?;
        crate::node::run(checked, signals.first()).await.map_err(|error| CliError::failed(with_causes(&error)))
    });
    // A host that hangs may hold a thread for ever; everything that had to be written is written.
    runtime.shutdown_background();
    done
}

fn start_log(json: bool) -> Result<(), CliError> {
    let filter = EnvFilter::builder().with_env_var("SKYGATE_LOG").with_default_directive(tracing::Level::INFO.into()).from_env();
    let filter = filter
        .map_err(|error| CliError::Usage(format!("SKYGATE_LOG: {error}. Write it like \"info\" or \"skygate::renter=debug\"")))?;
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = if json { log.json().try_init() } else { log.try_init() };
    started.map_err(|error| CliError::failed(format!("the log cannot be started: {error}")))
}

/// The signals that ask for a stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on they no longer end the process by themselves.
    fn listen() -> Result<Signals, CliError> {
        let fault = |error| CliError::failed(format!("signals cannot be handled: {error}"));
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(fault)?,
            interrupt: signal(SignalKind::interrupt()).map_err(fault)?,
        })
    }

    /// Resolves at the first signal; a second one ends the process.
    async fn first(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            tracing::warn!("a second signal: ending at once");
            // Whoever sends a second signal does not want to wait for the first one's work.
            std::process::exit(ENDED_BY_SIGNAL);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// An error and what it came from, where the cause is not part of its text already.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
