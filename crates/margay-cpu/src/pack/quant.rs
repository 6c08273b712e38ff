//! Quantized matrices in panels of 16 rows.
//!
//! Every format becomes codes and per-group scales. Codes lie in chunks of 4 neighbours along k for each of the 16
//! rows of a panel, `[k/4][16][4]` bytes, so that a 64-byte line holds the same 4 columns of all rows. Smaller codes
//! share bytes, in whichever way takes the fewest instructions to take apart:
//!
//! * 4 bits, 8 columns, `[k/8][16][4]`: chunk 2i is the low nibbles, chunk 2i + 1 the high ones.
//! * 5 bits, 32 columns, `[k/32][5][16][4]`: line i < 4 has chunk i in its low 5 bits and the high 3 of chunk 4 + i above
//!   them; the last line has the low 2 bits of chunks 4 to 7, those of chunk 4 at the top.
//! * 6 bits, 16 columns, `[k/16][3][16][4]`: line i has chunk i in its low 6 bits, and above them 2 bits of chunk 3, the
//!   highest in the first line.
//!
//! Scales lie beside, in the precision of the file, so that decode reads about as many bytes as the file has.

use super::float::SharedBytes;
use crate::{lines::Arena, threads::Pool};
use margay_graph::BackendError;
use margay_quant::{field, formats::*, k_scales};
use margay_tensor::{DType, Storage, Tensor};

/// Outputs (rows of the weight) that a panel interleaves.
pub(crate) const PANEL: usize = 16;

/// What the codes are, which decides how many products fit 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Codes {
    /// 0..=15, two a byte.
    U4,
    /// 0..=31, 8 in 5 bytes.
    U5,
    /// 0..=63, 4 in 3 bytes.
    U6,
    /// -128..=127, one a byte.
    I8,
}

impl Codes {
    pub(crate) fn bits(self) -> usize {
        match self {
            Codes::U4 => 4,
            Codes::U5 => 5,
            Codes::U6 => 6,
            Codes::I8 => 8,
        }
    }
}

/// What stands between code and weight besides the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Offset {
    /// `s * q`
    None,
    /// `s * (q - zero)`
    Zero(u8),
    /// `s * q + m`
    Min,
}

/// What a kernel has to know of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) codes: Codes,
    /// Scales within 32 columns: 1 or 2.
    pub(crate) halves: usize,
    pub(crate) offset: Offset,
}

/// How the scales of a panel are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scaling {
    /// Per 32 columns: `[16]` f16 scales, with [`Offset::Min`] then `[16]` f16 minima.
    Plain,
    /// Per 256 columns: `[16]` f16 scales of scales, with [`Offset::Min`] then `[16]` f16 scales of minima (to be
    /// subtracted); then per group `[16]` bytes of scales and, with a minimum, `[16]` of minima.
    Super {
        /// Whether the scales are signed bytes.
        signed: bool,
    },
}

/// One block of a row, taken apart.
struct Block {
    codes: [u8; 256],
    d: [u8; 2],
    m: [u8; 2],
    scales: [u8; 16],
    mins: [u8; 16],
}

type TakeApart = fn(&[u8], &mut Block);

/// The formats that have a packed form.
fn recipe(dtype: DType) -> Option<(Kind, Scaling, TakeApart)> {
    use Codes::*;
    let kind = |codes, halves, offset| Kind { codes, halves, offset };
    let (plain, k_quant) = (Scaling::Plain, Scaling::Super { signed: false });
    let signed = Scaling::Super { signed: true };
    Some(match dtype {
        DType::Q4_0 => (kind(U4, 1, Offset::Zero(q4_0::ZERO as u8)), plain, take_q4_0),
        DType::Q4_1 => (kind(U4, 1, Offset::Min), plain, take_q4_1),
        DType::Q5_0 => (kind(U5, 1, Offset::Zero(q5_0::ZERO as u8)), plain, take_q5_0),
        DType::Q5_1 => (kind(U5, 1, Offset::Min), plain, take_q5_1),
        DType::Q8_0 => (kind(I8, 1, Offset::None), plain, take_q8_0),
        DType::IQ4_NL => (kind(I8, 1, Offset::None), plain, take_iq4_nl),
        DType::Q2_K => (kind(U4, 2, Offset::Min), k_quant, take_q2_k),
        DType::Q3_K => (kind(U4, 2, Offset::Zero(q3_k::ZERO as u8)), signed, take_q3_k),
        DType::Q4_K => (kind(U4, 1, Offset::Min), k_quant, take_q4_k),
        DType::Q5_K => (kind(U5, 1, Offset::Min), k_quant, take_q5_k),
        DType::Q6_K => (kind(U6, 2, Offset::Zero(q6_k::ZERO as u8)), signed, take_q6_k),
        _ => return None,
    })
}

/// An infinite scale becomes one that is no number: kernels may scale a sum by parts, of which infinity would make
/// something else than of the sum.
fn number_or_nan(half: [u8; 2]) -> [u8; 2] {
    if half[1] & 0x7c == 0x7c { [0, 0x7e] } else { half }
}

fn nibbles(bytes: &[u8; 16], codes: &mut [u8; 32]) {
    for (j, byte) in bytes.iter().enumerate() {
        codes[j] = byte & 15;
        codes[j + 16] = byte >> 4;
    }
}

fn fifth_bits(bits: &[u8; 4], codes: &mut [u8; 32]) {
    let bits = u32::from_le_bytes(*bits);
    for (j, code) in codes.iter_mut().enumerate() {
        *code |= ((bits >> j & 1) << 4) as u8;
    }
}

fn first32(block: &mut Block) -> &mut [u8; 32] {
    block.codes.first_chunk_mut().expect("invariant: 256 codes begin with 32")
}

fn take_q4_0(b: &[u8], out: &mut Block) {
    out.d = *field(b, q4_0::SCALE);
    nibbles(field(b, q4_0::QUANTS), first32(out));
}

fn take_q4_1(b: &[u8], out: &mut Block) {
    (out.d, out.m) = (*field(b, q4_1::SCALE), *field(b, q4_1::MIN));
    nibbles(field(b, q4_1::QUANTS), first32(out));
}

fn take_q5_0(b: &[u8], out: &mut Block) {
    out.d = *field(b, q5_0::SCALE);
    nibbles(field(b, q5_0::QUANTS), first32(out));
    fifth_bits(field(b, q5_0::HIGH_BITS), first32(out));
}

fn take_q5_1(b: &[u8], out: &mut Block) {
    (out.d, out.m) = (*field(b, q5_1::SCALE), *field(b, q5_1::MIN));
    nibbles(field(b, q5_1::QUANTS), first32(out));
    fifth_bits(field(b, q5_1::HIGH_BITS), first32(out));
}

fn take_q8_0(b: &[u8], out: &mut Block) {
    out.d = *field(b, q8_0::SCALE);
    *first32(out) = *field(b, q8_0::QUANTS);
}

fn take_iq4_nl(b: &[u8], out: &mut Block) {
    out.d = *field(b, iq4_nl::SCALE);
    let codes = first32(out);
    nibbles(field(b, iq4_nl::QUANTS), codes);
    for code in codes {
        *code = iq4_nl::LEVELS[usize::from(*code)] as u8;
    }
}

fn take_q2_k(b: &[u8], out: &mut Block) {
    (out.d, out.m) = (*field(b, q2_k::SCALE), *field(b, q2_k::MIN));
    for (s, byte) in field::<16>(b, q2_k::SCALES).iter().enumerate() {
        (out.scales[s], out.mins[s]) = (byte & 15, byte >> 4);
    }
    let quants = field::<64>(b, q2_k::QUANTS);
    for (i, code) in out.codes.iter_mut().enumerate() {
        let (half, r) = (i / 128, i % 128);
        *code = quants[32 * half + r % 32] >> (2 * (r / 32)) & 3;
    }
}

fn take_q3_k(b: &[u8], out: &mut Block) {
    out.d = *field(b, q3_k::SCALE);
    let scales = field::<12>(b, q3_k::SCALES);
    for s in 0..16 {
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let high = scales[8 + s % 4] >> (2 * (s / 4)) & 3;
        out.scales[s] = (low | high << 4).wrapping_sub(32);
    }
    let (mask, quants) = (field::<32>(b, q3_k::HIGH_BITS), field::<64>(b, q3_k::QUANTS));
    for (i, code) in out.codes.iter_mut().enumerate() {
        let (half, r) = (i / 128, i % 128);
        let low = quants[32 * half + r % 32] >> (2 * (r / 32)) & 3;
        *code = low | (mask[i % 32] >> (i / 32) & 1) << 2;
    }
}

fn take_q4_k(b: &[u8], out: &mut Block) {
    take_k_header(b, q4_k::SCALE, q4_k::MIN, q4_k::SCALES, out);
    take_k_nibbles(field(b, q4_k::QUANTS), out);
}

fn take_q5_k(b: &[u8], out: &mut Block) {
    take_k_header(b, q5_k::SCALE, q5_k::MIN, q5_k::SCALES, out);
    take_k_nibbles(field(b, q5_k::QUANTS), out);
    let high = field::<32>(b, q5_k::HIGH_BITS);
    for (i, code) in out.codes.iter_mut().enumerate() {
        *code |= (high[i % 32] >> (i / 32) & 1) << 4;
    }
}

fn take_k_header(b: &[u8], scale: usize, min: usize, scales: usize, out: &mut Block) {
    (out.d, out.m) = (*field(b, scale), *field(b, min));
    let (s, m) = k_scales(field(b, scales));
    out.scales[..8].copy_from_slice(&s);
    out.mins[..8].copy_from_slice(&m);
}

fn take_k_nibbles(quants: &[u8; 128], out: &mut Block) {
    for (i, code) in out.codes.iter_mut().enumerate() {
        let byte = quants[32 * (i / 64) + i % 32];
        *code = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
    }
}

fn take_q6_k(b: &[u8], out: &mut Block) {
    out.d = *field(b, q6_k::SCALE);
    out.scales = *field(b, q6_k::SCALES);
    let (low, high) = (field::<128>(b, q6_k::QUANTS), field::<64>(b, q6_k::HIGH_BITS));
    for (i, code) in out.codes.iter_mut().enumerate() {
        let (half, r) = (i / 128, i % 128);
        let (quarter, l) = (r / 32, r % 32);
        let byte = low[64 * half + l + 32 * (quarter % 2)];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        *code = nibble | (high[32 * half + l] >> (2 * quarter) & 3) << 4;
    }
}

/// A quantized `[n, k]` matrix.
#[derive(Debug)]
pub(crate) struct QuantMatrix {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) kind: Kind,
    pub(crate) scaling: Scaling,
    codes: Storage,
    scales: Storage,
}

impl QuantMatrix {
    /// The packed matrix of a tensor of that format, its bytes still missing; `None` where it has no packed form.
    pub(super) fn unfilled(tensor: &Tensor) -> Option<Self> {
        let (kind, scaling, _) = recipe(tensor.dtype())?;
        let (n, k) = (tensor.shape().rows()?, tensor.shape().row());
        let none = Storage::from_bytes(&[]);
        Some(QuantMatrix { n, k, kind, scaling, codes: none.clone(), scales: none })
    }

    /// Bytes of codes and of scales.
    pub(super) fn packed_bytes(&self) -> [usize; 2] {
        let panels = self.n.div_ceil(PANEL);
        [panels * self.panel_code_bytes(), panels * self.panel_scale_bytes()]
    }

    /// The matrix over bytes that [`QuantMatrix::pack`] made earlier: [`QuantMatrix::packed_bytes`] of them.
    pub(super) fn over(self, codes: Storage, scales: Storage) -> Self {
        QuantMatrix { codes, scales, ..self }
    }

    /// Codes and scales.
    pub(super) fn storages(&self) -> [&Storage; 2] {
        [&self.codes, &self.scales]
    }

    /// Packs `tensor`, the last panel filled up with zeros; `None` where its format has no packed form.
    pub(crate) fn pack(tensor: &Tensor, pool: &Pool, arena: &Arena) -> Option<Result<Self, BackendError>> {
        let (_, _, take) = recipe(tensor.dtype())?;
        let packed = Self::unfilled(tensor)?;
        let (n, k) = (packed.n, packed.k);
        let [mut code_lines, mut scale_lines] = packed.packed_bytes().map(|bytes| arena.zeroed(bytes));
        let codes = SharedBytes(code_lines.as_mut_ptr());
        let scales = SharedBytes(scale_lines.as_mut_ptr());
        let (elements, block_bytes) = (tensor.dtype().block_elements(), tensor.dtype().block_bytes());
        let row_bytes = k / elements * block_bytes;
        let this = &packed;
        let body = |_: usize, panel: usize| {
            let (code_bytes, scale_bytes) = (this.panel_code_bytes(), this.panel_scale_bytes());
            // SAFETY: each task writes its own panel, which lies inside both buffers.
            let (codes, scales) = unsafe {
                (
                    std::slice::from_raw_parts_mut(codes.at(panel * code_bytes), code_bytes),
                    std::slice::from_raw_parts_mut(scales.at(panel * scale_bytes), scale_bytes),
                )
            };
            let mut block = Block { codes: [0; 256], d: [0; 2], m: [0; 2], scales: [0; 16], mins: [0; 16] };
            let rows = &tensor.bytes()[panel * PANEL * row_bytes..n.min((panel + 1) * PANEL) * row_bytes];
            // Block after block, so that the lines written for one row are still near for the others.
            for i in 0..k / elements {
                for (column, row) in rows.chunks_exact(row_bytes).enumerate() {
                    take(&row[i * block_bytes..][..block_bytes], &mut block);
                    block.d = number_or_nan(block.d);
                    this.put_codes(codes, column, i * elements, &block.codes[..elements]);
                    this.put_scales(scales, column, i, &block);
                }
            }
        };
        if let Err(panic) = pool.run(n.div_ceil(PANEL), &body) {
            return Some(Err(BackendError::Call { what: panic.to_string() }));
        }
        Some(Ok(packed.over(code_lines.into(), scale_lines.into())))
    }

    /// Bytes of codes that `k` columns of a panel take.
    pub(crate) fn code_bytes(&self, k: usize) -> usize {
        k * PANEL * self.kind.codes.bits() / 8
    }

    pub(crate) fn panel_code_bytes(&self) -> usize {
        self.code_bytes(self.k)
    }

    /// Bytes of scales of `k` columns (whole groups) of a panel.
    pub(crate) fn scale_bytes(&self, k: usize) -> usize {
        let min = usize::from(self.kind.offset == Offset::Min);
        match self.scaling {
            Scaling::Plain => k / 32 * PANEL * 2 * (1 + min),
            Scaling::Super { .. } => {
                k / super::SUPER * PANEL * (2 * (1 + min) + 8 * self.kind.halves * (1 + min))
            }
        }
    }

    pub(crate) fn panel_scale_bytes(&self) -> usize {
        self.scale_bytes(self.k)
    }

    /// First code byte of a panel at column `k`, a multiple of 256.
    pub(crate) fn codes_at(&self, panel: usize, k: usize) -> *const u8 {
        self.codes.as_bytes()[panel * self.panel_code_bytes() + self.code_bytes(k)..].as_ptr()
    }

    /// The scales of a panel for columns `k..k + len`, both multiples of 256 or up to the end.
    pub(crate) fn scales_at(&self, panel: usize, k: usize, len: usize) -> &[u8] {
        &self.scales.as_bytes()[panel * self.panel_scale_bytes() + self.scale_bytes(k)..]
            [..self.scale_bytes(len)]
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.codes.len() + self.scales.len()
    }

    fn put_codes(&self, panel: &mut [u8], column: usize, k: usize, codes: &[u8]) {
        let first = k * self.kind.codes.bits() / 32;
        let mut put = |line: usize, word: u32| {
            panel[((first + line) * PANEL + column) * 4..][..4].copy_from_slice(&word.to_le_bytes());
        };
        let word = |chunk: &[u8; 4]| u32::from_le_bytes(*chunk);
        // The bits `mask` of all 4 codes.
        let bits = |word: u32, mask: u8| word & u32::from_ne_bytes([mask; 4]);
        let chunks = codes.as_chunks::<4>().0;
        match self.kind.codes {
            Codes::U4 => {
                for (i, [low, high]) in chunks.as_chunks().0.iter().enumerate() {
                    put(i, word(low) | word(high) << 4);
                }
            }
            Codes::U5 => {
                for (i, chunks) in chunks.as_chunks::<8>().0.iter().enumerate() {
                    let mut last = 0;
                    for j in 0..4 {
                        let (low, high) = (word(&chunks[j]), word(&chunks[4 + j]));
                        put(5 * i + j, low | bits(high, 0b11100) << 3);
                        last = last << 2 | bits(high, 0b11);
                    }
                    put(5 * i + 4, last);
                }
            }
            Codes::U6 => {
                for (i, [a, b, c, d]) in chunks.as_chunks().0.iter().enumerate() {
                    let d = word(d);
                    put(3 * i, word(a) | bits(d, 0b11_0000) << 2);
                    put(3 * i + 1, word(b) | bits(d, 0b1100) << 4);
                    put(3 * i + 2, word(c) | bits(d, 0b11) << 6);
                }
            }
            Codes::I8 => {
                for (i, chunk) in chunks.iter().enumerate() {
                    put(i, word(chunk));
                }
            }
        }
    }

    fn put_scales(&self, panel: &mut [u8], column: usize, index: usize, block: &Block) {
        let min = self.kind.offset == Offset::Min;
        match self.scaling {
            Scaling::Plain => {
                let at = index * PANEL * if min { 4 } else { 2 };
                panel[at + 2 * column..][..2].copy_from_slice(&block.d);
                if min {
                    panel[at + 2 * (PANEL + column)..][..2].copy_from_slice(&block.m);
                }
            }
            Scaling::Super { .. } => {
                let mut at = index * self.scale_bytes(super::SUPER);
                panel[at + 2 * column..][..2].copy_from_slice(&block.d);
                at += 2 * PANEL;
                if min {
                    panel[at + 2 * column..][..2].copy_from_slice(&block.m);
                    at += 2 * PANEL;
                }
                for group in 0..8 * self.kind.halves {
                    panel[at + column] = block.scales[group];
                    at += PANEL;
                    if min {
                        panel[at + column] = block.mins[group];
                        at += PANEL;
                    }
                }
            }
        }
    }
}
