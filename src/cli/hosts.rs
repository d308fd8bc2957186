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
    let head = ["HOST", "STATE", "USED", "FREE", "FAILURES", "WRONG PIECES", "UNDER WAY", "LATENCY MS"];
    table(&head, &rows).iter().try_for_each(|text| line(text))?;
    for host in hosts {
        if let Some(reason) = host.get("reason").and_then(Value::as_str) {
            line(&format!("{}: {}", name(host), plain(reason)))?;
        }
    }
    Ok(())
}

fn row(host: &Value) -> Vec<String> {
    let number = |name: &str| host.get(name).and_then(Value::as_u64);
    let size = |name: &str| number(name).map_or_else(|| "-".to_owned(), bytes);
    let count = |name: &str| number(name).map_or_else(|| "-".to_owned(), |count| count.to_string());
    let state = host.get("state").and_then(Value::as_str).map_or_else(|| "-".to_owned(), plain);
    let latency = host.get("latency_ms").or(host.get("latency")).map(latency).filter(|text| !text.is_empty());
    let latency = latency.unwrap_or_else(|| "-".to_owned());
    vec![
        name(host),
        state,
        size("used_bytes"),
        size("free_bytes"),
        count("failures"),
        count("wrong_pieces"),
        count("in_flight"),
        latency,
    ]
}

fn name(host: &Value) -> String {
    let text = |name: &str| host.get(name).and_then(Value::as_str).map(plain);
    text("url").or(text("id")).unwrap_or_else(|| "-".to_owned())
}

/// Quantiles, however they are nested: `p50 0.2, p99 1.3`.
fn latency(value: &Value) -> String {
    match value {
        Value::Number(number) => number.as_f64().map(|ms| format!("{ms:.1}")).unwrap_or_default(),
        Value::Array(values) => values.iter().map(latency).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; "),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name, latency(value))).filter(|(_, text)| !text.is_empty());
            fields.map(|(name, text)| format!("{} {text}", plain(name))).collect::<Vec<_>>().join(", ")
        }
        Value::String(text) => plain(text),
        Value::Null | Value::Bool(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_has_a_row_whatever_it_leaves_out() {
        let full = json!({ "id": "i", "url": "file:/h", "state": "up", "used_bytes": 2048, "free_bytes": null, "failures": 1,
            "wrong_pieces": 0, "in_flight": 2, "latency_ms": { "p50": 0.25, "p99": 3 } });
        assert_eq!(row(&full), ["file:/h", "up", "2.0 KiB", "-", "1", "0", "2", "p50 0.2, p99 3.0"]);
        assert_eq!(row(&json!({})), ["-"; 8]);
        assert_eq!(row(&json!({ "id": "i", "latency": [{ "class": "small", "p50": 1 }] }))[7], "class small, p50 1.0");
    }
}
