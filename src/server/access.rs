//! Who may do what: secure without configuration, open when asked.
//!
//! `server` asks before it does anything. The one rule: a page of a foreign origin never writes, whatever else is
//! allowed, because the visitor whose browser sends the request did not ask for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::http::{Answer, Call, Method};
use crate::server::answers;
use crate::server::config::Origin;
use crate::server::route::Route;
use crate::token::Token;

/// What was configured.
pub(crate) struct Rules {
    pub is_open: bool,
    pub publish_token: Option<Token>,
    pub subscribe_token: Option<Token>,
    pub origins: Vec<Origin>,
}

impl Rules {
    /// Whether this call may do what it asks for.
    pub fn check(&self, call: &Call, route: &Route) -> Result<(), Answer> {
        match (route, &call.method) {
            (_, Method::Options) | (Route::Health | Route::Metrics | Route::Page | Route::Lab, _) => Ok(()),
            (Route::Events(_) | Route::State(_), Method::Get | Method::Head) => self.check_reader(call),
            _ => self.check_writer(call),
        }
    }

    /// Reading needs the subscribe token, if there is one; `EventSource` can send it in the query alone. Without any
    /// token it needs a name of this machine, as writing does: a website whose name was pointed here is, to its
    /// visitor's browser, the origin that it reads from.
    fn check_reader(&self, call: &Call) -> Result<(), Answer> {
        let Some(token) = &self.subscribe_token else {
            let is_for_this_machine = self.publish_token.is_none() && !self.is_open && is_local(call);
            // Browsers always say what host they ask for.
            let is_foreign = call.host.as_deref().is_some_and(|host| !is_loopback_host(host));
            return if is_for_this_machine && is_foreign {
                Err(Answer::refusal(
                    403,
                    "without a token this is read as localhost or 127.0.0.1 alone, for any website's name can be \
                     pointed here; for another name set --subscribe-token, and behind a proxy --publish-token or both",
                ))
            } else {
                Ok(())
            };
        };
        let given = [call.bearer.as_deref(), call.parameter("token")];
        let mut given = given.into_iter().flatten();
        // No early end: how long it takes must not depend on which one is right.
        let is_known =
            given.any(|text| token.is(text) | self.publish_token.as_ref().is_some_and(|own| own.is(text)));
        if is_known {
            Ok(())
        } else {
            Err(answers::unauthorized(
                "reading needs the subscribe token: Authorization: Bearer TOKEN, or ?token=",
            ))
        }
    }

    /// Writing needs the publish token. Without one it is for this machine alone, and what comes through a proxy or
    /// under a foreign name does not count as that.
    fn check_writer(&self, call: &Call) -> Result<(), Answer> {
        let refused = |text: &str| Err(Answer::refusal(403, text));
        let host = call.host.as_deref().unwrap_or_default();
        let is_foreign = |origin: &str| !is_same_origin(origin, host) && self.listed(origin).is_none();
        if call.method != Method::Get
            && call.method != Method::Head
            && call.origin.as_deref().is_some_and(is_foreign)
        {
            return refused(
                "writes from pages of another origin are refused; --allow-origin lists those that may",
            );
        }
        if let Some(token) = &self.publish_token {
            let is_known = call.bearer.as_deref().is_some_and(|text| token.is(text));
            return if is_known {
                Ok(())
            } else {
                Err(answers::unauthorized("this needs the publish token: Authorization: Bearer TOKEN"))
            };
        }
        if self.is_open {
            return Ok(());
        }
        if !is_local(call) {
            return refused("this is for the server's own machine alone; see --publish-token and --open");
        }
        if call.is_forwarded || call.is_http_1_0 {
            return refused(
                "this came through a proxy, and is for the server's own machine alone; see --publish-token",
            );
        }
        if !is_loopback_host(host) {
            return refused(
                "this is for the server's own machine alone, as localhost or 127.0.0.1; see --publish-token",
            );
        }
        Ok(())
    }

    /// What a browser is told about a page of another origin: nothing, unless it is listed.
    /// `preflight` is what the browser asks about first.
    pub fn cors_headers(
        &self,
        call: &Call,
        preflight: Option<&Result<Route, Answer>>,
    ) -> Vec<(&'static str, String)> {
        if self.origins.is_empty() {
            return Vec::new();
        }
        // An answer for one origin must not be kept for another.
        let mut headers = vec![("Vary", "Origin".to_owned())];
        if let Some(origin) = call.origin.as_deref().and_then(|origin| self.listed(origin)) {
            // Our own text, not the request's.
            headers.push(("Access-Control-Allow-Origin", origin.as_str().to_owned()));
            // `withCredentials`, for a proxy that knows its users by cookies; the server itself has none.
            headers.push(("Access-Control-Allow-Credentials", "true".to_owned()));
            headers.push(("Access-Control-Expose-Headers", "ETag, Retry-After".to_owned()));
            if let Some(Ok(route)) = preflight {
                headers.push(("Access-Control-Allow-Methods", route.methods().to_owned()));
                let allowed = "Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID";
                headers.push(("Access-Control-Allow-Headers", allowed.to_owned()));
                headers.push(("Access-Control-Max-Age", "600".to_owned()));
            }
        }
        headers
    }

    fn listed(&self, origin: &str) -> Option<&Origin> {
        self.origins.iter().find(|listed| listed.as_str().eq_ignore_ascii_case(origin))
    }
}

/// Whether the peer is on this machine.
fn is_local(call: &Call) -> bool {
    call.peer.ip().to_canonical().is_loopback()
}

/// Whether a page's origin is the host and port that it sent its request to. The scheme may differ: TLS can end at a
/// proxy.
fn is_same_origin(origin: &str, host: &str) -> bool {
    // No other scheme is a page's that this server has sent.
    let (default_port, authority) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(authority), _) => (80, authority),
        (_, Some(authority)) => (443, authority),
        _ => return false,
    };
    // A browser leaves the default port of its scheme out, and a proxy may put it in.
    let named = |authority| host_and_port(authority).map(|(host, port)| (host, port.unwrap_or(default_port)));
    named(authority).is_some_and(|named_by_page| named(host) == Some(named_by_page))
}

/// Whether a `Host` names this machine to itself. A foreign name can be made to point here, and a browser would not
/// know the difference.
fn is_loopback_host(host: &str) -> bool {
    match host_and_port(host) {
        Some((Named::Address(address), _)) => address.to_canonical().is_loopback(),
        Some((Named::Name(name), _)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// What a URL names a host by.
#[derive(Debug, PartialEq)]
enum Named {
    Address(IpAddr),
    /// In lower case, without the dot that may end it.
    Name(String),
}

/// The host of a `Host` header or an origin, and the port if it says one.
fn host_and_port(authority: &str) -> Option<(Named, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        (Named::Address(address.parse::<Ipv6Addr>().ok()?.into()), port)
    } else {
        let (name, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if name.is_empty() || name.ends_with('.') {
            return None;
        }
        (name.parse::<Ipv4Addr>().map_or(Named::Name(name), |address| Named::Address(address.into())), port)
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((host, None)),
        Some("") => Some((host, None)),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(digits.parse().ok()?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_host_is_one_by_name_or_address() {
        let ours = [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:80",
            "a.localhost",
            "localhost.",
            "LocalHost.:8080",
            "a.localhost.",
            "127.0.0.1.:80",
            "[0:0::1]:80",
            "[::ffff:127.0.0.1]",
            "localhost:",
        ];
        for host in ours {
            assert!(is_loopback_host(host), "{host}");
        }
        let foreign = [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "192.168.0.1",
            "[::2]",
            "[::1]x",
            "[::1].",
            "[localhost]",
            "[127.0.0.1]",
            "[::1",
            "::1",
            "[fe80::1]",
            "localhost..",
            ".",
            "localhost.example.org.",
            "localhost.:8080.",
            "localhost:8080:80",
            "localhost:+80",
            "localhost:80800",
            "127.0.0.1.1",
            "127.1",
            "0x7f.0.0.1",
            "0.0.0.0",
            "10.0.0.1:80",
        ];
        for host in foreign {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_the_same_if_host_and_port_are() {
        let same = [
            ("http://localhost:8080", "localhost:8080"),
            ("https://example.org", "Example.org"),
            ("http://example.org", "example.org"),
            // A default port is the same port, whoever says it.
            ("https://example.org", "example.org:443"),
            ("http://example.org", "example.org:80"),
            ("https://example.org:443", "example.org"),
            ("https://example.org", "example.org:"),
            ("http://example.org:443", "example.org:443"),
            ("https://example.org:8443", "example.org:8443"),
            ("https://[2001:db8::1]", "[2001:db8::1]:443"),
            ("https://[2001:DB8::1]", "[2001:db8:0::1]"),
            ("https://192.0.2.1", "192.0.2.1:443"),
            // As one is to DNS; nginx takes it from $host.
            ("https://example.org.", "example.org"),
            ("https://example.org", "EXAMPLE.org.:443"),
        ];
        for (origin, host) in same {
            assert!(is_same_origin(origin, host), "{origin} {host}");
        }
        let foreign = [
            ("null", "localhost:8080"),
            ("", "localhost:8080"),
            ("", ""),
            ("http://", ""),
            ("http://", "localhost:8080"),
            ("http://localhost", "localhost:8080"),
            ("http://localhost:8081", "localhost:8080"),
            ("http://evil/localhost:8080", "localhost:8080"),
            ("http://example.org", "example.org:443"),
            ("https://example.org", "example.org:80"),
            ("https://example.org:80", "example.org"),
            ("https://example.org", "example.org:444"),
            ("https://example.org", "example.org:4430"),
            ("https://example.org", "example.org:443:443"),
            ("https://example.org", "example.org:443.evil.example"),
            ("https://example.org", "xexample.org:443"),
            ("https://example.org", "example.org..:443"),
            ("https://example.org", "example.org:65979"),
            ("https://[::1]", "[::2]:443"),
            ("https://::1", "::1"),
            ("ws://example.org", "example.org:80"),
            ("example.org:443", "example.org:443"),
        ];
        for (origin, host) in foreign {
            assert!(!is_same_origin(origin, host), "{origin} {host}");
        }
    }
}
