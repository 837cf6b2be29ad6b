//! A DNS server of the test's own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Answers over UDP what the test tells it, with a TTL of one second; it ends with the test.
pub struct NameServer {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    names: Mutex<HashMap<String, Vec<Ipv4Addr>>>,
    asked: Mutex<Vec<String>>,
    silent: AtomicBool,
}

impl NameServer {
    /// Starts it; it knows no name.
    pub fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let server = NameServer { address: socket.local_addr().unwrap(), state: Arc::default() };
        let state = Arc::downgrade(&server.state);
        std::thread::spawn(move || {
            let mut buf = [0; 1500];
            while let Some(state) = state.upgrade() {
                let Ok((count, from)) = socket.recv_from(&mut buf) else { continue };
                if let Some(answer) = state.answer(&buf[..count]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        server
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `name` has these addresses from now on.
    pub fn set(&self, name: &str, addresses: &[[u8; 4]]) {
        let addresses = addresses.iter().map(|octets| Ipv4Addr::from(*octets)).collect();
        self.state.names.lock().unwrap().insert(name.to_owned(), addresses);
    }

    /// Whether it says nothing at all from now on.
    pub fn set_silent(&self, silent: bool) {
        self.state.silent.store(silent, Ordering::Relaxed);
    }

    /// The names that it was asked for the IPv4 addresses of.
    pub fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }
}

impl State {
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (mut labels, mut at) = (Vec::new(), 12);
        while question[at] != 0 {
            let end = at + 1 + usize::from(question[at]);
            labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
            at = end;
        }
        let name = labels.join(".");
        // A, and not AAAA.
        let is_a = question[at + 1..at + 3] == [0, 1];
        if is_a {
            self.asked.lock().unwrap().push(name.clone());
        }
        if self.silent.load(Ordering::Relaxed) {
            return None;
        }
        let known = self.names.lock().unwrap().get(&name).cloned();
        let addresses = known.clone().filter(|_| is_a).unwrap_or_default();
        let mut answer = question[..2].to_vec();
        let status = if known.is_some() { 0 } else { 3 };
        answer.extend([0x81, 0x80 | status, 0, 1, 0, u8::try_from(addresses.len()).unwrap(), 0, 0, 0, 0]);
        answer.extend(&question[12..at + 5]);
        for address in addresses {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(address.octets());
        }
        Some(answer)
    }
}
