//! The problems that ingest answers, for the error catalogue.

use crate::http::Kind;

/// All of them, in the order of their codes.
pub const CATALOGUE: &[&Kind] = &[
    &UNKNOWN_TYPE,
    &OTHER_KIND,
    &MEDIA_TYPE,
    &CONTENT_ENCODING,
    &REQUEST_HEADER,
    &EMPTY_BODY,
    &BODY_TOO_LARGE,
    &TOO_LARGE_FOR_STRICT,
    &INVALID_RECORDS,
    &SLOW_BODY,
    &BROKEN_BODY,
    &RATE_LIMIT,
    &OVERLOADED,
    &NOT_REGISTERED,
    &NOT_WRITTEN,
    &UNKNOWN_OUTCOME,
    &PARTLY_WRITTEN,
    &CLIENT_SHARE,
    &NO_TURN,
];

/// No producer folder has the type.
pub const UNKNOWN_TYPE: Kind = Kind {
    code: "MP1001",
    status: 404,
    title: "no such record type",
    meaning: "no producer folder declares the record type that the path names",
    remedy: "use one of the names in `near`, list them with GET /v1/commands and GET /v1/events, or add the type to a producer.toml",
};
/// A command was sent as an event, or the other way round.
pub const OTHER_KIND: Kind = Kind {
    code: "MP1002",
    status: 404,
    title: "the record type is of the other kind",
    meaning: "the type is a command and was sent to /v1/events, or the other way round",
    remedy: "send it to the path in `use`",
};
/// The media type is not one of ours.
pub const MEDIA_TYPE: Kind = Kind {
    code: "MP1003",
    status: 415,
    title: "media type not accepted",
    meaning: "the Content-Type is neither JSON nor NDJSON",
    remedy: "send application/json (one object or an array) or application/x-ndjson (one object a line)",
};
/// The content encoding is not one of ours.
pub const CONTENT_ENCODING: Kind = Kind {
    code: "MP1004",
    status: 415,
    title: "content encoding not accepted",
    meaning: "the Content-Encoding is not gzip, zstd or identity, or several are stacked",
    remedy: "compress with gzip or zstd, once, or not at all",
};
/// A request header or parameter cannot be read.
pub const REQUEST_HEADER: Kind = Kind {
    code: "MP1005",
    status: 400,
    title: "a header or parameter is faulty",
    meaning: "Idempotency-Key, Content-Length or a query parameter has a value that cannot be used",
    remedy: "mend the one that the detail names",
};
/// Nothing came.
pub const EMPTY_BODY: Kind = Kind {
    code: "MP1006",
    status: 422,
    title: "the body is empty",
    meaning: "the body holds no record",
    remedy: "send a JSON object, an array of them, or NDJSON",
};
/// The body is beyond a limit.
pub const BODY_TOO_LARGE: Kind = Kind {
    code: "MP1007",
    status: 413,
    title: "the body is too large",
    meaning: "the body as sent, or as decompressed, is larger than this listener takes, or its compression ratio is that of a bomb",
    remedy: "send it in parts, or as NDJSON or an array with Prefer: handling=lenient, which streams",
};
/// The request cannot be held whole.
pub const TOO_LARGE_FOR_STRICT: Kind = Kind {
    code: "MP1008",
    status: 413,
    title: "the request is too large to be all or nothing",
    meaning: "strict handling checks and encodes the whole request before the first record is sent, and this one is larger than what is held for that",
    remedy: "send Prefer: handling=lenient, which streams and reports the records it refused, or send it in parts",
};
/// Some records are at fault.
pub const INVALID_RECORDS: Kind = Kind {
    code: "MP1009",
    status: 422,
    title: "records are invalid",
    meaning: "records do not fit their schema or contract; `errors` has the place, what was expected and what came; nothing was written",
    remedy: "mend the records named, or send Prefer: handling=lenient to have the good ones written",
};
/// The body came too slowly, or not at all.
pub const SLOW_BODY: Kind = Kind {
    code: "MP1010",
    status: 408,
    title: "the body came too slowly",
    meaning: "the client was silent for too long, or slower than the least rate, while its body was awaited",
    remedy: "send the request again; check the network between the client and this listener",
};
/// The body ended early or its compression is damaged.
pub const BROKEN_BODY: Kind = Kind {
    code: "MP1011",
    status: 400,
    title: "the body is damaged",
    meaning: "the body ended before its end, or is not what its Content-Encoding says",
    remedy: "send it again; check that Content-Encoding is set only on compressed bodies",
};
/// The client sends more than its share.
pub const RATE_LIMIT: Kind = Kind {
    code: "MP1012",
    status: 429,
    title: "too many records",
    meaning: "the client has sent more records than its producer folder allows in the time",
    remedy: "wait for Retry-After seconds, or have `rate` under [limits] of the producer.toml raised",
};
/// This process holds as much as it may.
pub const OVERLOADED: Kind = Kind {
    code: "MP1013",
    status: 503,
    title: "too much in flight",
    meaning: "this process holds as many bytes of requests as it may; nothing of this one was written",
    remedy: "retry after Retry-After seconds; if it lasts, add an ingest process or raise its in-flight bytes",
};
/// The type's schema has no id yet.
pub const NOT_REGISTERED: Kind = Kind {
    code: "MP1014",
    status: 503,
    title: "the schema is not registered",
    meaning: "records carry the id of their schema, and the registry has none for this one",
    remedy: "run `millpond schema push`; ingest takes the id up by itself",
};
/// Certainly nothing was written.
pub const NOT_WRITTEN: Kind = Kind {
    code: "MP1015",
    status: 503,
    title: "not written",
    meaning: "Kafka does not take records now, or refused these; nothing of the request is in the log",
    remedy: "retry after Retry-After seconds; it cannot double anything",
};
/// Nobody can say whether it was written.
pub const UNKNOWN_OUTCOME: Kind = Kind {
    code: "MP1016",
    status: 504,
    title: "the outcome is unknown",
    meaning: "records were handed to Kafka and no acknowledgement came in time: they may or may not be in the log",
    remedy: "retry with the same ids where they are the client's (Idempotency-Key, or the contract's field): each record takes effect once within the dedupe_window of its consumers; where they are not, a retry may double the records",
};
/// Some were written and some were not.
pub const PARTLY_WRITTEN: Kind = Kind {
    code: "MP1017",
    status: 503,
    title: "written in part",
    meaning: "some records of the request are in the log and others certainly are not; `records` says which",
    remedy: "retry the records that were not written, or all of them with the same ids where they are the client's: what is in the log already has no second effect",
};
/// One client holds all that one client may.
pub const CLIENT_SHARE: Kind = Kind {
    code: "MP1018",
    status: 429,
    title: "the client holds its share",
    meaning: "requests of this client, by key or else by address, hold as much memory as one client gets while it is scarce; other clients still have room",
    remedy: "send fewer or smaller requests at once, or large ones with Prefer: handling=lenient, which holds little of each; retry after Retry-After seconds",
};
/// The request waited for its turn for too long.
pub const NO_TURN: Kind = Kind {
    code: "MP1019",
    status: 503,
    title: "no turn came",
    meaning: "more is sent than Kafka takes: the request waited for its client's turn as long as requests do, or too many of the client's were waiting already; nothing of it was written",
    remedy: "retry after Retry-After seconds; if it lasts, send fewer requests at once, add an ingest process, or look at what slows Kafka",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_without_gaps() {
        let codes: Vec<&str> = CATALOGUE.iter().map(|kind| kind.code).collect();
        let wanted: Vec<String> = (1..=CATALOGUE.len()).map(|n| format!("MP1{n:03}")).collect();
        assert_eq!(codes, wanted);
    }
}
