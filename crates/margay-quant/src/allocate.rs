//! Which tensor gets how many bits.
//!
//! Each tensor has choices, each with its size and what the model loses by it alone; the losses are taken to add up. Under
//! a byte budget that is the multiple-choice knapsack. [`greedy`] buys the best loss per byte first: optimal but for what the
//! last purchase leaves of the budget. [`exact`] finds the optimum where there are few tensors.
//! Source: Sinha and Zoltners, "The multiple-choice knapsack problem" (1979).

use crate::QuantError;

/// A way of storing a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Its size.
    pub bytes: u64,
    /// What the model loses by it, in any unit, zero or more.
    pub loss: f64,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// For each tensor the index of its choice.
    pub choices: Vec<usize>,
    /// The size of all.
    pub bytes: u64,
    /// The loss of all.
    pub loss: f64,
}

impl Allocation {
    fn of(tensors: &[Vec<Choice>], choices: Vec<usize>) -> Self {
        let chosen = || tensors.iter().zip(&choices).map(|(tensor, &choice)| tensor[choice]);
        let bytes = chosen().fold(0u64, |sum, choice| sum.saturating_add(choice.bytes));
        Self { bytes, loss: chosen().map(|choice| choice.loss).sum(), choices }
    }
}

/// Rates that differ by less are equal: choices on one line are all kept, whatever rounding makes of them.
const EQUAL: f64 = 1e-9;

/// A step from one choice of a tensor to a larger one.
struct Step {
    tensor: usize,
    to: usize,
    bytes: u64,
    /// Loss saved a byte.
    rate: f64,
}

/// The choices worth having, smallest first, each step saving less a byte than the one before: the lower convex hull.
fn hull(tensor: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tensor.len()).filter(|&i| tensor[i].loss.is_finite()).collect();
    order.sort_by(|&a, &b| {
        (tensor[a].bytes.cmp(&tensor[b].bytes)).then(tensor[a].loss.total_cmp(&tensor[b].loss))
    });
    let rate = |a: usize, b: usize| {
        (tensor[a].loss - tensor[b].loss) / (tensor[b].bytes - tensor[a].bytes).max(1) as f64
    };
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        if hull.last().is_some_and(|&last| tensor[i].loss >= tensor[last].loss) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && rate(last, i) > rate(before, last) * (1.0 + EQUAL)
        {
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

/// The steps along every tensor's hull, the best rate first, and where they start.
fn steps(tensors: &[Vec<Choice>]) -> Result<(Vec<usize>, Vec<Step>), QuantError> {
    let (mut start, mut steps) = (Vec::with_capacity(tensors.len()), Vec::new());
    for (t, tensor) in tensors.iter().enumerate() {
        let hull = hull(tensor);
        let Some(&first) = hull.first() else {
            return Err(QuantError::Missing {
                what: "a choice of finite loss for every tensor",
                why: "allocating bits",
            });
        };
        start.push(first);
        let mut least = f64::INFINITY;
        for pair in hull.windows(2) {
            let (from, to) = (tensor[pair[0]], tensor[pair[1]]);
            let bytes = to.bytes - from.bytes;
            // A tensor's later step never comes before its earlier one.
            least = least.min((from.loss - to.loss) / bytes.max(1) as f64);
            steps.push(Step { tensor: t, to: pair[1], bytes, rate: least });
        }
    }
    // Stable, so a tensor's own steps stay in order where rates are equal.
    steps.sort_by(|a, b| b.rate.total_cmp(&a.rate));
    Ok((start, steps))
}

/// The smallest that each tensor can be, then the best loss per byte for as long as the budget lasts. A step that does not
/// fit ends its tensor; others go on.
///
/// Its loss is above the optimum's by less than the largest single step saves.
///
/// # Errors
/// [`QuantError::Budget`] where not even the smallest choices fit; [`QuantError::Missing`] where a tensor has no choice of
/// finite loss.
pub fn greedy(tensors: &[Vec<Choice>], budget: u64) -> Result<Allocation, QuantError> {
    let (mut choices, steps) = steps(tensors)?;
    let mut bytes = fits(tensors, &choices, budget)?;
    let mut ended = vec![false; tensors.len()];
    for step in steps {
        if ended[step.tensor] {
            continue;
        }
        if step.bytes > budget - bytes {
            ended[step.tensor] = true;
            continue;
        }
        bytes += step.bytes;
        choices[step.tensor] = step.to;
    }
    Ok(Allocation::of(tensors, choices))
}

/// As few bytes as the best loss per byte gets down to a loss of `most`; all bytes there are where that is not to be had.
///
/// # Errors
/// [`QuantError::Missing`] where a tensor has no choice of finite loss.
pub fn greedy_for_loss(tensors: &[Vec<Choice>], most: f64) -> Result<Allocation, QuantError> {
    let (mut choices, steps) = steps(tensors)?;
    for step in steps {
        if Allocation::of(tensors, choices.clone()).loss <= most {
            break;
        }
        choices[step.tensor] = step.to;
    }
    Ok(Allocation::of(tensors, choices))
}

/// The least loss within the budget, tensor by tensor over every total size that is not beaten by a smaller one. The sizes to
/// remember can double with each tensor, so `most_states` bounds them.
///
/// # Errors
/// As [`greedy`]; [`QuantError::Size`] where more than `most_states` totals would have to be remembered.
pub fn exact(tensors: &[Vec<Choice>], budget: u64, most_states: usize) -> Result<Allocation, QuantError> {
    let (smallest, _) = steps(tensors)?;
    fits(tensors, &smallest, budget)?;
    let mut states = vec![(0u64, 0.0f64)];
    // How each state came about: the one before it and the choice.
    let mut history: Vec<Vec<(usize, usize)>> = Vec::new();
    for tensor in tensors {
        let mut next: Vec<(u64, f64, usize, usize)> = Vec::new();
        for (s, &(bytes, loss)) in states.iter().enumerate() {
            for (c, choice) in tensor.iter().enumerate().filter(|(_, choice)| choice.loss.is_finite()) {
                match bytes.checked_add(choice.bytes).filter(|&bytes| bytes <= budget) {
                    Some(bytes) => next.push((bytes, loss + choice.loss, s, c)),
                    None => continue,
                }
            }
        }
        next.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut least = f64::INFINITY;
        next.retain(|state| {
            let better = state.1 < least;
            least = least.min(state.1);
            better
        });
        if next.len() > most_states {
            return Err(QuantError::Size {
                what: "totals to remember",
                expected: most_states,
                got: next.len(),
            });
        }
        states = next.iter().map(|state| (state.0, state.1)).collect();
        history.push(next.iter().map(|state| (state.2, state.3)).collect());
    }
    // The last state is the largest and, as none is beaten by a smaller one, the best.
    let mut at = states.len().checked_sub(1).ok_or(QuantError::Budget { needed: u64::MAX, budget })?;
    let mut choices = vec![0; tensors.len()];
    for (choice, layer) in choices.iter_mut().zip(&history).rev() {
        (at, *choice) = layer[at];
    }
    Ok(Allocation::of(tensors, choices))
}

fn fits(tensors: &[Vec<Choice>], smallest: &[usize], budget: u64) -> Result<u64, QuantError> {
    let needed = Allocation::of(tensors, smallest.to_vec()).bytes;
    if needed > budget { Err(QuantError::Budget { needed, budget }) } else { Ok(needed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tensors whose losses fall by less with every size, as a model's do.
    fn convex() -> impl Strategy<Value = Vec<Vec<Choice>>> {
        let tensor = (1u64..50, prop::collection::vec((1u64..20, 0.05f64..0.9), 0..5), 0.1f64..100.0)
            .prop_map(|(first, steps, loss)| {
                let mut choices = vec![Choice { bytes: first, loss }];
                let (mut bytes, mut left, mut rate) = (first, loss, f64::INFINITY);
                for (more, part) in steps {
                    let saved = (left * part).min(rate * more as f64);
                    rate = saved / more as f64;
                    (bytes, left) = (bytes + more, left - saved);
                    choices.push(Choice { bytes, loss: left });
                }
                choices
            });
        prop::collection::vec(tensor, 1..6)
    }

    fn brute_force(tensors: &[Vec<Choice>], budget: u64) -> f64 {
        let Some((first, rest)) = tensors.split_first() else { return 0.0 };
        let with = |choice: &Choice| {
            budget
                .checked_sub(choice.bytes)
                .map_or(f64::INFINITY, |left| choice.loss + brute_force(rest, left))
        };
        first.iter().map(with).fold(f64::INFINITY, f64::min)
    }

    fn largest_step(tensors: &[Vec<Choice>]) -> f64 {
        let steps =
            tensors.iter().flat_map(|tensor| tensor.windows(2).map(|pair| pair[0].loss - pair[1].loss));
        steps.fold(0.0, f64::max)
    }

    proptest! {
        #[test]
        fn greedy_is_within_a_step_of_the_optimum(tensors in convex(), part in 0.0f64..1.0) {
            let least: u64 = tensors.iter().map(|tensor| tensor[0].bytes).sum();
            let most: u64 = tensors.iter().map(|tensor| tensor[tensor.len() - 1].bytes).sum();
            let budget = least + ((most - least) as f64 * part) as u64;
            let (got, best) = (greedy(&tensors, budget).unwrap(), exact(&tensors, budget, 100_000).unwrap());
            prop_assert!(got.bytes <= budget && best.bytes <= budget);
            prop_assert!((best.loss - brute_force(&tensors, budget)).abs() < 1e-9);
            prop_assert!(got.loss >= best.loss - 1e-9);
            prop_assert!(got.loss <= best.loss + largest_step(&tensors) + 1e-9, "{got:?} {best:?}");
            prop_assert_eq!(greedy(&tensors, most).unwrap().bytes, most);
            let short = matches!(greedy(&tensors, least - 1), Err(QuantError::Budget { .. }));
            prop_assert!(short);
        }

        #[test]
        fn any_choices_are_allocated_within_the_budget(
            sizes in prop::collection::vec(prop::collection::vec((1u64..60, 0.0f64..9.0), 1..5), 1..5),
            budget in 1u64..300,
        ) {
            let tensors: Vec<Vec<Choice>> = sizes
                .iter()
                .map(|tensor| tensor.iter().map(|&(bytes, loss)| Choice { bytes, loss }).collect())
                .collect();
            let optimum = brute_force(&tensors, budget);
            match exact(&tensors, budget, 100_000) {
                Ok(best) => {
                    prop_assert!((best.loss - optimum).abs() < 1e-9);
                    let got = greedy(&tensors, budget).unwrap();
                    prop_assert!(got.bytes <= budget && got.loss >= best.loss - 1e-9);
                }
                Err(_) => prop_assert_eq!(optimum, f64::INFINITY),
            }
        }

        #[test]
        fn a_loss_is_reached_with_no_step_too_many(tensors in convex(), part in 0.0f64..1.0) {
            let all = greedy_for_loss(&tensors, 0.0).unwrap();
            let none = greedy_for_loss(&tensors, f64::INFINITY).unwrap();
            let most = all.loss + (none.loss - all.loss) * part + 1e-9;
            let got = greedy_for_loss(&tensors, most).unwrap();
            prop_assert!(got.loss <= most && got.bytes >= none.bytes && got.bytes <= all.bytes);
            prop_assert!(got.loss + largest_step(&tensors) + 1e-6 >= most.min(none.loss));
        }
    }

    #[test]
    fn tensors_without_a_usable_choice_are_an_error() {
        let bad = vec![vec![Choice { bytes: 1, loss: f64::NAN }]];
        assert!(matches!(greedy(&bad, 9), Err(QuantError::Missing { .. })));
        assert!(matches!(exact(&[Vec::new()], 9, 9), Err(QuantError::Missing { .. })));
        assert_eq!(greedy(&[], 0).unwrap(), exact(&[], 0, 1).unwrap());
        let many: Vec<Vec<Choice>> = (0..20)
            .map(|t| {
                vec![
                    Choice { bytes: 1, loss: 1.0 },
                    Choice { bytes: 1 + (1 << t), loss: 1.0 - f64::from(1 << t) * 1e-6 },
                ]
            })
            .collect();
        assert!(matches!(exact(&many, 1 << 30, 1000), Err(QuantError::Size { .. })));
    }
}
