//! Against a PHP-FPM that misbehaves in every way that was seen or feared.

use std::sync::{Arc, Mutex};

use ::http::{HeaderName, Request, StatusCode, request};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::*;
use crate::base::network::Networks;
use crate::http::request::{Arrival, ClientRequest, HeadLimits, Scheme, Trust};
use crate::upstream::fastcgi::params::tests::decode;
use crate::upstream::fastcgi::record::{HEADER, Header, Type};

mod answers;
mod connections;
mod places;
mod requests;
mod whole;

pub(super) fn request(builder: request::Builder) -> UpstreamRequest {
    let arrival = Arrival {
        peer: "192.0.2.7:5000".parse().unwrap(),
        local: "192.0.2.1:443".parse().unwrap(),
        scheme: Scheme::Https,
        unnamed: false,
    };
    let trust = Trust {
        proxies: Networks(vec![]),
        header: HeaderName::from_static("x-forwarded-for"),
        cloudflare: Networks(vec![]),
    };
    let limits = HeadLimits { max_uri: 8192, max_headers: 100, max_header_size: 1 << 20 };
    ClientRequest::read(builder.body(()).unwrap().into_parts().0, None, arrival, &trust, limits)
        .unwrap()
        .forward(None, false)
}

fn get() -> UpstreamRequest {
    request(Request::get("/").header("host", "a.test"))
}

fn post() -> UpstreamRequest {
    request(Request::post("/").header("host", "a.test"))
}

fn record(kind: u8, id: u16, content: &[u8], padding: u8) -> Vec<u8> {
    let mut out = vec![1, kind];
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&[padding, 0]);
    out.extend_from_slice(content);
    out.extend(std::iter::repeat_n(0xff, usize::from(padding)));
    out
}

fn stdout(content: impl AsRef<[u8]>) -> Vec<u8> {
    content.as_ref().chunks(65535).flat_map(|part| record(6, 1, part, 0)).collect()
}

fn end() -> Vec<u8> {
    record(3, 1, &[0; 8], 0)
}

fn whole(content: impl AsRef<[u8]>) -> Vec<u8> {
    [stdout(content), end()].concat()
}

/// What the fake does with one connection.
#[derive(Clone)]
enum Act {
    /// Reads the request, sends these bytes in writes of this size, closes.
    Answer(Vec<u8>, usize),
    /// As before, and goes on with the next act on the same connection.
    Stay(Vec<u8>),
    /// Sends these bytes before it reads anything of the request.
    Early(Vec<u8>),
    /// Reads the request, sends these bytes, says nothing more, and tells when the other side has closed.
    Hang(Vec<u8>, Arc<Notify>),
    /// Accepts and reads nothing.
    Deaf,
    /// Reads the request and closes without a word.
    Leave,
}

#[derive(Debug, Default, Clone)]
struct Seen {
    connection: usize,
    keep: bool,
    params: Vec<(Vec<u8>, Vec<u8>)>,
    stdin: Vec<u8>,
}

struct Fake {
    _folder: tempfile::TempDir,
    endpoint: Endpoint,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    /// A fake that performs one act after the other, over as many connections as that takes.
    fn start(acts: Vec<Act>) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fpm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(perform(listener, acts, Arc::clone(&seen)));
        Fake { _folder: folder, endpoint: Endpoint::Unix(path), seen }
    }

    fn upstream(&self, change: impl FnOnce(&mut Settings)) -> PhpUpstream {
        upstream(vec![self.endpoint.clone()], change)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn perform(listener: UnixListener, acts: Vec<Act>, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut acts = std::collections::VecDeque::from(acts);
    let mut connection = 0;
    'connections: loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        connection += 1;
        while let Some(act) = acts.front() {
            if let Act::Early(bytes) = act {
                stream.write_all(bytes).await.unwrap();
            }
            if let Act::Deaf = act {
                std::future::pending::<()>().await;
            }
            let Some(mut request) = receive(&mut stream).await else { continue 'connections };
            request.connection = connection;
            seen.lock().unwrap().push(request);
            // An act is spent by a request, not by a connection on which none comes.
            let Some(act) = acts.pop_front() else { return };
            match act {
                Act::Answer(bytes, size) => {
                    for part in bytes.chunks(size) {
                        if stream.write_all(part).await.is_err() {
                            break;
                        }
                    }
                    continue 'connections;
                }
                Act::Stay(bytes) => stream.write_all(&bytes).await.unwrap(),
                Act::Hang(bytes, closed) => {
                    stream.write_all(&bytes).await.unwrap();
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                    closed.notify_one();
                    continue 'connections;
                }
                Act::Early(_) | Act::Deaf | Act::Leave => continue 'connections,
            }
        }
        return;
    }
}

async fn receive(stream: &mut UnixStream) -> Option<Seen> {
    let mut seen = Seen::default();
    let mut params = Vec::new();
    loop {
        let (header, content) = receive_record(stream).await?;
        match header.kind {
            Type::Begin => seen.keep = content[2] & 1 == 1,
            Type::Params => {
                let header = Header { padding: 0, ..header };
                params.extend_from_slice(&header.encode());
                params.extend_from_slice(&content);
            }
            Type::Stdin if content.is_empty() => {
                seen.params = decode(&params).unwrap();
                return Some(seen);
            }
            Type::Stdin => seen.stdin.extend_from_slice(&content),
            other => panic!("{other:?} from a server"),
        }
    }
}

async fn receive_record(stream: &mut UnixStream) -> Option<(Header, Vec<u8>)> {
    let mut bytes = [0; HEADER];
    stream.read_exact(&mut bytes).await.ok()?;
    let header = Header::decode(bytes).unwrap();
    let mut content = vec![0; usize::from(header.content) + usize::from(header.padding)];
    stream.read_exact(&mut content).await.ok()?;
    content.truncate(usize::from(header.content));
    Some((header, content))
}

fn upstream(pools: Vec<Endpoint>, change: impl FnOnce(&mut Settings)) -> PhpUpstream {
    let patience = Duration::from_secs(20);
    let mut settings = Settings {
        pools,
        params: BTreeMap::new(),
        connect: patience,
        read: patience,
        send: patience,
        keep_alive: 0,
        children: 0,
        queue: 0,
        queue_timeout: patience,
        restart_window: Duration::from_millis(300),
        max_spooled: None,
        server_software: "doorward".to_owned(),
    };
    change(&mut settings);
    PhpUpstream::new(settings, &PhpRegister::new())
}

fn script() -> Script {
    Script {
        document_root: "/srv".into(),
        file: "/srv/index.php".into(),
        name: b"/index.php".to_vec(),
        path_info: Vec::new(),
    }
}

async fn ask(upstream: &PhpUpstream, request: UpstreamRequest) -> Result<Response<Body>, Fault> {
    upstream.send(request, Body::Empty, script(), &FastCgiPool::new()).await
}

/// The data, and the fault that ended it, if one did.
async fn read(mut body: Body) -> (Vec<u8>, Option<Kind>) {
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => data.extend_from_slice(frame.data_ref().unwrap()),
            Err(fault) => return (data, Some(fault.kind)),
        }
    }
    (data, None)
}

/// The answer to a GET that FPM answers with `bytes`.
async fn answered(bytes: Vec<u8>, size: usize) -> Result<Response<Body>, Fault> {
    // A GET that is left without a word is asked once more.
    let fake = Fake::start(vec![Act::Answer(bytes, size); 2]);
    ask(&fake.upstream(|_| {}), get()).await
}

const HEAD: &[u8] = b"Content-Type: text/plain\r\n\r\n";
