//! Standard streams whose reader stops reading, or goes.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::scene::{Bystanders, Row, Scene, ms};
use crate::harness::{SOON, World, binary, free_port, promised, status, wait_for, wait_until};
use crate::machine_limits::descriptors;

/// A proxy whose streams are read by processes of their own, which are named after them.
fn start() -> Scene {
    let mut command = Command::new("bash");
    let script = "exec \"$0\" \"$@\" 2> >(exec -a reader-2 cat >&2) > >(exec -a reader-1 cat)";
    command.args(["-c", script]).arg(binary());
    let site = format!("upstream = \"http://127.0.0.1:{}\"\n", free_port());
    Scene::start_command(World::new(), "", &site, command)
}

/// The reader of a stream of the proxy's.
fn reader(scene: &Scene, stream: u8) -> Pid {
    let pid = scene.proxy.running.pid().as_raw_nonzero();
    let name = format!("reader-{stream}\0");
    let is_it = |child: &&str| fs::read_to_string(format!("/proc/{child}/cmdline")).is_ok_and(|line| line == name);
    wait_for("the reader of a stream", SOON, || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().find(is_it)?.parse().unwrap())
    })
}

/// It reads nothing any more when this returns.
fn stop(reader: Pid) {
    kill_process(reader, Signal::STOP).unwrap();
    let stat = format!("/proc/{}/stat", reader.as_raw_nonzero());
    wait_until("the reader stands still", SOON, || {
        fs::read_to_string(&stat).is_ok_and(|text| text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    });
}

/// Writes into the pipe that it reads until nothing more goes in. The proxy's end of it is nobody's to open.
fn fill(reader: Pid) {
    let path = format!("/proc/{}/fd/0", reader.as_raw_nonzero());
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut pipe = OpenOptions::new().write(true).custom_flags(flags).open(path).unwrap();
    for length in [4096, 1] {
        let mut line = vec![b'-'; length];
        line[length - 1] = b'\n';
        loop {
            match pipe.write(&line) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody_and_what_was_lost_is_counted() {
    let scene = start();
    let reader = reader(&scene, 2);
    let others = Bystanders::start(&scene);
    let before = descriptors(&scene.proxy);
    assert_eq!(status(&scene.ask("/").unwrap()), 502);
    stop(reader);
    fill(reader);
    let (mut asked, mut slowest) = (0, Duration::ZERO);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        let since = Instant::now();
        let said = scene.ask("/").unwrap();
        assert!(matches!(status(&said), 502 | 503), "{said}");
        (asked, slowest) = (asked + 1, slowest.max(since.elapsed()));
    }
    assert!(slowest < promised(Duration::from_secs(1)), "{slowest:?}");
    others.go_on();
    let since = scene.lines();
    let mended = Instant::now();
    kill_process(reader, Signal::CONT).unwrap();
    wait_until("the log goes on, and says what it has lost", SOON, || {
        scene.ask("/").unwrap();
        !scene.told(since, "lines of this log were lost").is_empty()
    });
    let took = mended.elapsed();
    // The reader goes: EPIPE, and no signal.
    kill_process(reader, Signal::KILL).unwrap();
    for _ in 0..20 {
        let said = scene.ask("/").unwrap();
        assert!(matches!(status(&said), 502 | 503), "{said}");
    }
    others.go_on();
    scene.is_clean("a log that nobody reads", before);
    Row {
        part: "4-logs",
        number: 0,
        injected: "stderr is a pipe that nobody reads, and is full; then its reader goes",
        seen: format!("as ever: {asked} requests, the slowest {}", ms(slowest)),
        told: "how many lines were lost, when there is room again".to_owned(),
        others: others.stop(),
        well: ms(took),
    }
    .keep();
}

#[test]
fn an_access_log_that_nobody_reads_holds_up_nobody_and_not_the_end_either() {
    let mut scene = start();
    let reader = reader(&scene, 1);
    let others = Bystanders::start(&scene);
    stop(reader);
    fill(reader);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        others.go_on();
    }
    let lines = scene.proxy.running.stdout().len();
    let mended = Instant::now();
    kill_process(reader, Signal::CONT).unwrap();
    wait_until("lines again", SOON, || {
        scene.proxy.running.stdout().iter().skip(lines).any(|line| line.contains("GET / "))
    });
    let took = mended.elapsed();
    // Full again: neither does the end wait for it.
    stop(reader);
    fill(reader);
    others.go_on();
    let others = others.stop();
    let ending = Instant::now();
    scene.proxy.signal(Signal::TERM);
    assert!(scene.proxy.running.wait_exit(SOON).success());
    let ended = ending.elapsed();
    assert!(ended < promised(Duration::from_secs(6)), "{ended:?}");
    kill_process(reader, Signal::KILL).unwrap();
    Row {
        part: "4-logs",
        number: 1,
        injected: "stdout (the access log) is a pipe that nobody reads, and is full",
        seen: "as ever".to_owned(),
        told: "how many lines were lost: those of 5 s, and beyond 8192".to_owned(),
        others,
        well: format!("{}; SIGTERM meanwhile ends it in {}", ms(took), ms(ended)),
    }
    .keep();
}
