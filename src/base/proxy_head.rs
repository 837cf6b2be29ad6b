//! The PROXY protocol's head, versions 1 and 2: the first bytes of a connection, by which a proxy tells whose it is.
//! Read from neighbours in front, written to those behind. The specification is HAProxy's doc/proxy-protocol.txt.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the longest head of version 1, its CRLF included (section 2.1).
pub const LONGEST_V1: usize = 107;

/// Bytes of the longest head of version 2 that is read: addresses and some TLVs. A client certificate in a TLV fits.
pub const LONGEST_V2: usize = 4096;

/// The first bytes of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;

/// The TLV that holds a checksum of the head.
const TYPE_CRC32C: u8 = 0x03;

/// The version of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What a head says of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Nothing: the proxy speaks for itself, as for a health check. The connection's own addresses count.
    Nothing,
    /// It is relayed for somebody whom the proxy cannot name. The connection's own addresses count, and what else is said
    /// is a stranger's word.
    Unnamed,
    /// It is relayed.
    Relayed {
        /// The client's address.
        source: SocketAddr,
        /// The address that the client connected to.
        destination: SocketAddr,
    },
}

/// How far a head has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All bytes so far belong to a head that is not complete.
    Partial,
    /// The head is complete.
    Complete {
        /// What it says.
        said: Said,
        /// Its bytes; what follows is the client's.
        length: usize,
    },
}

/// Why bytes are no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHead {
    /// They begin like neither version.
    #[error("no PROXY head")]
    Absent,
    /// The line of version 1 does not end where it must.
    #[error("the line is longer than {LONGEST_V1} bytes")]
    LongLine,
    /// Version 2 says that it is longer than what is read.
    #[error("the head is longer than {LONGEST_V2} bytes")]
    Long,
    /// The line of version 1 is not one.
    #[error("the line is malformed")]
    Line,
    /// A version other than 2 behind version 2's signature.
    #[error("neither version 1 nor 2")]
    Version,
    /// Neither LOCAL nor PROXY.
    #[error("an unknown command")]
    Command,
    /// A family or protocol that does not exist, or datagrams.
    #[error("an unknown address family, or a protocol that is not a stream")]
    Family,
    /// The addresses are longer than the head.
    #[error("the addresses do not fit")]
    Addresses,
    /// A TLV is longer than the head.
    #[error("a TLV does not fit")]
    Tlv,
    /// The checksum is wrong.
    #[error("the checksum is wrong")]
    Checksum,
}

/// Reads the head that `bytes` begin with. The answer for a prefix of some bytes never contradicts the answer for all
/// of them.
pub fn read(bytes: &[u8]) -> Result<Progress, InvalidHead> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, wanted)| byte == wanted);
    if begins(b"PROXY ") {
        return read_v1(bytes);
    }
    if begins(&SIGNATURE) {
        return read_v2(bytes);
    }
    Err(InvalidHead::Absent)
}

/// The head for a connection from `source` to `destination`. Addresses of two families are both written as IPv6.
pub fn write(version: Version, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (from, to) = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (from @ IpAddr::V6(_), IpAddr::V4(to)) => (from, IpAddr::V6(to.to_ipv6_mapped())),
        (IpAddr::V4(from), to @ IpAddr::V6(_)) => (IpAddr::V6(from.to_ipv6_mapped()), to),
        alike => alike,
    };
    let ports = (source.port(), destination.port());
    match version {
        Version::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
        }
        Version::V2 => {
            let mut addresses = Vec::with_capacity(36);
            for address in [from, to] {
                match address {
                    IpAddr::V4(address) => addresses.extend_from_slice(&address.octets()),
                    IpAddr::V6(address) => addresses.extend_from_slice(&address.octets()),
                }
            }
            addresses.extend_from_slice(&ports.0.to_be_bytes());
            addresses.extend_from_slice(&ports.1.to_be_bytes());
            let (family, length) = if from.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            [&SIGNATURE[..], &[0x21, family, 0, length], &addresses].concat()
        }
    }
}

/// The head of a connection of our own, such as a probe: "the connection was established on purpose by the proxy
/// without being relayed" (section 2.2).
pub fn write_own(version: Version) -> Vec<u8> {
    match version {
        Version::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        Version::V2 => [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
    }
}

fn read_v1(bytes: &[u8]) -> Result<Progress, InvalidHead> {
    let within = bytes.get(..LONGEST_V1).unwrap_or(bytes);
    let Some(end) = within.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if within.len() < LONGEST_V1 { Ok(Progress::Partial) } else { Err(InvalidHead::LongLine) };
    };
    match within.get(end..).unwrap_or_default() {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if within.len() < LONGEST_V1 => return Ok(Progress::Partial),
        _ => return Err(InvalidHead::Line),
    }
    let line = within.get(..end).and_then(|line| std::str::from_utf8(line).ok()).ok_or(InvalidHead::Line)?;
    let said = line.strip_prefix("PROXY ").and_then(said_by_line).ok_or(InvalidHead::Line)?;
    Ok(Progress::Complete { said, length: end + 2 })
}

fn said_by_line(line: &str) -> Option<Said> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // Section 2.1: "the receiver must ignore anything presented before the CRLF is found".
        return Some(Said::Unnamed);
    }
    let (from, to) = (words.next()?, words.next()?);
    let (from, to) = match family {
        "TCP4" => (IpAddr::V4(from.parse().ok()?), IpAddr::V4(to.parse().ok()?)),
        "TCP6" => (IpAddr::V6(from.parse().ok()?), IpAddr::V6(to.parse().ok()?)),
        _ => return None,
    };
    let ports = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    Some(relayed(from, ports.0, to, ports.1))
}

/// A decimal number without zeroes in front, which others might read as octal.
fn port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_number)
}

fn relayed(from: IpAddr, from_port: u16, to: IpAddr, to_port: u16) -> Said {
    Said::Relayed {
        source: SocketAddr::new(from.to_canonical(), from_port),
        destination: SocketAddr::new(to.to_canonical(), to_port),
    }
}

fn read_v2(bytes: &[u8]) -> Result<Progress, InvalidHead> {
    let field = |at: usize| bytes.get(at).copied();
    let command = match field(12) {
        None => return Ok(Progress::Partial),
        // Section 2.2: the version "must always be sent as \x2 and the receiver must only accept this value".
        Some(byte) if byte >> 4 != 2 => return Err(InvalidHead::Version),
        Some(byte @ (0x20 | 0x21)) => byte,
        // "Receivers must drop connections presenting unexpected values here."
        Some(_) => return Err(InvalidHead::Command),
    };
    let Some(family) = field(13) else { return Ok(Progress::Partial) };
    if command == 0x21 && !matches!(family, 0 | 0x11 | 0x21 | 0x31) {
        return Err(InvalidHead::Family);
    }
    let (Some(high), Some(low)) = (field(14), field(15)) else { return Ok(Progress::Partial) };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_V2 {
        return Err(InvalidHead::Long);
    }
    let taken = match family {
        _ if command == 0x20 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => 0,
    };
    if length < FIXED + taken {
        return Err(InvalidHead::Addresses);
    }
    let Some(head) = bytes.get(..length) else { return Ok(Progress::Partial) };
    let body = head.get(FIXED..).unwrap_or_default();
    let said = match (command, family) {
        // LOCAL: "the receiver must accept this connection as valid and must use the real connection endpoints and
        // discard the protocol block including the family which is ignored." So for AF_UNSPEC.
        (0x20, _) => return Ok(Progress::Complete { said: Said::Nothing, length }),
        (_, 0) => return Ok(Progress::Complete { said: Said::Unnamed, length }),
        (_, 0x31) => Said::Unnamed,
        (_, 0x11) => addresses::<4>(body, |octets| IpAddr::V4(Ipv4Addr::from(octets)))?,
        _ => addresses::<16>(body, |octets| IpAddr::V6(Ipv6Addr::from(octets)))?,
    };
    check_tlvs(head, FIXED + taken)?;
    Ok(Progress::Complete { said, length })
}

fn addresses<const N: usize>(body: &[u8], address: impl Fn([u8; N]) -> IpAddr) -> Result<Said, InvalidHead> {
    let parts = || {
        let (from, rest) = body.split_first_chunk::<N>()?;
        let (to, rest) = rest.split_first_chunk::<N>()?;
        let (from_port, rest) = rest.split_first_chunk::<2>()?;
        let to_port = rest.first_chunk::<2>()?;
        Some((*from, *to, u16::from_be_bytes(*from_port), u16::from_be_bytes(*to_port)))
    };
    let (from, to, from_port, to_port) = parts().ok_or(InvalidHead::Addresses)?;
    Ok(relayed(address(from), from_port, address(to), to_port))
}

/// Walks over the TLVs from `at` on: type, length in two bytes, value. A checksum that is there MUST be verified: it is
/// the CRC32C of the head with the checksum's own bytes zeroed (section 2.2.3).
fn check_tlvs(head: &[u8], mut at: usize) -> Result<(), InvalidHead> {
    while let Some(rest) = head.get(at..).filter(|rest| !rest.is_empty()) {
        let [kind, high, low, value @ ..] = rest else { return Err(InvalidHead::Tlv) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = value.get(..length).ok_or(InvalidHead::Tlv)?;
        if *kind == TYPE_CRC32C {
            let told: [u8; 4] = value.try_into().map_err(|_| InvalidHead::Checksum)?;
            if crc32c_without(head, at + 3) != u32::from_be_bytes(told) {
                return Err(InvalidHead::Checksum);
            }
        }
        at += 3 + length;
    }
    Ok(())
}

/// CRC32C (RFC 3720, appendix B.4) of `head`, with the four bytes from `field` on taken for zeroes.
fn crc32c_without(head: &[u8], field: usize) -> u32 {
    let crc = head.iter().enumerate().fold(u32::MAX, |crc, (at, byte)| {
        let byte = if (field..field + 4).contains(&at) { 0 } else { *byte };
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    });
    !crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(bytes: &[u8]) -> Said {
        match read(bytes) {
            Ok(Progress::Complete { said, length }) => {
                assert_eq!(length, bytes.len());
                said
            }
            other => panic!("{other:?}: {bytes:?}"),
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    fn relayed_by(source: &str, destination: &str) -> Said {
        Said::Relayed { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn lines_of_version_1_are_read() {
        let line = |text: &str| complete(text.as_bytes());
        assert_eq!(line("PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n"), relayed_by("192.0.2.7:4711", "10.0.0.1:443"));
        assert_eq!(
            line("PROXY TCP6 2001:db8::7 2001:db8::1 0 65535\r\n"),
            relayed_by("[2001:db8::7]:0", "[2001:db8::1]:65535")
        );
        assert_eq!(line("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n"), relayed_by("192.0.2.7:1", "[::1]:2"));
        assert_eq!(line("PROXY UNKNOWN\r\n"), Said::Unnamed);
        assert_eq!(line("PROXY UNKNOWN 6.6.6.6 6.6.6.6 1 2\r\n"), Said::Unnamed);
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                       65535 65535\r\n";
        assert_eq!(longest.len(), LONGEST_V1);
        assert_eq!(line(longest), Said::Unnamed);
    }

    #[test]
    fn lines_that_are_none_are_refused() {
        for line in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\rX",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711 443 \r\n",
            "PROXY TCP4  192.0.2.7 10.0.0.1 4711 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 04711 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +4711 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.007 10.0.0.1 1 443\r\n",
            "PROXY TCP4 2001:db8::7 10.0.0.1 1 443\r\n",
            "PROXY TCP6 192.0.2.7 10.0.0.1 1 443\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 1 443\r\n",
            "PROXY tcp4 192.0.2.7 10.0.0.1 1 443\r\n",
            "PROXY TCP4 192.0.2.7\t10.0.0.1 1 443\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(read(line.as_bytes()), Err(InvalidHead::Line), "{line:?}");
        }
        assert_eq!(read(b"GET / HTTP/1.1\r\n"), Err(InvalidHead::Absent));
        assert_eq!(read(b"proxy TCP4"), Err(InvalidHead::Absent));
        assert_eq!(read(&[22, 3, 1]), Err(InvalidHead::Absent));
        assert_eq!(read(format!("PROXY {}", "x".repeat(200)).as_bytes()), Err(InvalidHead::LongLine));
        let at_the_edge = format!("PROXY UNKNOWN{}\r", " ".repeat(LONGEST_V1 - 14));
        assert_eq!(read(at_the_edge.as_bytes()), Err(InvalidHead::Line));
    }

    #[test]
    fn a_local_command_and_families_without_an_address_say_nothing() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 1, 187];
        assert_eq!(complete(&v2(0x21, 0x11, &four)), relayed_by("192.0.2.7:4711", "10.0.0.1:443"));
        assert_eq!(complete(&v2(0x20, 0x11, &four)), Said::Nothing);
        assert_eq!(complete(&v2(0x20, 0xff, b"whatever it is")), Said::Nothing, "the block is not looked at");
        assert_eq!(complete(&v2(0x21, 0, b"")), Said::Unnamed);
        assert_eq!(complete(&v2(0x21, 0x31, &[b'/'; 216])), Said::Unnamed);
        assert_eq!(complete(&write_own(Version::V1)), Said::Unnamed);
        assert_eq!(complete(&write_own(Version::V2)), Said::Nothing);
    }

    #[test]
    fn what_the_specification_does_not_know_is_refused() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 1, 187];
        for family in [0x12, 0x22, 0x32, 0x10, 0x01, 0x13, 0x41, 0xff] {
            assert_eq!(read(&v2(0x21, family, &four)), Err(InvalidHead::Family), "{family:#x}");
        }
        assert_eq!(read(&v2(0x22, 0x11, &four)), Err(InvalidHead::Command));
        assert_eq!(read(&v2(0x11, 0x11, &four)), Err(InvalidHead::Version));
        assert_eq!(read(&v2(0x21, 0x11, &four[..11])), Err(InvalidHead::Addresses));
        assert_eq!(read(&v2(0x21, 0x21, &four)), Err(InvalidHead::Addresses));
        assert_eq!(read(&v2(0x21, 0x31, &four)), Err(InvalidHead::Addresses));
        assert_eq!(read(&[&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat()), Err(InvalidHead::Long));
        assert_eq!(read(&[&SIGNATURE[..], &[0x20, 0x00, 0x0f, 0xf1]].concat()), Err(InvalidHead::Long));
    }

    #[test]
    fn tlvs_are_passed_over_and_must_fit() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 1, 187];
        let with = |tlvs: &[u8]| v2(0x21, 0x11, &[&four[..], tlvs].concat());
        let said = relayed_by("192.0.2.7:4711", "10.0.0.1:443");
        assert_eq!(complete(&with(&[0x02, 0, 3, b'a', b'b', b'c', 0x04, 0, 0])), said);
        assert_eq!(read(&with(&[0x02, 0, 4, b'a', b'b', b'c'])), Err(InvalidHead::Tlv));
        assert_eq!(read(&with(&[0x02, 0])), Err(InvalidHead::Tlv));
        assert_eq!(read(&with(&[TYPE_CRC32C, 0, 3, 1, 2, 3])), Err(InvalidHead::Checksum));
        let mut summed = with(&[0x02, 0, 1, b'a', TYPE_CRC32C, 0, 4, 0, 0, 0, 0]);
        let at = summed.len() - 4;
        let sum = crc32c_without(&summed, at).to_be_bytes();
        summed[at..].copy_from_slice(&sum);
        assert_eq!(complete(&summed), said);
        summed[20] ^= 1;
        assert_eq!(read(&summed), Err(InvalidHead::Checksum));
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, appendix B.4: 32 bytes of zeroes, and 32 of ones; a field behind the end blanks nothing.
        assert_eq!(crc32c_without(&[0; 32], 100).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c_without(&[0xff; 32], 100).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(crc32c_without(b"123456789", 100), 0xe306_9283);
    }

    #[test]
    fn addresses_of_two_families_become_one() {
        let line = |from: &str, to: &str| {
            String::from_utf8(write(Version::V1, from.parse().unwrap(), to.parse().unwrap())).unwrap()
        };
        assert_eq!(line("192.0.2.7:1", "10.0.0.1:2"), "PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n");
        assert_eq!(line("[::ffff:192.0.2.7]:1", "10.0.0.1:2"), "PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n");
        assert_eq!(line("[2001:db8::7]:0", "10.0.0.1:2"), "PROXY TCP6 2001:db8::7 ::ffff:10.0.0.1 0 2\r\n");
        assert_eq!(line("192.0.2.7:1", "[::1]:2"), "PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n");
    }

    fn version() -> impl Strategy<Value = Version> {
        prop_oneof![Just(Version::V1), Just(Version::V2)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(version in version(), from: SocketAddr, to: SocketAddr, rest: Vec<u8>) {
            let head = write(version, from, to);
            let said = relayed(from.ip(), from.port(), to.ip(), to.port());
            let whole = [&head[..], &rest].concat();
            prop_assert_eq!(read(&whole), Ok(Progress::Complete { said, length: head.len() }));
            for cut in 0..head.len() {
                prop_assert_eq!(read(&head[..cut]), Ok(Progress::Partial), "cut at {}", cut);
            }
        }

        #[test]
        fn a_prefix_never_contradicts_the_whole(
            start in prop_oneof![
                Just(b"PROXY TCP4 1.2.3.4 ".to_vec()),
                Just([&SIGNATURE[..], &[0x21, 0x11, 0]].concat()),
                Just(SIGNATURE.to_vec()),
                Just(Vec::new()),
            ],
            rest in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b' ')], 0..200),
        ) {
            let bytes = [start, rest].concat();
            let whole = read(&bytes);
            for cut in 0..bytes.len() {
                match read(&bytes[..cut]) {
                    Ok(Progress::Partial) => {}
                    Ok(complete @ Progress::Complete { length, .. }) => {
                        prop_assert!(length <= cut);
                        prop_assert_eq!(Ok(complete), whole);
                    }
                    Err(_) => prop_assert!(whole.is_err(), "cut at {}: {:?}", cut, whole),
                }
            }
        }
    }
}
