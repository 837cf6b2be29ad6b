//! HTTP/1.1 back ends over TCP, unix sockets and TLS: one is chosen, a pooled or new connection to it found, the
//! request written anew, and the answer checked before anybody sees it.

use std::sync::Arc;

use http::HeaderValue;

use crate::base::address::{Endpoint, HttpBackEnd};
use crate::upstream::connect::TlsTarget;

pub mod answer;
mod back_end;
mod balance;
pub mod codec;
mod connection;
mod exchange;
mod health;
mod outgoing;
mod pool;
mod probe;
mod proxy;
mod retry;
mod send;
mod session;
mod settings;
pub mod sid;
mod sids;
pub mod sticky;
#[cfg(test)]
mod tests;
mod tls;
mod upload;

pub use back_end::{BackEndRegister, BackEndState, Load};
pub use health::BackEndHealth;
pub use pool::Pool;
pub use probe::{ProbeError, Watch};
pub use settings::{BackEnd, Balance, Health, HostField, Probe, ProxyVersion, Settings, Sticky, Timeouts, TlsSettings};
pub use sids::Sids;
pub use tls::UpstreamTlsError;

use balance::{Balancer, Candidate};
use retry::RetryBudget;
use tls::UpstreamTls;

/// An HTTP destination of one or several back ends. Made with a snapshot, shared by the workers.
pub struct HttpUpstream {
    targets: Vec<Target>,
    candidates: Vec<Candidate>,
    balancer: Balancer,
    proxy_protocol: Option<ProxyVersion>,
    retries: RetryBudget,
    host: HostField,
    timeouts: Timeouts,
    health: Health,
    /// The same for the last one that is in.
    lenient: Health,
    watches: Vec<Arc<Watch>>,
    sids: Arc<Sids>,
}

/// How one back end is reached.
struct Target {
    back_end: HttpBackEnd,
    tls: Option<TlsTarget>,
    /// What idle connections are kept under: the address, and what it was verified with.
    key: Arc<str>,
    /// The Host field, where it is not the client's.
    host: Option<HeaderValue>,
}

impl HttpUpstream {
    /// Reads the files that TLS needs; `register` is the process's own. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// A certificate, a key or a name for TLS cannot be used. An upstream without back ends is no error here: it
    /// answers every request with a fault.
    pub fn new(settings: Settings, register: &BackEndRegister) -> Result<HttpUpstream, UpstreamTlsError> {
        let Settings { back_ends, tls, balance, sticky, slow_start, health, proxy_protocol, host, timeouts } = settings;
        let tls = match back_ends.iter().any(|back_end| back_end.to.tls) {
            true => Some(UpstreamTls::new(&tls, || register.roots())?),
            false => None,
        };
        let mut targets = Vec::with_capacity(back_ends.len());
        let mut candidates = Vec::with_capacity(back_ends.len());
        let mut watches = Vec::new();
        for BackEnd { to: back_end, weight, backup } in back_ends {
            let state = register.state(&back_end.to_string());
            if let Endpoint::Tcp(host, _) = &back_end.endpoint
                && let Some(name) = register.resolver().name(host)
            {
                state.source.set_name(name);
            }
            let target = Target::new(back_end, state.name(), tls.as_ref(), &host)?;
            let watch = health.probe.as_ref().and_then(|probe| target.watch(probe, &state, &host));
            watches.extend(watch.map(|watch| Arc::new(watch.after_head(proxy_protocol))));
            targets.push(target);
            candidates.push(Candidate::new(state, weight, backup, &sticky));
        }
        Ok(HttpUpstream {
            targets,
            candidates,
            balancer: Balancer::new(balance, sticky, slow_start),
            retries: RetryBudget::new(),
            proxy_protocol,
            host,
            timeouts,
            sids: Arc::clone(&register.sids),
            lenient: Health { max_fails: 0, ..health.clone() },
            health,
            watches,
        })
    }

    /// What is known of the back ends, in the order of the file.
    pub fn back_ends(&self) -> impl Iterator<Item = &Arc<BackEndState>> {
        self.candidates.iter().map(|candidate| &candidate.state)
    }

    /// What is to be asked of them, again and again.
    pub fn watches(&self) -> &[Arc<Watch>] {
        &self.watches
    }
}

impl Target {
    fn new(
        back_end: HttpBackEnd,
        name: &Arc<str>,
        tls: Option<&UpstreamTls>,
        host: &HostField,
    ) -> Result<Target, UpstreamTlsError> {
        let host = match host {
            HostField::Preserve => None,
            HostField::Literal(text) => HeaderValue::try_from(text.as_str()).ok(),
            HostField::Upstream => HeaderValue::try_from(own_host(&back_end)).ok(),
        };
        let (tls, key) = match (tls, &back_end.endpoint) {
            (Some(tls), Endpoint::Tcp(host, _)) if back_end.tls => {
                (Some(tls.target(host)?), Arc::from(format!("{name}#{}", tls.identity())))
            }
            _ => (None, Arc::clone(name)),
        };
        Ok(Target { back_end, tls, key, host })
    }

    /// `None` for a host that cannot be written.
    fn watch(&self, probe: &Probe, state: &Arc<BackEndState>, host: &HostField) -> Option<Watch> {
        let host = match (&probe.host, host) {
            (Some(text), _) | (None, HostField::Literal(text)) => HeaderValue::try_from(text.as_str()),
            _ => HeaderValue::try_from(own_host(&self.back_end)),
        };
        let (state, to, tls) = (Arc::clone(state), self.back_end.clone(), self.tls.clone());
        Some(Watch::new(state, &self.key, to, tls, host.ok()?, probe.clone()))
    }
}

/// RFC 9110, section 7.2: the host and, where it is not the scheme's own, the port.
fn own_host(back_end: &HttpBackEnd) -> String {
    match &back_end.endpoint {
        Endpoint::Unix(_) => "localhost".to_owned(),
        Endpoint::Tcp(host, port) if *port == if back_end.tls { 443 } else { 80 } => {
            if host.contains(':') {
                format!("[{host}]")
            } else {
                host.clone()
            }
        }
        tcp => tcp.to_string(),
    }
}
