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
fn nothing_that_a_client_writes_forges_a_line_or_moves_a_cursor() {
    for format in ["combined", "common", "json", "{client} {method} {target} {user_agent} {referer}"] {
        let world = World::new();
        let (_backend, proxy) = start(&world, &format!("format = {format:?}\n"));
        let (red, long) = ("\x1b[31m", "x".repeat(20_000));
        let lines: [(&str, String); 14] = [
            ("GET /%0a%1b[31m", String::new()),
            ("GET /%0d%0a127.0.0.1%20-%20forged", String::new()),
            ("GET /%00", String::new()),
            ("GET /\u{202e}x\u{9b}1m", String::new()),
            ("GET /?a=%0a%1b[31m\u{9b}", String::new()),
            ("GET /\x1b[31m", String::new()),
            ("G\x1bT /", String::new()),
            ("GET /agent", format!("User-Agent: {red}")),
            ("GET /agent", "User-Agent: \u{9b}31m\u{202e} \"q\" \\ {path}".to_owned()),
            ("GET /agent", format!("User-Agent: {long}")),
            ("GET /agent", "User-Agent: a\rb".to_owned()),
            ("GET /agent", "User-Agent: a\r\n 127.0.0.1 - forged".to_owned()),
            ("GET /referer", format!("Referer: {}", "\u{9b}\"".repeat(5000))),
            ("GET /cookie", "Cookie: \u{7f}\x07".to_owned()),
        ];
        for (line, field) in &lines {
            let mut raw = proxy.raw(&world, "app.test");
            raw.send(format!("{line} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{field}\r\n\r\n")).rest();
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n", "%0a".repeat(2500));
        proxy.raw(&world, "app.test").send(long).rest();
        let seen = wait_for("a line for each", SOON, || {
            let text = std::fs::read(world.path("access.log")).ok()?;
            (text.iter().filter(|byte| **byte == b'\n').count() > lines.len()).then_some(text)
        });
        let seen = String::from_utf8(seen).unwrap();
        assert_eq!(seen.lines().count(), lines.len() + 1, "{seen}");
        for line in seen.lines().chain(proxy.running.stderr().iter().map(String::as_str)) {
            assert!(line.len() <= 8192, "{} bytes", line.len());
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(!line.starts_with("127.0.0.1 - forged"), "{line}");
            assert!(
                format != "json" || !line.starts_with('{') || serde_json::from_str::<Value>(line).is_ok(),
                "{line}"
            );
        }
    }
}

/// Asks `count` times over connections that stay, and gives how long it took.
fn flood(world: &World, proxy: &Proxy, path: &str, count: usize) -> Duration {
    let begun = std::time::Instant::now();
    let request = format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n");
    let mut raw = proxy.raw(world, "app.test");
    for _ in 0..count {
        let (status, head) = raw.send(&request).head();
        assert!(matches!(status, 502 | 503), "{head}");
        let length = head.to_lowercase().split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse();
        raw.exactly(length.unwrap());
    }
    begun.elapsed()
}

fn without_back_end(world: &World) -> String {
    let port = crate::harness::free_port();
    format!("{}[site.app]\nhosts = [\"app.test\"]\nupstream = \"http://127.0.0.1:{port}\"\n", world.head())
}

#[test]
fn a_flood_of_one_kind_of_error_is_counted_instead_of_written() {
    let world = World::new();
    let proxy = Proxy::start(&world, &without_back_end(&world));
    let took = flood(&world, &proxy, "/flood", 600);
    let written = || proxy.running.stderr().iter().filter(|line| line.contains("path=/flood")).count();
    // 50 within each second, of which it may have touched one more at each end; a back end that is out is 503, another
    // kind than the 502 before it.
    let most = 2 * 50 * (usize::try_from(took.as_secs()).unwrap() + 2);
    assert!(written() <= most.min(500), "{} lines in {took:?}", written());
    wait_until("the count of what was held back", SOON, || {
        // The next line of a kind tells.
        flood(&world, &proxy, "/after", 1);
        let lines = proxy.running.stderr();
        let held = lines.iter().filter_map(|line| line.split("held_back=").nth(1)?.trim().parse::<usize>().ok());
        held.sum::<usize>() + written() >= 600
    });
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_request_and_tells_what_it_lost() {
    use std::io::{Read, Write};
    let world = World::new();
    let toml = without_back_end(&world);
    let proxy = Proxy::start(&world, &toml);
    let path = world.path("log.pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    use std::os::unix::fs::OpenOptionsExt;
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let mut pipe = std::fs::File::options().read(true).write(true).custom_flags(flags).open(&path).unwrap();
    proxy.rewrite(&format!("{toml}[log]\noutput = {path:?}\n"));
    assert_eq!(proxy.reload().code, 0);
    while pipe.write(&[b'x'; 4096]).is_ok() {}
    while pipe.write(b"x").is_ok() {}
    let plain = flood(&world, &proxy, "/stuck", 400);
    // Were each of the 50 lines of a second waited for, it would be 1 s more for each second.
    assert!(plain < crate::harness::promised(Duration::from_secs(8)), "{plain:?}");
    let mut read = Vec::new();
    let _ = pipe.read_to_end(&mut read);
    let told = wait_for("the count of what was lost", SOON, || {
        flood(&world, &proxy, "/back", 1);
        let _ = pipe.read_to_end(&mut read);
        let text = String::from_utf8_lossy(&read).into_owned();
        text.lines().find(|line| line.contains("lines of this log were lost")).map(str::to_owned)
    });
    let lost: u32 = told.split("WARN ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(lost >= 50, "{told}");
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
