//! The head of a CGI answer (RFC 3875, section 6): fields, then an empty line, then the body.

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use bytes::{Bytes, BytesMut};

/// The most that a head may be. Applications that keep their session in cookies send tens of KiB.
pub const MAX_HEAD: usize = 256 * 1024;

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status; never 1xx.
    pub status: StatusCode,
    /// The fields without `Status`, in the application's order.
    pub headers: HeaderMap,
    /// What `Content-Length` says.
    pub length: Option<u64>,
}

/// Why bytes are not the head of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// No empty line within the limit.
    #[error("the head of the answer is over {0} bytes")]
    TooLarge(usize),
    /// More fields than a field map holds.
    #[error("the head of the answer has too many fields")]
    TooMany,
    /// A line that is no field: no colon, a name that is no token, folded.
    #[error("line {0} of the answer's head is not a field")]
    Field(usize),
    /// A control character in a value: a field within a field.
    #[error("the value in line {0} of the answer's head has a control character")]
    Value(usize),
    /// A status that is no final status of HTTP, or two that differ.
    #[error("the status in line {0} of the answer's head is not one of an answer")]
    Status(usize),
    /// A Content-Length that is no number, or two that differ.
    #[error("the Content-Length in line {0} of the answer's head is not a number")]
    Length(usize),
}

/// Collects a head from the parts in which it comes.
#[derive(Debug)]
pub struct HeadReader {
    limit: usize,
    held: BytesMut,
    /// Where the line that is not complete begins.
    line: usize,
    /// What was searched for the end of that line.
    searched: usize,
}

impl HeadReader {
    /// A reader of a head of at most `limit` bytes.
    pub fn new(limit: usize) -> HeadReader {
        HeadReader { limit, held: BytesMut::new(), line: 0, searched: 0 }
    }

    /// Takes the next part of the application's output. Once the empty line has come, gives the head and what of
    /// `data` belongs to the body. How the output is cut into parts makes no difference.
    pub fn push(&mut self, mut data: Bytes) -> Result<Option<(Head, Bytes)>, BadHead> {
        if self.held.is_empty() {
            // Nearly always the whole head comes at once and need not be kept.
            if let Some(end) = self.find_end(&data)? {
                let head = data.split_to(end);
                return Ok(Some((parse(&head)?, data)));
            }
            self.held.extend_from_slice(&data);
            return Ok(None);
        }
        self.held.extend_from_slice(&data);
        let held = std::mem::take(&mut self.held);
        let end = self.find_end(&held)?;
        self.held = held;
        let Some(end) = end else { return Ok(None) };
        let mut whole = std::mem::take(&mut self.held).freeze();
        let head = whole.split_to(end);
        Ok(Some((parse(&head)?, whole)))
    }

    /// Where the head ends, with its empty line. Lines end in LF or CRLF (RFC 3875, section 6.2: "NL = `<newline>`").
    fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadHead> {
        while let Some(at) = bytes.get(self.searched..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            let end = self.searched + at;
            let empty = matches!(bytes.get(self.line..end), Some(b"" | b"\r"));
            self.line = end + 1;
            self.searched = self.line;
            if empty {
                return if self.line > self.limit { Err(BadHead::TooLarge(self.limit)) } else { Ok(Some(self.line)) };
            }
        }
        self.searched = bytes.len();
        if bytes.len() > self.limit { Err(BadHead::TooLarge(self.limit)) } else { Ok(None) }
    }
}

/// Reads a whole head, the empty line included. RFC 3875 has a `Location` with a path alone served by the server
/// itself; PHP means a redirect by it, and so does everything else that runs behind PHP-FPM: it goes to the client.
pub fn parse(head: &[u8]) -> Result<Head, BadHead> {
    let mut status = None;
    let mut length = None;
    let mut headers = HeaderMap::new();
    for (index, line) in head.split(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        // With cgi.rfc2616_headers PHP writes a status line instead of Status.
        if index == 0 && line.starts_with(b"HTTP/") {
            let code = line.splitn(2, |byte| *byte == b' ').nth(1).unwrap_or_default();
            set_status(&mut status, code).ok_or(BadHead::Status(number))?;
            continue;
        }
        let colon = memchr::memchr(b':', line).ok_or(BadHead::Field(number))?;
        let (name, value) = line.split_at_checked(colon).ok_or(BadHead::Field(number))?;
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        // Refuses folded lines and a space before the colon as well: neither is in a token.
        let name = HeaderName::from_bytes(name).map_err(|_| BadHead::Field(number))?;
        let field = HeaderValue::from_bytes(value).map_err(|_| BadHead::Value(number))?;
        if name == "status" {
            set_status(&mut status, value).ok_or(BadHead::Status(number))?;
        } else if name == header::CONTENT_LENGTH {
            let said = digits(value).ok_or(BadHead::Length(number))?;
            if *length.get_or_insert(said) != said {
                return Err(BadHead::Length(number));
            }
            headers.insert(name, field);
        } else {
            headers.try_append(name, field).map_err(|_| BadHead::TooMany)?;
        }
    }
    let fallback = if headers.contains_key(header::LOCATION) { StatusCode::FOUND } else { StatusCode::OK };
    Ok(Head { status: status.unwrap_or(fallback), headers, length })
}

/// Three digits, then nothing or a reason. Interim statuses are not CGI's to send, 101 least of all.
fn set_status(status: &mut Option<StatusCode>, value: &[u8]) -> Option<()> {
    let (code, reason) = value.split_at_checked(3)?;
    if !matches!(reason.first(), None | Some(b' ')) {
        return None;
    }
    let code = StatusCode::from_bytes(code).ok().filter(|code| !code.is_informational())?;
    (*status.get_or_insert(code) == code).then_some(())
}

fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(parts: &[&[u8]]) -> Result<Option<(Head, Vec<u8>)>, BadHead> {
        let mut reader = HeadReader::new(MAX_HEAD);
        let mut parts = parts.iter();
        while let Some(part) = parts.next() {
            if let Some((head, rest)) = reader.push(Bytes::copy_from_slice(part))? {
                let mut body = rest.to_vec();
                parts.for_each(|part| body.extend_from_slice(part));
                return Ok(Some((head, body)));
            }
        }
        Ok(None)
    }

    fn head(text: &str) -> Result<Head, BadHead> {
        read(&[text.as_bytes()]).map(|found| found.expect("the head is complete").0)
    }

    #[test]
    fn lines_may_end_in_either_way_and_the_body_is_left_alone() {
        for text in ["Status: 404 Not Found\r\nX-A: 1\r\n\r\n\r\nbody", "Status: 404\nX-A: 1\n\n\r\nbody"] {
            let (head, body) = read(&[text.as_bytes()]).unwrap().unwrap();
            assert_eq!(head.status, 404);
            assert_eq!(head.headers["x-a"], "1");
            assert!(!head.headers.contains_key("status"));
            assert_eq!(body, b"\r\nbody");
        }
        assert_eq!(head("\r\n").unwrap().status, 200);
    }

    #[test]
    fn cookies_stay_apart_and_in_order() {
        let head = head("Set-Cookie: a=1; path=/\r\nX: y\r\nSet-Cookie: b=2\r\n\r\n").unwrap();
        assert_eq!(head.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1; path=/", "b=2"]);
    }

    #[test]
    fn a_location_alone_is_a_redirect_for_the_client() {
        assert_eq!(head("Location: https://a.test/\r\n\r\n").unwrap().status, 302);
        assert_eq!(head("Location: /local\r\n\r\n").unwrap().status, 302);
        assert_eq!(head("Status: 201 Created\r\nLocation: /x\r\n\r\n").unwrap().status, 201);
    }

    #[test]
    fn a_status_that_no_answer_has_is_refused() {
        for value in ["099", "100", "101 Switching Protocols", "OK", "", "20", "2000", "200OK", "-20", "99", " "] {
            assert_eq!(head(&format!("Status: {value}\r\n\r\n")), Err(BadHead::Status(1)), "{value:?}");
        }
        assert_eq!(head("Status: 200\r\nStatus: 404\r\n\r\n"), Err(BadHead::Status(2)));
        assert_eq!(head("HTTP/1.1 404 Not Found\r\nX: y\r\n\r\n").unwrap().status, 404);
        assert_eq!(head("HTTP/1.1 101 x\r\n\r\n"), Err(BadHead::Status(1)));
    }

    #[test]
    fn a_field_within_a_field_is_refused() {
        for (text, error) in [
            ("X: a\rSet-Cookie: b=1\r\n\r\n", BadHead::Value(1)),
            ("X: a\0b\r\n\r\n", BadHead::Value(1)),
            ("X: a\r\n folded\r\n\r\n", BadHead::Field(2)),
            ("X : a\r\n\r\n", BadHead::Field(1)),
            ("no colon\r\n\r\n", BadHead::Field(1)),
            (": a\r\n\r\n", BadHead::Field(1)),
        ] {
            assert_eq!(head(text), Err(error), "{text:?}");
        }
        assert_eq!(head("X-File: \u{fc}ber.pdf\r\n\r\n").unwrap().headers["x-file"].as_bytes(), "über.pdf".as_bytes());
    }

    #[test]
    fn a_length_must_be_one_number() {
        assert_eq!(head("Content-Length: 5\r\nContent-Length: 5\r\n\r\n").unwrap().length, Some(5));
        for value in ["-1", "+1", "1, 1", "0x1", "", "18446744073709551616"] {
            assert_eq!(head(&format!("Content-Length: {value}\r\n\r\n")), Err(BadHead::Length(1)), "{value:?}");
        }
        assert_eq!(head("Content-Length: 5\r\nContent-Length: 6\r\n\r\n"), Err(BadHead::Length(2)));
    }

    #[test]
    fn large_heads_pass_and_endless_ones_do_not() {
        let large = format!("X-A: {}\r\nX-B: {}\r\n\r\n", "a".repeat(64 * 1024), "b".repeat(64 * 1024));
        assert_eq!(head(&large).unwrap().headers.len(), 2);
        let endless = vec![b'a'; MAX_HEAD + 1];
        assert_eq!(read(&[&endless]), Err(BadHead::TooLarge(MAX_HEAD)));
        // The field map has a limit of its own, below what fits into the bytes.
        let many: String = (0..33_000).map(|n| format!("{n:x}:\n")).collect();
        assert!(many.len() < MAX_HEAD);
        assert_eq!(head(&format!("{many}\n")), Err(BadHead::TooMany));
    }

    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            "[A-Za-z-]{1,8}: [ -~]{0,12}",
            Just("Status: 404 Not Found".to_owned()),
            Just("Content-Length: 12".to_owned()),
            Just("Location: /x".to_owned()),
            "[ -~\r]{0,12}",
        ]
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_head_and_body(
            lines in proptest::collection::vec((line(), any::<bool>()), 0..8), body in "[a\r\n]{0,10}", size in 1usize..30
        ) {
            let mut text: String =
                lines.into_iter().map(|(line, crlf)| line + if crlf { "\r\n" } else { "\n" }).collect();
            text.push_str("\r\n");
            text.push_str(&body);
            let parts: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            prop_assert_eq!(read(&[text.as_bytes()]), read(&parts));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..30) {
            let parts: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(read(&[&bytes]), read(&parts));
        }
    }
}
