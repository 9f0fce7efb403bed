//! An allocator that takes its time, so that a head which never ends does not take the memory.
//!
//! tiny_http reads request lines and headers into memory without a bound (client.rs:97, and chunk sizes the same way
//! in the decoder it uses). The program puts this allocator under it. The one rule: a thread that is not ours and
//! holds more text than any honest head has sleeps first, for longer than a head may take; by then the connection has
//! been cut and what it sent thrown away, and the thread ends with what it had.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// More than any honest head: its line or its headers, whichever are many. As much again costs as long again, should
/// the connection not have been cut.
const LARGE: usize = 256 << 10;

/// Longer than a head may take, and the keeper until it notices.
const PAUSE: Duration = Duration::from_secs(15);

/// What a block of text costs beside the text: a hundred thousand headers of two letters are many, too.
const EACH: usize = 16;

/// Text alone counts. tiny_http's queue of requests grows under a lock that everybody needs (`util/messages_queue.rs`),
/// and must not wait.
const TEXT_ALIGN: usize = 1;

/// tiny_http makes two channels when it has read a head (client.rs:149), and std keeps their ends in cache lines of
/// their own: the next text is the next head's. (32 where lines are short, 32-bit ARM; else 64 to 256.)
const CHANNEL_ALIGN: usize = 32;

thread_local! {
    static IS_TRUSTED: Cell<bool> = const { Cell::new(false) };
    /// The text that this thread holds of a head, and how much it may hold before it sleeps again.
    static HELD: Cell<usize> = const { Cell::new(0) };
    static ALLOWED: Cell<usize> = const { Cell::new(LARGE) };
}

/// Threads that sleep.
static SLEEPING: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which makes threads that are not the server's own wait before they hold much text.
///
/// For programs that embed a server and meet strangers; `statecast` itself has it:
///
/// ```standalone_crate
/// #[global_allocator]
/// static ALLOCATOR: statecast::PatientAllocator = statecast::PatientAllocator;
///
/// // The program's own threads, before they need large blocks:
/// statecast::trust_this_thread();
/// ```
pub struct PatientAllocator;

/// Lets this thread allocate without waiting.
pub fn trust_this_thread() {
    IS_TRUSTED.set(true);
}

/// Keeps the memory of many short threads in one place: with an arena for each, as glibc has it, holes are left in all
/// of them. To be called once, before there are threads.
#[allow(unsafe_code)]
pub fn use_one_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes any two numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives what a crowd has left back to the system.
#[allow(unsafe_code)]
pub(crate) fn return_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether this thread is one of the server's own.
pub(crate) fn is_trusted() -> bool {
    // A thread that is ending has no thread-locals any more.
    IS_TRUSTED.try_with(Cell::get).unwrap_or(true)
}

/// Does something for a stranger: what it allocates must wait as if a thread of tiny_http's did.
pub(crate) fn distrusting<T>(act: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_TRUSTED.set(self.0);
        }
    }
    let _restore = Restore(IS_TRUSTED.replace(false));
    begin_head();
    act()
}

/// Whether some thread holds more than any honest head has.
pub(crate) fn is_anybody_sleeping() -> bool {
    SLEEPING.load(Ordering::Relaxed) > 0
}

/// Counts a block that grows from one size to another, 0 for none; sleeps if that is too much.
fn count(align: usize, from: usize, to: usize) {
    if is_trusted() {
        return;
    }
    if align != TEXT_ALIGN {
        if align >= CHANNEL_ALIGN {
            begin_head();
        }
        return;
    }
    let held = HELD.get().saturating_sub(from) + to + if from == 0 { EACH } else { 0 };
    HELD.set(held);
    while held > ALLOWED.get() && to > from {
        SLEEPING.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PAUSE);
        SLEEPING.fetch_sub(1, Ordering::Relaxed);
        ALLOWED.set(ALLOWED.get() + LARGE);
    }
}

fn begin_head() {
    HELD.set(0);
    ALLOWED.set(LARGE);
}

// SAFETY: each call goes to the system's allocator as it came. An allocator may take its time; it must not unwind, and
// neither using constant thread-locals nor sleeping does.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for PatientAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.align(), 0, layout.size());
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.align(), 0, layout.size());
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(layout.align(), layout.size(), new_size);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.realloc(block, layout, new_size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(layout.align(), layout.size(), 0);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(block, layout) }
    }
}
