//! Zeroed memory aligned to a cache line.

use margay_tensor::{Owner, Storage};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

/// Alignment of every buffer: one cache line, one AVX-512 register.
const ALIGN_BYTES: usize = 64;

/// Types for which all-zero bytes are a value and which own nothing.
///
/// # Safety
/// Implement it only for such types.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: plain numbers; zero bytes are the number zero.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for [i16; 2] {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

/// Bytes from which on a buffer is mapped on its own and asks for huge pages: weights are read from end to end for
/// each token, and with 4 KiB pages the address translation costs a tenth of the bandwidth.
const HUGE_FROM_BYTES: usize = 4 << 20;
/// A multiple of every page that systems use.
const PAGE_BYTES: usize = 64 << 10;
/// A huge page of x86-64, and of aarch64 with 4 KiB pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Bytes that an arena asks the system for at a time.
const ARENA_CHUNK_BYTES: usize = 64 << 20;

/// A fixed number of zeroed elements, aligned to 64 bytes. The system hands out pages only as they are touched.
pub(crate) struct Lines<T: Plain> {
    at: NonNull<T>,
    len: usize,
    /// The mapping that holds the elements, where the allocator does not.
    mapping: Option<Arc<Mapping>>,
}

// SAFETY: it owns its memory as a `Vec` does.
unsafe impl<T: Plain + Send> Send for Lines<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain + Sync> Sync for Lines<T> {}

impl<T: Plain> Lines<T> {
    /// `len` zeros, or `None` where the size overflows.
    pub(crate) fn try_zeroed(len: usize) -> Option<Self> {
        let layout = Self::layout(len)?;
        if layout.size() == 0 {
            return Some(Lines { at: NonNull::dangling(), len, mapping: None });
        }
        if layout.size() >= HUGE_FROM_BYTES
            && let Some(mapping) = Mapping::new(layout.size())
        {
            return Some(Lines { at: mapping.start.cast(), len, mapping: Some(Arc::new(mapping)) });
        }
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let at = NonNull::new(raw.cast::<T>())?;
        Some(Lines { at, len, mapping: None })
    }

    /// `len` zeros.
    ///
    /// # Panics
    /// Where the size overflows or memory is at its end; callers derive `len` from checked shapes.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).expect("invariant: buffer sizes come from checked shapes")
    }

    /// The first element. Whoever writes through it keeps to elements that nobody else reads or writes meanwhile.
    pub(crate) fn pointer(&self) -> *mut T {
        self.at.as_ptr()
    }

    /// Bytes allocated.
    pub(crate) fn size_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>())?.checked_next_multiple_of(ALIGN_BYTES)?;
        Layout::from_size_align(bytes, ALIGN_BYTES).ok()
    }
}

impl Lines<u8> {
    /// Gives the memory of those bytes back to the system, as far as it is whole pages of a mapping; they are zero then.
    ///
    /// # Safety
    /// Nobody reads or writes them meanwhile.
    pub(crate) unsafe fn give_back(&self, bytes: Range<usize>) {
        debug_assert!(bytes.end <= self.len);
        if let Some(mapping) = &self.mapping {
            let before = self.at.as_ptr() as usize - mapping.start.as_ptr() as usize;
            // SAFETY: the caller's promise.
            unsafe { mapping.give_back(before + bytes.start..before + bytes.end) }
        }
    }
}

impl Owner for Lines<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl From<Lines<u8>> for Storage {
    fn from(lines: Lines<u8>) -> Storage {
        Storage::from_owner(Arc::new(lines))
    }
}

/// Zeroed pages.
struct Mapping {
    /// The first byte, at the start of a page of the size asked for.
    start: NonNull<u8>,
    len: usize,
    pages: memmap2::MmapMut,
}

// SAFETY: it owns its memory; whoever writes through `start` keeps to a part of its own.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> Option<Self> {
        // Pages that are never touched cost nothing, so there is room to begin at a huge page.
        let mut pages = memmap2::MmapMut::map_anon(bytes.checked_add(HUGE_PAGE_BYTES)?).ok()?;
        // A refusal costs speed and nothing else.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        let at = pages.as_mut_ptr();
        let skip = at.align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
        let start = NonNull::new(at.wrapping_add(skip))?;
        Some(Mapping { start, len: bytes, pages })
    }

    /// # Safety
    /// Nobody reads or writes those bytes meanwhile.
    unsafe fn give_back(&self, bytes: Range<usize>) {
        let (from, to) = (bytes.start.next_multiple_of(PAGE_BYTES), bytes.end / PAGE_BYTES * PAGE_BYTES);
        if from < to {
            let skip = self.start.as_ptr() as usize - self.pages.as_ptr() as usize;
            // A refusal costs memory and nothing else.
            // SAFETY: whole pages of this mapping, as it begins at one; the caller's promise for the rest.
            #[cfg(unix)]
            let _ = unsafe {
                self.pages.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, skip + from, to - from)
            };
        }
    }
}

/// Memory for buffers that stay: they lie one behind the other, so that nearly all of it is huge pages.
#[derive(Default)]
pub(crate) struct Arena {
    /// The chunk being filled, and how far.
    chunk: Mutex<Option<(Arc<Mapping>, usize)>>,
}

impl Arena {
    /// `len` zero bytes.
    ///
    /// # Panics
    /// As [`Lines::zeroed`].
    pub(crate) fn zeroed(&self, len: usize) -> Lines<u8> {
        let size = len.next_multiple_of(ALIGN_BYTES);
        let mut chunk = self.chunk.lock().unwrap_or_else(PoisonError::into_inner);
        let full = chunk.as_ref().is_none_or(|(chunk, used)| chunk.len - used < size);
        if full {
            let Some(mapping) = Mapping::new(size.max(ARENA_CHUNK_BYTES)) else {
                return Lines::zeroed(len);
            };
            *chunk = Some((Arc::new(mapping), 0));
        }
        let (mapping, used) = chunk.as_mut().expect("invariant: made above");
        let at =
            NonNull::new(mapping.start.as_ptr().wrapping_add(*used)).expect("invariant: inside a mapping");
        *used += size;
        Lines { at, len, mapping: Some(mapping.clone()) }
    }
}

impl<T: Plain> Drop for Lines<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len).expect("invariant: the layout was valid when allocated");
        if layout.size() > 0 && self.mapping.is_none() {
            // SAFETY: allocated by `try_zeroed` with this very layout.
            unsafe { dealloc(self.at.as_ptr().cast(), layout) }
        }
    }
}

impl<T: Plain> Deref for Lines<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `at` points at `len` initialised elements (dangling and aligned where there are none).
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> Clone for Lines<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Plain> std::fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lines({} elements)", self.len)
    }
}
