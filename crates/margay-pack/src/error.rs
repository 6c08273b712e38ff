//! Why a model cannot be packed.

use margay_file::FileError;
use margay_graph::BackendError;
use margay_model::ModelError;
use margay_prompt::text::TokenizerError;
use margay_quant::QuantError;
use std::path::PathBuf;

/// Why a model cannot be packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The model cannot be described.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A weight cannot be stored in that format.
    #[error("weight {name}: {source}")]
    Quant {
        /// Name in the model file.
        name: String,
        /// Why.
        #[source]
        source: QuantError,
    },
    /// The vocabulary cannot be written.
    #[error("the vocabulary: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The backend cannot pack a weight.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A model whose packed weights cannot be kept, or need not be.
    #[error("nothing to keep: {0}")]
    NotKept(String),
    /// A packed file whose weights are not those that were written.
    #[error("{}: {source}; make it anew with `margay prepack --force`", path.display())]
    Damaged {
        /// The packed file.
        path: PathBuf,
        /// Which weight.
        #[source]
        source: FileError,
    },
    /// A shape of which no random model can be made.
    #[error("no random model of this shape can be made: {what}")]
    Shape {
        /// Why.
        what: String,
    },
    /// A recipe that is none.
    #[error("the recipe {name}: {what}")]
    Recipe {
        /// Its id or file.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A method that there is not.
    #[error(
        "the method {name:?} is not known; known are {known}, and a scaling or outlier with a rounding as in awq+gptq"
    )]
    Method {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A method of pruning that there is not.
    #[error("the method {name:?} is not known; known are {known}")]
    PruneMethod {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// What cannot be pruned.
    #[error("cannot prune: {what}")]
    Prune {
        /// What, and why.
        what: String,
    },
    /// A method without what it needs.
    #[error("{method} needs {what}")]
    Needs {
        /// The method.
        method: String,
        /// What is missing, and how to get it.
        what: &'static str,
    },
    /// A build without what walks over a model.
    #[error("{method} walks over the model, and this margay was built without the feature `reference`")]
    NoReference {
        /// The method.
        method: String,
    },
    /// A calibration that is none, is damaged, or is another model's.
    #[error("{what}")]
    Calibration {
        /// Which file, and what is wrong.
        what: String,
    },
    /// Inputs of a layer that are no numbers.
    #[error("the input of {name}: {source}")]
    Input {
        /// The layer's weight.
        name: String,
        /// Why.
        #[source]
        source: QuantError,
    },
    /// Scales that cannot be folded into weights.
    #[error("weight {name}: {what}")]
    Scales {
        /// The first weight they belong to.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A model that does not fit a backward pass.
    #[error(
        "a backward pass over this model takes about {} MiB, more than the {} MiB it may; calibrate without gradients, or prune by another method",
        needs >> 20, most >> 20
    )]
    TooLarge {
        /// Bytes it would take.
        needs: u64,
        /// Bytes it may take.
        most: u64,
    },
    /// A size that is none.
    #[error("{text:?} is no size; write it as in 1.5GiB or 800MB")]
    Size {
        /// What was written.
        text: String,
    },
    /// A budget that no choice of formats fits.
    #[error("{budget} bytes do not hold this model: at its smallest it takes {least}")]
    Budget {
        /// Bytes there may be.
        budget: u64,
        /// Bytes it takes at least.
        least: u64,
    },
    /// A quality floor that no choice of formats reaches.
    #[error("a divergence of {most} nats is out of reach: the largest formats diverge by {got:.3e}")]
    Floor {
        /// What was asked for.
        most: f64,
        /// What the largest formats give.
        got: f64,
    },
    /// Nothing to calibrate with.
    #[error("there is no question to calibrate with: give pictures, texts, or both")]
    NoQuestions,
    /// A question that does not fit the model.
    #[error(transparent)]
    Engine(#[from] margay::Error),
    /// The caller stopped it; nothing was written under the final names.
    #[error("stopped; no file was written")]
    Stopped,
}
