//! `skygate verify`: every piece on every host, proved against its root.

use bytes::{Bytes, BytesMut};
use clap::Args;
use futures::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use serde_json::Value;

use super::api::{Api, encode};
use super::output::{bytes, counted, line, plain};
use super::{CliError, Global};
use crate::address::Address;

/// Longest line of an answer: an event has some hundred bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

const EXAMPLES: &str = "\
Examples:
  skygate verify                       everything that is stored
  skygate verify bafy…                 what is stored under a CID
  skygate verify sia://XABv…           the same by skylink
  skygate verify --json | tail -1      {\"event\":\"end\",\"verdict\":\"whole\",\"pieces\":…,\"wrong\":0,…}

Reading a file needs any 6 of its 9 pieces (at the default redundancy); this looks at all of them, and at all copies of
small things. An address inside of an upload means the whole upload. What is wrong or missing is noted for repair.

Exit codes:
  0  whole: every piece is right and at its place
  5  damaged: everything can be read, but pieces are wrong, missing, or on hosts that do not answer
  6  something cannot be read now
  1  the check did not come to its end";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArgs {
    /// CID or skylink [default: everything that is stored]
    #[arg(value_name = "ADDRESS")]
    address: Option<String>,
}

pub async fn run(global: &Global, args: VerifyArgs) -> Result<(), CliError> {
    let path = match &args.address {
        None => "/api/v1/verify".to_owned(),
        Some(address) => {
            Address::parse(address).map_err(|error| CliError::Usage(format!("{:?} is no address: {error}", plain(address))))?;
            format!("/api/v1/verify?address={}", encode(address))
        }
    };
    let api = Api::new(global)?;
    let response = api.send(api.request(Method::POST, &path)).await?;
    let bar = progress_bar(global.json);
    let told = tell(Box::pin(response.bytes_stream()), global.json, &bar).await;
    bar.finish_and_clear();
    let end = told?.ok_or_else(|| {
        CliError::failed("the check broke off before its end: is the gateway still running? Its log has the reason, try again")
    })?;
    if !global.json {
        summary(&end).iter().try_for_each(|text| line(text))?;
    }
    match end.get("verdict").and_then(Value::as_str) {
        Some("whole") => Ok(()),
        Some("damaged") => Err(CliError::Damaged),
        _ => Err(CliError::Unreadable),
    }
}

/// Prints what comes, and gives the last event, if it came.
async fn tell(
    mut parts: impl Stream<Item = reqwest::Result<Bytes>> + Unpin,
    json: bool,
    bar: &ProgressBar,
) -> Result<Option<Value>, CliError> {
    let mut rest = BytesMut::new();
    while let Some(part) = parts.next().await {
        let Ok(part) = part else { return Ok(None) };
        rest.extend_from_slice(&part);
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            let text = rest.split_to(at + 1);
            let event: Value = serde_json::from_slice(&text)
                .map_err(|error| CliError::failed(format!("the gateway does not answer as a skygate does ({error})")))?;
            if json {
                line(&event.to_string())?;
            }
            match event.get("event").and_then(Value::as_str) {
                Some("end") => return Ok(Some(event)),
                Some("progress") => bar.set_message(progress(&event)),
                // A newer gateway may tell more.
                _ if json => {}
                _ => {
                    if let Some(text) = sentence(&event) {
                        bar.suspend(|| line(&text))?;
                    }
                }
            }
        }
        if rest.len() > LINE_BYTES_MAX {
            return Err(CliError::failed(format!("the gateway sent a line of more than {LINE_BYTES_MAX} bytes")));
        }
    }
    Ok(None)
}

/// To stderr, and only where somebody looks.
fn progress_bar(json: bool) -> ProgressBar {
    use std::io::IsTerminal;
    let target = match !json && std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("a good template"));
    bar.set_message("reading");
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

fn number(event: &Value, name: &str) -> u64 {
    event.get(name).and_then(Value::as_u64).unwrap_or_default()
}

fn text(event: &Value, name: &str) -> Option<String> {
    event.get(name).and_then(Value::as_str).map(plain)
}

fn progress(event: &Value) -> String {
    let damaged = number(event, "wrong") + number(event, "missing") + number(event, "unknown");
    format!(
        "{} read, {} of {}; {damaged} damaged",
        bytes(number(event, "bytes")),
        counted(number(event, "pieces"), "piece"),
        counted(number(event, "pins"), "finished upload"),
    )
}

/// What was found, in words; `None` for what this program does not know.
fn sentence(event: &Value) -> Option<String> {
    let pin = text(event, "pin").unwrap_or_default();
    let root =
        text(event, "root").map(|root| format!(", sector {}…", root.chars().take(16).collect::<String>())).unwrap_or_default();
    let index = number(event, "piece");
    let reason = text(event, "reason").unwrap_or_default();
    let is_slab = event.get("part").and_then(Value::as_str) == Some("slab");
    match event.get("event")?.as_str()? {
        "damage" => {
            let what = if is_slab { format!("piece {index} of a slab") } else { format!("copy {index} of a base sector") };
            let host =
                text(event, "url").or(text(event, "host")).unwrap_or_else(|| "a host that is not configured here".to_owned());
            let found = match event.get("kind")?.as_str()? {
                "wrong" => format!("wrong on {host} ({reason})"),
                "missing" => format!("missing on {host}"),
                _ => format!("not looked at: {host} did not answer ({reason})"),
            };
            Some(format!("{pin}: {what} is {found}{root}"))
        }
        "unreadable" => {
            let what = match event.get("part").and_then(Value::as_str) {
                Some("slab") => "a slab",
                Some(_) => "a base sector",
                None => "something",
            };
            Some(format!("{pin}: {what} CANNOT BE READ: {reason}{root}"))
        }
        _ => None,
    }
}

/// The last lines.
fn summary(end: &Value) -> Vec<String> {
    let seconds = end.get("seconds").and_then(Value::as_f64).unwrap_or_default();
    let mut lines = vec![format!(
        "looked at {} of {} and {} in {}: {} read in {seconds:.1} s",
        counted(number(end, "pieces"), "piece"),
        counted(number(end, "slabs"), "slab"),
        counted(number(end, "base_sectors"), "base sector"),
        counted(number(end, "pins"), "upload"),
        bytes(number(end, "bytes")),
    )];
    let (wrong, missing, unknown, unreadable) =
        (number(end, "wrong"), number(end, "missing"), number(end, "unknown"), number(end, "unreadable"));
    let found = format!("{wrong} wrong, {missing} missing, {unknown} on hosts that did not answer");
    lines.push(match end.get("verdict").and_then(Value::as_str) {
        Some("whole") => "whole: every piece is right and at its place".to_owned(),
        Some("damaged") => format!("damaged: {found}; everything can be read"),
        _ => format!("UNREADABLE: {unreadable} of them cannot be read now; pieces: {found}"),
    });
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_in_words() {
        let root = "ab".repeat(32);
        let rows = [
            (
                json!({ "event": "damage", "pin": "film", "root": root, "host": "00", "url": "file:/h/3", "part": "slab", "piece": 4,
                    "kind": "wrong", "reason": "no match" }),
                Some("film: piece 4 of a slab is wrong on file:/h/3 (no match), sector abababababababab…"),
            ),
            (
                json!({ "event": "damage", "pin": "film", "root": root, "url": "file:/h/3", "part": "base_sector", "piece": 1,
                    "kind": "missing", "reason": "" }),
                Some("film: copy 1 of a base sector is missing on file:/h/3, sector abababababababab…"),
            ),
            (
                json!({ "event": "damage", "pin": "a\u{1b}", "root": root, "part": "slab", "piece": 0, "kind": "unknown", "reason": "why" }),
                Some(
                    "a\\u{1b}: piece 0 of a slab is not looked at: a host that is not configured here did not answer (why), sector abababababababab…",
                ),
            ),
            (
                json!({ "event": "unreadable", "pin": "film", "root": null, "part": null, "reason": "lost" }),
                Some("film: something CANNOT BE READ: lost"),
            ),
            (json!({ "event": "of a newer gateway" }), None),
            (json!({}), None),
        ];
        for (event, expect) in rows {
            assert_eq!(sentence(&event).as_deref(), expect, "{event}");
        }
    }

    #[test]
    fn the_verdict_is_the_last_line() {
        let rows = [
            (json!({ "verdict": "whole" }), "whole: every piece is right and at its place"),
            (
                json!({ "verdict": "damaged", "wrong": 2, "missing": 1 }),
                "damaged: 2 wrong, 1 missing, 0 on hosts that did not answer; everything can be read",
            ),
            (
                json!({ "verdict": "unreadable", "unreadable": 1, "wrong": 4 }),
                "UNREADABLE: 1 of them cannot be read now; pieces: 4 wrong, 0 missing, 0 on hosts that did not answer",
            ),
        ];
        for (end, expect) in rows {
            assert_eq!(summary(&end).last().map(String::as_str), Some(expect));
        }
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_has_no_end() {
        let parts = |text: &'static str| futures::stream::iter(text.as_bytes().chunks(7).map(|part| Ok(Bytes::from_static(part))));
        let bar = ProgressBar::hidden();
        let whole = "{\"event\":\"progress\",\"pins\":1}\n{\"event\":\"end\",\"verdict\":\"whole\"}\n";
        let end = tell(parts(whole), false, &bar).await.expect("reads");
        assert_eq!(end.and_then(|end| end["verdict"].as_str().map(str::to_owned)).as_deref(), Some("whole"));
        assert!(tell(parts("{\"event\":\"progress\"}\n{\"event\":\"en"), false, &bar).await.expect("reads").is_none());
        assert!(tell(parts("no JSON\n"), false, &bar).await.is_err());
    }
}
