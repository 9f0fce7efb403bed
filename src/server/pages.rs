//! The page: built into the binary, or the files of a folder.
//!
//! `server` asks it for a path. The one rule: of a folder it serves plain files inside it and nothing else, however
//! the path is written, wherever links lead, and whatever changes meanwhile. Only the script is there for every folder
//! that has none of its own.

#[cfg(unix)]
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
#[cfg(unix)]
use std::os::fd::{AsRawFd, FromRawFd};
#[cfg(unix)]
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use percent_encoding::{
    AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode,
};

use crate::http::Content;

/// Where pages come from.
pub(crate) enum Pages {
    BuiltIn,
    /// Its real path, without links.
    Folder(PathBuf),
}

/// What is at a path.
pub(crate) enum Found {
    Page(Page),
    /// A folder that was asked for without its slash. From there, the relative links of its page would lead astray.
    Folder,
}

/// A page that was found.
pub(crate) struct Page {
    pub content_type: &'static str,
    /// Changes when the content does.
    pub tag: String,
    pub content: Content,
}

const BUILT_IN: [(&str, &[u8]); 5] = [
    ("index.html", include_bytes!("../../public/index.html")),
    ("style.css", include_bytes!("../../public/style.css")),
    ("statecast.js", include_bytes!("../../public/statecast.js")),
    ("statecast.mjs", include_bytes!("../../public/statecast.mjs")),
    ("page.js", include_bytes!("../../public/page.js")),
];

/// What a page of a folder may load although the folder lacks it.
const SCRIPTS: [&str; 2] = ["statecast.js", "statecast.mjs"];

impl Pages {
    /// The built-in page, or those of a folder.
    ///
    /// # Errors
    /// The folder is not there, or is none.
    pub fn new(folder: Option<&Path>) -> io::Result<Pages> {
        let Some(folder) = folder else { return Ok(Pages::BuiltIn) };
        let real = folder.canonicalize().and_then(|real| fs::read_dir(&real).map(|_| real));
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("--public {}: {error}", folder.display()))
        };
        real.map(Pages::Folder).map_err(named)
    }

    /// What is at a decoded path, which begins with `/`.
    pub fn find(&self, path: &str) -> Option<Found> {
        let name = path.strip_prefix('/')?;
        match self {
            Pages::BuiltIn => built_in(if name.is_empty() { "index.html" } else { name }),
            Pages::Folder(folder) => match find_in(folder, name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && SCRIPTS.contains(&name) => {
                    built_in(name)
                }
                found => found.ok(),
            },
        }
    }
}

fn built_in(name: &str) -> Option<Found> {
    let (_, bytes) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name)?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let tag = format!("\"{:x}\"", hasher.finish());
    let page = Page { content_type: content_type(name), tag, content: Content::BuiltIn(bytes) };
    Some(Found::Page(page))
}

fn find_in(folder: &Path, name: &str) -> io::Result<Found> {
    if !is_public(name) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut real = resolve(folder, &folder.join(name))?;
    if real.is_dir() {
        if !name.is_empty() && !name.ends_with('/') {
            return Ok(Found::Folder);
        }
        real = resolve(folder, &real.join("index.html"))?;
    }
    let file = open_in(folder, &real)?;
    let metadata = file.metadata()?;
    let length = metadata.len();
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_else(|before| before.duration());
    let tag = format!("\"{:x}-{length:x}\"", modified.as_nanos());
    let content_type = content_type(&real.to_string_lossy());
    Ok(Found::Page(Page { content_type, tag, content: Content::File { file, length } }))
}

/// Whether a path may be asked for: dot files are what tools keep for themselves (`.git`, `.env`), but for the folder
/// that RFC 8615 makes for others to read.
fn is_public(name: &str) -> bool {
    let is_shown = |segment: &str| !segment.starts_with('.') || segment == ".well-known";
    !name.starts_with('/') && name.split('/').all(is_shown)
}

/// The real path, without links, if it is inside the folder.
fn resolve(folder: &Path, path: &Path) -> io::Result<PathBuf> {
    let real = path.canonicalize()?;
    if real.starts_with(folder) { Ok(real) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Opens a plain file at a real path inside the folder. Each step goes from an open folder to what is in it and follows
/// no link, because whoever may write there can put one in the place of what was resolved.
#[cfg(unix)]
fn open_in(folder: &Path, real: &Path) -> io::Result<File> {
    const STEP: libc::c_int = libc::O_DIRECTORY;
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    const LAST: libc::c_int = libc::O_NONBLOCK | libc::O_NOCTTY | LARGE_FILE;
    // Asked first, because opening alone makes some devices act.
    if !real.symlink_metadata()?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut open = File::open(folder)?;
    let mut names = real.strip_prefix(folder).map_err(io::Error::other)?.iter().peekable();
    while let Some(name) = names.next() {
        let flags = if names.peek().is_some() { STEP } else { LAST };
        open = open_at(&open, name, flags)?;
    }
    if open.metadata()?.is_file() { Ok(open) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Elsewhere what stands there now is opened.
#[cfg(not(unix))]
fn open_in(_folder: &Path, real: &Path) -> io::Result<File> {
    if real.symlink_metadata()?.is_file() { File::open(real) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Lets a 32-bit system open files beyond 2 GiB.
#[cfg(target_os = "linux")]
const LARGE_FILE: libc::c_int = libc::O_LARGEFILE;
#[cfg(all(unix, not(target_os = "linux")))]
const LARGE_FILE: libc::c_int = 0;

/// Opens for reading what has this name in an open folder, unless it is a link.
#[cfg(unix)]
#[allow(unsafe_code)]
fn open_at(folder: &File, name: &OsStr, flags: libc::c_int) -> io::Result<File> {
    let name = CString::new(name.as_bytes())?;
    let flags = flags | libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the folder is open, for it is borrowed, and the name ends with NUL and outlives the call.
    let descriptor = unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Where a folder is that a request's target named without its slash, for `Location`. It is relative, for a page below a
/// proxy's path. It leads to no other host, because it begins with a name whose slashes and colons are encoded.
pub(crate) fn with_slash(target: &str) -> String {
    const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    const QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'\\');
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let name: Vec<u8> = percent_decode_str(path.rsplit('/').next().unwrap_or_default()).collect();
    let mut location = format!("{}/", percent_encode(&name, NAME));
    if let Some(query) = query {
        location.push('?');
        location.extend(utf8_percent_encode(query, QUERY));
    }
    location
}

fn content_type(name: &str) -> &'static str {
    let ending = Path::new(name).extension().unwrap_or_default().to_ascii_lowercase();
    match ending.to_str() {
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        Some("webp") => "image/webp",
        Some("ico") => "image/x-icon",
        Some("woff2") => "font/woff2",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        Some("webmanifest") => "application/manifest+json",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    use std::process::Command;

    fn page(pages: &Pages, path: &str) -> Option<Page> {
        match pages.find(path)? {
            Found::Page(page) => Some(page),
            Found::Folder => panic!("{path:?} is a folder without its slash"),
        }
    }

    /// A folder of this test's own, as `name` in another one.
    fn folder(name: &str) -> (PathBuf, PathBuf) {
        let root = std::env::temp_dir().join(format!("statecast-{name}-{}", std::process::id()));
        let public = root.join("public");
        fs::create_dir_all(public.join("sub")).unwrap();
        (root.canonicalize().unwrap(), public.canonicalize().unwrap())
    }

    #[test]
    fn the_built_in_page_is_found_and_tagged() {
        let tag = |path: &str| page(&Pages::BuiltIn, path).map(|page| page.tag);
        assert_eq!(page(&Pages::BuiltIn, "/").unwrap().content_type, "text/html; charset=utf-8");
        assert_eq!(tag("/"), tag("/index.html"));
        assert_ne!(tag("/"), tag("/statecast.js"));
        assert_eq!(tag("/nothing"), None);
    }

    #[test]
    fn a_folder_gives_its_plain_files_and_nothing_else() {
        let (root, public) = folder("pages");
        fs::write(root.join("secret"), "secret").unwrap();
        fs::write(public.join("index.html"), "root").unwrap();
        fs::write(public.join("sub/index.html"), "sub").unwrap();
        fs::write(public.join("a b.txt"), "text").unwrap();
        symlink(root.join("secret"), public.join("out")).unwrap();
        symlink(&root, public.join("up")).unwrap();
        symlink("a b.txt", public.join("inside.txt")).unwrap();
        symlink("sub", public.join("also")).unwrap();
        symlink("/dev/zero", public.join("zero")).unwrap();
        Command::new("mkfifo").arg(public.join("fifo")).status().unwrap();
        let pages = Pages::new(Some(&public)).unwrap();
        let length = |path: &str| match page(&pages, path)?.content {
            Content::File { length, .. } => Some(length),
            Content::Bytes(_) | Content::BuiltIn(_) | Content::Stream => None,
        };
        assert_eq!(length("/"), Some(4));
        assert_eq!(length("/sub/"), Some(3));
        assert_eq!(length("/also/"), Some(3));
        assert_eq!(length("/a b.txt"), Some(4));
        assert_eq!(length("/inside.txt"), Some(4));
        let refused = [
            "/../secret",
            "/sub/../../secret",
            "//etc/passwd",
            "/out",
            "/up",
            "/up/",
            "/up/secret",
            "/zero",
            "/fifo",
            "/./index.html/x",
            "/index.html/",
            "/a\0",
        ];
        for path in refused {
            assert!(pages.find(path).is_none(), "{path:?}");
        }
        assert!(Pages::new(Some(&root.join("absent"))).is_err());
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_link_or_a_fifo_that_takes_the_place_of_what_was_resolved_is_not_opened() {
        let (root, public) = folder("swapped");
        let outside = root.join("outside");
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("file"), "secret").unwrap();
        let file = public.join("sub/file");
        fs::write(&file, "public").unwrap();
        let real = resolve(&public, &file).unwrap();
        assert!(open_in(&public, &real).is_ok());

        fs::remove_file(&file).unwrap();
        assert!(open_in(&public, &real).is_err(), "nothing");
        symlink(outside.join("file"), &file).unwrap();
        assert!(open_in(&public, &real).is_err(), "a link");
        fs::remove_file(&file).unwrap();
        Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(open_in(&public, &real).is_err(), "a FIFO");
        fs::remove_dir_all(public.join("sub")).unwrap();
        symlink(&outside, public.join("sub")).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "secret");
        assert!(open_in(&public, &real).is_err(), "a link further up");
        // Opened step by step, each finds no link: not only the look that is taken first.
        let folder = File::open(&public).unwrap();
        assert!(open_at(&folder, OsStr::new("sub"), 0).is_err());
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_way_to_a_folders_slash_is_a_name_of_this_host_with_the_same_query() {
        for (target, location) in [
            ("/sub", "sub/"),
            ("/sub/deep", "deep/"),
            ("/sub?a=1&b=%2F?c", "sub/?a=1&b=%2F?c"),
            ("/sub?", "sub/?"),
            ("/a%20b%3f", "a%20b%3F/"),
            ("/%E5%BA%AD", "%E5%BA%AD/"),
            ("/http:", "http%3A/"),
            ("/javascript:alert(1)", "javascript%3Aalert%281%29/"),
            ("/%2Fevil.example", "%2Fevil.example/"),
            ("//evil.example", "evil.example/"),
            ("/\\evil.example", "%5Cevil.example/"),
            ("/sub?\u{e9}#\\<\"", "sub/?%C3%A9%23%5C%3C%22"),
            ("/a%0D%0ASet-Cookie:b", "a%0D%0ASet-Cookie%3Ab/"),
        ] {
            assert_eq!(with_slash(target), location, "{target}");
        }
    }
}
