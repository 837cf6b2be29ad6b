use std::process::{Command, Output};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::*;
use crate::keys::subject_alt_name;

fn hosts(texts: &[&str]) -> Vec<HostPattern> {
    texts.iter().map(|text| HostPattern::parse(text).unwrap()).collect()
}

/// What a file with this one site does.
fn issue_one(folder: &Path, site: &str, texts: &[&str]) -> Result<CertificateFiles, LocalCaError> {
    issue(folder, site, &hosts(texts), &hosts(texts))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn load(files: &CertificateFiles) -> Pair {
    Pair::load(&LocalKeys::new(), files).unwrap()
}

fn current(folder: &Path) -> CaCertificate {
    CaCertificate::current(folder).unwrap().unwrap()
}

#[test]
fn a_site_gets_a_certificate_of_the_local_authority() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("certs-dev");
    let files = issue_one(&folder, "app", &["app.localhost", ".Test.localhost", "127.0.0.1", "[::1]"]).unwrap();
    let pair = load(&files);
    for host in ["app.localhost", "test.localhost", "x.test.localhost", "127.0.0.1", "::1"] {
        assert!(pair.covers(host), "{host}");
    }
    assert!(!pair.covers("localhost"));
    assert_eq!(pair.certified.cert.len(), 2);
    assert_eq!((mode(&files.key), mode(&folder.join(CA_KEY_FILE)), mode(&folder)), (0o600, 0o600, 0o700));
    let days = pair.not_after.duration_since(SystemTime::now()).unwrap().as_secs() / 86_400;
    assert!((90..398).contains(&days), "{days}");
    let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".gitignore", "app.key", "app.pem", "ca.key", "ca.pem"]);
}

#[test]
fn the_authority_has_a_name_of_its_own_and_says_for_whom_it_may_vouch() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let authorities = folders.each_ref().map(|folder| {
        issue_one(folder.path(), "app", &["app.test", "shop.example.com", "192.0.2.7"]).unwrap();
        current(folder.path())
    });
    assert_ne!(authorities[0].label, authorities[1].label);
    for (authority, folder) in authorities.iter().zip(&folders) {
        let constraints = authority.constraints.as_ref().unwrap();
        assert_eq!(constraints.beyond_local(), ["shop.example.com", "192.0.2.7"]);
        let ca = folder.path().join(CA_FILE);
        let shown = openssl(
            &["x509", "-noout", "-subject", "-fingerprint", "-sha256", "-ext", "nameConstraints", "-in"],
            &[&ca],
        );
        let text = String::from_utf8(shown.stdout).unwrap();
        let named = name(authority.label.as_ref().unwrap());
        for part in
            [named.as_str(), &authority.fingerprint(), "critical", "DNS:home.arpa", "IP:192.0.2.7/255.255.255.255"]
        {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
    }
    assert_eq!(label_of("Doorward local CA 0a1b2c3d"), Some("0a1b2c3d"));
    for stranger in ["Doorward local CA", "Doorward local CA 0A1B2C3D", "Doorward local CA 0a1b2c3d4", "x 0a1b2c3d"] {
        assert_eq!(label_of(stranger), None, "{stranger}");
    }
}

fn openssl(arguments: &[&str], paths: &[&Path]) -> Output {
    Command::new("openssl").args(arguments).args(paths).output().expect("openssl")
}

#[test]
fn openssl_believes_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join(CA_FILE);
    for (hosts, option, name) in [
        (&["*.app.localhost"][..], "-verify_hostname", "a.app.localhost"),
        (&["127.0.0.1"], "-verify_ip", "127.0.0.1"),
        (&[], "-verify_hostname", "localhost"),
        (&["*.shop.example.com", "192.0.2.7"], "-verify_ip", "192.0.2.7"),
    ] {
        // A site's name may look like a host's, and is no name of the certificate.
        let files = issue_one(folder.path(), "www.example.com", hosts).unwrap();
        let arguments = ["verify", "-x509_strict", "-purpose", "sslserver", option, name, "-CAfile"];
        let output = openssl(&arguments, &[&ca, &files.cert]);
        assert!(output.status.success(), "{hosts:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A certificate that somebody makes who has the authority's key.
fn forge(folder: &Path, name: &str) -> CertificateDer<'static> {
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join(CA_KEY_FILE)).unwrap()).unwrap();
    let ca = fs::read_to_string(folder.join(CA_FILE)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let name = name.parse().map_or_else(|_| CertifiedName::Dns(name.to_owned()), CertifiedName::Address);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "by hand");
    params.subject_alt_names = vec![subject_alt_name(&name).unwrap()];
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let forged = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    fs::write(folder.join("forged.pem"), forged.pem()).unwrap();
    forged.der().clone()
}

fn verify(folder: &Path, leaf: &CertificateDer<'_>, name: &str) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(current(folder).der).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(leaf, &[], &name, &[], UnixTime::now()).map(|_| ())
}

#[test]
fn whoever_steals_the_key_can_be_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    issue_one(folder, "app", &["app.test", "shop.example.com"]).unwrap();
    let ca = folder.join(CA_FILE);
    let by_openssl = || openssl(&["verify", "-CAfile"], &[&ca, &folder.join("forged.pem")]);
    for name in ["bank.example.com", "example.com", "xtest", "www.example.org", "8.8.8.8", "2001:db8::1"] {
        let leaf = forge(folder, name);
        let error = verify(folder, &leaf, name).unwrap_err();
        assert!(error.to_string().contains("NameConstraint"), "{name}: {error}");
        let output = by_openssl();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("permitted subtree violation"), "{name}: {said}");
    }
    for name in ["other.test", "a.shop.example.com", "10.2.3.4", "fd00::9"] {
        let leaf = forge(folder, name);
        assert_eq!(verify(folder, &leaf, name), Ok(()), "{name}");
        assert!(by_openssl().status.success(), "{name}");
    }
}

/// The authority that this program made before there were constraints.
fn make_the_authority_of_old(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Doorward local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    fs::write(folder.join(CA_KEY_FILE), key.serialize_pem()).unwrap();
    fs::write(folder.join(CA_FILE), params.self_signed(&key).unwrap().pem()).unwrap();
}

#[test]
fn an_authority_that_could_vouch_for_anybody_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    make_the_authority_of_old(folder.path());
    let old = current(folder.path());
    assert_eq!((&old.label, &old.constraints), (&None, &None));
    let files = issue_one(folder.path(), "app", &["app.test"]).unwrap();
    let new = current(folder.path());
    assert_eq!(new.constraints, Some(Constraints::local()));
    assert_eq!(load(&files).certified.cert[1], new.der);
    assert_eq!(CaCertificate::former(folder.path()).unwrap(), [old]);
}

#[test]
fn a_host_that_the_authority_may_not_certify_brings_a_new_one_for_all_sites() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Two sites of one file, and then a third host.
    let start = |all: &[&str]| {
        let made = ["a", "b"].map(|site| {
            let host = all.iter().find(|host| host.starts_with(site)).unwrap();
            load(&issue(folder, site, &hosts(&[host]), &hosts(all)).unwrap()).certified.cert.clone()
        });
        (current(folder), made)
    };
    let (first, _) = start(&["a.test", "b.test"]);
    assert_eq!(start(&["a.test", "b.test", "c.localhost", "10.0.0.1"]).0, first, "these are permitted already");
    let (second, leaves) = start(&["a.test", "b.example.com"]);
    assert_ne!(second, first);
    assert!(leaves.iter().all(|chain| chain[1] == second.der), "a leaf of the old authority is left");
    assert_eq!(start(&["a.test", "b.example.com"]), (second.clone(), leaves), "the second start changes nothing");

    // Another file of the same folder does not take the first one's host away, nor the first one this one's.
    let (third, _) = start(&["a.test", "b.example.net"]);
    assert_eq!(third.constraints.clone().unwrap().beyond_local(), ["b.example.com", "b.example.net"]);
    assert_eq!(start(&["a.test", "b.example.com"]).0, third);
    assert_eq!(CaCertificate::former(folder).unwrap(), [second, first]);
}

#[test]
fn an_authority_out_of_its_time_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    issue_one(folder.path(), "app", &["app.test"]).unwrap();
    let old = current(folder.path());
    let names = BTreeSet::from([CertifiedName::Dns("app.test".to_owned())]);
    let later = SystemTime::now() + CA_LIFE + DAY;
    let new = Authority::open(folder.path(), &names, later).unwrap().certificate;
    assert!(new.der != old.der && new.validity(later).is_ok());
    assert_eq!(CaCertificate::former(folder.path()).unwrap(), [old]);
}

#[test]
fn a_certificate_is_made_anew_only_when_it_must_be() {
    let folder = tempfile::tempdir().unwrap();
    let issue = |texts: &[&str]| load(&issue_one(folder.path(), "app", texts).unwrap()).certified.cert.clone();
    let first = issue(&["a.localhost", "b.localhost"]);
    assert_eq!(issue(&["b.localhost", "a.localhost"]), first);
    let second = issue(&["a.localhost"]);
    assert_ne!(second[0], first[0]);
    assert_eq!(second[1], first[1], "the authority was replaced");

    fs::write(folder.path().join("app.key"), "half").unwrap();
    let third = issue(&["a.localhost"]);
    assert_ne!(third[0], second[0]);

    let now = SystemTime::now();
    let files = CertificateFiles { cert: folder.path().join("app.pem"), key: folder.path().join("app.key") };
    let names = names_of("app", &hosts(&["a.localhost"])).unwrap();
    let authority = Authority::open(folder.path(), &names, now).unwrap();
    assert!(is_good(&files, &names, &authority, now));
    assert!(is_good(&files, &names, &authority, now + LEAF_LIFE - RENEW_BEFORE - DAY));
    assert!(!is_good(&files, &names, &authority, now + LEAF_LIFE - RENEW_BEFORE + DAY));

    fs::remove_file(folder.path().join(CA_FILE)).unwrap();
    let fourth = issue(&["a.localhost"]);
    assert_ne!(fourth[1], third[1]);
}

#[test]
fn a_damaged_authority_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    issue_one(folder.path(), "app", &["localhost"]).unwrap();
    fs::remove_file(folder.path().join(CA_KEY_FILE)).unwrap();
    let error = issue_one(folder.path(), "app", &["localhost"]).unwrap_err();
    assert!(matches!(error, LocalCaError::Authority { .. }), "{error}");
    assert!(!folder.path().join(CA_KEY_FILE).exists());
}

#[test]
fn names_that_make_no_certificate_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for site in ["", "ca", "ca-former", "../x", "a/b", ".x"] {
        let error = issue_one(folder.path(), site, &["localhost"]).unwrap_err();
        assert!(matches!(error, LocalCaError::SiteName { .. }), "{site}: {error}");
    }
    let error = issue_one(folder.path(), "x", &["www.example.*"]).unwrap_err();
    assert!(matches!(error, LocalCaError::NoNames { .. }), "{error}");
    let files = issue_one(folder.path(), "x", &[]).unwrap();
    assert!(["localhost", "127.0.0.1", "::1"].iter().all(|host| load(&files).covers(host)));
}

#[test]
fn two_at_once_share_one_authority() {
    let folder = tempfile::tempdir().unwrap();
    let chains: Vec<_> = thread::scope(|scope| {
        let threads = ["a", "b", "c"].map(|site| {
            let folder = folder.path();
            scope.spawn(move || load(&issue_one(folder, site, &["localhost"]).unwrap()).certified.cert.clone())
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(chains.iter().all(|chain| chain[1] == chains[0][1]));
}
