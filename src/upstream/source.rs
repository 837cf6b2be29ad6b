//! The two ends of connections to a back end: which addresses they go to, and where they begin. A pair of addresses has
//! about 28,000 ports between it, and a tunnel holds one for hours: towards a back end on this machine, further loopback
//! addresses have as many again.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use tokio::net::{TcpSocket, TcpStream};

use crate::upstream::resolve::Name;

/// Further sources: 127.0.0.2 and so on.
const MORE: u8 = 15;

/// The addresses that connections to a back end on IPv4 loopback may begin at.
pub const SOURCES: usize = MORE as usize + 1;

/// What the connections to one back end have in common. Shared by all workers, without a lock.
#[derive(Default)]
pub struct Source {
    /// The one that had a free port last.
    last: AtomicU8,
    name: OnceLock<Arc<Name>>,
}

impl Source {
    /// Has the resolver of the process look after the back end's `name`. Without it, the system is asked each time.
    pub(super) fn set_name(&self, name: Arc<Name>) {
        // A back end has one name, and the first is as good as the next.
        let _ = self.name.set(name);
    }

    /// The name that was set.
    pub(super) fn name(&self) -> Option<&Arc<Name>> {
        self.name.get()
    }

    /// Connects to `peer`, from another address when the ports towards it are used up.
    pub(super) async fn connect(&self, peer: SocketAddr) -> io::Result<TcpStream> {
        let more = if is_loopback(peer) { MORE } else { 0 };
        let first = self.last.load(Ordering::Relaxed).min(more);
        let mut at = first;
        loop {
            match connect_from(at, peer).await {
                Err(error) if is_used_up(&error) => {
                    at = if at == more { 0 } else { at + 1 };
                    if at == first {
                        return Err(Errno::ADDRNOTAVAIL.into());
                    }
                }
                connected => {
                    if at != first {
                        self.last.store(at, Ordering::Relaxed);
                    }
                    return connected;
                }
            }
        }
    }
}

/// The system chooses address and port (0), or the port of a further address. The latter is taken at bind, for all
/// peers: the option that would take it at connect (IP_BIND_ADDRESS_NO_PORT) has no safe binding, and there are more
/// addresses than anybody needs.
async fn connect_from(at: u8, peer: SocketAddr) -> io::Result<TcpStream> {
    if at == 0 {
        return TcpStream::connect(peer).await;
    }
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, at.saturating_add(1)), 0).into())?;
    socket.connect(peer).await
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("last", &self.last).finish_non_exhaustive()
    }
}

fn is_loopback(peer: SocketAddr) -> bool {
    matches!(peer.ip(), IpAddr::V4(ip) if ip.is_loopback())
}

/// connect(2) says one, bind(2) the other.
pub(super) fn is_used_up(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE))
}
