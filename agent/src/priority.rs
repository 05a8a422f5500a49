//! How much of a processor each thread may claim beside the loop, which is the only one that cannot be late. A thread that is started for
//! anything else says so first; the loop itself, the main thread, stays where the agent was put.

/// What a thread does.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Columns, journal and segments: behind the loop, ahead of who only asks.
    Writing,
    /// Answers over HTTP.
    Asking,
    /// What may wait for as long as it likes.
    Upkeep,
}

impl Work {
    /// As nice(2) has it. Five steps are a third of the weight.
    fn nice(self) -> i32 {
        match self {
            Self::Writing => 5,
            Self::Asking => 10,
            Self::Upkeep => 19,
        }
    }
}

/// Sets the calling thread's nice value, unless it is higher already. To raise it needs no privilege.
pub fn of_this_thread(work: Work) {
    let now = rustix::process::getpriority_process(None);
    let done = now.and_then(|now| rustix::process::setpriority_process(None, now.max(work.nice())));
    if let Err(error) = done {
        tracing::warn!(%error, ?work, "a thread runs at the priority of the loop");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_steps_back_and_its_neighbours_stay() {
        let before = rustix::process::getpriority_process(None).expect("ours");
        let there = std::thread::spawn(|| {
            of_this_thread(Work::Asking);
            of_this_thread(Work::Writing);
            rustix::process::getpriority_process(None).expect("its own")
        });
        assert_eq!(there.join().expect("ends"), before.max(10), "never forward again");
        assert_eq!(rustix::process::getpriority_process(None).expect("ours"), before);
    }
}
