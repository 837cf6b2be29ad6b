//! The account: made once.

use doorward::acme::failure::FailureKind;
use doorward::acme::settings::ExternalAccount;

use super::authority::{Authority, Resource, What};
use super::house::{House, settings, wanted};

#[tokio::test]
async fn an_account_is_made_once_and_used_for_ever() {
    let (authority, house) = (Authority::start(), House::new());
    for _ in 0..3 {
        let client = house.client(&authority).await;
        assert_eq!(client.directory(), authority.directory());
    }
    let counters = authority.counters();
    assert_eq!(counters.accounts, 1);
    assert_eq!(counters.requests[&Resource::NewAccount], 1);
}

#[tokio::test]
async fn a_crash_right_after_the_account_was_made_does_not_make_a_second_one() {
    let (authority, house) = (Authority::start(), House::new());
    // The authority has acted, and the answer is lost.
    authority.fault_times(Resource::NewAccount, 1, What::BreakOff);
    assert_eq!(house.open(&settings(&authority)).await.err().unwrap().kind, FailureKind::Unreachable);
    assert_eq!(authority.counters().accounts, 1);
    house.client(&authority).await;
    assert_eq!(authority.counters().accounts, 1, "the key was on the disk before the authority heard of it");
}

#[tokio::test]
async fn an_account_that_the_authority_lost_is_made_anew() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    authority.lose_accounts();
    let wanted = wanted(&["a.example"]);
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.to_string().contains("made anew at the next attempt"), "{failure}");
    let client = house.client(&authority).await;
    house.obtain(&client, &wanted).await.unwrap();
    assert_eq!(authority.counters().accounts, 2);
}

#[tokio::test]
async fn a_damaged_record_of_the_account_is_looked_up_again() {
    let (authority, house) = (Authority::start(), House::new());
    house.client(&authority).await;
    for entry in std::fs::read_dir(house.storage.root().join("accounts")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            std::fs::write(path, "{").unwrap();
        }
    }
    let client = house.client(&authority).await;
    house.obtain(&client, &wanted(&["a.example"])).await.unwrap();
    assert_eq!(authority.counters().accounts, 1);
}

#[tokio::test]
async fn the_contact_is_told_and_told_again_when_it_changes() {
    let (authority, mut house) = (Authority::start(), House::new());
    house.email = Some("a@a.example");
    house.client(&authority).await;
    assert_eq!(authority.counters().contact, ["mailto:a@a.example"]);
    house.client(&authority).await;
    assert_eq!(authority.counters().requests[&Resource::Account], 1, "once is enough");
    house.email = Some("b@a.example");
    house.client(&authority).await;
    assert_eq!(authority.counters().contact, ["mailto:b@a.example"]);
    house.email = None;
    house.client(&authority).await;
    assert!(authority.counters().contact.is_empty());
}

#[tokio::test]
async fn a_contact_that_is_refused_does_not_stand_in_the_way() {
    let (authority, mut house) = (Authority::start(), House::new());
    house.email = Some("me@example.com");
    let client = house.client(&authority).await;
    house.obtain(&client, &wanted(&["a.example"])).await.unwrap();
}

#[tokio::test]
async fn an_external_account_is_bound() {
    let secret = b"a secret of thirty-two bytes....".to_vec();
    let authority = Authority::with(|rules| rules.external_account = Some(("kid-1".to_owned(), secret.clone())));
    let mut house = House::new();
    house.email = Some("a@a.example");
    let mut settings = settings(&authority);
    let failure = house.open(&settings).await.err().unwrap();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.to_string().contains("set eab of this authority"), "{failure}");

    settings.external_account = Some(ExternalAccount { key_id: "kid-1".to_owned(), hmac_key: b"wrong".to_vec() });
    let failure = house.open(&settings).await.err().unwrap();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    assert_eq!(authority.counters().accounts, 0);

    settings.external_account = Some(ExternalAccount { key_id: "kid-1".to_owned(), hmac_key: secret });
    let client = house.open(&settings).await.unwrap();
    assert_eq!(authority.counters().contact, ["mailto:a@a.example"]);
    house.obtain(&client, &wanted(&["a.example"])).await.unwrap();
    let client = house.open(&settings).await.unwrap();
    house.obtain(&client, &wanted(&["b.example"])).await.unwrap();
    assert_eq!(authority.counters().accounts, 1);
}

#[tokio::test]
async fn a_bound_account_is_found_again_when_its_record_is_lost() {
    let secret = b"a secret".to_vec();
    let authority = Authority::with(|rules| rules.external_account = Some(("kid-1".to_owned(), secret.clone())));
    let house = House::new();
    let mut settings = settings(&authority);
    settings.external_account = Some(ExternalAccount { key_id: "kid-1".to_owned(), hmac_key: secret });
    house.open(&settings).await.unwrap();
    for entry in std::fs::read_dir(house.storage.root().join("accounts")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let client = house.open(&settings).await.unwrap();
    house.obtain(&client, &wanted(&["a.example"])).await.unwrap();
    assert_eq!(authority.counters().accounts, 1);
}

#[tokio::test]
async fn only_who_is_trusted_is_asked() {
    let (authority, stranger, house) = (Authority::start(), Authority::start(), House::new());
    let mut settings = settings(&authority);
    settings.directory_ca = Some(stranger.ca_file());
    let failure = house.open(&settings).await.err().unwrap();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(failure.to_string().contains("directory_ca") && failure.to_string().contains("certificate"), "{failure}");
    settings.directory_ca = Some(house.path("absent.pem"));
    let failure = house.open(&settings).await.err().unwrap();
    assert!(failure.to_string().contains("absent.pem"), "{failure}");
    assert_eq!(authority.counters().requests.len(), 0);
}

#[tokio::test]
async fn an_authority_without_https_is_not_asked() {
    let (authority, house) = (Authority::start(), House::new());
    let mut settings = settings(&authority);
    settings.directory = settings.directory.replace("https://", "http://");
    let failure = house.open(&settings).await.err().unwrap();
    assert!(failure.to_string().contains("is not https"), "{failure}");
}
