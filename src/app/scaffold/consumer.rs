//! `millpond consumer new`: a folder that works as it stands.

use std::path::Path;

use anyhow::bail;

use super::{NewFile, write_all};
use crate::{
    app::project::{Project, view_clashes},
    cli::say::say,
    domain::{nearest, plain_ident},
    projection::TOMBSTONES,
    schema::{Column, RecordType, columns_of},
    spec::{ConsumerSpec, SourceFile, name_fault, producer::RecordSpec},
};

/// `millpond consumer new NAME --from TYPE`
pub fn consumer(project: &Project, name: &str, record_type: &str) -> anyhow::Result<()> {
    check_name(project, name)?;
    let record = record_of(project, record_type)?;
    let Some(declared) = project.producers.iter().find_map(|p| p.records.get(&record.name)) else {
        bail!("no producer sends {record_type}, so its topic is not known; declare it in a producers/*/producer.toml")
    };
    let (manifest, sql) = (manifest(name, declared), select(record)?);
    let folder = Path::new("consumers").join(name);
    check_views(project, &folder, &manifest, &sql)?;
    let files: [NewFile; 3] = [
        ("consumer.toml".to_owned(), manifest),
        (format!("{name}.sql"), sql),
        ("README.md".to_owned(), format!("# {name}\n\nWhat this projection answers, for whom.\n")),
    ];
    write_all(&project.dir.join(folder), &files)?;
    say!(
        "\nNext:\n  millpond consumer show {name}     # its rows on real events, without writing anything\n  millpond consumer test {name}     # its cases and the three laws"
    );
    Ok(())
}

/// The name is that of a folder, of a table and of what people read it by.
fn check_name(project: &Project, name: &str) -> anyhow::Result<()> {
    if let Some(why) = name_fault(name) {
        bail!("consumer name `{name}` {why}");
    }
    if let Some(record) = project.schemas.iter().find(|record| record.relation_name() == name) {
        bail!("`{name}` is what SQL calls the records of type {}; choose another name", record.name);
    }
    if name == TOMBSTONES {
        bail!("`{name}` is what SQL calls the records without a value; choose another name");
    }
    Ok(())
}

fn check_views(project: &Project, folder: &Path, manifest: &str, sql: &str) -> anyhow::Result<()> {
    let table = folder.file_name().unwrap_or_default();
    let files = vec![SourceFile::new(folder.join(table).with_extension("sql"), sql)];
    let told = |faults: Vec<String>| anyhow::anyhow!("{}", faults.join("\n"));
    let spec = ConsumerSpec::from_files(folder, manifest, files, Vec::new())
        .map_err(|faults| told(faults.iter().map(ToString::to_string).collect()))?;
    let mut consumers = project.consumers.clone();
    consumers.retain(|other| other.name != spec.name);
    consumers.push(spec);
    let clashes = view_clashes(&consumers);
    if clashes.is_empty() { Ok(()) } else { Err(told(clashes)) }
}

fn record_of<'a>(project: &'a Project, record_type: &str) -> anyhow::Result<&'a RecordType> {
    if let Some(record) = project.schemas.get(record_type) {
        return Ok(record);
    }
    let topics = project.record_topics();
    let of_topic = |(_, topics): &(&String, &Vec<String>)| topics.iter().any(|topic| topic == record_type);
    let carried: Vec<&str> = topics.iter().filter(of_topic).map(|(name, _)| name.as_str()).collect();
    if !carried.is_empty() {
        bail!("{record_type} is a topic, and --from takes a record type; it carries {}", carried.join(", "));
    }
    let known: Vec<&str> = project.schemas.iter().map(|r| r.name.as_str()).collect();
    match nearest(record_type, known.iter().copied()) {
        Some(near) => bail!("there is no record type {record_type}; did you mean {near}?"),
        None => bail!("there is no record type {record_type}; there are {}", known.join(", ")),
    }
}

fn manifest(name: &str, declared: &RecordSpec) -> String {
    format!(
        "# {name}: one row per record of {1} and key ({2}), as it stands. Change the SELECT in {name}.sql, and the key here, to what you want to know.\n\
         topics = [\"{0}\"]\n\n[tables.{name}]\nkey = [\"{3}\"]\n\n# How columns of rows with the same key become one; the last value wins unless said otherwise:\n\
         # merge = {{ departures = \"sum\", worst = \"max\" }}\n# One of sum, min, max, and, or, first, last.\n",
        declared.topic,
        declared.name,
        declared.key.join(" and "),
        declared.key.join("\", \""),
    )
}

/// Every field as a column of its name.
fn select(record: &RecordType) -> anyhow::Result<String> {
    let columns = columns_of(&record.latest().schema)?;
    let names: Vec<String> = columns.iter().map(|column| plain_ident(&column.name)).collect();
    let width = names.iter().map(String::len).max().unwrap_or_default() + 1;
    let line = |(at, (name, column)): (usize, (&String, &Column))| {
        let comma = if at + 1 == names.len() { "" } else { "," };
        let nullable = if column.nullable { ", may be null" } else { "" };
        format!("  {:width$} -- {}{nullable}", format!("{name}{comma}"), column.pg_type.sql())
    };
    let list: Vec<String> = names.iter().zip(&columns).enumerate().map(line).collect();
    let relation = plain_ident(&record.relation_name());
    let quoted = if names.iter().any(|name| name.starts_with('"')) || relation.starts_with('"') {
        "-- Names in double quotes are words of SQL, or have capitals: without the quotes they would be something else.\n"
    } else {
        ""
    };
    Ok(format!(
        "-- Each record of {} is a row of {relation}; besides its fields there are\n-- _key, _partition, _offset, _timestamp and _event_id.\n{quoted}select\n{}\nfrom {relation};\n",
        record.name,
        list.join("\n"),
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn consumer_whose_folder_would_be_refused_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("project");
        let write = |path: &str, text: &str| {
            fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            fs::write(dir.join(path), text).unwrap();
        };
        let schema = r#"{"type": "record", "name": "Paid", "fields": [{"name": "id", "type": "string"}]}"#;
        write("schemas/Paid/v1.avsc", schema);
        let contract = "[events.Paid]\ntopic = \"t\"\nkey = \"id\"\n[topics.t]\npartitions = 1\n";
        write("producers/shop/producer.toml", contract);
        write(
            "consumers/sums/consumer.toml",
            "topics = [\"t\"]\n[tables.a]\nkey = [\"id\"]\n[tables.b]\nkey = [\"id\"]\n",
        );
        write("consumers/sums/a.sql", "select id from paid");
        write("consumers/sums/b.sql", "select id from paid");
        let project = Project::load(&dir).unwrap();
        let long = "a".repeat(41);
        for (name, expected) in [
            ("../../escaped", "consumer name `../../escaped` must be lowercase letters"),
            ("Spend2", "consumer name `Spend2` must be lowercase letters"),
            ("a b", "consumer name `a b` must be lowercase letters"),
            ("", "consumer name `` must be lowercase letters"),
            (&long, "is longer than 40 characters"),
            ("live", "consumer name `live` is a reserved word"),
            ("paid", "`paid` is what SQL calls the records of type Paid"),
            ("tombstones", "`tombstones` is what SQL calls the records without a value"),
            ("sums_a", "the view `live.sums_a`"),
            ("sums", "consumer.toml is there already"),
        ] {
            let refused = consumer(&project, name, "Paid").unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        assert_eq!(fs::read_dir(dir.join("consumers")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        consumer(&project, "spend2", "Paid").unwrap();
        let names = Project::load(&dir).unwrap().consumers.into_iter().map(|spec| spec.name);
        assert_eq!(names.collect::<Vec<_>>(), ["spend2", "sums"]);
    }
}
