//! The certificate authorities of the open internet that have a name here.

use super::host::Authority;

/// One of them. It certifies names of the internet alone.
#[derive(Debug, PartialEq, Eq)]
pub struct PublicAuthority {
    /// What the file may call it.
    pub name: &'static str,
    /// The URL of its directory.
    pub directory: &'static str,
    /// The directory where it rehearses: what comes of it nobody believes, and nobody counts.
    pub rehearsal: Option<&'static str>,
    /// Where the external account is got that it asks for; empty where it asks for none.
    pub account: &'static str,
}

/// The first one is the default.
pub const PUBLIC: [PublicAuthority; 3] = [
    PublicAuthority {
        name: "letsencrypt",
        directory: "https://acme-v02.api.letsencrypt.org/directory",
        rehearsal: Some("https://acme-staging-v02.api.letsencrypt.org/directory"),
        account: "",
    },
    PublicAuthority {
        name: "zerossl",
        directory: "https://acme.zerossl.com/v2/DV90",
        rehearsal: None,
        account: "https://app.zerossl.com/developer makes one, under \"EAB Credentials for ACME Clients\"",
    },
    PublicAuthority {
        name: "google",
        directory: "https://dv.acme-v02.api.pki.goog/directory",
        rehearsal: Some("https://dv.acme-v02.test-api.pki.goog/directory"),
        account: "`gcloud publicca external-account-keys create` makes one: keyId is kid, b64MacKey is hmac_key",
    },
];

/// The one whose directory is at `url`, however that is written. `None` is an authority of one's own, or a rehearsal.
pub fn production(url: &str) -> Option<&'static PublicAuthority> {
    PUBLIC.iter().find(|public| same_host(url, public.directory))
}

/// The one that rehearses at `url`.
pub fn rehearsing(url: &str) -> Option<&'static PublicAuthority> {
    PUBLIC.iter().find(|public| public.rehearsal.is_some_and(|rehearsal| same_host(url, rehearsal)))
}

fn same_host(one: &str, other: &str) -> bool {
    let host = |url: &str| {
        let authority = url.strip_prefix("https://")?.split(['/', '?']).next()?;
        Some(Authority::parse(authority).ok()?.host)
    };
    host(one).is_some_and(|one| Some(one) == host(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_known_however_its_directory_is_written() {
        let name = |found: Option<&PublicAuthority>| found.map(|public| public.name);
        for (url, in_production, in_rehearsal) in [
            ("https://acme-v02.api.letsencrypt.org/directory", Some("letsencrypt"), None),
            ("https://ACME-v02.api.letsencrypt.org:443/directory?x", Some("letsencrypt"), None),
            ("https://acme-staging-v02.api.letsencrypt.org/directory", None, Some("letsencrypt")),
            ("https://acme.zerossl.com/v2/DV90", Some("zerossl"), None),
            ("https://dv.acme-v02.test-api.pki.goog/directory", None, Some("google")),
            ("https://staging.ca.internal/directory", None, None),
            ("nonsense", None, None),
        ] {
            assert_eq!((name(production(url)), name(rehearsing(url))), (in_production, in_rehearsal), "{url}");
        }
    }
}
