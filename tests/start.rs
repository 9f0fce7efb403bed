//! A server that cannot start. Alone in its process, whose threads it counts.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::net::TcpListener;

use statecast::{Config, Server};
use support::wait_until;

#[test]
fn a_server_that_cannot_listen_leaves_no_thread() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = vec![taken.local_addr().unwrap()];
    let error = Server::start(Config { listen, ..Config::default() }).err().expect("the port is taken");
    assert!(error.to_string().starts_with("--listen 127.0.0.1:"), "{error}");
    wait_until(threads, |count| *count <= before);
}
