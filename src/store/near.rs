//! How far a version is from where another one is: before it takes that one's place, or is compared with it.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::{
    Error,
    builds::{Place, places},
};
use crate::domain::TopicPartition;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Where a version has to come to: a partition, and an offset there, as far as that is known.
type Goal = (TopicPartition, Option<i64>);

/// Waits, with nothing locked, until one version has reached where another one stands now, so that the rest is a matter of
/// moments; whether it has within that time. What only the one of them reads, it has to have read to the end that was last
/// seen; what only the other one reads is nothing to it.
///
/// # Errors
/// [`Error::Refused`] when it has halted.
pub(super) async fn comes_near(
    connection: &mut PgConnection,
    projection: &str,
    (there, version): (i32, i32),
    within: Duration,
) -> Result<bool, Error> {
    let deadline = Instant::now() + within;
    let goals = goals(connection, projection, (there, version)).await?;
    loop {
        let found = places(connection, projection, version).await?;
        if let Some((place, why)) = found.iter().find_map(|place| Some((place, place.halted.as_ref()?))) {
            let at = &place.at;
            return Err(Error::Refused(format!("version {version} of {projection} has halted on {at}: {why}")));
        }
        if goals.iter().all(|goal| lacks(goal, &found) == Some(0)) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where a version is not as far as another one, for people.
pub(super) async fn behind(
    connection: &mut PgConnection,
    projection: &str,
    (there, version): (i32, i32),
) -> Result<String, Error> {
    let goals = goals(connection, projection, (there, version)).await?;
    let found = places(connection, projection, version).await?;
    let told = goals.iter().filter_map(|goal| match (lacks(goal, &found), &goal.0) {
        (Some(0), _) => None,
        (Some(records), at) => Some(format!("{at} ({records} records)")),
        (None, at) => Some(format!("{at} (nobody has seen its end)")),
    });
    Ok(told.collect::<Vec<_>>().join(", "))
}

/// How many records are missing to a goal; none where it is not known.
fn lacks((at, goal): &Goal, found: &[Place]) -> Option<i64> {
    let next = found.iter().find(|place| place.at == *at).map_or(0, |place| place.next_offset);
    Some((goal.as_ref()? - next).max(0))
}

async fn goals(
    connection: &mut PgConnection,
    projection: &str,
    (there, version): (i32, i32),
) -> Result<Vec<Goal>, Error> {
    let shared = shared_topics(connection, projection, (there, version)).await?;
    let mut goals: Vec<Goal> = shared.places(connection, projection, there).await?;
    let own = places(connection, projection, version).await?;
    goals.extend(own.into_iter().filter(|place| !shared.has(&place.at)).map(|place| (place.at, place.end_offset)));
    Ok(goals)
}

/// The topics that two versions read both, and those that only one of them does.
#[derive(Debug, Clone, Default)]
pub(super) struct Topics {
    both: Vec<String>,
    pub only_old: Vec<String>,
    pub only_new: Vec<String>,
}

impl Topics {
    pub fn has(&self, at: &TopicPartition) -> bool {
        self.both.iter().any(|topic| *topic == *at.topic)
    }

    async fn places(&self, connection: &mut PgConnection, projection: &str, version: i32) -> Result<Vec<Goal>, Error> {
        let places = places(connection, projection, version).await?;
        Ok(places
            .into_iter()
            .filter(|place| self.has(&place.at))
            .map(|place| (place.at, Some(place.next_offset)))
            .collect())
    }
}

pub(super) async fn shared_topics(
    connection: &mut PgConnection,
    projection: &str,
    (old, new): (i32, i32),
) -> Result<Topics, Error> {
    let (old, new) = (topics(connection, projection, old).await?, topics(connection, projection, new).await?);
    let (both, only_new): (Vec<_>, Vec<_>) = new.into_iter().partition(|topic| old.contains(topic));
    let only_old = old.into_iter().filter(|topic| !both.contains(topic)).collect();
    Ok(Topics { both, only_old, only_new })
}

async fn topics(connection: &mut PgConnection, projection: &str, version: i32) -> Result<Vec<String>, Error> {
    Ok(sqlx::query_scalar("select topics from millpond.versions where projection = $1 and version = $2")
        .bind(projection)
        .bind(version)
        .fetch_one(connection)
        .await?)
}
