//! The file that keeps the document.
//!
//! It is written whole and atomically, at most once a second and when the server stops: an SD card lives long, and
//! whatever happens, the file holds one whole document.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Map, Value};

use crate::document::{self, Document, Refusal};
use crate::hub::Hub;
use crate::log::Log;
use crate::sse::event::EventId;

/// Between two writes.
const PAUSE: Duration = Duration::from_secs(1);

/// The document as the file has it, of at most `max_bytes`; an empty one if there is no file.
///
/// # Errors
/// The file cannot be read, or holds no JSON; the text names it.
pub(crate) fn read(path: &Path, max_bytes: usize) -> io::Result<Value> {
    match fs::read(path) {
        Ok(bytes) => document::parse(&bytes, max_bytes).map_err(|refusal| unfit(path, &refusal)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Value::Object(Map::new())),
        Err(error) => Err(io::Error::new(error.kind(), format!("--document {}: {error}", path.display()))),
    }
}

/// What is wrong with a file that was read.
pub(crate) fn unfit(path: &Path, refusal: &Refusal) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("--document {}: {refusal}", path.display()))
}

/// The thread that writes the file.
pub(crate) struct Saver {
    thread: JoinHandle<()>,
    stop: Sender<()>,
    changed: Sender<()>,
}

impl Saver {
    /// Saves the hub's document to `path` whenever `changed` rings.
    pub fn start(
        path: PathBuf,
        hub: Arc<Hub>,
        (changed, rung): (Sender<()>, Receiver<()>),
        log: Log,
    ) -> io::Result<Saver> {
        let (stop, stopped) = bounded(1);
        // What was read at the start need not be written.
        let saved = hub.read(Document::last_change);
        let mut file = SavedFile { path, hub, log, saved, is_faulty: false };
        let thread = thread::Builder::new().name("saver".into()).spawn(move || {
            loop {
                rung.recv_timeout(if file.is_faulty { PAUSE } else { Duration::MAX }).ok();
                file.save();
                if stopped.recv_timeout(PAUSE).is_ok() {
                    file.save();
                    return;
                }
            }
        })?;
        Ok(Saver { thread, stop, changed })
    }

    /// Saves what has changed since the last time.
    pub fn stop(self) {
        self.stop.send(()).ok();
        // It looks there after it was rung for.
        self.changed.try_send(()).ok();
        self.thread.join().ok();
    }
}

struct SavedFile {
    path: PathBuf,
    hub: Arc<Hub>,
    log: Log,
    /// The change that the file is as of.
    saved: EventId,
    is_faulty: bool,
}

impl SavedFile {
    fn save(&mut self) {
        if self.hub.read(Document::last_change) == self.saved {
            return;
        }
        let (json, id) = self.hub.read(|document| (document.json(), document.last_change()));
        let path = self.path.display();
        match write(&self.path, &json) {
            Ok(()) => {
                self.saved = id;
                if self.is_faulty {
                    self.log.line(|| format!("the document is saved again to {path}"));
                }
                self.is_faulty = false;
            }
            Err(error) => {
                self.hub.metrics.save_faults.add(1);
                // Said once: it is tried every second.
                if !self.is_faulty {
                    self.log.line(|| format!("the document cannot be saved to {path}: {error}"));
                }
                self.is_faulty = true;
            }
        }
    }
}

/// Replaces the file in one step: a crash leaves the old document or the new one.
fn write(path: &Path, json: &str) -> io::Result<()> {
    // A link stays a link.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut temporary = path.clone().into_os_string();
    temporary.push(".new");
    let mut file = File::options().write(true).create(true).truncate(false).open(&temporary)?;
    // Two servers with one file must not write half of it each.
    let shared = || io::Error::other("another server is saving to the same file");
    file.try_lock().map_err(|_| shared())?;
    // It was renamed meanwhile: what we have open is the document itself.
    if !fs::metadata(&temporary)
        .is_ok_and(|named| named.ino() == file.metadata().map_or(0, |open| open.ino()))
    {
        return Err(shared());
    }
    let written = fs::metadata(&path)
        .and_then(|metadata| file.set_permissions(metadata.permissions()))
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .and_then(|()| file.set_len(0))
        .and_then(|()| writeln!(file, "{json}"))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, &path));
    if let Err(error) = written {
        // A full disk should not be kept full by half a file.
        fs::remove_file(&temporary).ok();
        return Err(error);
    }
    // The new name, too, must survive a power cut.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
