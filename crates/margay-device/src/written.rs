//! A profile as text that people read and change.

use crate::{Device, Origin, Stated};
use std::fmt::Write;

/// The text that [`Device::parse`] reads as the same device: a number a line, each with its origin.
pub(crate) fn profile(device: &Device) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name} = {value}");
    // Writing to a string does not fail.
    let _ = line("name", quoted(&device.name));
    let _ = line("chip", quoted(&device.chip));
    let _ = line("about", quoted(&device.about));
    let _ = line("idle_watts", stated(&device.idle_watts));
    if let Some(budget) = &device.budget_watts {
        let _ = line("budget_watts", stated(budget));
    }
    let memory = &device.memory;
    table(
        &mut text,
        "[memory]",
        &[
            ("bytes", &memory.bytes),
            ("usable_bytes", &memory.usable_bytes),
            ("bytes_per_second", &memory.bytes_per_second),
            ("joules_per_byte", &memory.joules_per_byte),
            ("storage_bytes_per_second", &memory.storage_bytes_per_second),
        ],
    );
    if let Some(battery) = &device.battery {
        table(&mut text, "[battery]", &[("watt_hours", &battery.watt_hours)]);
    }
    let thermal = &device.thermal;
    let limits =
        [("ambient_celsius", &thermal.ambient_celsius), ("ceiling_celsius", &thermal.ceiling_celsius)];
    table(&mut text, "[thermal]", &limits);
    text += "throttle = [\n";
    for point in &thermal.throttle {
        let (celsius, fraction) = (stated(&point.celsius), stated(&point.fraction));
        let _ = writeln!(text, "    {{ celsius = {celsius}, fraction = {fraction} }},");
    }
    text += "]\n";
    for node in &thermal.node {
        let _ = write!(text, "\n[[thermal.node]]\nname = {}\n", quoted(&node.name));
        lines(
            &mut text,
            &[("joules_per_kelvin", &node.joules_per_kelvin), ("kelvin_per_watt", &node.kelvin_per_watt)],
        );
    }
    for unit in &device.unit {
        let (id, kind) = (quoted(&unit.id), quoted(unit.kind.name()));
        let _ = write!(text, "\n[[unit]]\nid = {id}\nkind = {kind}\ncores = {}\n", unit.cores);
        let rates =
            [("int8_gops", &unit.int8_gops), ("f16_gops", &unit.f16_gops), ("f32_gops", &unit.f32_gops)];
        let known: Vec<_> =
            rates.into_iter().filter_map(|(name, rate)| Some((name, rate.as_ref()?))).collect();
        lines(&mut text, &known);
        lines(
            &mut text,
            &[
                ("bytes_per_second", &unit.bytes_per_second),
                ("launch_seconds", &unit.launch_seconds),
                ("active_watts", &unit.active_watts),
                ("idle_watts", &unit.idle_watts),
            ],
        );
        let steps: Vec<String> = unit.steps.iter().map(stated).collect();
        let _ = writeln!(text, "steps = [{}]", steps.join(", "));
    }
    text
}

fn table(text: &mut String, head: &str, numbers: &[(&str, &Stated)]) {
    *text += &format!("\n{head}\n");
    lines(text, numbers);
}

fn lines(text: &mut String, numbers: &[(&str, &Stated)]) {
    for (name, number) in numbers {
        *text += &format!("{name} = {}\n", stated(number));
    }
}

fn stated(number: &Stated) -> String {
    let (word, why) = match &number.origin {
        Origin::Source(why) => ("source", why),
        Origin::Assumed(why) => ("assumed", why),
    };
    format!("{{ value = {:?}, {word} = {} }}", number.value, quoted(why))
}

fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04x}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_profile_comes_back_as_it_was_written() {
        for id in Device::ids() {
            let device = Device::named(id).unwrap();
            assert_eq!(Device::parse(id, &profile(&device)).unwrap(), device, "{id}");
        }
        let mut odd = Device::named("tablet").unwrap();
        odd.name = "a \"b\" \\ \n = [c]".to_owned();
        assert_eq!(Device::parse("odd", &profile(&odd)).unwrap(), odd);
    }
}
