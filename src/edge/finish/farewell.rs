//! The second log line of a tunnel, written when it ends. Until then it is in the least memory: what tunnels have in
//! common is held once for all of them.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderValue, Method, Version};

use super::{Answering, Journey, Line};
use crate::edge::access::{Record, SiteLog, Upgrade};
use crate::edge::admission::Permit;
use crate::edge::places::Place;
use crate::edge::process::Process;
use crate::tunnel::Outcome;
use crate::upstream::http::Load;

/// What a tunnel holds of its request, and of its client and back end: one allocation, one pointer in its task.
pub struct Farewell(Box<Kept>);

struct Kept {
    /// `None` if it has no line.
    log: Option<Arc<SiteLog>>,
    common: Rc<Common>,
    target: Box<str>,
    process: Arc<Process>,
    /// Its place among the sockets of its block.
    _place: Option<Place>,
    /// It is load on its back end.
    _load: Load,
    /// The client's place among all clients, where the tunnel has the connection for itself.
    _permit: Option<Permit>,
    /// The stream of an HTTP/2 connection goes on; an HTTP/1.1 connection is over when the tunnel begins.
    _answering: Option<Answering>,
    client: IpAddr,
}

/// What many tunnels say alike: those of one page, in browsers of one version.
#[derive(PartialEq, Eq, Hash)]
struct Common {
    site: Option<Arc<str>>,
    host: Option<Box<[u8]>>,
    referer: Option<Box<[u8]>>,
    user_agent: Option<Box<[u8]>>,
    upstream: Option<Arc<str>>,
    method: Method,
    version: Option<Version>,
    scheme: &'static str,
    status: u16,
}

/// What the tunnels of a worker have in common. Clones are the same.
#[derive(Clone, Default)]
pub struct Farewells(Rc<RefCell<HashSet<Rc<Common>>>>);

impl Farewells {
    fn common(&self, line: &Line) -> Rc<Common> {
        // Field values share the buffer that the head was read into, which must not stay for hours.
        let copy = |value: &Option<HeaderValue>| value.as_ref().map(|value| value.as_bytes().into());
        let common = Common {
            site: line.site.clone(),
            host: copy(&line.host),
            referer: copy(&line.referer),
            user_agent: copy(&line.user_agent),
            upstream: line.upstream.clone(),
            method: line.method.clone(),
            version: line.version,
            scheme: line.scheme.as_str(),
            status: line.status,
        };
        let mut all = self.0.borrow_mut();
        match all.get(&common) {
            Some(common) => common.clone(),
            None => {
                let common = Rc::new(common);
                all.insert(common.clone());
                common
            }
        }
    }

    /// Forgets what no tunnel has any more.
    pub fn sweep(&self) {
        let mut all = self.0.borrow_mut();
        let before = all.len();
        all.retain(|common| Rc::strong_count(common) > 1);
        if all.len() < before / 2 {
            all.shrink_to_fit();
        }
    }
}

impl Journey {
    /// What is left of a request when its tunnel begins.
    pub fn into_farewell(mut self, farewells: &Farewells, load: Load, permit: Option<Permit>) -> Farewell {
        let log = self.log.take().filter(|log| !log.skips(&self.line.path, self.line.status));
        let target = if log.is_some() { std::mem::take(&mut self.line.target) } else { String::new() };
        Farewell(Box::new(Kept {
            log,
            common: farewells.common(&self.line),
            target: target.into(),
            process: self.process.clone(),
            _place: self.place.take(),
            _load: load,
            _permit: permit,
            _answering: self.answering.take().filter(|_| self.line.version == Some(Version::HTTP_2)),
            client: self.line.client,
        }))
    }
}

impl Farewell {
    /// The tunnel has ended.
    pub fn write(self, outcome: &Outcome) {
        let Kept { log, common, target, process, client, .. } = &*self.0;
        let site = common.site.as_deref().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        process.refused.note(&outcome.ended, site, *client, path);
        let Some(log) = log else { return };
        log.write(&Record {
            time: SystemTime::now(),
            client: *client,
            site,
            scheme: common.scheme,
            host: common.host.as_deref(),
            method: common.method.as_str(),
            target: target.as_bytes(),
            path: &[],
            version: common.version,
            status: common.status,
            bytes_sent: outcome.bytes_to_client,
            bytes_received: outcome.bytes_to_back_end,
            duration: outcome.duration,
            referer: common.referer.as_deref(),
            user_agent: common.user_agent.as_deref(),
            user: None,
            upstream: common.upstream.as_deref(),
            upgrade: Upgrade::Close,
            close_code: outcome.close_code,
            fault: None,
            tls: None,
            request_id: None,
        });
    }
}
