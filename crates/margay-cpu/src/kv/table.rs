//! Blocks of tokens: where they lie, and who shares them.
//!
//! A slab is memory for so many blocks of one type, which the system hands out as they are touched; a state has one for as
//! many blocks as its context holds, and takes the lowest free place for each, so that the blocks of a conversation that
//! shares nothing lie one behind the other. A [`Place`] counts its owners: who wants to write a shared one copies it first.

use super::{KvType, TYPES, codec};
use crate::{
    kernels::{Kernels, attention::KEYS},
    lines::Lines,
    ops::Engine,
    threads::TaskPanic,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};

/// In what types a state keeps its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KvPlan {
    /// Of blocks that are full.
    pub(crate) text: KvType,
    /// Of blocks that are full and wholly within pictures.
    pub(crate) image: KvType,
}

impl KvPlan {
    /// The same in no more bits: in the types that cost least of those that have so few.
    pub(crate) fn within(self, most_bits: u32) -> Self {
        let small = |kind: KvType| match most_bits {
            bits if kind.bits() as u32 <= bits => kind,
            8.. => KvType::Q8,
            _ => KvType::Q4_0,
        };
        KvPlan { text: small(self.text), image: small(self.image) }
    }

    /// The type of a block that is being filled.
    pub(crate) fn open(self) -> KvType {
        self.text.while_open()
    }

    /// The type of a full block, of which these tokens (a bit each) are a picture's.
    fn closed(self, visual: u64) -> KvType {
        if visual == u64::MAX { self.image } else { self.text }
    }

    /// The types of blocks that there may be, each once.
    pub(crate) fn types(self) -> impl Iterator<Item = KvType> {
        let all = [self.open(), self.text, self.image];
        KvType::ALL.into_iter().filter(move |kind| all.contains(kind))
    }
}

/// Where each layer's heads lie in a block of one type.
#[derive(Debug)]
struct Layout {
    /// Bytes that one head of a layer has.
    each: Vec<usize>,
    /// Where a layer's part begins.
    starts: Vec<usize>,
    /// Bytes of a block.
    stride: usize,
}

/// Where everything lies in blocks of every type.
#[derive(Debug)]
pub(crate) struct Layouts {
    /// KV heads and head dimension of each layer.
    pub(crate) shapes: Vec<(usize, usize)>,
    of: Vec<Layout>,
}

impl Layouts {
    /// `None` where sizes overflow.
    fn new(shapes: Vec<(usize, usize)>) -> Option<Layouts> {
        let mut of = Vec::with_capacity(TYPES);
        for kind in KvType::ALL {
            let (mut each, mut starts, mut stride) = (vec![], vec![], 0usize);
            for (heads, d) in &shapes {
                let bytes = kind.block_bytes(*d)?;
                starts.push(stride);
                stride = stride.checked_add(bytes.checked_mul(*heads)?)?;
                each.push(bytes);
            }
            of.push(Layout { each, starts, stride });
        }
        Some(Layouts { shapes, of })
    }

    fn of(&self, kind: KvType) -> &Layout {
        &self.of[kind as usize]
    }

    /// Bytes of a block.
    pub(crate) fn stride(&self, kind: KvType) -> usize {
        self.of(kind).stride
    }
}

/// Memory for blocks of one type.
#[derive(Debug)]
struct Slab {
    kind: KvType,
    stride: usize,
    memory: Lines<u8>,
    /// How many tables hold each place.
    owners: Vec<AtomicU32>,
    /// Places that were ever taken are those below it.
    touched: AtomicUsize,
    /// Nobody takes places from it any more: its own table is gone, and others hold some.
    left: AtomicBool,
}

impl Slab {
    fn new(kind: KvType, stride: usize, places: usize) -> Option<Arc<Slab>> {
        let memory = Lines::try_zeroed(stride.checked_mul(places)?)?;
        let owners = (0..places).map(|_| AtomicU32::new(0)).collect();
        let (touched, left) = (AtomicUsize::new(0), AtomicBool::new(false));
        Some(Arc::new(Slab { kind, stride, memory, owners, touched, left }))
    }

    /// The lowest free place.
    fn take(self: &Arc<Slab>) -> Option<Place> {
        for (at, owners) in self.owners.iter().enumerate() {
            if owners.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                self.touched.fetch_max(at + 1, Ordering::Relaxed);
                return Some(Place { slab: self.clone(), at });
            }
        }
        None
    }

    /// Its table is gone: places that nobody holds are given back to the system, so that a few that others hold do not keep
    /// the memory of all.
    fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
        let touched = self.touched.load(Ordering::Relaxed);
        for (at, _) in
            self.owners.iter().enumerate().take(touched).filter(|(_, n)| n.load(Ordering::SeqCst) == 0)
        {
            self.give_back(at);
        }
    }

    /// Gives a place that nobody holds, and nobody will take, back to the system.
    fn give_back(&self, at: usize) {
        // SAFETY: nobody holds the place, and only the slab's own table, which is gone, could take it.
        unsafe { self.memory.give_back(at * self.stride..(at + 1) * self.stride) }
    }

    fn touched_bytes(&self) -> usize {
        self.touched.load(Ordering::Relaxed) * self.stride
    }
}

/// A block's memory, which others may hold as well.
#[derive(Debug)]
pub(crate) struct Place {
    slab: Arc<Slab>,
    at: usize,
}

impl Clone for Place {
    fn clone(&self) -> Place {
        self.slab.owners[self.at].fetch_add(1, Ordering::Relaxed);
        Place { slab: self.slab.clone(), at: self.at }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever takes the place next must see that nobody reads it any more.
        let owners = self.slab.owners[self.at].fetch_sub(1, Ordering::SeqCst);
        // Once the table is gone nobody can take a place: that nobody holds it now is final.
        if owners == 1
            && self.slab.left.load(Ordering::SeqCst)
            && self.slab.owners[self.at].load(Ordering::SeqCst) == 0
        {
            self.slab.give_back(self.at);
        }
    }
}

impl Place {
    pub(crate) fn kind(&self) -> KvType {
        self.slab.kind
    }

    fn is_shared(&self) -> bool {
        self.slab.owners[self.at].load(Ordering::Acquire) > 1
    }

    fn pointer(&self) -> *mut u8 {
        // Within the memory, as the slab has that many places.
        self.slab.memory.pointer().wrapping_add(self.at * self.slab.stride)
    }

    /// The whole block.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: that many bytes lie there, zeroed at first; whoever writes them has the only place that names them to
        // itself, and is in a call that borrows its table.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.slab.stride) }
    }

    /// The whole block, where nobody else holds it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(!self.is_shared());
        // SAFETY: as above, and nobody else names them.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.slab.stride) }
    }
}

/// The blocks of one conversation.
#[derive(Debug)]
pub(crate) struct KvTable {
    pub(crate) layouts: Arc<Layouts>,
    pub(crate) plan: KvPlan,
    /// Where new blocks are taken from.
    slabs: Vec<Arc<Slab>>,
    blocks: Vec<Place>,
    /// Which tokens of each block are a picture's, a bit each.
    visual: Vec<u64>,
    /// Blocks that have the type of full ones, so far.
    closed: usize,
    /// Most blocks there can be.
    most: usize,
    /// Blocks that are filled in another type than they keep, at the same time.
    staged: usize,
}

impl Drop for KvTable {
    fn drop(&mut self) {
        self.blocks.clear();
        // One that nobody else holds is freed as a whole.
        self.slabs.iter().filter(|slab| Arc::strong_count(slab) > 1).for_each(|slab| slab.leave());
    }
}

impl KvTable {
    /// For layers of so many KV heads and so wide heads, and up to `tokens`, of which a call appends at most `batch`; `None`
    /// where sizes overflow.
    pub(crate) fn new(
        plan: KvPlan,
        shapes: Vec<(usize, usize)>,
        tokens: usize,
        batch: usize,
    ) -> Option<KvTable> {
        let most = tokens.checked_next_multiple_of(KEYS)? / KEYS;
        // What a call appends, and what was full before it and is rewritten when it begins.
        let staged = most.min(batch.div_ceil(KEYS) + 1);
        Self::of(Arc::new(Layouts::new(shapes)?), plan, most, staged)
    }

    fn of(layouts: Arc<Layouts>, plan: KvPlan, most: usize, staged: usize) -> Option<KvTable> {
        let mut slabs = vec![];
        for kind in plan.types() {
            let places = if kind == plan.text || kind == plan.image { most } else { staged };
            slabs.push(Slab::new(kind, layouts.stride(kind), places)?);
        }
        let (blocks, visual) = (Vec::with_capacity(most), Vec::with_capacity(most));
        Some(KvTable { layouts, plan, slabs, blocks, visual, closed: 0, most, staged })
    }

    /// Room for so many tokens of one layer in float32, taken at once.
    pub(crate) fn of_layer(kind: KvType, shape: (usize, usize), tokens: usize) -> Option<KvTable> {
        let mut table = KvTable::new(KvPlan { text: kind, image: kind }, vec![shape], tokens, tokens)?;
        for _ in 0..table.most {
            let place = table.take(kind)?;
            table.push(place, 0);
        }
        Some(table)
    }

    /// An empty one of the same kind.
    pub(crate) fn empty(&self) -> Option<KvTable> {
        Self::of(self.layouts.clone(), self.plan, self.most, self.staged)
    }

    /// Tokens there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.most * KEYS
    }

    pub(crate) fn blocks(&self) -> &[Place] {
        &self.blocks
    }

    pub(crate) fn visual(&self) -> &[u64] {
        &self.visual
    }

    /// Bytes set aside: what full blocks take at most, and those that are filled in another type.
    pub(crate) fn size_bytes(&self) -> usize {
        let stride = |kind| self.layouts.stride(kind);
        let (open, text, image) = (self.plan.open(), self.plan.text, self.plan.image);
        let staged = if open != text || open != image { self.staged * stride(open) } else { 0 };
        self.most * stride(text).max(stride(image)) + staged
    }

    /// Bytes that were touched, and the blocks of others that are held as well.
    pub(crate) fn used_bytes(&self) -> usize {
        let own: usize = self.slabs.iter().map(|slab| slab.touched_bytes()).sum();
        let foreign = |place: &&Place| !self.slabs.iter().any(|slab| Arc::ptr_eq(slab, &place.slab));
        own + self.blocks.iter().filter(foreign).map(|place| place.slab.stride).sum::<usize>()
    }

    /// One layer of all blocks.
    pub(crate) fn layer(&self, layer: usize) -> KvLayer<'_> {
        KvLayer { layouts: &self.layouts, blocks: &self.blocks, layer }
    }

    /// One layer of other blocks of these layouts.
    pub(crate) fn layer_of<'a>(&'a self, blocks: &'a [Place], layer: usize) -> KvLayer<'a> {
        KvLayer { layouts: &self.layouts, blocks, layer }
    }

    /// A free place of a type; memory is only set aside for it where others hold all places there are.
    pub(crate) fn take(&mut self, kind: KvType) -> Option<Place> {
        if let Some(place) = self.slabs.iter().filter(|slab| slab.kind == kind).find_map(Slab::take) {
            return Some(place);
        }
        let slab = Slab::new(kind, self.layouts.stride(kind), 1)?;
        self.slabs.push(slab.clone());
        slab.take()
    }

    /// Appends a block.
    pub(crate) fn push(&mut self, place: Place, visual: u64) {
        self.blocks.push(place);
        self.visual.push(visual);
    }

    /// Shares the blocks of the first `len` tokens of another table.
    pub(crate) fn share(&mut self, other: &KvTable, len: usize) {
        self.truncate(0);
        let count = len.div_ceil(KEYS);
        self.blocks.extend_from_slice(&other.blocks[..count]);
        self.visual.extend_from_slice(&other.visual[..count]);
        self.truncate(len);
    }

    /// Takes the blocks of another table.
    pub(crate) fn replace(&mut self, blocks: Vec<(Place, u64)>) {
        self.truncate(0);
        for (place, visual) in blocks {
            self.push(place, visual);
        }
    }

    /// Puts others in the place of the first blocks, which keep their types.
    pub(crate) fn exchange(&mut self, blocks: impl IntoIterator<Item = Place>) {
        let mut count = 0;
        for (own, block) in self.blocks.iter_mut().zip(blocks) {
            *own = block;
            count += 1;
        }
        self.closed = self.closed.max(count);
    }

    /// Gives back the blocks behind the first `len` tokens.
    pub(crate) fn truncate(&mut self, len: usize) {
        let count = len.div_ceil(KEYS);
        self.blocks.truncate(count);
        self.visual.truncate(count);
        if let Some(last) = self.visual.get_mut(len / KEYS) {
            *last &= (1 << (len % KEYS)) - 1;
        }
        self.closed = self.closed.min(len / KEYS);
    }

    /// Notes that a token is a picture's.
    pub(crate) fn mark_visual(&mut self, token: usize) {
        if let Some(visual) = self.visual.get_mut(token / KEYS) {
            *visual |= 1 << (token % KEYS);
        }
    }

    /// Before tokens `len..to` are written: rewrites what is full in the type it keeps, and sees to it that what is written
    /// is there, can be written, and is nobody else's. False where memory is at its end. Where the call was cancelled
    /// meanwhile, what is held is as it was, and nothing may be written.
    pub(crate) fn prepare(&mut self, engine: &Engine, len: usize, to: usize) -> Result<bool, TaskPanic> {
        self.truncate(len);
        while self.closed < len / KEYS {
            let kind = self.plan.closed(self.visual[self.closed]);
            if self.blocks[self.closed].kind() != kind && !self.rewrite(engine, self.closed, kind)? {
                return Ok(false);
            }
            if engine.was_cancelled() {
                return Ok(true);
            }
            self.closed += 1;
        }
        let open = self.plan.open();
        if let Some(last) = self.blocks.get(len / KEYS)
            && (last.is_shared() || last.kind() != open)
            && !self.rewrite(engine, len / KEYS, open)?
        {
            return Ok(false);
        }
        while self.blocks.len() < to.div_ceil(KEYS) {
            let Some(place) = self.take(open) else { return Ok(false) };
            self.push(place, 0);
        }
        Ok(true)
    }

    /// Gives a block memory of its own, of that type.
    fn rewrite(&mut self, engine: &Engine, at: usize, kind: KvType) -> Result<bool, TaskPanic> {
        let Some(mut place) = self.take(kind) else { return Ok(false) };
        let from = &self.blocks[at];
        if from.kind() == kind {
            place.bytes_mut().copy_from_slice(from.bytes());
        } else {
            let (to, layouts) = ([place], &*self.layouts);
            let heads = layouts.shapes.iter().map(|(heads, _)| *heads).max().unwrap_or(0);
            engine.run(layouts.shapes.len() * heads, &|worker, task| {
                let (at_layer, head) = (task / heads, task % heads);
                let (kv_heads, d) = layouts.shapes[at_layer];
                if head >= kv_heads {
                    return;
                }
                let from = self.layer_of(std::slice::from_ref(from), at_layer);
                let to = self.layer_of(&to, at_layer);
                // SAFETY: a worker runs one task at a time; nobody else has the new place, of which each task has a part.
                let (scratch, bytes) = unsafe { (engine.scratch.worker(worker), to.part_mut(head, 0)) };
                let from = (from.kind(0), from.part(head, 0));
                codec::convert(&engine.kernels, d, from, (kind, bytes), scratch);
            })?;
            // Parts of it may be missing.
            if engine.was_cancelled() {
                return Ok(true);
            }
            [place] = to;
        }
        self.blocks[at] = place;
        Ok(true)
    }

    /// Key and value of one token of a head of a layer in float32, [2, D], where `panels` has the block of the last call, of
    /// which `held` tells which that was.
    pub(crate) fn read(
        &self,
        kernels: &Kernels,
        (layer, head, token): (usize, usize, usize),
        (panels, held): (&mut Vec<f32>, &mut Option<(usize, usize, usize)>),
        row: &mut [f32],
    ) {
        let (d, of) = (self.layouts.shapes[layer].1, self.layer(layer));
        let wanted = Some((layer, head, token / KEYS));
        if *held != wanted {
            panels.resize(KEYS * (d + super::wide(d)), 0.0);
            (kernels.attention.unpack)(of.kind(token), d, of.part(head, token), panels);
            *held = wanted;
        }
        codec::row_of(d, panels, token % KEYS, row);
    }
}

/// One layer of the blocks of a table.
#[derive(Clone, Copy)]
pub(crate) struct KvLayer<'a> {
    layouts: &'a Layouts,
    blocks: &'a [Place],
    layer: usize,
}

/// What one head of a block has.
#[derive(Clone, Copy)]
pub(crate) struct KvBlock<'a> {
    pub(crate) kind: KvType,
    /// All of it.
    pub(crate) part: &'a [u8],
    /// Keys and values in one, of a type that kernels multiply as it is stored.
    pub(crate) numbers: &'a [u8],
    /// Of keys and of values, where kernels multiply with them.
    pub(crate) scales: Option<[&'a [f32]; 2]>,
}

impl<'a> KvLayer<'a> {
    pub(crate) fn kv_heads(&self) -> usize {
        self.layouts.shapes[self.layer].0
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.layouts.shapes[self.layer].1
    }

    /// The head dimension rounded up to 16: the columns of values.
    pub(crate) fn wide(&self) -> usize {
        super::wide(self.head_dim())
    }

    /// The type of the block that holds a token.
    pub(crate) fn kind(&self, token: usize) -> KvType {
        self.blocks[token / KEYS].kind()
    }

    /// Where a head's part of the block that holds `token` lies, and its bytes.
    fn place(&self, head: usize, token: usize) -> (*mut u8, usize) {
        let place = &self.blocks[token / KEYS];
        let layout = self.layouts.of(place.kind());
        assert!(head < self.kv_heads());
        let each = layout.each[self.layer];
        (place.pointer().wrapping_add(layout.starts[self.layer] + head * each), each)
    }

    /// A head's part of the block that holds `token`.
    pub(crate) fn part(&self, head: usize, token: usize) -> &'a [u8] {
        let (at, len) = self.place(head, token);
        // SAFETY: within the block, which the table keeps; whoever writes has this head to itself meanwhile.
        unsafe { std::slice::from_raw_parts(at, len) }
    }

    /// # Safety
    /// The block is the table's own, and nobody else touches this head of it as long as the slice lives.
    #[allow(clippy::mut_from_ref, reason = "tasks write through it, each its own heads")]
    pub(crate) unsafe fn part_mut(&self, head: usize, token: usize) -> &'a mut [u8] {
        let (at, len) = self.place(head, token);
        // SAFETY: within the block; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }

    /// What `head` has of the block that token `at`, a multiple of [`KEYS`], begins.
    pub(crate) fn block(&self, head: usize, at: usize) -> KvBlock<'a> {
        let (kind, part, d) = (self.kind(at), self.part(head, at), self.head_dim());
        let numbers = KEYS * (d + self.wide()) * kind.bits() / 8;
        let (numbers, scales) = part.split_at(numbers.min(part.len()));
        let scales = (kind == KvType::Q8).then(|| {
            // SAFETY: 64 scales of keys and 64 of values are there, aligned as blocks are.
            let scales = unsafe { std::slice::from_raw_parts(scales.as_ptr().cast::<f32>(), 2 * KEYS) };
            [&scales[..KEYS], &scales[KEYS..]]
        });
        KvBlock { kind, part, numbers, scales }
    }

    /// Writes key and value of one token of one head. `scratch` has room for a head.
    ///
    /// # Safety
    /// [`KvTable::prepare`] made the block writable, and nobody else touches this head of it meanwhile.
    pub(crate) unsafe fn put(
        &self,
        kernels: &Kernels,
        (head, at): (usize, usize),
        key: &[f32],
        value: &[f32],
        scratch: &mut [f32],
    ) {
        assert!(key.len() == self.head_dim());
        // SAFETY: the caller's promise.
        let part = unsafe { self.part_mut(head, at) };
        codec::put(kernels, self.kind(at), part, at % KEYS, [key, value], scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_conversation_lie_behind_one_another_and_shared_ones_are_copied() {
        let engine = crate::CpuBackend::new(Default::default()).unwrap().engine(10_000);
        for kind in KvType::ALL {
            let plan = KvPlan { text: kind, image: kind };
            let mut table = KvTable::new(plan, vec![(2, 40), (1, 8)], 300, 64).unwrap();
            assert_eq!((table.capacity(), table.used_bytes()), (320, 0));
            assert!(table.prepare(&engine, 0, 100).unwrap());
            let stride = table.layouts.stride(plan.open());
            let at: Vec<_> = table.blocks.iter().map(|b| b.pointer().addr()).collect();
            assert_eq!((at.len(), at[1] - at[0], at[0] % 64), (2, stride, 0), "{kind:?}");
            assert_eq!(table.used_bytes(), 2 * stride);
            table.blocks[1].bytes_mut().fill(17);
            let mut fork = table.empty().unwrap();
            fork.share(&table, 70);
            assert_eq!(fork.used_bytes(), 2 * stride, "what is shared is counted with each");
            assert_eq!(fork.blocks[1].pointer(), table.blocks[1].pointer());
            assert!(fork.prepare(&engine, 70, 71).unwrap());
            assert_ne!(fork.blocks[1].pointer(), table.blocks[1].pointer());
            assert_eq!(fork.blocks[1].bytes(), table.blocks[1].bytes());
            fork.blocks[1].bytes_mut().fill(3);
            assert!(table.blocks[1].bytes().iter().all(|byte| *byte == 17));
            // What was given back is taken again.
            table.truncate(0);
            drop(fork);
            assert!(table.prepare(&engine, 0, 320).unwrap());
            assert_eq!(table.blocks[0].pointer().addr(), at[0]);
        }
        assert!(KvTable::new(KvPlan::default(), vec![(1, 8)], usize::MAX / 2, 1).is_none());
    }

    #[test]
    fn what_others_hold_is_never_written_over() {
        let engine = crate::CpuBackend::new(Default::default()).unwrap().engine(10_000);
        let mut table = KvTable::new(KvPlan::default(), vec![(1, 8)], 128, 128).unwrap();
        assert!(table.prepare(&engine, 0, 128).unwrap());
        table.blocks[0].bytes_mut().fill(9);
        let mut fork = table.empty().unwrap();
        fork.share(&table, 128);
        table.truncate(0);
        assert!(table.prepare(&engine, 0, 128).unwrap());
        table.blocks[0].bytes_mut().fill(1);
        table.blocks[1].bytes_mut().fill(1);
        assert!(fork.blocks[0].bytes().iter().all(|byte| *byte == 9));
        // The memory goes with the last who holds it.
        drop(table);
        assert!(fork.blocks[0].bytes().iter().all(|byte| *byte == 9));
    }

    #[test]
    fn a_cancelled_call_rewrites_nothing() {
        let engine = crate::CpuBackend::new(Default::default()).unwrap().engine(10_000);
        let plan = KvPlan { text: KvType::Kivi2, image: KvType::Kivi2 };
        let mut table = KvTable::new(plan, vec![(2, 40)], 192, 64).unwrap();
        assert!(table.prepare(&engine, 0, 128).unwrap());
        table.blocks[0].bytes_mut().fill(1);
        let before = table.blocks[0].bytes().to_vec();
        engine.cancel.cancel();
        assert!(table.prepare(&engine, 128, 129).unwrap());
        assert_eq!((table.blocks[0].kind(), table.closed), (KvType::F16, 0));
        assert_eq!(table.blocks[0].bytes(), before);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_conversation_leaves_behind_is_given_back_but_for_what_others_hold() {
        // Blocks of 512 KiB, so that all of them are a mapping.
        let kind = KvType::F16;
        let mut first = KvTable::of_layer(kind, (16, 128), 16 * KEYS).unwrap();
        assert!(first.blocks[0].slab.stride >= (512 << 10));
        for block in &mut first.blocks {
            block.bytes_mut().fill(7);
        }
        let mut second = first.empty().unwrap();
        second.share(&first, KEYS + 3);
        let slab = first.blocks[0].slab.clone();
        let filled = |slab: &Slab| {
            let whole = |at: &usize| slab.memory[at * slab.stride..][..slab.stride].iter().all(|x| *x == 7);
            (0..16).filter(whole).count()
        };
        assert_eq!(filled(&slab), 16);
        drop(first);
        assert!(second.blocks.iter().all(|block| block.bytes().iter().all(|x| *x == 7)));
        assert_eq!(filled(&slab), 2);
        second.truncate(KEYS);
        assert_eq!(filled(&slab), 1);
        drop(second);
        assert_eq!(filled(&slab), 0);
    }
}
