//! The cases, by the numbers of the Autobahn test suite.

use std::iter::repeat_n;

/// What a client writes.
#[derive(Clone)]
pub struct Case {
    pub name: String,
    /// What is written, one after the other.
    pub script: Vec<Vec<u8>>,
    /// In pieces of so many bytes.
    pub chop: usize,
    /// The extensions that are offered.
    pub offer: &'static str,
    /// Whether ws has to answer with data and 1000, so that the table itself is right.
    good: bool,
}

impl Case {
    /// Whether the table says the truth about ws.
    pub fn check(&self, got: &[u8]) {
        let normal = got.ends_with(&[0x88, 2, 0x03, 0xE8]);
        assert!(normal || !self.good, "{}: ws does not take it: {:02x?}", self.name, &got[..got.len().min(100)]);
    }
}

const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
const WHOLE: usize = usize::MAX;

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..=125 => frame.push(0x80 | u8::try_from(n).unwrap()),
        n @ 126..=65535 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(n).unwrap().to_be_bytes());
        }
        n => {
            frame.push(0x80 | 127);
            frame.extend((n as u64).to_be_bytes());
        }
    }
    frame.extend(KEY);
    frame.extend(payload.iter().zip(KEY.into_iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn text(payload: &str) -> Vec<u8> {
    frame(0x81, payload.as_bytes())
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes(), reason].concat())
}

/// Ends with a Close frame of the client's: ws answers 1000.
fn good(name: impl Into<String>, script: Vec<Vec<u8>>) -> Case {
    Case { good: true, ..odd(name, [script, vec![close(1000, b"")]].concat()) }
}

/// What ws says to it is its own affair.
fn odd(name: impl Into<String>, script: Vec<Vec<u8>>) -> Case {
    Case { name: name.into(), script, chop: WHOLE, offer: "", good: false }
}

/// Fails at some frame; a Close frame of the client's behind it, for those cases that ws would take.
fn bad(name: impl Into<String>, script: Vec<Vec<u8>>) -> Case {
    odd(name, [script, vec![close(1000, b"")]].concat())
}

/// The same in pieces. Scripts of more pieces would take minutes.
fn chopped(cases: Vec<Case>, chop: usize) -> Vec<Case> {
    let renamed = |case: Case| Case { name: format!("{} in pieces of {chop}", case.name), chop, ..case };
    let is_short = |case: &Case| case.script.iter().map(Vec::len).sum::<usize>() / chop < 100_000;
    cases.into_iter().filter(is_short).map(renamed).collect()
}

fn with_chopped(cases: Vec<Case>) -> Vec<Case> {
    [cases.clone(), chopped(cases.clone(), 1), chopped(cases, 3)].concat()
}

/// Sections 1 to 5.
pub fn framing() -> Vec<Case> {
    let mut cases = Vec::new();
    for (section, first, fill) in [(1, 0x81, b'*'), (2, 0x82, 0xFE)] {
        for (n, size) in [0, 125, 126, 127, 128, 65_535, 65_536].into_iter().enumerate() {
            let case = good(format!("1.{section}.{} {size} bytes", n + 1), vec![frame(first, &vec![fill; size])]);
            cases.extend(chopped(vec![case.clone()], 997));
            cases.push(case);
        }
    }
    cases.extend(with_chopped(pings()));
    cases.extend(with_chopped(reserved()));
    cases.extend(with_chopped(fragments()));
    cases
}

fn pings() -> Vec<Case> {
    let ten: Vec<Vec<u8>> = (0..10).map(|n| frame(0x89, format!("payload-{n}").as_bytes())).collect();
    let long = [&[0x89, 0x80 | 126, 0, 126][..], &KEY, &[0xFE; 126]].concat();
    vec![
        good("2.1 empty ping", vec![frame(0x89, b"")]),
        good("2.2 ping", vec![frame(0x89, b"Hello, world!")]),
        good("2.3 binary ping", vec![frame(0x89, &[0x00, 0xFF, 0xFE, 0xFD, 0xFC, 0xFB, 0x00, 0xFF])]),
        good("2.4 ping of 125", vec![frame(0x89, &[0xFE; 125])]),
        bad("2.5 ping of 126", vec![long]),
        good("2.7 unsolicited empty pong", vec![frame(0x8A, b"")]),
        good("2.8 unsolicited pong", vec![frame(0x8A, b"unsolicited pong payload")]),
        good("2.9 pong, then ping", vec![frame(0x8A, b"unsolicited pong payload"), frame(0x89, b"ping payload")]),
        good("2.10 ten pings", ten.clone()),
        good("2.11 ten pings and pongs between", ten.iter().flat_map(|p| [p.clone(), frame(0x8A, b"x")]).collect()),
        good("2.12 a pong of eight bytes", vec![frame(0x8A, b"12345678"), text("behind")]),
    ]
}

/// Sections 3 and 4, and what else a header can say.
fn reserved() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in 1..8_u8 {
        for (what, first) in [("text", 0x81), ("binary", 0x82), ("ping", 0x89), ("pong", 0x8A), ("close", 0x88)] {
            let frame = frame(first | bits << 4, b"small");
            cases.push(bad(format!("3.{bits} RSV on {what}"), vec![text("before"), frame, frame_ping()]));
        }
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        cases.push(bad(format!("4 opcode {opcode}, empty"), vec![frame(0x80 | opcode, b""), frame_ping()]));
        cases
            .push(bad(format!("4 opcode {opcode}"), vec![text("before"), frame(0x80 | opcode, b"data"), frame_ping()]));
        cases.push(bad(
            format!("4 opcode {opcode}, not final"),
            vec![text("before"), frame(opcode, b"data"), frame_ping()],
        ));
    }
    let masked_key = [0; 4];
    cases.extend([
        bad("unmasked text", vec![text("before"), b"\x81\x05Hello".to_vec(), frame_ping()]),
        bad("unmasked ping", vec![b"\x89\x00".to_vec()]),
        bad("16 bit length for 5 bytes", vec![[&[0x81, 0xFE, 0, 5][..], &masked_key, b"Hello"].concat()]),
        bad(
            "64 bit length for 5 bytes",
            vec![[&[0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0, 5][..], &masked_key, b"Hello"].concat()],
        ),
        bad(
            "64 bit length with the top bit",
            vec![[&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 5][..], &masked_key].concat()],
        ),
        bad("a message of exabytes", vec![[&[0x82, 0xFF, 0x7F, 0, 0, 0, 0, 0, 0, 5][..], &masked_key].concat()]),
        bad("an HTTP request", vec![b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n".to_vec()]),
    ]);
    cases
}

fn frame_ping() -> Vec<u8> {
    frame(0x89, b"behind")
}

/// Section 5.
fn fragments() -> Vec<Case> {
    let (first, middle, last) = (frame(0x01, b"fragment1"), frame(0x00, b"fragment2"), frame(0x80, b"fragment3"));
    let ping = frame(0x89, b"ping payload");
    let go = |name: &str, script: &[&Vec<u8>]| good(name, script.iter().map(|frame| (*frame).clone()).collect());
    let no = |name: &str, script: &[&Vec<u8>]| bad(name, script.iter().map(|frame| (*frame).clone()).collect());
    let empty = [frame(0x01, b""), frame(0x00, b""), frame(0x80, b"")];
    vec![
        no("5.1 ping in two fragments", &[&frame(0x09, b"frag"), &last]),
        no("5.2 pong in two fragments", &[&frame(0x0A, b"frag"), &last]),
        no("a close that is not final", &[&frame(0x08, &1000_u16.to_be_bytes())]),
        go("5.3 text in two", &[&first, &last]),
        go("5.5 text in three", &[&first, &middle, &last]),
        go("5.6 ping between", &[&first, &ping, &last]),
        go("5.7 pings between three", &[&first, &ping, &middle, &ping, &last]),
        go("5.8 pong between", &[&first, &frame(0x8A, b"12345678"), &last]),
        no("5.9 continuation of nothing", &[&last, &text("Hello")]),
        no("5.12 unfinished continuation of nothing", &[&middle, &text("Hello")]),
        no("5.15 continuation behind a message", &[&first, &last, &middle, &text("Hello")]),
        no("5.16 again and again", &[&frame(0x00, b"x"), &first, &last, &frame(0x00, b"x"), &first, &last]),
        no("5.18 two texts at once", &[&first, &frame(0x01, b"another")]),
        no("5.18 text within binary", &[&frame(0x02, b"x"), &text("Hello")]),
        go("5.19 pings all over", &[&first, &middle, &ping, &middle, &middle, &ping, &last]),
        go("fragments without bytes", &[&empty[0], &empty[1], &empty[1], &empty[2]]),
        go("binary in three", &[&frame(0x02, &[0xFF]), &frame(0x00, b""), &frame(0x80, &[0xFE; 300])]),
        go(
            "a hundred fragments of one byte",
            &repeat_n(&frame(0x00, b"x"), 100)
                .fold(vec![&first], |mut all, next| {
                    all.push(next);
                    all
                })
                .into_iter()
                .chain([&last])
                .collect::<Vec<_>>(),
        ),
        odd("a close between fragments", vec![first.clone(), close(1000, b""), last.clone()]),
    ]
}

/// Section 6.
pub fn utf8() -> Vec<Case> {
    let mut cases = Vec::new();
    let good_ones: [&[u8]; 24] = [
        b"",
        b"Hello, world",
        "Hello-\u{b5}@\u{df}\u{f6}\u{e4}\u{fc}\u{e0}\u{e1}-UTF-8!!".as_bytes(),
        "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}".as_bytes(),
        b"\x00",
        b"\xc2\x80",
        b"\xe0\xa0\x80",
        b"\xf0\x90\x80\x80",
        b"\x7f",
        b"\xdf\xbf",
        b"\xef\xbf\xbf",
        b"\xf4\x8f\xbf\xbf",
        b"\xed\x9f\xbf",
        b"\xee\x80\x80",
        b"\xef\xbf\xbd",
        b"\xef\xbf\xbe",
        b"\xf0\x9f\xbf\xbe",
        b"\xf0\x9f\xbf\xbf",
        b"\xf0\xaf\xbf\xbe",
        b"\xf3\xbf\xbf\xbe",
        b"\xf4\x8f\xbf\xbe",
        b"\xef\xb7\x90",
        b"\xe2\x82\xac",
        "\u{1f600}\u{10ffff}".as_bytes(),
    ];
    let bad_ones: [&[u8]; 52] = [
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
        b"\xce",
        b"\xce\xba\xe1",
        b"\xce\xba\xe1\xbd",
        b"\xf8\x88\x80\x80\x80",
        b"\xfc\x84\x80\x80\x80\x80",
        b"\xf7\xbf\xbf\xbf",
        b"\xfb\xbf\xbf\xbf\xbf",
        b"\xfd\xbf\xbf\xbf\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\x80",
        b"\xbf",
        b"\x80\xbf",
        b"\x80\xbf\x80",
        b"\x80\xbf\x80\xbf",
        b"\x80\x81\x82\x83\x84\x85\x86\x87",
        b"\xc0 \xc1 \xc2 ",
        b"\xe0 \xe1 \xe2 ",
        b"\xf0 \xf1 \xf2 ",
        b"\xf8 \xf9 \xfa ",
        b"\xfc \xfd ",
        b"\xc0",
        b"\xe0\x80",
        b"\xf0\x80\x80",
        b"\xf8\x80\x80\x80",
        b"\xfc\x80\x80\x80\x80",
        b"\xdf",
        b"\xef\xbf",
        b"\xf7\xbf\xbf",
        b"\xfb\xbf\xbf\xbf",
        b"\xfd\xbf\xbf\xbf\xbf",
        b"\xc0\xe0\x80\xf0\x80\x80",
        b"\xfe",
        b"\xff",
        b"\xfe\xfe\xff\xff",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xf8\x80\x80\x80\xaf",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xf0\x80\x80\x80",
        b"\xed\xa0\x80",
        b"\xed\xad\xbf",
        b"\xed\xae\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"Hello \xff world",
    ];
    for (n, bytes) in good_ones.into_iter().enumerate() {
        cases.push(good(format!("6 valid {n}"), vec![frame(0x81, bytes)]));
        cases.push(good(format!("6 valid {n} split"), split(bytes)));
    }
    for (n, bytes) in bad_ones.into_iter().enumerate() {
        cases.push(bad(format!("6 invalid {n}"), vec![frame(0x81, bytes), frame_ping()]));
        cases.push(bad(format!("6 invalid {n} split"), [split(bytes), vec![frame_ping()]].concat()));
        cases.push(good(format!("6 invalid {n} as binary"), vec![frame(0x82, bytes)]));
    }
    let pieces = chopped(cases.iter().step_by(3).cloned().collect(), 1);
    [cases, pieces].concat()
}

/// One fragment for every byte.
fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = vec![frame(0x01, b"")];
    frames.extend(bytes.iter().map(|byte| frame(0x00, &[*byte])));
    frames.push(frame(0x80, b""));
    frames
}

/// Section 7.
pub fn closing() -> Vec<Case> {
    let ping = frame_ping();
    let mut cases = vec![
        good("7.1.1 message, then close", vec![text("Hello World!")]),
        odd("7.1.2 two closes", vec![close(1000, b""), close(1000, b"")]),
        odd("7.1.3 ping behind close", vec![close(1000, b""), ping.clone()]),
        odd("7.1.4 text behind close", vec![close(1000, b""), text("Hello World!")]),
        odd(
            "7.1.5 fragment, close, fragment",
            vec![frame(0x01, b"fragment1"), close(1000, b""), frame(0x80, b"fragment2")],
        ),
        good("7.1.6 256 KiB, then close", vec![frame(0x82, &vec![0xBA; 256 << 10]), text("Hello World!")]),
        odd("nonsense behind close", vec![close(1000, b""), b"\xff\xff\xff\xff nonsense".to_vec()]),
        odd("7.3.1 empty close", vec![frame(0x88, b"")]),
        odd("7.3.2 half a code", vec![frame(0x88, b"a")]),
        odd("7.3.3 a code", vec![close(1000, b"")]),
        odd("7.3.4 a code and a reason", vec![close(1000, b"Hello World!")]),
        odd("7.3.5 the longest reason", vec![close(1000, &[b'*'; 123])]),
        odd("7.3.6 a longer reason", vec![close(1000, &[b'*'; 124])]),
        odd("7.5.1 a reason that is not UTF-8", vec![close(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xed\xa0\x80edited")]),
        odd("a reason that ends within a character", vec![close(1000, b"\xe2\x82")]),
        odd("a reason that is UTF-8", vec![close(4000, "\u{20ac}\u{1f600}".as_bytes())]),
    ];
    let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999];
    let invalid = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535];
    for code in valid.into_iter().chain(invalid) {
        cases.push(odd(format!("7.7/7.9 code {code}"), vec![close(code, b"")]));
        cases.push(odd(format!("7.7/7.9 code {code} with a reason"), vec![text("before"), close(code, b"why")]));
    }
    with_chopped(cases)
}

/// Sections 9 and 10.
pub fn limits() -> Vec<Case> {
    let full = crate::harness::is_full();
    let largest: usize = if full { 16 << 20 } else { 1 << 20 };
    let mut cases = Vec::new();
    for (kind, first) in [("text", 0x81), ("binary", 0x82)] {
        let payload = |size: usize| -> Vec<u8> {
            if kind == "text" { vec![b'*'; size] } else { (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect() }
        };
        for size in [64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20] {
            if size <= largest {
                cases.push(good(format!("9.1/9.2 {kind} of {size}"), vec![frame(first, &payload(size))]));
            }
        }
        for piece in [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
            let script = fragmented(first, &payload(largest), piece);
            cases.push(good(format!("9.3/9.4 {kind} of {largest} in fragments of {piece}"), vec![script]));
        }
        for chop in [64, 512, 2048] {
            let case = good(format!("9.5/9.6 {kind} of 1 MiB"), vec![frame(first, &payload(1 << 20))]);
            cases.extend(chopped(vec![case], chop));
        }
        for size in [0, 16, 64, 256, 1 << 10, 4 << 10, 16 << 10] {
            let count = if full { 1000 } else { 200 };
            let script = frame(first, &payload(size)).repeat(count);
            cases.push(good(format!("9.7/9.8 {count} of {kind} of {size}"), vec![script]));
        }
    }
    cases.push(good("10.1.1 65536 bytes in fragments of 1300", vec![fragmented(0x81, &vec![b'*'; 65_536], 1300)]));
    cases
}

fn fragmented(first: u8, payload: &[u8], piece: usize) -> Vec<u8> {
    let count = payload.len().div_ceil(piece);
    let pieces = payload.chunks(piece).enumerate().map(|(n, bytes)| {
        let opcode = if n == 0 { first & 0x0F } else { 0 };
        frame(if n + 1 == count { 0x80 } else { 0 } | opcode, bytes)
    });
    pieces.collect::<Vec<_>>().concat()
}

const OFFERS: [&str; 8] = [
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; client_no_context_takeover",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=9; client_max_window_bits=9",
    "permessage-deflate; server_max_window_bits=15; client_max_window_bits=15",
    "permessage-deflate; server_no_context_takeover; server_max_window_bits=9, permessage-deflate",
    "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits=12",
];

/// Sections 12 and 13; long messages in pieces of `chop` as well.
pub fn compression(chop: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for offer in OFFERS {
        for size in [0, 16, 64, 256, 1 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10] {
            let script = (0..10).map(|n| frame(0xC1, &deflated(&words(size, n)))).collect();
            cases.push(Case { offer, ..good(format!("12/13 {offer}, ten of {size}"), script) });
        }
        let payload = deflated(&words(100_000, 1));
        let fragments = fragmented(0xC2, &payload, 1000);
        // The first carries RSV1, none of the others does (RFC 7692, section 6.1).
        let fragments = [&[fragments[0] | 0x40][..], &fragments[1..]].concat();
        cases.push(Case { offer, ..good(format!("13 {offer}, in fragments"), vec![fragments.clone()]) });
        cases.extend(chopped(vec![Case { offer, ..good(format!("13 {offer}, in fragments"), vec![fragments]) }], chop));
        let hello = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
        let between = vec![frame(0x41, &hello[..3]), frame(0x89, b"ping"), frame(0x80, &hello[3..]), text("plain")];
        cases.push(Case { offer, ..good(format!("13 {offer}, a ping between, and plain text"), between) });
        for (what, script) in [
            ("RSV1 on a ping", vec![frame(0xC9, b"ping")]),
            ("RSV1 on a continuation", vec![frame(0x41, &hello[..3]), frame(0xC0, &hello[3..])]),
            ("RSV2", vec![frame(0xA1, hello)]),
            ("what is not deflate", vec![frame(0xC1, b"\xff\xff\xff\xff\xff")]),
            ("deflated text that is not UTF-8", vec![frame(0xC1, &deflated(b"\xff\xfe"))]),
        ] {
            cases.push(Case { offer, ..bad(format!("13 {offer}, {what}"), [script, vec![frame_ping()]].concat()) });
        }
    }
    for offer in [
        "permessage-deflate; server_max_window_bits=8",
        "permessage-bzip2",
        "permessage-deflate; x=1, permessage-deflate",
    ] {
        cases.push(Case { offer, ..odd(format!("13 {offer}"), vec![text("Hello"), close(1000, b"")]) });
    }
    cases
}

fn words(size: usize, seed: usize) -> Vec<u8> {
    let words = ["socket ", "edge ", "frame ", "tunnel ", "close ", "ping "];
    let mut text = Vec::new();
    let mut n = seed;
    while text.len() < size {
        n = n * 31 % 9973 + 7;
        text.extend(words[n % words.len()].bytes());
    }
    text.truncate(size);
    text
}

/// DEFLATE without compressing (RFC 1951, section 3.2.4), as a message of permessage-deflate has it: with the empty
/// block at the end, but for its last four bytes.
fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in bytes.chunks(65_535) {
        let length = u16::try_from(piece.len()).unwrap();
        out.push(0);
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(piece);
    }
    out.push(0);
    out
}
