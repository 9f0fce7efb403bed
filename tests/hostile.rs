//! Whatever arrives: the process goes on, the others notice nothing, and memory and threads come back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};
use support::*;

/// A subscriber and a publisher that go on through it all.
struct Witness {
    address: SocketAddr,
    stream: Stream,
    count: u64,
}

impl Witness {
    fn new(address: SocketAddr) -> Witness {
        let mut stream = Stream::open(address, "/events/witness");
        stream.next_named("init");
        Witness { address, stream, count: 0 }
    }

    /// Publishes, and sees it arrive next.
    fn goes_on(&mut self) {
        self.count += 1;
        put(self.address, "/state/witness", &self.count.to_string());
        assert_eq!(self.stream.next_named("update").data, self.count.to_string());
    }
}

/// Writes and reads as long as the server wants; whatever it does is fine.
fn poke(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut connection = connect(address);
    connection.write_all(bytes).ok();
    connection.shutdown(Shutdown::Write).ok();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).ok();
    answer
}

#[test]
fn absurd_requests_disturb_nobody() {
    let server = Binary::start(&[]);
    let address = server.address;
    let mut witness = Witness::new(address);
    let lengths = [
        "0",
        "1",
        "1025",
        "1048577",
        "-1",
        "x",
        "1e3",
        "4294967296",
        "9223372036854775807",
        "18446744073709551616",
    ];
    for version in ["HTTP/1.0", "HTTP/1.1", "HTTP/0.9", "HTTP/1.2", "http/1.1", "HTTP/2.0", "HTTP/3.0"] {
        for length in lengths {
            // The versions that tiny_http deadlocks on cost a thread each: one of each is enough.
            if version < "HTTP/2" || length == "0" {
                let head =
                    format!("PUT /state/a {version}\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
                let mut connection = connect(address);
                connection.write_all(head.as_bytes()).unwrap();
                connection.shutdown(Shutdown::Both).ok();
            }
        }
        witness.goes_on();
    }
    let many_headers = "X: y\r\n".repeat(3_000);
    let odd: [Vec<u8>; 12] = [
        b"\0\0\0\0".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n: x\r\n\r\n".to_vec(),
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n".to_vec(),
        b"GET /%ff%00%zz HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{many_headers}\r\n").into_bytes(),
        b"POST /state HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        b"POST /state HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx"
            .to_vec(),
        b"POST /state HTTP/1.1\r\nHost: localhost\r\nExpect: a miracle\r\n\r\n".to_vec(),
    ];
    for bytes in &odd {
        poke(address, bytes);
        witness.goes_on();
    }
    let bodies = [
        ("[".repeat(1_000_000), 413),
        ("[".repeat(10_000), 400),
        ("1e999999".into(), 400),
        (format!("\"{}", "\\u0000".repeat(100_000)), 400),
        ("-".into(), 400),
    ];
    for (body, status) in bodies {
        let refused = request(address, "PUT", "/state/a", &[], &body);
        assert_eq!(refused.status, status, "{}", refused.body);
    }
    witness.goes_on();
    assert_eq!(get(address, "/state").json(), json!({"witness": witness.count}));
}

#[test]
fn an_endless_header_does_not_take_the_memory() {
    const CONNECTIONS: usize = 12;
    let server = Binary::start(&[]);
    let address = server.address;
    let mut witness = Witness::new(address);
    witness.goes_on();
    let before = (server.resident_kib(), server.count_in("task"), server.count_in("fd"));
    for number in 0..CONNECTIONS {
        // Ends when it is cut, or with the test: a writer whose window is closed may hear of its end late.
        thread::spawn(move || {
            let mut connection = connect(address);
            let start: &[u8] = if number % 2 == 0 { b"GET / HTTP/1.1\r\nX: " } else { b"GET /" };
            connection.write_all(start).unwrap();
            let piece = vec![b'x'; 64 << 10];
            // At most 32 MiB each: more than memory is allowed to grow by in all.
            (0..512).try_for_each(|_| connection.write_all(&piece)).is_err()
        });
    }
    // Not `before` and so many more: a connection that was about to be closed may be among those before.
    wait_until(|| server.count_in("fd"), |count| *count >= 2 * CONNECTIONS + 4);
    let mut most = 0;
    wait_until(
        || {
            most = most.max(server.resident_kib());
            witness.goes_on();
            server.count_in("fd")
        },
        |count| *count <= before.2 + 2,
    );
    assert!(most < before.0 + (24 << 10), "{most} KiB at most, {} before", before.0);
    wait_until(|| server.count_in("task"), |threads| *threads <= before.1 + 8);
}

#[test]
fn slow_bodies_and_slow_readers_leave_threads_for_others() {
    let server = start();
    let address = server.address();
    let mut witness = Witness::new(address);
    put(address, "/state/large", &json!("x".repeat(900_000)).to_string());
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut body = connect(address);
        write!(body, "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n1").unwrap();
        let mut foreign = connect(address);
        write!(foreign, "PUT /state/a HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 100000\r\n\r\n1")
            .unwrap();
        let reader = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        reader.set_recv_buffer_size(1).unwrap();
        reader.connect(&SockAddr::from(address)).unwrap();
        let mut reader: TcpStream = reader.into();
        write!(reader, "GET /state HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        slow.extend([body, foreign, reader]);
    }
    for _ in 0..10 {
        witness.goes_on();
        assert_eq!(get(address, "/healthz").status, 200);
    }
}

#[test]
fn an_answer_that_does_not_fit_a_buffer_reaches_a_slow_reader_whole() {
    let server = start();
    let address = server.address();
    let text = json!("x".repeat(900_000)).to_string();
    put(address, "/state/large", &text);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8_192).unwrap();
    socket.connect(&SockAddr::from(address)).unwrap();
    let mut connection: TcpStream = socket.into();
    write!(connection, "GET /state/large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let mut piece = vec![0; 20_000];
    loop {
        match connection.read(&mut piece).unwrap() {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
        thread::yield_now();
    }
    assert!(String::from_utf8(answer).unwrap().ends_with(&text));
}

#[test]
fn half_a_chunked_body_is_no_body() {
    let server = start();
    let address = server.address();
    let head = "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    for half in ["4\r\n12", "2\r\n12\r\n", "2\r\n12\r\n0\r\n", "2\r\n12"] {
        let answer = poke(address, format!("{head}{half}").as_bytes());
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{half:?}: {}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(get(address, "/state").body, "{}");
}

#[test]
fn a_request_that_asks_for_an_upgrade_has_its_body_and_no_more() {
    let server = start();
    let address = server.address();
    let head = "Host: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n";
    let put = format!("PUT /state/a HTTP/1.1\r\n{head}Content-Length: 2\r\n\r\n12345");
    let mut connection = connect(address);
    connection.write_all(put.as_bytes()).unwrap();
    let mut answer = [0; 15];
    connection.read_exact(&mut answer).expect("an answer, without waiting for the end");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    assert_eq!(get(address, "/state/a").body, "12");
    let chunked =
        format!("PUT /state/b HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n");
    assert!(exchange(address, chunked.as_bytes()).starts_with("HTTP/1.1 400"));
    let mut stream = Stream::request(address, &format!("GET /events HTTP/1.1\r\n{head}\r\n"));
    assert_eq!(stream.next_named("init").json(), json!({"a": 12}));
}

/// A connection from a port of our choice, which resets when it is dropped.
fn connect_from(port: u16, address: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    socket.bind(&SockAddr::from(local)).ok()?;
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => Some(socket.into()),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_end_of_a_connection_does_not_end_a_later_one_of_the_same_peer() {
    let server = start();
    let address = server.address();
    let port = connect_from(0, address).unwrap().local_addr().unwrap().port();
    let mut answered = 0;
    for round in 0..300 {
        let Some(mut first) = connect_from(port, address) else { continue };
        // Leaves a stream or a request behind, of which the server does not know yet that it is dead.
        let is_stream = round % 2 == 0;
        let path = if is_stream { "/events" } else { "/state" };
        write!(first, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        if is_stream {
            first.read_exact(&mut [0; 8]).unwrap();
        }
        drop(first);
        let Some(mut second) = connect_from(port, address) else { continue };
        write!(second, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = [0; 15];
        second.read_exact(&mut answer).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        answered += 1;
    }
    assert!(answered > 50, "{answered}");
}

#[test]
fn a_later_head_that_drips_is_cut_too() {
    let server = start_with(|config| config.request_timeout = Duration::from_millis(500));
    let address = server.address();
    let mut connection = connect(address);
    write!(connection, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut buffer = vec![0; 4_096];
    assert!(connection.read(&mut buffer).unwrap() > 0);
    thread::sleep(Duration::from_millis(300));
    write!(connection, "GET /heal").unwrap();
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).expect("it is closed, long before an idle connection would be");
    assert_eq!(rest, b"");
}

#[test]
fn a_server_that_is_written_to_stops_in_time() {
    let server = Binary::start(&["--grace", "20s"]);
    let address = server.address;
    let mut streams: Vec<Stream> = (0..50).map(|_| Stream::open(address, "/events")).collect();
    for stream in &mut streams {
        stream.next_named("init");
    }
    let readers: Vec<_> =
        streams.into_iter().map(|mut stream| thread::spawn(move || stream.ends_cleanly())).collect();
    let publishers: Vec<_> = (0..3)
        .map(|number| {
            thread::spawn(move || {
                let agent: ureq::Agent =
                    ureq::Agent::config_builder().timeout_global(Some(DEADLINE)).build().into();
                let url = format!("http://{address}/state/p{number}");
                let mut count = 0;
                while agent.put(&url).send(json!([count, "x".repeat(60_000)]).to_string()).is_ok() {
                    count += 1;
                }
                count
            })
        })
        .collect();
    // Each of them has been heard: the document has all three topics.
    for number in 0..3 {
        let url = format!("/state/p{number}");
        wait_until(|| request(address, "HEAD", &url, &[], "").status, |status| *status == 200);
    }
    server.signal("TERM");
    let (code, log) = server.wait();
    assert_eq!(code, Some(0), "{log}");
    for reader in readers {
        assert!(reader.join().unwrap(), "the last chunk came");
    }
    for publisher in publishers {
        assert!(publisher.join().unwrap() > 0);
    }
}

#[test]
fn two_servers_with_one_document_never_write_half_of_it() {
    let file = std::env::temp_dir().join(format!("statecast-shared-{}", std::process::id()));
    let text = json!({"a": "x".repeat(200_000)}).to_string();
    fs::write(&file, &text).unwrap();
    let servers = [0, 1].map(|_| start_with(|config| config.document = Some(file.clone())));
    thread::scope(|scope| {
        for (number, server) in servers.iter().enumerate() {
            scope.spawn(move || {
                for count in 0..20 {
                    put(server.address(), &format!("/state/s{number}"), &count.to_string());
                }
            });
        }
        for _ in 0..200 {
            let read = fs::read_to_string(&file).unwrap();
            let document: serde_json::Value = serde_json::from_str(&read).expect("a whole document");
            assert_eq!(document["a"].as_str().map(str::len), Some(200_000));
        }
    });
    for server in servers {
        server.stop();
    }
    serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&file).unwrap()).expect("a whole document");
    fs::remove_file(&file).unwrap();
}

#[test]
#[ignore = "needs root and setpriv: root ignores the limit on processes"]
fn out_of_threads_open_streams_go_on_and_new_ones_are_served_when_some_have_left() {
    let is_root = fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t");
    assert!(is_root, "run it as root");
    let user = Command::new("setpriv").args(["--version"]).status();
    assert!(user.is_ok_and(|status| status.success()), "setpriv is missing: it is in the package util-linux");
    let folder = std::env::temp_dir().join(format!("statecast-threads-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    // Where another user finds it, too.
    let program = folder.join("statecast");
    fs::copy(env!("CARGO_BIN_EXE_statecast"), &program).unwrap();
    let mut command = Command::new("prlimit");
    command.args(["--nproc=40:40", "setpriv", "--reuid=64999", "--clear-groups", "--inh-caps=-all"]);
    command.args(["--bounding-set=-all", program.to_str().unwrap()]);
    let server = Binary::spawn(&mut command);
    let address = server.address;
    let mut witness = Witness::new(address);
    witness.goes_on();
    // Each connection that says nothing has a thread of tiny_http, as long as there are any.
    let silent: Vec<TcpStream> = (0..60).map(|_| connect(address)).collect();
    wait_until(|| server.count_in("task"), |threads| *threads >= 35);
    drop(silent);
    wait_until(
        || {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(1))).build().into();
            agent.put(format!("http://{address}/state/b")).send("2").is_ok()
        },
        |done| *done,
    );
    witness.goes_on();
    drop(server);
    fs::remove_dir_all(&folder).unwrap();
}
