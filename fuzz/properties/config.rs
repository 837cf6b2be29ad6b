//! No text makes the reader panic, its problems can be told, and what is shown of a configuration is one itself.

use std::path::Path;

use doorward::config::{self, Config, Problems};

pub fn check(input: &[u8]) {
    let Some(text) = super::text(input) else { return };
    match parse(text) {
        Ok(config) => {
            let shown = config::show(&config);
            let again = parse(&shown).unwrap_or_else(|problems| panic!("{problems}\n{shown}"));
            // Not the configuration itself: secrets are not shown.
            assert_eq!(config::show(&again), shown);
        }
        Err(problems) => {
            assert!(!problems.0.is_empty());
            assert!(!problems.to_string().is_empty());
        }
    }
}

fn parse(text: &str) -> Result<Config, Problems> {
    let env = |name: &str| (name == "NAME").then(|| "value \"of\" the environment".to_owned());
    config::parse(Path::new("/etc/doorward"), &[("proxy.toml", text)], &env)
}
