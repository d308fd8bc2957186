//! HTML that this program makes: listings, error pages, the landing page. Small, without scripts, readable on a phone.
//!
//! Texts and links of listings are those that the conformance suite looks for (`ipfs-gateway.md` 3). Nothing here
//! awaits; a listing is written in three parts so that a large one can be streamed.

use ::http::StatusCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::refusal::Row;

/// Counts up whenever the HTML of listings changes, so that their Etags do, too.
pub const LISTING_VERSION: &str = "2";

/// In a path all may stand as it is but what would end it or be read as an escape.
const PATH_SET: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');
/// In a query value only unreserved characters may stand as they are.
const QUERY_SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

const STYLE: &str = "body{margin:0 auto;max-width:60rem;padding:1rem;font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff}\
h1{font-size:1.2rem;overflow-wrap:anywhere}a{color:#06c;text-decoration:none}a:hover{text-decoration:underline}\
table{width:100%;border-collapse:collapse}td{padding:.4rem .3rem;border-top:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}\
td:last-child,th:last-child{text-align:right;white-space:nowrap}.ipfs-hash{color:#777;font:12px monospace}th{text-align:left;padding:.3rem}\
code,pre{background:#f3f3f3;border-radius:4px;padding:.1rem .3rem}pre{overflow-x:auto;padding:.6rem}.dim,.d>a:first-child::after{color:#777}.d>a:first-child::after{content:\"/\"}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}a{color:#6af}td{border-color:#333}code,pre{background:#2a2a2a}}";

/// As [`LISTING_VERSION`], of pages that show a block of data.
pub const DAG_VERSION: &str = "1";

/// A block of DAG-JSON or DAG-CBOR for people.
pub struct DagPage {
    pub cid_text: String,
    pub codec: &'static str,
    pub size_bytes: u64,
    /// CIDs, in the order of the block.
    pub links: Vec<String>,
    /// Links that are not shown.
    pub links_left_out: usize,
    /// May be the beginning only.
    pub text: String,
}

/// What a listing says about itself.
pub struct ListingPage {
    /// `ipfs` or `ipns`.
    pub namespace: &'static str,
    /// Text of the root as it stands in the address.
    pub root_text: String,
    /// Decoded names below the root, as far as they stand in the address.
    pub segments: Vec<String>,
    /// The request path up to its last slash, as asked (percent-encoded).
    pub request_path: String,
    pub links: ListingLinks,
}

/// Where the links of a listing lead (`ipfs-gateway.md` 3).
pub enum ListingLinks {
    /// Path gateway: all on this host.
    Here,
    /// Subdomain gateway: folders above and CIDs by path on this host, which redirects them to origins of their own.
    Gateway { host: String },
    /// A host with a DNSLink: folders above on itself; it has no `/ipfs/`, so CIDs are explained elsewhere.
    Dnslink { host: String },
}

/// One row of a listing.
pub struct ListingRow<'a> {
    pub name: &'a str,
    pub cid_text: &'a str,
    pub looks_like: LooksLike,
    /// Cumulative size from the link; the entry itself is not fetched.
    pub size_bytes: u64,
}

/// What an entry looks like from outside. Only its block could tell for sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LooksLike {
    File,
    /// Shown with a slash.
    Folder,
}

impl ListingPage {
    /// Everything before the rows.
    pub fn opening(&self) -> String {
        let names: String = self.segments.iter().map(|name| format!("/{name}")).collect();
        let title = format!("/{}/{}{names}", self.namespace, self.root_text);
        let by_path = format!("/{}/{}", self.namespace, self.root_text);
        let (root_link, mut crumb_path) = match &self.links {
            ListingLinks::Here => (by_path.clone(), by_path),
            ListingLinks::Gateway { host } => (format!("//{host}{by_path}"), format!("//{host}{by_path}")),
            ListingLinks::Dnslink { host } => (format!("//{host}/"), format!("//{host}")),
        };
        let crumbs = html! {
            "/" (self.namespace) "/" a href=(root_link) { (self.root_text) }
            @for name in &self.segments {
                ({ crumb_path.push('/'); crumb_path.extend(utf8_percent_encode(name, PATH_SET)); "/" })
                a href=(crumb_path) { (name) }
            }
        };
        let mut text = html! { (DOCTYPE) (PreEscaped("<html lang=\"en\">")) (head(&title)) }.into_string();
        let body = html! {
            h1 { "Index of " (crumbs) }
            @if !self.segments.is_empty() { p { (self.back_link()) } }
        };
        text.push_str("<body>");
        text.push_str(&body.into_string());
        text.push_str("<table><tr><th>Name</th><th>Size</th></tr>\n");
        text
    }

    fn back_link(&self) -> Markup {
        html! { a href={ (self.request_path) ".." } { ".." } }
    }

    /// One entry, appended to `out`.
    pub fn write_row(&self, row: &ListingRow<'_>, out: &mut String) {
        let encoded = utf8_percent_encode(row.name, PATH_SET);
        // The browser decodes the value once; the suite wants each percent sign encoded once more.
        let filename = utf8_percent_encode(row.name, QUERY_SET).to_string().replace('%', "%25");
        let markup = html! {
            tr {
                td class=[(row.looks_like == LooksLike::Folder).then_some("d")] {
                    a href={ (self.request_path) (encoded) } { (row.name) } br;
                    @match &self.links {
                        ListingLinks::Here => {
                            a class="ipfs-hash" translate="no" href={ "/ipfs/" (row.cid_text) "?filename=" (filename) } { (short_cid(row.cid_text)) }
                        }
                        ListingLinks::Gateway { host } => {
                            a class="ipfs-hash" translate="no" href={ "//" (host) "/ipfs/" (row.cid_text) "?filename=" (filename) } {
                                (short_cid(row.cid_text))
                            }
                        }
                        ListingLinks::Dnslink { .. } => {
                            a class="ipfs-hash" translate="no" href={ "https://cid.ipfs.tech/#" (row.cid_text) } target="_blank"
                                rel="noreferrer noopener" { (short_cid(row.cid_text)) }
                        }
                    }
                }
                td { (human_size(row.size_bytes)) }
            }
        };
        out.push_str(&markup.into_string());
        out.push('\n');
    }

    /// Everything behind the rows.
    pub fn closing(cut: Option<&str>) -> String {
        html! {
            (PreEscaped("</table>"))
            @if let Some(note) = cut { p class="dim" { (note) } }
            p class="dim" { "All of it: " a href="?format=tar" { "TAR" } " · " a href="?format=car" { "CAR" } }
            (PreEscaped("</body></html>\n"))
        }
        .into_string()
    }
}

/// First and last characters of a CID; the whole one is in the link.
fn short_cid(cid: &str) -> String {
    match (cid.get(..6), cid.get(cid.len().saturating_sub(6)..)) {
        (Some(first), Some(last)) if cid.len() > 16 => format!("{first}…{last}"),
        _ => cid.to_owned(),
    }
}

/// The page of a block of data.
pub fn dag(block: &DagPage) -> String {
    page(
        &block.cid_text,
        &html! {
            h1 { (block.cid_text) }
            p { (block.codec) ", " (human_size(block.size_bytes)) ". " a href="?format=raw" { "The block as it is" } }
            @if !block.links.is_empty() {
                h2 { "Links" }
                ul { @for cid in &block.links { li { a href={ "/ipfs/" (cid) "/" } { (cid) } } } }
            }
            @if block.links_left_out > 0 { p class="dim" { "and " (block.links_left_out) " more" } }
            h2 { "Data" }
            pre { (block.text) }
        },
    )
}

/// Bytes in the units that people read.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The error page in HTML.
pub fn error_html(row: &Row, above: Option<&str>) -> String {
    let title = error_title(row.status);
    page(
        &title,
        &html! {
            h1 { (title) }
            p { (capitalized(&row.sentence)) "." }
            p { (row.advice) }
            @if let Some(folder) = above { p { a href=(folder) { "The folder above" } } }
        },
    )
}

/// The folder in which `missing` was looked for, as a path: that many names fewer than were asked for.
pub fn folder_above(path: &str, missing: &str) -> Option<String> {
    let mut above = path.trim_end_matches('/');
    for _ in missing.split('/').filter(|name| !name.is_empty()) {
        above = above.rsplit_once('/')?.0.trim_end_matches('/');
    }
    // What begins with two slashes would be another host's address.
    let folder = format!("{above}/");
    (folder.starts_with('/') && !folder.starts_with("//")).then_some(folder)
}

/// The error page in plain text: the sentence first, as it is.
pub fn error_text(row: &Row) -> String {
    format!("{}\n{}\n", row.sentence, row.advice)
}

fn error_title(status: StatusCode) -> String {
    format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Error"))
}

fn capitalized(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + chars.as_str())
}

/// The page at `/` of a portal domain.
pub fn landing(sample_site: Option<&str>) -> String {
    page(
        "skygate",
        &html! {
            h1 { "This is skygate" }
            p {
                "A gateway to content that lives on storage hosts nobody has to trust: every file is split into coded pieces, "
                "and every byte is checked against its address before you see it."
            }
            @if let Some(link) = sample_site { p { a href=(link) { "Open the sample site" } } }
            p { "What you can ask for:" }
            ul {
                li { code { "/ipfs/CID/path" } " — a file or folder by its IPFS address" }
                li { code { "/SKYLINK/path" } " — the same by its Skynet address" }
            }
            p { "Put a site of your own on it:" }
            pre { "skygate add ./my-site" }
            p class="dim" { "Each answer's Cache-Status header tells whether its bytes came from memory or from the hosts." }
        },
    )
}

/// A whole page with the common look.
pub fn page(title: &str, body: &Markup) -> String {
    html! { (DOCTYPE) html lang="en" { (head(title)) body { (body) } } }.into_string()
}

fn head(title: &str) -> Markup {
    html! {
        meta charset="utf-8";
        meta name="viewport" content="width=device-width,initial-scale=1";
        title { (title) }
        style { (PreEscaped(STYLE)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::refusal::Refusal;

    const ROOT: &str = "bafybeig6ka5mlwkl4subqhaiatalkcleo4jgnr3hqwvpmsqfca27cijp3i";
    const FILE: &str = "bafkreialihlqnf5uwo4byh4n3cmwlntwqzxxs2fg5vanqdi3d7tb2l5xkm";

    #[test]
    fn listing_has_the_suites_links() {
        let page = ListingPage {
            namespace: "ipfs",
            root_text: ROOT.to_owned(),
            segments: vec!["ą".to_owned(), "ę".to_owned()],
            request_path: format!("/ipfs/{ROOT}/%C4%85/%C4%99/"),
            links: ListingLinks::Here,
        };
        let mut text = page.opening();
        page.write_row(&ListingRow { name: "file-źł.txt", cid_text: FILE, looks_like: LooksLike::File, size_bytes: 34 }, &mut text);
        text.push_str(&ListingPage::closing(None));
        for expect in [
            "Index of".to_owned(),
            format!(
                "/ipfs/<a href=\"/ipfs/{ROOT}\">{ROOT}</a>/<a href=\"/ipfs/{ROOT}/%C4%85\">ą</a>/<a href=\"/ipfs/{ROOT}/%C4%85/%C4%99\">ę</a>"
            ),
            format!("<a href=\"/ipfs/{ROOT}/%C4%85/%C4%99/..\">..</a>"),
            format!("<a href=\"/ipfs/{ROOT}/%C4%85/%C4%99/file-%C5%BA%C5%82.txt\">file-źł.txt</a>"),
            format!("<a class=\"ipfs-hash\" translate=\"no\" href=\"/ipfs/{FILE}?filename=file-%25C5%25BA%25C5%2582.txt\">"),
        ] {
            assert!(text.contains(&expect), "{expect}\n{text}");
        }
    }

    #[test]
    fn links_of_listings_on_origins_of_their_own() {
        let row = ListingRow { name: "a b", cid_text: FILE, looks_like: LooksLike::File, size_bytes: 1 };
        let page = |namespace, root: &str, links| {
            let page = ListingPage {
                namespace,
                root_text: root.to_owned(),
                segments: vec!["ą".to_owned()],
                request_path: "/%C4%85/".to_owned(),
                links,
            };
            let mut text = page.opening();
            page.write_row(&row, &mut text);
            text
        };
        let on_gateway = page("ipfs", ROOT, ListingLinks::Gateway { host: "example.com:80".to_owned() });
        let on_dnslink = page("ipns", "site.example", ListingLinks::Dnslink { host: "site.example".to_owned() });
        for (text, expect) in [
            (
                &on_gateway,
                format!(
                    "/ipfs/<a href=\"//example.com:80/ipfs/{ROOT}\">{ROOT}</a>/<a href=\"//example.com:80/ipfs/{ROOT}/%C4%85\">ą</a>"
                ),
            ),
            (&on_gateway, "<a href=\"/%C4%85/..\">..</a>".to_owned()),
            (&on_gateway, "<a href=\"/%C4%85/a%20b\">a b</a>".to_owned()),
            (
                &on_gateway,
                format!("<a class=\"ipfs-hash\" translate=\"no\" href=\"//example.com:80/ipfs/{FILE}?filename=a%2520b\">"),
            ),
            (&on_dnslink, "/ipns/<a href=\"//site.example/\">site.example</a>/<a href=\"//site.example/%C4%85\">ą</a>".to_owned()),
            (
                &on_dnslink,
                format!(
                    "<a class=\"ipfs-hash\" translate=\"no\" href=\"https://cid.ipfs.tech/#{FILE}\" target=\"_blank\" rel=\"noreferrer noopener\">"
                ),
            ),
        ] {
            assert!(text.contains(&expect), "{expect}\n{text}");
        }
    }

    #[test]
    fn a_root_listing_has_no_way_up_and_is_small() {
        let page = ListingPage {
            namespace: "ipfs",
            root_text: ROOT.to_owned(),
            segments: vec![],
            request_path: format!("/ipfs/{ROOT}/"),
            links: ListingLinks::Here,
        };
        let mut text = page.opening();
        for name in ["a.txt", "<b>&\"'.html", "100%.txt", "d"] {
            page.write_row(&ListingRow { name, cid_text: FILE, looks_like: LooksLike::File, size_bytes: 1 << 20 }, &mut text);
        }
        text.push_str(&ListingPage::closing(None));
        assert!(!text.contains(">..</a>"));
        assert!(!text.contains("<b>"), "names are escaped");
        assert!(text.len() < 6 * 1024, "{}", text.len());
    }

    #[test]
    fn sizes() {
        for (bytes, expect) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_size(bytes), expect);
        }
    }

    #[test]
    fn folders_above_what_is_missing() {
        for (path, missing, expect) in [
            ("/ipfs/C/a/b.html", "b.html", Some("/ipfs/C/a/")),
            ("/ipfs/C/a/b/c/", "a/b/c", Some("/ipfs/C/")),
            ("/ipfs/C/a%20b/c", "c", Some("/ipfs/C/a%20b/")),
            ("/ipfs/C/file/", "/", Some("/ipfs/C/file/")),
            ("/b.html", "b.html", Some("/")),
            ("/a//b", "a/b", Some("/")),
            ("//evil.example/x", "x", None),
            ("/", "a", None),
            ("", "a/b", None),
        ] {
            assert_eq!(folder_above(path, missing).as_deref(), expect, "{path} {missing}");
        }
    }

    #[test]
    fn error_pages_say_what_to_do() {
        let row = Refusal::NoSuchPath { missing: "<x>".to_owned() }.row();
        let html = error_html(&row, Some("/a/"));
        assert!(html.contains("404 Not Found") && html.contains("&lt;x&gt;") && html.contains(row.advice));
        assert!(html.contains("<a href=\"/a/\">") && !error_html(&row, None).contains("<a "));
        assert!(error_text(&row).starts_with("the content exists, but it has no \"<x>\"\n"));
        assert!(landing(None).len() < 4096);
    }
}
