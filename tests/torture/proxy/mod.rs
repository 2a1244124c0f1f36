//! A TCP proxy that breaks connections on purpose, one listener per server or per process.
//!
//! It knows who is on a connection (Kafka's client id, Postgres' application name), and so can disturb one process and
//! leave the others alone. A [`Rule`] lasts until it is lifted; a [`Trap`] waits for one message and does one thing.
//! Chance comes from a seed. What a rule or a trap has touched is counted: a fault without effect is no fault.

mod link;
mod postgres;
mod trap;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::trap::{Action, Pattern, Trap};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What is spoken, as far as the proxy has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Only the client id of the first request is read.
    Kafka,
    /// Every message is told from the next.
    Postgres,
}

/// What a rule does to the connections that it is for.
#[derive(Debug, Clone, Copy)]
pub enum Effect {
    /// Everything comes later, each piece by a time between the two.
    Latency { least: Duration, most: Duration },
    /// Nothing is read any more: the sender's window fills up, and nobody is told.
    Stall(Direction),
    /// Everything is read and thrown away.
    Drop(Direction),
    /// The connection is reset once so many more bytes have gone that way.
    CutAfter(Direction, u64),
    /// Each piece that goes by resets its connection with this chance, in thousandths.
    Reset { per_mille: u64 },
    /// New connections are closed at once.
    Refuse,
    /// On half of the connections that members of groups have to their coordinators, everything is thrown away.
    SilenceMembers,
}

/// An effect on all connections of clients whose name begins so; every name begins with the empty one.
#[derive(Debug)]
pub struct Rule {
    pub client: String,
    pub effect: Effect,
    touched: AtomicU64,
}

impl Rule {
    /// How many pieces of data or connections it has met.
    pub fn touched(&self) -> u64 {
        self.touched.load(Ordering::Relaxed)
    }

    fn touch(&self) -> u64 {
        self.touched.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Rules and traps that hold now.
#[derive(Debug, Clone, Default)]
struct Orders {
    rules: Vec<Arc<Rule>>,
    traps: Vec<Trap>,
}

/// One listener before one server.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    protocol: Protocol,
    upstream: Mutex<Option<SocketAddr>>,
    orders: watch::Sender<Orders>,
    /// Open connections: their clients' names, and how to end them.
    links: Mutex<HashMap<u64, (String, watch::Sender<bool>)>>,
    next: AtomicU64,
    seed: u64,
}

impl Proxy {
    /// Listens on a port of its own. Where connections go is said later, for a server may have to know this port first.
    pub async fn listen(protocol: Protocol, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            protocol,
            upstream: Mutex::new(None),
            orders: watch::Sender::new(Orders::default()),
            links: Mutex::default(),
            next: AtomicU64::new(0),
            seed,
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { shared, port, accepting })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends new connections to this port on loopback.
    pub fn forward_to(&self, port: u16) {
        *lock(&self.shared.upstream) = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }

    /// Puts a rule in force, until [`Self::lift`].
    pub fn apply(&self, client: &str, effect: Effect) -> Arc<Rule> {
        let rule = Arc::new(Rule { client: client.to_owned(), effect, touched: AtomicU64::new(0) });
        self.shared.orders.send_modify(|orders| orders.rules.push(Arc::clone(&rule)));
        rule
    }

    pub fn lift(&self, rule: &Arc<Rule>) {
        self.shared.orders.send_modify(|orders| orders.rules.retain(|other| !Arc::ptr_eq(rule, other)));
    }

    /// Sets a trap for the next message that fits.
    pub fn set(&self, trap: &Trap) {
        self.shared.orders.send_modify(|orders| orders.traps.push(trap.clone()));
    }

    /// Ends every rule and every trap; what was held goes on.
    pub fn heal(&self) {
        self.shared.orders.send_modify(|orders| {
            for trap in &orders.traps {
                trap.release();
            }
            *orders = Orders::default();
        });
    }

    /// Resets the connections of clients whose name begins so; how many there were.
    pub fn cut(&self, client: &str) -> usize {
        let links = lock(&self.shared.links);
        let mut count = 0;
        for (_, end) in links.values().filter(|(name, _)| name.starts_with(client)) {
            end.send_replace(true);
            count += 1;
        }
        count
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.heal();
        self.cut("");
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // An error here is that of a client that has gone again.
        let Ok((client, _)) = listener.accept().await else { continue };
        tokio::spawn(link::carry(client, Arc::clone(&shared)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
