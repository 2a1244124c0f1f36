//! The words of every fault, as a client reads them.

use super::*;

fn flight() -> Schema {
    record(
        r#"{"name":"carrier","type":"string"},
           {"name":"flight","type":"int"},
           {"name":"scheduled_at","type":{"type":"long","logicalType":"timestamp-micros"}},
           {"name":"fare","type":["null",{"type":"bytes","logicalType":"decimal","precision":8,"scale":2}],"default":null},
           {"name":"cabin","type":{"type":"enum","name":"Cabin","symbols":["ECONOMY","BUSINESS"]},"default":"ECONOMY"},
           {"name":"legs","type":{"type":"array","items":{"type":"record","name":"Leg","fields":[
               {"name":"from","type":"string"},{"name":"day","type":{"type":"int","logicalType":"date"}}]}},"default":[]},
           {"name":"tags","type":{"type":"map","values":"string"},"default":{}}"#,
    )
}

/// The faults of a flight with these other fields.
fn with(rest: &str) -> Vec<String> {
    faults(&flight(), &format!(r#"{{"carrier":"UA","flight":1,"scheduled_at":"2013-01-01T10:15:00Z"{rest}}}"#))
}

/// The fault of a single value.
fn fault(ty: &str, json: &str) -> String {
    let faults = faults(&holder(ty), &format!(r#"{{"x":{json}}}"#));
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.into_iter().next().unwrap()
}

#[test]
fn all_faults_of_a_document_are_told_at_once() {
    assert_eq!(
        faults(
            &flight(),
            r#"{"carier":"UA","flight":"1545","scheduled_at":"2013-01-01T10:15:00","cabin":"BUISNESS","legs":[{"from":"JFK","day":"2013-02-30"},
                {"from":null,"day":"2013-02-28","a/b":1}],"tags":{"x~y":true}}"#
        ),
        [
            r#"/carier: expected a field of test.Event, got field "carier" (did you mean "carrier"?)"#,
            r#"/carrier: expected a string, got nothing"#,
            r#"/flight: expected a 32-bit integer, got string "1545" (write the number without quotes)"#,
            r#"/scheduled_at: expected a timestamp such as 2013-01-01T10:15:00Z, got string "2013-01-01T10:15:00" (add the offset from UTC, such as Z or +01:00)"#,
            r#"/cabin: expected one of ECONOMY, BUSINESS, got string "BUISNESS" (did you mean "BUSINESS"?)"#,
            r#"/legs/0/day: expected a date such as 2013-01-31, got string "2013-02-30" (the calendar has no such day or time)"#,
            r#"/legs/1/from: expected a string, got null"#,
            r#"/legs/1/a~1b: expected a field of test.Leg, got field "a/b" (its fields are from, day)"#,
            r#"/tags/x~0y: expected a string, got true (put it in quotes)"#,
        ]
    );
}

#[test]
fn decimals_say_what_does_not_fit() {
    let expected =
        "/fare: expected a decimal as text, such as \"12.5\", of at most 8 digits, 2 of them after the point or null";
    for (json, got) in [
        ("12.5", "number 12.5 (put it in quotes, so that no digit is lost on the way)"),
        (r#""12.345""#, r#"string "12.345" (round it to 2 digits after the point: nothing is rounded for you)"#),
        (r#""1234567""#, r#"string "1234567" (at most 6 digits can stand before the point)"#),
        ("1234567", "number 1234567 (at most 6 digits can stand before the point)"),
        (r#""1,5""#, r#"string "1,5""#),
        ("true", "true"),
    ] {
        assert_eq!(with(&format!(r#","fare":{json}"#)), [format!("{expected}, got {got}")]);
    }
}

#[test]
fn wrong_kinds_name_both_kinds() {
    for (ty, json, expected) in [
        ("\"string\"", "5", "/x: expected a string, got number 5 (put it in quotes)"),
        ("\"string\"", "{}", "/x: expected a string, got an object"),
        (
            "\"string\"",
            r#""a\u0000b""#,
            r"/x: expected text without \u0000, got text that holds \u0000 (Postgres cannot store it: take it out)",
        ),
        ("\"boolean\"", "\"true\"", "/x: expected true or false, got string \"true\" (write it without quotes)"),
        ("\"boolean\"", "1", "/x: expected true or false, got number 1"),
        ("\"int\"", "1.0", "/x: expected a 32-bit integer, got number 1.0 (write it without fraction and exponent)"),
        (
            "\"int\"",
            "3000000000",
            "/x: expected a 32-bit integer, got number 3000000000 (the range is -2147483648 to 2147483647)",
        ),
        ("\"long\"", "null", "/x: expected a 64-bit integer, got null"),
        ("\"double\"", "1e999", "/x: expected a number, got number 1e999 (it is too large for the type)"),
        ("\"double\"", "\"nan\"", "/x: expected a number, got string \"nan\""),
        ("\"bytes\"", "\"?\"", "/x: expected bytes as base64 text, got string \"?\""),
        (r#"{"type":"fixed","name":"F","size":4}"#, "\"AAAA\"", "/x: expected 4 bytes as base64 text, got 3 bytes"),
        (r#"{"type":"array","items":"int"}"#, "1", "/x: expected an array, got number 1"),
        (r#"{"type":"map","values":"int"}"#, "[]", "/x: expected an object, got an array"),
        (
            r#"{"type":"map","values":"int"}"#,
            r#"{"a":1,"b":2,"\u0061":3}"#,
            "/x/a: expected each field once, got field \"a\" again",
        ),
        (
            r#"{"type":"string","logicalType":"uuid"}"#,
            "\"x\"",
            "/x: expected a UUID such as 01941f29-7c00-7aaa-8000-0123456789ab, got string \"x\"",
        ),
        (
            r#"{"type":"long","logicalType":"timestamp-millis"}"#,
            "1357035300",
            "/x: expected a timestamp such as 2013-01-01T10:15:00Z, got number 1357035300 (write it as text: a bare number could count seconds or milliseconds)",
        ),
        (
            r#"{"type":"long","logicalType":"local-timestamp-millis"}"#,
            "\"2013-01-01T10:15:00Z\"",
            "/x: expected a local timestamp such as 2013-01-01T10:15:00, got string \"2013-01-01T10:15:00Z\" (leave the offset out: this field is a local time)",
        ),
        (
            r#"{"type":"int","logicalType":"time-millis"}"#,
            "\"25:00\"",
            "/x: expected a time of day such as 10:15:00, got string \"25:00\" (the calendar has no such day or time)",
        ),
    ] {
        assert_eq!(fault(ty, json), expected);
    }
}

#[test]
fn wrapped_unions_are_explained() {
    assert_eq!(
        fault(r#"["null","string"]"#, r#"{"string":"UA"}"#),
        r#"/x: expected a string or null, got an object with the field "string" (write the value itself, not wrapped in {"string": …})"#
    );
    assert_eq!(
        fault(r#"["null","string","int"]"#, r#"{"int":5}"#),
        r#"/x: expected null, or a string, or a 32-bit integer, got an object with the field "int" (write the value itself, not wrapped in {"int": …})"#
    );
    assert_eq!(
        fault(r#"["null",{"type":"record","name":"P","fields":[{"name":"a","type":"int"}]}]"#, r#"{"test.P":{"a":1}}"#),
        r#"/x: expected an object (test.P) or null, got an object with the field "test.P" (write the value itself, not wrapped in {"test.P": …})"#
    );
}

#[test]
fn unions_without_a_fitting_branch_tell_the_nearest() {
    let records = r#"[{"type":"record","name":"A","fields":[{"name":"a","type":"int"},{"name":"b","type":"int"}]},
        {"type":"record","name":"B","fields":[{"name":"c","type":"int"},{"name":"d","type":"int"}]}]"#;
    assert_eq!(
        fault(records, r#"{"c":1,"d":"2"}"#),
        "/x: expected an object (test.A), or an object (test.B), got an object \
         (as test.B, /d: expected a 32-bit integer, got string \"2\" (write the number without quotes))"
    );
    assert_eq!(fault(r#"["int","string"]"#, "true"), "/x: expected a 32-bit integer, or a string, got true");
    assert_eq!(
        fault(r#"["string","int"]"#, "1.5"),
        "/x: expected a 32-bit integer, got number 1.5 (write it without fraction and exponent)"
    );
}

#[test]
fn broken_json_is_told_with_its_place() {
    for (json, expected) in [
        ("", "expected a JSON value, got the end of the text"),
        ("[1]", "expected an object (test.Event), got an array"),
        (r#"{"x":1"#, "expected `,` or `}`, got the end of the text"),
        (
            r#"{"x":1,}"#,
            "expected a field name in double quotes, got `}` at byte 7 (take out the comma before it, or add what is missing)",
        ),
        (r#"{"x" 1}"#, "expected `:` after the field name, got `1` at byte 5"),
        (r#"{'x':1}"#, "expected a field name in double quotes, got `'` at byte 1 (use double quotes)"),
        (
            r#"{"x":1} {"x":2}"#,
            "expected the end of the document, got `{` at byte 8 (send several events as an array, or one to a line as application/x-ndjson)",
        ),
        (r#"{"x":01}"#, "/x: expected a number without leading zeros, got `0` at byte 5"),
        (
            r#"{"x":NaN}"#,
            "/x: expected a JSON value, got `N` at byte 5 (write \"NaN\", \"Infinity\" or \"-Infinity\", in quotes)",
        ),
        (r#"{"x":tru}"#, "/x: expected a JSON value, got `t` at byte 5"),
        ("{\"x\":\"a\nb\"}", "/x: expected control characters written as escapes, such as \\n, got `\\n` at byte 7"),
        (r#"{"x":"a"#, "/x: expected the closing quote of a string, got the end of the text"),
        (r#"{"x":"\ud800"}"#, "/x: expected surrogates in pairs, such as \\ud83d\\ude00, got `\\` at byte 6"),
        (
            r#"{"y":[1,]}"#,
            "/y: expected a JSON value, got `]` at byte 8 (take out the comma before it, or add what is missing)",
        ),
    ] {
        assert_eq!(faults(&holder("\"int\""), json), [expected], "{json}");
    }
    let bytes = Encoder::compile(&holder("\"int\""), &[]).unwrap().encode(
        b"{\"x\":\"\xff\"}",
        &mut Vec::new(),
        &mut Captured::new(),
    );
    assert_eq!(bytes.unwrap_err()[0].to_string(), "expected UTF-8 text, got other bytes from byte 6");
}

#[test]
fn a_fault_before_broken_json_is_told_too() {
    assert_eq!(
        faults(&record(r#"{"name":"x","type":"int"},{"name":"y","type":"int"}"#), r#"{"x":"a","y":1"#),
        ["/x: expected a 32-bit integer, got string \"a\"", "expected `,` or `}`, got the end of the text"]
    );
}

#[test]
fn fields_given_twice_are_refused_wherever_they_stand() {
    let schema = record(r#"{"name":"a","type":"int"},{"name":"b","type":"int"},{"name":"c","type":"int"}"#);
    for json in [r#"{"a":1,"a":2,"b":1,"c":1}"#, r#"{"a":1,"b":1,"c":1,"a":1}"#, r#"{"c":1,"a":1,"b":1,"a":1}"#] {
        assert_eq!(faults(&schema, json), ["/a: expected each field once, got field \"a\" again"], "{json}");
    }
    assert_eq!(
        faults(&schema, r#"{"c":1,"c":1,"a":1,"b":1}"#),
        ["/c: expected each field once, got field \"c\" again"]
    );
}

#[test]
fn faults_are_bounded_and_shortened() {
    let schema = holder(r#"{"type":"array","items":"int"}"#);
    let json = format!(r#"{{"x":[{}]}}"#, vec!["\"a\""; 1000].join(","));
    assert_eq!(faults(&schema, &json).len(), crate::schema::limits::MAX_FAULTS);
    let long = fault("\"int\"", &format!("\"{}\"", "é".repeat(1000)));
    assert_eq!(long, format!("/x: expected a 32-bit integer, got string \"{}…\"", "é".repeat(40)));
}

#[test]
fn deep_documents_are_refused() {
    let json = format!(r#"{{"y":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(faults(&holder("\"int\""), &json), ["/y: expected at most 64 levels of nesting, got `[` at byte 68"]);
}
