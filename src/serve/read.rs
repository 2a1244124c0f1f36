//! One read of a table: from a request to rows that are as new as the request asks for.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use tokio_postgres::{Row, types::ToSql};

use super::{
    ServeState,
    catalog::{Projection, Table},
    compile::{self, Frame, Statement, Value},
    connections::{Error, Lane},
    cursor::{Cursor, CursorError, digest},
    failure::{self, Failure},
    format::Format,
    freshness::{self, Ends, Head, Outcome},
    gather::Found,
    grammar::{self, Query},
    header_value, headers,
    outcome::{self, Fate},
    problem::{
        BAD_CURSOR, BAD_QUERY, CURSOR_GONE, DEAD_LETTERED, FOREIGN_TOPIC, NOT_ACCEPTABLE, NOT_LIVE, NOT_ONE_ROW,
        NOT_REACHED, PARKED,
    },
    wait::Wanted,
};
use crate::http::Problem;
use crate::planted::{self, Bug};
use crate::telemetry::metrics::serve as metrics;

/// Tries on the tables of one version before they are taken to be missing.
const MAX_TRIES_OF_VERSION: usize = 3;
/// Swaps that one read follows before it gives up.
const MAX_SWAPS: usize = 10;

/// What a request asks, before a table is looked at.
pub struct Read<'r> {
    pub path: &'r str,
    pub raw_query: &'r str,
    pub headers: &'r HeaderMap,
    format: Format,
    query: Query,
    limit: u32,
    wanted: Option<Wanted>,
    deadline: Instant,
}

/// How one try ended.
enum Tried {
    Answer(Response),
    /// The statement was compiled for a version that is not the live one.
    Stale,
    /// The projection has not reached the wanted position.
    Behind(Arc<Head>),
}

impl<'r> Read<'r> {
    pub fn new(
        state: &ServeState,
        path: &'r str,
        raw_query: &'r str,
        headers: &'r HeaderMap,
    ) -> Result<Read<'r>, Problem> {
        let options = state.options();
        let format = Format::negotiate(headers).ok_or_else(|| NOT_ACCEPTABLE.problem(NOT_ACCEPTABLE.remedy))?;
        let query = grammar::parse(raw_query)?;
        let limit = query.limit.unwrap_or(options.default_limit);
        if limit > options.max_limit {
            let detail = format!("parameter `limit`: expected at most {}, got {limit}", options.max_limit);
            let hint = "read page by page: follow `Link: <…>; rel=\"next\"`";
            return Err(BAD_QUERY.problem(detail).with("parameter", "limit").hint(Some(hint)));
        }
        let wanted = Wanted::from_headers(headers, options.default_wait, options.max_wait)?;
        let deadline = Instant::now() + wanted.as_ref().map(|wanted| wanted.wait).unwrap_or_default();
        Ok(Read { path, raw_query, headers, format, query, limit, wanted, deadline })
    }

    /// Answers from the table that `name` stands for.
    pub async fn answer(&self, state: &ServeState, consumer: &str, table: Option<&str>) -> Result<Response, Problem> {
        let (mut tries, mut swaps, mut version) = (0, 0, None);
        loop {
            let (projection, index) = state.find_table(consumer, table).await?;
            if version.replace(projection.version).is_some_and(|before| before != projection.version) {
                (tries, swaps) = (0, swaps + 1);
            }
            let view = View { projection: &projection, table: &projection.tables[index] };
            match self.attempt(state, view).await? {
                Tried::Answer(response) => return Ok(response),
                Tried::Stale if tries < MAX_TRIES_OF_VERSION && swaps < MAX_SWAPS => {
                    tries += 1;
                    metrics::STALE_POINTERS.with_label_values(&[&*projection.name]).inc();
                    state.refresh().await?;
                }
                Tried::Stale => {
                    let detail = format!("the tables of version {} of `{consumer}` are not there", projection.version);
                    tracing::error!(consumer, version = projection.version, "tables of the live version are not there");
                    return Err(NOT_LIVE.problem(detail).retry_after(1));
                }
                Tried::Behind(head) => {
                    let wanted = self.wanted.as_ref().expect("invariant: only a wanted position can be behind");
                    if Instant::now() >= self.deadline {
                        return Err(not_reached(state, &projection, wanted, &head).await);
                    }
                    // Reached or not, the next try has the say, and a fresh position for the answer.
                    state.waits().until(&projection.name, &wanted.position, self.deadline).await?;
                }
            }
        }
    }

    async fn attempt(&self, state: &ServeState, view: View<'_>) -> Result<Tried, Problem> {
        self.check_topics(view.projection)?;
        let cursor = self.cursor(view)?;
        let frame = Frame { format: self.format, limit: self.page_limit(), wanted: self.wanted.is_some() };
        let statement = compile::compile(&self.query, view.table, cursor.as_ref(), frame)?;
        if self.headers.contains_key(header::IF_NONE_MATCH) {
            // Position alone, to answer 304 without touching a row. If it does not match, the read reads it again.
            let head = freshness::read(state, view.projection, self.wanted.as_ref()).await?;
            let head = match self.judge(view, head.map(Arc::new))? {
                Judged::Good(head) => head,
                Judged::Not(tried) => return Ok(tried),
            };
            let tag = self.tag(view, &head);
            if self.is_known(&tag) {
                return Ok(Tried::Answer(self.respond(StatusCode::NOT_MODIFIED, &head, &tag, Body::empty())));
            }
        }
        self.run(state, view, &statement).await
    }

    async fn run(&self, state: &ServeState, view: View<'_>, statement: &Statement) -> Result<Tried, Problem> {
        let mut page = match self.fetch(state, view, statement).await {
            Ok(page) => page,
            Err(error) => {
                return match failure::explain(state, &error, statement).await {
                    Failure::Stale => Ok(Tried::Stale),
                    Failure::Problem(problem) => Err(problem),
                };
            }
        };
        if planted::is(Bug::PositionAhead) {
            page.head = freshness::read(state, view.projection, self.wanted.as_ref()).await?.map(Arc::new);
        }
        let head = match self.judge(view, page.head)? {
            Judged::Good(head) => head,
            Judged::Not(tried) => return Ok(tried),
        };
        self.check_single(page.rows, &head)?;
        let tag = self.tag(view, &head);
        let body = self.format.body(page.body.as_deref(), &statement.template.shown);
        let mut response = self.respond(StatusCode::OK, &head, &tag, Body::from(body));
        let more = page.rows > i64::from(self.page_limit()) && self.limit > 0 && self.format != Format::JsonObject;
        if let (true, Some(values)) = (more, page.next) {
            let cursor = Cursor { version: view.projection.version, shape: self.shape(view)?, values };
            response.headers_mut().insert(header::LINK, self.next_link(state, &cursor.encode()));
        }
        Ok(Tried::Answer(response))
    }

    async fn fetch(&self, state: &ServeState, view: View<'_>, statement: &Statement) -> Result<Page, Arc<Error>> {
        let Statement { template, values } = statement;
        if let Some(gather) = &template.gather {
            match gather.read(state, view.projection, template, values).await {
                // Perhaps the fault is in another read's value; asked alone, this one will tell.
                Err(error) if error.is_of_value() => {}
                found => return found.map(Page::from),
            }
        }
        let lane = if template.point { Lane::Point } else { Lane::Scan };
        let row = state.connections().row(lane, &template.sql, &self.params(view.projection, values)).await?;
        let page = row.map_or_else(|| Ok(Page::default()), |row| Page::from_row(&row, state.ends(view.projection)));
        page.map_err(|error| Arc::new(error.into()))
    }

    /// Whether the answer that comes with `head` may be given.
    fn judge(&self, view: View<'_>, head: Option<Arc<Head>>) -> Result<Judged, Problem> {
        let Some(head) = head.filter(|head| head.live_version == Some(view.projection.version)) else {
            return Ok(Judged::Not(Tried::Stale));
        };
        let Some(wanted) = &self.wanted else { return Ok(Judged::Good(head)) };
        if !head.parsed_position().covers(&wanted.position) {
            return Ok(Judged::Not(Tried::Behind(head)));
        }
        if head.dead_letters.is_empty() {
            return Ok(Judged::Good(head));
        }
        Err(dead_lettered(&view.projection.name, &wanted.position, &head))
    }

    fn check_topics(&self, projection: &Projection) -> Result<(), Problem> {
        let mut topics = self.wanted.iter().flat_map(|wanted| &wanted.topics);
        match topics.find(|topic| !projection.topics.contains(topic)) {
            None => Ok(()),
            Some(topic) => {
                let detail = format!(
                    "`{}` does not read topic `{topic}`, so it would never reach that position",
                    projection.name
                );
                Err(FOREIGN_TOPIC.problem(detail).with("reads", projection.topics.clone()))
            }
        }
    }

    /// `object+json` shows one row, and needs the next only to know that there is one.
    fn page_limit(&self) -> u32 {
        if self.format == Format::JsonObject { self.limit.min(1) } else { self.limit }
    }

    fn check_single(&self, rows: i64, head: &Head) -> Result<(), Problem> {
        let cut_by_client = self.query.limit == Some(1) && rows == 2;
        if self.format != Format::JsonObject || (rows == 1 && self.limit > 0) || cut_by_client {
            return Ok(());
        }
        let found = if rows > 1 { "several rows" } else { "no row" };
        let mut problem = NOT_ONE_ROW.problem(format!("the query has {found}, and one object was asked for"));
        head.write_headers(&mut problem.headers);
        Err(problem)
    }

    fn cursor(&self, view: View<'_>) -> Result<Option<Cursor>, Problem> {
        let Some(text) = &self.query.after else { return Ok(None) };
        match Cursor::decode(text, view.projection.version, &self.shape(view)?) {
            Ok(cursor) => Ok(Some(cursor)),
            Err(error) => {
                let kind = if matches!(error, CursorError::OtherVersion(_)) { &CURSOR_GONE } else { &BAD_CURSOR };
                let detail = format!("parameter `after`: {error}; {}", kind.remedy);
                Err(kind.problem(detail).with("parameter", "after"))
            }
        }
    }

    /// Names what decides which rows follow a cursor; `limit`, `select` and the format may change between pages.
    fn shape(&self, view: View<'_>) -> Result<String, Problem> {
        let order: Vec<String> = compile::terms(&self.query, view.table)?.iter().map(compile::Term::text).collect();
        let (order, filters) = (order.join(","), self.query.filters_text());
        Ok(digest(&[&view.projection.name, &view.table.info.name, &order, &filters]))
    }

    fn params<'p>(&'p self, projection: &'p Projection, values: &'p [Value]) -> Vec<&'p (dyn ToSql + Sync)> {
        let mut params = freshness::params(projection, self.wanted.as_ref());
        params.extend(values.iter().map(|value| match value {
            Value::Text(text) => text as &(dyn ToSql + Sync),
            Value::List(list) => list,
        }));
        params
    }

    /// Weak: it stands for the state of the projection that the rows came from, not for the bytes.
    fn tag(&self, view: View<'_>, head: &Head) -> String {
        let version = view.projection.version.to_string();
        let parts = [
            &*view.projection.hash,
            &version,
            &view.table.relation,
            &head.position,
            self.raw_query,
            self.format.media_type(),
        ];
        format!("W/\"{}\"", digest(&parts))
    }

    fn is_known(&self, tag: &str) -> bool {
        let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        let lines = self.headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|known| known.trim() == "*" || opaque(known) == opaque(tag))
    }

    fn respond(&self, status: StatusCode, head: &Head, tag: &str, body: Body) -> Response {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if status == StatusCode::OK {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.format.media_type()));
        }
        headers.insert(header::ETAG, header_value(tag));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::VARY, HeaderValue::from_static(headers::VARY_ON));
        head.write_headers(headers);
        if let Some(wanted) = self.wanted.as_ref().filter(|wanted| wanted.preferred) {
            let applied = format!("wait={}", wanted.wait.as_secs());
            headers.insert(headers::PREFERENCE_APPLIED, header_value(&applied));
        }
        response
    }

    fn next_link(&self, state: &ServeState, cursor: &str) -> HeaderValue {
        let is_after = |pair: &&str| {
            let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
            grammar::decode(name).as_deref() == Some("after")
        };
        let mut pairs: Vec<&str> = self.raw_query.split('&').filter(|p| !p.is_empty() && !is_after(p)).collect();
        let after = format!("after={cursor}");
        pairs.push(&after);
        let base = state.options().base_url.as_deref().unwrap_or_default();
        header_value(&format!("<{base}{}?{}>; rel=\"next\"", self.path, pairs.join("&")))
    }
}

/// What a statement has found.
#[derive(Debug, Default)]
struct Page {
    /// `None` when the projection is gone.
    head: Option<Arc<Head>>,
    /// The rows in their format, joined by its separator.
    body: Option<String>,
    /// Rows found; one more than asked for when there is a next page.
    rows: i64,
    /// Where the next page begins.
    next: Option<Vec<Option<String>>>,
}

impl Page {
    fn from_row(row: &Row, ends: Option<Arc<Ends>>) -> Result<Page, tokio_postgres::Error> {
        Ok(Page {
            head: Some(Arc::new(Head::from_row(row, ends.as_deref())?)),
            body: row.try_get(Head::COLUMNS)?,
            rows: row.try_get::<_, Option<i64>>(Head::COLUMNS + 1)?.unwrap_or(0),
            next: row.try_get(Head::COLUMNS + 2)?,
        })
    }
}

impl From<Found> for Page {
    fn from(found: Found) -> Page {
        Page { head: found.head, rows: i64::from(found.row.is_some()), body: found.row, next: None }
    }
}

#[derive(Clone, Copy)]
struct View<'v> {
    projection: &'v Arc<Projection>,
    table: &'v Table,
}

enum Judged {
    Good(Arc<Head>),
    Not(Tried),
}

async fn not_reached(state: &ServeState, projection: &Arc<Projection>, wanted: &Wanted, head: &Head) -> Problem {
    let waited = wanted.wait.as_secs_f64();
    let mut detail =
        format!("`{}` is at {}, waited {waited} s for {}", projection.name, head.position, wanted.position);
    let outcomes = outcome::look_up(state, wanted).await.unwrap_or_default();
    let here: Vec<&outcome::Entry> = outcomes.iter().filter(|entry| *entry.consumer == *projection.name).collect();
    if let Some(halted) = here.iter().find_map(|entry| entry.halt.as_ref()) {
        detail = format!("{detail}; it has halted: {} {}", halted.code, halted.reason);
    } else if projection.paused {
        detail = format!("{detail}; it is paused: `millpond consumer resume {}`", projection.name);
    }
    let mut problem = NOT_REACHED
        .problem(detail)
        .with("position", head.position.clone())
        .with("wanted", wanted.position.to_string())
        .with("outcomes", serde_json::to_value(&here).unwrap_or_default())
        .hint(Some(
            "ask again with a longer `Prefer: wait=SECONDS`, or without Millpond-Min-Position for the table as it is",
        ));
    head.write_headers(&mut problem.headers);
    problem
}

/// Of records that were set aside: given up, or parked, which is told apart.
fn dead_lettered(consumer: &str, wanted: &crate::domain::Position, head: &Head) -> Problem {
    let given_up = head.dead_letters.iter().find(|letter| letter.head.is_none());
    let first = given_up.unwrap_or(&head.dead_letters[0]);
    let at = format!("offset {} of {}/{}", first.offset, first.topic, first.partition);
    let (kind, detail) = match first.head {
        None => {
            let why = format!("{} ({}); its rows do not show it", first.reason, first.code);
            (&DEAD_LETTERED, format!("`{consumer}` could not apply the record at {at}: {why}"))
        }
        Some(waits_for) => {
            let why = format!("{} ({})", first.reason, first.code);
            let what = format!("`{consumer}` has not applied the record at {at} yet");
            (&PARKED, format!("{what}, for its key is parked, and waits for the one at offset {waits_for}: {why}"))
        }
    };
    let outcomes: Vec<serde_json::Value> = head.dead_letters.iter().map(|letter| told(consumer, letter)).collect();
    let mut problem = kind
        .problem(detail)
        .with("outcomes", outcomes)
        .with("positions", format!("/v1/positions/{wanted}"))
        .hint(Some("read without Millpond-Min-Position to see the table as it is"));
    head.write_headers(&mut problem.headers);
    problem
}

fn told(consumer: &str, letter: &Outcome) -> serde_json::Value {
    let deciding = letter.head.unwrap_or(letter.offset);
    let mut told = serde_json::json!({
        "topic": letter.topic, "partition": letter.partition, "offset": letter.offset,
        "outcome": if letter.head.is_some() { Fate::Parked } else { Fate::DeadLettered },
        "reason_class": letter.code, "reason": letter.reason,
        "next": outcome::show_command(consumer, &letter.topic, letter.partition, deciding),
    });
    if let Some(head) = letter.head {
        told["head"] = serde_json::json!(head);
    }
    told
}
