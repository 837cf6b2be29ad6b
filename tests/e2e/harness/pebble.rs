//! Pebble, Let's Encrypt's test authority, as Debian packages it (2.4.0), with its own DNS server beside it. Challenges
//! are really fetched: Pebble looks names up there, and all of them are 127.0.0.1.
//!
//! Tried out: `certificateValidityPeriod` (seconds) is honoured, addresses are certified; renewal information and
//! profiles are not there.

use std::process::Command;
use std::time::Duration;

use super::curl::Curl;
use super::process::Running;
use super::wait::wait_until;
use super::world::{World, free_port, neighbours};

/// A running Pebble. Dropping it ends it.
pub struct Pebble {
    pebble: Running,
    _names: Running,
    directory: u16,
    management: u16,
    names: u16,
}

/// How Pebble behaves, and where it looks.
pub struct Temper {
    /// The port that HTTP-01 is fetched from.
    pub http: u16,
    /// The port that TLS-ALPN-01 is fetched from.
    pub https: u16,
    /// Nonces that are refused although they are good, in percent.
    pub refused_nonces: u8,
    /// The longest wait before a challenge is fetched, in seconds; 0 is none.
    pub longest_delay: u8,
    /// How long certificates live, in seconds.
    pub lifetime: u64,
    /// Whether accounts need an external one: `kid-1` with [`Pebble::HMAC_KEY`].
    pub external_account: bool,
}

impl Temper {
    /// For a proxy on ports that are free now: half of all nonces are refused, and each look takes up to a second.
    pub fn difficult() -> Temper {
        Temper {
            http: free_port(),
            https: free_port(),
            refused_nonces: 50,
            longest_delay: 1,
            lifetime: 90 * 86_400,
            external_account: false,
        }
    }
}

impl Pebble {
    /// The key of the external account `kid-1`.
    pub const HMAC_KEY: &'static str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

    /// Starts it in `world`, whose clients trust what it issues.
    pub fn start(world: &World, temper: &Temper) -> Pebble {
        let [directory, management, names, dns] = [(); 4].map(|()| free_port());
        let own = world.certificate("pebble", &["localhost", "127.0.0.1"]);
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{directory}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": own.cert,
            "privateKey": own.key,
            "httpPort": temper.http,
            "tlsPort": temper.https,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": temper.external_account,
            "externalAccountMACKeys": { "kid-1": Pebble::HMAC_KEY },
            "certificateValidityPeriod": temper.lifetime,
        }});
        let config = world.write("pebble.json", config.to_string());
        let mut command = Command::new("pebble-challtestsrv");
        command.args([
            "-defaultIPv4",
            "127.0.0.1",
            "-defaultIPv6",
            "",
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
        ]);
        command.args(["-dns01", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{names}")]);
        let own_names = Running::start("pebble-challtestsrv", &mut command);
        let mut command = Command::new("pebble");
        command.arg("-config").arg(config).args(["-dnsserver", &format!("127.0.0.1:{dns}")]);
        command.env("PEBBLE_WFE_NONCEREJECT", temper.refused_nonces.to_string()).env("PEBBLE_AUTHZREUSE", "0");
        match temper.longest_delay {
            0 => command.env("PEBBLE_VA_NOSLEEP", "1"),
            seconds => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
        };
        let pebble = Running::start("pebble", &mut command);
        let pebble = Pebble { pebble, _names: own_names, directory, management, names };
        let is_there = |url: String| Curl::new(url, &world.ca(), &world.path("")).send("").is_ok();
        wait_until("pebble", Duration::from_secs(20), || is_there(pebble.directory()));
        wait_until("its names", Duration::from_secs(20), || is_there(format!("http://127.0.0.1:{names}")));
        world.trust(&pebble.root(world));
        pebble
    }

    /// The URL of the directory. Its certificate is of the world's own authority.
    pub fn directory(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.directory)
    }

    /// Orders that were placed.
    pub fn orders(&self) -> usize {
        self.count("Added order ")
    }

    /// Certificates that were issued.
    pub fn issued(&self) -> usize {
        self.count("Issued certificate serial ")
    }

    /// Accounts that were made.
    pub fn accounts(&self) -> usize {
        self.count(" accounts in memory")
    }

    /// `host` has no address from now on.
    pub fn lose(&self, world: &World, host: &str) {
        self.tell(world, "/set-servfail", &serde_json::json!({ "host": host }));
    }

    /// `host` has its address again.
    pub fn find_again(&self, world: &World, host: &str) {
        self.tell(world, "/clear-servfail", &serde_json::json!({ "host": host }));
    }

    /// A line of `[acme]`: a hook that sets TXT records for this Pebble.
    pub fn dns_hook(&self) -> String {
        let hook = neighbours().join("dns-hook");
        format!("dns_hook = [{hook:?}, \"http://127.0.0.1:{}\"]\ndns_wait = \"0s\"\n", self.names)
    }

    /// The start of a configuration: `[server]` on the ports that Pebble looks at, and `[acme]`.
    pub fn head(&self, world: &World, temper: &Temper) -> String {
        format!(
            "[server]\nhttp = [\"127.0.0.1:{}\"]\nhttps = [\"127.0.0.1:{}\"]\nworkers = 2\nshutdown_grace = \"2s\"\n\
             [acme]\nemail = \"ops@example.com\"\ndirectory = {:?}\ndirectory_ca = {:?}\nstorage = {:?}\n",
            temper.http,
            temper.https,
            self.directory(),
            world.path("ca.pem"),
            world.path("acme"),
        )
    }

    fn root(&self, world: &World) -> String {
        let curl = Curl::new(format!("https://127.0.0.1:{}", self.management), &world.ca(), &world.path(""));
        String::from_utf8(curl.get("/roots/0").expect(200).body.clone()).unwrap()
    }

    fn tell(&self, world: &World, path: &str, body: &serde_json::Value) {
        let curl = Curl::new(format!("http://127.0.0.1:{}", self.names), &world.ca(), &world.path(""));
        curl.arg("--data").arg(body.to_string()).get(path).expect(200);
    }

    fn count(&self, line: &str) -> usize {
        self.pebble.stdout().iter().chain(&self.pebble.stderr()).filter(|said| said.contains(line)).count()
    }
}
