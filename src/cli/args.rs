//! The tree of commands, singular nouns throughout. Doc comments are the help text.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// An event-driven backend in one binary: HTTP → Kafka → Postgres projections → HTTP.
///
/// Start with `millpond dev`: it brings its own Kafka and Postgres, and prints three lines to try.
#[derive(Debug, Parser)]
#[command(name = "millpond", version, max_term_width = 110)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args, Clone, Default)]
pub struct Common {
    /// Configuration file [default: millpond.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, as in `--set consume.max_records=1000`; `millpond config` lists them
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The folder with schemas/, producers/ and consumers/ (project.dir)
    #[arg(long, global = true, value_name = "DIR")]
    pub project: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything on this machine: real Kafka and Postgres as child processes, all roles, real flights
    Dev(Dev),
    /// All roles in one process, against the Kafka and Postgres that the configuration names
    All(Role),
    /// ROLE: take commands and events over HTTP and write them to Kafka (never touches Postgres)
    Ingest(Role),
    /// ROLE: apply the log to projections
    Consume(Role),
    /// ROLE: answer reads from projections (never touches Kafka)
    Serve(Role),
    /// ROLE: send events from the outbox to Kafka
    Publish(Role),
    /// Start a project of your own in DIR
    New {
        dir: PathBuf,
        /// Add a crate for handlers in Rust
        #[arg(long)]
        rust: bool,
        /// With --rust: where the crate `millpond` is (a path to its source)
        #[arg(long, value_name = "PATH", requires = "rust")]
        millpond: Option<PathBuf>,
    },
    /// Print the configuration in force, and where each value came from
    Config {
        /// Print the reference of all keys, in Markdown
        #[arg(long)]
        reference: bool,
    },
    /// Check broker, database, schemas and clock, and say what to do
    Doctor,
    /// Show how each projection is doing; exits with 1 when one needs attention
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Check and register Avro schemas
    #[command(subcommand)]
    Schema(Schema),
    /// Contracts for those who post
    #[command(subcommand)]
    Producer(Producer),
    /// Projections: write, try, test, pause
    #[command(subcommand)]
    Consumer(Consumer),
    /// Show what the folders ask for that this database does not have yet, how much has to be read for it, and what to type
    Plan {
        /// Exit with 1 while processes with these folders would refuse to run some of them, for CI
        #[arg(long)]
        check: bool,
        #[arg(long)]
        json: bool,
    },
    /// Build a projection anew from the log, beside the live one; then show what differs, and ask before it takes its place
    Rebuild(Rebuild),
    /// Show in which rows the version that is being built differs from the live one, both at the same offsets
    Diff {
        name: String,
        #[arg(long, value_enum, default_value_t = DiffFormat::Text)]
        format: DiffFormat,
        /// Rows to show of each kind and table
        #[arg(long, default_value_t = 10, value_name = "ROWS")]
        samples: usize,
    },
    /// Make the version that is being built the live one
    Swap {
        name: String,
        /// Refuse if more rows than this differ
        #[arg(long, value_name = "ROWS")]
        max_changed: Option<i64>,
        #[command(flatten)]
        keep: Keep,
    },
    /// Go back to the version that was live before the last swap
    Rollback {
        name: String,
        #[command(flatten)]
        keep: Keep,
    },
    /// Try what a consumer's folder makes of a part of the log, in scratch tables that nobody reads and that expire
    Replay(Replay),
    /// Look into topics
    #[command(subcommand)]
    Topic(Topic),
    /// Records that could not be applied
    #[command(subcommand)]
    Dlq(Dlq),
    /// Errors, halts and classes of dead letters by code: what it means and what to do
    Explain {
        /// A code such as MP1004, poison or decode; without it, all
        code: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct Rebuild {
    pub name: String,
    /// Make it the live version when it has caught up, without asking
    #[arg(long)]
    pub swap: bool,
    /// With --swap: only if no more rows than this differ
    #[arg(long, value_name = "ROWS", requires = "swap")]
    pub max_changed: Option<i64>,
    /// Remove what is being built, and build nothing
    #[arg(long, conflicts_with_all = ["swap", "throttle", "parallel", "full_speed"])]
    pub give_up: bool,
    /// Apply at most so many records a second
    #[arg(long, value_name = "RECORDS")]
    pub throttle: Option<u32>,
    /// Apply so many partitions at a time (else consume.connections)
    #[arg(long, value_name = "PARTITIONS", value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: Option<u16>,
    /// Make no room for live projections that fall behind
    #[arg(long)]
    pub full_speed: bool,
    /// Say everything in JSON, a line each; so does every output that is not a terminal
    #[arg(long)]
    pub json: bool,
    /// Rows to show of each kind and table
    #[arg(long, default_value_t = 10, value_name = "ROWS")]
    pub samples: usize,
    #[command(flatten)]
    pub keep: Keep,
}

#[derive(Debug, Args)]
pub struct Replay {
    pub name: String,
    /// Where to begin: `start`, an offset, an RFC 3339 time, or a position
    #[arg(long, default_value = "start", value_name = "PLACE")]
    pub from: String,
    /// Where to end, before that record [default: where the live version stands]
    #[arg(long, value_name = "PLACE")]
    pub until: Option<String>,
    /// Only records of this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only records with such a field, as in `--where 'delay_minutes>=15'`; if given more than once, all must hold
    #[arg(long = "where", value_name = "FIELD=VALUE")]
    pub conditions: Vec<String>,
    /// A folder to try in the place of the project's own; several are tried side by side
    #[arg(long = "candidate", value_name = "DIR")]
    pub candidates: Vec<PathBuf>,
    /// For how many hours the scratch tables stay
    #[arg(long = "keep", value_name = "HOURS", default_value_t = 24.0)]
    pub hours: f64,
    /// Say everything in JSON, a line each; so does every output that is not a terminal
    #[arg(long)]
    pub json: bool,
    /// Rows to show of each kind and table
    #[arg(long, default_value_t = 10, value_name = "ROWS")]
    pub samples: usize,
    /// Apply at most so many records a second, of each candidate
    #[arg(long, value_name = "RECORDS")]
    pub throttle: Option<u32>,
    /// Make no room for live projections that fall behind
    #[arg(long)]
    pub full_speed: bool,
    /// Remove all scratch tables of the projection now, and try nothing
    #[arg(long, conflicts_with_all = ["from", "until", "key", "conditions", "candidates", "throttle", "full_speed"])]
    pub drop: bool,
}

#[derive(Debug, Args)]
pub struct Keep {
    /// For how many hours the version before is kept up to date, to go back to
    #[arg(long = "keep", value_name = "HOURS", default_value_t = 24.0)]
    pub hours: f64,
    /// Who swaps, for the record [default: the user who is logged in]
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DiffFormat {
    Text,
    Json,
    Csv,
}

#[derive(Debug, Args, Default)]
pub struct Role {
    /// Address to listen on (http.listen)
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Bootstrap servers (kafka.brokers)
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka: Option<String>,
    /// Database URL (postgres.url)
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,
    /// Allow an address other than loopback without keys (http.insecure)
    #[arg(long)]
    pub insecure: bool,
}

#[derive(Debug, Args, Default)]
pub struct Dev {
    /// Empty Kafka, Postgres and everything else in .millpond first
    #[arg(long)]
    pub reset: bool,
    /// Use this Kafka instead of starting one
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka: Option<String>,
    /// Use this Postgres instead of starting one
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,
    /// Do not post the flights
    #[arg(long)]
    pub no_demo: bool,
    /// How many days of flights to post per minute
    #[arg(long, value_name = "DAYS", default_value_t = 1.0)]
    pub demo_speed: f64,
    /// Allow an address other than loopback without keys (http.insecure)
    #[arg(long)]
    pub insecure: bool,
    /// Address to listen on; the next free port is taken when it is in use [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Schema {
    /// Check the folder schemas/ (and, when it can be reached, the registry); exits with 1 on a fault, for CI
    Check {
        /// Only the files: do not ask the registry
        #[arg(long)]
        offline: bool,
    },
    /// Register what the registry does not have yet, and create the topics that the folders declare
    Push,
    /// List what is registered
    List,
}

#[derive(Debug, Subcommand)]
pub enum Producer {
    /// Write a schema, a contract and examples from a sample of the JSON that will be posted
    New {
        name: String,
        /// A file with one JSON object
        #[arg(long, value_name = "SAMPLE.json")]
        from: PathBuf,
        /// Name of the record type [default: from NAME]
        #[arg(long = "type", value_name = "TYPE")]
        record_type: Option<String>,
        /// Topic [default: NAME.events.v1, or NAME.commands.v1 with --command]
        #[arg(long)]
        topic: Option<String>,
        /// Field that is the key: records with the same key stay in order [default: the first field]
        #[arg(long)]
        key: Option<String>,
        /// The record is a command, not an event
        #[arg(long)]
        command: bool,
    },
    /// Run the examples of every contract, or of one
    Test { name: Option<String> },
    /// Make a bearer key: prints it once, and the line for the keys file (http.keys_file)
    Key {
        /// Whose key it is; shown in logs and metrics
        client: String,
        /// Producer folders it may use; all without any
        #[arg(long = "for", value_name = "PRODUCER")]
        producers: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Consumer {
    /// Write the folder of a new projection
    New {
        name: String,
        /// Record type to start from
        #[arg(long, value_name = "TYPE")]
        from: String,
    },
    /// Show the rows a consumer makes of real events, without writing anything
    Show {
        name: String,
        /// Read at most this many records from the end of its topics
        #[arg(long, default_value_t = 2000)]
        records: usize,
        /// Show at most this many rows per table
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Run a consumer's cases: expected rows, and the three laws over every cut and interleaving
    Test {
        /// All consumers without it
        name: Option<String>,
        /// Write the rows that came out as the expected ones
        #[arg(long)]
        accept: bool,
    },
    /// Stop applying records, in every process, until `resume`
    Pause { name: String },
    /// Go on applying records
    Resume { name: String },
    /// Remove a projection whose folder is gone: its tables, views, fences and dead letters
    Drop {
        name: String,
        /// Also give up the events and mirrors of dead letters that have not been sent yet
        #[arg(long)]
        discard_unsent: bool,
        /// Also while a process applies it, which ends that
        #[arg(long)]
        even_if_applied: bool,
    },
    /// End a halt: claim again and go on where it stopped
    Restart {
        name: String,
        /// Empty the tables and read the log again from its start
        #[arg(long, conflicts_with = "skip_removed")]
        from_zero: bool,
        /// Pass over the records that were removed from the log before they were applied, and go on at its start
        #[arg(long)]
        skip_removed: bool,
        /// For ten minutes let the breaker halt nothing: what cannot be applied is set aside, however much it is
        #[arg(long, conflicts_with = "from_zero")]
        no_breaker: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Topic {
    /// List topics with partitions and records
    List,
    /// Print records, decoded
    Cat {
        topic: String,
        /// Where to start: `start`, `end`, an offset, or an RFC 3339 time
        #[arg(long, default_value = "start")]
        from: String,
        /// Only this key
        #[arg(long)]
        key: Option<String>,
        /// Only this partition
        #[arg(long)]
        partition: Option<i32>,
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    Table,
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub enum Dlq {
    /// List records that were set aside, newest first, with counts per reason and what is wanted of each
    List {
        /// Only of this consumer
        consumer: Option<String>,
        #[command(flatten)]
        filter: Filter,
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[arg(long)]
        json: bool,
    },
    /// Show one record that was set aside, decoded, with its reason
    Show {
        consumer: String,
        /// `topic/partition/offset`, as the list prints it
        record: String,
    },
    /// Have records applied after all, in the order of their key; a parked key goes on behind them
    Redrive {
        #[command(flatten)]
        choice: Choice,
    },
    /// Put another value in the place of records' own, and have them applied
    Edit {
        #[command(flatten)]
        choice: Choice,
        /// A file with the whole value as JSON, as a producer would post it; `-` for standard input
        #[arg(long, value_name = "FILE", conflicts_with = "fields", required_unless_present = "fields")]
        value: Option<PathBuf>,
        /// Change single fields, as in `--field 'amount=12'`; the value is JSON
        #[arg(long = "field", value_name = "NAME=JSON")]
        fields: Vec<String>,
        /// The record type, where the record's own bytes do not tell
        #[arg(long = "as", value_name = "TYPE")]
        of_type: Option<String>,
    },
    /// Give records up: they have no effect, and a parked key goes on behind them
    Discard {
        #[command(flatten)]
        choice: Choice,
    },
}

/// Which records are meant.
#[derive(Debug, Args, Default)]
pub struct Filter {
    /// Only of this class: decode, refused_by_postgres, handler, crash, retry, waits, id_conflict
    #[arg(long)]
    pub class: Option<String>,
    /// Only of this record type
    #[arg(long = "type", value_name = "TYPE")]
    pub record_type: Option<String>,
    /// Only of this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only of this topic
    #[arg(long)]
    pub topic: Option<String>,
    /// Only those set aside since then, an RFC 3339 time
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
}

/// Records to decide about.
#[derive(Debug, Args)]
pub struct Choice {
    pub consumer: String,
    /// One record, `topic/partition/offset` as the list prints it; else those that the filters leave
    pub record: Option<String>,
    #[command(flatten)]
    pub filter: Filter,
    /// All of the consumer, without a filter
    #[arg(long)]
    pub all: bool,
    /// Say how many records are meant, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Who decides, for the verdict [default: the user who is logged in]
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_tree_of_commands_is_sound() {
        super::Arguments::command().debug_assert();
    }
}
