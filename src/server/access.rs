//! Who may do what: secure without configuration, open when asked.
//!
//! `server` asks before it does anything. The one rule: a page of a foreign origin never writes, whatever else is
//! allowed, because the visitor whose browser sends the request did not ask for it.

use std::net::IpAddr;

use tiny_http::Method;

use crate::http::answer::Answer;
use crate::http::call::Call;
use crate::server::Route;
use crate::server::config::{Origin, Token};

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

    /// Reading needs the subscribe token, if there is one; `EventSource` can send it in the query alone.
    fn check_reader(&self, call: &Call) -> Result<(), Answer> {
        let Some(token) = &self.subscribe_token else { return Ok(()) };
        let given = [call.bearer.as_deref(), call.parameter("token")];
        let mut given = given.into_iter().flatten();
        // No early end: how long it takes must not depend on which one is right.
        let is_known =
            given.any(|text| token.is(text) | self.publish_token.as_ref().is_some_and(|own| own.is(text)));
        if is_known {
            Ok(())
        } else {
            Err(Answer::unauthorized(
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
                Err(Answer::unauthorized("this needs the publish token: Authorization: Bearer TOKEN"))
            };
        }
        if self.is_open {
            return Ok(());
        }
        if !call.peer.ip().to_canonical().is_loopback() {
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
            headers.push(("Access-Control-Expose-Headers", "ETag, Retry-After".to_owned()));
            if let Some(Ok(route)) = preflight {
                headers.push(("Access-Control-Allow-Methods", route.methods().to_owned()));
                let allowed = "Authorization, Content-Type, If-None-Match, Last-Event-ID";
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

/// Whether a page's origin is the host and port that it sent its request to. The scheme may differ: TLS can end at a
/// proxy.
fn is_same_origin(origin: &str, host: &str) -> bool {
    // No other scheme is a page's that this server has sent.
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host))
}

/// Whether a `Host` names this machine to itself. A foreign name can be made to point here, and a browser would not
/// know the difference.
fn is_loopback_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, rest)) => match rest.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None => return false,
        },
        None => host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    if port.is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return false;
    }
    let name = name.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
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
            "0.0.0.0",
            "10.0.0.1:80",
        ];
        for host in foreign {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_the_same_if_host_and_port_are() {
        assert!(is_same_origin("http://localhost:8080", "localhost:8080"));
        assert!(is_same_origin("https://example.org", "Example.org"));
        for origin in
            ["null", "", "http://localhost", "http://localhost:8081", "http://evil/localhost:8080", "http://"]
        {
            assert!(!is_same_origin(origin, "localhost:8080"), "{origin}");
        }
        assert!(!is_same_origin("http://", ""));
    }
}
