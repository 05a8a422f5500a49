//! How other threads reach the loop: a closed set of inputs, and a descriptor that wakes the loop's poll.

use crate::accumulator::Pending;
use crate::names::Table;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustix::event::EventfdFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Requests that may wait. A server with more than this in the air is told to try again.
const CAPACITY: usize = 64;

/// All that the loop reacts to besides the kernel's ring and the clock.
pub enum Input {
    /// The rows of a table that are in no segment and wait for none; of the samples none before `from_us` need be there.
    Rows { table: Table, from_us: i64, reply: oneshot::Sender<Vec<Arc<Pending>>> },
    /// End: close what is open, hand over all rows.
    Shutdown,
}

/// The sending side.
#[derive(Clone)]
pub struct Outside {
    inputs: Sender<Input>,
    wake: Arc<OwnedFd>,
}

/// The loop's side.
pub struct Inbox {
    pub inputs: Receiver<Input>,
    wake: Arc<OwnedFd>,
}

pub fn open() -> Result<(Outside, Inbox), rustix::io::Errno> {
    let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, receiver) = crossbeam_channel::bounded(CAPACITY);
    Ok((Outside { inputs: sender, wake: wake.clone() }, Inbox { inputs: receiver, wake }))
}

impl Outside {
    /// Never waits; false when the loop has more to do than it may hold, or is gone.
    pub fn send(&self, input: Input) -> bool {
        match self.inputs.try_send(input) {
            Ok(()) => rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).is_ok(),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// For shutdown, which must arrive however full the inbox is.
    pub fn send_surely(&self, input: Input) {
        if self.inputs.send(input).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Inbox {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Empties the wake counter, so that the next poll waits again.
    pub fn clear(&self) {
        let mut buffer = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut buffer);
    }
}
