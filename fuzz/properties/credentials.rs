//! A name and a password are those that the client wrote, and one field is the most that counts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use doorward::edge::sign_in::Credentials;
use http::{HeaderMap, HeaderValue, header};

/// Values of Authorization, a line each.
pub fn check(input: &[u8]) {
    let values = input.split(|byte| *byte == b'\n').filter_map(|value| HeaderValue::from_bytes(value).ok());
    let headers: HeaderMap = values.map(|value| (header::AUTHORIZATION, value)).collect();
    let Some(said) = Credentials::read(&headers) else { return };
    assert_eq!(headers.len(), 1);
    assert!(!said.name.contains(&b':'));
    let again = format!("Basic {}", STANDARD.encode([&said.name[..], b":", &said.password].concat()));
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, again.parse().expect("a value"))]);
    assert!(Credentials::read(&headers).is_some_and(|again| again == said));
}
