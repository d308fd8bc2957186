//! `skygate name`: publish IPNS records, see which names are known, and where one leads.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use reqwest::Method;
use serde_json::Value;

use super::api::{Api, encode};
use super::output::{line, plain, table};
use super::walk::unreadable;
use super::{CliError, Global};

/// Largest file that is read: an IPNS record has at most 10 KiB, and the gateway says so of a larger one.
const FILE_BYTES_MAX: u64 = 16 << 10;

#[derive(Debug, Subcommand)]
pub enum NameCommand {
    /// Publish a signed IPNS record
    Put {
        /// File with the record, as `ipfs name get` or another gateway's ?format=ipns-record gives it
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The key's name [default: the name of the file up to `_` or `.`]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// List the names that are known here
    Ls,
    /// Follow a name to its end
    Resolve {
        /// An IPNS key or a domain name, with or without /ipns/
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub async fn run(global: &Global, command: NameCommand) -> Result<(), CliError> {
    let api = Api::new(global)?;
    match command {
        NameCommand::Put { file, name } => put(&api, global.json, &file, name).await,
        NameCommand::Ls => list(&api, global.json).await,
        NameCommand::Resolve { name } => resolve(&api, global.json, &name).await,
    }
}

async fn put(api: &Api, json: bool, file: &Path, name: Option<String>) -> Result<(), CliError> {
    let name = match name {
        Some(name) => name,
        None => name_of_file(file)?,
    };
    let failed = |error: std::io::Error| CliError::failed(unreadable(file, &error));
    let mut record = Vec::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened.take(FILE_BYTES_MAX).read_to_end(&mut record).map_err(failed)?;
    let request = api.request(Method::PUT, &format!("/api/v1/names/{}", encode(&name))).body(record);
    let answer = api.json(request).await?;
    if json {
        return line(&answer.to_string());
    }
    line(&format!("published /ipns/{}", answer.get("name").and_then(Value::as_str).map_or(name, plain)))
}

/// `k51…_v1-v2.ipns-record` and `k51….ipns-record` are of the name `k51…`.
fn name_of_file(file: &Path) -> Result<String, CliError> {
    let text = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match text.split(['_', '.']).next() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(CliError::Usage(format!("{} names no key: say which with --name NAME", file.display()))),
    }
}

async fn list(api: &Api, json: bool) -> Result<(), CliError> {
    let answer = api.json(api.request(Method::GET, "/api/v1/names")).await?;
    let names = answer.get("names").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if json {
        names.iter().try_for_each(|name| line(&name.to_string()))?;
    } else if names.is_empty() {
        line("no names are known: `skygate name put FILE` publishes a record, [names.static] in the configuration fixes one")?;
    } else {
        let rows: Vec<Vec<String>> = names.iter().map(row).collect();
        table(&["NAME", "POINTS TO", "FROM", "SEQUENCE", "UNTIL"], &rows).iter().try_for_each(|text| line(text))?;
    }
    if answer.get("complete").and_then(Value::as_bool) == Some(false) {
        eprintln!("not all names are listed: there are too many, or hosts did not answer");
    }
    Ok(())
}

fn row(name: &Value) -> Vec<String> {
    let text = |field: &str| name.get(field).and_then(Value::as_str).map_or_else(|| "-".to_owned(), plain);
    let sequence = name.get("sequence").and_then(Value::as_u64);
    let mut until = text("valid_until");
    if name.get("expired").and_then(Value::as_bool) == Some(true) {
        until += " (over)";
    }
    vec![text("name"), text("value"), text("origin"), sequence.map_or_else(|| "-".to_owned(), |number| number.to_string()), until]
}

async fn resolve(api: &Api, json: bool, name: &str) -> Result<(), CliError> {
    let bare = name.strip_prefix("/ipns/").or_else(|| name.strip_prefix("ipns://")).unwrap_or(name);
    let answer = api.json(api.request(Method::GET, &format!("/api/v1/names/{}/resolve", encode(bare)))).await?;
    if json {
        return line(&answer.to_string());
    }
    let path = answer.get("path").and_then(Value::as_str).map(plain);
    line(&path.ok_or_else(|| CliError::failed("the gateway did not say where the name leads"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_tells_the_name() {
        for (file, expect) in [
            ("dir/k51abc_v1-v2.ipns-record", Some("k51abc")),
            ("12D3KooW.ipns-record", Some("12D3KooW")),
            ("k51abc", Some("k51abc")),
            (".ipns-record", None),
            ("_v1", None),
            ("/", None),
        ] {
            assert_eq!(name_of_file(Path::new(file)).ok().as_deref(), expect, "{file}");
        }
    }

    #[test]
    fn rows_of_both_origins() {
        let fixed = row(&serde_json::json!({ "name": "a.example", "value": "/ipfs/x", "origin": "configuration" }));
        assert_eq!(fixed, ["a.example", "/ipfs/x", "configuration", "-", "-"]);
        let record = serde_json::json!({
            "name": "k51", "value": "/ipfs/\u{1b}x", "origin": "record", "sequence": 3, "valid_until": "2020", "expired": true
        });
        assert_eq!(row(&record), ["k51", "/ipfs/\\u{1b}x", "record", "3", "2020 (over)"]);
    }
}
