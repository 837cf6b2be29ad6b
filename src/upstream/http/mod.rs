//! HTTP/1.1 back ends over TCP, unix sockets and TLS: one is chosen, a pooled or new connection to it found, the
//! request written anew, and the answer checked before anybody sees it.

use std::sync::Arc;

use http::HeaderValue;

use crate::base::address::{Endpoint, HttpBackEnd};
use crate::upstream::connect::TlsTarget;

mod answer;
mod balance;
mod exchange;
mod outgoing;
mod pool;
mod send;
mod settings;
#[cfg(test)]
mod tests;
mod tls;

pub use balance::{BackEndRegister, BackEndState, Load};
pub use pool::Pool;
pub use settings::{Balance, HostField, Settings, Sticky, Timeouts, TlsSettings};
pub use tls::UpstreamTlsError;

use balance::{Balancer, Candidate};
use tls::UpstreamTls;

/// An HTTP destination of one or several back ends. Made with a snapshot, shared by the workers.
pub struct HttpUpstream {
    targets: Vec<Target>,
    candidates: Vec<Candidate>,
    balancer: Balancer,
    host: HostField,
    timeouts: Timeouts,
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
        let Settings { back_ends, tls, balance, sticky, host, timeouts } = settings;
        let tls = match back_ends.iter().any(|back_end| back_end.tls) {
            true => Some(UpstreamTls::new(&tls, || register.roots())?),
            false => None,
        };
        let mut targets = Vec::with_capacity(back_ends.len());
        let mut candidates = Vec::with_capacity(back_ends.len());
        for back_end in back_ends {
            let state = register.state(&back_end.to_string());
            targets.push(Target::new(back_end, state.name(), tls.as_ref(), &host)?);
            candidates.push(Candidate::new(state, &sticky));
        }
        Ok(HttpUpstream { targets, candidates, balancer: Balancer::new(balance, sticky), host, timeouts })
    }

    /// What is known of the back ends, in the order of the file.
    pub fn back_ends(&self) -> impl Iterator<Item = &Arc<BackEndState>> {
        self.candidates.iter().map(|candidate| &candidate.state)
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
