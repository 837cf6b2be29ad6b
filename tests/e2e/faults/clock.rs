//! A clock that jumps. Deadlines go by another one; certificates are judged anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::scene::{Bystanders, CALM, Row, SICK, Scene};
use crate::harness::{Load, SOON, Socket, World, doorward, free_port, promised, wait_until};
use crate::machine_limits::{descriptors, processor_time};

/// Debian's libfaketime, package `libfaketime`.
fn faketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.is_file()).expect("libfaketime is not installed; `tests/run` installs it")
}

/// The year that the process believes in, by its log.
fn year(scene: &Scene) -> i64 {
    let since = scene.lines();
    scene.ask("/").unwrap();
    wait_until("a line of the log", SOON, || scene.lines() > since);
    let line = scene.proxy.running.stderr()[since].clone();
    line.split('-').next().and_then(|year| year.parse().ok()).unwrap_or_else(|| panic!("no year in {line:?}"))
}

#[test]
fn a_clock_that_jumps_ends_nothing_and_has_certificates_judged_anew() {
    let world = World::new();
    let around = Duration::from_secs(400 * 86_400);
    let pair = world.issue(&[CALM, SICK], |params| {
        params.not_before = (SystemTime::now() - around).into();
        params.not_after = (SystemTime::now() + around).into();
    });
    world.write("site.pem", &pair.cert);
    world.write("site.key", &pair.key);
    let clock = world.write("clock", "+0\n");
    let set = |path: &Path, offset: &str| {
        // In one step: half of it would be another time.
        let aside = path.with_extension("new");
        fs::write(&aside, format!("{offset}\n")).unwrap();
        fs::rename(aside, path).unwrap();
    };
    let mut command = doorward();
    command.env("LD_PRELOAD", faketime()).env("FAKETIME_TIMESTAMP_FILE", &clock);
    command.env("FAKETIME_NO_CACHE", "1").env("DONT_FAKE_MONOTONIC", "1");
    let site = format!("upstream = \"http://127.0.0.1:{}\"\n", free_port());
    let scene = Scene::start_command(world, "", &site, command);
    let now = year(&scene);
    let others = Bystanders::start(&scene);
    let handshakes = Load::start(&scene.world, &scene.proxy, CALM, 1);
    let mut idle = Socket::open(&scene.world, &scene.proxy, CALM, "/idle");
    let before = descriptors(&scene.proxy);
    for (offset, years) in [
        ("+1d", 0),
        ("-1d", 0),
        ("+3650d", 10),
        ("+0", 0),
        ("-3650d", -10),
        ("+0", 0),
        ("-20400d", 1970 - now),
        ("+0", 0),
    ] {
        set(&clock, offset);
        wait_until(&format!("{offset} is seen"), SOON, || (year(&scene) - now - years).abs() <= 1);
        let out_of_time = years.abs() > 2;
        let since = scene.lines();
        // A file that is written makes it look; else it does after 30 s.
        fs::write(scene.world.path("site.pem"), &pair.cert).unwrap();
        if out_of_time {
            scene.tells(since, "the certificate in service is not as it should be");
        }
        others.go_on();
        handshakes.goes_on(3);
        idle.echoes(offset);
        if !out_of_time {
            wait_until("nothing is held against the certificate", SOON, || {
                let said = scene.proxy.running.stderr();
                let last = said.iter().rfind(|line| line.contains("the certificate"));
                last.is_none_or(|line| line.contains("in order again") || line.contains("a new certificate"))
            });
        }
    }
    let (answered, _) = handshakes.stop();
    let others = others.stop();
    idle.echoes("still here");
    // Nothing spins behind all that.
    set(&clock, "+3650d");
    let (begun, spent) = (Instant::now(), processor_time(&scene.proxy));
    std::thread::sleep(Duration::from_secs(2));
    let spent = processor_time(&scene.proxy) - spent;
    assert!(spent < promised(Duration::from_millis(200)), "{spent:?} of processor time in {:?}", begun.elapsed());
    assert_eq!(scene.sockets(), 1);
    scene.is_clean("a clock that jumps", before);
    Row {
        part: "5-clock",
        number: 0,
        injected: "the clock jumps: a day and ten years forth and back, to 1970",
        seen: format!("{answered} full handshakes, all well; no socket, no connection ends"),
        told: "that the certificate is out of its time, and that it is in order again".to_owned(),
        others,
        well: "nothing to mend".to_owned(),
    }
    .keep();
}
