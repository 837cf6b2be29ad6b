//! What is done to every answer before it goes out, and the line about it in the access log.

use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::base::cached_time;
use crate::base::fault::Fault;
use crate::edge::access::{SiteLog, Upgrade};
use crate::edge::client_body::Unread;
use crate::edge::compress::compress;
use crate::edge::connection::Connection;
use crate::edge::facts::Facts;
use crate::edge::handshake::Admitted;
use crate::edge::places::Place;
use crate::edge::process::Process;
use crate::edge::sign_in::User;
use crate::edge::site::{Route, Site};
use crate::edge::snapshot::Snapshot;
use crate::edge::stall;
use crate::http::body::Body;
use crate::http::frames::Piece;
use crate::http::guard::Refusal;
use crate::http::request::{ClientRequest, Scheme};
use crate::tunnel::Policy;
use crate::tunnel::register::{Entry, TunnelInfo};
use crate::upstream::files::encoding::Accepted;

pub mod farewell;
mod line;

use line::Line;

/// One request on its way, as the log sees it. It is logged when it is dropped: after the last byte of the answer, or
/// when the client has left.
pub struct Journey {
    line: Line,
    log: Option<Arc<SiteLog>>,
    site: Option<Arc<Site>>,
    cache_control: Option<HeaderValue>,
    accepted: Accepted,
    refusal: Option<Refusal>,
    /// Set for a handshake that was let through, until there is a tunnel or an answer of another kind.
    socket: Option<Box<Admitted>>,
    /// The place of a tunnel among those of its block.
    place: Option<Place>,
    /// What the client has not finished sending. Dropped behind the answer's end, HTTP/2 is told NO_ERROR
    /// (RFC 9113, section 8.1); before it, CANCEL, and clients throw the answer away.
    unread: Option<Rc<Unread>>,
    process: Arc<Process>,
    answering: Option<Answering>,
    begun: Instant,
}

/// A request of a connection that is being answered; until it is dropped.
struct Answering {
    facts: Arc<Facts>,
    tunnel: bool,
}

impl Answering {
    fn open_tunnel(&mut self) {
        self.facts.open_tunnel();
        self.tunnel = true;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.facts.end();
        if self.tunnel {
            self.facts.close_tunnel();
        }
    }
}

impl Journey {
    /// A request has arrived.
    pub fn begin(connection: &Connection, snapshot: &Snapshot, request: &Request<Incoming>) -> Journey {
        let refusal = connection.facts.begin();
        let mut line = Line::new(connection, request);
        if refusal.is_some() {
            line.forget_request();
        }
        Journey {
            line,
            log: snapshot.log.clone(),
            site: None,
            cache_control: None,
            accepted: Accepted::read(request.headers()),
            refusal,
            socket: None,
            place: None,
            unread: None,
            process: connection.process.clone(),
            answering: Some(Answering { facts: connection.facts.clone(), tunnel: false }),
            begun: cached_time::now(),
        }
    }

    /// Why the guard refused the request, if it did.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// The request has passed its checks.
    pub fn note_request(&mut self, request: &ClientRequest) {
        self.line.client = request.client.address;
        self.line.scheme = request.client.scheme;
        self.line.path = request.path.decoded().to_vec();
    }

    /// The site is known.
    pub fn note_site(&mut self, site: &Arc<Site>) {
        self.line.site = Some(site.name.clone());
        self.log.clone_from(&site.log);
        self.site = Some(site.clone());
    }

    /// The route is known.
    pub fn note_route(&mut self, route: &Route) {
        self.cache_control.clone_from(&route.cache_control);
    }

    /// The user who has signed in, if one has.
    pub fn note_user(&mut self, user: Option<&User>) {
        self.line.user = user.cloned();
    }

    /// The request is a handshake that may go to the back end.
    pub fn note_socket(&mut self, admitted: Admitted) {
        self.socket = Some(Box::new(admitted));
    }

    /// The request's body has not been read to its end.
    pub fn keep_body(&mut self, unread: Unread) {
        self.unread = Some(Rc::new(unread));
    }

    /// The answer is that of this HTTP back end, or of none.
    pub fn note_back_end(&mut self, name: Option<Arc<str>>) {
        self.line.upstream = name;
    }

    /// The request failed with the fault of this id.
    pub fn note_fault(&mut self, id: String) {
        self.line.fault = Some(id);
    }

    /// The site, once it is known.
    pub fn site(&self) -> Option<&Arc<Site>> {
        self.site.as_ref()
    }

    /// The site's name, for messages.
    pub fn site_name(&self) -> &str {
        self.line.site.as_deref().unwrap_or("-")
    }

    /// The client's address, for messages.
    pub fn client(&self) -> IpAddr {
        self.line.client
    }

    /// The path that was asked for, for messages: without the query, which may hold secrets.
    pub fn path(&self) -> &str {
        self.line.target.split('?').next().unwrap_or_default()
    }

    /// A tunnel opens: the first of its two lines.
    pub fn open_socket(&mut self, back_end: &Arc<str>, status: StatusCode) {
        self.line.status = status.as_u16();
        self.line.upstream = Some(back_end.clone());
        self.line.upgrade = Upgrade::Open;
        if let Some(answering) = &mut self.answering {
            answering.open_tunnel();
        }
        self.write();
    }

    /// The deadlines and rules of the tunnel, and its entry in the register.
    pub fn tunnel(&mut self, back_end: Arc<str>) -> (Policy, Entry) {
        let policy;
        (policy, self.place) = self.socket.take().map(|socket| (socket.policy, socket.place)).unzip();
        let entry = self.process.tunnels.open(TunnelInfo {
            site: self.line.site.clone().unwrap_or_else(|| "-".into()),
            back_end,
            client: self.line.client,
            path: self.path().into(),
            http2: self.line.version == Some(Version::HTTP_2),
        });
        (policy.unwrap_or_default(), entry)
    }

    fn hand(&self, piece: Piece) {
        if let Some(answering) = &self.answering {
            answering.facts.hand(piece);
        }
    }

    fn write(&self) {
        if let Some(log) = &self.log {
            log.write(&self.line.record(self.begun.elapsed()));
        }
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        if self.line.upgrade != Upgrade::None {
            // A tunnel's opening has been logged; its end is its own.
            return;
        }
        if self.line.status == 0 {
            self.line.status = 499;
        }
        self.write();
    }
}

/// The answer as the client gets it: the site's fields, compression, and a body that is counted.
pub fn finish(connection: &Connection, mut journey: Journey, mut response: Response<Body>) -> Response<Body> {
    // A handshake that was answered otherwise gives its place back.
    journey.socket = None;
    let headers = response.headers_mut();
    // What runs behind the edge is nobody's business.
    headers.remove(header::SERVER);
    if let Some(site) = &journey.site {
        decorate(site, connection.arrival.scheme, &journey, headers);
    }
    if connection.is_http1() && connection.is_closing() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if journey.site.as_ref().is_some_and(|site| site.answers.compress) {
        response = compress(response, journey.accepted, journey.line.method == Method::HEAD);
    }
    if journey.line.method == Method::HEAD || is_bodiless(response.status()) {
        response = without_body(response);
    }
    journey.line.status = response.status().as_u16();
    connection.facts.answer();
    if response.body().is_end_stream() {
        connection.facts.hand(Piece::LastFields);
    }
    stall::offered();
    response.map(|body| {
        let unread = journey.unread.clone();
        let counted = Counted { inner: body, journey };
        match unread {
            Some(unread) => unread.outlast(counted),
            None => Body::stream(counted),
        }
    })
}

/// RFC 9110, section 6.4.1: answers to HEAD, and those with 204 and 304, "do not include content". hyper sees to it on
/// HTTP/1 only; on HTTP/2 the DATA frames would go out.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    let length = response.body().length().filter(|length| *length > 0);
    if let Some(length) = length
        && !is_bodiless(response.status())
    {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    response.map(|_| Body::Empty)
}

fn is_bodiless(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

fn decorate(site: &Site, scheme: Scheme, journey: &Journey, headers: &mut HeaderMap) {
    let answers = &site.answers;
    for (name, value) in &answers.defaults {
        if !headers.contains_key(name) {
            headers.insert(name.clone(), value.clone());
        }
    }
    if let Some(hsts) = answers.hsts.as_ref().filter(|_| scheme == Scheme::Https) {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    // A fault's page has `no-store`, whatever the route says of its answers.
    if let Some(value) = journey.cache_control.as_ref().filter(|_| journey.line.fault.is_none()) {
        headers.insert(header::CACHE_CONTROL, value.clone());
    } else if let Some(value) = answers.assets.as_ref().filter(|_| is_asset(headers)) {
        headers.entry(header::CACHE_CONTROL).or_insert_with(|| value.clone());
    }
    answers.edits.apply(headers);
}

/// Style sheets, scripts, images, fonts, media.
fn is_asset(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    ["image/", "font/", "audio/", "video/"].iter().any(|prefix| kind.starts_with(prefix))
        || matches!(kind, "text/css" | "text/javascript" | "application/javascript" | "application/wasm")
}

/// Counts the bytes of an answer; its journey ends with it.
struct Counted {
    inner: Body,
    journey: Journey,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            stall::taken();
            return Poll::Pending;
        };
        stall::offered();
        match &frame {
            Some(Ok(frame)) => {
                self.journey.line.bytes_sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.journey.hand(if frame.is_trailers() { Piece::LastFields } else { Piece::Content });
            }
            Some(Err(fault)) => {
                // The head is out: all that is left is to break off visibly, and to say so here.
                let id = self.journey.process.next_id();
                let (site, path) = (self.journey.site_name(), self.journey.path());
                tracing::warn!(id, site, path, "the answer broke off: {fault}");
                self.journey.note_fault(id);
            }
            None => {}
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
