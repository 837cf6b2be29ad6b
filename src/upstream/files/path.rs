//! What a path says by its name alone: hidden, a script, or something that is never served as a file. All of it looks
//! at decoded bytes; nothing here touches a disk.

/// Endings that PHP, or somebody's PHP configuration, runs: as files they would show their source. And dumps of
/// databases, which are the first thing that scanners ask for.
const SOURCES: [&[u8]; 13] =
    [b"php", b"php3", b"php4", b"php5", b"php6", b"php7", b"php8", b"phtml", b"pht", b"phps", b"phar", b"inc", b"sql"];

/// Endings that editors and careful people leave behind.
const BACKUPS: [&[u8]; 7] = [b"bak", b"old", b"orig", b"save", b"swp", b"swo", b"tmp"];

/// Endings that are only a backup's when they follow a source's: `config.php.1`, `config.php.txt`, `dump.sql.gz`.
const COPIES: [&[u8]; 14] =
    [b"backup", b"copy", b"dist", b"txt", b"gz", b"bz2", b"xz", b"zst", b"br", b"zip", b"7z", b"rar", b"tar", b"tgz"];

/// Files of PHP projects that tell what is installed.
const MANIFESTS: [&[u8]; 2] = [b"composer.json", b"composer.lock"];

/// Whether a segment starts with a dot. The first segment may be `.well-known` (RFC 8615, section 3), nothing below it
/// may.
pub fn is_hidden(path: &[u8]) -> bool {
    segments(path).enumerate().any(|(index, s)| s.first() == Some(&b'.') && !(index == 0 && s == b".well-known"))
}

/// Whether a segment ends in `.php`, in any case: `/a.php`, `/a.PHP/b`. Such a path runs or is refused.
pub fn names_script(path: &[u8]) -> bool {
    segments(path).any(|s| ends_with_ignoring_case(s, b".php"))
}

/// Whether the file of this path is a script, also under a name that some file systems take for it.
pub fn is_script(path: &[u8]) -> bool {
    ends_with_ignoring_case(file_name(path), b".php")
}

/// Whether the file of this path is never sent to anybody: source code, an editor's backup, a PHP project's manifest.
/// A path that ends in a slash names a folder and is never private.
pub fn is_private(path: &[u8]) -> bool {
    let name = file_name(path);
    if MANIFESTS.iter().any(|m| name.eq_ignore_ascii_case(m)) || name.last() == Some(&b'~') {
        return true;
    }
    let Some((_, last)) = split_ending(name) else { return false };
    if is_one_of(last, &BACKUPS) || is_source(last) {
        return true;
    }
    // "config.php.1", "config.php.txt", "config.php.bak.2"
    let mut rest = name;
    while let Some((stem, ending)) = split_ending(rest) {
        if is_source(ending) {
            return true;
        }
        let copy = is_one_of(ending, &BACKUPS) || is_one_of(ending, &COPIES) || ending.iter().all(u8::is_ascii_digit);
        if !copy {
            return false;
        }
        rest = stem;
    }
    false
}

/// Every way to read `path` as a script and its PATH_INFO, shortest script first: split behind each segment that ends
/// in exactly `.php`, bytes as they are. Which of them is a script only the disk knows.
pub fn script_splits(path: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    memchr::memmem::find_iter(path, b".php").filter_map(|at| {
        let (script, info) = path.split_at_checked(at + 4)?;
        let ends_segment = info.first().is_none_or(|b| *b == b'/');
        let has_stem = at > 0 && path.get(at - 1) != Some(&b'/');
        (ends_segment && has_stem).then_some((script, info))
    })
}

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|s| !s.is_empty())
}

/// A trailing dot or space is dropped by some file systems and by nobody's eye.
fn file_name(path: &[u8]) -> &[u8] {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    without_final_dots(name.trim_ascii_end())
}

fn split_ending(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memrchr(b'.', name)?;
    Some((name.get(..at)?, name.get(at + 1..)?))
}

fn is_one_of(ending: &[u8], list: &[&[u8]]) -> bool {
    list.iter().any(|e| ending.eq_ignore_ascii_case(e))
}

/// Whether this ending is a source's, also with what editors glue to it: `php~`, `php_`, `php-old`, `php#`.
fn is_source(ending: &[u8]) -> bool {
    let word = ending.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(ending.len());
    ending.get(..word).is_some_and(|word| is_one_of(word, &SOURCES))
}

fn ends_with_ignoring_case(name: &[u8], ending: &[u8]) -> bool {
    name.len().checked_sub(ending.len()).and_then(|at| name.get(at..)).is_some_and(|e| e.eq_ignore_ascii_case(ending))
}

fn without_final_dots(mut name: &[u8]) -> &[u8] {
    while let Some(shorter) = name.strip_suffix(b".") {
        name = shorter;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dotted_segments_are_hidden_but_for_a_leading_well_known() {
        for hidden in [
            "/.env",
            "/.git/config",
            "/a/.user.ini",
            "/a/.b/c",
            "/a/.well-known/x",
            "/.well-known/.git/config",
            "/.well-known2/x",
            "/.WELL-KNOWN/x",
            "/...",
        ] {
            assert!(is_hidden(hidden.as_bytes()), "{hidden}");
        }
        for open in ["/", "/a.b", "/.well-known/acme-challenge/x", "/.well-known", "/a./b"] {
            assert!(!is_hidden(open.as_bytes()), "{open}");
        }
    }

    #[test]
    fn source_and_backup_names_are_private() {
        for private in [
            "/a.php",
            "/a.PHP",
            "/a.php3",
            "/a.php8",
            "/a.phtml",
            "/a.PhpS",
            "/a.phar",
            "/a.inc",
            "/a.php~",
            "/a.php_",
            "/a.php.bak",
            "/a.php.1",
            "/a.php.txt",
            "/a.php.old.2",
            "/a.php.save",
            "/.a.php.swp",
            "/#a.php#",
            "/a.css~",
            "/a.css.bak",
            "/a.OLD",
            "/a.orig",
            "/a.swo",
            "/a.tmp",
            "/a.php.",
            "/a.php ",
            "/composer.lock",
            "/x/Composer.json",
            "/a.php-old",
            "/a.php.dist",
            "/a.pht",
            "/a.php.gz",
            "/a.php.bak.zip",
            "/dump.sql",
            "/dump.SQL.gz",
            "/dump.sql~",
        ] {
            assert!(is_private(private.as_bytes()), "{private}");
        }
        for open in [
            "/",
            "/a.css",
            "/a.php/",
            "/index.php.html",
            "/jquery.inc.js",
            "/php",
            "/a.tar.gz",
            "/old",
            "/a.txt",
            "/a.1",
            "/package-lock.json",
            "/phpinfo.txt",
            "/a.include",
            "/a.phpx.js",
            "/x.bak/y.css",
            "/mysql",
            "/a.sqlite.gz",
            "/a.zip",
        ] {
            assert!(!is_private(open.as_bytes()), "{open}");
        }
    }

    #[test]
    fn a_script_segment_is_seen_in_any_case_and_place() {
        for script in ["/a.php", "/a.PHP", "/a.Php/b", "/x/a.php/", "/.php", "/a.jpg/x.php"] {
            assert!(names_script(script.as_bytes()), "{script}");
        }
        for other in ["/a.php5", "/aphp", "/a.php.txt", "/"] {
            assert!(!names_script(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn scripts_are_split_by_exact_bytes_at_segments() {
        let splits = |path: &'static str| {
            script_splits(path.as_bytes())
                .map(|(s, i)| (std::str::from_utf8(s).unwrap(), std::str::from_utf8(i).unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(splits("/index.php"), [("/index.php", "")]);
        assert_eq!(splits("/index.php/a/b"), [("/index.php", "/a/b")]);
        assert_eq!(splits("/a.php/b.php/c"), [("/a.php", "/b.php/c"), ("/a.php/b.php", "/c")]);
        assert_eq!(splits("/a.php.txt"), []);
        assert_eq!(splits("/a.PHP/x"), []);
        assert_eq!(splits("/.php"), []);
        assert_eq!(splits("/x/.php/y"), []);
        assert_eq!(splits("/a.phpx/y.php"), [("/a.phpx/y.php", "")]);
    }

    proptest::proptest! {
        #[test]
        fn a_split_gives_the_path_back(path in "/[a.ph/P]{0,24}") {
            for (script, info) in script_splits(path.as_bytes()) {
                proptest::prop_assert_eq!([script, info].concat(), path.as_bytes());
                proptest::prop_assert!(script.ends_with(b".php"));
                proptest::prop_assert!(info.is_empty() || info.starts_with(b"/"));
                proptest::prop_assert!(names_script(path.as_bytes()));
                proptest::prop_assert!(is_private(script));
            }
        }
    }
}
