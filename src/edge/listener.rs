//! The accept loop of one listener on one worker.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::base::address::ListenAddress;
use crate::edge::admission::Verdict;
use crate::edge::connection::{self, Accepted};
use crate::edge::proxied;
use crate::edge::refusal;
use crate::edge::worker::Worker;
use crate::http::request::Scheme;

/// Connections that the kernel may hold for us while we are busy.
const BACKLOG: i32 = 4096;

/// Pauses where nothing can be accepted. A client waits no longer than the longest when descriptors are free again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A bound socket and what the file calls it.
#[derive(Debug)]
pub struct BoundListener {
    /// As it is written in the file.
    pub address: ListenAddress,
    /// Whether TLS is spoken on it.
    pub scheme: Scheme,
    /// The listening socket, not blocking.
    pub socket: std::net::TcpListener,
}

/// Binds `address` so that every worker can have a socket of its own (SO_REUSEPORT).
pub fn bind(address: ListenAddress) -> io::Result<std::net::TcpListener> {
    match address.ip {
        Some(ip) => bind_to(SocketAddr::new(ip, address.port), false),
        // One socket for both families; machines without IPv6 get the IPv4 one.
        None => {
            bind_to(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port), true).or_else(|error| match error
                .kind()
            {
                io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
                _ => bind_to(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port), false),
            })
        }
    }
}

/// Whether somebody else listens on `address`. SO_REUSEPORT alone would let two servers of one user share a port
/// without a word.
pub fn probe(address: ListenAddress) -> io::Result<()> {
    let ip = address.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let socket = Socket::new(Domain::for_address(SocketAddr::new(ip, 0)), Type::STREAM, Some(Protocol::TCP))?;
    if ip.is_ipv6() {
        // Our own "0.0.0.0:80" is no stranger to "[::]:80".
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(ip, address.port).into())?;
    if address.port != 0 { socket.listen(1) } else { Ok(()) }
}

/// Another socket on the same port, for another worker.
pub fn bind_again(first: &std::net::TcpListener) -> io::Result<std::net::TcpListener> {
    let address = first.local_addr()?;
    let both_families = address.is_ipv6() && !SockRef::from(first).only_v6()?;
    bind_to(address, both_families)
}

fn bind_to(address: SocketAddr, both_families: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!both_families)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    bequeath(&socket);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until `close` is cancelled. Connections go on by themselves.
pub async fn accept(worker: Rc<Worker>, bound: BoundListener, close: CancellationToken) {
    let BoundListener { address, scheme, socket } = bound;
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("cannot listen on {address}: {error}"),
    };
    // Once more for a listener that was bound by somebody else.
    bequeath(&SockRef::from(&listener));
    let mut vanishing = Vanishing::default();
    let mut backoff = Backoff::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = close.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff.reset();
                let (is_proxy, has_head) = {
                    let snapshot = worker.process.snapshot.load();
                    vanishing.follow(snapshot.terms.timeouts.write, [SockRef::from(&listener), SockRef::from(&stream)]);
                    let is_proxy = snapshot.trust.proxies.contains(peer.ip());
                    (is_proxy, is_proxy && snapshot.proxy_protocol)
                };
                match verdict(&worker, peer.ip(), is_proxy) {
                    Verdict::Admitted(permit) => {
                        let close = close.clone();
                        let accepted =
                            Accepted { stream, peer, listener: address, scheme, close, permit, unnamed: false };
                        if has_head {
                            worker.spawn(proxied::serve(worker.clone(), accepted));
                        } else {
                            worker.spawn(connection::serve(worker.clone(), accepted));
                        }
                    }
                    Verdict::Refused(place) if has_head => {
                        worker.spawn(proxied::refuse(worker.clone(), stream, scheme, place));
                    }
                    Verdict::Refused(place) => {
                        worker.spawn(refusal::refuse(worker.clone(), stream, scheme, place));
                    }
                    // Whether the answer arrives is left to luck: the socket closes behind it.
                    Verdict::Dropped if scheme == Scheme::Http => drop(SockRef::from(&stream).send(refusal::ANSWER)),
                    Verdict::Dropped => {}
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                worker.process.admission.note_accept_error();
                let pause = backoff.next(address, &error);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = close.cancelled() => return,
                }
            }
        }
    }
}

/// What becomes of a client that has connected. Where room is short, a connection that nobody uses gives way to it.
fn verdict(worker: &Worker, peer: IpAddr, is_proxy: bool) -> Verdict {
    let process = &worker.process;
    if !process.overload.has_room() {
        return process.admission.refuse();
    }
    if process.admission.is_tight() || process.overload.is_tight() {
        worker.guests.make_room();
    }
    process.admission.admit(peer, is_proxy)
}

/// What all that `listener` accepts has from it (tcp(7)), at no cost for each: also what comes before anybody accepts. One
/// that refuses an option still works.
fn bequeath(listener: &Socket) {
    // Answers are written whole; waiting for more (Nagle) would only delay them.
    let _ = listener.set_tcp_nodelay(true);
    // A socket lives for days without a deadline of a request; the kernel finds out that its client has vanished.
    let _ = listener.set_tcp_keepalive(&keepalive());
}

/// A peer that is gone is noticed after two minutes.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(6)
}

/// What accepted sockets have as TCP_USER_TIMEOUT: from their listener, which is told when it changes. `None` is not known
/// yet: a listener that was handed over has what an earlier process told it.
#[derive(Debug, Default)]
struct Vanishing(Option<Option<Duration>>);

impl Vanishing {
    /// `accepted` has just come from `listener`, and `timeouts.write` is `write`.
    fn follow(&mut self, write: Duration, [listener, accepted]: [SockRef<'_>; 2]) {
        let after = vanished_after(write);
        if self.0 != Some(after) {
            let _ = listener.set_tcp_user_timeout(after);
            let _ = accepted.set_tcp_user_timeout(after);
            self.0 = Some(after);
        }
    }
}

/// The same for one that is being sent something: keepalive is silent then, and the kernel would send it again for a
/// quarter of an hour (tcp(7), TCP_USER_TIMEOUT). A client that is there and takes nothing is not cut off before `write`:
/// where that is long, it alone ends such clients, as this would be in the place of keepalive's own count.
fn vanished_after(write: Duration) -> Option<Duration> {
    const KEEPALIVE: Duration = Duration::from_secs(120);
    (write <= KEEPALIVE / 2).then_some(KEEPALIVE)
}

/// Errors that say something about the connection that was to be accepted, not about the listener (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Without descriptors accept fails at once, for ever: a loop without a pause would spin.
#[derive(Default)]
struct Backoff {
    pause: Duration,
    told: Option<tokio::time::Instant>,
}

impl Backoff {
    fn reset(&mut self) {
        self.pause = Duration::ZERO;
    }

    fn next(&mut self, address: ListenAddress, error: &io::Error) -> Duration {
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        if self.told.is_none_or(|told| told.elapsed() > Duration::from_secs(60)) {
            self.told = Some(tokio::time::Instant::now());
            tracing::error!("cannot accept on {address}: {error}");
        }
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_shared_between_workers_and_not_with_strangers() {
        let any = ListenAddress { ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: 0 };
        let first = bind(any).unwrap();
        let port = first.local_addr().unwrap().port();
        let second = bind_again(&first).unwrap();
        assert_eq!(second.local_addr().unwrap().port(), port);
        assert!(probe(ListenAddress { port, ..any }).is_err());
        drop((first, second));
        assert!(probe(ListenAddress { port, ..any }).is_ok());
    }

    #[test]
    fn whoever_comes_before_anybody_accepts_is_asked_after_as_well() {
        let listener = bind(ListenAddress { ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: 0 }).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(SockRef::from(&accepted).keepalive().unwrap());
        drop(client);
    }

    #[test]
    fn what_is_accepted_has_its_options_from_the_listener() {
        let listener = bind(ListenAddress { ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: 0 }).unwrap();
        listener.set_nonblocking(false).unwrap();
        // By an earlier process.
        SockRef::from(&listener).set_tcp_user_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut vanishing = Vanishing::default();
        let _clients = [3600, 3600, 10, 10, 3600].map(|write| {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            vanishing.follow(Duration::from_secs(write), [SockRef::from(&listener), SockRef::from(&accepted)]);
            assert!(accepted.nodelay().unwrap());
            let after = SockRef::from(&accepted).tcp_user_timeout().unwrap();
            assert_eq!(after.filter(|after| !after.is_zero()), vanished_after(Duration::from_secs(write)), "{write}");
            client
        });
    }

    #[test]
    fn a_client_that_takes_nothing_is_left_to_the_deadline_of_writes() {
        let seconds = |write| vanished_after(Duration::from_secs(write)).map(|after| after.as_secs());
        assert_eq!([seconds(0), seconds(60), seconds(61)], [Some(120), Some(120), None]);
    }

    #[test]
    fn both_families_may_be_named_beside_each_other_on_one_port() {
        let v4 = bind(ListenAddress { ip: Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port: 0 }).unwrap();
        let v6 = ListenAddress { ip: Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), port: v4.local_addr().unwrap().port() };
        probe(v6).unwrap();
        let first = bind(v6).unwrap();
        let second = bind_again(&first).unwrap();
        assert!(SockRef::from(&second).only_v6().unwrap());
        assert!(probe(v6).is_err());
    }
}
