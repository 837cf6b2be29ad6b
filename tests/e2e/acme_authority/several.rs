//! Several authorities, one after the other.

use std::time::Duration;

use crate::authority::{Authority, Resource, What};
use crate::harness::{Proxy, wait_until};

use super::scene::{ORDERED, Scene, Visitors, entry, site};

const APP: &str = "app.example.com";

/// How the first authority fails.
struct Failing {
    how: &'static str,
    fail: fn(&Authority),
    /// What the log says of it.
    said: &'static str,
}

const FAILING: [Failing; 7] = [
    Failing {
        how: "answers nothing",
        fail: |authority| authority.fault(Resource::Directory, What::Silence),
        said: "gave no answer",
    },
    Failing {
        how: "hangs up",
        fail: |authority| authority.fault(Resource::Directory, What::HangUp),
        said: "gave no answer",
    },
    Failing {
        how: "is out of order",
        fail: |authority| authority.fault(Resource::Directory, What::Html(500)),
        said: "500",
    },
    Failing {
        how: "has had too many orders",
        fail: |authority| {
            let why = "too many new orders recently".to_owned();
            authority.fault(Resource::NewOrder, problem(429, "rateLimited", why, Some("1")));
        },
        said: "too many new orders recently",
    },
    Failing {
        how: "refuses the account",
        fail: |authority| {
            authority.fault(Resource::NewAccount, problem(403, "unauthorized", "no service here".to_owned(), None));
        },
        said: "no service here",
    },
    Failing {
        how: "must not issue for the name",
        fail: |authority| authority.rules(|rules| rules.failing = all_fail("caa")),
        said: "caa",
    },
    Failing {
        how: "issues for another key",
        fail: |authority| authority.rules(|rules| rules.issues = crate::authority::Issues::WrongKey),
        said: "another key",
    },
];

fn problem(status: u16, kind: &'static str, detail: String, retry_after: Option<&str>) -> What {
    What::Problem(status, kind, detail.leak(), retry_after.map(str::to_owned))
}

pub fn all_fail(problem: &'static str) -> std::collections::BTreeMap<&'static str, &'static str> {
    ["http-01", "tls-alpn-01", "dns-01"].map(|kind| (kind, problem)).into()
}

fn is_from(scene: &Scene, number: usize) -> bool {
    scene.list().contains(&format!("from     {}", scene.authorities[number].directory()))
}

fn told(proxy: &Proxy, parts: &[&str]) -> bool {
    proxy.running.stderr().iter().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[test]
fn where_the_first_authority_fails_the_second_certifies_and_the_first_is_back_at_the_renewal() {
    std::thread::scope(|scope| {
        for failing in &FAILING {
            scope.spawn(move || the_second_certifies(failing));
        }
    });
}

fn the_second_certifies(failing: &Failing) {
    let scene = Scene::of(vec![Authority::start(), Authority::start()]);
    let [first, second] = [&scene.authorities[0], &scene.authorities[1]];
    (failing.fail)(first);
    let proxy = scene.start(&site("app", &[APP]));
    let leaf = scene.served(&proxy, APP);
    let how = failing.how;
    assert_eq!(second.counters().certificates, 1, "{how}");
    assert!(told(&proxy, &["the next authority is tried", failing.said]), "{how}: {}", proxy.running.said());
    assert!(told(&proxy, &["ordering a certificate", &second.directory()]), "{how}: {}", proxy.running.said());
    wait_until(&format!("{how}: the second in the list"), ORDERED, || is_from(&scene, 1));
    let visitors = Visitors::start(&scene.world, &proxy, &[APP]);
    first.repair();
    first.rules(|rules| *rules = Default::default());
    // The one second that it asked for is over by then.
    std::thread::sleep(Duration::from_millis(1100));
    scene.renewed(APP);
    assert_ne!(scene.leaf(&proxy, APP), leaf, "{how}");
    assert_eq!(second.counters().certificates, 1, "{how}");
    assert!(is_from(&scene, 0), "{how}: {}", scene.list());
    // The second one's certificate is not this one's to replace.
    assert_eq!(first.counters().placed.last().unwrap().replaces, None, "{how}");
    visitors.all_were_served();
}

#[test]
fn an_authority_where_nobody_listens_is_passed_over() {
    let scene = Scene::new();
    let nobody = "{ url = \"https://127.0.0.1:1/directory\" }";
    let acme = format!("directory = [{nobody}, {}]\nstorage = {:?}", entry(scene.authority(), ""), scene.storage());
    let proxy = Proxy::start(&scene.world, &scene.config_of(&acme, &site("app", &[APP])));
    scene.served(&proxy, APP);
    assert!(told(&proxy, &["the next authority is tried", "Connection refused"]), "{}", proxy.running.said());
    assert_eq!(scene.authority().counters().orders, 1);
}

#[test]
fn from_staging_to_production_is_one_line_and_a_reload() {
    let scene = Scene::of(vec![Authority::start(), Authority::start()]);
    let [staging, production] = [&scene.authorities[0], &scene.authorities[1]];
    let config = |authority: &Authority| {
        let (directory, ca, storage) = (authority.directory(), authority.ca_file(), scene.storage());
        let acme = format!("directory = {directory:?}\ndirectory_ca = {ca:?}\nstorage = {storage:?}");
        scene.config_of(&acme, &site("app", &[APP]))
    };
    let proxy = Proxy::start(&scene.world, &config(staging));
    let first = scene.served(&proxy, APP);
    let visitors = Visitors::start(&scene.world, &proxy, &[APP]);
    // The old one serves while the new one takes its time.
    production.rules(|rules| rules.validation_delay = Duration::from_secs(2));
    proxy.rewrite(&config(production));
    assert_eq!(proxy.reload().code, 0);
    assert_eq!(scene.leaf(&proxy, APP), first);
    wait_until("a certificate from production", ORDERED, || scene.leaf(&proxy, APP) != first);
    visitors.all_were_served();
    wait_until("production in the list", ORDERED, || is_from(&scene, 1));
    assert_eq!((staging.counters().orders, production.counters().orders), (1, 1));
    assert_eq!(production.counters().placed[0].replaces, None);
    assert!(told(&proxy, &["another authority than [acme] names"]), "{}", proxy.running.said());
}
