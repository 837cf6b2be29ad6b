//! Back ends that do what back ends must not do.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

/// Listens on a port until it is dropped, and has `serve` do something with each connection.
pub struct Sick {
    port: u16,
    stop: Arc<AtomicBool>,
    /// Its connections: they end with it.
    open: Arc<Mutex<Vec<Option<TcpStream>>>>,
    thread: Option<JoinHandle<()>>,
}

/// A connection of one.
pub struct Talk {
    /// The connection.
    pub stream: TcpStream,
    stop: Arc<AtomicBool>,
}

impl Sick {
    /// At a port that may have been another's a moment ago.
    pub fn listen(port: u16, serve: impl Fn(&mut Talk) + Send + Sync + 'static) -> Sick {
        let begun = Instant::now();
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)) {
                Ok(listener) => break listener,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "port {port}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let open = Arc::new(Mutex::new(Vec::new()));
        let (serve, ended, all) = (Arc::new(serve), Arc::clone(&stop), Arc::clone(&open));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
                let number = {
                    let mut all: MutexGuard<'_, Vec<Option<TcpStream>>> = all.lock().unwrap();
                    all.push(stream.try_clone().ok());
                    all.len() - 1
                };
                let (serve, all) = (Arc::clone(&serve), Arc::clone(&all));
                let mut talk = Talk { stream, stop: Arc::clone(&ended) };
                std::thread::spawn(move || {
                    serve(&mut talk);
                    all.lock().unwrap()[number] = None;
                });
            }
        });
        Sick { port, stop, open, thread: Some(thread) }
    }
}

impl Drop for Sick {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        // The port is free behind this.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.open.lock().unwrap().iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Talk {
    /// Reads a request: its head, and a body with a length. False at the end of the connection.
    pub fn request(&mut self) -> bool {
        let mut all = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return false,
                Ok(count) => all.extend_from_slice(&piece[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return false,
            }
            let Some(end) = all.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
            let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            if all.len() >= end + 4 + length.map_or(0, |length| length.parse().unwrap()) {
                return true;
            }
        }
        false
    }

    /// Says this. False when nobody hears it.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Says nothing more until the other side has gone, or the fault is over.
    pub fn stall(&mut self) {
        let mut piece = [0; 4096];
        while !self.stop.load(Ordering::Relaxed) {
            match self.stream.read(&mut piece) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }

    /// Ends the connection by RST.
    pub fn reset(&mut self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Says `head`, then `piece` again and again, until nobody takes it any more; counts the bytes.
    pub fn never_end(&mut self, head: &str, piece: &str, said: &AtomicU64) {
        let _ = self.stream.set_write_timeout(Some(Duration::from_millis(100)));
        let (mut going, piece) = (self.say(head), piece.repeat(16 * 1024 / piece.len()));
        let mut left = piece.as_bytes();
        while going && !self.stop.load(Ordering::Relaxed) {
            match self.stream.write(left) {
                Ok(count) => {
                    said.fetch_add(count as u64, Ordering::Relaxed);
                    left = &left[count..];
                    if left.is_empty() {
                        left = piece.as_bytes();
                    }
                }
                Err(error) => going = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        }
    }
}

/// One that is as it should be.
pub fn well(talk: &mut Talk) {
    while talk.request() && talk.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell") {}
}

/// A port at which packets vanish, for as long as both are kept: nobody accepts, and the queue is full.
pub fn black_hole(port: u16) -> (Socket, Vec<Socket>) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into();
    let listener = socket();
    listener.set_reuse_address(true).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let crowd = (0..8).map(|_| {
        let one = socket();
        one.set_nonblocking(true).unwrap();
        let _ = one.connect(&address);
        one
    });
    (listener, crowd.collect())
}
