//! The page: built into the binary, or the files of a folder.
//!
//! `server` asks it for a path. The one rule: of a folder it serves plain files inside it and nothing else, however
//! the path is written and wherever links lead.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::http::Content;

/// Where pages come from.
pub(crate) enum Pages {
    BuiltIn,
    /// Its real path, without links.
    Folder(PathBuf),
}

/// A page that was found.
pub(crate) struct Page {
    pub content_type: &'static str,
    /// Changes when the content does.
    pub tag: String,
    pub content: Content,
}

const BUILT_IN: [(&str, &[u8]); 4] = [
    ("index.html", include_bytes!("../../public/index.html")),
    ("style.css", include_bytes!("../../public/style.css")),
    ("statecast.js", include_bytes!("../../public/statecast.js")),
    ("page.js", include_bytes!("../../public/page.js")),
];

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

    /// The page at a decoded path, which begins with `/`.
    pub fn find(&self, path: &str) -> Option<Page> {
        let name = path.strip_prefix('/')?;
        let name = if name.is_empty() { "index.html" } else { name };
        match self {
            Pages::BuiltIn => {
                let (_, bytes) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name)?;
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                let tag = format!("\"{:x}\"", hasher.finish());
                Some(Page { content_type: content_type(name), tag, content: Content::BuiltIn(bytes) })
            }
            Pages::Folder(folder) => Self::find_in(folder, name).ok(),
        }
    }

    fn find_in(folder: &Path, name: &str) -> io::Result<Page> {
        let is_plain = |component: Component| matches!(component, Component::Normal(_));
        if name.contains('\0') || !Path::new(name).components().all(is_plain) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut path = folder.join(name);
        if path.is_dir() {
            path.push("index.html");
        }
        let real = path.canonicalize()?;
        // Looked at before it is opened: opening a FIFO would wait for its writer.
        if !real.starts_with(folder) || !real.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = File::open(&real)?;
        let metadata = file.metadata()?;
        let length = metadata.len();
        let modified =
            metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_else(|before| before.duration());
        let tag = format!("\"{:x}-{length:x}\"", modified.as_nanos());
        Ok(Page {
            content_type: content_type(&real.to_string_lossy()),
            tag,
            content: Content::File { file, length },
        })
    }
}

fn content_type(name: &str) -> &'static str {
    match Path::new(name).extension().and_then(|extension| extension.to_str()) {
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

    #[test]
    fn the_built_in_page_is_found_and_tagged() {
        let page = Pages::BuiltIn.find("/").unwrap();
        assert_eq!(page.content_type, "text/html; charset=utf-8");
        assert_eq!(page.tag, Pages::BuiltIn.find("/index.html").unwrap().tag);
        assert_ne!(page.tag, Pages::BuiltIn.find("/statecast.js").unwrap().tag);
        assert!(Pages::BuiltIn.find("/nothing").is_none());
    }

    #[test]
    fn a_folder_gives_its_plain_files_and_nothing_else() {
        let root = std::env::temp_dir().join(format!("statecast-pages-{}", std::process::id()));
        let public = root.join("public");
        fs::create_dir_all(public.join("sub")).unwrap();
        fs::write(root.join("secret"), "secret").unwrap();
        fs::write(public.join("index.html"), "root").unwrap();
        fs::write(public.join("sub/index.html"), "sub").unwrap();
        fs::write(public.join("a b.txt"), "text").unwrap();
        symlink(root.join("secret"), public.join("out")).unwrap();
        symlink("a b.txt", public.join("inside.txt")).unwrap();
        symlink("/dev/zero", public.join("zero")).unwrap();
        std::process::Command::new("mkfifo").arg(public.join("fifo")).status().unwrap();
        let pages = Pages::new(Some(&public)).unwrap();
        let length = |path: &str| match pages.find(path)?.content {
            Content::File { length, .. } => Some(length),
            Content::Bytes(_) | Content::BuiltIn(_) | Content::Stream => None,
        };
        assert_eq!(length("/"), Some(4));
        assert_eq!(length("/sub"), Some(3));
        assert_eq!(length("/sub/"), Some(3));
        assert_eq!(length("/a b.txt"), Some(4));
        assert_eq!(length("/inside.txt"), Some(4));
        let refused = [
            "/../secret",
            "/sub/../../secret",
            "//etc/passwd",
            "/out",
            "/zero",
            "/fifo",
            "/./index.html/x",
            "/a\0",
        ];
        for path in refused {
            assert!(pages.find(path).is_none(), "{path:?}");
        }
        assert!(Pages::new(Some(&root.join("absent"))).is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
