//! The head of a request, as it is written.

use bytes::{BufMut, BytesMut};
use http::{Request, header};

/// A field's usual size: enough that a head seldom grows its buffer.
const FIELD: usize = 40;

/// `head` on the wire; `close` says that no request will follow it.
///
/// The types hold what is written: a method is a token, a target and a value have no CR, LF or NUL. So nothing that
/// came from a client can end a line here.
pub fn write(head: &Request<()>, close: bool) -> BytesMut {
    let headers = head.headers();
    let target = head.uri().path_and_query().map_or("/", |target| target.as_str());
    let mut out = BytesMut::with_capacity(target.len() + (headers.len() + 2) * FIELD);
    out.put_slice(head.method().as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    // RFC 9112, section 9.6: "A client that sends a "close" connection option MUST NOT send further requests on that
    // connection". A handshake has a Connection field of its own, and sends none either.
    if close && !headers.contains_key(header::CONNECTION) {
        out.put_slice(b"connection: close\r\n");
    }
    out.put_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue, Uri};
    use proptest::prelude::*;

    #[test]
    fn a_head_is_a_line_and_its_fields() {
        let head = Request::get("/a?b=c").header("Host", "x.test").header("X-A", "1").header("X-A", "2");
        let head = head.body(()).unwrap();
        assert_eq!(write(&head, false), "GET /a?b=c HTTP/1.1\r\nhost: x.test\r\nx-a: 1\r\nx-a: 2\r\n\r\n");
        assert!(write(&head, true).ends_with(b"x-a: 2\r\nconnection: close\r\n\r\n"));
        let head = Request::options("*").header("connection", "Upgrade").body(()).unwrap();
        assert_eq!(write(&head, true), "OPTIONS * HTTP/1.1\r\nconnection: Upgrade\r\n\r\n");
    }

    proptest! {
        #[test]
        fn nothing_ends_a_line_before_its_end(
            target in "/[ -~\r\n\0]{0,20}",
            name in "[a-zA-Z\r\n:-]{1,8}",
            value in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut request = Request::new(());
            if let Ok(uri) = Uri::try_from(target) {
                *request.uri_mut() = uri;
            }
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(&value)) {
                request.headers_mut().insert(name, value);
            }
            let head = write(&request, false);
            let lines = head.iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(lines, 2 + request.headers().len());
            prop_assert_eq!(lines, head.iter().filter(|byte| **byte == b'\r').count());
            prop_assert!(!head.contains(&0));
        }
    }
}
