//! The README says what the program does: its commands are run, and their output is what it shows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "readme/follow.rs"]
#[allow(dead_code, reason = "its main asks a server on port 8080")]
mod program;
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::*;

/// Commands of the console blocks, each with the output it shows.
fn commands() -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in blocks("console").concat().lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), String::new())),
            (None, Some((_, output))) => output.extend([line, "\n"]),
            (None, None) => panic!("{line:?} belongs to no command"),
        }
    }
    commands
}

/// Ids and times differ from run to run; runs of digits become one.
fn without_digits(text: &str) -> String {
    let mut plain = String::new();
    for letter in text.chars() {
        if !letter.is_ascii_digit() {
            plain.push(letter);
        } else if !plain.ends_with('9') {
            plain.push('9');
        }
    }
    plain
}

/// A shell and all it starts, which end with it: `timeout` passes on the signal that it gets.
struct Shell(Child);

impl Shell {
    fn run(script: &str) -> Shell {
        let limit = DEADLINE.as_secs().to_string();
        // Its own commands are on the path, as for somebody who installed it.
        let folder = std::path::Path::new(env!("CARGO_BIN_EXE_statecast")).parent().unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("timeout");
        command.args([&limit, "sh", "-c", script]).env("PATH", path).stdout(Stdio::piped());
        let shell = command.spawn();
        Shell(shell.expect("a shell runs"))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        signal(&self.0, "TERM");
        self.0.wait().ok();
    }
}

#[test]
fn the_help_is_in_the_readme() {
    let output = Command::new(env!("CARGO_BIN_EXE_statecast")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(README.contains(&help), "put the output of statecast --help there");
}

#[test]
fn the_rust_of_the_readme_is_whole_and_is_that_of_files_that_run() {
    let files = [include_str!("readme/follow.rs"), include_str!("your_test.rs")];
    assert_eq!(blocks("rust,no_run"), files);
    assert!(blocks("rust").is_empty(), "a block with lines that a forge would show and rustdoc hides");
    let server = start();
    let url = server.url();
    put(server.address(), "/state/kitchen", r#"{"temp":20.5}"#);
    let running = std::thread::spawn(move || program::follow(&url).map_err(|error| error.to_string()));
    wait_until(
        || {
            post(server.address(), "/events?event=alert", "it boils");
            running.is_finished()
        },
        |is_over| *is_over,
    );
    assert_eq!(running.join().unwrap(), Ok(()));
}

/// Runs Python, with the program on its path and a token in its folder.
fn python(script: &str, folder: &Folder) {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_statecast")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("timeout");
    command.args([&DEADLINE.as_secs().to_string(), "python3", "-c", script]).env("PATH", path);
    let output = command.current_dir(&folder.0).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs Python: tests/all installs it"]
fn the_python_of_the_readme_publishes_and_tests() {
    let folder = Folder::new("python");
    std::fs::write(folder.file("token"), "s3cret\n").unwrap();
    let server = Binary::start(&["--publish-token-file", &folder.file("token")]);
    let [publish, test] = blocks("python")[..] else { panic!("there are two") };
    python(&publish.replace("192.168.1.7:8080", &server.address.to_string()), &folder);
    assert_eq!(get(server.address, "/state").body, r#"{"kitchen":{"temp":21.5}}"#);
    python(test, &folder);
}

#[test]
fn the_request_of_the_readme_is_one() {
    let server = start_with(|config| config.publish_token = statecast::Token::new("TOKEN").ok());
    let [request] = blocks("http")[..] else { panic!("there is one") };
    let request = request.trim_end().replace('\n', "\r\n").replacen("\r\n", "\r\nConnection: close\r\n", 1);
    assert!(exchange(server.address(), request.as_bytes()).starts_with("HTTP/1.1 200 "), "{request}");
    assert_eq!(get(server.address(), "/state").body, r#"{"kitchen":{"temp":21.5}}"#);
}

/// What a forge calls a heading in links.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
}

#[test]
fn every_link_within_the_readme_leads_to_a_heading() {
    let headings = README.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let anchors: Vec<String> = headings.map(anchor).collect();
    for link in README.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        assert!(anchors.iter().any(|anchor| anchor == link), "#{link} is no heading");
    }
}

#[test]
fn the_contents_lead_to_every_chapter() {
    let (_, contents) = README.split_once("| you want to | read |\n").unwrap();
    let contents: Vec<&str> = contents.lines().take_while(|line| line.starts_with('|')).collect();
    let contents = contents.concat();
    for chapter in README.lines().filter_map(|line| line.strip_prefix("## ")) {
        let is_there = contents.contains(&format!("](#{})", anchor(chapter)));
        assert!(is_there || chapter == "License", "the contents lack {chapter}");
    }
}

#[test]
fn a_wrong_option_exits_with_2_and_one_line() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_statecast")).args(["--heartbeat", "soon"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let line = "statecast: --heartbeat \"soon\": must be a time, such as 500ms, 15s or 2m\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), line);
    let taken = start();
    let listen = taken.address().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_statecast")).args(["--listen", &listen]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with(&format!("statecast: --listen {listen}: ")));
}

#[test]
fn the_test_command_of_the_readme_is_what_ci_runs() {
    assert!(blocks("sh").contains(&"tests/all\n"));
    assert_eq!(include_str!("../.ci/run").lines().last(), Some("tests/all"));
}

/// The texts between backquotes, in one line.
fn code(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_map_names_files_that_are_there_and_leaves_none_out() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (_, map) = README.split_once("| concept | file that shows it |\n").unwrap();
    let rows: Vec<&str> = map.lines().take_while(|line| line.starts_with('|')).collect();
    let mut named = Vec::new();
    for row in rows.iter().skip(1) {
        let files = row.split('|').nth(2).unwrap();
        for name in code(files) {
            if name.contains('/') {
                let text = std::fs::read_to_string(root.join(name));
                named.push((name, text.unwrap_or_else(|error| panic!("{name}: {error}"))));
            } else {
                let (file, text) = named.last().unwrap();
                assert!(text.contains(&format!("fn {name}(")), "{file} has no {name}");
            }
        }
    }
    for house in ["cli", "client", "http", "hub", "server", "sse"] {
        for entry in std::fs::read_dir(root.join("src").join(house)).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let name = format!("src/{house}/{file}");
            let is_named = named.iter().any(|(named, _)| *named == name);
            let is_in_folder = named.iter().any(|(named, _)| named.starts_with(&format!("{name}/")));
            assert!(is_named || is_in_folder || file == "mod.rs", "the map lacks {name}");
        }
    }
}

#[test]
fn a_version_that_is_none_is_answered_as_the_readme_says() {
    let server = start();
    assert!(README.contains("| another version that is none of HTTP/0.9, 1.0 and 1.1 | an empty 400"));
    for version in ["HTTP/1.2", "HTTP/2", "HTTP/4.0", "http/1.1", ""] {
        let request = format!("GET /healthz {version}\r\nHost: localhost\r\n\r\n");
        let answer = exchange(server.address(), request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{version}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{version}: {answer}");
    }
}

#[test]
#[ignore = "needs curl: tests/all installs it"]
fn the_commands_of_the_readme_do_what_it_shows() {
    let commands = commands();
    let (first, greeting) = &commands[0];
    assert_eq!(first, "cargo run --release");
    let server = Binary::start(&["serve"]);
    let port = format!("localhost:{}", server.address.port());
    assert_eq!(without_digits(&server.greeting), without_digits(greeting));
    for (command, expected) in &commands[1..] {
        let script = command.replace("localhost:8080", &port).replace("curl ", "curl -sS ");
        let mut shell = Shell::run(&script);
        let mut lines = BufReader::new(shell.0.stdout.take().unwrap()).lines();
        // A stream goes on; what the README shows is its beginning.
        let shown: String =
            lines.by_ref().take(expected.lines().count()).map(|line| line.unwrap() + "\n").collect();
        assert_eq!(without_digits(&shown), without_digits(expected), "{command}");
    }
}

#[test]
#[ignore = "needs curl: tests/all installs it"]
fn two_writers_that_do_as_the_readme_shows_lose_nothing() {
    const ROUNDS: usize = 20;
    let server = Binary::start(&[]);
    let example = blocks("sh").into_iter().find(|text| text.contains("If-Match")).unwrap();
    let script = example.replace("localhost:8080", &format!("localhost:{}", server.address.port()));
    let script = format!("for round in $(seq {ROUNDS}); do {script} done");
    let mut writers = [(); 2].map(|()| Shell::run(&script));
    for writer in &mut writers {
        assert!(writer.0.wait().unwrap().success());
    }
    assert_eq!(get(server.address, "/state/count").body, (2 * ROUNDS).to_string());
    let metrics = get(server.address, "/metrics").body;
    assert!(metrics.contains(&format!("statecast_writes_total {}\n", 2 * ROUNDS + 1)), "{metrics}");
}

#[test]
#[ignore = "needs curl: tests/all installs it"]
fn the_real_example_of_the_readme_publishes_the_load() {
    let server = Binary::start(&[]);
    let example = blocks("sh").into_iter().find(|text| text.contains("loadavg")).unwrap();
    let script = example.replace("localhost:8080", &format!("localhost:{}", server.address.port()));
    let mut stream = Stream::open(server.address, "/events/load");
    let _shell = Shell::run(&script);
    let load = stream.next_named("update").json();
    assert_eq!(load.as_array().map(Vec::len), Some(3), "{load}");
    assert!(load[0].is_f64());
}
