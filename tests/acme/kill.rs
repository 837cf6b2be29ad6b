//! Kills at any moment: the same order goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use doorward::acme::failure::Failure;
use doorward::acme::issued::Obtained;
use doorward::acme::order::obtain;

use super::authority::Authority;
use super::house::{House, wanted};

fn is_send<T: Send>(value: T) -> T {
    value
}

/// Drops the attempt after ever longer times, so that every step is met, until one comes to its end.
#[tokio::test]
async fn whatever_the_moment_the_same_order_goes_on() {
    let mut kills = 0;
    for round in 0..8_u64 {
        let authority = Authority::with(|rules| {
            rules.validation_delay = Duration::from_millis(10);
            rules.processing = 2;
            rules.bad_nonce = 20;
        });
        let house = House::new();
        let wanted = wanted(&["a.example", "b.example"]);
        // The ledger lets nobody try to make accounts for ever.
        house.client(&authority).await;
        let placed = AtomicUsize::new(0);
        let mut patience = Duration::from_millis(1 + round);
        let obtained: Obtained = loop {
            let is_open = house.has_open_order(&wanted);
            let before = placed.load(Ordering::Relaxed);
            let may_order = || {
                placed.fetch_add(1, Ordering::Relaxed);
                // The ledger has rules of its own about so many attempts.
                let other = House::new();
                Ok(other.ledger.begin("https://x/", &wanted.names, true, SystemTime::now())?)
            };
            let folder = house.certificate(&wanted);
            let attempt = async {
                let client = house.client(&authority).await;
                obtain(&client, &wanted, &folder, &house.keys, &house.challenges, &may_order).await
            };
            let ended: Result<Result<Obtained, Failure>, _> = tokio::time::timeout(patience, is_send(attempt)).await;
            if is_open {
                assert_eq!(placed.load(Ordering::Relaxed), before, "an open order was not gone on with");
            }
            match ended {
                Ok(result) => break result.unwrap(),
                Err(_) => kills += 1,
            }
            patience += patience.mul_f64(0.15) + Duration::from_micros(500);
        };
        let counters = authority.counters();
        assert_eq!(counters.accounts, 1);
        // Killed between the request and its answer, nobody here knows of an order.
        assert!(counters.orders <= placed.load(Ordering::Relaxed), "{counters:?}");
        assert_eq!(house.live(&wanted).certified.cert[0], obtained.leaf);
        assert!(house.certificate(&wanted).draft().unwrap().is_none());
    }
    assert!(kills > 60, "{kills} kills are too few to meet every step");
}
