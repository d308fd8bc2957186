//! The sample site that the embedded default has from its first start on.

use std::path::Path;

use bytes::Bytes;

use crate::ingest::{AddOptions, Ingest};

/// The files of `fixtures/sample-site`, in byte order of their paths.
const FILES: &[(&str, &[u8])] = &[
    ("404.html", include_bytes!("../../fixtures/sample-site/404.html")),
    ("how/index.html", include_bytes!("../../fixtures/sample-site/how/index.html")),
    ("index.html", include_bytes!("../../fixtures/sample-site/index.html")),
    ("style.css", include_bytes!("../../fixtures/sample-site/style.css")),
];

/// Adds the site at the first start; returns its path from then on. Failing is told and forgiven: a node without the
/// sample is a good node.
pub async fn add_once(ingest: &Ingest, state: &Path, first: bool) -> Option<String> {
    let note = state.join("sample-site");
    if let Ok(path) = std::fs::read_to_string(&note) {
        return Some(path.trim().to_owned());
    }
    if !first {
        return None;
    }
    let options = AddOptions { owner: "admin".to_owned(), idempotency_key: Some("sample-site".to_owned()) };
    let body = futures::stream::iter(frames().into_iter().map(Ok::<_, std::convert::Infallible>));
    match ingest.add(body, options).await {
        Ok(report) => {
            let path = format!("/ipfs/{}/", report.cid);
            if let Err(error) = std::fs::write(&note, &path) {
                tracing::warn!(%error, "where the sample site is could not be noted");
            }
            Some(path)
        }
        Err(error) => {
            tracing::warn!(%error, "the sample site could not be added");
            None
        }
    }
}

/// The site as an add stream (`docs/formats.md` 9).
fn frames() -> Vec<Bytes> {
    let head = serde_json::json!({ "v": 1, "root": "dir", "name": "sample-site", "profile": "unixfs-v1-2025" });
    let mut parts = vec![frame(&head)];
    for (path, content) in FILES {
        parts.push(frame(&serde_json::json!({ "path": path, "kind": "file", "size": content.len() })));
        parts.push(Bytes::from_static(content));
    }
    parts.push(frame(&serde_json::json!({ "end": true, "entries": FILES.len() })));
    parts
}

fn frame(json: &serde_json::Value) -> Bytes {
    let json = json.to_string();
    let mut bytes = (json.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.into()
}
