//! A request's head becomes a [`Call`], or a refusal.
//!
//! Past it nobody looks at a raw header or URL. The one rule: what tiny_http understood differently from what the next
//! proxy would (lengths, encodings, control characters) is refused, and its connection closed.

use std::net::SocketAddr;

use percent_encoding::percent_decode_str;
use tiny_http::{HTTPVersion, Header, Method, Request};

use crate::conditions::Conditions;
use crate::http::answer::Answer;

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
    /// Its body is a patch, and no merge patch.
    pub is_foreign_patch: bool,
    /// Its body is compressed, or otherwise encoded.
    pub is_encoded: bool,
    pub last_event_id: Option<String>,
    pub conditions: Conditions,
    pub user_agent: Option<String>,
    /// Whom a proxy on this machine says it asks for. Anybody on this machine can say so: it is a claim, and is shown only.
    pub forwarded_for: Option<String>,
    /// No request of its connection runs after this one.
    pub is_last: bool,
}

/// The one patch format that is spoken.
pub(crate) const MERGE_PATCH: &str = "application/merge-patch+json";

impl Call {
    /// The value of a parameter in the query, decoded.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Judges a request's head.
///
/// After an error nothing more of the connection can be trusted: it is to be answered and closed.
pub(super) fn judge(request: &Request, peer: SocketAddr) -> Result<Call, Answer> {
    let headers = request.headers();
    check_head(request.url(), headers)?;
    let TakenApart { authority, target, path, query } = read_target(request.url())?;
    let value = |name| values(headers, name).next().map(str::to_owned);
    let forwarding = |header: &Header| {
        let name = header.field.as_str().as_str().to_ascii_lowercase();
        matches!(&*name, "forwarded" | "via" | "x-real-ip") || name.starts_with("x-forwarded")
    };
    // Several lines of one name are one list (RFC 9110, 5.3).
    let list = |name| values(headers, name).map(str::to_owned).reduce(|list, line| list + ", " + &line);
    let essences: Vec<String> = values(headers, "Content-Type").map(essence).collect();
    let mut codings = values(headers, "Content-Encoding").flat_map(|line| line.split(',')).map(str::trim);
    let host_header = value("Host");
    let call = Call {
        method: request.method().clone(),
        target: target.to_owned(),
        path,
        query,
        peer,
        // What the target names is what was asked for, whatever the header says (RFC 9112, 3.2.2).
        host: host_header.map(|host| authority.map_or(host, str::to_owned)),
        origin: value("Origin"),
        bearer: value("Authorization").as_deref().and_then(bearer),
        is_forwarded: headers.iter().any(forwarding),
        is_http_1_0: *request.http_version() <= HTTPVersion(1, 0),
        is_json: essences.first().is_some_and(|essence| essence == "application/json"),
        is_foreign_patch: essences.iter().any(|essence| essence.contains("patch") && *essence != MERGE_PATCH),
        is_encoded: codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity")),
        last_event_id: value("Last-Event-ID"),
        conditions: Conditions { if_match: list("If-Match"), if_none_match: list("If-None-Match") },
        user_agent: value("User-Agent"),
        forwarded_for: list("X-Forwarded-For").filter(|_| peer.ip().to_canonical().is_loopback()),
        is_last: is_last(request),
    };
    if call.host.is_none() && !call.is_http_1_0 {
        return Err(Answer::refusal(400, "an HTTP/1.1 request has a Host header"));
    }
    Ok(call)
}

/// Whether no request of its connection runs after it.
fn is_last(request: &Request) -> bool {
    let headers = request.headers();
    let closes = |line: &str| line.to_ascii_lowercase().contains("close");
    // tiny_http takes for chunked what others do not: it trims `\x0bchunked` before we see it (common.rs:189). Then what
    // follows may be a body to them.
    is_chunked(headers)
        || asks_for_upgrade(headers)
        || values(headers, "Connection").any(closes)
        || *request.http_version() <= HTTPVersion(1, 0)
}

/// A request's target, taken apart.
struct TakenApart<'a> {
    /// Of the absolute form alone.
    authority: Option<&'a str>,
    target: &'a str,
    path: String,
    query: Vec<(String, String)>,
}

fn read_target(url: &str) -> Result<TakenApart<'_>, Answer> {
    let (authority, target) = match absolute(url) {
        Some((authority, target)) => (Some(authority), target),
        None => (None, url),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = decoded(path)?;
    // `OPTIONS *` asks for the server as a whole. An absolute form may do without a path.
    let path = if path.is_empty() && authority.is_some() { "/".to_owned() } else { path };
    if !path.starts_with('/') && path != "*" {
        return Err(Answer::refusal(400, "a request's target begins with /"));
    }
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(&name.replace('+', " "))?, decoded(&value.replace('+', " "))?))
    });
    let query = query.collect::<Result<_, Answer>>()?;
    Ok(TakenApart { authority, target, path, query })
}

/// What tiny_http lets through and others read differently (CVE-2026-66752, CVE-2026-66753).
fn check_head(target: &str, headers: &[Header]) -> Result<(), Answer> {
    let is_control = |byte: u8| byte < b' ' && byte != b'\t' || byte == 0x7f;
    if target.bytes().any(|byte| byte <= b' ' || is_control(byte)) {
        return Err(Answer::refusal(400, "a request's target has no control characters"));
    }
    if headers.iter().any(|header| header.value.as_str().bytes().any(is_control)) {
        return Err(Answer::refusal(400, "a header has no control characters"));
    }
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(is_token);
    if !headers.iter().all(|header| is_name(header.field.as_str().as_str())) {
        return Err(Answer::refusal(400, "a header has a name, of letters, digits and hyphens"));
    }
    // Which of two counts is anybody's guess, and who may do what hangs on it.
    if ["Host", "Origin", "Authorization"].iter().any(|name| values(headers, name).nth(1).is_some()) {
        return Err(Answer::refusal(400, "a request has one Host, one Origin and one Authorization at most"));
    }
    let codings: Vec<&str> = values(headers, "Transfer-Encoding").collect();
    let lengths: Vec<&str> = values(headers, "Content-Length").collect();
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(()),
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(()),
        ([_], []) => Err(Answer::refusal(400, "the only Transfer-Encoding is chunked")),
        // tiny_http takes a length that it cannot read for no body at all (request.rs:145).
        ([], [length]) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse::<u64>().map(drop).map_err(|_| Answer::refusal(413, "no body is that long"))
        }
        ([], [_]) => Err(Answer::refusal(400, "a Content-Length is a number")),
        _ => Err(Answer::refusal(
            400,
            "a body has one length: one Content-Length, or Transfer-Encoding: chunked",
        )),
    }
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

/// Whether it waits for a 100 before it sends its body; tiny_http answers any other expectation itself.
pub(super) fn expects(headers: &[Header]) -> bool {
    values(headers, "Expect").next().is_some()
}

/// Chunks are the one coding that `check_head` lets through.
pub(super) fn is_chunked(headers: &[Header]) -> bool {
    values(headers, "Transfer-Encoding").next().is_some()
}

/// Whether tiny_http takes this for a request that asks for an upgrade, as it does: by the first line of that name
/// (request.rs:175).
pub(super) fn asks_for_upgrade(headers: &[Header]) -> bool {
    let connection = values(headers, "Connection").next();
    connection.is_some_and(|options| options.to_ascii_lowercase().contains("upgrade"))
}

pub(super) fn announces_trailer(headers: &[Header]) -> bool {
    values(headers, "Trailer").any(|names| !names.is_empty())
}

/// A media type without its parameters, in lower case.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub(super) fn values<'a>(headers: &'a [Header], name: &'static str) -> impl Iterator<Item = &'a str> {
    headers.iter().filter(move |header| header.field.equiv(name)).map(|header| header.value.as_str())
}

fn decoded(text: &str) -> Result<String, Answer> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| Answer::refusal(400, "what is percent-encoded is UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> Header {
        Header::from_bytes(name, value).expect("a header")
    }

    fn judged(headers: &[(&str, &str)]) -> Option<u16> {
        let headers: Vec<Header> = headers.iter().map(|(name, value)| header(name, value)).collect();
        check_head("/", &headers).err().map(|answer| answer.status)
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
