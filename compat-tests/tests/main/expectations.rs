//! `expectations.txt` against the real binary: one scene, every row, and what has to hold for all of them.
//!
//! What needs a fault or a client of its own stands elsewhere, and [`ELSEWHERE`] says where; together they reach every row
//! of the feature tables of `specs/ipfs-gateway.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use compat_tests::car::{self, Block, DAG_CBOR, DAG_PB, RAW};
use compat_tests::content::{Content, Item};
use compat_tests::ipns::{Key, Says};
use compat_tests::unixfs::{self, Node};
use compat_tests::verify::{Asked, Dups, Scope, verify};
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, Options, seeded_bytes};

const TABLE: &str = include_str!("expectations.txt");

/// Every feature that the note's tables name (2.1 to 2.5), every departure (10), and what is in 3 to 6 and 8.
const FEATURES: &str = "\
2.1 Methods|2.1 HEAD|2.1 only-if-cached|2.1 If-None-Match|2.1 If-Modified-Since|2.1 Etag|2.1 Cache-Control|2.1 Last-Modified|2.1 X-Ipfs-Path|\
2.1 X-Ipfs-Roots|2.1 Content-Type|2.1 Content-Disposition|2.1 Content-Location|2.1 Accept-Ranges|2.1 Range|2.1 format=|2.1 Accept|\
2.1 Codec mismatch|2.1 json and dag-json|2.1 JSON kept in UnixFS|2.1 Plain json|2.1 dag-json, dag-cbor, no format|2.1 Paths in dag-json/cbor|\
2.1 UnixFS paths|2.1 Directory without slash|2.1 index.html|2.1 Listing|2.1 Symlink|2.1 TAR|2.1 Service-Worker|2.1 /ipns/{base58 peer id}|\
2.1 /ipfs/ipfs/|2.1 Bad CID|2.1 Missing path|2.1 Missing content|2.1 Denylist|2.1 500|2.1 Server-Timing|2.1 X-Content-Type-Options|2.1 CORS|\
2.1 Identity CIDs|2.1 ipfs-404.html|\
2.2 raw|2.2 CAR|2.2 Order on the wire|2.2 dag-scope|2.2 entity-bytes|2.2 order, dups|2.2 Identity blocks|2.2 Roots in the header|\
2.2 Missing root block|2.2 Missing child|2.2 Probe|2.2 ipns-record|2.2 Strict mode|2.2 Format precedence|2.2 P2P use|\
2.3 Host forms|2.3 Inlining|2.3 Redirect from path|2.3 Wrong codec|2.3 CID above 63 characters|2.3 X-Forwarded-Proto|2.3 X-Forwarded-Host|\
2.3 Unknown Host|2.3 /ipfs/ under a subdomain|2.3 URI router|2.3 HTTP proxy|2.3 localhost|\
2.4 Host with DNSLink|2.4 Value with sub-path|2.4 Chains|2.4 dnslink=/ipns/{key}|2.4 Order of routing|2.4 Listing|\
2.5 Where|2.5 When|2.5 Line|2.5 Status|2.5 Placeholders|2.5 Splat|2.5 Order|2.5 Size|2.5 Errors|2.5 Query|2.5 4xx pages|\
2.5 200 to a missing file|2.5 to|\
3 Listing|3 Error texts|4 static|5 Name|5 Verify|5 Sequence|5 Keys|6 GET providers|6 GET peers|6 GET ipns|6 PUT ipns|6 Caching|\
10 #1|10 #2|10 #3|10 #4|10 #5|10 #6|10 #7|10 #8|10 #9|10 #10|10 #11|10 #12|10 #13|10 #14|10 #15|10 #16|10 #17";

/// Proposals that a gateway has to do with (8): each stands in the source of a row.
const PROPOSALS: [&str; 17] = [
    "0002", "0288", "0328", "0337", "0351", "0379", "0383", "0386", "0402", "0410", "0412", "0417", "0428", "0512", "0513", "0523",
    "0524",
];

/// What is proved by a test of its own.
const ELSEWHERE: [(&str, &str); 7] = [
    ("2.1 Missing content: too few pieces are 502, out of time 504, with Retry-After", "losses.rs, faults.rs"),
    ("2.1 Missing content: 503 while the catalog is rebuilt", "catalog.rs"),
    ("2.1 Denylist: every format, hot reload", "ipfs.rs"),
    ("2.1 Listing: thousands of entries", "gateway.rs"),
    ("2.3 HTTP proxy: CONNECT", "ipfs.rs"),
    ("4 records of real DNS: CNAME, TTL, failures; 5 keys other than ed25519", "unit tests of the room names"),
    ("6 filters of providers: there are none to filter", "-"),
];

const HELLO: &[u8] = b"hello from a file with 34 bytes..\n";
const PAGE: &[u8] = b"<!doctype html><title>x</title><h1>index</h1>\n";
/// Nothing is stored under it.
const ABSENT: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
/// Longer than the limit of chains.
const CHAIN: usize = 40;

#[derive(Debug, Default)]
struct Row {
    line: usize,
    source: String,
    strict: bool,
    method: String,
    host: Option<String>,
    target: String,
    headers: Vec<String>,
    body: Option<String>,
    status: String,
    checks: Vec<String>,
}

fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (index, line) in TABLE.lines().enumerate() {
        if let Some(check) = line.strip_prefix("    ") {
            let row = rows.last_mut().expect("a check belongs to a row");
            if let Some(body) = check.strip_prefix(">> ") {
                row.body = Some(body.trim_matches(['{', '}']).to_owned());
            } else if let Some(header) = check.strip_prefix("> ") {
                row.headers.push(header.to_owned());
            } else if row.status.is_empty() {
                row.status = check.to_owned();
            } else {
                row.checks.push(check.to_owned());
            }
        } else if let Some(rest) = line.strip_prefix('[') {
            let (source, request) = rest.rsplit_once("] ").filter(|_| !rest.contains("[::")).unwrap_or_else(|| {
                // An address in brackets is a host, not the end of the source.
                rest.split_once("] ").unwrap_or_else(|| panic!("line {}: no request", index + 1))
            });
            let (method, mut request) = request.split_once(' ').expect("a target");
            let strict = request.strip_prefix("^strict ").inspect(|rest| request = rest).is_some();
            let host = request.strip_prefix('@').map(|rest| {
                let at = rest.find(" /").expect("a target behind the host");
                request = &rest[at + 1..];
                rest[..at].to_owned()
            });
            let (source, method, target) = (source.to_owned(), method.to_owned(), request.to_owned());
            rows.push(Row { line: index + 1, source, strict, method, host, target, ..Row::default() });
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "line {}: {line}", index + 1);
        }
    }
    rows
}

/// The gateways, and what `{name}` stands for.
struct Scene {
    usual: Gateway,
    strict: Gateway,
    texts: BTreeMap<String, String>,
    bytes: BTreeMap<String, Vec<u8>>,
    long: Vec<u8>,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn set() -> Scene {
        let folder = tempfile::tempdir().expect("a folder");
        let mut words = Words::default();
        let long = seeded_bytes(77, (3 << 20) + 1234);
        let uploads = [uploaded(&mut words, &long), sites(&mut words)].concat();
        let car = imported(&mut words);
        let records = named(&mut words);
        let rules = words.fill(&config(folder.path(), &words));
        let usual = Gateway::start_with(&folder.path().join("usual"), &Options::config(rules.clone()));
        let strict = rules.replacen("[names]", "[gateway]\ntrustless_only = true\n[names]", 1);
        let strict = Gateway::start_with(&folder.path().join("strict"), &Options::config(strict));
        for gateway in [&usual, &strict] {
            for content in &uploads {
                gateway.upload(content).await;
            }
            let file = folder.path().join("dags.car");
            std::fs::write(&file, &car).expect("written");
            let output = gateway.command(&["import", file.to_str().expect("UTF-8")]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            for (name, record, taken) in &records {
                let file = folder.path().join(format!("{name}.ipns-record"));
                std::fs::write(&file, record).expect("written");
                let output = gateway.command(&["name", "put", file.to_str().expect("UTF-8")]);
                let code = i32::from(!taken);
                assert_eq!(output.status.code(), Some(code), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            }
            gateway.catalog_complete().await;
        }
        Scene { usual, strict, texts: words.texts, bytes: words.bytes, long, _folder: folder }
    }

    fn fill(&self, text: &str) -> String {
        fill(&self.texts, text)
    }
}

fn fill(texts: &BTreeMap<String, String>, text: &str) -> String {
    texts.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// Names of the table, as the scene is made.
#[derive(Default)]
struct Words {
    texts: BTreeMap<String, String>,
    bytes: BTreeMap<String, Vec<u8>>,
}

impl Words {
    fn set(&mut self, name: &str, text: impl Into<String>) {
        assert!(self.texts.insert(name.to_owned(), text.into()).is_none(), "{name} is set twice");
    }

    fn fill(&self, text: &str) -> String {
        fill(&self.texts, text)
    }
}

fn file(bytes: &[u8]) -> Item {
    Item::File(bytes.to_vec())
}

fn text_files(name: &str, files: &[(&str, &str)]) -> Content {
    Content::folder(name, files.iter().map(|(path, text)| ((*path).to_owned(), file(text.as_bytes()))))
}

/// A folder of files of all kinds.
fn uploaded(words: &mut Words, long: &[u8]) -> Vec<Content> {
    let content = Content::folder(
        "files",
        [
            ("100%.txt", file(HELLO)),
            ("blog/index.html", file(PAGE)),
            ("blog/style.css", file(b"body{}")),
            ("data", file(b"{\"a\": 1}")),
            ("empty.txt", file(b"")),
            ("empty", Item::Folder),
            ("fake.html", file(b"just text")),
            ("link", Item::Symlink("100%.txt".to_owned())),
            ("long.bin", file(long)),
            ("picture", file(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")),
            ("script.js", file(b"let x = 1;")),
            ("space here/a b+c.txt", file(HELLO)),
            ("vector.svg", file(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>")),
            ("<b>.html", file(b"odd")),
            ("ą/ę/file-źł.txt", file(HELLO)),
        ]
        .map(|(path, item)| (path.to_owned(), item)),
    );
    let hello = unixfs::file(HELLO);
    let deep = unixfs::folder(vec![("file-źł.txt", hello.clone())]);
    let nested = unixfs::folder(vec![("ę", deep.clone())]);
    let blog = unixfs::folder(vec![("index.html", unixfs::file(PAGE)), ("style.css", unixfs::file(b"body{}"))]);
    words.set("root", content.cid());
    words.set("hello", hello.cid());
    words.set("long", unixfs::file(long).cid());
    for (name, leaf) in ["leaf", "leaf1", "leaf2", "leaf3"].into_iter().zip(unixfs::leaves(long)) {
        words.set(name, leaf);
    }
    words.set("blog", blog.cid());
    words.set("empty", unixfs::folder(vec![]).cid());
    words.set("deep", deep.cid());
    words.set("nested", nested.cid());
    words.set("space", unixfs::folder(vec![("a b+c.txt", hello)]).cid());
    words.set("absent", ABSENT);
    vec![content]
}

/// Sites with rules, good and bad.
fn sites(words: &mut Words) -> Vec<Content> {
    let big = seeded_bytes(3, (3 << 20) + 5);
    let site = Content::folder(
        "site",
        [
            ("index.html", file(b"<title>front</title>")),
            ("404.html", file(b"<title>not here</title>")),
            ("dir/a.txt", file(b"text of a")),
            ("dir/ż b.txt", file(b"odd name")),
            ("big.bin", file(&big)),
            (
                "_redirects",
                file(b"/old /dir/a.txt\n/go/* https://other.example/:splat?own=1 302\n/app/* /index.html 200\n/* /404.html 404\n"),
            ),
        ]
        .map(|(path, item)| (path.to_owned(), item)),
    );
    words.set("SITE", site.cid().to_uppercase());
    words.set("site", site.cid());
    words.set("dir", unixfs::folder(vec![("a.txt", unixfs::file(b"text of a")), ("ż b.txt", unixfs::file(b"odd name"))]).cid());
    words.set("a.txt", unixfs::file(b"text of a").cid());
    words.set("index", unixfs::file(b"<title>front</title>").cid());
    words.set("gone410", unixfs::file(b"a file by itself that a list names").cid());
    words.set("legal451", unixfs::file(b"a file that a court names").cid());
    words.set("target", unixfs::file(b"target").cid());
    let rules = "# a comment\r\n\r\n/plain /target.html\r\n\t/tabs\t /target.html\t302 \r\n/s301 /target.html 301\n/s302 /target.html 302\n\
                 /s303 /target.html 303\n/s307 /target.html 307\n/s308 /target.html 308\n/s404 /target.html 404\n/s410 /target.html 410\n\
                 /s451 /target.html 451\n/posts/:year/:month/:day/:title /articles/:year-:month-:day/:title\n/echo/:x /:x/:x\n\
                 /docs/* /manual/:splat\n/first /one\n/first /two\n/query /t?x=static\n/enc/:name /t/:name\n/root/* /:splat\n\
                 /away https://other.example/page 302\n";
    let long = format!("/x /index.html\n{}", "# a comment that makes it long\n".repeat(2200));
    assert!(long.len() > 65_536);
    let mut all = vec![site];
    for (name, rules) in [
        ("rules", rules),
        ("forced", "/x /index.html 301!\n"),
        ("badcode", "/x /index.html 200\n/y /index.html 600\n"),
        ("samename", "/:a/:a /index.html\n"),
        ("midsplat", "/a/*/b /index.html\n"),
        ("toolarge", &long),
        ("nopage", "/rewrite /nowhere.html 200\n/* /nowhere.html 404\n"),
        ("scheme", "/x ftp://other.example/\n"),
        ("remote", "/x https://other.example/ 200\n"),
    ] {
        let site = text_files(name, &[("index.html", name), ("target.html", "target"), ("_redirects", rules)]);
        words.set(name, site.cid());
        all.push(site);
    }
    let not_text =
        Content::folder("notutf8", [("_redirects".to_owned(), file(b"/x /\xff\n")), ("index.html".to_owned(), file(b""))]);
    words.set("notutf8", not_text.cid());
    let listed =
        text_files("listed", &[("denied.txt", "a file by itself that a list names"), ("legal.txt", "a file that a court names")]);
    words.set("listed", listed.cid());
    let within = text_files("within", &[("ipfs/inside.txt", "inside"), ("ipfs-404.html", "legacy page")]);
    words.set("within", within.cid());
    all.extend([not_text, listed, within]);
    all
}

/// What `add` does not make: data, old CIDs, missing blocks, odd names. One CAR.
fn imported(words: &mut Words) -> Vec<u8> {
    let mut car = Dags { words, roots: Vec::new(), blocks: Vec::new() };
    data(&mut car);
    files_and_folders(&mut car);
    let (roots, blocks): (Vec<&Block>, Vec<&Block>) = (car.roots.iter().collect(), car.blocks.iter().collect());
    // One header has room for 23 roots.
    car::write(&roots, &blocks)
}

struct Dags<'a> {
    words: &'a mut Words,
    roots: Vec<Block>,
    blocks: Vec<Block>,
}

impl Dags<'_> {
    /// A block under a name of the table.
    fn block(&mut self, name: &str, block: Block) -> Block {
        self.words.set(name, block.text());
        self.blocks.push(block.clone());
        block
    }

    fn root(&mut self, name: &str, block: Block) -> Block {
        self.roots.push(block.clone());
        self.block(name, block)
    }
}

fn data(car: &mut Dags<'_>) {
    let leaf = car.block("dataleaf", Block::new(RAW, b"leaf of data"));
    let gone = Block::new(RAW, b"never stored");
    car.words.set("gone", gone.text());
    let mut cbor = vec![0xa3, 0x61, b'a'];
    cbor.extend(leaf.cbor_link());
    cbor.extend([0x61, b'm']);
    cbor.extend(gone.cbor_link());
    cbor.extend([0x61, b'v', 1]);
    car.root("cbor", Block::new(DAG_CBOR, &cbor));
    let whole = [&[0xa1, 0x61, b'l', 0x81][..], &leaf.cbor_link()].concat();
    car.root("data", Block::new(DAG_CBOR, &whole));
    // As varints: dag-json is 0x0129, json 0x0200.
    let json = format!("{{\"link\":{{\"/\":\"{}\"}},\"list\":[1,2]}}", leaf.text());
    car.root("json", Block::with_long_codec([0xa9, 0x02], json.as_bytes()));
    car.root("plainjson", Block::with_long_codec([0x80, 0x04], b"{\"plain\": true}"));
    car.root("plaincbor", Block::new(0x51, &[0xa1, 0x61, b'p', 0xf5]));
    let hashed = b"hashed with sha2-512".to_vec();
    let digest = ring::digest::digest(&ring::digest::SHA512, &hashed);
    car.root("sha512", Block { cid: [&[1, RAW, 0x13, 64], digest.as_ref()].concat(), bytes: hashed });
}

fn files_and_folders(car: &mut Dags<'_>) {
    let dag_pb = |links: &[(&str, Node)], data: &[u8]| Block::new(DAG_PB, &unixfs::block(links, data));
    let folder = |links: &[(&str, Node)]| dag_pb(links, &[0x08, 1]);
    let parts: Vec<Block> = (0..3).map(|part| Block::new(RAW, &seeded_bytes(part, 1024))).collect();
    let file_of = |parts: &[Block]| {
        let links: Vec<(&str, Node)> = parts.iter().map(|part| ("", Node::of(part, 0))).collect();
        dag_pb(&links, &unixfs::file_data(parts.iter().map(|part| part.bytes.len())))
    };
    car.root("gap", file_of(&parts));
    car.block("gap1", parts[0].clone());
    car.block("gap3", parts[2].clone());
    let halves: Vec<Block> = (10..12).map(|part| Block::new(RAW, &seeded_bytes(part, 1024))).collect();
    let whole = file_of(&halves);
    let entry = Node::of(&whole, 2048);
    car.root("twice", folder(&[("a", entry.clone()), ("b", entry)]));
    car.block("twofile", whole);
    car.block("two1", halves[0].clone());
    car.block("two2", halves[1].clone());
    let inline = Block { cid: [&[1, RAW, 0, 12], &b"inline bytes"[..]].concat(), bytes: b"inline bytes".to_vec() };
    let hello = Block::new(RAW, HELLO);
    car.blocks.push(hello.clone());
    car.root("ident", folder(&[("hello.txt", Node::of(&hello, 0)), ("inline.txt", Node::of(&inline, 0))]));
    car.root("outside", folder(&[("../up.txt", Node::of(&hello, 0))]));
    // The bytes of a node, named as a leaf before they are named as a node.
    let lone = folder(&[("hello.txt", Node::of(&hello, 0))]);
    let twin = Block::new(RAW, &lone.bytes);
    car.root("twin", folder(&[("a", Node::of(&twin, 0)), ("b", Node::of(&lone, 34))]));
    car.block("twinleaf", twin);
    // Version 0: a file whose bytes stand in its node, below a folder.
    let old = |block: Block| Block { cid: block.cid[2..].to_vec(), bytes: block.bytes };
    let leaf = old(dag_pb(&[], &[&[0x08, 2, 0x12, 8][..], b"old leaf", &[0x18, 8]].concat()));
    let v0 = dag_pb(&[("old.txt", Node::of(&leaf, 0))], &[0x08, 1]);
    car.words.set("v0as1", v0.text());
    car.root("v0", old(v0));
    car.block("v0leaf", leaf);
    // Written at 2001-09-09T01:46:40Z, the second 1,000,000,000.
    let dated = [&[0x08, 2, 0x12, 5][..], b"dated", &[0x18, 5, 0x42, 6, 0x08, 0x80, 0x94, 0xeb, 0xdc, 0x03]].concat();
    car.root("dated", dag_pb(&[], &dated));
    let entries: Vec<(String, Block)> =
        (0..300).map(|n| (format!("entry-{n:03}.txt"), Block::new(RAW, format!("entry {n}").as_bytes()))).collect();
    let nodes: Vec<(&str, Node)> = entries.iter().map(|(name, block)| (name.as_str(), Node::of(block, 0))).collect();
    let mut shards = unixfs::shard(&nodes);
    let root = shards.pop().expect("a root");
    car.root("shard", root);
    car.blocks.extend(shards);
    car.words.set("entry-007", entries[7].1.text());
    car.blocks.extend(entries.into_iter().map(|(_, block)| block));
}

/// Keys with their records; those at the end are refused.
fn named(words: &mut Words) -> Vec<(String, Vec<u8>, bool)> {
    let site = words.texts["site"].clone();
    let (to_site, to_dir, to_a) = (format!("/ipfs/{site}"), format!("/ipfs/{site}/dir"), format!("/ipfs/{site}/dir/a.txt"));
    let says = |value, sequence| Says { value, sequence, validity: "2099-01-01T00:00:00Z", ttl_s: 1800 };
    let mut records = Vec::new();
    let mut put = |words: &mut Words, seed: u8, name: &str, says: &[Says<'_>], taken: bool| {
        let key = Key::of_seed(seed);
        if !words.texts.contains_key(name) {
            words.set(name, key.name());
        }
        for says in says {
            records.push((key.name(), key.record(says), taken));
        }
        key
    };
    let key = put(words, 1, "key", &[says(&to_site, 1)], true);
    words.bytes.insert("record".to_owned(), key.record(&says(&to_site, 1)));
    words.set("peerid", key.peer_id());
    words.set("keydagpb", key.as_dag_pb());
    words.set("key32", key.as_base32());
    put(words, 2, "twokey", &[says(&to_dir, 1), says(&to_a, 2)], true);
    put(words, 3, "badvalue", &[says("nowhere", 1)], true);
    let old = Says { validity: "2001-01-01T00:00:00Z", ..says(&to_site, 1) };
    put(words, 4, "oldkey", &[old], false);
    let bad = put(words, 5, "badkey", &[], false);
    let mut record = bad.record(&says(&to_site, 1));
    record[10] ^= 1;
    records.push((bad.name(), record, false));
    records
}

/// Names, domains and a denylist.
fn config(folder: &Path, words: &Words) -> String {
    let list = folder.join("rules.deny");
    let denied = "version: 1\n---\n/ipfs/{gone410} reason:not-wanted\n/ipfs/{legal451} reason:court-order gateway_status:451\n";
    std::fs::write(&list, words.fill(denied)).expect("written");
    let mut text = format!("[deny]\nlists = [{list:?}]\n[names]\nresolver = \"none\"\n[names.static]\n");
    for (name, value) in [
        ("site", "/ipfs/{site}"),
        ("my-site", "/ipfs/{site}"),
        ("below", "/ipfs/{site}/dir"),
        ("rules", "/ipfs/{rules}"),
        ("loop", "/ipns/loop2.example.org"),
        ("loop2", "/ipns/loop.example.org"),
        ("hop1", "/ipns/hop2.example.org/dir"),
        ("hop2", "/ipns/{key}"),
        ("peer", "/ipns/{peerid}"),
        ("key", "/ipns/{key}"),
        ("a-name-that-is-quite-long-for-one-label-of-a-host.of-the-gateway", "/ipfs/{site}"),
    ] {
        writeln!(text, "\"{name}.example.org\" = \"{value}\"").expect("a String takes all");
    }
    for hop in 0..CHAIN {
        writeln!(text, "\"chain{hop}.example.org\" = \"/ipns/chain{}.example.org\"", hop + 1).expect("a String takes all");
    }
    writeln!(text, "\"chain{CHAIN}.example.org\" = \"/ipfs/{{site}}\"").expect("a String takes all");
    text + "[[gateway.domains]]\nname = \"gw.example\"\n[[gateway.domains]]\nname = \"localhost\"\ninline_dnslink = false\n\
            [[gateway.domains]]\nname = \"path.example\"\nsubdomains = false\n"
}

#[tokio::test]
async fn the_table() {
    let scene = Scene::set().await;
    let rows = rows();
    let mut wrong = Vec::new();
    for row in &rows {
        let faults = check(&scene, row).await;
        if !faults.is_empty() {
            wrong.push(format!("line {}: [{}] {}\n    {}", row.line, row.source, scene.fill(&row.target), faults.join("\n    ")));
        }
    }
    println!("{} rows", rows.len());
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Nothing in the note's tables is without a row.
#[test]
fn every_feature_has_a_row() {
    let rows = rows();
    let has = |feature: &str| rows.iter().any(|row| row.source == feature || row.source.starts_with(&format!("{feature}:")));
    let bare: Vec<&str> = FEATURES.split('|').filter(|feature| !has(feature)).collect();
    assert!(bare.is_empty(), "no row for {bare:?}");
    for proposal in PROPOSALS {
        assert!(rows.iter().any(|row| row.source.contains(&format!("IPIP-{proposal}"))), "no row for IPIP-{proposal}");
    }
    for row in &rows {
        let of_the_note = row.source.starts_with(|first: char| first.is_ascii_digit());
        let known = FEATURES.split('|').any(|feature| row.source == feature || row.source.starts_with(&format!("{feature}:")));
        assert!(known || !of_the_note || row.source.starts_with("6 closest"), "line {}: {} is no feature", row.line, row.source);
        assert!(!row.status.is_empty(), "line {}: no status", row.line);
    }
    assert!(ELSEWHERE.iter().all(|(what, place)| !what.is_empty() && !place.is_empty()));
}

async fn check(scene: &Scene, row: &Row) -> Vec<String> {
    let gateway = if row.strict { &scene.strict } else { &scene.usual };
    let target = scene.fill(&row.target);
    let mut headers: Vec<String> = row.headers.iter().map(|header| scene.fill(header)).collect();
    headers.extend(row.host.iter().map(|host| format!("Host: {}", scene.fill(host))));
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let answer = match &row.body {
        Some(name) => wire::send(&gateway.public, &row.method, &target, &headers, &scene.bytes[name]).await,
        None => gateway.ask(&row.method, &target, &headers).await,
    };
    let mut faults = Vec::new();
    let status = answer.status.to_string();
    if !row.status.split('|').any(|wanted| status == wanted || (wanted.len() == 1 && status.starts_with(wanted))) {
        faults.push(format!("status {status} and not {}: {:.300}", row.status, answer.text()));
    }
    let whole = !row.checks.iter().any(|check| check == "cut");
    for check in &row.checks {
        faults.extend(fault(scene, &answer, check));
    }
    if whole && !answer.whole {
        faults.push("the body is cut".to_owned());
    }
    if row.method == "GET" {
        faults.extend(always(gateway, row, &target, &headers, &answer).await);
    }
    if row.method == "GET" && whole && answer.status == 200 && is_car(&answer) {
        faults.extend(walk(row, &target, &answer).err());
    }
    faults
}

/// What is wrong with one check of a row.
fn fault(scene: &Scene, answer: &Answer, check: &str) -> Option<String> {
    let unescape = |text: &str| text.replace("\\n", "\n").replace("\\r", "\r").replace("\\\\", "\\");
    let shown = || format!("{:.400}", answer.text());
    if check == "." {
        return (!answer.body.is_empty()).then(|| format!("a body of {} bytes", answer.body.len()));
    }
    if check == "cut" {
        return (answer.whole && answer.status < 300).then(|| "the body is whole".to_owned());
    }
    let (kind, rest) = check.split_once(' ').unwrap_or_else(|| panic!("no check: {check}"));
    let rest = unescape(&scene.fill(rest));
    match kind {
        "=" => (answer.body != rest.as_bytes()).then(|| format!("the body is {}", shown())),
        "~" => (!answer.text().contains(&rest)).then(|| format!("no {rest:?} in {}", shown())),
        "!" => answer.text().contains(&rest).then(|| format!("{rest:?} is in it")),
        "<" => (answer.body.len() >= rest.parse().expect("a number")).then(|| format!("{} bytes", answer.body.len())),
        "@" => {
            let (from, to) = rest.split_once("..").expect("a range");
            let stretch = &scene.long[from.parse().expect("a number")..to.parse().expect("a number")];
            (answer.body != stretch).then(|| format!("{} bytes that are not {rest}", answer.body.len()))
        }
        "body:" => (answer.body != scene.bytes["record"]).then(|| "other bytes".to_owned()),
        "blocks:" => match car::read(&answer.body) {
            Err(error) => Some(error),
            Ok(blocks) => {
                let found: Vec<String> = blocks.iter().map(Block::text).collect();
                (found != rest.split(' ').collect::<Vec<_>>()).then(|| format!("blocks {found:?}"))
            }
        },
        "roots:" => match car::roots(&answer.body) {
            Err(error) => Some(error),
            Ok(found) => (found != rest.split(' ').collect::<Vec<_>>()).then(|| format!("roots {found:?}")),
        },
        "tar:" => {
            let found = tar_names(&answer.body).join(" ");
            (found != rest).then(|| format!("names {found:?}"))
        }
        _ => {
            let name = kind.strip_suffix(':').unwrap_or_else(|| panic!("no check: {check}"));
            let found = answer.header(name);
            let fits = match (rest.split_at_checked(1), found.as_deref()) {
                (Some(("-", "")), found) => found.is_none(),
                (Some(("+", "")), found) => found.is_some(),
                (Some(("?", "")), _) => true,
                (Some(("!", part)), found) => !found.is_some_and(|value| value.contains(part)),
                (Some(("^", start)), Some(value)) => value.starts_with(start),
                (Some(("~", part)), Some(value)) => value.contains(part),
                (_, value) => value == Some(rest.as_str()),
            };
            (!fits).then(|| format!("{name} is {found:?} and not {rest:?}"))
        }
    }
}

/// What holds for every GET.
async fn always(gateway: &Gateway, row: &Row, target: &str, headers: &[&str], answer: &Answer) -> Vec<String> {
    let mut faults = Vec::new();
    let head = gateway.ask("HEAD", target, headers).await;
    // A head does not know yet that a body will break off, or that it cannot begin.
    let begins = !row.checks.iter().any(|check| check == "cut");
    if begins {
        faults.extend(head_equals_get(&head, answer));
    }
    let rule = answer.header("cache-control").unwrap_or_default();
    // A page that a site brings along for its missing paths has an Etag, and is as immutable as the site.
    if answer.status >= 400 && answer.header("etag").is_none() && (rule.contains("immutable") || rule.contains("max-age")) {
        faults.push(format!("an error that caches keep: {rule}"));
    }
    if let Some(location) = answer.header("location")
        && !location.bytes().all(|byte| byte.is_ascii_graphic())
    {
        faults.push(format!("Location is no URI: {location}"));
    }
    let conditional = row.headers.iter().any(|header| header.starts_with("If-"));
    if let (200, Some(etag), false) = (answer.status, answer.header("etag"), conditional) {
        let condition = format!("If-None-Match: {etag}");
        let again = gateway.ask("GET", target, &[headers, &[condition.as_str()]].concat()).await;
        if again.status != 304 || !again.body.is_empty() || again.header("cache-control") != answer.header("cache-control") {
            faults.push(format!("{} to its own Etag, {:?}", again.status, again.header("cache-control")));
        }
    }
    let text = answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain"));
    if answer.status >= 400 && text && !row.headers.iter().any(|header| header.starts_with("Accept:")) {
        let html = gateway.ask("GET", target, &[headers, &["Accept: text/html,*/*;q=0.8"]].concat()).await;
        let page = html.text();
        let kind = html.header("content-type");
        if html.status != answer.status || kind.as_deref() != Some("text/html; charset=utf-8") {
            faults.push(format!("as a page it is {} {kind:?}", html.status));
        } else if !page.contains("name=\"viewport\"") || !page.contains(&html.status.to_string()) || page.len() >= 4096 {
            faults.push(format!("not a page for people: {page:.300}"));
        } else if page.contains("<b>") || page.contains("<script") {
            faults.push("what was asked is not escaped".to_owned());
        }
    }
    faults
}

/// 2.1 HEAD: the same as GET without body. What is measured differs from request to request, chunks need no length.
pub fn head_equals_get(head: &Answer, get: &Answer) -> Vec<String> {
    let shown = |answer: &Answer| {
        let of_request = ["date", "server-timing", "cache-status", "transfer-encoding", "connection", "retry-after"];
        let mut headers: Vec<_> = answer.headers.iter().filter(|(name, _)| !of_request.contains(&name.as_str())).cloned().collect();
        for (name, value) in &mut headers {
            if name == "content-type" && value.starts_with("multipart/") {
                // Boundaries are drawn anew.
                value.truncate(30);
            }
            if name == "cache-control" && value.starts_with("public, max-age=") && !value.contains("immutable") {
                // What is left of a lifetime may be a second less.
                value.truncate(16);
            }
        }
        headers.retain(|(name, _)| name != "last-modified" && name != "expires");
        headers.sort();
        headers
    };
    let mut faults = Vec::new();
    if head.status != get.status || !head.body.is_empty() {
        faults.push(format!("HEAD gives {} with {} bytes", head.status, head.body.len()));
    }
    let (head, get) = (shown(head), shown(get));
    faults.extend(head.iter().filter(|header| !get.contains(header)).map(|header| format!("only HEAD has {header:?}")));
    faults.extend(get.iter().filter(|header| !head.contains(header)).map(|header| format!("only GET has {header:?}")));
    faults
}

fn is_car(answer: &Answer) -> bool {
    answer.header("content-type").is_some_and(|kind| kind.starts_with("application/vnd.ipld.car"))
}

/// Walks a CAR as a client does that trusts nothing.
fn walk(row: &Row, target: &str, answer: &Answer) -> Result<(), String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let mut names = path.trim_matches('/').split('/');
    let (Some("ipfs"), Some(root), None) = (names.next(), names.next(), &row.host) else { return Ok(()) };
    if root == "bafkqaaa" {
        return car::read(&answer.body).map(drop);
    }
    let number = |text: &str| text.parse::<i64>().map_err(|error| format!("{text}: {error}"));
    let scope = match (parameter("entity-bytes"), parameter("dag-scope")) {
        (Some(range), _) => {
            let (from, to) = range.split_once(':').ok_or("no range")?;
            Scope::Bytes(number(from)?, if to == "*" { None } else { Some(number(to)?) })
        }
        (None, Some("block")) => Scope::Block,
        (None, Some("entity")) => Scope::Entity,
        (None, _) => Scope::All,
    };
    let kind = answer.header("content-type").unwrap_or_default();
    let dups = if kind.contains("dups=y") { Dups::Every } else { Dups::Once };
    verify(&answer.body, &Asked { root, path: names.map(str::to_owned).collect(), scope, dups }).map(drop)
}

/// Names of the entries of a TAR. A long name stands in an extended header before its entry.
fn tar_names(tar: &[u8]) -> Vec<String> {
    let (mut names, mut at) = (Vec::new(), 0);
    let mut long = None;
    while let Some(head) = tar.get(at..at + 512).filter(|head| head[0] != 0) {
        let text = |field: &[u8]| String::from_utf8_lossy(field.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        let length = usize::from_str_radix(text(&head[124..136]).trim(), 8).expect("an octal length");
        let body = &tar[at + 512..at + 512 + length];
        at += 512 + length.div_ceil(512) * 512;
        if head[156] == b'x' {
            let records = String::from_utf8_lossy(body).into_owned();
            long = records.lines().find_map(|line| line.split_once(" path=").map(|(_, path)| path.to_owned()));
            continue;
        }
        let short = match text(&head[345..500]).as_str() {
            "" => text(&head[..100]),
            prefix => format!("{prefix}/{}", text(&head[..100])),
        };
        names.push(long.take().unwrap_or(short).trim_end_matches('/').to_owned());
    }
    names
}
