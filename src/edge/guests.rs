//! The connections of one worker that serve requests. Where places become few, those that nobody uses give way to new
//! clients, as with nginx.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use crate::edge::connection::Connection;
use crate::edge::worker::Worker;

/// Connections that are looked at for each new one; one of them goes at most.
const LOOKED_AT: usize = 32;

/// A client that has just connected is about to ask.
const FRESH: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub struct Guests(RefCell<Clock>);

/// They are gone through in a circle. Who was idle when it was looked at last, and has asked nothing since, goes.
#[derive(Default)]
struct Clock {
    guests: BTreeMap<u64, Guest>,
    last: u64,
    hand: u64,
}

struct Guest {
    connection: Weak<Connection>,
    since: Instant,
    /// The requests that it had had when it was found idle.
    idle_at: Option<u64>,
}

impl Guests {
    /// Lets the next idle connection go, if one is found soon.
    pub fn make_room(&self) {
        if let Some(connection) = self.0.borrow_mut().next_idle() {
            connection.give_way();
        }
    }
}

impl Clock {
    fn next_idle(&mut self) -> Option<Rc<Connection>> {
        for _ in 0..LOOKED_AT.min(self.guests.len()) {
            let next = self.guests.range(self.hand..).next().or_else(|| self.guests.iter().next());
            let number = next.map(|(number, _)| *number)?;
            self.hand = number + 1;
            let guest = self.guests.get_mut(&number)?;
            let Some(connection) = guest.connection.upgrade() else { continue };
            let begun = connection.facts.begun();
            if begun == 0 && guest.since.elapsed() < FRESH {
                continue;
            }
            if connection.facts.is_busy() {
                guest.idle_at = None;
            } else if guest.idle_at.replace(begun) == Some(begun) {
                // It is asked once; an HTTP/2 client may take its time to go.
                self.guests.remove(&number);
                return Some(connection);
            }
        }
        None
    }
}

/// A connection's entry, for as long as it serves requests.
pub struct Stay {
    worker: Rc<Worker>,
    number: u64,
}

impl Stay {
    /// `connection` begins to serve requests.
    pub fn begin(connection: &Rc<Connection>) -> Stay {
        let worker = connection.worker.clone();
        let mut clock = worker.guests.0.borrow_mut();
        clock.last += 1;
        let number = clock.last;
        let connection = Rc::downgrade(connection);
        clock.guests.insert(number, Guest { connection, since: Instant::now(), idle_at: None });
        drop(clock);
        Stay { worker, number }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.worker.guests.0.borrow_mut().guests.remove(&self.number);
    }
}
