//! An allocator that takes its time, so that a line which never ends does not take the memory.
//!
//! tiny_http reads request lines and headers into memory without a bound (client.rs:97, and chunk sizes the same way
//! in the decoder it uses). The program puts this allocator under it. The one rule: a thread that is not ours and asks
//! for more than any honest request needs sleeps first, for longer than a head may take; by then the connection has
//! been cut, and the thread ends with what it had.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

/// More than any honest line. A buffer that doubles gets here once on its way; what waited in the socket by then is
/// let through.
const LARGE: RangeInclusive<usize> = 256 << 10..=(512 << 10) - 1;

/// More than waits in any socket.
const ABSURD: usize = 16 << 20;

/// Longer than a head may take, and the keeper until it notices.
const PAUSE: Duration = Duration::from_secs(15);

thread_local! {
    static IS_TRUSTED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, which makes threads that are not the server's own wait before they get much at once.
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
    act()
}

fn wait_if_large(size: usize) {
    if (LARGE.contains(&size) || size >= ABSURD) && !is_trusted() {
        thread::sleep(PAUSE);
    }
}

// SAFETY: each call goes to the system's allocator as it came. An allocator may take its time; it must not unwind, and
// neither reading a constant thread-local nor sleeping does.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for PatientAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        wait_if_large(layout.size());
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        wait_if_large(layout.size());
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        wait_if_large(new_size);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.realloc(block, layout, new_size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(block, layout) }
    }
}
