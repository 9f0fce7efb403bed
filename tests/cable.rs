//! A cable that is pulled: two hosts in network namespaces, and a link between them that goes down.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::*;

/// Two namespaces with a link between; removed at the end.
struct Hosts {
    server: String,
    client: String,
}

impl Hosts {
    fn new() -> Hosts {
        let number = std::process::id();
        let hosts = Hosts { server: format!("statecast-s{number}"), client: format!("statecast-c{number}") };
        let (server, client) = (&hosts.server, &hosts.client);
        for line in [
            format!("netns add {server}"),
            format!("netns add {client}"),
            format!("link add veth0 netns {server} type veth peer name veth0 netns {client}"),
            format!("-n {server} address add 192.0.2.1/24 dev veth0"),
            format!("-n {client} address add 192.0.2.2/24 dev veth0"),
            format!("-n {server} link set lo up"),
            format!("-n {server} link set veth0 up"),
            format!("-n {client} link set veth0 up"),
        ] {
            ip(&line);
        }
        hosts
    }

    fn run(host: &str, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host, program]).args(arguments);
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [&self.server, &self.client] {
            Command::new("ip").args(["netns", "delete", host]).status().ok();
        }
    }
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).status();
    let done = done.expect("ip is missing: it is in the package iproute2");
    assert!(done.success(), "ip {line} (as root?)");
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
#[ignore = "needs root, ip and curl, and a minute: tests/all installs them"]
fn a_client_whose_cable_is_pulled_is_gone_within_a_minute() {
    let hosts = Hosts::new();
    let program = env!("CARGO_BIN_EXE_statecast");
    let arguments = ["--listen", "192.0.2.1:8080", "--open", "--heartbeat", "5s"];
    let server =
        Hosts::run(&hosts.server, program, &arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _server = Running(server.unwrap());
    let clients = || {
        let url = "http://192.0.2.1:8080/clients";
        let output = Hosts::run(&hosts.server, "curl", &["-s", "--max-time", "5", url]).output();
        String::from_utf8(output.expect("curl runs").stdout).unwrap()
    };
    wait_until(&clients, |text| text == "[]\n");
    let stream = Hosts::run(&hosts.client, "curl", &["-sN", "http://192.0.2.1:8080/events"])
        .stdout(Stdio::null())
        .spawn();
    let _stream = Running(stream.unwrap());
    wait_until(&clients, |text| text.contains("\"live\""));
    ip(&format!("-n {} link set veth0 down", hosts.client));
    let pulled = Instant::now();
    // Longer than the DEADLINE of other tests, and what the contract says.
    while clients() != "[]\n" {
        assert!(pulled.elapsed() < Duration::from_secs(60), "still {}", clients());
        std::thread::sleep(Duration::from_secs(1));
    }
}
