//! From a request to an answer: back end after back end, connection after connection, as far as a retry is safe.

use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::request::UpstreamRequest;
use crate::upstream::connect::{self, ConnectError};
use crate::upstream::http::answer::{self, Answered};
use crate::upstream::http::balance::{BackEndState, Candidate};
use crate::upstream::http::exchange::{self, Upload};
use crate::upstream::http::outgoing::{self, Outgoing};
use crate::upstream::http::pool::{Connection, Pool};
use crate::upstream::http::{HttpUpstream, Target};
use crate::upstream::{Reply, ServedBy};

/// Why one back end gave no answer.
enum Miss {
    /// Nothing was written: another one may be asked.
    Unreached(Fault),
    /// It is over.
    Failed(Fault),
}

/// What is remembered of a request while it is under way.
struct Asked {
    head: bool,
    /// For `Sec-WebSocket-Accept`; `Some` for a handshake.
    websocket: Option<Option<HeaderValue>>,
}

impl HttpUpstream {
    /// Sends `request` and gives the answer, whose body streams from the back end. It must run on a worker, inside a
    /// [`LocalSet`](tokio::task::LocalSet); `pool` is that worker's own. The answer names its back end in a
    /// [`ServedBy`] extension.
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
        let order = self.balancer.order(&self.candidates, request.client.address, &request.headers);
        let scheme = request.client.scheme;
        let cookies = self.cookies(&request);
        let asked = Asked {
            head: request.method == Method::HEAD,
            websocket: request.websocket.then(|| request.headers.get(header::SEC_WEBSOCKET_KEY).cloned()),
        };
        let mut outgoing = Outgoing::new(request, body, &self.host)?;
        let mut failure = None;
        for index in order {
            let (Some(target), Some(candidate)) = (self.targets.get(index), self.candidates.get(index)) else {
                continue;
            };
            match self.ask(target, candidate, &mut outgoing, &asked, pool).await {
                Ok(mut reply) => {
                    let cookie = cookies.as_ref().and_then(|had| self.balancer.cookie(candidate, had, scheme));
                    decorate(&mut reply, candidate, cookie);
                    return Ok(reply);
                }
                Err(Miss::Unreached(fault)) => failure = Some(fault),
                Err(Miss::Failed(fault)) => return Err(fault),
            }
        }
        Err(failure.unwrap_or_else(|| Fault::new(Kind::Connect, "the upstream has no back end")))
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
    async fn ask(
        &self,
        target: &Target,
        candidate: &Candidate,
        outgoing: &mut Outgoing,
        asked: &Asked,
        pool: &Pool,
    ) -> Result<Reply, Miss> {
        let load = candidate.state.enter();
        if let Some(key) = &asked.websocket {
            let (switched, leftover) = oneshot::channel();
            let connection = self.open(target, &candidate.state, Some(switched)).await?;
            let (connection, response) = self.exchange(connection, target, outgoing).await?;
            let answered = Answered { connection, load, exchange: None, head: false };
            let answered = answer::switched(response, answered, key.as_ref(), leftover, &self.timeouts).await;
            return answered.map_err(Miss::Failed);
        }
        let (connection, response) = match pool.take(&target.key) {
            Some(connection) => self.exchange_reused(connection, target, candidate, outgoing, pool).await?,
            None => {
                let connection = self.open(target, &candidate.state, None).await?;
                self.exchange(connection, target, outgoing).await?
            }
        };
        let answered = Answered { connection, load, exchange: outgoing.exchange.clone(), head: asked.head };
        answer::plain(response, answered, pool, &target.key, &self.timeouts).map_err(Miss::Failed)
    }

    /// On connections that have waited, and may have died meanwhile, until one answers; at last on a new one.
    async fn exchange_reused(
        &self,
        first: Connection,
        target: &Target,
        candidate: &Candidate,
        outgoing: &mut Outgoing,
        pool: &Pool,
    ) -> Result<(Connection, Response<Incoming>), Miss> {
        let mut waited = Some(first);
        while let Some(connection) = waited {
            let Some(request) = outgoing.take(target) else { break };
            let copy = outgoing.copy(&request);
            match self.attempt(connection, request, outgoing).await {
                Ok(answered) => return Ok(answered),
                Err(Attempt::Unsent(_)) => waited = pool.take(&target.key),
                Err(Attempt::Died(fault)) => match copy {
                    // Once: whoever dies twice dies of the request.
                    Some(copy) => {
                        outgoing.put_back(copy);
                        break;
                    }
                    None => return Err(Miss::Failed(fault)),
                },
                Err(Attempt::Failed(fault)) => return Err(Miss::Failed(fault)),
            }
        }
        let connection = self.open(target, &candidate.state, None).await?;
        self.exchange(connection, target, outgoing).await
    }

    /// On a new connection.
    async fn exchange(
        &self,
        connection: Connection,
        target: &Target,
        outgoing: &mut Outgoing,
    ) -> Result<(Connection, Response<Incoming>), Miss> {
        let Some(request) = outgoing.take(target) else {
            return Err(Miss::Failed(Fault::new(Kind::Internal, "the request is under way already")));
        };
        self.attempt(connection, request, outgoing).await.map_err(|miss| match miss {
            Attempt::Unsent(fault) => Miss::Unreached(fault),
            Attempt::Died(fault) | Attempt::Failed(fault) => Miss::Failed(fault),
        })
    }

    async fn attempt(
        &self,
        mut connection: Connection,
        request: Request<Upload>,
        outgoing: &mut Outgoing,
    ) -> Result<(Connection, Response<Incoming>), Attempt> {
        let sent = connection.send(request);
        let waited = exchange::wait(sent, outgoing.exchange.as_deref(), connection.link(), &self.timeouts).await;
        let mut error = match waited {
            Ok(Ok(response)) => {
                connection.link().answered();
                return Ok((connection, response));
            }
            Ok(Err(error)) => error,
            Err(fault) => return Err(Attempt::Failed(fault)),
        };
        if let Some(request) = error.take_message() {
            outgoing.put_back(request);
            return Err(Attempt::Unsent(
                Fault::new(Kind::Connect, "the connection closed").because(error.into_error()),
            ));
        }
        if let Some(fault) = outgoing.exchange.as_ref().and_then(|exchange| exchange.fault()) {
            return Err(Attempt::Failed(fault));
        }
        let error = error.into_error();
        let died = !connection.link().has_received() && !error.is_user();
        let fault = answer::no_answer(error, connection.link().has_received());
        Err(if died { Attempt::Died(fault) } else { Attempt::Failed(fault) })
    }

    async fn open(
        &self,
        target: &Target,
        state: &BackEndState,
        switched: Option<oneshot::Sender<bytes::Bytes>>,
    ) -> Result<Connection, Miss> {
        let (endpoint, tls) = (&target.back_end.endpoint, target.tls.as_ref());
        let connected = connect::connect(endpoint, tls, self.timeouts.connect, &state.source).await;
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) => return Err(unreached(error, state)),
        };
        state.reached();
        Connection::open(stream, switched)
            .await
            .map_err(|error| Miss::Failed(Fault::new(Kind::Internal, "a connection cannot be driven").because(error)))
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

fn unreached(error: ConnectError, state: &BackEndState) -> Miss {
    use rustix::io::Errno;
    let told = format!("cannot connect to {}", state.name());
    let errno = error.io().and_then(std::io::Error::raw_os_error).map(Errno::from_raw_os_error);
    match errno {
        // Ours, and the same for every back end.
        Some(Errno::MFILE | Errno::NFILE) => Miss::Failed(connect::no_descriptor(told, error)),
        Some(Errno::NOMEM | Errno::NOBUFS) => Miss::Failed(Fault::new(Kind::Internal, told).because(error)),
        // Ours as well, but another back end has ports of its own.
        Some(Errno::ADDRNOTAVAIL) => Miss::Unreached(Fault::new(Kind::Busy, told).because(error)),
        _ => {
            state.missed();
            Miss::Unreached(Fault::new(Kind::Connect, told).because(error))
        }
    }
}

fn decorate(reply: &mut Reply, candidate: &Candidate, cookie: Option<HeaderValue>) {
    let served = ServedBy(candidate.state.name().clone());
    let headers = match reply {
        Reply::Response(response) => {
            response.extensions_mut().insert(served);
            response.headers_mut()
        }
        Reply::Switched(switched) => {
            switched.back_end = served.0;
            switched.response.headers_mut()
        }
    };
    if let Some(cookie) = cookie {
        headers.append(header::SET_COOKIE, cookie);
    }
}
