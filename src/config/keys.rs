//! Every key there is, in one table: from it come defaults, types, checks, the reference in
//! `docs/configuration.md` and the nearest known name for a misspelt one.

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text that may be empty and then means "none".
    OptionalText,
    Address,
    Duration,
    Bytes,
    Count,
    Bool,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A table of settings passed to the Kafka client as they are.
    Passthrough,
}

/// One key.
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    /// Never printed.
    pub secret: bool,
    pub help: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key { name, kind, default, secret: false, help }
}

pub const KEYS: &[Key] = &[
    key("project.dir", Kind::Text, ".", "The folder that holds `schemas/`, `producers/` and `consumers/`."),
    key("kafka.brokers", Kind::Text, "127.0.0.1:9092", "Bootstrap servers, `host:port`, separated by commas."),
    key(
        "kafka.client_id",
        Kind::Text,
        "millpond",
        "The name that brokers know Millpond's clients by, in their logs and quotas. One for each role tells them apart.",
    ),
    key(
        "kafka.replication",
        Kind::Count,
        "0",
        "Replication factor of topics that Millpond creates; 0 leaves it to the cluster. In production: 3, with `min.insync.replicas` 2.",
    ),
    key(
        "kafka.client",
        Kind::Passthrough,
        "",
        "Settings for librdkafka as it names them, such as `security.protocol` and `sasl.password`. Those that the \
         promise rests on (`acks`, `enable.idempotence`, offsets and the like) cannot be set.",
    ),
    Key {
        name: "postgres.url",
        kind: Kind::Text,
        default: "postgres://millpond@127.0.0.1:5432/millpond",
        secret: true,
        help: "The database, as `postgres://user:password@host:port/database`. `ingest` never uses it.",
    },
    key(
        "http.listen",
        Kind::Address,
        "127.0.0.1:8080",
        "Address of the HTTP listener. Any address but loopback needs `http.keys_file` or `http.insecure`.",
    ),
    key(
        "http.keys_file",
        Kind::OptionalText,
        "",
        "File of bearer keys, one a line: name, SHA-256 of the key in hex, producer folders it may use (or `*`). Read again when it changes.",
    ),
    key("http.insecure", Kind::Bool, "false", "Listen on an address other than loopback without keys."),
    key(
        "http.max_connections",
        Kind::Count,
        "4096",
        "Connections open at once. At this number the longest idle ones make room for new ones; while none is idle, new \
         ones are closed. An idle connection costs some 10 KiB, so this many cost 40 MiB; the limit on open files \
         (`ulimit -n`) has to be above it.",
    ),
    key(
        "http.max_connections_per_client",
        Kind::Count,
        "1024",
        "Connections open at once of one address (of IPv6: one /64 network); further ones are closed. A quarter of all, so \
         that no address can take them all. Where a proxy stands before Millpond every connection is the proxy's: set it to \
         `http.max_connections` there.",
    ),
    key(
        "http.max_requests",
        Kind::Count,
        "8192",
        "Requests under way at once; further ones get 503. From half of it on a connection gets one at a time, so that \
         HTTP/2 clients with many streams do not take the place of others. A head may have `http.max_head`: 256 MiB for \
         this many at the very worst.",
    ),
    key(
        "http.head_timeout",
        Kind::Duration,
        "10s",
        "Longest wait for the first request of a connection, and for the rest of a head that has begun. A head is one or two \
         packets; ten seconds let each be lost several times.",
    ),
    key(
        "http.idle_timeout",
        Kind::Duration,
        "75s",
        "How long a connection may stay open without a request. Longer than the 60 s after which most proxies close theirs: \
         so it is they who close, and no request meets a closing connection.",
    ),
    key(
        "http.write_timeout",
        Kind::Duration,
        "20s",
        "How long a client may take nothing of an answer that waits for it. As long as a network that is away for a moment \
         needs to be back.",
    ),
    key(
        "http.max_head",
        Kind::Bytes,
        "32KiB",
        "Longest head of a request: four times what common clients and proxies send at most (8 KiB), for long tokens and \
         traces. Longer ones get 431. At most 100 fields, and 64 KiB of URI, in any case.",
    ),
    key(
        "http.http2_streams",
        Kind::Count,
        "100",
        "Requests at once on one HTTP/2 connection: what RFC 9113 recommends at least.",
    ),
    key(
        "http.http2_resets",
        Kind::Count,
        "100",
        "Requests that a client may give up on one connection; one that gives up more, and more than half of all, loses \
         the connection (rapid reset).",
    ),
    key(
        "http.http2_ping",
        Kind::Duration,
        "20s",
        "How often an HTTP/2 connection is asked whether its client is still there; it has `http.head_timeout` to answer.",
    ),
    key("http.drain", Kind::Duration, "10s", "How long requests under way may take after SIGTERM."),
    key(
        "ingest.max_body",
        Kind::Bytes,
        "64MiB",
        "Longest body of one request, compressed as it comes and again when decompressed. Lenient handling streams, and has \
         no such limit.",
    ),
    key(
        "ingest.max_strict",
        Kind::Bytes,
        "8MiB",
        "Longest request as Avro in strict handling, which holds all of it before the first record is sent.",
    ),
    key(
        "ingest.max_ratio",
        Kind::Count,
        "100",
        "Decompressed bytes for each compressed one, beyond the first MiB. The flights' commands reach 11 with gzip, \
         records that differ in one number 31; bombs have 1,000 and more.",
    ),
    key(
        "ingest.max_record",
        Kind::Bytes,
        "976KiB",
        "Longest record, encoded; must not exceed the topic's `max.message.bytes`.",
    ),
    key(
        "ingest.body_patience",
        Kind::Duration,
        "10s",
        "How long a client may let its body be waited for, beyond what `ingest.body_rate` allows for the bytes that it has \
         sent; then 408.",
    ),
    key(
        "ingest.body_rate",
        Kind::Bytes,
        "1KiB",
        "Bytes a second that a body brings at least, over the time in which it is waited for. The slowest mobile networks \
         bring ten times as much.",
    ),
    key(
        "ingest.request_memory",
        Kind::Bytes,
        "256MiB",
        "Bytes of requests that the process holds at once; above it requests get 503. Of its second half a client holds at \
         most as much as is free, and gets 429 above that.",
    ),
    key(
        "ingest.window",
        Kind::Bytes,
        "4MiB",
        "JSON that is encoded, or waits for Kafka's acknowledgement, at once; above it requests wait, and clients take turns. \
         Requests up to 16 KiB have a window of the same size to themselves. Whoever comes next waits behind one window at \
         most, 50 ms at 80 MB/s; with acknowledgements after 30 ms it lets 140 MB/s through. Raise it where Kafka is far \
         away.",
    ),
    key(
        "ingest.turn_timeout",
        Kind::Duration,
        "10s",
        "Longest wait for a turn; then 503, since what is sent is more than Kafka takes.",
    ),
    key(
        "ingest.in_flight",
        Kind::Bytes,
        "64MiB",
        "Bytes that may wait for Kafka's acknowledgement in this process, with what each record costs beside its bytes; above \
         it requests get 503. Requests over HTTP meet `ingest.window` first.",
    ),
    key(
        "ingest.linger",
        Kind::Duration,
        "1ms",
        "How long a record waits for company before its batch is sent. 1 ms measured best with 64 and with 256 clients.",
    ),
    key(
        "consume.connections",
        Kind::Count,
        "2",
        "Postgres sessions per consumer and process: how many of its partitions may commit at once.",
    ),
    key("consume.max_records", Kind::Count, "5000", "Records per batch."),
    key("consume.max_bytes", Kind::Bytes, "4MiB", "Bytes per batch."),
    key("consume.max_age", Kind::Duration, "5ms", "How long a batch waits to fill up since its first record came."),
    key(
        "publish.transactions",
        Kind::Word(&["auto", "required", "off"]),
        "auto",
        "Whether downstream events leave in transactions, so that readers of committed records see each once. `auto`: unless \
         the cluster forbids them to this account; then at least once, which `status` and `doctor` say. `required`: or not at \
         all. `off`: at least once.",
    ),
    key("serve.connections", Kind::Count, "4", "Postgres connections for reads; each carries many queries at once."),
    key("serve.statement_timeout", Kind::Duration, "2s", "Longest a read may run."),
    key("serve.max_wait", Kind::Duration, "10s", "Longest that a read may wait for a position (`Prefer: wait=N`)."),
    key("serve.default_limit", Kind::Count, "100", "Rows per page when a request names no limit."),
    key("serve.max_limit", Kind::Count, "1000", "Most rows per page."),
    key(
        "log.format",
        Kind::Word(&["auto", "text", "json"]),
        "auto",
        "`auto` is text on a terminal and JSON elsewhere.",
    ),
    key("log.level", Kind::Text, "info", "A level, or directives such as `info,millpond::consume=debug`."),
];

/// The key of that name; settings below `kafka.client` belong to it.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| {
        k.name == name
            || (k.kind == Kind::Passthrough
                && name.starts_with(k.name)
                && name.as_bytes().get(k.name.len()) == Some(&b'.'))
    })
}

/// Keys of the design that nothing acts on yet: a value for one of them would be a promise that is not kept.
pub fn not_yet(name: &str) -> Option<&'static str> {
    match name {
        "registry.url" => Some("the registry is the topic _schemas of kafka.brokers"),
        "consume.dedupe_window" => Some("it decides rows, so each consumer.toml has it as `dedupe_window`"),
        _ => None,
    }
}

/// The environment variable that sets a key: `MILLPOND__HTTP__LISTEN`.
pub fn variable(name: &str) -> String {
    format!("MILLPOND__{}", name.to_uppercase().replace('.', "__"))
}

/// `docs/configuration.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\nGenerated from the code by `millpond config --reference`; do not edit.\n\n\
         Values come from four places, later ones winning: defaults, the file `millpond.toml` (or `--config FILE`), the \
         environment, flags (`--set key=value`). An unknown key is an error that names the nearest known one; all faults \
         are reported at once. `millpond config` prints what is in force, and where each value came from.\n\n\
         While `millpond dev` runs in a project, its Kafka and Postgres stand between the file and the environment for every \
         other command in that project, for roles too: `millpond consume --listen 127.0.0.1:8081` in a second terminal joins it. A role says so when \
         it starts.\n\n",
    );
    let mut section = "";
    for key in KEYS {
        let (this, _) = key.name.split_once('.').unwrap_or((key.name, ""));
        if this != section {
            text.push_str(&format!("## `[{this}]`\n\n| key | default | environment | |\n|---|---|---|---|\n"));
            section = this;
        }
        let default = if key.default.is_empty() { "none".to_owned() } else { format!("`{}`", key.default) };
        text.push_str(&format!("| `{}` | {default} | `{}` | {} |\n", key.name, variable(key.name), key.help));
        let last = KEYS.iter().rposition(|k| k.name.starts_with(&format!("{this}.")));
        if last.is_some_and(|i| KEYS[i].name == key.name) {
            text.push('\n');
        }
    }
    text
}
