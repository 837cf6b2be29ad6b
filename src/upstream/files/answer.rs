//! The answer to a request for a file: conditions, one range, precompressed siblings (RFC 9110).

use std::time::SystemTime;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::path::CanonicalPath;
use crate::upstream::files::encoding::{Accepted, Coding, is_compressible};
use crate::upstream::files::range::Span;
use crate::upstream::files::root::{Content, OpenFile, Root};
use crate::upstream::files::validator::{Outcome, Validators};
use crate::upstream::files::{media, stream};

/// What a request says that a file's answer depends on.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a Method,
    /// The client's fields.
    pub headers: &'a HeaderMap,
    /// Whether `x.css.br`, `x.css.zst` and `x.css.gz` stand for `x.css`.
    pub precompressed: bool,
    /// The present.
    pub now: SystemTime,
}

/// Precompressed files are made once and at leisure: br is the smallest of equals.
const SIBLINGS: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];

/// Answers GET and HEAD with `file`: 200, 206, 304, 412 or 416. Other methods are a fault of [`Kind::ReadOnly`].
pub fn answer(file: OpenFile, asked: Asked<'_>) -> Result<Response<Body>, Fault> {
    if !matches!(*asked.method, Method::GET | Method::HEAD) {
        return Err(Fault::new(Kind::ReadOnly, "a file is read with GET and HEAD only"));
    }
    let media = match &file.content {
        Content::Memory(file) => file.media.clone(),
        Content::Disk(_) => media::content_type(&file.name),
    };
    let negotiable = asked.precompressed && is_compressible(media.as_bytes());
    let (file, coding) = if negotiable { negotiate(file, asked.headers) } else { (file, None) };
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(header::CONTENT_TYPE, media);
    if let Some(coding) = coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    if negotiable {
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    Ok(represent(file, coding, asked, headers))
}

/// Answers with the file `rest` (decoded, what follows the prefix) below the folder that an X-Accel-Redirect of the
/// back end points into. `back_end` are the fields of the back end's answer: they stay, `Content-Type` among them, but
/// for those that describe its own body. Ranges and conditions are the client's.
pub fn answer_accel(
    root: &Root,
    rest: &[u8],
    asked: Asked<'_>,
    mut back_end: HeaderMap,
) -> Result<Response<Body>, Fault> {
    let file = root.open(rest).map_err(|e| e.into_fault(rest))?;
    for name in OF_THE_BODY {
        back_end.remove(name);
    }
    if !back_end.contains_key(header::CONTENT_TYPE) {
        back_end.insert(header::CONTENT_TYPE, media::content_type(&file.name));
    }
    if matches!(*asked.method, Method::GET | Method::HEAD) {
        return Ok(represent(file, None, asked, back_end));
    }
    // The back end has done what the method asked for and gives the file as its result: no condition applies to that.
    let none = HeaderMap::new();
    Ok(represent(file, None, Asked { method: &Method::GET, headers: &none, ..asked }, back_end))
}

/// The redirect of a folder to its name with a slash: the path and query as the client wrote them.
pub fn folder_redirect(status: StatusCode, path: &CanonicalPath, query: Option<&str>) -> Response<Body> {
    let mut location = format!("{}/", path.encoded());
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Fields of a back end's answer that speak of a body that is not sent, or to us.
const OF_THE_BODY: [HeaderName; 13] = [
    header::ACCEPT_RANGES,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::TRANSFER_ENCODING,
    HeaderName::from_static("x-accel-buffering"),
    HeaderName::from_static("x-accel-charset"),
    HeaderName::from_static("x-accel-expires"),
    HeaderName::from_static("x-accel-limit-rate"),
    HeaderName::from_static("x-accel-redirect"),
];

/// The best precompressed sibling, or the file itself.
fn negotiate(file: OpenFile, headers: &HeaderMap) -> (OpenFile, Option<Coding>) {
    for coding in Accepted::read(headers).ranked(SIBLINGS) {
        // One that cannot be opened, whatever the reason, is no reason not to send the file itself. Whole seconds:
        // archives and copies cut the rest off.
        if let Ok(sibling) = file.sibling(coding.suffix())
            && sibling.modified.seconds >= file.modified.seconds
        {
            return (sibling, Some(coding));
        }
    }
    (file, None)
}

fn represent(file: OpenFile, coding: Option<Coding>, asked: Asked<'_>, headers: HeaderMap) -> Response<Body> {
    let validators = match (&file.content, coding) {
        (Content::Memory(file), None) => file.validators.clone(),
        _ => Validators::of(file.size, file.modified, coding, asked.now),
    };
    let mut response = Response::new(Body::Empty);
    *response.headers_mut() = headers;
    let headers = response.headers_mut();
    validators.write(headers);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let span = match validators.weigh(asked.method, asked.headers, asked.now) {
        Outcome::Proceed { range: true } => span(asked.headers, file.size),
        Outcome::Proceed { range: false } => Span::Whole,
        Outcome::NotModified => return bodiless(response, StatusCode::NOT_MODIFIED),
        Outcome::Failed => return bodiless(response, StatusCode::PRECONDITION_FAILED),
    };
    let (first, length) = match span {
        Span::Whole => (0, file.size),
        Span::Part { first, last } => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(response.headers_mut(), header::CONTENT_RANGE, format!("bytes {first}-{last}/{}", file.size));
            (first, last - first + 1)
        }
        Span::Unsatisfiable => {
            // Section 15.5.17: a 416 "SHOULD generate a Content-Range header field specifying the current length".
            set(response.headers_mut(), header::CONTENT_RANGE, format!("bytes */{}", file.size));
            return bodiless(response, StatusCode::RANGE_NOT_SATISFIABLE);
        }
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if *asked.method == Method::GET {
        *response.body_mut() = stream::body(file.content, first, length);
    }
    response
}

fn span(headers: &HeaderMap, length: u64) -> Span {
    let mut values = headers.get_all(header::RANGE).into_iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Span::read(value.as_bytes(), length),
        _ => Span::Whole,
    }
}

/// An answer without the file: what describes the bytes of the file goes, what identifies it stays.
fn bodiless(mut response: Response<Body>, status: StatusCode) -> Response<Body> {
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.remove(header::CONTENT_ENCODING);
    if status != StatusCode::NOT_MODIFIED {
        headers.remove(header::ETAG);
        headers.remove(header::LAST_MODIFIED);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    }
    *response.status_mut() = status;
    response
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::Duration;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>, changed: u64) {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn ask(folder: &Path, name: &str, method: Method, fields: &[(&str, &str)]) -> Result<Response<Body>, Fault> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let asked = Asked { method: &method, headers: &headers, precompressed: true, now: now() };
        answer(Root::new(folder).open(name.as_bytes()).unwrap(), asked)
    }

    fn get(folder: &Path, name: &str, fields: &[(&str, &str)]) -> Response<Body> {
        ask(folder, name, Method::GET, fields).unwrap()
    }

    fn field<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |v| v.to_str().unwrap())
    }

    async fn text(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_file_is_sent_whole_with_its_fields() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.txt", "hello", 784_111_777);
        let response = get(dir.path(), "a.txt", &[]);
        assert_eq!(response.status(), 200);
        assert_eq!(field(&response, "content-type"), "text/plain; charset=utf-8");
        assert_eq!(field(&response, "content-length"), "5");
        assert_eq!(field(&response, "last-modified"), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(field(&response, "accept-ranges"), "bytes");
        assert_eq!(field(&response, "vary"), "accept-encoding");
        assert!(field(&response, "etag").starts_with('"'));
        assert_eq!(text(response).await, "hello");
        let head = ask(dir.path(), "a.txt", Method::HEAD, &[("range", "bytes=0-0")]).unwrap();
        assert_eq!((head.status().as_u16(), field(&head, "content-length")), (200, "5"));
        assert_eq!(text(head).await, "");
        write(dir.path(), "empty.png", "", 1);
        let empty = get(dir.path(), "empty.png", &[]);
        assert_eq!((field(&empty, "content-length"), field(&empty, "vary")), ("0", ""));
    }

    #[test]
    fn other_methods_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.txt", "hello", 1);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
            assert_eq!(ask(dir.path(), "a.txt", method, &[]).err().unwrap().kind, Kind::ReadOnly);
        }
    }

    #[tokio::test]
    async fn one_range_is_sent_as_such_and_several_as_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.bin", "0123456789", 1000);
        for (range, status, content_range, body) in [
            ("bytes=2-4", 206, "bytes 2-4/10", "234"),
            ("bytes=-2", 206, "bytes 8-9/10", "89"),
            ("bytes=7-", 206, "bytes 7-9/10", "789"),
            ("bytes=10-", 416, "bytes */10", ""),
            ("bytes=0-1,3-4", 200, "", "0123456789"),
            ("bytes=x", 200, "", "0123456789"),
        ] {
            let response = get(dir.path(), "a.bin", &[("range", range)]);
            assert_eq!(response.status().as_u16(), status, "{range}");
            assert_eq!(field(&response, "content-range"), content_range, "{range}");
            assert_eq!(field(&response, "content-length"), body.len().to_string(), "{range}");
            assert_eq!(text(response).await, body, "{range}");
        }
        let twice = get(dir.path(), "a.bin", &[("range", "bytes=0-1"), ("range", "bytes=2-3")]);
        assert_eq!(twice.status(), 200);
        let tag = field(&twice, "etag").to_owned();
        let resumed = get(dir.path(), "a.bin", &[("range", "bytes=5-"), ("if-range", &tag)]);
        assert_eq!(resumed.status(), 206);
        let changed = get(dir.path(), "a.bin", &[("range", "bytes=5-"), ("if-range", "\"old\"")]);
        assert_eq!(changed.status(), 200);
    }

    #[tokio::test]
    async fn conditions_are_answered_without_a_body() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.css", "body{}", 1000);
        let tag = field(&get(dir.path(), "a.css", &[]), "etag").to_owned();
        let same = get(dir.path(), "a.css", &[("if-none-match", &tag)]);
        assert_eq!(same.status(), 304);
        // RFC 9110, section 15.4.5: the 304 must say what the 200 would say of these.
        assert_eq!((field(&same, "etag"), field(&same, "vary")), (tag.as_str(), "accept-encoding"));
        assert!(!same.headers().contains_key("content-length"));
        assert_eq!(text(same).await, "");
        let failed = get(dir.path(), "a.css", &[("if-match", "\"other\"")]);
        assert_eq!((failed.status().as_u16(), field(&failed, "content-length")), (412, "0"));
        write(dir.path(), "a.css", "BODY{}", 1001);
        assert_eq!(get(dir.path(), "a.css", &[("if-none-match", &tag)]).status(), 200, "same size, later change");
    }

    #[tokio::test]
    async fn precompressed_siblings_are_negotiated() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        write(folder, "a.css", "plain-plain", 1000);
        write(folder, "a.css.gz", "gzip", 1000);
        write(folder, "a.css.br", "br", 1001);
        write(folder, "a.css.zst", "stale", 999);
        let coded = |accept: &str| {
            let response = get(folder, "a.css", &[("accept-encoding", accept)]);
            assert_eq!(field(&response, "content-type"), "text/css; charset=utf-8");
            assert_eq!(field(&response, "vary"), "accept-encoding");
            (field(&response, "content-encoding").to_owned(), field(&response, "etag").to_owned())
        };
        assert_eq!(coded("gzip, br, zstd").0, "br");
        assert_eq!(coded("gzip;q=1, br;q=0.5").0, "gzip");
        assert_eq!(coded("zstd").0, "", "older than the original");
        assert_eq!(coded("zstd, gzip;q=0.2").0, "gzip", "the next best exists");
        assert_eq!(coded("identity").0, "");
        assert!(coded("br").1 != coded("gzip").1 && coded("br").1 != coded("").1, "each coding has its own tag");
        let part = get(folder, "a.css", &[("accept-encoding", "gzip"), ("range", "bytes=1-2")]);
        assert_eq!((part.status().as_u16(), field(&part, "content-range")), (206, "bytes 1-2/4"));
        assert_eq!(text(part).await, "zi");
        // A type that does not shrink is not asked for twice.
        write(folder, "b.png", "png", 1000);
        write(folder, "b.png.gz", "gz", 1000);
        let png = get(folder, "b.png", &[("accept-encoding", "gzip")]);
        assert_eq!((field(&png, "content-encoding"), field(&png, "vary")), ("", ""));
        let asked = Asked { method: &Method::GET, headers: &HeaderMap::new(), precompressed: false, now: now() };
        let off = answer(Root::new(folder).open(b"a.css").unwrap(), asked).unwrap();
        assert_eq!(field(&off, "vary"), "");
    }

    #[test]
    fn a_precompressed_sibling_must_lie_in_the_root_too() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("public");
        fs::create_dir(&folder).unwrap();
        write(&folder, "a.css", "plain", 1000);
        write(dir.path(), "secret", "secret", 2000);
        std::os::unix::fs::symlink("../secret", folder.join("a.css.gz")).unwrap();
        let response = get(&folder, "a.css", &[("accept-encoding", "gzip")]);
        assert_eq!(field(&response, "content-encoding"), "");
    }

    #[tokio::test]
    async fn an_internal_file_keeps_what_the_back_end_said_of_it() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "private.pdf", "0123456789", 1000);
        let root = Root::new(dir.path());
        let mut back_end = HeaderMap::new();
        for (name, value) in [
            ("content-type", "application/x-report"),
            ("content-disposition", "attachment; filename=r.pdf"),
            ("content-length", "0"),
            ("x-accel-redirect", "/internal/private.pdf"),
            ("etag", "\"php\""),
            ("set-cookie", "a=b"),
            ("cache-control", "private"),
        ] {
            back_end.append(name, HeaderValue::from_static(value));
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=1-2"));
        let asked = Asked { method: &Method::GET, headers: &headers, precompressed: true, now: now() };
        let response = answer_accel(&root, b"private.pdf", asked, back_end.clone()).unwrap();
        assert_eq!(response.status(), 206);
        assert_eq!(field(&response, "content-type"), "application/x-report");
        assert_eq!(field(&response, "content-disposition"), "attachment; filename=r.pdf");
        assert_eq!((field(&response, "content-length"), field(&response, "cache-control")), ("2", "private"));
        assert_ne!(field(&response, "etag"), "\"php\"");
        assert_eq!(field(&response, "set-cookie"), "a=b");
        assert!(!response.headers().contains_key("x-accel-redirect"));
        assert_eq!(text(response).await, "12");
        let asked = Asked { method: &Method::POST, ..asked };
        let posted = answer_accel(&root, b"/private.pdf", asked, HeaderMap::new()).unwrap();
        assert_eq!((posted.status().as_u16(), field(&posted, "content-type")), (200, "application/pdf"));
        for gone in [&b"../secret"[..], b"", b"none", b"/etc/passwd"] {
            assert_eq!(answer_accel(&root, gone, asked, HeaderMap::new()).err().unwrap().kind, Kind::NotFound);
        }
    }

    #[test]
    fn a_folder_is_redirected_to_its_slash_with_its_query() {
        let path = CanonicalPath::parse("/a%20b/c").unwrap();
        let response = folder_redirect(StatusCode::MOVED_PERMANENTLY, &path, Some("x=1"));
        assert_eq!((response.status().as_u16(), field(&response, "location")), (301, "/a%20b/c/?x=1"));
    }
}
