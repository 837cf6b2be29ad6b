//! A back end that answers at once: two bytes, `/large` with 1 MiB, `/endless` without end, `/silent` never.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Starts it on a thread of its own, for as long as this process lives.
pub fn start() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    // The other end leaving is how most connections end.
                    tokio::spawn(async { serve(stream).await.unwrap_or_default() });
                }
            }
        });
    });
    address
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut held = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut held).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
        held.drain(..end);
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
        let chunked = head.contains("transfer-encoding: chunked");
        while held.len() < length || chunked && !held.ends_with(b"0\r\n\r\n") {
            if stream.read_buf(&mut held).await? == 0 {
                return Ok(());
            }
        }
        held.drain(..if chunked { held.len() } else { length });
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path {
            "/silent" => {
                stream.read_buf(&mut held).await?;
                return Ok(());
            }
            "/endless" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                let piece = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
                loop {
                    stream.write_all(piece.as_bytes()).await?;
                }
            }
            "/large" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n").await?;
                stream.write_all(&vec![b'x'; 1 << 20]).await?;
            }
            _ if head.starts_with("head ") => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await?,
            _ => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?,
        }
    }
}
