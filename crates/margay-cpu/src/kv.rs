//! The KV cache, laid out for the attention kernels.
//!
//! Of each head, keys lie in blocks of 16 as `[capacity / 16][D][16]`, so that the scores of 16 keys are one panel of a
//! matrix product; values lie as `[capacity][D']`, with D' the head dimension rounded up to 16.

use crate::{
    kernels::float::{FloatKernels, NR},
    lines::Lines,
    pack::FloatType,
};
use margay_graph::{CacheSpec, State};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Single precision: twice the memory; for comparisons.
    F32,
}

impl KvType {
    pub(crate) fn float_type(self) -> FloatType {
        match self {
            KvType::F16 => FloatType::F16,
            KvType::F32 => FloatType::F32,
        }
    }

    fn bytes(self) -> usize {
        self.float_type().bytes()
    }
}

/// Keys and values of one attention op.
#[derive(Debug)]
pub(crate) struct KvSlot {
    pub(crate) kind: KvType,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Tokens, a multiple of 16.
    pub(crate) capacity: usize,
    keys: Lines<u8>,
    values: Lines<u8>,
}

impl KvSlot {
    /// Room for `tokens`, or `None` where the size overflows.
    pub(crate) fn new(kind: KvType, kv_heads: usize, head_dim: usize, tokens: usize) -> Option<Self> {
        let capacity = tokens.checked_next_multiple_of(NR)?;
        let numbers =
            |width: usize| kv_heads.checked_mul(width)?.checked_mul(capacity)?.checked_mul(kind.bytes());
        // A context is seldom filled, and every head has its own part of the buffer: huge pages would all be touched, and
        // cleared, by the first tokens, 400 MB for 2048 tokens of a 1.4B model.
        let keys = Lines::try_sparse(numbers(head_dim)?)?;
        let values = Lines::try_sparse(numbers(head_dim.checked_next_multiple_of(NR)?)?)?;
        Some(KvSlot { kind, kv_heads, head_dim, capacity, keys, values })
    }

    /// D rounded up to 16: the distance of two values.
    pub(crate) fn value_stride(&self) -> usize {
        self.head_dim.next_multiple_of(NR)
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.keys.size_bytes() + self.values.size_bytes()
    }

    /// The block of 16 keys of `head` that token `at`, a multiple of 16, begins.
    pub(crate) fn keys_at(&self, head: usize, at: usize) -> *const u8 {
        self.keys[(head * self.capacity + at) * self.head_dim * self.kind.bytes()..].as_ptr()
    }

    /// The value of `head` and token `at`.
    pub(crate) fn values_at(&self, head: usize, at: usize) -> *const u8 {
        self.values[(head * self.capacity + at) * self.value_stride() * self.kind.bytes()..].as_ptr()
    }

    /// A view that tasks may write through, each its own heads.
    pub(crate) fn writer(&mut self) -> KvWriter {
        KvWriter {
            kind: self.kind,
            head_dim: self.head_dim,
            capacity: self.capacity,
            stride: self.value_stride(),
            keys: self.keys.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
        }
    }
}

/// See [`KvSlot::writer`].
#[derive(Clone, Copy)]
pub(crate) struct KvWriter {
    kind: KvType,
    head_dim: usize,
    capacity: usize,
    stride: usize,
    keys: *mut u8,
    values: *mut u8,
}

// SAFETY: whoever writes through it keeps to heads of its own.
unsafe impl Send for KvWriter {}
// SAFETY: as above.
unsafe impl Sync for KvWriter {}

impl KvWriter {
    /// Writes key and value of one token of one head.
    ///
    /// # Safety
    /// The slot outlives the call, `head` and `at` lie within it, and nobody else touches this head.
    pub(crate) unsafe fn put(self, float: &FloatKernels, head: usize, at: usize, key: &[f32], value: &[f32]) {
        assert!(at < self.capacity && key.len() == self.head_dim && value.len() == self.head_dim);
        let block = (head * self.capacity + at / NR * NR) * self.head_dim + at % NR;
        let row = (head * self.capacity + at) * self.stride;
        // SAFETY: the caller's promise, and `at` is within the capacity.
        unsafe {
            match self.kind {
                KvType::F32 => {
                    let keys = self.keys.cast::<f32>().add(block);
                    for (i, key) in key.iter().enumerate() {
                        *keys.add(i * NR) = *key;
                    }
                    let out = self.values.cast::<f32>().add(row);
                    std::slice::from_raw_parts_mut(out, self.head_dim).copy_from_slice(value);
                }
                KvType::F16 => {
                    let keys = self.keys.cast::<u16>().add(block);
                    for (i, key) in key.chunks(64).enumerate() {
                        let mut halves = [0; 64];
                        (float.narrow)(key, &mut halves[..key.len()]);
                        for (j, half) in halves[..key.len()].iter().enumerate() {
                            *keys.add((i * 64 + j) * NR) = *half;
                        }
                    }
                    let out = self.values.cast::<u16>().add(row);
                    (float.narrow)(value, std::slice::from_raw_parts_mut(out, self.head_dim));
                }
            }
        }
    }
}

/// The KV cache of one conversation.
#[derive(Debug)]
pub(crate) struct KvState {
    pub(crate) slots: Vec<KvSlot>,
    pub(crate) len: usize,
    pub(crate) capacity: usize,
}

impl KvState {
    pub(crate) fn new(specs: &[CacheSpec], kind: KvType, capacity: usize) -> Option<Self> {
        let slot = |s: &CacheSpec| KvSlot::new(kind, s.kv_heads, s.head_dim, capacity);
        Some(KvState { slots: specs.iter().map(slot).collect::<Option<_>>()?, len: 0, capacity })
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
        self.slots.iter().map(KvSlot::size_bytes).sum()
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
