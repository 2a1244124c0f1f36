//! One connection: bytes carried both ways, as far as rules and traps let them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use super::postgres::{self, Dialogue};
use super::trap::Action;
use super::{Direction, Effect, Orders, Protocol, Shared, Trap, lock};
use crate::random::Random;

/// Most bytes taken from a socket at once.
const PIECE: usize = 64 * 1024;

/// The connection is over and is to be reset.
struct Cut;

/// Carries one connection to its end.
pub async fn carry(mut client: TcpStream, shared: Arc<Shared>) {
    let number = shared.next.fetch_add(1, Ordering::Relaxed);
    let opened = tokio::time::timeout(Duration::from_secs(60), open(&mut client, &shared)).await;
    let Ok(Some((mut server, name))) = opened else {
        let _ = client.set_zero_linger();
        return;
    };
    let (end, ended) = watch::channel(false);
    lock(&shared.links).insert(number, (name.clone(), end));
    let mut random = Random::new(shared.seed ^ number);
    let chosen = random.below(2) == 0;
    let (dialogue, member) = (Dialogue::default(), AtomicBool::new(false));
    let link = Link { shared: &shared, name: &name, dialogue, member, chosen };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let reset = link.run(&mut client, &mut server, ended, random).await;
    lock(&shared.links).remove(&number);
    if reset {
        // Both ends are to learn it by a reset, not by a polite end.
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

/// Learns who it is and connects to the server; none when it is refused.
async fn open(client: &mut TcpStream, shared: &Shared) -> Option<(TcpStream, String)> {
    let (first, name) = match shared.protocol {
        Protocol::Postgres => postgres::startup(client).await.ok()?,
        Protocol::Kafka => kafka_hello(client).await.ok()?,
    };
    let orders = shared.orders.borrow().clone();
    let mut refusing = orders.rules.iter().filter(|rule| matches!(rule.effect, Effect::Refuse));
    if let Some(rule) = refusing.find(|rule| name.starts_with(&rule.client)) {
        rule.touch();
        return None;
    }
    let upstream = (*lock(&shared.upstream))?;
    let mut server = TcpStream::connect(upstream).await.ok()?;
    server.write_all(&first).await.ok()?;
    Some((server, name))
}

/// Whether a request that begins here joins a group, stays in it or is given its share.
fn is_of_a_member(piece: &[u8]) -> bool {
    const JOIN_HEARTBEAT_SYNC: [[u8; 2]; 3] = [[0, 11], [0, 12], [0, 14]];
    piece.get(4..6).is_some_and(|key| JOIN_HEARTBEAT_SYNC.iter().any(|known| known == key))
}

/// The head of a Kafka client's first request, and its client id.
async fn kafka_hello(client: &mut TcpStream) -> std::io::Result<(Vec<u8>, String)> {
    // Length, API key, API version, correlation id, and the length of the client id.
    let mut head = vec![0; 4 + 2 + 2 + 4 + 2];
    client.read_exact(&mut head).await?;
    let length = i16::from_be_bytes([head[12], head[13]]);
    let fixed = head.len();
    head.resize(fixed + usize::try_from(length).unwrap_or(0), 0);
    client.read_exact(&mut head[fixed..]).await?;
    let name = String::from_utf8_lossy(&head[fixed..]).into_owned();
    Ok((head, name))
}

struct Link<'a> {
    shared: &'a Shared,
    name: &'a str,
    dialogue: Dialogue,
    /// Whether a member of a group speaks to its coordinator.
    member: AtomicBool,
    /// Whether it is of the half that is disturbed when only half of all are.
    chosen: bool,
}

impl Link<'_> {
    /// Until either end closes, or a rule, a trap or the rig cuts it; whether it is to be reset.
    async fn run(
        &self,
        client: &mut TcpStream,
        server: &mut TcpStream,
        mut ended: watch::Receiver<bool>,
        mut random: Random,
    ) -> bool {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let other = random.fork();
        tokio::select! {
            done = self.pump(Direction::ToServer, &mut from_client, &mut to_server, random) => done.is_err(),
            done = self.pump(Direction::ToClient, &mut from_server, &mut to_client, other) => done.is_err(),
            _ = ended.wait_for(|ended| *ended) => true,
        }
    }

    async fn pump(
        &self,
        direction: Direction,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
        mut random: Random,
    ) -> Result<(), Cut> {
        let mut orders = self.shared.orders.subscribe();
        let (mut buffer, mut carried) = (BytesMut::with_capacity(PIECE), 0_u64);
        loop {
            self.wait_while_stalled(direction, &mut orders).await;
            match from.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err(Cut),
            }
            // A stall that began while the bytes were waited for holds them, too.
            self.wait_while_stalled(direction, &mut orders).await;
            while self.advance(direction, &mut buffer, to, &mut carried, &mut random, &mut orders).await? {}
        }
    }

    /// Lets through what may pass of `buffer`; whether there may be more in it.
    async fn advance(
        &self,
        direction: Direction,
        buffer: &mut BytesMut,
        to: &mut WriteHalf<'_>,
        carried: &mut u64,
        random: &mut Random,
        orders: &mut watch::Receiver<Orders>,
    ) -> Result<bool, Cut> {
        let now = orders.borrow_and_update().clone();
        let (pass, sprung) = self.inspect(direction, buffer, &now);
        let piece = buffer.split_to(pass);
        if !self.disturb(direction, &piece, carried, random, &now).await? {
            to.write_all(&piece).await.map_err(|_| Cut)?;
        }
        let Some(trap) = sprung else { return Ok(false) };
        match trap.action {
            // A trap springs once: the message passes with the next round.
            Action::Hold => trap.released().await,
            Action::SwallowAndCut => return Err(Cut),
            Action::PassAndCut => {
                let length = postgres::message_length(buffer).unwrap_or(0);
                to.write_all(&buffer[..length]).await.map_err(|_| Cut)?;
                // What was written is in the other socket's buffer, and a reset could overtake it.
                tokio::time::sleep(Duration::from_millis(5)).await;
                return Err(Cut);
            }
        }
        Ok(true)
    }

    /// How many bytes may pass now, and the trap that the message after them has sprung.
    fn inspect(&self, direction: Direction, bytes: &[u8], orders: &Orders) -> (usize, Option<Trap>) {
        if self.shared.protocol != Protocol::Postgres {
            return (bytes.len(), None);
        }
        let mut pass = 0;
        while let Some(length) = postgres::message_length(&bytes[pass..]) {
            let sprung = self.dialogue.read(direction, &bytes[pass..pass + length], |message| {
                orders.traps.iter().find(|trap| trap.springs(self.name, direction, message)).cloned()
            });
            if sprung.is_some() {
                return (pass, sprung);
            }
            pass += length;
        }
        (pass, None)
    }

    /// Applies the rules to a piece; whether it is to be thrown away.
    async fn disturb(
        &self,
        direction: Direction,
        piece: &[u8],
        carried: &mut u64,
        random: &mut Random,
        orders: &Orders,
    ) -> Result<bool, Cut> {
        if piece.is_empty() {
            return Ok(false);
        }
        *carried += piece.len() as u64;
        if direction == Direction::ToServer && self.shared.protocol == Protocol::Kafka && is_of_a_member(piece) {
            self.member.store(true, Ordering::Relaxed);
        }
        let mut thrown = false;
        for rule in orders.rules.iter().filter(|rule| self.name.starts_with(&rule.client)) {
            match rule.effect {
                Effect::Latency { least, most } => {
                    rule.touch();
                    let span = u64::try_from(most.saturating_sub(least).as_micros()).unwrap_or(u64::MAX);
                    tokio::time::sleep(least + Duration::from_micros(random.below(span.max(1)))).await;
                }
                Effect::Drop(which) if which == direction => {
                    rule.touch();
                    thrown = true;
                }
                Effect::SilenceMembers if self.chosen && self.member.load(Ordering::Relaxed) => {
                    rule.touch();
                    thrown = true;
                }
                Effect::CutAfter(which, bytes) if which == direction && *carried >= bytes => {
                    rule.touch();
                    return Err(Cut);
                }
                Effect::Reset { per_mille } if random.below(1000) < per_mille => {
                    rule.touch();
                    return Err(Cut);
                }
                _ => {}
            }
        }
        Ok(thrown)
    }

    fn wait_while_stalled<'o>(
        &self,
        direction: Direction,
        orders: &'o mut watch::Receiver<Orders>,
    ) -> impl Future<Output = ()> + use<'_, 'o> {
        let stalls = move |orders: &Orders| {
            orders.rules.iter().any(|rule| {
                let stalled = matches!(rule.effect, Effect::Stall(which) if which == direction)
                    && self.name.starts_with(&rule.client);
                if stalled {
                    rule.touch();
                }
                stalled
            })
        };
        async move {
            let _ = orders.wait_for(|orders| !stalls(orders)).await;
        }
    }
}
