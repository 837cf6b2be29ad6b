//! slowhttptest and h2load.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Became;
use crate::server::Server;

/// slowhttptest with 500 connections, for fifteen seconds.
pub fn slow(server: &Server, mode: &[&str]) -> Became {
    let path = if mode.contains(&"-X") { "large" } else { "" };
    let mut command = Command::new("slowhttptest");
    command.args(mode).args(["-c", "500", "-r", "200", "-l", "15", "-p", "3", "-u"]);
    command.arg(format!("https://127.0.0.1:{}/{path}", server.https.port()));
    let said = run(&mut command);
    if said.contains("No open connections left") {
        let after = said.split("Test ended on ").nth(1).and_then(|rest| rest.split("th").next()).unwrap_or("?");
        return Became { text: format!("all closed after {after} s"), thrown: 500, ..Became::default() };
    }
    // The last state that it printed, between colours.
    let count = |name: &str| {
        let line = said.lines().rev().find(|line| line.contains(name)).unwrap_or_default();
        let words: String =
            line.split(name).nth(1).unwrap_or_default().split('m').next_back().unwrap_or_default().into();
        words.trim_matches(|c: char| !c.is_ascii_digit()).to_owned()
    };
    let number = |name: &str| count(name).parse::<u64>().unwrap_or(0);
    let text = format!("{} open, {} closed after 15 s", count("connected:"), count("closed:"));
    Became { text, thrown: number("connected:") + number("closed:"), ..Became::default() }
}

/// h2load for six seconds. It waits for connections that are not answered without end, unless it is told not to.
pub fn h2load(server: &Server, connections: usize, streams: usize) -> Became {
    let mut command = Command::new("h2load");
    command.args(["-D6", "-T20", "-N10"]).arg(format!("-c{connections}")).arg(format!("-m{streams}"));
    command.arg(format!("--connect-to=127.0.0.1:{}", server.https.port()));
    command.arg(format!("https://a.test:{}/x", server.https.port()));
    let said = run(&mut command);
    let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    let rate = line("finished in").split(", ").nth(1).unwrap_or("nothing").to_owned();
    let count = |word: &str| {
        let line = line("requests:");
        let part = line.trim_start_matches("requests: ").split(", ").find(|part| part.ends_with(word));
        part.and_then(|part| part.split(' ').next()?.parse::<u64>().ok())
    };
    let failed = count("failed").map_or_else(|| "unknown".to_owned(), |failed| failed.to_string());
    let text = format!("{rate}, {failed} failed");
    Became { text, thrown: count("succeeded").unwrap_or(0), ..Became::default() }
}

/// What it printed. It has to end by itself, well, and within a minute.
fn run(command: &mut Command) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut output = child.stdout.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        output.read_to_end(&mut said).map(|_| String::from_utf8_lossy(&said).into_owned())
    });
    let end = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= end {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{command:?} never ends; it said: {}", said.join().unwrap().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = said.join().unwrap().unwrap();
    assert!(status.success(), "{command:?}: {status}: {said}");
    said
}
