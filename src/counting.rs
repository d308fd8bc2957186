//! Test only: how many bytes a piece of code takes from the allocator, counted for each thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static TAKEN_BYTES: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    // A thread that ends may allocate after its locals are gone; nobody counts then.
    let _ = TAKEN_BYTES.try_with(|taken| taken.set(taken.get() + bytes as u64));
}

// SAFETY: everything is passed on to the system's allocator as it came; counting touches no memory that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(start, layout, size) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

/// What `work` gives, and the bytes that this thread asked for meanwhile, given back or not.
pub fn allocated<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = TAKEN_BYTES.get();
    let result = work();
    (result, TAKEN_BYTES.get() - before)
}

#[test]
fn what_is_taken_is_counted() {
    let (kept, bytes) = allocated(|| vec![0_u8; 100_000]);
    assert_eq!((kept.len(), bytes), (100_000, 100_000));
    let (_, bytes) = allocated(|| 1 + 1);
    assert_eq!(bytes, 0);
}
