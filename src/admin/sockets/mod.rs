//! `doorward sockets`: which live sockets there are, and closing some of them.
//!
//! The process answers one JSON object a line: first the sockets, then, so that an answer that broke off is told from a
//! whole one, the sum. Requests are JSON too: `sockets list {…}` and `sockets close {…}`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::network::parse_network;
use crate::tunnel::register::Listed;

pub mod ask;
pub(super) mod serve;
pub(super) mod table;

/// Sockets by what they are. Without a condition it chooses all.
// A process of an older version must refuse a condition that it does not know, and not close the rest as well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// These alone.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub ids: BTreeSet<u64>,
    /// Of this site.
    pub site: Option<String>,
    /// To this back end: as lists show it, or its address alone.
    pub back_end: Option<String>,
    /// Of this address, or of one in this range.
    pub client: Option<String>,
    /// Whose path begins so.
    pub path: Option<String>,
    /// Silent for at least so many milliseconds.
    pub idle_ms: Option<u64>,
    /// Open for at least so many milliseconds.
    pub older_ms: Option<u64>,
}

impl Selection {
    /// Whether it has no condition.
    pub fn is_all(&self) -> bool {
        *self == Selection::default()
    }

    /// Whether it chooses this one.
    pub fn chooses(&self, listed: &Listed) -> bool {
        let info = &listed.info;
        let at_least = |time: Duration, ms: Option<u64>| ms.is_none_or(|ms| time >= Duration::from_millis(ms));
        (self.ids.is_empty() || self.ids.contains(&listed.id))
            && self.site.as_deref().is_none_or(|site| *info.site == *site)
            && self.back_end.as_deref().is_none_or(|back_end| is_back_end(&info.back_end, back_end))
            && self.path.as_deref().is_none_or(|path| info.path.starts_with(path))
            && at_least(listed.idle, self.idle_ms)
            && at_least(listed.age, self.older_ms)
            && self.client.as_deref().is_none_or(|client| {
                parse_network(client).is_some_and(|range| range.contains(&info.client.to_canonical()))
            })
    }
}

/// `http://127.0.0.1:3444` is also called `127.0.0.1:3444`, and with a slash.
fn is_back_end(back_end: &str, wanted: &str) -> bool {
    let wanted = wanted.trim_end_matches('/');
    back_end == wanted || back_end.split_once("://").is_some_and(|(_, address)| address == wanted)
}

/// What `sockets list` asks for.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListOrder {
    selection: Selection,
    /// Of those that are chosen, the so many oldest.
    limit: Option<usize>,
}

/// What `sockets close` asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseOrder {
    selection: Selection,
    /// Without a condition, whether that is meant.
    all: bool,
    code: u16,
    over_ms: u64,
}

/// One socket. Names as in the access log, where it has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    /// What `close` takes.
    id: String,
    site: String,
    client: String,
    upstream: String,
    path: String,
    version: String,
    /// Seconds since it opened.
    duration: f64,
    /// Seconds since the last byte, either way.
    idle: u64,
    bytes_received: u64,
    bytes_sent: u64,
    messages_received: u64,
    messages_sent: u64,
    pid: u32,
    /// Whether the process is one that a newer one has taken over from.
    #[serde(default)]
    old: bool,
}

/// The end of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Sum {
    pid: u32,
    /// How many were chosen, by site.
    sites: BTreeMap<String, usize>,
    /// How many there are.
    live: usize,
    /// The numbers of the configurations in memory; the last is in force.
    configurations: Vec<u64>,
    /// What was counted since the start: phrase and number.
    counted: Vec<(String, u64)>,
}

/// One line of the answer to `list`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Socket(Row),
    Sum(Sum),
}

/// The answer to `close`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    /// How many were told to close.
    told: usize,
    /// Ids that are none.
    unknown: Vec<u64>,
    /// Over which time they are closed.
    over_ms: u64,
}

/// Whether a socket may be closed with this status: those that an endpoint may send (RFC 6455, section 7.4) and that fit
/// a server's decision, and those of applications.
pub fn is_allowed_code(code: u16) -> bool {
    matches!(code, 1000 | 1001 | 1008 | 1011 | 1012 | 1013 | 3000..=4999)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tunnel::register::TunnelInfo;

    pub(in crate::admin) fn info(site: &str) -> TunnelInfo {
        TunnelInfo {
            site: site.into(),
            back_end: "http://127.0.0.1:3444".into(),
            client: "192.0.2.1".parse().unwrap(),
            path: "/socket.io/".into(),
            http2: false,
        }
    }

    fn listed() -> Listed {
        Listed {
            id: 7,
            info: info("app"),
            age: Duration::from_secs(60),
            idle: Duration::from_secs(10),
            bytes_to_back_end: 0,
            bytes_to_client: 0,
            messages_to_back_end: 0,
            messages_to_client: 0,
        }
    }

    #[test]
    fn every_condition_has_to_hold() {
        let text = |text: &str| Some(text.to_owned());
        let all = Selection {
            ids: BTreeSet::from([3, 7]),
            site: text("app"),
            back_end: text("127.0.0.1:3444/"),
            client: text("192.0.2.0/24"),
            path: text("/socket"),
            idle_ms: Some(10_000),
            older_ms: Some(60_000),
        };
        assert!(Selection::default().chooses(&listed()) && Selection::default().is_all());
        assert!(all.chooses(&listed()) && !all.is_all());
        let others = [
            Selection { ids: BTreeSet::from([8]), ..all.clone() },
            Selection { site: text("ap"), ..all.clone() },
            Selection { back_end: text("127.0.0.1:344"), ..all.clone() },
            Selection { client: text("192.0.2.2"), ..all.clone() },
            Selection { client: text("nonsense"), ..all.clone() },
            Selection { path: text("/app"), ..all.clone() },
            Selection { idle_ms: Some(10_001), ..all.clone() },
            Selection { older_ms: Some(60_001), ..all.clone() },
        ];
        for other in others {
            assert!(!other.chooses(&listed()), "{other:?}");
        }
    }

    #[test]
    fn a_mapped_address_is_found_as_ipv4() {
        let mut mapped = listed();
        mapped.info.client = "::ffff:192.0.2.1".parse().unwrap();
        assert!(Selection { client: Some("192.0.2.1".to_owned()), ..Selection::default() }.chooses(&mapped));
    }

    #[test]
    fn a_condition_that_is_not_known_is_refused_and_not_skipped() {
        assert!(serde_json::from_str::<Selection>(r#"{"site":"app"}"#).is_ok());
        assert!(serde_json::from_str::<Selection>(r#"{"site":"app","colour":"red"}"#).is_err());
    }

    #[test]
    fn codes_that_no_endpoint_may_send_are_refused() {
        for code in [1000, 1001, 1008, 1011, 1012, 1013, 3000, 4999] {
            assert!(is_allowed_code(code), "{code}");
        }
        for code in [0, 999, 1002, 1004, 1005, 1006, 1007, 1009, 1014, 1015, 2999, 5000] {
            assert!(!is_allowed_code(code), "{code}");
        }
    }
}
