//! Which content coding a client gets (RFC 9110, section 12.5.3), and which media types are worth one.

use ::http::{HeaderMap, header};

/// A content coding that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// `zstd` (RFC 8878)
    Zstd,
    /// `br` (RFC 7932)
    Brotli,
    /// `gzip` (RFC 1952)
    Gzip,
}

impl Coding {
    /// The name in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Zstd => "zstd",
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }

    /// What a precompressed file's name ends in, dot included.
    pub fn suffix(self) -> &'static str {
        match self {
            Coding::Zstd => ".zst",
            Coding::Brotli => ".br",
            Coding::Gzip => ".gz",
        }
    }
}

/// What a client accepts: small and `Copy`, so that it outlives the request whose fields it was read from. Weights are
/// thousandths; the default accepts nothing but identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accepted {
    zstd: u16,
    brotli: u16,
    gzip: u16,
    identity: u16,
}

impl Accepted {
    /// Reads all `Accept-Encoding` fields of a request. What is malformed in them is passed over.
    pub fn read(headers: &HeaderMap) -> Accepted {
        let mut named = [None; 4];
        let mut any = None;
        for value in headers.get_all(header::ACCEPT_ENCODING) {
            for member in value.as_bytes().split(|b| *b == b',') {
                let mut parts = member.split(|b| *b == b';').map(<[u8]>::trim_ascii);
                let name = parts.next().unwrap_or_default();
                let Some(weight) = weight(parts) else { continue };
                let [zstd, brotli, gzip, identity] = &mut named;
                let is = |coding: &[u8]| name.eq_ignore_ascii_case(coding);
                let place = if is(b"zstd") {
                    zstd
                } else if is(b"br") {
                    brotli
                } else if is(b"gzip") || is(b"x-gzip") {
                    // RFC 9110, section 8.4.1.3: "a recipient SHOULD consider "x-gzip" to be equivalent to "gzip"".
                    gzip
                } else if is(b"identity") {
                    identity
                } else if is(b"*") {
                    &mut any
                } else {
                    continue;
                };
                *place = Some(weight);
            }
        }
        // "*" is for what is not named; identity is acceptable unless excluded, and liked least unless it has a weight.
        let [zstd, brotli, gzip, identity] = named;
        let or_any = |weight: Option<u16>| weight.or(any).unwrap_or(0);
        Accepted { zstd: or_any(zstd), brotli: or_any(brotli), gzip: or_any(gzip), identity: identity.unwrap_or(0) }
    }

    /// The codings that the client takes and likes no less than identity, best first; ties as in `order`.
    pub fn ranked(self, order: [Coding; 3]) -> impl Iterator<Item = Coding> {
        let mut order = order;
        // Stable: ties stay in the caller's order.
        order.sort_by_key(|coding| std::cmp::Reverse(self.weight_of(*coding)));
        order.into_iter().filter(move |coding| {
            let weight = self.weight_of(*coding);
            weight > 0 && weight >= self.identity
        })
    }

    /// The coding for an answer that is compressed on its way: zstd, br, gzip on a tie.
    pub fn best(self) -> Option<Coding> {
        self.ranked([Coding::Zstd, Coding::Brotli, Coding::Gzip]).next()
    }

    fn weight_of(self, coding: Coding) -> u16 {
        match coding {
            Coding::Zstd => self.zstd,
            Coding::Brotli => self.brotli,
            Coding::Gzip => self.gzip,
        }
    }
}

/// Whether bodies of this `Content-Type` shrink when they are compressed and may be: an allow-list. Event streams are
/// not on it: each event is small, and each has to leave at once.
pub fn is_compressible(content_type: &[u8]) -> bool {
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let is = |name: &[u8]| essence.eq_ignore_ascii_case(name);
    if essence.get(..5).is_some_and(|family| family.eq_ignore_ascii_case(b"text/")) {
        return !is(b"text/event-stream");
    }
    let listed: [&[u8]; 17] = [
        b"application/javascript",
        b"application/x-javascript",
        b"application/ecmascript",
        b"application/json",
        b"application/x-ndjson",
        b"application/xml",
        b"application/xml-dtd",
        b"application/wasm",
        b"application/graphql",
        b"application/yaml",
        b"application/x-yaml",
        b"application/rtf",
        b"application/vnd.ms-fontobject",
        b"font/ttf",
        b"font/otf",
        b"image/x-icon",
        b"image/bmp",
    ];
    let suffix = essence.iter().rposition(|b| *b == b'+').and_then(|at| essence.get(at..)).unwrap_or_default();
    listed.into_iter().any(is) || suffix.eq_ignore_ascii_case(b"+json") || suffix.eq_ignore_ascii_case(b"+xml")
}

/// The `q` of a member's parameters in thousandths; 1000 without one, `None` where it is malformed.
fn weight<'a>(parameters: impl Iterator<Item = &'a [u8]>) -> Option<u16> {
    for parameter in parameters {
        let Some(value) = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q=")) else { continue };
        return match value {
            [b'1'] => Some(1000),
            [b'1', b'.', zeros @ ..] if zeros.len() <= 3 && zeros.iter().all(|b| *b == b'0') => Some(1000),
            [b'0'] => Some(0),
            [b'0', b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => {
                let padded = digits.iter().chain([b'0'; 3].iter()).take(3);
                Some(padded.fold(0, |value, digit| value * 10 + u16::from(digit - b'0')))
            }
            _ => None,
        };
    }
    Some(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;

    fn best(values: &[&str]) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap());
        }
        Accepted::read(&headers).best().map(Coding::name)
    }

    #[test]
    fn the_client_s_weights_decide_and_our_order_breaks_ties() {
        for (value, want) in [
            ("gzip, deflate, br, zstd", Some("zstd")),
            ("gzip, deflate, br", Some("br")),
            ("gzip", Some("gzip")),
            ("x-gzip", Some("gzip")),
            ("GZIP;Q=0.5", Some("gzip")),
            ("deflate", None),
            ("", None),
            ("identity", None),
            ("*", Some("zstd")),
            ("*;q=0", None),
            ("zstd;q=0, *", Some("br")),
            ("gzip;q=1.0, br;q=0.9, zstd;q=0.8", Some("gzip")),
            ("gzip ; q=0.001", Some("gzip")),
            ("gzip;q=0", None),
            ("gzip;q=0.000", None),
            ("br;q=0.5, identity;q=0.8", None),
            ("br;q=0.5, identity;q=0.5", Some("br")),
            ("identity;q=0, gzip;q=0.1", Some("gzip")),
            ("gzip;q=2", None),
            ("gzip;q=0.0001", None),
            ("gzip;q=-1, br", Some("br")),
            (";;,,=;q=, br", Some("br")),
        ] {
            assert_eq!(best(&[value]), want, "{value:?}");
        }
        assert_eq!(best(&["gzip", "br"]), Some("br"), "several fields count as one list");
        assert_eq!(Accepted::default().best(), None);
    }

    #[test]
    fn every_accepted_coding_is_ranked() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip;q=0.9, br, zstd"));
        let order = [Coding::Brotli, Coding::Zstd, Coding::Gzip];
        let ranked: Vec<_> = Accepted::read(&headers).ranked(order).collect();
        assert_eq!(ranked, [Coding::Brotli, Coding::Zstd, Coding::Gzip]);
    }

    #[test]
    fn only_listed_types_are_compressed() {
        for yes in ["text/html; charset=utf-8", "TEXT/CSS", "application/json", "application/ld+json", "image/svg+xml"]
        {
            assert!(is_compressible(yes.as_bytes()), "{yes}");
        }
        for no in
            ["text/event-stream", "text/event-stream; charset=utf-8", "image/png", "application/zip", "", "font/woff2"]
        {
            assert!(!is_compressible(no.as_bytes()), "{no}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_field_is_read_without_panic(value in "[ -~]{0,60}") {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_str(&value).unwrap());
            let accepted = Accepted::read(&headers);
            if let Some(best) = accepted.best() {
                proptest::prop_assert!(accepted.weight_of(best) > 0);
            }
        }
    }
}
