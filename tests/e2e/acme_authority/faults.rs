//! Every fault of an authority: what is served stays served, the reason is told, and the next attempt succeeds.

use std::time::{Duration, Instant};

use crate::authority::{Authority, Issues, Resource, Stuck, What};
use crate::harness::wait_until;

use super::scene::{ORDERED, Scene, Visitors, site};
use super::several::all_fail;

const APP: &str = "app.example.com";

/// A fault, and what has to be said of it.
struct Fault {
    what: &'static str,
    begin: fn(&Authority),
    said: &'static str,
}

const FAULTS: [Fault; 18] = [
    Fault { what: "500 and a page", begin: |a| a.fault(Resource::NewOrder, What::Html(500)), said: "500" },
    Fault { what: "503 at the end", begin: |a| a.fault(Resource::Finalize, What::Html(503)), said: "503" },
    Fault {
        what: "an internal error in its own words",
        begin: |a| a.fault(Resource::NewOrder, What::Problem(500, "serverInternal", "our database is on fire", None)),
        said: "our database is on fire",
    },
    Fault { what: "a hang-up", begin: |a| a.fault(Resource::NewOrder, What::HangUp), said: "gave no answer" },
    Fault { what: "a broken answer", begin: |a| a.fault(Resource::NewOrder, What::BreakOff), said: "an order" },
    Fault { what: "no answer", begin: |a| a.fault(Resource::NewOrder, What::Silence), said: "gave no answer" },
    Fault {
        what: "an endless certificate",
        begin: |a| a.fault(Resource::Certificate, What::Flood(200, 3 << 20)),
        said: "the certificate",
    },
    Fault { what: "wrong nonces", begin: |a| a.rules(|rules| rules.wrong_nonces = true), said: "nonce" },
    Fault {
        what: "pending for ever",
        begin: |a| a.rules(|rules| (rules.stuck, rules.order_retry_after) = (Some(Stuck::Pending), Some(3600))),
        said: "the order stays open",
    },
    Fault {
        what: "processing for ever",
        begin: |a| a.rules(|rules| (rules.stuck, rules.order_retry_after) = (Some(Stuck::Processing), Some(3600))),
        said: "the order stays open",
    },
    Fault { what: "another key", begin: |a| a.rules(|r| r.issues = Issues::WrongKey), said: "for another key" },
    Fault { what: "other names", begin: |a| a.rules(|r| r.issues = Issues::OtherNames), said: "does not name app" },
    Fault { what: "expired", begin: |a| a.rules(|r| r.issues = Issues::Expired), said: "not valid now" },
    Fault { what: "not yet valid", begin: |a| a.rules(|r| r.issues = Issues::ValidIn(3600)), said: "not valid now" },
    Fault { what: "no certificate at all", begin: |a| a.rules(|r| r.issues = Issues::Garbage), said: "issued" },
    Fault {
        what: "an invalid order",
        begin: |a| a.rules(|rules| rules.failing = all_fail("unauthorized")),
        said: "The test wants it so",
    },
    Fault {
        what: "a rejected name",
        begin: |a| a.rules(|rules| rules.rejected = vec![APP.to_owned()]),
        said: "Policy forbids issuing",
    },
    Fault { what: "a lost account", begin: Authority::lose_accounts, said: "no account" },
];

#[test]
fn no_fault_of_an_authority_is_noticed_by_visitors_and_each_is_told_and_got_over() {
    // A few at a time: each has processes of its own.
    for some in FAULTS.chunks(6) {
        std::thread::scope(|scope| {
            for fault in some {
                scope.spawn(move || is_got_over(fault));
            }
        });
    }
}

fn is_got_over(fault: &Fault) {
    let scene = Scene::new();
    let authority = scene.authority();
    let proxy = scene.start(&[site("app", &[APP]), scene.file_site()].concat());
    let first = scene.served(&proxy, APP);
    let visitors = Visitors::start(&scene.world, &proxy, &[APP, "app.test"]);
    let what = fault.what;
    (fault.begin)(authority);
    let begun = Instant::now();
    let renewed = scene.renew(APP);
    assert_eq!(renewed.code, 1, "{what}: {}", renewed.said());
    assert!(renewed.stderr.contains(fault.said), "{what}: {}", renewed.said());
    assert!(begun.elapsed() < Duration::from_secs(100), "{what}: {:?}", begun.elapsed());
    let is_told = |line: &String| line.contains("no new certificate") && line.contains(fault.said);
    assert!(proxy.running.stderr().iter().any(is_told), "{what}: {}", proxy.running.said());
    let listed = scene.list();
    let failed = listed.lines().any(|line| line.trim_start().starts_with("failed") && line.contains(fault.said));
    assert!(failed && listed.contains("next try") && listed.contains("days left"), "{what}: {listed}");
    assert_eq!(scene.leaf(&proxy, APP), first, "{what}");
    authority.repair();
    authority.rules(|rules| *rules = Default::default());
    if what == "not yet valid" {
        // Else it would be waited for, for an hour.
        authority.lose_orders();
    }
    scene.renewed(APP);
    assert_ne!(scene.leaf(&proxy, APP), first, "{what}");
    assert!(!scene.list().contains("failed"), "{what}: {}", scene.list());
    visitors.all_were_served();
    assert!(authority.counters().orders <= scene.attempts().len(), "{what}");
    // What was open is gone on with: it cost no second order.
    if what.contains("for ever") || what == "503 at the end" {
        assert_eq!(authority.counters().orders, 2, "{what}");
    }
}

#[test]
fn a_retry_after_is_kept_to_by_hand_and_over_a_restart_too() {
    let scene = Scene::new();
    let authority = scene.authority();
    let sites = [site("app", &[APP]), scene.file_site()].concat();
    let proxy = scene.start(&sites);
    let first = scene.served(&proxy, APP);
    let visitors = Visitors::start(&scene.world, &proxy, &[APP, "app.test"]);
    let wait = Duration::from_secs(12);
    let refusal = What::Problem(429, "rateLimited", "too many orders", Some(wait.as_secs().to_string()));
    authority.fault_times(Resource::NewOrder, 1, refusal);
    assert_eq!(scene.asked_for_orders(), 1);
    let renewed = scene.renew(APP);
    let told = Instant::now();
    assert!(renewed.code == 1 && renewed.stderr.contains("too many orders"), "{}", renewed.said());
    assert_eq!(scene.asked_for_orders(), 2);
    let refused = |when: &str| {
        let renewed = scene.renew(APP);
        assert_eq!(renewed.code, 1, "{when}: {}", renewed.said());
        assert!(renewed.stderr.contains("asked to be left alone"), "{when}: {}", renewed.said());
        assert_eq!(scene.asked_for_orders(), 2, "{when}");
    };
    refused("at once");
    assert!(scene.list().contains("too many orders"), "{}", scene.list());
    visitors.all_were_served();
    drop(proxy);
    let proxy = scene.start(&sites);
    let visitors = Visitors::start(&scene.world, &proxy, &[APP, "app.test"]);
    refused("after a restart");
    assert!(told.elapsed() < wait, "the machine is too slow for this test");
    wait_until("the end of the wait", wait + ORDERED, || scene.renew(APP).code == 0);
    assert!(told.elapsed() >= wait - Duration::from_millis(500), "after {:?}", told.elapsed());
    assert_eq!(scene.asked_for_orders(), 3);
    assert_ne!(scene.leaf(&proxy, APP), first);
    visitors.all_were_served();
}

#[test]
fn a_first_order_that_is_put_off_is_placed_of_itself_and_not_before() {
    let scene = Scene::new();
    let authority = scene.authority();
    let refusal = What::Problem(503, "serverInternal", "maintenance", Some("70".to_owned()));
    authority.fault_times(Resource::NewOrder, 1, refusal);
    let sites = [site("app", &[APP]), scene.file_site()].concat();
    let mut proxy = scene.start(&sites);
    proxy.running.wait_line("the refusal", |line| line.contains("no certificate: ") && line.contains("maintenance"));
    let told = Instant::now();
    drop(proxy);
    let proxy = scene.start(&sites);
    let visitors = Visitors::start(&scene.world, &proxy, &["app.test"]);
    // A reload is a look at everything, too.
    assert_eq!(proxy.reload().code, 0);
    assert_eq!(scene.asked_for_orders(), 1);
    wait_until("the second order", Duration::from_secs(130), || scene.asked_for_orders() == 2);
    assert!(told.elapsed() >= Duration::from_secs(68), "after {:?}", told.elapsed());
    scene.served(&proxy, APP);
    visitors.all_were_served();
}

#[test]
fn one_name_that_is_rejected_holds_up_no_other_and_is_tried_again_alone() {
    let scene = Scene::new();
    let authority = scene.authority();
    authority.rules(|rules| rules.rejected = vec!["bad.example.com".to_owned()]);
    // The certificate bears the name of its first host: what if that is the bad one?
    let proxy = scene.start(&site("app", &["bad.example.com", APP, "www.example.com"]));
    for host in [APP, "www.example.com"] {
        scene.served(&proxy, host);
    }
    let said = |part: &str| proxy.running.stderr().iter().any(|line| line.contains(part));
    assert!(said("bad.example.com: Policy forbids"), "{}", proxy.running.said());
    assert_eq!(scene.asked_for_orders(), 2);
    let listed = scene.list();
    assert!(listed.contains("app.example.com, www.example.com\n") && listed.contains("Policy forbids"), "{listed}");
    crate::harness::Raw::try_tls(&scene.world, proxy.https(), "bad.example.com", &[]).err().expect("no certificate");
    authority.rules(|rules| rules.rejected.clear());
    let visitors = Visitors::start(&scene.world, &proxy, &[APP, "www.example.com"]);
    wait_until("the rejected name", Duration::from_secs(90), || {
        crate::harness::Raw::try_tls(&scene.world, proxy.https(), "bad.example.com", &[]).is_ok()
    });
    let orders = authority.counters().orders_for;
    let expected = [("app.example.com,www.example.com".to_owned(), 1), ("bad.example.com".to_owned(), 1)];
    assert_eq!(orders, expected.into());
    visitors.all_were_served();
}

#[test]
fn a_name_that_fails_at_the_renewal_keeps_its_old_certificate_also_over_a_restart() {
    let bad = "bad.example.com";
    // The certificate bears the name of its first host.
    for hosts in [[bad, APP, "www.example.com"], [APP, "www.example.com", bad]] {
        let scene = Scene::new();
        let authority = scene.authority();
        let sites = site("app", &hosts);
        let proxy = scene.start(&sites);
        let old = scene.served(&proxy, bad);
        let visitors = Visitors::start(&scene.world, &proxy, &hosts);
        authority.rules(|rules| rules.rejected = vec![bad.to_owned()]);
        assert_eq!(scene.renew("app").code, 1);
        wait_until("a new one for the others", ORDERED, || scene.leaf(&proxy, APP) != old);
        assert_eq!(scene.leaf(&proxy, bad), old);
        visitors.all_were_served();
        drop(proxy);
        let proxy = scene.start(&sites);
        assert_eq!(scene.leaf(&proxy, bad), old);
        assert_ne!(scene.leaf(&proxy, APP), old);
        authority.rules(|rules| rules.rejected.clear());
        scene.renewed(bad);
        assert_ne!(scene.leaf(&proxy, bad), old);
    }
}

#[test]
fn another_first_name_is_no_reason_to_be_without_a_certificate() {
    let scene = Scene::new();
    let proxy = scene.start(&site("app", &[APP, "www.example.com"]));
    let old = scene.served(&proxy, APP);
    drop(proxy);
    scene.authority().rules(|rules| rules.stuck = Some(Stuck::Pending));
    let proxy = scene.start(&site("app", &["new.example.com", APP, "www.example.com"]));
    for host in [APP, "www.example.com"] {
        assert_eq!(scene.leaf(&proxy, host), old, "{host}");
    }
    scene.authority().rules(|rules| rules.stuck = None);
    scene.served(&proxy, "new.example.com");
}
