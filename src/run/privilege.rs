//! What a process gives up before it serves: its account (`server.user`), whatever could give it more rights, its memory
//! in dumps and under debuggers, and writing anywhere but where the file says (`server.confine`).

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::{Path, PathBuf};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::admin::control::socket_path;
use crate::config::Config;
use crate::config::needs::{self, Need, Use};
use crate::run::account::{self, Account, AccountError, denied};
use crate::run::confine::{self, Bound, Places};
use crate::run::source::Source;
use crate::tls::local_ca;

/// Of a folder: what is in it is replaced only by who owns that, or the folder.
const STICKY: u32 = 0o1000;

/// Before the first thread is started, and whoever this is: nothing that is run gets more rights than this process has,
/// and nobody of the same account reads its memory, alive (ptrace(2), /proc) or dead (core(5)): keys are in it.
///
/// # Errors
/// The kernel refuses, which it never does.
pub fn harden() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Only a filter of system calls refuses, and what may not be dumped leaves no core anyway.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    Ok(())
}

/// What the process is, and what it may.
#[derive(Debug)]
pub struct Standing {
    /// Who it is to be; `None` is who it is.
    account: Option<Account>,
    /// Whether root has to become that account.
    ahead: bool,
    /// Where it may write; `None` is everywhere.
    places: Option<Places>,
    /// Its control socket. Root's is not where the account would look for it.
    control: PathBuf,
    /// What is to be told once there is a log.
    said: Vec<(tracing::Level, String)>,
}

impl Standing {
    /// Finds the account, makes the folders that are missing, and confines this thread and all that it will start.
    /// `first`: no other process has come before this one.
    ///
    /// # Errors
    /// The account is not there, or out of reach.
    pub fn take(source: &Source, config: &Config, first: bool) -> Result<Standing, AccountError> {
        let account = config.server.user.as_ref().map(Account::find).transpose()?;
        let ahead = account.as_ref().map_or(Ok(false), Account::is_ahead)?;
        let control = socket_path(&source.path(), &|name| std::env::var(name).ok(), rustix::process::getuid().as_raw());
        if ahead {
            // Before there are other threads: each has a bounding set of its own.
            account::forgo_all_but_low_ports();
        }
        let mut standing = Standing { account, ahead, places: None, control, said: Vec::new() };
        // The demo has no file that would say what it needs, and goes with its terminal.
        if matches!(source, Source::Text { .. }) {
            return Ok(standing);
        }
        if config.server.user.is_none() && rustix::process::geteuid().is_root() {
            standing.warn(
                "this process stays root; give it an account of its own with user = \"www-data\" under [server], or \
                 start it as systemd/doorward.service does",
            );
        }
        standing.make_folders(config);
        standing.confine(config, first);
        Ok(standing)
    }

    /// The process becomes the account, if it is another. Log files are opened behind this: what root opens in a folder
    /// that the account may change could be a link to anything.
    ///
    /// # Errors
    /// The system refuses.
    pub fn drop_rights(&mut self, config: &Config) -> Result<(), AccountError> {
        let Some(account) = self.account.as_ref().filter(|_| self.ahead) else { return Ok(()) };
        account.assume()?;
        self.ahead = false;
        self.said.push((tracing::Level::INFO, format!("running as {} from here on", account.user())));
        self.warn_denied(config);
        Ok(())
    }

    /// Does `task` with the rights that are left behind the start.
    ///
    /// # Errors
    /// The system refuses.
    pub fn as_account<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T, AccountError> {
        match self.account.as_ref().filter(|_| self.ahead) {
            Some(account) => account.run(task),
            None => Ok(task()),
        }
    }

    /// Whether the account can have put nothing else at `path`, and so root may read there for it: on the way nothing is the
    /// account's, and no folder can be changed by more than its owner. Told where not. False where this process has that
    /// account's rights.
    pub fn is_roots_to_read(&mut self, path: &Path) -> bool {
        let Some(account) = self.account.as_ref().filter(|_| self.ahead) else { return false };
        let own = account.ids().0;
        let is_kept = |step: &Step| step.owner != own && (!step.is_shared || (step.is_sticky && !step.is_last));
        let way = way_to(path);
        let out_of_hands = way.as_ref().is_some_and(|way| way.iter().all(is_kept));
        if !out_of_hands {
            let first = way.iter().flatten().find(|step| !is_kept(step));
            let what = first.map_or_else(|| path.display().to_string(), |step| step.path.display().to_string());
            let name = &account.user().name;
            self.warn(format!(
                "{} is not read as root for {name}: {name} or others may change {what}; let {name} read it, or chown \
                 root {what} and chmod go-w {what}",
                path.display()
            ));
        }
        out_of_hands
    }

    /// Its control socket.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// Whether it is about to become another.
    pub fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// What `config` needs and lies where this process may not write.
    pub fn lacking(&self, config: &Config) -> Option<Need> {
        self.places.as_ref()?.lacking(&needs_of(config)).cloned()
    }

    /// What a new file changes that this process cannot, and what the account may not do of it.
    pub fn compare(&mut self, old: &Config, new: &Config) {
        if new.server.user != old.server.user {
            self.warn("server.user takes effect at the next start");
        }
        if new.server.confine != old.server.confine {
            self.warn("server.confine takes effect at the next start");
        }
        if new.acme.dns_hook.is_some() && old.acme.dns_hook.is_none() && !new.server.confine && self.places.is_some() {
            self.warn("acme.dns_hook may write only where this process may, until the next start: see server.confine");
        }
        if self.account.is_some() {
            self.warn_denied(new);
        }
        self.tell();
    }

    /// Logs what there is to say.
    pub fn tell(&mut self) {
        for (level, line) in self.said.drain(..) {
            if level == tracing::Level::WARN { tracing::warn!("{line}") } else { tracing::info!("{line}") }
        }
    }

    /// What the process after this one finds in its environment.
    pub fn environment(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        let folder = self.control.parent().map(|folder| ("RUNTIME_DIRECTORY", folder.as_os_str().to_owned()));
        let mut all: Vec<_> = folder.into_iter().collect();
        all.extend(self.places.as_ref().and_then(Places::told).map(|told| (confine::VARIABLE, told)));
        all
    }

    fn warn(&mut self, line: impl Into<String>) {
        self.said.push((tracing::Level::WARN, line.into()));
    }

    fn warn_denied(&mut self, config: &Config) {
        let name = self.account.as_ref().map(|account| account.user().name.clone()).unwrap_or_default();
        for line in denied(&needs_of(config), &name) {
            self.warn(line);
        }
    }

    fn confine(&mut self, config: &Config, first: bool) {
        if !first && let Some(places) = Places::inherited(std::env::var_os(confine::VARIABLE)) {
            if !config.server.confine {
                self.warn("server.confine takes effect at the next start: what came before this process is confined");
            }
            self.places = Some(places);
            return;
        }
        if !config.server.confine {
            let why = if config.acme.dns_hook.is_some() {
                "not confined to the folders of the file (Landlock): acme.dns_hook may have to write elsewhere; \
                 confine = true under [server] binds both"
            } else {
                "not confined to the folders of the file (Landlock): server.confine is false"
            };
            return self.said.push((tracing::Level::INFO, why.to_owned()));
        }
        let pid_folder = config.server.pid_file.as_deref().and_then(Path::parent).map(Path::to_owned);
        let control = self.control.parent().map(Path::to_owned);
        // What systemd made for the service, and the first automatic certificates, may come with a reload.
        let given = ["STATE_DIRECTORY", "LOGS_DIRECTORY"].map(|name| std::env::var_os(name).unwrap_or_default());
        let given = given.iter().flat_map(std::env::split_paths).filter(|path| path.is_absolute());
        let others = [std::env::temp_dir(), config.acme.storage.clone()].into_iter().chain(given);
        // The ledger has a copy beside the storage, which outlives it.
        let beside = config.acme.storage.parent().filter(|folder| folder.parent().is_some()).map(Path::to_owned);
        let others = others.chain(control).chain(pid_folder).chain(beside);
        let places = Places::of(&needs_of(config), others).there();
        match places.bind() {
            Ok(Bound::Fully) => self.places = Some(places),
            Ok(Bound::Not) => self.said.push((
                tracing::Level::INFO,
                "not confined to the folders of the file: this kernel has no Landlock, or its use is forbidden"
                    .to_owned(),
            )),
            Err(error) => self.warn(format!("not confined to the folders of the file: {error}")),
        }
    }

    /// Folders that would be made later: they can be granted only when they are there. And what root has to make for the
    /// account.
    fn make_folders(&mut self, config: &Config) {
        for need in needs_of(config).iter().filter(|need| need.how == Use::Keep && !need.path.exists()) {
            self.make(&need.path);
        }
        match self.control.parent() {
            Some(folder) if !folder.exists() => self.make(folder),
            Some(folder) if self.is_shared(folder) => self.warn(format!(
                "{} holds the control socket of another server: give this one a RUNTIME_DIRECTORY of its own",
                folder.display()
            )),
            Some(folder) => self.hand_over(folder),
            None => {}
        }
        if self.ahead
            && let Some(file) = &config.server.pid_file
        {
            self.make_file(file);
        }
    }

    /// Whoever needs it says when it is missing.
    fn make(&self, folder: &Path) {
        let Some(account) = self.account.as_ref().filter(|_| self.ahead) else {
            let _ = confine::make_folder(folder);
            return;
        };
        let missing: Vec<&Path> = folder.ancestors().take_while(|above| !above.exists()).collect();
        let made = account.run(|| confine::make_folder(folder));
        if !matches!(made, Ok(Ok(()))) && is_roots(folder) && confine::make_folder(folder).is_ok() {
            // From within, so that what is above still is root's when the next one is asked about.
            missing.iter().for_each(|made| self.hand_over(made));
        }
    }

    /// Whether something in the folder of the control socket is not of this server, and must not be given away with it.
    fn is_shared(&self, folder: &Path) -> bool {
        let own = self.control.file_name().unwrap_or_default().as_encoded_bytes();
        let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        self.ahead
            && std::fs::metadata(folder).is_ok_and(|meta| meta.uid() == 0)
            && entries.any(|entry| {
                let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
                is_socket && !entry.file_name().as_encoded_bytes().starts_with(own)
            })
    }

    /// Gives to the account what is root's and lies where only root can have put it.
    fn hand_over(&self, folder: &Path) {
        let Some(account) = self.account.as_ref().filter(|_| self.ahead && is_roots(folder)) else { return };
        let (uid, gid) = account.ids();
        if std::fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir() && meta.uid() == 0) {
            let _ = lchown(folder, Some(uid), Some(gid));
        }
    }

    /// A file that the account writes and could not make.
    fn make_file(&self, path: &Path) {
        let Some(account) = self.account.as_ref().filter(|_| is_roots(path)) else { return };
        let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let opened =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).custom_flags(flags).open(path);
        let Ok(file) = opened else { return };
        if file.metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == 0 && meta.nlink() == 1) {
            let (uid, gid) = account.ids();
            let _ = fchown(&file, Some(uid), Some(gid));
        }
    }
}

/// Does `task`, which looks at the world, with the rights that a server of `config` will have; and says what of the file
/// itself that account cannot read. As anybody but root it is done with one's own.
///
/// # Errors
/// The account is not there, or out of reach.
pub fn look<T: Send>(config: &Config, task: impl FnOnce() -> T + Send) -> Result<(T, Vec<String>), AccountError> {
    let account = config.server.user.as_ref().map(Account::find).transpose()?;
    let Some(account) = account.filter(|account| account.is_ahead().unwrap_or(false)) else {
        return Ok((task(), Vec::new()));
    };
    let own: Vec<Need> = needs_of(config).into_iter().filter(|need| config.files.contains(&need.path)).collect();
    account.run(|| (task(), denied(&own, &account.user().name)))
}

/// A folder or a link that decides what is at a path.
struct Step {
    path: PathBuf,
    owner: u32,
    /// A folder in which others than its owner may make files.
    is_shared: bool,
    /// In which, of a folder, everybody replaces only what is their own.
    is_sticky: bool,
    /// The folder that the last name is looked up in.
    is_last: bool,
}

/// The way to `path`, absolute, as path_resolution(7) has it, up to what is not there. `None`: it cannot be told.
fn way_to(path: &Path) -> Option<Vec<Step>> {
    // "40 … ELOOP".
    const LINKS: usize = 40;
    let names = |path: &Path| path.components().rev().map(|name| name.as_os_str().to_owned()).collect::<Vec<_>>();
    let (mut at, mut ahead) = (PathBuf::new(), names(path));
    let (mut way, mut links) = (Vec::new(), 0);
    while let Some(name) = ahead.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let meta = match std::fs::symlink_metadata(&next) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(_) => return None,
        };
        let mode = meta.mode();
        let (is_shared, is_sticky) = (meta.is_dir() && mode & 0o022 != 0, mode & STICKY != 0);
        let step = Step { path: next.clone(), owner: meta.uid(), is_shared, is_sticky, is_last: false };
        if meta.is_symlink() {
            links += 1;
            ahead.extend(names(&std::fs::read_link(&next).ok().filter(|_| links <= LINKS)?));
            way.push(step);
        } else {
            at = next;
            way.extend(meta.is_dir().then_some(step));
        }
    }
    let last = way.iter_mut().rev().find(|step| at.starts_with(&step.path))?;
    last.is_last = true;
    Some(way)
}

/// Whether nobody but root can have put something at `path`: all folders on the way are root's alone, or, as /tmp, let only
/// the owner of a thing change it; and so are the links among them, and the folders that these lie in.
fn is_roots(path: &Path) -> bool {
    let is_roots = |step: &Step| step.owner == 0 && (!step.is_shared || step.is_sticky);
    path.parent().and_then(way_to).is_some_and(|way| way.iter().all(is_roots))
}

fn needs_of(config: &Config) -> Vec<Need> {
    needs::of(config, &config.folder.join(local_ca::FOLDER))
}
