//! The head of a request: what the guard sees of its bytes, what is read from it, its path, and header rules.

use divan::Bencher;
use divan::counter::BytesCount;
use doorward::base::network::Networks;
use doorward::edge::site::Edits;
use doorward::http::guard::Guard;
use doorward::http::path::CanonicalPath;
use doorward::http::request::{Arrival, ClientRequest, HeadLimits, Scheme, Trust};
use http::{HeaderMap, HeaderName, HeaderValue, Request};

/// As they are by default.
const LIMITS: HeadLimits = HeadLimits { max_uri: 8 << 10, max_headers: 100, max_header_size: 32 << 10 };

/// What a browser sends.
pub const BROWSER: [(&str, &str); 12] = [
    ("host", "www.example.org"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("referer", "https://www.example.org/articles/"),
    ("connection", "keep-alive"),
    ("cookie", "session=0123456789abcdef0123456789abcdef; theme=dark; seen=1"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
    ("priority", "u=0, i"),
];

/// As many fields as a head may have, and about as long as it may be.
fn many() -> Vec<(String, String)> {
    let host = ("host".to_owned(), "www.example.org".to_owned());
    (1..LIMITS.max_headers).map(|at| (format!("x-field-{at}"), "v".repeat(300))).chain([host]).collect()
}

/// Fields that other fields name as such of the connection alone: each has to be found and taken out.
fn named() -> Vec<(String, String)> {
    let names: Vec<String> = (0..98).map(|at| format!("x-{at}")).collect();
    let mut fields: Vec<(String, String)> = names.iter().map(|name| (name.clone(), "v".into())).collect();
    fields.extend([("connection".to_owned(), names.join(", ")), ("host".to_owned(), "www.example.org".to_owned())]);
    fields
}

fn browser() -> Vec<(String, String)> {
    BROWSER.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

fn bytes(fields: &[(String, String)]) -> Vec<u8> {
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET /articles/2026/a-title?page=2 HTTP/1.1\r\n{lines}\r\n").into_bytes()
}

/// Shows a head to the guard in parts of so many bytes, as a connection does.
fn guard(bencher: Bencher<'_, '_>, head: &[u8], part: usize) {
    let inspect = || {
        let (mut guard, mut shown) = (Guard::new(LIMITS), 0);
        while guard.heads() == 0 {
            shown = (shown + part).min(head.len());
            let step = guard.inspect(divan::black_box(&head[..shown]));
            assert!(step.refusal.is_none() && (shown < head.len() || step.pass == head.len()));
        }
    };
    bencher.counter(BytesCount::new(head.len())).bench_local(inspect);
}

#[divan::bench]
fn guard_browser(bencher: Bencher<'_, '_>) {
    let head = bytes(&browser());
    guard(bencher, &head, head.len());
}

#[divan::bench]
fn guard_at_the_limits(bencher: Bencher<'_, '_>) {
    let head = bytes(&many());
    guard(bencher, &head, head.len());
}

#[divan::bench]
fn guard_byte_by_byte(bencher: Bencher<'_, '_>) {
    guard(bencher, &bytes(&browser()), 1);
}

#[divan::bench]
fn guard_byte_by_byte_at_the_limits(bencher: Bencher<'_, '_>) {
    guard(bencher, &bytes(&many()), 1);
}

/// From what hyper has parsed to what a back end is sent.
fn read_and_forward(bencher: Bencher<'_, '_>, fields: &[(String, String)]) {
    let headers = fields.iter().map(|(name, value)| {
        (HeaderName::try_from(name.as_str()).unwrap(), HeaderValue::try_from(value.as_str()).unwrap())
    });
    let headers: HeaderMap = headers.collect();
    let trust = Trust {
        proxies: Networks(Vec::new()),
        header: HeaderName::from_static("x-forwarded-for"),
        cloudflare: Networks(Vec::new()),
    };
    let arrival = Arrival {
        peer: "192.0.2.7:5000".parse().unwrap(),
        local: "192.0.2.1:443".parse().unwrap(),
        scheme: Scheme::Https,
        unnamed: false,
    };
    let input = || {
        let mut request = Request::builder().uri("/articles/2026/a-title?page=2");
        *request.headers_mut().unwrap() = headers.clone();
        request.body(()).unwrap().into_parts().0
    };
    bencher.with_inputs(input).bench_local_values(|head| {
        ClientRequest::read(head, None, arrival, &trust, LIMITS).unwrap().forward(None, false)
    });
}

#[divan::bench]
fn request_browser(bencher: Bencher<'_, '_>) {
    read_and_forward(bencher, &browser());
}

#[divan::bench]
fn request_at_the_limits(bencher: Bencher<'_, '_>) {
    read_and_forward(bencher, &many());
}

#[divan::bench]
fn request_with_all_fields_named_by_connection(bencher: Bencher<'_, '_>) {
    read_and_forward(bencher, &named());
}

/// Takes it or refuses it.
fn path(bencher: Bencher<'_, '_>, raw: &str, is_taken: bool) {
    assert_eq!(CanonicalPath::parse(raw).is_ok(), is_taken, "{raw}");
    bencher.counter(BytesCount::of_str(raw)).bench_local(|| CanonicalPath::parse(divan::black_box(raw)));
}

#[divan::bench]
fn path_short(bencher: Bencher<'_, '_>) {
    path(bencher, "/articles/2026/a-title", true);
}

#[divan::bench]
fn path_encoded(bencher: Bencher<'_, '_>) {
    path(bencher, "/caf%C3%A9/%E6%97%A5%E6%9C%AC%E8%AA%9E/a%20title", true);
}

#[divan::bench]
fn path_long(bencher: Bencher<'_, '_>) {
    path(bencher, &format!("/{}", "a".repeat(8000)), true);
}

#[divan::bench]
fn path_hostile_slashes(bencher: Bencher<'_, '_>) {
    path(bencher, &"/".repeat(8000), true);
}

#[divan::bench]
fn path_hostile_dots(bencher: Bencher<'_, '_>) {
    path(bencher, &"/a/..".repeat(1600), true);
}

#[divan::bench]
fn path_hostile_encoded_dots(bencher: Bencher<'_, '_>) {
    path(bencher, &"/a/%2e%2e".repeat(888), true);
}

#[divan::bench]
fn path_hostile_escapes(bencher: Bencher<'_, '_>) {
    path(bencher, &format!("/{}", "%41".repeat(2666)), true);
}

#[divan::bench]
fn path_hostile_bad_end(bencher: Bencher<'_, '_>) {
    path(bencher, &format!("/{}%", "a".repeat(8000)), false);
}

/// Rules of a site: that many fields are removed, and that many set.
#[divan::bench(args = [1, 10, 50])]
fn header_rules(bencher: Bencher<'_, '_>, count: usize) {
    let field = |at: usize| {
        (HeaderName::try_from(format!("x-set-{at}")).unwrap(), HeaderValue::from_static("max-age=31536000"))
    };
    let edits = Edits {
        remove: (0..count).map(|at| HeaderName::try_from(format!("x-field-{at}")).unwrap()).collect(),
        set: (0..count).map(field).collect(),
        add: Vec::new(),
    };
    let fields = many()
        .into_iter()
        .map(|(name, value)| (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap()));
    let headers: HeaderMap = fields.collect();
    bencher.with_inputs(|| headers.clone()).bench_local_values(|mut headers| {
        edits.apply(&mut headers);
        headers
    });
}
