//! What the file wants of the certificate store, and of those who keep it: files, the local authority, `[acme]`.

use std::fmt;
use std::sync::Arc;

use crate::acme::plan::{Planned, SiteNames};
use crate::acme::renewals::{self, Renewals};
use crate::acme::settings::{Authority, ChallengeKind, DnsHook, ExternalAccount, Settings};
use crate::base::certified_name::CertifiedName;
use crate::base::host::HostPattern;
use crate::config::{self, Certificate, Config, Site};
use crate::keys::{KeyKind, Keys, LocalKeys};
use crate::run::house::Refused;
use crate::tls::local_ca::{self, LocalCaError};
use crate::tls::pair::{CertificateFiles, with_causes};
use crate::tls::policy::{MinVersion, Policy};
use crate::tls::store::{CertStore, SiteCertificate, Wanted};

/// What the sites want.
pub struct WantedCertificates {
    /// For the certificate store.
    pub stored: Wanted,
    /// For those that are got from an authority; `None` where no site has one.
    pub automatic: Option<(Settings, Vec<Planned>)>,
}

/// A site whose certificate the local CA could not make.
#[derive(Debug)]
pub struct LocalFault {
    /// The site.
    pub site: String,
    /// Why.
    pub error: LocalCaError,
}

impl fmt::Display for LocalFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "site {}: no local certificate can be made: {}", self.site, with_causes(&self.error))
    }
}

/// Makes the local CA's certificates where they are missing, too old, or for other hosts. What cannot be made is told:
/// the site goes on with the one it has, or without.
pub fn make_local(config: &Config) -> Vec<LocalFault> {
    let all: Vec<HostPattern> = self_signed(config).flat_map(patterns).collect();
    let folder = config.folder.join(local_ca::FOLDER);
    let make = |site: &Site| {
        let made = local_ca::issue(&folder, &site.name, &patterns(site), &all);
        made.err().map(|error| LocalFault { site: site.name.clone(), error })
    };
    self_signed(config).filter_map(make).collect()
}

/// What each site of `config` wants. Makes nothing: see [`make_local`].
///
/// # Errors
/// A site's name makes no file name for the local CA.
pub fn wanted(config: &Config) -> Result<WantedCertificates, Refused> {
    let mut stored = Wanted::default();
    for site in &config.sites {
        let files = match &site.certificate {
            Certificate::Off | Certificate::Acme => continue,
            Certificate::Files(files) => CertificateFiles { cert: files.cert.clone(), key: files.key.clone() },
            Certificate::SelfSigned => local_ca::files(&config.folder.join(local_ca::FOLDER), &site.name)
                .map_err(|error| Refused::LocalCa(Box::new(LocalFault { site: site.name.clone(), error })))?,
        };
        let (name, names, default) = (site.name.clone(), patterns(site), site.default);
        stored.sites.push(SiteCertificate { site: name, names, default, files, awaited: false });
    }
    let automatic = config.sites.iter().any(|site| site.certificate == Certificate::Acme);
    let automatic = automatic.then(|| {
        let settings = settings(&config.acme);
        let planned = renewals::planned(&settings, &site_names(config));
        // A host that has become the first of its site, or went apart, is in an older certificate under another name.
        stored.spare = renewals::pairs(&settings);
        for (planned, files) in &planned {
            stored.sites.extend(awaiting(config, planned, files));
        }
        (settings, planned.into_iter().map(|(planned, _)| planned).collect())
    });
    Ok(WantedCertificates { stored, automatic })
}

/// Whether the file named this pair, which is not of an authority, or had the local CA make it.
pub fn names(config: &Config, files: &CertificateFiles) -> bool {
    config.sites.iter().any(|site| match &site.certificate {
        Certificate::Off | Certificate::Acme => false,
        Certificate::Files(own) => own.cert == files.cert && own.key == files.key,
        Certificate::SelfSigned => {
            local_ca::files(&config.folder.join(local_ca::FOLDER), &site.name).is_ok_and(|own| own == *files)
        }
    })
}

/// What the listeners speak.
pub fn policy(config: &Config) -> Policy {
    Policy {
        h1: config.server.h1,
        h2: config.server.h2,
        min_version: match config.tls.min_version {
            config::TlsVersion::V1_2 => MinVersion::Tls12,
            config::TlsVersion::V1_3 => MinVersion::Tls13,
        },
        client_ca: config.tls.client_ca.clone(),
    }
}

/// The sites with certificates of the local CA.
pub fn self_signed(config: &Config) -> impl Iterator<Item = &Site> {
    config.sites.iter().filter(|site| site.certificate == Certificate::SelfSigned)
}

/// `doorward cert list` where no server runs: what it would serve if it started now. Writes nothing.
pub fn list(config: &Config) -> Result<String, Refused> {
    let keys: Arc<dyn Keys> = Arc::new(LocalKeys::new());
    let certificates = Arc::new(CertStore::new(Arc::clone(&keys)));
    let renewals = Renewals::new(keys, Arc::default(), Arc::clone(&certificates));
    let wanted = wanted(config)?;
    certificates.apply(wanted.stored);
    renewals.assign(wanted.automatic);
    Ok(renewals.list())
}

/// The names of each site with an automatic certificate.
pub fn site_names(config: &Config) -> Vec<SiteNames> {
    let automatic = config.sites.iter().filter(|site| site.certificate == Certificate::Acme);
    automatic
        .map(|site| SiteNames {
            site: site.name.clone(),
            names: patterns(site).iter().flat_map(CertifiedName::of_pattern).collect(),
        })
        .collect()
}

/// `[acme]` as those who keep the certificates read it.
pub fn settings(acme: &config::Acme) -> Settings {
    let dns_hook = acme.dns_hook.as_ref().map(|hook| {
        let program = hook.program.display().to_string();
        DnsHook {
            command: std::iter::once(program).chain(hook.arguments.iter().cloned()).collect(),
            wait: acme.dns_wait,
        }
    });
    let challenge = |kind: &config::ChallengeKind| match kind {
        config::ChallengeKind::Http => ChallengeKind::Http,
        config::ChallengeKind::TlsAlpn => ChallengeKind::TlsAlpn,
        config::ChallengeKind::Dns => ChallengeKind::Dns,
    };
    Settings {
        email: acme.email.clone(),
        authorities: acme.directories.iter().map(authority).collect(),
        challenges: acme.challenges.iter().map(challenge).collect(),
        dns_hook,
        storage: acme.storage.clone(),
        key_kind: match acme.key_type {
            config::KeyType::EcdsaP256 => KeyKind::EcdsaP256,
            config::KeyType::EcdsaP384 => KeyKind::EcdsaP384,
            config::KeyType::Rsa2048 => KeyKind::Rsa2048,
            config::KeyType::Rsa4096 => KeyKind::Rsa4096,
        },
        renew_before: acme.renew_before,
    }
}

fn authority(directory: &config::Directory) -> Authority {
    let account =
        |eab: &config::ExternalAccount| ExternalAccount { key_id: eab.kid.clone(), hmac_key: eab.hmac_key.clone() };
    Authority {
        directory: directory.url.clone(),
        external_account: directory.eab.as_ref().map(account),
        profile: directory.profile.clone(),
        directory_ca: directory.ca.clone(),
    }
}

fn patterns(site: &Site) -> Vec<HostPattern> {
    site.hosts.iter().cloned().chain(site.aliases.iter().cloned().map(HostPattern::Exact)).collect()
}

/// The sites of one planned certificate, each with those of its hosts that the certificate is for.
fn awaiting<'a>(
    config: &'a Config,
    planned: &'a Planned,
    files: &'a CertificateFiles,
) -> impl Iterator<Item = SiteCertificate> + 'a {
    let users = config.sites.iter().filter(|site| planned.sites.contains(&site.name));
    users.map(|site| {
        // `.x` is two names, which may be apart.
        let single = patterns(site).into_iter().flat_map(|pattern| match pattern {
            HostPattern::AtOrBelow(host) => vec![HostPattern::Exact(host.clone()), HostPattern::Below(host)],
            pattern => vec![pattern],
        });
        let is_for = |pattern: &HostPattern| CertifiedName::of_pattern(pattern).iter().any(|name| planned.covers(name));
        SiteCertificate {
            site: site.name.clone(),
            names: single.filter(is_for).collect(),
            default: site.default,
            files: files.clone(),
            awaited: true,
        }
    })
}
