//! Avro to a real Postgres by binary COPY: every type arrives as what it is, and nothing that the transcoder lets
//! through is refused.

use apache_avro::{BigDecimal, Decimal, Schema, types::Value, writer::datum::GenericDatumWriter};
use millpond::schema::{Column, Scratch, Transcoder, columns_of};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

/// Type of a field, a value, and how Postgres shows it.
type Case = (&'static str, Value, &'static str);

fn scalars() -> Vec<Case> {
    let uuid = "6fa459ea-ee8a-4ca4-894e-db77e160355e".parse().unwrap();
    let decimal = |number: i64| Value::Decimal(Decimal::from(number.to_be_bytes()));
    let big = |text: &str| Value::BigDecimal(text.parse::<BigDecimal>().unwrap());
    vec![
        (r#""boolean""#, Value::Boolean(true), "true"),
        (r#""int""#, Value::Int(i32::MIN), "-2147483648"),
        (r#""long""#, Value::Long(i64::MAX), "9223372036854775807"),
        (r#""float""#, Value::Float(0.1), "0.1"),
        (r#""float""#, Value::Float(f32::NAN), "NaN"),
        (r#""double""#, Value::Double(-1.5e300), "-1.5e+300"),
        (r#""double""#, Value::Double(f64::NEG_INFINITY), "-Infinity"),
        (r#""string""#, Value::String("naïve \"text\"\n".into()), "naïve \"text\"\n"),
        (r#""bytes""#, Value::Bytes(vec![0, 255]), "\\x00ff"),
        (r#"{"type":"fixed","name":"F","size":3}"#, Value::Fixed(3, vec![1, 2, 3]), "\\x010203"),
        (r#"{"type":"enum","name":"E","symbols":["LOW","HIGH"]}"#, Value::Enum(1, "HIGH".into()), "HIGH"),
        (r#"{"type":"bytes","logicalType":"decimal","precision":12,"scale":3}"#, decimal(-1_234_567), "-1234.567"),
        (r#"{"type":"bytes","logicalType":"decimal","precision":12,"scale":3}"#, decimal(5), "0.005"),
        (r#"{"type":"bytes","logicalType":"decimal","precision":12,"scale":0}"#, decimal(100_000_000), "100000000"),
        (
            r#"{"type":"fixed","name":"D","size":8,"logicalType":"decimal","precision":18,"scale":2}"#,
            decimal(0),
            "0.00",
        ),
        (
            r#"{"type":"bytes","logicalType":"big-decimal"}"#,
            big("-123456789012345678901234567890.0001"),
            "-123456789012345678901234567890.0001",
        ),
        (r#"{"type":"bytes","logicalType":"big-decimal"}"#, big("0.00000001"), "0.00000001"),
        (r#"{"type":"string","logicalType":"uuid"}"#, Value::Uuid(uuid), "6fa459ea-ee8a-4ca4-894e-db77e160355e"),
        (
            r#"{"type":"fixed","name":"U","size":16,"logicalType":"uuid"}"#,
            Value::Uuid(uuid),
            "6fa459ea-ee8a-4ca4-894e-db77e160355e",
        ),
        (r#"{"type":"int","logicalType":"date"}"#, Value::Date(15_706), "2013-01-01"),
        (r#"{"type":"int","logicalType":"date"}"#, Value::Date(-719_163), "0001-12-31 BC"),
        (r#"{"type":"int","logicalType":"time-millis"}"#, Value::TimeMillis(36_900_250), "10:15:00.25"),
        (r#"{"type":"long","logicalType":"time-micros"}"#, Value::TimeMicros(86_399_999_999), "23:59:59.999999"),
        (
            r#"{"type":"long","logicalType":"timestamp-millis"}"#,
            Value::TimestampMillis(1_357_035_300_250),
            "2013-01-01 10:15:00.25+00",
        ),
        (
            r#"{"type":"long","logicalType":"timestamp-micros"}"#,
            Value::TimestampMicros(-1),
            "1969-12-31 23:59:59.999999+00",
        ),
        (
            r#"{"type":"long","logicalType":"timestamp-nanos"}"#,
            Value::TimestampNanos(1_999),
            "1970-01-01 00:00:00.000001+00",
        ),
        (
            r#"{"type":"long","logicalType":"local-timestamp-millis"}"#,
            Value::LocalTimestampMillis(0),
            "1970-01-01 00:00:00",
        ),
        (
            r#"{"type":"long","logicalType":"local-timestamp-micros"}"#,
            Value::LocalTimestampMicros(1),
            "1970-01-01 00:00:00.000001",
        ),
        (
            r#"{"type":"long","logicalType":"local-timestamp-nanos"}"#,
            Value::LocalTimestampNanos(-1),
            "1969-12-31 23:59:59.999999",
        ),
        (
            r#"{"type":"fixed","name":"P","size":12,"logicalType":"duration"}"#,
            Value::Fixed(12, vec![14, 0, 0, 0, 3, 0, 0, 0, 0xdc, 5, 0, 0]),
            "1 year 2 mons 3 days 00:00:01.5",
        ),
    ]
}

fn nested() -> Vec<Case> {
    let union = |index, value| Value::Union(index, Box::new(value));
    let text = |text: &str| Value::String(text.into());
    let inner = Value::Record(vec![
        ("at".into(), Value::TimestampMillis(0)),
        ("ratio".into(), Value::Double(f64::NAN)),
        ("note".into(), union(0, Value::Null)),
    ]);
    let record = r#"{"type":"record","name":"R","fields":[
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"ratio","type":"double"},{"name":"note","type":["null","string"]}]}"#;
    vec![
        (r#"{"type":"array","items":"int"}"#, Value::Array(vec![Value::Int(1), Value::Int(-2)]), "{1,-2}"),
        (r#"{"type":"array","items":"string"}"#, Value::Array(vec![]), "{}"),
        (
            r#"{"type":"array","items":["null","string"]}"#,
            Value::Array(vec![union(1, text("a b")), union(0, Value::Null)]),
            "{\"a b\",NULL}",
        ),
        (
            r#"{"type":"array","items":{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}}"#,
            Value::Array(vec![Value::Decimal(Decimal::from([4, 210]))]),
            "{12.34}",
        ),
        (
            r#"{"type":"array","items":{"type":"array","items":"int"}}"#,
            Value::Array(vec![Value::Array(vec![Value::Int(1)]), Value::Array(vec![])]),
            "[[1], []]",
        ),
        (r#"{"type":"map","values":"long"}"#, Value::Map([("k\"é".into(), Value::Long(7))].into()), r#"{"k\"é": 7}"#),
        (r#"["string","long","null"]"#, union(1, Value::Long(7)), "7"),
        (record, inner, r#"{"at": "1970-01-01T00:00:00Z", "note": null, "ratio": "NaN"}"#),
    ]
}

fn schema_of(cases: &[Case], nullable: bool) -> Schema {
    // The names of types are made different, for a case may come twice.
    let field = |(index, (field_type, ..)): (usize, &Case)| {
        let unique = ["F", "E", "D", "U", "P", "R"].iter().fold(field_type.to_string(), |text, name| {
            text.replace(&format!(r#""name":"{name}""#), &format!(r#""name":"{name}{index}""#))
        });
        let wraps = nullable && !unique.starts_with('[');
        let unique = if wraps { format!(r#"["null",{unique}]"#) } else { unique };
        format!(r#"{{"name":"c{index}","type":{unique}}}"#)
    };
    let fields: Vec<String> = cases.iter().enumerate().map(field).collect();
    Schema::parse_str(&format!(r#"{{"type":"record","name":"All","fields":[{}]}}"#, fields.join(","))).unwrap()
}

fn record(values: impl IntoIterator<Item = Value>) -> Value {
    Value::Record(values.into_iter().enumerate().map(|(index, value)| (format!("c{index}"), value)).collect())
}

fn encoded(schema: &Schema, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    GenericDatumWriter::builder(schema).build().unwrap().write_value_ref(&mut out, value).unwrap();
    out
}

/// A table in a session of its own, filled by binary COPY.
struct Table {
    connection: PgConnection,
    columns: Vec<Column>,
}

impl Table {
    async fn for_columns(columns: Vec<Column>) -> Self {
        let mut connection = PgConnection::connect(&crate::harness::postgres_url()).await.unwrap();
        let settings =
            "set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; set bytea_output = 'hex'";
        sqlx::raw_sql(settings).execute(&mut connection).await.unwrap();
        let column = |column: &Column| {
            format!("\"{}\" {}{}", column.name, column.pg_type.sql(), if column.nullable { "" } else { " not null" })
        };
        let list: Vec<String> = columns.iter().map(column).collect();
        let create = format!("create temp table relation ({})", list.join(", "));
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
        Self { connection, columns }
    }

    async fn copy(&mut self, rows: &[Vec<u8>]) -> Result<u64, sqlx::Error> {
        let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        for row in rows {
            bytes.extend((self.columns.len() as i16).to_be_bytes());
            bytes.extend(row);
        }
        bytes.extend((-1_i16).to_be_bytes());
        let mut copy = self.connection.copy_in_raw("copy relation from stdin (format binary)").await?;
        copy.send(bytes).await?;
        copy.finish().await
    }

    /// All rows as Postgres shows them.
    async fn shown(&mut self) -> Vec<Vec<Option<String>>> {
        let columns: Vec<String> = self.columns.iter().map(|column| format!("\"{}\"::text", column.name)).collect();
        let query = format!("select {} from relation", columns.join(", "));
        let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(&mut self.connection).await.unwrap();
        rows.iter().map(|row| (0..self.columns.len()).map(|index| row.get(index)).collect()).collect()
    }
}

fn transcoded(transcoder: &Transcoder, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    transcoder.append(payload, &mut Scratch::default(), &mut out).unwrap();
    out
}

#[tokio::test]
async fn every_avro_type_arrives_as_what_it_is() {
    let cases: Vec<Case> = scalars().into_iter().chain(nested()).collect();
    let schema = schema_of(&cases, false);
    let transcoder = Transcoder::compile(&schema, &schema).unwrap();
    let mut table = Table::for_columns(columns_of(&schema).unwrap()).await;
    let payload = encoded(&schema, &record(cases.iter().map(|(_, value, _)| value.clone())));
    table.copy(&[transcoded(&transcoder, &payload)]).await.unwrap();
    let row = table.shown().await.remove(0);
    for ((field_type, _, wanted), seen) in cases.iter().zip(&row) {
        assert_eq!(seen.as_deref(), Some(*wanted), "{field_type}");
    }
}

#[tokio::test]
async fn null_of_every_type_is_a_null() {
    let cases: Vec<Case> = scalars().into_iter().chain(nested()).collect();
    let schema = schema_of(&cases, true);
    let transcoder = Transcoder::compile(&schema, &schema).unwrap();
    let mut table = Table::for_columns(columns_of(&schema).unwrap()).await;
    let null =
        |(field_type, ..): &Case| Value::Union(if field_type.starts_with('[') { 2 } else { 0 }, Box::new(Value::Null));
    let payload = encoded(&schema, &record(cases.iter().map(null)));
    table.copy(&[transcoded(&transcoder, &payload)]).await.unwrap();
    assert!(table.shown().await.remove(0).iter().all(Option::is_none));
}

#[tokio::test]
async fn types_are_spelt_as_postgres_spells_them() {
    let cases: Vec<Case> = scalars().into_iter().chain(nested()).collect();
    let columns = columns_of(&schema_of(&cases, true)).unwrap();
    let mut table = Table::for_columns(columns.clone()).await;
    let query = "select format_type(atttypid, atttypmod), atttypid::bigint from pg_attribute
                 where attrelid = 'relation'::regclass and attnum > 0 order by attnum";
    let rows = sqlx::query(query).fetch_all(&mut table.connection).await.unwrap();
    for (column, row) in columns.iter().zip(&rows) {
        assert_eq!(row.get::<String, _>(0), column.pg_type.sql());
        assert_eq!(row.get::<i64, _>(1), i64::from(column.pg_type.oid()), "{:?}", column.pg_type);
    }
}

#[tokio::test]
async fn versions_of_a_record_are_read_as_one_another() {
    let first = r#"{"type":"record","name":"All","fields":[{"name":"id","type":"string"},{"name":"n","type":"int"},
        {"name":"gone","type":["null","int"],"default":null}]}"#;
    let second = r#"{"type":"record","name":"All","fields":[{"name":"n","type":"int"},
        {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":5,"scale":2},"default":"\u0001\u0000"},
        {"name":"key","aliases":["id"],"type":"string"},{"name":"tags","type":{"type":"array","items":"string"},"default":["x"]}]}"#;
    let (first, second) = (Schema::parse_str(first).unwrap(), Schema::parse_str(second).unwrap());
    let old = encoded(
        &first,
        &Value::Record(vec![
            ("id".into(), Value::String("a".into())),
            ("n".into(), Value::Int(1)),
            ("gone".into(), Value::Union(1, Box::new(Value::Int(2)))),
        ]),
    );
    let mut table = Table::for_columns(columns_of(&second).unwrap()).await;
    let row = transcoded(&Transcoder::compile(&first, &second).unwrap(), &old);
    table.copy(&[row]).await.unwrap();
    assert_eq!(table.shown().await, [["1", "2.56", "a", "{x}"].map(|text| Some(text.to_owned()))]);
}

/// Whatever the transcoder lets through is put into one COPY, which one refused row would fail.
#[tokio::test]
async fn nothing_that_is_let_through_is_refused_by_postgres() {
    let cases: Vec<Case> = scalars().into_iter().chain(nested()).collect();
    let schema = schema_of(&cases, false);
    let transcoder = Transcoder::compile(&schema, &schema).unwrap();
    let payload = encoded(&schema, &record(cases.iter().map(|(_, value, _)| value.clone())));
    let mut rows = Vec::new();
    for at in 0..payload.len() {
        for byte in (0..=255).step_by(3) {
            let mut changed = payload.clone();
            changed[at] = byte;
            let mut out = Vec::new();
            if transcoder.append(&changed, &mut Scratch::default(), &mut out).is_ok() {
                rows.push(out);
            }
        }
    }
    assert!(rows.len() > 1_000, "{} rows", rows.len());
    let mut table = Table::for_columns(columns_of(&schema).unwrap()).await;
    assert_eq!(table.copy(&rows).await.unwrap(), rows.len() as u64);
    assert_eq!(table.shown().await.len(), rows.len());
}

#[tokio::test]
async fn edges_of_what_postgres_stores_are_where_the_transcoder_has_them() {
    let logical = |kind: &str, name: &str| format!(r#"{{"type":"{kind}","logicalType":"{name}"}}"#);
    // The last is what one more of the unit is in Postgres' own.
    for (field_type, ints, unit) in [
        (logical("int", "date"), true, 1),
        (logical("int", "time-millis"), true, 1_000),
        (logical("long", "time-micros"), false, 1),
        (logical("long", "timestamp-millis"), false, 1_000),
        (logical("long", "timestamp-micros"), false, 1),
        (logical("long", "timestamp-nanos"), false, 1),
        (logical("long", "local-timestamp-millis"), false, 1_000),
    ] {
        let schema = format!(r#"{{"type":"record","name":"One","fields":[{{"name":"c0","type":{field_type}}}]}}"#);
        let schema = Schema::parse_str(&schema).unwrap();
        let plain = if ints { Schema::Int } else { Schema::Long };
        let transcoder = Transcoder::compile(&schema, &schema).unwrap();
        let fits = |number: i64| {
            let number = if ints { Value::Int(number as i32) } else { Value::Long(number) };
            let mut out = Vec::new();
            transcoder.append(&encoded(&plain, &number), &mut Scratch::default(), &mut out).ok().map(|()| out)
        };
        let (least, most) = if ints { (i32::MIN.into(), i32::MAX.into()) } else { (i64::MIN, i64::MAX) };
        let mut table = Table::for_columns(columns_of(&schema).unwrap()).await;
        for outermost in [least, most] {
            let edge = edge(0, outermost, |number| fits(number).is_some());
            table.copy(&[fits(edge).unwrap()]).await.unwrap_or_else(|error| panic!("{field_type} {edge}: {error}"));
            if edge == outermost {
                continue;
            }
            // One more, as it would be written: Postgres refuses it too.
            let mut beyond = fits(edge).unwrap();
            step(&mut beyond, unit * outermost.signum());
            let refused = table.copy(&[beyond]).await;
            assert!(refused.is_err(), "{field_type}: Postgres takes what lies beyond {edge}");
        }
    }
}

/// The number furthest from `good` towards `bad` that still fits.
fn edge(good: i64, bad: i64, fits: impl Fn(i64) -> bool) -> i64 {
    if fits(bad) {
        return bad;
    }
    let (mut good, mut bad) = (i128::from(good), i128::from(bad));
    while (bad - good).abs() > 1 {
        let middle = (good + bad) / 2;
        if fits(middle as i64) { good = middle } else { bad = middle }
    }
    good as i64
}

/// Moves the integer in a field.
fn step(field: &mut [u8], by: i64) {
    match &mut field[4..] {
        value if value.len() == 4 => {
            let number = i32::from_be_bytes(value.try_into().unwrap());
            value.copy_from_slice(&(number + by as i32).to_be_bytes());
        }
        value => {
            let number = i64::from_be_bytes((&*value).try_into().unwrap());
            value.copy_from_slice(&(number + by).to_be_bytes());
        }
    }
}
