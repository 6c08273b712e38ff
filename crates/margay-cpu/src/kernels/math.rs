//! Elementary functions in float32, written without branches so that a loop over them becomes SIMD code.
//!
//! Only additions, products, fused multiply-adds and bit operations in a fixed order: every instruction set gives the
//! same bits.

use margay_graph::Activation;

/// Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even, for |x| < 2^22.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// The greater of two; a NaN is never the greater one, unless it is the first.
#[inline(always)]
pub(crate) fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Partial results as one, in a fixed order: halves on halves. Of `LANES`, a power of two.
#[inline(always)]
pub(crate) fn join<const LANES: usize>(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The polynomial with these coefficients, that of the highest power first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let [first, rest @ ..] = &coefficients[..] else { return 0.0 };
    rest.iter().fold(*first, |sum, c| sum.mul_add(x, *c))
}

/// e^x with a relative error below 2e-7; arguments beyond the range of normal numbers are clamped, NaN stays NaN.
///
/// The range reduction is that of Cephes `expf`. The polynomial is the one of degree 5 that begins with 1 and whose
/// greatest relative error on |x| <= ln(2) / 2 is the least, 9.2e-8 (weighted least squares, reweighted until level).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const MINUS_LN2_HIGH: f32 = -0.693_359_4;
    const MINUS_LN2_LOW: f32 = 2.121_944_4e-4;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(MINUS_LN2_HIGH, x);
    let r = n.mul_add(MINUS_LN2_LOW, r);
    let y = polynomial(r, [8.290_272e-3, 4.189_816e-2, 1.666_763_9e-1, 4.999_914_8e-1, 9.999_997e-1, 1.0]);
    // The low bits of `shifted` hold n; the clamp keeps n + 127 within 1..=254.
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    y * power
}

/// The polynomial of [`exp2`], that of the highest power first.
#[allow(clippy::approx_constant, reason = "a coefficient near ln 2, and better here")]
pub(crate) const EXP2: [f32; 6] =
    [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147, 1.0];

/// 2^x for x <= 0 with a relative error below 3e-7; below -126 it is 0, and NaN stays NaN.
///
/// Fused multiply-adds: a processor without them pays with library calls, and all agree bit for bit. The polynomial is
/// 1 at 0 and else the one of degree 5 that is nearest to 2^r on [-1/2, 1/2]: off by 9.1e-8 of it at most, by Lawson's
/// iteration.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let y = polynomial(r, EXP2);
    // The low bits of `shifted` hold the integer, which is at least -126 where the result is used.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -126.0 { 0.0 } else { y * power }
}

/// The error function with an absolute error below 4e-7.
///
/// Source: the rational approximation on [-4, 4] used by Eigen (`generic_fast_erf_float`, before 2023).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let x2 = x * x;
    let p = polynomial(
        x2,
        [
            -2.726_142_3e-10,
            2.770_681_5e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_4e-2,
        ],
    );
    let q = polynomial(x2, [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_474e-2]);
    let y = x * p / q;
    // Near 4 the quotient exceeds 1 by some units in the last place.
    let y = if y > 1.0 { 1.0 } else { y };
    if y < -1.0 { -1.0 } else { y }
}

/// x / (1 + e^-t)
#[inline(always)]
fn times_sigmoid(x: f32, t: f32) -> f32 {
    x / (1.0 + exp(-t))
}

#[inline(always)]
fn relu6(x: f32) -> f32 {
    let x = if x < 0.0 { 0.0 } else { x };
    if x > 6.0 { 6.0 } else { x }
}

/// Applies `f` to each element.
#[inline(always)]
fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in x {
        *x = f(*x);
    }
}

/// Sets `gate[i]` to `f(gate[i]) * up[i]`.
#[inline(always)]
fn gated(gate: &mut [f32], up: &[f32], f: impl Fn(f32) -> f32) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = f(*gate) * up;
    }
}

/// tanh-GELU is x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)): the factors of x and of x^3.
const TWICE_SQRT_2_PI: f32 = 1.595_769;
const CUBIC: f32 = 1.595_769 * 0.044_715;

macro_rules! by_activation {
    ($act:expr, $apply:ident, $out:expr $(, $gate:expr)?) => {
        match $act {
            Activation::Silu => $apply($out, $($gate,)? |x| times_sigmoid(x, x)),
            Activation::GeluErf => $apply($out, $($gate,)? |x| {
                let half = 0.5 * x;
                half.mul_add(erf(x * std::f32::consts::FRAC_1_SQRT_2), half)
            }),
            Activation::GeluTanh => $apply($out, $($gate,)? |x| {
                let factor = (x * x).mul_add(CUBIC, TWICE_SQRT_2_PI);
                times_sigmoid(x, x * factor)
            }),
            Activation::QuickGelu => $apply($out, $($gate,)? |x| times_sigmoid(x, 1.702 * x)),
            Activation::Relu => $apply($out, $($gate,)? |x| if x < 0.0 { 0.0 } else { x }),
            Activation::Hardswish => $apply($out, $($gate,)? |x| x * relu6(x + 3.0) / 6.0),
            Activation::Hardsigmoid => $apply($out, $($gate,)? |x| relu6(x + 3.0) / 6.0),
            Activation::Sigmoid => $apply($out, $($gate,)? |x| times_sigmoid(1.0, x)),
        }
    };
}

/// `x = act(x)`
#[inline(always)]
pub(crate) fn activate(act: Activation, x: &mut [f32]) {
    by_activation!(act, each, x);
}

/// `gate = act(gate) * up`
#[inline(always)]
pub(crate) fn glu(act: Activation, gate: &mut [f32], up: &[f32]) {
    by_activation!(act, gated, gate, up);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Maclaurin series, good to 1e-12 for |x| <= 4.
    fn erf64(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn grid(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (0..=200_000).map(move |i| from + (to - from) * i as f32 / 200_000.0)
    }

    #[test]
    fn exp_is_within_2e_7_of_the_exact_value() {
        for x in grid(-86.9, 88.0) {
            let exact = f64::from(x).exp();
            let got = exp(x);
            assert!((f64::from(got) - exact).abs() <= 2e-7 * exact, "exp({x}) = {got}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(1e9) > 1e38);
    }

    #[test]
    fn exp2_is_within_3e_7_of_the_exact_value() {
        for x in grid(-126.0, 0.0) {
            let exact = f64::from(x).exp2();
            assert!((f64::from(exp2(x)) - exact).abs() <= 3e-7 * exact, "exp2({x}) = {}", exp2(x));
        }
        assert!(exp2(f32::NAN).is_nan() && exp2(f32::from_bits(0x7fc0_0001)).is_nan());
        assert_eq!([exp2(0.0), exp2(-1e30), exp2(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn erf_is_within_4e_7_of_the_exact_value() {
        for x in grid(-3.99, 3.99).step_by(17) {
            assert!((f64::from(erf(x)) - erf64(f64::from(x))).abs() <= 4e-7, "erf({x})");
        }
        assert_eq!(erf(9.0), erf(4.0));
        assert!((erf(9.0) - 1.0).abs() < 4e-7 && erf(f32::NAN).is_nan());
    }

    #[test]
    fn activations_are_within_4e_7_of_their_definition() {
        fn exact(act: Activation, x: f64) -> f64 {
            let tanh_arg = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            match act {
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::GeluErf if x.abs() < 5.0 => 0.5 * x * (1.0 + erf64(x / 2f64.sqrt())),
                Activation::GeluErf => x.max(0.0),
                Activation::GeluTanh => 0.5 * x * (1.0 + tanh_arg.tanh()),
                Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
                Activation::Relu => x.max(0.0),
                Activation::Hardswish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
                Activation::Hardsigmoid => (x + 3.0).clamp(0.0, 6.0) / 6.0,
                Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            }
        }
        for act in Activation::ALL {
            for x in grid(-30.0, 30.0).step_by(37) {
                let (mut got, want) = ([x], exact(act, f64::from(x)));
                activate(act, &mut got);
                // gelu's tail beyond |x| = 5 is x * 4e-7 at most.
                let bound = 4e-7 * want.abs().max(1.0) + if act == Activation::GeluErf { 5e-6 } else { 0.0 };
                assert!((f64::from(got[0]) - want).abs() <= bound, "{act:?}({x}) = {}, not {want}", got[0]);
                let mut gate = [x];
                glu(act, &mut gate, &[3.0]);
                assert_eq!(gate[0], 3.0 * got[0], "{act:?}");
            }
        }
    }
}
