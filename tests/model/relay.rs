//! The relay from the outbox to Kafka: a leader by a lock in Postgres, a transactional producer whose rivals Kafka shuts
//! out, and in each transaction a marker per source partition that says how far it is.

use std::collections::{BTreeMap, VecDeque};

use crate::rules::Bug;
use crate::store::{EventId, Place, Row};
use crate::world::World;

/// Ids that a marker keeps beside those of its own transaction.
const KEPT: usize = 8;

/// How far a source partition has left: the highest number, and the ids of what left last.
#[derive(Debug, Clone, Default)]
pub struct Marker {
    number: i64,
    ids: Vec<EventId>,
    /// For a planted bug.
    sequence: i64,
}

pub type Markers = BTreeMap<usize, Marker>;

/// An event, and the source partition that it follows from.
type Sent = (usize, EventId);

/// Kafka as the relay and those behind it see it.
#[derive(Debug, Clone, Default)]
pub struct Kafka {
    /// What readers of committed records are shown, in its order.
    pub committed: Vec<Sent>,
    pub markers: Markers,
    /// The producer that has the transactional id now, and what its transaction holds.
    epoch: u32,
    open: (Vec<Sent>, Markers),
}

#[derive(Debug, Clone)]
pub enum Order {
    Init,
    Send { epoch: u32, events: Vec<Sent>, markers: Markers },
    End { epoch: u32, commit: bool },
}

#[derive(Debug, Clone)]
pub enum Told {
    Initialised(u32),
    Committed,
    Fenced,
}

impl Kafka {
    pub fn execute(&mut self, order: Order) -> Option<Told> {
        match order {
            Order::Init => {
                self.epoch += 1;
                self.open = Default::default();
                Some(Told::Initialised(self.epoch))
            }
            Order::Send { epoch, .. } | Order::End { epoch, .. } if epoch != self.epoch => Some(Told::Fenced),
            Order::Send { events, markers, .. } => {
                self.open.0.extend(events);
                self.open.1.extend(markers);
                None
            }
            Order::End { commit, .. } => {
                let (events, markers) = std::mem::take(&mut self.open);
                if commit {
                    self.committed.extend(events);
                    self.markers.extend(markers);
                }
                commit.then_some(Told::Committed)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Standby,
    Starting,
    Ready,
    /// A transaction is on its way.
    Sending,
    /// For a planted bug: the markers are, in a transaction of their own.
    Marking,
    /// Kafka has it; the outbox still does, too.
    Left,
}

#[derive(Debug, Clone, Default)]
pub struct Relay {
    pub state: State,
    epoch: u32,
    /// Rows under way.
    rows: Vec<(Place, Row)>,
    /// As they were read when rivals were shut out, with what this relay has sent since.
    markers: Markers,
    pub up: VecDeque<Order>,
    pub down: VecDeque<Told>,
}

impl World {
    /// A relay does the next thing, if it waits for nothing.
    pub fn relay(&mut self, relay: usize, size: usize) {
        match self.relays[relay].state {
            State::Standby => {
                if *self.lead.get_or_insert(relay) == relay {
                    self.relays[relay].markers = self.kafka.markers.clone();
                    self.relays[relay].up.push_back(Order::Init);
                    self.relays[relay].state = State::Starting;
                    self.note(|| format!("relay {relay} initialises its producer"));
                }
            }
            // It has lost the lead with its session.
            State::Ready | State::Left if self.lead != Some(relay) => self.relays[relay].state = State::Standby,
            State::Ready => self.send_rows(relay, size),
            State::Left => {
                for (place, _) in std::mem::take(&mut self.relays[relay].rows) {
                    self.db.outbox.remove(&place);
                }
                self.relays[relay].state = State::Ready;
                self.note(|| format!("relay {relay} removes what has left"));
            }
            State::Starting | State::Sending | State::Marking => {}
        }
    }

    fn send_rows(&mut self, relay: usize, size: usize) {
        self.strike_out(relay);
        let rows = self.pending(size);
        if rows.is_empty() {
            return;
        }
        let epoch = self.relays[relay].epoch;
        let events = rows.iter().map(|((partition, _), row)| (*partition, row.id)).collect();
        let late = self.rules.has(Bug::MarkerAfterCommit);
        let markers = if late { Markers::new() } else { markers(&self.relays[relay].markers, &rows) };
        if self.rules.has(Bug::OutboxEmptiedFirst) {
            self.db.outbox.retain(|place, _| rows.iter().all(|(sent, _)| sent != place));
        }
        self.note(|| format!("relay {relay} sends {:?}", rows.iter().map(|(place, _)| *place).collect::<Vec<_>>()));
        let sender = &mut self.relays[relay];
        sender.up.extend([Order::Send { epoch, events, markers }, Order::End { epoch, commit: true }]);
        (sender.rows, sender.state) = (rows, State::Sending);
    }

    /// The next rows of each source partition, in their order.
    fn pending(&mut self, size: usize) -> Vec<(Place, Row)> {
        if self.rules.has(Bug::SharedSequence) {
            // One order for all, and a cursor in it.
            let cursor = self.kafka.markers.values().map(|marker| marker.sequence).max().unwrap_or(0);
            self.db.outbox.retain(|_, row| row.sequence > cursor);
            let mut rows: Vec<(Place, Row)> = self.db.outbox.iter().map(|(place, row)| (*place, *row)).collect();
            rows.sort_by_key(|(_, row)| row.sequence);
            rows.truncate(size);
            return rows;
        }
        let of = |partition: usize| {
            self.db.outbox.range((partition, i64::MIN)..=(partition, i64::MAX)).take(size).map(|(at, row)| (*at, *row))
        };
        (0..self.assigned.len()).flat_map(of).collect()
    }

    /// A relay reads the next answer of Kafka.
    pub fn told(&mut self, relay: usize) {
        let Some(told) = self.relays[relay].down.pop_front() else { return };
        match (self.relays[relay].state, told) {
            (State::Starting, Told::Initialised(epoch)) => {
                self.relays[relay].epoch = epoch;
                self.relays[relay].state = State::Standby;
                if self.lead == Some(relay) {
                    self.relays[relay].state = State::Ready;
                    if !self.rules.has(Bug::MarkersBeforeInit) {
                        self.relays[relay].markers = self.kafka.markers.clone();
                    }
                    self.note(|| format!("relay {relay} has read the markers"));
                }
            }
            (State::Sending, Told::Committed) if self.rules.has(Bug::MarkerAfterCommit) => {
                let epoch = self.relays[relay].epoch;
                let markers = markers(&self.relays[relay].markers, &self.relays[relay].rows);
                let send = Order::Send { epoch, events: Vec::new(), markers };
                self.relays[relay].up.extend([send, Order::End { epoch, commit: true }]);
                self.relays[relay].state = State::Marking;
            }
            (State::Sending | State::Marking, Told::Committed) => {
                let sender = &mut self.relays[relay];
                let markers = markers(&sender.markers, &sender.rows);
                sender.markers.extend(markers);
                sender.state = State::Left;
            }
            (_, Told::Fenced) => self.relays[relay] = Relay::default(),
            _ => {}
        }
    }

    /// Removes what the markers say has left: a row whose number is not above the marker's, and whose id the marker has. The
    /// numbers alone would do if Postgres never went back in time and gave them anew, to other events.
    fn strike_out(&mut self, relay: usize) {
        let by_number = self.rules.has(Bug::MarkerByNumber);
        let markers = &self.relays[relay].markers;
        self.db.outbox.retain(|(partition, number), row| {
            let marker = markers.get(partition).filter(|marker| *number <= marker.number);
            !marker.is_some_and(|marker| by_number || marker.ids.contains(&row.id))
        });
    }

    /// A relay has waited too long for Kafka's answer.
    pub fn relay_gives_up(&mut self, relay: usize) {
        if !matches!(self.relays[relay].state, State::Starting | State::Sending | State::Marking) {
            return;
        }
        self.late_orders.extend(self.relays[relay].up.drain(..));
        self.relays[relay].down.clear();
        self.note(|| format!("relay {relay} gives up its transaction"));
        if self.rules.has(Bug::ProducerGoesOn) && self.relays[relay].state == State::Sending {
            let abort = Order::End { epoch: self.relays[relay].epoch, commit: false };
            self.relays[relay].up.push_back(abort);
            self.relays[relay].state = State::Ready;
        } else {
            // The producer is destroyed, and the next one shuts it out.
            self.relays[relay] = Relay::default();
        }
    }

    /// A relay's process is killed.
    pub fn relay_dies(&mut self, relay: usize) {
        self.late_orders.extend(self.relays[relay].up.drain(..));
        self.relays[relay] = Relay::default();
        self.lead = self.lead.filter(|leader| *leader != relay);
        self.note(|| format!("relay {relay} is killed"));
    }
}

/// The markers that go with rows, after those that there are.
fn markers(earlier: &Markers, rows: &[(Place, Row)]) -> Markers {
    let mut markers = Markers::new();
    for ((partition, number), row) in rows {
        let marker = markers.entry(*partition).or_insert_with(|| {
            let mut marker = earlier.get(partition).cloned().unwrap_or_default();
            marker.ids.drain(..marker.ids.len().saturating_sub(KEPT));
            marker
        });
        (marker.number, marker.sequence) = (marker.number.max(*number), row.sequence);
        marker.ids.push(row.id);
    }
    markers
}
