//! What the old and the new process of a binary upgrade say to each other.
//!
//! The channel is a pair of unix sockets of SOCK_SEQPACKET: one message is one word, descriptors travel with theirs,
//! and the end of a process is the end of the channel. The new process finds it in the place of its standard input.
//!
//! | old process | new process |
//! |---|---|
//! | `Listeners`, in as many messages as it takes | |
//! | | `Ready`, or `Refused` with the reason |
//! | `Released`: what only one process may have is free | |
//! | | `Stop`, `EndNow`, `Reopen`, `Reloaded`: what the one in charge was told |

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::base::address::ListenAddress;
use crate::edge::listener::BoundListener;
use crate::http::request::Scheme;
use crate::run::listeners::{Giver, Inherited};

/// Says to a process that it is to take over from its parent, whose id is the value. A process whose parent is another
/// has only found it in its environment.
pub const VARIABLE: &str = "DOORWARD_HANDOVER";

/// How long each step of the other side may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kernel lets so many descriptors travel with one message (SCM_MAX_FD, unix(7)).
pub const MOST_SOCKETS: usize = 253;

/// Longer than any word.
const LONGEST: usize = 64 * 1024;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// These sockets come with it, in this order. `last` ends the list.
    Listeners {
        /// As the file of the old process names each of them.
        sockets: Vec<Named>,
        /// Whether this is all.
        last: bool,
    },
    /// The new process serves.
    Ready,
    /// The new process cannot serve, and ends.
    Refused(String),
    /// The old process has let go of what only one may have.
    Released,
    /// End, as after TERM.
    Stop,
    /// End, as after a second TERM.
    EndNow,
    /// Open the log files again.
    Reopen,
    /// The file has been put in force: what has left it is to be closed.
    Reloaded,
}

/// A socket's address as the file has it, and what is spoken there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    address: String,
    scheme: String,
}

impl Named {
    fn giver(&self) -> io::Result<Giver> {
        let address = ListenAddress::parse(&self.address).map_err(io::Error::other)?;
        let scheme = [Scheme::Http, Scheme::Https].into_iter().find(|scheme| scheme.as_str() == self.scheme);
        let scheme = scheme.ok_or_else(|| nonsense(format!("a listener speaks {:?}", self.scheme)))?;
        Ok(Giver::Process(address, scheme))
    }
}

fn nonsense(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// One end, used without a runtime.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends: one to keep, one to give away.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(ours), theirs))
    }

    /// Sends all listening sockets.
    pub fn send_listeners(&self, listeners: &[BoundListener]) -> io::Result<()> {
        let mut batches = listeners.chunks(MOST_SOCKETS).peekable();
        if batches.peek().is_none() {
            return send(&self.0, &Word::Listeners { sockets: Vec::new(), last: true }, &[]);
        }
        while let Some(batch) = batches.next() {
            let name =
                |it: &BoundListener| Named { address: it.address.to_string(), scheme: it.scheme.as_str().to_owned() };
            let sockets: Vec<Named> = batch.iter().map(name).collect();
            let descriptors: Vec<BorrowedFd<'_>> = batch.iter().map(|it| it.socket.as_fd()).collect();
            send(&self.0, &Word::Listeners { sockets, last: batches.peek().is_none() }, &descriptors)?;
        }
        Ok(())
    }

    fn receive_listeners(&self) -> io::Result<Vec<Inherited>> {
        let mut inherited = Vec::new();
        loop {
            let Some((word, descriptors)) = receive(&self.0)? else {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended"));
            };
            let Word::Listeners { sockets, last } = word else {
                return Err(nonsense(format!("it said {word:?} instead of its listeners")));
            };
            if sockets.len() != descriptors.len() {
                return Err(nonsense(format!("{} sockets came for {}", descriptors.len(), sockets.len())));
            }
            for (named, descriptor) in sockets.iter().zip(descriptors) {
                inherited.push(Inherited::new(descriptor, named.giver()?)?);
            }
            if last {
                return Ok(inherited);
            }
        }
    }

    /// From now on used within a runtime.
    pub fn into_async(self) -> io::Result<AsyncChannel> {
        // A stream to the types; only the words of this file are ever sent and received on it.
        let stream = std::os::unix::net::UnixStream::from(self.0);
        stream.set_nonblocking(true)?;
        Ok(AsyncChannel(UnixStream::from_std(stream)?))
    }
}

/// Says one word, with the sockets that go with it.
fn send(socket: impl AsFd, word: &Word, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(word).map_err(io::Error::other)?;
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("too many sockets for one message"));
    }
    // NOSIGNAL: the other side may be gone.
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next word; `None` when the other process has ended.
fn receive(socket: impl AsFd) -> io::Result<Option<(Word, Vec<OwnedFd>)>> {
    let mut text = vec![0; LONGEST];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let into = &mut [IoSliceMut::new(&mut text)];
    let received = match rustix::net::recvmsg(socket, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
        // Ended with something unread: ended all the same.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        other => other?,
    };
    let mut sockets = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(nonsense("a message was cut short; are file descriptors left?"));
    }
    let word = serde_json::from_slice(text.get(..received.bytes).unwrap_or_default());
    word.map(|word| Some((word, sockets))).map_err(|error| nonsense(format!("not a word: {error}")))
}

/// One end, within a runtime.
#[derive(Debug)]
pub struct AsyncChannel(UnixStream);

impl AsyncChannel {
    /// Says one word. Words are few and short: where they do not fit into the socket's buffer, nobody listens.
    pub fn say(&self, word: &Word) -> io::Result<()> {
        send(&self.0, word, &[])
    }

    /// The next word; `None` when the other process has ended. Cancellation loses nothing.
    pub async fn hear(&self) -> io::Result<Option<Word>> {
        loop {
            self.0.readable().await?;
            match self.0.try_io(Interest::READABLE, || receive(&self.0)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received.map(|received| received.map(|(word, _)| word)),
            }
        }
    }

    /// Ready when the other process has ended. What it still says is not listened to.
    pub async fn ended(&self) {
        while let Ok(Some(_)) = self.hear().await {}
    }
}

/// The process that this one takes over from, as long as nothing has been taken.
#[derive(Debug)]
pub struct Predecessor(Channel);

impl Predecessor {
    /// Takes the sockets, if this process was started to take over. Standard input is /dev/null then.
    ///
    /// # Errors
    /// The other process ended, or said something else.
    pub fn find() -> io::Result<Option<(Predecessor, Vec<Inherited>)>> {
        let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().to_string());
        match (std::env::var(VARIABLE), parent) {
            (Ok(said), Some(parent)) if said == parent => {}
            _ => return Ok(None),
        }
        let channel = Channel(io::stdin().as_fd().try_clone_to_owned()?);
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        sockopt::set_socket_timeout(&channel.0, sockopt::Timeout::Recv, Some(PATIENCE))?;
        let inherited = channel.receive_listeners()?;
        Ok(Some((Predecessor(channel), inherited)))
    }

    /// Says why this process ends without having served. Best effort: it is printed, too.
    pub fn refuse(&self, why: &str) {
        let _ = send(&self.0.0, &Word::Refused(why.to_owned()), &[]);
    }

    /// Says that this process serves, and waits until the old one has let go of the rest. One that ends instead has
    /// let go of all.
    pub async fn take_over(self) -> io::Result<AsyncChannel> {
        let channel = self.0.into_async()?;
        if channel.say(&Word::Ready).is_err() {
            // It is gone: there is nobody to wait for.
            return Ok(channel);
        }
        match tokio::time::timeout(PATIENCE, channel.hear()).await {
            Ok(Ok(Some(Word::Released) | None)) => {}
            Ok(Ok(Some(other))) => tracing::warn!("the process before this one said {other:?}"),
            Ok(Err(error)) => tracing::warn!("the process before this one: {error}"),
            Err(_) => tracing::warn!("the process before this one does not let go of its control socket"),
        }
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::listener;

    fn pair() -> (Channel, Channel) {
        let (one, other) = Channel::pair().unwrap();
        (one, Channel(other))
    }

    #[test]
    fn more_sockets_than_fit_into_one_message_all_arrive() {
        let address = ListenAddress::parse("127.0.0.1:0").unwrap();
        let first = listener::bind(address).unwrap();
        for count in [0, 1, MOST_SOCKETS, MOST_SOCKETS + 1, 2 * MOST_SOCKETS + 7] {
            let bound = |_| BoundListener { address, scheme: Scheme::Https, socket: first.try_clone().unwrap() };
            let listeners: Vec<BoundListener> = (0..count).map(bound).collect();
            let (old, new) = pair();
            old.send_listeners(&listeners).unwrap();
            let inherited = new.receive_listeners().unwrap();
            assert_eq!(inherited.len(), count);
            for it in inherited {
                assert_eq!(it.local, first.local_addr().unwrap());
                assert_eq!(it.from, Giver::Process(address, Scheme::Https));
            }
        }
    }

    #[test]
    fn what_is_no_word_is_an_error_and_the_end_is_none() {
        let (old, new) = pair();
        rustix::net::send(&old.0, b"hello", SendFlags::empty()).unwrap();
        assert_eq!(receive(&new.0).unwrap_err().kind(), io::ErrorKind::InvalidData);
        send(&old.0, &Word::Ready, &[]).unwrap();
        assert_eq!(new.receive_listeners().unwrap_err().kind(), io::ErrorKind::InvalidData);
        send(&new.0, &Word::Ready, &[]).unwrap();
        drop(old);
        assert!(receive(&new.0).unwrap().is_none());
    }

    #[tokio::test]
    async fn words_keep_their_borders_and_their_order() {
        let (old, new) = pair();
        let (old, new) = (old.into_async().unwrap(), new.into_async().unwrap());
        let refused = Word::Refused("proxy.toml:3:1: no\n".repeat(1000));
        for word in [&Word::Reopen, &refused, &Word::Stop] {
            new.say(word).unwrap();
        }
        for word in [Word::Reopen, refused, Word::Stop] {
            assert_eq!(old.hear().await.unwrap(), Some(word));
        }
        let ended = tokio::spawn(async move { old.ended().await });
        drop(new);
        ended.await.unwrap();
    }
}
