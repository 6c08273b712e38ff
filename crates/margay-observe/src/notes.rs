//! What a reader of a report must know before believing it.

use crate::{Channels, Sample, Series, sensors::at};

/// A cap below this share of the top counts as one: drivers round.
const CAPPED: f64 = 0.995;

/// Sentences about a series: caps, cooling, voltage, what power is of, what the sampling cost.
pub(crate) fn notes(series: &Series) -> Vec<String> {
    let (channels, samples) = (&series.channels, &series.samples);
    let mut notes: Vec<String> = of_power(series).into_iter().collect();
    notes.extend(caps(channels, samples));
    notes.extend(cooling(channels, samples));
    if let Some(first) = samples.iter().find(|sample| sample.undervoltage == Some(true)) {
        notes.push(format!(
            "UNDERVOLTAGE from {:.1} s: the supply is too weak, speeds are not the board's",
            seconds(first)
        ));
    }
    if let Some(bits) =
        samples.iter().filter_map(|s| s.throttled_bits).reduce(|a, b| a | b).filter(|b| b & 0xf != 0)
    {
        notes.push(format!("the firmware throttles: bits {bits:#x}"));
    }
    if series.merged > 1 {
        let merged = series.merged;
        notes.push(format!("each sample is the mean of {merged}, because there were too many to keep: short peaks are flattened"));
    }
    if let Some(overhead) = series.overhead {
        let cpu = overhead
            .cpu_percent
            .map_or_else(|| "unknown".to_owned(), |cpu| format!("{cpu:.2} % of one core"));
        let wall = overhead.mean_wall_seconds * 1e3;
        let missed = match overhead.missed {
            0 => String::new(),
            missed => format!(", {missed} samples missed"),
        };
        notes.push(format!("sampling cost {cpu}, {wall:.2} ms a sample{missed}"));
    }
    notes
}

/// What power is of; where it is unknown, its curve says why.
fn of_power(series: &Series) -> Option<String> {
    series.samples.iter().find(|sample| sample.power_watts.is_some())?;
    let scope = series.channels.power_scope.as_ref()?;
    let update = series.power_update().map_or_else(String::new, |period| {
        format!("; its numbers change every {} ms", (period.as_secs_f64() * 1e3).round())
    });
    Some(format!("power is of {scope}{update}"))
}

fn seconds(sample: &Sample) -> f64 {
    sample.at.as_secs_f64()
}

fn caps(channels: &Channels, samples: &[Sample]) -> Vec<String> {
    // Cores of one cluster are capped alike: one note for them.
    let mut groups: Vec<(String, Vec<u32>)> = Vec::new();
    for (position, core) in channels.cores.iter().enumerate() {
        let Some(top) = at(&channels.core_top_hertz, position) else { continue };
        let cap = |sample: &Sample| at(&sample.core_cap_hertz, position).filter(|cap| *cap < top * CAPPED);
        let Some(first) = samples.iter().find(|sample| cap(sample).is_some()) else { continue };
        let lowest = samples.iter().filter_map(cap).fold(top, f64::min);
        let text =
            format!("capped to {:.0} of {:.0} MHz from {:.1} s", lowest / 1e6, top / 1e6, seconds(first));
        match groups.iter_mut().find(|(same, _)| *same == text) {
            Some((_, cores)) => cores.push(*core),
            None => groups.push((text, vec![*core])),
        }
    }
    let line = |(text, cores): (String, Vec<u32>)| {
        let cores: Vec<String> = cores.iter().map(u32::to_string).collect();
        format!("core {} {text}", cores.join(", "))
    };
    groups.into_iter().map(line).collect()
}

fn cooling(channels: &Channels, samples: &[Sample]) -> Vec<String> {
    let note = |(position, name): (usize, &String)| {
        let states = samples.iter().filter_map(|sample| Some((at(&sample.cooling_state, position)?, sample)));
        let (first, _) = states.clone().next()?;
        // What stood there all along is the device's habit, not an answer to this work.
        let (_, rise) = states.clone().find(|(state, _)| *state > first)?;
        let most = states.map(|(state, _)| state).max()?;
        let of = at(&channels.cooling_max, position).map_or_else(String::new, |max| format!(" of {max}"));
        Some(format!("cooling {name} rose from {first} to {most}{of}, first at {:.1} s", seconds(rise)))
    };
    channels.cooling.iter().enumerate().filter_map(note).collect()
}
