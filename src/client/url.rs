//! Which URLs can be asked for: what a person gives, and what a redirect leads to.
//!
//! The one rule: a URL is judged before anything is sent. To http 1.5 a port that is none is no port
//! (uri/authority.rs, `Authority::port`), and ureq asks port 80 instead, with the token.

use std::io;

use ureq::http::Uri;

/// Whether ureq as it was built can ask for this.
pub(crate) fn check_url(url: &str) -> io::Result<Uri> {
    let wrong = |why: &str| invalid(format!("{} is no URL: {why}", shown(url)));
    let uri: Uri = url.parse().map_err(|error| wrong(&format!("{error}")))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if cfg!(feature = "tls") => {}
        Some("https") => {
            return Err(invalid(format!("{}: https needs statecast built with the feature tls", shown(url))));
        }
        _ => return Err(wrong("it begins with http://")),
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(wrong("a user and a password belong into a header"));
    }
    check_authority(authority).map_err(|why| wrong(&why))?;
    Ok(uri)
}

/// Whether this is a host, with a port behind it or without; else why not.
pub(crate) fn check_authority(authority: &str) -> Result<(), String> {
    // An address of IPv6 has colons of its own, within brackets.
    let host_end = if authority.starts_with('[') {
        authority.find(']').map(|bracket| bracket + 1)
    } else {
        authority.find(':')
    };
    let (host, port) = authority.split_at(host_end.unwrap_or(authority.len()));
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        // A sign or a zero before the number would be taken, too.
        Some(digits)
            if digits.starts_with(|first| matches!(first, '1'..='9')) && digits.parse::<u16>().is_ok() =>
        {
            Ok(())
        }
        _ => Err("a port is a number from 1 to 65535, without zeros before it".to_owned()),
    }
}

/// Where a redirect of `base` leads: RFC 3986, section 5.2, as far as it concerns HTTP.
pub(crate) fn redirected(base: &Uri, location: &str) -> io::Result<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let is_of_scheme = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
    let scheme = location.split_once(':').filter(|(scheme, _)| scheme.chars().all(is_of_scheme));
    if scheme.is_some() {
        return check_url(location);
    }
    let base_scheme = base.scheme_str().unwrap_or_default();
    if location.starts_with("//") {
        return check_url(&format!("{base_scheme}:{location}"));
    }
    let path = base.path();
    let path_and_query = match location.as_bytes().first() {
        None => base.path_and_query().map_or("/", |same| same.as_str()).to_owned(),
        Some(b'/') => location.to_owned(),
        Some(b'?') => format!("{path}{location}"),
        Some(_) => format!("{}{location}", &path[..=path.rfind('/').unwrap_or(0)]),
    };
    let authority = base.authority().map_or("", |authority| authority.as_str());
    check_url(&format!("{base_scheme}://{authority}{}", without_dots(&path_and_query)))
}

/// A path, and the query behind it, without the segments `.` and `..`.
fn without_dots(path_and_query: &str) -> String {
    let (path, query) = path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()));
    let mut kept = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        kept.push("");
    }
    format!("/{}{query}", kept.join("/"))
}

/// The URL without what may be secret in it: a query, and whatever there is where an @ is.
pub(crate) fn shown(url: &str) -> String {
    let scheme_end = url.find("://").map_or(0, |colon| colon + 3);
    let end = if url.contains('@') { Some(scheme_end) } else { url.find(['?', '#']) };
    match end {
        Some(end) => format!("\"{}...\"", url[..end].escape_debug()),
        None => format!("{url:?}"),
    }
}

pub(crate) fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
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
        let line = check_url("http://a:80800/b?token=s3cret").unwrap_err().to_string();
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
            let line = check_url(url).err().unwrap_or_else(|| panic!("{url}")).to_string();
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
            let line = redirected(&base, location).err().unwrap_or_else(|| panic!("{location}")).to_string();
            assert!(!line.contains("s3cret"), "{line}");
        }
    }
}
