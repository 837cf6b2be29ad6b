//! What the disk does, and who else uses it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::authority::Resource;
use crate::harness::{Proxy, World, finish, is_root_for, wait_until};

use super::scene::{ORDERED, Scene, Visitors, entry, site};

const APP: &str = "app.example.com";

/// How often a certificate is looked at, and then some.
const LOOK: Duration = Duration::from_secs(90);

/// A place for the storage that can be full: a small file system of its own, unmounted when dropped. Who may not mount
/// has a folder that cannot be written to meanwhile.
struct SmallDisk {
    path: PathBuf,
    is_mounted: bool,
}

impl SmallDisk {
    /// 256 KiB at `path`.
    fn at(path: PathBuf) -> SmallDisk {
        std::fs::create_dir_all(path.join("acme")).unwrap();
        set_mode(&path.join("acme"), 0o700);
        let is_mounted = is_root();
        if is_mounted {
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "-o", "size=256k,mode=0755", "doorward-tests"]).arg(&path);
            let mounted = finish("mount", &mut command);
            assert_eq!(mounted.code, 0, "{}", mounted.said());
        }
        SmallDisk { path, is_mounted }
    }

    fn storage(&self) -> PathBuf {
        self.path.join("acme")
    }

    /// What is said of it when it is full.
    fn said(&self) -> &'static str {
        if self.is_mounted { "No space left" } else { "Permission denied" }
    }

    /// Leaves so many bytes.
    fn fill(&self, left: u64) {
        if !self.is_mounted {
            return set_mode(&self.storage(), 0o500);
        }
        let path = self.path.join("ballast");
        assert!(std::fs::write(&path, vec![0; 1 << 20]).is_err());
        let length = std::fs::metadata(&path).unwrap().len();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(length - left).unwrap();
    }

    fn make_room(&self) {
        match self.is_mounted {
            true => std::fs::remove_file(self.path.join("ballast")).unwrap(),
            false => set_mode(&self.storage(), 0o700),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.is_mounted {
            let unmounted = finish("umount", Command::new("umount").arg("-l").arg(&self.path));
            assert!(unmounted.code == 0 || std::thread::panicking(), "{}", unmounted.said());
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn config(scene: &Scene, storage: &Path) -> String {
    let acme = format!("directory = [{}]\nstorage = {storage:?}", entry(scene.authority(), ""));
    scene.config_of(&acme, &[site("app", &[APP]), scene.file_site()].concat())
}

fn nothing_was_asked(scene: &Scene) {
    let counters = scene.authority().counters();
    assert_eq!((counters.orders, counters.accounts), (0, 0));
    assert!(
        !counters.requests.contains_key(&Resource::NewOrder) && !counters.requests.contains_key(&Resource::NewAccount)
    );
}

#[test]
fn a_full_disk_is_told_before_anything_is_ordered_and_got_over_when_there_is_room() {
    let scene = Scene::new();
    let disk = SmallDisk::at(scene.world.path("small"));
    disk.fill(0);
    let mut proxy = Proxy::start(&scene.world, &config(&scene, &disk.storage()));
    let visitors = Visitors::start(&scene.world, &proxy, &["app.test"]);
    proxy.running.wait_line("a word about the disk", |line| line.contains("ERROR") && line.contains(disk.said()));
    let renewed = scene.renew(APP);
    assert!(renewed.code == 1 && renewed.stderr.contains(disk.said()), "{}", renewed.said());
    nothing_was_asked(&scene);
    disk.make_room();
    wait_until("a certificate", LOOK, || crate::harness::Raw::try_tls(&scene.world, proxy.https(), APP, &[]).is_ok());
    visitors.all_were_served();
    drop(proxy);
}

#[test]
fn a_disk_that_fills_up_later_costs_no_order_and_no_certificate() {
    let scene = Scene::new();
    let disk = SmallDisk::at(scene.world.path("small"));
    let proxy = Proxy::start(&scene.world, &config(&scene, &disk.storage()));
    let first = scene.served(&proxy, APP);
    // Enough for an order, but not for its certificate, its key and all that is noted of them.
    disk.fill(24 << 10);
    let visitors = Visitors::start(&scene.world, &proxy, &[APP, "app.test"]);
    for _ in 0..3 {
        let renewed = scene.renew(APP);
        assert!(renewed.code == 1 && renewed.stderr.contains(disk.said()), "{}", renewed.said());
    }
    assert_eq!(scene.asked_for_orders(), 1);
    assert_eq!(scene.leaf(&proxy, APP), first);
    disk.make_room();
    scene.renewed(APP);
    assert_ne!(scene.leaf(&proxy, APP), first);
    visitors.all_were_served();
    drop(proxy);
}

#[test]
fn a_storage_that_is_not_ours_alone_is_told_and_nothing_is_ordered() {
    let scene = Scene::new();
    let storage = scene.storage();
    std::fs::create_dir(&storage).unwrap();
    let me = rustix::process::geteuid().as_raw();
    let change = |owner: u32, mode: u32| {
        std::os::unix::fs::chown(&storage, Some(owner), None).unwrap();
        set_mode(&storage, mode);
    };
    let mut wrongs = vec![(me, 0o777, "777")];
    wrongs.extend(is_root_for("a folder given away").then_some((65_534, 0o700, "65534")));
    for (owner, mode, said) in wrongs {
        change(owner, mode);
        let mut proxy = Proxy::start(&scene.world, &config(&scene, &storage));
        let visitors = Visitors::start(&scene.world, &proxy, &["app.test"]);
        let line =
            proxy.running.wait_line("a word about the storage", |line| line.contains("no certificate can be ordered"));
        assert!(line.contains(said), "{line}");
        // Whoever asks is told as well, and does not wait for ever.
        let renewed = scene.renew(APP);
        assert!(renewed.code == 1 && renewed.stderr.contains(said), "{}", renewed.said());
        assert!(scene.list().contains(said), "{}", scene.list());
        nothing_was_asked(&scene);
        visitors.all_were_served();
    }
    let mut proxy = Proxy::start(&scene.world, &config(&scene, &storage));
    proxy.running.wait_line("a word about the storage", |line| line.contains("no certificate can be ordered"));
    change(me, 0o700);
    wait_until("a certificate", LOOK, || crate::harness::Raw::try_tls(&scene.world, proxy.https(), APP, &[]).is_ok());
    assert_eq!(scene.authority().counters().orders, 1);
}

#[test]
fn two_processes_with_one_storage_place_one_order() {
    let scene = Scene::new();
    scene.authority().rules(|rules| rules.validation_delay = Duration::from_secs(2));
    let other = World::new();
    other.trust(&std::fs::read_to_string(scene.authority().ca_file()).unwrap());
    let config = config(&scene, &scene.storage());
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| Proxy::start(&scene.world, &config));
        let two = scope.spawn(|| Proxy::start(&other, &config));
        (one.join().unwrap(), two.join().unwrap())
    });
    let leaf = scene.served(&one, APP);
    wait_until("the same at the other", ORDERED, || {
        crate::harness::Raw::try_tls(&other, two.https(), APP, &[]).is_ok_and(|raw| raw.leaf() == leaf)
    });
    for proxy in [&one, &two] {
        assert_eq!(proxy.reload().code, 0);
    }
    assert_eq!(scene.authority().counters().orders, 1);
    assert_eq!(scene.authority().counters().accounts, 1);
}

#[test]
fn a_pair_that_is_damaged_in_the_storage_refuses_no_reload() {
    let scene = Scene::new();
    let sites = site("app", &[APP]);
    let proxy = scene.start(&sites);
    let before = scene.served(&proxy, APP);
    std::fs::write(scene.storage().join("certificates").join(APP).join("live/fullchain.pem"), "half").unwrap();
    proxy.rewrite(&scene.config("", &[sites, site("other", &["other.example.com"])].concat()));
    let reloaded = proxy.reload();
    assert_eq!(reloaded.code, 0, "{}", reloaded.said());
    proxy.curl(APP).get("/").expect(200);
    // It is not waited for: the pair is ordered anew.
    wait_until("a new certificate", ORDERED, || scene.leaf(&proxy, APP) != before);
    scene.served(&proxy, "other.example.com");
}
