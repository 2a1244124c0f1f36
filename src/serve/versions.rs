//! Which versions of projections there are, and how far each is: a rebuild, seen over HTTP.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{
    ServeState,
    connections::{Lane, Sql},
    failure,
};
use crate::http::Problem;

/// By way of JSON, so that the tables of an earlier release will do.
static ALL: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "\
    select coalesce(json_agg(t order by t.projection, t.version), '[]')::text from ( \
      select v.projection, v.version, v.state, \
             to_char(v.kept_until, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as kept_until, \
             (to_jsonb(v) ->> 'build_rate')::float8 as built_per_second, \
             case when bool_and(e.end_offset is not null) \
                  then sum(greatest(e.end_offset - f.next_offset, 0))::int8 end as lag, \
             coalesce(bool_or(f.state = 'halted'), false) as halted, \
             coalesce(json_agg(json_build_object('topic', f.topic, 'partition', f.partition, \
                          'next_offset', f.next_offset, 'end_offset', e.end_offset, 'halt_code', f.halt_code) \
                        order by f.topic, f.partition) filter (where f.topic is not null), '[]') as partitions \
        from millpond.versions v \
        left join millpond.fences f on f.projection = v.projection and f.version = v.version \
        left join millpond.ends e on e.projection = f.projection and e.version = f.version \
                                 and e.topic = f.topic and e.partition = f.partition \
       where v.state <> 'retired' group by v.projection, v.version) t",
    )
});

/// The body of `GET /v1/versions`.
pub async fn describe(state: &ServeState) -> Result<Value, Problem> {
    let rows = state.connections().rows(Lane::Point, &ALL, &[]).await;
    let rows = rows.map_err(|error| failure::problem(&error, None))?;
    let text = rows.first().and_then(|row| row.try_get::<_, &str>(0).ok()).unwrap_or("[]");
    let versions: Value = serde_json::from_str(text).expect("invariant: json_agg of these objects parses");
    Ok(json!({ "versions": versions }))
}
