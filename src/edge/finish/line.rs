//! What is kept of a request for its line in the access log.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method, Request, Version, header};
use hyper::body::Incoming;

use crate::edge::access::{Record, Upgrade};
use crate::edge::connection::Connection;
use crate::edge::sign_in::User;
use crate::http::request::Scheme;

/// What the log line needs, kept from the request.
pub(super) struct Line {
    pub(super) client: IpAddr,
    pub(super) scheme: Scheme,
    pub(super) site: Option<Arc<str>>,
    pub(super) host: Option<HeaderValue>,
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) path: Vec<u8>,
    pub(super) version: Option<Version>,
    pub(super) status: u16,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) referer: Option<HeaderValue>,
    pub(super) user_agent: Option<HeaderValue>,
    pub(super) user: Option<User>,
    pub(super) upstream: Option<Arc<str>>,
    pub(super) upgrade: Upgrade,
    pub(super) close_code: Option<u16>,
    pub(super) fault: Option<String>,
}

impl Line {
    pub(super) fn new(connection: &Connection, request: &Request<Incoming>) -> Line {
        let field = |name| request.headers().get(name).cloned();
        let authority = || HeaderValue::from_str(request.uri().authority()?.as_str()).ok();
        Line {
            client: connection.arrival.peer.ip(),
            scheme: connection.arrival.scheme,
            site: None,
            host: field(header::HOST).or_else(authority),
            method: request.method().clone(),
            target: request.uri().path_and_query().map_or("", |target| target.as_str()).to_owned(),
            path: Vec::new(),
            version: Some(request.version()),
            status: 0,
            bytes_sent: 0,
            bytes_received: 0,
            referer: field(header::REFERER),
            user_agent: field(header::USER_AGENT),
            user: None,
            upstream: None,
            upgrade: Upgrade::None,
            close_code: None,
            fault: None,
        }
    }

    /// Forgets what hyper read in the place of a refused head: it was not the client's.
    pub(super) fn forget_request(&mut self) {
        self.method = Method::default();
        self.target = "-".to_owned();
        self.version = None;
        self.host = None;
    }

    /// The line of a request that has taken `duration` until now.
    pub(super) fn record(&self, duration: Duration) -> Record<'_> {
        let now = SystemTime::now();
        Record {
            time: now.checked_sub(duration).unwrap_or(now),
            client: self.client,
            site: self.site.as_deref().unwrap_or_default(),
            scheme: self.scheme.as_str(),
            host: self.host.as_ref().map(HeaderValue::as_bytes),
            method: if self.version.is_some() { self.method.as_str() } else { "" },
            target: self.target.as_bytes(),
            path: &self.path,
            version: self.version,
            status: self.status,
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
            duration,
            referer: self.referer.as_ref().map(HeaderValue::as_bytes),
            user_agent: self.user_agent.as_ref().map(HeaderValue::as_bytes),
            user: self.user.as_deref(),
            upstream: self.upstream.as_deref(),
            upgrade: self.upgrade,
            close_code: self.close_code,
            fault: self.fault.as_deref(),
            tls: None,
            request_id: None,
        }
    }
}
