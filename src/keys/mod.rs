//! Layer 2: private keys. Whatever signs does so through [`Keys`], so that the rest of the house does not know
//! whether a key is in this process or with a key holder. No tokio, no hyper.

pub mod file;

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{self, PemObject};

/// Where private keys are used. Implementations do I/O in `load` and, when remote, in `SigningKey`'s signer.
pub trait Keys: Send + Sync {
    /// The key that is named by `key_file`. It must tell its public key, or it cannot be held against a certificate.
    ///
    /// # Errors
    /// The file cannot be read, or holds no private key that can sign a handshake.
    fn load(&self, key_file: &Path) -> Result<Arc<dyn SigningKey>, KeyError>;
}

/// Keys read from PEM files into this process: PKCS #1, PKCS #8 and SEC 1; RSA, ECDSA and Ed25519.
#[derive(Debug, Default)]
pub struct LocalKeys {
    /// Keys that everybody can read, and that the log has been told of.
    exposed: Mutex<BTreeSet<PathBuf>>,
}

impl LocalKeys {
    /// Keys of this process.
    pub fn new() -> LocalKeys {
        LocalKeys::default()
    }

    fn warn_once_if_exposed(&self, key_file: &Path, metadata: &Metadata) {
        // Nothing panics while the lock is held.
        let mut exposed = self.exposed.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_world_readable(metadata) {
            exposed.remove(key_file);
        } else if exposed.insert(key_file.to_owned()) {
            tracing::warn!(key = %key_file.display(), "every user of this machine can read this private key: chmod o-r it");
        }
    }
}

impl Keys for LocalKeys {
    fn load(&self, key_file: &Path) -> Result<Arc<dyn SigningKey>, KeyError> {
        let path = || key_file.to_owned();
        let file = file::read(key_file).map_err(|source| KeyError::Read { path: path(), source })?;
        let key = PrivateKeyDer::from_pem_slice(&file.bytes).map_err(|source| match source {
            pem::Error::NoItemsFound if is_encrypted(&file.bytes) => KeyError::Encrypted { path: path() },
            pem::Error::NoItemsFound => KeyError::NoKey { path: path() },
            source => KeyError::Pem { path: path(), source },
        })?;
        let key = any_supported_type(&key).map_err(|source| KeyError::Unusable { path: path(), source })?;
        self.warn_once_if_exposed(key_file, &file.metadata);
        Ok(key)
    }
}

/// Why a private key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the key {}", path.display())]
    Read {
        /// The key's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is PEM no more: half-written or damaged.
    #[error("the key {} is not well-formed PEM", path.display())]
    Pem {
        /// The key's file.
        path: PathBuf,
        /// Where it stops being PEM.
        #[source]
        source: pem::Error,
    },
    /// There is no private key in the file.
    #[error("there is no private key in {}", path.display())]
    NoKey {
        /// The key's file.
        path: PathBuf,
    },
    /// The key is protected by a passphrase, and nobody is there to type it.
    #[error("the key {} is encrypted: remove its passphrase (openssl pkey -in … -out …)", path.display())]
    Encrypted {
        /// The key's file.
        path: PathBuf,
    },
    /// The key is damaged, or of a kind or size that TLS cannot use.
    #[error("the key {} cannot sign TLS handshakes: RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) and Ed25519 can", path.display())]
    Unusable {
        /// The key's file.
        path: PathBuf,
        /// What the cryptographic library said.
        #[source]
        source: rustls::Error,
    },
}

fn is_encrypted(pem: &[u8]) -> bool {
    [&b"-----BEGIN ENCRYPTED PRIVATE KEY-----"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| memchr::memmem::find(pem, mark).is_some())
}

/// A group may well be meant to read a key (Debian's `ssl-cert`); everybody is not.
fn is_world_readable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o004 != 0
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use rustls::SignatureAlgorithm;

    use super::*;

    fn openssl(arguments: &[&str], folder: &Path) {
        let status = Command::new("openssl")
            .args(arguments)
            .current_dir(folder)
            .stderr(Stdio::null())
            .status()
            .expect("openssl");
        assert!(status.success(), "openssl {arguments:?}");
    }

    #[test]
    fn every_encoding_and_algorithm_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let make: [&[&str]; 7] = [
            &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "rsa8.pem"],
            &["rsa", "-in", "rsa8.pem", "-traditional", "-out", "rsa1.pem"],
            &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sec1.pem"],
            &["ecparam", "-name", "prime256v1", "-genkey", "-out", "sec1-with-parameters.pem"],
            &["pkcs8", "-topk8", "-nocrypt", "-in", "sec1.pem", "-out", "ec8.pem"],
            &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", "ec384.pem"],
            &["genpkey", "-algorithm", "ED25519", "-out", "ed25519.pem"],
        ];
        for arguments in make {
            openssl(arguments, folder.path());
        }
        for (file, algorithm) in [
            ("rsa8.pem", SignatureAlgorithm::RSA),
            ("rsa1.pem", SignatureAlgorithm::RSA),
            ("sec1.pem", SignatureAlgorithm::ECDSA),
            ("sec1-with-parameters.pem", SignatureAlgorithm::ECDSA),
            ("ec8.pem", SignatureAlgorithm::ECDSA),
            ("ec384.pem", SignatureAlgorithm::ECDSA),
            ("ed25519.pem", SignatureAlgorithm::ED25519),
        ] {
            let key =
                LocalKeys::new().load(&folder.path().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(key.algorithm(), algorithm, "{file}");
            assert!(key.public_key().is_some(), "{file} does not tell its public key");
        }
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        openssl(&["genpkey", "-algorithm", "ED25519", "-out", "key.pem"], folder.path());
        openssl(
            &["genpkey", "-algorithm", "ED25519", "-aes256", "-pass", "pass:x", "-out", "locked.pem"],
            folder.path(),
        );
        openssl(&["genpkey", "-algorithm", "ED448", "-out", "ed448.pem"], folder.path());
        let text = fs::read_to_string(folder.path().join("key.pem")).unwrap();
        fs::write(folder.path().join("half.pem"), &text[..text.len() / 2]).unwrap();
        fs::write(folder.path().join("empty.pem"), "").unwrap();
        let load = |file: &str| LocalKeys::new().load(&folder.path().join(file)).unwrap_err();
        assert!(matches!(load("locked.pem"), KeyError::Encrypted { .. }));
        assert!(matches!(load("ed448.pem"), KeyError::Unusable { .. }));
        assert!(matches!(load("half.pem"), KeyError::Pem { .. }));
        assert!(matches!(load("empty.pem"), KeyError::NoKey { .. }));
        assert!(matches!(load("absent.pem"), KeyError::Read { .. }));
        assert!(matches!(load("."), KeyError::Read { .. }));
    }

    #[test]
    fn only_everybody_is_too_many_readers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        fs::write(&path, "").unwrap();
        for (mode, readable) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_world_readable(&fs::metadata(&path).unwrap()), readable, "{mode:o}");
        }
    }
}
