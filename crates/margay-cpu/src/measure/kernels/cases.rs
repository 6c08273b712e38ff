//! Which kernels at which shapes.

use crate::{Isa, KvType, backend::Encoder, kernels::bf16};
use margay_graph::{Activation, Attention, Mask, NormKind, RopeStyle};
use margay_tensor::DType;

/// Every format with a packed form of its own; a test compares it with the packer.
const TYPES: [DType; 14] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::IQ4_NL,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::F16,
    DType::BF16,
    DType::F32,
];

/// Tokens of a prompt.
const PROMPT: usize = 512;
/// Outputs and inputs of the layers of MobileLLaMA-1.4B and of a LLaMA of 7B; those of `--quick` first.
const DECODERS: [(usize, usize); 6] =
    [(5632, 2048), (2048, 2048), (2048, 5632), (4096, 4096), (11008, 4096), (4096, 11008)];
/// Rows, outputs and inputs of CLIP ViT-L/14-336 and SigLIP-so400m/14-384; those of `--quick` first.
const ENCODERS: [(usize, usize, usize); 6] = [
    (577, 4096, 1024),
    (577, 1024, 1024),
    (577, 1024, 4096),
    (729, 1152, 1152),
    (729, 4304, 1152),
    (729, 1152, 4304),
];
/// Heads, KV heads and head width of MobileLLaMA-1.4B, MobileLLaMA-2.7B and a LLaMA with grouped queries.
const HEADS: [(usize, usize, usize); 3] = [(16, 16, 128), (32, 32, 80), (32, 8, 128)];
/// Rows, heads and head width of the two encoders.
const ENCODER_HEADS: [(usize, usize, usize); 2] = [(577, 16, 64), (729, 16, 72)];
/// Tokens in the cache at which a token is decoded.
const DEPTHS: [usize; 2] = [512, 4096];

/// One kernel at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// What is done, and to which type: `gemm/q4_0`, `attention/decode`.
    pub kernel: String,
    /// Of products `rows x outputs x inputs`; of attention `queries x keys, heads x head width` with
    /// `heads/kv heads` where they differ; of convolutions `height x width x channels`; else `rows x columns`.
    pub shape: String,
    /// Whether it belongs to a quick look: one shape of each kernel.
    pub quick: bool,
    pub(super) what: What,
}

impl Case {
    /// Whether `isa` has a kernel for it on this processor.
    pub fn runs_on(&self, isa: Isa) -> bool {
        let of_bf16 =
            matches!(self.what, What::Bf16 { .. } | What::NarrowAttention { encoder: Encoder::Bf16, .. });
        !of_bf16 || bf16::table(isa).is_some()
    }
}

/// What a case runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    Linear {
        dtype: DType,
        rows: usize,
        outputs: usize,
        inputs: usize,
    },
    /// With int8 codes that have a scale a row.
    Channel {
        rows: usize,
        outputs: usize,
        inputs: usize,
    },
    /// With both sides rounded to bfloat16, where the processor multiplies that.
    Bf16 {
        rows: usize,
        outputs: usize,
        inputs: usize,
    },
    Attention {
        attention: Attention,
        kv: KvType,
        queries: usize,
        keys: usize,
    },
    /// As an encoder in 8 bits or in bfloat16 has it, of as many keys as queries, which are rounded in it.
    NarrowAttention {
        encoder: Encoder,
        attention: Attention,
        rows: usize,
    },
    Quantize {
        rows: usize,
        columns: usize,
    },
    Norm {
        kind: NormKind,
        rows: usize,
        columns: usize,
    },
    Rope {
        style: RopeStyle,
        rows: usize,
        heads: usize,
        head_dim: usize,
    },
    Softmax {
        rows: usize,
        columns: usize,
    },
    Activation {
        act: Activation,
        rows: usize,
        columns: usize,
    },
    Glu {
        act: Activation,
        rows: usize,
        columns: usize,
    },
    Conv {
        side: usize,
        size: usize,
        stride: usize,
        groups: usize,
        channels: usize,
    },
}

/// Every kernel at every shape, those of one kernel together.
pub fn cases() -> Vec<Case> {
    let mut all = vec![];
    for dtype in TYPES {
        let name = dtype.name().to_lowercase();
        let shapes = DECODERS.map(|(outputs, inputs)| (PROMPT, outputs, inputs)).into_iter().chain(ENCODERS);
        // Rows of 4304 and 1152 are no whole number of blocks of every format; such weights stay unquantized.
        let shapes = shapes.filter(|(_, _, inputs)| dtype.row_bytes(*inputs).is_some());
        all.extend(shapes.map(|(r, o, i)| linear(&format!("gemm/{name}"), dtype, r, o, i)));
        all.extend(DECODERS.map(|(o, i)| linear(&format!("gemv/{name}"), dtype, 1, o, i)));
    }
    all.extend(ENCODERS.map(|(rows, outputs, inputs)| {
        encoder("encoder/int8", [rows, outputs, inputs], What::Channel { rows, outputs, inputs })
    }));
    all.extend(ENCODERS.map(|(rows, outputs, inputs)| {
        encoder("encoder/bf16", [rows, outputs, inputs], What::Bf16 { rows, outputs, inputs })
    }));
    for (kv, tail) in [(KvType::F16, ""), (KvType::Q8, "/q8")] {
        let causal = |kernel: &str, queries, keys| {
            let kernel = format!("attention/{kernel}{tail}");
            HEADS.map(|heads| attention(&kernel, Mask::Causal, kv, (queries, keys), heads))
        };
        all.extend(causal("prefill", PROMPT, PROMPT));
        all.extend(DEPTHS.into_iter().flat_map(|depth| causal("decode", 1, depth)));
    }
    all.extend(ENCODER_HEADS.map(|(rows, heads, head_dim)| {
        attention("attention/encode", Mask::Full, KvType::F32, (rows, rows), (heads, heads, head_dim))
    }));
    for (kernel, encoder) in
        [("attention/encode/int8", Encoder::Int8), ("attention/encode/bf16", Encoder::Bf16)]
    {
        all.extend(ENCODER_HEADS.map(|(rows, heads, head_dim)| {
            let heads = (heads, heads, head_dim);
            let float = attention(kernel, Mask::Full, KvType::F32, (rows, rows), heads);
            let What::Attention { attention, .. } = float.what else { return float };
            Case { what: What::NarrowAttention { encoder, attention, rows }, ..float }
        }));
    }
    let (width, ffn) = (2048, 5632);
    all.push(rows_of("quantize/int8", PROMPT, width, |rows, columns| What::Quantize { rows, columns }));
    all.push(rows_of("quantize/int8", PROMPT, ffn, |rows, columns| What::Quantize { rows, columns }));
    all.push(rows_of("quantize/int8", 577, 1024, |rows, columns| What::Quantize { rows, columns }));
    for (kernel, kind, rows, columns) in [
        ("norm/rms", NormKind::Rms, PROMPT, width),
        ("norm/rms", NormKind::Rms, 1, width),
        ("norm/layer", NormKind::Layer, 577, 1024),
        ("norm/layer", NormKind::Layer, 729, 1152),
    ] {
        all.push(rows_of(kernel, rows, columns, |rows, columns| What::Norm { kind, rows, columns }));
    }
    for (kernel, style, heads, head_dim) in
        [("rope/interleaved", RopeStyle::Interleaved, 16, 128), ("rope/half", RopeStyle::Half, 32, 80)]
    {
        let what = |rows, _| What::Rope { style, rows, heads, head_dim };
        all.push(rows_of(kernel, PROMPT, heads * head_dim, what));
    }
    // The tile of attention: 48 rows by 64 keys.
    all.push(rows_of("softmax/block", 48, 64, |rows, columns| What::Softmax { rows, columns }));
    for (act, rows, columns) in [
        (Activation::QuickGelu, 577, 4096),
        (Activation::GeluTanh, 729, 4304),
        (Activation::GeluErf, 144, 2048),
        (Activation::Hardswish, 576, 2048),
    ] {
        let kernel = format!("activation/{}", act.name());
        all.push(rows_of(&kernel, rows, columns, |rows, columns| What::Activation { act, rows, columns }));
    }
    let act = Activation::Silu;
    all.push(rows_of("glu/silu", PROMPT, ffn, |rows, columns| What::Glu { act, rows, columns }));
    // The projectors of MobileVLM: LDP on 24 x 24 patches, LDPv2's positions on 12 x 12.
    for (kernel, side, size, stride, groups) in [
        ("conv/depthwise", 24, 3, 1, width),
        ("conv/depthwise", 24, 3, 2, width),
        ("conv/depthwise", 12, 3, 1, width),
        ("conv/pointwise", 24, 1, 1, 1),
    ] {
        all.push(conv(kernel, side, size, stride, groups, width));
    }
    let mut last = String::new();
    for case in &mut all {
        case.quick = case.kernel != last;
        last.clone_from(&case.kernel);
    }
    all
}

fn linear(kernel: &str, dtype: DType, rows: usize, outputs: usize, inputs: usize) -> Case {
    let what = What::Linear { dtype, rows, outputs, inputs };
    case(kernel, format!("{rows}x{outputs}x{inputs}"), what)
}

fn encoder(kernel: &str, [rows, outputs, inputs]: [usize; 3], what: What) -> Case {
    case(kernel, format!("{rows}x{outputs}x{inputs}"), what)
}

fn attention(
    kernel: &str,
    mask: Mask,
    kv: KvType,
    (queries, keys): (usize, usize),
    (heads, kv_heads, head_dim): (usize, usize, usize),
) -> Case {
    let shared = if heads == kv_heads { String::new() } else { format!("/{kv_heads}") };
    let shape = format!("{queries}x{keys}, {heads}{shared}x{head_dim}");
    let cache = (mask == Mask::Causal).then_some(0);
    let scale = (head_dim as f32).powf(-0.5);
    let attention = Attention { heads, kv_heads, head_dim, scale, mask, cache };
    case(kernel, shape, What::Attention { attention, kv, queries, keys })
}

fn rows_of(kernel: &str, rows: usize, columns: usize, what: impl Fn(usize, usize) -> What) -> Case {
    case(kernel, format!("{rows}x{columns}"), what(rows, columns))
}

fn conv(kernel: &str, side: usize, size: usize, stride: usize, groups: usize, channels: usize) -> Case {
    let shape = format!("{side}x{side}x{channels}, {size}x{size}, stride {stride}");
    case(kernel, shape, What::Conv { side, size, stride, groups, channels })
}

pub(super) fn case(kernel: &str, shape: String, what: What) -> Case {
    Case { kernel: kernel.to_owned(), shape, quick: false, what }
}
