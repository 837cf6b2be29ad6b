//! X-Accel-Redirect: an application answers with the name of a file, and the edge sends the file.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, Method};

use crate::base::fault::{Fault, Kind};
use crate::edge::site::Site;
use crate::http::hop::drop_all;
use crate::http::path::CanonicalPath;
use crate::http::request::ClientRequest;
use crate::upstream::Reply;
use crate::upstream::files::answer::{Asked, answer_accel};
use crate::upstream::files::root::Root;

const REDIRECT: HeaderName = HeaderName::from_static("x-accel-redirect");

/// What applications tell nginx, and the X-Sendfile of Apache and lighttpd, which is not followed here: it names a file
/// of the machine. None is for the client.
const INSTRUCTIONS: [&str; 9] = [
    "x-accel-redirect",
    "x-accel-buffering",
    "x-accel-expires",
    "x-accel-charset",
    "x-accel-limit-rate",
    "x-sendfile",
    "x-sendfile2",
    "x-lighttpd-send-file",
    "x-lighttpd-send-tempfile",
];

/// What of a client's request a file's answer depends on.
#[derive(Default)]
pub struct FileFields {
    method: Method,
    headers: HeaderMap,
}

impl FileFields {
    /// Keeps them, where the site may need them: the request itself goes to the back end.
    pub fn keep(site: &Site, request: &ClientRequest) -> FileFields {
        if site.accel.is_empty() {
            return FileFields::default();
        }
        FileFields { method: request.method.clone(), headers: request.headers.clone() }
    }
}

/// Follows X-Accel-Redirect where the site maps it to a folder; elsewhere it is not for the client either.
pub fn follow(site: &Site, fields: &FileFields, reply: Reply) -> Result<Reply, Fault> {
    let Reply::Response(mut response, back_end) = reply else { return Ok(reply) };
    let target = response.headers().get(REDIRECT).cloned();
    drop_all(response.headers_mut(), |field| INSTRUCTIONS.contains(&field.as_str()));
    let Some(target) = target.filter(|_| !site.accel.is_empty()) else {
        return Ok(Reply::Response(response, back_end));
    };
    let path = target.to_str().ok().and_then(|text| CanonicalPath::parse(text.split('?').next()?).ok());
    let (root, rest) = path
        .as_ref()
        .and_then(|path| locate(&site.accel, path.decoded()))
        .ok_or_else(|| Fault::new(Kind::BadAnswer, "X-Accel-Redirect names a path that `accel` does not map"))?;
    let FileFields { method, headers } = fields;
    let asked = Asked { method, headers, precompressed: false, now: SystemTime::now() };
    answer_accel(root, rest, asked, response.into_parts().0.headers).map(Reply::from)
}

/// Which folder a path is in, and the rest of the path there: empty, or `/` and more.
pub fn locate<'a, 'p>(accel: &'a [(String, Root)], path: &'p [u8]) -> Option<(&'a Root, &'p [u8])> {
    accel.iter().find_map(|(prefix, root)| {
        let rest = path.strip_prefix(prefix.trim_end_matches('/').as_bytes())?;
        rest.first().is_none_or(|b| *b == b'/').then_some((root, rest))
    })
}
