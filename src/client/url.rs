//! The URLs that can be asked: what a person gives, and what a redirect leads to.
//!
//! The one rule: a URL is judged before anything is sent. http 1.5 takes a wrong port for no port (uri/authority.rs,
//! `Authority::port`), and ureq would send the token to port 80.

use ureq::http::Uri;

/// A URL that ureq as it was built can ask.
pub(crate) fn check_url(url: &str) -> Result<Uri, String> {
    let wrong = |why: &str| format!("{} is no URL: {why}", shown(url));
    let uri: Uri = url.parse().map_err(|error| wrong(&format!("{error}")))?;
    if authority(&uri).contains('@') {
        return Err(wrong("a user and a password belong into a header"));
    }
    check_server(&uri).map_err(|why| wrong(&why))?;
    Ok(uri)
}

fn authority(uri: &Uri) -> &str {
    uri.authority().map_or("", |authority| authority.as_str())
}

/// Checks that ureq can connect there: the scheme, the host and the port.
pub(crate) fn check_server(uri: &Uri) -> Result<(), String> {
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if cfg!(feature = "tls") => {}
        Some("https") => return Err("https needs statecast built with the feature tls".to_owned()),
        _ => return Err("it begins with http://".to_owned()),
    }
    let server = authority(uri).rsplit('@').next().unwrap_or_default();
    // An address of IPv6 has colons of its own, within brackets.
    let host_end = match server.strip_prefix('[') {
        Some(rest) => rest.find(']').map(|bracket| bracket + 2),
        None => server.find(':'),
    };
    let (host, port) = server.split_at(host_end.unwrap_or(server.len()));
    // Rust would also take a plus or zeros before the number.
    let is_port = |digits: &str| !digits.starts_with(['+', '0']) && digits.parse::<u16>().is_ok();
    match port.strip_prefix(':') {
        _ if host.is_empty() => Err("it names no host".to_owned()),
        None if port.is_empty() => Ok(()),
        Some(digits) if is_port(digits) => Ok(()),
        _ => Err("a port is a number from 1 to 65535, without zeros before it".to_owned()),
    }
}

/// The URL that a redirect of `base` leads to: RFC 3986, section 5.2, as far as HTTP needs it.
pub(crate) fn redirected(base: &Uri, location: &str) -> Result<Uri, String> {
    let location = location.split('#').next().unwrap_or_default();
    let is_of_scheme = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
    if location.split_once(':').is_some_and(|(scheme, _)| scheme.chars().all(is_of_scheme)) {
        return check_url(location);
    }
    let scheme = base.scheme_str().unwrap_or_default();
    if location.starts_with("//") {
        return check_url(&format!("{scheme}:{location}"));
    }
    let path = base.path();
    let path_and_query = match location.as_bytes().first() {
        None => base.path_and_query().map_or("/", |same| same.as_str()).to_owned(),
        Some(b'/') => location.to_owned(),
        Some(b'?') => format!("{path}{location}"),
        Some(_) => format!("{}{location}", &path[..=path.rfind('/').unwrap_or(0)]),
    };
    check_url(&format!("{scheme}://{}{}", authority(base), without_dots(&path_and_query)))
}

/// A path, and the query behind it, without the segments `.` and `..`.
fn without_dots(path_and_query: &str) -> String {
    let (path, query) = path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()));
    let mut kept = Vec::new();
    for segment in path.split('/').skip(1).filter(|segment| *segment != ".") {
        if segment == ".." {
            kept.pop();
        } else {
            kept.push(segment);
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        kept.push("");
    }
    format!("/{}{query}", kept.join("/"))
}

/// The URL without its secrets: without a query, and without all that is before or behind an @.
pub(crate) fn shown(url: &str) -> String {
    let scheme_end = url.find("://").map_or(0, |colon| colon + 3);
    let end = if url.contains('@') { Some(scheme_end) } else { url.find(['?', '#']) };
    match end {
        Some(end) => format!("\"{}...\"", url[..end].escape_debug()),
        None => format!("{url:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_none_is_refused_and_not_taken_for_the_default_one() {
        let ports = [
            "",
            "0",
            "00",
            "080",
            "008080",
            "65536",
            "80800",
            "99999999999999999999",
            "-1",
            "+80",
            "-0",
            "8080x",
            "x",
            "8o80",
            "0x50",
            "80.",
            "8_0",
            "80,81",
            "8080:80",
            "80;",
            "80&",
            "80*",
            "80[",
            "80]",
        ];
        for host in ["localhost", "127.0.0.1", "example.org.", "[::1]", "[fe80::1]"] {
            for port in ports {
                for rest in ["", "/", "/a/b", "/events/kitchen", "?a"] {
                    let url = format!("http://{host}:{port}{rest}");
                    assert!(check_url(&url).is_err(), "{url}");
                }
            }
            for port in ["", ":1", ":80", ":8080", ":65535"] {
                let uri = check_url(&format!("HTTP://{host}{port}/a")).unwrap();
                assert_eq!(uri.port_u16(), port.strip_prefix(':').map(|port| port.parse().unwrap()));
            }
        }
        let others = [
            "http://",
            "http:///a",
            "http://:80/",
            "http://[::1]80",
            "http://[::1]x:80",
            "http://[::1",
            "http://::1:80",
            "http://a:80:80",
            "http://a: 80",
            "http://a :80",
            "http://a:80 ",
            "http://a:\u{ff18}0",
            "http://a:%38%30",
            "http://a%3a80",
            "http://a:80\\@b",
            "http:a",
            "http:/a",
            "a:80",
            "//a:80",
            "ws://a",
            "file:///a",
        ];
        for url in others {
            assert!(check_url(url).is_err(), "{url}");
        }
        let line = check_url("http://a:80800/b?token=s3cret").unwrap_err();
        assert_eq!(
            line,
            "\"http://a:80800/b...\" is no URL: a port is a number from 1 to 65535, without zeros before it"
        );
    }

    #[test]
    fn a_host_that_stands_where_a_user_does_is_refused_and_no_password_is_shown() {
        let urls = [
            "http://user:s3cret@a/b",
            "http://a:80@b",
            "http://a:80@b:81/",
            "http://a@b@c",
            "http://@a",
            "http://a@",
            "http://user:s3/cret@a",
            "http://user:s3?cret@a",
            "http://user:s3#cret@a",
            "http://user:s3 cret@a",
            "http://user:s3cret@a:80800",
            "ftp://user:s3cret@a",
            "https://user:s3cret@a",
            "user:s3cret@a",
        ];
        for url in urls {
            let line = check_url(url).err().unwrap_or_else(|| panic!("{url}"));
            assert!(!line.contains("s3") && !line.contains("cret"), "{line}");
        }
    }

    #[test]
    fn a_redirect_leads_to_where_a_browser_goes_or_nowhere() {
        let base = check_url("http://a:8080/b/c?d").unwrap();
        let table = [
            ("http://b:81/x?y", "http://b:81/x?y"),
            ("HTTP://B/x#fragment", "http://B/x"),
            ("//b:81/x", "http://b:81/x"),
            ("/x/y?z", "http://a:8080/x/y?z"),
            ("x", "http://a:8080/b/x"),
            ("./x/", "http://a:8080/b/x/"),
            ("../x", "http://a:8080/x"),
            ("../../../x/..", "http://a:8080/"),
            ("/x/./y/../z?../..", "http://a:8080/x/z?../.."),
            ("x/y:80800", "http://a:8080/b/x/y:80800"),
            ("?x:y", "http://a:8080/b/c?x:y"),
            ("#x", "http://a:8080/b/c?d"),
            ("", "http://a:8080/b/c?d"),
        ];
        for (location, url) in table {
            assert_eq!(redirected(&base, location).unwrap().to_string(), url, "{location}");
        }
        let wrong = [
            "http://a:80800/",
            "http://a:/",
            "//a:80800/",
            "//a:+80",
            "//",
            "http://",
            "http:///x",
            "a:80",
            "ftp://a/",
            "javascript:x",
            "http://a:80@b/",
            "//s3cret@b/",
            "/a b",
            "http:x",
            "http:/x",
        ];
        for location in wrong {
            let line = redirected(&base, location).err().unwrap_or_else(|| panic!("{location}"));
            assert!(!line.contains("s3cret"), "{line}");
        }
    }
}
