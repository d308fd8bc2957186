//! Skynet's own vectors, then what has to be refused, then random bytes.

use std::path::PathBuf;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::base_sector::assemble;
use super::metadata::write_go_string;
use super::*;
use crate::sector::{Root, SECTOR_BYTES, sector_root};

/// A JSON file of `skynet-vectors` in the folder SKYGATE_SHARED, or None with a word on why the test is skipped.
fn vectors(file: &str) -> Option<Value> {
    let Ok(shared) = std::env::var("SKYGATE_SHARED") else {
        println!("SKIPPED: SKYGATE_SHARED is not set, no vectors to compare with");
        return None;
    };
    let path = PathBuf::from(shared).join("skynet-vectors").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(serde_json::from_str(&text).unwrap())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// The pattern bytes of the vectors' README.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (7 * i + 13 * (i >> 8) + 31 * (i >> 16) + seed) as u8).collect()
}

fn root(hex_text: &str) -> Root {
    Root(hex::decode(hex_text).unwrap().try_into().unwrap())
}

/// A skylink of offset 0, worked out here so that this test stands on its own.
fn skylink(used_bytes: u32, root: &Root) -> String {
    let (mode, step) = (0..8u32)
        .map(|mode| (mode, 4096u32 << mode.saturating_sub(1)))
        .find(|(mode, _)| used_bytes <= (32 * 1024) << mode)
        .unwrap();
    let floor = if mode == 0 { 0 } else { 8 * step };
    let size = (used_bytes.max(1) - floor).div_ceil(step) - 1;
    let ones = (1 << mode) - 1;
    let bitfield = (((size << (mode + 1)) | ones) << 2) as u16;
    let bytes = [&bitfield.to_le_bytes()[..], &root.0].concat();
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}

fn head(prefix: &[u8]) -> SkyfileHead {
    match parse(prefix).unwrap() {
        Parsed::Head(head) => head,
        Parsed::NeedSectors(need) => panic!("recursive: {need:?}"),
    }
}

fn small(metadata_json: &[u8], content: &[u8]) -> BuiltSkyfile {
    build_small(metadata_json, content).unwrap()
}

#[test]
fn small_vectors() {
    let Some(file) = vectors("basesector.json") else { return };
    assert_eq!(list(&file, "small").len(), 14);
    for case in list(&file, "small") {
        let name = text(case, "name");
        let content = match case["data_hex"].as_str() {
            Some(data) => hex::decode(data).unwrap(),
            None => pattern(number(case, "filesize") as usize, 3),
        };
        let json = text(case, "metadata_json");
        let metadata = Metadata::decode(json.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(metadata.encode()).unwrap(), json, "{name}");

        let built = small(json.as_bytes(), &content);
        assert_eq!(hex::encode(&built.base[..LAYOUT_BYTES]), text(case, "layout_hex"), "{name}");
        assert_eq!(u64::from(built.used_bytes), number(case, "used_bytes"), "{name}");
        if let Some(prefix) = case["basesector_prefix_hex"].as_str() {
            assert!(hex::encode(&built.base).starts_with(prefix), "{name}");
        }
        let sector = sector_root(&built.base);
        assert_eq!(sector, root(text(case, "merkleroot")), "{name}");
        assert_eq!(skylink(built.used_bytes, &sector), text(case, "skylink"), "{name}");

        let head = head(&built.base);
        assert_eq!(head.metadata, metadata, "{name}");
        assert_eq!(head.metadata_json, json, "{name}");
        assert_eq!(head.size_bytes, content.len() as u64, "{name}");
        assert_eq!(&built.base[head.content_offset as usize..], content, "{name}");
        assert!(!head.is_large() && head.fanout.is_empty() && head.slab(0).is_none(), "{name}");
    }
}

#[test]
fn large_vectors() {
    let Some(file) = vectors("basesector.json") else { return };
    assert_eq!(list(&file, "large").len(), 4);
    for case in list(&file, "large") {
        let json = text(case, "metadata_json");
        let size_bytes = number(case, "filesize");
        let roots: Vec<Root> = list(case, "piece_roots_in_fanout_order").iter().map(|hex| root(hex.as_str().unwrap())).collect();
        assert!(!fits_small(json.as_bytes(), size_bytes));
        let built = build_large(json.as_bytes(), size_bytes, 10, 20, &roots).unwrap();
        assert_eq!(hex::encode(&built.base[..LAYOUT_BYTES]), text(case, "layout_hex"));
        assert_eq!(u64::from(built.used_bytes), number(case, "used_bytes"));
        let fanout = &built.base[LAYOUT_BYTES..][..roots.len() * 32];
        let hash = blake2b_simd::Params::new().hash_length(32).hash(fanout);
        assert_eq!(hash.to_hex().as_str(), text(case, "fanout_hash_blake2b"));
        let sector = sector_root(&built.base);
        assert_eq!(sector, root(text(case, "merkleroot")));
        assert_eq!(skylink(built.used_bytes, &sector), text(case, "skylink"));

        let head = head(&built.base);
        assert_eq!(&head.fanout[..], &roots[..]);
        assert_eq!((head.size_bytes, head.content_offset, head.is_large()), (size_bytes, 0, true));
        let slabs: Vec<SkySlab> = (0..head.slab_count()).map(|index| head.slab(index).unwrap()).collect();
        assert_eq!(slabs.iter().map(|slab| slab.len_bytes).sum::<u64>(), size_bytes);
        assert_eq!(slabs.iter().flat_map(|slab| slab.roots).count(), roots.len());
        assert_eq!(head.slab(head.slab_count()), None);
    }
}

#[test]
fn recursive_vectors() {
    let Some(file) = vectors("basesector.json") else { return };
    assert_eq!(list(&file, "recursive").len(), 3);
    for case in list(&file, "recursive") {
        let json = text(case, "metadata_json").as_bytes();
        let fanout = pattern(number(case, "fanoutsize") as usize, 11);
        let layout = Layout::decode(&hex::decode(text(case, "layout_hex")).unwrap()).unwrap();
        let payload = [&fanout, json].concat();
        let part = &list(case, "extension_parts_uploaded_after_base_sector")[0];
        let built = assemble(&layout, payload.clone());
        assert_eq!(built.extension.concat(), payload);
        assert_eq!(number(part, "length"), payload.len() as u64);
        let hash = blake2b_simd::Params::new().hash_length(32).hash(&payload);
        assert_eq!(hash.to_hex().as_str(), text(part, "blake2b"));
        assert_eq!(built.extension.len() as u64, number(case, "used_hashes"));
        assert_eq!(u64::from(built.used_bytes), number(case, "returned_fetchsize_arg"));
        let mut first = built.base.clone();
        first.resize(512, 0);
        assert_eq!(hex::encode(first), text(case, "basesector_first_512_hex"));
        let sector = sector_root(&built.base);
        assert_eq!(sector, root(text(case, "merkleroot")));
        assert_eq!(skylink(built.used_bytes, &sector), text(case, "skylink"));

        // The fanout of the second vector is not a whole number of slabs: it shows the cutting, but is no skyfile.
        if !fanout.len().is_multiple_of(30 * 32) {
            assert!(matches!(parse(&built.base), Err(SkyfileError::Malformed(_))));
            continue;
        }
        let roots: Vec<Root> = fanout.as_chunks().0.iter().map(|bytes| Root(*bytes)).collect();
        assert_eq!(build_large(json, layout.size_bytes, 10, 20, &roots).unwrap(), built);

        // The skylink's 4 KiB are enough for the first step.
        let mut prefix = built.base.clone();
        prefix.resize(4096, 0);
        let Parsed::NeedSectors(need) = parse(&prefix).unwrap() else { panic!("not recursive") };
        let expect: Vec<Root> = built.extension.iter().map(|sector| sector_root(sector)).collect();
        assert_eq!(need.roots(), expect);
        for (index, sector) in built.extension.iter().enumerate() {
            assert_eq!(need.bytes_of(index), sector.len());
        }
        // A host gives sectors without trailing zeros, or padded to 4 MiB: both will do.
        let mut sectors: Vec<Bytes> = built.extension.into_iter().map(Bytes::from).collect();
        let head = need.clone().complete(&sectors).unwrap();
        let mut padded = sectors.pop().unwrap().to_vec();
        padded.resize(SECTOR_BYTES, 0);
        sectors.push(padded.into());
        assert_eq!(need.complete(&sectors).unwrap(), head);
        assert_eq!(&head.fanout[..], &roots[..]);
        assert_eq!(&head.extension[..], &expect[..]);
        assert_eq!(head.metadata.filename, "huge.bin");
    }
}

#[test]
fn golden_uploads_of_the_real_network() {
    let Some(file) = vectors("golden_uploads.json") else { return };
    for case in list(&file, "vectors") {
        let (name, content) = (text(case, "filename"), text(case, "content"));
        let upload = UploadFile { path: name.into(), len_bytes: content.len() as u64, mode: 0, content_type: None };
        let json = upload_metadata(name, &[upload]).unwrap().encode();
        assert_eq!(String::from_utf8(json.clone()).unwrap(), text(case, "metadata_json"));
        let built = small(&json, content.as_bytes());
        assert_eq!(skylink(built.used_bytes, &sector_root(&built.base)), text(case, "skylink"));
    }
}

#[test]
fn upload_metadata_as_clients_expect() {
    let Some(file) = vectors("upload_metadata_from_tests.json") else { return };
    let expect = &file["uploadFile_HelloWorld_testing_textplain"];
    let upload = UploadFile { path: "HelloWorld".into(), len_bytes: 7, mode: 0, content_type: Some("text/plain".into()) };
    let json = upload_metadata("HelloWorld", &[upload]).unwrap().encode();
    assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), *expect);
}

#[test]
fn upload_of_a_directory() {
    let files = [("a b.txt", 3, Some("text/plain")), ("css/x.css", 0, Some("text/css")), ("index.html", 5, None)];
    let files = files.map(|(path, len_bytes, kind)| UploadFile {
        path: path.into(),
        len_bytes,
        mode: 0,
        content_type: kind.map(str::to_owned),
    });
    let json = upload_metadata("site", &files).unwrap().encode();
    assert_eq!(
        String::from_utf8(json).unwrap(),
        r#"{"filename":"site","length":8,"subfiles":{"a b.txt":{"filename":"a b.txt","contenttype":"text/plain","len":3},"css/x.css":{"filename":"css/x.css","contenttype":"text/css","offset":3},"index.html":{"filename":"index.html","offset":3,"len":5}},"tryfiles":["index.html"]}"#
    );
    let empty = upload_metadata("empty", &[]).unwrap().encode();
    assert_eq!(empty, br#"{"filename":"empty","length":0,"tryfiles":["index.html"]}"#);

    let bad = |name: &str, paths: &[&str]| {
        let file = |path: &&str| UploadFile { path: (*path).into(), len_bytes: u64::MAX, mode: 0, content_type: None };
        upload_metadata(name, &paths.iter().map(file).collect::<Vec<_>>()).unwrap_err()
    };
    assert!(matches!(bad("", &[]), UploadMetadataError::Invalid(MetadataError::Filename { .. })));
    assert!(matches!(bad("a", &["x/../y"]), UploadMetadataError::Invalid(MetadataError::SubfileName { .. })));
    assert!(matches!(bad("a", &["x", "x"]), UploadMetadataError::Twice(_) | UploadMetadataError::Skyfile(_)));
    assert!(matches!(bad("a", &["x", "y"]), UploadMetadataError::Skyfile(SkyfileError::TooLarge { .. })));
}

/// The skyfiles of `basesector.json`, from what their uploads said.
#[test]
fn uploads_by_each_way() {
    let Some(vectors) = vectors("basesector.json") else { return };
    let file = |path: &str, len_bytes, mode, kind: &str| UploadFile {
        path: path.into(),
        len_bytes,
        mode,
        content_type: (!kind.is_empty()).then(|| kind.to_owned()),
    };
    let hello = [file("HelloWorld", 7, 0, "text/plain")];
    let pair = [file("a.html", 4, 0, "text/html"), file("b.html", 4, 0, "text/html")];
    let site = [
        file("index.html", 4, 0o644, "text/html"),
        file("a/b<&>.txt", 4, 0, "text/plain; charset=utf-8"),
        file("404.html", 4, 0, "text/html"),
    ];
    let named = |filename: &str| UploadSaid { filename: filename.into(), ..UploadSaid::default() };
    let pages = [403, 404].map(|code| (code, "/404.html".to_owned()));
    let tries = ["good.html", "/index.html"].map(str::to_owned).to_vec();
    let rows: [(&str, UploadSaid, &[UploadFile]); 8] = [
        (
            "raw body upload (no multipart)",
            UploadSaid { shape: UploadShape::Raw, mode: 0o644, ..named("hello.txt") },
            &[file("", 7, 0, "")],
        ),
        ("skynet-js uploadFile shape", named(""), &hello),
        ("tus small upload shape (no tryfiles)", UploadSaid { shape: UploadShape::Resumable, ..named("") }, &hello),
        ("empty file", named(""), &[file("empty", 0, 0, "application/octet-stream")]),
        ("directory 2 files", named("dirname"), &[file("file1.jpeg", 4, 0, "image/jpeg"), file("file 2.jpeg", 4, 0, "image/jpeg")]),
        (
            "site with errorpages, nested, html-escaping chars",
            UploadSaid { try_files: Some(tries), error_pages: pages.into(), ..named("site") },
            &site,
        ),
        ("defaultpath", UploadSaid { default_path: DefaultPath::File("/b.html".into()), ..named("d") }, &pair),
        ("disabledefaultpath", UploadSaid { default_path: DefaultPath::Disabled, ..named("d") }, &pair),
    ];
    for (name, said, files) in rows {
        let case = list(&vectors, "small").iter().find(|case| text(case, "name") == name).expect(name);
        said.check().expect(name);
        let json = said.metadata(files).expect(name).encode();
        assert_eq!(String::from_utf8(json).unwrap(), text(case, "metadata_json"), "{name}");
    }
    let no_tries = UploadSaid { try_files: Some(Vec::new()), ..named("HelloWorld") };
    assert_eq!(no_tries.metadata(&hello).unwrap().try_files, Vec::<String>::new());
}

/// What is wrong whatever files come is told before any has.
#[test]
fn uploads_that_contradict_themselves() {
    let said = |try_files: &[&str], pages: &[(i64, &str)], default_path| UploadSaid {
        filename: "d".into(),
        try_files: (!try_files.is_empty()).then(|| try_files.iter().map(|name| (*name).to_owned()).collect()),
        error_pages: pages.iter().map(|(code, path)| (*code, (*path).to_owned())).collect(),
        default_path,
        ..UploadSaid::default()
    };
    let index = || DefaultPath::File("/index.html".into());
    for (said, expect) in [
        (said(&["a"], &[], index()), Some(MetadataError::TryFilesAndDefaultPath)),
        (said(&["a"], &[], DefaultPath::Disabled), Some(MetadataError::TryFilesAndDefaultPath)),
        (said(&[""], &[], DefaultPath::Unsaid), Some(MetadataError::TryFileEmpty)),
        (said(&[], &[(200, "/a")], DefaultPath::Unsaid), Some(MetadataError::ErrorPageCode)),
        (said(&[], &[(404, "a")], DefaultPath::Unsaid), Some(MetadataError::ErrorPageRelative)),
        (said(&["a", "/b"], &[(404, "/b")], DefaultPath::Unsaid), None),
        (said(&[], &[], index()), None),
    ] {
        assert_eq!(said.check().err(), expect, "{said:?}");
    }
    let raw = UploadSaid { shape: UploadShape::Raw, ..UploadSaid::default() };
    assert!(matches!(raw.check(), Err(MetadataError::Filename { .. })));
    let dots = UploadSaid { filename: "../x".into(), ..UploadSaid::default() };
    assert!(matches!(dots.check(), Err(MetadataError::Filename { .. })));
}

#[test]
fn content_types_of_uploads() {
    for (path, expect) in [
        ("index.html", Some("text/html")),
        ("a/b/APP.JS", Some("text/javascript")),
        ("style.css", Some("text/css")),
        ("data.json", Some("application/json")),
        ("logo.svg", Some("image/svg+xml")),
        ("film.mp4", Some("video/mp4")),
        ("x.wasm", Some("application/wasm")),
        ("README", None),
        (".htaccess", None),
        ("file.unknown-thing", None),
    ] {
        assert_eq!(upload_content_type(path), expect, "{path}");
    }
}

#[test]
fn skykey_vectors_are_recognised_and_refused() {
    let Some(file) = vectors("skykey.json") else { return };
    for case in list(&file, "vectors") {
        let prefix = hex::decode(text(case, "encrypted_basesector_prefix_hex")).unwrap();
        assert_eq!(parse(&prefix).unwrap_err(), SkyfileError::Encrypted(Cipher::XChaCha20));
        for (layout, bytes) in [("encrypted_layout", Some(&prefix)), ("decrypted_layout", None)] {
            let expect = &case[layout];
            let built = Layout {
                size_bytes: number(expect, "filesize"),
                metadata_bytes: number(expect, "metadatasize"),
                fanout_bytes: number(expect, "fanoutsize"),
                data_pieces: number(expect, "fanoutdatapieces") as u8,
                parity_pieces: number(expect, "fanoutparitypieces") as u8,
                cipher: Cipher::XChaCha20,
                key_data: hex::decode(text(expect, "keydata_hex")).unwrap().try_into().unwrap(),
            };
            assert_eq!(Layout::decode(&built.encode()).unwrap(), built);
            if let Some(bytes) = bytes {
                assert_eq!(built.encode(), bytes[..LAYOUT_BYTES]);
            }
        }
    }
}

#[test]
fn go_strings() {
    fn check(input: &[u8], expect: &str) {
        let mut out = Vec::new();
        write_go_string(&mut out, input);
        assert_eq!(String::from_utf8(out).unwrap(), format!("\"{expect}\""));
    }
    check(b"plain", "plain");
    check(b"<a href=\"x\">&\\/'", r#"\u003ca href=\"x\"\u003e\u0026\\/'"#);
    check(b"\0\x01\x08\t\n\x0b\x0c\r\x1f\x7f", "\\u0000\\u0001\\u0008\\t\\n\\u000b\\u000c\\r\\u001f\x7f");
    check("\u{2028}\u{2029}\u{2027}".as_bytes(), "\\u2028\\u2029\u{2027}");
    check("grüße 日本 \u{1f600} \u{fffd}".as_bytes(), "grüße 日本 \u{1f600} \u{fffd}");
    check(b"a\xffb\xe6\x97c\xf0\x9f\x98", "a\\ufffdb\\ufffd\\ufffdc\\ufffd\\ufffd\\ufffd");
    check(b"\xed\xa0\x80", "\\ufffd\\ufffd\\ufffd");
}

#[test]
fn metadata_is_read_as_go_reads_it() {
    fn check(json: &[u8], expect: Metadata) {
        assert_eq!(Metadata::decode(json).unwrap(), expect, "{}", String::from_utf8_lossy(json));
    }
    let named = |filename: &str| Metadata { filename: filename.into(), ..Metadata::default() };
    check(b"{}", Metadata::default());
    check(b"null", Metadata::default());
    check(br#" {"filename":"a","monetization":{"license":"x","monetizers":[{"a":[1,2,{}]}]},"x":null} "#, named("a"));
    check(br#"{"Filename":"a","FILENAME":"b"}"#, named("b"));
    check(br#"{"filename":"a","filename":null,"length":null,"subfiles":null,"tryfiles":null}"#, named("a"));
    check(br#"{"filename":"\u003c\ud83d\ude00\u003e"}"#, named("<\u{1f600}>"));
    check(b"{\"filename\":\"x\xff\xfe\"}", named("x\u{fffd}\u{fffd}"));
    check(br#"{"mode":420}"#, Metadata { mode: 0o644, ..Metadata::default() });
    check(
        br#"{"errorpages":{"404":"/x","500":null},"tryfiles":["a",null]}"#,
        Metadata {
            error_pages: [(404, "/x".into()), (500, String::new())].into(),
            try_files: vec!["a".into(), String::new()],
            ..Metadata::default()
        },
    );
    let lone = Metadata::decode(br#"{"filename":"a\ud800b"}"#).unwrap().filename;
    assert!(lone.starts_with('a') && lone.ends_with('b') && lone.contains('\u{fffd}'));

    for bad in [
        "",
        "[]",
        "\"x\"",
        "{",
        "{}x",
        r#"{"filename":1}"#,
        r#"{"length":-1}"#,
        r#"{"length":1.5}"#,
        r#"{"length":"1"}"#,
        r#"{"length":18446744073709551616}"#,
        r#"{"mode":4294967296}"#,
        r#"{"subfiles":[]}"#,
        r#"{"tryfiles":"x"}"#,
        r#"{"errorpages":{"x":"/y"}}"#,
        r#"{"disabledefaultpath":1}"#,
        r#"{"filename":["x"]}"#,
    ] {
        assert!(matches!(Metadata::decode(bad.as_bytes()), Err(SkyfileError::Metadata(_))), "{bad}");
    }
}

#[test]
fn metadata_limits() {
    let many = |count: usize| {
        let files: Vec<String> = (0..count).map(|index| format!("\"{index}\":{{}}")).collect();
        Metadata::decode(format!("{{\"subfiles\":{{{}}}}}", files.join(",")).as_bytes())
    };
    assert_eq!(many(SUBFILES_MAX).unwrap().subfiles.len(), SUBFILES_MAX);
    assert!(matches!(many(SUBFILES_MAX + 1), Err(SkyfileError::Metadata(_))));
    let tries = format!("{{\"tryfiles\":[{}\"\"]}}", "\"\",".repeat(LIST_ITEMS_MAX));
    assert!(matches!(Metadata::decode(tries.as_bytes()), Err(SkyfileError::Metadata(_))));
    let deep = format!("{{\"x\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(Metadata::decode(deep.as_bytes()).unwrap(), Metadata::default());
    let huge = vec![b' '; METADATA_BYTES_MAX as usize + 1];
    assert!(matches!(Metadata::decode(&huge), Err(SkyfileError::TooLarge { .. })));
}

/// A plain layout with the numbers given.
fn layout(size_bytes: u64, metadata_bytes: u64, fanout_bytes: u64, pieces: (u8, u8)) -> Layout {
    Layout {
        size_bytes,
        metadata_bytes,
        fanout_bytes,
        data_pieces: pieces.0,
        parity_pieces: pieces.1,
        cipher: Cipher::Plain,
        key_data: [0; 64],
    }
}

#[test]
fn layouts_that_contradict_themselves() {
    #[track_caller]
    fn check(layout: Layout, expect: fn(&SkyfileError) -> bool) {
        let mut sector = layout.encode().to_vec();
        sector.resize(SECTOR_BYTES, 0);
        let error = parse(&sector).unwrap_err();
        assert!(expect(&error), "{error:?}");
    }
    let malformed: fn(&SkyfileError) -> bool = |error| matches!(error, SkyfileError::Malformed(_));
    let too_large: fn(&SkyfileError) -> bool = |error| matches!(error, SkyfileError::TooLarge { .. });
    let no_json: fn(&SkyfileError) -> bool = |error| matches!(error, SkyfileError::Metadata(_));
    check(layout(0, 0, 0, (0, 0)), no_json);
    check(layout(0, 2, 0, (0, 0)), no_json);
    check(layout(u64::MAX, 2, 0, (0, 0)), malformed);
    check(layout(SECTOR_BYTES as u64 - 100, 2, 0, (0, 0)), malformed);
    check(layout(0, 5 << 20, 0, (0, 0)), malformed);
    check(layout(0, u64::MAX, 0, (0, 0)), too_large);
    check(layout(0, METADATA_BYTES_MAX + 1, 0, (6, 3)), too_large);
    check(layout(10, 2, 32, (0, 0)), malformed);
    check(layout(10, 2, 32, (0, 9)), malformed);
    check(layout(10, 2, 0, (6, 3)), malformed);
    check(layout(10, 2, 287, (6, 3)), malformed);
    check(layout(slab_bytes(6), 2, 576, (6, 3)), malformed);
    check(layout(slab_bytes(6) + 1, 2, 288, (6, 3)), malformed);
    check(layout(10, 2, 192, (6, 0)), malformed);
    check(layout(10, 2, 510 * 32, (255, 255)), malformed);
    check(layout(u64::MAX, 2, u64::MAX, (6, 3)), malformed);
    check(layout(u64::MAX, 2, (1 << 42) * 32, (1, 255)), too_large);
    check(layout(u64::MAX, 2, slab_count(u64::MAX, 6) * 288, (6, 3)), too_large);
    check(layout(slab_bytes(1) * FANOUT_ROOTS_MAX, 2, FANOUT_ROOTS_MAX * 32, (1, 1)), too_large);

    for (cipher, error) in [
        (Cipher::Threefish, SkyfileError::Encrypted(Cipher::Threefish)),
        (Cipher::XChaCha20, SkyfileError::Encrypted(Cipher::XChaCha20)),
        (Cipher::Unknown([9; 8]), SkyfileError::Malformed("its cipher type is not known")),
    ] {
        let prefix = Layout { cipher, ..layout(0, 2, 0, (0, 0)) }.encode();
        assert_eq!(parse(&prefix).unwrap_err(), error);
    }
    for version in [0, 2, 255] {
        let mut prefix = layout(0, 2, 0, (0, 0)).encode();
        prefix[0] = version;
        assert_eq!(parse(&prefix).unwrap_err(), SkyfileError::UnknownVersion(version));
    }
}

#[test]
fn a_prefix_that_is_too_short_says_what_is_needed() {
    let json = br#"{"filename":"a","length":9}"#;
    let built = small(json, b"content 9");
    let head_bytes = LAYOUT_BYTES + json.len();
    for have_bytes in 0..head_bytes {
        let need_bytes = if have_bytes < LAYOUT_BYTES { LAYOUT_BYTES } else { head_bytes };
        let expect = SkyfileError::Truncated { have_bytes, need_bytes };
        assert_eq!(parse(&built.base[..have_bytes]).unwrap_err(), expect);
    }
    // The content need not be at hand.
    assert_eq!(head(&built.base[..head_bytes]), head(&built.base));

    let recursive = layout(slab_bytes(6) * 20_000, 30, 20_000 * 288, (6, 3)).encode();
    let need_bytes = LAYOUT_BYTES + 2 * 32;
    assert_eq!(parse(&recursive).unwrap_err(), SkyfileError::Truncated { have_bytes: 99, need_bytes });
}

#[test]
fn one_data_piece_names_one_root_a_slab() {
    let json = br#"{"filename":"a","length":9000000}"#;
    let roots: Vec<Root> = (0..3u8).flat_map(|slab| [Root([slab; 32]); 4]).collect();
    let built = build_large(json, 9_000_000, 1, 3, &roots).unwrap();
    assert_eq!(built.base.len(), LAYOUT_BYTES + 3 * 32 + json.len());
    let head = head(&built.base);
    assert_eq!(&head.fanout[..], &roots[..]);
    let last = head.slab(2).unwrap();
    assert_eq!((last.roots, last.offset_bytes, last.len_bytes), (&roots[8..], 8 << 20, 9_000_000 - (8 << 20)));
}

#[test]
fn much_metadata_makes_a_file_large_even_without_content() {
    let files: Vec<UploadFile> =
        (0..60_000).map(|index| UploadFile { path: format!("d/{index:030}"), len_bytes: 0, mode: 0, content_type: None }).collect();
    let metadata = upload_metadata("d", &files).unwrap();
    let json = metadata.encode();
    assert!(json.len() > SECTOR_BYTES && !fits_small(&json, 0));
    assert!(matches!(build_small(&json, b""), Err(SkyfileError::TooLarge { .. })));
    let built = build_large(&json, 0, 6, 3, &[]).unwrap();
    let Parsed::NeedSectors(need) = parse(&built.base).unwrap() else { panic!("not recursive") };
    let sectors: Vec<Bytes> = built.extension.into_iter().map(Bytes::from).collect();
    let head = need.complete(&sectors).unwrap();
    assert_eq!((head.size_bytes, head.slab_count()), (0, 0));
    assert_eq!(head.metadata, metadata);
}

#[test]
fn the_largest_small_file_and_one_byte_more() {
    let json = br#"{"filename":"a","length":1}"#;
    let most = SECTOR_BYTES - LAYOUT_BYTES - json.len();
    assert!(fits_small(json, most as u64) && !fits_small(json, most as u64 + 1));
    assert_eq!(small(json, &vec![1; most]).used_bytes as usize, SECTOR_BYTES);
    assert!(build_small(json, &vec![1; most + 1]).is_err());
}

#[test]
fn errorpages_sort_as_text() {
    // Map keys sort as text: 1000 stands before 400.
    let pages = [(400, "/a".to_owned()), (1000, "/b".to_owned())].into();
    let metadata = Metadata { error_pages: pages, ..Metadata::default() };
    let json = String::from_utf8(metadata.encode()).unwrap();
    assert_eq!(json, r#"{"filename":"","length":0,"errorpages":{"1000":"/b","400":"/a"}}"#);
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    let name = "[ -~\u{a0}-\u{2100}<>&\"\\\\\n]{0,12}";
    let subfile = (any::<u32>(), name, any::<u64>(), any::<u64>()).prop_map(|(mode, content_type, offset_bytes, len_bytes)| {
        Subfile { mode, filename: String::new(), content_type, offset_bytes, len_bytes }
    });
    (
        (name, any::<u64>(), any::<u32>(), proptest::collection::btree_map(name, subfile, 0..6)),
        (name, any::<bool>(), proptest::collection::vec(name, 0..3)),
        proptest::collection::btree_map(any::<i64>(), name, 0..3),
    )
        .prop_map(|((filename, length_bytes, mode, subfiles), (default_path, disabled, try_files), error_pages)| {
            let mut subfiles = subfiles;
            subfiles.iter_mut().for_each(|(path, file)| file.filename.clone_from(path));
            let disable_default_path = disabled;
            Metadata { filename, length_bytes, mode, subfiles, default_path, disable_default_path, try_files, error_pages }
        })
}

proptest! {
    #[test]
    fn metadata_survives_the_way_there_and_back(metadata in any_metadata()) {
        let json = metadata.encode();
        prop_assert_eq!(&Metadata::decode(&json).unwrap(), &metadata);
        prop_assert!(serde_json::from_slice::<Value>(&json).is_ok());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
        let _ = Metadata::decode(&bytes).map(|metadata| validate(&metadata));
    }

    #[test]
    fn random_layouts_never_panic(
        numbers in proptest::array::uniform3(prop_oneof![0u64..600, 0u64..(10 << 20), any::<u64>()]),
        pieces in (prop_oneof![Just(0u8), Just(1), Just(6), any::<u8>()], prop_oneof![Just(0u8), Just(3), any::<u8>()]),
        tail in proptest::collection::vec(any::<u8>(), 0..700),
    ) {
        let bytes = [&layout(numbers[0], numbers[1], numbers[2], pieces).encode()[..], &tail].concat();
        if let Ok(Parsed::NeedSectors(need)) = parse(&bytes) {
            prop_assert!(need.roots().len() <= 32);
        }
    }

    #[test]
    fn random_json_like_bytes_never_panic(json in "[{}\\[\\]\",:0-9a-z\\\\]{0,60}", cut in 0usize..200) {
        let whole = format!(r#"{{"filename":"a","subfiles":{{"x":{{"len":3}}}},"errorpages":{{"404":"/x"}},"q":{json}}}"#);
        let _ = Metadata::decode(json.as_bytes());
        let _ = Metadata::decode(whole.as_bytes());
        let _ = Metadata::decode(&whole.as_bytes()[..cut.min(whole.len())]);
    }
}

#[test]
fn fuzz_corpus() {
    let json = br#"{"filename":"a","length":3,"subfiles":{"x/y":{"filename":"x/y","len":3}},"tryfiles":["index.html"],"errorpages":{"404":"/x"}}"#;
    let small = build_small(json, b"abc").expect("small").base;
    let roots: Vec<_> = (0..9).map(|index| crate::sector::Root([index; 32])).collect();
    let large = build_large(json, 5_000_000, 6, 3, &roots).expect("large").base;
    let recursive = layout(1 << 41, 300, (1 << 41) / (6 << 22) * 9 * 32, (6, 3)).encode().to_vec();
    crate::address::test_shared::fuzz_around(super::fuzz, &[small, large, recursive, json.to_vec()], 600);
}
