//! Against the real thing: PHP-FPM 8.2 as Debian ships it (`apt-get install php8.2-fpm`).

#![allow(clippy::expect_used, reason = "a test ends where one of its steps fails")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use doorward::base::address::Endpoint;
use doorward::base::fault::{Fault, Kind};
use doorward::base::network::Networks;
use doorward::http::body::Body;
use doorward::http::request::{Arrival, ClientRequest, HeadLimits, Scheme, Trust, UpstreamRequest};
use doorward::upstream::php::{FastCgiPool, PhpRegister, PhpUpstream, Script, Settings};
use futures_util::stream;
use http::{HeaderName, Request, Response, request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::LocalSet;

const DEADLINE: Duration = Duration::from_secs(30);

/// PHP-FPM with a pool on a unix socket (one worker) and one on TCP (two workers). Ends when dropped.
struct Fpm {
    folder: tempfile::TempDir,
    unix: Endpoint,
    tcp: Endpoint,
    process: Child,
}

impl Fpm {
    fn start() -> Fpm {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fpm.sock");
        // FPM cannot say which port it got, so a free one is found first.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let root = rustix::process::getuid().is_root();
        let user = if root { "user = root\ngroup = root\n" } else { "" };
        let pool = |name: &str, listen: &str, children: u32| {
            format!(
                "[{name}]\nlisten = {listen}\n{user}pm = static\npm.max_children = {children}\n\
                 php_admin_flag[display_errors] = off\nphp_admin_flag[log_errors] = on\n\
                 php_admin_value[post_max_size] = 64M\nphp_admin_value[html_errors] = off\n"
            )
        };
        let text = format!(
            "[global]\nerror_log = {}\ndaemonize = no\n{}{}",
            folder.path().join("fpm.log").display(),
            pool("unix", &path.display().to_string(), 1),
            pool("tcp", &format!("127.0.0.1:{port}"), 2),
        );
        let file = folder.path().join("fpm.conf");
        std::fs::write(&file, text).expect("the configuration is written");
        let mut command = Command::new("/usr/sbin/php-fpm8.2");
        command.args(["-n", "-F", "-O", "-y"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        if root {
            command.arg("-R");
        }
        let process = command.spawn().expect("php-fpm8.2 is installed");
        let (unix, tcp) = (Endpoint::Unix(path.clone()), Endpoint::Tcp("127.0.0.1".to_owned(), port));
        let mut fpm = Fpm { folder, unix, tcp, process };
        fpm.wait_until_ready(&path, port);
        fpm
    }

    fn wait_until_ready(&mut self, path: &Path, port: u16) {
        let deadline = Instant::now() + DEADLINE;
        while std::os::unix::net::UnixStream::connect(path).is_err()
            || std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
        {
            let ended = self.process.try_wait().expect("the process can be asked");
            let log = || std::fs::read_to_string(self.folder.path().join("fpm.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "php-fpm8.2 does not start: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn script(&self, code: &str) -> Script {
        let file = self.folder.path().join("index.php");
        std::fs::write(&file, format!("<?php {code}")).expect("the script is written");
        Script {
            document_root: self.folder.path().to_owned(),
            file,
            name: b"/index.php".to_vec(),
            path_info: Vec::new(),
        }
    }

    async fn ask(&self, code: &str, request: UpstreamRequest, body: Body) -> Result<Response<Body>, Fault> {
        upstream(settings(&self.unix)).send(request, body, self.script(code), &FastCgiPool::new()).await
    }
}

impl Drop for Fpm {
    fn drop(&mut self) {
        // SIGTERM, so that the master ends its workers as well.
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

fn settings(endpoint: &Endpoint) -> Settings {
    Settings {
        pools: vec![endpoint.clone()],
        params: BTreeMap::from([("APP_ENV".to_owned(), "test".to_owned())]),
        connect: DEADLINE,
        read: DEADLINE,
        send: DEADLINE,
        keep_alive: 0,
        children: 0,
        queue: 0,
        queue_timeout: DEADLINE,
        restart_window: Duration::from_secs(1),
        max_spooled: None,
        server_software: "doorward".to_owned(),
    }
}

fn upstream(settings: Settings) -> PhpUpstream {
    PhpUpstream::new(settings, &PhpRegister::new())
}

fn request(builder: request::Builder) -> UpstreamRequest {
    let arrival = Arrival {
        peer: "192.0.2.7:5000".parse().expect("an address"),
        local: "192.0.2.1:443".parse().expect("an address"),
        scheme: Scheme::Https,
        unnamed: false,
    };
    let trust = Trust {
        proxies: Networks(vec![]),
        header: HeaderName::from_static("x-forwarded-for"),
        cloudflare: Networks(vec![]),
    };
    let limits = HeadLimits { max_uri: 8192, max_headers: 100, max_header_size: 1 << 20 };
    let head = builder.header("host", "app.test:8443").body(()).expect("a request").into_parts().0;
    ClientRequest::read(head, None, arrival, &trust, limits).expect("a good request").forward(None, false)
}

/// A body in frames of 10,000 bytes, so that it is not in memory from the start.
fn frames(data: Vec<u8>) -> Body {
    let frames: Vec<_> = data.chunks(10_000).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
    Body::stream(StreamBody::new(stream::iter(frames)))
}

async fn text(response: Response<Body>) -> String {
    let data = response.into_body().collect().await.expect("the body is whole").to_bytes();
    String::from_utf8(data.to_vec()).expect("text")
}

#[tokio::test]
async fn php_sees_the_request_as_the_client_made_it() {
    let fpm = Fpm::start();
    let code = "header('Content-Type: application/json'); echo json_encode($_SERVER + ['get' => $_GET]);";
    let mut script = fpm.script(code);
    script.path_info = b"/a b/c".to_vec();
    let large = "v".repeat(60_000);
    let builder = Request::get("/index.php/a%20b/c?q=%C3%BC&x[]=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("authorization", "Basic dXNlcjpwYXNz")
        .header("proxy", "http://evil.test")
        .header("x-large", &large)
        .header("x-larger", &large);
    for endpoint in [&fpm.unix, &fpm.tcp] {
        let pool = FastCgiPool::new();
        let php = upstream(settings(endpoint));
        let sent = php.send(request(clone(&builder)), Body::Empty, script.clone(), &pool);
        let response = sent.await.expect("an answer");
        assert_eq!(response.headers()["content-type"], "application/json");
        let seen: serde_json::Value = serde_json::from_str(&text(response).await).expect("JSON");
        let root = fpm.folder.path().display().to_string();
        for (name, value) in [
            ("SCRIPT_FILENAME", format!("{root}/index.php").as_str()),
            ("SCRIPT_NAME", "/index.php"),
            ("PHP_SELF", "/index.php/a b/c"),
            ("PATH_INFO", "/a b/c"),
            ("REQUEST_URI", "/index.php/a%20b/c?q=%C3%BC&x[]=1"),
            ("HTTPS", "on"),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("SERVER_NAME", "app.test"),
            ("SERVER_PORT", "8443"),
            ("HTTP_HOST", "app.test:8443"),
            ("HTTP_COOKIE", "a=1; b=2"),
            ("HTTP_X_FORWARDED_PROTO", "https"),
            ("PHP_AUTH_USER", "user"),
            ("APP_ENV", "test"),
            ("HTTP_X_LARGE", &large),
            ("HTTP_X_LARGER", &large),
        ] {
            assert_eq!(seen[name], value, "{name}");
        }
        assert_eq!(seen["get"]["q"], "ü");
        assert!(seen.get("HTTP_PROXY").is_none());
    }
}

fn clone(builder: &request::Builder) -> request::Builder {
    let mut copy = Request::get(builder.uri_ref().expect("a target").clone());
    for (name, value) in builder.headers_ref().expect("fields") {
        copy = copy.header(name, value);
    }
    copy
}

#[tokio::test]
async fn a_body_of_a_mebibyte_arrives_whole() {
    let fpm = Fpm::start();
    let data: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 253) as u8).collect();
    let code = "$b = file_get_contents('php://input'); echo strlen($b), ' ', $_SERVER['CONTENT_LENGTH'], ' ', \
                ord($b[1000000]), ' ', array_sum(unpack('C*', substr($b, -1000)));";
    let tail: u64 = data.iter().rev().take(1000).map(|b| u64::from(*b)).sum();
    let expected = format!("1048576 1048576 {} {tail}", data[1_000_000]);
    for body in [frames(data.clone()), Body::full(data)] {
        let post = request(Request::post("/").header("content-type", "application/octet-stream"));
        let response = fpm.ask(code, post, body).await.expect("an answer");
        assert_eq!(text(response).await, expected);
    }
    let form = request(Request::post("/").header("content-type", "application/x-www-form-urlencoded"));
    let response = fpm.ask("echo $_POST['a'];", form, Body::full("a=1%202")).await.expect("an answer");
    assert_eq!(text(response).await, "1 2");
}

#[tokio::test]
async fn an_answer_of_five_mebibytes_is_streamed() {
    let fpm = Fpm::start();
    let code = "for ($i = 0; $i < 5 * 16; $i++) { echo str_repeat(chr(65 + $i % 26), 65536); flush(); }";
    let response = fpm.ask(code, request(Request::get("/")), Body::Empty).await.expect("an answer");
    assert_eq!(response.body().length(), None, "an answer that is not there yet has no length");
    let (mut body, mut data, mut frames) = (response.into_body(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.expect("no fault").into_data().expect("data");
        assert!(frame.len() <= 128 * 1024);
        data.extend_from_slice(&frame);
        frames += 1;
    }
    let expected: Vec<u8> = (0..80u8).flat_map(|n| vec![65 + n % 26; 65_536]).collect();
    assert!(data == expected, "{} bytes", data.len());
    assert!(frames > 40);
}

#[tokio::test]
async fn fields_and_statuses_of_php_pass() {
    LocalSet::new().run_until(fields_and_statuses()).await;
}

async fn fields_and_statuses() {
    let fpm = Fpm::start();
    let code = "setcookie('a', '1'); setcookie('b', str_repeat('x', 65536)); http_response_code(418); echo 'tea';";
    let response = fpm.ask(code, request(Request::get("/")), Body::Empty).await.expect("an answer");
    assert_eq!(response.status(), 418);
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(text(response).await, "tea");

    let response = fpm.ask("header('Location: /login');", request(Request::get("/")), Body::Empty).await;
    let response = response.expect("an answer");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (302, &"/login".parse().expect("a value"))
    );

    let code = "header('Content-Length: 4'); echo 'body';";
    let response = fpm.ask(code, request(Request::head("/")), Body::Empty).await.expect("an answer");
    assert_eq!(response.headers()["content-length"], "4");
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn scripts_that_fail_are_answers_too() {
    let fpm = Fpm::start();
    let response = fpm.ask("echo 'bye'; exit(1);", request(Request::get("/")), Body::Empty).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(text(response).await, "bye");
    let code = "throw new Exception('seen in the log only');";
    let response = fpm.ask(code, request(Request::get("/")), Body::Empty).await.expect("an answer");
    assert_eq!(response.status(), 500);
    assert_eq!(text(response).await, "");
    // What is written to standard error while the answer runs does not become part of it.
    let code = "echo str_repeat('x', 20000); flush(); error_log(str_repeat('e', 70000)); echo str_repeat('y', 20000);";
    let response = fpm.ask(code, request(Request::get("/")), Body::Empty).await.expect("an answer");
    assert_eq!(text(response).await, "x".repeat(20_000) + &"y".repeat(20_000));
}

#[tokio::test]
async fn a_worker_that_is_killed_is_a_visible_truncation() {
    let fpm = Fpm::start();
    let code = "echo getmypid(), ';', str_repeat('x', 65536); flush(); while (true) sleep(1);";
    let response = fpm.ask(code, request(Request::get("/")), Body::Empty).await.expect("an answer");
    let (mut body, mut data) = (response.into_body(), Vec::new());
    let fault = loop {
        match body.frame().await.expect("the answer does not just end") {
            Ok(frame) => data.extend_from_slice(&frame.into_data().expect("data")),
            Err(fault) => break fault,
        }
        if data.len() > 65_536 {
            let pid = String::from_utf8_lossy(data.split(|b| *b == b';').next().expect("a number")).into_owned();
            let pid = pid.parse().ok().and_then(Pid::from_raw).expect("a process");
            kill_process(pid, Signal::KILL).expect("the worker is there");
        }
    };
    assert_eq!(fault.kind, Kind::Truncated);

    let code = "error_log('going'); while (true) usleep(1000);";
    let short = Settings { read: Duration::from_millis(300), ..settings(&fpm.unix) };
    let script = fpm.script(code);
    let failed = upstream(short).send(request(Request::get("/")), Body::Empty, script, &FastCgiPool::new()).await;
    assert_eq!(failed.map(|r| r.status()).expect_err("no answer").kind, Kind::ReadTimeout);
}

#[tokio::test]
async fn a_slow_upload_does_not_hold_the_only_worker() {
    let fpm = Fpm::start();
    let never = Body::stream(StreamBody::new(stream::pending::<Result<Frame<Bytes>, Fault>>()));
    let upload = fpm.ask("echo 'upload';", request(Request::post("/")), never);
    let other = fpm.ask("echo 'other';", request(Request::get("/")), Body::Empty);
    tokio::select! {
        biased;
        _ = upload => panic!("an endless upload has ended"),
        response = other => assert_eq!(text(response.expect("an answer")).await, "other"),
    }
}

#[tokio::test]
async fn a_kept_connection_serves_the_next_request() {
    let fpm = Fpm::start();
    let (php, pool) = (upstream(Settings { keep_alive: 2, ..settings(&fpm.tcp) }), FastCgiPool::new());
    let script = fpm.script("echo $_SERVER['REQUEST_METHOD'], ' ', getmypid();");
    let mut seen = Vec::new();
    for builder in [Request::get("/"), Request::post("/"), Request::get("/")] {
        let body = if builder.method_ref() == Some(&http::Method::POST) { Body::full("x") } else { Body::Empty };
        let response = php.send(request(builder), body, script.clone(), &pool).await.expect("an answer");
        seen.push(text(response).await);
        assert_eq!(pool.len(), 1);
    }
    let pids: Vec<_> = seen.iter().filter_map(|text| text.split_once(' ')).map(|(_, pid)| pid).collect();
    assert!(pids.len() == 3 && pids.iter().all(|pid| pid == &pids[0]), "{seen:?}");
    // Otherwise FPM waits for the worker that waits for us.
    drop(pool);
}
