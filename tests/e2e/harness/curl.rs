//! curl: a client that others wrote.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::process::finish_within;

/// One request in the making.
pub struct Curl {
    base: String,
    ca: PathBuf,
    scratch: PathBuf,
    arguments: Vec<String>,
    limit: Duration,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `1.1` or `2`.
    pub version: String,
    /// The fields of the last head, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body, as it came unless `--compressed` was asked for.
    pub body: Vec<u8>,
}

impl Curl {
    /// A client for `base`. Every name is 127.0.0.1 to it.
    pub fn new(base: String, ca: &Path, scratch: &Path) -> Curl {
        Curl { base, ca: ca.into(), scratch: scratch.into(), arguments: Vec::new(), limit: Duration::from_secs(60) }
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Curl {
        self.arguments.push(argument.into());
        self
    }

    /// One more field, as `Name: value`.
    pub fn header(self, line: &str) -> Curl {
        self.arg("-H").arg(line)
    }

    /// HTTP/1.1 only.
    pub fn http1(self) -> Curl {
        self.arg("--http1.1")
    }

    /// For transfers that take their time.
    pub fn patient(mut self, limit: Duration) -> Curl {
        self.limit = limit;
        self
    }

    /// GET.
    pub fn get(self, path: &str) -> Answer {
        self.send(path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// HEAD. curl reads no body then, and puts the head in its place.
    pub fn head(self, path: &str) -> Answer {
        Answer { body: Vec::new(), ..self.arg("--head").get(path) }
    }

    /// POST of these bytes.
    pub fn post(self, path: &str, body: &[u8]) -> Answer {
        let file = self.fresh("body");
        std::fs::write(&file, body).unwrap();
        let data = format!("@{}", file.display());
        let answer = self
            .header("Content-Type: application/octet-stream")
            .arg("--data-binary")
            .arg(data)
            .send(path)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        let _ = std::fs::remove_file(file);
        answer
    }

    /// Sends it; an error is what curl says.
    pub fn send(self, path: &str) -> Result<Answer, String> {
        let file = self.fresh("answer");
        let mut command = Command::new("curl");
        command
            .args(["-q", "-sS", "--globoff", "--path-as-is", "--noproxy", "*", "--connect-to", "::127.0.0.1:"])
            .args(["-D", "-", "-w", "\n%{http_code} %{http_version}"])
            .args(["--max-time", &self.limit.as_secs().to_string()])
            .arg("--cacert")
            .arg(&self.ca)
            .arg("-o")
            .arg(&file)
            .args(&self.arguments)
            .arg(format!("{}{path}", self.base));
        let end = finish_within("curl", &mut command, self.limit + Duration::from_secs(5));
        // curl makes no file for an empty body.
        let body = std::fs::read(&file).unwrap_or_default();
        let _ = std::fs::remove_file(&file);
        if end.code != 0 {
            return Err(format!("curl exit {}: {}{}", end.code, end.stderr, end.stdout));
        }
        let (heads, last) = end.stdout.rsplit_once('\n').ok_or("curl said nothing")?;
        let (status, version) = last.split_once(' ').ok_or("curl said no status")?;
        Ok(Answer {
            status: status.parse().map_err(|_| format!("status {status:?}"))?,
            version: version.to_owned(),
            headers: last_head(heads),
            body,
        })
    }

    fn fresh(&self, what: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        self.scratch.join(format!("curl-{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Answer {
    /// The only value of a field; `None` when there is none. Two are a failure.
    pub fn field(&self, name: &str) -> Option<&str> {
        let values = self.fields(name);
        assert!(values.len() < 2, "{name} came {} times: {:?}", values.len(), self.headers);
        values.first().copied()
    }

    /// All values of a field.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }

    /// The same answer, once its status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{:?}\n{}", self.headers, self.text());
        self
    }
}

fn last_head(text: &str) -> Vec<(String, String)> {
    let text = text.replace('\r', "");
    let head = text.trim_end().rsplit("\n\n").next().unwrap_or("").to_owned();
    let lines = head.lines().skip(1);
    lines.filter_map(|line| line.split_once(':')).map(|(n, v)| (n.to_lowercase(), v.trim().to_owned())).collect()
}
