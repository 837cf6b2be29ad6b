//! Layer 6: the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::base::units::parse_duration;

/// An edge server for sites that speak both HTTP and WebSocket.
///
/// It terminates TLS, serves files, runs PHP through PHP-FPM, hands HTTP and live sockets to the servers behind it,
/// and is described by one TOML file.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "doorward",
    version,
    disable_version_flag = true,
    arg_required_else_help = true,
    after_help = "Signals of a running server: HUP reloads the file, USR1 opens log files again, QUIT and TERM end it\n\
                  when its requests are done (a second TERM at once).\n\n\
                  Try it: doorward demo"
)]
pub struct Arguments {
    /// The configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,

    /// Check the file and exit, as `doorward check` does (the word for it in nginx)
    #[arg(short = 't')]
    pub test: bool,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,

    #[command(subcommand)]
    command: Option<Command>,
}

/// Where the file is when nobody says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/doorward/proxy.toml";

impl Arguments {
    /// The command to carry out; `-t` is `check`.
    pub fn command(&self) -> Option<Command> {
        if self.test { Some(Command::Check(Check { offline: false })) } else { self.command.clone() }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve, in the foreground
    ///
    /// Reads the file, binds its addresses and serves until QUIT or TERM. It never becomes a daemon: systemd, a
    /// container or a terminal is its parent.
    Run(Run),
    /// Check the file, and the world around it
    ///
    /// Tells every problem of the file in one run, each with its line and what to write instead. Then looks at the
    /// world: certificates fit their keys and are in time, folders and sockets are there and may be opened, ports
    /// can be bound. Exits with 0 when the server could start with it, and with 1 when not.
    Check(Check),
    /// Let the running server read its file again
    ///
    /// The file is checked first. A bad one changes nothing: the reason is printed, and the exit code is 1. Open
    /// WebSockets stay open.
    Reload,
    /// Show live sockets, and close some
    ///
    /// One line for each WebSocket that is open: where it comes from and goes to, for how long, and what went through
    /// it. Without filters all are shown, the oldest first.
    Sockets(Box<Sockets>),
    /// Show back ends: which are left out, and why
    ///
    /// One line for each that speaks HTTP: whether it gets requests, how many requests and sockets are on it, how many
    /// failed, and what the last probe said. `trial` is one that takes connections again and has yet to answer.
    Upstreams(Upstreams),
    /// Print the configuration in force
    ///
    /// In the format of the file: included files joined, defaults filled in, secrets masked.
    Config,
    /// Show, renew and rehearse certificates
    #[command(subcommand)]
    Cert(Cert),
    /// Say which site, rule and back end a request would get, and why
    #[command(
        after_help = "Example: doorward explain GET 'https://app.example.com/socket.io/?EIO=4' -H 'Upgrade: websocket'"
    )]
    Explain(Explain),
    /// Try the server with nothing installed
    ///
    /// Starts it on localhost, with a certificate of its own and two small back ends, a site and a chat over WebSocket,
    /// and prints the file that it uses.
    Demo(Demo),
    /// Have this machine trust the local authority of `tls = "self-signed"`
    ///
    /// Shows each command that it takes and asks. The authority is the one in certs-dev beside the file, or in the
    /// current folder when there is no file at the default place. It goes into the system's store (Debian, Fedora,
    /// Arch, openSUSE; through sudo where that is needed) and into those of Chromium and Firefox. Exits with 0 when all
    /// of them have it, and with 1 when not.
    Trust(Trust),
    /// Take back what `doorward trust` did
    ///
    /// Shows each command that it takes and asks. What other configurations had trusted stays, and is named.
    Untrust(Untrust),
}

/// What to do about certificates.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Cert {
    /// Show every certificate of the file
    ///
    /// Its names, who issued it, until when it is valid, when it will be renewed and why then, and what went wrong last.
    List,
    /// Renew an automatic certificate now
    ///
    /// Asks the running server and waits for the outcome. The certificate in service stays until the new one is there.
    /// What authorities allow in a week is not exceeded, whoever asks.
    Renew(CertName),
    /// Rehearse an order
    ///
    /// Says for each name whether it leads to this machine, then has the running server go through an order at the
    /// authority's rehearsal directory (staging). What comes of it is not used.
    Test(CertName),
}

/// Which certificate.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CertName {
    /// One of its hosts, or its site
    pub name: String,
}

/// Options of `check`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Check {
    /// Only the file: leave certificates, folders, sockets and ports alone
    #[arg(long)]
    pub offline: bool,
}

/// Options of `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Explain {
    /// The method, such as GET
    pub method: String,
    /// The whole URL: scheme, host, path and query
    pub url: String,
    /// A header field of the request; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(String, String)>,
}

/// Options of `demo`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Demo {
    /// The TLS port on localhost
    #[arg(long, default_value_t = 8443)]
    pub port: u16,
}

/// Options of `trust`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Trust {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Options of `untrust`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Untrust {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Everything that bears Doorward's name, also that of folders that have gone
    #[arg(long)]
    pub all: bool,
}

/// Options of `run`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Run {
    /// Read the file again whenever it, or one that it includes, changes on disk
    ///
    /// As `doorward reload` does it: open sockets stay open, and a bad file changes nothing.
    #[arg(long)]
    pub watch: bool,
}

/// Options of `sockets`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:\n  \
    doorward sockets --site app --older 1h\n  \
    doorward sockets close 17\n  \
    doorward sockets close --client 203.0.113.0/24 --code 1008\n  \
    doorward sockets close --site app --over 5m")]
pub struct Sockets {
    /// Which.
    #[command(flatten)]
    pub filter: SocketFilter,
    /// Print one JSON object for each socket, for scripts
    #[arg(long)]
    pub json: bool,
    /// Show the N oldest; 0 shows the sums alone
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// What to do beside showing them.
    #[command(subcommand)]
    pub command: Option<SocketsCommand>,
}

/// Options of `upstreams`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Upstreams {
    /// Print one JSON object for each back end, for scripts
    #[arg(long)]
    pub json: bool,
}

/// Which sockets: those that every given condition holds for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct SocketFilter {
    /// Those of this site
    #[arg(long, value_name = "NAME")]
    pub site: Option<String>,
    /// Those to this back end, such as http://127.0.0.1:6001
    #[arg(long, value_name = "URL")]
    pub back_end: Option<String>,
    /// Those of this address, or of this range (10.0.0.0/8)
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<String>,
    /// Those whose path begins so
    #[arg(long, value_name = "PREFIX")]
    pub path: Option<String>,
    /// Those that were silent for at least so long (30s, 5m, 2h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub idle: Option<Duration>,
    /// Those that are open for at least so long (30s, 5m, 2h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub older: Option<Duration>,
}

/// What is done with sockets.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum SocketsCommand {
    /// Close one or many, with a Close frame that clients understand
    ///
    /// Clients come back by themselves: most libraries try again at once, so many are closed over a time. Prints how
    /// many it will be, and does not wait for the last.
    Close(CloseSockets),
}

/// Options of `sockets close`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CloseSockets {
    /// The ids, as `doorward sockets` shows them
    #[arg(value_name = "ID", conflicts_with_all = ["SocketFilter", "all"])]
    pub ids: Vec<String>,
    /// Which.
    #[command(flatten)]
    pub filter: SocketFilter,
    /// Every socket there is
    #[arg(long, conflicts_with = "SocketFilter")]
    pub all: bool,
    /// The status of the Close frame: 1012 has clients come back, 1008 tells them that they are not wanted
    #[arg(long, default_value_t = 1012)]
    pub code: u16,
    /// Spread over this time, a second for each at most [default: at once by id, else 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub over: Option<Duration>,
}

fn header(text: &str) -> Result<(String, String), String> {
    // `:protocol` begins with a colon, as all that HTTP/2 has beside fields.
    let (colon, rest) = text.strip_prefix(':').map_or(("", text), |rest| (":", rest));
    let pair = rest.split_once(':').map(|(name, value)| (format!("{colon}{}", name.trim()), value));
    match pair {
        Some((name, value)) if name.len() > colon.len() => Ok((name, value.trim().to_owned())),
        _ => Err("a field is 'Name: value', such as 'Upgrade: websocket'".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Arguments {
        Arguments::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_command_line_is_sound() {
        <Arguments as CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_file_may_be_named_on_both_sides_of_the_command() {
        assert_eq!(parse("doorward run").config, PathBuf::from(DEFAULT_CONFIG));
        assert_eq!(parse("doorward -c a.toml run").config, PathBuf::from("a.toml"));
        assert_eq!(parse("doorward check --offline -c a.toml").config, PathBuf::from("a.toml"));
    }

    #[test]
    fn the_flag_of_nginx_is_check() {
        let arguments = parse("doorward -t -c a.toml");
        assert_eq!(arguments.command(), Some(Command::Check(Check { offline: false })));
        assert_eq!(arguments.config, PathBuf::from("a.toml"));
    }

    #[test]
    fn sockets_are_closed_by_id_or_by_filter_and_never_by_both() {
        let close = |line: &str| match parse(line).command() {
            Some(Command::Sockets(options)) => match options.command {
                Some(SocketsCommand::Close(close)) => close,
                None => panic!("{line}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(close("doorward sockets close 17 1234:18 -c a.toml").ids, ["17", "1234:18"]);
        assert_eq!(close("doorward sockets -c a.toml close 17").code, 1012);
        let by_site = close("doorward sockets close --site app --idle 5m --over 30s --code 1001");
        assert_eq!((by_site.filter.site.as_deref(), by_site.code), (Some("app"), 1001));
        assert_eq!((by_site.filter.idle.unwrap().as_secs(), by_site.over.unwrap().as_secs()), (300, 30));
        for wrong in ["17 --site app", "17 --all", "--all --site app", "--over 30", "--idle x"] {
            let line = format!("doorward sockets close {wrong}");
            assert!(Arguments::try_parse_from(line.split_whitespace()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_of_explain_are_split_at_the_colon() {
        let arguments =
            Arguments::try_parse_from(["doorward", "explain", "GET", "https://a/x", "-H", "Host: a:8443"]).unwrap();
        let Some(Command::Explain(explain)) = arguments.command() else { panic!() };
        assert_eq!(explain.headers, [("Host".to_owned(), "a:8443".to_owned())]);
        for bad in ["x", ":", ": x", "::"] {
            assert!(header(bad).is_err(), "{bad}");
        }
        assert_eq!(header(":protocol: websocket"), Ok((":protocol".to_owned(), "websocket".to_owned())));
    }
}
