//! Before a first order: do the names lead here? An authority counts what fails there; what fails here costs nothing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::base::certified_name::CertifiedName;
use crate::tls::challenges::{Challenge, Challenges};

/// What was found of one name. Its [`Display`](fmt::Display) is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The name.
    pub name: CertifiedName,
    /// The port that was asked: 80.
    pub port: u16,
    /// What was found.
    pub verdict: Verdict,
}

/// Where a name leads. Of several addresses the worst is told: an authority may take any of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Here, by every address.
    Reaches {
        /// The first of them.
        address: IpAddr,
    },
    /// To another server: an order by HTTP-01 would fail.
    Elsewhere {
        /// Where that is.
        address: IpAddr,
        /// What answered, in its words.
        answered: String,
    },
    /// To no address: an order would fail.
    Unresolved {
        /// What the system said.
        why: String,
    },
    /// Nobody knows: the look-up failed, now.
    Unknown {
        /// What the system said.
        why: String,
    },
    /// To an address that cannot be reached from here. It may still be reached from elsewhere: not every router leads
    /// its own network back to its outer address.
    Unreachable {
        /// The address.
        address: IpAddr,
        /// What the system said.
        why: String,
    },
}

impl Finding {
    /// Whether an order by HTTP-01 would surely fail.
    pub fn is_hopeless(&self) -> bool {
        matches!(self.verdict, Verdict::Elsewhere { .. } | Verdict::Unresolved { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { name, port, verdict } = self;
        // An address does not resolve to itself.
        let leads_to = |f: &mut fmt::Formatter<'_>, address: &IpAddr| match name {
            CertifiedName::Dns(name) => write!(f, "{name} resolves to {address}"),
            CertifiedName::Address(_) => write!(f, "{address} is named"),
        };
        match verdict {
            Verdict::Reaches { address } => {
                leads_to(f, address)?;
                write!(f, ", where this server answers on port {port}")
            }
            Verdict::Elsewhere { address, answered } => {
                leads_to(f, address)?;
                write!(f, ", where another server answers on port {port}: {answered}")
            }
            Verdict::Unresolved { why } => write!(f, "{name} does not resolve: {why}"),
            Verdict::Unknown { why } => write!(f, "{name} cannot be looked up now: {why}"),
            Verdict::Unreachable { address, why } => {
                leads_to(f, address)?;
                write!(f, ", whose port {port} cannot be reached from here ({why}); from outside it may be")
            }
        }
    }
}

/// The longest look-up.
const RESOLVE: Duration = Duration::from_secs(3);
/// The longest exchange with one address, all of them at once. Together below five seconds.
const EXCHANGE: Duration = Duration::from_millis(1800);
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 8;
/// Names that are looked at in one go.
const MOST_NAMES: usize = 100;
/// Our own answer is far shorter.
const LONGEST_BODY: usize = 4096;

/// Looks up each of `names` and asks port `port` (80; another in tests) of each address for a challenge that
/// `challenges` answers for as long as this takes: less than five seconds. Wildcards are left out: HTTP says nothing
/// about them. In the order of `names`.
pub async fn preflight(names: &[CertifiedName], port: u16, challenges: &Arc<Challenges>) -> Vec<Finding> {
    let (token, answer) = (random(), random());
    let question = Challenge::Http { token: token.clone(), answer: answer.clone() };
    // Only a TLS-ALPN-01 answer can be refused.
    let Ok(_answering) = challenges.answer(question) else { return Vec::new() };
    let mut looking = JoinSet::new();
    for (number, name) in names.iter().filter(|name| !name.is_wildcard()).take(MOST_NAMES).enumerate() {
        let (name, token, answer) = (name.clone(), token.clone(), answer.clone());
        looking.spawn(async move {
            let verdict = look(&name, port, &token, &answer).await;
            (number, Finding { name, port, verdict })
        });
    }
    let mut findings = looking.join_all().await;
    findings.sort_by_key(|(number, _)| *number);
    findings.into_iter().map(|(_, finding)| finding).collect()
}

async fn look(name: &CertifiedName, port: u16, token: &str, answer: &str) -> Verdict {
    let addresses = match name {
        CertifiedName::Address(address) => vec![*address],
        CertifiedName::Dns(name) => match resolve(name, port).await {
            Ok(addresses) => addresses,
            Err(verdict) => return verdict,
        },
    };
    let mut asking = JoinSet::new();
    for (number, address) in addresses.into_iter().take(MOST_ADDRESSES).enumerate() {
        let (host, token, answer) = (host_field(name, port), token.to_owned(), answer.to_owned());
        asking.spawn(async move {
            let asked = timeout(EXCHANGE, ask(SocketAddr::new(address, port), &host, &token, &answer)).await;
            let verdict = match asked {
                Ok(Ok(None)) => Verdict::Reaches { address },
                Ok(Ok(Some(answered))) => Verdict::Elsewhere { address, answered },
                Ok(Err(why)) => Verdict::Unreachable { address, why },
                Err(_) => Verdict::Unreachable { address, why: "no answer".to_owned() },
            };
            (number, verdict)
        });
    }
    let severity = |verdict: &Verdict| match verdict {
        Verdict::Elsewhere { .. } | Verdict::Unresolved { .. } => 0,
        Verdict::Unreachable { .. } | Verdict::Unknown { .. } => 1,
        Verdict::Reaches { .. } => 2,
    };
    let verdicts = asking.join_all().await;
    let worst = verdicts.into_iter().min_by_key(|(number, verdict)| (severity(verdict), *number));
    worst.map_or_else(|| Verdict::Unresolved { why: "it has no address".to_owned() }, |(_, verdict)| verdict)
}

async fn resolve(name: &str, port: u16) -> Result<Vec<IpAddr>, Verdict> {
    match timeout(RESOLVE, tokio::net::lookup_host((name, port))).await {
        Ok(Ok(addresses)) => {
            let mut distinct = Vec::new();
            for address in addresses.map(|address| address.ip()) {
                if !distinct.contains(&address) {
                    distinct.push(address);
                }
            }
            Ok(distinct)
        }
        Ok(Err(error)) => Err(unresolved(error.to_string())),
        Err(_) => Err(Verdict::Unknown { why: format!("the name servers do not answer within {RESOLVE:?}") }),
    }
}

/// The standard library hands getaddrinfo's message on, but not its code: these are EAI_NONAME and EAI_NODATA of glibc
/// and of musl. Everything else, such as EAI_AGAIN, may be different in a minute.
fn unresolved(why: String) -> Verdict {
    const DEFINITE: [&str; 4] = [
        "Name or service not known",
        "No address associated with hostname",
        "Name does not resolve",
        "Name has no usable address",
    ];
    match DEFINITE.iter().any(|definite| why.contains(definite)) {
        true => Verdict::Unresolved { why },
        false => Verdict::Unknown { why },
    }
}

/// `None` when it is us, else who it is. An error when nobody answers.
async fn ask(address: SocketAddr, host: &str, token: &str, answer: &str) -> Result<Option<String>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let request = Request::get(format!("/.well-known/acme-challenge/{token}"))
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("doorward/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let no_http = |_: hyper::Error| "something that does not speak HTTP".to_owned();
    let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
        Ok(halves) => halves,
        Err(error) => return Ok(Some(no_http(error))),
    };
    let exchange = async {
        let response = sender.send_request(request).await.map_err(no_http)?;
        let who = describe(&response);
        let body = Limited::new(response.into_body(), LONGEST_BODY).collect().await;
        let is_us = body.is_ok_and(|body| body.to_bytes() == answer.as_bytes());
        Ok((!is_us).then_some(who))
    };
    tokio::pin!(exchange, connection);
    let mut over = false;
    let answered: Result<Option<String>, String> = loop {
        tokio::select! {
            biased;
            answered = &mut exchange => break answered,
            _ = &mut connection, if !over => over = true,
        }
    };
    Ok(answered.unwrap_or_else(Some))
}

/// `nginx, 301 Moved Permanently to https://…`
fn describe(response: &Response<Incoming>) -> String {
    let field = |name: header::HeaderName| {
        let value = String::from_utf8_lossy(response.headers().get(name)?.as_bytes()).into_owned();
        Some(value.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    };
    let server = field(header::SERVER).unwrap_or_else(|| "a server without a name".to_owned());
    match field(header::LOCATION) {
        Some(location) => format!("{server}, {} to {location}", response.status()),
        None => format!("{server}, {}", response.status()),
    }
}

fn host_field(name: &CertifiedName, port: u16) -> String {
    let host = match name {
        CertifiedName::Address(IpAddr::V6(address)) => format!("[{address}]"),
        name => name.to_string(),
    };
    if port == 80 { host } else { format!("{host}:{port}") }
}

/// 256 bits that nobody guesses, as a token has them (RFC 8555, section 8: at least 128).
fn random() -> String {
    let mut bytes = [0; 32];
    // aws-lc does not return without randomness.
    let _ = rand::fill(&mut bytes);
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every connection with what `answer` makes of the path.
    async fn server(answer: impl Fn(&str) -> String + Send + 'static) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap_or(b'\n'));
                    if head.len() > 4096 {
                        return;
                    }
                }
                let head = String::from_utf8(head).unwrap();
                let _ = stream.write_all(answer(head.split(' ').nth(1).unwrap()).as_bytes()).await;
            }
        });
        port
    }

    fn local() -> CertifiedName {
        CertifiedName::Address("127.0.0.1".parse().unwrap())
    }

    #[tokio::test]
    async fn this_server_is_told_from_another() {
        let challenges = Arc::new(Challenges::default());
        let ours = Arc::clone(&challenges);
        let us = server(move |path| {
            let token = path.strip_prefix("/.well-known/acme-challenge/").unwrap();
            let body = ours.http(token).unwrap();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        })
        .await;
        let findings = preflight(&[local(), CertifiedName::Dns("*.a.example".to_owned())], us, &challenges).await;
        assert_eq!(findings.len(), 1, "wildcards are left out: {findings:?}");
        assert!(matches!(findings[0].verdict, Verdict::Reaches { .. }), "{}", findings[0]);

        let other = server(|_| {
            "HTTP/1.1 301 Moved Permanently\r\nserver: nginx\r\nlocation: https://x/\r\ncontent-length: 0\r\n\r\n"
                .to_owned()
        })
        .await;
        let findings = preflight(&[local()], other, &challenges).await;
        assert!(findings[0].is_hopeless());
        assert_eq!(
            findings[0].to_string(),
            format!(
                "127.0.0.1 is named, where another server answers on port {other}: nginx, 301 Moved Permanently to \
                 https://x/"
            )
        );
        let rude = server(|_| "220 smtp\r\n".to_owned()).await;
        let findings = preflight(&[local()], rude, &challenges).await;
        assert!(findings[0].to_string().ends_with("something that does not speak HTTP"), "{}", findings[0]);
    }

    #[tokio::test]
    async fn what_cannot_be_reached_from_here_is_not_given_up() {
        let challenges = Arc::new(Challenges::default());
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let findings = preflight(&[local()], closed, &challenges).await;
        assert!(matches!(findings[0].verdict, Verdict::Unreachable { .. }) && !findings[0].is_hopeless());
        assert!(findings[0].to_string().contains("refused"), "{}", findings[0]);
    }

    #[tokio::test]
    async fn it_is_over_within_five_seconds() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let begun = Instant::now();
        let names = [local(), CertifiedName::Dns("name.invalid".to_owned())];
        let findings = preflight(&names, port, &Arc::new(Challenges::default())).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(findings[0].to_string().contains("(no answer)"), "{}", findings[0]);
        // Without any name server nobody knows.
        let is_lost = matches!(findings[1].verdict, Verdict::Unresolved { .. } | Verdict::Unknown { .. });
        assert!(is_lost, "{}", findings[1]);
    }

    #[test]
    fn only_a_definite_answer_says_that_a_name_has_no_address() {
        let said = |why: &str| unresolved(format!("failed to lookup address information: {why}"));
        for why in ["Name or service not known", "No address associated with hostname", "Name does not resolve"] {
            assert!(matches!(said(why), Verdict::Unresolved { .. }), "{why}");
        }
        for why in ["Temporary failure in name resolution", "Try again", "Non-recoverable failure in name resolution"] {
            assert!(matches!(said(why), Verdict::Unknown { .. }), "{why}");
        }
        let finding = Finding { name: local(), port: 80, verdict: said("Try again") };
        assert!(!finding.is_hopeless());
    }
}
