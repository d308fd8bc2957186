//! The example of the format's own page, then precedence, bad lines, limits, random bytes.

use proptest::prelude::*;

use super::*;

/// The rules of the compact denylist format's example and of its reference validator (both CC0 / public test data):
/// the addresses are theirs, so that what they expect can be compared.
const LIST: &str = r#"version: 1
name: "Example blocking list"
author: somebody@example.com
hints:
  gateway_status: "451" # by law
  reason: order-17
---
# a comment
/ipfs/bafybeihvvulpp4evxj7x7armbqcyg6uezzuig6jp3lktpbovlqfkuqeuoq gateway_status:410
/ipfs/QmdWFA9FL52hx3j9EJZPQP1ZUH8Ygi5tLCX2cRDs6knSf8/*

/ipfs/Qmah2YDTfrox4watLCr3YgKyBwvjq8FJZEFdWY6WtJ3Xt2/test*
/ipfs/QmTuvSQbEDR3sarFAN9kAeXBpiBCyYYNxdxciazBba11eC/test/*
/ipfs/QmUboz9UsQBDeS6Tug1U8jgoFkgYxyYood9NDyVURAY9pK/blocked*
!/ipfs/QmUboz9UsQBDeS6Tug1U8jgoFkgYxyYood9NDyVURAY9pK/blockednot
!/ipfs/QmUboz9UsQBDeS6Tug1U8jgoFkgYxyYood9NDyVURAY9pK/blocked/not
!/ipfs/QmUboz9UsQBDeS6Tug1U8jgoFkgYxyYood9NDyVURAY9pK/blocked/exceptions*
/ipns/domain.example
/ipns/domain2.example/path
/ipns/k51qzi5uqu5dhmzyv3zac033i7rl9hkgczxyl81lwoukda2htteop7d3x0y1mf
//d9d295bde21f422d471a90f2a37ec53049fdf3e5fa3ee2e8f20e10003da429e7
//3f8b9febd851873b3774b937cce126910699ceac56e72e64b866f8e258d09572
//c555c4de78827ba42527dd3dc5398db38d6c0a8c345a88e0158b2d100f317e50
//QmX9dhRcQcKUw3Ws8485T5a9dtjrSCQaUAHnG4iK9i4ceM
//QmbK7LDv5NNBvYQzNfm2eED17SNLt1yNMapcUhSuNLgkqz
"#;

fn list(text: &str) -> DenyList {
    let mut list = DenyList::new();
    let added = list.add_list("test", text).unwrap();
    assert_eq!(added.faults, []);
    list
}

fn reason(list: &DenyList, path: &str) -> Option<Reason> {
    let (namespace, rest) = path[1..].split_once('/').unwrap();
    let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
    match namespace {
        "ipfs" => list.check(&Subject::Ipfs { root: &parse_cid(name).unwrap(), path }),
        _ => list.check(&Subject::Ipns { name, path }),
    }
}

#[test]
fn the_formats_example() {
    let list = list(LIST);
    let check = |path: &str, expect: bool| assert_eq!(reason(&list, path).is_some(), expect, "{path}");
    let denied = |path: &str| check(path, true);
    let free = |path: &str| check(path, false);

    // A CID in any version and codec, but not what lies below.
    denied("/ipfs/bafybeihvvulpp4evxj7x7armbqcyg6uezzuig6jp3lktpbovlqfkuqeuoq");
    denied("/ipfs/bafkreihvvulpp4evxj7x7armbqcyg6uezzuig6jp3lktpbovlqfkuqeuoq");
    denied("/ipfs/QmesfgDQ3q6prBy2Kg2gKbW4MAGuWiRP2DVuGA5MZSERLo");
    denied("/ipfs/QmesfgDQ3q6prBy2Kg2gKbW4MAGuWiRP2DVuGA5MZSERLo/");
    free("/ipfs/QmesfgDQ3q6prBy2Kg2gKbW4MAGuWiRP2DVuGA5MZSERLo/sub");
    free("/ipfs/QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn");
    free("/ipfs/bafkqaaa");
    // Everything below, and the root.
    denied("/ipfs/QmdWFA9FL52hx3j9EJZPQP1ZUH8Ygi5tLCX2cRDs6knSf8");
    denied("/ipfs/QmdWFA9FL52hx3j9EJZPQP1ZUH8Ygi5tLCX2cRDs6knSf8/a/b");
    denied("/ipfs/QmdWFA9FL52hx3j9EJZPQP1ZUH8Ygi5tLCX2cRDs6knSf8/z/");
    // Prefixes; the format says that `test*` and `test/*` mean the same.
    for root in ["Qmah2YDTfrox4watLCr3YgKyBwvjq8FJZEFdWY6WtJ3Xt2", "QmTuvSQbEDR3sarFAN9kAeXBpiBCyYYNxdxciazBba11eC"] {
        for path in ["test", "test2", "test/one"] {
            denied(&format!("/ipfs/{root}/{path}"));
        }
        for path in ["tes", "", "one/test"] {
            free(&format!("/ipfs/{root}/{path}"));
        }
    }
    for (path, expect) in [
        ("blocked", true),
        ("blocked2", true),
        ("blocked/other", true),
        ("blockednot", false),
        ("blocked/not", false),
        ("blocked/exceptions", false),
        ("blocked/exceptions2", false),
        ("blocked/exceptions/one", false),
    ] {
        check(&format!("/ipfs/QmUboz9UsQBDeS6Tug1U8jgoFkgYxyYood9NDyVURAY9pK/{path}"), expect);
    }
    // Names.
    denied("/ipns/domain.example");
    denied("/ipns/DOMAIN.Example.");
    free("/ipns/domain.example/path");
    free("/ipns/domainaefa.example");
    denied("/ipns/domain2.example/path");
    denied("/ipns/domain2.example/path/");
    free("/ipns/domain2.example");
    free("/ipns/domain2.example/path2");
    denied("/ipns/k51qzi5uqu5dhmzyv3zac033i7rl9hkgczxyl81lwoukda2htteop7d3x0y1mf");
    denied("/ipns/bafzaajaiaejcaotjfs57kieazxny5japcmy5p2pgv2cic77tu6ogghttvurnrufx");
    denied("/ipns/12D3KooWDkNqEJNmreF3NYYFK1ws7Ra2fuW6cHBTu567SPV3LdYA");
    free("/ipns/12D3KooWDkNqEJNmreF3NYYFK1ws7Ra2fuW6cHBTu567SPV3LdYA/path");
    // Double hashes of the old form: of one CID, one path, one domain.
    denied("/ipfs/bafybeiefwqslmf6zyyrxodaxx4vwqircuxpza5ri45ws3y5a62ypxti42e");
    denied("/ipfs/bafybeiefwqslmf6zyyrxodaxx4vwqircuxpza5ri45ws3y5a62ypxti42e/path");
    free("/ipfs/bafybeiefwqslmf6zyyrxodaxx4vwqircuxpza5ri45ws3y5a62ypxti42e/path2");
    denied("/ipns/bad-domain-name.tld");
    // Double hashes of the modern form: by multihash, whatever the codec.
    denied("/ipfs/bafybeidjwik6im54nrpfg7osdvmx7zojl5oaxqel5cmsz46iuelwf5acja");
    denied("/ipfs/QmVTF1yEejXd9iMgoRTFDxBv7HAz9kuZcQNBzHrceuK9HR");
    denied("/ipfs/bafyb4ieqht3b2rssdmc7sjv2cy2gfdilxkfh7623nvndziyqnawkmo266a/path");
    denied("/ipfs/f01701e20903cf61d46521b05f926ba1634628d0bba8a7ffb5b6d5a3ca310682ca63b5ef0/path");
    free("/ipfs/bafyb4ieqht3b2rssdmc7sjv2cy2gfdilxkfh7623nvndziyqnawkmo266a");
    free("/ipfs/bafyb4ieqht3b2rssdmc7sjv2cy2gfdilxkfh7623nvndziyqnawkmo266a/path2");
}

#[test]
fn reasons_name_list_line_status_and_text() {
    let list = list(LIST);
    let expect = |line, status| Some(Reason { list: "test".into(), line, status, text: Some("order-17".into()) });
    let by_cid = reason(&list, "/ipfs/bafybeihvvulpp4evxj7x7armbqcyg6uezzuig6jp3lktpbovlqfkuqeuoq");
    assert_eq!(by_cid, expect(9, DenyStatus::Gone));
    assert_eq!(reason(&list, "/ipns/domain.example"), expect(18, DenyStatus::LegalReasons));

    let plain = self::list("/ipns/a.example reason:spam x:y\n/ipns/b.example gateway_status:404\n");
    let text = |path: &str| reason(&plain, path).map(|reason| (reason.line, reason.status, reason.text));
    assert_eq!(text("/ipns/a.example"), Some((1, DenyStatus::Gone, Some("spam".into()))));
    assert_eq!(text("/ipns/b.example"), Some((2, DenyStatus::Gone, None)));
}

#[test]
fn the_last_rule_wins() {
    const CID: &str = "/ipfs/bafkqaaa";
    let check = |text: &str, path: &str, expect: bool| {
        assert_eq!(reason(&list(text), path).is_some(), expect, "{text:?} {path}");
    };
    check(&format!("{CID}\n!{CID}\n"), CID, false);
    check(&format!("!{CID}\n{CID}\n"), CID, true);
    check(&format!("{CID}\n!{CID}\n{CID}"), CID, true);
    check(&format!("{CID}/*\n!{CID}/a"), &format!("{CID}/a"), false);
    check(&format!("!{CID}/a\n{CID}/*"), &format!("{CID}/a"), true);
    check(&format!("{CID}/a*\n!{CID}/ab*\n{CID}/abc*"), &format!("{CID}/abcd"), true);
    check(&format!("{CID}/a*\n!{CID}/ab*\n{CID}/abc*"), &format!("{CID}/abd"), false);
    check(&format!("{CID}/a*\n!{CID}/ab*\n{CID}/a*"), &format!("{CID}/abd"), true);
    // A later list overrides an earlier one.
    let mut two = list("/ipns/a.example\n/ipns/b.example");
    two.add_list("second", "!/ipns/a.example").unwrap();
    assert_eq!(reason(&two, "/ipns/a.example"), None);
    assert_eq!(&*reason(&two, "/ipns/b.example").unwrap().list, "test");
    assert_eq!(two.rule_count(), 2);
}

#[test]
fn paths_are_percent_decoded() {
    let list = list("/ipfs/bafkqaaa/gr%C3%BC%C3%9Fe%20a\n/ipfs/bafkqaaa/star%2A\n/ipfs/bafkqaaa/pre%20fix*\r\n");
    for (path, expect) in
        [("grüße a", true), ("/grüße a/", true), ("star*", true), ("star2", false), ("pre fix and more", true), ("pre", false)]
    {
        let root = parse_cid("bafkqaaa").unwrap();
        assert_eq!(list.check(&Subject::Ipfs { root: &root, path }).is_some(), expect, "{path}");
    }
}

#[test]
fn double_hashes_by_other_functions() {
    let root = parse_cid("bafybeidjwik6im54nrpfg7osdvmx7zojl5oaxqel5cmsz46iuelwf5acja").unwrap();
    let text = "QmVTF1yEejXd9iMgoRTFDxBv7HAz9kuZcQNBzHrceuK9HR/a";
    for function in [SHA2_512, BLAKE2B_256] {
        let hash = Multihash::wrap(function, &digest(function, text.as_bytes()).unwrap()).unwrap();
        let list = list(&format!("//{}", modern_text(&hash)));
        assert!(list.check(&Subject::Ipfs { root: &root, path: "a" }).is_some());
        assert!(list.check(&Subject::Ipfs { root: &root, path: "" }).is_none());
    }
}

#[test]
fn skynet_blocklists() {
    let root = [7; 32];
    let hash = blake2b(&[&root]);
    let mut list = DenyList::new();
    assert!(list.is_empty() && list.check(&Subject::Sector { root: &root }).is_none());
    list.add_skynet_blocklist("portal", &[[1; 32], hash]).unwrap();
    let reason = list.check(&Subject::Sector { root: &root }).unwrap();
    assert_eq!((&*reason.list, reason.line, reason.status), ("portal", 2, DenyStatus::LegalReasons));
    assert_eq!(list.check(&Subject::Sector { root: &hash }), None);
}

#[test]
fn bad_lines_are_reported_and_skipped() {
    let mut list = DenyList::new();
    let text = "/ipfs/nonsense\n/ipns/\n/ipld/bafkqaaa\nhello\n/ipfs\n//xyz\n/ipfs/bafkqaaa/%ff\n/ipns/ok.example\n//gW813G35CnLsy7gRYYHuf63hrz71U1xoLFDVeV7actx6oX\n!\n/ipfs/bafkqaaa*";
    let added = list.add_list("test", text).unwrap();
    let lines: Vec<u32> = added.faults.iter().map(|fault| fault.line).collect();
    assert_eq!((added.rule_count, added.fault_count, lines), (1, 10, vec![1, 2, 3, 4, 5, 6, 7, 9, 10, 11]));
    assert!(added.faults.iter().all(|fault| !fault.to_string().is_empty()));
    assert!(reason(&list, "/ipns/ok.example").is_some());

    let added = list.add_list("many", &"bad\n".repeat(FAULTS_MAX * 2)).unwrap();
    assert_eq!((added.faults.len(), added.fault_count), (FAULTS_MAX, FAULTS_MAX * 2));
}

#[test]
fn headers_and_limits() {
    let mut list = DenyList::new();
    assert_eq!(list.add_list("empty", "---\n/ipns/a.example").unwrap().rule_count, 1);
    let error = list.add_list("new", "version: 2\n---\n/ipns/b.example").unwrap_err();
    assert_eq!(error, DenyError::UnknownVersion { list: "new".into(), version: "2".into() });
    // Nested and unknown header fields do not disturb.
    let odd = "name: x\nother:\n  version: 9\n  - y\nhints: # none\nversion: '1'\n---\n/ipns/c.example\n";
    assert_eq!(list.add_list("odd", odd).unwrap().rule_count, 1);
    // A header beyond its limit is no header: its lines are read, and fail, as rules.
    let long = format!("name: x\n{}---\n/ipns/d.example", "#\n".repeat(HEADER_BYTES_MAX / 2));
    let added = list.add_list("long", &long).unwrap();
    assert_eq!((added.rule_count, added.fault_count), (1, 2));

    let before = list.rule_count();
    let line = format!("/ipns/e.example\n/ipns/{}", "a".repeat(LINE_BYTES_MAX));
    assert_eq!(list.add_list("wide", &line), Err(DenyError::LineTooLong { list: "wide".into(), line: 2 }));
    assert_eq!(list.rule_count(), before);
    assert_eq!(reason(&list, "/ipns/e.example"), None);
}

proptest! {
    #[test]
    fn random_lists_never_panic(text in "[!/\\-:#*%a-z0-9A-Z\n \u{e4}]{0,300}", name in "\\PC{0,20}", path in "\\PC{0,20}") {
        let mut list = DenyList::new();
        let _ = list.add_list("random", &text);
        let _ = list.add_list("rules", &format!("/ipns/{name}/{path}\n/ipfs/bafkqaaa/{path}*\n//{name}\n{text}"));
        let _ = list.check(&Subject::Ipns { name: &name, path: &path });
        let _ = list.check(&Subject::Ipfs { root: &parse_cid("bafkqaaa").unwrap(), path: &path });
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = DenyList::new().add_list("random", &String::from_utf8_lossy(&bytes));
    }
}
