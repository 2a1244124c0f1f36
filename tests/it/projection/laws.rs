//! The three laws by trial: random merges over random records, under any cut into batches and any interleaving of two
//! partitions, against a fold that knows nothing of SQL.

use std::collections::BTreeMap;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::lab::{Lab, Record, relation};

/// A record of type `a` or `b`, or a tombstone.
#[derive(Debug, Clone)]
struct Event {
    kind: Kind,
    /// Key of the record; decides the partition.
    id: u8,
    group: u8,
    number: Option<i32>,
    /// Scale makes equal numbers look different.
    scale: u8,
    text: Option<u8>,
    flag: Option<bool>,
    remove: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    A,
    B,
    Tombstone,
}

/// Who names a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamedBy {
    A,
    B,
    Both,
    Nobody,
}

impl NamedBy {
    fn names(self, kind: Kind) -> bool {
        match self {
            Self::A => kind == Kind::A,
            Self::B => kind == Kind::B,
            Self::Both => kind != Kind::Tombstone,
            Self::Nobody => false,
        }
    }
}

#[derive(Debug, Clone)]
struct Case {
    named: [NamedBy; 10],
    /// Key is the record's, so that order counts; else a group that both partitions share.
    own_key: bool,
    /// Whether the SELECT over `b` groups.
    aggregated: bool,
    tombstones: bool,
    removes: bool,
    join: bool,
    events: Vec<Event>,
    /// Cut after this event; which partition goes next.
    cuts: Vec<(bool, bool)>,
}

/// Columns: name, rule, expression, aggregate.
const COLUMNS: [(&str, &str, &str, &str); 10] = [
    ("c_sum", "\"sum\"", "r.number", "sum(r.number)"),
    ("c_count", "\"sum\"", "1", "count(*)"),
    ("c_min", "\"min\"", "r.scaled", "min(r.scaled)"),
    ("c_max", "\"max\"", "r.scaled", "max(r.scaled)"),
    ("c_and", "\"and\"", "r.flag", "bool_and(r.flag)"),
    ("c_or", "\"or\"", "r.flag", "bool_or(r.flag)"),
    ("c_first", "\"first\"", "r.text", ""),
    ("c_last", "\"last\"", "r.tags", ""),
    ("c_last_by", "{ last = \"c_latest\" }", "r.text", ""),
    ("c_first_by", "{ first = \"c_earliest\" }", "r.tags", ""),
];
/// Columns that follow the order of records.
const ORDERED: [usize; 2] = [6, 7];
/// Columns that follow another column, and that column's name.
const BY: [(usize, &str); 2] = [(8, "c_latest"), (9, "c_earliest")];

fn events() -> impl Strategy<Value = Vec<Event>> {
    let kind = prop_oneof![4 => Just(Kind::A), 4 => Just(Kind::B), 2 => Just(Kind::Tombstone)];
    let event = (
        kind,
        0..4_u8,
        0..2_u8,
        prop::option::weighted(0.8, -2..3_i32),
        0..3_u8,
        prop::option::weighted(0.8, 0..3_u8),
        prop::option::weighted(0.8, any::<bool>()),
        prop::option::weighted(0.8, prop::bool::weighted(0.3)),
    );
    let event = event.prop_map(|(kind, id, group, number, scale, text, flag, remove)| Event {
        kind,
        id,
        group,
        number,
        scale,
        text,
        flag,
        remove,
    });
    prop::collection::vec(event, 1..24)
}

fn cases() -> impl Strategy<Value = Case> {
    let named = prop_oneof![Just(NamedBy::A), Just(NamedBy::B), Just(NamedBy::Both), Just(NamedBy::Nobody)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (prop::array::uniform10(named), flags, events(), prop::collection::vec(any::<(bool, bool)>(), 24)).prop_map(
        |(mut named, (own_key, aggregated, tombstones, removes, join), events, cuts)| {
            let removals = own_key && !aggregated;
            for at in ORDERED {
                // Without the record's key there is no order, and so no first and no last.
                named[at] = if own_key { named[at] } else { NamedBy::Nobody };
            }
            for at in ORDERED.into_iter().chain(BY.map(|(at, _)| at)).filter(|_| aggregated) {
                named[at] = if named[at].names(Kind::A) { NamedBy::A } else { NamedBy::Nobody };
            }
            Case {
                named,
                own_key,
                aggregated,
                tombstones: tombstones && removals,
                removes: removes && removals,
                join,
                events,
                cuts,
            }
        },
    )
}

impl Case {
    fn select(&self, kind: Kind) -> String {
        let name = if kind == Kind::A { "a" } else { "b" };
        let aggregated = self.aggregated && kind == Kind::B;
        let mut items = vec![if self.own_key { "r.id as k".to_owned() } else { "r.grp as k".to_owned() }];
        for (at, (column, _, expression, aggregate)) in COLUMNS.iter().enumerate() {
            if self.named[at].names(kind) {
                items.push(format!("{} as {column}", if aggregated { aggregate } else { expression }));
                items.extend(BY.iter().filter(|(by, _)| *by == at).map(|(_, order)| format!("r.scaled as {order}")));
            }
        }
        if self.removes && kind == Kind::A {
            items.push("r.remove as _delete".into());
        }
        let join = if self.join { " left join flags f on f.flag = r.flag" } else { "" };
        let group = if aggregated { " group by 1" } else { "" };
        format!("select {} from {name} r{join}{group};\n", items.join(", "))
    }

    fn files(&self) -> Vec<(&'static str, String)> {
        let mut sql = self.select(Kind::A) + &self.select(Kind::B);
        if self.tombstones {
            sql.push_str("select _key as k, true as _delete from tombstones;\n");
        }
        let named = |at: &usize| self.named[*at] != NamedBy::Nobody;
        let rules: Vec<String> =
            (0..COLUMNS.len()).filter(named).map(|at| format!("{} = {}", COLUMNS[at].0, COLUMNS[at].1)).collect();
        let toml = format!("topics = [\"t\"]\n[tables.t]\nkey = [\"k\"]\nmerge = {{ {} }}\n", rules.join(", "));
        vec![("consumer.toml", toml), ("t.sql", sql), ("reference/flags.csv", "flag:boolean\ntrue\nfalse\n".into())]
    }

    /// What the rows should be: one record after the other.
    fn fold(&self) -> BTreeMap<String, Row> {
        let mut rows: BTreeMap<String, Row> = BTreeMap::new();
        for event in &self.events {
            let key = if self.own_key { format!("k{}", event.id) } else { format!("g{}", event.group) };
            let removed = match event.kind {
                Kind::Tombstone => self.tombstones,
                Kind::A => self.removes && event.remove == Some(true),
                Kind::B => false,
            };
            if removed {
                rows.remove(&key);
            } else if event.kind != Kind::Tombstone {
                rows.entry(key).or_default().take(event, self);
            }
        }
        rows
    }

    /// The visible columns of a folded row, in the table's order.
    fn shown(&self, key: &str, row: &Row) -> Vec<Option<String>> {
        let mut values = vec![Some(key.to_owned())];
        let order = [Kind::A, Kind::B].into_iter().flat_map(|kind| (0..COLUMNS.len()).map(move |at| (kind, at)));
        let mut seen = Vec::new();
        for (_, at) in order.filter(|(kind, at)| self.named[*at].names(*kind)) {
            if seen.contains(&at) {
                continue;
            }
            seen.push(at);
            values.push(row.value(at));
            match at {
                8 => values.push(row.last_by.0.map(|number| number.to_string())),
                9 => values.push(row.first_by.as_ref().and_then(|by| by.0).map(|number| number.to_string())),
                _ => {}
            }
        }
        values
    }
}

#[derive(Debug, Default, Clone)]
struct Row {
    sum: i64,
    count: i64,
    min: Option<i32>,
    max: Option<i32>,
    and: Option<bool>,
    or: Option<bool>,
    first: Option<Option<String>>,
    last: Option<String>,
    last_by: (Option<i32>, Option<String>),
    first_by: Option<(Option<i32>, Option<String>)>,
}

/// An array of as many tags as the number says, as Postgres prints it.
fn tags(number: u8) -> String {
    format!("{{{}}}", vec![format!("t{number}"); usize::from(number)].join(","))
}

fn joined<T>(old: Option<T>, new: Option<T>, join: impl Fn(T, T) -> T) -> Option<T> {
    match (old, new) {
        (Some(old), Some(new)) => Some(join(old, new)),
        (old, new) => old.or(new),
    }
}

impl Row {
    fn take(&mut self, event: &Event, case: &Case) {
        let names = |at: usize| case.named[at].names(event.kind);
        let text = event.text.map(|text| format!("t{text}"));
        if names(0) {
            self.sum += event.number.map_or(0, i64::from);
        }
        if names(1) {
            self.count += 1;
        }
        if names(2) {
            self.min = joined(self.min, event.number, i32::min);
        }
        if names(3) {
            self.max = joined(self.max, event.number, i32::max);
        }
        if names(4) {
            self.and = joined(self.and, event.flag, |a, b| a && b);
        }
        if names(5) {
            self.or = joined(self.or, event.flag, |a, b| a || b);
        }
        if names(6) && self.first.is_none() {
            self.first = Some(text.clone());
        }
        if names(7) {
            self.last = event.text.map(tags);
        }
        if names(8) {
            self.last_by = self.last_by.clone().max((event.number, text));
        }
        if names(9) {
            let new = (event.number, event.text.map(tags));
            // No order value is later than any; of equal ones the greater value stays.
            let rank = |by: &(Option<i32>, Option<String>)| (by.0.is_none(), by.0, std::cmp::Reverse(by.1.clone()));
            let old = self.first_by.take().filter(|old| rank(old) <= rank(&new));
            self.first_by = Some(old.unwrap_or(new));
        }
    }

    fn value(&self, at: usize) -> Option<String> {
        let truth = |flag: bool| if flag { "true".to_owned() } else { "false".to_owned() };
        match at {
            0 => Some(self.sum.to_string()),
            1 => Some(self.count.to_string()),
            2 => self.min.map(|n| n.to_string()),
            3 => self.max.map(|n| n.to_string()),
            4 => self.and.map(truth),
            5 => self.or.map(truth),
            6 => self.first.clone().flatten(),
            7 => self.last.clone(),
            8 => self.last_by.1.clone(),
            _ => self.first_by.clone().and_then(|by| by.1),
        }
    }
}

fn records(case: &Case) -> Vec<Record> {
    let or_null = |value: Option<String>| value.unwrap_or_else(|| "null".into());
    let record = |(offset, event): (usize, &Event)| Record {
        relation: match event.kind {
            Kind::A => "a",
            Kind::B => "b",
            Kind::Tombstone => "tombstones",
        },
        key: format!("k{}", event.id),
        partition: i32::from(event.id % 2),
        offset: offset as i64,
        fields: if event.kind == Kind::Tombstone {
            Vec::new()
        } else {
            vec![
                format!("'k{}'", event.id),
                format!("'g{}'", event.group),
                or_null(event.number.map(|n| n.to_string())),
                or_null(event.number.map(|n| format!("{n}{}", [".", ".0", ".00"][usize::from(event.scale)]))),
                or_null(event.text.map(|t| format!("'t{t}'"))),
                or_null(event.text.map(|t| format!("array_fill('t{t}'::text, array[{t}])"))),
                or_null(event.flag.map(|f| f.to_string())),
                or_null(event.remove.map(|f| f.to_string())),
            ]
        },
    };
    case.events.iter().enumerate().map(record).collect()
}

/// Ways to cut the records into batches.
fn cuts(case: &Case, records: &[Record]) -> Vec<Vec<Vec<Record>>> {
    let partition = |wanted: i32| records.iter().filter(|r| r.partition == wanted).cloned().collect::<Vec<_>>();
    let all = vec![records.to_vec()];
    let singles = records.iter().map(|record| vec![record.clone()]).collect();
    let by_partition = vec![partition(1), partition(0)];
    // Two partitions cut and interleaved at random.
    let mut queues = [partition(0), partition(1)];
    let (mut random, mut open): (Vec<Vec<Record>>, Vec<Record>) = (Vec::new(), Vec::new());
    let mut choice = case.cuts.iter().cycle();
    let mut current = 0;
    while queues.iter().any(|queue| !queue.is_empty()) {
        let (cut, second) = *choice.next().unwrap_or(&(true, false));
        if cut || queues[current].is_empty() {
            random.push(std::mem::take(&mut open));
            current = usize::from(second);
            if queues[current].is_empty() {
                current = 1 - current;
            }
        }
        open.push(queues[current].remove(0));
    }
    random.push(open);
    vec![all, singles, by_partition, random]
}

async fn check(case: &Case) {
    let fields = [
        ("id", "text"),
        ("grp", "text"),
        ("number", "integer"),
        ("scaled", "numeric"),
        ("text", "text"),
        ("tags", "text[]"),
        ("flag", "boolean"),
        ("remove", "boolean"),
    ];
    let relations = [relation("a", "A", &["id"], &fields), relation("b", "B", &["id"], &fields)];
    let files = case.files();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let mut lab = Lab::new(&files, &relations).await;
    let expected: Vec<Vec<Option<String>>> = case.fold().iter().map(|(key, row)| case.shown(key, row)).collect();
    let records = records(case);
    for (way, batches) in cuts(case, &records).into_iter().enumerate() {
        for batch in batches.iter().filter(|batch| !batch.is_empty()) {
            lab.apply(batch).await;
        }
        let found = lab.rows("t").await;
        assert_eq!(found, expected, "way {way} of {files:#?}\nbatches {batches:#?}");
        lab.next_version().await;
    }
    lab.drop_version().await;
}

#[test]
fn merges_under_any_cut_and_interleaving_give_the_rows_of_the_fold() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner =
        TestRunner::new(Config { cases: 64, failure_persistence: None, max_shrink_iters: 200, ..Config::default() });
    runner
        .run(&cases(), |case| {
            runtime.block_on(check(&case));
            Ok(())
        })
        .unwrap();
}
