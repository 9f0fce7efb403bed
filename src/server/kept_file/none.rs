//! No file keeps the document, as on Windows: nothing there is known to replace, lock and save a file as `kept_file` does.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use serde_json::Value;

pub(crate) struct KeptFile(Infallible);

impl KeptFile {
    pub fn open(named: &Path, _max_bytes: usize) -> io::Result<(KeptFile, Value)> {
        let text = "no document is kept in a file on this system; on Windows use WSL";
        Err(about(named, ErrorKind::Unsupported, text))
    }

    pub fn reopen(named: &Path, _locked: Option<File>) -> io::Result<KeptFile> {
        KeptFile::open(named, 0).map(|(file, _)| file)
    }

    pub fn into_locked(self) -> Option<File> {
        match self.0 {}
    }

    pub fn named(&self) -> &Path {
        match self.0 {}
    }

    pub fn describe(&self) -> String {
        match self.0 {}
    }

    pub fn save(&mut self, _json: &str) -> io::Result<()> {
        match self.0 {}
    }

    pub fn read_history(&mut self, _most: usize) -> io::Result<Option<Vec<u8>>> {
        match self.0 {}
    }

    pub fn remove_history(&mut self) -> io::Result<()> {
        match self.0 {}
    }

    pub fn save_history(&mut self, _stream: &[u8]) -> io::Result<()> {
        match self.0 {}
    }
}

/// An error whose text names the file.
pub(crate) fn about(named: &Path, kind: ErrorKind, text: &str) -> io::Error {
    io::Error::new(kind, format!("--document {}: {text}", named.display()))
}
