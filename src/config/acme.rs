//! `[acme]`.

use std::path::PathBuf;
use std::time::Duration;

use super::block::Block;
use super::directory::{self, Directories};
use super::item::Item;
use super::model::{Acme, ChallengeKind, DnsHook, KeyType, Server};
use super::reading::Reading;
use super::tree::Place;

const STORAGE: &str = "/var/lib/doorward/acme";
const CHALLENGES: [(&str, ChallengeKind); 3] =
    [("tls-alpn-01", ChallengeKind::TlsAlpn), ("http-01", ChallengeKind::Http), ("dns-01", ChallengeKind::Dns)];
const KEY_TYPES: [(&str, KeyType); 4] = [
    ("ecdsa-p256", KeyType::EcdsaP256),
    ("ecdsa-p384", KeyType::EcdsaP384),
    ("rsa-2048", KeyType::Rsa2048),
    ("rsa-4096", KeyType::Rsa4096),
];

/// `[acme]`, and what the checks of the sites that use it ask for.
pub(super) struct Placed {
    pub acme: Acme,
    /// Whether a hook is written, sound or not.
    pub has_hook: bool,
    /// Whether every authority is one that certifies names of the Internet alone.
    pub public: bool,
    /// The place of `challenges`.
    challenges: Place,
}

pub(super) fn acme(block: Block<'_>) -> Placed {
    let Directories { directories, public } = directory::directories(&block);
    let email = block.take("email").and_then(|item| email(&item));
    let has_hook = block.take("dns_hook").is_some_and(|item| !item.node.value_is(""));
    let acme = Acme {
        email,
        directories,
        challenges: challenges(&block, has_hook),
        dns_hook: block.take("dns_hook").filter(|_| has_hook).and_then(|item| hook(&item)),
        dns_wait: block.duration("dns_wait", Duration::from_secs(15)),
        storage: storage(&block),
        key_type: block.one_of("key_type", KeyType::EcdsaP256, &KEY_TYPES),
        renew_before: renew_before(&block),
        webroot: block.path("webroot"),
    };
    let challenges = block.place("challenges");
    block.finish();
    Placed { acme, has_hook, public, challenges }
}

impl Placed {
    /// What is wrong between the table and the listeners, where a site uses it.
    pub fn check(&self, reading: &Reading<'_>, server: &Server) {
        if self.acme.challenges == [ChallengeKind::Http] && server.http.is_empty() {
            let help = "add \"tls-alpn-01\", or write http = [\":80\"] in [server]";
            let message = "\"http-01\" alone cannot be answered: [server] has no listener without TLS";
            reading.problem(self.challenges, message, "", help);
        }
    }
}

/// How a challenge is written.
pub(super) fn challenge_word(kind: ChallengeKind) -> &'static str {
    CHALLENGES.iter().find(|(_, known)| *known == kind).map_or("", |(word, _)| word)
}

/// How a key type is written.
pub(super) fn key_type_word(kind: KeyType) -> &'static str {
    KEY_TYPES.iter().find(|(_, known)| *known == kind).map_or("", |(word, _)| word)
}

fn email(item: &Item<'_>) -> Option<String> {
    let text = item.text().filter(|text| !text.is_empty())?;
    // RFC 8555, section 7.3: a contact has one address and no header fields.
    let sound = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'@' | b',' | b'?' | b':'))
    };
    if text.split_once('@').is_some_and(|(user, host)| sound(user) && sound(host)) {
        return Some(text.to_owned());
    }
    let help = match text.strip_prefix("mailto:") {
        Some(rest) => format!("write email = \"{rest}\""),
        None => "write one address, such as \"ops@example.com\", or leave it out".to_owned(),
    };
    item.problem(format!("\"{text}\" is not a mail address"), &help);
    None
}

fn challenges(block: &Block<'_>, has_hook: bool) -> Vec<ChallengeKind> {
    let default = vec![ChallengeKind::TlsAlpn, ChallengeKind::Http];
    let Some(item) = block.take("challenges") else { return default };
    let Some(items) = item.items() else { return default };
    if items.is_empty() {
        item.problem("`challenges` is empty: no name could be proven", "write [\"tls-alpn-01\", \"http-01\"]");
        return default;
    }
    let mut challenges = Vec::new();
    for item in items {
        let Some(kind) = item.one_of(&CHALLENGES) else { continue };
        if challenges.contains(&kind) {
            item.problem(format!("\"{}\" is in `challenges` twice", challenge_word(kind)), "keep one");
            continue;
        }
        if kind == ChallengeKind::Dns && !has_hook {
            let help = "add dns_hook = \"/etc/doorward/dns-hook\", a program that sets and removes a TXT record";
            block.reading.missing(item.node.at, "\"dns-01\" needs `dns_hook`", help);
        }
        challenges.push(kind);
    }
    if challenges.is_empty() { default } else { challenges }
}

fn hook(item: &Item<'_>) -> Option<DnsHook> {
    if item.node.value_is_empty_list() {
        item.problem("`dns_hook` is empty", "write \"/etc/doorward/dns-hook\", or leave it out");
        return None;
    }
    let items = item.one_or_many()?;
    let (program, arguments) = items.split_first()?;
    if program.node.value_is("") {
        program.problem("the program is empty", "write [\"/etc/doorward/dns-hook\", \"argument\"]");
    }
    program.element()?;
    let program = program.path()?;
    let arguments = arguments.iter().filter_map(|item| {
        let text = item.element()?;
        if text.contains('\0') {
            item.problem("an argument has no NUL character", "");
        }
        Some(text.to_owned())
    });
    Some(DnsHook { program, arguments: arguments.collect() })
}

fn storage(block: &Block<'_>) -> PathBuf {
    let Some(item) = block.take("storage") else { return PathBuf::from(STORAGE) };
    if item.node.value_is("") {
        item.problem("`storage` is empty: keys and certificates have to be kept", &format!("write \"{STORAGE}\""));
    }
    item.path().unwrap_or_else(|| PathBuf::from(STORAGE))
}

fn renew_before(block: &Block<'_>) -> Option<Duration> {
    let before = block.optional_duration("renew_before")?;
    if before.is_zero()
        && let Some(item) = block.take("renew_before")
    {
        let help = "write \"30d\", or leave it out: a third of the lifetime";
        item.problem("`renew_before` must be longer than 0: a certificate would end before the next one", help);
    }
    Some(before)
}
