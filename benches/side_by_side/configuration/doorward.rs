//! Doorward's.

use std::ffi::OsString;

use super::{Ports, save};
use crate::fpm;
use crate::growth::is_exact;
use crate::server::Place;

pub fn write(place: &Place, ports: Ports) -> Vec<OsString> {
    let (back_end, files, Ports { http, https, .. }) = (place.back_end, crate::files(place.folder), ports);
    let access = if place.logs { place.folder.join("load/doorward.log").display().to_string() } else { "off".into() };
    let text = format!(
        "[server]\nhttp = [\"{http}\"]\nhttps = [\"{https}\"]\nworkers = 1\nshutdown_grace = \"1s\"\n\
         [log]\naccess = \"{access}\"\n\
         [site.a]\nhosts = [\"a.test\", \"127.0.0.1\"]\ndefault = true\nhttp = \"serve\"\nmax_body = \"0\"\n\
         tls = {{ cert = \"cert.pem\", key = \"key.pem\" }}\nupstream = \"http://{back_end}\"\n\
         [site.a.websocket]\npreset = \"any\"\nto = \"http://{back_end}\"\n\
         [[site.a.route]]\npath = \"/files/*\"\nalias = \"{}\"\n",
        files.display()
    );
    let text = text + &routes(place);
    let text = text + &php(place, "php", 0) + &php(place, "kept", fpm::CLIENTS) + &sites(place);
    let binary = std::env::var_os("DOORWARD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_doorward").into());
    vec![binary, "run".into(), "-c".into(), save(place, "proxy.toml", &text)]
}

/// Of the site before it.
fn routes(place: &Place) -> String {
    let route = |route: usize| {
        let below = if is_exact(route) { "" } else { "/*" };
        format!("[[site.a.route]]\npath = \"/r/{route}{below}\"\nupstream = \"http://{}\"\n", place.back_end)
    };
    (0..place.routes).map(route).collect()
}

fn sites(place: &Place) -> String {
    let site = |site: usize| {
        format!(
            "[site.s{site}]\nhosts = [\"s{site}.test\"]\nhttp = \"serve\"\nupstream = \"http://{}\"\n\
             tls = {{ cert = \"sites/{site}.pem\", key = \"sites/{site}.key\" }}\n",
            place.back_end
        )
    };
    let mark = format!(
        "[site.mark]\nhosts = [\"mark.test\"]\nhttp = \"serve\"\ntls = \"off\"\n\
         [[site.mark.route]]\npath = \"/*\"\nrespond = \"{}\"\n",
        place.revision
    );
    (0..place.sites).map(site).chain((place.sites > 0).then_some(mark)).collect()
}

fn php(place: &Place, name: &str, keep_alive: usize) -> String {
    format!(
        "[site.{name}]\nhosts = [\"{name}.test\"]\nhttp = \"serve\"\nroot = \"{}\"\n\
         tls = {{ cert = \"cert.pem\", key = \"key.pem\" }}\n\
         php = {{ to = \"unix:{}\", keep_alive = {keep_alive} }}\n",
        fpm::root(place.folder).display(),
        fpm::socket(place.folder).display()
    )
}
