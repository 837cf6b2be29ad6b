//! Every way in which the files of a certificate may fail their site, what has to be said of it, and its repair.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::CertificateParams;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::harness::{Issued, World, finish};

/// The site that suffers.
pub const HOST: &str = "a.test";

/// One row.
pub struct Fault {
    /// Its name.
    pub what: &'static str,
    /// How the files lie.
    pub laid: Laid,
    /// Brings it about.
    pub breaks: fn(&Site<'_>),
    /// A distinctive part of the reason in the log,
    pub says: &'static str,
    /// and the file that it has to name.
    pub names: fn(&Site<'_>) -> PathBuf,
    /// Mends it, and gives the leaf that has to be served then.
    pub repairs: fn(&Site<'_>) -> Leaf,
    /// What a process does that finds it when it starts.
    pub at_start: AtStart,
}

/// The first certificate of a chain.
pub type Leaf = CertificateDer<'static>;

/// What a process does that has never seen a better certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStart {
    /// It refuses the site's handshakes.
    Refuses,
    /// It serves what there is, and says so.
    Serves,
}

/// How a certificate lies on the disk. The site names the folder `etc/le/live/a.test` each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Laid {
    /// Two files.
    Files,
    /// certbot's: links to `etc/le/archive/a.test/…1.pem`.
    Certbot,
    /// A deployment's: `etc/le/live` is a link to `releases/1`.
    Release,
}

/// The site that suffers, and its files.
pub struct Site<'w> {
    world: &'w World,
    /// The leaf that was good.
    first: RefCell<Option<Leaf>>,
    /// A pair that a fault has begun to bring, and its repair completes.
    coming: RefCell<Option<Issued>>,
    version: Cell<u32>,
}

impl<'w> Site<'w> {
    /// Lays a good pair.
    pub fn lay(world: &'w World, laid: Laid) -> Site<'w> {
        let site = Site { world, first: RefCell::default(), coming: RefCell::default(), version: Cell::new(1) };
        let le = site.le();
        match laid {
            Laid::Files => fs::create_dir_all(site.folder()).unwrap(),
            Laid::Release => {
                fs::create_dir_all(le.join("releases/1").join(HOST)).unwrap();
                symlink("releases/1", le.join("live")).unwrap();
            }
            Laid::Certbot => {
                fs::create_dir_all(site.folder()).unwrap();
                fs::create_dir_all(site.archived("x").parent().unwrap()).unwrap();
                symlink(site.target("fullchain"), site.cert()).unwrap();
                symlink(site.target("privkey"), site.key()).unwrap();
            }
        }
        let leaf = site.put(&site.fresh());
        site.first.replace(Some(leaf));
        site
    }

    /// What the site's `tls` says.
    pub fn folder(&self) -> PathBuf {
        self.le().join("live").join(HOST)
    }

    /// The leaf that was good.
    pub fn first(&self) -> Leaf {
        self.first.borrow().clone().unwrap()
    }

    fn le(&self) -> PathBuf {
        self.world.path("etc/le")
    }

    /// Its chain, as the site names it.
    pub fn cert(&self) -> PathBuf {
        self.folder().join("fullchain.pem")
    }

    /// Its key, as the site names it.
    pub fn key(&self) -> PathBuf {
        self.folder().join("privkey.pem")
    }

    /// certbot's file of the present version.
    fn archived(&self, kind: &str) -> PathBuf {
        self.le().join("archive").join(HOST).join(format!("{kind}{}.pem", self.version.get()))
    }

    /// The same as its link says it.
    fn target(&self, kind: &str) -> PathBuf {
        Path::new("../../archive").join(HOST).join(format!("{kind}{}.pem", self.version.get()))
    }

    fn fresh(&self) -> Issued {
        self.world.issue(&[HOST], |_| ())
    }

    /// Writes both files in place, through whatever links there are.
    fn put(&self, issued: &Issued) -> Leaf {
        fs::write(self.cert(), &issued.cert).unwrap();
        fs::write(self.key(), &issued.key).unwrap();
        issued.leaf.clone()
    }

    /// Writes a pair whose leaf is not as it should be.
    fn put_as(&self, adapt: impl FnOnce(&mut CertificateParams)) {
        self.put(&self.world.issue(&[HOST], adapt));
    }

    /// The usual repair: a new pair, written over what there is.
    pub fn renew(&self) -> Leaf {
        self.put(&self.fresh())
    }

    /// A repair that undoes what was done.
    fn undone(&self, undo: impl FnOnce()) -> Leaf {
        undo();
        self.first()
    }

    /// Begins to write a new pair: the first half of one file, and all of the other.
    fn write_half_of(&self, half: fn(&Issued) -> (&str, usize), path: PathBuf) {
        let issued = self.fresh();
        self.put(&issued);
        let (text, upto) = half(&issued);
        fs::write(path, &text[..upto]).unwrap();
        self.coming.replace(Some(issued));
    }

    /// Completes it.
    fn write_the_rest_of(&self, half: fn(&Issued) -> (&str, usize), path: PathBuf) -> Leaf {
        let issued = self.coming.take().unwrap();
        let (text, from) = half(&issued);
        OpenOptions::new().append(true).open(path).unwrap().write_all(&text.as_bytes()[from..]).unwrap();
        issued.leaf
    }

    fn away(&self, name: &str) -> PathBuf {
        self.world.path("away").join(name)
    }

    /// Moves what is at `path` out of the way, as an administrator does.
    fn move_away(&self, path: &Path) {
        fs::create_dir_all(self.away("")).unwrap();
        fs::rename(path, self.away(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }

    fn move_back(&self, path: &Path) -> Leaf {
        self.undone(|| fs::rename(self.away(path.file_name().unwrap().to_str().unwrap()), path).unwrap())
    }

    /// `chmod`
    pub fn mode(&self, path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Renews as certbot does, up to and with the step that is called `until`. It writes the four files of the next
    /// version, then each link is removed and made again, in the order cert, privkey, chain, fullchain.
    fn certbot_renews(&self, until: &str) {
        let issued = self.fresh();
        self.version.set(self.version.get() + 1);
        let (leaf, chain) = issued.cert.split_at(issued.cert.find("-----END CERTIFICATE-----\n").unwrap() + 26);
        let contents =
            [("privkey", issued.key.as_str()), ("cert", leaf), ("chain", chain), ("fullchain", &issued.cert)];
        for (kind, text) in contents {
            fs::write(self.archived(kind), text).unwrap();
        }
        self.coming.replace(Some(issued));
        self.certbot_links(None, until);
    }

    /// The rest of it, after the step that is called `from`.
    fn certbot_goes_on(&self, from: &str) -> Leaf {
        self.certbot_links(Some(from), "link fullchain");
        self.coming.take().unwrap().leaf
    }

    fn certbot_links(&self, from: Option<&str>, until: &str) {
        let mut begun = from.is_none();
        for kind in ["cert", "privkey", "chain", "fullchain"] {
            for step in ["unlink", "link"] {
                let link = self.folder().join(format!("{kind}.pem"));
                let name = format!("{step} {kind}");
                if begun && step == "unlink" {
                    // The first version has no link for cert and chain here: nobody reads them.
                    let _ = fs::remove_file(link);
                } else if begun {
                    symlink(self.target(kind), link).unwrap();
                }
                begun = begun || from == Some(&name);
                if name == until {
                    return;
                }
            }
        }
        panic!("certbot has no step {until}");
    }

    /// Points `etc/le/live` to another release, in one step.
    fn switch_release(&self, to: &str) {
        let aside = self.le().join("live-aside");
        symlink(to, &aside).unwrap();
        fs::rename(aside, self.le().join("live")).unwrap();
    }

    /// Makes a release with a good pair, and points to it.
    fn deploy(&self, name: &str) -> Leaf {
        let issued = self.fresh();
        let folder = self.le().join(name).join(HOST);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("fullchain.pem"), &issued.cert).unwrap();
        fs::write(folder.join("privkey.pem"), &issued.key).unwrap();
        self.switch_release(name);
        issued.leaf
    }

    fn openssl(&self, arguments: &[&str]) {
        let made = finish("openssl", Command::new("openssl").args(arguments).current_dir(self.folder()));
        assert_eq!(made.code, 0, "{}", made.said());
    }
}

fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

fn half_of_cert(issued: &Issued) -> (&str, usize) {
    (&issued.cert, issued.cert.len() / 4)
}

fn half_of_chain(issued: &Issued) -> (&str, usize) {
    (&issued.cert, issued.cert.len() * 3 / 4)
}

fn half_of_key(issued: &Issued) -> (&str, usize) {
    (&issued.key, issued.key.len() / 2)
}

/// The certificates of a chain, each in PEM.
fn parts(chain: &str) -> Vec<String> {
    let end = "-----END CERTIFICATE-----\n";
    chain.split_inclusive(end).map(str::to_owned).collect()
}

fn fifo(path: &Path) {
    fs::remove_file(path).unwrap();
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
}

/// What most rows begin with. Rows say what differs.
const USUAL: Fault = Fault {
    what: "",
    laid: Laid::Files,
    breaks: |_| (),
    says: "",
    names: |site| site.cert(),
    repairs: |site| site.renew(),
    at_start: AtStart::Refuses,
};

/// Files that hold the wrong thing.
pub const CONTENTS: [Fault; 15] = [
    Fault {
        what: "half-written certificate",
        breaks: |site| site.write_half_of(half_of_cert, site.cert()),
        says: "is not well-formed PEM",
        repairs: |site| site.write_the_rest_of(half_of_cert, site.cert()),
        ..USUAL
    },
    Fault {
        what: "half-written chain behind a whole certificate",
        breaks: |site| site.write_half_of(half_of_chain, site.cert()),
        says: "is not well-formed PEM",
        repairs: |site| site.write_the_rest_of(half_of_chain, site.cert()),
        ..USUAL
    },
    Fault {
        what: "half-written key",
        breaks: |site| site.write_half_of(half_of_key, site.key()),
        says: "is not well-formed PEM",
        names: |site| site.key(),
        repairs: |site| site.write_the_rest_of(half_of_key, site.key()),
        ..USUAL
    },
    Fault {
        what: "empty certificate",
        breaks: |site| fs::write(site.cert(), "").unwrap(),
        says: "there is no certificate in",
        ..USUAL
    },
    Fault {
        what: "empty key",
        breaks: |site| fs::write(site.key(), "").unwrap(),
        says: "there is no private key in",
        names: |site| site.key(),
        ..USUAL
    },
    Fault {
        what: "mismatched pair",
        breaks: |site| {
            let issued = site.fresh();
            fs::write(site.cert(), &issued.cert).unwrap();
            site.coming.replace(Some(issued));
        },
        says: "does not belong to the first certificate",
        names: |site| site.key(),
        repairs: |site| {
            let issued = site.coming.take().unwrap();
            fs::write(site.key(), &issued.key).unwrap();
            issued.leaf
        },
        ..USUAL
    },
    Fault {
        what: "expired",
        breaks: |site| {
            site.put_as(|params| {
                params.not_before = (SystemTime::now() - days(90)).into();
                params.not_after = (SystemTime::now() - days(1)).into();
            });
        },
        says: "expired at",
        at_start: AtStart::Serves,
        ..USUAL
    },
    Fault {
        what: "not yet valid",
        breaks: |site| {
            site.put_as(|params| {
                params.not_before = (SystemTime::now() + days(1)).into();
                params.not_after = (SystemTime::now() + days(90)).into();
            });
        },
        says: "not valid before",
        at_start: AtStart::Serves,
        ..USUAL
    },
    Fault {
        what: "for other names",
        breaks: |site| {
            site.put(&site.world.issue(&["elsewhere.test"], |_| ()));
        },
        says: "for other names",
        at_start: AtStart::Serves,
        ..USUAL
    },
    Fault {
        what: "chain in the wrong order, the site's own certificate last",
        breaks: |site| {
            let issued = site.world.issue_by_intermediate(&[HOST]);
            let mut chain = parts(&issued.cert);
            chain.reverse();
            site.put(&Issued { cert: chain.concat(), ..issued });
        },
        says: "belongs to certificate 3",
        repairs: |site| site.put(&site.world.issue_by_intermediate(&[HOST])),
        ..USUAL
    },
    Fault {
        what: "chain in the wrong order behind the site's own certificate",
        breaks: |site| {
            let issued = site.world.issue_by_intermediate(&[HOST]);
            let mut chain = parts(&issued.cert);
            chain.swap(1, 2);
            site.put(&Issued { cert: chain.concat(), ..issued });
        },
        says: "certificate 2 is not the issuer of the one before it",
        repairs: |site| site.put(&site.world.issue_by_intermediate(&[HOST])),
        at_start: AtStart::Serves,
        ..USUAL
    },
    Fault {
        what: "RSA key of 1024 bits",
        breaks: |site| {
            let subject = format!("/CN={HOST}");
            let arguments = ["req", "-x509", "-nodes", "-days", "9", "-newkey", "rsa:1024", "-subj", &subject];
            site.openssl(&[&arguments[..], &["-out", "fullchain.pem", "-keyout", "privkey.pem"]].concat());
        },
        says: "cannot sign TLS handshakes",
        names: |site| site.key(),
        ..USUAL
    },
    Fault {
        what: "encrypted key",
        breaks: |site| {
            site.openssl(&["pkey", "-aes256", "-passout", "pass:x", "-in", "privkey.pem", "-out", "encrypted.pem"]);
            fs::rename(site.folder().join("encrypted.pem"), site.key()).unwrap();
        },
        says: "is encrypted",
        names: |site| site.key(),
        ..USUAL
    },
    Fault {
        what: "certificate in DER",
        breaks: |site| fs::write(site.cert(), CertificateDer::from_pem_file(site.cert()).unwrap()).unwrap(),
        says: "is DER, not PEM",
        ..USUAL
    },
    Fault {
        what: "key in DER",
        breaks: |site| {
            let key = PrivateKeyDer::from_pem_file(site.key()).unwrap();
            fs::write(site.key(), key.secret_der()).unwrap();
        },
        says: "is DER, not PEM",
        names: |site| site.key(),
        ..USUAL
    },
];

/// Files that are not there.
pub const ABSENCES: [Fault; 8] = [
    Fault {
        what: "deleted certificate",
        breaks: |site| fs::remove_file(site.cert()).unwrap(),
        says: "No such file or directory",
        ..USUAL
    },
    Fault {
        what: "deleted key",
        breaks: |site| fs::remove_file(site.key()).unwrap(),
        says: "No such file or directory",
        names: |site| site.key(),
        ..USUAL
    },
    Fault {
        what: "deleted folder",
        breaks: |site| fs::remove_dir_all(site.folder()).unwrap(),
        says: "No such file or directory",
        repairs: |site| {
            fs::create_dir(site.folder()).unwrap();
            site.renew()
        },
        ..USUAL
    },
    Fault {
        what: "deleted with all the folders above it",
        breaks: |site| fs::remove_dir_all(site.le().parent().unwrap()).unwrap(),
        says: "No such file or directory",
        repairs: |site| {
            fs::create_dir_all(site.folder()).unwrap();
            site.renew()
        },
        ..USUAL
    },
    Fault {
        what: "file in place of the folder",
        breaks: |site| {
            fs::remove_dir_all(site.folder()).unwrap();
            fs::write(site.folder(), "").unwrap();
        },
        says: "Not a directory",
        repairs: |site| {
            fs::remove_file(site.folder()).unwrap();
            fs::create_dir(site.folder()).unwrap();
            site.renew()
        },
        ..USUAL
    },
    Fault {
        what: "renamed folder",
        breaks: |site| site.move_away(&site.folder()),
        says: "No such file or directory",
        repairs: |site| site.move_back(&site.folder()),
        ..USUAL
    },
    Fault {
        what: "renamed grandparent",
        breaks: |site| site.move_away(&site.le()),
        says: "No such file or directory",
        repairs: |site| site.move_back(&site.le()),
        ..USUAL
    },
    Fault {
        what: "great-grandparent renamed, and another put in its place",
        laid: Laid::Certbot,
        breaks: |site| site.move_away(site.le().parent().unwrap()),
        says: "No such file or directory",
        repairs: |site| {
            fs::create_dir_all(site.folder()).unwrap();
            site.renew()
        },
        ..USUAL
    },
];

/// Links that lead astray.
pub const LINKS: [Fault; 8] = [
    Fault {
        what: "dangling link in certbot's live/",
        laid: Laid::Certbot,
        breaks: |site| fs::remove_file(site.archived("fullchain")).unwrap(),
        says: "No such file or directory",
        ..USUAL
    },
    Fault {
        what: "link that is its own target",
        laid: Laid::Certbot,
        breaks: |site| {
            fs::remove_file(site.key()).unwrap();
            symlink("privkey.pem", site.key()).unwrap();
        },
        says: "Too many levels of symbolic links",
        names: |site| site.key(),
        repairs: |site| {
            site.undone(|| {
                fs::remove_file(site.key()).unwrap();
                symlink(site.target("privkey"), site.key()).unwrap();
            })
        },
        ..USUAL
    },
    Fault {
        what: "certbot has removed its link to the key",
        laid: Laid::Certbot,
        breaks: |site| site.certbot_renews("unlink privkey"),
        says: "No such file or directory",
        names: |site| site.key(),
        repairs: |site| site.certbot_goes_on("unlink privkey"),
        ..USUAL
    },
    Fault {
        what: "certbot has replaced the key and not yet the certificate",
        laid: Laid::Certbot,
        breaks: |site| site.certbot_renews("link chain"),
        says: "does not belong to the first certificate",
        names: |site| site.key(),
        repairs: |site| site.certbot_goes_on("link chain"),
        ..USUAL
    },
    Fault {
        what: "certbot has removed its link to the certificate",
        laid: Laid::Certbot,
        breaks: |site| site.certbot_renews("unlink fullchain"),
        says: "No such file or directory",
        repairs: |site| site.certbot_goes_on("unlink fullchain"),
        ..USUAL
    },
    Fault {
        what: "folder swapped for another site's",
        laid: Laid::Certbot,
        breaks: |site| {
            let other = site.world.issue(&["elsewhere.test"], |_| ());
            let aside = site.le().join("aside");
            fs::create_dir(&aside).unwrap();
            fs::write(aside.join("fullchain.pem"), &other.cert).unwrap();
            fs::write(aside.join("privkey.pem"), &other.key).unwrap();
            site.move_away(&site.folder());
            fs::rename(aside, site.folder()).unwrap();
        },
        says: "for other names",
        repairs: |site| {
            fs::remove_dir_all(site.folder()).unwrap();
            site.move_back(&site.folder())
        },
        at_start: AtStart::Serves,
        ..USUAL
    },
    Fault {
        what: "release without a certificate",
        laid: Laid::Release,
        breaks: |site| {
            fs::create_dir_all(site.le().join("releases/2")).unwrap();
            site.switch_release("releases/2");
        },
        says: "No such file or directory",
        repairs: |site| site.deploy("releases/3"),
        ..USUAL
    },
    Fault {
        what: "release that was removed",
        laid: Laid::Release,
        breaks: |site| fs::remove_dir_all(site.le().join("releases")).unwrap(),
        says: "No such file or directory",
        repairs: |site| site.deploy("releases/1-again"),
        ..USUAL
    },
];

/// Files that are there and cannot be read.
pub const UNREADABLE: [Fault; 9] = [
    Fault {
        what: "key that may not be read",
        breaks: |site| site.mode(&site.key(), 0),
        says: "Permission denied",
        names: |site| site.key(),
        repairs: |site| site.undone(|| site.mode(&site.key(), 0o600)),
        ..USUAL
    },
    Fault {
        what: "certificate that may not be read, in certbot's archive",
        laid: Laid::Certbot,
        breaks: |site| site.mode(&site.archived("fullchain"), 0),
        says: "Permission denied",
        repairs: |site| site.undone(|| site.mode(&site.archived("fullchain"), 0o644)),
        ..USUAL
    },
    Fault {
        what: "folder that may not be entered",
        breaks: |site| site.mode(&site.folder(), 0),
        says: "Permission denied",
        repairs: |site| site.undone(|| site.mode(&site.folder(), 0o755)),
        ..USUAL
    },
    Fault {
        what: "grandparent that may not be entered",
        breaks: |site| site.mode(&site.le(), 0),
        says: "Permission denied",
        repairs: |site| site.undone(|| site.mode(&site.le(), 0o755)),
        ..USUAL
    },
    Fault {
        what: "folder that may be entered and not listed, and the key is gone",
        breaks: |site| {
            site.mode(&site.folder(), 0o300);
            fs::remove_file(site.key()).unwrap();
        },
        says: "No such file or directory",
        names: |site| site.key(),
        ..USUAL
    },
    Fault {
        what: "directory in place of the key",
        breaks: |site| {
            fs::remove_file(site.key()).unwrap();
            fs::create_dir(site.key()).unwrap();
        },
        says: "not a regular file",
        names: |site| site.key(),
        repairs: |site| {
            fs::remove_dir(site.key()).unwrap();
            site.renew()
        },
        ..USUAL
    },
    Fault {
        what: "FIFO in place of the certificate",
        breaks: |site| fifo(&site.cert()),
        says: "not a regular file",
        repairs: |site| {
            fs::remove_file(site.cert()).unwrap();
            site.renew()
        },
        ..USUAL
    },
    Fault {
        what: "FIFO in place of the key",
        breaks: |site| fifo(&site.key()),
        says: "not a regular file",
        names: |site| site.key(),
        repairs: |site| {
            fs::remove_file(site.key()).unwrap();
            site.renew()
        },
        ..USUAL
    },
    Fault {
        what: "huge file",
        breaks: |site| File::create(site.cert()).unwrap().set_len(5 << 30).unwrap(),
        says: "longer than 1 MiB",
        ..USUAL
    },
];
