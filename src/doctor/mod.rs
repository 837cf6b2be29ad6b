//! Layer 6: checks of the world around a configuration: what `doorward check` finds and `--offline` leaves out.
//!
//! Nothing is changed: no file is created, no port stays bound.

use std::fmt;
use std::time::SystemTime;

use crate::config::Config;

mod access;
mod acme;
mod back_ends;
mod certificates;
mod files;
mod limits;
mod ports;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It will not work: `check` exits with 1.
    Error,
    /// It may be meant so, or mend itself: `check` exits with 0.
    Warning,
}

/// Something in the world that does not fit the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The site that it is about; `None` where it is about all.
    pub site: Option<String>,
    /// What is the case.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
}

impl Finding {
    fn error(site: Option<&str>, message: impl Into<String>, help: impl Into<String>) -> Finding {
        Finding { severity: Severity::Error, site: site.map(str::to_owned), message: message.into(), help: help.into() }
    }

    fn warning(site: Option<&str>, message: impl Into<String>, help: impl Into<String>) -> Finding {
        Finding { severity: Severity::Warning, ..Finding::error(site, message, help) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let site = self.site.as_ref().map(|site| format!("[site.{site}] ")).unwrap_or_default();
        write!(f, "{severity}: {site}{}", self.message)?;
        for (at, line) in self.help.lines().enumerate() {
            write!(f, "\n{}{line}", if at == 0 { "help: " } else { "      " })?;
        }
        Ok(())
    }
}

/// Looks at certificates and what is needed to get them, folders, sockets, back ends, log files and ports. Errors come first, then warnings, each
/// in the order of the file. May take seconds where back ends do not answer.
pub fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    certificates::check(config, SystemTime::now(), &mut findings);
    acme::check(config, SystemTime::now(), &mut findings);
    files::check(config, &mut findings);
    access::check(config, &mut findings);
    back_ends::check(config, &mut findings);
    ports::check(&config.server, &mut findings);
    limits::check(config, &mut findings);
    findings.sort_by_key(|finding| finding.severity);
    findings.dedup();
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn findings(folder: &Path, text: &str) -> Vec<Finding> {
        let config = crate::config::parse(folder, &[("proxy.toml", text)], &|_| None).unwrap_or_else(|p| panic!("{p}"));
        check(&config)
    }

    const SITE: &str = r#"
        [server]
        http = ["127.0.0.1:0"]
        https = ["127.0.0.1:0"]
        [log]
        access = "logs/access.log"
        [site.app]
        hosts = ["localhost"]
        tls = { cert = "cert.pem", key = "key.pem" }
        root = "public"
        php = "unix:FOLDER/fpm.sock"
        accel = { "/internal/" = "storage" }
    "#;

    #[test]
    fn a_world_that_fits_has_no_findings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let text = SITE.replace("FOLDER", path.to_str().unwrap());
        for name in ["logs", "public", "storage"] {
            std::fs::create_dir(path.join(name)).unwrap();
        }
        std::fs::write(path.join("public/index.php"), "").unwrap();
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(path.join("cert.pem"), certified.cert.pem()).unwrap();
        std::fs::write(path.join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
        let _fpm = std::os::unix::net::UnixListener::bind(path.join("fpm.sock")).unwrap();
        assert_eq!(findings(path, &text), []);

        // The same certificate under another name is a warning alone.
        let other = findings(path, &text.replace("\"localhost\"", "\"localhost\", \"*.example.com\""));
        assert_eq!(other.len(), 1, "{other:?}");
        assert!(other[0].to_string().starts_with("warning: [site.app] "), "{}", other[0]);
        assert!(other[0].message.contains("is not for *.example.com"), "{}", other[0]);
    }

    #[test]
    fn everything_that_is_missing_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let told = findings(folder.path(), &SITE.replace("FOLDER", folder.path().to_str().unwrap()));
        for part in ["cert.pem", "key.pem", "`root`", "`accel`", "log file", "fpm.sock"] {
            assert!(
                told.iter().any(|f| f.severity == Severity::Error && f.message.contains(part)),
                "{part}: {told:#?}"
            );
        }
    }
}
