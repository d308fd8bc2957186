//! Results on stdout.

use std::io::{ErrorKind, Write};

use super::CliError;

/// Prints one line. A reader that has gone (`skygate pin ls | head -1`) ends the command without a complaint.
pub fn line(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| stdout_error(&error))
}

/// What a failed write to stdout means.
pub fn stdout_error(error: &std::io::Error) -> CliError {
    match error.kind() {
        ErrorKind::BrokenPipe => CliError::ReaderGone,
        _ => CliError::failed(format!("the output cannot be written: {error}")),
    }
}

/// Text from elsewhere, safe for a terminal: control characters (colours, cursor moves) are shown, not obeyed.
pub fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// Bytes as people read them: `12 B`, `3.4 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 file`, `2 files`.
pub fn counted(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// Rows under a head, in columns as wide as their widest cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| print(row.iter().map(String::as_str).collect()));
    std::iter::once(print(head.to_vec())).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        for (count, expect) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (u64::MAX, "16777216.0 TiB")]
        {
            assert_eq!(bytes(count), expect);
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\nü"), "a\\u{1b}[31mb\\nü");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["long name".to_owned(), "1".to_owned()], vec!["ü".to_owned(), "22".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &rows), ["NAME       N", "long name  1", "ü          22"]);
    }
}
