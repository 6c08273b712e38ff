//! Fewer visual tokens: which of a tile's projected rows the decoder sees.
//!
//! Some methods see only the rows themselves, so that they fit every tower and projector; others see what the tower looked at
//! ([`attention`]). Rows keep their order.

pub(crate) mod attention;
pub(crate) mod diverse;
pub(crate) mod even;
mod merge;
mod prumerge;
pub(crate) mod random;
mod redundancy;
pub(crate) mod repeats;
mod visionzip;

use crate::Error;
use attention::Attention;
use margay_model::{Extra, ModelConfig};
use serde::{Deserialize, Serialize};

/// A way to leave visual tokens out.
pub struct ReductionEntry {
    /// Short lower-case name.
    pub id: &'static str,
    /// One line for people.
    pub what: &'static str,
    /// What it chooses by.
    pub sees: Sees,
    reduce: fn(&Rows<'_>, usize) -> Vec<f32>,
    /// How many stay where nobody says it; `None` counts those that differ.
    count: Option<fn(&Rows<'_>) -> usize>,
}

/// What a method chooses by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// The projected rows: fits every tower and projector.
    Rows,
    /// What the tower looked at, too: fits towers of equal patches, and projectors whose tokens lie on them.
    Attention,
}

/// All of them.
pub static REDUCTIONS: &[ReductionEntry] =
    &[merge::ENTRY, diverse::ENTRY, visionzip::ENTRY, prumerge::ENTRY, even::ENTRY, random::ENTRY];

/// How many visual tokens stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// A share of each tile's, above 0 and at most 1; of each tile at least one.
    Share(f64),
    /// As many as the picture asks for: all where its pixels hold dense text, else as many as differ.
    Auto,
}

/// How many visual tokens the decoder sees of each tile, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduction {
    /// Id of an entry of [`REDUCTIONS`].
    pub method: String,
    /// How many.
    pub keep: Keep,
}

/// Why so many visual tokens of a picture stayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The share that was asked for.
    Share,
    /// The picture holds dense text: all stay.
    Text,
    /// So many differ from one another, or receive more attention than is usual.
    Redundancy,
    /// It was seen at a lower resolution, at which little of it is lost; others may have been left out, too.
    Resolution,
    /// Patches that look like others were not encoded.
    Repeats,
    /// The governor of the device asked for fewer.
    Device,
}

impl Reason {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Reason::Share => "the share asked for",
            Reason::Text => "text is dense: nothing left out",
            Reason::Redundancy => "the others repeat what these say",
            Reason::Resolution => "a smaller picture shows as much",
            Reason::Repeats => "the others' pixels repeat",
            Reason::Device => "the device is at its limit",
        }
    }
}

impl Reduction {
    /// What leaves that share of the tokens that `asked` would keep.
    pub(crate) fn under_a_governor(asked: Option<&Reduction>, share: f64) -> Self {
        let method = asked.map_or(REDUCTIONS[0].id, |asked| &asked.method).to_owned();
        let kept = match asked.map(|asked| asked.keep) {
            Some(Keep::Share(kept)) => kept,
            Some(Keep::Auto) | None => 1.0,
        };
        Reduction { method, keep: Keep::Share(kept * share) }
    }

    /// Tokens that stay of so many; at most so many where the picture decides.
    pub fn kept(&self, tokens: usize) -> usize {
        match self.keep {
            // A share of tokens is far below what a float counts exactly.
            Keep::Share(share) => ((tokens as f64 * share).round() as usize).clamp(tokens.min(1), tokens),
            Keep::Auto => tokens,
        }
    }

    /// # Errors
    /// [`Error::Unknown`] for the method; [`Error::Option`] for the share, and for a method or model that do not fit.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<(), Error> {
        let bad = |what: String| Error::Option { option: "share of image tokens", what };
        if let Keep::Share(share) = self.keep
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(bad(format!("{share} is not above 0 and at most 1")));
        }
        let entry = self.entry()?;
        let name = &config.name;
        let places = config.text.rope_sections.is_some();
        let varies = config.vision.as_ref().is_some_and(|vision| vision.varies());
        if places && self.keep == Keep::Auto && varies && entry.sees == Sees::Rows {
            // Its pictures become smaller; of what they then are, nothing is left out.
            return Ok(());
        }
        if places {
            return Err(bad(format!(
                "{name} asks where in the picture a token lies, so that all have to stay"
            )));
        }
        let Some(vision) = config.vision.as_ref().filter(|_| entry.sees == Sees::Attention) else {
            return Ok(());
        };
        let by_rows: Vec<_> = REDUCTIONS.iter().filter(|e| e.sees == Sees::Rows).map(|e| e.id).collect();
        let by_rows = by_rows.join(", ");
        if vision.tower.heads().is_none() {
            let (id, tower) = (entry.id, vision.tower.tower().id);
            return Err(bad(format!(
                "{id} needs to see what the tower looks at, which {name}'s ({tower}) does not tell; the tower vit (CLIP, \
                 SigLIP) does, and {by_rows} fit every tower"
            )));
        }
        if vision.square().is_none() {
            let (id, projector) = (entry.id, vision.projector.id);
            return Err(bad(format!(
                "{id} needs visual tokens that lie on the patches, which {name}'s projector ({projector}) does not give; \
                 {by_rows} fit every projector"
            )));
        }
        Ok(())
    }

    /// What the vision programs have to give for it.
    pub(crate) fn extra(&self) -> Result<Extra, Error> {
        Ok(Extra { attention: self.entry()?.sees == Sees::Attention, ..Extra::default() })
    }

    fn entry(&self) -> Result<&'static ReductionEntry, Error> {
        REDUCTIONS.iter().find(|entry| entry.id == self.method).ok_or_else(|| Error::Unknown {
            what: "way to leave visual tokens out",
            name: self.method.clone(),
            known: REDUCTIONS.iter().map(|entry| entry.id).collect::<Vec<_>>().join(", "),
        })
    }

    /// Whether rows are left out of pictures of that model, or only pixels.
    pub(crate) fn leaves_rows_out(config: &ModelConfig) -> bool {
        config.text.rope_sections.is_none()
    }

    /// The rows that stay of [V, width], and why so many. `text`: the picture holds dense text.
    pub(crate) fn apply(
        &self,
        rows: &[f32],
        width: usize,
        attention: Option<&Attention>,
        text: bool,
    ) -> Result<(Vec<f32>, Reason), Error> {
        let rows = Rows { rows, width, attention };
        let entry = self.entry()?;
        let (keep, reason) = match self.keep {
            Keep::Share(_) => (self.kept(rows.count()), Reason::Share),
            Keep::Auto if text => (rows.count(), Reason::Text),
            Keep::Auto => (entry.count.unwrap_or(redundancy::distinct)(&rows), Reason::Redundancy),
        };
        if keep >= rows.count() {
            return Ok((rows.rows.to_vec(), reason));
        }
        Ok(((entry.reduce)(&rows, keep), reason))
    }
}

/// Visual tokens of a tile, [V, width].
struct Rows<'r> {
    rows: &'r [f32],
    width: usize,
    /// What the tower looked at, where the method sees it.
    attention: Option<&'r Attention>,
}

impl<'r> Rows<'r> {
    fn count(&self) -> usize {
        self.rows.len() / self.width
    }

    fn row(&self, at: usize) -> &'r [f32] {
        &self.rows[at * self.width..][..self.width]
    }

    fn chosen(&self, chosen: impl IntoIterator<Item = usize>) -> Vec<f32> {
        chosen.into_iter().flat_map(|at| self.row(at)).copied().collect()
    }
}

/// Rows of length 1, so that a product of two is the cosine of their angle; of a row of zeros, zeros.
fn unit_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let mut units = rows.to_vec();
    for row in units.chunks_exact_mut(width) {
        let length = dot(row, row).sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x /= length);
        }
    }
    units
}

/// In eight sums, which compilers turn into vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests;
