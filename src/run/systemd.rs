//! What systemd gives (listening sockets) and what it wants to hear (ready, reloading, stopping, alive, another main
//! process), and the sockets that it keeps for the next start.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sockopt};
use sd_notify::NotifyState;

use crate::base::address::ListenAddress;
use crate::edge::listener::BoundListener;
use crate::http::request::Scheme;
use crate::run::handover::MOST_SOCKETS;
use crate::run::listeners::{Giver, Inherited};

/// Sockets in the fd store have names that begin so.
const STORED: &str = "doorward-";

/// The listening sockets that the process was started with (sd_listen_fds(3)): those of a socket unit, and those that
/// an earlier process left in the fd store.
pub fn inherited_listeners() -> io::Result<Vec<Inherited>> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    // Names are a help, no more: one that is missing is empty.
    let names = names.split(':').chain(std::iter::repeat(""));
    let mut listeners = Vec::new();
    for (descriptor, name) in sd_notify::listen_fds()?.zip(names) {
        // SAFETY: sd_listen_fds(3) hands descriptors from 3 on over to this process, LISTEN_PID has been compared
        // with our own id, and this function is called once, before anything else could have taken them.
        #[allow(unsafe_code, reason = "descriptors that were handed over have no other way in")]
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        listeners.push(Inherited::new(owned, Giver::Systemd(name.to_owned()))?);
    }
    Ok(listeners)
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

/// Says that another process speaks for the service from now on. systemd believes only the main process
/// (NotifyAccess=main), so the new one can say nothing before this.
pub fn main_process_is(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

/// Has systemd keep these sockets for the next start (FileDescriptorStoreMax=): while nobody accepts, clients wait in
/// their queues. Sockets of a socket unit are kept by that, and of port 0 nothing could be told at the next start.
pub fn keep(listeners: &[BoundListener]) {
    let kept = |it: &&BoundListener| it.address.port != 0 && sockopt::socket_reuseport(&it.socket).unwrap_or(false);
    let kept: Vec<&BoundListener> = listeners.iter().filter(kept).collect();
    let names: BTreeSet<String> = kept.iter().map(|it| stored_name(it.address, it.scheme)).collect();
    for name in names {
        let own = kept.iter().filter(|it| stored_name(it.address, it.scheme) == name);
        let sockets: Vec<BorrowedFd<'_>> = own.map(|it| it.socket.as_fd()).collect();
        for batch in sockets.chunks(MOST_SOCKETS) {
            // FDPOLL=0: systemd is not to look whether they are still good for something.
            notify_with(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), batch);
        }
    }
}

/// These addresses are no longer listened on: systemd is to close its sockets, too.
pub fn forget_all(listeners: &[BoundListener]) {
    let names: BTreeSet<String> = listeners.iter().map(|it| stored_name(it.address, it.scheme)).collect();
    names.iter().for_each(|name| forget(name));
}

/// The socket that was handed over under this name is not wanted: systemd is to close its own, if it is in the store.
pub fn forget(name: &str) {
    if name.starts_with(STORED) {
        notify_with(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]);
    }
}

/// A name for the fd store, which allows no colon.
pub fn stored_name(address: ListenAddress, scheme: Scheme) -> String {
    format!("{STORED}{}-{address}", scheme.as_str()).replace(':', "_")
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

/// sd-notify sends descriptors only with a crate more.
fn notify_with(text: &str, sockets: &[BorrowedFd<'_>]) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    // Since systemd 254 a service is told whether it has a store.
    if std::env::var_os("FDSTORE").is_some_and(|most| most == "0") {
        return;
    }
    let send = || -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        match path.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt;
                socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
            }
            None => socket.connect(&path)?,
        }
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut room);
        if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::Error::other("too many sockets for one message"));
        }
        rustix::net::sendmsg(&socket, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    };
    if let Err(error) = send() {
        tracing::debug!("NOTIFY_SOCKET: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_store_differ_and_hold_no_colon() {
        let name = |address, scheme| stored_name(ListenAddress::parse(address).unwrap(), scheme);
        assert_eq!(name("[::1]:443", Scheme::Https), "doorward-https-[__1]_443");
        assert_ne!(name(":443", Scheme::Https), name("0.0.0.0:443", Scheme::Https));
        assert_ne!(name(":443", Scheme::Https), name(":443", Scheme::Http));
    }
}
