//! Faults of the processes that apply: killed, frozen, replaced.

use std::time::Duration;

use anyhow::Context as _;

use super::postgres::dead_letters;
use super::{Fault, Field, SHOWS_WITHIN};
use crate::proxy::{Action, Pattern, Trap};
use crate::values;
use crate::workload::history::Kind;

/// Whose connections apply batches and claim fences.
pub(super) const APPLYING: &str = "millpond consume";
/// What raises an epoch.
const CLAIM: &str = "set epoch = epoch + 1";
/// What a batch's one message begins with.
pub(super) const FLUSH: &str = "millpond.advance_fence(";
/// How long a trap waits for its message; under load it comes at once.
pub(super) const SPRINGS_WITHIN: Duration = Duration::from_secs(20);

/// Points of the protocol at which a consumer can die, with the message at which it is there.
const POINTS: [(&str, Option<Pattern>); 8] = [
    ("at any moment", None),
    ("before begin", Some(Pattern::Sent("begin"))),
    ("while staging", Some(Pattern::Copying)),
    ("staged, before the flush", Some(Pattern::Sent(FLUSH))),
    ("fence and rows done, before the answer", Some(Pattern::Done { tag: "SELECT", of: FLUSH })),
    ("committed, before the answer", Some(Pattern::Done { tag: "COMMIT", of: FLUSH })),
    ("before a claim", Some(Pattern::Sent(CLAIM))),
    ("claimed, before the answer", Some(Pattern::Done { tag: "UPDATE", of: CLAIM })),
];

/// C1: a consumer dies at a point of its protocol, and another takes over.
pub async fn killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("consume")?;
    let (point, pattern) = field.way(&[0, 1, 2, 3, 4, 5, 6, 7].map(|at| &POINTS[at])).clone();
    let before = field.epochs().await.context("Postgres is there")?;
    let trap = pattern.map(|pattern| Trap::new(APPLYING, pattern, Action::Hold));
    let claims = point.contains("claim");
    let mut others = Vec::new();
    if let Some(trap) = &trap {
        field.arena.slots[slot].postgres.set(trap);
        if claims {
            // Nobody claims in peace: the others die first, and theirs is claimed.
            others = field.arena.of_role("consume").into_iter().filter(|other| *other != slot).collect();
            for other in &others {
                field.arena.kill_9(*other);
            }
        }
    }
    let name = field.arena.slots[slot].name.clone();
    let sprung = match &trap {
        Some(trap) => trap.sprung(SPRINGS_WITHIN).await,
        None => true,
    };
    let injected = field.begin(format!("kill -9 of {name}: {point}")).await?;
    field.arena.kill_9(slot);
    // Somebody has to be there to take over.
    for other in others {
        field.start(other)?;
    }
    let claimed = field.claimed_since(before).await;
    let observed = claimed.filter(|_| sprung);
    let recovery = field.recovery(injected.at).await;
    field.start(slot)?;
    Ok(field.end(injected, observed, recovery))
}

/// C2: a consumer is frozen until the group has given its partitions to another, and thaws.
pub async fn frozen(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("consume")?;
    let before = field.epochs().await.context("Postgres is there")?;
    let injected = field.begin(format!("SIGSTOP of {}", field.arena.slots[slot].name)).await?;
    let process = field.arena.slots[slot].process.as_ref().context("it runs")?;
    process.pause();
    let claimed = field.claimed_since(before).await;
    let recovery = field.recovery(injected.at).await;
    let outage = field.outage(0, 4);
    tokio::time::sleep(outage).await;
    field.arena.slots[slot].process.as_ref().context("it runs")?.cont();
    let lost = lost(field, slot).await;
    let observed = claimed.map(|claimed| format!("{claimed} meanwhile; thawed, it had {lost}"));
    Ok(field.end(injected, observed, recovery))
}

/// C3: a consumer is frozen with a batch staged and the message that commits it on its way; that arrives after somebody
/// else has claimed the partition.
pub async fn late_message(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("consume")?;
    let (trap, flush) = Flush::catch(field, slot).await?;
    let name = field.arena.slots[slot].name.clone();
    let injected = field.begin(format!("SIGSTOP of {name} with a flush on its way, which arrives late")).await?;
    field.arena.slots[slot].process.as_ref().context("it runs")?.pause();
    let moved = flush.waits_until_moved(field).await;
    let open = open_transactions(field).await;
    trap.release();
    let recovery = field.recovery(injected.at).await;
    field.arena.slots[slot].process.as_ref().context("it runs")?.cont();
    let lost = lost(field, slot).await;
    // Postgres may have ended the session by then: nothing arrives late there.
    let observed = moved.filter(|_| open > 0).map(|moved| format!("{moved} when the flush arrived; then it {lost}"));
    field.arena.slots[slot].postgres.heal();
    Ok(field.end(injected, observed, recovery))
}

/// Sessions of consumers that wait inside a transaction for what comes next.
async fn open_transactions(field: &Field<'_>) -> i64 {
    let sql = "select count(*) from pg_stat_activity where datname = current_database()
                and application_name like 'millpond consume %' and state = 'idle in transaction'
                and state_change < now() - interval '1 s'";
    let Ok(mut connection) = field.arena.connect().await else { return 0 };
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap_or(0)
}

/// A flush on its way: which fence it moves, and from where.
pub(super) struct Flush {
    pub projection: String,
    pub topic: String,
    pub partition: i32,
    pub from: i64,
}

impl Flush {
    /// Holds the next flush of a consumer on its way, in the trap that comes with it.
    pub async fn catch(field: &Field<'_>, slot: usize) -> anyhow::Result<(Trap, Self)> {
        let trap = Trap::new(APPLYING, Pattern::Sent(FLUSH), Action::Hold);
        field.arena.slots[slot].postgres.set(&trap);
        anyhow::ensure!(trap.sprung(SPRINGS_WITHIN).await, "no batch was flushed within {SPRINGS_WITHIN:?}");
        let flush = Self::read(&trap.caught()).context("a flush names its fence")?;
        Ok((trap, flush))
    }

    /// Reads the arguments of `advance_fence(projection, version, topic, partition, owner, epoch, from, …)`.
    pub fn read(statement: &str) -> Option<Self> {
        let (_, arguments) = statement.split_once(FLUSH)?;
        let words: Vec<&str> = arguments.split(',').map(|word| word.trim().trim_matches('\'')).take(7).collect();
        let [projection, _, topic, partition, _, _, from] = words[..] else { return None };
        let (projection, topic) = (projection.to_owned(), topic.to_owned());
        Some(Self { projection, topic, partition: partition.parse().ok()?, from: from.parse().ok()? })
    }

    /// Waits until somebody else has moved the fence that this one is to move.
    async fn waits_until_moved(&self, field: &Field<'_>) -> Option<String> {
        let sql = "select next_offset from millpond.fences where projection = $1 and topic = $2 and partition = $3";
        let moved = async {
            loop {
                if let Ok(mut connection) = field.arena.connect().await {
                    let query = sqlx::query_scalar(sql).bind(&self.projection).bind(&self.topic).bind(self.partition);
                    let at: i64 = query.fetch_one(&mut connection).await.unwrap_or(self.from);
                    if at > self.from {
                        let Self { projection, partition, from, .. } = self;
                        return format!("the fence of {projection} on {partition} had gone from {from} to {at}");
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SHOWS_WITHIN, moved).await.ok()
    }
}

/// C4: a member is frozen between its assignment and its claim, which arrives when another has claimed already. It takes
/// over wrongly, and both have to find out who is to go on.
pub async fn late_claim(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("consume")?;
    let other = field.arena.of_role("consume").into_iter().find(|other| *other != slot).context("another")?;
    let trap = Trap::new(APPLYING, Pattern::Sent(CLAIM), Action::Hold);
    field.arena.slots[slot].postgres.set(&trap);
    let name = field.arena.slots[slot].name.clone();
    let injected = field.begin(format!("SIGSTOP of {name} between assignment and claim, which arrives late")).await?;
    // Its partitions go to the one that is to be frozen.
    field.arena.kill_9(other);
    let sprung = trap.sprung(SPRINGS_WITHIN).await;
    field.arena.slots[slot].process.as_ref().context("it runs")?.pause();
    let before = field.epochs().await.context("Postgres is there")?;
    field.start(other)?;
    let claimed = field.claimed_since(before).await;
    let between = field.epochs().await.context("Postgres is there")?;
    trap.release();
    let late = field.claimed_since(between).await;
    field.arena.slots[slot].process.as_ref().context("it runs")?.cont();
    let recovery = field.recovery(injected.at).await;
    field.arena.slots[slot].postgres.heal();
    let observed = claimed.zip(late).filter(|_| sprung);
    let observed =
        observed.map(|(claimed, late)| format!("{claimed} while it was frozen, {late} after its own arrived"));
    Ok(field.end(injected, observed, recovery))
}

/// I6: an ingest node is told to end, or dies, with requests on their way.
pub async fn ingest_gone(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("ingest")?;
    let name = field.arena.slots[slot].name.clone();
    let orderly = field.way(&[true, false]);
    let injected = field.begin(format!("{} of {name} under load", if orderly { "SIGTERM" } else { "kill -9" })).await?;
    if orderly {
        if let Some(process) = field.arena.slots[slot].process.take() {
            process.terminate();
            field.arena.slots[slot].web.send_replace(None);
            tokio::task::block_in_place(|| process.stop());
        }
    } else {
        field.arena.kill_9(slot);
    }
    let told = field.history.look(|requests| {
        let late = requests.iter().filter(|request| request.completed > injected.at);
        late.filter(|request| request.outcome != crate::workload::history::Outcome::Ok).count()
    });
    let outage = field.outage(1, 3);
    tokio::time::sleep(outage).await;
    field.start(slot)?;
    let recovery = field.recovery(injected.at).await;
    let observed = format!("it was gone for {outage:.1?}, {told} requests without a 202 by then");
    Ok(field.end(injected, Some(observed), recovery))
}

/// C5: members come and go, faster than they settle.
pub async fn storm(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("consume")?;
    let before = field.epochs().await.context("Postgres is there")?;
    let rounds = field.random.between(3, 5);
    let name = field.arena.slots[slot].name.clone();
    let injected = field.begin(format!("{name} leaves and comes back {rounds} times")).await?;
    for _ in 0..rounds {
        let orderly = field.random.below(2) == 0;
        if orderly {
            field.arena.stop(slot);
        } else {
            field.arena.kill_9(slot);
        }
        tokio::time::sleep(Duration::from_millis(field.random.below(1500))).await;
        field.start(slot)?;
        tokio::time::sleep(Duration::from_millis(field.random.below(1500))).await;
    }
    let claimed = field.claimed_since(before).await;
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, claimed, recovery))
}

/// C7: a burst of values of which every other one makes a projection fail.
pub async fn poisoned(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let before = dead_letters(field).await?;
    let values = field.random.between(20, 60);
    let injected = field.begin(format!("{values} values, every other one of them poisoned")).await?;
    let sent = field.workload.burst(Kind::Append, values::POISONER, usize::try_from(values)?).await;
    let recovery = field.recovery(injected.at).await;
    let added = dead_letters(field).await? - before;
    let observed = format!("{added} dead letters, {} requests of the burst without a 202", usize::from(!sent));
    Ok(field.end(injected, (added > 1).then_some(observed), recovery))
}

/// What a member that was taken for dead says when it wakes.
async fn lost(field: &Field<'_>, slot: usize) -> String {
    let process = field.arena.slots[slot].process.as_ref();
    let words = || process.map_or(0, |process| process.log().matches(r#""lost":true"#).count());
    let before = words();
    let waited = async {
        while words() == before {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let _ = tokio::time::timeout(SHOWS_WITHIN / 3, waited).await;
    format!("lost its partitions {} times in its life", words())
}
