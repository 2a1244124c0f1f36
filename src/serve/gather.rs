//! Point reads of one shape that come at once are asked in one statement.
//!
//! Nobody waits for company: a read that finds a place free goes at once. While all places are taken reads queue, and
//! whoever comes back from Postgres takes all of them along. So a read costs the less the more there are: they share the
//! message, the position and the wake-ups. Each is asked after it came, and so sees no older a state than it would alone.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use tokio::sync::oneshot;
use tokio_postgres::types::ToSql;

use super::{
    ServeState,
    catalog::Projection,
    compile::{Template, Value},
    connections::{Error, Lane, Sql},
    freshness::{self, Head},
};
use crate::telemetry::metrics::serve as metrics;

/// Reads in one statement; Postgres finds so many rows by their key in about a millisecond.
const MAX_READS: usize = 128;
/// Reads of one shape that may queue; more are refused as busy.
const MAX_QUEUED: usize = 4096;

/// The reads of one shape: how many statements are on their way, and who waits for the next.
#[derive(Debug)]
pub struct Gather {
    sql: Sql,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    places_taken: usize,
    reads: VecDeque<Read>,
}

#[derive(Debug)]
struct Read {
    values: Vec<Value>,
    since: Instant,
    found: oneshot::Sender<Result<Found, Arc<Error>>>,
}

/// What one read found.
#[derive(Debug)]
pub struct Found {
    /// `None` when the projection is gone.
    pub head: Option<Arc<Head>>,
    /// The row in its format; `None` when there is none.
    pub row: Option<String>,
}

impl Gather {
    /// `sql` has, behind the head's parameters, an array for each value of a read, and answers with an array of rows.
    pub fn new(sql: Sql) -> Self {
        Self { sql, queue: Mutex::default() }
    }

    /// Asks for the row with these values. An error is that of the whole statement: it may be due to another's values.
    pub async fn read(
        &self,
        state: &ServeState,
        projection: &Arc<Projection>,
        template: &Arc<Template>,
        values: &[Value],
    ) -> Result<Found, Arc<Error>> {
        let (found, answer) = oneshot::channel();
        let places = state.connections().count(Lane::Point);
        let goes = {
            let mut queue = self.queue();
            if queue.reads.len() >= MAX_QUEUED {
                return Err(Arc::new(Error::Busy));
            }
            queue.reads.push_back(Read { values: values.to_vec(), since: Instant::now(), found });
            let goes = queue.places_taken < places;
            queue.places_taken += usize::from(goes);
            goes
        };
        if goes {
            // Not within this request, whose client may leave: others wait for it.
            tokio::spawn(run(state.clone(), projection.clone(), template.clone()));
        }
        answer.await.unwrap_or_else(|_| Err(Arc::new(Error::Unavailable(None))))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("invariant: no panic while the lock is held")
    }

    /// The rows in the order of the reads.
    async fn ask(
        &self,
        state: &ServeState,
        projection: &Projection,
        reads: &[Read],
    ) -> Result<(Option<Arc<Head>>, Vec<Option<String>>), Error> {
        metrics::READS_PER_STATEMENT.observe(reads.len() as f64);
        let values = reads.first().map_or(0, |read| read.values.len());
        let arrays: Vec<Vec<&str>> =
            (0..values).map(|value| reads.iter().map(|read| read.values[value].text()).collect()).collect();
        let mut params = freshness::params(projection, None);
        params.extend(arrays.iter().map(|array| array as &(dyn ToSql + Sync)));
        let Some(row) = state.connections().row(Lane::Point, &self.sql, &params).await? else {
            return Ok((None, Vec::new()));
        };
        let head = Head::from_row(&row, state.ends(projection).as_deref())?;
        Ok((Some(Arc::new(head)), row.try_get(Head::COLUMNS)?))
    }
}

/// Asks for whoever waits, until nobody does.
async fn run(state: ServeState, projection: Arc<Projection>, template: Arc<Template>) {
    let Some(gather) = &template.gather else { return };
    let mut place = Place { gather, taken: true };
    while let Some(mut reads) = place.next() {
        // One that has waited out a database that does not answer is not kept waiting for the next statement.
        let patience = state.connections().answer_within();
        let late = reads.partition_point(|read| read.since.elapsed() > patience);
        for read in reads.drain(..late) {
            let _ = read.found.send(Err(Arc::new(Error::NoAnswer(patience))));
        }
        match gather.ask(&state, &projection, &reads).await {
            Ok((head, rows)) => {
                let rows = rows.into_iter().chain(std::iter::repeat(None));
                for (read, row) in reads.into_iter().zip(rows) {
                    let _ = read.found.send(Ok(Found { head: head.clone(), row }));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for read in reads {
                    let _ = read.found.send(Err(error.clone()));
                }
            }
        }
    }
}

/// A statement that may be on its way; given back when nobody waits, and also by a panic, which must not keep it for ever.
struct Place<'g> {
    gather: &'g Gather,
    taken: bool,
}

impl Place<'_> {
    /// Takes reads from the queue. That it is empty and the place free again is one step: nobody can queue in between.
    fn next(&mut self) -> Option<Vec<Read>> {
        let mut queue = self.gather.queue();
        let count = queue.reads.len().min(MAX_READS);
        if count == 0 {
            self.taken = false;
            queue.places_taken -= 1;
            return None;
        }
        Some(queue.reads.drain(..count).collect())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.taken {
            let mut queue = self.gather.queue();
            queue.places_taken -= 1;
            queue.reads.clear();
        }
    }
}
