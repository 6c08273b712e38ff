//! Kernels over rows of float32 that are the same code for every instruction set, compiled once for each.
//!
//! Sums run over [`LANES`] partial sums in a fixed order, so every instruction set gives the same bits.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::math;
use margay_graph::Activation;

/// Rows whose largest number is no larger are quantized to zeros: 127 over it is near the end of float32, or beyond.
pub(super) const NOTHING: f32 = 1e-36;
/// Partial sums of a reduction.
const LANES: usize = 16;

/// One function a kernel, for one instruction set.
#[allow(
    clippy::type_complexity,
    reason = "plain slices; aliases would hide what is read and what is written"
)]
pub(crate) struct RowKernels {
    /// `x = act(x)`
    pub(crate) activate: fn(Activation, &mut [f32]),
    /// `gate = act(gate) * up`
    pub(crate) glu: fn(Activation, &mut [f32], &[f32]),
    /// `x += y`
    pub(crate) add: fn(&mut [f32], &[f32]),
    /// `x *= y`
    pub(crate) mul: fn(&mut [f32], &[f32]),
    /// `x *= factor`
    pub(crate) scale: fn(&mut [f32], f32),
    /// `acc += x * y`, element by element.
    pub(crate) add_product: fn(&mut [f32], &[f32], &[f32]),
    /// `y = x / sqrt(mean(x^2) + eps) * weight`, of x, y, weight and eps.
    pub(crate) rms_norm: fn(&[f32], &mut [f32], &[f32], f32),
    /// `y = (x - mean) / sqrt(var + eps) * weight + bias`, of x, y, weight, bias and eps.
    pub(crate) layer_norm: fn(&[f32], &mut [f32], &[f32], Option<&[f32]>, f32),
    /// Turns pairs (i, i + n) of one head; x: [2n], cos, sin: [n].
    pub(crate) rope_half: fn(&mut [f32], &[f32], &[f32]),
    /// Turns pairs (2i, 2i + 1) of one head; x: [2n], cos, sin: [n].
    pub(crate) rope_interleaved: fn(&mut [f32], &[f32], &[f32]),
    /// Quantizes a row to int8 in groups of 32: codes, scales [n/32], sums of codes of each 16 [n/16] and 32 [n/32],
    /// and of both the [`Rows::starts16`] and [`Rows::starts32`].
    ///
    /// [`Rows::starts16`]: crate::kernels::quant::Rows::starts16
    /// [`Rows::starts32`]: crate::kernels::quant::Rows::starts32
    pub(crate) quantize: Quantize,
    /// Quantizes a whole row to int8: codes; gives the scale and the sum of codes.
    pub(crate) quantize_row: fn(&[f32], &mut [i8]) -> (f32, i32),
    /// To bfloat16, ties to even.
    pub(crate) round_to_bf16: fn(&[f32], &mut [u16]),
    /// The bits of integer sums to `(sum - offset) * scales * factor + bias`.
    pub(crate) scale_sums: fn(&mut [f32], &[f32], i32, f32, Option<&[f32]>),
}

/// See [`RowKernels::quantize`].
pub(crate) type Quantize =
    fn(&[f32], &mut [i8], &mut [f32], &mut [f32], &mut [f32], &mut [[i16; 2]], &mut [[i16; 2]]);

mod body {
    use super::{Activation, LANES, NOTHING, math};

    #[inline(always)]
    pub(super) fn activate(act: Activation, x: &mut [f32]) {
        math::activate(act, x);
    }

    #[inline(always)]
    pub(super) fn glu(act: Activation, gate: &mut [f32], up: &[f32]) {
        math::glu(act, gate, up);
    }

    #[inline(always)]
    pub(super) fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }

    #[inline(always)]
    pub(super) fn mul(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x *= y;
        }
    }

    #[inline(always)]
    pub(super) fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }

    #[inline(always)]
    pub(super) fn add_product(acc: &mut [f32], x: &[f32], y: &[f32]) {
        for ((acc, x), y) in acc.iter_mut().zip(x).zip(y) {
            *acc += x * y;
        }
    }

    /// Folds `f(element)` into partial results and those into one, in a fixed order.
    #[inline(always)]
    fn reduce(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [start; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = f(*lane, *x);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane = f(*lane, *x);
        }
        math::join(lanes, join)
    }

    #[inline(always)]
    pub(super) fn rms_norm(x: &[f32], y: &mut [f32], weight: &[f32], eps: f32) {
        let squares = reduce(x, 0.0, |sum, x| sum + x * x, |a, b| a + b);
        let factor = 1.0 / (squares / x.len() as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * factor * w;
        }
    }

    #[inline(always)]
    pub(super) fn layer_norm(x: &[f32], y: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
        let mean = reduce(x, 0.0, |sum, x| sum + x, |a, b| a + b) / x.len() as f32;
        let squares = reduce(x, 0.0, |sum, x| sum + (x - mean) * (x - mean), |a, b| a + b);
        let factor = 1.0 / (squares / x.len() as f32 + eps).sqrt();
        match bias {
            Some(bias) => {
                for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (x - mean) * factor * w + b;
                }
            }
            None => {
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                    *y = (x - mean) * factor * w;
                }
            }
        }
    }

    #[inline(always)]
    pub(super) fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (low, high) = x.split_at_mut(cos.len());
        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }

    #[inline(always)]
    pub(super) fn rope_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        for ((pair, c), s) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * c - b * s, b * c + a * s];
        }
    }

    /// The bits of the largest |x|. Compared as integers they order like the numbers, with NaN above all, so that NaN and
    /// infinity reach the scale and thereby the result.
    #[inline(always)]
    fn largest(x: &[f32]) -> f32 {
        let mut top = [0u32; 8];
        let (eights, rest) = x.as_chunks::<8>();
        for x in eights {
            for (top, x) in top.iter_mut().zip(x) {
                *top = (*top).max(x.to_bits() & 0x7fff_ffff);
            }
        }
        let rest = rest.iter().fold(0, |top, x| u32::max(top, x.to_bits() & 0x7fff_ffff));
        f32::from_bits(top.into_iter().fold(rest, u32::max))
    }

    /// The integer nearest to `x * inverse`, ties to even; that is at most 127 but for rounding.
    #[inline(always)]
    pub(super) fn code(x: f32, inverse: f32) -> i32 {
        let shifted = x * inverse + math::ROUND;
        (shifted.to_bits() as i32).wrapping_sub(math::ROUND.to_bits() as i32).clamp(-127, 127)
    }

    #[inline(always)]
    pub(super) fn quantize_row(x: &[f32], q: &mut [i8]) -> (f32, i32) {
        let max = largest(x);
        let inverse = if max > NOTHING { 127.0 / max } else { 0.0 };
        let mut total = 0;
        for (q, x) in q.iter_mut().zip(x) {
            let code = code(*x, inverse);
            total += code;
            *q = code as i8;
        }
        (max / 127.0, total)
    }

    #[inline(always)]
    pub(super) fn round_to_bf16(x: &[f32], y: &mut [u16]) {
        for (y, x) in y.iter_mut().zip(x) {
            let bits = x.to_bits();
            // A carry into the exponent is the next power of two, or infinity.
            let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            // The highest bit of its fraction keeps a NaN one.
            let nan = bits >> 16 | 0x40;
            *y = if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { nearest } as u16;
        }
    }

    #[inline(always)]
    pub(super) fn scale_sums(
        sums: &mut [f32],
        scales: &[f32],
        offset: i32,
        factor: f32,
        bias: Option<&[f32]>,
    ) {
        let scaled =
            |sum: f32, scale: f32| (sum.to_bits() as i32).wrapping_sub(offset) as f32 * scale * factor;
        let sums = sums.iter_mut().zip(scales);
        match bias {
            Some(bias) => sums.zip(bias).for_each(|((sum, scale), bias)| *sum = scaled(*sum, *scale) + bias),
            None => sums.for_each(|(sum, scale)| *sum = scaled(*sum, *scale)),
        }
    }

    #[inline(always)]
    pub(super) fn quantize(
        x: &[f32],
        q: &mut [i8],
        scale: &mut [f32],
        sum16: &mut [f32],
        sum32: &mut [f32],
        starts16: &mut [[i16; 2]],
        starts32: &mut [[i16; 2]],
    ) {
        let groups = x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0);
        let sums = sum16.as_chunks_mut::<2>().0.iter_mut().zip(sum32);
        let starts = starts16.as_chunks_mut::<2>().0.iter_mut().zip(starts32);
        for ((((x, q), scale), (sum16, sum32)), (starts16, start32)) in
            groups.zip(scale).zip(sums).zip(starts)
        {
            let max = largest(x);
            let inverse = if max > NOTHING { 127.0 / max } else { 0.0 };
            *scale = max / 127.0;
            let mut codes = [0i32; 32];
            for (code, x) in codes.iter_mut().zip(x) {
                *code = self::code(*x, inverse);
            }
            for (q, code) in q.iter_mut().zip(&codes) {
                *q = *code as i8;
            }
            for (start, codes) in starts16.iter_mut().zip(codes.as_chunks::<16>().0) {
                let mut four = [0; 4];
                for codes in codes.as_chunks::<4>().0 {
                    for (sum, code) in four.iter_mut().zip(codes) {
                        *sum -= code;
                    }
                }
                *start = [(four[0] + four[1]) as i16, (four[2] + four[3]) as i16];
            }
            let [low, high] = starts16.map(|[even, odd]| -(i32::from(even) + i32::from(odd)));
            *sum16 = [low as f32, high as f32];
            *sum32 = (low + high) as f32;
            *start32 = [starts16[0][0] + starts16[1][0], starts16[0][1] + starts16[1][1]];
        }
    }
}

macro_rules! kernels {
    ($($name:ident: ($($arg:ident: $type:ty),*) $(-> $ret:ty)?;)*) => {
        kernels!(@module portable, [], $($name: ($($arg: $type),*) $(-> $ret)?;)*);
        #[cfg(target_arch = "x86_64")]
        kernels!(@module avx2, [#[target_feature(enable = "avx2,fma,f16c")]],
            $($name: ($($arg: $type),*) $(-> $ret)?;)*);
    };
    (@module $module:ident, [$($feature:tt)*], $($name:ident: ($($arg:ident: $type:ty),*) $(-> $ret:ty)?;)*) => {
        mod $module {
            use super::{Activation, RowKernels, body};
            kernels!(@functions [$($feature)*], $($name: ($($arg: $type),*) $(-> $ret)?;)*);
            pub(super) const TABLE: RowKernels = RowKernels { $($name),* };
        }
    };
    (@functions $feature:tt, $($name:ident: $args:tt $(-> $ret:ty)?;)*) => {
        $(kernels!(@function $feature $name $args $(-> $ret)?);)*
    };
    (@function [$($feature:tt)*] $name:ident ($($arg:ident: $type:ty),*) $(-> $ret:ty)?) => {
        fn $name($($arg: $type),*) $(-> $ret)? {
            $($feature)*
            fn inner($($arg: $type),*) $(-> $ret)? {
                body::$name($($arg),*)
            }
            #[allow(unused_unsafe, reason = "the portable module enables no features")]
            // SAFETY: `table` hands a module out only for an instruction set the processor was found to have.
            unsafe {
                inner($($arg),*)
            }
        }
    };
}

kernels! {
    activate: (act: Activation, x: &mut [f32]);
    glu: (act: Activation, gate: &mut [f32], up: &[f32]);
    add: (x: &mut [f32], y: &[f32]);
    mul: (x: &mut [f32], y: &[f32]);
    scale: (x: &mut [f32], factor: f32);
    add_product: (acc: &mut [f32], x: &[f32], y: &[f32]);
    rms_norm: (x: &[f32], y: &mut [f32], weight: &[f32], eps: f32);
    layer_norm: (x: &[f32], y: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32);
    rope_half: (x: &mut [f32], cos: &[f32], sin: &[f32]);
    rope_interleaved: (x: &mut [f32], cos: &[f32], sin: &[f32]);
    quantize: (x: &[f32], q: &mut [i8], scale: &mut [f32], sum16: &mut [f32], sum32: &mut [f32],
        starts16: &mut [[i16; 2]], starts32: &mut [[i16; 2]]);
    quantize_row: (x: &[f32], q: &mut [i8]) -> (f32, i32);
    round_to_bf16: (x: &[f32], y: &mut [u16]);
    scale_sums: (sums: &mut [f32], scales: &[f32], offset: i32, factor: f32, bias: Option<&[f32]>);
}

static PORTABLE: RowKernels = portable::TABLE;
#[cfg(target_arch = "x86_64")]
static AVX2: RowKernels =
    RowKernels { quantize: x86::quantize, quantize_row: x86::quantize_row, ..avx2::TABLE };

/// The kernels of `isa`, which the processor must have.
pub(crate) fn table(isa: crate::Isa) -> &'static RowKernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx2 | crate::Isa::AvxVnni | crate::Isa::Avx512 => &AVX2,
        _ => &PORTABLE,
    }
}
