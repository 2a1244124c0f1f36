//! What has to come out: a fold of the log into every table, written apart from the code that is under test.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha2::{Digest as _, Sha256};

use super::log::{Credit, Log};
use crate::values;

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
    pub accounts: BTreeMap<String, AccountRow>,
    pub credits: BTreeMap<(String, String), CreditRow>,
    /// What cannot be applied: consumer, partition and offset.
    pub dead_letters: BTreeSet<(String, i32, i64)>,
    /// Partition and offset of what `accounts` refuses.
    pub refusals: BTreeSet<(i32, i64)>,
}

/// How each list grew: per key its partition and, per record, the offset and the list up to it.
pub type Growth = HashMap<String, (i32, Vec<(i64, ChainRow)>)>;

/// The fold of a log.
#[derive(Debug, Default)]
pub struct Model {
    pub tables: Tables,
    pub emitted: Vec<Emitted>,
    pub growth: Growth,
}

impl Model {
    pub fn fold(log: &Log) -> Self {
        let mut model = Self::default();
        model.fold_appends(log);
        model.fold_money(log);
        for placed in &log.credits {
            let Credit { account, transfer_id, amount } = &placed.value;
            let row = model.tables.credits.entry((account.clone(), transfer_id.clone())).or_default();
            row.amount = row.amount.max(*amount);
            row.times += 1;
        }
        model
    }

    fn fold_appends(&mut self, log: &Log) {
        for placed in &log.appends {
            let (value, offset) = (&placed.value, placed.offset);
            let grown = self.growth.entry(value.key.clone()).or_insert_with(|| (placed.partition, Vec::new()));
            let before = grown.1.last().map(|(_, row)| row.clone()).unwrap_or_default();
            let last = format!("{}/{}", value.client, value.n);
            let chain = hex::encode(Sha256::digest(format!("{}:{last}", before.chain)));
            grown.1.push((offset, ChainRow { length: before.length + 1, chain, last }));
            if value.poison != 0 {
                self.tables.dead_letters.insert(("appends".to_owned(), placed.partition, offset));
                continue;
            }
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
        for (key, (_, grown)) in &self.growth {
            if let Some((_, row)) = grown.last() {
                self.tables.chains.insert(key.clone(), row.clone());
            }
        }
    }

    fn fold_money(&mut self, log: &Log) {
        for placed in &log.money {
            let value = &placed.value;
            if values::is_deadly(value.amount) {
                self.tables.dead_letters.insert(("accounts".to_owned(), placed.partition, placed.offset));
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
        let count = grown.partition_point(|(offset, _)| offset < below);
        Some(count.checked_sub(1).map(|last| grown[last].1.clone()).unwrap_or_default())
    }
}
