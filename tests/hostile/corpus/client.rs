//! Sends cases and reads what comes back.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use crate::corpus::case::{Case, Sent, Verdict};
use crate::corpus::record::{Recorder, Request, text};
use crate::edge::send;
use crate::h2_client::{self, Client, DATA, END_HEADERS, END_STREAM, End, HEADERS, block, frame};
use crate::tls_client::{self, Tls};

/// RFC 9113, section 6.10; and the largest frame that everybody takes (section 4.2).
const CONTINUATION: u8 = 9;
const LARGEST: usize = 16_384;

pub const CANARY: &[u8] = b"GET /canary HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

/// An answer of HTTP/1.1, as a strict client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
    /// Whether the client can tell that this is all of it.
    pub whole: bool,
}

pub fn h1(address: SocketAddr, name: &str) -> Tls {
    tls_client::connect(address, name, &[b"http/1.1"])
}

/// Everything up to the end of the stream, however it ends.
pub fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 16384];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came any more after {:?}", text(&bytes))
            }
            Err(_) => return bytes,
        }
    }
}

/// The answers in `bytes`; interim ones are passed over. The first is to a HEAD where `head` says so. What is no answer
/// has the status 0.
pub fn answers(bytes: &[u8], mut head: bool) -> Vec<Answer> {
    let mut all = Vec::new();
    let mut rest = text(bytes);
    while !rest.is_empty() {
        let (answer, left) = one(&rest, head);
        rest = left;
        if !(100..200).contains(&answer.status) {
            head = false;
            all.push(answer);
        }
    }
    all
}

fn one(bytes: &str, to_head: bool) -> (Answer, String) {
    let junk = || Answer { status: 0, head: bytes.to_owned(), body: String::new(), whole: false };
    let Some((head, rest)) = bytes.split_once("\r\n\r\n") else { return (junk(), String::new()) };
    let line = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "));
    let status = line.and_then(|line| line.get(..3)).and_then(|code| code.parse().ok());
    let Some(status) = status else { return (junk(), String::new()) };
    let lower = head.to_ascii_lowercase();
    let field = |name: &str| lower.lines().filter_map(|line| line.strip_prefix(name)).map(str::trim).next();
    let answer = |body: &str, whole| Answer { status, head: lower.clone(), body: body.to_owned(), whole };
    if to_head || matches!(status, 100..200 | 204 | 304) {
        return (answer("", true), rest.to_owned());
    }
    if field("transfer-encoding:") == Some("chunked") {
        let (mut body, mut left) = (String::new(), rest);
        loop {
            let Some((size, data)) = left.split_once("\r\n") else { return (answer(&body, false), String::new()) };
            let size = usize::from_str_radix(size, 16).expect("a chunk size");
            let Some((chunk, behind)) = data.split_at_checked(size) else {
                return (answer(&(body + data), false), String::new());
            };
            body.push_str(chunk);
            let Some(behind) = behind.strip_prefix("\r\n") else { return (answer(&body, false), String::new()) };
            if size == 0 {
                return (answer(&body, true), behind.to_owned());
            }
            left = behind;
        }
    }
    match field("content-length:").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => match rest.split_at_checked(length) {
            Some((body, behind)) => (answer(body, true), behind.to_owned()),
            None => (answer(rest, false), String::new()),
        },
        // Up to the end of the connection: nobody can tell.
        None => (answer(rest, false), String::new()),
    }
}

/// What came back of a case and of the canary behind it.
pub enum Came {
    H1(Vec<Answer>),
    /// `None` where the connection ended before the canary.
    H2(End, Option<End>),
}

/// Sends a case and its canary.
pub fn exchange(address: SocketAddr, case: &Case) -> Came {
    match &case.sent {
        Sent::H1(bytes) => {
            let mut stream = h1(address, "a.test");
            send(&mut stream, &[bytes, CANARY].concat());
            Came::H1(answers(&read_all(&mut stream), bytes.starts_with(b"HEAD ")))
        }
        Sent::H2 { fields, body, trailers } => {
            let mut client = Client::connect(address);
            client.send(&stream_of(1, fields, body.as_deref(), trailers.as_ref()));
            let end = client.end(1);
            if end == End::Gone {
                return Came::H2(end, None);
            }
            client.ask(3, &h2_client::request("GET", "/canary", &[]), None);
            Came::H2(end, Some(client.end(3)))
        }
    }
}

/// Sends a case and its canary, and says what became of it.
pub fn verdict(address: SocketAddr, back_end: &Recorder, case: &Case) -> Verdict {
    back_end.take();
    let came = exchange(address, case);
    let saw = saw(back_end);
    match came {
        Came::H1(answers) => judge_h1(&answers, &saw),
        Came::H2(_, None) if saw.is_empty() => Verdict::Gone,
        Came::H2(end, canary) => judge_h2(end, canary.unwrap_or(End::Gone), saw),
    }
}

/// The frames of one request.
pub fn stream_of(
    stream: u32,
    fields: &[(String, String)],
    body: Option<&[u8]>,
    trailers: Option<&Vec<(String, String)>>,
) -> Vec<u8> {
    let block = |fields: &[(String, String)]| {
        block(&fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect())
    };
    let end = |last: bool| if last { END_STREAM } else { 0 };
    let head_ends = end(body.is_none() && trailers.is_none());
    let head = block(fields);
    let mut pieces = head.chunks(LARGEST).peekable();
    let (mut bytes, mut kind, mut flags) = (Vec::new(), HEADERS, head_ends);
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags | last, stream, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    if let Some(body) = body {
        bytes.extend(frame(DATA, end(trailers.is_none()), stream, body));
    }
    if let Some(trailers) = trailers {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(trailers)));
    }
    bytes
}

/// What arrived as whole requests.
pub fn saw(back_end: &Recorder) -> Vec<Request> {
    back_end.take().into_iter().filter(|seen| seen.whole || !seen.faults.is_empty()).map(|seen| seen.request).collect()
}

pub fn is_canary(request: &Request) -> bool {
    request.start == "GET /canary"
}

fn judge_h1(answers: &[Answer], saw: &[Request]) -> Verdict {
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    let odd = || Verdict::Odd(format!("answers {statuses:?}, seen {saw:?}"));
    if answers.iter().any(|answer| !answer.whole) {
        return odd();
    }
    match (statuses.as_slice(), saw) {
        ([status], []) => Verdict::Closed(*status),
        ([status, 200], [canary]) if is_canary(canary) => Verdict::Kept(*status),
        ([passed @ .., 200], [requests @ .., canary])
            if is_canary(canary)
                && passed.len() == requests.len()
                && passed.iter().all(|status| *status == 200)
                && !requests.iter().any(is_canary) =>
        {
            Verdict::Passed(requests.to_vec())
        }
        (passed, requests)
            if passed.len() == requests.len()
                && passed.iter().all(|status| *status == 200)
                && !requests.iter().any(is_canary) =>
        {
            Verdict::Last(requests.to_vec())
        }
        ([passed @ .., status], requests)
            if *status >= 400
                && passed.len() == requests.len()
                && passed.iter().all(|status| *status == 200)
                && !requests.iter().any(is_canary) =>
        {
            Verdict::Then(requests.to_vec(), *status)
        }
        _ => odd(),
    }
}

fn judge_h2(end: End, canary: End, mut saw: Vec<Request>) -> Verdict {
    if canary != End::Answer(200, 2) || !saw.pop().is_some_and(|last| is_canary(&last)) {
        return Verdict::Odd(format!("{end:?}, canary {canary:?}, seen {saw:?}"));
    }
    match end {
        End::Answer(200, _) if !saw.is_empty() => Verdict::Passed(saw),
        End::Answer(status, _) if saw.is_empty() => Verdict::Kept(status),
        End::Reset(0) if saw.is_empty() => Verdict::Reset,
        _ => Verdict::Odd(format!("{end:?}, seen {saw:?}")),
    }
}
