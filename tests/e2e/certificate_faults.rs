//! Files from elsewhere that fail their site: half-written, mismatched, expired, gone, unreadable. Of two sites one
//! suffers every fault of the table and both are asked all the while, with a full handshake each time. The other one
//! must not notice; the first keeps its certificate, says why once, and serves the repaired one within a second and a half.

mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::faults::scene::{Row, ms};
use crate::fpm_load::SmallDisk;
use crate::harness::{
    BackEnd, Load, Proxy, Raw, SOON, Socket, World, binary, doorward_bound_by_modes, finish, is_root_for, promised,
    wait_for, wait_until,
};
use table::{ABSENCES, AtStart, CONTENTS, Fault, HOST, LINKS, Laid, Leaf, Site, UNREADABLE};

/// A repaired certificate is served this soon, and the log says that all is well again.
const REPAIR: Duration = Duration::from_millis(1500);
/// The site that must not notice.
const STEADY: &str = "b.test";

#[test]
fn files_that_hold_the_wrong_thing_fail_nobody_else() {
    each(&CONTENTS, under_load);
}

#[test]
fn files_that_are_gone_fail_nobody_else() {
    each(&ABSENCES, under_load);
}

#[test]
fn links_that_lead_astray_fail_nobody_else() {
    each(&LINKS, under_load);
}

#[test]
fn files_that_cannot_be_read_fail_nobody_else() {
    each(&UNREADABLE, under_load);
}

#[test]
fn a_start_with_files_that_hold_the_wrong_thing_fails_their_site_alone() {
    each(&CONTENTS, at_start);
}

#[test]
fn a_start_without_files_fails_their_site_alone() {
    each(&ABSENCES, at_start);
}

#[test]
fn a_start_with_links_that_lead_astray_fails_their_site_alone() {
    each(&LINKS, at_start);
}

#[test]
fn a_start_with_files_that_cannot_be_read_fails_their_site_alone() {
    each(&UNREADABLE, at_start);
}

#[test]
fn a_key_that_everybody_can_read_is_served_and_told() {
    let world = World::new();
    let site = Site::lay(&world, Laid::Files);
    let (_backend, proxy) = start(&world, &site);
    let wanted = site.renew();
    site.mode(&site.key(), 0o644);
    wait_until("the new certificate", promised(REPAIR), || shown(&world, &proxy) == wanted);
    let key = site.key().display().to_string();
    let line = wait_for("a warning", SOON, || told(&proxy, 0, "every user of this machine can read", &key));
    assert!(line.contains(" WARN "), "{line}");
    // On a busy machine the two files may be met in the middle of their writing. It was not the rights that were wrong: the
    // new pair is served.
    let wrong = |line: &String| line.contains(" ERROR ") && !line.contains("the previous one stays in service");
    assert!(!proxy.running.stderr().iter().any(wrong), "{}", proxy.running.said());
}

#[test]
fn without_inotify_files_are_polled() {
    let world = World::new();
    let site = Site::lay(&world, Laid::Certbot);
    let backend = BackEnd::start();
    // A user namespace has limits of its own: nothing else on this machine loses its eyes.
    let mut command = Command::new("unshare");
    let script = "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$0\" \"$@\"";
    command.args(["--user", "--map-root-user", "sh", "-c", script]).arg(binary());
    let proxy = Proxy::start_command(&world, &toml(&world, &site, &backend), command);
    wait_for("a word about it", SOON, || told(&proxy, 0, "cannot watch anything", "Too many open files"));
    let steady = Load::start(&world, &proxy, STEADY, 2);
    let wanted = site.renew();
    wait_until("the renewed certificate", promised(REPAIR), || shown(&world, &proxy) == wanted);
    let before = proxy.running.stderr().len();
    std::fs::write(site.cert(), "").unwrap();
    let cert = site.cert().display().to_string();
    wait_for("a word about the fault", promised(REPAIR), || told(&proxy, before, "there is no certificate in", &cert));
    assert_eq!(shown(&world, &proxy), wanted);
    let wanted = site.renew();
    recovers("polled", &world, &proxy, before, &site, &wanted);
    steady.stop();
}

#[test]
fn without_descriptors_the_old_certificate_stays_and_the_new_one_comes_when_there_are_some() {
    let world = World::new();
    let site = Site::lay(&world, Laid::Files);
    let (_backend, proxy) = start(&world, &site);
    let pid = Some(proxy.running.pid());
    let maximum = getrlimit(Resource::Nofile).maximum;
    let host = format!("{STEADY}:{}", proxy.https());
    let mut steady = proxy.raw(&world, STEADY);
    let mut asks = || {
        let (status, head) = steady.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).head();
        assert_eq!(status, 200, "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        steady.exactly(length.parse().unwrap());
    };
    asks();
    let before = proxy.running.stderr().len();
    let limits = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum }).unwrap();
    let wanted = site.renew();
    let cert = site.cert().display().to_string();
    let line = wait_for("a word about it", SOON, || told(&proxy, before, "Too many open files", &cert));
    assert!(line.contains("the previous one stays in service"), "{line}");
    asks();
    prlimit(pid, Resource::Nofile, limits).unwrap();
    recovers("descriptors", &world, &proxy, before, &site, &wanted);
    asks();
}

/// Goes through all rows, and fails with the names of those that failed.
fn each(rows: &[Fault], check: fn(&Fault)) {
    let fails = |row: &&Fault| catch_unwind(AssertUnwindSafe(|| check(row))).is_err();
    let failed: Vec<&str> = rows.iter().filter(fails).map(|row| row.what).collect();
    assert!(failed.is_empty(), "{} of {} faults: {failed:?}", failed.len(), rows.len());
}

/// Both sites, one back end. File modes bind the process, as they do a service.
fn start(world: &World, site: &Site<'_>) -> (BackEnd, Proxy) {
    let backend = BackEnd::start();
    let proxy = Proxy::start_command(world, &toml(world, site, &backend), doorward_bound_by_modes());
    (backend, proxy)
}

fn toml(world: &World, site: &Site<'_>, backend: &BackEnd) -> String {
    // In a folder of its own: nothing that happens to the other site's files may be seen for the sake of these.
    let steady = world.certificate("steady/pair", &[STEADY]);
    let to = backend.url();
    format!(
        "{}[site.a]\nhosts = [{HOST:?}]\ntls = {:?}\nupstream = {to:?}\n\
         [site.a.websocket]\npreset = \"any\"\nto = {to:?}\n\
         [site.b]\nhosts = [{STEADY:?}]\ntls = {{ cert = {:?}, key = {:?} }}\nupstream = {to:?}\n",
        world.head(),
        site.folder(),
        steady.cert,
        steady.key,
    )
}

fn shown(world: &World, proxy: &Proxy) -> Leaf {
    proxy.raw(world, HOST).leaf()
}

/// The leaf that the site shows to a client that believes everything.
fn shown_to_anybody(proxy: &Proxy) -> Option<Leaf> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{}", proxy.https()), "-servername", HOST]);
    CertificateDer::from_pem_slice(finish("openssl", &mut command).stdout.as_bytes()).ok()
}

/// The first line behind `before` that says this of this file.
fn told(proxy: &Proxy, before: usize, says: &str, file: &str) -> Option<String> {
    let lines = proxy.running.stderr();
    lines[before..].iter().find(|line| line.contains(says) && line.contains(file)).cloned()
}

/// The plain port leads to TLS, whatever the certificate is like.
fn redirects(proxy: &Proxy) {
    let answer = proxy.plain(HOST).get("/x").expect(301);
    assert_eq!(answer.field("location"), Some(format!("{}/x", proxy.url(HOST)).as_str()));
}

/// Waits until the site serves `wanted`, with the log at peace again, and gives the times that both took.
fn recovers(
    what: &str,
    world: &World,
    proxy: &Proxy,
    before: usize,
    site: &Site<'_>,
    wanted: &Leaf,
) -> (Duration, Duration) {
    let since = Instant::now();
    let folder = site.folder().display().to_string();
    wait_until(&format!("{what}: the repaired certificate is served"), SOON, || {
        Raw::try_tls(world, proxy.https(), HOST, &[]).is_ok_and(|raw| raw.leaf() == *wanted)
    });
    let served = since.elapsed();
    wait_until(&format!("{what}: the log says that all is well"), SOON, || {
        told(proxy, before, "the certificate files are in order again", &folder).is_some()
    });
    let said = since.elapsed();
    assert!(said <= promised(REPAIR), "{what}: served {served:?} after the repair, said {said:?} after it");
    (served, said)
}

fn under_load(fault: &Fault) {
    let what = fault.what;
    let world = World::new();
    let site = Site::lay(&world, fault.laid);
    let (_backend, proxy) = start(&world, &site);
    let old = site.first();
    assert_eq!(shown(&world, &proxy), old, "{what}");
    let mut socket = Socket::open(&world, &proxy, HOST, "/live");
    let (steady, suffering) = (Load::start(&world, &proxy, STEADY, 3), Load::start(&world, &proxy, HOST, 2));
    steady.goes_on(3);

    let before = proxy.running.stderr().len();
    let broken = Instant::now();
    (fault.breaks)(&site);
    let file = (fault.names)(&site).display().to_string();
    let line = wait_for(&format!("{what}: {:?} of {file}", fault.says), SOON, || {
        let line = told(&proxy, before, fault.says, &file);
        assert_eq!(shown(&world, &proxy), old, "{what}: the old certificate was dropped");
        line
    });
    let noticed = broken.elapsed();
    // What is not mended is not told again, however often it is looked at.
    std::thread::sleep(Duration::from_millis(1200));
    let said = proxy.running.stderr();
    let reason = |line: &String| line.split_once(" reason=").map(|(_, reason)| reason.to_owned());
    let mut reasons: Vec<String> =
        said.iter().skip(before).filter(|line| line.contains(" ERROR ")).filter_map(reason).collect();
    // A file that is being written may be met half-way: that is another reason.
    let times = reasons.len();
    reasons.sort_unstable();
    reasons.dedup();
    assert!(times == reasons.len() && times <= 2, "{what}: {}", proxy.running.said());
    assert!(line.contains(" ERROR ") && line.contains("the previous one stays in service"), "{what}: {line}");
    redirects(&proxy);
    // A reload has other things to do than to wait for a certificate.
    let reload = proxy.reload();
    assert_eq!(reload.code, 0, "{what}: {}", reload.said());
    suffering.goes_on(3);
    steady.goes_on(3);
    assert_eq!(shown(&world, &proxy), old, "{what}: a reload dropped the old certificate");

    let wanted = (fault.repairs)(&site);
    let (served, well) = recovers(what, &world, &proxy, before, &site, &wanted);
    socket.echoes("still here");
    suffering.goes_on(3);
    steady.goes_on(3);
    let (answered, leaves) = steady.stop();
    assert_eq!(leaves.len(), 1, "{what}: {STEADY} changed its certificate");
    let (handshakes, leaves) = suffering.stop();
    assert!(leaves.iter().all(|leaf| *leaf == old || *leaf == wanted), "{what}: a certificate that is neither");
    let number = CONTENTS.iter().chain(&ABSENCES).chain(&LINKS).chain(&UNREADABLE).position(|it| it.what == what);
    Row {
        part: "7-certificates",
        number: number.unwrap(),
        injected: &format!("certificate: {what}"),
        seen: format!("the old one: {handshakes} of {handshakes} handshakes"),
        told: format!("once, after {}", ms(noticed)),
        others: format!("{answered} of {answered} handshakes"),
        well: format!("live after {}, told after {}", ms(served), ms(well)),
    }
    .keep();
}

#[test]
fn a_disk_with_certificates_that_is_unmounted_fails_nobody() {
    if !is_root_for("mounting a disk") {
        return;
    }
    let world = World::new();
    let folder = world.path("etc/le/live").join(HOST);
    let disk = SmallDisk::at(folder.clone());
    let site = Site::lay(&world, Laid::Files);
    let (_backend, proxy) = start(&world, &site);
    let old = site.first();
    let (steady, suffering) = (Load::start(&world, &proxy, STEADY, 1), Load::start(&world, &proxy, HOST, 1));
    let before = proxy.running.stderr().len();
    let broken = Instant::now();
    drop(disk);
    wait_for("a word about it", SOON, || told(&proxy, before, "the previous one stays in service", "No such file"));
    let noticed = broken.elapsed();
    assert!(noticed < promised(REPAIR), "told after {noticed:?}");
    suffering.goes_on(3);
    assert_eq!(shown(&world, &proxy), old);
    let disk = SmallDisk::at(folder);
    let wanted = site.renew();
    let (served, well) = recovers("unmounted", &world, &proxy, before, &site, &wanted);
    let (answered, _) = steady.stop();
    let (handshakes, _) = suffering.stop();
    Row {
        part: "7-certificates",
        number: 90,
        injected: "certificate: its disk is unmounted, and mounted again with a new pair",
        seen: format!("the old one: {handshakes} of {handshakes} handshakes"),
        told: format!("once, after {}", ms(noticed)),
        others: format!("{answered} of {answered} handshakes"),
        well: format!("live after {}, told after {}", ms(served), ms(well)),
    }
    .keep();
    drop(proxy);
    drop(disk);
}

fn at_start(fault: &Fault) {
    let what = fault.what;
    let world = World::new();
    let site = Site::lay(&world, fault.laid);
    (fault.breaks)(&site);
    let (_backend, proxy) = start(&world, &site);
    let steady = Load::start(&world, &proxy, STEADY, 2);
    let file = (fault.names)(&site).display().to_string();
    wait_for(&format!("{what}: {:?} of {file}", fault.says), SOON, || told(&proxy, 0, fault.says, &file));
    match fault.at_start {
        AtStart::Refuses => {
            assert_eq!(shown_to_anybody(&proxy), None, "{what}");
            // RFC 6066, section 3: "If the server understood the ClientHello extension but does not recognize the
            // server name, the server SHOULD … abort the handshake by sending a fatal-level unrecognized_name(112)
            // alert".
            let error = proxy.curl(HOST).send("/").expect_err(what);
            assert!(error.contains("unrecognized name"), "{what}: {error}");
        }
        AtStart::Serves => assert!(shown_to_anybody(&proxy).is_some(), "{what}"),
    }
    redirects(&proxy);
    let reload = proxy.reload();
    assert_eq!(reload.code, 0, "{what}: {}", reload.said());
    steady.goes_on(3);
    let wanted = (fault.repairs)(&site);
    let (_, well) = recovers(what, &world, &proxy, 0, &site, &wanted);
    proxy.curl(HOST).get("/").expect(200);
    steady.goes_on(3);
    let (answered, leaves) = steady.stop();
    assert_eq!(leaves.len(), 1, "{what}: {STEADY} changed its certificate");
    eprintln!("{what}, at the start: all well {well:.0?} after the repair; {answered} of {answered} at {STEADY}");
}
