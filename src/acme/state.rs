//! What is remembered of one certificate beside its files, and shown by `doorward cert list`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::schedule::Window;

/// `state.json` of a certificate. All of it may be lost: then the authority is asked again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The directory of the authority that the certificate is from.
    pub authority: Option<String>,
    /// When it will be renewed, and why then.
    pub renewal: Option<Renewal>,
    /// What the authority suggested last.
    pub suggestion: Option<Suggestion>,
    /// The last failure since the last success.
    pub failure: Option<LastFailure>,
}

/// When a certificate will be renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The time.
    pub at: Seconds,
    /// Why then.
    pub why: String,
}

/// A window that the authority suggested (RFC 9773), or that it suggests none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The window's begin and end; `None` where the authority suggests none.
    pub window: Option<(Seconds, Seconds)>,
    /// A page that says why.
    pub explanation: Option<String>,
    /// When to ask again.
    pub ask_again: Seconds,
}

impl Suggestion {
    /// The window.
    pub fn window(&self) -> Option<Window> {
        let (start, end) = self.window?;
        Some(Window { start: start.time(), end: end.time() })
    }
}

/// Why there is no new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// When it happened.
    pub at: Seconds,
    /// What happened.
    pub why: String,
    /// How often in a row.
    pub times: u32,
    /// Not tried again before this.
    pub next: Seconds,
    /// The [`fingerprint`](super::settings::Settings::fingerprint) of what was tried. With other settings it is tried
    /// again at once.
    #[serde(default)]
    pub settings: String,
}

/// A time in whole seconds since 1970, as files keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub u64);

impl Seconds {
    /// Rounds down.
    pub fn of(time: SystemTime) -> Seconds {
        Seconds(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// As a time.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.0)).unwrap_or(UNIX_EPOCH)
    }
}

impl State {
    /// Reads what was written; what cannot be read is as good as lost.
    pub fn parse(bytes: Option<&[u8]>) -> State {
        bytes.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
    }

    /// As it is written.
    pub fn to_bytes(&self) -> Vec<u8> {
        // The types have no map with odd keys and no failing serializer.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }
}
