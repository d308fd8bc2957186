//! The way inside a tree: decoded names, and whether a slash stood at the end.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::AddressError;

/// Longest path, before and after decoding. Browsers and proxies stop at about 8 KiB for a whole request line.
pub const PATH_BYTES_MAX: usize = 8 << 10;

/// Most names in a path. Each may cost a round of host requests, and no real site is a tenth as deep.
pub const PATH_SEGMENTS_MAX: usize = 256;

/// What a path segment may not show as it is (RFC 3986 `pchar`), and the percent sign itself.
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
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

/// Did the path end with a slash?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrailingSlash {
    /// It did: a directory is meant.
    Yes,
    /// It did not.
    No,
}

/// Names from the root down, percent-decoded, none of them empty.
///
/// `.` and `..` are names like all others: nothing is ever taken away from a path, so no path leads out of its root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SitePath {
    segments: Vec<String>,
    trailing_slash: TrailingSlash,
}

impl SitePath {
    /// The root itself, asked for with or without a slash.
    pub fn root(trailing_slash: TrailingSlash) -> SitePath {
        SitePath { segments: Vec::new(), trailing_slash }
    }

    /// Parses what stands behind the root in a URL path: percent-encoded, with or without a slash in front, without query.
    /// It is decoded first and split then (`a%2Fb` is `a/b`, as other gateways have it); repeated slashes count as one.
    pub fn parse(encoded: &str) -> Result<SitePath, AddressError> {
        if encoded.len() > PATH_BYTES_MAX {
            return Err(AddressError::PathTooLong { have: encoded.len() });
        }
        check_percent_signs(encoded.as_bytes())?;
        let decoded = percent_decode_str(encoded).decode_utf8().map_err(|_| AddressError::PathUtf8)?;
        SitePath::from_decoded(&decoded)
    }

    /// Takes a path whose names are as in the tree (a percent sign is a percent sign).
    pub fn from_decoded(decoded: &str) -> Result<SitePath, AddressError> {
        if decoded.len() > PATH_BYTES_MAX {
            return Err(AddressError::PathTooLong { have: decoded.len() });
        }
        if decoded.contains('\0') {
            return Err(AddressError::PathNul);
        }
        let names = || decoded.split('/').filter(|name| !name.is_empty());
        // Counted before anything is allocated.
        if names().count() > PATH_SEGMENTS_MAX {
            return Err(AddressError::PathTooDeep);
        }
        let trailing_slash = if decoded.ends_with('/') { TrailingSlash::Yes } else { TrailingSlash::No };
        Ok(SitePath { segments: names().map(str::to_owned).collect(), trailing_slash })
    }

    /// The names, root first.
    pub fn segments(&self) -> &[String] {
        &self.segments
    }

    /// Whether a slash ended it.
    pub fn trailing_slash(&self) -> TrailingSlash {
        self.trailing_slash
    }

    /// Last name, if any.
    pub fn last(&self) -> Option<&str> {
        self.segments.last().map(String::as_str)
    }

    /// The path that is left when `count` names are passed. The slash stays.
    pub fn without_first(&self, count: usize) -> SitePath {
        let segments = self.segments.get(count..).unwrap_or_default().to_vec();
        SitePath { segments, trailing_slash: self.trailing_slash }
    }

    /// `below` inside this path, with the slash of `below`, or this one's if `below` is nothing at all.
    pub fn join(&self, below: &SitePath) -> Result<SitePath, AddressError> {
        let mut segments = self.segments.clone();
        segments.extend_from_slice(&below.segments);
        if segments.len() > PATH_SEGMENTS_MAX {
            return Err(AddressError::PathTooDeep);
        }
        let have: usize = segments.iter().map(|segment| segment.len() + 1).sum();
        if have > PATH_BYTES_MAX {
            return Err(AddressError::PathTooLong { have });
        }
        let nothing = below.segments.is_empty() && below.trailing_slash == TrailingSlash::No;
        let trailing_slash = if nothing { self.trailing_slash } else { below.trailing_slash };
        Ok(SitePath { segments, trailing_slash })
    }

    /// The path for a URL: `/a/b%20c/`; the root is `/` or nothing.
    pub fn encoded(&self) -> String {
        self.joined(|segment, out| out.extend(utf8_percent_encode(segment, SEGMENT)))
    }

    /// The path for people: `/a/b c/`.
    pub fn decoded(&self) -> String {
        self.joined(|segment, out| out.push_str(segment))
    }

    fn joined(&self, push: impl Fn(&str, &mut String)) -> String {
        let mut out = String::new();
        for segment in &self.segments {
            out.push('/');
            push(segment, &mut out);
        }
        if self.trailing_slash == TrailingSlash::Yes {
            out.push('/');
        }
        out
    }
}

/// The decoder passes bad escapes through as text, which would give one path two spellings.
fn check_percent_signs(encoded: &[u8]) -> Result<(), AddressError> {
    for (at, _) in encoded.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        match encoded.get(at + 1..at + 3) {
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => {}
            _ => return Err(AddressError::PathPercent),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::TrailingSlash::{No, Yes};
    use super::*;

    #[test]
    fn good_paths() {
        let rows: [(&str, &[&str], TrailingSlash, &str); 16] = [
            ("", &[], No, ""),
            ("/", &[], Yes, "/"),
            ("//", &[], Yes, "/"),
            ("/a", &["a"], No, "/a"),
            ("a", &["a"], No, "/a"),
            ("/a/b/", &["a", "b"], Yes, "/a/b/"),
            ("/a//b", &["a", "b"], No, "/a/b"),
            ("/a%2Fb%2f", &["a", "b"], Yes, "/a/b/"),
            ("/a%20b%2520c.txt", &["a b%20c.txt"], No, "/a%20b%2520c.txt"),
            ("/%C4%85/ę", &["ą", "ę"], No, "/%C4%85/%C4%99"),
            ("/..", &[".."], No, "/.."),
            ("/a/../%2e%2E/./b", &["a", "..", "..", ".", "b"], No, "/a/../.././b"),
            ("/a\\..\\b", &["a\\..\\b"], No, "/a%5C..%5Cb"),
            ("/C:/x?y#z", &["C:", "x?y#z"], No, "/C:/x%3Fy%23z"),
            ("/%0A%0d", &["\n\r"], No, "/%0A%0D"),
            ("/a+b", &["a+b"], No, "/a+b"),
        ];
        for (encoded, segments, slash, again) in rows {
            let path = SitePath::parse(encoded).unwrap_or_else(|error| panic!("{encoded:?}: {error}"));
            assert_eq!(
                (path.segments(), path.trailing_slash()),
                (&segments.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..], slash),
                "{encoded:?}"
            );
            assert_eq!(path.encoded(), again, "{encoded:?}");
            assert_eq!(SitePath::parse(&path.encoded()), Ok(path), "{encoded:?}");
        }
        assert_eq!(SitePath::parse("/a b/%25").unwrap().decoded(), "/a b/%");
        assert_eq!(SitePath::from_decoded("/%25").unwrap().last(), Some("%25"));
    }

    #[test]
    fn bad_paths() {
        use AddressError::*;
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        let deep = "/a".repeat(PATH_SEGMENTS_MAX + 1);
        let rows = [
            ("/%", PathPercent),
            ("/%1", PathPercent),
            ("/%zz", PathPercent),
            ("/%+1", PathPercent),
            ("/a%ä", PathPercent),
            ("/%ff", PathUtf8),
            ("/%C0%AF..", PathUtf8),
            ("/a%00b", PathNul),
            ("/a\0b", PathNul),
            (&long, PathTooLong { have: long.len() }),
            (&deep, PathTooDeep),
        ];
        for (encoded, expect) in rows {
            assert_eq!(SitePath::parse(encoded), Err(expect), "{encoded:?}");
        }
        assert!(SitePath::parse(&"/a".repeat(PATH_SEGMENTS_MAX)).is_ok());
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "(/|%[0-9a-fA-F]{0,2}|\\PC){0,60}") {
            if let Ok(path) = SitePath::parse(&text) {
                prop_assert!(path.segments().iter().all(|name| !name.is_empty() && !name.contains(['/', '\0'])));
                prop_assert_eq!(SitePath::parse(&path.encoded()), Ok(path));
            }
        }
    }
}
