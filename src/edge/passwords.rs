//! An htpasswd file: users and the hashes of their passwords. Reads what Apache's `htpasswd` and `openssl passwd` write,
//! but for passwords in the clear and the crypt(3) of the 1970s.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use sha_crypt::{PasswordVerifier, ShaCrypt};

/// Bytes of a password that are looked at; nobody has a longer one (libxcrypt takes 512 bytes as well), and the time
/// that a hash takes grows with it.
pub const LONGEST_PASSWORD: usize = 512;

/// The costliest hashes that are taken: about three seconds each.
const MOST_BCRYPT: u32 = 16;
const MOST_ROUNDS: u32 = 1_000_000;

/// The users of one file.
#[derive(Debug, Default)]
pub struct Users {
    hashes: HashMap<Box<[u8]>, Hash>,
    /// The hash of the first user: whoever is not in the file is held against it, so that no answer comes sooner.
    first: Option<Hash>,
}

/// A line that gives nobody access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// Counted from 1.
    pub number: usize,
    /// What is wrong; holds no secret.
    pub why: &'static str,
}

/// The hash of a password.
#[derive(Clone, PartialEq, Eq)]
enum Hash {
    /// `$2y$`, as it stands.
    Bcrypt(String),
    /// `$5$` and `$6$`, as they stand.
    ShaCrypt(String),
    /// `$apr1$`: Apache's MD5.
    Apr1 { salt: Vec<u8>, hash: Vec<u8> },
    /// `{SHA}`, without a salt.
    Sha1(Vec<u8>),
}

impl Users {
    /// Reads a file, line by line: `name:hash`, or `name:hash:comment`. Lines with `#` at their front and empty ones are
    /// nobody's. Of a name that stands there twice the first counts, as with Apache and nginx.
    pub fn read(text: &[u8]) -> (Users, Vec<BadLine>) {
        let (mut users, mut bad) = (Users::default(), Vec::new());
        for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if let Err(why) = users.take(line) {
                bad.push(BadLine { number: at + 1, why });
            }
        }
        (users, bad)
    }

    fn take(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let mut parts = line.splitn(3, |byte| *byte == b':');
        let (Some(name), Some(hash)) = (parts.next(), parts.next()) else { return Err("it is not name:hash") };
        if name.is_empty() {
            return Err("it has no name");
        }
        let hash = Hash::read(hash)?;
        self.first.get_or_insert_with(|| hash.clone());
        match self.hashes.entry(name.into()) {
            Entry::Occupied(_) => Err("its name stands above already; the first counts"),
            Entry::Vacant(place) => {
                place.insert(hash);
                Ok(())
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.hashes.len()
    }

    /// Whether `name` is a user, and `password` is that user's. Takes up to seconds, and as long for a name that is not
    /// there: for a thread that may wait.
    pub fn check(&self, name: &[u8], password: &[u8]) -> bool {
        let known = self.hashes.get(name);
        let Some(hash) = known.or(self.first.as_ref()) else { return false };
        let fits = password.len() <= LONGEST_PASSWORD && hash.fits(password);
        fits && known.is_some()
    }
}

impl Hash {
    fn read(text: &[u8]) -> Result<Hash, &'static str> {
        const UNKNOWN: &str =
            "its password is in the clear, or hashed in a way that is not taken: make it anew with htpasswd -B";
        const DAMAGED: &str = "its hash is damaged: make it anew with htpasswd -B";
        let text = std::str::from_utf8(text).map_err(|_| UNKNOWN)?;
        if let Some(hash) = text.strip_prefix("{SHA}") {
            let hash = STANDARD.decode(hash).ok().filter(|hash| hash.len() == 20);
            return Ok(Hash::Sha1(hash.ok_or(DAMAGED)?));
        }
        let mut fields = text.split('$').skip(1);
        match fields.next() {
            Some("2y" | "2a" | "2b") => {
                let cost = fields.next().filter(|cost| cost.len() == 2).and_then(|cost| cost.parse::<u32>().ok());
                let cost = cost.filter(|cost| *cost >= 4).ok_or(DAMAGED)?;
                let rest = fields.next().unwrap_or_default();
                if rest.len() != 53 || fields.next().is_some() || !is_crypt_text(rest) {
                    return Err(DAMAGED);
                }
                if cost > MOST_BCRYPT {
                    return Err("its hash takes too long: make it anew with htpasswd -B -C 12");
                }
                Ok(Hash::Bcrypt(text.to_owned()))
            }
            Some(kind @ ("5" | "6")) => {
                let mut next = fields.next().unwrap_or_default();
                if let Some(rounds) = next.strip_prefix("rounds=") {
                    let rounds = rounds.parse::<u32>().ok().filter(|rounds| *rounds >= 1000).ok_or(DAMAGED)?;
                    if rounds > MOST_ROUNDS {
                        return Err("its hash takes too long: make it anew with htpasswd -5 -r 100000");
                    }
                    next = fields.next().unwrap_or_default();
                }
                let hash = fields.next().unwrap_or_default();
                let length = if kind == "5" { 43 } else { 86 };
                let fits = (1..=16).contains(&next.len()) && hash.len() == length && fields.next().is_none();
                if !fits || !is_crypt_text(next) || !is_crypt_text(hash) {
                    return Err(DAMAGED);
                }
                Ok(Hash::ShaCrypt(text.to_owned()))
            }
            Some("apr1") => {
                let (salt, hash) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
                let fits = (1..=8).contains(&salt.len()) && hash.len() == 22 && fields.next().is_none();
                if !fits || !is_crypt_text(salt) || !is_crypt_text(hash) {
                    return Err(DAMAGED);
                }
                Ok(Hash::Apr1 { salt: salt.into(), hash: hash.into() })
            }
            _ => Err(UNKNOWN),
        }
    }

    fn fits(&self, password: &[u8]) -> bool {
        match self {
            // Beyond 72 bytes bcrypt reads nothing; Apache's does not either.
            Hash::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Hash::ShaCrypt(hash) => ShaCrypt::default().verify_password(password, hash.as_str()).is_ok(),
            Hash::Apr1 { salt, hash } => verify_slices_are_equal(&apr1(password, salt), hash).is_ok(),
            Hash::Sha1(hash) => {
                verify_slices_are_equal(digest(&SHA1_FOR_LEGACY_USE_ONLY, password).as_ref(), hash).is_ok()
            }
        }
    }
}

/// What a message may show of it: nothing.
impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

const CRYPT: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn is_crypt_text(text: &str) -> bool {
    text.bytes().all(|byte| CRYPT.contains(&byte))
}

/// The MD5 of FreeBSD's crypt(3) with Apache's own word in it (apr_md5.c), as text.
fn apr1(password: &[u8], salt: &[u8]) -> Vec<u8> {
    let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut first = Md5::new().chain_update(password).chain_update(b"$apr1$").chain_update(salt);
    for at in (0..password.len()).step_by(16) {
        first.update(inner.get(..(password.len() - at).min(16)).unwrap_or_default());
    }
    let mut bits = password.len();
    while bits > 0 {
        first.update(if bits & 1 == 1 { &[0][..] } else { password.get(..1).unwrap_or_default() });
        bits >>= 1;
    }
    let mut hash = first.finalize();
    for round in 0..1000 {
        let mut next = Md5::new();
        let (own, other): (&[u8], &[u8]) = if round % 2 == 1 { (password, &hash) } else { (&hash, password) };
        next.update(own);
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        next.update(other);
        hash = next.finalize();
    }
    let byte = |at: usize| u32::from(hash.get(at).copied().unwrap_or_default());
    let mut text = Vec::with_capacity(22);
    for (a, b, c) in [(0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5)] {
        put(&mut text, byte(a) << 16 | byte(b) << 8 | byte(c), 4);
    }
    put(&mut text, byte(11), 2);
    text
}

/// The lowest `count` × 6 bits as text, the lowest first.
fn put(text: &mut Vec<u8>, mut bits: u32, count: usize) {
    for _ in 0..count {
        text.extend(CRYPT.get((bits & 63) as usize));
        bits >>= 6;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(line: &str, name: &str, password: &str) -> bool {
        let (users, bad) = Users::read(line.as_bytes());
        assert_eq!(bad, [], "{line}");
        users.check(name.as_bytes(), password.as_bytes())
    }

    /// Made by Apache's htpasswd 2.4 and OpenSSL 3 for the password `tiger lily`.
    const LINES: [&str; 8] = [
        "ann:$2y$04$B9QmSfjZ33OG4ESz6XIsP.piXqzGyf8SnhUG9XPdCz8.9wXhip9tC",
        "ann:$5$t2QL.lbe0XOGWuX6$ypZ.GT03sYG.TWDtcSUYMb1hGc9pmRIizhTbTPi9Pw0",
        "ann:$6$yxvguH4hwI8vx5ag$6wdKS.tYdXh6EAgH7jmjcYXabapUpfx4BEJIlPuyCI9kIOucibyjlvoUkhEMb604q4kiUsXqJqyFmw9fwb7m11",
        "ann:$6$rounds=1200$DnxNAjHhbOMe1uWq$iPRmFhMstB5plAcyBXKCU4tSxcVKiHKWONhe2rnwuhMTTcdqC2b1F2VaoZsSB49XXKjLvDunqE0jTbD2et3sR.",
        "ann:$6$NKi/w76Qym0DhzxW$7JWUOvtwTnIEHHF1iROyh/s6qHS2klVjfNOlWVbb/6h0q513sUodQws.iRE3aaBA.aea3GFZUd92FirNk0s931",
        "ann:$apr1$AeOE7epI$VfVf8Y8UjbHEWg2Rv6Mjq1",
        "ann:{SHA}4uhqWjnCZZC5J60Sbkje+0XyBk8=",
        "ann:$apr1$EYTiD1BM$eQxv7CgtX41NJPdUg6M/D/",
    ];

    #[test]
    fn what_others_have_hashed_is_understood() {
        for line in LINES {
            assert!(check(line, "ann", "tiger lily"), "{line}");
            for wrong in ["", "tiger lil", "tiger lily ", "Tiger lily", "tiger lily\0"] {
                assert!(!check(line, "ann", wrong), "{line}: {wrong:?}");
            }
            assert!(!check(line, "bob", "tiger lily"), "a user who is not there");
        }
    }

    #[test]
    fn apache_s_md5_is_right_for_passwords_of_every_length() {
        // openssl passwd -apr1 -salt abcdefgh
        for (password, hash) in [
            ("", "L.PT565ESX4Tp2bqNs7Ie."),
            ("a", "G8IsPsylW5ROvIKsQMRG61"),
            ("0123456789abcde", "QlGd2GsJv61KgG4oQJeli/"),
            ("0123456789abcdef", "sxHfOFLANAYXeGF./FBFh."),
            ("0123456789abcdefg", "1EmOoQBtUQ/xoE6y2eLUr/"),
            (&"x".repeat(100), "9/cwT0JwksL/fA2yBHBE6/"),
        ] {
            assert_eq!(apr1(password.as_bytes(), b"abcdefgh"), hash.as_bytes(), "{password:?}");
        }
    }

    #[test]
    fn a_comment_behind_the_hash_and_lines_of_nobody_are_passed_over() {
        let text = format!("# staff\n\n{}:Ann from accounting\r\n", LINES[6]);
        assert!(check(&text, "ann", "tiger lily"));
    }

    #[test]
    fn what_gives_nobody_access_is_told_with_its_line_and_without_its_secret() {
        let text = format!(
            "ann:secret\nbob:{}\nbob:{}\nno colon\n:x\ncid:$2y$31${}\ndan:$6$rounds=999999999$a${}\neve:$y$j9T$x$y\nfox:$2y$05$short\n",
            &LINES[6][4..],
            &LINES[6][4..],
            "a".repeat(53),
            "a".repeat(86),
        );
        let (users, bad) = Users::read(text.as_bytes());
        assert_eq!(users.count(), 1);
        assert_eq!(bad.iter().map(|line| line.number).collect::<Vec<_>>(), [1, 3, 4, 5, 6, 7, 8, 9]);
        assert!(bad.iter().all(|line| !line.why.contains("secret")));
        assert!(!users.check(b"ann", b"secret"));
        assert!(!format!("{users:?}").contains("4uhq"));
    }

    #[test]
    fn nobody_is_in_an_empty_file() {
        let (users, bad) = Users::read(b"");
        assert_eq!(bad, []);
        assert!(!users.check(b"", b""));
        assert!(!users.check(b"ann", b""));
    }

    #[test]
    fn a_password_that_is_nobody_s_is_not_hashed() {
        let begun = std::time::Instant::now();
        assert!(!check(LINES[2], "ann", &"x".repeat(1_000_000)));
        assert!(begun.elapsed() < std::time::Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(
            text in r"(ann|bob)?:?(\{SHA\}|\$apr1\$|\$2y\$0[0-9]\$|\$[56]\$(rounds=[0-9]{1,5}\$)?)?[./0-9A-Za-z$:=\n]{0,120}",
            junk in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (users, _) = Users::read(text.as_bytes());
            let _ = users.count();
            let (users, _) = Users::read(&junk);
            users.check(b"ann", b"x");
        }
    }
}
