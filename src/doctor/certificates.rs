//! Certificates, keys and authorities.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use super::Finding;
use super::files::why_not;
use crate::base::host::{Host, HostPattern};
use crate::config::{Action, Application, Certificate, CertificateFiles, Config, Site, UpstreamTls};

/// A certificate that ends within this many seconds is worth a warning: certbot renews 30 days before.
const SOON: i64 = 14 * 86_400;

pub(super) fn check(config: &Config, now: SystemTime, findings: &mut Vec<Finding>) {
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let mut users: BTreeMap<&CertificateFiles, Vec<&Site>> = BTreeMap::new();
    for site in &config.sites {
        if let Certificate::Files(files) = &site.certificate {
            users.entry(files).or_default().push(site);
        }
    }
    // Sites that share a certificate hear of its faults once.
    for (files, sites) in users {
        let site = match sites.as_slice() {
            [site] => Some(site.name.as_str()),
            _ => None,
        };
        if let Some(names) = pair(files, site, now, findings) {
            for site in sites {
                uncovered(site, &names, &files.cert, findings);
            }
        }
    }
    if let Some(ca) = &config.tls.client_ca {
        authorities(ca, None, "client_ca", findings);
    }
    for site in &config.sites {
        let Some(tls) = upstream_tls(site) else { continue };
        if let Some(ca) = &tls.ca {
            authorities(ca, Some(&site.name), "upstream_tls.ca", findings);
        }
        if let Some(client) = &tls.client {
            pair(client, Some(&site.name), now, findings);
        }
    }
}

/// All HTTP back ends of a site share how TLS is spoken to them.
fn upstream_tls(site: &Site) -> Option<&UpstreamTls> {
    let application = match &site.application {
        Some(Application::Http(upstream)) => Some(upstream),
        _ => None,
    };
    let routes = site.routes.iter().filter_map(|route| match &route.action {
        Action::Http(upstream) => Some(upstream),
        _ => None,
    });
    let sockets = site.websockets.iter().map(|websocket| &websocket.upstream);
    application.into_iter().chain(sockets).chain(routes).map(|upstream| &upstream.tls).next()
}

/// The names that a certificate is for.
struct Names {
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// Checks a chain and its key: readable, parsed, of one another, in time.
fn pair(files: &CertificateFiles, site: Option<&str>, now: i64, findings: &mut Vec<Finding>) -> Option<Names> {
    let chain = chain(&files.cert, site, findings);
    let key = match read(&files.key) {
        Ok(pem) => match PrivateKeyDer::from_pem_slice(&pem) {
            Ok(key) => Some(key),
            Err(why) => {
                let help = "a key file has -----BEGIN PRIVATE KEY-----; one with a passphrase cannot be read";
                findings.push(Finding::error(
                    site,
                    format!("{} holds no private key: {why}", files.key.display()),
                    help,
                ));
                None
            }
        },
        Err(why) => {
            findings.push(Finding::error(
                site,
                format!("the key {} {why}", files.key.display()),
                "let the account of the server read it",
            ));
            None
        }
    };
    let chain = chain?;
    let leaf = chain.first()?;
    let cert = match x509_parser::parse_x509_certificate(leaf) {
        Ok((_, cert)) => cert,
        Err(why) => {
            findings.push(Finding::error(
                site,
                format!("{} holds no sound certificate: {why}", files.cert.display()),
                "",
            ));
            return None;
        }
    };
    if let Some(key) = key {
        matching(files, leaf, &key, site, findings);
    }
    in_time(files, &cert, now, site, findings);
    Some(names(&cert))
}

fn chain(file: &Path, site: Option<&str>, findings: &mut Vec<Finding>) -> Option<Vec<CertificateDer<'static>>> {
    let pem = match read(file) {
        Ok(pem) => pem,
        Err(why) => {
            let help =
                "write the path of the chain in PEM; certbot keeps it at /etc/letsencrypt/live/NAME/fullchain.pem";
            findings.push(Finding::error(site, format!("the certificate {} {why}", file.display()), help));
            return None;
        }
    };
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if !chain.is_empty() => Some(chain),
        Ok(_) => {
            let help = "a certificate file has -----BEGIN CERTIFICATE-----";
            findings.push(Finding::error(site, format!("{} holds no certificate", file.display()), help));
            None
        }
        Err(why) => {
            findings.push(Finding::error(site, format!("{} is not PEM: {why}", file.display()), ""));
            None
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|why| why_not(file, &why))
}

fn matching(
    files: &CertificateFiles,
    leaf: &CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
    site: Option<&str>,
    findings: &mut Vec<Finding>,
) {
    let key = match rustls::crypto::aws_lc_rs::sign::any_supported_type(key) {
        Ok(key) => key,
        Err(why) => {
            let help = "keys are RSA (2048 bits or more), ECDSA (P-256, P-384, P-521) or Ed25519";
            findings.push(Finding::error(site, format!("the key {} cannot be used: {why}", files.key.display()), help));
            return;
        }
    };
    let pair = rustls::sign::CertifiedKey::new(vec![leaf.clone()], key);
    if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) = pair.keys_match() {
        let (cert, key) = (files.cert.display(), files.key.display());
        let help =
            "name the key that the certificate was made for; in the chain, the site's own certificate comes first";
        findings.push(Finding::error(site, format!("the key {key} does not belong to the certificate {cert}"), help));
    }
}

fn in_time(
    files: &CertificateFiles,
    cert: &X509Certificate<'_>,
    now: i64,
    site: Option<&str>,
    findings: &mut Vec<Finding>,
) {
    let (begin, end) = (cert.validity().not_before, cert.validity().not_after);
    let file = files.cert.display();
    if now < begin.timestamp() {
        findings.push(Finding::error(
            site,
            format!("{file} is not valid before {begin}"),
            "is this machine's clock right?",
        ));
    } else if now > end.timestamp() {
        findings.push(Finding::error(
            site,
            format!("{file} has expired: it was valid until {end}"),
            "renew it, for example with `certbot renew`",
        ));
    } else if end.timestamp() - now < SOON {
        let days = (end.timestamp() - now) / 86_400;
        let help = "renew it, for example with `certbot renew`; the new one is taken without a restart";
        findings.push(Finding::warning(site, format!("{file} expires in {days} days, on {end}"), help));
    }
}

fn names(cert: &X509Certificate<'_>) -> Names {
    let mut names = Names { dns: Vec::new(), addresses: Vec::new() };
    let Ok(Some(alternatives)) = cert.subject_alternative_name() else { return names };
    for name in &alternatives.value.general_names {
        match name {
            GeneralName::DNSName(name) => names.dns.push(name.trim_end_matches('.').to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                names.addresses.extend(v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)));
            }
            _ => {}
        }
    }
    names
}

/// Warns of hosts that the certificate is not for.
fn uncovered(site: &Site, names: &Names, file: &Path, findings: &mut Vec<Finding>) {
    let below = |host: &Host| names.dns.contains(&format!("*.{host}"));
    let mut missing: Vec<String> = Vec::new();
    for pattern in &site.hosts {
        let covered = match pattern {
            HostPattern::Exact(host) => names.cover(host),
            HostPattern::Below(host) => below(host),
            HostPattern::AtOrBelow(host) => names.cover(host) && below(host),
            // No certificate is for every ending.
            HostPattern::StartsWith(_) => true,
        };
        if !covered {
            missing.push(pattern.to_string());
        }
    }
    missing.extend(site.aliases.iter().filter(|host| !names.cover(host)).map(Host::to_string));
    if !missing.is_empty() {
        let have = names.dns.iter().cloned().chain(names.addresses.iter().map(IpAddr::to_string)).collect::<Vec<_>>();
        let have = if have.is_empty() { "no name at all".to_owned() } else { have.join(", ") };
        let message = format!("{} is not for {}: browsers will refuse it there", file.display(), missing.join(", "));
        findings.push(Finding::warning(
            Some(&site.name),
            message,
            format!("it is for {have}; get one with all names of the site"),
        ));
    }
}

impl Names {
    /// RFC 6125, section 6.4.3: a wildcard stands for one left-most label.
    fn cover(&self, host: &Host) -> bool {
        let name = host.as_str();
        if host.is_address() {
            let bare = name.trim_start_matches('[').trim_end_matches(']');
            return bare.parse().is_ok_and(|address: IpAddr| self.addresses.contains(&address));
        }
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        self.dns.iter().any(|have| have == name || Some(have) == wildcard.as_ref())
    }
}

/// Checks a file of authorities.
pub(super) fn authorities(file: &Path, site: Option<&str>, key: &str, findings: &mut Vec<Finding>) {
    let Some(chain) = chain(file, site, findings) else { return };
    let mut store = rustls::RootCertStore::empty();
    let (taken, _) = store.add_parsable_certificates(chain);
    if taken == 0 {
        let help = "it must hold the certificate of the authority, not of the server";
        findings.push(Finding::error(
            site,
            format!("`{key}`: no certificate in {} can be an authority", file.display()),
            help,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;
    use std::time::Duration;

    fn write(folder: &Path, days: i64, names: &[&str]) -> CertificateFiles {
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = params.not_before + Duration::from_secs(u64::try_from(days * 86_400).unwrap());
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let files =
            CertificateFiles { cert: folder.join(format!("{days}.pem")), key: folder.join(format!("{days}.key")) };
        std::fs::write(&files.cert, cert.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// 2020-01-01.
    const BEGIN: i64 = 1_577_836_800;

    fn told(files: &CertificateFiles, day: i64) -> Vec<(Severity, String)> {
        let mut findings = Vec::new();
        pair(files, None, BEGIN + day * 86_400, &mut findings);
        findings.into_iter().map(|finding| (finding.severity, finding.message)).collect()
    }

    #[test]
    fn a_certificate_is_held_to_its_dates_and_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let ninety = write(folder.path(), 90, &["a.example"]);
        let other = write(folder.path(), 91, &["a.example"]);
        assert_eq!(told(&ninety, 10), []);
        assert!(told(&ninety, -1)[0].1.contains("not valid before"));
        assert!(matches!(&told(&ninety, 80)[..], [(Severity::Warning, text)] if text.contains("expires in 10 days")));
        assert!(matches!(&told(&ninety, 91)[..], [(Severity::Error, text)] if text.contains("has expired")));
        let mixed = CertificateFiles { cert: ninety.cert.clone(), key: other.key };
        assert!(told(&mixed, 10)[0].1.contains("does not belong"));
        let none = CertificateFiles { cert: folder.path().join("none"), key: ninety.cert };
        let told = told(&none, 10);
        assert!(told[0].1.contains("does not exist"), "{told:?}");
        assert!(told[1].1.contains("holds no private key"), "{told:?}");
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let names = Names { dns: vec!["*.example.com".into()], addresses: vec!["127.0.0.1".parse().unwrap()] };
        let cover = |text| names.cover(&Host::parse(text).unwrap());
        assert!(cover("a.example.com"));
        assert!(!cover("example.com"));
        assert!(!cover("a.b.example.com"));
        assert!(cover("127.0.0.1"));
    }
}
