//! Orders that succeed, and what may be wished for with them.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use doorward::acme::failure::FailureKind;
use doorward::keys::KeyKind;

use super::authority::{Authority, Replaces, Resource, What};
use super::house::{House, name, wanted};

#[tokio::test]
async fn a_certificate_is_obtained_and_live() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    let wanted = wanted(&["a.example", "www.a.example"]);
    let obtained = house.obtain(&client, &wanted).await.unwrap();
    assert!(!obtained.resumed);
    let live = house.live(&wanted);
    assert_eq!(live.names, [name("a.example"), name("www.a.example")]);
    assert_eq!(live.certified.cert[0], obtained.leaf);
    assert_eq!((live.not_before, live.not_after), (obtained.not_before, obtained.not_after));
    let (chain, key) = house.certificate(&wanted).live();
    for file in [chain, key] {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let counters = authority.counters();
    assert_eq!((counters.accounts, counters.orders, counters.certificates), (1, 1, 1));
    assert_eq!(counters.chosen, ["http-01", "http-01"]);
    assert!(counters.connections < 4, "{} connections", counters.connections);
    assert!(counters.user_agent.starts_with("doorward/"), "{}", counters.user_agent);
    assert!(house.certificate(&wanted).draft().unwrap().is_none());
    assert_eq!(house.ledger.last_failure(None, &wanted.names), None);
}

#[tokio::test]
async fn every_kind_of_key_is_certified() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    for (host, kind) in [("p384.example", KeyKind::EcdsaP384), ("rsa.example", KeyKind::Rsa2048)] {
        let mut wanted = wanted(&[host]);
        wanted.key_kind = kind;
        house.obtain(&client, &wanted).await.unwrap();
        house.live(&wanted).certified.keys_match().unwrap();
    }
}

#[tokio::test]
async fn twenty_of_twenty_orders_succeed_when_half_of_the_nonces_are_refused() {
    let authority = Authority::with(|rules| rules.bad_nonce = 50);
    let house = House::new();
    let client = house.client(&authority).await;
    for number in 0..20 {
        let wanted = wanted(&[&format!("n{number}.example")]);
        house.obtain(&client, &wanted).await.unwrap_or_else(|failure| panic!("order {number}: {failure}"));
    }
    let counters = authority.counters();
    assert_eq!((counters.orders, counters.certificates, counters.accounts), (20, 20, 1));
    assert!(counters.bad_nonces > 50, "{}", counters.bad_nonces);
}

#[tokio::test]
async fn several_orders_at_once_do_not_hinder_each_other() {
    let authority = Authority::with(|rules| rules.validation_delay = Duration::from_millis(50));
    let house = House::new();
    let client = house.client(&authority).await;
    let wishes: Vec<_> = (0..5).map(|number| wanted(&[&format!("n{number}.example")])).collect();
    let (a, b, c, d, e) = tokio::join!(
        house.obtain(&client, &wishes[0]),
        house.obtain(&client, &wishes[1]),
        house.obtain(&client, &wishes[2]),
        house.obtain(&client, &wishes[3]),
        house.obtain(&client, &wishes[4]),
    );
    for result in [a, b, c, d, e] {
        result.unwrap();
    }
    assert_eq!(authority.counters().orders, 5);
}

#[tokio::test]
async fn a_renewal_names_what_it_replaces() {
    for (replaces, is_named) in
        [(Replaces::Reflected, true), (Replaces::Ignored, true), (Replaces::AlreadyReplaced, false)]
    {
        let (authority, house) = (Authority::start(), House::new());
        let client = house.client(&authority).await;
        let mut wanted = wanted(&["a.example"]);
        let first = house.obtain(&client, &wanted).await.unwrap();
        authority.rules(|rules| rules.replaces = replaces);
        wanted.replaces = Some(first.leaf.clone());
        let second = house.obtain(&client, &wanted).await.unwrap_or_else(|failure| panic!("{replaces:?}: {failure}"));
        assert_ne!(first.leaf, second.leaf);
        assert_eq!(house.live(&wanted).certified.cert[0], second.leaf);
        assert_eq!(authority.counters().orders, 2, "{replaces:?}: what is placed is gone on with");
        let (_, replaced) = authority.counters().last_order;
        assert_eq!(replaced.is_some(), is_named, "{replaces:?}");
    }
}

#[tokio::test]
async fn without_renewal_information_nothing_is_replaced() {
    let authority = Authority::with(|rules| rules.renewal_info = false);
    let house = House::new();
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["a.example"]);
    let first = house.obtain(&client, &wanted).await.unwrap();
    wanted.replaces = Some(first.leaf.clone());
    house.obtain(&client, &wanted).await.unwrap();
    let counters = authority.counters();
    assert_eq!((counters.orders, counters.last_order.1), (2, None));
    assert_eq!(client.renewal_info(&first.leaf).await.unwrap(), None);
}

#[tokio::test]
async fn a_profile_is_ordered_only_where_it_is_offered() {
    let authority = Authority::with(|rules| {
        rules.profiles = vec![("classic", "as ever"), ("shortlived", "six days"), ("x\u{1b}[2J\n", "rude")];
        rules.lifetime = Duration::from_secs(6 * 86_400);
    });
    let house = House::new();
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["a.example"]);
    wanted.profile = Some("short-lived".to_owned());
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    let text = failure.to_string();
    assert!(text.contains("no profile \"short-lived\" (it offers: classic, shortlived, x [2J )"), "{text}");
    assert_eq!(authority.counters().requests.get(&Resource::NewOrder), None, "it was not asked");
    assert!(failure.attempt.is_none());

    wanted.profile = Some("shortlived".to_owned());
    let obtained = house.obtain(&client, &wanted).await.unwrap();
    assert!(obtained.not_after < SystemTime::now() + Duration::from_secs(7 * 86_400));
    assert_eq!(authority.counters().last_order.0.as_deref(), Some("shortlived"));
}

#[tokio::test]
async fn a_name_that_is_refused_is_named() {
    let authority = Authority::with(|rules| rules.rejected = vec!["bad.example".to_owned()]);
    let house = House::new();
    let client = house.client(&authority).await;
    let failure = house.obtain(&client, &wanted(&["a.example", "bad.example"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert_eq!(failure.names.len(), 1);
    assert_eq!(failure.names[0].0, name("bad.example"));
    assert!(failure.names[0].1.contains("Policy forbids"), "{failure}");
    assert!(failure.attempt.is_some(), "it was asked");
    house.obtain(&client, &wanted(&["a.example"])).await.unwrap();
}

#[tokio::test]
async fn what_the_ledger_forbids_is_not_asked() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    let wanted = wanted(&["a.example"]);
    authority.fault(Resource::NewOrder, What::Html(500));
    for _ in 0..4 {
        assert_eq!(house.obtain(&client, &wanted).await.unwrap_err().kind, FailureKind::Unreachable);
    }
    authority.repair();
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Wait, "{failure}");
    assert!(failure.retry_after.unwrap() > Duration::from_secs(3000), "{failure:?}");
    assert!(failure.attempt.is_none());
    assert_eq!(authority.counters().orders, 0);
}

#[tokio::test]
async fn renewal_information_is_read_as_it_is_meant() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    let leaf = house.obtain(&client, &wanted(&["a.example"])).await.unwrap().leaf;
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    authority.rules(|rules| rules.window = Some((at(1_900_000_000), at(1_900_086_400))));
    let window = client.renewal_info(&leaf).await.unwrap().unwrap();
    assert_eq!((window.start, window.end), (at(1_900_000_000), at(1_900_086_400)));
    assert_eq!(window.explanation.as_deref(), Some("https://acme.example/why"));

    for nonsense in ["javascript:alert(1)", "https://x/\u{1b}[2J", "see\nhttps://x/", &"https://x/".repeat(30)] {
        authority.rules(|rules| rules.explanation = nonsense.to_owned());
        assert_eq!(client.renewal_info(&leaf).await.unwrap().unwrap().explanation, None, "{nonsense:?}");
    }

    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let minute = Duration::from_secs(60);
    for (told, again) in [(None, hours(6)), (Some(1), minute), (Some(7200), hours(2)), (Some(u64::MAX), hours(24))] {
        authority.rules(|rules| rules.window_retry_after = told);
        let window = client.renewal_info(&leaf).await.unwrap().unwrap();
        let difference = window.check_again.abs_diff(again);
        assert!(difference < Duration::from_secs(30), "{told:?} became {:?}", window.check_again);
    }

    authority.rules(|rules| rules.window = Some((at(1_900_000_000), at(1_900_000_000))));
    assert_eq!(client.renewal_info(&leaf).await.unwrap_err().kind, FailureKind::Unreachable);
    authority.rules(|rules| rules.window = None);
    authority.fault(Resource::RenewalInfo, What::Html(500));
    assert_eq!(client.renewal_info(&leaf).await.unwrap_err().kind, FailureKind::Unreachable);

    let stranger = Authority::start();
    let elsewhere = House::new();
    let other = elsewhere.client(&stranger).await;
    assert_eq!(other.renewal_info(&leaf).await.unwrap(), None, "not its certificate");
}
