//! Engine.IO session ids, as they are on the wire: in the query of a request and in the answer that gives one out.
//! Engine.IO 3 and 4 (Socket.IO 2 to 4) are read.

use serde::Deserialize;

/// So much of an answer is looked at, in bytes. An open packet has about 110.
pub const LOOKED_AT: usize = 1024;

/// The longest id, in bytes. The library's own have 20.
pub const LONGEST: usize = 64;

/// What a query says about a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// It is no request of Engine.IO, or none that can be understood.
    Other,
    /// It asks for a new session by long polling.
    Opening,
    /// It belongs to the session with this id.
    Of(String),
}

impl Query {
    /// Reads a query, without its question mark.
    pub fn read(query: &str) -> Query {
        let mut transport = None;
        let mut sid = None;
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some(("transport", value)) => transport = transport.or(Some(value)),
                Some(("sid", value)) => sid = sid.or(Some(value)),
                _ => {}
            }
        }
        match (transport, sid) {
            // To the library an empty id is none.
            (Some("polling"), None | Some("")) => Query::Opening,
            (Some("polling" | "websocket"), Some(sid)) => match decode(sid) {
                Some(sid) if is_id(&sid) => Query::Of(sid),
                _ => Query::Other,
            },
            _ => Query::Other,
        }
    }
}

/// The id that an answer gives out. `body` is its beginning; what comes after [`LOOKED_AT`] is left unread.
pub fn given_out(body: &[u8]) -> Option<String> {
    let body = body.get(..LOOKED_AT).unwrap_or(body);
    match script(body) {
        Some(text) => open_packet(text.as_bytes()),
        None => open_packet(body),
    }
}

/// Whether `body`, that of a 400, says that there is no such session: of a request, of an upgrade, and of
/// python-engineio.
pub fn denies(body: &[u8]) -> bool {
    ["Session ID unknown", "Invalid session"].iter().any(|told| memchr::memmem::find(body, told.as_bytes()).is_some())
}

/// The payload of JSONP: `___eio[0]("0{\"sid\":…}");`
fn script(body: &[u8]) -> Option<String> {
    let rest = body.strip_prefix(b"/**/").unwrap_or(body).strip_prefix(b"___eio[")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let string = rest.get(digits..)?.strip_prefix(b"](")?;
    String::deserialize(&mut serde_json::Deserializer::from_slice(string)).ok()
}

/// The id in a payload whose first packet is an open packet.
fn open_packet(payload: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Open {
        sid: String,
    }
    let json = unframed(payload)?.strip_prefix(b"0")?;
    // Other packets may follow: only the first value is read.
    let open = Open::deserialize(&mut serde_json::Deserializer::from_slice(json)).ok()?;
    is_id(&open.sid).then_some(open.sid)
}

/// Engine.IO 4 separates packets; 3 puts a length before each: `97:`, or 0 for text, a byte for each digit, and 255.
fn unframed(payload: &[u8]) -> Option<&[u8]> {
    /// More would be a packet of 10 GB.
    const DIGITS: usize = 10;
    let length_of = |bytes: &[u8], is_digit: fn(&u8) -> bool| bytes.iter().take_while(|byte| is_digit(byte)).count();
    if let Some(rest) = payload.strip_prefix(&[0]) {
        let digits = length_of(rest, |byte| *byte <= 9);
        return (1..=DIGITS).contains(&digits).then(|| rest.get(digits..)?.strip_prefix(&[255])).flatten();
    }
    if payload.starts_with(b"0{") {
        return Some(payload);
    }
    let digits = length_of(payload, u8::is_ascii_digit);
    (1..=DIGITS).contains(&digits).then(|| payload.get(digits..)?.strip_prefix(b":")).flatten()
}

/// Visible ASCII but for what a string of JSON escapes. An application may make ids of its own.
fn is_id(sid: &str) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    (1..=LONGEST).contains(&sid.len()) && sid.as_bytes().iter().all(allowed)
}

/// Without its percent signs (RFC 3986, section 2.1).
fn decode(value: &str) -> Option<String> {
    if value.len() > 3 * LONGEST {
        return None;
    }
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        decoded.push(u8::try_from(high << 4 | low).ok()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPEN: &str = r#"{"sid":"lv_VI97HAXpY6yYWAAAB","upgrades":["websocket"],"pingInterval":25000}"#;
    const SID: &str = "lv_VI97HAXpY6yYWAAAB";

    fn of(sid: &str) -> Query {
        Query::Of(sid.to_owned())
    }

    #[test]
    fn the_session_of_a_request_is_in_its_query() {
        for (query, means) in [
            ("EIO=4&transport=polling", Query::Opening),
            ("EIO=4&transport=polling&t=Nx1&sid=", Query::Opening),
            ("EIO=4&transport=polling&sid=abc", of("abc")),
            ("sid=abc&EIO=3&transport=websocket", of("abc")),
            ("transport=polling&sid=a%3Ab%2b", of("a:b+")),
            ("transport=polling&sid=a&sid=b", of("a")),
            ("transport=websocket", Query::Other),
            ("sid=abc", Query::Other),
            ("", Query::Other),
            ("transport=polling&sid=%", Query::Other),
            ("transport=polling&sid=%zz", Query::Other),
            ("transport=polling&sid=%ff", Query::Other),
            ("transport=polling&sid=a%20b", Query::Other),
            ("transport=polling&sid=%22", Query::Other),
            ("xtransport=polling&xsid=abc", Query::Other),
        ] {
            assert_eq!(Query::read(query), means, "{query}");
        }
        assert_eq!(Query::read(&format!("transport=polling&sid={}", "a".repeat(64))), of(&"a".repeat(64)));
        assert_eq!(Query::read(&format!("transport=polling&sid={}", "a".repeat(65))), Query::Other);
        assert_eq!(Query::read(&format!("transport=polling&sid={}", "a".repeat(100_000))), Query::Other);
    }

    #[test]
    fn the_id_of_every_framing_is_found() {
        let length = OPEN.len() + 1;
        let mut binary = vec![0];
        binary.extend(length.to_string().bytes().map(|digit| digit - b'0'));
        binary.push(255);
        binary.extend(format!("0{OPEN}").bytes());
        binary.extend([0, 2, 255, b'4', b'0']);
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        for body in [
            format!("0{OPEN}").into_bytes(),
            format!("0{OPEN}\u{1e}40{{\"sid\":\"other\"}}").into_bytes(),
            format!("{length}:0{OPEN}2:40").into_bytes(),
            binary,
            format!("___eio[0]({});", quoted(&format!("0{OPEN}"))).into_bytes(),
            format!("/**/___eio[17]({});", quoted(&format!("{length}:0{OPEN}2:40"))).into_bytes(),
            br#"0{"upgrades":[{"sid":"inner"}],"sid":"lv_VI97HAXpY6yYWAAAB"}"#.to_vec(),
        ] {
            assert_eq!(given_out(&body).as_deref(), Some(SID), "{}", String::from_utf8_lossy(&body));
        }
    }

    #[test]
    fn what_is_no_open_packet_gives_no_id() {
        for body in [
            &b""[..],
            b"0",
            b"ok",
            br#"{"sid":"abc"}"#,
            br#"4{"sid":"abc"}"#,
            br#"40{"sid":"abc"}"#,
            br#"0{"sid":"abc""#,
            br#"0{"sid":""}"#,
            br#"0{"sid":7}"#,
            br#"0{"sid":"a b"}"#,
            br#"0{"sid":"a\"b"}"#,
            br#"0{"other":{"sid":"abc"}}"#,
            br#"___eio[]("x"#,
            br#"___eio[0](0{"sid":"abc"}"#,
            br#"99999999999:0{"sid":"abc"}"#,
            b"\0\xff0{\"sid\":\"abc\"}",
            b"\0\x01\x010{\"sid\":\"abc\"}",
            b"\x01\x01\xff0{\"sid\":\"abc\"}",
        ] {
            assert_eq!(given_out(body), None, "{}", String::from_utf8_lossy(body));
        }
        let far = format!("0{{\"x\":\"{}\",\"sid\":\"abc\"}}", "y".repeat(LOOKED_AT));
        assert_eq!(given_out(far.as_bytes()), None);
    }

    #[test]
    fn a_400_for_an_unknown_session_is_told_from_others() {
        assert!(denies(br#"{"code":1,"message":"Session ID unknown"}"#));
        assert!(denies(b"Session ID unknown"));
        assert!(denies(br#""Invalid session abc""#));
        assert!(!denies(br#"{"code":3,"message":"Bad request"}"#));
        assert!(!denies(b""));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(body in proptest::collection::vec(any::<u8>(), 0..2048), query in ".{0,300}") {
            if let Some(sid) = given_out(&body) {
                prop_assert!(is_id(&sid));
            }
            denies(&body);
            if let Query::Of(sid) = Query::read(&query) {
                prop_assert!(is_id(&sid));
            }
        }

        #[test]
        fn any_id_is_found_in_every_framing_however_it_goes_on(
            sid in "[!#-\\[\\]-~]{1,64}", rest in proptest::collection::vec(any::<u8>(), 0..200), version in 0..3
        ) {
            let open = format!("0{{\"pingTimeout\":20000,\"sid\":\"{sid}\"}}");
            let mut body = match version {
                0 => Vec::new(),
                1 => format!("{}:", open.len()).into_bytes(),
                _ => [0].into_iter().chain(open.len().to_string().bytes().map(|b| b - b'0')).chain([255]).collect(),
            };
            body.extend(open.bytes());
            body.extend(rest);
            prop_assert_eq!(given_out(&body), Some(sid.clone()));
            let encoded: String = sid.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(Query::read(&format!("sid={encoded}&transport=polling")), of(&sid));
        }
    }
}
