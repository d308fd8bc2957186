//! A real site of our own making: some four hundred files, about 30 MiB, the same bytes every time.
//!
//! It has what sites are made of: pages that link deep and back, styles, pictures, scripts with modules, an application
//! of one page, names in many scripts, a film whose index lies behind megabytes (so that a browser has to jump), sound
//! to seek in, and a large file. `checks.html` tries all that from inside a browser (`fixtures/real-site`).

use std::path::Path;

use serde_json::json;

use crate::{seeded_bytes, sha256};

/// Chapters of the site. Each has a page, a picture and notes.
pub const CHAPTERS: u32 = 120;

const FILM: &[u8] = include_bytes!("../../fixtures/real-site/tour.mp4");
/// What stands between the film's frames and its index: more than a browser reads ahead.
const FILM_PADDING_BYTES: u32 = 6 << 20;

/// 90 s at 44.1 kHz, one channel, 16 bits: 8 MB.
const TONE_RATE: u32 = 44_100;
const TONE_SECONDS: u32 = 90;

/// With the rest more than one slab of 24 MiB.
const LARGE_FILE_BYTES: usize = 12 << 20;

/// Words of the chapters' titles.
const PLACES: [&str; 12] = [
    "Harbour",
    "Lighthouse",
    "Marsh",
    "Old mill",
    "Bridge",
    "Quarry",
    "Orchard",
    "Station",
    "Ferry",
    "Dunes",
    "Market",
    "Reservoir",
];

/// Pages whose names need care, each with a word that is in it.
const ODD_NAMES: [(&str, &str); 10] = [
    ("places/Zürich.html", "Limmat"),
    ("places/Łódź/ulica Piotrkowska.html", "Księży Młyn"),
    ("places/東京/駅.html", "丸の内"),
    ("places/Αθήνα.html", "Πλάκα"),
    ("places/القاهرة.html", "النيل"),
    ("places/🗼 towers/tallest.html", "antenna"),
    ("places/100% sure?.html", "percent"),
    ("places/a+b & c=d;e#f.html", "ampersand"),
    ("places/'quotes' \"double\" <angle>.html", "bracket"),
    ("places/e\u{301}clair (decomposed).html", "combining"),
];

/// All files: path with `/` between its parts, and content.
pub fn files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("index.html".into(), front_page().into_bytes()),
        ("checks.html".into(), include_bytes!("../../fixtures/real-site/checks.html").to_vec()),
        ("checks.js".into(), include_bytes!("../../fixtures/real-site/checks.js").to_vec()),
        ("app/index.html".into(), include_bytes!("../../fixtures/real-site/app/index.html").to_vec()),
        ("app/main.js".into(), include_bytes!("../../fixtures/real-site/app/main.js").to_vec()),
        ("app/numbers.js".into(), include_bytes!("../../fixtures/real-site/app/numbers.js").to_vec()),
        ("app/add.js".into(), include_bytes!("../../fixtures/real-site/app/add.js").to_vec()),
        ("style/site.css".into(), style().into()),
        ("style/colours.css".into(), b"h1{color:rgb(12,74,110)}a{color:#0369a1}".to_vec()),
        ("style/script.js".into(), b"document.documentElement.dataset.script='ran'".to_vec()),
        ("images/map.svg".into(), map_svg().into_bytes()),
        ("media/tour.mp4".into(), film()),
        ("media/tone.wav".into(), tone()),
        ("404.html".into(), page("Nothing here", "../", "<p>This page is not part of the almanac.</p>").into_bytes()),
        (".well-known/security.txt".into(), b"Contact: mailto:almanac@example.org\n".to_vec()),
    ];
    for number in 1..=CHAPTERS {
        files.push((format!("chapters/{number:03}/index.html"), chapter(number).into_bytes()));
        files.push((format!("chapters/{number:03}/notes.json"), notes(number).into_bytes()));
        files.push((format!("images/{number:03}.png"), picture(number)));
    }
    for (path, word) in ODD_NAMES {
        let up = "../".repeat(path.matches('/').count());
        files.push((path.into(), page(path, &up, &format!("<p>{word}</p>")).into_bytes()));
    }
    files.push(("data/chapters.json".into(), chapters_json().into_bytes()));
    let names: Vec<_> = ODD_NAMES.iter().map(|(path, word)| json!({ "path": path, "word": word })).collect();
    files.push(("data/names.json".into(), json!(names).to_string().into_bytes()));
    let large = seeded_bytes(300, LARGE_FILE_BYTES);
    let (first, last) = (5_000_001, 7_000_000);
    let range = json!({ "path": "downloads/atlas.bin", "first": first, "last": last, "sha256": sha256(&large[first..=last]) });
    files.push(("data/range.json".into(), range.to_string().into_bytes()));
    files.push(("downloads/atlas.bin".into(), large));
    files
}

/// Writes the site into a folder; returns the number of files.
pub fn write(folder: &Path) -> usize {
    let files = files();
    for (path, content) in &files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().expect("every file of the site stands in a folder")).expect("the folder can be made");
        std::fs::write(path, content).expect("the file can be written");
    }
    files.len()
}

/// Paths of the pages with odd names and a word of each.
pub fn odd_names() -> &'static [(&'static str, &'static str)] {
    &ODD_NAMES
}

pub fn chapter_title(number: u32) -> String {
    format!("{} in week {number}", PLACES[(number as usize * 7) % PLACES.len()])
}

fn front_page() -> String {
    let chapters: String =
        (1..=CHAPTERS).map(|number| format!("<li><a href=\"chapters/{number:03}/\">{}</a>\n", chapter_title(number))).collect();
    let places: String =
        ODD_NAMES.iter().map(|(path, _)| format!("<li><a href=\"{}\">{}</a>\n", link(path), escape(path))).collect();
    let body = format!(
        "<p>A year of walks along one river, with a <a href=\"app/#/chapter/12\">browser for its chapters</a> and <a href=\"checks.html\">checks</a>.</p>\
         <p><img id=\"map\" src=\"images/map.svg\" alt=\"A river from the hills to the sea\" width=\"320\" height=\"120\">\
         <p><video src=\"media/tour.mp4\" controls muted preload=\"metadata\" width=\"192\" height=\"108\"></video>\
         <h2>Places</h2><ul>{places}</ul><h2>Chapters</h2><ol>{chapters}</ol>"
    );
    page("Almanac of a river", "", &body)
}

fn chapter(number: u32) -> String {
    let paragraphs: String = (0..3 + number % 5)
        .map(|nth| {
            let words: Vec<&str> = (0..60).map(|word| PLACES[((number * 31 + nth * 17 + word * 7) % 12) as usize]).collect();
            format!("<p>{}.</p>\n", words.join(" and the ").to_lowercase())
        })
        .collect();
    let next = number % CHAPTERS + 1;
    let body = format!(
        "<p><img src=\"../../images/{number:03}.png\" alt=\"\" width=\"96\" height=\"96\">\n{paragraphs}\
         <p><a href=\"notes.json\">Notes</a> · <a id=\"next\" href=\"../{next:03}/\">Next</a> · <a href=\"../../\">All</a></p>"
    );
    page(&format!("Chapter {number}: {}", chapter_title(number)), "../../", &body)
}

fn notes(number: u32) -> String {
    json!({ "chapter": number, "steps": number * 431 % 20_000, "weather": PLACES[(number % 12) as usize] }).to_string()
}

fn chapters_json() -> String {
    let chapters: Vec<_> = (1..=CHAPTERS)
        .map(|number| json!({ "number": number, "title": chapter_title(number), "image": format!("images/{number:03}.png") }))
        .collect();
    json!(chapters).to_string()
}

/// A whole page; `up` leads to the root of the site.
fn page(title: &str, up: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"stylesheet\" href=\"{up}style/site.css\">\n<h1>{title}</h1>\n{body}\n\
         <script src=\"{up}style/script.js\"></script>\n</html>\n"
    )
}

fn style() -> &'static str {
    "@import url(colours.css);body{max-width:44rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 Georgia,serif;\
     background:#fff url(../images/map.svg) no-repeat right bottom fixed}img{border-radius:8px}"
}

fn map_svg() -> String {
    let bends: String = (0..16).map(|bend| format!(" T{},{}", 20 + bend * 20, 60 + (bend * 37 % 50) - 25)).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 340 120\"><rect width=\"340\" height=\"120\" fill=\"#ecfccb\"/>\
         <path d=\"M0,60{bends}\" fill=\"none\" stroke=\"#0ea5e9\" stroke-width=\"6\"/></svg>"
    )
}

/// The film with megabytes between its frames and its index. A `free` box may stand anywhere on the top level, and
/// frames are addressed from the start of the file, so nothing else changes.
fn film() -> Vec<u8> {
    let index = FILM.windows(4).rposition(|word| word == b"moov").expect("the film has an index") - 4;
    let mut film = FILM[..index].to_vec();
    film.extend((FILM_PADDING_BYTES + 8).to_be_bytes());
    film.extend(b"free");
    film.extend(seeded_bytes(301, FILM_PADDING_BYTES as usize));
    film.extend(&FILM[index..]);
    film
}

/// A rising tone, as WAV.
fn tone() -> Vec<u8> {
    let samples = TONE_RATE * TONE_SECONDS;
    let mut wav = Vec::with_capacity(44 + samples as usize * 2);
    wav.extend(b"RIFF");
    wav.extend((36 + samples * 2).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend(16u32.to_le_bytes());
    for word in [1u16, 1] {
        wav.extend(word.to_le_bytes());
    }
    wav.extend(TONE_RATE.to_le_bytes());
    wav.extend((TONE_RATE * 2).to_le_bytes());
    for word in [2u16, 16] {
        wav.extend(word.to_le_bytes());
    }
    wav.extend(b"data");
    wav.extend((samples * 2).to_le_bytes());
    // A saw tooth in whole numbers: the same bytes on every machine.
    let mut phase = 0u16;
    for sample in 0..samples {
        phase = phase.wrapping_add((300 + sample / 8_000) as u16);
        wav.extend(((phase as i16) / 8).to_le_bytes());
    }
    wav
}

/// A PNG of 64 x 64 pixels: bands in the chapter's own colours, unpacked.
fn picture(number: u32) -> Vec<u8> {
    const SIDE: u32 = 64;
    let mut rows = Vec::new();
    for y in 0..SIDE {
        rows.push(0);
        for x in 0..SIDE {
            let band = (x + y * (number % 5 + 1)) / 8;
            rows.extend([(number * 37 + band * 11) as u8, (number * 91 + x * 2) as u8, (band * 29 + y) as u8]);
        }
    }
    let mut packed = vec![0x78, 0x01, 0x01];
    let length = rows.len() as u16;
    packed.extend(length.to_le_bytes());
    packed.extend((!length).to_le_bytes());
    packed.extend(&rows);
    packed.extend(adler32(&rows).to_be_bytes());
    let mut header = Vec::new();
    header.extend(SIDE.to_be_bytes());
    header.extend(SIDE.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", &header), (b"IDAT", &packed), (b"IEND", &Vec::new())] {
        let part = [&kind[..], data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&part);
        png.extend(crc32(&part).to_be_bytes());
    }
    png
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// A path as it stands in a link.
pub fn link(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
