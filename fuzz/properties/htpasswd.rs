//! No file of users makes the reader panic, and nobody is let in by a line that is told to be bad.

use doorward::edge::passwords::Users;

pub fn check(text: &[u8]) {
    let (users, bad) = Users::read(text);
    let lines = text.split(|byte| *byte == b'\n').count();
    assert!(users.count() + bad.len() <= lines);
    assert!(bad.iter().all(|line| (1..=lines).contains(&line.number)));
    // Not the slow hashes: a fuzzer wants thousands in a second.
    if !text.windows(2).any(|two| matches!(two, b"$2" | b"$5" | b"$6")) {
        users.check(b"ann", b"tiger lily");
    }
}
