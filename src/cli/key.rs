//! `skygate key`: API keys for others, by a running gateway; and the portal key as a recovery phrase.

use std::io::Read;

use clap::Subcommand;

use super::api_key::{self, KeyAddArgs};
use super::data_lock::DataLock;
use super::output::line;
use super::{CliError, Global, client};

/// A phrase of 24 words has about 200 bytes; more is some other file.
const PHRASE_BYTES_MAX: u64 = 4096;

/// The portal key and the host list are all that a new machine needs to be this portal.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Print the recovery phrase. Whoever has it is this portal
    Export,
    /// Read a recovery phrase from stdin into a data directory that has no portal key yet
    #[command(after_help = "Example:\n  skygate key import --data ./new < phrase.txt")]
    Import,
    /// Make an API key for somebody. Its secret is printed now, and never again
    #[command(after_help = "Example:\n  skygate key add photos --upload-bytes '2 GB' --expires-days 90")]
    Add(KeyAddArgs),
    /// List the API keys
    Ls,
    /// Revoke an API key
    Rm {
        /// As `key ls` shows it
        #[arg(value_name = "ID")]
        id: String,
    },
}

pub fn run(global: &Global, command: KeyCommand) -> Result<(), CliError> {
    match command {
        KeyCommand::Export => export(global),
        KeyCommand::Import => import(global),
        KeyCommand::Add(args) => client(api_key::add(global, args)),
        KeyCommand::Ls => client(api_key::list(global)),
        KeyCommand::Rm { id } => client(api_key::revoke(global, id)),
    }
}

fn export(global: &Global) -> Result<(), CliError> {
    let phrase = crate::node::export_key(&global.data_directory()?).map_err(|error| CliError::failed(error.to_string()))?;
    line(&if global.json { serde_json::json!({ "phrase": phrase }).to_string() } else { phrase })
}

fn import(global: &Global) -> Result<(), CliError> {
    let data = global.data_directory()?;
    let mut phrase = String::new();
    let read = std::io::stdin().take(PHRASE_BYTES_MAX).read_to_string(&mut phrase);
    read.map_err(|error| CliError::failed(format!("the phrase cannot be read from stdin: {error}")))?;
    let words: Vec<&str> = phrase.split_whitespace().collect();
    if words.is_empty() {
        return Err(CliError::Usage("no recovery phrase on stdin: `skygate key import < phrase.txt`".to_owned()));
    }
    let _lock = DataLock::take(&data)?;
    let portal = crate::node::import_key(&data, &words.join(" ")).map_err(|error| CliError::failed(error.to_string()))?;
    let text = format!("{} is now portal {portal}: start it with the portal's host list in a configuration file", data.display());
    line(&if global.json { serde_json::json!({ "portal": portal }).to_string() } else { text })
}
