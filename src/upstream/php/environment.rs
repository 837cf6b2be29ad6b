//! The variables that PHP gets (RFC 3875, section 4.1), and with them the whole head of a FastCGI request.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;

use ::http::{HeaderName, HeaderValue, Method, Version, header};
use bytes::{Bytes, BytesMut};

use super::Script;
use crate::http::request::{Scheme, UpstreamRequest, effective_port};
use crate::upstream::fastcgi::params::{PairTooLong, Params};
use crate::upstream::fastcgi::record;

/// What of the settings goes into every request.
pub struct Fixed<'a> {
    /// `SERVER_SOFTWARE`.
    pub software: &'a str,
    /// Variables of the operator's; they replace ours.
    pub params: &'a BTreeMap<String, String>,
    /// Whether the connection is to stay open.
    pub keep: bool,
}

/// BEGIN_REQUEST and PARAMS of a request with a body of `length` bytes. Fails when a field is larger than PHP can take.
pub fn head(request: &UpstreamRequest, script: &Script, length: u64, fixed: &Fixed<'_>) -> Result<Bytes, PairTooLong> {
    let mut out = BytesMut::with_capacity(2048);
    record::put_begin(&mut out, fixed.keep);
    let mut variables = Variables { params: Params::new(&mut out), replaced: fixed.params };
    script_variables(&mut variables, request, script)?;
    request_variables(&mut variables, request, length)?;
    connection_variables(&mut variables, request, fixed.software)?;
    field_variables(&mut variables, request)?;
    let Variables { mut params, .. } = variables;
    for (name, value) in fixed.params {
        params.push(name.as_bytes(), value.as_bytes())?;
    }
    params.finish();
    Ok(out.freeze())
}

struct Variables<'a> {
    params: Params<'a>,
    replaced: &'a BTreeMap<String, String>,
}

impl Variables<'_> {
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), PairTooLong> {
        // PHP is never given a name twice: which of the two it would take is not written anywhere.
        if self.replaced.contains_key(name) { Ok(()) } else { self.params.push(name.as_bytes(), value) }
    }
}

fn script_variables(to: &mut Variables<'_>, request: &UpstreamRequest, script: &Script) -> Result<(), PairTooLong> {
    let root = script.document_root.as_os_str().as_bytes();
    to.set("SCRIPT_FILENAME", script.file.as_os_str().as_bytes())?;
    to.set("DOCUMENT_ROOT", root)?;
    to.set("SCRIPT_NAME", &script.name)?;
    to.set("DOCUMENT_URI", &[&script.name[..], &script.path_info].concat())?;
    if !script.path_info.is_empty() {
        to.set("PATH_INFO", &script.path_info)?;
        to.set("PATH_TRANSLATED", &[root, &script.path_info].concat())?;
    }
    let query = request.query.as_deref();
    to.set("QUERY_STRING", query.unwrap_or_default().as_bytes())?;
    let path = request.original.encoded();
    match query {
        // A question mark with nothing behind it is part of what the client asked for.
        Some(query) => to.set("REQUEST_URI", format!("{path}?{query}").as_bytes()),
        None => to.set("REQUEST_URI", path.as_bytes()),
    }
}

fn request_variables(to: &mut Variables<'_>, request: &UpstreamRequest, length: u64) -> Result<(), PairTooLong> {
    to.set("REQUEST_METHOD", request.method.as_str().as_bytes())?;
    // nginx sets both to nothing where there is nothing, and applications have come to expect them.
    to.set("CONTENT_TYPE", &joined(request, &header::CONTENT_TYPE, b", "))?;
    let bodiless =
        length == 0 && matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
    to.set("CONTENT_LENGTH", if bodiless { String::new() } else { length.to_string() }.as_bytes())
}

fn connection_variables(to: &mut Variables<'_>, request: &UpstreamRequest, software: &str) -> Result<(), PairTooLong> {
    let client = &request.client;
    let protocol = match request.version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    };
    to.set("SERVER_PROTOCOL", protocol.as_bytes())?;
    to.set("REQUEST_SCHEME", client.scheme.as_str().as_bytes())?;
    if client.scheme == Scheme::Https {
        to.set("HTTPS", b"on")?;
    }
    to.set("GATEWAY_INTERFACE", b"CGI/1.1")?;
    to.set("SERVER_SOFTWARE", software.as_bytes())?;
    to.set("REMOTE_ADDR", bare(client.address).as_bytes())?;
    to.set("REMOTE_PORT", client.arrival.peer.port().to_string().as_bytes())?;
    to.set("SERVER_ADDR", bare(client.arrival.local.ip()).as_bytes())?;
    to.set("SERVER_PORT", effective_port(&request.authority, client.scheme).to_string().as_bytes())?;
    to.set("SERVER_NAME", request.server_name.as_ref().unwrap_or(&request.authority.host).as_str().as_bytes())?;
    if let Some(user) = &request.user {
        // RFC 3875, section 4.1.11: where AUTH_TYPE is Basic, "the value of the REMOTE_USER meta-variable MUST be set
        // to the user-ID supplied".
        to.set("AUTH_TYPE", b"Basic")?;
        to.set("REMOTE_USER", user)?;
    }
    // PHP built with --enable-force-cgi-redirect runs nothing without it.
    to.set("REDIRECT_STATUS", b"200")
}

fn field_variables(to: &mut Variables<'_>, request: &UpstreamRequest) -> Result<(), PairTooLong> {
    to.set("HTTP_HOST", request.authority.to_string().as_bytes())?;
    let mut variable = String::with_capacity(40);
    for name in request.headers.keys().filter(|name| is_passed(name)) {
        variable.clear();
        variable.push_str("HTTP_");
        variable.extend(name.as_str().chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }));
        let delimiter: &[u8] = if name == header::COOKIE { b"; " } else { b", " };
        let mut values = request.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(only), None) => to.set(&variable, only.as_bytes())?,
            _ => to.set(&variable, &joined(request, name, delimiter))?,
        }
    }
    Ok(())
}

/// RFC 3875, section 4.1.18 leaves out what has a variable of its own, and what says how the body came. `Proxy` would
/// become HTTP_PROXY, which libraries take for the operator's; a handshake means nothing to PHP.
fn is_passed(name: &HeaderName) -> bool {
    const NOT_PASSED: [HeaderName; 9] = [
        header::HOST,
        header::CONTENT_TYPE,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::EXPECT,
    ];
    let text = name.as_str();
    !NOT_PASSED.contains(name)
        && text != "proxy"
        && !text.starts_with("sec-websocket-")
        // X_A and X-A are the same variable.
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn joined(request: &UpstreamRequest, name: &HeaderName, delimiter: &[u8]) -> Vec<u8> {
    let values: Vec<&[u8]> = request.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    values.join(delimiter)
}

/// An IPv4 client of a socket for both families is still an IPv4 client.
fn bare(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

#[cfg(test)]
mod tests {
    use ::http::{HeaderMap, Request};

    use super::super::tests::request;
    use super::*;
    use crate::upstream::fastcgi::params::tests::decode;

    fn script(path_info: &str) -> Script {
        Script {
            document_root: "/srv/app/public".into(),
            file: "/srv/app/public/index.php".into(),
            name: b"/index.php".to_vec(),
            path_info: path_info.as_bytes().to_vec(),
        }
    }

    fn variables(
        request: &UpstreamRequest,
        script: &Script,
        length: u64,
        params: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let fixed = Fixed { software: "doorward", params, keep: false };
        let head = head(request, script, length, &fixed).unwrap();
        let pairs = decode(&head[16..]).unwrap();
        let count = pairs.len();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let map: BTreeMap<_, _> = pairs.into_iter().map(|(name, value)| (text(name), text(value))).collect();
        assert_eq!(map.len(), count, "a name was sent twice");
        map
    }

    #[test]
    fn the_variables_are_those_that_php_expects() {
        let request = request(
            Request::post("/a%20b/x?q=1&r=%2F")
                .header("host", "app.test:8443")
                .header("content-type", "text/plain")
                .header("accept-language", "de")
                .header("x-a", "1")
                .header("x-a", "2"),
        );
        let seen = variables(&request, &script("/x"), 7, &BTreeMap::new());
        let expected = [
            ("CONTENT_LENGTH", "7"),
            ("CONTENT_TYPE", "text/plain"),
            ("DOCUMENT_ROOT", "/srv/app/public"),
            ("DOCUMENT_URI", "/index.php/x"),
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("HTTPS", "on"),
            ("HTTP_ACCEPT_LANGUAGE", "de"),
            ("HTTP_HOST", "app.test:8443"),
            ("HTTP_X_A", "1, 2"),
            ("HTTP_X_FORWARDED_FOR", "192.0.2.7"),
            ("HTTP_X_FORWARDED_HOST", "app.test:8443"),
            ("HTTP_X_FORWARDED_PORT", "8443"),
            ("HTTP_X_FORWARDED_PROTO", "https"),
            ("HTTP_X_REAL_IP", "192.0.2.7"),
            ("PATH_INFO", "/x"),
            ("PATH_TRANSLATED", "/srv/app/public/x"),
            ("QUERY_STRING", "q=1&r=%2F"),
            ("REDIRECT_STATUS", "200"),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("REMOTE_PORT", "5000"),
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_SCHEME", "https"),
            ("REQUEST_URI", "/a%20b/x?q=1&r=%2F"),
            ("SCRIPT_FILENAME", "/srv/app/public/index.php"),
            ("SCRIPT_NAME", "/index.php"),
            ("SERVER_ADDR", "192.0.2.1"),
            ("SERVER_NAME", "app.test"),
            ("SERVER_PORT", "8443"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("SERVER_SOFTWARE", "doorward"),
        ];
        let expected: BTreeMap<_, _> = expected.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_plain_get_has_no_length_no_path_info_and_no_https() {
        let mut request = request(Request::get("/").header("host", "app.test"));
        request.client.scheme = Scheme::Http;
        request.version = Version::HTTP_2;
        let seen = variables(&request, &script(""), 0, &BTreeMap::new());
        assert_eq!(seen["CONTENT_LENGTH"], "");
        assert_eq!(seen["CONTENT_TYPE"], "");
        assert_eq!(seen["SERVER_PORT"], "80");
        assert_eq!(seen["SERVER_PROTOCOL"], "HTTP/2.0");
        for name in ["HTTPS", "PATH_INFO", "PATH_TRANSLATED"] {
            assert!(!seen.contains_key(name), "{name}");
        }
    }

    #[test]
    fn no_field_becomes_a_variable_of_cgi() {
        let mut request = request(Request::get("/").header("host", "app.test"));
        request.headers = HeaderMap::new();
        for name in [
            "proxy",
            "content-length",
            "content-type",
            "transfer-encoding",
            "x_forwarded_for",
            "script_filename",
            "sec-websocket-key",
            "host",
        ] {
            request.headers.append(HeaderName::from_static(name), HeaderValue::from_static("evil"));
        }
        request.headers.append("script-filename", HeaderValue::from_static("evil"));
        request.headers.append("cookie", HeaderValue::from_static("a=1"));
        request.headers.append("cookie", HeaderValue::from_static("b=2"));
        let seen = variables(&request, &script(""), 0, &BTreeMap::new());
        let evil: Vec<_> = seen.iter().filter(|(_, v)| *v == "evil").map(|(n, _)| n.as_str()).collect();
        assert_eq!(evil, ["CONTENT_TYPE", "HTTP_SCRIPT_FILENAME"]);
        assert_eq!(seen["HTTP_COOKIE"], "a=1; b=2");
        assert_eq!(seen["HTTP_HOST"], "app.test");
    }

    #[test]
    fn the_server_is_not_named_by_a_client_that_no_site_knows() {
        let mut request = request(Request::get("/").header("host", "evil.test"));
        request.server_name = Some(crate::base::host::Host::parse("app.test").unwrap());
        let seen = variables(&request, &script(""), 0, &BTreeMap::new());
        assert_eq!((seen["SERVER_NAME"].as_str(), seen["HTTP_HOST"].as_str()), ("app.test", "evil.test"));
    }

    #[test]
    fn the_operators_variables_win() {
        let request = request(Request::get("/").header("host", "app.test"));
        let params = [("HTTPS", "off"), ("APP_ENV", "prod")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        let seen = variables(&request, &script(""), 0, &params);
        assert_eq!((seen["HTTPS"].as_str(), seen["APP_ENV"].as_str()), ("off", "prod"));
    }
}
