//! `skygate block`: the portal's own blocklist.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::api::Api;
use super::output::{counted, line, plain, table, utc_minute};
use super::{CliError, Global};

#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// Serve something no more, under none of its addresses
    Add {
        /// Skylinks, or BLAKE2b-256 hashes of sector roots, as other portals' blocklists have them
        #[arg(value_name = "SKYLINK", required = true)]
        skylinks: Vec<String>,
    },
    /// List what is blocked
    Ls,
    /// Serve it again
    Rm {
        /// Skylinks or hashes, as `block ls` shows them
        #[arg(value_name = "SKYLINK", required = true)]
        skylinks: Vec<String>,
    },
}

pub async fn run(global: &Global, command: BlockCommand) -> Result<(), CliError> {
    let api = Api::new(global)?;
    match command {
        BlockCommand::Add { skylinks } => change(&api, global.json, "add", &skylinks).await,
        BlockCommand::Rm { skylinks } => change(&api, global.json, "remove", &skylinks).await,
        BlockCommand::Ls => list(&api, global.json).await,
    }
}

async fn change(api: &Api, json: bool, how: &str, skylinks: &[String]) -> Result<(), CliError> {
    let answer = api.json(api.request(Method::POST, "/api/v1/blocklist").json(&json!({ how: skylinks }))).await?;
    if json {
        return line(&answer.to_string());
    }
    let count = counted(skylinks.len() as u64, "skylink");
    line(&if how == "add" { format!("blocked {count}") } else { format!("{count} served again") })
}

async fn list(api: &Api, json: bool) -> Result<(), CliError> {
    let answer = api.json(api.request(Method::GET, "/api/v1/blocklist")).await?;
    let lines = answer.get("blocklist").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if json {
        return lines.iter().try_for_each(|blocked| line(&blocked.to_string()));
    }
    if lines.is_empty() {
        return line("nothing is blocked: `skygate block add SKYLINK` blocks something");
    }
    let rows: Vec<Vec<String>> = lines.iter().map(row).collect();
    table(&["HASH", "SINCE"], &rows).iter().try_for_each(|text| line(text))
}

fn row(blocked: &Value) -> Vec<String> {
    let hash = blocked.get("hash").and_then(Value::as_str).map_or_else(|| "-".to_owned(), plain);
    vec![hash, blocked.get("added_ms").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), utc_minute)]
}
