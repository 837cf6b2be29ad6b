//! Every socket is a descriptor, and the soft limit of most systems is 1024.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::edge::admission::{Admission, Limits, own_descriptors};

/// Raises the limit, and lets in as many clients as it has room for then.
pub fn admission(config: &Config) -> Arc<Admission> {
    raise();
    Admission::new(limits(config))
}

/// Raises the limit as far as it goes. What cannot be raised is told.
fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!("the open-file limit stays at {}: it cannot be raised: {error}", limit.current.unwrap_or(0));
    }
}

/// How many clients may connect by what `config` and the machine say. Complains where the two do not go together.
pub fn limits(config: &Config) -> Limits {
    let server = &config.server;
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let own = own_descriptors(server.workers, server.http.len() + server.https.len());
    let limits = Limits::new(server.max_connections, server.max_connections_per_ip, open_files, own)
        .with_handshakes(server.max_handshakes);
    if let Some(complaint) = limits.complaint(server.max_connections) {
        tracing::warn!("{complaint}");
    }
    limits
}
