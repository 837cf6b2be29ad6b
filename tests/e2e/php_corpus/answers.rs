//! A FastCGI server that misbehaves: each answer has its status, ends in time, is never passed off as whole when it was
//! cut, and is told in one line.

use std::time::{Duration, Instant};

use super::fastcgi::{Act, BEGIN, END, Fake, PARAMS, STDERR, STDIN, STDOUT, record};
use super::{DEADLINE, exchange};
use crate::harness::{Proxy, SOON, World, promised, wait_for, wait_until};

/// What a client gets.
#[derive(Clone, Debug, PartialEq)]
enum Want {
    /// 200 and this content, whole.
    Whole(String),
    /// This status, and no content of the back end's.
    Status(u16),
    /// An answer that everybody can see is not whole.
    Cut,
}
use Act::{Bytes, Endless, Say, Slowly, Stay};
use Want::{Cut, Status, Whole};

/// For each wait of the proxy.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Just short of it.
const PAUSE: Duration = Duration::from_millis(400);

const HEAD: &str = "Content-Type: text/plain\r\n\r\n";

fn out(content: impl AsRef<[u8]>) -> Vec<u8> {
    content.as_ref().chunks(65_535).flat_map(|part| record(STDOUT, 1, part, 0)).collect()
}

fn err(content: impl AsRef<[u8]>) -> Vec<u8> {
    content.as_ref().chunks(65_535).flat_map(|part| record(STDERR, 1, part, 0)).collect()
}

fn end() -> Vec<u8> {
    end_with(0)
}

fn end_with(protocol_status: u8) -> Vec<u8> {
    record(END, 1, &[0, 0, 0, 0, protocol_status, 0, 0, 0], 0)
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A head and `content`, and the end.
fn whole(head: &str, content: &str) -> Vec<u8> {
    join(&[&out(format!("{head}\r\n{content}")), &end()])
}

fn page(content: &str) -> Want {
    Whole(content.to_owned())
}

/// Records as they are, but of a size, an id or a type that is unusual or wrong.
fn records() -> Vec<(&'static str, Act, Want)> {
    let (full, head, hello) = ("x".repeat(65_535), out(HEAD), out("hello"));
    let ones = |text: &str| text.bytes().flat_map(|byte| record(STDOUT, 1, &[byte], 3)).collect::<Vec<u8>>();
    let padded = |padding| join(&[&head, &record(STDOUT, 1, full.as_bytes(), padding), &end()]);
    vec![
        ("65535-and-0", Say(padded(0)), page(&full)),
        ("65535-and-1", Say(padded(1)), page(&full)),
        ("65535-and-255", Say(padded(255)), page(&full)),
        ("65535-and-255-in-bytes", Bytes(padded(255)), page(&full)),
        ("head-and-255", Say(join(&[&record(STDOUT, 1, HEAD.as_bytes(), 255), &hello, &end()])), page("hello")),
        ("records-of-one-byte", Say(join(&[&ones(HEAD), &ones("hello"), &end()])), page("hello")),
        ("writes-of-one-byte", Bytes(join(&[&head, &hello, &end()])), page("hello")),
        ("empty-records", Say(join(&[&record(STDERR, 1, &[], 9), &head, &hello, &end()])), page("hello")),
        ("end-with-padding", Say(join(&[&head, &hello, &record(END, 1, &[0; 8], 255)])), page("hello")),
        ("wrong-id", Say(join(&[&record(STDOUT, 2, b"\r\nhello", 0), &end()])), Status(502)),
        ("id-0", Say(join(&[&record(STDOUT, 0, b"\r\nhello", 0), &end()])), Status(502)),
        ("id-65535", Say(join(&[&record(STDOUT, 65_535, b"\r\nhello", 0), &end()])), Status(502)),
        ("wrong-id-behind-the-head", Say(join(&[&head, &record(STDOUT, 2, b"evil", 0), &end()])), Cut),
        ("wrong-id-at-the-end", Say(join(&[&head, &hello, &record(END, 2, &[0; 8], 0)])), Cut),
        ("wrong-id-of-stderr", Say(join(&[&record(STDERR, 2, b"evil", 0), &head, &end()])), Status(502)),
        ("unknown-type", Say(join(&[&record(42, 1, b"evil", 0), &head, &end()])), Status(502)),
        ("unknown-type-behind-the-head", Say(join(&[&head, &record(42, 1, b"evil", 0), &end()])), Cut),
        ("type-0", Say(record(0, 1, b"evil", 0)), Status(502)),
        ("get-values", Say(join(&[&record(9, 0, &[14, 0], 0), &head, &end()])), Status(502)),
        ("get-values-result", Say(join(&[&record(10, 0, &[], 0), &head, &end()])), Status(502)),
        ("unknown-type-record", Say(join(&[&record(11, 0, &[42, 0, 0, 0, 0, 0, 0, 0], 0), &end()])), Status(502)),
        ("our-own-stdin", Say(record(STDIN, 1, b"evil", 0)), Status(502)),
        ("our-own-params", Say(record(PARAMS, 1, b"evil", 0)), Status(502)),
        ("our-own-begin", Say(record(BEGIN, 1, &[0; 8], 0)), Status(502)),
        ("version-0", Say(b"\0\x06\0\x01\0\x01\0\0x".to_vec()), Status(502)),
        ("version-2", Say(b"\x02\x06\0\x01\0\x01\0\0x".to_vec()), Status(502)),
        ("garbage", Say((0..5000).map(|i: u32| (i * 7919 % 251) as u8).collect()), Status(502)),
        ("http", Say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil".to_vec()), Status(502)),
    ]
}

/// Answers that end where they must not, or do not end.
fn ends() -> Vec<(&'static str, Act, Want)> {
    let (head, hello) = (out(HEAD), out("hello"));
    let begun = join(&[&head, &hello]);
    vec![
        ("nothing", Say(vec![]), Status(502)),
        ("half-a-header", Say(head[..5].to_vec()), Status(502)),
        ("a-header-alone", Say(head[..8].to_vec()), Status(502)),
        ("half-a-record-of-the-head", Say(head[..20].to_vec()), Status(502)),
        ("half-a-head", Say(out(&HEAD[..10])), Status(502)),
        ("half-a-head-and-the-end", Say(join(&[&out(&HEAD[..10]), &end()])), Status(502)),
        ("a-head-alone", Say(head.clone()), Cut),
        ("no-end", Say(begun.clone()), Cut),
        ("half-a-record", Say(join(&[&head, &hello[..10]])), Cut),
        ("half-a-header-behind-the-head", Say(join(&[&begun, &hello[..4]])), Cut),
        ("half-the-padding", Say(join(&[&head, &record(STDOUT, 1, b"hello", 200)[..50]])), Cut),
        ("half-an-end", Say(join(&[&begun, &end()[..12]])), Cut),
        ("a-short-end", Say(join(&[&begun, &record(END, 1, &[0; 4], 0)])), Cut),
        ("an-empty-end", Say(record(END, 1, &[], 0)), Status(502)),
        ("an-end-alone", Say(end()), Status(502)),
        ("status-1", Say(end_with(1)), Status(502)),
        ("status-2", Say(end_with(2)), Status(503)),
        ("status-3", Say(end_with(3)), Status(502)),
        ("status-9", Say(end_with(9)), Status(502)),
        ("status-1-behind-the-head", Say(join(&[&begun, &end_with(1)])), Cut),
        ("data-behind-the-end", Say(join(&[&begun, &end(), &out("evil")])), page("hello")),
        ("garbage-behind-the-end", Say(join(&[&begun, &end(), b"evil evil evil"])), page("hello")),
        ("two-ends", Say(join(&[&begun, &end(), &end()])), page("hello")),
        ("end-and-then-silence", Stay(join(&[&begun, &end()])), page("hello")),
        ("silence", Stay(vec![]), Status(504)),
        ("half-a-head-and-then-silence", Stay(out(&HEAD[..10])), Status(504)),
        ("content-and-then-silence", Stay(begun.clone()), Cut),
        ("slow-head", Slowly(vec![out(&HEAD[..9]), out(&HEAD[9..]), join(&[&hello, &end()])]), page("hello")),
        ("slow-content", Slowly(vec![begun.clone(), hello.clone(), end()]), page("hellohello")),
        ("longer-than-its-length", Say(whole("Content-Length: 3\r\n", "hello")), page("hel")),
        ("shorter-than-its-length", Say(whole("Content-Length: 9\r\n", "hello")), Cut),
    ]
}

/// Heads that are none, and what is said on standard error.
fn heads() -> Vec<(&'static str, Act, Want)> {
    let head = |text: &str| Say(whole(text, "evil"));
    let many: String = (0..40_000).map(|n| format!("X{n}: 1\r\n")).collect();
    let said = err("e".repeat(70_000));
    let full = record(STDERR, 1, &[b'e'; 65_535], 255);
    vec![
        ("cr-in-a-value", head("X-A: a\rSet-Cookie: evil=1\r\n"), Status(502)),
        ("nul-in-a-value", head("X-A: a\0b\r\n"), Status(502)),
        ("cr-in-a-name", head("X-A\r: a\r\n"), Status(502)),
        ("space-before-the-colon", head("X-A : a\r\n"), Status(502)),
        ("no-colon", head("evil\r\n"), Status(502)),
        ("no-name", head(": a\r\n"), Status(502)),
        ("folded", head("X-A: a\r\n b\r\n"), Status(502)),
        ("status-100", head("Status: 100 Continue\r\n"), Status(502)),
        ("status-101", head("Status: 101 Switching Protocols\r\nUpgrade: evil\r\n"), Status(502)),
        ("status-099", head("Status: 099\r\n"), Status(502)),
        ("status-in-words", head("Status: fine\r\n"), Status(502)),
        ("two-statuses", head("Status: 200\r\nStatus: 404\r\n"), Status(502)),
        ("two-lengths", head("Content-Length: 4\r\nContent-Length: 5\r\n"), Status(502)),
        ("length-minus-1", head("Content-Length: -1\r\n"), Status(502)),
        ("length-of-2-64", head("Content-Length: 18446744073709551616\r\n"), Status(502)),
        ("its-own-framing", Say(whole("Transfer-Encoding: chunked\r\n", "5\r\n")), page("5\r\n")),
        (
            "its-own-framing-and-length",
            Say(whole("Transfer-Encoding: x\r\nContent-Length: 5\r\n", "hello")),
            page("hello"),
        ),
        ("head-of-10-mb", Say(out("x".repeat(10 << 20))), Status(502)),
        ("head-without-end", Endless(out("X-A: "), out("x".repeat(60_000))), Status(502)),
        ("40000-fields", head(&many), Status(502)),
        ("stderr-of-70-kb", Say(join(&[&said, &whole("", "hello")])), page("hello")),
        ("stderr-behind-the-content", Say(join(&[&out("\r\nhello"), &said, &end()])), page("hello")),
        // What killed Debian's HAProxy 2.6.12.
        ("stderr-stdout-stderr", Say(join(&[&err("x"), &out("\r\nhello"), &full, &end()])), page("hello")),
        ("stderr-with-control-bytes", Say(join(&[&err(FORGED), &whole("", "hello")])), page("hello")),
        ("stderr-alone", Say(join(&[&err("x"), &end()])), Status(502)),
        ("stderr-without-end", Endless(vec![], full.clone()), Status(502)),
        ("stderr-without-end-behind-the-head", Endless(out("\r\nhello"), full), Cut),
    ]
}

/// What would forge a line, if it were written as it came.
const FORGED: &str = "a\r\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\x07\u{9b}31m\u{202e}\x7f\n";

struct House {
    world: World,
    proxy: Proxy,
    _fake: Fake,
}

impl House {
    fn start(fake: impl FnOnce(&World) -> Fake) -> House {
        let world = World::new();
        let fake = fake(&world);
        world.write("app/index.php", "never run");
        let toml = format!(
            "{}[timeouts]\nread = \"{patience}ms\"\nsend = \"{patience}ms\"\nconnect = \"{patience}ms\"\n[site.app]\n\
             hosts = [\"app.test\"]\nroot = {:?}\ncompress = false\n\
             php = {{ to = {:?}, queue_timeout = \"{patience}ms\", restart_window = \"10ms\" }}\n",
            world.head(),
            world.path("app"),
            fake.address(),
            patience = PATIENCE.as_millis(),
        );
        let proxy = Proxy::start(&world, &toml);
        House { world, proxy, _fake: fake }
    }

    fn get(&self, name: &str) -> Want {
        let text = format!("GET /{name} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n");
        let answer = exchange(&self.world, &self.proxy, name, text.as_bytes());
        match answer.status {
            // Broken off before the head was out.
            0 => Cut,
            200 if answer.complete => Whole(answer.content),
            200 => Cut,
            status => {
                assert!(answer.complete, "{name}: {}", answer.head);
                assert!(!answer.content.contains("evil"), "{name}: {}", answer.content);
                Status(status)
            }
        }
    }

    /// The same over HTTP/2, with curl's judgement of what is whole.
    fn get_h2(&self, name: &str) -> Want {
        let asked = Instant::now();
        let answer = self.proxy.curl("app.test").send(&format!("/{name}"));
        assert!(asked.elapsed() < promised(DEADLINE), "{name}: {:?}", asked.elapsed());
        match answer {
            Err(_) => Cut,
            Ok(answer) if answer.status == 200 => Whole(answer.text()),
            Ok(answer) => Status(answer.status),
        }
    }

    /// The lines of the log on a request, without what PHP said itself.
    fn lines(&self, name: &str) -> Vec<String> {
        let marks = [format!(" path=/{name} "), format!(" request=\"GET /{name}\" ")];
        let mut lines = self.proxy.running.stderr();
        lines.retain(|line| marks.iter().any(|m| format!("{line} ").contains(m)) && !line.contains(" PHP: "));
        lines
    }
}

fn cases() -> Vec<(&'static str, Act, Want)> {
    [records(), ends(), heads()].concat()
}

#[test]
fn every_misbehaviour_of_fpm_has_its_answer_and_one_line() {
    let house = House::start(|world| {
        let cases = cases();
        Fake::start(world.path("fake.sock"), PAUSE, move |uri| {
            let case = cases.iter().find(|(name, ..)| uri.strip_prefix('/') == Some(name));
            case.map(|(_, act, _)| act.clone()).unwrap_or_else(|| panic!("{uri}"))
        })
    });
    let cases = cases();
    assert!(cases.len() >= 80, "{}", cases.len());
    let mut wrong = Vec::new();
    for (name, _, want) in &cases {
        let got = house.get(name);
        // What is longer than it said is cut to what it said, and told.
        let told = !matches!(want, Whole(_)) || *name == "longer-than-its-length";
        // Before the next: a kind of line that comes too often is counted instead.
        let lines = wait_for(&format!("the line on {name}"), SOON, || {
            let lines = house.lines(name);
            (!told || !lines.is_empty()).then_some(lines)
        });
        if got != *want || lines.len() != usize::from(told) {
            wrong.push(format!("{name}: {} instead of {}, told: {lines:?}", short(&got), short(want)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for line in house.proxy.running.stderr() {
        assert!(line.len() <= 8192, "{} bytes: {}", line.len(), &line[..200]);
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
        assert!(!line.starts_with("2026-01-01"), "{line}");
    }
    let forged = |line: &String| line.contains("ERROR forged\\x1b[2J\\x07");
    wait_until("what PHP said", SOON, || house.proxy.running.stderr().iter().any(forged));
}

#[test]
fn every_misbehaviour_of_fpm_has_the_same_answer_over_http2() {
    let house = House::start(|world| {
        let cases = cases();
        Fake::start(world.path("fake.sock"), PAUSE, move |uri| {
            let case = cases.iter().find(|(name, ..)| uri.strip_prefix('/') == Some(name));
            case.map(|(_, act, _)| act.clone()).unwrap_or_else(|| panic!("{uri}"))
        })
    });
    let wrong: Vec<String> = cases()
        .into_iter()
        .filter_map(|(name, _, want)| {
            let got = house.get_h2(name);
            (got != want).then(|| format!("{name}: {} instead of {}", short(&got), short(&want)))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn short(want: &Want) -> String {
    format!("{want:?}").chars().take(100).collect()
}

#[test]
fn a_pool_that_takes_no_request_is_504_and_a_missing_one_502_at_once() {
    let house = House::start(|world| Fake::deaf(world.path("fake.sock")));
    assert_eq!(house.get("deaf"), Status(504));
    let house = House::start(|world| Fake::deaf(world.path("gone.sock")));
    std::fs::remove_file(house.world.path("gone.sock")).unwrap();
    let asked = Instant::now();
    assert_eq!(house.get("missing"), Status(502));
    assert!(asked.elapsed() < promised(Duration::from_millis(500)), "{:?}", asked.elapsed());
    wait_until("its line", SOON, || house.lines("missing").len() == 1);
}
