//! The KV cache, laid out for the attention kernels.
//!
//! Tokens lie in blocks of 64, each of which holds all layers, is of a type of its own and may be shared with other
//! conversations: a state has a table of them. Within a block, what a layer's head has is one piece of memory: keys
//! `[4][D][16]`, of which 16 keys are one panel of the scores, then values `[D' / 16][64][16]`, of which 16 columns are one
//! panel of the result, with D' the head dimension rounded up to 16; then scales, where the type has any. What types the
//! kernels do not multiply as they are stored look like is told in [`codec`].

pub(crate) mod codec;
mod observe;
mod state;
mod table;
mod turn;

use crate::kernels::{attention::KEYS, float::NR};

pub(crate) use state::KvState;
pub(crate) use table::{KvBlock, KvLayer, KvPlan, KvTable};
pub(crate) use turn::KeyRope;

/// Tokens of a block of the cache.
pub const BLOCK_TOKENS: usize = KEYS;

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
    /// channel). Scales of 32 channels each lower that by a twentieth to a third: that is [`KvType::Q8_0`].
    Q8,
    /// 8-bit integers with a half precision scale for 32 channels of a token. Source: llama.cpp's Q8_0.
    Q8_0,
    /// 4-bit integers with a half precision scale for 32 channels of a token; the number of largest magnitude is -8 of
    /// them. Source: llama.cpp's Q4_0.
    Q4_0,
    /// 8-bit floats with 4 bits of exponent and 3 of fraction, and a scale for the key and for the value of a token and
    /// head that makes their largest number 448. Source: Micikevicius et al., FP8 Formats for Deep Learning, arXiv
    /// 2209.05433 (E4M3).
    Fp8,
    /// 2-bit integers with a half precision scale and minimum: of 32 tokens of a channel for keys, of 32 channels of a
    /// token for values. A block is kept in half precision until it is full and a later call begins, so that the newest
    /// tokens are exact. Source: Liu et al., KIVI, arXiv 2402.02750, of which the residual here is 1 to 64 tokens, and what
    /// a call appends.
    Kivi2,
}

/// How many there are.
const TYPES: usize = KvType::ALL.len();

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 7] =
        [KvType::F16, KvType::F32, KvType::Q8, KvType::Q8_0, KvType::Q4_0, KvType::Fp8, KvType::Kivi2];

    /// Lower-case name: `f16`, `f32`, `q8`, `q8_0`, `q4_0`, `fp8`, `kivi2`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
            KvType::Q8 => "q8",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
            KvType::Fp8 => "fp8",
            KvType::Kivi2 => "kivi2",
        }
    }

    /// The one of that name, in any letter case.
    pub fn from_name(name: &str) -> Option<KvType> {
        KvType::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// Bytes that keys and values of so many tokens take in one layer: whole blocks of 64 tokens, heads filled up to 16
    /// columns of values, scales counted. `None` where they overflow. A block that is not full yet takes what
    /// [`KvType::while_open`] takes.
    pub fn layer_bytes(self, kv_heads: usize, head_dim: usize, tokens: usize) -> Option<usize> {
        let blocks = tokens.checked_next_multiple_of(KEYS)? / KEYS;
        self.block_bytes(head_dim)?.checked_mul(kv_heads)?.checked_mul(blocks)
    }

    /// Bits of a number without its scales.
    pub fn bits(self) -> usize {
        match self {
            KvType::F32 => 32,
            KvType::F16 => 16,
            KvType::Q8 | KvType::Q8_0 | KvType::Fp8 => 8,
            KvType::Q4_0 => 4,
            KvType::Kivi2 => 2,
        }
    }

    /// The type of a block that is still being filled: another one where numbers are stored by several tokens at once.
    pub fn while_open(self) -> KvType {
        match self {
            KvType::Kivi2 => KvType::F16,
            kind => kind,
        }
    }

    /// Bytes that one head has of a block, a multiple of 64, or `None` where they overflow.
    pub(crate) fn block_bytes(self, head_dim: usize) -> Option<usize> {
        let sizes = codec::Sizes::new(self, head_dim)?;
        sizes.keys.checked_add(sizes.values)?.checked_add(sizes.scales)?.checked_next_multiple_of(64)
    }
}

/// The head dimension rounded up to 16: the columns of values.
pub(crate) fn wide(head_dim: usize) -> usize {
    head_dim.next_multiple_of(NR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_numbered_in_the_order_of_their_list_and_found_by_name() {
        for (at, kind) in KvType::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            assert_eq!(KvType::from_name(&kind.name().to_uppercase()), Some(kind));
            assert!(kind.while_open().while_open() == kind.while_open());
            assert!(kind.layer_bytes(1, usize::MAX / 2, 64).is_none());
        }
        assert_eq!(KvType::from_name("q3"), None);
    }

    #[test]
    fn a_layer_takes_the_bytes_that_its_numbers_and_scales_add_up_to() {
        // 100 tokens are two blocks; 72 columns of a value take the room of 80, and are three groups of 32.
        let (numbers, groups) = (128 * 3 * (72 + 80), 128 * 3 * 2 * 3);
        let bytes = |kind: KvType| kind.layer_bytes(3, 72, 100).unwrap();
        assert_eq!(bytes(KvType::F32), 4 * numbers);
        assert_eq!(bytes(KvType::F16), 2 * numbers);
        assert_eq!(bytes(KvType::Q8), numbers + 128 * 3 * 2 * 4);
        assert_eq!(bytes(KvType::Fp8), bytes(KvType::Q8));
        assert_eq!(bytes(KvType::Q8_0), numbers + 2 * groups);
        assert_eq!(bytes(KvType::Q4_0), numbers / 2 + 2 * groups);
        // Scale and minimum, of keys for each channel and 32 tokens, of values for each token and 32 channels.
        assert_eq!(bytes(KvType::Kivi2), numbers / 4 + 2 * 3 * (2 * 72 * 4 + 64 * 3 * 4));
        // 4.5 and 3 bits a number, where heads are whole groups.
        assert_eq!(KvType::Q4_0.layer_bytes(1, 128, 64), Some(2 * 128 * 64 * 9 / 16));
        assert_eq!(KvType::Kivi2.layer_bytes(1, 128, 64), Some(2 * 128 * 64 * 3 / 8));
    }
}
