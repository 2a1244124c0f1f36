//! The rule of accounts: a transfer is refused unless its account has enough; what is accepted is credited downstream.

use std::collections::{BTreeSet, HashMap};

use millpond::handler::{Effects, Handler, HandlerError, Record, State, async_trait};
use serde::{Deserialize, Serialize};

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
        let commands = records.iter().map(Record::decode).collect::<Result<Vec<Command>, _>>()?;
        let names: BTreeSet<String> = commands.iter().map(|command| command.account.clone()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let mut accounts: HashMap<String, Account> = state.load("accounts", "account", &names).await?;
        for (record, command) in records.iter().zip(&commands) {
            let account = accounts
                .entry(command.account.clone())
                .or_insert_with(|| Account { account: command.account.clone(), ..Account::default() });
            match &command.target {
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
