//! CIDs equal to kubo's, through `skygate add`, and back through `skygate get`: vectors of
//! `conformance/unixfs-vectors.json` whose inputs the three profiles and `--hidden` reach.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use compat_tests::{Gateway, Tier, binary, shared, tier};
use ring::digest::{SHA256, digest};
use serde_json::Value;

/// Which column of the vectors each profile gives.
const PROFILES: [(&str, &str); 3] =
    [("unixfs-v1-2025", "unixfs-v1-2025"), ("unixfs-v0-2015", "unixfs-v0-2015"), ("cid-v1", "cidv1-raw-leaves")];

/// Vectors that take long.
const SLOW: [&str; 5] = ["zeros-1GiB", "zeros-1GiB+1", "dir-20000", "stream-174x256KiB", "stream-174x256KiB+1"];

/// STREAM(n) of the vectors.
fn stream(bytes: usize) -> Vec<u8> {
    let counters = 0..bytes.div_ceil(32) as u64;
    let mut out: Vec<u8> =
        counters.flat_map(|k| <[u8; 32]>::try_from(digest(&SHA256, &k.to_le_bytes()).as_ref()).expect("32 bytes")).collect();
    out.truncate(bytes);
    out
}

/// Makes the input of a vector at `at`; false if it is not known here.
fn make(id: &str, at: &Path) -> bool {
    let write = |bytes: &[u8]| std::fs::write(at, bytes).expect("written");
    let in_folder = |files: &[(&str, &[u8])]| {
        std::fs::create_dir_all(at).expect("made");
        for (path, bytes) in files {
            let place = at.join(path);
            std::fs::create_dir_all(place.parent().expect("below")).expect("made");
            std::fs::write(place, bytes).expect("written");
        }
    };
    let numbered = |count: usize| {
        std::fs::create_dir_all(at).expect("made");
        (0..count).for_each(|i| std::fs::write(at.join(format!("file-{i:05}.txt")), format!("{i}\n")).expect("written"));
    };
    let padded = |hundreds: usize, last: [usize; 2]| {
        std::fs::create_dir_all(at).expect("made");
        let lengths = std::iter::repeat_n(100, hundreds).chain(last);
        lengths
            .enumerate()
            .for_each(|(i, length)| drop(File::create(at.join(format!("{:x<length$}", format!("{i:05}")))).expect("made")));
    };
    match id {
        "stream-empty" => write(b""),
        "stream-1-byte" => write(&stream(1)),
        "stream-5-bytes" => write(&stream(5)),
        "stream-256KiB-1" => write(&stream(262_143)),
        "stream-256KiB" => write(&stream(262_144)),
        "stream-256KiB+1" => write(&stream(262_145)),
        "stream-1MiB-1" => write(&stream(1_048_575)),
        "stream-1MiB" => write(&stream(1_048_576)),
        "stream-1MiB+1" => write(&stream(1_048_577)),
        "stream-10MiB" => write(&stream(10_485_760)),
        "stream-174x256KiB" => write(&stream(45_613_056)),
        "stream-174x256KiB+1" => write(&stream(45_613_057)),
        "hello-world" => write(b"hello world"),
        "zeros-10MiB" => File::create(at).and_then(|file| file.set_len(10 << 20)).expect("made"),
        "zeros-1GiB" => File::create(at).and_then(|file| file.set_len(1 << 30)).expect("made"),
        "zeros-1GiB+1" => File::create(at).and_then(|file| file.set_len((1 << 30) + 1)).expect("made"),
        "dir-empty" => in_folder(&[]),
        "dir-3-files" => in_folder(&[("a.txt", b"a\n"), ("b.bin", &stream(1_048_577)), ("sub/c.txt", b"c\n")]),
        "dir-hidden-default" | "dir-hidden-included" => in_folder(&[("a.txt", b"a\n"), (".hidden", b"h\n")]),
        "dir-symlink" => {
            in_folder(&[("foo", b"content\n")]);
            symlink("foo", at.join("bar")).expect("made");
        }
        "dir-names" => in_folder(&[("ą/ę/file-źł.txt", b"utf8\n"), ("a b%20c.txt", b"x")]),
        "dir-5000" => numbered(5000),
        "dir-20000" => numbered(20_000),
        "hamt-block-bytes-262144" => padded(1805, [76, 249]),
        "hamt-block-bytes-262145" => padded(1805, [77, 249]),
        "hamt-links-bytes-v0-262144" => padded(1955, [53, 53]),
        "hamt-links-bytes-v1-262144" => padded(1926, [68, 68]),
        "hamt-links-bytes-v0-262145" => padded(1955, [53, 54]),
        "hamt-links-bytes-v1-262145" => padded(1926, [68, 69]),
        _ => return false,
    }
    true
}

#[test]
fn cids_are_those_of_kubo() {
    let Some(shared) = shared() else { return };
    let text = std::fs::read_to_string(shared.join("conformance/unixfs-vectors.json")).expect("the vectors are there");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let (mut right, mut later) = (0, 0);
    for vector in all["vectors"].as_array().expect("a list") {
        let id = vector["id"].as_str().expect("an id");
        let flags: Vec<&str> = vector["extra_add_flags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if flags.iter().any(|flag| *flag != "--hidden") {
            continue;
        }
        if SLOW.contains(&id) && tier() < Tier::Slow {
            later += PROFILES.len();
            continue;
        }
        let input = folder.path().join("input");
        assert!(make(id, &input), "the input of {id} is not known here");
        for (profile, column) in PROFILES {
            let added = gateway
                .add(&input, &[&["--profile", profile], &flags[..]].concat())
                .unwrap_or_else(|error| panic!("{id}: {error}\n{}", gateway.log()));
            assert_eq!(added["cid"], vector["cids"][column], "{id} with {profile}");
            right += 1;
        }
        // The last profile's CID, back on a disk.
        let cid = vector["cids"]["unixfs-v1-2025"].as_str().expect("a CID");
        let output = folder.path().join("output");
        let got = gateway.command(&["get", cid, "-o", output.to_str().expect("UTF-8")]);
        assert!(got.status.success(), "get {id}: {}\n{}", String::from_utf8_lossy(&got.stderr), gateway.log());
        if id == "dir-hidden-default" {
            std::fs::remove_file(input.join(".hidden")).expect("removed");
        }
        let same =
            Command::new("diff").arg("-r").arg("--no-dereference").args([&input, &output]).output().expect("diff can be run");
        assert!(
            same.status.success(),
            "{id} came back other: {}",
            String::from_utf8_lossy(&same.stdout).chars().take(500).collect::<String>()
        );
        for path in [&input, &output] {
            if path.is_dir() {
                std::fs::remove_dir_all(path).expect("removed");
            } else {
                std::fs::remove_file(path).expect("removed");
            }
        }
    }
    println!("{right} CIDs are right, {later} are for the slow tier");
    assert_eq!(right + later, 90, "30 vectors, three profiles");
}

/// Without flags the profile is unixfs-v1-2025, and stdin is not read.
#[test]
fn the_default_profile() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let input = folder.path().join("hello");
    File::create(&input).and_then(|mut file| file.write_all(b"hello world")).expect("written");
    let added = gateway.add(&input, &[]).expect("added");
    assert_eq!(added["cid"], "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
    let wrong = Command::new(binary()).args(["add", "--profile", "unixfs-v9"]).arg(&input).output().expect("it can be run");
    assert_eq!(wrong.status.code(), Some(2));
}
