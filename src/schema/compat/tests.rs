use super::*;

fn schema(fields: &str) -> Schema {
    Schema::parse_str(&format!(r#"{{"type":"record","name":"Flight","namespace":"test","fields":[{fields}]}}"#))
        .unwrap()
}

fn field(ty: &str) -> Schema {
    schema(&format!(r#"{{"name":"x","type":{ty}}}"#))
}

fn checked(level: CompatibilityLevel, versions: &[&Schema]) -> Vec<String> {
    let numbered: Vec<(u32, &Schema)> = (1..).zip(versions.iter().copied()).collect();
    let (new, earlier) = numbered.split_last().unwrap();
    check(level, *new, earlier).iter().map(ToString::to_string).collect()
}

fn full(old: &Schema, new: &Schema) -> Vec<String> {
    checked(CompatibilityLevel::FullTransitive, &[old, new])
}

#[test]
fn levels_are_written_as_confluent_writes_them() {
    for level in CompatibilityLevel::ALL {
        assert_eq!(level.to_string().parse(), Ok(level));
    }
    assert_eq!("full_transitive".parse(), Ok(CompatibilityLevel::default()));
    assert!(
        "BOTH"
            .parse::<CompatibilityLevel>()
            .unwrap_err()
            .to_string()
            .starts_with("`BOTH` is not a compatibility level")
    );
}

#[test]
fn fields_with_defaults_come_and_go() {
    let one = schema(r#"{"name":"a","type":"int"}"#);
    let two = schema(r#"{"name":"a","type":"int"},{"name":"delay","type":["null","int"],"default":null}"#);
    assert_eq!(full(&one, &two), [""; 0]);
    assert_eq!(full(&two, &one), [""; 0]);
}

#[test]
fn a_field_added_without_a_default_is_named() {
    let one = schema(r#"{"name":"a","type":"int"}"#);
    assert_eq!(
        full(&one, &schema(r#"{"name":"a","type":"int"},{"name":"delay","type":"int"}"#)),
        ["field `delay` was added in v2 without a default: v2 cannot read records of v1; give it one, in \"default\""]
    );
    assert_eq!(
        full(&one, &schema(r#"{"name":"a","type":"int"},{"name":"delay","type":["null","int"]}"#)),
        [
            "field `delay` was added in v2 without a default: v2 cannot read records of v1; give it one, such as \"default\": null (with null first in the union)"
        ]
    );
}

#[test]
fn a_field_removed_that_had_no_default_is_named() {
    assert_eq!(
        full(
            &schema(r#"{"name":"a","type":"int"},{"name":"b","type":"int"}"#),
            &schema(r#"{"name":"a","type":"int"}"#)
        ),
        [
            "field `b` of v1 is missing in v2 and has no default: v1 cannot read records of v2; keep the field: only fields that always had a default can be removed"
        ]
    );
}

#[test]
fn a_field_renamed_is_told_both_ways() {
    let found = full(&field("\"int\""), &schema(r#"{"name":"y","aliases":["x"],"type":"int"}"#));
    assert_eq!(
        found,
        [
            "field `x` of v1 is missing in v2 and has no default: v1 cannot read records of v2; keep the field: only fields that always had a default can be removed"
        ]
    );
}

#[test]
fn types_that_change_are_named_with_both() {
    for (old, new, expected) in [
        (
            "\"int\"",
            "\"long\"",
            vec![
                "field `x` changed from int in v1 to long in v2: v1 cannot read records of v2; keep its type, and add a new field with a default",
            ],
        ),
        (
            "\"long\"",
            "\"int\"",
            vec![
                "field `x` changed from long in v1 to int in v2: v2 cannot read records of v1; keep its type, and add a new field with a default",
            ],
        ),
        ("\"string\"", "\"bytes\"", vec![]),
        (
            r#"{"type":"long","logicalType":"timestamp-millis"}"#,
            r#"{"type":"long","logicalType":"timestamp-micros"}"#,
            vec![
                "field `x` changed from timestamp-millis in v1 to timestamp-micros in v2: v2 cannot read records of v1; keep its type, and add a new field with a default",
                "field `x` changed from timestamp-millis in v1 to timestamp-micros in v2: v1 cannot read records of v2; keep its type, and add a new field with a default",
            ],
        ),
    ] {
        assert_eq!(full(&field(old), &field(new)), expected);
    }
    for (old, new) in [
        (r#""long""#, r#"{"type":"long","logicalType":"timestamp-millis"}"#),
        (
            r#"{"type":"bytes","logicalType":"decimal","precision":8,"scale":2}"#,
            r#"{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}"#,
        ),
        (r#"{"type":"fixed","name":"F","size":4}"#, r#"{"type":"fixed","name":"F","size":5}"#),
        (r#"{"type":"fixed","name":"F","size":4}"#, r#"{"type":"fixed","name":"G","size":4}"#),
        (r#"{"type":"array","items":"int"}"#, r#"{"type":"array","items":"string"}"#),
        (r#"{"type":"map","values":"int"}"#, r#"{"type":"array","items":"int"}"#),
        (r#""string""#, r#"{"type":"enum","name":"E","symbols":["A"]}"#),
    ] {
        assert_eq!(full(&field(old), &field(new)).len(), 2, "{old} {new}");
        assert_eq!(full(&field(old), &field(old)), [""; 0]);
    }
}

#[test]
fn nullability_does_not_change() {
    assert_eq!(
        full(&field("\"int\""), &field(r#"["null","int"]"#)),
        [
            "field `x` can be null in v2 and cannot in v1: v1 cannot read records of v2; a field that was once nullable stays nullable, and one that was not cannot become it: add a new field"
        ]
    );
    assert_eq!(full(&field(r#"["null","int"]"#), &field("\"int\"")).len(), 1);
    assert_eq!(full(&field(r#"["null","int"]"#), &field(r#"["int","null"]"#)), [""; 0]);
}

#[test]
fn unions_neither_grow_nor_shrink() {
    let (small, large) = (field(r#"["null","int"]"#), field(r#"["null","int","string"]"#));
    assert_eq!(
        full(&small, &large),
        [
            "field `x` can be string in v2, which is not in the union of v1: v1 cannot read records of v2; keep the union's types as they were, or add a new field"
        ]
    );
    assert_eq!(checked(CompatibilityLevel::Backward, &[&small, &large]), [""; 0]);
}

#[test]
fn enums_grow_only_with_a_default() {
    let of =
        |symbols: &str, rest: &str| field(&format!(r#"{{"type":"enum","name":"Cabin","symbols":{symbols}{rest}}}"#));
    assert_eq!(
        full(&of(r#"["A"]"#, ""), &of(r#"["A","B"]"#, "")),
        [
            "field `x` can be B in v2, which v1 does not know: v1 cannot read records of v2; symbols can only be added to an enum that had a \"default\" symbol before: use a string, or a new field"
        ]
    );
    assert_eq!(
        full(&of(r#"["A","B"]"#, ""), &of(r#"["A"]"#, "")),
        [
            "field `x` can be B in v1, which v2 does not know: v2 cannot read records of v1; keep the symbols, or give the enum a \"default\" symbol"
        ]
    );
    let default = r#","default":"A""#;
    assert_eq!(full(&of(r#"["A"]"#, default), &of(r#"["A","B"]"#, default)), [""; 0]);
}

#[test]
fn nested_fields_are_named_by_their_path() {
    let nested = |ty: &str| {
        field(&format!(
            r#"["null",{{"type":"record","name":"Leg","fields":[{{"name":"seats","type":{{"type":"array","items":{{"type":"record","name":"Seat","fields":[{{"name":"row","type":{ty}}}]}}}}}}]}}]"#
        ))
    };
    assert_eq!(
        full(&nested("\"string\""), &nested("\"int\""))[0],
        "field `x.seats.row` changed from string in v1 to int in v2: v2 cannot read records of v1; keep its type, and add a new field with a default"
    );
}

#[test]
fn types_used_by_name_are_followed() {
    let of = |ty: &str| {
        schema(&format!(
            r#"{{"name":"from","type":{{"type":"record","name":"Place","fields":[{{"name":"code","type":{ty}}}]}}}},{{"name":"to","type":"Place"}}"#
        ))
    };
    assert_eq!(full(&of("\"int\""), &of("\"int\"")), [""; 0]);
    let found = full(&of("\"int\""), &of("\"string\""));
    assert!(found.iter().any(|text| text.starts_with("field `to.code` changed")), "{found:?}");
}

#[test]
fn each_level_looks_where_it_says() {
    use CompatibilityLevel::*;
    let one = schema(r#"{"name":"a","type":"int"},{"name":"b","type":"int"}"#);
    let two = schema(r#"{"name":"a","type":"int"},{"name":"b","type":"int","default":0}"#);
    let three = schema(r#"{"name":"a","type":"int"}"#);
    let faults = |level| checked(level, &[&one, &two, &three]).len();
    // v3 lacks b: v2 has a default for it, v1 has none.
    assert_eq!(
        [None, Backward, BackwardTransitive, Forward, ForwardTransitive, Full, FullTransitive].map(faults),
        [0, 0, 0, 0, 1, 0, 1]
    );
    assert_eq!(checked(FullTransitive, &[&one]), [""; 0]);
}

#[test]
fn the_name_of_the_record_stays() {
    let other = Schema::parse_str(r#"{"type":"record","name":"Journey","fields":[]}"#).unwrap();
    assert_eq!(
        full(&schema(""), &other)[0],
        "the record changed from record test.Flight in v1 to record Journey in v2: v2 cannot read records of v1; keep its type, and add a new field with a default"
    );
}

#[test]
fn look_alike_unions_do_not_run_away() {
    let mut inner = "\"int\"".to_owned();
    for level in 0..15 {
        let name = |space: &str| {
            format!(r#"{{"type":"record","name":"{space}.R{level}","fields":[{{"name":"f","type":{inner}}}]}}"#)
        };
        inner = if level % 2 == 0 { format!("[\"null\",{}]", name("a")) } else { name("b") };
    }
    assert_eq!(full(&field(&inner), &field(&inner.replace("\"int\"", "\"string\""))).len(), 2);
}
