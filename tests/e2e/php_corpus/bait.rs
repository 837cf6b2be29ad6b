//! A document root full of what must never run, and of what nobody may see.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::harness::World;

/// What is in every file that is not for clients.
pub const SECRET: &str = "MUST-NOT-LEAK";
/// What a bait prints that runs. It stands in no file in one piece.
pub const RAN: &str = "BAIT-RAN";

pub struct Bait {
    /// The root, without symlinks.
    pub root: PathBuf,
    /// Exists as soon as a bait has run.
    pub ran: PathBuf,
    _socket: UnixListener,
}

/// Files whose code must not run, because their names do not end in exactly `.php`; and which nobody may read.
pub const SOURCES: [&str; 16] = [
    "uploads/evil.PHP",
    "uploads/evil.pHp",
    "uploads/evil.php5",
    "uploads/evil.php7",
    "uploads/evil.phtml",
    "uploads/evil.pht",
    "uploads/evil.phar",
    "uploads/evil.phps",
    "uploads/evil.inc",
    "uploads/evil.php ",
    "uploads/evil.php.",
    "uploads/evil.php::$DATA",
    "uploads/evil.php\n",
    "uploads/ȺȺȺȺevil.php.txt",
    "uploads/evil.php.bak",
    "dir/x.php/evil.phtml",
];

/// The same code in files that are anybody's to read, as uploads are.
pub const PICTURES: [&str; 6] = [
    "uploads/evil.jpg",
    "uploads/evil.php.jpg",
    "uploads/evil.php;.jpg",
    "uploads/evil.php\n.jpg",
    "uploads/.php/evil.jpg",
    "dir/x.php/evil.jpg",
];

/// Scripts that may run where all may.
const SCRIPTS: [&str; 9] = [
    "other.php",
    "sub/index.php",
    "uploads/shell.php",
    "dir/x.php/inner.php",
    "İndex.php",
    "ındex.php",
    "\u{212a}.php",
    "te\u{17f}t.php",
    ".hidden.php",
];

/// What people leave in a document root.
const SECRETS: [&str; 45] = [
    ".env",
    ".env.bak",
    ".env~",
    ".env;.txt",
    ".git/config",
    ".git/HEAD",
    ".svn/entries",
    ".hg/hgrc",
    ".htaccess",
    ".htpasswd",
    ".user.ini",
    ".DS_Store",
    ".ssh/id_rsa",
    ".php",
    ".config.php.swp",
    ".well-known/.env",
    ".well-known.txt",
    "sub/.env",
    "...",
    "config.php~",
    "config.php_",
    "config.php.bak",
    "config.php.swp",
    "config.php.save",
    "config.php.orig",
    "config.php.old",
    "config.php.1",
    "config.php.txt",
    "config.php.dist",
    "config.php.gz",
    "config.php.bak.zip",
    "#config.php#",
    "config.inc",
    "config.bak",
    "dump.sql",
    "dump.sql.gz",
    "style.css~",
    "style.css.bak",
    "style.css.swp",
    "style.css.orig",
    "style.css.save",
    "composer.json",
    "composer.lock",
    "new\nline.txt",
    "back\\slash.txt",
];

/// What is for everybody; the content says which it is.
const OPEN: [(&str, &str); 6] = [
    ("hello.txt", "hello"),
    ("a b.txt", "spaced"),
    ("\u{212a}.txt", "kelvin"),
    ("te\u{17f}t.txt", "long s"),
    ("\u{130}.txt", "dotted"),
    (".well-known/security.txt", "contact"),
];

impl Bait {
    pub fn lay(world: &World) -> Bait {
        let ran = world.path("ran");
        let base = std::fs::canonicalize(world.path("")).unwrap();
        let root = base.join("public");
        let write = |name: &str, content: &str| drop(world.write(&format!("public/{name}"), content));
        let bait = |comment: &str| {
            format!(
                "<?php /* {comment} */ file_put_contents({ran:?}, __FILE__ . \"\\n\", FILE_APPEND); echo 'BAIT', '-RAN';"
            )
        };
        SOURCES.iter().for_each(|name| write(name, &bait(SECRET)));
        PICTURES.iter().for_each(|name| write(name, &bait("picture")));
        for name in SCRIPTS {
            write(name, &format!("<?php /* {SECRET} */ echo 'SCRIPT ', bin2hex($_SERVER['SCRIPT_NAME']);"));
        }
        SECRETS.iter().for_each(|name| write(name, SECRET));
        OPEN.iter().for_each(|(name, content)| write(name, content));
        write("index.php", &format!("<?php /* {SECRET} */\n{FRONT}"));
        write(&"n".repeat(255), "long name");
        world.write("secret.txt", SECRET);
        world.write("private/secret.txt", SECRET);
        world.write("outside.php", bait(SECRET));
        world.write("docs-secret.txt", SECRET);
        world.write("docs/guide.txt", "guide");
        world.write("docs/.env", SECRET);
        world.write("docs/other.php", format!("<?php /* {SECRET} */"));
        lay_links(&root);
        lay_nodes(&root);
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        Bait { root, ran, _socket }
    }

    pub fn path(&self, name: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(name))
    }

    /// Fails if a bait has run.
    pub fn assert_untouched(&self, what: &str) {
        if let Ok(names) = std::fs::read_to_string(&self.ran) {
            panic!("{what}: a bait ran: {names}");
        }
    }
}

/// The front controller: says which it is and, where there is a query, sends what fields it asks for.
const FRONT: &str = r#"
foreach ((array) ($_GET['field'] ?? []) as $field) {
    header($field);
}
echo 'FRONT ', bin2hex($_SERVER['PATH_INFO'] ?? '');
"#;

fn lay_links(root: &Path) {
    for (name, target) in [
        ("in.txt", "hello.txt"),
        ("sub/up.txt", "../hello.txt"),
        ("out.txt", "../secret.txt"),
        ("outdir", "../private"),
        ("abs.txt", "/etc/passwd"),
        ("etc", "/etc"),
        ("up", ".."),
        ("loop", "loop"),
        ("magic", "/proc/self/root"),
        ("fd", "/proc/self/fd"),
        ("out.php", "../outside.php"),
        ("in.php", "other.php"),
        ("out.css.gz", "../secret.txt"),
    ] {
        symlink(target, root.join(name)).unwrap();
    }
    std::fs::write(root.join("out.css"), "sheet").unwrap();
}

/// What is no file, and what Doorward may not read.
fn lay_nodes(root: &Path) {
    for name in ["pipe", "pipe.php", "pipe.txt"] {
        mknodat(CWD, root.join(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
    }
    // /dev/zero, which never ends; only root may make it, and not in every container.
    let _ = mknodat(CWD, root.join("zero"), FileType::CharacterDevice, Mode::RWXU, makedev(1, 5));
    for (name, file) in [("closed.txt", true), ("closed", false)] {
        let path = root.join(name);
        if file {
            std::fs::write(&path, SECRET).unwrap();
        } else {
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("secret.txt"), SECRET).unwrap();
        }
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    }
}
