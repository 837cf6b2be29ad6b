//! The head of an answer, as it is read.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{InvalidHeaderName, InvalidHeaderValue};
use http::status::InvalidStatusCode;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, response};
use httparse::{ParserConfig, Status};

/// The most bytes of a head.
pub const LARGEST: usize = 64 * 1024;
/// The most fields of a head.
pub const MOST_FIELDS: usize = 100;
/// A head that is not there yet is looked at with each piece up to here: somebody who speaks another protocol is known by
/// their first bytes, and may wait for ours.
const GLANCE: usize = 1024;

/// Why bytes are no head of an answer.
#[derive(Debug, thiserror::Error)]
pub enum BadHead {
    /// RFC 9112 has no such thing.
    #[error(transparent)]
    Syntax(#[from] httparse::Error),
    /// The line or the fields end where they do not for everybody.
    #[error("the end of the head is not clear")]
    Ambiguous,
    /// Over [`LARGEST`].
    #[error("the head is larger than {LARGEST} bytes")]
    TooLarge,
    /// Below 100.
    #[error(transparent)]
    Status(#[from] InvalidStatusCode),
    /// No field has such a name.
    #[error(transparent)]
    Name(#[from] InvalidHeaderName),
    /// No field has such a value.
    #[error(transparent)]
    Value(#[from] InvalidHeaderValue),
}

/// Reads one head, however its bytes arrive.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// So far there is no end.
    scanned: usize,
}

impl HeadReader {
    /// Takes the head from the front of `buffer`; `None` while it is not all there.
    ///
    /// # Errors
    /// There is none, and will be none whatever follows.
    pub fn read(&mut self, buffer: &mut BytesMut) -> Result<Option<response::Parts>, BadHead> {
        // RFC 9112, section 2.2 has empty lines skipped before a request, not before an answer: there they are what is
        // left of another one.
        if buffer.first().is_some_and(|first| *first != b'H') {
            return Err(BadHead::Syntax(httparse::Error::Version));
        }
        let Some(end) = self.find_end(buffer) else {
            if buffer.len() >= LARGEST {
                return Err(BadHead::TooLarge);
            }
            if buffer.len() < GLANCE && !buffer.is_empty() {
                parse(buffer, |_, _| Ok(()))?;
            }
            return Ok(None);
        };
        if end > LARGEST {
            return Err(BadHead::TooLarge);
        }
        self.scanned = 0;
        // The values share these bytes, and nothing else does: one that is remembered, as HTTP/2's table of fields
        // remembers some, must not keep a whole buffer.
        let bytes = Bytes::copy_from_slice(buffer.get(..end).unwrap_or_default());
        buffer.advance(end);
        let mut parts = Response::new(()).into_parts().0;
        let length = parse(&bytes, |answer, fields| {
            parts.status = StatusCode::from_u16(answer.code.unwrap_or_default())?;
            parts.version = if answer.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
            // With room for what is added on the way to the client.
            parts.headers = HeaderMap::with_capacity(fields.len() + 4);
            for field in fields {
                let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))?;
                parts.headers.append(HeaderName::from_bytes(field.name.as_bytes())?, value);
            }
            Ok(())
        })?;
        if length == Some(end) { Ok(Some(parts)) } else { Err(BadHead::Ambiguous) }
    }

    /// Behind the empty line. Looks at each byte once: a head that comes byte by byte costs what another one costs.
    fn find_end(&mut self, buffer: &[u8]) -> Option<usize> {
        let unseen = buffer.get(self.scanned..).unwrap_or_default();
        for feed in memchr::memchr_iter(b'\n', unseen) {
            let next = self.scanned + feed + 1;
            match buffer.get(next..).unwrap_or_default() {
                [b'\n', ..] => return Some(next + 1),
                [b'\r', b'\n', ..] => return Some(next + 2),
                _ => {}
            }
        }
        // The last two may be the beginning of an end.
        self.scanned = buffer.len().saturating_sub(2);
        None
    }
}

/// Parses a head and shows it to `take`. How long it was; `None` while it is not all there.
///
/// httparse refuses what is ambiguous: folded lines, a space before the colon, a bare CR, a NUL.
fn parse<'b>(
    bytes: &'b [u8],
    take: impl FnOnce(&httparse::Response<'_, 'b>, &[httparse::Header<'b>]) -> Result<(), BadHead>,
) -> Result<Option<usize>, BadHead> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    match ParserConfig::default().parse_response_with_uninit_headers(&mut answer, bytes, &mut fields)? {
        Status::Partial => Ok(None),
        Status::Complete(length) => {
            take(&answer, answer.headers)?;
            Ok(Some(length))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Option<(response::Parts, Vec<u8>)>, BadHead> {
        let mut buffer = BytesMut::from(text);
        let parts = HeadReader::default().read(&mut buffer)?;
        Ok(parts.map(|parts| (parts, buffer.to_vec())))
    }

    #[test]
    fn a_head_is_read_and_what_follows_is_left() {
        let (parts, rest) = read(b"HTTP/1.1 200 OK\r\nA: 1\r\nb:\t2 \r\nA: \xff\r\n\r\nbody").unwrap().unwrap();
        assert_eq!((parts.status, parts.version), (StatusCode::OK, Version::HTTP_11));
        assert_eq!(
            parts.headers.get_all("a").iter().map(HeaderValue::as_bytes).collect::<Vec<_>>(),
            [&b"1"[..], b"\xff"]
        );
        assert_eq!(parts.headers["b"], "2");
        assert_eq!(rest, b"body");
        for (text, status, version) in [
            (&b"HTTP/1.0 404 \r\n\r\n"[..], 404, Version::HTTP_10),
            (b"HTTP/1.1 999\r\n\r\n", 999, Version::HTTP_11),
            (b"HTTP/1.1 200 OK\nA: 1\n\n", 200, Version::HTTP_11),
        ] {
            let (parts, rest) = read(text).unwrap().unwrap();
            assert_eq!((parts.status.as_u16(), parts.version, rest.len()), (status, version, 0));
        }
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MOST_FIELDS + 1));
        let large = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(LARGEST));
        let endless = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(LARGEST));
        for text in [
            "S",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/2 200",
            "HTTP/1.2 200 OK\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            " HTTP/1.1 200 OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 200 O\0K\r\n\r\n",
            "HTTP/1.1 200 OK\rX\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\n a: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\na\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: \x7f\r\n\r\n",
            "HTTP/1.1 200 OK\r\na\x01: b\r\n\r\n",
            &many,
            &large,
            &endless,
        ] {
            assert!(read(text.as_bytes()).is_err(), "{:?}", &text[..text.len().min(60)]);
        }
        let most = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MOST_FIELDS));
        assert_eq!(read(most.as_bytes()).unwrap().unwrap().0.headers.len(), MOST_FIELDS);
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same_head(
            text in "(HTTP/1\\.[01] [12]00 OK|HTTP/1\\.1 204)(\r\n|\n)([a-c]{1,3}: ?[ -~]{0,6}(\r\n|\n)){0,4}(\r\n|\n)[a-z\r\n]{0,5}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let whole = read(text.as_bytes()).unwrap().map(|(parts, rest)| (parts.status, parts.headers, rest));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len())).chain([text.len()]).collect();
            cuts.sort_unstable();
            let (mut buffer, mut reader, mut at, mut found) = (BytesMut::new(), HeadReader::default(), 0, None);
            for cut in cuts {
                buffer.extend_from_slice(&text.as_bytes()[at..cut]);
                at = cut;
                if found.is_none() {
                    found = reader.read(&mut buffer).unwrap();
                }
            }
            prop_assert_eq!(whole, found.map(|parts| (parts.status, parts.headers, buffer.to_vec())));
        }
    }
}
