//! Pages of the site's own in place of Doorward's: files below its root, for answers that Doorward makes itself.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use tokio::time::timeout;

use crate::http::body::Body;
use crate::upstream::files::media::content_type;
use crate::upstream::files::root::Root;

/// A page is read again when it is used this long after it was last read.
const READ_EVERY: Duration = Duration::from_secs(1);

/// How long an answer waits for that: a network file system may hang.
const LONGEST_READ: Duration = Duration::from_secs(2);

/// Bytes of a page.
const LARGEST: u64 = 1024 * 1024;

/// The pages of a site, the narrowest range of statuses first.
#[derive(Debug, Default)]
pub struct ErrorPages(Vec<(RangeInclusive<u16>, Arc<Page>)>);

#[derive(Debug)]
struct Page {
    root: Arc<Root>,
    /// Below the root.
    file: String,
    content_type: HeaderValue,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    read: Instant,
    /// Somebody is at it: a disk that hangs holds one thread, not all.
    reading: bool,
    /// `Err` is why there is none.
    bytes: Result<Bytes, String>,
}

impl ErrorPages {
    /// `pages`, the narrowest first, below `root`. They are read once; the log tells of those that cannot be.
    pub fn new(root: &Arc<Root>, pages: impl IntoIterator<Item = (RangeInclusive<u16>, String)>) -> ErrorPages {
        let page = |(statuses, file): (RangeInclusive<u16>, String)| {
            let content = Content { read: Instant::now(), reading: false, bytes: Ok(Bytes::new()) };
            let page = Page {
                root: root.clone(),
                content_type: content_type(file.as_bytes()),
                file,
                content: Mutex::new(content),
            };
            page.read();
            (statuses, Arc::new(page))
        };
        ErrorPages(pages.into_iter().map(page).collect())
    }

    /// `response` with the page for its status, if there is one. Everything but the body and its type stays.
    pub async fn dress(&self, mut response: Response<Body>) -> Response<Body> {
        let status = response.status().as_u16();
        let Some((_, page)) = self.0.iter().find(|(statuses, _)| statuses.contains(&status)) else { return response };
        let Some(bytes) = page.bytes().await else { return response };
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, page.content_type.clone());
        response.map(|_| Body::full(bytes))
    }
}

impl Page {
    /// The page as of a second ago at most.
    async fn bytes(self: &Arc<Page>) -> Option<Bytes> {
        if self.is_due() {
            let page = self.clone();
            // What cannot be read in time stays what it was.
            let _ = timeout(LONGEST_READ, tokio::task::spawn_blocking(move || page.read())).await;
        }
        self.content().bytes.clone().ok()
    }

    /// Whether the caller is to read it; for a second nobody else has to.
    fn is_due(&self) -> bool {
        let mut content = self.content();
        let due = !content.reading && content.read.elapsed() >= READ_EVERY;
        if due {
            (content.read, content.reading) = (Instant::now(), true);
        }
        due
    }

    fn read(&self) {
        let opened = self.root.open(self.file.as_bytes()).map_err(|error| error.to_string());
        let bytes = opened.and_then(|file| file.read(LARGEST).map_err(|error| error.to_string()));
        let mut content = self.content();
        content.reading = false;
        if let Err(why) = &bytes
            && content.bytes.as_ref().err() != Some(why)
        {
            let path = self.root.path().join(&self.file);
            tracing::warn!("error_pages: {} cannot be read, the plain page stands in: {why}", path.display());
        }
        content.bytes = bytes.map(Bytes::from);
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http_body_util::BodyExt;

    use super::*;

    fn answer(status: u16) -> Response<Body> {
        let mut response = Response::new(Body::full(Bytes::from_static(b"plain")));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        response
    }

    async fn text(pages: &ErrorPages, status: u16) -> String {
        let response = pages.dress(answer(status)).await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()["cache-control"], "no-store");
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        format!("{kind} {}", String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_narrowest_page_of_a_status_is_shown_with_its_own_type() {
        let folder = tempfile::tempdir().unwrap();
        for (name, page) in [("404.html", "<p>none"), ("sorry.txt", "sorry")] {
            std::fs::write(folder.path().join(name), page).unwrap();
        }
        let root = Arc::new(Root::new(folder.path()));
        let pages = [
            (404..=404, "404.html".to_owned()),
            (410..=410, "missing.html".to_owned()),
            (411..=411, "../outside.html".to_owned()),
            (400..=499, "sorry.txt".to_owned()),
        ];
        let pages = ErrorPages::new(&root, pages);
        assert_eq!(text(&pages, 404).await, "text/html; charset=utf-8 <p>none");
        assert_eq!(text(&pages, 403).await, "text/plain; charset=utf-8 sorry");
        assert_eq!(text(&pages, 502).await, "text/html; charset=utf-8 plain", "no page");
        assert_eq!(text(&pages, 410).await, "text/html; charset=utf-8 plain", "not there");
        assert_eq!(text(&pages, 411).await, "text/html; charset=utf-8 plain", "not below the root");
        std::fs::write(folder.path().join("missing.html"), "there").unwrap();
        pages.0[1].1.read();
        assert_eq!(text(&pages, 410).await, "text/html; charset=utf-8 there");
        std::fs::File::create(folder.path().join("404.html")).unwrap().set_len(LARGEST + 1).unwrap();
        pages.0[0].1.read();
        assert_eq!(text(&pages, 404).await, "text/html; charset=utf-8 plain", "too large");
    }
}
