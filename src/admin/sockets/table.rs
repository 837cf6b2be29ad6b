//! Live sockets as a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Row, Sum};

/// What one process said.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Its number, if a newer one has taken over from it.
    pub(super) old: Option<u32>,
    pub(super) rows: Vec<Row>,
    pub(super) sum: Option<Sum>,
}

/// Between two columns.
const GAP: usize = 2;

/// A column that is too wide for the terminal is cut down to this.
const NARROWEST: usize = 10;

/// The table, the oldest first, and what is to be said of all.
pub(super) fn text(answers: Vec<Answer>, limit: Option<usize>, width: Option<usize>) -> String {
    let (mut rows, mut sums) = (Vec::new(), Vec::new());
    for answer in answers {
        rows.extend(answer.rows);
        sums.extend(answer.sum.map(|sum| (answer.old, sum)));
    }
    rows.sort_by(|a, b| b.duration.total_cmp(&a.duration));
    let chosen: usize = sums.iter().flat_map(|(_, sum)| sum.sites.values()).sum();
    rows.truncate(limit.unwrap_or(usize::MAX));
    let mut text = String::new();
    if !rows.is_empty() {
        draw(&mut text, columns(&rows), width);
        text.push('\n');
    }
    // Writing to memory does not fail.
    let _ = summary(&mut text, &sums, chosen, rows.len());
    text
}

fn summary(text: &mut String, sums: &[(Option<u32>, Sum)], chosen: usize, shown: usize) -> std::fmt::Result {
    let live: usize = sums.iter().map(|(_, sum)| sum.live).sum();
    let mut sites: BTreeMap<&str, usize> = BTreeMap::new();
    for (site, count) in sums.iter().flat_map(|(_, sum)| &sum.sites) {
        *sites.entry(site).or_default() += count;
    }
    let by_site: Vec<String> = sites.iter().map(|(site, count)| format!("{} {count}", plain(site))).collect();
    match (chosen, live) {
        (0, 0) => writeln!(text, "no live sockets")?,
        (0, live) => writeln!(text, "none of {} is chosen", counted(live, "live socket"))?,
        _ => writeln!(text, "{}: {}", counted(chosen, "socket"), by_site.join(", "))?,
    }
    if shown < chosen {
        writeln!(text, "shown are the {shown} oldest")?;
    }
    for (old, sum) in sums {
        if let Some(pid) = old {
            let live = counted(sum.live, "socket");
            writeln!(text, "{live} of the old process {pid}, which ends with the last of them or its window")?;
        }
    }
    for (_, sum) in sums.iter().filter(|(old, _)| old.is_none()) {
        if sum.configurations.len() > 1 {
            let held = counted(sum.configurations.len(), "configuration");
            writeln!(text, "{held} in memory: requests under way began before a reload")?;
        }
        let counted: Vec<(String, &str)> =
            sum.counted.iter().filter(|(_, n)| *n > 0).map(|(what, n)| (n.to_string(), what.as_str())).collect();
        let width = counted.iter().map(|(n, _)| n.len()).max().unwrap_or_default();
        if !counted.is_empty() {
            writeln!(text, "since the start:")?;
        }
        for (n, what) in counted {
            writeln!(text, "  {n:>width$}  {what}")?;
        }
    }
    Ok(())
}

/// A column of a table.
pub(in crate::admin) struct Column {
    pub(in crate::admin) title: &'static str,
    pub(in crate::admin) cells: Vec<String>,
    pub(in crate::admin) right: bool,
    /// Whether it may be cut.
    pub(in crate::admin) cut: bool,
    /// What has to go first where the terminal is too narrow for all; 0 never goes.
    pub(in crate::admin) spare: u8,
}

impl Column {
    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| cell.chars().count());
        cells.chain([self.title.len()]).max().unwrap_or_default()
    }
}

/// Writes a table that is at most `width` wide, if that can be.
pub(in crate::admin) fn draw(text: &mut String, mut columns: Vec<Column>, width: Option<usize>) {
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or_default();
    let mut widths: Vec<usize> = columns.iter().map(Column::width).collect();
    if let Some(width) = width {
        fit(&mut columns, &mut widths, width);
    }
    line(text, columns.iter().zip(&widths).map(|(column, width)| (column.title, *width, column.right)));
    for index in 0..rows {
        let cell = |column: &'_ Column| column.cells.get(index).cloned().unwrap_or_default();
        let cells: Vec<String> = columns.iter().zip(&widths).map(|(column, width)| cut(cell(column), *width)).collect();
        let cells = cells.iter().zip(&columns).zip(&widths);
        line(text, cells.map(|((cell, column), width)| (cell.as_str(), *width, column.right)));
    }
}

fn columns(rows: &[Row]) -> Vec<Column> {
    let column = |title, spare, right, cell: &dyn Fn(&Row) -> String| Column {
        title,
        cells: rows.iter().map(cell).collect(),
        right,
        cut: false,
        spare,
    };
    let number = |title, spare, cell: &dyn Fn(&Row) -> String| column(title, spare, true, cell);
    let name = |title, spare, cell: &dyn Fn(&Row) -> String| Column { cut: true, ..column(title, spare, false, cell) };
    let mut columns = vec![
        number("ID", 0, &|row| row.id.clone()),
        name("SITE", 0, &|row| plain(&row.site)),
        name("CLIENT", 0, &|row| plain(&row.client)),
        name("BACK END", 2, &|row| plain(row.upstream.strip_prefix("http://").unwrap_or(&row.upstream))),
        name("PATH", 0, &|row| plain(&row.path)),
        column("HTTP", 4, false, &|row| if row.version == "HTTP/2.0" { "h2" } else { "h1" }.to_owned()),
        number("AGE", 0, &|row| time(row.duration as u64)),
        number("IDLE", 3, &|row| time(row.idle)),
        number("RECEIVED", 0, &|row| size(row.bytes_received)),
        number("SENT", 0, &|row| size(row.bytes_sent)),
        number("MSG IN", 1, &|row| many(row.messages_received)),
        number("MSG OUT", 1, &|row| many(row.messages_sent)),
    ];
    if rows.iter().any(|row| row.old) {
        let process = |row: &Row| if row.old { format!("old process {}", row.pid) } else { String::new() };
        columns.push(column("", 0, false, &process));
    }
    columns
}

/// Cuts names, then leaves columns out, until a line fits.
fn fit(columns: &mut Vec<Column>, widths: &mut Vec<usize>, width: usize) {
    loop {
        let total: usize = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        let over = total.saturating_sub(width);
        if over == 0 {
            return;
        }
        let cuts = widths.iter_mut().zip(columns.iter());
        let widest = cuts.filter(|(width, column)| column.cut && **width > NARROWEST).max_by_key(|(width, _)| **width);
        if let Some((widest, _)) = widest {
            *widest -= 1;
            continue;
        }
        let spare = columns.iter().map(|column| column.spare).max().filter(|spare| *spare > 0);
        let Some(spare) = spare else { return };
        columns.retain(|column| column.spare != spare);
        *widths = columns.iter().map(Column::width).collect();
    }
}

fn line<'a>(text: &mut String, cells: impl Iterator<Item = (&'a str, usize, bool)>) {
    let mut line = String::new();
    for (index, (cell, width, right)) in cells.enumerate() {
        let gap = if index == 0 { 0 } else { GAP };
        // Writing to memory does not fail.
        let _ = match right {
            true => write!(line, "{:gap$}{cell:>width$}", ""),
            false => write!(line, "{:gap$}{cell:<width$}", ""),
        };
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

fn cut(cell: String, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell;
    }
    cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// What came from a client and would move the cursor of a terminal is written out.
pub(in crate::admin) fn plain(text: &str) -> String {
    if text.chars().all(|c| c.is_ascii_graphic()) {
        return text.to_owned();
    }
    text.chars().flat_map(char::escape_default).collect()
}

/// `59s`, `12m 03s`, `2h 04m`, `3d 07h`
pub(in crate::admin) fn time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

/// `999 B`, `1.2 KB`, `34 MB`
fn size(bytes: u64) -> String {
    let (number, unit) = scaled(bytes, &["B", "KB", "MB", "GB", "TB"]);
    format!("{number} {unit}")
}

/// `99999`, `120k`, `3.4M`
fn many(count: u64) -> String {
    if count < 100_000 {
        return count.to_string();
    }
    let (number, unit) = scaled(count, &["", "k", "M", "G", "T"]);
    format!("{number}{unit}")
}

fn scaled<'u>(number: u64, units: &[&'u str]) -> (String, &'u str) {
    let mut scaled = number as f64;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    if number < 1000 {
        return (number.to_string(), unit);
    }
    // 999.95 is shown as 1.0 of the next.
    while scaled >= 999.5 {
        let Some(next) = units.next() else { break };
        (scaled, unit) = (scaled / 1000.0, next);
    }
    if scaled < 9.95 { (format!("{scaled:.1}"), unit) } else { (format!("{scaled:.0}"), unit) }
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, site: &str, seconds: f64) -> Row {
        Row {
            id: id.to_owned(),
            site: site.to_owned(),
            client: "203.0.113.9".to_owned(),
            upstream: "http://127.0.0.1:6001".to_owned(),
            path: "/socket.io/".to_owned(),
            version: "HTTP/1.1".to_owned(),
            duration: seconds,
            idle: 3,
            bytes_received: 1_234,
            bytes_sent: 12_345_678,
            messages_received: 17,
            messages_sent: 123_456,
            pid: 1234,
            old: id.contains(':'),
        }
    }

    fn answer(old: Option<u32>, rows: Vec<Row>) -> Answer {
        let mut sum = Sum { live: rows.len(), configurations: vec![1], ..Sum::default() };
        for row in &rows {
            *sum.sites.entry(row.site.clone()).or_default() += 1;
        }
        Answer { old, rows, sum: Some(sum) }
    }

    #[test]
    fn a_table_is_read_by_people() {
        let rows = vec![row("17", "app", 59.0), row("3", "chat", 7_450.2)];
        assert_eq!(
            text(vec![answer(None, rows)], None, None),
            "\
ID  SITE  CLIENT       BACK END        PATH         HTTP     AGE  IDLE  RECEIVED   SENT  MSG IN  MSG OUT
 3  chat  203.0.113.9  127.0.0.1:6001  /socket.io/  h1    2h 04m    3s    1.2 KB  12 MB      17     123k
17  app   203.0.113.9  127.0.0.1:6001  /socket.io/  h1       59s    3s    1.2 KB  12 MB      17     123k

2 sockets: app 1, chat 1
"
        );
    }

    #[test]
    fn the_sum_tells_what_the_rows_do_not() {
        let mut now = answer(None, vec![row("17", "app", 59.0)]);
        let sum = now.sum.as_mut().unwrap();
        sum.configurations = vec![1, 4];
        let counted = [("sockets refused by origins", 3), ("accept errors", 0), ("connections accepted", 1204)];
        sum.counted = counted.map(|(what, n)| (what.to_owned(), n)).to_vec();
        let old = answer(Some(1234), vec![row("1234:2", "app", 600.0), row("1234:1", "app", 700.0)]);
        let text = text(vec![now, old], Some(2), None);
        for part in [
            "1234:1  app",
            "old process 1234\n",
            "3 sockets: app 3\nshown are the 2 oldest\n",
            "2 sockets of the old process 1234, which ends",
            "2 configurations in memory",
            "since the start:\n     3  sockets refused by origins\n  1204  connections accepted\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
        assert!(!text.contains("    17  app"), "{text}");
    }

    #[test]
    fn nothing_is_said_plainly() {
        assert_eq!(text(vec![answer(None, vec![])], None, None), "no live sockets\n");
        let mut none = answer(None, vec![]);
        none.sum.as_mut().unwrap().live = 1;
        assert_eq!(text(vec![none], None, None), "none of 1 live socket is chosen\n");
        assert_eq!(
            text(vec![answer(None, vec![row("1", "app", 1.0)])], Some(0), None),
            "1 socket: app 1\nshown are the 0 oldest\n"
        );
    }

    #[test]
    fn a_line_fits_the_terminal() {
        let mut long = row("123456", "a-site-with-quite-a-name", 7_450.0);
        long.path = "/a/path/that/has/no/end/".repeat(20);
        long.client = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff".to_owned();
        for width in [80, 100, 120, 200] {
            let text = text(vec![answer(None, vec![long.clone(), row("1", "app", 1.0)])], None, Some(width));
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= width, "{width}:\n{text}");
            for title in ["ID", "SITE", "CLIENT", "PATH", "AGE", "RECEIVED", "SENT"] {
                assert!(text.lines().next().unwrap().contains(title), "{width}: {title}\n{text}");
            }
        }
    }

    #[test]
    fn a_path_cannot_move_the_cursor() {
        let mut evil = row("1", "app", 1.0);
        evil.path = "/\u{1b}[2J\n".to_owned();
        let text = text(vec![answer(None, vec![evil])], None, None);
        assert!(text.contains("/\\u{1b}[2J\\n") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn numbers_have_the_unit_that_fits() {
        assert_eq!([0, 59, 60, 723, 7_440, 277_200].map(time), ["0s", "59s", "1m 00s", "12m 03s", "2h 04m", "3d 05h"]);
        assert_eq!(
            [0, 999, 1000, 9_949, 9_999, 999_499, 999_999].map(size),
            ["0 B", "999 B", "1.0 KB", "9.9 KB", "10 KB", "999 KB", "1.0 MB"]
        );
        assert_eq!([0, 99_999, 100_000, 3_400_000].map(many), ["0", "99999", "100k", "3.4M"]);
    }
}
