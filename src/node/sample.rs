//! The sample site that the embedded default has from its first start on.

use std::path::Path;

use bytes::Bytes;

use crate::ingest::{AddOptions, Ingest};

/// The files of `fixtures/sample-site`, in byte order of their paths.
const FILES: &[(&str, &[u8])] = &[
    ("404.html", include_bytes!("../../fixtures/sample-site/404.html")),
    ("hosts.png", include_bytes!("../../fixtures/sample-site/hosts.png")),
    ("how/index.html", include_bytes!("../../fixtures/sample-site/how/index.html")),
    ("index.html", include_bytes!("../../fixtures/sample-site/index.html")),
    ("logo.svg", include_bytes!("../../fixtures/sample-site/logo.svg")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_there_and_in_order() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sample-site");
        let mut expect = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(next).expect("the fixture is there") {
                let path = entry.expect("it can be listed").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    expect.push(path.strip_prefix(&folder).expect("below it").to_str().expect("UTF-8").to_owned());
                }
            }
        }
        expect.sort();
        assert_eq!(FILES.iter().map(|(path, _)| *path).collect::<Vec<_>>(), expect);
    }
}
