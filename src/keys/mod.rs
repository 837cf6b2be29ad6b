//! Layer 2: private keys. Whatever signs does so through [`Keys`], so that the rest of the house does not know
//! whether a key is in this process or with a key holder. No tokio, no hyper.

pub mod file;

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256,
    RsaKeySize, SanType,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{self, PemObject};

use crate::base::certified_name::CertifiedName;

/// Where private keys are used. Implementations do I/O in `load` and, when remote, in `SigningKey`'s signer.
pub trait Keys: Send + Sync {
    /// The key that is named by `key_file`. It must tell its public key, or it cannot be held against a certificate.
    ///
    /// # Errors
    /// The file cannot be read, or holds no private key that can sign a handshake.
    fn load(&self, key_file: &Path) -> Result<Arc<dyn SigningKey>, KeyError>;

    /// Makes a new key at `key_file`, 0600 from its first byte and on the disk before this returns. The file must not
    /// exist. RSA takes seconds.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    fn generate(&self, key_file: &Path, kind: KeyKind) -> Result<(), KeyError>;

    /// A certificate request (RFC 2986) in DER for `names`, signed by the key that is named by `key_file`.
    ///
    /// # Errors
    /// The key cannot be used, or a name cannot be in a certificate.
    fn certificate_request(&self, key_file: &Path, names: &[CertifiedName]) -> Result<Vec<u8>, KeyError>;
}

/// What kind of key is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// ECDSA over P-256: small and fast, and every client knows it.
    #[default]
    EcdsaP256,
    /// ECDSA over P-384.
    EcdsaP384,
    /// RSA of 2048 bits, for clients that know nothing newer.
    Rsa2048,
    /// RSA of 4096 bits.
    Rsa4096,
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
        let contents = file::read(key_file).map_err(|source| KeyError::Read { path: path(), source })?;
        let key = PrivateKeyDer::from_pem_slice(&contents.bytes).map_err(|source| match source {
            pem::Error::NoItemsFound if is_encrypted(&contents.bytes) => KeyError::Encrypted { path: path() },
            pem::Error::NoItemsFound if file::is_der(&contents.bytes) => KeyError::Der { path: path() },
            pem::Error::NoItemsFound => KeyError::NoKey { path: path() },
            source => KeyError::Pem { path: path(), source },
        })?;
        let key = any_supported_type(&key).map_err(|source| KeyError::Unusable { path: path(), source })?;
        self.warn_once_if_exposed(key_file, &contents.metadata);
        Ok(key)
    }

    fn generate(&self, key_file: &Path, kind: KeyKind) -> Result<(), KeyError> {
        let key = match kind {
            KeyKind::EcdsaP256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            KeyKind::EcdsaP384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            KeyKind::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            KeyKind::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        };
        let key = key.map_err(KeyError::Generate)?;
        file::create(key_file, key.serialize_pem().as_bytes())
            .map_err(|source| KeyError::Write { path: key_file.to_owned(), source })
    }

    fn certificate_request(&self, key_file: &Path, names: &[CertifiedName]) -> Result<Vec<u8>, KeyError> {
        let path = || key_file.to_owned();
        let file = file::read(key_file).map_err(|source| KeyError::Read { path: path(), source })?;
        let refused = |source| KeyError::Request { path: path(), source };
        let key =
            PrivateKeyDer::from_pem_slice(&file.bytes).map_err(|source| KeyError::Pem { path: path(), source })?;
        let key = KeyPair::try_from(&key).map_err(refused)?;
        let mut params = CertificateParams::default();
        // The CA/Browser Forum's Baseline Requirements, section 7.1.2.7: a subject is not needed beside the names.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.iter().map(subject_alt_name).collect::<Result<_, _>>().map_err(refused)?;
        let request = params.serialize_request(&key).map_err(refused)?;
        Ok(request.der().to_vec())
    }
}

/// How a certificate or a request carries a name.
///
/// # Errors
/// The name is not ASCII.
pub fn subject_alt_name(name: &CertifiedName) -> Result<SanType, rcgen::Error> {
    Ok(match name {
        CertifiedName::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
        CertifiedName::Address(address) => SanType::IpAddress(*address),
    })
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
    /// The key is binary.
    #[error("the key {} is DER, not PEM: convert it (openssl pkey -inform DER -in … -out …)", path.display())]
    Der {
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
    /// A new key cannot be made.
    #[error("cannot make a key")]
    Generate(#[source] rcgen::Error),
    /// A new key cannot be written.
    #[error("cannot write the key {}", path.display())]
    Write {
        /// The key's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A certificate request cannot be made with the key.
    #[error("cannot make a certificate request with the key {}", path.display())]
    Request {
        /// The key's file.
        path: PathBuf,
        /// What the library said.
        #[source]
        source: rcgen::Error,
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
    fn a_new_key_is_private_usable_and_never_replaces_another() {
        let folder = tempfile::tempdir().unwrap();
        let names = [CertifiedName::Dns("*.a.example".to_owned()), CertifiedName::Address("::1".parse().unwrap())];
        for (name, kind, algorithm) in [
            ("p256", KeyKind::EcdsaP256, SignatureAlgorithm::ECDSA),
            ("p384", KeyKind::EcdsaP384, SignatureAlgorithm::ECDSA),
            ("rsa", KeyKind::Rsa2048, SignatureAlgorithm::RSA),
        ] {
            let path = folder.path().join(name);
            LocalKeys::new().generate(&path, kind).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(LocalKeys::new().load(&path).unwrap().algorithm(), algorithm);
            assert!(matches!(LocalKeys::new().generate(&path, kind), Err(KeyError::Write { .. })));
            let request = LocalKeys::new().certificate_request(&path, &names).unwrap();
            fs::write(folder.path().join("request"), request).unwrap();
            let told = Command::new("openssl")
                .args(["req", "-inform", "DER", "-in", "request", "-noout", "-text", "-verify"])
                .current_dir(folder.path())
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
            assert!(told.contains("verify OK"), "{told}");
            assert!(told.contains("DNS:*.a.example, IP Address:0:0:0:0:0:0:0:1"), "{told}");
        }
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
