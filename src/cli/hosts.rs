//! `skygate hosts`: how each host does.

use reqwest::Method;
use serde_json::Value;

use super::api::Api;
use super::output::{bytes, line, plain, table};
use super::{CliError, Global};

pub async fn run(global: &Global) -> Result<(), CliError> {
    let api = Api::new(global)?;
    let answer = api.json(api.request(Method::GET, "/api/v1/hosts")).await?;
    if global.json {
        return line(&answer.to_string());
    }
    let hosts = answer.get("hosts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<Vec<String>> = hosts.iter().map(row).collect();
    let head = [
        "HOST",
        "STATE",
        "USED",
        "FREE",
        "FAILURES",
        "WRONG PIECES",
        "LOOKED AT",
        "DAMAGED",
        "UNDER WAY",
        "READ MS P50/P95",
        "WRITE MS P50/P95",
    ];
    table(&head, &rows).iter().try_for_each(|text| line(text))?;
    for host in hosts {
        if let Some(reason) = host.get("reason").and_then(Value::as_str) {
            line(&format!("{}: {}", name(host), plain(reason)))?;
        }
        if let Some(why) = host.get("set_aside").and_then(Value::as_str) {
            line(&format!("{}: set aside: {}", name(host), plain(why)))?;
        }
    }
    Ok(())
}

fn row(host: &Value) -> Vec<String> {
    let number = |name: &str| host.get(name).and_then(Value::as_u64);
    let size = |name: &str| number(name).map_or_else(|| "-".to_owned(), bytes);
    let count = |name: &str| number(name).map_or_else(|| "-".to_owned(), |count| count.to_string());
    let state = host.get("state").and_then(Value::as_str).map_or_else(|| "-".to_owned(), plain);
    let aside = host.get("set_aside").is_some_and(Value::is_string);
    vec![
        name(host),
        if aside { format!("{state}, set aside") } else { state },
        size("used_bytes"),
        size("free_bytes"),
        count("failures"),
        count("wrong_pieces"),
        looked_at(host),
        count("damage_noted"),
        count("in_flight"),
        latency(host, "get_small"),
        latency(host, "put_small"),
    ]
}

fn name(host: &Value) -> String {
    let text = |name: &str| host.get(name).and_then(Value::as_str).map(plain);
    text("url").or(text("id")).unwrap_or_else(|| "-".to_owned())
}

/// Pieces that audits and `verify` looked at.
fn looked_at(host: &Value) -> String {
    let count = |name: &str| host.get("checked")?.get(name)?.as_u64();
    match (count("right"), count("wrong"), count("missing")) {
        (Some(right), Some(wrong), Some(missing)) => (right + wrong + missing).to_string(),
        _ => "-".to_owned(),
    }
}

/// Median and 95th percentile of small requests of one kind: what people wait for. `--json` has all kinds and sizes.
fn latency(host: &Value, kind: &str) -> String {
    let quantile = |name: &str| host.get("latency_ms")?.get(format!("{kind}_{name}"))?.as_f64();
    match (quantile("p50"), quantile("p95")) {
        (Some(middle), Some(high)) => format!("{middle:.1} / {high:.1}"),
        (Some(one), None) | (None, Some(one)) => format!("{one:.1}"),
        (None, None) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_has_a_row_whatever_it_leaves_out() {
        let full = json!({ "id": "i", "url": "file:/h", "state": "up", "used_bytes": 2048, "free_bytes": null, "failures": 1,
            "wrong_pieces": 0, "set_aside": null, "damage_noted": 4, "checked": { "right": 5, "wrong": 1, "missing": 1 }, "in_flight": 2, "latency_ms": { "get_small_p50": 0.25, "get_small_p95": 3, "list_small_p50": 9, "put_small_p50": 1 } });
        assert_eq!(row(&full), ["file:/h", "up", "2.0 KiB", "-", "1", "0", "7", "4", "2", "0.2 / 3.0", "1.0"]);
        assert_eq!(row(&json!({ "id": "i", "state": "up", "set_aside": "it lies" }))[1], "up, set aside");
        assert_eq!(row(&json!({})), ["-"; 11]);
        assert_eq!(row(&json!({ "id": "i", "latency_ms": "none" }))[9], "-");
    }
}
