//! `--public`: a folder's files and nothing else, under the names that links in a page lead to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use statecast::Server;
use support::*;

/// A server of a folder, which goes with it.
struct Site {
    server: Server,
    root: PathBuf,
}

impl Site {
    /// Serves `public` in a folder of the test's own, with these files in it.
    fn serve(test: &str, files: &[&str]) -> Site {
        let root = std::env::temp_dir().join(format!("statecast-{test}-{}", std::process::id()));
        let public = root.join("public");
        fs::create_dir_all(&public).unwrap();
        for file in files {
            let file = public.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "public").unwrap();
        }
        let server = start_with(|config| config.public = Some(public));
        Site { server, root }
    }

    fn public(&self, name: &str) -> PathBuf {
        self.root.join("public").join(name)
    }

    /// The head and the body of the answer to a target that is sent as it stands.
    fn raw(&self, target: &str) -> (String, String) {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = exchange(self.server.address(), request.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    /// The status, and where it leads.
    fn status(&self, target: &str) -> (u16, Option<String>) {
        let (head, _) = self.raw(target);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let location = head.lines().find_map(|line| line.strip_prefix("Location: "));
        (status, location.map(str::to_owned))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.root).ok();
    }
}

#[test]
fn a_folder_without_its_slash_is_redirected_to_itself_with_it_and_nowhere_else() {
    let site = Site::serve(
        "slash",
        &["index.html", "sub/index.html", "sub/deep er/index.html", "evil.example/index.html", "a:b/x"],
    );
    symlink("sub", site.public("also")).unwrap();
    symlink(&site.root, site.public("out")).unwrap();
    for (target, location) in [
        ("/sub", "sub/"),
        ("/also", "also/"),
        ("/sub?a=%2F&b=?", "sub/?a=%2F&b=?"),
        ("/sub/deep%20er", "deep%20er/"),
        ("/sub%2Fdeep%20er", "sub%2Fdeep%20er/"),
        ("/s%75b", "sub/"),
        ("/a:b", "a%3Ab/"),
        ("http://elsewhere.example/sub?x", "sub/?x"),
    ] {
        assert_eq!(site.status(target), (301, Some(location.to_owned())), "{target}");
    }
    for target in ["/", "/?a", "/sub/", "/sub/?a", "/sub/deep%20er/", "/sub//deep%20er/", "/also/"] {
        assert_eq!(site.status(target), (200, None), "{target}");
    }
    let elsewhere = [
        "//evil.example",
        "//evil.example/",
        "///evil.example",
        "/%2Fevil.example",
        "/%2F%2Fevil.example",
        "/\\evil.example",
        "/%5Cevil.example",
        "/sub/..",
        "/sub/%2e%2e/evil.example",
        "//evil.example/%2e%2e",
        "/out",
        "/out/",
        "/index.html/",
        "/a:b/",
    ];
    for target in elsewhere {
        assert_eq!(site.status(target), (404, None), "{target}");
    }
}

#[test]
fn a_redirect_is_for_head_too_and_has_no_body_and_no_line_of_somebody_elses() {
    let site = Site::serve("head", &["sub/index.html", "a\r\nSet-Cookie: b/index.html"]);
    let head = request(site.server.address(), "HEAD", "/sub/index.html", &[], "");
    assert_eq!(head.status, 200);
    let request = "HEAD /sub HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange(site.server.address(), request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 301 ") && answer.contains("\r\nLocation: sub/\r\n"), "{answer}");
    let (head, body) = site.raw("/a%0D%0ASet-Cookie:%20b");
    assert!(head.contains("\r\nLocation: a%0D%0ASet-Cookie%3A%20b/\r\n"), "{head}");
    assert!(!head.contains("\r\nSet-Cookie"), "{head}");
    assert_eq!(body, "");
}

#[test]
fn dot_files_and_folders_are_not_there_however_they_are_written() {
    let site = Site::serve(
        "dots",
        &[
            ".env",
            ".git/config",
            ".hidden/index.html",
            "sub/.htpasswd",
            "sub/.git/deep/config",
            "..data/page.html",
            ".well-known/acme-challenge/token",
            ".well-known/.secret",
            ".well-known2/x",
            ".WELL-KNOWN/x",
            "...",
            "a.b",
        ],
    );
    let hidden = [
        "/.env",
        "/%2Eenv",
        "/%2eenv",
        "/.%65nv",
        "/%2E%65%6E%76",
        "/.git",
        "/.git/",
        "/.git/config",
        "/%2egit%2fconfig",
        "/.hidden/",
        "/.hidden/index.html",
        "/sub/.htpasswd",
        "/sub%2F.htpasswd",
        "/sub//.htpasswd",
        "/sub/.git/deep/config",
        "/..data/page.html",
        "/.well-known/.secret",
        "/.well-known/%2Esecret",
        "/.well-known/../.env",
        "/.well-known2/x",
        "/.WELL-KNOWN/x",
        "/...",
        "/.",
        "/./a.b",
        "/sub/./",
    ];
    for target in hidden {
        assert_eq!(site.status(target), (404, None), "{target}");
    }
    assert_eq!(site.raw("/.well-known/acme-challenge/token").1, "public");
    assert_eq!(site.raw("/%2Ewell-known/acme-challenge/token").1, "public");
    assert_eq!(site.status("/.well-known"), (301, Some(".well-known/".to_owned())));
    assert_eq!(site.raw("/a.b").1, "public");
    // A link is its owner's word: a mounted volume keeps its files behind such ones.
    symlink("..data/page.html", site.public("page.html")).unwrap();
    assert_eq!(site.raw("/page.html").1, "public");
}

#[test]
fn a_folder_without_the_script_has_the_built_in_one_and_nothing_else_of_the_built_in_page() {
    let site = Site::serve("script", &["mine.html", "sub/page.html"]);
    let plain = start();
    for script in ["/statecast.js", "/statecast.mjs"] {
        let (here, there) = (get(site.server.address(), script), get(plain.address(), script));
        assert_eq!((here.status, &here.body), (200, &there.body), "{script}");
        assert_eq!(here.header("ETag"), there.header("ETag"), "{script}");
        assert_eq!(here.header("Content-Type"), Some("text/javascript; charset=utf-8"), "{script}");
    }
    let others = ["/", "/index.html", "/page.js", "/style.css", "/sub/statecast.js", "/statecast.js/"];
    for target in others {
        assert_eq!(site.status(target), (404, None), "{target}");
    }
}

#[test]
fn a_script_that_the_folder_has_is_served_and_not_the_built_in_one() {
    let site = Site::serve("own-script", &["statecast.js", "statecast.mjs/index.html"]);
    assert_eq!(site.raw("/statecast.js").1, "public");
    assert_eq!(site.status("/statecast.mjs"), (301, Some("statecast.mjs/".to_owned())));
    // What may not be read is there all the same.
    if !is_root() {
        fs::set_permissions(site.public("statecast.js"), Permissions::from_mode(0o0)).unwrap();
        assert_eq!(site.status("/statecast.js"), (404, None));
    }
}

#[test]
fn the_pages_of_a_folder_run_their_own_scripts_and_the_built_in_page_runs_none_that_is_inline() {
    let site = Site::serve("policy", &["index.html"]);
    let policy = |address| {
        let policy = get(address, "/").header("Content-Security-Policy").unwrap().to_owned();
        policy.split("; ").map(str::to_owned).collect::<Vec<_>>()
    };
    let of_folder = policy(site.server.address());
    for rule in [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "frame-ancestors 'self'",
    ] {
        assert!(of_folder.iter().any(|other| other == rule), "{rule}: {of_folder:?}");
    }
    let built_in = policy(start().address());
    assert!(built_in.iter().any(|rule| rule == "script-src 'self'"), "{built_in:?}");
    assert!(!built_in.concat().contains("unsafe"), "{built_in:?}");
}

#[test]
fn an_ending_in_capitals_is_the_same_ending() {
    let files =
        ["PAGE.HTML", "a.Css", "b.JS", "c.mJs", "PHOTO.JPG", "d.Json", "e.SVG", "f.XYZ", "HTML", "g.html."];
    let site = Site::serve("endings", &files);
    let types = files.map(|file| {
        let answer = get(site.server.address(), &format!("/{file}"));
        answer.header("Content-Type").unwrap().to_owned()
    });
    let expected = [
        "text/html; charset=utf-8",
        "text/css; charset=utf-8",
        "text/javascript; charset=utf-8",
        "text/javascript; charset=utf-8",
        "image/jpeg",
        "application/json",
        "image/svg+xml",
        "application/octet-stream",
        "application/octet-stream",
        "application/octet-stream",
    ];
    assert_eq!(types, expected);
}

/// Puts `other` in the place of `path` and back, in single steps, so many times.
fn swap(path: &Path, other: &Path, times: usize) {
    let aside = path.with_extension("aside");
    for _ in 0..times {
        fs::rename(path, &aside).unwrap();
        fs::rename(other, path).unwrap();
        fs::rename(path, other).unwrap();
        fs::rename(&aside, path).unwrap();
    }
}

#[test]
fn what_is_outside_is_never_sent_while_links_take_the_place_of_files_and_folders() {
    let site = Site::serve("race", &["file", "sub/file"]);
    let secret = site.root.join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "secret").unwrap();
    let (file_link, folder_link) = (site.root.join("file-link"), site.root.join("folder-link"));
    symlink(secret.join("file"), &file_link).unwrap();
    symlink(&secret, &folder_link).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (is_over, site) = (&is_over, &site);
        let swapping = scope.spawn(move || {
            swap(&site.public("file"), &file_link, 3_000);
            swap(&site.public("sub"), &folder_link, 3_000);
            is_over.store(true, Ordering::Release);
        });
        let mut sent = 0;
        while !is_over.load(Ordering::Acquire) {
            for target in ["/file", "/sub/file"] {
                let (head, body) = site.raw(target);
                assert!(head.starts_with("HTTP/1.1 404") || body == "public", "{head}\n{body}");
                sent += usize::from(body == "public");
            }
            assert!(!swapping.is_finished() || is_over.load(Ordering::Acquire), "the links were not swapped");
        }
        assert!(sent > 0, "nothing was sent");
    });
}
