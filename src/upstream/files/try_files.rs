//! The front-controller rule: which file, script or back end answers a path. Each step is tried in turn, the first that
//! exists answers.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use ::http::{Method, StatusCode};

use crate::base::fault::{Fault, Kind};
use crate::http::path::CanonicalPath;
use crate::upstream::files::lately::Lately;
use crate::upstream::files::path;
use crate::upstream::files::root::{Folder, OpenError, OpenFile, Root};
use crate::upstream::php::Script;

/// What a site or a route says about its files.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The document root, absolute.
    pub root: PathBuf,
    /// Whether scripts see the root with its symlinks resolved (nginx's `$realpath_root`).
    pub resolve_symlinks: bool,
    /// File names that stand for a folder, in order.
    pub index: Vec<String>,
    /// What is tried, in order.
    pub steps: Vec<Step>,
    /// Which scripts run, if PHP does.
    pub php: Option<PhpRule>,
    /// Whether names that start with a dot are served. They never run.
    pub dotfiles: bool,
    /// Whether sources, backups and dumps are served, all but `.php`.
    pub sources: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `{path}`: the file of the request's path.
    Path,
    /// `{path}/`: the folder of the request's path, if it has one of the index files.
    Folder,
    /// This file, whatever was asked for. A name that ends in `.php` runs.
    File(String),
    /// The HTTP application.
    Upstream,
    /// This status.
    Status(u16),
}

/// Which scripts run.
#[derive(Debug, Clone)]
pub struct PhpRule {
    /// The choice.
    pub scripts: Scripts,
    /// The front controller, relative to the root: `index.php`.
    pub index: String,
}

/// Which scripts run. Names are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scripts {
    /// The front controller.
    Index,
    /// Every regular `.php` file beneath the root.
    All,
    /// These.
    Only(Vec<String>),
}

/// What answers.
#[derive(Debug)]
pub enum Found {
    /// A file: see [`answer`](crate::upstream::files::answer::answer).
    File(OpenFile),
    /// A script.
    Script(Script),
    /// A folder was asked for without its slash: this status (301 for GET and HEAD, else 308) and the client's own path
    /// with a slash behind it: [`folder_redirect`](crate::upstream::files::answer::folder_redirect).
    Redirect(StatusCode),
    /// The HTTP application.
    Upstream,
    /// This status.
    Status(u16),
}

/// The rule, ready for requests. Shared by all workers.
#[derive(Debug)]
pub struct TryFiles {
    root: Root,
    resolve_symlinks: bool,
    index: Vec<String>,
    steps: Vec<Step>,
    php: Option<PhpRule>,
    dotfiles: bool,
    sources: bool,
    has_upstream: bool,
}

impl TryFiles {
    /// A rule of these settings. Opens nothing: the root may appear later.
    pub fn new(settings: Settings) -> TryFiles {
        let Settings { root, resolve_symlinks, index, steps, php, dotfiles, sources } = settings;
        let has_upstream = steps.contains(&Step::Upstream);
        TryFiles { root: Root::new(root), resolve_symlinks, index, steps, php, dotfiles, sources, has_upstream }
    }

    /// The root that files are looked for in.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The file that answers `path`, if it is one of those that were read `lately`.
    pub fn recall(&self, path: &CanonicalPath, lately: &Lately) -> Option<OpenFile> {
        lately.recall(self.root.path(), self.own_name(path.decoded())?)
    }

    /// As [`find`](Self::find); the path's own file is kept in `lately`.
    pub fn find_and_keep(&self, path: &CanonicalPath, method: &Method, lately: &Lately) -> Result<Found, Fault> {
        Ok(match self.find(path, method)? {
            Found::File(file) if self.own_name(path.decoded()) == Some(&file.name) => {
                Found::File(lately.keep(self.root.path(), file))
            }
            found => found,
        })
    }

    /// The name of the path's own file below the root, where that file, if there is one, is the answer.
    fn own_name<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        let may_be_file = self.steps.first() == Some(&Step::Path)
            && !path.ends_with(b"/")
            && (self.dotfiles || !path::is_hidden(path))
            && !path::names_script(path)
            && !self.is_private(path);
        if may_be_file { path.strip_prefix(b"/") } else { None }
    }

    /// What answers `path`. `NotFound` where nothing does or nothing may; `Forbidden` where a file is there that may
    /// not be read; `Internal` where the machine fails.
    pub fn find(&self, path: &CanonicalPath, method: &Method) -> Result<Found, Fault> {
        let path = path.decoded();
        // Allowed or not, what is hidden never runs.
        let refused = !self.dotfiles || (self.php.is_some() && path::names_script(path));
        if refused && path::is_hidden(path) {
            return Err(not_found("a hidden name", path));
        }
        let folder = match self.root.enter() {
            Ok(folder) => Some(folder),
            Err(OpenError::NotFound(_)) if self.has_upstream => None,
            Err(error) => return Err(error.into_fault(self.root.path().as_os_str().as_bytes())),
        };
        let look = Look { rule: self, folder: folder.as_ref(), path, method };
        look.find()
    }

    /// Whether nobody gets this file. Allowed or not, a script is run or refused.
    fn is_private(&self, path: &[u8]) -> bool {
        if self.sources { path::is_script(path) } else { path::is_private(path) }
    }
}

/// One request's walk over the steps.
struct Look<'a> {
    rule: &'a TryFiles,
    folder: Option<&'a Arc<Folder>>,
    path: &'a [u8],
    method: &'a Method,
}

/// What the disk says about the path itself. Asked once, and not at all where no step wants to know.
enum Kindred {
    File(OpenFile),
    Folder,
    Absent,
}

impl Look<'_> {
    fn find(&self) -> Result<Found, Fault> {
        let names_script = path::names_script(self.path);
        if names_script && let Some(php) = &self.rule.php {
            // It runs or it is refused. It never reaches the front controller, which would be asked to guess, and its
            // source is never served.
            return match self.script(php)? {
                Some(script) => Ok(Found::Script(script)),
                None => Err(not_found("a script that does not exist or may not run", self.path)),
            };
        }
        if names_script && !self.rule.has_upstream {
            return Err(not_found("a script, and none runs here", self.path));
        }
        // Without PHP such a name is the application's, or nobody's: never a file's.
        let mut own = if names_script { Some(Kindred::Absent) } else { None };
        for step in &self.rule.steps {
            let found = match step {
                Step::Upstream => Some(Found::Upstream),
                Step::Status(status) => Some(Found::Status(*status)),
                Step::File(name) => self.named_file(name)?,
                Step::Path => match self.own(&mut own)? {
                    Kindred::File(_) => match own.replace(Kindred::Absent) {
                        Some(Kindred::File(file)) => Some(Found::File(file)),
                        _ => None,
                    },
                    _ => None,
                },
                Step::Folder => match self.own(&mut own)? {
                    Kindred::Folder => self.index()?,
                    _ => None,
                },
            };
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Err(not_found("no step of try_files matches", self.path))
    }

    fn own<'k>(&self, known: &'k mut Option<Kindred>) -> Result<&'k Kindred, Fault> {
        let kindred = match known.take() {
            Some(kindred) => kindred,
            None => self.look_up()?,
        };
        Ok(known.insert(kindred))
    }

    fn look_up(&self) -> Result<Kindred, Fault> {
        let Some(folder) = self.folder else { return Ok(Kindred::Absent) };
        if self.path.ends_with(b"/") {
            return Ok(Kindred::Folder);
        }
        if self.rule.is_private(self.path) {
            // Virtual paths may look like this ("/download/a.old"); a file that is there is nobody's business.
            return match folder.check_file(self.path) {
                Ok(()) if !self.rule.has_upstream => Err(not_found("a private file", self.path)),
                _ => Ok(Kindred::Absent),
            };
        }
        match folder.open_file(self.path) {
            Ok(file) => Ok(Kindred::File(file)),
            Err(OpenError::IsFolder) => Ok(Kindred::Folder),
            Err(OpenError::NotFound(_) | OpenError::Special) => Ok(Kindred::Absent),
            // A folder that may be entered and not listed: its index may be had.
            Err(error @ OpenError::Forbidden(_)) => match folder.check_file(self.path) {
                Err(OpenError::IsFolder) => Ok(Kindred::Folder),
                _ => Err(error.into_fault(self.path)),
            },
            Err(error) => Err(error.into_fault(self.path)),
        }
    }

    /// The first index file of the folder that the path names. A folder without one is passed over.
    fn index(&self) -> Result<Option<Found>, Fault> {
        let Some(folder) = self.folder else { return Ok(None) };
        let with_slash = self.path.ends_with(b"/");
        let base = self.path.strip_suffix(b"/").unwrap_or(self.path);
        for index in &self.rule.index {
            let name = [base, b"/", index.as_bytes()].concat();
            let found = if path::names_script(&name) {
                match &self.rule.php {
                    Some(php) if self.may_run(php, &name) => exists(folder.check_script(&name), &name)?
                        .map(|()| Found::Script(self.matched(folder, &name, b""))),
                    _ => None,
                }
            } else if self.rule.is_private(&name) {
                None
            } else {
                exists(folder.open_file(&name), &name)?.map(Found::File)
            };
            match found {
                Some(found) if with_slash => return Ok(Some(found)),
                // Relative links of the page would miss a level otherwise.
                Some(_) => return Ok(Some(Found::Redirect(moved(self.method)))),
                None => {}
            }
        }
        Ok(None)
    }

    /// A file that the configuration names. The front controller has to exist: nothing else could answer.
    fn named_file(&self, name: &str) -> Result<Option<Found>, Fault> {
        let Some(folder) = self.folder else { return Ok(None) };
        let name = [b"/", name.trim_start_matches('/').as_bytes()].concat();
        if !path::names_script(&name) {
            return Ok(exists(folder.open_file(&name), &name)?.map(Found::File));
        }
        if self.rule.php.is_none() {
            return Ok(None);
        }
        match folder.check_script(&name) {
            Ok(()) => Ok(Some(Found::Script(self.matched(folder, &name, b"")))),
            Err(error) => Err(error.into_fault(&name)),
        }
    }

    /// The script that the path itself names: the first segment that ends in exactly `.php`, may run and is a file.
    fn script(&self, php: &PhpRule) -> Result<Option<Script>, Fault> {
        let Some(folder) = self.folder else { return Ok(None) };
        for (name, info) in path::script_splits(self.path) {
            if self.may_run(php, name) && exists(folder.check_script(name), name)?.is_some() {
                return Ok(Some(self.matched(folder, name, info)));
            }
        }
        Ok(None)
    }

    fn may_run(&self, php: &PhpRule, name: &[u8]) -> bool {
        let name = name.strip_prefix(b"/").unwrap_or(name);
        match &php.scripts {
            Scripts::Index => name == php.index.trim_start_matches('/').as_bytes(),
            Scripts::Only(list) => list.iter().any(|s| s.trim_start_matches('/').as_bytes() == name),
            // The kernel decides what ".php" is here: exact bytes, as script_splits has them.
            Scripts::All => name.ends_with(b".php"),
        }
    }

    fn matched(&self, folder: &Folder, name: &[u8], info: &[u8]) -> Script {
        let root = if self.rule.resolve_symlinks { folder.realpath() } else { self.rule.root.path() };
        let relative = name.strip_prefix(b"/").unwrap_or(name);
        Script {
            document_root: root.to_path_buf(),
            file: root.join(std::ffi::OsStr::from_bytes(relative)),
            name: name.to_vec(),
            path_info: info.to_vec(),
        }
    }
}

/// `None` where it is not there; what is there and cannot be had is a fault.
fn exists<T>(opened: Result<T, OpenError>, name: &[u8]) -> Result<Option<T>, Fault> {
    match opened {
        Ok(value) => Ok(Some(value)),
        Err(OpenError::NotFound(_) | OpenError::IsFolder | OpenError::Special) => Ok(None),
        Err(error) => Err(error.into_fault(name)),
    }
}

fn moved(method: &Method) -> StatusCode {
    if matches!(*method, Method::GET | Method::HEAD) {
        StatusCode::MOVED_PERMANENTLY
    } else {
        StatusCode::PERMANENT_REDIRECT
    }
}

fn not_found(why: &str, path: &[u8]) -> Fault {
    Fault::new(Kind::NotFound, format!("{why}: {}", path.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A tree of files under `public`; a name that ends in a slash is a folder.
    fn tree(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join("public").join(name);
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, name).unwrap();
            }
        }
        dir
    }

    fn rule(dir: &tempfile::TempDir, steps: &[Step], scripts: Option<Scripts>) -> TryFiles {
        TryFiles::new(Settings {
            root: dir.path().join("public"),
            resolve_symlinks: false,
            index: vec!["index.php".into(), "index.html".into()],
            steps: steps.to_vec(),
            php: scripts.map(|scripts| PhpRule { scripts, index: "index.php".into() }),
            dotfiles: false,
            sources: false,
        })
    }

    fn front() -> Step {
        Step::File("/index.php".into())
    }

    /// What is found, in short: `file NAME`, `run NAME INFO`, a status, `upstream`.
    fn find(rule: &TryFiles, path: &str) -> String {
        find_with(rule, path, &Method::GET)
    }

    fn find_with(rule: &TryFiles, path: &str, method: &Method) -> String {
        match rule.find(&CanonicalPath::parse(path).unwrap(), method) {
            Ok(Found::File(file)) => format!("file {}", String::from_utf8_lossy(&file.name)),
            Ok(Found::Script(script)) => {
                let name = String::from_utf8_lossy(&script.name).into_owned();
                assert_eq!(script.file, script.document_root.join(name.trim_start_matches('/')));
                format!("run {name} {}", String::from_utf8_lossy(&script.path_info))
            }
            Ok(Found::Redirect(status)) => format!("redirect {}", status.as_u16()),
            Ok(Found::Upstream) => "upstream".into(),
            Ok(Found::Status(status)) => format!("status {status}"),
            Err(fault) => crate::http::reply::status(&fault).as_u16().to_string(),
        }
    }

    fn check(rule: &TryFiles, table: &[(&str, &str)]) {
        for (path, want) in table {
            assert_eq!(find(rule, path), *want, "{path}");
        }
    }

    #[test]
    fn laravel_runs_the_front_controller_alone() {
        let dir = tree(&[
            "index.php",
            "robots.txt",
            "css/app.css",
            "build/",
            "docs/index.html",
            "other.php",
            "sub/index.php",
            ".env",
            ".htaccess",
            ".well-known/security.txt",
            "storage/x.jpg",
            "composer.json",
            "a.php.bak",
            "conf.inc",
            "dir.php/x",
        ]);
        let rule = rule(&dir, &[Step::Path, Step::Folder, front()], Some(Scripts::Index));
        check(
            &rule,
            &[
                ("/", "run /index.php "),
                ("/index.php", "run /index.php "),
                ("/index.php/users/1", "run /index.php /users/1"),
                ("/index.php/", "run /index.php /"),
                ("/users/1", "run /index.php "),
                ("/users/", "run /index.php "),
                ("/robots.txt", "file robots.txt"),
                ("/css/app.css", "file css/app.css"),
                ("/css/app.css/", "run /index.php "),
                ("/css", "run /index.php "),
                ("/css/", "run /index.php "),
                ("/docs", "redirect 301"),
                ("/docs/", "file docs/index.html"),
                ("/other.php", "404"),
                ("/sub/index.php", "404"),
                ("/sub/", "run /index.php "),
                ("/missing.php", "404"),
                ("/INDEX.PHP", "404"),
                ("/index.PHP/x", "404"),
                ("/storage/x.jpg/x.php", "404"),
                ("/robots.txt/index.php", "404"),
                ("/dir.php/x", "404"),
                ("/.env", "404"),
                ("/.htaccess", "404"),
                ("/.git/config", "404"),
                ("/.well-known/security.txt", "file .well-known/security.txt"),
                ("/.well-known/none", "run /index.php "),
                ("/composer.json", "404"),
                ("/a.php.bak", "404"),
                ("/conf.inc", "404"),
                ("/download/report.old", "run /index.php "),
                (&format!("/{}", "a".repeat(300)), "run /index.php "),
            ],
        );
        assert_eq!(find_with(&rule, "/docs", &Method::POST), "redirect 308");
        assert_eq!(find_with(&rule, "/docs", &Method::HEAD), "redirect 301");
    }

    #[test]
    fn symfony_knows_no_folders() {
        let dir = tree(&["index.php", "docs/index.html", "bundles/a.js", "config.php"]);
        let rule = rule(&dir, &[Step::Path, front()], Some(Scripts::Index));
        check(
            &rule,
            &[
                ("/", "run /index.php "),
                ("/docs/", "run /index.php "),
                ("/docs", "run /index.php "),
                ("/bundles/a.js", "file bundles/a.js"),
                ("/config.php", "404"),
            ],
        );
    }

    #[test]
    fn wordpress_runs_every_script_that_exists() {
        let dir = tree(&[
            "index.php",
            "wp-login.php",
            "wp-admin/index.php",
            "wp-content/uploads/x.jpg",
            "wp-content/a.css",
            "X.PHP",
            "old.php5",
            "dir.php/inner.php",
        ]);
        let rule = rule(&dir, &[Step::Path, Step::Folder, front()], Some(Scripts::All));
        check(
            &rule,
            &[
                ("/", "run /index.php "),
                ("/2024/hello/", "run /index.php "),
                ("/wp-login.php", "run /wp-login.php "),
                ("/wp-login.php/x/y", "run /wp-login.php /x/y"),
                ("/wp-admin", "redirect 301"),
                ("/wp-admin/", "run /wp-admin/index.php "),
                ("/wp-content/a.css", "file wp-content/a.css"),
                ("/wp-content/", "run /index.php "),
                ("/wp-content/uploads/x.jpg/x.php", "404"),
                ("/wp-content/uploads/x.jpg%00.php".trim_end_matches("%00.php"), "file wp-content/uploads/x.jpg"),
                ("/missing.php", "404"),
                ("/X.PHP", "404"),
                ("/old.php5", "404"),
                ("/dir.php/inner.php/z", "run /dir.php/inner.php /z"),
                ("/dir.php", "404"),
            ],
        );
    }

    #[test]
    fn listed_scripts_run_and_others_do_not() {
        let dir = tree(&["index.php", "status.php", "admin/index.php", "other.php"]);
        let only = Scripts::Only(vec!["index.php".into(), "admin/index.php".into(), "/status.php".into()]);
        let rule = rule(&dir, &[Step::Path, Step::Folder, front()], Some(only));
        check(
            &rule,
            &[
                ("/status.php", "run /status.php "),
                ("/admin/", "run /admin/index.php "),
                ("/admin", "redirect 301"),
                ("/other.php", "404"),
                ("/x", "run /index.php "),
            ],
        );
    }

    #[test]
    fn an_application_behind_files_gets_what_is_no_file() {
        let dir = tree(&["index.php", "app.css", "config.php.bak", "composer.lock", "docs/index.html"]);
        let octane = rule(&dir, &[Step::Path, Step::Upstream], None);
        check(
            &octane,
            &[
                ("/", "upstream"),
                ("/app.css", "file app.css"),
                ("/index.php", "upstream"),
                ("/x.php/y", "upstream"),
                ("/config.php.bak", "upstream"),
                ("/composer.lock", "upstream"),
                ("/docs/", "upstream"),
                ("/.env", "404"),
            ],
        );
        fs::remove_dir_all(dir.path().join("public")).unwrap();
        check(&octane, &[("/app.css", "upstream")]);
    }

    #[test]
    fn plain_sites_serve_files_and_never_source() {
        let dir = tree(&["index.html", "index.php", "a.txt", "b.phtml", "c~", "sub/index.php"]);
        let plain = rule(&dir, &[Step::Path, Step::Folder, Step::Status(410)], None);
        check(
            &plain,
            &[
                ("/", "file index.html"),
                ("/a.txt", "file a.txt"),
                ("/index.php", "404"),
                ("/none.php", "404"),
                ("/b.phtml", "404"),
                ("/c~", "404"),
                ("/sub/", "status 410"),
                ("/none", "status 410"),
            ],
        );
        let spa = rule(&dir, &[Step::Path, Step::File("/index.html".into())], None);
        check(&spa, &[("/route/1", "file index.html"), ("/a.txt", "file a.txt")]);
        let none = rule(&dir, &[Step::Path], None);
        check(&none, &[("/none", "404"), ("/", "404")]);
        let php_without_php = rule(&dir, &[front()], None);
        check(&php_without_php, &[("/x", "404")]);
    }

    #[test]
    fn a_front_controller_that_is_not_there_is_not_found() {
        let dir = tree(&["a.txt"]);
        let rule = rule(&dir, &[Step::Path, Step::Folder, front()], Some(Scripts::Index));
        check(&rule, &[("/", "404"), ("/x", "404"), ("/index.php", "404"), ("/a.txt", "file a.txt")]);
        let fault = rule.find(&CanonicalPath::parse("/x").unwrap(), &Method::GET).unwrap_err();
        assert!(fault.to_string().starts_with("cannot open /index.php: no such file"), "{fault}");
    }

    #[test]
    fn hidden_names_may_be_served_and_never_run() {
        let dir = tree(&["index.php", ".env", ".git/x.php", ".hidden.php"]);
        let mut open = rule(&dir, &[Step::Path, front()], Some(Scripts::All));
        open.dotfiles = true;
        check(
            &open,
            &[("/.env", "file .env"), ("/.git/x.php", "404"), ("/.hidden.php", "404"), ("/.x", "run /index.php ")],
        );
    }

    #[test]
    fn sources_and_dumps_may_be_served_and_scripts_never_as_files() {
        let dir = tree(&["index.php", "a.php", "a.PHP", "dump.sql.gz", "composer.json", "a.php~", "a.php."]);
        let mut open = rule(&dir, &[Step::Path, Step::Status(404)], Some(Scripts::Index));
        let names = ["/dump.sql.gz", "/composer.json", "/a.php~"];
        check(&open, &names.map(|name| (name, "404")));
        open.sources = true;
        check(&open, &[("/dump.sql.gz", "file dump.sql.gz"), ("/composer.json", "file composer.json")]);
        check(
            &open,
            &[
                ("/a.php~", "file a.php~"),
                ("/a.php", "404"),
                ("/a.PHP", "404"),
                ("/a.php.", "404"),
                ("/a.php/x", "404"),
            ],
        );
    }

    #[test]
    fn scripts_and_files_behind_links_that_leave_the_root_are_not_found() {
        let dir = tree(&["index.php", "shared/"]);
        fs::write(dir.path().join("evil.php"), "").unwrap();
        symlink("../evil.php", dir.path().join("public/evil.php")).unwrap();
        symlink("index.php", dir.path().join("public/inner.php")).unwrap();
        symlink("..", dir.path().join("public/storage")).unwrap();
        let rule = rule(&dir, &[Step::Path, Step::Folder, front()], Some(Scripts::All));
        check(
            &rule,
            &[
                ("/evil.php", "404"),
                ("/inner.php", "run /inner.php "),
                ("/storage/evil.php", "404"),
                ("/storage/evil", "run /index.php "),
            ],
        );
    }

    #[test]
    fn scripts_see_the_resolved_release_and_follow_a_swap() {
        let dir = tempfile::tempdir().unwrap();
        for release in ["1", "2"] {
            fs::create_dir_all(dir.path().join(release).join("public")).unwrap();
            fs::write(dir.path().join(release).join("public/index.php"), "").unwrap();
        }
        symlink("1", dir.path().join("current")).unwrap();
        let rule = |resolve_symlinks| {
            TryFiles::new(Settings {
                root: dir.path().join("current/public"),
                resolve_symlinks,
                index: vec!["index.php".into()],
                steps: vec![Step::Path, Step::Folder, front()],
                php: Some(PhpRule { scripts: Scripts::Index, index: "index.php".into() }),
                dotfiles: false,
                sources: false,
            })
        };
        let script = |rule: &TryFiles| match rule.find(&CanonicalPath::parse("/x").unwrap(), &Method::GET) {
            Ok(Found::Script(script)) => script,
            other => panic!("{other:?}"),
        };
        let (resolved, written) = (rule(true), rule(false));
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(script(&resolved).file, real.join("1/public/index.php"));
        assert_eq!(script(&resolved).document_root, real.join("1/public"));
        assert_eq!(script(&written).file, dir.path().join("current/public/index.php"));
        symlink("2", dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), dir.path().join("current")).unwrap();
        assert_eq!(script(&resolved).file, real.join("2/public/index.php"));
        assert_eq!(script(&written).file, dir.path().join("current/public/index.php"));
    }

    proptest::proptest! {
        #[test]
        fn no_path_serves_source_or_hidden_names(path in "/[./a-bPp%2hx~]{0,16}(\\.php|\\.PHP|\\.inc|/)?[/a]{0,3}") {
            let dir = tree(&["index.php", "a.php", "b.txt", "a/index.html", "p.inc", "x~", ".a/b"]);
            let rule = rule(&dir, &[Step::Path, Step::Folder, front()], Some(Scripts::All));
            if let Ok(path) = CanonicalPath::parse(&path)
                && let Ok(Found::File(file)) = rule.find(&path, &Method::GET)
            {
                let name = [b"/", file.name.as_slice()].concat();
                proptest::prop_assert!(!path::is_private(&name) && !path::is_hidden(&name), "{:?}", file.name);
            }
        }
    }
}
