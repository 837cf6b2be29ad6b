//! What is thrown at a server one request at a time, as data: each case is sent to Doorward and to nginx.

#[path = "corpus/answers.rs"]
mod answers;
#[path = "corpus/both.rs"]
mod both;
#[path = "corpus/case.rs"]
mod case;
#[path = "corpus/client.rs"]
mod client;
#[path = "corpus/framing.rs"]
mod framing;
#[path = "corpus/heads.rs"]
mod heads;
#[path = "corpus/http2.rs"]
mod http2;
#[path = "corpus/neighbours.rs"]
mod neighbours;
#[path = "corpus/nginx.rs"]
mod nginx;
#[path = "corpus/record.rs"]
mod record;
#[path = "corpus/trust.rs"]
mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::edge::{Edge, eventually, send};
use case::{Case, Sent, Verdict};
use record::Recorder;

/// A second site, a rule, and little patience for bodies that do not come.
fn edge(back_end: SocketAddr) -> Edge {
    let extra = format!(
        "[timeouts]\nbody = \"2s\"\n\
         [site.b]\nhosts = [\"b.test\"]\nhttp = \"serve\"\ntls = \"self-signed\"\nupstream = \"http://{back_end}\"\n\
         [[site.a.route]]\npath = \"/admin/*\"\nrespond = 403\n",
    );
    Edge::start(back_end, &extra)
}

fn over_http1() -> Vec<Case> {
    [framing::cases(), heads::cases(), trust::cases()].into_iter().flat_map(|cases| cases.0).collect()
}

/// Sends all of `cases` and fails for those that came out otherwise.
fn hold(cases: &[Case]) {
    let back_end = Recorder::start();
    let edge = edge(back_end.address);
    let mut wrong = Vec::new();
    for case in cases {
        let got = client::verdict(edge.https, &back_end, case);
        if got != case.want {
            wrong.push(format!("{} (row {}):\n  want {:?}\n  got  {got:?}", case.name, case.row, case.want));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(back_end.faults(), Vec::<String>::new(), "what reached the back end is not beyond doubt");
}

#[test]
fn every_case_over_http1_has_its_verdict_and_the_back_end_gets_what_was_parsed() {
    hold(&over_http1());
}

#[test]
fn every_case_over_http2_has_its_verdict_and_the_back_end_gets_what_was_parsed() {
    hold(&http2::cases().0);
}

#[test]
fn what_can_be_said_in_both_protocols_has_the_same_verdict_in_both() {
    let back_end = Recorder::start();
    let edge = edge(back_end.address);
    let pairs: Vec<(Case, Case)> =
        over_http1().into_iter().filter_map(|case| both::translate(&case).map(|other| (case, other))).collect();
    assert!(pairs.len() >= 200, "{}", pairs.len());
    let mut wrong = Vec::new();
    for (case, other) in &pairs {
        let got = client::verdict(edge.https, &back_end, other);
        if !both::agree(&case.want, &got) && !both::EXCEPT.iter().any(|(name, _)| *name == case.name) {
            wrong.push(format!("{}:\n  HTTP/1.1 {:?}\n  HTTP/2   {got:?}", case.name, case.want));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), pairs.len(), wrong.join("\n"));
}

/// The back end has the head already: it must never get the rest for a whole request.
#[test]
fn a_body_that_breaks_behind_its_head_is_the_clients_fault_and_never_completed() {
    let back_end = Recorder::start();
    let edge = edge(back_end.address);
    let kinds = ["ext-", "size-", "data-", "last-", "trailer-", "cl-short"];
    let broken = |case: &Case| kinds.iter().any(|kind| case.name.starts_with(kind));
    let mut tried = 0;
    for case in over_http1().iter().filter(|case| broken(case)) {
        let (Verdict::Closed(status), Sent::H1(bytes)) = (&case.want, &case.sent) else { continue };
        back_end.take();
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        let mut stream = client::h1(edge.https, "a.test");
        send(&mut stream, &bytes[..head]);
        eventually("the back end has the head", || back_end.count() == 1);
        let rest = bytes[head..].to_vec();
        // hyper would give its own answer to a body that ends with its connection.
        for piece in rest.chunks(rest.len().div_ceil(2).max(1)) {
            send(&mut stream, piece);
        }
        send(&mut stream, client::CANARY);
        let answers = client::answers(&client::read_all(&mut stream), false);
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [*status], "{}", case.name);
        let seen = back_end.take();
        assert!(seen.len() == 1 && !seen[0].whole, "{}: {seen:?}", case.name);
        tried += 1;
    }
    assert!(tried >= 40, "{tried}");
    assert_eq!(back_end.faults(), Vec::<String>::new());
}

/// `DOORWARD_BLESS=1` brings the rows of tests/hostile/nginx.md up to date; the reasons are for people to write.
#[test]
fn where_nginx_answers_otherwise_is_known_and_explained() {
    let back_end = Recorder::lenient();
    let nginx = nginx::Nginx::start(back_end.address);
    let mut seen = BTreeMap::new();
    for case in [over_http1(), http2::cases().0].concat() {
        let (ours, theirs) = (nginx::expected(&case), nginx::observe(&nginx, &back_end, &case));
        if ours != theirs {
            seen.insert(case.name, (ours, theirs));
        }
    }
    let listed = nginx::Listed::read();
    if std::env::var_os("DOORWARD_BLESS").is_some() {
        listed.bless(&seen);
    }
    let wrong = nginx::Listed::read().disagree(&seen);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_corpus_is_of_the_promised_size_and_its_names_are_unique() {
    let cases = [over_http1(), http2::cases().0].concat();
    let mut names = BTreeSet::new();
    let twice: Vec<&str> = cases.iter().map(|case| case.name.as_str()).filter(|name| !names.insert(*name)).collect();
    assert_eq!(twice, Vec::<&str>::new());
    assert!(cases.len() >= 400, "{}", cases.len());
    assert!(cases.iter().all(|case| !matches!(case.want, Verdict::Odd(_))));
}
