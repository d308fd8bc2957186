//! Bodies as Skynet took them, and the registry over a real socket.

use serde_json::Value;

use super::*;
use crate::address::test_shared::shared_json;
use crate::http::testing::{Answer, KEY, Memory, TestServer, send, start};
use crate::names::testing::{mutations, sign_entry};

/// As skynet-js posts it.
fn body_of(signed: &SignedEntry) -> String {
    let entry = &signed.entry;
    json!({
        "publickey": { "algorithm": "ed25519", "key": entry.key().0.to_vec() },
        "datakey": hex::encode(entry.datakey()),
        "revision": entry.revision(),
        "data": entry.data(),
        "signature": signed.signature.to_vec(),
    })
    .to_string()
}

async fn post(server: &TestServer, path: &str, headers: &[&str], body: &str) -> Answer {
    send(server.public, "POST", path, headers, body.as_bytes()).await
}

fn query_of(signed: &SignedEntry) -> String {
    format!("publickey=ed25519%3A{}&datakey={}", hex::encode(signed.entry.key().0), hex::encode(signed.entry.datakey()))
}

#[test]
fn the_shapes_of_bodies() {
    let Some(vectors) = shared_json("skynet-vectors/registry_computed.json") else { return };
    let rows = vectors["post_body_shapes"].as_array().expect("rows");
    assert_eq!(rows.len(), 8);
    for row in rows {
        let text = |key: &str| row["decoded"][key].as_str().expect("a text").to_owned();
        let told = read_entry(row["body"].as_str().expect("a body").as_bytes());
        if row["decoded"].is_null() {
            assert!(told.is_err(), "{}", row["name"]);
            continue;
        }
        let signed = told.unwrap_or_else(|error| panic!("{}: {error}", row["name"]));
        assert_eq!(hex::encode(signed.entry.data()), text("data_hex"), "{}", row["name"]);
        assert_eq!(signed.entry.key().to_string(), text("publickey"));
        assert_eq!(signed.entry.revision().to_string(), text("revision"));
        assert_eq!(hex::encode(signed.signature), text("signature_hex"));
        assert_eq!(signed.entry.entry_type(), EntryType::Plain, "absent and 0 are 1");
    }
}

#[test]
fn an_entry_as_it_is_told() {
    let Some(vectors) = shared_json("skynet-vectors/registry_computed.json") else { return };
    let told: Value = serde_json::from_str(vectors["get_response_example"].as_str().expect("a text")).expect("JSON");
    let body = json!({
        "publickey": told["publickey"], "datakey": told["datakey"], "revision": told["revision"],
        "data": hex::decode(told["data"].as_str().expect("hex")).expect("hex"),
        "signature": hex::decode(told["signature"].as_str().expect("hex")).expect("hex"),
    });
    let signed = read_entry(body.to_string().as_bytes()).expect("an entry");
    assert_eq!(entry_json(&signed, "publickey"), told);
    assert_eq!(told["revision"].as_u64(), Some(u64::MAX));
}

#[tokio::test]
async fn put_get_and_errors() {
    let server = start(Memory::default()).await;
    let signed = sign_entry(1, [7; 32], b"hello", 3);
    let target = format!("/skynet/registry?{}", query_of(&signed));
    let none = server.get(&target, &[]).await;
    assert_eq!((none.status, none.text().as_str()), (404, "{\"message\":\"registry entry not found\"}\n"));

    let form = "Content-Type: application/x-www-form-urlencoded";
    let posted = post(&server, "/skynet/registry", &[form], &body_of(&signed)).await;
    assert_eq!((posted.status, posted.body.len()), (204, 0));
    let got = server.get(&format!("{target}&timeout=5"), &["Origin: https://app.example"]).await;
    assert_eq!((got.status, got.header("content-type")), (200, Some("application/json; charset=utf-8")));
    assert_eq!(got.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(serde_json::from_slice::<Value>(&got.body).expect("JSON"), entry_json(&signed, "publickey"));
    let head = server.ask("HEAD", &target, &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));

    let key = format!("Skynet-Api-Key: {KEY}");
    let one = body_of(&sign_entry(1, [7; 32], b"hello", 3));
    let lower = body_of(&sign_entry(1, [7; 32], b"hello", 2));
    let higher = body_of(&sign_entry(1, [7; 32], b"hello", 4));
    let stolen = higher.replace("\"revision\":4", "\"revision\":5");
    let long = body_of(&sign_entry(1, [7; 32], b"hello", 5)).replace("[104,101,108,108,111]", &format!("{:?}", [1; 114]));
    let endless = " ".repeat(ENTRY_BODY_BYTES_MAX + 1);
    let rows: [(&str, &[&str], &str, u16, &str); 12] = [
        ("/skynet/registry", &[], &one, 400, "Unable to update the registry: provided revision number is already registered"),
        ("/skynet/registry", &[], &lower, 400, "Unable to update the registry: provided revision number is invalid"),
        ("/skynet/registry", &[], &stolen, 400, "Unable to update the registry: the signature does not verify"),
        (
            "/skynet/registry",
            &[],
            &long,
            400,
            "Unable to update the registry: an entry has at most 113 bytes of data, this one 114",
        ),
        ("/skynet/registry", &[], "{}", 400, "Unable to parse the registry entry: publickey is no ed25519 key"),
        ("/skynet/registry", &[], "[]", 400, "Unable to parse the registry entry: publickey is no ed25519 key"),
        ("/skynet/registry", &[], &endless, 413, "the body is longer than 8192 bytes"),
        ("/skynet/registry", &["Host: portal.example"], &higher, 404, "there is no such page"),
        (
            "/skynet/registry",
            &["Origin: https://evil.example"],
            &higher,
            403,
            "writes from a web page of another origin need an API key",
        ),
        (
            "/skynet/registry",
            &["Skynet-Api-Key: wrong"],
            &higher,
            401,
            "this API key is not known: it may have been revoked, or have expired",
        ),
        ("/skynet/registry", &[&key, "Origin: https://app.example"], &higher, 204, ""),
        ("/skynet/registry/hosts", &[], "", 405, "this address only answers GET, HEAD and OPTIONS"),
    ];
    for (path, headers, body, status, message) in rows {
        let answer = post(&server, path, headers, body).await;
        let told = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        assert_eq!((answer.status, told["message"].as_str().unwrap_or_default()), (status, message), "{headers:?} {body}");
    }
}

#[tokio::test]
async fn queries() {
    let server = start(Memory::default()).await;
    let signed = sign_entry(1, [7; 32], b"hello", 3);
    post(&server, "/skynet/registry", &[], &body_of(&signed)).await;
    let (good, id) = (query_of(&signed), signed.entry.id());
    for (target, status) in [
        (format!("/skynet/registry?{good}&timeout=300"), 200),
        (format!("/skynet/registry?{good}&timeout=301"), 400),
        (format!("/skynet/registry?{good}&timeout=0"), 400),
        (format!("/skynet/registry?{good}&timeout=x"), 400),
        ("/skynet/registry".to_owned(), 400),
        (format!("/skynet/registry?{}", good.replace("ed25519", "rsa")), 400),
        (format!("/skynet/registry?{}0", good), 400),
        (format!("/skynet/health/entry?{good}"), 200),
        (format!("/skynet/health/entry?entryid={id}"), 200),
        ("/skynet/health/entry?entryid=00".to_owned(), 400),
        (format!("/skynet/health/entry?entryid={}", "00".repeat(32)), 404),
        ("/skynet/registry/hosts".to_owned(), 200),
        ("/skynet/registry/subscription".to_owned(), 426),
        ("/skynet/registry/other".to_owned(), 404),
    ] {
        let answer = server.get(&target, &[]).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
    }
    let health = server.get(&format!("/skynet/health/entry?entryid={id}"), &[]).await;
    let told: Value = serde_json::from_slice(&health.body).expect("JSON");
    let expect = json!({
        "revisionnumber": 3, "numentries": 7, "numbestentries": 5, "numbestentriesbeforecutoff": 5, "numbestprimaryentries": 0,
    });
    assert_eq!(told, expect);
}

#[tokio::test]
async fn many_at_once() {
    let server = start(Memory::default()).await;
    let entries = [sign_entry(1, [7; 32], b"a", 3), sign_entry(1, [7; 32], b"b", 4), sign_entry(2, [7; 32], b"c", 1)];
    let list = |entries: &[SignedEntry]| {
        let with_host = |signed| body_of(signed).replacen('{', "{\"hostkey\":\"ed25519:00\",", 1);
        format!("[{}]", entries.iter().map(with_host).collect::<Vec<_>>().join(","))
    };
    let multi = "/skynet/registrymulti";
    assert_eq!(post(&server, multi, &[], &list(&entries)).await.status, 204);
    for (signed, revision) in [(&entries[0], 4), (&entries[2], 1)] {
        let got = server.get(&format!("/skynet/registry?{}", query_of(signed)), &[]).await;
        assert_eq!(serde_json::from_slice::<Value>(&got.body).expect("JSON")["revision"], revision);
    }
    assert_eq!(post(&server, multi, &[], &list(&entries)).await.status, 400, "registered already");
    assert_eq!(post(&server, multi, &[], "[]").await.status, 400);
    assert_eq!(post(&server, multi, &[], &list(&vec![entries[0].clone(); ENTRIES_MAX + 1])).await.status, 400);
    // One that would be passed over has to be its owner's all the same.
    let mut stolen = sign_entry(1, [7; 32], b"x", 6);
    stolen.signature[0] ^= 1;
    let better = sign_entry(1, [7; 32], b"y", 7);
    assert_eq!(post(&server, multi, &[], &list(&[stolen, better])).await.status, 400);
}

#[test]
fn mutated_bodies() {
    let signed = sign_entry(1, [7; 32], b"some data", 3);
    let single = body_of(&signed);
    let text = single.replace(&format!("{:?}", signed.entry.data()).replace(' ', ""), "\"aGVsbG8=\"");
    let multi = format!("[{single},{text}]");
    for seed in 0..3_000 {
        for good in [&single, &text, &multi] {
            fuzz(&mutations(seed, good.as_bytes()));
        }
    }
}
