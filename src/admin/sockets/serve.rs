//! The side of the process that has the sockets.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{CloseOrder, Line, ListOrder, Row, Sum, Told, is_allowed_code};
use crate::base::units::format_duration;
use crate::edge::process::Process;
use crate::tunnel::register::{Listed, Tunnels, window};

/// How long the one who asked may take nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A piece of an answer: with 10,000 sockets it is more than a megabyte in all, and is never in memory at once.
const PIECE: usize = 16 * 1024;

/// Answers `sockets list`, piece by piece.
pub(in crate::admin) async fn list(stream: &mut UnixStream, process: &Process, order: &str) -> io::Result<()> {
    let order: ListOrder = match serde_json::from_str(order) {
        Ok(order) => order,
        Err(error) => return write(stream, &refused(&error)).await,
    };
    let mut answer = "ok\n".to_owned();
    let mut sum = Sum { pid: std::process::id(), live: process.tunnels.len(), ..Sum::default() };
    let mut left = order.limit.unwrap_or(usize::MAX);
    for page in process.tunnels.pages() {
        for listed in page.into_iter().filter(|listed| order.selection.chooses(listed)) {
            match sum.sites.get_mut(&*listed.info.site) {
                Some(count) => *count += 1,
                None => drop(sum.sites.insert(listed.info.site.to_string(), 1)),
            }
            if left > 0 {
                left -= 1;
                push(&mut answer, &Line::Socket(row(listed, sum.pid)));
            }
            if answer.len() >= PIECE {
                write(stream, &answer).await?;
                answer.clear();
            }
        }
        // Other clients of the control thread get their turn, also where nothing is written.
        tokio::task::yield_now().await;
    }
    sum.configurations = process.generations.held();
    sum.counted = process.refusals().into_iter().collect();
    push(&mut answer, &Line::Sum(sum));
    write(stream, &answer).await
}

/// Answers `sockets close`.
pub(in crate::admin) async fn close(stream: &mut UnixStream, tunnels: &Tunnels, order: &str) -> io::Result<()> {
    let answer = match serde_json::from_str::<CloseOrder>(order) {
        Ok(order) => match carry_out(tunnels, &order) {
            Ok(told) => {
                let mut answer = "ok\n".to_owned();
                push(&mut answer, &told);
                answer
            }
            Err(why) => format!("failed\n{why}\n"),
        },
        Err(error) => refused(&error),
    };
    write(stream, &answer).await
}

fn carry_out(tunnels: &Tunnels, order: &CloseOrder) -> Result<Told, String> {
    let CloseOrder { selection, all, code, over_ms } = order;
    if !is_allowed_code(*code) {
        return Err(format!("{code} is not a status that a socket is closed with"));
    }
    if selection.is_all() && !all {
        return Err("sockets are closed by id or by what they are".to_owned());
    }
    let chosen: HashSet<u64> =
        tunnels.pages().flatten().filter(|listed| selection.chooses(listed)).map(|listed| listed.id).collect();
    let over = Duration::from_millis(*over_ms);
    let told = tunnels.close(|id, _| chosen.contains(&id), *code, over);
    if told > 0 {
        let (what, over) = (if told == 1 { "socket" } else { "sockets" }, format_duration(window(told, over)));
        tracing::info!("doorward sockets close: {told} {what} with {code}, over {over}");
    }
    let mut unknown: Vec<u64> = selection.ids.iter().copied().collect();
    unknown.retain(|id| !chosen.contains(id));
    let over_ms = u64::try_from(window(told, over).as_millis()).unwrap_or(u64::MAX);
    Ok(Told { told, unknown, over_ms })
}

fn row(listed: Listed, pid: u32) -> Row {
    let info = listed.info;
    Row {
        id: listed.id.to_string(),
        site: info.site.to_string(),
        client: info.client.to_string(),
        upstream: info.back_end.to_string(),
        path: info.path.into(),
        version: if info.http2 { "HTTP/2.0" } else { "HTTP/1.1" }.to_owned(),
        duration: (listed.age.as_secs_f64() * 1000.0).round() / 1000.0,
        idle: listed.idle.as_secs(),
        bytes_received: listed.bytes_to_back_end,
        bytes_sent: listed.bytes_to_client,
        messages_received: listed.messages_to_back_end,
        messages_sent: listed.messages_to_client,
        pid,
        old: false,
    }
}

fn refused(error: &serde_json::Error) -> String {
    format!("failed\nthe running doorward does not understand this ({error}): it is of another version\n")
}

fn push(answer: &mut String, line: &impl Serialize) {
    // Strings and numbers are always JSON.
    if let Ok(text) = serde_json::to_string(line) {
        answer.push_str(&text);
        answer.push('\n');
    }
}

async fn write(stream: &mut UnixStream, text: &str) -> io::Result<()> {
    tokio::time::timeout(PATIENCE, stream.write_all(text.as_bytes())).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    use crate::admin::sockets::tests::info;
    use crate::admin::testing::process;
    use crate::tunnel::register::Entry;

    fn crowd(tunnels: &Tunnels, site: &str, count: usize) -> Vec<Entry> {
        (0..count).map(|_| tunnels.open(info(site))).collect()
    }

    async fn answer_to(process: &Process, order: &str) -> Vec<String> {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let mut text = String::new();
        let (served, read) = tokio::join!(
            async {
                let served = list(&mut near, process, order).await;
                drop(near);
                served
            },
            far.read_to_string(&mut text)
        );
        served.unwrap();
        read.unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_list_is_one_object_a_line_and_ends_with_the_sum() {
        let process = process();
        let _crowd = (crowd(&process.tunnels, "a", 1500), crowd(&process.tunnels, "b", 500));
        let lines = answer_to(&process, "{}").await;
        assert_eq!((lines.len(), lines[0].as_str()), (2002, "ok"));
        let first = r#"{"socket":{"id":"0","site":"a","client":"192.0.2.1","upstream":"http://127.0.0.1:3444","path":"/socket.io/","version":"HTTP/1.1","duration":"#;
        assert!(lines[1].starts_with(first), "{}", lines[1]);
        let last: Line = serde_json::from_str(&lines[2001]).unwrap();
        let Line::Sum(sum) = last else { panic!("{last:?}") };
        assert_eq!((sum.live, sum.sites["a"], sum.sites["b"]), (2000, 1500, 500));
        assert_eq!(sum.configurations, [1]);
        // A limit cuts the rows, not the sum.
        let lines = answer_to(&process, r#"{"selection":{"site":"b"},"limit":3}"#).await;
        assert_eq!(lines.len(), 5);
        assert!(
            lines[1].contains(r#""id":"1500""#) && lines[4].contains(r#""sites":{"b":500},"live":2000"#),
            "{lines:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_does_not_read_is_given_up() {
        let process = process();
        let _crowd = crowd(&process.tunnels, "a", 10_000);
        let (mut near, _far) = UnixStream::pair().unwrap();
        let start = tokio::time::Instant::now();
        assert_eq!(list(&mut near, &process, "{}").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), PATIENCE);
    }

    #[tokio::test]
    async fn what_is_not_understood_is_refused() {
        let process = process();
        for order in ["", "{", r#"{"selection":{"colour":"red"}}"#] {
            assert_eq!(answer_to(&process, order).await[0], "failed", "{order}");
        }
    }

    #[tokio::test]
    async fn those_that_are_chosen_are_told_and_no_others() {
        let tunnels = Tunnels::default();
        let _crowd = (crowd(&tunnels, "a", 5), crowd(&tunnels, "b", 3));
        let order = |selection: &str, rest: &str| {
            let text = format!(r#"{{"selection":{selection},{rest}}}"#);
            carry_out(&tunnels, &serde_json::from_str(&text).unwrap())
        };
        let told = order(r#"{"ids":[1,77]}"#, r#""all":false,"code":1012,"over_ms":0"#).unwrap();
        assert_eq!((told.told, told.unknown.as_slice(), told.over_ms), (1, &[77][..], 0));
        let told = order(r#"{"site":"b"}"#, r#""all":false,"code":1001,"over_ms":30000"#).unwrap();
        assert_eq!((told.told, told.over_ms), (3, 3000));
        assert_eq!(order("{}", r#""all":true,"code":4000,"over_ms":1"#).unwrap().told, 8);
        assert!(order("{}", r#""all":false,"code":1012,"over_ms":0"#).is_err());
        assert!(order("{}", r#""all":true,"code":1006,"over_ms":0"#).is_err());
    }
}
