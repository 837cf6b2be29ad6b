//! What matters of a machine: its commands, its stores of trusted certificates, and what lies in them under our name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::tls::local_ca::{CaCertificate, is_label};

/// A machine as it was found. Plain data: a plan is made of it and of nothing else.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Whether we are root.
    pub is_root: bool,
    /// Who became root by sudo, and now has another home and other browsers.
    pub sudo_user: Option<String>,
    /// The home folder, where it is ours.
    pub home: Option<PathBuf>,
    /// Those of [`COMMANDS`] and [`BROWSERS`] that are installed, and where.
    pub commands: BTreeMap<&'static str, PathBuf>,
    /// Those of the anchors' folders in [`LAYOUTS`] that exist.
    pub folders: BTreeSet<&'static str>,
    /// What lies under our name in the system's folder of anchors.
    pub anchors: Vec<Anchor>,
    /// What the system's bundle has under our name; `None` when it cannot be read.
    pub bundle: Option<Vec<CaCertificate>>,
    /// The labels of what the store of Java has under our name, where it is one that is filled but never emptied.
    pub java: BTreeSet<String>,
    /// The stores of browsers.
    pub databases: Vec<Database>,
}

/// A file in the system's folder of anchors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The file.
    pub path: PathBuf,
    /// What it holds; `None` when that is no certificate.
    pub certificate: Option<CaCertificate>,
}

/// A certificate database of NSS, which browsers on Linux keep what they trust in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its folder.
    pub folder: PathBuf,
    /// Who reads it, for people: "Firefox".
    pub browser: &'static str,
    /// What it has under our name, or why that is not known.
    pub entries: Result<Vec<Entry>, String>,
}

/// A certificate in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is called there.
    pub nickname: String,
    /// The certificate.
    pub certificate: CaCertificate,
    /// Whether it is believed when it vouches for a server.
    pub is_trusted: bool,
}

/// How a family of systems keeps what it trusts.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where its own certificates are put.
    pub anchors: &'static str,
    /// How their names end.
    pub ending: &'static str,
    /// What takes new ones over, and its arguments.
    pub refresh: (&'static str, &'static [&'static str]),
    /// The same, where one has gone.
    pub refresh_without: (&'static str, &'static [&'static str]),
    /// What comes of it: all that is trusted, in PEM.
    pub bundle: &'static str,
    /// The store of Java, where what has gone stays in it.
    pub java: Option<&'static str>,
}

/// The systems that are known.
pub const LAYOUTS: [Layout; 4] = [
    // Fedora, RHEL and those that come of them.
    Layout {
        anchors: "/etc/pki/ca-trust/source/anchors",
        ending: "pem",
        refresh: ("update-ca-trust", &["extract"]),
        refresh_without: ("update-ca-trust", &["extract"]),
        bundle: "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        java: None,
    },
    // openSUSE and SLE.
    Layout {
        anchors: "/etc/pki/trust/anchors",
        ending: "pem",
        refresh: ("update-ca-certificates", &[]),
        refresh_without: ("update-ca-certificates", &[]),
        bundle: "/var/lib/ca-certificates/ca-bundle.pem",
        java: None,
    },
    // Arch.
    Layout {
        anchors: "/etc/ca-certificates/trust-source/anchors",
        ending: "crt",
        refresh: ("trust", &["extract-compat"]),
        refresh_without: ("trust", &["extract-compat"]),
        bundle: "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
        java: None,
    },
    // Debian, Ubuntu, Alpine. Without --fresh a link to what has gone stays in /etc/ssl/certs; with it, the hook of
    // ca-certificates-java hears of what is there and not of what has gone.
    Layout {
        anchors: "/usr/local/share/ca-certificates",
        ending: "crt",
        refresh: ("update-ca-certificates", &[]),
        refresh_without: ("update-ca-certificates", &["--fresh"]),
        bundle: "/etc/ssl/certs/ca-certificates.crt",
        java: Some("/etc/ssl/certs/java/cacerts"),
    },
];

/// The commands that a plan may take.
pub const COMMANDS: [&str; 6] = ["sudo", "update-ca-trust", "update-ca-certificates", "trust", "certutil", "keytool"];

/// Chromium and its kin.
pub const BROWSERS: [&str; 7] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "brave-browser",
    "microsoft-edge",
    "vivaldi",
];

/// Where Chromium and its kin look for their database, below the home folder: the first that exists. Version 140 or
/// so made the second one; all know the first.
pub const CHROMIUM: [&str; 2] = [".pki/nssdb", ".local/share/pki/nssdb"];

impl Machine {
    /// How this system keeps what it trusts; `None` when it is none that is known.
    pub fn layout(&self) -> Option<&'static Layout> {
        LAYOUTS
            .iter()
            .find(|layout| self.folders.contains(layout.anchors) && self.commands.contains_key(layout.refresh.0))
    }

    /// The database that a browser would read if it were there.
    pub fn missing_database(&self) -> Option<PathBuf> {
        let home = self.home.as_ref()?;
        let is_there = self.databases.iter().any(|d| CHROMIUM.iter().any(|folder| d.folder == home.join(folder)));
        // A snap has a home of its own.
        let mut browsers = BROWSERS.iter().filter_map(|name| self.commands.get(name));
        let has_browser = browsers.any(|path| !path.starts_with("/snap"));
        let [first, _] = CHROMIUM;
        (has_browser && !is_there).then(|| home.join(first))
    }
}

impl Layout {
    /// The file of the authority with this label.
    pub fn file(&self, label: &str) -> PathBuf {
        Path::new(self.anchors).join(format!("doorward-{label}.{}", self.ending))
    }

    /// Whether a file of this name is one of [`Layout::file`].
    pub fn is_ours(&self, name: &str) -> bool {
        let label = name.strip_prefix("doorward-").and_then(|rest| rest.strip_suffix(self.ending)?.strip_suffix('.'));
        label.is_some_and(is_label)
    }
}

/// What Java's store calls the file with this label.
pub fn java_alias(label: &str) -> String {
    format!("{JAVA_ALIAS}{label}.pem")
}

/// How [`java_alias`] begins, before the label.
pub const JAVA_ALIAS: &str = "debian:doorward-";
