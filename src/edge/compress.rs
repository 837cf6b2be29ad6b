//! Compression of answers on their way, with flat memory. What a back end has flushed leaves at once: a page that is
//! built slowly appears slowly, not at its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use ::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use async_compression::Level;
use async_compression::brotli::EncoderParams;
use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::upstream::files::encoding::{Accepted, Coding, is_compressible};

/// Below this many bytes a coding saves no packet.
const WORTHWHILE: u64 = 860;

/// Compresses `response` with what the client accepts, if its type is worth it and nothing speaks against it: another
/// coding, a part of a body, `Cache-Control: no-transform`, a digest, a status without body. `head` says that it answers
/// HEAD: the fields become those of GET, the body stays empty.
///
/// `Vary` is added wherever a coding is possible, whether this client takes one or not.
pub fn compress(mut response: Response<Body>, accepted: Accepted, head: bool) -> Response<Body> {
    let best = accepted.best();
    if response.status() == StatusCode::NOT_MODIFIED {
        // The 200 that the client holds had a weak tag, if it was compressed: the strong one would make of it the base
        // of a range request (RFC 9110, section 15.4.5: the same ETag as "a 200 response to the same request").
        if best.is_some() && varies(response.headers()) {
            weaken(response.headers_mut());
        }
        return response;
    }
    if !is_eligible(&response, head) {
        return response;
    }
    let headers = response.headers_mut();
    if !varies(headers) {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    let Some(coding) = best else { return response };
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::ACCEPT_RANGES);
    weaken(headers);
    if !head {
        let body = match std::mem::take(response.body_mut()) {
            Body::Full(bytes) if bytes.len() <= AT_ONCE => {
                let coded = at_once(bytes.clone(), coding);
                coded.map_or_else(|| Body::stream(Compressed::new(Body::Full(bytes), coding)), Body::full)
            }
            body => Body::stream(Compressed::new(body, coding)),
        };
        *response.body_mut() = body;
    }
    response
}

/// Fields that would no longer be true of the same body in another coding.
const DESCRIBING: [&str; 6] =
    ["content-encoding", "content-range", "content-digest", "digest", "repr-digest", "content-md5"];

fn is_eligible(response: &Response<Body>, head: bool) -> bool {
    let (status, headers) = (response.status(), response.headers());
    if status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT) {
        return false;
    }
    let is_text = headers.get(header::CONTENT_TYPE).is_some_and(|t| is_compressible(t.as_bytes()));
    if !is_text || headers.keys().any(|name| DESCRIBING.contains(&name.as_str())) || forbids_transform(headers) {
        return false;
    }
    let told = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let length = told.or_else(|| if head { None } else { response.body().length() });
    length.is_none_or(|length| length >= WORTHWHILE)
}

/// RFC 9111, section 5.2.2.6: "an intermediary (regardless of whether it implements a cache) MUST NOT transform the
/// content".
fn forbids_transform(headers: &HeaderMap) -> bool {
    members(headers, header::CACHE_CONTROL).any(|member| member.eq_ignore_ascii_case(b"no-transform"))
}

fn varies(headers: &HeaderMap) -> bool {
    members(headers, header::VARY).any(|member| member == b"*" || member.eq_ignore_ascii_case(b"accept-encoding"))
}

fn members(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &[u8]> {
    headers.get_all(name).into_iter().flat_map(|v| v.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// RFC 9110, section 8.8.1: a strong validator promises equal bytes, which compression on the way does not.
fn weaken(headers: &mut HeaderMap) {
    let weak = headers.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")).and_then(|tag| {
        let weak = [b"W/", tag.as_bytes()].concat();
        HeaderValue::from_bytes(&weak).ok()
    });
    if let Some(weak) = weak {
        headers.insert(header::ETAG, weak);
    }
}

/// Bytes that one frame holds at most.
const FRAME: usize = 16 * 1024;

/// Bytes that an encoder is given before others on the worker get their turn.
const TURN: usize = 256 * 1024;

/// Bytes that an encoder is given at once.
const BITE: usize = 32 * 1024;

// Windows of 128 KiB, and tables to match: with the codecs' own defaults a reader that stalls would hold 4 MiB and more.
const WINDOW: u8 = 17;

/// Bodies in memory up to this size are compressed at once: they get a length, and nothing is held for their reader.
const AT_ONCE: usize = 64 * 1024;

struct Compressed {
    encoder: Encoder,
    buffer: BytesMut,
    done: bool,
}

enum Encoder {
    Zstd(Box<ZstdEncoder<Input>>),
    Brotli(Box<BrotliEncoder<Input>>),
    Gzip(Box<GzipEncoder<Input>>),
}

impl Compressed {
    fn new(body: Body, coding: Coding) -> Compressed {
        let input = Input { body, chunk: Bytes::new(), given: 0, ended: false };
        let encoder = match coding {
            Coding::Zstd => {
                let window = u32::from(WINDOW);
                let parameters = [
                    CParameter::window_log(window),
                    CParameter::hash_log(window - 2),
                    CParameter::chain_log(window - 2),
                ];
                Encoder::Zstd(Box::new(ZstdEncoder::with_quality_and_params(input, Level::Precise(3), &parameters)))
            }
            Coding::Brotli => {
                let parameters =
                    EncoderParams::default().quality(Level::Precise(4)).window_size(i32::from(WINDOW)).text_mode();
                Encoder::Brotli(Box::new(BrotliEncoder::with_params(input, parameters)))
            }
            Coding::Gzip => Encoder::Gzip(Box::new(GzipEncoder::with_quality(input, Level::Precise(5)))),
        };
        Compressed { encoder, buffer: BytesMut::new(), done: false }
    }
}

/// All of `bytes` in `coding`. `None` where the encoder wants to be asked later.
fn at_once(bytes: Bytes, coding: Coding) -> Option<Bytes> {
    let mut compressed = Compressed::new(Body::Full(bytes), coding);
    let mut coded = BytesMut::new();
    loop {
        match Pin::new(&mut compressed).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => return Some(coded.freeze()),
            Poll::Ready(Some(Ok(frame))) => coded.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Poll::Ready(Some(Err(_))) | Poll::Pending => return None,
        }
    }
}

impl HttpBody for Compressed {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        this.buffer.reserve(FRAME);
        let read = match &mut this.encoder {
            Encoder::Zstd(encoder) => poll_read_buf(Pin::new(encoder), cx, &mut this.buffer),
            Encoder::Brotli(encoder) => poll_read_buf(Pin::new(encoder), cx, &mut this.buffer),
            Encoder::Gzip(encoder) => poll_read_buf(Pin::new(encoder), cx, &mut this.buffer),
        };
        if read.is_pending() {
            // Nothing to send for who knows how long: a waiting answer holds no buffer of ours.
            this.buffer = BytesMut::new();
        }
        Poll::Ready(match ready!(read) {
            Ok(0) => {
                this.done = true;
                None
            }
            Ok(_) => Some(Ok(Frame::data(this.buffer.split().freeze()))),
            Err(error) => {
                this.done = true;
                Some(Err(unwrap_fault(error)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

/// The fault that [`Input`] wrapped, or the encoder's own.
fn unwrap_fault(error: io::Error) -> Fault {
    match error.downcast::<Fault>() {
        Ok(fault) => fault,
        Err(error) => Fault::new(Kind::Internal, "cannot compress the answer").because(error),
    }
}

/// The body as the encoders read it: small bites, never an empty one before the end, a pause now and then.
struct Input {
    body: Body,
    chunk: Bytes,
    given: usize,
    ended: bool,
}

impl Input {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() && !self.ended {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                // Trailers are dropped, as everywhere (http/body.rs).
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(fault)) => {
                    self.ended = true;
                    return Poll::Ready(Err(io::Error::other(fault)));
                }
                None => self.ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Input {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.given >= TURN {
            this.given = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(this.poll_chunk(cx))?;
        Poll::Ready(Ok(this.chunk.get(..BITE).unwrap_or(&this.chunk)))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        let amount = amount.min(this.chunk.len());
        this.given = this.given.saturating_add(amount);
        drop(this.chunk.split_to(amount));
    }
}

impl AsyncRead for Input {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let amount = bytes.len().min(buffer.remaining());
        buffer.put_slice(bytes.get(..amount).unwrap_or_default());
        self.consume(amount);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
    use http_body::SizeHint;
    use http_body_util::BodyExt;
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    const CODINGS: [(&str, Coding); 3] = [("zstd", Coding::Zstd), ("br", Coding::Brotli), ("gzip", Coding::Gzip)];

    fn accepted(value: &'static str) -> Accepted {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        Accepted::read(&headers)
    }

    fn page(body: Body, fields: &[(&'static str, &'static str)]) -> Response<Body> {
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        for (name, value) in fields {
            response.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        response
    }

    fn field<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Steps that a body takes, one a poll; at the end of the list it stays pending, or ends.
    struct Script {
        steps: VecDeque<Result<Bytes, Fault>>,
        ends: bool,
        polls: Rc<Cell<usize>>,
    }

    impl HttpBody for Script {
        type Data = Bytes;
        type Error = Fault;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
            self.polls.set(self.polls.get() + 1);
            match self.steps.pop_front() {
                Some(step) => Poll::Ready(Some(step.map(Frame::data))),
                None if self.ends => Poll::Ready(None),
                None => Poll::Pending,
            }
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::default()
        }
    }

    fn script(steps: Vec<Result<Bytes, Fault>>, ends: bool) -> Body {
        Body::stream(Script { steps: steps.into(), ends, polls: Rc::default() })
    }

    /// All that can be decoded of `bytes`, and whether the stream ends there as it should.
    async fn decode(coding: Coding, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut decoder: Box<dyn AsyncRead + Unpin> = match coding {
            Coding::Zstd => Box::new(ZstdDecoder::new(bytes)),
            Coding::Brotli => Box::new(BrotliDecoder::new(bytes)),
            Coding::Gzip => Box::new(GzipDecoder::new(bytes)),
        };
        let (mut decoded, mut buffer) = (Vec::new(), [0; 8192]);
        loop {
            match decoder.read(&mut buffer).await {
                Ok(0) => return (decoded, true),
                Ok(read) => decoded.extend_from_slice(&buffer[..read]),
                Err(_) => return (decoded, false),
            }
        }
    }

    fn long_text() -> Vec<u8> {
        (0..200_000u32).flat_map(|i| format!("{i} ").into_bytes()).collect()
    }

    #[tokio::test]
    async fn bodies_come_out_whole_in_every_coding() {
        let text = long_text();
        for (name, coding) in CODINGS {
            for body in [
                Body::full(text.clone()),
                script(vec![Ok(Bytes::from(text.clone()))], true),
                script(text.chunks(777).map(|c| Ok(Bytes::copy_from_slice(c))).collect(), true),
                script(
                    text.chunks(200_000).flat_map(|c| [Ok(Bytes::copy_from_slice(c)), Ok(Bytes::new())]).collect(),
                    true,
                ),
            ] {
                let response = compress(page(body, &[]), accepted(name), false);
                assert_eq!(field(&response, "content-encoding"), name);
                let coded = response.into_body().collect().await.unwrap().to_bytes();
                assert!(coded.len() < text.len() / 2, "{name}: {} of {}", coded.len(), text.len());
                assert!(decode(coding, &coded).await == (text.clone(), true), "{name}");
            }
        }
    }

    #[tokio::test]
    async fn small_bodies_in_memory_are_compressed_at_once() {
        let text = &long_text()[..AT_ONCE];
        for (name, coding) in CODINGS {
            let response = compress(page(Body::full(text.to_vec()), &[]), accepted(name), false);
            let Body::Full(coded) = response.into_body() else { panic!("{name} streams") };
            assert!(coded.len() < text.len() / 2 && decode(coding, &coded).await == (text.to_vec(), true), "{name}");
        }
    }

    #[tokio::test]
    async fn what_was_flushed_arrives_before_the_next_chunk() {
        for (name, coding) in CODINGS {
            for first in [&b"<p>first</p>"[..], &long_text()[..100_000]] {
                let body = script(vec![Ok(Bytes::copy_from_slice(first))], false);
                let mut body = compress(page(body, &[]), accepted(name), false).into_body();
                let mut coded = Vec::new();
                // The back end stays silent for ever: all of the chunk has to be here without it.
                while decode(coding, &coded).await.0.len() < first.len() {
                    let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await;
                    let frame = frame.unwrap_or_else(|_| panic!("{name} keeps the chunk back")).unwrap().unwrap();
                    coded.extend_from_slice(&frame.into_data().unwrap());
                }
                assert!(decode(coding, &coded).await.0 == first, "{name}");
            }
        }
    }

    #[tokio::test]
    async fn a_back_end_that_breaks_off_breaks_the_answer_off() {
        for (name, _) in CODINGS {
            let body = script(vec![Ok(Bytes::from(long_text())), Err(Fault::new(Kind::Truncated, "gone"))], true);
            let response = compress(page(body, &[]), accepted(name), false);
            let fault = response.into_body().collect().await.unwrap_err();
            assert_eq!((fault.kind, fault.detail.as_ref()), (Kind::Truncated, "gone"), "{name}");
        }
    }

    #[tokio::test]
    async fn a_reader_that_stops_stops_the_back_end_too() {
        let polls = Rc::new(Cell::new(0));
        let steps = (0..1000).map(|_| Ok(Bytes::from(vec![b'x'; 65536]))).collect();
        let body = Body::stream(Script { steps, ends: true, polls: Rc::clone(&polls) });
        let mut body = compress(page(body, &[]), accepted("zstd"), false).into_body();
        body.frame().await.unwrap().unwrap();
        assert!(polls.get() <= 2 + TURN / 65536, "{} chunks for one frame", polls.get());
    }

    #[tokio::test]
    async fn fields_tell_the_coding_and_no_longer_the_bytes() {
        let fields = [("etag", "\"abc\""), ("content-length", "2000"), ("accept-ranges", "bytes"), ("vary", "Cookie")];
        let text = vec![b'a'; 2000];
        let get = compress(page(Body::full(text.clone()), &fields), accepted("gzip, br"), false);
        let head = compress(page(Body::Empty, &fields), accepted("gzip, br"), true);
        for response in [&get, &head] {
            assert_eq!(field(response, "content-encoding"), "br");
            assert_eq!(field(response, "etag"), "W/\"abc\"");
            let vary: Vec<_> = response.headers().get_all("vary").iter().collect();
            assert_eq!(vary, ["Cookie", "accept-encoding"]);
            assert!(!response.headers().contains_key("content-length"));
            assert!(!response.headers().contains_key("accept-ranges"));
        }
        assert!(matches!(head.into_body(), Body::Empty));
        let length = get.into_body().length().unwrap();
        assert!(length < 100, "a small page gets a length: {length}");
        let plain = compress(page(Body::full(text), &fields), accepted("identity"), false);
        assert_eq!((field(&plain, "content-encoding"), field(&plain, "etag")), ("", "\"abc\""));
        assert_eq!(plain.headers().get_all("vary").iter().count(), 2, "the next client may get another answer");
        assert_eq!(field(&plain, "content-length"), "2000");
    }

    #[test]
    fn what_must_stay_as_it_is_stays() {
        type Fields = &'static [(&'static str, &'static str)];
        let refused: [(u16, usize, Fields); 10] = [
            (200, 859, &[]),
            (204, 0, &[]),
            (206, 2000, &[("content-range", "bytes 0-1999/4000")]),
            (200, 2000, &[("content-range", "bytes 0-1999/4000")]),
            (200, 2000, &[("content-encoding", "br")]),
            (200, 2000, &[("cache-control", "public, No-Transform")]),
            (200, 2000, &[("content-type", "image/png")]),
            (200, 2000, &[("content-type", "text/event-stream")]),
            (200, 2000, &[("repr-digest", "sha-256=:x:")]),
            (200, 0, &[]),
        ];
        for (status, length, fields) in refused {
            let mut response = page(Body::full(vec![b'a'; length]), &[]);
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in fields {
                response.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            let before = response.headers().clone();
            let after = compress(response, accepted("zstd, br, gzip"), false);
            assert_eq!(*after.headers(), before, "{status} {length} {fields:?}");
            assert_eq!(after.into_body().length(), Some(length as u64));
        }
        let untyped = Response::new(Body::full(vec![b'a'; 2000]));
        assert!(compress(untyped, accepted("br"), false).headers().is_empty());
        let error = {
            let mut response = page(Body::full(vec![b'a'; 2000]), &[]);
            *response.status_mut() = StatusCode::NOT_FOUND;
            compress(response, accepted("br"), false)
        };
        assert_eq!(field(&error, "content-encoding"), "br", "long error pages are pages");
    }

    #[test]
    fn a_304_has_the_tag_of_the_200_that_it_stands_for() {
        let not_modified = |fields: &[(&'static str, &'static str)], accept| {
            let mut response = page(Body::Empty, fields);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            field(&compress(response, accepted(accept), false), "etag").to_owned()
        };
        let both = [("etag", "\"a\""), ("vary", "Accept-Encoding")];
        assert_eq!(not_modified(&both, "gzip"), "W/\"a\"");
        assert_eq!(not_modified(&both, "identity"), "\"a\"");
        assert_eq!(not_modified(&[("etag", "\"a\"")], "gzip"), "\"a\"");
        assert_eq!(not_modified(&[("etag", "W/\"a\""), ("vary", "accept-encoding")], "gzip"), "W/\"a\"");
    }
}
