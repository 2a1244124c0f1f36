//! What became of the records that a position was given for, projection by projection.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::{Row, types::ToSql};

use super::{
    ServeState,
    connections::{self, Lane, Sql},
    failure, freshness,
    problem::UNREAD_TOPIC,
    wait::{self, Wanted},
};
use crate::http::Problem;

static LOOK_UP: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(format!(
        "\
    select p.projection, w.topic, w.partition, w.first, w.next, f.next_offset, \
           f.state = 'halted', f.halt_code, f.halt_reason, p.paused, ({dead})::text, ({refused})::text \
      from unnest($1::text[], $2::int4[], $3::int8[], $4::int8[]) as w(topic, partition, first, next) \
      cross join millpond.projections p \
      join millpond.versions v on v.projection = p.projection and v.version = p.live_version and w.topic = any(v.topics) \
      left join millpond.fences f on f.projection = v.projection and f.version = v.version \
                                 and f.topic = w.topic and f.partition = w.partition \
     order by p.projection, w.topic, w.partition",
        dead = of_record(&freshness::set_aside("v.projection", "v.version")),
        refused = of_record(&freshness::refused("v.projection", "v.version")),
    ))
});

/// Records of `w` as JSON.
fn of_record(found: &str) -> String {
    format!(
        "select json_agg(json_build_object('offset', l.\"offset\", 'code', l.code, 'reason', left(l.reason, 2000), \
                                           'head', l.head)) from ({found}) l"
    )
}

/// Ordered from best to worst: the worst of its entries is that of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    Applied,
    Refused,
    Waiting,
    /// It waits with its key: it may be applied yet.
    Parked,
    DeadLettered,
    Halted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Halt {
    pub code: String,
    pub reason: String,
}

/// A record that was set aside or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub offset: i64,
    pub code: String,
    pub reason: String,
    /// Of a record whose key is parked: offset of the first one that waits, about which somebody has to decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<i64>,
}

/// One projection on one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    #[serde(skip)]
    pub consumer: String,
    pub topic: String,
    pub partition: i32,
    /// The record that decides `outcome`: the first one set aside or refused, else the last one below the position;
    /// absent at the start of a partition, which has none.
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
    /// Offset of the first record of a parked key that waits, about which somebody has to decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<i64>,
    /// Of a position of several records: those that were set aside, and those that were refused, at most
    /// `MAX_OUTCOMES` of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dead_letters: Vec<Record>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Record>,
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
    let params: [&(dyn ToSql + Sync); 4] = [&wanted.topics, &wanted.partitions, &wanted.first, &wanted.next];
    let rows = state.connections().rows(Lane::Point, &LOOK_UP, &params).await?;
    let entries: Result<Vec<Entry>, tokio_postgres::Error> = rows.iter().map(entry).collect();
    Ok(entries?)
}

fn entry(row: &Row) -> Result<Entry, tokio_postgres::Error> {
    let (first, wanted): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
    let next_offset: Option<i64> = row.try_get(5)?;
    let halted = row.try_get::<_, Option<bool>>(6)?.unwrap_or(false);
    let (dead, refused) = (records(row.try_get(10)?), records(row.try_get(11)?));
    // The start of a partition covers nothing: that is applied before anything is.
    let reached = wanted == 0 || next_offset.is_some_and(|next| next >= wanted);
    let outcome = match () {
        () if !reached && halted => Fate::Halted,
        () if dead.iter().any(|record| record.head.is_none()) => Fate::DeadLettered,
        () if !dead.is_empty() => Fate::Parked,
        () if !reached => Fate::Waiting,
        () if !refused.is_empty() => Fate::Refused,
        () => Fate::Applied,
    };
    let halt = (outcome == Fate::Halted).then_some(Halt {
        code: row.try_get::<_, Option<String>>(7)?.unwrap_or_default(),
        reason: row.try_get::<_, Option<String>>(8)?.unwrap_or_default(),
    });
    // Of those that decide the outcome the first: what only waits is not, beside one that is given up.
    let first_dead = dead.iter().find(|record| record.head.is_none() || outcome == Fate::Parked).or(dead.first());
    let told = first_dead.or(refused.first());
    let mut entry = Entry {
        consumer: row.try_get(0)?,
        topic: row.try_get(1)?,
        partition: row.try_get(2)?,
        offset: told.map(|record| record.offset).or((wanted > 0).then(|| wanted - 1)),
        outcome,
        next_offset,
        lag: (!reached).then_some(wanted - next_offset.unwrap_or(0)),
        reason_class: first_dead.map(|record| record.code.clone()),
        code: refused.first().filter(|_| dead.is_empty()).map(|record| record.code.clone()),
        reason: told.map(|record| record.reason.clone()),
        head: first_dead.and_then(|record| record.head),
        dead_letters: if wanted - first > 1 { dead } else { Vec::new() },
        refusals: if wanted - first > 1 { refused } else { Vec::new() },
        halt,
        paused: row.try_get(9)?,
        next: None,
    };
    entry.next = entry.next_command();
    Ok(entry)
}

fn records(json: Option<&str>) -> Vec<Record> {
    json.map(|json| serde_json::from_str(json).expect("invariant: json_agg of these objects parses"))
        .unwrap_or_default()
}

impl Entry {
    fn next_command(&self) -> Option<String> {
        match self.outcome {
            Fate::DeadLettered => {
                self.offset.map(|offset| show_command(&self.consumer, &self.topic, self.partition, offset))
            }
            Fate::Parked => self.head.map(|head| show_command(&self.consumer, &self.topic, self.partition, head)),
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
