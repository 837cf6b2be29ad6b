//! What this machine, this account and this run allow. What they do not is told at the end of `tests/run`.

use std::io::Write;
use std::panic::Location;
use std::path::Path;
use std::time::Duration;

/// What the house promises within `limit`. `DOORWARD_SLACK=3` allows three times as much: for a debug build on a machine
/// that others keep busy, where the scheduler and not the house takes the time.
pub fn promised(limit: Duration) -> Duration {
    let slack = std::env::var("DOORWARD_SLACK").ok();
    slack.map_or(limit, |slack| limit * slack.parse::<u32>().expect("DOORWARD_SLACK is a whole number"))
}

/// Whether everything is to be run at full length: `DOORWARD_FULL=1`.
pub fn is_full() -> bool {
    std::env::var("DOORWARD_FULL").is_ok_and(|value| !matches!(value.as_str(), "" | "0"))
}

/// Whether this is root. Where it is not, what would need it is told as not run.
#[track_caller]
pub fn is_root_for(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        not_run(&format!("{what}: for root alone"));
    }
    is_root
}

/// Notes that this test, or a part of it, is left out here: cargo shows nothing of a test that passes.
#[track_caller]
pub fn not_run(why: &str) {
    let thread = std::thread::current();
    let place = Location::caller();
    let test = match thread.name() {
        // Tests that run one after the other have no threads of their own.
        None | Some("main") => format!("{}:{}", place.file(), place.line()),
        Some(test) => format!("{}::{test}", env!("CARGO_CRATE_NAME")),
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/artifacts");
    std::fs::create_dir_all(&folder).expect("tests/artifacts");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("not-run"));
    file.and_then(|mut file| file.write_all(format!("{test}: {why}\n").as_bytes())).expect("tests/artifacts/not-run");
}
