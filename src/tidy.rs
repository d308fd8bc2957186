//! Test only: rules about the source itself. Which room may use which (the arrows of `lib.rs`), and a ratchet on the
//! length of functions. Test code (`#[cfg(test)]` modules and the files they name) is not looked at.
//!
//! The source is read as text, after comments, strings and test code are blanked: enough for `crate::room`, for groups
//! behind `use crate::`, and for `super::` that climbs out of a room.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Who may use whom; complete. Adding an edge is rare and gets its own change, with the reason.
const ARROWS: &[(&str, &[&str])] = &[
    ("http", &["names", "records", "access", "deny", "site", "store", "ingest", "tree", "address", "measure", "renter"]),
    ("ingest", &["store", "tree", "sector", "address", "measure"]),
    ("store", &["records", "renter", "deny", "tree", "sector", "address", "measure"]),
    ("names", &["records", "address", "measure"]),
    ("access", &["records", "address"]),
    ("records", &["renter", "address", "measure"]),
    ("renter", &["sector", "measure"]),
    ("site", &["tree", "address"]),
    ("tree", &["sector", "address"]),
    ("deny", &["address"]),
    ("address", &[]),
    ("sector", &[]),
    ("measure", &[]),
    ("config", &[]),
    ("cli", &["config", "address", "measure", "node"]),
    // The wiring knows everybody but the command line, and nobody else knows it.
    (
        "node",
        &[
            "access", "address", "config", "deny", "http", "ingest", "measure", "names", "records", "renter", "sector", "site",
            "store", "tree",
        ],
    ),
    ("main", &["cli", "node", "config"]),
];

/// One screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that were longer when the ratchet came, with their lines. A number may shrink and a row may go; neither
/// may grow or come.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    // One exhaustive table of errors; cut in two it would be harder to read.
    ("http/refusal.rs", "row", 158),
];

#[test]
fn rooms_use_only_the_rooms_they_may() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let room = room_of(&file);
        if room == "lib" {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == room) else {
            wrong.push(format!("{file}: the room `{room}` is not in the table of arrows"));
            continue;
        };
        for used in rooms_used(&text, depth_of(&file)) {
            if used != room && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{file}: `{room}` may not use `{used}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows between rooms (see src/tidy.rs):\n{}", wrong.join("\n"));
}

#[test]
fn functions_fit_a_screen() {
    let mut wrong = Vec::new();
    let mut known: BTreeMap<(String, String), usize> =
        LONG_FUNCTIONS.iter().map(|(file, name, lines)| (((*file).to_owned(), (*name).to_owned()), *lines)).collect();
    for (file, text) in sources() {
        for (name, lines) in functions(&text) {
            let key = (file.clone(), name);
            match known.get(&key).copied() {
                None if lines > FUNCTION_LINES_MAX => {
                    wrong.push(format!("{file}: `{}` has {lines} lines, at most {FUNCTION_LINES_MAX} fit a screen", key.1));
                }
                Some(limit) if lines > limit => wrong.push(format!("{file}: `{}` grew from {limit} to {lines} lines", key.1)),
                Some(limit) if lines == limit => drop(known.remove(&key)),
                // A namesake of a long function, or the long one made shorter: then its row stays, and is told below.
                None | Some(_) => {}
            }
        }
    }
    let shrunk =
        known.into_iter().map(|((file, name), lines)| format!("{file}: `{name}` no longer has {lines} lines: shrink its row"));
    wrong.extend(shrunk);
    assert!(wrong.is_empty(), "function lengths (see src/tidy.rs):\n{}", wrong.join("\n"));
}

/// Every file that is not test code, by its path below `src`, with comments, strings and test modules blanked.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let mut tests = BTreeSet::new();
    let mut sources = Vec::new();
    for path in files {
        let text = blank_comments_and_strings(&std::fs::read_to_string(&path).expect("source files are readable"));
        let (text, test_modules) = blank_tests(&text);
        let folder = module_folder(&path);
        for name in test_modules {
            tests.insert(folder.join(format!("{name}.rs")));
            tests.insert(folder.join(name));
        }
        sources.push((path, text));
    }
    sources.retain(|(path, _)| !path.ancestors().any(|above| tests.contains(above)));
    assert!(sources.len() > 20, "only {} source files were found", sources.len());
    let name = |path: &Path| path.strip_prefix(&root).expect("all lie below src").to_string_lossy().into_owned();
    sources.into_iter().map(|(path, text)| (name(&path), text)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("source folders are readable") {
        let path = entry.expect("source folders are readable").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
}

/// Where the files of a file's modules lie.
fn module_folder(path: &Path) -> PathBuf {
    let parent = path.parent().expect("a file has a folder");
    match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => parent.to_owned(),
        _ => path.with_extension(""),
    }
}

/// First part of the path: `store/pin.rs` is of `store`, `config.rs` of `config`.
fn room_of(file: &str) -> String {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs").to_owned()
}

/// How many `super` lead out of the file's module to the crate's root.
fn depth_of(file: &str) -> usize {
    let names = file.split('/').count();
    if file.ends_with("mod.rs") { names - 1 } else { names }
}

/// Comments, strings and characters become spaces; lines stay where they are.
fn blank_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => end_of_line(bytes, at),
            [b'/', b'*', ..] => end_of_block_comment(bytes, at),
            [b'"', ..] => end_of_string(bytes, at + 1),
            [b'r', b'"' | b'#', ..] if at == 0 || !is_name(bytes[at - 1]) || bytes[at - 1] == b'b' => {
                end_of_raw_string(bytes, at + 1)
            }
            [b'\'', ..] => end_of_char(bytes, at),
            _ => at,
        };
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
            at = end;
        }
    }
    String::from_utf8(out).expect("only ASCII was put in, and whole characters were kept")
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn end_of_line(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |line| at + line)
}

fn end_of_block_comment(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `at` is behind the `r`. A raw name (`r#type`) is no string.
fn end_of_raw_string(bytes: &[u8], at: usize) -> usize {
    let hashes = bytes[at..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(at + hashes) != Some(&b'"') {
        return at - 1;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = at + hashes + 1;
    bytes[body..].windows(close.len()).position(|window| window == close).map_or(bytes.len(), |found| body + found + close.len())
}

/// A lifetime has no closing quote, and is left alone.
fn end_of_char(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        return bytes[at + 3..].iter().position(|byte| *byte == b'\'').map_or(bytes.len(), |close| at + 3 + close + 1);
    }
    // One character has at most four bytes; its first is no name of a lifetime if a quote follows it at once.
    let text = &bytes[at + 1..bytes.len().min(at + 6)];
    let length = text.iter().skip(1).take_while(|byte| **byte & 0xc0 == 0x80).count() + 1;
    if text.get(length) == Some(&b'\'') { at + 1 + length + 1 } else { at }
}

/// Blanks what stands behind `#[cfg(test)]`, and tells the modules among it that have a file of their own.
fn blank_tests(text: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let mut out = text.to_owned();
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(found) = out[from..].find(MARK) {
        let start = from + found;
        let item = start + MARK.len();
        let end = end_of_item(out.as_bytes(), item);
        let mut words = out[item..end].split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        if out[item..end].ends_with(';') && words.any(|word| word == "mod") {
            modules.extend(words.next().map(str::to_owned));
        }
        let blank: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        from = start + blank.len();
        out.replace_range(start..end, &blank);
    }
    (out, modules)
}

/// Behind the item that begins at `at`: its closing brace, or its semicolon.
fn end_of_item(bytes: &[u8], at: usize) -> usize {
    match opening(bytes, at) {
        Some((open, b'{')) => closing(bytes, open) + 1,
        Some((semicolon, _)) => semicolon + 1,
        None => bytes.len(),
    }
}

/// The first `{` or `;` outside of brackets.
fn opening(bytes: &[u8], at: usize) -> Option<(usize, u8)> {
    let mut depth = 0usize;
    for (index, byte) in bytes.iter().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' | b';' if depth == 0 => return Some((index, *byte)),
            _ => {}
        }
    }
    None
}

fn closing(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0usize;
    for (index, byte) in bytes.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    bytes.len() - 1
}

/// Rooms named by `crate::room`, `crate::{room, room}`, `skygate::room`, and by `super::` that climbs to the crate's root.
fn rooms_used(text: &str, depth: usize) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for prefix in ["crate::", "skygate::"] {
        for (at, _) in text.match_indices(prefix) {
            if at == 0 || !is_name(text.as_bytes()[at - 1]) {
                used.extend(first_names(&text[at + prefix.len()..]));
            }
        }
    }
    let inner = inline_modules(text);
    let mut at = 0;
    while let Some(found) = text[at..].find("super::") {
        let start = at + found;
        let mut end = start;
        while text[end..].starts_with("super::") {
            end += "super::".len();
        }
        let climbed = (end - start) / "super::".len();
        if climbed >= depth + inner.iter().filter(|module| module.contains(&start)).count() {
            used.extend(first_names(&text[end..]));
        }
        at = end;
    }
    used
}

/// The name that a path begins with, or each of a group's.
fn first_names(text: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = text.strip_prefix('{') else { return vec![name(text)] };
    let mut names = vec![name(group)];
    let mut depth = 1;
    for (index, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 1 => names.push(name(&group[index + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn inline_modules(text: &str) -> Vec<std::ops::Range<usize>> {
    let bytes = text.as_bytes();
    let starts = text.match_indices("mod ").filter(|(at, _)| *at == 0 || !is_name(bytes[*at - 1]));
    let opened = starts.filter_map(|(at, _)| opening(bytes, at)).filter(|(_, byte)| *byte == b'{');
    opened.map(|(open, _)| open..closing(bytes, open)).collect()
}

/// Name and number of lines of every function that has a body, its signature counted.
fn functions(text: &str) -> Vec<(String, usize)> {
    let bytes = text.as_bytes();
    let starts = text.match_indices("fn ").filter(|(at, _)| *at == 0 || !is_name(bytes[*at - 1]));
    let functions = starts.filter_map(|(at, mark)| {
        let name = first_names(&text[at + mark.len()..]).pop().filter(|name| !name.is_empty())?;
        match opening(bytes, at)? {
            (open, b'{') => Some((name, text[at..=closing(bytes, open)].lines().count())),
            _ => None,
        }
    });
    functions.collect()
}

#[test]
fn the_source_is_read_as_it_is_meant() {
    let text = blank_comments_and_strings(
        "a // crate::b\n/* x /* y */ { */ \"{\\\"\" r#\"crate::\"{\"# '{' '\\'' b'{' fn f<'a>(x: &'a u8) 'ü' r#type {}",
    );
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["a", "b", "fn", "f<'a>(x:", "&'a", "u8)", "r#type", "{}"]);

    let (text, modules) = blank_tests(
        "use crate::a;\n#[cfg(test)]\n#[allow(x)]\nmod t { use crate::b; }\n#[cfg(test)]\npub(crate) mod u;\nfn f() {}",
    );
    assert_eq!(modules, ["u"]);
    assert_eq!(rooms_used(&text, 1), BTreeSet::from(["a".to_owned()]));
    assert_eq!(text.lines().count(), 7);

    let rows: [(&str, usize, &[&str]); 7] = [
        ("use crate::{a, b::{c, d}, e};", 1, &["a", "b", "e"]),
        ("crate::a::f(crate::b::X)", 1, &["a", "b"]),
        ("skygate::cli::main()", 1, &["cli"]),
        ("super::b::f()", 1, &["b"]),
        ("super::b::f()", 2, &[]),
        ("super::super::b::f()", 2, &["b"]),
        ("mod inner { use super::X; }", 1, &[]),
    ];
    for (text, depth, expect) in rows {
        assert_eq!(rooms_used(text, depth), expect.iter().map(|name| (*name).to_owned()).collect(), "{text}");
    }
    assert_eq!(
        functions("fn a(x: [u8; 3]) -> u8\nwhere\n{\n if x {\n }\n}\ntrait T { fn b(); fn c() {} }"),
        [("a".to_owned(), 6), ("c".to_owned(), 1)]
    );
    assert_eq!((depth_of("store/mod.rs"), depth_of("store/pin.rs"), depth_of("config.rs")), (1, 2, 1));
}
