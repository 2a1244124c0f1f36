//! Of the grammar: what is printed is parsed, what is not in it is refused with its place, nothing panics.

use proptest::prelude::*;

use super::*;
use crate::serve::grammar::{RESERVED, encode};

fn one(raw: &str) -> Filter {
    parse(raw).unwrap_or_else(|error| panic!("{raw}: {error}")).filters.remove(0).filter
}

fn compare(column: &str, comparison: Comparison, value: &str) -> Filter {
    Filter::Is { column: column.to_owned(), test: Test::Compare(comparison, value.to_owned()) }
}

#[test]
fn filters_of_postgrest_are_understood() {
    use Comparison::{Eq, Gt};
    assert_eq!(one("carrier=eq.UA"), compare("carrier", Eq, "UA"));
    assert_eq!(one("carrier=not.eq.UA"), Filter::Not(Box::new(compare("carrier", Eq, "UA"))));
    assert_eq!(one("at=gt.2013-01-01T00:00:00%2B00:00"), compare("at", Gt, "2013-01-01T00:00:00+00:00"));
    // On its own a value is taken as it is, in a group it may be quoted.
    assert_eq!(one("name=eq.\"a,b)\""), compare("name", Eq, "\"a,b)\""));
    assert_eq!(
        one("or=(name.eq.\"a,\\\"b)\",x.gt.1)"),
        Filter::Any(vec![compare("name", Eq, "a,\"b)"), compare("x", Gt, "1")])
    );
    let list = Test::In(vec!["a".into(), "b".into(), "c,d".into(), String::new()]);
    let list = Filter::Is { column: "x".into(), test: list };
    assert_eq!(one("x=in.(a,b,\"c,d\",)"), list);
    // A raw `"` does not get past HTTP; the second is what `curl --data-urlencode` makes of it.
    assert_eq!(one("x=in.(a,b,%22c,d%22,)"), list);
    assert_eq!(one("x=in.%28a%2cb%2c%22c%2cd%22%2c%29"), list);
    let nothing = Filter::Is { column: "x".into(), test: Test::In(vec![]) };
    assert_eq!(one("x=in.()"), nothing);
    assert_eq!(one("x=is.not_null"), Filter::Is { column: "x".into(), test: Test::Is(Known::NotNull) });
    let nested = Filter::All(vec![
        compare("a", Eq, "1"),
        Filter::Any(vec![compare("b", Gt, "2"), Filter::Is { column: "c".into(), test: Test::Is(Known::Null) }]),
    ]);
    assert_eq!(one("and=(a.eq.1,or(b.gt.2,c.is.null))"), nested);
    assert_eq!(one("not.and=(a.eq.1, or(b.gt.2, c.is.null) )"), Filter::Not(Box::new(nested)));
}

#[test]
fn select_and_order_of_postgrest_are_understood() {
    let query = parse("select=a,shown:b,c::text&order=a.desc.nullslast,b,c.nullsfirst&limit=7&after=xyz").unwrap();
    let selected = |column: &str, alias: Option<&str>, as_text| Selected {
        column: column.to_owned(),
        alias: alias.map(str::to_owned),
        as_text,
    };
    assert_eq!(
        query.select,
        [selected("a", None, false), selected("b", Some("shown"), false), selected("c", None, true)]
    );
    let ordered =
        |column: &str, descending, nulls_first| Ordered { column: column.to_owned(), descending, nulls_first };
    assert_eq!(
        query.order,
        [ordered("a", true, Some(false)), ordered("b", false, None), ordered("c", false, Some(true))]
    );
    assert_eq!((query.limit, query.after.as_deref()), (Some(7), Some("xyz")));
    assert_eq!(parse("select=*").unwrap(), Query::default());
    assert_eq!(parse("").unwrap(), Query::default());
}

#[test]
fn faults_name_parameter_place_and_expectation() {
    for (raw, at, expected) in [
        ("carrier=UA", Some(0), "an operator"),
        ("carrier=equals.UA", Some(0), "an operator"),
        ("x=in.a,b", Some(3), "`(`"),
        ("x=in.(a,b", Some(7), "`,` or `)`"),
        ("x=is.nothing", Some(3), "null, not_null"),
        ("or=(a.eq.1", Some(7), "`,` or `)`"),
        ("or=(a.eq.1)x", Some(8), "the end"),
        ("or=a.eq.1", Some(0), "`(`"),
        ("or=(a)", Some(2), "`.`"),
        ("or=(a.eq.\"x)", Some(6), "a closing"),
        ("limit=-1", Some(0), "a number"),
        ("limit=99999999999", Some(0), "a number"),
        ("limit=1&limit=2", None, "the parameter once"),
        ("order=a.sideways", Some(1), "column["),
        ("order=a,a.desc", None, "each column once"),
        ("select=a,b:a", None, ""),
        ("select=a,a", None, "each name once"),
        ("select=", Some(0), "a column"),
        ("select=a::int", Some(1), "no cast"),
        ("select=a->b", Some(1), "a column by its name"),
        ("select=a(b)", Some(1), "a column by its name"),
        ("x=like.a%5C%5C%5C", Some(5), "a pattern"),
        ("x=eq.%zz", None, "percent-encoded"),
        ("x=eq.%ff", None, "percent-encoded"),
        ("x=eq.a%00b", None, "percent-encoded"),
        ("offset=10", None, "no `offset`"),
    ] {
        match parse(raw) {
            Ok(_) => assert_eq!(expected, "", "{raw} was let through"),
            Err(error) => {
                assert_eq!(error.at, at, "{raw}: {error}");
                assert!(!expected.is_empty() && error.expected.starts_with(expected), "{raw}: {error}");
            }
        }
    }
    let hint = parse("x=eqq.1").unwrap_err().hint.unwrap();
    assert!(hint.contains("`eq.`"), "{hint}");
}

#[test]
fn queries_beyond_the_bounds_are_refused() {
    let conditions = |n: usize| format!("and=({})", vec!["a.eq.1"; n].join(","));
    assert!(parse(&conditions(MAX_CONDITIONS)).is_ok());
    assert!(parse(&conditions(MAX_CONDITIONS + 1)).is_err());
    let nested = |n: usize| format!("and={}a.eq.1{}", "(and".repeat(n - 1) + "(", ")".repeat(n));
    assert!(parse(&nested(MAX_DEPTH)).is_ok());
    assert!(parse(&nested(MAX_DEPTH + 1)).is_err());
    assert!(parse(&nested(1000)).is_err());
    assert!(parse(&format!("x=in.({})", vec!["1"; MAX_LIST + 1].join(","))).is_err());
    assert!(parse(&format!("x=eq.{}", "a".repeat(MAX_QUERY_BYTES))).is_err());
}

/// A whole query as an encoded query string; the inverse of `parse`.
fn to_query_string(query: &Query) -> String {
    let list = |items: Vec<String>| items.join(",");
    let mut pairs: Vec<(String, String)> = Vec::new();
    if !query.select.is_empty() {
        pairs.push(("select".to_owned(), list(query.select.iter().map(ToString::to_string).collect())));
    }
    for param in &query.filters {
        pairs.push((param.name.clone(), parameter_value(&param.filter)));
    }
    if !query.order.is_empty() {
        pairs.push(("order".to_owned(), list(query.order.iter().map(ToString::to_string).collect())));
    }
    pairs.extend(query.limit.map(|limit| ("limit".to_owned(), limit.to_string())));
    pairs.extend(query.after.clone().map(|after| ("after".to_owned(), after)));
    let encoded: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    encoded.join("&")
}

/// As a parameter of its own, where a single value stands bare.
fn parameter_value(filter: &Filter) -> String {
    match filter {
        Filter::Is { test: Test::Compare(comparison, value), .. } => format!("{}.{value}", comparison.word()),
        Filter::Is { test: Test::Like { pattern, ignore_case }, .. } => {
            format!("{}.{pattern}", if *ignore_case { "ilike" } else { "like" })
        }
        Filter::Is { test, .. } => test.to_string(),
        Filter::Not(inner) => match &**inner {
            Filter::Is { .. } => format!("not.{}", parameter_value(inner)),
            group => parameter_value(group),
        },
        group => group.to_string().trim_start_matches("and").trim_start_matches("or").to_owned(),
    }
}

fn parameter_name(filter: &Filter) -> String {
    match filter {
        Filter::All(_) => "and".to_owned(),
        Filter::Any(_) => "or".to_owned(),
        Filter::Is { column, .. } => column.clone(),
        Filter::Not(inner) => match &**inner {
            Filter::Is { column, .. } => column.clone(),
            group => format!("not.{}", parameter_name(group)),
        },
    }
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z_]{1,8}", "[ -~äß€]{1,8}"]
        .prop_filter("a name of a parameter", |name| !RESERVED.contains(&name.as_str()) && !name.starts_with("not."))
}

fn tests() -> impl Strategy<Value = Test> {
    let value = || prop_oneof!["[a-zA-Z0-9]{0,6}", "[^\0]{0,12}"];
    prop_oneof![
        ((0..6_usize), value()).prop_map(|(i, value)| Test::Compare(Comparison::ALL[i].0, value)),
        prop::collection::vec(value(), 0..5).prop_map(Test::In),
        (value().prop_map(|v| v.replace('\\', "")), any::<bool>())
            .prop_map(|(pattern, ignore_case)| Test::Like { pattern, ignore_case }),
        (0..5_usize).prop_map(|i| Test::Is(Known::ALL[i].0)),
    ]
}

fn filters() -> impl Strategy<Value = Filter> {
    let leaf = (names(), tests()).prop_map(|(column, test)| Filter::Is { column, test });
    leaf.prop_recursive(4, 24, 4, |inner| {
        let items = prop::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            items.clone().prop_map(Filter::All),
            items.prop_map(Filter::Any),
            inner.prop_filter("not not", |f| !matches!(f, Filter::Not(_))).prop_map(|f| Filter::Not(Box::new(f))),
        ]
    })
}

fn queries() -> impl Strategy<Value = Query> {
    let selected = (names(), prop::option::of(names()), any::<bool>()).prop_map(|(column, alias, as_text)| Selected {
        column,
        alias,
        as_text,
    });
    let ordered = (names(), any::<bool>(), prop::option::of(any::<bool>()))
        .prop_map(|(column, descending, nulls_first)| Ordered { column, descending, nulls_first });
    let parts = (
        prop::collection::vec(selected, 0..4),
        prop::collection::vec(ordered, 0..4),
        prop::option::of(any::<u32>()),
        prop::option::of("[^\0]{0,20}"),
        prop::collection::vec(filters(), 0..3),
    );
    parts.prop_map(|(mut select, mut order, limit, after, filters)| {
        let mut seen = Vec::new();
        select.retain(|item: &Selected| {
            !seen.contains(&item.shown_as().to_owned()) && {
                seen.push(item.shown_as().to_owned());
                true
            }
        });
        seen.clear();
        order.retain(|item: &Ordered| {
            !seen.contains(&item.column) && {
                seen.push(item.column.clone());
                true
            }
        });
        let filters = filters.into_iter().map(|filter| Param { name: parameter_name(&filter), filter }).collect();
        Query { select, order, limit, after, filters }
    })
}

proptest! {
    #[test]
    fn what_is_printed_is_parsed(query in queries()) {
        let text = to_query_string(&query);
        prop_assume!(text.len() <= MAX_QUERY_BYTES);
        let parsed = parse(&text);
        prop_assert_eq!(parsed.as_ref(), Ok(&query), "{}", text);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn nothing_like_a_query_makes_the_parser_panic(
        text in "((select|order|limit|after|and|or|not\\.or|a)=[a-z.,:()\"\\\\%*0-9 €-]{0,40}&?){0,4}") {
        let _ = parse(&text);
    }
}
