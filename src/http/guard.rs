//! The guard before hyper: it reads the bytes of each HTTP/1.1 head before hyper does, follows the framing to the
//! next one, and refuses what two readers could read differently. Pure: the edge feeds it bytes and carries out
//! what it says.

mod chunked;
mod head;

use crate::base::fault::Kind;
use crate::http::request::HeadLimits;
use chunked::Chunked;
pub(crate) use head::is_token;

/// Follows one HTTP/1.1 connection.
#[derive(Debug)]
pub struct Guard {
    limits: HeadLimits,
    state: State,
    /// How far an incomplete head has been searched for its end.
    searched: usize,
    /// How far an incomplete head has been searched for what no head may have in it.
    scanned: usize,
    /// The request line of an incomplete head is there, and good.
    has_line: bool,
    heads: u64,
}

/// Why the guard ends a connection. `kind` becomes the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// What it is.
    pub kind: Kind,
    /// For the log.
    pub detail: &'static str,
}

/// What became of the bytes that the guard was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// So many bytes are good and may be passed on. The rest must be shown again, with more behind it.
    pub pass: usize,
    /// Set when what follows the passed bytes is refused.
    pub refusal: Option<Refusal>,
    /// Whether the refused bytes stand within a body, whose head has passed already.
    pub in_body: bool,
}

/// Where in the stream the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before or within a head.
    Head,
    /// Within a body.
    Body,
    /// Behind a WebSocket handshake, until it is known whether it succeeded.
    Handshake,
    /// Behind a refusal: nothing passes any more.
    Refused,
}

#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
    Handshake,
    Refused,
}

/// How the body behind a head is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
    /// A WebSocket handshake: what follows is held back until the back end has answered.
    Handshake,
}

impl Guard {
    /// A guard at the start of a connection.
    pub fn new(limits: HeadLimits) -> Guard {
        Guard { limits, state: State::Head, searched: 0, scanned: 0, has_line: false, heads: 0 }
    }

    /// Where the connection is.
    pub fn place(&self) -> Place {
        match self.state {
            State::Head => Place::Head,
            State::Length(_) | State::Chunked(_) => Place::Body,
            State::Handshake => Place::Handshake,
            State::Refused => Place::Refused,
        }
    }

    /// How many heads have passed.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// Looks at bytes, the first of which is the first that has not been passed yet.
    pub fn inspect(&mut self, bytes: &[u8]) -> Step {
        let mut pass = 0;
        loop {
            let rest = bytes.get(pass..).unwrap_or_default();
            if rest.is_empty() {
                return Step { pass, refusal: None, in_body: false };
            }
            let taken = match &mut self.state {
                State::Head => self.head(rest),
                State::Length(left) => {
                    let n = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                    Ok(n)
                }
                State::Chunked(chunked) => match chunked.advance(rest) {
                    Ok((n, done)) => {
                        if done {
                            self.state = State::Head;
                        }
                        Ok(n)
                    }
                    Err(refusal) => Err(refusal),
                },
                State::Handshake | State::Refused => Ok(0),
            };
            match taken {
                Ok(0) => return Step { pass, refusal: None, in_body: false },
                Ok(n) => pass += n,
                Err(refusal) => {
                    let in_body = self.place() == Place::Body;
                    self.state = State::Refused;
                    return Step { pass, refusal: Some(refusal), in_body };
                }
            }
        }
    }

    /// The handshake was answered with an ordinary response: what follows are requests again.
    pub fn handshake_refused(&mut self) {
        if matches!(self.state, State::Handshake) {
            self.state = State::Head;
        }
    }

    /// Gives up waiting: nothing passes any more.
    pub fn refuse(&mut self) {
        self.state = State::Refused;
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let ahead = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
        // The verdict must not depend on how much of a head has arrived: only what it may be long is looked at.
        let most = self.limits.max_header_size.saturating_add(ahead);
        let (window, is_longer) = bytes.get(..most).map_or((bytes, false), |window| (window, bytes.len() > most));
        let from = self.searched.max(ahead);
        let found = self.find_end(window, ahead, is_longer);
        let whole = found.ok().flatten().and_then(|end| bytes.get(..end));
        let looked_at = window.get(..self.searched).unwrap_or(window);
        if let Some(stray) = self.find_stray(looked_at) {
            self.check_line(window.get(..stray).unwrap_or_default(), ahead, from)?;
            return Err(malformed("a control character in the head"));
        }
        let Some(head) = whole else {
            self.check_line(window, ahead, from)?;
            return found.map(|_| 0);
        };
        let end = head.len();
        let framing = head::check(head, self.limits)?;
        (self.searched, self.scanned, self.has_line) = (0, 0, false);
        self.heads += 1;
        self.state = match framing {
            Framing::None | Framing::Length(0) => State::Head,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::Chunked(Chunked::new(self.limits.max_header_size, self.limits.max_headers)),
            Framing::Handshake => State::Handshake,
        };
        Ok(end)
    }

    /// Where there is a byte that no head has: NUL, or a CR that ends no line. Who sends one speaks something else, and the
    /// end of a head may never come.
    fn find_stray(&mut self, bytes: &[u8]) -> Option<usize> {
        let from = self.scanned;
        for at in memchr::memchr2_iter(b'\r', 0, bytes.get(from..).unwrap_or_default()).map(|at| from + at) {
            match bytes.get(at..at + 2) {
                Some(b"\r\n") => {}
                None if bytes.get(at) == Some(&b'\r') => {
                    self.scanned = at;
                    return None;
                }
                _ => return Some(at),
            }
        }
        self.scanned = bytes.len();
        None
    }

    /// Refuses a bad request line as soon as it is there: what follows it may be nothing that ends as a head does.
    /// `from`: no line ends in front of it.
    fn check_line(&mut self, bytes: &[u8], ahead: usize, from: usize) -> Result<(), Refusal> {
        let fresh = bytes.get(from..).filter(|_| !self.has_line).unwrap_or_default();
        let end = memchr::memchr(b'\n', fresh).map(|end| from + end);
        let line = end.and_then(|end| bytes.get(ahead..end)?.strip_suffix(b"\r"));
        if let Some(line) = line.filter(|line| !line.is_empty()) {
            head::check_line(line, self.limits)?;
            self.has_line = true;
        }
        Ok(())
    }

    /// Where the head ends, behind its empty line. Every line must end in CRLF. `searched` is then where it ends, or how far
    /// it is good.
    fn find_end(&mut self, bytes: &[u8], ahead: usize, is_longer: bool) -> Result<Option<usize>, Refusal> {
        loop {
            let Some(found) = memchr::memchr(b'\n', bytes.get(self.searched..).unwrap_or_default()) else {
                self.searched = bytes.len();
                break;
            };
            let at = self.searched + found;
            let line_end = at.checked_sub(1).filter(|cr| bytes.get(*cr) == Some(&b'\r'));
            let Some(line_end) = line_end else {
                self.searched = at;
                // RFC 9112, section 2.2 lets a recipient take a bare LF; two that disagree about it are how
                // requests are smuggled.
                return Err(malformed("a line of the head ends in a bare LF"));
            };
            self.searched = at + 1;
            let empty = line_end == 0 || bytes.get(line_end - 1) == Some(&b'\n');
            // RFC 9112, section 2.2: one empty line before the request line is ignored.
            if empty && line_end > 1 {
                if line_end == ahead {
                    return Err(malformed("empty lines instead of a request"));
                }
                return Ok(Some(at + 1));
            }
        }
        if is_longer {
            // A request line that never ends is a target that is too long.
            return Err(match memchr::memchr(b'\n', bytes.get(ahead..).unwrap_or_default()) {
                None => {
                    Refusal { kind: Kind::TargetTooLong, detail: "the request line is over limits.max_header_size" }
                }
                Some(_) => Refusal { kind: Kind::HeadTooLarge, detail: "the head is over limits.max_header_size" },
            });
        }
        Ok(None)
    }
}

fn malformed(detail: &'static str) -> Refusal {
    Refusal { kind: Kind::Malformed, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { max_uri: 100, max_headers: 5, max_header_size: 500 };

    fn inspect(text: &str) -> Step {
        Guard::new(LIMITS).inspect(text.as_bytes())
    }

    fn refusal(text: &str) -> Option<Kind> {
        inspect(text).refusal.map(|r| r.kind)
    }

    fn get(fields: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    }

    #[test]
    fn whole_requests_pass_one_after_the_other() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
                    POST /y HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\nGET";
        let step = inspect(text);
        assert_eq!(step, Step { pass: text.len() - 3, refusal: None, in_body: false });
    }

    #[test]
    fn a_head_that_is_too_long_is_refused_alike_however_it_arrives() {
        let line = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(600));
        let fields = get(&"a: b\r\n".repeat(100));
        let behind = format!("GET / HTTP/1.1\r\na: {}\n\r\n", "b".repeat(600));
        for (text, kind) in [
            (&line, Kind::TargetTooLong),
            (&format!("\r\n{line}"), Kind::TargetTooLong),
            (&fields, Kind::HeadTooLarge),
            (&behind, Kind::HeadTooLarge),
        ] {
            for size in [1, 499, 501, 502, text.len()] {
                let mut guard = Guard::new(LIMITS);
                let shown = (1..).map(|n| (n * size).min(text.len()));
                let refusal = shown.map(|shown| guard.inspect(&text.as_bytes()[..shown]).refusal).find_map(|r| r);
                assert_eq!(refusal.map(|refusal| refusal.kind), Some(kind), "{size} of {text:?}");
            }
        }
    }

    #[test]
    fn what_cannot_become_a_head_is_refused_before_it_ends_and_alike_however_it_arrives() {
        let hello = "\u{16}\u{3}\u{1}\u{2}\0\u{1}";
        for (text, kind) in [
            ("GET /x\r\n", Kind::Malformed),
            ("SSH-2.0-OpenSSH_9\r\n", Kind::Malformed),
            ("GET / HTTP/2.0\r\n", Kind::Version),
            ("\r\nGET / HTTP/2.0\r\nHost: a\0", Kind::Version),
            ("GET /\0 HTTP/2.0\r\n", Kind::Malformed),
            ("GET / HTTP/2.0\rHost: a\r\n", Kind::Malformed),
            ("GET / HTTP/1.1\rHost: a\r\r", Kind::Malformed),
            ("GET / HTTP/1.1\r\nHost: a\r\nb: \0", Kind::Malformed),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\nb: \0\r\n\r\n", Kind::Malformed),
            (hello, Kind::Malformed),
        ] {
            for size in 1..=text.len() {
                let mut guard = Guard::new(LIMITS);
                let shown = (1..).map(|n| (n * size).min(text.len())).take(text.len());
                let refusal = shown.map(|shown| guard.inspect(&text.as_bytes()[..shown]).refusal).find_map(|r| r);
                assert_eq!(refusal.map(|refusal| refusal.kind), Some(kind), "{size} of {text:?}");
            }
        }
        assert_eq!(refusal("GET / HTTP/1.1\r\nHost: a\r\nb: c\r"), None);
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: ,chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding : chunked\r\n",
            " folded: x\r\n",
            "a: b\r\n folded\r\n",
            "no colon\r\n",
            ": empty\r\n",
            "a\0b: x\r\n",
            "a: b\0c\r\n",
            "a: b\rc\r\n",
            "Host: b\r\n",
        ] {
            assert_eq!(refusal(&get(fields)), Some(Kind::Malformed), "{fields:?}");
        }
        assert_eq!(refusal(&get("Transfer-Encoding: gzip\r\n")), Some(Kind::UnknownCoding));
        assert_eq!(refusal(&get("Transfer-Encoding: gzip, chunked\r\n")), Some(Kind::UnknownCoding));
        assert_eq!(refusal("GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), Some(Kind::Malformed));
        assert_eq!(refusal("GET / HTTP/1.1\r\n\r\n"), Some(Kind::Malformed));
        assert_eq!(refusal("GET / HTTP/1.1\nHost: a\n\n"), Some(Kind::Malformed));
    }

    #[test]
    fn odd_request_lines_are_refused() {
        for line in [
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET\t/ HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET /#a HTTP/1.1",
            "GET /",
            "G(T / HTTP/1.1",
            "GET / http/1.1",
            "GET / HTTP/1.10",
            "GET x HTTP/1.1",
            "GET a.test:80 HTTP/1.1",
            "GET ftp://a/ HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "GET  HTTP/1.1",
        ] {
            assert_eq!(refusal(&format!("{line}\r\nHost: a\r\n\r\n")), Some(Kind::Malformed), "{line:?}");
        }
        assert_eq!(refusal("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some(Kind::Version));
        assert_eq!(refusal("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"), Some(Kind::Method));
    }

    #[test]
    fn limits_are_told_apart() {
        let long = "x".repeat(600);
        assert_eq!(refusal(&format!("GET /{}", &long)), Some(Kind::TargetTooLong));
        assert_eq!(refusal(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[..101])), Some(Kind::TargetTooLong));
        assert_eq!(refusal(&get(&format!("a: {long}"))), Some(Kind::HeadTooLarge));
        assert_eq!(refusal(&get("a: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\ne: 1\r\n")), Some(Kind::HeadTooLarge));
    }

    #[test]
    fn broken_chunks_are_refused() {
        for body in [
            "0x5\r\n",
            "+5\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\nabcde\r\n",
            "5\r\nabcdeXX",
            "g\r\n",
            "\r\n",
            "11111111111111111\r\n",
            "5;a=\"b\r\n",
            "5;\x01\r\n",
            "0\r\nbad line\r\n\r\n",
            "0\r\na: b\n\r\n",
            "5\r\r\n",
        ] {
            let text = format!("{}{body}", get("Transfer-Encoding: chunked\r\n"));
            assert_eq!(refusal(&text), Some(Kind::Malformed), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_end_before_hypers_own_limits() {
        let limits = HeadLimits { max_header_size: 64 * 1024, ..LIMITS };
        let refusal = |body: String| {
            let text = get("Transfer-Encoding: chunked\r\n") + &body;
            Guard::new(limits).inspect(text.as_bytes()).refusal.map(|r| r.kind)
        };
        // hyper refuses from 16,384 bytes on, and does not say why.
        let extension = |n: usize| refusal(format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(n)));
        assert_eq!((extension(16_383), extension(16_384)), (None, Some(Kind::Malformed)));
        let trailer = |n: usize| refusal(format!("0\r\na:{}\r\n\r\n", "x".repeat(n - 6)));
        assert_eq!((trailer(16_383), trailer(16_384)), (None, Some(Kind::HeadTooLarge)));
    }

    #[test]
    fn bytes_behind_a_handshake_wait_for_its_outcome() {
        let head = get("Upgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n");
        let mut guard = Guard::new(LIMITS);
        let text = format!("{head}GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(guard.inspect(text.as_bytes()).pass, head.len());
        assert_eq!(guard.place(), Place::Handshake);
        guard.handshake_refused();
        assert_eq!(guard.inspect(&text.as_bytes()[head.len()..]).pass, text.len() - head.len());
    }

    proptest::proptest! {
        #[test]
        fn any_split_gives_the_same_verdict(cuts in proptest::collection::vec(1usize..20, 1..80), which in 0usize..6) {
            let texts = [
                get("Content-Length: 3\r\n") + "abc" + &get(""),
                get("Transfer-Encoding: chunked\r\n") + "a;x=\"y\\\"z\"\r\n0123456789\r\n0\r\nt: v\r\n\r\n" + &get(""),
                get("Transfer-Encoding: chunked\r\n") + "3\r\nabcX",
                get("a: b\r\n c\r\n"),
                "\r\n".to_owned() + &get("") + "GET / HTTP/1.1\n",
                get("Content-Length: 0\r\n") + &get("Transfer-Encoding: gzip\r\n"),
            ];
            let text = texts[which].as_bytes();
            let whole = Guard::new(LIMITS).inspect(text);
            let mut guard = Guard::new(LIMITS);
            let (mut passed, mut shown, mut refusal) = (0, 0, None);
            for cut in cuts.iter().cycle() {
                shown = (shown + cut).min(text.len());
                let step = guard.inspect(&text[passed..shown]);
                passed += step.pass;
                refusal = refusal.or(step.refusal);
                if shown == text.len() || refusal.is_some() { break }
            }
            // Shown piecemeal, what precedes a broken chunk has passed already.
            proptest::prop_assert_eq!(refusal, whole.refusal);
            proptest::prop_assert!(passed >= whole.pass);
            if refusal.is_none() { proptest::prop_assert_eq!(passed, whole.pass); }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let step = Guard::new(LIMITS).inspect(&bytes);
            proptest::prop_assert!(step.pass <= bytes.len());
        }
    }
}
