//! A clock that is wrong: faketime's, for one program.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::support::Binary;

/// A clock that a test sets, for a program that believes it is the machine's.
pub struct Clock {
    file: PathBuf,
    library: String,
}

impl Clock {
    /// A clock that says this, as faketime reads it: a time at which it stands still, or `+N` with what is added.
    pub fn at(time: &str) -> Clock {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let asked = Command::new("faketime").args(["-m", "now", "printenv", "LD_PRELOAD"]).output();
        let asked = asked.unwrap_or_else(|error| panic!("faketime: {error}; tests/all installs it"));
        let library = String::from_utf8(asked.stdout).expect("it works").trim().to_owned();
        assert!(library.contains("libfaketimeMT"), "faketime says {library:?}");
        let name =
            format!("statecast-clock-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let clock = Clock { file: std::env::temp_dir().join(name), library };
        clock.set(time);
        clock
    }

    pub fn set(&self, time: &str) {
        fs::write(&self.file, time).expect("it works");
    }

    pub fn start(&self, arguments: &[&str]) -> Binary {
        let mut command = Command::new(env!("CARGO_BIN_EXE_statecast"));
        command
            .args(arguments)
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("TZ", "UTC0")
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Binary::spawn(&mut command)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        fs::remove_file(&self.file).ok();
    }
}
