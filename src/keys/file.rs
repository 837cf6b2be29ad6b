//! Reading the small files that hold keys and certificates.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// The longest file that is read, in bytes. A chain of ten certificates has about 20 KiB.
pub const LONGEST: u64 = 1 << 20;

/// What a file held at one moment.
#[derive(Debug)]
pub struct Contents {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its owner, mode and size.
    pub metadata: Metadata,
}

/// Reads a regular file of at most [`LONGEST`] bytes, through symbolic links.
///
/// # Errors
/// The file is absent, may not be read, is no regular file, or is too long.
pub fn read(path: &Path) -> io::Result<Contents> {
    let regular = |metadata: Metadata| match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    };
    // Before the open: opening a FIFO waits for its writer, for ever, and a device may do anything. What takes the
    // file's place after this is at least not waited for.
    regular(fs::metadata(path)?)?;
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = regular(file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
    }
    Ok(Contents { bytes, metadata })
}

/// Whether this is DER, what a certificate or a key is inside the Base64 of PEM: an ASN.1 SEQUENCE.
pub fn is_der(bytes: &[u8]) -> bool {
    match bytes {
        // A length of 128 and more begins with a byte that no text has.
        [0x30, length, rest @ ..] => *length >= 0x80 || usize::from(*length) == rest.len(),
        _ => false,
    }
}

/// Makes a file of mode 0600 that did not exist, on the disk with its directory entry before this returns.
///
/// # Errors
/// The file exists, or the disk refuses; what was begun is removed.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_folder_of(path));
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_is_told_from_text() {
        assert!(is_der(&[0x30, 0x82, 0x01, 0x02, 0x03]) && is_der(&[0x30, 2, 5, 0]));
        assert!(!is_der(b"") && !is_der(b"0") && !is_der(b"0123") && !is_der(b"-----BEGIN"));
    }

    #[test]
    fn only_regular_files_of_a_sane_length_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, vec![b'x'; LONGEST as usize]).unwrap();
        assert_eq!(read(&path).unwrap().bytes.len() as u64, LONGEST);
        fs::write(&path, vec![b'x'; LONGEST as usize + 1]).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(read(&fifo).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
