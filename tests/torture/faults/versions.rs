//! Faults of versions beside the live one: rebuilds, swaps and rollbacks, disturbed.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sqlx::Row as _;

use super::{Fault, Field};

/// What is built anew, by turns: of each way to write a consumer one.
const CONSUMERS: [&str; 6] = ["chains", "accounts", "lanes", "appends", "credits", "amounts"];
/// How often a rebuild is killed before it may come to its end.
const KILLS: u64 = 10;
/// Records a second that one which is to be killed may apply, so that it is at work when it is.
const THROTTLE: &str = "4000";
/// And one that is to be far behind, of a log of some hundred records.
const SLOW: &str = "10";
/// Records that take it longer than a swap waits.
const FAR: i64 = 100;
/// How long a rebuild may take, and a swap, which waits for a version that is behind for 4 s at most.
const BUILT_WITHIN: Duration = Duration::from_secs(60);
const SWAPPED_WITHIN: Duration = Duration::from_secs(20);
/// Swaps and rollbacks of one fault.
const SWAPS: u64 = 20;

/// S1: a version is built while the live one goes on, killed ten times, and swapped in.
pub async fn rebuilt(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let consumer = field.way(&CONSUMERS);
    let injected = field.begin(format!("{consumer} is built anew, killed {KILLS} times, and swapped in")).await?;
    let mut killed = 0;
    for _ in 0..KILLS {
        let mut build = spawn(field, &["rebuild", consumer, "--throttle", THROTTLE])?;
        tokio::time::sleep(Duration::from_millis(field.random.between(200, 1200))).await;
        killed += u64::from(build.try_wait()?.is_none());
        build.kill()?;
        build.wait()?;
    }
    let (swapped, wrong) = rebuild(field, consumer).await?;
    let recovery = field.recovery(injected.at).await;
    let observed = swapped.map(|pause| format!("killed {killed} times at work; a pause of {pause:.1} ms"));
    let mut fault = field.end(injected, observed, recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// S2: swaps and rollbacks, one after the other.
pub async fn swapped(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let consumer = field.way(&CONSUMERS);
    let injected = field.begin(format!("{SWAPS} swaps and rollbacks of {consumer}")).await?;
    let (first, mut wrong) = rebuild(field, consumer).await?;
    let (mut pauses, mut refused) = (Vec::from_iter(first), 0);
    while (pauses.len() + refused) < SWAPS as usize {
        match run(field, &["rollback", consumer], SWAPPED_WITHIN).await? {
            Ok(said) => pauses.extend(pause(&said)),
            // The one that is kept may be some records behind, and a member of it on its way.
            Err(error) if error.contains("behind") => {
                refused += 1;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => {
                wrong.push(format!("a rollback failed: {error}"));
                break;
            }
        }
    }
    let recovery = field.recovery(injected.at).await;
    pauses.sort_by(f64::total_cmp);
    let seen = (pauses.len() > 1).then(|| {
        let (median, most) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
        format!(
            "{} done, {refused} refused while behind; pauses of {median:.1} ms (median), {most:.1} ms at most",
            pauses.len()
        )
    });
    let mut fault = field.end(injected, seen, recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// S3: a swap that is typed too early is refused; those that are killed at any moment have happened whole, or not at all.
pub async fn swap_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let consumer = field.way(&CONSUMERS);
    let injected = field.begin(format!("swaps of {consumer} that come too early, or are killed")).await?;
    let mut wrong = Vec::new();
    let mut build = spawn(field, &["rebuild", consumer, "--throttle", SLOW])?;
    let early = early(field, consumer).await;
    build.kill()?;
    build.wait()?;
    wrong.extend(early?);
    let given_up = run(field, &["rebuild", consumer, "--give-up"], SWAPPED_WITHIN).await?;
    wrong.extend(given_up.err().map(|error| format!("what was begun could not be given up: {error}")));
    let (swapped, more) = rebuild(field, consumer).await?;
    wrong.extend(more);
    let (mut killed, mut happened) = (0, 0);
    for _ in 0..SWAPS {
        let before = live(field, consumer).await?;
        let mut swap = spawn(field, &["rollback", consumer])?;
        tokio::time::sleep(Duration::from_millis(field.random.between(20, 400))).await;
        killed += u64::from(swap.try_wait()?.is_none());
        swap.kill()?;
        swap.wait()?;
        match whole(field, consumer).await? {
            Ok(now) => happened += u64::from(now != before),
            Err(torn) => wrong.push(torn),
        }
    }
    let recovery = field.recovery(injected.at).await;
    let observed = swapped.filter(|_| killed > 0);
    let observed = observed.map(|_| format!("{killed} of {SWAPS} killed at work, {happened} had happened"));
    let mut fault = field.end(injected, observed, recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// S4: a rollback while those who apply are killed.
pub async fn rolled_back(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let consumer = field.way(&CONSUMERS);
    let injected = field.begin(format!("{consumer} goes back while its consumers are killed")).await?;
    let (_, mut wrong) = rebuild(field, consumer).await?;
    let before = live(field, consumer).await?;
    let slots = field.arena.of_role("consume");
    for slot in &slots {
        field.arena.kill_9(*slot);
    }
    let back = run(field, &["rollback", consumer], SWAPPED_WITHIN).await?;
    for slot in slots {
        field.start(slot)?;
    }
    let at_once = back.is_ok();
    if let Err(error) = back.as_ref().map(drop).map_err(|error| error.as_str())
        && !error.contains("behind")
    {
        wrong.push(format!("a rollback failed: {error}"));
    }
    let begun = Instant::now();
    while live(field, consumer).await? == before && begun.elapsed() < BUILT_WITHIN {
        // Refused as long as the version that is kept has to catch up.
        let _ = run(field, &["rollback", consumer], SWAPPED_WITHIN).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let is_back = live(field, consumer).await? != before;
    let recovery = field.recovery(injected.at).await;
    let how = if at_once { "at once" } else { "once it was as far" };
    let mut fault = field.end(injected, is_back.then(|| format!("it went back {how}")), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// A rebuild that is swapped in: its pause in milliseconds.
async fn rebuild(field: &Field<'_>, consumer: &str) -> anyhow::Result<(Option<f64>, Vec<String>)> {
    match run(field, &["rebuild", consumer, "--swap"], BUILT_WITHIN).await? {
        Ok(said) => Ok((pause(&said), Vec::new())),
        Err(error) => Ok((None, vec![format!("a rebuild of {consumer} failed: {error}")])),
    }
}

/// What is wrong with a swap to a version that is far behind: it has to be refused.
async fn early(field: &Field<'_>, consumer: &str) -> anyhow::Result<Option<String>> {
    let begun = Instant::now();
    let building = "select exists (select from millpond.versions where projection = $1 and state = 'building')";
    while !sqlx::query_scalar(building).bind(consumer).fetch_one(&mut field.arena.connect().await?).await? {
        ensure!(begun.elapsed() < SWAPPED_WITHIN, "no version of {consumer} is begun");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let behind =
        "select (select sum(next_offset) from millpond.fences f join millpond.versions v using (projection, version)
                           where projection = $1 and v.state = 'live')
                       - coalesce((select sum(next_offset) from millpond.fences f join millpond.versions v
                                    using (projection, version) where projection = $1 and v.state = 'building'), 0)";
    let behind = format!("select ({behind})::int8");
    let query = sqlx::query_scalar::<_, Option<i64>>(sqlx::AssertSqlSafe(behind)).bind(consumer);
    if query.fetch_one(&mut field.arena.connect().await?).await?.unwrap_or_default() < FAR {
        // Of a short log that is soon over.
        return Ok(None);
    }
    Ok(match run(field, &["swap", consumer], SWAPPED_WITHIN).await? {
        Ok(_) => Some("a version that was far behind was swapped in".into()),
        Err(error) if error.contains("has not been at the end of the log") => None,
        Err(error) => Some(format!("a swap that came too early was not refused for that: {error}")),
    })
}

/// The version that people read.
async fn live(field: &Field<'_>, consumer: &str) -> anyhow::Result<i32> {
    let sql = "select live_version from millpond.projections where projection = $1";
    Ok(sqlx::query_scalar(sql).bind(consumer).fetch_one(&mut field.arena.connect().await?).await?)
}

/// The version that people read, where everything says that it is that one; else what does not.
async fn whole(field: &Field<'_>, consumer: &str) -> anyhow::Result<Result<i32, String>> {
    let sql = "select p.live_version, array_agg(v.version) filter (where v.state = 'live') as live,
                      pg_get_viewdef(('live.' || p.projection)::regclass) as view
                 from millpond.projections p join millpond.versions v using (projection)
                where p.projection = $1 group by p.projection, p.live_version";
    let row = sqlx::query(sql).bind(consumer).fetch_one(&mut field.arena.connect().await?).await?;
    let (pointer, live, view): (i32, Vec<i32>, String) = (row.get(0), row.get(1), row.get(2));
    let is_whole = live == [pointer] && view.contains(&format!("p_{consumer}_v{pointer}."));
    Ok(is_whole.then_some(pointer).ok_or_else(|| {
        format!("of {consumer} version {pointer} is pointed to, {live:?} are live, and the view is over {view}")
    }))
}

/// What a swap says of its pause, in milliseconds.
fn pause(said: &str) -> Option<f64> {
    let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["event"] == "swapped").find_map(|event| event["pause_ms"].as_f64())
}

/// What a command printed; the inner error is what it said when it failed.
async fn run(field: &Field<'_>, words: &[&str], within: Duration) -> anyhow::Result<Result<String, String>> {
    let mut child = spawn(field, words)?;
    let (mut out, mut err) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
    let said = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let errors = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > within {
            child.kill()?;
            break child.wait()?;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let (said, errors) = (said.await??, errors.await??);
    Ok(if status.success() { Ok(said) } else { Err(format!("{status}: {errors}")) })
}

/// A command of the application, which knows the handler.
fn spawn(field: &Field<'_>, words: &[&str]) -> anyhow::Result<Child> {
    let mut command = field.arena.application()?;
    command.args(words);
    let desk = field.arena.desk();
    for setting in [
        format!("project.dir={}", desk.project.display()),
        format!("kafka.brokers={}", desk.brokers),
        format!("postgres.url={}", desk.database),
        "log.level=error".to_owned(),
    ] {
        command.args(["--set", &setting]);
    }
    command.current_dir(&desk.project).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}
