//! The protocol over a real socket, and a spool whose uploads become a skyfile that nobody keeps.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::http::testing::{Answer, KEY, Memory, TestServer, send, start};

const TUS: &str = "Tus-Resumable: 1.0.0";
const TYPE: &str = "Content-Type: application/offset+octet-stream";

async fn ask(server: &TestServer, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Answer {
    send(server.public, method, target, &[&[TUS], headers].concat(), body).await
}

/// Makes an upload and answers with its path.
async fn make(server: &TestServer, headers: &[&str]) -> String {
    let answer = ask(server, "POST", "/skynet/tus", headers, b"").await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let location = answer.header("location").expect("a location");
    let path = location.strip_prefix(&format!("http://{}", server.public)).expect("absolute, by the name that was asked");
    assert!(answer.header("upload-expires").is_some() || answer.header("skynet-skylink").is_some());
    path.to_owned()
}

async fn offset(server: &TestServer, path: &str) -> Option<String> {
    let answer = ask(server, "HEAD", path, &[], b"").await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{path}");
    answer.header("upload-offset").map(str::to_owned)
}

#[tokio::test]
async fn one_stream() {
    let server = start(Memory::default()).await;
    let metadata = format!("filename {},filetype {},flag", STANDARD.encode("a b.txt"), STANDARD.encode("text/plain"));
    let path = make(&server, &["Upload-Length: 10", &format!("Upload-Metadata: {metadata}")]).await;
    assert_eq!(offset(&server, &path).await.as_deref(), Some("0"));
    let answer = ask(&server, "PATCH", &path, &[TYPE, "Upload-Offset: 0"], b"01234").await;
    assert_eq!((answer.status, answer.header("upload-offset")), (204, Some("5")));
    assert_eq!(answer.header("tus-resumable"), Some("1.0.0"));
    assert!(answer.header("upload-expires").is_some() && answer.header("skynet-skylink").is_none());
    let early = path.replace("/skynet/tus/", "/skynet/upload/tus/");
    assert_eq!(server.get(&early, &[]).await.status, 404);
    let patch = ["X-HTTP-Method-Override: PATCH", TYPE, "Upload-Offset: 5"];
    let answer = ask(&server, "POST", &path, &patch, b"56789").await;
    assert_eq!((answer.status, answer.header("upload-offset")), (204, Some("10")), "{}", answer.text());
    let skylink = answer.header("skynet-skylink").expect("finished").to_owned();

    let head = server.ask("HEAD", &path, &[]).await;
    assert_eq!((head.status, head.header("upload-length"), head.header("upload-offset")), (200, Some("10"), Some("10")));
    assert_eq!(head.header("skynet-skylink"), Some(skylink.as_str()), "browsers need not say tus for HEAD");
    assert_eq!(head.header("skygate-cid"), Some(crate::http::testing::ABSENT));
    let told = format!("{metadata},Skylink {}", STANDARD.encode(&skylink));
    assert_eq!(head.header("upload-metadata"), Some(told.as_str()));
    let json: serde_json::Value = serde_json::from_slice(&server.get(&early, &[]).await.body).expect("JSON");
    assert_eq!((json["skylink"].as_str(), json["merkleroot"].as_str().map(str::len)), (Some(skylink.as_str()), Some(64)));
    assert!(json["bitfield"].is_number());
}

#[tokio::test]
async fn parts_and_their_file() {
    let server = start(Memory::default()).await;
    let mut parts = Vec::new();
    for bytes in [&b"first "[..], b"second"] {
        let with = ["Upload-Length: 6", "Upload-Concat: partial", TYPE];
        let answer = ask(&server, "POST", "/skynet/tus/", &with, bytes).await;
        assert_eq!((answer.status, answer.header("upload-offset")), (201, Some("6")), "bytes came with the creation");
        parts.push(answer.header("location").expect("a location").to_owned());
    }
    let concat = format!("Upload-Concat: final;{} {}", parts[0], parts[1]);
    for (headers, status) in [
        (vec![concat.as_str(), "Authorization: Bearer 0123456789abcdef0123456789abcdef"], 400),
        (vec!["Upload-Concat: final;https://elsewhere.example/file"], 400),
        (vec!["Upload-Concat: all"], 400),
        (vec![concat.as_str(), TYPE], 201),
        (vec![concat.as_str()], 201),
    ] {
        let answer = ask(&server, "POST", "/skynet/tus", &headers, b"").await;
        let status = if headers.contains(&TYPE) { 403 } else { status };
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
    }
    assert!(KEY.starts_with("0123"), "another caller's parts are not there for it");
    let path = make(&server, &[&concat]).await;
    let head = ask(&server, "HEAD", &path, &[], b"").await;
    assert_eq!((head.header("upload-length"), head.header("upload-offset")), (Some("12"), Some("12")));
    assert_eq!(head.header("upload-concat"), concat.strip_prefix("Upload-Concat: "));
    assert!(head.header("skynet-skylink").is_some());
    assert_eq!(ask(&server, "PATCH", &path, &[TYPE, "Upload-Offset: 12"], b"").await.status, 403);
}

#[tokio::test]
async fn bad_requests() {
    let server = start(Memory::default()).await;
    let path = make(&server, &["Upload-Length: 10"]).await;
    let unknown = "/skynet/tus/00000000000000000000000000000000";
    type Row<'a> = (&'a str, &'a str, &'a [&'a str], &'a [u8], u16);
    let rows: [Row<'_>; 25] = [
        ("POST", "/skynet/tus", &[], b"", 400),
        ("POST", "/skynet/tus", &["Upload-Length: -1"], b"", 400),
        ("POST", "/skynet/tus", &["Upload-Length: 1e3"], b"", 400),
        ("POST", "/skynet/tus", &["Upload-Length: 10", "Upload-Defer-Length: 1"], b"", 400),
        ("POST", "/skynet/tus", &["Upload-Defer-Length: 1"], b"", 400),
        ("POST", "/skynet/tus", &["Upload-Length: 1048577"], b"", 413),
        ("POST", "/skynet/tus", &["Upload-Length: 10", "Upload-Metadata: filename %"], b"", 400),
        ("POST", "/skynet/tus", &["Upload-Length: 10", "Upload-Metadata: filename L2E="], b"", 400),
        ("POST", "/skynet/tus", &["Upload-Length: 2", "Content-Type: text/plain"], b"12", 415),
        ("POST", "/skynet/tus", &["Upload-Length: 1", TYPE], b"12", 413),
        ("POST", "/skynet/tus", &["Upload-Length: 1", "X-Forwarded-For: 192.0.2.1"], b"", 403),
        ("POST", "/skynet/tus", &["Upload-Length: 1", "Authorization: Bearer wrong"], b"", 401),
        ("PATCH", &path, &["Upload-Offset: 0"], b"1", 415),
        ("PATCH", &path, &["Upload-Offset: 0", "Content-Type: text/plain"], b"1", 415),
        ("PATCH", &path, &[TYPE], b"1", 400),
        ("PATCH", &path, &[TYPE, "Upload-Offset: x"], b"1", 400),
        ("PATCH", &path, &[TYPE, "Upload-Offset: 1"], b"1", 409),
        ("PATCH", &path, &[TYPE, "Upload-Offset: 0"], b"0123456789a", 413),
        ("PATCH", unknown, &[TYPE, "Upload-Offset: 0"], b"1", 404),
        ("PATCH", "/skynet/tus/nothing", &[TYPE, "Upload-Offset: 0"], b"1", 404),
        ("HEAD", unknown, &[], b"", 404),
        ("DELETE", unknown, &[], b"", 404),
        ("PUT", &path, &[], b"", 405),
        ("POST", &path, &[], b"", 405),
        ("POST", &path, &["X-HTTP-Method-Override: (x)"], b"", 400),
    ];
    for (method, target, headers, body, status) in rows {
        let answer = ask(&server, method, target, headers, body).await;
        assert_eq!(answer.status, status, "{method} {target} {headers:?}: {}", answer.text());
        assert_eq!(answer.header("tus-resumable"), Some("1.0.0"), "{method} {target} {headers:?}");
        assert!(method == "HEAD" || answer.text().starts_with("{\"message\":\""), "{}", answer.text());
    }
    assert_eq!(offset(&server, &path).await.as_deref(), Some("0"), "nothing of all that was taken");
}

#[tokio::test]
async fn versions_options_and_the_end() {
    let server = start(Memory::default()).await;
    let path = make(&server, &["Upload-Length: 10"]).await;
    for (method, headers, status) in [
        ("PATCH", &[TYPE, "Upload-Offset: 0"][..], 412),
        ("PATCH", &[TYPE, "Upload-Offset: 0", "Tus-Resumable: 0.2.2"][..], 412),
        ("HEAD", &["Tus-Resumable: 2.0.0"][..], 412),
        ("HEAD", &[][..], 200),
        ("DELETE", &[][..], 412),
    ] {
        let answer = send(server.public, method, &path, headers, b"").await;
        let version = (status == 412).then_some("1.0.0");
        assert_eq!((answer.status, answer.header("tus-version")), (status, version), "{method} {headers:?}");
    }
    for target in ["/skynet/tus", &path] {
        let answer = server.ask("OPTIONS", target, &["Origin: https://app.example"]).await;
        assert_eq!(
            (answer.status, answer.header("tus-version"), answer.header("tus-max-size")),
            (204, Some("1.0.0"), Some("1048576"))
        );
        let extensions = "creation,creation-with-upload,concatenation,termination,expiration";
        assert_eq!(answer.header("tus-extension"), Some(extensions));
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    }
    assert_eq!(ask(&server, "DELETE", &path, &[], b"").await.status, 204);
    assert_eq!(ask(&server, "HEAD", &path, &[], b"").await.status, 410);
    let empty = make(&server, &["Upload-Length: 0"]).await;
    let head = ask(&server, "HEAD", &empty, &[], b"").await;
    assert_eq!((head.header("upload-offset"), head.header("skynet-skylink").is_some()), (Some("0"), true));
}
