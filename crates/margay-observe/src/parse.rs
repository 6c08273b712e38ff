//! Numbers as the kernel and its drivers write them. What is not such a number is unknown.

/// The whole text as a number, blanks aside.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.trim().trim_matches('\0').trim().parse().ok()
}

/// As [`number`], of either sign.
pub(crate) fn signed(text: &str) -> Option<i64> {
    text.trim().trim_matches('\0').trim().parse().ok()
}

/// A share of 100: `42`, `42%`, `42 %`, `42.5`, `utilization=42`, `45@600000000Hz`, and the first of several numbers,
/// as MediaTek's `loading block idle` has them. More than 100 or less than 0 is unknown.
///
/// Source: `gpu_utilization_show` of MediaTek's `ged_hal.c`, `gpu_busy_percentage` of Qualcomm's `kgsl_pwrctrl.c`, `load`
/// of vendors' devfreq, and the public readers of all of these.
pub(crate) fn percent(text: &str) -> Option<f64> {
    let text = text.trim();
    let value = text.rsplit_once('=').map_or(text, |(_, value)| value.trim_start());
    let end = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (digits, rest) = value.split_at(end);
    // "12x" is another format than any that is known.
    if digits.len() > 16 || !(rest.is_empty() || rest.starts_with(['%', ' ', '\t', '\n', '@'])) {
        return None;
    }
    let share: f64 = digits.parse().ok()?;
    (0.0..=100.0).contains(&share).then_some(share)
}

/// Frequency behind the `@` of `45@600000000Hz`, in hertz.
pub(crate) fn hertz_of_load(text: &str) -> Option<f64> {
    let (_, hertz) = text.trim().split_once('@')?;
    plausible_hertz(number(hertz.trim_end_matches("Hz"))?)
}

/// Hertz of a number in hertz; 0 (off, or no clock) and more than 100 GHz are unknown.
pub(crate) fn plausible_hertz(hertz: u64) -> Option<f64> {
    (1..=100_000_000_000).contains(&hertz).then_some(hertz as f64)
}

/// Change of a counter; `None` where it went backwards.
pub(crate) fn increase(before: u64, now: u64) -> Option<u64> {
    now.checked_sub(before)
}

/// `part` of `whole` in percent, at most 100; `None` of nothing.
pub(crate) fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0 && part >= 0.0).then(|| (100.0 * part / whole).min(100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_spelling_of_a_share_is_read() {
        for (text, share) in [
            ("42", 42.0),
            ("42\n", 42.0),
            ("42%", 42.0),
            ("45 %\n", 45.0),
            ("utilization=42", 42.0),
            ("gpu_util = 7%", 7.0),
            ("45@600000000Hz\n", 45.0),
            ("97 0 3\n", 97.0),
            ("12.5", 12.5),
            ("0", 0.0),
            ("100", 100.0),
        ] {
            assert_eq!(percent(text), Some(share), "{text:?}");
        }
        for text in ["", "101", "-1", "256", "x", "12x", "%", "=", "NaN", "inf", "1e2", "0x10", "1.2.3"] {
            assert_eq!(percent(text), None, "{text:?}");
        }
        assert_eq!(hertz_of_load("45@600000000Hz"), Some(6e8));
        for text in ["45", "45@", "45@0Hz", "45@xHz", "45@999999999999999Hz"] {
            assert_eq!(hertz_of_load(text), None, "{text:?}");
        }
    }
}
