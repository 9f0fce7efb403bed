//! A planned restart costs nobody his place: what was published last is beside the document, and whatever is odd about that
//! file costs no more than a restart without it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;

use statecast::Parser;
use support::*;

/// What `hello` says to whoever resumes after an id.
fn reason_after(address: SocketAddr, path: &str, id: &str) -> String {
    Stream::resume(address, path, id).next().json()["reason"].as_str().unwrap().to_owned()
}

/// Stops it cleanly, and returns what it logged.
fn stop(server: Binary) -> String {
    server.signal("TERM");
    let (code, log) = server.wait();
    assert_eq!(code, Some(0), "{log}");
    log
}

/// The lines of a log that are about history.
fn about_history(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("history")).collect()
}

/// Puts rising numbers until nobody answers; returns the last one that was acknowledged.
fn count_up(address: SocketAddr, topic: &str, from: u64) -> u64 {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(DEADLINE)).build().into();
    let url = format!("http://{address}/state/{topic}");
    let mut count = from;
    while agent.put(&url).send((count + 1).to_string()).is_ok() {
        count += 1;
    }
    count
}

#[test]
fn five_hundred_clients_of_a_server_that_is_stopped_and_started_under_load_get_no_init() {
    const CLIENTS: usize = 500;
    let folder = Folder::new("places");
    let options = ["--document", &folder.file("document.json")];
    let mut server = Binary::start(&options);
    let mut streams: Vec<Stream> = (0..CLIENTS).map(|_| Stream::open(server.address, "/events")).collect();
    let mut replicas: Vec<Replica> = Vec::new();
    for stream in &mut streams {
        let mut replica = Replica::default();
        replica.apply(&stream.next_named("init"));
        replicas.push(replica);
    }
    let mut counts = [0; 4];
    for _ in 0..2 {
        let address = server.address;
        let publishers = [0, 1, 2, 3]
            .map(|number| thread::spawn(move || count_up(address, &format!("p{number}"), counts[number])));
        let before = counts[0];
        wait_until(|| get(address, "/state").json(), |state| state["p0"].as_u64() > Some(before + 20));
        server.signal("TERM");
        for (stream, replica) in streams.iter_mut().zip(&mut replicas) {
            while let Some(event) = stream.next_or_end() {
                replica.apply(&event);
            }
        }
        counts = publishers.map(|publisher| publisher.join().unwrap());
        let (code, log) = server.wait();
        assert_eq!((code, about_history(&log)), (Some(0), vec![]));
        server = Binary::start_at(address, &options);
        for (stream, replica) in streams.iter_mut().zip(&mut replicas) {
            *stream = Stream::resume(address, "/events", &replica.last_id.unwrap().to_string());
            assert_eq!(stream.next().json()["reason"], "known");
        }
    }
    put(server.address, "/state/end", "1");
    for (stream, replica) in streams.iter_mut().zip(&mut replicas) {
        while replica.document.as_ref().unwrap().get("end").is_none() {
            let event = stream.next();
            assert_ne!(event.name, "init");
            replica.apply(&event);
        }
        let expected = serde_json::json!({
            "end": 1, "p0": counts[0], "p1": counts[1], "p2": counts[2], "p3": counts[3],
        });
        assert_eq!(replica.document.as_ref(), Some(&expected));
    }
}

#[test]
fn what_was_published_to_whom_before_a_restart_reaches_those_who_were_away() {
    let folder = Folder::new("away");
    let options = ["--document", &folder.file("document.json")];
    let server = Binary::start(&options);
    let id = Stream::open(server.address, "/events").next_named("init").id.unwrap();
    patch(server.address, "/state", r#"{"a":{"x":1},"b":[2]}"#);
    post(server.address, "/events/a", "one\n\nthree");
    let json = [("Content-Type", "application/json")];
    request(server.address, "POST", "/events/a?event=alert", &json, r#"{"n":1}"#).id();
    post(server.address, "/events", ": checksum 0");
    delete(server.address, "/state/b");
    let paths = ["/events", "/events/a", "/events/b", "/events/c"];
    let missed = |server: &Binary, end: &str| -> Vec<Vec<Event>> {
        let mut streams = paths.map(|path| Stream::resume(server.address, path, &id));
        patch(server.address, "/state", &format!(r#"{{"a":"{end}","b":"{end}","c":"{end}"}}"#));
        let read = |stream: &mut Stream| -> Vec<Event> {
            assert_eq!(stream.next().json()["reason"], "known");
            let is_end = |event: &Event| event.data.contains(end);
            std::iter::repeat_with(|| stream.next_but_heartbeats())
                .take_while(|event| !is_end(event))
                .collect()
        };
        streams.iter_mut().map(read).collect()
    };
    let before = missed(&server, "first");
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [5, 3, 2, 0]);
    stop(server);
    let server = Binary::start(&options);
    // What ended the look before is the last thing that was missed by now.
    let after = missed(&server, "second");
    assert_eq!(after.iter().map(Vec::len).collect::<Vec<_>>(), [6, 4, 3, 1]);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after[..before.len()], before[..]);
    }
}

#[test]
fn the_history_beside_the_document_is_an_event_stream_with_the_document_at_its_end() {
    let folder = Folder::new("shown");
    let file = folder.file("document.json");
    fs::write(&file, "{}").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let server = Binary::start(&["--document", &file]);
    let first = Stream::open(server.address, "/events").next_named("init").id();
    let change = put(server.address, "/state/a", "1");
    let chat = post(server.address, "/events/a", "hi");
    stop(server);
    assert_eq!(folder.names(), ["document.json", "document.json.history"]);
    let history = Path::new(&file).with_extension("json.history");
    assert_eq!(fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o640);
    let text = fs::read_to_string(&history).unwrap();
    let (text, checksum) = text.rsplit_once(": checksum ").unwrap();
    assert_eq!(
        text,
        format!(
            ": statecast history, clients so far: 1\nid: {first}\n\n\
             : /events\nid: {change}\nevent: update\ndata: {{\"a\":1}}\n\n\
             : /events/a\nid: {change}\nevent: update\ndata: 1\n\n\
             : /events\nid: {chat}\nevent: message\ndata: {{\"a\":\"hi\"}}\n\n\
             : /events/a\nid: {chat}\nevent: message\ndata: hi\n\n\
             : /state {change}\n: /state/a {change}\nid: {chat}\nevent: init\ndata: {{\"a\":1}}\n\n"
        )
    );
    assert_eq!(checksum.len(), 17, "{checksum}");
    let (mut parser, mut bytes, mut last) = (Parser::new(), text.as_bytes(), None);
    while let Some(event) = parser.next(&mut bytes).unwrap() {
        last = Some(event);
    }
    assert_eq!(last.unwrap().data, "{\"a\":1}");
}

#[test]
fn places_ids_tags_and_numbers_of_clients_go_on_through_one_restart_after_another() {
    let folder = Folder::new("on");
    let options = ["--document", &folder.file("document.json")];
    let mut server = Binary::start(&options);
    let mut ids = vec![Stream::open(server.address, "/events").next_named("init").id()];
    ids.push(put(server.address, "/state/a", "1"));
    ids.push(put(server.address, "/state/b", "1"));
    ids.push(post(server.address, "/events", "hi"));
    let tag = |server: &Binary, path| get(server.address, path).header("ETag").unwrap().to_owned();
    let paths = ["/state", "/state/a", "/state/b"];
    for round in 2_u64..5 {
        let tags = paths.map(|path| tag(&server, path));
        assert_eq!(about_history(&stop(server)), [""; 0]);
        server = Binary::start(&options);
        assert_eq!(paths.map(|path| tag(&server, path)), tags);
        for id in &ids {
            assert_eq!(reason_after(server.address, "/events", &id.to_string()), "known", "{round}: {id}");
        }
        let mut stream = Stream::open(server.address, "/events");
        let number = stream.next_named("hello").json()["client"].as_u64().unwrap();
        assert!(number > round, "{number}");
        ids.push(stream.next_named("init").id());
        ids.push(post(server.address, "/events", "hi"));
        assert!(ids.is_sorted_by(|before, after| before < after), "{ids:?}");
    }
}

/// A document with a history beside it, and the id of a client that was there.
fn leave_history(file: &str, options: &[&str]) -> String {
    let server = Binary::start(&[&["--document", file], options].concat());
    let id = Stream::open(server.address, "/events").next_named("init").id.unwrap();
    put(server.address, "/state/a", "1");
    post(server.address, "/events", "hi");
    stop(server);
    id
}

#[test]
fn a_history_that_is_not_as_it_was_left_is_one_line_in_the_log_and_a_restart_as_without_it() {
    type Edit<'a> = &'a dyn Fn(&mut Vec<u8>);
    let folder = Folder::new("odd");
    let file = folder.file("document.json");
    let history = folder.file("document.json.history");
    let run = |what: &str, id: &str| {
        let server = Binary::start(&["--document", &file]);
        assert_eq!(reason_after(server.address, "/events", id), "restart", "{what}");
        assert_eq!(get(server.address, "/state").body, r#"{"a":1}"#, "{what}");
        stop(server)
    };
    let edit = |edit: Edit| {
        let mut bytes = fs::read(&history).unwrap();
        edit(&mut bytes);
        fs::write(&history, bytes).unwrap();
    };
    let edits: [(&str, Edit); 9] = [
        ("a byte of the last line", &|bytes| *bytes.iter_mut().nth_back(1).unwrap() ^= 1),
        ("a byte in the middle", &|bytes| *bytes.get_mut(100).unwrap() ^= 1),
        ("a byte that is no UTF-8", &|bytes| *bytes.get_mut(100).unwrap() = 0xff),
        ("cut off by a byte", &|bytes| bytes.truncate(bytes.len() - 1)),
        ("cut off in the middle", &|bytes| bytes.truncate(150)),
        ("cut off in its first line", &|bytes| bytes.truncate(7)),
        ("empty", &Vec::clear),
        ("an event left out", &|bytes| bytes.splice(66..100, []).for_each(drop)),
        ("twice", &|bytes| bytes.extend_from_within(..)),
    ];
    for (what, change) in edits {
        fs::remove_file(&file).ok();
        let id = leave_history(&file, &[]);
        edit(change);
        let log = run(what, &id);
        let lines = about_history(&log);
        assert!(
            lines.len() == 1 && lines[0].ends_with("it is cut off, edited, or of another version"),
            "{what}: {log}"
        );
        // What it left itself is used again.
        assert_eq!(about_history(&stop(Binary::start(&["--document", &file]))), [""; 0], "{what}");
        fs::remove_file(&history).unwrap();
    }
    fs::remove_file(&file).unwrap();
    let id = leave_history(&file, &[]);
    fs::File::options().write(true).open(&history).unwrap().set_len(1 << 40).unwrap();
    let log = run("too large", &id);
    assert!(
        about_history(&log).len() == 1
            && log.contains("document.json.history is not kept: it has more than "),
        "{log}"
    );
}

#[test]
fn a_history_of_another_document_is_not_used_and_not_found_again() {
    let folder = Folder::new("other");
    let file = folder.file("document.json");
    let id = leave_history(&file, &[]);
    fs::write(&file, r#"{"a":2}"#).unwrap();
    let server = Binary::start(&["--document", &file]);
    assert_eq!(reason_after(server.address, "/events", &id), "restart");
    wait_until(|| folder.names(), |names| *names == ["document.json"]);
    server.signal("KILL");
    let (_, log) = server.wait();
    assert!(about_history(&log).len() == 1 && log.contains("it belongs to another document"), "{log}");
    // The same document, in other words.
    fs::remove_file(&file).unwrap();
    let id = leave_history(&file, &[]);
    fs::write(&file, "\u{feff}{ \"a\" : 1,\n\"b\": null }\n").unwrap();
    let server = Binary::start(&["--document", &file]);
    assert_eq!(reason_after(server.address, "/events", &id), "known");
}

#[test]
fn what_is_no_history_of_a_server_is_neither_waited_for_nor_removed() {
    let folder = Folder::new("foreign");
    let file = folder.file("document.json");
    let history = folder.file("document.json.history");
    let target = folder.file("target");
    let make: [(&str, &dyn Fn()); 6] = [
        ("that is no plain file", &|| {
            assert!(Command::new("mkfifo").arg(&history).status().unwrap().success());
        }),
        ("that is no plain file", &|| fs::create_dir(&history).unwrap()),
        ("Too many levels of symbolic links (os error 40)", &|| symlink(&target, &history).unwrap()),
        ("Too many levels of symbolic links (os error 40)", &|| symlink("/dev/zero", &history).unwrap()),
        ("it is none that a server wrote", &|| fs::write(&history, "my diary\n").unwrap()),
        ("it is none that a server wrote", &|| fs::write(&history, vec![b'x'; 3 << 20]).unwrap()),
    ];
    for (why, make) in make {
        fs::remove_file(&file).ok();
        let id = leave_history(&file, &[]);
        fs::rename(&history, &target).unwrap();
        make();
        let before = fs::symlink_metadata(&history).unwrap();
        let server = Binary::start(&["--document", &file]);
        assert_eq!(reason_after(server.address, "/events", &id), "restart");
        let log = stop(server);
        let named = format!("the history in {history} is not kept: ");
        let [at_start, at_stop] = about_history(&log)[..] else { panic!("{log}") };
        assert!(at_start.ends_with(&format!("{named}{why}")), "{log}");
        assert!(at_stop.ends_with(&format!("{named}something else is there; remove it")), "{log}");
        let after = fs::symlink_metadata(&history).unwrap();
        assert_eq!((after.file_type(), after.len()), (before.file_type(), before.len()));
        assert_eq!(folder.names(), ["document.json", "document.json.history", "target"]);
        if after.is_dir() { fs::remove_dir(&history) } else { fs::remove_file(&history) }.unwrap();
    }
}

#[test]
fn a_crash_after_a_start_does_not_find_the_history_of_before() {
    let folder = Folder::new("crash");
    let file = folder.file("document.json");
    let id = leave_history(&file, &[]);
    let server = Binary::start(&["--document", &file]);
    assert_eq!(reason_after(server.address, "/events", &id), "known");
    wait_until(|| folder.names(), |names| *names == ["document.json"]);
    let chat = post(server.address, "/events", "what nobody will hear again").to_string();
    server.signal("KILL");
    drop(server);
    let server = Binary::start(&["--document", &file]);
    for id in [id, chat] {
        assert_eq!(reason_after(server.address, "/events", &id), "restart", "{id}");
    }
}

#[test]
fn the_bound_of_history_holds_for_what_is_read_and_the_newest_stay() {
    let folder = Folder::new("bound");
    let file = folder.file("document.json");
    let server = Binary::start(&["--document", &file]);
    let first = Stream::open(server.address, "/events").next_named("init").id.unwrap();
    let text = serde_json::json!("x".repeat(10_000)).to_string();
    let ids: Vec<String> = (0..100).map(|_| post(server.address, "/events", &text).to_string()).collect();
    stop(server);
    let server = Binary::start(&["--document", &file, "--history", "64K"]);
    assert_eq!(reason_after(server.address, "/events", &ids[96]), "known");
    assert_eq!(reason_after(server.address, "/events", &ids[90]), "gap");
    assert_eq!(reason_after(server.address, "/events", &first), "gap");
    let text = get(server.address, "/metrics").body;
    let held = text.lines().find_map(|line| line.strip_prefix("statecast_history_bytes ")).unwrap();
    assert!((1..=64 << 10).contains(&held.parse::<usize>().unwrap()), "{held}");
    let last = post(server.address, "/events", "hi").to_string();
    stop(server);
    // Without any, whoever has everything has it still.
    let server = Binary::start(&["--document", &file, "--history", "1"]);
    assert_eq!(reason_after(server.address, "/events", &last), "known");
    assert_eq!(reason_after(server.address, "/events", &ids[96]), "gap");
}

#[test]
fn a_history_that_does_not_fit_the_disk_is_one_line_and_the_stop_is_clean() {
    let folder = Folder::new("full");
    let file = folder.file("document.json");
    let server = Binary::start_under("ulimit -f 8", &["--document", &file]);
    let id = Stream::open(server.address, "/events").next_named("init").id.unwrap();
    put(server.address, "/state/a", "1");
    post(server.address, "/events", &"x".repeat(20_000));
    let log = stop(server);
    let why = format!("the history in {file}.history is not kept: File too large (os error 27)");
    assert!(about_history(&log).len() == 1 && log.contains(&why), "{log}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
    assert_eq!(folder.names(), ["document.json"]);
    let server = Binary::start(&["--document", &file]);
    assert_eq!(reason_after(server.address, "/events", &id), "restart");
}

#[test]
fn a_start_that_fails_keeps_the_history_for_the_next_one() {
    let folder = Folder::new("kept");
    let file = folder.file("document.json");
    let id = leave_history(&file, &[]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let failed = Command::new(env!("CARGO_BIN_EXE_statecast"))
        .args(["--listen", &listen, "--document", &file])
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let server = Binary::start(&["--document", &file]);
    assert_eq!(reason_after(server.address, "/events", &id), "known");
}

#[test]
fn a_server_inside_a_program_leaves_its_history_too_and_what_was_forgotten_stays_so() {
    let folder = Folder::new("embedded");
    let file = folder.0.join("document.json");
    let start = || start_with(|config| config.document = Some(file.clone()));
    let server = start();
    let id = Stream::open(server.address(), "/events").next_named("init").id.unwrap();
    put(server.address(), "/state/a", "1");
    server.stop().unwrap();
    let server = start();
    assert_eq!(reason_after(server.address(), "/events", &id), "known");
    server.restart(statecast::Restart::ForgetHistory).unwrap();
    assert_eq!(reason_after(server.address(), "/events", &id), "restart");
    let id_after = post(server.address(), "/events", "hi").to_string();
    drop(server);
    let server = start();
    assert_eq!(reason_after(server.address(), "/events", &id), "restart");
    assert_eq!(reason_after(server.address(), "/events", &id_after), "known");
}
