//! Uploads to a portal over a real socket; what is stored is looked at by `compat-tests`.

use crate::address::Skylink;
use crate::http::testing::{ABSENT, Answer, KEY, Memory, TestServer, send, start};

const TYPE: &str = "Content-Type: multipart/form-data; boundary=x";

fn form(parts: &[(&str, &str)]) -> Vec<u8> {
    let parts = parts.iter().map(|(head, bytes)| format!("--x\r\nContent-Disposition: form-data; {head}\r\n\r\n{bytes}\r\n"));
    (parts.collect::<String>() + "--x--\r\n").into_bytes()
}

async fn post(server: &TestServer, target: &str, headers: &[&str], body: &[u8]) -> Answer {
    send(server.public, "POST", target, headers, body).await
}

#[tokio::test]
async fn an_upload_answers_with_both_addresses() {
    let server = start(Memory::default()).await;
    // The golden upload of the real network (`golden_uploads.json`).
    let body = form(&[(
        "name=\"file\"; filename=\"testdatakey\"",
        "{\"_data\":{\"example\":\"This is some example JSON data for SkyDB V2.\"},\"_v\":2}",
    )]);
    let expect = "AAB1QJWQV0y2ynDXnJvOt0uh-THq-pJj2_layW5fjPXhTQ";
    for target in ["/skynet/skyfile", "/skynet/skyfile/some/path"] {
        let answer = post(&server, target, &[TYPE], &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let told: serde_json::Value = serde_json::from_str(&answer.text()).expect("JSON");
        let link = Skylink::parse(expect).expect("a skylink");
        assert_eq!(told["skylink"], expect);
        assert_eq!((&told["bitfield"], &told["cid"]), (&0.into(), &ABSENT.into()));
        assert_eq!(told["merkleroot"], hex::encode(link.hash()));
        assert_eq!((answer.header("skynet-skylink"), answer.header("skygate-cid")), (Some(expect), Some(ABSENT)));
        assert!(answer.header("access-control-expose-headers").is_some_and(|list| list.contains("Skygate-Cid")));
    }
}

#[tokio::test]
async fn who_may_upload() {
    let server = start(Memory::default()).await;
    let body = form(&[("name=\"file\"; filename=\"f\"", "hello")]);
    let key = format!("Skynet-Api-Key: {KEY}");
    let link = Skylink::v1(0, 4096, [7; 32]).expect("a skylink");
    let rows: [(&[&str], u16); 6] = [
        (&[], 200),
        (&["Origin: http://localhost:3000"], 200),
        (&["Origin: https://evil.example"], 403),
        (&["X-Forwarded-For: 203.0.113.5"], 403),
        (&["Skynet-Api-Key: wrong"], 401),
        (&["X-Forwarded-For: 203.0.113.5", "Origin: https://app.example", &key], 200),
    ];
    for (headers, status) in rows {
        let answer = post(&server, "/skynet/skyfile", &[&[TYPE], headers].concat(), &body).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
        let pinned = post(&server, &format!("/skynet/pin/{link}"), headers, b"").await;
        assert_eq!(pinned.status, if status == 200 { 204 } else { status }, "{headers:?}");
        let restored = post(&server, "/skynet/restore", headers, b"x").await;
        assert_eq!(restored.status, if status == 200 { 503 } else { status }, "{headers:?}");
    }
    assert_eq!(post(&server, &format!("/skynet/unpin/{link}"), &[], b"").await.status, 403, "others have pinned it");
    assert_eq!(post(&server, &format!("/skynet/unpin/{link}"), &[&key], b"").await.status, 204);
    let pinned = post(&server, &format!("/skynet/pin/{link}"), &[], b"").await;
    assert_eq!(pinned.header("skynet-skylink").map(str::to_owned), Some(link.to_string()));
    for (target, status, words) in [
        (format!("/skynet/pin/{}", Skylink::v2([7; 32])), 400, "can't pin version 2 skylink"),
        ("/skynet/pin/nonsense".to_owned(), 400, ""),
        ("/skynet/pin/".to_owned(), 400, ""),
    ] {
        let answer = post(&server, &target, &[], b"").await;
        assert!(answer.status == status && answer.text().contains(words), "{target}: {} {}", answer.status, answer.text());
    }
    for target in ["/skynet/skyfile", "/skynet/restore", "/skynet/pin/x", "/skynet/unpin/x"] {
        assert_eq!(server.get(target, &[]).await.status, 405, "{target}");
    }
}

#[tokio::test]
async fn uploads_that_are_refused_in_words() {
    let server = start(Memory::default()).await;
    let good = form(&[("name=\"file\"; filename=\"f\"", "hello")]);
    let rows: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("", "", good.clone(), "Content-Type"),
        ("", "Content-Type: ;", good.clone(), "Content-Type"),
        ("", "Content-Type: multipart/form-data", good.clone(), "boundary"),
        ("", TYPE, form(&[("name=\"other\"; filename=\"f\"", "x")]), "illegal form name"),
        ("", TYPE, form(&[("name=\"file\"", "x")]), "no filename provided"),
        ("", TYPE, form(&[("name=\"file\"; filename=\"../f\"", "x")]), "cannot begin with ../"),
        ("", TYPE, form(&[("name=\"file\"; filename=\"f\"\r\nMode: 9", "x")]), "file mode"),
        ("", TYPE, good[..good.len() - 5].to_vec(), "ended before its last boundary"),
        (
            "",
            TYPE,
            form(&[("name=\"files[]\"; filename=\"a\"", "x"), ("name=\"files[]\"; filename=\"b\"", "y")]),
            "nonempty string",
        ),
        (
            "?filename=d",
            TYPE,
            form(&[("name=\"files[]\"; filename=\"a\"", "x"), ("name=\"files[]\"; filename=\"a\"", "y")]),
            "twice",
        ),
        ("?filename=/d", TYPE, good.clone(), "cannot begin with /"),
        ("?tryfiles=%5B%22/none%22%5D", TYPE, good.clone(), "must exist"),
        ("?errorpages=%7B%22404%22:%22/none%22%7D", TYPE, good.clone(), "must exist"),
        ("?errorpages=%7B%22200%22:%22/f%22%7D", TYPE, good.clone(), "under 400"),
        ("?defaultpath=/none", TYPE, good.clone(), "no such path"),
        ("?skykeyname=k", TYPE, good.clone(), "skykeys"),
        ("", "Content-Type: text/plain", b"raw".to_vec(), "nonempty string"),
        ("?filename=f&defaultpath=/f", "Content-Type: text/plain", b"raw".to_vec(), "multipart uploads"),
    ];
    for (query, kind, body, words) in rows {
        let answer = post(&server, &format!("/skynet/skyfile{query}"), &[kind], &body).await;
        assert_eq!(answer.status, 400, "{query} {kind}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
        assert!(answer.text().starts_with("{\"message\":\"") && answer.text().contains(words), "{query} {kind}: {}", answer.text());
    }
    assert!(server.desk.skyfiles.lock().expect("lock").is_empty());
}
