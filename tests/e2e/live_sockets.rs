//! `doorward sockets`: what is open, and closing some of it.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{
    BackEnd, Finished, Proxy, SOON, Socket, World, doorward, finish, is_root_for, program, wait_for, wait_until,
};

fn site(name: &str, host: &str, to: &str) -> String {
    format!(
        "[site.{name}]\nhosts = [{host:?}]\nupstream = {to:?}\n[site.{name}.websocket]\npreset = \"any\"\nto = {to:?}\n"
    )
}

/// A proxy whose control socket is in the test's own folder.
struct Scene {
    world: World,
    app: BackEnd,
    chat: BackEnd,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Scene {
        let (world, app, chat) = (World::new(), BackEnd::start(), BackEnd::start());
        let toml = Scene::toml(&world, &app, &chat);
        let proxy = Proxy::start_with(&world, &toml, |command| _ = command.env("RUNTIME_DIRECTORY", world.path("run")));
        Scene { world, app, chat, proxy }
    }

    fn toml(world: &World, app: &BackEnd, chat: &BackEnd) -> String {
        let sites = [site("app", "app.test", &app.url()), site("chat", "chat.app.test", &chat.url())].concat();
        format!("{}[log]\nlevel = \"debug\"\n{sites}", world.head())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = doorward();
        command.arg("sockets").args(words).arg("-c").arg(self.world.path("proxy.toml"));
        command.env("RUNTIME_DIRECTORY", self.world.path("run"));
        command
    }

    fn sockets(&self, words: &[&str]) -> Finished {
        finish("doorward sockets", &mut self.command(words))
    }

    fn said(&self, words: &[&str]) -> String {
        let end = self.sockets(words);
        assert_eq!(end.code, 0, "{words:?}: {}", end.said());
        end.stdout
    }

    fn rows(&self, words: &[&str]) -> Vec<Value> {
        let said = self.said(&[&["--json"], words].concat());
        said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    fn ids(&self, words: &[&str]) -> Vec<String> {
        self.rows(words).iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    }

    fn open(&self, host: &str, path: &str) -> Socket {
        Socket::open(&self.world, &self.proxy, host, path)
    }

    /// The control socket of the running server.
    fn control(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.world.path("run")).unwrap();
        entries
            .find_map(|entry| Some(entry.ok()?.path()).filter(|path| path.extension().is_some_and(|end| end == "sock")))
            .unwrap()
    }
}

#[test]
fn every_live_socket_is_shown_with_what_went_through_it() {
    let scene = Scene::new();
    assert_eq!(scene.said(&[]), "no live sockets\n");
    let mut first = scene.open("app.test", "/live?token=secret");
    let _second = scene.open("chat.app.test", "/room");
    first.echoes("hello");
    first.echoes("again");
    let rows = scene.rows(&[]);
    assert_eq!(rows.len(), 2, "{rows:?}");
    let row = &rows[0];
    for (name, value) in [
        ("site", "app"),
        ("client", "127.0.0.1"),
        ("upstream", &scene.app.url()),
        ("path", "/live"),
        ("version", "HTTP/1.1"),
    ] {
        assert_eq!(row[name], value, "{name}: {row}");
    }
    // Twice five bytes, masked on their way up: six bytes of header, and two on their way down.
    for (name, value) in
        [("bytes_received", 22), ("bytes_sent", 14), ("messages_received", 2), ("messages_sent", 2), ("idle", 0)]
    {
        assert_eq!(row[name], value, "{name}: {row}");
    }
    assert!(row["duration"].as_f64().is_some_and(|age| age > 0.0 && age < 60.0), "{row}");
    assert_eq!(rows[1]["messages_sent"], 0);
    let text = scene.said(&[]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("ID  SITE  CLIENT"), "{text}");
    assert!(lines[1].contains("app ") && lines[1].contains("/live") && lines[1].contains("22 B"), "{text}");
    assert_eq!(lines[4], "2 sockets: app 1, chat 1", "{text}");
    assert!(!text.contains("secret"), "{text}");
    drop(first);
    wait_until("a closed socket leaves the list", SOON, || scene.ids(&[]).len() == 1);
}

#[test]
fn filters_choose_and_all_must_hold() {
    let scene = Scene::new();
    let _sockets =
        [scene.open("app.test", "/live/a"), scene.open("app.test", "/live/b"), scene.open("chat.app.test", "/live/a")];
    let all = scene.ids(&[]);
    let back_end = scene.chat.url();
    for (words, chosen) in [
        (&["--site", "app"][..], &all[..2]),
        (&["--path", "/live/b"], &all[1..2]),
        (&["--path", "/live/a", "--site", "chat"], &all[2..]),
        (&["--back-end", &back_end], &all[2..]),
        (&["--back-end", back_end.trim_start_matches("http://")], &all[2..]),
        (&["--client", "127.0.0.0/8"], &all[..]),
        (&["--client", "10.0.0.0/8"], &[]),
        (&["--older", "1h"], &[]),
        (&["--idle", "0s", "--older", "1ms"], &all[..]),
        (&["--limit", "2"], &all[..2]),
        (&["--site", "nobody"], &[]),
    ] {
        assert_eq!(scene.ids(words), chosen, "{words:?}");
    }
    assert_eq!(scene.said(&["--site", "nobody"]), "none of 3 live sockets is chosen\n");
    assert!(scene.said(&["--limit", "2"]).ends_with("3 sockets: app 2, chat 1\nshown are the 2 oldest\n"));
    let end = scene.sockets(&["--client", "localhost"]);
    assert_eq!(end.code, 1);
    assert!(end.stderr.contains("10.0.0.0/8"), "{}", end.said());
    // A reader that leaves is no failure.
    let mut child = scene.command(&["--json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_socket_is_closed_by_its_id_and_the_others_stay() {
    let scene = Scene::new();
    let (mut a, mut b) = (scene.open("app.test", "/a"), scene.open("app.test", "/b"));
    let ids = scene.ids(&[]);
    assert_eq!(scene.said(&["close", &ids[0]]), "1 socket is closed with 1012\n");
    assert_eq!(a.closed(), Some(1012));
    drop(a);
    b.echoes("still here");
    wait_until("the closed one leaves the list", SOON, || scene.ids(&[]) == [ids[1].clone()]);
    // It is told, and what can be done is done.
    let end = scene.sockets(&["close", &ids[0], &ids[1], "4711", "--code", "4001"]);
    assert_eq!(end.code, 1, "{}", end.said());
    assert_eq!(end.stdout, "1 socket is closed with 4001\n");
    assert_eq!(end.stderr, format!("no socket has the id {}, 4711: it has closed, or never was\n", ids[0]));
    assert_eq!(b.closed(), Some(4001));
}

#[test]
fn sockets_are_closed_by_filter_over_a_time_and_never_all_by_mistake() {
    let scene = Scene::new();
    let mut app: Vec<Socket> = (0..3).map(|_| scene.open("app.test", "/a")).collect();
    let mut chat = scene.open("chat.app.test", "/b");
    let bare = scene.sockets(&["close"]);
    assert_eq!((bare.code, bare.stderr.as_str()), (1, "name sockets by id or filter; --all closes every one\n"));
    let wrong = scene.sockets(&["close", "--all", "--code", "1006"]);
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("1012 (restart)"), "{}", wrong.said());
    let misplaced = scene.sockets(&["--site", "app", "close", "--all"]);
    assert_eq!(misplaced.code, 1);
    assert!(misplaced.stderr.contains("behind `close`"), "{}", misplaced.said());
    assert_eq!(scene.said(&["close", "--site", "nobody"]), "no live socket is chosen: nothing to close\n");
    let start = Instant::now();
    let said = scene.said(&["close", "--site", "app", "--code", "1001", "--over", "10m"]);
    assert_eq!(said, "3 sockets are closed with 1001, over 3s\n");
    for socket in &mut app {
        assert_eq!(socket.closed(), Some(1001));
    }
    assert!(start.elapsed() < Duration::from_secs(5), "a few do not take the whole window");
    chat.echoes("still here");
    drop(app);
    wait_until("the closed ones leave the list", SOON, || scene.ids(&[]).len() == 1);
    assert_eq!(scene.said(&["close", "--all", "--over", "0s"]), "1 socket is closed with 1012\n");
    assert_eq!(chat.closed(), Some(1012));
}

#[test]
fn nobody_but_the_account_itself_may_ask() {
    let scene = Scene::new();
    let _socket = scene.open("app.test", "/a");
    let control = scene.control();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(control.parent().unwrap()), mode(&control)), (0o700, 0o600));
    if !is_root_for("another account's question") {
        return;
    }
    // The second fence: also where somebody has opened the folder and the file, the kernel's word counts.
    std::fs::set_permissions(scene.world.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(control.parent().unwrap(), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::set_permissions(&control, PermissionsExt::from_mode(0o777)).unwrap();
    let script = "const s = require('net').connect(process.argv[1]); s.write('sockets list {}\\n'); \
                  s.on('data', (d) => console.log('heard', String(d))); s.on('error', () => {}); \
                  s.on('close', () => console.log('closed'));";
    let ask = |user: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--clear-groups"]).arg(program(&["node"])).args(["-e", script]).arg(&control);
        finish("another account", command.current_dir("/")).stdout
    };
    assert!(ask("0").starts_with("heard ok"));
    assert_eq!(ask("65534"), "closed\n");
    assert_eq!(scene.ids(&[]).len(), 1, "others are answered as before");
}

#[test]
fn a_client_that_does_not_read_keeps_nobody_waiting() {
    let scene = Scene::new();
    let _socket = scene.open("app.test", "/a");
    let silent: Vec<UnixStream> = (0..5).map(|_| UnixStream::connect(scene.control()).unwrap()).collect();
    let mut deaf = UnixStream::connect(scene.control()).unwrap();
    deaf.write_all(b"sockets list {}\n").unwrap();
    let start = Instant::now();
    assert_eq!(scene.ids(&[]).len(), 1);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    drop(silent);
}

#[test]
fn sockets_of_an_old_process_are_shown_and_closed_too() {
    let mut scene = Scene::new();
    let mut old = scene.open("app.test", "/old");
    let pid = scene.proxy.running.pid().as_raw_nonzero();
    // What a process does that another has taken over from: it goes on answering beside its place.
    let control = scene.control();
    std::fs::rename(&control, format!("{}.{pid}", control.display())).unwrap();
    // And what one that died leaves behind.
    drop(UnixListener::bind(format!("{}.1", control.display())).unwrap());
    let toml = Scene::toml(&scene.world, &scene.app, &scene.chat);
    let run = scene.world.path("run");
    let new = Proxy::start_with(&scene.world, &toml, |command| _ = command.env("RUNTIME_DIRECTORY", run));
    let old_proxy = std::mem::replace(&mut scene.proxy, new);
    let mut new = scene.open("app.test", "/new");
    let ids = scene.ids(&[]);
    assert_eq!(ids, [format!("{pid}:0"), "0".to_owned()]);
    assert_eq!(scene.rows(&[])[0]["pid"], pid.get());
    let text = scene.said(&[]);
    assert!(text.contains(&format!("old process {pid}\n")), "{text}");
    assert!(text.contains(&format!("1 socket of the old process {pid}, which ends")), "{text}");
    assert_eq!(scene.said(&["close", &ids[0]]), "1 socket is closed with 1012\n");
    assert_eq!(old.closed(), Some(1012));
    new.echoes("still here");
    let end = scene.sockets(&["close", "1:0"]);
    assert_eq!((end.code, end.stderr.contains("no socket has the id 1:0")), (1, true), "{}", end.said());
    drop(old_proxy);
}

#[test]
fn without_a_server_it_says_so() {
    let world = World::new();
    let mut command = doorward();
    command.args(["sockets", "-c"]).arg(world.path("proxy.toml")).env("RUNTIME_DIRECTORY", world.path("run"));
    let end = finish("doorward sockets", &mut command);
    assert_eq!(end.code, 1);
    assert!(end.stderr.contains("no doorward runs with this file"), "{}", end.said());
}

#[test]
fn what_was_refused_to_sockets_is_counted() {
    let (world, back_end) = (World::new(), BackEnd::start());
    let toml = format!("{}{}origins = [\"self\"]\n", world.head(), site("app", "app.test", &back_end.url()));
    let run = world.path("run");
    let proxy = Proxy::start_with(&world, &toml, |command| _ = command.env("RUNTIME_DIRECTORY", &run));
    for _ in 0..2 {
        let foreign = [("origin", "https://evil.example")];
        let refused = Socket::try_open(&world, &proxy, "app.test", "/live", &foreign).err();
        assert_eq!(refused.map(|status| status.as_u16()), Some(403));
    }
    let mut command = doorward();
    command.args(["sockets", "-c"]).arg(world.path("proxy.toml")).env("RUNTIME_DIRECTORY", &run);
    let end = finish("doorward sockets", &mut command);
    assert_eq!(end.stdout, "no live sockets\nsince the start:\n  2  sockets refused by origins\n", "{}", end.said());
}

#[test]
fn a_configuration_is_freed_while_the_sockets_of_its_time_live() {
    let scene = Scene::new();
    let mut socket = scene.open("app.test", "/a");
    // A connection that is idle between two requests holds nothing either.
    let mut idle = scene.proxy.raw(&scene.world, "app.test");
    idle.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n");
    assert_eq!(idle.head().0, 200);
    for _ in 0..3 {
        let mut command = doorward();
        command.args(["reload", "-c"]).arg(scene.world.path("proxy.toml"));
        let end = finish("doorward reload", command.env("RUNTIME_DIRECTORY", scene.world.path("run")));
        assert_eq!(end.code, 0, "{}", end.said());
    }
    for freed in 1..=3 {
        wait_for("a configuration is freed", SOON, || {
            let told = format!("configuration {freed} is freed");
            scene.proxy.running.stderr().iter().any(|line| line.contains(&told)).then_some(())
        });
    }
    socket.echoes("still here");
    let said = scene.said(&["--limit", "0"]);
    assert_eq!(said, "1 socket: app 1\nshown are the 0 oldest\n");
    let mut byte = [0];
    idle.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").read_exact(&mut byte).unwrap();
}
