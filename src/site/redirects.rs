//! The `_redirects` file of a site (`web-redirects-file`, IPIP-0002; `specs/ipfs-gateway.md` 2.5): parsed whole, then asked for
//! paths that do not exist.
//!
//! Paths are matched decoded, name by name, as they are looked up in trees. What a rule puts into a `Location` is encoded
//! again, so that it is a valid URI whatever the names were.

use std::collections::{BTreeMap, BTreeSet};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// Name of the file, at the root of the content.
pub const REDIRECTS_NAME: &str = "_redirects";
/// Longest file; the format says 64 KiB.
pub const REDIRECTS_BYTES_MAX: u64 = 65_536;

/// In what was filled in, everything that could end or change a path. Slashes of a splat stay.
const FILLED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
/// In what stands in the file only what no URI may hold: it may be encoded already.
const WRITTEN: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// Why a file cannot be used. Told behind `could not parse _redirects: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedirectsError {
    #[error("redirects file size cannot exceed {REDIRECTS_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("line {line}: {why}")]
    Line { line: usize, why: &'static str },
}

/// All rules of a site, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirects {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    from: Vec<Part>,
    splat: bool,
    /// As written.
    to: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Name(String),
    Placeholder(String),
}

/// What a rule says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// 200: the content of another path of the site, decoded.
    Rewrite { path: String },
    /// 404, 410 or 451, with the content of a path as its page.
    Page { status: u16, path: String },
    /// 301, 302, 303, 307, 308: to a path of the site or another site, encoded.
    Redirect { status: u16, location: String },
}

impl Redirects {
    /// Reads a file whole: one bad line makes all of it useless.
    pub fn parse(bytes: &[u8]) -> Result<Redirects, RedirectsError> {
        if bytes.len() as u64 > REDIRECTS_BYTES_MAX {
            return Err(RedirectsError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| RedirectsError::NotUtf8)?;
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                rules.push(Rule::parse(line).map_err(|why| RedirectsError::Line { line: index + 1, why })?);
            }
        }
        Ok(Redirects { rules })
    }

    /// The first rule that fits `names`, the decoded path of the request. `query` is the user's.
    pub fn find(&self, names: &[String], query: Option<&str>) -> Option<Found> {
        self.rules.iter().find_map(|rule| rule.fits(names).map(|filled| rule.found(&filled, query)))
    }
}

/// Values by placeholder; the splat's name is `splat`.
type Filled = BTreeMap<String, String>;

impl Rule {
    fn parse(line: &str) -> Result<Rule, &'static str> {
        let mut fields = line.split_whitespace();
        let (Some(from), Some(to)) = (fields.next(), fields.next()) else {
            return Err("a rule is FROM TO [STATUS]");
        };
        let status = match fields.next() {
            None => 301,
            Some(status) => parse_status(status)?,
        };
        if fields.next().is_some() {
            return Err("a rule is FROM TO [STATUS], and nothing behind");
        }
        let Some(path) = from.strip_prefix('/') else { return Err("FROM begins with a slash") };
        let mut names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let splat = names.last() == Some(&"*");
        if splat {
            names.pop();
        }
        if names.iter().any(|name| name.contains('*')) {
            return Err("a star stands only at the end of FROM, for all that follows");
        }
        let mut known = BTreeSet::new();
        let mut parts = Vec::new();
        for name in names {
            match name.strip_prefix(':') {
                Some(placeholder) if !is_word(placeholder) => return Err("a placeholder is a colon and letters, digits or _"),
                Some(placeholder) if !known.insert(placeholder) => return Err("a placeholder stands twice in FROM"),
                Some(placeholder) => parts.push(Part::Placeholder(placeholder.to_owned())),
                None => parts.push(Part::Name(percent_decode_str(name).decode_utf8_lossy().into_owned())),
            }
        }
        let elsewhere = to.starts_with("https://") || to.starts_with("http://");
        let on_site = to.starts_with('/') && !to.starts_with("//");
        if !elsewhere && !on_site {
            return Err("TO is a path that begins with a slash, or an http or https address");
        }
        if elsewhere && !matches!(status, 301 | 302 | 303 | 307 | 308) {
            return Err("with this status TO is a path of the site, not another site's address");
        }
        Ok(Rule { from: parts, splat, to: to.to_owned(), status })
    }

    /// The values of its placeholders, if the rule is for this path.
    fn fits(&self, names: &[String]) -> Option<Filled> {
        if names.len() < self.from.len() || (names.len() > self.from.len() && !self.splat) {
            return None;
        }
        let mut filled = Filled::new();
        for (part, name) in self.from.iter().zip(names) {
            match part {
                Part::Name(wanted) if wanted == name => {}
                Part::Name(_) => return None,
                Part::Placeholder(placeholder) => drop(filled.insert(placeholder.clone(), name.clone())),
            }
        }
        if self.splat {
            filled.insert("splat".to_owned(), names[self.from.len()..].join("/"));
        }
        Some(filled)
    }

    fn found(&self, filled: &Filled, query: Option<&str>) -> Found {
        let path = || {
            let path = self.to.split(['?', '#']).next().unwrap_or_default();
            fill(path, filled, |written| percent_decode_str(written).decode_utf8_lossy().into_owned(), str::to_owned)
        };
        match self.status {
            200 => Found::Rewrite { path: path() },
            status @ (404 | 410 | 451) => Found::Page { status, path: path() },
            status => Found::Redirect { status, location: self.location(filled, query) },
        }
    }

    /// `TO`, filled in and encoded, with the user's query laid over its own.
    fn location(&self, filled: &Filled, query: Option<&str>) -> String {
        let (rest, fragment) = self.to.split_once('#').map_or((self.to.as_str(), None), |(rest, fragment)| (rest, Some(fragment)));
        let (path, own) = rest.split_once('?').map_or((rest, None), |(path, own)| (path, Some(own)));
        let written = |text: &str| utf8_percent_encode(text, WRITTEN).to_string();
        let value = |text: &str| utf8_percent_encode(text, FILLED).to_string();
        let mut location = fill(path, filled, written, value);
        let own = own.map(|own| fill(own, filled, written, value));
        let query = merge(own.as_deref(), query);
        if !query.is_empty() {
            location.push('?');
            location.push_str(&query);
        }
        if let Some(fragment) = fragment {
            location.push('#');
            location.push_str(&written(fragment));
        }
        // A splat that is empty or begins with a slash must not make of a path another host's address.
        if location.starts_with("//") {
            location = format!("/{}", location.trim_start_matches('/'));
        }
        location
    }
}

fn parse_status(text: &str) -> Result<u16, &'static str> {
    match text.parse() {
        Ok(status @ (200 | 301 | 302 | 303 | 307 | 308 | 404 | 410 | 451)) if text.len() == 3 => Ok(status),
        Ok(_) => Err("the status is 200, 301, 302, 303, 307, 308, 404, 410 or 451"),
        Err(_) => Err("the status is not a number; rules that hide existing files (301!) are not part of the format"),
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Puts values in place of `:name`; unknown names stay as they are (`https://host:8080`).
fn fill(text: &str, filled: &Filled, written: impl Fn(&str) -> String, value: impl Fn(&str) -> String) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(colon) = rest.find(':') {
        let after = &rest[colon + 1..];
        let word = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(after, |end| &after[..end]);
        out.push_str(&written(&rest[..colon]));
        match filled.get(word) {
            Some(found) => out.push_str(&value(found)),
            None => out.push_str(&written(&rest[colon..=colon + word.len()])),
        }
        rest = &after[word.len()..];
    }
    out + &written(rest)
}

/// Both queries; where both have a key the user's values count.
fn merge(own: Option<&str>, user: Option<&str>) -> String {
    let key = |pair: &str| percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy().into_owned();
    let pairs = |query: Option<&str>| -> Vec<String> {
        query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(str::to_owned).collect()
    };
    let user = pairs(user);
    let keys: BTreeSet<String> = user.iter().map(|pair| key(pair)).collect();
    let own = pairs(own).into_iter().filter(|pair| !keys.contains(&key(pair)));
    own.chain(user.iter().cloned()).collect::<Vec<_>>().join("&")
}

/// Whatever the bytes are, parsing ends, and what is found for a path is a path or an address in ASCII.
#[cfg(test)]
pub fn fuzz(bytes: &[u8]) {
    let Ok(redirects) = Redirects::parse(bytes) else { return };
    for path in [&["a"][..], &["a", "ż b", "c"], &[]] {
        let names: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        match redirects.find(&names, Some("x=1&y")) {
            Some(Found::Redirect { location, .. }) => {
                assert!(location.bytes().all(|byte| byte.is_ascii_graphic()), "{location:?}");
                assert!(!location.starts_with("//"), "{location:?}");
            }
            Some(Found::Rewrite { path } | Found::Page { path, .. }) => assert!(path.starts_with('/')),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(file: &str, path: &str, query: Option<&str>) -> Option<Found> {
        let names: Vec<String> = path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Redirects::parse(file.as_bytes()).expect(file).find(&names, query)
    }

    #[test]
    fn rules() {
        let to = |status, location: &str| Some(Found::Redirect { status, location: location.to_owned() });
        let page = |status, path: &str| Some(Found::Page { status, path: path.to_owned() });
        let rewrite = |path: &str| Some(Found::Rewrite { path: path.to_owned() });
        // Rows of `ipfs-gateway.md` 2.5; the last ones are 10.3 and 10.14.
        #[rustfmt::skip]
        let rows: &[(&str, &str, Option<&str>, Option<Found>)] = &[
            ("/a /b", "/a", None, to(301, "/b")),
            ("/a /b", "/a/", None, to(301, "/b")),
            ("/a /b", "/A", None, None),
            ("/a /b", "/a/c", None, None),
            ("# no\n\n \t/a\t\t/b  302 \r\n/a /c", "/a", None, to(302, "/b")),
            ("/a /b 303", "/a", None, to(303, "/b")),
            ("/a /b 307", "/a", None, to(307, "/b")),
            ("/a https://example.org/b 308", "/a", None, to(308, "https://example.org/b")),
            ("/a http://example.org:8080/b", "/a", None, to(301, "http://example.org:8080/b")),
            ("/* /index.html 200", "/deep/link", None, rewrite("/index.html")),
            ("/* /index.html 200", "/", None, rewrite("/index.html")),
            ("/a/* /b/:splat", "/a/x/y", None, to(301, "/b/x/y")),
            ("/a/* /b/:splat", "/a", None, to(301, "/b/")),
            ("/a/* https://other.org/:splat?q=:splat", "/a/x y", None, to(301, "https://other.org/x%20y?q=x%20y")),
            ("/p/:year/:title /articles/:year/:title/:year", "/p/2022/ę", None, to(301, "/articles/2022/%C4%99/2022")),
            ("/p/:x /q/:y", "/p/1", None, to(301, "/q/:y")),
            ("/en/* /404.html 404", "/en/x", None, page(404, "/404.html")),
            ("/gone /410.html 410", "/gone", None, page(410, "/410.html")),
            ("/law /451%20page.html 451", "/law", None, page(451, "/451 page.html")),
            ("/b%20c /d", "/b c", None, to(301, "/d")),
            ("/* /:splat", "/", None, to(301, "/")),
            ("/a/* /:splat", "/a", None, to(301, "/")),
            ("/a /t?x=static&z=1#end", "/a", Some("x=user&y=2"), to(301, "/t?z=1&x=user&y=2#end")),
            ("/a /t?x=static", "/a", None, to(301, "/t?x=static")),
            ("/a /t", "/a", Some("x=%20"), to(301, "/t?x=%20")),
            ("/s/* /t/:splat", "/s/a b/ż?#%", None, to(301, "/t/a%20b/%C5%BC%3F%23%25")),
            ("/a /ż%20b", "/a", None, to(301, "/%C5%BC%20b")),
        ];
        for (file, path, query, expect) in rows {
            assert_eq!(find(file, path, *query), *expect, "{file:?} {path:?}");
        }
    }

    #[test]
    fn bad_files_say_which_line() {
        let rows = [
            ("/a", "line 1: a rule is FROM"),
            ("\n/a /b 301!", "line 2: the status is not a number"),
            ("/a /b 418", "line 1: the status is 200"),
            ("/a /b 0301", "the status is 200"),
            ("/a /b 301 more", "nothing behind"),
            ("a /b", "FROM begins with a slash"),
            ("https://x/ /b", "FROM begins with a slash"),
            ("/a b", "TO is a path"),
            ("/a //evil.example/", "TO is a path"),
            ("/a ftp://x/", "TO is a path"),
            ("/a javascript:alert(1)", "TO is a path"),
            ("/a https://example.org/ 200", "a path of the site"),
            ("/a https://example.org/ 404", "a path of the site"),
            ("/a*b /c", "a star stands only"),
            ("/*/b /c", "a star stands only"),
            ("/:x/:x /c", "stands twice"),
            ("/: /c", "a placeholder is"),
        ];
        for (file, expect) in rows {
            let error = Redirects::parse(file.as_bytes()).expect_err(file).to_string();
            assert!(error.contains(expect), "{file:?}: {error}");
        }
        assert_eq!(Redirects::parse(&[b'#'; 65_536]).map(|_| ()), Ok(()));
        let error = Redirects::parse(&[b'#'; 65_537]).expect_err("too large");
        assert!(error.to_string().starts_with("redirects file size cannot exceed"));
        assert_eq!(Redirects::parse(b"\xff"), Err(RedirectsError::NotUtf8));
    }

    #[test]
    fn fuzz_corpus() {
        for good in ["/a /b 301\n/* /:splat?x=:splat#z 302\n", "/a/:b/c https://x.org:80/:b 308\n# c\r\n/* /404.html 404"] {
            for seed in 0..500 {
                fuzz(&crate::address::test_shared::mutations(seed, good.as_bytes()));
            }
        }
    }
}
