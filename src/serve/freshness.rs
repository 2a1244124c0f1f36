//! How far the data of an answer is, read in the statement that reads the data, from the same snapshot; and how old.

use std::{collections::HashMap, sync::LazyLock};

use axum::http::{HeaderMap, HeaderValue};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio_postgres::{Row, types::ToSql};

use super::{
    ServeState,
    catalog::Projection,
    connections::{Lane, Sql},
    failure, header_value, headers,
    wait::Wanted,
};
use crate::domain::Position;
use crate::http::Problem;

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
    /// `position` and `age` as they stand in answers; reads that were gathered share them.
    shown: (HeaderValue, HeaderValue),
}

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Outcome {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub code: String,
    pub reason: String,
    /// Of a record whose key is parked: the first one that waits.
    #[serde(default)]
    pub head: Option<i64>,
}

impl Outcome {
    /// Short enough for a header.
    fn summary(&self) -> String {
        format!("{}: {}", self.code, self.reason).chars().take(256).collect()
    }
}

/// What the consumer last saw of the end of a partition. It stays true of its moment, so an old one makes the age that
/// is computed from it larger, never too small: it need not come from the snapshot of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub offset: i64,
    pub observed_at: DateTime<Utc>,
}

/// By `topic/partition`.
pub type Ends = HashMap<String, End>;

/// Position in its canonical order, and age in seconds.
///
/// Age per partition: caught up, it is the time since that was last checked; behind, the time since the last applied
/// record was written. The oldest partition counts, and one that is unknown makes the whole unknown.
fn summary(
    fences: Option<&str>,
    last: &[Option<DateTime<Utc>>],
    now: DateTime<Utc>,
    ends: Option<&Ends>,
) -> (String, Option<f64>) {
    let Some(fences) = fences else { return (String::new(), None) };
    let mut oldest = Some(now);
    let mut sorted: Vec<(&str, i32, &str)> = Vec::with_capacity(last.len());
    for (fence, last) in fences.split(',').zip(last) {
        let (at, next) = fence.rsplit_once('@').unwrap_or((fence, ""));
        let (topic, partition) = at.rsplit_once('/').unwrap_or((at, ""));
        sorted.push((topic, partition.parse().unwrap_or_default(), fence));
        let next: i64 = next.parse().unwrap_or_default();
        let as_of = match ends.and_then(|ends| ends.get(at)) {
            None => None,
            Some(end) if next >= end.offset => Some(end.observed_at),
            Some(_) => *last,
        };
        oldest = oldest.zip(as_of).map(|(oldest, as_of)| oldest.min(as_of));
    }
    let age = oldest.and_then(|oldest| (now - oldest).num_microseconds()).map(|micros| micros as f64 / 1e6);
    if sorted.is_sorted() {
        return (fences.to_owned(), age);
    }
    sorted.sort_unstable();
    let texts: Vec<&str> = sorted.into_iter().map(|(_, _, text)| text).collect();
    (texts.join(","), age)
}

/// Dead letters, and refusals, that one answer tells of one partition.
pub const MAX_OUTCOMES: usize = 20;

/// Parameters of a statement that come before the query's own: projection, version, and the wanted position.
pub fn parameters(wanted: bool) -> usize {
    if wanted { 6 } else { 2 }
}

/// No order and no join: these cost more than the row itself in a read by key, and are as easily done here.
const FENCES: &str = "\
    select string_agg(f.topic || '/' || f.partition || '@' || f.next_offset, ',') as position, \
           array_agg(f.last_timestamp) as last \
      from millpond.fences f where f.projection = $1 and f.version = $2";

/// The records of `w` (topic, partition, first, next) that a version has set aside, the first `MAX_OUTCOMES`; columns
/// `offset`, `code`, `reason`, `head`. What was discarded is among them: it has no effect, and nobody is to think it has. That
/// holds for what this version has passed over: what stands above its fence it has not compared with the log yet, and of what
/// the log does not have any more the verdict is void. Names of tables in `projection` and `version` must not be used in here.
pub fn set_aside(projection: &str, version: &str) -> String {
    let of = |table: &str| {
        format!(
            "{table}.projection = {projection} and {table}.topic = w.topic and {table}.partition = w.partition \
             and {table}.\"offset\" >= w.first and {table}.\"offset\" < w.next"
        )
    };
    format!(
        "select l.\"offset\", l.code, l.reason, l.head from ( \
            (select d.\"offset\", d.reason_class as code, d.reason, k.head from millpond.dead_letters d \
               left join millpond.parked_keys k on k.projection = d.projection and k.version = d.version \
                    and k.topic = d.topic and k.partition = d.partition and k.parked_at = d.parked_at \
              where {} and d.version = {version} order by d.\"offset\" limit {MAX_OUTCOMES}) \
            union all \
            (select x.\"offset\", 'discarded', 'discarded by ' || x.decided_by || coalesce(': ' || x.reason, ''), null \
               from millpond.verdicts x where {} and x.what = 'discard' and not x.void and x.\"offset\" < \
                    (select y.next_offset from millpond.fences y where y.projection = {projection} and y.version = {version} \
                        and y.topic = w.topic and y.partition = w.partition) \
              order by x.\"offset\" limit {MAX_OUTCOMES})) l \
          order by l.\"offset\" limit {MAX_OUTCOMES}",
        of("d"),
        of("x"),
    )
}

/// The records of `w` that the handler of a version has refused, in the same columns.
pub fn refused(projection: &str, version: &str) -> String {
    format!(
        "select o.\"offset\", o.code, o.reason, null::int8 as head from millpond.refusals o \
          where o.projection = {projection} and o.version = {version} and o.topic = w.topic \
            and o.partition = w.partition and o.\"offset\" >= w.first and o.\"offset\" < w.next \
          order by o.\"offset\" limit {MAX_OUTCOMES}"
    )
}

/// The wanted records that were set aside or refused, the first `MAX_OUTCOMES` of each partition.
fn outcomes(of_partition: &str) -> String {
    format!(
        "select json_agg(json_build_object('topic', w.topic, 'partition', w.partition, 'offset', l.\"offset\", \
                                           'code', l.code, 'reason', left(l.reason, 2000), 'head', l.head))::text \
           from unnest($3::text[], $4::int4[], $5::int8[], $6::int8[]) as w(topic, partition, first, next) \
          cross join lateral ({of_partition}) l"
    )
}

/// A statement that answers the head, and the rows of `rows` (columns `body`, `rows`, `next`) beside it.
pub fn statement(wanted: bool, rows: Option<&str>) -> String {
    let (dead, refused) = match wanted {
        true => (outcomes(&set_aside("$1", "$2")), outcomes(&refused("$1", "$2"))),
        false => ("null".to_owned(), "null".to_owned()),
    };
    let (columns, join) = match rows {
        Some(rows) => (", d.body, d.rows, d.next", format!(" left join ({rows}) d on true")),
        None => ("", String::new()),
    };
    format!(
        "select p.live_version, h.position, h.last, now(), ({dead})::text as dead, ({refused})::text as refused{columns} \
         from millpond.projections p cross join ({FENCES}) h{join} where p.projection = $1"
    )
}

/// The parameters of `statement` that come before the query's own.
pub fn params<'p>(projection: &'p Projection, wanted: Option<&'p Wanted>) -> Vec<&'p (dyn ToSql + Sync)> {
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&projection.shared_name, &projection.version];
    if let Some(wanted) = wanted {
        params.extend([&wanted.topics as &(dyn ToSql + Sync), &wanted.partitions, &wanted.first, &wanted.next]);
    }
    params
}

/// The head alone; `None` when the projection is gone.
pub async fn read(
    state: &ServeState,
    projection: &Projection,
    wanted: Option<&Wanted>,
) -> Result<Option<Head>, Problem> {
    static ALONE: LazyLock<[Sql; 2]> = LazyLock::new(|| [false, true].map(|wanted| Sql::new(statement(wanted, None))));
    let sql = &ALONE[usize::from(wanted.is_some())];
    let row = state.connections().row(Lane::Point, sql, &params(projection, wanted)).await;
    let row = row.map_err(|error| failure::problem(&error, None))?;
    let ends = state.ends(projection);
    let head = row.map(|row| Head::from_row(&row, ends.as_deref())).transpose();
    head.map_err(|error| failure::problem(&error.into(), None))
}

impl Head {
    /// Columns of `statement` before those of its rows.
    pub const COLUMNS: usize = 6;

    /// From a row of `statement`; `ends` are those of the version that it was written for.
    pub fn from_row(row: &Row, ends: Option<&Ends>) -> Result<Head, tokio_postgres::Error> {
        let outcomes = |text: Option<&str>| -> Vec<Outcome> {
            text.map(|json| serde_json::from_str(json).expect("invariant: json_agg of these objects parses"))
                .unwrap_or_default()
        };
        let last: Option<Vec<Option<DateTime<Utc>>>> = row.try_get(2)?;
        let (position, age) = summary(row.try_get(1)?, last.as_deref().unwrap_or_default(), row.try_get(3)?, ends);
        let short = position.len() <= crate::domain::MAX_PLAIN_POSITION_BYTES;
        let shown_position = if short { header_value(&position) } else { header_value(&parsed(&position).to_string()) };
        let shown_age = age.map_or_else(|| "unknown".to_owned(), |seconds| format!("{:.3}", seconds.max(0.0)));
        Ok(Head {
            live_version: row.try_get(0)?,
            position,
            age,
            dead_letters: outcomes(row.try_get(4)?),
            refusals: outcomes(row.try_get(5)?),
            shown: (shown_position, header_value(&shown_age)),
        })
    }

    pub fn parsed_position(&self) -> Position {
        parsed(&self.position)
    }

    /// Position, age, and a refusal of what was waited for.
    pub fn write_headers(&self, to: &mut HeaderMap) {
        to.insert(headers::POSITION, self.shown.0.clone());
        to.insert(headers::AGE, self.shown.1.clone());
        if let Some(refusal) = self.refusals.first() {
            to.insert(headers::OUTCOME, HeaderValue::from_static("refused"));
            to.insert(headers::OUTCOME_REASON, header_value(&refusal.summary()));
        }
    }
}

fn parsed(position: &str) -> Position {
    match position {
        "" => Position::new(),
        text => text.parse().expect("invariant: fences hold legal topics and offsets"),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn position_is_canonical_and_the_oldest_partition_counts() {
        let now = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(20_000);
        let ago = |seconds| Some(now - TimeDelta::seconds(seconds));
        let end = |offset, seconds| End { offset, observed_at: now - TimeDelta::seconds(seconds) };
        let mut ends = Ends::from([("a/10".to_owned(), end(7, 1)), ("a/9".to_owned(), end(5, 2))]);
        let fences = Some("a/10@7,a/9@5");
        let told = |ends: &Ends, last: &[_]| summary(fences, last, now, Some(ends));
        assert_eq!(told(&ends, &[ago(100), ago(50)]), ("a/9@5,a/10@7".to_owned(), Some(2.0)));
        ends.insert("a/10".to_owned(), end(8, 1));
        assert_eq!(told(&ends, &[ago(100), ago(50)]).1, Some(100.0));
        assert_eq!(told(&ends, &[None, ago(50)]).1, None, "behind, and nothing applied yet");
        ends.remove("a/9");
        assert_eq!(told(&ends, &[ago(100), ago(50)]).1, None, "end not seen yet");
        assert_eq!(summary(None, &[], now, None), (String::new(), None));
        let position = told(&ends, &[None, None]).0;
        assert_eq!(position.parse::<Position>().unwrap().to_string(), position);
    }
}
