//! Disks that are full, and log files that are none.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;

use super::scene::{Bystanders, Row, Scene, ms};
use crate::fpm_load::SmallDisk;
use crate::harness::{BackEnd, SOON, World, doorward, finish, is_root_for, promised, wait_until};
use crate::machine_limits::descriptors;

const RESPONDS: &str = "[[site.sick.route]]\npath = \"/*\"\nrespond = { status = 200, body = \"well\" }\n";

#[test]
fn an_access_log_whose_disk_is_full_loses_lines_and_no_request() {
    if !is_root_for("mounting a disk") {
        return;
    }
    let world = World::new();
    let disk = SmallDisk::at(world.path("logs"));
    let (log, filler) = (world.path("logs/access.log"), world.path("logs/filler"));
    let scene = Scene::start(world, &format!("[log]\naccess = {log:?}\n"), RESPONDS);
    let others = Bystanders::start(&scene);
    let lines = || fs::read_to_string(&log).unwrap().lines().count();
    wait_until("lines in the log", SOON, || lines() > 3);
    let (before, since) = (descriptors(&scene.proxy), scene.lines());
    let mut full = OpenOptions::new().create(true).append(true).open(&filler).unwrap();
    while full.write_all(&[b'x'; 4096]).is_ok() {}
    wait_until("the disk is full", SOON, || full.write_all(b"x").is_err());
    scene.tells(since, "cannot write the access log");
    others.go_on();
    let seen = scene.ask("/").unwrap();
    assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
    let told = scene.told(since, "cannot write the access log");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("lines=") && told[0].contains("No space left"), "{told:?}");
    fs::remove_file(&filler).unwrap();
    drop(full);
    let (mended, then) = (Instant::now(), lines());
    wait_until("lines again", SOON, || lines() > then + 1);
    let took = mended.elapsed();
    assert!(took < promised(Duration::from_millis(1500)), "{took:?}");
    // Whole lines: what was torn off by the full disk ends before the next begins.
    scene.ask("/marker").unwrap();
    wait_until("a whole line", SOON, || {
        fs::read_to_string(&log).unwrap().lines().any(|line| line.starts_with("127.0.0.1 ") && line.contains("/marker"))
    });
    scene.is_clean("a full disk", before);
    Row {
        part: "3-disks",
        number: 0,
        injected: "the disk of the access log is full",
        seen: "200".to_owned(),
        told: "one line a minute, with the number of lines lost".to_owned(),
        others: others.stop(),
        well: format!("lines again after {}", ms(took)),
    }
    .keep();
    drop(scene);
    drop(disk);
}

#[test]
fn a_log_that_cannot_be_opened_refuses_the_start_and_keeps_a_running_process_at_its_old_file() {
    let world = World::new();
    let (folder, fifo, log) = (world.path("folder"), world.path("fifo"), world.path("access.log"));
    fs::create_dir(&folder).unwrap();
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let calm = BackEnd::start();
    for (path, why) in
        [(&folder, "Is a directory"), (&fifo, "No such device or address"), (&world.path("no/such"), "No such file")]
    {
        for key in ["access", "output"] {
            let toml = super::scene::toml(&world, &calm, &format!("[log]\n{key} = {path:?}\n"), RESPONDS);
            let file = world.write("refused.toml", toml);
            let begun = Instant::now();
            let end = finish("doorward run", doorward().args(["run", "-c"]).arg(&file));
            assert_eq!(end.code, 1, "{key} at {}: {}", path.display(), end.said());
            assert!(end.said().contains(why) && end.said().contains(path.to_str().unwrap()), "{key}: {}", end.said());
            assert!(begun.elapsed() < promised(Duration::from_secs(3)), "{key}: {:?}", begun.elapsed());
        }
    }
    let scene = Scene::start(world, &format!("[log]\naccess = {log:?}\n"), RESPONDS);
    let others = Bystanders::start(&scene);
    let before = descriptors(&scene.proxy);
    let has = |path: &std::path::Path, what: &str| fs::read_to_string(path).is_ok_and(|text| text.contains(what));
    let asks_into = |what: &str, path: &std::path::Path| {
        scene.ask(what).unwrap();
        wait_until(&format!("{what} in {}", path.display()), SOON, || has(path, what));
    };
    asks_into("/first", &log);
    // Renamed away, and something else in its place.
    let old = scene.world.path("access.log.1");
    fs::rename(&log, &old).unwrap();
    fs::create_dir(&log).unwrap();
    let since = scene.lines();
    scene.proxy.signal(Signal::USR1);
    scene.tells(since, "cannot open the access log");
    asks_into("/kept", &old);
    fs::remove_dir(&log).unwrap();
    mkfifoat(CWD, &log, Mode::RUSR | Mode::WUSR).unwrap();
    scene.proxy.signal(Signal::USR1);
    wait_until("told again", SOON, || scene.told(since, "cannot open the access log").len() == 2);
    asks_into("/still-kept", &old);
    // Removed: lines go into a file without a name, until it is made anew.
    fs::remove_file(&log).unwrap();
    fs::remove_file(&old).unwrap();
    scene.ask("/nowhere").unwrap();
    let mended = Instant::now();
    scene.proxy.signal(Signal::USR1);
    wait_until("a new file", SOON, || log.exists());
    asks_into("/new", &log);
    let took = mended.elapsed();
    scene.is_clean("logs that are none", before);
    Row {
        part: "3-disks",
        number: 1,
        injected: "the access log becomes a directory, a FIFO that nobody reads, nothing (USR1 each time)",
        seen: "200; at the start: exit code 1 with the path and the reason".to_owned(),
        told: "one line each; the old file stays in use".to_owned(),
        others: others.stop(),
        well: format!("{} after USR1", ms(took)),
    }
    .keep();
}
