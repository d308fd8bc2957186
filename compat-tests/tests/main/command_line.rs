//! The command line against a running gateway: `add`, `get`, `pin`, `hosts`, `check`, `key`, and what each says when it
//! cannot.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use compat_tests::content::{Added, Content, Item};
use compat_tests::{Gateway, binary, seeded_bytes};
use serde_json::Value;

fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).env_remove("SKYGATE_DATA").output().expect("it can be run")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Not with `--json`, as a person sees it.
fn as_a_person(gateway: &Gateway, args: &[&str]) -> Output {
    run(&[args, &["--api", &gateway.admin, "--data", path(&gateway.data)]].concat())
}

fn site() -> Content {
    Content::folder(
        "site",
        [
            ("index.html".to_owned(), Item::File(b"<h1>home</h1>".to_vec())),
            ("a/b/deep.txt".to_owned(), Item::File(b"deep".to_vec())),
            ("link".to_owned(), Item::Symlink("a/b/deep.txt".to_owned())),
            ("dangling".to_owned(), Item::Symlink("/nowhere/at/all".to_owned())),
            ("empty".to_owned(), Item::Folder),
            ("large.bin".to_owned(), Item::File(seeded_bytes(1, 10 << 20))),
            ("odd \"name\" ąę%41.txt".to_owned(), Item::File(b"odd".to_vec())),
            ("none.txt".to_owned(), Item::File(Vec::new())),
        ],
    )
}

#[tokio::test]
async fn a_folder_goes_in_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let (content, input) = (site(), folder.path().join("site"));
    content.write_to(&input);
    let added = Added::of(&gateway.add(&input, &[]).expect("added"));
    assert_eq!(added.cid, content.cid());
    assert_eq!((added.files, added.size_bytes), (5, content.size_bytes()));
    content.assert_read_back(&gateway, &added).await;
    for (index, address) in [added.cid.clone(), format!("/ipfs/{}", added.cid), format!("ipfs://{}", added.cid)].iter().enumerate()
    {
        let output = folder.path().join(format!("out {index}"));
        let got = gateway.command(&["get", address, "-o", path(&output)]);
        assert!(got.status.success(), "{address}: {}", text(&got));
        content.compare_with(&output).unwrap_or_else(|error| panic!("{address}: {error}"));
    }
    // By skylink: its files, for symlinks and empty folders exist only in the DAG.
    let output = folder.path().join("sky");
    let got = gateway.command(&["get", &format!("sia://{}", added.skylink()), "-o", path(&output)]);
    assert!(got.status.success(), "{}", text(&got));
    for (name, bytes) in content.files() {
        assert!(fs::read(output.join(name)).is_ok_and(|found| found == bytes), "{name}");
    }
    // Parts of it: a folder, a file into a file, a file to stdout.
    let part = folder.path().join("part");
    assert!(gateway.command(&["get", &format!("{}/a", added.cid), "-o", path(&part)]).status.success());
    assert_eq!(fs::read(part.join("b/deep.txt")).expect("there"), b"deep");
    let file = folder.path().join("file.txt");
    fs::write(&file, "old").expect("written");
    assert!(gateway.command(&["get", &format!("/ipfs/{}/a/b/deep.txt", added.cid), "-o", path(&file)]).status.success());
    assert_eq!(fs::read(&file).expect("there"), b"deep", "replaced when it is whole");
    let printed = as_a_person(&gateway, &["get", &format!("{}/a/b/deep.txt", added.cid)]);
    assert_eq!((printed.status.code(), printed.stdout.as_slice()), (Some(0), &b"deep"[..]));
    let odd = as_a_person(&gateway, &["get", &format!("sia://{}/odd%20%22name%22%20%C4%85%C4%99%2541.txt", added.skylink())]);
    assert_eq!(odd.stdout, b"odd", "{}", text(&odd));
}

#[tokio::test]
async fn one_file_goes_in_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let content = Content::file("film.mp4", seeded_bytes(2, 27 << 20));
    let input = folder.path().join("film.mp4");
    content.write_to(&input);
    let added = Added::of(&gateway.add(&input, &[]).expect("added"));
    assert_eq!((added.files, added.durability.as_str()), (1, "complete"));
    content.assert_read_back(&gateway, &added).await;
    assert!(
        gateway
            .get(&format!("/{}", added.skylink()))
            .await
            .header("content-disposition")
            .is_some_and(|value| value.contains(".mp4") || value.contains("holiday"))
    );
    let output = folder.path().join("back.mp4");
    assert!(gateway.command(&["get", added.skylink(), "-o", path(&output)]).status.success());
    content.compare_with(&output).expect("the same");
    let named = Added::of(&gateway.add(&input, &["--name", "holiday"]).expect("added"));
    assert_eq!(named.cid, added.cid);
    assert!(text(&as_a_person(&gateway, &["pin", "ls"])).contains("holiday"), "the name is the pin's");
    // A symlink named by the user means what it points to; where `get` writes, it is replaced, not followed.
    let (link, target) = (folder.path().join("link"), folder.path().join("target"));
    fs::write(&target, "mine").expect("written");
    symlink(&target, &link).expect("made");
    assert_eq!(gateway.add(&link, &[]).expect("added")["size_bytes"], 4);
    assert!(gateway.command(&["get", &added.cid, "-o", path(&link)]).status.success());
    assert_eq!(fs::read(&target).expect("there"), b"mine", "what the link points to is untouched");
    content.compare_with(&link).expect("the link gave way to the file");
}

#[tokio::test]
async fn what_add_leaves_out_and_what_it_keeps() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let input = folder.path().join("site");
    let kept = Content::files_of("site", &[(".well-known/security.txt", b"Contact: us"), ("a.txt", b"a"), ("d/b.txt", b"b")]);
    kept.write_to(&input);
    for hidden in [".git/config", ".env", "d/.DS_Store"] {
        let place = input.join(hidden);
        fs::create_dir_all(place.parent().expect("below")).expect("made");
        fs::write(place, "secret").expect("written");
    }
    let _socket = UnixListener::bind(input.join("socket")).expect("bound");
    assert!(Command::new("mkfifo").arg(input.join("pipe")).status().expect("mkfifo").success());
    let output = gateway.command(&["add", path(&input)]);
    assert!(output.status.success(), "{}", text(&output));
    let added = Added::of(
        &serde_json::from_slice(output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).expect("a line"))
            .expect("JSON"),
    );
    assert_eq!(added.cid, kept.cid(), "hidden names but .well-known are left out");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains('3') && said.contains("hidden") && said.contains('2') && said.contains("socket"),
        "counts are said: {said}"
    );
    fs::remove_file(input.join("pipe")).expect("removed");
    fs::remove_file(input.join("socket")).expect("removed");
    let all = Added::of(&gateway.add(&input, &["--hidden"]).expect("added"));
    assert_eq!(all.files, 6);
    assert_eq!(gateway.get(&format!("/ipfs/{}/.git/config", all.cid)).await.text(), "secret");
}

/// Either everything is stored as it was at one moment, or nothing is.
#[tokio::test]
async fn a_file_that_changes_while_it_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    gateway.catalog_complete().await;
    let before = gateway.admin_json("/api/v1/pins?limit=1000").await["pins"].as_array().expect("a list").len();
    let input = folder.path().join("growing.log");
    fs::File::create(&input).and_then(|file| file.set_len(400 << 20)).expect("made");
    let mut adding = Command::new(binary());
    adding.args(["add", path(&input), "--json", "--api", &gateway.admin, "--data", path(&gateway.data)]);
    let mut adding = adding.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be run");
    // It grows all the time, so it grows between the look before and the look after.
    let mut file = fs::OpenOptions::new().append(true).open(&input).expect("open");
    while adding.try_wait().expect("waitable").is_none() {
        file.write_all(b"one more line\n").expect("written");
    }
    let output = adding.wait_with_output().expect("it ended");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("growing.log") && text(&output).contains("changed"), "{}", text(&output));
    let after = gateway.admin_json("/api/v1/pins?limit=1000").await["pins"].as_array().expect("a list").len();
    assert_eq!(after, before);
}

#[tokio::test]
async fn get_writes_only_where_it_was_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).expect("made");
    let content = Content::folder(
        "tricky",
        [
            ("escape".to_owned(), Item::Symlink(path(&outside).to_owned())),
            ("sub/file.txt".to_owned(), Item::File(b"inside".to_vec())),
            ("up".to_owned(), Item::Symlink("../../..".to_owned())),
        ],
    );
    let added = gateway.upload(&content).await;
    let output = folder.path().join("out");
    assert!(gateway.command(&["get", &added.cid, "-o", path(&output)]).status.success());
    content.compare_with(&output).expect("links are made as they are");
    assert_eq!(fs::read_dir(&outside).expect("readable").count(), 0, "and never written through");

    // A target that is taken is left as it is, also where it is a link to somewhere else.
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).expect("made");
    symlink(&outside, taken.join("sub")).expect("made");
    let link = folder.path().join("link");
    symlink(&outside, &link).expect("made");
    for target in [&taken, &link] {
        let refused = gateway.command(&["get", &added.cid, "-o", path(target)]);
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert_eq!(fs::read_dir(&outside).expect("readable").count(), 0);
    }
    // What is not there, or breaks off, leaves nothing behind.
    let listed = |folder: &Path| fs::read_dir(folder).expect("readable").count();
    let before = listed(folder.path());
    for address in [format!("{}/nothing", added.cid), "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".to_owned()] {
        let missing = gateway.command(&["get", &address, "-o", path(&folder.path().join("missing"))]);
        assert_eq!(missing.status.code(), Some(1), "{address}: {}", text(&missing));
    }
    assert_eq!(listed(folder.path()), before, "no half files");
    let folder_to_stdout = as_a_person(&gateway, &["get", &added.cid]);
    assert_eq!(folder_to_stdout.status.code(), Some(2));
    assert!(text(&folder_to_stdout).contains("-o"), "{}", text(&folder_to_stdout));
    assert_eq!(gateway.command(&["get", "nonsense", "-o", "x"]).status.code(), Some(2));
}

#[tokio::test]
async fn pins_and_hosts() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let content = Content::files_of("my site", &[("index.html", b"<h1>mine</h1>"), ("b.bin", &seeded_bytes(4, 100_000))]);
    let input = folder.path().join("my site");
    content.write_to(&input);
    let added = Added::of(&gateway.add(&input, &[]).expect("added"));
    let pins = || -> Vec<Value> {
        let listed = gateway.command(&["pin", "ls"]);
        assert!(listed.status.success(), "{}", text(&listed));
        String::from_utf8_lossy(&listed.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .collect()
    };
    let pin = pins().into_iter().find(|pin| pin["cid"] == added.cid.as_str()).expect("it is listed");
    assert_eq!((&pin["name"], &pin["files"], &pin["skylink"]), (&"my site".into(), &2.into(), &added.skylink().into()));
    let shown = text(&as_a_person(&gateway, &["pin", "ls"]));
    assert!(shown.contains("my site") && shown.contains(&added.cid), "{shown}");

    let hosts = gateway.command(&["hosts"]);
    let hosts: Value = serde_json::from_slice(&hosts.stdout).expect("JSON");
    let hosts = hosts["hosts"].as_array().expect("a list");
    assert_eq!(hosts.len(), 9);
    for host in hosts {
        assert_eq!(host["state"], "up");
        for number in ["failures", "wrong_pieces"] {
            assert_eq!(host[number], 0, "{number}");
        }
        assert!(host["used_bytes"].as_u64().is_some() && host["free_bytes"].as_u64().is_some(), "{host}");
        assert!(host["latency_ms"].as_object().is_some_and(|quantiles| quantiles.values().all(Value::is_number)), "{host}");
    }
    let shown = text(&as_a_person(&gateway, &["hosts"]));
    assert!(shown.contains("STATE") && shown.matches("up").count() >= 9, "{shown}");

    for (address, code) in [
        (format!("/ipfs/{}/b.bin", added.cid), 2),
        ("nonsense".to_owned(), 2),
        (format!("/ipfs/{}", added.cid), 0),
        (added.cid.clone(), 1),
    ] {
        let removed = gateway.command(&["pin", "rm", &address]);
        assert_eq!(removed.status.code(), Some(code), "{address}: {}", text(&removed));
    }
    assert!(!pins().iter().any(|pin| pin["cid"] == added.cid.as_str()));
    assert_eq!(gateway.get(&format!("/ipfs/{}/index.html", added.cid)).await.status, 404);
    assert_eq!(gateway.get(&format!("/{}/", added.skylink())).await.status, 404);
    let again = Added::of(&gateway.add(&input, &[]).expect("added"));
    assert!(gateway.command(&["pin", "rm", again.skylink()]).status.success(), "by skylink as well");
    assert_eq!(gateway.get(&format!("/ipfs/{}/index.html", added.cid)).await.status, 404);
}

/// A failure is one line on stderr that says what to do, and an exit code that tells the kinds apart.
#[tokio::test]
async fn failures_say_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let file = folder.path().join("f");
    fs::write(&file, "x").expect("written");
    let wrong_key = folder.path().join("wrong");
    fs::write(&wrong_key, "0".repeat(64)).expect("written");
    let (api, data) = (gateway.admin.as_str(), path(&gateway.data));
    let nowhere = path(folder.path()).to_owned() + "/nowhere";
    let rows: Vec<(&str, Vec<&str>, i32, &str)> = vec![
        ("no gateway", vec!["add", path(&file), "--api", "http://127.0.0.1:1", "--data", data], 3, "skygate serve"),
        ("no key", vec!["add", path(&file), "--api", api, "--data", &nowhere], 4, "--data"),
        ("a wrong key", vec!["add", path(&file), "--api", api, "--key-file", path(&wrong_key)], 4, "key"),
        ("a missing file", vec!["add", &nowhere, "--api", api, "--data", data], 1, "nowhere"),
        ("a device", vec!["add", "/dev/null", "--api", api, "--data", data], 1, "neither"),
        ("no path", vec!["add"], 2, "PATH"),
        ("an unknown command", vec!["frobnicate"], 2, "frobnicate"),
        ("an unknown flag", vec!["add", path(&file), "--frobnicate"], 2, "--frobnicate"),
        ("the public listener", vec!["pin", "ls", "--api", &gateway.public, "--data", data], 1, ""),
        ("a URL that is none", vec!["pin", "ls", "--api", "here", "--data", data], 2, "--api"),
    ];
    for (what, args, code, words) in rows {
        let output = run(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{what}: {}", text(&output));
        assert!(said.contains(words), "{what}: {said}");
        assert!(output.stdout.is_empty(), "{what}: errors go to stderr");
        assert!(!said.contains("panicked"), "{what}: {said}");
    }
}

#[test]
fn help_teaches() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let shown = text(&help);
    for word in ["serve", "add", "get", "pin", "hosts", "check", "key", "Examples"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    for command in [
        &["serve"][..],
        &["add"],
        &["get"],
        &["pin", "ls"],
        &["pin", "rm"],
        &["hosts"],
        &["check"],
        &["key", "export"],
        &["key", "import"],
    ] {
        let help = run(&[command, &["--help"]].concat());
        assert_eq!(help.status.code(), Some(0), "{command:?}");
        assert!(text(&help).contains("--data"), "{command:?}");
    }
    assert!(text(&run(&["--version"])).starts_with("skygate "));
}

#[test]
fn check_explains_a_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("c.toml");
    let explain = |written: &str| {
        fs::write(&config, written).expect("written");
        let output = run(&["check", "--config", path(&config), "--data", path(&folder.path().join("data"))]);
        (output.status.code(), text(&output))
    };
    let (code, said) = explain("");
    assert_eq!(code, Some(0), "{said}");
    for words in ["127.0.0.1:8080", "127.0.0.1:8081", "any 2 hosts", "any 3 hosts", "nothing but bugs"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!folder.path().join("data").exists(), "nothing is made");
    for (written, words) in CONFIG_FAULTS {
        let (code, said) = explain(written);
        assert_eq!(code, Some(1), "{written}: {said}");
        assert!(said.contains(words), "{written}: {said}");
    }
}

/// What cannot run, and the words that name it.
pub const CONFIG_FAULTS: &[(&str, &str)] = &[
    ("[store]\nmemory_byte = 1\n", "memory_byte"),
    ("[stor]\n", "stor"),
    ("[listen]\npublic = \"here\"\n", "public"),
    ("[redundancy]\ndata_pieces = 20\n", "allow_shared_hosts"),
    ("[redundancy]\npreset = \"skynet\"\n", "allow_shared_hosts"),
    ("[redundancy]\npreset = \"huge\"\n", "skynet"),
    ("[redundancy]\ndata_pieces = 0\n", "data_pieces"),
    ("[[hosts]]\nurl = \"http://example.com\"\n", "file:"),
    ("[[hosts]]\nurl = \"file:a\"\n[[hosts]]\nurl = \"file:a\"\n", "same folder"),
    ("[limits]\nconnections = 0\n", "connections"),
    ("[store]\nmemory_bytes = \"many\"\n", "128 MiB"),
    ("this is no TOML", "c.toml"),
];

#[test]
fn the_portal_key_moves_as_a_phrase() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    assert_eq!(run(&["key", "export", "--data", path(&first)]).status.code(), Some(1), "there is none yet");
    assert!(Gateway::start(&first).stop().success());
    let exported = run(&["key", "export", "--data", path(&first)]);
    let phrase = String::from_utf8_lossy(&exported.stdout).trim().to_owned();
    assert_eq!((exported.status.code(), phrase.split(' ').count()), (Some(0), 24), "{}", text(&exported));
    let import = |data: &Path, phrase: &str| {
        let mut command = Command::new(binary());
        command.args(["key", "import", "--data", path(data)]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it can be run");
        child.stdin.take().expect("piped").write_all(phrase.as_bytes()).expect("given");
        child.wait_with_output().expect("it ends")
    };
    let swapped: Vec<&str> = phrase.split(' ').rev().collect();
    for (what, wrong) in [
        ("nothing", String::new()),
        ("no words", "1 2 3".to_owned()),
        ("a word short", phrase.rsplit_once(' ').expect("words").0.to_owned()),
        ("another order", swapped.join(" ")),
    ] {
        let refused = import(&second, &wrong);
        // One order in 256 passes the checksum by chance; it is another portal then.
        if what != "another order" {
            assert!(!refused.status.success(), "{what}: {}", text(&refused));
            assert!(!second.join("keys/portal").exists(), "{what}");
        }
    }
    let third = folder.path().join("third");
    let imported = import(&third, &format!("\n  {}\n", phrase.replace(' ', "  \n")));
    assert!(imported.status.success(), "{}", text(&imported));
    assert_eq!(fs::read(first.join("keys/portal")).expect("there"), fs::read(third.join("keys/portal")).expect("there"));
    let mode = fs::metadata(third.join("keys/portal")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!import(&first, &phrase).status.success(), "a portal key is not overwritten");
}
