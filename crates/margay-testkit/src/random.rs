//! Numbers that look random and depend on a seed alone, on every machine.

/// A seeded generator (SplitMix64). Not for secrets.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of that seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The generator of a name, so that a case draws the same numbers wherever it stands in a list (FNV-1a).
    pub fn named(name: &str) -> Self {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Rng(hash)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly spread in 0..1.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly spread in `0..n`; 0 where n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// Normally distributed with mean 0 and variance 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// `len` normal numbers of that standard deviation.
    pub fn normals(&mut self, len: usize, deviation: f64) -> Vec<f32> {
        (0..len).map(|_| (self.normal() * deviation) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_their_moments_and_repeat() {
        let values = Rng::new(1).normals(100_000, 2.0);
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e5;
        let variance = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 1e5;
        // Five standard errors: 2 / sqrt(n), and 4 sqrt(2 / n).
        assert!(mean.abs() < 0.032, "{mean}");
        assert!((variance - 4.0).abs() < 0.09, "{variance}");
        assert_eq!(values, Rng::new(1).normals(100_000, 2.0));
        assert_ne!(values[..8], Rng::new(2).normals(8, 2.0));
        assert_eq!(Rng::named("a").bits(), Rng::named("a").bits());
        assert_ne!(Rng::named("a").bits(), Rng::named("b").bits());
    }

    #[test]
    fn below_reaches_every_number_and_no_other() {
        let mut rng = Rng::new(3);
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[rng.below(7)] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        assert_eq!(rng.below(0), 0);
    }
}
