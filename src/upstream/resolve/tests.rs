//! Against a name server of the test's own.

use super::*;
use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;

/// A name server that knows one name, `app.test`.
struct Server {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    addresses: Mutex<Vec<Ipv4Addr>>,
    silent: AtomicBool,
    asked: AtomicUsize,
}

impl Server {
    fn start(addresses: &[[u8; 4]]) -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = Server { address: socket.local_addr().unwrap(), state: Arc::default() };
        server.set(addresses);
        let state = Arc::downgrade(&server.state);
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        std::thread::spawn(move || {
            let mut buf = [0; 1500];
            while let Some(state) = state.upgrade() {
                let Ok((count, from)) = socket.recv_from(&mut buf) else { continue };
                if let Some(answer) = state.answer(&buf[..count]) {
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        server
    }

    fn set(&self, addresses: &[[u8; 4]]) {
        *self.state.addresses.lock().unwrap() = addresses.iter().map(|octets| Ipv4Addr::from(*octets)).collect();
    }

    fn resolver(&self) -> Resolver {
        let resolver = Resolver::new();
        resolver.ask(&[self.address]);
        resolver
    }
}

impl State {
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let end = 12 + question[12..].iter().position(|byte| *byte == 0)? + 1;
        let is_known = question[12..end].eq_ignore_ascii_case(b"\x03app\x04test\0");
        let is_a = question[end..end + 2] == [0, 1];
        if is_a {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        if self.silent.load(Ordering::Relaxed) {
            return None;
        }
        let addresses = self.addresses.lock().unwrap().clone();
        let addresses = if is_known && is_a { addresses } else { Vec::new() };
        let mut answer = question[..2].to_vec();
        answer.extend([0x81, if is_known { 0x80 } else { 0x83 }, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
        answer.extend(&question[12..end + 4]);
        for address in addresses {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(address.octets());
        }
        Some(answer)
    }
}

async fn all(name: &Arc<Name>) -> Result<Vec<IpAddr>, Arc<str>> {
    let mut all: Vec<_> = name.addresses().await?.iter().collect();
    all.sort();
    Ok(all)
}

fn ip(octets: [u8; 4]) -> IpAddr {
    octets.into()
}

async fn until(condition: impl AsyncFn() -> bool) {
    let limit = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    limit.await.unwrap();
}

#[tokio::test]
async fn a_changed_answer_is_followed_when_its_time_is_over() {
    let server = Server::start(&[[127, 0, 0, 1]]);
    let resolver = server.resolver();
    let name = resolver.name("app.test").unwrap();
    assert_eq!(all(&name).await.unwrap(), [ip([127, 0, 0, 1])]);
    server.set(&[[127, 0, 0, 2], [127, 0, 0, 3]]);
    assert_eq!(all(&name).await.unwrap(), [ip([127, 0, 0, 1])], "its time is not over");
    assert!(name.still_has(ip([127, 0, 0, 1])));
    until(async || all(&name).await.unwrap() == [ip([127, 0, 0, 2]), ip([127, 0, 0, 3])]).await;
    assert!(!name.still_has(ip([127, 0, 0, 1])));
    assert!(name.still_has(ip([127, 0, 0, 3])));
}

#[tokio::test]
async fn connections_that_are_used_again_and_again_learn_the_news_too() {
    let server = Server::start(&[[127, 0, 0, 1]]);
    let resolver = server.resolver();
    let name = resolver.name("app.test").unwrap();
    all(&name).await.unwrap();
    server.set(&[[127, 0, 0, 2]]);
    until(async || !name.still_has(ip([127, 0, 0, 1]))).await;
}

#[tokio::test]
async fn those_who_wait_share_one_question() {
    let server = Server::start(&[[127, 0, 0, 1]]);
    let resolver = server.resolver();
    let name = resolver.name("app.test").unwrap();
    assert!(Arc::ptr_eq(&name, &resolver.name("app.test").unwrap()));
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let name = Arc::clone(&name);
            tokio::spawn(async move { all(&name).await.unwrap() })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), [ip([127, 0, 0, 1])]);
    }
    assert_eq!(server.state.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_old_answer_serves_while_the_name_servers_are_silent() {
    let server = Server::start(&[[127, 0, 0, 1]]);
    let resolver = server.resolver();
    let name = resolver.name("app.test").unwrap();
    all(&name).await.unwrap();
    server.state.silent.store(true, Ordering::Relaxed);
    tokio::time::sleep(SHORTEST).await;
    for _ in 0..3 {
        let since = Instant::now();
        assert_eq!(all(&name).await.unwrap(), [ip([127, 0, 0, 1])]);
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    }
    server.set(&[[127, 0, 0, 2]]);
    server.state.silent.store(false, Ordering::Relaxed);
    until(async || all(&name).await.unwrap() == [ip([127, 0, 0, 2])]).await;
}

#[tokio::test]
async fn a_name_that_is_not_there_is_an_error_and_asked_for_again_later() {
    let server = Server::start(&[[127, 0, 0, 1]]);
    let resolver = server.resolver();
    let name = resolver.name("nobody.test").unwrap();
    let told = all(&name).await.unwrap_err();
    assert!(told.contains("NXDOMAIN"), "{told}");
    let asked = server.state.asked.load(Ordering::Relaxed);
    assert!(all(&name).await.is_err());
    assert_eq!(server.state.asked.load(Ordering::Relaxed), asked, "not at once");
    // Without addresses it is there, and no use.
    let name = resolver.name("app.test").unwrap();
    server.set(&[]);
    assert!(all(&name).await.is_err());
    server.set(&[[127, 0, 0, 1]]);
    until(async || all(&name).await.is_ok()).await;
}

#[tokio::test]
async fn other_name_servers_are_asked_at_once_and_what_was_known_is_forgotten() {
    let (one, two) = (Server::start(&[[127, 0, 0, 1]]), Server::start(&[[127, 0, 0, 2]]));
    let resolver = one.resolver();
    let name = resolver.name("app.test").unwrap();
    assert_eq!(all(&name).await.unwrap(), [ip([127, 0, 0, 1])]);
    resolver.ask(&[one.address]);
    resolver.ask(&[two.address]);
    assert_eq!(all(&name).await.unwrap(), [ip([127, 0, 0, 2])]);
}

#[tokio::test]
async fn connections_spread_over_the_addresses_and_a_dead_one_comes_last() {
    let server = Server::start(&[[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]]);
    let resolver = server.resolver();
    let name = resolver.name("app.test").unwrap();
    let mut firsts = Vec::new();
    for _ in 0..6 {
        firsts.push(name.addresses().await.unwrap().iter().next().unwrap());
    }
    firsts.sort();
    firsts.dedup();
    assert_eq!(firsts.len(), 3);
    name.addresses().await.unwrap().note(firsts[1], false);
    for _ in 0..6 {
        assert_eq!(name.addresses().await.unwrap().iter().last(), Some(firsts[1]));
    }
    name.addresses().await.unwrap().note(firsts[1], true);
    let mut again = Vec::new();
    for _ in 0..3 {
        again.push(name.addresses().await.unwrap().iter().next().unwrap());
    }
    assert!(again.contains(&firsts[1]), "{again:?}");
}

#[tokio::test]
async fn localhost_and_addresses_ask_nobody() {
    let resolver = Resolver::new();
    assert!(resolver.name("127.0.0.1").is_none());
    assert!(resolver.name("::1").is_none());
    for host in ["localhost", "LOCALHOST.", "app.localhost"] {
        let name = resolver.name(host).unwrap();
        let found: Vec<_> = name.addresses().await.unwrap().iter().collect();
        assert_eq!(found, [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()]);
    }
    resolver.ask(&[SocketAddr::from(([192, 0, 2, 1], 53))]);
    assert!(resolver.name("localhost").unwrap().addresses().await.is_ok());
}

#[tokio::test]
async fn a_name_is_forgotten_with_its_last_back_end() {
    let resolver = Resolver::new();
    drop(resolver.name("a.test"));
    let _kept = resolver.name("b.test");
    let _more = resolver.name("c.test");
    assert_eq!(resolver.names.lock().unwrap().len(), 2);
}

#[test]
fn an_answer_without_end_is_cut_and_what_was_known_of_an_address_is_kept() {
    let many: Vec<IpAddr> = (0..1000_u32).map(|n| Ipv4Addr::from(n).into()).collect();
    let answer = Answer::new(&[&many[..], &many[..]].concat(), None);
    assert_eq!(answer.addresses.len(), MOST);
    answer.addresses[3].avoided.store(u64::MAX, Ordering::Relaxed);
    let next = Answer::new(&many[..10], Some(&answer));
    assert_eq!(next.addresses.iter().filter(|address| address.is_avoided()).count(), 1);
}
