//! Requests that are too large, or say that they are smaller than they are (I2), and bodies that unfold without end (I3).

use std::io::Write as _;
use std::time::Duration;

use super::target::{Good, PATH, Target, record};
use super::wire::{Wire, answers, post};

const PAUSE: Duration = Duration::from_millis(40);
/// The limits of the process under attack.
const SETTINGS: [&str; 3] = ["ingest.max_body=4MiB", "ingest.body_patience=2s", "http.head_timeout=3s"];
/// What one attack may take beside what the limits allow, for a debug build and its allocator.
const SLACK: usize = 48 << 20;

/// The first status that a request gets, and how the connection ended.
async fn first(target: &Target, request: impl AsRef<[u8]>) -> u16 {
    let text = Wire::connect(target.address).await.exchange(request).await;
    answers(&text).first().copied().unwrap_or_default()
}

fn head(headers: &str) -> String {
    format!("POST {PATH} HTTP/1.1\r\nhost: a\r\n{headers}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_requests_are_refused_for_what_they_are_and_cost_little() {
    let target = Target::start("oversize", &SETTINGS).await;
    let calm = Good::start(&target.web, 4, PAUSE).finish_after(Duration::from_secs(2)).await;
    let (files, memory) = (target.files(), target.memory());
    target.forget_peak();
    let good = Good::start(&target.web, 4, PAUSE);

    // Heads: one long field, a million fields, a long URI.
    assert_eq!(first(&target, head(&format!("x: {}\r\n", "x".repeat(64 << 10)))).await, 431);
    assert_eq!(first(&target, head(&"a: b\r\n".repeat(1_000_000))).await, 431);
    assert_eq!(first(&target, head(&"a: b\r\n".repeat(101))).await, 431, "few bytes, and too many fields");
    let uri = format!("POST /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(70_000));
    assert!([414, 431].contains(&first(&target, uri).await));

    // Bodies: stated as too long, chunked without end, longer and shorter than stated.
    assert_eq!(first(&target, head("content-length: 99999999999\r\n")).await, 413);
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let endless = head("transfer-encoding: chunked\r\n") + &chunk.repeat(100);
    assert_eq!(first(&target, endless).await, 413);
    let body = record("longer", 1);
    let longer =
        format!("{}{body}garbage that was not announced\r\n\r\n", head(&format!("content-length: {}\r\n", body.len())));
    assert_eq!(answers(&Wire::connect(target.address).await.exchange(longer).await), [202, 400]);
    let mut shorter = Wire::connect(target.address).await;
    shorter.send(head("content-length: 1000\r\n") + &body).await;
    assert_eq!(
        shorter.answer().await.map(|answer| answer.status),
        Some(408),
        "the rest is waited for, and not for long"
    );
    let mut left = Wire::connect(target.address).await;
    left.send(head("content-length: 1000\r\n") + &body).await;
    drop(left);

    // JSON: deep, with a million fields, a million digits, a text as long as the body may be.
    let deep = format!("{{\"sensor\": {}", "[".repeat(1_000_000));
    let fields: String = (0..300_000).map(|n| format!("\"f{n}\":1,")).collect();
    let fields = format!("{{{fields}\"sensor\": \"a\", \"value\": 1}}");
    let digits = format!("{{\"sensor\": \"a\", \"value\": 1{}}}", "0".repeat(1_000_000));
    let text = record(&"x".repeat(3 << 20), 1);
    for (what, body) in [("deep", deep), ("fields", fields), ("digits", digits), ("text", text)] {
        let status = first(&target, post(PATH, "connection: close\r\n", &body)).await;
        assert!([413, 422].contains(&status), "{what}: {status}");
    }

    good.finish().await.all_accepted().hardly_slower_than(&calm);
    let peak = target.peak_memory();
    eprintln!("at most {} MiB, {} before", peak >> 20, memory >> 20);
    assert!(peak <= memory + SLACK, "{} MiB, {} before", peak >> 20, memory >> 20);
    assert_eq!(target.log().await.keys().filter(|id| id.is_empty()).count(), 0);
    target.recovered(files, memory, SLACK).await;
}

/// So many MiB of white space, compressed one by one: as many gzip members or zstd frames, which are one body.
fn bomb(encoding: &str, mebibytes: usize) -> Vec<u8> {
    let blank = vec![b' '; 1 << 20];
    let piece = match encoding {
        "gzip" => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            out.write_all(&blank).unwrap();
            out.finish().unwrap()
        }
        _ => zstd::encode_all(&blank[..], 3).unwrap(),
    };
    piece.repeat(mebibytes)
}

fn compressed(encoding: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = head(&format!(
        "content-encoding: {encoding}\r\nconnection: close\r\n{headers}content-length: {}\r\n",
        body.len()
    ));
    [head.as_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_refused_while_they_unfold_and_unread_before_the_key_is_known() {
    let target = Target::start("bombs", &SETTINGS).await;
    let calm = Good::start(&target.web, 4, PAUSE).finish_after(Duration::from_secs(2)).await;
    let (files, memory) = (target.files(), target.memory());
    target.forget_peak();
    let bombs = ["gzip", "zstd"].map(|encoding| (encoding, bomb(encoding, 512)));
    let good = Good::start(&target.web, 4, PAUSE);
    for (encoding, bomb) in bombs {
        eprintln!("{encoding}: {} KiB unfold to 512 MiB", bomb.len() >> 10);
        for headers in ["", "prefer: handling=lenient\r\ncontent-type: application/x-ndjson\r\n"] {
            assert_eq!(first(&target, compressed(encoding, headers, &bomb)).await, 413, "{encoding} {headers}");
        }
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (to, bomb) = (target.address, compressed(encoding, "", &bomb));
            all.spawn(async move { Wire::connect(to).await.exchange(bomb).await });
        }
        while let Some(text) = all.join_next().await {
            assert_eq!(answers(&text.unwrap()), [413]);
        }
        let cut = compressed(encoding, "", &bomb[..bomb.len().min(1000)]);
        assert!([400, 413].contains(&first(&target, cut).await), "{encoding}, cut off");
        let stacked = compressed(&format!("{encoding}, {encoding}"), "", &bomb);
        assert_eq!(first(&target, stacked).await, 415);
    }
    assert_eq!(first(&target, compressed("br", "", b"x")).await, 415);
    good.finish().await.all_accepted().hardly_slower_than(&calm);
    let peak = target.peak_memory();
    eprintln!("at most {} MiB, {} before", peak >> 20, memory >> 20);
    // Twenty at once, each with its 4 MiB and a step beyond.
    assert!(peak <= memory + 20 * (5 << 20) + SLACK, "{} MiB, {} before", peak >> 20, memory >> 20);
    target.recovered(files, memory, 2 * SLACK).await;

    let keys = target.cluster.project.dir.join("keys");
    std::fs::write(&keys, format!("a {} *\n", millpond::http::auth::hash_key("secret"))).unwrap();
    let locked =
        target.cluster.start("ingest", &[&format!("http.keys_file={}", keys.display()), "ingest.max_body=4MiB"]);
    let address: std::net::SocketAddr = locked.web.base.trim_start_matches("http://").parse().unwrap();
    let mut wire = Wire::connect(address).await;
    // Not one byte of the body is there when the answer comes.
    wire.send(head("content-encoding: gzip\r\ncontent-length: 1000000\r\n")).await;
    assert_eq!(wire.answer().await.map(|answer| answer.status), Some(401));
}
