//! `doorward run --watch`: the file is taken over when it changes on disk.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use crate::harness::{BackEnd, Proxy, SOON, Socket, World, doorward, wait_until};

fn site(name: &str, host: &str, to: &str) -> String {
    format!(
        "[site.{name}]\nhosts = [{host:?}]\nupstream = {to:?}\n[site.{name}.websocket]\npreset = \"any\"\nto = {to:?}\n"
    )
}

struct Scene {
    world: World,
    back_end: BackEnd,
    proxy: Proxy,
    socket: Socket,
}

impl Scene {
    fn new() -> Scene {
        let (world, back_end) = (World::new(), BackEnd::start());
        std::fs::create_dir(world.path("sites")).unwrap();
        let toml =
            format!("include = [\"sites/*.toml\"]\n{}{}", world.head(), site("app", "app.test", &back_end.url()));
        world.write("proxy.toml", toml);
        let mut command = doorward();
        command.args(["run", "--watch", "-c"]).arg(world.path("proxy.toml")).current_dir(world.path(""));
        let proxy = Proxy::watch(&world, crate::harness::Running::start("doorward", &mut command));
        let socket = Socket::open(&world, &proxy, "app.test", "/live");
        Scene { world, back_end, proxy, socket }
    }

    fn site(&self, name: &str) -> String {
        site(name, &format!("{name}.app.test"), &self.back_end.url())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.world.path(name)
    }

    fn count(&self, what: &str) -> usize {
        self.proxy.running.stderr().iter().filter(|line| line.contains(what)).count()
    }

    /// Waits until the `n`-th line with `what` is in the log, and checks that the socket is alive.
    fn told(&mut self, what: &str, n: usize) {
        wait_until(what, SOON, || self.count(what) >= n);
        self.socket.echoes("still here");
    }

    fn serves(&self, name: &str) -> bool {
        self.proxy.curl(&format!("{name}.app.test")).send("/").is_ok_and(|answer| answer.status == 200)
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[test]
fn files_that_change_are_taken_over_however_they_are_written() {
    let mut scene = Scene::new();
    let main = std::fs::read_to_string(scene.path("proxy.toml")).unwrap();
    // A new file that the pattern finds; then in place, by rename, deleted and written again.
    scene.world.write("sites/a.toml", scene.site("new"));
    scene.told("reloaded:", 1);
    assert!(scene.serves("new"));
    scene.world.write("proxy.toml", format!("{main}{}", scene.site("inplace")));
    scene.told("reloaded:", 2);
    assert!(scene.serves("inplace"));
    replace(&scene.path("proxy.toml"), &format!("{main}{}", scene.site("renamed")));
    scene.told("reloaded:", 3);
    assert!(scene.serves("renamed") && !scene.serves("inplace"));
    std::fs::remove_file(scene.path("sites/a.toml")).unwrap();
    scene.told("reloaded:", 4);
    assert!(!scene.serves("new"));
    scene.world.write("sites/a.toml", scene.site("again"));
    scene.told("reloaded:", 5);
    assert!(scene.serves("again"));
    // Nothing else was taken for a change.
    assert_eq!((scene.count("reloaded:"), scene.count("reload refused")), (5, 0));
}

#[test]
fn a_swapped_link_is_a_change() {
    let mut scene = Scene::new();
    // As Kubernetes mounts a ConfigMap: sites/a.toml -> ..data/a.toml, and ..data is swapped whole.
    let version = |scene: &Scene, name: &str| {
        scene.world.write(&format!("sites/..{name}/a.toml"), scene.site(name));
        let _ = std::fs::remove_file(scene.path("sites/..tmp"));
        symlink(format!("..{name}"), scene.path("sites/..tmp")).unwrap();
        std::fs::rename(scene.path("sites/..tmp"), scene.path("sites/..data")).unwrap();
    };
    version(&scene, "one");
    symlink("..data/a.toml", scene.path("sites/a.toml")).unwrap();
    scene.told("reloaded:", 1);
    assert!(scene.serves("one"));
    version(&scene, "two");
    scene.told("reloaded:", 2);
    assert!(scene.serves("two") && !scene.serves("one"));
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_once() {
    let mut scene = Scene::new();
    scene.world.write("sites/a.toml", "[site.broken");
    scene.told("reload refused, the old configuration stays in force", 1);
    // More than two looks later it is still the same mistake. Silence is the thing under test.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!((scene.count("reload refused"), scene.count("reloaded:")), (1, 0));
    assert!(scene.proxy.curl("app.test").get("/").status == 200);
    scene.world.write("sites/a.toml", scene.site("mended"));
    scene.told("reloaded:", 1);
    assert!(scene.serves("mended"));
}

#[test]
fn nothing_is_watched_unless_asked_for() {
    let (world, back_end) = (World::new(), BackEnd::start());
    let proxy = world.proxy(&site("app", "app.test", &back_end.url()));
    proxy.rewrite("[site.broken");
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!proxy.running.stderr().iter().any(|line| line.contains("reload")), "{}", proxy.running.said());
}
