//! HTTP Basic authentication (RFC 7617): who asks, and whether the password is right. Hashes are slow on purpose, so they
//! are computed aside, few at a time, and what was right is known for a while.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderValue, header};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::base::fault::{Fault, Kind};
use crate::base::network::client_key;
use crate::edge::password_file::PasswordFile;
use crate::edge::passwords::LONGEST_PASSWORD;

/// How long a password that was right is known to be.
const KNOWN_FOR: Duration = Duration::from_secs(300);

/// So many of them.
const MOST_KNOWN: usize = 1024;

/// Requests that may wait for their password to be checked.
const MOST_WAITING: usize = 64;

/// And so many of one address, IPv6 by /64.
const MOST_OF_ONE: usize = 32;

/// How long one may.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Encoders differ in whether they pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The user that a request was found to be of: the name in the file.
pub type User = Arc<[u8]>;

/// The password files that a configuration in memory names, and who has signed in. Outlives every reload.
#[derive(Debug)]
pub struct SignIn {
    files: Mutex<HashMap<PathBuf, Weak<PasswordFile>>>,
    /// New in each process. Without one nothing is known, and every password is checked.
    key: Option<hmac::Key>,
    /// Who has signed in, until when: a keyed hash over the file, the name and the password.
    known: Mutex<HashMap<Tag, Instant>>,
    /// One for each hash that may be computed at a time.
    turns: Arc<Semaphore>,
    /// Who waits, by address.
    waiting: Mutex<HashMap<IpAddr, usize>>,
}

type Tag = [u8; 32];

impl Default for SignIn {
    fn default() -> SignIn {
        let mut key = [0; 32];
        let key = aws_lc_rs::rand::fill(&mut key).ok().map(|()| hmac::Key::new(hmac::HMAC_SHA256, &key));
        // Workers have as many threads as there are cores: half of them is left to all other requests.
        let turns = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        SignIn {
            files: Mutex::default(),
            key,
            known: Mutex::default(),
            turns: Arc::new(Semaphore::new(turns)),
            waiting: Mutex::default(),
        }
    }
}

impl SignIn {
    /// The file at `path`, the same one for as long as anybody has it. One that is new is read; see
    /// [`PasswordFile::problem`].
    pub fn file(&self, path: &Path) -> Arc<PasswordFile> {
        let mut files = locked(&self.files);
        if let Some(file) = files.get(path).and_then(Weak::upgrade) {
            return file;
        }
        files.retain(|_, file| file.strong_count() > 0);
        let file = Arc::new(PasswordFile::open(path));
        files.insert(path.to_owned(), Arc::downgrade(&file));
        file
    }

    /// Who asks, by the Authorization field; it is to be somebody in `file`.
    pub async fn check(&self, file: &Arc<PasswordFile>, headers: &HeaderMap, address: IpAddr) -> Result<User, Fault> {
        let users = file.users().await?;
        let Some(credentials) = Credentials::read(headers) else {
            return Err(Fault::new(Kind::Unauthorized, "no name and password"));
        };
        let tag = self.tag(&users.digest, &credentials);
        if self.is_known(tag) {
            return Ok(credentials.name.into());
        }
        let busy = |detail| Fault::new(Kind::Limited, detail).status(503).retry_after(Duration::from_secs(1));
        let _waiting = Waiting::among(&self.waiting, client_key(address))
            .ok_or_else(|| busy("too many passwords are to be checked at once"))?;
        let turn = timeout(LONGEST_WAIT, self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(busy("the password could not be checked in time")) };
        // A page comes with ten requests for its pictures: one of them has done the work for all.
        if self.is_known(tag) {
            return Ok(credentials.name.into());
        }
        let checked = tokio::task::spawn_blocking(move || {
            let right = users.users.check(&credentials.name, &credentials.password);
            // Whoever has left meanwhile has had its turn none the less.
            drop(turn);
            right.then_some(credentials.name)
        });
        let checked =
            checked.await.map_err(|error| Fault::new(Kind::Internal, "a password check failed").because(error))?;
        let Some(name) = checked else {
            return Err(Fault::new(Kind::Unauthorized, "the password does not fit the name"));
        };
        self.remember(tag, Instant::now());
        Ok(name.into())
    }

    /// `file` is part of it: when the file changes, everybody signs in anew.
    fn tag(&self, file: &[u8; 32], credentials: &Credentials) -> Option<Tag> {
        let mut context = hmac::Context::with_key(self.key.as_ref()?);
        context.update(file);
        context.update(&(credentials.name.len() as u64).to_be_bytes());
        context.update(&credentials.name);
        context.update(&credentials.password);
        context.sign().as_ref().try_into().ok()
    }

    /// The lookup compares outputs of a keyed hash: how long it takes tells nothing that could be used.
    fn is_known(&self, tag: Option<Tag>) -> bool {
        tag.is_some_and(|tag| locked(&self.known).get(&tag).is_some_and(|until| Instant::now() < *until))
    }

    fn remember(&self, tag: Option<Tag>, now: Instant) {
        let Some(tag) = tag else { return };
        let mut known = locked(&self.known);
        if known.len() >= MOST_KNOWN {
            known.retain(|_, until| now < *until);
        }
        if known.len() >= MOST_KNOWN
            && let Some(oldest) = known.iter().min_by_key(|(_, until)| **until).map(|(tag, _)| *tag)
        {
            known.remove(&oldest);
        }
        known.insert(tag, now + KNOWN_FOR);
    }
}

/// The value of WWW-Authenticate that asks for a name and a password of `realm`.
pub fn challenge(realm: &str) -> HeaderValue {
    // RFC 9110, section 5.6.4: within quotes, these two are written with a backslash.
    let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
    // RFC 7617, section 2.1: "the user agent … encode the user-id and password using … UTF-8".
    HeaderValue::from_bytes(format!("Basic realm=\"{quoted}\", charset=\"UTF-8\"").as_bytes())
        .unwrap_or(HeaderValue::from_static("Basic realm=\"-\", charset=\"UTF-8\""))
}

/// A name and a password, as a client says them.
#[derive(PartialEq, Eq)]
pub struct Credentials {
    /// Without a colon.
    pub name: Vec<u8>,
    /// What is behind the first colon.
    pub password: Vec<u8>,
}

impl Credentials {
    /// Those of the Authorization field. Two fields are nobody's: another reader might take the other one.
    pub fn read(headers: &HeaderMap) -> Option<Credentials> {
        let mut fields = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (fields.next(), fields.next()) else { return None };
        // RFC 9110, section 11.1: the scheme is "a case-insensitive token".
        let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        // RFC 7617, section 2: "a user-id containing a colon character is invalid".
        let mut text = BASE64.decode(rest.trim_ascii()).ok()?;
        let colon = text.iter().position(|byte| *byte == b':')?;
        let password = text.get(colon + 1..)?.to_vec();
        text.truncate(colon);
        (password.len() <= LONGEST_PASSWORD).then_some(Credentials { name: text, password })
    }
}

/// A place among those that wait.
struct Waiting<'a> {
    all: &'a Mutex<HashMap<IpAddr, usize>>,
    key: IpAddr,
}

impl Waiting<'_> {
    fn among(all: &Mutex<HashMap<IpAddr, usize>>, key: IpAddr) -> Option<Waiting<'_>> {
        let mut waiting = locked(all);
        // One address cannot take all places.
        if waiting.values().sum::<usize>() >= MOST_WAITING || waiting.get(&key).is_some_and(|own| *own >= MOST_OF_ONE) {
            return None;
        }
        *waiting.entry(key).or_default() += 1;
        drop(waiting);
        Some(Waiting { all, key })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = locked(self.all);
        if let Some(own) = waiting.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                waiting.remove(&self.key);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())).collect()
    }

    fn basic(text: &str) -> HeaderMap {
        headers(&[&format!("Basic {}", BASE64.encode(text))])
    }

    fn read(values: &[&str]) -> Option<(String, String)> {
        let Credentials { name, password } = Credentials::read(&headers(values))?;
        Some((String::from_utf8(name).unwrap(), String::from_utf8(password).unwrap()))
    }

    const ANN: &str = "ann:{SHA}4uhqWjnCZZC5J60Sbkje+0XyBk8=\n";

    fn folder(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn credentials_are_read_as_clients_write_them() {
        let ann = Some(("ann".to_owned(), "a:b".to_owned()));
        assert_eq!(read(&["Basic YW5uOmE6Yg=="]), ann);
        assert_eq!(read(&["bAsIc  YW5uOmE6Yg"]), ann, "another case, two spaces, no padding");
        for none in ["", "Basic", "Basic ", "Basic YW5u", "Basic !!!!", "Bearer YW5uOmE6Yg==", "BasicYW5uOmE6Yg=="] {
            assert_eq!(read(&[none]), None, "{none}");
        }
        assert_eq!(read(&["Basic YW5uOmE6Yg==", "Basic YW5uOmE6Yg=="]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_realm_cannot_break_out_of_its_quotes() {
        assert_eq!(challenge("app"), "Basic realm=\"app\", charset=\"UTF-8\"");
        assert_eq!(challenge("a\"b\\c"), "Basic realm=\"a\\\"b\\\\c\", charset=\"UTF-8\"");
        assert_eq!(challenge("a\r\nb"), "Basic realm=\"-\", charset=\"UTF-8\"");
    }

    #[tokio::test]
    async fn who_is_right_is_known_until_the_file_changes() {
        let (_folder, path) = folder(ANN);
        let sign_in = SignIn::default();
        let file = sign_in.file(&path);
        assert_eq!(*sign_in.check(&file, &basic("ann:tiger lily"), HERE).await.unwrap(), *b"ann");
        assert_eq!(locked(&sign_in.known).len(), 1);
        for wrong in ["ann:tiger", "bob:tiger lily", "ann:", ":", "anntiger lily:"] {
            let fault = sign_in.check(&file, &basic(wrong), HERE).await.unwrap_err();
            assert_eq!(fault.kind, Kind::Unauthorized, "{wrong}");
        }
        assert_eq!(locked(&sign_in.known).len(), 1, "only what is right is known");
        std::fs::write(&path, "bob:{SHA}4uhqWjnCZZC5J60Sbkje+0XyBk8=\n").unwrap();
        file.look();
        assert!(sign_in.check(&file, &basic("ann:tiger lily"), HERE).await.is_err());
        assert!(sign_in.check(&file, &basic("bob:tiger lily"), HERE).await.is_ok());
    }

    #[tokio::test]
    async fn without_its_file_nobody_is_let_in() {
        let (_folder, path) = folder(ANN);
        let sign_in = SignIn::default();
        let file = sign_in.file(&path);
        assert!(Arc::ptr_eq(&file, &sign_in.file(&path)), "a reload has the same one");
        assert!(sign_in.check(&file, &basic("ann:tiger lily"), HERE).await.is_ok());
        std::fs::remove_file(&path).unwrap();
        file.look();
        let fault = sign_in.check(&file, &basic("ann:tiger lily"), HERE).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Internal);
    }

    #[tokio::test]
    async fn a_crowd_waits_for_its_turn_and_the_rest_is_told_to_come_later() {
        let (_folder, path) = folder(ANN);
        let sign_in = Arc::new(SignIn::default());
        let file = sign_in.file(&path);
        let turns = sign_in.turns.available_permits();
        let taken = sign_in.turns.clone().acquire_many_owned(u32::try_from(turns).unwrap()).await.unwrap();
        let there = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
        let all = || locked(&sign_in.waiting).values().sum::<usize>();
        let mut asking = Vec::new();
        for (address, most) in [(HERE, MOST_OF_ONE), (there, MOST_WAITING)] {
            while asking.len() < most {
                let (sign_in, file) = (sign_in.clone(), file.clone());
                let one = async move { sign_in.check(&file, &basic("ann:tiger lily"), address).await.is_ok() };
                asking.push(tokio::spawn(one));
            }
            while all() < most {
                tokio::task::yield_now().await;
            }
            // One address has its share; then all are taken.
            assert!(sign_in.check(&file, &basic("ann:tiger lily"), address).await.is_err());
        }
        let nobody = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 8));
        let fault = sign_in.check(&file, &basic("ann:tiger lily"), nobody).await.unwrap_err();
        assert_eq!((fault.kind, fault.status), (Kind::Limited, Some(503)));
        drop(taken);
        for one in asking {
            assert!(one.await.unwrap());
        }
        assert_eq!(all(), 0);
    }

    #[test]
    fn no_more_than_a_thousand_are_known() {
        let sign_in = SignIn::default();
        let now = Instant::now();
        for n in 0..3000_u64 {
            let mut tag = [0; 32];
            tag[..8].copy_from_slice(&n.to_be_bytes());
            sign_in.remember(Some(tag), now + Duration::from_millis(n));
            assert!(locked(&sign_in.known).len() <= MOST_KNOWN);
            assert!(sign_in.is_known(Some(tag)));
        }
        let mut first = [0; 32];
        first[7] = 1;
        assert!(!sign_in.is_known(Some(first)), "the oldest have gone");
    }
}
