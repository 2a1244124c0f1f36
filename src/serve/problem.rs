//! What a read answers when it cannot give rows: RFC 9457 bodies, each with a code that the documentation explains.
//!
//! Internal detail (SQL, addresses, Postgres' own words about its inside) goes to the log, never into a body.

use serde_json::json;

use crate::http::{Kind, Problem};

macro_rules! kinds {
    ($($name:ident = $code:literal, $status:literal, $title:literal, $meaning:literal, $remedy:literal;)*) => {
        $(pub const $name: Kind =
            Kind { code: $code, status: $status, title: $title, meaning: $meaning, remedy: $remedy };)*
        /// Every problem of this module, in the order of codes.
        pub const CATALOGUE: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    BAD_QUERY = "MP6001", 400, "the query string is not understood",
        "A parameter does not follow the grammar of reads; `errors` says which, where, and what was expected.",
        "Correct the parameter named in `errors`; docs/reading.md has the grammar with examples.";
    UNKNOWN_COLUMN = "MP6002", 400, "no such column",
        "The query names a column that the table does not show.",
        "Use one of the columns listed under `/v1/views`; `hint` names the nearest.";
    BAD_VALUE = "MP6003", 400, "a value does not fit its column",
        "A value of a filter cannot be read as the type of its column.",
        "Send the value as the type asks for it: RFC 3339 for timestamps, digits for integers. In a URL write `+` as %2B.";
    BAD_OPERATOR = "MP6004", 400, "the operator does not fit the column's type",
        "The filter or order asks for an operation that the type of the column does not have.",
        "Use another operator: like and ilike are for text, is.true for booleans, order needs a type with an order.";
    BAD_CURSOR = "MP6005", 400, "the cursor does not belong to this query",
        "`after` is damaged, or was given by an answer to another table, filter or order.",
        "Take `after` unchanged from the Link header of an answer to the same query, or begin without it.";
    CURSOR_GONE = "MP6006", 410, "the cursor belongs to another version of the projection",
        "The projection was rebuilt and swapped since the page before; its rows may stand in another order now.",
        "Begin again without `after`.";
    BAD_POSITION = "MP6007", 400, "not a position",
        "A position is written topic/partition@offset, several joined by commas.",
        "Send back a Millpond-Position exactly as it was received.";
    FOREIGN_TOPIC = "MP6008", 400, "the projection does not read this topic",
        "The position names a topic that is not an input of the projection, so it would never be reached.",
        "Read a projection of that topic, or leave that part of the position out; `reads` lists the projection's topics.";
    NOT_REACHED = "MP6009", 412, "the projection has not reached the position yet",
        "Within the time given the projection did not apply everything below Millpond-Min-Position.",
        "Ask again, with a longer `Prefer: wait=`; `outcomes` says how far it is and whether it has halted.";
    DEAD_LETTERED = "MP6010", 409, "the record could not be applied",
        "The record below Millpond-Min-Position was set aside as a dead letter: the projection goes on without it.",
        "Read the reason in `outcomes`; an operator sees the record with the command in `next`.";
    UNKNOWN_VIEW = "MP6011", 404, "no such view",
        "No projection or table of that name is served here.",
        "Choose one from `/v1/views`; `hint` names the nearest.";
    UNREAD_TOPIC = "MP6012", 404, "no projection reads this topic",
        "None of the projections served here has the topic as an input.",
        "Check the topic's name; `/v1/views` lists the topics that each view is built from.";
    NOT_ACCEPTABLE = "MP6013", 406, "no acceptable format",
        "The Accept header allows none of the formats of this resource.",
        "Accept application/json, application/x-ndjson, text/csv or application/vnd.pgrst.object+json.";
    NOT_ONE_ROW = "MP6014", 406, "not exactly one row",
        "application/vnd.pgrst.object+json asks for exactly one row, and the query has none or several.",
        "Filter by the whole key, or accept application/json.";
    TIMED_OUT = "MP6015", 504, "the query took too long",
        "Postgres stopped the query at its time limit.",
        "Filter or order by the key or by an indexed column, ask for fewer rows, or index the column in the consumer.";
    UNAVAILABLE = "MP6016", 503, "the database cannot be reached",
        "There is no connection to Postgres, or it refused the query for a reason that passes, or for want of a grant.",
        "Ask again after the time in Retry-After. Operators: see /readyz and `millpond doctor`; a missing grant is named.";
    BUSY = "MP6017", 503, "too many requests at once",
        "As many reads as allowed are running, or waiting for a position, on this node.",
        "Ask again after the time in Retry-After, or ask another node.";
    NOT_LIVE = "MP6018", 503, "the projection is not readable yet",
        "The projection's first version is still being built, or its tables are not there.",
        "Ask again after the time in Retry-After; `millpond status` shows how far it is.";
    INTERNAL = "MP6019", 500, "the read failed inside",
        "Postgres answered with an error that this query should not be able to cause. The log has it.",
        "Operators: look for `read failed` in the log, and check the rights of serve's database account.";
    PARKED = "MP6020", 409, "the record waits with its key",
        "The record below Millpond-Min-Position, or one of the same key before it, could not be applied; both wait in order.",
        "Read the reason in `outcomes`; once an operator has decided about the record in `next`, the position can be read.";
}

impl From<super::grammar::SyntaxError> for Problem {
    fn from(error: super::grammar::SyntaxError) -> Self {
        let place = json!([{
            "parameter": error.parameter, "at": error.at, "expected": error.expected, "got": error.got,
        }]);
        BAD_QUERY.problem(error.to_string()).with("errors", place).hint(error.hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_ascend() {
        let codes: Vec<&str> = CATALOGUE.iter().map(|kind| kind.code).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
    }
}
