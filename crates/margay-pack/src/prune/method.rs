//! What says how much a weight or a part matters, and what each method has to be given.

use super::{PruneOptions, PruneTarget};
use crate::{Calibration, PackError};
use margay::ModelSource;
use margay_graph::Stage;
use std::str::FromStr;

/// What says how much a weight, or a part, matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneMethod {
    /// Its magnitude.
    Magnitude,
    /// Magnitude times the norm of what it is multiplied with.
    Wanda,
    /// What the loss changes to first order where it goes.
    Taylor,
    /// What the layer's output changes where it goes and the weights behind it make up for that.
    SparseGpt,
}

impl PruneMethod {
    /// Every method.
    pub const ALL: [PruneMethod; 4] =
        [PruneMethod::Magnitude, PruneMethod::Wanda, PruneMethod::Taylor, PruneMethod::SparseGpt];

    /// As users write it.
    pub fn id(self) -> &'static str {
        match self {
            PruneMethod::Magnitude => "magnitude",
            PruneMethod::Wanda => "wanda",
            PruneMethod::Taylor => "taylor",
            PruneMethod::SparseGpt => "sparsegpt",
        }
    }

    /// One line for people.
    pub fn about(self) -> &'static str {
        match self {
            PruneMethod::Magnitude => "the smallest go; needs nothing",
            PruneMethod::Wanda => {
                "the smallest times the norm of their input go; needs a calibration, or questions"
            }
            PruneMethod::Taylor => {
                "those go that change the loss least; a backward pass over questions, small models"
            }
            PruneMethod::SparseGpt => {
                "those go that the others make up for best, and the others do; needs questions, not for parts"
            }
        }
    }
}

impl FromStr for PruneMethod {
    type Err = PackError;

    fn from_str(text: &str) -> Result<Self, PackError> {
        PruneMethod::ALL.into_iter().find(|method| method.id() == text).ok_or_else(|| {
            PackError::PruneMethod {
                name: text.to_owned(),
                known: PruneMethod::ALL.map(PruneMethod::id).join(", "),
            }
        })
    }
}

impl PruneOptions<'_> {
    /// Whether weights are pruned when a walk over the questions comes to them, so that each layer sees what the pruned
    /// layers before it give, as the authors of both methods do it.
    pub(super) fn walks(&self) -> bool {
        let weights = matches!(self.target, PruneTarget::Weights { .. });
        let wanda = self.method == PruneMethod::Wanda && self.calibration.is_none();
        weights && (wanda || self.method == PruneMethod::SparseGpt)
    }

    /// Refuses what cannot be done, before any work.
    pub(super) fn check(&self, source: &ModelSource) -> Result<(), PackError> {
        const QUESTIONS: &str = "questions to walk over: give a folder of pictures, or a file of texts";
        const CALIBRATION: &str =
            "a calibration: run `margay calibrate`, or give questions to calibrate with";
        let lacks = |what| Err(PackError::Needs { method: self.method.id().to_owned(), what });
        let refuse = |what: String| Err(PackError::Prune { what });
        self.target.check()?;
        if !source.config.outliers.is_empty() {
            let what =
                "the file keeps outlier columns apart; prune the model it was made from, then quantize";
            return refuse(what.to_owned());
        }
        let encodes = self.target.stages().iter().any(|stage| *stage != Stage::Text);
        if encodes && source.config.vision.is_none() {
            return refuse(format!("{} has no vision side", source.config.name));
        }
        if encodes && self.method == PruneMethod::Taylor {
            let what =
                "taylor goes by the gradients of the decoder's loss; prune the vision side by another method";
            return refuse(what.to_owned());
        }
        let asks_scores = self.target.scores_weights_or_parts();
        match self.method {
            PruneMethod::SparseGpt if matches!(self.target, PruneTarget::Parts(_)) && asks_scores => refuse(
                "sparsegpt chooses single weights; choose heads and channels by magnitude, wanda or taylor"
                    .to_owned(),
            ),
            PruneMethod::Taylor | PruneMethod::SparseGpt if asks_scores && self.prompts.is_empty() => {
                lacks(QUESTIONS)
            }
            PruneMethod::Wanda if asks_scores && !self.walks() && self.calibration.is_none() => {
                lacks(CALIBRATION)
            }
            PruneMethod::Wanda if self.walks() && self.prompts.is_empty() => lacks(CALIBRATION),
            _ if self.target.takes_layers() && self.prompts.is_empty() => {
                Err(PackError::Needs { method: "taking out layers".to_owned(), what: QUESTIONS })
            }
            _ => Ok(()),
        }?;
        let known =
            self.calibration.is_none_or(|calibration: &Calibration| calibration.weights().next().is_some());
        if known { Ok(()) } else { refuse("the calibration saw no weight".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_its_name_and_others_list_them() {
        for method in PruneMethod::ALL {
            assert_eq!(method.id().parse::<PruneMethod>().unwrap(), method);
        }
        let error = "random".parse::<PruneMethod>().unwrap_err().to_string();
        assert!(error.contains("random") && error.contains("magnitude, wanda, taylor, sparsegpt"), "{error}");
    }
}
