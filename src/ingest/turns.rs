//! Fairness between clients: how much is on its way to Kafka at once, and whose is next.
//!
//! What is on its way is kept small: enough for throughput, too little for anybody to wait long behind it, since in the
//! Kafka client's own queues first come is first served. While there is room, a request passes with one addition. When
//! there is none requests wait, each client's in a queue of its own, and the clients take turns (deficit round robin:
//! Shreedhar and Varghese, 1995), so that each gets the same bytes however many and however large its requests are.
//!
//! CPU time is shared likewise: of requests that take long to encode, only so many are encoded at once that a thread is left
//! for all the others.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Instant,
};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use crate::{
    http::Client,
    telemetry::metrics::ingest::{TURN_SECONDS, WAITING_REQUESTS},
};

/// What a request costs beside its bytes. A record by itself takes as much work as some KiB of records in bulk.
const REQUEST_COST: usize = 4 << 10;
/// Requests up to so many bytes have a gate of their own, so that they do not wait behind large ones: a record or a few.
const SMALL_BYTES: usize = 16 << 10;
/// What a client whose requests are large may send before it is the next one's turn: a chunk of a lenient request.
const LARGE_QUANTUM: usize = 256 << 10;
/// Requests of one client that wait at one gate, at most.
const MAX_WAITING: usize = 10_000;

/// The two gates on the way to Kafka. Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns {
    small: Arc<Gate>,
    large: Arc<Gate>,
    encoders: Arc<Semaphore>,
}

/// Leave to send; its bytes are given back when it is dropped.
#[must_use = "what is sent without a turn is in the way of other clients"]
#[derive(Debug)]
pub(super) struct Turn {
    gate: Arc<Gate>,
    cost: usize,
}

/// A client has more requests waiting than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Turns {
    /// `window`: bytes on their way at once, at each of the gates.
    pub(super) fn new(window: usize) -> Self {
        Self {
            small: Arc::new(Gate::new(window, SMALL_BYTES + REQUEST_COST)),
            large: Arc::new(Gate::new(window, LARGE_QUANTUM)),
            encoders: Arc::new(Semaphore::new(encoders())),
        }
    }

    /// Leave to encode so many bytes of JSON now; to be dropped before anything else is waited for.
    pub(super) async fn encoder(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        if bytes <= SMALL_BYTES {
            return None;
        }
        self.encoders.acquire().await.ok()
    }

    fn gate(&self, bytes: usize) -> (&Arc<Gate>, usize) {
        let gate = if bytes <= SMALL_BYTES { &self.small } else { &self.large };
        // A request larger than the window takes half of it: the other half is for the others.
        (gate, (bytes + REQUEST_COST).min(gate.window / 2).max(1))
    }

    /// A turn now, if nobody has to wait.
    pub(super) fn try_take(&self, bytes: usize) -> Option<Turn> {
        let (gate, cost) = self.gate(bytes);
        gate.try_take(cost)
    }

    /// A turn when it is the client's.
    pub(super) async fn take(&self, client: &Arc<Client>, bytes: usize) -> Result<Turn, TooMany> {
        let (gate, cost) = self.gate(bytes);
        let waiting = gate.queue(client, cost)?;
        let (began, _counted) = (Instant::now(), Waiting::new());
        let turn = waiting.await.expect("invariant: a gate that somebody waits at is there, and drops no waiter");
        TURN_SECONDS.observe(began.elapsed().as_secs_f64());
        Ok(turn)
    }
}

/// One thread fewer than there are.
fn encoders() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    threads.saturating_sub(1).max(1)
}

/// Lets so many bytes through at once.
struct Gate {
    window: usize,
    quantum: usize,
    used: AtomicUsize,
    /// Whether anybody waits; then nobody passes without waiting.
    is_waiting: AtomicBool,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    /// By the address of the client's value, which lives as long as its queue.
    clients: HashMap<usize, Queue>,
    /// The clients in the order of their turns.
    round: VecDeque<usize>,
}

struct Queue {
    _client: Arc<Client>,
    waiters: VecDeque<Waiter>,
    /// What the client may still send in this round.
    deficit: usize,
}

struct Waiter {
    cost: usize,
    turn: oneshot::Sender<Turn>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("window", &self.window).field("used", &self.used).finish_non_exhaustive()
    }
}

impl Gate {
    fn new(window: usize, quantum: usize) -> Self {
        let (used, is_waiting) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { window, quantum, used, is_waiting, queues: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever finds any room passes: so a large request needs no empty window, and the window is exceeded by one at most.
    fn try_take(self: &Arc<Self>, cost: usize) -> Option<Turn> {
        if self.is_waiting.load(SeqCst) {
            return None;
        }
        if self.used.fetch_add(cost, SeqCst) < self.window {
            return Some(Turn { gate: Arc::clone(self), cost });
        }
        // Somebody may have looked meanwhile and found less room than there is.
        self.give_back(cost);
        None
    }

    fn queue(self: &Arc<Self>, client: &Arc<Client>, cost: usize) -> Result<oneshot::Receiver<Turn>, TooMany> {
        let (turn, waiting) = oneshot::channel();
        let mut queues = self.lock();
        let Queues { clients, round } = &mut *queues;
        let key = Arc::as_ptr(client) as usize;
        let queue = match clients.entry(key) {
            Entry::Occupied(queue) => queue.into_mut(),
            Entry::Vacant(vacant) => {
                round.push_back(key);
                vacant.insert(Queue { _client: Arc::clone(client), waiters: VecDeque::new(), deficit: self.quantum })
            }
        };
        if queue.waiters.len() >= MAX_WAITING {
            return Err(TooMany);
        }
        queue.waiters.push_back(Waiter { cost, turn });
        self.is_waiting.store(true, SeqCst);
        drop(queues);
        // The last turn may have been given back before anybody was seen to wait.
        self.let_pass();
        Ok(waiting)
    }

    fn give_back(self: &Arc<Self>, cost: usize) {
        self.used.fetch_sub(cost, SeqCst);
        if self.is_waiting.load(SeqCst) {
            self.let_pass();
        }
    }

    /// Lets in whose turn it is, while there is room.
    fn let_pass(self: &Arc<Self>) {
        // Turns of clients that have left just now; dropped without the lock, since that leads here again.
        let mut unwanted = Vec::new();
        let mut queues = self.lock();
        while self.used.load(SeqCst) < self.window {
            let Some(waiter) = queues.next(self.quantum) else {
                self.is_waiting.store(false, SeqCst);
                break;
            };
            self.used.fetch_add(waiter.cost, SeqCst);
            let turn = Turn { gate: Arc::clone(self), cost: waiter.cost };
            unwanted.extend(waiter.turn.send(turn).err());
        }
        drop(queues);
        drop(unwanted);
    }
}

impl Queues {
    /// The next one to pass, of those who still wait.
    fn next(&mut self, quantum: usize) -> Option<Waiter> {
        loop {
            let key = *self.round.front()?;
            let queue = self.clients.get_mut(&key)?;
            while queue.waiters.front().is_some_and(|waiter| waiter.turn.is_closed()) {
                queue.waiters.pop_front();
            }
            let Some(waiter) = queue.waiters.front() else {
                self.clients.remove(&key);
                self.round.pop_front();
                continue;
            };
            if queue.deficit >= waiter.cost {
                queue.deficit -= waiter.cost;
                return queue.waiters.pop_front();
            }
            queue.deficit += quantum;
            self.round.rotate_left(1);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.gate.give_back(self.cost);
    }
}

/// Counts a request while it waits.
struct Waiting;

impl Waiting {
    fn new() -> Self {
        WAITING_REQUESTS.inc();
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING_REQUESTS.dec();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    const WINDOW: usize = 1 << 20;
    const LARGE: usize = 200 << 10;

    fn clients() -> [Arc<Client>; 3] {
        ["a", "b", "c"].map(Client::new)
    }

    /// Fills a gate with requests of `bytes`.
    fn fill(turns: &Turns, bytes: usize) -> Vec<Turn> {
        std::iter::from_fn(|| turns.try_take(bytes)).collect()
    }

    #[test]
    fn request_passes_at_once_while_there_is_room_and_small_ones_have_their_own() {
        let turns = Turns::new(WINDOW);
        let large = fill(&turns, LARGE);
        assert_eq!(large.len(), WINDOW / (LARGE + REQUEST_COST) + 1, "the window is exceeded by one");
        let small = fill(&turns, 300);
        assert_eq!(small.len(), (WINDOW / (300 + REQUEST_COST)) + 1);
        drop(large);
        assert_eq!(turns.large.used.load(SeqCst), 0);
        assert!(turns.try_take(LARGE).is_some() && turns.try_take(300).is_none());
    }

    #[tokio::test]
    async fn newcomer_does_not_wait_behind_all_that_another_has_queued() {
        let turns = Turns::new(WINDOW);
        let [greedy, modest, _] = clients();
        let mut under_way = fill(&turns, LARGE);
        let mut queued: Vec<_> = (0..100).map(|_| Box::pin(turns.take(&greedy, LARGE))).collect();
        assert!(queued.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        let mut newcomer = Box::pin(turns.take(&modest, LARGE));
        assert!(newcomer.as_mut().now_or_never().is_none());
        // Two of the greedy one's go before it at most: what its quantum allows.
        for _ in 0..3 {
            drop(under_way.pop());
        }
        assert!(newcomer.now_or_never().is_some_and(|turn| turn.is_ok()));
    }

    #[tokio::test]
    async fn client_that_leaves_while_it_waits_is_in_nobodys_way() {
        let turns = Turns::new(WINDOW);
        let [a, b, _] = clients();
        let under_way = fill(&turns, LARGE);
        let mut waiting = Box::pin(turns.take(&a, LARGE));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(waiting);
        let mut waiting = Box::pin(turns.take(&b, LARGE));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(under_way);
        assert!(waiting.now_or_never().is_some());
        assert_eq!(turns.large.used.load(SeqCst), 0, "granted, and dropped at the end of the line above");
        assert!(turns.try_take(LARGE).is_some(), "nobody waits any more");
    }

    #[tokio::test]
    async fn client_with_too_many_waiting_is_told() {
        let turns = Turns::new(WINDOW);
        let [a, b, _] = clients();
        let _under_way = fill(&turns, 1);
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(turns.take(&a, 1))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert_eq!(turns.take(&a, 1).now_or_never().and_then(Result::err), Some(TooMany));
        assert!(turns.take(&b, 1).now_or_never().is_none());
    }

    /// Threads that race for a small window: nobody is forgotten, and all bytes come back.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn every_waiter_gets_its_turn() {
        let turns = Turns::new(WINDOW);
        let tasks: Vec<_> = (0..64)
            .map(|n| {
                let (turns, client) = (turns.clone(), clients()[n % 3].clone());
                tokio::spawn(async move {
                    for _ in 0..200 {
                        let turn = match turns.try_take(LARGE) {
                            Some(turn) => turn,
                            None => turns.take(&client, LARGE).await.unwrap(),
                        };
                        tokio::task::yield_now().await;
                        drop(turn);
                    }
                })
            })
            .collect();
        for task in tasks {
            tokio::time::timeout(std::time::Duration::from_secs(60), task).await.expect("nobody is forgotten").unwrap();
        }
        assert_eq!(turns.large.used.load(SeqCst), 0);
    }

    proptest! {
        /// However large the requests of each: of clients that all wait, none is ahead of another by more than a quantum
        /// and two requests.
        #[test]
        fn clients_that_wait_get_the_same_bytes(sizes in prop::collection::vec((SMALL_BYTES + 1)..(2 * WINDOW), 3)) {
            const EACH: usize = 60;
            let turns = Turns::new(WINDOW);
            let mut under_way = VecDeque::from(fill(&turns, LARGE));
            let clients = clients();
            let mut waiting: Vec<_> = clients
                .iter()
                .zip(&sizes)
                .map(|(client, bytes)| {
                    let cost = turns.gate(*bytes).1;
                    let turns = (0..EACH).map(|_| turns.large.queue(client, cost).unwrap()).collect::<VecDeque<_>>();
                    (cost, turns)
                })
                .collect();
            let largest = waiting.iter().map(|(cost, _)| *cost).max().unwrap_or_default();
            loop {
                drop(under_way.pop_front());
                for (_, queue) in &mut waiting {
                    while let Some(Ok(turn)) = queue.front_mut().map(oneshot::Receiver::try_recv) {
                        under_way.push_back(turn);
                        queue.pop_front();
                    }
                }
                if waiting.iter().any(|(_, queue)| queue.is_empty()) {
                    break;
                }
                let sent: Vec<usize> = waiting.iter().map(|(cost, queue)| cost * (EACH - queue.len())).collect();
                let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
                prop_assert!(most - least <= LARGE_QUANTUM + 2 * largest, "{sent:?} of {sizes:?}");
            }
            drop((under_way, waiting));
            prop_assert_eq!(turns.large.used.load(SeqCst), 0);
        }
    }
}
