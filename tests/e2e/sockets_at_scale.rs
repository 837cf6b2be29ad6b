//! Thousands of live sockets over reloads, removals and drains. Small by default;
//! `DOORWARD_FULL=1 cargo test --release --test e2e sockets_at_scale:: -- --nocapture --test-threads=1` takes minutes.

use std::time::{Duration, Instant};

use crate::harness::{
    Crowd, EchoServer, Manner, Proxy, World, doorward, finish, is_full, per_second, promised, wait_until,
};

/// The figure of the whole test, or that of a quick one.
fn full_or<T>(full: T, quick: T) -> T {
    if is_full() { full } else { quick }
}

/// How far a second may be from the mean: ±20 %. The quick test has so few in one that a hiccup of the machine is more.
fn assert_even(what: &str, least: usize, most: usize, mean: f64) {
    let slack = full_or(0.2, 0.4);
    eprintln!("{what}: {least} to {most} closes per second, {mean:.1} in the mean");
    assert!(least as f64 >= mean * (1.0 - slack), "{what}: {least} in one second, {mean:.1} in the mean");
    assert!(most as f64 <= mean * (1.0 + slack), "{what}: {most} in one second, {mean:.1} in the mean");
}

const HOSTS: [&str; 3] = ["one.app.test", "two.app.test", "three.app.test"];

fn site(name: &str, host: &str, to: &str, more: &str) -> String {
    format!(
        "[site.{name}]\nhosts = [{host:?}]\nupstream = {to:?}\n{more}[site.{name}.websocket]\npreset = \"any\"\nto = {to:?}\n"
    )
}

fn head(world: &World, window: Duration) -> String {
    world.head().replace("shutdown_grace = \"2s\"", &format!("shutdown_grace = \"{}s\"", window.as_secs()))
}

/// `doorward sockets` with these words behind it.
fn sockets(world: &World, words: &[&str]) -> String {
    let mut command = doorward();
    command.args(["sockets", "-c"]).arg(world.path("proxy.toml")).args(words).current_dir(world.path(""));
    let end = finish("doorward sockets", &mut command);
    assert_eq!(end.code, 0, "{words:?}: {}", end.said());
    end.stdout
}

/// Memory of the process that no file stands behind. What it shares of its program depends on how many run at the time.
fn own_memory(proxy: &Proxy) -> u64 {
    proxy.memory("RssAnon")
}

fn children(proxy: &Proxy) -> String {
    let tasks = format!("/proc/{}/task", proxy.running.pid().as_raw_nonzero());
    let tasks = std::fs::read_dir(tasks).unwrap();
    tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()).collect()
}

/// Files that cannot come into force, each in its own way.
fn broken(world: &World, good: &str, round: usize) -> String {
    match round % 4 {
        0 => format!("{good}\n[site.broken"),
        1 => format!("{good}\n[site.more]\nhosts = [\"more.app.test\"]\nupstraem = \"http://127.0.0.1:1\"\n"),
        2 => good.replace(&format!("{:?}", world.path("site.pem")), "\"/nowhere/site.pem\""),
        _ => String::new(),
    }
}

#[test]
fn sockets_outlast_a_hundred_reloads_and_only_those_of_a_removed_site_close() {
    let world = World::new();
    let (count, reloads, time, window) = full_or(
        (5000, 100, Duration::from_secs(60), Duration::from_secs(30)),
        (300, 20, Duration::from_secs(8), Duration::from_secs(5)),
    );
    world.certificate("two", &[HOSTS[1]]);
    world.certificate("other", &[HOSTS[1], "*.app.test"]);
    let servers: Vec<EchoServer> = (0..3).map(|_| EchoServer::tcp()).collect();
    let own = |name: &str| {
        format!(
            "tls = {{ cert = {:?}, key = {:?} }}\n",
            world.path(format!("{name}.pem")),
            world.path(format!("{name}.key"))
        )
    };
    let file = |pair: &str, extra: &str| {
        let one = site("one", HOSTS[0], &servers[0].url, "");
        let two = site("two", HOSTS[1], &servers[1].url, &own(pair));
        let three = site("three", HOSTS[2], &servers[2].url, "");
        format!("{}{one}{two}{three}{extra}", head(&world, window))
    };
    let proxy = Proxy::start(&world, &file("two", ""));
    let groups = HOSTS.map(|host| (host, count / 3));
    let total = count / 3 * 3;
    let crowd = Crowd::open(&world, &proxy, &groups, Manner { talks: 4, pause: Duration::from_millis(400) });
    crowd.all_echo();
    // One reload beforehand: what a first one sets up for good is no growth.
    assert_eq!(proxy.reload().code, 0);
    crowd.all_echo();
    std::thread::sleep(Duration::from_secs(2));
    let (pid, before) = (proxy.running.pid(), own_memory(&proxy));
    let start = Instant::now();
    let mut refused = 0;
    for round in 0..reloads {
        let good = file(if round % 2 == 0 { "two" } else { "other" }, "");
        if round % 3 == 2 {
            proxy.rewrite(&broken(&world, &good, round / 3));
            let end = proxy.reload();
            assert_eq!(end.code, 1, "round {round}: {}", end.said());
            refused += 1;
        } else {
            let more = format!("more{round}.app.test");
            proxy.rewrite(&format!("{good}{}", site("more", &more, &servers[0].url, "")));
            // And on disk, behind the back of the file.
            world.certificate("two", &[HOSTS[1]]);
            let end = proxy.reload();
            assert_eq!(end.code, 0, "round {round}: {}", end.said());
        }
        let next = start + time / reloads as u32 * (round as u32 + 1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let took = start.elapsed();
    crowd.all_echo();
    // jemalloc gives back what is unused for a second.
    std::thread::sleep(Duration::from_secs(2));
    let after = own_memory(&proxy);
    let (echoes, bytes) = crowd.echoed();
    println!(
        "{total} sockets, {reloads} reloads ({refused} refused) in {:.1} s: {} closed, {echoes} echoes with {bytes} bytes \
         compared; {} KiB of memory before, {} KiB after ({:+.1} %)",
        took.as_secs_f64(),
        crowd.ended().len(),
        before / 1024,
        after / 1024,
        (after as f64 / before as f64 - 1.0) * 100.0,
    );
    assert!(crowd.ended().is_empty(), "{:?}", crowd.ended().first());
    assert_eq!(crowd.alive(), total);
    assert!(took < promised(time + Duration::from_secs(15)), "{took:?}");
    assert_eq!(proxy.running.pid(), pid);
    assert_eq!(children(&proxy), "", "one process, and none beside it");
    // Two megabytes are 5 % of a large crowd's and the noise of a small one.
    assert!(after < before + (before / 20).max(2 << 20), "{before} → {after} bytes");
    let said = sockets(&world, &["--limit", "0"]);
    assert!(said.contains(&format!("{total} sockets: one {0}, three {0}, two {0}", count / 3)), "{said}");
    assert!(!said.contains("configurations in memory"), "the first is not freed:\n{said}");
    remove_a_site(&proxy, &crowd, &file("two", ""), window, count / 3);
}

/// Takes the third site out of the file: its sockets close, and no others.
fn remove_a_site(proxy: &Proxy, crowd: &Crowd, file: &str, window: Duration, share: usize) {
    let without = file.split("[site.three]").next().unwrap();
    proxy.rewrite(without);
    let end = proxy.reload();
    assert_eq!(end.code, 0, "{}", end.said());
    wait_until("the removed site's sockets are closed", window + Duration::from_secs(15), || {
        crowd.assert_intact();
        crowd.ended().len() >= share
    });
    crowd.all_echo();
    let ended = crowd.ended();
    assert_eq!(ended.len(), share);
    assert!(ended.iter().all(|ended| ended.host == HOSTS[2] && ended.code == 1012));
    assert_eq!(crowd.alive(), 2 * share);
    let (least, most, mean) = per_second(&ended, window);
    assert_even("a removed site", least, most, mean);
}

#[test]
fn ten_thousand_sockets_are_closed_evenly_by_command() {
    let world = World::new();
    // A process may have 20,000 descriptors here, and each socket takes two on either side.
    let (count, window) = full_or((9300, Duration::from_secs(30)), (300, Duration::from_secs(5)));
    let (app, other) = (EchoServer::unix(world.path("app.sock")), EchoServer::unix(world.path("other.sock")));
    let sites = format!("{}{}", site("one", HOSTS[0], &app.url, ""), site("two", HOSTS[1], &other.url, ""));
    let proxy = Proxy::start(&world, &format!("{}{sites}", head(&world, window)));
    let groups = [(HOSTS[0], count), (HOSTS[1], 20)];
    let crowd = Crowd::open(&world, &proxy, &groups, Manner { talks: 50, pause: Duration::from_millis(500) });
    crowd.all_echo();
    let start = Instant::now();
    let lines = sockets(&world, &["--json"]).lines().count();
    println!("{lines} sockets listed in {:?}", start.elapsed());
    assert_eq!(lines, count + 20);
    let over = format!("{}s", window.as_secs());
    let start = Instant::now();
    let said = sockets(&world, &["close", "--site", "one", "--over", &over]);
    assert_eq!(said, format!("{count} sockets are closed with 1012, over {over}\n"));
    // Told at once, and it takes no time.
    assert!(start.elapsed() < promised(Duration::from_secs(2)), "{:?}", start.elapsed());
    wait_until("all of the site are closed", window + Duration::from_secs(15), || {
        crowd.assert_intact();
        crowd.ended().len() >= count
    });
    println!("{count} sockets closed within {:.1} s", start.elapsed().as_secs_f64());
    crowd.all_echo();
    let ended = crowd.ended();
    assert_eq!((ended.len(), crowd.alive()), (count, 20));
    assert!(ended.iter().all(|ended| ended.host == HOSTS[0] && ended.code == 1012));
    let (least, most, mean) = per_second(&ended, window);
    assert_even("by command", least, most, mean);
}
