//! PHP-FPM that breaks.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::scene::{Bystanders, Row, SICK, Scene, ms};
use crate::harness::{Fpm, Raw, SOON, World, promised, status, wait_until};
use crate::machine_limits::descriptors;

const SCRIPT: &str = r#"<?php
switch (parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH)) {
    case '/pid':
        echo getmypid();
        break;
    case '/begin':
        header('X-Pid: ' . getmypid());
        echo str_repeat('begun ', 20000);
        flush();
        sleep(20);
        break;
    case '/before':
        file_put_contents($_GET['file'], getmypid());
        sleep(20);
        break;
    case '/head':
        header('X-Done: yes');
        http_response_code((int) $_GET['status']);
        echo 'x';
        while (ob_get_level()) {
            ob_end_flush();
        }
        flush();
        sleep(4);
        break;
    default:
        echo 'well';
}
"#;

fn start(children: usize) -> (Fpm, Scene) {
    let world = World::new();
    let fpm = Fpm::pool(&world, children, "");
    world.write("app/index.php", SCRIPT);
    let (root, to) = (world.path("app"), fpm.address.clone());
    let site = format!(
        "root = {root:?}\nphp = {{ to = {to:?}, children = {children}, queue = 2, queue_timeout = \"500ms\", \
         restart_window = \"300ms\" }}\n"
    );
    (fpm, Scene::start(world, "", &site))
}

fn kill(pid: &str, signal: Signal) {
    kill_process(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), signal).unwrap();
}

fn body(said: &str) -> &str {
    said.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[test]
fn a_pool_that_is_killed_or_loses_its_socket_is_told_and_back_soon() {
    let (mut fpm, scene) = start(2);
    scene.well_after("at first");
    let others = Bystanders::start(&scene);
    let before = descriptors(&scene.proxy);
    let socket = scene.world.path("fpm.sock");
    let mut rows = Vec::new();
    for (number, what) in
        ["PHP-FPM is killed: its socket is there, and nobody listens", "the socket of PHP-FPM is removed"]
            .into_iter()
            .enumerate()
    {
        let since = scene.lines();
        fpm.kill();
        if number == 1 {
            std::fs::remove_file(&socket).unwrap();
        }
        assert_eq!(socket.exists(), number == 0);
        let asked = Instant::now();
        for _ in 0..5 {
            let said = scene.ask("/").unwrap();
            assert!(matches!(status(&said), 502 | 503), "{what}: {said}");
        }
        let took = asked.elapsed() / 5;
        scene.tells(since, "fpm.sock");
        let lines = scene.told(since, "fpm.sock").len();
        assert!((5..=7).contains(&lines), "{what}: {:#?}", scene.told(since, ""));
        // As systemd would: what was left of the workers is gone.
        fpm.start_again();
        let well = scene.well_after(what);
        others.go_on();
        rows.push((number, what, format!("503 within {} each", ms(took)), well));
    }
    scene.is_clean("a pool that comes and goes", before);
    let others = others.stop();
    for (number, injected, seen, well) in rows {
        let told = "a line for each, one for its going and one for its return".to_owned();
        Row { part: "2-php", number, injected, seen, told, others: others.clone(), well: ms(well) }.keep();
    }
}

#[test]
fn a_worker_that_is_killed_in_the_middle_of_its_answer_is_seen_to_break_and_the_next_request_is_served() {
    let (_fpm, scene) = start(2);
    scene.well_after("at first");
    let (others, before, since) = (Bystanders::start(&scene), descriptors(&scene.proxy), scene.lines());
    for _ in 0..3 {
        let mut raw = scene.proxy.raw(&scene.world, SICK);
        raw.send(format!("GET /begin HTTP/1.1\r\nHost: {SICK}\r\n\r\n"));
        let (code, head) = raw.head();
        assert_eq!(code, 200, "{head}");
        let pid = head.lines().find_map(|line| line.to_lowercase().strip_prefix("x-pid: ").map(str::to_owned));
        kill(&pid.unwrap(), Signal::KILL);
        let rest = raw.ended().expect("the end of an answer whose script was killed");
        assert!(!rest.ends_with("0\r\n\r\n"), "the answer looks whole");
    }
    wait_until("a line for each", SOON, || scene.told(since, "the answer broke off").len() == 3);
    // Nothing was said yet: a POST is not run again, and its client is told.
    let file = scene.world.path("before.pid");
    let mut raw = scene.proxy.raw(&scene.world, SICK);
    let target = format!("/before?file={}", file.display());
    raw.send(format!("POST {target} HTTP/1.1\r\nHost: {SICK}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    let mut pid = String::new();
    wait_until("the script runs", SOON, || {
        pid = std::fs::read_to_string(&file).unwrap_or_default();
        !pid.is_empty()
    });
    kill(&pid, Signal::KILL);
    let said = raw.ended().unwrap();
    assert_eq!(status(&said), 502, "{said}");
    let well = scene.well_after("killed workers");
    scene.is_clean("killed workers", before);
    Row {
        part: "2-php",
        number: 2,
        injected: "PHP worker is killed: before its answer, in the middle of it",
        seen: "502 (a POST runs once); 200, visibly cut".to_owned(),
        told: "a line for each".to_owned(),
        others: others.stop(),
        well: ms(well),
    }
    .keep();
}

#[test]
fn workers_that_all_hang_are_a_quick_503_for_who_comes_behind_them() {
    let (_fpm, scene) = start(1);
    scene.well_after("at first");
    let (others, before, since) = (Bystanders::start(&scene), descriptors(&scene.proxy), scene.lines());
    let said = scene.ask("/pid").unwrap();
    let pid =
        body(&said).lines().find(|line| line.len() > 2 && line.bytes().all(|b| b.is_ascii_digit())).unwrap().to_owned();
    kill(&pid, Signal::STOP);
    let asked = Instant::now();
    for _ in 0..4 {
        let said = scene.ask("/").unwrap();
        assert_eq!(status(&said), 503, "{said}");
        assert!(said.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{said}");
    }
    let took = asked.elapsed() / 4;
    assert!(took < promised(Duration::from_millis(1200)), "{took:?}");
    scene.tells(since, "fpm.sock");
    kill(&pid, Signal::CONT);
    let well = scene.well_after("hanging workers");
    scene.is_clean("hanging workers", before);
    Row {
        part: "2-php",
        number: 3,
        injected: "all PHP workers hang",
        seen: format!("503 with Retry-After within {} (`queue_timeout` 500 ms)", ms(took)),
        told: "a line for each".to_owned(),
        others: others.stop(),
        well: ms(well),
    }
    .keep();
}

#[test]
fn an_answer_without_a_body_does_not_wait_for_its_script() {
    let (_fpm, scene) = start(4);
    scene.well_after("at first");
    for (method, code) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
        let mut raw: Raw = scene.proxy.raw(&scene.world, SICK);
        let asked = Instant::now();
        raw.send(format!("{method} /head?status={code} HTTP/1.1\r\nHost: {SICK}\r\n\r\n"));
        let (status, head) = raw.head();
        assert_eq!(status, code, "{head}");
        assert!(head.to_lowercase().contains("\r\nx-done: yes\r\n"), "{head}");
        assert!(asked.elapsed() < promised(Duration::from_millis(1500)), "{method} {code}: {:?}", asked.elapsed());
    }
}
