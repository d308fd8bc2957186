//! The command line: one file per command. `serve` runs a node in this process; `add`, `import`, `get`, `pin`, `name`,
//! `block`, `hosts`, `verify` and API keys talk to a running one over the HTTP of its admin listener; `check` and the portal key are files.
//!
//! Hides: argument parsing, how the API key is found, frames of the add stream (`docs/formats.md` 9) on the client's
//! side, progress bars. Must never know: how content is stored; whatever it says about a running gateway it has asked it.
//! Results go to stdout, everything else to stderr; a failure is one line that says what to do.
//!
//! Limits: [`add::BLOCK_BYTES`], [`add::BLOCKS_WAITING_MAX`], [`frames::FRAME_JSON_BYTES_MAX`], [`get::PATH_BYTES_MAX`],
//! [`api::ANSWER_BYTES_MAX`].

mod add;
mod api;
mod api_key;
mod block;
mod check;
mod data_lock;
mod frames;
mod get;
mod get_tree;
mod hosts;
mod import;
mod key;
mod name;
mod output;
mod pin;
mod serve;
mod verify;
mod walk;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Checked, Flags, Typed};

const EXAMPLES: &str = "\
Examples:
  skygate                                       start a gateway on nine folders in the data directory
  skygate serve --config skygate.toml           start one on the hosts of a configuration file
  skygate add ./site                            store a folder, print its addresses
  skygate get /ipfs/bafy…/pictures -o pictures  read a folder back
  skygate pin ls                                what is stored
  skygate name put KEY.ipns-record              publish an IPNS record
  skygate key add photos                        make an API key for somebody
  skygate hosts                                 how the hosts do
  skygate verify                                is every piece on every host what it should be?
  skygate check --config skygate.toml           what a configuration means, before it runs

Exit codes:
  0  done
  1  failed
  2  the command line was not understood
  3  the gateway cannot be reached
  4  the API key is missing or refused
  5  `verify`: damaged, but everything can be read
  6  `verify`: something cannot be read now

The log goes to stderr; SKYGATE_LOG=debug shows more of it.";

/// A content-addressed gateway: IPFS and Skynet over storage hosts nobody has to trust.
///
/// Without a command it does what `serve` does.
#[derive(Debug, Parser)]
#[command(name = "skygate", version, after_help = EXAMPLES, after_long_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
struct Global {
    /// Data directory: keys, catalog and, without configured hosts, the content
    #[arg(long, global = true, value_name = "DIR", env = "SKYGATE_DATA")]
    data: Option<PathBuf>,
    /// Admin listener of the gateway to talk to
    #[arg(long, global = true, value_name = "URL", env = "SKYGATE_API", default_value = api::DEFAULT_URL)]
    api: String,
    /// File with the API key [default: keys/api in the data directory]
    #[arg(long, global = true, value_name = "FILE", env = "SKYGATE_KEY_FILE")]
    key_file: Option<PathBuf>,
    /// Answer in JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a gateway until SIGTERM or Ctrl-C
    Serve(serve::ServeArgs),
    /// Store a file or a folder
    Add(add::AddArgs),
    /// Store the blocks of CAR files
    Import(import::ImportArgs),
    /// Read a file or a folder back
    Get(get::GetArgs),
    /// What is stored; stop keeping it
    #[command(subcommand)]
    Pin(pin::PinCommand),
    /// Names that move: publish IPNS records, follow a name
    #[command(subcommand)]
    Name(name::NameCommand),
    /// What the portal does not serve
    #[command(subcommand)]
    Block(block::BlockCommand),
    /// How the hosts do
    Hosts,
    /// Look at every piece on every host
    Verify(verify::VerifyArgs),
    /// Explain a configuration in words
    Check(check::CheckArgs),
    /// API keys for others; the portal key as a recovery phrase
    #[command(subcommand)]
    Key(key::KeyCommand),
}

/// Why a command failed. The text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}")]
    Failed(String),
    /// The arguments parse, but make no sense together.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    KeyRefused(String),
    /// Found by `verify`, which has said it.
    #[error("pieces are damaged")]
    Damaged,
    #[error("something cannot be read")]
    Unreadable,
    /// Whoever read our output has gone: nothing is left to be done or said.
    #[error("the reader of the output has gone")]
    ReaderGone,
}

impl CliError {
    fn failed(text: impl Into<String>) -> CliError {
        CliError::Failed(text.into())
    }

    fn exit_code(&self) -> u8 {
        match self {
            CliError::Failed(_) => 1,
            CliError::Usage(_) => 2,
            CliError::Unreachable(_) => 3,
            CliError::KeyRefused(_) => 4,
            CliError::Damaged => 5,
            CliError::Unreadable => 6,
            CliError::ReaderGone => 0,
        }
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let done = match parse(std::env::args_os().collect()) {
        Ok((global, command)) => run(&global, command),
        // Prints help to stdout and misuse to stderr, each with its own exit code.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, CliError::ReaderGone | CliError::Damaged | CliError::Unreadable) {
                eprintln!("error: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// No command is `serve`: the word is added and all is parsed again, so that its defaults and environment count.
fn parse(mut args: Vec<OsString>) -> Result<(Global, Command), clap::Error> {
    let cli = Cli::try_parse_from(&args)?;
    match cli.command {
        Some(command) => Ok((cli.global, command)),
        None => {
            args.push("serve".into());
            let cli = Cli::try_parse_from(&args)?;
            let command = cli.command.expect("`serve` is the last word, and a command");
            Ok((cli.global, command))
        }
    }
}

fn run(global: &Global, command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(args) => serve::run(global, args),
        Command::Add(args) => client(add::run(global, args)),
        Command::Import(args) => client(import::run(global, args)),
        Command::Get(args) => client(get::run(global, args)),
        Command::Pin(command) => client(pin::run(global, command)),
        Command::Name(command) => client(name::run(global, command)),
        Command::Block(command) => client(block::run(global, command)),
        Command::Hosts => client(hosts::run(global)),
        Command::Verify(args) => client(verify::run(global, args)),
        Command::Check(args) => check::run(global, &args),
        Command::Key(command) => key::run(global, command),
    }
}

/// A client has one connection: one thread for it is enough, files are worked on in threads of their own.
fn client(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CliError::failed(format!("the runtime cannot be started: {error}")))?;
    let done = runtime.block_on(work);
    // A thread may wait for a pipe that nobody feeds (`skygate get` cut by Ctrl-D); the process ends anyway.
    runtime.shutdown_background();
    done
}

impl Global {
    /// The configuration that `serve` and `check` speak of.
    fn configuration(&self, config: Option<&Path>, listen: &serve::ListenArgs) -> Result<Checked, CliError> {
        let (typed, base) = match config {
            Some(path) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let folder =
                    std::path::absolute(folder).map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
                (Typed::read(path).map_err(|error| CliError::failed(error.to_string()))?, folder)
            }
            None => (Typed::default(), PathBuf::from(".")),
        };
        let flags = Flags { data: self.data.clone(), listen: listen.listen, admin: listen.admin };
        typed.check(flags, &base).map_err(|error| CliError::failed(error.to_string()))
    }

    /// The data directory of commands that have no configuration.
    fn data_directory(&self) -> Result<PathBuf, CliError> {
        match &self.data {
            Some(data) => Ok(data.clone()),
            None => Ok(self.configuration(None, &serve::ListenArgs::default())?.data),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_arguments_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_is_serve() {
        let (global, command) = parse(words("skygate --data here")).expect("parses");
        assert!(matches!(command, Command::Serve(_)));
        assert_eq!(global.data.as_deref(), Some(Path::new("here")));
    }

    #[test]
    fn global_flags_stand_before_and_after_the_command() {
        for line in ["skygate --json pin ls", "skygate pin ls --json"] {
            assert!(parse(words(line)).expect(line).0.json, "{line}");
        }
    }

    #[test]
    fn misuse_is_told_apart_from_failure() {
        assert_eq!(parse(words("skygate add")).expect_err("no path").exit_code(), 2);
        assert_eq!(parse(words("skygate frobnicate")).expect_err("no such command").exit_code(), 2);
        assert_eq!(parse(words("skygate --help")).expect_err("help").exit_code(), 0);
    }
}
