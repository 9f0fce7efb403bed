//! `--document`: the file is found fit at the start or said not to be, holds one whole document whatever the disk does,
//! and is one server's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::json;
use statecast::{Config, Server};
use support::*;

#[test]
fn the_document_survives_a_restart_and_a_kill() {
    let folder = Folder::new("restart");
    let file = folder.file("document.json");
    let server = Binary::start(&["--document", &file]);
    put(server.address, "/state/a", r#"{"x":1.10,"y":[null,"é"]}"#);
    wait_until(|| fs::read_to_string(&file).unwrap_or_default(), |text| text.contains("é"));
    // Written at most a second after the write: the kill takes nothing along that was there longer.
    put(server.address, "/state/b", "2");
    wait_until(|| fs::read_to_string(&file).unwrap(), |text| text.contains("\"b\":2"));
    server.signal("KILL");
    drop(server);
    let server = Binary::start(&["--document", &file]);
    assert!(server.greeting.contains(&format!("kept in {file}")), "{}", server.greeting);
    assert_eq!(get(server.address, "/state").body, r#"{"a":{"x":1.1,"y":[null,"é"]},"b":2}"#);
    assert!(get(server.address, "/state/a").header("ETag").is_some());
    put(server.address, "/state/c", "3");
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "{\"a\":{\"x\":1.1,\"y\":[null,\"é\"]},\"b\":2,\"c\":3}\n"
    );
    assert_eq!(folder.names(), ["document.json"]);
}

/// Starts the program with a document that it must refuse; returns why, without the name that is before it.
fn refusal_of(file: &str, options: &[&str]) -> String {
    let command = Command::new("timeout")
        .arg(DEADLINE.as_secs().to_string())
        .args([env!("CARGO_BIN_EXE_statecast"), "--listen", "127.0.0.1:0", "--document", file])
        .args(options)
        .output()
        .unwrap();
    let said = String::from_utf8(command.stderr).unwrap();
    assert_eq!((command.status.code(), &*command.stdout), (Some(1), &b""[..]), "{file}: {said}");
    let why =
        said.strip_prefix(&format!("statecast: --document {file}: ")).unwrap_or_else(|| panic!("{said}"));
    why.strip_suffix('\n').unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[test]
fn a_document_that_cannot_be_read_is_an_error_of_the_file_and_stays_as_it_is() {
    let folder = Folder::new("unreadable");
    let deep = |levels| format!("{{\"a\":{}1{}}}", "[".repeat(levels), "]".repeat(levels));
    let topics =
        |count| format!("{{{}}}", (0..count).map(|n| format!("\"t{n}\":1")).collect::<Vec<_>>().join(","));
    let table: [(&[u8], &str); 14] = [
        (b"{\"a\":", "the file is not JSON: EOF while parsing a value at line 1 column 5"),
        (b"\n", "the file is not JSON: EOF while parsing a value at line 2 column 0"),
        (b"\0\0\0", "the file is not JSON: expected value at line 1 column 1"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "the file is not JSON: expected value at line 1 column 1"),
        (b"{\"a\":\"\xe4\"}", "the file is not UTF-8; JSON is, and compression is not spoken"),
        (b"\xff\xfe{\0}\0", "the file is not UTF-8; JSON is, and compression is not spoken"),
        (b"[1]", "the file is JSON, but the document is an object"),
        (b"null", "the file is JSON, but the document is an object"),
        (b"{\"a b\":1}", "a key is no topic: a topic is 1 to 64 of A-Z a-z 0-9 . _ - and not . or .."),
        (&deep(100).into_bytes(), "the document would be deeper than 100 levels"),
        (&deep(1_000).into_bytes(), "the file is too deep: more than 100 levels"),
        (&topics(1_025).into_bytes(), "the document would have 1025 topics; at most 1024 fit"),
        (
            &format!("{{\"a\":\"{}\"}}", "x".repeat(70_000)).into_bytes(),
            "the document would be larger than 65536 bytes (--max-document), each object and array counted with 40 more",
        ),
        (
            &" ".repeat(8 * 65_536 + 1).into_bytes(),
            "the file has more than 524288 bytes, a document 65536 (--max-document)",
        ),
    ];
    for (number, (text, reason)) in table.into_iter().enumerate() {
        let file = folder.file(&number.to_string());
        fs::write(&file, text).unwrap();
        assert_eq!(refusal_of(&file, &["--max-document", "64K"]), reason);
        assert_eq!(fs::read(&file).unwrap(), text);
    }
    assert_eq!(folder.names().len(), 14, "nothing was left beside them: {:?}", folder.names());
}

#[test]
fn what_is_no_plain_file_is_refused_and_not_waited_for() {
    let folder = Folder::new("kinds");
    let fifo = folder.file("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _socket = UnixListener::bind(folder.file("socket")).unwrap();
    for (link, target) in
        [("to-fifo", "fifo"), ("to-null", "/dev/null"), ("to-folder", "."), ("loop", "loop")]
    {
        symlink(target, folder.file(link)).unwrap();
    }
    let plain = |what| format!("that is {what}, and a document needs a plain file");
    for (file, reason) in [
        (fifo, plain("a FIFO")),
        (folder.file("to-fifo"), plain("a FIFO")),
        (folder.file("socket"), plain("a socket")),
        ("/dev/null".into(), plain("a device")),
        ("/dev/zero".into(), plain("a device")),
        (folder.file("to-null"), plain("a device")),
        (folder.file("."), plain("a folder")),
        (folder.file("to-folder"), plain("a folder")),
        ("/".into(), plain("a folder")),
        (folder.file("loop"), "Too many levels of symbolic links (os error 40)".into()),
    ] {
        assert_eq!(refusal_of(&file, &[]), reason);
    }
}

#[test]
fn a_document_that_cannot_be_saved_is_found_at_the_start() {
    let folder = Folder::new("unsavable");
    fs::write(folder.file("file"), "{}").unwrap();
    symlink("none/document.json", folder.file("link")).unwrap();
    let missing = |named: &str| format!("the folder {named}: No such file or directory (os error 2)");
    let table = [
        (folder.file("none/such/document.json"), missing(&folder.file("none/such"))),
        (folder.file("link"), missing(&folder.file("none"))),
        (folder.file("file/document.json"), "Not a directory (os error 20)".into()),
    ];
    for (file, reason) in table {
        assert_eq!(refusal_of(&file, &[]), reason);
    }
    // A folder that takes no files from anybody, root neither.
    let reason = refusal_of("/proc/document.json", &[]);
    assert!(reason.starts_with("it cannot be made in the folder /proc: "), "{reason}");
    let reason = refusal_of("/proc/version", &[]);
    assert!(reason.starts_with("it cannot be saved in the folder /proc: "), "{reason}");
    assert_eq!(folder.names(), ["file", "link"]);
}

#[test]
fn a_start_that_fails_later_leaves_no_file_and_a_document_that_never_changed_none_either() {
    let folder = Folder::new("nothing");
    let file = PathBuf::from(folder.file("document.json"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = vec![taken.local_addr().unwrap()];
    let config = Config { listen, document: Some(file.clone()), ..Config::default() };
    let error = Server::start(config).err().expect("the port is taken");
    assert!(error.to_string().starts_with("--listen 127.0.0.1:"), "{error}");
    assert_eq!(folder.names(), [""; 0]);
    let server = start_with(|config| config.document = Some(file.clone()));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{}\n");
    drop(server);
    assert_eq!(folder.names(), [""; 0]);
    // What somebody has written into it meanwhile is his.
    let server = start_with(|config| config.document = Some(file.clone()));
    fs::write(&file, "{\"a\":1}").unwrap();
    drop(server);
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}");
}

#[test]
fn an_empty_file_is_an_empty_document_and_the_start_says_so() {
    let folder = Folder::new("empty");
    let file = folder.file("document.json");
    for text in ["", "\u{feff}"] {
        fs::write(&file, text).unwrap();
        let server = Binary::start(&["--document", &file]);
        let line = format!("  document: kept in {file}, which has 0 bytes: an empty document\n");
        assert!(server.greeting.contains(&line), "{}", server.greeting);
        assert_eq!(get(server.address, "/state").body, "{}");
        put(server.address, "/state/a", "1");
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
    }
}

#[test]
fn a_byte_order_mark_is_skipped_in_a_file_and_in_a_body() {
    let folder = Folder::new("bom");
    let file = folder.file("document.json");
    fs::write(&file, "\u{feff}{\"a\":1}").unwrap();
    let server = start_with(|config| config.document = Some(file.into()));
    let address = server.address();
    put(address, "/state/b", "\u{feff}\"\u{feff}x\"");
    assert_eq!(get(address, "/state").body, "{\"a\":1,\"b\":\"\u{feff}x\"}");
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    let json = [("Content-Type", "application/json")];
    assert_eq!(request(address, "POST", "/events/a", &json, "\u{feff}[1]").status, 200);
    assert_eq!(stream.next().data, r#"{"a":[1]}"#);
    post(address, "/events/a", "\u{feff}text");
    assert_eq!(stream.next().json(), json!({"a": "text"}));
}

#[test]
fn a_disk_that_refuses_is_a_fault_and_not_the_end() {
    let folder = Folder::new("full");
    let (inner, away) = (folder.0.join("inner"), folder.0.join("away"));
    fs::create_dir(&inner).unwrap();
    let file = inner.join("document.json");
    fs::write(&file, "{\"old\":1}").unwrap();
    let server = start_with(|config| config.document = Some(file.clone()));
    let address = server.address();
    fs::rename(&inner, &away).unwrap();
    put(address, "/state/new", "1");
    wait_until(|| get(address, "/metrics").body, |text| !text.contains("statecast_save_faults_total 0\n"));
    assert_eq!(fs::read_to_string(away.join("document.json")).unwrap(), "{\"old\":1}");
    assert_eq!(get(address, "/state").body, r#"{"new":1,"old":1}"#);
    let health = wait_until(|| get(address, "/healthz"), |health| health.status != 200);
    assert_eq!((health.status, &*health.error()), (503, "the document cannot be saved; the log says why"));
    fs::rename(&away, &inner).unwrap();
    wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"new\":1,\"old\":1}\n");
    wait_until(|| get(address, "/healthz").status, |status| *status == 200);
    server.stop().unwrap();
}

#[test]
fn a_document_is_saved_as_often_as_the_owner_allows_and_at_a_stop_in_any_case() {
    let folder = Folder::new("every");
    let file = folder.file("document.json");
    let server = Binary::start(&["--document", &file, "--save-every", "24h"]);
    put(server.address, "/state/a", "1");
    wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"a\":1}\n");
    put(server.address, "/state/a", "2");
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0), "a stop does not wait for the next time");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":2}\n");

    let server = start_with(|config| {
        config.heartbeat = Duration::from_secs(1);
        config.document = Some(file.clone().into());
        config.save_every = Duration::from_secs(24 * 60 * 60);
    });
    let saved_as = || fs::metadata(&file).unwrap().ino();
    let before = saved_as();
    put(server.address(), "/state/a", "3");
    let first = wait_until(saved_as, |inode| *inode != before);
    put(server.address(), "/state/a", "4");
    // The usual time has passed by then.
    let mut stream = Stream::open(server.address(), "/events");
    for _ in 0..3 {
        stream.next_named("heartbeat");
    }
    assert_eq!(saved_as(), first);
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":3}\n");
    server.stop().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":4}\n");
}

#[test]
fn a_stop_that_could_not_save_says_what_the_file_lacks() {
    let folder = Folder::new("last");
    let inner = folder.0.join("inner");
    let file = inner.join("document.json");
    fs::create_dir(&inner).unwrap();
    let server = start_with(|config| config.document = Some(file.clone()));
    fs::remove_dir_all(&inner).unwrap();
    let id = put(server.address(), "/state/a", "1");
    let error = server.stop().unwrap_err().to_string();
    let reason = "the document is not saved: No such file or directory (os error 2); the file has it as of ";
    assert!(error.starts_with(&format!("--document {}: {reason}", file.display())), "{error}");
    assert!(error.ends_with(&format!(", and not {id}")), "{error}");

    fs::create_dir(&inner).unwrap();
    let server = Binary::start(&["--document", file.to_str().unwrap()]);
    fs::remove_dir_all(&inner).unwrap();
    put(server.address, "/state/a", "1");
    server.signal("TERM");
    let (code, log) = server.wait();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&format!("statecast: --document {}: {reason}", file.display())), "{log}");
}

#[test]
fn a_limit_on_the_size_of_files_ends_nothing_and_leaves_nothing() {
    let folder = Folder::new("limit");
    let file = folder.file("document.json");
    let server = Binary::start_under("ulimit -f 8", &["--document", &file]);
    let address = server.address;
    put(address, "/state/a", "1");
    wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"a\":1}\n");
    put(address, "/state/b", &json!("x".repeat(20_000)).to_string());
    wait_until(|| get(address, "/metrics").body, |text| !text.contains("statecast_save_faults_total 0\n"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
    put(address, "/state/b", "2");
    wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"a\":1,\"b\":2}\n");
    assert_eq!(folder.names(), ["document.json"]);
    put(address, "/state/b", &json!("x".repeat(20_000)).to_string());
    server.signal("TERM");
    let (code, log) = server.wait();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the document is not saved: File too large (os error 27)"), "{log}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1,\"b\":2}\n");
    assert_eq!(folder.names(), ["document.json"]);
    // A document that is too large for the limit already cannot be kept.
    fs::write(&file, format!("{{\"a\":\"{}\"}}", "x".repeat(20_000))).unwrap();
    let script = "ulimit -f 8 && exec \"$0\" \"$@\"";
    let command = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_statecast"), "--listen", "127.0.0.1:0", "--document", &file])
        .output()
        .unwrap();
    let said = String::from_utf8(command.stderr).unwrap();
    let reason = format!("it cannot be saved in the folder {}: File too large", folder.0.display());
    assert!(command.status.code() == Some(1) && said.contains(&reason), "{said}");
    assert_eq!(folder.names(), ["document.json"]);
}

#[test]
fn the_mode_of_the_document_stays_and_a_new_one_is_as_the_umask_wants_it() {
    let folder = Folder::new("mode");
    let file = folder.file("document.json");
    let mode_of = |file: &str| fs::metadata(file).unwrap().permissions().mode() & 0o7777;
    for (umask, mode) in [("022", 0o644), ("077", 0o600), ("002", 0o664)] {
        let server = Binary::start_under(&format!("umask {umask}"), &["--document", &file]);
        put(server.address, "/state/a", "1");
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert_eq!(mode_of(&file), mode, "{umask}");
        fs::remove_file(&file).unwrap();
    }
    for mode in [0o600, 0o640, 0o666, 0o444, 0o400] {
        fs::write(&file, "{}").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let server = Binary::start_under("umask 077", &["--document", &file]);
        put(server.address, "/state/a", "1");
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert_eq!((mode_of(&file), fs::read_to_string(&file).unwrap()), (mode, "{\"a\":1}\n".into()));
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn what_is_planted_beside_the_document_is_neither_opened_nor_removed() {
    let folder = Folder::new("planted");
    let (file, victim, new) =
        (folder.file("document.json"), folder.file("victim"), folder.file("document.json.new"));
    fs::write(&victim, "precious").unwrap();
    let plants: [&dyn Fn(); 4] = [
        &|| symlink("victim", &new).unwrap(),
        &|| fs::hard_link(&victim, &new).unwrap(),
        &|| fs::create_dir(&new).unwrap(),
        &|| assert!(Command::new("mkfifo").arg(&new).status().unwrap().success()),
    ];
    for (number, plant) in plants.into_iter().enumerate() {
        plant();
        let before = fs::symlink_metadata(&new).unwrap();
        let server = start_with(|config| config.document = Some(file.clone().into()));
        put(server.address(), "/state/a", &number.to_string());
        server.stop().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{{\"a\":{number}}}\n"));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        let after = fs::symlink_metadata(&new).unwrap();
        assert_eq!((after.ino(), after.file_type()), (before.ino(), before.file_type()));
        assert_eq!(folder.names(), ["document.json", "document.json.new", "victim"]);
        if before.is_dir() { fs::remove_dir(&new) } else { fs::remove_file(&new) }.unwrap();
    }
}

#[test]
fn what_a_killed_server_left_is_removed_and_nothing_else() {
    let folder = Folder::new("leftovers");
    let file = folder.file("document.json");
    fs::write(&file, "{}").unwrap();
    let stay = [
        ".document.json.0123456789abcde.new",
        ".document.json.0123456789abcdef.old",
        ".document.json.0123456789abcdeg.new",
        ".document.json.x.0123456789abcdef.new",
        ".other.json.0123456789abcdef.new",
        "document.json.0123456789abcdef.new",
    ];
    for name in
        stay.iter().chain(&[".document.json.0123456789abcdef.new", ".document.json.fedcba9876543210.new"])
    {
        fs::write(folder.file(name), "{").unwrap();
    }
    // One that somebody has made a link of is removed, and not what it leads to.
    symlink("document.json", folder.file(".document.json.aaaaaaaaaaaaaaaa.new")).unwrap();
    start_with(|config| config.document = Some(file.clone().into())).stop().unwrap();
    assert_eq!(folder.names(), [&stay[..5], &["document.json", stay[5]]].concat());
    assert_eq!(fs::read_to_string(&file).unwrap(), "{}");
}

#[test]
fn a_name_as_long_as_names_can_be_and_one_that_is_no_text_can_be_kept() {
    let folder = Folder::new("names");
    for name in [OsString::from("x".repeat(255)), OsString::from_vec(b"\xff.json".to_vec())] {
        let file = folder.0.join(name);
        let server = start_with(|config| config.document = Some(file.clone()));
        put(server.address(), "/state/a", "1");
        server.stop().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
        fs::remove_file(&file).unwrap();
        assert_eq!(folder.names(), [""; 0]);
    }
}

#[test]
fn a_second_server_with_the_same_file_does_not_start_whatever_it_calls_it() {
    let folder = Folder::new("shared");
    let file = folder.file("document.json");
    fs::create_dir(folder.file("sub")).unwrap();
    symlink("document.json", folder.file("link")).unwrap();
    symlink("..", folder.file("sub/up")).unwrap();
    let names = ["document.json", "link", "sub/../document.json", "sub/up/link", "./document.json", "hard"];
    let refused = "another server keeps its document there";
    let server = start_with(|config| config.document = Some(file.clone().into()));
    let all_are_refused = || {
        // The file is another one after each save.
        fs::remove_file(folder.file("hard")).ok();
        fs::hard_link(&file, folder.file("hard")).unwrap();
        for name in names {
            let config = Config { document: Some(folder.0.join(name)), ..Config::default() };
            let error = Server::start(config).err().expect("it is taken").to_string();
            assert_eq!(error, format!("--document {}: {refused}", folder.0.join(name).display()));
        }
        assert_eq!(refusal_of(&folder.file("link"), &[]), refused);
    };
    all_are_refused();
    for count in ["1", "2"] {
        put(server.address(), "/state/a", count);
        let text = format!("{{\"a\":{count}}}\n");
        wait_until(|| fs::read_to_string(&file).unwrap(), |found| *found == text);
        all_are_refused();
    }
    server.stop().unwrap();
    let again = start_with(|config| config.document = Some(folder.file("sub/up/link").into()));
    assert_eq!(get(again.address(), "/state").body, r#"{"a":2}"#);
    drop(again);
    // A process that was killed holds no lock.
    let killed = Binary::start(&["--document", &file]);
    assert_eq!(refusal_of(&file, &[]), refused);
    killed.signal("KILL");
    assert_eq!(killed.wait().0, None);
    start_with(|config| config.document = Some(file.into())).stop().unwrap();
}

#[test]
#[allow(unsafe_code)]
fn a_server_that_stopped_has_let_go_of_its_file_whoever_is_making_a_child_process() {
    let folder = Folder::new("forked");
    fs::write(folder.file("document.json"), "{}").unwrap();
    let start =
        || Server::start(Config { document: Some(folder.file("document.json").into()), ..Config::default() });
    let server = start().unwrap();
    let (mut here, mut there) = UnixStream::pair().unwrap();
    let mut command = Command::new("true");
    // SAFETY: between fork and exec it only writes to and reads from a socket.
    unsafe {
        command.pre_exec(move || {
            there.write_all(b"1")?;
            there.read_exact(&mut [0])
        });
    }
    thread::scope(|scope| {
        let child = scope.spawn(|| command.status().unwrap());
        // The child has all that this process has open, and has not begun to be a program.
        here.read_exact(&mut [0]).unwrap();
        server.stop().unwrap();
        let again = start();
        here.write_all(b"1").unwrap();
        assert!(child.join().unwrap().success());
        again.expect("the file is free").stop().unwrap();
    });
}

#[test]
fn of_many_servers_that_start_at_once_with_one_file_one_has_it() {
    let folder = Folder::new("race");
    let file = PathBuf::from(folder.file("document.json"));
    for _ in 0..20 {
        let start = || Server::start(Config { document: Some(file.clone()), ..Config::default() }).ok();
        let servers: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            starts.into_iter().filter_map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(servers.len(), 1);
    }
}

#[test]
fn a_file_that_another_server_has_by_now_is_left_to_it() {
    let folder = Folder::new("taken");
    let file = PathBuf::from(folder.file("document.json"));
    let first = start_with(|config| config.document = Some(file.clone()));
    fs::remove_file(&file).unwrap();
    let second = start_with(|config| config.document = Some(file.clone()));
    put(second.address(), "/state/second", "1");
    put(first.address(), "/state/first", "1");
    let error = first.stop().unwrap_err().to_string();
    assert!(error.contains("not saved: another server keeps its document there"), "{error}");
    second.stop().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"second\":1}\n");
}

#[test]
fn a_linked_document_stays_a_link() {
    let folder = Folder::new("link");
    let (file, link) = (folder.0.join("real.json"), folder.0.join("link.json"));
    fs::write(&file, "{}").unwrap();
    symlink(&file, &link).unwrap();
    let server = start_with(|config| config.document = Some(link.clone()));
    put(server.address(), "/state/a", "1");
    server.stop().unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
}

#[test]
fn a_link_whose_target_does_not_exist_yet_is_followed_and_stays_a_link() {
    let folder = Folder::new("dangling");
    fs::create_dir(folder.file("data")).unwrap();
    symlink("data/real.json", folder.file("relative")).unwrap();
    symlink(folder.file("relative"), folder.file("absolute")).unwrap();
    for name in ["relative", "absolute"] {
        let server = Binary::start(&["--document", &folder.file(name)]);
        put(server.address, "/state/a", "1");
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert!(fs::symlink_metadata(folder.file(name)).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(folder.file("data/real.json")).unwrap(), "{\"a\":1}\n");
        fs::remove_file(folder.file("data/real.json")).unwrap();
    }
    assert_eq!(folder.names(), ["absolute", "data", "relative"]);
}

#[test]
#[ignore = "needs root: it gives files away"]
fn the_owner_of_the_document_stays_when_root_saves_it() {
    assert!(is_root(), "run it as root");
    let folder = Folder::new("owner");
    let file = folder.file("document.json");
    fs::write(&file, "{}").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&file, Some(64_998), Some(64_997)).unwrap();
    let server = start_with(|config| config.document = Some(file.clone().into()));
    put(server.address(), "/state/a", "1");
    server.stop().unwrap();
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (64_998, 64_997, 0o640));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
}

/// Starts the program as another user; returns why it does not.
fn refusal_of_another_user(folder: &Folder, file: &str) -> String {
    // Where another user finds it, too.
    let program = folder.file("statecast");
    fs::copy(env!("CARGO_BIN_EXE_statecast"), &program).unwrap();
    let command = Command::new("setpriv")
        .args(["--reuid=64999", "--regid=64999", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .args([&program, "--listen", "127.0.0.1:0", "--document", file])
        .output()
        .expect("setpriv, of the package util-linux");
    fs::remove_file(&program).unwrap();
    assert_eq!(command.status.code(), Some(1));
    String::from_utf8(command.stderr).unwrap()
}

#[test]
#[ignore = "needs root and setpriv: it becomes another user"]
fn a_folder_of_the_owner_of_something_else_is_found_at_the_start() {
    assert!(is_root(), "run it as root");
    let folder = Folder::new("foreign");
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.file("document.json");
    let said = refusal_of_another_user(&folder, &file);
    assert!(said.contains(&format!("--document {file}: it cannot be made in the folder ")), "{said}");
    // It may write the file, but nothing that would take its place.
    fs::write(&file, "{}").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let said = refusal_of_another_user(&folder, &file);
    assert!(said.contains(&format!("--document {file}: it cannot be saved in the folder ")), "{said}");
    // As in /tmp: anybody makes files there, and replaces nobody's.
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o1777)).unwrap();
    let said = refusal_of_another_user(&folder, &file);
    assert!(said.contains(&format!("--document {file}: it cannot be replaced: ")), "{said}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let said = refusal_of_another_user(&folder, &file);
    assert_eq!(said, format!("statecast: --document {file}: Permission denied (os error 13)\n"));
    assert_eq!(folder.names(), ["document.json"]);
}

#[test]
#[ignore = "needs root: it makes files and folders immutable"]
fn an_immutable_document_is_found_at_the_start() {
    assert!(is_root(), "run it as root");
    let folder = Folder::new("immutable");
    let inner = folder.file("inner");
    fs::create_dir(&inner).unwrap();
    let file = folder.file("inner/document.json");
    fs::write(&file, "{}").unwrap();
    let change = |what: &str, path: &str| {
        assert!(
            Command::new("chattr").args([what, path]).status().unwrap().success(),
            "chattr {what} {path}"
        );
    };
    for (attribute, path, reason) in [
        ("i", &file, "it cannot be replaced: "),
        ("a", &file, "it cannot be replaced: "),
        ("i", &inner, "it cannot be saved in the folder "),
    ] {
        change(&format!("+{attribute}"), path);
        let said = refusal_of(&file, &[]);
        change(&format!("-{attribute}"), path);
        assert!(said.starts_with(reason), "{said}");
    }
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 1);
}

/// The program in a mount namespace of its own, in which `script` has been run.
fn start_mounted(script: &str, file: &str) -> Binary {
    let script = format!("{script} && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_statecast"), "--document", file]);
    Binary::spawn(&mut command)
}

#[test]
#[ignore = "needs root and unshare: it mounts a file"]
fn a_file_that_is_mounted_by_itself_is_written_in_place_and_the_start_says_so() {
    assert!(is_root(), "run it as root");
    let folder = Folder::new("mounted");
    let (host, file) = (folder.file("host file.json"), folder.file("inner/document.json"));
    fs::create_dir(folder.file("inner")).unwrap();
    fs::write(&host, format!("{{\"a\":\"{}\"}}", "y".repeat(2_000))).unwrap();
    fs::write(&file, "").unwrap();
    let ino = fs::metadata(&host).unwrap().ino();
    let mount = format!("mount --bind '{host}' '{file}'");
    let read_only =
        format!("mount --bind '{0}' '{0}' && mount -o remount,ro,bind '{0}'", folder.file("inner"));
    for script in [mount.clone(), format!("{read_only} && {mount}"), format!("ulimit -f 8 && {mount}")] {
        let server = start_mounted(&script, &file);
        let said = format!(
            "kept in {file}; written in place, for it is mounted by itself: a power cut can hurt it\n"
        );
        assert!(server.greeting.contains(&said), "{}", server.greeting);
        put(server.address, "/state/a", "1");
        wait_until(|| fs::read_to_string(&host).unwrap(), |text| text == "{\"a\":1}\n");
        if script.starts_with("ulimit") {
            // Half of a document does not replace a whole one.
            put(server.address, "/state/a", &json!("x".repeat(20_000)).to_string());
            wait_until(
                || get(server.address, "/metrics").body,
                |text| !text.contains("statecast_save_faults_total 0\n"),
            );
            assert_eq!(fs::read_to_string(&host).unwrap(), "{\"a\":1}\n");
        }
        let long = json!("y".repeat(2_000)).to_string();
        put(server.address, "/state/a", &long);
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert_eq!(fs::read_to_string(&host).unwrap(), format!("{{\"a\":{long}}}\n"));
        assert_eq!(fs::metadata(&host).unwrap().ino(), ino);
    }
    // Two of them, each with a mount of the same file, as two containers have.
    let first = start_mounted(&mount, &file);
    assert_eq!(refusal_of(&host, &[]), "another server keeps its document there");
    first.signal("TERM");
    assert_eq!(first.wait().0, Some(0));
    let script = format!(
        "{mount} && mount -o remount,ro,bind '{file}' && ! \"$0\" --listen 127.0.0.1:0 --document '{file}'"
    );
    let command = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_statecast")])
        .output()
        .unwrap();
    let said = String::from_utf8(command.stderr).unwrap();
    let reason = format!("statecast: --document {file}: it cannot be written to: Read-only file system");
    assert!(command.status.success() && said.starts_with(&reason), "{said}");
    assert_eq!(
        (folder.names(), fs::read_dir(folder.file("inner")).unwrap().count()),
        (vec!["host file.json".into(), "inner".into()], 1)
    );
}

#[test]
#[ignore = "needs root and unshare: it makes a small disk"]
fn a_full_disk_is_a_fault_that_ends_when_there_is_room() {
    assert!(is_root(), "run it as root");
    let folder = Folder::new("small");
    let (file, ballast) = (folder.file("document.json"), folder.file("ballast"));
    let mount = format!("mount -t tmpfs -o size=64k tmpfs '{}'", folder.0.display());
    let server = start_mounted(&mount, &file);
    // It is mounted for the server alone; /proc leads there.
    let inside = |path: &str| format!("/proc/{}/root{path}", server.child.id());
    put(server.address, "/state/a", "1");
    wait_until(|| fs::read_to_string(inside(&file)).unwrap(), |text| text == "{\"a\":1}\n");
    fs::write(inside(&ballast), vec![0; 48 << 10]).unwrap();
    put(server.address, "/state/a", &json!("x".repeat(20_000)).to_string());
    wait_until(
        || get(server.address, "/metrics").body,
        |text| !text.contains("statecast_save_faults_total 0\n"),
    );
    assert_eq!(fs::read_to_string(inside(&file)).unwrap(), "{\"a\":1}\n");
    fs::remove_file(inside(&ballast)).unwrap();
    wait_until(|| fs::read_to_string(inside(&file)).unwrap().len(), |length| *length == 20_009);
    assert_eq!(fs::read_dir(inside(folder.0.to_str().unwrap())).unwrap().count(), 1);
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
#[ignore = "needs strace: tests/all installs it"]
fn what_a_file_system_has_not_is_no_reason_not_to_save_and_none_to_save_again() {
    let folder = Folder::new("lacking");
    let file = folder.file("document.json");
    for inject in [
        "flock:error=ENOLCK",
        "flock:error=EOPNOTSUPP",
        "flock:error=EINVAL",
        "fchmod:error=EPERM",
        "fchmod:error=EOPNOTSUPP",
        "fchown:error=EPERM",
        "fsync:error=EINVAL",
        "fsync:error=EROFS",
        "fsync:error=EINVAL:when=2+2",
        "rename:error=EBUSY",
    ] {
        fs::write(&file, "{}").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let options = ["--document", &file];
        let server = Binary::spawn(&mut strace(inject, env!("CARGO_BIN_EXE_statecast"), &options));
        put(server.address, "/state/a", "1");
        wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"a\":1}\n");
        server.signal("TERM");
        // One that was not saved would be tried again now, fail again, and be the end of it.
        let (code, log) = server.wait();
        assert!(code == Some(0) && !log.contains("saved"), "{inject}: {log}");
        assert_eq!(log.contains("written in place"), inject.contains("EBUSY"), "{inject}: {log}");
        assert_eq!(folder.names(), ["document.json"], "{inject}");
    }
    for inject in ["fsync:error=EIO", "fsync:error=ENOSPC", "fsync:error=EDQUOT", "rename:error=EIO"] {
        let options = ["--document", &file];
        let server = Binary::spawn(&mut strace(inject, env!("CARGO_BIN_EXE_statecast"), &options));
        put(server.address, "/state/a", "2");
        server.signal("TERM");
        let (code, log) = server.wait();
        assert!(code == Some(1) && log.contains("the document is not saved: "), "{inject}: {log}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n", "{inject}");
        assert_eq!(folder.names(), ["document.json"], "{inject}");
    }
}

/// A disk that has taken what it was given and says so after two minutes, when no test waits any more.
const STUCK: &str = "fsync:delay_enter=120000000";

#[test]
#[ignore = "needs strace: tests/all installs it"]
fn a_disk_that_does_not_answer_does_not_keep_the_server_from_stopping() {
    let folder = Folder::new("stuck");
    let file = folder.file("document.json");
    let options = ["--document", &file, "--grace", "1s"];
    // Stuck since before the stop, and since the stop.
    for is_stuck_before in [true, false] {
        let server = Binary::spawn(&mut strace(STUCK, env!("CARGO_BIN_EXE_statecast"), &options));
        let mut stream = Stream::open(server.address, "/events");
        stream.next_named("init");
        put(server.address, "/state/a", "1");
        if is_stuck_before {
            // The file beside it is there when the disk is asked.
            wait_until(|| folder.names().len(), |count| *count == 2);
            put(server.address, "/state/a", "2");
        }
        server.signal("TERM");
        assert!(stream.ends_cleanly(), "the disk does not keep a stream from its last chunk");
        // All of it has ended but for the thread that strace holds.
        wait_until(
            || status_of(server.child.id(), "State:"),
            |state| state.as_ref().is_none_or(|state| state.starts_with('Z')),
        );
        end_strace(server.child.id());
        let (code, log) = server.wait();
        let text =
            "the document is not saved: the disk has not done it within --grace; the file has it as of ";
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(&format!("statecast: --document {file}: {text}")), "{log}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "{}\n");
    }
    // What they left is gone.
    start_with(|config| config.document = Some(file.clone().into())).stop().unwrap();
    assert_eq!(folder.names(), ["document.json"]);
}

#[test]
#[ignore = "needs strace: tests/all installs it"]
fn an_embedded_server_stops_and_drops_in_time_whatever_the_disk_does() {
    let Ok(how) = std::env::var("STATECAST_TEST_STUCK") else {
        let name = "an_embedded_server_stops_and_drops_in_time_whatever_the_disk_does";
        let program = std::env::current_exe().unwrap();
        for how in ["stop", "drop"] {
            let options = ["--exact", name, "--ignored", "--nocapture"];
            let mut command = strace(STUCK, program.to_str().unwrap(), &options);
            let child = command.env("STATECAST_TEST_STUCK", how).stdout(Stdio::null());
            let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
            let status = wait_until(|| child.try_wait().unwrap(), Option::is_some);
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert!(status.is_some_and(|status| status.success()), "{how}: {said}");
        }
        return;
    };
    let folder = Folder::new("embedded");
    let file = PathBuf::from(folder.file("document.json"));
    let start = || {
        Server::start(Config {
            document: Some(file.clone()),
            grace: Duration::from_secs(1),
            ..Config::default()
        })
    };
    let server = start().unwrap();
    server.patch(None, json!({"a": 1})).unwrap();
    if how == "drop" {
        drop(server);
    } else {
        let error = server.stop().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
    // It may be saved yet, so nobody else may have it.
    let error = start().err();
    end_strace(std::process::id());
    let error = error.expect("it is taken");
    assert!(error.to_string().ends_with("another server keeps its document there"), "{error}");
}
