//! Who may do what: secure without configuration, open when asked.
//!
//! `routes` asks before it does anything. The one rule: a page of a foreign origin never writes, whatever else is allowed,
//! because the visitor whose browser sends the request did not ask for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::http::{Answer, Call, Method};
use crate::server::answers;
use crate::server::config::Origin;
use crate::server::route::Route;
use crate::token::Token;

/// The rules that were configured.
pub(crate) struct Rules {
    /// Other machines may write without a token.
    pub is_open: bool,
    pub publish_token: Option<Token>,
    pub subscribe_token: Option<Token>,
    /// The origins whose pages may read and write.
    pub origins: Vec<Origin>,
}

impl Rules {
    /// Refuses a call that may not do what it asks for.
    pub fn check(&self, call: &Call, route: &Route) -> Result<(), Answer> {
        match (route, &call.method) {
            (_, Method::Options) | (Route::Health | Route::Metrics | Route::Page | Route::Lab, _) => Ok(()),
            (Route::Events(_) | Route::State(_), Method::Get | Method::Head) => self.check_reader(call),
            _ => self.check_writer(call),
        }
    }

    /// Reading needs the subscribe token, if there is one. `EventSource` can send it in the query alone. Without any token
    /// reading needs a name of this machine, as writing does: a website whose name was pointed here is, to its visitor's
    /// browser, the origin that it reads from.
    pub fn check_reader(&self, call: &Call) -> Result<(), Answer> {
        let Some(token) = &self.subscribe_token else {
            let is_for_this_machine = self.publish_token.is_none() && !self.is_open && is_local(call);
            // A browser always says what host it asks for.
            if is_for_this_machine && call.host.as_deref().is_some_and(|host| !is_loopback_host(host)) {
                let text = "without a token this is read as localhost or 127.0.0.1 alone, for any website's name can be \
                            pointed here; for another name set --subscribe-token, and behind a proxy --publish-token or both";
                return Err(Answer::refusal(403, text));
            }
            return Ok(());
        };
        // Both tokens are compared each time, so that the time says nothing of either.
        let is_known =
            |text: &str| token.is(text) | self.publish_token.as_ref().is_some_and(|own| own.is(text));
        if [call.bearer.as_deref(), call.parameter("token")].into_iter().flatten().any(is_known) {
            return Ok(());
        }
        let text = "reading needs the subscribe token: Authorization: Bearer TOKEN, or ?token=";
        Err(answers::unauthorized(text))
    }

    /// Writing needs the publish token. Without one it is for this machine alone. A call through a proxy or under a
    /// foreign name does not count as one from this machine.
    pub fn check_writer(&self, call: &Call) -> Result<(), Answer> {
        let host = call.host.as_deref().unwrap_or_default();
        let is_foreign = |origin: &str| !is_same_origin(origin, host) && self.listed(origin).is_none();
        let is_write = !matches!(call.method, Method::Get | Method::Head);
        let text = if is_write && call.origin.as_deref().is_some_and(is_foreign) {
            "writes from pages of another origin are refused; --allow-origin lists those that may"
        } else if let Some(token) = &self.publish_token {
            if call.bearer.as_deref().is_some_and(|text| token.is(text)) {
                return Ok(());
            }
            let text = "this needs the publish token: Authorization: Bearer TOKEN";
            return Err(answers::unauthorized(text));
        } else if self.is_open {
            return Ok(());
        } else if !is_local(call) {
            "this is for the server's own machine alone; see --publish-token and --open"
        } else if call.is_forwarded || call.is_http_1_0 {
            "this came through a proxy, and is for the server's own machine alone; see --publish-token"
        } else if !is_loopback_host(host) {
            "this is for the server's own machine alone, as localhost or 127.0.0.1; see --publish-token"
        } else {
            return Ok(());
        };
        Err(Answer::refusal(403, text))
    }

    /// The headers that tell a browser what a page of another origin may do: nothing, unless the origin is listed.
    /// `preflight` is the route that a browser asks about before it sends the page's request.
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
            let mut put = |name, value: &str| headers.push((name, value.to_owned()));
            // The text of the configuration, because nothing of a request is echoed.
            put("Access-Control-Allow-Origin", origin.as_str());
            // For a proxy that knows its users by cookies, with `withCredentials`. The server itself has no cookies.
            put("Access-Control-Allow-Credentials", "true");
            put("Access-Control-Expose-Headers", "Date, ETag, Retry-After");
            if let Some(Ok(route)) = preflight {
                put("Access-Control-Allow-Methods", route.methods());
                let allowed = "Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID";
                put("Access-Control-Allow-Headers", allowed);
                put("Access-Control-Max-Age", "600");
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

/// Whether a page's origin has the host and port that its request was sent to. The scheme may differ, because TLS can end
/// at a proxy.
fn is_same_origin(origin: &str, host: &str) -> bool {
    // No page that this server sent has another scheme.
    let (default_port, authority) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(authority), _) => (80, authority),
        (_, Some(authority)) => (443, authority),
        _ => return false,
    };
    // A browser leaves the default port of its scheme out, and a proxy may put it in.
    let named = |authority| host_and_port(authority).map(|(host, port)| (host, port.unwrap_or(default_port)));
    named(authority).is_some_and(|named_by_page| named(host) == Some(named_by_page))
}

/// Whether a `Host` names this machine to itself. A foreign name can be made to point here, which no browser notices.
fn is_loopback_host(host: &str) -> bool {
    match host_and_port(host) {
        Some((Named::Address(address), _)) => address.to_canonical().is_loopback(),
        Some((Named::Name(name), _)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// How a URL names a host.
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
    let port = match port {
        "" | ":" => None,
        _ => {
            let digits =
                port.strip_prefix(':').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            Some(digits?.parse().ok()?)
        }
    };
    Some((host, port))
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
