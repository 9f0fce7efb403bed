//! A server in a test of your own, here of a program that uses ureq.

use std::time::Duration;

use serde_json::json;
use statecast::{Config, Server};

/// Your program: it listens for the temperature, and returns what it heard after the document.
fn next_temperature(url: &str) -> Option<String> {
    let mut stream = ureq::get(format!("{url}/events/kitchen?max_events=2")).call().ok()?;
    let text = stream.body_mut().read_to_string().ok()?;
    text.lines().rev().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned)
}

#[test]
fn it_hears_the_temperature() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::start(Config::default())?; // on a free port of 127.0.0.1, until it is dropped
    let url = server.url();
    let program = std::thread::spawn(move || next_temperature(&url));
    server.wait_for_clients(1, Duration::from_secs(5))?;
    server.patch("kitchen", json!(21.5))?;
    assert_eq!(program.join().expect("it does not panic").as_deref(), Some("21.5"));
    Ok(())
}
