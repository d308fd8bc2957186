//! `skygate key add|ls|rm`: API keys for others, made and revoked by a running gateway.

use clap::Args;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::api::{Api, encode};
use super::output::{bytes, line, plain, table, utc_minute};
use super::{CliError, Global};
use crate::config::Size;

/// What is left out is as [limits] in the configuration says.
#[derive(Debug, Args)]
pub struct KeyAddArgs {
    /// Whose it is, or what for
    #[arg(value_name = "NAME")]
    name: String,
    /// Days from now on after which it is not taken any more [default: never]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    expires_days: Option<u32>,
    /// Largest upload, e.g. "2 GB"
    #[arg(long, value_name = "SIZE", value_parser = size)]
    upload_bytes: Option<u64>,
    /// Uploads of a day together
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bytes_per_day: Option<u64>,
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    uploads_per_minute: Option<u32>,
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    uploads_at_once: Option<u32>,
    /// Reads and writes of registry entries
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    registry_per_minute: Option<u32>,
    /// Different registry entries written
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    entries_per_day: Option<u32>,
}

fn size(text: &str) -> Result<u64, String> {
    match Size::parse(text) {
        Some(Size(bytes)) if bytes > 0 => Ok(bytes),
        _ => Err("write bytes as a number, or with a unit, such as \"2 GB\"".to_owned()),
    }
}

pub async fn add(global: &Global, args: KeyAddArgs) -> Result<(), CliError> {
    let api = Api::new(global)?;
    let mut limits = Map::new();
    for (name, value) in [
        ("upload_bytes", args.upload_bytes),
        ("bytes_per_day", args.bytes_per_day),
        ("uploads_per_minute", args.uploads_per_minute.map(u64::from)),
        ("uploads_at_once", args.uploads_at_once.map(u64::from)),
        ("registry_per_minute", args.registry_per_minute.map(u64::from)),
        ("entries_per_day", args.entries_per_day.map(u64::from)),
    ] {
        if let Some(value) = value {
            limits.insert(name.to_owned(), value.into());
        }
    }
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
    let expires_ms = args.expires_days.map(|days| now_ms + u64::from(days) * 86_400_000);
    let body = json!({ "name": args.name, "expires_ms": expires_ms, "limits": limits });
    let answer = api.json(api.request(Method::POST, "/api/v1/keys").json(&body)).await?;
    if global.json {
        return line(&answer.to_string());
    }
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(plain).unwrap_or_default();
    eprintln!("made key {} for {}: its secret is shown only now", text("id"), plain(&args.name));
    line(&text("key"))
}

pub async fn revoke(global: &Global, id: String) -> Result<(), CliError> {
    let api = Api::new(global)?;
    let answer = api.json(api.request(Method::DELETE, &format!("/api/v1/keys/{}", encode(&id)))).await?;
    line(&if global.json { answer.to_string() } else { format!("revoked {}", plain(&id)) })
}

pub async fn list(global: &Global) -> Result<(), CliError> {
    let api = Api::new(global)?;
    let answer = api.json(api.request(Method::GET, "/api/v1/keys")).await?;
    let keys = answer.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if global.json {
        return keys.iter().try_for_each(|key| line(&key.to_string()));
    }
    if keys.is_empty() {
        return line("there are no API keys but the operator's: `skygate key add NAME` makes one");
    }
    let rows: Vec<Vec<String>> = keys.iter().map(row).collect();
    table(&["ID", "NAME", "MADE", "EXPIRES", "LIMITS OF ITS OWN"], &rows).iter().try_for_each(|text| line(text))
}

fn row(key: &Value) -> Vec<String> {
    let text = |name: &str| key.get(name).and_then(Value::as_str).map_or_else(|| "-".to_owned(), plain);
    let time = |name: &str| key.get(name).and_then(Value::as_u64).map(utc_minute);
    let mut expires = time("expires_ms").unwrap_or_else(|| "never".to_owned());
    if key.get("expired").and_then(Value::as_bool) == Some(true) {
        expires += " (over)";
    }
    let limits = key.get("limits").and_then(Value::as_object).into_iter().flatten();
    let limits: Vec<String> = limits
        .filter_map(|(name, value)| {
            let number = value.as_u64()?;
            let shown = if name.contains("bytes") { bytes(number) } else { number.to_string() };
            Some(format!("{} {shown}", plain(name).replace('_', " ")))
        })
        .collect();
    let limits = if limits.is_empty() { "-".to_owned() } else { limits.join(", ") };
    vec![text("id"), text("name"), time("created_ms").unwrap_or_else(|| "-".to_owned()), expires, limits]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_with_what_is_special_about_it() {
        let key = json!({
            "id": "00", "name": "a\u{7}", "created_ms": 0, "expires_ms": 60_000, "expired": true,
            "limits": { "upload_bytes": 2_000_000, "registry_per_minute": 5 }
        });
        let shown = row(&key);
        assert_eq!(shown[..4], ["00", "a\\u{7}", "1970-01-01 00:00", "1970-01-01 00:01 (over)"]);
        assert!(shown[4].starts_with("registry per minute 5, upload bytes "), "{}", shown[4]);
        assert_eq!(row(&json!({}))[1..], ["-", "-", "never", "-"]);
    }
}
