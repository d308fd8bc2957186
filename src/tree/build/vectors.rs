//! The CIDs that kubo gave (`conformance/unixfs-vectors.json` of the shared folder), and what else a build must do.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::*;

/// Checks and keeps what a build hands on.
#[derive(Default)]
struct Blocks {
    cids: HashSet<Cid>,
    leaves: Vec<LeafRow>,
    nodes: Vec<NodeBlock>,
}

impl BlockSink for Blocks {
    fn leaf(&mut self, leaf: LeafRow) {
        assert_eq!(leaf.small.is_some(), leaf.data_len as usize <= SMALL_LEAF_BYTES);
        self.cids.insert(leaf.cid);
        self.leaves.push(leaf);
    }

    fn node(&mut self, node: NodeBlock) {
        assert_eq!(digest(&SHA256, &node.bytes).as_ref(), node.cid.hash().digest());
        assert!(node.links.iter().all(|link| self.cids.contains(link)), "a node before one of its children");
        self.cids.insert(node.cid);
        self.nodes.push(node);
    }
}

/// STREAM(n) of the vectors.
fn stream(bytes: usize) -> Vec<u8> {
    let counters = 0..bytes.div_ceil(32) as u64;
    let mut out: Vec<u8> =
        counters.flat_map(|k| <[u8; 32]>::try_from(digest(&SHA256, &k.to_le_bytes()).as_ref()).unwrap()).collect();
    out.truncate(bytes);
    out
}

fn build_file(profile: Profile, pieces: impl Iterator<Item = impl AsRef<[u8]>>, sink: &mut Blocks) -> Built {
    let mut builder = FileBuilder::new(profile);
    pieces.for_each(|piece| builder.push(piece.as_ref(), sink));
    builder.finish(sink)
}

fn zeros(profile: Profile, bytes: usize) -> Built {
    let piece = vec![0; 1 << 20];
    let whole = std::iter::repeat_n(&piece[..], bytes >> 20);
    build_file(profile, whole.chain([&piece[..bytes & ((1 << 20) - 1)]]), &mut Blocks::default())
}

enum Entry {
    File(String, Vec<u8>),
    Symlink(&'static str, &'static str),
}

fn build_tree(profile: Profile, mut entries: Vec<Entry>) -> Built {
    let path = |entry: &Entry| match entry {
        Entry::File(path, _) => path.clone(),
        Entry::Symlink(path, _) => path.to_string(),
    };
    entries.sort_by_key(path);
    let mut sink = Blocks::default();
    let mut tree = TreeBuilder::new(profile);
    for entry in entries {
        match entry {
            Entry::File(path, bytes) => {
                let file = build_file(profile, [bytes].iter(), &mut sink);
                tree.file(&path, file, &mut sink).unwrap();
            }
            Entry::Symlink(path, target) => tree.symlink(path, target, &mut sink).unwrap(),
        }
    }
    tree.finish(&mut sink).unwrap()
}

fn file(path: &str, bytes: &[u8]) -> Entry {
    Entry::File(path.into(), bytes.into())
}

fn numbered(count: usize) -> Vec<Entry> {
    (0..count).map(|i| file(&format!("file-{i:05}.txt"), format!("{i}\n").as_bytes())).collect()
}

/// Empty files with names of length 100 and two others, as the `hamt-*` vectors say.
fn padded_names(hundreds: usize, last: [usize; 2]) -> Vec<Entry> {
    let lengths = std::iter::repeat_n(100, hundreds).chain(last);
    lengths.enumerate().map(|(i, len)| file(&format!("{:x<len$}", format!("{i:05}")), b"")).collect()
}

/// The input of a vector; `None` if we do not know it.
fn input(id: &str, profile: Profile) -> Option<Built> {
    let stream_file = |bytes: usize| {
        let data = stream(bytes);
        // Small pieces of odd length go the incremental way, whole ones the direct way; both must agree.
        let pieces = build_file(profile, data.chunks(99_991), &mut Blocks::default());
        assert_eq!(pieces, build_file(profile, [&data].into_iter(), &mut Blocks::default()));
        pieces
    };
    let tree = |entries| build_tree(profile, entries);
    Some(match id {
        "stream-empty" => stream_file(0),
        "stream-1-byte" => stream_file(1),
        "stream-5-bytes" => stream_file(5),
        "stream-256KiB-1" => stream_file(262_143),
        "stream-256KiB" => stream_file(262_144),
        "stream-256KiB+1" => stream_file(262_145),
        "stream-1MiB-1" => stream_file(1_048_575),
        "stream-1MiB" => stream_file(1_048_576),
        "stream-1MiB+1" => stream_file(1_048_577),
        "stream-10MiB" => stream_file(10_485_760),
        "stream-174x256KiB" => stream_file(45_613_056),
        "stream-174x256KiB+1" => stream_file(45_613_057),
        "hello-world" => build_file(profile, [b"hello world"].iter(), &mut Blocks::default()),
        "zeros-10MiB" => zeros(profile, 10 << 20),
        "zeros-1GiB" => zeros(profile, 1 << 30),
        "zeros-1GiB+1" => zeros(profile, (1 << 30) + 1),
        "dir-empty" => tree(vec![]),
        "dir-3-files" => tree(vec![file("a.txt", b"a\n"), file("b.bin", &stream(1_048_577)), file("sub/c.txt", b"c\n")]),
        "dir-hidden-default" => tree(vec![file("a.txt", b"a\n")]),
        "dir-hidden-included" => tree(vec![file("a.txt", b"a\n"), file(".hidden", b"h\n")]),
        "dir-symlink" => tree(vec![file("foo", b"content\n"), Entry::Symlink("bar", "foo")]),
        "dir-names" => tree(vec![file("ą/ę/file-źł.txt", b"utf8\n"), file("a b%20c.txt", b"x")]),
        "dir-5000" => tree(numbered(5000)),
        "dir-20000" => tree(numbered(20_000)),
        "hamt-block-bytes-262144" => tree(padded_names(1805, [76, 249])),
        "hamt-block-bytes-262145" => tree(padded_names(1805, [77, 249])),
        "hamt-links-bytes-v0-262144" => tree(padded_names(1955, [53, 53])),
        "hamt-links-bytes-v1-262144" => tree(padded_names(1926, [68, 68])),
        "hamt-links-bytes-v0-262145" => tree(padded_names(1955, [53, 54])),
        "hamt-links-bytes-v1-262145" => tree(padded_names(1926, [68, 69])),
        _ => return None,
    })
}

fn shared() -> Option<PathBuf> {
    let folder = env::var_os("SKYGATE_SHARED").map(PathBuf::from);
    if folder.is_none() {
        println!("SKIPPED: SKYGATE_SHARED does not name the folder with the vectors");
    }
    folder
}

/// Vectors with flags that no profile has (trickle, other chunkers, mode, mtime) are not ours; `--hidden` is.
fn is_reached(vector: &Value) -> bool {
    let flags = vector["extra_add_flags"].as_array();
    flags.is_none_or(|flags| flags.iter().all(|flag| flag == "--hidden"))
}

#[test]
fn cids_are_those_of_kubo() {
    let Some(shared) = shared() else { return };
    let slow = env::var_os("SKYGATE_TIER").is_some_and(|tier| tier == "slow");
    let text = fs::read_to_string(shared.join("conformance/unixfs-vectors.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let (mut vectors, mut right, mut left_out) = (0, 0, 0);
    for vector in all["vectors"].as_array().unwrap().iter().filter(|v| is_reached(v)) {
        vectors += 1;
        let id = vector["id"].as_str().unwrap();
        let cids = vector["cids"].as_object().unwrap();
        if vector["size"].as_u64().is_some_and(|size| size > 1 << 30) && !slow {
            left_out += cids.len();
            println!("{id} is above 1 GiB: left to SKYGATE_TIER=slow");
            continue;
        }
        for profile in Profile::ALL {
            let columns: &[&str] = match profile {
                Profile::UnixfsV0_2015 => &["kubo-default", "unixfs-v0-2015"],
                Profile::CidV1 => &["cidv1-raw-leaves"],
                Profile::UnixfsV1_2025 => &["unixfs-v1-2025"],
            };
            let built = input(id, profile).unwrap_or_else(|| panic!("no input for vector {id}"));
            for column in columns {
                assert_eq!(built.cid.to_string(), cids[*column].as_str().unwrap(), "{id} {profile}");
                right += 1;
            }
            if let Some(size) = vector["size"].as_u64() {
                assert_eq!(built.size, size, "{id} {profile}");
            }
        }
    }
    assert_eq!((vectors, right + left_out), (30, 120));
    println!("{right} CIDs right, {left_out} left out");
}

#[test]
fn leaves_tell_their_blocks() {
    let data = stream(3 * 262_144 + 777);
    for profile in Profile::ALL {
        for bytes in [0, 1, 127, 128, SMALL_LEAF_BYTES, SMALL_LEAF_BYTES + 1, 262_144, data.len()] {
            for piece in [1000, 32_768, 262_144, data.len()] {
                let mut sink = Blocks::default();
                let built = build_file(profile, data[..bytes].chunks(piece), &mut sink);
                let mut tsize = sink.nodes.iter().map(|node| node.bytes.len() as u64).sum::<u64>();
                let mut end = 0;
                for leaf in &sink.leaves {
                    assert_eq!(leaf.file_offset, end);
                    let part = &data[end as usize..][..leaf.data_len as usize];
                    let block = [&leaf.prefix, part, &leaf.suffix].concat();
                    assert_eq!(digest(&SHA256, &block).as_ref(), leaf.cid.hash().digest());
                    assert!(leaf.small.as_ref().is_none_or(|small| small == part));
                    tsize += block.len() as u64;
                    end += u64::from(leaf.data_len);
                }
                assert_eq!((built.size, built.size, built.tsize), (end, bytes as u64, tsize), "{profile} {bytes} {piece}");
            }
        }
    }
}

#[test]
fn leaves_hashed_elsewhere_give_the_same_file() {
    let data = stream(2 * 1_048_576 + 5);
    for profile in Profile::ALL {
        let whole = build_file(profile, [&data].into_iter(), &mut Blocks::default());
        let mut sink = Blocks::default();
        let mut builder = FileBuilder::new(profile);
        for part in data.chunks(profile.chunk_bytes()) {
            builder.push_leaf(hash_leaf(profile, part), &mut sink);
        }
        assert_eq!(builder.finish(&mut sink), whole);
        // An empty file is one leaf, however it is told.
        let mut builder = FileBuilder::new(profile);
        builder.push_leaf(hash_leaf(profile, b""), &mut sink);
        assert_eq!(builder.finish(&mut sink), build_file(profile, [b""].iter(), &mut Blocks::default()));
    }
}

#[test]
fn the_layout_is_balanced_at_every_width() {
    // Leaves of 256 KiB, 174 a node: 174 * 174 + 1 leaves need a third level whose last nodes have one link each.
    let piece = vec![0; 262_144];
    let leaf = hash_leaf(Profile::CidV1, &piece);
    for (leaves, nodes) in [(1, 0), (2, 1), (174, 1), (175, 3), (174 * 174, 175), (174 * 174 + 1, 178)] {
        let mut sink = Blocks::default();
        let mut builder = FileBuilder::new(Profile::CidV1);
        (0..leaves).for_each(|_| builder.push_leaf(leaf.clone(), &mut sink));
        let built = builder.finish(&mut sink);
        assert_eq!((built.size, sink.nodes.len()), (leaves * 262_144, nodes), "{leaves}");
    }
}

fn small_file(sink: &mut Blocks) -> Built {
    build_file(Profile::default(), [b"x"].iter(), sink)
}

/// Gives the paths (a last `/` means a folder) to a tree; the first error, or the paths of its root's links.
fn feed(paths: &[&str]) -> Result<Built, BuildError> {
    let mut sink = Blocks::default();
    let mut tree = TreeBuilder::new(Profile::default());
    for path in paths {
        let checked = tree.check(path.strip_suffix('/').filter(|_| path.len() > 1).unwrap_or(path));
        let done = match path.strip_suffix('/').filter(|_| path.len() > 1) {
            Some(folder) => tree.dir(folder, &mut sink),
            None => {
                let built = small_file(&mut sink);
                tree.file(path, built, &mut sink)
            }
        };
        assert_eq!(checked, done, "check and add must agree on {path:?}");
        done?;
    }
    tree.finish(&mut sink)
}

#[test]
fn paths_that_no_tree_takes() {
    let check = |paths: &[&str], expect: &str| {
        let error = feed(paths).unwrap_err();
        let text = format!("{error:?}");
        assert!(text.starts_with(expect) || text.contains(&format!("fault: {expect}")), "{paths:?}: {text}");
        assert!(error.to_string().len() < 1000);
    };
    let deep = vec!["d"; DEPTH_MAX + 1].join("/");
    let long_name = "n".repeat(NAME_BYTES_MAX + 1);
    let long_path = vec!["n".repeat(250); 17].join("/");
    for (path, fault) in [
        ("", "EmptyName"),
        ("/", "EmptyName"),
        ("/a", "EmptyName"),
        ("a//b", "EmptyName"),
        ("a/b//", "EmptyName"),
        (".", "DotName"),
        ("..", "DotName"),
        ("a/../b", "DotName"),
        ("a/.", "DotName"),
        ("a\0b", "Nul"),
        (&long_name, "NameTooLong"),
        (&deep, "TooDeep"),
        (&long_path, "TooLong"),
        (&"x".repeat(1 << 20), "TooLong"),
    ] {
        check(&[path], fault);
    }
    check(&["a", "a"], "Duplicate");
    check(&["a/", "a"], "Duplicate");
    check(&["b", "a"], "OutOfOrder");
    check(&["a/b", "a.txt"], "OutOfOrder");
    check(&["a/b", "a"], "OutOfOrder");
    check(&["a/b", "c", "a/d"], "OutOfOrder");
    // The file does not stand next to the entry that needs it as a folder.
    check(&["a", "a-b", "a.txt", "a/b"], "FileAsFolder { path: \"a/b\", file: \"a\" }");
    check(&["x/a", "x/a.txt", "x/a/b/c"], "FileAsFolder { path: \"x/a/b/c\", file: \"x/a\" }");
    check(&["x/a-1/f", "x/a-2", "x/a-2/f"], "FileAsFolder");
    assert!(feed(&[&["d"; DEPTH_MAX].join("/"), &"n".repeat(NAME_BYTES_MAX)]).is_ok());
    for odd in ["...", "..a", ".a", " ", "a\\b", "%2e%2e", "\u{202e}", "a:b", "-"] {
        assert!(feed(&[odd]).is_ok(), "{odd:?}");
    }
}

#[test]
fn folders_named_by_themselves() {
    // Naming a folder that has entries changes nothing, near or far from its entries.
    let plain = feed(&["a-b", "a.txt", "a/b", "c/d/e"]).unwrap();
    assert_eq!(feed(&["a/", "a-b", "a.txt", "a/b", "c/", "c/d/", "c/d/e"]).unwrap(), plain);
    assert_ne!(feed(&["a-b", "a.txt", "a/b", "b/", "c/d/e"]).unwrap().cid, plain.cid);
    // An empty folder in an empty folder.
    let mut sink = Blocks::default();
    let mut tree = TreeBuilder::new(Profile::UnixfsV0_2015);
    tree.dir("a", &mut sink).unwrap();
    let root = tree.finish(&mut sink).unwrap();
    assert_eq!(sink.nodes[0].cid.to_string(), "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn");
    assert_eq!(sink.nodes.last().unwrap().links, [sink.nodes[0].cid]);
    assert_eq!((root.size, root.tsize), (0, 4 + sink.nodes[1].bytes.len() as u64));
}

#[test]
fn targets_of_symlinks() {
    let mut sink = Blocks::default();
    let link = |target: &str, sink: &mut Blocks| TreeBuilder::new(Profile::default()).symlink("l", target, sink);
    assert!(link("../../etc/passwd", &mut sink).is_ok(), "kept as it is: whoever follows it must look");
    assert!(link("", &mut sink).is_ok());
    assert!(matches!(link("a\0", &mut sink), Err(BuildError::BadTarget { .. })));
    assert!(matches!(link(&"t".repeat(TARGET_BYTES_MAX + 1), &mut sink), Err(BuildError::BadTarget { .. })));
    assert_eq!(sink.nodes.len(), 2, "nothing is handed on for a refused target");
}

#[test]
fn a_folder_has_a_most_of_entries() {
    let mut sink = Blocks::default();
    let built = small_file(&mut sink);
    let mut tree = TreeBuilder::new(Profile::default());
    for i in 0..FOLDER_ENTRIES_MAX {
        tree.file(&format!("f/{i:07}"), built, &mut sink).unwrap();
    }
    let full = BuildError::TooManyEntries { folder: "f".into() };
    assert_eq!(tree.file("f/x", built, &mut sink), Err(full));
    // Other folders are not concerned, and this one can be closed: its shards are handed on.
    tree.file("g", built, &mut sink).unwrap();
    let root = tree.finish(&mut sink).unwrap();
    assert_eq!(root.size, FOLDER_ENTRIES_MAX as u64 + 1);
}

#[test]
fn names_with_one_hash_are_refused() {
    let row = |name| super::hamt::ShardRow { hash: 7, name, cid: b"", tsize: 0 };
    let rows = vec![row(b"a"), row(b"b")];
    assert!(super::hamt::build(Profile::default(), rows, &mut Blocks::default()).is_err());
    // Hashes that differ in their last bit only go eight levels deep.
    let cid = Bytes::from(Profile::default().leaf_cid([1; 32]).to_bytes());
    let row = |hash, name| super::hamt::ShardRow { hash, name, cid: &cid, tsize: 1 };
    let mut sink = Blocks::default();
    sink.cids.insert(Profile::default().leaf_cid([1; 32]));
    super::hamt::build(Profile::default(), vec![row(6, &b"a"[..]), row(7, b"b")], &mut sink).unwrap();
    assert_eq!(sink.nodes.len(), 8);
}
