//! The whole journey of one request. Each step takes a value and returns the next; nothing calls back up.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use ::http::{HeaderMap, Method, Request, Response, header, request};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use crate::base::boxed::in_place;
use crate::base::fault::{Fault, Kind, Side};
use crate::edge::accel::{self, FileFields};
use crate::edge::client_body::ClientBody;
use crate::edge::connection::Connection;
use crate::edge::finish::{Journey, finish};
use crate::edge::site::{Action, Route, Site};
use crate::edge::snapshot::Snapshot;
use crate::edge::{challenge, redirect, socket};
use crate::http::body::{Body, Limited};
use crate::http::reply;
use crate::http::request::{ClientRequest, UpstreamRequest};
use crate::upstream::Reply;
use crate::upstream::files::answer::{Asked, answer, folder_redirect};
use crate::upstream::files::try_files::Found;

/// Answers one request. Never fails: a fault becomes a page, and both are logged with the same id.
pub async fn serve(connection: Rc<Connection>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let snapshot = connection.process.snapshot.load_full();
    let mut journey = Journey::begin(&connection, &snapshot, &request);
    let (mut head, body) = request.into_parts();
    let upgrade = head.extensions.remove::<OnUpgrade>();
    let connect = head.method == Method::CONNECT;
    let waits = head.headers.contains_key(header::EXPECT);
    let (body, unread) = ClientBody::new(body, &snapshot.terms, connection.facts.clone());
    let answer = match in_place(|| travel(&connection, &snapshot, &mut journey, head, body)).await {
        // RFC 9110, section 9.3.6: "Any 2xx (Successful) response indicates that the sender … will switch to tunnel mode".
        Ok(Reply::Response(response, _)) if connect && response.status().is_success() => {
            let fault = Fault::new(Kind::BadAnswer, "the back end took a WebSocket handshake for a plain request");
            Box::pin(fault_page(&connection, &mut journey, &fault)).await
        }
        Ok(Reply::Response(response, back_end)) => {
            journey.note_back_end(back_end);
            response
        }
        Ok(Reply::Switched(switched)) => {
            let process = connection.process.clone();
            let answer = socket::join(connection, journey, *switched, upgrade);
            process.note_socket(&snapshot);
            return Ok(answer);
        }
        Err(fault) => Box::pin(fault_page(&connection, &mut journey, &fault)).await,
    };
    // A client that waits for 100 (Continue) has not sent its body, and asking for it now would be an answer. Of a
    // body that the guard refused nothing more comes.
    if waits || connection.facts.body_refusal().is_some() {
        unread.give_up();
    }
    if !unread.drain().await {
        journey.keep_body(unread);
    }
    Ok(finish(&connection, journey, answer))
}

/// From the head that hyper parsed to what a destination replied.
async fn travel(
    connection: &Connection,
    snapshot: &Arc<Snapshot>,
    journey: &mut Journey,
    head: request::Parts,
    body: ClientBody,
) -> Result<Reply, Fault> {
    if let Some(refusal) = journey.refusal() {
        return Err(Fault::new(refusal.kind, refusal.detail));
    }
    connection.process.overload.check()?;
    let protocol = head.extensions.get::<Protocol>().cloned();
    let protocol = protocol.as_ref().map(Protocol::as_str);
    let request = ClientRequest::read(head, protocol, connection.arrival, &snapshot.trust, snapshot.terms.limits)
        .inspect_err(|fault| connection.note_fault(fault))?;
    journey.note_request(&request);
    if let Some(response) = challenge::answer(&connection.process.challenges, snapshot.webroot.as_ref(), &request) {
        return response.map(Reply::from);
    }
    connection.check_certificate(&request)?;
    let site = snapshot
        .site(connection.listener, &request.authority.host)
        .ok_or_else(|| Fault::new(Kind::NotFound, "no site has this host"))?;
    journey.note_site(site);
    if let Some(response) = redirect::elsewhere(site, connection, &request) {
        return Ok(response.into());
    }
    site.check(&request)?;
    let route = site.route(&request)?;
    journey.note_route(route);
    if let Err(fault) = site.check_socket(route, &request) {
        if fault.kind == Kind::Misdirected {
            connection.retire();
        }
        return Err(fault);
    }
    let gates = site.gates(route, &request);
    for gate in gates.iter().flatten() {
        gate.check(&request)?;
    }
    let mut user = None;
    for file in gates.iter().flatten().filter_map(|gate| gate.passwords.as_ref()) {
        let sign_in = &connection.process.gate.sign_in;
        user = Some(Box::pin(sign_in.check(file, &request.headers, request.client.address)).await?);
    }
    journey.note_user(user.as_ref());
    if let Some(rules) = route.socket.as_ref().filter(|_| request.websocket) {
        journey.note_socket(rules.admit(&request, &connection.process, snapshot.terms.timeouts.write)?);
    }
    let body = limit(body, request.headers.get(header::CONTENT_LENGTH), site.max_body)?;
    let fields = FileFields::keep(site, &request);
    let path = route.rewrite(&request.path);
    // Of all that a back end would be told a file needs nothing.
    if let Action::Files { files, .. } = &route.action
        && site.request_headers.is_empty()
        && let Some(file) = files.recall(path.as_ref().unwrap_or(&request.path), &connection.worker.files)
    {
        return answer(file, asked(site, &request.method, &request.headers)).map(Reply::from);
    }
    let mut request = request.forward(path, route.takes_sockets());
    request.user = user;
    request.server_name = site.stand_in_name(&request.authority.host);
    if site.forwarded {
        request.add_forwarded();
    }
    site.request_headers.apply(&mut request.headers);
    let reply = in_place(|| send(connection, site, route, request, body)).await?;
    accel::follow(site, &fields, reply)
}

/// To the destination that the route names.
async fn send(
    connection: &Connection,
    site: &Site,
    route: &Route,
    request: UpstreamRequest,
    body: Body,
) -> Result<Reply, Fault> {
    let worker = &connection.worker;
    match &route.action {
        Action::Http(upstream) => upstream.send(request, body, &worker.pool).await,
        Action::Redirect { pattern, to, status } => {
            redirect::answer(pattern.as_ref(), to, *status, &request).map(Reply::from)
        }
        Action::Respond { status, body, content_type } => {
            let response = redirect::respond(*status, body.clone(), content_type);
            // As with nginx: what the file says in words is the answer, a bare status is an error like others.
            let response = if body.is_empty() { site.error_pages.dress(response).await } else { response };
            Ok(response.into())
        }
        Action::Files { files, php, http } => {
            match files.find_and_keep(&request.path, &request.method, &worker.files)? {
                Found::File(file) => answer(file, asked(site, &request.method, &request.headers)).map(Reply::from),
                Found::Redirect(status) => {
                    Ok(folder_redirect(status, &request.original, request.query.as_deref()).into())
                }
                Found::Status(status) => {
                    let response = redirect::respond(status, Default::default(), "");
                    Ok(site.error_pages.dress(response).await.into())
                }
                Found::Script(script) => match php {
                    // Boxed: a request to another back end needs no room for it.
                    Some(php) => in_place(|| php.send(request, body, script, &worker.fastcgi)).await.map(Reply::from),
                    None => Err(Fault::new(Kind::NotFound, "a script, but the route has no php")),
                },
                Found::Upstream => match http {
                    Some(upstream) => upstream.send(request, body, &worker.pool).await,
                    None => Err(Fault::new(Kind::NotFound, format!("site {} has no upstream", site.name))),
                },
            }
        }
    }
}

/// What a request says that a file's answer depends on.
fn asked<'r>(site: &Site, method: &'r Method, headers: &'r HeaderMap) -> Asked<'r> {
    Asked { method, headers, precompressed: site.answers.compress, now: SystemTime::now() }
}

/// Refuses a body that says it is too long before a byte of it is read, and one that turns out to be.
fn limit(body: ClientBody, length: Option<&::http::HeaderValue>, max: Option<u64>) -> Result<Body, Fault> {
    let declared = length.and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if declared.zip(max).is_some_and(|(declared, max)| declared > max) {
        return Err(Fault::new(Kind::BodyTooLarge, "the Content-Length is over max_body"));
    }
    Ok(Body::stream(Limited::new(body, max)))
}

/// The page for a fault, the site's own if it has one, and its line in the error log.
async fn fault_page(connection: &Connection, journey: &mut Journey, fault: &Fault) -> Response<Body> {
    let id = connection.process.next_id();
    let status = reply::status(fault).as_u16();
    let (site, client, path) = (journey.site_name(), journey.client(), journey.path());
    match fault.side() {
        // What clients do wrong is in the access log; here it would only be a way to fill the disk.
        Side::Client => tracing::debug!(id, site, %client, path, status, "{fault}"),
        Side::Edge => tracing::error!(id, site, %client, path, status, "{fault}"),
        Side::Upstream => tracing::warn!(id, site, %client, path, status, "{fault}"),
    }
    let mut response = reply::page(fault, &id);
    journey.note_fault(id);
    if matches!(
        fault.kind,
        Kind::Malformed | Kind::HeadTimeout | Kind::BodyTimeout | Kind::UnknownCoding | Kind::Version
    ) {
        // What follows on a connection whose framing is in doubt is never read.
        close(response.headers_mut(), connection);
    }
    let Some(site) = journey.site() else { return response };
    if fault.kind == Kind::Unauthorized {
        // RFC 9110, section 15.5.2: "The server generating a 401 response MUST send a WWW-Authenticate header field".
        response.headers_mut().insert(header::WWW_AUTHENTICATE, site.challenge.clone());
    }
    site.error_pages.dress(response).await
}

fn close(headers: &mut HeaderMap, connection: &Connection) {
    if connection.is_http1() {
        headers.insert(header::CONNECTION, ::http::HeaderValue::from_static("close"));
    }
}
