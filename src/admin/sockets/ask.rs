//! The side of the person who asks. After a binary upgrade the old process still has sockets of its own: it is asked as
//! well, and its sockets are named by process and number (`1234:17`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::table::{self, Answer};
use super::{CloseOrder, Line, ListOrder, Row, Selection, Told, is_allowed_code};
use crate::admin::control::{self, ControlError, converse};
use crate::base::network::parse_network;
use crate::base::units::format_duration;

/// A process answers in pieces; this is for one of them.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long closing takes for those who do not say: sockets that are named go at once, others gently.
const GENTLY: Duration = Duration::from_secs(30);

/// Why there is no answer. Printed as it is.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// Nobody answers, or not to the end.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The process refuses.
    #[error("{0}")]
    Refused(String),
    /// The address filter is none.
    #[error("{0:?} is not an address: write one such as 203.0.113.9 or 2001:db8::1, or a range such as 10.0.0.0/8")]
    Client(String),
    /// An id is none.
    #[error("{0:?} is not the id of a socket: `doorward sockets` shows them, such as 17, or 1234:17 of an old process")]
    Id(String),
    /// A code that sockets are not closed with.
    #[error(
        "a socket is not closed with {0}: use 1000 (normal), 1001 (going away), 1008 (policy), 1011 (error), \
         1012 (restart), 1013 (try later) or one of your own, 3000 to 4999"
    )]
    Code(u16),
    /// Nothing says which.
    #[error("name sockets by id or filter; --all closes every one")]
    Nothing,
    /// Some of the ids are none.
    #[error("no socket has the id {0}: it has closed, or never was")]
    Unknown(String),
    /// The ids do not fit a request.
    #[error("these are too many ids for one command; choose by --site, --client, --path or --back-end")]
    TooMany,
    /// It cannot be printed.
    #[error("cannot write the answer: {0}")]
    Write(io::Error),
}

/// How a list is shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// One JSON object for each socket.
    pub json: bool,
    /// The so many oldest.
    pub limit: Option<usize>,
    /// Columns of the terminal; `None` where there is none.
    pub width: Option<usize>,
}

/// Writes the sockets that `selection` chooses.
///
/// # Errors
/// When no process answers, or one breaks off.
pub fn list(path: &Path, selection: Selection, shown: Shown, out: &mut dyn Write) -> Result<(), SocketsError> {
    match write_list(path, selection, shown, out) {
        // A reader that has left (`| head`) is no failure.
        Err(SocketsError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

fn write_list(path: &Path, selection: Selection, shown: Shown, out: &mut dyn Write) -> Result<(), SocketsError> {
    check(&selection)?;
    let order = format!("sockets list {}\n", json(&ListOrder { selection, limit: shown.limit }));
    let mut left = shown.limit.unwrap_or(usize::MAX);
    let mut answers = Vec::new();
    each(path, |process| {
        let mut answer = Answer { old: process.old, ..Answer::default() };
        read(process, &order, |line| {
            match line {
                Line::Socket(row) if shown.json && left > 0 => {
                    left -= 1;
                    writeln!(out, "{}", json(&row))?;
                }
                Line::Socket(_) if shown.json => {}
                Line::Socket(row) => answer.rows.push(row),
                Line::Sum(sum) => answer.sum = Some(sum),
            }
            Ok(())
        })?;
        answers.push(answer);
        Ok(())
    })?;
    if !shown.json {
        let text = table::text(answers, shown.limit, shown.width);
        out.write_all(text.as_bytes()).map_err(SocketsError::Write)?;
    }
    out.flush().map_err(SocketsError::Write)
}

/// Which sockets are to be closed, and how.
#[derive(Debug, Clone, Default)]
pub struct Closing {
    /// Ids, as lists show them.
    pub ids: Vec<String>,
    /// Or a choice.
    pub selection: Selection,
    /// Or all.
    pub all: bool,
    /// The status of the Close frame.
    pub code: u16,
    /// The time over which they are closed.
    pub over: Option<Duration>,
}

/// Has sockets closed, and says how many in one line.
///
/// # Errors
/// When nothing says which, no process answers, or an id is none; the others are closed even so.
pub fn close(path: &Path, closing: Closing, out: &mut dyn Write) -> Result<(), SocketsError> {
    let Closing { ids, selection, all, code, over } = closing;
    check(&selection)?;
    if !is_allowed_code(code) {
        return Err(SocketsError::Code(code));
    }
    if ids.is_empty() && selection.is_all() && !all {
        return Err(SocketsError::Nothing);
    }
    let over = over.unwrap_or(if ids.is_empty() { GENTLY } else { Duration::ZERO });
    let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
    let mut wanted = by_process(&ids)?;
    let (mut told, mut within, mut unknown) = (0, 0, Vec::new());
    each(path, |process| {
        let selection = match wanted.get(&process.old) {
            Some(ids) => Selection { ids: ids.clone(), ..Selection::default() },
            None if ids.is_empty() => selection.clone(),
            None => return Ok(()),
        };
        let order = format!("sockets close {}\n", json(&CloseOrder { selection, all, code, over_ms }));
        if order.len() > control::LONGEST_REQUEST {
            return Err(SocketsError::TooMany);
        }
        let answer: Told = only(process, &order)?;
        wanted.remove(&process.old);
        told += answer.told;
        within = within.max(answer.over_ms);
        unknown.extend(answer.unknown.iter().map(|id| process.id(&id.to_string())));
        Ok(())
    })?;
    // Of processes that are not there.
    for (old, ids) in wanted {
        let process = Asked { old, path: PathBuf::new() };
        unknown.extend(ids.iter().map(|id| process.id(&id.to_string())));
    }
    if told > 0 || unknown.is_empty() {
        writeln!(out, "{}", outcome(told, code, within)).map_err(SocketsError::Write)?;
    }
    if unknown.is_empty() { Ok(()) } else { Err(SocketsError::Unknown(unknown.join(", "))) }
}

fn outcome(told: usize, code: u16, within: u64) -> String {
    match (told, within) {
        (0, _) => "no live socket is chosen: nothing to close".to_owned(),
        (1, 0) => format!("1 socket is closed with {code}"),
        (_, 0) => format!("{told} sockets are closed with {code}"),
        (1, _) => format!("1 socket is closed with {code}, within {}", format_duration(Duration::from_millis(within))),
        _ => format!("{told} sockets are closed with {code}, over {}", format_duration(Duration::from_millis(within))),
    }
}

fn check(selection: &Selection) -> Result<(), SocketsError> {
    match &selection.client {
        Some(client) if parse_network(client).is_none() => Err(SocketsError::Client(client.clone())),
        _ => Ok(()),
    }
}

/// The ids of each process; `None` is the one that is not old.
fn by_process(ids: &[String]) -> Result<BTreeMap<Option<u32>, BTreeSet<u64>>, SocketsError> {
    let mut all: BTreeMap<Option<u32>, BTreeSet<u64>> = BTreeMap::new();
    for text in ids {
        let parsed = match text.split_once(':') {
            Some((pid, id)) => pid.parse().ok().zip(id.parse().ok()).map(|(pid, id)| (Some(pid), id)),
            None => text.parse().ok().map(|id| (None, id)),
        };
        let (process, id) = parsed.ok_or_else(|| SocketsError::Id(text.clone()))?;
        all.entry(process).or_default().insert(id);
    }
    Ok(all)
}

/// A process that is asked.
struct Asked {
    /// Its number, if a newer one has taken over from it.
    old: Option<u32>,
    path: PathBuf,
}

impl Asked {
    fn id(&self, id: &str) -> String {
        self.old.map_or_else(|| id.to_owned(), |pid| format!("{pid}:{id}"))
    }
}

/// Asks every process that there is, the one in charge last: its sockets are the youngest. What a dead process left
/// behind is nobody.
fn each(path: &Path, mut ask: impl FnMut(&Asked) -> Result<(), SocketsError>) -> Result<(), SocketsError> {
    let old = control::leftovers(path).into_iter().map(|(pid, path)| Asked { old: Some(pid), path });
    let (mut answered, mut absent, mut failed) = (false, None, None);
    for process in old.chain([Asked { old: None, path: path.to_owned() }]) {
        match ask(&process) {
            Ok(()) => answered = true,
            Err(SocketsError::Control(nobody @ ControlError::NotRunning(_))) => absent = Some(nobody),
            // An old process that is unwell does not hide the one in charge.
            Err(error) if process.old.is_some() => failed = failed.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    match absent {
        Some(nobody) if !answered => Err(nobody.into()),
        _ => Ok(()),
    }
}

/// Hands over the lines of an answer. One that does not end with a sum has broken off.
fn read(process: &Asked, order: &str, mut take: impl FnMut(Line) -> io::Result<()>) -> Result<(), SocketsError> {
    let reader = converse(&process.path, order, PATIENCE)?.map_err(SocketsError::Refused)?;
    for line in reader.lines() {
        let mut line: Line = parse(&line.map_err(ControlError::NoAnswer)?)?;
        let is_last = matches!(line, Line::Sum(_));
        if let Line::Socket(row) = &mut line {
            name(row, process);
        }
        take(line).map_err(SocketsError::Write)?;
        if is_last {
            return Ok(());
        }
    }
    Err(broken_off())
}

fn name(row: &mut Row, process: &Asked) {
    row.id = process.id(&row.id);
    row.old = process.old.is_some();
}

fn only(process: &Asked, order: &str) -> Result<Told, SocketsError> {
    let mut reader = converse(&process.path, order, PATIENCE)?.map_err(SocketsError::Refused)?;
    let mut line = String::new();
    reader.read_line(&mut line).map_err(ControlError::NoAnswer)?;
    parse(&line)
}

fn parse<'a, T: serde::Deserialize<'a>>(line: &'a str) -> Result<T, SocketsError> {
    serde_json::from_str(line).map_err(|_| broken_off())
}

fn broken_off() -> SocketsError {
    ControlError::NoAnswer(io::Error::new(io::ErrorKind::UnexpectedEof, "its answer broke off")).into()
}

fn json(value: &impl Serialize) -> String {
    // Strings and numbers are always JSON.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_their_process() {
        let ids = ["17", "1234:17", "18"].map(str::to_owned);
        let wanted = by_process(&ids).unwrap();
        assert_eq!(wanted[&None], BTreeSet::from([17, 18]));
        assert_eq!(wanted[&Some(1234)], BTreeSet::from([17]));
        for wrong in ["", "x", "17:", ":17", "1:2:3", "-1"] {
            assert!(by_process(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bare_close_is_refused_before_anybody_is_asked() {
        let nowhere = Path::new("/nowhere/x.sock");
        let close = |closing| close(nowhere, closing, &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(
            close(Closing { code: 1012, ..Closing::default() }),
            "name sockets by id or filter; --all closes every one"
        );
        assert!(close(Closing { code: 1006, all: true, ..Closing::default() }).contains("1012 (restart)"));
        let client = Selection { client: Some("10.0.0.0/33".to_owned()), ..Selection::default() };
        assert!(close(Closing { selection: client, code: 1012, ..Closing::default() }).contains("10.0.0.0/8"));
        assert!(close(Closing { code: 1012, all: true, ..Closing::default() }).contains("no doorward runs"));
    }
}
