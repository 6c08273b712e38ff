//! The backend: options, and compilation of programs.

use crate::{
    CoreError, CoreSet, Isa, KvType,
    executable::CpuExecutable,
    kernels::Kernels,
    kv::KvPlan,
    ops::{Engine, Scratch},
    pack::LAYOUT_VERSION,
    step,
    threads::Pool,
};
use margay_graph::{
    Backend, BackendError, Bindings, Cancel, Executable, Layout, PackedWeight, Program, Stage, WeightSource,
    passes,
};
use std::sync::{Arc, atomic::AtomicBool};

/// Name of the backend in errors and reports.
pub(crate) const ID: &str = "cpu";

/// How the backend shall work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute; `None` for as many as the system has processors for us.
    pub threads: Option<usize>,
    /// Threads that compute where a single token is decoded, which waits for memory more than for arithmetic; `None` for
    /// all of them.
    pub decode_threads: Option<usize>,
    /// The cores that the threads stay on, a calling thread included from its first call on; `None` leaves it to the
    /// system.
    pub cores: Option<CoreSet>,
    /// Instruction set; `None` for the best this processor has.
    pub isa: Option<Isa>,
    /// How KV caches are stored.
    pub kv: KvType,
    /// How blocks of 64 tokens are stored that lie wholly within pictures; `None` as all others.
    pub kv_image: Option<KvType>,
    /// Multiply in the blocks of picture encoders with int8 weights, one scale an output, and int8 activations, one
    /// scale a row, where the weights are not quantized already; attention in 8 bits as well, and the projector in bfloat16
    /// where the processor multiplies it. Faster; results differ by the rounding.
    pub int8_encoder: bool,
    /// Multiply in the blocks of picture encoders and in projectors in bfloat16, where the weights are not quantized
    /// already; attention of the encoders in bfloat16 as well. Faster than float32; results differ by the rounding of both
    /// sides. Refused where the processor has no such instructions.
    pub bf16_encoder: bool,
}

/// What the matrices of an encoder's blocks become that are not quantized already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoder {
    AsStored,
    Int8,
    Bf16,
}

/// Runs programs on the processor's cores.
#[derive(Debug)]
pub struct CpuBackend {
    options: CpuOptions,
    pool: Arc<Pool>,
    decode_threads: usize,
    isa: Isa,
    kv: KvPlan,
    encoder: Encoder,
}

impl CpuBackend {
    /// Starts the threads and chooses the kernels.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where this processor lacks the instructions asked for, the threads cannot be kept
    /// on the cores asked for, or an encoder is asked to be two things.
    pub fn new(options: CpuOptions) -> Result<Self, BackendError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !isa.is_supported() {
            let known: Vec<_> = Isa::supported().map(Isa::name).collect();
            let what = format!("{isa} instructions: this processor has {}", known.join(", "));
            return Err(BackendError::Unsupported { backend: ID, what });
        }
        let encoder = match (options.int8_encoder, options.bf16_encoder) {
            (false, false) => Encoder::AsStored,
            (true, false) => Encoder::Int8,
            (false, true) => Encoder::Bf16,
            (true, true) => {
                let what = "an encoder in int8 and in bfloat16 at once: ask for one".to_owned();
                return Err(BackendError::Unsupported { backend: ID, what });
            }
        };
        if encoder == Encoder::Bf16 && crate::kernels::bf16::table(isa).is_none() {
            let what = format!(
                "an encoder in bfloat16: {isa} on this processor has no products of it (they take AVX512_BF16 with \
                 avx512, or bf16 with i8mm); leave the option away, or ask for int8"
            );
            return Err(BackendError::Unsupported { backend: ID, what });
        }
        if let Some(cores) = &options.cores {
            let unsupported = |e: CoreError| BackendError::Unsupported { backend: ID, what: e.to_string() };
            cores.check().map_err(unsupported)?;
        }
        let available = || match &options.cores {
            Some(cores) => cores.len(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let pool = Arc::new(Pool::new(options.threads.unwrap_or_else(available), options.cores));
        let decode_threads = options.decode_threads.unwrap_or(usize::MAX).min(pool.threads());
        let kv = KvPlan { text: options.kv, image: options.kv_image.unwrap_or(options.kv) };
        Ok(CpuBackend { options, pool, decode_threads, isa, kv, encoder })
    }

    /// What the float matrices of a stage of vision become. A projector's in 8 bits would add more to the divergence than
    /// the encoder's do, in bfloat16 they add a thirtieth of that.
    fn encoder_of(&self, stage: Stage) -> Encoder {
        match (stage, self.encoder) {
            (Stage::Project, Encoder::Int8) if crate::kernels::bf16::table(self.isa).is_some() => {
                Encoder::Bf16
            }
            (Stage::Project, Encoder::Int8) => Encoder::AsStored,
            (_, encoder) => encoder,
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads, for measurements of what the processor can do.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Threads, kernels and so many floats of scratch a thread, for ops outside a program.
    pub(crate) fn engine(&self, scratch_floats: usize) -> Engine {
        Engine {
            pool: self.pool.clone(),
            kernels: Kernels::of(self.isa).expect("invariant: checked in `new`"),
            scratch: Scratch::new(self.threads(), scratch_floats),
            team: self.threads(),
            cancel: Cancel::new(),
            skipped: AtomicBool::new(false),
        }
    }

    /// One line a kind of kernel: which one runs and why.
    pub fn kernels(&self) -> Vec<String> {
        let why = if self.isa == Isa::detect() {
            "the best this processor has".to_owned()
        } else {
            format!("asked for; this processor also has {}", Isa::detect())
        };
        crate::kernels::describe(self.isa).into_iter().map(|line| format!("{line} ({why})")).collect()
    }
}

impl Backend for CpuBackend {
    fn id(&self) -> &'static str {
        ID
    }

    fn describe(&self) -> String {
        let threads = self.threads();
        format!("cpu: {} kernels, {threads} thread{}", self.isa, if threads == 1 { "" } else { "s" })
    }

    fn compile(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        limits: &Bindings,
    ) -> Result<Box<dyn Executable>, BackendError> {
        let kernels = Kernels::of(self.isa).expect("invariant: checked in `new`");
        let threads = (self.pool.clone(), self.decode_threads);
        let encoder = self.encoder_of(program.stage());
        let executable =
            CpuExecutable::compile(program, weights, limits, threads, kernels, self.kv, encoder)?;
        Ok(Box::new(executable))
    }

    fn beside(&self) -> Result<Option<Box<dyn Backend>>, BackendError> {
        let options = CpuOptions { threads: Some(self.threads()), ..self.options };
        Ok(Some(Box::new(CpuBackend::new(options)?)))
    }

    fn compute_threads(&self) -> Option<usize> {
        Some(self.threads())
    }

    fn use_threads(&self, most: usize) {
        self.pool.limit(most);
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout { target: self.isa.name(), version: LAYOUT_VERSION })
    }

    fn pack(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        keep: &mut dyn FnMut(&str, PackedWeight) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        step::pack_matrices(&passes::optimize(program), weights, &self.pool, keep)
    }
}
