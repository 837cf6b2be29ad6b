//! The table.

use std::process::Command;
use std::time::Duration;

use crate::load::Outcome;
use crate::server::Kind;

/// Says who is compared, and where.
pub fn versions(kinds: &[Kind]) {
    let first_line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}; benches/side-by-side installs it"));
        // nginx says it on standard error.
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned()
    };
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    println!(
        "Doorward {}; {}; {}{}; {}; Linux {}\n",
        env!("CARGO_PKG_VERSION"),
        first_line("nginx", &["-v"]),
        first_line("haproxy", &["-v"]).split(' ').take(3).collect::<Vec<_>>().join(" "),
        if kinds.contains(&Kind::Caddy) {
            format!("; Caddy {}", first_line("caddy", &["version"]))
        } else {
            String::new()
        },
        model.map_or("", |(_, model)| model),
        std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    );
}

/// The order in which the figures of the proxies stand.
pub fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" / ")
}

/// The heads of the columns of [`ratios`].
pub fn ratio_names(kinds: &[Kind]) -> String {
    let others = kinds.iter().filter(|kind| **kind != Kind::Nginx);
    others.map(|kind| format!("{} to nginx", kind.name())).collect::<Vec<_>>().join(" | ")
}

/// A column for each proxy but nginx, of which `ratio` gets the place and that of nginx.
pub fn ratios(kinds: &[Kind], ratio: impl Fn(usize, usize) -> String) -> String {
    let nginx = kinds.iter().position(|kind| *kind == Kind::Nginx).unwrap();
    let columns: Vec<String> = (0..kinds.len()).filter(|at| *at != nginx).map(|at| ratio(at, nginx)).collect();
    columns.join(" | ")
}

pub fn head(kinds: &[Kind]) {
    println!(
        "Of {}; the ratio to nginx as its median, and its minimum in brackets.\n\n\
         | scenario | CPU of an operation, µs | {} | busy, % | p99, ms | memory, MiB |\n|---|---:|{}---:|---:|---:|",
        names(kinds),
        ratio_names(kinds),
        "---:|".repeat(kinds.len() - 1)
    );
}

/// Prints what was measured of a scenario: for each proxy the outcomes of its rounds, and its memory.
pub fn line(title: &str, kinds: &[Kind], columns: &[Vec<Outcome>], memory: &[Option<u64>]) {
    let each = |text: &dyn Fn(&[Outcome]) -> String| {
        let texts = columns.iter().map(|rounds| if rounds.is_empty() { "–".into() } else { text(rounds) });
        texts.collect::<Vec<_>>().join(" / ")
    };
    let cost = each(&|rounds| number(median(rounds.iter().map(Outcome::cost).collect())));
    let busy = each(&|rounds| format!("{:.0}", median(rounds.iter().map(|round| round.usage.busy()).collect())));
    let p99 = each(&|rounds| {
        let times = rounds.iter().map(|round| round.p99).map(|time: Duration| time.as_secs_f64() * 1e3);
        format!("{:.2}", median(times.collect()))
    });
    let ratio = |at: usize, to: usize| {
        let pairs = columns[at].iter().zip(&columns[to]);
        median_and_least(pairs.map(|(own, peer)| own.cost() / peer.cost()).collect())
    };
    let memory: Vec<String> =
        memory.iter().map(|of| of.map_or("–".into(), |bytes| format!("{:.1}", mib(bytes)))).collect();
    println!("| {title} | {cost} | {} | {busy} | {p99} | {} |", ratios(kinds, ratio), memory.join(" / "));
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Of ratios, one of each round.
pub fn median_and_least(ratios: Vec<f64>) -> String {
    let Some(least) = ratios.iter().copied().reduce(f64::min) else { return "–".to_owned() };
    format!("{:.2} ({least:.2})", median(ratios))
}

pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    let half = numbers.len() / 2;
    if numbers.len().is_multiple_of(2) { f64::midpoint(numbers[half - 1], numbers[half]) } else { numbers[half] }
}

/// Three digits at least.
pub fn number(number: f64) -> String {
    if number < 100.0 { format!("{number:.1}") } else { format!("{number:.0}") }
}
