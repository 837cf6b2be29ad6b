//! Name-value pairs (FastCGI 1.0, section 3.4) in PARAMS records.

use bytes::{BufMut, BytesMut};

use super::record::{self, HEADER, Header, MAX_CONTENT, REQUEST_ID, Type};

/// Puts pairs into PARAMS records. The protocol sees one stream and would let a pair run over a record's end, but PHP
/// reads each record by itself, so a pair that does not fit into the open record begins the next one.
pub struct Params<'a> {
    out: &'a mut BytesMut,
    /// Where the open record's header is.
    start: usize,
}

/// A pair that is larger than a record: PHP cannot be given it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the variable {name} with {size} bytes does not fit into a FastCGI record")]
pub struct PairTooLong {
    /// The variable's name, cut to 64 bytes.
    pub name: String,
    /// Bytes of name and value.
    pub size: usize,
}

impl<'a> Params<'a> {
    /// Opens the stream at the end of `out`.
    pub fn new(out: &'a mut BytesMut) -> Params<'a> {
        let start = open(out);
        Params { out, start }
    }

    /// Puts one pair.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), PairTooLong> {
        let size = length_size(name.len()) + length_size(value.len()) + name.len() + value.len();
        if size > MAX_CONTENT {
            let name = String::from_utf8_lossy(name.get(..64).unwrap_or(name)).into_owned();
            return Err(PairTooLong { name, size });
        }
        if self.content() + size > MAX_CONTENT {
            self.close();
            self.start = open(self.out);
        }
        self.out.reserve(size);
        put_length(self.out, name.len());
        put_length(self.out, value.len());
        self.out.put_slice(name);
        self.out.put_slice(value);
        Ok(())
    }

    /// Ends the stream.
    pub fn finish(mut self) {
        if self.content() == 0 {
            // The empty record that was opened is itself the end.
            return;
        }
        self.close();
        record::put_stream_end(self.out, Type::Params);
    }

    fn content(&self) -> usize {
        self.out.len() - self.start - HEADER
    }

    /// Pads the open record and writes its length into its header.
    fn close(&mut self) {
        let content = self.content();
        let padding = record::padding(content);
        self.out.put_bytes(0, usize::from(padding));
        let content = u16::try_from(content).unwrap_or(u16::MAX);
        let header = Header { kind: Type::Params, id: REQUEST_ID, content, padding }.encode();
        if let Some(place) = self.out.get_mut(self.start..self.start + HEADER) {
            place.copy_from_slice(&header);
        }
    }
}

fn open(out: &mut BytesMut) -> usize {
    let start = out.len();
    record::put_stream_end(out, Type::Params);
    start
}

fn length_size(length: usize) -> usize {
    if length < 128 { 1 } else { 4 }
}

/// Section 3.4: one byte up to 127, else four with the highest bit set.
fn put_length(out: &mut BytesMut, length: usize) {
    match u8::try_from(length) {
        Ok(short @ ..128) => out.put_u8(short),
        _ => out.put_u32(u32::try_from(length).unwrap_or(u32::MAX) | 0x8000_0000),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads what PHP would: each record by itself.
    pub(crate) fn decode(mut records: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut pairs = Vec::new();
        loop {
            let header = Header::decode(*records.first_chunk()?).ok()?;
            assert_eq!(header.kind, Type::Params);
            let (content, padding) = (usize::from(header.content), usize::from(header.padding));
            assert!(content + padding <= 65535);
            let mut content = records.get(HEADER..HEADER + content)?;
            records = records.get(HEADER + content.len() + padding..)?;
            if header.content == 0 {
                return records.is_empty().then_some(pairs);
            }
            while !content.is_empty() {
                let (name, value) = (take_length(&mut content)?, take_length(&mut content)?);
                let (name, rest) = content.split_at_checked(name)?;
                let (value, rest) = rest.split_at_checked(value)?;
                pairs.push((name.to_vec(), value.to_vec()));
                content = rest;
            }
        }
    }

    fn take_length(bytes: &mut &[u8]) -> Option<usize> {
        let (first, rest) = bytes.split_first()?;
        if *first < 128 {
            *bytes = rest;
            return Some(usize::from(*first));
        }
        let (four, rest) = bytes.split_first_chunk::<4>()?;
        *bytes = rest;
        Some((u32::from_be_bytes(*four) & 0x7fff_ffff) as usize)
    }

    fn encode(pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<BytesMut, PairTooLong> {
        let mut out = BytesMut::new();
        let mut params = Params::new(&mut out);
        for (name, value) in pairs {
            params.push(name, value)?;
        }
        params.finish();
        Ok(out)
    }

    #[test]
    fn lengths_around_their_limits_read_back() {
        for length in [0, 1, 126, 127, 128, 129, 255, 256, 65000, MAX_CONTENT - 8] {
            let pairs = vec![(vec![b'A'; length.min(200)], vec![b'v'; length.saturating_sub(200)])];
            assert_eq!(decode(&encode(&pairs).unwrap()), Some(pairs));
        }
    }

    #[test]
    fn no_pairs_are_one_empty_record() {
        assert_eq!(decode(&encode(&[]).unwrap()), Some(vec![]));
    }

    #[test]
    fn a_pair_that_fits_no_record_is_named() {
        let error = encode(&[(b"HTTP_X".to_vec(), vec![b'v'; 70_000])]).unwrap_err();
        assert_eq!(error.name, "HTTP_X");
        let largest = MAX_CONTENT - 1 - 4 - 1;
        assert!(encode(&[(b"N".to_vec(), vec![0; largest])]).is_ok());
        assert!(encode(&[(b"N".to_vec(), vec![0; largest + 1])]).is_err());
    }

    proptest! {
        #[test]
        fn any_pairs_of_any_total_size_read_back(
            sizes in proptest::collection::vec((0usize..400, 0usize..40_000), 0..20)
        ) {
            let pairs: Vec<_> = sizes.iter().map(|(n, v)| (vec![b'N'; *n], vec![b'v'; *v])).collect();
            prop_assert_eq!(decode(&encode(&pairs).unwrap()), Some(pairs));
        }
    }
}
