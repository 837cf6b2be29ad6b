//! What a process that serves a configuration has to do with which paths, from its start to its end.

use std::fmt;
use std::path::{Path, PathBuf};

use super::model::{Action, BasicAuth, Certificate, CertificateFiles, Config, LogOutput};

/// What is done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A file is read, now and whenever it changes.
    Read,
    /// Files below a folder are found by their names.
    Enter,
    /// A file is appended to, and made anew in its folder.
    Append,
    /// Files are made and replaced in a folder.
    Keep,
}

/// A path and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The site that it is for; `None` is all.
    pub site: Option<String>,
    /// What it is called in the file.
    pub what: &'static str,
    /// The path, absolute.
    pub path: PathBuf,
    /// What is done with it.
    pub how: Use,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.site.iter().try_for_each(|site| write!(f, "[site.{site}] "))?;
        write!(f, "the {} {}", self.what, self.path.display())
    }
}

/// Everything that `config` has to do with the disk, in the order of the file. `local` is the folder of the local
/// authority.
pub fn of(config: &Config, local: &Path) -> Vec<Need> {
    let mut needs = Needs(Vec::new());
    for file in &config.files {
        needs.add(None, "configuration", file, Use::Read);
    }
    if let Some(file) = &config.tls.client_ca {
        needs.add(None, "client_ca", file, Use::Read);
    }
    for output in [Some(&config.log.output), config.log.access.as_ref()].into_iter().flatten() {
        needs.log(None, output);
    }
    let has = |kind: &Certificate| config.sites.iter().any(|site| site.certificate == *kind);
    if has(&Certificate::Acme) {
        needs.add(None, "storage of [acme]", &config.acme.storage, Use::Keep);
    }
    if has(&Certificate::SelfSigned) {
        needs.add(None, "folder of self-signed certificates", local, Use::Keep);
    }
    for site in &config.sites {
        let name = Some(site.name.as_str());
        if let Certificate::Files(CertificateFiles { cert, key }) = &site.certificate {
            needs.add(name, "certificate", cert, Use::Read);
            needs.add(name, "key", key, Use::Read);
        }
        site.access_log.iter().flatten().for_each(|output| needs.log(name, output));
        let passwords = site.routes.iter().filter_map(|route| match &route.basic_auth {
            BasicAuth::File(file) => Some(file),
            BasicAuth::Site | BasicAuth::Off => None,
        });
        for file in site.access.basic_auth.iter().chain(passwords) {
            needs.add(name, "password file", file, Use::Read);
        }
        for root in site.root.iter().chain(site.accel.iter().map(|(_, folder)| folder)) {
            needs.add(name, "folder", root, Use::Enter);
        }
        for route in &site.routes {
            if let Action::Root(folder) | Action::Alias(folder) = &route.action {
                needs.add(name, "folder", folder, Use::Enter);
            }
        }
    }
    needs.0
}

struct Needs(Vec<Need>);

impl Needs {
    fn add(&mut self, site: Option<&str>, what: &'static str, path: &Path, how: Use) {
        self.0.push(Need { site: site.map(str::to_owned), what, path: path.to_owned(), how });
    }

    fn log(&mut self, site: Option<&str>, output: &LogOutput) {
        if let LogOutput::File(file) = output {
            self.add(site, "log file", file, Use::Append);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_file_is_needed_for_something() {
        let text = r#"
            [tls]
            client_ca = "ca.pem"
            [log]
            output = "log/program"
            access = "off"
            [site.files]
            hosts = ["files.example.com"]
            tls = { cert = "cert.pem", key = "key.pem" }
            root = "public"
            log = { access = "log/access" }
            basic_auth = "users"
            accel = { "/internal/" = "internal" }
            [[site.files.route]]
            path = "/a/*"
            alias = "aliased"
            [site.local]
            hosts = ["localhost"]
            upstream = "http://127.0.0.1:1"
            [site.automatic]
            hosts = ["automatic.example.com"]
            upstream = "http://127.0.0.1:1"
        "#;
        let config = super::super::parse(Path::new("/e"), &[("proxy.toml", text)], &|_| None).unwrap();
        let needs = of(&config, Path::new("/e/certs-dev"));
        let said: Vec<String> = needs.iter().map(|need| format!("{need}: {:?}", need.how)).collect();
        let storage = format!("the storage of [acme] {}: Keep", config.acme.storage.display());
        assert_eq!(
            said,
            [
                "the configuration /e/proxy.toml: Read",
                "the client_ca /e/ca.pem: Read",
                "the log file /e/log/program: Append",
                storage.as_str(),
                "the folder of self-signed certificates /e/certs-dev: Keep",
                "[site.files] the certificate /e/cert.pem: Read",
                "[site.files] the key /e/key.pem: Read",
                "[site.files] the log file /e/log/access: Append",
                "[site.files] the password file /e/users: Read",
                "[site.files] the folder /e/public: Enter",
                "[site.files] the folder /e/internal: Enter",
                "[site.files] the folder /e/aliased: Enter",
            ]
        );
    }
}
