//! Requests that two readers could take for different ones (I5): refused, or answered once and the connection closed. Never
//! is what one reader calls a body another's request.

use super::target::{PATH, Target, record};
use super::wire::{Wire, answers};

/// What comes of a request behind which another is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// 400, and no more is read from the connection.
    Refused,
    /// RFC 9112 allows to answer it as what it plainly is; no more is read from the connection.
    OnceThenClosed,
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_request_never_brings_a_second_one_with_it() {
    let target =
        Target::start("smuggling", &["http.head_timeout=2s", "http.idle_timeout=2s", "ingest.body_patience=2s"]).await;
    let (shown, hidden) = (record("shown", 1), record("hidden", 1));
    let smuggled = format!(
        "POST {PATH} HTTP/1.1\r\nhost: a\r\nidempotency-key: hidden\r\ncontent-length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    let chunked = format!("{:x}\r\n{shown}\r\n0\r\n\r\n", shown.len());
    let (sized, all) = (shown.len(), chunked.len() + smuggled.len());
    let cases: &[(&str, String, String, End)] = &[
        // CL.TE and TE.CL: both headers, in both orders. The length is not believed, and the connection not used again.
        (
            "length, then chunked",
            format!("content-length: {all}\r\ntransfer-encoding: chunked\r\n"),
            chunked.clone(),
            End::OnceThenClosed,
        ),
        (
            "chunked, then length",
            format!("transfer-encoding: chunked\r\ncontent-length: {all}\r\n"),
            chunked.clone(),
            End::OnceThenClosed,
        ),
        (
            "two lengths",
            format!("content-length: {sized}\r\ncontent-length: {}\r\n", sized + 1),
            shown.clone(),
            End::Refused,
        ),
        ("a list of lengths", format!("content-length: {sized}, {}\r\n", sized + 1), shown.clone(), End::Refused),
        ("a length with a sign", format!("content-length: +{sized}\r\n"), shown.clone(), End::Refused),
        ("a hexadecimal length", format!("content-length: 0x{sized:x}\r\n"), shown.clone(), End::Refused),
        ("a negative length", "content-length: -1\r\n".to_owned(), shown.clone(), End::Refused),
        ("an unknown coding", "transfer-encoding: xchunked\r\n".to_owned(), chunked.clone(), End::Refused),
        ("chunked, and not last", "transfer-encoding: chunked, identity\r\n".to_owned(), chunked.clone(), End::Refused),
        ("a space before the colon", format!("content-length : {sized}\r\n"), shown.clone(), End::Refused),
        (
            "a folded line",
            format!("x: y\r\n content-length: 0\r\ncontent-length: {sized}\r\n"),
            shown.clone(),
            End::Refused,
        ),
        ("a null in a value", format!("x: \0\r\ncontent-length: {sized}\r\n"), shown.clone(), End::Refused),
        ("two hosts", format!("host: b\r\ncontent-length: {sized}\r\n"), shown.clone(), End::Refused),
        (
            "a chunk with a signed size",
            "transfer-encoding: chunked\r\n".to_owned(),
            format!("+{chunked}"),
            End::Refused,
        ),
        (
            "a chunk size too large",
            "transfer-encoding: chunked\r\n".to_owned(),
            format!("fffffffffffffffff\r\n{shown}"),
            End::Refused,
        ),
        (
            "a chunk without its end",
            "transfer-encoding: chunked\r\n".to_owned(),
            format!("1\r\n{shown}\r\n0\r\n\r\n"),
            End::Refused,
        ),
    ];
    for (name, headers, body, end) in cases {
        let request = format!("POST {PATH} HTTP/1.1\r\nhost: a\r\n{headers}\r\n{body}{smuggled}");
        let text = Wire::connect(target.address).await.exchange(request).await;
        let expected: &[u16] = if *end == End::Refused { &[400] } else { &[202] };
        assert_eq!(answers(&text), expected, "{name}: {text}");
    }
    // A bare line feed may end a line (RFC 9112, section 2.2). Then it does so everywhere: the lengths are not in doubt.
    let bare =
        format!("POST {PATH} HTTP/1.1\nhost: a\ncontent-length: {sized}\nconnection: close\n\n{shown}{smuggled}");
    assert_eq!(answers(&Wire::connect(target.address).await.exchange(bare).await), [202]);
    let http10 = format!("POST {PATH} HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{chunked}{smuggled}");
    assert_eq!(answers(&Wire::connect(target.address).await.exchange(http10).await), [400]);
    assert!(!target.log().await.contains_key("hidden"), "what was hidden in a body is in the log");
}
