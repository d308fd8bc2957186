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

/// Unix milliseconds as `2026-11-22 21:33`, in UTC.
pub fn utc_minute(ms: u64) -> String {
    let minutes = ms / 60_000;
    let (year, month, day) = civil_date(minutes / 1440);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

/// Days since 1970-01-01 as a date of the Gregorian calendar, by eras of 400 years that begin in March.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        let rows = [
            (0, "1970-01-01 00:00"),
            (951_782_400_000, "2000-02-29 00:00"),
            (1_795_383_197_000, "2026-11-22 21:33"),
            (4_107_542_399_000, "2100-02-28 23:59"),
            (4_107_542_400_000, "2100-03-01 00:00"),
        ];
        for (ms, expect) in rows {
            assert_eq!(utc_minute(ms), expect);
        }
    }

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
