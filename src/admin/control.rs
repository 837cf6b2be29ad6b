//! The control socket: a unix socket that `doorward reload`, `doorward cert` and `doorward sockets` speak to. Its folder
//! is 0700 and its file 0600; and whoever gets there all the same is asked by the kernel who they are.
//!
//! One line in (`reload`, `upstreams`, `cert list`, `cert renew NAME`, `cert test NAME`, `sockets list …`,
//! `sockets close …`), one line of outcome out (`ok` or `failed`), then text for the person who asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::acme::renewals::Renewals;
use crate::admin::sockets::serve as live;
use crate::admin::upstreams;
use crate::edge::process::Process;

/// How long a client of the socket may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a reload may take before the one who asked is told that it is still going on.
const RELOAD: Duration = Duration::from_secs(60);

/// How long an order for a certificate may take: authorities think, and orders wait for one another.
const ORDER: Duration = Duration::from_secs(20 * 60);

/// The longest line that is read: room for some thousand ids.
pub(super) const LONGEST_REQUEST: usize = 64 * 1024;

/// Clients that are served at once; more wait.
const AT_ONCE: usize = 16;

/// What came of a request: a text for the person who asked.
pub type Outcome = Result<String, String>;

/// One reload that somebody waits for.
pub struct ReloadRequest {
    /// Where the outcome goes.
    pub reply: oneshot::Sender<Outcome>,
}

/// Why the control socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Something failed at this path.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder is not ours alone.
    #[error("{} belongs to another user or is open to others", .0.display())]
    Folder(PathBuf),
    /// Nobody listens.
    #[error("no doorward runs with this file (nothing listens on {})", .0.display())]
    NotRunning(PathBuf),
    /// The socket is another account's.
    #[error("{}: {source}; ask as the account that doorward runs under, or as root", path.display())]
    Forbidden {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer is not one.
    #[error("the running doorward did not answer: {0}")]
    NoAnswer(io::Error),
}

/// Where the socket of the process that runs `config` is: in RUNTIME_DIRECTORY (systemd), /run/doorward (root),
/// XDG_RUNTIME_DIR/doorward, or a folder of this user's under the temporary directory.
pub fn socket_path(config: &Path, env: &dyn Fn(&str) -> Option<String>, uid: u32) -> PathBuf {
    let folder = match (env("RUNTIME_DIRECTORY"), uid, env("XDG_RUNTIME_DIR")) {
        (Some(folder), _, _) => PathBuf::from(folder.split(':').next().unwrap_or_default()),
        (None, 0, _) => PathBuf::from("/run/doorward"),
        (None, _, Some(folder)) => Path::new(&folder).join("doorward"),
        (None, uid, None) => std::env::temp_dir().join(format!("doorward-{uid}")),
    };
    let config = std::fs::canonicalize(config).unwrap_or_else(|_| config.to_owned());
    // FNV-1a: a name that is the same in every build, so that a new binary finds an old process.
    let hash =
        config.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    folder.join(format!("{hash:016x}.sock"))
}

/// Where a process that a newer one has taken over from goes on answering, for the tunnels that it still has.
pub fn leftover_path(path: &Path, pid: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{pid}"));
    name.into()
}

/// The files of such processes beside `path`, the oldest number first. Some may be of processes that have died.
pub(super) fn leftovers(path: &Path) -> Vec<(u32, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.strip_prefix(name)?.strip_prefix('.')?.parse().ok()?;
            Some((pid, leftover_path(path, pid)))
        })
        .collect();
    all.sort_unstable();
    all
}

/// A bound control socket; its file is removed when dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    uid: u32,
}

impl ControlSocket {
    /// Binds the socket, in a folder that is this user's alone. Files that dead processes left are removed.
    pub fn bind(path: PathBuf, uid: u32) -> Result<ControlSocket, ControlError> {
        let failed = |source| ControlError::Io { path: path.clone(), source };
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
            let meta = std::fs::symlink_metadata(folder).map_err(failed)?;
            if !meta.is_dir() || meta.uid() != uid || meta.permissions().mode() & 0o022 != 0 {
                return Err(ControlError::Folder(folder.to_owned()));
            }
        }
        // One that lives may be between binding its file and listening there.
        let is_alive = |pid: u32| Path::new("/proc").join(pid.to_string()).exists();
        let left = leftovers(&path).into_iter().filter(|(pid, _)| !is_alive(*pid)).map(|(_, leftover)| leftover);
        for old in left.filter(|old| is_deserted(old)) {
            let _ = std::fs::remove_file(old);
        }
        // Also one that another account has left: nobody who may use this folder answers there.
        if StdUnixStream::connect(&path).is_err() {
            let _ = std::fs::remove_file(&path);
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(ControlSocket { listener, path, uid })
    }

    /// Serves clients, until it is dropped; within a `LocalSet`. Reloads go to the single writer, one after the other.
    pub async fn serve(&self, reloads: mpsc::Sender<ReloadRequest>, renewals: Arc<Renewals>, process: Arc<Process>) {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if clients.len() < AT_ONCE => match accepted {
                    Ok((stream, _)) => {
                        if stream.peer_cred().is_ok_and(|peer| is_trusted(peer.uid(), self.uid)) {
                            let answer = answer(stream, reloads.clone(), renewals.clone(), process.clone());
                            clients.spawn_local(answer);
                        } else {
                            tracing::warn!("control socket: another account was turned away");
                        }
                    }
                    Err(error) => {
                        tracing::warn!("control socket: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                Some(ended) = clients.join_next(), if !clients.is_empty() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!("control socket: {error}"),
                    Err(error) => tracing::error!("control socket: {error}"),
                },
            }
        }
    }
}

/// Whether whoever listened there has died.
fn is_deserted(path: &Path) -> bool {
    StdUnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The second fence, behind the modes of folder and file: this account, and root, who may do everything anyway.
fn is_trusted(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

async fn answer(
    mut stream: UnixStream,
    reloads: mpsc::Sender<ReloadRequest>,
    renewals: Arc<Renewals>,
    process: Arc<Process>,
) -> io::Result<()> {
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new((&mut stream).take(LONGEST_REQUEST as u64));
    tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    if let Some(order) = line.strip_prefix("sockets list ") {
        return live::list(&mut stream, &process, order).await;
    }
    if let Some(order) = line.strip_prefix("sockets close ") {
        return live::close(&mut stream, &process.tunnels, order).await;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let outcome = match words.as_slice() {
        ["reload"] => reload_by(&reloads).await,
        ["upstreams"] => Ok(upstreams::list(&process.back_ends)),
        ["cert", "list"] => Ok(renewals.list()),
        ["cert", "renew", name] => within(ORDER, renewals.renew(name)).await,
        ["cert", "test", name] => within(ORDER, renewals.test(name)).await,
        _ => Err(format!("unknown request {:?}: the running doorward is of another version", line.trim_end())),
    };
    let text = match &outcome {
        Ok(text) => format!("ok\n{text}\n"),
        Err(text) => format!("failed\n{text}\n"),
    };
    tokio::time::timeout(PATIENCE, stream.write_all(text.as_bytes())).await?
}

async fn reload_by(reloads: &mpsc::Sender<ReloadRequest>) -> Outcome {
    let (reply, outcome) = oneshot::channel();
    if reloads.send(ReloadRequest { reply }).await.is_err() {
        return Err("doorward is stopping".to_owned());
    }
    within(RELOAD, async { outcome.await.unwrap_or_else(|_| Err("doorward is stopping".to_owned())) }).await
}

async fn within(limit: Duration, outcome: impl Future<Output = Outcome>) -> Outcome {
    let late = |_| Err(format!("it is not done after {} s; see the log", limit.as_secs()));
    tokio::time::timeout(limit, outcome).await.unwrap_or_else(late)
}

/// What is asked of the process that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Read the file again.
    Reload,
    /// Show the back ends.
    Upstreams,
    /// Show the certificates.
    List,
    /// Renew the certificate of this host or site.
    Renew(&'a str),
    /// Rehearse an order for this host or site.
    Test(&'a str),
}

impl Request<'_> {
    fn line(self) -> String {
        match self {
            Request::Reload => "reload\n".to_owned(),
            Request::Upstreams => "upstreams\n".to_owned(),
            Request::List => "cert list\n".to_owned(),
            Request::Renew(name) => format!("cert renew {name}\n"),
            Request::Test(name) => format!("cert test {name}\n"),
        }
    }

    fn patience(self) -> Duration {
        match self {
            Request::Reload | Request::Upstreams | Request::List => RELOAD + PATIENCE,
            Request::Renew(_) | Request::Test(_) => ORDER + PATIENCE,
        }
    }
}

/// Asks the process behind `path` and waits for the outcome.
pub fn ask(path: &Path, request: Request<'_>) -> Result<Outcome, ControlError> {
    match converse(path, &request.line(), request.patience())? {
        Ok(mut reader) => Ok(Ok(rest(&mut reader).map_err(ControlError::NoAnswer)?)),
        Err(text) => Ok(Err(text)),
    }
}

/// Says `line` to the process behind `path`: what follows its `ok`, or its reason for `failed`. Each piece of the answer
/// is waited for as long as `patience`.
pub(super) fn converse(
    path: &Path,
    line: &str,
    patience: Duration,
) -> Result<Result<BufReader<StdUnixStream>, String>, ControlError> {
    let stream = connect(path)?;
    let begin = || {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        (&stream).write_all(line.as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut verdict = String::new();
        reader.read_line(&mut verdict)?;
        match verdict.trim_end() {
            "ok" => Ok(Ok(reader)),
            "failed" => Ok(Err(rest(&mut reader)?)),
            _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended the conversation")),
        }
    };
    begin().map_err(ControlError::NoAnswer)
}

fn connect(path: &Path) -> Result<StdUnixStream, ControlError> {
    StdUnixStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning(path.to_owned()),
        io::ErrorKind::PermissionDenied => ControlError::Forbidden { path: path.to_owned(), source },
        _ => ControlError::Io { path: path.to_owned(), source },
    })
}

fn rest(reader: &mut BufReader<StdUnixStream>) -> io::Result<String> {
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    use crate::admin::testing::process;
    use crate::keys::{Keys, LocalKeys};
    use crate::tls::store::CertStore;

    #[test]
    fn the_socket_is_the_files_own_and_where_the_user_may_write() {
        let none = |_: &str| None;
        let a = socket_path(Path::new("/etc/doorward/a.toml"), &none, 0);
        let b = socket_path(Path::new("/etc/doorward/b.toml"), &none, 0);
        assert_ne!(a, b);
        assert!(a.starts_with("/run/doorward"));
        let systemd = |name: &str| (name == "RUNTIME_DIRECTORY").then(|| "/run/x:/run/y".to_owned());
        assert!(socket_path(Path::new("a"), &systemd, 1000).starts_with("/run/x"));
    }

    #[test]
    fn old_processes_are_found_beside_the_one_in_charge() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        assert!(leftovers(&path).is_empty());
        for name in ["x.sock", "x.sock.12", "x.sock.3", "x.sock.tmp", "x.sock.", "y.sock.4", "x.sock.5.6"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = leftovers(&path);
        assert_eq!(found, [3, 12].map(|pid| (pid, leftover_path(&path, pid))));
        assert!(found[1].1.ends_with("x.sock.12"));
    }

    #[test]
    fn what_dead_processes_left_is_removed_and_what_lives_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run").join("x.sock");
        std::fs::DirBuilder::new().mode(0o700).create(folder.path().join("run")).unwrap();
        let bind = |path: &Path| std::os::unix::net::UnixListener::bind(path).unwrap();
        // No process has this number (proc_sys_kernel(5), pid_max).
        for dead in [path.clone(), leftover_path(&path, 5_000_000)] {
            drop(bind(&dead));
        }
        let _alive = bind(&leftover_path(&path, 12));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let _socket = runtime.block_on(async { ControlSocket::bind(path.clone(), uid) }).unwrap();
        assert_eq!(leftovers(&path), [(12, leftover_path(&path, 12))]);
    }

    #[test]
    fn other_accounts_are_turned_away() {
        assert!(is_trusted(1000, 1000) && is_trusted(0, 1000) && is_trusted(0, 0));
        assert!(!is_trusted(1000, 0) && !is_trusted(1001, 1000));
    }

    #[test]
    fn a_reload_is_answered_with_its_outcome() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run").join("x.sock");
        let uid = rustix::process::getuid().as_raw();
        assert!(matches!(ask(&path, Request::Reload), Err(ControlError::NotRunning(_))));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let socket = runtime.block_on(async { ControlSocket::bind(path.clone(), uid) }).unwrap();
        let renewals = {
            let keys: Arc<dyn Keys> = Arc::new(LocalKeys::new());
            let certificates = Arc::new(CertStore::new(Arc::clone(&keys)));
            Arc::new(Renewals::new(keys, Arc::default(), certificates))
        };
        let (sender, mut receiver) = mpsc::channel::<ReloadRequest>(1);
        let asker = std::thread::spawn({
            let path = path.clone();
            move || {
                let reloads = (ask(&path, Request::Reload).unwrap(), ask(&path, Request::Reload).unwrap());
                let unknown = ask(&path, Request::Renew("a.example")).unwrap().unwrap_err();
                assert_eq!(unknown, "no site has an automatic certificate");
                reloads
            }
        });
        LocalSet::new().block_on(&runtime, async {
            tokio::select! {
                () = socket.serve(sender, renewals, process()) => {}
                () = async {
                    receiver.recv().await.unwrap().reply.send(Ok("2 sites".into())).unwrap();
                    receiver.recv().await.unwrap().reply.send(Err("proxy.toml:3:1: no".into())).unwrap();
                    while !asker.is_finished() { tokio::task::yield_now().await; }
                } => {}
            }
        });
        assert_eq!(asker.join().unwrap(), (Ok("2 sites".into()), Err("proxy.toml:3:1: no".into())));
        drop(socket);
        assert!(!path.exists());
    }
}
