//! The file that keeps the document: found, locked and tried at the start, replaced in one step ever after.
//!
//! `server` opens it, and `saver` saves to it. The one rule: whatever happens, the file holds one whole document, and no
//! file but that one and those made for it is ever opened.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::clock::random_between;
use crate::document;
use crate::hub::handover::BEGIN;

/// Links behind links, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// Times that another server may make, replace or remove the file while this one opens it.
const MOST_RACES: usize = 100;

/// What a file may have for each byte of the document: spaces, and letters written as `\u0061`.
const BYTES_FOR_EACH: usize = 8;

/// Of the file's name, in the names of the files beside it. A name has 255 bytes at most.
const MOST_OF_NAME: usize = 200;

/// What a new file holds until there is something to keep.
const EMPTY: &[u8] = b"{}\n";

/// What the name of the file beside it ends with that keeps the history from a stop to the next start.
const HISTORY: &str = ".history";

/// The file, for as long as a server keeps its document in it.
pub(crate) struct KeptFile {
    /// As it was given: for whoever reads a message.
    named: PathBuf,
    /// Where links led at the start, from the root.
    path: PathBuf,
    /// Locked: whoever opens the same file finds the lock, whatever name it was opened by.
    file: File,
    /// Mounted by itself, as `docker run -v ./document.json:/document.json` does it: nothing can take its place.
    is_mounted: bool,
    /// Made at the start, and still as it was made.
    is_new: bool,
    /// It was there, and held nothing.
    was_empty: bool,
    /// The history beside it that a server left, until it is removed.
    left: Option<PathBuf>,
}

impl KeptFile {
    /// Opens the file, and makes it where there is none; locks it; does what saving does, but for the last step. Returns
    /// what the file holds: a document of at most `max_bytes`, if its topics and its depth are a document's.
    ///
    /// # Errors
    /// It is no plain file, cannot be saved, holds no document, or is another server's. The text names the file.
    pub fn open(named: &Path, max_bytes: usize) -> io::Result<(KeptFile, Value)> {
        let opened = KeptFile::find(named).and_then(|mut kept| {
            let bytes = kept.read(max_bytes)?;
            kept.remove_leftovers();
            kept.try_to_save(&bytes)?;
            let document = kept.parse(&bytes, max_bytes)?;
            Ok((kept, document))
        });
        opened.map_err(|error| about(named, error.kind(), &error.to_string()))
    }

    /// As it was given.
    pub fn named(&self) -> &Path {
        &self.named
    }

    /// What a person should know of it who has just started a server.
    pub fn describe(&self) -> String {
        let empty = if self.was_empty { ", which has 0 bytes: an empty document" } else { "" };
        let mounted = if self.is_mounted {
            "; written in place, for it is mounted by itself: a power cut can hurt it"
        } else {
            ""
        };
        format!("kept in {}{empty}{mounted}", self.named.display())
    }

    /// Puts the document in the file's place in one step: a crash leaves the old one or the new one. What is mounted by
    /// itself has a place that nothing else can take, and is written over.
    ///
    /// # Errors
    /// The document is not in the file, or may not survive a power cut; half of it is nowhere.
    pub fn save(&mut self, json: &str) -> io::Result<()> {
        let bytes = [json.as_bytes(), b"\n"].concat();
        if !self.is_mounted {
            match self.replace(&bytes) {
                // Found out late: mounted since the start, or by a kernel that does not say so.
                Err(error) if error.kind() == ErrorKind::ResourceBusy => self.is_mounted = true,
                saved => return saved,
            }
        }
        self.write_over(&bytes)
    }

    /// Reads the history that a server left beside the document when it stopped, of at most so many bytes.
    ///
    /// # Errors
    /// Something is there, and it is no such history. The text names the file.
    pub fn read_history(&mut self, most: usize) -> io::Result<Option<Vec<u8>>> {
        let read = || {
            let mut bytes = Vec::new();
            let file = options().open(self.history())?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("that is no plain file"));
            }
            file.take(most as u64 + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = match read() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| self.about_history(&error.to_string()))?,
        };
        let begin = &BEGIN.as_bytes()[..BEGIN.len().min(bytes.len())];
        self.left = bytes.starts_with(begin).then(|| self.history());
        match () {
            () if self.left.is_none() => Err(self.about_history("it is none that a server wrote")),
            () if bytes.len() > most => Err(self.about_history(&format!("it has more than {most} bytes"))),
            () => Ok(Some(bytes)),
        }
    }

    /// Removes the history that was read: after a crash it would be an old one.
    ///
    /// # Errors
    /// It is still there, or may be again after a power cut.
    pub fn remove_history(&mut self) -> io::Result<()> {
        let Some(left) = self.left.take() else { return Ok(()) };
        let removed = fs::remove_file(left).and_then(|()| self.sync_folder());
        removed.map_err(|error| self.about_history(&error.to_string()))
    }

    /// Puts the history beside the document, where there is nothing: what is not of a server stays as it is.
    ///
    /// # Errors
    /// It is not there, or may not survive a power cut.
    pub fn save_history(&mut self, stream: &[u8]) -> io::Result<()> {
        let path = self.history();
        let saved = match fs::symlink_metadata(&path) {
            Ok(_) => Err(io::Error::other("something else is there; remove it")),
            Err(_) => self
                .write_beside(stream)
                .and_then(|(new, file)| give_name((new, &file), &path))
                .and_then(|()| self.sync_folder()),
        };
        // The document that it belongs to is worth keeping now.
        self.is_new &= saved.is_err();
        saved.map_err(|error| self.about_history(&error.to_string()))
    }

    fn history(&self) -> PathBuf {
        with_history(&self.path)
    }

    fn about_history(&self, text: &str) -> io::Error {
        io::Error::other(format!(
            "the history in {} is not kept: {text}",
            with_history(&self.named).display()
        ))
    }

    fn find(named: &Path) -> io::Result<KeptFile> {
        // Asked before anything is opened: opening a FIFO waits, and opening a device may do anything.
        if let Ok(metadata) = fs::metadata(named) {
            check_plain(&metadata)?;
        }
        let path = follow_links(named)?;
        for _ in 0..MOST_RACES {
            let (file, is_new) = match open_plain(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => match make(&path) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                    made => (made?, true),
                },
                opened => (opened?, false),
            };
            lock(&file)?;
            // It may have been replaced before it was locked.
            if is_at(&file, &path) {
                let is_mounted = mount_of(&file).is_some_and(|mount| {
                    File::open(folder_of(&path)).is_ok_and(|folder| mount_of(&folder) != Some(mount))
                });
                let named = named.to_owned();
                return Ok(KeptFile { named, path, file, is_mounted, is_new, was_empty: false, left: None });
            }
        }
        Err(io::Error::other("something else replaces it all the time"))
    }

    fn read(&mut self, max_bytes: usize) -> io::Result<Vec<u8>> {
        if self.is_new {
            self.file.write_all(EMPTY)?;
            return Ok(EMPTY.to_owned());
        }
        let most = max_bytes.saturating_mul(BYTES_FOR_EACH);
        let mut bytes = Vec::new();
        (&self.file).take(most as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > most {
            let text =
                format!("the file has more than {most} bytes, a document {max_bytes} (--max-document)");
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        Ok(bytes)
    }

    fn parse(&mut self, bytes: &[u8], max_bytes: usize) -> io::Result<Value> {
        self.was_empty = document::without_mark(bytes).is_empty();
        if self.was_empty {
            return Ok(Value::Object(Map::new()));
        }
        let unfit = |text: &str| io::Error::new(ErrorKind::InvalidData, text);
        let value = document::parse_as("the file", bytes, max_bytes);
        let value = value.map_err(|refusal| unfit(&refusal.to_string()))?;
        if value.is_object() {
            Ok(value)
        } else {
            Err(unfit("the file is JSON, but the document is an object"))
        }
    }

    /// Does what `replace` does, up to the point where something would change.
    fn try_to_save(&self, bytes: &[u8]) -> io::Result<()> {
        let in_words =
            |what: &str, error: &io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        if self.is_mounted {
            let opened = File::options().write(true).open(&self.path);
            return opened.map(drop).map_err(|error| in_words("it cannot be written to", &error));
        }
        let trial = self.write_beside(bytes).map_err(|error| {
            in_words(&format!("it cannot be saved in the folder {}", folder_of(&self.path).display()), &error)
        })?;
        fs::remove_file(trial.0)?;
        // A file is no folder, so this only says whether its name could be taken: not in a folder that is sticky and
        // somebody else's, and not where the file is immutable. The kernel asks that first, as for a rename.
        match fs::remove_dir(&self.path) {
            Err(error)
                if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
            {
                Err(in_words("it cannot be replaced", &error))
            }
            _ => Ok(()),
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Somebody may have put another file there, and started another server with it.
        if !is_at(&self.file, &self.path)
            && let Ok(other) = open_plain(&self.path)
        {
            lock(&other)?;
        }
        let (path, file) = self.write_beside(bytes)?;
        give_name((path, &file), &self.path)?;
        // The lock of the old one is let go when the new one, locked, has its name.
        self.file = file;
        self.is_new = false;
        self.sync_folder()
    }

    /// Names, too, must survive a power cut.
    fn sync_folder(&self) -> io::Result<()> {
        unless_the_disk_fails(File::open(folder_of(&self.path)).and_then(|folder| folder.sync_all()))
    }

    /// A file with this in it, beside the one that it may replace, like it and locked. Fails without leaving any.
    fn write_beside(&self, bytes: &[u8]) -> io::Result<(PathBuf, File)> {
        // As it is now: somebody may have changed the mode since.
        let old = fs::symlink_metadata(&self.path).ok().filter(Metadata::is_file);
        let old = old.map_or_else(|| self.file.metadata(), Ok)?;
        let mut name = self.prefix();
        write!(name, "{:016x}.new", random_between(0, u64::MAX - 1))?;
        let path = folder_of(&self.path).join(OsString::from_vec(name));
        // Made or not at all: what has been put there under this name is neither opened nor followed.
        let mut file = options().write(true).create_new(true).mode(old.mode() & 0o777).open(&path)?;
        let written = lock(&file).and_then(|()| {
            resemble(&file, &old)?;
            file.write_all(bytes)
        });
        match written {
            Ok(()) => Ok((path, file)),
            Err(error) => {
                // A full disk should not be kept full by half a file.
                fs::remove_file(&path).ok();
                Err(error)
            }
        }
    }

    /// Writes the document over the old one. If that fails, for a full disk, the old one is put back.
    fn write_over(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !is_at(&self.file, &self.path) {
            let file = open_plain(&self.path)?;
            lock(&file)?;
            self.file = file;
        }
        let mut old = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut old)?;
        let written = self.overwrite(bytes).and_then(|()| unless_the_disk_fails(self.file.sync_all()));
        if written.is_err() {
            self.overwrite(&old).ok();
        }
        self.is_new = false;
        written
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(bytes)?;
        self.file.set_len(bytes.len() as u64)
    }

    /// How the names begin of files made beside it.
    fn prefix(&self) -> Vec<u8> {
        let name = self.path.file_name().unwrap_or_default().as_bytes();
        [b".", &name[..name.len().min(MOST_OF_NAME)], b"."].concat()
    }

    /// Removes what servers left that were killed while they saved. None is alive: the lock is ours.
    fn remove_leftovers(&self) {
        let prefix = self.prefix();
        let is_leftover = |name: &[u8]| {
            let random = name.strip_prefix(&prefix[..]).and_then(|rest| rest.strip_suffix(b".new"));
            random.is_some_and(|random| random.len() == 16 && random.iter().all(u8::is_ascii_hexdigit))
        };
        // A folder that cannot be listed keeps them.
        for entry in fs::read_dir(folder_of(&self.path)).into_iter().flatten().flatten() {
            if is_leftover(entry.file_name().as_bytes()) {
                fs::remove_file(entry.path()).ok();
            }
        }
    }
}

impl Drop for KeptFile {
    /// A file that was made for nothing is removed, so that a start that fails leaves none. Not what somebody has
    /// written into it meanwhile.
    fn drop(&mut self) {
        let is_as_made = || self.file.metadata().is_ok_and(|found| found.len() == EMPTY.len() as u64);
        if self.is_new && is_as_made() && is_at(&self.file, &self.path) {
            fs::remove_file(&self.path).ok();
        }
        // Closing it would not do while a child process that was just forked has it, too.
        self.file.unlock().ok();
    }
}

/// An error whose text names the file.
pub(crate) fn about(named: &Path, kind: ErrorKind, text: &str) -> io::Error {
    io::Error::new(kind, format!("--document {}: {text}", named.display()))
}

/// Gives a file that was written beside it its own name, in place of what has that name.
fn give_name((new, file): (PathBuf, &File), name: &Path) -> io::Result<()> {
    let renamed = unless_the_disk_fails(file.sync_all()).and_then(|()| fs::rename(&new, name));
    if renamed.is_err() {
        fs::remove_file(&new).ok();
    }
    renamed
}

fn with_history(path: &Path) -> PathBuf {
    [path.as_os_str(), HISTORY.as_ref()].into_iter().collect::<OsString>().into()
}

/// Where a name leads, from the root: through links, also one whose target is yet to be made.
fn follow_links(named: &Path) -> io::Result<PathBuf> {
    let mut path = named.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&path) else {
            let name = path.file_name().ok_or_else(|| io::Error::other("that is a folder"))?;
            let folder = folder_of(&path);
            let found = folder.canonicalize();
            let found = found.map_err(|error| {
                io::Error::new(error.kind(), format!("the folder {}: {error}", folder.display()))
            });
            return Ok(found?.join(name));
        };
        path = folder_of(&path).join(target);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn check_plain(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_symlink() => "a link by now",
        () => "a device",
    };
    Err(io::Error::new(ErrorKind::InvalidInput, format!("that is {what}, and a document needs a plain file")))
}

/// For reading, and never waiting or going through a link that was put there since it was looked for.
fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

/// Opens a plain file, for writing too if it may be: some file systems lock only what can be written to.
fn open_plain(path: &Path) -> io::Result<File> {
    check_plain(&fs::symlink_metadata(path)?)?;
    let opened = match options().write(true).open(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => options().open(path),
        opened => opened,
    };
    let file = opened?;
    check_plain(&file.metadata()?)?;
    Ok(file)
}

/// Makes a file that is not there.
fn make(path: &Path) -> io::Result<File> {
    options().write(true).create_new(true).open(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => error,
        kind => {
            let folder = folder_of(path).display();
            io::Error::new(kind, format!("it cannot be made in the folder {folder}: {error}"))
        }
    })
}

/// Locks a file until it is closed, unless the file system has no locks.
fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(ErrorKind::WouldBlock, "another server keeps its document there"))
        }
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Whether the open file is the one that has the name.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// The mount that it was reached by, where the kernel says so.
fn mount_of(file: &File) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::to_owned)
}

/// Gives a new file the owner, the group and the mode of the old one, as far as this process may and the file system has
/// them.
fn resemble(file: &File, old: &Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    if new.gid() != old.gid() {
        fchown(file, None, Some(old.gid())).ok();
    }
    let mut mode = old.mode() & 0o7777;
    if file.metadata()?.gid() != old.gid() {
        // Another group than was meant may do what everybody may.
        mode = mode & !0o070 | (mode & 0o007) << 3;
    }
    if new.mode() & 0o7777 != mode {
        file.set_permissions(Permissions::from_mode(mode)).ok();
    }
    // Last: who gives a file away may not change it any more.
    if new.uid() != old.uid() {
        fchown(file, Some(old.uid()), None).ok();
    }
    Ok(())
}

/// Only what the disk itself says is a reason to save again. Else the file system has no such thing, and what is saved
/// is saved as well as it can be.
fn unless_the_disk_fails(synced: io::Result<()>) -> io::Result<()> {
    match synced {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::ENOSPC | libc::EDQUOT)) => {
            Err(error)
        }
        _ => Ok(()),
    }
}
