//! Accounting of what is under way: one counter per batch, one slot per record, no future per record.
//!
//! Every record handed to librdkafka is settled exactly once, whoever still waits for it: by its delivery report, by the
//! publisher when it could not be queued, or when the producer that held it is gone.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use futures_util::task::AtomicWaker;

use super::{Delivery, Reason, Receipt, topics::Topic};
use crate::telemetry::metrics::kafka as metrics;

/// Names a record under way in the eight bytes that librdkafka carries for us: batch above, index below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub batch: u32,
    pub index: u32,
}

const _: () = assert!(usize::BITS == 64, "a ticket needs the 64 bits of librdkafka's opaque pointer");

impl Ticket {
    pub fn to_opaque(self) -> usize {
        (self.batch as usize) << 32 | self.index as usize
    }

    pub fn from_opaque(opaque: usize) -> Self {
        Self { batch: (opaque >> 32) as u32, index: opaque as u32 }
    }
}

/// What became of one record, as one number: an offset, or a negative code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fate(i64);

impl Fate {
    const PENDING: i64 = i64::MIN;

    /// Without an offset (below 0), nobody knows: librdkafka takes a record for written when one that was sent after it is
    /// acknowledged. The broker of a partition that has not seen the producer before takes that one, whatever its sequence number,
    /// and the first may never have come: refused for want of replicas, and not sent again.
    pub fn reported(offset: i64) -> Self {
        if offset < 0 { Self::failed(Reason::NotPlaced) } else { Self(offset) }
    }

    pub fn failed(reason: Reason) -> Self {
        Self(-1 - i64::from(reason.code()))
    }

    fn delivery(self, partition: i32) -> Delivery {
        match self.0 {
            offset if offset >= 0 => Delivery::Written { partition, offset },
            code => {
                let reason = u8::try_from(-1 - code).map_or(Reason::Other, Reason::from_code);
                if reason.is_definite() { Delivery::NotWritten(reason) } else { Delivery::Unknown(reason) }
            }
        }
    }
}

struct Slot {
    partition: i32,
    fate: AtomicI64,
}

/// One batch under way.
pub(super) struct InFlight {
    slots: Box<[Slot]>,
    /// Records without a fate, and one more while the batch is being queued.
    remaining: AtomicU32,
    waker: AtomicWaker,
    topic: Arc<Topic>,
    queued_at: Instant,
    cost: usize,
    budget: Arc<Budget>,
}

impl InFlight {
    /// `cost` must already be taken from `budget`; it is given back when the last record is settled.
    pub fn new(
        partitions: impl ExactSizeIterator<Item = i32>,
        topic: Arc<Topic>,
        cost: usize,
        budget: Arc<Budget>,
    ) -> Self {
        let slots: Box<[Slot]> =
            partitions.map(|partition| Slot { partition, fate: AtomicI64::new(Fate::PENDING) }).collect();
        let remaining = AtomicU32::new(slots.len() as u32 + 1);
        Self { slots, remaining, waker: AtomicWaker::new(), topic, queued_at: Instant::now(), cost, budget }
    }

    pub fn partition(&self, index: usize) -> i32 {
        self.slots[index].partition
    }

    /// Partitions of the records that have no fate yet.
    pub fn waiting(&self) -> impl Iterator<Item = (&Arc<str>, i32)> {
        let pending = |slot: &&Slot| slot.fate.load(Ordering::Relaxed) == Fate::PENDING;
        self.slots.iter().filter(pending).map(|slot| (&self.topic.name, slot.partition))
    }

    /// Records whose fate is settled as unknown.
    pub fn unknown(&self) -> usize {
        self.receipt().deliveries.iter().filter(|d| matches!(d, Delivery::Unknown(_))).count()
    }

    /// Counts, gives the bytes back, and wakes whoever waits. Runs once, outside all locks.
    fn complete(&self) {
        let (mut written, mut refused, mut unknown) = (0, 0, 0);
        for slot in &self.slots {
            match Fate(slot.fate.load(Ordering::Relaxed)).delivery(slot.partition) {
                Delivery::Written { .. } => written += 1,
                Delivery::NotWritten(_) => refused += 1,
                Delivery::Unknown(_) => unknown += 1,
            }
        }
        self.topic.count(written, refused, unknown);
        metrics::PUBLISH_SECONDS.observe(self.queued_at.elapsed().as_secs_f64());
        self.budget.give_back(self.cost);
        self.waker.wake();
    }

    fn receipt(&self) -> Receipt {
        let delivery = |slot: &Slot| Fate(slot.fate.load(Ordering::Relaxed)).delivery(slot.partition);
        Receipt { topic: self.topic.name.clone(), deliveries: self.slots.iter().map(delivery).collect() }
    }
}

/// The receipt of a batch, once every record of it is settled. Dropping it changes nothing of what happens.
#[must_use = "whether the records were written is known only from the receipt"]
pub struct PendingReceipt(pub(super) Arc<InFlight>);

impl PendingReceipt {
    /// Whether the receipt is there already.
    pub fn is_ready(&self) -> bool {
        self.0.remaining.load(Ordering::Acquire) == 0
    }
}

impl Future for PendingReceipt {
    type Output = Receipt;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Receipt> {
        self.0.waker.register(context.waker());
        // Acquire pairs with the release of the last settlement: all fates are visible.
        match self.0.remaining.load(Ordering::Acquire) {
            0 => Poll::Ready(self.0.receipt()),
            _ => Poll::Pending,
        }
    }
}

/// All batches under way, oldest first, found by number: a window that slides as the oldest ends.
#[derive(Default)]
pub(super) struct Window(Mutex<Batches>);

#[derive(Default)]
struct Batches {
    /// Number of the front batch. Wraps; the window is never 2³² wide.
    first: u32,
    queue: VecDeque<Option<Arc<InFlight>>>,
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, Batches> {
        // A panic elsewhere leaves counters, which are still right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, batch: Arc<InFlight>) -> u32 {
        let mut batches = self.lock();
        let number = batches.first.wrapping_add(batches.queue.len() as u32);
        batches.queue.push_back(Some(batch));
        number
    }

    /// Gives one record its fate.
    pub fn settle(&self, ticket: Ticket, fate: Fate) {
        let mut batches = self.lock();
        let Some(batch) = batches.get(ticket.batch) else { return };
        let Some(slot) = batch.slots.get(ticket.index as usize) else { return };
        if slot.fate.compare_exchange(Fate::PENDING, fate.0, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let ended = batches.count_down(ticket.batch);
        drop(batches);
        if let Some(batch) = ended {
            batch.complete();
        }
    }

    /// Ends the queueing of a batch: from now on its records alone decide when it is done.
    pub fn queued(&self, number: u32) {
        let ended = self.lock().count_down(number);
        if let Some(batch) = ended {
            batch.complete();
        }
    }

    /// Settles all that is left, for no report will come any more.
    pub fn abandon(&self, reason: Reason) {
        let left: Vec<(u32, Arc<InFlight>)> = {
            let batches = self.lock();
            let number = |i: usize| batches.first.wrapping_add(i as u32);
            batches.queue.iter().enumerate().filter_map(|(i, b)| Some((number(i), b.clone()?))).collect()
        };
        for (number, batch) in left {
            for index in 0..batch.slots.len() as u32 {
                self.settle(Ticket { batch: number, index }, Fate::failed(reason));
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    /// Since when the oldest batch waits.
    pub fn oldest(&self) -> Option<Instant> {
        self.lock().queue.front().and_then(|batch| batch.as_ref().map(|b| b.queued_at))
    }

    /// Since when the youngest batch waits.
    pub fn youngest(&self) -> Option<Instant> {
        self.lock().queue.iter().rev().flatten().next().map(|batch| batch.queued_at)
    }

    /// The oldest batches that wait since before `since`, at most `limit`.
    pub fn older_than(&self, since: Instant, limit: usize) -> Vec<Arc<InFlight>> {
        let batches = self.lock();
        batches.queue.iter().flatten().take_while(|batch| batch.queued_at < since).take(limit).cloned().collect()
    }
}

impl Batches {
    fn get(&self, number: u32) -> Option<&Arc<InFlight>> {
        self.queue.get(number.wrapping_sub(self.first) as usize)?.as_ref()
    }

    /// Takes one from a batch's counter; at zero the batch leaves the window and is returned.
    fn count_down(&mut self, number: u32) -> Option<Arc<InFlight>> {
        let at = number.wrapping_sub(self.first) as usize;
        let batch = self.queue.get_mut(at)?;
        if batch.as_ref()?.remaining.fetch_sub(1, Ordering::AcqRel) != 1 {
            return None;
        }
        let ended = batch.take();
        while let Some(None) = self.queue.front() {
            self.queue.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        ended
    }
}

/// Bytes that may be under way in this process.
pub(super) struct Budget {
    pub limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0) }
    }

    /// Takes `cost`, or says how much is in use.
    pub fn take(&self, cost: usize) -> Result<(), usize> {
        let fits = |used: usize| used.checked_add(cost).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(|_| ())
    }

    fn give_back(&self, cost: usize) {
        self.used.fetch_sub(cost, Ordering::Relaxed);
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn batch(records: usize, budget: &Arc<Budget>) -> Arc<InFlight> {
        budget.take(records).unwrap();
        let topic = Arc::new(Topic::new("in-flight-test".into(), vec![Default::default()]));
        Arc::new(InFlight::new((0..records).map(|_| 0), topic, records, budget.clone()))
    }

    #[test]
    fn ticket_survives_the_opaque_pointer() {
        for ticket in [Ticket { batch: 0, index: 0 }, Ticket { batch: u32::MAX, index: u32::MAX }] {
            assert_eq!(Ticket::from_opaque(ticket.to_opaque()), ticket);
        }
    }

    #[test]
    fn fate_of_each_kind_reads_back_as_delivery() {
        assert_eq!(Fate::reported(0).delivery(3), Delivery::Written { partition: 3, offset: 0 });
        assert_eq!(Fate::reported(-1001).delivery(3), Delivery::Unknown(Reason::NotPlaced));
        assert_eq!(Fate::failed(Reason::QueueFull).delivery(0), Delivery::NotWritten(Reason::QueueFull));
        assert_eq!(Fate::failed(Reason::TimedOut).delivery(0), Delivery::Unknown(Reason::TimedOut));
    }

    #[test]
    fn dropped_receipt_still_gives_its_bytes_back() {
        let (window, budget) = (Window::default(), Arc::new(Budget::new(10)));
        let number = window.insert(batch(1, &budget));
        window.queued(number);
        assert_eq!(budget.used(), 1);
        window.settle(Ticket { batch: number, index: 0 }, Fate::reported(7));
        assert_eq!(budget.used(), 0);
        assert!(window.is_empty());
    }

    proptest! {
        /// In whatever order reports come, twice or for nobody: each batch ends once, with what was said first.
        #[test]
        fn batch_ends_exactly_when_all_records_are_settled(
            sizes in prop::collection::vec(1_usize..6, 1..12),
            reports in prop::collection::vec((0_u32..14, 0_u32..7, 0_i64..100), 0..120),
        ) {
            let (window, budget) = (Window::default(), Arc::new(Budget::new(1000)));
            let mut pending = Vec::new();
            for &size in &sizes {
                let batch = batch(size, &budget);
                let number = window.insert(batch.clone());
                window.queued(number);
                pending.push((vec![None; size], PendingReceipt(batch)));
            }
            for (batch, index, offset) in reports {
                window.settle(Ticket { batch, index }, Fate::reported(offset));
                if let Some(slot) = pending.get_mut(batch as usize).and_then(|(seen, _)| seen.get_mut(index as usize)) {
                    slot.get_or_insert(offset);
                }
            }
            let open: usize = pending.iter().filter(|(seen, _)| seen.contains(&None)).map(|(seen, _)| seen.len()).sum();
            prop_assert_eq!(budget.used(), open);
            for (seen, receipt) in pending {
                let all: Option<Vec<i64>> = seen.into_iter().collect();
                let got = receipt.now_or_never().map(|r| r.deliveries.iter().map(|d| match d {
                    Delivery::Written { offset, .. } => *offset,
                    _ => -1,
                }).collect::<Vec<_>>());
                prop_assert_eq!(got, all);
            }
            window.abandon(Reason::ProducerLost);
            prop_assert!(window.is_empty());
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
