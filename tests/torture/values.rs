//! What clients send: it follows from seed, client and number, so that nothing but these has to be remembered.

use crate::accounts::{ABORTS, OVERFLOWS};
use crate::random::hash;

/// Lists that values are appended to.
pub const KEYS: u64 = 6000;
/// Lanes in which values wait for an operator when one of them fails.
pub const LANES: u64 = 48;
/// Accounts between which money goes.
const ACCOUNTS: u64 = 60;
/// One appended value in so many makes a consumer fail.
const POISON_EVERY: u64 = 10_000;
/// One value of a lane in so many does, and parks the lane.
const PARKS_EVERY: u64 = 400;
/// A client that sends bursts of which every other value does.
pub const POISONER: i32 = 50;
/// Clients that send as many values as there is room for.
pub const BULK: std::ops::Range<i32> = 60..64;
/// A client whose deposits now and then end the process that meets them.
pub const KILLER: i32 = 150;
const DEADLY_EVERY: i64 = 10;
/// One command about money in so many is a deposit.
const DEPOSIT_EVERY: u64 = 4;
/// Added to the number of a value that goes out under an id that stands for the value without it: a client's mistake.
pub const ALTERED: i64 = 1_000_000_000;

/// A value appended to a list, or put into a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    pub key: String,
    pub client: i32,
    pub n: i64,
    pub poison: i32,
}

/// A deposit, or a transfer when there is a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Money {
    pub account: String,
    pub target: Option<String>,
    pub amount: i64,
    pub client: i32,
    pub n: i64,
}

/// The number that stands in a value when it is sent as another than it is: of every third one.
pub fn altered(n: i64) -> i64 {
    if n % 3 == 0 { n + ALTERED } else { n }
}

pub fn append(seed: u64, client: i32, n: i64) -> Append {
    let chance = hash(seed, client.unsigned_abs().into(), (n % ALTERED).unsigned_abs());
    let every = if client == POISONER { 2 } else { POISON_EVERY };
    let poison = i32::from((chance >> 32).is_multiple_of(every));
    Append { key: key(chance % KEYS), client, n, poison }
}

/// A list by its number below [`KEYS`].
pub fn key(number: u64) -> String {
    format!("list-{number:04}")
}

/// Whether the handler of `accounts` does not survive this amount.
pub fn is_deadly(amount: i64) -> bool {
    [ABORTS, OVERFLOWS].contains(&amount)
}

pub fn enqueue(seed: u64, client: i32, n: i64) -> Append {
    let chance = hash(seed, client.unsigned_abs().into(), (n % ALTERED).unsigned_abs());
    let poison = i32::from((chance >> 32).is_multiple_of(PARKS_EVERY));
    Append { key: lane(chance % LANES), client, n, poison }
}

/// A lane by its number below [`LANES`].
pub fn lane(number: u64) -> String {
    format!("lane-{number:02}")
}

pub fn money(seed: u64, client: i32, n: i64) -> Money {
    let chance = hash(!seed, client.unsigned_abs().into(), (n % ALTERED).unsigned_abs());
    let account = |number: u64| format!("account-{:02}", number % ACCOUNTS);
    let deposit = client == KILLER || (chance >> 20).is_multiple_of(DEPOSIT_EVERY);
    let target = (!deposit).then(|| account(chance >> 40));
    let amount = match i64::try_from((chance >> 8) % 100 + 1).expect("at most a hundred") {
        amount if client == KILLER && n % DEADLY_EVERY == DEADLY_EVERY / 2 => [ABORTS, OVERFLOWS][amount as usize % 2],
        amount => amount + i64::from(n >= ALTERED),
    };
    Money { account: account(chance), target, amount, client, n }
}

impl Append {
    pub fn json(&self) -> String {
        format!(r#"{{"key":"{}","client":{},"n":{},"poison":{}}}"#, self.key, self.client, self.n, self.poison)
    }
}

impl Money {
    pub fn transfer_id(&self) -> String {
        format!("{}/{}", self.client, self.n)
    }

    pub fn json(&self) -> String {
        let Self { account, amount, client, n, .. } = self;
        let target = self.target.as_ref().map_or_else(String::new, |target| format!(r#""target":"{target}","#));
        format!(r#"{{"account":"{account}",{target}"amount":{amount},"client":{client},"n":{n}}}"#)
    }
}
