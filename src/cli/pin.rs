//! `skygate pin`: what is stored, and to stop keeping it.

use clap::Subcommand;
use reqwest::Method;
use serde_json::Value;

use super::api::{Api, encode};
use super::output::{bytes, counted, line, plain, table, utc_minute};
use super::{CliError, Global};
use crate::address::Address;

#[derive(Debug, Subcommand)]
pub enum PinCommand {
    /// List what is stored
    Ls,
    /// Stop keeping something, by CID or skylink
    Rm {
        /// CID or skylink, as `add` printed it
        #[arg(value_name = "ADDRESS")]
        address: String,
    },
}

pub async fn run(global: &Global, command: PinCommand) -> Result<(), CliError> {
    let api = Api::new(global)?;
    match command {
        PinCommand::Ls => list(&api, global.json).await,
        PinCommand::Rm { address } => remove(&api, global.json, &address).await,
    }
}

/// Page by page: a table each, or one JSON object a pin.
async fn list(api: &Api, json: bool) -> Result<(), CliError> {
    let mut from = 0;
    loop {
        let page = api.json(api.request(Method::GET, &format!("/api/v1/pins?from={from}"))).await?;
        let pins = page.get("pins").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if json {
            pins.iter().try_for_each(|pin| line(&pin.to_string()))?;
        } else if pins.is_empty() && from == 0 {
            return line("nothing is stored yet: `skygate add PATH` stores something");
        } else if !pins.is_empty() {
            let rows: Vec<Vec<String>> = pins.iter().map(row).collect();
            table(&["NAME", "SIZE", "FILES", "STORED", "CREATED", "CID", "SKYLINK"], &rows)
                .iter()
                .try_for_each(|text| line(text))?;
        }
        match page.get("next").and_then(Value::as_u64) {
            // A page that leads back would be read for ever.
            Some(next) if next > from => from = next,
            _ => return Ok(()),
        }
    }
}

fn row(pin: &Value) -> Vec<String> {
    let text = |name: &str| pin.get(name).and_then(Value::as_str).map_or_else(|| "-".to_owned(), plain);
    let number = |name: &str| pin.get(name).and_then(Value::as_u64);
    let stored = match pin.get("complete").and_then(Value::as_bool) {
        Some(true) => "complete".to_owned(),
        Some(false) => "acknowledged".to_owned(),
        None => text("durability"),
    };
    vec![
        text("name"),
        number("size_bytes").map_or_else(|| "-".to_owned(), bytes),
        number("files").map_or_else(|| "-".to_owned(), |count| count.to_string()),
        stored,
        number("created_ms").map_or_else(|| "-".to_owned(), utc_minute),
        text("cid"),
        text("skylink"),
    ]
}

async fn remove(api: &Api, json: bool, address: &str) -> Result<(), CliError> {
    let pinned = pinned_address(address)?;
    let answer = api.json(api.request(Method::DELETE, &format!("/api/v1/pins/{}", encode(&pinned)))).await?;
    if json {
        return line(&answer.to_string());
    }
    line(&format!("removed {}", counted(answer.get("removed").and_then(Value::as_u64).unwrap_or_default(), "pin")))
}

/// The CID or skylink of an address. One with a path names a part of an upload, and only the whole can be removed.
fn pinned_address(address: &str) -> Result<String, CliError> {
    let usage = |why: String| CliError::Usage(format!("{:?} {why}", plain(address)));
    match Address::parse(address).map_err(|error| usage(format!("is no address: {error}")))? {
        Address::Ipfs { root, path } if path.segments().is_empty() => Ok(root.to_string()),
        Address::Skylink { link, path_text } if path_text.trim_end_matches('/').is_empty() => Ok(link.to_string()),
        Address::Ipns { .. } => Err(usage("is a name that moves: remove what it points to, by CID or skylink".to_owned())),
        Address::Ipfs { .. } | Address::Skylink { .. } => {
            Err(usage("names a part of an upload: only the whole can be removed, by its CID or skylink".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_uploads_are_removed() {
        let cid = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";
        for address in [cid.to_owned(), format!("/ipfs/{cid}"), format!("ipfs://{cid}"), format!("/ipfs/{cid}/")] {
            assert_eq!(pinned_address(&address).expect(&address), cid);
        }
        for address in [format!("/ipfs/{cid}/a"), "/ipns/example.org".to_owned(), "nonsense".to_owned(), String::new()] {
            assert!(matches!(pinned_address(&address), Err(CliError::Usage(_))), "{address}");
        }
    }

    #[test]
    fn a_pin_with_half_its_fields_still_has_a_row() {
        let row = row(&serde_json::json!({ "name": "a\u{7}", "complete": true }));
        assert_eq!(row[..5], ["a\\u{7}", "-", "-", "complete", "-"]);
    }
}
