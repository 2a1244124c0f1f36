//! Once a second: how far the ends of this member's partitions are, for lag and age; whether an operator paused it, or
//! decided something about records that were set aside.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::debug;

use super::{group::Group, partition::Partition};
use crate::{
    domain::TopicPartition,
    kafka::{
        self, Options, Reader,
        gaps::{self, Gap},
    },
    store::{
        self, PgConnection, parked,
        status::{self, End},
        swap,
    },
    telemetry::metrics::consume as metrics,
};

/// Age is known to about this much.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest that the database may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest that one partition is asked for its end: one without a leader must not hide the others.
const PATIENCE_WITH_ONE: Duration = Duration::from_secs(1);

/// What is known between two reports.
pub struct Reporter {
    group: Arc<Group>,
    options: Options,
    connection: Option<PgConnection>,
    /// Its own: whoever waits for a leader here must not hold up those who claim.
    reader: Option<Reader>,
    /// Where idle partitions and their ends were at the last look.
    gaps: Vec<Gap>,
    /// How old the data was when that was last known, and when that was.
    age: Option<(f64, Instant)>,
}

/// What one look at Kafka brought, and the reader back.
struct Looked {
    reader: Reader,
    ends: Vec<Result<i64, kafka::Error>>,
}

impl Reporter {
    pub fn new(group: Arc<Group>, options: Options) -> Self {
        Self { group, options, connection: None, reader: None, gaps: Vec::new(), age: None }
    }

    /// Reports until told to stop.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let reported = tokio::select! {
                reported = self.report() => reported,
                _ = stop.wait_for(|s| *s) => return,
            };
            match reported {
                Ok(()) => self.group.engine.vitals.note_report(),
                Err(error) => {
                    // The workers say that the database is away; here it only means that lag is not known.
                    debug!(consumer = %self.group.engine.projection, error, "cannot report");
                    self.connection = None;
                    self.grow_old();
                }
            }
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                _ = stop.wait_for(|s| *s) => return,
            }
        }
    }

    /// What nobody knows anything new of grows older: an alert on the age must not sleep while a server is away.
    fn grow_old(&self) {
        let Some((age, at)) = self.age else { return };
        let label = self.group.engine.label();
        let labels = [label.as_str()];
        metrics::FRESHNESS_SECONDS.with_label_values(&labels).set(age + at.elapsed().as_secs_f64());
    }

    async fn report(&mut self) -> Result<(), String> {
        match self.ask_postgres().await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                // Lag is Kafka's to tell.
                self.look(&self.group.partitions()).await.ok();
                return Err(error);
            }
        }
        let engine = Arc::clone(&self.group.engine);
        let held = self.group.partitions();
        if held.is_empty() {
            return Ok(());
        }
        let ends = match self.look(&held).await {
            Ok(ends) if ends.is_empty() => Err("no end of a partition can be had from Kafka".to_owned()),
            looked => looked,
        };
        let ends = match ends {
            Ok(ends) => ends,
            Err(error) => {
                let at: Vec<TopicPartition> = held.iter().map(|partition| partition.at.clone()).collect();
                if let Some(connection) = &mut self.connection {
                    let (name, version) = (&engine.projection, engine.version);
                    answer(status::note_silence(connection, name, version, &at, &error)).await?;
                }
                return Err(error);
            }
        };
        let end = |(at, end_offset): (TopicPartition, i64)| {
            let error = held.iter().find(|partition| partition.at == at).and_then(|partition| partition.take_error());
            End { at, end_offset, error }
        };
        let ends: Vec<End> = ends.into_iter().map(end).collect();
        if let Some(connection) = &mut self.connection {
            answer(status::note_ends(connection, &engine.projection, engine.version, &ends)).await?;
        }
        self.close_gaps(&held, &ends).await
    }

    /// Learns what operators want, and how the version is doing as a whole; false when it is not wanted any more.
    async fn ask_postgres(&mut self) -> Result<bool, String> {
        let engine = Arc::clone(&self.group.engine);
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connecting = store::connect(engine.sessions.url(), "millpond report");
                self.connection.insert(answer(connecting).await?)
            }
        };
        let switches = answer(status::switches(connection, &engine.projection, engine.version)).await?;
        engine.vitals.set_paused(switches.paused);
        engine.vitals.set_breaker_rests(switches.breaker_rests);
        engine.vitals.set_beside(!switches.live);
        if !switches.wanted {
            engine.vitals.supersede();
            return Ok(false);
        }
        let vitals = answer(status::vitals(connection, &engine.projection, engine.version)).await?;
        let label = engine.label();
        let labels = [label.as_str()];
        metrics::HALTED.with_label_values(&labels).set(vitals.halted_partitions);
        if let Some(age) = vitals.age_seconds {
            metrics::FRESHNESS_SECONDS.with_label_values(&labels).set(age.max(0.0));
            self.age = Some((age, Instant::now()));
        }
        metrics::PARKED_KEYS.with_label_values(&labels).set(vitals.parked_keys);
        metrics::PARKED_RECORDS.with_label_values(&labels).set(vitals.parked_records);
        let held = self.group.partitions();
        if held.is_empty() {
            return Ok(true);
        }
        if engine.vitals.is_beside() {
            answer(parked::follow_verdicts(connection, &engine.projection, engine.version)).await?;
            answer(swap::trim_held(connection, &engine.projection, engine.version)).await?;
        }
        // Workers do not ask for themselves: a batch would cost a query more, for what happens once a week.
        let due = answer(parked::due_partitions(connection, &engine.projection, engine.version)).await?;
        held.iter().filter(|partition| due.contains(&partition.at)).for_each(|partition| partition.look());
        Ok(true)
    }

    /// Asks Kafka for the ends of partitions. Not ended early, or threads that ask would pile up.
    async fn look(&mut self, held: &[Arc<Partition>]) -> Result<Vec<(TopicPartition, i64)>, String> {
        let (reader, options) = (self.reader.take(), self.options.clone());
        let asked = held.to_vec();
        let ask = move || -> Result<Looked, kafka::Error> {
            let reader = reader.map_or_else(|| Reader::open(&options), Ok)?;
            let end = |Partition { at, .. }: &Partition| {
                reader.watermarks_within(&at.topic, at.partition, PATIENCE_WITH_ONE).map(|(_, end)| end)
            };
            let ends = asked.iter().map(|partition| end(partition)).collect();
            Ok(Looked { reader, ends })
        };
        let looked = tokio::task::spawn_blocking(ask).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        self.reader = Some(looked.reader);
        let mut ends = Vec::with_capacity(held.len());
        for (partition, end) in held.iter().zip(looked.ends) {
            let at = &partition.at;
            let end_offset = match end {
                Ok(end) => end,
                Err(error) => {
                    debug!(consumer = %self.group.engine.projection, partition = %at, %error, "its end is not known");
                    continue;
                }
            };
            let lag = (end_offset - partition.next_offset().unwrap_or_default()).max(0);
            let label = self.group.engine.label();
            let labels = [label.as_str(), &at.topic, &at.partition.to_string()];
            metrics::LAG.with_label_values(&labels).set(lag);
            ends.push((at.clone(), end_offset));
        }
        Ok(ends)
    }

    /// Idle partitions that stood where they stand for a look already, short of their end: either records are on their
    /// way, or there are none up to the end and their fences may pass.
    async fn close_gaps(&mut self, held: &[Arc<Partition>], ends: &[End]) -> Result<(), String> {
        let gap = |end: &End| {
            let partition = held.iter().find(|partition| partition.at == end.at && partition.is_idle())?;
            let from = partition.next_offset().filter(|next| *next < end.end_offset)?;
            Some(Gap { at: end.at.clone(), from, to: end.end_offset })
        };
        let now: Vec<Gap> = ends.iter().filter_map(gap).collect();
        let before = std::mem::replace(&mut self.gaps, now.clone());
        let lasting: Vec<Gap> = now.into_iter().filter(|gap| before.contains(gap)).collect();
        if lasting.is_empty() {
            return Ok(());
        }
        let options = self.options.clone();
        let looked = tokio::task::spawn_blocking(move || gaps::without_records(&options, lasting)).await;
        for gap in looked.map_err(|e| e.to_string())?.map_err(|e| e.to_string())? {
            debug!(consumer = %self.group.engine.projection, partition = %gap.at, from = gap.from, to = gap.to, "no records");
            if let Some(partition) = held.iter().find(|partition| partition.at == gap.at) {
                partition.pass_over(gap);
            }
        }
        Ok(())
    }
}

async fn answer<T>(work: impl Future<Output = Result<T, store::Error>>) -> Result<T, String> {
    let answer = tokio::time::timeout(PATIENCE, work).await;
    answer.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())
}
