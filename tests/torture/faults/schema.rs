//! Schemas that change while records are written under them. On the small Millpond.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::FutureProducer;

use super::kafka::leaders_of;
use super::topic::write;
use super::{Fault, Field, RECOVERS_WITHIN};
use crate::checker::log::NO_SCHEMA;
use crate::proxy::Effect;
use crate::side::judge::Excused;
use crate::side::{Side, client_of};

/// A version with one field more, which fits the first.
const NEWER: &str = r#"{"type": "record", "name": "Note", "namespace": "side", "fields": [
    {"name": "key", "type": "string"}, {"name": "n", "type": "long"},
    {"name": "extra", "type": ["null", "string"], "default": null}]}"#;
/// One that cannot be read with the first, nor the first with it.
const UNFIT: &str = r#"{"type": "record", "name": "Note", "namespace": "side", "fields": [
    {"name": "key", "type": "string"}, {"name": "number", "type": "string"}]}"#;
/// Statements that read what is new.
const SELECT: &str = "select n, max(key) as key, count(*) as times, max(extra) as extra from note group by n;";
const MANIFEST: &str = "topics = [\"TOPIC\"]\n[tables.notes]\nkey = [\"n\"]\n\
                        merge = { times = \"sum\", key = \"max\", extra = \"max\" }\n";
/// How long a record waits for its schema before it is given up, if the registry can be read.
const PATIENCE: Duration = Duration::from_secs(30);
const V2: &str = "schemas/Note/v2.avsc";

/// C9, in one of its ways.
pub async fn changed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    match field.way(&[0, 1, 2]) {
        0 => newer_version(field).await,
        1 => unfit_and_unknown(field).await,
        _ => registry_away(field).await,
    }
}

/// A version with a field more is pushed while notes are written: records under both are applied, and once the statements
/// ask for the field it is in the rows.
async fn newer_version(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let mut side = field.side().await?;
    let injected = field.begin("a new version of a schema is pushed while records are written").await?;
    side.write(V2, NEWER)?;
    side.succeeds(&["schema", "push"])?;
    side.start("newer", "ingest")?;
    side.writer.more(600, RECOVERS_WITHIN).await;
    let mut wrong = applied(&side).await?;
    side.kill_9("consume");
    side.write("consumers/notes/notes.sql", SELECT)?;
    side.write("consumers/notes/consumer.toml", MANIFEST)?;
    side.succeeds(&["consumer", "restart", "notes", "--from-zero"])?;
    side.start("consume", "consume")?;
    wrong.extend(applied(&side).await?);
    let with_extra = side.number("select count(extra) from live.notes").await?;
    if with_extra == 0 {
        wrong.push("no row has the new field".to_owned());
    }
    let observed = format!("{with_extra} rows have the new field");
    wrong.extend(field.leave(side, &Excused::default()).await?);
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, Some(observed), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// A version that does not fit is refused and changes nothing; a record with an id that no registry knows becomes a dead
/// letter once that is certain, and holds up its own partition only.
async fn unfit_and_unknown(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let side = field.side().await?;
    let injected =
        field.begin("a version that does not fit is pushed, and a record comes with an unknown schema id").await?;
    let mut wrong = Vec::new();
    let before = side.succeeds(&["schema", "list"])?;
    side.write(V2, UNFIT)?;
    let pushed = side.run(&["schema", "push"])?;
    let said = String::from_utf8_lossy(&pushed.stderr).into_owned();
    if pushed.status.success() || side.succeeds(&["schema", "list"])? != before {
        wrong.push(format!("a version that does not fit was taken: {said}"));
    }
    std::fs::remove_file(side.project.join(V2))?;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &side.brokers).set("client.id", "rig").create()?;
    let at = i32::try_from(field.random.below(3))?;
    let mut payload = vec![0];
    payload.extend((NO_SCHEMA + 1).to_be_bytes());
    payload.extend([2, b'k', 1]);
    write(&producer, &side.topic, at, &payload).await?;
    let begun = Instant::now();
    let before = side.fences().await?;
    let dead = "select count(*) from millpond.dead_letters where reason_class = 'decode'";
    while side.number(dead).await? == 0 && begun.elapsed() < PATIENCE + RECOVERS_WITHIN {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed();
    let moved = side.fences().await?.into_iter().filter(|(other, now)| {
        *other != at && before.get(other).is_some_and(|before| now.next_offset > before.next_offset)
    });
    if moved.count() < 2 {
        wrong.push("the other partitions did not go on while one waited for a schema".to_owned());
    }
    if took < PATIENCE {
        wrong.push(format!("the record was given up after {took:.1?}"));
    }
    wrong.extend(field.leave_with(side, &Excused::default(), 1).await?);
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, Some(format!("refused; a dead letter after {took:.1?}")), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// The consumer cannot reach the broker that has the registry, and records come under a schema that it has not seen. They
/// wait, however long, and are applied when it can.
async fn registry_away(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let mut side = field.side().await?;
    let leader = leaders_of(field, "_schemas").await?.remove(&0).unwrap_or(1);
    let injected = field.begin(format!("broker {leader}, which has the registry, is away for a consumer")).await?;
    let proxy = &field.servers.nodes[usize::try_from(leader - 1)?];
    let rule = proxy.apply(&client_of("consume"), Effect::Refuse);
    proxy.cut(&client_of("consume"));
    side.write(V2, NEWER)?;
    side.succeeds(&["schema", "push"])?;
    side.start("newer", "ingest")?;
    side.writer.more(100, RECOVERS_WITHIN).await;
    // Longer than a record waits whose schema is certainly not there.
    tokio::time::sleep(PATIENCE + Duration::from_secs(4)).await;
    let behind = behind(&side).await?;
    let dead = side.number("select count(*) from millpond.dead_letters").await?;
    let proxy = &field.servers.nodes[usize::try_from(leader - 1)?];
    proxy.lift(&rule);
    let lifted = Instant::now();
    let mut wrong = applied(&side).await?;
    if dead > 0 {
        wrong.push(format!("{dead} records became dead letters while the registry could not be read"));
    }
    let observed = format!("{behind} records waited, applied {:.1?} after the registry was back", lifted.elapsed());
    wrong.extend(field.leave(side, &Excused::default()).await?);
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, (behind > 0).then_some(observed), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// Waits until everything that is written now is applied; what is wrong when it is not.
async fn applied(side: &Side) -> anyhow::Result<Vec<String>> {
    let ends = side.ends().await?;
    let there = side.reaches(&ends, RECOVERS_WITHIN).await;
    Ok(if there { Vec::new() } else { vec![format!("{ends:?} was not reached: {:?}", side.fences().await?)] })
}

/// How many records are not applied.
async fn behind(side: &Side) -> anyhow::Result<i64> {
    let fences = side.fences().await?;
    let next = |at: &i32| fences.get(at).map_or(0, |fence| fence.next_offset);
    Ok(side.ends().await?.iter().map(|(at, end)| end - next(at)).sum())
}
