//! No bytes make the reader of PROXY heads panic, and a head is the same however its bytes arrive.

use doorward::base::proxy_head::{LONGEST_V2, Progress, Said, Version, read, write};

pub fn check(bytes: &[u8]) {
    let whole = read(bytes);
    if let Ok(Progress::Complete { said, length }) = whole {
        assert!(length <= bytes.len() && length <= LONGEST_V2);
        assert_eq!(read(&bytes[..length]), whole, "what follows the head has no say");
        if let Said::Relayed { source, destination } = said {
            for version in [Version::V1, Version::V2] {
                let again = write(version, source, destination);
                assert_eq!(read(&again), Ok(Progress::Complete { said, length: again.len() }));
            }
        }
    }
    for cut in 0..bytes.len().min(300) {
        match read(&bytes[..cut]) {
            Ok(Progress::Partial) => {}
            Err(_) => assert!(whole.is_err()),
            complete => assert_eq!(complete, whole),
        }
    }
}
