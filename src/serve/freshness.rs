//! How far the data of an answer is: read in the statement that reads the data, from the same snapshot.

use axum::http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use tokio_postgres::Row;

use super::{header_value, headers};
use crate::domain::Position;

/// Beside the data: which version was live, how far it was, how old that is, and what became of wanted records.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    pub live_version: Option<i32>,
    /// `topic/partition@next,…` in the order of `Position`; empty before the first fence.
    pub position: String,
    /// Seconds; `None` when not known for each partition.
    pub age: Option<f64>,
    pub dead_letters: Vec<Outcome>,
    pub refusals: Vec<Outcome>,
}

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Outcome {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub code: String,
    pub reason: String,
}

impl Outcome {
    /// Short enough for a header.
    fn summary(&self) -> String {
        format!("{}: {}", self.code, self.reason).chars().take(256).collect()
    }
}

/// Parameters of a statement that come before the query's own: projection, version, and the wanted position.
pub fn parameters(wanted: bool) -> usize {
    if wanted { 5 } else { 2 }
}

/// Age per partition: caught up, it is the time since that was last checked; behind, the time since the last applied
/// record was written. The oldest partition counts, and one unknown makes the whole unknown.
const FENCES: &str = "\
    select coalesce(string_agg(f.topic || '/' || f.partition || '@' || f.next_offset, ',' \
                               order by f.topic collate \"C\", f.partition), '') as position, \
           case when count(*) = count(case when e.end_offset is null then null \
                                           when f.next_offset >= e.end_offset then e.observed_at \
                                           else f.last_timestamp end) \
                then extract(epoch from now() - min(case when f.next_offset >= e.end_offset then e.observed_at \
                                                         else f.last_timestamp end))::float8 end as age \
      from millpond.fences f \
      left join millpond.ends e on e.projection = f.projection and e.version = f.version \
                               and e.topic = f.topic and e.partition = f.partition \
     where f.projection = $1 and f.version = $2";

/// The record just below each wanted offset, if it was set aside or refused.
fn outcomes(table: &str, code: &str) -> String {
    format!(
        "select json_agg(json_build_object('topic', l.topic, 'partition', l.partition, 'offset', l.\"offset\", \
                                           'code', l.{code}, 'reason', left(l.reason, 2000)))::text \
           from unnest($3::text[], $4::int4[], $5::int8[]) as w(topic, partition, next_offset) \
           join millpond.{table} l on l.projection = $1 and l.version = $2 and l.topic = w.topic \
                                  and l.partition = w.partition and l.\"offset\" = w.next_offset - 1"
    )
}

/// A statement that answers the head, and the rows of `rows` (columns `body`, `rows`, `next`) beside it.
pub fn statement(wanted: bool, rows: Option<&str>) -> String {
    let (dead, refused) = match wanted {
        true => (outcomes("dead_letters", "reason_class"), outcomes("refusals", "code")),
        false => ("null".to_owned(), "null".to_owned()),
    };
    let (columns, join) = match rows {
        Some(rows) => (", d.body, d.rows, d.next", format!(" left join ({rows}) d on true")),
        None => ("", String::new()),
    };
    format!(
        "select p.live_version, h.position, h.age, ({dead})::text as dead, ({refused})::text as refused{columns} \
         from millpond.projections p cross join ({FENCES}) h{join} where p.projection = $1"
    )
}

impl Head {
    /// From a row of `statement`; none at all means that the projection is gone.
    pub fn from_row(row: &Row) -> Result<Head, tokio_postgres::Error> {
        let outcomes = |text: Option<&str>| -> Vec<Outcome> {
            text.map(|json| serde_json::from_str(json).expect("invariant: json_agg of these objects parses"))
                .unwrap_or_default()
        };
        Ok(Head {
            live_version: row.try_get(0)?,
            position: row.try_get(1)?,
            age: row.try_get(2)?,
            dead_letters: outcomes(row.try_get(3)?),
            refusals: outcomes(row.try_get(4)?),
        })
    }

    pub fn parsed_position(&self) -> Position {
        match self.position.as_str() {
            "" => Position::new(),
            text => text.parse().expect("invariant: fences hold legal topics and offsets"),
        }
    }

    /// Position, age, and a refusal of what was waited for.
    pub fn write_headers(&self, to: &mut HeaderMap) {
        let short = self.position.len() <= crate::domain::MAX_PLAIN_POSITION_BYTES;
        let position = if short { self.position.clone() } else { self.parsed_position().to_string() };
        to.insert(headers::POSITION, header_value(&position));
        let age = self.age.map_or_else(|| "unknown".to_owned(), |seconds| format!("{:.3}", seconds.max(0.0)));
        to.insert(headers::AGE, header_value(&age));
        if let Some(refusal) = self.refusals.first() {
            to.insert(headers::OUTCOME, HeaderValue::from_static("refused"));
            to.insert(headers::OUTCOME_REASON, header_value(&refusal.summary()));
        }
    }
}
