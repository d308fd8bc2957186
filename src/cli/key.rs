//! `skygate key`: the portal key as a recovery phrase.

use std::io::Read;

use clap::Subcommand;

use super::data_lock::DataLock;
use super::output::line;
use super::{CliError, Global};

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
}

pub fn run(global: &Global, command: &KeyCommand) -> Result<(), CliError> {
    let data = global.data_directory()?;
    match command {
        KeyCommand::Export => {
            let phrase = crate::node::export_key(&data).map_err(|error| CliError::failed(error.to_string()))?;
            line(&if global.json { serde_json::json!({ "phrase": phrase }).to_string() } else { phrase })
        }
        KeyCommand::Import => {
            let mut phrase = String::new();
            let read = std::io::stdin().take(PHRASE_BYTES_MAX).read_to_string(&mut phrase);
            read.map_err(|error| CliError::failed(format!("the phrase cannot be read from stdin: {error}")))?;
            let words: Vec<&str> = phrase.split_whitespace().collect();
            if words.is_empty() {
                return Err(CliError::Usage("no recovery phrase on stdin: `skygate key import < phrase.txt`".to_owned()));
            }
            let _lock = DataLock::take(&data)?;
            let portal = crate::node::import_key(&data, &words.join(" ")).map_err(|error| CliError::failed(error.to_string()))?;
            let text =
                format!("{} is now portal {portal}: start it with the portal's host list in a configuration file", data.display());
            line(&if global.json { serde_json::json!({ "portal": portal }).to_string() } else { text })
        }
    }
}
