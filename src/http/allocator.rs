//! An allocator that takes its time, so that a head which never ends does not take the memory.
//!
//! tiny_http reads request lines and headers into memory without a bound (client.rs:97, and chunk sizes the same way
//! in the decoder it uses). The program puts this allocator under it. The one rule: a thread that works for a stranger
//! and holds more text than any honest head has sleeps first, for longer than a head may take; by then the connection
//! has been cut and what it sent thrown away, and the thread ends with what it had.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::metrics::NOT_ASCII_HEADS;
#[cfg(feature = "cli")]
use crate::metrics::TINY_HTTP_PANICS;

/// tiny_http's threads have this name: Linux gives a thread the name of the one that started it, and they choose none.
pub(super) const TINY_HTTP: &str = "tiny_http";

/// More than any honest head: its line or its headers, whichever are many. As much again costs as long again, should
/// the connection not have been cut.
const LARGE: usize = 256 << 10;

/// Longer than a head may take, and the keeper until it notices.
const PAUSE: Duration = Duration::from_secs(15);

/// What a block of text costs beside the text: a hundred thousand headers of two letters are many, too.
const BLOCK_OVERHEAD: usize = 16;

/// Text alone counts. tiny_http's queue of requests grows under a lock that everybody needs (`util/messages_queue.rs`),
/// and must not wait.
const TEXT_ALIGN: usize = 1;

/// tiny_http makes two channels when it has read a head (client.rs:149), and std keeps their ends in cache lines of
/// their own: the next text is the next head's. (32 where lines are short, 32-bit ARM; else 64 to 256.)
const CHANNEL_ALIGN: usize = 32;

/// The size of the buffers that tiny_http makes for each connection, two in the thread that accepts (client.rs:73).
const CONNECTION_BUFFER: usize = 1_024;

/// So many connections of a crowd are accepted in a row. Then those who read and answer have their turn: a thread is made
/// for each connection that is accepted while all threads are busy, and stays for 5 s (`util/task_pool.rs:69`).
const ACCEPTED_IN_A_ROW: usize = 4;

/// What tiny_http says to itself of a head with a byte beyond ASCII, before it closes without a word (client.rs:92).
const NOT_ASCII: &[u8; 22] = b"Header is not in ASCII";

/// How often a thread with such a head looks whether the keeper has seen it, and how many times.
const UNSEEN: Duration = Duration::from_millis(10);
const UNSEEN_LOOKS: usize = 100;

thread_local! {
    /// Whether this thread works for a stranger; `None` until it is first asked.
    static FOR_STRANGER: Cell<Option<bool>> = const { Cell::new(None) };
    /// The text that this thread holds of a head, and how much it may hold before it sleeps again.
    static HELD: Cell<usize> = const { Cell::new(0) };
    static ALLOWED: Cell<usize> = const { Cell::new(LARGE) };
    /// Buffers of connections that this thread has made.
    static BUFFERS: Cell<usize> = const { Cell::new(0) };
    /// A block that could come to hold `NOT_ASCII`. It was zeroed.
    static MESSAGE: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The end of a head can be told, and a large one be made to wait.
static HEADS_ARE_BOUNDED: AtomicBool = AtomicBool::new(false);

/// Threads that sleep.
static SLEEPING: AtomicUsize = AtomicUsize::new(0);

/// How many heads beyond ASCII a keeper has seen.
static SEEN_HEADS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, which makes tiny_http's threads wait before they hold much text.
///
/// For programs that embed a server and meet strangers; `statecast` itself has it:
///
/// ```standalone_crate
/// #[global_allocator]
/// static ALLOCATOR: statecast::PatientAllocator = statecast::PatientAllocator;
/// ```
pub struct PatientAllocator;

/// Keeps the memory of many short threads in one place: with an arena for each, as glibc has it, holes are left in all
/// of them. To be called once, before there are threads.
#[cfg(feature = "cli")]
#[allow(unsafe_code)]
pub(super) fn use_one_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes any two numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Counts panics in tiny_http's threads instead of printing them: it panics when a client leaves at a bad moment
/// (client.rs:180), and when descriptors or threads are out. Other panics are printed as before.
#[cfg(feature = "cli")]
pub(super) fn count_tiny_http_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_for_stranger() {
            TINY_HTTP_PANICS.add(1);
        } else {
            print(panic);
        }
    }));
}

/// Gives what a crowd has left back to the system.
#[allow(unsafe_code)]
pub(super) fn return_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether this thread works for a stranger: tiny_http's all do.
pub(super) fn is_for_stranger() -> bool {
    // A thread that is ending has no thread-locals any more.
    FOR_STRANGER
        .try_with(|known| {
            known.get().unwrap_or_else(|| {
                let is = is_named_tiny_http();
                known.set(Some(is));
                is
            })
        })
        .unwrap_or(false)
}

/// Does something for a stranger: what it allocates must wait as if a thread of tiny_http's did.
pub(super) fn for_stranger<T>(act: impl FnOnce() -> T) -> T {
    struct Restore(Option<bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FOR_STRANGER.set(self.0);
        }
    }
    let _restore = Restore(FOR_STRANGER.replace(Some(true)));
    begin_head();
    act()
}

/// Tries, once in a process, whether tiny_http's threads and the ends of their heads can be told. To be called in a
/// thread called `tiny_http`. Where it is false no thread ever sleeps, and heads are not bounded.
pub(super) fn heads_are_bounded() -> bool {
    static TRIED: OnceLock<bool> = OnceLock::new();
    let tells_heads = || {
        let text = black_box(Vec::<u8>::with_capacity(1));
        let has_counted = HELD.get() > 0;
        // std's channel begins a new head, if it is as it was when this was written.
        drop(black_box(mpsc::channel::<()>()));
        let has_begun = HELD.get() == 0;
        drop(text);
        is_for_stranger() && has_counted && has_begun
    };
    *TRIED.get_or_init(|| {
        // Without a name of its own, as tiny_http starts its threads.
        let tried = thread::Builder::new().spawn(tells_heads).map(thread::JoinHandle::join);
        let is_so = matches!(tried, Ok(Ok(true)));
        HEADS_ARE_BOUNDED.store(is_so, Ordering::Relaxed);
        is_so
    })
}

/// Whether some thread holds more than any honest head has.
pub(super) fn is_anybody_sleeping() -> bool {
    SLEEPING.load(Ordering::Relaxed) > 0
}

/// Lets threads go on that had read a head beyond ASCII, up to that count of `NOT_ASCII_HEADS`.
pub(super) fn see_heads(count: u64) {
    SEEN_HEADS.fetch_max(count, Ordering::Relaxed);
}

#[cfg(all(target_os = "linux", not(plain_unix)))]
#[allow(unsafe_code)]
fn is_named_tiny_http() -> bool {
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, the last of them a zero.
    let done = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    done == 0 && name.split(|byte| *byte == 0).next() == Some(TINY_HTTP.as_bytes())
}

/// Elsewhere a thread has no name of the one that started it.
#[cfg(not(all(target_os = "linux", not(plain_unix))))]
fn is_named_tiny_http() -> bool {
    false
}

/// Lets other threads go on, now and then, when a buffer for a connection is made.
fn take_turns(layout: Layout) {
    if layout.size() == CONNECTION_BUFFER && layout.align() == TEXT_ALIGN {
        BUFFERS.set(BUFFERS.get() + 1);
        if BUFFERS.get().is_multiple_of(2 * ACCEPTED_IN_A_ROW) {
            thread::yield_now();
        }
    }
}

/// Counts a stranger's block that grows from one size to another, 0 for none; sleeps if that is too much.
fn count(align: usize, from: usize, to: usize) {
    if align != TEXT_ALIGN {
        if align >= CHANNEL_ALIGN {
            begin_head();
        }
        return;
    }
    let held = HELD.get().saturating_sub(from) + to + if from == 0 { BLOCK_OVERHEAD } else { 0 };
    HELD.set(held);
    while held > ALLOWED.get() && to > from && HEADS_ARE_BOUNDED.load(Ordering::Relaxed) {
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

fn could_be_not_ascii(layout: Layout) -> bool {
    layout.align() == TEXT_ALIGN && layout.size() == NOT_ASCII.len()
}

/// Looks at a stranger's block before it is freed, and waits for the keeper where it says that a head was not ASCII:
/// the connection is closed as soon as this returns.
#[allow(unsafe_code)]
fn read_message(block: *mut u8, layout: Layout) {
    if !could_be_not_ascii(layout) || MESSAGE.replace(ptr::null_mut()) != block {
        return;
    }
    // SAFETY: `alloc` zeroed this block of just that size, and it was not moved since; so it is initialised, and the
    // caller, who frees it, holds no reference into it.
    let text = unsafe { std::slice::from_raw_parts(block, NOT_ASCII.len()) };
    if text == NOT_ASCII {
        let number = NOT_ASCII_HEADS.add(1);
        for _ in 0..UNSEEN_LOOKS {
            if SEEN_HEADS.load(Ordering::Relaxed) >= number {
                return;
            }
            thread::sleep(UNSEEN);
        }
    }
}

// SAFETY: each call goes to the system's allocator as it came, but that some blocks are zeroed. An allocator may take
// its time; it must not unwind, and neither using constant thread-locals nor sleeping does.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for PatientAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_for_stranger() {
            // SAFETY: the caller's promise is the system's.
            return unsafe { System.alloc(layout) };
        }
        take_turns(layout);
        count(layout.align(), 0, layout.size());
        if could_be_not_ascii(layout) {
            // SAFETY: the caller's promise is the system's.
            let block = unsafe { System.alloc_zeroed(layout) };
            MESSAGE.set(block);
            return block;
        }
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_for_stranger() {
            count(layout.align(), 0, layout.size());
        }
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if is_for_stranger() {
            count(layout.align(), layout.size(), new_size);
            MESSAGE.set(ptr::null_mut());
        }
        // SAFETY: the caller's promise is the system's.
        unsafe { System.realloc(block, layout, new_size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_for_stranger() {
            count(layout.align(), layout.size(), 0);
            read_message(block, layout);
        }
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(block, layout) }
    }
}
