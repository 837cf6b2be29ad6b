//! An application's complaints cannot steer a terminal, forge a line of the log or fill the disk, however they are cut.

use doorward::upstream::fastcgi::stderr::Lines;

/// A byte for the size of the pieces, and the complaints.
pub fn check(input: &[u8]) {
    let Some((size, data)) = input.split_first() else { return };
    let cut = lines(data, usize::from(*size).max(1));
    assert_eq!(cut, lines(data, data.len().max(1)));
    // Each byte becomes six characters at the most.
    assert!(cut.iter().map(String::len).sum::<usize>() <= 6 * data.len() + 100);
    for line in cut {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!line.contains(['\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}']), "{line:?}");
    }
}

fn lines(data: &[u8], size: usize) -> Vec<String> {
    let (mut lines, mut logged) = (Lines::default(), Vec::new());
    for part in data.chunks(size) {
        lines.push(part, |line| logged.push(line.to_owned()));
    }
    lines.finish(|line| logged.push(line.to_owned()));
    logged
}
