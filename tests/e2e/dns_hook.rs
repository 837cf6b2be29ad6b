//! The example hook says to nsupdate what a name server has to be told.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Finished, World, finish};

/// Runs the example with an `nsupdate` that keeps what it is told.
fn hook(world: &World, action: &str) -> Finished {
    let fake = world.write("bin/nsupdate", "#!/bin/sh\n{ echo \"$@\"; cat; } > \"$TOLD\"\n");
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", fake.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/dns-hook-nsupdate");
    let mut command = std::process::Command::new(example);
    command.args(["ns1.example.com", "/etc/dns.key", action, "_acme-challenge.example.com", "LoqXcYV8_q5"]);
    finish("the hook", command.env("PATH", path).env("TOLD", world.path("told")))
}

#[test]
fn the_example_sets_and_removes_one_value() {
    let world = World::new();
    for (action, update) in [
        ("add", "update add _acme-challenge.example.com. 60 IN TXT \"LoqXcYV8_q5\""),
        ("remove", "update delete _acme-challenge.example.com. IN TXT \"LoqXcYV8_q5\""),
    ] {
        let finished = hook(&world, action);
        assert_eq!(finished.code, 0, "{}", finished.said());
        let told = std::fs::read_to_string(world.path("told")).unwrap();
        assert_eq!(told, format!("-t 30 -k /etc/dns.key\nserver ns1.example.com\n{update}\nsend\n"));
    }
    assert_eq!(hook(&world, "renew").code, 2);
}
