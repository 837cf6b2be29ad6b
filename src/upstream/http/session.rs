//! A request of Engine.IO goes to the back end that has its session, by what the answers said before (`sticky = "sid"`).
//!
//! Nothing is set at the client: long polling works with cookies blocked and from other origins. A session that this
//! process has not heard of, as after a restart or beside another instance, is looked for: the back end says that it
//! does not know it, and the next one is asked.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::base::fault::Fault;
use crate::http::body::Body;
use crate::http::request::UpstreamRequest;
use crate::upstream::Reply;
use crate::upstream::http::HttpUpstream;
use crate::upstream::http::balance::Candidate;
use crate::upstream::http::settings::Sticky;
use crate::upstream::http::sid::{self, Query};
use crate::upstream::http::sids::{Print, Sids};

/// A session is looked for at so many back ends: an id that somebody made up costs no more.
const SEARCHED: usize = 16;

/// Who holds a request of a session that is looked for as long as this is taken to have the session.
const HELD: Duration = Duration::from_millis(250);

/// What a request has to do with a session.
pub(super) struct Session<'u> {
    sids: &'u Arc<Sids>,
    site: &'u str,
    role: Role,
}

enum Role {
    /// Nothing.
    Other,
    /// It asks for one.
    Opening,
    /// It belongs to one.
    Of {
        print: Print,
        /// Its back end, by name, where it is known.
        known: Option<Arc<str>>,
        /// At how many back ends it may be looked for.
        search: usize,
    },
}

/// What an answer means for the request.
pub(super) enum Verdict {
    /// It is the client's.
    Final(Reply),
    /// The back end does not have the session; another one may.
    Elsewhere(Reply),
}

impl HttpUpstream {
    /// What `request` has to do with a session. One that asks for a new session will be answered without a coding: its
    /// answer is to be read.
    pub(super) fn session(&self, request: &mut UpstreamRequest, body: &Body) -> Session<'_> {
        let Sticky::Sid { site } = &self.balancer.sticky else {
            return Session { sids: &self.sids, site: "", role: Role::Other };
        };
        let get = request.method == Method::GET;
        let role = match Query::read(request.query.as_deref().unwrap_or_default()) {
            Query::Opening if get && !request.websocket => {
                // RFC 9110, section 12.5.3: without the field "any content coding is considered acceptable".
                request.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
                Role::Opening
            }
            // A preflight (OPTIONS) is answered by whoever gets it: nothing can be learned from that.
            Query::Of(sid) if get || request.method == Method::POST => {
                let print = Print::new(site, &sid);
                let known = self.sids.find(print, Instant::now());
                let known = known.filter(|name| self.back_ends().any(|state| state.name() == name));
                // What may be sent twice. POST never is.
                let search = if known.is_none() && get && body.is_end_stream() { SEARCHED } else { 0 };
                Role::Of { print, known, search }
            }
            _ => Role::Other,
        };
        Session { sids: &self.sids, site, role }
    }
}

impl Session<'_> {
    /// Leaves the session's back end alone, unless it is out: to another one the session is unknown, and would be lost for
    /// a connection that failed. Whether it has done so.
    pub(super) fn lead(&self, order: &mut Vec<usize>, candidates: &[Candidate]) -> bool {
        let Role::Of { known: Some(known), .. } = &self.role else { return false };
        let own =
            |index: &usize| candidates.get(*index).is_some_and(|it| it.state.name() == known && !it.state.is_out());
        let Some(own) = order.iter().copied().find(own) else { return false };
        order.clear();
        order.push(own);
        true
    }

    /// Whether a copy of the request is wanted: it may have to be sent to another back end after an answer.
    pub(super) fn is_search(&self) -> bool {
        matches!(self.role, Role::Of { search: 1.., .. })
    }

    /// Waits for `answer`, that of `candidate`. A back end that does not have a session says so at once; one that has
    /// it may hold a poll for long, and what else the client sends meanwhile is to come to it too.
    pub(super) async fn attend<T, E>(
        &self,
        mut answer: Pin<&mut impl Future<Output = Result<T, E>>>,
        candidate: &Candidate,
    ) -> Result<T, E> {
        let Role::Of { print, search: 1.., .. } = &self.role else { return answer.await };
        if let Ok(answered) = tokio::time::timeout(HELD, answer.as_mut()).await {
            return answered;
        }
        let name = candidate.state.name();
        let guessed = self.sids.guess(*print, name, Instant::now());
        let answered = answer.await;
        if answered.is_err() && guessed {
            self.sids.forget_at(*print, name);
        }
        answered
    }

    /// Learns from the answer of `candidate`.
    ///
    /// # Errors
    /// The answer broke off while it was looked at.
    pub(super) async fn judge(&mut self, reply: Reply, candidate: &Candidate) -> Result<Verdict, Fault> {
        let name = candidate.state.name();
        let (sids, now) = (self.sids, Instant::now());
        let status = match &reply {
            Reply::Response(response, _) => response.status(),
            Reply::Switched(_) => StatusCode::SWITCHING_PROTOCOLS,
        };
        match (&mut self.role, reply) {
            (Role::Opening, Reply::Response(response, _)) if status == StatusCode::OK => {
                let lesson = Lesson::Given { site: self.site.into(), back_end: Arc::clone(name) };
                Ok(Verdict::Final(watched(response, sids, lesson)))
            }
            (Role::Of { print, known, .. }, reply)
                if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS =>
            {
                if known.as_ref() != Some(name) {
                    sids.learn(*print, name, now);
                }
                Ok(Verdict::Final(reply))
            }
            (Role::Of { print, search, .. }, Reply::Response(response, _))
                if status == StatusCode::BAD_REQUEST && *search > 0 =>
            {
                *search -= 1;
                let (parts, body) = response.into_parts();
                let (denied, body) = peek(body).await?;
                let reply = Response::from_parts(parts, body).into();
                if denied {
                    sids.forget(*print);
                    return Ok(Verdict::Elsewhere(reply));
                }
                Ok(Verdict::Final(reply))
            }
            (Role::Of { print, known: Some(_), .. }, Reply::Response(response, _))
                if status == StatusCode::BAD_REQUEST =>
            {
                Ok(Verdict::Final(watched(response, sids, Lesson::Denied { print: *print })))
            }
            (_, reply) => Ok(Verdict::Final(reply)),
        }
    }
}

/// Whether `body` says that there is no such session; and the body, as if nobody had looked.
async fn peek(mut body: Body) -> Result<(bool, Body), Fault> {
    let mut seen = Vec::new();
    while seen.len() < sid::LOOKED_AT {
        let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else {
            return Ok((sid::denies(&seen), Body::full(seen)));
        };
        if let Ok(data) = frame?.into_data() {
            seen.extend_from_slice(&data);
        }
    }
    Ok((false, Body::stream(Resumed { seen: seen.into(), rest: body })))
}

/// A body whose beginning has been read already.
struct Resumed {
    seen: Bytes,
    rest: Body,
}

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.rest).poll_frame(cx);
        }
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.seen)))))
    }

    fn is_end_stream(&self) -> bool {
        self.seen.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, seen) = (self.rest.size_hint(), self.seen.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(seen));
        }
        hint.set_lower(hint.lower().saturating_add(seen));
        hint
    }
}

/// What the beginning of an answer may say.
enum Lesson {
    /// The id of a new session.
    Given { site: Box<str>, back_end: Arc<str> },
    /// That there is no such session.
    Denied { print: Print },
}

impl Lesson {
    /// Whether `seen` said it.
    fn take(&self, seen: &[u8], sids: &Sids) -> bool {
        match self {
            Lesson::Given { site, back_end } => {
                let Some(sid) = sid::given_out(seen) else { return false };
                sids.learn(Print::new(site, &sid), back_end, Instant::now());
                true
            }
            Lesson::Denied { print } => {
                let denied = sid::denies(seen);
                if denied {
                    sids.forget(*print);
                }
                denied
            }
        }
    }
}

/// `response`, whose beginning is looked at on its way.
fn watched(response: Response<Body>, sids: &Arc<Sids>, lesson: Lesson) -> Reply {
    if is_coded(response.headers()) {
        return response.into();
    }
    let watch = Watch { sids: Arc::clone(sids), lesson, seen: Vec::new() };
    response.map(|body| Body::stream(Watched { inner: body, watch: Some(watch) })).into()
}

fn is_coded(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// A body that passes unchanged and without delay. What it says is known before the client has it.
struct Watched {
    inner: Body,
    /// Gone when enough was seen.
    watch: Option<Watch>,
}

struct Watch {
    sids: Arc<Sids>,
    lesson: Lesson,
    /// Never more than [`sid::LOOKED_AT`].
    seen: Vec<u8>,
}

impl Watch {
    /// Whether there is more to see.
    fn feed(&mut self, data: &[u8]) -> bool {
        let room = sid::LOOKED_AT.saturating_sub(self.seen.len());
        let part = data.get(..room).unwrap_or(data);
        self.seen.extend_from_slice(part);
        // Both lessons end in one of these: a body that comes byte by byte is not read anew with each.
        let complete = part.iter().any(|byte| matches!(byte, b'}' | b'n' | b'"'));
        !(complete && self.lesson.take(&self.seen, &self.sids)) && self.seen.len() < sid::LOOKED_AT
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(watch) = &mut self.watch {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
            if !data.is_some_and(|data| watch.feed(data)) {
                self.watch = None;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
