//! What PHP is told of a request: the script that we chose, each name once, and none that a client may not have a say in.

use std::collections::{BTreeMap, BTreeSet};

use doorward::upstream::fastcgi::record::{HEADER, Header};
use doorward::upstream::php::Script;
use doorward::upstream::php::environment::{Fixed, head};

/// As in [`super::request`].
pub fn check(input: &[u8]) {
    let Some(read) = super::request::read(input) else { return };
    let sent = read.forward(None, false);
    let script = Script {
        document_root: "/srv/app/public".into(),
        file: "/srv/app/public/index.php".into(),
        name: b"/index.php".to_vec(),
        path_info: sent.path.decoded().to_vec(),
    };
    let params = BTreeMap::from([("APP_ENV".to_owned(), "production".to_owned())]);
    let fixed = Fixed { software: "doorward", params: &params, keep: false };
    let Ok(bytes) = head(&sent, &script, 5, &fixed) else { return };
    // BEGIN_REQUEST is a header and eight bytes.
    let pairs = pairs(&bytes[2 * HEADER..]);
    let names: BTreeSet<&[u8]> = pairs.iter().map(|(name, _)| name.as_slice()).collect();
    assert_eq!(names.len(), pairs.len(), "a name was sent twice");
    let value = |name: &str| pairs.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| value.as_slice());
    assert!(value("HTTP_PROXY").is_none() && value("HTTP_CONTENT_LENGTH").is_none());
    for name in names {
        assert!(name.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_'), "{name:?}");
    }
    assert_eq!(value("SCRIPT_FILENAME"), Some(&b"/srv/app/public/index.php"[..]));
    assert_eq!(value("DOCUMENT_ROOT"), Some(&b"/srv/app/public"[..]));
    assert_eq!(value("CONTENT_LENGTH"), Some(&b"5"[..]));
    assert_eq!(value("APP_ENV"), Some(&b"production"[..]));
    assert_eq!(value("REMOTE_ADDR"), Some(sent.client.address.to_string().as_bytes()));
    assert_eq!(value("SERVER_NAME"), Some(sent.authority.host.as_str().as_bytes()));
    assert_eq!(value("HTTP_HOST"), Some(sent.authority.to_string().as_bytes()));
    assert_eq!(value("REQUEST_METHOD"), Some(sent.method.as_str().as_bytes()));
}

/// As PHP reads them: each record by itself.
fn pairs(mut records: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    loop {
        let header = Header::decode(*records.first_chunk().expect("a header")).expect("a header that can be read");
        let (content, padding) = (usize::from(header.content), usize::from(header.padding));
        let mut rest = &records[HEADER..HEADER + content];
        records = &records[HEADER + content + padding..];
        if content == 0 {
            assert!(records.is_empty(), "something stands behind the end");
            return pairs;
        }
        while !rest.is_empty() {
            let (name, value) = (length(&mut rest), length(&mut rest));
            pairs.push((rest[..name].to_vec(), rest[name..name + value].to_vec()));
            rest = &rest[name + value..];
        }
    }
}

fn length(bytes: &mut &[u8]) -> usize {
    let (length, used) = match bytes {
        [short @ ..128, ..] => (u32::from(*short), 1),
        [a, b, c, d, ..] => (u32::from_be_bytes([*a & 0x7f, *b, *c, *d]), 4),
        _ => panic!("a length is cut"),
    };
    *bytes = &bytes[used..];
    length as usize
}
