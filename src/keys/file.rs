//! Reading the small files that hold keys and certificates.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::Path;

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
    // Before the open: opening a FIFO waits for its writer, for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
    }
    Ok(Contents { bytes, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;

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
