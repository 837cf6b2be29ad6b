//! What is tried to make PHP-FPM run, or Doorward show, what nobody meant: paths, variables, answers. The FPM behind it
//! is set up as badly as people do it: it would run any file that it is told to (`the_baits_are_live` shows it).

mod answers;
mod bait;
mod environment;
mod fastcgi;
mod paths;
mod requests;

use std::time::{Duration, Instant};

use crate::harness::{Proxy, Raw, World, promised};

/// Every answer comes within this time.
const DEADLINE: Duration = Duration::from_secs(5);

/// What came over HTTP/1.1: the status (0 where the connection ended without one), the head, the content, and whether
/// the content is as long as the head says.
struct Answer {
    status: u16,
    head: String,
    content: String,
    complete: bool,
}

/// Sends `bytes` over a TLS connection of its own and reads until the server closes.
fn exchange(world: &World, proxy: &Proxy, what: &str, bytes: &[u8]) -> Answer {
    let mut raw = Raw::tls(world, proxy.https(), "app.test");
    let asked = Instant::now();
    let text = raw.send(bytes).ended().unwrap_or_else(|heard| panic!("{what}: still open after {heard:?}"));
    assert!(asked.elapsed() < promised(DEADLINE), "{what}: {:?}", asked.elapsed());
    read(&text)
}

fn read(text: &str) -> Answer {
    let (head, rest) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let fields = head.to_lowercase();
    let length = fields.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
    let (content, complete) = if fields.contains("\r\ntransfer-encoding: chunked") {
        dechunk(rest)
    } else {
        (rest.to_owned(), length == Some(rest.len()) || fields.starts_with("http/1.1 204"))
    };
    Answer { status: crate::harness::status(head), head: fields, content, complete }
}

fn dechunk(mut rest: &str) -> (String, bool) {
    let mut content = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (content, after == "\r\n");
        }
        let Some(chunk) = after.get(..size) else { return (content + after, false) };
        content.push_str(chunk);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    (content, false)
}
