//! Whether the machine has room for as many connections as the file speaks of.

use std::net::IpAddr;

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::base::address::Endpoint;
use crate::config::{Config, HttpUpstream};
use crate::edge::admission::{Limits, own_descriptors};
use crate::upstream::source::SOURCES;

pub(super) fn check(config: &Config, findings: &mut Vec<Finding>) {
    let server = &config.server;
    // The server raises its soft limit to the hard one.
    let open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let own = own_descriptors(server.workers, server.http.len() + server.https.len());
    let limits = Limits::new(server.max_connections, server.max_connections_per_ip, open_files, own);
    let help = "this is the limit of this shell; the server's own may differ";
    findings.extend(limits.complaint(server.max_connections).map(|told| Finding::warning(None, told, help)));
    let Some(ports) = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok().and_then(|t| range(&t))
    else {
        return;
    };
    for site in &config.sites {
        for socket in &site.websockets {
            let wanted = if socket.max_connections > 0 { socket.max_connections } else { server.max_connections };
            let Some(room) = room(&socket.upstream, ports).filter(|room| wanted > *room) else { continue };
            let message = format!(
                "max_connections is {wanted}, and there are {room} ports for connections to the back ends of the sockets"
            );
            let help = "use a unix socket, several back ends, or widen net.ipv4.ip_local_port_range";
            findings.push(Finding::warning(Some(&site.name), message, help));
        }
    }
}

/// The connections that there are ports for; `None` where there is no such bound.
fn room(upstream: &HttpUpstream, ports: usize) -> Option<usize> {
    upstream.to.iter().try_fold(0_usize, |room, back_end| match &back_end.to.endpoint {
        Endpoint::Unix(_) => None,
        Endpoint::Tcp(host, _) => {
            let sources = if is_local(host) { SOURCES } else { 1 };
            Some(room.saturating_add(ports.saturating_mul(sources)))
        }
    })
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_ipv4() && ip.is_loopback())
}

fn range(text: &str) -> Option<usize> {
    let mut ends = text.split_whitespace().map(str::parse::<usize>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some(last.checked_sub(first)? + 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn findings(limits: &str, to: &str) -> Vec<String> {
        let text = format!(
            "[server]\n{limits}\n[site.app]\nhosts = [\"app.example.com\"]\n[site.app.websocket]\npreset = \"any\"\nto = {to}\n"
        );
        let config = crate::config::parse(Path::new("/etc/doorward"), &[("proxy.toml", &text)], &|_| None);
        let mut findings = Vec::new();
        check(&config.unwrap_or_else(|p| panic!("{p}")), &mut findings);
        findings.iter().map(Finding::to_string).collect()
    }

    #[test]
    fn more_connections_than_ports_or_descriptors_are_told() {
        assert_eq!(range("32768\t60999\n"), Some(28_232));
        assert_eq!(findings("", "\"http://10.0.0.5:3444\""), [""; 0]);
        let told = findings("max_connections = 9000000", "\"http://10.0.0.5:3444\"");
        assert!(told.len() == 2 && told[0].contains("LimitNOFILE") && told[1].contains("unix socket"), "{told:#?}");
        assert_eq!(findings("max_connections = 9000000", "\"unix:/run/x.sock\"").len(), 1);
        // As many as this machine may have open at all; loopback has further sources.
        assert_eq!(findings("max_connections = 400", "\"http://127.0.0.1:3444\""), [""; 0]);
    }
}
