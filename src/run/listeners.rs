//! Listening sockets: bound here, or taken over from systemd or from the process before this one; spread over workers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::base::address::ListenAddress;
use crate::config::Server;
use crate::edge::listener::{self, BoundListener};
use crate::http::request::Scheme;
use crate::run::house::Refused;
use crate::run::systemd;

/// How long systemd may take to close a socket that it was to keep for us.
const RELEASE: Duration = Duration::from_secs(2);

/// A listening socket that is older than this process.
#[derive(Debug)]
pub struct Inherited {
    /// What it is bound to.
    pub local: SocketAddr,
    /// The socket, not blocking.
    pub socket: TcpListener,
    /// Who had it.
    pub from: Giver,
}

/// Who had a socket before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Giver {
    /// systemd: a socket unit, or the fd store, under this name.
    Systemd(String),
    /// The process before this one, whose file called it so.
    Process(ListenAddress, Scheme),
}

impl Inherited {
    /// What is known of a descriptor that was handed over.
    ///
    /// # Errors
    /// It is no bound socket.
    pub fn new(descriptor: OwnedFd, from: Giver) -> std::io::Result<Inherited> {
        let socket = TcpListener::from(descriptor);
        socket.set_nonblocking(true)?;
        Ok(Inherited { local: socket.local_addr()?, socket, from })
    }

    /// Whether it is what the file calls `address`. Of port 0 only the process before knows.
    fn is(&self, address: ListenAddress, scheme: Scheme) -> bool {
        match self.from {
            Giver::Process(theirs, speaks) if address.port == 0 => theirs == address && speaks == scheme,
            Giver::Process(theirs, _) if theirs == address => true,
            _ => is_same(address, self.local),
        }
    }
}

/// Whether a socket bound to `bound` is what the file calls `address`.
fn is_same(address: ListenAddress, bound: SocketAddr) -> bool {
    let any = |ip: IpAddr| ip.is_unspecified();
    address.port == bound.port()
        && match address.ip {
            None => any(bound.ip()),
            Some(ip) => ip == bound.ip(),
        }
}

/// What the file has bound.
#[derive(Debug, Default)]
pub struct Bound {
    /// Sockets that nobody accepts from yet.
    pub sockets: Vec<BoundListener>,
    /// The port of each address, also where the file says 0 and where it is listened on already.
    pub ports: HashMap<ListenAddress, u16>,
    /// The names in systemd's store of what was handed over for nothing.
    pub unwanted: Vec<String>,
}

/// Binds what is not listened on yet, or takes it from what was handed over.
pub fn bind(
    server: &Server,
    listening: &HashMap<ListenAddress, u16>,
    mut inherited: Vec<Inherited>,
) -> Result<Bound, Refused> {
    let plain = server.http.iter().map(|address| (*address, Scheme::Http));
    let tls = server.https.iter().map(|address| (*address, Scheme::Https));
    let (mut bound, mut missing) = (Bound::default(), Vec::new());
    for (address, scheme) in plain.chain(tls) {
        if let Some(port) = listening.get(&address) {
            bound.ports.insert(address, *port);
            continue;
        }
        let (ours, others): (Vec<_>, Vec<_>) = inherited.into_iter().partition(|it| it.is(address, scheme));
        inherited = others;
        if ours.is_empty() {
            missing.push((address, scheme));
        }
        for Inherited { local, socket, .. } in ours {
            bound.ports.insert(address, local.port());
            bound.sockets.push(BoundListener { address, scheme, socket });
        }
    }
    // Given back before anything is bound: it may be in the way.
    let mut patience = Duration::ZERO;
    for Inherited { local, from, .. } in inherited {
        match from {
            Giver::Systemd(name) => {
                tracing::warn!("systemd hands over {local}, which [server] does not name: it is closed");
                systemd::forget(&name);
                patience = RELEASE;
            }
            Giver::Process(address, scheme) => {
                tracing::info!("{local} is no longer in [server]: it is closed");
                bound.unwanted.push(systemd::stored_name(address, scheme));
            }
        }
    }
    for (address, scheme) in missing {
        let refused = |source| Refused::Bind { address, source };
        let socket = bind_within(patience, address).map_err(refused)?;
        bound.ports.insert(address, socket.local_addr().map_err(refused)?.port());
        bound.sockets.push(BoundListener { address, scheme, socket });
    }
    Ok(bound)
}

fn bind_within(patience: Duration, address: ListenAddress) -> std::io::Result<TcpListener> {
    let until = Instant::now() + patience;
    loop {
        match listener::probe(address).and_then(|()| listener::bind(address)) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome,
        }
    }
}

/// Every worker gets at least one socket of each address: the kernel spreads connections over those that there are,
/// so each of them has to be accepted from.
pub fn share(bound: Vec<BoundListener>, workers: usize) -> Result<Vec<Vec<BoundListener>>, Refused> {
    let mut shares: Vec<Vec<BoundListener>> = (0..workers).map(|_| Vec::new()).collect();
    for Group { address, scheme, local, mut sockets } in groups(bound)? {
        tracing::info!("listening on {} {local}", scheme.as_str());
        let refused = |source| Refused::Bind { address, source };
        while let Some(first) = sockets.first().filter(|_| sockets.len() < workers) {
            // Where a second one cannot be bound (a socket of systemd has no SO_REUSEPORT), its one queue is shared.
            let another = listener::bind_again(first).or_else(|_| first.try_clone()).map_err(refused)?;
            sockets.push(another);
        }
        for (at, socket) in sockets.into_iter().enumerate() {
            if let Some(share) = shares.get_mut(at % workers.max(1)) {
                share.push(BoundListener { address, scheme, socket });
            }
        }
    }
    Ok(shares)
}

/// Each of them once more.
pub fn copies(shares: &[Vec<BoundListener>]) -> Result<Vec<BoundListener>, Refused> {
    let copy = |it: &BoundListener| {
        let (address, scheme) = (it.address, it.scheme);
        let socket = it.socket.try_clone().map_err(|source| Refused::Bind { address, source })?;
        Ok(BoundListener { address, scheme, socket })
    };
    shares.iter().flatten().map(copy).collect()
}

/// The sockets of one address.
struct Group {
    address: ListenAddress,
    scheme: Scheme,
    local: SocketAddr,
    sockets: Vec<TcpListener>,
}

fn groups(bound: Vec<BoundListener>) -> Result<Vec<Group>, Refused> {
    let mut groups: Vec<Group> = Vec::new();
    for BoundListener { address, scheme, socket } in bound {
        let local = socket.local_addr().map_err(|source| Refused::Bind { address, source })?;
        let known = groups.iter_mut().find(|it| (it.address, it.scheme, it.local) == (address, scheme, local));
        match known {
            Some(group) => group.sockets.push(socket),
            None => groups.push(Group { address, scheme, local, sockets: vec![socket] }),
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: ListenAddress = ListenAddress { ip: Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)), port: 0 };

    #[test]
    fn a_socket_of_every_address_is_the_one_without_an_address() {
        let all = ListenAddress::parse(":443").unwrap();
        assert!(is_same(all, "[::]:443".parse().unwrap()));
        assert!(is_same(all, "0.0.0.0:443".parse().unwrap()));
        assert!(!is_same(all, "127.0.0.1:443".parse().unwrap()));
        assert!(is_same(ListenAddress::parse("127.0.0.1:443").unwrap(), "127.0.0.1:443".parse().unwrap()));
    }

    #[test]
    fn the_process_before_says_which_socket_of_port_0_is_which() {
        let socket = || OwnedFd::from(listener::bind(ANY).unwrap());
        let plain = Inherited::new(socket(), Giver::Process(ANY, Scheme::Http)).unwrap();
        assert!(plain.is(ANY, Scheme::Http) && !plain.is(ANY, Scheme::Https));
        let named = ListenAddress { port: plain.local.port(), ..ANY };
        assert!(plain.is(named, Scheme::Https), "the port is the same, whatever it was called");
        let unit = Inherited::new(socket(), Giver::Systemd("doorward".to_owned())).unwrap();
        assert!(!unit.is(ANY, Scheme::Http));
    }

    #[test]
    fn every_socket_gets_a_worker_and_every_worker_a_socket() {
        for (sockets, workers) in [(1, 1), (1, 3), (2, 2), (2, 3), (5, 2)] {
            let first = listener::bind(ANY).unwrap();
            let mut bound: Vec<_> = (1..sockets).map(|_| listener::bind_again(&first).unwrap()).collect();
            bound.push(first);
            let bound = bound.into_iter().map(|socket| BoundListener { address: ANY, scheme: Scheme::Http, socket });
            let shares = share(bound.collect(), workers).unwrap();
            let sizes: Vec<usize> = shares.iter().map(Vec::len).collect();
            assert_eq!(sizes.iter().sum::<usize>(), sockets.max(workers), "{sockets} over {workers}: {sizes:?}");
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        }
    }

    #[test]
    fn a_socket_that_nobody_can_bind_again_is_shared() {
        let plain = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = plain.local_addr().unwrap().port();
        let shares = share(vec![BoundListener { address: ANY, scheme: Scheme::Http, socket: plain }], 2).unwrap();
        assert!(shares.iter().flatten().all(|bound| bound.socket.local_addr().unwrap().port() == port));
        assert_eq!(shares.iter().flatten().count(), 2);
    }
}
