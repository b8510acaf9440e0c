//! Tables for people: columns on a terminal.

use std::fmt::Write as _;

/// Without what a terminal would take for a command.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Rows in columns as wide as their widest cell; numbers to the right.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(|at| width(at).unwrap_or(0)).collect();
    let numeric: Vec<bool> = (0..widths.len())
        .map(|at| rows.iter().skip(1).all(|row| row.get(at).is_some_and(|cell| cell.parse::<f64>().is_ok())))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
            let gap = if line.is_empty() { "" } else { "  " };
            let _ = if *numeric {
                write!(line, "{gap}{cell:>width$}")
            } else {
                write!(line, "{gap}{cell:<width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Seconds, or the largest unit that they fill.
pub(super) fn ago(secs: f64) -> String {
    match secs {
        ..60.0 => format!("{secs:.1}s"),
        ..3600.0 => format!("{:.0}m", (secs / 60.0).floor()),
        ..86_400.0 => format!("{:.0}h", (secs / 3600.0).floor()),
        _ => format!("{:.0}d", (secs / 86_400.0).floor()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_ago_is_told_in_the_unit_that_it_fills() {
        let told = [0.31, 59.0, 60.0, 3599.0, 7300.0, 200_000.0].map(ago);
        assert_eq!(told, ["0.3s", "59.0s", "1m", "59m", "2h", "2d"]);
    }
}
