//! The access log and the program's own.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{BackEnd, Proxy, SOON, Socket, World, wait_for, wait_until};

fn start(world: &World, log: &str) -> (BackEnd, Proxy) {
    let backend = BackEnd::start();
    let toml = format!(
        "{}[log]\naccess = {:?}\n{log}\n[site.app]\nhosts = [\"app.test\"]\nupstream = {:?}\n\
         [site.app.websocket]\npreset = \"any\"\nto = {:?}\nidle_timeout = \"30s\"\n",
        world.head(),
        world.path("access.log"),
        backend.url(),
        backend.url()
    );
    let proxy = Proxy::start(world, &toml);
    (backend, proxy)
}

fn line_with(path: &Path, part: &str) -> String {
    wait_for(&format!("a line with {part:?} in {}", path.display()), SOON, || {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find(|line| line.contains(part)).map(str::to_owned)
    })
}

#[test]
fn combined_lines_are_those_of_nginx() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    let curl = proxy.curl("app.test").http1().header("Referer: https://from.test/").header("User-Agent: agent \"x\"");
    let answer = curl.get("/combined?x=1").expect(200);
    let line = line_with(&world.path("access.log"), "/combined");
    let pattern = format!(
        "^127\\.0\\.0\\.1 - - \\[[0-9]{{2}}/[A-Z][a-z]{{2}}/[0-9]{{4}}:[0-9:]{{8}} [+-][0-9]{{4}}\\] \
         \"GET /combined\\?x=1 HTTP/1\\.1\" 200 {} \"https://from\\.test/\" \"agent \\\\x22x\\\\x22\"$",
        answer.body.len()
    );
    assert!(regex::Regex::new(&pattern).unwrap().is_match(&line), "{line}\n{pattern}");
}

#[test]
fn json_lines_tell_a_request_whole() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "format = \"json\"");
    proxy.curl("app.test").get("/json?x=1").expect(200);
    let line: Value = serde_json::from_str(&line_with(&world.path("access.log"), "/json")).unwrap();
    assert_eq!(line["status"], 200, "{line}");
    assert_eq!(line["method"], "GET", "{line}");
    assert_eq!(line["site"], "app", "{line}");
}

#[test]
fn secrets_in_the_query_and_control_bytes_do_not_reach_the_log() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    let curl = proxy.curl("app.test").http1().header("User-Agent: a\u{9b}b\tc");
    curl.get("/masked?token=HUSH&x=1&auth_signature=HUSH").expect(200);
    let line = line_with(&world.path("access.log"), "/masked");
    assert!(!line.contains("HUSH"), "{line}");
    assert!(line.contains("x=1"), "{line}");
    assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{line:?}");
}

#[test]
fn a_websocket_is_logged_when_it_opens_and_when_it_closes() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "format = \"json\"");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    let path = world.path("access.log");
    wait_until("the opening", SOON, || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("/live") && text.contains("101"))
    });
    let lines = |path: &Path| -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().filter(|line| line.contains("/live")).map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(lines(&path).len(), 1, "open, and not closed yet");
    for _ in 0..10 {
        socket.echoes(&"x".repeat(1000));
    }
    socket.close(4001);
    wait_until("the closing", SOON, || lines(&path).len() == 2);
    let last = lines(&path).pop().unwrap();
    let text = last.to_string();
    assert!(text.contains("4001"), "the close code: {last}");
    let numbers: Vec<u64> = last.as_object().unwrap().values().filter_map(Value::as_u64).collect();
    assert!(numbers.iter().filter(|&&n| (10_000..12_000).contains(&n)).count() >= 2, "bytes both ways: {last}");
}

#[test]
fn usr1_opens_the_logs_anew() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    proxy.curl("app.test").get("/before").expect(200);
    line_with(&world.path("access.log"), "/before");
    std::fs::rename(world.path("access.log"), world.path("access.log.1")).unwrap();
    proxy.running.signal(rustix::process::Signal::USR1);
    wait_until("a new file", SOON, || world.path("access.log").exists());
    proxy.curl("app.test").get("/after").expect(200);
    line_with(&world.path("access.log"), "/after");
    let old = std::fs::read_to_string(world.path("access.log.1")).unwrap();
    assert!(old.contains("/before") && !old.contains("/after"), "{old}");
}

#[test]
fn a_fault_has_one_id_on_the_page_and_in_the_log() {
    let world = World::new();
    let toml = format!(
        "{}[site.app]\nhosts = [\"app.test\"]\nupstream = \"http://127.0.0.1:{}\"\n",
        world.head(),
        crate::harness::free_port()
    );
    let proxy = Proxy::start(&world, &toml);
    let page = proxy.curl("app.test").get("/").expect(502).text();
    let id = page.split("Reference ").nth(1).unwrap().split('<').next().unwrap().trim().to_owned();
    assert!(id.len() >= 6, "{page}");
    wait_until("the id in the log", Duration::from_secs(5), || {
        proxy.running.stderr().iter().any(|line| line.contains(&id))
    });
}

#[test]
fn paths_that_are_skipped_are_not_logged_unless_they_fail() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "skip_paths = [\"/health\"]");
    proxy.curl("app.test").get("/health").expect(200);
    proxy.curl("app.test").get("/marker").expect(200);
    line_with(&world.path("access.log"), "/marker");
    assert!(!std::fs::read_to_string(world.path("access.log")).unwrap().contains("/health"));
}
