//! A host that is taken can stand in a URL, a log line and a Host field, and reads back as itself.

use doorward::base::host::{Authority, Host, HostPattern};

pub fn check(input: &[u8]) {
    let Some(text) = super::text(input) else { return };
    if let Ok(host) = Host::parse(text) {
        assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(&host));
        assert!(host.as_str().bytes().all(|b| b.is_ascii_graphic() && !b"/@?#\\\"".contains(&b)));
    }
    if let Ok(authority) = Authority::parse(text) {
        assert_eq!(Authority::parse(&authority.to_string()).as_ref(), Ok(&authority));
        assert_ne!(authority.port, Some(0));
    }
    let _ = HostPattern::parse(text);
}
