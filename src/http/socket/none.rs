//! Sockets where nothing finds them, as on Windows: connections end when their peers end them, or with the process.

use std::convert::Infallible;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{SockRef, Socket};

pub(super) const ARE_FOUND: bool = false;
pub(super) const DEFERS: bool = false;

/// Of a socket that was found, and none is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity(Infallible);

/// What nobody says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub received: u64,
    pub unread: u64,
    pub is_open: bool,
}

pub(super) struct Sockets;

pub(super) type Descriptor = ();

impl Identity {
    pub fn facts(self) -> Option<Facts> {
        match self.0 {}
    }

    pub fn unacknowledged(self) -> Option<u64> {
        match self.0 {}
    }
}

#[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "its twin has more to do")]
impl Sockets {
    pub fn new(_address: SocketAddr) -> io::Result<Sockets> {
        Ok(Sockets)
    }

    pub fn find(&self, _peer: SocketAddr) -> Option<Identity> {
        None
    }

    pub fn connections(&self, _is_thorough: bool) -> Vec<(SocketAddr, Identity)> {
        Vec::new()
    }

    pub fn is_still(&self, identity: Identity, _peer: SocketAddr) -> bool {
        match identity.0 {}
    }

    pub fn make_stream(&self, identity: Identity) {
        match identity.0 {}
    }

    pub fn end_stream(&self, identity: Identity) {
        match identity.0 {}
    }

    pub fn shut_read(&self, identity: Identity) {
        match identity.0 {}
    }

    pub fn close(&self, identity: Identity) {
        match identity.0 {}
    }

    pub fn cut(&self, identity: Identity) {
        match identity.0 {}
    }

    pub fn discard(&self, identity: Identity) -> bool {
        match identity.0 {}
    }

    pub fn send(&self, identity: Identity, _text: &[u8]) {
        match identity.0 {}
    }
}

pub(super) fn descriptor_of(_listener: &TcpListener) -> Descriptor {}

pub(super) fn is_listening(_descriptor: Descriptor, _address: SocketAddr) -> bool {
    true
}

pub(super) fn stop_listening(listener: &TcpListener) {
    SockRef::from(listener).shutdown(Shutdown::Both).ok();
}

#[allow(clippy::unnecessary_wraps, reason = "its twin can fail")]
pub(super) fn defer_accept(_socket: &Socket, _deferred: Duration) -> io::Result<()> {
    Ok(())
}
