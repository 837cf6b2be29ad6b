//! Parameters to PHP, and the records that come back.

use bytes::{Bytes, BytesMut};
use divan::Bencher;
use divan::counter::BytesCount;
use doorward::upstream::fastcgi::answer::HeadReader;
use doorward::upstream::fastcgi::params::Params;
use doorward::upstream::fastcgi::record::{Decoder, Type, put_begin, put_stream, put_stream_end};

use crate::head::BROWSER;

/// What a request of a browser is told in.
#[divan::bench]
fn params(bencher: Bencher<'_, '_>) {
    let server = (0..24).map(|at| (format!("SERVER_VARIABLE_{at}"), "/srv/app/public/index.php".to_owned()));
    let fields =
        BROWSER.map(|(name, value)| (format!("HTTP_{}", name.to_uppercase().replace('-', "_")), value.to_owned()));
    let pairs: Vec<(String, String)> = server.chain(fields).collect();
    bencher.bench_local(|| encode(&pairs));
}

/// Values that fill records.
#[divan::bench]
fn params_long(bencher: Bencher<'_, '_>) {
    let pairs: Vec<(String, String)> = (0..100).map(|at| (format!("HTTP_X_{at}"), "v".repeat(300))).collect();
    bencher.bench_local(|| encode(&pairs));
}

fn encode(pairs: &[(String, String)]) -> BytesMut {
    let mut out = BytesMut::with_capacity(2048);
    put_begin(&mut out, false);
    let mut params = Params::new(&mut out);
    for (name, value) in divan::black_box(pairs) {
        params.push(name.as_bytes(), value.as_bytes()).unwrap();
    }
    params.finish();
    out
}

/// An answer of `length` bytes in records of `record` bytes each.
fn answer(length: usize, record: usize) -> BytesMut {
    let mut out = BytesMut::new();
    for part in vec![b'x'; length].chunks(record) {
        put_stream(&mut out, Type::Stdout, part);
    }
    put_stream_end(&mut out, Type::Stdout);
    out
}

fn decode(bencher: Bencher<'_, '_>, stream: &BytesMut, length: usize) {
    bencher.counter(BytesCount::new(length)).with_inputs(|| stream.clone()).bench_local_values(|mut buffer| {
        let (mut decoder, mut pieces) = (Decoder::default(), 0);
        while decoder.next(&mut buffer).unwrap().is_some() {
            pieces += 1;
        }
        assert!(pieces > 0 && buffer.is_empty());
        pieces
    });
}

#[divan::bench]
fn decode_records(bencher: Bencher<'_, '_>) {
    decode(bencher, &answer(64 << 10, 8 << 10), 64 << 10);
}

/// A byte in each record, with seven bytes behind it that say nothing.
#[divan::bench]
fn decode_one_byte_records(bencher: Bencher<'_, '_>) {
    decode(bencher, &answer(4 << 10, 1), 4 << 10);
}

/// As it comes off a socket that gives a byte at a time.
#[divan::bench]
fn decode_byte_by_byte(bencher: Bencher<'_, '_>) {
    let stream = answer(4 << 10, 1 << 10);
    bencher.counter(BytesCount::new(stream.len())).bench_local(|| {
        let (mut decoder, mut buffer, mut got) = (Decoder::default(), BytesMut::new(), 0);
        for byte in divan::black_box(&stream) {
            buffer.extend_from_slice(&[*byte]);
            while decoder.next(&mut buffer).unwrap().is_some() {
                got += 1;
            }
        }
        assert!(got > 0);
    });
}

const HEAD: &str = "Content-Type: text/html; charset=UTF-8\r\nCache-Control: no-cache, private\r\n\
    Date: Sun, 22 Nov 2026 12:00:00 GMT\r\nSet-Cookie: session=0123456789abcdef; path=/; httponly; samesite=lax\r\n\
    X-Powered-By: PHP/8.2\r\n\r\n";

fn read_head(bencher: Bencher<'_, '_>, head: &str, part: usize) {
    let parts: Vec<Bytes> = head.as_bytes().chunks(part).map(Bytes::copy_from_slice).collect();
    bencher.counter(BytesCount::of_str(head)).bench_local(|| {
        let mut reader = HeadReader::new(64 << 10);
        let read = divan::black_box(&parts).iter().find_map(|part| reader.push(part.clone()).unwrap());
        read.expect("a head")
    });
}

#[divan::bench]
fn answer_head(bencher: Bencher<'_, '_>) {
    read_head(bencher, HEAD, HEAD.len());
}

/// As many fields as fit, a byte at a time.
#[divan::bench]
fn answer_head_hostile(bencher: Bencher<'_, '_>) {
    let fields: String = (0..1000).map(|at| format!("X-{at}: {}\r\n", "v".repeat(40))).collect();
    read_head(bencher, &(fields + "\r\n"), 1);
}
