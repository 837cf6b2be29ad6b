//! One test's own folder, authority and names.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tempfile::TempDir;

use super::process::finish;
use super::proxy::{Proxy, binary};

/// A folder that goes with the test, and a certificate authority that only this test trusts.
pub struct World {
    dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate chain and its key on disk.
#[derive(Clone)]
pub struct Pair {
    /// The chain.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// A certificate chain and its key that are nowhere yet.
pub struct Issued {
    /// The chain in PEM.
    pub cert: String,
    /// The key in PEM.
    pub key: String,
    /// The chain's first certificate.
    pub leaf: CertificateDer<'static>,
}

impl World {
    /// A new one.
    pub fn new() -> World {
        let dir = tempfile::Builder::new().prefix("doorward-e2e-").tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Doorward's tests");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let world = World { dir, authority };
        world.certificate("site", &["app.test", "*.app.test", "shop.example.com", "www.shop.example.com"]);
        world
    }

    /// A path in the test's folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and the folders above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The authority that signed every certificate of this test.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The certificates that this test's clients trust.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(self.ca()).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// Clients of this test trust the certificate `pem` from now on, too.
    pub fn trust(&self, pem: &str) {
        let roots = std::fs::read_to_string(self.ca()).unwrap();
        std::fs::write(self.ca(), roots + pem).unwrap();
    }

    /// Makes (or replaces) the pair `name`: a fresh key and a leaf for `hosts`. Each file is written in place.
    pub fn certificate(&self, name: &str, hosts: &[&str]) -> Pair {
        let issued = self.issue(hosts, |_| ());
        let pair = Pair {
            cert: self.write(&format!("{name}.pem"), &issued.cert),
            key: self.write(&format!("{name}.key"), &issued.key),
        };
        std::fs::set_permissions(&pair.key, Permissions::from_mode(0o600)).unwrap();
        pair
    }

    /// Makes a pair in memory: a fresh key and a leaf for `hosts`, with a say in what the leaf is.
    pub fn issue(&self, hosts: &[&str], adapt: impl FnOnce(&mut CertificateParams)) -> Issued {
        let (leaf, key) = signed(&self.authority, hosts, adapt);
        Issued { cert: leaf.pem() + &self.authority.pem(), key: key.serialize_pem(), leaf: leaf.into() }
    }

    /// The same with an authority between the test's own and the leaf, as public authorities have it: the chain is
    /// leaf, intermediate, root.
    pub fn issue_by_intermediate(&self, hosts: &[&str]) -> Issued {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "Doorward's tests, intermediate");
        let between = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.authority).unwrap();
        let (leaf, key) = signed(&between, hosts, |_| ());
        let cert = leaf.pem() + &between.pem() + &self.authority.pem();
        Issued { cert, key: key.serialize_pem(), leaf: leaf.into() }
    }

    /// `[server]` and `[tls]` as nearly every test wants them: free ports and the pair `site`.
    pub fn head(&self) -> String {
        format!(
            "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\nworkers = 2\nshutdown_grace = \"2s\"\n\
             [tls]\ncert = {:?}\nkey = {:?}\n\n",
            self.path("site.pem"),
            self.path("site.key"),
        )
    }

    /// Starts the proxy with the usual head and `sites`.
    pub fn proxy(&self, sites: &str) -> Proxy {
        Proxy::start(self, &format!("{}{sites}", self.head()))
    }

    /// A copy of the binary under test that every account may run who may enter this folder: cargo's may be closed.
    pub fn binary(&self) -> PathBuf {
        let copy = self.path("doorward");
        // By a process of its own: what this one had open for writing, another test might start meanwhile.
        let copied = finish("cp", Command::new("cp").arg(binary()).arg(&copy));
        assert_eq!(copied.code, 0, "{}", copied.said());
        std::fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        copy
    }

    /// A copy of one of the folders under tests/neighbours.
    pub fn copy(&self, neighbour: &str) -> PathBuf {
        let to = self.path(neighbour);
        copy_tree(&neighbours().join(neighbour), &to);
        to
    }
}

fn signed(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    hosts: &[&str],
    adapt: impl FnOnce(&mut CertificateParams),
) -> (Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    adapt(&mut params);
    (params.signed_by(&key, issuer).unwrap(), key)
}

/// tests/neighbours
pub fn neighbours() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/neighbours")
}

/// A port of 127.0.0.1 that nobody has, below the range that the kernel hands out by itself, for neighbours that
/// cannot take port 0 and tell.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 10_000).unwrap();
    for _ in 0..10_000 {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 30000");
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
