//! What the current thread has allocated and not given back, in bytes: tells what is kept of something that has gone, which
//! the resident set, with the allocator's own reserves in it, does not. For the tests of this crate, which share a process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

struct PerThread;

#[global_allocator]
static ALLOCATOR: PerThread = PerThread;

fn add(bytes: usize, sign: i64) {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    // a thread that ends frees what is left when its own values have gone already
    let _ = LIVE.try_with(|live| live.set(live.get() + sign * bytes));
}

pub fn live_bytes() -> i64 {
    LIVE.with(Cell::get)
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: the system's allocator does all the work; counting allocates nothing.
unsafe impl GlobalAlloc for PerThread {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(layout.size(), -1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}
