//! The questions themselves: which name servers are asked, and what their answers mean.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

/// What the system's resolver is set up by.
const SYSTEM: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// What /etc/hosts says holds this long: then the file is looked at again.
const HOSTS: Duration = Duration::from_secs(5);
/// For one attempt; the second one asks the next server.
const ATTEMPT: Duration = Duration::from_millis(1500);

/// What a question came to.
pub(super) enum Found {
    /// Addresses, at least one, and when their time is over.
    Addresses(Vec<IpAddr>, Instant),
    /// The name servers say that there are none: why, in words.
    Nothing(String),
    /// Nobody said anything that helps: why, in words.
    Failed(String),
}

/// Who is asked.
#[derive(Default)]
pub(super) struct Client(Mutex<Set>);

#[derive(Default)]
struct Set {
    /// None: the system's.
    servers: Vec<SocketAddr>,
    made: Option<Made>,
}

struct Made {
    resolver: TokioResolver,
    hosts: Arc<Hosts>,
    /// The files of [`SYSTEM`] as they were: length and time of the last change.
    files: [Option<(u64, SystemTime)>; 2],
}

impl Client {
    /// Asks `servers` from now on; says whether that is a change.
    pub(super) fn ask(&self, servers: &[SocketAddr]) -> bool {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if set.servers == servers {
            return false;
        }
        *set = Set { servers: servers.to_vec(), made: None };
        true
    }

    /// Asks for the addresses of `host`.
    pub(super) async fn look_up(&self, host: &str) -> Found {
        let (resolver, hosts) = match self.made() {
            Ok(made) => made,
            Err(error) => return Found::Failed(error.to_string()),
        };
        // Ahead of every question: the library would still ask for the family that the file does not name.
        let written = written(&hosts, host);
        if !written.is_empty() {
            return Found::Addresses(written, Instant::now() + HOSTS);
        }
        match resolver.lookup_ip(host).await {
            Ok(found) => {
                let addresses: Vec<IpAddr> = found.iter().collect();
                match addresses.is_empty() {
                    true => Found::Nothing("the name has no address".to_owned()),
                    false => Found::Addresses(addresses, found.valid_until()),
                }
            }
            Err(error) if error.is_nx_domain() => Found::Nothing("there is no such name (NXDOMAIN)".to_owned()),
            Err(error) if error.is_no_records_found() => Found::Nothing("the name has no address".to_owned()),
            Err(NetError::Timeout) => Found::Failed("the name servers did not answer".to_owned()),
            Err(error) => Found::Failed(error.to_string()),
        }
    }

    /// Made anew when the system's files have changed.
    fn made(&self) -> Result<(TokioResolver, Arc<Hosts>), NetError> {
        let files = SYSTEM.map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.len(), metadata.modified().ok()?))
        });
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = set.made.as_ref().filter(|made| made.files == files) {
            return Ok((made.resolver.clone(), Arc::clone(&made.hosts)));
        }
        // Without the file there is nothing in it.
        let (resolver, hosts) = (build(&set.servers)?, Arc::new(Hosts::from_system().unwrap_or_default()));
        set.made = Some(Made { resolver: resolver.clone(), hosts: Arc::clone(&hosts), files });
        Ok((resolver, hosts))
    }
}

/// The addresses of `host` in /etc/hosts.
fn written(hosts: &Hosts, host: &str) -> Vec<IpAddr> {
    let Ok(name) = Name::from_utf8(host) else { return Vec::new() };
    let kinds = [RecordType::A, RecordType::AAAA].map(|kind| Query::query(name.clone(), kind));
    let found = kinds.iter().filter_map(|query| hosts.lookup_static_host(query));
    found.flat_map(|lookup| lookup.answers().iter().filter_map(|it| it.data.ip_addr()).collect::<Vec<_>>()).collect()
}

fn build(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let provider = TokioRuntimeProvider::default();
    let mut builder = if !servers.is_empty() {
        let servers = servers.iter().map(|server| name_server(*server)).collect();
        TokioResolver::builder_with_config(ResolverConfig::from_name_servers(servers), provider)
    } else if std::fs::exists(SYSTEM[0]).unwrap_or(true) {
        TokioResolver::builder(provider)?
    } else {
        // resolv.conf(5): "If this file does not exist, only the name server on the local machine will be queried".
        let local = name_server(SocketAddr::from(([127, 0, 0, 1], 53)));
        TokioResolver::builder_with_config(ResolverConfig::from_name_servers(vec![local]), provider)
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = ATTEMPT;
    options.attempts = 1;
    // Answers are kept where they are used.
    options.cache_size = 0;
    builder.build()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_is_read_for_both_families() {
        let mut hosts = Hosts::default();
        let text = "192.0.2.1 app App.example # a comment\n2001:db8::1 app\n192.0.2.2 app\n192.0.2.3 other\n";
        hosts.read_hosts_conf(text.as_bytes()).unwrap();
        let both: Vec<IpAddr> = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(written(&hosts, "app"), both);
        assert_eq!(written(&hosts, "app.Example."), [both[0]]);
        assert_eq!(written(&hosts, "nobody"), Vec::<IpAddr>::new());
        assert_eq!(written(&hosts, &"x".repeat(300)), Vec::<IpAddr>::new());
    }
}
