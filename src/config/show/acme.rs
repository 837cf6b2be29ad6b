//! `[acme]` as it is shown.

use super::{MASK, header, inline, key, list, path, text};
use crate::base::units::format_duration;
use crate::config::acme::{challenge_word, key_type_word};
use crate::config::model::{Acme, Directory};

pub(super) fn show(out: &mut String, acme: &Acme) {
    header(out, "[acme]");
    key(out, "email", text(acme.email.as_deref().unwrap_or_default()));
    match acme.directories.as_slice() {
        [only] => {
            key(out, "directory", text(&only.url));
            key(out, "eab", eab(only));
            key(out, "profile", text(only.profile.as_deref().unwrap_or_default()));
            key(out, "directory_ca", path(only.ca.as_deref()));
        }
        several => {
            let several: Vec<String> = several.iter().map(directory).collect();
            key(out, "directory", format!("[{}]", several.join(", ")));
        }
    }
    key(out, "challenges", list(acme.challenges.iter().map(|kind| challenge_word(*kind))));
    let hook = match &acme.dns_hook {
        Some(hook) if hook.arguments.is_empty() => path(Some(&hook.program)),
        Some(hook) => {
            let program = std::iter::once(path(Some(&hook.program)));
            format!("[{}]", program.chain(hook.arguments.iter().map(text)).collect::<Vec<_>>().join(", "))
        }
        None => text(""),
    };
    key(out, "dns_hook", hook);
    key(out, "dns_wait", text(format_duration(acme.dns_wait)));
    key(out, "storage", path(Some(&acme.storage)));
    key(out, "key_type", text(key_type_word(acme.key_type)));
    key(out, "renew_before", text(acme.renew_before.map(format_duration).unwrap_or_default()));
    key(out, "webroot", path(acme.webroot.as_deref()));
}

fn directory(directory: &Directory) -> String {
    inline(
        [
            format!("url = {}", text(&directory.url)),
            format!("eab = {}", eab(directory)),
            format!("profile = {}", text(directory.profile.as_deref().unwrap_or_default())),
            format!("ca = {}", path(directory.ca.as_deref())),
        ]
        .into_iter(),
    )
}

/// The account that the authority knows, without its key.
fn eab(directory: &Directory) -> String {
    let (kid, key) = match &directory.eab {
        Some(eab) => (eab.kid.as_str(), MASK),
        None => ("", ""),
    };
    format!("{{ kid = {}, hmac_key = {} }}", text(kid), text(key))
}
