//! An authority that is out of order: the certificate in service stays, the reason is told, and the order goes on
//! where it was as soon as it can.

use std::time::{Duration, Instant, SystemTime};

use doorward::acme::failure::FailureKind;
use doorward::acme::order::is_open;

use super::authority::{Authority, Issues, Resource, Stuck, What};
use super::house::{House, PATIENCE, settings, wanted};

/// What is asked for in an order, and whether the order is known before.
const STEPS: [(Resource, bool); 7] = [
    (Resource::NewNonce, false),
    (Resource::NewOrder, false),
    (Resource::Authorization, true),
    (Resource::Challenge, true),
    (Resource::Order, true),
    (Resource::Finalize, true),
    (Resource::Certificate, true),
];

fn troubles() -> Vec<(What, FailureKind)> {
    vec![
        (What::HangUp, FailureKind::Unreachable),
        (What::BreakOff, FailureKind::Unreachable),
        (What::Html(500), FailureKind::Unreachable),
        (What::Html(503), FailureKind::Unreachable),
        (What::Flood(200, 3 << 20), FailureKind::Unreachable),
        (What::Html(429), FailureKind::RateLimited),
        (What::Problem(500, "serverInternal", "Internal error", None), FailureKind::Unreachable),
        (What::Problem(429, "rateLimited", "too many", Some("120".to_owned())), FailureKind::RateLimited),
    ]
}

#[tokio::test]
async fn a_short_trouble_is_not_noticed() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    for (resource, _) in STEPS.iter().filter(|(_, has_order)| *has_order) {
        for (what, _) in troubles() {
            if matches!(what, What::Problem(429, ..)) || (*resource == Resource::Order && what == What::BreakOff) {
                continue;
            }
            let wanted = wanted(&["a.example"]);
            let before = authority.counters().orders;
            authority.fault_times(*resource, 1, what.clone());
            let obtained = house.obtain(&client, &wanted).await;
            obtained.unwrap_or_else(|failure| panic!("{what:?} at {resource:?}: {failure}"));
            assert_eq!(authority.counters().orders, before + 1, "{what:?} at {resource:?}");
            authority.repair();
        }
    }
}

#[tokio::test]
async fn every_trouble_is_told_and_the_same_order_goes_on_after_it() {
    for (resource, has_order) in STEPS {
        for (what, kind) in troubles() {
            // HEAD has no body to break off in; and what was acted upon shows in the state of the order.
            let harmless = [Resource::NewNonce, Resource::Challenge, Resource::Finalize];
            if what == What::BreakOff && harmless.contains(&resource) {
                continue;
            }
            let (authority, house) = (Authority::start(), House::new());
            let client = house.client(&authority).await;
            let wanted = wanted(&["a.example"]);
            // HEAD has no body that could say more.
            let kind = if resource == Resource::NewNonce && matches!(what, What::Flood(..)) { continue } else { kind };
            authority.fault(resource, what.clone());
            let failure = house.obtain(&client, &wanted).await.unwrap_err();
            let case = format!("{what:?} at {resource:?}: {failure}");
            assert_eq!(failure.kind, kind, "{case}");
            assert!(failure.to_string().contains("127.0.0.1"), "{case}");
            let is_flood = matches!(what, What::Flood(..));
            assert_eq!(failure.to_string().ends_with("the answer is longer than 1 MiB"), is_flood, "{case}");
            let hinted = matches!(what, What::Problem(429, ..)).then_some(Duration::from_secs(120));
            assert_eq!(failure.retry_after.is_some(), hinted.is_some(), "{case}");
            assert!(!house.certificate(&wanted).live().0.exists(), "{case}");
            let orders = authority.counters().orders;
            assert_eq!(house.has_open_order(&wanted), has_order, "{case}");
            authority.repair();
            if hinted.is_some() && !has_order {
                // The ledger keeps to what the authority said.
                let wait = house.obtain(&client, &wanted).await.unwrap_err();
                assert_eq!(wait.kind, FailureKind::Wait, "{case}");
                continue;
            }
            let obtained = house.obtain(&client, &wanted).await.unwrap_or_else(|next| panic!("{case}, then {next}"));
            assert_eq!(obtained.resumed, has_order, "{case}");
            if has_order {
                assert_eq!(authority.counters().orders, orders, "{case}");
            }
            assert_eq!(authority.counters().accounts, 1, "{case}");
        }
    }
}

#[tokio::test]
async fn an_authority_that_never_answers_is_left_at_the_deadline() {
    for (resource, has_order) in STEPS {
        let (authority, mut house) = (Authority::start(), House::new());
        house.client(&authority).await;
        house.patience.request = Duration::from_millis(400);
        house.patience.order = Duration::from_secs(6);
        let client = house.client(&authority).await;
        let wanted = wanted(&["a.example"]);
        authority.fault(resource, What::Silence);
        let begun = Instant::now();
        let failure = house.obtain(&client, &wanted).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10), "{resource:?}: {:?}", begun.elapsed());
        assert_eq!(failure.kind, FailureKind::Unreachable, "{resource:?}: {failure}");
        assert!(failure.to_string().contains("no answer within 400ms"), "{resource:?}: {failure}");
        authority.repair();
        house.patience = PATIENCE;
        let client = house.client(&authority).await;
        let obtained = house.obtain(&client, &wanted).await.unwrap();
        assert_eq!((obtained.resumed, authority.counters().orders), (has_order, 1), "{resource:?}");
    }
}

#[tokio::test]
async fn a_silent_directory_is_left_at_the_deadline() {
    let (authority, mut house) = (Authority::start(), House::new());
    house.patience.request = Duration::from_millis(300);
    authority.fault(Resource::Directory, What::Silence);
    let failure = house.open(&settings(&authority)).await.err().unwrap();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(failure.to_string().contains("no answer within 300ms"), "{failure}");
}

#[tokio::test]
async fn retry_after_reaches_the_failure_as_seconds_and_as_a_date() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
    for (number, (status, problem, said)) in
        [(429, "rateLimited", "1800".to_owned()), (429, "rateLimited", date), (503, "rateLimited", "2400".to_owned())]
            .into_iter()
            .enumerate()
    {
        let detail = "too many certificates (5) already issued";
        authority.fault_times(Resource::NewOrder, 1, What::Problem(status, problem, detail, Some(said.clone())));
        let wanted = wanted(&[&format!("n{number}.example")]);
        let failure = house.obtain(&client, &wanted).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::RateLimited, "{said}: {failure}");
        let seconds = failure.retry_after.unwrap().as_secs();
        assert!((1790..=3600).contains(&seconds), "{said} became {seconds}");
        assert_eq!(
            failure.to_string(),
            "127.0.0.1 refuses an order: too many certificates (5) already issued (rateLimited)"
        );
    }
}

#[tokio::test]
async fn nonces_that_are_never_good_end_the_attempt() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    authority.rules(|rules| rules.wrong_nonces = true);
    let wanted = wanted(&["a.example"]);
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert!(failure.to_string().contains("(badNonce)"), "{failure}");
    let refused = authority.counters().bad_nonces;
    assert!((12..=100).contains(&refused), "{refused} attempts");
    authority.rules(|rules| rules.wrong_nonces = false);
    house.obtain(&client, &wanted).await.unwrap();
}

#[tokio::test]
async fn an_order_that_is_not_decided_stays_open() {
    for stuck in [Stuck::Pending, Stuck::Processing] {
        let (authority, mut house) = (Authority::with(|rules| rules.stuck = Some(stuck)), House::new());
        house.patience.order = Duration::from_secs(1);
        let client = house.client(&authority).await;
        let wanted = wanted(&["a.example"]);
        let failure = house.obtain(&client, &wanted).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unfinished, "{stuck:?}: {failure}");
        assert!(failure.to_string().ends_with("the order stays open"), "{failure}");
        assert!(house.has_open_order(&wanted));
        assert_eq!(house.ledger.last_failure(None, &wanted.names).unwrap().1, failure.to_string());
        authority.rules(|rules| rules.stuck = None);
        house.patience.order = Duration::from_secs(20);
        let client = house.client(&authority).await;
        let obtained = house.obtain(&client, &wanted).await.unwrap();
        assert!(obtained.resumed);
        let counters = authority.counters();
        assert_eq!((counters.orders, counters.certificates), (1, 1), "{stuck:?}");
        assert_eq!(house.ledger.last_failure(None, &wanted.names), None, "the certificate outweighs the failure");
    }
}

#[tokio::test]
async fn a_pause_that_is_longer_than_the_deadline_is_not_sat_out() {
    for (told, believed) in [(3600, 3600), (u64::MAX, 7 * 86_400)] {
        let authority = Authority::with(|rules| {
            rules.stuck = Some(Stuck::Pending);
            rules.order_retry_after = Some(told);
        });
        let house = House::new();
        let client = house.client(&authority).await;
        let begun = Instant::now();
        let failure = house.obtain(&client, &wanted(&["a.example"])).await.unwrap_err();
        assert_eq!((failure.kind, failure.retry_after), (FailureKind::Unfinished, Some(Duration::from_secs(believed))));
        assert!(begun.elapsed() < Duration::from_secs(15));
    }
}

#[tokio::test]
async fn an_order_that_is_processed_for_a_while_is_waited_for() {
    let authority = Authority::with(|rules| rules.processing = 5);
    let house = House::new();
    let client = house.client(&authority).await;
    house.obtain(&client, &wanted(&["a.example"])).await.unwrap();
}

#[tokio::test]
async fn a_wrong_certificate_is_never_served() {
    for (issues, said) in [
        (Issues::WrongKey, "a certificate for another key"),
        (Issues::OtherNames, "a certificate that does not name a.example"),
        (Issues::Expired, "a certificate that is not valid now"),
        (Issues::Garbage, "a damaged certificate"),
    ] {
        let (authority, house) = (Authority::start(), House::new());
        let client = house.client(&authority).await;
        let wanted = wanted(&["a.example"]);
        let good = house.obtain(&client, &wanted).await.unwrap();
        authority.rules(|rules| rules.issues = issues);
        let failure = house.obtain(&client, &wanted).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::WrongCertificate, "{issues:?}: {failure}");
        assert!(failure.to_string().contains(said), "{issues:?}: {failure}");
        assert_eq!(house.live(&wanted).certified.cert[0], good.leaf, "{issues:?}");
        assert!(
            house.certificate(&wanted).draft().unwrap().is_none(),
            "{issues:?}: it would be fetched again for ever"
        );
        authority.rules(|rules| rules.issues = Issues::Right);
        let next = house.obtain(&client, &wanted).await.unwrap();
        assert_eq!(house.live(&wanted).certified.cert[0], next.leaf);
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_fetched_again_until_it_is() {
    let (authority, mut house) = (Authority::with(|rules| rules.issues = Issues::ValidIn(3)), House::new());
    let client = house.client(&authority).await;
    let wanted = wanted(&["a.example"]);
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotYetValid, "{failure}");
    assert!(failure.issued && failure.to_string().contains("is the clock of this machine right"), "{failure}");
    assert!(!house.certificate(&wanted).live().0.exists());
    // As after a restart.
    house.reopen();
    let client = house.client(&authority).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    let obtained = loop {
        match house.obtain(&client, &wanted).await {
            Ok(obtained) => break obtained,
            Err(failure) => assert_eq!(failure.kind, FailureKind::NotYetValid, "{failure}"),
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(obtained.resumed);
    let counters = authority.counters();
    assert_eq!((counters.orders, counters.certificates), (1, 1), "one is enough");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_count_as_certificates() {
    let (authority, house) = (Authority::with(|rules| rules.issues = Issues::Expired), House::new());
    let client = house.client(&authority).await;
    let wanted = wanted(&["a.example"]);
    for _ in 0..4 {
        assert!(house.obtain(&client, &wanted).await.unwrap_err().issued);
    }
    let later = SystemTime::now() + Duration::from_secs(5 * 86_400);
    let wait = house.ledger.may_order(client.directory(), &wanted.names, true, later).unwrap_err();
    assert!(wait.why.starts_with("4 certificates for exactly these names"), "{}", wait.why);
}

#[tokio::test]
async fn an_order_that_the_authority_lost_is_placed_again() {
    let (authority, mut house) = (Authority::with(|rules| rules.stuck = Some(Stuck::Pending)), House::new());
    house.patience.order = Duration::from_millis(500);
    let client = house.client(&authority).await;
    let wanted = wanted(&["a.example"]);
    house.obtain(&client, &wanted).await.unwrap_err();
    authority.lose_orders();
    authority.rules(|rules| rules.stuck = None);
    house.patience.order = Duration::from_secs(20);
    let client = house.client(&authority).await;
    assert!(!house.obtain(&client, &wanted).await.unwrap().resumed);
    assert_eq!(authority.counters().orders, 2);
}

#[tokio::test]
async fn another_authority_begins_its_own_order() {
    let (first, second) = (Authority::with(|rules| rules.stuck = Some(Stuck::Pending)), Authority::start());
    let mut house = House::new();
    house.patience.order = Duration::from_millis(500);
    let wanted = wanted(&["a.example"]);
    let client = house.client(&first).await;
    house.obtain(&client, &wanted).await.unwrap_err();
    house.patience.order = Duration::from_secs(20);
    let client = house.client(&second).await;
    assert!(!house.obtain(&client, &wanted).await.unwrap().resumed);
    assert_eq!((first.counters().orders, second.counters().orders), (1, 1));
}

#[tokio::test]
async fn an_order_outlasts_the_vain_attempt_at_another_authority() {
    let stuck = || Authority::with(|rules| rules.stuck = Some(Stuck::Pending));
    let (first, second, mut house) = (stuck(), stuck(), House::new());
    house.patience.order = Duration::from_millis(500);
    let wanted = wanted(&["a.example"]);
    for authority in [&first, &second, &first, &second] {
        let client = house.client(authority).await;
        assert_eq!(house.obtain(&client, &wanted).await.unwrap_err().kind, FailureKind::Unfinished);
        house.reopen();
    }
    for authority in [&first, &second] {
        assert!(is_open(&authority.directory(), &wanted, &house.certificate(&wanted)).unwrap());
    }
    first.rules(|rules| rules.stuck = None);
    house.patience.order = Duration::from_secs(20);
    let client = house.client(&first).await;
    assert!(house.obtain(&client, &wanted).await.unwrap().resumed);
    assert_eq!((first.counters().orders, second.counters().orders), (1, 1));
}
