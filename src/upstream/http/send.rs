//! From a request to an answer: back end after back end, connection after connection, as far as a retry is safe. What
//! was never written goes to the next back end, unless something of its body was taken from the client already. What was
//! written is sent once more if it asks for nothing to be changed, has no body, and its connection ended before the first
//! byte of an answer.

use std::pin::pin;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, Response, header};

use crate::base::boxed::in_place;
use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::request::UpstreamRequest;
use crate::upstream::Reply;
use crate::upstream::connect::{self, ConnectError};
use crate::upstream::http::answer::{self, Answered};
use crate::upstream::http::back_end::BackEndState;
use crate::upstream::http::balance::Candidate;
use crate::upstream::http::codec::body_length::BodyLength;
use crate::upstream::http::connection::{Broken, Connection};
use crate::upstream::http::exchange;
use crate::upstream::http::outgoing::{self, Outgoing};
use crate::upstream::http::pool::Pool;
use crate::upstream::http::session::Verdict;
use crate::upstream::http::settings::Health;
use crate::upstream::http::{HttpUpstream, Target, proxy};

/// Clients that were told to come back are not to come at once.
const SOONEST: Duration = Duration::from_secs(1);

/// What a try needs at least to tell anything about a back end.
const LEAST_TRY: Duration = Duration::from_millis(10);

/// Why one back end gave no answer.
enum Miss {
    /// Nothing was written: another one may be asked.
    Unreached(Fault),
    /// The connection died under a request that may be sent once more.
    Died {
        fault: Fault,
        /// It had waited in the pool: a back end that is well may close it at any time.
        reused: bool,
    },
    /// It is over.
    Failed(Fault),
}

/// One request under way.
struct Trip {
    outgoing: Outgoing,
    /// For `Sec-WebSocket-Accept`; `Some` for a handshake.
    websocket: Option<Option<HeaderValue>>,
    /// What a connection begins with. One that begins with something is this request's alone.
    proxy_head: Option<Vec<u8>>,
    /// What is left of `timeouts.connect`.
    patience: Duration,
    /// Back ends that share it.
    ahead: u32,
    /// Whether only a new connection will do.
    anew: bool,
}

impl HttpUpstream {
    /// Sends `request` and gives the answer, whose body streams from the back end. It must run on a worker, inside a
    /// [`LocalSet`](tokio::task::LocalSet); `pool` is that worker's own. The reply names its back end.
    ///
    /// Dropped, or with the answer's body dropped before its end, it closes the connection: the back end is freed.
    ///
    /// # Errors
    ///
    /// `Connect` and `Busy` when no back end was reached, `ReadTimeout` and `SendTimeout`, `BadAnswer` and `Truncated`
    /// for an answer that is none; and whatever fault `body` ended in, unchanged.
    pub async fn send(&self, mut request: UpstreamRequest, body: Body, pool: &Pool) -> Result<Reply, Fault> {
        if request.websocket {
            outgoing::complete_handshake(&mut request.headers)?;
        }
        self.retries.request();
        let mut session = self.session(&mut request, &body);
        let mut order = self.balancer.order(&self.candidates, request.client.address, &request.headers);
        let led = session.lead(&mut order, &self.candidates);
        let nobody = !self.candidates.iter().any(|candidate| candidate.state.is_in());
        let scheme = request.client.scheme;
        let cookies = self.cookies(&request);
        let mut trip = Trip {
            websocket: request.websocket.then(|| request.headers.get(header::SEC_WEBSOCKET_KEY).cloned()),
            proxy_head: self.proxy_protocol.map(|version| proxy::head_of(version, &request.client)),
            outgoing: Outgoing::new(request, body, &self.host)?,
            patience: self.timeouts.connect,
            ahead: 1,
            anew: false,
        };
        let (mut failure, mut tried) = (None, 0);
        // Answered by a back end that does not have the session.
        let mut denied = None;
        let mut next = self.next(&mut order, &mut tried, trip.patience);
        while let Some(index) = next {
            let (Some(target), Some(candidate)) = (self.targets.get(index), self.candidates.get(index)) else { break };
            trip.ahead = u32::try_from(order.len().saturating_sub(tried)).unwrap_or(0).saturating_add(1);
            let spare = session.is_search() && !trip.outgoing.has_body();
            let answered = {
                let answer = pin!(self.ask(target, candidate, &mut trip, pool));
                session.attend(answer, candidate).await
            };
            match answered {
                Ok(reply) => {
                    let mut reply = match (session.judge(reply, candidate).await?, spare) {
                        (Verdict::Elsewhere(mut reply), true) => {
                            decorate(&mut reply, candidate, None);
                            denied = Some(reply);
                            trip.outgoing.again();
                            next = self.next(&mut order, &mut tried, trip.patience);
                            continue;
                        }
                        (Verdict::Elsewhere(reply) | Verdict::Final(reply), _) => reply,
                    };
                    let cookie = cookies.as_ref().and_then(|had| self.balancer.cookie(candidate, had, scheme));
                    decorate(&mut reply, candidate, cookie);
                    return Ok(reply);
                }
                Err(Miss::Unreached(fault)) => {
                    failure = Some(fault);
                    next = self.next(&mut order, &mut tried, trip.patience);
                }
                Err(Miss::Died { fault, reused }) if self.retries.claim() => {
                    failure = Some(fault);
                    trip.outgoing.repeat();
                    trip.anew = true;
                    // A client that stays with its back end does not leave it for a connection that was too old.
                    let stays = led || (reused && self.balancer.keeps_clients());
                    next = if stays { Some(index) } else { self.next(&mut order, &mut tried, trip.patience) };
                    next = next.or(reused.then_some(index));
                }
                Err(Miss::Failed(_) | Miss::Died { .. }) if denied.is_some() => break,
                Err(Miss::Failed(fault) | Miss::Died { fault, .. }) => return Err(fault),
            }
        }
        denied.ok_or_else(|| self.nobody_answered(nobody, failure))
    }

    /// What is said when all back ends have been tried; `nobody` was in when the request came.
    fn nobody_answered(&self, nobody: bool, failure: Option<Fault>) -> Fault {
        let wait = self.candidates.iter().map(|candidate| candidate.state.wait()).min();
        match (wait.filter(|_| nobody), failure) {
            (Some(wait), failure) => {
                let names: Vec<&str> = self.candidates.iter().map(|candidate| &**candidate.state.name()).collect();
                let fault = Fault::new(Kind::Busy, format!("every back end is out: {}", names.join(", ")));
                let fault = fault.retry_after(wait.max(SOONEST));
                match failure {
                    Some(failure) => fault.because(failure),
                    None => fault,
                }
            }
            (None, Some(failure)) => failure,
            (None, None) => Fault::new(Kind::Connect, "the upstream has no back end"),
        }
    }

    /// The next of `order` that takes requests; behind its end, one that is out and may be tried.
    fn next(&self, order: &mut Vec<usize>, tried: &mut usize, patience: Duration) -> Option<usize> {
        while let Some(index) = order.get(*tried).copied() {
            *tried += 1;
            if self.candidates.get(index).is_some_and(|candidate| candidate.state.admits()) {
                return Some(index);
            }
        }
        // One that is given no time would fail for want of it, and be out for longer.
        if patience < LEAST_TRY {
            return None;
        }
        let mut others = self.candidates.iter().enumerate().filter(|(index, _)| !order.contains(index));
        let (trial, _) = others.find(|(_, candidate)| candidate.state.claim_trial())?;
        order.push(trial);
        *tried += 1;
        Some(trial)
    }

    /// The Cookie fields of `request`, where one of them may have to be set.
    fn cookies(&self, request: &UpstreamRequest) -> Option<HeaderMap> {
        if !self.balancer.needs_cookie() {
            return None;
        }
        let mut cookies = HeaderMap::new();
        for value in request.headers.get_all(header::COOKIE) {
            cookies.append(header::COOKIE, value.clone());
        }
        Some(cookies)
    }

    /// Asks one back end.
    async fn ask(&self, target: &Target, candidate: &Candidate, trip: &mut Trip, pool: &Pool) -> Result<Reply, Miss> {
        let load = candidate.state.enter();
        if trip.websocket.is_some() {
            let connection = in_place(|| self.open(target, &candidate.state, trip)).await?;
            let (connection, response) = in_place(|| self.exchange(connection, target, &candidate.state, trip)).await?;
            let key = trip.websocket.as_ref().and_then(Option::as_ref);
            let answered = Answered { connection, load };
            return answer::switched(response, answered, key, &self.timeouts).map_err(Miss::Failed);
        }
        let (connection, response) = self.exchange_plain(target, &candidate.state, trip, pool).await?;
        let answered = Answered { connection, load };
        answer::plain(response, answered, pool, &target.key, &self.timeouts).map_err(Miss::Failed)
    }

    /// On connections that have waited, and may have been closed meanwhile, until one takes the request; at last on a
    /// new one.
    async fn exchange_plain(
        &self,
        target: &Target,
        state: &BackEndState,
        trip: &mut Trip,
        pool: &Pool,
    ) -> Result<(Box<Connection>, Response<BodyLength>), Miss> {
        while !trip.anew
            && trip.proxy_head.is_none()
            && let Some(connection) = waiting(target, state, pool, trip.outgoing.is_repeatable())
        {
            match self.exchange(connection, target, state, trip).await {
                Err(Miss::Unreached(_)) => {}
                answered => return answered,
            }
        }
        // Boxed: it is rare, and every request would else carry its room about.
        let connection = in_place(|| self.open(target, state, trip)).await?;
        self.exchange(connection, target, state, trip).await
    }

    /// On one connection; the back end's health hears what came of it.
    async fn exchange(
        &self,
        connection: Box<Connection>,
        target: &Target,
        state: &BackEndState,
        trip: &mut Trip,
    ) -> Result<(Box<Connection>, Response<BodyLength>), Miss> {
        let (began, reused) = (cached_time::now(), connection.reused);
        let attempted = self.attempt(connection, target, &mut trip.outgoing).await;
        let health = self.strictness(state);
        match &attempted {
            Ok((_, response)) => state.answered(response.status(), began, health),
            // One that has waited may end at any time.
            Err(Attempt::Died(fault)) if !reused => state.unanswered(fault, began, health),
            Err(Attempt::Failed(fault)) => state.unanswered(fault, began, health),
            Err(Attempt::Died(_) | Attempt::Unsent(_)) => {}
        }
        attempted.map_err(|miss| match miss {
            Attempt::Unsent(fault) => Miss::Unreached(fault),
            Attempt::Died(fault) if trip.outgoing.is_repeatable() => Miss::Died { fault, reused },
            Attempt::Died(fault) | Attempt::Failed(fault) => Miss::Failed(fault),
        })
    }

    /// By what an answer of `state` is judged. A page that is too slow, or that crashes its worker, must not take a whole
    /// site away: what comes of requests puts nobody out who is the last. That nobody listens does.
    fn strictness(&self, state: &BackEndState) -> &Health {
        let other = |it: &Candidate| it.state.name() != state.name() && it.state.is_in();
        if self.candidates.iter().any(other) { &self.health } else { &self.lenient }
    }

    async fn attempt(
        &self,
        mut connection: Box<Connection>,
        target: &Target,
        outgoing: &mut Outgoing,
    ) -> Result<(Box<Connection>, Response<BodyLength>), Attempt> {
        let Some((request, upload)) = outgoing.take(target) else {
            return Err(Attempt::Failed(Fault::new(Kind::Internal, "the request is under way already")));
        };
        let head = *request.method() == Method::HEAD;
        connection.begin(request, upload);
        let broken = match exchange::answer(&mut connection, &self.timeouts).await {
            Ok(mut parts) => {
                let length = answer::check_framing(&mut parts, head).map_err(Attempt::Failed)?;
                return Ok((connection, Response::from_parts(parts, length)));
            }
            Err(broken) => broken,
        };
        let received = connection.has_received();
        let died = !received && matches!(broken, Broken::Io(_));
        // A new one that takes nothing is told to the back end's health.
        if died
            && connection.reused
            && let Some(upload) = connection.take_unsent()
        {
            outgoing.put_back(upload);
            return Err(Attempt::Unsent(answer::no_answer(broken, received)));
        }
        let fault = answer::no_answer(broken, received);
        Err(if died { Attempt::Died(fault) } else { Attempt::Failed(fault) })
    }

    async fn open(&self, target: &Target, state: &BackEndState, trip: &mut Trip) -> Result<Box<Connection>, Miss> {
        let (endpoint, tls) = (&target.back_end.endpoint, target.tls.as_ref());
        // An equal share for each back end: one that swallows packets leaves some for the next.
        let (share, since) = (trip.patience / trip.ahead.max(1), Instant::now());
        let head = trip.proxy_head.as_deref();
        let connected = connect::connect_with_head(endpoint, tls, share, &state.source, head.unwrap_or_default()).await;
        trip.patience = trip.patience.saturating_sub(since.elapsed());
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) => return Err(self.unreached(error, state, since)),
        };
        state.reached();
        let mut connection = Connection::new(stream);
        connection.single = trip.proxy_head.is_some();
        Ok(connection)
    }

    fn unreached(&self, error: ConnectError, state: &BackEndState, began: Instant) -> Miss {
        use rustix::io::Errno;
        let told = format!("cannot connect to {}", state.name());
        let errno = error.io().and_then(std::io::Error::raw_os_error).map(Errno::from_raw_os_error);
        match errno {
            // Ours, and the same for every back end.
            Some(Errno::MFILE | Errno::NFILE) => Miss::Failed(connect::no_descriptor(told, error)),
            Some(Errno::NOMEM | Errno::NOBUFS) => Miss::Failed(Fault::new(Kind::Internal, told).because(error)),
            // Ours as well, but another back end has ports of its own.
            // So is a full queue of a unix socket, where TCP would wait: it is busy, and not gone.
            Some(Errno::ADDRNOTAVAIL | Errno::AGAIN) => Miss::Unreached(Fault::new(Kind::Busy, told).because(error)),
            _ => {
                state.unreached(&error, began, &self.health);
                Miss::Unreached(Fault::new(Kind::Connect, told).because(error))
            }
        }
    }
}

/// A connection of the pool to an address that the back end's name still has.
fn waiting(target: &Target, state: &BackEndState, pool: &Pool, repeated: bool) -> Option<Box<Connection>> {
    loop {
        let connection = pool.take(&target.key, repeated)?;
        let Some(name) = state.source.name() else { return Some(connection) };
        if connection.peer().is_none_or(|address| name.still_has(address)) {
            return Some(connection);
        }
    }
}

/// Why one connection gave no answer.
enum Attempt {
    /// Nothing was written; the request is back.
    Unsent(Fault),
    /// The connection died before the answer's first byte: as one does that the back end closed meanwhile.
    Died(Fault),
    /// It is over.
    Failed(Fault),
}

fn decorate(reply: &mut Reply, candidate: &Candidate, cookie: Option<HeaderValue>) {
    let name = candidate.state.name().clone();
    let headers = match reply {
        Reply::Response(response, back_end) => {
            *back_end = Some(name);
            response.headers_mut()
        }
        Reply::Switched(switched) => {
            switched.back_end = name;
            switched.response.headers_mut()
        }
    };
    if let Some(cookie) = cookie {
        headers.append(header::SET_COOKIE, cookie);
    }
}
