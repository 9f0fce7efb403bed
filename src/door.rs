//! The door: a tiny_http request becomes one of ours, or a refusal.
//!
//! Past it nobody looks at a raw header, URL or body. The head is judged first; the body is read only for those who may
//! send one. The one rule: what tiny_http understood differently from what the next proxy would (lengths, encodings,
//! control characters) is refused, and its connection closed.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use percent_encoding::percent_decode_str;
use tiny_http::{HTTPVersion, Header, Method, Request};

use crate::allocator::distrusting;
use crate::connection::Turn;

/// What a body may take: a start, and more for each piece.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
const BODY_PIECE: usize = 64 << 10;
const BODY_PIECE_PATIENCE: Duration = Duration::from_secs(1);

/// What is read of a body without a length that turns out too large.
const DRAINED_BODY: u64 = 16 << 20;

/// A request, judged.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact about the request, and they are independent"
)]
pub(crate) struct Call {
    pub method: Method,
    /// Path and query as they came.
    pub target: String,
    /// Decoded; begins with `/`.
    pub path: String,
    /// Decoded, in its order.
    pub query: Vec<(String, String)>,
    pub peer: SocketAddr,
    pub host: Option<String>,
    pub origin: Option<String>,
    /// The token of `Authorization: Bearer`.
    pub bearer: Option<String>,
    /// Some proxy says that it passed the request on.
    pub is_forwarded: bool,
    pub is_http_1_0: bool,
    pub is_json: bool,
    pub last_event_id: Option<String>,
    pub if_none_match: Option<String>,
    pub user_agent: Option<String>,
    /// tiny_http reads no request after this one, whatever we say.
    pub is_last: bool,
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

/// Judges a request's head.
///
/// After an error nothing more of the connection can be trusted: it is to be answered and closed.
pub(crate) fn judge(request: &Request, peer: SocketAddr) -> Result<Call, Unfit> {
    let headers = request.headers();
    check_head(request.url(), headers)?;
    let target = request.url();
    let (authority, target) = match absolute(target) {
        Some((authority, target)) => (Some(authority), target),
        None => (None, target),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = decoded(path)?;
    // `OPTIONS *` asks for the server as a whole. An absolute form may do without a path.
    let path = if path.is_empty() && authority.is_some() { "/".to_owned() } else { path };
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
        matches!(&*name, "forwarded" | "via" | "x-real-ip") || name.starts_with("x-forwarded")
    };
    let content_type = value("Content-Type").unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let connection = value("Connection").unwrap_or_default().to_ascii_lowercase();
    let host_header = value("Host");
    let call = Call {
        method: request.method().clone(),
        target: target.to_owned(),
        path,
        query: query.collect::<Result<_, Unfit>>()?,
        peer,
        // What the target names is what was asked for, whatever the header says (RFC 9112, 3.2.2).
        host: host_header.map(|host| authority.map_or(host, str::to_owned)),
        origin: value("Origin"),
        bearer: value("Authorization").as_deref().and_then(bearer),
        is_forwarded: headers.iter().any(forwarding),
        is_http_1_0: *request.http_version() <= HTTPVersion(1, 0),
        is_json: essence.eq_ignore_ascii_case("application/json"),
        last_event_id: value("Last-Event-ID"),
        if_none_match: value("If-None-Match"),
        user_agent: value("User-Agent"),
        is_last: connection.contains("close") || connection.contains("upgrade"),
    };
    if connection.contains("upgrade") && is_chunked(headers) {
        // tiny_http hands over the chunks as they are (request.rs:180).
        return Err(Unfit::new(400, "a request that asks for an upgrade sends no chunks"));
    }
    if call.host.is_none() && !call.is_http_1_0 {
        return Err(Unfit::new(400, "an HTTP/1.1 request has a Host header"));
    }
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
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(is_token);
    if !headers.iter().all(|header| is_name(header.field.as_str().as_str())) {
        return Err(Unfit::new(400, "a header has a name, of letters, digits and hyphens"));
    }
    // Which of two counts is anybody's guess, and who may do what hangs on it.
    if ["Host", "Origin", "Authorization"].iter().any(|name| values(headers, name).nth(1).is_some()) {
        return Err(Unfit::new(400, "a request has one Host, one Origin and one Authorization at most"));
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

/// Whether some of the body has yet to come: tiny_http reads up to 1 KiB by itself (request.rs:184).
pub(crate) fn has_body_to_come(request: &Request) -> bool {
    let headers = request.headers();
    let waits = values(headers, "Expect").next().is_some()
        || values(headers, "Connection").any(|value| value.to_ascii_lowercase().contains("upgrade"));
    is_chunked(headers) || request.body_length().is_some_and(|length| length > 1_024 || length > 0 && waits)
}

/// Reads a body of at most `max` bytes. Blocks until it has come, or its time is over.
pub(crate) fn read_body(request: &mut Request, turn: &Turn, max: usize) -> Result<Vec<u8>, Unfit> {
    let too_large = || Unfit::new(413, format!("the body is larger than {max} bytes (--max-body)"));
    let declared = request.body_length();
    if declared.is_some_and(|length| length > max) {
        // With `Expect: 100-continue` the body does not come before we ask for it; without, it is on its way.
        if values(request.headers(), "Expect").next().is_some() {
            turn.shut_read();
        }
        return Err(too_large());
    }
    if declared.unwrap_or(0) == 0 && !is_chunked(request.headers()) {
        // With an upgrade, tiny_http's reader would go on to whatever comes (request.rs:180).
        return Ok(Vec::new());
    }
    let mut slow = turn.slow_place();
    if has_body_to_come(request) {
        if !slow.take() {
            return Err(Unfit::new(503, "too many bodies are on their way; try again"));
        }
        let pieces = declared.unwrap_or(max).div_ceil(BODY_PIECE) as u32;
        // The keeper closes the connection then, and reading ends.
        turn.set_body_deadline(Some(Instant::now() + BODY_PATIENCE + BODY_PIECE_PATIENCE * pieces));
    }
    let read = read_up_to(request.as_reader(), declared.unwrap_or(max + 1));
    if declared.is_none() && read.as_ref().is_ok_and(|body| body.len() > max) {
        // Closing before the rest has come would take our answer along.
        distrusting(|| io::copy(&mut request.as_reader().take(DRAINED_BODY), &mut io::sink()).ok());
    }
    turn.set_body_deadline(None);
    let body = read.map_err(|error| Unfit::new(400, format!("the body cannot be read: {error}")))?;
    // Half a body must not become half a patch. A chunk that ends early looks like the last one (decoder.rs:132): a
    // peer that has closed its side may have meant to send more.
    let is_half = match declared {
        Some(length) => body.len() < length,
        None => turn.has_ended(),
    };
    if body.len() > max {
        Err(too_large())
    } else if is_half {
        Err(Unfit::new(400, "the body ended early"))
    } else {
        Ok(body)
    }
}

fn read_up_to(reader: &mut dyn Read, max: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    let mut piece = vec![0; BODY_PIECE.min(max)];
    while body.len() < max {
        let wanted = piece.len().min(max - body.len());
        // A chunk's size line that never ends is read into memory on this thread.
        match distrusting(|| reader.read(&mut piece[..wanted])) {
            Ok(0) => break,
            Ok(count) => body.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(body)
}

/// A proxy's absolute form: the host that it names, and the rest.
fn absolute(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    let is_ours = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    is_ours.then(|| rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())))
}

fn bearer(authorization: &str) -> Option<String> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim().to_owned())
}

/// Chunks are the one coding that `check_head` lets through.
fn is_chunked(headers: &[Header]) -> bool {
    values(headers, "Transfer-Encoding").next().is_some()
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
