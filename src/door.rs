//! The door: one function turns a tiny_http request into one of ours, or into a refusal.
//!
//! Past it nobody looks at a raw header, URL or body. The one rule: what tiny_http understood differently from what
//! the next proxy would (lengths, encodings, control characters) is refused, and its connection closed.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use percent_encoding::percent_decode_str;
use tiny_http::{HTTPVersion, Header, Method, Request};

use crate::listener::Turn;

/// What a body may take: a start, and more for each piece.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
const BODY_PIECE: usize = 64 << 10;
const BODY_PIECE_PATIENCE: Duration = Duration::from_secs(1);

/// What is read of a body without a length that turns out too large.
const DRAINED_BODY: u64 = 16 << 20;

/// A request, judged and read.
pub(crate) struct Call {
    pub method: Method,
    /// Decoded; begins with `/`.
    pub path: String,
    query: Vec<(String, String)>,
    pub peer: SocketAddr,
    pub host: Option<String>,
    pub origin: Option<String>,
    /// Some proxy says that it passed the request on.
    pub is_forwarded: bool,
    pub is_http_1_0: bool,
    pub is_json: bool,
    pub last_event_id: Option<String>,
    pub if_none_match: Option<String>,
    pub user_agent: Option<String>,
    pub body: Vec<u8>,
}

/// A request that is not one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    pub status: u16,
    pub text: String,
}

impl Unfit {
    fn new(status: u16, text: impl Into<String>) -> Unfit {
        Unfit { status, text: text.into() }
    }
}

impl Call {
    /// The value of a parameter in the query, decoded.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Judges a request and reads its body. Blocks until the body has come, or its time is over.
///
/// After an error nothing more of the connection can be trusted: it is to be answered and closed.
pub(crate) fn judge(request: &mut Request, turn: &Turn, max_body: usize) -> Result<Call, Unfit> {
    let headers = request.headers();
    check_head(request.url(), headers)?;
    let target = request.url();
    // A proxy's absolute form names a scheme and a host before the path.
    let target = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.find('/').map_or("/", |slash| &rest[slash..]),
        _ => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = decoded(path)?;
    // `OPTIONS *` asks for the server as a whole.
    if !path.starts_with('/') && path != "*" {
        return Err(Unfit::new(400, "a request's target begins with /"));
    }
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(&name.replace('+', " "))?, decoded(&value.replace('+', " "))?))
    });
    let value = |name| values(headers, name).next().map(str::to_owned);
    let forwarding = |header: &Header| {
        let name = header.field.as_str().as_str().to_ascii_lowercase();
        matches!(&*name, "forwarded" | "via" | "x-real-ip") || name.starts_with("x-forwarded-")
    };
    let content_type = value("Content-Type").unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let mut call = Call {
        method: request.method().clone(),
        path,
        query: query.collect::<Result<_, Unfit>>()?,
        peer: turn.peer(),
        host: value("Host"),
        origin: value("Origin"),
        is_forwarded: headers.iter().any(forwarding),
        is_http_1_0: *request.http_version() <= HTTPVersion(1, 0),
        is_json: essence.eq_ignore_ascii_case("application/json"),
        last_event_id: value("Last-Event-ID"),
        if_none_match: value("If-None-Match"),
        user_agent: value("User-Agent"),
        body: Vec::new(),
    };
    if call.host.is_none() && !call.is_http_1_0 {
        return Err(Unfit::new(400, "an HTTP/1.1 request has a Host header"));
    }
    call.body = read_body(request, turn, max_body)?;
    Ok(call)
}

/// What tiny_http lets through and others read differently (CVE-2026-66752, CVE-2026-66753).
fn check_head(target: &str, headers: &[Header]) -> Result<(), Unfit> {
    let is_control = |byte: u8| byte < b' ' && byte != b'\t' || byte == 0x7f;
    if target.bytes().any(|byte| byte <= b' ' || is_control(byte)) {
        return Err(Unfit::new(400, "a request's target has no control characters"));
    }
    if headers.iter().any(|header| header.value.as_str().bytes().any(is_control)) {
        return Err(Unfit::new(400, "a header has no control characters"));
    }
    let codings: Vec<&str> = values(headers, "Transfer-Encoding").collect();
    let lengths: Vec<&str> = values(headers, "Content-Length").collect();
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(()),
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(()),
        ([_], []) => Err(Unfit::new(400, "the only Transfer-Encoding is chunked")),
        // tiny_http takes a length that it cannot read for no body at all (request.rs:145).
        ([], [length]) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse::<u64>().map(drop).map_err(|_| Unfit::new(413, "no body is that long"))
        }
        ([], [_]) => Err(Unfit::new(400, "a Content-Length is a number")),
        _ => Err(Unfit::new(400, "a body has one length: one Content-Length, or Transfer-Encoding: chunked")),
    }
}

fn read_body(request: &mut Request, turn: &Turn, max: usize) -> Result<Vec<u8>, Unfit> {
    let too_large = || Unfit::new(413, format!("the body is larger than {max} bytes (--max-body)"));
    let declared = request.body_length();
    if declared.is_some_and(|length| length > max) {
        // With `Expect: 100-continue` the body does not come before we ask for it; without, it is on its way.
        if values(request.headers(), "Expect").next().is_some() {
            turn.shut_read();
        }
        return Err(too_large());
    }
    if declared.unwrap_or(0) == 0 && values(request.headers(), "Transfer-Encoding").next().is_none() {
        return Ok(Vec::new());
    }
    let pieces = declared.unwrap_or(max).div_ceil(BODY_PIECE) as u32;
    // The keeper closes the connection then, and reading ends.
    turn.set_body_deadline(Some(Instant::now() + BODY_PATIENCE + BODY_PIECE_PATIENCE * pieces));
    let mut body = Vec::new();
    let reader = request.as_reader();
    let read = reader.take(max as u64 + 1).read_to_end(&mut body);
    if body.len() > max {
        // Closing before the rest has come would take our answer along.
        io::copy(&mut reader.take(DRAINED_BODY), &mut io::sink()).ok();
    }
    turn.set_body_deadline(None);
    match (read, declared) {
        (Err(error), _) => Err(Unfit::new(400, format!("the body cannot be read: {error}"))),
        (Ok(count), _) if count > max => Err(too_large()),
        // Half a body must not become half a patch.
        (Ok(count), Some(length)) if count < length => Err(Unfit::new(400, "the body ended early")),
        (Ok(_), _) => Ok(body),
    }
}

fn values<'a>(headers: &'a [Header], name: &'static str) -> impl Iterator<Item = &'a str> {
    headers.iter().filter(move |header| header.field.equiv(name)).map(|header| header.value.as_str())
}

fn decoded(text: &str) -> Result<String, Unfit> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| Unfit::new(400, "what is percent-encoded is UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> Header {
        Header::from_bytes(name, value).expect("a header")
    }

    fn judged(headers: &[(&str, &str)]) -> Option<u16> {
        let headers: Vec<Header> = headers.iter().map(|(name, value)| header(name, value)).collect();
        check_head("/", &headers).err().map(|unfit| unfit.status)
    }

    #[test]
    fn a_body_that_others_would_measure_differently_is_refused() {
        let (length, coding) = ("Content-Length", "Transfer-Encoding");
        assert_eq!(judged(&[]), None);
        assert_eq!(judged(&[(length, "0")]), None);
        assert_eq!(judged(&[("content-length", "007")]), None);
        assert_eq!(judged(&[(coding, "Chunked")]), None);
        for value in ["-1", "+1", "1,1", "1 1", "0x10", "", "1.0"] {
            assert_eq!(judged(&[(length, value)]), Some(400), "{value:?}");
        }
        assert_eq!(judged(&[(length, "99999999999999999999")]), Some(413));
        for value in ["identity", "gzip, chunked", "chunked, chunked", "xchunked", ""] {
            assert_eq!(judged(&[(coding, value)]), Some(400), "{value:?}");
        }
        assert_eq!(judged(&[(length, "1"), (length, "1")]), Some(400));
        assert_eq!(judged(&[(coding, "chunked"), (coding, "chunked")]), Some(400));
        assert_eq!(judged(&[(coding, "chunked"), (length, "1")]), Some(400));
    }

    #[test]
    fn control_characters_are_refused() {
        for target in ["/a\rb", "/a\nb", "/\0", "/a b", "/\u{7f}"] {
            assert!(check_head(target, &[]).is_err(), "{target:?}");
        }
        for value in ["a\rb", "a\nb", "a\0b"] {
            assert_eq!(judged(&[("X-Any", value)]), Some(400), "{value:?}");
        }
        assert_eq!(judged(&[("X-Any", "a\tb")]), None);
    }
}
