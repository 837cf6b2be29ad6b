//! What systemd gives (listening sockets) and what it wants to hear (ready, reloading, stopping, alive).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::base::address::ListenAddress;

/// The listening sockets that the process was started with (sd_listen_fds(3)), each with its own address.
pub fn inherited_listeners() -> io::Result<Vec<(SocketAddr, std::net::TcpListener)>> {
    let mut listeners = Vec::new();
    for descriptor in sd_notify::listen_fds()? {
        // SAFETY: sd_listen_fds(3) hands descriptors from 3 on over to this process, LISTEN_PID has been compared
        // with our own id, and this function is called once, before anything else could have taken them.
        #[allow(unsafe_code, reason = "descriptors that were handed over have no other way in")]
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let socket = std::net::TcpListener::from(owned);
        socket.set_nonblocking(true)?;
        listeners.push((socket.local_addr()?, socket));
    }
    Ok(listeners)
}

/// Whether a socket bound to `bound` is what the file calls `address`.
pub fn is_same(address: ListenAddress, bound: SocketAddr) -> bool {
    let any = |ip: IpAddr| ip.is_unspecified();
    address.port == bound.port()
        && match address.ip {
            None => any(bound.ip()),
            Some(ip) => ip == bound.ip(),
        }
}

/// Says that the process serves.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Says that a reload has begun; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Says that the process is about to end.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Says that the process is alive.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is to be said: half of WatchdogSec, as sd_watchdog_enabled(3) recommends.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|interval| interval / 2).filter(|interval| !interval.is_zero())
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("NOTIFY_SOCKET: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_every_address_is_the_one_without_an_address() {
        let all = ListenAddress::parse(":443").unwrap();
        assert!(is_same(all, "[::]:443".parse().unwrap()));
        assert!(is_same(all, "0.0.0.0:443".parse().unwrap()));
        assert!(!is_same(all, "127.0.0.1:443".parse().unwrap()));
        assert!(is_same(ListenAddress::parse("127.0.0.1:443").unwrap(), "127.0.0.1:443".parse().unwrap()));
    }
}
