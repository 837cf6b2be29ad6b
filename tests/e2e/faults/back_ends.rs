//! Back ends over HTTP that break.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::scene::{Bystanders, Row, SICK, Scene, ms};
use super::sick::{Sick, Talk, black_hole, well};
use crate::harness::{BackEnd, NameServer, Raw, SOON, World, free_port, promised, status, wait_until};
use crate::machine_limits::descriptors;

/// One way to break.
struct Fault {
    what: &'static str,
    /// Brings it about at a port; it is over when what it gives is dropped.
    breaks: fn(u16) -> Box<dyn Any>,
    /// What is asked, if not GET.
    asks: Option<&'static str>,
    wants: Wants,
    /// What the log says; empty where nothing is to be said.
    says: &'static str,
    /// No answer comes sooner and none later than this.
    within: (Duration, Duration),
}

/// What a client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    /// One of these.
    Status(&'static [u16]),
    /// 200, and an end that cannot be taken for the end of the answer.
    Cut,
    /// 200 with this body, and nothing more.
    Whole(&'static str),
}

const AT_ONCE: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(600));
const IN_TIME: (Duration, Duration) = (Duration::from_millis(600), Duration::from_millis(2000));

const USUAL: Fault =
    Fault { what: "", breaks: |_| Box::new(()), asks: None, wants: Wants::Status(&[502]), says: "", within: AT_ONCE };

/// Each connection is one request: what is said to it, and whether a reset follows.
fn says(port: u16, answer: &'static str, then: fn(&mut Talk)) -> Box<dyn Any> {
    Box::new(Sick::listen(port, move |talk| {
        if talk.request() {
            talk.say(answer);
            then(talk);
        }
    }))
}

const CLOSE: fn(&mut Talk) = |_| ();

const FAULTS: [Fault; 18] = [
    Fault { what: "refuses", wants: Wants::Status(&[502, 503]), says: "Connection refused", ..USUAL },
    Fault {
        what: "swallows SYN (its queue is full)",
        breaks: |port| Box::new(black_hole(port)),
        wants: Wants::Status(&[502, 503]),
        says: "cannot connect",
        within: (Duration::ZERO, Duration::from_millis(2000)),
        ..USUAL
    },
    Fault {
        what: "accepts and closes at once",
        breaks: |port| Box::new(Sick::listen(port, |_| ())),
        says: "closed",
        ..USUAL
    },
    Fault {
        what: "accepts and resets",
        breaks: |port| Box::new(Sick::listen(port, Talk::reset)),
        // Some of the resets come before the connection is known to be made.
        wants: Wants::Status(&[502, 503]),
        says: "reset",
        ..USUAL
    },
    Fault { what: "closes after the request", breaks: |port| says(port, "", CLOSE), says: "closed", ..USUAL },
    Fault { what: "resets after the request", breaks: |port| says(port, "", Talk::reset), says: "reset", ..USUAL },
    Fault {
        what: "takes the request and stalls",
        breaks: |port| says(port, "", Talk::stall),
        wants: Wants::Status(&[504]),
        says: "did not answer",
        within: IN_TIME,
        ..USUAL
    },
    Fault {
        what: "stalls within the head",
        breaks: |port| says(port, "HTTP/1.1 200 OK\r\nContent-Le", Talk::stall),
        wants: Wants::Status(&[504]),
        says: "did not answer",
        within: IN_TIME,
        ..USUAL
    },
    Fault {
        what: "stalls within the body",
        breaks: |port| says(port, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart", Talk::stall),
        wants: Wants::Cut,
        says: "the answer broke off",
        within: IN_TIME,
        ..USUAL
    },
    Fault {
        what: "ends within a body that has a length",
        breaks: |port| says(port, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart", CLOSE),
        wants: Wants::Cut,
        says: "the answer broke off",
        ..USUAL
    },
    Fault {
        what: "ends within a chunk",
        breaks: |port| says(port, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\npart", CLOSE),
        wants: Wants::Cut,
        says: "the answer broke off",
        ..USUAL
    },
    Fault {
        what: "ends between chunks",
        breaks: |port| says(port, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", CLOSE),
        wants: Wants::Cut,
        says: "the answer broke off",
        ..USUAL
    },
    Fault {
        what: "resets a body that only the end of the connection ends",
        breaks: |port| {
            says(port, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart", |talk| {
                // What was said is to arrive before the reset.
                std::thread::sleep(Duration::from_millis(50));
                talk.reset();
            })
        },
        wants: Wants::Cut,
        says: "the answer broke off",
        ..USUAL
    },
    Fault {
        what: "answers nonsense",
        breaks: |port| says(port, "\u{1}\u{2}SSH-2.0-nonsense\r\n\r\n", CLOSE),
        says: "is not HTTP",
        ..USUAL
    },
    Fault {
        what: "sends a head without end",
        breaks: |port| {
            Box::new(Sick::listen(port, |talk| {
                if talk.request() {
                    talk.never_end("HTTP/1.1 200 OK\r\n", "X-More: and more\r\n", &AtomicU64::new(0));
                }
            }))
        },
        says: "",
        ..USUAL
    },
    Fault {
        what: "sends more than its Content-Length",
        breaks: |port| {
            says(
                port,
                "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npartHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
                CLOSE,
            )
        },
        wants: Wants::Whole("part"),
        ..USUAL
    },
    Fault {
        what: "answers 413 and closes before the body is there",
        breaks: |port| {
            Box::new(Sick::listen(port, |talk| {
                let mut piece = [0; 4096];
                if std::io::Read::read(&mut talk.stream, &mut piece).is_ok() {
                    talk.say("HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n");
                }
            }))
        },
        asks: Some("POST / HTTP/1.1\r\nHost: sick.app.test\r\nContent-Length: 100000\r\nConnection: close\r\n\r\npart"),
        wants: Wants::Status(&[413]),
        ..USUAL
    },
    Fault {
        what: "closes before the body is there, without an answer",
        breaks: |port| {
            Box::new(Sick::listen(port, |talk| {
                let _ = std::io::Read::read(&mut talk.stream, &mut [0; 4096]);
            }))
        },
        asks: Some("POST / HTTP/1.1\r\nHost: sick.app.test\r\nContent-Length: 100000\r\nConnection: close\r\n\r\npart"),
        ..USUAL
    },
];

/// Whether this is what is wanted, and how it reads in the table.
fn judge(wants: Wants, said: &str) -> Result<String, String> {
    let got = status(said);
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or((said, ""));
    let head = head.to_lowercase();
    let length: Option<usize> =
        head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let whole = match length {
        Some(length) => body.len() == length,
        None => head.contains("chunked") && body.ends_with("0\r\n\r\n"),
    };
    match wants {
        Wants::Status(statuses) if statuses.contains(&got) && whole => Ok(got.to_string()),
        Wants::Cut if got == 200 && !whole && body.contains("part") => Ok("200, visibly cut".to_owned()),
        Wants::Whole(wanted) if got == 200 && whole && body == wanted => Ok("200, what its length says".to_owned()),
        _ => Err(format!("{wants:?}, and came {said:?}")),
    }
}

const ASKS: usize = 6;

#[test]
fn whatever_a_back_end_does_its_clients_get_the_right_status_and_nobody_else_notices() {
    let (world, port) = (World::new(), free_port());
    let site = format!("upstream = \"http://127.0.0.1:{port}\"\n");
    let scene = Scene::start(world, "[timeouts]\nconnect = \"500ms\"\nread = \"700ms\"\n", &site);
    let healthy = Sick::listen(port, well);
    let others = Bystanders::start(&scene);
    scene.well_after("at first");
    let before = descriptors(&scene.proxy);
    drop(healthy);
    let mut rows = Vec::new();
    for (number, fault) in FAULTS.iter().enumerate() {
        let what = fault.what;
        let since = scene.lines();
        let broken = (fault.breaks)(port);
        let asked = |_| {
            let asked = Instant::now();
            let said = match fault.asks {
                None => scene.ask("/"),
                Some(bytes) => scene.proxy.raw(&scene.world, SICK).send(bytes).ended(),
            };
            (said, asked.elapsed())
        };
        let answers: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..ASKS).map(|at| scope.spawn(move || asked(at))).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        let mut seen = Vec::new();
        let mut slowest = Duration::ZERO;
        for (said, took) in answers {
            let said = said.unwrap_or_else(|open| panic!("{what}: the connection stays open after {open:?}"));
            seen.push(judge(fault.wants, &said).unwrap_or_else(|why| panic!("{what}: {why}")));
            slowest = slowest.max(took);
            assert!(took >= fault.within.0 && took <= promised(fault.within.1), "{what}: after {took:?}");
        }
        if fault.asks.is_none() {
            over_http2(&scene, fault);
        }
        seen.sort_unstable();
        seen.dedup();
        let lines = scene.told(since, " WARN ").len() + scene.told(since, " ERROR ").len();
        if matches!(fault.wants, Wants::Whole(_) | Wants::Status(&[413])) {
            assert_eq!(lines, 0, "{what}: {:?}", scene.told(since, ""));
        } else {
            scene.tells(since, fault.says);
            // One for each request; and the back end is out, once.
            assert!((ASKS..=ASKS + 3).contains(&lines), "{what}: {lines} lines: {:#?}", scene.told(since, ""));
        }
        drop(broken);
        let healthy = Sick::listen(port, well);
        let took = scene.well_after(what);
        others.go_on();
        scene.is_clean(what, before);
        drop(healthy);
        let told = if lines == 0 { "nothing".to_owned() } else { "a line for each".to_owned() };
        rows.push((number, what, format!("{} within {}", seen.join(" or "), ms(slowest)), told, took));
    }
    assert_eq!(scene.sockets(), 1, "that of the bystander");
    let others = others.stop();
    for (number, what, seen, told, took) in rows {
        let injected = format!("back end {what}");
        let (others, well) = (if number == 0 { others.clone() } else { "the same".to_owned() }, ms(took));
        Row { part: "1-back-end", number, injected: &injected, seen, told, others, well }.keep();
    }
}

/// The same answer on HTTP/2, where a cut is a reset of the stream.
fn over_http2(scene: &Scene, fault: &Fault) {
    let answer = scene.proxy.curl(SICK).send("/");
    let right = match (&answer, fault.wants) {
        (Ok(answer), Wants::Status(statuses)) => statuses.contains(&answer.status),
        (Ok(answer), Wants::Whole(wanted)) => answer.status == 200 && answer.text() == wanted,
        (Err(error), Wants::Cut) => error.contains("curl exit 92"),
        _ => false,
    };
    assert!(right, "{} on HTTP/2: {answer:?}", fault.what);
}

#[test]
fn an_answer_without_end_waits_for_a_client_that_does_not_read_and_takes_no_memory() {
    let (world, port) = (World::new(), free_port());
    let site = format!("upstream = \"http://127.0.0.1:{port}\"\n");
    let scene = Scene::start(world, "[timeouts]\nwrite = \"2s\"\n", &site);
    let said = Arc::new(AtomicU64::new(0));
    let own = Arc::clone(&said);
    let endless = Sick::listen(port, move |talk| {
        if talk.request() {
            talk.never_end("HTTP/1.1 200 OK\r\n\r\n", "and more ", &own);
        }
    });
    let others = Bystanders::start(&scene);
    let (before, memory) = (descriptors(&scene.proxy), scene.proxy.memory("VmRSS"));
    let slow: Vec<Raw> = (0..8)
        .map(|_| {
            let mut raw = scene.proxy.raw(&scene.world, SICK);
            raw.send(format!("GET / HTTP/1.1\r\nHost: {SICK}\r\n\r\n"));
            assert_eq!(raw.head().0, 200);
            raw
        })
        .collect();
    let begun = Instant::now();
    let mut last = (0, Instant::now());
    wait_until("the back end has to wait", SOON, || {
        let now = said.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(500)
    });
    let grown = scene.proxy.memory("VmRSS").saturating_sub(memory);
    assert!(grown < 16 << 20, "{grown} bytes for 8 clients");
    scene.is_clean("clients that take nothing", before);
    let ended = begun.elapsed();
    others.go_on();
    drop(slow);
    drop(endless);
    let _healthy = Sick::listen(port, well);
    let took = scene.well_after("an answer without end");
    Row {
        part: "1-back-end",
        number: 18,
        injected: "back end sends a body without end, to 8 clients that do not read",
        seen: format!("200; cut by `timeouts.write` (2 s) after {}", ms(ended)),
        told: "nothing: the client's doing".to_owned(),
        others: format!("{}; {} MiB more memory", others.stop(), grown >> 20),
        well: ms(took),
    }
    .keep();
}

#[test]
fn what_is_compressed_passes_as_it_is_both_ways_and_is_never_unpacked() {
    let world = World::new();
    // The beginning of a gzip of zeros, again and again: whoever unpacks it fails, or fills the memory.
    let bomb = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3, 0xed, 0xc1, 1, 1].repeat(20_000);
    let (sent, length) = (bomb.clone(), bomb.len());
    let back_end = BackEnd::answering(move |_, stream| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n"
        );
        std::io::Write::write_all(stream, &[head.as_bytes(), &sent].concat()).is_ok()
    });
    let scene = Scene::start(world, "", &format!("upstream = {:?}\n", back_end.url()));
    for http1 in [true, false] {
        let curl = scene.proxy.curl(SICK).header("Content-Encoding: gzip").header("Accept-Encoding: br, gzip");
        let answer = if http1 { curl.http1() } else { curl }.post("/", &bomb).expect(200);
        assert_eq!(answer.field("content-encoding"), Some("gzip"));
        assert!(answer.body == bomb, "the answer was changed");
        assert_eq!(back_end.last().field("content-encoding"), Some("gzip"));
        assert!(back_end.last().body == bomb, "the request was changed");
        // No client asks for it to be unpacked either.
        let plain = scene.proxy.curl(SICK).header("Accept-Encoding: identity").get("/").expect(200);
        assert!(plain.body == bomb && plain.field("content-encoding") == Some("gzip"));
    }
}

#[test]
fn a_name_that_vanishes_costs_502_and_is_found_again() {
    let (world, server, port) = (World::new(), NameServer::start(), free_port());
    let mut healthy = Some(Sick::listen(port, well));
    server.set("app.internal.test", &[[127, 0, 0, 1]]);
    let site = format!("upstream = \"http://app.internal.test:{port}\"\n");
    let scene = Scene::start(world, "", &site);
    // The key is one of a block that is written already.
    let toml = std::fs::read_to_string(scene.world.path("proxy.toml")).unwrap();
    scene.proxy.rewrite(&toml.replacen(
        "[server]\n",
        &format!("[server]\nresolvers = [\"{}\"]\n", server.address()),
        1,
    ));
    scene.proxy.signal(rustix::process::Signal::HUP);
    scene.well_after("the name is known");
    let (others, before, since) = (Bystanders::start(&scene), descriptors(&scene.proxy), scene.lines());
    server.set("app.internal.test", &[]);
    // A connection that is kept serves on: it is its end that shows.
    for _ in 0..5 {
        assert_eq!(status(&scene.ask("/").unwrap()), 200);
    }
    wait_until("the name is gone", SOON, || {
        // What was known of it holds for a second more.
        drop(healthy.take());
        healthy = Some(Sick::listen(port, well));
        scene.ask("/").is_ok_and(|said| matches!(status(&said), 502 | 503))
    });
    for _ in 0..5 {
        let said = scene.ask("/").unwrap();
        assert!(matches!(status(&said), 502 | 503), "{said}");
    }
    scene.tells(since, "cannot resolve \"app.internal.test\"");
    server.set("app.internal.test", &[[127, 0, 0, 1]]);
    let mended = Instant::now();
    wait_until("the name is found again", SOON, || scene.ask("/").is_ok_and(|said| status(&said) == 200));
    let took = mended.elapsed();
    // A failure is believed for a second or so, that nobody is asked for each request.
    assert!(took < promised(Duration::from_secs(4)), "{took:?}");
    scene.is_clean("a name that vanishes", before);
    Row {
        part: "1-back-end",
        number: 19,
        injected: "the name of a back end vanishes from DNS",
        seen: "200 on connections that are kept; 502 behind their end".to_owned(),
        told: "a line for each: `cannot resolve`".to_owned(),
        others: others.stop(),
        well: ms(took),
    }
    .keep();
    drop(healthy);
}
