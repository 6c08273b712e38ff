//! Which tokens of the KV cache are dropped.
//!
//! Sources: Xiao et al., StreamingLLM, arXiv 2309.17453 (the first tokens and a window, with positions within the cache: here
//! the first tokens follow the window, which is the same distances); Li et al., SnapKV, arXiv 2404.14469; Zhang et al., H2O,
//! arXiv 2306.14048. Both of the latter choose
//! for each KV head; heads that share one are summed.

use crate::{Error, Session, greatest::greatest};
use margay_cpu::BLOCK_TOKENS;
use margay_graph::{Kept, Observe};

/// The newest tokens of a prompt, whose attention chooses. Source: SnapKV's repository, `monkeypatch` of each model.
const OBSERVED: usize = 32;
/// Neighbours that a score is averaged over, so that what stays are runs of tokens. Source: arXiv 2404.14469, section 5.
const POOLED: usize = 7;

/// Which tokens are dropped from the KV cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Eviction {
    /// When the context is full, the first tokens and the newest stay, so that answers go on beyond it: as if what lies between
    /// had never stood there, so that no two tokens are further apart than the context is long. Whole blocks of 64 tokens are
    /// dropped, so that a few more may stay. The first ones are held twice from then on.
    Window {
        /// Newest tokens that stay.
        window: usize,
        /// First tokens that stay.
        sinks: usize,
    },
    /// When a prompt was computed, those of its tokens stay to which its last 32 tokens pay most attention, and they.
    SnapKv(Budget),
    /// From when a prompt was computed on, half of the budget are those tokens that were paid most attention so far, and
    /// half are the newest.
    H2o(Budget),
}

/// Tokens that stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// So many.
    Tokens(usize),
    /// So large a part of the prompt's.
    Share(f64),
}

impl Budget {
    /// Of a prompt of so many tokens.
    fn of(self, prompt: usize) -> usize {
        match self {
            Budget::Tokens(tokens) => tokens,
            Budget::Share(share) => (share * prompt as f64).round() as usize,
        }
    }
}

impl Eviction {
    /// Refuses what cannot be kept in a context.
    pub(crate) fn check(self, context: usize) -> Result<(), Error> {
        let refused = |option, what: String| Err(Error::Option { option, what });
        match self {
            Eviction::Window { window, sinks } => {
                // The first tokens are held as they were computed and as they are seen.
                let held = blocks_of(sinks).saturating_mul(2);
                let least = held.saturating_add(window).saturating_add(BLOCK_TOKENS);
                if window == 0 || least > context {
                    let what = format!(
                        "{window} tokens and twice {sinks} sinks, in whole blocks of {BLOCK_TOKENS}, leave no block of a \
                         context of {context} tokens to drop; lower them or raise --context"
                    );
                    return refused("kv-window", what);
                }
            }
            Eviction::SnapKv(budget) | Eviction::H2o(budget) => {
                let good = match budget {
                    Budget::Tokens(tokens) => tokens > OBSERVED,
                    Budget::Share(share) => share > 0.0 && share <= 1.0,
                };
                if !good {
                    let what = format!("a budget is more than {OBSERVED} tokens, or a share of the prompt");
                    return refused("kv-budget", what);
                }
            }
        }
        Ok(())
    }

    /// What is to be noted of a prompt.
    pub(crate) fn observe(self) -> Observe {
        match self {
            Eviction::Window { .. } => Observe::Nothing,
            Eviction::SnapKv(_) => Observe::Newest(OBSERVED),
            Eviction::H2o(_) => Observe::All,
        }
    }

    /// True where there is always room for another token.
    pub(crate) fn makes_room(self) -> bool {
        matches!(self, Eviction::Window { .. })
    }
}

impl Session {
    /// Drops what is not to stay of a prompt that was just computed. Gives the tokens that may stay from then on.
    pub(crate) fn evict_prompt(&mut self, eviction: Eviction) -> Result<usize, Error> {
        let len = self.state.len();
        match eviction {
            Eviction::Window { .. } => Ok(usize::MAX),
            Eviction::SnapKv(budget) => {
                let budget = budget.of(len).max(OBSERVED);
                if budget < len {
                    let kept = snap_kv(&self.state.attention()?, len, budget)?;
                    self.retain(&kept)?;
                }
                // What is computed from now on stays.
                self.state.observe(Observe::Nothing)?;
                Ok(usize::MAX)
            }
            Eviction::H2o(budget) => {
                let budget = budget.of(len).max(OBSERVED);
                self.keep_heavy(budget)?;
                Ok(budget)
            }
        }
    }

    /// Before a token is decoded: drops what has to go, where that is at least a block. `place` tells the positions of a token
    /// of the conversation, dropped ones counted.
    pub(crate) fn evict_decoded(
        &mut self,
        eviction: Eviction,
        budget: usize,
        place: &dyn Fn(usize) -> [i32; 3],
    ) -> Result<(), Error> {
        let (len, capacity) = (self.state.len(), self.state.capacity());
        match eviction {
            Eviction::Window { window, sinks } => {
                let first = blocks_of(sinks).min(len);
                let twice = if self.dropped_tokens() > 0 { first } else { 0 };
                if len + 1 + twice <= capacity {
                    return Ok(());
                }
                let heads = self.model.engine()?.kv_heads();
                self.retain(&sliding(&heads, len, (window, first))?)?;
                Ok(self.state.turn(first, gap(first, first + self.dropped_tokens(), place))?)
            }
            Eviction::H2o(_) if len >= budget.saturating_add(BLOCK_TOKENS) || len + 1 > capacity => {
                self.keep_heavy(budget)
            }
            _ => Ok(()),
        }
    }

    fn keep_heavy(&mut self, budget: usize) -> Result<(), Error> {
        let len = self.state.len();
        if budget < len {
            let kept = heavy_hitters(&self.state.attention()?, len, budget)?;
            self.retain(&kept)?;
        }
        Ok(())
    }
}

/// So many tokens, rounded up to whole blocks.
fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS).saturating_mul(BLOCK_TOKENS)
}

/// How many positions lie between the first so many tokens and the token that follows them in the cache, which is that of number
/// `next` in the conversation.
fn gap(first: usize, next: usize, place: &dyn Fn(usize) -> [i32; 3]) -> i32 {
    let end = (0..first).flat_map(place).max().map_or(0, |last| last.saturating_add(1));
    // A picture that both sides have a part of leaves none.
    let start = place(next).into_iter().min().unwrap_or(end);
    start.saturating_sub(end).max(0)
}

/// The first tokens, which are whole blocks, and the blocks that hold the newest.
fn sliding(heads: &[usize], len: usize, (window, sinks): (usize, usize)) -> Result<Kept, Error> {
    let from = (len.saturating_sub(window) / BLOCK_TOKENS * BLOCK_TOKENS).max(sinks);
    let kept: Vec<u32> = (0..sinks as u32).chain(from as u32..len as u32).collect();
    Ok(Kept::new(heads.iter().map(|heads| vec![kept.clone(); *heads]).collect())?)
}

/// The last tokens of the prompt, and of those before them the ones of the highest mean score of their neighbourhood.
fn snap_kv(attention: &[Vec<Vec<f32>>], len: usize, budget: usize) -> Result<Kept, Error> {
    let before = len.saturating_sub(OBSERVED);
    each_head(attention, |scores| {
        let pooled: Vec<f32> = (0..before)
            .map(|at| {
                // Beyond the ends there is nothing, which counts as well.
                let around = at.saturating_sub(POOLED / 2)..before.min(at + POOLED / 2 + 1);
                scores[around].iter().sum::<f32>() / POOLED as f32
            })
            .collect();
        let mut kept = highest(&pooled, budget.saturating_sub(len - before));
        kept.extend(before as u32..len as u32);
        kept
    })
}

/// The newest tokens for half of the budget, and of those before them the ones of the highest score.
fn heavy_hitters(attention: &[Vec<Vec<f32>>], len: usize, budget: usize) -> Result<Kept, Error> {
    let before = len.saturating_sub(budget / 2);
    each_head(attention, |scores| {
        let mut kept = highest(&scores[..before], budget - (len - before));
        kept.extend(before as u32..len as u32);
        kept
    })
}

fn each_head(attention: &[Vec<Vec<f32>>], choose: impl Fn(&[f32]) -> Vec<u32>) -> Result<Kept, Error> {
    let layer = |heads: &Vec<Vec<f32>>| heads.iter().map(|scores| choose(scores)).collect();
    Ok(Kept::new(attention.iter().map(layer).collect())?)
}

/// The places of the `count` highest scores, in their order.
fn highest(scores: &[f32], count: usize) -> Vec<u32> {
    greatest(scores, count).into_iter().map(|place| place as u32).collect()
}

#[cfg(test)]
mod tests;
