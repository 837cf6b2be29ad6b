//! wrk and h2load.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::STEP;
use crate::load::{Meter, Outcome, p99};
use crate::server::Server;

/// HTTP/1.1: so many connections that ask again as soon as they are answered.
pub fn wrk(server: &Server, host: &str, path: &str, connections: usize) -> Outcome {
    let mut command = Command::new("wrk");
    command.args(["--latency", "-t1"]).arg(format!("-c{connections}")).arg(format!("-d{}s", STEP.as_secs()));
    command
        .args(["-H", &format!("Host: {host}")])
        .arg(format!("https://127.0.0.1:{}{path}", server.ports.https.port()));
    command.env("OPENSSL_CONF", server.folder.join("openssl.cnf"));
    let meter = Meter::start(server);
    let said = run(&mut command);
    let usage = meter.stop();
    // Both are said where there were any.
    assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
    let find = |line: fn(&str) -> Option<&str>| {
        said.lines().find_map(|text| line(text.trim())).unwrap_or_else(|| panic!("{said}"))
    };
    let operations = find(|line| Some(line.split_once(" requests in ")?.0));
    let p99 = find(|line| line.strip_prefix("99%"));
    let operations = operations.parse().unwrap_or_else(|_| panic!("{said}"));
    Outcome { operations, usage, p99: time(p99.trim()) }
}

/// A time as wrk writes it.
fn time(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).expect("a unit"));
    let number: f64 = number.parse().unwrap_or_else(|_| panic!("{text}"));
    Duration::from_secs_f64(match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        _ => panic!("{text}"),
    })
}

/// HTTP/2: four connections of eight streams each.
pub fn h2load(server: &Server, path: &str) -> Outcome {
    // Doorward watches the folder of its certificate: what is written there costs it time.
    let log = server.folder.join("load/h2load.log");
    // It appends.
    let _ = std::fs::remove_file(&log);
    let mut command = Command::new("h2load");
    command.args(["-c4", "-m8", "-t1", "--groups=X25519"]).arg(format!("-D{}", STEP.as_secs()));
    command.arg("--log-file").arg(&log).env("OPENSSL_CONF", server.folder.join("openssl.cnf"));
    command.arg(format!("--connect-to=127.0.0.1:{}", server.ports.https.port()));
    command.arg(format!("https://a.test:{}{path}", server.ports.https.port()));
    let meter = Meter::start(server);
    let said = run(&mut command);
    let usage = meter.stop();
    for wanted in ["Application protocol: h2\n", "Cipher: TLS_AES_128_GCM_SHA256\n", "Server Temp Key: X25519 "] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    for none in [" 0 failed, 0 errored, 0 timeout", " 0 3xx, 0 4xx, 0 5xx"] {
        assert!(said.contains(none), "{none}: {said}");
    }
    // A line for each answer: when it was asked, the status, how long it took in microseconds.
    let text = std::fs::read_to_string(&log).unwrap();
    let times = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next()? == "200").then(|| Some(Duration::from_micros(fields.next()?.parse().ok()?)))?
    });
    let times: Vec<Duration> = times.collect();
    Outcome { operations: times.len() as u64, usage, p99: p99(times) }
}

/// What it printed. It ends by itself.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}
