//! Requests over HTTP: what both the stream and the publishers need, on ureq.
//!
//! `event_source` listens with it, and the commands publish with it. The one rule: each URL, header and proxy is judged
//! before anything is sent.

use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use ureq::config::ConfigBuilder;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, DATE, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use ureq::typestate::AgentScope;
use ureq::{Agent, AsSendBody, Body};

use crate::client::proxy::proxy_for;
use crate::client::url::{check_url, redirected};
use crate::clock::random_between;
use crate::token::Token;

/// The limit for a name to be resolved, and again for a connection.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);

/// The part of a refusal's body that is read.
const REFUSAL_BYTES: u64 = 4_096;

/// The number of redirects that a browser follows.
const MAX_REDIRECTS: u32 = 20;

/// The shortest wait. A server that says `retry: 0` and ends each stream gets ten tries a second.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// The longest wait, and small enough to be added to a time.
pub(crate) const A_DAY: Duration = Duration::from_secs(86_400);

/// The least and the most that failures add to the reconnection time.
const EXTRA_WAIT_MS: (u64, u64) = (500, 30_000);

const USER_AGENT: &str = concat!("statecast/", env!("CARGO_PKG_VERSION"));

/// A URL, and what each request to it has.
#[derive(Clone)]
pub(crate) struct Endpoint {
    url: Uri,
    pub headers: HeaderMap,
    proxy: Option<String>,
}

impl Endpoint {
    /// Judges a URL, a token, further headers and the proxy of that name; without a name, the environment's.
    pub fn new(
        url: &str,
        token: Option<&Token>,
        headers: &[(String, String)],
        proxy: Option<&str>,
    ) -> io::Result<Endpoint> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        let url = check_url(url).map_err(invalid)?;
        proxy_for(&url, proxy).map_err(invalid)?;
        let mut headers = header_map(headers).map_err(invalid)?;
        if let Some(token) = token {
            let value = HeaderValue::from_str(&token.bearer()).expect("a token is visible ASCII");
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Endpoint { url, headers, proxy: proxy.map(str::to_owned) })
    }

    /// Gets what is there, or where redirects lead. Blocks until the head of the answer is there.
    ///
    /// ureq does not follow redirects itself: it would not judge their URLs, and would keep to one proxy.
    pub fn get(mut self, agent: &Agent) -> Result<Response<Body>, String> {
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.ask(agent, Method::GET, ())?;
            let Some(location) = location(&answer) else {
                return Ok(answer);
            };
            let next = redirected(&self.url, location).map_err(|error| format!("a redirect: {error}"))?;
            if !is_as_trusted(&next, &self.url) {
                self.headers.remove(AUTHORIZATION);
                self.headers.remove(COOKIE);
            }
            self.url = next;
        }
        Err(format!("more than {MAX_REDIRECTS} redirects"))
    }

    /// Asks once. Blocks until the head of the answer is there. An error names the proxy, if there is one, because nothing
    /// beyond it can be seen.
    pub fn ask(
        &self,
        agent: &Agent,
        method: Method,
        body: impl AsSendBody,
    ) -> Result<Response<Body>, String> {
        let proxy = proxy_for(&self.url, self.proxy.as_deref())?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = self.headers.clone();
        let request = agent.configure_request(request).proxy(proxy.clone()).build();
        agent.run(request).map_err(|error| match (error.into_io(), proxy) {
            (error, Some(proxy)) => format!("the proxy {}:{}: {error}", proxy.host(), proxy.port()),
            (error, None) => error.to_string(),
        })
    }
}

/// Headers as HTTP has them. An error never has a value, which may be a secret.
pub(crate) fn header_map(headers: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("{name:?} is no name of a header"))?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| format!("the value of header {name} holds a control character"))?;
        map.append(name, value);
    }
    Ok(map)
}

/// The configuration of every agent.
pub(crate) fn agent_config() -> ConfigBuilder<AgentScope> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(USER_AGENT)
        // Each request names its own.
        .proxy(None)
        // ureq would not judge the URLs, and would turn PATCH and POST into GET.
        .max_redirects(0)
        .timeout_connect(Some(CONNECT));
    #[cfg(feature = "tls")]
    let config = {
        use ureq::tls::{RootCerts, TlsConfig};
        config.tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
    };
    config
}

/// Whether an answer may be another one soon: the server is busy, or a proxy cannot reach it.
#[cfg(feature = "cli")]
pub(crate) fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// The text of a header, if it is text.
pub(crate) fn header(answer: &Response<Body>, name: HeaderName) -> Option<&str> {
    answer.headers().get(name)?.to_str().ok()
}

/// The place that an answer redirects to. A place that is no text is one that nobody can go to.
fn location(answer: &Response<Body>) -> Option<&str> {
    let is_redirect = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = answer.headers().get(LOCATION).filter(|_| is_redirect)?;
    Some(location.to_str().unwrap_or("://"))
}

/// Whether secrets for `from` may go to `to`: it is the same host, and not in clear where `from` is encrypted.
fn is_as_trusted(to: &Uri, from: &Uri) -> bool {
    let host = |url: &Uri| url.host().unwrap_or_default().to_ascii_lowercase();
    let is_https = |url: &Uri| url.scheme_str() == Some("https");
    host(to) == host(from) && (is_https(to) || !is_https(from))
}

/// The time until an answer asks to be tried again: its seconds, or its date by the server's clock.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let date = |text| httpdate::parse_http_date(text).ok();
    let after: &str = text(RETRY_AFTER)?;
    let time = if !after.is_empty() && after.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time all the same.
        after.parse().map_or(A_DAY, Duration::from_secs)
    } else {
        // Our own clock may be wrong: a Pi has none while it is off. A date in the past means now.
        let now = text(DATE).and_then(date).unwrap_or_else(SystemTime::now);
        date(after)?.duration_since(now).unwrap_or_default()
    };
    Some(time.clamp(SHORTEST_WAIT, A_DAY))
}

/// The reason that an answer gives, in one line: the `error` of a JSON body, or a plain one. Empty for a page.
pub(crate) fn refusal_text(answer: &mut Response<Body>) -> String {
    let mut body = Vec::new();
    // A body that is cut says something, too.
    answer.body_mut().as_reader().take(REFUSAL_BYTES).read_to_end(&mut body).ok();
    let body = String::from_utf8_lossy(&body);
    let is_page = header(answer, CONTENT_TYPE).is_some_and(|text| text.starts_with("text/html"));
    let json = serde_json::from_str::<Value>(&body).unwrap_or_default();
    let text = json["error"].as_str().unwrap_or(if is_page { "" } else { &body });
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The wait before the next try: the reconnection time and, after failures, a random time that may double with each.
pub(crate) fn wait_after(failures: u32, reconnection_time: Duration) -> Duration {
    let least = reconnection_time.clamp(SHORTEST_WAIT, A_DAY);
    let (smallest, largest) = EXTRA_WAIT_MS;
    let doubled = (1 << failures.min(16)) - 1;
    let extra = (least.as_millis() as u64).max(smallest) * doubled;
    least + Duration::from_millis(random_between(0, extra.min(largest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_failures_and_never_fall_below_the_reconnection_time() {
        let table = [
            (0, 3_000, 3_000..=3_000),
            (1, 3_000, 3_000..=6_000),
            (2, 3_000, 3_000..=12_000),
            (9, 3_000, 3_000..=33_000),
            (u32::MAX, 3_000, 3_000..=33_000),
            (0, 0, 100..=100),
            (1, 0, 100..=600),
            (3, u64::MAX, 86_400_000..=86_430_000),
        ];
        for (failures, time, range) in table {
            let waits: Vec<_> = (0..200)
                .map(|_| wait_after(failures, Duration::from_millis(time)).as_millis() as u64)
                .collect();
            assert!(waits.iter().all(|wait| range.contains(wait)), "{failures}, {time}: {waits:?}");
            let is_random = waits.iter().any(|wait| *wait != waits[0]);
            assert_eq!(is_random, range.start() != range.end(), "{failures}, {time}: {waits:?}");
        }
    }

    #[test]
    fn retry_after_is_a_day_at_most_and_a_date_counts_by_the_clock_of_the_server() {
        const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        let day = Some(86_400_000);
        let table = [
            ("7", "", Some(7_000)),
            (" 7 ", NOW, Some(7_000)),
            ("0", "", Some(100)),
            ("000000000000000000000000000001", "", Some(1_000)),
            ("86401", "", day),
            ("2147484", "", day),
            ("18446744073709551615", "", day),
            ("99999999999999999999999999", "", day),
            ("-1", "", None),
            ("+1", "", None),
            ("1.5", "", None),
            ("1e3", "", None),
            ("NaN", "", None),
            ("Infinity", "", None),
            ("1, 2", "", None),
            ("", "", None),
            ("soon", NOW, None),
            ("Sun, 06 Nov 1994 08:49:47 GMT", NOW, Some(10_000)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", NOW, Some(10_000)),
            ("Sun Nov  6 08:49:47 1994", NOW, Some(10_000)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", NOW, Some(100)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", NOW, day),
            // Without a clock of the server's there is our own.
            ("Sun, 06 Nov 1994 08:49:47 GMT", "", Some(100)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", "yesterday", Some(100)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", "", day),
            ("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", Some(100)),
            ("Sun, 06 Nov 1994 08:49:47", NOW, None),
            ("Sun, 36 Nov 1994 08:49:47 GMT", NOW, None),
        ];
        for (after, date, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
            if !date.is_empty() {
                headers.insert(DATE, HeaderValue::from_static(date));
            }
            let time = retry_after(&headers).map(|time| time.as_millis());
            assert_eq!(time, expected, "{after:?} at {date:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(retry_after(&headers), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
