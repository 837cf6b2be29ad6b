//! A restart loop burns no authority's limits, whatever is lost meanwhile.

use rustix::process::Signal;

use super::scene::{Scene, site};

#[test]
fn a_hundred_restarts_that_lose_the_storage_order_no_more_than_the_ledger_allows() {
    let scene = Scene::new();
    let authority = scene.authority();
    authority.rules(|rules| rules.rejected = vec!["bad.example.com".to_owned()]);
    let sites = [site("good", &["good.example.com"]), site("bad", &["bad.example.com"])].concat();
    let mut waits = 0;
    for round in 0..100 {
        let mut proxy = scene.start(&sites);
        for name in ["good", "bad"] {
            let over =
                |line: &str| line.contains("no certificate: ") && line.contains(&format!("names={name}.example"));
            let served = |line: &str| line.contains("a new certificate is in service") && line.contains("sites=good");
            let line = proxy
                .running
                .wait_line(&format!("an outcome for {name}"), |line| over(line) || (name == "good" && served(line)));
            // Whoever reads the log knows what it waits for.
            if name == "good" && round > 10 {
                assert!(line.contains("4 certificates for exactly these names"), "{line}");
                waits += 1;
            }
        }
        // The last one ends in order, and takes its control socket with it.
        if round < 99 {
            proxy.running.signal(Signal::KILL);
        }
        drop(proxy);
        std::fs::remove_dir_all(scene.storage()).unwrap();
    }
    assert_eq!(waits, 89);
    let counters = authority.counters();
    assert_eq!(counters.orders_for.get("good.example.com"), Some(&4), "{:?}", counters.orders_for);
    assert!(counters.accounts <= 5, "{} accounts", counters.accounts);
    // Four at most for the bad name in an hour, of which each is a minute or more after the one before.
    let asked = scene.asked_for_orders();
    assert!((5..=8).contains(&asked), "{asked} orders were asked for");
    assert_eq!(scene.attempts().len(), asked, "each is in the ledger");
}
