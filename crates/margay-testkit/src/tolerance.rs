//! How far a backend may be from its oracle, and why.

/// Sums of float32 products in another order, and fast `exp`, `tanh` and `erf`: the largest error over the largest
/// result.
///
/// A sum of n products in float32 is off by about `sqrt(n) * 2^-24` of its terms' size: 4e-6 at n = 4304, the widest
/// row here. A polynomial `exp` good to 2 units in the last place adds 2.4e-7.
pub const FLOAT: f64 = 1e-5;

/// Attention over keys and values rounded to half precision: the largest error over the largest result.
///
/// Rounding moves each number by up to 2^-11 = 4.9e-4 of itself. For values that is the error of the result; for keys
/// it moves a score s by about `2^-11 / sqrt(3) * |q||k| * scale / sqrt(D)`, below 1e-3 for scores of order 3, which
/// moves its weight by as much. Together below 2e-3.
pub const HALF_CACHE: f64 = 2e-3;

/// Attention over keys and values rounded to 8 bits, one scale a head: root mean square of the error over that of the
/// result.
///
/// As for [`INT8_RMS`], a row of a head of 128 normal numbers is off by `(amax / rms) / 440 = 0.65%`, a narrower one by
/// less. For values that is the error of the result. A score is off by as much of its own size, 3 where the softmax is
/// sharp, which moves its weight by 2%; where few keys share the weight, that is the error of the result. Together 2.1%,
/// and for the largest scores of a case, which reach 8 times as much where they are scaled, five times that.
pub const INT8_CACHE_RMS: f64 = 0.03;

/// The largest error that goes with [`INT8_CACHE_RMS`], as [`INT8_MAX`] does with [`INT8_RMS`].
pub const INT8_CACHE_MAX: f64 = 5.0 * INT8_CACHE_RMS;

/// A product of a quantized matrix with activations rounded to 8 bits: root mean square of the error over that of the
/// result.
///
/// The stored weight is exact to both sides (the oracle decodes it). An activation is stored as a multiple of
/// `d = amax / 127` of its block and is off by `d / sqrt(12)` on average (evenly spread rounding). Errors of a sum add
/// up as its terms do, so the ratio is `(amax / rms) / (127 sqrt(12)) = (amax / rms) / 440`. For normal activations
/// amax / rms is 2.4 on average in blocks of 32, 3.0 in blocks of 256, 3.9 in rows of 4304: 0.5% to 0.9%. Twice that
/// is allowed.
pub const INT8_RMS: f64 = 0.02;

/// As [`INT8_RMS`]: the largest error over the root mean square of the result. Of 1e5 normal errors of 0.9% none is
/// expected beyond 4.5 deviations (4%); a column that is wrong altogether is off by 140%.
pub const INT8_MAX: f64 = 0.10;

/// Layers behind one another, as in [`INT8_RMS`]: each adds errors of its own and passes on those before it. A block
/// has 4 in a row (value, attention output, up, down), each added to a residual: at most `sqrt(4)` of one, allowed
/// with the same margin.
pub const INT8_CHAIN_RMS: f64 = 2.0 * INT8_RMS;

/// The largest error that goes with [`INT8_CHAIN_RMS`].
pub const INT8_CHAIN_MAX: f64 = 2.0 * INT8_MAX;

/// What kind of arithmetic a case asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Numbers are only moved or decoded.
    Copy,
    /// Float32 arithmetic.
    Float,
    /// Keys and values go through the KV cache.
    HalfCache,
    /// One product with a quantized matrix.
    Int8,
    /// A block of layers with quantized matrices.
    Int8Chain,
}

/// A bound on the distance between a result and its oracle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Bit for bit (zeros of either sign are equal).
    Exact,
    /// Largest error over largest oracle value.
    Max(f64),
    /// Root mean square and largest error, both over the root mean square of the oracle.
    Rms {
        /// Bound on the root mean square.
        rms: f64,
        /// Bound on the largest error.
        max: f64,
    },
}

/// Which bound each class of case has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// For [`Class::Float`].
    pub float: Tolerance,
    /// For [`Class::HalfCache`].
    pub half_cache: Tolerance,
    /// For [`Class::Int8`].
    pub int8: Tolerance,
    /// For [`Class::Int8Chain`].
    pub int8_chain: Tolerance,
}

impl Policy {
    /// Everything in float32: the reference against naive loops.
    pub const FLOAT32: Policy = Policy {
        float: Tolerance::Max(FLOAT),
        half_cache: Tolerance::Max(FLOAT),
        int8: Tolerance::Max(FLOAT),
        int8_chain: Tolerance::Max(FLOAT),
    };

    /// Half precision KV cache, 8-bit activations against quantized weights: a fast backend against the reference.
    pub const FAST: Policy = Policy {
        float: Tolerance::Max(FLOAT),
        half_cache: Tolerance::Max(HALF_CACHE),
        int8: Tolerance::Rms { rms: INT8_RMS, max: INT8_MAX },
        int8_chain: Tolerance::Rms { rms: INT8_CHAIN_RMS, max: INT8_CHAIN_MAX },
    };

    /// For [`Class::HalfCache`] where the cache has 8 bits.
    pub const INT8_CACHE: Tolerance = Tolerance::Rms { rms: INT8_CACHE_RMS, max: INT8_CACHE_MAX };

    /// The bound of a class.
    pub fn of(&self, class: Class) -> Tolerance {
        match class {
            Class::Copy => Tolerance::Exact,
            Class::Float => self.float,
            Class::HalfCache => self.half_cache,
            Class::Int8 => self.int8,
            Class::Int8Chain => self.int8_chain,
        }
    }
}

/// The distance between a result and its oracle. Anything that is not a number makes it infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    /// Largest error.
    pub max_error: f64,
    /// Root mean square of the errors.
    pub rms_error: f64,
    /// Largest magnitude of the oracle.
    pub max_oracle: f64,
    /// Root mean square of the oracle.
    pub rms_oracle: f64,
}

impl Distance {
    /// Between two results of the same length; infinite where the lengths differ.
    pub fn between(result: &[f32], oracle: &[f32]) -> Self {
        let endless = Distance { max_error: f64::INFINITY, rms_error: f64::INFINITY, ..Default::default() };
        if result.len() != oracle.len() || result.iter().chain(oracle).any(|x| !x.is_finite()) {
            return endless;
        }
        let mut distance = Distance::default();
        for (a, b) in result.iter().zip(oracle) {
            let (error, b) = ((f64::from(*a) - f64::from(*b)).abs(), f64::from(*b).abs());
            distance.max_error = distance.max_error.max(error);
            distance.max_oracle = distance.max_oracle.max(b);
            distance.rms_error += error * error;
            distance.rms_oracle += b * b;
        }
        let count = oracle.len().max(1) as f64;
        distance.rms_error = (distance.rms_error / count).sqrt();
        distance.rms_oracle = (distance.rms_oracle / count).sqrt();
        distance
    }

    /// Whether the distance is within `tolerance`.
    pub fn within(&self, tolerance: Tolerance) -> bool {
        match tolerance {
            Tolerance::Exact => self.max_error == 0.0,
            Tolerance::Max(max) => self.max_error <= max * self.max_oracle,
            Tolerance::Rms { rms, max } => {
                self.rms_error <= rms * self.rms_oracle && self.max_error <= max * self.rms_oracle
            }
        }
    }

    /// Largest error over largest oracle value: 0 where both are 0, infinite where only the oracle is.
    pub fn relative(&self) -> f64 {
        match (self.max_error, self.max_oracle) {
            (0.0, _) => 0.0,
            (_, 0.0) => f64::INFINITY,
            (error, oracle) => error / oracle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_measure_what_they_say_and_nonsense_is_infinitely_far() {
        let d = Distance::between(&[1.0, -2.0, 0.0, 1.0], &[1.0, -4.0, 0.0, 0.0]);
        assert_eq!((d.max_error, d.max_oracle), (2.0, 4.0));
        assert!((d.rms_error - (5.0f64 / 4.0).sqrt()).abs() < 1e-15);
        assert!(d.within(Tolerance::Max(0.5)) && !d.within(Tolerance::Max(0.49)));
        assert!(
            d.within(Tolerance::Rms { rms: 0.6, max: 1.0 })
                && !d.within(Tolerance::Rms { rms: 0.5, max: 1.0 })
        );
        assert!(!d.within(Tolerance::Rms { rms: 0.6, max: 0.5 }));
        for (a, b) in [(f32::NAN, 0.0), (0.0, f32::NAN), (f32::INFINITY, f32::INFINITY)] {
            assert!(!Distance::between(&[a], &[b]).within(Tolerance::Max(1e30)));
        }
        assert!(!Distance::between(&[1.0], &[1.0, 1.0]).within(Tolerance::Max(1e30)));
        assert!(Distance::between(&[], &[]).within(Tolerance::Exact));
        assert!(Distance::between(&[0.0], &[-0.0]).within(Tolerance::Exact));
        assert_eq!(Distance::between(&[1.0], &[0.0]).relative(), f64::INFINITY);
    }
}
