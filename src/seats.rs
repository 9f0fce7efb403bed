//! Seats: how many clients may be there at once, in all and of one address.
//!
//! The hub hands them out; a client keeps its own for as long as it is there. The one rule: a seat that is dropped is free.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// Why there is no seat for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Server,
    Address,
    Stopping,
}

/// The seats of all clients.
pub(crate) struct Seats {
    most: usize,
    /// 0 for no limit.
    most_of_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    count: usize,
    /// Loopback is not counted.
    of_address: HashMap<IpAddr, usize>,
}

/// A client's seat. Dropping it gives it back.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    pub fn new(most: usize, most_of_address: usize) -> Arc<Seats> {
        Arc::new(Seats { most, most_of_address, taken: Mutex::default() })
    }

    /// A seat for a client from this address.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Result<Seat, Full> {
        let mut taken = lock(&self.taken);
        if taken.count >= self.most {
            return Err(Full::Server);
        }
        if !address.to_canonical().is_loopback() {
            let of_address = taken.of_address.entry(address).or_default();
            if self.most_of_address > 0 && *of_address >= self.most_of_address {
                return Err(Full::Address);
            }
            *of_address += 1;
        }
        taken.count += 1;
        Ok(Seat { seats: Arc::clone(self), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = lock(&self.seats.taken);
        taken.count -= 1;
        if let Some(count) = taken.of_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.of_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_that_is_dropped_is_free_for_the_next() {
        let (near, far) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([192, 0, 2, 1]));
        let seats = Seats::new(3, 1);
        let first = seats.take(far).ok();
        assert_eq!(seats.take(far).err(), Some(Full::Address));
        let _near = [seats.take(near).ok(), seats.take(near).ok()];
        assert_eq!(seats.take(near).err(), Some(Full::Server));
        drop(first);
        assert!(seats.take(far).is_ok());
    }
}
