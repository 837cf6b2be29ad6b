//! Authorities of the open internet that are known by name: what they allow is counted, and some have a directory to
//! rehearse at.

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PublicAuthority {
    /// The host of its directory.
    host: &'static str,
    /// The directory whose certificates nobody believes and nobody counts.
    pub rehearsal: Option<&'static str>,
}

const KNOWN: [PublicAuthority; 3] = [
    PublicAuthority {
        host: "acme-v02.api.letsencrypt.org",
        rehearsal: Some("https://acme-staging-v02.api.letsencrypt.org/directory"),
    },
    PublicAuthority {
        host: "dv.acme-v02.api.pki.goog",
        rehearsal: Some("https://dv.acme-v02.test-api.pki.goog/directory"),
    },
    PublicAuthority { host: "acme.zerossl.com", rehearsal: None },
];

/// The one that the directory at `url` belongs to; `None` is a rehearsal directory, or an authority of one's own.
pub(super) fn known(url: &str) -> Option<&'static PublicAuthority> {
    let url: http::Uri = url.parse().ok()?;
    let host = url.host()?.to_ascii_lowercase();
    KNOWN.iter().find(|authority| authority.host == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_known_however_its_directory_is_written() {
        for url in
            ["https://acme-v02.api.letsencrypt.org/directory", "https://ACME-v02.api.letsencrypt.org:443/directory"]
        {
            assert!(known(url).is_some_and(|authority| authority.rehearsal.is_some()), "{url}");
        }
        assert_eq!(known("https://acme.zerossl.com/v2/DV90").map(|authority| authority.rehearsal), Some(None));
        for url in
            ["https://acme-staging-v02.api.letsencrypt.org/directory", "https://ca.internal/directory", "nonsense"]
        {
            assert_eq!(known(url), None, "{url}");
        }
    }
}
