//! The KV cache, laid out for the attention kernels.
//!
//! Tokens lie in blocks of 64, heads within a block side by side, so that what a head of a block has is one piece of
//! memory: keys `[4][D][16]`, of which 16 keys are one panel of the scores, then values `[D' / 16][64][16]`, of which 16
//! columns are one panel of the result, with D' the head dimension rounded up to 16; of [`KvType::Q8`] then the scales of
//! the 64 keys and of the 64 values. The layers' parts of a block follow each other: memory fills from its start, so that it
//! can be huge pages although a context is seldom filled.

use crate::{
    kernels::{Kernels, attention::KEYS, float::NR},
    lines::Lines,
};
use margay_graph::{BackendError, CacheSpec, State};
use std::sync::Arc;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Single precision: twice the memory; for comparisons.
    F32,
    /// 8-bit integers, half the memory, with one scale for the key of a token and head and one for the value.
    ///
    /// A number is off by up to 1/254 of the largest of its head. With normal numbers and one of 64 or 128 channels 5
    /// or 10 times as large, attention of 512 tokens is off by 1.7% and 3.1% (root mean square; 0.8% without such a
    /// channel). Scales of 32 channels each lower that by a twentieth to a third, and were not worth their multiplications.
    Q8,
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 3] = [KvType::F16, KvType::F32, KvType::Q8];

    /// Lower-case name: `f16`, `f32`, `q8`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
            KvType::Q8 => "q8",
        }
    }

    /// The one of that name, in any letter case.
    pub fn from_name(name: &str) -> Option<KvType> {
        KvType::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// Bytes that keys and values of so many tokens take in one layer: whole blocks of 64 tokens, heads filled up to 16
    /// columns of values, scales counted. `None` where they overflow.
    pub fn layer_bytes(self, kv_heads: usize, head_dim: usize, tokens: usize) -> Option<usize> {
        let blocks = tokens.checked_next_multiple_of(KEYS)? / KEYS;
        block_bytes(self, head_dim)?.checked_mul(kv_heads)?.checked_mul(blocks)
    }

    /// Bytes of a number; of Q8 without its scales.
    pub fn bytes(self) -> usize {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
            KvType::Q8 => 1,
        }
    }
}

/// Keys and values of one attention op.
#[derive(Debug)]
pub(crate) struct KvSlot {
    pub(crate) kind: KvType,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Tokens, a multiple of [`KEYS`].
    pub(crate) capacity: usize,
    /// Perhaps shared with other slots, each of which has its part of every `stride` bytes, from its `start` on.
    memory: Arc<Lines<u8>>,
    start: usize,
    stride: usize,
}

/// What one head of a block has.
#[derive(Clone, Copy)]
pub(crate) struct KvBlock<'a> {
    /// Keys and values in one.
    pub(crate) numbers: &'a [u8],
    pub(crate) keys: &'a [u8],
    pub(crate) values: &'a [u8],
    /// Of keys and of values, where there are any.
    pub(crate) scales: Option<[&'a [f32]; 2]>,
}

impl KvSlot {
    /// Room for `tokens`, or `None` where the size overflows.
    pub(crate) fn new(kind: KvType, kv_heads: usize, head_dim: usize, tokens: usize) -> Option<Self> {
        KvSlot::several(kind, &[(kv_heads, head_dim)], tokens)?.pop()
    }

    /// Slots of so many KV heads and so wide heads that share memory.
    fn several(kind: KvType, shapes: &[(usize, usize)], tokens: usize) -> Option<Vec<Self>> {
        let capacity = tokens.checked_next_multiple_of(KEYS)?;
        let mut starts = vec![];
        let mut stride = 0usize;
        for (kv_heads, head_dim) in shapes {
            starts.push(stride);
            stride = stride.checked_add(block_bytes(kind, *head_dim)?.checked_mul(*kv_heads)?)?;
        }
        let memory = Arc::new(Lines::try_zeroed(stride.checked_mul(capacity / KEYS)?)?);
        let slot = |(start, (kv_heads, head_dim)): (usize, &(usize, usize))| {
            let (kv_heads, head_dim, memory) = (*kv_heads, *head_dim, memory.clone());
            KvSlot { kind, kv_heads, head_dim, capacity, memory, start, stride }
        };
        Some(starts.into_iter().zip(shapes).map(slot).collect())
    }

    /// D rounded up to 16: the columns of values.
    pub(crate) fn wide(&self) -> usize {
        self.head_dim.next_multiple_of(NR)
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.capacity / KEYS * self.kv_heads * self.each()
    }

    /// Bytes that one head has of a block.
    fn each(&self) -> usize {
        block_bytes(self.kind, self.head_dim).expect("invariant: computed when the memory was made")
    }

    /// What `head` has of the block that token `at`, a multiple of [`KEYS`], begins.
    pub(crate) fn block(&self, head: usize, at: usize) -> KvBlock<'_> {
        assert!(at < self.capacity && head < self.kv_heads);
        let (each, offset) = (self.each(), self.start + at / KEYS * self.stride);
        // SAFETY: it lies within the memory, and whoever writes has this slot to itself meanwhile.
        let block =
            unsafe { std::slice::from_raw_parts(self.memory.pointer().add(offset + head * each), each) };
        let key_bytes = KEYS * self.head_dim * self.kind.bytes();
        let (numbers, scales) = block.split_at(key_bytes + KEYS * self.wide() * self.kind.bytes());
        let (keys, values) = numbers.split_at(key_bytes);
        let scales = (self.kind == KvType::Q8).then(|| {
            // SAFETY: 64 scales of keys and 64 of values are there, aligned as blocks are.
            let scales = unsafe { std::slice::from_raw_parts(scales.as_ptr().cast::<f32>(), 2 * KEYS) };
            [&scales[..KEYS], &scales[KEYS..]]
        });
        KvBlock { numbers, keys, values, scales }
    }

    /// A view that tasks may write through, each its own heads.
    pub(crate) fn writer(&mut self) -> KvWriter {
        KvWriter {
            kind: self.kind,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            capacity: self.capacity,
            // SAFETY: within the memory.
            blocks: unsafe { self.memory.pointer().add(self.start) },
            each: self.each(),
            stride: self.stride,
        }
    }
}

/// Bytes that one head has of a block, a multiple of 64, or `None` where they overflow.
fn block_bytes(kind: KvType, head_dim: usize) -> Option<usize> {
    let scales = if kind == KvType::Q8 { 2 * KEYS * size_of::<f32>() } else { 0 };
    let columns = head_dim.checked_add(head_dim.checked_next_multiple_of(NR)?)?;
    columns.checked_mul(KEYS * kind.bytes())?.checked_add(scales)
}

/// See [`KvSlot::writer`].
#[derive(Clone, Copy)]
pub(crate) struct KvWriter {
    kind: KvType,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    blocks: *mut u8,
    /// Bytes that one head has of a block.
    each: usize,
    stride: usize,
}

// SAFETY: whoever writes through it keeps to heads of its own.
unsafe impl Send for KvWriter {}
// SAFETY: as above.
unsafe impl Sync for KvWriter {}

impl KvWriter {
    /// Writes key and value of one token of one head. `scratch` has room for a head.
    ///
    /// # Safety
    /// The slot outlives the call, and nobody else touches this head.
    pub(crate) unsafe fn put(
        self,
        kernels: &Kernels,
        (head, at): (usize, usize),
        key: &[f32],
        value: &[f32],
        scratch: &mut [f32],
    ) {
        let d = self.head_dim;
        assert!(head < self.kv_heads && at < self.capacity && key.len() == d && value.len() == d);
        assert!(d <= scratch.len());
        let (token, scratch) = (at % KEYS, scratch.as_mut_ptr());
        let key_at = |i: usize| (token / NR * d + i) * NR + token % NR;
        let value_at = |i: usize| KEYS * d + (i / NR * KEYS + token) * NR + i % NR;
        // SAFETY: the caller's promise; all places lie within the block, and numbers of 4 bytes or fewer within scratch.
        unsafe {
            let block = self.blocks.add(at / KEYS * self.stride + head * self.each);
            match self.kind {
                KvType::F32 => {
                    scatter(key, block, key_at);
                    scatter(value, block, value_at);
                }
                KvType::F16 => {
                    let halves = std::slice::from_raw_parts_mut(scratch.cast::<u16>(), d);
                    (kernels.float.narrow)(key, halves);
                    scatter(halves, block, key_at);
                    (kernels.float.narrow)(value, halves);
                    scatter(halves, block, value_at);
                }
                KvType::Q8 => {
                    let codes = std::slice::from_raw_parts_mut(scratch.cast::<i8>(), d);
                    let scales = block.add(KEYS * (d + d.next_multiple_of(NR))).cast::<f32>().add(token);
                    *scales = (kernels.rows.quantize_row)(key, codes).0;
                    scatter(codes, block, key_at);
                    *scales.add(KEYS) = (kernels.rows.quantize_row)(value, codes).0;
                    scatter(codes, block, value_at);
                }
            }
        }
    }
}

/// Writes each number to its place.
///
/// # Safety
/// All places are writable.
#[inline(always)]
unsafe fn scatter<T: Copy>(numbers: &[T], to: *mut u8, place: impl Fn(usize) -> usize) {
    for (i, number) in numbers.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { *to.cast::<T>().add(place(i)) = *number }
    }
}

/// The KV cache of one conversation.
#[derive(Debug)]
pub(crate) struct KvState {
    pub(crate) slots: Vec<KvSlot>,
    /// See [`crate::ops::attention::partial_floats`].
    pub(crate) partials: Lines<f32>,
    pub(crate) len: usize,
    pub(crate) capacity: usize,
}

impl KvState {
    pub(crate) fn new(specs: &[CacheSpec], kind: KvType, capacity: usize, partials: usize) -> Option<Self> {
        let shapes: Vec<_> = specs.iter().map(|s| (s.kv_heads, s.head_dim)).collect();
        let slots = KvSlot::several(kind, &shapes, capacity)?;
        Some(KvState { slots, partials: Lines::try_zeroed(partials)?, len: 0, capacity })
    }
}

impl State for KvState {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn size_bytes(&self) -> usize {
        self.slots.iter().map(KvSlot::size_bytes).sum::<usize>() + self.partials.size_bytes()
    }

    fn form(&self) -> Option<String> {
        let slots = self.slots.iter().map(|slot| format!("{}x{}", slot.kv_heads, slot.head_dim));
        let kind = self.slots.first().map_or("none", |slot| slot.kind.name());
        let order = if cfg!(target_endian = "little") { "le" } else { "be" };
        Some(format!("cpu-{FORM} {kind} {order} {}", slots.collect::<Vec<_>>().join(" ")))
    }

    fn snapshot(&self) -> &[u8] {
        let Some(slot) = self.slots.first() else { return &[] };
        let bytes = self.len.div_ceil(KEYS) * slot.stride;
        // SAFETY: all slots share this memory, of which blocks of `stride` bytes hold `KEYS` tokens each; it was zeroed when
        // it was made, and nobody writes while the state is borrowed.
        unsafe { std::slice::from_raw_parts(slot.memory.pointer(), bytes) }
    }

    fn restore(&mut self, len: usize, bytes: &[u8]) -> Result<(), BackendError> {
        if len > self.capacity {
            return Err(BackendError::ContextFull { capacity: self.capacity, used: 0, wanted: len });
        }
        let expected = self.slots.first().map_or(0, |slot| len.div_ceil(KEYS) * slot.stride);
        if bytes.len() != expected {
            let what = format!("{len} tokens of a KV cache are {expected} bytes, not {}", bytes.len());
            return Err(BackendError::Call { what });
        }
        if let Some(slot) = self.slots.first() {
            // SAFETY: that many bytes are there, as the capacity is no smaller; the state is this call's own.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot.memory.pointer(), expected) };
        }
        self.len = len;
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Changes whenever the same keys and values become other bytes.
const FORM: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_share_memory_of_the_promised_size() {
        let specs = [CacheSpec { kv_heads: 2, head_dim: 128 }, CacheSpec { kv_heads: 3, head_dim: 72 }];
        // 100 tokens are two blocks; 72 columns of a value take the room of 80.
        let numbers = 128 * (2 * (128 + 128) + 3 * (72 + 80));
        for (kind, bytes) in
            [(KvType::F32, 4 * numbers), (KvType::F16, 2 * numbers), (KvType::Q8, numbers + 128 * 5 * 8)]
        {
            let state = KvState::new(&specs, kind, 100, 7).unwrap();
            assert_eq!(state.size_bytes(), bytes + 7 * 4, "{kind:?}");
            let told = specs.iter().map(|spec| kind.layer_bytes(spec.kv_heads, spec.head_dim, 100).unwrap());
            assert_eq!(told.sum::<usize>(), bytes, "{kind:?}");
            let mut places = vec![];
            for slot in &state.slots {
                for at in (0..slot.capacity).step_by(KEYS) {
                    for head in 0..slot.kv_heads {
                        let block = slot.block(head, at);
                        let scales = block.scales.map_or(0, |[k, v]| size_of_val(k) + size_of_val(v));
                        places.push((block.keys.as_ptr().addr(), block.numbers.len() + scales));
                    }
                }
            }
            places.sort_unstable();
            assert!(places.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0), "{kind:?}: one behind the other");
        }
        assert!(KvState::new(&specs, KvType::Q8, usize::MAX / 2, 0).is_none());
    }

    #[test]
    fn what_was_kept_is_held_again_and_other_sizes_are_refused() {
        let specs = [CacheSpec { kv_heads: 2, head_dim: 16 }, CacheSpec { kv_heads: 1, head_dim: 5 }];
        for kind in KvType::ALL {
            let state = |capacity| KvState::new(&specs, kind, capacity, 0).unwrap();
            let mut from = state(200);
            let bytes: Vec<u8> = (0..from.slots[0].stride * 2).map(|i| (i % 251) as u8).collect();
            from.restore(100, &bytes).unwrap();
            assert_eq!((from.len, from.snapshot()), (100, &bytes[..]));
            from.truncate(64);
            assert_eq!(from.snapshot(), &bytes[..bytes.len() / 2]);
            // Into a larger and into a smaller one of the same form.
            let mut to = state(64);
            assert_eq!(to.form(), from.form());
            to.restore(64, from.snapshot()).unwrap();
            assert_eq!(to.snapshot(), from.snapshot());
            assert!(matches!(to.restore(65, &bytes), Err(BackendError::ContextFull { capacity: 64, .. })));
            assert!(matches!(to.restore(10, &bytes), Err(BackendError::Call { .. })));
            assert!(matches!(to.restore(64, &bytes[1..]), Err(BackendError::Call { .. })));
            assert_eq!(to.len, 64, "what is refused changes nothing");
        }
        let other = [CacheSpec { kv_heads: 2, head_dim: 16 }, CacheSpec { kv_heads: 1, head_dim: 6 }];
        let form = |specs: &[CacheSpec], kind| KvState::new(specs, kind, 64, 0).unwrap().form();
        assert_ne!(form(&specs, KvType::F16), form(&other, KvType::F16));
        assert_ne!(form(&specs, KvType::F16), form(&specs, KvType::Q8));
    }
}
