//! Whatever arrives: the process goes on, the others notice nothing, and memory and threads come back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
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
        "1024",
        "1025",
        "1048577",
        "-1",
        "+1",
        "x",
        "",
        "1e3",
        "1\r\nContent-Length: 1",
        "1\r\nContent-Length: 2",
        "1\r\nTransfer-Encoding: chunked",
        "4294967296",
        "99999999999999",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999999999",
    ];
    for version in ["HTTP/1.0", "HTTP/1.1", "HTTP/0.9", "HTTP/1.2", "http/1.1", "HTTP/2.0", "HTTP/3.0"] {
        for length in lengths {
            let head =
                format!("PUT /state/a {version}\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
            let mut connection = connect(address);
            connection.write_all(head.as_bytes()).unwrap();
            connection.shutdown(Shutdown::Both).ok();
        }
        witness.goes_on();
    }
    let many_headers = "X: y\r\n".repeat(3_000);
    let chunked = "POST /state HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut odd: Vec<Vec<u8>> = vec![
        b"\0\0\0\0".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n: x\r\n\r\n".to_vec(),
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n".to_vec(),
        b"GET /%ff%00%zz HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{many_headers}\r\n").into_bytes(),
        b"GET / HTTP/1.1\nHost: x\n\n".to_vec(),
        b"GET / HTTP/1.1\rHost: x\r\r".to_vec(),
        b"GET /\0 HTTP/1.1\r\nHost: x\0\r\nX\0: \0\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n".to_vec(),
        b"POST /state HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n{}".to_vec(),
        format!("{chunked}zz\r\n").into_bytes(),
        format!("{chunked}-1\r\nx").into_bytes(),
        format!("{chunked}ffffffffffffffff\r\nx").into_bytes(),
        format!("{chunked}{}", "1".repeat(100_000)).into_bytes(),
        b"POST /state HTTP/1.1\r\nHost: localhost\r\nExpect: a miracle\r\n\r\n".to_vec(),
    ];
    let mut seed = 1u64;
    odd.extend((0..100).map(|length| {
        let noise = (0..length * 5).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        });
        noise.collect()
    }));
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
fn clients_that_vanish_at_any_point_disturb_nobody() {
    let server = Binary::start(&[]);
    let address = server.address;
    let mut witness = Witness::new(address);
    let before = (server.count_in("fd"), server.count_in("task"));
    let whole = [
        format!("PUT /state/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n{}", "1".repeat(50)),
        "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n"
            .to_owned(),
        "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\nGET /state HTTP/1.1\r\nHost: localhost\r\n\r\n"
            .to_owned(),
    ];
    for request in &whole {
        for (point, _) in request.char_indices() {
            let bytes = &request.as_bytes()[..point];
            // One resets, one says goodbye.
            let mut resets = connect_from(0, address).unwrap();
            resets.write_all(bytes).unwrap();
            drop(resets);
            connect(address).write_all(bytes).unwrap();
            if point % 16 == 0 {
                witness.goes_on();
            }
        }
    }
    wait_until(
        || {
            // A client that left is noticed when it is written to.
            witness.goes_on();
            server.count_in("fd")
        },
        |descriptors| *descriptors <= before.0 + 8,
    );
    // tiny_http's own threads go when nothing has come for five seconds.
    wait_until(|| server.count_in("task"), |threads| *threads <= before.1 + 16);
    witness.goes_on();
    assert_eq!(get(address, "/state/a").status, 404, "half a request changes nothing");
}

/// A connection that takes next to nothing before it is read.
fn connect_narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    socket.connect(&SockAddr::from(address)).unwrap();
    socket.into()
}

/// Sends a start and then more and more, until it is cut or has sent as much as nobody would hold.
fn send_without_end(address: SocketAddr, start: &str, more: &str) -> thread::JoinHandle<bool> {
    const MOST: usize = 32 << 20;
    let (start, piece) = (start.to_owned(), more.repeat((64 << 10) / more.len() + 1));
    thread::spawn(move || {
        let mut connection = connect(address);
        connection.write_all(start.as_bytes()).unwrap();
        (0..MOST / piece.len()).try_for_each(|_| connection.write_all(piece.as_bytes())).is_err()
    })
}

#[test]
fn a_head_without_end_does_not_take_the_memory() {
    let server = Binary::start(&[]);
    let address = server.address;
    let mut witness = Witness::new(address);
    witness.goes_on();
    let before = (server.resident_kib(), wait_until(|| server.count_in("fd"), |count| *count < 16));
    let medium = format!("X: {}\r\n", "x".repeat(100_000));
    let stream = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\n";
    let kinds = [
        ("GET /", "x"),
        ("GET / HTTP/1.1\r\nX: ", "x"),
        ("GET / HTTP/1.1\r\n", &medium),
        ("GET / HTTP/1.1\r\n", "X: y\r\n"),
        ("GET / HTTP/1.1\r\n", ":\r\n"),
        // Behind a stream nothing is read, but for what has come with it.
        (stream, ":\r\n"),
    ];
    // They end when they are cut, or with the test: a writer whose window is closed may hear of its end late.
    for (start, more) in kinds {
        for _ in 0..3 {
            send_without_end(address, start, more);
        }
    }
    // A hundred thousand, and then no more: it is as absurd.
    let many = format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(100_000));
    let mut many_headers = connect(address);
    thread::spawn(move || many_headers.write_all(many.as_bytes()).and_then(|()| many_headers.read(&mut [0])));
    let mut most = 0;
    let mut go_on = || {
        most = most.max(server.resident_kib());
        witness.goes_on();
    };
    let all = format!("statecast_cut_connections_total {}\n", 3 * kinds.len() + 1);
    wait_until(
        || {
            go_on();
            get(address, "/metrics").body
        },
        |text| text.contains(&all),
    );
    // Their threads sleep a little longer, and end with what they had.
    wait_until(
        || {
            go_on();
            server.count_in("fd")
        },
        |descriptors| *descriptors <= before.1 + 2,
    );
    assert!(most < before.0 + (32 << 10), "{most} KiB at most, {} before", before.0);
}

#[test]
fn a_head_without_end_behind_a_slow_reader_is_cut() {
    let server = Binary::start(&[]);
    let address = server.address;
    let mut witness = Witness::new(address);
    let text = json!("x".repeat(1_000_000)).to_string();
    put(address, "/state/large", &text);
    let mut reader = connect_narrow(address);
    let mut writer = reader.try_clone().unwrap();
    writer.write_all(b"GET /state/large HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nX: ").unwrap();
    let writer = thread::spawn(move || {
        let piece = vec![b'x'; 64 << 10];
        (0..512).try_for_each(|_| writer.write_all(&piece)).is_err()
    });
    // Fast enough to go on for as long as the answer takes, which is longer than a head may.
    let mut taken = 0;
    let mut piece = [0; 2_000];
    while let Ok(count @ 1..) = reader.read(&mut piece) {
        taken += count;
        thread::sleep(Duration::from_millis(50));
    }
    assert!(taken < text.len(), "it was cut");
    assert!(writer.join().unwrap());
    witness.goes_on();
}

#[test]
fn a_flood_of_pipelined_requests_holds_nobody_up() {
    let server = Binary::start(&["--heartbeat", "1s"]);
    let address = server.address;
    let mut stream = Stream::open(address, "/events/witness");
    stream.next_named("init");
    let flood = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
    let connections: Vec<_> = (0..60)
        .map(|_| {
            let flood = flood.clone();
            thread::spawn(move || {
                let mut connection = connect(address);
                connection.write_all(flood.as_bytes()).ok();
                connection
            })
        })
        .collect();
    for count in 0..50 {
        let id = put(address, "/state/witness", &count.to_string());
        // Heartbeats go on whatever happens to requests; they tell how long the answer took.
        let mut heartbeats = 0;
        while stream.next().id.is_none_or(|other| other != id.to_string()) {
            heartbeats += 1;
        }
        assert!(heartbeats < 10, "{heartbeats} heartbeats came before an answer");
    }
    for connection in connections {
        drop(connection.join().unwrap());
    }
}

#[test]
fn pipelined_requests_behind_a_stream_take_no_threads() {
    let server = Binary::start(&[]);
    let address = server.address;
    let mut witness = Witness::new(address);
    witness.goes_on();
    let before = server.count_in("task");
    let behind = "GET /state HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (path, count) in [("/events", 4), ("/events", 5_000), ("/state", 5_000)] {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n{}", behind.repeat(count));
        let mut connection = connect(address);
        connection.write_all(bytes.as_bytes()).ok();
        let mut most = 0;
        for _ in 0..50 {
            witness.goes_on();
            most = most.max(server.count_in("task"));
        }
        // All request threads may be woken, and no more than there are.
        assert!(most < before + 64, "{count} behind {path}: {most} threads, {before} before");
    }
}

#[test]
fn requests_that_wait_take_a_bounded_amount_of_memory() {
    let server = Binary::start(&[]);
    let address = server.address;
    let mut witness = Witness::new(address);
    witness.goes_on();
    put(address, "/state/large", &json!("x".repeat(300_000)).to_string());
    let before = server.resident_kib();
    // 48 MB behind answers that nobody reads.
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\nY: {0}\r\n\r\n", "x".repeat(60_000));
    let bytes = format!("GET /state/large HTTP/1.1\r\nHost: localhost\r\n\r\n{}", large.repeat(40));
    let open: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut connection = connect_narrow(address);
            let (bytes, open) = (bytes.clone(), connection.try_clone().unwrap());
            thread::spawn(move || connection.write_all(bytes.as_bytes()));
            open
        })
        .collect();
    let mut most = 0;
    wait_until(
        || {
            most = most.max(server.resident_kib());
            let text = get(address, "/metrics").body;
            let line = text.lines().find_map(|line| line.strip_prefix("statecast_cut_connections_total "));
            line.unwrap().parse::<u64>().unwrap()
        },
        |count| *count >= 5,
    );
    witness.goes_on();
    assert!(most < before + (32 << 10), "{most} KiB, {before} before");
    drop(open);
}

#[test]
fn bursts_that_lock_tiny_http_up_leave_nobody_behind() {
    let burst = || {
        let server = Binary::start(&[]);
        let ask = |version: &str| {
            let mut connection = connect(server.address);
            write!(connection, "GET /healthz {version}\r\nHost: x\r\n\r\n").unwrap();
            connection
        };
        // All of them are accepted at once, and most wait for a worker, if tiny_http is fast.
        server.signal("STOP");
        let (_locked, others): (Vec<_>, Vec<_>) =
            (0..10).map(|_| ([(); 6].map(|()| ask("HTTP/2.0")), ask("HTTP/1.1"))).unzip();
        server.signal("CONT");
        for mut connection in others {
            // Without having been cut, as one that sends nothing is.
            assert!(read_head(&mut connection).starts_with("HTTP/1.1 200 OK"));
        }
    };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(burst);
        }
    });
}

#[test]
fn a_request_of_another_version_costs_a_thread_and_is_counted() {
    const COUNT: usize = 3;
    let server = start_with(|config| config.request_timeout = Duration::from_millis(300));
    let address = server.address();
    let mut witness = Witness::new(address);
    let _held: Vec<TcpStream> = ["HTTP/2.0", "HTTP/3.0", "HTTP/2.0"]
        .map(|version| {
            let mut connection = connect(address);
            write!(connection, "GET / {version}\r\n\r\n").unwrap();
            connection
        })
        .into();
    let stuck = format!("statecast_stuck_connections {COUNT}\n");
    let text = wait_until(|| get(address, "/metrics").body, |text| text.contains(&stuck));
    assert!(text.contains(&format!("statecast_cut_connections_total {COUNT}\n")), "each once: {text}");
    witness.goes_on();
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
        let mut reader = connect_narrow(address);
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
    for number in 0.. {
        match connection.read(&mut piece).unwrap() {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
        if number < 10 {
            // Longer than the socket waits by itself, and shorter than what makes a reader slow.
            thread::sleep(Duration::from_millis(40));
        }
    }
    assert!(String::from_utf8(answer).unwrap().ends_with(&format!("{text}\n")));
}

#[test]
fn a_file_that_shrinks_while_it_is_sent_ends_its_connection() {
    let folder = std::env::temp_dir().join(format!("statecast-shrinks-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("large.txt");
    fs::write(&file, vec![b'x'; 8 << 20]).unwrap();
    let server = start_with(|config| config.public = Some(folder.clone()));
    let mut connection = connect_narrow(server.address());
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(connection, "GET /large.txt HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    connection.read_exact(&mut [0; 1_000]).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len(1_000).unwrap();
    let taken =
        std::io::copy(&mut connection, &mut std::io::sink()).expect("the end, not a wait for the rest");
    assert!(taken < 8 << 20);
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn half_a_chunked_body_is_no_body() {
    let server = start();
    let address = server.address();
    for more in ["", "Trailer: X-T\r\n", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"] {
        let head =
            format!("PUT /state/a HTTP/1.1\r\nHost: localhost\r\n{more}Transfer-Encoding: chunked\r\n\r\n");
        for half in ["", "4\r\n12", "2\r\n12\r\n", "2\r\n12\r\n0\r\n", "2\r\n12", "2\r\n12\r", "2\r\n12\r\n0"]
        {
            let answer = poke(address, format!("{head}{half}").as_bytes());
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{half:?}: {}", String::from_utf8_lossy(&answer));
        }
    }
    assert_eq!(get(address, "/state").body, "{}");
}

#[test]
fn an_upgrade_that_is_not_spoken_is_ignored_also_with_a_body_in_chunks() {
    let server = start();
    let address = server.address();
    // As curl and Java's HttpClient ask for HTTP/2, and others for what else there is.
    let offers = [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.0, h2c\r\n",
        "Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
        "Upgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n",
    ];
    let large = format!("\"{}\"", "x".repeat(100_000));
    let bodies = [
        ("1\r\n1\r\n0\r\n\r\n".to_owned(), "1".to_owned()),
        ("1\r\n[\r\n0003;x=\"y\"\r\n1,2\r\n1 \r\n]\r\n00\r\n\r\n".to_owned(), "[1,2]".to_owned()),
        (format!("{:X}\r\n{large}\r\n0\r\n\r\n", large.len()), large),
    ];
    for offer in offers {
        for (chunks, value) in &bodies {
            let bytes = format!(
                "PUT /state/a HTTP/1.1\r\nHost: localhost\r\n{offer}Transfer-Encoding: chunked\r\n\r\n{chunks}"
            );
            let answer = exchange(address, bytes.as_bytes());
            let answer = answer
                .strip_prefix("HTTP/1.1 100 Continue\r\n")
                .map_or(&*answer, |rest| rest.split_once("\r\n\r\n").unwrap().1);
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{offer}{chunks:.40}: {answer}");
            assert_eq!(&get(address, "/state/a").body, value);
        }
        // A trailer section changes nothing of it.
        let bytes = format!(
            "PUT /state/a HTTP/1.1\r\nHost: localhost\r\n{offer}Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n\
             1\r\n5\r\n0\r\nX: y\r\nHost: evil.example\r\n\r\n"
        );
        assert!(exchange(address, bytes.as_bytes()).contains("200 OK"), "{offer}");
        assert_eq!(get(address, "/state/a").body, "5");
    }
    put(address, "/state/a", "0");
    let head = "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    for malformed in [
        "1\r\n1x\r\n0\r\n\r\n",
        "1\r\n1\r\nx\r\n\r\n",
        "+1\r\n1\r\n0\r\n\r\n",
        "0x1\r\n1\r\n0\r\n\r\n",
        "1\n1\n0\n\n\r\n\r\n",
        "\r\n1\r\n0\r\n\r\n",
        "1;\r\n1\r\n10000000000000000\r\n",
    ] {
        let answer = exchange(address, format!("{head}{malformed}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400"), "{malformed:?}: {answer}");
    }
    for endless in ["1;".to_owned() + &"x".repeat(100_000), "0\r\n".to_owned() + &"X: y\r\n".repeat(100_000)]
    {
        let answer = poke(address, format!("{head}{endless}").as_bytes());
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(get(address, "/state/a").body, "0");
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
    // Below those that the system gives to other tests' connections.
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let is_free = |port: &u16| connect_from(*port, address).is_some();
    let port = (first..32_000).find(is_free).expect("a port that nobody has");
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
fn whoever_reads_the_file_of_the_document_sees_a_whole_one() {
    let file = std::env::temp_dir().join(format!("statecast-whole-{}", std::process::id()));
    let text = json!({"a": "x".repeat(200_000)}).to_string();
    fs::write(&file, &text).unwrap();
    let server = start_with(|config| config.document = Some(file.clone()));
    thread::scope(|scope| {
        scope.spawn(|| {
            for count in 0..20 {
                put(server.address(), "/state/s", &count.to_string());
            }
        });
        for _ in 0..200 {
            let read = fs::read_to_string(&file).unwrap();
            let document: serde_json::Value = serde_json::from_str(&read).expect("a whole document");
            assert_eq!(document["a"].as_str().map(str::len), Some(200_000));
        }
    });
    server.stop().unwrap();
    let read = fs::read_to_string(&file).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&read).expect("a whole document")["s"], 19);
    fs::remove_file(&file).unwrap();
}

#[test]
fn out_of_descriptors_requests_are_answered_in_order_and_a_refused_connection_is_closed() {
    let server = Binary::start(&[]);
    let mut connections: Vec<TcpStream> = (0..2).map(|_| connect(server.address)).collect();
    for connection in &mut connections {
        connection.write_all(b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert!(read_head(connection).contains(" 204 "));
    }
    // From here on it gets no descriptor whose number is not in use.
    let folder = format!("/proc/{}/fd", server.child.id());
    let first_free = (0..1_024).find(|number| !fs::exists(format!("{folder}/{number}")).unwrap()).unwrap();
    let limit = format!("--nofile={first_free}:{first_free}");
    let process = format!("--pid={}", server.child.id());
    assert!(Command::new("prlimit").args([limit, process]).status().unwrap().success());
    let [pipelining, refused] = &mut connections[..] else { panic!("there are two") };
    let paths = ["/clients", "/state", "/state/absent", "/healthz"];
    let all: String = paths.map(|path| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).concat();
    pipelining.write_all(all.as_bytes()).unwrap();
    pipelining.shutdown(Shutdown::Write).unwrap();
    let mut answers = String::new();
    pipelining.read_to_string(&mut answers).expect("it ends");
    let bodies: Vec<&str> =
        answers.split("\r\n\r\n").skip(1).map(|rest| rest.split("HTTP/1.1").next().unwrap()).collect();
    assert_eq!(bodies[..2], ["[]\n", "{}\n"], "{answers}");
    assert!(bodies[2].contains("error") && bodies[3..] == ["ok\n"], "{answers}");
    let both = "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    refused.write_all(both.as_bytes()).unwrap();
    let mut answer = String::new();
    refused.read_to_string(&mut answer).expect("it is closed");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
#[ignore = "needs strace"]
fn a_start_that_fails_when_it_has_bound_leaves_no_thread_and_no_port() {
    const INSIDE: &str = "STATECAST_START_INSIDE";
    let (here, there) = ("/proc/self/fd", "/proc/self/task");
    let count = |folder| fs::read_dir(folder).unwrap().count();
    if std::env::var_os(INSIDE).is_some() {
        let before = (count(here), count(there));
        let is_started = statecast::Server::start(statecast::Config::default()).is_ok();
        // Where it did not start, tiny_http's threads end within 5 s.
        wait_until(|| (count(here), count(there)), |now| *now <= before);
        println!("{}", if is_started { "it started" } else { "it failed" });
        return;
    }
    let name = "a_start_that_fails_when_it_has_bound_leaves_no_thread_and_no_port";
    let options = ["--exact", name, "--ignored", "--nocapture", "--test-threads=1"];
    let program = std::env::current_exe().unwrap();
    // More threads than a start makes.
    let starts = (1..=20).map(|number| {
        let inject = format!("clone3:error=EAGAIN:when={number}");
        let mut command = strace(&inject, program.to_str().unwrap(), &options);
        command.env(INSIDE, "1").stdout(Stdio::piped()).spawn().unwrap()
    });
    let mut failed = 0;
    for (index, start) in starts.collect::<Vec<_>>().into_iter().enumerate() {
        let done = start.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "without its thread {}: {said}", index + 1);
        failed += usize::from(said.contains("it failed"));
    }
    assert!(failed >= 5, "{failed}");
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
    // Each connection that has begun a head has a thread of tiny_http, as long as there are any.
    let begun: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut connection = connect(address);
            connection.write_all(b"G").unwrap();
            connection
        })
        .collect();
    wait_until(|| server.count_in("task"), |threads| *threads >= 35);
    drop(begun);
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
