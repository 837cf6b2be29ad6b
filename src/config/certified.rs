//! Which sites are certified by `[acme]`, and whether their names can be.

use super::acme::Placed;
use super::block::Block;
use super::model::{Certificate, ChallengeKind};
use super::tree::Place;
use crate::base::certified_name::CertifiedName;
use crate::base::host::HostPattern;

/// Where the certificate of a site comes from that says nothing of it: public names are certified by `[acme]`, those
/// of this machine or of a private network by the local authority. `None` for both in one site, which is told.
pub(super) fn by_names(block: &Block<'_>, names: &[(HostPattern, Place)], acme: &Placed) -> Option<Certificate> {
    let find = |public: bool| {
        names.iter().find(|(name, _)| CertifiedName::of_pattern(name).iter().any(|name| name.is_public() == public))
    };
    match (find(true), find(false)) {
        (Some((public, _)), Some((private, at))) => {
            let message = format!("which certificate? `{private}` is private, `{public}` is public");
            let word = if acme.public { "self-signed" } else { "acme" };
            let help = format!("write tls = \"{word}\" in the site, or give the private names a site of their own");
            block.reading.missing(*at, message, help);
            None
        }
        (None, Some(_)) => Some(Certificate::SelfSigned),
        _ => Some(Certificate::Acme),
    }
}

/// What keeps the names of a site from being certified by `acme`. All keys of the site are known by now.
pub(super) fn check(block: &Block<'_>, default: bool, names: &[(HostPattern, Place)], acme: &Placed) {
    let unnamed = block.take("hosts").is_none_or(|item| item.node.value_is_empty_list());
    // Without `default` it is told that there is no host at all.
    if default && names.is_empty() && unnamed && !block.misspelt(&["hosts"]) {
        let help = "add hosts = [\"app.example.com\"], or write tls = \"self-signed\", \"off\" or \"/etc/letsencrypt/live/NAME\"";
        block.reading.missing(block.place("tls"), format!("{} has no name that could be certified", block.name), help);
    }
    for (pattern, at) in names {
        if let Some((message, help)) = obstacle(pattern, acme) {
            block.reading.missing(*at, message, help);
        }
    }
}

fn obstacle(pattern: &HostPattern, acme: &Placed) -> Option<(String, &'static str)> {
    let names = CertifiedName::of_pattern(pattern);
    if names.is_empty() {
        let help = "name each host, or write tls = \"self-signed\" or the folder of a certificate";
        return Some((format!("`{pattern}` cannot be certified: no certificate is for every ending"), help));
    }
    if acme.public && !names.iter().all(CertifiedName::is_public) {
        let help = "write tls = \"self-signed\" in the site, or name an authority of your own in `directory` of [acme]";
        let message =
            format!("no public authority certifies `{pattern}`: it is of this machine or of a private network");
        return Some((message, help));
    }
    if acme.public && names.iter().any(|name| matches!(name, CertifiedName::Dns(name) if name.contains('_'))) {
        let help = "take a name with a hyphen, or write tls = \"self-signed\" in the site";
        return Some((format!("no public authority certifies `{pattern}`: it has an underscore"), help));
    }
    if !acme.has_hook && names.iter().any(CertifiedName::is_wildcard) {
        let help = "add dns_hook = \"/etc/doorward/dns-hook\" to [acme], a program that sets and removes a TXT record;\n\
                    or name each host, or write tls = \"/etc/letsencrypt/live/NAME\"";
        return Some((format!("`{pattern}` needs `dns_hook`: wildcards are proven over DNS alone"), help));
    }
    // RFC 8738, section 7: "dns-01" MUST NOT be used to validate IP identifiers.
    let over_dns_alone = acme.acme.challenges == [ChallengeKind::Dns];
    if over_dns_alone && names.iter().any(|name| matches!(name, CertifiedName::Address(_))) {
        let help = "add \"tls-alpn-01\" to `challenges` of [acme]";
        return Some((format!("`{pattern}` is an address: it cannot be proven over DNS"), help));
    }
    None
}
