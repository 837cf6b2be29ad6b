//! What a client wrote stands in a log as one value: it cannot end a line, close a quote or move a cursor.

use doorward::edge::access::escape::{mask_query, push_escaped, push_json};

/// A byte for the longest value, and the value.
pub fn check(input: &[u8]) {
    let Some((cap, value)) = input.split_first() else { return };
    let cap = usize::from(*cap).max(3);
    let mut plain = Vec::new();
    push_escaped(&mut plain, value, cap);
    assert!(plain.len() <= cap && plain.iter().all(|b| (0x20..0x7f).contains(b) && *b != b'"'));
    let mut json = vec![b'"'];
    push_json(&mut json, value, cap);
    assert!(json.len() <= cap + 1);
    json.push(b'"');
    let text: String = serde_json::from_slice(&json).expect("a string");
    // The string may hold a control character: the line that it stands in does not.
    assert!(!String::from_utf8(json).expect("UTF-8").chars().any(char::is_control), "{text:?}");

    let names = ["token".to_owned(), "sid".to_owned()];
    let masked = mask_query(value, &names);
    assert_eq!(mask_query(&masked, &names), masked, "what is masked stays so");
    assert_eq!(masked.split(|b| *b == b'&').count(), value.split(|b| *b == b'&').count());
    let query = masked.iter().position(|b| *b == b'?').map(|at| &masked[at + 1..]).unwrap_or_default();
    for pair in query.split(|b| *b == b'&') {
        assert!(pair.strip_prefix(b"token=").is_none_or(|value| value.is_empty() || value == b"***"), "{pair:?}");
    }
}
