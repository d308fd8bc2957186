//! Tables of path -> answer over small trees, the conformance fixtures, and trees made to do harm.

use proptest::prelude::*;

use super::*;
use crate::address::{cid_v1, sha2_256};
use crate::tree::test_dag::{TestDag, pb_block, shard_block};
use crate::tree::{Kind, UnixFs};

struct Walked {
    answer: Answer,
    needed: Vec<Cid>,
}

fn walk(dag: &TestDag, root: Cid, path: &str) -> Result<Walked, SiteError> {
    let mut walk = Walk::new(root, SitePath::parse(path).unwrap());
    let mut needed = Vec::new();
    loop {
        match walk.step() {
            Step::Need(cid) => {
                needed.push(cid);
                walk.give(dag.block(&cid))?;
            }
            Step::Done(answer) => return Ok(Walked { answer, needed }),
        }
    }
}

fn list(dag: &TestDag, listing: &mut DirListing) -> Result<Vec<ListEntry>, SiteError> {
    let mut entries = Vec::new();
    loop {
        match listing.step()? {
            ListStep::Entry(entry) => entries.push(entry),
            ListStep::Need(cid) => listing.give(dag.block(&cid))?,
            ListStep::End => return Ok(entries),
        }
    }
}

/// One line for an answer; `roots` follow with the names that the test has given to CIDs.
fn show(dag: &TestDag, names: &[(&str, Cid)], answer: Answer) -> String {
    let name_of =
        |cid: &Cid| names.iter().find(|(_, known)| known == cid).map_or_else(|| cid.to_string(), |(name, _)| name.to_string());
    let list_of = |roots: &[Cid]| roots.iter().map(name_of).collect::<Vec<_>>().join(",");
    let dir_of = |dir: Option<Cid>| dir.map(|dir| format!(" of {}", name_of(&dir))).unwrap_or_default();
    match answer {
        Answer::File { cid, size, node, name, dir, roots } => {
            assert_eq!(node.size, size);
            format!("file {} of {size} as {name:?}{} [{}]", name_of(&cid), dir_of(dir), list_of(&roots))
        }
        Answer::RawBlock { cid, name, dir, roots } => {
            format!("raw {} as {name:?}{} [{}]", name_of(&cid), dir_of(dir), list_of(&roots))
        }
        Answer::Listing { mut dir, cid, roots } => {
            let mut entries: Vec<_> = list(dag, &mut dir).unwrap().into_iter().map(|entry| entry.name).collect();
            entries.sort();
            format!("list {} ({}) [{}]", name_of(&cid), entries.join(" "), list_of(&roots))
        }
        Answer::AddSlash => "slash".to_string(),
        Answer::NotFound { missing, roots } => format!("missing {missing} [{}]", list_of(&roots)),
        Answer::Symlink { target, cid, roots } => format!("symlink {} to {target} [{}]", name_of(&cid), list_of(&roots)),
        Answer::InsideBlock { cid, roots } => format!("inside {} [{}]", name_of(&cid), list_of(&roots)),
        Answer::NotUnixfs { cid, codec, rest, roots } => {
            format!("codec {codec:x} at {} rest {} [{}]", name_of(&cid), rest.decoded(), list_of(&roots))
        }
    }
}

fn check(dag: &TestDag, names: &[(&str, Cid)], root: Cid, rows: &[(&str, &str)]) {
    for (path, expect) in rows {
        let walked = walk(dag, root, path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(show(dag, names, walked.answer), *expect, "{path}");
    }
}

fn pb_file(bytes: &'static [u8]) -> UnixFs {
    UnixFs { data: Some(Bytes::from_static(bytes)), ..UnixFs::new(Kind::File) }
}

/// root: a.txt (raw), big (two leaves), link (symlink), sub/ (index.html, deep/ (b.txt)), odd/ (index.html is a directory),
/// ptr/ (index.html is a symlink), cbor, json, bare (dag-pb without data), `..` and `a b%20c`.
fn plain_site(dag: &mut TestDag) -> Vec<(&'static str, Cid)> {
    let a = dag.raw(b"a\n");
    let big = dag.file(b"two leaves", 5, 2);
    let link = dag.symlink("sub/deep");
    let index = dag.pb(&pb_file(b"<p>sub</p>"), &[]);
    let b = dag.raw(b"b\n");
    let deep = dag.dir(&[("b.txt", b)]);
    let sub = dag.dir(&[("deep", deep), ("index.html", index)]);
    let odd = dag.dir(&[("index.html", deep)]);
    let ptr = dag.dir(&[("index.html", link)]);
    let cbor = dag.put(codec::DAG_CBOR, vec![0xa0]);
    let json = dag.put(codec::JSON, b"{}".to_vec());
    let bare = dag.put(codec::DAG_PB, vec![]);
    let boxed = dag.dir(&[("index.html", cbor)]);
    let empty = dag.dir(&[]);
    let root = dag.dir(&[
        ("..", deep),
        ("a b%20c", a),
        ("a.txt", a),
        ("bare", bare),
        ("big", big),
        ("boxed", boxed),
        ("cbor", cbor),
        ("empty", empty),
        ("json", json),
        ("link", link),
        ("odd", odd),
        ("ptr", ptr),
        ("sub", sub),
    ]);
    vec![
        ("A", a),
        ("BIG", big),
        ("LINK", link),
        ("INDEX", index),
        ("B", b),
        ("DEEP", deep),
        ("SUB", sub),
        ("ODD", odd),
        ("PTR", ptr),
        ("CBOR", cbor),
        ("JSON", json),
        ("BARE", bare),
        ("BOXED", boxed),
        ("EMPTY", empty),
        ("ROOT", root),
    ]
}

fn named(names: &[(&str, Cid)], wanted: &str) -> Cid {
    names.iter().find(|(name, _)| *name == wanted).unwrap().1
}

#[test]
fn plain_directories() {
    let mut dag = TestDag::default();
    let names = plain_site(&mut dag);
    let all = ".. a b%20c a.txt bare big boxed cbor empty json link odd ptr sub";
    let root_listing = format!("list ROOT ({all}) [ROOT]");
    let rows = [
        ("", "slash"),
        ("/", &root_listing),
        ("//", &root_listing),
        ("/a.txt", r#"raw A as Some("a.txt") [ROOT,A]"#),
        ("/a.txt/", "missing / [ROOT,A]"),
        ("/a.txt/x/y", "missing x/y [ROOT,A]"),
        ("/a%20b%2520c", r#"raw A as Some("a b%20c") [ROOT,A]"#),
        ("/a%20b%20c", "missing a b c [ROOT]"),
        ("/big", r#"file BIG of 10 as Some("big") [ROOT,BIG]"#),
        ("/big/", "missing / [ROOT,BIG]"),
        ("/big/x/", "missing x [ROOT,BIG]"),
        ("/sub", "slash"),
        ("/sub/", r#"file INDEX of 10 as Some("index.html") of SUB [ROOT,SUB]"#),
        ("/sub/index.html", r#"file INDEX of 10 as Some("index.html") [ROOT,SUB,INDEX]"#),
        ("/sub/deep", "slash"),
        ("/sub/deep/", "list DEEP (b.txt) [ROOT,SUB,DEEP]"),
        ("/sub//deep///b.txt", r#"raw B as Some("b.txt") [ROOT,SUB,DEEP,B]"#),
        ("/sub/nope/b.txt", "missing nope/b.txt [ROOT,SUB]"),
        ("/Sub/", "missing Sub [ROOT]"),
        ("/empty/", "list EMPTY () [ROOT,EMPTY]"),
        ("/odd/", "list ODD (index.html) [ROOT,ODD]"),
        ("/odd/index.html", "slash"),
        ("/ptr/", "list PTR (index.html) [ROOT,PTR]"),
        ("/boxed/", "list BOXED (index.html) [ROOT,BOXED]"),
        ("/link", "symlink LINK to sub/deep [ROOT,LINK]"),
        ("/link/", "missing / [ROOT,LINK]"),
        ("/link/b.txt", "missing b.txt [ROOT,LINK]"),
        ("/cbor", "codec 71 at CBOR rest  [ROOT,CBOR]"),
        ("/cbor/x/y/", "missing x/y [ROOT,CBOR]"),
        ("/json", "codec 200 at JSON rest  [ROOT,JSON]"),
        ("/bare/x", "codec 70 at BARE rest /x [ROOT,BARE]"),
        // Dots are names: one directory has an entry of that name, the others do not, and no path climbs.
        ("/../b.txt", r#"raw B as Some("b.txt") [ROOT,DEEP,B]"#),
        ("/sub/../a.txt", "missing ../a.txt [ROOT,SUB]"),
        ("/sub/%2e%2e/a.txt", "missing ../a.txt [ROOT,SUB]"),
        ("/./a.txt", "missing ./a.txt [ROOT]"),
    ];
    check(&dag, &names, named(&names, "ROOT"), &rows);
}

#[test]
fn roots_of_other_kinds() {
    let mut dag = TestDag::default();
    let names = plain_site(&mut dag);
    // A root file is asked for with a slash on subdomains, where every path has one.
    check(&dag, &names, named(&names, "A"), &[("", "raw A as None [A]"), ("/", "raw A as None [A]"), ("/x", "missing x [A]")]);
    check(
        &dag,
        &names,
        named(&names, "BIG"),
        &[("", "file BIG of 10 as None [BIG]"), ("/", "file BIG of 10 as None [BIG]"), ("/x", "missing x [BIG]")],
    );
    check(&dag, &names, named(&names, "LINK"), &[("", "symlink LINK to sub/deep [LINK]"), ("/x", "missing x [LINK]")]);
    check(&dag, &names, named(&names, "CBOR"), &[("/a", "missing a [CBOR]")]);
    check(&dag, &names, named(&names, "BARE"), &[("", "codec 70 at BARE rest  [BARE]")]);
    check(&dag, &names, named(&names, "SUB"), &[("/", r#"file INDEX of 10 as Some("index.html") of SUB [SUB]"#)]);
}

#[test]
fn only_the_blocks_on_the_way_are_needed() {
    let mut dag = TestDag::default();
    let names = plain_site(&mut dag);
    let rows: [(&str, &[&str]); 7] = [
        ("", &["ROOT"]),
        ("/a.txt", &["ROOT"]),
        ("/big", &["ROOT", "BIG"]),
        ("/sub/", &["ROOT", "SUB", "INDEX"]),
        ("/sub/deep/b.txt", &["ROOT", "SUB", "DEEP"]),
        ("/cbor/x", &["ROOT", "CBOR"]),
        ("/nope/x/y", &["ROOT"]),
    ];
    for (path, expect) in rows {
        let needed = walk(&dag, named(&names, "ROOT"), path).unwrap().needed;
        assert_eq!(needed, expect.iter().map(|name| named(&names, name)).collect::<Vec<_>>(), "{path}");
    }
    assert!(walk(&dag, named(&names, "A"), "/").unwrap().needed.is_empty());
}

#[test]
fn sharded_directories() {
    for fanout in [8, 256, 1024] {
        let mut dag = TestDag::default();
        let index = dag.pb(&pb_file(b"<p>index</p>"), &[]);
        let inner = dag.dir(&[("x", index)]);
        let mut entries: Vec<(String, Cid)> = (0..900).map(|i| (format!("{i:04}"), dag.raw(format!("{i}").as_bytes()))).collect();
        entries.push(("inner".into(), inner));
        let bare = dag.shards(&entries, fanout);
        entries.push(("index.html".into(), index));
        let with_index = dag.shards(&entries, fanout);
        let names = [("INDEX", index), ("INNER", inner), ("BARE", bare), ("WITH", with_index), ("N7", entries[7].1)];
        check(
            &dag,
            &names,
            with_index,
            &[
                ("", "slash"),
                ("/", r#"file INDEX of 12 as Some("index.html") of WITH [WITH]"#),
                ("/0007", r#"raw N7 as Some("0007") [WITH,N7]"#),
                ("/0007/", "missing / [WITH,N7]"),
                ("/inner", "slash"),
                ("/inner/", "list INNER (x) [WITH,INNER]"),
                ("/inner/x", r#"file INDEX of 12 as Some("x") [WITH,INNER,INDEX]"#),
                ("/0900", "missing 0900 [WITH]"),
                ("/00", "missing 00 [WITH]"),
            ],
        );
        let Answer::Listing { mut dir, cid, roots } = walk(&dag, bare, "/").unwrap().answer else { panic!("not a listing") };
        assert_eq!((cid, roots, dir.entries_known()), (bare, vec![bare], None));
        let mut listed: Vec<_> = list(&dag, &mut dir).unwrap().into_iter().map(|entry| (entry.name, entry.cid)).collect();
        listed.sort();
        entries.pop();
        entries.sort();
        assert_eq!(listed, entries, "fanout {fanout}");
        assert_eq!(dir.step(), Ok(ListStep::End), "the end stays the end");
    }
    let mut dag = TestDag::default();
    let empty = dag.shards(&[], 256);
    check(&dag, &[("E", empty)], empty, &[("/", "list E () [E]"), ("/x", "missing x [E]")]);
}

#[test]
fn conformance_fixtures() {
    let fixture = |path: &str| TestDag::from_car(&format!("conformance/fixtures/{path}"));
    let Some(dag) = fixture("dir_listing/fixtures.car") else {
        return;
    };
    let root = dag.roots[0];
    assert_eq!(root.to_string(), "bafybeig6ka5mlwkl4subqhaiatalkcleo4jgnr3hqwvpmsqfca27cijp3i");
    let walked = walk(&dag, root, "/%C4%85/%C4%99").unwrap();
    assert!(matches!(walked.answer, Answer::AddSlash));
    let Answer::Listing { mut dir, roots, .. } = walk(&dag, root, "/ą/ę/").unwrap().answer else { panic!("not a listing") };
    assert_eq!((roots.len(), dir.entries_known()), (3, Some(1)));
    let entries = list(&dag, &mut dir).unwrap();
    assert_eq!(entries[0].name, "file-źł.txt");
    assert!(entries[0].tsize > 0);

    let dag = fixture("gateway-cache/fixtures.car").unwrap();
    let root = dag.roots[0];
    let Answer::RawBlock { cid, name, dir, roots } = walk(&dag, root, "/root2/root3/root4/").unwrap().answer else {
        panic!("not a file")
    };
    assert_eq!((name.as_deref(), dir, roots.len()), (Some("index.html"), Some(roots[3]), 4), "the roots end with the directory");
    let Answer::RawBlock { dir: None, roots, .. } = walk(&dag, root, "/root2/root3/root4/index.html").unwrap().answer else {
        panic!("not a file")
    };
    assert_eq!((roots.len(), roots[4]), (5, cid));

    let dag = fixture("path_gateway_unixfs/symlink.car").unwrap();
    let Answer::Symlink { target, roots, .. } = walk(&dag, dag.roots[0], "/bar").unwrap().answer else { panic!("not a symlink") };
    assert_eq!((target.as_str(), roots.len()), ("foo", 2));

    let dag = fixture("path_gateway_unixfs/dir-with-percent-encoded-filename.car").unwrap();
    let Answer::Listing { mut dir, .. } = walk(&dag, dag.roots[0], "/").unwrap().answer else { panic!("not a listing") };
    let name = list(&dag, &mut dir).unwrap().remove(0).name;
    assert!(name.contains("%2C"), "{name}");
    let encoded = SitePath::from_decoded(&name).unwrap().encoded();
    assert!(matches!(walk(&dag, dag.roots[0], &encoded).unwrap().answer, Answer::File { .. } | Answer::RawBlock { .. }));

    let dag = fixture("path_gateway_dag/dag-cbor-traversal.car").unwrap();
    // Values inside a block belong to the block: one root for each name all the same.
    let Answer::NotUnixfs { codec: codec::DAG_CBOR, rest, roots, .. } = walk(&dag, dag.roots[0], "/foo/link/bar").unwrap().answer
    else {
        panic!("not dag-cbor")
    };
    assert_eq!((rest.decoded().as_str(), roots.len()), ("", 4));
    assert_eq!((roots[0], roots[1]), (dag.roots[0], dag.roots[0]));
    assert!(matches!(walk(&dag, dag.roots[0], "/foo").unwrap().answer, Answer::InsideBlock { cid, .. } if cid == dag.roots[0]));
    assert!(matches!(walk(&dag, dag.roots[0], "/foo/no").unwrap().answer, Answer::NotFound { missing, .. } if missing == "no"));
}

/// A HAMT made by kubo: all that is listed is found, each by at most as many blocks as there are levels.
#[test]
fn kubo_hamt() {
    let Some(dag) = TestDag::from_car("conformance/fixtures/trustless_gateway_car/single-layer-hamt-with-multi-block-files.car")
    else {
        return;
    };
    let root = dag.roots[0];
    let Answer::Listing { mut dir, .. } = walk(&dag, root, "/").unwrap().answer else { panic!("not a listing") };
    let entries = list(&dag, &mut dir).unwrap();
    assert!(entries.len() > 20, "{}", entries.len());
    for entry in entries {
        let walked = walk_partly(&dag, root, &entry.name);
        assert_eq!(walked, entry.cid, "{}", entry.name);
    }
}

/// Walks until the entry's own block is needed (the fixture does not hold all of them).
fn walk_partly(dag: &TestDag, root: Cid, name: &str) -> Cid {
    let mut walk = Walk::new(root, SitePath::from_decoded(name).unwrap());
    loop {
        match walk.step() {
            Step::Need(cid) if walk.roots.len() == 2 => return cid,
            Step::Need(cid) => walk.give(dag.block(&cid)).unwrap(),
            Step::Done(Answer::RawBlock { cid, .. }) => return cid,
            Step::Done(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn bad_blocks_are_errors_and_change_nothing() {
    let mut dag = TestDag::default();
    let names = plain_site(&mut dag);
    let root = named(&names, "ROOT");
    let mut walk = Walk::new(root, SitePath::parse("/a.txt").unwrap());
    assert!(matches!(walk.give(Bytes::from_static(&[0x12, 0xff])), Err(SiteError::Tree(TreeError::Malformed { .. }))));
    assert!(matches!(walk.step(), Step::Need(cid) if cid == root));
    walk.give(dag.block(&root)).unwrap();
    assert!(matches!(walk.step(), Step::Done(Answer::RawBlock { .. })));
    walk.give(Bytes::from_static(&[0x12, 0xff])).unwrap();
    assert!(matches!(walk.step(), Step::Done(Answer::RawBlock { .. })), "giving what nobody needs does nothing");
}

/// A shard whose every slot leads to the shard `below`, or to an entry of one name.
fn every_slot(fanout: u64, name: &str, below: Cid) -> Vec<u8> {
    let items: Vec<_> = (0..fanout as usize).map(|slot| (slot, name, below)).collect();
    shard_block(fanout, &items)
}

#[test]
fn shard_cycles_end() {
    let mut dag = TestDag::default();
    // A shard that links to itself in every slot, under a CID that does not match: nobody checks hashes in this room.
    let me = cid_v1(codec::DAG_PB, [1; 32]);
    dag.insert(me, every_slot(8, "", me));
    let error = walk(&dag, me, "/any").map(|_| ()).unwrap_err();
    assert!(
        matches!(error, SiteError::Tree(TreeError::TooLarge { what: "bits of a name's hash that a HAMT uses", .. })),
        "{error}"
    );
    let TreeNode::Shard(top) = parse_node(&me, &dag.block(&me)).unwrap() else { panic!("not a shard") };
    let error = list(&dag, &mut DirListing::sharded(top)).unwrap_err();
    assert!(matches!(error, SiteError::Tree(TreeError::TooLarge { .. })), "{error}");
}

#[test]
fn shard_bombs_end() {
    let mut dag = TestDag::default();
    let file = dag.raw(b"x");
    // 256^8 entries out of nine blocks: each level repeats the level below in all its slots.
    let mut cid = dag.put(codec::DAG_PB, every_slot(256, "name", file));
    for _ in 0..7 {
        cid = dag.put(codec::DAG_PB, every_slot(256, "", cid));
    }
    let TreeNode::Shard(top) = parse_node(&cid, &dag.block(&cid)).unwrap() else { panic!("not a shard") };
    let error = list(&dag, &mut DirListing::sharded(top)).unwrap_err();
    assert_eq!(error, SiteError::Tree(TreeError::malformed("HAMT", "an entry stands in a slot where its name does not belong")));
    // The same of empty shards, which would list nothing for ever.
    let mut cid = dag.put(codec::DAG_PB, shard_block(256, &[]));
    for _ in 0..7 {
        cid = dag.put(codec::DAG_PB, every_slot(256, "", cid));
    }
    let TreeNode::Shard(top) = parse_node(&cid, &dag.block(&cid)).unwrap() else { panic!("not a shard") };
    let error = list(&dag, &mut DirListing::sharded(top)).unwrap_err();
    assert_eq!(error, SiteError::Tree(TreeError::malformed("HAMT", "a shard below the top is empty")));
}

#[test]
fn shards_that_lead_elsewhere() {
    let mut dag = TestDag::default();
    let dir = dag.dir(&[]);
    let narrow = dag.put(codec::DAG_PB, every_slot(16, "name", dir));
    for (below, why) in
        [(dir, "a shard links to something that is no shard"), (narrow, "a shard has another fanout than the one above it")]
    {
        let top = dag.put(codec::DAG_PB, every_slot(256, "", below));
        let error = walk(&dag, top, "/any").map(|_| ()).unwrap_err();
        assert_eq!(error, SiteError::Tree(TreeError::malformed("HAMT", why)));
    }
}

#[test]
fn block_limits() {
    // A directory that holds itself, asked for a path of 256 names: as many blocks, and no more.
    let me = cid_v1(codec::DAG_PB, [2; 32]);
    let mut dag = TestDag::default();
    dag.insert(me, pb_block(&UnixFs::new(Kind::Directory), &[("a", me)]));
    let walked = walk(&dag, me, &"/a".repeat(256)).unwrap();
    assert_eq!((walked.needed.len(), matches!(walked.answer, Answer::AddSlash)), (257, true));

    // Through shards, six levels each: 256 names would take 1,536 blocks.
    let width_bits = 10;
    let hash = crate::tree::hamt::murmur3_x64_64(b"a");
    let mut top = me;
    for depth in (0..6).rev() {
        let slot = (hash >> (64 - width_bits * (depth + 1)) & 1023) as usize;
        let name = if depth == 5 { "a" } else { "" };
        let block = shard_block(1024, &[(slot, name, top)]);
        top = if depth == 0 { me } else { cid_v1(codec::DAG_PB, sha2_256(&block)) };
        dag.insert(top, block);
    }
    let error = walk(&dag, me, &"/a".repeat(256)).map(|_| ()).unwrap_err();
    assert_eq!(error, SiteError::TooManyBlocks { max: WALK_BLOCKS_MAX });
    assert!(walk(&dag, me, &"/a".repeat(100)).is_ok());
}

#[test]
fn names_that_are_not_utf8_are_listed_but_not_found() {
    let mut dag = TestDag::default();
    let file = dag.raw(b"x");
    let block = crate::tree::dagpb::encode(&crate::tree::dagpb::PbNode {
        data: Some(vec![8, 1].into()),
        links: vec![crate::tree::dagpb::PbLink { cid: file, name: Bytes::from_static(&[b'a', 0xff]), tsize: 1 }],
    });
    let root = dag.put(codec::DAG_PB, block);
    check(&dag, &[("R", root)], root, &[("/", "list R (a\u{fffd}) [R]"), ("/a", "missing a [R]")]);
}

proptest! {
    #[test]
    fn random_blocks_never_panic(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..6), path in "(/[a-z]{0,2}){0,4}") {
        let mut walk = Walk::new(cid_v1(codec::DAG_PB, [0; 32]), SitePath::parse(&path).unwrap());
        for block in blocks {
            let _ = walk.give(Bytes::from(block));
            let _ = walk.step();
        }
    }

    #[test]
    fn damaged_sites_never_panic(at in 0usize..2000, byte in any::<u8>(), path in "(/(a\\.txt|sub|deep|big|link|\\.\\.)){0,3}/?") {
        let mut dag = TestDag::default();
        let names = plain_site(&mut dag);
        let root = named(&names, "ROOT");
        let mut block = dag.block(&root).to_vec();
        let at = at % block.len();
        block[at] = byte;
        dag.insert(root, block);
        let mut walk = Walk::new(root, SitePath::parse(&path).unwrap());
        while let Step::Need(cid) = walk.step() {
            let Some(block) = dag.get(&cid) else { break };
            if walk.give(block).is_err() { break }
        }
        if let Step::Done(Answer::Listing { mut dir, .. }) = walk.step() {
            let _ = list(&dag, &mut dir);
        }
    }
}
