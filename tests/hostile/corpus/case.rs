//! A case as data: what is sent, and what has to become of it.

use crate::corpus::record::Request;

/// One thing that is tried.
#[derive(Debug, Clone)]
pub struct Case {
    /// The row of tests/threats.md.
    pub row: u8,
    pub name: String,
    pub sent: Sent,
    pub want: Verdict,
}

#[derive(Debug, Clone)]
pub enum Sent {
    /// Bytes of HTTP/1.1. Each `char` of the text is one byte.
    H1(Vec<u8>),
    /// A stream of HTTP/2.
    H2 { fields: Fields, body: Option<Vec<u8>>, trailers: Option<Fields> },
}

pub type Fields = Vec<(String, String)>;

/// What became of it. A canary is sent behind each case, on the same connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Answered with this status by the server itself; the connection ends, and the canary is never seen.
    Closed(u16),
    /// Answered with this status by the server itself; the canary is answered.
    Kept(u16),
    /// The back end got exactly these; the canary is answered.
    Passed(Vec<Request>),
    /// The back end got exactly these; the connection ends.
    Last(Vec<Request>),
    /// The back end got exactly these; what follows is refused with this status, and the connection ends.
    Then(Vec<Request>, u16),
    /// HTTP/2: the stream is reset; the canary is answered.
    Reset,
    /// HTTP/2: the connection ends.
    Gone,
    /// None of these.
    Odd(String),
}

/// A growing list of cases.
#[derive(Default)]
pub struct Cases(pub Vec<Case>);

impl Cases {
    fn add(&mut self, row: u8, name: impl Into<String>, raw: &str, want: Verdict) {
        self.0.push(Case { row, name: name.into(), sent: Sent::H1(bytes(raw)), want });
    }

    /// HTTP/1.1 that is refused, and whose connection ends.
    pub fn closed(&mut self, row: u8, name: impl Into<String>, status: u16, raw: &str) {
        self.add(row, name, raw, Verdict::Closed(status));
    }

    /// HTTP/1.1 that is answered here, and whose connection stays.
    pub fn kept(&mut self, row: u8, name: impl Into<String>, status: u16, raw: &str) {
        self.add(row, name, raw, Verdict::Kept(status));
    }

    /// HTTP/1.1 that reaches the back end as this request.
    pub fn passed(&mut self, row: u8, name: impl Into<String>, raw: &str, saw: Request) {
        self.add(row, name, raw, Verdict::Passed(vec![saw]));
    }

    /// HTTP/1.1 that reaches the back end as these requests.
    pub fn several(&mut self, row: u8, name: impl Into<String>, raw: &str, saw: &[Request]) {
        self.add(row, name, raw, Verdict::Passed(saw.to_vec()));
    }

    /// HTTP/1 that reaches the back end, and after whose answer the connection ends.
    pub fn last(&mut self, row: u8, name: impl Into<String>, raw: &str, saw: Request) {
        self.add(row, name, raw, Verdict::Last(vec![saw]));
    }

    /// HTTP/1.1 that reaches the back end as this request, and what is behind it is refused with 400.
    pub fn refused_behind(&mut self, row: u8, name: impl Into<String>, raw: &str, saw: Request) {
        self.add(row, name, raw, Verdict::Then(vec![saw], 400));
    }

    /// A stream of HTTP/2.
    pub fn h2(&mut self, row: u8, name: impl Into<String>, fields: Fields, body: Option<&str>, want: Verdict) {
        let body = body.map(str::as_bytes).map(<[u8]>::to_vec);
        self.0.push(Case { row, name: name.into(), sent: Sent::H2 { fields, body, trailers: None }, want });
    }
}

/// One byte for each character.
pub fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect()
}

pub const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

pub fn get(fields: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")
}

pub fn post(fields: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{body}")
}

pub fn chunks(body: &str) -> String {
    post(CHUNKED, body)
}

pub fn line(line: &str) -> String {
    format!("{line}\r\nHost: a.test\r\n\r\n")
}

pub fn host(fields: &str) -> String {
    format!("GET /x HTTP/1.1\r\n{fields}\r\n")
}

/// What the back end gets of a request without anything special.
pub fn saw(start: &str) -> Request {
    Request::new(start)
}
