//! What became of the records below a position, projection by projection.

use std::sync::LazyLock;

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::Row;

use super::{
    ServeState,
    connections::{self, Lane, Sql},
    failure,
    problem::UNREAD_TOPIC,
    wait::{self, Wanted},
};
use crate::http::Problem;

static LOOK_UP: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "\
    select p.projection, w.topic, w.partition, w.next_offset, f.next_offset, \
           f.state = 'halted', f.halt_code, f.halt_reason, \
           l.reason_class, left(l.reason, 2000), r.code, left(r.reason, 2000), p.paused \
      from unnest($1::text[], $2::int4[], $3::int8[]) as w(topic, partition, next_offset) \
      cross join millpond.projections p \
      join millpond.versions v on v.projection = p.projection and v.version = p.live_version and w.topic = any(v.topics) \
      left join millpond.fences f on f.projection = v.projection and f.version = v.version \
                                 and f.topic = w.topic and f.partition = w.partition \
      left join millpond.dead_letters l on l.projection = v.projection and l.version = v.version \
                                 and l.topic = w.topic and l.partition = w.partition and l.\"offset\" = w.next_offset - 1 \
      left join millpond.refusals r on r.projection = v.projection and r.version = v.version \
                                 and r.topic = w.topic and r.partition = w.partition and r.\"offset\" = w.next_offset - 1 \
     order by p.projection, w.topic, w.partition",
    )
});

/// Ordered from best to worst: the worst of its entries is that of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    Applied,
    Refused,
    Waiting,
    DeadLettered,
    Halted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Halt {
    pub code: String,
    pub reason: String,
}

/// One projection on one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    #[serde(skip)]
    pub consumer: String,
    pub topic: String,
    pub partition: i32,
    /// The record asked about: the one just below the position; absent at the start of a partition, which has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    pub outcome: Fate,
    /// First offset not applied yet; absent before the projection has begun on the partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<i64>,
    /// Records still to be applied up to the position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason_class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halt: Option<Halt>,
    #[serde(skip)]
    pub paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The command that shows a dead letter.
pub fn show_command(consumer: &str, topic: &str, partition: i32, offset: i64) -> String {
    format!("millpond dlq show {consumer} {topic}/{partition}/{offset}")
}

/// Looks a position up in every live projection that reads its topics.
pub async fn look_up(state: &ServeState, wanted: &Wanted) -> Result<Vec<Entry>, connections::Error> {
    let rows =
        state.connections().rows(Lane::Point, &LOOK_UP, &[&wanted.topics, &wanted.partitions, &wanted.offsets]).await?;
    let entries: Result<Vec<Entry>, tokio_postgres::Error> = rows.iter().map(entry).collect();
    Ok(entries?)
}

fn entry(row: &Row) -> Result<Entry, tokio_postgres::Error> {
    let wanted: i64 = row.try_get(3)?;
    let next_offset: Option<i64> = row.try_get(4)?;
    let halted = row.try_get::<_, Option<bool>>(5)?.unwrap_or(false);
    let (reason_class, dead_reason): (Option<String>, Option<String>) = (row.try_get(8)?, row.try_get(9)?);
    let (code, refused_reason): (Option<String>, Option<String>) = (row.try_get(10)?, row.try_get(11)?);
    // The start of a partition covers nothing: that is applied before anything is.
    let reached = wanted == 0 || next_offset.is_some_and(|next| next >= wanted);
    let outcome = match () {
        () if !reached && halted => Fate::Halted,
        () if !reached => Fate::Waiting,
        () if reason_class.is_some() => Fate::DeadLettered,
        () if code.is_some() => Fate::Refused,
        () => Fate::Applied,
    };
    let halt = (outcome == Fate::Halted).then_some(Halt {
        code: row.try_get::<_, Option<String>>(6)?.unwrap_or_default(),
        reason: row.try_get::<_, Option<String>>(7)?.unwrap_or_default(),
    });
    let mut entry = Entry {
        consumer: row.try_get(0)?,
        topic: row.try_get(1)?,
        partition: row.try_get(2)?,
        offset: (wanted > 0).then(|| wanted - 1),
        outcome,
        next_offset,
        lag: (!reached).then_some(wanted - next_offset.unwrap_or(0)),
        reason_class,
        code,
        reason: dead_reason.or(refused_reason),
        halt,
        paused: row.try_get(12)?,
        next: None,
    };
    entry.next = entry.next_command();
    Ok(entry)
}

impl Entry {
    fn next_command(&self) -> Option<String> {
        match self.outcome {
            Fate::DeadLettered => {
                self.offset.map(|offset| show_command(&self.consumer, &self.topic, self.partition, offset))
            }
            Fate::Halted => Some(format!("millpond consumer restart {}", self.consumer)),
            Fate::Waiting if self.paused => Some(format!("millpond consumer resume {}", self.consumer)),
            Fate::Waiting | Fate::Applied | Fate::Refused => None,
        }
    }
}

/// The body of `GET /v1/positions/{position}`.
pub async fn describe(state: &ServeState, text: &str) -> Result<Value, Problem> {
    let position = wait::parse(text)?;
    let wanted = Wanted::new(position, std::time::Duration::ZERO, false);
    let entries = look_up(state, &wanted).await.map_err(|error| failure::problem(&error, None))?;
    if entries.is_empty() {
        let detail = format!("no live projection reads {}", wanted.topics.join(", "));
        return Err(UNREAD_TOPIC.problem(detail).with("views", "/v1/views"));
    }
    let worst = |entries: &[Entry]| entries.iter().map(|entry| entry.outcome).max();
    let projections: Vec<Value> = entries
        .chunk_by(|a, b| a.consumer == b.consumer)
        .map(|of| {
            json!({
                "consumer": of[0].consumer, "outcome": worst(of), "paused": of[0].paused,
                "view": format!("/v1/views/{}", of[0].consumer), "entries": of,
            })
        })
        .collect();
    let unread: Vec<&String> =
        wanted.topics.iter().filter(|topic| !entries.iter().any(|entry| entry.topic == **topic)).collect();
    Ok(json!({
        "position": wanted.position.to_string(), "outcome": worst(&entries), "projections": projections,
        "unread_topics": unread,
    }))
}
