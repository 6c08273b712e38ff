//! How well a model predicts a text.

use crate::{EvalError, divergence::surprise};
use margay::{Tracer, rooms::prompt::text::EncodeOptions};
use serde::Serialize;
use std::ops::ControlFlow;

/// One of the two ways in which perplexity is computed; their figures never compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Definition {
    /// Windows that do not overlap, every token but the first of each scored; BOS once, at the start of the text. Published
    /// figures of GPTQ, AWQ and SmoothQuant have windows of 2048. Source: GPTQ's llama.py, `llama_eval`.
    Windows,
    /// Chunks that do not overlap, each begun with BOS in place of its first token, the second half of each scored.
    /// llama.cpp's figures have chunks of 512. Source: llama.cpp tools/perplexity/perplexity.cpp, `perplexity`.
    Chunks,
}

impl Definition {
    /// Both.
    pub const ALL: [Definition; 2] = [Definition::Windows, Definition::Chunks];

    /// Tokens of a window in published figures.
    pub fn published_window(self) -> usize {
        match self {
            Definition::Windows => 2048,
            Definition::Chunks => 512,
        }
    }

    /// Words for it.
    pub fn name(self) -> &'static str {
        match self {
            Definition::Windows => "windows (transformers, GPTQ, AWQ)",
            Definition::Chunks => "chunks, second half (llama.cpp)",
        }
    }

    /// The first place of a window whose logits score the token behind it.
    fn first_scored(self, window: usize) -> usize {
        match self {
            Definition::Windows => 0,
            Definition::Chunks => window / 2,
        }
    }
}

/// A perplexity and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// How it is defined.
    pub definition: Definition,
    /// Tokens of a window.
    pub window: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens scored.
    pub scored: usize,
    /// Tokens of the text, BOS with them.
    pub tokens: usize,
    /// Tokens behind the last whole window, which are left out.
    pub left_out: usize,
    /// Mean negative log likelihood, nats a token.
    pub mean_nll: f64,
    /// e to that.
    pub perplexity: f64,
    /// Standard error of the perplexity, as llama.cpp computes it: that of the mean, times the perplexity.
    pub standard_error: f64,
}

/// Computes it. `each` is told how many of how many windows are done and the perplexity so far; `None` where it stops
/// the work.
///
/// # Errors
/// [`EvalError::ShortText`] of a text of less than a window, [`EvalError::Engine`].
pub fn perplexity(
    tracer: &mut Tracer<'_>,
    text: &str,
    definition: Definition,
    window: usize,
    each: &mut dyn FnMut(usize, usize, f64) -> ControlFlow<()>,
) -> Result<Option<Perplexity>, EvalError> {
    let tokenizer = &tracer.source().tokenizer;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let options = EncodeOptions { bos: bos.is_some(), special: false, prefix_space: None };
    let tokens = tokenizer.encode(text, options).map_err(margay::Error::from)?;
    let option = match definition {
        Definition::Windows => "--window",
        Definition::Chunks => "--chunk",
    };
    let first = definition.first_scored(window);
    // A window scores at least one token, and a standard error takes two.
    if tokens.len() < window || window < first + 3 {
        return Err(EvalError::ShortText { tokens: tokens.len(), window, option });
    }
    let of = tokens.len() / window;
    let (mut sum, mut squares, mut scored) = (0.0, 0.0, 0usize);
    for (at, window) in tokens.chunks_exact(window).enumerate() {
        let mut ids = window.to_vec();
        if let (Definition::Chunks, Some(bos)) = (definition, bos) {
            ids[0] = bos;
        }
        tracer.text_logits(&ids, &mut |place, logits| {
            if let (true, Some(next)) = (place >= first, window.get(place + 1)) {
                let nll = surprise(logits, *next);
                (sum, squares, scored) = (sum + nll, squares + nll * nll, scored + 1);
            }
        })?;
        if each(at + 1, of, (sum / scored as f64).exp()).is_break() {
            return Ok(None);
        }
    }
    let n = scored as f64;
    let mean_nll = sum / n;
    let perplexity = mean_nll.exp();
    let variance = (squares / n - mean_nll * mean_nll).max(0.0);
    Ok(Some(Perplexity {
        definition,
        window,
        windows: of,
        scored,
        tokens: tokens.len(),
        left_out: tokens.len() % window,
        mean_nll,
        perplexity,
        standard_error: (variance / (n - 1.0)).sqrt() * perplexity,
    }))
}
