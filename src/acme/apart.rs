//! The names that an authority could not validate, and that therefore get a certificate of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::state::Seconds;
use crate::base::certified_name::CertifiedName;
use crate::store::{Storage, StorageError};

const FILE: &str = "apart.json";

/// After this a name is with the others of its site again; if it still fails, it goes apart again.
const FOR: Duration = Duration::from_secs(30 * 86_400);

/// `apart.json`: name → since when.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Apart(BTreeMap<String, Seconds>);

/// The names that are apart at `now`. What cannot be read is empty: it costs one more failed order.
pub fn read(storage: &Storage, now: SystemTime) -> BTreeSet<CertifiedName> {
    load(storage).0.into_iter().filter(|(_, since)| is_fresh(*since, now)).map(|(name, _)| parse(name)).collect()
}

/// Puts `names` apart from `now` on.
///
/// # Errors
/// The storage cannot be written.
pub fn add(storage: &Storage, names: &[CertifiedName], now: SystemTime) -> Result<(), StorageError> {
    let _one = storage.lock("apart.lock")?;
    let mut apart = load(storage);
    apart.0.retain(|_, since| is_fresh(*since, now));
    apart.0.extend(names.iter().map(|name| (name.to_string(), Seconds::of(now))));
    // Strings and numbers always serialize.
    storage.write(FILE, &serde_json::to_vec_pretty(&apart).unwrap_or_default())
}

fn load(storage: &Storage) -> Apart {
    let bytes = storage.read(FILE).ok().flatten();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn is_fresh(since: Seconds, now: SystemTime) -> bool {
    // A clock that was set back must not keep a name apart for years.
    match now.duration_since(since.time()) {
        Ok(age) => age < FOR,
        Err(ahead) => ahead.duration() < FOR,
    }
}

fn parse(name: String) -> CertifiedName {
    name.parse().map_or_else(|_| CertifiedName::Dns(name), CertifiedName::Address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_name_is_apart_for_thirty_days_from_its_last_failure() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(&folder.path().join("acme")).unwrap();
        let now = SystemTime::now();
        let names = |texts: &[&str]| texts.iter().map(|text| parse((*text).to_owned())).collect::<Vec<_>>();
        let apart = |at: SystemTime| read(&storage, at).into_iter().collect::<Vec<_>>();
        assert!(apart(now).is_empty());
        add(&storage, &names(&["a.example", "b.example", "192.0.2.1"]), now).unwrap();
        assert_eq!(apart(now + DAY * 29), names(&["a.example", "b.example", "192.0.2.1"]));
        add(&storage, &names(&["b.example"]), now + DAY * 29).unwrap();
        assert_eq!(apart(now + DAY * 31), names(&["b.example"]));
        assert!(apart(now + DAY * 60).is_empty());
        // A clock that was far ahead.
        assert!(apart(now - DAY * 400).is_empty());
    }
}
