//! When a certificate is renewed, and by what order.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::authority::{Authority, Placed, Replaces, Resource};
use crate::harness::wait_until;

use super::scene::{ORDERED, Scene, Visitors, site};

const APP: &str = "app.example.com";

/// The orders, once there are `count`.
fn placed(authority: &Authority, count: usize, limit: Duration) -> Vec<Placed> {
    wait_until(&format!("{count} orders"), limit, || authority.counters().certificates >= count);
    authority.counters().placed
}

/// Whether `order` says that it replaces the certificate with this number.
fn replaces(authority: &Authority, order: &Placed, number: usize) -> bool {
    let serial = &authority.serials()[number];
    order
        .replaces
        .as_ref()
        .and_then(|replaced| replaced.split_once('.'))
        .is_some_and(|(_, replaced)| replaced == serial)
}

fn after(order: &Placed, since: SystemTime) -> f64 {
    order.at.duration_since(since).map_or_else(|early| -early.duration().as_secs_f64(), |late| late.as_secs_f64())
}

/// Whole seconds, as windows are told.
fn in_seconds(seconds: u64) -> SystemTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    UNIX_EPOCH + Duration::from_secs(now + seconds)
}

#[test]
fn a_window_in_the_past_renews_at_once_and_names_what_it_replaces() {
    let past = SystemTime::now() - Duration::from_secs(3600);
    let authority = Authority::with(|rules| {
        rules.windows.insert(0, (past, past + Duration::from_secs(60)));
    });
    let scene = Scene::of(vec![authority]);
    let proxy = scene.start(&site("app", &[APP]));
    let first = scene.served(&proxy, APP);
    let orders = placed(scene.authority(), 2, ORDERED);
    assert_eq!(orders[0].replaces, None);
    assert!(replaces(scene.authority(), &orders[1], 0), "{orders:?}");
    wait_until("the second certificate", ORDERED, || scene.leaf(&proxy, APP) != first);
    // The second one's window is in the future.
    wait_until("a question for its window", ORDERED, || {
        scene.authority().counters().requests.get(&Resource::RenewalInfo).is_some_and(|asked| *asked >= 2)
    });
    assert_eq!(proxy.reload().code, 0);
    let listed = scene.list();
    assert!(listed.contains("https://acme.example/why"), "{listed}");
    assert_eq!(scene.authority().counters().orders, 2);
}

#[test]
fn a_window_that_is_always_in_the_past_is_no_loop() {
    let past = SystemTime::now() - Duration::from_secs(3600);
    let scene = Scene::of(vec![Authority::with(|rules| rules.window = Some((past, past + Duration::from_secs(60))))]);
    let mut proxy = scene.start(&site("app", &[APP]));
    let wait = "4 certificates for exactly these names";
    proxy.running.wait_line("what it waits for", |line| line.contains("no new certificate") && line.contains(wait));
    assert_eq!(scene.authority().counters().orders, 4);
    scene.leaf(&proxy, APP);
    assert!(scene.list().contains(wait), "{}", scene.list());
    assert_eq!(proxy.reload().code, 0);
    assert_eq!(scene.asked_for_orders(), 4);
}

#[test]
fn a_window_ahead_is_waited_for() {
    let (start, end) = (in_seconds(12), in_seconds(15));
    let authority = Authority::with(|rules| {
        rules.windows.insert(0, (start, end));
    });
    let scene = Scene::of(vec![authority]);
    let proxy = scene.start(&site("app", &[APP]));
    let first = scene.served(&proxy, APP);
    let orders = placed(scene.authority(), 2, ORDERED);
    assert!(after(&orders[0], start) < 0.0, "the first order came too late for this test");
    // It looks to the second, and orders within one.
    assert!(after(&orders[1], start) >= 0.0 && after(&orders[1], end) <= 3.0, "{start:?} {end:?} {orders:?}");
    assert!(replaces(scene.authority(), &orders[1], 0));
    wait_until("the second certificate", ORDERED, || scene.leaf(&proxy, APP) != first);
}

#[test]
fn an_authority_that_changes_its_mind_is_heard_within_the_time_that_it_gave() {
    let authority = Authority::with(|rules| rules.window_retry_after = Some(60));
    let scene = Scene::of(vec![authority]);
    let proxy = scene.start(&site("app", &[APP]));
    let first = scene.served(&proxy, APP);
    wait_until("the first window", ORDERED, || {
        scene.authority().counters().requests.contains_key(&Resource::RenewalInfo)
    });
    let visitors = Visitors::start(&scene.world, &proxy, &[APP]);
    let past = SystemTime::now() - Duration::from_secs(3600);
    scene.authority().rules(|rules| {
        rules.windows.insert(0, (past, past + Duration::from_secs(60)));
    });
    let orders = placed(scene.authority(), 2, Duration::from_secs(90));
    assert!(after(&orders[1], orders[0].at) > 55.0, "{orders:?}");
    assert!(replaces(scene.authority(), &orders[1], 0));
    wait_until("the second certificate", ORDERED, || scene.leaf(&proxy, APP) != first);
    visitors.all_were_served();
}

#[test]
fn what_is_replaced_already_is_ordered_without_saying_so() {
    let scene = Scene::new();
    let proxy = scene.start(&site("app", &[APP]));
    let first = scene.served(&proxy, APP);
    scene.authority().rules(|rules| rules.replaces = Replaces::AlreadyReplaced);
    scene.renewed(APP);
    let orders = placed(scene.authority(), 2, ORDERED);
    assert_eq!(orders[1].replaces, None);
    assert_eq!(scene.asked_for_orders(), 3, "once with and once without");
    assert_ne!(scene.leaf(&proxy, APP), first);
    // One that repeats nothing of it is no trouble either.
    scene.authority().rules(|rules| rules.replaces = Replaces::Ignored);
    scene.renewed(APP);
}

#[test]
fn without_renewal_information_two_thirds_of_the_life_count() {
    let authority = Authority::with(|rules| {
        rules.renewal_info = false;
        // From two seconds ago: due 22 s from now, or up to a fiftieth of 36 s earlier.
        rules.lifetime = Duration::from_secs(34);
    });
    let scene = Scene::of(vec![authority]);
    let proxy = scene.start(&site("app", &[APP]));
    scene.served(&proxy, APP);
    let visitors = Visitors::start(&scene.world, &proxy, &[APP]);
    let orders = placed(scene.authority(), 3, Duration::from_secs(90));
    for pair in orders.windows(2) {
        let pause = after(&pair[1], pair[0].at);
        // The order itself takes a second or more on a busy machine.
        assert!((20.0..29.0).contains(&pause), "{pause} s");
        assert_eq!(pair[1].replaces, None);
    }
    visitors.all_were_served();
    assert!(scene.list().contains("two thirds of its life"), "{}", scene.list());
}
