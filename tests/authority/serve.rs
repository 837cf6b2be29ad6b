//! The resources.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::book::{Account, Authorization, Book, Challenge, Identifier, Order};
use super::jose::{self, Signed, Signer, Wrong};
use super::validate::Question;
use super::{Placed, Replaces, Resource, Rules, Stuck, What, World};

/// Serves until `stopped`.
pub fn run(world: &Arc<World>, listener: std::net::TcpListener, mut stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(world.issuer.server_config()));
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let stream = tokio::select! {
                _ = &mut stopped => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let (world, acceptor) = (Arc::clone(world), acceptor.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                world.book().counters.connections += 1;
                let service = service_fn(|request| answer(Arc::clone(&world), request));
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

/// A body that may break off.
pub struct Body {
    data: Option<Bytes>,
    breaks: bool,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(match self.data.take() {
            Some(data) => Some(Ok(Frame::data(data))),
            None if self.breaks => Some(Err(std::io::Error::other("broken off"))),
            None => None,
        })
    }
}

type Answer = Response<Body>;

async fn answer(world: Arc<World>, request: Request<Incoming>) -> Result<Answer, std::io::Error> {
    let path = request.uri().path().to_owned();
    let Some((resource, number)) = resource(&path) else { return Ok(plain(404, "no such page")) };
    {
        let mut book = world.book();
        *book.counters.requests.entry(resource).or_default() += 1;
        let agent = request.headers().get(header::USER_AGENT).map(|agent| agent.to_str().unwrap().to_owned());
        book.counters.user_agent = agent.unwrap_or_default();
    }
    let mut answer = match befalls(&world, resource) {
        None => respond(&world, resource, &number, request).await,
        Some(What::HangUp) => return Err(std::io::Error::other("hung up")),
        Some(What::Silence) => std::future::pending().await,
        Some(What::Html(status)) => {
            let mut page = plain(status, "<html><body><h1>Bad day</h1></body></html>");
            page.headers_mut().insert(header::CONTENT_TYPE, "text/html".parse().unwrap());
            page
        }
        Some(What::Flood(status, bytes)) => plain(status, " ".repeat(bytes)),
        Some(What::Problem(status, problem, detail, retry_after)) => {
            let mut answer = told(status, &json!({ "type": urn(problem), "detail": detail, "status": status }));
            if let Some(retry_after) = retry_after {
                answer.headers_mut().insert(header::RETRY_AFTER, retry_after.parse().unwrap());
            }
            answer
        }
        Some(What::BreakOff) => {
            let mut answer = respond(&world, resource, &number, request).await;
            let body = answer.body_mut();
            let whole = body.data.take().unwrap_or_default();
            *body = Body { data: Some(whole.slice(..whole.len() / 2)), breaks: true };
            answer.headers_mut().insert(header::CONTENT_LENGTH, whole.len().max(1).into());
            answer
        }
    };
    // Section 6.5: a nonce with every answer to a POST.
    let nonce = jose::random();
    if !world.rules().wrong_nonces {
        world.book().nonces.insert(nonce.clone());
    }
    answer.headers_mut().insert("replay-nonce", nonce.parse().unwrap());
    Ok(answer)
}

fn befalls(world: &World, resource: Resource) -> Option<What> {
    let mut rules = world.rules();
    let fault = rules.faults.iter_mut().find(|fault| fault.resource == resource && fault.times > 0)?;
    fault.times -= 1;
    Some(fault.what.clone())
}

fn resource(path: &str) -> Option<(Resource, String)> {
    let (name, rest) = path.strip_prefix('/')?.split_once('/').unwrap_or((path.strip_prefix('/')?, ""));
    let resource = match name {
        "directory" => Resource::Directory,
        "nonce" => Resource::NewNonce,
        "new-account" => Resource::NewAccount,
        "new-order" => Resource::NewOrder,
        "account" => Resource::Account,
        "order" => Resource::Order,
        "authorization" => Resource::Authorization,
        "challenge" => Resource::Challenge,
        "finalize" => Resource::Finalize,
        "certificate" => Resource::Certificate,
        "renewal" => Resource::RenewalInfo,
        _ => return None,
    };
    Some((resource, rest.to_owned()))
}

async fn respond(world: &Arc<World>, resource: Resource, rest: &str, request: Request<Incoming>) -> Answer {
    match (resource, request.method()) {
        (Resource::Directory, &Method::GET) => return told(200, &directory(world)),
        (Resource::NewNonce, &Method::HEAD) => return plain(200, ""),
        (Resource::NewNonce, &Method::GET) => return plain(204, ""),
        (Resource::RenewalInfo, &Method::GET) => return renewal_info(world, rest),
        (_, &Method::POST) => {}
        _ => return problem(405, "malformed", "the method is wrong"),
    }
    if request.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/jose+json") {
        return problem(415, "malformed", "the content type is wrong");
    }
    let url = format!("{}{}", world.base, request.uri().path());
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let signed = match admit(world, &body, &url) {
        Ok(signed) => signed,
        Err(("badNonce", detail)) => {
            world.book().counters.bad_nonces += 1;
            return problem(400, "badNonce", &detail);
        }
        Err(wrong) => return refused(wrong),
    };
    if let (Signer::Key(..), false) = (&signed.signer, resource == Resource::NewAccount) {
        return problem(400, "malformed", "kid is needed here");
    }
    let answered = match (resource, &signed.signer) {
        (Resource::NewAccount, Signer::Key(key, thumbprint)) => new_account(world, &signed, key, thumbprint),
        (Resource::NewOrder, Signer::Account(account)) => new_order(world, &signed, account),
        (Resource::Account, Signer::Account(account)) => change_account(world, &signed, account),
        (Resource::Order, Signer::Account(account)) => read_order(world, rest, account),
        (Resource::Authorization, Signer::Account(account)) => read_authorization(world, rest, account),
        (Resource::Challenge, Signer::Account(account)) => challenge(world, &signed, rest, account),
        (Resource::Finalize, Signer::Account(account)) => finalize(world, &signed, rest, account),
        (Resource::Certificate, Signer::Account(account)) => certificate(world, rest, account),
        _ => Err(("malformed", "jwk is needed here".to_owned())),
    };
    answered.unwrap_or_else(refused)
}

fn admit(world: &World, body: &[u8], url: &str) -> Result<Signed, Wrong> {
    let signed = jose::open(body, |account| {
        world.book().accounts.iter().find(|known| known.url == account).map(|known| known.key.clone())
    })?;
    let fresh = world.book().nonces.remove(&signed.nonce);
    if !fresh || jose::dice() < world.rules().bad_nonce {
        return Err(("badNonce", "JWS has an invalid anti-replay nonce".to_owned()));
    }
    if signed.url != url {
        return Err(("unauthorized", "the url of the header is another".to_owned()));
    }
    Ok(signed)
}

fn directory(world: &World) -> Value {
    let (base, rules) = (&world.base, world.rules());
    let mut directory = json!({
        "newNonce": format!("{base}/nonce"),
        "newAccount": format!("{base}/new-account"),
        "newOrder": format!("{base}/new-order"),
        "revokeCert": format!("{base}/revoke"),
        "keyChange": format!("{base}/key-change"),
        "meta": { "externalAccountRequired": rules.external_account.is_some() },
    });
    if rules.renewal_info {
        directory["renewalInfo"] = format!("{base}/renewal").into();
    }
    if !rules.profiles.is_empty() {
        let profiles = rules.profiles.iter().map(|(name, text)| ((*name).to_owned(), Value::from(*text)));
        directory["meta"]["profiles"] = Value::Object(profiles.collect());
    }
    directory
}

fn new_account(world: &World, signed: &Signed, key: &[u8], thumbprint: &str) -> Result<Answer, Wrong> {
    let wish = signed.payload.clone().unwrap_or_default();
    let mut book = world.book();
    if let Some(known) = book.accounts.iter().find(|known| known.key == key) {
        return Ok(located(200, &known.url, &json!({ "status": "valid", "contact": known.contact })));
    }
    if wish["onlyReturnExisting"] == true {
        return Err(("accountDoesNotExist", "no account has this key".to_owned()));
    }
    if wish["termsOfServiceAgreed"] != true {
        return Err(("userActionRequired", "the terms were not agreed to".to_owned()));
    }
    if let Some((id, secret)) = &world.rules().external_account {
        let binding = &wish["externalAccountBinding"];
        if binding.is_null() {
            return Err(("externalAccountRequired", "who are you?".to_owned()));
        }
        jose::check_binding(binding, id, secret, key, &format!("{}/new-account", world.base))?;
    }
    book.counters.accounts += 1;
    let url = format!("{}/account/{}", world.base, book.counters.accounts);
    let contact = texts(&wish["contact"]);
    book.counters.contact.clone_from(&contact);
    let answer = located(201, &url, &json!({ "status": "valid", "contact": contact }));
    book.accounts.push(Account { url, key: key.to_vec(), thumbprint: thumbprint.to_owned(), contact });
    Ok(answer)
}

fn change_account(world: &World, signed: &Signed, account: &str) -> Result<Answer, Wrong> {
    if signed.url != account {
        return Err(("unauthorized", "not your account".to_owned()));
    }
    let mut book = world.book();
    if let Some(contact) = signed.payload.as_ref().and_then(|wish| wish.get("contact")) {
        if texts(contact).iter().any(|contact| contact.contains("@example.com")) {
            return Err(("invalidContact", "example.com is nobody's".to_owned()));
        }
        book.counters.contact = texts(contact);
    }
    Ok(told(200, &json!({ "status": "valid", "contact": book.counters.contact })))
}

fn new_order(world: &World, signed: &Signed, account: &str) -> Result<Answer, Wrong> {
    let (rules, wish) = (world.rules().clone(), signed.payload.clone().unwrap_or_default());
    let names: Vec<Identifier> = wish["identifiers"].as_array().into_iter().flatten().map(identifier).collect();
    if names.is_empty() {
        return Err(("malformed", "no identifiers".to_owned()));
    }
    let rejected: Vec<&Identifier> = names.iter().filter(|name| rules.rejected.contains(&name.value)).collect();
    if !rejected.is_empty() {
        return Ok(rejection(&rejected));
    }
    let text = |name: &str| wish[name].as_str().map(str::to_owned);
    let (profile, replaces) = (text("profile"), text("replaces"));
    if let Some(profile) = &profile
        && !rules.profiles.iter().any(|(name, _)| name == profile)
    {
        return Err(("invalidProfile", format!("no profile {profile}")));
    }
    let mut book = world.book();
    if replaces.is_some() && rules.replaces == Replaces::AlreadyReplaced {
        return Ok(problem(409, "alreadyReplaced", "another order replaces this certificate"));
    }
    let mut authorizations = Vec::new();
    for name in &names {
        let bare = name.value.strip_prefix("*.");
        let kinds = if bare.is_some() { vec!["dns-01"] } else { rules.challenges.clone() };
        let challenge = |kind| Challenge { kind, token: jose::random(), status: "pending", error: None };
        authorizations.push(book.authorizations.len());
        book.authorizations.push(Authorization {
            account: account.to_owned(),
            name: Identifier { kind: name.kind.clone(), value: bare.unwrap_or(&name.value).to_owned() },
            wildcard: bare.is_some(),
            status: "pending",
            challenges: kinds.into_iter().map(challenge).collect(),
        });
    }
    book.counters.orders += 1;
    let mut all: Vec<&str> = names.iter().map(|name| name.value.as_str()).collect();
    all.sort_unstable();
    let all = all.join(",");
    *book.counters.orders_for.entry(all.clone()).or_default() += 1;
    let (at, profile_of, replaced) = (SystemTime::now(), profile.clone(), replaces.clone());
    book.counters.placed.push(Placed { at, names: all, profile: profile_of, replaces: replaced });
    book.counters.last_order = (profile.clone(), replaces.clone());
    let replaces = replaces.filter(|_| rules.replaces == Replaces::Reflected);
    let (account, processing, certificate) = (account.to_owned(), None, None);
    let order = Order { account, names, authorizations, profile, replaces, processing, certificate };
    let url = format!("{}/order/{}", world.base, book.orders.len());
    book.orders.push(order);
    let index = book.orders.len() - 1;
    Ok(located(201, &url, &show_order(world, &book, &rules, index)))
}

fn rejection(rejected: &[&Identifier]) -> Answer {
    let sub = |name: &&Identifier| {
        json!({
            "type": urn("rejectedIdentifier"),
            "detail": format!("Policy forbids issuing for \"{}\"", name.value),
            "identifier": { "type": name.kind, "value": name.value },
        })
    };
    let subproblems: Vec<Value> = rejected.iter().map(sub).collect();
    let detail = "Error creating new order";
    told(400, &json!({ "type": urn("rejectedIdentifier"), "detail": detail, "subproblems": subproblems }))
}

fn show_order(world: &World, book: &Book, rules: &Rules, index: usize) -> Value {
    let (base, order) = (&world.base, &book.orders[index]);
    let identifier = |name: &Identifier| json!({ "type": name.kind, "value": name.value });
    let mut shown = json!({
        "status": book.status(order, rules.stuck == Some(Stuck::Processing)),
        "expires": rfc3339(SystemTime::now() + Duration::from_secs(7 * 86_400)),
        "identifiers": order.names.iter().map(identifier).collect::<Vec<_>>(),
        "authorizations": order.authorizations.iter().map(|id| format!("{base}/authorization/{id}")).collect::<Vec<_>>(),
        "finalize": format!("{base}/finalize/{index}"),
    });
    if let Some(certificate) = order.certificate.filter(|_| shown["status"] == "valid") {
        shown["certificate"] = format!("{base}/certificate/{certificate}").into();
    }
    if let Some(replaces) = &order.replaces {
        shown["replaces"] = replaces.as_str().into();
    }
    if let Some(profile) = &order.profile {
        shown["profile"] = profile.as_str().into();
    }
    shown
}

fn read_order(world: &World, number: &str, account: &str) -> Result<Answer, Wrong> {
    let (mut book, rules) = (world.book(), world.rules().clone());
    let index = own(number, account, book.orders.iter().map(|order| order.account.as_str()))?;
    let shown = show_order(world, &book, &rules, index);
    let mut answer = told(200, &shown);
    let is_open = shown["status"] == "pending" || shown["status"] == "processing";
    if let Some(seconds) = rules.order_retry_after.filter(|_| is_open) {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(left @ 1..) = &mut book.orders[index].processing {
        *left -= 1;
    }
    Ok(answer)
}

fn read_authorization(world: &World, number: &str, account: &str) -> Result<Answer, Wrong> {
    let book = world.book();
    let index = own(number, account, book.authorizations.iter().map(|known| known.account.as_str()))?;
    let authorization = &book.authorizations[index];
    let name = world.rules().asks_about.clone().unwrap_or_else(|| authorization.name.value.clone());
    let challenges: Vec<Value> =
        authorization.challenges.iter().map(|challenge| show_challenge(world, index, challenge)).collect();
    Ok(told(
        200,
        &json!({
            "status": authorization.status,
            "identifier": { "type": authorization.name.kind, "value": name },
            "wildcard": authorization.wildcard,
            "challenges": challenges,
        }),
    ))
}

fn show_challenge(world: &World, authorization: usize, challenge: &Challenge) -> Value {
    let mut shown = json!({
        "type": challenge.kind,
        "url": format!("{}/challenge/{authorization}/{}", world.base, challenge.kind),
        "token": challenge.token,
        "status": challenge.status,
    });
    if let Some((problem, detail)) = &challenge.error {
        shown["error"] = json!({ "type": urn(problem), "detail": detail, "status": 400 });
    }
    shown
}

fn challenge(world: &Arc<World>, signed: &Signed, rest: &str, account: &str) -> Result<Answer, Wrong> {
    let (number, kind) = rest.split_once('/').ok_or_else(|| ("malformed", "no challenge".to_owned()))?;
    let mut book = world.book();
    let index = own(number, account, book.authorizations.iter().map(|known| known.account.as_str()))?;
    let thumbprint = book.accounts.iter().find(|known| known.url == account).unwrap().thumbprint.clone();
    let authorization = &mut book.authorizations[index];
    let name = authorization.name.clone();
    let is_open = authorization.status == "pending";
    let challenge = authorization.challenges.iter_mut().find(|challenge| challenge.kind == kind);
    let challenge = challenge.ok_or_else(|| ("malformed", "no such challenge".to_owned()))?;
    // Section 7.5.1: the client says that it is ready with an empty object; POST-as-GET only reads.
    if signed.payload.is_some() && challenge.status == "pending" {
        if !is_open {
            return Err(("malformed", "the authorization is not pending".to_owned()));
        }
        challenge.status = "processing";
        let key_authorization = format!("{}.{thumbprint}", challenge.token);
        let question = Question { name, kind: challenge.kind, token: challenge.token.clone(), key_authorization };
        if !world.rules().never_looks_at.contains(&question.name.value) {
            tokio::spawn(validate(Arc::clone(world), index, question));
        }
    }
    let answer = told(200, &show_challenge(world, index, challenge));
    let kind = challenge.kind.to_owned();
    if signed.payload.is_some() {
        book.counters.chosen.push(kind);
    }
    Ok(answer)
}

async fn validate(world: Arc<World>, index: usize, question: Question) {
    let (validation, delay, failing) = {
        while world.rules().stuck == Some(Stuck::Pending) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rules = world.rules();
        let failing = rules.failing.get(question.kind).map(|problem| (*problem).to_owned());
        (rules.validation.clone(), rules.validation_delay, failing)
    };
    tokio::time::sleep(delay).await;
    let result = match failing {
        Some(problem) => Err((problem, "The test wants it so".to_owned())),
        None => question.ask(&validation).await,
    };
    let mut book = world.book();
    let authorization = &mut book.authorizations[index];
    let challenge = authorization.challenges.iter_mut().find(|challenge| challenge.kind == question.kind).unwrap();
    challenge.status = if result.is_ok() { "valid" } else { "invalid" };
    authorization.status = challenge.status;
    challenge.error = result.err();
}

fn finalize(world: &World, signed: &Signed, number: &str, account: &str) -> Result<Answer, Wrong> {
    let (mut book, rules) = (world.book(), world.rules().clone());
    let index = own(number, account, book.orders.iter().map(|order| order.account.as_str()))?;
    if book.status(&book.orders[index], false) != "ready" {
        return Ok(problem(403, "orderNotReady", "the order is not ready"));
    }
    let csr = signed.payload.as_ref().and_then(|payload| payload["csr"].as_str()).unwrap_or_default();
    let certificate = world.issuer.issue(&jose::decode(csr)?, &book.orders[index].names, account, &rules)?;
    book.counters.certificates += 1;
    book.certificates.push(certificate);
    let certificate = book.certificates.len() - 1;
    book.orders[index].certificate = Some(certificate);
    book.orders[index].processing = Some(rules.processing);
    Ok(told(200, &show_order(world, &book, &rules, index)))
}

fn certificate(world: &World, number: &str, account: &str) -> Result<Answer, Wrong> {
    let book = world.book();
    let index = own(number, account, book.certificates.iter().map(|known| known.account.as_str()))?;
    let mut answer = plain(200, book.certificates[index].pem.clone());
    answer.headers_mut().insert(header::CONTENT_TYPE, "application/pem-certificate-chain".parse().unwrap());
    Ok(answer)
}

fn renewal_info(world: &World, id: &str) -> Answer {
    let (book, rules) = (world.book(), world.rules());
    let serial = id.split_once('.').map_or("", |(_, serial)| serial);
    let Some(number) = book.certificates.iter().position(|known| known.serial == serial) else {
        return problem(404, "malformed", "no such certificate");
    };
    let certificate = &book.certificates[number];
    let lifetime = certificate.not_after.duration_since(certificate.not_before).unwrap();
    let usual = (certificate.not_before + lifetime * 2 / 3, certificate.not_before + lifetime * 5 / 6);
    let (start, end) = rules.windows.get(&number).copied().or(rules.window).unwrap_or(usual);
    let window = json!({ "start": rfc3339(start), "end": rfc3339(end) });
    let mut answer = told(200, &json!({ "suggestedWindow": window, "explanationURL": rules.explanation }));
    if let Some(seconds) = rules.window_retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

/// The index behind a URL, if it is this account's.
fn own<'a>(number: &str, account: &str, mut owners: impl Iterator<Item = &'a str>) -> Result<usize, Wrong> {
    let index: usize = number.parse().map_err(|_| ("malformed", "no number".to_owned()))?;
    match owners.nth(index) {
        Some(owner) if owner == account => Ok(index),
        Some(_) => Err(("unauthorized", "not yours".to_owned())),
        None => Err(("malformed", "there is no such thing".to_owned())),
    }
}

fn identifier(value: &Value) -> Identifier {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    Identifier { kind: text("type"), value: text("value") }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn urn(problem: &str) -> String {
    format!("urn:ietf:params:acme:error:{problem}")
}

fn refused((kind, detail): Wrong) -> Answer {
    let status = match kind {
        "unauthorized" | "externalAccountRequired" | "userActionRequired" => 403,
        _ => 400,
    };
    problem(status, kind, &detail)
}

fn problem(status: u16, kind: &str, detail: &str) -> Answer {
    told(status, &json!({ "type": urn(kind), "detail": detail, "status": status }))
}

fn located(status: u16, url: &str, body: &Value) -> Answer {
    let mut answer = told(status, body);
    answer.headers_mut().insert(header::LOCATION, url.parse().unwrap());
    answer
}

fn told(status: u16, body: &Value) -> Answer {
    let mut answer = plain(status, body.to_string());
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    answer.headers_mut().insert(header::CONTENT_TYPE, kind.parse().unwrap());
    answer
}

fn plain(status: u16, body: impl Into<Bytes>) -> Answer {
    let body = body.into();
    let mut answer = Response::new(Body { data: Some(body), breaks: false });
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

/// Seconds are enough.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let is_leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", day + 1, rest / 3600, rest / 60 % 60, rest % 60)
}
