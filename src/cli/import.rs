//! `skygate import`: CARs, each as one stream to a running gateway.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use futures::stream;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::add::{BLOCK_BYTES, BLOCKS_WAITING_MAX, check_key};
use super::api::{Api, encode};
use super::output::{bytes, counted, line};
use super::walk::unreadable;
use super::{CliError, Global};

const CAR_TYPE: &str = "application/vnd.ipld.car";

const EXAMPLES: &str = "\
Examples:
  skygate import site.car              keep its blocks, pinned under its roots
  skygate import a.car b.car           one after the other
  ipfs dag export CID | skygate import -
  skygate import site.car --json | tail -1   {\"roots\":[…],\"blocks\":…,\"missing\":…,\"size_bytes\":…}

CARv1 and CARv2, any codec. Each block is hashed: one that does not match its CID refuses the whole CAR. Blocks that are
linked to and not in the CAR are counted as missing; what is there is kept all the same, as a partial pin.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImportArgs {
    /// CAR files; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Name of the pins [default: each root's own CID]
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// The same key again gets the first answer, and nothing is stored twice [default: random]
    #[arg(long, value_name = "K")]
    idempotency_key: Option<String>,
}

pub async fn run(global: &Global, args: ImportArgs) -> Result<(), CliError> {
    let key = args.idempotency_key.clone().unwrap_or_else(|| hex::encode(rand::random::<[u8; 16]>()));
    check_key(&key)?;
    if args.idempotency_key.is_some() && args.files.len() > 1 {
        return Err(CliError::Usage("--idempotency-key: one key stands for one CAR, import them one by one".to_owned()));
    }
    let api = Api::new(global)?;
    let mut roots = Vec::new();
    let (mut blocks, mut missing, mut size_bytes) = (0, 0, 0);
    for (index, file) in args.files.iter().enumerate() {
        let key = if index == 0 { key.clone() } else { hex::encode(rand::random::<[u8; 16]>()) };
        let answer = import(&api, global, file, (args.name.as_deref(), &key)).await?;
        let number = |key: &str| answer[key].as_u64().unwrap_or_default();
        blocks += number("blocks");
        missing += number("missing");
        size_bytes += number("size_bytes");
        if !global.json {
            report(file, &answer)?;
        }
        roots.extend(answer["roots"].as_array().cloned().unwrap_or_default());
    }
    if global.json {
        let sum = json!({ "roots": roots, "blocks": blocks, "missing": missing, "size_bytes": size_bytes });
        return line(&sum.to_string());
    }
    Ok(())
}

/// One request; the file is read by a thread of its own while it is sent.
async fn import(api: &Api, global: &Global, file: &Path, (name, key): (Option<&str>, &str)) -> Result<Value, CliError> {
    let (source, length): (Box<dyn Read + Send>, Option<u64>) = if file == Path::new("-") {
        (Box::new(std::io::stdin()), None)
    } else {
        let failed = |error: std::io::Error| CliError::failed(unreadable(file, &error));
        let open = File::open(file).map_err(failed)?;
        let found = open.metadata().map_err(failed)?;
        if found.is_dir() {
            return Err(CliError::failed(format!("{0} is a folder: `skygate add {0}` stores it", file.display())));
        }
        (Box::new(open), Some(found.len()))
    };
    let bar = progress_bar(length, global.json);
    let (parts, waiting) = mpsc::channel(BLOCKS_WAITING_MAX);
    let reader = {
        let bar = bar.clone();
        tokio::task::spawn_blocking(move || read_all(source, &parts, &bar))
    };
    let body = Body::wrap_stream(stream::unfold(waiting, async |mut waiting: mpsc::Receiver<_>| {
        waiting.recv().await.map(|part: Result<Bytes, std::io::Error>| (part, waiting))
    }));
    let path = name.map_or_else(|| "/api/v1/import".to_owned(), |name| format!("/api/v1/import?name={}", encode(name)));
    let request = api.request(Method::POST, &path).header("Content-Type", CAR_TYPE).header("Idempotency-Key", key);
    let sent = request.body(body).send().await;
    bar.finish_and_clear();
    let named = |error: CliError| match error {
        CliError::Failed(text) => CliError::Failed(format!("{}: {text}", file.display())),
        other => other,
    };
    match sent {
        Ok(response) => {
            let response = api.accept(response).await.map_err(named)?;
            api.read_json(response).await
        }
        Err(error) => match reader.await {
            Ok(Err(fault)) => Err(CliError::failed(unreadable(file, &fault))),
            _ => Err(named(api.explain_break(&error).await)),
        },
    }
}

/// Ends quietly when nobody takes the parts any more: the request knows why.
fn read_all(
    mut source: Box<dyn Read + Send>,
    parts: &mpsc::Sender<Result<Bytes, std::io::Error>>,
    bar: &ProgressBar,
) -> Result<(), std::io::Error> {
    loop {
        let mut buffer = Vec::with_capacity(BLOCK_BYTES);
        let count = match source.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut buffer) {
            Ok(count) => count,
            Err(error) => {
                // The request must break off here, not look finished.
                let _ = parts.blocking_send(Err(std::io::Error::new(error.kind(), error.to_string())));
                return Err(error);
            }
        };
        bar.inc(count as u64);
        if count == 0 || parts.blocking_send(Ok(buffer.into())).is_err() {
            return Ok(());
        }
    }
}

fn progress_bar(length: Option<u64>, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match length {
        Some(_) => "{bar:30} {bytes} of {total_bytes}  {binary_bytes_per_sec}  {eta} left",
        None => "{bytes}  {binary_bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).expect("the template is right");
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_style(style)
}

fn report(file: &Path, answer: &Value) -> Result<(), CliError> {
    let number = |key: &str| answer[key].as_u64().unwrap_or_default();
    line(&format!("{}: {}, {}", file.display(), counted(number("blocks"), "block"), bytes(number("size_bytes"))))?;
    for root in answer["roots"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        line(&format!("  /ipfs/{root}"))?;
    }
    match number("missing") {
        0 => line(&format!("  {}", answer["durability"].as_str().unwrap_or_default())),
        missing => line(&format!("  partial: {} that it links to not in the CAR", counted(missing, "block"))),
    }
}
