//! Document roots, front controllers, internal folders, log files.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::Access;

use super::Finding;
use crate::config::{Action, Application, Config, LogOutput, Php, Scripts, Site, TryFile};

pub(super) fn check(config: &Config, findings: &mut Vec<Finding>) {
    for site in &config.sites {
        check_site(site, findings);
    }
    let mut logs = vec![(None, &config.log.output)];
    logs.extend(config.log.access.as_ref().map(|output| (None, output)));
    for site in &config.sites {
        logs.extend(site.access_log.iter().flatten().map(|output| (Some(site.name.as_str()), output)));
    }
    for (site, output) in logs {
        match output {
            LogOutput::File(file) => writable(file, site, "log file", findings),
            LogOutput::Syslog if !Path::new("/dev/log").exists() => {
                findings.push(Finding::error(
                    site,
                    "there is no /dev/log to write to",
                    "start a syslog daemon, or write output = \"stderr\"",
                ));
            }
            _ => {}
        }
    }
    if let Some(file) = &config.server.pid_file {
        writable(file, None, "pid_file", findings);
    }
}

fn check_site(site: &Site, findings: &mut Vec<Finding>) {
    let name = Some(site.name.as_str());
    if let Some(root) = &site.root
        && folder(root, name, "root", findings)
    {
        let routes = site.routes.iter().filter_map(|route| match &route.action {
            Action::Php(php) => Some(php),
            _ => None,
        });
        let application = site.application.iter().filter_map(|application| match application {
            Application::Php(php) => Some(php),
            Application::Http(_) => None,
        });
        for php in application.chain(routes) {
            scripts(root, php, name, findings);
        }
        let php = matches!(site.application, Some(Application::Php(_)));
        for step in &site.try_files {
            if let TryFile::File(file) = step
                && !php
                && !root.join(file.trim_start_matches('/')).is_file()
            {
                let message = format!("`try_files` ends with {file}, which {} does not have", root.display());
                findings.push(Finding::warning(name, message, "build the site, or mend `root` or `try_files`"));
            }
        }
    }
    for (_, path) in &site.accel {
        folder(path, name, "accel", findings);
    }
    for route in &site.routes {
        match &route.action {
            Action::Root(path) => drop(folder(path, name, "root", findings)),
            Action::Alias(path) => drop(folder(path, name, "alias", findings)),
            _ => {}
        }
    }
}

fn scripts(root: &Path, php: &Php, site: Option<&str>, findings: &mut Vec<Finding>) {
    let front = root.join(&php.index);
    if let Err(why) = std::fs::File::open(&front) {
        let message = format!("the front controller {} {}", front.display(), why_not(&front, &why));
        let help = "mend `root` (Laravel and Symfony: the folder public), or name the script with `index` of `php`";
        findings.push(Finding::error(site, message, help));
    }
    if let Scripts::Only(scripts) = &php.scripts {
        for script in scripts.iter().filter(|script| !root.join(script).is_file()) {
            let message = format!("`scripts` names {script}, which {} does not have", root.display());
            findings.push(Finding::warning(site, message, "remove it from `scripts`"));
        }
    }
}

/// Whether a folder is there and may be opened.
pub(super) fn folder(path: &Path, site: Option<&str>, key: &str, findings: &mut Vec<Finding>) -> bool {
    match std::fs::read_dir(path) {
        Ok(_) => true,
        Err(why) => {
            let message = format!("`{key}`: {} {}", path.display(), why_not(path, &why));
            let help = match why.kind() {
                io::ErrorKind::PermissionDenied => {
                    "let the account of the server read it, and pass through the folders above it"
                }
                _ => "create it, or mend the path",
            };
            findings.push(Finding::error(site, message, help));
            false
        }
    }
}

/// Whether a file could be appended to. It is not created for that.
fn writable(file: &Path, site: Option<&str>, what: &str, findings: &mut Vec<Finding>) {
    let (target, access) = match file.exists() {
        true => (file, Access::WRITE_OK),
        false => (file.parent().unwrap_or(file), Access::WRITE_OK | Access::EXEC_OK),
    };
    if let Err(errno) = rustix::fs::access(target, access) {
        let why = why_not(target, &io::Error::from(errno));
        let message = format!("the {what} {} cannot be written: {} {why}", file.display(), target.display());
        let help = format!("create the folder, and let the account of the server write there: {}", target.display());
        findings.push(Finding::error(site, message, help));
    }
}

/// Why a path cannot be used, in words that name what stands in the way.
pub(super) fn why_not(path: &Path, why: &io::Error) -> String {
    match why.kind() {
        io::ErrorKind::NotFound => match path.ancestors().skip(1).find(|parent| parent.exists()) {
            Some(parent) if path.parent() != Some(parent) => format!("does not exist; {} does", parent.display()),
            _ => "does not exist".to_owned(),
        },
        io::ErrorKind::PermissionDenied => {
            // The first folder that may not be passed is the one to mend.
            let closed = path.ancestors().skip(1).filter(|parent| parent.is_dir()).collect::<Vec<_>>();
            let closed = closed.into_iter().rev().find(|parent| rustix::fs::access(*parent, Access::EXEC_OK).is_err());
            match closed {
                Some(parent) => format!("may not be reached: {} is {}", parent.display(), owner(parent)),
                None => format!("may not be used: it is {}", owner(path)),
            }
        }
        io::ErrorKind::NotADirectory => "is not a folder".to_owned(),
        io::ErrorKind::ConnectionRefused => match std::fs::metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => "is not a socket".to_owned(),
            _ => "refuses connections: nobody listens on it".to_owned(),
        },
        _ => format!("cannot be used: {why}"),
    }
}

/// `www-data:www-data with mode 0660`
pub(super) fn owner(path: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(path) else { return "closed to this account".to_owned() };
    let user = account("/etc/passwd", metadata.uid());
    let group = account("/etc/group", metadata.gid());
    format!("{user}:{group} with mode {:04o}", metadata.mode() & 0o7777)
}

/// The name of an account in one of the two files, or its number.
pub(super) fn account(file: &str, id: u32) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("a/b/c");
        let why = std::fs::read_dir(&missing).unwrap_err();
        assert_eq!(why_not(&missing, &why), format!("does not exist; {} does", folder.path().display()));
        assert_eq!(owner(Path::new("/")), "root:root with mode 0755");
    }

    #[test]
    fn a_log_file_is_not_created_by_the_check() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("access.log");
        let mut findings = Vec::new();
        writable(&file, None, "log file", &mut findings);
        assert_eq!(findings, []);
        assert!(!file.exists());
        writable(&folder.path().join("none/access.log"), None, "log file", &mut findings);
        assert!(findings[0].message.contains("does not exist"), "{findings:?}");
    }
}
