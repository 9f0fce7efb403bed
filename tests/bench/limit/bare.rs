//! The bare limit: a server that does nothing but send bytes to sockets.
//!
//! `main` runs it as a process of its own beside statecast. It answers any request with a head and an `init`, and one
//! that begins with `P` makes its connection a publisher: frames with their length before them, each taken with one
//! byte. It knows no HTTP, no JSON, no history and no slow client: whoever sends an event to every subscriber pays at
//! least this. `per-event` sends each event to everybody before it takes the next; `all-pending` sends everybody all
//! that came meanwhile, in one send.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use socket2::{Domain, Socket, Type};

/// What may wait to be sent before publishers wait: as much as statecast lets wait.
const PENDING: usize = 1 << 20;

/// What is sent at once: as much as statecast sends.
const PASS: usize = 64 << 10;

struct Shared {
    subscribers: Mutex<Vec<TcpStream>>,
    pending: Mutex<Vec<u8>>,
    changed: Condvar,
    init: Vec<u8>,
}

/// Serves until it is killed. Prints its address first.
pub fn serve(all_pending: bool, init_bytes: usize) -> io::Result<()> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(4_096)?;
    let listener = TcpListener::from(listener);
    println!("{}", listener.local_addr()?);
    let init = format!("event: init\ndata: {}\n\n", "x".repeat(init_bytes));
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let init = format!("{head}{:x}\r\n{init}\r\n", init.len()).into_bytes();
    let shared = Arc::new(Shared {
        subscribers: Mutex::default(),
        pending: Mutex::default(),
        changed: Condvar::new(),
        init,
    });
    if all_pending {
        let shared = Arc::clone(&shared);
        thread::spawn(move || shared.send_pending());
    }
    for connection in listener.incoming() {
        let mut connection = connection?;
        connection.set_nodelay(true)?;
        let mut first = [0];
        if connection.read(&mut first)? == 0 {
            continue;
        }
        if first == *b"P" {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.take_events(connection, all_pending));
            continue;
        }
        // The rest of a head, which comes in one piece here.
        let _length = connection.read(&mut [0; 1_024])?;
        if connection.write_all(&shared.init).is_ok() {
            shared.subscribers.lock().expect("no thread panics").push(connection);
        }
    }
    Ok(())
}

impl Shared {
    fn take_events(&self, mut publisher: TcpStream, all_pending: bool) -> io::Result<()> {
        loop {
            let mut length = [0; 4];
            publisher.read_exact(&mut length)?;
            let mut event = vec![0; u32::from_be_bytes(length) as usize];
            publisher.read_exact(&mut event)?;
            if all_pending {
                let pending = self.pending.lock().expect("no thread panics");
                let is_full = |pending: &mut Vec<u8>| pending.len() > PENDING;
                let mut pending = self.changed.wait_while(pending, is_full).expect("no thread panics");
                pending.extend_from_slice(&event);
                drop(pending);
                self.changed.notify_all();
            } else {
                self.send(&event);
            }
            publisher.write_all(&[1])?;
        }
    }

    fn send_pending(&self) {
        loop {
            let pending = self.pending.lock().expect("no thread panics");
            let mut pending =
                self.changed.wait_while(pending, |pending| pending.is_empty()).expect("as above");
            let bytes = std::mem::take(&mut *pending);
            drop(pending);
            self.changed.notify_all();
            for piece in bytes.chunks(PASS) {
                self.send(piece);
            }
        }
    }

    fn send(&self, bytes: &[u8]) {
        let mut subscribers = self.subscribers.lock().expect("no thread panics");
        subscribers.retain_mut(|subscriber| subscriber.write_all(bytes).is_ok());
    }
}
