//! What a backend promises: compile a program over weights, run it, keep its state.

use crate::{Bindings, GraphError, Program};
use margay_tensor::{Storage, Tensor};
use std::{
    any::Any,
    ops::{AddAssign, Range},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Why a backend cannot compile or run a program.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// An op, format or size that this backend cannot do.
    #[error("the {backend} backend cannot run {what}")]
    Unsupported {
        /// Id of the backend.
        backend: &'static str,
        /// Op, weight and format, and what to do.
        what: String,
    },
    /// A weight that is missing, of another shape, or unreadable.
    #[error("weight {name}: {what}")]
    Weight {
        /// Name of the weight.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// Sizes that do not fit.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A call that does not fit the program or the limits it was compiled for.
    #[error("{what}")]
    Call {
        /// What is wrong with the call.
        what: String,
    },
    /// More positions than the state was made for.
    #[error("the context holds {capacity} tokens: {used} are used and {wanted} more do not fit")]
    ContextFull {
        /// Tokens the state can hold.
        capacity: usize,
        /// Tokens it holds.
        used: usize,
        /// Tokens of the call.
        wanted: usize,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// How a backend lays out the weights it packs: what one layout names, another cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What it is made for, as a part of a file's name: an instruction set.
    pub target: &'static str,
    /// Changes whenever the same weight packs to other bytes.
    pub version: u32,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.target, self.version)
    }
}

/// What a backend makes of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedForm {
    /// Format, shape and order, in the backend's own words.
    pub form: String,
    /// Bytes of each part.
    pub part_bytes: Vec<usize>,
}

/// A weight in a backend's own layout.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    /// What it is.
    pub form: PackedForm,
    /// Its parts, each aligned to 64 bytes.
    pub parts: Vec<Storage>,
}

/// Where a backend gets its weights.
pub trait WeightSource {
    /// The weight of that name, in its stored format.
    ///
    /// # Errors
    /// [`BackendError::Weight`] where it is missing or unreadable, [`BackendError::Cancelled`] where the caller of
    /// [`Backend::compile`] no longer wants the program.
    fn weight(&self, name: &str) -> Result<Tensor, BackendError>;

    /// The parts of that weight as [`Backend::pack`] made them earlier, where they are at hand and of this form.
    fn packed(&self, name: &str, form: &PackedForm) -> Option<Vec<Storage>> {
        let _ = (name, form);
        None
    }
}

/// A flag that stops running work; cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks running work to stop at its next check (at least once an op; the CPU backend, within one).
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Makes the flag usable again.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// True once cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One input of a call, in the order of [`Program::inputs`].
#[derive(Clone, Copy, Debug)]
pub enum InputData<'a> {
    /// Row-major float32.
    F32(&'a [f32]),
    /// Ids, positions or row numbers.
    I32(&'a [i32]),
}

/// Bytes a compiled program holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights in this backend's own layout; 0 for those read in place from the file.
    pub packed_weight_bytes: usize,
    /// Weights read in place from the file's memory.
    pub mapped_weight_bytes: usize,
    /// The arena for values.
    pub arena_bytes: usize,
    /// Scratch of the kernels.
    pub scratch_bytes: usize,
}

impl AddAssign for MemoryUse {
    fn add_assign(&mut self, other: Self) {
        self.packed_weight_bytes += other.packed_weight_bytes;
        self.mapped_weight_bytes += other.mapped_weight_bytes;
        self.arena_bytes += other.arena_bytes;
        self.scratch_bytes += other.scratch_bytes;
    }
}

/// How to make a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateOptions {
    /// Tokens it can hold.
    pub capacity: usize,
    /// Bits of a number in it at most, scales apart, where the backend can keep it in so few; else in as few as it can. As the
    /// backend was made unless given.
    pub most_bits: Option<u32>,
}

impl StateOptions {
    /// For so many tokens, in the types that the backend was made with.
    pub fn new(capacity: usize) -> Self {
        StateOptions { capacity, most_bits: None }
    }
}

/// Whose attention a [`State`] notes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Observe {
    /// Nobody's.
    #[default]
    Nothing,
    /// That of so many of the newest tokens.
    Newest(usize),
    /// That of every token from now on.
    All,
}

/// Tokens that stay in a [`State`], for each layer and KV head, in their order; the same number everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    count: usize,
    of: Vec<Vec<Vec<u32>>>,
}

impl Kept {
    /// `of[layer][head]` names tokens by their number in the state, ascending.
    ///
    /// # Errors
    /// [`BackendError::Call`] where the numbers do not ascend, or are not as many in each head.
    pub fn new(of: Vec<Vec<Vec<u32>>>) -> Result<Kept, BackendError> {
        let mut heads = of.iter().flatten();
        let count = heads.next().map_or(0, Vec::len);
        if heads.any(|tokens| tokens.len() != count) {
            return Err(BackendError::Call { what: "every head keeps as many tokens".to_owned() });
        }
        if of.iter().flatten().any(|tokens| !tokens.is_sorted_by(|a, b| a < b)) {
            return Err(BackendError::Call { what: "tokens that stay are named in their order".to_owned() });
        }
        Ok(Kept { count, of })
    }

    /// Tokens that stay.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those of a layer and KV head.
    pub fn of(&self, layer: usize, head: usize) -> &[u32] {
        &self.of[layer][head]
    }

    /// The first number that does not stay in some head: what lies before it is whole.
    pub fn first_dropped(&self) -> usize {
        let whole = |tokens: &Vec<u32>| tokens.iter().zip(0..).take_while(|(token, at)| *token == at).count();
        self.of.iter().flatten().map(whole).min().unwrap_or(0)
    }

    /// The block of `size` tokens that becomes, in all heads, the one that begins at `first`; of the last one what there is.
    pub fn whole_block(&self, first: usize, size: usize) -> Option<usize> {
        let start = *self.of.iter().flatten().next()?.get(first)?;
        let end = self.count.min(first.saturating_add(size));
        let is = |tokens: &Vec<u32>| {
            tokens
                .get(first..end)
                .is_some_and(|block| block.iter().copied().eq(start..start + (end - first) as u32))
        };
        let all = (start as usize).is_multiple_of(size) && self.of.iter().flatten().all(is);
        all.then_some(start as usize / size)
    }

    /// Refuses what is not of layers of so many KV heads, or names tokens beyond `len`.
    ///
    /// # Errors
    /// [`BackendError::Call`].
    pub fn check(&self, heads: &[usize], len: usize) -> Result<(), BackendError> {
        if !self.of.iter().map(Vec::len).eq(heads.iter().copied()) {
            return Err(BackendError::Call { what: "the tokens that stay are another program's".to_owned() });
        }
        match self.of.iter().flatten().filter_map(|tokens| tokens.last()).find(|last| **last as usize >= len)
        {
            Some(last) => Err(BackendError::Call { what: format!("token {last} of {len}") }),
            None => Ok(()),
        }
    }
}

/// What a text program keeps between calls: its KV cache.
pub trait State: Send {
    /// Tokens held.
    fn len(&self) -> usize;
    /// True where no token is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Tokens it can hold.
    fn capacity(&self) -> usize;
    /// Forgets all but the first `len` tokens; a longer `len` changes nothing.
    fn truncate(&mut self, len: usize);
    /// Bytes set aside: what it takes at most.
    fn size_bytes(&self) -> usize;
    /// Bytes of it that were ever touched, those shared with other states counted with each.
    fn used_bytes(&self) -> usize {
        self.size_bytes()
    }
    /// How its bytes are laid out, in the backend's own words: [`State::restore`] of a state of the same form takes them.
    /// `None` where they cannot be kept.
    fn form(&self) -> Option<String> {
        None
    }
    /// The bytes of the first `len` tokens held; empty where they cannot be kept.
    fn snapshot(&self, len: usize) -> Vec<u8> {
        let _ = len;
        vec![]
    }
    /// Holds `len` tokens, of which these are the bytes, in place of what it held.
    ///
    /// # Errors
    /// [`BackendError::ContextFull`], or [`BackendError::Call`] for bytes that are none of so many tokens of this form.
    fn restore(&mut self, len: usize, bytes: &[u8]) -> Result<(), BackendError> {
        let _ = (len, bytes);
        Err(BackendError::Call { what: "this backend keeps no states".to_owned() })
    }
    /// A state that holds the first `len` tokens of this one, which are shared until one of the two goes on with them.
    ///
    /// # Errors
    /// [`BackendError::Call`] where the backend cannot, or memory is at its end.
    fn fork(&self, len: usize) -> Result<Box<dyn State>, BackendError> {
        let _ = len;
        Err(BackendError::Call { what: "this backend's states share nothing".to_owned() })
    }
    /// From the next call on, notes what [`State::attention`] needs, in place of what was noted before.
    ///
    /// # Errors
    /// [`BackendError::Call`] where the backend cannot.
    fn observe(&mut self, what: Observe) -> Result<(), BackendError> {
        match what {
            Observe::Nothing => Ok(()),
            _ => Err(BackendError::Call {
                what: "this backend drops no tokens; use the cpu backend".to_owned(),
            }),
        }
    }
    /// The attention that the queries noted pay to each token held, summed over them and over the heads that share a KV
    /// head: for each layer and KV head, `[len]`.
    ///
    /// # Errors
    /// As [`State::observe`].
    fn attention(&mut self) -> Result<Vec<Vec<Vec<f32>>>, BackendError> {
        Err(BackendError::Call { what: "this backend drops no tokens; use the cpu backend".to_owned() })
    }
    /// Drops all tokens but those, which then lie one behind the other. Keys stay as they are, so that tokens keep the
    /// positions that they were computed for: see [`State::turn`].
    ///
    /// # Errors
    /// [`BackendError::Call`] where the backend cannot, or `kept` is not of this state, or drops tokens that are turned.
    fn retain(&mut self, kept: &Kept) -> Result<(), BackendError> {
        let _ = kept;
        Err(BackendError::Call { what: "this backend drops no tokens; use the cpu backend".to_owned() })
    }
    /// Turns the keys of the first `tokens` as if they had been computed `by` positions later than they were, on every axis,
    /// in place of how they were turned before; so that after a gap was dropped behind them, they stand next to what follows.
    /// What they were is kept: turning again and again adds up no error, and a state that is cut to no more than those tokens
    /// holds them as they were computed.
    ///
    /// # Errors
    /// [`BackendError::Call`] where the backend cannot, keys have no rotary positions, or `tokens` are more than it holds or
    /// no whole blocks of its. They are then not turned.
    fn turn(&mut self, tokens: usize, by: i32) -> Result<(), BackendError> {
        let _ = (tokens, by);
        Err(BackendError::Call { what: "this backend drops no tokens; use the cpu backend".to_owned() })
    }
    /// For the backend that made it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Rows of a call that belong to one conversation: so many tokens behind those that its state holds.
pub struct Segment<'a> {
    /// Its KV cache.
    pub state: &'a mut dyn State,
    /// Its tokens in the call.
    pub rows: usize,
}

/// Called behind each step of a run, with the nodes of [`Executable::program`] that it computed, several where they were
/// computed together, and the sizes of the run; and, with none, before the first.
pub type Watch = Box<dyn FnMut(Range<usize>, &Bindings) + Send>;

/// A program that a backend has compiled: weights packed, buffers allocated.
pub trait Executable: Send {
    /// The program as compiled (after the backend's own passes).
    fn program(&self) -> &Program;
    /// Bytes held.
    fn memory(&self) -> MemoryUse;
    /// An empty state for this program.
    ///
    /// # Errors
    /// [`BackendError::Call`] where the size overflows.
    fn new_state(&self, options: StateOptions) -> Result<Box<dyn State>, BackendError>;
    /// Runs the program. `bindings` sets every symbol but `past`, which is the state's length; each is at most the
    /// limit the program was compiled for. With a state, the rows of this call are appended to it.
    ///
    /// # Errors
    /// [`BackendError`]; after an error the state is as long as before the call.
    fn run(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        state: Option<&mut dyn State>,
        cancel: &Cancel,
    ) -> Result<(), BackendError>;
    /// True where [`Executable::run_several`] can be called.
    fn runs_several(&self) -> bool {
        false
    }
    /// Runs the program once for several conversations: the rows of the call are the tokens of the first segment, then those
    /// of the second, and so on; each sees its own conversation, and is appended to it. Else as [`Executable::run`].
    ///
    /// # Errors
    /// As [`Executable::run`]; [`BackendError::Call`] where the rows of the segments are not those of the call, or tokens of
    /// several conversations should see one another.
    fn run_several(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        segments: &mut [Segment<'_>],
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        let _ = (bindings, inputs, segments, cancel);
        Err(BackendError::Call { what: "this backend runs one conversation at a time".to_owned() })
    }
    /// Runs a program that keeps no state from step `from` on (0 at first) until `pause`, asked behind each step, says so;
    /// gives the step to go on from with the same sizes and inputs, or none where the program has ended. Another run in
    /// between spoils what was computed. A backend that cannot pause runs to the end.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn run_part(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        from: usize,
        pause: &mut dyn FnMut() -> bool,
        cancel: &Cancel,
    ) -> Result<Option<usize>, BackendError> {
        let _ = (from, pause);
        self.run(bindings, inputs, None, cancel).map(|()| None)
    }
    /// Has each step of all further runs told to `watch`, or no longer; false where this backend does not tell.
    fn watch(&mut self, watch: Option<Watch>) -> bool {
        let _ = watch;
        false
    }
    /// The output of that name as the last [`Executable::run`] left it, row-major.
    fn output(&self, name: &str) -> Option<&[f32]>;
}

/// Hardware that can run programs.
pub trait Backend: Send + Sync {
    /// Short lower-case id: `cpu`, `reference`.
    fn id(&self) -> &'static str;
    /// One line for people: which kernels, how many threads.
    fn describe(&self) -> String;
    /// Packs weights and allocates buffers for calls up to `limits` (the greatest value of each symbol the program
    /// uses, `past` excepted).
    ///
    /// # Errors
    /// [`BackendError`] naming the op, weight or format that cannot be done.
    fn compile(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        limits: &Bindings,
    ) -> Result<Box<dyn Executable>, BackendError>;
    /// The same with threads of its own, so that its programs can run while this one's do; `None` where it has none.
    ///
    /// # Errors
    /// As making it.
    fn beside(&self) -> Result<Option<Box<dyn Backend>>, BackendError> {
        Ok(None)
    }
    /// Threads that compute; `None` where it does not tell.
    fn compute_threads(&self) -> Option<usize> {
        None
    }
    /// Has its programs run on at most so many of its threads from their next op on, one at least. Results do not change.
    fn use_threads(&self, most: usize) {
        let _ = most;
    }
    /// How it lays out what it packs; `None` where packed weights cannot be kept.
    fn layout(&self) -> Option<Layout> {
        None
    }
    /// Packs those weights of `program` that [`WeightSource::packed`] is asked for, one after the other, and hands each
    /// to `keep`.
    ///
    /// # Errors
    /// [`BackendError`] as [`Backend::compile`], or what `keep` gives.
    fn pack(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        keep: &mut dyn FnMut(&str, PackedWeight) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let _ = (program, weights, keep);
        Ok(())
    }
}
