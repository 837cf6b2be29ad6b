//! Whether those who stand behind the sites can be reached, and are well.

use std::collections::HashSet;
use std::io;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::task::{JoinSet, LocalSet};

use super::Finding;
use super::files::why_not;
use crate::base::address::Endpoint;
use crate::base::fault::Causes;
use crate::config::{Action, Application, Config, HttpUpstream, Php, Site};
use crate::edge::snapshot::upstream_settings;
use crate::upstream::http::{self, BackEndRegister, ProbeError, Watch};

/// How long a TCP back end may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn check(config: &Config, findings: &mut Vec<Finding>) {
    // Each endpoint is asked once, whoever names it.
    let mut asked: Vec<&Endpoint> = Vec::new();
    for site in &config.sites {
        for (endpoint, php) in endpoints(site) {
            if !asked.contains(&endpoint) {
                asked.push(endpoint);
                findings.extend(reach(endpoint, php, &site.name));
            }
        }
    }
    findings.extend(probe(config));
}

/// Asks every `health.path` once, all together. Who cannot be connected to is told above.
fn probe(config: &Config) -> Vec<Finding> {
    let register = BackEndRegister::new();
    let mut known = HashSet::new();
    let mut asked: Vec<(&str, Arc<Watch>)> = Vec::new();
    for site in &config.sites {
        for upstream in upstreams(site).filter(|upstream| upstream.health.probe.is_some()) {
            // What is wrong with its TLS was told before.
            let Ok(built) = http::HttpUpstream::new(upstream_settings(config, site, upstream), &register) else {
                continue;
            };
            let new = built.watches().iter().filter(|watch| known.insert(Arc::clone(watch.key())));
            asked.extend(new.map(|watch| (site.name.as_str(), Arc::clone(watch))));
        }
    }
    if asked.is_empty() {
        return Vec::new();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Finding::warning(None, format!("back ends cannot be asked: {error}"), "")],
    };
    let told = LocalSet::new().block_on(&runtime, async {
        let mut asking = JoinSet::new();
        for (place, (site, watch)) in asked.into_iter().enumerate() {
            let site = site.to_owned();
            asking.spawn_local(async move {
                let outcome = watch.ask().await;
                (place, outcome.err().and_then(|error| unwell(&site, &watch, &error)))
            });
        }
        asking.join_all().await
    });
    // A name that is being looked up is not waited for.
    runtime.shutdown_background();
    let mut told: Vec<_> = told.into_iter().filter_map(|(place, finding)| Some((place, finding?))).collect();
    told.sort_by_key(|(place, _)| *place);
    told.into_iter().map(|(_, finding)| finding).collect()
}

fn unwell(site: &str, watch: &Watch, error: &ProbeError) -> Option<Finding> {
    if matches!(error, ProbeError::Connect(_)) {
        return None;
    }
    let what = if watch.probe().websocket { "a WebSocket handshake at" } else { "GET" };
    let message = format!(
        "the back end {} is not well: {what} {}: {error}{}",
        watch.back_end().name(),
        watch.probe().path,
        Causes(error)
    );
    let help = "mend it, or `health` in the file: it gets no requests while it answers so";
    Some(Finding::warning(Some(site), message, help))
}

/// Everything at a site that has HTTP back ends.
fn upstreams(site: &Site) -> impl Iterator<Item = &HttpUpstream> {
    let own = match &site.application {
        Some(Application::Http(upstream)) => Some(upstream),
        _ => None,
    };
    let routes = site.routes.iter().filter_map(|route| match &route.action {
        Action::Http(upstream) => Some(upstream),
        _ => None,
    });
    own.into_iter().chain(site.websockets.iter().map(|websocket| &websocket.upstream)).chain(routes)
}

/// All endpoints of a site; true for PHP-FPM.
fn endpoints(site: &Site) -> Vec<(&Endpoint, bool)> {
    fn http(upstream: &HttpUpstream) -> impl Iterator<Item = (&Endpoint, bool)> {
        upstream.to.iter().map(|back_end| (&back_end.to.endpoint, false))
    }
    fn pools(php: &Php) -> impl Iterator<Item = (&Endpoint, bool)> {
        php.to.iter().map(|endpoint| (endpoint, true))
    }
    let mut all = Vec::new();
    match &site.application {
        Some(Application::Php(php)) => all.extend(pools(php)),
        Some(Application::Http(upstream)) => all.extend(http(upstream)),
        None => {}
    }
    all.extend(site.websockets.iter().flat_map(|websocket| http(&websocket.upstream)));
    for route in &site.routes {
        match &route.action {
            Action::Php(php) => all.extend(pools(php)),
            Action::Http(upstream) => all.extend(http(upstream)),
            _ => {}
        }
    }
    all
}

fn reach(endpoint: &Endpoint, php: bool, site: &str) -> Option<Finding> {
    let site = Some(site);
    match endpoint {
        Endpoint::Unix(path) => {
            let why = connect_unix(path).err()?;
            let what = if php { "the socket of PHP-FPM" } else { "the back end" };
            let message = format!("{what} {} {}", path.display(), why_not(path, &why));
            let help = match (why.kind(), php) {
                (io::ErrorKind::NotFound, true) => "start PHP-FPM, and write the path that `listen` of its pool has",
                (io::ErrorKind::PermissionDenied, true) => {
                    "set listen.owner or listen.group of the pool to an account of the server, or add the server to that group"
                }
                (io::ErrorKind::PermissionDenied, false) => "let the account of the server write to the socket",
                (_, true) => "start PHP-FPM: the socket may be left from an earlier run",
                (_, false) => "start the application, or mend the path",
            };
            let refused = why.kind() == io::ErrorKind::ConnectionRefused && !php;
            Some(if refused { Finding::warning(site, message, help) } else { Finding::error(site, message, help) })
        }
        Endpoint::Tcp(host, port) => {
            let why = connect_tcp(host, *port).err()?;
            let what = if php { "PHP-FPM" } else { "the back end" };
            let message = format!("{what} at {endpoint} cannot be reached: {why}");
            Some(Finding::warning(
                site,
                message,
                "start it, or mend the address; requests for it are answered 502 until then",
            ))
        }
    }
}

fn connect_unix(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        // The queue is full: somebody listens, and is busy.
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => Ok(()),
        done => done,
    }
}

fn connect_tcp(host: &str, port: u16) -> Result<(), String> {
    let addresses = (host, port).to_socket_addrs().map_err(|why| format!("the name has no address ({why})"))?;
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match std::net::TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(why) => {
                last = match why.kind() {
                    io::ErrorKind::ConnectionRefused => "connection refused: nobody listens there".to_owned(),
                    io::ErrorKind::TimedOut => format!("no answer within {} s", PATIENCE.as_secs()),
                    _ => why.to_string(),
                }
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn a_socket_that_is_missing_or_left_behind_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fpm.sock");
        let told = |path: &Path| reach(&Endpoint::Unix(path.to_owned()), true, "app");
        assert!(told(&path).unwrap().message.ends_with("does not exist"));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(told(&path), None);
        drop(listener);
        let left = told(&path).unwrap();
        assert!(left.message.contains("nobody listens"), "{left}");
        assert_eq!(left.severity, Severity::Error);
    }

    #[test]
    fn a_tcp_back_end_that_refuses_is_a_warning() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = Endpoint::Tcp("127.0.0.1".into(), port);
        assert_eq!(reach(&endpoint, false, "app"), None);
        drop(listener);
        let finding = reach(&endpoint, false, "app").unwrap();
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.message.contains("refused"), "{finding}");
    }

    #[test]
    fn a_back_end_that_answers_badly_where_its_health_is_asked_is_a_warning() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answering = std::thread::spawn(move || {
            for status in ["503 Service Unavailable", "204 No Content"] {
                // The first connection only looks whether somebody is there.
                drop(listener.accept().unwrap());
                let (mut stream, _) = listener.accept().unwrap();
                let mut seen = [0; 4096];
                let count = stream.read(&mut seen).unwrap();
                assert!(seen[..count].starts_with(b"GET /up HTTP/1.1\r\n"));
                stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
            }
        });
        let text = format!(
            "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = []\n[site.a]\nhosts = [\"a.test\"]\nhttp = \"serve\"\n\
             tls = \"off\"\nupstream = \"http://127.0.0.1:{port}\"\nupstream_health = \"/up\"\n"
        );
        let config = crate::config::parse(Path::new("/"), &[("a.toml", &text)], &|_| None).unwrap();
        let mut findings = Vec::new();
        check(&config, &mut findings);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].severity, Severity::Warning);
        let name = format!("http://127.0.0.1:{port}");
        assert_eq!(findings[0].message, format!("the back end {name} is not well: GET /up: answered 503"));
        findings.clear();
        check(&config, &mut findings);
        assert_eq!(findings, []);
        answering.join().unwrap();
    }
}
