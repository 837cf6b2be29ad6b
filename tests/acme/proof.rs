//! Proving names: the authority really asks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use doorward::acme::failure::FailureKind;
use doorward::acme::order::hand_over;
use doorward::acme::settings::{ChallengeKind, DnsHook};
use doorward::tls::challenges::Challenges;
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::LazyConfigAcceptor;

use super::authority::{Authority, Resource, Stuck, Validation, What};
use super::house::{House, name, wanted};

/// A port 80 that knows nothing but challenges.
async fn http(challenges: &Arc<Challenges>) -> u16 {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (port, challenges) = (listener.local_addr().unwrap().port(), Arc::clone(challenges));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let answer = path.strip_prefix("/.well-known/acme-challenge/").and_then(|token| challenges.http(token));
            let answer = match answer {
                Some(answer) => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{answer}"),
                None => "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n".to_owned(),
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

/// A port 443 that knows nothing but challenges.
async fn tls(challenges: &Arc<Challenges>) -> u16 {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (port, challenges) = (listener.local_addr().unwrap().port(), Arc::clone(challenges));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(start) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else { continue };
            let name = start.client_hello().server_name().unwrap_or_default().to_owned();
            if let Some(config) = challenges.tls_alpn(&name) {
                let _ = start.into_stream(config).await;
            }
        }
    });
    port
}

/// A hook that keeps records in a folder, a file for each name, and notes each run.
fn hook(house: &House, after: &str) -> (DnsHook, PathBuf) {
    let records = house.path("records");
    std::fs::create_dir_all(&records).unwrap();
    let script = house.path("hook.sh");
    let text = format!(
        "set -e\ncd {}\necho \"$1 $2 $3\" >> log\ncase $1 in\nadd) echo \"$3\" >> \"$2\";;\n\
         remove) grep -v -x -F -e \"$3\" \"$2\" > \"$2.new\" || true; mv \"$2.new\" \"$2\";;\nesac\n{after}\n",
        records.display()
    );
    std::fs::write(&script, text).unwrap();
    // Through the shell: the system does not run a file that was open for writing in a child of another test.
    (DnsHook { command: vec!["/bin/sh".to_owned(), script.display().to_string()], wait: Duration::ZERO }, records)
}

fn log(records: &std::path::Path) -> Vec<String> {
    let log = std::fs::read_to_string(records.join("log")).unwrap_or_default();
    log.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn names_are_shown_by_http() {
    let (authority, house) = (Authority::start(), House::new());
    let port = http(&house.challenges).await;
    authority.rules(|rules| rules.validation = Validation::Real { http: Some(port), tls_alpn: None, dns: None });
    let client = house.client(&authority).await;
    house.obtain(&client, &wanted(&["a.example", "b.example"])).await.unwrap();
    assert_eq!(authority.counters().chosen, ["http-01", "http-01"]);
}

#[tokio::test]
async fn names_and_addresses_are_shown_by_a_handshake() {
    let (authority, house) = (Authority::start(), House::new());
    let port = tls(&house.challenges).await;
    authority.rules(|rules| rules.validation = Validation::Real { http: None, tls_alpn: Some(port), dns: None });
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["a.example", "192.0.2.7", "2001:db8::567:89ab"]);
    wanted.challenges = vec![ChallengeKind::TlsAlpn];
    house.obtain(&client, &wanted).await.unwrap();
    assert_eq!(house.live(&wanted).names, wanted.names);
}

#[tokio::test]
async fn a_name_and_its_wildcard_are_shown_by_two_records_at_one_place() {
    let (authority, house) = (Authority::start(), House::new());
    let (hook, records) = hook(&house, "");
    let real = Validation::Real { http: None, tls_alpn: None, dns: Some(records.clone()) };
    authority.rules(|rules| rules.validation = real);
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["a.example", "*.a.example"]);
    wanted.challenges = vec![ChallengeKind::Dns];
    wanted.dns_hook = Some(hook);
    house.obtain(&client, &wanted).await.unwrap();
    let place = "_acme-challenge.a.example";
    let (add, remove) = (format!("add {place}"), format!("remove {place}"));
    assert_eq!(log(&records), [add.clone(), add, remove.clone(), remove], "both are set before either is asked for");
    assert_eq!(std::fs::read_to_string(records.join(place)).unwrap(), "");
}

#[tokio::test]
async fn a_hook_that_fails_is_told_and_what_it_set_is_removed() {
    let (authority, house) = (Authority::start(), House::new());
    let (hook, records) = hook(&house, "if [ $1 = add ]; then echo the zone is locked; exit 7; fi");
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["*.a.example"]);
    wanted.dns_hook = Some(hook);
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Hook);
    let text = failure.to_string();
    assert!(text.contains("exit status: 7") && text.ends_with("the zone is locked"), "{text}");
    assert_eq!(failure.names.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&wanted.names[0]]);
    assert_eq!(log(&records), ["add _acme-challenge.a.example", "remove _acme-challenge.a.example"]);
    assert!(house.has_open_order(&wanted), "the next attempt needs no new order");
}

#[tokio::test]
async fn a_broken_hook_names_all_that_it_cannot_do_and_nothing_else() {
    let (authority, house) = (Authority::start(), House::new());
    let (hook, records) = hook(&house, "case $1$2 in add*b.example|add*c.example) echo no such zone; exit 7;; esac");
    let client = house.client(&authority).await;
    let mut all = wanted(&["a.example", "*.a.example", "*.b.example", "*.c.example", "d.example"]);
    (all.challenges, all.dns_hook) = (vec![ChallengeKind::Http], Some(hook));
    let failure = house.obtain(&client, &all).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Hook);
    let named: Vec<&str> = failure.names.iter().map(|(_, said)| said.as_str()).collect();
    let names: Vec<String> = failure.names.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["*.b.example", "*.c.example"], "{failure}");
    assert!(named.iter().all(|said| said.contains("exit status: 7")), "{failure}");
    let kinds: Vec<String> = failure.failed.iter().map(|(name, kind)| format!("{name} {kind:?}")).collect();
    assert_eq!(kinds, ["*.b.example Dns", "*.c.example Dns"]);
    assert_eq!(std::fs::read_to_string(records.join("_acme-challenge.a.example")).unwrap(), "", "taken back");
}

#[tokio::test]
async fn an_order_that_waits_for_some_of_its_names_says_for_which() {
    let (authority, mut house) = (Authority::start(), House::new());
    authority.rules(|rules| rules.never_looks_at = vec!["b.example".to_owned()]);
    house.patience.order = Duration::from_secs(2);
    let client = house.client(&authority).await;
    let failure = house.obtain(&client, &wanted(&["a.example", "b.example"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unfinished, "{failure}");
    let names: Vec<String> = failure.names.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["b.example"], "{failure}");
}

#[tokio::test]
async fn the_hook_s_time_is_not_waited_for_where_it_has_nothing_to_do() {
    let (authority, mut house) = (Authority::with(|rules| rules.stuck = Some(Stuck::Pending)), House::new());
    house.patience.order = Duration::from_secs(1);
    house.patience.hook = Duration::from_secs(600);
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["a.example"]);
    wanted.dns_hook = Some(hook(&house, "").0);
    let begun = std::time::Instant::now();
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(30), "{failure}");
    assert_eq!(failure.kind, FailureKind::Unfinished, "{failure}");
}

#[tokio::test]
async fn records_of_a_draft_that_is_given_up_are_removed_first() {
    let (authority, mut house) = (Authority::with(|rules| rules.stuck = Some(Stuck::Pending)), House::new());
    house.patience.order = Duration::from_secs(20);
    let (hook, records) = hook(&house, "");
    let client = house.client(&authority).await;
    let mut wider = wanted(&["*.a.example", "a.example"]);
    wider.dns_hook = Some(hook);
    tokio::select! {
        _ = house.obtain(&client, &wider) => panic!("it is stuck"),
        () = until(|| authority.counters().chosen.len() == 2) => {}
    }
    authority.rules(|rules| rules.stuck = None);
    let before = std::fs::read_to_string(records.join("_acme-challenge.a.example")).unwrap();
    let mut narrower = wider.clone();
    narrower.names.truncate(1);
    house.obtain(&client, &narrower).await.unwrap();
    assert_ne!(before, "");
    assert_eq!(std::fs::read_to_string(records.join("_acme-challenge.a.example")).unwrap(), "");
    assert_eq!(log(&records).iter().filter(|run| run.starts_with("remove")).count(), 2);
}

#[tokio::test]
async fn nothing_is_asked_before_all_records_are_set() {
    let (authority, house) = (Authority::start(), House::new());
    let (hook, records) = hook(&house, "if [ $1 = add ] && [ $(wc -l < log) = 2 ]; then exit 7; fi");
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["a.example", "*.a.example"]);
    (wanted.challenges, wanted.dns_hook) = (vec![ChallengeKind::Dns], Some(hook));
    assert_eq!(house.obtain(&client, &wanted).await.unwrap_err().kind, FailureKind::Hook);
    let runs: Vec<String> = log(&records).iter().map(|run| run.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(runs, ["add", "add", "remove", "remove"]);
    assert!(authority.counters().chosen.is_empty());
}

#[tokio::test]
async fn records_of_an_attempt_that_was_killed_are_removed_by_the_next_one() {
    let (authority, house) = (Authority::with(|rules| rules.stuck = Some(Stuck::Pending)), House::new());
    let (hook, records) = hook(&house, "");
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["*.a.example"]);
    wanted.dns_hook = Some(hook);
    tokio::select! {
        _ = house.obtain(&client, &wanted) => panic!("it is stuck"),
        () = until(|| authority.counters().chosen.len() == 1) => {}
    }
    assert_eq!(log(&records).len(), 1);
    authority.rules(|rules| rules.stuck = None);
    house.obtain(&client, &wanted).await.unwrap();
    assert_eq!(std::fs::read_to_string(records.join("_acme-challenge.a.example")).unwrap(), "");
}

#[tokio::test]
async fn what_failed_is_tried_another_way_the_next_time() {
    let (authority, house) = (Authority::start(), House::new());
    let port = tls(&house.challenges).await;
    authority.rules(|rules| rules.validation = Validation::Real { http: None, tls_alpn: Some(port), dns: None });
    let wanted = wanted(&["a.example"]);
    let client = house.client(&authority).await;
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Validation);
    assert_eq!(failure.names[0].0, name("a.example"));
    let text = failure.to_string();
    assert!(text.contains("a.example: HTTP-01: nobody is there (connection): ports 80 and 443"), "{text}");
    // As after a restart.
    let client = house.client(&authority).await;
    house.obtain(&client, &wanted).await.unwrap();
    assert_eq!(authority.counters().chosen, ["http-01", "tls-alpn-01"]);
    // A success wipes the slate.
    assert_eq!(house.obtain(&client, &wanted).await.unwrap_err().kind, FailureKind::Validation);
    assert_eq!(authority.counters().chosen.last().unwrap(), "http-01");
}

#[tokio::test]
async fn what_failed_in_company_is_tried_another_way_alone() {
    let (authority, house) = (Authority::start(), House::new());
    let port = tls(&house.challenges).await;
    authority.rules(|rules| rules.validation = Validation::Real { http: None, tls_alpn: Some(port), dns: None });
    let (both, alone) = (wanted(&["a.example", "b.example"]), wanted(&["b.example"]));
    let client = house.client(&authority).await;
    let failure = house.obtain(&client, &both).await.unwrap_err();
    hand_over(&failure, &name("b.example"), &house.certificate(&alone)).unwrap();
    house.obtain(&client, &alone).await.unwrap();
    // What is left of the others learns from its own draft.
    house.obtain(&client, &wanted(&["a.example"])).await.unwrap();
    assert_eq!(authority.counters().chosen, ["http-01", "http-01", "tls-alpn-01", "tls-alpn-01"]);
}

#[tokio::test]
async fn one_name_of_several_that_fails_is_the_one_that_is_named() {
    let (authority, house) = (Authority::start(), House::new());
    let port = http(&house.challenges).await;
    let (hook, _) = hook(&house, "");
    let elsewhere = house.path("elsewhere");
    let real = Validation::Real { http: Some(port), tls_alpn: None, dns: Some(elsewhere) };
    authority.rules(|rules| rules.validation = real);
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["a.example", "*.b.example"]);
    wanted.dns_hook = Some(hook);
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    let named: Vec<String> = failure.names.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(named, ["*.b.example"], "{failure}");
}

#[tokio::test]
async fn a_caa_record_that_forbids_is_a_refusal() {
    let authority = Authority::with(|rules| rules.failing.extend([("http-01", "caa")]));
    let house = House::new();
    let client = house.client(&authority).await;
    let failure = house.obtain(&client, &wanted(&["a.example"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.to_string().contains("CAA record"), "{failure}");
}

#[tokio::test]
async fn a_wildcard_without_a_hook_cannot_be_shown() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    let failure = house.obtain(&client, &wanted(&["*.a.example"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.to_string().contains("*.a.example: it offers DNS-01, and that takes acme.dns_hook"), "{failure}");
}

#[tokio::test]
async fn an_invitation_that_is_refused_ends_the_attempt_while_nothing_was_asked() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    authority.fault(Resource::Challenge, What::Problem(400, "malformed", "no, thank you", None));
    let failure = house.obtain(&client, &wanted(&["a.example"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.to_string().contains("no, thank you"), "{failure}");
}

#[tokio::test]
async fn only_names_that_were_ordered_are_shown() {
    let authority = Authority::with(|rules| rules.asks_about = Some("$(reboot).example".to_owned()));
    let house = House::new();
    let (hook, records) = hook(&house, "");
    let client = house.client(&authority).await;
    let mut wanted = wanted(&["*.a.example"]);
    wanted.dns_hook = Some(hook);
    let failure = house.obtain(&client, &wanted).await.unwrap_err();
    assert!(failure.to_string().contains("asks about a name that was not ordered"), "{failure}");
    assert!(log(&records).is_empty());
}

#[tokio::test]
async fn nothing_is_answered_when_no_order_is_open() {
    let (authority, house) = (Authority::start(), House::new());
    let client = house.client(&authority).await;
    let wanted = wanted(&["a.example"]);
    house.obtain(&client, &wanted).await.unwrap();
    assert!(house.challenges.tls_alpn("a.example").is_none());
    assert!(format!("{:?}", house.challenges).contains("http: {}"), "{:?}", house.challenges);
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
