//! FastCGI by hand: a tap that tells what FPM is sent, a client that asks it directly, a server that misbehaves.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Names and values, in the order in which they were sent.
pub type Params = Vec<(Vec<u8>, Vec<u8>)>;

pub const BEGIN: u8 = 1;
pub const END: u8 = 3;
pub const PARAMS: u8 = 4;
pub const STDIN: u8 = 5;
pub const STDOUT: u8 = 6;
pub const STDERR: u8 = 7;

/// A record with so much padding, all ones.
pub fn record(kind: u8, id: u16, content: &[u8], padding: u8) -> Vec<u8> {
    let mut out = vec![1, kind];
    out.extend(id.to_be_bytes());
    out.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
    out.extend([padding, 0]);
    out.extend(content);
    out.extend(std::iter::repeat_n(0xff, usize::from(padding)));
    out
}

/// What was read of one request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub params: Params,
    pub stdin: Vec<u8>,
}

/// Reads a request to the end of its body. `passed` gets every record as it comes; `told` the variables once they are
/// complete, before FPM can have them all.
pub fn receive(
    stream: &mut UnixStream,
    mut passed: impl FnMut(&[u8]),
    mut told: impl FnMut(&Params),
) -> Option<Request> {
    let (mut request, mut params) = (Request::default(), Vec::new());
    loop {
        let mut bytes = vec![0; 8];
        stream.read_exact(&mut bytes).ok()?;
        let content = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
        let padding = usize::from(bytes[6]);
        bytes.resize(8 + content + padding, 0);
        stream.read_exact(&mut bytes[8..]).ok()?;
        let (kind, data) = (bytes[1], &bytes[8..8 + content]);
        match kind {
            PARAMS if data.is_empty() => {
                request.params = pairs(&params);
                told(&request.params);
            }
            PARAMS => params.extend_from_slice(data),
            STDIN => request.stdin.extend_from_slice(data),
            BEGIN => {}
            other => panic!("a record of type {other} from a server"),
        }
        let over = kind == STDIN && content == 0;
        passed(&bytes);
        if over {
            return Some(request);
        }
    }
}

/// FastCGI 1.0, section 3.4.
fn pairs(mut bytes: &[u8]) -> Params {
    fn length(bytes: &mut &[u8]) -> usize {
        if bytes[0] < 128 {
            let length = usize::from(bytes[0]);
            *bytes = &bytes[1..];
            return length;
        }
        let length = u32::from_be_bytes([bytes[0] & 0x7f, bytes[1], bytes[2], bytes[3]]);
        *bytes = &bytes[4..];
        length as usize
    }
    let mut params = Params::new();
    while !bytes.is_empty() {
        let (name, value) = (length(&mut bytes), length(&mut bytes));
        params.push((bytes[..name].to_vec(), bytes[name..name + value].to_vec()));
        bytes = &bytes[name + value..];
    }
    params
}

/// A listener whose connections are each handled on a thread of its own, until it is dropped.
struct Listener {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Listener {
    fn start(path: PathBuf, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Listener {
        let listener = UnixListener::bind(&path).unwrap();
        let (stop, serve) = (Arc::new(AtomicBool::new(false)), Arc::new(serve));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream.unwrap()));
            }
        });
        Listener { path, stop }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.path.display())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.path);
    }
}

/// Stands between Doorward and FPM and remembers what FPM is told, byte for byte.
pub struct Tap {
    listener: Listener,
    seen: Arc<Mutex<Vec<Params>>>,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    /// A socket at `path`; what comes there goes on to `fpm`.
    pub fn start(path: PathBuf, fpm: PathBuf) -> Tap {
        let (seen, bodies) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (told, came) = (Arc::clone(&seen), Arc::clone(&bodies));
        let listener = Listener::start(path, move |mut client| {
            let mut server = UnixStream::connect(&fpm).unwrap();
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let back = thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let passed = |bytes: &[u8]| drop(server.write_all(bytes));
            let request = receive(&mut client, passed, |params| told.lock().unwrap().push(params.clone()));
            came.lock().unwrap().extend(request.map(|request| request.stdin));
            back.join().unwrap();
        });
        Tap { listener, seen, bodies }
    }

    /// What the `php` key says.
    pub fn address(&self) -> String {
        self.listener.address()
    }

    /// The variables of every request since the last call.
    pub fn take(&self) -> Vec<Params> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// The same, and they stay.
    pub fn peek(&self) -> Vec<Params> {
        self.seen.lock().unwrap().clone()
    }

    /// The bodies of all requests so far that came to their end.
    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.bodies.lock().unwrap().clone()
    }
}

/// Asks the FPM at `socket` to run `script`, as a server would that believes every path; gives what it printed.
pub fn ask(socket: &Path, script: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut params = Vec::new();
    for (name, value) in [(&b"SCRIPT_FILENAME"[..], script.as_os_str().as_bytes()), (b"REQUEST_METHOD", b"GET")] {
        params.push(u8::try_from(name.len()).unwrap());
        params.extend(u32::try_from(value.len() | 1 << 31).unwrap().to_be_bytes());
        params.extend([name, value].concat());
    }
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = [
        record(BEGIN, 1, &[0, 1, 0, 0, 0, 0, 0, 0], 0),
        record(PARAMS, 1, &params, 0),
        record(PARAMS, 1, &[], 0),
        record(STDIN, 1, &[], 0),
    ];
    stream.write_all(&request.concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let (mut printed, mut rest) = (Vec::new(), &answer[..]);
    while rest.len() >= 8 {
        let content = usize::from(u16::from_be_bytes([rest[4], rest[5]]));
        let (kind, padding) = (rest[1], usize::from(rest[6]));
        if kind == STDOUT {
            printed.extend_from_slice(&rest[8..8 + content]);
        }
        rest = &rest[8 + content + padding..];
    }
    String::from_utf8_lossy(&printed).into_owned()
}

/// What a server does with one request.
#[derive(Clone)]
pub enum Act {
    /// Says this and closes.
    Say(Vec<u8>),
    /// Says this byte by byte and closes.
    Bytes(Vec<u8>),
    /// Says these, one after the other, so slowly that each wait is just not too long, and closes.
    Slowly(Vec<Vec<u8>>),
    /// Says this and then nothing more.
    Stay(Vec<u8>),
    /// Says the first, and then the second without end.
    Endless(Vec<u8>, Vec<u8>),
    /// Takes the connection and reads nothing.
    Deaf,
}

/// A FastCGI server that does what is asked of it.
pub struct Fake(Listener);

impl Fake {
    /// One whose act is chosen by REQUEST_URI. The slow one waits `pause`.
    pub fn start(path: PathBuf, pause: std::time::Duration, act: impl Fn(&str) -> Act + Send + Sync + 'static) -> Fake {
        Fake(Listener::start(path, move |mut stream| {
            let Some(request) = receive(&mut stream, |_| {}, |_| {}) else { return };
            let uri = request.params.iter().find(|(name, _)| name == b"REQUEST_URI").unwrap();
            perform(act(std::str::from_utf8(&uri.1).unwrap()), &mut stream, pause);
        }))
    }

    /// One that takes connections and reads nothing of them.
    pub fn deaf(path: PathBuf) -> Fake {
        Fake(Listener::start(path, |mut stream| perform(Act::Deaf, &mut stream, std::time::Duration::ZERO)))
    }

    /// What the `php` key says.
    pub fn address(&self) -> String {
        self.0.address()
    }
}

fn perform(act: Act, stream: &mut UnixStream, pause: std::time::Duration) {
    // The other side may have had enough: its end is what the test looks at.
    match act {
        Act::Say(bytes) => drop(stream.write_all(&bytes)),
        Act::Bytes(bytes) => {
            let _ = bytes.iter().try_for_each(|byte| stream.write_all(&[*byte]));
        }
        Act::Slowly(parts) => {
            let _ = parts.iter().try_for_each(|part| {
                thread::sleep(pause);
                stream.write_all(part)
            });
        }
        Act::Stay(bytes) => {
            let _ = stream.write_all(&bytes);
            let _ = stream.read_to_end(&mut Vec::new());
        }
        Act::Endless(first, then) => {
            let mut more = stream.write_all(&first).is_ok();
            while more {
                more = stream.write_all(&then).is_ok();
            }
        }
        Act::Deaf => {
            // Its end is seen without reading.
            let mut poll = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::RDHUP)];
            let _ = rustix::event::poll(&mut poll, None);
        }
    }
}
