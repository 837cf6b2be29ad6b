//! `directory` of `[acme]`: the authorities, and what each of them wants to know.

use std::path::PathBuf;

use ::http::Uri;
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::block::Block;
use super::item::Item;
use super::model::{Directory, ExternalAccount};
use super::tree::Value;
use super::words::closest;
use crate::base::host::Authority;
use crate::base::public_authority::{self, PUBLIC, PublicAuthority};

const LETS_ENCRYPT: &str = PUBLIC[0].directory;

/// What a directory may be called: the name of a public authority, and one rehearsal's.
fn named(text: &str) -> Option<&'static str> {
    let public = PUBLIC.iter().find(|public| public.name == text).map(|public| public.directory);
    public.or(PUBLIC[0].rehearsal.filter(|_| text == STAGING))
}

/// Let's Encrypt's rehearsal.
const STAGING: &str = "staging";

/// What `directory` and the keys beside it say.
pub(super) struct Directories {
    /// Never empty.
    pub directories: Vec<Directory>,
    /// Whether every one of them certifies names of the Internet alone. False where one could not be read.
    pub public: bool,
}

/// What may stand beside the URL of a directory.
struct Beside {
    /// `None` where it is wrong, which is told.
    eab: Option<Option<ExternalAccount>>,
    profile: Option<String>,
    ca: Option<PathBuf>,
}

/// Reads `directory`, `eab`, `profile` and `directory_ca` of `[acme]`.
pub(super) fn directories(block: &Block<'_>) -> Directories {
    let beside = beside(block, "directory_ca");
    let written = block.take("directory");
    let elements = match written.map(|item| (item, &item.node.value)) {
        None => {
            let directory = beside.of(LETS_ENCRYPT.to_owned());
            return Directories {
                public: directory.is_some(),
                directories: vec![directory.unwrap_or_else(lets_encrypt)],
            };
        }
        Some((item, Value::Text(_))) => {
            let directory = url(&item).and_then(|url| beside.checked(&item, url));
            return collect(vec![directory.map(|directory| (item, directory))]);
        }
        Some((item, Value::Table(_))) => vec![item],
        Some((item, Value::List(list))) if list.is_empty() => {
            item.problem("`directory` is empty: nobody could be asked", &format!("write \"{LETS_ENCRYPT}\""));
            Vec::new()
        }
        Some((item, Value::List(_))) => item.items().unwrap_or_default(),
        Some((item, _)) => {
            item.wrong("a string or a list", &format!("write directory = \"{LETS_ENCRYPT}\""));
            Vec::new()
        }
    };
    let written = [
        ("eab", "eab", matches!(beside.eab, Some(Some(_)))),
        ("profile", "profile", beside.profile.is_some()),
        ("directory_ca", "ca", beside.ca.is_some()),
    ];
    for (key, there, _) in written.iter().filter(|(_, _, is)| *is) {
        let help = format!("move it there: directory = [{{ url = \"https://…\", {there} = … }}, …]");
        block.no_effect(key, "each authority of `directory` has its own", &help);
    }
    collect(elements.into_iter().map(|item| element(&item).map(|directory| (item, directory))).collect())
}

fn collect(read: Vec<Option<(Item<'_>, Directory)>>) -> Directories {
    let mut public = !read.is_empty() && read.iter().all(Option::is_some);
    let mut directories = Vec::new();
    for (item, directory) in read.into_iter().flatten() {
        public &= public_authority(&directory.url).is_some();
        if directories.contains(&directory) {
            item.problem(format!("{} is in `directory` twice", directory.url), "keep one");
        }
        directories.push(directory);
    }
    if directories.is_empty() {
        directories.push(lets_encrypt());
    }
    Directories { directories, public }
}

/// What is read on with where there is a problem.
fn lets_encrypt() -> Directory {
    Directory { url: LETS_ENCRYPT.to_owned(), eab: None, profile: None, ca: None }
}

/// One of a list: a URL, a name, or a table.
fn element(item: &Item<'_>) -> Option<Directory> {
    let bare = Beside { eab: Some(None), profile: None, ca: None };
    match &item.node.value {
        Value::Table(_) => {
            let block = item.table("`directory`")?;
            let beside = beside(&block, "ca");
            let written = block.take("url");
            if written.is_none() && !block.misspelt(&["url"]) {
                let help = format!("write {{ url = \"{LETS_ENCRYPT}\", … }}");
                block.reading.missing(block.at, "a directory has no `url`", help);
            }
            block.finish();
            let written = written?;
            written.text()?;
            beside.checked(&written, url(&written)?)
        }
        Value::Text(_) => bare.checked(item, url(item)?),
        other => {
            let message = format!("`directory` holds {} where a string or a table must be", other.kind());
            item.problem(message, "write \"https://…\" or { url = \"https://…\", profile = \"…\" }");
            None
        }
    }
}

/// The URL that is written, or that a name stands for.
fn url(item: &Item<'_>) -> Option<String> {
    let text = item.text()?;
    if let Some(url) = named(text) {
        return Some(url.to_owned());
    }
    // RFC 8555, section 6.1: each ACME function is accomplished by requests over HTTPS.
    if let Some(rest) = text.strip_prefix("http://") {
        item.problem(
            format!("\"{text}\" is not https: whoever is on the way could answer in the authority's name"),
            &format!("write \"https://{rest}\"; an authority of your own is verified with `directory_ca`"),
        );
        return None;
    }
    let Some(rest) = text.strip_prefix("https://") else {
        let help = match closest(text, PUBLIC.iter().map(|public| public.name).chain([STAGING])) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => "write a URL, such as \"https://ca.internal/acme/directory\", or a name: \"letsencrypt\", \"staging\",\n\"zerossl\" or \"google\"".to_owned(),
        };
        item.problem(format!("\"{text}\" is not the directory of an authority"), &help);
        return None;
    };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    if Authority::parse(host).is_err() || rest.contains('#') || text.parse::<Uri>().is_err() {
        item.problem(format!("\"{text}\" is not a URL"), "write \"https://host/path\", or \"https://host:port/path\"");
        return None;
    }
    Some(text.to_owned())
}

fn public_authority(url: &str) -> Option<&'static PublicAuthority> {
    public_authority::production(url).or_else(|| public_authority::rehearsing(url))
}

impl Beside {
    /// The directory at `url`; `None` where what stands beside it is wrong.
    fn of(self, url: String) -> Option<Directory> {
        Some(Directory { url, eab: self.eab?, profile: self.profile, ca: self.ca })
    }

    /// The directory at `url`, written in `item`. Says where an external account is got that it has to have.
    fn checked(self, item: &Item<'_>, url: String) -> Option<Directory> {
        if let Some(None) = self.eab
            && let Some(public) = public_authority(&url).filter(|public| !public.account.is_empty())
        {
            let help = format!("add eab = {{ kid = \"…\", hmac_key = \"…\" }};\n{}", public.account);
            item.reading.missing(
                item.node.at,
                format!("{} wants an external account, and there is no `eab`", public.name),
                help,
            );
        }
        self.of(url)
    }
}

fn beside(block: &Block<'_>, ca: &'static str) -> Beside {
    let eab = match block.take("eab") {
        Some(item) => eab(&item),
        None => Some(None),
    };
    let profile = block.take("profile").and_then(|item| {
        let text = item.text().filter(|text| !text.is_empty())?;
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            item.problem(
                "a profile is one word",
                "write \"classic\", \"tlsserver\" or \"shortlived\" for Let's Encrypt",
            );
        }
        Some(text.to_owned())
    });
    Beside { eab, profile, ca: block.path(ca) }
}

/// `None` where it is wrong, `Some(None)` where it says nothing.
fn eab(item: &Item<'_>) -> Option<Option<ExternalAccount>> {
    if !matches!(item.node.value, Value::Table(_)) {
        item.wrong("a table", "write eab = { kid = \"…\", hmac_key = \"…\" }");
        return None;
    }
    let block = item.table("`eab`")?;
    let (kid, key) = (block.take("kid"), block.take("hmac_key"));
    block.finish();
    let lonely = |has: &str, lacks: &Option<Item<'_>>, name: &str| {
        let at = lacks.map_or(item.node.at, |item| item.node.at);
        let help = "an authority gives the two together; write eab = { kid = \"…\", hmac_key = \"…\" }";
        item.reading.missing(at, format!("`{has}` without `{name}`"), help);
    };
    match (kid.map_or(Some(""), |item| item.text())?, key.map_or(Some(""), |item| item.text())?) {
        ("", "") => Some(None),
        (_, "") => {
            lonely("kid", &key, "hmac_key");
            None
        }
        ("", _) => {
            lonely("hmac_key", &kid, "kid");
            None
        }
        (kid, secret) => Some(Some(ExternalAccount { kid: kid.to_owned(), hmac_key: hmac_key(&key?, secret)? })),
    }
}

/// The decoded key. It is never repeated in a message.
fn hmac_key(item: &Item<'_>, text: &str) -> Option<Vec<u8>> {
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    // RFC 8555, section 7.3.4: the MAC key should be given in base64url.
    match GeneralPurpose::new(&URL_SAFE, lenient).decode(text) {
        Ok(key) => Some(key),
        Err(_) => {
            let help = match text.contains(['+', '/']) {
                true => "it seems to be plain base64: write '-' for '+' and '_' for '/'",
                false => "copy the whole key: letters, digits, '-' and '_'",
            };
            item.problem("`hmac_key` is not base64url", help);
            None
        }
    }
}
