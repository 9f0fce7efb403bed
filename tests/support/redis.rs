//! Redis as a test has it: a process on a port of its own, with a folder of its own, and a link to it that can fail.
//!
//! `Redis` starts, stops, kills and asks a real `redis-server`; `REDIS_SERVER` names another program, such as
//! `valkey-server`. `Link` is a TCP proxy that hangs, mutes, cuts and switches what goes through it. Its end ends each of
//! them and removes the folder, also when a test panics. Tests and programs that test share this file.

#![allow(dead_code, reason = "each program uses its own part")]

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::places::{free_address, new_folder};

/// Longer than Redis takes for anything on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// What starts Redis, or something that is like it.
pub fn program() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

pub struct Redis {
    pub address: SocketAddr,
    folder: PathBuf,
    options: Vec<String>,
    child: Option<Child>,
}

/// What Redis answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Nothing,
    Number(i64),
    Text(String),
    List(Vec<Reply>),
    Error(String),
}

/// A record of a stream: its id, and its fields in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub id: String,
    pub fields: Vec<(String, String)>,
}

impl Redis {
    /// Starts one that keeps nothing on disk.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// Starts one with more options, as its command line has them.
    pub fn start_with(options: &[&str]) -> Redis {
        let folder = new_folder("redis");
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut redis = Redis { address: free_address(), folder, options, child: None };
        // Somebody else may have taken the port meanwhile.
        while !redis.try_start() {
            redis.address = free_address();
        }
        redis
    }

    /// Starts one that follows another, and waits until it has what that one has.
    pub fn replica_of(master: &Redis) -> Redis {
        let (host, port) = (master.address.ip().to_string(), master.address.port().to_string());
        let replica = Redis::start();
        replica.call(&["REPLICAOF", &host, &port]);
        replica.wait_for("it is no replica", |redis| redis.info("replication", "master_link_status") == "up");
        replica
    }

    /// Makes a replica a master, with what it has.
    pub fn promote(&self) {
        self.call(&["REPLICAOF", "NO", "ONE"]);
    }

    /// Starts it again where it was, with what is in its folder.
    pub fn restart(&mut self) {
        self.kill();
        let begin = Instant::now();
        while !self.try_start() {
            assert!(begin.elapsed() < DEADLINE, "{} does not start again", program());
        }
    }

    /// Starts it again where it was, with nothing.
    pub fn restart_empty(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.folder).expect("its folder");
        fs::create_dir(&self.folder).expect("a folder");
        self.restart();
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Stops its process, which keeps its connections and answers nothing.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// The number of its process.
    pub fn process(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What it writes its files to.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sends one command over a connection of its own.
    pub fn ask(&self, words: &[&str]) -> Reply {
        self.try_ask(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Sends one command that must not fail.
    pub fn call(&self, words: &[&str]) -> Reply {
        match self.ask(words) {
            Reply::Error(text) => panic!("{words:?}: {text}"),
            reply => reply,
        }
    }

    fn try_ask(&self, words: &[&str]) -> io::Result<Reply> {
        let mut connection = TcpStream::connect(self.address)?;
        connection.set_read_timeout(Some(DEADLINE))?;
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            write!(bytes, "${}\r\n{word}\r\n", word.len()).expect("a String");
        }
        connection.write_all(bytes.as_bytes())?;
        reply(&mut BufReader::new(connection))
    }

    /// A field of `INFO`.
    pub fn info(&self, section: &str, field: &str) -> String {
        let Reply::Text(text) = self.call(&["INFO", section]) else { panic!("INFO {section} is a text") };
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    /// How often a command was called, by scripts too.
    pub fn calls(&self, command: &str) -> u64 {
        let stats = self.info("commandstats", &format!("cmdstat_{command}"));
        let calls = stats.split(',').find_map(|field| field.strip_prefix("calls="));
        calls.map_or(0, |calls| calls.parse().expect("a number"))
    }

    /// The records of a stream.
    pub fn records(&self, key: &str) -> Vec<Record> {
        let Reply::List(records) = self.call(&["XRANGE", key, "-", "+"]) else {
            panic!("XRANGE {key} is a list")
        };
        records.into_iter().map(Record::of).collect()
    }

    /// Waits until it is so.
    pub fn wait_for(&self, otherwise: &str, is_so: impl Fn(&Redis) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            assert!(begin.elapsed() < DEADLINE, "{otherwise}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn try_start(&mut self) -> bool {
        let program = program();
        let mut command = Command::new(&program);
        command.args(["--bind", "127.0.0.1", "--port", &self.address.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
        command.args(["--dir".into(), self.folder.clone()]).args(&self.options);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{program}: {error}; tests/all installs it"));
        let (mut said, begin) = (String::new(), Instant::now());
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        // It says so much later that it takes connections than that it took the port.
        while !matches!(self.try_ask(&["PING"]), Ok(Reply::Text(_) | Reply::Error(_))) {
            if let Ok(Some(status)) = child.try_wait() {
                lines.read_to_string(&mut said).ok();
                assert!(said.contains("in use"), "{program} ended with {status}: {said}");
                return false;
            }
            assert!(begin.elapsed() < DEADLINE, "{program} does not answer");
            thread::sleep(Duration::from_millis(5));
        }
        // A pipe that nobody reads would hold it up.
        thread::spawn(move || io::copy(&mut lines, &mut io::sink()));
        self.child = Some(child);
        true
    }

    fn signal(&self, name: &str) {
        let script = format!("kill -s {name} {}", self.process());
        assert!(Command::new("sh").args(["-c", &script]).status().expect("a shell runs").success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.folder).ok();
    }
}

impl Record {
    fn of(reply: Reply) -> Record {
        let Reply::List(parts) = reply else { panic!("{reply:?} is no record") };
        let [Reply::Text(id), Reply::List(words)] = &parts[..] else { panic!("{parts:?} is no record") };
        let texts: Vec<String> = words.iter().map(Reply::text).collect();
        let fields = texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        Record { id: id.clone(), fields }
    }

    pub fn field(&self, name: &str) -> &str {
        let found = self.fields.iter().find(|(other, _)| other == name);
        found.map_or_else(|| panic!("{self:?} has no {name:?}"), |(_, value)| value)
    }
}

impl Reply {
    pub fn text(&self) -> String {
        match self {
            Reply::Text(text) => text.clone(),
            Reply::Number(number) => number.to_string(),
            other => panic!("{other:?} is no text"),
        }
    }
}

/// Reads a reply. <https://redis.io/docs/latest/develop/reference/protocol-spec/>
fn reply(reader: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (kind, rest) = line.trim_end().split_at(1);
    let number = || rest.parse::<i64>().map_err(io::Error::other);
    Ok(match kind {
        "+" => Reply::Text(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Number(number()?),
        "$" | "*" if rest == "-1" => Reply::Nothing,
        "$" => {
            let mut bytes = vec![0; number()? as usize + 2];
            reader.read_exact(&mut bytes)?;
            bytes.truncate(bytes.len() - 2);
            Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
        }
        "*" => Reply::List((0..number()?).map(|_| reply(reader)).collect::<io::Result<_>>()?),
        _ => return Err(io::Error::other(format!("{line:?} is no reply"))),
    })
}

/// What a link does with what goes through it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Passes,
    /// Holds what comes from both sides.
    Hangs,
    /// Holds the answers alone.
    Mutes,
    /// Closes every connection.
    Cuts,
}

/// A TCP proxy with faults on demand.
pub struct Link {
    pub address: SocketAddr,
    shared: Arc<LinkState>,
}

struct LinkState {
    way: Mutex<Way>,
    changed: Condvar,
    /// Both ends of every connection.
    open: Mutex<Vec<TcpStream>>,
}

struct Way {
    mode: Mode,
    target: SocketAddr,
    /// How often everything was closed. What was held by then gets nowhere.
    closings: u64,
}

impl Link {
    pub fn to(target: SocketAddr) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let way = Mutex::new(Way { mode: Mode::Passes, target, closings: 0 });
        let shared = Arc::new(LinkState { way, changed: Condvar::new(), open: Mutex::default() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                thread::spawn(move || shared.carry(&connection));
            }
        });
        Link { address, shared }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Lets everything through, what was held too.
    pub fn pass(&self) {
        self.shared.set(Mode::Passes);
    }

    pub fn hang(&self) {
        self.shared.set(Mode::Hangs);
    }

    /// Lets commands through and holds their answers.
    pub fn mute(&self) {
        self.shared.set(Mode::Mutes);
    }

    /// Closes every connection, and each new one.
    pub fn cut(&self) {
        self.shared.set(Mode::Cuts);
        self.shared.close(|_| {});
    }

    /// Leads to another place from now on, as a failover does: what is open is closed.
    pub fn switch(&self, target: SocketAddr) {
        self.shared.close(|way| way.target = target);
        self.pass();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

impl LinkState {
    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().expect("nobody panics")
    }

    fn set(&self, mode: Mode) {
        self.way().mode = mode;
        self.changed.notify_all();
    }

    fn close(&self, change: impl FnOnce(&mut Way)) {
        {
            let mut way = self.way();
            change(&mut way);
            way.closings += 1;
        }
        self.changed.notify_all();
        for end in self.open.lock().expect("nobody panics").drain(..) {
            end.shutdown(Shutdown::Both).ok();
        }
    }

    fn carry(&self, client: &TcpStream) -> Option<()> {
        let closings = self.way().closings;
        let target = self.passes_at_last(closings, false)?;
        let server = TcpStream::connect(target).ok()?;
        let ends = [client.try_clone().ok()?, server.try_clone().ok()?];
        for end in &ends {
            end.set_nodelay(true).ok()?;
        }
        self.open.lock().expect("nobody panics").extend(ends);
        // What was closed before they were on the list did not close them.
        self.passes_at_last(closings, false)?;
        thread::scope(|scope| {
            scope.spawn(|| self.copy(client, &server, closings, false));
            self.copy(&server, client, closings, true);
        });
        Some(())
    }

    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream, closings: u64, are_answers: bool) {
        let mut piece = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            if self.passes_at_last(closings, are_answers).is_none() || to.write_all(&piece[..count]).is_err()
            {
                break;
            }
        }
        for end in [from, to] {
            end.shutdown(Shutdown::Both).ok();
        }
    }

    /// Waits while it holds, and says where to; `None` once it cuts, or was closed.
    fn passes_at_last(&self, closings: u64, are_answers: bool) -> Option<SocketAddr> {
        let holds = |way: &mut Way| {
            let holds = way.mode == Mode::Hangs || way.mode == Mode::Mutes && are_answers;
            holds && way.closings == closings
        };
        let way = self.changed.wait_while(self.way(), holds).expect("nobody panics");
        (way.mode != Mode::Cuts && way.closings == closings).then_some(way.target)
    }
}
