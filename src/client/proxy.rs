//! The proxy for a URL: the one that was named, else the environment's as curl reads it. This machine needs none.
//!
//! `http` asks for each URL. The one rule: a proxy that was set is used or refused, never ignored in silence, and its
//! password is never shown. ureq's own reading of the environment takes `HTTPS_PROXY` for `http://`, too, and ignores
//! what it does not understand (ureq 3.5 proxy.rs, `try_from_env`).

use std::ffi::OsString;
use std::net::IpAddr;

use ureq::Proxy;
use ureq::http::Uri;

use crate::client::url::check_server;

/// The proxy for a URL, if it needs one. `named` is for every URL. An empty name means none.
pub(crate) fn proxy_for(uri: &Uri, named: Option<&str>) -> Result<Option<Proxy>, String> {
    proxy_in(&|name| std::env::var_os(name), uri, named)
}

/// The proxy for a URL in another environment.
pub(crate) fn proxy_in(
    variable: &dyn Fn(&str) -> Option<OsString>,
    uri: &Uri,
    named: Option<&str>,
) -> Result<Option<Proxy>, String> {
    match named {
        Some("") => return Ok(None),
        Some(named) => return read(named).map(Some).map_err(|right| format!("the proxy: must be {right}")),
        None => {}
    }
    let host =
        uri.host().unwrap_or_default().trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    if is_this_machine(&host) {
        return Ok(None);
    }
    // As with curl, an empty variable means none. HTTP_PROXY is not read: of a CGI program it is a header of the request.
    let first = |variables: &[&'static str]| {
        variables.iter().find_map(|name| Some((*name, variable(name).filter(|value| !value.is_empty())?)))
    };
    let is_https = uri.scheme_str() == Some("https");
    let of_scheme: &[_] = if is_https { &["https_proxy", "HTTPS_PROXY"] } else { &["http_proxy"] };
    let Some((name, proxy)) = first(&[of_scheme, &["all_proxy", "ALL_PROXY"]].concat()) else {
        return Ok(None);
    };
    let text = |name, value: OsString| value.into_string().map_err(|_| format!("{name}: must be UTF-8"));
    let exempt = first(&["no_proxy", "NO_PROXY"]).map(|(name, value)| text(name, value)).transpose()?;
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    if exempt.is_some_and(|list| list.split([',', ' ', '\t']).any(|entry| matches(entry, &host, port))) {
        return Ok(None);
    }
    read(&text(name, proxy)?).map(Some).map_err(|right| format!("{name}: must be {right}"))
}

/// A proxy that ureq can speak with. An error says what would be right.
pub(crate) fn read(text: &str) -> Result<Proxy, String> {
    const RIGHT: &str = "a proxy of HTTP, such as http://proxy.example:3128";
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = url.parse().map_err(|_| RIGHT)?;
    check_server(&uri).map_err(|why| format!("{RIGHT}: {why}"))?;
    Ok(Proxy::new(&url).map_err(|_| RIGHT)?)
}

/// Whether a host is this machine by its name. Names are not resolved.
fn is_this_machine(host: &str) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        let address = address.to_canonical();
        return address.is_loopback() || address.is_unspecified();
    }
    // 127.1 is short for 127.0.0.1.
    let is_digits = |rest: &str| rest.chars().all(|letter| letter.is_ascii_digit() || letter == '.');
    let is_loopback = host.strip_prefix("127.").is_some_and(is_digits);
    is_loopback || host == "localhost" || host.ends_with(".localhost")
}

/// Whether an entry of `no_proxy` names the host. `example.org`, `.example.org` and `*.example.org` are this name and all names
/// below it. An entry may also be an address, or a net: `10.0.0.0/8`. Behind `:` is the only port. `*` names all hosts.
fn matches(entry: &str, host: &str, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    // An address of IPv6 has colons of its own.
    let (name, is_port) = match entry.rsplit_once(':') {
        Some((name, digits)) if !name.contains(':') || name.ends_with(']') => {
            (name, digits.parse() == Ok(port))
        }
        _ => (entry, true),
    };
    let name = name.trim_start_matches('[').trim_end_matches([']', '.']).to_ascii_lowercase();
    if !is_port || name.is_empty() {
        return false;
    }
    if let Ok(address) = host.parse() {
        return is_within(address, &name);
    }
    let name = name.trim_start_matches('*').trim_start_matches('.');
    !name.is_empty() && host.strip_suffix(name).is_some_and(|below| below.is_empty() || below.ends_with('.'))
}

/// Whether an address is in a net, `10.0.0.0/8`, or is the only one in it.
fn is_within(address: IpAddr, net: &str) -> bool {
    let (net, bits) = net.split_once('/').unwrap_or((net, ""));
    let all_bits = if address.is_ipv4() { 32 } else { 128 };
    let bits = if bits.is_empty() { Ok(all_bits) } else { bits.parse() };
    let (Ok(bits), Ok(net)) = (bits, net.parse()) else {
        return false;
    };
    let same_bits = match (address, net) {
        (IpAddr::V4(address), IpAddr::V4(net)) => (address.to_bits() ^ net.to_bits()).leading_zeros(),
        (IpAddr::V6(address), IpAddr::V6(net)) => (address.to_bits() ^ net.to_bits()).leading_zeros(),
        _ => return false,
    };
    bits <= same_bits
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    /// Host and port of the proxy.
    fn proxy(url: &str, named: Option<&str>, variables: Variables) -> Result<Option<String>, String> {
        let variable = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| OsString::from(value))
        };
        let proxy = proxy_in(&variable, &url.parse().unwrap(), named)?;
        Ok(proxy.map(|proxy| format!("{}:{}", proxy.host(), proxy.port())))
    }

    #[test]
    fn a_proxy_is_for_its_scheme_alone_as_curl_has_it() {
        let (http, https) = ("http://example.org/", "https://example.org/");
        let table: [(&str, Variables, Option<&str>); 16] = [
            (http, &[], None),
            (http, &[("http_proxy", "http://p:1")], Some("p:1")),
            (https, &[("http_proxy", "http://p:1")], None),
            (http, &[("HTTPS_PROXY", "http://p:1"), ("https_proxy", "http://p:2")], None),
            (https, &[("HTTPS_PROXY", "http://p:1")], Some("p:1")),
            (https, &[("HTTPS_PROXY", "http://p:1"), ("https_proxy", "http://p:2")], Some("p:2")),
            // Of a CGI program it is a header of the request.
            (http, &[("HTTP_PROXY", "http://p:1")], None),
            (http, &[("ALL_PROXY", "http://p:1")], Some("p:1")),
            (https, &[("all_proxy", "http://p:1"), ("ALL_PROXY", "http://p:2")], Some("p:1")),
            (http, &[("http_proxy", "http://p:1"), ("all_proxy", "http://p:2")], Some("p:1")),
            (http, &[("http_proxy", ""), ("all_proxy", "http://p:2")], Some("p:2")),
            (http, &[("http_proxy", ""), ("all_proxy", "")], None),
            (http, &[("http_proxy", "p:1")], Some("p:1")),
            (http, &[("http_proxy", "user:s3:c@ret@p:1/")], Some("p:1")),
            (http, &[("http_proxy", "http://[fe80::1]:3128")], Some("[fe80::1]:3128")),
            (http, &[("http_proxy", "http://p")], Some("p:80")),
        ];
        for (url, variables, expected) in table {
            assert_eq!(proxy(url, None, variables), Ok(expected.map(str::to_owned)), "{url} {variables:?}");
        }
    }

    #[test]
    fn this_machine_is_asked_without_a_proxy_unless_one_is_named() {
        let variables = ["http_proxy", "https_proxy", "all_proxy"].map(|name| (name, "http://p:1"));
        let hosts = [
            "localhost",
            "LocalHost",
            "localhost.",
            "a.localhost",
            "127.0.0.1",
            "127.9.9.9",
            "127.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "[::]",
        ];
        for host in hosts {
            for url in [format!("http://{host}/a"), format!("https://{host}:8080/a")] {
                assert_eq!(proxy(&url, None, &variables), Ok(None), "{url}");
                assert_eq!(proxy(&url, Some("q:2"), &variables), Ok(Some("q:2".into())), "{url}");
            }
        }
        for host in [
            "localhost.example.org",
            "127.example.org",
            "notlocalhost",
            "128.0.0.1",
            "[::2]",
            "[::ffff:10.0.0.1]",
        ] {
            assert_eq!(proxy(&format!("http://{host}/"), None, &variables), Ok(Some("p:1".into())), "{host}");
            assert_eq!(proxy(&format!("http://{host}/"), Some(""), &variables), Ok(None), "{host}");
        }
    }

    #[test]
    fn what_no_proxy_lists_is_asked_directly() {
        let table = [
            ("example.org", "*", true),
            ("example.org", "a, *", true),
            ("example.org", "example.org", true),
            ("www.example.org", "example.org", true),
            ("WWW.example.ORG.", "Example.org.", true),
            ("www.example.org", ".example.org", true),
            ("www.example.org", "*.example.org", true),
            ("example.org", "a.org b.org,example.org", true),
            ("example.org:8080", "example.org:8080", true),
            ("example.org", "example.org:80", true),
            ("example.org", "example.org:8080", false),
            ("notexample.org", "example.org", false),
            ("example.org.evil", "example.org", false),
            ("example.org", "www.example.org", false),
            ("example.org", "", false),
            ("example.org", ",, .,*.", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1:8080", "10.0.0.1:8080", true),
            ("10.0.0.1", "10.0.0.10,0.0.1", false),
            ("10.0.0.1", "10.0.0.0/8", true),
            ("10.0.0.1", "11.0.0.0/8", false),
            ("10.0.0.1", "11.0.0.0/0", true),
            ("10.0.0.1", "10.0.0.1/33,10.0.0.1/-1,10.0.0.1/x,::/0", false),
            ("[fe80::1]", "fe80::1", true),
            ("[fe80::1]:81", "[FE80:0::1]:81", true),
            ("[fe80::1]:81", "[fe80::1]:82", false),
            ("[fe80::1]", "fe80::/10", true),
            ("[fe80::1]", "fe80::2/128,0.0.0.0/0", false),
        ];
        for (host, no_proxy, is_exempt) in table {
            for name in ["no_proxy", "NO_PROXY"] {
                let variables = [("http_proxy", "p:1"), (name, no_proxy)];
                let found = proxy(&format!("http://{host}/"), None, &variables).unwrap();
                assert_eq!(found.is_none(), is_exempt, "{host} {no_proxy}");
            }
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_spoken_with_is_refused_by_its_name_and_its_password_not_shown() {
        let wrong = [
            "socks5://user:s3cret@p:1",
            "socks4a://p",
            "ftp://p",
            "http://",
            "http://user:s3cret@",
            "http://user:s3cret@p:80800",
            "user:s3cret@p:",
            "p:+1",
            "http://user:s3%ffcret@p:1",
            "s3 cret",
            "http://user:s3cret@p:1 ",
            "://p",
        ];
        for text in wrong {
            let line = proxy("http://a/", None, &[("all_proxy", text)]).unwrap_err();
            assert!(line.starts_with("all_proxy: must be a proxy of HTTP, such as http://"), "{line}");
            assert!(!line.contains("s3") && !line.contains("cret"), "{line}");
            assert_eq!(proxy("https://a/", None, &[("http_proxy", text)]), Ok(None), "it is not asked");
            assert!(proxy("http://a/", Some(text), &[]).unwrap_err().starts_with("the proxy: must be"));
        }
        for wrong in ["http_proxy", "no_proxy"] {
            let variable = |name: &str| {
                let value = if name == wrong { OsStr::from_bytes(b"s3cr\xfct") } else { "p:1".as_ref() };
                Some(value.to_owned())
            };
            let line = proxy_in(&variable, &"http://a/".parse().unwrap(), None).unwrap_err();
            assert_eq!(line, format!("{wrong}: must be UTF-8"));
        }
    }
}
