//! Waits until the kitchen is warm, and then shows every event until the first alert.

use std::time::Duration;

use statecast::{EventSource, Replica};

pub(crate) fn follow(url: &str) -> Result<(), Box<dyn std::error::Error>> {
    let replica = Replica::follow(EventSource::new(&format!("{url}/events/kitchen"))?)?;
    let is_warm = |kitchen: &serde_json::Value| kitchen["temp"].as_f64() > Some(20.0);
    println!("it is warm: {}", replica.wait_until(is_warm, Duration::from_secs(60))?);

    for event in EventSource::new(&format!("{url}/events"))? {
        println!("{} {} {}", event.id, event.name, event.data);
        if event.name == "alert" {
            break;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    follow("http://localhost:8080")
}
