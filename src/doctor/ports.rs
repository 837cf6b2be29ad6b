//! Whether the listeners can be bound.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use socket2::{Domain, Socket, Type};

use super::Finding;
use crate::base::address::ListenAddress;
use crate::config::Server;

pub(super) fn check(server: &Server, findings: &mut Vec<Finding>) {
    for address in server.http.iter().chain(&server.https) {
        let Err(why) = bind(*address) else { continue };
        findings.extend(explain(*address, &why));
    }
}

/// Binds an address as the server would, and lets go of it.
fn bind(address: ListenAddress) -> io::Result<()> {
    let try_bind = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())
    };
    match address.ip {
        Some(ip) => try_bind(SocketAddr::new(ip, address.port)),
        None => match try_bind((Ipv6Addr::UNSPECIFIED, address.port).into()) {
            // A kernel without IPv6.
            Err(why) if !matches!(why.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                try_bind((Ipv4Addr::UNSPECIFIED, address.port).into())
            }
            done => done,
        },
    }
}

fn explain(address: ListenAddress, why: &io::Error) -> Option<Finding> {
    match why.kind() {
        io::ErrorKind::PermissionDenied => {
            let help = "not checked; the server needs CAP_NET_BIND_SERVICE for ports below 1024, which the systemd unit gives it";
            Some(Finding::warning(None, format!("this account may not bind {address}"), help))
        }
        io::ErrorKind::AddrInUse => match holder(address.port) {
            Some(program) if is_doorward(&program) => None,
            Some(program) if program.ends_with("systemd") => None,
            Some(program) => {
                let message = format!("{address} is in use by {}", program.display());
                Some(Finding::error(None, message, "stop that program, or listen on another address"))
            }
            None => {
                let help = "if that is doorward, all is well: this account may not see whose socket it is";
                Some(Finding::warning(None, format!("{address} is in use"), help))
            }
        },
        io::ErrorKind::AddrNotAvailable => {
            let help = "write an address of this machine (`ip address` lists them), or \":443\" for all";
            Some(Finding::error(None, format!("{address} is not an address of this machine"), help))
        }
        _ => Some(Finding::error(None, format!("{address} cannot be bound: {why}"), "")),
    }
}

/// A file that serves already is checked before each reload: its own listeners are no problem.
fn is_doorward(program: &Path) -> bool {
    let own = std::env::current_exe().ok();
    program.file_name().is_some_and(|name| name == "doorward" || own.as_deref().and_then(Path::file_name) == Some(name))
}

/// The program that listens on a port, where this account may know it.
fn holder(port: u16) -> Option<PathBuf> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let inodes = tables.iter().flat_map(|table| table.lines()).filter_map(|line| listening(line, port));
    let sockets: Vec<String> = inodes.map(|inode| format!("socket:[{inode}]")).collect();
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.filter_map(|entry| entry.ok()).find_map(|process| {
        let descriptors = std::fs::read_dir(process.path().join("fd")).ok()?;
        let holds = descriptors
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .any(|target| target.to_str().is_some_and(|target| sockets.iter().any(|socket| socket == target)));
        let program = holds.then(|| std::fs::read_link(process.path().join("exe")).ok())??;
        // An upgraded binary is still the same program.
        let text = program.to_string_lossy();
        Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
    })
}

/// The inode of a socket in a line of /proc/net/tcp, if it listens on this port.
fn listening(line: &str, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let (_, hex) = local.rsplit_once(':')?;
    (state == LISTEN && u16::from_str_radix(hex, 16) == Ok(port)).then(|| fields.nth(5))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address =
            ListenAddress { ip: Some(Ipv4Addr::LOCALHOST.into()), port: listener.local_addr().unwrap().port() };
        assert_eq!(holder(address.port), std::env::current_exe().ok());
        // This process counts as doorward here: its own listener is no finding.
        let why = bind(address).unwrap_err();
        assert_eq!(explain(address, &why), None);
        drop(listener);
        bind(address).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_an_error() {
        let address = ListenAddress::parse("192.0.2.1:0").unwrap();
        let finding = explain(address, &bind(address).unwrap_err()).unwrap();
        assert!(finding.message.contains("not an address of this machine"), "{finding}");
    }
}
