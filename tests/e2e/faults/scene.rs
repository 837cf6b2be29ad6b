//! One site that suffers, one that must not notice, and the rows of the table.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{
    Asking, BackEnd, Load, Proxy, Raw, SOON, Socket, World, doorward, finish, promised, status, wait_until,
};
use crate::machine_limits::descriptors;

/// The site that must not notice.
pub const CALM: &str = "calm.app.test";
/// The site that suffers.
pub const SICK: &str = "sick.app.test";
/// Whoever is connected already waits no longer than this for an answer, whatever breaks for others.
const ANSWERED: Duration = Duration::from_secs(1);
/// What was broken and is mended serves again this soon.
pub const WELL: Duration = Duration::from_millis(1500);

/// A proxy with both sites.
pub struct Scene {
    /// The first to go: it knows the files of the world.
    pub proxy: Proxy,
    /// The test's folder.
    pub world: World,
    _calm: BackEnd,
}

impl Scene {
    /// With these keys of the site that suffers, and more of the file in front of the sites.
    pub fn start(world: World, head: &str, sick: &str) -> Scene {
        Scene::start_command(world, head, sick, doorward())
    }

    /// The same by a command of the caller's.
    pub fn start_command(world: World, head: &str, sick: &str, mut command: Command) -> Scene {
        let calm = BackEnd::start();
        command.env("RUNTIME_DIRECTORY", world.path("run"));
        let proxy = Proxy::start_command(&world, &toml(&world, &calm, head, sick), command);
        Scene { proxy, world, _calm: calm }
    }

    /// Lines of the program's log so far.
    pub fn lines(&self) -> usize {
        self.proxy.running.stderr().len()
    }

    /// Those since then that say this.
    pub fn told(&self, since: usize, says: &str) -> Vec<String> {
        self.proxy.running.stderr().into_iter().skip(since).filter(|line| line.contains(says)).collect()
    }

    /// Waits for a line that says this.
    pub fn tells(&self, since: usize, says: &str) {
        wait_until(&format!("a line that says {says:?}"), SOON, || !self.told(since, says).is_empty());
    }

    /// GET of the site that suffers, on a new connection: all that came.
    pub fn ask(&self, path: &str) -> Result<String, String> {
        let mut raw = Raw::try_tls(&self.world, self.proxy.https(), SICK, &[]).map_err(|error| error.to_string())?;
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: {SICK}\r\nConnection: close\r\n\r\n")).ended()
    }

    /// How long it takes from now until the site that suffers answers 200.
    pub fn well_after(&self, what: &str) -> Duration {
        let since = Instant::now();
        wait_until(&format!("{what}: all is well"), SOON, || {
            let well = self.ask("/").is_ok_and(|said| status(&said) == 200);
            if !well {
                // The log has room for 50 lines of a kind in a second, and some of it is wanted for the next fault.
                std::thread::sleep(Duration::from_millis(60));
            }
            well
        });
        let took = since.elapsed();
        assert!(took <= promised(WELL), "{what}: well {took:?} after it was mended");
        took
    }

    /// Sockets, as `doorward sockets` counts them.
    pub fn sockets(&self) -> usize {
        let mut command = doorward();
        command.args(["sockets", "--json", "-c"]).arg(self.world.path("proxy.toml"));
        let said = finish("doorward sockets", command.env("RUNTIME_DIRECTORY", self.world.path("run")));
        assert_eq!(said.code, 0, "{}", said.said());
        said.stdout.lines().count()
    }

    /// No more descriptors than before, but for the connections that are kept to a back end; and no panic.
    pub fn is_clean(&self, what: &str, descriptors_before: usize) {
        let kept = 4;
        let mut now = 0;
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            now = descriptors(&self.proxy);
            if now <= descriptors_before + kept {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(now <= descriptors_before + kept, "{what}: {descriptors_before} descriptors before, {now} now");
        assert_eq!(self.told(0, "panicked").len() + self.told(0, "please report").len(), 0, "{what}");
    }
}

/// The configuration of a scene.
pub fn toml(world: &World, calm: &BackEnd, head: &str, sick: &str) -> String {
    let to = calm.url();
    format!(
        "{}{head}\n[site.calm]\nhosts = [{CALM:?}]\nupstream = {to:?}\n[site.calm.websocket]\npreset = \"any\"\n\
         to = {to:?}\n[site.sick]\nhosts = [{SICK:?}]\n{sick}\n",
        world.head()
    )
}

/// Clients of the site that must not notice: one that asks every few milliseconds on one connection, and a socket.
pub struct Bystanders {
    load: Load,
    stop: Arc<AtomicBool>,
    socket: JoinHandle<(usize, Duration)>,
}

impl Bystanders {
    /// They are under way when this returns.
    pub fn start(scene: &Scene) -> Bystanders {
        let load = Load::asking(&scene.world, &scene.proxy, CALM, 1, Asking::KeepAlive);
        let mut socket = Socket::open(&scene.world, &scene.proxy, CALM, "/live");
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let socket = std::thread::spawn(move || {
            let (mut echoes, mut slowest) = (0, Duration::ZERO);
            while !ended.load(Ordering::Relaxed) {
                let since = Instant::now();
                socket.echoes("still here");
                (echoes, slowest) = (echoes + 1, slowest.max(since.elapsed()));
                std::thread::sleep(Duration::from_millis(20));
            }
            (echoes, slowest)
        });
        load.goes_on(3);
        Bystanders { load, stop, socket }
    }

    /// They have been served since this was called.
    pub fn go_on(&self) {
        self.load.goes_on(3);
        assert!(!self.socket.is_finished(), "the socket has ended");
    }

    /// Not one of them failed, and none waited for long; what they did.
    pub fn stop(self) -> String {
        self.stop_within(ANSWERED)
    }

    /// The same where the whole process stood still for a while.
    pub fn stop_within(self, limit: Duration) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let slowest = self.load.slowest();
        let (answered, _) = self.load.stop();
        let (echoes, echo) = self.socket.join().expect("the socket of a bystander");
        let slowest = slowest.max(echo);
        assert!(slowest <= promised(limit), "a bystander waited for {slowest:?}");
        format!("{answered} requests and {echoes} messages, the slowest {slowest:.0?}")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "access log:\n{}",
                self.proxy.running.stdout().iter().rev().take(20).fold(String::new(), |mut all, line| {
                    let _ = writeln!(all, "{line}");
                    all
                })
            );
        }
    }
}

/// A row of the table.
pub struct Row<'a> {
    /// The part of the table: rows are sorted by it, and by their number.
    pub part: &'a str,
    /// See `part`.
    pub number: usize,
    /// What was done.
    pub injected: &'a str,
    /// What the client saw whom it hit.
    pub seen: String,
    /// What the log says.
    pub told: String,
    /// What became of the others.
    pub others: String,
    /// When all was well again.
    pub well: String,
}

impl Row<'_> {
    /// Leaves it in tests/artifacts/faults, and prints it.
    pub fn keep(&self) {
        let Row { part, number, injected, seen, told, others, well } = self;
        let line = format!("| {injected} | {seen} | {told} | {others} | {well} |\n");
        eprint!("{line}");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/artifacts/faults");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{part}-{number:02}.row")), line).unwrap();
    }
}

/// `12 ms`, for the table.
pub fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
