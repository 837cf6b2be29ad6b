//! `doorward upstreams`: which back ends there are, which are left out, and why.
//!
//! The process answers one JSON object a line, and one that says that this is all.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::control::{self, ControlError, Outcome, Request};
use super::sockets::table::{Column, draw, plain, time};
use crate::upstream::http::BackEndRegister;

/// One back end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    /// As `upstream` in the access log and in `doorward sockets`.
    upstream: String,
    state: State,
    /// Seconds since it went out; also while it is on trial.
    since: Option<f64>,
    /// Why it went out.
    why: Option<String>,
    /// Requests and sockets on it.
    load: usize,
    /// Requests and probes that failed since the start.
    failures: u64,
    probe: Option<Probed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    In,
    /// It was out, takes connections again, and has yet to answer one request well.
    Trial,
    Out,
}

/// The last probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Probed {
    passed: bool,
    /// The status of the answer, or what was wrong.
    said: String,
    /// Seconds ago.
    ago: f64,
}

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    BackEnd(Row),
    End,
}

/// How they are shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// One JSON object for each back end.
    pub json: bool,
    /// Columns of the terminal; `None` where there is none.
    pub width: Option<usize>,
}

/// Asks the process behind `path`, and gives its answer as text.
///
/// # Errors
/// Nobody answers, or not to the end.
pub fn ask(path: &Path, shown: Shown) -> Result<Outcome, ControlError> {
    Ok(match control::ask(path, Request::Upstreams)? {
        Ok(text) => Ok(render(&text, shown)?),
        refused => refused,
    })
}

/// What the process answers.
pub(super) fn list(register: &BackEndRegister) -> String {
    let rows = register.back_ends().into_iter().map(|back_end| {
        let health = back_end.health();
        Line::BackEnd(Row {
            upstream: back_end.name().to_string(),
            state: match (health.out, health.trial) {
                (true, _) => State::Out,
                (false, true) => State::Trial,
                (false, false) => State::In,
            },
            since: health.since.map(seconds),
            why: health.why,
            load: back_end.load(),
            failures: health.failures,
            probe: health.probe.map(|(ago, outcome)| {
                let passed = outcome.is_ok();
                Probed { passed, said: outcome.unwrap_or_else(|why| why), ago: seconds(ago) }
            }),
        })
    });
    // Strings and numbers are always JSON.
    let lines = rows.chain([Line::End]).filter_map(|line| serde_json::to_string(&line).ok());
    lines.collect::<Vec<_>>().join("\n")
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

fn render(text: &str, shown: Shown) -> Result<String, ControlError> {
    let broken_off = || ControlError::NoAnswer(io::Error::new(io::ErrorKind::UnexpectedEof, "its answer broke off"));
    let lines: Result<Vec<Line>, _> = text.lines().map(serde_json::from_str).collect();
    let mut lines = lines.map_err(|_| broken_off())?;
    let Some(Line::End) = lines.pop() else { return Err(broken_off()) };
    let rows: Vec<Row> = lines
        .into_iter()
        .filter_map(|line| match line {
            Line::BackEnd(row) => Some(row),
            Line::End => None,
        })
        .collect();
    if shown.json {
        let rows: Vec<String> = rows.iter().filter_map(|row| serde_json::to_string(row).ok()).collect();
        return Ok(rows.join("\n"));
    }
    if rows.is_empty() {
        return Ok("no back ends that speak HTTP".to_owned());
    }
    let mut text = String::new();
    draw(&mut text, columns(&rows), shown.width);
    Ok(text)
}

fn columns(rows: &[Row]) -> Vec<Column> {
    let column = |title, right, cut, spare, cell: &dyn Fn(&Row) -> String| Column {
        title,
        cells: rows.iter().map(cell).collect(),
        right,
        cut,
        spare,
    };
    let state = |row: &Row| {
        let since = row.since.map(|since| format!(" {}", time(since as u64))).unwrap_or_default();
        match row.state {
            State::In => "in".to_owned(),
            State::Trial => format!("trial{since}"),
            State::Out => format!("out{since}"),
        }
    };
    let probe = |row: &Row| match &row.probe {
        None => "-".to_owned(),
        Some(Probed { passed: true, said, ago }) => format!("{said}, {} ago", time(*ago as u64)),
        Some(Probed { ago, .. }) => format!("failed, {} ago", time(*ago as u64)),
    };
    let mut columns = vec![
        column("BACK END", false, true, 0, &|row| plain(row.upstream.strip_prefix("http://").unwrap_or(&row.upstream))),
        column("STATE", false, false, 0, &state),
        column("LOAD", true, false, 0, &|row| row.load.to_string()),
        column("FAILED", true, false, 1, &|row| row.failures.to_string()),
        column("PROBE", false, false, 0, &probe),
    ];
    if rows.iter().any(|row| row.why.is_some()) {
        columns.push(column("WHY", false, true, 0, &|row| row.why.as_deref().map(said).unwrap_or_default()));
    }
    columns
}

/// A sentence may have spaces and what a back end's operator writes, but nothing that moves the cursor.
fn said(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(upstream: &str, state: State) -> Row {
        let out = state != State::In;
        Row {
            upstream: upstream.to_owned(),
            state,
            since: out.then_some(62.5),
            why: out.then(|| "GET /up: answered 500".to_owned()),
            load: 3,
            failures: if out { 12 } else { 0 },
            probe: Some(Probed { passed: !out, said: "200".to_owned(), ago: 2.25 }),
        }
    }

    fn lines(rows: Vec<Row>) -> String {
        let lines = rows.into_iter().map(Line::BackEnd).chain([Line::End]);
        lines.map(|line| serde_json::to_string(&line).unwrap()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_table_is_read_by_people() {
        let mut unasked = row("unix:/run/app.sock", State::In);
        unasked.probe = None;
        let text =
            lines(vec![row("http://127.0.0.1:3001", State::In), row("https://10.0.0.7:3002", State::Out), unasked]);
        let shown = render(&text, Shown { json: false, width: None }).unwrap();
        assert_eq!(
            shown,
            "\
BACK END               STATE       LOAD  FAILED  PROBE           WHY
127.0.0.1:3001         in             3       0  200, 2s ago
https://10.0.0.7:3002  out 1m 02s     3      12  failed, 2s ago  GET /up: answered 500
unix:/run/app.sock     in             3       0  -
"
        );
    }

    #[test]
    fn scripts_get_an_object_a_line_and_nobody_half_an_answer() {
        let text = lines(vec![row("http://127.0.0.1:3001", State::Out)]);
        let shown = Shown { json: true, width: None };
        let json = render(&text, shown).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["state"], "out");
        for broken in ["", text.lines().next().unwrap(), &text[..text.len() - 1]] {
            assert!(render(broken, shown).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_a_back_end_said_cannot_move_the_cursor() {
        let mut evil = row("http://a:1", State::Out);
        evil.why = Some("\u{1b}[2J\n".to_owned());
        let shown = render(&lines(vec![evil]), Shown { json: false, width: None }).unwrap();
        assert!(!shown.contains('\u{1b}') && shown.lines().count() == 2, "{shown}");
    }
}
