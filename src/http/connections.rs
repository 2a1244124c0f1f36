//! All open connections of the listeners: how many there may be, whose they are, and which have tried patience too long.
//!
//! Bounds are kept where a connection opens. Patience is kept by one task that looks at every connection once a tick, so
//! that a request costs no timer and an idle connection no wake-up. Whoever is told to go is named in the metrics by reason,
//! never by address.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tracing::warn;

use super::{
    activity::{Activity, Order},
    client::Client,
};
use crate::telemetry::metrics::http::{
    CONNECTIONS, CONNECTIONS_CLOSED, CONNECTIONS_REFUSED, REQUESTS_IN_FLIGHT, REQUESTS_REFUSED,
};

/// How many connections are looked at for one that may make room; of so few the longest idle is among the longest of all,
/// and looking costs the same however many there are.
const SAMPLE: usize = 16;
/// Connections that were cut to make room and still have their socket: with so many nobody is let in for a moment, so that a
/// flood cannot open sockets faster than they are closed.
const LEAVING: usize = 32;
/// Bits of an IPv6 address that name one client: networks give a customer at least a /64.
const IPV6_CLIENT_BITS: u32 = 64;
/// How often it is looked, for patience of seconds.
const LONGEST_TICK: Duration = Duration::from_secs(1);
const SHORTEST_TICK: Duration = Duration::from_millis(5);
/// Ticks that the shortest patience has at least, which is how exactly it is kept.
const TICKS: u32 = 8;
/// How often a log line says that connections are refused.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What connections may do, and how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most connections at once.
    pub(super) connections: usize,
    /// Most connections at once of one address.
    pub(super) per_client: usize,
    /// Most requests at once; from half of it on a connection gets one at a time.
    pub(super) requests: usize,
    /// Requests of one connection that its client may give up before it loses the connection.
    pub(super) resets: u32,
    pub(super) head: Duration,
    pub(super) idle: Duration,
    pub(super) write: Duration,
}

/// The same patience in ticks.
#[derive(Debug, Clone, Copy)]
struct Patience {
    head: u32,
    idle: u32,
    write: u32,
}

/// The open connections.
pub(super) struct Connections {
    limits: Limits,
    tick: Duration,
    patience: Patience,
    clock: Arc<AtomicU32>,
    /// Requests whose answer's head is not ready, over all connections.
    requests: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    slots: Vec<Option<Open>>,
    free: Vec<usize>,
    /// How many have made room and are not gone yet.
    leaving: usize,
    /// Connections so far.
    opened: u64,
    clients: HashMap<IpAddr, Peer>,
    /// What connections that open now are told at once.
    order: Option<Order>,
    /// Where the next sample begins.
    sampled: usize,
    refused: u64,
    warned: Option<u32>,
}

struct Open {
    activity: Arc<Activity>,
    /// Which one it is, counted from the first.
    number: u64,
}

struct Peer {
    client: Arc<Client>,
    connections: usize,
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// There are as many as there may be, and none is idle.
    Full,
    /// Its address has as many as one may have.
    Client,
}

/// A connection's place among the others; given back when dropped.
pub(super) struct Place {
    connections: Arc<Connections>,
    pub(super) activity: Arc<Activity>,
    pub(super) client: Arc<Client>,
    slot: usize,
    network: IpAddr,
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        let shortest = limits.head.min(limits.idle).min(limits.write);
        let tick = (shortest / TICKS).clamp(SHORTEST_TICK, LONGEST_TICK);
        // One more, since what is waited for began somewhere within a tick.
        let ticks =
            |patience: Duration| u32::try_from(patience.as_nanos() / tick.as_nanos()).unwrap_or(u32::MAX - 1) + 1;
        let patience = Patience { head: ticks(limits.head), idle: ticks(limits.idle), write: ticks(limits.write) };
        // From 1: in what connections note, 0 stands for never.
        let clock = Arc::new(AtomicU32::new(1));
        Self { limits, tick, patience, clock, requests: AtomicUsize::new(0), table: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere leaves a table that is whole: nothing in here panics half-way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in. At the bound the one idle for longest, of some, makes room for it.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Place, Refused> {
        let network = network(address);
        let activity = Arc::new(Activity::new(Arc::clone(&self.clock)));
        let mut table = self.lock();
        let has = table.clients.get(&network).map_or(0, |peer| peer.connections);
        let refused = if has >= self.limits.per_client {
            Some(Refused::Client)
        } else if table.open() >= self.limits.connections && !table.make_room(self.clock.load(Relaxed)) {
            Some(Refused::Full)
        } else {
            None
        };
        if let Some(refused) = refused {
            table.refused += 1;
            CONNECTIONS_REFUSED.with_label_values(&[refused.label()]).inc();
            return Err(refused);
        }
        let client = table.join(network, address);
        let slot = table.put(Arc::clone(&activity));
        if let Some(order) = table.order {
            activity.tell(order);
        }
        CONNECTIONS.inc();
        drop(table);
        Ok(Place { connections: Arc::clone(self), activity, client, slot, network })
    }

    /// Makes room where the system, not a bound of ours, has none left; false if no connection is idle.
    pub(super) fn make_room(&self) -> bool {
        self.lock().make_room(self.clock.load(Relaxed))
    }

    /// Waits while many have made room and are not gone yet: they are idle, so that it takes them no more than a turn.
    pub(super) async fn let_leave(&self) {
        while self.lock().leaving >= LEAVING {
            tokio::task::yield_now().await;
        }
    }

    /// Tells every connection, and those to come.
    pub(super) fn tell_all(&self, order: Order) {
        let mut table = self.lock();
        table.order = Some(order);
        for open in table.slots.iter().flatten() {
            open.activity.tell(order);
        }
    }

    /// Keeps the clock and looks at all connections, for as long as it is polled.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Not 0, which stands for never.
            let now = self.clock.load(Relaxed).wrapping_add(1).max(1);
            self.clock.store(now, Relaxed);
            REQUESTS_IN_FLIGHT.set(self.requests.load(Relaxed) as i64);
            self.look(now);
        }
    }

    fn look(&self, now: u32) {
        let mut table = self.lock();
        for Open { activity, .. } in table.slots.iter().flatten() {
            if let Some((order, reason)) = self.patience.judge(activity, now)
                && activity.tell(order)
                && let Some(reason) = reason
            {
                CONNECTIONS_CLOSED.with_label_values(&[reason]).inc();
            }
        }
        table.warn(now, (WARN_EVERY.as_millis() / self.tick.as_millis().max(1)) as u32, &self.limits);
    }

    /// Whether one more request may begin on a connection; see [`Limits::requests`].
    pub(super) fn has_room_for(&self, activity: &Activity) -> bool {
        let under_way = self.requests.load(Relaxed);
        under_way < self.limits.requests / 2 || (activity.requests() == 0 && under_way < self.limits.requests)
    }
}

impl Patience {
    /// What to tell a connection, and why, in the words of the metric.
    fn judge(&self, activity: &Activity, now: u32) -> Option<(Order, Option<&'static str>)> {
        if activity.blocked_for(now).is_some_and(|ticks| ticks > self.write) {
            return Some((Order::Cut, Some("stalled")));
        }
        if activity.finishing_for(now).is_some_and(|ticks| ticks > self.write) && activity.requests() == 0 {
            // It was told to end by itself and did not: counted when it was told.
            return Some((Order::Cut, None));
        }
        let idle = activity.idle_for(now)?;
        if activity.asked() == 0 {
            return (idle > self.head).then_some((Order::Cut, Some("no_request")));
        }
        // On HTTP/2 what comes between requests may be pings.
        if !activity.is_http2() && activity.head_for(now).is_some_and(|ticks| ticks > self.head) {
            return Some((Order::Cut, Some("slow_head")));
        }
        (idle > self.idle).then_some((Order::Finish, Some("idle")))
    }
}

impl Table {
    fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn put(&mut self, activity: Arc<Activity>) -> usize {
        let open = Some(Open { activity, number: self.opened });
        self.opened += 1;
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = open;
                slot
            }
            None => {
                self.slots.push(open);
                self.slots.len() - 1
            }
        }
    }

    fn join(&mut self, network: IpAddr, address: IpAddr) -> Arc<Client> {
        match self.clients.entry(network) {
            Entry::Occupied(mut peer) => {
                peer.get_mut().connections += 1;
                Arc::clone(&peer.get().client)
            }
            Entry::Vacant(vacant) => {
                let name =
                    if network == address { address.to_string() } else { format!("{network}/{IPV6_CLIENT_BITS}") };
                Arc::clone(&vacant.insert(Peer { client: Client::new(name), connections: 1 }).client)
            }
        }
    }

    fn leave(&mut self, network: IpAddr) {
        if let Entry::Occupied(mut peer) = self.clients.entry(network) {
            peer.get_mut().connections -= 1;
            if peer.get().connections == 0 {
                peer.remove();
            }
        }
    }

    /// Cuts the connection that is idle for longest among some, and counts it as gone.
    fn make_room(&mut self, now: u32) -> bool {
        let (start, all) = (self.sampled, self.slots.len());
        // A step that has no factor in common with most numbers of slots spreads the sample over all of them.
        let sample = (0..SAMPLE.min(all)).map(|i| start.wrapping_add(i.wrapping_mul(7919)) % all);
        self.sampled = start.wrapping_add(SAMPLE * 7919 + 1) % all.max(1);
        let Some((.., slot)) = sample.filter_map(|slot| self.claim(slot, now)).max() else { return false };
        if let Some(Open { activity, .. }) = self.slots[slot].take() {
            self.free.push(slot);
            self.leaving += 1;
            activity.tell(Order::Cut);
            CONNECTIONS_CLOSED.with_label_values(&["made_room"]).inc();
        }
        true
    }

    /// How well founded it is that a connection makes room: the longest idle first, of those the ones that never asked
    /// anything, of those the oldest. In a flood a tick sees many come and go, and whoever came last is about to ask.
    fn claim(&self, slot: usize, now: u32) -> Option<(u32, bool, Reverse<u64>, usize)> {
        let open = self.slots[slot].as_ref()?;
        Some((open.activity.idle_for(now)?, open.activity.asked() == 0, Reverse(open.number), slot))
    }

    fn warn(&mut self, now: u32, every: u32, limits: &Limits) {
        if self.refused == 0 || self.warned.is_some_and(|at| now.wrapping_sub(at) < every) {
            return;
        }
        warn!(
            refused = self.refused,
            open = self.open(),
            clients = self.clients.len(),
            max_connections = limits.connections,
            max_per_client = limits.per_client,
            "connections were refused"
        );
        (self.refused, self.warned) = (0, Some(now));
    }
}

impl Refused {
    fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Client => "client",
        }
    }
}

impl Place {
    /// Notes a request whose head is here. It is under way until the returned value is dropped.
    pub(super) fn begin(self: &Arc<Self>, http2: bool) -> UnderWay {
        self.activity.begin(http2);
        self.connections.requests.fetch_add(1, Relaxed);
        UnderWay { place: Arc::clone(self), is_answered: false, is_taken: false }
    }

    /// Whether one more request may begin; the refusal is counted.
    pub(super) fn has_room(&self) -> bool {
        let has = self.connections.has_room_for(&self.activity);
        if !has {
            REQUESTS_REFUSED.with_label_values(&["busy"]).inc();
        }
        has
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.connections.lock();
        // Whoever had to make room has lost its slot already.
        let is_ours = table.slots[self.slot].as_ref().is_some_and(|open| Arc::ptr_eq(&open.activity, &self.activity));
        if is_ours {
            table.slots[self.slot] = None;
            table.free.push(self.slot);
        } else {
            table.leaving -= 1;
        }
        table.leave(self.network);
        drop(table);
        CONNECTIONS.dec();
    }
}

/// A request under way, until its answer is taken.
pub(super) struct UnderWay {
    place: Arc<Place>,
    is_answered: bool,
    is_taken: bool,
}

impl UnderWay {
    /// The answer's head is ready.
    pub(super) fn answer(&mut self) {
        self.is_answered = true;
        self.place.activity.answer();
        self.place.connections.requests.fetch_sub(1, Relaxed);
    }

    /// Nothing of the answer is left to send.
    pub(super) fn is_taken(&mut self) {
        self.is_taken = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Place { connections, activity, .. } = &*self.place;
        activity.end(self.is_answered);
        if !self.is_answered {
            connections.requests.fetch_sub(1, Relaxed);
        }
        if self.is_taken {
            return;
        }
        // A client that gives up more than it takes makes work for nothing (rapid reset). h2's own bound holds only for
        // streams that are reset before they are accepted.
        let cancelled = activity.cancel();
        let most = cancelled > connections.limits.resets && cancelled > activity.asked() / 2;
        if most && activity.tell(Order::Cut) {
            CONNECTIONS_CLOSED.with_label_values(&["resets"]).inc();
        }
    }
}

/// The address, or of IPv6 the network that one client has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let mask = u128::MAX << (128 - IPV6_CLIENT_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests;
