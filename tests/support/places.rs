//! Where a process that a test starts listens, and where it keeps its files.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

/// An address that the kernel gives to nobody by itself: who has it comes back to it after a restart.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 10_000;
    for _ in 0..1_000 {
        let number = (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let address = SocketAddr::from(([127, 0, 0, 1], 20_000 + number));
        match TcpListener::bind(address) {
            Ok(_) => return address,
            Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{address}"),
        }
    }
    panic!("a thousand ports are taken")
}

/// A new folder for temporary files.
pub fn new_folder(name: &str) -> PathBuf {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("statecast-{name}-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}
