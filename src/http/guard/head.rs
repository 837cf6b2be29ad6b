//! One HTTP/1.1 head, complete, its lines known to end in CRLF.

use super::{Framing, Refusal, malformed};
use crate::base::fault::Kind;
use crate::http::request::HeadLimits;

/// Checks a head and says how the body behind it is framed.
pub(super) fn check(head: &[u8], limits: HeadLimits) -> Result<Framing, Refusal> {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    if head.len() > limits.max_header_size {
        return Err(Refusal { kind: Kind::HeadTooLarge, detail: "the head is over limits.max_header_size" });
    }
    let mut lines = Lines(head);
    let line = RequestLine::parse(lines.next().unwrap_or_default(), limits.max_uri)?;
    let mut fields = Fields::default();
    for line in lines {
        if line.is_empty() {
            break;
        }
        fields.count += 1;
        if fields.count > limits.max_headers {
            return Err(Refusal { kind: Kind::HeadTooLarge, detail: "more fields than limits.max_headers" });
        }
        let (name, value) = split_field(line)?;
        fields.note(name, value)?;
    }
    // RFC 9112, section 3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request
    // message that lacks a Host header field and to any request message that contains more than one".
    if fields.hosts != 1 {
        return Err(malformed("the head has no Host field, or more than one"));
    }
    fields.framing(&line)
}

/// Checks a request line, without its CRLF, alone.
pub(super) fn check_line(line: &[u8], limits: HeadLimits) -> Result<(), Refusal> {
    RequestLine::parse(line, limits.max_uri).map(drop)
}

/// A field line: a token, a colon, a value without control characters.
pub(super) fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        // RFC 9112, section 5.2: "A server that receives an obs-fold … MUST either reject the message … or replace".
        return Err(malformed("a folded field line"));
    }
    let colon = memchr::memchr(b':', line).ok_or(malformed("a field line without a colon"))?;
    let (name, value) = line.split_at(colon);
    // RFC 9112, section 5.1: "A server MUST reject … any received request message that contains whitespace between a
    // header field name and colon".
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(malformed("a field name that is not a token"));
    }
    let value = value.get(1..).unwrap_or_default();
    if value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(malformed("a control character in a field value"));
    }
    Ok((name, value.trim_ascii()))
}

struct RequestLine<'a> {
    method: &'a [u8],
    http10: bool,
}

impl RequestLine<'_> {
    fn parse(line: &[u8], max_uri: usize) -> Result<RequestLine<'_>, Refusal> {
        let mut parts = line.split(|b| *b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("the request line is not method, target and version"));
        };
        if method.is_empty() || method.len() > 32 || !method.iter().copied().all(is_token) {
            return Err(malformed("the method is not a token of up to 32 characters"));
        }
        if target.len() > max_uri {
            return Err(Refusal { kind: Kind::TargetTooLong, detail: "the target is over limits.max_uri" });
        }
        let http10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                return Err(Refusal { kind: Kind::Version, detail: "neither HTTP/1.0 nor HTTP/1.1" });
            }
            _ => return Err(malformed("the version is malformed")),
        };
        if target.iter().any(|b| *b <= b' ' || *b == 0x7f || *b == b'#') {
            return Err(malformed("the target is malformed"));
        }
        // hyper treats CONNECT as a tunnel; it is refused before it gets there.
        if method == b"CONNECT" {
            return Err(Refusal { kind: Kind::Method, detail: "CONNECT" });
        }
        // RFC 9112, section 3.2: what is left is the origin-form and the absolute-form; `*` asks for nothing that a
        // site could answer.
        let absolute = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme));
        if target.first() != Some(&b'/') && !absolute(b"http://") && !absolute(b"https://") {
            return Err(malformed("the target is neither a path nor an http URL"));
        }
        Ok(RequestLine { method, http10 })
    }
}

#[derive(Default)]
struct Fields {
    count: usize,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    websocket: bool,
}

impl Fields {
    fn note(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(malformed("two Content-Length fields"));
            }
            self.length = Some(parse_length(value).ok_or(malformed("the Content-Length is not a plain number"))?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked {
                return Err(malformed("two Transfer-Encoding fields"));
            }
            check_coding(value)?;
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") && value.eq_ignore_ascii_case(b"websocket") {
            self.websocket = true;
        }
        Ok(())
    }

    fn framing(&self, line: &RequestLine<'_>) -> Result<Framing, Refusal> {
        match (self.length, self.chunked) {
            // RFC 9112, section 6.3: such a message "ought to be handled as an error".
            (Some(_), true) => Err(malformed("Content-Length beside Transfer-Encoding")),
            // RFC 9112, section 6.1: "A server or client that receives an HTTP/1.0 message containing a
            // Transfer-Encoding header field MUST treat the message as if the framing is faulty".
            (None, true) if line.http10 => Err(malformed("Transfer-Encoding in HTTP/1.0")),
            (None, true) => Ok(Framing::Chunked),
            (Some(n), false) if n > 0 => Ok(Framing::Length(n)),
            _ if self.websocket && !line.http10 && line.method == b"GET" => Ok(Framing::Handshake),
            _ => Ok(Framing::None),
        }
    }
}

fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Only `chunked`, alone. Other well-formed codings are 501 (RFC 9112, section 6.1), the rest is 400.
fn check_coding(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let codings: Vec<&[u8]> = value.split(|b| *b == b',').map(<[u8]>::trim_ascii).collect();
    let well_formed = codings.iter().all(|c| !c.is_empty() && c.iter().copied().all(is_token));
    let chunked = codings.iter().filter(|c| c.eq_ignore_ascii_case(b"chunked")).count();
    let last = codings.last().is_some_and(|c| c.eq_ignore_ascii_case(b"chunked"));
    if well_formed && (chunked == 0 || (chunked == 1 && last)) {
        return Err(Refusal { kind: Kind::UnknownCoding, detail: "a transfer coding other than chunked" });
    }
    Err(malformed("the Transfer-Encoding is malformed"))
}

// RFC 9110, section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    TOKEN.get(usize::from(byte)).copied().unwrap_or_default()
}

/// For every byte whether a token has it: each byte of each field name is asked for.
#[allow(clippy::indexing_slicing, reason = "what is out of bounds here does not compile")]
static TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        token[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        byte += 1;
    }
    token
};

/// The lines of a head, without their CRLF. A bare CR stays inside and is refused as a control character.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let at = memchr::memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at(at);
        self.0 = rest.get(1..).unwrap_or_default();
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}
