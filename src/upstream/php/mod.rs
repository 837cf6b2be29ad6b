//! PHP-FPM: one request, one script, one answer over FastCGI.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ::http::{Method, Response};
use bytes::Bytes;

use crate::base::address::Endpoint;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::request::UpstreamRequest;
use crate::upstream::spool::{Room, Spooled, spool};

mod ahead;
mod answer;
mod body;
mod complaints;
pub mod environment;
mod exchange;
mod gate;
mod journey;
mod pool;
mod presence;
mod register;
mod unread;

use environment::Fixed;
pub use pool::FastCgiPool;
use register::Fpm;
pub use register::PhpRegister;

/// How PHP-FPM is reached and what it is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The FPM pools, at least one; a request goes where there are fewest for each worker.
    pub pools: Vec<Endpoint>,
    /// Additional variables. They replace those that Doorward sets.
    pub params: BTreeMap<String, String>,
    /// The most that connecting to one pool may take.
    pub connect: Duration,
    /// The longest silence of FPM, before its answer and within it.
    pub read: Duration,
    /// The longest that FPM may take nothing of a request.
    pub send: Duration,
    /// Idle connections that each worker keeps, per pool; each holds an FPM worker. 0 is one connection per request.
    pub keep_alive: usize,
    /// Requests at one pool at once; 0 is learned.
    pub children: usize,
    /// Requests that may wait for their turn at one pool; 0 is four times the children.
    pub queue: usize,
    /// How long one may wait for its turn.
    pub queue_timeout: Duration,
    /// How long a pool may be missing, as in a restart, before requests are refused.
    pub restart_window: Duration,
    /// Bytes of all bodies that are stored at once; `None` is no limit.
    pub max_spooled: Option<u64>,
    /// `SERVER_SOFTWARE`.
    pub server_software: String,
}

/// The script that a request runs. Whoever makes one has checked that `file` exists beneath the root and may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// `DOCUMENT_ROOT`, symlinks resolved or not as the site wants it.
    pub document_root: PathBuf,
    /// `SCRIPT_FILENAME`, in that root.
    pub file: PathBuf,
    /// `SCRIPT_NAME`: the script's path in the site, decoded: `/index.php`.
    pub name: Vec<u8>,
    /// `PATH_INFO`: what of the path is behind the script, decoded: empty or `/x`.
    pub path_info: Vec<u8>,
}

/// A PHP destination, shared by all workers.
#[derive(Debug)]
pub struct PhpUpstream {
    settings: Settings,
    /// In the order of the settings.
    pools: Vec<Arc<Fpm>>,
    spooled: Arc<Room>,
    turn: AtomicUsize,
}

impl PhpUpstream {
    /// A destination. Connects to nothing yet.
    pub fn new(settings: Settings, register: &PhpRegister) -> PhpUpstream {
        let pools = settings.pools.iter().map(|endpoint| register.fpm(endpoint)).collect();
        PhpUpstream { settings, pools, spooled: register.spooled(), turn: AtomicUsize::new(0) }
    }

    /// Where its pools are, as the file writes them.
    pub fn names(&self) -> String {
        let names: Vec<String> = self.settings.pools.iter().map(Endpoint::to_string).collect();
        names.join(", ")
    }

    /// Runs `script` for `request` and gives its answer as soon as the head is there. `body` is read to its end before
    /// the request takes a place at FPM. Dropping the future or the answer's body closes the connection and gives the
    /// place back.
    ///
    /// Faults: those of the request's body; [`Kind::Storage`] where it cannot be kept; [`Kind::HeadTooLarge`] for a
    /// field that FastCGI cannot carry; [`Kind::Busy`] where too many wait, where its turn did not come in time, and
    /// where every pool that once worked is gone for longer than `restart_window`; [`Kind::Connect`] where none ever
    /// did; [`Kind::SendTimeout`], [`Kind::ReadTimeout`], [`Kind::BadAnswer`] and [`Kind::Truncated`]. Those that come
    /// behind the head end the answer's body.
    pub async fn send(
        &self,
        request: UpstreamRequest,
        body: Body,
        script: Script,
        pool: &FastCgiPool,
    ) -> Result<Response<Body>, Fault> {
        let settings = &self.settings;
        let body = spool(body, request.client.address, &self.spooled, settings.max_spooled).await?;
        let keep = settings.keep_alive > 0;
        let fixed = Fixed { software: &settings.server_software, params: &settings.params, keep };
        let head = environment::head(&request, &script, body.length(), &fixed)
            .map_err(|error| Fault::new(Kind::HeadTooLarge, "the request does not fit into FastCGI").because(error))?;
        let target = format!("{} {}", request.method, request.original.encoded());
        journey::run(self, &Job { method: request.method, target, head, body }, pool).await
    }
}

/// What is the same for every attempt.
struct Job {
    method: Method,
    /// Method and path, for the log.
    target: String,
    /// BEGIN_REQUEST and PARAMS.
    head: Bytes,
    body: Spooled,
}

impl Job {
    /// Whether running it twice does no harm.
    fn is_repeatable(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS) && self.body.length() == 0
    }
}

#[cfg(test)]
mod tests;
