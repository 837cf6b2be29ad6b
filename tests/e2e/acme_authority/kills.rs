//! A process that is killed at any moment leaves a sound storage, and costs no order more.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rcgen::PublicKeyData;
use rustix::process::Signal;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::Authority;
use crate::harness::{Raw, Running, doorward};

use super::scene::{Scene, site};

const KILLS: usize = 100;
/// After so many kills it goes on with other sites: those that were hit in the moment between the ledger and the order
/// wait for a minute, as they should, and there would soon be nothing left to kill.
const BATCH: usize = 10;
const SITES: usize = 3;

fn host(number: usize) -> String {
    format!("s{number}.example.com")
}

fn sites(numbers: Range<usize>) -> String {
    numbers.map(|n| site(&format!("s{n}"), &[&host(n)])).collect()
}

#[test]
fn a_hundred_kills_leave_a_sound_storage_and_no_order_that_the_ledger_does_not_know() {
    // Each certificate is due a second or two after it was issued: orders are always under way.
    let scene = Scene::of(vec![Authority::with(|rules| rules.lifetime = Duration::from_secs(3))]);
    let authority = scene.authority();
    let mut live = 0;
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    for kill in 0..KILLS {
        let first = kill / BATCH * SITES;
        let config = scene.world.write("proxy.toml", scene.config("", &sites(first..first + SITES)));
        let running = Running::start("doorward", doorward().args(["run", "-c"]).arg(&config));
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The moment is what is tried: nothing is waited for.
        std::thread::sleep(Duration::from_millis((dice >> 33) % 900));
        running.signal(Signal::KILL);
        drop(running);
        live = sound_pairs(&scene.storage());
        assert!(authority.counters().orders <= scene.attempts().len(), "kill {kill}");
    }
    let all = KILLS / BATCH * SITES;
    let (counters, attempts) = (authority.counters(), scene.attempts());
    assert!(live > all / 2, "{live} of {all} are certified");
    assert!(counters.orders > all, "{} orders: hardly anything was tried", counters.orders);
    assert_eq!(counters.accounts, 1);
    for number in 0..all {
        let is_lost =
            |attempt: &&Value| attempt["names"][0] == host(number) && !attempt.to_string().contains("\"due\"");
        let lost = attempts.values().filter(is_lost).count();
        assert!(lost <= 4, "{lost} lost orders for {}", host(number));
    }
    // In the end everything is certified. Who waits for the ledger is asked for by hand.
    authority.rules(|rules| rules.lifetime = Duration::from_secs(86_400));
    let proxy = scene.start(&sites(0..all));
    std::thread::scope(|scope| {
        for host in (0..all).map(host) {
            let (scene, proxy) = (&scene, &proxy);
            scope.spawn(move || {
                if Raw::try_tls(&scene.world, proxy.https(), &host, &[]).is_err() {
                    scene.renewed(&host);
                }
                scene.leaf(proxy, &host);
            });
        }
    });
    drop(proxy);
    assert_eq!(sound_pairs(&scene.storage()), all);
    assert!(authority.counters().orders <= scene.attempts().len());
}

/// How many certificates of the storage are live, each of which is checked. Whatever is named as if it were whole is.
fn sound_pairs(storage: &Path) -> usize {
    let Ok(labels) = std::fs::read_dir(storage.join("certificates")) else { return 0 };
    let mut live = 0;
    for label in labels {
        let label = label.unwrap().path();
        if std::fs::symlink_metadata(label.join("live")).is_ok() {
            is_sound(&label.join("live"), label.file_name().unwrap().to_str().unwrap());
            live += 1;
        }
        for file in ["state.json", "live/order.json"] {
            if let Ok(bytes) = std::fs::read(label.join(file)) {
                serde_json::from_slice::<Value>(&bytes).unwrap_or_else(|e| panic!("{label:?} {file}: {e}"));
            }
        }
    }
    for copy in [storage.join("ledger.json"), storage.with_extension("ledger")] {
        if let Ok(bytes) = std::fs::read(&copy) {
            serde_json::from_slice::<Value>(&bytes).unwrap_or_else(|e| panic!("{copy:?}: {e}"));
        }
    }
    live
}

fn is_sound(pair: &Path, name: &str) {
    let chain = CertificateDer::pem_file_iter(pair.join("fullchain.pem")).unwrap();
    let chain: Vec<CertificateDer<'static>> = chain.collect::<Result<_, _>>().unwrap();
    assert_eq!(chain.len(), 2, "{}", pair.display());
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let key = std::fs::read_to_string(pair.join("privkey.pem")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    assert_eq!(key.subject_public_key_info(), leaf.public_key().raw, "{}", pair.display());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(format!("{:?}", names.value.general_names).contains(name), "{}", pair.display());
}
