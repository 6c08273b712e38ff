//! How far two distributions over the next token lie apart.

/// KL(reference || candidate) of two rows of logits, nats, and whether both have the same likeliest token (the lowest id
/// among equals). Infinite where a logit of the candidate is not finite.
pub(crate) fn divergence(reference: &[f32], candidate: &[f32]) -> (f64, bool) {
    let (p, q) = (log_sum(reference), log_sum(candidate));
    let mut kl = 0.0;
    for (a, b) in reference.iter().zip(candidate) {
        let (log_p, log_q) = (f64::from(*a) - p, f64::from(*b) - q);
        // A token that cannot come adds nothing.
        if log_p > f64::NEG_INFINITY {
            kl += log_p.exp() * (log_p - log_q);
        }
    }
    let kl = if kl.is_nan() { f64::INFINITY } else { kl.max(0.0) };
    (kl, likeliest(reference) == likeliest(candidate))
}

/// Negative log likelihood of `token`, nats.
pub(crate) fn surprise(logits: &[f32], token: u32) -> f64 {
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    log_sum(logits) - f64::from(logit)
}

/// ln of the sum of e^logit.
fn log_sum(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let most = f64::from(most);
    most + logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum::<f64>().ln()
}

pub(crate) fn likeliest(logits: &[f32]) -> usize {
    let best = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (0..logits.len()).fold(0, best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_of_two_coins() {
        // p = (1/2, 1/2), q = (3/4, 1/4): ln(4 / (3 ln..)) by hand.
        let (kl, same) = divergence(&[0.0, 0.0], &[3.0f32.ln(), 0.0]);
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((kl - expected).abs() < 1e-7 && same, "{kl}");
        assert_eq!(divergence(&[5.0, 1.0], &[105.0, 101.0]), (0.0, true));
        assert!(!divergence(&[1.0, 0.0], &[0.0, 1.0]).1);
    }

    #[test]
    fn what_is_not_finite_is_infinitely_far() {
        assert_eq!(divergence(&[0.0, 1.0], &[f32::NAN, 1.0]).0, f64::INFINITY);
        assert_eq!(divergence(&[0.0, 1.0], &[f32::INFINITY, 1.0]).0, f64::INFINITY);
        assert_eq!(divergence(&[0.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]), (0.0, true));
    }

    #[test]
    fn surprise_is_the_negative_log_of_softmax() {
        assert!((surprise(&[0.0, 3.0f32.ln()], 0) - 4.0f64.ln()).abs() < 1e-7);
        assert_eq!(surprise(&[0.0], 7), f64::INFINITY);
    }
}
