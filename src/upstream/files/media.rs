//! The media type of a file, from its name.

use ::http::HeaderValue;

/// The `Content-Type` of a file of this name, folders in front of it or not: `charset=utf-8` for what is text,
/// `application/octet-stream` for what is not known.
pub fn content_type(path: &[u8]) -> HeaderValue {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let ending = match memchr::memrchr(b'.', name) {
        Some(at) => String::from_utf8_lossy(name.get(at + 1..).unwrap_or_default()).to_ascii_lowercase(),
        None => String::new(),
    };
    if let Some(fixed) = corrected(&ending) {
        return HeaderValue::from_static(fixed);
    }
    let Some(essence) = mime_guess::from_ext(&ending).first_raw() else {
        return HeaderValue::from_static("application/octet-stream");
    };
    if needs_charset(essence) {
        return HeaderValue::from_str(&format!("{essence}; charset=utf-8"))
            .unwrap_or(HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    HeaderValue::from_static(essence)
}

/// Where the list of `mime_guess` differs from what browsers want today.
fn corrected(ending: &str) -> Option<&'static str> {
    Some(match ending {
        // RFC 9239, section 6: text/javascript for all of them; modules are refused with any other family.
        "js" | "mjs" | "cjs" | "jsx" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json; charset=utf-8",
        "webmanifest" => "application/manifest+json; charset=utf-8",
        // Without parameters: WebAssembly.compileStreaming compares the whole value.
        "wasm" => "application/wasm",
        "avif" => "image/avif",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "opus" => "audio/ogg",
        "m4a" => "audio/mp4",
        "m3u8" => "application/vnd.apple.mpegurl",
        // Video segments of HLS; TypeScript sources are not for browsers.
        "ts" => "video/mp2t",
        "zst" => "application/zstd",
        "br" => "application/octet-stream",
        "ico" => "image/x-icon",
        _ => return None,
    })
}

fn needs_charset(essence: &str) -> bool {
    essence.starts_with("text/")
        || essence.ends_with("+xml")
        || essence.ends_with("+json")
        || matches!(essence, "application/javascript" | "application/json" | "application/xml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_those_that_browsers_want() {
        for (name, want) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a.CSS", "text/css; charset=utf-8"),
            ("a.min.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json; charset=utf-8"),
            ("a.js.map", "application/json; charset=utf-8"),
            ("a.svg", "image/svg+xml; charset=utf-8"),
            ("a.xml", "text/xml; charset=utf-8"),
            ("site.webmanifest", "application/manifest+json; charset=utf-8"),
            ("a.wasm", "application/wasm"),
            ("a.avif", "image/avif"),
            ("a.webp", "image/webp"),
            ("a.woff2", "font/woff2"),
            ("a.pdf", "application/pdf"),
            ("a.mp4", "video/mp4"),
            ("a.png", "image/png"),
            ("favicon.ico", "image/x-icon"),
            ("a.unknown-ending", "application/octet-stream"),
            ("LICENSE", "application/octet-stream"),
            ("a.", "application/octet-stream"),
            ("", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name.as_bytes()), want, "{name}");
        }
        assert_eq!(content_type(b"caf\xe9.txt"), "text/plain; charset=utf-8");
        assert_eq!(content_type(b"a.\xff\xfe"), "application/octet-stream");
    }
}
