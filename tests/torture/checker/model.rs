//! What has to come out: a fold of the log and of what was decided into every table, written apart from the code that is
//! under test.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sha2::{Digest as _, Sha256};

use super::log::{Credit, Log, Place, Placed, Verdicts};
use super::repeats::{OF_LANES, Sort, WEEK, sorts};
use crate::values::{self, Append};

/// Why a record could not be applied.
pub const REFUSED: &str = "refused_by_postgres";
pub const CONFLICT: &str = "id_conflict";
pub const WAITS: &str = "waits";
pub const CRASH: &str = "crash";

/// A row of `appends`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendRow {
    pub key: String,
    pub times: i64,
    pub weight: i64,
    pub first_offset: i64,
    pub last_offset: i64,
}

/// A row of `chains`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainRow {
    pub length: i64,
    pub chain: String,
    pub last: String,
}

/// A row of `lanes`: the list, and the offset of its last value.
pub type LaneRow = (ChainRow, i64);

/// A row of `accounts`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountRow {
    pub deposited: i64,
    pub debited: i64,
}

/// A row of `credits`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreditRow {
    pub amount: i64,
    pub times: i64,
}

/// An event that an accepted transfer has to bring, and the place of the transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    pub partition: i32,
    pub offset: i64,
    pub credit: Credit,
}

/// All tables as they have to be, sorted by their keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub appends: BTreeMap<(i32, i64), AppendRow>,
    pub chains: BTreeMap<String, ChainRow>,
    pub lanes: BTreeMap<String, LaneRow>,
    pub accounts: BTreeMap<String, AccountRow>,
    pub credits: BTreeMap<(String, String), CreditRow>,
    /// How often each amount was moved.
    pub amounts: BTreeMap<i64, i64>,
    /// What is set aside, and its class.
    pub dead_letters: BTreeMap<Place, String>,
    /// Partition and offset of what `accounts` refuses.
    pub refusals: BTreeSet<(i32, i64)>,
}

/// How a list grew: its partition and, per record, the offset and the list up to it.
pub type Grown = (i32, Vec<(i64, ChainRow)>);
/// How all lists of a table grew.
pub type Growth = HashMap<String, Grown>;

/// The fold of a log.
#[derive(Debug, Default)]
pub struct Model {
    pub tables: Tables,
    pub emitted: Vec<Emitted>,
    pub growth: Growth,
    pub lane_growth: Growth,
    /// What could not be applied when its turn came, and was told to the topics of dead letters.
    pub failed: BTreeSet<Place>,
    /// Partition and offset of the records of lanes that may have waited: poison, and what stands behind it in its lane.
    pub may_wait: BTreeSet<(i32, i64)>,
    /// The offset of the first of them in each lane.
    pub lane_waits: HashMap<String, i64>,
    /// Records that were passed over: repeats, and those that an operator has given up, by consumer.
    pub repeats: BTreeMap<&'static str, usize>,
    pub discarded: BTreeMap<&'static str, usize>,
}

impl Model {
    pub fn fold(log: &Log, verdicts: &Verdicts) -> Self {
        let mut model = Self::default();
        model.fold_appends(log, verdicts);
        model.fold_lanes(log, verdicts);
        model.fold_money(log);
        for (placed, sort) in log.credits.iter().zip(sorts(&log.credits, WEEK)) {
            if !model.counts("credits", placed, sort) {
                continue;
            }
            let Credit { account, transfer_id, amount } = &placed.value;
            let row = model.tables.credits.entry((account.clone(), transfer_id.clone())).or_default();
            row.amount = row.amount.max(*amount);
            row.times += 1;
        }
        model
    }

    /// Whether a record counts. A repeat is passed over, and one whose id stands for another is a dead letter.
    fn counts<T>(&mut self, consumer: &'static str, placed: &Placed<T>, sort: Sort) -> bool {
        match sort {
            Sort::First => return true,
            Sort::Repeat => *self.repeats.entry(consumer).or_default() += 1,
            Sort::Conflict => {
                let place = (consumer.to_owned(), placed.partition, placed.offset);
                self.failed.insert(place.clone());
                self.tables.dead_letters.insert(place, CONFLICT.to_owned());
            }
        }
        false
    }

    fn fold_appends(&mut self, log: &Log, verdicts: &Verdicts) {
        for (placed, sort) in log.appends.iter().zip(sorts(&log.appends, WEEK)) {
            if self.counts("chains", placed, sort) {
                grow(&mut self.growth, placed, &placed.value);
            }
            if self.counts("appends", placed, sort) && placed.value.poison == 0 {
                self.append(placed, &placed.value);
                continue;
            }
            if sort == Sort::Repeat {
                continue;
            }
            let place: Place = ("appends".to_owned(), placed.partition, placed.offset);
            self.failed.insert(place.clone());
            let Some(decided) = verdicts.get(&place) else {
                let class = if sort == Sort::Conflict { CONFLICT } else { REFUSED };
                self.tables.dead_letters.insert(place, class.to_owned());
                continue;
            };
            self.tables.dead_letters.remove(&place);
            match decided.what.as_str() {
                "discard" => *self.discarded.entry("appends").or_default() += 1,
                _ => self.append(placed, decided.value.as_ref().unwrap_or(&placed.value)),
            }
        }
        for (key, (_, grown)) in &self.growth {
            if let Some((_, row)) = grown.last() {
                self.tables.chains.insert(key.clone(), row.clone());
            }
        }
    }

    fn append(&mut self, placed: &Placed<Append>, value: &Append) {
        let offset = placed.offset;
        let row = self.tables.appends.entry((value.client, value.n)).or_insert_with(|| AppendRow {
            key: value.key.clone(),
            times: 0,
            weight: 0,
            first_offset: offset,
            last_offset: offset,
        });
        row.times += 1;
        row.weight += 1;
        row.first_offset = row.first_offset.min(offset);
        row.last_offset = row.last_offset.max(offset);
    }

    /// Each lane in its order, as if everything about it had been decided before its turn came: when that was makes no
    /// difference, for nothing of a lane passes what waits before it.
    fn fold_lanes(&mut self, log: &Log, verdicts: &Verdicts) {
        // Lanes that had to wait once, and those about whose head nobody has decided.
        let (mut waited, mut parked) = (HashSet::new(), HashSet::new());
        for (placed, sort) in log.lanes.iter().zip(sorts(&log.lanes, OF_LANES)) {
            let (value, key) = (&placed.value, placed.value.key.as_str());
            let place: Place = ("lanes".to_owned(), placed.partition, placed.offset);
            let decided = verdicts.get(&place);
            if !self.counts("lanes", placed, sort) {
                if decided.is_some_and(|decided| decided.what == "discard") && sort == Sort::Conflict {
                    self.tables.dead_letters.remove(&place);
                    *self.discarded.entry("lanes").or_default() += 1;
                }
                continue;
            }
            if value.poison != 0 {
                waited.insert(key);
                // What was decided about while it only waited was never tried.
                if decided.is_none_or(|decided| decided.class != WAITS) && !parked.contains(key) {
                    self.failed.insert(place.clone());
                }
            }
            if waited.contains(key) {
                self.may_wait.insert((placed.partition, placed.offset));
                self.lane_waits.entry(key.to_owned()).or_insert(placed.offset);
            }
            match decided.map(|decided| decided.what.as_str()) {
                _ if parked.contains(key) => drop(self.tables.dead_letters.insert(place, WAITS.to_owned())),
                Some("discard") => *self.discarded.entry("lanes").or_default() += 1,
                Some(_) => {
                    let edited = decided.and_then(|decided| decided.value.as_ref());
                    grow(&mut self.lane_growth, placed, edited.unwrap_or(value));
                }
                None if value.poison != 0 => {
                    parked.insert(key);
                    self.tables.dead_letters.insert(place, REFUSED.to_owned());
                }
                None => grow(&mut self.lane_growth, placed, value),
            }
        }
        for (key, (_, grown)) in &self.lane_growth {
            if let Some((offset, row)) = grown.last() {
                self.tables.lanes.insert(key.clone(), (row.clone(), *offset));
            }
        }
    }

    fn fold_money(&mut self, log: &Log) {
        for (placed, sort) in log.money.iter().zip(sorts(&log.money, WEEK)) {
            let value = &placed.value;
            if self.counts("amounts", placed, sort) {
                *self.tables.amounts.entry(value.amount).or_default() += 1;
            }
            if !self.counts("accounts", placed, sort) {
                continue;
            }
            if values::is_deadly(value.amount) {
                let place: Place = ("accounts".to_owned(), placed.partition, placed.offset);
                self.failed.insert(place.clone());
                self.tables.dead_letters.insert(place, CRASH.to_owned());
                continue;
            }
            let account = self.tables.accounts.entry(value.account.clone()).or_default();
            match &value.target {
                None => account.deposited += value.amount,
                Some(_) if account.deposited - account.debited < value.amount => {
                    self.tables.refusals.insert((placed.partition, placed.offset));
                }
                Some(target) => {
                    account.debited += value.amount;
                    let (account, transfer_id) = (target.clone(), value.transfer_id());
                    let credit = Credit { account, transfer_id, amount: value.amount };
                    self.emitted.push(Emitted { partition: placed.partition, offset: placed.offset, credit });
                }
            }
        }
        // A refused transfer alone makes no row.
        self.tables.accounts.retain(|_, row| row.deposited > 0 || row.debited > 0);
    }

    /// A list as it was when everything below `position` of its partition, and nothing else, had been appended.
    pub fn list_at(&self, key: &str, position: &BTreeMap<i32, i64>) -> Option<ChainRow> {
        let Some((partition, grown)) = self.growth.get(key) else { return Some(ChainRow::default()) };
        let below = position.get(partition)?;
        Some(list_below(grown, *below))
    }
}

/// A list as it was when everything below an offset had been added.
pub fn list_below(grown: &[(i64, ChainRow)], below: i64) -> ChainRow {
    let count = grown.partition_point(|(offset, _)| *offset < below);
    count.checked_sub(1).map(|last| grown[last].1.clone()).unwrap_or_default()
}

/// Adds a value to the list of the record's key.
fn grow(growth: &mut Growth, placed: &Placed<Append>, value: &Append) {
    let grown = growth.entry(placed.value.key.clone()).or_insert_with(|| (placed.partition, Vec::new()));
    let before = grown.1.last().map(|(_, row)| row.clone()).unwrap_or_default();
    let last = format!("{}/{}", value.client, value.n);
    let chain = hex::encode(Sha256::digest(format!("{}:{last}", before.chain)));
    grown.1.push((placed.offset, ChainRow { length: before.length + 1, chain, last }));
}
