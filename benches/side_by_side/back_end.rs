//! The back end behind all proxies: small and large answers, uploads, and sockets that echo or broadcast.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::sockets::{ANSWER, FROM_CLIENT, MESSAGE};
use crate::{LARGE, on_a_worker};

/// The back end as a process, so that nobody is charged for it. It ends when this is dropped.
pub struct BackEnd {
    pub address: SocketAddr,
    child: Child,
}

pub fn start() -> BackEnd {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.arg("back-end").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    BackEnd { address: line.trim().parse().unwrap(), child }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who gets what anybody sends to `/broadcast`.
type Subscribers = Rc<RefCell<Vec<Rc<TcpStream>>>>;

/// The process itself. It ends with its standard input, so that it never outlives the one who started it.
pub fn run() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let large: Rc<[u8]> = vec![b'x'; LARGE].into();
    let subscribers = Subscribers::default();
    on_a_worker(LocalSet::new().run_until(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        std::io::stdout().flush().unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (large, subscribers) = (Rc::clone(&large), Rc::clone(&subscribers));
            // The other end leaving is how most connections end.
            spawn_local(async move { serve(stream, &large, subscribers).await.unwrap_or_default() });
        }
    }));
}

async fn serve(mut stream: TcpStream, large: &[u8], subscribers: Subscribers) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut held = Vec::with_capacity(16 << 10);
    loop {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&held, b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut held).await? == 0 {
                return Ok(());
            }
        };
        let path = held.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        match path {
            b"/large" => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", large.len());
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(large).await?;
            }
            b"/upload" => {
                let length: usize = field(&held[..end], "content-length").parse().unwrap();
                let counted = (held.len() - end) + drain(&mut stream, length - (held.len() - end)).await?;
                held.truncate(end);
                let counted = counted.to_string();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{counted}", counted.len());
                stream.write_all(answer.as_bytes()).await?;
            }
            b"/echo" | b"/broadcast" => {
                let accept = derive_accept_key(field(&held[..end], "sec-websocket-key").as_bytes());
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await?;
                return if path == b"/echo" { echo(stream).await } else { broadcast(stream, &subscribers).await };
            }
            _ => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?,
        }
        held.drain(..end);
    }
}

fn field(head: &[u8], name: &str) -> String {
    let head = String::from_utf8_lossy(head);
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let found = fields.find(|(have, _)| have.eq_ignore_ascii_case(name));
    found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

async fn drain(stream: &mut TcpStream, length: usize) -> std::io::Result<usize> {
    let mut piece = vec![0; 256 << 10];
    let mut counted = 0;
    while counted < length {
        let most = piece.len().min(length - counted);
        match stream.read(&mut piece[..most]).await? {
            0 => break,
            read => counted += read,
        }
    }
    Ok(counted)
}

/// Sends each message back. What a client sends has a mask of zeroes: its payload is as it is.
async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut message, mut answer) = ([0; FROM_CLIENT], ANSWER);
    loop {
        if let Err(error) = stream.read_exact(&mut message).await {
            return if error.kind() == std::io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) };
        }
        answer[4..].copy_from_slice(&message[FROM_CLIENT - MESSAGE..]);
        stream.write_all(&answer).await?;
    }
}

/// Sends each message to everybody. Nobody is ever so far behind that a socket does not take one.
async fn broadcast(stream: TcpStream, subscribers: &Subscribers) -> std::io::Result<()> {
    let stream = Rc::new(stream);
    subscribers.borrow_mut().push(Rc::clone(&stream));
    let mut held = 0;
    let mut piece = [0; FROM_CLIENT];
    let ended = loop {
        if let Err(error) = stream.readable().await {
            break Err(error);
        }
        match stream.try_read(&mut piece[held..]) {
            Ok(0) => break Ok(()),
            Ok(read) => held += read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => break Err(error),
        }
        if held == piece.len() {
            held = 0;
            for subscriber in subscribers.borrow().iter() {
                let _ = subscriber.try_write(&ANSWER);
            }
        }
    };
    subscribers.borrow_mut().retain(|other| !Rc::ptr_eq(other, &stream));
    ended
}
