//! The rule of accounts: a transfer is refused unless its account has enough; what is accepted is credited downstream.
//!
//! On request it misbehaves as handlers may: two amounts are the end of its process, and it takes as long as it is told.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use millpond::handler::{Effects, Handler, HandlerError, Record, State, async_trait};
use serde::{Deserialize, Serialize};

/// An amount at which the process aborts.
pub const ABORTS: i64 = 1_000_001;
/// An amount at which the stack overflows.
pub const OVERFLOWS: i64 = 1_000_002;
/// A file in the folder in which the process runs: so many seconds a batch takes.
pub const TAKES_SECONDS: &str = "accounts-take-seconds";

/// The handler of `consumers/accounts`.
pub struct Accounts;

/// A row of `accounts`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Account {
    account: String,
    deposited: i64,
    debited: i64,
}

/// A `Deposit`, or a `Transfer` with its target.
#[derive(Debug, Deserialize)]
struct Command {
    account: String,
    target: Option<String>,
    amount: i64,
    client: i32,
    n: i64,
}

#[derive(Serialize)]
struct Credit<'a> {
    account: &'a str,
    transfer_id: String,
    amount: i64,
}

#[async_trait]
impl Handler for Accounts {
    fn revision(&self) -> u32 {
        1
    }

    async fn apply(
        &self,
        records: &[Record],
        state: &mut State<'_>,
        effects: &mut Effects,
    ) -> Result<(), HandlerError> {
        if let Some(time) = told_to_take() {
            tokio::time::sleep(time).await;
        }
        let commands = records.iter().map(Record::decode).collect::<Result<Vec<Command>, _>>()?;
        let names: BTreeSet<String> = commands.iter().map(|command| command.account.clone()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let mut accounts: HashMap<String, Account> = state.load("accounts", "account", &names).await?;
        for (record, command) in records.iter().zip(&commands) {
            let account = accounts
                .entry(command.account.clone())
                .or_insert_with(|| Account { account: command.account.clone(), ..Account::default() });
            match &command.target {
                None if command.amount == ABORTS => std::process::abort(),
                None if command.amount == OVERFLOWS => account.deposited += descend(command.amount),
                None => account.deposited += command.amount,
                Some(_) if account.deposited - account.debited < command.amount => {
                    effects.refuse(record, "not_enough", format!("account {} has not enough", command.account));
                    continue;
                }
                Some(target) => {
                    account.debited += command.amount;
                    let transfer_id = format!("{}/{}", command.client, command.n);
                    let credit = Credit { account: target, transfer_id, amount: command.amount };
                    effects.emit(record, "Credit", target, &credit);
                }
            }
            effects.upsert("accounts", &*account);
        }
        Ok(())
    }
}

/// How long somebody wants a batch to take.
fn told_to_take() -> Option<Duration> {
    std::fs::read_to_string(TAKES_SECONDS).ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Goes deeper than any stack.
fn descend(depth: i64) -> i64 {
    let frame = std::hint::black_box([depth; 512]);
    if depth == i64::MIN { 0 } else { descend(depth - 1) + frame[511] }
}
