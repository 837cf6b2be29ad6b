//! Large bodies both ways: whole, and without the proxy growing.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Curl, Fpm, Node, Proxy, World, is_full};
use crate::{backend, php};

/// How much the proxy's resident memory may grow under one transfer.
const GROWTH: u64 = 64 << 20;

/// 256 MiB, or 1 GiB when everything is asked for.
fn size() -> u64 {
    if is_full() { 1 << 30 } else { 256 << 20 }
}

const NO_LIMIT: &str = "max_body = \"2GiB\"";

#[test]
fn uploads_to_php_are_whole_and_flat() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    let proxy = world.proxy(&php::site(&world, &fpm, NO_LIMIT));
    for http1 in [true, false] {
        up(&world, &proxy, "PHP", http1);
    }
}

#[test]
fn downloads_from_php_are_whole_and_flat() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    let proxy = world.proxy(&php::site(&world, &fpm, "compress = false"));
    for http1 in [true, false] {
        down(&proxy, "PHP", http1, &format!("/big?bytes={}", size()));
    }
}

#[test]
fn uploads_to_a_back_end_are_whole_and_flat() {
    let world = World::new();
    let node = Node::serve(&world, "http-server.js", &[]);
    let proxy = world.proxy(&backend::site(&node.url(), NO_LIMIT));
    for http1 in [true, false] {
        up(&world, &proxy, "HTTP", http1);
    }
}

#[test]
fn downloads_from_a_back_end_are_whole_and_flat() {
    let world = World::new();
    let node = Node::serve(&world, "http-server.js", &[]);
    let proxy = world.proxy(&backend::site(&node.url(), ""));
    for http1 in [true, false] {
        down(&proxy, "HTTP", http1, &format!("/big?bytes={}&length=1", size()));
    }
}

#[test]
fn downloads_of_files_are_whole_and_flat() {
    let world = World::new();
    fill(&world.path("big.bin"));
    let root = world.path("");
    let proxy = world.proxy(&format!("[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\n"));
    for http1 in [true, false] {
        down(&proxy, "files", http1, "/big.bin");
    }
}

#[test]
fn a_reader_that_stops_reading_does_not_make_the_proxy_grow() {
    let world = World::new();
    let node = Node::serve(&world, "http-server.js", &[]);
    let proxy = world.proxy(&backend::site(&node.url(), ""));
    let mut raws = Vec::new();
    proxy.reset_peak();
    let before = proxy.memory("VmRSS");
    for _ in 0..8 {
        let mut raw = proxy.raw(&world, "app.test");
        raw.send(format!("GET /big?bytes={} HTTP/1.1\r\nHost: app.test\r\n\r\n", size()));
        assert_eq!(raw.head().0, 200);
        raws.push(raw);
    }
    // Nobody reads on. Another client is served meanwhile, and a lot more than the buffers hold.
    proxy.curl("app.test").arg("-o").arg("/dev/null").patient(Duration::from_secs(120)).get("/big?bytes=33554432");
    let grown = proxy.memory("VmHWM").saturating_sub(before);
    assert!(grown < GROWTH, "grew by {} KiB", grown >> 10);
}

fn up(world: &World, proxy: &Proxy, to: &str, http1: bool) {
    let file = world.path("upload.bin");
    if !file.exists() {
        fill(&file);
    }
    let digest = digest(&file);
    measured(proxy, &format!("{to} up"), http1, |curl| {
        let curl = curl.header("Content-Type: application/octet-stream").header("Expect:");
        let answer =
            curl.arg("-X").arg("POST").arg("-T").arg(file.display().to_string()).get("/echo").expect(200).json();
        assert_eq!(answer["length"], size());
        assert_eq!(answer["sha256"], digest);
    });
}

fn down(proxy: &Proxy, from: &str, http1: bool, path: &str) {
    measured(proxy, &format!("{from} down"), http1, |curl| {
        let answer = curl.get(path).expect(200);
        assert_eq!(u64::try_from(answer.body.len()).unwrap(), size());
        let line = b"0123456789abcde\n";
        assert!(answer.body.chunks(line.len()).all(|chunk| chunk == line), "the bytes changed");
    });
}

fn measured(proxy: &Proxy, what: &str, http1: bool, transfer: impl FnOnce(Curl)) {
    let curl = proxy.curl("app.test").patient(Duration::from_secs(300));
    proxy.curl("app.test").get("/"); // warm
    proxy.reset_peak();
    let before = proxy.memory("VmRSS");
    let started = Instant::now();
    transfer(if http1 { curl.http1() } else { curl });
    let seconds = started.elapsed().as_secs_f64();
    let peak = proxy.memory("VmHWM");
    let mib = |bytes: u64| bytes >> 20;
    let line = format!(
        "{what} over {}: {} MiB in {seconds:.1} s, resident {} MiB before, {} MiB at its peak\n",
        if http1 { "HTTP/1.1" } else { "HTTP/2" },
        mib(size()),
        mib(before),
        mib(peak)
    );
    record(&line);
    assert!(peak.saturating_sub(before) < GROWTH, "not flat: {line}");
}

/// Keeps the figures beside the other artefacts, and shows them with `--nocapture`.
fn record(line: &str) {
    use std::io::Write;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/artifacts");
    std::fs::create_dir_all(&folder).unwrap();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("memory.txt")).unwrap();
    file.write_all(line.as_bytes()).unwrap();
    eprint!("{line}");
}

fn fill(path: &Path) {
    use std::io::Write;
    let piece = b"0123456789abcde\n".repeat(65_536);
    let mut file = std::fs::File::create(path).unwrap();
    for _ in 0..size() / u64::try_from(piece.len()).unwrap() {
        file.write_all(&piece).unwrap();
    }
}

fn digest(path: &Path) -> String {
    let end = crate::harness::finish("sha256sum", std::process::Command::new("sha256sum").arg(path));
    end.stdout.split(' ').next().unwrap().to_owned()
}
