//! Automatic certificates from the test-suite's own authority (tests/authority), which has what Pebble has not:
//! renewal information, profiles, and every fault there is.

mod disk;
mod faults;
mod joining;
mod kills;
mod ledger;
mod renewals;
mod scene;
mod several;

use scene::{Scene, site};

#[test]
fn the_first_order_is_served_within_seconds_and_a_second_start_orders_nothing() {
    let scene = Scene::new();
    let sites = site("app", &["app.example.com", "www.app.example.com"]);
    let mut proxy = scene.start(&sites);
    scene.served(&proxy, "app.example.com");
    for host in ["app.example.com", "www.app.example.com"] {
        assert_eq!(proxy.curl(host).get("/").expect(200).text(), "app");
    }
    proxy.running.wait_line("a look at the way before the first order", |line| line.contains("before the first order"));
    let placed = || {
        let counters = scene.authority().counters();
        (counters.orders, counters.accounts, counters.certificates)
    };
    assert_eq!(placed(), (1, 1, 1));
    let listed = scene.list();
    let directory = scene.authority().directory();
    for part in [
        "app.example.com, www.app.example.com",
        "Authority of the tests",
        "89 days left",
        "the authority suggests",
        &directory,
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let first = proxy.raw(&scene.world, "app.example.com").leaf();
    for _ in 0..3 {
        drop(proxy);
        proxy = scene.start(&sites);
        // At once, and after a second look at everything.
        assert_eq!(proxy.raw(&scene.world, "app.example.com").leaf(), first);
        assert_eq!(proxy.reload().code, 0);
        assert!(scene.list().contains("89 days left"));
    }
    assert_eq!(placed(), (1, 1, 1));
}

#[test]
fn a_profile_is_ordered_as_configured() {
    let scene = Scene::new();
    scene.authority().rules(|rules| rules.profiles = vec![("classic", "90 days"), ("shortlived", "6 days")]);
    let proxy = scene.start_as("profile = \"shortlived\"", &site("app", &["app.example.com"]));
    scene.served(&proxy, "app.example.com");
    let placed = scene.authority().counters().placed;
    assert_eq!(placed.iter().map(|order| order.profile.as_deref()).collect::<Vec<_>>(), [Some("shortlived")]);
}

#[test]
fn a_profile_that_is_not_offered_is_told_with_those_that_are_and_nothing_is_ordered() {
    let scene = Scene::new();
    scene.authority().rules(|rules| rules.profiles = vec![("classic", "90 days"), ("tlsserver", "45 days")]);
    let mut proxy = scene.start_as("profile = \"shortlivd\"", &site("app", &["app.example.com"]));
    let line = proxy.running.wait_line("a word about the profile", |line| line.contains("no certificate: "));
    for part in ["shortlivd", "classic", "tlsserver"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(scene.list().contains("shortlivd"), "{}", scene.list());
    assert_eq!((scene.asked_for_orders(), scene.attempts().len()), (0, 0));
    // What is mended is ordered at once.
    proxy.rewrite(&scene.config("profile = \"classic\"", &site("app", &["app.example.com"])));
    assert_eq!(proxy.reload().code, 0);
    scene.served(&proxy, "app.example.com");
}
